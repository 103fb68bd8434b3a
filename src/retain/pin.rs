//! Pins: backups that the operator keeps, whatever the policy says. Each change is one root.

use crate::base::{BackupId, Timestamp};
use crate::format::index::{BackupState, PinEntry};
use crate::repo::index::{IndexEdit, empty_page};
use crate::repo::{Cluster, Index, RepoError, RootChange};

/// Pins the backup `id`, in the place of an earlier pin of it. Durable on `Ok`.
///
/// # Errors
/// [`RepoError::NotFound`] when there is no such backup.
pub async fn pin(
    cluster: &Cluster,
    id: &BackupId,
    until: Option<Timestamp>,
    reason: &str,
) -> Result<PinEntry, RepoError> {
    let pinned_at = cluster.repo().env().clock.now();
    let entry = PinEntry { backup: id.clone(), pinned_at, until, reason: reason.to_owned() };
    cluster
        .commit_indexed(|root, index| {
            let Some(backup) = index.backup(id) else {
                return Err(not_found(cluster, format!("backup {id}")));
            };
            if backup.state == BackupState::Base {
                let reason = format!(
                    "backup {id} cannot be restored: retention let go of its WAL, and keeps it for its pages alone"
                );
                return Err(RepoError::Conflict { reason });
            }
            let mut page = empty_page();
            page.pins.push(entry.clone());
            Ok(Some(RootChange { root: root.clone(), index: IndexEdit::Add(page) }))
        })
        .await?;
    Ok(entry)
}

/// Takes the pin of the backup `id` away. Durable on `Ok`.
///
/// # Errors
/// [`RepoError::NotFound`] when it is not pinned.
pub async fn unpin(cluster: &Cluster, id: &BackupId) -> Result<(), RepoError> {
    cluster
        .commit_indexed(|root, index| {
            let mut next: Index = index.clone();
            next.pins.retain(|pin| pin.backup != *id);
            if next.pins.len() == index.pins.len() {
                return Err(not_found(cluster, format!("a pin of backup {id}")));
            }
            Ok(Some(RootChange { root: root.clone(), index: IndexEdit::Rewrite(next.into_page()) }))
        })
        .await?;
    Ok(())
}

fn not_found(cluster: &Cluster, what: String) -> RepoError {
    RepoError::NotFound { what, url: cluster.repo().store().url() }
}
