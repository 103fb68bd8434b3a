//! Registered work that goes on under the new root. It may have been registered, or renewed, by a root that is lost: so what counts is
//! that its object is there, and younger than any that a collection takes away. Older work has stalled, and begins anew: collection may
//! have expired it with a root that is lost, and removed what it relies on.

use crate::base::{ObjectId, limits};
use crate::format::header::ObjectKind;
use crate::format::root::{Pending, PendingEntry, Root};
use crate::repo::{Cluster, RepoError, layout};
use crate::store::StoreError;
use std::collections::BTreeSet;

/// Registered work.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Work {
    /// What goes on.
    pub going_on: Vec<PendingEntry>,
    /// What the base root names and has to begin anew, or has ended.
    pub ended: Vec<PendingEntry>,
}

/// Looks for it.
///
/// # Errors
/// A key epoch that is not held, a store that fails.
pub(super) async fn look(cluster: &Cluster, base: &Root) -> Result<Work, RepoError> {
    let store = cluster.repo().store();
    let listed = store.list(&layout::pending_prefix(cluster.name())).await?;
    let mut ids: BTreeSet<ObjectId> =
        listed.iter().filter_map(|meta| meta.key.file_name().parse().ok()).collect();
    ids.extend(base.pending.iter().map(|entry| entry.id));
    let mut work = Work::default();
    if ids.is_empty() {
        return Ok(work);
    }
    let grace = i64::try_from(limits::WORK_GRACE_MIN.as_micros()).unwrap_or(i64::MAX);
    let cutoff = cluster.repo().store_now().await?.saturating_sub(grace);
    // What was registered by a lost root refers to nothing before the base, and what was renewed by one to what it referred to before.
    let first = base.pending.iter().map(|entry| entry.root).min().unwrap_or(base.number).min(base.number);
    for id in ids {
        let named = base.pending.iter().find(|entry| entry.id == id);
        let key = layout::pending(cluster.name(), id);
        let young = match store.head(&key).await {
            Ok(meta) => meta.modified_unix_micros > cutoff,
            Err(StoreError::NotFound { .. }) => false,
            Err(error) => return Err(error.into()),
        };
        let entry = match named {
            Some(entry) => Some(entry.clone()),
            None if young => registered(cluster, id, first).await?,
            None => None,
        };
        let Some(entry) = entry else { continue };
        if young { work.going_on.push(entry) } else { work.ended.push(entry) }
    }
    Ok(work)
}

/// The entry of work that the base does not name; `None` when its object does not say what it is.
async fn registered(cluster: &Cluster, id: ObjectId, root: u64) -> Result<Option<PendingEntry>, RepoError> {
    let key = layout::pending(cluster.name(), id);
    let read = async {
        let object = cluster.repo().read_object(&key, ObjectKind::Pending).await?;
        object.meta::<Pending>().map_err(|error| RepoError::open(&key, error))
    };
    match read.await {
        Ok(work) => Ok((work.id == id).then_some(PendingEntry { id, kind: work.kind, root })),
        Err(error) if error.is_damage() => Ok(None),
        Err(error) => Err(error),
    }
}
