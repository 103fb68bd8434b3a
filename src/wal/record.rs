//! WAL records: header, fragments, main data (`access/xlogrecord.h`). Both dialects of image headers.
//! Refuses what no server writes; nothing is copied.
//!
//! ```text
//!  0 u32 tot_len   4 u32 xid   8 u64 prev   16 u8 info   17 u8 rmid   18 pad   20 u32 crc
//! 24 block headers, origin, top-level xid, main data header; then per block image and data; then main data
//! ```
//!
//! The checksum is CRC-32C over [24..tot_len), then over [0..20).

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::{WalError, WalVersion};
use crate::base::{Lsn, crc32c};
use crate::format::wal::RelationRef;
use crate::format::{FormatError, Reader};

/// Bytes of a record's header.
pub const RECORD_HEADER_BYTES: usize = 24;
/// The longest record: 1020 MiB (XLogRecordMaxSize); the versions before it had a name for it failed to read longer ones.
pub const RECORD_BYTES_MAX: u32 = 1020 << 20;
/// Bytes that hold all fragment headers of any record, and its header, with room to spare: 33 blocks of 27 bytes at most.
pub const FRAGMENTS_BYTES_MAX: usize = 2048;

/// Resource managers, which the versions number alike (`access/rmgrlist.h`).
pub mod rmgr {
    #![allow(missing_docs)]
    pub const XLOG: u8 = 0;
    pub const XACT: u8 = 1;
    pub const SMGR: u8 = 2;
    pub const DBASE: u8 = 4;
    pub const RELMAP: u8 = 7;
    pub const STANDBY: u8 = 8;
    pub const HEAP2: u8 = 9;
    pub const HEAP: u8 = 10;
    pub const LOGICALMSG: u8 = 21;
    pub const BUILTIN_MAX: u8 = 21;
    pub const CUSTOM_MIN: u8 = 128;

    /// Their names, as pg_waldump prints them.
    pub const NAMES: [&str; 22] = [
        "XLOG",
        "Transaction",
        "Storage",
        "CLOG",
        "Database",
        "Tablespace",
        "MultiXact",
        "RelMap",
        "Standby",
        "Heap2",
        "Heap",
        "Btree",
        "Hash",
        "Gin",
        "Gist",
        "Sequence",
        "SPGist",
        "BRIN",
        "CommitTs",
        "ReplicationOrigin",
        "Generic",
        "LogicalMessage",
    ];
}

/// `xl_info` without the bits that are not the resource manager's.
pub const RMGR_INFO_MASK: u8 = 0xF0;
/// XLOG_SWITCH of the XLOG resource manager.
pub const INFO_SWITCH: u8 = 0x40;
/// XLOG_NOOP of the XLOG resource manager.
pub const INFO_NOOP: u8 = 0x20;

/// The fixed part of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    /// Bytes of the record, this header included.
    pub total_len: u32,
    /// The transaction, or 0. A subtransaction's own.
    pub xid: u32,
    /// Start of the record before.
    pub prev: Lsn,
    /// What the record is, by its resource manager; the low four bits are common to all.
    pub info: u8,
    /// The resource manager.
    pub rmgr: u8,
    /// CRC-32C of the record.
    pub crc: u32,
}

impl RecordHeader {
    /// Takes the 24 bytes apart.
    pub fn decode(bytes: &[u8; RECORD_HEADER_BYTES]) -> Self {
        let [
            l0,
            l1,
            l2,
            l3,
            x0,
            x1,
            x2,
            x3,
            p0,
            p1,
            p2,
            p3,
            p4,
            p5,
            p6,
            p7,
            info,
            rmgr,
            _,
            _,
            c0,
            c1,
            c2,
            c3,
        ] = *bytes;
        RecordHeader {
            total_len: u32::from_le_bytes([l0, l1, l2, l3]),
            xid: u32::from_le_bytes([x0, x1, x2, x3]),
            prev: Lsn::new(u64::from_le_bytes([p0, p1, p2, p3, p4, p5, p6, p7])),
            info,
            rmgr,
            crc: u32::from_le_bytes([c0, c1, c2, c3]),
        }
    }

    /// The 20 bytes that the checksum covers last, and then the checksum.
    pub fn encode(&self) -> [u8; RECORD_HEADER_BYTES] {
        let [l0, l1, l2, l3] = self.total_len.to_le_bytes();
        let [x0, x1, x2, x3] = self.xid.to_le_bytes();
        let [p0, p1, p2, p3, p4, p5, p6, p7] = self.prev.get().to_le_bytes();
        let [c0, c1, c2, c3] = self.crc.to_le_bytes();
        let (info, rmgr) = (self.info, self.rmgr);
        [l0, l1, l2, l3, x0, x1, x2, x3, p0, p1, p2, p3, p4, p5, p6, p7, info, rmgr, 0, 0, c0, c1, c2, c3]
    }

    /// `xl_info` without the common bits.
    pub fn rmgr_info(&self) -> u8 {
        self.info & RMGR_INFO_MASK
    }

    /// Whether it is an XLOG_SWITCH: nothing follows in its segment.
    pub fn is_switch(&self) -> bool {
        self.rmgr == rmgr::XLOG && self.rmgr_info() == INFO_SWITCH
    }

    /// Refuses a header that no server writes at `start`; `prev` is the record before, where it is known.
    pub fn check(&self, version: WalVersion, start: Lsn, prev: Option<Lsn>) -> Result<(), WalError> {
        if !(RECORD_HEADER_BYTES as u32..=RECORD_BYTES_MAX).contains(&self.total_len) {
            return Err(WalError::new(start, "record length", self.total_len, "24 bytes to 1020 MiB"));
        }
        let custom = self.rmgr >= rmgr::CUSTOM_MIN && version >= WalVersion::V15;
        if self.rmgr > rmgr::BUILTIN_MAX && !custom {
            return Err(WalError::new(start, "resource manager", self.rmgr, "one that the version has"));
        }
        match prev {
            Some(prev) if self.prev != prev => {
                Err(WalError::new(start, "link to the record before", self.prev, prev))
            }
            None if self.prev >= start => {
                Err(WalError::new(start, "link to the record before", self.prev, "an earlier position"))
            }
            _ => Ok(()),
        }
    }
}

/// A record of no more bytes after its header has its checksum made in one go.
const SHORT_BODY_BYTES: usize = 236;

/// The checksum of a record, of which `body` are the bytes after the header.
pub fn record_crc(body: &[u8], header: &[u8; RECORD_HEADER_BYTES]) -> u32 {
    // The checksum covers the header last. To begin anew for it takes longer than to have both together, where that is little.
    let mut both = [0; SHORT_BODY_BYTES + RECORD_HEADER_BYTES];
    if let Some((to, rest)) = both.split_at_mut_checked(body.len())
        && let Some(to_header) = rest.first_chunk_mut::<RECORD_HEADER_BYTES>()
    {
        to.copy_from_slice(body);
        *to_header = *header;
        let covered = body.len().saturating_add(RECORD_HEADER_BYTES - 4);
        return crc32c::crc32c(both.get(..covered).unwrap_or(&[]));
    }
    finish_crc(crc32c::crc32c(body), header)
}

/// The checksum of a record whose bytes after the header have the CRC-32C `body_crc`.
pub(super) fn finish_crc(body_crc: u32, header: &[u8; RECORD_HEADER_BYTES]) -> u32 {
    match header.split_last_chunk::<4>() {
        Some((covered, _)) => crc32c::crc32c_append(body_crc, covered),
        None => body_crc,
    }
}

/// How a page image is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageCompression {
    /// Not at all.
    None,
    /// PostgreSQL's own.
    Pglz,
    /// LZ4, from 15.
    Lz4,
    /// Zstandard, from 15.
    Zstd,
}

/// A full-page image that a record carries; its bytes are not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockImage {
    /// Bytes in the record.
    pub len: u16,
    /// Where in the page the bytes left out begin.
    pub hole_offset: u16,
    /// How many they are.
    pub hole_len: u16,
    /// How it is compressed.
    pub compression: ImageCompression,
    /// Whether replay restores it, or only a consistency check reads it.
    pub apply: bool,
    /// The flags as stored, which the versions number differently.
    pub info: u8,
}

/// A block that a record changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRef {
    /// Its number within the record.
    pub id: u8,
    /// The relation's file.
    pub relation: RelationRef,
    /// 0 main, 1 free space map, 2 visibility map, 3 init.
    pub fork: u8,
    /// The block.
    pub block: u32,
    /// The page itself.
    pub image: Option<BlockImage>,
    /// Bytes of data beside the image.
    pub data_len: u16,
    /// Replay starts from an empty page.
    pub will_init: bool,
    /// Fork and flags as stored.
    pub flags: u8,
}

/// One of the headers after a record's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragment {
    /// A block reference.
    Block(BlockRef),
    /// The replication origin.
    Origin(u16),
    /// The top-level transaction of a subtransaction's record.
    TopXid(u32),
    /// Main data of this many bytes; always the last.
    Main(u32),
}

const BLOCK_ID_MAX: u8 = 32;
const DATA_SHORT: u8 = 255;
const DATA_LONG: u8 = 254;
const ORIGIN: u8 = 253;
const TOPLEVEL_XID: u8 = 252;

const BLOCK_FORK_MASK: u8 = 0x0F;
const BLOCK_HAS_IMAGE: u8 = 0x10;
const BLOCK_HAS_DATA: u8 = 0x20;
const BLOCK_WILL_INIT: u8 = 0x40;
const BLOCK_SAME_REL: u8 = 0x80;

const IMAGE_HAS_HOLE: u8 = 0x01;

/// The fragment headers of a record, in order. Stops after the first error.
#[derive(Debug, Clone)]
pub struct Fragments<'a> {
    version: WalVersion,
    from: Reader<'a>,
    /// Bytes of the record after those read.
    left: u64,
    /// Bytes of images, data and main data that the headers read so far promise.
    promised: u64,
    last_block: Option<BlockRef>,
    done: bool,
}

impl<'a> Fragments<'a> {
    /// The fragments of a record of `total_len` bytes, whose first bytes after the header are `body`:
    /// all of them, or [`FRAGMENTS_BYTES_MAX`] at least.
    pub fn new(version: WalVersion, total_len: u32, body: &'a [u8]) -> Self {
        let left = u64::from(total_len).saturating_sub(RECORD_HEADER_BYTES as u64);
        let from = Reader::new("record fragment", body);
        Fragments { version, from, left, promised: 0, last_block: None, done: false }
    }

    fn step(&mut self) -> Result<Option<Fragment>, FormatError> {
        if self.left == self.promised {
            return Ok(None);
        }
        let before = self.from.position();
        let [id] = self.from.array()?;
        let fragment = match id {
            DATA_SHORT => Fragment::Main(u32::from(u8::from_le_bytes(self.from.array()?))),
            DATA_LONG => Fragment::Main(u32::from_le_bytes(self.from.array()?)),
            ORIGIN => Fragment::Origin(u16::from_le_bytes(self.from.array()?)),
            TOPLEVEL_XID => Fragment::TopXid(u32::from_le_bytes(self.from.array()?)),
            id if id <= BLOCK_ID_MAX => Fragment::Block(self.block(id)?),
            id => return Err(self.from.error(id, "a block number or another fragment's id")),
        };
        self.left = self.left.saturating_sub(self.from.position().saturating_sub(before) as u64);
        let promised_here = match fragment {
            Fragment::Block(block) => {
                u64::from(block.data_len).saturating_add(block.image.map_or(0, |image| u64::from(image.len)))
            }
            Fragment::Main(len) => {
                self.done = true;
                u64::from(len)
            }
            Fragment::Origin(_) | Fragment::TopXid(_) => 0,
        };
        self.promised = self.promised.saturating_add(promised_here);
        if self.promised > self.left || (self.done && self.promised != self.left) {
            return Err(self.from.error(
                format!("{} bytes in images and data", self.promised),
                format!("the {} that the record has left", self.left),
            ));
        }
        Ok(Some(fragment))
    }

    fn block(&mut self, id: u8) -> Result<BlockRef, FormatError> {
        if self.last_block.is_some_and(|last| id <= last.id) {
            return Err(self.from.error(id, "ascending block numbers"));
        }
        let [flags] = self.from.array()?;
        let data_len = u16::from_le_bytes(self.from.array()?);
        if (data_len > 0) != (flags & BLOCK_HAS_DATA != 0) {
            return Err(self.from.error(data_len, "block data exactly where its flag is set"));
        }
        let image = if flags & BLOCK_HAS_IMAGE != 0 { Some(self.image()?) } else { None };
        let relation = if flags & BLOCK_SAME_REL == 0 {
            RelationRef {
                tablespace: u32::from_le_bytes(self.from.array()?),
                database: u32::from_le_bytes(self.from.array()?),
                relation: u32::from_le_bytes(self.from.array()?),
            }
        } else {
            self.last_block
                .ok_or_else(|| self.from.error("no block before", "the one whose relation it shares"))?
                .relation
        };
        let block = BlockRef {
            id,
            relation,
            fork: flags & BLOCK_FORK_MASK,
            block: u32::from_le_bytes(self.from.array()?),
            image,
            data_len,
            will_init: flags & BLOCK_WILL_INIT != 0,
            flags,
        };
        self.last_block = Some(block);
        Ok(block)
    }

    fn image(&mut self) -> Result<BlockImage, FormatError> {
        let len = u16::from_le_bytes(self.from.array()?);
        let hole_offset = u16::from_le_bytes(self.from.array()?);
        let [info] = self.from.array()?;
        // The trap between 14 and 15: the bits after HAS_HOLE changed their meaning.
        let (apply_bit, pglz_bit, lz4_bit, zstd_bit) =
            if self.version == WalVersion::V14 { (4, 2, 0, 0) } else { (2, 4, 8, 16) };
        if info & !(IMAGE_HAS_HOLE | apply_bit | pglz_bit | lz4_bit | zstd_bit) != 0 {
            return Err(self.from.error(format!("{info:#04x}"), "known image flags"));
        }
        let compression = match (info & pglz_bit != 0, info & lz4_bit != 0, info & zstd_bit != 0) {
            (false, false, false) => ImageCompression::None,
            (true, false, false) => ImageCompression::Pglz,
            (false, true, false) => ImageCompression::Lz4,
            (false, false, true) => ImageCompression::Zstd,
            _ => return Err(self.from.error(format!("{info:#04x}"), "one compression method")),
        };
        let page = super::page::PAGE_BYTES as u16;
        let has_hole = info & IMAGE_HAS_HOLE != 0;
        let hole_len = match (has_hole, compression) {
            (false, _) => 0,
            (true, ImageCompression::None) => page.saturating_sub(len),
            (true, _) => u16::from_le_bytes(self.from.array()?),
        };
        let fits = match compression {
            ImageCompression::None => len.checked_add(hole_len) == Some(page),
            _ => len < page,
        };
        let hole_fits = has_hole == (hole_len > 0 && hole_offset > 0)
            && (has_hole || hole_offset == 0)
            && hole_offset.checked_add(hole_len).is_some_and(|end| end <= page);
        if !fits || !hole_fits {
            let found = format!("{len} bytes with a hole of {hole_len} at {hole_offset}");
            return Err(self.from.error(found, "an image of 8192 bytes"));
        }
        Ok(BlockImage { len, hole_offset, hole_len, compression, apply: info & apply_bit != 0, info })
    }
}

impl Iterator for Fragments<'_> {
    type Item = Result<Fragment, FormatError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let step = self.step().transpose();
        self.done |= !matches!(step, Some(Ok(_)));
        step
    }
}

/// A record's main data. Of very long main data the middle is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MainData<'a> {
    /// Its beginning; all of it, unless `tail` has bytes.
    pub head: &'a [u8],
    /// Its end, where the middle was not kept.
    pub tail: &'a [u8],
    /// Its length.
    pub len: u32,
}

impl<'a> MainData<'a> {
    /// Main data of which everything is there.
    pub fn whole(bytes: &'a [u8]) -> Self {
        MainData { head: bytes, tail: &[], len: bytes.len() as u32 }
    }

    /// `count` bytes from `offset` on; `None` past the end, or where they were not kept.
    pub fn bytes(&self, offset: usize, count: usize) -> Option<&'a [u8]> {
        let end = offset.checked_add(count)?;
        self.head.get(offset..end).or_else(|| {
            let tail_start = (self.len as usize).checked_sub(self.tail.len())?;
            self.tail.get(offset.checked_sub(tail_start)?..end.checked_sub(tail_start)?)
        })
    }

    /// `N` bytes from `offset` on.
    pub fn array<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.bytes(offset, N)?.try_into().ok()
    }

    /// The little-endian number at `offset`.
    pub fn u32(&self, offset: usize) -> Option<u32> {
        self.array(offset).map(u32::from_le_bytes)
    }

    /// The little-endian number at `offset`.
    pub fn u64(&self, offset: usize) -> Option<u64> {
        self.array(offset).map(u64::from_le_bytes)
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests;
