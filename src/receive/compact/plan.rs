//! What there is to compact. Pure.

use super::Extent;
use crate::base::{Generation, Lsn, ObjectId, StreamId, TimelineId, Timestamp, limits};
use crate::format::index::WalEntry;
use crate::format::wal::{WalDeltas, WalSummary};
use crate::repo::Index;
use crate::repo::chain::{Chain, ChainEnd, ChainObject};
use crate::repo::walmap::Snapshot;
use std::collections::HashSet;

/// Segments written by one commit.
const SEGMENTS_PER_COMMIT: usize = 16;
/// Neighbours at most this long are merged.
const SMALL_BYTES: u64 = limits::WAL_SEGMENT_BYTES_MAX / 4;
/// Small neighbours that are worth a merge in the background.
const SMALL_RUN: usize = 8;

/// One segment to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its generation.
    pub generation: Generation,
    /// Its timeline.
    pub timeline: TimelineId,
    /// Its first byte.
    pub start: Lsn,
    /// One past its last byte.
    pub end: Lsn,
    /// The server's clock when everything up to `end` had been sent.
    pub server_time: Timestamp,
    /// What it holds.
    pub summary: WalSummary,
    /// What goes when it is there.
    pub replaces: Replaces,
}

/// What a segment replaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replaces {
    /// Flush objects `from..to` of a stream; `link` is the last one's.
    Flushes {
        /// The stream.
        stream: StreamId,
        /// The first number.
        from: u64,
        /// One past the last.
        to: u64,
        /// The link of the last one.
        link: [u8; 32],
        /// The key epoch of the last one.
        key_epoch: u32,
        /// From here on its frames are plain: a receiver that starts again compares the newest bytes with what the server sends.
        plain_from: Lsn,
    },
    /// Segments, whose frames stay as they are where they are delta frames.
    Segments {
        /// Which.
        ids: Vec<ObjectId>,
        /// What their delta frames are made of.
        deltas: Option<WalDeltas>,
    },
}

/// What one commit does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Segments to write: a bounded number, oldest first.
    pub jobs: Vec<Job>,
    /// Streams that are fenced, wholly compacted and no longer needed to find the end of WAL. Their fences stay.
    pub finished: Vec<StreamId>,
}

/// What there is to do. Segments of `unreadable` are not merged.
pub fn plan(snapshot: &Snapshot, extent: Extent, unreadable: &HashSet<ObjectId>) -> Plan {
    let mut jobs = Vec::new();
    let newest = snapshot.wal.durable_end();
    for chain in snapshot.wal.chains() {
        plan_chain(chain, extent, &mut jobs);
    }
    if jobs.is_empty() {
        plan_merges(&snapshot.index, snapshot.wal.generation(), (extent, unreadable), &mut jobs);
    }
    for job in &mut jobs {
        if let Replaces::Flushes { plain_from, .. } = &mut job.replaces
            && newest.is_some_and(|newest| (newest.timeline, newest.lsn) == (job.timeline, job.end))
        {
            *plain_from = job.start.max(job.end.saturating_sub(limits::RESUME_OVERLAP_BYTES));
        }
    }
    jobs.truncate(SEGMENTS_PER_COMMIT);
    Plan { jobs, finished: finished_streams(snapshot.wal.chains()) }
}

/// A stream leaves the root when nothing of it is left to compact, nobody can write to it any more, and a later one
/// says where WAL ends.
fn finished_streams(chains: &[Chain]) -> Vec<StreamId> {
    let newest_with_end = chains.iter().rposition(|chain| chain.end_lsn().is_some()).unwrap_or(0);
    let finished = |chain: &&Chain| {
        chain.objects.is_empty()
            && matches!(chain.end, ChainEnd::Fenced { number, .. } if number == chain.stream.low_water)
    };
    chains.iter().take(newest_with_end).filter(finished).map(|chain| chain.stream.id).collect()
}

/// Cuts a chain into runs. Whole runs always go; the rest goes with [`Extent::All`], or when nothing can be added to it: the stream is
/// closed, or what came next is lost.
fn plan_chain(chain: &Chain, extent: Extent, jobs: &mut Vec<Job>) {
    let closed = matches!(chain.end, ChainEnd::Fenced { .. }) || !chain.lost.is_empty();
    let mut run: Vec<&ChainObject> = Vec::new();
    let mut bytes = 0;
    for object in &chain.objects {
        let len = object.meta.end.bytes_since(object.meta.start);
        if bytes > 0 && bytes + len > limits::WAL_SEGMENT_BYTES_MAX {
            jobs.extend(flush_job(chain, &run));
            (run, bytes) = (Vec::new(), 0);
        }
        bytes += len;
        run.push(object);
    }
    if extent == Extent::All || closed || bytes >= limits::WAL_SEGMENT_BYTES_MAX {
        jobs.extend(flush_job(chain, &run));
    }
}

fn flush_job(chain: &Chain, run: &[&ChainObject]) -> Option<Job> {
    let (first, last) = (run.first()?, run.last()?);
    let mut summary = WalSummary::empty();
    run.iter().for_each(|object| summary.extend(&object.meta.summary));
    Some(Job {
        generation: chain.stream.generation,
        timeline: chain.stream.timeline,
        start: first.meta.start,
        end: last.meta.end,
        server_time: last.meta.server_time,
        summary,
        replaces: Replaces::Flushes {
            stream: chain.stream.id,
            from: first.number,
            to: last.number + 1,
            link: last.link,
            key_epoch: last.key_epoch,
            plain_from: last.meta.end,
        },
    })
}

/// Runs of neighbours that fit into one segment together.
fn plan_merges(
    index: &Index,
    generation: Generation,
    (extent, unreadable): (Extent, &HashSet<ObjectId>),
    jobs: &mut Vec<Job>,
) {
    let mut run: Vec<&WalEntry> = Vec::new();
    let length = |run: &[&WalEntry]| run.iter().map(|e| e.end.bytes_since(e.start)).sum::<u64>();
    let enough = |run: &[&WalEntry]| run.len() >= if extent == Extent::All { 2 } else { SMALL_RUN };
    for entry in index.wal.iter().filter(|entry| entry.generation == generation) {
        let small = entry.end.bytes_since(entry.start) <= SMALL_BYTES && !unreadable.contains(&entry.id);
        let joins = run.last().is_some_and(|last| last.timeline == entry.timeline && last.end == entry.start)
            && of_one_epoch(run.iter().chain([&entry]).filter_map(|entry| entry.deltas.as_ref()))
            && length(&run) + entry.end.bytes_since(entry.start) <= limits::WAL_SEGMENT_BYTES_MAX;
        if !(small && joins) {
            if enough(&run) {
                jobs.extend(merge_job(&run));
            }
            run.clear();
        }
        if small {
            run.push(entry);
        }
    }
    if enough(&run) {
        jobs.extend(merge_job(&run));
    }
}

fn merge_job(run: &[&WalEntry]) -> Option<Job> {
    let (first, last) = (run.first()?, run.last()?);
    let mut summary = WalSummary::empty();
    run.iter().for_each(|entry| summary.extend(&entry.summary));
    let deltas = merged(run.iter().filter_map(|entry| entry.deltas.as_ref()));
    Some(Job {
        generation: first.generation,
        timeline: first.timeline,
        start: first.start,
        end: last.end,
        server_time: last.server_time,
        summary,
        replaces: Replaces::Segments { ids: run.iter().map(|entry| entry.id).collect(), deltas },
    })
}

/// Whether delta frames of all these may lie in one segment: one epoch, and no two bases.
fn of_one_epoch<'a>(all: impl Iterator<Item = &'a WalDeltas> + Clone) -> bool {
    let mut bases = all.clone().filter_map(|deltas| deltas.base.as_ref());
    let mut epochs = all.map(|deltas| deltas.epoch.id);
    let (base, epoch) = (bases.next(), epochs.next());
    bases.all(|other| Some(other) == base) && epochs.all(|other| Some(other) == epoch)
}

/// What the delta frames of all these are made of: frames made before the epoch had its base do not refer to it.
fn merged<'a>(all: impl Iterator<Item = &'a WalDeltas>) -> Option<WalDeltas> {
    all.cloned().reduce(|mut one, other| {
        one.base = one.base.or(other.base);
        one.stats.add(&other.stats);
        one
    })
}

#[cfg(test)]
mod tests;
