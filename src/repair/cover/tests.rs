//! Runs of segments out of what a compaction, a merge and a lost race leave behind.

use super::*;
use crate::base::{Generation, Lsn, TimelineId, Timestamp};
use crate::format::wal::{DeltaEpoch, DeltaStats, WalDeltas, WalSummary};
use proptest::prelude::*;

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
    Candidate { entry, known }
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

proptest! {
    /// Nothing chosen overlaps, and what is left out is held by something chosen, as far as it overlaps any.
    #[test]
    fn nothing_overlaps_and_nothing_alone_is_left_out(
        segments in proptest::collection::vec((0u64..40, 1u64..12, proptest::option::of((0u8..3, 0u64..40)), any::<bool>()), 0..24)
    ) {
        let all: Vec<Candidate> = (0u8..).zip(segments)
            .map(|(id, (start, len, epoch, known))| candidate(id, start, start + len, epoch, known))
            .collect();
        let count = all.len();
        let (taken, left) = choose(all);
        prop_assert_eq!(taken.len() + left.len(), count);
        prop_assert!(taken.windows(2).all(|pair| pair[0].entry.end <= pair[1].entry.start));
        for candidate in &left {
            prop_assert!(taken.iter().any(|other| range(other).intersect(range(candidate)).is_some()));
        }
    }
}
