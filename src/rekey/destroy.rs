//! Destroying a key epoch: what is sealed under it opens for nobody afterwards, so nothing that anybody may need is.
//! Refuses while an object that counts is sealed under it, and while somebody may still seal one. Spec: formats/keys.md.
//! In this order: nobody writes under it any more, every root is taken, everything is counted, the secrets go.

use super::census::{self, Header, Kind, Kinds};
use crate::base::planted::{Bug, planted};
use crate::base::{ClusterName, Generation, ObjectKey, Progress, StreamId};
use crate::format::header::{ObjectHeader, ObjectKind};
use crate::format::keyslot::FIRST_EPOCH;
use crate::format::root::{Root, StreamEntry};
use crate::repo::cluster::RootChange;
use crate::repo::fences::FENCE_BYTES_MAX;
use crate::repo::keys::KeyObjects;
use crate::repo::repository::exists;
use crate::repo::roots::{self, NONE};
use crate::repo::{Cluster, RepoError, Repository, layout, slots};
use crate::store::{Store, StoreError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How often removing looks again for objects that others stored meanwhile.
const REMOVE_TRIES_MAX: u32 = 10;
/// The generation that a cluster begins with.
const FIRST_GENERATION: Generation = Generation(1);

/// What still needs an epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Needed {
    /// Objects sealed under it.
    Objects {
        /// The cluster.
        cluster: ClusterName,
        /// What they are.
        kinds: Kinds,
    },
    /// A stream whose writer has not been seen to seal under a later epoch.
    Stream {
        /// The cluster.
        cluster: ClusterName,
        /// The stream.
        stream: StreamId,
    },
    /// Work in progress that began before the next epoch was made.
    Work {
        /// The cluster.
        cluster: ClusterName,
        /// How many.
        count: u64,
    },
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destroyed {
    /// Nobody opens it any more.
    Gone {
        /// Objects of the epoch removed.
        objects: u64,
        /// Flush objects above a fence, which nobody reads, removed with it.
        void: u64,
    },
    /// Nothing was removed.
    Refused(Vec<Needed>),
}

/// What a cluster's newest root counts on.
struct View {
    cluster: Cluster,
    root: Root,
    /// The first number past the end of each stream's chain.
    ends: BTreeMap<StreamId, u64>,
}

/// Destroys `epoch`, or says what still needs it. Stopped anywhere, it can be done again. Its link stays, by which later epochs are
/// proved. A later one than the newest is not proved: somebody may have planted it, and it is removed with its link if nothing is sealed
/// under it.
///
/// # Errors
/// [`RepoError::NotFound`] when there is no such epoch; [`RepoError::Conflict`] when it is the newest, when the newest was not given to
/// our slot, and when its link is lost.
pub async fn destroy(
    repo: &Arc<Repository>,
    epoch: u32,
    progress: &dyn Progress,
) -> Result<Destroyed, RepoError> {
    let store = &**repo.store();
    let newest = slots::newest(repo).await?;
    let listed = KeyObjects::list(store).await?;
    let has_link = epoch > newest && listed.links.contains(&epoch);
    if !listed.epochs.contains(&epoch) && !has_link {
        return Err(RepoError::NotFound { what: format!("key epoch {epoch}"), url: store.url() });
    }
    if epoch == newest {
        return Err(RepoError::Conflict {
            reason: format!("key epoch {epoch} is the newest: what is stored now is sealed under it"),
        });
    }
    // Nobody seals under one that links do not lead to, and nothing follows from it.
    let next_made = if epoch > newest { None } else { Some(next_made(repo, epoch).await?) };
    let (mut needed, mut views) = (Vec::new(), Vec::new());
    for name in repo.clusters().await? {
        let cluster = open(repo, &name).await?;
        // Whoever stalled right before it created a root under the epoch finds its number taken.
        let root = cluster.commit::<RepoError>(|root| Ok(Some(RootChange::of(root.clone())))).await?;
        let (view, writers) = view(cluster, root, epoch).await?;
        if let Some(next_made) = next_made {
            needed.extend(writers);
            let count = early_work(&view, next_made).await?;
            if count > 0 {
                needed.push(Needed::Work { cluster: name, count });
            }
        }
        views.push(view);
    }
    let (objects_left, void) = count(repo, &views, epoch, progress).await?;
    needed.extend(objects_left);
    if !needed.is_empty() {
        return Ok(Destroyed::Refused(needed));
    }
    for key in &void {
        store.delete(key).await?;
    }
    let is_linked = (FIRST_EPOCH + 1..=newest).contains(&epoch);
    let link = if is_linked { slots::link(repo, epoch).await? } else { None };
    let mut objects = remove(store, epoch).await?;
    if let Some(link) = link {
        slots::keep_link(repo, &link).await?;
    }
    if epoch > newest && exists(store, &layout::epoch_link(epoch)).await? {
        store.delete(&layout::epoch_link(epoch)).await?;
        objects += 1;
    }
    Ok(Destroyed::Gone { objects, void: void.len() as u64 })
}

/// When the next epoch after `epoch` was there for everybody, by the store's clock: since then its link is. A link that had to be stored
/// again makes that later, never earlier.
async fn next_made(repo: &Arc<Repository>, epoch: u32) -> Result<i64, RepoError> {
    slots::complete_links(repo, epoch).await?;
    let keys = repo.keys();
    let next = keys.epochs().map(|keys| keys.epoch).find(|held| *held > epoch);
    let next = next.ok_or_else(|| RepoError::Conflict {
        reason: format!("no key epoch after {epoch} is held by key slot {}", repo.slot().name()),
    })?;
    slots::complete_links(repo, next).await?;
    Ok(repo.store().head(&layout::epoch_link(next)).await?.modified_unix_micros)
}

/// The cluster `name`. One whose first start was interrupted has a generation and no root: it is given one, which holds nothing, so that
/// whoever stalled there does not create it under an epoch that is gone.
async fn open(repo: &Arc<Repository>, name: &ClusterName) -> Result<Cluster, RepoError> {
    match Cluster::open(repo.clone(), name.clone()).await {
        Err(RepoError::NotFound { .. }) => {}
        // The last root of one that was deleted is sealed too.
        Err(RepoError::Deleted { .. }) => return Ok(Cluster::unchecked(repo.clone(), name.clone())),
        opened => return opened,
    }
    let interrupted = Cluster::unchecked(repo.clone(), name.clone());
    let record = interrupted.read_generation(FIRST_GENERATION).await?;
    tracing::info!(cluster = %name, "its first start was interrupted; it is completed, and holds nothing");
    Cluster::create(repo.clone(), record).await
}

/// Removes what gives `epoch` to anybody: the object that made it last, so that as long as anything is there a list shows the epoch and
/// this can be done again. Then it looks for what somebody who knew of no end stored meanwhile. How many objects were removed.
async fn remove(store: &dyn Store, epoch: u32) -> Result<u64, RepoError> {
    let mut removed = 0;
    for _ in 0..REMOVE_TRIES_MAX {
        let sealed = KeyObjects::list(store).await?.sealed.into_iter();
        let own = sealed.filter(|(of, _)| *of == epoch).map(|(of, slot)| layout::epoch_slot(of, &slot));
        let mut clean = true;
        for key in own.chain([layout::epoch(epoch)]) {
            // A list may still show what is gone.
            if exists(store, &key).await? {
                store.delete(&key).await?;
                (clean, removed) = (false, removed + 1);
            }
        }
        if clean {
            return Ok(removed);
        }
    }
    let reason = format!(
        "objects of key epoch {epoch} appeared again {REMOVE_TRIES_MAX} times while they were removed; see who stores them, and destroy it again"
    );
    Err(RepoError::Conflict { reason })
}

/// Where the chains of `root` end, and streams that may still be written to under `epoch`.
async fn view(cluster: Cluster, root: Root, epoch: u32) -> Result<(View, Vec<Needed>), RepoError> {
    let (mut ends, mut needed) = (BTreeMap::new(), Vec::new());
    for stream in &root.streams {
        let (end, shown) = chain_end(&cluster, stream).await?;
        ends.insert(stream.id, end);
        if shown <= epoch {
            needed.push(Needed::Stream { cluster: cluster.name().clone(), stream: stream.id });
        }
    }
    Ok((View { cluster, root, ends }, needed))
}

/// One past the last number of a stream's chain, its fence counted, and the newest epoch that its writer was seen to use: 0 when it
/// left no trace, and more than any when it is fenced.
async fn chain_end(cluster: &Cluster, stream: &StreamEntry) -> Result<(u64, u32), RepoError> {
    let store = &**cluster.repo().store();
    let key = |number| layout::flush(cluster.name(), stream.id, number);
    let mut shown = stream.low_water_key_epoch;
    let mut number = stream.low_water;
    loop {
        match census::header(store, &key(number)).await? {
            Header::Gone => return Ok((number, shown)),
            Header::Unreadable => {
                let reason = "its header cannot be read; `walden verify` says more";
                return Err(RepoError::damage(&key(number), reason));
            }
            Header::Read(header) if header.kind == ObjectKind::Fence => return Ok((number + 1, u32::MAX)),
            Header::Read(header) => shown = header.key_epoch,
        }
        number += 1;
    }
}

/// Work that was registered before the next epoch was there, by the store's clock: it may not know of it.
async fn early_work(view: &View, next_made: i64) -> Result<u64, RepoError> {
    let store = &**view.cluster.repo().store();
    let mut count = 0;
    for entry in &view.root.pending {
        let began = layout::root(view.cluster.name(), entry.root);
        match store.head(&began).await {
            Ok(meta) if meta.modified_unix_micros > next_made => {}
            Ok(_) | Err(StoreError::NotFound { .. }) => count += 1,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(count)
}

/// Objects under `epoch` that count, and flush objects under it that are void.
async fn count(
    repo: &Arc<Repository>,
    views: &[View],
    epoch: u32,
    progress: &dyn Progress,
) -> Result<(Vec<Needed>, Vec<ObjectKey>), RepoError> {
    let mut named = BTreeSet::new();
    for view in views {
        named.extend(names(view).await?);
    }
    let (mut found, mut void, mut unreadable) = (BTreeMap::<ClusterName, Kinds>::new(), Vec::new(), None);
    census::each(&**repo.store(), named, progress, |counted| {
        let Some(header) = &counted.header else {
            if !is_stray_fence(views, &counted.key, counted.len) {
                unreadable.get_or_insert(counted.key);
            }
            return;
        };
        let (Some(kind), true) = (Kind::of(header.kind), header.key_epoch == epoch) else { return };
        let of = layout::cluster_of(&counted.key);
        let view = views.iter().find(|view| Some(view.cluster.name()) == of.as_ref());
        if kind == Kind::Flushes && view.is_some_and(|view| is_void(view, &counted.key, header)) {
            void.push(counted.key);
            return;
        }
        if kind == Kind::Flushes && planted(Bug::FlushesNotCounted) {
            return;
        }
        if let Some(name) = of {
            found.entry(name).or_default().entry(kind).or_default().add(counted.len);
        }
    })
    .await?;
    if let Some(key) = unreadable {
        let reason = "its header cannot be read, so nobody knows what it needs; `walden verify` says more";
        return Err(RepoError::damage(&key, reason));
    }
    let needed = found.into_iter().map(|(cluster, kinds)| Needed::Objects { cluster, kinds });
    Ok((needed.collect(), void))
}

/// Whether nobody reads a flush object: it lies above the fence of its stream, or its stream has left the root, which only closed streams
/// do, and it is not waiting for collection.
fn is_void(view: &View, key: &ObjectKey, header: &ObjectHeader) -> bool {
    let Some((stream, number)) = layout::parse_flush(key) else { return false };
    if header.writer_epoch > view.root.writer_epoch {
        // Whoever wrote it took over after the root was read.
        return false;
    }
    let retired = |run: &crate::format::root::RetiredFlush| {
        run.stream == stream && (run.from..run.to).contains(&number)
    };
    if view.root.retired.iter().any(retired) {
        return false;
    }
    view.ends.get(&stream).is_none_or(|end| number >= *end)
}

/// Whether an object whose header cannot be read is as short as a fence, and of a stream that its cluster does not know any more: whatever
/// it is, nobody reads it, and as a fence it keeps its number taken.
fn is_stray_fence(views: &[View], key: &ObjectKey, len: u64) -> bool {
    let Some((stream, _)) = layout::parse_flush(key) else { return false };
    let Some(view) = views.iter().find(|view| Some(view.cluster.name()) == layout::cluster_of(key).as_ref())
    else {
        return false;
    };
    let root = &view.root;
    let is_known = root.streams.iter().any(|named| named.id == stream)
        || root.retired.iter().any(|run| run.stream == stream);
    len <= FENCE_BYTES_MAX && !is_known
}

/// What the newest root and its index name, in case a list misses it.
async fn names(view: &View) -> Result<BTreeSet<ObjectKey>, RepoError> {
    let View { cluster, root, ends } = view;
    let name = cluster.name();
    let index = cluster.index(root).await?;
    let mut named = BTreeSet::new();
    let floor = roots::newest_floor(cluster.repo(), name, NONE).await?.map_or(NONE + 1, |floor| floor.root);
    named.extend((floor..=root.number).map(|number| layout::root(name, number)));
    named.extend(index.objects.iter().map(|id| layout::index(name, *id)));
    let segments = index.wal.iter().map(|entry| entry.id).chain(index.pages.iter().map(|entry| entry.id));
    named.extend(segments.map(|id| layout::segment(name, id)));
    named.extend(index.backups.iter().map(|entry| layout::manifest(name, &entry.id, entry.manifest_number)));
    named.extend(root.pending.iter().map(|entry| layout::pending(name, entry.id)));
    for stream in &root.streams {
        let end = ends.get(&stream.id).copied().unwrap_or(stream.low_water);
        named.extend((stream.low_water..end).map(|number| layout::flush(name, stream.id, number)));
    }
    Ok(named)
}
