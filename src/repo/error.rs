//! Why something of a repository could not be had, by the caller's next move.

use crate::base::{Generation, ObjectKey, SystemId, Timestamp};
use crate::codec::OpenError;
use crate::codec::keyslot::KeySlotError;
use crate::store::StoreError;

/// Why something of a repository could not be had.
#[derive(Debug, thiserror::Error)]
pub enum RepoError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An object is there and wrong, or gone and referred to.
    #[error("damage: object {key}: {reason}")]
    Damage {
        /// Which.
        key: ObjectKey,
        /// What is wrong with it.
        reason: String,
    },
    /// An object was sealed under a key epoch whose secret we do not hold.
    #[error("object {key}: {reason}")]
    NoKey {
        /// Which.
        key: ObjectKey,
        /// What was missing.
        reason: String,
    },
    /// An object is whole and cannot be read by this version: it is neither damaged nor lost.
    #[error("object {key}: {reason}")]
    Newer {
        /// Which.
        key: ObjectKey,
        /// What is not known of it.
        reason: String,
    },
    /// No key slot opened.
    #[error("no key slot of this repository opens with the key given: {reason}")]
    Key {
        /// What each slot said.
        reason: String,
    },
    /// A key slot's object is wrong.
    #[error("key slot object {key}: {source}")]
    KeySlot {
        /// Which.
        key: ObjectKey,
        /// What is wrong.
        source: KeySlotError,
    },
    /// There is no such thing.
    #[error("{what} not found in {url}")]
    NotFound {
        /// What.
        what: String,
        /// Where.
        url: String,
    },
    /// Somebody else decided otherwise; nothing was done.
    #[error("conflict: {reason}")]
    Conflict {
        /// What they decided.
        reason: String,
    },
    /// A newer writer took over the cluster; this one must stop.
    #[error("fenced: stream {stream} was closed at number {number} by writer epoch {epoch}, newer than ours")]
    Fenced {
        /// Our stream.
        stream: String,
        /// The number its fence won.
        number: u64,
        /// The fence's writer epoch.
        epoch: u64,
    },
    /// The server is another cluster than the one stored.
    #[error("system identifier of the server is {found}, cluster {cluster} has {expected}")]
    WrongSystem {
        /// The cluster.
        cluster: String,
        /// The server's.
        found: SystemId,
        /// The stored one.
        expected: SystemId,
    },
    /// The server was followed by another: the cluster's next generation began.
    #[error(
        "generation {current} of cluster {cluster} began, and generation {generation}, which this is, takes no more WAL and backups"
    )]
    NewGeneration {
        /// The cluster.
        cluster: String,
        /// What the server, or the work, is of.
        generation: Generation,
        /// The generation that the cluster is at.
        current: Generation,
    },
    /// The cluster was deleted.
    #[error("cluster {cluster} was deleted at {at}")]
    Deleted {
        /// Which.
        cluster: String,
        /// When.
        at: Timestamp,
    },
    /// There is no room for pages that WAL deltas refer to.
    #[error("no room for {bytes} bytes of pages that WAL refers to: {reason}")]
    NoRoom {
        /// What was asked for.
        bytes: u64,
        /// What the operating system says, and where.
        reason: String,
    },
    /// The repository was made by a newer walden, or differently than asked.
    #[error("{reason}")]
    Configuration {
        /// How it differs.
        reason: String,
    },
}

impl RepoError {
    /// Sorts what is wrong with an object into damage, missing keys and later versions.
    pub fn open(key: &ObjectKey, error: OpenError) -> Self {
        let (key, reason) = (key.clone(), error.to_string());
        match error {
            OpenError::NoKey { .. } => RepoError::NoKey { key, reason },
            OpenError::Newer(_) => RepoError::Newer { key, reason },
            _ => RepoError::Damage { key, reason },
        }
    }

    /// Damage to `key`.
    pub fn damage(key: &ObjectKey, reason: impl ToString) -> Self {
        RepoError::Damage { key: key.clone(), reason: reason.to_string() }
    }

    /// Whether an object itself is at fault, and not the way to it: damaged, cut short, on a bad sector or gone.
    pub fn is_damage(&self) -> bool {
        let store = matches!(
            self,
            RepoError::Store(
                StoreError::NotFound { .. } | StoreError::Short { .. } | StoreError::Unreadable { .. }
            )
        );
        store || matches!(self, RepoError::Damage { .. })
    }

    /// Whether an object is there, and not for us: its key epoch is not held, or a newer walden wrote it.
    pub fn is_shut(&self) -> bool {
        matches!(self, RepoError::NoKey { .. } | RepoError::Newer { .. })
    }

    /// The object that is at fault, where [`RepoError::is_damage`] says that one is.
    pub fn damaged_object(&self) -> Option<&ObjectKey> {
        match self {
            RepoError::Damage { key, .. }
            | RepoError::Store(
                StoreError::NotFound { key }
                | StoreError::Short { key, .. }
                | StoreError::Unreadable { key, .. },
            ) => Some(key),
            _ => None,
        }
    }

    /// Whether trying again later may succeed without anybody mending anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, RepoError::Store(StoreError::Unknown { .. }))
    }

    /// Whether the store, or the disk here, has no room: somebody has to make some.
    pub fn is_no_space(&self) -> bool {
        matches!(self, RepoError::Store(StoreError::NoSpace { .. }) | RepoError::NoRoom { .. })
    }
}
