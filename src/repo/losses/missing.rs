//! What WAL a loss costs. Its own stream says where it begins and ends, as far as there is anything before and behind it in it; otherwise
//! the streams around it do, compacted WAL, and where timelines were left. Pure.
//!
//! Invariant: nothing is given up without a gap that tells of it, unless other objects hold it. An end that is nowhere is [`Lsn::MAX`],
//! a beginning that is nowhere [`Lsn::ZERO`].

use super::Loss;
use crate::base::{Lsn, LsnRange, TimelineId};
use crate::repo::chain::Chain;
use crate::repo::spans::Spans;
use crate::repo::walmap::Snapshot;
use crate::wal::TimelineHistory;

/// WAL that `loss`, of the chain at `at`, costs, that no other object holds, and that no gap tells of. `None` while nobody knows where it
/// ends: the writer behind it has stored nothing yet.
pub(super) fn missing(snapshot: &Snapshot, at: usize, loss: &Loss) -> Option<Vec<LsnRange>> {
    let (before, rest) = snapshot.wal.chains().split_at_checked(at)?;
    let (own, behind) = rest.split_first()?;
    let timeline = loss.timeline;
    let around = Around { snapshot, timeline, ranges: snapshot.wal.ranges(timeline), before, behind };
    let (from, to) = match (loss.from, loss.to) {
        (Some(from), Some(to)) => (from, to),
        (Some(from), None) => (from, around.goes_on(from)?),
        (None, Some(to)) => (around.ends_before(to), to),
        (None, None) => match around.next_stream() {
            Some(to) => (around.ends_before(to), to),
            None => {
                let from = around.ends_before(Lsn::MAX);
                (from, around.goes_on(from)?)
            }
        },
    };
    let place = (own.stream.generation, timeline);
    let mut hole = Spans::default();
    hole.add(place, LsnRange::new(from, to.max(from)));
    around.ranges.iter().for_each(|range| hole.remove(place, *range));
    for gap in snapshot.wal.gaps().iter().filter(|gap| gap.timeline == timeline) {
        hole.remove(place, LsnRange::new(gap.start, gap.end.max(gap.start)));
    }
    for ((generation, timeline), expired) in Spans::expired(&snapshot.index.expired).iter() {
        hole.remove((generation, timeline), expired);
    }
    Some(hole.iter().map(|(_, range)| range).collect())
}

/// What lies around a loss on its timeline.
struct Around<'a> {
    snapshot: &'a Snapshot,
    timeline: TimelineId,
    /// WAL without a hole.
    ranges: Vec<LsnRange>,
    /// Older streams.
    before: &'a [Chain],
    /// Younger ones.
    behind: &'a [Chain],
}

impl Around<'_> {
    /// Where WAL goes on from `from` on, where a stream ends with what is lost: `from` itself when it does there.
    fn goes_on(&self, from: Lsn) -> Option<Lsn> {
        if self.ranges.iter().any(|range| range.contains(from)) {
            return Some(from);
        }
        let ranges = self.ranges.iter().map(|range| range.start);
        let streams = self.on_timeline(self.behind).filter_map(|chain| self.begins(chain));
        let next = ranges.chain(streams).filter(|start| *start >= from).min();
        next.or_else(|| self.is_over().then(|| self.left_at(from).unwrap_or(Lsn::MAX)))
    }

    /// Where WAL before `to` ends, where a stream begins with what is lost: `to` itself when it does there.
    fn ends_before(&self, to: Lsn) -> Lsn {
        if self.ranges.iter().any(|range| range.start < to && to <= range.end) {
            return to;
        }
        let ranges = self.ranges.iter().map(|range| range.end);
        let streams = self.on_timeline(self.before).filter_map(Chain::end_lsn);
        let last = ranges.chain(streams).filter(|end| *end <= to).max();
        last.or_else(|| self.begun_at().filter(|begun| *begun <= to)).unwrap_or(Lsn::ZERO)
    }

    /// Where the next stream that has anything begins.
    fn next_stream(&self) -> Option<Lsn> {
        self.on_timeline(self.behind).find_map(|chain| self.begins(chain))
    }

    /// Where WAL of `chain` begins, or that to which what is compacted of it belongs.
    fn begins(&self, chain: &Chain) -> Option<Lsn> {
        let Some(compacted) = chain.stream.low_water_lsn else {
            return chain.objects.first().map(|object| object.meta.start);
        };
        let of = self.ranges.iter().find(|range| range.start <= compacted && compacted <= range.end);
        Some(of.map_or(compacted, |range| range.start))
    }

    fn on_timeline<'c>(&self, chains: &'c [Chain]) -> impl Iterator<Item = &'c Chain> + use<'c> {
        let timeline = self.timeline;
        chains.iter().filter(move |chain| chain.stream.timeline == timeline)
    }

    /// Whether no WAL of the timeline will come any more.
    fn is_over(&self) -> bool {
        let (root, generation) = (&self.snapshot.root, self.snapshot.wal.generation());
        root.generation != generation
            || self.behind.last().is_some_and(|chain| chain.stream.timeline != self.timeline)
    }

    /// Where the timeline was left last, behind `from`.
    fn left_at(&self, from: Lsn) -> Option<Lsn> {
        let left = self.histories().filter_map(|history| history.switch_after(self.timeline));
        left.map(|(_, at)| at).filter(|at| *at > from).max()
    }

    /// Where the timeline left the one before.
    fn begun_at(&self) -> Option<Lsn> {
        self.histories()
            .find(|history| history.timeline() == self.timeline)
            .map(|history| history.begins_at())
    }

    fn histories(&self) -> impl Iterator<Item = TimelineHistory> {
        let generation = self.snapshot.wal.generation();
        let own = self.snapshot.index.histories.iter().filter(move |entry| entry.generation == generation);
        own.filter_map(|entry| TimelineHistory::parse(entry.timeline, &entry.content.0).ok())
    }
}

#[cfg(test)]
mod tests;
