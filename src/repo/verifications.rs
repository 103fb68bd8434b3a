//! Results of verification, stored beside a cluster. Spec: formats/verification.md.
//! They are for people and for the next verification: nothing decides by them what is durable or what may be removed, so a list
//! is good enough to find them.

use super::cluster::Cluster;
use super::error::RepoError;
use super::layout;
use super::repository::Created;
use super::roots::NONE;
use crate::format::header::ObjectKind;
use crate::format::record::Record;
use crate::format::verification::Verification;
use crate::store::StoreError;

/// Races for the next number that a result may lose.
const STORE_TRIES_MAX: u32 = 20;

/// The newest result of a cluster.
#[derive(Debug)]
pub struct Newest {
    /// The highest number that is there, [`NONE`] when there is none.
    pub number: u64,
    /// What it says; `None` when there is none, or when it is damaged, gone, or of a key epoch that is not there any more.
    pub result: Option<Verification>,
}

/// The newest result. One that is damaged is as good as none: `verify` names it.
///
/// # Errors
/// A store that fails.
pub async fn newest(cluster: &Cluster) -> Result<Newest, RepoError> {
    let number = numbers(cluster).await?.into_iter().max().unwrap_or(NONE);
    if number == NONE {
        return Ok(Newest { number, result: None });
    }
    match read(cluster, number).await {
        Ok(result) => Ok(Newest { number, result: Some(result) }),
        Err(error) if error.is_damage() || error.is_shut() => Ok(Newest { number, result: None }),
        Err(error) => Err(error),
    }
}

/// Stores what `make` makes of the newest result, and removes those before it; asks it again when another result came first.
/// Durable on `Ok`. If dropped: stored or not.
///
/// # Errors
/// [`RepoError::Store`] with [`StoreError::Denied`] when the store does not let us.
pub async fn store(
    cluster: &Cluster,
    mut make: impl FnMut(Option<&Verification>) -> Verification,
) -> Result<Verification, RepoError> {
    for _ in 0..STORE_TRIES_MAX {
        cluster.follow_epochs().await?;
        let before = newest(cluster).await?;
        let mut next = make(before.result.as_ref());
        next.cluster = cluster.name().clone();
        next.number = before.number + 1;
        let key = layout::verification(cluster.name(), next.number);
        let writer = cluster.repo().writer(ObjectKind::Verification, &key, [0; 16], next.number, 0);
        match cluster.repo().create(&key, &writer.finish(next.encode()).bytes).await? {
            Created::Taken(_) => continue,
            Created::Ours => {}
        }
        let there = numbers(cluster).await?;
        if there.iter().all(|number| *number <= next.number) {
            remove(cluster, there.into_iter().filter(|number| *number < next.number)).await;
            return Ok(next);
        }
        // The number had been won before, and removed: nobody would look at ours.
        remove(cluster, [next.number]).await;
    }
    let reason = format!("cluster {}: lost {STORE_TRIES_MAX} races to store a result", cluster.name());
    Err(RepoError::Conflict { reason })
}

async fn numbers(cluster: &Cluster) -> Result<Vec<u64>, RepoError> {
    let listed = cluster.repo().store().list(&layout::verifications_prefix(cluster.name())).await?;
    Ok(listed.iter().filter_map(|meta| meta.key.file_name().parse().ok()).collect())
}

async fn read(cluster: &Cluster, number: u64) -> Result<Verification, RepoError> {
    let key = layout::verification(cluster.name(), number);
    let object = cluster.repo().read_object(&key, ObjectKind::Verification).await?;
    let result: Verification = object.meta().map_err(|error| RepoError::open(&key, error))?;
    if result.number != number || result.cluster != *cluster.name() {
        let found = format!("says it is verification {} of {}", result.number, result.cluster);
        return Err(RepoError::damage(&key, found));
    }
    Ok(result)
}

/// What stays is small, and the next result removes it.
async fn remove(cluster: &Cluster, numbers: impl IntoIterator<Item = u64>) {
    for number in numbers {
        let key = layout::verification(cluster.name(), number);
        match cluster.repo().store().delete(&key).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => {}
            Err(error) => tracing::debug!(%error, "an older result of verification stays"),
        }
    }
}
