//! The clusters of a repository as documents: which there are, what an upgrade did, what a deletion takes.

use super::exit::Exit;
use super::failure::Failure;
use super::units::Bytes;
use crate::base::{ClusterName, Timestamp};
use crate::format::root::GenerationRecord;
use crate::receive::upgrade::{UpgradeError, Upgraded};
use crate::repo::walmap::{self, WalEnd};
use crate::repo::{Cluster, RepoError, Repository, WalSource};
use serde::Serialize;
use std::fmt;
use std::sync::Arc;

/// The answer of `walden cluster list`.
#[derive(Debug, Serialize)]
pub struct Clusters {
    /// The repository.
    pub repository: String,
    /// Its clusters, by name.
    pub clusters: Vec<Listed>,
}

/// One name.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// The name.
    pub name: String,
    /// `stored`, `unfinished` (its first start ended before anything was stored) or `deleted`.
    pub state: &'static str,
    /// When it was deleted.
    pub deleted_at: Option<String>,
    /// Its generations, oldest first; the last is the current one.
    pub generations: Vec<GenerationInfo>,
    /// Bytes that its newest root leads to.
    pub bytes_stored: u64,
}

/// One generation.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct GenerationInfo {
    /// Its number.
    pub generation: u32,
    /// PostgreSQL's system identifier.
    pub system_identifier: String,
    /// PostgreSQL's major version.
    pub major_version: u32,
    /// Its backups.
    pub backups: u64,
    /// When the newest of them was consistent.
    pub last_backup: Option<String>,
    /// Where its WAL ends.
    pub durable_lsn: Option<String>,
    /// The server's clock then.
    pub durable_at: Option<String>,
}

/// What there is of every name of `repo`.
pub async fn list(repo: &Arc<Repository>) -> Result<Clusters, RepoError> {
    let mut clusters = Vec::new();
    for name in repo.clusters().await? {
        clusters.push(listed(repo, name).await?);
    }
    Ok(Clusters { repository: repo.store().url(), clusters })
}

async fn listed(repo: &Arc<Repository>, name: ClusterName) -> Result<Listed, RepoError> {
    let nothing = |state, deleted_at: Option<Timestamp>| Listed {
        name: name.to_string(),
        state,
        deleted_at: deleted_at.map(|at| at.to_string()),
        generations: Vec::new(),
        bytes_stored: 0,
    };
    let cluster = match Cluster::open(repo.clone(), name.clone()).await {
        Ok(cluster) => cluster,
        Err(RepoError::NotFound { .. }) => return Ok(nothing("unfinished", None)),
        Err(RepoError::Deleted { at, .. }) => return Ok(nothing("deleted", Some(at))),
        Err(error) => return Err(error),
    };
    let mut snapshot = walmap::load(&cluster).await?;
    let index = &snapshot.index;
    let mut bytes_stored: u64 = index.wal.iter().map(|entry| entry.object_len).sum();
    bytes_stored += index.pages.iter().map(|entry| entry.object_len).sum::<u64>();
    bytes_stored += index.backups.iter().map(|backup| backup.manifest_len).sum::<u64>();
    let mut generations = Vec::new();
    for record in cluster.generations(&snapshot.root).await? {
        snapshot = snapshot.with_generation(&cluster, record.generation).await?;
        bytes_stored += flushed_bytes(&snapshot.wal);
        let own = snapshot.index.backups.iter().filter(|backup| backup.generation == record.generation);
        let end = snapshot.wal.durable_end();
        let last = own.clone().map(|backup| backup.stopped_at).max();
        // A number that an upgrade left behind is of nothing.
        if record.generation < snapshot.root.generation && end.is_none() && last.is_none() {
            continue;
        }
        generations.push(GenerationInfo {
            generation: record.generation.0,
            system_identifier: record.system_id.to_string(),
            major_version: record.major_version,
            backups: own.count() as u64,
            last_backup: last.map(|at| at.to_string()),
            durable_lsn: end.map(|end| end.lsn.to_string()),
            durable_at: end.map(|end| end.server_time.to_string()),
        });
    }
    Ok(Listed { generations, bytes_stored, ..nothing("stored", None) })
}

fn flushed_bytes(wal: &walmap::WalMap) -> u64 {
    let flushed = wal.pieces().iter().filter_map(|piece| match &piece.source {
        WalSource::Flush { object_len, .. } => Some(*object_len),
        WalSource::Segment(_) => None,
    });
    flushed.sum()
}

impl fmt::Display for Clusters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "repository {}", self.repository)?;
        if self.clusters.is_empty() {
            return writeln!(f, "no cluster yet: `walden receive` or `walden backup` stores the first");
        }
        self.clusters.iter().try_for_each(|cluster| write!(f, "\n{cluster}"))
    }
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.deleted_at, self.state) {
            (Some(at), _) => return writeln!(f, "{}: deleted at {at}", self.name),
            (None, "unfinished") => {
                return writeln!(f, "{}: nothing is stored, its first start did not get so far", self.name);
            }
            _ => writeln!(f, "{}: {} stored", self.name, Bytes(self.bytes_stored))?,
        }
        self.generations.iter().rev().try_for_each(|generation| writeln!(f, "  {generation}"))
    }
}

impl fmt::Display for GenerationInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "generation {}: PostgreSQL {}, system identifier {}; ",
            self.generation, self.major_version, self.system_identifier
        )?;
        match &self.last_backup {
            Some(at) => write!(f, "{} backups, the newest of {at}; ", self.backups)?,
            None => f.write_str("no backup; ")?,
        }
        match (&self.durable_lsn, &self.durable_at) {
            (Some(lsn), Some(at)) => write!(f, "WAL up to {lsn} of {at}"),
            _ => f.write_str("no WAL"),
        }
    }
}

/// The answer of `walden cluster upgrade`.
#[derive(Debug, Serialize)]
pub struct UpgradeInfo {
    /// The cluster.
    pub cluster: String,
    /// Whether a generation began; the server was the current one already otherwise.
    pub begun: bool,
    /// The generation before.
    pub before: ServerInfo,
    /// The current one.
    pub after: ServerInfo,
    /// Where WAL of the one before ends.
    pub end_lsn: Option<String>,
    /// The server's clock then.
    pub end_at: Option<String>,
    /// Whether that is the end of a clean shutdown, so that nothing is missing.
    pub whole: bool,
    /// How far this host's journal had what the repository lacked.
    pub journal_stored: Option<String>,
}

/// Which server a generation is.
#[derive(Debug, Serialize)]
pub struct ServerInfo {
    /// The generation.
    pub generation: u32,
    /// PostgreSQL's system identifier.
    pub system_identifier: String,
    /// PostgreSQL's major version.
    pub major_version: u32,
}

impl From<&GenerationRecord> for ServerInfo {
    fn from(record: &GenerationRecord) -> ServerInfo {
        ServerInfo {
            generation: record.generation.0,
            system_identifier: record.system_id.to_string(),
            major_version: record.major_version,
        }
    }
}

impl From<&Upgraded> for UpgradeInfo {
    fn from(done: &Upgraded) -> UpgradeInfo {
        UpgradeInfo {
            cluster: done.after.cluster.to_string(),
            begun: done.before != done.after,
            before: (&done.before).into(),
            after: (&done.after).into(),
            end_lsn: done.end.map(|end: WalEnd| end.lsn.to_string()),
            end_at: done.end.map(|end| end.server_time.to_string()),
            whole: done.is_whole,
            journal_stored: done.journal_stored.map(|lsn| lsn.to_string()),
        }
    }
}

impl fmt::Display for ServerInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ServerInfo { generation, system_identifier, major_version } = self;
        write!(
            f,
            "generation {generation}, PostgreSQL {major_version}, system identifier {system_identifier}"
        )
    }
}

impl fmt::Display for UpgradeInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cluster = &self.cluster;
        if !self.begun {
            return writeln!(f, "nothing to do: this server is {} of cluster {cluster} already", self.after);
        }
        if let Some(lsn) = &self.journal_stored {
            writeln!(f, "stored what only the journal of this host had, up to {lsn}")?;
        }
        writeln!(f, "cluster {cluster} is at {}", self.after)?;
        writeln!(f, "before        {}", self.before)?;
        match (&self.end_lsn, &self.end_at) {
            (Some(lsn), Some(at)) if self.whole => {
                writeln!(f, "its WAL ends  {lsn} of {at}, with a clean shutdown: nothing is missing")?
            }
            (Some(lsn), Some(at)) => {
                writeln!(f, "its WAL ends  {lsn} of {at}; what it wrote after that is not stored")?
            }
            _ => writeln!(f, "its WAL ends  none was stored")?,
        }
        writeln!(f, "\nnothing of the new server can be restored yet:")?;
        writeln!(
            f,
            "  walden receive --cluster {cluster}    (start it; a receiver that ran before has ended, or ends)"
        )?;
        writeln!(f, "  walden backup --cluster {cluster}     (restores begin with it)")
    }
}

impl From<UpgradeError> for Failure {
    fn from(error: UpgradeError) -> Failure {
        match error {
            UpgradeError::NotUpgraded { .. } => Failure::new(Exit::Conflict, error).hint(
                "check --connection; --new-system begins the next generation with it all the same, as for a server that was \
                 restored from a dump or made anew",
            ),
            UpgradeError::MissingWal { .. } => Failure::new(Exit::Conflict, error).hint(
                "if a receiver on another host has it in its journal, let that store it; if the old server can still be started, start it \
                 with `walden receive` and shut it down again; --accept-missing-wal gives up what is missing for good",
            ),
            UpgradeError::Journal { ref reason, .. } if reason.kind() == std::io::ErrorKind::PermissionDenied => {
                Failure::new(Exit::Usage, error).hint("run this as the user that runs `walden receive`")
            }
            UpgradeError::Journal { .. } => Failure::new(Exit::Internal, error),
            UpgradeError::Receive(error) => error.into(),
        }
    }
}
