//! The journal's task: takes in WAL as it comes, syncs what piled up in one go, says how far it is durable.
//! It owns the journal for the life of the process; streams come and go before it.
//! What was taken in and is not synced stays in memory, and is appended again when the disk failed.

use super::overlap::Overlap;
use crate::base::{Generation, Lsn, StreamId};
use crate::disk::journal::{Journal, JournalError, JournalPosition, JournalReader, JournalRecord};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// Bytes waiting for the journal at once.
pub const QUEUED_BYTES_MAX: usize = 32 << 20;
/// WAL that one read for the repository takes in.
pub const READ_BYTES: usize = 8 << 20;
/// The wait before a failed journal is tried again.
const RETRY_WAIT: Duration = Duration::from_secs(1);

/// How the journal is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JournalState {
    /// How far it is durable.
    pub synced: Option<JournalPosition>,
    /// The generation of what it holds.
    pub generation: Option<Generation>,
    /// Why it does not go on, while it does not.
    pub stuck: Option<String>,
}

enum Command {
    Begin { stream: StreamId, writer_epoch: u64, generation: Generation },
    Discard { done: oneshot::Sender<()> },
    Append(JournalRecord),
    Trim(JournalPosition),
    Read { from: JournalPosition, reply: oneshot::Sender<JournalReader> },
}

/// What the pipeline holds of the journal.
#[derive(Debug, Clone)]
pub struct JournalHandle {
    commands: mpsc::UnboundedSender<Command>,
    queued_bytes: Arc<AtomicUsize>,
    state: watch::Receiver<JournalState>,
}

impl JournalHandle {
    /// Starts the task over an open journal.
    pub fn start(journal: Journal) -> JournalHandle {
        let (commands, inbox) = mpsc::unbounded_channel();
        let (state, seen) = watch::channel(JournalState {
            synced: journal.synced().or(journal.end()),
            generation: journal.generation(),
            stuck: None,
        });
        let queued_bytes = Arc::new(AtomicUsize::new(0));
        let task =
            Task { journal, inbox, state, queued_bytes: queued_bytes.clone(), unsynced: VecDeque::new() };
        tokio::spawn(task.run());
        JournalHandle { commands, queued_bytes, state: seen }
    }

    /// Records from now on belong to `stream`, of `generation`. What it holds of another one was discarded before.
    pub fn begin(&self, stream: StreamId, writer_epoch: u64, generation: Generation) {
        self.send(Command::Begin { stream, writer_epoch, generation });
    }

    /// Removes all that it holds, which is durable elsewhere. On return it is as new.
    pub async fn discard(&self) {
        let (done, answer) = oneshot::channel();
        self.send(Command::Discard { done });
        answer.await.ok();
    }

    /// Queues a record. The caller asked [`JournalHandle::has_room`] before, which bounds the queue.
    pub fn append(&self, record: JournalRecord) {
        self.queued_bytes.fetch_add(record.wal.len(), Ordering::Relaxed);
        self.send(Command::Append(record));
    }

    /// What lies up to `upto` is durable in the repository.
    pub fn trim(&self, upto: JournalPosition) {
        self.send(Command::Trim(upto));
    }

    /// Whether more may be queued.
    pub fn has_room(&self) -> bool {
        self.queued_bytes.load(Ordering::Relaxed) < QUEUED_BYTES_MAX
    }

    /// How it is now.
    pub fn state(&self) -> JournalState {
        self.state.borrow().clone()
    }

    /// How far it is durable on the timeline of `at`; `at` when it is not past it.
    pub fn synced_past(&self, at: JournalPosition) -> Lsn {
        match self.state.borrow().synced {
            Some(synced) if synced.timeline == at.timeline => synced.lsn.max(at.lsn),
            _ => at.lsn,
        }
    }

    /// Waits until [`JournalHandle::state`] changes. Cancel-safe.
    pub async fn changed(&mut self) {
        if self.state.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The first position that the journal holds past `from`, on its timeline.
    pub async fn first_past(&self, from: JournalPosition) -> Result<Option<Lsn>, JournalError> {
        let Some(mut reader) = self.read_from(from).await else { return Ok(None) };
        while let Some(record) = reader.next().await? {
            if record.timeline == from.timeline {
                return Ok(Some(record.start));
            }
        }
        Ok(None)
    }

    /// The bytes that the journal holds from `from` up to `end`.
    pub async fn tail(&self, from: JournalPosition, end: Lsn) -> Result<Overlap, JournalError> {
        let mut overlap = Overlap::empty(from.lsn);
        let Some(mut reader) = self.read_from(from).await else { return Ok(overlap) };
        while let Some(record) = reader.next().await?.filter(|_| overlap.end() < end) {
            if record.timeline == from.timeline && overlap.take(record.start, &record.wal).is_err() {
                unreachable!("the journal's records follow each other and do not overlap");
            }
        }
        Ok(overlap)
    }

    /// A reader of what is durable past `from`; `None` when the task is gone.
    pub async fn read_from(&self, from: JournalPosition) -> Option<JournalReader> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Read { from, reply });
        answer.await.ok()
    }

    /// The task ends only with the process, or when this handle and its clones are gone.
    fn send(&self, command: Command) {
        if self.commands.send(command).is_err() {
            tracing::error!("the journal's task is gone");
        }
    }
}

struct Task {
    journal: Journal,
    inbox: mpsc::UnboundedReceiver<Command>,
    state: watch::Sender<JournalState>,
    queued_bytes: Arc<AtomicUsize>,
    unsynced: VecDeque<JournalRecord>,
}

impl Task {
    async fn run(mut self) {
        while let Some(command) = self.inbox.recv().await {
            let mut appended = self.handle(command).await;
            // Group commit: everything that piled up during the last sync goes with the next.
            while let Ok(command) = self.inbox.try_recv() {
                appended |= self.handle(command).await;
            }
            if appended {
                self.settle().await;
            }
        }
        if let Err(error) = self.journal.finish().await {
            tracing::warn!(%error, "the journal was not closed in order; the next start reads it through");
        }
    }

    /// True when something is to be synced.
    async fn handle(&mut self, command: Command) -> bool {
        match command {
            Command::Append(record) => {
                self.unsynced.push_back(record);
                true
            }
            Command::Begin { stream, writer_epoch, generation } => {
                while let Err(error) = self.journal.begin_stream(stream, writer_epoch, generation).await {
                    self.stuck(&error).await;
                }
                self.state.send_modify(|state| state.generation = Some(generation));
                false
            }
            Command::Discard { done } => {
                while let Err(error) = self.journal.discard().await {
                    self.stuck(&error).await;
                }
                self.state.send_replace(JournalState::default());
                done.send(()).ok();
                false
            }
            Command::Trim(upto) => {
                if let Err(error) = self.journal.trim(upto).await {
                    tracing::warn!(%error, "trimming the journal failed; it is tried again");
                }
                false
            }
            Command::Read { from, reply } => {
                let _ = reply.send(self.journal.read_from(Some(from)));
                false
            }
        }
    }

    /// Makes everything taken in durable, however often the disk fails; meanwhile nothing of it is acknowledged.
    async fn settle(&mut self) {
        loop {
            match self.append_and_sync().await {
                Ok(synced) => {
                    let bytes: usize = self.unsynced.drain(..).map(|record| record.wal.len()).sum();
                    self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
                    self.state.send_modify(|state| (state.synced, state.stuck) = (synced, None));
                    return;
                }
                Err(error) => {
                    self.stuck(&error).await;
                    self.take_trims().await;
                }
            }
        }
    }

    async fn append_and_sync(&mut self) -> Result<Option<JournalPosition>, JournalError> {
        // In order, and from where the journal stands: after a failure that is its last good sync, perhaps inside a record.
        for record in &self.unsynced {
            if let Some(rest) = past(record, self.journal.end()) {
                self.journal.append(&rest).await?;
            }
        }
        self.journal.sync().await
    }

    /// While the journal is full, only trimming helps, and readers must go on; the rest waits its turn.
    async fn take_trims(&mut self) {
        let mut later = Vec::new();
        while let Ok(command) = self.inbox.try_recv() {
            match command {
                Command::Trim(_) | Command::Read { .. } => {
                    self.handle(command).await;
                }
                Command::Append(record) => self.unsynced.push_back(record),
                Command::Begin { .. } | Command::Discard { .. } => later.push(command),
            }
        }
        for command in later {
            self.handle(command).await;
        }
    }

    async fn stuck(&mut self, error: &JournalError) {
        let reason = error.to_string();
        if self.state.borrow().stuck.as_ref() != Some(&reason) {
            tracing::error!(%error, "the journal does not go on; nothing more is acknowledged from it");
        }
        self.state.send_modify(|state| state.stuck = Some(reason));
        tokio::time::sleep(RETRY_WAIT).await;
    }
}

/// What of `record` lies past `end`.
fn past(record: &JournalRecord, end: Option<JournalPosition>) -> Option<JournalRecord> {
    let Some(end) = end.filter(|end| end.timeline == record.timeline && end.lsn > record.start) else {
        return Some(record.clone());
    };
    let known = usize::try_from(end.lsn.bytes_since(record.start)).unwrap_or(usize::MAX);
    (known < record.wal.len()).then(|| JournalRecord {
        start: end.lsn,
        wal: record.wal.slice(known..),
        ..record.clone()
    })
}

/// What one read gave.
pub type Refill = Result<Vec<JournalRecord>, JournalError>;

/// Reads some MiB; an empty list at the end of what was durable when the reader was made.
pub async fn refill(mut reader: JournalReader) -> Refill {
    let mut records = Vec::new();
    let mut bytes = 0;
    while bytes < READ_BYTES {
        let Some(record) = reader.next().await? else { break };
        bytes += record.wal.len();
        records.push(record);
    }
    Ok(records)
}
