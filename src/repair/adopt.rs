//! Backups that may lack chunks: those of which nothing but the manifest is known, and all when a segment of chunks is gone that an index
//! named. One that lacks some is taken as damaged: it gives what it has, stands in for no other backup, and lets nothing expire. It may
//! be one that was removed, and whose chunks were collected: nobody can tell.

use super::rebuild::Rebuilt;
use crate::base::{BackupId, ChunkId};
use crate::format::index::{BackupEntry, BackupState};
use crate::format::manifest::RunKind;
use crate::repo::chunks::{ChunkIndex, ChunkReader};
use crate::repo::manifest::Manifest;
use crate::repo::{Cluster, RepoError};
use futures_util::{StreamExt, stream};
use std::collections::HashSet;
use std::sync::Arc;

/// Pages and block maps read ahead.
const READ_AHEAD: usize = 8;
/// Threads that open them.
const THREADS: usize = 2;

/// Says which backups of `rebuilt` lack chunks, and takes them as damaged.
pub(super) async fn check(cluster: &Cluster, rebuilt: &mut Rebuilt) -> Result<(), RepoError> {
    let found: HashSet<BackupId> = rebuilt.backups_found.iter().cloned().collect();
    let suspects = |entry: &&mut BackupEntry| rebuilt.pages_gone || found.contains(&entry.id);
    let mut suspects: Vec<&mut BackupEntry> = rebuilt.page.backups.iter_mut().filter(suspects).collect();
    if suspects.is_empty() {
        return Ok(());
    }
    let index = Arc::new(ChunkIndex::load(cluster, &rebuilt.page.pages).await?);
    let reader = ChunkReader::new(cluster.clone(), index.clone(), THREADS);
    let mut looking = Looking { index: &index, reader: &reader, sound: HashSet::new() };
    for entry in &mut suspects {
        let manifest = Manifest::open(cluster, &entry.id, entry.manifest_number).await;
        let lacks = match manifest {
            Ok(manifest) => looking.missing(&manifest).await?,
            Err(error) if error.is_damage() => 1,
            Err(error) => return Err(error),
        };
        if lacks == 0 {
            continue;
        }
        entry.damaged_blocks = entry.damaged_blocks.max(1);
        if entry.state == BackupState::Complete {
            entry.state = BackupState::Damaged;
        }
        rebuilt.losses.push(format!(
            "backup {} lacks {lacks} chunks or more: it is taken as damaged; if it had been removed on purpose, remove it again (`walden \
             backup delete`)",
            entry.id
        ));
    }
    if !rebuilt.backups_found.is_empty() {
        let names: Vec<String> = rebuilt.backups_found.iter().map(ToString::to_string).collect();
        rebuilt.notes.push(format!(
            "backups known from their manifests alone: {}; what they take is not known any more, and one that had been removed on \
             purpose is back",
            names.join(", ")
        ));
    }
    Ok(())
}

struct Looking<'a> {
    index: &'a ChunkIndex,
    reader: &'a ChunkReader,
    /// Pages and block maps all of whose chunks are there: backups share most of them.
    sound: HashSet<ChunkId>,
}

impl Looking<'_> {
    /// Chunks of `manifest` that no segment holds, as far as its pages can be read.
    async fn missing(&mut self, manifest: &Manifest) -> Result<u64, RepoError> {
        let pages: Vec<(usize, ChunkId)> = manifest
            .pages
            .iter()
            .map(|page| page.chunk)
            .enumerate()
            .filter(|(_, id)| !self.sound.contains(id))
            .collect();
        let reader = self.reader;
        let read = |(number, id): (usize, ChunkId)| async move { (id, manifest.page(number, reader).await) };
        let mut pages = std::pin::pin!(stream::iter(pages).map(read).buffered(READ_AHEAD));
        let mut missing = 0;
        while let Some((id, page)) = pages.next().await {
            let files = match page {
                Ok(files) => files,
                Err(error) if error.is_damage() => {
                    missing += 1;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let mut lacks = 0;
            for run in files.iter().flat_map(|file| &file.content) {
                lacks += run.chunks.iter().filter(|id| self.index.find(id).is_none()).count() as u64;
                let map = run.chunks.first().filter(|id| self.index.find(id).is_some());
                if let (RunKind::Map, Some(map)) = (run.kind, map) {
                    lacks += self.missing_of_map(manifest, *map, run.len).await?;
                }
            }
            if lacks == 0 {
                self.sound.insert(id);
            }
            missing += lacks;
        }
        Ok(missing)
    }

    async fn missing_of_map(
        &mut self,
        manifest: &Manifest,
        map: ChunkId,
        len: u64,
    ) -> Result<u64, RepoError> {
        if self.sound.contains(&map) {
            return Ok(0);
        }
        let runs = match manifest.map(map, len, self.reader).await {
            Ok(runs) => runs,
            Err(error) if error.is_damage() => return Ok(1),
            Err(error) => return Err(error),
        };
        let chunks = runs.iter().flat_map(|run| &run.chunks);
        let lacks = chunks.filter(|id| self.index.find(id).is_none()).count() as u64;
        if lacks == 0 {
            self.sound.insert(map);
        }
        Ok(lacks)
    }
}
