//! Reading durable WAL back, in order, from whatever holds it. Every byte is checked by seal and chunk id.

use super::cluster::{Cluster, object_is_gone};
use super::error::RepoError;
use super::layout;
use super::walmap::{self, WalMap, WalPiece, WalSource};
use crate::base::{Lsn, LsnRange, ObjectKey, TimelineId};
use crate::codec::OpenError;
use crate::codec::object::{Expect, ObjectReader, OpenObject, PackedChunk, stored_frame_len};
use crate::format::directory::{Directory, FrameEntry};
use crate::format::frame::TRAILER_BYTES;
use crate::format::header::{HEADER_BYTES, ObjectKind};
use crate::format::index::WalEntry;
use bytes::Bytes;

/// Stored bytes that one ranged read of a segment fetches, about.
const READ_BYTES: u64 = 4 << 20;
/// Times a read starts again because compaction and collection moved what it wanted.
const RELOADS_MAX: u32 = 5;

/// Reads ranges of durable WAL.
#[derive(Debug)]
pub struct WalReader {
    cluster: Cluster,
    map: WalMap,
    open: Option<OpenPiece>,
}

/// The piece read last, kept open.
#[derive(Debug)]
enum OpenPiece {
    Segment { entry: Box<WalEntry>, key: ObjectKey, reader: ObjectReader, directory: Directory },
    Flush { source: WalSource, key: ObjectKey, object: OpenObject },
}

impl WalReader {
    /// Reads what `map` covers.
    pub fn new(cluster: Cluster, map: WalMap) -> WalReader {
        WalReader { cluster, map, open: None }
    }

    /// What it covers; newer after a read that had to look again.
    pub fn map(&self) -> &WalMap {
        &self.map
    }

    /// All bytes of `range` on `timeline`. For ranges that fit in memory.
    pub async fn read(&mut self, timeline: TimelineId, range: LsnRange) -> Result<Vec<u8>, RepoError> {
        let mut bytes = Vec::with_capacity(usize::try_from(range.len()).unwrap_or(0));
        let mut at = range.start;
        while at < range.end {
            let part = self.read_some(timeline, LsnRange::new(at, range.end)).await?;
            at = at.saturating_add(part.len() as u64);
            bytes.extend_from_slice(&part);
        }
        Ok(bytes)
    }

    /// Bytes from `range.start` on, at least one and at most up to `range.end`; a few MiB at a time.
    /// [`RepoError::NotFound`] when that byte is not durable.
    pub async fn read_some(&mut self, timeline: TimelineId, range: LsnRange) -> Result<Bytes, RepoError> {
        let mut reloads = 0;
        loop {
            match self.try_read(timeline, range).await {
                Err(error) if object_is_gone(&error) && reloads < RELOADS_MAX => {
                    reloads += 1;
                    self.open = None;
                    self.map = walmap::load(&self.cluster).await?.wal;
                }
                other => return other,
            }
        }
    }

    async fn try_read(&mut self, timeline: TimelineId, range: LsnRange) -> Result<Bytes, RepoError> {
        let cluster = self.cluster.clone();
        let (open, end) = self.open_at(timeline, range.start).await?;
        open.read(&cluster, LsnRange::new(range.start, range.end.min(end))).await
    }

    /// The frame that holds exactly `range` as it was packed, if a flush object has such a one: to be stored again without
    /// unpacking it. Its seal was checked; whoever unpacks it checks the rest.
    pub async fn packed(
        &mut self,
        timeline: TimelineId,
        range: LsnRange,
    ) -> Result<Option<PackedChunk>, RepoError> {
        match self.open_at(timeline, range.start).await {
            Ok((open, _)) => open.packed(range),
            // Reading it finds out where it is now.
            Err(error) if object_is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What holds the byte at `at`, and where that piece ends.
    async fn open_at(&mut self, timeline: TimelineId, at: Lsn) -> Result<(&OpenPiece, Lsn), RepoError> {
        let wanted = LsnRange::new(at, at.saturating_add(1));
        let Some(piece) = self.map.overlapping(timeline, wanted).next().cloned() else {
            let what = format!("WAL at {at} on timeline {timeline} of cluster {}", self.cluster.name());
            return Err(RepoError::NotFound { what, url: self.cluster.repo().store().url() });
        };
        if !self.open.as_ref().is_some_and(|open| open.is_of(&piece.source)) {
            self.open = Some(open(&self.cluster, &piece).await?);
        }
        match &self.open {
            Some(open) => Ok((open, piece.range.end)),
            None => unreachable!("opened above"),
        }
    }
}

async fn open(cluster: &Cluster, piece: &WalPiece) -> Result<OpenPiece, RepoError> {
    let repo = cluster.repo();
    match &piece.source {
        WalSource::Flush { stream, number, .. } => {
            let key = layout::flush(cluster.name(), *stream, *number);
            let object = repo.read_object(&key, ObjectKind::Flush).await?;
            Ok(OpenPiece::Flush { source: piece.source.clone(), key, object })
        }
        WalSource::Segment(entry) => {
            let key = layout::segment(cluster.name(), entry.id);
            let (reader, directory) =
                open_segment(cluster, &key, ObjectKind::WalSegment, entry.directory_offset, entry.object_len)
                    .await?;
            Ok(OpenPiece::Segment { entry: entry.clone(), key, reader, directory })
        }
    }
}

/// Opens a segment by two ranged reads: its header, its directory and trailer.
pub async fn open_segment(
    cluster: &Cluster,
    key: &ObjectKey,
    kind: ObjectKind,
    directory_offset: u64,
    object_len: u64,
) -> Result<(ObjectReader, Directory), RepoError> {
    let repo = cluster.repo();
    if directory_offset < HEADER_BYTES as u64 || object_len < directory_offset + TRAILER_BYTES as u64 {
        return Err(RepoError::damage(key, "the index gives it an impossible directory offset"));
    }
    let head = repo.read_range(key, 0..HEADER_BYTES as u64).await?;
    let expect = Expect { repository: Some(repo.id()), key: Some(key), kind: Some(kind) };
    let wrong = |error: OpenError| RepoError::open(key, error);
    let reader = ObjectReader::open(&head, repo.keys(), &expect).map_err(wrong)?;
    let tail = repo.read_range(key, directory_offset..object_len).await?;
    let (frame, trailer) = tail.split_at(tail.len().saturating_sub(TRAILER_BYTES));
    let trailer = crate::format::frame::Trailer::decode(trailer, object_len).map_err(|e| wrong(e.into()))?;
    let directory = reader.directory(trailer.frame_count, frame).map_err(wrong)?;
    Ok((reader, directory))
}

/// Reads a WAL segment back, a few MiB at a time, and checks every chunk of it.
pub async fn check_segment(
    cluster: &Cluster,
    key: &ObjectKey,
    directory_offset: u64,
    object_len: u64,
) -> Result<(), RepoError> {
    let (reader, directory) =
        open_segment(cluster, key, ObjectKind::WalSegment, directory_offset, object_len).await?;
    let mut first = 0;
    while first < directory.frames.len() {
        let span = span(&directory.frames, first, Lsn::MAX);
        first += read_span(cluster, key, &reader, &directory, first, span).await?.len();
    }
    Ok(())
}

/// The chunks of the frames from `first` on, whose stored bytes are `span`, checked.
async fn read_span(
    cluster: &Cluster,
    key: &ObjectKey,
    reader: &ObjectReader,
    directory: &Directory,
    first: usize,
    span: std::ops::Range<u64>,
) -> Result<Vec<Vec<u8>>, RepoError> {
    let stored = cluster.repo().read_range(key, span.clone()).await?;
    let mut chunks = Vec::new();
    for (number, entry) in directory.frames.iter().enumerate().skip(first) {
        let end = entry.offset + stored_frame_len(entry.sealed_len);
        if end > span.end {
            break;
        }
        let frame = stored.slice((entry.offset - span.start) as usize..(end - span.start) as usize);
        let chunk = reader.chunk(number as u64, entry, &frame, cluster.repo().keys());
        chunks.push(chunk.map_err(|error| RepoError::open(key, error))?);
    }
    Ok(chunks)
}

impl OpenPiece {
    fn is_of(&self, wanted: &WalSource) -> bool {
        match (self, wanted) {
            (OpenPiece::Segment { entry, .. }, WalSource::Segment(other)) => entry.id == other.id,
            (OpenPiece::Flush { source, .. }, other) => source == other,
            _ => false,
        }
    }

    /// The frame that holds exactly `range`, if the whole object is at hand.
    fn packed(&self, range: LsnRange) -> Result<Option<PackedChunk>, RepoError> {
        let OpenPiece::Flush { key, object, .. } = self else { return Ok(None) };
        let (number, entry) = frame_at(key, &object.directory().frames, range.start)?;
        if entry.position != range.start.get() || u64::from(entry.plain_len) != range.len() {
            return Ok(None);
        }
        object.packed_chunk(number).map(Some).map_err(|error| RepoError::open(key, error))
    }

    /// The bytes of whole frames from `range.start` on, cut to `range`.
    async fn read(&self, cluster: &Cluster, range: LsnRange) -> Result<Bytes, RepoError> {
        let keys = cluster.repo().keys();
        match self {
            OpenPiece::Flush { key, object, .. } => {
                let frames = &object.directory().frames;
                let (number, entry) = frame_at(key, frames, range.start)?;
                let chunk = object.chunk(number, keys).map_err(|error| RepoError::open(key, error))?;
                Ok(cut(chunk, entry, range))
            }
            OpenPiece::Segment { key, reader, directory, .. } => {
                let (first, entry) = frame_at(key, &directory.frames, range.start)?;
                let span = span(&directory.frames, first, range.end);
                let chunks = read_span(cluster, key, reader, directory, first, span).await?;
                Ok(cut(chunks.concat(), entry, range))
            }
        }
    }
}

/// The frame that holds the byte at `at`.
fn frame_at<'a>(
    key: &ObjectKey,
    frames: &'a [FrameEntry],
    at: Lsn,
) -> Result<(usize, &'a FrameEntry), RepoError> {
    let after = frames.partition_point(|entry| entry.position <= at.get());
    let found = after.checked_sub(1).and_then(|number| frames.get(number).map(|entry| (number, entry)));
    match found {
        Some((number, entry)) if at.get() - entry.position < u64::from(entry.plain_len) => {
            Ok((number, entry))
        }
        _ => Err(RepoError::damage(key, format!("its directory has no frame with {at}"))),
    }
}

/// The stored bytes of frames from `first` on: up to `end`, and a few MiB, but one frame at least.
fn span(frames: &[FrameEntry], first: usize, end: Lsn) -> std::ops::Range<u64> {
    let mut span = 0..0;
    for entry in frames.iter().skip(first) {
        let stored_end = entry.offset + stored_frame_len(entry.sealed_len);
        if span.end == 0 {
            span = entry.offset..stored_end;
        } else if entry.position < end.get() && stored_end - span.start <= READ_BYTES {
            span.end = stored_end;
        } else {
            break;
        }
    }
    span
}

/// `bytes`, which begin at the frame's position, cut to `range`.
fn cut(bytes: Vec<u8>, first: &FrameEntry, range: LsnRange) -> Bytes {
    let skip = (range.start.get() - first.position) as usize;
    let bytes = Bytes::from(bytes).slice(skip..);
    let len = bytes.len().min(usize::try_from(range.len()).unwrap_or(usize::MAX));
    bytes.slice(..len)
}
