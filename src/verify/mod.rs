//! `walden verify`: reads everything back and says what is wrong, and what each damage costs in recovery.
//! [`objects`] reads every object as it lies; [`references`] follows roots, index, chains and manifests and finds what is
//! missing; [`deltas`] decodes WAL that needs more than its own object; [`numbers`] holds lists against what numbers promise. Damage is a finding, not an error: the rest is still looked at.
//!
//! What nobody can see: an object that is gone without anything else saying that it was there. The newest root, the newest flush
//! objects of a stream, the fence of a stream that is wholly compacted: without them the repository is in an earlier, whole state.

pub mod deltas;
pub mod numbers;
pub mod objects;
pub mod references;

use crate::base::{Env, ObjectKey, Progress};
use crate::codec::Unlock;
use crate::repo::{Cluster, RepoError, Repository, layout};
use crate::store::Store;
use std::collections::BTreeMap;
use std::sync::Arc;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The object, or the one that refers to what is missing.
    pub key: String,
    /// What is wrong with it.
    pub reason: String,
    /// What that costs: the recovery interval, the backup, or nothing.
    pub cost: String,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Objects read.
    pub objects: u64,
    /// Bytes read.
    pub bytes: u64,
    /// What is wrong, by key.
    pub findings: Vec<Finding>,
}

/// Checks checksums, lengths and places of every object, without any secret.
pub async fn without_key(store: &dyn Store, progress: &dyn Progress) -> Result<Report, RepoError> {
    let read = objects::read_all(store, None, progress).await?;
    let cost_of_slot = |key: &ObjectKey| match layout::parse_key_object(key) {
        Some(_) => references::cost_unreferenced(key),
        None => "unknown without a key".into(),
    };
    let damaged = read.damaged.into_iter();
    let mut findings: Vec<Finding> = damaged
        .map(|(key, reason)| Finding { cost: cost_of_slot(&key), key: key.to_string(), reason })
        .chain(numbers::slots(&read.listed))
        .collect();
    findings.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(Report { objects: read.objects, bytes: read.bytes, findings })
}

/// Opens the repository and checks everything. When it does not open because of damage, what can be said without its keys.
///
/// # Errors
/// [`RepoError::Key`] when no slot opens and none is damaged: the secret is another one's.
pub async fn unlocking(
    store: Arc<dyn Store>,
    unlock: &Unlock,
    env: Env,
    progress: &dyn Progress,
) -> Result<Report, RepoError> {
    match Repository::open(store.clone(), unlock, env).await {
        Ok(repo) => with_key(&Arc::new(repo), progress).await,
        Err(error) => {
            let about_keys = matches!(
                error,
                RepoError::Key { .. } | RepoError::KeySlot { .. } | RepoError::NotFound { .. }
            );
            if !about_keys && !error.is_damage() {
                return Err(error);
            }
            let report = without_key(&*store, progress).await?;
            // With a wrong secret, damage elsewhere is not what hinders.
            let hinders =
                |finding: &Finding| !finding.key.starts_with(layout::CLUSTERS_PREFIX) || !about_keys;
            if report.findings.iter().any(hinders) { Ok(report) } else { Err(error) }
        }
    }
}

/// Checks everything: seals, chunk ids, chains, coverage, references.
pub async fn with_key(repo: &Arc<Repository>, progress: &dyn Progress) -> Result<Report, RepoError> {
    let read = objects::read_all(&**repo.store(), Some(repo), progress).await?;
    let mut damaged: BTreeMap<ObjectKey, String> = read.damaged.into_iter().collect();
    let mut findings = numbers::slots(&read.listed);
    for name in numbers::clusters(&read.listed) {
        progress.stage("following references", None);
        findings.extend(numbers::roots(repo, &name, &read.listed).await?);
        let checked = match Cluster::open(repo.clone(), name.clone()).await {
            Ok(cluster) => references::check(&cluster, &read.listed, &mut damaged, progress).await,
            Err(error) => Err(error),
        };
        match checked {
            Ok(found) => findings.extend(found),
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => findings.push(Finding {
                key: format!("clusters/{name}"),
                reason: error.to_string(),
                cost: format!("everything of cluster {name}"),
            }),
        }
    }
    // What is damaged and nothing refers to costs nothing, but somebody may want to know.
    findings.extend(damaged.into_iter().map(|(key, reason)| Finding {
        cost: references::cost_unreferenced(&key),
        key: key.to_string(),
        reason,
    }));
    findings.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(Report { objects: read.objects, bytes: read.bytes, findings })
}
