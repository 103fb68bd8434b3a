//! Fences: what ends a stream, so that nobody adds to it any more. Spec: formats/wal.md.
//! A fence wins the first absent number of a stream, counted from the root that is the newest when it is made, and never before
//! a root forbids what could still be written: compaction could still move what is counted from.

use super::chain::{self, Chain, ChainEnd, Losses, Numbered};
use super::cluster::Cluster;
use super::error::RepoError;
use super::layout;
use super::repository::Created;
use crate::base::StreamId;
use crate::base::planted::{Bug, planted};
use crate::format::header::ObjectKind;
use crate::format::record::Record;
use crate::format::root::{Root, StreamEntry};
use crate::format::wal::FenceMeta;

/// No fence takes as much.
pub const FENCE_BYTES_MAX: u64 = 4096;
/// The successor of a stream after which its generation ends.
const NOBODY: StreamId = StreamId([0; 16]);

/// Fences every stream of the generations before that of `root`, which is the newest: nobody adds to them any more. Finds them fenced
/// when it is done again.
pub async fn close_generations(cluster: &Cluster, root: &Root) -> Result<(), RepoError> {
    for older in root.streams.iter().filter(|stream| stream.generation < root.generation) {
        match close(cluster, older, NOBODY, root.writer_epoch).await {
            // A receiver of the generation that began closed it.
            Ok(_) | Err(RepoError::Fenced { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Fences every stream that `root`, the newest, names.
pub async fn close_all(cluster: &Cluster, root: &Root) -> Result<(), RepoError> {
    for stream in &root.streams {
        match close(cluster, stream, NOBODY, root.writer_epoch).await {
            // Nobody will read it: its writer is to stop, whatever is wrong with what it wrote.
            Err(error) if error.is_damage() => {
                close_unread(cluster, stream.id, stream.low_water, root.writer_epoch).await?;
            }
            closed => drop(closed?),
        }
    }
    Ok(())
}

/// Fences a stream at its first absent number from `number` on, whatever is wrong with its objects, and whether or not a root names it.
pub async fn close_unread(
    cluster: &Cluster,
    stream: StreamId,
    mut number: u64,
    writer_epoch: u64,
) -> Result<(), RepoError> {
    loop {
        let key = layout::flush(cluster.name(), stream, number);
        let writer = cluster.repo().writer(ObjectKind::Fence, &key, stream.0, number, writer_epoch);
        let fence =
            FenceMeta { successor: NOBODY, writer_epoch, previous_link: [0; 32], extensions: Vec::new() };
        match cluster.repo().create(&key, &writer.finish(fence.encode()).bytes).await? {
            Created::Ours => return Ok(()),
            Created::Taken(bytes) => match chain::open_numbered(cluster, stream, number, bytes).await {
                Ok(Numbered::Fence(_)) => return Ok(()),
                Ok(Numbered::Flush(_)) => number += 1,
                Err(error) if error.is_damage() => number += 1,
                Err(error) => return Err(error),
            },
        }
    }
}

/// Fences `older` at its first absent number, or finds it fenced.
pub async fn close(
    cluster: &Cluster,
    older: &StreamEntry,
    successor: StreamId,
    writer_epoch: u64,
) -> Result<Chain, RepoError> {
    loop {
        let chain = chain::read(cluster, older, Losses::PassedBy).await?;
        let number = match &chain.end {
            ChainEnd::Fenced { number, fence } if fence.writer_epoch > writer_epoch => {
                return Err(fenced(successor, *number, fence.writer_epoch));
            }
            ChainEnd::Fenced { .. } => return Ok(chain),
            ChainEnd::Open { next } => *next,
        };
        for lost in &chain.lost {
            tracing::error!(key = %lost.key, "an object of stream {} is lost: {}", older.id, lost.reason);
        }
        if planted(Bug::FenceSkipped) {
            return Ok(chain);
        }
        let key = layout::flush(cluster.name(), older.id, number);
        let writer = cluster.repo().writer(ObjectKind::Fence, &key, older.id.0, number, writer_epoch);
        let fence =
            FenceMeta { successor, writer_epoch, previous_link: chain.end_link(), extensions: Vec::new() };
        match cluster.repo().create(&key, &writer.finish(fence.encode()).bytes).await? {
            Created::Ours => {
                check_low_water(cluster, older, number).await?;
                return Ok(Chain { end: ChainEnd::Fenced { number, fence }, ..chain });
            }
            // A flush object won the number, or another fence: the chain is longer than it was, or closed.
            Created::Taken(bytes) => match chain::open_numbered(cluster, older.id, number, bytes).await? {
                Numbered::Flush(_) | Numbered::Fence(_) => {}
            },
        }
    }
}

/// Refuses a fence below what was compacted meanwhile: its number may have been won before, and collected. The caller
/// starts again, and counts from the newer root.
async fn check_low_water(cluster: &Cluster, older: &StreamEntry, number: u64) -> Result<(), RepoError> {
    let root = cluster.newest_root().await?;
    let low_water = root.streams.iter().find(|entry| entry.id == older.id).map(|entry| entry.low_water);
    if low_water.is_some_and(|low_water| low_water <= number) {
        return Ok(());
    }
    let reason = format!("stream {} was compacted and collected while it was being closed", older.id);
    Err(RepoError::Conflict { reason })
}

/// What a writer is told whose number was won by a fence.
pub fn fenced(stream: StreamId, number: u64, epoch: u64) -> RepoError {
    RepoError::Fenced { stream: stream.to_string(), number, epoch }
}
