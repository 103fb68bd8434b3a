//! Reading chunks: neighbours in a segment by one ranged read, several in flight; opened, decompressed and checked against
//! their ids on threads. A chunk whose bytes are damaged is taken from another segment that has it too.
//! Memory: `READS_MAX` reads of `READ_BYTES_MAX` and a chunk a thread.

use super::{ChunkIndex, Location};
use crate::base::ChunkId;
use crate::format::frame::FrameKind;
use crate::repo::{Cluster, RepoError, layout};
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Ranged reads in flight.
const READS_MAX: usize = 8;
/// Stored bytes that one read fetches, but for a single larger frame.
const READ_BYTES_MAX: u64 = 4 << 20;
/// Stored bytes between two frames that are cheaper to read than to skip.
const READ_GAP_BYTES_MAX: u64 = 128 << 10;

/// Reads chunks of a cluster by id. Clones share their bounds.
#[derive(Debug, Clone)]
pub struct ChunkReader {
    cluster: Cluster,
    index: Arc<ChunkIndex>,
    reads: Arc<Semaphore>,
    threads: Arc<Semaphore>,
}

/// A chunk to be read: where it is, and every use of it.
#[derive(Debug)]
struct Wanted<T> {
    at: Location,
    id: ChunkId,
    uses: Vec<T>,
}

impl ChunkReader {
    /// Reads the chunks that `index` knows, opening them on `threads` threads.
    pub fn new(cluster: Cluster, index: Arc<ChunkIndex>, threads: usize) -> Self {
        let threads = Arc::new(Semaphore::new(threads.clamp(1, 64)));
        ChunkReader { cluster, index, reads: Arc::new(Semaphore::new(READS_MAX)), threads }
    }

    /// The cluster.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The index it reads by.
    pub fn index(&self) -> &Arc<ChunkIndex> {
        &self.index
    }

    /// One chunk.
    pub async fn read(&self, id: ChunkId) -> Result<Vec<u8>, RepoError> {
        let mut damage = None;
        for at in self.index.find_all(&id) {
            match self.read_at(id, at).await {
                Err(error) if error.is_damage() => damage = Some(error),
                other => return other,
            }
        }
        Err(damage.unwrap_or_else(|| self.missing(id)))
    }

    /// Gives every wanted chunk to `deliver`, each as often as it is wanted, in no order, several at a time, on threads where
    /// it may block. Several fetches may run at once; they share the bounds. Returns when everything was delivered, or with
    /// the first error. If dropped: deliveries under way are finished, no other begins.
    ///
    /// # Errors
    /// What `deliver` answers; [`RepoError::Damage`] for a chunk that no segment holds undamaged; a store that fails.
    pub async fn fetch<T, E, F>(&self, wanted: Vec<(ChunkId, T)>, deliver: Arc<F>) -> Result<(), E>
    where
        T: Send + 'static,
        E: From<RepoError> + Send + 'static,
        F: Fn(T, &[u8]) -> Result<(), E> + Send + Sync + 'static,
    {
        let mut reads: JoinSet<Result<(), E>> = JoinSet::new();
        for run in runs(&self.index, self.locate(wanted)?) {
            let Ok(permit) = self.reads.clone().acquire_owned().await else {
                unreachable!("the semaphore is never closed")
            };
            while let Some(done) = reads.try_join_next() {
                joined(done)?;
            }
            let (reader, deliver) = (self.clone(), deliver.clone());
            reads.spawn(async move {
                let _permit = permit;
                reader.fetch_run(run, deliver).await
            });
        }
        while let Some(done) = reads.join_next().await {
            joined(done)?;
        }
        Ok(())
    }

    /// Finds every chunk, and sorts by place; a chunk wanted more than once is read once.
    fn locate<T>(&self, wanted: Vec<(ChunkId, T)>) -> Result<Vec<Wanted<T>>, RepoError> {
        let mut found = Vec::with_capacity(wanted.len());
        for (id, tag) in wanted {
            let at = self.index.find(&id).ok_or_else(|| self.missing(id))?;
            found.push(Wanted { at, id, uses: vec![tag] });
        }
        found.sort_by_key(|wanted| wanted.at);
        found.dedup_by(|next, kept| {
            let same = next.at == kept.at && next.id == kept.id;
            if same {
                kept.uses.append(&mut next.uses);
            }
            same
        });
        Ok(found)
    }

    /// Reads a run of neighbours and delivers them.
    async fn fetch_run<T, E, F>(&self, run: Vec<Wanted<T>>, deliver: Arc<F>) -> Result<(), E>
    where
        T: Send + 'static,
        E: From<RepoError> + Send + 'static,
        F: Fn(T, &[u8]) -> Result<(), E> + Send + Sync + 'static,
    {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return Ok(()) };
        let (id, first, last) = (first.id, first.at, last.at);
        let stored = match self.read_run(id, first, last).await {
            Ok(stored) => Some(stored),
            // Gone or cut short: each chunk may still be elsewhere.
            Err(error) if error.is_damage() => None,
            Err(error) => return Err(error.into()),
        };
        let Ok(permit) = self.threads.clone().acquire_owned().await else {
            unreachable!("the semaphore is never closed")
        };
        let (reader, to) = (self.clone(), deliver.clone());
        let opened = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            reader.open_run(run, stored, &*to)
        });
        for wanted in joined(opened.await)? {
            let chunk = Bytes::from(self.read(wanted.id).await?);
            for tag in wanted.uses {
                let (to, chunk) = (deliver.clone(), chunk.clone());
                joined(tokio::task::spawn_blocking(move || to(tag, &chunk)).await)?;
            }
        }
        Ok(())
    }

    /// The stored bytes from the frame at `first`, which holds `id`, to the one at `last`, and where they begin.
    async fn read_run(
        &self,
        id: ChunkId,
        first: Location,
        last: Location,
    ) -> Result<(u64, Bytes), RepoError> {
        let Some(segment) = self.index.segment(first) else { return Err(self.missing(id)) };
        let start = segment.frame_range(first.frame).start;
        let end = segment.frame_range(last.frame).end;
        Ok((start, self.cluster.repo().read_range(&segment.key, start..end).await?))
    }

    /// Opens and delivers the chunks of a run; returns those that are damaged here.
    fn open_run<T, E, F>(
        &self,
        run: Vec<Wanted<T>>,
        stored: Option<(u64, Bytes)>,
        deliver: &F,
    ) -> Result<Vec<Wanted<T>>, E>
    where
        F: Fn(T, &[u8]) -> Result<(), E>,
    {
        let Some((start, stored)) = stored else { return Ok(run) };
        let mut damaged = Vec::new();
        for wanted in run {
            let frame =
                self.index.segment(wanted.at).map_or(0..0, |segment| segment.frame_range(wanted.at.frame));
            let from = frame.start.saturating_sub(start) as usize;
            match self.open_frame(wanted.id, wanted.at, stored.get(from..).unwrap_or_default()) {
                Ok(chunk) => wanted.uses.into_iter().try_for_each(|tag| deliver(tag, &chunk))?,
                Err(error) => {
                    tracing::warn!(%error, chunk = %wanted.id, "a stored chunk is damaged; looking for another copy");
                    damaged.push(wanted);
                }
            }
        }
        Ok(damaged)
    }

    async fn read_at(&self, id: ChunkId, at: Location) -> Result<Vec<u8>, RepoError> {
        let Some(segment) = self.index.segment(at) else { return Err(self.missing(id)) };
        let stored = self.cluster.repo().read_range(&segment.key, segment.frame_range(at.frame)).await?;
        self.open_frame(id, at, &stored)
    }

    /// Opens the frame at the start of `stored`: CRC, seal, compression, length, id.
    fn open_frame(&self, id: ChunkId, at: Location, stored: &[u8]) -> Result<Vec<u8>, RepoError> {
        let Some(segment) = self.index.segment(at) else { return Err(self.missing(id)) };
        let opened = segment.reader.frame(at.frame.into(), FrameKind::Data, stored);
        let chunk = opened.map_err(|error| RepoError::open(&segment.key, error))?;
        let found = self.cluster.repo().chunk_id(&chunk);
        if found != id {
            let reason = format!("frame {} holds chunk {found}, its directory says {id}", at.frame);
            return Err(RepoError::damage(&segment.key, reason));
        }
        Ok(chunk)
    }

    fn missing(&self, id: ChunkId) -> RepoError {
        let (key, why) = match self.index.lost().first() {
            Some(lost) => (
                lost.key.clone(),
                format!("; {} segments cannot be read, {} first", self.index.lost().len(), lost.error),
            ),
            None => (layout::segments(self.cluster.name()), String::new()),
        };
        RepoError::Damage { key, reason: format!("no segment holds chunk {id}{why}") }
    }
}

/// Cuts chunks sorted by place into runs that one read fetches.
fn runs<T>(index: &ChunkIndex, sorted: Vec<Wanted<T>>) -> Vec<Vec<Wanted<T>>> {
    let mut runs: Vec<Vec<Wanted<T>>> = Vec::new();
    let mut span = 0..0;
    for wanted in sorted {
        let frame = index.segment(wanted.at).map_or(0..0, |segment| segment.frame_range(wanted.at.frame));
        match runs.last_mut() {
            Some(run)
                if run.last().is_some_and(|last| last.at.segment == wanted.at.segment)
                    && frame.start.saturating_sub(span.end) <= READ_GAP_BYTES_MAX
                    && frame.end - span.start <= READ_BYTES_MAX =>
            {
                span.end = frame.end;
                run.push(wanted);
            }
            _ => {
                span = frame;
                runs.push(vec![wanted]);
            }
        }
    }
    runs
}

/// The result of a task; a panic goes on where the task was awaited.
fn joined<T, E>(done: Result<Result<T, E>, tokio::task::JoinError>) -> Result<T, E> {
    match done {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
