//! What each chunk of the source is called in the destination: ids are keyed, so nobody can tell but by reading the chunk, or by a
//! backup that both hold. One place for each stored chunk of the source, in scratch room: 32 bytes, zeros as long as it is not known.

use crate::base::{ChunkId, Memory, ObjectKey};
use crate::repo::chunks::{ChunkIndex, Location};
use crate::repo::{Cluster, RepoError};
use std::collections::HashMap;
use std::sync::Arc;

const ID_BYTES: usize = 32;

/// A place in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(usize);

/// Names of the source's chunks in the destination.
#[derive(Debug)]
pub struct Table {
    index: Arc<ChunkIndex>,
    /// Where the places of each segment of the index begin.
    starts: Vec<usize>,
    ids: Box<dyn Memory>,
}

impl Table {
    /// A table of nothing about the chunks of `index`.
    pub fn new(cluster: &Cluster, index: Arc<ChunkIndex>) -> Result<Table, RepoError> {
        let (mut starts, mut count) = (Vec::new(), 0);
        for frames in index.frame_counts() {
            starts.push(count);
            count += frames;
        }
        let bytes = count * ID_BYTES;
        let no_room =
            |error: std::io::Error| RepoError::NoRoom { bytes: bytes as u64, reason: error.to_string() };
        let mut ids = cluster.repo().env().scratch.memory(bytes).map_err(no_room)?;
        ids.reach(bytes).map_err(no_room)?;
        Ok(Table { index, starts, ids })
    }

    /// The place of a chunk that the source stores, and where it stores it.
    pub fn slot(&self, id: &ChunkId) -> Option<(Slot, Location)> {
        let at = self.index.find(id)?;
        let start = self.starts.get(at.segment_number())?;
        Some((Slot(start + at.frame_number()), at))
    }

    /// What the chunk at `slot` is called, if that is known.
    pub fn at(&self, slot: Slot) -> Option<ChunkId> {
        let (ids, _) = self.ids.bytes().as_chunks::<ID_BYTES>();
        ids.get(slot.0).filter(|id| **id != [0; ID_BYTES]).map(|id| ChunkId(*id))
    }

    /// Takes over what `other` knows of segments that both have, where `is_there` says that the name counts.
    pub fn adopt(&mut self, other: &Table, mut is_there: impl FnMut(&ChunkId) -> bool) {
        let theirs: HashMap<&ObjectKey, usize> =
            other.index.segment_keys().zip(other.starts.iter().copied()).collect();
        let index = self.index.clone();
        let own = index.segment_keys().zip(index.frame_counts()).zip(self.starts.clone());
        for ((key, frames), start) in own {
            let Some(other_start) = theirs.get(key) else { continue };
            for frame in 0..frames {
                if let Some(name) = other.at(Slot(other_start + frame)).filter(&mut is_there) {
                    self.set(Slot(start + frame), name);
                }
            }
        }
    }

    /// What `id` is called, if that is known.
    pub fn get(&self, id: &ChunkId) -> Option<ChunkId> {
        self.slot(id).and_then(|(slot, _)| self.at(slot))
    }

    /// From now on it is known.
    pub fn set(&mut self, slot: Slot, id: ChunkId) {
        let (ids, _) = self.ids.bytes_mut().as_chunks_mut::<ID_BYTES>();
        if let Some(place) = ids.get_mut(slot.0) {
            *place = id.0;
        }
    }
}
