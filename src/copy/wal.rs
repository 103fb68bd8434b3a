//! Copying WAL: each unit becomes one segment of the destination. Frames go over as they were packed, under new ids; every byte of
//! them is unpacked for that, and was compared with the id that it had. Delta frames are decoded in the order of their epochs, one
//! segment at a time; segments without any are read several at a time, and all are stored several at a time.
//!
//! Memory: a segment (64 MiB at most) for each unit in flight.

use super::plan::{Summary, Unit};
use super::source::Era;
use crate::base::{ChunkId, LsnRange, ObjectId, ObjectKey, limits};
use crate::codec::ObjectWriter;
use crate::codec::object::{PackedChunk, decompress};
use crate::format::frame::Codec;
use crate::format::header::ObjectKind;
use crate::format::index::{WalEntry, without_relations};
use crate::format::record::Record;
use crate::format::wal::{WalMeta, WalSummary};
use crate::repo::{Cluster, RepoError, WalReader, layout};
use crate::wal::{DecodeFrom, Summarizer};
use bytes::Bytes;

/// A segment that is to be stored.
#[derive(Debug)]
pub struct Sealed {
    /// Its entry in the index.
    pub entry: WalEntry,
    key: ObjectKey,
    bytes: Bytes,
}

impl Sealed {
    /// Stores it, and asks how long it is there.
    pub async fn store(self, cluster: &Cluster) -> Result<WalEntry, RepoError> {
        cluster.repo().create_own(&self.key, &self.bytes).await?;
        let found = cluster.repo().store().head(&self.key).await?.len;
        if found != self.bytes.len() as u64 {
            let reason = format!("{found} bytes are stored, {} were written", self.bytes.len());
            return Err(RepoError::damage(&self.key, reason));
        }
        Ok(self.entry)
    }
}

/// Reads `unit` by `reader`, and seals it for `to`. Every error is the source's.
pub async fn seal(
    reader: &mut WalReader,
    unit: &Unit,
    era: &Era,
    from: &Cluster,
    to: &Cluster,
) -> Result<Sealed, RepoError> {
    let id = ObjectId::random(&*to.repo().env().entropy);
    let key = layout::segment(to.name(), id);
    let writer = to.repo().writer(ObjectKind::WalSegment, &key, id.0, 0, 0);
    let mut sealing =
        Sealing { unit, from, to, writer, deltas: false, read: Summarized::of(reader, unit, era).await? };
    let (_, timeline) = unit.place;
    let mut at = unit.range.start;
    while at < unit.range.end {
        let (packed, lies) = reader.frame(timeline, at).await?;
        let Some(part) = lies.intersect(unit.range) else {
            return Err(RepoError::Conflict { reason: format!("WAL at {at} lies elsewhere now") });
        };
        let chunk = match packed.codec {
            Codec::Delta => Bytes::from(reader.read(timeline, lies).await?),
            Codec::Raw | Codec::Zstd => sealing.unpack(&packed)?,
        };
        sealing.add(&packed, chunk, (lies, LsnRange::new(at, part.end)))?;
        at = part.end;
    }
    let summary = sealing.read.finish();
    sealing.finish(id, key, summary)
}

struct Sealing<'a> {
    unit: &'a Unit,
    from: &'a Cluster,
    to: &'a Cluster,
    writer: ObjectWriter,
    /// Whether a delta frame was added.
    deltas: bool,
    read: Summarized,
}

impl Sealing<'_> {
    fn unpack(&self, packed: &PackedChunk) -> Result<Bytes, RepoError> {
        let damage = |reason: String| {
            RepoError::damage(
                &layout::segments(self.from.name()),
                format!("WAL {}: {reason}", self.unit.range),
            )
        };
        let plain = decompress(packed.codec, packed.bytes.clone(), packed.plain_len).map_err(damage)?;
        if self.from.repo().chunk_id(&plain) != packed.id {
            return Err(damage("a frame is not what its directory says".into()));
        }
        Ok(plain.into())
    }

    /// Adds `part` of the frame that holds `lies` and whose WAL is `chunk`: as it was packed if that is all of it.
    fn add(
        &mut self,
        packed: &PackedChunk,
        chunk: Bytes,
        (lies, part): (LsnRange, LsnRange),
    ) -> Result<(), RepoError> {
        let from = part.start.bytes_since(lies.start) as usize;
        let Some(bytes) = chunk.get(from..from + part.len() as usize) else {
            return Err(RepoError::Conflict { reason: format!("WAL {lies} was moved while it was read") });
        };
        self.read.feed(part, bytes);
        let id: ChunkId = self.to.repo().chunk_id(bytes);
        let is_delta = packed.codec == Codec::Delta;
        if part == lies && (!is_delta || self.unit.deltas.is_some()) {
            self.deltas |= is_delta;
            self.writer.add_packed(&PackedChunk { id, ..packed.clone() }, part.start.get());
            return Ok(());
        }
        assert!(
            bytes.len() <= limits::WAL_FRAME_BYTES.max(packed.plain_len),
            "a part is no longer than the frame"
        );
        self.writer.add(bytes, id, part.start.get());
        Ok(())
    }

    fn finish(self, id: ObjectId, key: ObjectKey, summary: WalSummary) -> Result<Sealed, RepoError> {
        let Unit { place: (generation, timeline), range, server_time, .. } = self.unit;
        if self.unit.deltas.is_some() != self.deltas {
            let reason = format!("WAL {range} is not made of what it was when the copy was planned");
            return Err(RepoError::Conflict { reason });
        }
        let deltas = self.unit.deltas.clone();
        let meta = WalMeta {
            generation: *generation,
            timeline: *timeline,
            start: range.start,
            end: range.end,
            server_end: range.end,
            server_time: *server_time,
            previous_link: [0; 32],
            predecessor: None,
            summary,
            deltas: deltas.clone(),
            extensions: Vec::new(),
        };
        let finished = self.writer.finish(meta.encode());
        let entry = WalEntry {
            id,
            generation: *generation,
            timeline: *timeline,
            start: range.start,
            end: range.end,
            object_len: finished.bytes.len() as u64,
            directory_offset: finished.directory_offset,
            server_time: *server_time,
            summary: without_relations(&meta.summary),
            deltas,
        };
        Ok(Sealed { entry, key, bytes: finished.bytes })
    }
}

/// What a unit holds: said by somebody, or read.
enum Summarized {
    Known(WalSummary),
    Anew(Box<Summarizer>),
}

impl Summarized {
    async fn of(reader: &mut WalReader, unit: &Unit, era: &Era) -> Result<Summarized, RepoError> {
        let (_, timeline) = unit.place;
        match &unit.summary {
            Summary::Known(summary) => Ok(Summarized::Known(summary.clone())),
            Summary::OfSegment => {
                let meta = reader.meta(timeline, unit.range.start).await?;
                if (meta.start, meta.end) != (unit.range.start, unit.range.end) {
                    let reason = format!("WAL {} lies in another segment now", unit.range);
                    return Err(RepoError::Conflict { reason });
                }
                Ok(Summarized::Known(meta.summary))
            }
            Summary::Anew => {
                // A record may begin before it.
                let since = unit.range.start.saturating_sub(limits::RESUME_OVERLAP_BYTES);
                let since = reader.plain_since(timeline, since, unit.range.start).await?;
                let mut summarizer = Summarizer::new(era.size, since, DecodeFrom::Anywhere);
                let before = reader.read(timeline, LsnRange::new(since, unit.range.start)).await?;
                summarizer.feed(since, &before);
                summarizer.take();
                Ok(Summarized::Anew(Box::new(summarizer)))
            }
        }
    }

    fn feed(&mut self, range: LsnRange, bytes: &[u8]) {
        if let Summarized::Anew(summarizer) = self {
            summarizer.feed(range.start, bytes);
        }
    }

    fn finish(&mut self) -> WalSummary {
        match self {
            Summarized::Known(summary) => summary.clone(),
            Summarized::Anew(summarizer) => summarizer.take(),
        }
    }
}
