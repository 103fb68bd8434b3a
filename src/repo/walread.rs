//! Reading durable WAL back, in order, from whatever holds it. Every byte is checked by seal and chunk id; of delta frames, which
//! need others before them in their epoch, see [`Reading`].

mod part;
mod piece;

pub use piece::{check_segment, open_segment};

use super::cluster::{Cluster, object_is_gone};
use super::epochs::{EpochDecoder, NearPages};
use super::error::RepoError;
use super::layout;
use super::walmap::{self, WalMap, WalPiece, WalSource};
use crate::base::{Lsn, LsnRange, ObjectId, TimelineId};
use crate::codec::object::PackedChunk;
use crate::delta::{DeltaError, FrameDecoder, ImageCache, Window};
use crate::format::wal::{DeltaEpoch, WalMeta};
use bytes::Bytes;
use part::{FOLLOWED_AS_DECODED, PART_BYTES_MAX, PART_FROM};
use piece::{OpenPiece, cut, frame_at, open};
use std::sync::Arc;

/// Times a read starts again because compaction and collection moved what it wanted.
const RELOADS_MAX: u32 = 5;

/// WAL that a delta frame gave, and where it lies.
type Decoded = (LsnRange, Vec<u8>);

/// What is wanted of WAL in delta frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// Every byte. A delta frame is decoded after all those before it in its epoch.
    Exact,
    /// Every byte, of ranges here and there: a delta frame far from the start of its epoch is decoded after what it needs of those before
    /// it, for the first range that is asked for; whoever goes on behind it gets what `Exact` gives. That a frame is read so does not
    /// prove that all those before it can be.
    Parts,
    /// Records, for those who look for transactions: images may have zeros for what they take from other pages, and the records'
    /// checksums fit that. Any place is nearly as near as any other: digits may repeat those of the 32 MiB before, as a rule in the same
    /// object.
    Records,
}

/// Reads ranges of durable WAL.
#[derive(Debug)]
pub struct WalReader {
    cluster: Cluster,
    map: Arc<WalMap>,
    reading: Reading,
    open: Option<OpenPiece>,
    epoch: Option<EpochDecoder>,
    near: Option<Box<dyn NearPages>>,
    /// Decodes what needs no epoch.
    decoder: FrameDecoder,
    /// The digits of the last frames that it decoded.
    window: Window,
    /// The delta frames decoded last: what is read of them in parts is decoded once.
    decoded: Vec<(TimelineId, LsnRange, Bytes)>,
    /// The epoch of which a part was decoded last, and where that ends: who goes on behind it will want everything.
    part: Option<(ObjectId, Lsn)>,
}

impl WalReader {
    /// Reads what `map` covers, byte for byte.
    pub fn new(cluster: Cluster, map: impl Into<Arc<WalMap>>) -> WalReader {
        WalReader::reading(cluster, map, Reading::Exact)
    }

    /// Reads what `map` covers.
    pub fn reading(cluster: Cluster, map: impl Into<Arc<WalMap>>, reading: Reading) -> WalReader {
        let decoder = FrameDecoder::new();
        WalReader {
            cluster,
            map: map.into(),
            reading,
            open: None,
            epoch: None,
            near: None,
            decoder,
            window: Window::default(),
            decoded: Vec::new(),
            part: None,
        }
    }

    /// Takes pages of a backup from `near` where it can.
    pub fn with_near_pages(mut self, near: Box<dyn NearPages>) -> WalReader {
        self.near = Some(near);
        self
    }

    /// What it covers; newer after a read that had to look again.
    pub fn map(&self) -> &WalMap {
        &self.map
    }

    /// Reads what `map` covers from now on. What was decoded of an epoch stays.
    pub fn look_at(&mut self, map: Arc<WalMap>) {
        self.map = map;
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
                    let generation = self.map.generation();
                    self.map = walmap::load_generation(&self.cluster, generation).await?.wal;
                }
                other => return other,
            }
        }
    }

    async fn try_read(&mut self, timeline: TimelineId, range: LsnRange) -> Result<Bytes, RepoError> {
        let known =
            |(of, lies, _): &&(TimelineId, LsnRange, Bytes)| *of == timeline && lies.contains(range.start);
        if let Some((_, lies, bytes)) = self.decoded.iter().find(known) {
            return Ok(cut(bytes.clone(), lies.start, range));
        }
        let cluster = self.cluster.clone();
        let (open, end) = self.open_at(timeline, range.start).await?;
        let within = LsnRange::new(range.start, range.end.min(end));
        let Some(number) = open.delta_frame(range.start)? else { return open.read(&cluster, within).await };
        let decoded = match self.reading {
            Reading::Records => vec![self.records_of(timeline, number).await?],
            Reading::Exact | Reading::Parts => self.exact(timeline, range).await?,
        };
        let decoded = decoded.into_iter().map(|(lies, wal)| (timeline, lies, Bytes::from(wal)));
        self.decoded = decoded.collect();
        match self.decoded.iter().find(known) {
            Some((_, lies, bytes)) => Ok(cut(bytes.clone(), lies.start, range)),
            None => Err(self.not_there(range.start)),
        }
    }

    /// The delta frame of the open segment that holds the first byte of `range`, and perhaps those behind it.
    async fn exact(&mut self, timeline: TimelineId, range: LsnRange) -> Result<Vec<Decoded>, RepoError> {
        let Some(OpenPiece::Segment(segment)) = &self.open else { unreachable!("it has a delta frame") };
        let epoch = segment.deltas()?.epoch.clone();
        let at = range.start;
        let known = self.epoch.as_ref().filter(|known| known.id() == epoch.id && known.position() <= at);
        let to_decode = at.bytes_since(known.map_or(epoch.start, EpochDecoder::position));
        let to_follow = at.bytes_since(epoch.start);
        let goes_on = self.part.is_some_and(|(of, end)| of == epoch.id && end <= at);
        let part = self.reading == Reading::Parts && self.near.is_none() && range.len() <= PART_BYTES_MAX;
        if part && !goes_on && to_decode >= PART_FROM && to_follow / FOLLOWED_AS_DECODED <= to_decode {
            // There is room for one cache.
            self.epoch = None;
            let mut decoded = self.decode_part(timeline, &epoch, range).await;
            if range.len() > 1 && decoded.as_ref().is_err_and(RepoError::is_damage) {
                // Perhaps what is damaged is wanted for later frames alone.
                decoded = self.decode_part(timeline, &epoch, LsnRange::new(at, at.saturating_add(1))).await;
            }
            match decoded {
                Ok(decoded) => {
                    self.part = decoded.last().map(|(lies, _)| (epoch.id, lies.end));
                    return Ok(decoded);
                }
                Err(RepoError::NoRoom { reason, .. }) => {
                    tracing::info!(%reason, "decoding all of an epoch of WAL deltas, for want of room for a part of it");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(vec![self.decode_up_to(timeline, &epoch, at).await?])
    }

    /// Delta frame `number` of the open segment, without what its images take from elsewhere.
    async fn records_of(&mut self, timeline: TimelineId, number: usize) -> Result<Decoded, RepoError> {
        let Some(OpenPiece::Segment(segment)) = &mut self.open else { unreachable!("it has a delta frame") };
        let (key, lies) = (segment.key.clone(), segment.lies(number));
        let frame = segment.delta(&self.cluster, number).await?;
        let mut wal = Vec::new();
        let mut decoded = self.decoder.decode_records(&frame, &mut self.window, &mut wal);
        if let Err(DeltaError::WrongWindow { range, from }) = decoded
            && range == lies
        {
            // Reading begins here.
            let epoch = segment.deltas()?.epoch.clone();
            let start = from.max(epoch.start).min(range.start);
            self.pass(timeline, &epoch, LsnRange::new(start, range.start)).await?;
            decoded = self.decoder.decode_records(&frame, &mut self.window, &mut wal);
        }
        let range = decoded.map_err(|error| RepoError::damage(&key, error))?;
        if range != lies {
            let reason = format!("frame {number} holds WAL {range}, its directory says {lies}");
            return Err(RepoError::damage(&key, reason));
        }
        Ok((range, wal))
    }

    /// Takes the digits of the delta frames of `epoch` that begin in `range`, and of no others.
    async fn pass(
        &mut self,
        timeline: TimelineId,
        epoch: &DeltaEpoch,
        range: LsnRange,
    ) -> Result<(), RepoError> {
        self.window.clear();
        let mut at = range.start;
        while let Some(piece) = self.epoch_segment_from(timeline, epoch, at)
            && piece.range.start < range.end
            && at < range.end
        {
            self.open_piece(&piece).await?;
            let Some(OpenPiece::Segment(segment)) = &mut self.open else {
                unreachable!("flush objects are of no epoch")
            };
            for number in segment.delta_frames_in(LsnRange::new(at, range.end)) {
                let frame = segment.delta(&self.cluster, number).await?;
                let passed = self.decoder.pass(&frame, &mut self.window);
                passed.map_err(|error| RepoError::damage(&segment.key, error))?;
            }
            at = at.max(segment.entry.end);
        }
        Ok(())
    }

    /// WAL at `at` is in an epoch, and not in its frames.
    fn not_there(&self, at: Lsn) -> RepoError {
        RepoError::damage(
            &layout::segments(self.cluster.name()),
            format!("WAL at {at} is in no frame of its epoch"),
        )
    }

    /// Decodes `epoch`, from where it was decoded to, up to the frame that holds `at`.
    async fn decode_up_to(
        &mut self,
        timeline: TimelineId,
        epoch: &DeltaEpoch,
        at: Lsn,
    ) -> Result<Decoded, RepoError> {
        let known = self.epoch.take().filter(|known| known.id() == epoch.id && known.position() <= at);
        let mut decoder = match known {
            Some(known) => known,
            None => {
                tracing::info!(start = %epoch.start, wanted = %at, "decoding an epoch of WAL deltas from its start");
                EpochDecoder::new(&self.cluster, epoch)?
            }
        };
        match self.decode_epoch(timeline, epoch, &mut decoder, at).await {
            Ok(Some(decoded)) => {
                self.epoch = Some(decoder);
                Ok(decoded)
            }
            Ok(None) => {
                let reason = format!("WAL of its epoch from {} on is not there", decoder.position());
                Err(RepoError::damage(&layout::segments(self.cluster.name()), reason))
            }
            Err(error) => {
                // A frame that could not be read left nothing: whoever tries again goes on from there.
                if error.is_transient() || object_is_gone(&error) {
                    self.epoch = Some(decoder);
                }
                Err(error)
            }
        }
    }

    /// What all of `epoch` leaves for frames to come, and where it ends so far.
    pub async fn epoch_cache(
        &mut self,
        timeline: TimelineId,
        epoch: &DeltaEpoch,
    ) -> Result<(ImageCache, Lsn), RepoError> {
        let mut decoder = EpochDecoder::for_encoder(&self.cluster, epoch)?;
        self.decode_epoch(timeline, epoch, &mut decoder, Lsn::MAX).await?;
        let end = decoder.position();
        Ok((decoder.into_cache(), end))
    }

    /// Decodes what is stored of `epoch`, from `decoder`'s position on up to the frame that holds `at`, which is given; `None` when
    /// there is no such frame.
    async fn decode_epoch(
        &mut self,
        timeline: TimelineId,
        epoch: &DeltaEpoch,
        decoder: &mut EpochDecoder,
        at: Lsn,
    ) -> Result<Option<Decoded>, RepoError> {
        while let Some(piece) = self.epoch_segment_from(timeline, epoch, decoder.position()) {
            self.open_piece(&piece).await?;
            let Some(OpenPiece::Segment(segment)) = &mut self.open else {
                unreachable!("flush objects are of no epoch")
            };
            if let Some(decoded) =
                segment.decode_epoch(&self.cluster, decoder, self.near.as_deref_mut(), at).await?
            {
                return Ok(Some(decoded));
            }
        }
        Ok(None)
    }

    /// Bytes of the segments of `epoch` that begin before `end`.
    fn epoch_bytes(&self, timeline: TimelineId, epoch: &DeltaEpoch, end: Lsn) -> u64 {
        let of_epoch = |piece: &WalPiece| match &piece.source {
            WalSource::Segment(entry)
                if entry.deltas.as_ref().is_some_and(|deltas| deltas.epoch.id == epoch.id) =>
            {
                entry.object_len
            }
            _ => 0,
        };
        self.map.overlapping(timeline, LsnRange::new(epoch.start, end)).map(of_epoch).sum()
    }

    /// The first segment of `epoch` that holds anything from `position` on.
    fn epoch_segment_from(
        &self,
        timeline: TimelineId,
        epoch: &DeltaEpoch,
        position: Lsn,
    ) -> Option<WalPiece> {
        let wanted = LsnRange::new(position, Lsn::MAX);
        let of_epoch = |piece: &&WalPiece| match &piece.source {
            WalSource::Segment(entry) => {
                entry.deltas.as_ref().is_some_and(|deltas| deltas.epoch.id == epoch.id)
            }
            WalSource::Flush { .. } => false,
        };
        self.map.overlapping(timeline, wanted).find(of_epoch).cloned()
    }

    /// Where the plain frame that holds the byte before `end` begins: what can be read without decoding an epoch. `None` when it is a
    /// delta frame, or not stored.
    pub async fn plain_before(&mut self, timeline: TimelineId, end: Lsn) -> Result<Option<Lsn>, RepoError> {
        let before = end.saturating_sub(1);
        match self.open_at(timeline, before).await {
            Ok((open, _)) => open.plain_frame_start(before),
            Err(RepoError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Where the plain frames that end right before `end` begin, back to `start` at most. `end` itself when there are none.
    pub async fn plain_since(
        &mut self,
        timeline: TimelineId,
        start: Lsn,
        end: Lsn,
    ) -> Result<Lsn, RepoError> {
        let mut since = end;
        while since > start {
            match self.plain_before(timeline, since).await {
                Ok(Some(at)) => since = at.max(start),
                Ok(None) => break,
                // Reading it finds out where it is now.
                Err(error) if object_is_gone(&error) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(since)
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

    /// Where the first delta frame in `range` begins; the end of `range` when there is none.
    pub async fn delta_from(&mut self, timeline: TimelineId, range: LsnRange) -> Result<Lsn, RepoError> {
        let mut at = range.start;
        while at < range.end {
            let (open, end) = self.open_at(timeline, at).await?;
            if let Some(found) = open.delta_from(at) {
                return Ok(found.max(at).min(range.end));
            }
            at = end;
        }
        Ok(range.end)
    }

    /// The frame of a segment that begins at `at` as it was packed, and where it ends: to be stored again in another segment of the
    /// same epoch. Its seal was checked.
    pub async fn packed_frame(
        &mut self,
        timeline: TimelineId,
        at: Lsn,
    ) -> Result<(PackedChunk, Lsn), RepoError> {
        let cluster = self.cluster.clone();
        self.open_at(timeline, at).await?;
        let Some(OpenPiece::Segment(segment)) = &mut self.open else {
            return Err(RepoError::Conflict { reason: format!("WAL at {at} is in no segment any more") });
        };
        let (number, entry) = frame_at(&segment.key, &segment.directory.frames, at)?;
        if entry.position != at.get() {
            return Err(RepoError::damage(&segment.key, format!("no frame begins at {at}")));
        }
        let end = at.saturating_add(u64::from(entry.plain_len));
        Ok((segment.packed(&cluster, number).await?, end))
    }

    /// The frame that holds the byte at `at` as it was packed, and the WAL that it holds: to be stored again elsewhere. Its seal was
    /// checked; whoever unpacks it checks the rest.
    pub async fn frame(
        &mut self,
        timeline: TimelineId,
        at: Lsn,
    ) -> Result<(PackedChunk, LsnRange), RepoError> {
        let cluster = self.cluster.clone();
        self.open_at(timeline, at).await?;
        let Some(open) = &mut self.open else { unreachable!("it was opened") };
        open.frame(&cluster, at).await
    }

    /// What the object says that holds the byte at `at`.
    pub async fn meta(&mut self, timeline: TimelineId, at: Lsn) -> Result<WalMeta, RepoError> {
        self.open_at(timeline, at).await?.0.meta()
    }

    /// What holds the byte at `at`, and where that piece ends.
    async fn open_at(&mut self, timeline: TimelineId, at: Lsn) -> Result<(&OpenPiece, Lsn), RepoError> {
        let wanted = LsnRange::new(at, at.saturating_add(1));
        let Some(piece) = self.map.overlapping(timeline, wanted).next().cloned() else {
            let what = format!("WAL at {at} on timeline {timeline} of cluster {}", self.cluster.name());
            return Err(RepoError::NotFound { what, url: self.cluster.repo().store().url() });
        };
        Ok((self.open_piece(&piece).await?, piece.range.end))
    }

    async fn open_piece(&mut self, piece: &WalPiece) -> Result<&OpenPiece, RepoError> {
        let known = self.open.take().filter(|open| open.is_of(&piece.source));
        let opened = match known {
            Some(known) => known,
            None => open(&self.cluster, piece).await?,
        };
        Ok(self.open.insert(opened))
    }
}
