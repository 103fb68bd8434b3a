//! What collection spares once an index was made anew out of what lay there (formats/index.md, "When it is lost"): what the new index
//! leaves out has a grace period from then on, however old it is, and what does not open is for people to remove. Nobody can say what
//! it holds, or whether the index would name it if it could have been read.

use crate::base::ObjectKey;
use crate::format::root::Root;
use crate::repo::listed::{manifest_of_name, open_listed_manifest, open_listed_segment};
use crate::repo::roots::{self, NONE};
use crate::repo::{Cluster, RepoError, layout};
use crate::store::{ObjectMeta, StoreError};

/// Whether what the index of `root` does not name may go: the index was never made anew, or that was before `cutoff`.
pub(super) async fn is_settled(cluster: &Cluster, root: &Root, cutoff: i64) -> Result<bool, RepoError> {
    let Some(number) = root.rebuilt_at() else { return Ok(true) };
    let floor = roots::newest_floor(cluster.repo(), cluster.name(), root.floor).await?;
    // Where that root is gone, the oldest that is there is younger than it: then that one has to be old enough.
    let number = number.max(floor.map_or(NONE, |floor| floor.root));
    match cluster.repo().store().head(&layout::root(cluster.name(), number)).await {
        Ok(meta) => Ok(meta.modified_unix_micros < cutoff),
        // Another collection raised the floor meanwhile: the next one sees to it.
        Err(StoreError::NotFound { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Those of `orphans` that may be removed from a cluster whose index was made anew.
pub(super) async fn those_that_open(
    cluster: &Cluster,
    root: &Root,
    orphans: Vec<ObjectMeta>,
) -> Result<Vec<ObjectKey>, RepoError> {
    let mut open = Vec::new();
    for meta in orphans {
        if root.rebuilt_at().is_none() || opens(cluster, &meta).await? {
            open.push(meta.key);
        }
    }
    Ok(open)
}

async fn opens(cluster: &Cluster, meta: &ObjectMeta) -> Result<bool, RepoError> {
    let opened = if manifest_of_name(cluster, &meta.key).is_some() {
        open_listed_manifest(cluster, &meta.key, meta.len).await.map(drop)
    } else if is_segment(cluster, &meta.key) {
        open_listed_segment(cluster, &meta.key, meta.len).await.map(drop)
    } else {
        // Registrations hold nothing.
        return Ok(true);
    };
    match opened {
        Ok(()) => Ok(true),
        Err(error) if error.is_damage() || error.is_shut() => {
            tracing::warn!(%error, "no index names it, and it does not open: it is left for people to remove");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

fn is_segment(cluster: &Cluster, key: &ObjectKey) -> bool {
    key.file_name().parse().is_ok_and(|id| layout::segment(cluster.name(), id) == *key)
}
