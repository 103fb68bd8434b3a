//! `walden verify`: reads everything back and says what is wrong, and what each damage costs in recovery.
//! [`objects`] reads every object as it lies; [`references`] follows roots, index, chains and manifests and finds what is
//! missing. Damage is a finding, not an error: the rest is still looked at.

pub mod objects;
pub mod references;

use crate::base::{ObjectKey, Progress};
use crate::repo::{Cluster, RepoError, Repository};
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
    let unknown = |(key, reason): (ObjectKey, String)| Finding {
        key: key.to_string(),
        reason,
        cost: "unknown without a key".into(),
    };
    Ok(Report {
        objects: read.objects,
        bytes: read.bytes,
        findings: read.damaged.into_iter().map(unknown).collect(),
    })
}

/// Checks everything: seals, chunk ids, chains, coverage, references.
pub async fn with_key(repo: &Arc<Repository>, progress: &dyn Progress) -> Result<Report, RepoError> {
    let read = objects::read_all(&**repo.store(), Some(repo), progress).await?;
    let mut damaged: BTreeMap<ObjectKey, String> = read.damaged.into_iter().collect();
    let mut findings = Vec::new();
    for name in repo.clusters().await? {
        progress.stage("following references", None);
        match Cluster::open(repo.clone(), name.clone()).await {
            Ok(cluster) => findings.extend(references::check(&cluster, &mut damaged).await?),
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
