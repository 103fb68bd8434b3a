//! Long reading, a restore or a copy, holds on to what it reads: registered as work in progress when it may write to the repository.
//! When it may not, what it reads may move, and it looks again at the newest root.

use super::walmap::{self, Snapshot};
use super::{Cluster, Registration, RepoError};
use crate::base::{BackupId, limits};
use crate::format::root::PendingKind;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

/// How long registering may take: a store that cannot be written to now does not keep anybody from reading.
const REGISTER_LIMIT: Duration = Duration::from_secs(30);

/// What keeps the objects that are read where they are, if anything does.
#[derive(Debug)]
pub struct Hold(Option<Registration>);

impl Hold {
    /// Registers that `holder` reads, of `backup` if it names one, if the repository lets us.
    pub async fn take(cluster: &Cluster, backup: Option<&BackupId>, holder: &str) -> Hold {
        if let Some(owner) = belongs_to_another(&cluster.repo().store().url()) {
            tracing::info!(owner, holder, "the repository's directory is another user's: it is only read");
            return Hold(None);
        }
        let registering = Registration::create(cluster, PendingKind::Restore, backup.cloned(), holder);
        let refused: String = match tokio::time::timeout(REGISTER_LIMIT, registering).await {
            Ok(Ok(registration)) => return Hold(Some(registration)),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {REGISTER_LIMIT:?}"),
        };
        tracing::info!(reason = refused, holder, "not registered in the repository: it is only read");
        Hold(None)
    }

    /// Runs `work`, and renews the registration meanwhile. One that expired all the same is done without.
    pub async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        if let Some(registration) = &self.0 {
            tokio::select! {
                done = &mut work => return done,
                expired = registration.keep(limits::WORK_RENEW_INTERVAL) => {
                    tracing::warn!("{expired}; reading goes on, and looks again when something is gone");
                }
            }
        }
        work.await
    }

    /// Lets go. What cannot be taken out of the root now expires by itself.
    pub async fn release(self) {
        if let Some(registration) = self.0
            && !matches!(tokio::time::timeout(REGISTER_LIMIT, registration.abandon()).await, Ok(Ok(_)))
        {
            tracing::warn!("the registration of what was read stays in the repository until it is collected");
        }
    }
}

/// The user to whom a repository's directory belongs, if not to us: what root left there, its owner could not remove.
fn belongs_to_another(url: &str) -> Option<u32> {
    let owner = std::fs::metadata(url.strip_prefix("file://")?).ok()?.uid();
    (owner != rustix::process::geteuid().as_raw()).then_some(owner)
}

/// The newest state in which `backup` is there, if its chunks may be elsewhere now than `known` says.
pub async fn moved(
    cluster: &Cluster,
    known: &Snapshot,
    backup: &BackupId,
) -> Result<Option<Snapshot>, RepoError> {
    let newest = walmap::load(cluster).await?;
    let ids = |snapshot: &Snapshot| snapshot.index.pages.iter().map(|entry| entry.id).collect::<Vec<_>>();
    let differs = newest.root.number > known.root.number && ids(&newest) != ids(known);
    Ok((differs && newest.index.backup(backup).is_some()).then_some(newest))
}
