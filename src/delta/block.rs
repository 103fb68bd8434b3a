//! Blocks, their pages, and who gives them: what images refer to.

use crate::base::crc32c;
use crate::base::limits::BLOCK_BYTES;
use crate::format::wal::RelationRef;

/// The bytes of one block.
pub type Page = [u8; BLOCK_BYTES];

/// A block of a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockId {
    /// The relation's file.
    pub relation: RelationRef,
    /// 0 main, 1 free space map, 2 visibility map, 3 init.
    pub fork: u8,
    /// The block.
    pub block: u32,
}

impl std::hash::Hash for BlockId {
    /// In two words: a table of blocks is asked for every record.
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        let RelationRef { tablespace, database, relation } = self.relation;
        state.write_u64(u64::from(tablespace ^ u32::from(self.fork) << 24) << 32 | u64::from(database));
        state.write_u64(u64::from(relation) << 32 | u64::from(self.block));
    }
}

impl std::fmt::Display for BlockId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let RelationRef { tablespace, database, relation } = self.relation;
        write!(f, "{tablespace}/{database}/{relation} fork {} block {}", self.fork, self.block)
    }
}

/// Who says that a page is what the committed backup stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vouched {
    /// The source itself: it read the page from the repository just now, and checked the chunk's id.
    BySource,
    /// Keyed BLAKE3 of the page as the backup stored it, which the codec compares.
    ByHash([u8; 32]),
}

/// Gives pages of the epoch's base backup.
pub trait PageSource {
    /// Puts the page of `block` into `page`; `None` when it is not at hand.
    fn base_page(&mut self, block: &BlockId, page: &mut Page) -> Option<Vouched>;

    /// The page of `block`, where the source has it in memory, otherwise in `room`; `None` when it is not at hand. A source that can
    /// get it from more than one place takes the one whose check is `expected`.
    fn lend_page<'a>(
        &'a mut self,
        block: &BlockId,
        expected: u32,
        room: &'a mut Page,
    ) -> Option<(&'a Page, Vouched)> {
        let _ = expected;
        let vouched = self.base_page(block, room)?;
        Some((room, vouched))
    }
}

/// No base: every page is missing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoBase;

impl PageSource for NoBase {
    fn base_page(&mut self, _block: &BlockId, _page: &mut Page) -> Option<Vouched> {
        None
    }
}

/// The keyed hash that vouches for a page.
pub fn page_hash(key: &[u8; 32], page: &Page) -> [u8; 32] {
    *blake3::keyed_hash(key, page).as_bytes()
}

/// A quick check of a page: CRC-32C. It finds rot and mistakes; that the decoded WAL is right is proven by the frame's BLAKE3.
pub fn page_check(page: &Page) -> u32 {
    crc32c::crc32c(page)
}
