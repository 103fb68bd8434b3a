//! The registration of work in progress in the root: collection respects it, and taking it away is how work that stalled loses.
//! It is renewed while work goes on, by another object in its place, since nothing is ever overwritten. Spec: formats/root.md.

use super::cluster::{Cluster, RootChange};
use super::error::RepoError;
use super::layout;
use crate::base::{BackupId, ObjectId, limits};
use crate::format::header::ObjectKind;
use crate::format::record::Record;
use crate::format::root::{Pending, PendingEntry, PendingKind, Root};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Tries to renew that may fail within one interval.
const TRIES_PER_INTERVAL: u32 = 4;

/// Why registered work cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum PendingError {
    /// Collection took the registration away: what the work relies on, or has stored, may be gone.
    #[error("the registration was collected after {} without a renewal", humane(limits::WORK_GRACE_MIN))]
    Expired,
    /// The repository failed.
    #[error(transparent)]
    Repo(#[from] RepoError),
}

fn humane(duration: Duration) -> String {
    format!("{} minutes", duration.as_secs() / 60)
}

/// Registered work.
#[derive(Debug)]
pub struct Registration {
    cluster: Cluster,
    work: Pending,
    root: Root,
    /// The ids under which it may stand in the root: one, and that of a renewal which nobody waited for.
    ids: Mutex<Vec<ObjectId>>,
}

impl Registration {
    /// Registers work. What the returned root refers to stays until the registration is gone, or has expired.
    pub async fn create(
        cluster: &Cluster,
        kind: PendingKind,
        backup: Option<BackupId>,
        holder: &str,
    ) -> Result<Registration, RepoError> {
        let env = cluster.repo().env();
        let (id, began_at) = (ObjectId::random(&*env.entropy), env.clock.now());
        let work = Pending { id, kind, began_at, backup, holder: holder.to_owned() };
        create_object(cluster, &work).await?;
        let root = cluster
            .commit::<RepoError>(|root| {
                let mut next = root.clone();
                next.pending.push(PendingEntry { id, kind, root: root.number });
                Ok(Some(RootChange::of(next)))
            })
            .await?;
        // Epochs made before the work was registered are known to it from its beginning: destroying an older one rests on that.
        cluster.follow_epochs().await?;
        Ok(Registration { cluster: cluster.clone(), work, root, ids: Mutex::new(vec![id]) })
    }

    /// The root in which it is registered.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The newest root before it was registered.
    pub fn began_after(&self) -> u64 {
        self.root.number.saturating_sub(1)
    }

    /// Makes it as young as at the beginning. If dropped: renewed or not; the next call, and the commit, find out.
    pub async fn renew(&self) -> Result<(), PendingError> {
        let id = ObjectId::random(&*self.cluster.repo().env().entropy);
        create_object(&self.cluster, &Pending { id, ..self.work.clone() }).await?;
        let old = self.ids();
        self.lock().push(id);
        self.cluster
            .commit(|root| {
                let mut next = root.clone();
                let mine = next.pending.iter_mut().find(|entry| old.contains(&entry.id));
                mine.ok_or(PendingError::Expired)?.id = id;
                Ok::<_, PendingError>(Some(RootChange::of(next)))
            })
            .await?;
        self.lock().retain(|known| *known == id);
        self.remove_objects(&old).await;
        Ok(())
    }

    /// Renews it every `interval`, as long as it is polled. Returns only when it has expired.
    pub async fn keep(&self, interval: Duration) -> PendingError {
        let mut wait = interval;
        loop {
            tokio::time::sleep(wait).await;
            wait = match self.renew().await {
                Ok(()) => interval,
                Err(PendingError::Expired) => return PendingError::Expired,
                Err(PendingError::Repo(error)) => {
                    tracing::warn!(%error, "work in progress could not be registered anew; it is tried again");
                    interval / TRIES_PER_INTERVAL
                }
            };
        }
    }

    /// `root` without the registration, for a commit; `None` when it has expired, and the commit must not be.
    pub fn leave(&self, root: &Root) -> Option<Root> {
        let (mut next, ids) = (root.clone(), self.ids());
        next.pending.retain(|entry| !ids.contains(&entry.id));
        (next.pending.len() < root.pending.len()).then_some(next)
    }

    /// After the root that was left is committed.
    pub async fn left(&self) {
        self.remove_objects(&self.ids()).await;
    }

    /// Ends the registration of work that changes nothing, or was not done. Whether it was still there: if not, what the work
    /// relied on may be gone, and explains its errors.
    pub async fn abandon(&self) -> Result<bool, RepoError> {
        let mut there = false;
        let leave = |root: &Root| {
            let left = self.leave(root);
            there = left.is_some();
            Ok::<_, RepoError>(left.map(RootChange::of))
        };
        self.cluster.commit(leave).await?;
        self.left().await;
        Ok(there)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<ObjectId>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ids(&self) -> Vec<ObjectId> {
        self.lock().clone()
    }

    /// Nothing names them any more; what stays of them, collection removes.
    async fn remove_objects(&self, ids: &[ObjectId]) {
        for id in ids {
            let key = layout::pending(self.cluster.name(), *id);
            if let Err(error) = self.cluster.repo().store().delete(&key).await {
                tracing::debug!(%error, "a pending entry's object stays for collection");
            }
        }
    }
}

async fn create_object(cluster: &Cluster, work: &Pending) -> Result<(), RepoError> {
    let key = layout::pending(cluster.name(), work.id);
    let writer = cluster.repo().writer(ObjectKind::Pending, &key, work.id.0, 0, 0);
    cluster.repo().create_own(&key, &writer.finish(work.encode()).bytes).await
}
