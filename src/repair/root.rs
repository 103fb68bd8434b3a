//! `walden repair root`: makes a root out of the newest one that can be read, when those after it are damaged or gone. [`next`] decides,
//! and is pure. Spec: formats/root.md ("When the newest is lost").
//!
//! What lost roots named is found where they left traces: streams that hold WAL, fences that name their successors, index objects that
//! were made for them. Only what they add is taken, never what they removed: no root but theirs proves that.
//!
//! Invariant: no WAL that was acknowledged, and no backup that was committed, is out of the new root's reach. Nothing is removed or
//! overwritten, and collection leaves what no index names alone until the new root is older than the grace period.
//!
//! Refusals: no root from the floor on can be read; an object whose key epoch is not held (it would be taken for damage); a root that is
//! whole, and of a newer walden or sealed with another secret.

mod find;
mod lost_index;
pub mod next;
mod streams;
mod work;

use crate::base::ObjectId;
use crate::format::root::{Root, StreamEntry};
use crate::repo::cluster::RootChange;
use crate::repo::index::{IndexEdit, empty_page};
use crate::repo::roots;
use crate::repo::{Cluster, RepoError, layout};
use lost_index::BrokenIndex;
use next::{Additions, Traces};
use std::time::Duration;
use streams::Streams;
use work::Work;

pub use find::Unreadable;
pub use streams::UnreadStream;

/// Times that all is looked at again because somebody committed a root meanwhile.
const TRIES_MAX: u32 = 5;
/// Times that a root is read once more before it is given up, and the wait after each.
const READS: u32 = 3;
const READ_WAIT: Duration = Duration::from_millis(200);

/// A root that is not committed yet.
#[derive(Debug)]
pub struct Plan {
    /// Roots that are there and cannot be read, newest first.
    pub unreadable: Vec<Unreadable>,
    /// Roots that are gone, between others that are there.
    pub holes: Vec<u64>,
    /// The newest root that can be read.
    pub base: Root,
    /// The number of the new root.
    pub number: u64,
    /// Streams that lost roots named, oldest first.
    pub streams: Vec<StreamEntry>,
    /// Streams that lost roots may have named, and of which nothing opens: the new root cannot name them.
    pub streams_unread: Vec<UnreadStream>,
    /// What the index objects that were made for lost roots add to the index of `base`.
    pub additions: Additions,
    /// An index object that does not open, and which the new root leads to, so that nothing it may name is passed over: then nothing is
    /// added, and `walden repair index` makes the index anew.
    pub broken_index: Option<BrokenIndex>,
    /// Registered work, that which goes on and that which has to begin anew.
    pub work: Work,
    next: Root,
}

impl Plan {
    /// Whether all roots are there, and name every stream that has WAL: then nothing needs to be made anew.
    pub fn is_whole(&self) -> bool {
        self.unreadable.is_empty() && self.holes.is_empty() && self.streams.is_empty()
    }

    /// What the new root cannot know.
    pub fn notes(&self) -> Vec<String> {
        next::notes(&self.base, self.number, &self.additions)
    }
}

/// Looks for the newest root that can be read, and for what those after it left. Changes nothing.
///
/// # Errors
/// [`RepoError::Conflict`] when no root can be read. [`RepoError::NoKey`] for an object of a key epoch that is not held, and
/// [`RepoError::Configuration`] for a root of a newer walden. A store that fails.
pub async fn plan(cluster: &Cluster) -> Result<Plan, RepoError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let plan = try_plan(cluster).await;
        let newest = roots::newest_root_number(cluster.repo(), cluster.name(), roots::NONE, roots::NONE);
        match plan {
            // What runs moved what was looked at.
            Ok(plan) if newest.await?.1 >= plan.number && tries < TRIES_MAX => {}
            plan => return plan,
        }
    }
}

async fn try_plan(cluster: &Cluster) -> Result<Plan, RepoError> {
    // Streams first: a root that can be read now names all that had WAL before it was read, unless a root after it is lost.
    let listed = streams::list(cluster).await?;
    let roots = find::find(cluster).await?;
    let (base, number) = (roots.base, roots.highest + 1);
    let Streams { found: streams, unread: streams_unread, held, epoch_max } =
        streams::follow(cluster, &base, &listed).await?;
    let work = work::look(cluster, &base).await?;
    let (mut broken_index, mut additions) = match lost_index::read(cluster, &base).await? {
        lost_index::LostIndex::Broken(broken) => (Some(broken), Additions::default()),
        lost_index::LostIndex::Read { index, lost } => (None, next::additions(&base, &index, held, lost)),
    };
    let traces =
        Traces { streams: &streams, epoch_max, generation: additions.generation(), going_on: &work.going_on };
    let next = next::root(&base, number, &traces);
    if next.deleted_at.is_some() {
        (broken_index, additions) = (None, Additions::default());
    }
    let (unreadable, holes) = (roots.unreadable, roots.holes);
    Ok(Plan { unreadable, holes, base, number, streams, streams_unread, additions, broken_index, work, next })
}

/// Commits a plan: an index object if there is anything to add, then the root, under the numbers of roots that are gone first. Returns it.
/// Durable on return. If dropped: committed whole, or not; run again, it finishes.
///
/// # Errors
/// [`RepoError::Conflict`] when somebody else committed meanwhile, or the root that was damaged can be read again, or is gone: nothing was
/// committed then. Also when collection went on meanwhile from a newer root than the one that it is made of, and the new root is there.
pub async fn commit(cluster: &Cluster, plan: &Plan) -> Result<Root, RepoError> {
    refuse_if_read_again(cluster, &plan.unreadable).await?;
    // From above: whoever looks for the newest root does not come past the lowest hole before all others are filled. With the new root
    // itself: of one that is stopped on the way, the root that fills a hole is the newest that the next one can read, and what was found
    // of the root that is gone is not looked for any more.
    let numbers: Vec<u64> = plan.holes.iter().rev().copied().chain([plan.number]).collect();
    let mut next = plan.next.clone();
    let mut index = IndexEdit::Keep;
    if let Some(BrokenIndex { id, .. }) = &plan.broken_index {
        next.index = Some(*id);
    } else if plan.additions.page != empty_page() {
        index = IndexEdit::Add(plan.additions.page.clone());
    }
    let root = cluster.commit_over(&plan.base, &numbers, RootChange { root: next, index }).await?;
    name_late_streams(cluster, &plan.base, root).await
}

/// Reads what cannot be read once more, several times: a store may have failed for a moment.
async fn refuse_if_read_again(cluster: &Cluster, unreadable: &[Unreadable]) -> Result<(), RepoError> {
    for _ in 0..READS {
        for lost in unreadable {
            let now = match roots::read_root(cluster.repo(), cluster.name(), lost.number).await {
                Ok(Some(_)) => "can be read by now",
                Ok(None) => "was removed meanwhile",
                Err(error) if error.is_damage() => continue,
                Err(error) => return Err(error),
            };
            return Err(RepoError::Conflict { reason: format!("root {} {now}: look again", lost.number) });
        }
        if !unreadable.is_empty() {
            tokio::time::sleep(READ_WAIT).await;
        }
    }
    Ok(())
}

/// A writer whose stream a lost root named may have stored its first object since the streams were listed. Once this root is there, none
/// does any more that counts: a writer looks whether the newest root names its stream after it stored that object (formats/wal.md).
async fn name_late_streams(cluster: &Cluster, base: &Root, root: Root) -> Result<Root, RepoError> {
    let listed = streams::list(cluster).await?;
    let judged = Root { writer_epoch: base.writer_epoch, ..root.clone() };
    let late = streams::follow(cluster, &judged, &listed).await?.found;
    if late.is_empty() {
        return Ok(root);
    }
    cluster
        .commit(|root| {
            let known = |stream: &&StreamEntry| root.streams.iter().all(|known| known.id != stream.id);
            let late: Vec<StreamEntry> = late.iter().filter(known).cloned().collect();
            Ok((!late.is_empty()).then(|| RootChange::of(next::with_streams(root, &late))))
        })
        .await
}

/// The key of an index object, for messages.
fn index_key(cluster: &Cluster, id: ObjectId) -> String {
    layout::index(cluster.name(), id).to_string()
}
