//! An object that a list shows, opened by what it says of itself: header, trailer, directory. No index is asked, and of an object that
//! is no segment or manifest of ours no more than a header's bytes are read, however long it is.

use super::cluster::Cluster;
use super::error::RepoError;
use super::layout;
use super::walread::open_segment;
use crate::base::{BackupId, ObjectId, ObjectKey};
use crate::codec::check::check_header;
use crate::codec::object::{Expect, OpenObject};
use crate::format::directory::Directory;
use crate::format::frame::{TRAILER_BYTES, Trailer};
use crate::format::header::{HEADER_BYTES, ObjectHeader, ObjectKind};
use crate::format::manifest::ManifestMeta;

/// A segment that opens.
#[derive(Debug)]
pub struct ListedSegment {
    /// Its id, as in its name.
    pub id: ObjectId,
    /// What it holds.
    pub kind: ObjectKind,
    /// Its bytes.
    pub object_len: u64,
    /// Where its directory frame's head begins.
    pub directory_offset: u64,
    /// Its directory.
    pub directory: Directory,
}

/// Opens the segment `key` of `len` bytes; `None` for what is neither WAL nor chunks.
///
/// # Errors
/// Damage, a key epoch that is not held, a store that fails.
pub async fn open_listed_segment(
    cluster: &Cluster,
    key: &ObjectKey,
    len: u64,
) -> Result<Option<ListedSegment>, RepoError> {
    let Ok(id) = key.file_name().parse::<ObjectId>() else { return Ok(None) };
    let kind = match read_header(cluster, key, len).await?.kind {
        kind @ (ObjectKind::WalSegment | ObjectKind::PagesSegment) => kind,
        _ => return Ok(None),
    };
    let tail = len - TRAILER_BYTES as u64;
    let trailer = cluster.repo().read_range(key, tail..len).await?;
    let trailer = Trailer::decode(&trailer, len).map_err(|error| RepoError::damage(key, error))?;
    let directory_offset = trailer.directory_offset;
    let (_, directory) = open_segment(cluster, key, kind, directory_offset, len).await?;
    Ok(Some(ListedSegment { id, kind, object_len: len, directory_offset, directory }))
}

/// What a name under `backups/` names: a backup, and the number of its manifest object.
pub fn manifest_of_name(cluster: &Cluster, key: &ObjectKey) -> Option<(BackupId, u32)> {
    let name = key.file_name();
    let (id, number) = match name.split_once('-') {
        Some((id, number)) => (id.parse().ok()?, number.parse().ok()?),
        None => (name.parse().ok()?, 0),
    };
    (layout::manifest(cluster.name(), &id, number) == *key).then_some((id, number))
}

/// Opens the manifest `key` of `len` bytes.
///
/// # Errors
/// Damage, a key epoch that is not held, a store that fails.
pub async fn open_listed_manifest(
    cluster: &Cluster,
    key: &ObjectKey,
    len: u64,
) -> Result<ManifestMeta, RepoError> {
    let header = read_header(cluster, key, len).await?;
    if header.kind != ObjectKind::Manifest {
        return Err(RepoError::damage(key, format!("it is a {:?}, and no manifest", header.kind)));
    }
    let object: OpenObject = cluster.repo().read_object(key, ObjectKind::Manifest).await?;
    let meta: ManifestMeta = object.meta().map_err(|error| RepoError::open(key, error))?;
    let named = manifest_of_name(cluster, key);
    if named.is_none_or(|(id, _)| id != meta.id) || meta.cluster != *cluster.name() {
        return Err(RepoError::damage(key, format!("says it is backup {} of {}", meta.id, meta.cluster)));
    }
    Ok(meta)
}

async fn read_header(cluster: &Cluster, key: &ObjectKey, len: u64) -> Result<ObjectHeader, RepoError> {
    if len < (HEADER_BYTES + TRAILER_BYTES) as u64 {
        return Err(RepoError::damage(key, format!("{len} bytes are no object")));
    }
    let repo = cluster.repo();
    let head = repo.read_range(key, 0..HEADER_BYTES as u64).await?;
    let expect = Expect { repository: Some(repo.id()), key: Some(key), kind: None };
    let (header, _) = check_header(&head, &expect).map_err(|error| RepoError::open(key, error))?;
    Ok(header)
}
