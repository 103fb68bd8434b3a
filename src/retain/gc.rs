//! Garbage collection: removes what no root refers to any more, a grace period after the root that let it go.
//! Order: out of the root, grace, the floor, then the objects. Ages are the store's Last-Modified, never a host's clock.
//! Fences and floors are never removed. Spec: formats/layout.md.

use super::leftovers;
use super::rebuilt;
use super::sweep::{self, Swept};
use crate::base::planted::{Bug, planted};
use crate::base::{ObjectId, ObjectKey, limits};
use crate::format::header::ObjectKind;
use crate::format::index::{RemovedEntry, RemovedKind};
use crate::format::record::Record;
use crate::format::root::{Floor, RetiredFlush, Root};
use crate::repo::cluster::RootChange;
use crate::repo::index::{Index, IndexEdit};
use crate::repo::roots::{self, NONE};
use crate::repo::{Cluster, Created, RepoError, layout};
use crate::store::{ObjectMeta, Store, StoreError};
use bytes::Bytes;
use futures_util::StreamExt;
use std::collections::HashSet;
use std::time::Duration;

/// Deletes in flight.
const DELETES_IN_FLIGHT: usize = 16;
/// Objects that could not be removed and are named.
const UNDELETED_LISTED_MAX: usize = 100;

/// What a collection removed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Collected {
    /// Flush objects replaced by segments.
    pub flushes: u64,
    /// Segments and manifests that an index let go.
    pub removed: u64,
    /// Index objects that were merged away.
    pub indexes: u64,
    /// Roots below the floor.
    pub roots: u64,
    /// Leftovers of work that never committed, and of streams and generations that no root leads to.
    pub orphans: u64,
    /// Pending work that expired.
    pub expired: u64,
    /// What became of segments of chunks after backups went.
    pub swept: Swept,
    /// What could not be removed, and is tried again next time.
    pub undeleted: Undeleted,
}

/// Objects that the store would not remove: held by an object lock, or by rights that we do not have. The others are removed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Undeleted {
    /// How many.
    pub count: u64,
    /// The first of them, each with what the store said.
    pub first: Vec<(ObjectKey, String)>,
}

impl Undeleted {
    fn add(&mut self, key: ObjectKey, error: &StoreError) {
        self.count += 1;
        if self.first.len() < UNDELETED_LISTED_MAX {
            self.first.push((key, error.to_string()));
        }
    }
}

/// How often a collection is begun: others may have removed what one that stalled was about to read. What is lost for good is an error
/// in the end. [`Collected`] tells of the last try alone.
const TRIES_MAX: usize = 3;

/// A collection under way.
pub(super) struct Collection<'a> {
    cluster: &'a Cluster,
    pub(super) undeleted: Undeleted,
}

/// Removes what has been unreferenced for `grace`. Safe beside everything else; a second run does what the first did not.
/// Work in progress and what it may have stored stays for [`limits::WORK_GRACE_MIN`] at least, whatever grace is asked for.
pub async fn collect(cluster: &Cluster, grace: Duration) -> Result<Collected, RepoError> {
    collect_with(cluster, grace, limits::WORK_GRACE_MIN).await
}

/// [`collect`] with another least time for work.
pub async fn collect_with(
    cluster: &Cluster,
    grace: Duration,
    work_grace_min: Duration,
) -> Result<Collected, RepoError> {
    for _ in 1..TRIES_MAX {
        let root = cluster.newest_root().await?;
        let done = collect_once(cluster, grace, work_grace_min).await;
        if let Some(done) = cluster.unless_moved(&root, done).await? {
            return Ok(done);
        }
    }
    collect_once(cluster, grace, work_grace_min).await
}

async fn collect_once(
    cluster: &Cluster,
    grace: Duration,
    work_grace_min: Duration,
) -> Result<Collected, RepoError> {
    let mut done = Collected::default();
    if cluster.newest_root().await?.deleted_at.is_some() {
        let purged = super::cluster::purge(cluster).await?;
        (done.orphans, done.undeleted) = (purged.objects, purged.undeleted);
        return Ok(done);
    }
    let now = store_now(&**cluster.repo().store(), cluster).await?;
    let before = |age: Duration| now.saturating_sub(i64::try_from(age.as_micros()).unwrap_or(i64::MAX));
    let (cutoff, work_cutoff) = (before(grace), before(grace.max(work_grace_min)));
    done.expired = expire_pending(cluster, work_cutoff).await?;
    let root = cluster.newest_root().await?;
    // Whatever the first root of work in progress refers to, it may read.
    let first_needed = root.pending.iter().map(|entry| entry.root).min().unwrap_or(u64::MAX);
    let keep_from = oldest_root_kept(cluster, &root, cutoff).await?.min(first_needed);
    let keep_from = with_another(cluster, &root, keep_from).await?;
    let floor_root = raise_floor(cluster, &root, keep_from).await?;
    // Boxed: it is large, and seldom has anything to do.
    done.swept = Box::pin(sweep::sweep(cluster, limits::PAGES_LIVE_PERCENT_MIN)).await?;
    let mut collection = Collection::new(cluster);
    done.roots = collection.roots(floor_root).await?;
    // What a root at or below the floor's let go, no root that can still be read refers to.
    done.flushes = collection.retired(floor_root).await?;
    done.removed = collection.removed(floor_root).await?;
    done.indexes = collection.indexes(floor_root).await?;
    done.orphans = collection.orphans(work_cutoff, now.saturating_sub(work_cutoff)).await?;
    done.orphans += collection.remove(leftovers::find(cluster, work_cutoff).await?).await?;
    done.undeleted = collection.undeleted;
    Ok(done)
}

/// The store's clock: the Last-Modified of an object made now.
pub(super) async fn store_now(store: &dyn Store, cluster: &Cluster) -> Result<i64, RepoError> {
    if planted(Bug::GraceByHostClock) {
        return Ok(cluster.repo().env().clock.now().unix_micros());
    }
    let id = ObjectId::random(&*cluster.repo().env().entropy);
    let key = layout::probe(&id.to_string());
    cluster.repo().create_own(&key, &Bytes::from_static(b"walden clock")).await?;
    let meta = store.head(&key).await;
    store.delete(&key).await?;
    Ok(meta?.modified_unix_micros)
}

/// Takes pending work out of the root whose object is older than the cutoff, or gone: it cannot commit any more.
async fn expire_pending(cluster: &Cluster, cutoff: i64) -> Result<u64, RepoError> {
    let root = cluster.newest_root().await?;
    let mut expired = HashSet::new();
    for entry in &root.pending {
        let key = layout::pending(cluster.name(), entry.id);
        match cluster.repo().store().head(&key).await {
            Ok(meta) if meta.modified_unix_micros > cutoff => {}
            Ok(_) | Err(StoreError::NotFound { .. }) => {
                expired.insert(entry.id);
            }
            Err(error) => return Err(error.into()),
        }
    }
    if expired.is_empty() {
        return Ok(0);
    }
    cluster
        .commit::<RepoError>(|root| {
            let mut next = root.clone();
            next.pending.retain(|entry| !expired.contains(&entry.id));
            Ok((next.pending.len() < root.pending.len()).then(|| RootChange::of(next)))
        })
        .await?;
    for id in &expired {
        cluster.repo().store().delete(&layout::pending(cluster.name(), *id)).await?;
    }
    Ok(expired.len() as u64)
}

/// The least root that stays: the newest one made before the cutoff, since it was current at the cutoff.
async fn oldest_root_kept(cluster: &Cluster, newest: &Root, cutoff: i64) -> Result<u64, RepoError> {
    let floor = roots::newest_floor(cluster.repo(), cluster.name(), newest.floor).await?;
    let (mut low, mut high) = (floor.map_or(NONE + 1, |floor| floor.root), newest.number + 1);
    // Last-Modified ascends with the number: each root is created after the one before it. For a process that stalled, the floor may be
    // above what is the newest to it: there is nothing to let go then.
    while high.saturating_sub(low) > 1 {
        let middle = low + (high - low) / 2;
        match cluster.repo().store().head(&layout::root(cluster.name(), middle)).await {
            Ok(meta) if meta.modified_unix_micros <= cutoff => low = middle,
            Ok(_) => high = middle,
            // Another collection raised the floor meanwhile.
            Err(StoreError::NotFound { .. }) => low = middle,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(low)
}

/// The newest root is never the only one that can be read: should it be damaged, another is made out of the one before (formats/root.md).
/// What waits for the newest one itself is let go under the next.
async fn with_another(cluster: &Cluster, newest: &Root, keep_from: u64) -> Result<u64, RepoError> {
    if has_another(cluster, newest).await? {
        if keep_from < newest.number {
            return Ok(keep_from);
        }
        let index = cluster.index(newest).await?;
        let mut waits =
            newest.retired.iter().map(|run| run.root).chain(index.removed.iter().map(|gone| gone.root));
        if !waits.any(|root| root == newest.number) {
            return Ok(newest.number - 1);
        }
    }
    cluster.commit::<RepoError>(|root| Ok(Some(RootChange::of(root.clone())))).await?;
    Ok(keep_from)
}

/// Whether the root before `newest` can be read, and the floor does not let it go.
async fn has_another(cluster: &Cluster, newest: &Root) -> Result<bool, RepoError> {
    let (repo, name, before) = (cluster.repo(), cluster.name(), newest.number - 1);
    let floor = roots::newest_floor(repo, name, newest.floor).await?;
    if before < floor.map_or(NONE + 1, |floor| floor.root) {
        return Ok(false);
    }
    match roots::read_root(repo, name, before).await {
        Ok(root) => Ok(root.is_some()),
        Err(error) if error.is_transient() => Err(error),
        Err(_) => Ok(false),
    }
}

/// Creates the next floor when `keep_from` is above the newest; returns the newest floor's root.
pub(super) async fn raise_floor(cluster: &Cluster, root: &Root, keep_from: u64) -> Result<u64, RepoError> {
    loop {
        let floor = roots::newest_floor(cluster.repo(), cluster.name(), root.floor).await?;
        let (number, floor_root) = floor.map_or((NONE, NONE + 1), |floor| (floor.number, floor.root));
        if floor_root >= keep_from {
            return Ok(floor_root);
        }
        let next = Floor { cluster: cluster.name().clone(), number: number + 1, root: keep_from };
        let key = layout::floor(cluster.name(), next.number);
        let writer = cluster.repo().writer(ObjectKind::Floor, &key, [0; 16], next.number, 0);
        match cluster.repo().create(&key, &writer.finish(next.encode()).bytes).await? {
            Created::Ours => return Ok(next.root),
            Created::Taken(_) => {}
        }
    }
}

impl<'a> Collection<'a> {
    pub(super) fn new(cluster: &'a Cluster) -> Collection<'a> {
        Collection { cluster, undeleted: Undeleted::default() }
    }

    /// Removes `keys`; says how many.
    pub(super) async fn remove(&mut self, keys: Vec<ObjectKey>) -> Result<u64, RepoError> {
        Ok(self.delete(keys).await?.done)
    }

    async fn roots(&mut self, floor_root: u64) -> Result<u64, RepoError> {
        let cluster = self.cluster;
        let listed = cluster.repo().store().list(&layout::roots_prefix(cluster.name())).await?;
        let below =
            |meta: &ObjectMeta| meta.key.file_name().parse::<u64>().is_ok_and(|number| number < floor_root);
        let keys = listed.into_iter().filter(below).map(|meta| meta.key).collect();
        Ok(self.delete(keys).await?.done)
    }

    /// Removes flush objects, then their entries: a crash between leaves entries of what is gone, which is no harm.
    async fn retired(&mut self, floor_root: u64) -> Result<u64, RepoError> {
        let cluster = self.cluster;
        let root = cluster.newest_root().await?;
        let mut due: Vec<RetiredFlush> =
            root.retired.iter().filter(|run| run.root <= floor_root).cloned().collect();
        if planted(Bug::ForgottenBeforeRemoved) {
            self.forget(&due).await?;
        }
        let mut deleted = 0;
        let mut held = Vec::new();
        for run in &due {
            let keys = leftovers::without_fences(cluster, run).await?;
            let outcome = self.delete(keys).await?;
            deleted += outcome.done;
            if !outcome.failed.is_empty() {
                held.push(run.clone());
            }
        }
        due.retain(|run| !held.contains(run));
        self.forget(&due).await?;
        Ok(deleted)
    }

    async fn forget(&self, done: &[RetiredFlush]) -> Result<(), RepoError> {
        if done.is_empty() {
            return Ok(());
        }
        let edit = |root: &Root| {
            let mut next = root.clone();
            next.retired.retain(|run| !done.contains(run));
            Ok((next.retired.len() < root.retired.len()).then(|| RootChange::of(next)))
        };
        self.cluster.commit::<RepoError>(edit).await.map(drop)
    }

    /// Removes what the index let go, then its entries. What the store would not remove keeps its entry.
    async fn removed(&mut self, floor_root: u64) -> Result<u64, RepoError> {
        let cluster = self.cluster;
        let root = cluster.newest_root().await?;
        let index = cluster.index(&root).await?;
        let of_object = |removed: &&RemovedEntry| removed_key(cluster, removed).is_some();
        let mut due: Vec<&RemovedEntry> =
            index.removed.iter().filter(of_object).filter(|removed| removed.root <= floor_root).collect();
        if due.is_empty() {
            return Ok(0);
        }
        let keys = due.iter().filter_map(|removed| removed_key(cluster, removed)).collect();
        let outcome = self.delete(keys).await?;
        let failed: HashSet<ObjectKey> = outcome.failed.into_iter().collect();
        due.retain(|removed| removed_key(cluster, removed).is_some_and(|key| !failed.contains(&key)));
        if due.is_empty() {
            return Ok(outcome.done);
        }
        let due: HashSet<(RemovedKind, &str)> =
            due.into_iter().map(|removed| (removed.kind, removed.name.as_str())).collect();
        cluster
            .commit_indexed::<RepoError>(|root, index| {
                let mut index = index.clone();
                index.removed.retain(|removed| !due.contains(&(removed.kind, removed.name.as_str())));
                Ok(Some(RootChange { root: root.clone(), index: IndexEdit::Rewrite(index.into_page()) }))
            })
            .await?;
        Ok(outcome.done)
    }

    /// Index objects made up to the floor's root and not part of the index there were merged away before it: no kept root
    /// names them, and none ever will again.
    async fn indexes(&mut self, floor_root: u64) -> Result<u64, RepoError> {
        let cluster = self.cluster;
        let newest = cluster.newest_root().await?;
        let mut named: HashSet<ObjectId> = cluster.index(&newest).await?.objects.into_iter().collect();
        let kept = async {
            match roots::read_root(cluster.repo(), cluster.name(), floor_root).await? {
                Some(root) => cluster.index(&root).await.map(Some),
                // Another collection raised the floor further: it sees to the rest.
                None => Ok(None),
            }
        };
        match kept.await {
            Ok(Some(index)) => named.extend(index.objects),
            Ok(None) => return Ok(0),
            // It was repaired since: once the floor is above that, its objects are let go.
            Err(error) if error.is_damage() => return Ok(0),
            Err(error) => return Err(error),
        }
        let floor_modified =
            match cluster.repo().store().head(&layout::root(cluster.name(), floor_root)).await {
                Ok(meta) => meta.modified_unix_micros,
                Err(StoreError::NotFound { .. }) => return Ok(0),
                Err(error) => return Err(error.into()),
            };
        let mut keys = Vec::new();
        for meta in cluster.repo().store().list(&layout::index_prefix(cluster.name())).await? {
            let Ok(id) = meta.key.file_name().parse::<ObjectId>() else { continue };
            if named.contains(&id) {
                continue;
            }
            match cluster.repo().read_object(&meta.key, ObjectKind::Index).await {
                Ok(object) if object.header().number <= floor_root => keys.push(meta.key),
                Ok(_) | Err(RepoError::Store(StoreError::NotFound { .. })) => {}
                // For which root it was made, it does not say. A commit that may still win read a root at or above the floor's first,
                // and stored its index object after that.
                Err(RepoError::Damage { .. }) if meta.modified_unix_micros < floor_modified => {
                    keys.push(meta.key);
                }
                Err(error) if error.is_transient() => return Err(error),
                // One that does not open keeps nobody from removing the others.
                Err(_) => {}
            }
        }
        Ok(self.delete(keys).await?.done)
    }

    /// Segments, manifests and pending entries that nothing names, older than the cutoff, and by `margin` older than all pending work: so
    /// far the store's clock may step back and what work made meanwhile is not taken for older than the work.
    async fn orphans(&mut self, cutoff: i64, margin: i64) -> Result<u64, RepoError> {
        let cluster = self.cluster;
        let store = &**cluster.repo().store();
        // Listed before the index is read: what is committed in between is named by the index.
        let mut listed = store.list(&layout::segments_prefix(cluster.name())).await?;
        listed.extend(store.list(&layout::manifests_prefix(cluster.name())).await?);
        listed.extend(store.list(&layout::pending_prefix(cluster.name())).await?);
        let root = cluster.newest_root().await?;
        if !rebuilt::is_settled(cluster, &root, cutoff).await? {
            return Ok(0);
        }
        let index = cluster.index(&root).await?;
        // Work began after the first root it may refer to, however often it was renewed since.
        let mut oldest_pending = cutoff;
        for entry in &root.pending {
            let begun = [layout::root(cluster.name(), entry.root), layout::pending(cluster.name(), entry.id)];
            for key in begun {
                match store.head(&key).await {
                    Ok(meta) => {
                        oldest_pending = oldest_pending.min(meta.modified_unix_micros.saturating_sub(margin));
                    }
                    Err(StoreError::NotFound { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        let named = named_objects(cluster, &root, &index);
        let orphans = listed
            .into_iter()
            .filter(|meta| meta.modified_unix_micros < oldest_pending && !named.contains(&meta.key))
            .collect();
        let orphans = rebuilt::those_that_open(cluster, &root, orphans).await?;
        Ok(self.delete(orphans).await?.done)
    }

    /// Removes `keys`, several at a time. One that the store will not remove keeps nobody from removing the others.
    ///
    /// # Errors
    /// A store that cannot be reached: nobody knows then what it would have said of the others.
    async fn delete(&mut self, keys: Vec<ObjectKey>) -> Result<Deleted, RepoError> {
        let store = self.cluster.repo().store();
        let deletes = futures_util::stream::iter(keys).map(|key| async move {
            let deleted = store.delete(&key).await;
            (key, deleted)
        });
        let mut deletes = deletes.buffer_unordered(DELETES_IN_FLIGHT);
        let mut outcome = Deleted::default();
        while let Some((key, deleted)) = deletes.next().await {
            match deleted {
                Ok(()) => outcome.done += 1,
                Err(error @ StoreError::Unknown { .. }) => return Err(error.into()),
                Err(error) => {
                    self.undeleted.add(key.clone(), &error);
                    outcome.failed.push(key);
                }
            }
        }
        Ok(outcome)
    }
}

/// What became of objects that were to be removed.
#[derive(Debug, Default)]
struct Deleted {
    done: u64,
    failed: Vec<ObjectKey>,
}

/// The object of a removed entry, if it has one.
fn removed_key(cluster: &Cluster, removed: &RemovedEntry) -> Option<ObjectKey> {
    match removed.kind {
        RemovedKind::Wal | RemovedKind::Pages => {
            Some(layout::segment(cluster.name(), removed.name.parse().ok()?))
        }
        RemovedKind::Chunks => None,
        RemovedKind::Backup | RemovedKind::Manifest => layout::manifest_named(cluster.name(), &removed.name),
    }
}

fn named_objects(cluster: &Cluster, root: &Root, index: &Index) -> HashSet<ObjectKey> {
    let name = cluster.name();
    let segments = index.wal.iter().map(|entry| entry.id).chain(index.pages.iter().map(|entry| entry.id));
    segments
        .map(|id| layout::segment(name, id))
        .chain(index.backups.iter().map(|backup| layout::manifest(name, &backup.id, backup.manifest_number)))
        .chain(index.removed.iter().filter_map(|removed| removed_key(cluster, removed)))
        .chain(root.pending.iter().map(|entry| layout::pending(name, entry.id)))
        .collect()
}
