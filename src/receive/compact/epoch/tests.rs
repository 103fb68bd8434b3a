//! What ends an epoch, which one is gone on with, and what is its base.

use super::*;
use crate::base::{StreamId, Timestamp};
use crate::format::index::{BackupEntry, ExpiredEntry, WalEntry};
use crate::format::root::PendingEntry;
use crate::format::wal::WalSummary;
use crate::receive::compact::Replaces;
use crate::repo::WalMap;

const TIMELINE: TimelineId = TimelineId(1);
const GENERATION: Generation = Generation(1);

fn root(pending: &[(PendingKind, u64)]) -> Root {
    let entry = |(kind, root): &(PendingKind, u64)| PendingEntry {
        id: ObjectId([*root as u8; 16]),
        kind: *kind,
        root: *root,
    };
    let first = Root::first("shop".parse().unwrap(), GENERATION, Timestamp::from_micros(0));
    Root { number: 50, writer_epoch: 1, pending: pending.iter().map(entry).collect(), ..first }
}

fn backup(id: &str, root: u64, second: i64, state: BackupState) -> BackupEntry {
    BackupEntry {
        id: id.parse().unwrap(),
        generation: GENERATION,
        timeline: TIMELINE,
        redo: Lsn::new(0x100_0028),
        start: Lsn::new(0x100_0028),
        stop: Lsn::new(0x100_0100),
        started_at: Timestamp::from_micros(second - 1),
        stopped_at: Timestamp::from_micros(second),
        bytes_raw: 0,
        bytes_stored: 0,
        bytes_new: 0,
        manifest_len: 0,
        manifest_number: 0,
        damaged_blocks: 0,
        root,
        state,
    }
}

fn epoch(start: u64, root: u64) -> DeltaEpoch {
    DeltaEpoch { id: ObjectId([root as u8; 16]), start: Lsn::new(start), root, cache_pages: 1024 }
}

fn deltas(epoch: DeltaEpoch, base: Option<&str>) -> WalDeltas {
    WalDeltas { epoch, base: base.map(|id| id.parse().unwrap()), stats: DeltaStats::EMPTY }
}

fn entry(start: u64, end: u64, deltas: Option<WalDeltas>) -> WalEntry {
    WalEntry {
        id: ObjectId([(start >> 8) as u8; 16]),
        generation: GENERATION,
        timeline: TIMELINE,
        start: Lsn::new(start),
        end: Lsn::new(end),
        object_len: 1,
        directory_offset: 1,
        server_time: Timestamp::from_micros(0),
        summary: WalSummary::empty(),
        deltas,
    }
}

fn job(start: u64) -> Job {
    Job {
        generation: GENERATION,
        timeline: TIMELINE,
        start: Lsn::new(start),
        end: Lsn::new(start + 100),
        server_time: Timestamp::from_micros(0),
        summary: WalSummary::empty(),
        replaces: flushes(start + 100),
    }
}

fn flushes(plain_from: u64) -> Replaces {
    let stream = StreamId([1; 16]);
    Replaces::Flushes {
        stream,
        from: 0,
        to: 1,
        link: [0; 32],
        key_epoch: 1,
        plain_from: Lsn::new(plain_from),
    }
}

fn index(backups: Vec<BackupEntry>, wal: Vec<WalEntry>) -> Index {
    Index { backups, wal, ..Index::default() }
}

const FIRST: &str = "20261122T195501Z";
const SECOND: &str = "20261123T195501Z";

#[test]
fn an_epoch_ends_when_a_backup_is_registered_and_when_it_is_long() {
    let none = index(Vec::new(), Vec::new());
    let of = epoch(0x1000, 20);
    let at = Lsn::new(0x2000);
    assert!(goes_on(&root(&[]), &none, &of, at));
    assert!(goes_on(&root(&[(PendingKind::Compaction, 30), (PendingKind::Restore, 30)]), &none, &of, at));
    assert!(goes_on(&root(&[(PendingKind::Backup, 19)]), &none, &of, at), "it began for this one");
    assert!(!goes_on(&root(&[(PendingKind::Backup, 20)]), &none, &of, at), "registered in root 21");
    let done = index(vec![backup(FIRST, 20, 5, BackupState::Complete)], Vec::new());
    assert!(!goes_on(&root(&[]), &done, &of, at), "it came and went meanwhile");
    let before = index(vec![backup(FIRST, 19, 5, BackupState::Complete)], Vec::new());
    assert!(goes_on(&root(&[]), &before, &of, at));
    assert!(!goes_on(&root(&[]), &none, &of, of.start.saturating_add(EPOCH_BYTES_MAX)));
}

#[test]
fn what_a_root_would_make_of_recovery_is_looked_at_when_it_is_committed() {
    let ours = deltas(epoch(0x1000, 20), Some(FIRST));
    let there = index(vec![backup(FIRST, 10, 5, BackupState::Complete)], Vec::new());
    let fresh = job(0x2000);
    assert!(check(&root(&[]), &there, &fresh, &ours).is_ok());
    let began = root(&[(PendingKind::Backup, 40)]);
    assert!(matches!(check(&began, &there, &fresh, &ours), Err(RepoError::Conflict { .. })));
    let gone = index(Vec::new(), Vec::new());
    let refused = check(&root(&[]), &gone, &fresh, &ours);
    assert!(matches!(refused, Err(RepoError::Conflict { .. })), "the base was removed too early");
    let expired = |start: u64, end: u64| {
        let entry = ExpiredEntry {
            generation: GENERATION,
            timeline: TIMELINE,
            start: Lsn::new(start),
            end: Lsn::new(end),
        };
        Index { expired: vec![entry], ..there.clone() }
    };
    assert!(check(&root(&[]), &expired(0, 0x1000), &fresh, &ours).is_ok(), "what came before the epoch");
    let began_anew = job(0x1000);
    assert!(check(&root(&[]), &expired(0, 0x3000), &began_anew, &ours).is_ok(), "it begins here");
    for (start, end) in [(0, 0x1800), (0x1fff, 0x2000), (0x1000, 0x2000)] {
        let refused = check(&root(&[]), &expired(start, end), &fresh, &ours);
        assert!(matches!(refused, Err(RepoError::Conflict { .. })), "{start}..{end} is gone");
    }
}

fn base(root: Root, backups: Vec<BackupEntry>) -> Option<BackupId> {
    let index = index(backups, Vec::new());
    let wal = WalMap::new(GENERATION, &index, Vec::new()).into();
    base_of(&Snapshot { root, index, wal }, SegmentSize::DEFAULT)
}

#[test]
fn the_base_is_the_newest_backup_that_is_restorable() {
    let at = |id: &str, stop| BackupEntry { stop: Lsn::new(stop), ..backup(id, 1, 5, BackupState::Complete) };
    let first = || Some(FIRST.parse().unwrap());
    assert_eq!(base(root(&[]), Vec::new()), None);
    // By their WAL: neither by name nor by the server's clock, which was set back between them.
    let clock =
        |second, backup: BackupEntry| BackupEntry { stopped_at: Timestamp::from_micros(second), ..backup };
    let two = vec![clock(9, at(SECOND, 0x100_0100)), clock(5, at(FIRST, 0x100_0200))];
    assert_eq!(base(root(&[]), two.clone()), first());
    assert_eq!(base(root(&[(PendingKind::Backup, 40)]), two.clone()), None, "a newer one is being made");
    assert_eq!(base(root(&[(PendingKind::Restore, 40)]), two.clone()), first());
    // A timeline leaves the one before it, whose backups may reach further.
    let later = BackupEntry { timeline: TimelineId(2), ..at(SECOND, 0x100_0100) };
    let both = vec![later, at(FIRST, 0x100_0200)];
    assert_eq!(base(root(&[]), both), Some(SECOND.parse().unwrap()));
    // Nothing refers to one whose WAL is not durable, nor past it to an older one.
    let pending = BackupEntry { state: BackupState::Pending, ..at(SECOND, 0x100_0200) };
    assert_eq!(base(root(&[]), vec![at(FIRST, 0x100_0100), pending]), None);
    // One that is there for its pages alone is not restorable.
    let pages = BackupEntry { state: BackupState::Base, ..at(SECOND, 0x100_0200) };
    assert_eq!(base(root(&[]), vec![at(FIRST, 0x100_0100), pages.clone()]), first());
    assert_eq!(base(root(&[]), vec![pages]), None);
    let damaged = vec![backup(FIRST, 1, 5, BackupState::Damaged)];
    assert_eq!(base(root(&[]), damaged), first());
    let other = BackupEntry { generation: Generation(2), ..at(FIRST, 0x100_0100) };
    assert_eq!(base(root(&[]), vec![other]), None);
}

#[test]
fn the_epoch_to_go_on_with_is_that_of_the_newest_wal_before() {
    let wal = vec![
        entry(0x1000, 0x2000, Some(deltas(epoch(0x1000, 20), None))),
        entry(0x2000, 0x3000, Some(deltas(epoch(0x2000, 30), None))),
        entry(0x3000, 0x4000, None),
        entry(0x5000, 0x6000, Some(deltas(epoch(0x5000, 40), None))),
    ];
    let index = index(Vec::new(), wal);
    assert_eq!(newest_epoch(&index, &job(0x4000)), Some(epoch(0x2000, 30)));
    assert_eq!(newest_epoch(&index, &job(0x1000)), None);
    let elsewhere = Job { timeline: TimelineId(2), ..job(0x4000) };
    assert_eq!(newest_epoch(&index, &elsewhere), None);
}

#[test]
fn pages_of_a_base_are_looked_for_in_an_index_of_bounded_memory() {
    use crate::format::index::PagesEntry;
    let segment = |chunk_count| PagesEntry {
        id: ObjectId([1; 16]),
        object_len: 0,
        directory_offset: 0,
        chunk_count,
        plain_bytes: 0,
    };
    let most = DeltaOptions::default().index_bytes_max();
    // Ten terabytes of whole chunks.
    let chunks = (10_000_000_000_000u64 / (256 << 10)) as u32;
    assert!(ChunkIndex::bytes_for(&[segment(chunks)]) <= most);
    assert!(ChunkIndex::bytes_for(&[segment(chunks), segment(chunks / 10)]) > most);
}
