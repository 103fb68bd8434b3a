//! A range of WAL far into its epoch, by what it needs of the frames before it: their outlines tell which of their pages those are, and
//! only these are made. What is fetched of the base shrinks with it.

use super::piece::OpenPiece;
use super::{Decoded, WalReader};
use crate::base::{ChunkId, LsnRange, Memory, ObjectKey, TimelineId};
use crate::delta::{FrameTrace, FrameWants, Tracer, Wants};
use crate::format::wal::{DeltaEpoch, WalDeltas};
use crate::repo::epochs::EpochDecoder;
use crate::repo::error::RepoError;
use std::ops::Range;

/// The longest range that is read so; whoever wants more gets on by decoding everything.
pub const PART_BYTES_MAX: u64 = 32 << 20;
/// With less of the epoch before it than this, there is little to leave out.
pub const PART_FROM: u64 = 64 << 20;
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
                fetched = part.fetch(at, &mut decoder).await?;
            }
            let (key, deltas) = &part.segments[frame.segment];
            let bytes = part.stored.bytes().get(frame.stored.clone()).unwrap_or(&[]);
            let Some(wants) = &frame.wants else {
                decoder.pass_over(deltas, key, bytes)?;
                continue;
            };
            let traced = (&frame.trace, wants);
            if !frame.whole {
                decoder.pages(deltas, key, bytes, traced)?;
                continue;
            }
            let wal = decoder.decode_wanted(deltas, key, bytes, traced)?;
            if Some(self.cluster.repo().chunk_id(&wal)) != frame.chunk {
                let reason = format!("frame {} is not the WAL that its directory says", frame.number);
                return Err(RepoError::damage(key, reason));
            }
            decoded.push((frame.lies, wal));
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
        let cluster = self.cluster.clone();
        let mut tracer = Tracer::new(epoch.cache_pages as usize);
        let bytes_max = self.epoch_bytes(timeline, epoch, range.end);
        let no_room =
            |error: std::io::Error| RepoError::NoRoom { bytes: bytes_max, reason: error.to_string() };
        let len = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        let stored = cluster.repo().env().scratch.memory(len).map_err(no_room)?;
        let mut part = Part { segments: Vec::new(), frames: Vec::new(), stored };
        let (mut position, mut filled) = (epoch.start, 0);
        while let Some(piece) = self.epoch_segment_from(timeline, epoch, position)
            && position < range.end
            && piece.range.start < range.end
        {
            self.open_piece(&piece).await?;
            let Some(OpenPiece::Segment(segment)) = &mut self.open else {
                unreachable!("flush objects are of no epoch")
            };
            part.segments.push((segment.key.clone(), segment.deltas()?.clone()));
            for (number, lies) in segment.delta_frames_from(position)? {
                if lies.start >= range.end {
                    break;
                }
                let bytes = segment.delta(&cluster, number).await?;
                let traced = tracer.frame(&bytes);
                let (found, trace) = traced.map_err(|error| RepoError::damage(&segment.key, error))?;
                if found != lies {
                    return Err(segment.misplaced(number, found));
                }
                let place = filled..filled + bytes.len();
                part.stored.reach(place.end).map_err(no_room)?;
                if let Some(to) = part.stored.bytes_mut().get_mut(place.clone()) {
                    to.copy_from_slice(&bytes);
                }
                filled = place.end;
                part.frames.push(PartFrame {
                    segment: part.segments.len() - 1,
                    number,
                    lies,
                    chunk: segment.chunk_of(number),
                    stored: place,
                    trace,
                    whole: false,
                    wants: None,
                });
                position = lies.end;
            }
            position = position.max(segment.entry.end);
        }
        Ok(part)
    }
}

impl Part {
    /// Fetches pages of the base for the frames from number `from` on; returns the first one for which that was not done.
    async fn fetch(&self, from: usize, decoder: &mut EpochDecoder) -> Result<usize, RepoError> {
        let (mut blocks, mut to, mut of) = (Vec::new(), from, None);
        for frame in self.frames.iter().skip(from) {
            let of_frame =
                frame.wants.as_ref().map(|wants| wants.base_blocks(&frame.trace)).unwrap_or_default();
            if !of_frame.is_empty() {
                let segment = &self.segments[frame.segment];
                let (_, deltas): &(ObjectKey, WalDeltas) = of.get_or_insert(segment);
                if deltas.base != segment.1.base
                    || !blocks.is_empty() && blocks.len() + of_frame.len() > FETCH_BLOCKS
                {
                    break;
                }
                blocks.extend(of_frame);
            }
            to += 1;
        }
        if let Some((key, deltas)) = of {
            decoder.fetch(deltas, key, &blocks).await?;
        }
        Ok(to)
    }
}
