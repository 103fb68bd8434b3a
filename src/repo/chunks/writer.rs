//! Storing chunks that are not stored yet: hashed where they are put, compressed and sealed on threads, packed into
//! segments of [`PAGES_SEGMENT_BYTES`], uploaded while the next one fills. Dropping abandons: nothing refers to what was sent.
//! Memory: `SEGMENTS_MAX` segments, and `WAITING_A_THREAD` chunks a thread.

use super::{ChunkIndex, Location, Prefix, SHARDS, prefix_of, shard_of};
use crate::base::limits::PAGES_SEGMENT_BYTES;
use crate::base::{ChunkId, ObjectId, ObjectKey};
use crate::codec::object::{ObjectWriter, PackedChunk};
use crate::codec::{ChunkIdKey, KeySource};
use crate::format::header::ObjectKind;
use crate::format::index::PagesEntry;
use crate::repo::{Cluster, RepoError, layout};
use bytes::Bytes;
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

/// Segments in memory: one being filled, the others being uploaded.
const SEGMENTS_MAX: usize = 3;
/// Chunks for each thread, the one at work included: none is idle while the intake waits for the server.
const WAITING_A_THREAD: u32 = 8;
/// Chunks in one segment: bounds its directory.
const SEGMENT_CHUNKS_MAX: usize = 16 << 10;
/// The most that a chunk and the directory may add to a segment that is not full.
const SEGMENT_SLACK_BYTES: usize = 2 << 20;
/// A segment is full when another chunk and the directory might not fit any more.
const SEGMENT_FULL_BYTES: usize = PAGES_SEGMENT_BYTES - SEGMENT_SLACK_BYTES;

/// What a writer stored, and what it found stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChunkStats {
    /// Chunks put.
    pub chunks: u64,
    /// Chunks that were not stored before.
    pub chunks_new: u64,
    /// Stored bytes of every chunk put, each counted once.
    pub bytes_stored: u64,
    /// Bytes of the segments made.
    pub bytes_new: u64,
}

/// Stores chunks of a cluster.
#[derive(Debug)]
pub struct ChunkWriter {
    index: Arc<ChunkIndex>,
    chunk_id_key: ChunkIdKey,
    seen: Seen,
    /// Segments of the index in which a chunk was found.
    relied_on: BTreeSet<u32>,
    stats: ChunkStats,
    /// A permit for each chunk that waits or is being packed.
    room: Arc<Semaphore>,
    thread_count: u32,
    shared: Arc<Shared>,
}

/// What the threads share.
#[derive(Debug)]
struct Shared {
    cluster: Cluster,
    segments: Arc<Semaphore>,
    queue: Mutex<Queue>,
    state: Mutex<State>,
}

/// Chunks that wait for a thread, and how many threads take them.
#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    threads: u32,
}

#[derive(Debug)]
struct Waiting {
    chunk: Bytes,
    id: ChunkId,
    _room: OwnedSemaphorePermit,
}

#[derive(Default)]
struct State {
    open: Option<OpenSegment>,
    uploading: JoinSet<()>,
    entries: Vec<PagesEntry>,
    packed_bytes: u64,
    error: Option<RepoError>,
}

/// A segment being filled or uploaded; its permit bounds how many there are.
struct OpenSegment {
    id: ObjectId,
    key: ObjectKey,
    writer: ObjectWriter,
    permit: OwnedSemaphorePermit,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("entries", &self.entries.len()).field("error", &self.error).finish()
    }
}

impl ChunkWriter {
    /// Begins to store chunks that `index` does not have, compressing on `threads` threads.
    pub fn create(cluster: Cluster, index: Arc<ChunkIndex>, threads: usize) -> Self {
        let thread_count = threads.clamp(1, 64) as u32;
        ChunkWriter {
            chunk_id_key: cluster.repo().keys().chunk_id_key().clone(),
            seen: Seen::default(),
            relied_on: BTreeSet::new(),
            index,
            stats: ChunkStats::default(),
            room: Arc::new(Semaphore::new((thread_count * WAITING_A_THREAD) as usize)),
            thread_count,
            shared: Arc::new(Shared {
                cluster,
                segments: Arc::new(Semaphore::new(SEGMENTS_MAX)),
                queue: Mutex::default(),
                state: Mutex::default(),
            }),
        }
    }

    /// Stores `chunk` unless it is stored, and returns its id. Waits while the threads have enough to do; durable when
    /// [`ChunkWriter::finish`] says so. If dropped: the chunk may be missing, so drop the writer too.
    ///
    /// # Errors
    /// What befell an earlier segment.
    pub async fn put(&mut self, chunk: Bytes) -> Result<ChunkId, RepoError> {
        let id = self.chunk_id_key.chunk_id(&chunk);
        self.stats.chunks += 1;
        if let Some(at) = self.index.find(&id) {
            if self.seen.insert(&id) {
                self.stats.bytes_stored += self.index.stored_bytes(at);
                self.relied_on.insert(at.segment);
            }
            return Ok(id);
        }
        if !self.seen.insert(&id) {
            return Ok(id);
        }
        self.stats.chunks_new += 1;
        let Ok(permit) = self.room.clone().acquire_owned().await else {
            unreachable!("the semaphore is never closed")
        };
        if let Some(error) = self.shared.state().error.take() {
            return Err(error);
        }
        self.shared.enqueue(Waiting { chunk, id, _room: permit }, self.thread_count);
        Ok(id)
    }

    /// The segments that hold what was found stored: whoever commits sees to it that they are in the index still.
    pub fn relied_on(&self) -> Vec<ObjectKey> {
        let segments = self.relied_on.iter().map(|segment| Location { segment: *segment, frame: 0 });
        segments.filter_map(|at| self.index.segment_key(at).cloned()).collect()
    }

    /// Stored bytes of chunks not known before, so far.
    pub fn packed_bytes(&self) -> u64 {
        self.shared.state().packed_bytes
    }

    /// Waits until everything put is durable. Returns the segments made, for the index, and what was done.
    pub async fn finish(self) -> Result<(Vec<PagesEntry>, ChunkStats), RepoError> {
        let Ok(_all) = self.room.acquire_many(self.thread_count * WAITING_A_THREAD).await else {
            unreachable!("the semaphore is never closed")
        };
        let last = self.shared.state().open.take();
        if let Some(segment) = last {
            self.shared.upload(segment, &Handle::current());
        }
        let mut uploading = std::mem::take(&mut self.shared.state().uploading);
        while uploading.join_next().await.is_some() {}
        let mut state = self.shared.state();
        if let Some(error) = state.error.take() {
            return Err(error);
        }
        let mut entries = std::mem::take(&mut state.entries);
        entries.sort_by_key(|entry| entry.id);
        let mut stats = self.stats;
        stats.bytes_stored += state.packed_bytes;
        stats.bytes_new = entries.iter().map(|entry| entry.object_len).sum();
        let durable: u64 = entries.iter().map(|entry| u64::from(entry.chunk_count)).sum();
        assert!(durable == stats.chunks_new, "{durable} of {} new chunks are durable", stats.chunks_new);
        Ok((entries, stats))
    }
}

impl Drop for ChunkWriter {
    fn drop(&mut self) {
        self.shared.queue().waiting.clear();
        self.shared.state().uploading.abort_all();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A thread that died in here left its segment out of the state: `finish` counts, and finds chunks missing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves `chunk` to a thread: one that is at work, for as long as anything waits, or a new one.
    fn enqueue(self: &Arc<Self>, chunk: Waiting, threads_max: u32) {
        let mut queue = self.queue();
        queue.waiting.push_back(chunk);
        if queue.threads == threads_max {
            return;
        }
        queue.threads += 1;
        let (thread, handle) = (PackingThread { shared: self.clone() }, Handle::current());
        tokio::task::spawn_blocking(move || {
            while let Some(next) = thread.shared.next() {
                thread.shared.store(&PackedChunk::pack(&next.chunk, next.id), &handle);
            }
        });
    }

    fn next(&self) -> Option<Waiting> {
        let mut queue = self.queue();
        let next = queue.waiting.pop_front();
        if next.is_none() {
            queue.threads -= 1;
        }
        next
    }

    /// Adds a compressed chunk to the open segment, and sends that off once it is full.
    /// Waits while as many segments as may be are on their way.
    fn store(self: &Arc<Self>, chunk: &PackedChunk, runtime: &Handle) {
        let mut permit = None;
        let full = loop {
            let mut state = self.state();
            let open = state.open.take().or_else(|| {
                let permit = permit.take().or_else(|| self.segments.clone().try_acquire_owned().ok());
                permit.map(|permit| self.open_segment(permit))
            });
            let Some(mut segment) = open else {
                drop(state);
                permit = runtime.block_on(self.segments.clone().acquire_owned()).ok();
                continue;
            };
            state.packed_bytes += chunk.stored_len() as u64;
            segment.writer.add_packed(chunk, 0);
            if segment.writer.len() < SEGMENT_FULL_BYTES && segment.writer.frame_count() < SEGMENT_CHUNKS_MAX
            {
                state.open = Some(segment);
                return;
            }
            break segment;
        };
        self.upload(full, runtime);
    }

    fn open_segment(&self, permit: OwnedSemaphorePermit) -> OpenSegment {
        let repo = self.cluster.repo();
        let id = ObjectId::random(&*repo.env().entropy);
        let key = layout::segment(self.cluster.name(), id);
        let mut writer = repo.writer(ObjectKind::PagesSegment, &key, id.0, 0, 0);
        writer.reserve(PAGES_SEGMENT_BYTES + SEGMENT_SLACK_BYTES);
        OpenSegment { id, key, writer, permit }
    }

    /// Finishes `segment` and uploads it in the background.
    fn upload(self: &Arc<Self>, segment: OpenSegment, runtime: &Handle) {
        let OpenSegment { id, key, writer, permit } = segment;
        let finished = writer.finish(Vec::new());
        let frames = &finished.directory.frames;
        let entry = PagesEntry {
            id,
            object_len: finished.bytes.len() as u64,
            directory_offset: finished.directory_offset,
            chunk_count: frames.len() as u32,
            plain_bytes: frames.iter().map(|frame| u64::from(frame.plain_len)).sum(),
        };
        let shared = self.clone();
        let task = async move {
            let created = shared.cluster.repo().create_own(&key, &finished.bytes).await;
            let mut state = shared.state();
            match created {
                Ok(()) => state.entries.push(entry),
                Err(error) => {
                    state.error.get_or_insert(error);
                }
            }
            drop(permit);
        };
        let mut state = self.state();
        while state.uploading.try_join_next().is_some() {}
        state.uploading.spawn_on(task, runtime);
    }
}

/// One of [`Queue::threads`].
struct PackingThread {
    shared: Arc<Shared>,
}

impl Drop for PackingThread {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Nobody may be left to take what waits; `finish` finds it missing rather than waits for ever.
            let mut queue = self.shared.queue();
            queue.threads -= 1;
            queue.waiting.clear();
        }
    }
}

/// The chunks put so far.
#[derive(Debug)]
struct Seen {
    shards: Vec<Vec<Prefix>>,
}

impl Default for Seen {
    fn default() -> Self {
        Seen { shards: vec![Vec::new(); SHARDS] }
    }
}

impl Seen {
    /// Whether `id` was not there. Lists grow by an eighth: 18 bytes a chunk at most.
    fn insert(&mut self, id: &ChunkId) -> bool {
        let prefix = prefix_of(id);
        let Some(shard) = self.shards.get_mut(shard_of(&prefix)) else {
            unreachable!("12 bits number 4096 shards")
        };
        match shard.binary_search(&prefix) {
            Ok(_) => false,
            Err(at) => {
                if shard.len() == shard.capacity() {
                    shard.reserve_exact((shard.len() / 8).max(4));
                }
                shard.insert(at, prefix);
                true
            }
        }
    }
}
