//! What backups need: which segments hold a chunk of each, and which blocks of which relation a chunk is, so that its pages can be
//! judged when it is read.
//! Memory: 8 bytes a chunk of a relation, and a bit for each segment and backup.

use crate::base::limits::BLOCK_BYTES;
use crate::base::{BackupId, ChunkId, Lsn};
use crate::format::index::{BackupEntry, BackupState};
use crate::format::manifest::{CHUNK_BYTES, FileEntry, RunKind};
use crate::repo::chunks::{ChunkIndex, ChunkReader, Location};
use crate::repo::manifest::Manifest;
use crate::repo::{Cluster, RepoError};
use crate::wal::checksum::{BLOCKS_PER_FILE, relation_file};
use futures_util::StreamExt;
use std::collections::HashSet;

/// Blocks of one chunk.
const CHUNK_BLOCKS: u32 = (CHUNK_BYTES / BLOCK_BYTES) as u32;

/// A chunk as a part of a relation: the first backup that has it there, and its first block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    /// Its first block, counted from the start of the relation.
    pub block: u32,
    /// The number of the backup.
    pub backup: u16,
}

const UNUSED: Use = Use { block: 0, backup: u16::MAX };

/// What a backup needs.
#[derive(Debug)]
pub struct BackupNeeds {
    /// Which.
    pub id: BackupId,
    /// Which of its manifest objects.
    pub manifest_number: u32,
    /// Where it starts: pages changed from there on may be torn.
    pub start: Lsn,
    /// By the numbers of segments in the chunk index: whether it needs a chunk of it.
    pub segments: Vec<bool>,
    /// Chunks that are in no segment that can be read.
    pub missing: u64,
    /// Why its manifest, or a page of it, cannot be read.
    pub broken: Option<String>,
    /// Blocks that were damaged on the server, as file and block: no news.
    pub damaged: HashSet<(String, u32)>,
}

/// What all backups need.
#[derive(Debug)]
pub struct Needs {
    /// Of each backup of the index, in order.
    pub backups: Vec<BackupNeeds>,
    /// By segment and frame.
    uses: Vec<Box<[Use]>>,
}

impl Needs {
    /// Walks every manifest.
    ///
    /// # Errors
    /// A store that fails. What is damaged is noted.
    pub async fn read(
        cluster: &Cluster,
        index: &ChunkIndex,
        chunks: &ChunkReader,
        backups: &[BackupEntry],
    ) -> Result<Needs, RepoError> {
        let mut needs = Needs { backups: Vec::new(), uses: Vec::new() };
        for frames in index.frame_counts() {
            needs.uses.push(vec![UNUSED; frames].into_boxed_slice());
        }
        for (number, backup) in backups.iter().enumerate() {
            let mut own = BackupNeeds {
                id: backup.id.clone(),
                manifest_number: backup.manifest_number,
                start: backup.start,
                segments: vec![false; needs.uses.len()],
                missing: 0,
                broken: None,
                damaged: HashSet::new(),
            };
            // Nothing is restored from a base: its pages are judged where another backup has them too.
            let judged = backup.state != BackupState::Base;
            let number = judged.then(|| u16::try_from(number).unwrap_or(u16::MAX));
            match needs.walk(cluster, index, chunks, &mut own, number).await {
                Ok(()) => {}
                Err(error) if error.is_damage() => own.broken = Some(error.to_string()),
                Err(error) => return Err(error),
            }
            needs.backups.push(own);
        }
        Ok(needs)
    }

    /// Those that lack something.
    pub fn wrong(&self) -> impl Iterator<Item = &BackupNeeds> {
        self.backups.iter().filter(|own| own.missing > 0 || own.broken.is_some())
    }

    /// One backup that starts at `start` and has a segment of one chunk, which begins with `block` of a relation.
    #[cfg(test)]
    pub(super) fn of_one_chunk(block: u32, start: Lsn) -> Needs {
        let backup = BackupNeeds {
            id: BackupId::at(crate::base::Timestamp::from_micros(0)),
            manifest_number: 0,
            start,
            segments: vec![true],
            missing: 0,
            broken: None,
            damaged: HashSet::new(),
        };
        Needs { backups: vec![backup], uses: vec![Box::new([Use { block, backup: 0 }])] }
    }

    /// What the chunk at `at` is of a relation, if it is.
    pub fn use_of(&self, segment: usize, frame: usize) -> Option<(Use, &BackupNeeds)> {
        let found = *self.uses.get(segment)?.get(frame)?;
        self.backups.get(usize::from(found.backup)).map(|backup| (found, backup))
    }

    async fn walk(
        &mut self,
        cluster: &Cluster,
        index: &ChunkIndex,
        chunks: &ChunkReader,
        own: &mut BackupNeeds,
        number: Option<u16>,
    ) -> Result<(), RepoError> {
        let manifest = Manifest::open(cluster, &own.id, own.manifest_number).await?;
        own.damaged.extend(manifest.meta.damaged.iter().map(|block| (block.path.clone(), block.block)));
        let checksums = manifest.meta.checksums;
        manifest.pages.iter().for_each(|page| self.note(index, own, &page.chunk, None));
        let mut broken = None;
        let mut pages = std::pin::pin!(manifest.files(chunks));
        while let Some(files) = pages.next().await {
            let files = match files {
                Ok(files) => files,
                // Others of its pages may be whole.
                Err(error) if error.is_damage() => {
                    broken.get_or_insert(error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            for entry in &files {
                let relation = relation_file(&entry.path).filter(|_| checksums);
                match self.walk_file(&manifest, index, chunks, own, entry, relation.zip(number)).await {
                    Ok(()) => {}
                    Err(error) if error.is_damage() => drop(broken.get_or_insert(error)),
                    Err(error) => return Err(error),
                }
            }
        }
        broken.map_or(Ok(()), Err)
    }

    /// Notes the chunks of a file; `relation` is the number of the file in its relation, and that of the backup.
    async fn walk_file(
        &mut self,
        manifest: &Manifest,
        index: &ChunkIndex,
        chunks: &ChunkReader,
        own: &mut BackupNeeds,
        entry: &FileEntry,
        relation: Option<(u32, u16)>,
    ) -> Result<(), RepoError> {
        let maps = entry.content.iter().filter(|run| run.kind == RunKind::Map);
        maps.flat_map(|run| &run.chunks).for_each(|id| self.note(index, own, id, None));
        let mut offset: u64 = 0;
        for run in manifest.runs(chunks, entry).await? {
            let first = u32::try_from(offset / BLOCK_BYTES as u64).unwrap_or(u32::MAX);
            for (at, id) in (0u32..).zip(&run.chunks) {
                let used = relation.map(|(file, backup)| Use {
                    block: file
                        .wrapping_mul(BLOCKS_PER_FILE)
                        .wrapping_add(first)
                        .wrapping_add(at * CHUNK_BLOCKS),
                    backup,
                });
                self.note(index, own, id, used);
            }
            offset = offset.saturating_add(run.len);
        }
        Ok(())
    }

    fn note(&mut self, index: &ChunkIndex, own: &mut BackupNeeds, id: &ChunkId, used: Option<Use>) {
        let mut found = false;
        for at in index.find_all(id) {
            found = true;
            if let Some(segment) = own.segments.get_mut(at.segment_number()) {
                *segment = true;
            }
            if let Some(used) = used
                && let Some(place) =
                    self.uses.get_mut(at.segment_number()).and_then(|s| s.get_mut(at.frame_number()))
                && *place == UNUSED
            {
                *place = used;
            }
        }
        own.missing += u64::from(!found);
    }
}

/// Which backups need a chunk of which every place is hurt, as `hurt` says of a place.
pub async fn hurt_by(
    cluster: &Cluster,
    index: &ChunkIndex,
    chunks: &ChunkReader,
    own: &BackupNeeds,
    hurt: &(dyn Fn(Location) -> bool + Sync),
) -> Result<HashSet<usize>, RepoError> {
    let mut segments = HashSet::new();
    let manifest = Manifest::open(cluster, &own.id, own.manifest_number).await?;
    let visit = |id: &ChunkId| {
        if index.find(id).is_some() && index.find_all(id).all(hurt) {
            segments.extend(index.find_all(id).map(Location::segment_number));
        }
    };
    match manifest.visit_chunks(chunks, visit).await {
        Err(error) if !error.is_damage() => Err(error),
        // That it is damaged is said elsewhere; what was seen of it counts.
        _ => Ok(segments),
    }
}
