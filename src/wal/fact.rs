//! What single records say, as far as archiving and restoring care: ends of transactions, checkpoints, restore points,
//! databases, files, parameters. Everything else is no fact. Sources: `access/xact.h`, `catalog/pg_control.h`,
//! `access/xlog_internal.h`, `commands/dbcommands_xlog.h`, `catalog/storage_xlog.h`, `storage/standbydefs.h`.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::finish::{self, Finished};
use super::record::{MainData, RecordHeader, rmgr};
use super::scan::RawRecord;
use super::{Record, WalError, WalVersion};
use crate::base::{Lsn, TimelineId, Timestamp};
use crate::format::wal::RelationRef;

/// Which checkpoint record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckpointKind {
    /// At shutdown, or at the end of crash recovery: nothing runs.
    Shutdown,
    /// Of a running server; its redo lies before it.
    Online,
    /// The redo point of an online checkpoint to come, from 17.
    Redo,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// A transaction ended.
    Finished(Finished),
    /// A checkpoint.
    Checkpoint {
        /// Which record of it.
        kind: CheckpointKind,
        /// Where replay starts.
        redo: Lsn,
        /// When it began, to the second; none in [`CheckpointKind::Redo`].
        time: Option<Timestamp>,
        /// The next transaction, with its epoch; 0 in [`CheckpointKind::Redo`].
        next_xid: u64,
    },
    /// The rest of the segment is unused.
    Switch,
    /// A named restore point.
    RestorePoint {
        /// When it was made.
        time: Timestamp,
        /// Its name.
        name: String,
    },
    /// The end of a recovery that makes no checkpoint: a promotion.
    EndOfRecovery {
        /// When.
        time: Timestamp,
        /// The timeline from here on.
        timeline: TimelineId,
        /// The timeline before.
        previous: TimelineId,
    },
    /// Parameters that standbys depend on changed.
    ParameterChange {
        /// 0 minimal, 1 replica, 2 logical.
        wal_level: u32,
    },
    /// The record that ended in the page before never was completed.
    Overwritten {
        /// Where it started.
        lsn: Lsn,
    },
    /// A database's files came to be.
    DatabaseCreated {
        /// Its oid.
        database: u32,
        /// Where.
        tablespace: u32,
        /// The database and tablespace copied from; none where every block is logged.
        source: Option<(u32, u32)>,
    },
    /// A database's files are gone.
    DatabaseDropped {
        /// Its oid.
        database: u32,
        /// From these tablespaces.
        tablespaces: Vec<u32>,
    },
    /// A relation's file came to be.
    FileCreated {
        /// Which.
        relation: RelationRef,
        /// 0 main, 1 free space map, 2 visibility map, 3 init.
        fork: u32,
    },
    /// The running transactions, at this very position.
    RunningXacts {
        /// Every transaction from here on begins later in the WAL.
        next_xid: u32,
        /// Every transaction before has ended.
        oldest_running: u32,
    },
    /// A database's map of catalogs to files.
    RelationMap {
        /// The database, or 0 for the shared catalogs.
        database: u32,
        /// Oid and filenumber of each.
        mappings: Vec<(u32, u32)>,
    },
}

/// What a record that can be a fact is read from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source<'a> {
    pub version: WalVersion,
    pub start: Lsn,
    pub end: Lsn,
    pub header: RecordHeader,
    pub main: MainData<'a>,
}

impl Fact {
    /// What `record` says.
    pub fn of(record: &Record) -> Result<Option<Self>, WalError> {
        let Record { version, start, end, header, .. } = *record;
        read(&Source { version, start, end, header, main: record.main_data() })
    }

    /// What the record says.
    pub fn of_raw(record: &RawRecord<'_>) -> Result<Option<Self>, WalError> {
        if !may_be_fact(&record.header) {
            return Ok(None);
        }
        let RawRecord { version, start, end, header, .. } = *record;
        read(&Source { version, start, end, header, main: record.main_data() })
    }
}

/// Whether the resource manager has records that are facts.
fn may_be_fact(header: &RecordHeader) -> bool {
    matches!(header.rmgr, rmgr::XLOG | rmgr::XACT | rmgr::SMGR | rmgr::DBASE | rmgr::RELMAP | rmgr::STANDBY)
}

fn read(source: &Source<'_>) -> Result<Option<Fact>, WalError> {
    let info = source.header.rmgr_info();
    let fact = match source.header.rmgr {
        rmgr::XLOG => xlog(source, info),
        rmgr::XACT => return finish::read(source).map(|finished| finished.map(Fact::Finished)),
        rmgr::SMGR if info == 0x10 => file_created(&source.main).map(Some),
        rmgr::DBASE => database(source, info),
        rmgr::RELMAP if info == 0 => relation_map(&source.main).map(Some),
        rmgr::STANDBY if info == 0x10 => running_xacts(&source.main).map(Some),
        _ => Some(None),
    };
    fact.ok_or_else(|| short(source))
}

/// The error of a record whose main data is too short for what it is.
pub(super) fn short(source: &Source<'_>) -> WalError {
    let RecordHeader { rmgr, info, .. } = source.header;
    let found = format!("{} bytes in a record of resource manager {rmgr}, info {info:#04x}", source.main.len);
    WalError::new(source.start, "main data", found, "all fields of its kind")
}

/// The outer `None`: too short.
fn xlog(source: &Source<'_>, info: u8) -> Option<Option<Fact>> {
    let main = &source.main;
    Some(Some(match info {
        0x00 | 0x10 => Fact::Checkpoint {
            kind: if info == 0 { CheckpointKind::Shutdown } else { CheckpointKind::Online },
            redo: Lsn::new(main.u64(0)?),
            time: Some(Timestamp::from_unix_micros(time(main, 64)?.saturating_mul(1_000_000))),
            next_xid: main.u64(24)?,
        },
        0x40 => Fact::Switch,
        0x60 => Fact::ParameterChange { wal_level: main.u32(20)? },
        0x70 => {
            let name = main.bytes(8, 64)?;
            let name = name.split(|byte| *byte == 0).next().unwrap_or(&[]);
            let time = Timestamp::from_micros(time(main, 0)?);
            Fact::RestorePoint { time, name: String::from_utf8_lossy(name).into_owned() }
        }
        0x90 => Fact::EndOfRecovery {
            time: Timestamp::from_micros(time(main, 0)?),
            timeline: TimelineId(main.u32(8)?),
            previous: TimelineId(main.u32(12)?),
        },
        0xD0 => Fact::Overwritten { lsn: Lsn::new(main.u64(0)?) },
        0xE0 if source.version >= WalVersion::V17 => {
            Fact::Checkpoint { kind: CheckpointKind::Redo, redo: source.start, time: None, next_xid: 0 }
        }
        _ => return Some(None),
    }))
}

fn time(main: &MainData<'_>, offset: usize) -> Option<i64> {
    main.array(offset).map(i64::from_le_bytes)
}

fn relation(main: &MainData<'_>, offset: usize) -> Option<RelationRef> {
    Some(RelationRef {
        tablespace: main.u32(offset)?,
        database: main.u32(offset.checked_add(4)?)?,
        relation: main.u32(offset.checked_add(8)?)?,
    })
}

fn file_created(main: &MainData<'_>) -> Option<Fact> {
    Some(Fact::FileCreated { relation: relation(main, 0)?, fork: main.u32(12)? })
}

fn database(source: &Source<'_>, info: u8) -> Option<Option<Fact>> {
    let main = &source.main;
    let created =
        |source| Some(Fact::DatabaseCreated { database: main.u32(0)?, tablespace: main.u32(4)?, source });
    let copied = || created(Some((main.u32(8)?, main.u32(12)?)));
    // 15 put the logged creation between the two.
    Some(Some(match (source.version, info) {
        (_, 0x00) => copied()?,
        (WalVersion::V14, 0x10) => {
            Fact::DatabaseDropped { database: main.u32(0)?, tablespaces: list(main, 4)?.collect() }
        }
        (WalVersion::V14, _) => return Some(None),
        (_, 0x10) => created(None)?,
        (_, 0x20) => Fact::DatabaseDropped { database: main.u32(0)?, tablespaces: list(main, 4)?.collect() },
        _ => return Some(None),
    }))
}

/// A count, and that many numbers.
fn list<'a>(main: &MainData<'a>, offset: usize) -> Option<impl Iterator<Item = u32> + use<'a>> {
    let count = main.u32(offset)? as usize;
    Some(numbers(main.bytes(offset.checked_add(4)?, count.checked_mul(4)?)?))
}

/// Little-endian numbers, one after the other.
pub(super) fn numbers(bytes: &[u8]) -> impl Iterator<Item = u32> + use<'_> {
    bytes.chunks_exact(4).map(|number| number.try_into().map_or(0, u32::from_le_bytes))
}

fn relation_map(main: &MainData<'_>) -> Option<Fact> {
    // dbid, tsid, nbytes; then the file: magic, count, pairs, checksum (`utils/relmapper.c`, RelMapFile).
    let count = main.u32(16)? as usize;
    let pairs = main.bytes(20, count.checked_mul(8)?)?;
    let mut values = numbers(pairs);
    let mut mappings = Vec::new();
    while let (Some(oid), Some(filenumber)) = (values.next(), values.next()) {
        mappings.push((oid, filenumber));
    }
    Some(Fact::RelationMap { database: main.u32(0)?, mappings })
}

fn running_xacts(main: &MainData<'_>) -> Option<Fact> {
    Some(Fact::RunningXacts { next_xid: main.u32(12)?, oldest_running: main.u32(16)? })
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests;
