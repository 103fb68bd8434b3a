//! The deletion of a cluster in words: what it takes, what became of it, and why it was refused.

use super::exit::Exit;
use super::failure::Failure;
use super::units::Bytes;
use crate::base::{ClusterName, Timestamp};
use crate::retain::cluster::{DeleteClusterError, Doomed, Purged};
use serde::Serialize;
use std::fmt;

/// What is lost, for the person who decides.
pub fn describe(name: &ClusterName, doomed: &Doomed) -> String {
    let mut text = format!("Deleting cluster {name} is final. It takes:\n");
    match (doomed.backups.first(), doomed.backups.last()) {
        (Some(oldest), Some(newest)) => {
            let count = doomed.backups.len();
            text += &format!("  {count} backups, from {} to {}\n", oldest.stopped_at, newest.stopped_at);
        }
        _ => text += "  no backup\n",
    }
    for wal in &doomed.wal {
        if let Some((from, to)) = wal.times {
            let (generation, major) = (wal.generation, wal.major_version);
            text += &format!(
                "  {} of WAL of generation {generation} (PostgreSQL {major}), from {from} to {to}\n",
                Bytes(wal.bytes)
            );
        }
    }
    for work in &doomed.work {
        text += &format!("  work that runs now, since {}: {}\n", work.began_at, work.holder);
    }
    if let Some(ago) = doomed.written_ago {
        text += &format!("  a stream that was last written to {} s ago\n", ago.as_secs());
    }
    if let Some(reason) = &doomed.unreadable {
        text += &format!("  and more that cannot be read: {reason}\n");
    }
    text += &format!("  {} in {} objects", Bytes(doomed.bytes), doomed.objects);
    text
}

/// The answer of `walden cluster delete`.
#[derive(Debug, Serialize)]
pub struct Deleted {
    /// The cluster.
    pub cluster: String,
    /// Backups that are gone.
    pub backups: u64,
    /// When the oldest and the newest of them were consistent.
    pub backups_from: Option<String>,
    /// The newest.
    pub backups_to: Option<String>,
    /// Bytes of WAL that are gone.
    pub wal_bytes: u64,
    /// Objects removed.
    pub objects_removed: u64,
    /// Objects that stay because they may be fences: their headers cannot be read.
    pub may_be_fences: Vec<String>,
    /// Objects that the store would not remove.
    pub not_removed: u64,
    /// The first of them, and why.
    pub first_not_removed: Option<(String, String)>,
}

impl Deleted {
    /// What became of `doomed`.
    pub fn new(name: &ClusterName, doomed: &Doomed, purged: &Purged) -> Deleted {
        let at = |time: Timestamp| time.to_string();
        let first = purged.undeleted.first.first();
        Deleted {
            cluster: name.to_string(),
            backups: doomed.backups.len() as u64,
            backups_from: doomed.backups.first().map(|backup| at(backup.stopped_at)),
            backups_to: doomed.backups.last().map(|backup| at(backup.stopped_at)),
            wal_bytes: doomed.wal.iter().map(|wal| wal.bytes).sum(),
            objects_removed: purged.objects,
            may_be_fences: purged.may_be_fences.iter().map(ToString::to_string).collect(),
            not_removed: purged.undeleted.count,
            first_not_removed: first.map(|(key, reason)| (key.to_string(), reason.clone())),
        }
    }

    /// An error when the store refused to remove anything: the cluster is deleted all the same.
    pub fn failure(&self) -> Result<(), Failure> {
        let Some((key, reason)) = &self.first_not_removed else { return Ok(()) };
        let what = format!("the store did not remove {} objects; everything else is done", self.not_removed);
        Err(Failure::new(Exit::Store, what)
            .fact("first", key)
            .fact("reason", reason)
            .hint("they are tried again by the next `walden gc`, or this; an object lock ends by itself, missing rights do not"))
    }
}

impl fmt::Display for Deleted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Deleted { cluster, backups, wal_bytes, objects_removed, .. } = self;
        writeln!(
            f,
            "cluster {cluster} is deleted: {backups} backups, {} of WAL, {objects_removed} objects",
            Bytes(*wal_bytes)
        )?;
        self.may_be_fences.iter().try_for_each(|key| {
            writeln!(
                f,
                "stays: {key}: its header cannot be read, and it may be the fence that keeps its number taken"
            )
        })
    }
}

/// Why it was refused, with what to do.
pub fn failure(error: DeleteClusterError) -> Failure {
    match error {
        DeleteClusterError::Pinned { ref first, .. } => {
            let hint = format!("`walden unpin {first}` first: nothing overrides a pin here");
            Failure::new(Exit::Conflict, error).hint(hint)
        }
        DeleteClusterError::Running(_) => Failure::new(Exit::Conflict, error)
            .hint("stop it first; what was killed counts as running for an hour, a receiver for three minutes; --force goes on all the same"),
        DeleteClusterError::Repo(error) => error.into(),
    }
}
