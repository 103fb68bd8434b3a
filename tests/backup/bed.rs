//! A repository in a directory, a receiver beside it, and backups into it.

use crate::common::pg::{Pg, temp_dir};
use futures_util::TryStreamExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::watch;
use walden::backup::{
    self, BackupError, BackupJob, BackupOptions, BackupReport, Checkpoint, ReceiverElsewhere,
};
use walden::base::progress::{Progress, Unwatched};
use walden::base::{Anonymous, BackupId, Env, Lsn, limits};
use walden::codec::keyslot::Unlock;
use walden::disk::{OsDisk, OsEntropy, SystemClock};
use walden::format::keyslot::SlotCost;
use walden::format::manifest::FileEntry;
use walden::net::ConnectOptions;
use walden::receive::machine::Cut;
use walden::receive::pipeline::{ReceiveError, Stored};
use walden::receive::postgres::PostgresConnector;
use walden::receive::session::{self, JournalPlace, ReceiveOptions};
use walden::repo::chunks::{ChunkIndex, ChunkReader};
use walden::repo::cluster::RootChange;
use walden::repo::manifest::Manifest;
use walden::repo::{Cluster, RepoError, Repository, walmap};
use walden::store::{self, StoreOptions};
use zeroize::Zeroizing;

pub const CLUSTER: &str = "shop";

/// A repository, and the cluster `shop` in it.
pub struct Bed {
    dir: Arc<TempDir>,
    pub repo: Arc<Repository>,
}

impl Bed {
    pub async fn new() -> Bed {
        Bed::over(Arc::new(temp_dir())).await
    }

    async fn over(dir: Arc<TempDir>) -> Bed {
        let store =
            store::open(&dir.path().join("repo").display().to_string(), &StoreOptions::default()).unwrap();
        let unlock = Unlock::Key(Zeroizing::new([7; 32]));
        let env =
            Env { clock: Arc::new(SystemClock), entropy: Arc::new(OsEntropy), scratch: Arc::new(Anonymous) };
        let (repo, _) = Repository::init(store, &unlock, SlotCost::LEAST, env).await.unwrap();
        Bed { dir, repo: Arc::new(repo) }
    }

    /// The same repository opened anew, as another process would.
    pub async fn forgetful(&self) -> Bed {
        Bed::over(self.dir.clone()).await
    }

    /// Where the repository is.
    pub fn repo_dir(&self) -> PathBuf {
        self.dir.path().join("repo")
    }

    pub async fn cluster(&self) -> Cluster {
        Cluster::open(self.repo.clone(), CLUSTER.parse().unwrap()).await.unwrap()
    }

    /// Waits until the receiver made the cluster and its stream.
    pub async fn wait_for_cluster(&self) {
        for _ in 0..600 {
            if let Ok(cluster) = Cluster::open(self.repo.clone(), CLUSTER.parse().unwrap()).await
                && cluster.newest_root().await.is_ok_and(|root| !root.streams.is_empty())
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("no cluster after 30 s");
    }

    pub async fn backup(&self, pg: &Pg) -> Result<BackupReport, BackupError> {
        self.run(&pg.conninfo(), None, Duration::from_secs(60), &Unwatched, never()).await
    }

    pub async fn backup_as(&self, pg: &Pg, role: &str) -> Result<BackupReport, BackupError> {
        let conninfo = pg.conninfo().replace("user=postgres", &format!("user={role}"));
        self.run(&conninfo, None, Duration::from_secs(60), &Unwatched, never()).await
    }

    pub async fn backup_waiting(&self, pg: &Pg, wal_timeout: Duration) -> Result<BackupReport, BackupError> {
        self.run(&pg.conninfo(), None, wal_timeout, &Unwatched, never()).await
    }

    pub async fn backup_watched(
        &self,
        conninfo: &str,
        max_rate_kib: Option<u32>,
        progress: &dyn Progress,
        stop: watch::Receiver<bool>,
    ) -> Result<BackupReport, BackupError> {
        self.run(conninfo, max_rate_kib, Duration::from_secs(60), progress, stop).await
    }

    async fn run(
        &self,
        conninfo: &str,
        max_rate_kib: Option<u32>,
        wal_timeout: Duration,
        progress: &dyn Progress,
        stop: watch::Receiver<bool>,
    ) -> Result<BackupReport, BackupError> {
        let server = ConnectOptions::parse(conninfo, &|_| None).unwrap();
        let options = BackupOptions {
            checkpoint: Checkpoint::Fast,
            max_rate_kib,
            wal_timeout,
            application_name: "walden_backup".into(),
            holder: "test".into(),
            renew_interval: limits::WORK_RENEW_INTERVAL,
            threads: 2,
        };
        backup::run(BackupJob {
            repo: self.repo.clone(),
            cluster: CLUSTER.parse().unwrap(),
            server: &server,
            options: &options,
            wal: &ReceiverElsewhere,
            progress,
            stop,
        })
        .await
    }

    /// Opens a backup as a restore does.
    pub async fn open(&self, id: &BackupId) -> Opened {
        let cluster = self.cluster().await;
        let snapshot = walmap::load(&cluster).await.unwrap();
        assert!(snapshot.root.pending.is_empty(), "{:?}", snapshot.root.pending);
        let index = ChunkIndex::load(&cluster, &snapshot.index.pages).await.unwrap();
        let reader = ChunkReader::new(cluster.clone(), Arc::new(index), 2);
        let manifest = Manifest::open(&cluster, id, 0).await.unwrap();
        Opened { cluster, reader, manifest }
    }

    /// Bytes of all objects but WAL, which grows on its own.
    pub fn stored_bytes(&self) -> u64 {
        sizes(&self.repo_dir()).0
    }

    /// Objects of one folder of the cluster.
    pub fn objects_under(&self, folder: &str) -> u64 {
        sizes(&self.repo_dir().join("clusters").join(CLUSTER).join(folder)).1
    }

    /// Takes the first registration out of the root, as a collection does once it is older than the grace period.
    pub fn collect_registrations(&self) -> tokio::task::JoinHandle<()> {
        let repo = self.repo.clone();
        tokio::spawn(async move {
            let cluster = Cluster::open(repo, CLUSTER.parse().unwrap()).await.unwrap();
            loop {
                let root = cluster.newest_root().await.unwrap();
                if root.pending.is_empty() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
                let committed = cluster.commit::<RepoError>(|root| {
                    let mut next = root.clone();
                    next.pending.clear();
                    Ok(Some(RootChange::of(next)))
                });
                committed.await.unwrap();
                return;
            }
        })
    }
}

/// A stop that never comes.
fn never() -> watch::Receiver<bool> {
    let (sender, receiver) = watch::channel(false);
    std::mem::forget(sender);
    receiver
}

/// Bytes and number of the files below `dir`, but those of flush objects and of the receiver's own bookkeeping.
fn sizes(dir: &Path) -> (u64, u64) {
    let Ok(entries) = std::fs::read_dir(dir) else { return (0, 0) };
    entries.flatten().fold((0, 0), |(bytes, count), entry| {
        let meta = entry.metadata().unwrap();
        let (b, c) = match (meta.is_dir(), entry.file_name().to_str()) {
            (true, Some("wal")) => (0, 0),
            (true, _) => sizes(&entry.path()),
            (false, _) => (meta.size(), 1),
        };
        (bytes + b, count + c)
    })
}

/// A backup opened for reading.
pub struct Opened {
    pub cluster: Cluster,
    pub reader: ChunkReader,
    pub manifest: Manifest,
}

impl Opened {
    pub async fn files(&self) -> Vec<FileEntry> {
        self.manifest.files(&self.reader).try_collect::<Vec<_>>().await.unwrap().concat()
    }
}

/// Counts bytes, and asks to stop after some.
#[derive(Debug)]
pub struct Watcher {
    left: AtomicU64,
    stop: watch::Sender<bool>,
}

impl Watcher {
    pub fn stopping_after(bytes: u64) -> (Watcher, watch::Receiver<bool>) {
        let (stop, stopped) = watch::channel(false);
        (Watcher { left: AtomicU64::new(bytes), stop }, stopped)
    }

    pub fn patient() -> (Watcher, watch::Receiver<bool>) {
        Watcher::stopping_after(u64::MAX)
    }
}

impl Progress for Watcher {
    fn stage(&self, _name: &str, _bytes_total: Option<u64>) {}

    fn advance(&self, bytes: u64) {
        let before = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(bytes)));
        if before.unwrap() <= bytes {
            self.stop.send_replace(true);
        }
    }
}

/// A `receive` in this process.
pub struct Receiving {
    stop: watch::Sender<bool>,
    stored: watch::Receiver<Stored>,
    task: tokio::task::JoinHandle<Result<(), ReceiveError>>,
}

impl Receiving {
    pub fn start(repo: &Arc<Repository>, pg: &Pg) -> Receiving {
        Receiving::start_with(repo, pg, None)
    }

    /// One that acknowledges what is in a journal in `dir`.
    #[allow(dead_code, reason = "for restores, which share this file")]
    pub fn with_journal(repo: &Arc<Repository>, pg: &Pg, dir: &Path) -> Receiving {
        let disk = Arc::new(OsDisk);
        let place = JournalPlace { disk, dir: dir.to_owned(), budget_bytes: 1 << 30 };
        Receiving::start_with(repo, pg, Some(place))
    }

    fn start_with(repo: &Arc<Repository>, pg: &Pg, journal: Option<JournalPlace>) -> Receiving {
        let connector = PostgresConnector {
            options: Arc::new(ConnectOptions::parse(&pg.conninfo(), &|_| None).unwrap()),
            application_name: "walden_shop".into(),
            clock: Arc::new(SystemClock),
        };
        let options = ReceiveOptions {
            slot: "walden_shop".into(),
            journal,
            cut: Cut { interval: Duration::from_millis(200), ..Cut::default() },
            shutdown_grace: Duration::from_secs(10),
        };
        let (stop, stopped) = watch::channel(false);
        let (sender, stored) = watch::channel(Stored::default());
        let repo = repo.clone();
        let task = tokio::spawn(async move {
            session::run(repo, CLUSTER.parse().unwrap(), &connector, &options, sender, stopped).await
        });
        Receiving { stop, stored, task }
    }

    /// Waits until everything the server has is durable.
    pub async fn wait_durable(&self, pg: &Pg) {
        let end: Lsn = pg.wal_lsn().parse().unwrap();
        let mut stored = self.stored.clone();
        let reached = stored.wait_for(|stored| stored.durable >= end);
        tokio::time::timeout(Duration::from_secs(60), reached).await.unwrap().unwrap();
    }

    pub async fn stop(self) {
        self.stop.send_replace(true);
        self.task.await.unwrap().unwrap();
    }
}
