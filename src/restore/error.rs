//! Why a restore did not happen, one variant for each thing the caller can do about it, which is also one exit code each.

use super::resolve::{Ambiguity, Window};
use crate::repo::RepoError;
use std::io;
use std::path::{Path, PathBuf};

/// Why a restore did not happen.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The request itself makes no sense; say it differently. Exit code 2.
    #[error("{reason}")]
    Usage {
        /// What is wrong with it.
        reason: String,
        /// What to write instead, if there is such advice.
        hint: Option<String>,
    },
    /// The target's time was passed more than once, or its name or transaction is there twice. Exit code 2.
    #[error("{0}")]
    Ambiguous(Box<Ambiguity>),
    /// The target cannot be reached from any backup. Exit code 3.
    #[error("target {target} is outside the recovery window: {reason}")]
    Outside {
        /// The target as understood.
        target: String,
        /// Why it cannot be reached.
        reason: String,
        /// What can be.
        window: Box<Window>,
    },
    /// What the repository holds is not what was stored. Exit code 4.
    #[error("{what}: {reason}")]
    Damage {
        /// The object, file or WAL range.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The keys cannot be opened. Exit code 5.
    #[error("key: {reason}")]
    Key {
        /// Why.
        reason: String,
    },
    /// A backup, cluster or timeline that does not exist. Exit code 6.
    #[error("{what} not found: {reason}")]
    NotFound {
        /// What was asked for.
        what: String,
        /// What there is instead.
        reason: String,
    },
    /// Something stands where the restore would write. Exit code 7.
    #[error("{}: {reason}", path.display())]
    Conflict {
        /// Where.
        path: PathBuf,
        /// What stands there.
        reason: String,
        /// What the operator may do.
        hint: String,
    },
    /// The disk is full. What was written is marked and cannot be started. Exit code 10.
    #[error("{}: no space left: {action}", path.display())]
    NoSpace {
        /// Where.
        path: PathBuf,
        /// What was being done.
        action: String,
    },
    /// The local disk refused: exit code 2 where we may not write, else 1.
    #[error("{}: {action}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What was being done.
        action: String,
        /// What the system said.
        source: io::Error,
    },
    /// The repository failed; its own variants say what to do.
    #[error(transparent)]
    Repo(#[from] RepoError),
    /// It was told to stop. What was written is marked and cannot be started.
    #[error("interrupted")]
    Interrupted,
}

impl RestoreError {
    /// A usage error without advice.
    pub(crate) fn usage(reason: impl Into<String>) -> Self {
        RestoreError::Usage { reason: reason.into(), hint: None }
    }

    /// The local disk's answer to `action` at `path`, a full disk told apart.
    pub(crate) fn io(path: &Path, action: &str, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                RestoreError::NoSpace { path: path.to_owned(), action: action.to_owned() }
            }
            _ => RestoreError::Io { path: path.to_owned(), action: action.to_owned(), source },
        }
    }
}
