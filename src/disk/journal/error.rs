//! Why the journal did not do what it was asked, by what the receiver does next.

use super::JournalPosition;
use crate::base::Generation;
use crate::codec::OpenError;
use crate::disk::is_no_space;
use std::io;
use std::path::{Path, PathBuf};

/// Why the journal did not do what it was asked, by what the receiver does next.
///
/// After [`NoSpace`](JournalError::NoSpace), [`Io`](JournalError::Io) and [`Interrupted`](JournalError::Interrupted) whatever lies
/// past [`Journal::synced`](super::Journal::synced) is gone from the journal: it is appended again from there.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The budget is used up. Nothing was taken: trim, wait, or go on without the journal.
    #[error("journal {}: its budget of {budget_bytes} bytes is used up ({used_bytes} used)", dir.display())]
    Full {
        /// The journal's directory.
        dir: PathBuf,
        /// Bytes its files hold or have reserved.
        used_bytes: u64,
        /// The most they may.
        budget_bytes: u64,
    },
    /// The disk is full. Free some room, or go on without the journal.
    #[error("journal {}: no space left on its disk while {doing}", path.display())]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// The disk failed. Trying again writes a new file.
    #[error("journal {}: {doing}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// An earlier call was dropped before it was done.
    #[error("journal {}: an earlier operation was abandoned; what lies past {synced:?} is to be appended again", dir.display())]
    Interrupted {
        /// The journal's directory.
        dir: PathBuf,
        /// How far the journal holds.
        synced: Option<JournalPosition>,
    },
    /// Another process has this journal open.
    #[error("journal {}: another process is using it", dir.display())]
    Busy {
        /// The journal's directory.
        dir: PathBuf,
    },
    /// It holds WAL of another generation of the cluster than is to be appended.
    #[error("journal {}: it holds WAL of generation {held} of the cluster, generation {wanted} is to be appended", dir.display())]
    Generation {
        /// The journal's directory.
        dir: PathBuf,
        /// Whose WAL it holds.
        held: Generation,
        /// Whose WAL comes.
        wanted: Generation,
    },
    /// What had been durable is broken: not the torn tail that a crash leaves.
    #[error("journal file {}: {found} at byte {byte}, expected {expected}", path.display())]
    Damage {
        /// The file.
        path: PathBuf,
        /// Where in it.
        byte: u64,
        /// What is there.
        found: String,
        /// What should be.
        expected: String,
    },
    /// The file cannot be opened with the keys at hand, or belongs to another repository, cluster or place.
    #[error("journal file {}: {source}", path.display())]
    Closed {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: OpenError,
    },
    /// The keys at hand lack the epoch that new files are to be sealed under.
    #[error("journal {}: no secret of key epoch {epoch} is held", dir.display())]
    NoKey {
        /// The journal's directory.
        dir: PathBuf,
        /// The epoch.
        epoch: u32,
    },
}

impl JournalError {
    /// An error of the disk at `path` while `doing`.
    pub(super) fn io(path: &Path, doing: &'static str, source: io::Error) -> Self {
        let path = path.to_owned();
        if is_no_space(&source) {
            JournalError::NoSpace { path, doing, source }
        } else {
            JournalError::Io { path, doing, source }
        }
    }

    /// Broken bytes at `byte` of `path`.
    pub(super) fn damage(path: &Path, byte: u64, found: impl ToString, expected: impl ToString) -> Self {
        let (found, expected) = (found.to_string(), expected.to_string());
        JournalError::Damage { path: path.to_owned(), byte, found, expected }
    }
}
