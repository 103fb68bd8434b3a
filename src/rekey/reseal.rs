//! Moving what old key epochs seal to the newest: each segment and manifest is stored again under another name, and a root takes the
//! new one for the old, which collection removes a grace period later. Nothing is decompressed; a chunk keeps its id, and delta frames
//! what they are made of. Flush objects leave by compaction, and roots by collection. Spec: formats/keys.md.

use super::census::{self, Header};
use crate::base::{ObjectId, ObjectKey, Progress, limits};
use crate::codec::object::{Finished, OpenObject};
use crate::format::header::ObjectKind;
use crate::format::index::{BackupEntry, IndexPage, RemovedEntry, RemovedKind};
use crate::format::root::{PendingKind, Root};
use crate::repo::cluster::{RootChange, object_is_gone};
use crate::repo::index::{Index, IndexEdit, empty_page};
use crate::repo::{
    Cluster, Created, PendingError, Registration, RepoError, Repository, layout, slots, verifications,
};
use crate::store::StoreError;
use bytes::Bytes;
use futures_util::StreamExt;
use std::collections::BTreeMap;
use std::time::Duration;

/// Objects moved by one root.
const MOVES_PER_COMMIT: usize = 32;
/// Headers read at once.
const READS_IN_FLIGHT: usize = 32;
/// Bytes read back at a time.
const READ_BACK_BYTES: u64 = 4 << 20;
/// How long a pass that failed tries to take its registration away.
const ABANDON_LIMIT: Duration = Duration::from_secs(30);
/// Passes that may find what they move gone before this gives up: compaction or collection was faster each time.
const PASS_TRIES: u32 = 5;

/// What was moved.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Moved {
    /// Segments of chunks and of WAL.
    pub segments: u64,
    /// Manifests.
    pub manifests: u64,
    /// Whether the index was written anew.
    pub index: bool,
    /// Bytes written.
    pub bytes: u64,
    /// Objects that stay under an older epoch because they cannot be read, and why.
    pub unreadable: BTreeMap<ObjectKey, String>,
    /// Whether everything that the newest root leads to is under the newest epoch, flush objects and pending work aside.
    pub finished: bool,
}

/// What is to be sealed anew.
#[derive(Debug, Clone)]
enum Job {
    Segment(ObjectKind, ObjectId),
    Manifest(Box<BackupEntry>),
}

/// What a job made.
#[derive(Debug)]
struct Done {
    job: Job,
    id: ObjectId,
    number: u32,
    object_len: u64,
    directory_offset: u64,
}

impl Job {
    fn key(&self, cluster: &Cluster) -> ObjectKey {
        match self {
            Job::Segment(_, id) => layout::segment(cluster.name(), *id),
            Job::Manifest(entry) => layout::manifest(cluster.name(), &entry.id, entry.manifest_number),
        }
    }
}

/// Moves what `cluster`'s newest root leads to, as far as `bytes_max` goes; done again, it goes on. Safe beside everything else.
/// If dropped: what was registered and written stays until collection takes it for abandoned.
///
/// # Errors
/// [`RepoError::Conflict`] when the newest epoch was not given to the slot that opened the repository.
pub async fn reseal(cluster: &Cluster, bytes_max: u64, progress: &dyn Progress) -> Result<Moved, RepoError> {
    let mut moved = Moved::default();
    let mut tries = 0;
    'looking: loop {
        // Under an older epoch it would move nothing, or to where those read who were removed.
        slots::newest(cluster.repo()).await?;
        let root = cluster.newest_root().await?;
        let index = cluster.index(&root).await?;
        // What a running backup found stored stays where it found it.
        let left_out = backs_up(&root);
        let (jobs, gone) = plan(cluster, &index, left_out, &mut moved.unreadable).await?;
        if gone && tries < PASS_TRIES {
            tries += 1;
            moved.unreadable.clear();
            continue;
        }
        if jobs.is_empty() {
            moved.index |= reseal_index(cluster).await?;
            reseal_verification(cluster).await?;
            moved.finished = !left_out && moved.unreadable.is_empty();
            return Ok(moved);
        }
        for batch in jobs.chunks(MOVES_PER_COMMIT) {
            if moved.bytes >= bytes_max {
                return Ok(moved);
            }
            match pass(cluster, batch, bytes_max - moved.bytes, progress).await {
                Ok(done) => {
                    moved.segments += done.segments;
                    moved.manifests += done.manifests;
                    moved.bytes += done.bytes;
                    moved.unreadable.extend(done.unreadable);
                    tries = 0;
                }
                // Compaction merged it, or expiry let it go: there is less to move.
                Err(error @ RepoError::Conflict { .. }) if tries < PASS_TRIES => {
                    tracing::info!(%error, "somebody else was faster; looking again");
                    tries += 1;
                    continue 'looking;
                }
                Err(error) if object_is_gone(&error) && tries < PASS_TRIES => {
                    tries += 1;
                    continue 'looking;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether a backup is running.
fn backs_up(root: &Root) -> bool {
    root.pending.iter().any(|work| work.kind == PendingKind::Backup)
}

/// Everything that the index names and that is under an older epoch, and whether something was gone. Each header is read once; one that
/// cannot be read is told, and keeps nothing else from being moved.
async fn plan(
    cluster: &Cluster,
    index: &Index,
    without_chunks: bool,
    unreadable: &mut BTreeMap<ObjectKey, String>,
) -> Result<(Vec<Job>, bool), RepoError> {
    let wal = index.wal.iter().map(|entry| Job::Segment(ObjectKind::WalSegment, entry.id));
    let pages = index.pages.iter().filter(|_| !without_chunks);
    let pages = pages.map(|entry| Job::Segment(ObjectKind::PagesSegment, entry.id));
    let manifests = index.backups.iter().map(|entry| Job::Manifest(Box::new(entry.clone())));
    let known = |job: &Job| !unreadable.contains_key(&job.key(cluster));
    let all: Vec<Job> = pages.chain(wal).chain(manifests).filter(known).collect();
    let newest = cluster.repo().keys().newest().epoch;
    let mut headers = futures_util::stream::iter(all)
        .map(|job| async move {
            let header = census::header(&**cluster.repo().store(), &job.key(cluster)).await;
            header.map(|header| (job, header))
        })
        .buffered(READS_IN_FLIGHT);
    let (mut jobs, mut gone) = (Vec::new(), false);
    while let Some(read) = headers.next().await {
        let (job, header) = read?;
        let wrong = match header {
            Header::Read(header) => {
                jobs.extend((header.key_epoch < newest).then_some(job));
                continue;
            }
            Header::Gone => "it is gone",
            Header::Unreadable => "its header cannot be read",
        };
        gone |= matches!(header, Header::Gone);
        unreadable.insert(job.key(cluster), wrong.to_owned());
    }
    Ok((jobs, gone))
}

/// Whether an object is sealed under another epoch than the newest.
async fn is_old(cluster: &Cluster, key: &ObjectKey) -> Result<bool, RepoError> {
    let newest = cluster.repo().keys().newest().epoch;
    match census::header(&**cluster.repo().store(), key).await? {
        Header::Gone => Err(StoreError::NotFound { key: key.clone() }.into()),
        Header::Unreadable => {
            Err(RepoError::damage(key, "its header cannot be read; `walden verify` says more"))
        }
        Header::Read(header) => Ok(header.key_epoch < newest),
    }
}

/// Moves `jobs` until `bytes_max` is reached, one at least, registered as work in progress from before the first is written.
async fn pass(
    cluster: &Cluster,
    jobs: &[Job],
    bytes_max: u64,
    progress: &dyn Progress,
) -> Result<Moved, RepoError> {
    let registration =
        Registration::create(cluster, PendingKind::Compaction, None, "moving to the newest key epoch")
            .await?;
    let passed = tokio::select! {
        passed = move_all(cluster, jobs, bytes_max, progress, &registration) => passed,
        expired = registration.keep(limits::WORK_RENEW_INTERVAL) => Err(RepoError::Conflict { reason: expired.to_string() }),
    };
    match &passed {
        Ok(_) => registration.left().await,
        // What cannot be taken back now expires.
        Err(_) => drop(tokio::time::timeout(ABANDON_LIMIT, registration.abandon()).await),
    }
    passed
}

async fn move_all(
    cluster: &Cluster,
    jobs: &[Job],
    bytes_max: u64,
    progress: &dyn Progress,
    registration: &Registration,
) -> Result<Moved, RepoError> {
    let (mut all, mut moved) = (Vec::new(), Moved::default());
    progress.stage("sealing anew", None);
    for job in jobs {
        let done = match copy(cluster, job.clone(), registration.root().number).await {
            Err(RepoError::Damage { key, reason }) if key == job.key(cluster) => {
                moved.unreadable.insert(key, reason);
                continue;
            }
            done => done?,
        };
        match &done.job {
            Job::Segment(..) => moved.segments += 1,
            Job::Manifest(_) => moved.manifests += 1,
        }
        moved.bytes += done.object_len;
        progress.advance(done.object_len);
        all.push(done);
        if moved.bytes >= bytes_max {
            break;
        }
    }
    let chunks = all.iter().any(|done| matches!(done.job, Job::Segment(ObjectKind::PagesSegment, _)));
    let committing = |root: &Root, index: &Index| {
        if chunks && backs_up(root) {
            return Err(RepoError::Conflict {
                reason: "a backup began that may rely on what was moved".into(),
            });
        }
        let expired = || RepoError::Conflict { reason: PendingError::Expired.to_string() };
        let next = registration.leave(root).ok_or_else(expired)?;
        let page = replaced(&all, index, root.number + 1)?;
        Ok::<_, RepoError>(Some(RootChange { root: next, index: IndexEdit::Add(page) }))
    };
    cluster.commit_indexed(committing).await?;
    Ok(moved)
}

/// Stores an object again under the newest epoch, and reads it back. The move was registered in root `registered`: no other was, so no
/// manifest's name is used again, not even one that a slow collection is about to remove.
async fn copy(cluster: &Cluster, job: Job, registered: u64) -> Result<Done, RepoError> {
    let repo = cluster.repo();
    let old_key = job.key(cluster);
    let id = ObjectId::random(&*repo.env().entropy);
    let (kind, mut number) = match &job {
        Job::Segment(kind, _) => (*kind, 0),
        Job::Manifest(entry) => {
            let registered = u32::try_from(registered).unwrap_or(u32::MAX);
            (ObjectKind::Manifest, registered.max(entry.manifest_number + 1))
        }
    };
    let object = repo.read_object(&old_key, kind).await?;
    loop {
        let (key, owner) = match &job {
            Job::Segment(..) => (layout::segment(cluster.name(), id), id.0),
            Job::Manifest(entry) => (layout::manifest(cluster.name(), &entry.id, number), [0; 16]),
        };
        let finished = seal(repo, &object, &old_key, &key, owner)?;
        match (&job, repo.create(&key, &finished.bytes).await?) {
            (_, Created::Ours) => {
                read_back(cluster, &key, &finished.bytes).await?;
                let (object_len, directory_offset) = (finished.bytes.len() as u64, finished.directory_offset);
                return Ok(Done { job, id, number, object_len, directory_offset });
            }
            (Job::Segment(..), Created::Taken(_)) => {
                return Err(RepoError::damage(&key, "another object has this random name"));
            }
            // Another move's, which goes on or was cut short: a name is not used again, collection removes what no root names.
            (Job::Manifest(_), Created::Taken(_)) => number += 1,
        }
    }
}

/// `object` under another name: its frames as they were packed, each one's seal checked.
fn seal(
    repo: &Repository,
    object: &OpenObject,
    old_key: &ObjectKey,
    key: &ObjectKey,
    owner: [u8; 16],
) -> Result<Finished, RepoError> {
    let header = object.header();
    let mut writer = repo.writer(header.kind, key, owner, header.number, header.writer_epoch);
    for (number, frame) in object.directory().frames.iter().enumerate() {
        let packed = object.packed_chunk(number).map_err(|error| RepoError::open(old_key, error))?;
        writer.add_packed(&packed, frame.position);
    }
    Ok(writer.finish(object.directory().meta.0.clone()))
}

async fn read_back(cluster: &Cluster, key: &ObjectKey, written: &Bytes) -> Result<(), RepoError> {
    let len = written.len() as u64;
    let mut at = 0;
    while at < len {
        let end = (at + READ_BACK_BYTES).min(len);
        if cluster.repo().read_range(key, at..end).await? != written.slice(at as usize..end as usize) {
            return Err(RepoError::damage(
                key,
                format!("bytes {at} to {end} are not those that were written"),
            ));
        }
        at = end;
    }
    Ok(())
}

/// The index's change that takes the new objects for the old; a conflict when an old one is not in the index any more.
fn replaced(all: &[Done], index: &Index, root: u64) -> Result<IndexPage, RepoError> {
    let mut page = empty_page();
    for done in all {
        match &done.job {
            Job::Segment(_, old) => {
                let wal = index.wal.iter().find(|entry| entry.id == *old);
                let pages = index.pages.iter().find(|entry| entry.id == *old);
                let kind = match (wal, pages) {
                    (Some(entry), _) => {
                        let mut entry = entry.clone();
                        (entry.id, entry.object_len) = (done.id, done.object_len);
                        entry.directory_offset = done.directory_offset;
                        page.wal.push(entry);
                        RemovedKind::Wal
                    }
                    (None, Some(entry)) => {
                        let mut entry = entry.clone();
                        (entry.id, entry.object_len) = (done.id, done.object_len);
                        entry.directory_offset = done.directory_offset;
                        page.pages.push(entry);
                        RemovedKind::Pages
                    }
                    (None, None) => return Err(gone(old)),
                };
                page.removed.push(RemovedEntry { kind, name: old.to_string(), root });
            }
            Job::Manifest(old) => {
                let now = index.backup(&old.id).filter(|now| now.manifest_number == old.manifest_number);
                let mut entry = now.ok_or_else(|| gone(&old.id))?.clone();
                let cut = layout::manifest_name(&old.id, old.manifest_number);
                page.removed.push(RemovedEntry { kind: RemovedKind::Manifest, name: cut, root });
                (entry.manifest_number, entry.manifest_len) = (done.number, done.object_len);
                page.backups.push(entry);
            }
        }
    }
    Ok(page)
}

fn gone(what: &dyn std::fmt::Display) -> RepoError {
    RepoError::Conflict { reason: format!("{what} was replaced or removed while it was moved") }
}

/// Stores the newest result of verification again under the next number, if it is under an older epoch. One that cannot be read stays
/// until the next verification takes its place.
async fn reseal_verification(cluster: &Cluster) -> Result<(), RepoError> {
    let newest = verifications::newest(cluster).await?;
    let Some(result) = newest.result else { return Ok(()) };
    if is_old(cluster, &layout::verification(cluster.name(), newest.number)).await? {
        verifications::store(cluster, |before| before.unwrap_or(&result).clone()).await?;
    }
    Ok(())
}

/// Writes the index anew if any part of it, or the root, is under an older epoch. Whether it was.
async fn reseal_index(cluster: &Cluster) -> Result<bool, RepoError> {
    let root = cluster.newest_root().await?;
    let index = cluster.index(&root).await?;
    let mut old = is_old(cluster, &layout::root(cluster.name(), root.number)).await?;
    for id in &index.objects {
        old |= is_old(cluster, &layout::index(cluster.name(), *id)).await?;
    }
    if !old {
        return Ok(false);
    }
    cluster
        .commit_indexed::<RepoError>(|root, index| {
            let index = match root.index {
                Some(_) => IndexEdit::Rewrite(index.clone().into_page()),
                None => IndexEdit::Keep,
            };
            Ok(Some(RootChange { root: root.clone(), index }))
        })
        .await?;
    Ok(true)
}
