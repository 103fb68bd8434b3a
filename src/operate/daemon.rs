//! One cluster's daemon: receives until it is told to stop, compacts and collects beside that, and expires what a configured
//! retention policy does not keep; without one nothing expires.
//! What fails beside receiving is logged and tried again: it never stops the stream.

use crate::base::{ClusterName, limits};
use crate::disk::own_thread::{self, Priority};
use crate::receive::compact::{self, DeltaOptions};
use crate::receive::pipeline::{ReceiveError, Stored};
use crate::receive::session::{self, ReceiveOptions, Stop};
use crate::receive::upstream::Connector;
use crate::repo::{Cluster, RepoError, Repository};
use crate::retain::policy::Policy;
use crate::retain::sweep::Swept;
use crate::retain::{expire, gc};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Time between two collections.
const COLLECT_INTERVAL: Duration = Duration::from_secs(3600);
/// Time before the first: whoever restarts in a loop does not collect in one.
const COLLECT_FIRST: Duration = Duration::from_secs(300);
/// Time before work that failed is begun again.
const AGAIN: Duration = Duration::from_secs(60);

/// Receives until `stop`, and says what was stored. Everything received is durable on `Ok`.
pub async fn run(
    repo: Arc<Repository>,
    name: ClusterName,
    connector: &dyn Connector,
    options: &ReceiveOptions,
    deltas: Option<DeltaOptions>,
    retention: Option<Policy>,
    stop: Stop,
) -> Result<Stored, ReceiveError> {
    let (sender, stored) = watch::channel(Stored::default());
    let receiving = session::run(repo.clone(), name.clone(), connector, options, sender, stop);
    let mut receiving = std::pin::pin!(receiving);
    // A task of its own: what it computes between two awaits does not keep WAL waiting.
    let mut beside = Upkeep(tokio::spawn(upkeep(repo, name, deltas, retention, stored.clone())));
    tokio::select! {
        ended = &mut receiving => {
            ended?;
            // A compaction that is cut short takes its registration away; if it cannot, that expires.
            tokio::time::timeout(options.shutdown_grace, beside.ended()).await.ok();
        }
        () = beside.ended() => receiving.await?,
    }
    Ok(*stored.borrow())
}

/// The task of [`upkeep`]. It ends with whoever waits for it.
struct Upkeep(JoinHandle<()>);

impl Upkeep {
    /// Waits until it ended. A panic of its goes on here.
    async fn ended(&mut self) {
        if let Err(died) = (&mut self.0).await
            && died.is_panic()
        {
            std::panic::resume_unwind(died.into_panic());
        }
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Compacts, and expires and collects once an hour, until receiving ended: the sender of `stored` is gone then.
async fn upkeep(
    repo: Arc<Repository>,
    name: ClusterName,
    deltas: Option<DeltaOptions>,
    retention: Option<Policy>,
    stored: watch::Receiver<Stored>,
) {
    let Some(cluster) = cluster_once_stored(repo, name, stored.clone()).await else { return };
    let compacting = async {
        while let Err(error) = compact::follow(cluster.clone(), deltas, stored.clone()).await {
            tracing::error!(%error, "compaction stopped, and begins again in {AGAIN:?}");
            tokio::time::sleep(AGAIN).await;
        }
    };
    let collecting = async {
        tokio::time::sleep(COLLECT_FIRST).await;
        loop {
            // It computes for seconds where there are many chunks: on a thread that goes after receiving.
            own_thread::run("collect", Priority::Low, keep(cluster.clone(), retention)).await;
            tokio::time::sleep(COLLECT_INTERVAL).await;
        }
    };
    let following = async {
        loop {
            tokio::time::sleep(limits::EPOCH_FOLLOW_INTERVAL).await;
            match cluster.repo().follow_epochs().await {
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "the next key epoch could not be looked for"),
            }
        }
    };
    tokio::select! {
        () = compacting => {}
        never = collecting => match never {},
        never = following => match never {},
    }
}

/// Lets go of what the policy does not keep, if there is one, and collects. What fails is tried again the next time.
async fn keep(cluster: Cluster, retention: Option<Policy>) {
    if let Some(policy) = &retention {
        match expire::expire(&cluster, policy).await {
            Ok(plan) if plan.is_empty() => {}
            Ok(plan) => {
                let backups: Vec<&str> = plan.backups_removed().map(|gone| gone.id.as_str()).collect();
                let wal = plan.wal.iter().filter(|fate| fate.keeps.is_empty());
                let wal_bytes: u64 = wal.map(|fate| fate.range.len()).sum();
                tracing::info!(?backups, wal_bytes, window_start = %plan.window_start, "expired");
            }
            Err(error) => {
                tracing::error!(%error, "nothing expired; it is tried again in {COLLECT_INTERVAL:?}")
            }
        }
    }
    match gc::collect(&cluster, limits::GRACE).await {
        Ok(collected) if collected == gc::Collected::default() => {}
        Ok(gc::Collected { flushes, removed, indexes, roots, orphans, expired, swept, undeleted }) => {
            tracing::info!(flushes, removed, indexes, roots, orphans, expired, "collected");
            let Swept { dropped, rewritten, bytes_freed, put_off } = swept;
            if dropped + rewritten > 0 {
                tracing::info!(dropped, rewritten, bytes_freed, "segments of chunks let go");
            }
            if let Some(why) = put_off {
                tracing::info!(why, "chunks of removed backups stay until the next collection");
            }
            for (key, reason) in &undeleted.first {
                tracing::warn!(%key, reason, "the store does not remove an object; it is tried again");
            }
        }
        Err(error) => {
            tracing::error!(%error, "collection failed; it is tried again in {COLLECT_INTERVAL:?}")
        }
    }
}

/// The cluster: a first receiver makes it only when it has seen the server. `None` when receiving ended before that.
async fn cluster_once_stored(
    repo: Arc<Repository>,
    name: ClusterName,
    mut stored: watch::Receiver<Stored>,
) -> Option<Cluster> {
    loop {
        match Cluster::open(repo.clone(), name.clone()).await {
            Ok(cluster) => return Some(cluster),
            Err(RepoError::NotFound { .. }) => {}
            Err(error) => tracing::warn!(%error, "cluster {name} cannot be opened for compaction yet"),
        }
        if let Ok(Err(_)) = tokio::time::timeout(AGAIN, stored.changed()).await {
            return None;
        }
    }
}
