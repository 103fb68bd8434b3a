//! What a file that PostgreSQL asks for is made of, on one line of history. Pure.
//!
//! Only WAL of the path is served: PostgreSQL would take a segment of a diverged timeline as readily as the right one. A
//! segment is served whole or not at all; what is not durable yet at its end is zeros, which recovery reads as the end.

use crate::base::{Lsn, LsnRange, SegmentNo, SegmentSize, TimelineId, WalFileName};
use crate::repo::lineage::TimelinePath;

/// What a segment file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Composition {
    /// These bytes of the path, from the segment's start, then zeros.
    Of(LsnRange),
    /// It is not in the archive, which this proves.
    Absent(String),
}

/// What `number` on `timeline` holds, when `run` of `path` is stored without a hole.
pub fn compose(
    timeline: TimelineId,
    number: SegmentNo,
    size: SegmentSize,
    path: &TimelinePath,
    run: LsnRange,
) -> Composition {
    let segment = number.range(size);
    let Some(leg) = path.legs().iter().find(|leg| leg.timeline == timeline) else {
        return Composition::Absent(format!("timeline {timeline} is not on the way to {}", path.timeline()));
    };
    let end = segment.end.min(leg.range.end).min(run.end);
    if leg.range.intersect(segment).is_none() {
        return Composition::Absent(format!(
            "the way to timeline {} leaves {timeline} elsewhere",
            path.timeline()
        ));
    }
    if end <= segment.start.max(leg.range.start) {
        return Composition::Absent(format!("WAL of timeline {timeline} is stored up to {} here", run.end));
    }
    if run.start > segment.start {
        return Composition::Absent(format!("WAL is stored from {} on", run.start));
    }
    Composition::Of(LsnRange::new(segment.start, end))
}

/// The file in which PostgreSQL will look for segment `number` first: that of the newest timeline which has begun by then
/// and has anything in it. `None` when no file of the path has.
pub fn first_choice(
    number: SegmentNo,
    size: SegmentSize,
    path: &TimelinePath,
    run: LsnRange,
) -> Option<WalFileName> {
    let newest_first = path.legs().iter().rev();
    newest_first
        .map(|leg| leg.timeline)
        .find(|timeline| matches!(compose(*timeline, number, size, path, run), Composition::Of(_)))
        .map(|timeline| WalFileName::segment(timeline, number, size))
}

/// The segments to stage after `number`, while recovery needs WAL up to `needed`: at most `count_max`, of at most
/// `bytes_max` together, but at least one.
pub fn next_segments(
    number: SegmentNo,
    size: SegmentSize,
    needed: Lsn,
    count_max: usize,
    bytes_max: u64,
) -> impl Iterator<Item = SegmentNo> {
    let count = (bytes_max / size.bytes()).clamp(1, count_max as u64);
    (1..=count)
        .map(move |step| SegmentNo(number.0.saturating_add(step)))
        .take_while(move |next| next.range(size).start < needed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 20;

    fn size() -> SegmentSize {
        SegmentSize::new(SIZE).unwrap()
    }

    fn range(start: u64, end: u64) -> LsnRange {
        LsnRange::new(Lsn::new(start), Lsn::new(end))
    }

    /// 1 up to the middle of segment 2; 2 up to three quarters of it; 4 from there on.
    fn path() -> TimelinePath {
        let at = |quarter: u64| Lsn::new(2 * SIZE + quarter * SIZE / 4);
        TimelinePath::new(TimelineId(4), &[(TimelineId(1), at(2)), (TimelineId(2), at(3))]).unwrap()
    }

    fn composed(timeline: u32, number: u64, run: LsnRange) -> Option<LsnRange> {
        match compose(TimelineId(timeline), SegmentNo(number), size(), &path(), run) {
            Composition::Of(range) => Some(range),
            Composition::Absent(_) => None,
        }
    }

    #[test]
    fn a_forks_segment_holds_the_path_and_nothing_past_it() {
        let run = range(0, 10 * SIZE + 5);
        let fork = 2 * SIZE;
        assert_eq!(composed(1, 1, run), Some(range(SIZE, 2 * SIZE)));
        assert_eq!(composed(1, 2, run), Some(range(fork, fork + SIZE / 2)));
        assert_eq!(composed(2, 2, run), Some(range(fork, fork + 3 * SIZE / 4)));
        assert_eq!(composed(4, 2, run), Some(range(fork, fork + SIZE)));
        assert_eq!(composed(4, 10, run), Some(range(10 * SIZE, 10 * SIZE + 5)), "half a segment, then zeros");
    }

    #[test]
    fn what_the_path_does_not_hold_is_absent() {
        let run = range(SIZE, 10 * SIZE);
        for (timeline, number, why) in [
            (1, 3, "diverged"),
            (2, 1, "before it was born"),
            (4, 1, "before it was born"),
            (2, 3, "after it was left"),
            (3, 2, "another line"),
            (4, 10, "not streamed yet"),
            (1, 0, "no longer stored"),
        ] {
            assert_eq!(composed(timeline, number, run), None, "{why}");
        }
        let until_the_fork = range(0, 2 * SIZE + SIZE / 2);
        assert_eq!(composed(2, 2, until_the_fork), None, "nothing of its own yet");
        assert!(composed(1, 2, until_the_fork).is_some());
        assert_eq!(composed(1, 1, range(SIZE + 1, 2 * SIZE)), None, "its start is missing");
    }

    #[test]
    fn the_newest_timeline_in_a_segment_is_the_first_choice() {
        let name = |number, run| {
            first_choice(SegmentNo(number), size(), &path(), run)
                .map(|name| name.to_string().split_at(8).0.to_owned())
        };
        let all = range(0, 4 * SIZE);
        assert_eq!(name(1, all).as_deref(), Some("00000001"));
        assert_eq!(name(2, all).as_deref(), Some("00000004"));
        assert_eq!(name(2, range(0, 2 * SIZE + 3 * SIZE / 4)).as_deref(), Some("00000002"));
        assert_eq!(name(4, all), None);
    }

    #[test]
    fn staging_ahead_is_bounded_by_count_bytes_and_need() {
        let next = |needed, count, bytes| {
            next_segments(SegmentNo(5), size(), Lsn::new(needed), count, bytes)
                .map(|n| n.0)
                .collect::<Vec<_>>()
        };
        assert_eq!(next(u64::MAX, 3, u64::MAX), [6, 7, 8]);
        assert_eq!(next(u64::MAX, 8, 2 * SIZE), [6, 7]);
        assert_eq!(next(u64::MAX, 8, 10), [6]);
        assert_eq!(next(7 * SIZE + 1, 8, u64::MAX), [6, 7]);
        assert_eq!(next(6 * SIZE, 8, u64::MAX), [0u64; 0]);
    }
}
