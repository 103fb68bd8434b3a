//! A source with backups and WAL, a destination with a key of its own, and what is held against each other.

use crate::common::crash::{World, read_backup};
use crate::common::keys::key;
use crate::common::sim_store::SimStore;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use walden::base::progress::Unwatched;
use walden::base::{ClusterName, Env, LsnRange, TimelineId};
use walden::codec::keyslot::{SlotCost, Unlock};
use walden::copy::{self, Copied, CopyError, CopyJob, CopyOptions, Scope};
use walden::format::index::BackupState;
use walden::repo::chunks::{ChunkIndex, ChunkReader};
use walden::repo::walmap::{self, Snapshot};
use walden::repo::{Cluster, Repository, WalReader};
use walden::store::Store;
use walden::verify::{self, Options};

/// The key of the destination.
pub fn other_key() -> Unlock {
    key(5)
}

/// A repository that is empty but for its keys.
pub async fn empty(world: &mut World, seed: u64) -> SimStore {
    let store = SimStore::new(seed);
    let shared: Arc<dyn Store> = Arc::new(store.clone());
    Repository::init(shared, &other_key(), SlotCost::LEAST, world.env()).await.unwrap();
    store
}

/// The destination as a process of its own opens it.
pub async fn open(store: &SimStore, env: Env) -> Arc<Repository> {
    let store: Arc<dyn Store> = Arc::new(store.clone());
    Arc::new(Repository::open(store, &other_key(), env).await.unwrap())
}

pub fn options(scope: Scope) -> CopyOptions {
    CopyOptions {
        scope,
        jobs: 2,
        // One: what is drawn by chance comes in order.
        threads: 1,
        holder: "a test".into(),
        renew_interval: Duration::from_secs(20),
        // Named as soon as there is anything.
        commit_bytes: 1,
    }
}

/// Copies `source` into `to` under the name `name`.
pub async fn copy_as(
    source: &Cluster,
    to: &Arc<Repository>,
    name: &ClusterName,
    scope: Scope,
) -> Result<Copied, CopyError> {
    let (_keep, stop) = watch::channel(false);
    let options = options(scope);
    let job = CopyJob { source, repo: to, name, options: &options, progress: &Unwatched, stop };
    copy::copy(&job).await
}

/// Copies all of `source`.
pub async fn copy_all(source: &Cluster, to: &Arc<Repository>) -> Result<Copied, CopyError> {
    copy_as(source, to, source.name(), Scope::Cluster).await
}

/// A cluster of the destination.
pub async fn cluster(store: &SimStore, world: &mut World) -> Cluster {
    let repo = open(store, world.env()).await;
    Cluster::open(repo, world.cluster.clone()).await.unwrap()
}

/// All of the server's WAL that `snapshot` holds; nothing when it holds none.
pub async fn wal(cluster: &Cluster, snapshot: &Snapshot) -> Option<(LsnRange, Vec<u8>)> {
    let ranges = snapshot.wal.ranges(TimelineId(1));
    assert!(ranges.len() <= 1, "one range without holes: {ranges:?}");
    let range = *ranges.first()?;
    let bytes = WalReader::new(cluster.clone(), snapshot.wal.clone()).read(TimelineId(1), range).await;
    Some((range, bytes.unwrap()))
}

/// What the copy holds is the server's, byte for byte: a beginning of its WAL, and backups that it sent; no restorable one lacks WAL.
/// Returns how many there are, and where WAL ends.
pub async fn check(world: &mut World, store: &SimStore) -> (usize, u64) {
    let repo = open(&store.fork(), world.env()).await;
    let Ok(cluster) = Cluster::open(repo, world.cluster.clone()).await else { return (0, 0) };
    let snapshot = walmap::load(&cluster).await.unwrap();
    let end = match wal(&cluster, &snapshot).await {
        None => 0,
        Some((range, bytes)) => {
            let (whole, expected) = world.server.wal_until(range.end);
            assert_eq!(range.start, whole.start, "it begins where the source does");
            assert!(bytes == expected, "WAL {range} differs from the server's");
            range.end.get()
        }
    };
    let index = ChunkIndex::load(&cluster, &snapshot.index.pages).await.unwrap();
    let reader = ChunkReader::new(cluster.clone(), Arc::new(index), 1);
    let mut complete = 0;
    for backup in &snapshot.index.backups {
        let stored = read_backup(&cluster, &reader, backup).await.unwrap();
        assert!(
            Some(&stored) == world.server.sent(backup.timeline, backup.start).as_ref(),
            "backup {} differs",
            backup.id
        );
        if backup.state != BackupState::Pending {
            assert!(backup.stop.get() <= end, "backup {} is complete without its WAL", backup.id);
            complete += 1;
        }
    }
    (complete, end)
}

/// Nothing that `verify` finds.
pub async fn verified(store: &SimStore, env: Env) {
    let store: Arc<dyn Store> = Arc::new(store.fork());
    let report = verify::unlocking(store, &other_key(), env, Options::WHOLE, &Unwatched).await.unwrap();
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
}
