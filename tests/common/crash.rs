//! Crash rounds: the real receive, compact, backup and gc code over a disk that forgets, a store with five verdicts and a server
//! that breaks connections; killed and crashed at random, started again, and held to what PostgreSQL was told.

use super::sim_backup::Sent;
use super::sim_disk::{DiskFaults, SimDisk};
use super::sim_server::SimServer;
use super::sim_store::{Chances, SimStore, StoreFaults};
use futures_util::TryStreamExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use walden::backup::{
    self, BackupError, BackupJob, BackupOptions, BackupReport, Checkpoint, ReceiverElsewhere,
};
use walden::base::Anonymous;
use walden::base::clock::{Clock, Entropy, Env, Timestamp};
use walden::base::progress::Unwatched;
use walden::base::{BackupId, ClusterName, Lsn, TimelineId};
use walden::codec::keyslot::Unlock;
use walden::format::index::{BackupEntry, BackupState};
use walden::format::keyslot::SlotCost;
use walden::format::manifest::{FileEntry, FileKind};
use walden::receive::compact::{Compactor, DeltaOptions, Extent};
use walden::receive::machine::Cut;
use walden::receive::pipeline::{ReceiveError, Stored};
use walden::receive::session::{self, JournalPlace, ReceiveOptions};
use walden::repo::chunks::{ChunkIndex, ChunkReader};
use walden::repo::manifest::Manifest;
use walden::repo::walmap::Snapshot;
use walden::repo::{Cluster, RepoError, Repository, WalReader, walmap};
use walden::retain::gc;
use walden::store::Store;
use zeroize::Zeroizing;

/// How long what was replaced stays, and work that does not renew itself: longer than any request is delayed, as a day is.
pub const GRACE: Duration = Duration::from_secs(90);
pub const WORK_GRACE: Duration = GRACE;

/// What is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Object,
    Journal,
}

/// What is planted in the surroundings.
#[derive(Debug, Clone, Copy, Default)]
pub struct Planted {
    /// A bug.
    pub directory_not_synced: bool,
    /// A store that takes long for half of what it is given: the repository stays behind the journal.
    pub slow_store: bool,
}

/// A seeded source of chance, of one life of a process.
#[derive(Debug)]
struct Dice(Mutex<fastrand::Rng>);

impl Entropy for Dice {
    fn fill(&self, buffer: &mut [u8]) {
        self.0.lock().unwrap().fill(buffer);
    }
}

/// The paused clock, as a time of day.
#[derive(Debug)]
struct Tick(Instant);

impl Clock for Tick {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_micros(1_795_377_301_000_000 + self.0.elapsed().as_micros() as i64)
    }
}

/// A future that goes on only while its gate is open: a process that was stopped, and woken.
pub struct Gated<F> {
    future: Pin<Box<F>>,
    open: watch::Receiver<bool>,
    wait: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl<F: Future> Gated<F> {
    pub fn new(future: F, open: watch::Receiver<bool>) -> Gated<F> {
        Gated { future: Box::pin(future), open, wait: None }
    }
}

impl<F: Future> Future for Gated<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        loop {
            if *self.open.borrow() {
                self.wait = None;
                return self.future.as_mut().poll(context);
            }
            let mut open = self.open.clone();
            let wait = self.wait.get_or_insert_with(|| {
                Box::pin(async move {
                    let _ = open.wait_for(|open| *open).await;
                })
            });
            match wait.as_mut().poll(context) {
                Poll::Ready(()) => self.wait = None,
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// Everything that outlives a process.
pub struct World {
    pub seed: u64,
    pub rng: fastrand::Rng,
    pub server: SimServer,
    pub store: SimStore,
    pub disk: SimDisk,
    pub mode: Mode,
    lives: u64,
    born: Instant,
    /// The cluster's name.
    pub cluster: ClusterName,
    /// Time between two compactions; chance says when nobody does.
    pub pace: Option<Duration>,
    /// Backups that were said to be made.
    made: Vec<BackupId>,
}

pub fn unlock() -> Unlock {
    Unlock::Key(Zeroizing::new([9; 32]))
}

impl World {
    /// A world in which everything works still, with a repository.
    pub async fn new(seed: u64, mode: Mode, wal_max: u64) -> World {
        let (server, store) = (SimServer::new(seed, wal_max, true), SimStore::new(seed));
        let mut world = World::of(seed, mode, server, store, SimDisk::new(seed));
        let store = Arc::new(world.store.clone());
        Repository::init(store, &unlock(), SlotCost::DEFAULT, world.env()).await.unwrap();
        world
    }

    /// A world of parts that are there already.
    pub fn of(seed: u64, mode: Mode, server: SimServer, store: SimStore, disk: SimDisk) -> World {
        World {
            seed,
            rng: fastrand::Rng::with_seed(seed),
            server,
            store,
            disk,
            mode,
            lives: 0,
            born: Instant::now(),
            cluster: "shop".parse().unwrap(),
            pace: None,
            made: Vec::new(),
        }
    }

    /// When the simulation began.
    pub fn born(&self) -> Instant {
        self.born
    }

    /// Time and chance for the next life.
    pub fn env(&mut self) -> Env {
        self.lives += 1;
        let dice = fastrand::Rng::with_seed(self.seed.wrapping_mul(1000) + self.lives);
        Env {
            clock: Arc::new(Tick(self.born)),
            entropy: Arc::new(Dice(Mutex::new(dice))),
            scratch: Arc::new(Anonymous),
        }
    }

    /// Sets loose what can go wrong.
    pub fn unleash(&mut self, planted: Planted) {
        let mut often = |max: f64| self.rng.f64() * max;
        let create = Chances {
            failed_before: often(0.1),
            done_but_unknown: often(0.1),
            duplicated: often(0.1),
            delayed: often(0.1).max(if planted.slow_store { 0.5 } else { 0.0 }),
        };
        let delete = Chances { failed_before: often(0.1), ..create };
        self.store.set_faults(StoreFaults {
            create,
            delete,
            read_fails: often(0.05),
            list_misses: often(0.05),
            delay: Duration::from_secs(1)..Duration::from_secs(60),
            timeout: Duration::from_secs(2),
            ..StoreFaults::default()
        });
        self.disk.set_faults(DiskFaults {
            sync_fails: often(0.05),
            append_fails: often(0.02),
            latency: Duration::from_micros(100)..Duration::from_millis(5),
            sync_dir_is_skipped: planted.directory_not_synced,
            ..DiskFaults::default()
        });
    }

    /// Makes everything work again.
    pub fn calm(&mut self) {
        self.store.set_faults(StoreFaults::default());
        self.disk.set_faults(DiskFaults::default());
    }

    /// The repository as a process with a client number of its own sees it.
    pub async fn open(&mut self, client: u32) -> Result<Arc<Repository>, RepoError> {
        let store: Arc<dyn Store> = Arc::new(self.store.client(client));
        let env = self.env();
        Ok(Arc::new(Repository::open(store, &unlock(), env).await?))
    }

    pub fn options(&mut self) -> ReceiveOptions {
        let journal = (self.mode == Mode::Journal).then(|| JournalPlace {
            disk: Arc::new(self.disk.clone()),
            dir: PathBuf::from("/journal"),
            // Files of 256 or 512 KiB, so that they are left and trimmed.
            budget_bytes: 1 << self.rng.u32(20..=21),
        });
        let cut = Cut {
            bytes_max: self.rng.usize(20_000..300_000),
            interval: Duration::from_millis(self.rng.u64(0..500)),
            in_flight_max: self.rng.usize(1..=walden::base::limits::FLUSHES_IN_FLIGHT_MAX),
            buffered_bytes_max: 1 << 20,
            ..Cut::default()
        };
        ReceiveOptions { slot: "walden_shop".into(), journal, cut, shutdown_grace: Duration::from_secs(5) }
    }

    /// Receives what the server has, as a process that starts anew does.
    pub async fn receive_all(&mut self, client: u32) {
        let (stop, stopped) = watch::channel(false);
        let (receiving, server) = (self.receiver(client, stopped).await, self.server.clone());
        let finishing = async {
            while !server.is_finished() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            stop.send_replace(true);
        };
        let (received, ()) = tokio::join!(receiving, finishing);
        received.unwrap();
    }

    /// A `receive` that compacts and collects now and then, until `stop`.
    pub async fn receiver(
        &mut self,
        client: u32,
        stop: watch::Receiver<bool>,
    ) -> impl Future<Output = Result<(), ReceiveError>> + Send + use<> {
        let store: Arc<dyn Store> = Arc::new(self.store.client(client));
        let (env, options, server) = (self.env(), self.options(), self.server.clone());
        let pace = Duration::from_millis(self.rng.u64(500..8000));
        let (pace, cluster) = (self.pace.unwrap_or(pace), self.cluster.clone());
        async move {
            let repo = open_in_the_end(store, env).await?;
            let (stored, _) = watch::channel(Stored::default());
            let receiving = session::run(repo.clone(), cluster.clone(), &server, &options, stored, stop);
            tokio::select! {
                ended = receiving => ended,
                never = upkeep(repo, cluster, pace) => match never {},
            }
        }
    }

    /// A `backup` by a process of its own.
    pub async fn backup(&mut self, client: u32) -> impl Future<Output = Made> + use<> {
        let store: Arc<dyn Store> = Arc::new(self.store.client(client));
        let (env, server, cluster) = (self.env(), self.server.clone(), self.cluster.clone());
        let options = BackupOptions {
            checkpoint: Checkpoint::Fast,
            max_rate_kib: None,
            wal_timeout: Duration::from_secs(600),
            application_name: "walden_shop_backup".into(),
            holder: format!("client {client}"),
            renew_interval: WORK_GRACE / 4,
            // One: what is drawn by chance comes in order.
            threads: 1,
        };
        async move {
            let repo = open_in_the_end(store, env).await?;
            let (_stop, stop) = watch::channel(false);
            let progress = &Unwatched;
            let job = BackupJob {
                repo,
                cluster,
                server: &server,
                options: &options,
                wal: &ReceiverElsewhere,
                progress,
                stop,
            };
            backup::run(job).await
        }
    }

    /// What was acknowledged and is not in the repository, byte for byte; `None` when all is well.
    pub async fn lost(&mut self) -> Option<String> {
        let (store_faults, told) = (self.store.faults(), self.server.acknowledged());
        self.store.set_faults(StoreFaults::default());
        let found = self.compare(told).await;
        self.store.set_faults(store_faults);
        found.err()
    }

    async fn compare(&mut self, told: Lsn) -> Result<(), String> {
        if told == Lsn::ZERO {
            return Ok(());
        }
        let repo = self.open(1000).await.map_err(|error| error.to_string())?;
        let cluster = Cluster::open(repo, self.cluster.clone()).await.map_err(|error| error.to_string())?;
        let snapshot = walmap::load(&cluster).await.map_err(|error| error.to_string())?;
        self.compare_backups(&cluster, &snapshot).await?;
        let map = snapshot.wal;
        let (range, expected) = self.server.wal_until(told);
        let end = map.contiguous_end(TimelineId(1), range.start);
        if end < told {
            return Err(format!("acknowledged up to {told}, the repository covers up to {end}"));
        }
        let stored = WalReader::new(cluster, map).read(TimelineId(1), range).await;
        match stored.map_err(|error| error.to_string())? {
            stored if stored == expected => Ok(()),
            _ => Err(format!("the bytes up to {told} differ from the server's")),
        }
    }
}

impl World {
    /// Every backup that a root names has all its bytes; every one that was said to be made is named, and restorable.
    pub async fn compare_backups(&self, cluster: &Cluster, snapshot: &Snapshot) -> Result<(), String> {
        let listed = &snapshot.index.backups;
        let complete = |id: &&BackupId| {
            listed.iter().any(|backup| backup.id == **id && backup.state == BackupState::Complete)
        };
        if let Some(id) = self.made.iter().find(|id| !complete(id)) {
            return Err(format!("backup {id} was said to be made, and no root says so"));
        }
        if listed.is_empty() {
            return Ok(());
        }
        let index =
            ChunkIndex::load(cluster, &snapshot.index.pages).await.map_err(|error| error.to_string())?;
        let reader = ChunkReader::new(cluster.clone(), Arc::new(index), 1);
        for backup in listed {
            let sent = self.server.sent(backup.timeline, backup.start);
            let sent = sent.ok_or_else(|| format!("backup {} was never sent", backup.id))?;
            let stored = read_backup(cluster, &reader, backup).await;
            let stored = stored.map_err(|error| format!("backup {}: {error}", backup.id))?;
            if stored != sent {
                return Err(format!("the files of backup {} differ from the server's", backup.id));
            }
        }
        Ok(())
    }
}

/// How a backup ended.
pub type Made = Result<BackupReport, BackupError>;

/// All regular files of a backup.
pub async fn read_backup(
    cluster: &Cluster,
    reader: &ChunkReader,
    backup: &BackupEntry,
) -> Result<Sent, RepoError> {
    let manifest = Manifest::open(cluster, &backup.id, backup.manifest_number).await?;
    let files: Vec<Vec<FileEntry>> = manifest.files(reader).try_collect().await?;
    let mut all = Sent::new();
    for file in files.into_iter().flatten().filter(|file| file.kind == FileKind::Regular) {
        let mut content = Vec::new();
        for run in manifest.runs(reader, &file).await? {
            let mut bytes = Vec::new();
            for chunk in &run.chunks {
                bytes.extend(reader.read(*chunk).await?);
            }
            bytes.resize(run.len as usize, 0);
            content.extend(bytes);
        }
        all.insert(file.path, content);
    }
    Ok(all)
}

/// Opens the repository, however often that fails at first.
async fn open_in_the_end(store: Arc<dyn Store>, env: Env) -> Result<Arc<Repository>, RepoError> {
    loop {
        match Repository::open(store.clone(), &unlock(), env.clone()).await {
            Ok(repo) => return Ok(Arc::new(repo)),
            Err(error) if error.is_transient() => {}
            // A list that misses the key slot: the next one may not.
            Err(RepoError::Key { .. }) => {}
            Err(error) => return Err(error),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// A small cache for WAL deltas.
const DELTAS: DeltaOptions = DeltaOptions { cache_bytes: 10 << 20 };

/// Compacts and collects at a pace, whatever fails.
async fn upkeep(repo: Arc<Repository>, name: ClusterName, pace: Duration) -> std::convert::Infallible {
    let mut compactor = None;
    loop {
        tokio::time::sleep(pace).await;
        let Ok(cluster) = Cluster::open(repo.clone(), name.clone()).await else { continue };
        let compactor = compactor.get_or_insert_with(|| Compactor::new(cluster.clone(), Some(DELTAS)));
        if compactor.compact(Extent::All).await.is_ok() {
            let _ = gc::collect_with(&cluster, GRACE, WORK_GRACE).await;
        }
    }
}

/// Runs `body` alone on a thread, with the clock paused.
pub fn simulate<T>(body: impl Future<Output = T>) -> T {
    // WALDEN_LOG=debug shows what the code under test says.
    if let Ok(filter) = std::env::var("WALDEN_LOG") {
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let done = runtime.block_on(body);
    runtime.shutdown_background();
    done
}

/// One round: several lives, each ended by a kill, a crash or an order, and at the end everything must be there.
pub async fn round(seed: u64, mode: Mode, planted: Planted) -> Result<(), String> {
    let mut world = World::new(seed, mode, 1 << 20).await;
    world.unleash(planted);
    if mode == Mode::Journal || seed.is_multiple_of(2) {
        world.server.forget_at_once();
    }
    if world.rng.u8(0..4) == 0 {
        // Some twenty pieces: longer than the grace of work that does not renew itself.
        world.server.send_backups_slowly(Duration::from_secs(20));
    }
    // It may outlive a receiver, and is stopped while none runs.
    let mut backup: Option<Pin<Box<dyn Future<Output = Made>>>> = None;
    for life in 0..world.rng.u32(2..6) {
        let (_stop, stopped) = watch::channel(false);
        let receiving = world.receiver(life, stopped).await;
        let span = Duration::from_millis(world.rng.u64(500..40_000));
        if backup.is_none() && world.rng.bool() {
            backup = Some(Box::pin(world.backup(100 + life).await));
        }
        match beside(&mut world, tokio::time::timeout(span, receiving), &mut backup).await? {
            Err(_) => {}
            Ok(Err(error)) if may_end(&error) => {}
            Ok(ended) => return Err(format!("receive ended by itself: {ended:?}")),
        }
        if world.rng.bool() {
            backup = None;
        }
        world.disk = if world.rng.bool() { world.disk.crash() } else { world.disk.kill() };
        if mode == Mode::Object
            && let Some(lost) = world.lost().await
        {
            return Err(lost);
        }
    }
    world.calm();
    let (stop, stopped) = watch::channel(false);
    let receiving = world.receiver(900, stopped).await;
    let server = world.server.clone();
    let mut backup = match backup {
        None => Some(Box::pin(world.backup(901).await) as Pin<Box<dyn Future<Output = Made>>>),
        running => running,
    };
    let finish = async move {
        while !server.is_finished() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        // The repository follows the journal: a store that works has all of it long before this.
        tokio::time::sleep(Duration::from_secs(120)).await;
        stop.send_replace(true);
        std::future::pending::<()>().await;
    };
    let receiving = async {
        tokio::select! {
            ended = tokio::time::timeout(Duration::from_secs(7200), receiving) => ended,
            () = finish => unreachable!(),
        }
    };
    match beside(&mut world, receiving, &mut backup).await? {
        Err(_) => return Err("the last receiver did not finish in two hours".into()),
        Ok(Err(error)) => return Err(format!("the last receiver: {error}")),
        Ok(Ok(())) => {}
    }
    world.lost().await.map_or(Ok(()), Err)
}

/// Runs `receiving` to its end, and `backup` beside it as far as it gets.
async fn beside<T>(
    world: &mut World,
    receiving: impl Future<Output = T>,
    backup: &mut Option<Pin<Box<dyn Future<Output = Made>>>>,
) -> Result<T, String> {
    tokio::pin!(receiving);
    loop {
        let Some(running) = backup else { return Ok(receiving.await) };
        tokio::select! {
            biased;
            ended = &mut receiving => return Ok(ended),
            made = running => {
                *backup = None;
                match made {
                    Ok(report) => world.made.push(report.entry.id),
                    Err(error) if backup_may_fail(&error) => {}
                    Err(error) => return Err(format!("the backup: {error}")),
                }
            }
        }
    }
}

/// What may end a backup among faults.
fn backup_may_fail(error: &BackupError) -> bool {
    match error {
        BackupError::Repo(error) => error.is_transient(),
        BackupError::Pg(error) => error.is_transient(),
        BackupError::Expired | BackupError::WalMissing { .. } => true,
        _ => false,
    }
}

/// What may end a receiver among faults: the store or the disk refused too often.
fn may_end(error: &ReceiveError) -> bool {
    matches!(error, ReceiveError::Journal(_))
        || matches!(error, ReceiveError::Repo(error) if error.is_transient())
}

/// Seals an object of several frames on this thread.
pub async fn seal_one(seed: u64) {
    let mut world = World::new(seed, Mode::Object, 1 << 20).await;
    let repo = world.open(1).await.unwrap();
    let key = walden::repo::layout::probe("sealed");
    let mut writer = repo.writer(walden::format::header::ObjectKind::WalSegment, &key, [0; 16], 0, 0);
    for position in 0..3 {
        writer.add(b"a frame", walden::base::ChunkId([0; 32]), position);
    }
    writer.finish(Vec::new());
}

/// Two receivers on one repository: the first is stopped in the middle, the second takes over, the first wakes. Each has
/// a slot of its own, so both may be told the truth; what either was told must be recoverable, and one must give way.
pub async fn duel(seed: u64) -> Result<(), String> {
    let mut world = World::new(seed, Mode::Object, 1 << 20).await;
    world.server.allow_many_sessions();
    world.unleash(Planted::default());
    let (_stop, stopped) = watch::channel(false);
    let (gate, open) = watch::channel(true);
    let first = Gated::new(world.receiver(1, stopped.clone()).await, open);
    let first_store = world.store.client(1);
    let (before, held) = (world.rng.u64(500..6000), world.rng.u64(200..20_000));
    let second = world.receiver(2, stopped).await;
    let second = async move {
        tokio::time::sleep(Duration::from_millis(before)).await;
        second.await
    };
    let script = async {
        tokio::time::sleep(Duration::from_millis(before)).await;
        gate.send_replace(false);
        first_store.hold(true);
        tokio::time::sleep(Duration::from_millis(held)).await;
        gate.send_replace(true);
        first_store.hold(false);
        // Even an idle receiver beats once a minute, and finds out then.
        tokio::time::sleep(Duration::from_secs(400)).await;
    };
    tokio::pin!(first, second, script);
    let (mut first_ended, mut second_ended) = (None, None);
    loop {
        tokio::select! {
            ended = &mut first, if first_ended.is_none() => first_ended = Some(ended),
            ended = &mut second, if second_ended.is_none() => second_ended = Some(ended),
            () = &mut script => break,
        }
    }
    if let Some(lost) = world.lost().await {
        return Err(lost);
    }
    // Whoever took over last goes on; the other one, usually the one that was stopped, must have given way.
    let fenced = |ended: &Option<Result<(), ReceiveError>>| {
        matches!(ended, Some(Err(ReceiveError::Repo(RepoError::Fenced { .. }))))
    };
    let failed =
        |ended: &Option<Result<(), ReceiveError>>| matches!(ended, Some(Err(error)) if may_end(error));
    if fenced(&first_ended) != fenced(&second_ended) || failed(&first_ended) || failed(&second_ended) {
        return Ok(());
    }
    Err(format!("neither gave way to the other: {first_ended:?}, {second_ended:?}"))
}

/// A server that took another course before the position that is stored: nothing of it may be taken for the continuation.
pub async fn diverging_round(seed: u64) -> Result<(), String> {
    let mut world = World::new(seed, Mode::Object, 1 << 20).await;
    for life in 0..2 {
        let (_stop, stopped) = watch::channel(false);
        let receiving = world.receiver(life, stopped).await;
        let ended = tokio::time::timeout(Duration::from_secs(4), receiving).await;
        match (life, ended) {
            (0, Err(_)) => {
                let told = world.server.acknowledged();
                world.server.diverge(Lsn::new(told.get().saturating_sub(world.rng.u64(1..4000))));
            }
            (1, Ok(Err(ReceiveError::Divergence(_)))) => {}
            (_, ended) => return Err(format!("life {life} went on: {ended:?}")),
        }
    }
    Ok(())
}
