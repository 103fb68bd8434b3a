//! Chunks of the source in the destination: what of them is known by another name, and copying the others. Read by ranges, several in
//! flight, each checked against its id; stored if the destination does not have them.
//!
//! Memory: 28 bytes for each chunk that either side stores; the bounds of reader and writer (some 32 MiB of reads, three segments of
//! 32 MiB); [`WAITING_CHUNKS`] chunks between them. The names lie in scratch room.

use super::destination::Destination;
use super::error::CopyError;
use super::run::CopyOptions;
use super::source::View;
use super::table::{Slot, Table};
use crate::base::{BackupId, ChunkId, ObjectKey, Progress};
use crate::format::index::{BackupEntry, PagesEntry};
use crate::format::manifest::{ContentRun, FileEntry, RunKind};
use crate::repo::chunks::{ChunkIndex, ChunkReader, ChunkWriter};
use crate::repo::manifest::{Manifest, block_map};
use crate::repo::{Cluster, Index, RepoError};
use bytes::Bytes;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Chunks that were read and wait to be stored.
const WAITING_CHUNKS: usize = 64;

/// What became of the chunks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Stored bytes of chunks that were read.
    pub bytes_read: u64,
    /// Bytes that were written.
    pub bytes_written: u64,
    /// Chunks that were read and found in the destination.
    pub chunks_found: u64,
}

/// Copies chunks.
#[derive(Debug)]
pub struct Chunks<'a> {
    source: &'a Cluster,
    destination: &'a Destination,
    progress: &'a dyn Progress,
    threads: usize,
    commit_bytes: u64,
    /// The source's segments of chunks, as its index names them.
    of: Vec<PagesEntry>,
    /// Where the source has them.
    pub reader: ChunkReader,
    /// Where the destination had them when the copy began.
    known: Arc<ChunkIndex>,
    table: Table,
    writer: ChunkWriter,
    /// Segments of the destination in which something was found.
    relied_on: HashSet<ObjectKey>,
    /// What was copied.
    pub tally: Tally,
}

impl<'a> Chunks<'a> {
    /// Reads where both sides have their chunks.
    pub async fn load(
        (source, index): (&'a Cluster, &Index),
        (destination, there): (&'a Destination, &Index),
        options: &CopyOptions,
        progress: &'a dyn Progress,
    ) -> Result<Chunks<'a>, CopyError> {
        progress.stage("reading the indexes of chunks", None);
        let threads = options.threads;
        let own = ChunkIndex::load(source, &index.pages).await.map_err(CopyError::Source)?;
        let own = Arc::new(own);
        let known = Arc::new(ChunkIndex::load(&destination.cluster, &there.pages).await?);
        for lost in known.lost() {
            tracing::warn!(key = %lost.key, error = %lost.error, "a segment of the destination cannot be read; its chunks are copied again");
        }
        let table = Table::new(source, own.clone()).map_err(CopyError::Source)?;
        let writer = ChunkWriter::create(destination.cluster.clone(), known.clone(), threads);
        Ok(Chunks {
            source,
            destination,
            progress,
            threads,
            commit_bytes: options.commit_bytes,
            of: index.pages.clone(),
            reader: ChunkReader::new(source.clone(), own, threads),
            known,
            table,
            writer,
            relied_on: HashSet::new(),
            tally: Tally::default(),
        })
    }

    /// Whether the source has its chunks where `index` says.
    pub fn is_of(&self, index: &Index) -> bool {
        self.of == index.pages
    }

    /// Takes over what `known`, of an earlier pass, found out of segments that the source has still. What it stored was named.
    pub fn adopt(&mut self, known: &Chunks<'_>) {
        self.tally = known.tally;
        let (there, relied_on) = (&self.known, &mut self.relied_on);
        self.table.adopt(&known.table, |name| {
            let at = there.find(name);
            relied_on.extend(at.and_then(|at| there.segment_key(at)).cloned());
            at.is_some()
        });
    }

    /// What `id` is called in the destination, if that is known.
    pub fn name(&self, id: &ChunkId) -> Option<ChunkId> {
        self.table.get(id)
    }

    /// Learns names from a backup that both hold: their manifests say the same, chunk by chunk. Reads no content.
    pub async fn learn(&mut self, ours: &Manifest, theirs: &Manifest) -> Result<(), CopyError> {
        let there = ChunkReader::new(self.destination.cluster.clone(), self.known.clone(), self.threads);
        if ours.pages.len() != theirs.pages.len() {
            return Ok(());
        }
        for (number, (own, other)) in ours.pages.iter().zip(&theirs.pages).enumerate() {
            if self.name(&own.chunk).is_some() {
                continue;
            }
            let files = ours.page(number, &self.reader).await.map_err(CopyError::Source)?;
            let others = theirs.page(number, &there).await?;
            let runs = |files: &[FileEntry]| -> Vec<ContentRun> {
                files.iter().flat_map(|file| file.content.clone()).collect()
            };
            let mut whole = true;
            for (run, other) in runs(&files).iter().zip(&runs(&others)) {
                whole &= self.learn_run((run, ours), (other, theirs), &there).await?;
            }
            if whole && files.len() == others.len() {
                self.learn_name(own.chunk, other.chunk);
            }
        }
        Ok(())
    }

    /// Whether everything of the run is known now.
    async fn learn_run(
        &mut self,
        (run, ours): (&ContentRun, &Manifest),
        (other, theirs): (&ContentRun, &Manifest),
        there: &ChunkReader,
    ) -> Result<bool, CopyError> {
        if (run.kind, run.len, run.chunks.len()) != (other.kind, other.len, other.chunks.len()) {
            return Ok(false);
        }
        let mut pairs: Vec<(ChunkId, ChunkId)> =
            run.chunks.iter().copied().zip(other.chunks.iter().copied()).collect();
        let mut whole = true;
        if let (RunKind::Map, [(own, name)]) = (run.kind, pairs.as_slice())
            && self.name(own).is_none()
        {
            let inner = ours.map(*own, run.len, &self.reader).await.map_err(CopyError::Source)?;
            let others = theirs.map(*name, run.len, there).await?;
            let flat =
                |runs: &[ContentRun]| runs.iter().flat_map(|run| run.chunks.clone()).collect::<Vec<_>>();
            let (inner, others) = (flat(&inner), flat(&others));
            if inner.len() != others.len() {
                return Ok(false);
            }
            for (own, name) in inner.into_iter().zip(others) {
                whole &= self.learn_name(own, name);
            }
            // The map is known only with all that is in it.
            pairs.retain(|_| whole);
        }
        for (own, name) in pairs {
            whole &= self.learn_name(own, name);
        }
        Ok(whole)
    }

    /// A name counts only if the destination can read what it stands for.
    fn learn_name(&mut self, own: ChunkId, name: ChunkId) -> bool {
        let (Some((slot, _)), Some(at)) = (self.table.slot(&own), self.known.find(&name)) else {
            return false;
        };
        self.relied_on.extend(self.known.segment_key(at).cloned());
        self.table.set(slot, name);
        true
    }

    /// Copies all of `wanted` whose names are not known; then they are.
    pub async fn fetch(&mut self, wanted: impl IntoIterator<Item = ChunkId>) -> Result<(), CopyError> {
        let mut unknown: BTreeSet<Slot> = BTreeSet::new();
        let mut reads = Vec::new();
        for id in wanted {
            let Some((slot, at)) = self.table.slot(&id) else {
                // Whoever reads it says what is missing.
                let error = self.reader.read(id).await.map(drop);
                error.map_err(CopyError::Source)?;
                continue;
            };
            if self.table.at(slot).is_none() && unknown.insert(slot) {
                self.tally.bytes_read += self.reader.index().stored_bytes(at);
                reads.push((id, slot));
            }
        }
        if reads.is_empty() {
            return Ok(());
        }
        let (send, receive) = mpsc::channel::<(Slot, Bytes)>(WAITING_CHUNKS);
        let deliver = move |slot: Slot, chunk: &[u8]| {
            let given = send.blocking_send((slot, Bytes::copy_from_slice(chunk)));
            given.map_err(|_| RepoError::Conflict { reason: "nobody stores what was read any more".into() })
        };
        let reader = self.reader.clone();
        let reading = async move { reader.fetch(reads, Arc::new(deliver)).await };
        let storing = async {
            // Taken along: whoever reads hears at once when nothing is stored any more.
            let mut receive = receive;
            while let Some((slot, chunk)) = receive.recv().await {
                let len = chunk.len() as u64;
                let name = self.writer.put(chunk).await?;
                self.table.set(slot, name);
                self.progress.advance(len);
            }
            Ok::<_, RepoError>(())
        };
        let (read, stored): (Result<(), RepoError>, _) = tokio::join!(reading, storing);
        stored?;
        read.map_err(CopyError::Source)
    }

    /// `runs` by the destination's names.
    pub fn renamed(&self, runs: &[ContentRun]) -> Result<Vec<ContentRun>, CopyError> {
        let run = |run: &ContentRun| {
            let names: Option<Vec<ChunkId>> = run.chunks.iter().map(|id| self.name(id)).collect();
            let chunks = names.ok_or_else(|| {
                CopyError::Source(RepoError::Conflict { reason: "a chunk moved while it was copied".into() })
            })?;
            Ok(ContentRun { chunks, ..run.clone() })
        };
        runs.iter().map(run).collect()
    }

    /// Stores a chunk that was made of names, in the place of the source's `id`.
    pub async fn put(&mut self, id: &ChunkId, chunk: Vec<u8>) -> Result<ChunkId, CopyError> {
        let name = self.writer.put(Bytes::from(chunk)).await?;
        if let Some((slot, _)) = self.table.slot(id) {
            self.table.set(slot, name);
        }
        Ok(name)
    }

    /// Reads the block map `id`, which stands for `len` bytes.
    pub async fn map(&self, id: ChunkId, len: u64) -> Result<Vec<ContentRun>, RepoError> {
        let map = self.reader.read(id).await?;
        block_map(&map, len).map_err(|reason| RepoError::Damage {
            key: crate::repo::layout::segments(self.source.name()),
            reason: format!("block map {id}: {reason}"),
        })
    }

    /// Names what was stored so far in the destination's index, if it is much.
    pub async fn save(&mut self, backup: &BackupId) -> Result<(), CopyError> {
        if self.writer.packed_bytes() >= self.commit_bytes { self.save_all(backup).await } else { Ok(()) }
    }

    /// Names all of it: what was proved of a backup that cannot be read whole counts for others.
    pub async fn save_all(&mut self, backup: &BackupId) -> Result<(), CopyError> {
        match self.finish_writer().await? {
            pages if pages.is_empty() => Ok(()),
            pages => self.destination.add_chunks(pages, backup).await,
        }
    }

    /// Waits until everything is durable: segments that are not named yet, and those that were there and are referred to.
    pub async fn finish(&mut self) -> Result<(Vec<PagesEntry>, Vec<ObjectKey>), CopyError> {
        let pages = self.finish_writer().await?;
        Ok((pages, self.relied_on.iter().cloned().collect()))
    }

    async fn finish_writer(&mut self) -> Result<Vec<PagesEntry>, RepoError> {
        self.relied_on.extend(self.writer.relied_on());
        let next = ChunkWriter::create(self.destination.cluster.clone(), self.known.clone(), self.threads);
        let (pages, stats) = std::mem::replace(&mut self.writer, next).finish().await?;
        self.tally.bytes_written += stats.bytes_new;
        self.tally.chunks_found += stats.chunks - stats.chunks_new;
        Ok(pages)
    }
}

/// Learns names of chunks from the newest backup that both sides hold. What cannot be learned is read.
pub async fn learn(
    source: &Cluster,
    destination: &Destination,
    (view, there): (&View, &Index),
    chunks: &mut Chunks<'_>,
) -> Result<(), CopyError> {
    let same = |own: &BackupEntry, other: &BackupEntry| {
        (own.generation, own.start, own.stop) == (other.generation, other.start, other.stop)
    };
    let both = view.index.backups.iter().filter_map(|own| {
        let other = there.backup(&own.id).filter(|other| same(own, other))?;
        Some((own, other))
    });
    let Some((own, other)) = both.max_by_key(|(own, _)| (own.generation, own.stop)) else { return Ok(()) };
    let learned = async {
        let ours = Manifest::open(source, &own.id, own.manifest_number).await.map_err(CopyError::Source)?;
        let theirs = Manifest::open(&destination.cluster, &other.id, other.manifest_number).await?;
        chunks.learn(&ours, &theirs).await
    };
    match learned.await {
        Err(CopyError::Source(error) | CopyError::Destination(error)) if error.is_damage() => {
            tracing::warn!(%error, backup = %own.id, "a backup that both sides hold cannot be read; chunks are read again");
            Ok(())
        }
        other => other,
    }
}
