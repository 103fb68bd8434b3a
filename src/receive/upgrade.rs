//! `walden cluster upgrade`: the next generation of a cluster, after pg_upgrade or in the place of a server that is gone.
//! [`decide`] is pure; [`upgrade`] acts.
//!
//! Order: what only this host's journal has goes to the generation that ends; then one root begins the next; then every stream of the
//! one before is fenced. Interrupted after the root, it is done again, or a receiver of the new generation fences. WAL of one
//! generation never gets into another: streams, journals and work in progress bear theirs, and end with it.

use super::pipeline::ReceiveError;
use super::resume;
use super::session::{self, JournalPlace, ReceiveOptions};
use super::upstream::{Connector, Identity};
use crate::base::{ClusterName, Generation, Lsn, Timestamp};
use crate::disk::journal::JournalError;
use crate::format::journal::journal_file_number;
use crate::format::root::GenerationRecord;
use crate::format::wal::EventKind;
use crate::repo::generations::is_same_server;
use crate::repo::walmap::{self, WalEnd, WalMap};
use crate::repo::{Cluster, RepoError, Repository, fences};
use std::path::PathBuf;
use std::sync::Arc;

/// The most bytes between the end of the last record and the end of WAL: records are aligned to 8.
const ALIGNMENT: u64 = 8;

/// Which server may be the next generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewServer {
    /// One that is what pg_upgrade makes of the one stored.
    Upgraded,
    /// Any: restored from a dump, made anew, an older one again.
    Any,
}

/// Whether WAL of the old server may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissingWal {
    /// It may not.
    Refuse,
    /// It is given up.
    Accept,
}

/// What an upgrade may do.
#[derive(Debug, Clone)]
pub struct UpgradeOptions {
    /// Which server.
    pub server: NewServer,
    /// What may be lost.
    pub missing: MissingWal,
    /// Where this host's journal is, if it has one. What only it has is stored first.
    pub receive: ReceiveOptions,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upgraded {
    /// The generation that was the current one; the same as `after` when there was nothing to do.
    pub before: GenerationRecord,
    /// The one that is.
    pub after: GenerationRecord,
    /// Where WAL of the one before ends.
    pub end: Option<WalEnd>,
    /// Whether that is the end of a clean shutdown: nothing of it is missing.
    pub is_whole: bool,
    /// How far this host's journal had WAL that was not in the repository.
    pub journal_stored: Option<Lsn>,
}

/// Why there is no next generation.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// The server is not what pg_upgrade makes of the one stored.
    #[error(
        "this server is not what pg_upgrade makes of generation {generation} of cluster {cluster}: {reason}"
    )]
    NotUpgraded {
        /// The cluster.
        cluster: ClusterName,
        /// Its generation.
        generation: Generation,
        /// What is in the way.
        reason: String,
    },
    /// The old server's last WAL is not stored.
    #[error(
        "WAL of generation {generation} of cluster {cluster} ends at {} of {}, and not with a clean shutdown: the old server's last WAL is not stored",
        end.lsn,
        end.server_time
    )]
    MissingWal {
        /// The cluster.
        cluster: ClusterName,
        /// Its generation.
        generation: Generation,
        /// Where its WAL ends.
        end: WalEnd,
    },
    /// The journal of this host cannot be looked at.
    #[error("the journal in {}: {reason}", dir.display())]
    Journal {
        /// Its directory.
        dir: PathBuf,
        /// Why.
        reason: std::io::Error,
    },
    /// Receiving, the server or the repository failed.
    #[error(transparent)]
    Receive(#[from] ReceiveError),
}

impl From<RepoError> for UpgradeError {
    fn from(error: RepoError) -> UpgradeError {
        UpgradeError::Receive(error.into())
    }
}

/// What is stored of the generation that is to end.
#[derive(Debug, Clone)]
pub struct Ending<'a> {
    /// Its record.
    pub record: &'a GenerationRecord,
    /// When its cluster was deleted, if it was.
    pub deleted_at: Option<Timestamp>,
    /// Where its WAL ends.
    pub end: Option<WalEnd>,
    /// Whether that is the end of a clean shutdown.
    pub is_whole: bool,
}

/// Whether `server` may follow what is stored.
pub fn decide(
    ending: &Ending<'_>,
    server: &Identity,
    may_be: NewServer,
    missing: MissingWal,
) -> Result<(), UpgradeError> {
    let (cluster, generation) = (ending.record.cluster.clone(), ending.record.generation);
    if may_be == NewServer::Upgraded
        && let Some(reason) = not_upgraded(ending, server)
    {
        return Err(UpgradeError::NotUpgraded { cluster, generation, reason });
    }
    match ending.end.filter(|_| !ending.is_whole && missing == MissingWal::Refuse) {
        Some(end) => Err(UpgradeError::MissingWal { cluster, generation, end }),
        None => Ok(()),
    }
}

/// Why `server` cannot have been made of what is stored: pg_upgrade gives it a system identifier of its own and a greater major
/// version, keeps the size of WAL segments, and lets its WAL begin behind the old server's.
fn not_upgraded(ending: &Ending<'_>, server: &Identity) -> Option<String> {
    let stored = ending.record;
    if let Some(at) = ending.deleted_at {
        return Some(format!("the cluster was deleted at {at}"));
    }
    if server.system_id == stored.system_id {
        return Some(format!("it has the same system identifier, {}", stored.system_id));
    }
    if server.major_version <= stored.major_version {
        return Some(format!(
            "it is PostgreSQL {}, stored is {}",
            server.major_version, stored.major_version
        ));
    }
    if server.segment_size.get() != stored.segment_size {
        let (found, expected) = (server.segment_size.get(), stored.segment_size);
        return Some(format!("its WAL segments have {found} bytes, those stored {expected}"));
    }
    let end = ending.end.filter(|end| server.flushed < end.lsn)?;
    Some(format!("its WAL is at {}, before the end of what is stored, {}", server.flushed, end.lsn))
}

/// Whether `wal` ends with the checkpoint of a clean shutdown, which nothing follows on its timeline.
pub fn ends_with_shutdown(wal: &WalMap) -> bool {
    let Some(end) = wal.durable_end() else { return false };
    let own = || wal.pieces().iter().filter(|piece| piece.timeline == end.timeline);
    let last = own().filter_map(|piece| piece.summary.last_record_end).max();
    let shutdowns = own().flat_map(|piece| &piece.summary.events);
    let shutdowns = shutdowns.filter(|event| event.kind == EventKind::CheckpointShutdown);
    let newest = shutdowns.map(|event| event.end).max();
    newest.is_some_and(|newest| Some(newest) == last && end.lsn.bytes_since(newest) < ALIGNMENT)
}

/// Makes the server that `connector` reaches the next generation of the cluster `name`. Durable on `Ok`, and nobody adds to the
/// generation before any more. If dropped: done or not; done again it goes on.
pub async fn upgrade(
    repo: Arc<Repository>,
    name: ClusterName,
    connector: &dyn Connector,
    options: &UpgradeOptions,
) -> Result<Upgraded, UpgradeError> {
    let mut server = connector.connect().await.map_err(ReceiveError::from)?;
    let identity = server.identify().await.map_err(ReceiveError::from)?;
    drop(server);
    let record = resume::generation_record(&name, &identity)?;
    let cluster = Cluster::unchecked(repo.clone(), name.clone());
    let root = cluster.newest_root().await?;
    let before = cluster.read_generation(root.generation).await?;
    if root.deleted_at.is_none() && is_same_server(&before, &record) {
        // One that was interrupted may have left them open.
        fences::close_generations(&cluster, &root).await?;
        let after = before.clone();
        return Ok(Upgraded { before, after, end: None, is_whole: true, journal_stored: None });
    }
    let journal = match journal_here(options.receive.journal.as_ref()).await? {
        true => session::store_journal(repo, name, &options.receive).await,
        false => Ok(None),
    };
    let snapshot = walmap::load(&cluster).await?;
    let lost = snapshot.wal.chains().iter().any(|chain| !chain.lost.is_empty());
    let (end, is_whole) = (snapshot.wal.durable_end(), ends_with_shutdown(&snapshot.wal) && !lost);
    let journal_stored = match journal {
        // A receiver still has it open, and stored everything.
        Err(ReceiveError::Journal(JournalError::Busy { .. })) if is_whole => None,
        stored => stored?,
    };
    let ending = Ending { record: &before, deleted_at: root.deleted_at, end, is_whole };
    decide(&ending, &identity, options.server, options.missing)?;
    let root = cluster.begin_generation(before.generation, &record).await?;
    fences::close_generations(&cluster, &root).await?;
    let after = cluster.read_generation(root.generation).await?;
    Ok(Upgraded { before, after, end, is_whole, journal_stored })
}

/// Whether there is a journal at `place`: one that is not there is not made.
async fn journal_here(place: Option<&JournalPlace>) -> Result<bool, UpgradeError> {
    let Some(place) = place else { return Ok(false) };
    match place.disk.list(&place.dir).await {
        Ok(names) => Ok(names.iter().any(|name| name.to_str().and_then(journal_file_number).is_some())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(reason) => Err(UpgradeError::Journal { dir: place.dir.clone(), reason }),
    }
}

#[cfg(test)]
mod tests;
