//! Epochs of WAL deltas: decoding their frames, from the first on, from the repository alone. Spec: formats/deltas.md.
//!
//! An image refers to images of earlier frames of its epoch, so a frame is decoded after all those before it, or after what it needs of
//! them; where it refers to pages of the base, they are read from the backup.

use super::base_pages::{BasePages, CHUNKS_MIN};
use super::cluster::{Cluster, object_is_gone};
use super::error::RepoError;
use crate::base::limits::BLOCK_BYTES;
use crate::base::{BackupId, Lsn, LsnRange, ObjectId, ObjectKey};
use crate::delta::{
    BlockId, DeltaError, FrameDecoder, FrameTrace, FrameWants, ImageCache, Origin, Page, PageSource,
    Reference, Vouched,
};
use crate::format::wal::{DeltaEpoch, WalDeltas};
use futures_util::future::BoxFuture;
use std::collections::BTreeSet;

/// Pages of a backup that are at hand somewhere else than in the repository.
pub trait NearPages: Send + std::fmt::Debug {
    /// The backup.
    fn backup(&self) -> &BackupId;

    /// Puts the page of `block` into `page`, if it has `check` as its check.
    fn page(&mut self, block: &BlockId, check: u32, page: &mut Page) -> bool;
}

/// Where pages of a base come from: those at hand first.
struct Pages<'a> {
    near: Option<&'a mut dyn NearPages>,
    base: Option<&'a mut BasePages>,
}

impl PageSource for Pages<'_> {
    fn base_page(&mut self, block: &BlockId, page: &mut Page) -> Option<Vouched> {
        self.base.as_mut()?.base_page(block, page)
    }

    fn lend_page<'a>(
        &'a mut self,
        block: &BlockId,
        expected: u32,
        room: &'a mut Page,
    ) -> Option<(&'a Page, Vouched)> {
        if let Some(near) = &mut self.near
            && near.page(block, expected, room)
        {
            return Some((room, Vouched::BySource));
        }
        self.base.as_mut()?.lend_page(block, expected, room)
    }
}

/// What a frame does, and what is wanted of that.
type Traced<'a> = (&'a FrameTrace, &'a FrameWants);

/// Decodes the frames of one epoch in order.
#[derive(Debug)]
pub struct EpochDecoder {
    cluster: Cluster,
    id: ObjectId,
    decoder: FrameDecoder,
    cache: ImageCache,
    base: Option<BasePages>,
    next: Lsn,
}

impl EpochDecoder {
    /// A decoder of `epoch`, at its start.
    pub fn new(cluster: &Cluster, epoch: &DeltaEpoch) -> Result<EpochDecoder, RepoError> {
        let scratch = &*cluster.repo().env().scratch;
        let cache = ImageCache::for_decoding(scratch, epoch.cache_pages as usize);
        let cache = cache.map_err(|error| no_room(epoch.cache_pages, &error))?;
        Ok(EpochDecoder::with(cluster, epoch, cache))
    }

    /// The same, with a cache that an encoder can go on with.
    pub fn for_encoder(cluster: &Cluster, epoch: &DeltaEpoch) -> Result<EpochDecoder, RepoError> {
        Ok(EpochDecoder::with(cluster, epoch, image_cache(cluster, epoch.cache_pages)?))
    }

    fn with(cluster: &Cluster, epoch: &DeltaEpoch, cache: ImageCache) -> EpochDecoder {
        let (cluster, decoder) = (cluster.clone(), FrameDecoder::new());
        EpochDecoder { cluster, id: epoch.id, decoder, cache, base: None, next: epoch.start }
    }

    /// The epoch.
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// Every delta frame before this was decoded.
    pub fn position(&self) -> Lsn {
        self.next
    }

    /// The images that a later frame may refer to.
    pub fn into_cache(self) -> ImageCache {
        self.cache
    }

    /// The WAL of `frame`, which lies in the segment `key` of `deltas`: the next delta frame after those decoded before.
    pub async fn decode(
        &mut self,
        deltas: &WalDeltas,
        key: &ObjectKey,
        mut near: Option<&mut (dyn NearPages + 'static)>,
        frame: &[u8],
    ) -> Result<(LsnRange, Vec<u8>), RepoError> {
        let mut wal = Vec::new();
        if near.is_none() && deltas.base.is_some() {
            // All pages come from the repository: to find out by decoding would be to decode twice.
            let references = self.decoder.references(frame).map_err(|error| explained(key, deltas, error))?;
            let of_base = |made: &Reference| matches!(made.origin, Origin::Base { .. }).then_some(made.block);
            let blocks: Vec<BlockId> = references.iter().filter_map(of_base).collect();
            if !blocks.is_empty() {
                self.fetch(deltas, key, &blocks).await?;
            }
        }
        let mut fetched: BTreeSet<BlockId> = BTreeSet::new();
        let decoded = loop {
            let decoded = self.try_decode(deltas, near.as_deref_mut(), frame, &mut wal);
            let Err(DeltaError::MissingPages(pages)) = &decoded else { break decoded };
            // A page that was near may not be any more: recovery changes it. One that was fetched and is missing is missing for good.
            let known = fetched.len();
            fetched.extend(pages.iter().map(|page| page.block));
            if fetched.len() == known {
                break decoded;
            }
            let blocks: Vec<BlockId> = fetched.iter().copied().collect();
            self.fetch(deltas, key, &blocks).await?;
        };
        let range = decoded.map_err(|error| explained(key, deltas, error))?;
        self.next = range.end;
        Ok((range, wal))
    }

    /// The WAL of `frame`, of which `traced` wants all, with a cache that has what was wanted of the frames before. Pages of the base were
    /// fetched.
    pub fn decode_wanted(
        &mut self,
        deltas: &WalDeltas,
        key: &ObjectKey,
        frame: &[u8],
        traced: Traced<'_>,
    ) -> Result<Vec<u8>, RepoError> {
        let mut wal = Vec::new();
        let (decoder, cache, mut pages) = self.parts(deltas);
        let decoded = decoder.decode_wanted(frame, traced, cache, &mut pages, &mut wal);
        decoded.map_err(|error| explained(key, deltas, error))?;
        Ok(wal)
    }

    /// Takes of `frame` the pages that `traced` wants; pages of the base were fetched.
    pub fn pages(
        &mut self,
        deltas: &WalDeltas,
        key: &ObjectKey,
        frame: &[u8],
        traced: Traced<'_>,
    ) -> Result<(), RepoError> {
        let (decoder, cache, mut pages) = self.parts(deltas);
        let taken = decoder.pages(frame, traced, cache, &mut pages);
        taken.map(drop).map_err(|error| explained(key, deltas, error))
    }

    /// Nothing of `frame` is wanted.
    pub fn pass_over(&mut self, deltas: &WalDeltas, key: &ObjectKey, frame: &[u8]) -> Result<(), RepoError> {
        let passed = self.decoder.pass_over(frame, &mut self.cache);
        passed.map(drop).map_err(|error| explained(key, deltas, error))
    }

    /// What decodes with pages of the repository alone.
    fn parts(&mut self, deltas: &WalDeltas) -> (&mut FrameDecoder, &mut ImageCache, Pages<'_>) {
        let base = self.base.as_mut().filter(|base| Some(base.backup()) == deltas.base.as_ref());
        (&mut self.decoder, &mut self.cache, Pages { near: None, base })
    }

    /// The bytes from here up to `position` are plain frames: they leave nothing.
    pub fn skip_to(&mut self, position: Lsn) {
        self.next = self.next.max(position);
    }

    fn try_decode(
        &mut self,
        deltas: &WalDeltas,
        near: Option<&mut (dyn NearPages + 'static)>,
        frame: &[u8],
        wal: &mut Vec<u8>,
    ) -> Result<LsnRange, DeltaError> {
        let of_base = |backup: &BackupId| Some(backup) == deltas.base.as_ref();
        let mut pages = Pages {
            near: near.filter(|near| of_base(near.backup())).map(|near| near as &mut dyn NearPages),
            base: self.base.as_mut().filter(|base| of_base(base.backup())),
        };
        self.decoder.decode(frame, &mut self.cache, &mut pages, wal)
    }

    /// Fetches pages of the base of `deltas`. Boxed, so that the compiler can tell that it is [`Send`].
    pub fn fetch<'a>(
        &'a mut self,
        deltas: &'a WalDeltas,
        key: &'a ObjectKey,
        blocks: &'a [BlockId],
    ) -> BoxFuture<'a, Result<(), RepoError>> {
        Box::pin(self.fetch_now(deltas, key, blocks))
    }

    async fn fetch_now(
        &mut self,
        deltas: &WalDeltas,
        key: &ObjectKey,
        blocks: &[BlockId],
    ) -> Result<(), RepoError> {
        let Some(backup) = &deltas.base else {
            let reason = "its images refer to pages of a backup, and its directory names none";
            return Err(RepoError::damage(key, reason));
        };
        let wrapped = |error| needs_backup(key, deltas, error);
        if let Some(base) = self.base.as_mut().filter(|base| base.backup() == backup) {
            match base.prepare(blocks, usize::MAX).await {
                // Since it was opened, some of its chunks were stored anew, and collected where they were.
                Err(error) if object_is_gone(&error) => {}
                prepared => return prepared.map_err(wrapped),
            }
        }
        // There is room for one.
        self.base = None;
        let opened = BasePages::open(&self.cluster, backup, CHUNKS_MIN, None).await;
        let base = self.base.insert(opened.map_err(wrapped)?);
        base.prepare(blocks, usize::MAX).await.map_err(wrapped)
    }
}

fn explained(key: &ObjectKey, deltas: &WalDeltas, error: DeltaError) -> RepoError {
    match error {
        DeltaError::NoRoom { reason, .. } => {
            RepoError::NoRoom { bytes: u64::from(deltas.epoch.cache_pages) * BLOCK_BYTES as u64, reason }
        }
        DeltaError::MissingPages(_) => {
            let backup = deltas.base.as_ref().map_or_else(String::new, ToString::to_string);
            RepoError::damage(key, format!("backup {backup}: {error}"))
        }
        DeltaError::MissingImage { .. } => RepoError::damage(
            key,
            format!("{error}: WAL of its epoch, which begins at {}, is lost or differs", deltas.epoch.start),
        ),
        DeltaError::Differs { .. } => RepoError::damage(
            key,
            format!(
                "{error}: should it decode the next time, a page changed in memory or under the cache directory"
            ),
        ),
        error => RepoError::damage(key, error),
    }
}

/// Damage of a backup is damage of the WAL that is made of it: which, is for the reader to know.
fn needs_backup(key: &ObjectKey, deltas: &WalDeltas, error: RepoError) -> RepoError {
    if !error.is_damage() {
        return error;
    }
    let backup = deltas.base.as_ref().map_or_else(String::new, ToString::to_string);
    RepoError::damage(key, format!("it needs pages of backup {backup}: {error}"))
}

/// An empty cache of at most `pages` images, for an encoder.
pub fn image_cache(cluster: &Cluster, pages: u32) -> Result<ImageCache, RepoError> {
    let cache = ImageCache::within(&*cluster.repo().env().scratch, pages as usize);
    cache.map_err(|error| no_room(pages, &error))
}

fn no_room(pages: u32, error: &std::io::Error) -> RepoError {
    RepoError::NoRoom { bytes: u64::from(pages) * BLOCK_BYTES as u64, reason: error.to_string() }
}
