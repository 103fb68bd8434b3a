//! A throw-away repository in a directory, for tests.

use super::*;
use crate::base::{Anonymous, Env, Generation, SystemId};
use crate::codec::keyslot::{SlotCost, Unlock};
use crate::disk::{OsEntropy, SystemClock};
use crate::format::index::PagesEntry;
use crate::format::root::GenerationRecord;
use crate::repo::{Cluster, RepoError, Repository};
use crate::store::{Store, StoreOptions, open};
use bytes::Bytes;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

pub(in crate::repo) struct Bed {
    pub(super) dir: tempfile::TempDir,
    pub(in crate::repo) cluster: Cluster,
}

pub(in crate::repo) async fn bed() -> Bed {
    bed_on(|store| store).await
}

pub(super) async fn bed_on(wrap: impl Fn(Arc<dyn Store>) -> Arc<dyn Store>) -> Bed {
    let dir = tempfile::tempdir().unwrap();
    let store = wrap(open(dir.path().to_str().unwrap(), &StoreOptions::default()).unwrap());
    let env =
        Env { clock: Arc::new(SystemClock), entropy: Arc::new(OsEntropy), scratch: Arc::new(Anonymous) };
    let unlock = Unlock::Key([7; 32].into());
    let (repo, _) = Repository::init(store, &unlock, SlotCost::LEAST, env).await.unwrap();
    let record = GenerationRecord {
        cluster: "shop".parse().unwrap(),
        generation: Generation(1),
        system_id: SystemId(1),
        major_version: 15,
        segment_size: 16 << 20,
        block_size: 8192,
    };
    let cluster = Cluster::create(Arc::new(repo), record).await.unwrap();
    Bed { dir, cluster }
}

impl Bed {
    pub(in crate::repo) async fn index(&self, pages: &[PagesEntry]) -> Arc<ChunkIndex> {
        Arc::new(ChunkIndex::load(&self.cluster, pages).await.unwrap())
    }

    pub(super) async fn store(
        &self,
        pages: &[PagesEntry],
        chunks: &[Bytes],
    ) -> (Vec<PagesEntry>, ChunkStats, Vec<ChunkId>) {
        let mut writer = ChunkWriter::create(self.cluster.clone(), self.index(pages).await, 3);
        let mut ids = Vec::new();
        for chunk in chunks {
            ids.push(writer.put(chunk.clone()).await.unwrap());
        }
        let (entries, stats) = writer.finish().await.unwrap();
        (entries, stats, ids)
    }

    pub(super) async fn fetch(
        &self,
        pages: &[PagesEntry],
        ids: &[ChunkId],
    ) -> Result<HashMap<usize, Vec<u8>>, RepoError> {
        let reader = ChunkReader::new(self.cluster.clone(), self.index(pages).await, 2);
        let got = Arc::new(Mutex::new(HashMap::new()));
        let to = got.clone();
        let deliver = Arc::new(move |number: usize, chunk: &[u8]| {
            assert!(to.lock().unwrap().insert(number, chunk.to_vec()).is_none(), "delivered twice");
            Ok::<(), RepoError>(())
        });
        reader.fetch(ids.iter().copied().zip(0..).collect(), deliver).await?;
        Ok(std::mem::take(&mut *got.lock().unwrap()))
    }

    pub(super) fn path(&self, entry: &PagesEntry) -> PathBuf {
        self.dir.path().join(crate::repo::layout::segment(self.cluster.name(), entry.id).as_str())
    }
}
