//! The last images of blocks in an epoch, kept alike by encoder and decoder: which, is for the `directory` to say. Spec:
//! formats/deltas.md.
//!
//! Beside them are what records did to their pages since (`history`), and digits of the last frames (`window`).
//!
//! The cache proves nothing: for encoders each page has a check from when it was put there, and what is decoded has the frame's BLAKE3.

#![deny(clippy::indexing_slicing)]

use super::block::{BlockId, Page, page_check};
use super::directory::{Directory, Entry, Near};
use super::history::{
    self, Chains, Change, ChangePlace, Check, Checks, History, LINE_BYTES, NO_CHANGE, Ring,
};
use super::replay;
use super::window::Window;
use crate::base::limits::BLOCK_BYTES;
use crate::base::{Anonymous, Lsn, Memory, Scratch};
use prefetch_index::prefetch_index;
use std::io;

/// Bytes over which a processor looks ahead by itself: half a block.
const MEMORY_PAGE_BYTES: usize = BLOCK_BYTES / 2;

/// What the cache says about a block.
#[derive(Debug, Clone, Copy)]
pub struct Cached<'a> {
    /// The record whose image it is.
    pub lsn: Lsn,
    block: u32,
    page: &'a Page,
    /// Of the page, if it has one.
    check: Option<u32>,
    last_change: ChangePlace,
    history: &'a History,
    chains: Option<&'a Chains>,
}

/// A cache, some blocks of which are near.
#[derive(Debug)]
pub struct NearCache<'a> {
    cache: &'a ImageCache,
    chains: Chains,
}

impl NearCache<'_> {
    /// The last image of `block`.
    pub fn get(&self, block: &BlockId) -> Option<Cached<'_>> {
        Some(Cached { chains: Some(&self.chains), ..self.cache.get(block)? })
    }
}

/// What the cache holds of a block is not what was put there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotten;

impl<'a> Cached<'a> {
    /// The page with what records did to it since, put together in `room` where something did. It is what was put there, in a cache that
    /// makes checks.
    pub fn page<'b>(&self, room: &'b mut Page) -> Result<&'b Page, Rotten>
    where
        'a: 'b,
    {
        match self.check {
            Some(check) if check != page_check(self.page) => Err(Rotten),
            Some(_) => self.changed_page(room, Check::Compare),
            None => self.changed_page(room, Check::Skip),
        }
    }

    /// The same where nothing is held against its check: for a decoder, which holds what comes of it against the frame's BLAKE3.
    pub fn unchecked_page<'b>(&self, room: &'b mut Page) -> Result<&'b Page, Rotten>
    where
        'a: 'b,
    {
        self.changed_page(room, Check::Skip)
    }

    fn changed_page<'b>(&self, room: &'b mut Page, check: Check) -> Result<&'b Page, Rotten>
    where
        'a: 'b,
    {
        if !self.history.has(self.last_change) {
            return Ok(self.page);
        }
        *room = *self.page;
        let mut found = Vec::new();
        let places = match self.chains.and_then(|chains| chains.of(self.last_change)) {
            Some(known) => known,
            None => {
                self.history.chain(self.last_change, &mut found);
                &found
            }
        };
        for place in places {
            let change = self.history.get(*place, check).map_err(|history::Rotten| Rotten)?;
            replay::apply(&change, self.block, room);
        }
        Ok(room)
    }
}

/// The last images of an epoch's blocks.
#[derive(Debug)]
pub struct ImageCache {
    /// By slot: a page's place among all.
    pub(super) directory: Directory,
    pages: Box<dyn Memory>,
    checks: Checks,
    pub(super) history: History,
    /// The digits that the next frame may repeat.
    pub(super) window: Window,
}

impl ImageCache {
    /// An empty cache of at most `pages_max` pages, and of changes that take an eighth of their bytes, in anonymous memory.
    pub fn new(pages_max: usize) -> Self {
        match ImageCache::within(&Anonymous, pages_max) {
            Ok(cache) => cache,
            Err(error) => unreachable!("no room is taken yet: {error}"),
        }
    }

    /// The same in memory that `scratch` gives. Room is taken as it fills.
    pub fn within(scratch: &dyn Scratch, pages_max: usize) -> io::Result<Self> {
        ImageCache::with(scratch, pages_max, Checks::Made)
    }

    /// The same for decoders alone: pages get no checks, so no encoder can go on with it, and of what comes out wrong nobody can say
    /// whether a page rotted here.
    pub fn for_decoding(scratch: &dyn Scratch, pages_max: usize) -> io::Result<Self> {
        ImageCache::with(scratch, pages_max, Checks::None)
    }

    fn with(scratch: &dyn Scratch, pages_max: usize, checks: Checks) -> io::Result<Self> {
        let ring = Ring::of(pages_max);
        Ok(ImageCache {
            directory: Directory::new(pages_max),
            pages: scratch.memory(pages_max * BLOCK_BYTES)?,
            checks,
            history: History::new(ring, scratch.memory(ring.bytes_max())?, checks),
            window: Window::default(),
        })
    }

    /// Whether an encoder can go on with it.
    pub fn has_checks(&self) -> bool {
        self.checks == Checks::Made
    }

    fn check_of(&self, page: &Page) -> u32 {
        if self.has_checks() { page_check(page) } else { 0 }
    }

    /// The most pages it holds.
    pub fn pages_max(&self) -> usize {
        self.directory.blocks_max()
    }

    /// The pages it holds.
    pub fn len(&self) -> usize {
        self.directory.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets everything: a new epoch begins.
    pub fn clear(&mut self) {
        self.directory.clear();
        self.history.ring = self.history.ring.emptied();
        self.window.clear();
    }

    /// The last image of `block`.
    pub fn get(&self, block: &BlockId) -> Option<Cached<'_>> {
        let slot = self.directory.slot(block)?;
        let entry = self.directory.entry(slot)?;
        let page = self.pages.bytes().get(slot as usize * BLOCK_BYTES..)?.first_chunk()?;
        let Entry { lsn, check, last_change, .. } = *entry;
        Some(Cached {
            lsn,
            block: block.block,
            page,
            check: self.has_checks().then_some(check),
            last_change,
            history: &self.history,
            chains: None,
        })
    }

    /// The cache with what records did to `blocks` near, before it is asked for block by block.
    pub fn near(&self, blocks: &[BlockId]) -> NearCache<'_> {
        let found = self.directory.find(blocks);
        let pages = self.pages.bytes();
        // The first half of each page of memory: a processor that reads on from there asks for the rest by itself.
        for at in found.iter().filter_map(|near| near.slot()).map(|slot| slot as usize * BLOCK_BYTES) {
            for line in (0..MEMORY_PAGE_BYTES / 2).step_by(LINE_BYTES) {
                prefetch_index(pages, at + line);
                prefetch_index(pages, at + MEMORY_PAGE_BYTES + line);
            }
        }
        let entries = found.iter().filter_map(|near| self.directory.at(*near));
        NearCache {
            cache: self,
            chains: self.history.chains(entries.map(|entry| entry.last_change).collect()),
        }
    }

    /// Makes `page`, the page of `block` with what records did to it, its page: what they did is forgotten, its LSN stays.
    pub fn fold(&mut self, block: &BlockId, page: &Page) {
        let Some(slot) = self.directory.slot(block) else { return };
        let check = self.check_of(page);
        let pages = self.pages.bytes_mut().get_mut(slot as usize * BLOCK_BYTES..);
        let (Some(to), Some(entry)) =
            (pages.and_then(|pages| pages.first_chunk_mut()), self.directory.entry_mut(slot))
        else {
            return;
        };
        *to = *page;
        (entry.check, entry.last_change) = (check, NO_CHANGE);
    }

    /// Keeps what a record did to `block`, which was at `near`, if its page is here.
    ///
    /// # Errors
    /// No room: the cache is not what others have who put the same into theirs, and has to be cleared.
    pub fn change(&mut self, block: &BlockId, near: Near, change: &Change<'_>) -> io::Result<()> {
        if let Some(slot) = self.directory.slot_of(block, near)
            && let Some(entry) = self.directory.entry_mut(slot)
            && let Some(place) = self.history.put(change, entry.last_change)?
        {
            entry.last_change = place;
        }
        Ok(())
    }

    /// The same at a place that has been taken for it.
    ///
    /// # Errors
    /// As [`Self::change`].
    pub fn change_at(
        &mut self,
        block: &BlockId,
        near: Near,
        change: &Change<'_>,
        place: ChangePlace,
    ) -> io::Result<()> {
        if let Some(slot) = self.directory.slot_of(block, near)
            && let Some(entry) = self.directory.entry_mut(slot)
        {
            self.history.write(place, change, entry.last_change)?;
            entry.last_change = place;
        }
        Ok(())
    }

    /// Where each of `blocks` is, with what a change of it will touch brought near.
    pub fn find(&self, blocks: &[BlockId]) -> Vec<Near> {
        self.directory.find(blocks)
    }

    /// The block's page is an empty one from the record at `lsn` on.
    ///
    /// # Errors
    /// As [`Self::insert`].
    pub fn init(&mut self, block: BlockId, lsn: Lsn) -> io::Result<()> {
        self.insert(block, lsn, |page| page.fill(0))
    }

    /// Puts the image of `block` in the record at `lsn`: what `fill` makes of a page of any content.
    ///
    /// # Errors
    /// As [`Self::change`].
    pub fn insert(&mut self, block: BlockId, lsn: Lsn, fill: impl FnOnce(&mut Page)) -> io::Result<()> {
        let Some(slot) = self.directory.insert(block, lsn) else { return Ok(()) };
        let at = slot as usize * BLOCK_BYTES;
        self.pages.reach(at + BLOCK_BYTES)?;
        let room = self.pages.bytes_mut().get_mut(at..).and_then(|pages| pages.first_chunk_mut());
        let page: &mut Page = room.ok_or(io::ErrorKind::OutOfMemory)?;
        fill(page);
        if self.checks == Checks::Made
            && let Some(entry) = self.directory.entry_mut(slot)
        {
            entry.check = page_check(page);
        }
        Ok(())
    }

    /// Flips a bit of a cached page, for tests of what happens then.
    #[doc(hidden)]
    pub fn rot(&mut self, block: &BlockId, at: usize) {
        if let Some(slot) = self.directory.slot(block)
            && let Some(byte) = self.pages.bytes_mut().get_mut(slot as usize * BLOCK_BYTES + at % BLOCK_BYTES)
        {
            *byte ^= 1;
        }
    }

    /// Flips a bit of what is kept of changes, for tests of what happens then.
    #[doc(hidden)]
    pub fn rot_changes(&mut self, at: usize) {
        self.history.rot(at);
    }

    /// The blocks it holds, for tests.
    #[doc(hidden)]
    pub fn blocks(&self) -> impl Iterator<Item = &BlockId> {
        self.directory.blocks()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::wal::RelationRef;

    fn block(block: u32) -> BlockId {
        BlockId { relation: RelationRef { tablespace: 1, database: 2, relation: 3 }, fork: 0, block }
    }

    fn page(byte: u8) -> Page {
        [byte; BLOCK_BYTES]
    }

    #[test]
    fn keeps_the_last_image_of_each_block() {
        let mut cache = ImageCache::new(3);
        for (at, byte) in [(1, 1), (2, 2), (1, 3)] {
            cache.insert(block(at), Lsn::new(u64::from(byte)), |to| *to = page(byte)).unwrap();
        }
        assert_eq!(cache.len(), 2);
        let found = cache.get(&block(1)).unwrap();
        assert_eq!((found.lsn, found.page(&mut page(9))), (Lsn::new(3), Ok(&page(3))));
    }

    #[test]
    fn the_oldest_last_image_goes_first() {
        let mut cache = ImageCache::new(3);
        // Block 1 is renewed, so block 2 is the oldest.
        for (at, byte) in [(1, 1), (2, 2), (3, 3), (1, 4), (4, 5)] {
            cache.insert(block(at), Lsn::new(u64::from(byte)), |to| *to = page(byte)).unwrap();
        }
        let has: Vec<bool> = (1..=4).map(|at| cache.get(&block(at)).is_some()).collect();
        assert_eq!(has, [true, false, true, true]);
        assert_eq!(cache.get(&block(4)).unwrap().page(&mut page(9)), Ok(&page(5)));
    }

    #[test]
    fn pages_take_no_more_room_than_they_may() {
        let mut cache = ImageCache::new(4);
        for turn in 0..100u64 {
            cache.insert(block((turn % 5) as u32), Lsn::new(turn), |to| *to = page(turn as u8)).unwrap();
        }
        assert_eq!((cache.len(), cache.pages.bytes().len()), (4, 4 * BLOCK_BYTES));
    }

    #[test]
    fn a_page_that_changed_is_not_given() {
        let mut cache = ImageCache::new(1);
        cache.insert(block(1), Lsn::new(1), |to| *to = page(1)).unwrap();
        cache.rot(&block(1), 8000);
        assert_eq!(cache.get(&block(1)).unwrap().page(&mut page(9)), Err(Rotten));
        cache.clear();
        assert!(cache.get(&block(1)).is_none() && cache.is_empty());
    }
}
