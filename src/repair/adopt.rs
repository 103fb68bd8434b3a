//! Backups of which nothing but the manifest is known: each chunk that they need has to be there. A manifest may be of a backup that
//! was removed and whose chunks were collected; to believe it would let retention expire a good backup for its sake.

use super::rebuild::Rebuilt;
use super::{Fate, Unreadable};
use crate::base::{BackupId, ChunkId};
use crate::format::manifest::RunKind;
use crate::repo::chunks::{ChunkIndex, ChunkReader};
use crate::repo::manifest::Manifest;
use crate::repo::{Cluster, RepoError};
use futures_util::{StreamExt, stream};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// Pages and block maps read ahead.
const READ_AHEAD: usize = 8;
/// Threads that open them.
const THREADS: usize = 2;

/// Takes those out of `rebuilt` that lack chunks. Where segments do not open that may hold them, they stay, as damaged: such a backup
/// lets nothing expire, and gives what it has.
pub(super) async fn check(
    cluster: &Cluster,
    rebuilt: &mut Rebuilt,
    unreadable: &[Unreadable],
) -> Result<(), RepoError> {
    if rebuilt.backups_found.is_empty() {
        return Ok(());
    }
    let index = Arc::new(ChunkIndex::load(cluster, &rebuilt.page.pages).await?);
    let closed =
        unreadable.iter().any(|unreadable| unreadable.fate != Fate::Unasked) || !index.lost().is_empty();
    let reader = ChunkReader::new(cluster.clone(), index.clone(), THREADS);
    let mut looking = Looking { index: &index, reader: &reader, sound: HashSet::new() };
    let mut missing: BTreeMap<BackupId, u64> = BTreeMap::new();
    for id in &rebuilt.backups_found {
        let Some(entry) = rebuilt.page.backups.iter().find(|entry| entry.id == *id) else { continue };
        let manifest = Manifest::open(cluster, id, entry.manifest_number).await;
        let lacks = match manifest {
            Ok(manifest) => looking.missing(&manifest).await?,
            Err(error) if error.is_damage() => 1,
            Err(error) => return Err(error),
        };
        if lacks > 0 {
            missing.insert(id.clone(), lacks);
        }
    }
    for (id, lacks) in &missing {
        rebuilt.notes.push(match closed {
            true => format!(
                "backup {id} lacks {lacks} chunks or more, which may be in what does not open: it is taken as damaged"
            ),
            false => format!("{lacks} chunks or more of backup {id} are in no segment: it was removed, and is not taken"),
        });
    }
    if closed {
        for entry in rebuilt.page.backups.iter_mut().filter(|entry| missing.contains_key(&entry.id)) {
            entry.damaged_blocks = entry.damaged_blocks.max(1);
        }
    } else {
        rebuilt.page.backups.retain(|entry| !missing.contains_key(&entry.id));
        rebuilt.backups_found.retain(|id| !missing.contains_key(id));
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
