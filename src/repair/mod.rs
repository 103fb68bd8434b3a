//! `walden repair index`: makes a new index out of what lies in a repository, and commits it. [`rebuild`] puts it together, [`cover`]
//! chooses among segments of WAL; both are pure. Nothing is removed and nothing overwritten: a new index object, and a new root that
//! leads to it. That root says that the index was made anew, and collection leaves what the index does not name alone until that root is
//! older than the grace period.
//!
//! Refusals: an object whose key epoch is not held (it would be taken for nothing); work that is registered and may have stored what
//! lies there; an object that does not open, and that no readable index names, unless the operator says that it may be left out.

mod adopt;
pub mod cover;
mod inventory;
mod known;
pub mod rebuild;
pub mod root;

use crate::base::{BackupId, ObjectId, ObjectKey, Progress};
use crate::format::root::{PendingKind, Root};
use crate::repo::cluster::RootChange;
use crate::repo::index::IndexEdit;
use crate::repo::{Cluster, Index, RepoError};
use rebuild::Rebuilt;
use std::collections::BTreeSet;

/// Times that the index is read again when a newer root took the place of the one at hand.
const TRIES_MAX: u32 = 20;

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Objects that do not open and may be left out, by the last part of their names.
    pub without: BTreeSet<String>,
}

/// Whether an index needs to be made anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It can be read.
    Whole,
    /// It cannot.
    Broken {
        /// Why.
        reason: String,
    },
}

/// What becomes of an object that does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// A root, an index object or a flush object: it only would have said more.
    Unasked,
    /// A readable index object names it, and the new index does as well.
    Named,
    /// Nothing readable names it: whoever commits has to say that it may be left out.
    Undecided,
    /// It is left out, as the operator said.
    LeftOut,
}

/// An object that does not open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// Which.
    pub key: ObjectKey,
    /// Why.
    pub reason: String,
    /// What becomes of it.
    pub fate: Fate,
}

impl Unreadable {
    fn lead(key: ObjectKey, error: &RepoError) -> Unreadable {
        Unreadable { key, reason: error.to_string(), fate: Fate::Unasked }
    }

    fn content(key: ObjectKey, error: &RepoError, is_known: bool, left_out: bool) -> Unreadable {
        let fate = match (left_out, is_known) {
            (true, _) => Fate::LeftOut,
            (false, true) => Fate::Named,
            (false, false) => Fate::Undecided,
        };
        Unreadable { key, reason: error.to_string(), fate }
    }
}

/// A rebuilt index that is not committed yet.
#[derive(Debug)]
pub struct Plan {
    /// What is wrong with the one that is there.
    pub health: Health,
    /// The root that it was made for.
    pub root: Root,
    /// The index.
    pub rebuilt: Rebuilt,
    /// What does not open.
    pub unreadable: Vec<Unreadable>,
    /// Index objects that can be read, and what they say is known exactly.
    pub index_objects: usize,
}

impl Plan {
    /// Backups that it has.
    pub fn backups(&self) -> Vec<BackupId> {
        self.rebuilt.page.backups.iter().map(|backup| backup.id.clone()).collect()
    }

    /// Why it cannot be committed as it is.
    pub fn refusal(&self) -> Option<String> {
        match self.health {
            Health::Whole => None,
            Health::Broken { .. } => hinders(&self.root).or_else(|| self.undecided()),
        }
    }

    /// What was lost, as far as that is known: what is gone or left out, backups that lack chunks, WAL that nothing holds.
    pub fn losses(&self) -> Vec<String> {
        let gone = self.rebuilt.gone.iter();
        let gone = gone
            .map(|name| format!("{name}: an index object names it, and it was collected since, or is lost"));
        let left_out = self.unreadable.iter().filter(|unreadable| unreadable.fate == Fate::LeftOut);
        let left_out =
            left_out.map(|unreadable| format!("{}: left out, as was asked", unreadable.key.file_name()));
        gone.chain(left_out).chain(self.rebuilt.losses.iter().cloned()).collect()
    }

    fn undecided(&self) -> Option<String> {
        let undecided = self.unreadable.iter().filter(|unreadable| unreadable.fate == Fate::Undecided);
        let found: Vec<&Unreadable> = undecided.collect();
        let first = found.first()?;
        let options: Vec<String> =
            found.iter().map(|unreadable| format!("--without {}", unreadable.key.file_name())).collect();
        Some(format!(
            "{} objects do not open, and no index that can be read names them; the first: {}: {}. What they hold would be left out: put \
             whole copies in their places, or say that they may be: {}",
            found.len(),
            first.key,
            first.reason,
            options.join(" ")
        ))
    }
}

/// Reads everything that an index can be made of. Changes nothing.
///
/// # Errors
/// A newest root that is damaged: an index hangs on it ([`root`] makes one anew). [`RepoError::NoKey`] for an object of a key epoch that is not held.
/// [`RepoError::Conflict`] when something is to be left out that can be read, or is not there. A store that fails.
pub async fn plan(cluster: &Cluster, options: &Options, progress: &dyn Progress) -> Result<Plan, RepoError> {
    let (root, index) = newest(cluster).await?;
    let reason = match index {
        Ok(index) => {
            check_left_out(options, &[])?;
            let (index_objects, health) = (index.objects.len(), Health::Whole);
            let rebuilt = rebuild::as_it_is(index);
            return Ok(Plan { health, root, rebuilt, unreadable: Vec::new(), index_objects });
        }
        Err(error) if error.is_damage() => error.to_string(),
        Err(error) => return Err(error),
    };
    let known = known::read(cluster, &root).await?;
    let (index_objects, whole_up_to, pins) = (known.objects, known.whole_up_to, known.index.pins.len());
    let (inventory, unreadable) = inventory::take(cluster, &root, known, options, progress).await?;
    check_left_out(options, &unreadable)?;
    let env = cluster.repo().env();
    let mut rebuilt = rebuild::rebuild(&root, inventory, env.clock.now(), || ObjectId::random(&*env.entropy));
    rebuilt.gone.retain(|name| !options.without.contains(name));
    adopt::check(cluster, &mut rebuilt).await?;
    rebuilt.notes.extend(what_is_not_known(&root, whole_up_to, pins));
    Ok(Plan { health: Health::Broken { reason }, root, rebuilt, unreadable, index_objects })
}

/// Commits a plan: an index object, then a root. Returns that root. Durable on return. If dropped: committed whole, or not.
///
/// # Errors
/// [`RepoError::Conflict`] when the plan has a [`Plan::refusal`], when work was registered since, or the cluster's index or streams
/// changed.
pub async fn commit(cluster: &Cluster, plan: &Plan) -> Result<Root, RepoError> {
    if let Some(reason) = plan.refusal() {
        return Err(RepoError::Conflict { reason });
    }
    let compacted =
        |root: &Root| -> Vec<_> { root.streams.iter().map(|stream| (stream.id, stream.low_water)).collect() };
    cluster
        .commit(|root| {
            if root.index != plan.root.index || compacted(root) != compacted(&plan.root) {
                let reason = format!(
                    "root {} changed what the plan was made for (root {}): plan again",
                    root.number, plan.root.number
                );
                return Err(RepoError::Conflict { reason });
            }
            let (mut next, mut page) = (root.clone(), plan.rebuilt.page.clone());
            if plan.health != Health::Whole {
                if let Some(reason) = hinders(root) {
                    return Err(RepoError::Conflict { reason });
                }
                let number = root.number + 1;
                next.set_rebuilt_at(number);
                // An old removal may be one that nobody committed: what it takes away has the whole grace period from now on.
                page.removed.iter_mut().for_each(|removed| removed.root = number);
            }
            Ok(Some(RootChange { root: next, index: IndexEdit::Rewrite(page) }))
        })
        .await
}

/// The newest root, and its index or what is wrong with that.
async fn newest(cluster: &Cluster) -> Result<(Root, Result<Index, RepoError>), RepoError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let root = cluster.newest_root().await?;
        let index = cluster.index(&root).await;
        // It may have been merged away, and collected, while it was read; and a bad read may be a good one the next time.
        let again = index.is_err() && (tries < 3 || cluster.newest_root().await?.number != root.number);
        if !again || tries >= TRIES_MAX {
            return Ok((root, index));
        }
    }
}

/// Registered work that may have stored what lies there, and has not committed it.
fn hinders(root: &Root) -> Option<String> {
    let stores = |kind: PendingKind| match kind {
        PendingKind::Backup | PendingKind::Compaction | PendingKind::Collection => true,
        PendingKind::Restore => false,
    };
    let work = root.pending.iter().find(|entry| stores(entry.kind))?;
    Some(format!(
        "root {} has work registered ({:?} {}) that may have stored what lies there: let it end, or stop it; a registration that was not \
         renewed for an hour `walden gc` takes away, before it fails for want of an index",
        root.number, work.kind, work.id
    ))
}

/// Only what does not open may be left out.
fn check_left_out(options: &Options, unreadable: &[Unreadable]) -> Result<(), RepoError> {
    let content = unreadable.iter().filter(|unreadable| unreadable.fate != Fate::Unasked);
    let found: BTreeSet<&str> = content.map(|unreadable| unreadable.key.file_name()).collect();
    match options.without.iter().find(|name| !found.contains(name.as_str())) {
        Some(name) => {
            let reason =
                format!("{name} is not to be left out: it is no segment or manifest that does not open");
            Err(RepoError::Conflict { reason })
        }
        None => Ok(()),
    }
}

/// What an index that is made anew cannot know.
fn what_is_not_known(root: &Root, whole_up_to: Option<u64>, pins: usize) -> Vec<String> {
    let (since, pinned) = match whole_up_to {
        Some(number) => (format!("after root {number}"), format!("pins set after root {number} are gone")),
        None if pins == 0 => {
            ("by a root whose index cannot be read".to_owned(), "no backup is pinned".to_owned())
        }
        None => {
            let since = "by a root whose index cannot be read".to_owned();
            (since, "pins are those that some index object still had".to_owned())
        }
    };
    vec![
        format!(
            "what had been removed {since} (up to root {}) and was not collected yet is back: remove again what should be gone",
            root.number
        ),
        format!(
            "{pinned}, and backups unpinned since may be pinned again: look at `walden info`, and pin before the next `walden expire` \
             what has to stay"
        ),
    ]
}
