//! What a person asks a restore for: a moment, a timeline, a backup. Pure words; what they mean in an archive is
//! decided by [`resolve`](super::resolve).

use crate::base::{Lsn, TimelineId, Timestamp};
use std::fmt;

/// The moment to restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Everything in the archive: up to its last complete record.
    Latest,
    /// As soon as the backup is consistent.
    Immediate,
    /// Everything up to the first commit or abort whose time is past this one.
    Time(Timestamp),
    /// Everything that ends at or before this position.
    Lsn(Lsn),
    /// Everything up to the end of this transaction, and it.
    Xid(u32),
    /// Everything up to a named restore point.
    Name(String),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Latest => f.write_str("latest"),
            Target::Immediate => f.write_str("immediate"),
            Target::Time(time) => write!(f, "time {time}"),
            Target::Lsn(lsn) => write!(f, "LSN {lsn}"),
            Target::Xid(xid) => write!(f, "transaction {xid}"),
            Target::Name(name) => write!(f, "restore point {name:?}"),
        }
    }
}

/// Whether what happened exactly at the target belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Boundary {
    /// It does; PostgreSQL's default.
    #[default]
    Inclusive,
    /// It does not (`--exclusive`). For targets that are a time, a position or a transaction.
    Exclusive,
}

/// Which timeline to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TimelineChoice {
    /// The newest by lineage: the one the cluster is on, or the newest that descends from the chosen backup.
    #[default]
    Newest,
    /// This one.
    Number(TimelineId),
}

/// What PostgreSQL does once it is there (`recovery_target_action`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetAction {
    /// Wait, readable, for `pg_wal_replay_resume()`.
    Pause,
    /// Become a server of its own.
    Promote,
    /// Stop.
    Shutdown,
}

impl TargetAction {
    /// The setting's value.
    pub fn as_str(self) -> &'static str {
        match self {
            TargetAction::Pause => "pause",
            TargetAction::Promote => "promote",
            TargetAction::Shutdown => "shutdown",
        }
    }

    /// PostgreSQL's default is to pause; without any target a person wants a server back.
    pub fn default_for(target: &Target) -> Self {
        match target {
            Target::Latest => TargetAction::Promote,
            Target::Immediate | Target::Time(_) | Target::Lsn(_) | Target::Xid(_) | Target::Name(_) => {
                TargetAction::Pause
            }
        }
    }
}

/// All of a request that decides where recovery starts and stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The moment.
    pub target: Target,
    /// Whether what happened exactly then belongs to it.
    pub boundary: Boundary,
    /// The timeline.
    pub timeline: TimelineChoice,
    /// A backup's id or an unambiguous beginning of it, when it is not ours to choose.
    pub backup: Option<String>,
}

impl Request {
    /// `target` on the newest timeline from the best backup.
    pub fn new(target: Target) -> Self {
        Request { target, boundary: Boundary::Inclusive, timeline: TimelineChoice::Newest, backup: None }
    }
}
