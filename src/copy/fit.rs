//! Whether what was planned fits the destination's index as it is when it is committed, and what of its gaps is left then. Pure.

use super::error::CopyError;
use super::plan::Group;
use super::source::Place;
use crate::base::{Lsn, LsnRange, ObjectId, Timestamp, limits};
use crate::format::index::{GapEntry, WalEntry};
use crate::repo::spans::Spans;
use crate::repo::{Index, RepoError};
use std::collections::HashMap;

/// Refuses WAL that does not fit what is there now.
pub fn check(index: &Index, expired: &Spans, group: &Group, entries: &[WalEntry]) -> Result<(), CopyError> {
    let start = entries.iter().map(|entry| entry.start).min().unwrap_or(Lsn::ZERO);
    let end = entries.iter().map(|entry| entry.end).max().unwrap_or(start);
    let around: Vec<&WalEntry> = near(index, group.place, LsnRange::new(start, end)).collect();
    // What goes lies inside of what takes its place.
    if let Some(gone) = group.removes.iter().find(|id| !around.iter().any(|entry| entry.id == **id)) {
        return Err(conflict(format!("segment {gone} was replaced by somebody else")));
    }
    for entry in entries {
        let range = LsnRange::new(entry.start, entry.end);
        if near(index, group.place, range).any(|other| !group.removes.contains(&other.id)) {
            return Err(conflict(format!("WAL {range} was copied by somebody else")));
        }
        if expired.meets(group.place, range) {
            return Err(conflict(format!("the destination let go of WAL in {range}")));
        }
        let Some(deltas) = &entry.deltas else { continue };
        if expired.meets(group.place, LsnRange::new(deltas.epoch.start, entry.end)) {
            return Err(conflict(format!("the destination let go of WAL that {range} is decoded from")));
        }
        if let Some(base) = deltas.base.as_ref().filter(|base| index.backup(base).is_none()) {
            return Err(conflict(format!("backup {base}, which WAL {range} refers to, is not there")));
        }
    }
    Ok(())
}

/// The segments that hold bytes of `range`: none is longer than the bound, so they are found by bisecting.
fn near(index: &Index, place: Place, range: LsnRange) -> impl Iterator<Item = &WalEntry> {
    let first = range.start.saturating_sub(limits::WAL_SEGMENT_BYTES_MAX);
    let from = |lsn: Lsn| {
        index.wal.partition_point(|entry| ((entry.generation, entry.timeline), entry.start) < (place, lsn))
    };
    let around = index.wal.get(from(first)..from(range.end)).unwrap_or_default();
    around.iter().filter(move |entry| entry.end > range.start)
}

/// The index's gaps without what of them is stored; the same list when that is nothing. `id` names further parts.
pub fn left_of_gaps(index: &Index, mut id: impl FnMut() -> ObjectId) -> Vec<GapEntry> {
    let mut left = Vec::new();
    for gap in &index.gaps {
        let place = (gap.generation, gap.timeline);
        let range = LsnRange::new(gap.start, gap.end.max(gap.start));
        let mut holes = Spans::default();
        holes.add(place, range);
        let stored = index.wal.iter().filter(|entry| (entry.generation, entry.timeline) == place);
        stored.for_each(|entry| holes.remove(place, LsnRange::new(entry.start, entry.end)));
        if range.is_empty() || holes.covers(place, range) {
            left.push(gap.clone());
            continue;
        }
        for (number, (_, hole)) in holes.iter().enumerate() {
            let id = if number == 0 { gap.id } else { id() };
            left.push(GapEntry { id, start: hole.start, end: hole.end, ..gap.clone() });
        }
    }
    left
}

/// Segments at whose end the source has been for longer than the index says: heartbeats move the time alone.
pub fn later(index: &Index, moments: &HashMap<(Place, Lsn), Timestamp>) -> Vec<WalEntry> {
    let moved = |entry: &WalEntry| {
        let at = moments.get(&((entry.generation, entry.timeline), entry.end))?;
        (*at > entry.server_time).then(|| WalEntry { server_time: *at, ..entry.clone() })
    };
    index.wal.iter().filter_map(moved).collect()
}

/// What was planned is not to be done any more.
pub fn conflict(reason: String) -> CopyError {
    CopyError::Destination(RepoError::Conflict { reason })
}
