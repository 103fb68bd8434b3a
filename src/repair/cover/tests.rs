//! Runs of segments out of what a compaction, a merge and a lost race leave behind.

use super::*;
use crate::base::{Generation, Lsn, TimelineId, Timestamp};
use crate::format::wal::{DeltaEpoch, DeltaStats, WalDeltas, WalSummary};
use crate::repo::spans::Spans;
use proptest::prelude::*;

const PLACE: (Generation, TimelineId) = (Generation(1), TimelineId(1));

/// Nothing is held by flush objects.
fn choose(candidates: Vec<Candidate>) -> (Vec<Candidate>, Vec<Candidate>) {
    super::choose(candidates, &Spans::default())
}

/// A segment that an index names and that does not open.
fn closed(id: u8, start: u64, end: u64, epoch: Option<(u8, u64)>) -> Candidate {
    Candidate { readable: false, ..candidate(id, start, end, epoch, true) }
}

fn flushed(start: u64, end: u64) -> Spans {
    let mut held = Spans::default();
    held.add(PLACE, LsnRange::new(Lsn::new(start), Lsn::new(end)));
    held
}

fn candidate(id: u8, start: u64, end: u64, epoch: Option<(u8, u64)>, known: bool) -> Candidate {
    let deltas = epoch.map(|(id, start)| WalDeltas {
        epoch: DeltaEpoch { id: ObjectId([id; 16]), start: Lsn::new(start), root: 1, cache_pages: 1 },
        base: None,
        stats: DeltaStats::EMPTY,
    });
    let entry = WalEntry {
        id: ObjectId([id; 16]),
        generation: Generation(1),
        timeline: TimelineId(1),
        start: Lsn::new(start),
        end: Lsn::new(end),
        object_len: 1,
        directory_offset: 0,
        server_time: Timestamp::from_micros(0),
        summary: WalSummary::empty(),
        deltas,
    };
    Candidate { entry, known, readable: true }
}

fn ids(candidates: &[Candidate]) -> Vec<u8> {
    candidates.iter().map(|candidate| candidate.entry.id.0[0]).collect()
}

#[test]
fn the_merged_segment_is_taken_and_not_what_it_was_merged_of() {
    let (taken, left) = choose(vec![
        candidate(1, 0, 10, None, false),
        candidate(2, 10, 20, None, false),
        candidate(3, 0, 20, None, false),
        candidate(4, 20, 30, None, false),
    ]);
    assert_eq!((ids(&taken), ids(&left)), (vec![3, 4], vec![1, 2]));
}

#[test]
fn segments_that_an_index_names_go_before_others_with_the_same_bytes() {
    let (taken, _) = choose(vec![candidate(1, 0, 10, None, false), candidate(2, 0, 10, None, true)]);
    assert_eq!(ids(&taken), [2]);
}

#[test]
fn epochs_of_a_lost_race_do_not_mix_with_those_that_won() {
    // Epoch 8 won: two segments. Epoch 9 lost: one, of the same WAL as the first.
    let (taken, left) = choose(vec![
        candidate(1, 0, 10, Some((8, 0)), false),
        candidate(2, 10, 20, Some((8, 0)), false),
        candidate(3, 0, 10, Some((9, 0)), false),
    ]);
    assert_eq!((ids(&taken), ids(&left)), (vec![1, 2], vec![3]));
}

#[test]
fn what_cannot_be_decoded_is_taken_when_nothing_else_holds_it() {
    // The first segment of the epoch is gone.
    let (taken, left) = choose(vec![
        candidate(1, 0, 10, None, false),
        candidate(2, 20, 30, Some((8, 10)), false),
        candidate(3, 30, 40, None, false),
    ]);
    assert_eq!((ids(&taken), ids(&left)), (vec![1, 2, 3], vec![]));
}

#[test]
fn a_leftover_is_taken_for_the_bytes_of_a_segment_that_does_not_open() {
    // 1 is not there at all, or does not open; 3 was merged or lost a race.
    let (taken, _) = choose(vec![candidate(2, 30, 94, None, false), candidate(3, 0, 40, None, false)]);
    assert_eq!(ids(&taken), [3, 2]);
    let all =
        vec![closed(1, 0, 30, None), candidate(2, 30, 94, None, true), candidate(3, 0, 40, None, false)];
    let (taken, left) = choose(all);
    assert_eq!((ids(&taken), ids(&left)), (vec![3, 2], vec![1]));
}

#[test]
fn a_known_segment_that_does_not_open_stays_where_nothing_else_holds_all_of_it() {
    let (taken, _) = choose(vec![closed(1, 0, 30, None), candidate(2, 30, 94, None, true)]);
    assert_eq!(ids(&taken), [1, 2]);
    let (taken, _) = choose(vec![closed(1, 0, 30, None), candidate(2, 10, 94, None, false)]);
    assert_eq!(ids(&taken), [1, 2]);
    // What comes after it in its epoch can be decoded again on the day that it opens.
    let epoch = Some((8, 0));
    let all =
        vec![closed(1, 0, 30, epoch), candidate(2, 30, 94, epoch, true), candidate(3, 0, 30, None, false)];
    let (taken, _) = choose(all);
    assert_eq!(ids(&taken), [1, 3, 2]);
}

#[test]
fn of_two_segments_of_the_same_wal_the_one_without_deltas_is_taken() {
    // The first was encoded, failed its proof, and was stored again.
    let both = [candidate(1, 0, 10, Some((8, 0)), false), candidate(2, 0, 10, None, false)];
    assert_eq!(ids(&choose(both.to_vec()).0), [2]);
    // But for what is known: then it passed.
    let both = [candidate(1, 0, 10, Some((8, 0)), true), candidate(2, 0, 10, None, false)];
    assert_eq!(ids(&choose(both.to_vec()).0), [1]);
}

#[test]
fn what_reaches_into_flush_objects_is_taken_only_for_what_they_do_not_hold() {
    let segments = || vec![candidate(1, 0, 100, None, false), candidate(2, 100, 130, None, false)];
    let (taken, left) = super::choose(segments(), &flushed(100, 200));
    assert_eq!((ids(&taken), ids(&left)), (vec![1], vec![2]));
    let (taken, _) = super::choose(segments(), &flushed(110, 200));
    assert_eq!(ids(&taken), [1, 2], "100..110 is nowhere else");
    let known = vec![candidate(1, 0, 130, None, true)];
    assert_eq!(ids(&super::choose(known, &flushed(100, 200)).0), [1], "a root led to it");
}

#[test]
fn what_a_segment_is_decoded_from_comes_with_it() {
    // Of 2 the end is needed, and 2 is decoded after 1; the rest of its epoch is gone.
    let epoch = Some((8, 0));
    let (taken, _) = choose(vec![
        candidate(1, 0, 10, epoch, false),
        candidate(2, 20, 50, epoch, false),
        candidate(3, 0, 45, None, true),
        candidate(4, 50, 99, None, true),
    ]);
    assert_eq!(ids(&taken), [1, 3, 2, 4]);
}

/// The best run, by trying every predecessor of every segment.
fn best_of_all(candidates: &[Candidate]) -> Score {
    let mut best: Vec<Option<Score>> = Vec::new();
    for next in candidates {
        let mut found = begins_well(next).then_some(score_of(next));
        for (before, known) in candidates.iter().zip(&best) {
            let Some(known) = known else { continue };
            let same = epoch(before).map(|(id, _)| id) == epoch(next).map(|(id, _)| id);
            let joined = before.entry.end == next.entry.start && same;
            if before.entry.end <= next.entry.start && (begins_well(next) || joined) {
                found = found.max(Some(add(*known, score_of(next))));
            }
        }
        best.push(found);
    }
    best.into_iter().flatten().max().unwrap_or(NOTHING).max(NOTHING)
}

#[test]
fn two_hundred_thousand_segments_are_chosen_from_in_a_moment() {
    let began = std::time::Instant::now();
    let all = (0..200_000u64).map(|at| {
        let (start, epoch) = (at / 2 * 16, ((at / 64) as u8, at / 64 * 512));
        let mut one = candidate(0, start, start + 16, Some(epoch), at % 2 == 0);
        one.entry.id = ObjectId(u128::from(at).to_be_bytes());
        one
    });
    let (taken, left) = choose(all.collect());
    assert_eq!((taken.len(), left.len()), (100_000, 100_000));
    assert!(began.elapsed().as_secs() < 60, "{:?}", began.elapsed());
}

proptest! {
    /// The run is the best there is, and no byte that something readable holds is left out.
    #[test]
    fn the_run_is_the_best_and_no_byte_is_left_out(
        segments in proptest::collection::vec(
            (0u64..40, 1u64..12, proptest::option::of((0u8..3, 0u64..40)), any::<bool>(), any::<bool>()), 0..24
        ),
        held in (0u64..40, 0u64..12),
    ) {
        let mut all: Vec<Candidate> = (0u8..).zip(segments)
            .map(|(id, (start, len, epoch, known, opens))| Candidate {
                readable: opens || !known,
                ..candidate(id, start, start + len, epoch, known)
            })
            .collect();
        all.sort_by_key(|candidate| (candidate.entry.start, candidate.entry.end, candidate.entry.id));
        let run = best_run(&all.iter().collect::<Vec<_>>());
        let found = run.iter().fold(NOTHING, |score, at| add(score, score_of(&all[*at])));
        prop_assert_eq!(found, best_of_all(&all));
        prop_assert!(run.windows(2).all(|pair| all[pair[1]].entry.end <= all[pair[0]].entry.start));
        let held = flushed(held.0, held.0 + held.1);
        let count = all.len();
        let (taken, left) = super::choose(all, &held);
        prop_assert_eq!(taken.len() + left.len(), count);
        let mut there = held.clone();
        taken.iter().filter(|one| one.readable).for_each(|one| there.add(PLACE, range(one)));
        for one in &left {
            prop_assert!(there.covers(PLACE, range(one)), "{:?}", one.entry.id);
        }
    }
}
