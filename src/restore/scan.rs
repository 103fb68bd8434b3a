//! Looking into WAL, record by record: what resolution needs of it, and no more. The trait keeps the decisions testable
//! without a repository.

use super::error::RestoreError;
use crate::base::{Lsn, LsnRange, Timestamp};
use async_trait::async_trait;
use std::ops::ControlFlow;

/// Settings of the source that a server in recovery must not undercut, as the source logs them when they change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SourceLimits {
    /// `max_connections`.
    pub max_connections: u32,
    /// `max_worker_processes`.
    pub max_worker_processes: u32,
    /// `max_wal_senders`.
    pub max_wal_senders: u32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: u32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: u32,
}

impl SourceLimits {
    /// The greater of each.
    pub fn max(self, other: SourceLimits) -> SourceLimits {
        SourceLimits {
            max_connections: self.max_connections.max(other.max_connections),
            max_worker_processes: self.max_worker_processes.max(other.max_worker_processes),
            max_wal_senders: self.max_wal_senders.max(other.max_wal_senders),
            max_prepared_transactions: self.max_prepared_transactions.max(other.max_prepared_transactions),
            max_locks_per_transaction: self.max_locks_per_transaction.max(other.max_locks_per_transaction),
        }
    }
}

/// What a record means to a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// Nothing.
    Other,
    /// A transaction committed, prepared ones included.
    Commit {
        /// Which.
        xid: u32,
        /// When, by its backend's clock.
        time: Timestamp,
    },
    /// A transaction was rolled back, prepared ones included.
    Abort {
        /// Which.
        xid: u32,
        /// When, by its backend's clock.
        time: Timestamp,
    },
    /// The source's limits changed.
    Limits(SourceLimits),
}

/// One record of WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Its start.
    pub start: Lsn,
    /// Its end, which is the next one's start but for page headers and padding.
    pub end: Lsn,
    /// What it means.
    pub meaning: Meaning,
}

/// Called with each record; breaks when it has seen enough.
pub type Visit<'a> = dyn FnMut(&Seen) -> ControlFlow<()> + Send + 'a;

/// Decodes WAL of one path.
#[async_trait]
pub trait WalScan: Sync {
    /// Visits, in LSN order, the records whose last byte lies in `range`, however early they begin. `range` lies inside one
    /// run of the path. Refuses WAL that cannot be decoded.
    async fn scan(&self, range: LsnRange, visit: &mut Visit<'_>) -> Result<(), RestoreError>;
}
