//! Index objects that were made for lost roots: each names in its header the root that it was made for. One may be of a commit that lost
//! its race, or never came to its root; so it adds what is there, and takes nothing away.

use super::index_key;
use crate::base::{Generation, ObjectId, ObjectKey};
use crate::codec::check::check_header;
use crate::codec::object::Expect;
use crate::format::header::{HEADER_BYTES, ObjectKind};
use crate::format::index::IndexPage;
use crate::format::root::Root;
use crate::repo::index::{self, Index};
use crate::repo::repository::exists;
use crate::repo::{Cluster, RepoError, layout};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::cmp::Reverse;
use std::collections::HashSet;

/// Objects looked at at once.
const LOOKS_IN_FLIGHT: usize = 16;

/// An index object that does not open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokenIndex {
    /// Which.
    pub id: ObjectId,
    /// Its name.
    pub key: String,
    /// Why.
    pub reason: String,
}

/// What was made for one lost root.
#[derive(Debug)]
pub struct Lost {
    /// Its own entries, of which everything is there.
    pub page: IndexPage,
    /// Whether all segments of chunks that it names are there: otherwise it proves no backup.
    pub is_whole: bool,
}

/// What is known of the index.
pub(super) enum LostIndex {
    /// The index of the base, and what was made for roots after it, newest first.
    Read { index: Box<Index>, lost: Vec<Lost> },
    /// The index of the base, or an object that may have been made for a root after it, does not open.
    Broken(BrokenIndex),
}

/// Reads it. A deleted cluster has none, but for what was made for generations that its name began anew with.
///
/// # Errors
/// A key epoch that is not held, a store that fails.
pub(super) async fn read(cluster: &Cluster, base: &Root) -> Result<LostIndex, RepoError> {
    let known = match (cluster.index(base).await, base.index) {
        (Ok(index), _) => index,
        (Err(error), Some(id)) if error.is_damage() => return Ok(broken(cluster, id, &error)),
        (Err(error), _) => return Err(error),
    };
    let store = cluster.repo().store();
    let base_stored = store.head(&layout::root(cluster.name(), base.number)).await?.modified_unix_micros;
    let listed = store.list(&layout::index_prefix(cluster.name())).await?;
    let read: HashSet<ObjectId> = known.objects.iter().copied().collect();
    let unread = listed.into_iter().filter_map(|meta| {
        let id = meta.key.file_name().parse::<ObjectId>().ok().filter(|id| !read.contains(id))?;
        Some((id, meta))
    });
    let looks = stream::iter(unread.collect::<Vec<_>>()).map(|(id, meta)| async move {
        let made_for = made_for(cluster, &meta.key).await?;
        // Of one that does not say for which root it was made, its age says whether that may be a lost one.
        let may_be_lost =
            made_for.map_or(meta.modified_unix_micros >= base_stored, |root| root > base.number);
        Ok::<_, RepoError>(may_be_lost.then_some((Reverse(made_for), id)))
    });
    let mut candidates: Vec<_> =
        looks.buffer_unordered(LOOKS_IN_FLIGHT).try_filter_map(async |found| Ok(found)).try_collect().await?;
    candidates.sort();
    let mut lost = Vec::new();
    for (_, id) in candidates {
        match index::read_one(cluster, id).await {
            Ok(object) => {
                let page = match base.deleted_at {
                    Some(_) => of_generations_after(base.generation, object.page),
                    None => object.page,
                };
                lost.push(what_is_there(cluster, &known, page).await?);
            }
            // Collection removed it: it was merged away long before.
            Err(error) if crate::repo::cluster::object_is_gone(&error) => {}
            Err(error) if error.is_damage() => return Ok(broken(cluster, id, &error)),
            Err(error) => return Err(error),
        }
    }
    Ok(LostIndex::Read { index: Box::new(known), lost })
}

fn broken(cluster: &Cluster, id: ObjectId, error: &RepoError) -> LostIndex {
    LostIndex::Broken(BrokenIndex { id, key: index_key(cluster, id), reason: error.to_string() })
}

/// The root that an index object was made for, if it says so.
async fn made_for(cluster: &Cluster, key: &ObjectKey) -> Result<Option<u64>, RepoError> {
    let repo = cluster.repo();
    match repo.read_range(key, 0..HEADER_BYTES as u64).await {
        Ok(head) => {
            let expect =
                Expect { repository: Some(repo.id()), key: Some(key), kind: Some(ObjectKind::Index) };
            Ok(check_header(&head, &expect).ok().map(|(header, _)| header.number))
        }
        Err(error) if error.is_damage() => Ok(None),
        Err(error) => Err(error),
    }
}

/// The entries of `page` that belong to a later generation than `generation`, with the segments of chunks, which belong to none.
fn of_generations_after(generation: Generation, mut page: IndexPage) -> IndexPage {
    page.wal.retain(|entry| entry.generation > generation);
    page.backups.retain(|backup| backup.generation > generation);
    page.gaps.retain(|gap| gap.generation > generation);
    page.histories.retain(|history| history.generation > generation);
    page.pins.retain(|pin| page.backups.iter().any(|backup| backup.id == pin.backup));
    page
}

/// The entries of `page` that `known` does not have and whose objects are there.
async fn what_is_there(cluster: &Cluster, known: &Index, page: IndexPage) -> Result<Lost, RepoError> {
    let name = cluster.name();
    let named: HashSet<ObjectId> =
        known.wal.iter().map(|entry| entry.id).chain(known.pages.iter().map(|entry| entry.id)).collect();
    let mut page = page;
    page.wal.retain(|entry| !named.contains(&entry.id));
    page.pages.retain(|entry| !named.contains(&entry.id));
    page.backups.retain(|entry| known.backup(&entry.id).is_none());
    let wal = page.wal.iter().map(|entry| layout::segment(name, entry.id));
    let pages = page.pages.iter().map(|entry| layout::segment(name, entry.id));
    let manifests = page.backups.iter().map(|entry| layout::manifest(name, &entry.id, entry.manifest_number));
    let keys: Vec<ObjectKey> = wal.chain(pages).chain(manifests).collect();
    let looks = stream::iter(keys).map(|key| async move {
        Ok::<_, RepoError>(exists(&**cluster.repo().store(), &key).await?.then_some(key))
    });
    let there: HashSet<ObjectKey> =
        looks.buffer_unordered(LOOKS_IN_FLIGHT).try_filter_map(async |key| Ok(key)).try_collect().await?;
    let pages_named = page.pages.len();
    page.wal.retain(|entry| there.contains(&layout::segment(name, entry.id)));
    page.pages.retain(|entry| there.contains(&layout::segment(name, entry.id)));
    page.backups.retain(|entry| there.contains(&layout::manifest(name, &entry.id, entry.manifest_number)));
    let is_whole = page.pages.len() == pages_named;
    Ok(Lost { page, is_whole })
}
