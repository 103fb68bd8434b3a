//! Why a copy ended, and on which side.

use crate::base::{BackupId, ClusterName};
use crate::repo::RepoError;
use crate::repo::backups::NameError;
use crate::repo::cluster::object_is_gone;

/// Why a copy ended. What was committed stays, and the next one goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// What is copied could not be read.
    #[error("the source: {0}")]
    Source(RepoError),
    /// The copy could not be written, or looked at.
    #[error("the destination: {0}")]
    Destination(#[from] RepoError),
    /// Source and destination are one cluster.
    #[error("cluster {cluster} of {url} would be copied onto itself: both repositories have the same id")]
    Itself {
        /// The cluster.
        cluster: ClusterName,
        /// The destination.
        url: String,
    },
    /// A receiver has written to the destination.
    #[error("cluster {cluster} of {url} is not a copy any more: a receiver has written to it")]
    Written {
        /// The cluster.
        cluster: ClusterName,
        /// The destination.
        url: String,
    },
    /// No backup, or several, have the name that was given.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The backup that was asked for lacks WAL.
    #[error("backup {id} of the source is not restorable: WAL that it needs is not stored, or not yet")]
    Pending {
        /// The backup.
        id: BackupId,
    },
    /// The backup that was asked for is kept for its pages alone.
    #[error(
        "backup {id} of the source is not restorable: retention let go of its WAL, and its pages stay for WAL deltas alone"
    )]
    BaseAlone {
        /// The backup.
        id: BackupId,
    },
    /// The destination is of another server with the same system identifier.
    #[error(
        "{what} in cluster {cluster} of {url} is not what the source has: both have one system identifier, and are of two servers (one is a clone, or was restored from a backup)"
    )]
    Differs {
        /// What, and where.
        what: String,
        /// The cluster.
        cluster: ClusterName,
        /// The destination.
        url: String,
    },
    /// Nothing proves that source and destination are of one history.
    #[error(
        "cluster {cluster} of {url} has the source's system identifier, and nothing of what it holds is the source's: it may be of another server (one is a clone, or was restored from a backup), or the source let go of all that was copied"
    )]
    Unrelated {
        /// The cluster.
        cluster: ClusterName,
        /// The destination.
        url: String,
    },
    /// The backup that was asked for was let go by the destination.
    #[error("the destination let go of backup {id}, or of WAL that it needs")]
    LetGo {
        /// The backup.
        id: BackupId,
    },
    /// It was asked to stop.
    #[error("interrupted; what was copied stays, and the next copy goes on from there")]
    Interrupted,
    /// Collection in the destination took the registration away.
    #[error(
        "the destination's collection took this copy for abandoned: it was held up for longer than an hour"
    )]
    Expired,
}

impl CopyError {
    /// Whether to look again and go on: what was read has moved, or somebody else changed what was written to.
    pub(super) fn is_of_the_moment(&self) -> bool {
        match self {
            CopyError::Source(error) | CopyError::Destination(error) => {
                object_is_gone(error) || matches!(error, RepoError::Conflict { .. })
            }
            CopyError::Itself { .. }
            | CopyError::Written { .. }
            | CopyError::Name(_)
            | CopyError::Pending { .. }
            | CopyError::BaseAlone { .. }
            | CopyError::Differs { .. }
            | CopyError::Unrelated { .. }
            | CopyError::LetGo { .. }
            | CopyError::Interrupted
            | CopyError::Expired => false,
        }
    }
}
