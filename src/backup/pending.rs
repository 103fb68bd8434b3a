//! The registration of a running backup in the root: collection respects it, and taking it away is how a stalled backup loses.

use super::error::BackupError;
use crate::base::ObjectId;
use crate::format::header::ObjectKind;
use crate::format::index::IndexPage;
use crate::format::record::Record;
use crate::format::root::{Pending, PendingEntry, PendingKind, Root};
use crate::repo::cluster::RootChange;
use crate::repo::index::IndexEdit;
use crate::repo::{Cluster, RepoError, layout};

/// A registered backup.
#[derive(Debug)]
pub struct Registration {
    id: ObjectId,
    root: Root,
}

impl Registration {
    /// Registers a backup. What the returned root refers to stays until the registration is gone, or has expired.
    pub async fn create(cluster: &Cluster, holder: &str) -> Result<Registration, RepoError> {
        let env = cluster.repo().env();
        let id = ObjectId::random(&*env.entropy);
        let key = layout::pending(cluster.name(), id);
        let pending = Pending {
            id,
            kind: PendingKind::Backup,
            began_at: env.clock.now(),
            backup: None,
            holder: holder.to_owned(),
        };
        let writer = cluster.repo().writer(ObjectKind::Pending, &key, id.0, 0, 0);
        cluster.repo().create_own(&key, &writer.finish(pending.encode()).bytes).await?;
        let root = cluster
            .commit::<RepoError>(|root| {
                let mut next = root.clone();
                next.pending.push(PendingEntry { id, kind: PendingKind::Backup, root: root.number });
                Ok(Some(RootChange::of(next)))
            })
            .await?;
        Ok(Registration { id, root })
    }

    /// The root in which it is registered.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Adds `page` to the index and ends the registration, in one root. Durable on `Ok`.
    ///
    /// # Errors
    /// [`BackupError::Expired`] when the registration is gone: what `page` refers to may be collected.
    pub async fn commit(&self, cluster: &Cluster, page: &IndexPage) -> Result<(), BackupError> {
        cluster
            .commit(|root| {
                let mut next = root.clone();
                next.pending.retain(|entry| entry.id != self.id);
                if next.pending.len() == root.pending.len() {
                    return Err(BackupError::Expired);
                }
                Ok(Some(RootChange { root: next, index: IndexEdit::Add(page.clone()) }))
            })
            .await?;
        self.remove_object(cluster).await;
        Ok(())
    }

    /// Ends the registration of a backup that was not made.
    pub async fn abandon(&self, cluster: &Cluster) -> Result<(), RepoError> {
        cluster
            .commit::<RepoError>(|root| {
                let mut next = root.clone();
                next.pending.retain(|entry| entry.id != self.id);
                Ok((next.pending.len() < root.pending.len()).then(|| RootChange::of(next)))
            })
            .await?;
        self.remove_object(cluster).await;
        Ok(())
    }

    /// Nothing names it any more; what stays of it, collection removes.
    async fn remove_object(&self, cluster: &Cluster) {
        let key = layout::pending(cluster.name(), self.id);
        if let Err(error) = cluster.repo().store().delete(&key).await {
            tracing::debug!(%error, "the pending entry's object stays for collection");
        }
    }
}
