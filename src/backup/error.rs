//! Why a backup was not made, by the caller's next move.

use super::label::LabelError;
use super::tar::TarError;
use crate::base::{BackupId, LsnRange, ObjectKey, TimelineId};
use crate::net::PgError;
use crate::repo::{PendingError, RepoError};

/// Why a backup was not made, or is not restorable yet.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The repository or its store failed.
    #[error(transparent)]
    Repo(#[from] RepoError),
    /// The server failed, or does not let us.
    #[error(transparent)]
    Pg(#[from] PgError),
    /// An archive that is none.
    #[error("{archive}: {source}")]
    Archive {
        /// `base.tar` or `<oid>.tar`.
        archive: String,
        /// What is wrong with it.
        source: TarError,
    },
    /// A backup_label that says not where recovery starts.
    #[error(transparent)]
    Label(#[from] LabelError),
    /// A server that walden cannot back up.
    #[error("{reason}")]
    Unsupported {
        /// What it is, and what it should be.
        reason: String,
    },
    /// The caller asked to stop. Nothing refers to what was stored.
    #[error("the backup was interrupted; nothing was kept of it")]
    Interrupted,
    /// Collection took the backup's registration away: it could not renew it in time.
    #[error(
        "the backup stalled for so long that its registration was collected, and what it stored may be too"
    )]
    Expired,
    /// A segment that holds chunks of it left the index while it ran. Nothing was committed.
    #[error("object {key}, which holds chunks that the backup found stored, was let go while it ran")]
    ChunksGone {
        /// Which.
        key: ObjectKey,
    },
    /// Nobody keeps the WAL that the backup would need; it was not begun.
    #[error("the backup's WAL: {source}")]
    Wal {
        /// What failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Everything is stored, but not the WAL that makes it restorable. It becomes restorable once that is durable.
    #[error(
        "backup {id}: WAL {range} on timeline {timeline} is not durable yet, so it is not restorable: {reason}"
    )]
    WalMissing {
        /// The backup.
        id: BackupId,
        /// The WAL's timeline.
        timeline: TimelineId,
        /// The WAL.
        range: LsnRange,
        /// How far it is, or what hinders it.
        reason: String,
        /// What failed, when something did; otherwise the time was up.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

impl From<PendingError> for BackupError {
    fn from(error: PendingError) -> Self {
        match error {
            PendingError::Expired => BackupError::Expired,
            PendingError::Repo(error) => BackupError::Repo(error),
        }
    }
}
