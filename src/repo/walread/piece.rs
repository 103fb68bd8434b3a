//! One object of WAL, kept open: which frame holds a position, and what is in it.

use super::Decoded;
use crate::base::{ChunkId, Lsn, LsnRange, ObjectKey};
use crate::codec::OpenError;
use crate::codec::object::{Expect, ObjectReader, OpenObject, PackedChunk, stored_frame_len};
use crate::format::directory::{Directory, FrameEntry};
use crate::format::frame::{Codec, TRAILER_BYTES, Trailer};
use crate::format::header::{HEADER_BYTES, ObjectKind};
use crate::format::index::WalEntry;
use crate::format::record::Record;
use crate::format::wal::{WalDeltas, WalMeta};
use crate::repo::cluster::Cluster;
use crate::repo::epochs::{EpochDecoder, NearPages};
use crate::repo::error::RepoError;
use crate::repo::layout;
use crate::repo::walmap::{WalPiece, WalSource};
use bytes::Bytes;

/// Stored bytes that one ranged read of a segment fetches, about.
const READ_BYTES: u64 = 4 << 20;

/// The piece read last, kept open.
#[derive(Debug)]
pub enum OpenPiece {
    Segment(Box<OpenSegment>),
    Flush(Box<OpenFlush>),
}

/// A flush object, all of it.
#[derive(Debug)]
pub struct OpenFlush {
    source: WalSource,
    key: ObjectKey,
    object: OpenObject,
}

#[derive(Debug)]
pub struct OpenSegment {
    pub entry: WalEntry,
    pub key: ObjectKey,
    reader: ObjectReader,
    pub directory: Directory,
    /// Stored bytes read ahead, and where they begin.
    ahead: (u64, Bytes),
}

pub async fn open(cluster: &Cluster, piece: &WalPiece) -> Result<OpenPiece, RepoError> {
    let repo = cluster.repo();
    match &piece.source {
        WalSource::Flush { stream, number, .. } => {
            let key = layout::flush(cluster.name(), *stream, *number);
            let object = repo.read_object(&key, ObjectKind::Flush).await?;
            Ok(OpenPiece::Flush(Box::new(OpenFlush { source: piece.source.clone(), key, object })))
        }
        WalSource::Segment(entry) => {
            let key = layout::segment(cluster.name(), entry.id);
            let (reader, directory) =
                open_segment(cluster, &key, ObjectKind::WalSegment, entry.directory_offset, entry.object_len)
                    .await?;
            let entry = WalEntry::clone(entry);
            let ahead = (0, Bytes::new());
            Ok(OpenPiece::Segment(Box::new(OpenSegment { entry, key, reader, directory, ahead })))
        }
    }
}

/// The chunks of the frames from `first` on, whose stored bytes are `span`, checked; delta frames as they are.
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
        let chunk = match entry.codec {
            // It needs its epoch: here its seal is enough.
            Codec::Delta => reader.packed_chunk(number as u64, entry, &frame).map(|packed| packed.bytes),
            _ => reader.chunk(number as u64, entry, &frame, &*cluster.repo().keys()),
        };
        chunks.push(chunk.map_err(|error| RepoError::open(key, error))?);
    }
    Ok(chunks)
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
    let reader = ObjectReader::open(&head, &*repo.keys_of(&head).await?, &expect).map_err(wrong)?;
    let tail = repo.read_range(key, directory_offset..object_len).await?;
    let (frame, trailer) = tail.split_at(tail.len().saturating_sub(TRAILER_BYTES));
    let trailer = Trailer::decode(trailer, object_len).map_err(|e| wrong(e.into()))?;
    let directory = reader.directory(trailer.frame_count, frame).map_err(wrong)?;
    Ok((reader, directory))
}

/// Reads a WAL segment back, a few MiB at a time, and checks every chunk of it; of delta frames their seals.
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

impl OpenPiece {
    pub fn is_of(&self, wanted: &WalSource) -> bool {
        match (self, wanted) {
            (OpenPiece::Segment(segment), WalSource::Segment(other)) => segment.entry.id == other.id,
            (OpenPiece::Flush(flush), other) => flush.source == *other,
            _ => false,
        }
    }

    fn frames(&self) -> (&ObjectKey, &[FrameEntry]) {
        match self {
            OpenPiece::Segment(segment) => (&segment.key, &segment.directory.frames),
            OpenPiece::Flush(flush) => (&flush.key, &flush.object.directory().frames),
        }
    }

    /// The number of the frame that holds the byte at `at`, if it is a delta frame.
    pub fn delta_frame(&self, at: Lsn) -> Result<Option<usize>, RepoError> {
        let (key, frames) = self.frames();
        let (number, entry) = frame_at(key, frames, at)?;
        Ok((entry.codec == Codec::Delta).then_some(number))
    }

    /// Where the first delta frame from the one that holds `at` on begins.
    pub fn delta_from(&self, at: Lsn) -> Option<Lsn> {
        let (_, frames) = self.frames();
        let later =
            |frame: &&FrameEntry| frame.position.saturating_add(u64::from(frame.plain_len)) > at.get();
        let found = frames.iter().filter(later).find(|frame| frame.codec == Codec::Delta);
        found.map(|frame| Lsn::new(frame.position))
    }

    /// Where the frame that holds the byte at `at` begins, if it is a plain one.
    pub fn plain_frame_start(&self, at: Lsn) -> Result<Option<Lsn>, RepoError> {
        let (key, frames) = self.frames();
        let (_, entry) = frame_at(key, frames, at)?;
        Ok((entry.codec != Codec::Delta).then_some(Lsn::new(entry.position)))
    }

    /// The frame that holds exactly `range`, if the whole object is at hand.
    pub fn packed(&self, range: LsnRange) -> Result<Option<PackedChunk>, RepoError> {
        let OpenPiece::Flush(flush) = self else { return Ok(None) };
        let OpenFlush { key, object, .. } = &**flush;
        let (number, entry) = frame_at(key, &object.directory().frames, range.start)?;
        if entry.position != range.start.get() || u64::from(entry.plain_len) != range.len() {
            return Ok(None);
        }
        object.packed_chunk(number).map(Some).map_err(|error| RepoError::open(key, error))
    }

    /// The frame that holds the byte at `at` as it was packed, and what it holds.
    pub async fn frame(&mut self, cluster: &Cluster, at: Lsn) -> Result<(PackedChunk, LsnRange), RepoError> {
        let (key, frames) = self.frames();
        let (number, entry) = frame_at(key, frames, at)?;
        let start = Lsn::new(entry.position);
        let lies = LsnRange::new(start, start.saturating_add(u64::from(entry.plain_len)));
        let packed = match self {
            OpenPiece::Segment(segment) => segment.packed(cluster, number).await?,
            OpenPiece::Flush(flush) => {
                let packed = flush.object.packed_chunk(number);
                packed.map_err(|error| RepoError::open(&flush.key, error))?
            }
        };
        Ok((packed, lies))
    }

    /// What the object's directory says.
    pub fn meta(&self) -> Result<WalMeta, RepoError> {
        let (key, meta) = match self {
            OpenPiece::Segment(segment) => (&segment.key, &segment.directory.meta.0),
            OpenPiece::Flush(flush) => (&flush.key, &flush.object.directory().meta.0),
        };
        WalMeta::decode(meta).map_err(|error| RepoError::damage(key, error))
    }

    /// The bytes of whole plain frames from `range.start` on, cut to `range`.
    pub async fn read(&self, cluster: &Cluster, range: LsnRange) -> Result<Bytes, RepoError> {
        let keys = cluster.repo().keys();
        match self {
            OpenPiece::Flush(flush) => {
                let OpenFlush { key, object, .. } = &**flush;
                let frames = &object.directory().frames;
                let (number, entry) = frame_at(key, frames, range.start)?;
                let chunk = object.chunk(number, &*keys).map_err(|error| RepoError::open(key, error))?;
                Ok(cut(chunk.into(), Lsn::new(entry.position), range))
            }
            OpenPiece::Segment(segment) => {
                let OpenSegment { key, reader, directory, .. } = &**segment;
                let (first, entry) = frame_at(key, &directory.frames, range.start)?;
                let plain = |frame: &&FrameEntry| frame.codec != Codec::Delta;
                let count = directory.frames.iter().skip(first).take_while(plain).count();
                let frames = directory.frames.get(..first + count).unwrap_or_default();
                let span = span(frames, first, range.end);
                let chunks = read_span(cluster, key, reader, directory, first, span).await?;
                Ok(cut(chunks.concat().into(), Lsn::new(entry.position), range))
            }
        }
    }
}

impl OpenSegment {
    /// What its delta frames are made of.
    pub fn deltas(&self) -> Result<&WalDeltas, RepoError> {
        let nothing = || RepoError::damage(&self.key, "it has delta frames, and the index names no epoch");
        self.entry.deltas.as_ref().ok_or_else(nothing)
    }

    /// Decodes delta frames from the decoder's position on, up to the one that holds `at`, which is given; `None` when it is not in
    /// this segment.
    pub async fn decode_epoch(
        &mut self,
        cluster: &Cluster,
        decoder: &mut EpochDecoder,
        mut near: Option<&mut (dyn NearPages + 'static)>,
        at: Lsn,
    ) -> Result<Option<Decoded>, RepoError> {
        let deltas = self.deltas()?.clone();
        for (number, lies) in self.delta_frames_from(decoder.position())? {
            let frame = self.delta(cluster, number).await?;
            let (range, wal) = decoder.decode(&deltas, &self.key, near.as_deref_mut(), &frame).await?;
            if range != lies || Some(cluster.repo().chunk_id(&wal)) != self.chunk_of(number) {
                return Err(self.misplaced(number, range));
            }
            if lies.contains(at) {
                return Ok(Some((range, wal)));
            }
        }
        decoder.skip_to(self.entry.end);
        Ok(None)
    }

    /// Where frame `number` lies, as the directory says.
    pub fn lies(&self, number: usize) -> LsnRange {
        let entry = self.directory.frames.get(number);
        let start = Lsn::new(entry.map_or(0, |entry| entry.position));
        LsnRange::new(start, start.saturating_add(entry.map_or(0, |entry| u64::from(entry.plain_len))))
    }

    /// The delta frames that hold anything from `position` on, and where each lies, as the directory says.
    pub fn delta_frames_from(&self, position: Lsn) -> Result<Vec<(usize, LsnRange)>, RepoError> {
        let (mut frames, mut position) = (Vec::new(), position);
        for (number, entry) in self.directory.frames.iter().enumerate() {
            let lies = self.lies(number);
            if entry.codec != Codec::Delta || lies.end <= position {
                continue;
            }
            if lies.start < position {
                let reason = format!("frame {lies} overlaps what its epoch has before it");
                return Err(RepoError::damage(&self.key, reason));
            }
            frames.push((number, lies));
            position = lies.end;
        }
        Ok(frames)
    }

    /// The id of the WAL of frame `number`, as the directory says.
    pub fn chunk_of(&self, number: usize) -> Option<ChunkId> {
        self.directory.frames.get(number).map(|entry| entry.chunk)
    }

    /// Frame `number` holds other WAL than its directory says: `found`, or other bytes.
    pub fn misplaced(&self, number: usize, found: LsnRange) -> RepoError {
        let lies = self.lies(number);
        let what = if found == lies { "other bytes of it".to_owned() } else { found.to_string() };
        RepoError::damage(
            &self.key,
            format!("frame {number} is not the WAL {lies} that its directory says: {what}"),
        )
    }

    /// The numbers of the delta frames that begin in `range`.
    pub fn delta_frames_in(&self, range: LsnRange) -> Vec<usize> {
        let frames = self.directory.frames.iter().enumerate();
        let within =
            |entry: &FrameEntry| entry.codec == Codec::Delta && range.contains(Lsn::new(entry.position));
        frames.filter(|(_, entry)| within(entry)).map(|(number, _)| number).collect()
    }

    /// Delta frame `number`, unsealed.
    pub async fn delta(&mut self, cluster: &Cluster, number: usize) -> Result<Vec<u8>, RepoError> {
        Ok(self.packed(cluster, number).await?.bytes)
    }

    /// Frame `number` as it was packed; its seal is checked.
    pub async fn packed(&mut self, cluster: &Cluster, number: usize) -> Result<PackedChunk, RepoError> {
        let Some(entry) = self.directory.frames.get(number) else {
            return Err(RepoError::damage(&self.key, format!("it has no frame {number}")));
        };
        let len = stored_frame_len(entry.sealed_len);
        let (mut start, mut stored) = self.ahead.clone();
        if entry.offset < start || entry.offset + len > start + stored.len() as u64 {
            let span = span(&self.directory.frames, number, Lsn::MAX);
            start = span.start;
            stored = cluster.repo().read_range(&self.key, span).await?;
            self.ahead = (start, stored.clone());
        }
        let at = (entry.offset - start) as usize;
        let Some(frame) = stored.get(at..at + len as usize) else {
            return Err(RepoError::damage(&self.key, format!("it ends in frame {number}")));
        };
        let packed = self.reader.packed_chunk(number as u64, entry, frame);
        packed.map_err(|error| RepoError::open(&self.key, error))
    }
}

/// The frame that holds the byte at `at`.
pub fn frame_at<'a>(
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

/// `bytes`, which begin at `start`, cut to `range`, which begins in them.
pub fn cut(bytes: Bytes, start: Lsn, range: LsnRange) -> Bytes {
    let skip = range.start.bytes_since(start) as usize;
    let bytes = bytes.slice(skip..);
    let len = bytes.len().min(usize::try_from(range.len()).unwrap_or(usize::MAX));
    bytes.slice(..len)
}
