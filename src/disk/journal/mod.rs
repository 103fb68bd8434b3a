//! The journal: what was received and is not yet in the repository, sealed, appended to numbered files of one directory, and
//! durable once synced. Spec: formats/journal.md.
//!
//! Invariants:
//! - a file is never appended to after it was opened again: a new one begins, with a salt of its own (nonces are never reused);
//! - a failed fdatasync ends its file, and nothing past its last good sync is called durable: the next file says how much of
//!   the one before was;
//! - the tail that no later sync vouches for is written anew when the journal is opened: what the page cache shows after a
//!   kill may be what a failed write-back never stored;
//! - all files are of one generation of the cluster: WAL of the next begins only once nothing of the one before is left;
//! - files are removed oldest first, each removal synced, so that a missing one in the middle is damage;
//! - files are read with pread and never mapped.

mod cursor;
mod error;
mod read;
mod recover;
mod trim;

pub use error::JournalError;
pub use read::JournalReader;
pub use recover::{Recovered, Recovery};

use super::{Disk, DiskFile, DiskLock};
use crate::base::clock::random_bytes;
use crate::base::{ClusterName, Entropy, Generation, Lsn, RepositoryId, StreamId, TimelineId, Timestamp};
use crate::codec::journal::{JournalBuffer, JournalSealer};
use crate::codec::{EpochSecret, KeySource};
use crate::format::header::{LASTING_EPOCH, ObjectHeader, ObjectKind};
use crate::format::journal::{
    JOURNAL_BEGIN_BYTES, JournalBegin, JournalFrameKind, JournalHead, JournalPrevious, journal_file_name,
    journal_place,
};
use bytes::Bytes;
use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The size at which a file is full, unless the budget is small.
pub const JOURNAL_FILE_BYTES: u64 = 64 << 20;
/// The most WAL in one frame.
pub const JOURNAL_FRAME_WAL_BYTES_MAX: usize = 1 << 20;
/// The least budget: four files of four small frames.
pub const JOURNAL_BUDGET_BYTES_MIN: u64 = 256 << 10;
/// Files that make up a budget at least, so that trimming frees some while another is written.
const FILES_PER_BUDGET: u64 = 4;
/// Frames that make up a file at least.
const FRAMES_PER_FILE: u64 = 4;
/// What a frame takes beside its WAL, with room to spare.
const FRAME_SLACK_BYTES: u64 = 128;

const _: () = assert!(JOURNAL_FILE_BYTES >= FRAMES_PER_FILE * JOURNAL_FRAME_WAL_BYTES_MAX as u64);

/// Who holds the secrets; shared with readers.
pub type JournalKeys = Arc<dyn KeySource + Send + Sync>;

/// Where the journal stands: PostgreSQL's WAL is ordered by timeline, then by LSN.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct JournalPosition {
    /// The timeline.
    pub timeline: TimelineId,
    /// The LSN one past the last byte.
    pub lsn: Lsn,
}

impl fmt::Display for JournalPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on timeline {}", self.lsn, self.timeline)
    }
}

/// A piece of WAL as received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalRecord {
    /// Its timeline.
    pub timeline: TimelineId,
    /// Its first byte.
    pub start: Lsn,
    /// The server's clock when it sent it.
    pub server_time: Timestamp,
    /// The bytes.
    pub wal: Bytes,
}

impl JournalRecord {
    /// One past its last byte.
    pub fn end(&self) -> JournalPosition {
        JournalPosition { timeline: self.timeline, lsn: self.start.saturating_add(self.wal.len() as u64) }
    }
}

/// Whose journal it is, and its bounds.
#[derive(Debug, Clone)]
pub struct JournalOptions {
    /// The repository that the WAL goes to.
    pub repository: RepositoryId,
    /// The cluster it comes from.
    pub cluster: ClusterName,
    /// The most bytes that all files together may take.
    pub budget_bytes: u64,
}

/// The open journal of one cluster. One process holds it; the methods are not to be cancelled: when one is dropped
/// before it is done, the next answers [`JournalError::Interrupted`].
#[derive(Debug)]
pub struct Journal {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: JournalOptions,
    keys: Keys,
    entropy: Arc<dyn Entropy>,
    _lock: Box<dyn DiskLock>,
    /// The stream that new files belong to.
    stream: Option<(StreamId, u64)>,
    /// The generation of everything it holds, and of new files; none before the first.
    generation: Option<Generation>,
    /// Files that are not written any more, oldest first.
    left: VecDeque<LeftFile>,
    /// The number and length of the newest file that counts, for the next one to name.
    previous: JournalPrevious,
    number_next: u64,
    current: Option<CurrentFile>,
    /// Received and not yet sealed.
    pending: Option<Pending>,
    end: Option<JournalPosition>,
    synced: Option<JournalPosition>,
    busy: bool,
}

struct Keys(JournalKeys);

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JournalKeys")
    }
}

/// A file that is not written any more.
#[derive(Debug, Clone)]
struct LeftFile {
    number: u64,
    /// Bytes it takes on the disk.
    disk_bytes: u64,
    /// Bytes of it that can be read and count.
    limit: u64,
    /// The end of its last record; `None` when it holds none.
    end: Option<JournalPosition>,
}

/// The file being written.
#[derive(Debug)]
struct CurrentFile {
    number: u64,
    file: Box<dyn DiskFile>,
    sealer: JournalSealer,
    /// Bytes durable, and the end of the last record in them.
    synced_len: u64,
    synced_end: Option<JournalPosition>,
    /// The end of the last record appended.
    end: Option<JournalPosition>,
    /// The newest `synced_len` that a frame of it states.
    stated_len: u64,
}

#[derive(Debug)]
struct Pending {
    timeline: TimelineId,
    start: Lsn,
    server_time: Timestamp,
    buffer: JournalBuffer,
}

impl Pending {
    fn end(&self) -> JournalPosition {
        JournalPosition { timeline: self.timeline, lsn: self.start.saturating_add(self.buffer.len() as u64) }
    }
}

impl Journal {
    /// Takes in `record`, which does not lie before what was appended last. Not durable before [`sync`](Journal::sync).
    /// A jump forward is taken as it is: the caller knows why there is one.
    pub async fn append(&mut self, record: &JournalRecord) -> Result<(), JournalError> {
        self.resume()?;
        let (used_bytes, budget_bytes) = (self.used_bytes(), self.options.budget_bytes);
        let need = self.pending_bytes() + record.wal.len() as u64 + FRAME_SLACK_BYTES;
        let files = self.current.as_ref().map_or(need, |current| {
            need.saturating_sub(self.file_bytes().saturating_sub(current.sealer.file_len()))
        });
        if used_bytes.saturating_add(files.div_ceil(self.file_bytes()) * self.file_bytes()) > budget_bytes {
            return Err(JournalError::Full { dir: self.dir.clone(), used_bytes, budget_bytes });
        }
        self.take_in(record).await
    }

    /// Makes everything appended durable, and says how far that is.
    pub async fn sync(&mut self) -> Result<Option<JournalPosition>, JournalError> {
        self.resume()?;
        self.write_pending().await?;
        self.sync_current().await?;
        Ok(self.synced)
    }

    /// How far the journal is durable. After an error, what lies past it is appended again.
    pub fn synced(&self) -> Option<JournalPosition> {
        self.synced
    }

    /// Where the next record is expected: the end of the last one taken in.
    pub fn end(&self) -> Option<JournalPosition> {
        self.end
    }

    /// Bytes that the files hold or have reserved.
    pub fn used_bytes(&self) -> u64 {
        let current =
            self.current.as_ref().map_or(0, |current| current.sealer.file_len().max(self.file_bytes()));
        self.left.iter().map(|file| file.disk_bytes).sum::<u64>() + current
    }

    /// Reads back what is durable, or was recovered, past `from`; in order. Trimming up to `from` does not disturb it.
    pub fn read_from(&self, from: Option<JournalPosition>) -> JournalReader {
        let holds_some = |file: &&LeftFile| file.end.is_some_and(|end| from.is_none_or(|from| end > from));
        let left = self.left.iter().filter(holds_some);
        let mut files: VecDeque<_> = left.map(|file| (file.number, file.limit)).collect();
        files.extend(self.current.as_ref().map(|current| (current.number, current.synced_len)));
        JournalReader::new(self, files, from)
    }

    /// Syncs, and marks the file as left in order, so that nothing needs to be written anew when the journal is opened next.
    pub async fn finish(mut self) -> Result<Option<JournalPosition>, JournalError> {
        let synced = self.sync().await?;
        self.leave_in_order().await?;
        Ok(synced)
    }

    /// After a call that was dropped nobody knows what its file holds.
    fn resume(&mut self) -> Result<(), JournalError> {
        if !self.busy {
            return Ok(());
        }
        self.abandon();
        Err(JournalError::Interrupted { dir: self.dir.clone(), synced: self.synced })
    }

    async fn take_in(&mut self, record: &JournalRecord) -> Result<(), JournalError> {
        if record.wal.is_empty() {
            return Ok(());
        }
        let start = JournalPosition { timeline: record.timeline, lsn: record.start };
        assert!(self.end.is_none_or(|end| end <= start), "journal: {start} lies before {:?}", self.end);
        if self.pending.as_ref().is_some_and(|pending| pending.end() != start) {
            self.write_pending().await?;
        }
        let (mut at, mut rest) = (record.start, &record.wal[..]);
        while !rest.is_empty() {
            let frame_bytes_max = self.frame_bytes_max();
            let pending = self.pending.get_or_insert_with(|| Pending {
                timeline: record.timeline,
                start: at,
                server_time: record.server_time,
                buffer: JournalBuffer::new(rest.len().min(frame_bytes_max)),
            });
            let (part, left) = rest.split_at(rest.len().min(frame_bytes_max - pending.buffer.len()));
            pending.buffer.push(part);
            pending.server_time = record.server_time;
            (at, rest) = (at.saturating_add(part.len() as u64), left);
            self.end = Some(JournalPosition { timeline: record.timeline, lsn: at });
            if pending.buffer.len() == frame_bytes_max {
                self.write_pending().await?;
            }
        }
        Ok(())
    }

    async fn write_pending(&mut self) -> Result<(), JournalError> {
        let Some(pending) = &self.pending else { return Ok(()) };
        let need = pending.buffer.len() as u64 + FRAME_SLACK_BYTES;
        let (start, end) =
            (JournalPosition { timeline: pending.timeline, lsn: pending.start }, pending.end());
        let full = self.file_bytes();
        match &self.current {
            Some(current) if current.sealer.file_len() + need <= full => {}
            _ => self.begin_file(start).await?,
        }
        let (Some(pending), Some(current)) = (self.pending.take(), &mut self.current) else { return Ok(()) };
        let head = JournalHead {
            kind: JournalFrameKind::Wal,
            timeline: pending.timeline,
            start: pending.start,
            server_time: pending.server_time,
            synced_len: current.synced_len,
        };
        let frame = current.sealer.seal(&head, pending.buffer);
        (current.end, current.stated_len) = (Some(end), current.synced_len);
        self.busy = true;
        let appended = current.file.append(frame).await;
        self.busy = false;
        self.ended_by(appended, "appending to it")
    }

    async fn sync_current(&mut self) -> Result<(), JournalError> {
        let Some(current) = self.current.as_mut().filter(|c| c.synced_len < c.sealer.file_len()) else {
            return Ok(());
        };
        let (len, end) = (current.sealer.file_len(), current.end);
        self.busy = true;
        let synced = current.file.sync_data().await;
        self.busy = false;
        self.ended_by(synced, "syncing it")?;
        if let Some(current) = &mut self.current {
            (current.synced_len, current.synced_end) = (len, end);
        }
        self.synced = end.or(self.synced);
        Ok(())
    }

    /// After an error the current file takes nothing more, and counts as far as it was synced.
    fn ended_by(&mut self, result: std::io::Result<()>, doing: &'static str) -> Result<(), JournalError> {
        let Err(error) = result else { return Ok(()) };
        let path =
            self.current.as_ref().map_or_else(|| self.dir.clone(), |current| self.path(current.number));
        self.abandon();
        Err(JournalError::io(&path, doing, error))
    }

    /// Leaves the current file as it is, and forgets what is not durable.
    fn abandon(&mut self) {
        self.leave_current();
        self.pending = None;
        self.end = self.synced;
        self.busy = false;
    }

    fn leave_current(&mut self) {
        let Some(current) = self.current.take() else { return };
        self.previous = JournalPrevious { number: current.number, len: current.synced_len };
        self.left.push_back(LeftFile {
            number: current.number,
            disk_bytes: current.sealer.file_len().max(self.file_bytes()),
            limit: current.synced_len,
            end: current.synced_end,
        });
    }

    /// Ends the current file in order and begins the next, for a record at `start`.
    async fn begin_file(&mut self, start: JournalPosition) -> Result<(), JournalError> {
        self.sync_current().await?;
        self.leave_current();
        let number = self.number_next;
        self.number_next += 1;
        let path = self.path(number);
        self.busy = true;
        let made = self.make_file(number, &path, start).await;
        self.busy = false;
        match made {
            Ok(current) => {
                // What the one before shows past its last good sync is appended again, here.
                if let Some(left) = self.left.iter_mut().find(|left| left.number == self.previous.number) {
                    left.limit = self.previous.len;
                }
                self.current = Some(current);
                Ok(())
            }
            Err(error) => {
                self.abandon();
                // Whatever was made holds nothing; if it stays it is skipped, and removed with the others.
                if self.disk.remove(&path).await.is_err() {
                    self.left.push_back(LeftFile { number, disk_bytes: 0, limit: 0, end: None });
                }
                Err(error)
            }
        }
    }

    /// Makes a file whose beginning and name are durable.
    async fn make_file(
        &self,
        number: u64,
        path: &Path,
        start: JournalPosition,
    ) -> Result<CurrentFile, JournalError> {
        let (Some((stream, writer_epoch)), Some(generation)) = (self.stream, self.generation) else {
            panic!("journal: no stream was begun")
        };
        let header = ObjectHeader {
            kind: ObjectKind::Journal,
            required: 0,
            repository: self.options.repository,
            owner: stream.0,
            number,
            writer_epoch,
            key_epoch: LASTING_EPOCH,
            place: ObjectHeader::place_of(&journal_place(&self.options.cluster, number)),
            salt: random_bytes(&*self.entropy),
        };
        let stands = self.synced.unwrap_or(start);
        let begin = JournalHead {
            kind: JournalFrameKind::Begin,
            timeline: stands.timeline,
            start: stands.lsn,
            server_time: Timestamp::from_micros(0),
            synced_len: 0,
        };
        let begun_with = JournalBegin { generation, previous: self.previous.clone() };
        let (sealer, bytes) = JournalSealer::create(self.secret()?, &header, &begin, &begun_with);
        let failed = |doing| move |error| JournalError::io(path, doing, error);
        let mut file = self.disk.create(path).await.map_err(failed("making it"))?;
        file.preallocate(self.file_bytes()).await.map_err(failed("reserving room"))?;
        file.append(bytes).await.map_err(failed("beginning it"))?;
        file.sync_data().await.map_err(failed("syncing its beginning"))?;
        self.sync_dir().await?;
        let synced_len = JOURNAL_BEGIN_BYTES as u64;
        Ok(CurrentFile {
            number,
            file,
            sealer,
            synced_len,
            synced_end: None,
            end: None,
            stated_len: synced_len,
        })
    }

    /// Adds the frame that states how much of the current file is durable, when none does.
    async fn leave_in_order(&mut self) -> Result<(), JournalError> {
        let current = self.current.as_mut().filter(|current| current.stated_len < current.synced_len);
        let (Some(current), Some(stands)) = (current, self.synced) else {
            self.leave_current();
            return Ok(());
        };
        let mark = JournalHead {
            kind: JournalFrameKind::Mark,
            timeline: stands.timeline,
            start: stands.lsn,
            server_time: Timestamp::from_micros(0),
            synced_len: current.synced_len,
        };
        let frame = current.sealer.seal(&mark, JournalBuffer::new(0));
        self.busy = true;
        let appended = current.file.append(frame).await;
        self.busy = false;
        self.ended_by(appended, "marking it")?;
        self.sync_current().await?;
        self.leave_current();
        Ok(())
    }

    fn secret(&self) -> Result<&EpochSecret, JournalError> {
        let epoch = LASTING_EPOCH;
        self.keys.0.epoch_secret(epoch).ok_or_else(|| JournalError::NoKey { dir: self.dir.clone(), epoch })
    }

    async fn sync_dir(&self) -> Result<(), JournalError> {
        self.disk
            .sync_dir(&self.dir)
            .await
            .map_err(|error| JournalError::io(&self.dir, "syncing the directory", error))
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(journal_file_name(number))
    }

    fn pending_bytes(&self) -> u64 {
        self.pending.as_ref().map_or(0, |pending| pending.buffer.len() as u64)
    }

    /// The size at which a file is full.
    fn file_bytes(&self) -> u64 {
        JOURNAL_FILE_BYTES.min(self.options.budget_bytes / FILES_PER_BUDGET)
    }

    fn frame_bytes_max(&self) -> usize {
        let room = self.file_bytes() - JOURNAL_BEGIN_BYTES as u64;
        JOURNAL_FRAME_WAL_BYTES_MAX.min((room / FRAMES_PER_FILE - FRAME_SLACK_BYTES) as usize)
    }
}

#[cfg(test)]
mod tests;
