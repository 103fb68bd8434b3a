//! The WAL that makes a backup restorable comes from whoever streams it: a running receiver, or one that the command starts
//! beside the backup. Workflows do not import each other, so this is the seam between them.

use crate::base::{Generation, LsnRange, TimelineId};
use crate::repo::{Cluster, RepoError, walmap};
use async_trait::async_trait;
use std::fmt;
use std::time::Duration;
use tokio::time::Instant;

/// The first wait between two looks at the repository.
const LOOK_WAIT_MIN: Duration = Duration::from_millis(250);
/// The longest.
const LOOK_WAIT_MAX: Duration = Duration::from_secs(5);

/// What failed while WAL was being made durable.
pub type WalFailure = Box<dyn std::error::Error + Send + Sync>;

/// Makes the WAL of a backup durable in its repository.
#[async_trait]
pub trait EnsureWal: Send + Sync + fmt::Debug {
    /// From now on the server must keep its WAL, or we stream it: a slot holds it, or streaming has begun.
    /// Called before the backup starts; may go on in the background.
    async fn begin(&self, cluster: &Cluster) -> Result<(), WalFailure>;

    /// Waits until all of `range` at `place` is durable, at most until `deadline`. `Ok(false)` when the time is up.
    async fn wait(
        &self,
        cluster: &Cluster,
        place: (Generation, TimelineId),
        range: LsnRange,
        deadline: Instant,
    ) -> Result<bool, WalFailure>;
}

/// A receiver runs elsewhere: looks into the repository until it has stored the WAL.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReceiverElsewhere;

#[async_trait]
impl EnsureWal for ReceiverElsewhere {
    async fn begin(&self, _cluster: &Cluster) -> Result<(), WalFailure> {
        Ok(())
    }

    async fn wait(
        &self,
        cluster: &Cluster,
        place: (Generation, TimelineId),
        range: LsnRange,
        deadline: Instant,
    ) -> Result<bool, WalFailure> {
        let mut wait = LOOK_WAIT_MIN;
        while !is_durable(cluster, place, range).await? {
            if Instant::now() + wait > deadline {
                return Ok(false);
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LOOK_WAIT_MAX);
        }
        Ok(true)
    }
}

/// Whether the repository holds all of `range` on a timeline of a generation now.
///
/// # Errors
/// [`RepoError::NewGeneration`] when another generation began: no more WAL of this one will come.
pub async fn is_durable(
    cluster: &Cluster,
    (generation, timeline): (Generation, TimelineId),
    range: LsnRange,
) -> Result<bool, RepoError> {
    let snapshot = walmap::load_generation(cluster, generation).await?;
    if snapshot.wal.contiguous_end(timeline, range.start) >= range.end {
        return Ok(true);
    }
    match snapshot.root.generation {
        current if current == generation => Ok(false),
        current => Err(RepoError::NewGeneration { cluster: cluster.name().to_string(), generation, current }),
    }
}
