//! Which small segments are merged, and what their delta frames are made of then.

use super::*;
use crate::base::BackupId;
use crate::format::wal::{DeltaEpoch, DeltaStats};

fn deltas(epoch: u8, base: Option<&str>, images: u64) -> WalDeltas {
    let id = ObjectId([epoch; 16]);
    WalDeltas {
        epoch: DeltaEpoch { id, start: Lsn::new(0), root: 1, cache_pages: 1 },
        base: base.map(|id| id.parse::<BackupId>().unwrap()),
        stats: DeltaStats { images, ..DeltaStats::EMPTY },
    }
}

fn entry(start: u64, deltas: Option<WalDeltas>) -> WalEntry {
    WalEntry {
        id: ObjectId([start as u8; 16]),
        generation: Generation(1),
        timeline: TimelineId(1),
        start: Lsn::new(start),
        end: Lsn::new(start + 1),
        object_len: 1,
        directory_offset: 1,
        server_time: Timestamp::from_micros(0),
        summary: WalSummary::empty(),
        deltas,
    }
}

const ONE: Option<&str> = Some("20261122T195501Z");
const OTHER: Option<&str> = Some("20261123T195501Z");

/// The runs that are merged, each by its first and last segment's start, and what its delta frames are made of.
fn merges(all: Vec<Option<WalDeltas>>) -> Vec<(u64, u64, Option<WalDeltas>)> {
    merges_but_for(&[], all)
}

/// The same where segments with these starts cannot be read.
fn merges_but_for(unreadable: &[u8], all: Vec<Option<WalDeltas>>) -> Vec<(u64, u64, Option<WalDeltas>)> {
    let unreadable = unreadable.iter().map(|start| ObjectId([*start; 16])).collect();
    let wal = all.into_iter().zip(0..).map(|(deltas, start)| entry(start, deltas)).collect();
    let index = Index { wal, ..Index::default() };
    let mut jobs = Vec::new();
    plan_merges(&index, Generation(1), (Extent::All, &unreadable), &mut jobs);
    let run = |job: Job| match job.replaces {
        Replaces::Segments { deltas, .. } => (job.start.get(), job.end.get(), deltas),
        Replaces::Flushes { .. } => panic!("nothing was received"),
    };
    jobs.into_iter().map(run).collect()
}

#[test]
fn segments_of_one_epoch_and_one_base_are_merged() {
    let before_its_base = || Some(deltas(1, None, 1));
    let found = merges(vec![before_its_base(), None, Some(deltas(1, ONE, 2)), Some(deltas(1, ONE, 4))]);
    assert_eq!(found, [(0, 4, Some(deltas(1, ONE, 7)))]);
    assert_eq!(merges(vec![None, None]), [(0, 2, None)]);
}

#[test]
fn segments_of_two_epochs_or_two_bases_are_not() {
    let found =
        merges(vec![Some(deltas(1, ONE, 0)), None, Some(deltas(1, OTHER, 0)), Some(deltas(2, OTHER, 0))]);
    assert_eq!(found, [(0, 2, Some(deltas(1, ONE, 0)))]);
    let found = merges(vec![Some(deltas(1, None, 0)), Some(deltas(2, None, 0)), Some(deltas(2, None, 0))]);
    assert_eq!(found, [(1, 3, Some(deltas(2, None, 0)))]);
}

#[test]
fn a_segment_that_cannot_be_read_keeps_nobody_from_merging_the_others() {
    assert_eq!(merges_but_for(&[2], vec![None; 5]), [(0, 2, None), (3, 5, None)]);
    assert_eq!(merges_but_for(&[1], vec![None; 3]), []);
}
