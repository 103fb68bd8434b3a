//! `walden analyze`: where the bytes of WAL go, by resource manager and by relation. Reads the newest WAL of a cluster from the
//! repository, or a folder of WAL files, record by record.
//! Memory: a few hundred bytes a relation, [`RELATIONS_MAX`] at most, and a few MiB of WAL.

mod folder;
mod show;
mod tally;

pub use folder::folder;
pub use tally::Tally;

use super::failure::Failure;
use crate::base::{LsnRange, SegmentSize, TimelineId};
use crate::repo::walread::Reading;
use crate::repo::{Cluster, WalPiece, WalReader, WalSource, walmap};
use crate::wal::{DecodeFrom, Decoder};
use serde::Serialize;

/// Relations told apart; the rest is counted together.
pub const RELATIONS_MAX: usize = 1 << 20;
/// WAL read and decoded at once.
const STEP_BYTES: u64 = 4 << 20;
/// Damages that are told.
const UNREAD_MAX: usize = 5;

/// The document. Fields are only ever added.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Analysis {
    /// What was read: a cluster, or a folder.
    pub source: String,
    /// The timeline of the last byte.
    pub timeline: u32,
    /// The first byte.
    pub start_lsn: String,
    /// One past the last.
    pub end_lsn: String,
    /// Bytes of WAL read of them.
    pub bytes_raw: u64,
    /// Bytes they take in the repository; none for a folder.
    pub bytes_stored: Option<u64>,
    /// Where those are; none for a folder.
    pub stored: Option<StoredBytes>,
    /// Records.
    pub records: u64,
    /// Bytes of page images.
    pub bytes_images: u64,
    /// Bytes of records without their images.
    pub bytes_records: u64,
    /// Bytes left empty when a segment was switched before it was full.
    pub bytes_switches: u64,
    /// Page headers and padding, and what could not be read.
    pub bytes_overhead: u64,
    /// Page images.
    pub images: u64,
    /// Those that PostgreSQL compressed.
    pub images_compressed: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// By resource manager, the largest first.
    pub by_rmgr: Vec<RmgrBytes>,
    /// Relations with the most bytes, the largest first.
    pub relations: Vec<RelationBytes>,
    /// Relations that are not shown.
    pub relations_left_out: u64,
    /// Bytes of these, and of those beyond the first [`RELATIONS_MAX`], which are not told apart.
    pub bytes_relations_left_out: u64,
    /// Places that could not be read; the first ones are told.
    pub unread_count: u64,
    /// These.
    pub unread: Vec<String>,
}

/// Where the bytes in the repository are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct StoredBytes {
    /// Page images in delta frames, and the tuples that splits moved.
    pub bytes_delta_images: u64,
    /// Everything else in delta frames.
    pub bytes_delta_records: u64,
    /// WAL in plain frames, which is not compacted yet or stands alone, and what comes to all frames: heads, seals, directories.
    pub bytes_plain_and_overhead: u64,
}

/// What a resource manager wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RmgrBytes {
    /// Its name, as pg_waldump has it.
    pub rmgr: String,
    /// Its records.
    pub records: u64,
    /// Bytes of them without images.
    pub bytes_records: u64,
    /// Their images.
    pub images: u64,
    /// Bytes of these.
    pub bytes_images: u64,
}

/// What changes of a relation took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RelationBytes {
    /// `tablespace/database/filenumber`.
    pub relation: String,
    /// Records that change it.
    pub records: u64,
    /// Bytes of what they say about its blocks, without images.
    pub bytes_data: u64,
    /// Images of its pages.
    pub images: u64,
    /// Bytes of these.
    pub bytes_images: u64,
}

/// What was read.
#[derive(Debug)]
pub struct Read {
    source: String,
    timeline: TimelineId,
    range: LsnRange,
    /// Of the range; some may be missing.
    bytes: u64,
    stored: Option<StoredBytes>,
}

/// Reads the newest WAL of a cluster's current generation: at most `bytes_max`, back to the last gap or change of timeline.
pub async fn cluster(cluster: &Cluster, bytes_max: u64, shown: usize) -> Result<Analysis, Failure> {
    let generation = cluster.generation().await?;
    let size = SegmentSize::new(generation.segment_size.into()).map_err(|error| {
        Failure::new(super::Exit::Damage, format!("the generation of {}: {error}", cluster.name()))
    })?;
    let snapshot = walmap::load(cluster).await?;
    let Some((timeline, range, stored)) = newest(snapshot.wal.pieces(), bytes_max) else {
        let what = format!("the archive of {} has no WAL yet", cluster.name());
        return Err(Failure::new(super::Exit::NotFound, what));
    };
    let mut reader = WalReader::reading(cluster.clone(), snapshot.wal, Reading::Records);
    let mut tally = Tally::default();
    let mut decoder = Decoder::new(size, range.start, DecodeFrom::Anywhere);
    let mut at = range.start;
    while at < range.end {
        let end = at.saturating_add(STEP_BYTES).min(range.end);
        let bytes = reader.read_some(timeline, LsnRange::new(at, end)).await?;
        tally.feed(&mut decoder, at, &bytes);
        at = at.saturating_add(bytes.len() as u64);
    }
    let source = format!("cluster {}", cluster.name());
    Ok(tally.finish(Read { source, timeline, range, bytes: range.len(), stored: Some(stored) }, shown))
}

/// The newest stretch of WAL on one timeline that ends where the archive does: whole pieces of at most `bytes_max`, the last one
/// in any case. With the bytes that it takes.
fn newest(pieces: &[WalPiece], bytes_max: u64) -> Option<(TimelineId, LsnRange, StoredBytes)> {
    let last = pieces.iter().max_by_key(|piece| (piece.timeline, piece.range.end))?;
    let mut range = LsnRange::new(last.range.start, last.range.end);
    let mut stored = StoredBytes::default();
    stored.add(last);
    let mut before: Vec<&WalPiece> = pieces.iter().filter(|piece| piece.timeline == last.timeline).collect();
    before.sort_by_key(|piece| std::cmp::Reverse(piece.range.end));
    for piece in before {
        let fits = range.end.bytes_since(piece.range.start) <= bytes_max;
        if piece.range.end == range.start && piece.range.start < piece.range.end && fits {
            range = LsnRange::new(piece.range.start, range.end);
            stored.add(piece);
        }
    }
    Some((last.timeline, range, stored))
}

impl StoredBytes {
    /// All of them.
    pub fn sum(&self) -> u64 {
        self.bytes_delta_images + self.bytes_delta_records + self.bytes_plain_and_overhead
    }

    fn add(&mut self, piece: &WalPiece) {
        let (object_len, deltas) = match &piece.source {
            WalSource::Segment(entry) => (entry.object_len, entry.deltas.as_ref()),
            WalSource::Flush { object_len, .. } => (*object_len, None),
        };
        let (images, records) =
            deltas.map_or((0, 0), |made| (made.stats.image_bytes_stored, made.stats.record_bytes_stored));
        self.bytes_delta_images += images;
        self.bytes_delta_records += records;
        self.bytes_plain_and_overhead += object_len.saturating_sub(images + records);
    }
}
