//! Chunks stored once and read back, over stores that fail.

use super::bed::{bed, bed_on};
use super::*;
use crate::base::{Anonymous, Entropy, Env, ObjectKey};
use crate::codec::Unlock;
use crate::disk::SystemClock;
use crate::format::index::PagesEntry;
use crate::repo::{Cluster, RepoError, Repository};
use crate::store::{ObjectMeta, Store, StoreError};
use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;

/// Chunks of odd sizes, hard to compress, the first ones easy.
fn chunks(seed: u64, count: usize, bytes_max: usize) -> Vec<Bytes> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut chunk = |easy: bool| {
        let mut bytes = vec![0; rng.usize(1..bytes_max)];
        if !easy {
            rng.fill(&mut bytes);
        }
        bytes[0] = rng.u8(..);
        Bytes::from(bytes)
    };
    (0..count).map(|i| chunk(i < count / 4)).collect()
}

fn flip(path: &Path, at: usize) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn gives_back_what_was_put_and_stores_it_once() {
    let bed = bed().await;
    let some = chunks(1, 200, 300_000);
    let twice: Vec<Bytes> = some.iter().chain(&some).cloned().collect();
    let (pages, stats, ids) = bed.store(&[], &twice).await;
    assert_eq!(
        (stats.chunks, stats.chunks_new),
        (400, ids[..200].iter().collect::<std::collections::HashSet<_>>().len() as u64)
    );
    assert_eq!(stats.bytes_new, pages.iter().map(|p| p.object_len).sum::<u64>());
    assert!(stats.bytes_stored < stats.bytes_new);
    let got = bed.fetch(&pages, &ids).await.unwrap();
    assert_eq!(got.len(), 400);
    assert!(twice.iter().enumerate().all(|(i, chunk)| got[&i] == chunk[..]));

    // Another process, knowing what the index knows, adds only what is new.
    let more: Vec<Bytes> = some.iter().cloned().chain(chunks(2, 10, 50_000)).collect();
    let (added, again, _) = bed.store(&pages, &more).await;
    assert_eq!((again.chunks_new, added.len()), (10, 1));
    assert!(again.bytes_stored > stats.bytes_stored && again.bytes_new < 600_000);
}

#[tokio::test]
async fn fills_segments_to_their_size() {
    let bed = bed().await;
    let (pages, stats, ids) = bed.store(&[], &chunks(3, 350, 256 << 10)).await;
    assert!(pages.len() >= 2, "{stats:?}");
    assert!(pages.iter().all(|p| p.object_len <= crate::base::limits::PAGES_SEGMENT_BYTES as u64));
    assert_eq!(bed.fetch(&pages, &ids).await.unwrap().len(), 350);
}

#[tokio::test]
async fn a_damaged_chunk_is_taken_from_another_segment() {
    let bed = bed().await;
    let some = chunks(4, 40, 20_000);
    let (first, _, ids) = bed.store(&[], &some).await;
    let (second, _, _) = bed.store(&[], &some).await;
    let both: Vec<PagesEntry> = first.iter().chain(&second).cloned().collect();
    flip(&bed.path(&first[0]), 1000);
    flip(&bed.path(&second[0]), first[0].directory_offset as usize - 100);
    assert_eq!(bed.fetch(&both, &ids).await.unwrap().len(), 40);
    let alone = bed.fetch(&first, &ids).await;
    assert!(matches!(alone, Err(RepoError::Damage { .. })), "{alone:?}");
}

#[tokio::test]
async fn chunks_of_a_lost_segment_are_stored_again() {
    let bed = bed().await;
    let some = chunks(5, 20, 20_000);
    for damage in ["gone", "short", "directory", "header"] {
        let (pages, _, ids) = bed.store(&[], &some).await;
        let path = bed.path(&pages[0]);
        match damage {
            "gone" => std::fs::remove_file(&path).unwrap(),
            "short" => {
                let bytes = std::fs::read(&path).unwrap();
                std::fs::remove_file(&path).unwrap();
                std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
            }
            "header" => flip(&path, 40),
            _ => flip(&path, pages[0].object_len as usize - 60),
        }
        let index = bed.index(&pages).await;
        assert_eq!((index.lost().len(), index.len()), (1, 0), "{damage}");
        let error = bed.fetch(&pages, &ids).await.unwrap_err().to_string();
        assert!(error.contains("1 segments cannot be read"), "{error}");
        let (again, stats, _) = bed.store(&pages, &some).await;
        assert_eq!((again.len(), stats.chunks_new), (1, 20), "{damage}");
    }
}

/// A store that has no room for segments.
#[derive(Debug)]
struct Full(Arc<dyn Store>);

#[async_trait::async_trait]
impl Store for Full {
    async fn create(&self, key: &ObjectKey, body: Bytes) -> Result<(), StoreError> {
        if key.as_str().contains("/segments/") {
            return Err(StoreError::NoSpace { key: key.clone(), reason: "full".into() });
        }
        self.0.create(key, body).await
    }
    async fn get(&self, key: &ObjectKey) -> Result<Bytes, StoreError> {
        self.0.get(key).await
    }
    async fn get_range(&self, key: &ObjectKey, range: std::ops::Range<u64>) -> Result<Bytes, StoreError> {
        self.0.get_range(key, range).await
    }
    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta, StoreError> {
        self.0.head(key).await
    }
    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        self.0.list(prefix).await
    }
    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.0.delete(key).await
    }
    fn url(&self) -> String {
        self.0.url()
    }
}

#[tokio::test]
async fn a_store_without_room_fails_the_writer() {
    let bed = bed_on(|store| Arc::new(Full(store))).await;
    for (count, bytes_max) in [(3, 100), (300, 256 << 10)] {
        let mut writer = ChunkWriter::create(bed.cluster.clone(), bed.index(&[]).await, 2);
        let mut failed = None;
        for chunk in chunks(6, count, bytes_max) {
            failed = writer.put(chunk).await.err();
            if failed.is_some() {
                break;
            }
        }
        let failed = match failed {
            Some(error) => error,
            None => writer.finish().await.unwrap_err(),
        };
        assert!(matches!(failed, RepoError::Store(StoreError::NoSpace { .. })), "{failed:?}");
    }
}

/// Has nothing to give: who asks dies.
#[derive(Debug)]
struct NoEntropy;

impl Entropy for NoEntropy {
    fn fill(&self, _buffer: &mut [u8]) {
        panic!("planted: a packing thread dies");
    }
}

#[tokio::test]
#[should_panic(expected = "0 of 40 new chunks are durable")]
async fn a_packing_thread_that_dies_is_told_and_not_waited_for() {
    let bed = bed().await;
    let env =
        Env { clock: Arc::new(SystemClock), entropy: Arc::new(NoEntropy), scratch: Arc::new(Anonymous) };
    let unlock = Unlock::Key([7; 32].into());
    let repo = Repository::open(bed.cluster.repo().store().clone(), &unlock, env).await.unwrap();
    let cluster = Cluster::open(Arc::new(repo), bed.cluster.name().clone()).await.unwrap();
    let mut writer = ChunkWriter::create(cluster, Arc::new(ChunkIndex::empty()), 2);
    for chunk in chunks(9, 40, 4096) {
        writer.put(chunk).await.unwrap();
    }
    // A writer that waits for ever is another panic than the one expected.
    let finished = tokio::time::timeout(std::time::Duration::from_secs(30), writer.finish()).await;
    panic!("{finished:?}");
}
