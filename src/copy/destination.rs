//! The copy: a cluster of its own that nobody else writes WAL to, registered work while it is written, and its commits. Each is made of
//! the newest root, and refused when what was planned does not fit it any more.

use super::error::CopyError;
use super::fit::{self, conflict};
use super::plan::Group;
use super::same;
use super::selection::Selection;
use super::source::{View, refuse_deleted};
use crate::base::{BackupId, ClusterName, Generation, LsnRange, ObjectId, ObjectKey, TimelineId};
use crate::format::header::ObjectKind;
use crate::format::index::{
    BackupEntry, BackupState, GapEntry, HistoryEntry, IndexPage, PagesEntry, PinEntry, RemovedEntry,
    RemovedKind, WalEntry,
};
use crate::format::record::Record;
use crate::format::root::{GenerationRecord, PendingKind, Root};
use crate::repo::index::{IndexEdit, empty_page};
use crate::repo::spans::Spans;
use crate::repo::{Cluster, Index, IndexCache, Registration, RepoError, Repository, RootChange, layout};
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use tokio::sync::Mutex;

/// The cluster that is written.
#[derive(Debug)]
pub struct Destination {
    /// The cluster.
    pub cluster: Cluster,
    /// The work, registered as a backup is: what it found stored stays.
    pub registration: Registration,
    /// Its index, which hardly anybody else changes.
    index: Mutex<IndexCache>,
}

impl Destination {
    /// Finds or makes the cluster `name`, and registers the copy.
    ///
    /// # Errors
    /// A cluster that a receiver has written to, or that is another one's.
    pub async fn open(
        repo: &Arc<Repository>,
        name: &ClusterName,
        source: (&Cluster, &View),
        selection: &Selection,
        holder: &str,
    ) -> Result<Destination, CopyError> {
        let (from, view) = source;
        if repo.id() == from.repo().id() && name == from.name() {
            return Err(CopyError::Itself { cluster: name.clone(), url: repo.store().url() });
        }
        let cluster = match Cluster::open(repo.clone(), name.clone()).await {
            Ok(cluster) => cluster,
            Err(RepoError::NotFound { .. }) => {
                let first = selected(view, selection).next();
                let Some(first) = first else { unreachable!("a cluster has a generation") };
                // Before the root that says that there are so many.
                let fresh = Cluster::unchecked(repo.clone(), name.clone());
                see_to_generations(&fresh, from, &view.root, first.generation).await?;
                Cluster::create(repo.clone(), named(first, name)).await?
            }
            Err(error) => return Err(error.into()),
        };
        refuse_receivers(&cluster, &cluster.newest_root().await?)?;
        // Nothing is made before the destination is known to be of the source's history.
        for record in from.generations(&view.root).await.map_err(CopyError::Source)? {
            if is_there(&cluster, record.generation).await? {
                compare(&cluster, &named(&record, name)).await?;
            }
        }
        let registration = Registration::create(&cluster, PendingKind::Backup, None, holder).await?;
        Ok(Destination { cluster, registration, index: Mutex::default() })
    }

    /// Root and index as they are now.
    pub async fn now(&self) -> Result<(Root, Index), RepoError> {
        let root = self.cluster.newest_root().await?;
        let index = self.cluster.index(&root).await?;
        Ok((root, index))
    }

    async fn commit(
        &self,
        mut edit: impl FnMut(&Root, &Index) -> Result<Option<RootChange>, CopyError>,
    ) -> Result<Root, CopyError> {
        let checked = |root: &Root, index: &Index| {
            refuse_deleted(&self.cluster, root)?;
            self.registration.leave(root).ok_or(CopyError::Expired)?;
            refuse_receivers(&self.cluster, root)?;
            edit(root, index)
        };
        self.cluster.commit_cached(&mut *self.index.lock().await, checked).await
    }

    /// What is known before any WAL: where it comes from, generations, histories, and what the source let go and the destination does not
    /// hold either.
    pub async fn preface(&self, from: &Cluster, view: &View, selection: &Selection) -> Result<(), CopyError> {
        // The source may have begun one since the copy did.
        if let Some(newest) = selected(view, selection).last() {
            see_to_generations(&self.cluster, from, &view.root, newest.generation).await?;
        }
        self.commit(|root, index| {
            let wanted = |history: &&HistoryEntry| selection.has_generation(history.generation);
            for history in view.index.histories.iter().filter(wanted) {
                same::refuse_other_history(&self.cluster, index, history)?;
            }
            let known = |history: &HistoryEntry| {
                index
                    .histories
                    .iter()
                    .any(|other| (other.generation, other.timeline) == (history.generation, history.timeline))
            };
            let fresh = view.index.histories.iter().filter(|history| wanted(history) && !known(history));
            let histories: Vec<HistoryEntry> = fresh.cloned().collect();
            let mut of = root.clone();
            of.set_copied_from(from.repo().id(), from.name());
            for (generation, timeline) in ended(&view.root) {
                if selection.has_generation(generation) {
                    of.set_ended(generation, timeline);
                }
            }
            let expired = expired(view, selection, index).to_expired();
            if expired != Spans::expired(&index.expired).to_expired() {
                let mut next = index.clone();
                next.histories.extend(histories);
                next.expired = expired;
                return Ok(Some(RootChange { root: of, index: IndexEdit::Rewrite(next.into_page()) }));
            }
            Ok(changed(root, of, IndexPage { histories, ..empty_page() }))
        })
        .await?;
        Ok(())
    }

    /// Names segments of chunks that a backup, not whole yet, will refer to: an interrupted copy finds them. Nobody has looked
    /// which of them are needed, says the entry beside them, so that collection does if the copy never goes on.
    pub async fn add_chunks(&self, pages: Vec<PagesEntry>, backup: &BackupId) -> Result<(), CopyError> {
        self.commit(|root, _| {
            let mut page = IndexPage { pages: pages.clone(), ..empty_page() };
            page.removed.push(RemovedEntry {
                kind: RemovedKind::Chunks,
                name: backup.to_string(),
                root: root.number + 1,
            });
            Ok(changed(root, root.clone(), page))
        })
        .await?;
        Ok(())
    }

    /// Names a backup. It is pending until its WAL is there.
    pub async fn add_backup(
        &self,
        backup: &BackupEntry,
        pages: Vec<PagesEntry>,
        relied_on: &[ObjectKey],
        pin: Option<&PinEntry>,
    ) -> Result<(), CopyError> {
        let name = self.cluster.name();
        self.commit(|root, index| {
            if index.backup(&backup.id).is_some() {
                return Err(conflict(format!("backup {} was copied by somebody else", backup.id)));
            }
            let there: HashSet<_> = index.pages.iter().map(|entry| layout::segment(name, entry.id)).collect();
            if let Some(key) = relied_on.iter().find(|key| !there.contains(key)) {
                return Err(conflict(format!("{key}, which holds chunks of the backup, left the index")));
            }
            let page = IndexPage {
                pages: pages.clone(),
                backups: vec![backup.clone()],
                pins: pin.cloned().into_iter().collect(),
                ..empty_page()
            };
            Ok(changed(root, root.clone(), page))
        })
        .await?;
        Ok(())
    }

    /// Names WAL: groups whole, each in the place of what it replaces.
    pub async fn add_wal(&self, done: &[(Group, Vec<WalEntry>)]) -> Result<(), CopyError> {
        self.commit(|root, index| {
            let (mut next, mut page) = (root.clone(), empty_page());
            let expired = Spans::expired(&index.expired);
            let known: BTreeSet<ObjectId> = index.gaps.iter().map(|gap| gap.id).collect();
            for (group, entries) in done {
                fit::check(index, &expired, group, entries)?;
                next.generation = next.generation.max(group.place.0);
                page.wal.extend(entries.iter().cloned());
                page.gaps.extend(group.gaps.iter().filter(|gap| !known.contains(&gap.id)).cloned());
                page.removed.extend(group.removes.iter().map(|id| RemovedEntry {
                    kind: RemovedKind::Wal,
                    name: id.to_string(),
                    root: root.number + 1,
                }));
            }
            Ok(changed(root, next, page))
        })
        .await?;
        Ok(())
    }

    /// At the end of a pass over `view`: gaps behind which nothing lies and not those that were filled, the newest generation, backups whose
    /// WAL is there, and how long the source has been where the copy ends.
    pub async fn conclude(
        &self,
        view: &View,
        selection: &Selection,
        gaps: &[GapEntry],
    ) -> Result<(), CopyError> {
        self.leave_out_filled_gaps().await?;
        let (now, moments) = (View::read(&self.cluster).await?, view.moments());
        let newest = selected(view, selection).map(|record| record.generation).max();
        self.commit(|root, index| {
            let mut next = root.clone();
            next.generation = newest.map_or(root.generation, |newest| root.generation.max(newest));
            let mut page = empty_page();
            let known: BTreeSet<ObjectId> = index.gaps.iter().map(|gap| gap.id).collect();
            page.gaps.extend(gaps.iter().filter(|gap| !known.contains(&gap.id)).cloned());
            for backup in index.backups.iter().filter(|backup| backup.state == BackupState::Pending) {
                let state = now.state(backup);
                if state != BackupState::Pending {
                    page.backups.push(BackupEntry { state, ..backup.clone() });
                }
            }
            page.wal = fit::later(index, &moments);
            Ok(changed(root, next, page))
        })
        .await?;
        Ok(())
    }

    async fn leave_out_filled_gaps(&self) -> Result<(), CopyError> {
        let entropy = &self.cluster.repo().env().entropy;
        self.commit(|root, index| {
            let gaps = fit::left_of_gaps(index, || ObjectId::random(&**entropy));
            if gaps == index.gaps {
                return Ok(None);
            }
            let next = Index { gaps, ..index.clone() };
            Ok(Some(RootChange { root: root.clone(), index: IndexEdit::Rewrite(next.into_page()) }))
        })
        .await?;
        Ok(())
    }

    /// Ends the registration.
    pub async fn leave(&self) -> Result<(), RepoError> {
        self.registration.abandon().await.map(drop)
    }
}

/// Nobody else may write WAL to a copy: it would not be the source's.
fn refuse_receivers(cluster: &Cluster, root: &Root) -> Result<(), CopyError> {
    if root.writer_epoch == 0 && root.streams.is_empty() {
        return Ok(());
    }
    Err(CopyError::Written { cluster: cluster.name().clone(), url: cluster.repo().store().url() })
}

/// The generations of which anything is copied, the oldest first.
fn selected<'a>(view: &'a View, selection: &Selection) -> impl Iterator<Item = &'a GenerationRecord> {
    view.eras.values().map(|era| &era.record).filter(|record| selection.has_generation(record.generation))
}

fn named(record: &GenerationRecord, name: &ClusterName) -> GenerationRecord {
    GenerationRecord { cluster: name.clone(), ..record.clone() }
}

/// Sees to the record of every generation up to `newest`, the oldest first, also of those of which nothing is copied: records stay for
/// good, so one that is missing is a loss, says `verify`. One that the source lost is passed by.
async fn see_to_generations(
    cluster: &Cluster,
    from: &Cluster,
    root: &Root,
    newest: Generation,
) -> Result<(), CopyError> {
    let records = from.generations(root).await.map_err(CopyError::Source)?;
    for record in records.iter().filter(|record| record.generation <= newest) {
        see_to_generation(cluster, &named(record, cluster.name())).await?;
    }
    Ok(())
}

/// Makes the record of a generation, or compares it with the one that is there.
async fn see_to_generation(cluster: &Cluster, record: &GenerationRecord) -> Result<(), CopyError> {
    if !is_there(cluster, record.generation).await? {
        let key = layout::generation(cluster.name(), record.generation);
        let number = u64::from(record.generation.0);
        let writer = cluster.repo().writer(ObjectKind::Generation, &key, [0; 16], number, 0);
        // Taken: another copy made it meanwhile.
        cluster.repo().create(&key, &writer.finish(record.encode()).bytes).await?;
    }
    compare(cluster, record).await
}

async fn is_there(cluster: &Cluster, generation: Generation) -> Result<bool, RepoError> {
    let key = layout::generation(cluster.name(), generation);
    crate::repo::repository::exists(&**cluster.repo().store(), &key).await
}

/// Refuses a destination whose record of the generation is another one.
async fn compare(cluster: &Cluster, ours: &GenerationRecord) -> Result<(), CopyError> {
    let there = cluster.read_generation(ours.generation).await?;
    if there.system_id != ours.system_id {
        let cluster = cluster.name().to_string();
        let (found, expected) = (ours.system_id, there.system_id);
        return Err(RepoError::WrongSystem { cluster, found, expected }.into());
    }
    if there != *ours {
        let Generation(number) = ours.generation;
        return Err(RepoError::Conflict {
            reason: format!(
                "cluster {}: generation {number} there is of PostgreSQL {} with WAL segments of {} bytes, the source's of {} with {}",
                cluster.name(), there.major_version, there.segment_size, ours.major_version, ours.segment_size
            ),
        }
        .into());
    }
    Ok(())
}

/// On which timeline each generation before that of `root` ended: where it streamed last, or what the root says.
fn ended(root: &Root) -> Vec<(Generation, TimelineId)> {
    let past = root.streams.iter().rev().filter(|stream| stream.generation < root.generation);
    past.map(|stream| (stream.generation, stream.timeline)).chain(root.ended()).collect()
}

/// What both sides let go, and nothing that the destination holds.
fn expired(view: &View, selection: &Selection, index: &Index) -> Spans {
    let mut theirs = Spans::default();
    for (place, range) in Spans::expired(&view.index.expired).iter() {
        if let Some(range) = selection.wal(place).and_then(|wanted| wanted.intersect(range)) {
            theirs.add(place, range);
        }
    }
    for entry in &index.wal {
        theirs.remove((entry.generation, entry.timeline), LsnRange::new(entry.start, entry.end));
    }
    let mut all = Spans::expired(&index.expired);
    theirs.iter().for_each(|(place, range)| all.add(place, range));
    all
}

/// `next`, if it differs from `root` or there is anything to add.
fn changed(root: &Root, next: Root, page: IndexPage) -> Option<RootChange> {
    let index = if page == empty_page() { IndexEdit::Keep } else { IndexEdit::Add(page) };
    (next != *root || !matches!(index, IndexEdit::Keep)).then_some(RootChange { root: next, index })
}
