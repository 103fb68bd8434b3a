//! `walden verify`: reads everything back and says what is wrong, and what each damage costs in recovery.
//!
//! [`cluster`] goes through one cluster: [`numbers`] holds lists against what numbers promise, [`references`] follows what the newest
//! root leads to, [`objects`] reads objects as they lie, [`wal`] decodes WAL and checks its records, [`pages`] judges pages whose
//! checksum is wrong, [`results`] makes of it what is stored. [`turn`] and [`rotation`] choose what a sample reads. Damage is a
//! finding, not an error: the rest is still looked at.
//!
//! Retention, compaction and collection go on beside it. What is gone, and what the newest root does not lead to any more, is no damage.
//!
//! What nobody can see: an object that is gone without anything else saying that it was there. The newest root, the newest flush
//! objects of a stream, the fence of a stream that is wholly compacted: without them the repository is in an earlier, whole state.

pub mod again;
pub mod cluster;
pub mod cost;
pub mod judge;
mod key_objects;
pub mod links;
pub mod listing;
mod looked;
pub mod needs;
pub mod numbers;
pub mod objects;
pub mod pages;
mod proofs;
pub mod references;
pub mod results;
pub mod rotation;
pub mod turn;
pub mod wal;

pub use turn::Budget;

use crate::base::{BackupId, ClusterName, Env, ObjectKey, Progress, RepositoryId, Timestamp};
use crate::codec::Unlock;
use crate::format::envelope::PlainObject;
use crate::format::marker::RepositoryMarker;
use crate::format::verification::{BackupVerification, Verification};
use crate::repo::{RepoError, Repository, layout};
use crate::store::{ObjectMeta, Store, StoreError};
use cluster::Task;
use judge::{Damaged, Judge};
use listing::Listed;
use objects::{Read, Unread};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::time::Instant;

/// How deep to look, with keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// That everything is there, of the right length, down to the last chunk.
    References,
    /// And that it can be opened and is what it should be; of chunks that an earlier run proved, that they are as they were then,
    /// by their seals alone.
    Seals,
    /// And that each chunk is what it should be, whoever proved that before.
    Content,
}

impl Depth {
    /// Whether objects are read.
    fn reads(self) -> bool {
        match self {
            Depth::References => false,
            Depth::Seals | Depth::Content => true,
        }
    }
}

/// What becomes of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// It is stored beside each cluster, where that is allowed.
    Store,
    /// It is only shown.
    Discard,
}

/// What to look at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// How deep.
    pub depth: Depth,
    /// How much.
    pub budget: Budget,
    /// What becomes of the result.
    pub keep: Keep,
}

impl Options {
    /// Everything, and the result is stored.
    pub const WHOLE: Options =
        Options { depth: Depth::Content, budget: Budget::Everything, keep: Keep::Store };
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The object, or the one that refers to what is missing.
    pub key: String,
    /// What is wrong with it.
    pub reason: String,
    /// What that costs: the recovery interval, the backup, or nothing.
    pub cost: String,
    /// Backups that cannot be restored whole because of it.
    pub backups: Vec<BackupId>,
}

/// Whether a result was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// It was.
    Yes {
        /// Under this number.
        number: u64,
    },
    /// It was not.
    No {
        /// Why.
        reason: String,
    },
}

/// What is known of a cluster after a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterReport {
    /// Its name.
    pub name: ClusterName,
    /// Its restorable backups.
    pub backups: Vec<BackupVerification>,
    /// Bytes that were read in this run or in those before it.
    pub bytes_covered: u64,
    /// Bytes that it has.
    pub bytes_total: u64,
    /// When the part of it was read that was read longest ago; none when nothing was.
    pub covered_since: Option<Timestamp>,
    /// Whether that was stored.
    pub stored: Stored,
}

impl ClusterReport {
    fn new(result: Verification, stored: Stored) -> ClusterReport {
        ClusterReport {
            covered_since: result.arcs.iter().map(|arc| arc.at).min(),
            name: result.cluster,
            backups: result.backups,
            bytes_covered: result.bytes_covered,
            bytes_total: result.bytes_total,
            stored,
        }
    }
}

/// A cluster of which nothing is known, since it could not be looked at.
#[derive(Debug)]
pub struct Failed {
    /// Its name.
    pub name: ClusterName,
    /// Why: a store that fails or refuses, a key epoch that our slot was not given.
    pub error: RepoError,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    /// Objects read.
    pub objects: u64,
    /// Bytes read.
    pub bytes: u64,
    /// What is wrong, by key.
    pub findings: Vec<Finding>,
    /// Objects that could not be looked at: nothing is known of them.
    pub unread: Vec<Unread>,
    /// What is known of each cluster; nothing without keys.
    pub clusters: Vec<ClusterReport>,
    /// Clusters that could not be looked at.
    pub failed: Vec<Failed>,
}

/// Checks checksums, lengths and places of every object, without any secret.
pub async fn without_key(store: &dyn Store, progress: &dyn Progress) -> Result<Report, RepoError> {
    let (id, mut read, listed) = list(store).await?;
    progress.stage("reading objects", Some(listing::bytes(listed.all())));
    let judge = Arc::new(Judge { repo: None, id, epochs: BTreeSet::new(), expected: None, proved: None });
    read.add(objects::read(store, &judge, listed.all().iter().cloned(), progress).await?);
    foreign_marker(&mut read, id);
    let cost_of_slot = |key: &ObjectKey| match layout::parse_key_object(key) {
        None if *key != layout::marker() => "unknown without a key".into(),
        _ => cost::unreferenced(key),
    };
    let damaged = read.damaged.iter().map(|(key, damaged)| Finding {
        cost: cost_of_slot(key),
        key: key.to_string(),
        reason: damaged.reason.clone(),
        backups: Vec::new(),
    });
    let findings = damaged.chain(numbers::slots(&listed, None)).collect();
    Ok(report(read, findings, Vec::new(), Vec::new()))
}

/// Opens the repository and checks it. When it does not open because of damage, what can be said without its keys.
///
/// # Errors
/// [`RepoError::Key`] when no slot opens and none is damaged: the secret is another one's.
pub async fn unlocking(
    store: Arc<dyn Store>,
    unlock: &Unlock,
    env: Env,
    options: Options,
    progress: &dyn Progress,
) -> Result<Report, RepoError> {
    match Repository::open(store.clone(), unlock, env).await {
        Ok(repo) => with_key(&Arc::new(repo), options, progress).await,
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

/// Checks what `options` ask for: seals, chunk ids, chains, coverage, references. Results are durable on return, where the report
/// says so. If dropped: some clusters' results may be stored.
pub async fn with_key(
    repo: &Arc<Repository>,
    options: Options,
    progress: &dyn Progress,
) -> Result<Report, RepoError> {
    let store = &**repo.store();
    let started = Instant::now();
    // Before the list. Who may not write stores no result: then nobody asks later what was on it.
    let seen_until = match options.keep {
        Keep::Store if options.depth.reads() => repo.store_now().await.map(listing::seen_until).ok(),
        Keep::Store | Keep::Discard => None,
    };
    let (id, mut read, listed) = list(store).await?;
    repo.follow_epochs().await?.ok();
    let mut findings = numbers::slots(&listed, Some(repo.keys().chain().last()));
    findings.extend(links::findings(repo, &listed).await?);
    // Small, and everything hangs on them: read whatever the budget is.
    let epochs = numbers::epochs(&listed);
    let judge = Arc::new(Judge { repo: Some(repo.clone()), id, epochs, expected: None, proved: None });
    read.add(
        objects::read(store, &judge, listed.under(layout::KEYS_PREFIX).iter().cloned(), progress).await?,
    );
    let names = numbers::clusters(&listed);
    let bytes_of = |name: &ClusterName| listing::bytes(listed.under(&layout::cluster_prefix(name)));
    let total: u64 = names.iter().map(bytes_of).sum();
    let (mut left, mut clusters, mut failed) = (total, Vec::new(), Vec::new());
    for name in &names {
        let own = bytes_of(name);
        let limit = options.budget.limit(started, own, left, total);
        left = left.saturating_sub(own);
        let Options { depth, keep, .. } = options;
        let task = Task { repo, id, name, listed: &listed, seen_until, depth, limit, keep };
        match cluster::check(&task, progress).await {
            Ok(outcome) => {
                read.add(outcome.read);
                findings.extend(outcome.findings);
                clusters.push(outcome.report);
            }
            // The others are looked at all the same: one must not keep them from being verified, day after day.
            Err(error) => failed.push(Failed { name: name.clone(), error }),
        }
    }
    foreign_marker(&mut read, id);
    findings.extend(read.damaged.iter().map(|(key, damaged)| Finding {
        cost: cost::unreferenced(key),
        key: key.to_string(),
        reason: damaged.reason.clone(),
        backups: Vec::new(),
    }));
    Ok(report(read, findings, clusters, failed))
}

/// The marker, and everything that a list shows.
async fn list(store: &dyn Store) -> Result<(Option<RepositoryId>, Read, Listed), RepoError> {
    let (mut read, marker) = (Read::default(), layout::marker());
    let mut wrong = |reason: String| read.damaged.push((marker.clone(), Damaged::from(reason)));
    let id = match store.get(&marker).await {
        Ok(bytes) => match RepositoryMarker::from_object(&bytes) {
            Ok(marker) => Some(marker.id),
            Err(error) => {
                wrong(error.to_string());
                None
            }
        },
        Err(StoreError::NotFound { .. }) => {
            wrong("it is gone".into());
            None
        }
        Err(error) => return Err(error.into()),
    };
    let mut listed: Vec<ObjectMeta> = store.list(layout::KEYS_PREFIX).await?;
    listed.extend(store.list(layout::CLUSTERS_PREFIX).await?);
    if listed.is_empty() && id.is_none() {
        return Err(RepoError::NotFound { what: "a walden repository".into(), url: store.url() });
    }
    Ok((id, read, Listed::new(listed)))
}

/// When nothing belongs to the repository that the marker names, it is the marker that is wrong.
fn foreign_marker(read: &mut Read, id: Option<RepositoryId>) {
    if id.is_some() && read.foreign > 0 && read.foreign == read.objects {
        let reason = "it names another repository than every other object".to_owned();
        read.damaged.push((layout::marker(), reason.into()));
    }
}

fn report(
    read: Read,
    mut findings: Vec<Finding>,
    clusters: Vec<ClusterReport>,
    failed: Vec<Failed>,
) -> Report {
    findings.sort_by(|a, b| a.key.cmp(&b.key));
    Report { objects: read.objects, bytes: read.bytes, findings, unread: read.unread, clusters, failed }
}
