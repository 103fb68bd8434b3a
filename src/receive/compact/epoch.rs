//! Which epoch of deltas a segment belongs to, and the encoder of that epoch. Spec: formats/deltas.md.
//!
//! An epoch ends when a backup is registered: WAL that its recovery reads refers to nothing before it. Encoders live from pass to
//! pass; after a start, or when somebody else compacted, the epoch is decoded from the repository and gone on with.

use super::plan::Job;
use crate::base::planted::{Bug, planted};
use crate::base::{BackupId, Generation, Lsn, LsnRange, ObjectId, SegmentSize, TimelineId, limits};
use crate::delta::{Encoder, EncoderOptions, Frame, FrameStats, ImageCache, NoBase, Verify};
use crate::format::delta::SectionKind;
use crate::format::index::{BackupState, PagesEntry};
use crate::format::root::{PendingKind, Root};
use crate::format::wal::{DeltaEpoch, DeltaStats, WalDeltas};
use crate::repo::backups::state_now;
use crate::repo::chunks::ChunkIndex;
use crate::repo::cluster::object_is_gone;
use crate::repo::epochs::image_cache;
use crate::repo::spans::Spans;
use crate::repo::walmap::Snapshot;
use crate::repo::{BasePages, Cluster, Index, RepoError, WalReader};

/// WAL of one epoch: what has to be decoded to reach any place of it.
const EPOCH_BYTES_MAX: u64 = 16 << 30;
/// Bytes of a page in the cache, with its share of the history.
const CACHE_BYTES_PER_PAGE: u64 = (limits::BLOCK_BYTES + limits::BLOCK_BYTES / 8) as u64;
/// The least cache that is worth anything: with less there are no deltas.
const CACHE_PAGES_MIN: u32 = 1 << 10;
/// Chunks of the base that are read for each MiB of WAL, on the average: what is spent to store less.
const BASE_READS_PER_MIB: usize = 32;
/// Chunks of the base that may be read at once when none were read for long.
const BASE_READS_SAVED_MAX: usize = 256;

/// How deltas are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeltaOptions {
    /// Bytes of the image cache of a new epoch, and as many of the base's pages beside it.
    pub cache_bytes: u64,
}

impl Default for DeltaOptions {
    fn default() -> Self {
        DeltaOptions { cache_bytes: limits::DELTA_CACHE_BYTES }
    }
}

impl DeltaOptions {
    fn cache_pages(self) -> u32 {
        u32::try_from(self.cache_bytes / CACHE_BYTES_PER_PAGE).unwrap_or(u32::MAX)
    }

    fn base_chunks(self) -> usize {
        usize::try_from(self.cache_bytes / (256 << 10)).unwrap_or(usize::MAX)
    }

    /// The most memory for finding the base's pages among all chunks that are stored: 1 GiB, which does for 10 TB, with the cache's
    /// default.
    fn index_bytes_max(self) -> u64 {
        self.cache_bytes / 4
    }
}

/// The epochs of a compactor: the one whose encoder it has, and the next.
#[derive(Debug)]
pub struct Epochs {
    options: Option<DeltaOptions>,
    /// The bound of the cache of a new epoch: less than the options say once there was no room for that.
    cache_pages: u32,
    current: Option<EpochEncoder>,
    /// Epochs that this pass added to. What is stored of them is not all of them until it commits.
    touched: Vec<ObjectId>,
    /// Epochs that this pass decoded from the repository.
    decoded: u64,
}

/// Encodes WAL of one epoch.
#[derive(Debug)]
pub struct EpochEncoder {
    generation: Generation,
    timeline: TimelineId,
    epoch: DeltaEpoch,
    encoder: Encoder,
    /// Where the last segment ends that this process stored of it.
    end: Lsn,
    base: Option<BasePages>,
    /// The backup that is no base because it would take too much memory to find its pages.
    base_too_large: Option<BackupId>,
    base_reads: usize,
    /// Chunks of the base were not where they were found: collected, and elsewhere now, or lost.
    base_missed: bool,
    /// The segments of chunks among which the base was found.
    base_found_in: Vec<PagesEntry>,
    stats: DeltaStats,
}

impl Epochs {
    /// No epoch yet; none ever without `options`.
    pub fn new(options: Option<DeltaOptions>) -> Epochs {
        let cache_pages = options.map_or(0, DeltaOptions::cache_pages);
        Epochs { options, cache_pages, current: None, touched: Vec::new(), decoded: 0 }
    }

    /// Takes the encoder out for a pass, which puts it back when it has committed: what was encoded and not committed, also by a
    /// pass that was dropped, is nothing to go on with, and the next pass begins with what is stored.
    pub fn for_pass(&mut self) -> Epochs {
        let current = self.current.take();
        Epochs { cache_pages: self.cache_pages, current, ..Epochs::new(self.options) }
    }

    /// Ends the epoch whose segment was not what it should be.
    pub fn give_up(&mut self) {
        self.current = None;
    }

    /// Epochs that the pass decoded from the repository, to go on with them.
    pub fn decoded(&self) -> u64 {
        self.decoded
    }

    /// Segments were merged that hold delta frames of `epoch` and end at `end`: no frame is new, and the encoder may go on.
    pub fn merged(&mut self, index: &Index, epoch: &DeltaEpoch, end: Lsn) {
        if let Some(known) = self.current.as_mut().filter(|known| known.epoch.id == epoch.id)
            && known.is_newest(index)
        {
            known.end = known.end.max(end);
        }
    }

    /// The encoder for `job`; `None` when it is to have plain frames.
    pub async fn encoder(
        &mut self,
        cluster: &Cluster,
        snapshot: &Snapshot,
        reader: &mut WalReader,
        job: &Job,
    ) -> Result<Option<&mut EpochEncoder>, RepoError> {
        let Some(options) = self.options else { return Ok(None) };
        let goes_on = |epoch: &DeltaEpoch| {
            goes_on(&snapshot.root, &snapshot.index, epoch, job.start)
                && is_whole(&snapshot.index, (job.generation, job.timeline), epoch, job.start)
                && !reaches_past(&snapshot.index, (job.generation, job.timeline), epoch, job.start)
        };
        let mut known = self.current.take();
        if planted(Bug::EpochOutlived)
            && let Some(known) = &mut known
        {
            let id = ObjectId::random(&*cluster.repo().env().entropy);
            (known.epoch.id, known.epoch.start, known.epoch.root) = (id, job.start, snapshot.root.number);
        }
        let fits = |known: &EpochEncoder| {
            (known.generation, known.timeline) == (job.generation, job.timeline)
                && goes_on(&known.epoch)
                && known.end <= job.start
                && known.is_newest(&snapshot.index)
        };
        let (known, ended) = match known {
            Some(known) if fits(&known) => (Some(known), None),
            ended => (None, ended),
        };
        let all_stored = |epoch: &DeltaEpoch| !self.touched.contains(&epoch.id);
        let stored = newest_epoch(&snapshot.index, job);
        let mut stored = stored.filter(|epoch| goes_on(epoch) && all_stored(epoch));
        if let Some(broken) = known.as_ref().filter(|known| known.encoder.is_broken()) {
            self.cache_pages = broken.epoch.cache_pages / 2;
            tracing::warn!(
                pages = self.cache_pages,
                "there was no room for more pages: a smaller epoch of WAL deltas begins"
            );
            stored = None;
        }
        let known = known.filter(|known| !known.encoder.is_broken());
        let mut encoder = match (known, stored) {
            (Some(known), _) => known,
            (None, Some(epoch)) => match resume(cluster, reader, job, epoch).await {
                Ok(resumed) => {
                    self.decoded += 1;
                    resumed
                }
                // Damage of what is stored keeps nobody from storing more.
                Err(error) if error.is_damage() || error.is_no_space() => {
                    tracing::warn!(%error, "the epoch of WAL deltas cannot be gone on with; a new one begins");
                    match begin(cluster, snapshot, job, self.cache_pages, ended).await? {
                        Some(begun) => begun,
                        None => return Ok(None),
                    }
                }
                Err(error) => return Err(error),
            },
            (None, None) => match begin(cluster, snapshot, job, self.cache_pages, ended).await? {
                Some(begun) => begun,
                None => return Ok(None),
            },
        };
        let base = base_of(snapshot, encoder_segment_size(cluster, job).await?);
        encoder.set_base(cluster, &snapshot.index, base, options).await?;
        self.touched.push(encoder.epoch.id);
        Ok(Some(self.current.insert(encoder)))
    }
}

/// The size of WAL segments in the generation of `job`.
async fn encoder_segment_size(cluster: &Cluster, job: &Job) -> Result<SegmentSize, RepoError> {
    let record = cluster.read_generation(job.generation).await?;
    SegmentSize::new(u64::from(record.segment_size))
        .map_err(|error| RepoError::Configuration { reason: error.to_string() })
}

/// The newest epoch in the index that `job` may go on with.
fn newest_epoch(index: &Index, job: &Job) -> Option<DeltaEpoch> {
    let own = index.wal.iter().filter(|entry| {
        (entry.generation, entry.timeline) == (job.generation, job.timeline) && entry.end <= job.start
    });
    let newest = own.filter(|entry| entry.deltas.is_some()).max_by_key(|entry| entry.end);
    newest.and_then(|entry| entry.deltas.as_ref()).map(|deltas| deltas.epoch.clone())
}

/// Whether WAL at `at` may belong to `epoch`: it is not too long, and no backup was registered since it began.
fn goes_on(root: &Root, index: &Index, epoch: &DeltaEpoch, at: Lsn) -> bool {
    at.bytes_since(epoch.start) < EPOCH_BYTES_MAX && !registered_since(root, index, epoch.root)
}

/// Whether retention let go of nothing of `epoch` before `at`: what follows could not be decoded.
fn is_whole(index: &Index, place: (Generation, TimelineId), epoch: &DeltaEpoch, at: Lsn) -> bool {
    at <= epoch.start || !Spans::expired(&index.expired).meets(place, LsnRange::new(epoch.start, at))
}

/// Whether `epoch` has WAL past `at`: frames are made and decoded in order, so nothing before it can be added any more.
fn reaches_past(index: &Index, place: (Generation, TimelineId), epoch: &DeltaEpoch, at: Lsn) -> bool {
    let own = index.wal.iter().filter(|entry| (entry.generation, entry.timeline) == place && entry.end > at);
    own.filter_map(|entry| entry.deltas.as_ref()).any(|deltas| deltas.epoch.id == epoch.id)
}

/// Whether a backup was registered in a root after `number`.
fn registered_since(root: &Root, index: &Index, number: u64) -> bool {
    let working = root.pending.iter().filter(|work| work.kind == PendingKind::Backup);
    working.map(|work| work.root).chain(index.backups.iter().map(|backup| backup.root)).any(|at| at >= number)
}

/// The backup that images may be differences from: the newest that is restorable, and none while a newer one is being made or waits for
/// its WAL. WAL that the newer one's recovery reads must not refer to an older one. Which is newer, their WAL says: a server's clock may be
/// set back.
fn base_of(snapshot: &Snapshot, size: SegmentSize) -> Option<BackupId> {
    if snapshot.root.pending.iter().any(|work| work.kind == PendingKind::Backup) {
        return None;
    }
    let own = snapshot.index.backups.iter().filter(|backup| backup.generation == snapshot.wal.generation());
    let restorable = own.filter(|backup| backup.state != BackupState::Base);
    let newest = restorable.max_by_key(|backup| (backup.timeline, backup.stop, &backup.id))?;
    (state_now(newest, &snapshot.wal, size) != BackupState::Pending).then(|| newest.id.clone())
}

/// Refuses new delta frames that may not be committed any more: a backup was registered since, the base is gone, or the beginning of the
/// epoch.
pub fn check(root: &Root, index: &Index, job: &Job, deltas: &WalDeltas) -> Result<(), RepoError> {
    if let Some(base) = &deltas.base
        && !index.backups.iter().any(|backup| backup.id == *base)
    {
        return Err(super::conflict(format!("backup {base}, which WAL deltas refer to, is gone")));
    }
    let place = (job.generation, job.timeline);
    if !is_whole(index, place, &deltas.epoch, job.start) {
        return Err(super::conflict(
            "retention let go of WAL that this refers to: a new epoch begins".into(),
        ));
    }
    if reaches_past(index, place, &deltas.epoch, job.start) {
        return Err(super::conflict("WAL behind this was compacted meanwhile: a new epoch begins".into()));
    }
    if registered_since(root, index, deltas.epoch.root) {
        return Err(super::conflict("a backup began: WAL from here on belongs to a new epoch".into()));
    }
    Ok(())
}

/// A new epoch from `job` on, in the memory of `ended` if that is as large: to touch new memory takes the kernel a quarter of the time
/// that encoding takes. None without room for one.
async fn begin(
    cluster: &Cluster,
    snapshot: &Snapshot,
    job: &Job,
    cache_pages: u32,
    ended: Option<EpochEncoder>,
) -> Result<Option<EpochEncoder>, RepoError> {
    if cache_pages < CACHE_PAGES_MIN {
        return Ok(None);
    }
    let again = ended.map(|ended| ended.encoder.into_cache());
    let cache = match again.filter(|cache| cache.pages_max() == cache_pages as usize) {
        Some(mut cache) => {
            cache.clear();
            cache
        }
        None => match image_cache(cluster, cache_pages) {
            Ok(cache) => cache,
            Err(error) => {
                tracing::warn!(%error, "WAL is compacted without deltas");
                return Ok(None);
            }
        },
    };
    let id = ObjectId::random(&*cluster.repo().env().entropy);
    let epoch = DeltaEpoch { id, start: job.start, root: snapshot.root.number, cache_pages };
    tracing::debug!(%id, start = %job.start, cache_pages, "an epoch of WAL deltas begins");
    EpochEncoder::new(cluster, job, epoch, cache, job.start).await.map(Some)
}

/// Decodes `epoch` from the repository, to go on with it.
async fn resume(
    cluster: &Cluster,
    reader: &mut WalReader,
    job: &Job,
    epoch: DeltaEpoch,
) -> Result<EpochEncoder, RepoError> {
    tracing::info!(start = %epoch.start, "decoding the epoch of WAL deltas, to go on with it");
    let (cache, end) = reader.epoch_cache(job.timeline, &epoch).await?;
    EpochEncoder::new(cluster, job, epoch, cache, end).await
}

impl EpochEncoder {
    async fn new(
        cluster: &Cluster,
        job: &Job,
        epoch: DeltaEpoch,
        cache: ImageCache,
        end: Lsn,
    ) -> Result<EpochEncoder, RepoError> {
        let segment_size = encoder_segment_size(cluster, job).await?;
        let options = EncoderOptions {
            segment_size,
            verify: Verify::Decode,
            page_key: crate::base::clock::random_bytes(&*cluster.repo().env().entropy),
            cache_pages_max: epoch.cache_pages as usize,
        };
        Ok(EpochEncoder {
            generation: job.generation,
            timeline: job.timeline,
            encoder: Encoder::resume(options, job.start, cache),
            epoch,
            end,
            base: None,
            base_too_large: None,
            base_reads: BASE_READS_SAVED_MAX,
            base_missed: false,
            base_found_in: Vec::new(),
            stats: DeltaStats::EMPTY,
        })
    }

    /// Whether nobody else added to the epoch.
    fn is_newest(&self, index: &Index) -> bool {
        let of_epoch = |entry: &&crate::format::index::WalEntry| {
            entry.deltas.as_ref().is_some_and(|deltas| deltas.epoch.id == self.epoch.id)
        };
        index.wal.iter().filter(of_epoch).all(|entry| entry.end <= self.end)
    }

    /// Takes pages of `backup` from now on. One that cannot be read is done without.
    async fn set_base(
        &mut self,
        cluster: &Cluster,
        index: &Index,
        backup: Option<BackupId>,
        options: DeltaOptions,
    ) -> Result<(), RepoError> {
        let moved = std::mem::take(&mut self.base_missed) && self.base_found_in != index.pages;
        if !moved && self.base.as_ref().map(BasePages::backup) == backup.as_ref() {
            return Ok(());
        }
        self.base = None;
        let Some(backup) = backup else { return Ok(()) };
        let needed = ChunkIndex::bytes_for(&index.pages);
        if needed > options.index_bytes_max() {
            if self.base_too_large.as_ref() != Some(&backup) {
                tracing::warn!(
                    %backup,
                    needed_mib = needed >> 20,
                    at_most_mib = options.index_bytes_max() >> 20,
                    "WAL deltas do without pages of the backup: the index of all chunks takes too much memory; delta_cache has to be \
                     four times that"
                );
                self.base_too_large = Some(backup);
            }
            return Ok(());
        }
        match BasePages::open(cluster, &backup, options.base_chunks(), Some(self.encoder.page_key())).await {
            Ok(base) => {
                self.base = Some(base);
                self.base_found_in.clone_from(&index.pages);
            }
            Err(error) if error.is_damage() || error.is_no_space() => {
                tracing::warn!(%error, %backup, "WAL deltas do without pages of the backup");
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// A segment begins at `start`.
    pub fn begin(&mut self, start: Lsn) {
        self.encoder.seek(start);
        self.stats = DeltaStats::EMPTY;
    }

    /// Takes the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.encoder.feed(bytes);
    }

    /// The next frame of what was fed: up to its end when that is less than a frame.
    pub async fn frame(&mut self) -> Result<Frame, RepoError> {
        let frame = match &mut self.base {
            None => self.encoder.flush_frame(&mut NoBase),
            Some(base) => {
                let blocks = self.encoder.base_blocks();
                let before = base.chunks_read();
                let mut gone = false;
                match base.prepare(&blocks, self.base_reads).await {
                    Ok(()) => {}
                    // What is at hand does; of the rest, images are whole.
                    Err(error) if error.is_damage() || error.is_no_space() => {
                        tracing::debug!(%error, backup = %base.backup(), "pages of the backup cannot be had");
                        gone = object_is_gone(&error);
                    }
                    Err(error) => return Err(error),
                }
                let read = (base.chunks_read() - before) as usize;
                self.base_reads =
                    (self.base_reads.saturating_sub(read) + BASE_READS_PER_MIB).min(BASE_READS_SAVED_MAX);
                let frame = self.encoder.flush_frame(base);
                self.base_missed |= gone;
                frame
            }
        };
        let Some(frame) = frame else { unreachable!("something was fed") };
        self.end = frame.range.end;
        Ok(frame)
    }

    /// Counts a delta frame of the segment.
    pub fn count(&mut self, frame: &FrameStats) {
        let part =
            |kinds: &[SectionKind]| kinds.iter().map(|kind| frame.sections[*kind as usize]).sum::<u64>();
        let image_bytes_stored = part(&SectionKind::OF_IMAGES);
        self.stats.add(&DeltaStats {
            images: frame.images,
            images_base: frame.images_base,
            images_image: frame.images_image,
            image_bytes: frame.images_raw,
            image_bytes_stored,
            record_bytes_stored: frame.stored - image_bytes_stored,
        });
    }

    /// The segment ends at `end`: from here up to there are plain frames. What its delta frames are made of; `None` when there are none.
    pub fn finish(&mut self, end: Lsn) -> Option<WalDeltas> {
        self.end = end;
        let base = self.base.as_ref().map(|base| base.backup().clone());
        let stats = self.stats.clone();
        (stats != DeltaStats::EMPTY).then(|| WalDeltas { epoch: self.epoch.clone(), base, stats })
    }
}

#[cfg(test)]
mod tests;
