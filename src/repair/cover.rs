//! Which of the segments of WAL that lie around make up an index. Pure.
//!
//! Beside those that an index named there may be some that it had let go (merged into larger ones), and some that a compaction stored
//! which lost its race. All hold the same bytes; but delta frames are decoded in the order of their epoch, from its start, so segments
//! of different origin do not mix. Chosen is the run of segments that fit each other and hold the most; of equal ones, the best known,
//! those without deltas (a segment whose deltas failed their proof lies beside the plain one that took its place), and the fewest. Then
//! comes whatever holds a byte that nothing chosen does, and what that needs of its epoch.
//!
//! Invariant: no byte that a segment holds is left out, unless a segment that can be read, or a flush object, holds it. Segments may
//! overlap: readers take a byte from any of them.
//!
//! Time: n log n in the number of segments.

use crate::base::{Generation, Lsn, LsnRange, ObjectId, TimelineId};
use crate::format::index::WalEntry;
use crate::repo::spans::Spans;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};

/// A segment that lies there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// What the index would say of it.
    pub entry: WalEntry,
    /// Whether an index object that can be read names it.
    pub known: bool,
    /// Whether it opens. One that does not is a candidate only when it is known.
    pub readable: bool,
}

/// How good a run is: bytes that can be read, then known ones, then bytes without deltas, then few.
type Score = (u64, u64, u64, i64);
const NOTHING: Score = (0, 0, 0, 0);

#[derive(Debug, Clone, Copy)]
struct Best {
    score: Score,
    before: Option<usize>,
}

/// The candidates to take, of one timeline and generation, in order; the others are not needed. `held` is the WAL of flush objects:
/// segments that reach into it are of a compaction which never came to its root, unless they are known.
pub fn choose(mut candidates: Vec<Candidate>, held: &Spans) -> (Vec<Candidate>, Vec<Candidate>) {
    candidates.sort_by_key(|candidate| (candidate.entry.start, candidate.entry.end, candidate.entry.id));
    let mut choice = Choice::new(&candidates, held);
    choice.take_best_run();
    choice.take_what_nothing_else_holds();
    choice.take_what_epochs_need();
    choice.take_what_cannot_be_read();
    let chosen = choice.chosen;
    let (mut taken, mut left) = (Vec::new(), Vec::new());
    for (at, candidate) in candidates.into_iter().enumerate() {
        if chosen.contains(&at) { taken.push(candidate) } else { left.push(candidate) }
    }
    (taken, left)
}

struct Choice<'a> {
    candidates: &'a [Candidate],
    /// Where in the candidates the chosen ones stand.
    chosen: BTreeSet<usize>,
    /// What flush objects and chosen segments hold that can be read.
    covered: Spans,
    held: &'a Spans,
}

impl<'a> Choice<'a> {
    fn new(candidates: &'a [Candidate], held: &'a Spans) -> Choice<'a> {
        Choice { candidates, chosen: BTreeSet::new(), covered: held.clone(), held }
    }

    fn take(&mut self, at: usize, candidate: &Candidate) {
        self.chosen.insert(at);
        if candidate.readable {
            self.covered.add(place(candidate), range(candidate));
        }
    }

    /// Those that are not chosen, with where they stand.
    fn rest(&self) -> Vec<(usize, &'a Candidate)> {
        let all = self.candidates.iter().enumerate();
        all.filter(|(at, candidate)| !self.chosen.contains(at) && !range(candidate).is_empty()).collect()
    }

    fn take_best_run(&mut self) {
        let run =
            |candidate: &&Candidate| candidate.known || !self.held.meets(place(candidate), range(candidate));
        let all = self.rest();
        let fit: Vec<(usize, &Candidate)> = all.into_iter().filter(|(_, candidate)| run(candidate)).collect();
        let just: Vec<&Candidate> = fit.iter().map(|(_, candidate)| *candidate).collect();
        for number in best_run(&just) {
            // What cannot be read joined the run only so that what comes after it may follow.
            if let Some((at, candidate)) = fit.get(number).filter(|(_, candidate)| candidate.readable) {
                self.take(*at, candidate);
            }
        }
    }

    fn take_what_nothing_else_holds(&mut self) {
        let mut rest = self.rest();
        rest.retain(|(_, candidate)| candidate.readable);
        rest.sort_by_key(|(at, candidate)| {
            (Reverse(candidate.known), epoch(candidate).is_some(), Reverse(range(candidate).len()), *at)
        });
        for (at, candidate) in rest {
            if !self.covered.covers(place(candidate), range(candidate)) {
                self.take(at, candidate);
            }
        }
    }

    /// What a chosen segment is decoded from: all of its epoch before it, though others hold the same bytes. Also what cannot be read
    /// now: if it can be one day, everything after it can be.
    fn take_what_epochs_need(&mut self) {
        let mut needed: BTreeMap<ObjectId, (LsnRange, Spans)> = BTreeMap::new();
        for candidate in self.chosen.iter().filter_map(|at| self.candidates.get(*at)) {
            let Some((id, start)) = epoch(candidate) else { continue };
            let none = || (LsnRange::new(start, start), Spans::default());
            let (wanted, have) = needed.entry(id).or_insert_with(none);
            wanted.end = wanted.end.max(candidate.entry.start);
            have.add(place(candidate), range(candidate));
        }
        let mut rest = self.rest();
        rest.sort_by_key(|(at, candidate)| {
            (Reverse(candidate.readable), Reverse(candidate.known), Reverse(range(candidate).len()), *at)
        });
        for (at, candidate) in rest {
            let of_epoch = epoch(candidate).and_then(|(id, _)| needed.get_mut(&id));
            let Some((wanted, have)) = of_epoch else { continue };
            let part = range(candidate).intersect(*wanted);
            if part.is_some_and(|part| !have.covers(place(candidate), part)) {
                have.add(place(candidate), range(candidate));
                self.take(at, candidate);
            }
        }
    }

    /// Known segments that do not open stay named where nothing else holds all of their bytes.
    fn take_what_cannot_be_read(&mut self) {
        for (at, candidate) in self.rest() {
            if !candidate.readable && !self.covered.covers(place(candidate), range(candidate)) {
                self.take(at, candidate);
            }
        }
    }
}

/// The numbers of the best run of `candidates`, which are in order of their start.
fn best_run(candidates: &[&Candidate]) -> Vec<usize> {
    let mut best: Vec<Option<Best>> = Vec::with_capacity(candidates.len());
    let score = |best: &[Option<Best>], at: Option<usize>| {
        at.and_then(|at| best.get(at).copied().flatten()).map_or(NOTHING, |best| best.score)
    };
    // Runs so far by where they end, and of those that end at or before the segment at hand the best.
    let mut ending: BinaryHeap<Reverse<(Lsn, usize)>> = BinaryHeap::new();
    let mut ended: Option<usize> = None;
    // The best that ends at a place within an epoch.
    let mut open: HashMap<(ObjectId, Lsn), usize> = HashMap::new();
    for (at, candidate) in candidates.iter().enumerate() {
        while let Some(Reverse((end, run))) = ending.peek().copied()
            && end <= candidate.entry.start
        {
            ending.pop();
            if score(&best, Some(run)) > score(&best, ended) {
                ended = Some(run);
            }
        }
        let goes_on = epoch(candidate).and_then(|(id, _)| open.get(&(id, candidate.entry.start)).copied());
        let before = if begins_well(candidate) { ended } else { goes_on };
        if before.is_none() && !begins_well(candidate) {
            best.push(None);
            continue;
        }
        let own = add(score(&best, before), score_of(candidate));
        best.push(Some(Best { score: own, before }));
        ending.push(Reverse((candidate.entry.end, at)));
        if let Some((id, _)) = epoch(candidate) {
            let longest = open.entry((id, candidate.entry.end)).or_insert(at);
            if own > score(&best, Some(*longest)) {
                *longest = at;
            }
        }
    }
    let mut next = (0..best.len()).max_by_key(|at| score(&best, Some(*at)));
    let mut run = Vec::new();
    while let Some(at) = next {
        let Some(found) = best.get(at).copied().flatten() else { break };
        run.push(at);
        next = found.before;
    }
    run
}

fn place(candidate: &Candidate) -> (Generation, TimelineId) {
    (candidate.entry.generation, candidate.entry.timeline)
}

fn range(candidate: &Candidate) -> LsnRange {
    LsnRange::new(candidate.entry.start, candidate.entry.end.max(candidate.entry.start))
}

fn score_of(candidate: &Candidate) -> Score {
    let readable = if candidate.readable { range(candidate).len() } else { 0 };
    let plain = if epoch(candidate).is_none() { readable } else { 0 };
    (readable, u64::from(candidate.known), plain, -1)
}

fn add(a: Score, b: Score) -> Score {
    (a.0 + b.0, a.1 + b.1, a.2 + b.2, a.3 + b.3)
}

fn epoch(candidate: &Candidate) -> Option<(ObjectId, Lsn)> {
    candidate.entry.deltas.as_ref().map(|deltas| (deltas.epoch.id, deltas.epoch.start))
}

/// Whether what it holds can be decoded without any before it.
fn begins_well(candidate: &Candidate) -> bool {
    epoch(candidate).is_none_or(|(_, start)| start >= candidate.entry.start)
}

#[cfg(test)]
mod tests;
