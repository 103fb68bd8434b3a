//! What is left of streams and generations that no root leads to: of a cluster that was deleted and whose name began anew, of a writer
//! that was held up. What the newest root names, or waits for collection, is none of it. Spec: formats/layout.md.
//!
//! A fence stays for ever, or its number could be won again; so does what may be one.

use crate::base::{Generation, ObjectKey, StreamId};
use crate::codec::OpenError;
use crate::codec::object::{Expect, check_header};
use crate::format::header::{HEADER_BYTES, ObjectKind};
use crate::format::root::{RetiredFlush, Root};
use crate::repo::fences::FENCE_BYTES_MAX;
use crate::repo::{Cluster, Index, RepoError, Repository, layout};
use crate::store::{ObjectMeta, StoreError};
use futures_util::StreamExt;
use std::collections::{BTreeMap, BTreeSet};

/// Headers read at once.
const READS_IN_FLIGHT: usize = 32;

/// What an object below `wal/` is, as far as removing it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WalObject {
    /// A fence.
    Fence,
    /// It is too short for anything but a fence, or a flush object without WAL, and its header does not say which; or a newer walden wrote it.
    MayBeFence,
    /// A flush object, or gone.
    NoFence,
}

/// What lies at the place of `meta`.
pub(super) async fn look_at(repo: &Repository, meta: &ObjectMeta) -> Result<WalObject, RepoError> {
    let unknown = if meta.len > FENCE_BYTES_MAX { WalObject::NoFence } else { WalObject::MayBeFence };
    let bytes = match repo.read_range(&meta.key, 0..HEADER_BYTES as u64).await {
        Ok(bytes) => bytes,
        Err(RepoError::Store(StoreError::NotFound { .. })) => return Ok(WalObject::NoFence),
        // Too short for a header, or on a bad sector.
        Err(error) if error.is_damage() => return Ok(unknown),
        Err(error) => return Err(error),
    };
    let expect = Expect { repository: Some(repo.id()), key: Some(&meta.key), kind: None };
    Ok(match check_header(&bytes, &expect) {
        Ok((header, _)) if header.kind == ObjectKind::Fence => WalObject::Fence,
        Ok(_) => WalObject::NoFence,
        Err(OpenError::Newer(_)) => WalObject::MayBeFence,
        Err(_) => unknown,
    })
}

/// Flush objects of `run` but for what may be the fence of their stream: a loss was recorded that was none.
pub(super) async fn without_fences(
    cluster: &Cluster,
    run: &RetiredFlush,
) -> Result<Vec<ObjectKey>, RepoError> {
    let (repo, name) = (cluster.repo(), cluster.name());
    let listed = repo.store().list(&layout::stream_prefix(name, run.stream)).await?;
    let long = listed.into_iter().filter(|meta| meta.len > FENCE_BYTES_MAX);
    let long: BTreeSet<ObjectKey> = long.map(|meta| meta.key).collect();
    let keys = (run.from..run.to).map(|number| layout::flush(name, run.stream, number));
    let judged = futures_util::stream::iter(keys).map(|key| {
        let is_long = long.contains(&key);
        async move {
            if is_long {
                return Ok((key, WalObject::NoFence));
            }
            match repo.store().head(&key).await {
                Ok(meta) => Ok((key, look_at(repo, &meta).await?)),
                Err(StoreError::NotFound { .. }) => Ok((key, WalObject::NoFence)),
                Err(error) => Err(RepoError::from(error)),
            }
        }
    });
    let mut judged = std::pin::pin!(judged.buffered(READS_IN_FLIGHT));
    let mut keys = Vec::new();
    while let Some(one) = judged.next().await {
        match one? {
            (key, WalObject::NoFence) => keys.push(key),
            (key, WalObject::Fence | WalObject::MayBeFence) => stays(&key),
        }
    }
    Ok(keys)
}

fn stays(key: &ObjectKey) {
    tracing::warn!(%key, "its header cannot be read: it may be the fence that keeps its number taken, and stays");
}

/// Objects that no root leads to, and that are older than `cutoff`.
pub(super) async fn find(cluster: &Cluster, cutoff: i64) -> Result<Vec<ObjectKey>, RepoError> {
    let store = &**cluster.repo().store();
    // Listed before the root is read: a stream is named by a root before anything is stored in it, so what is listed and not named by
    // then has left the root.
    let flushes = store.list(&layout::flushes_prefix(cluster.name())).await?;
    let verifications = store.list(&layout::verifications_prefix(cluster.name())).await?;
    let root = cluster.newest_root().await?;
    let index = cluster.index(&root).await?;
    let mut found = void_flushes(cluster.repo(), &root, flushes, cutoff).await?;
    found.extend(of_nothing_left(cluster, &root, &index, verifications, cutoff).await?);
    Ok(found)
}

/// Flush objects of streams that `root` does not name, and that do not wait for collection.
async fn void_flushes(
    repo: &Repository,
    root: &Root,
    listed: Vec<ObjectMeta>,
    cutoff: i64,
) -> Result<Vec<ObjectKey>, RepoError> {
    let mut by_stream: BTreeMap<StreamId, Vec<ObjectMeta>> = BTreeMap::new();
    for meta in listed {
        let Some((stream, number)) = layout::parse_flush(&meta.key) else { continue };
        let waits =
            root.retired.iter().any(|run| run.stream == stream && (run.from..run.to).contains(&number));
        if !waits && !root.streams.iter().any(|named| named.id == stream) {
            by_stream.entry(stream).or_default().push(meta);
        }
    }
    // A fence alone is what is left of every stream there ever was: nobody reads them all each time.
    by_stream.retain(|_, metas| metas.len() > 1 || metas.iter().any(|meta| meta.len > FENCE_BYTES_MAX));
    let old = by_stream.into_values().flatten().filter(|meta| meta.modified_unix_micros < cutoff);
    let judged =
        futures_util::stream::iter(old).map(|meta| async move { (look_at(repo, &meta).await, meta.key) });
    let mut judged = std::pin::pin!(judged.buffer_unordered(READS_IN_FLIGHT));
    let mut void = Vec::new();
    while let Some((is, key)) = judged.next().await {
        match is? {
            WalObject::NoFence => void.push(key),
            WalObject::Fence => {}
            WalObject::MayBeFence => stays(&key),
        }
    }
    Ok(void)
}

/// Results of verification from before the oldest generation of which anything is left: they speak of what is gone. The newest stays
/// whenever it was made: a generation's object that was lost and put back is younger than it is.
async fn of_nothing_left(
    cluster: &Cluster,
    root: &Root,
    index: &Index,
    listed: Vec<ObjectMeta>,
    cutoff: i64,
) -> Result<Vec<ObjectKey>, RepoError> {
    let oldest = oldest_generation(root, index);
    let begun = match cluster.repo().store().head(&layout::generation(cluster.name(), oldest)).await {
        Ok(meta) => meta.modified_unix_micros,
        // It is lost, and nobody knows when that generation began.
        Err(StoreError::NotFound { .. }) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let newest = listed.iter().map(|meta| meta.key.clone()).max();
    let before = listed
        .into_iter()
        .filter(|meta| meta.modified_unix_micros < cutoff.min(begun) && Some(&meta.key) != newest.as_ref());
    Ok(before.map(|meta| meta.key).collect())
}

fn oldest_generation(root: &Root, index: &Index) -> Generation {
    let streams = root.streams.iter().map(|stream| stream.generation);
    let wal = index.wal.iter().map(|entry| entry.generation);
    let backups = index.backups.iter().map(|backup| backup.generation);
    streams.chain(wal).chain(backups).fold(root.generation, Generation::min)
}
