//! What is sealed under each key epoch, by the headers of all objects: they are plain, so no key is needed. Reads 160 bytes of each.
//! Objects under the lasting key belong to no epoch and are not counted. Spec: formats/object.md.

use crate::base::{ObjectKey, Progress};
use crate::codec::check::check_header;
use crate::codec::read::Expect;
use crate::format::header::{HEADER_BYTES, ObjectHeader, ObjectKind};
use crate::repo::{RepoError, layout};
use crate::store::{Store, StoreError};
use futures_util::StreamExt;
use std::collections::{BTreeMap, BTreeSet};

/// Headers read at once.
const READS_IN_FLIGHT: usize = 32;

/// Objects and their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// How many.
    pub objects: u64,
    /// Bytes of them.
    pub bytes: u64,
}

impl Tally {
    /// One more object.
    pub fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes += bytes;
    }
}

/// What kinds of objects an epoch seals.
pub type Kinds = BTreeMap<Kind, Tally>;

/// A kind of object, as people are told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Roots.
    Roots,
    /// Parts of the index.
    Index,
    /// WAL as received.
    Flushes,
    /// Compacted WAL.
    WalSegments,
    /// Chunks of backups.
    ChunkSegments,
    /// Manifests.
    Manifests,
    /// Work in progress.
    Pending,
    /// Results of verification.
    Verifications,
}

impl Kind {
    /// The kind of an object that epochs seal; `None` for those under the lasting key.
    pub fn of(kind: ObjectKind) -> Option<Kind> {
        match kind {
            ObjectKind::Root => Some(Kind::Roots),
            ObjectKind::Index => Some(Kind::Index),
            ObjectKind::Flush => Some(Kind::Flushes),
            ObjectKind::WalSegment | ObjectKind::LogicalSegment => Some(Kind::WalSegments),
            ObjectKind::PagesSegment => Some(Kind::ChunkSegments),
            ObjectKind::Manifest => Some(Kind::Manifests),
            ObjectKind::Pending => Some(Kind::Pending),
            ObjectKind::Verification => Some(Kind::Verifications),
            ObjectKind::Fence | ObjectKind::Floor | ObjectKind::Generation | ObjectKind::Journal => None,
        }
    }

    /// Its name, in plural.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Roots => "roots",
            Kind::Index => "index objects",
            Kind::Flushes => "flush objects",
            Kind::WalSegments => "WAL segments",
            Kind::ChunkSegments => "segments of chunks",
            Kind::Manifests => "manifests",
            Kind::Pending => "pending entries",
            Kind::Verifications => "results of verification",
        }
    }
}

/// What was counted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Census {
    /// By epoch.
    pub epochs: BTreeMap<u32, Kinds>,
    /// Objects whose header cannot be read: `walden verify` says what is wrong with them.
    pub unreadable: u64,
}

/// An object and what its header says.
#[derive(Debug, Clone)]
pub struct Counted {
    /// Its key.
    pub key: ObjectKey,
    /// Its header; `None` when it cannot be read.
    pub header: Option<ObjectHeader>,
    /// Its bytes.
    pub len: u64,
}

/// Counts every object that a list shows.
pub async fn count(store: &dyn Store, progress: &dyn Progress) -> Result<Census, RepoError> {
    let mut census = Census::default();
    each(store, BTreeSet::new(), progress, |counted| {
        match counted.header.map(|header| (Kind::of(header.kind), header.key_epoch)) {
            Some((Some(kind), epoch)) => {
                census.epochs.entry(epoch).or_default().entry(kind).or_default().add(counted.len);
            }
            Some((None, _)) => {}
            None => census.unreadable += 1,
        }
    })
    .await?;
    Ok(census)
}

/// Tells `found` of every object of a cluster that a list shows, and of those `named`, whatever the list misses.
pub async fn each(
    store: &dyn Store,
    named: BTreeSet<ObjectKey>,
    progress: &dyn Progress,
    mut found: impl FnMut(Counted),
) -> Result<(), RepoError> {
    let mut all: BTreeMap<ObjectKey, Option<u64>> = named.into_iter().map(|key| (key, None)).collect();
    let listed = store.list(layout::CLUSTERS_PREFIX).await?;
    all.extend(listed.into_iter().map(|meta| (meta.key, Some(meta.len))));
    progress.stage("reading headers", Some((all.len() * HEADER_BYTES) as u64));
    let mut reads = futures_util::stream::iter(all)
        .map(|(key, len)| async move { look(store, key, len).await })
        .buffer_unordered(READS_IN_FLIGHT);
    while let Some(counted) = reads.next().await {
        progress.advance(HEADER_BYTES as u64);
        counted?.into_iter().for_each(&mut found);
    }
    Ok(())
}

/// One object; `None` when it is not there any more.
async fn look(store: &dyn Store, key: ObjectKey, len: Option<u64>) -> Result<Option<Counted>, RepoError> {
    let header = match header(store, &key).await? {
        Header::Gone => return Ok(None),
        Header::Unreadable => None,
        Header::Read(header) => Some(*header),
    };
    let len = match len {
        Some(len) => len,
        None => match store.head(&key).await {
            Ok(meta) => meta.len,
            Err(StoreError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        },
    };
    Ok(Some(Counted { key, header, len }))
}

/// What the start of an object says.
#[derive(Debug)]
pub enum Header {
    /// The object is not there.
    Gone,
    /// It is no header, or not of this object.
    Unreadable,
    /// Its header.
    Read(Box<ObjectHeader>),
}

/// Reads the header of an object.
pub async fn header(store: &dyn Store, key: &ObjectKey) -> Result<Header, RepoError> {
    let bytes = match store.get_range(key, 0..HEADER_BYTES as u64).await {
        Ok(bytes) => bytes,
        Err(StoreError::NotFound { .. }) => return Ok(Header::Gone),
        Err(StoreError::Short { .. }) => return Ok(Header::Unreadable),
        Err(error) => return Err(error.into()),
    };
    let expect = Expect { repository: None, key: Some(key), kind: None };
    Ok(match check_header(&bytes, &expect) {
        Ok((header, _)) => Header::Read(Box::new(header)),
        Err(_) => Header::Unreadable,
    })
}
