//! Manifests written, read and refused.

use super::*;
use crate::base::{Generation, Lsn, SystemId, TimelineId, Timestamp};
use crate::format::index::PagesEntry;
use crate::format::manifest::{BLOCK_MAP_CHUNKS_MAX, CHUNK_BYTES, FileKind};
use crate::repo::chunks::ChunkIndex;
use crate::repo::chunks::bed::{Bed, bed};
use std::collections::BTreeMap;
use std::sync::Arc;

fn file(path: &str, content: Vec<ContentRun>) -> FileEntry {
    FileEntry {
        path: path.into(),
        kind: FileKind::Regular,
        mode: 0o600,
        modified: 1_795_377_301,
        len: content.iter().map(|run| run.len).sum(),
        crc32c: 7,
        link: String::new(),
        content,
    }
}

fn files(count: usize) -> Vec<FileEntry> {
    let zeros = |n: usize| vec![ContentRun { kind: RunKind::Zeros, len: n as u64 + 1, chunks: Vec::new() }];
    (0..count).map(|n| file(&format!("base/{}/{}", n % 7, 16384 + n), zeros(n))).collect()
}

fn meta(file_count: u64) -> ManifestMeta {
    ManifestMeta {
        id: "20261122T195501Z".parse().unwrap(),
        cluster: "shop".parse().unwrap(),
        generation: Generation(1),
        system_id: SystemId(1),
        server_version: 150_019,
        segment_size: 16 << 20,
        checksums: true,
        timeline: TimelineId(1),
        start: Lsn::new(0x200_0028),
        redo: Lsn::new(0x200_0028),
        checkpoint: Lsn::new(0x200_0060),
        stop: Lsn::new(0x200_0138),
        started_at: Timestamp::from_micros(1),
        stopped_at: Timestamp::from_micros(2),
        tablespaces: Vec::new(),
        settings: Vec::new(),
        config_files: Vec::new(),
        damaged: Vec::new(),
        file_count,
        bytes_raw: 9,
        extensions: Vec::new(),
    }
}

async fn pages_of(
    bed: &Bed,
    known: &[PagesEntry],
    files: &[FileEntry],
) -> (Vec<PageRef>, Vec<PagesEntry>, u64) {
    let mut writer = ChunkWriter::create(bed.cluster.clone(), bed.index(known).await, 2);
    let mut builder = ManifestBuilder::default();
    files.iter().for_each(|file| builder.add(file));
    let pages = builder.finish(&mut writer).await.unwrap();
    let (entries, stats) = writer.finish().await.unwrap();
    (pages, entries, stats.chunks_new)
}

async fn read_all(manifest: &Manifest, reader: &ChunkReader) -> Result<Vec<FileEntry>, RepoError> {
    Ok(manifest.files(reader).try_collect::<Vec<_>>().await?.concat())
}

#[tokio::test]
async fn files_come_back_in_order_and_pages_are_shared() {
    let bed = bed().await;
    let mut some = files(3000);
    fastrand::Rng::with_seed(1).shuffle(&mut some);
    let (pages, stored, new) = pages_of(&bed, &[], &some).await;
    assert!(pages.len() > 5 && new == pages.len() as u64);
    let manifest = Manifest { meta: meta(3000), pages };
    manifest.create(&bed.cluster).await.unwrap();
    assert!(
        matches!(manifest.create(&bed.cluster).await, Err(RepoError::Conflict { .. })),
        "sealed anew, another object"
    );
    let opened = Manifest::open(&bed.cluster, &manifest.meta.id, 0).await.unwrap();
    assert_eq!((&opened.meta, &opened.pages), (&manifest.meta, &manifest.pages));
    let reader = ChunkReader::new(bed.cluster.clone(), bed.index(&stored).await, 2);
    let read = read_all(&opened, &reader).await.unwrap();
    some.sort_by(|a, b| a.path.cmp(&b.path));
    assert_eq!(read, some);

    // The same files in another order are the same pages; one more file changes few.
    fastrand::Rng::with_seed(2).shuffle(&mut some);
    let (again, _, new) = pages_of(&bed, &stored, &some).await;
    assert_eq!((again, new), (manifest.pages.clone(), 0));
    some.push(file("base/3/99999999", Vec::new()));
    let (_, _, new) = pages_of(&bed, &stored, &some).await;
    assert!((1..=2).contains(&new), "{new} pages changed");
}

#[tokio::test]
async fn a_file_sent_twice_is_refused() {
    let bed = bed().await;
    let mut writer = ChunkWriter::create(bed.cluster.clone(), Arc::new(ChunkIndex::empty()), 1);
    let mut builder = ManifestBuilder::default();
    files(3).iter().chain(&files(1)).for_each(|file| builder.add(file));
    assert!(matches!(builder.finish(&mut writer).await, Err(RepoError::Conflict { .. })));
}

/// Runs of a file of `slots` chunk-sized parts, those in `data` not zeros; resolved again.
async fn resolved(slots: usize, data: impl Fn(usize) -> bool) -> (Vec<ContentRun>, BTreeMap<usize, ChunkId>) {
    let bed = bed().await;
    let mut writer = ChunkWriter::create(bed.cluster.clone(), Arc::new(ChunkIndex::empty()), 1);
    let (mut runs, mut put) = (RunBuilder::default(), BTreeMap::new());
    for slot in 0..slots {
        let len = if slot + 1 == slots { 100 } else { CHUNK_BYTES };
        if data(slot) {
            let id = ChunkId([slot as u8; 32]);
            put.insert(slot, id);
            runs.chunk(id, len, &mut writer).await.unwrap();
        } else {
            runs.zeros(len, &mut writer).await.unwrap();
        }
    }
    let entry = file("base/1/2", runs.finish(&mut writer).await.unwrap());
    assert_eq!(entry.len, ((slots - 1) * CHUNK_BYTES + 100) as u64);
    check_entry(&entry).unwrap();
    let (stored, _) = writer.finish().await.unwrap();
    let reader = ChunkReader::new(bed.cluster.clone(), bed.index(&stored).await, 1);
    let manifest = Manifest { meta: meta(1), pages: Vec::new() };
    let runs = manifest.runs(&reader, &entry).await.unwrap();
    let (mut slot, mut found) = (0, BTreeMap::new());
    for run in runs {
        found.extend((slot..).zip(run.chunks));
        slot += run.len.div_ceil(CHUNK_BYTES as u64) as usize;
    }
    assert_eq!(found, put);
    (entry.content, found)
}

#[tokio::test]
async fn many_chunks_become_maps_at_fixed_offsets() {
    let kinds = |runs: &[ContentRun]| runs.iter().map(|run| run.kind).collect::<Vec<_>>();
    let (runs, _) = resolved(8, |_| true).await;
    assert_eq!(kinds(&runs), [RunKind::Chunks]);
    let (runs, _) = resolved(9, |slot| slot != 4).await;
    assert_eq!(kinds(&runs), [RunKind::Chunks, RunKind::Zeros, RunKind::Chunks]);
    let (runs, _) = resolved(9, |_| true).await;
    assert_eq!(kinds(&runs), [RunKind::Map]);
    let map = BLOCK_MAP_CHUNKS_MAX;
    let (runs, _) = resolved(4 * map + 5, |slot| slot < 10 || slot == 3 * map).await;
    assert_eq!(kinds(&runs), [RunKind::Map, RunKind::Zeros, RunKind::Map, RunKind::Zeros]);
    assert_eq!(runs[0].len, (map * CHUNK_BYTES) as u64);
    let (runs, _) = resolved(map, |_| true).await;
    assert_eq!(kinds(&runs), [RunKind::Map]);
}

#[test]
fn refuses_entries_that_lie() {
    let chunks =
        |len, count| vec![ContentRun { kind: RunKind::Chunks, len, chunks: vec![ChunkId([1; 32]); count] }];
    let good = file("base/1/2", chunks(CHUNK_BYTES as u64 + 1, 2));
    check_entry(&good).unwrap();
    let change = |edit: &dyn Fn(&mut FileEntry)| {
        let mut entry = good.clone();
        edit(&mut entry);
        entry
    };
    let cases: Vec<(&str, FileEntry)> = vec![
        ("absolute", change(&|e| e.path = "/etc/passwd".into())),
        ("upward", change(&|e| e.path = "base/../../x".into())),
        ("empty part", change(&|e| e.path = "base//x".into())),
        ("NUL", change(&|e| e.path = "base/\0".into())),
        ("mode", change(&|e| e.mode = 0o100_600)),
        ("short", change(&|e| e.len -= 1)),
        ("target", change(&|e| e.link = "/x".into())),
        ("a directory with content", change(&|e| e.kind = FileKind::Directory)),
        ("a link without target", change(&|e| (e.kind, e.len, e.content) = (FileKind::Link, 0, Vec::new()))),
        ("too few chunks", file("a", chunks(CHUNK_BYTES as u64 + 1, 1))),
        ("too many chunks", file("a", chunks(CHUNK_BYTES as u64, 2))),
        ("an empty run", file("a", chunks(0, 0))),
        ("zeros with chunks", change(&|e| e.content[0].kind = RunKind::Zeros)),
        ("a map of two", change(&|e| e.content[0].kind = RunKind::Map)),
    ];
    for (what, entry) in cases {
        assert!(check_entry(&entry).is_err(), "{what} was taken");
    }
    let map = |runs: Vec<ContentRun>| crate::format::manifest::BlockMap { runs }.encode();
    assert!(block_map(&map(chunks(5, 1)), 5).is_ok());
    assert!(block_map(&map(chunks(5, 1)), 6).is_err());
    assert!(block_map(&map(vec![ContentRun { kind: RunKind::Map, ..chunks(5, 1).remove(0) }]), 5).is_err());
}

#[test]
fn refuses_pages_that_lie() {
    let good = files(3);
    let page = |files: &[FileEntry]| ManifestPage { files: files.to_vec() }.encode();
    let refer = |files: &[FileEntry]| PageRef {
        chunk: ChunkId([0; 32]),
        file_count: files.len() as u32,
        first: files[0].path.clone(),
    };
    assert!(check::decode_page(&page(&good), &refer(&good), Some("base/3")).is_ok());
    assert!(
        check::decode_page(&page(&good), &refer(&good), Some("base/2/16386")).is_err(),
        "the next page begins inside"
    );
    assert!(check::decode_page(&page(&good), &refer(&good[1..]), None).is_err(), "another page");
    let twice = [good[0].clone(), good[0].clone()];
    assert!(check::decode_page(&page(&twice), &refer(&twice), None).is_err(), "not ascending");
}
