//! Winning the right to write: a root with the next epoch names our stream, then every older stream is fenced.
//! In this order: before the root, compaction could still move what the fences are counted from.

use crate::base::{Generation, Lsn, StreamId, TimelineId, Timestamp};
use crate::format::root::{Root, StreamEntry};
use crate::format::wal::Predecessor;
use crate::repo::cluster::RootChange;
use crate::repo::{Cluster, RepoError, fences};

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

/// The end of everything stored before a stream, in its generation: WAL of the next generation continues nothing.
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
        let chain = fences::close(cluster, older, stream, writer_epoch).await?;
        let Some(end) = chain.end_lsn().filter(|_| older.generation == generation) else { continue };
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
