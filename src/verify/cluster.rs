//! Verification of one cluster: numbers, references, objects, WAL, pages; then what is stored of that.

use super::again::Again;
use super::judge::{Damaged, Judge, Proved};
use super::listing::{self, Listed};
use super::looked::look;
use super::objects::{self, Fault, Read, Unread};
use super::references;
use super::results;
use super::rotation::{self, place_of};
use super::turn::{Limit, Turn};
use super::wal::Decoded;
use super::{ClusterReport, Depth, Finding, Keep, Stored, cost, numbers};
use crate::base::{ClusterName, ObjectKey, Progress, RepositoryId, Timestamp};
use crate::format::verification::{VerifiedArc, VerifyDepth, VerifyScope};
use crate::repo::{Cluster, RepoError, Repository, layout, verifications};
use crate::store::ObjectMeta;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

/// What a run looks at, and how.
#[derive(Debug)]
pub struct Task<'a> {
    /// The keys.
    pub repo: &'a Arc<Repository>,
    /// The repository that the marker names.
    pub id: Option<RepositoryId>,
    /// The cluster.
    pub name: &'a ClusterName,
    /// What a list showed.
    pub listed: &'a Listed,
    /// Up to which Last-Modified everything is on that list; none when nobody knows.
    pub seen_until: Option<i64>,
    /// How deep.
    pub depth: Depth,
    /// How much.
    pub limit: Limit,
    /// Whether the result is stored.
    pub keep: Keep,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// What was read.
    pub read: Read,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// For people.
    pub report: ClusterReport,
}

/// Looks at a cluster.
///
/// # Errors
/// A store that fails or refuses, a key epoch that our slot was not given: then nothing is known of the cluster, and nothing is stored.
pub async fn check(task: &Task<'_>, progress: &dyn Progress) -> Result<Outcome, RepoError> {
    let started_at = task.repo.env().clock.now();
    let own = task.listed.under(&layout::cluster_prefix(task.name));
    progress.stage("following references", None);
    let mut findings = numbers::roots(task.repo, task.name, task.listed).await?;
    let handle = Cluster::unchecked(task.repo.clone(), task.name.clone());
    let before = verifications::newest(&handle).await?.result;
    let again = Again::new(before.as_ref(), own);
    let looked = look(&handle, &mut findings).await?;
    let (expected, looked) = looked.map(|(looked, needs)| (looked.expected(needs), looked)).unzip();
    let expected = expected.map(|expected| (task.name.clone(), expected));
    let epochs = numbers::epochs(task.listed);
    let latest = Timestamp::from_micros(started_at.micros().saturating_sub(1));
    let known_arcs =
        before.as_ref().map_or_else(Vec::new, |before| rotation::not_after(&before.arcs, latest));
    let proved = match (task.depth, &before) {
        (Depth::Seals, Some(before)) => {
            Some(Proved { arcs: known_arcs.clone(), in_doubt: before.unproved.iter().copied().collect() })
        }
        _ => None,
    };
    let judge = Arc::new(Judge { repo: Some(task.repo.clone()), id: task.id, epochs, expected, proved });
    let epochs = looked.as_ref().map_or_else(Vec::new, |looked| looked.epochs());
    let mut turn = Turn::new(own, &epochs, &known_arcs, task.limit);
    let mut read = Read::default();
    if task.depth.reads() {
        progress
            .stage("reading objects", matches!(task.limit, Limit::Everything).then(|| listing::bytes(own)));
        let turn_of = Mutex::new(&mut turn);
        let next = || turn_of.lock().unwrap_or_else(PoisonError::into_inner).next_object();
        let store = &**task.repo.store();
        read.add(objects::read(store, &judge, std::iter::from_fn(next), progress).await?);
        let rest =
            again.named().filter(|key| !turn.has(key)).filter_map(|key| task.listed.find(key)).cloned();
        let rest: Vec<ObjectMeta> = rest.collect();
        read.add(objects::read(store, &judge, rest.into_iter(), progress).await?);
    }
    let mut damaged: BTreeMap<ObjectKey, Damaged> = std::mem::take(&mut read.damaged).into_iter().collect();
    let (mut proofs, mut decoded) = (None, Decoded::default());
    if let Some(looked) = &looked
        && let Some((_, expected)) = &judge.expected
    {
        read.gone.extend(looked.gone().cloned());
        let known = looked.known(task.listed, &read.gone);
        let suspect = |key: &ObjectKey| again.is_read(key, &turn);
        let wal = looked.wal(task.depth, &turn, &suspect, &known, &mut damaged, progress).await?;
        findings.extend(wal.findings);
        decoded = wal.decoded;
        findings.extend(numbers::chains(&looked.cluster, &looked.snapshot, task.listed).await?);
        findings.extend(numbers::pending(&looked.cluster, &looked.snapshot.root).await?);
        findings.extend(references::backups(&known, &expected.needs, &mut damaged).await?);
        findings.extend(looked.generations(&findings, &damaged));
        if !read.suspects.is_empty() {
            let judged = looked.bad_pages(&expected.needs, &read.suspects).await?;
            findings.extend(judged.findings);
            read.unjudged.extend(judged.undecided);
        }
        proofs = Some(looked.proofs(task.listed, &expected.needs, &decoded));
    }
    read.unread.append(&mut decoded.unread);
    // A generation's damage was told with the backups that it hurts.
    let told: HashSet<String> = findings.iter().map(|finding| finding.key.clone()).collect();
    findings.extend(damaged.into_iter().filter(|(key, _)| !told.contains(key.as_str())).map(
        |(key, damaged)| {
            // What is damaged and nothing refers to costs nothing, but somebody may want to know.
            let cost = cost::unreferenced(&key);
            Finding { key: key.to_string(), reason: damaged.reason, cost, backups: Vec::new() }
        },
    ));
    let unseen: BTreeSet<u64> =
        read.unread.iter().map(|unread| &unread.key).chain(&read.unjudged).map(place_of).collect();
    let mut healed = again.gone(&**task.repo.store(), task.listed).await?;
    // Objects that were read without the index were held against nothing, and no WAL was decoded.
    if let Some(looked) = looked.as_ref().filter(|_| task.depth.reads()) {
        let read_again = again.read(&turn, task.listed);
        let undecoded = looked.undecoded(&read_again, &decoded);
        healed
            .extend(read_again.difference(&undecoded).map(place_of).filter(|place| !unseen.contains(place)));
    }
    let (scope, arcs) = match looked.is_some() {
        true => read_of(task, &turn, started_at),
        false => (VerifyScope::Sample, Vec::new()),
    };
    let run = results::Run {
        cluster: task.name,
        root: looked.as_ref().map_or(0, |looked| looked.snapshot.root.number),
        started_at,
        finished_at: task.repo.env().clock.now(),
        depth: task.depth.into(),
        scope,
        objects: read.objects,
        bytes: read.bytes,
        arcs: &arcs,
        healed: &healed,
        unseen: &unseen,
        listed: own,
        findings: &findings,
        backups: proofs.as_deref(),
    };
    let stored = match keyless(&read.unread) {
        Some(reason) => Stored::No { reason },
        None => store(&handle, task.keep, &run).await,
    };
    let report = ClusterReport::new(results::next(before.as_ref(), &run), stored);
    Ok(Outcome { read, findings, report })
}

/// Why a result is not stored when some objects could not be opened: others, who can, found out more about them.
fn keyless(unread: &[Unread]) -> Option<String> {
    let mut sealed = unread.iter().filter(|unread| unread.fault == Fault::Key);
    let first = sealed.next()?;
    let (more, key) = (sealed.count(), &first.key);
    let others = if more > 0 { format!(", and {more} others like it") } else { String::new() };
    Some(format!("object {key}{others}: {}", first.reason))
}

/// What was read of the ring, and whether that is all.
fn read_of(task: &Task<'_>, turn: &Turn<'_>, at: Timestamp) -> (VerifyScope, Vec<VerifiedArc>) {
    match task.depth {
        Depth::References => (VerifyScope::Whole, Vec::new()),
        Depth::Seals | Depth::Content => {
            let scope = if turn.is_whole() { VerifyScope::Whole } else { VerifyScope::Sample };
            (scope, turn.arcs(task.seen_until.unwrap_or(i64::MIN), at))
        }
    }
}

/// Stores the result. Where that fails, the rest was worth it all the same.
async fn store(cluster: &Cluster, keep: Keep, run: &results::Run<'_>) -> Stored {
    if keep == Keep::Discard {
        return Stored::No { reason: "as was asked".into() };
    }
    match verifications::store(cluster, |before| results::next(before, run)).await {
        Ok(stored) => Stored::Yes { number: stored.number },
        Err(error) => Stored::No { reason: error.to_string() },
    }
}

impl From<Depth> for VerifyDepth {
    fn from(depth: Depth) -> VerifyDepth {
        match depth {
            Depth::References => VerifyDepth::References,
            // What was proved and is unchanged since is proved.
            Depth::Seals | Depth::Content => VerifyDepth::Content,
        }
    }
}
