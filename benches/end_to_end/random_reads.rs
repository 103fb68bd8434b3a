//! 16 MiB of WAL at random places, each from the repository alone by a reader that knows nothing yet: what it reads of the
//! repository, how long it takes, and how much WAL of its epoch it gets through for that.

use crate::common::walden::Place;
use crate::meter::{cpu_seconds, figure, quantile, rounded};
use async_trait::async_trait;
use bytes::Bytes;
use serde_json::json;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use walden::base::{Env, Lsn, LsnRange, ObjectKey, TimelineId};
use walden::codec::keyslot::Unlock;
use walden::disk::{OsEntropy, ScratchDir, SystemClock};
use walden::repo::walread::Reading;
use walden::repo::{Cluster, Repository, WalReader, walmap};
use walden::store::{self, ObjectMeta, Store, StoreError, StoreOptions};
use zeroize::Zeroizing;

const READ_BYTES: u64 = 16 << 20;
const SEED: u64 = 7;
/// Memory for pages: of an epoch and of its base.
const SCRATCH_BYTES: usize = 10 << 30;

/// A store that counts what is read of it.
#[derive(Debug)]
struct Counted {
    store: Arc<dyn Store>,
    bytes: Arc<AtomicU64>,
}

impl Counted {
    fn count(&self, bytes: &Bytes) {
        self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }
}

#[async_trait]
impl Store for Counted {
    async fn create(&self, key: &ObjectKey, body: Bytes) -> Result<(), StoreError> {
        self.store.create(key, body).await
    }

    async fn get(&self, key: &ObjectKey) -> Result<Bytes, StoreError> {
        self.store.get(key).await.inspect(|bytes| self.count(bytes))
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.store.get_range(key, range).await.inspect(|bytes| self.count(bytes))
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta, StoreError> {
        self.store.head(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        self.store.list(prefix).await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.store.delete(key).await
    }

    fn url(&self) -> String {
        self.store.url()
    }
}

/// Reads at `count` random places from `start` to `end`.
pub fn random_reads(place: &Place, start: u64, end: u64, count: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let bytes = Arc::new(AtomicU64::new(0));
    let store = store::open(&place.repo, &StoreOptions::default()).expect("its store");
    let counted: Arc<dyn Store> = Arc::new(Counted { store, bytes: bytes.clone() });
    let passphrase = std::fs::read_to_string(place.path("passphrase")).expect("its passphrase");
    let unlock = Unlock::Passphrase(Zeroizing::new(passphrase.trim_end().to_owned()));
    // In memory, as wal-fetch takes it.
    let scratch = ScratchDir::first_of(vec![place.path("scratch")]).with_memory(SCRATCH_BYTES);
    let env = Env { clock: Arc::new(SystemClock), entropy: Arc::new(OsEntropy), scratch: Arc::new(scratch) };
    let repo = Arc::new(runtime.block_on(Repository::open(counted, &unlock, env)).expect("its repository"));

    let mut rng = fastrand::Rng::with_seed(SEED);
    let (mut seconds, mut read, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..count {
        let at = rng.u64(start..end - READ_BYTES);
        let range = LsnRange::new(Lsn::new(at), Lsn::new(at + READ_BYTES));
        crate::drop_caches();
        bytes.store(0, Ordering::Relaxed);
        let (began, cpu) = (Instant::now(), own_cpu_seconds());
        let wal = runtime.block_on(async {
            let cluster = cluster_of(&repo).await;
            let snapshot = walmap::load(&cluster).await.expect("its WAL");
            let mut reader = WalReader::reading(cluster, snapshot.wal, Reading::Parts);
            reader.read(TimelineId(1), range).await.expect("16 MiB of WAL")
        });
        assert_eq!(wal.len() as u64, READ_BYTES);
        let reached = (at + READ_BYTES - start) as f64 / 1e6;
        seconds.push(began.elapsed().as_secs_f64());
        rates.push(reached / (own_cpu_seconds() - cpu).max(0.01));
        read.push(bytes.load(Ordering::Relaxed) as f64 / 1e6);
    }
    let context = [
        ("worst_seconds", json!(rounded(quantile(&mut seconds, 1.0)))),
        ("median_mb_read", json!(rounded(quantile(&mut read, 0.5)))),
        ("worst_mb_read", json!(rounded(quantile(&mut read, 1.0)))),
        ("median_mb_reached_per_cpu_second", json!(rounded(quantile(&mut rates, 0.5)))),
        ("least_mb_reached_per_cpu_second", json!(rounded(quantile(&mut rates, 0.0)))),
        ("reads", json!(count)),
        ("seed", json!(SEED)),
    ];
    figure("random_16_mib", "walden", quantile(&mut seconds, 0.5), "s", &context);
}

async fn cluster_of(repo: &Arc<Repository>) -> Cluster {
    Cluster::open(repo.clone(), "shop".parse().expect("a name")).await.expect("the cluster")
}

fn own_cpu_seconds() -> f64 {
    cpu_seconds(std::process::id()).unwrap_or(0.0)
}
