//! Segments of chunks after backups went: those that nothing refers to leave the index, those of which little is left are written
//! anew without the rest. Each step is one root, so that a sweep that was interrupted is done again from where it was.
//!
//! A chunk that is about to go must not be found by a backup: nothing leaves the index while a backup is registered, and a backup that
//! registers later sees an index without it. Nor may one be referred to that was not looked at: a root with another backup than those
//! that were looked at is not built upon.

use super::mark::{self, Marks};
use crate::base::planted::{Bug, planted};
use crate::base::{BackupId, ObjectId, ObjectKey, limits};
use crate::codec::object::{ObjectWriter, OpenObject};
use crate::format::header::ObjectKind;
use crate::format::index::{PagesEntry, RemovedEntry, RemovedKind};
use crate::format::root::{PendingKind, Root};
use crate::repo::index::{IndexEdit, empty_page};
use crate::repo::{Cluster, Index, IndexCache, Registration, RepoError, RootChange, layout};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::collections::{BTreeSet, HashSet};

/// Segments that one root replaces, and bytes of them: what an interruption wastes. Roots are a second apart, so few are too slow.
const REWRITES_AT_ONCE: usize = 1024;
const REWRITE_BYTES: u64 = 4 << 30;
/// Segments read while one is written anew.
const READ_AHEAD: usize = 2;
/// A segment is full when another chunk and the directory might not fit any more.
const FULL_BYTES: usize = limits::PAGES_SEGMENT_BYTES - (2 << 20);
/// Chunks in one segment: bounds its directory.
const CHUNKS_MAX: usize = 16 << 10;

/// What a sweep did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Swept {
    /// Segments that left the index because nothing refers to them.
    pub dropped: u64,
    /// Segments that were written anew.
    pub rewritten: u64,
    /// Bytes that are free once their grace period is over.
    pub bytes_freed: u64,
    /// Why there is work left, if there is.
    pub put_off: Option<String>,
}

/// Looks which chunks are referred to, if a backup went since that was done, and lets go of the others. Writes segments anew of which
/// less than `live_percent_min` of a hundred bytes is referred to.
pub async fn sweep(cluster: &Cluster, live_percent_min: u64) -> Result<Swept, RepoError> {
    let mut swept = Swept::default();
    let root = cluster.newest_root().await?;
    let index = cluster.index(&root).await?;
    if !index.removed.iter().any(|removed| removed.kind == RemovedKind::Chunks) {
        return Ok(swept);
    }
    if let Some(why) = hinders(&root) {
        return Ok(Swept { put_off: Some(why), ..swept });
    }
    let marks = match mark::mark(cluster, &index).await {
        Ok(marks) => marks,
        // Whoever moved it, or a manifest that is damaged: what it refers to is not known, so nothing goes.
        Err(error) if error.is_damage() || error.is_no_space() => {
            return Ok(Swept { put_off: Some(error.to_string()), ..swept });
        }
        Err(error) => return Err(error),
    };
    match carry_out(cluster, &index, &marks, live_percent_min, &mut swept).await {
        Err(RepoError::Conflict { reason }) => swept.put_off = Some(reason),
        other => other?,
    }
    Ok(swept)
}

/// What keeps chunks from leaving the index.
fn hinders(root: &Root) -> Option<String> {
    let works = root.pending.iter().any(|work| work.kind == PendingKind::Backup);
    (works && !planted(Bug::ChunksGoBesideBackups)).then(|| "a backup is being made".into())
}

async fn carry_out(
    cluster: &Cluster,
    index: &Index,
    marks: &Marks,
    live_percent_min: u64,
    swept: &mut Swept,
) -> Result<(), RepoError> {
    let (mut dead, mut sparse) = (Vec::new(), Vec::new());
    for (entry, share) in marks.shares() {
        if share.bytes_live == 0 {
            dead.push(entry);
        } else if share.bytes_live * 100 < share.bytes * live_percent_min {
            sparse.push(entry);
        }
    }
    let mut step = Step {
        looked_at: index.backups.iter().map(|backup| &backup.id).collect(),
        done: index.removed.iter().filter(|removed| removed.kind == RemovedKind::Chunks).collect(),
        removed: dead,
        added: Vec::new(),
        is_last: sparse.is_empty(),
    };
    swept.dropped = step.removed.len() as u64;
    swept.bytes_freed = step.removed.iter().map(|entry| entry.object_len).sum();
    let mut cache = IndexCache::default();
    if step.is_last || !step.removed.is_empty() {
        cluster.commit_cached(&mut cache, |root, index| step.edit(root, index).map(Some)).await?;
    }
    let mut batches = batches(&sparse).into_iter().peekable();
    while let Some(batch) = batches.next() {
        let registration = Registration::create(cluster, PendingKind::Collection, None, "collection").await?;
        let rewriting = async {
            step.added = rewrite(cluster, marks, batch).await?;
            step.removed = batch.to_vec();
            step.is_last = batches.peek().is_none();
            cluster
                .commit_cached(&mut cache, |root, index| {
                    let gone =
                        || RepoError::Conflict { reason: "the collection's registration has expired".into() };
                    let root = registration.leave(root).ok_or_else(gone)?;
                    step.edit(&root, index).map(Some)
                })
                .await
        };
        let committed = tokio::select! {
            committed = rewriting => committed,
            expired = registration.keep(limits::WORK_RENEW_INTERVAL) => {
                Err(RepoError::Conflict { reason: expired.to_string() })
            }
        };
        match committed {
            Ok(_) => registration.left().await,
            Err(error) => {
                registration.abandon().await?;
                return Err(error);
            }
        }
        swept.rewritten += batch.len() as u64;
        let before: u64 = batch.iter().map(|entry| entry.object_len).sum();
        let after: u64 = step.added.iter().map(|entry| entry.object_len).sum();
        swept.bytes_freed += before.saturating_sub(after);
    }
    Ok(())
}

/// Segments as they are replaced together.
fn batches(sparse: &[PagesEntry]) -> Vec<&[PagesEntry]> {
    let (mut batches, mut rest) = (Vec::new(), sparse);
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = |entry: &&PagesEntry| {
            bytes += entry.object_len;
            bytes <= REWRITE_BYTES
        };
        let count = rest.iter().take(REWRITES_AT_ONCE).take_while(fits).count().max(1);
        let (batch, others) = rest.split_at(count);
        batches.push(batch);
        rest = others;
    }
    batches
}

/// One root of a sweep.
struct Step<'a> {
    looked_at: BTreeSet<&'a BackupId>,
    done: Vec<&'a RemovedEntry>,
    removed: Vec<PagesEntry>,
    added: Vec<PagesEntry>,
    /// Afterwards the work that was found is done.
    is_last: bool,
}

impl Step<'_> {
    fn edit(&self, root: &Root, index: &Index) -> Result<RootChange, RepoError> {
        let conflict = |reason: String| RepoError::Conflict { reason };
        if let Some(why) = hinders(root) {
            return Err(conflict(why));
        }
        if let Some(other) = index.backups.iter().find(|backup| !self.looked_at.contains(&backup.id)) {
            return Err(conflict(format!("backup {} was made meanwhile", other.id)));
        }
        let there: HashSet<ObjectId> = index.pages.iter().map(|entry| entry.id).collect();
        if let Some(gone) = self.removed.iter().find(|entry| !there.contains(&entry.id)) {
            return Err(conflict(format!("segment {} was collected by somebody else", gone.id)));
        }
        let number = root.number + 1;
        let removed = |entry: &PagesEntry| RemovedEntry {
            kind: RemovedKind::Pages,
            name: entry.id.to_string(),
            root: number,
        };
        let mut page = empty_page();
        if !self.is_last {
            page.pages = self.added.clone();
            page.removed = self.removed.iter().map(removed).collect();
            return Ok(RootChange { root: root.clone(), index: IndexEdit::Add(page) });
        }
        let mut next = index.clone();
        let gone: HashSet<ObjectId> = self.removed.iter().map(|entry| entry.id).collect();
        next.pages.retain(|entry| !gone.contains(&entry.id));
        next.pages.extend(self.added.iter().cloned());
        next.removed.retain(|entry| !self.done.contains(&entry));
        next.removed.extend(self.removed.iter().map(removed));
        Ok(RootChange { root: root.clone(), index: IndexEdit::Rewrite(next.into_page()) })
    }
}

/// Stores what is referred to of `segments` in new ones, as it was packed. Nothing refers to them yet.
async fn rewrite(
    cluster: &Cluster,
    marks: &Marks,
    segments: &[PagesEntry],
) -> Result<Vec<PagesEntry>, RepoError> {
    let ids: HashSet<ObjectId> = segments.iter().map(|entry| entry.id).collect();
    let live = marks.live_frames(&ids);
    let (mut made, mut open) = (Vec::new(), None);
    let read = |(id, frames)| read(cluster.clone(), id, frames);
    let mut objects = stream::iter(live).map(read).buffered(READ_AHEAD);
    while let Some((key, object, frames)) = objects.try_next().await? {
        for number in frames {
            let number = usize::from(number);
            // Unpacked too: what is damaged stays where its damage is known.
            object.chunk(number, &*cluster.repo().keys()).map_err(|error| RepoError::open(&key, error))?;
            let packed = object.packed_chunk(number).map_err(|error| RepoError::open(&key, error))?;
            let segment: &mut New = open.get_or_insert_with(|| New::create(cluster));
            segment.writer.add_packed(&packed, 0);
            if segment.writer.len() >= FULL_BYTES || segment.writer.frame_count() >= CHUNKS_MAX {
                made.extend(finish(cluster, open.take()).await?);
            }
        }
    }
    made.extend(finish(cluster, open).await?);
    Ok(made)
}

async fn read(
    cluster: Cluster,
    id: ObjectId,
    frames: Vec<u16>,
) -> Result<(ObjectKey, OpenObject, Vec<u16>), RepoError> {
    let key = layout::segment(cluster.name(), id);
    let object = cluster.repo().read_object(&key, ObjectKind::PagesSegment).await?;
    Ok((key, object, frames))
}

/// A segment being filled.
struct New {
    id: ObjectId,
    writer: ObjectWriter,
}

impl New {
    fn create(cluster: &Cluster) -> New {
        let repo = cluster.repo();
        let id = ObjectId::random(&*repo.env().entropy);
        let key = layout::segment(cluster.name(), id);
        New { id, writer: repo.writer(ObjectKind::PagesSegment, &key, id.0, 0, 0) }
    }
}

async fn finish(cluster: &Cluster, open: Option<New>) -> Result<Option<PagesEntry>, RepoError> {
    let Some(New { id, writer }) = open else { return Ok(None) };
    let finished = writer.finish(Vec::new());
    let key = layout::segment(cluster.name(), id);
    cluster.repo().create_own(&key, &finished.bytes).await?;
    let frames = &finished.directory.frames;
    Ok(Some(PagesEntry {
        id,
        object_len: finished.bytes.len() as u64,
        directory_offset: finished.directory_offset,
        chunk_count: frames.len() as u32,
        plain_bytes: frames.iter().map(|frame| u64::from(frame.plain_len)).sum(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_root_replaces_as_many_segments_as_are_not_too_much_to_do_again() {
        let entry = |object_len| PagesEntry {
            id: ObjectId([0; 16]),
            object_len,
            directory_offset: 0,
            chunk_count: 1,
            plain_bytes: 1,
        };
        let counts = |lens: &[u64]| -> Vec<usize> {
            let entries: Vec<PagesEntry> = lens.iter().map(|len| entry(*len)).collect();
            batches(&entries).iter().map(|batch| batch.len()).collect()
        };
        assert!(counts(&[]).is_empty());
        assert_eq!(counts(&[100; 2500]), [1024, 1024, 452]);
        assert_eq!(counts(&[REWRITE_BYTES / 2; 5]), [2, 2, 1]);
        assert_eq!(counts(&[REWRITE_BYTES + 1, 1, 1]), [1, 2]);
    }
}
