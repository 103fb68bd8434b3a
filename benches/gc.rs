//! Collection of a large repository after a backup went: seconds, and the most anonymous memory meanwhile. Segments are of the usual number
//! of chunks, which hold little, so that the disk is not what is measured: 100,000 of them, or as many as the first number says.

use futures_util::StreamExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use walden::base::{BackupId, ChunkId, Env, Generation, Lsn, ObjectId, SystemId, TimelineId, Timestamp};
use walden::codec::keyslot::Unlock;
use walden::codec::object::PackedChunk;
use walden::disk::{OsEntropy, ScratchDir, SystemClock};
use walden::format::frame::Codec;
use walden::format::header::ObjectKind;
use walden::format::index::{BackupEntry, BackupState, PagesEntry, RemovedEntry, RemovedKind};
use walden::format::keyslot::SlotCost;
use walden::format::manifest::{CHUNK_BYTES, FileEntry, FileKind, ManifestMeta};
use walden::format::root::GenerationRecord;
use walden::repo::chunks::{ChunkIndex, ChunkWriter};
use walden::repo::index::{IndexEdit, empty_page};
use walden::repo::manifest::{Manifest, ManifestBuilder, RunBuilder};
use walden::repo::{Cluster, RepoError, Repository, RootChange, layout};
use walden::retain::sweep;
use walden::store::{LocalStore, Store};
use zeroize::Zeroizing;

const CHUNKS: u64 = 128;
const FILE_CHUNKS: u64 = 4096;

/// Segments written at once.
const CREATES_IN_FLIGHT: usize = 32;

/// The id of chunk `number`, which holds that number.
fn chunk(cluster: &Cluster, number: u64) -> ChunkId {
    cluster.repo().chunk_id(&number.to_le_bytes())
}

/// Segments of `CHUNKS` small chunks each.
async fn store_segments(cluster: &Cluster, count: u64) -> Vec<PagesEntry> {
    let create = |segment: u64| async move {
        let id = ObjectId::random(&*cluster.repo().env().entropy);
        let key = layout::segment(cluster.name(), id);
        let mut writer = cluster.repo().writer(ObjectKind::PagesSegment, &key, id.0, 0, 0);
        for number in segment * CHUNKS..(segment + 1) * CHUNKS {
            let bytes = number.to_le_bytes().to_vec();
            let chunk =
                PackedChunk { codec: Codec::Raw, plain_len: bytes.len(), bytes, id: chunk(cluster, number) };
            writer.add_packed(&chunk, 0);
        }
        let finished = writer.finish(Vec::new());
        cluster.repo().store().create(&key, finished.bytes.clone()).await.expect("create");
        PagesEntry {
            id,
            object_len: finished.bytes.len() as u64,
            directory_offset: finished.directory_offset,
            chunk_count: CHUNKS as u32,
            plain_bytes: CHUNKS * 8,
        }
    };
    futures_util::stream::iter(0..count).map(create).buffered(CREATES_IN_FLIGHT).collect().await
}

/// A backup of files of a GiB, made of those chunks that `keeps` says.
async fn store_backup(
    cluster: &Cluster,
    second: i64,
    chunks: u64,
    keeps: impl Fn(u64) -> bool,
) -> (BackupEntry, Vec<PagesEntry>) {
    let mut writer = ChunkWriter::create(cluster.clone(), Arc::new(ChunkIndex::empty()), 2);
    let mut builder = ManifestBuilder::default();
    let (mut runs, mut len, mut files, mut file_count) = (RunBuilder::default(), 0, 0, 0u64);
    for number in (0..chunks).filter(|number| keeps(*number)) {
        runs.chunk(chunk(cluster, number), CHUNK_BYTES, &mut writer).await.expect("run");
        len += CHUNK_BYTES as u64;
        files += 1;
        if files % FILE_CHUNKS == 0 {
            let content = std::mem::take(&mut runs).finish(&mut writer).await.expect("file");
            builder.add(&file(file_count, std::mem::take(&mut len), content));
            file_count += 1;
        }
    }
    if len > 0 {
        let content = runs.finish(&mut writer).await.expect("file");
        builder.add(&file(file_count, len, content));
        file_count += 1;
    }
    let pages = builder.finish(&mut writer).await.expect("pages");
    let (made, _) = writer.finish().await.expect("segments");
    let at = Timestamp::from_micros(second * 1_000_000);
    let meta = ManifestMeta {
        id: BackupId::at(at),
        cluster: cluster.name().clone(),
        generation: Generation(1),
        system_id: SystemId(1),
        server_version: 150_000,
        segment_size: 16 << 20,
        checksums: false,
        timeline: TimelineId(1),
        start: Lsn::new(1 << 24),
        redo: Lsn::new(1 << 24),
        checkpoint: Lsn::new(1 << 24),
        stop: Lsn::new(1 << 25),
        started_at: at,
        stopped_at: at,
        tablespaces: Vec::new(),
        settings: Vec::new(),
        config_files: Vec::new(),
        damaged: Vec::new(),
        file_count,
        bytes_raw: 0,
        extensions: Vec::new(),
    };
    let manifest = Manifest { meta, pages };
    let manifest_len = manifest.create(cluster).await.expect("manifest");
    let entry = BackupEntry {
        manifest_number: 0,
        id: manifest.meta.id.clone(),
        generation: Generation(1),
        timeline: TimelineId(1),
        redo: manifest.meta.redo,
        start: manifest.meta.start,
        stop: manifest.meta.stop,
        started_at: at,
        stopped_at: at,
        bytes_raw: 0,
        bytes_stored: 0,
        bytes_new: 0,
        manifest_len,
        damaged_blocks: 0,
        root: 1,
        state: BackupState::Complete,
    };
    (entry, made)
}

fn file(number: u64, len: u64, content: Vec<walden::format::manifest::ContentRun>) -> FileEntry {
    FileEntry {
        path: format!("base/1/{number:08}"),
        kind: FileKind::Regular,
        mode: 0o600,
        modified: 0,
        len,
        crc32c: 0,
        link: String::new(),
        content,
    }
}

/// Anonymous memory of this process now, in bytes.
fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

async fn measure(count: u64) {
    let dir = tempfile::tempdir().expect("a folder");
    let store: Arc<dyn Store> = Arc::new(LocalStore::open(&dir.path().join("repo")).expect("a store"));
    let scratch = Arc::new(ScratchDir::first_of(vec![dir.path().join("scratch")]));
    let env = Env { clock: Arc::new(SystemClock), entropy: Arc::new(OsEntropy), scratch };
    let unlock = Unlock::Key(Zeroizing::new([7; 32]));
    let (repo, _) = Repository::init(store, &unlock, SlotCost::DEFAULT, env).await.expect("init");
    let record = GenerationRecord {
        cluster: "shop".parse().expect("a name"),
        generation: Generation(1),
        system_id: SystemId(1),
        major_version: 15,
        segment_size: 16 << 20,
        block_size: 8192,
    };
    let cluster = Cluster::create(Arc::new(repo), record).await.expect("cluster");
    let began = Instant::now();
    let mut pages = store_segments(&cluster, count).await;
    let chunks = count * CHUNKS;
    // All but a tenth of the segments whole, a twentieth with a quarter of its chunks, a twentieth not at all.
    let keeps = |number: u64| match number / CHUNKS % 20 {
        0 => false,
        1 => number.is_multiple_of(4),
        _ => true,
    };
    let mut backups = Vec::new();
    for second in 0..3 {
        // Each later backup lacks some chunks of the one before: all of their block maps differ.
        let (entry, made) =
            store_backup(&cluster, second, chunks, |n| keeps(n) && n % 50_021 != second as u64).await;
        pages.extend(made);
        backups.push(entry);
    }
    cluster
        .commit::<RepoError>(|root| {
            let mut page = empty_page();
            (page.pages, page.backups) = (pages.clone(), backups.clone());
            let (kind, name) = (RemovedKind::Chunks, "20260101T000000Z".to_owned());
            page.removed.push(RemovedEntry { kind, name, root: 1 });
            Ok(Some(RootChange { root: root.clone(), index: IndexEdit::Add(page) }))
        })
        .await
        .expect("commit");
    println!("{count} segments, {chunks} chunks, 3 backups: made in {:.0} s", began.elapsed().as_secs_f64());
    drop((pages, backups));
    let (stop, most) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let before = anonymous();
    let watcher = std::thread::spawn({
        let (stop, most) = (stop.clone(), most.clone());
        move || {
            while !stop.load(Ordering::Relaxed) {
                most.fetch_max(anonymous(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    });
    let began = Instant::now();
    let swept = sweep::sweep(&cluster, walden::base::limits::PAGES_LIVE_PERCENT_MIN).await.expect("sweep");
    let seconds = began.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    watcher.join().expect("the watcher");
    println!(
        "gc: {seconds:.1} s, {} MiB of anonymous memory at most ({} MiB before); {swept:?}",
        most.load(Ordering::Relaxed) >> 20,
        before >> 20
    );
}

fn main() {
    let numbers = std::env::args().filter_map(|arg| arg.parse().ok());
    let count = numbers.into_iter().next().unwrap_or(100_000);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(measure(count));
}
