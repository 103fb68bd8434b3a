//! Winning the right to write: a root with the next epoch names our stream, then every older stream is fenced.
//! In this order: before the root, compaction could still move what the fences are counted from.

use crate::base::planted::{Bug, planted};
use crate::base::{Generation, Lsn, StreamId, TimelineId, Timestamp};
use crate::format::header::ObjectKind;
use crate::format::record::Record;
use crate::format::root::{Root, StreamEntry};
use crate::format::wal::{FenceMeta, Predecessor};
use crate::repo::chain::{self, Chain, ChainEnd, Losses, Numbered};
use crate::repo::cluster::RootChange;
use crate::repo::{Cluster, Created, RepoError, layout};

/// The stream we won, and where it continues.
#[derive(Debug, Clone)]
pub struct Won {
    /// Our stream.
    pub stream: StreamId,
    /// Its epoch.
    pub writer_epoch: u64,
    /// The generation it comes from.
    pub generation: Generation,
    /// Its timeline.
    pub timeline: TimelineId,
    /// The root that names it.
    pub root: u64,
    /// What came before; none in a cluster's first stream.
    pub before: Option<Before>,
}

/// The end of everything stored before a stream.
#[derive(Debug, Clone)]
pub struct Before {
    /// What number 0 of the new stream says.
    pub predecessor: Predecessor,
    /// The timeline of the stream before.
    pub timeline: TimelineId,
    /// The link to the last object.
    pub link: [u8; 32],
    /// The newest server time stored.
    pub server_time: Timestamp,
}

impl Before {
    /// One past the last durable byte.
    pub fn end(&self) -> Lsn {
        self.predecessor.end
    }
}

/// Takes the cluster over with a new stream on `timeline`. On return no older writer can make anything durable.
///
/// # Errors
/// [`RepoError::Fenced`] when somebody with a higher epoch took over meanwhile.
pub async fn take_over(
    cluster: &Cluster,
    generation: Generation,
    timeline: TimelineId,
) -> Result<Won, RepoError> {
    let stream = StreamId::random(&*cluster.repo().env().entropy);
    let root = cluster
        .commit(|root: &Root| {
            if root.generation != generation {
                let reason = format!("generation {} began while this one was taken over", root.generation);
                return Err(RepoError::Conflict { reason });
            }
            let mut next = root.clone();
            next.writer_epoch += 1;
            next.streams.push(StreamEntry {
                id: stream,
                generation,
                timeline,
                writer_epoch: next.writer_epoch,
                low_water: 0,
                low_water_lsn: None,
                low_water_link: [0; 32],
                low_water_key_epoch: 0,
            });
            Ok(Some(RootChange::of(next)))
        })
        .await?;
    let writer_epoch = root.writer_epoch;
    let mut before = None;
    for older in root.streams.iter().filter(|entry| entry.id != stream) {
        let chain = close(cluster, older, stream, writer_epoch).await?;
        let Some(end) = chain.end_lsn() else { continue };
        let time = chain.objects.iter().map(|object| object.meta.server_time).max();
        before = Some(Before {
            predecessor: Predecessor { stream: older.id, fence_number: chain.end_number(), end },
            timeline: older.timeline,
            link: chain.end_link(),
            server_time: time.unwrap_or(Timestamp::MIN),
        });
    }
    Ok(Won { stream, writer_epoch, generation, timeline, root: root.number, before })
}

/// Fences `older` at its first absent number, or finds it fenced.
async fn close(
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
