//! Which timeline holds which bytes of one line of history, and how much of that line the archive has.
//!
//! Invariants: the legs of a path follow each other without hole or overlap from `0/0`; the spans of a coverage follow
//! each other in order and never overlap. A new timeline begins inside a WAL segment whose beginning it copies from its
//! parent, so a timeline's own WAL holds valid bytes of the path from the start of the segment in which it forked.

use crate::base::{Lsn, LsnRange, SegmentSize, TimelineId, Timestamp};
use crate::format::wal::WalSummary;
use std::collections::BTreeMap;

/// The part of a path that lies on one timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leg {
    /// The timeline.
    pub timeline: TimelineId,
    /// From where it left its parent to where its child left it; [`Lsn::MAX`] for the last.
    pub range: LsnRange,
}

/// One line of history from `0/0` on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelinePath {
    legs: Vec<Leg>,
}

impl TimelinePath {
    /// The path of `timeline`, which left each of `parents` at the position beside it. `None` when the positions run backwards.
    pub fn new(timeline: TimelineId, parents: &[(TimelineId, Lsn)]) -> Option<Self> {
        let mut legs = Vec::with_capacity(parents.len() + 1);
        let mut from = Lsn::ZERO;
        for (parent, until) in parents {
            if *until < from {
                return None;
            }
            legs.push(Leg { timeline: *parent, range: LsnRange::new(from, *until) });
            from = *until;
        }
        legs.push(Leg { timeline, range: LsnRange::new(from, Lsn::MAX) });
        Some(TimelinePath { legs })
    }

    /// The legs, oldest first.
    pub fn legs(&self) -> &[Leg] {
        &self.legs
    }

    /// The timeline it leads to.
    pub fn timeline(&self) -> TimelineId {
        self.legs.last().map_or(TimelineId::FIRST, |leg| leg.timeline)
    }

    /// Whether all of `range` lies on `timeline` along this path.
    pub fn holds(&self, timeline: TimelineId, range: LsnRange) -> bool {
        self.legs.iter().any(|leg| {
            leg.timeline == timeline && leg.range.start <= range.start && range.end <= leg.range.end
        })
    }

    /// The timeline on which the byte at `at` lies.
    pub fn timeline_at(&self, at: Lsn) -> TimelineId {
        self.legs.iter().find(|leg| leg.range.contains(at)).map_or(self.timeline(), |leg| leg.timeline)
    }
}

/// Every timeline the archive knows of, with where it left its parents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lineage {
    parents: BTreeMap<TimelineId, Vec<(TimelineId, Lsn)>>,
}

impl Lineage {
    /// Adds `timeline`, whose history file lists `parents`.
    pub fn insert(&mut self, timeline: TimelineId, parents: Vec<(TimelineId, Lsn)>) {
        self.parents.insert(timeline, parents);
    }

    /// The path that leads to `timeline`; timeline 1 needs no history. `None` for one whose history is not here or makes no sense.
    pub fn path(&self, timeline: TimelineId) -> Option<TimelinePath> {
        match self.parents.get(&timeline) {
            Some(parents) => TimelinePath::new(timeline, parents),
            None if timeline == TimelineId::FIRST => TimelinePath::new(timeline, &[]),
            None => None,
        }
    }

    /// Every timeline with a path.
    pub fn timelines(&self) -> impl Iterator<Item = TimelineId> + '_ {
        let first = (!self.parents.contains_key(&TimelineId::FIRST)).then_some(TimelineId::FIRST);
        first.into_iter().chain(self.parents.keys().copied())
    }
}

/// A stored range of WAL and what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The timeline it was streamed on.
    pub timeline: TimelineId,
    /// Its bytes; empty in a heartbeat.
    pub range: LsnRange,
    /// The server's clock when everything up to its end had been sent.
    pub server_time: Timestamp,
    /// What it holds.
    pub summary: WalSummary,
}

/// A part of a path whose bytes one piece holds.
#[derive(Debug, Clone, Copy)]
pub struct Span<'a> {
    /// The bytes.
    pub range: LsnRange,
    /// Who holds them, and perhaps more.
    pub piece: &'a Piece,
}

/// Bytes of a path that the archive holds without a hole.
#[derive(Debug, Clone)]
pub struct Run<'a> {
    /// The bytes.
    pub range: LsnRange,
    /// Who holds them, in order.
    pub spans: Vec<Span<'a>>,
    /// The newest server time at which all of it was durable and nothing more had been sent.
    pub server_time: Timestamp,
}

impl<'a> Run<'a> {
    /// The spans that hold bytes after `at`.
    pub fn spans_after(&self, at: Lsn) -> &[Span<'a>] {
        let first = self.spans.partition_point(|span| span.range.end <= at);
        self.spans.get(first..).unwrap_or_default()
    }
}

/// What the archive holds of one path: runs in order, with holes between them.
#[derive(Debug, Clone, Default)]
pub struct Coverage<'a> {
    /// The runs.
    pub runs: Vec<Run<'a>>,
}

impl<'a> Coverage<'a> {
    /// What `pieces` hold of `path`.
    pub fn of(path: &TimelinePath, pieces: &'a [Piece], segment_size: SegmentSize) -> Self {
        let mut found: Vec<(Lsn, usize, Span<'a>)> = Vec::new();
        for (order, leg) in path.legs().iter().enumerate() {
            let valid = LsnRange::new(segment_size.segment_start(leg.range.start), leg.range.end);
            for piece in pieces.iter().filter(|piece| piece.timeline == leg.timeline) {
                if let Some(range) = piece.range.intersect(valid) {
                    found.push((range.start, order, Span { range, piece }));
                }
            }
        }
        found.sort_by_key(|(start, order, span)| (*start, *order, std::cmp::Reverse(span.range.end)));
        let mut coverage = Coverage::default();
        for (_, _, span) in found {
            coverage.add(span);
        }
        coverage.add_times(path, pieces);
        coverage
    }

    /// The run that holds all of `range`.
    pub fn run_with(&self, range: LsnRange) -> Option<&Run<'a>> {
        self.runs.iter().find(|run| run.range.start <= range.start && range.end <= run.range.end)
    }

    /// Where the archive ends on this path.
    pub fn end(&self) -> Option<Lsn> {
        self.runs.last().map(|run| run.range.end)
    }

    /// Spans come by start; what was covered before is not covered again.
    fn add(&mut self, span: Span<'a>) {
        match self.runs.last_mut() {
            Some(run) if span.range.start <= run.range.end => {
                if span.range.end > run.range.end {
                    let range = LsnRange::new(run.range.end, span.range.end);
                    run.spans.push(Span { range, ..span });
                    run.range.end = range.end;
                }
            }
            _ => self.runs.push(Run { range: span.range, spans: vec![span], server_time: Timestamp::MIN }),
        }
    }

    /// A piece tells the time of its run when its end lies on its own leg: what was sent past a fork belongs to another line.
    fn add_times(&mut self, path: &TimelinePath, pieces: &[Piece]) {
        for leg in path.legs() {
            let own = pieces.iter().filter(|piece| piece.timeline == leg.timeline);
            for piece in own.filter(|p| leg.range.start <= p.range.end && p.range.end <= leg.range.end) {
                let end = piece.range.end;
                let at = self.runs.partition_point(|run| run.range.end < end);
                if let Some(run) = self.runs.get_mut(at).filter(|run| run.range.start <= end) {
                    run.server_time = run.server_time.max(piece.server_time);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 1 << 20;

    fn piece(timeline: u32, start: u64, end: u64, time: i64) -> Piece {
        Piece {
            timeline: TimelineId(timeline),
            range: LsnRange::new(Lsn::new(start), Lsn::new(end)),
            server_time: Timestamp::from_micros(time),
            summary: WalSummary::empty(),
        }
    }

    fn runs(parents: &[(u32, u64)], timeline: u32, pieces: &[Piece]) -> Vec<(u64, u64, i64, Vec<u32>)> {
        let parents: Vec<_> = parents.iter().map(|(t, at)| (TimelineId(*t), Lsn::new(*at))).collect();
        let path = TimelinePath::new(TimelineId(timeline), &parents).unwrap();
        let coverage = Coverage::of(&path, pieces, SegmentSize::new(SEGMENT).unwrap());
        let shape = |run: &Run<'_>| {
            let timelines = run.spans.iter().map(|span| span.piece.timeline.0).collect();
            (run.range.start.get(), run.range.end.get(), run.server_time.micros(), timelines)
        };
        coverage.runs.iter().map(shape).collect()
    }

    #[test]
    fn a_fork_takes_the_parent_up_to_it_and_the_child_after_it() {
        let fork = SEGMENT + 500;
        let pieces = [piece(1, 0, fork, 1), piece(1, fork, fork + 300, 9), piece(2, SEGMENT, 2 * SEGMENT, 3)];
        assert_eq!(runs(&[(1, fork)], 2, &pieces), [(0, 2 * SEGMENT, 3, vec![1, 2])]);
        assert_eq!(runs(&[], 1, &pieces), [(0, fork + 300, 9, vec![1, 1])]);
    }

    #[test]
    fn a_childs_copy_of_the_segment_closes_what_the_parent_never_sent() {
        let fork = SEGMENT + 500;
        let pieces = [piece(1, 0, SEGMENT + 100, 1), piece(2, SEGMENT, 2 * SEGMENT, 3)];
        assert_eq!(runs(&[(1, fork)], 2, &pieces), [(0, 2 * SEGMENT, 3, vec![1, 2])]);
        let pieces = [piece(1, 0, SEGMENT - 100, 1), piece(2, SEGMENT, 2 * SEGMENT, 3)];
        let holed = [(0, SEGMENT - 100, 1, vec![1]), (SEGMENT, 2 * SEGMENT, 3, vec![2])];
        assert_eq!(runs(&[(1, fork)], 2, &pieces), holed);
    }

    #[test]
    fn overlapping_pieces_count_once() {
        let pieces = [piece(1, 0, 100, 1), piece(1, 0, 60, 1), piece(1, 40, 120, 2), piece(1, 50, 90, 1)];
        assert_eq!(runs(&[], 1, &pieces), [(0, 120, 2, vec![1, 1])]);
    }

    #[test]
    fn heartbeats_move_the_time_and_not_the_end() {
        let pieces = [piece(1, 0, 100, 1), piece(1, 100, 100, 7), piece(1, 200, 300, 8)];
        assert_eq!(runs(&[], 1, &pieces), [(0, 100, 7, vec![1]), (200, 300, 8, vec![1])]);
    }

    #[test]
    fn histories_that_run_backwards_lead_nowhere() {
        let parents = [(TimelineId(1), Lsn::new(500)), (TimelineId(2), Lsn::new(400))];
        assert_eq!(TimelinePath::new(TimelineId(3), &parents), None);
        let mut lineage = Lineage::default();
        assert!(lineage.path(TimelineId(1)).is_some());
        assert!(lineage.path(TimelineId(3)).is_none(), "no history");
        lineage.insert(TimelineId(3), parents.to_vec());
        assert!(lineage.path(TimelineId(3)).is_none(), "a history that runs backwards");
    }
}
