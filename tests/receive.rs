//! Receiving from real servers: what is acknowledged is stored, byte for byte as in the server's own WAL files.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::archive::compare;
use common::pg::{Pg, majors};
use std::fs;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use walden::base::{Anonymous, Env, Lsn, LsnRange, SegmentSize, SystemId, TimelineId};
use walden::codec::keyslot::Unlock;
use walden::codec::object::PackedChunk;
use walden::disk::{OsDisk, OsEntropy, SystemClock};
use walden::format::header::ObjectKind;
use walden::format::keyslot::SlotCost;
use walden::format::record::Record;
use walden::format::wal::WalMeta;
use walden::net::ConnectOptions;
use walden::operate::{Exit, Failure};
use walden::receive::compact::{self, Extent};
use walden::receive::machine::Cut;
use walden::receive::pipeline::{ReceiveError, Stored};
use walden::receive::postgres::PostgresConnector;
use walden::receive::session::{self, JournalPlace, ReceiveOptions};
use walden::receive::upstream::{Connector, Identity, Server, Slot, Started, UpstreamError};
use walden::repo::{Cluster, Repository, walmap};
use walden::retain::gc;
use walden::store::{self, StoreOptions};
use zeroize::Zeroizing;

const CLUSTER: &str = "shop";
const SLOT: &str = "walden_shop";

fn env() -> Env {
    Env { clock: Arc::new(SystemClock), entropy: Arc::new(OsEntropy), scratch: Arc::new(Anonymous) }
}

async fn repository(dir: &std::path::Path) -> Arc<Repository> {
    let store = store::open(&dir.display().to_string(), &StoreOptions::default()).unwrap();
    let unlock = Unlock::Key(Zeroizing::new([7; 32]));
    let (repository, _) = Repository::init(store, &unlock, SlotCost::DEFAULT, env()).await.unwrap();
    Arc::new(repository)
}

/// A `receive` in this process.
struct Receiving {
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<Result<(), ReceiveError>>,
}

impl Receiving {
    fn start(repo: &Arc<Repository>, pg: &Pg) -> Receiving {
        Receiving::start_with(repo, pg, None)
    }

    fn start_with(repo: &Arc<Repository>, pg: &Pg, journal: Option<JournalPlace>) -> Receiving {
        let options = ConnectOptions::parse(&pg.conninfo(), &|_| None).unwrap();
        let connector = PostgresConnector {
            options: Arc::new(options),
            application_name: SLOT.into(),
            clock: Arc::new(SystemClock),
        };
        let options = ReceiveOptions {
            slot: SLOT.into(),
            journal,
            cut: Cut { interval: Duration::from_millis(100), ..Cut::default() },
            shutdown_grace: Duration::from_secs(10),
        };
        let (stop, stopped) = watch::channel(false);
        let (stored, _) = watch::channel(Stored::default());
        let repo = repo.clone();
        let task = tokio::spawn(async move {
            session::run(repo, CLUSTER.parse().unwrap(), &connector, &options, stored, stopped).await
        });
        Receiving { stop, task }
    }

    async fn stop(self) {
        self.stop.send_replace(true);
        self.task.await.unwrap().unwrap();
    }

    async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// Waits until the server says that everything it has is flushed by us.
fn wait_acknowledged(pg: &Pg) {
    let sql = "SELECT flush_lsn >= pg_current_wal_flush_lsn() FROM pg_stat_replication \
               WHERE application_name = 'walden_shop'";
    pg.wait_for(sql, "t", Duration::from_secs(60));
}

/// Every stored byte of `timeline` equals the server's files; returns the range.
async fn compare_with_server(
    repo: &Arc<Repository>,
    pg: &Pg,
    timeline: TimelineId,
    size: SegmentSize,
) -> LsnRange {
    let (range, compared) = compare(repo, CLUSTER, pg, timeline, size).await;
    assert!(compared > 0, "nothing was there to compare");
    range
}

fn load(pg: &Pg, rows: u32) {
    pg.sql(&format!(
        "CREATE TABLE IF NOT EXISTS t (a int, b text); \
         INSERT INTO t SELECT i, md5(i::text) FROM generate_series(1, {rows}) i; CHECKPOINT; \
         UPDATE t SET a = a + 1 WHERE a % 7 = 0;"
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_what_the_server_wrote_on_every_version() {
    for (major, mib) in majors().into_iter().zip([16, 1, 64, 16, 1]) {
        let pg = Pg::builder(major).wal_segment_mib(mib).option("wal_keep_size", "512MB").start();
        let size = SegmentSize::new(u64::from(mib) << 20).unwrap();
        let dir = common::pg::temp_dir();
        let repo = repository(dir.path()).await;
        let receiving = Receiving::start(&repo, &pg);
        load(&pg, 50_000);
        wait_acknowledged(&pg);
        receiving.kill().await;
        load(&pg, 20_000);
        let receiving = Receiving::start(&repo, &pg);
        load(&pg, 20_000);
        pg.sql("SELECT pg_switch_wal()");
        load(&pg, 100);
        wait_acknowledged(&pg);
        receiving.stop().await;
        let flushed: Lsn = pg.sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap();
        let range = compare_with_server(&repo, &pg, TimelineId(1), size).await;
        assert!(range.end >= flushed || flushed.bytes_since(range.end) < 8192, "{range} of {flushed}");

        let cluster = Cluster::open(repo.clone(), CLUSTER.parse().unwrap()).await.unwrap();
        let commits = |wal: &walmap::WalMap| wal.pieces().iter().map(|p| p.summary.commit_count).sum::<u64>();
        let before = walmap::load(&cluster).await.unwrap();
        let done = compact::compact(&cluster, None, Extent::All).await.unwrap();
        assert!(done.segments > 0, "PostgreSQL {major}");
        let after = walmap::load(&cluster).await.unwrap();
        assert_eq!(commits(&before.wal), commits(&after.wal));
        assert!(after.wal.chains().iter().all(|chain| chain.objects.is_empty()), "all is compacted");
        assert_eq!(compare_with_server(&repo, &pg, TimelineId(1), size).await, range);
        gc::collect(&cluster, Duration::ZERO).await.unwrap();
        assert_eq!(compare_with_server(&repo, &pg, TimelineId(1), size).await, range);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn follows_a_promoted_standby_to_its_timeline() {
    let pg = Pg::builder(15).wal_segment_mib(1).option("wal_keep_size", "256MB").start();
    let size = SegmentSize::new(1 << 20).unwrap();
    let standby = pg.standby();
    let dir = common::pg::temp_dir();
    let repo = repository(dir.path()).await;
    let receiving = Receiving::start(&repo, &pg);
    load(&pg, 10_000);
    wait_acknowledged(&pg);
    receiving.stop().await;
    load(&pg, 5_000);
    let end = pg.sql("SELECT pg_current_wal_flush_lsn()");
    standby.wait_for(&format!("SELECT pg_last_wal_replay_lsn() >= '{end}'"), "t", Duration::from_secs(30));
    standby.promote();
    load(&standby, 5_000);
    let receiving = Receiving::start(&repo, &standby);
    wait_acknowledged(&standby);
    receiving.stop().await;
    let old = compare_with_server(&repo, &standby, TimelineId(1), size).await;
    let new = compare_with_server(&repo, &standby, TimelineId(2), size).await;
    assert_eq!(new.start, size.segment_start(old.end), "the new timeline repeats the segment of the switch");
    let cluster = Cluster::open(repo.clone(), CLUSTER.parse().unwrap()).await.unwrap();
    let snapshot = walmap::load(&cluster).await.unwrap();
    assert_eq!(snapshot.index.histories.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_outlives_a_store_that_is_away() {
    let pg = Pg::builder(15).wal_segment_mib(1).option("wal_keep_size", "256MB").start();
    let size = SegmentSize::new(1 << 20).unwrap();
    let dir = common::pg::temp_dir();
    let journal =
        JournalPlace { disk: Arc::new(OsDisk), dir: dir.path().join("journal"), budget_bytes: 1 << 30 };
    let repo = repository(&dir.path().join("repo")).await;
    let receiving = Receiving::start_with(&repo, &pg, Some(journal.clone()));
    load(&pg, 1_000);
    wait_acknowledged(&pg);
    let cluster = Cluster::open(repo.clone(), CLUSTER.parse().unwrap()).await.unwrap();
    // The store is away: nothing can be created under the stream's prefix.
    let wal_dir = dir.path().join("repo/clusters/shop/wal");
    let away = dir.path().join("away");
    fs::rename(&wal_dir, &away).unwrap();
    fs::write(&wal_dir, b"in the way").unwrap();
    load(&pg, 50_000);
    wait_acknowledged(&pg);
    receiving.kill().await;
    fs::remove_file(&wal_dir).unwrap();
    fs::rename(&away, &wal_dir).unwrap();
    let acknowledged: Lsn = pg
        .sql("SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'walden_shop'")
        .parse()
        .unwrap();
    let stored = walmap::load(&cluster).await.unwrap().wal.durable_end().unwrap().lsn;
    assert!(stored < acknowledged, "{stored} of {acknowledged}: only the journal has the rest");
    let receiving = Receiving::start_with(&repo, &pg, Some(journal));
    load(&pg, 100);
    wait_acknowledged(&pg);
    receiving.stop().await;
    assert!(compare_with_server(&repo, &pg, TimelineId(1), size).await.end > acknowledged);
}

/// Makes one chunk of the newest flush object something else than its id says, sealed like any other.
async fn swap_a_chunk(repo: &Arc<Repository>, snapshot: &walmap::Snapshot) {
    let key = snapshot.wal.chains().last().unwrap().objects.last().unwrap().key.clone();
    let object = repo.read_object(&key, ObjectKind::Flush).await.unwrap();
    let header = object.header();
    let mut writer = repo.writer(ObjectKind::Flush, &key, header.owner, header.number, header.writer_epoch);
    let frames = &object.directory().frames;
    for (number, frame) in frames.iter().enumerate() {
        let mut packed = object.packed_chunk(number).unwrap();
        if number == 0 {
            let mut other = object.chunk(number, &*repo.keys()).unwrap();
            other[1000] ^= 1;
            packed = PackedChunk::pack(&other, packed.id);
        }
        writer.add_packed(&packed, frame.position);
    }
    let finished = writer.finish(object.meta::<WalMeta>().unwrap().encode());
    repo.store().delete(&key).await.unwrap();
    repo.create_own(&key, &finished.bytes).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_that_is_not_what_its_id_says_is_named_and_stays_as_it_is() {
    let pg = Pg::builder(15).wal_segment_mib(1).start();
    let dir = common::pg::temp_dir();
    let repo = repository(dir.path()).await;
    let receiving = Receiving::start(&repo, &pg);
    load(&pg, 10_000);
    wait_acknowledged(&pg);
    receiving.stop().await;
    let cluster = Cluster::open(repo.clone(), CLUSTER.parse().unwrap()).await.unwrap();
    let before = walmap::load(&cluster).await.unwrap();
    swap_a_chunk(&repo, &before).await;
    let failure = Failure::from(compact::compact(&cluster, None, Extent::All).await.unwrap_err());
    assert_eq!(failure.exit, Exit::Damage, "{failure}");
    let after = walmap::load(&cluster).await.unwrap();
    assert_eq!(
        after.wal.pieces().len(),
        before.wal.pieces().len(),
        "nothing replaces what cannot be read back"
    );
    assert!(after.index.wal.is_empty());
}

/// A server that never begins to stream.
#[derive(Debug, Clone, Copy)]
enum NoStream {
    /// Another receiver has the slot, for good.
    TakenSlot,
    /// It does not answer.
    Silent,
}

#[async_trait::async_trait]
impl Connector for NoStream {
    async fn connect(&self) -> Result<Box<dyn Server>, UpstreamError> {
        Ok(Box::new(*self))
    }
}

#[async_trait::async_trait]
impl Server for NoStream {
    async fn identify(&mut self) -> Result<Identity, UpstreamError> {
        Ok(Identity {
            system_id: SystemId(7),
            major_version: 15,
            timeline: TimelineId(1),
            flushed: Lsn::new(3 << 24),
            segment_size: SegmentSize::DEFAULT,
            block_size: 8192,
        })
    }

    async fn ensure_slot(&mut self, _slot: &str) -> Result<Slot, UpstreamError> {
        Ok(Slot { restart: Some(Lsn::new(3 << 24)), created: false })
    }

    async fn history(&mut self, timeline: TimelineId) -> Result<Vec<u8>, UpstreamError> {
        panic!("timeline {timeline} has no history")
    }

    async fn stream(
        self: Box<Self>,
        slot: &str,
        _start: Lsn,
        _timeline: TimelineId,
    ) -> Result<Started, UpstreamError> {
        match *self {
            NoStream::TakenSlot => {
                Err(UpstreamError::SlotInUse { slot: slot.to_owned(), reason: "it is active".into() })
            }
            NoStream::Silent => std::future::pending().await,
        }
    }
}

async fn receive_from(server: NoStream, stop: watch::Receiver<bool>) -> Result<(), ReceiveError> {
    let dir = common::pg::temp_dir();
    let repo = repository(dir.path()).await;
    let options = ReceiveOptions {
        slot: SLOT.into(),
        journal: None,
        cut: Cut::default(),
        shutdown_grace: Duration::from_secs(10),
    };
    let (stored, _) = watch::channel(Stored::default());
    session::run(repo, CLUSTER.parse().unwrap(), &server, &options, stored, stop).await
}

#[tokio::test(start_paused = true)]
async fn a_slot_that_another_keeps_is_a_conflict_after_a_while() {
    let (_stop, stopped) = watch::channel(false);
    let began = tokio::time::Instant::now();
    let failure = Failure::from(receive_from(NoStream::TakenSlot, stopped).await.unwrap_err());
    assert_eq!(failure.exit, Exit::Conflict, "{failure}");
    assert!(failure.what.contains(SLOT), "{failure}");
    // Longer than the server needs to notice that a receiver is gone.
    let taken = began.elapsed();
    assert!(taken > Duration::from_secs(60) && taken < Duration::from_secs(150), "{taken:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_answer_keeps_nobody_from_stopping() {
    let (stop, stopped) = watch::channel(false);
    let receiving = tokio::spawn(receive_from(NoStream::Silent, stopped));
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(!receiving.is_finished());
    let asked = tokio::time::Instant::now();
    stop.send_replace(true);
    receiving.await.unwrap().unwrap();
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
}
