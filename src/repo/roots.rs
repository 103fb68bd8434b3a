//! Finding the newest root and the newest floor without a list: both are numbered from 1 without holes above the floor,
//! so doubling and bisecting find the end. Spec: formats/root.md.

use super::error::RepoError;
use super::layout;
use super::repository::{Repository, exists};
use crate::base::{ClusterName, ObjectKey};
use crate::format::header::ObjectKind;
use crate::format::root::{Floor, Root};
use crate::store::StoreError;

/// The number before the first root and the first floor.
pub const NONE: u64 = 0;

/// The greatest number from `known` on that `key_of` names an object for, when `known` itself has one (or is [`NONE`]).
pub async fn newest_number(
    repo: &Repository,
    known: u64,
    key_of: impl Fn(u64) -> ObjectKey,
) -> Result<u64, RepoError> {
    let store = &**repo.store();
    let (mut low, mut step) = (known, 1);
    // Invariant: `low` exists, `high` does not.
    let mut high = loop {
        let probe = low.saturating_add(step);
        if !exists(store, &key_of(probe)).await? {
            break probe;
        }
        low = probe;
        step *= 2;
    };
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if exists(store, &key_of(middle)).await? {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

/// The newest floor; `None` before the first.
pub async fn newest_floor(
    repo: &Repository,
    cluster: &ClusterName,
    known: u64,
) -> Result<Option<Floor>, RepoError> {
    let number = newest_number(repo, known, |n| layout::floor(cluster, n)).await?;
    if number == NONE {
        return Ok(None);
    }
    let key = layout::floor(cluster, number);
    let object = repo.read_object(&key, ObjectKind::Floor).await?;
    let floor: Floor = object.meta().map_err(|error| RepoError::open(&key, error))?;
    if floor.number != number || floor.cluster != *cluster {
        let found = format!("says it is floor {} of {}", floor.number, floor.cluster);
        return Err(RepoError::damage(&key, found));
    }
    Ok(Some(floor))
}

/// Root `number`; `None` when it is not there.
pub async fn read_root(
    repo: &Repository,
    cluster: &ClusterName,
    number: u64,
) -> Result<Option<Root>, RepoError> {
    let key = layout::root(cluster, number);
    let object = match repo.read_object(&key, ObjectKind::Root).await {
        Err(RepoError::Store(StoreError::NotFound { .. })) => return Ok(None),
        other => other?,
    };
    let root: Root = object.meta().map_err(|error| RepoError::open(&key, error))?;
    if root.number != number || root.cluster != *cluster {
        return Err(RepoError::damage(&key, format!("says it is root {} of {}", root.number, root.cluster)));
    }
    Ok(Some(root))
}

/// The newest floor, and the number of the newest root as it is found from there on or from `known`, whatever lies at it: [`NONE`]
/// without any.
pub async fn newest_root_number(
    repo: &Repository,
    cluster: &ClusterName,
    known: u64,
    floor_known: u64,
) -> Result<(Option<Floor>, u64), RepoError> {
    let floor = newest_floor(repo, cluster, floor_known).await?;
    let start = known.max(floor.as_ref().map_or(NONE, |floor| floor.root));
    let number = newest_number(repo, start, |n| layout::root(cluster, n)).await?;
    Ok((floor, number))
}

/// The newest root, from the newest floor on; `None` in a cluster without any. `known` is a root number seen before.
pub async fn newest_root(
    repo: &Repository,
    cluster: &ClusterName,
    known: u64,
) -> Result<Option<(Root, u64)>, RepoError> {
    let mut floor_known = NONE;
    loop {
        let (floor, number) = newest_root_number(repo, cluster, known, floor_known).await?;
        floor_known = floor.map_or(NONE, |floor| floor.number);
        if number == NONE {
            // The first root may have been removed since the floor was looked for: then there is a floor now.
            if newest_floor(repo, cluster, NONE).await?.is_some() {
                continue;
            }
            return Ok(None);
        }
        if let Some(root) = read_root(repo, cluster, number).await? {
            return Ok(Some((root, floor_known)));
        }
        // Collection removed it between the search and the read: a newer floor says where roots begin now.
        let newer = newest_floor(repo, cluster, floor_known).await?;
        if newer.is_none_or(|f| f.root <= number) {
            return Err(RepoError::damage(&layout::root(cluster, number), "gone, and no floor is above it"));
        }
    }
}
