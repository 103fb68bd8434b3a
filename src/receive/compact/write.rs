//! Writing one segment, and reading it back before anything it replaces may go.

use super::epoch::EpochEncoder;
use super::plan::{Job, Replaces};
use crate::base::planted::{Bug, planted};
use crate::base::{Lsn, LsnRange, ObjectId, ObjectKey, limits};
use crate::codec::ObjectWriter;
use crate::codec::object::PackedChunk;
use crate::delta::FrameBody;
use crate::format::header::ObjectKind;
use crate::format::index::{WalEntry, without_relations};
use crate::format::record::Record;
use crate::format::wal::{WalDeltas, WalMeta};
use crate::repo::{Cluster, Index, RepoError, WalMap, WalReader, layout, walread};
use bytes::Bytes;
use std::time::Duration;

/// Bytes read back at a time.
const READ_BACK_BYTES: u64 = 4 << 20;

/// A segment being written.
struct Segment<'a> {
    cluster: &'a Cluster,
    job: &'a Job,
    id: ObjectId,
    key: ObjectKey,
    writer: ObjectWriter,
}

/// The segment of flush objects: delta frames up to `plain_from` if there is an encoder, plain ones otherwise.
pub async fn flushes(
    cluster: &Cluster,
    reader: &mut WalReader,
    job: &Job,
    plain_from: Lsn,
    encoder: Option<&mut EpochEncoder>,
) -> Result<WalEntry, RepoError> {
    let mut segment = Segment::begin(cluster, job);
    let deltas = match encoder {
        Some(encoder) => segment.deltas(reader, LsnRange::new(job.start, plain_from), encoder).await?,
        None => {
            // Address space for the worst case at once: a buffer that grows is copied again and again, and allocators keep the pieces.
            segment.writer.reserve(limits::WAL_SEGMENT_BYTES_MAX as usize);
            segment.plain(reader, LsnRange::new(job.start, plain_from)).await?;
            None
        }
    };
    segment.plain(reader, LsnRange::new(plain_from, job.end)).await?;
    segment.finish(deltas).await
}

/// Decodes a segment that is the first of its epoch with delta frames, from the repository alone, as readers will: what its encoder had in
/// memory proves nothing about that. Of the segments after it their decoders say more: whoever goes on with an epoch decodes all of it.
pub async fn decode_first(cluster: &Cluster, entry: &WalEntry) -> Result<(), RepoError> {
    let alone = Index { wal: vec![entry.clone()], ..Index::default() };
    let mut reader = WalReader::new(cluster.clone(), WalMap::new(entry.generation, &alone, Vec::new()));
    let mut at = entry.start;
    while at < entry.end {
        let some = reader.read_some(entry.timeline, LsnRange::new(at, entry.end)).await?;
        at = at.saturating_add(some.len() as u64);
    }
    Ok(())
}

/// The segment of small ones in `index`, and of no others that hold the same WAL: delta frames as they are, since others may refer to what
/// they leave; plain ones cut anew.
pub async fn merge(cluster: &Cluster, index: &Index, job: &Job) -> Result<WalEntry, RepoError> {
    let Replaces::Segments { ids, deltas } = &job.replaces else {
        unreachable!("flush objects are not merged")
    };
    let wal = index.wal.iter().filter(|entry| ids.contains(&entry.id)).cloned().collect();
    let alone = Index { wal, ..Index::default() };
    let map = WalMap::new(job.generation, &alone, Vec::new());
    let reader = &mut WalReader::new(cluster.clone(), map);
    let mut segment = Segment::begin(cluster, job);
    let mut at = job.start;
    while at < job.end {
        let delta = reader.delta_from(job.timeline, LsnRange::new(at, job.end)).await?;
        segment.plain(reader, LsnRange::new(at, delta)).await?;
        at = delta;
        if at < job.end {
            let (packed, end) = reader.packed_frame(job.timeline, at).await?;
            segment.writer.add_packed(&packed, at.get());
            at = end;
        }
    }
    segment.finish(deltas.clone()).await
}

impl<'a> Segment<'a> {
    fn begin(cluster: &'a Cluster, job: &'a Job) -> Self {
        let repo = cluster.repo();
        let id = ObjectId::random(&*repo.env().entropy);
        let key = layout::segment(cluster.name(), id);
        let writer = repo.writer(ObjectKind::WalSegment, &key, id.0, 0, 0);
        Segment { cluster, job, id, key, writer }
    }

    /// Plain frames of `range`.
    async fn plain(&mut self, reader: &mut WalReader, range: LsnRange) -> Result<(), RepoError> {
        let timeline = self.job.timeline;
        let mut at = range.start;
        while at < range.end {
            let frame_end = at.saturating_add(1).align_down(limits::WAL_FRAME_BYTES as u64);
            let frame_end = frame_end.saturating_add(limits::WAL_FRAME_BYTES as u64).min(range.end);
            let frame = LsnRange::new(at, frame_end);
            // A whole frame goes over as it was packed: compressing WAL twice would be half of all work.
            if let Some(packed) = reader.packed(timeline, frame).await? {
                self.writer.add_packed(&packed, at.get());
            } else {
                let bytes = reader.read(timeline, frame).await?;
                self.add_plain(&bytes, at);
            }
            at = frame_end;
        }
        Ok(())
    }

    fn add_plain(&mut self, bytes: &[u8], at: Lsn) {
        let chunk = self.cluster.repo().chunk_id(bytes);
        self.writer.add(bytes, chunk, at.get());
    }

    /// Frames of `range` by `encoder`; what its delta frames are made of, if there are any.
    async fn deltas(
        &mut self,
        reader: &mut WalReader,
        range: LsnRange,
        encoder: &mut EpochEncoder,
    ) -> Result<Option<WalDeltas>, RepoError> {
        encoder.begin(range.start);
        // What was fed and not yet taken.
        let (mut raw, mut at) = (Vec::new(), range.start);
        while at < range.end || !raw.is_empty() {
            if at < range.end && raw.len() <= limits::WAL_FRAME_BYTES {
                let some = reader.read_some(self.job.timeline, LsnRange::new(at, range.end)).await?;
                encoder.feed(&some);
                raw.extend_from_slice(&some);
                at = at.saturating_add(some.len() as u64);
                continue;
            }
            let frame = encoder.frame().await?;
            let len = frame.range.len() as usize;
            match frame.body {
                FrameBody::Plain(bytes, _) => self.add_plain(&bytes, frame.range.start),
                FrameBody::Delta(body, stats) => {
                    let bytes = raw.get(..len).unwrap_or_default();
                    let chunk = self.cluster.repo().chunk_id(bytes);
                    encoder.count(&stats);
                    self.writer.add_packed(&PackedChunk::delta(body, len, chunk), frame.range.start.get());
                }
            }
            raw.drain(..len);
        }
        Ok(encoder.finish(self.job.end))
    }

    async fn finish(self, deltas: Option<WalDeltas>) -> Result<WalEntry, RepoError> {
        let Segment { cluster, job, id, key, writer } = self;
        let meta = WalMeta {
            generation: job.generation,
            timeline: job.timeline,
            start: job.start,
            end: job.end,
            server_end: job.end,
            server_time: job.server_time,
            previous_link: [0; 32],
            predecessor: None,
            summary: job.summary.clone(),
            deltas: deltas.clone(),
            extensions: Vec::new(),
        };
        let finished = writer.finish(meta.encode());
        let (object_len, directory_offset) = (finished.bytes.len() as u64, finished.directory_offset);
        if planted(Bug::RootBeforeData) {
            let (cluster, key, bytes) = (cluster.clone(), key.clone(), finished.bytes.clone());
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(3)).await;
                cluster.repo().create_own(&key, &bytes).await
            });
        } else {
            cluster.repo().create_own(&key, &finished.bytes).await?;
            read_back(cluster, &key, finished.bytes, directory_offset, deltas.is_some()).await?;
        }
        Ok(WalEntry {
            id,
            generation: job.generation,
            timeline: job.timeline,
            start: job.start,
            end: job.end,
            object_len,
            directory_offset,
            server_time: job.server_time,
            summary: without_relations(&job.summary),
            deltas,
        })
    }
}

/// Reads a segment back. Plain frames are decoded again: many were taken over as they had been packed. Delta frames were decoded
/// when they were made; that they are what is stored, the bytes say.
async fn read_back(
    cluster: &Cluster,
    key: &ObjectKey,
    written: Bytes,
    directory_offset: u64,
    deltas: bool,
) -> Result<(), RepoError> {
    let object_len = written.len() as u64;
    if deltas {
        let mut at = 0;
        while at < object_len {
            let end = (at + READ_BACK_BYTES).min(object_len);
            if cluster.repo().read_range(key, at..end).await? != written.slice(at as usize..end as usize) {
                let reason = format!("bytes {at} to {end} are not those that were written");
                return Err(RepoError::damage(key, reason));
            }
            at = end;
        }
    }
    drop(written);
    walread::check_segment(cluster, key, directory_offset, object_len).await
}
