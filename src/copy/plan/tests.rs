//! What is planned of what both sides hold.

use super::*;
use crate::base::{ClusterName, Generation, SystemId, TimelineId};
use crate::copy::source::Era;
use crate::format::index::ExpiredEntry;
use crate::format::root::{GenerationRecord, Root};
use crate::repo::WalMap;

pub const G: Generation = Generation(1);
pub const T: TimelineId = TimelineId(1);
pub const MIB: u64 = 1 << 20;

/// A segment of `start..end` MiB, with deltas of an epoch that began at `epoch.1` MiB, if any.
pub fn segment(id: u8, start: u64, end: u64, epoch: Option<(u8, u64)>) -> WalEntry {
    let images = |(id, at): (u8, u64)| WalDeltas {
        epoch: DeltaEpoch { id: ObjectId([id; 16]), start: Lsn::new(at * MIB), root: 7, cache_pages: 100 },
        base: None,
        stats: DeltaStats { images: end - start, ..DeltaStats::EMPTY },
    };
    WalEntry {
        id: ObjectId([id; 16]),
        generation: G,
        timeline: T,
        start: Lsn::new(start * MIB),
        end: Lsn::new(end * MIB),
        object_len: 1,
        directory_offset: 0,
        server_time: Timestamp::from_micros(end as i64),
        summary: WalSummary::empty(),
        deltas: epoch.map(images),
    }
}

pub fn view(wal: Vec<WalEntry>) -> View {
    let cluster: ClusterName = "shop".parse().unwrap();
    let root = Root::first(cluster.clone(), G, Timestamp::from_micros(0));
    let root = Root { number: 9, writer_epoch: 1, ..root };
    let record = GenerationRecord {
        cluster,
        generation: G,
        system_id: SystemId(77),
        major_version: 15,
        segment_size: MIB as u32,
        block_size: 8192,
    };
    let index = Index { wal, ..Index::default() };
    let era = Era {
        record,
        size: crate::base::SegmentSize::new(MIB).unwrap(),
        wal: WalMap::new(G, &index, Vec::new()).into(),
    };
    View { root, index, eras: BTreeMap::from([(G, era)]) }
}

/// Start and end in MiB, and whether it has deltas.
type Segment = (u64, u64, bool);

/// Each group: what is stored, and how many segments go.
fn groups(source: Vec<WalEntry>, there: &Index) -> Vec<(Vec<Segment>, usize)> {
    let plan = plan(&view(source), &Selection::Everything, there, &BTreeSet::new(), &[]);
    let shape =
        |unit: &Unit| (unit.range.start.get() / MIB, unit.range.end.get() / MIB, unit.deltas.is_some());
    let group = |step: &Step| match step {
        Step::Wal(group) => (group.adds.iter().map(shape).collect(), group.removes.len()),
        Step::Backup(backup) => panic!("{}", backup.id),
    };
    plan.steps.iter().map(group).collect()
}

fn holds(wal: Vec<WalEntry>) -> Index {
    Index { wal, ..Index::default() }
}

#[test]
fn everything_is_copied_once_and_as_it_is() {
    let source = || {
        vec![segment(1, 0, 10, None), segment(2, 10, 20, Some((8, 10))), segment(3, 20, 30, Some((8, 10)))]
    };
    let all = [(vec![(0, 10, false)], 0), (vec![(10, 20, true)], 0), (vec![(20, 30, true)], 0)];
    assert_eq!(groups(source(), &Index::default()), all);
    assert_eq!(groups(source(), &holds(source())), []);
    assert_eq!(groups(source(), &holds(source()[..2].to_vec())), all[2..]);
}

#[test]
fn an_epoch_that_is_not_there_from_its_beginning_is_stored_plain() {
    let source = || {
        vec![
            segment(1, 10, 20, Some((8, 5))),
            segment(2, 20, 30, Some((8, 5))),
            segment(3, 30, 40, Some((9, 30))),
        ]
    };
    let planned = [(vec![(10, 20, false)], 0), (vec![(20, 30, false)], 0), (vec![(30, 40, true)], 0)];
    assert_eq!(groups(source(), &Index::default()), planned);
}

#[test]
fn an_epoch_may_begin_inside_a_segment() {
    let source = || vec![segment(1, 0, 20, Some((8, 10))), segment(2, 20, 30, Some((8, 10)))];
    assert_eq!(groups(source(), &Index::default()), [(vec![(0, 20, true)], 0), (vec![(20, 30, true)], 0)]);
    let there = holds(vec![segment(3, 0, 10, None), segment(4, 10, 20, None)]);
    assert_eq!(groups(source(), &there), [(vec![(0, 20, true)], 2), (vec![(20, 30, true)], 0)]);
}

#[test]
fn what_the_source_compacted_since_takes_the_place_of_what_was_copied_plain() {
    let there =
        holds(vec![segment(1, 0, 10, Some((8, 0))), segment(2, 10, 14, None), segment(3, 14, 17, None)]);
    let source = || vec![segment(1, 0, 10, Some((8, 0))), segment(4, 10, 20, Some((8, 0)))];
    assert_eq!(groups(source(), &there), [(vec![(10, 20, true)], 2)]);
    // The destination merged them: the whole of it is taken anew.
    let merged = WalEntry { deltas: there.wal[0].deltas.clone(), ..segment(5, 0, 17, None) };
    assert_eq!(groups(source(), &holds(vec![merged])), [(vec![(0, 10, true), (10, 20, true)], 1)]);
}

#[test]
fn the_same_delta_frames_in_other_segments_are_left_as_they_are() {
    let mut merged = segment(5, 0, 20, Some((8, 0)));
    let parts = vec![segment(1, 0, 10, Some((8, 0))), segment(2, 10, 20, Some((8, 0)))];
    assert_eq!(groups(parts.clone(), &holds(vec![merged.clone()])), []);
    assert_eq!(groups(vec![merged.clone()], &holds(parts.clone())), []);
    // One that has fewer of them, though of the same bytes and epoch, would not decode what follows.
    merged.deltas.as_mut().unwrap().stats.images = 10;
    assert_eq!(groups(parts, &holds(vec![merged])), [(vec![(0, 10, true), (10, 20, true)], 1)]);
}

#[test]
fn what_was_let_go_is_not_copied_again() {
    let expired = ExpiredEntry { generation: G, timeline: T, start: Lsn::ZERO, end: Lsn::new(20 * MIB) };
    let there = Index { expired: vec![expired], ..holds(vec![segment(3, 20, 30, Some((9, 20)))]) };
    let source = vec![
        segment(1, 0, 10, Some((8, 0))),
        segment(2, 10, 20, Some((8, 0))),
        segment(3, 20, 30, Some((9, 20))),
        segment(4, 30, 40, Some((9, 20))),
    ];
    assert_eq!(groups(source.clone(), &there), [(vec![(30, 40, true)], 0)]);
    // A segment of the source that reaches over the end of it is copied in part, plain.
    let (mut reaching, there) = (source, Index { wal: Vec::new(), ..there });
    reaching[1] = segment(2, 10, 20, None);
    reaching[2] = segment(3, 15, 30, None);
    assert_eq!(groups(reaching, &there)[0], (vec![(20, 30, false)], 0));
}

#[test]
fn a_gap_comes_with_the_wal_behind_it() {
    let mut view = view(vec![segment(1, 0, 10, None), segment(2, 15, 20, None)]);
    let gap = |id: u8, start: u64, end: u64| GapEntry {
        id: ObjectId([id; 16]),
        generation: G,
        timeline: T,
        start: Lsn::new(start * MIB),
        end: Lsn::new(end * MIB),
        recorded_at: Timestamp::from_micros(0),
        reason: "lost".into(),
    };
    view.index.gaps = vec![gap(1, 10, 15), gap(2, 20, 25)];
    let planned = plan(&view, &Selection::Everything, &Index::default(), &BTreeSet::new(), &[]);
    let ids = |gaps: &[GapEntry]| gaps.iter().map(|gap| gap.id.0[0]).collect::<Vec<_>>();
    let steps: Vec<Vec<u8>> = planned
        .steps
        .iter()
        .map(|step| match step {
            Step::Wal(group) => ids(&group.gaps),
            Step::Backup(_) => unreachable!(),
        })
        .collect();
    assert_eq!((steps, ids(&planned.gaps)), (vec![vec![], vec![1]], vec![2]));
}
