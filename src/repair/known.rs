//! What the index objects of committed roots say that can still be read. An index object that no root leads to proves nothing: its
//! commit may have lost its race. Nor does a root below the floor: a process that stalled may have won its number a second time, in
//! vain, and what it removed may be in use.

use super::Unreadable;
use crate::base::ObjectId;
use crate::format::root::Root;
use crate::repo::index::{self, Index, IndexObject};
use crate::repo::roots::{self, NONE};
use crate::repo::{Cluster, RepoError, layout};
use futures_util::{StreamExt, stream};
use std::collections::HashSet;

/// Roots read ahead.
const ROOTS_IN_FLIGHT: usize = 16;

/// What index objects say.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Their entries, merged, the newest first.
    pub index: Index,
    /// Roots and index objects that cannot be read.
    pub unreadable: Vec<Unreadable>,
    /// Index objects that can be.
    pub objects: usize,
    /// The newest root whose index can be read whole: up to it everything is known.
    pub whole_up_to: Option<u64>,
}

/// Reads what roots lead to, from `newest` down to the first whose index can be read whole, or to the floor.
///
/// # Errors
/// A key epoch that is not held: what the object says would be taken for unsaid. A store that fails.
pub(super) async fn read(cluster: &Cluster, newest: &Root) -> Result<Known, RepoError> {
    let floor = roots::newest_floor(cluster.repo(), cluster.name(), newest.floor).await?;
    let least = floor.map_or(NONE + 1, |floor| floor.root);
    let reads = stream::iter((least..=newest.number).rev())
        .map(|number| async move { (number, roots::read_root(cluster.repo(), cluster.name(), number).await) })
        .buffered(ROOTS_IN_FLIGHT);
    let mut reads = std::pin::pin!(reads);
    let mut reading = Reading { cluster, known: Known::default(), read: Vec::new(), seen: HashSet::new() };
    while let Some((number, root)) = reads.next().await {
        let root = match root {
            Ok(Some(root)) => root,
            // The floor rose meanwhile.
            Ok(None) => break,
            Err(error) if error.is_damage() => {
                reading.known.unreadable.push(Unreadable::lead(layout::root(cluster.name(), number), &error));
                continue;
            }
            Err(error) => return Err(error),
        };
        if reading.is_whole(&root).await? {
            reading.known.whole_up_to = Some(number);
            break;
        }
    }
    Ok(reading.finish())
}

struct Reading<'a> {
    cluster: &'a Cluster,
    known: Known,
    read: Vec<(ObjectId, IndexObject)>,
    seen: HashSet<ObjectId>,
}

impl Reading<'_> {
    /// Reads the index of `root` as far as that goes, and says whether it goes to the end.
    async fn is_whole(&mut self, root: &Root) -> Result<bool, RepoError> {
        let Some(newest) = root.index else { return Ok(true) };
        if !self.read_object(newest).await? {
            return Ok(false);
        }
        let levels = self.read.iter().find(|(id, _)| *id == newest).map(|(_, object)| object.levels.clone());
        let mut whole = true;
        for level in levels.unwrap_or_default() {
            whole &= self.read_object(level).await?;
        }
        Ok(whole)
    }

    /// Whether it can be read.
    async fn read_object(&mut self, id: ObjectId) -> Result<bool, RepoError> {
        if !self.seen.insert(id) {
            return Ok(self.read.iter().any(|(known, _)| *known == id));
        }
        match index::read_one(self.cluster, id).await {
            Ok(object) => self.read.push((id, object)),
            Err(error) if error.is_damage() => {
                let key = layout::index(self.cluster.name(), id);
                self.known.unreadable.push(Unreadable::lead(key, &error));
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    /// Merges what was read. An object without levels is all there was when it was made: what is older is in it, or was let go with it.
    fn finish(self) -> Known {
        let Reading { mut known, mut read, .. } = self;
        known.objects = read.len();
        read.sort_by_key(|(_, object)| std::cmp::Reverse(object.root));
        let whole = read.iter().position(|(_, object)| object.levels.is_empty());
        read.truncate(whole.map_or(read.len(), |at| at + 1));
        known.index = index::merge(read.into_iter().map(|(_, object)| object.page).collect());
        known
    }
}
