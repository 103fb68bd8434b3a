//! The driver of the machine: compresses and seals what it cuts, stores it, tells it what became durable.
//! Several objects are compressed at once and several are stored at once; between the two they are sealed one by one.

use super::journal::{JournalHandle, Refill, refill};
use super::machine::{AckMode, Acknowledged, Cut, Hole, Machine};
use super::overlap::{Divergence, Overlap};
use super::seal::{Packed, Sealed, Sealer, pack};
use super::takeover::Won;
use super::upstream::UpstreamError;
use crate::base::planted::{Bug, planted};
use crate::base::{Generation, Lsn, StreamId, TimelineId, Timestamp};
use crate::disk::journal::{JournalError, JournalPosition, JournalRecord};
use crate::repo::chain::{self, Numbered};
use crate::repo::fences::{self, fenced};
use crate::repo::{Cluster, Created, RepoError};
use crate::wal::Summarizer;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, FuturesUnordered};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// The first wait before an object that could not be stored is sent again.
const STORE_WAIT_MIN: Duration = Duration::from_millis(500);
/// The longest.
const STORE_WAIT_MAX: Duration = Duration::from_secs(10);

/// Why receiving stopped.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The repository.
    #[error(transparent)]
    Repo(#[from] RepoError),
    /// The server.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The server left WAL out.
    #[error(transparent)]
    Hole(#[from] Hole),
    /// The server's WAL is not the continuation of what is stored.
    #[error(transparent)]
    Divergence(#[from] Divergence),
    /// The server's timeline is not one that follows what is stored.
    #[error("timeline: {0}")]
    Timeline(String),
    /// Things moved while we looked: start again.
    #[error("starting again: {0}")]
    Again(String),
    /// The newest root does not name our stream: the one that did was lost, and another made anew before the stream left a trace.
    #[error("starting again: root {root} does not name stream {stream}")]
    Unnamed {
        /// That root.
        root: u64,
        /// Our stream.
        stream: StreamId,
    },
    /// The journal holds WAL of a generation that is over, and the repository does not.
    #[error(
        "the journal in {} holds WAL of generation {held} from {from} to {to} that is not in the repository; generation {current} began",
        dir.display()
    )]
    LeftBehind {
        /// The journal's directory.
        dir: PathBuf,
        /// Whose WAL it is.
        held: Generation,
        /// The generation that the cluster is at.
        current: Generation,
        /// Where the repository's WAL of that generation ends.
        from: JournalPosition,
        /// Where the journal's ends.
        to: JournalPosition,
    },
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A thread of ours died.
    #[error("internal: {0}")]
    Internal(String),
}

impl ReceiveError {
    /// Whether connecting again may help without anybody mending anything.
    pub fn is_transient(&self) -> bool {
        match self {
            ReceiveError::Upstream(error) => {
                matches!(error, UpstreamError::Lost(_) | UpstreamError::SlotInUse { .. })
            }
            // A receiver outlives a store that is full: the slot holds what it cannot store.
            ReceiveError::Repo(error) => error.is_transient() || error.is_no_space(),
            ReceiveError::Hole(_) | ReceiveError::Again(_) | ReceiveError::Unnamed { .. } => true,
            ReceiveError::Divergence(_) | ReceiveError::Timeline(_) => false,
            ReceiveError::LeftBehind { .. } | ReceiveError::Journal(_) | ReceiveError::Internal(_) => false,
        }
    }
}

/// What was stored since the stream began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stored {
    /// Flush objects.
    pub objects: u64,
    /// WAL in them.
    pub wal_bytes: u64,
    /// Bytes of the objects.
    pub stored_bytes: u64,
    /// How far everything is durable.
    pub durable: Lsn,
}

/// One stream being written.
///
/// WAL goes to the machine as it comes. With a journal it goes there first; when the machine has no room, because the
/// repository is slow or away, WAL goes to the journal alone, and the machine gets it from there later.
pub struct Pipeline {
    cluster: Cluster,
    won: Won,
    machine: Machine,
    journal: Option<JournalHandle>,
    refilling: Option<JoinHandle<Refill>>,
    /// The newest bytes that arrived, whether or not the machine has them yet.
    overlap: Overlap,
    began: Instant,
    packing: FuturesOrdered<JoinHandle<Packed>>,
    sealer: Option<Sealer>,
    sealing: Option<JoinHandle<(Sealer, Sealed)>>,
    uploads: FuturesUnordered<BoxFuture<'static, Result<Uploaded, ReceiveError>>>,
    stored: watch::Sender<Stored>,
}

struct Uploaded {
    number: u64,
    stored_bytes: u64,
}

impl Pipeline {
    /// A pipeline for the stream `won`, from `start` on. `overlap` ends where the server is to go on: at `start`, or
    /// further, when the journal has what lies between.
    pub fn new(
        cluster: Cluster,
        won: Won,
        start: Lsn,
        overlap: Overlap,
        (cut, journal): (Cut, Option<JournalHandle>),
        summarizer: Summarizer,
        stored: watch::Sender<Stored>,
    ) -> Pipeline {
        let mode = if journal.is_some() { AckMode::Journal } else { AckMode::Object };
        if let Some(journal) = &journal {
            journal.begin(won.stream, won.writer_epoch, won.generation);
        }
        let before = won.before.as_ref();
        let continues = before.is_some_and(|before| before.end() == start && before.timeline == won.timeline);
        let server_time = before.map_or(Timestamp::MIN, |before| before.server_time);
        let machine = Machine::new(cut, mode, start, 0, server_time, Duration::ZERO);
        let sealer = Some(Sealer::new(cluster.clone(), won.clone(), continues, summarizer));
        Pipeline {
            cluster,
            won,
            machine,
            journal,
            refilling: None,
            overlap,
            began: Instant::now(),
            packing: FuturesOrdered::new(),
            sealer,
            sealing: None,
            uploads: FuturesUnordered::new(),
            stored,
        }
    }

    /// The stream's timeline.
    pub fn timeline(&self) -> TimelineId {
        self.won.timeline
    }

    /// The generation of the cluster that it stores.
    pub fn generation(&self) -> Generation {
        self.won.generation
    }

    /// The stream.
    pub fn stream(&self) -> StreamId {
        self.won.stream
    }

    /// One past the last byte received.
    pub fn received(&self) -> Lsn {
        self.overlap.end()
    }

    /// One past the last byte durable in the repository.
    pub fn durable(&self) -> Lsn {
        self.machine.durable()
    }

    /// Whether everything received is durable in the repository.
    pub fn is_drained(&self) -> bool {
        self.machine.is_drained() && self.machine.received() == self.received()
    }

    /// Whether more WAL may be taken in.
    pub fn has_room(&self) -> bool {
        self.journal.as_ref().map_or_else(|| self.machine.has_room(), JournalHandle::has_room)
    }

    /// The first byte that a resumed stream should send again, to be compared.
    pub fn overlap_start(&self) -> Lsn {
        self.overlap.start()
    }

    /// What may be told to the server.
    pub fn acknowledged(&self) -> Acknowledged {
        self.machine.acknowledged()
    }

    /// Takes in WAL from the server: compares what is stored already, keeps what is new.
    pub fn on_wal(&mut self, at: Lsn, bytes: Bytes, server_time: Timestamp) -> Result<(), ReceiveError> {
        let end = self.overlap.end();
        if at > end {
            return Err(Hole { expected: end, found: at }.into());
        }
        self.overlap.take(at, &bytes)?;
        let new = bytes.slice(usize::try_from(end.bytes_since(at)).unwrap_or(usize::MAX).min(bytes.len())..);
        if new.is_empty() {
            return Ok(());
        }
        if let Some(journal) = &self.journal {
            let timeline = self.won.timeline;
            journal.append(JournalRecord { timeline, start: end, server_time, wal: new.clone() });
        }
        if self.machine.received() == end && self.machine.has_room() {
            self.machine.on_wal(end, new, self.began.elapsed())?;
        }
        Ok(())
    }

    /// What a message said of the server.
    pub fn on_server_position(&mut self, server_end: Lsn, server_time: Timestamp) {
        self.machine.on_server_position(server_end, server_time);
    }

    /// The server wants to hear of the tail.
    pub fn on_reply_requested(&mut self) {
        self.machine.on_reply_requested();
    }

    /// Starts compressing every object that is due, and reading from the journal what the machine lacks.
    pub fn pump(&mut self, finishing: bool) {
        self.start_refill();
        if let Some(journal) = &self.journal {
            let at = JournalPosition { timeline: self.won.timeline, lsn: self.machine.durable() };
            let synced = journal.synced_past(at);
            let early = planted(Bug::AcknowledgeBeforeSync);
            self.machine.on_journaled(if early { self.overlap.end() } else { synced });
        }
        while let Some(flush) = self.machine.take_flush(self.began.elapsed(), finishing) {
            let cluster = self.cluster.clone();
            self.packing.push_back(tokio::task::spawn_blocking(move || pack(&cluster, flush)));
        }
    }

    fn seal(&mut self, packed: Packed) {
        let Some(mut sealer) = self.sealer.take() else { unreachable!("a sealer is idle or at work") };
        self.sealing = Some(tokio::task::spawn_blocking(move || {
            let sealed = sealer.seal(&packed);
            (sealer, sealed)
        }));
    }

    fn start_refill(&mut self) {
        let behind = self.machine.received() < self.overlap.end();
        let Some(journal) = self.journal.clone().filter(|_| behind && self.refilling.is_none()) else {
            return;
        };
        if !self.machine.has_room() {
            return;
        }
        let from = JournalPosition { timeline: self.won.timeline, lsn: self.machine.received() };
        if journal.synced_past(from) == from.lsn {
            return;
        }
        self.refilling = Some(tokio::spawn(async move {
            match journal.read_from(from).await {
                Some(reader) => refill(reader).await,
                None => Ok(Vec::new()),
            }
        }));
    }

    fn on_refilled(&mut self, records: Vec<JournalRecord>) -> Result<(), ReceiveError> {
        for record in records {
            if record.timeline == self.won.timeline {
                self.machine.on_wal(record.start, record.wal, self.began.elapsed())?;
            }
        }
        Ok(())
    }

    /// When [`Pipeline::pump`] has something to do by the passing of time alone; `None` when only an event changes that.
    pub fn due_at(&self) -> Option<Instant> {
        self.machine.deadline().map(|deadline| self.began + deadline)
    }

    /// Waits until an object was compressed, sealed or stored, or the journal went on. Cancel-safe.
    pub async fn progress(&mut self) -> Result<(), ReceiveError> {
        let internal = |error: tokio::task::JoinError| ReceiveError::Internal(error.to_string());
        let may_seal = self.sealing.is_none();
        let packing = async {
            match self.packing.next().await {
                Some(packed) => packed,
                None => std::future::pending().await,
            }
        };
        let sealing = async {
            match &mut self.sealing {
                Some(task) => task.await,
                None => std::future::pending().await,
            }
        };
        let refilling = async {
            match &mut self.refilling {
                Some(task) => task.await,
                None => std::future::pending().await,
            }
        };
        let journaled = async {
            match &mut self.journal {
                Some(journal) => journal.changed().await,
                None => std::future::pending().await,
            }
        };
        let uploading = async {
            match self.uploads.next().await {
                Some(done) => done,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            uploaded = uploading => self.on_uploaded(uploaded?),
            refilled = refilling => {
                self.refilling = None;
                self.on_refilled(refilled.map_err(internal)??)?;
            }
            () = journaled => {}
            sealed = sealing => {
                self.sealing = None;
                let (sealer, sealed) = sealed.map_err(internal)?;
                self.sealer = Some(sealer);
                self.uploads.push(Box::pin(upload(self.cluster.clone(), self.won.clone(), sealed)));
            }
            packed = packing, if may_seal => self.seal(packed.map_err(internal)?),
        }
        Ok(())
    }

    /// Stores everything received. Durable on `Ok`.
    pub async fn drain(&mut self) -> Result<(), ReceiveError> {
        self.pump(true);
        while !self.is_drained() {
            self.progress().await?;
            self.pump(true);
        }
        Ok(())
    }

    fn on_uploaded(&mut self, uploaded: Uploaded) {
        let before = self.machine.durable();
        self.machine.on_durable(uploaded.number);
        let durable = self.machine.durable();
        if let Some(journal) = self.journal.as_ref().filter(|_| durable > before) {
            let upto = if planted(Bug::JournalTrimmedEarly) { self.overlap.end() } else { durable };
            journal.trim(JournalPosition { timeline: self.won.timeline, lsn: upto });
        }
        self.stored.send_modify(|stored| {
            stored.objects += 1;
            stored.wal_bytes += durable.bytes_since(before);
            stored.stored_bytes += uploaded.stored_bytes;
            stored.durable = durable;
        });
    }
}

/// Stores one object, however long the store is away or full; finds out who won when its number is taken.
async fn upload(cluster: Cluster, won: Won, sealed: Sealed) -> Result<Uploaded, ReceiveError> {
    let stored_bytes = sealed.bytes.len() as u64;
    let lacking = "WAL cannot be stored, and is not acknowledged by it";
    let created = patiently(lacking, || cluster.repo().create(&sealed.key, &sealed.bytes)).await?;
    match created {
        Created::Ours => {
            if sealed.number == 0 {
                still_named(&cluster, &won).await?;
            }
            Ok(Uploaded { number: sealed.number, stored_bytes })
        }
        Created::Taken(bytes) => {
            match chain::open_numbered(&cluster, won.stream, sealed.number, bytes).await? {
                Numbered::Fence(fence) => Err(fenced(won.stream, sealed.number, fence.writer_epoch).into()),
                Numbered::Flush(_) => {
                    Err(RepoError::damage(&sealed.key, "another writer uses our stream's id").into())
                }
            }
        }
    }
}

/// Whether the newest root names our stream, now that its first object is stored. The root that did may have been lost since, and another
/// made anew before the stream left a trace (formats/root.md): nobody would ever look at what is stored in it.
async fn still_named(cluster: &Cluster, won: &Won) -> Result<(), ReceiveError> {
    let lacking = "nobody knows whether the newest root names the stream, and nothing in it is acknowledged";
    let root = patiently(lacking, || cluster.newest_root()).await?;
    match root.streams.iter().any(|stream| stream.id == won.stream) {
        true => Ok(()),
        false => Err(ReceiveError::Unnamed { root: root.number, stream: won.stream }),
    }
}

/// Asks the store, however long it is away or full; says meanwhile what is `lacking`.
async fn patiently<T, F>(lacking: &str, ask: impl Fn() -> F) -> Result<T, RepoError>
where
    F: Future<Output = Result<T, RepoError>>,
{
    let mut wait = STORE_WAIT_MIN;
    loop {
        match ask().await {
            Err(error) if error.is_transient() || error.is_no_space() => {
                tracing::error!(%error, "{lacking}; trying again in {wait:?}");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(STORE_WAIT_MAX);
            }
            other => return other,
        }
    }
}

/// Gives a pipeline up after `error`: what it holds in memory may not be what is stored, and the next takeover finds out. A stream that no
/// root names is closed first: no takeover does, and whoever makes a root anew takes an open one for a stream that goes on.
pub async fn give_up(pipeline: &mut Option<Pipeline>, error: &ReceiveError) {
    let Some(Pipeline { cluster, won, .. }) = pipeline.take() else { return };
    if matches!(error, ReceiveError::Unnamed { .. })
        && let Err(error) = fences::close_unread(&cluster, won.stream, 0, won.writer_epoch).await
    {
        tracing::error!(%error, "stream {}, which no root names, stays open", won.stream);
    }
}
