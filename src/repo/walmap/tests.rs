//! Lookups in a map of WAL.

use super::*;
use crate::base::ObjectId;

const G: Generation = Generation(1);

fn entry(number: u64, timeline: u32, start: u64, end: u64) -> WalEntry {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&number.to_le_bytes());
    WalEntry {
        id: ObjectId(id),
        generation: G,
        timeline: TimelineId(timeline),
        start: Lsn::new(start),
        end: Lsn::new(end),
        object_len: 1,
        directory_offset: 0,
        server_time: Timestamp::from_micros(end as i64),
        summary: WalSummary::empty(),
        deltas: None,
    }
}

fn map(wal: Vec<WalEntry>) -> WalMap {
    WalMap::new(G, &Index { wal, ..Index::default() }, Vec::new())
}

fn range(start: u64, end: u64) -> LsnRange {
    LsnRange::new(Lsn::new(start), Lsn::new(end))
}

/// Against a look at every piece.
#[test]
fn what_overlaps_is_found_among_pieces_that_overlap_each_other() {
    let mut rng = fastrand::Rng::with_seed(3);
    for _ in 0..200 {
        let wal = (0..rng.u64(1..40)).map(|number| {
            let start = rng.u64(0..200);
            entry(number, rng.u32(1..3), start, start + rng.u64(1..60))
        });
        let map = map(wal.collect());
        for _ in 0..50 {
            let (timeline, start) = (TimelineId(rng.u32(1..4)), rng.u64(0..260));
            let wanted = range(start, start + rng.u64(0..40));
            let found: Vec<&WalPiece> = map.overlapping(timeline, wanted).collect();
            let all = map.pieces().iter().filter(|piece| piece.timeline == timeline);
            let expected: Vec<&WalPiece> =
                all.filter(|piece| piece.range.intersect(wanted).is_some()).collect();
            assert_eq!(found, expected, "{wanted} on {timeline}");
            let runs = map.ranges(timeline);
            let run = runs.iter().find(|run| run.contains(Lsn::new(start)) || run.end == Lsn::new(start));
            let end = run.map_or(Lsn::new(start), |run| run.end);
            assert_eq!(map.contiguous_end(timeline, Lsn::new(start)), end, "{start} on {timeline}");
        }
    }
}

#[test]
fn a_lookup_looks_at_no_more_pieces_in_a_large_archive_than_in_a_small_one() {
    for count in [100, 100_000] {
        let map = map((0..count).map(|number| entry(number, 1, number * 10, number * 10 + 10)).collect());
        for at in [0, count / 2, count - 1] {
            assert_eq!(
                map.around(TimelineId(1), range(at * 10 + 3, at * 10 + 4)).len(),
                1,
                "{at} of {count}"
            );
        }
    }
}

#[test]
fn without_what_is_lost_it_ends_before() {
    let map = map((0..3).map(|number| entry(number, 1, number * 10, number * 10 + 10)).collect());
    let rest = map.without(|piece| piece.range.start == Lsn::new(20));
    assert_eq!(rest.ranges(TimelineId(1)), [range(0, 20)]);
    assert_eq!(rest.durable_end().map(|end| end.lsn), Some(Lsn::new(20)));
}

/// A gap that was recorded when its timeline seemed to be over ends once WAL follows.
#[test]
fn a_gap_without_an_end_ends_where_wal_goes_on() {
    let gap = |timeline: u32, start: u64, end: Lsn| GapEntry {
        id: ObjectId([start as u8; 16]),
        generation: G,
        timeline: TimelineId(timeline),
        start: Lsn::new(start),
        end,
        recorded_at: Timestamp::from_micros(1),
        reason: "lost".to_owned(),
    };
    let gaps_of = |wal: &[(u32, u64, u64)], gaps: Vec<GapEntry>| {
        let entries = wal
            .iter()
            .enumerate()
            .map(|(number, (timeline, start, end))| entry(number as u64, *timeline, *start, *end));
        let index = Index { wal: entries.collect(), gaps, ..Index::default() };
        let (index, map) = mapped(G, index, Vec::new());
        assert_eq!(index.gaps, map.gaps(), "whoever asks the index is told the same");
        map.gaps().iter().map(|gap| (gap.start.get(), gap.end)).collect::<Vec<_>>()
    };
    let open = || vec![gap(1, 100, Lsn::MAX)];
    assert_eq!(gaps_of(&[(1, 0, 100)], open()), [(100, Lsn::MAX)]);
    assert_eq!(gaps_of(&[(1, 0, 100), (2, 100, 200)], open()), [(100, Lsn::MAX)], "another timeline");
    assert_eq!(gaps_of(&[(1, 0, 100), (1, 130, 200), (1, 150, 300)], open()), [(100, Lsn::new(130))]);
    assert_eq!(gaps_of(&[(1, 0, 100), (1, 100, 200)], open()), [], "had again");
    assert_eq!(gaps_of(&[(1, 0, 120)], open()), [], "had again");
    let closed = vec![gap(1, 100, Lsn::new(150))];
    assert_eq!(gaps_of(&[(1, 0, 120)], closed), [(100, Lsn::new(150))], "as it was recorded");
}
