//! What a root takes over from lost ones, case by case.

use super::*;
use crate::base::{Lsn, StreamId, TimelineId};
use crate::format::index::{BackupEntry, BackupState, PagesEntry, RemovedEntry, WalEntry};
use crate::format::root::PendingKind;
use crate::format::wal::WalSummary;

const PLACE: (Generation, TimelineId) = (Generation(1), TimelineId(1));

fn base() -> Root {
    let first = Root::first("shop".parse().unwrap(), PLACE.0, Timestamp::from_micros(0));
    Root { number: 50, writer_epoch: 3, streams: vec![stream(1, 1, 3)], ..first }
}

fn stream(id: u8, generation: u32, writer_epoch: u64) -> StreamEntry {
    StreamEntry {
        id: StreamId([id; 16]),
        generation: Generation(generation),
        timeline: PLACE.1,
        writer_epoch,
        low_water: 0,
        low_water_lsn: None,
        low_water_link: [0; 32],
        low_water_key_epoch: 0,
    }
}

fn traces(streams: &[StreamEntry], epoch_max: u64) -> Traces<'_> {
    Traces { streams, epoch_max, generation: None, going_on: &[] }
}

fn wal(id: u8, start: u64, end: u64) -> WalEntry {
    WalEntry {
        id: ObjectId([id; 16]),
        generation: PLACE.0,
        timeline: PLACE.1,
        start: Lsn::new(start),
        end: Lsn::new(end),
        object_len: 100,
        directory_offset: 50,
        server_time: Timestamp::from_micros(0),
        summary: WalSummary::empty(),
        deltas: None,
    }
}

fn pages(id: u8) -> PagesEntry {
    PagesEntry { id: ObjectId([id; 16]), object_len: 9, directory_offset: 4, chunk_count: 1, plain_bytes: 1 }
}

fn backup(id: &str) -> BackupEntry {
    BackupEntry {
        id: id.parse().unwrap(),
        generation: PLACE.0,
        timeline: PLACE.1,
        redo: Lsn::new(10),
        start: Lsn::new(10),
        stop: Lsn::new(20),
        started_at: Timestamp::from_micros(0),
        stopped_at: Timestamp::from_micros(1),
        bytes_raw: 0,
        bytes_stored: 0,
        bytes_new: 0,
        manifest_len: 0,
        manifest_number: 0,
        damaged_blocks: 0,
        root: 0,
        state: BackupState::Complete,
    }
}

fn removed(kind: RemovedKind, name: &str, root: u64) -> RemovedEntry {
    RemovedEntry { kind, name: name.to_owned(), root }
}

fn lost(set: impl FnOnce(&mut IndexPage)) -> Lost {
    let mut page = empty_page();
    set(&mut page);
    Lost { page, is_whole: true }
}

#[test]
fn the_writer_epoch_is_above_what_any_lost_root_can_have_said() {
    assert_eq!(root(&base(), 52, &traces(&[], 3)).writer_epoch, 5, "root 51 said 4 at most");
    assert_eq!(root(&base(), 52, &traces(&[], 9)).writer_epoch, 10, "a fence said 9");
    let copy = Root { writer_epoch: 0, streams: Vec::new(), ..base() };
    assert_eq!(root(&copy, 52, &traces(&[], 0)).writer_epoch, 0, "nobody ever wrote to it");
    assert_eq!(root(&copy, 52, &traces(&[stream(7, 1, 1)], 1)).writer_epoch, 2);
}

#[test]
fn streams_come_in_the_order_of_their_epochs_and_bring_their_generation() {
    let found = [stream(9, 2, 6), stream(8, 1, 5)];
    let next = root(&base(), 60, &traces(&found, 6));
    let epochs: Vec<u64> = next.streams.iter().map(|stream| stream.writer_epoch).collect();
    assert_eq!((epochs, next.generation), (vec![3, 5, 6], Generation(2)));
    let deleted = Root { deleted_at: Some(Timestamp::from_micros(5)), ..base() };
    assert_eq!(root(&deleted, 60, &traces(&found, 6)).deleted_at, None, "the name began anew");
    let work = [PendingEntry { id: ObjectId([4; 16]), kind: PendingKind::Backup, root: 40 }];
    let next = root(&deleted, 60, &Traces { going_on: &work, ..traces(&found[1..], 5) });
    assert_eq!((next.deleted_at, next.pending.len(), next.rebuilt_at()), (deleted.deleted_at, 0, None));
    let next = root(&base(), 60, &Traces { going_on: &work, ..traces(&[], 3) });
    assert_eq!((next.pending.len(), next.rebuilt_at()), (1, Some(60)));
}

#[test]
fn compacted_wal_is_added_only_where_nothing_else_holds_it() {
    let index = Index { wal: vec![wal(1, 0, 100)], ..Index::default() };
    let mut held = Spans::default();
    held.add(PLACE, LsnRange::new(Lsn::new(100), Lsn::new(200)));
    let page = lost(|page| page.wal = vec![wal(2, 0, 100), wal(3, 50, 180), wal(4, 150, 250)]);
    let ids: Vec<ObjectId> =
        additions(&base(), &index, held, vec![page]).page.wal.iter().map(|entry| entry.id).collect();
    assert_eq!(ids, [ObjectId([4; 16])], "a merged one, a compacted one, and one with WAL of its own");
}

#[test]
fn what_the_base_removed_stays_removed_and_what_lost_roots_removed_is_back() {
    let (gone, stays) = ("20260101T000000Z", "20260102T000000Z");
    let name = ObjectId([3; 16]).to_string();
    let index = Index {
        backups: vec![backup(stays)],
        removed: vec![removed(RemovedKind::Backup, gone, 40), removed(RemovedKind::Pages, &name, 40)],
        ..Index::default()
    };
    let base_state = backup(stays).state;
    let page = lost(|page| {
        page.backups = vec![backup(gone), BackupEntry { state: BackupState::Base, ..backup(stays) }];
        page.pages = vec![pages(3), pages(4)];
        page.removed = vec![removed(RemovedKind::Backup, stays, 51), removed(RemovedKind::Backup, gone, 40)];
    });
    let added = additions(&base(), &index, Spans::default(), vec![page]);
    assert_eq!((added.page.backups.len(), added.page.removed.len(), added.removals_undone), (0, 0, 1));
    assert_eq!(added.page.pages, [pages(4)]);
    assert_eq!(base_state, BackupState::Complete);
    assert!(notes(&base(), 52, &added)[0].contains("1 removals by root 51"));
}

#[test]
fn a_backup_is_taken_only_with_all_segments_that_were_stored_for_it() {
    let (whole, torn) = ("20260101T000000Z", "20260102T000000Z");
    let of_torn = Lost { is_whole: false, ..lost(|page| page.backups = vec![backup(torn), backup(whole)]) };
    let of_whole = lost(|page| page.backups = vec![backup(whole)]);
    let added = additions(&base(), &Index::default(), Spans::default(), vec![of_torn, of_whole]);
    let ids = |backups: &[BackupEntry]| backups.iter().map(|b| b.id.to_string()).collect::<Vec<_>>();
    assert_eq!(ids(&added.page.backups), [whole]);
    assert_eq!(added.backups_not_whole.iter().map(ToString::to_string).collect::<Vec<_>>(), [torn]);
}

#[test]
fn of_two_pins_the_longer_one_counts() {
    let pin = |until: Option<i64>| PinEntry {
        backup: "20260101T000000Z".parse().unwrap(),
        pinned_at: Timestamp::from_micros(0),
        until: until.map(Timestamp::from_micros),
        reason: String::new(),
    };
    let added = |known, newer| {
        let index = Index { pins: vec![pin(known)], ..Index::default() };
        let page = lost(|page| page.pins = vec![pin(newer)]);
        additions(&base(), &index, Spans::default(), vec![page]).page.pins
    };
    assert_eq!(added(Some(5), Some(9)), [pin(Some(9))]);
    assert_eq!(added(Some(5), None), [pin(None)]);
    assert_eq!(
        added(None, Some(9)),
        [],
        "it was pinned for ever, and a commit that lost its race may say otherwise"
    );
}
