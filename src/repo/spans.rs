//! Sets of WAL by generation and timeline: ranges added, taken away, and joined. Pure.

use crate::base::{Generation, Lsn, LsnRange, TimelineId};
use crate::format::index::ExpiredEntry;
use std::collections::BTreeMap;

/// Ranges of WAL, in order, that neither overlap nor touch.
#[derive(Debug, Clone, Default)]
pub struct Spans {
    of: BTreeMap<(Generation, TimelineId), BTreeMap<Lsn, Lsn>>,
}

impl Spans {
    /// Those that an index says expired.
    pub fn expired(entries: &[ExpiredEntry]) -> Spans {
        let mut spans = Spans::default();
        for entry in entries {
            spans.add(
                (entry.generation, entry.timeline),
                LsnRange::new(entry.start, entry.end.max(entry.start)),
            );
        }
        spans
    }

    /// As an index keeps them.
    pub fn to_expired(&self) -> Vec<ExpiredEntry> {
        let entry = |((generation, timeline), range): ((Generation, TimelineId), LsnRange)| ExpiredEntry {
            generation,
            timeline,
            start: range.start,
            end: range.end,
        };
        self.iter().map(entry).collect()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = ((Generation, TimelineId), LsnRange)> + '_ {
        let each = |(place, ranges): (&(Generation, TimelineId), &'_ BTreeMap<Lsn, Lsn>)| {
            let place = *place;
            ranges.iter().map(move |(start, end)| (place, LsnRange::new(*start, *end))).collect::<Vec<_>>()
        };
        self.of.iter().flat_map(each)
    }

    /// Adds `range`.
    pub fn add(&mut self, place: (Generation, TimelineId), range: LsnRange) {
        if range.is_empty() {
            return;
        }
        let ranges = self.of.entry(place).or_default();
        let (mut start, mut end) = (range.start, range.end);
        while let Some((other_start, other_end)) = ranges.range(..=end).next_back().map(|(a, b)| (*a, *b)) {
            if other_end < start {
                break;
            }
            (start, end) = (start.min(other_start), end.max(other_end));
            ranges.remove(&other_start);
        }
        ranges.insert(start, end);
    }

    /// Takes `range` away.
    pub fn remove(&mut self, place: (Generation, TimelineId), range: LsnRange) {
        let Some(ranges) = self.of.get_mut(&place) else { return };
        while let Some((start, end)) = ranges.range(..range.end).next_back().map(|(a, b)| (*a, *b)) {
            if end <= range.start || range.is_empty() {
                break;
            }
            ranges.remove(&start);
            if range.end < end {
                ranges.insert(range.end, end);
            }
            if start < range.start {
                ranges.insert(start, range.start);
                break;
            }
        }
    }

    /// Whether any byte of `range` is among them.
    pub fn meets(&self, place: (Generation, TimelineId), range: LsnRange) -> bool {
        let Some(ranges) = self.of.get(&place) else { return false };
        !range.is_empty() && ranges.range(..range.end).next_back().is_some_and(|(_, end)| *end > range.start)
    }

    /// Whether every byte of `range` is among them.
    pub fn covers(&self, place: (Generation, TimelineId), range: LsnRange) -> bool {
        let around = |ranges: &BTreeMap<Lsn, Lsn>| {
            ranges.range(..=range.start).next_back().is_some_and(|(_, end)| *end >= range.end)
        };
        range.is_empty() || self.of.get(&place).is_some_and(around)
    }

    /// The first and the last byte of each place, and what lies between.
    pub fn hulls(&self) -> impl Iterator<Item = ((Generation, TimelineId), LsnRange)> + '_ {
        self.of.iter().filter_map(|(place, ranges)| {
            let (start, end) = (ranges.first_key_value()?.0, ranges.last_key_value()?.1);
            Some((*place, LsnRange::new(*start, *end)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: (Generation, TimelineId) = (Generation(1), TimelineId(1));

    fn range(start: u64, end: u64) -> LsnRange {
        LsnRange::new(Lsn::new(start), Lsn::new(end))
    }

    /// Against a set of bytes.
    #[test]
    fn they_are_what_a_set_of_bytes_would_be() {
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..500 {
            let (mut spans, mut bytes) = (Spans::default(), [false; 40]);
            for _ in 0..rng.usize(1..12) {
                let (a, b) = (rng.usize(0..40), rng.usize(0..40));
                let (start, end) = (a.min(b), a.max(b));
                let add = rng.bool();
                bytes[start..end].fill(add);
                match add {
                    true => spans.add(PLACE, range(start as u64, end as u64)),
                    false => spans.remove(PLACE, range(start as u64, end as u64)),
                }
            }
            let inside = |at: usize| spans.meets(PLACE, range(at as u64, at as u64 + 1));
            assert!((0..40).all(|at| inside(at) == bytes[at]), "{spans:?} {bytes:?}");
            for _ in 0..20 {
                let (a, b) = (rng.usize(0..40), rng.usize(0..40));
                let (start, end) = (a.min(b), a.max(b));
                let all = bytes[start..end].iter().all(|inside| *inside);
                assert_eq!(
                    spans.covers(PLACE, range(start as u64, end as u64)),
                    all,
                    "{spans:?} {start}..{end}"
                );
            }
            let first = bytes.iter().position(|inside| *inside);
            let last = bytes.iter().rposition(|inside| *inside);
            let hull = first.zip(last).map(|(first, last)| (PLACE, range(first as u64, last as u64 + 1)));
            assert_eq!(spans.hulls().next(), hull, "{spans:?}");
            let listed: Vec<LsnRange> = spans.iter().map(|(_, range)| range).collect();
            assert!(listed.windows(2).all(|pair| pair[0].end < pair[1].start), "{listed:?}");
            assert_eq!(Spans::expired(&spans.to_expired()).to_expired(), spans.to_expired());
        }
    }
}
