//! Copying one backup: its files' chunks under the destination's names, then block maps, pages and manifest made of these names. The
//! destination's index has the backup only when all of that is durable; it is pending until its WAL is there,
//! unless it is kept for its pages alone.

use super::chunks::Chunks;
use super::destination::Destination;
use super::error::CopyError;
use crate::base::{ChunkId, Progress};
use crate::format::index::{BackupEntry, BackupState, PinEntry};
use crate::format::manifest::{BlockMap, ContentRun, FileEntry, ManifestMeta, ManifestPage, RunKind};
use crate::format::record::Record;
use crate::repo::manifest::Manifest;
use crate::repo::{Cluster, RepoError};
use std::collections::HashSet;

/// Chunks that are read together: 1 GiB of content.
const CHUNKS_AT_ONCE: usize = 4096;

/// Pages whose chunks are collected, and what is collected.
#[derive(Default)]
struct Window {
    wanted: Vec<ChunkId>,
    maps: Vec<(ChunkId, Vec<ContentRun>)>,
    maps_seen: HashSet<ChunkId>,
    pages: Vec<(ChunkId, Vec<FileEntry>)>,
}

/// Copies `backup`; its entry in the destination's index.
pub async fn copy(
    source: &Cluster,
    destination: &Destination,
    backup: &BackupEntry,
    pin: Option<&PinEntry>,
    chunks: &mut Chunks<'_>,
    progress: &dyn Progress,
) -> Result<BackupEntry, CopyError> {
    progress.stage(&format!("copying backup {}", backup.id), Some(backup.bytes_raw));
    let ours = Manifest::open(source, &backup.id, backup.manifest_number).await.map_err(CopyError::Source)?;
    let written = chunks.tally.bytes_written;
    let mut window = Window::default();
    for (number, page) in ours.pages.iter().enumerate() {
        if chunks.name(&page.chunk).is_some() {
            continue;
        }
        let files = ours.page(number, &chunks.reader).await.map_err(CopyError::Source)?;
        for run in files.iter().flat_map(|file| &file.content) {
            match (run.kind, run.chunks.first()) {
                (RunKind::Map, Some(id)) => window.add_map(*id, run.len, chunks, backup).await?,
                (RunKind::Map, None) | (RunKind::Zeros, _) => {}
                (RunKind::Chunks, _) => window.wanted.extend(&run.chunks),
            }
        }
        window.pages.push((page.chunk, files));
        if window.wanted.len() >= CHUNKS_AT_ONCE {
            window.copy(chunks, backup).await?;
        }
    }
    window.copy(chunks, backup).await?;
    let mut pages = ours.pages.clone();
    for page in &mut pages {
        let gone =
            || CopyError::Source(RepoError::Conflict { reason: "a page moved while it was copied".into() });
        page.chunk = chunks.name(&page.chunk).ok_or_else(gone)?;
    }
    let (made, relied_on) = chunks.finish().await?;
    let meta = ManifestMeta { cluster: destination.cluster.name().clone(), ..ours.meta };
    let (number, manifest_len) = create(destination, Manifest { meta, pages }).await?;
    let entry = BackupEntry {
        bytes_new: chunks.tally.bytes_written - written + manifest_len,
        manifest_len,
        manifest_number: number,
        // Before every epoch of deltas that a receiver will begin here.
        root: 0,
        state: match backup.state {
            BackupState::Base => BackupState::Base,
            BackupState::Pending | BackupState::Complete | BackupState::Damaged => BackupState::Pending,
        },
        ..backup.clone()
    };
    destination.add_backup(&entry, made, &relied_on, pin).await?;
    chunks.tally.bytes_written += manifest_len;
    Ok(entry)
}

/// Creates the manifest under a number that no other copy uses: the root's that it is registered in, or the next that is free.
async fn create(destination: &Destination, manifest: Manifest) -> Result<(u32, u64), RepoError> {
    let registered = destination.registration.root().number;
    let mut number = u32::try_from(registered).unwrap_or(u32::MAX - 1);
    loop {
        match manifest.create_as(&destination.cluster, number).await? {
            Some(len) => return Ok((number, len)),
            None => number += 1,
        }
    }
}

impl Window {
    async fn add_map(
        &mut self,
        id: ChunkId,
        len: u64,
        chunks: &mut Chunks<'_>,
        backup: &BackupEntry,
    ) -> Result<(), CopyError> {
        if chunks.name(&id).is_some() || !self.maps_seen.insert(id) {
            return Ok(());
        }
        let runs = chunks.map(id, len).await.map_err(CopyError::Source)?;
        self.wanted.extend(runs.iter().flat_map(|run| &run.chunks));
        self.maps.push((id, runs));
        if self.wanted.len() >= CHUNKS_AT_ONCE {
            self.copy_content(chunks, backup).await?;
        }
        Ok(())
    }

    /// Copies content and block maps that were collected.
    async fn copy_content(&mut self, chunks: &mut Chunks<'_>, backup: &BackupEntry) -> Result<(), CopyError> {
        chunks.fetch(std::mem::take(&mut self.wanted)).await?;
        for (id, runs) in std::mem::take(&mut self.maps) {
            let map = BlockMap { runs: chunks.renamed(&runs)? };
            chunks.put(&id, map.encode()).await?;
        }
        chunks.save(&backup.id).await
    }

    /// The same, and the pages.
    async fn copy(&mut self, chunks: &mut Chunks<'_>, backup: &BackupEntry) -> Result<(), CopyError> {
        self.copy_content(chunks, backup).await?;
        for (id, mut files) in std::mem::take(&mut self.pages) {
            for file in &mut files {
                file.content = chunks.renamed(&file.content)?;
            }
            chunks.put(&id, ManifestPage { files }.encode()).await?;
        }
        Ok(())
    }
}
