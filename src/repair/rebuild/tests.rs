//! What is put together of entries, segments and manifests, case by case.

use super::*;
use crate::base::{Lsn, SystemId};
use crate::format::index::{BackupState, ExpiredEntry, PinEntry};
use crate::format::wal::WalSummary;

const PLACE: Place = (Generation(1), TimelineId(1));

fn range(start: u64, end: u64) -> LsnRange {
    LsnRange::new(Lsn::new(start), Lsn::new(end))
}

fn segment(id: u8, start: u64, end: u64) -> Found<WalMeta> {
    let what = WalMeta {
        generation: PLACE.0,
        timeline: PLACE.1,
        start: Lsn::new(start),
        end: Lsn::new(end),
        server_end: Lsn::new(end),
        previous_link: [0; 32],
        predecessor: None,
        server_time: Timestamp::from_micros(0),
        summary: WalSummary::empty(),
        deltas: None,
        extensions: Vec::new(),
    };
    Found { id: ObjectId([id; 16]), object_len: 100, directory_offset: 50, what }
}

fn known(id: u8, start: u64, end: u64) -> WalEntry {
    // Told apart from what is made of a segment.
    WalEntry { server_time: Timestamp::from_micros(7), ..wal_entry(segment(id, start, end)) }
}

fn manifest(id: &str, number: u32) -> FoundManifest {
    let meta = ManifestMeta {
        id: id.parse().unwrap(),
        cluster: "shop".parse().unwrap(),
        generation: PLACE.0,
        system_id: SystemId(1),
        server_version: 150_000,
        segment_size: 1 << 24,
        checksums: true,
        timeline: PLACE.1,
        start: Lsn::new(10),
        redo: Lsn::new(10),
        checkpoint: Lsn::new(10),
        stop: Lsn::new(20),
        started_at: Timestamp::from_micros(0),
        stopped_at: Timestamp::from_micros(1),
        tablespaces: Vec::new(),
        settings: Vec::new(),
        config_files: Vec::new(),
        damaged: Vec::new(),
        file_count: 0,
        bytes_raw: 0,
        extensions: Vec::new(),
    };
    FoundManifest { number, object_len: 1000 + u64::from(number), meta }
}

fn root() -> Root {
    let first = Root::first("shop".parse().unwrap(), PLACE.0, Timestamp::from_micros(0));
    Root { number: 50, writer_epoch: 1, ..first }
}

fn made(inventory: Inventory) -> Rebuilt {
    let mut next = 0;
    let gap_id = || {
        next += 1;
        ObjectId([200 + next; 16])
    };
    rebuild(&root(), inventory, Timestamp::from_micros(9), gap_id)
}

fn ranges(page: &IndexPage) -> Vec<(u64, u64)> {
    page.wal.iter().map(|entry| (entry.start.get(), entry.end.get())).collect()
}

fn gap(id: u8, start: u64, end: u64) -> GapEntry {
    let (start, end) = (Lsn::new(start), Lsn::new(end));
    let recorded_at = Timestamp::from_micros(0);
    let reason = "slot dropped".to_owned();
    GapEntry {
        id: ObjectId([id; 16]),
        generation: PLACE.0,
        timeline: PLACE.1,
        start,
        end,
        recorded_at,
        reason,
    }
}

fn expired(start: u64, end: u64) -> ExpiredEntry {
    let (start, end) = (Lsn::new(start), Lsn::new(end));
    ExpiredEntry { generation: PLACE.0, timeline: PLACE.1, start, end }
}

#[test]
fn a_hole_that_gaps_and_expired_wal_explain_together_is_no_new_gap() {
    let holed = |gaps, gone| {
        let index = Index { gaps, expired: gone, ..Index::default() };
        made(Inventory {
            known: index,
            wal: vec![segment(1, 0, 10), segment(2, 40, 50)],
            ..Inventory::default()
        })
    };
    let rebuilt = holed(vec![gap(1, 10, 25)], vec![expired(25, 40)]);
    assert_eq!((rebuilt.page.gaps, rebuilt.losses), (vec![gap(1, 10, 25)], vec![]));
    let rebuilt = holed(vec![gap(1, 10, 25)], vec![expired(30, 40)]);
    let found: Vec<_> = rebuilt.page.gaps.iter().map(|gap| (gap.start.get(), gap.end.get())).collect();
    assert_eq!(found, [(10, 25), (25, 30)], "what is left of the hole");
    assert_eq!(rebuilt.losses.len(), 1);
}

#[test]
fn a_segment_that_is_gone_is_no_loss_where_others_hold_its_wal_or_it_expired() {
    let gone = |found: Vec<Found<WalMeta>>, expired| {
        let wal = vec![known(1, 0, 10), known(2, 10, 20)];
        let known = Index { wal, expired, ..Index::default() };
        made(Inventory { known, wal: found, ..Inventory::default() }).gone
    };
    // The two were merged, and collected, since the index object was made that names them.
    assert_eq!(gone(vec![segment(3, 0, 20)], vec![]), Vec::<String>::new());
    assert_eq!(gone(vec![segment(2, 10, 20)], vec![expired(0, 10)]), Vec::<String>::new());
    assert_eq!(gone(vec![segment(2, 10, 20)], vec![]), [ObjectId([1; 16]).to_string()]);
    assert_eq!(gone(vec![segment(3, 0, 15)], vec![]), [ObjectId([2; 16]).to_string()], "half of it");
}

#[test]
fn wal_of_flush_objects_is_no_hole() {
    let mut held = Spans::default();
    held.add(PLACE, range(10, 40));
    let wal = || vec![segment(1, 0, 10), segment(2, 40, 50)];
    assert_eq!(made(Inventory { wal: wal(), held, ..Inventory::default() }).page.gaps, []);
    let mut later = Spans::default();
    later.add(PLACE, range(60, 70));
    let gaps = made(Inventory { wal: wal(), held: later, ..Inventory::default() }).page.gaps;
    let gaps: Vec<_> = gaps.iter().map(|gap| (gap.start.get(), gap.end.get())).collect();
    assert_eq!(gaps, [(10, 40), (50, 60)]);
}

#[test]
fn expired_wal_neither_overlaps_nor_hides_what_is_there() {
    let index = Index { expired: vec![expired(0, 30), expired(20, 60)], ..Index::default() };
    let rebuilt = made(Inventory { known: index, wal: vec![segment(1, 50, 90)], ..Inventory::default() });
    assert_eq!(rebuilt.page.expired, [expired(0, 50)]);
}

#[test]
fn two_streams_of_one_timeline_take_no_compacted_wal_away() {
    // The first is compacted to its end at 100 and still in the root; of the second, what is past 500 is in flush objects.
    let mut held = Spans::default();
    held.add(PLACE, range(500, 600));
    let index = Index { wal: vec![known(1, 0, 100), known(2, 100, 300)], ..Index::default() };
    let wal = vec![segment(1, 0, 100), segment(2, 100, 300), segment(3, 300, 500), segment(4, 500, 560)];
    let rebuilt = made(Inventory { known: index, wal, held, ..Inventory::default() });
    assert_eq!(ranges(&rebuilt.page), [(0, 100), (100, 300), (300, 500)]);
    assert_eq!(rebuilt.left_out, [ObjectId([4; 16])], "the flush objects of a compaction that lost hold it");
    assert_eq!(rebuilt.page.gaps, []);
}

#[test]
fn what_an_index_names_stays_named_though_it_does_not_open() {
    let pages = |id: u8| PagesEntry {
        id: ObjectId([id; 16]),
        object_len: 1,
        directory_offset: 1,
        chunk_count: 1,
        plain_bytes: 1,
    };
    let backup = |id: &str| backup_entry(&root(), &manifest(id, 0));
    let index = Index {
        wal: vec![known(1, 0, 10), known(2, 10, 20), known(3, 20, 30)],
        pages: vec![pages(4), pages(5), pages(6)],
        backups: vec![backup("20261101T000000Z"), backup("20261102T000000Z"), backup("20261103T000000Z")],
        ..Index::default()
    };
    let rebuilt = made(Inventory {
        known: index,
        wal: vec![segment(1, 0, 10)],
        pages: vec![Found {
            id: ObjectId([4; 16]),
            object_len: 9,
            directory_offset: 9,
            what: Chunks { count: 9, plain_bytes: 9 },
        }],
        manifests: vec![manifest("20261101T000000Z", 0)],
        closed_segments: HashSet::from([ObjectId([2; 16]), ObjectId([5; 16])]),
        closed_manifests: HashSet::from([("20261102T000000Z".parse().unwrap(), 0)]),
        ..Inventory::default()
    });
    assert_eq!(rebuilt.page.wal, [known(1, 0, 10), known(2, 10, 20)]);
    assert_eq!(rebuilt.page.pages, [pages(4), pages(5)]);
    assert_eq!(rebuilt.page.backups, [backup("20261101T000000Z"), backup("20261102T000000Z")]);
    let gone = [ObjectId([3; 16]).to_string(), ObjectId([6; 16]).to_string(), "20261103T000000Z".to_owned()];
    assert_eq!(rebuilt.gone, gone);
    assert_eq!(rebuilt.backups_found, []);
}

#[test]
fn a_backup_whose_manifest_was_sealed_anew_since_keeps_its_entry_with_the_new_number() {
    let id = "20261101T000000Z";
    let entry = BackupEntry {
        bytes_new: 77,
        state: BackupState::Complete,
        ..backup_entry(&root(), &manifest(id, 0))
    };
    let index = || Index { backups: vec![entry.clone()], ..Index::default() };
    let moved = vec![manifest(id, 7), manifest(id, 12)];
    let rebuilt = made(Inventory { known: index(), manifests: moved.clone(), ..Inventory::default() });
    let expected = BackupEntry { manifest_number: 12, manifest_len: 1012, ..entry.clone() };
    assert_eq!(rebuilt.page.backups, std::slice::from_ref(&expected));
    // The old one lies there and does not open.
    let closed_manifests = HashSet::from([(id.parse().unwrap(), 0)]);
    let damaged =
        Inventory { known: index(), manifests: moved.clone(), closed_manifests, ..Inventory::default() };
    assert_eq!(made(damaged).page.backups, [expected]);
    // Both are there: what the index says counts.
    let both = vec![manifest(id, 0), manifest(id, 12)];
    let rebuilt = made(Inventory { known: index(), manifests: both, ..Inventory::default() });
    assert_eq!(rebuilt.page.backups, [entry]);
}

#[test]
fn a_newer_entry_counts_for_more_than_an_older_removal() {
    let removal = |kind, name: String| RemovedEntry { kind, name, root: 3 };
    let [live, gone] = [1, 2].map(|id| removal(RemovedKind::Wal, ObjectId([id; 16]).to_string()));
    let index = Index { wal: vec![known(1, 0, 10)], removed: vec![live, gone.clone()], ..Index::default() };
    let wal = vec![segment(1, 0, 10), segment(2, 10, 20)];
    let rebuilt = made(Inventory { known: index, wal, ..Inventory::default() });
    assert_eq!(ranges(&rebuilt.page), [(0, 10)]);
    assert_eq!(rebuilt.page.removed, [gone]);
}

#[test]
fn an_index_that_can_be_read_is_stored_as_it_is() {
    let pin = PinEntry {
        backup: "20261101T000000Z".parse().unwrap(),
        pinned_at: Timestamp::from_micros(0),
        until: None,
        reason: "audit".into(),
    };
    let index = Index {
        wal: vec![known(1, 0, 10)],
        gaps: vec![gap(1, 10, 20)],
        pins: vec![pin],
        expired: vec![expired(20, 30)],
        ..Index::default()
    };
    assert_eq!(as_it_is(index.clone()).page, index.into_page());
}
