//! Carries out what retention decides: one root in which everything that goes leaves the index at once. What left is removed by
//! collection, a grace period later. The decision is made of the newest root inside the commit: whoever commits first makes it anew.

use super::plan::{Facts, Plan, plan};
use super::policy::Policy;
use crate::base::{BackupId, Generation, ObjectId, Timestamp};
use crate::format::header::ObjectKind;
use crate::format::index::{BackupState, RemovedEntry, RemovedKind};
use crate::format::root::{GenerationRecord, Pending, PendingKind, Root};
use crate::repo::backups::removal;
use crate::repo::chain::{self, Chain, Losses};
use crate::repo::cluster::object_is_gone;
use crate::repo::index::IndexEdit;
use crate::repo::{Cluster, Index, RepoError, RootChange, layout};
use std::collections::{BTreeSet, HashSet};

/// Times that what was read beside the root may turn out to be too old.
const TRIES_MAX: u32 = 20;

/// What is read before a decision, beside root and index.
#[derive(Debug)]
pub(super) struct Known {
    root: Root,
    /// When the store took it.
    stored: Timestamp,
    index: Index,
    chains: Vec<Chain>,
    generations: Vec<GenerationRecord>,
    /// Registered restores, and the backups that they read.
    restores: HashSet<ObjectId>,
    reading: Vec<BackupId>,
}

/// Why a decision was not carried out.
pub(super) enum Undecided {
    /// A restore registered since: what it reads is not known yet.
    Moved,
    /// The repository failed.
    Repo(RepoError),
}

impl From<RepoError> for Undecided {
    fn from(error: RepoError) -> Undecided {
        Undecided::Repo(error)
    }
}

impl Known {
    /// Reads it. Chains and index of one root, as far as nobody moves them.
    pub(super) async fn read(cluster: &Cluster) -> Result<Known, RepoError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let root = cluster.newest_root().await?;
            match Known::of(cluster, root).await {
                Err(error) if object_is_gone(&error) && tries < TRIES_MAX => {}
                known => return known,
            }
        }
    }

    async fn of(cluster: &Cluster, root: Root) -> Result<Known, RepoError> {
        let stored = cluster.repo().store().head(&layout::root(cluster.name(), root.number)).await?;
        let stored = Timestamp::from_unix_micros(stored.modified_unix_micros);
        let index = cluster.index(&root).await?;
        let mut chains = Vec::new();
        for stream in &root.streams {
            chains.push(chain::read(cluster, stream, Losses::PassedBy).await?);
        }
        let mut numbers: BTreeSet<Generation> = BTreeSet::from([root.generation]);
        numbers.extend(index.wal.iter().map(|entry| entry.generation));
        numbers.extend(index.backups.iter().map(|backup| backup.generation));
        numbers.extend(root.streams.iter().map(|stream| stream.generation));
        let mut generations = Vec::new();
        for number in numbers {
            match cluster.read_generation(number).await {
                Ok(record) => generations.push(record),
                // Without it nothing of the generation goes.
                Err(error) if error.is_damage() => {
                    tracing::error!(%error, "nothing of generation {number} expires")
                }
                Err(error) => return Err(error),
            }
        }
        let (mut restores, mut reading) = (HashSet::new(), Vec::new());
        for entry in root.pending.iter().filter(|entry| entry.kind == PendingKind::Restore) {
            restores.insert(entry.id);
            let key = layout::pending(cluster.name(), entry.id);
            let object = match cluster.repo().read_object(&key, ObjectKind::Pending).await {
                Ok(object) => object,
                // It ended, or was renewed: the newest root says so.
                Err(error) if object_is_gone(&error) => continue,
                Err(error) => return Err(error),
            };
            let work: Pending = object.meta().map_err(|error| RepoError::open(&key, error))?;
            reading.extend(work.backup);
        }
        Ok(Known { root, stored, index, chains, generations, restores, reading })
    }

    /// What to decide upon, with `root` and `index` in the place of those that were read.
    pub(super) fn facts<'a>(
        &'a self,
        cluster: &Cluster,
        root: &'a Root,
        index: &'a Index,
    ) -> Result<Facts<'a>, Undecided> {
        let restores = root.pending.iter().filter(|entry| entry.kind == PendingKind::Restore);
        if restores.into_iter().any(|entry| !self.restores.contains(&entry.id)) {
            return Err(Undecided::Moved);
        }
        Ok(Facts {
            root,
            index,
            chains: &self.chains,
            generations: &self.generations,
            reading: &self.reading,
            clock: cluster.repo().env().clock.now(),
            stored: self.stored,
        })
    }
}

/// What `policy` keeps and lets go now. Changes nothing.
pub async fn decide(cluster: &Cluster, policy: &Policy) -> Result<Plan, RepoError> {
    let known = Known::read(cluster).await?;
    match known.facts(cluster, &known.root, &known.index) {
        Ok(facts) => Ok(plan(&facts, policy)),
        Err(Undecided::Repo(error)) => Err(error),
        Err(Undecided::Moved) => unreachable!("the restores are those of the root itself"),
    }
}

/// Lets go what `policy` does not keep, in one root; none when that is nothing. Durable on `Ok`. If dropped: all of it or nothing.
pub async fn expire(cluster: &Cluster, policy: &Policy) -> Result<Plan, RepoError> {
    commit(cluster, |facts| Ok(plan(facts, policy))).await
}

/// Commits what `decide` lets go, of the newest root.
pub(super) async fn commit<E: From<RepoError>>(
    cluster: &Cluster,
    decide: impl Fn(&Facts<'_>) -> Result<Plan, E>,
) -> Result<Plan, E> {
    for _ in 0..TRIES_MAX {
        let known = Known::read(cluster).await?;
        let mut decided = None;
        let edit = |root: &Root, index: &Index| {
            let facts = known.facts(cluster, root, index)?;
            let plan = match decide(&facts) {
                Ok(plan) => plan,
                Err(error) => {
                    decided = Some(Err(error));
                    return Ok(None);
                }
            };
            let change = (!plan.is_empty()).then(|| change(root, index, &plan));
            decided = Some(Ok(plan));
            Ok(change)
        };
        match cluster.commit_indexed::<Undecided>(edit).await {
            Ok(_) => {}
            Err(Undecided::Moved) => continue,
            Err(Undecided::Repo(error)) => return Err(error.into()),
        }
        match decided {
            Some(decided) => return decided,
            None => unreachable!("a commit decides"),
        }
    }
    let reason = format!("cluster {}: restores began {TRIES_MAX} times meanwhile", cluster.name());
    Err(RepoError::Conflict { reason }.into())
}

/// The index without what goes.
fn change(root: &Root, index: &Index, plan: &Plan) -> RootChange {
    let mut next = index.clone();
    let number = root.number + 1;
    let wal: HashSet<ObjectId> = plan.wal_removed.iter().copied().collect();
    let backups: BTreeSet<&BackupId> = plan.backups_removed().map(|backup| &backup.id).collect();
    next.wal.retain(|entry| !wal.contains(&entry.id));
    next.backups.retain(|backup| !backups.contains(&backup.id));
    next.pins.retain(|pin| !backups.contains(&pin.backup));
    let bases: BTreeSet<&BackupId> = plan.bases().collect();
    for backup in next.backups.iter_mut().filter(|backup| bases.contains(&backup.id)) {
        backup.state = BackupState::Base;
    }
    let removed = |kind, name: String| RemovedEntry { kind, name, root: number };
    next.removed.extend(plan.wal_removed.iter().map(|id| removed(RemovedKind::Wal, id.to_string())));
    for backup in index.backups.iter().filter(|backup| backups.contains(&backup.id)) {
        next.removed.extend(removal(backup, number));
        next.removed.push(removed(RemovedKind::Chunks, backup.id.to_string()));
    }
    next.expired = plan.expired.clone();
    RootChange { root: root.clone(), index: IndexEdit::Rewrite(next.into_page()) }
}
