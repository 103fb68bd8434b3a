//! Copying units of WAL and naming them: several in flight, each durable before the destination's index names it, a group at once.

use super::destination::Destination;
use super::error::CopyError;
use super::plan::{Group, Unit};
use super::run::Copied;
use super::source::View;
use super::wal::seal;
use crate::base::Generation;
use crate::format::index::WalEntry;
use crate::repo::{Cluster, WalReader};
use std::collections::BTreeMap;
use tokio::sync::Mutex;

/// Segments that are stored and not named yet: groups that are whole, and the one that is not.
#[derive(Debug, Default)]
pub struct Batch {
    whole: Vec<(Group, Vec<WalEntry>)>,
    open: Vec<WalEntry>,
}

impl Batch {
    /// Adds the next one of `group`.
    pub fn add(&mut self, group: &Group, entry: WalEntry) {
        self.open.push(entry);
        if self.open.len() == group.adds.len() {
            self.whole.push((group.clone(), std::mem::take(&mut self.open)));
        }
    }

    /// Segments of groups that are whole.
    pub fn segments(&self) -> usize {
        self.whole.iter().map(|(_, entries)| entries.len()).sum()
    }

    /// What they take.
    pub fn bytes(&self) -> u64 {
        self.whole.iter().flat_map(|(_, entries)| entries).map(|entry| entry.object_len).sum()
    }

    /// Names groups that are whole. Durable on `Ok`.
    pub async fn commit(&mut self, to: &Destination, copied: &mut Copied) -> Result<(), CopyError> {
        if self.whole.is_empty() {
            return Ok(());
        }
        to.add_wal(&self.whole).await?;
        for entry in std::mem::take(&mut self.whole).iter().flat_map(|(_, entries)| entries) {
            copied.wal_segments += 1;
            copied.wal_bytes += entry.end.bytes_since(entry.start);
            copied.bytes_written += entry.object_len;
        }
        Ok(())
    }
}

/// Copies one unit; durable on return. What has delta frames is read in the order of the epoch, one unit at a time.
pub async fn copy_unit(
    source: &Cluster,
    destination: &Destination,
    readers: &BTreeMap<Generation, Mutex<WalReader>>,
    view: &View,
    unit: &Unit,
) -> Result<WalEntry, CopyError> {
    let to = &destination.cluster;
    let (Some(era), Some(reader)) = (view.eras.get(&unit.place.0), readers.get(&unit.place.0)) else {
        unreachable!("the plan is of these generations")
    };
    let sealed = if unit.is_decoded {
        seal(&mut *reader.lock().await, unit, era, source, to).await
    } else {
        let mut reader = WalReader::new(source.clone(), era.wal.clone());
        seal(&mut reader, unit, era, source, to).await
    };
    let (sealed, cluster) = (sealed.map_err(CopyError::Source)?, to.clone());
    // A task of its own: what is decoded meanwhile does not hold it up.
    match tokio::spawn(async move { sealed.store(&cluster).await }).await {
        Ok(stored) => Ok(stored?),
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
