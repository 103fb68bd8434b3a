//! `walden repair index`: makes a new index out of what lies in a repository, and commits it. [`rebuild`] puts it together, [`cover`]
//! chooses among segments of WAL; both are pure. Nothing is removed and nothing overwritten: a new index object, and a new root that
//! leads to it; what the new index does not name, collection removes only after its grace period.

pub mod cover;
pub mod rebuild;
pub mod wal;

use crate::base::{BackupId, ObjectId, ObjectKey, Progress};
use crate::codec::check::check_header;
use crate::codec::read::Expect;
use crate::format::frame::{TRAILER_BYTES, Trailer};
use crate::format::header::{HEADER_BYTES, ObjectKind};
use crate::format::manifest::ManifestMeta;
use crate::format::record::Record;
use crate::format::root::Root;
use crate::format::wal::WalMeta;
use crate::repo::cluster::RootChange;
use crate::repo::index::{self, Index, IndexEdit};
use crate::repo::roots;
use crate::repo::walread::open_segment;
use crate::repo::{Cluster, RepoError, layout};
use crate::store::ObjectMeta;
use futures_util::{StreamExt, stream};
use rebuild::{Chunks, Found, Inventory, Rebuilt};
use std::collections::HashSet;

/// Directories being read at once.
const READS_IN_FLIGHT: usize = 16;

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

/// A rebuilt index that is not committed yet.
#[derive(Debug)]
pub struct Plan {
    /// What is wrong with the one that is there.
    pub health: Health,
    /// The root that it was made for.
    pub root: Root,
    /// The index.
    pub rebuilt: Rebuilt,
    /// What cannot be read, and why.
    pub unreadable: Vec<(ObjectKey, String)>,
    /// Index objects that can be read, and what they say is known exactly.
    pub index_objects: usize,
}

impl Plan {
    /// Backups that it has.
    pub fn backups(&self) -> Vec<BackupId> {
        self.rebuilt.page.backups.iter().map(|backup| backup.id.clone()).collect()
    }
}

/// Reads everything that an index can be made of. Changes nothing.
///
/// # Errors
/// A newest root that is damaged: an index hangs on it. A store that fails.
pub async fn plan(cluster: &Cluster, progress: &dyn Progress) -> Result<Plan, RepoError> {
    let root = cluster.newest_root().await?;
    let health = match cluster.index(&root).await {
        Ok(_) => Health::Whole,
        Err(error) if error.is_damage() || matches!(error, RepoError::NoKey { .. }) => {
            Health::Broken { reason: error.to_string() }
        }
        Err(error) => return Err(error),
    };
    let KnownIndex { index, mut unreadable, objects: index_objects, root: known_root } =
        known(cluster).await?;
    let mut inventory = Inventory { known: index, ..Inventory::default() };
    take_segments(cluster, &mut inventory, progress).await?;
    take_manifests(cluster, &mut inventory).await?;
    unreadable.append(&mut inventory.unreadable);
    let ids: HashSet<ObjectId> = inventory
        .wal
        .iter()
        .map(|found| found.id)
        .chain(inventory.pages.iter().map(|found| found.id))
        .collect();
    let env = cluster.repo().env();
    let told: HashSet<ObjectKey> = unreadable.iter().map(|(key, _)| key.clone()).collect();
    // Older index objects name what was merged away and collected since; only what the current one names is missed.
    if health == Health::Whole {
        for id in rebuild::missing(&inventory.known, &ids) {
            let key = layout::segment(cluster.name(), id);
            if !told.contains(&key) {
                unreadable.push((key, "it is gone".into()));
            }
        }
    }
    let mut rebuilt = rebuild::rebuild(&root, inventory, env.clock.now(), || ObjectId::random(&*env.entropy));
    if health != Health::Whole {
        let since = known_root.map_or_else(String::new, |number| format!(" after root {number}"));
        rebuilt.notes.push(format!(
            "what had been removed{since} and was not collected yet is back: remove again what should be gone; the damaged index \
             objects go by themselves, a grace period from now"
        ));
    }
    Ok(Plan { health, root, rebuilt, unreadable, index_objects })
}

/// Commits a plan: an index object, then a root. Returns that root. Durable on return. If dropped: committed whole, or not.
///
/// # Errors
/// [`RepoError::Conflict`] when the cluster's index or streams changed since the plan was made.
pub async fn commit(cluster: &Cluster, plan: &Plan) -> Result<Root, RepoError> {
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
            let index = IndexEdit::Rewrite(plan.rebuilt.page.clone());
            Ok(Some(RootChange { root: root.clone(), index }))
        })
        .await
}

/// What index objects of committed roots say that can be read.
#[derive(Debug, Default)]
struct KnownIndex {
    index: Index,
    /// Index objects that cannot be read, and why.
    unreadable: Vec<(ObjectKey, String)>,
    /// How many can be.
    objects: usize,
    /// The newest root that one was made for.
    root: Option<u64>,
}

/// Reads what roots that are still there lead to. An index object that no root leads to proves nothing: its commit may have lost its
/// race, and what it says is removed may be in use.
async fn known(cluster: &Cluster) -> Result<KnownIndex, RepoError> {
    let mut wanted: Vec<ObjectId> = Vec::new();
    for meta in cluster.repo().store().list(&layout::roots_prefix(cluster.name())).await? {
        let Ok(number) = meta.key.file_name().parse() else { continue };
        match roots::read_root(cluster.repo(), cluster.name(), number).await {
            Ok(root) => wanted.extend(root.and_then(|root| root.index)),
            // `verify` names it.
            Err(error) if is_told(&error) => {}
            Err(error) => return Err(error),
        }
    }
    let (mut known, mut pages, mut seen) = (KnownIndex::default(), Vec::new(), HashSet::new());
    while let Some(id) = wanted.pop() {
        if !seen.insert(id) {
            continue;
        }
        match index::read_one(cluster, id).await {
            Ok(object) => {
                wanted.extend(object.levels);
                pages.push((object.root, object.page));
            }
            Err(error) if is_told(&error) => {
                known.unreadable.push((layout::index(cluster.name(), id), error.to_string()));
            }
            Err(error) => return Err(error),
        }
    }
    pages.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    known.objects = pages.len();
    known.root = pages.first().map(|(number, _)| *number);
    known.index = index::merge(pages.into_iter().map(|(_, page)| page).collect());
    Ok(known)
}

fn is_told(error: &RepoError) -> bool {
    error.is_damage() || matches!(error, RepoError::NoKey { .. })
}

/// What a segment turned out to be.
enum Segment {
    Wal(Box<Found<WalMeta>>),
    Pages(Found<Chunks>),
    Other,
}

async fn take_segments(
    cluster: &Cluster,
    inventory: &mut Inventory,
    progress: &dyn Progress,
) -> Result<(), RepoError> {
    let listed = cluster.repo().store().list(&layout::segments_prefix(cluster.name())).await?;
    progress.stage("reading directories", Some(listed.iter().map(|meta| meta.len).sum()));
    let reads = stream::iter(listed).map(|meta| async move {
        let read = read_segment(cluster, &meta).await;
        (meta, read)
    });
    let mut reads = std::pin::pin!(reads.buffer_unordered(READS_IN_FLIGHT));
    while let Some((meta, read)) = reads.next().await {
        progress.advance(meta.len);
        match read {
            Ok(Segment::Wal(found)) => inventory.wal.push(*found),
            Ok(Segment::Pages(found)) => inventory.pages.push(found),
            Ok(Segment::Other) => {}
            Err(error) if is_told(&error) => inventory.unreadable.push((meta.key, error.to_string())),
            Err(error) => return Err(error),
        }
    }
    inventory.wal.sort_by_key(|found| found.id);
    inventory.pages.sort_by_key(|found| found.id);
    Ok(())
}

/// Reads a segment's header, trailer and directory.
async fn read_segment(cluster: &Cluster, meta: &ObjectMeta) -> Result<Segment, RepoError> {
    let (repo, key, len) = (cluster.repo(), &meta.key, meta.len);
    let Ok(id) = key.file_name().parse::<ObjectId>() else { return Ok(Segment::Other) };
    let tail = len.checked_sub(TRAILER_BYTES as u64).filter(|tail| *tail >= HEADER_BYTES as u64);
    let Some(tail) = tail else { return Err(RepoError::damage(key, format!("{len} bytes are no segment"))) };
    let head = repo.read_range(key, 0..HEADER_BYTES as u64).await?;
    let expect = Expect { repository: Some(repo.id()), key: Some(key), kind: None };
    let (header, _) = check_header(&head, &expect).map_err(|error| RepoError::open(key, error))?;
    let trailer = repo.read_range(key, tail..len).await?;
    let trailer = Trailer::decode(&trailer, len).map_err(|error| RepoError::damage(key, error))?;
    let directory_offset = trailer.directory_offset;
    let (_, directory) = match header.kind {
        kind @ (ObjectKind::WalSegment | ObjectKind::PagesSegment) => {
            open_segment(cluster, key, kind, directory_offset, len).await?
        }
        _ => return Ok(Segment::Other),
    };
    Ok(match header.kind {
        ObjectKind::WalSegment => {
            let what = WalMeta::decode(&directory.meta.0).map_err(|error| RepoError::damage(key, error))?;
            Segment::Wal(Box::new(Found { id, object_len: len, directory_offset, what }))
        }
        _ => {
            let plain_bytes = directory.frames.iter().map(|frame| u64::from(frame.plain_len)).sum();
            let what = Chunks { count: directory.frames.len() as u32, plain_bytes };
            Segment::Pages(Found { id, object_len: len, directory_offset, what })
        }
    })
}

async fn take_manifests(cluster: &Cluster, inventory: &mut Inventory) -> Result<(), RepoError> {
    for meta in cluster.repo().store().list(&layout::manifests_prefix(cluster.name())).await? {
        let read = async {
            let object = cluster.repo().read_object(&meta.key, ObjectKind::Manifest).await?;
            object.meta::<ManifestMeta>().map_err(|error| RepoError::open(&meta.key, error))
        };
        match read.await {
            Ok(manifest) => inventory.take_manifest(manifest, meta.key.file_name(), meta.len),
            Err(error) if is_told(&error) => inventory.unreadable.push((meta.key, error.to_string())),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
