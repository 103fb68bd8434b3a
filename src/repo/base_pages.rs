//! Pages of one backup, for images that are differences from them: which chunk holds a block's page, and a bounded store of chunks
//! that were read. Chunks are read when their pages are wanted, so nothing that WAL does not touch is ever fetched.
//!
//! The store proves nothing: to an encoder each page is given with the keyed hash that it had when its chunk was checked against its id.

use super::chunks::{ChunkIndex, ChunkReader};
use super::error::RepoError;
use super::manifest::{Manifest, block_map};
use super::{Cluster, index, layout};
use crate::base::limits::BLOCK_BYTES;
use crate::base::{BackupId, ChunkId, Memory};
use crate::delta::limits::FRAME_IMAGES_MAX;
use crate::delta::{BlockId, Page, PageSource, Vouched, page_hash};
use crate::format::manifest::{CHUNK_BYTES, ContentRun, RunKind};
use crate::format::wal::RelationRef;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

/// The least number of chunks that have room: whatever one frame refers to.
pub const CHUNKS_MIN: usize = FRAME_IMAGES_MAX;
/// Chunks read at a time.
const BATCH_CHUNKS: usize = 32;
/// Files whose chunks are known at a time, and chunks of all of them together: 32 MiB.
const FILES_MAX: usize = 16 << 10;
const FILE_CHUNKS_MAX: usize = 1 << 20;
const PAGES_PER_CHUNK: usize = CHUNK_BYTES / BLOCK_BYTES;
/// Blocks in one file of a relation.
const FILE_BLOCKS: u32 = 1 << 17;
const DEFAULT_TABLESPACE: u32 = 1663;
const GLOBAL_TABLESPACE: u32 = 1664;

/// A file of a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RelationFile {
    relation: RelationRef,
    fork: u8,
    number: u32,
}

impl RelationFile {
    /// The file that holds `block`, and where in it.
    pub fn of(block: &BlockId) -> (RelationFile, u64) {
        let BlockId { relation, fork, block } = *block;
        let offset = u64::from(block % FILE_BLOCKS) * BLOCK_BYTES as u64;
        (RelationFile { relation, fork, number: block / FILE_BLOCKS }, offset)
    }

    /// The tablespace whose folder has to be known to find it; `None` for those inside the data directory.
    pub fn tablespace(&self) -> Option<u32> {
        let tablespace = self.relation.tablespace;
        (![DEFAULT_TABLESPACE, GLOBAL_TABLESPACE].contains(&tablespace)).then_some(tablespace)
    }

    /// Its path in the data directory. `folder` is that of the server's version in [`Self::tablespace`],
    /// `pg_tblspc/<oid>/PG_<version>_<catalog version>`.
    pub fn path(&self, folder: Option<&str>) -> Option<String> {
        let RelationRef { tablespace, database, relation } = self.relation;
        let folder = match tablespace {
            GLOBAL_TABLESPACE => "global".to_owned(),
            DEFAULT_TABLESPACE => format!("base/{database}"),
            _ => format!("{}/{database}", folder?),
        };
        let fork = match self.fork {
            0 => "",
            1 => "_fsm",
            2 => "_vm",
            3 => "_init",
            _ => return None,
        };
        let number = if self.number == 0 { String::new() } else { format!(".{}", self.number) };
        Some(format!("{folder}/{relation}{fork}{number}"))
    }
}

/// A chunk that was read.
type ReadChunk = (ChunkId, Vec<u8>);
/// What a file is made of: each run with the place where it begins.
type FileRuns = Vec<(u64, ContentRun)>;

/// Pages of one backup.
#[derive(Debug)]
pub struct BasePages {
    backup: BackupId,
    manifest: Manifest,
    chunks: ChunkReader,
    /// `None` is a file that the backup does not have.
    files: HashMap<RelationFile, Option<FileRuns>>,
    file_chunks: usize,
    /// By tablespace: the folder of this version in it, if the backup has one.
    folders: HashMap<u32, Option<String>>,
    store: ChunkStore,
    chunks_read: u64,
}

impl BasePages {
    /// Pages of `backup`, with room for `chunks_max` chunks, or [`CHUNKS_MIN`] if that is more. `page_key` is that of the hashes
    /// that pages are given with; a decoder needs none, since it holds what comes of them against the frame's own hash.
    pub async fn open(
        cluster: &Cluster,
        backup: &BackupId,
        chunks_max: usize,
        page_key: Option<[u8; 32]>,
    ) -> Result<BasePages, RepoError> {
        let root = cluster.newest_root().await?;
        let index = index::load(cluster, root.index).await?;
        // One that the index let go may be there still.
        let number = index.backup(backup).map_or(0, |entry| entry.manifest_number);
        let manifest = Manifest::open(cluster, backup, number).await?;
        let chunk_index = Arc::new(ChunkIndex::load(cluster, &index.pages).await?);
        // One thread: this is beside what the server waits for.
        let chunks = ChunkReader::new(cluster.clone(), chunk_index, 1);
        Ok(BasePages {
            backup: backup.clone(),
            manifest,
            chunks,
            files: HashMap::new(),
            file_chunks: 0,
            folders: HashMap::new(),
            store: ChunkStore::new(cluster, chunks_max.max(CHUNKS_MIN), page_key)?,
            chunks_read: 0,
        })
    }

    /// The backup.
    pub fn backup(&self) -> &BackupId {
        &self.backup
    }

    /// Chunks read so far.
    pub fn chunks_read(&self) -> u64 {
        self.chunks_read
    }

    /// Gets the chunks that hold `blocks`, of those not at hand at most `reads_max`: such as hold the most of them first.
    ///
    /// # Errors
    /// Chunks that are damaged or gone, and a store that fails. What was read before stays at hand.
    pub async fn prepare(&mut self, blocks: &[BlockId], reads_max: usize) -> Result<(), RepoError> {
        if self.files.len() > FILES_MAX || self.file_chunks > FILE_CHUNKS_MAX {
            self.files.clear();
            self.file_chunks = 0;
        }
        let mut wanted: HashMap<ChunkId, usize> = HashMap::new();
        for block in blocks {
            self.load_file(RelationFile::of(block).0).await?;
            if let Some((chunk, _)) = self.place(block)
                && !self.store.touch(&chunk)
            {
                *wanted.entry(chunk).or_default() += 1;
            }
        }
        let mut wanted: Vec<(ChunkId, usize)> = wanted.into_iter().collect();
        wanted.sort_unstable_by(|a, b| b.1.cmp(&a.1).then(a.0.0.cmp(&b.0.0)));
        wanted.truncate(reads_max.min(self.store.chunks_max));
        for batch in wanted.chunks(BATCH_CHUNKS) {
            let read: Arc<Mutex<Vec<ReadChunk>>> = Arc::default();
            let to = read.clone();
            let deliver = move |id: ChunkId, bytes: &[u8]| {
                to.lock().unwrap_or_else(PoisonError::into_inner).push((id, bytes.to_vec()));
                Ok::<(), RepoError>(())
            };
            let batch = batch.iter().map(|(id, _)| (*id, *id)).collect();
            self.chunks.fetch(batch, Arc::new(deliver)).await?;
            for (id, bytes) in std::mem::take(&mut *read.lock().unwrap_or_else(PoisonError::into_inner)) {
                self.store.put(id, &bytes)?;
                self.chunks_read += 1;
            }
        }
        Ok(())
    }

    /// The chunk that holds the page of `block`, and which of its pages it is. Its file was loaded.
    fn place(&self, block: &BlockId) -> Option<(ChunkId, usize)> {
        let (file, offset) = RelationFile::of(block);
        let runs = self.files.get(&file)?.as_ref()?;
        let (start, run) = runs.get(runs.partition_point(|(start, _)| *start <= offset).checked_sub(1)?)?;
        let within = offset - start;
        // A page of zeros is near to nothing; one that is not whole was cut while the server wrote it.
        if run.kind != RunKind::Chunks || within + BLOCK_BYTES as u64 > run.len {
            return None;
        }
        let chunk = run.chunks.get((within / CHUNK_BYTES as u64) as usize)?;
        Some((*chunk, (within % CHUNK_BYTES as u64) as usize / BLOCK_BYTES))
    }

    async fn load_file(&mut self, file: RelationFile) -> Result<(), RepoError> {
        if self.files.contains_key(&file) {
            return Ok(());
        }
        let runs = match self.path_of(&file).await? {
            Some(path) => self.runs_of(&path).await?,
            None => None,
        };
        let chunks = |runs: &FileRuns| runs.iter().map(|(_, run)| run.chunks.len()).sum();
        self.file_chunks += runs.as_ref().map_or(0, chunks);
        self.files.insert(file, runs);
        Ok(())
    }

    async fn runs_of(&self, path: &str) -> Result<Option<FileRuns>, RepoError> {
        let found = self.manifest.first_from(&self.chunks, path).await?;
        let Some(entry) = found.filter(|entry| entry.path == path) else { return Ok(None) };
        let (mut placed, mut start) = (Vec::new(), 0);
        for run in entry.content {
            let runs = match (run.kind, run.chunks.first()) {
                (RunKind::Map, Some(id)) => {
                    let map = self.chunks.read(*id).await?;
                    let damage = |reason| {
                        RepoError::damage(
                            &layout::manifest(self.chunks.cluster().name(), &self.backup, 0),
                            reason,
                        )
                    };
                    block_map(&map, run.len).map_err(damage)?
                }
                _ => vec![run],
            };
            for run in runs {
                let len = run.len;
                placed.push((start, run));
                start += len;
            }
        }
        Ok(Some(placed))
    }

    /// Where the backup has `file`, if it has its tablespace.
    async fn path_of(&mut self, file: &RelationFile) -> Result<Option<String>, RepoError> {
        let folder = match file.tablespace() {
            Some(tablespace) => self.tablespace_folder(tablespace).await?,
            None => None,
        };
        Ok(file.path(folder.as_deref()))
    }

    /// `pg_tblspc/<oid>/PG_<version>_<catalog version>`, whatever the catalog version is.
    async fn tablespace_folder(&mut self, tablespace: u32) -> Result<Option<String>, RepoError> {
        if let Some(known) = self.folders.get(&tablespace) {
            return Ok(known.clone());
        }
        let start = format!("pg_tblspc/{tablespace}/PG_");
        let first = self.manifest.first_from(&self.chunks, &start).await?;
        let folder = first.filter(|entry| entry.path.starts_with(&start)).map(|entry| {
            let parts: Vec<&str> = entry.path.split('/').take(3).collect();
            parts.join("/")
        });
        self.folders.insert(tablespace, folder.clone());
        Ok(folder)
    }
}

impl PageSource for BasePages {
    fn base_page(&mut self, block: &BlockId, page: &mut Page) -> Option<Vouched> {
        let (chunk, number) = self.place(block)?;
        let (found, vouched) = self.store.lend(&chunk, number)?;
        *page = *found;
        Some(vouched)
    }

    fn lend_page<'a>(
        &'a mut self,
        block: &BlockId,
        _expected: u32,
        _room: &'a mut Page,
    ) -> Option<(&'a Page, Vouched)> {
        let (chunk, number) = self.place(block)?;
        self.store.lend(&chunk, number)
    }
}

/// A bounded store of chunks: when it is full, the chunk that was not wanted for the longest goes.
#[derive(Debug)]
struct ChunkStore {
    key: Option<[u8; 32]>,
    chunks_max: usize,
    memory: Box<dyn Memory>,
    places: HashMap<ChunkId, Place>,
    queue: VecDeque<(ChunkId, u64)>,
    turn: u64,
    /// By place and page.
    hashes: Vec<[u8; 32]>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    slot: usize,
    pages: usize,
    turn: u64,
}

impl ChunkStore {
    fn new(cluster: &Cluster, chunks_max: usize, key: Option<[u8; 32]>) -> Result<Self, RepoError> {
        let env = cluster.repo().env();
        let bytes = chunks_max * CHUNK_BYTES;
        let no_room =
            |error: std::io::Error| RepoError::NoRoom { bytes: bytes as u64, reason: error.to_string() };
        Ok(ChunkStore {
            key,
            chunks_max,
            memory: env.scratch.memory(bytes).map_err(no_room)?,
            places: HashMap::new(),
            queue: VecDeque::new(),
            turn: 0,
            hashes: Vec::new(),
        })
    }

    /// Whether `chunk` is there; it is among the last to go then.
    fn touch(&mut self, chunk: &ChunkId) -> bool {
        let Some(place) = self.places.get_mut(chunk) else { return false };
        self.turn += 1;
        place.turn = self.turn;
        self.queue.push_back((*chunk, self.turn));
        if self.queue.len() > 4 * self.chunks_max {
            let places = &self.places;
            self.queue.retain(|(chunk, turn)| places.get(chunk).is_some_and(|place| place.turn == *turn));
        }
        true
    }

    fn put(&mut self, chunk: ChunkId, bytes: &[u8]) -> Result<(), RepoError> {
        if self.touch(&chunk) {
            return Ok(());
        }
        let slot = if self.places.len() < self.chunks_max { self.places.len() } else { self.evict() };
        let at = slot * CHUNK_BYTES;
        let no_room = |error: std::io::Error| RepoError::NoRoom {
            bytes: (at + CHUNK_BYTES) as u64,
            reason: error.to_string(),
        };
        self.memory.reach(at + CHUNK_BYTES).map_err(no_room)?;
        if let Some(room) = self.memory.bytes_mut().get_mut(at..at + bytes.len().min(CHUNK_BYTES)) {
            room.copy_from_slice(&bytes[..room.len()]);
        }
        let (pages, _) = bytes.as_chunks::<BLOCK_BYTES>();
        if let Some(key) = &self.key {
            let first = slot * PAGES_PER_CHUNK;
            if self.hashes.len() < first + PAGES_PER_CHUNK {
                self.hashes.resize(first + PAGES_PER_CHUNK, [0; 32]);
            }
            for (hash, page) in self.hashes.iter_mut().skip(first).zip(pages) {
                *hash = page_hash(key, page);
            }
        }
        self.turn += 1;
        let place = Place { slot, pages: pages.len().min(PAGES_PER_CHUNK), turn: self.turn };
        self.places.insert(chunk, place);
        self.queue.push_back((chunk, self.turn));
        Ok(())
    }

    /// Page `number` of `chunk`, and the hash that it had if there is a key.
    fn lend(&self, chunk: &ChunkId, number: usize) -> Option<(&Page, Vouched)> {
        let place = self.places.get(chunk).filter(|place| number < place.pages)?;
        let at = place.slot * CHUNK_BYTES + number * BLOCK_BYTES;
        let page = self.memory.bytes().get(at..)?.first_chunk()?;
        let vouched = match self.key {
            Some(_) => Vouched::ByHash(*self.hashes.get(place.slot * PAGES_PER_CHUNK + number)?),
            None => Vouched::BySource,
        };
        Some((page, vouched))
    }

    /// Lets the chunk go that was not wanted for the longest; its place is free.
    fn evict(&mut self) -> usize {
        while let Some((chunk, turn)) = self.queue.pop_front() {
            if self.places.get(&chunk).is_some_and(|place| place.turn == turn) {
                return self.places.remove(&chunk).map_or(0, |place| place.slot);
            }
        }
        unreachable!("a full store has every chunk in its queue")
    }
}
