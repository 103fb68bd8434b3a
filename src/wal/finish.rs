//! Ends of transactions: commit and abort records, prepared ones too (`access/xact.h`). The optional parts come in one
//! order: database, subtransactions, dropped files, dropped statistics (15+; items of 12 bytes, 16 in 18), cache
//! invalidations (commits only), two-phase xid, its name, replication origin.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::fact::{Source, numbers, short};
use super::record::MainData;
use super::{WalError, WalVersion};
use crate::base::{Lsn, Timestamp};
use crate::format::wal::RelationRef;

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Committed.
    Commit,
    /// Rolled back.
    Abort,
}

/// The end of a transaction, or the rollback of a subtransaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// The record's start.
    pub start: Lsn,
    /// Its end.
    pub end: Lsn,
    /// The transaction; that of the prepared one in COMMIT PREPARED and ROLLBACK PREPARED.
    pub xid: u32,
    /// When, by the server's clock.
    pub time: Timestamp,
    /// How.
    pub outcome: Outcome,
    /// Whether it was prepared before.
    pub prepared: bool,
    /// The database, or 0 when the record does not say.
    pub database: u32,
    /// Its subtransactions.
    pub subxids: Vec<u32>,
    /// Files that go away with it: of relations dropped, or created and rolled back.
    pub dropped: Vec<RelationRef>,
    /// How many they are; more than `dropped` has when the record is many MiB long.
    pub dropped_count: u32,
    /// The prepared transaction's name, if it was prepared.
    pub gid: Option<String>,
}

const OPERATION_MASK: u8 = 0x70;
const HAS_INFO: u8 = 0x80;

const HAS_DBINFO: u32 = 1;
const HAS_SUBXACTS: u32 = 1 << 1;
const HAS_RELATIONS: u32 = 1 << 2;
const HAS_INVALS: u32 = 1 << 3;
const HAS_TWOPHASE: u32 = 1 << 4;
const HAS_GID: u32 = 1 << 7;
const HAS_DROPPED_STATS: u32 = 1 << 8;

/// The longest name of a prepared transaction, its terminator included (GIDSIZE).
const GID_BYTES_MAX: usize = 200;
/// Bytes of a cache invalidation message.
const INVALIDATION_BYTES: usize = 16;

pub(super) fn read(source: &Source<'_>) -> Result<Option<Finished>, WalError> {
    let (outcome, prepared) = match source.header.info & OPERATION_MASK {
        0x00 => (Outcome::Commit, false),
        0x20 => (Outcome::Abort, false),
        0x30 => (Outcome::Commit, true),
        0x40 => (Outcome::Abort, true),
        _ => return Ok(None),
    };
    parts(source, outcome, prepared).map(Some).ok_or_else(|| short(source))
}

fn parts(source: &Source<'_>, outcome: Outcome, prepared: bool) -> Option<Finished> {
    let mut from = Cursor { main: source.main, at: 0 };
    let time = Timestamp::from_micros(i64::from_le_bytes(from.main.array(0)?));
    from.skip(8)?;
    let has = if source.header.info & HAS_INFO != 0 { from.u32()? } else { 0 };
    let mut finished = Finished {
        start: source.start,
        end: source.end,
        xid: source.header.xid,
        time,
        outcome,
        prepared,
        database: 0,
        subxids: Vec::new(),
        dropped: Vec::new(),
        dropped_count: 0,
        gid: None,
    };
    if has & HAS_DBINFO != 0 {
        finished.database = from.u32()?;
        from.skip(4)?;
    }
    if has & HAS_SUBXACTS != 0 {
        let (_, kept) = from.list(4)?;
        finished.subxids = numbers(kept).collect();
    }
    if has & HAS_RELATIONS != 0 {
        let (count, kept) = from.list(12)?;
        finished.dropped_count = count;
        finished.dropped = relations(kept);
    }
    if has & HAS_DROPPED_STATS != 0 && source.version >= WalVersion::V15 {
        from.list(if source.version >= WalVersion::V18 { 16 } else { 12 })?;
    }
    if has & HAS_INVALS != 0 && outcome == Outcome::Commit {
        from.list(INVALIDATION_BYTES)?;
    }
    if has & HAS_TWOPHASE != 0 {
        finished.xid = from.u32()?;
        if has & HAS_GID != 0 {
            finished.gid = Some(from.text());
        }
    }
    Some(finished)
}

fn relations(bytes: &[u8]) -> Vec<RelationRef> {
    let mut values = numbers(bytes);
    let mut relations = Vec::new();
    while let (Some(tablespace), Some(database), Some(relation)) =
        (values.next(), values.next(), values.next())
    {
        relations.push(RelationRef { tablespace, database, relation });
    }
    relations
}

/// A position in main data.
struct Cursor<'a> {
    main: MainData<'a>,
    at: usize,
}

impl<'a> Cursor<'a> {
    /// `None` past the end.
    fn skip(&mut self, count: usize) -> Option<()> {
        self.at = self.at.checked_add(count).filter(|at| *at <= self.main.len as usize)?;
        Some(())
    }

    fn u32(&mut self) -> Option<u32> {
        let value = self.main.u32(self.at)?;
        self.skip(4)?;
        Some(value)
    }

    /// A count and that many items: the count, and the bytes of those that were kept.
    fn list(&mut self, item_bytes: usize) -> Option<(u32, &'a [u8])> {
        let count = self.u32()?;
        let start = self.at;
        self.skip((count as usize).checked_mul(item_bytes)?)?;
        let kept = self.main.head.get(start..self.at.min(self.main.head.len())).unwrap_or(&[]);
        Some((count, kept))
    }

    /// Text up to its terminator.
    fn text(&mut self) -> String {
        let left = (self.main.len as usize).saturating_sub(self.at).min(GID_BYTES_MAX);
        let bytes = self.main.bytes(self.at, left).unwrap_or(&[]);
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or(&[]);
        String::from_utf8_lossy(text).into_owned()
    }
}
