//! Deletes a cluster by the operator's order. Spec: formats/root.md, "Deleting a cluster".
//!
//! Order: one root says that it is deleted, from when on nothing of it can be read and nothing is committed to it; its streams are
//! fenced; a floor; then the objects go. Interrupted, it is done again. What keeps numbers taken stays for ever: generations, floors, fences,
//! the last root. What a writer stalled on comes later, belongs to nothing, and collection removes it.

use super::gc::{Collection, Undeleted, raise_floor, store_now};
use super::leftovers::{self, WalObject};
use crate::base::{Generation, ObjectId, ObjectKey, Timestamp};
use crate::format::header::ObjectKind;
use crate::format::index::{BackupEntry, PinEntry};
use crate::format::root::{Pending, Root};
use crate::repo::cluster::{RootChange, object_is_gone};
use crate::repo::walmap;
use crate::repo::{Cluster, Index, RepoError, Repository, fences, layout};
use crate::store::{ObjectMeta, StoreError};
use futures_util::StreamExt;
use std::time::Duration;

/// A stream that was written to within so long belongs to a receiver that runs: an idle one writes once a minute.
pub const WRITTEN_LATELY: Duration = Duration::from_secs(180);
/// Headers read at once.
const READS_IN_FLIGHT: usize = 32;

/// Whether running work hinders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Running {
    /// It does.
    Respect,
    /// It fails, and so does whoever reads.
    Override,
}

/// WAL of one generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DoomedWal {
    /// Which.
    pub generation: Generation,
    /// Its PostgreSQL's major version.
    pub major_version: u32,
    /// Bytes of WAL.
    pub bytes: u64,
    /// The server's clock in the oldest and the newest of it.
    pub times: Option<(Timestamp, Timestamp)>,
}

/// Everything that a deletion takes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Doomed {
    /// When it was deleted already: what is left is removed.
    pub deleted_at: Option<Timestamp>,
    /// Backups, oldest first.
    pub backups: Vec<BackupEntry>,
    /// WAL, by generation.
    pub wal: Vec<DoomedWal>,
    /// Pins that hold now.
    pub pins: Vec<PinEntry>,
    /// Registered work.
    pub work: Vec<Pending>,
    /// How long ago the stream that may be written to was.
    pub written_ago: Option<Duration>,
    /// Objects, and their bytes.
    pub objects: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Why nobody can say what there is.
    pub unreadable: Option<String>,
}

/// Why a cluster was not deleted.
#[derive(Debug, thiserror::Error)]
pub enum DeleteClusterError {
    /// The operator keeps some of it.
    #[error("{count} backups are pinned: {first}{}", because(.reason))]
    Pinned {
        /// How many.
        count: usize,
        /// The first.
        first: String,
        /// Why it is.
        reason: String,
    },
    /// Somebody works with it.
    #[error("{0}")]
    Running(String),
    /// The repository failed.
    #[error(transparent)]
    Repo(#[from] RepoError),
}

fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(" ({reason})") }
}

/// What a deletion removed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Purged {
    /// Objects.
    pub objects: u64,
    /// Objects that may be fences: their headers cannot be read, and they stay.
    pub may_be_fences: Vec<ObjectKey>,
    /// What the store would not remove.
    pub undeleted: Undeleted,
}

/// Looks at all that there is of `cluster`. Changes nothing.
pub async fn survey(cluster: &Cluster) -> Result<Doomed, RepoError> {
    let root = cluster.newest_root().await?;
    let mut doomed = Doomed { deleted_at: root.deleted_at, ..Doomed::default() };
    for meta in cluster.repo().store().list(&layout::cluster_prefix(cluster.name())).await? {
        doomed.objects += 1;
        doomed.bytes += meta.len;
    }
    if root.deleted_at.is_some() {
        return Ok(doomed);
    }
    doomed.work = work(cluster, &root).await?;
    match look(cluster, &mut doomed).await {
        Err(error) if error.is_damage() => doomed.unreadable = Some(error.to_string()),
        other => other?,
    }
    Ok(doomed)
}

async fn look(cluster: &Cluster, doomed: &mut Doomed) -> Result<(), RepoError> {
    let mut snapshot = walmap::load(cluster).await?;
    doomed.written_ago = written_ago(cluster, &snapshot).await?;
    doomed.pins = pins_now(cluster, &snapshot.index);
    doomed.backups = snapshot.index.backups.clone();
    doomed.backups.sort_by(|a, b| (a.stopped_at, &a.id).cmp(&(b.stopped_at, &b.id)));
    for record in cluster.generations(&snapshot.root).await? {
        snapshot = snapshot.with_generation(cluster, record.generation).await?;
        let pieces = snapshot.wal.pieces();
        let times = pieces.iter().map(|piece| piece.server_time);
        doomed.wal.push(DoomedWal {
            generation: record.generation,
            major_version: record.major_version,
            bytes: pieces.iter().map(|piece| piece.range.len()).sum(),
            times: times.clone().min().zip(times.max()),
        });
    }
    Ok(())
}

/// How long ago the newest object of the stream that may be written to was stored.
async fn written_ago(cluster: &Cluster, snapshot: &walmap::Snapshot) -> Result<Option<Duration>, RepoError> {
    use crate::repo::chain::ChainEnd;
    let open = snapshot.wal.chains().iter().rev().find(|chain| matches!(chain.end, ChainEnd::Open { .. }));
    let Some(newest) = open.and_then(|chain| chain.objects.last()) else { return Ok(None) };
    let store = cluster.repo().store();
    let stored = match store.head(&newest.key).await {
        Ok(meta) => meta.modified_unix_micros,
        Err(StoreError::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let micros = store_now(&**store, cluster).await?.saturating_sub(stored);
    Ok(Some(Duration::from_micros(u64::try_from(micros).unwrap_or(0))))
}

async fn work(cluster: &Cluster, root: &Root) -> Result<Vec<Pending>, RepoError> {
    let mut works = Vec::new();
    for entry in &root.pending {
        match cluster
            .repo()
            .read_object(&layout::pending(cluster.name(), entry.id), ObjectKind::Pending)
            .await
        {
            Ok(object) => {
                let key = layout::pending(cluster.name(), entry.id);
                works.push(object.meta().map_err(|error| RepoError::open(&key, error))?);
            }
            // It ended, or was renewed.
            Err(error) if object_is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(works)
}

fn pins_now(cluster: &Cluster, index: &Index) -> Vec<PinEntry> {
    let now = cluster.repo().env().clock.now();
    index.pins.iter().filter(|pin| pin.until.is_none_or(|until| until > now)).cloned().collect()
}

/// What of it keeps it from being deleted: pins always, running work unless it is overridden.
pub fn hinders(doomed: &Doomed, running: Running) -> Result<(), DeleteClusterError> {
    pinned(&doomed.pins)?;
    if running == Running::Override {
        return Ok(());
    }
    if let Some(reason) = &doomed.unreadable {
        return Err(DeleteClusterError::Running(format!("what it holds cannot be read: {reason}")));
    }
    if let Some(work) = doomed.work.first() {
        let count = doomed.work.len();
        return Err(DeleteClusterError::Running(format!("{count} works are registered: {}", work.holder)));
    }
    match doomed.written_ago.filter(|ago| *ago < WRITTEN_LATELY) {
        Some(ago) => {
            let reason = format!("a receiver stored WAL {} s ago", ago.as_secs());
            Err(DeleteClusterError::Running(reason))
        }
        None => Ok(()),
    }
}

fn pinned(pins: &[PinEntry]) -> Result<(), DeleteClusterError> {
    match pins.first() {
        None => Ok(()),
        Some(pin) => Err(DeleteClusterError::Pinned {
            count: pins.len(),
            first: pin.backup.to_string(),
            reason: pin.reason.clone(),
        }),
    }
}

/// Deletes `cluster`, of which `doomed` was shown to whoever decided. On `Ok` it is gone, but for what the store would not remove. If dropped
/// after its first root: nothing of it can be read any more; done again it goes on.
pub async fn delete(
    cluster: &Cluster,
    doomed: &Doomed,
    running: Running,
) -> Result<Purged, DeleteClusterError> {
    if doomed.deleted_at.is_none() {
        hinders(doomed, running)?;
        bury(cluster, doomed, running).await?;
    }
    Ok(purge(cluster).await?)
}

/// Commits that it is deleted, of the newest root: what was pinned or began meanwhile counts.
async fn bury(cluster: &Cluster, doomed: &Doomed, running: Running) -> Result<(), DeleteClusterError> {
    let at = cluster.repo().env().clock.now();
    let known: Vec<ObjectId> = doomed.work.iter().map(|work| work.id).collect();
    let next = |root: &Root| {
        if root.deleted_at.is_some() {
            return Ok(None);
        }
        let began = root.pending.iter().any(|entry| !known.contains(&entry.id));
        if began && running == Running::Respect {
            return Err(DeleteClusterError::Running("work began meanwhile".into()));
        }
        let mut next = root.clone();
        next.writer_epoch += 1;
        (next.retired, next.pending) = (Vec::new(), Vec::new());
        next.deleted_at = Some(at);
        Ok(Some(RootChange::of(next)))
    };
    match doomed.unreadable {
        Some(_) => cluster.commit(next).await?,
        None => {
            let pins = |index: &Index| pinned(&pins_now(cluster, index));
            cluster.commit_indexed(|root, index| pins(index).and_then(|()| next(root))).await?
        }
    };
    Ok(())
}

/// Fences the streams of a deleted cluster and removes everything that may go. Nothing is done to one that is not deleted.
pub async fn purge(cluster: &Cluster) -> Result<Purged, RepoError> {
    let root = cluster.newest_root().await?;
    if root.deleted_at.is_none() {
        return Ok(Purged::default());
    }
    let last = if root.streams.is_empty() {
        root
    } else {
        fences::close_all(cluster, &root).await?;
        let without = |root: &Root| {
            let closed = Root { streams: Vec::new(), ..root.clone() };
            let done = root.deleted_at.is_none() || root.streams.is_empty();
            Ok::<_, RepoError>((!done).then(|| RootChange::of(closed)))
        };
        cluster.commit(without).await?
    };
    if last.deleted_at.is_none() {
        // The name began anew meanwhile.
        return Ok(Purged::default());
    }
    let floor_root = raise_floor(cluster, &last, last.number).await?;
    let mut collection = Collection::new(cluster);
    let listed = cluster.repo().store().list(&layout::cluster_prefix(cluster.name())).await?;
    // What was listed before this root was looked for is older than whatever begins the name anew after it.
    let now = cluster.newest_root().await?;
    if now.deleted_at.is_none() || now.number != last.number {
        return Ok(Purged::default());
    }
    let judged = futures_util::stream::iter(listed).map(|meta| async move {
        let fate = fate(cluster.repo(), &meta, floor_root).await?;
        Ok::<_, RepoError>((fate, meta.key))
    });
    let mut judged = judged.buffer_unordered(READS_IN_FLIGHT);
    let (mut gone, mut may_be_fences) = (Vec::new(), Vec::new());
    while let Some(fated) = judged.next().await {
        match fated? {
            (Fate::Goes, key) => gone.push(key),
            (Fate::Stays, _) => {}
            (Fate::MayBeFence, key) => may_be_fences.push(key),
        }
    }
    drop(judged);
    may_be_fences.sort();
    let objects = collection.remove(gone).await?;
    Ok(Purged { objects, may_be_fences, undeleted: collection.undeleted })
}

/// What becomes of an object of a deleted cluster.
enum Fate {
    Goes,
    /// It keeps a number taken.
    Stays,
    /// It may be a fence, and stays as one.
    MayBeFence,
}

async fn fate(repo: &Repository, meta: &ObjectMeta, floor_root: u64) -> Result<Fate, RepoError> {
    let below_floor = || meta.key.file_name().parse::<u64>().is_ok_and(|number| number < floor_root);
    Ok(match meta.key.as_str().split('/').nth(2) {
        Some("generations" | "floors") => Fate::Stays,
        Some("roots") if !below_floor() => Fate::Stays,
        Some("wal") => match leftovers::look_at(repo, meta).await? {
            WalObject::NoFence => Fate::Goes,
            WalObject::Fence => Fate::Stays,
            WalObject::MayBeFence => Fate::MayBeFence,
        },
        _ => Fate::Goes,
    })
}
