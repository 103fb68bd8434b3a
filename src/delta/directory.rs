//! Which blocks of an epoch have their last image kept, and in which slot: the same for encoder, decoder, and whoever follows an epoch
//! without its pages. The policy is part of the format: at most so many blocks; a new image takes the slot of the block's last one;
//! when there are too many, the block whose last image is the oldest goes. Spec: formats/deltas.md.

#![deny(clippy::indexing_slicing)]

use super::block::BlockId;
use super::history::{ChangePlace, NO_CHANGE};
use super::table::{BlockTable, NONE};
use crate::base::Lsn;
use prefetch_index::prefetch_index;
use std::collections::VecDeque;

/// A block with an image, in the slot of its number. It lies in one line of the processor's cache.
#[derive(Debug, Clone, PartialEq, Eq)]
#[repr(align(64))]
pub struct Entry {
    /// The block.
    pub block: BlockId,
    /// The record that has its last image.
    pub lsn: Lsn,
    /// The check of its page.
    pub check: u32,
    /// Where the last change of the block since then is.
    pub last_change: ChangePlace,
    /// Counts images; tells a block's entry in the queue from those of images it replaced.
    turn: u64,
}

/// Where a block was, if anywhere: looked at first when it is asked for next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Near(u32);

impl Near {
    /// The slot, if it was anywhere.
    pub fn slot(self) -> Option<u32> {
        (self.0 != NONE).then_some(self.0)
    }
}

impl Default for Near {
    fn default() -> Self {
        Near(NONE)
    }
}

/// The blocks of an epoch's last images.
#[derive(Debug)]
pub struct Directory {
    blocks_max: usize,
    /// By slot.
    entries: Vec<Entry>,
    slots: BlockTable,
    /// Slots, in the order of images.
    queue: VecDeque<(u32, u64)>,
    turn: u64,
}

impl Directory {
    /// An empty one of at most `blocks_max` blocks.
    pub fn new(blocks_max: usize) -> Self {
        Directory {
            blocks_max,
            entries: Vec::new(),
            slots: BlockTable::default(),
            queue: VecDeque::new(),
            turn: 0,
        }
    }

    /// The most blocks it holds.
    pub fn blocks_max(&self) -> usize {
        self.blocks_max
    }

    /// The blocks it holds.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.slots.clear();
        self.queue.clear();
    }

    /// What is in `slot`.
    pub fn entry(&self, slot: u32) -> Option<&Entry> {
        self.entries.get(slot as usize)
    }

    /// The same, to be changed.
    pub fn entry_mut(&mut self, slot: u32) -> Option<&mut Entry> {
        self.entries.get_mut(slot as usize)
    }

    /// The slot of `block`.
    pub fn slot(&self, block: &BlockId) -> Option<u32> {
        self.slots.get(block, |slot| has(&self.entries, slot, block))
    }

    /// The slot of `block`, which was at `near` before other blocks came and went.
    pub fn slot_of(&self, block: &BlockId, Near(slot): Near) -> Option<u32> {
        if has(&self.entries, slot, block) { Some(slot) } else { self.slot(block) }
    }

    /// Where each of `blocks` is, with its entry brought near: hardly one waits for the memory of another.
    pub fn find(&self, blocks: &[BlockId]) -> Vec<Near> {
        let mut slots = Vec::with_capacity(blocks.len());
        self.slots.guess(blocks.iter(), &mut slots);
        slots.iter().for_each(|slot| prefetch_index(&self.entries, *slot as usize));
        for (slot, block) in slots.iter_mut().zip(blocks) {
            *slot = self.slot_of(block, Near(*slot)).unwrap_or(NONE);
        }
        slots.into_iter().map(Near).collect()
    }

    /// What was found at `near`.
    pub fn at(&self, Near(slot): Near) -> Option<&Entry> {
        self.entry(slot)
    }

    /// The record at `lsn` has an image of `block`, which nothing has changed yet: its slot. `None` when no block has room at all.
    pub fn insert(&mut self, block: BlockId, lsn: Lsn) -> Option<u32> {
        if self.blocks_max == 0 {
            return None;
        }
        self.turn += 1;
        let slot = match self.slot(&block) {
            Some(slot) => slot,
            None => self.free_slot(block),
        };
        if let Some(entry) = self.entries.get_mut(slot as usize) {
            (entry.lsn, entry.turn, entry.last_change) = (lsn, self.turn, NO_CHANGE);
        }
        self.queue.push_back((slot, self.turn));
        if self.queue.len() > 2 * self.blocks_max.max(64) {
            let entries = &self.entries;
            self.queue.retain(|(slot, turn)| is_last(entries, *slot, *turn));
        }
        Some(slot)
    }

    /// A slot for `block`, which has none: that of the block whose last image is the oldest when there is no other.
    fn free_slot(&mut self, block: BlockId) -> u32 {
        let slot = if self.slots.len() < self.blocks_max {
            self.entries.push(Entry { block, check: 0, lsn: Lsn::ZERO, turn: 0, last_change: NO_CHANGE });
            (self.entries.len() - 1) as u32
        } else {
            self.evict()
        };
        if let Some(entry) = self.entries.get_mut(slot as usize) {
            entry.block = block;
        }
        self.slots.insert(&block, slot, block_of(&self.entries));
        slot
    }

    /// Removes the block whose last image is the oldest; its slot is free.
    fn evict(&mut self) -> u32 {
        while let Some((slot, turn)) = self.queue.pop_front() {
            if let Some(entry) = self.entries.get(slot as usize).filter(|entry| entry.turn == turn) {
                self.slots.remove(&entry.block, slot, block_of(&self.entries));
                return slot;
            }
        }
        unreachable!("a full directory has every block in its queue")
    }

    /// The blocks it holds.
    pub fn blocks(&self) -> impl Iterator<Item = &BlockId> {
        self.slots.numbers().filter_map(block_of(&self.entries))
    }
}

fn block_of<'a>(entries: &'a [Entry]) -> impl Fn(u32) -> Option<&'a BlockId> {
    |slot| entries.get(slot as usize).map(|entry| &entry.block)
}

fn has(entries: &[Entry], slot: u32, block: &BlockId) -> bool {
    entries.get(slot as usize).is_some_and(|entry| entry.block == *block)
}

/// Whether the image of this turn is still the last one in `slot`.
fn is_last(entries: &[Entry], slot: u32, turn: u64) -> bool {
    entries.get(slot as usize).is_some_and(|entry| entry.turn == turn)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::wal::RelationRef;

    #[test]
    fn the_queue_stays_in_proportion() {
        let mut directory = Directory::new(4);
        for turn in 0..10_000u64 {
            let relation = RelationRef { tablespace: 1, database: 2, relation: 3 };
            let block = BlockId { relation, fork: 0, block: (turn % 5) as u32 };
            assert!(directory.insert(block, Lsn::new(turn)).is_some_and(|slot| slot < 4));
        }
        assert!(directory.queue.len() <= 129 && directory.len() == 4);
    }
}
