//! Which of the segments of WAL that lie around make up an index. Pure.
//!
//! Beside those that an index named there may be some that it had let go (merged into larger ones), and some that a compaction stored
//! which lost its race. All hold the same bytes; but delta frames are decoded in the order of their epoch, from its start, so segments
//! of different origin do not mix. Chosen is the run of segments that fit each other and hold the most; of equal ones, the fewest and
//! best known. What fits nowhere and is held by nothing else is taken as well: its plain frames can be read.
//!
//! Invariant: no two chosen segments of one timeline overlap; no byte that some segment holds is left out unless another holds it.

use crate::base::{LsnRange, ObjectId};
use crate::format::index::WalEntry;
use std::collections::HashSet;

/// A segment that lies there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// What the index would say of it.
    pub entry: WalEntry,
    /// Whether an index object that can be read names it.
    pub known: bool,
}

/// How good a run is: bytes, then known ones, then few.
type Score = (u64, u64, i64);

#[derive(Debug, Clone, Copy)]
struct Best {
    score: Score,
    before: Option<usize>,
}

/// The candidates to take, of one timeline and generation, in order; the others are not needed.
pub fn choose(mut candidates: Vec<Candidate>) -> (Vec<Candidate>, Vec<Candidate>) {
    candidates.retain(|candidate| candidate.entry.start < candidate.entry.end);
    candidates.sort_by_key(|candidate| (candidate.entry.start, candidate.entry.end, candidate.entry.id));
    let mut best: Vec<Option<Best>> = Vec::with_capacity(candidates.len());
    for (at, candidate) in candidates.iter().enumerate() {
        let own = Best { score: score_of(candidate), before: None };
        let mut found = begins_well(candidate).then_some(own);
        for (before, earlier) in candidates.iter().enumerate().take(at) {
            let Some(Some(known)) = best.get(before) else { continue };
            if !follows(earlier, candidate) {
                continue;
            }
            let score = add(known.score, own.score);
            if found.is_none_or(|found| found.score < score) {
                found = Some(Best { score, before: Some(before) });
            }
        }
        best.push(found);
    }
    let mut chosen = HashSet::new();
    let last = (0..best.len()).max_by_key(|at| best.get(*at).and_then(|best| best.map(|best| best.score)));
    let mut next = last.filter(|at| best.get(*at).is_some_and(Option::is_some));
    while let Some(at) = next {
        chosen.insert(at);
        next = best.get(at).and_then(|best| best.and_then(|best| best.before));
    }
    // What nothing else holds: the longest first.
    let mut rest: Vec<usize> = (0..candidates.len()).filter(|at| !chosen.contains(at)).collect();
    rest.sort_by_key(|at| {
        candidates.get(*at).map(|candidate| std::cmp::Reverse((range(candidate).len(), candidate.known)))
    });
    for at in rest {
        let Some(own) = candidates.get(at) else { continue };
        let overlaps = |other: &usize| {
            candidates.get(*other).is_some_and(|other| range(other).intersect(range(own)).is_some())
        };
        if !chosen.iter().any(overlaps) {
            chosen.insert(at);
        }
    }
    let (mut taken, mut left) = (Vec::new(), Vec::new());
    for (at, candidate) in candidates.into_iter().enumerate() {
        if chosen.contains(&at) { taken.push(candidate) } else { left.push(candidate) }
    }
    (taken, left)
}

fn range(candidate: &Candidate) -> LsnRange {
    LsnRange::new(candidate.entry.start, candidate.entry.end)
}

fn score_of(candidate: &Candidate) -> Score {
    (range(candidate).len(), u64::from(candidate.known), -1)
}

fn add(a: Score, b: Score) -> Score {
    (a.0 + b.0, a.1 + b.1, a.2 + b.2)
}

fn epoch(candidate: &Candidate) -> Option<(ObjectId, crate::base::Lsn)> {
    candidate.entry.deltas.as_ref().map(|deltas| (deltas.epoch.id, deltas.epoch.start))
}

/// Whether what it holds can be decoded without any before it.
fn begins_well(candidate: &Candidate) -> bool {
    epoch(candidate).is_none_or(|(_, start)| start >= candidate.entry.start)
}

/// Whether `next` can be decoded after `before`.
fn follows(before: &Candidate, next: &Candidate) -> bool {
    if before.entry.end > next.entry.start {
        return false;
    }
    let joined = before.entry.end == next.entry.start;
    let same_epoch = epoch(before).map(|(id, _)| id) == epoch(next).map(|(id, _)| id);
    begins_well(next) || (joined && same_epoch)
}

#[cfg(test)]
mod tests;
