//! How much `verify` reads a second of a core, of stored bytes: a repository in a directory, of segments of chunks that compress as a
//! backup does, without keys and with; and each part of the work alone, on the same bytes.
//!
//! `cargo bench --bench verify`; `WALDEN_BENCH_MIB` is how much the chunks hold, 1024 when nobody says.

mod common;

use common::Maker;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};
use walden::base::{Anonymous, Env, Generation, ObjectId, Progress, SystemId, Unwatched};
use walden::codec::KeySource;
use walden::codec::keyslot::{SlotCost, Unlock};
use walden::codec::object::{Expect, OpenObject};
use walden::disk::{OsEntropy, SystemClock};
use walden::format::header::ObjectKind;
use walden::format::index::PagesEntry;
use walden::format::manifest::CHUNK_BYTES;
use walden::format::root::GenerationRecord;
use walden::repo::cluster::RootChange;
use walden::repo::index::{IndexEdit, empty_page};
use walden::repo::{Cluster, RepoError, Repository, layout};
use walden::store::{LocalStore, Store};
use walden::verify::{self, Depth, Keep, Options};
use walden::wal::checksum::page_checksum;

const SEGMENT_CHUNKS: usize = 300;

fn env() -> Env {
    Env { clock: Arc::new(SystemClock), entropy: Arc::new(OsEntropy), scratch: Arc::new(Anonymous) }
}

/// Time that this process spent on cores.
fn core_time() -> Duration {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks =
        |at: usize| after.split_whitespace().nth(at).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    // Hundredths of a second, as Linux shows them.
    Duration::from_millis(10 * (ticks(11) + ticks(12)))
}

/// Prints what `work` did with `bytes`, by the clock and by core time.
async fn measured<T>(name: &str, bytes: u64, work: impl Future<Output = T>) -> T {
    let (wall, core) = (Instant::now(), core_time());
    let done = work.await;
    show(name, bytes, wall.elapsed(), core_time().saturating_sub(core));
    done
}

fn show(name: &str, bytes: u64, wall: Duration, core: Duration) {
    let rate = |time: Duration| bytes as f64 / 1e6 / time.as_secs_f64().max(0.01);
    println!(
        "{name:<34} {:>8.0} MB/s of stored bytes a core {:>8.0} MB/s by the clock",
        rate(core),
        rate(wall)
    );
}

/// Runs `work` over every chunk until two seconds of the core were used.
fn part(name: &str, stored: u64, mut work: impl FnMut()) {
    let (wall, core) = (Instant::now(), core_time());
    let mut rounds = 0;
    while core_time().saturating_sub(core) < Duration::from_secs(1) {
        work();
        rounds += 1;
    }
    show(name, stored * rounds, wall.elapsed(), core_time().saturating_sub(core));
}

/// Stores segments of chunks and an index of them.
async fn fill(cluster: &Cluster, bytes: usize) -> Result<u64, RepoError> {
    let (mut maker, mut left, mut page, mut stored) = (Maker::new(7), bytes / CHUNK_BYTES, empty_page(), 0);
    while left > 0 {
        let count = left.min(SEGMENT_CHUNKS);
        left -= count;
        let id = ObjectId::random(&*cluster.repo().env().entropy);
        let key = layout::segment(cluster.name(), id);
        let mut writer = cluster.repo().writer(ObjectKind::PagesSegment, &key, id.0, 0, 0);
        for _ in 0..count {
            let chunk = maker.pages(CHUNK_BYTES);
            writer.add(&chunk, cluster.repo().keys().chunk_id_key().chunk_id(&chunk), 0);
        }
        let finished = writer.finish(Vec::new());
        stored += finished.bytes.len() as u64;
        cluster.repo().create_own(&key, &finished.bytes).await?;
        page.pages.push(PagesEntry {
            id,
            object_len: finished.bytes.len() as u64,
            directory_offset: finished.directory_offset,
            chunk_count: count as u32,
            plain_bytes: (count * CHUNK_BYTES) as u64,
        });
    }
    cluster
        .commit::<RepoError>(|root| {
            Ok(Some(RootChange { root: root.clone(), index: IndexEdit::Add(page.clone()) }))
        })
        .await?;
    Ok(stored)
}

async fn run() -> Result<(), RepoError> {
    let mib: usize = std::env::var("WALDEN_BENCH_MIB").ok().and_then(|mib| mib.parse().ok()).unwrap_or(1024);
    let dir = tempfile::tempdir().unwrap_or_else(|error| panic!("a folder: {error}"));
    let store: Arc<dyn Store> =
        Arc::new(LocalStore::open(dir.path()).unwrap_or_else(|error| panic!("a store: {error}")));
    let unlock = Unlock::Passphrase("bench".to_owned().into());
    let (repo, _) = Repository::init(store.clone(), &unlock, SlotCost::LEAST, env()).await?;
    let record = GenerationRecord {
        cluster: "bench".parse().unwrap_or_else(|error| panic!("{error}")),
        generation: Generation(1),
        system_id: SystemId(1),
        major_version: 17,
        segment_size: 16 << 20,
        block_size: 8192,
    };
    let cluster = Cluster::create(Arc::new(repo), record).await?;
    let stored = fill(&cluster, mib << 20).await?;
    println!(
        "{} MB of chunks in {} MB of segments ({:.2} : 1)",
        mib,
        stored >> 20,
        (mib << 20) as f64 / stored as f64
    );
    let watch: &dyn Progress = &Unwatched;
    for round in 0..3 {
        println!("round {round}");
        let report = measured("verify --no-key", stored, verify::without_key(&*store, watch)).await?;
        assert!(report.findings.is_empty(), "{:?}", report.findings);
        let report =
            measured("verify", stored, verify::with_key(cluster.repo(), Options::WHOLE, watch)).await?;
        assert!(report.findings.is_empty(), "{:?}", report.findings);
        let seals = Options { depth: Depth::Seals, keep: Keep::Discard, ..Options::WHOLE };
        let report =
            measured("verify --depth seals", stored, verify::with_key(cluster.repo(), seals, watch)).await?;
        assert!(report.findings.is_empty(), "{:?}", report.findings);
        let references = Options { depth: Depth::References, ..seals };
        let report = measured(
            "verify --depth references",
            stored,
            verify::with_key(cluster.repo(), references, watch),
        )
        .await?;
        assert!(report.findings.is_empty(), "{:?}", report.findings);
    }
    parts(&cluster).await
}

/// Each part of the work alone, on one segment.
async fn parts(cluster: &Cluster) -> Result<(), RepoError> {
    let listed = cluster.repo().store().list(&layout::segments_prefix(cluster.name())).await?;
    let Some(meta) = listed.first() else { return Ok(()) };
    let bytes = cluster.repo().read(&meta.key).await?;
    let stored = bytes.len() as u64;
    let keys = cluster.repo().keys();
    let expect = Expect { repository: None, key: Some(&meta.key), kind: None };
    let open = || OpenObject::open(bytes.clone(), &*keys, &expect).unwrap_or_else(|error| panic!("{error}"));
    let object = open();
    let count = object.directory().frames.len();
    let packed: Vec<_> = (0..count).filter_map(|number| object.packed_chunk(number).ok()).collect();
    let chunks: Vec<Vec<u8>> = (0..count).filter_map(|number| object.chunk(number, &*keys).ok()).collect();
    println!("parts of it, alone:");
    part("reading the file", stored, || {
        black_box(std::fs::read(cluster_path(cluster, &meta.key)).map(|bytes| bytes.len()).ok());
    });
    part("CRC-32 (crc32fast)", stored, || {
        black_box(crc32fast::hash(&bytes));
    });
    part("CRC and seal (ChaCha20-Poly1305)", stored, || {
        (0..count).for_each(|number| drop(black_box(object.packed_chunk(number))));
    });
    part("decompression (zstd)", stored, || {
        for chunk in &packed {
            black_box(
                walden::codec::object::decompress(chunk.codec, chunk.bytes.clone(), chunk.plain_len).ok(),
            );
        }
    });
    part("chunk ids (BLAKE3)", stored, || {
        for chunk in &chunks {
            black_box(keys.chunk_id_key().chunk_id(chunk));
        }
    });
    part("page checksums", stored, || {
        for chunk in &chunks {
            let (pages, _) = chunk.as_chunks::<8192>();
            for (page, block) in pages.iter().zip(0..) {
                black_box(page_checksum(page, block));
            }
        }
    });
    part("all of a chunk", stored, || {
        (0..count).for_each(|number| drop(black_box(object.chunk(number, &*keys))));
    });
    Ok(())
}

fn cluster_path(cluster: &Cluster, key: &walden::base::ObjectKey) -> String {
    format!("{}/{key}", cluster.repo().store().url().trim_start_matches("file://"))
}

fn main() {
    // `cargo test --benches` runs it too: nothing to measure there.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.unwrap_or_else(|error| panic!("a runtime: {error}"));
    if let Err(error) = runtime.block_on(run()) {
        panic!("{error}");
    }
}
