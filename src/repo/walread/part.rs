//! A range of WAL far into its epoch, by what it needs of the frames before it: their outlines tell which of their pages those are, and
//! only these are made. What is fetched of the base shrinks with it.

use super::piece::OpenPiece;
use super::{Decoded, WalPiece, WalReader};
use crate::base::{ChunkId, Lsn, LsnRange, Memory, ObjectKey, TimelineId};
use crate::delta::{BlockId, FrameTrace, FrameWants, Tracer, Wants};
use crate::format::wal::{DeltaEpoch, WalDeltas};
use crate::repo::cluster::Cluster;
use crate::repo::epochs::EpochDecoder;
use crate::repo::error::RepoError;
use std::ops::Range;

/// The longest range that is read so, a large WAL segment: it is held in memory. Whoever wants more gets on by decoding everything.
pub const PART_BYTES_MAX: u64 = 64 << 20;
/// With less of the epoch before it than this, there is little to leave out.
pub const PART_FROM: u64 = 64 << 20;
/// Following frames takes at most this part of the time that decoding them takes.
pub const FOLLOWED_AS_DECODED: u64 = 4;
/// Traces of more bytes than this are not held: some 10 GiB of WAL without images.
const TRACES_BYTES_MAX: usize = 256 << 20;
/// Pages of the base that are fetched at a time, about.
const FETCH_BLOCKS: usize = 512;

/// A delta frame from the start of the epoch on.
struct PartFrame {
    /// Its segment, by number.
    segment: usize,
    number: usize,
    lies: LsnRange,
    chunk: Option<ChunkId>,
    /// Its place among the stored bytes.
    stored: Range<usize>,
    trace: FrameTrace,
    /// All of it.
    whole: bool,
    wants: Option<FrameWants>,
}

/// The delta frames of an epoch up to the end of a range.
struct Part {
    segments: Vec<(ObjectKey, WalDeltas)>,
    frames: Vec<PartFrame>,
    stored: Box<dyn Memory>,
    /// Bytes of it that are taken.
    filled: usize,
    traces_bytes: usize,
}

impl WalReader {
    /// The delta frames of `epoch` that hold bytes of `range`.
    pub(super) async fn decode_part(
        &mut self,
        timeline: TimelineId,
        epoch: &DeltaEpoch,
        range: LsnRange,
    ) -> Result<Vec<Decoded>, RepoError> {
        let mut part = self.follow(timeline, epoch, range).await?;
        let mut wants = Wants::none(epoch.cache_pages as usize);
        for frame in part.frames.iter_mut().rev() {
            frame.whole = frame.lies.end > range.start;
            frame.wants =
                if frame.whole { Some(wants.whole(&frame.trace)) } else { wants.part(&frame.trace) };
        }
        let wanted = part.frames.iter().filter(|frame| frame.wants.is_some()).count();
        tracing::debug!(%range, frames = part.frames.len(), wanted, "decoding a part of an epoch of WAL deltas");

        let mut decoder = EpochDecoder::new(&self.cluster, epoch)?;
        let (mut decoded, mut fetched) = (Vec::new(), 0);
        for (at, frame) in part.frames.iter().enumerate() {
            if at >= fetched {
                fetched = part.fetch_ahead(at, &mut decoder).await;
            }
            if let Some(wal) = part.decode(frame, &mut decoder, &self.cluster).await? {
                decoded.push((frame.lies, wal));
            }
        }
        Ok(decoded)
    }

    /// Reads the delta frames of `epoch` up to the end of `range`, and follows what they do to pages.
    async fn follow(
        &mut self,
        timeline: TimelineId,
        epoch: &DeltaEpoch,
        range: LsnRange,
    ) -> Result<Part, RepoError> {
        let bytes = self.epoch_bytes(timeline, epoch, range.end);
        let scratch = self.cluster.repo().env().scratch.clone();
        let stored = scratch.memory(usize::try_from(bytes).unwrap_or(usize::MAX));
        let stored = stored.map_err(|error| no_room(bytes, error.to_string()))?;
        let mut part = Part { segments: Vec::new(), frames: Vec::new(), stored, filled: 0, traces_bytes: 0 };
        let mut tracer = Tracer::new(epoch.cache_pages as usize);
        let mut position = epoch.start;
        while position < range.end
            && let Some(piece) = self.epoch_segment_from(timeline, epoch, position)
            && piece.range.start < range.end
        {
            let end = self.follow_segment(&piece, position, range.end, &mut tracer, &mut part).await?;
            position = position.max(end);
        }
        Ok(part)
    }

    /// The delta frames of one segment, which hold anything from `position` on and begin before `before`; returns where the segment ends.
    async fn follow_segment(
        &mut self,
        piece: &WalPiece,
        position: Lsn,
        before: Lsn,
        tracer: &mut Tracer,
        part: &mut Part,
    ) -> Result<Lsn, RepoError> {
        let cluster = self.cluster.clone();
        self.open_piece(piece).await?;
        let Some(OpenPiece::Segment(segment)) = &mut self.open else {
            unreachable!("flush objects are of no epoch")
        };
        part.segments.push((segment.key.clone(), segment.deltas()?.clone()));
        let frames = segment.delta_frames_from(position)?;
        for (number, lies) in frames.into_iter().take_while(|(_, lies)| lies.start < before) {
            let bytes = segment.delta(&cluster, number).await?;
            let traced = tracer.frame(&bytes);
            let (found, trace) = traced.map_err(|error| RepoError::damage(&segment.key, error))?;
            if found != lies {
                return Err(segment.misplaced(number, found));
            }
            part.traces_bytes += trace.bytes();
            if part.traces_bytes > TRACES_BYTES_MAX {
                let reason = "what its frames change is too much to be held".to_owned();
                return Err(no_room(part.traces_bytes as u64, reason));
            }
            let (segment_number, chunk) = (part.segments.len() - 1, segment.chunk_of(number));
            let stored = part.put(&bytes)?;
            part.frames.push(PartFrame {
                segment: segment_number,
                number,
                lies,
                chunk,
                stored,
                trace,
                whole: false,
                wants: None,
            });
        }
        Ok(segment.entry.end)
    }
}

fn no_room(bytes: u64, reason: String) -> RepoError {
    RepoError::NoRoom { bytes, reason }
}

impl Part {
    /// Keeps the stored form of a frame; returns its place.
    fn put(&mut self, bytes: &[u8]) -> Result<Range<usize>, RepoError> {
        let place = self.filled..self.filled + bytes.len();
        let reached = self.stored.reach(place.end);
        reached.map_err(|error| no_room(place.end as u64, error.to_string()))?;
        if let Some(to) = self.stored.bytes_mut().get_mut(place.clone()) {
            to.copy_from_slice(bytes);
        }
        self.filled = place.end;
        Ok(place)
    }

    /// Fetches pages of the base for the frames from number `from` on; returns the first one for which that was not done. Where that
    /// fails, it fails again for the frame that needs them.
    async fn fetch_ahead(&self, from: usize, decoder: &mut EpochDecoder) -> usize {
        let (mut blocks, mut to, mut of) = (Vec::new(), from, None);
        for frame in self.frames.iter().skip(from) {
            let of_frame = frame.base_blocks();
            if !of_frame.is_empty() {
                let segment = &self.segments[frame.segment];
                let (_, deltas): &(ObjectKey, WalDeltas) = of.get_or_insert(segment);
                let full = !blocks.is_empty() && blocks.len() + of_frame.len() > FETCH_BLOCKS;
                if deltas.base != segment.1.base || full {
                    break;
                }
                blocks.extend(of_frame);
            }
            to += 1;
        }
        if let Some((key, deltas)) = of {
            drop(decoder.fetch(deltas, key, &blocks).await);
        }
        to
    }

    /// Takes of `frame` what is wanted; its WAL, when that is all of it.
    async fn decode(
        &self,
        frame: &PartFrame,
        decoder: &mut EpochDecoder,
        cluster: &Cluster,
    ) -> Result<Option<Vec<u8>>, RepoError> {
        let (key, deltas) = &self.segments[frame.segment];
        let bytes = self.stored.bytes().get(frame.stored.clone()).unwrap_or(&[]);
        let Some(wants) = &frame.wants else {
            decoder.pass_over(deltas, key, bytes)?;
            return Ok(None);
        };
        let blocks = frame.base_blocks();
        if !blocks.is_empty() {
            decoder.fetch(deltas, key, &blocks).await?;
        }
        let traced = (&frame.trace, wants);
        if !frame.whole {
            decoder.pages(deltas, key, bytes, traced)?;
            return Ok(None);
        }
        let wal = decoder.decode_wanted(deltas, key, bytes, traced)?;
        if Some(cluster.repo().chunk_id(&wal)) != frame.chunk {
            let reason =
                format!("frame {} is not the WAL {} that its directory says", frame.number, frame.lies);
            return Err(RepoError::damage(key, reason));
        }
        Ok(Some(wal))
    }
}

impl PartFrame {
    /// The blocks whose pages of the base are wanted.
    fn base_blocks(&self) -> Vec<BlockId> {
        self.wants.as_ref().map(|wants| wants.base_blocks(&self.trace)).unwrap_or_default()
    }
}
