//! What a repository holds, in the words of the resolution: backups, timelines and WAL of one generation; and its WAL bytes
//! along one path.

use super::decode::{Decoding, PathBytes};
use super::error::RestoreError;
use super::resolve::Archive;
use crate::base::{Generation, Lsn, LsnRange, ObjectId, SegmentSize, TimelineId, Timestamp};
use crate::format::index::{BackupEntry, GapEntry};
use crate::format::root::GenerationRecord;
use crate::repo::backups::state_now;
use crate::repo::epochs::NearPages;
use crate::repo::lineage::{Coverage, Lineage, Piece, TimelinePath};
use crate::repo::walmap::Snapshot;
use crate::repo::walread::Reading;
use crate::repo::{Cluster, RepoError, WalMap, WalReader, WalSource};
use crate::wal::history::TimelineHistory;
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;

/// A generation as it was at one moment.
#[derive(Debug)]
pub struct Loaded {
    /// Its record.
    pub record: GenerationRecord,
    /// What can be restored of it.
    pub archive: Archive,
    /// Where its WAL is.
    pub wal: Arc<WalMap>,
}

/// Reads what `snapshot` holds of `generation`.
pub async fn load(
    cluster: &Cluster,
    snapshot: &Snapshot,
    generation: Generation,
) -> Result<Loaded, RestoreError> {
    let record = cluster.read_generation(generation).await?;
    let segment_size = segment_size(&record)?;
    let wal = if snapshot.wal.generation() == generation {
        snapshot.wal.clone()
    } else {
        snapshot.clone().with_generation(cluster, generation).await?.wal
    };
    let mut lineage = Lineage::default();
    for history in snapshot.index.histories.iter().filter(|history| history.generation == generation) {
        let parsed = TimelineHistory::parse(history.timeline, &history.content.0);
        let parsed = parsed.map_err(|error| RestoreError::Damage {
            what: history.timeline.history_file_name(),
            reason: error.to_string(),
        })?;
        let parents = parsed.switches().iter().map(|switch| (switch.timeline, switch.at)).collect();
        lineage.insert(history.timeline, parents);
    }
    let own = snapshot.index.backups.iter().filter(|backup| backup.generation == generation);
    let now =
        |backup: &BackupEntry| BackupEntry { state: state_now(backup, &wal, segment_size), ..backup.clone() };
    let backups: Vec<_> = own.map(now).collect();
    let streamed = snapshot.root.streams.iter().rev().find(|stream| stream.generation == generation);
    let current = streamed
        .map(|stream| stream.timeline)
        .or(wal.durable_end().map(|end| end.timeline))
        .or(backups.iter().max_by_key(|backup| &backup.id).map(|backup| backup.timeline))
        .unwrap_or(TimelineId::FIRST);
    let archive = Archive {
        generation,
        segment_size,
        backups,
        gaps: wal.gaps().iter().cloned().chain(losses(&wal)).collect(),
        lineage,
        pieces: pieces(&wal),
        current,
    };
    Ok(Loaded { record, archive, wal })
}

/// WAL that was stored and cannot be read any more, as gaps.
fn losses(wal: &WalMap) -> impl Iterator<Item = GapEntry> {
    let lost = wal.chains().iter().flat_map(|chain| chain.lost.iter().map(move |lost| (chain, lost)));
    lost.filter_map(|(chain, lost)| {
        Some(GapEntry {
            id: ObjectId(chain.stream.id.0),
            generation: chain.stream.generation,
            timeline: chain.stream.timeline,
            start: lost.from?,
            end: lost.to.unwrap_or(Lsn::MAX),
            recorded_at: Timestamp::MIN,
            reason: format!("{}: {}", lost.key, lost.reason),
        })
    })
}

/// The segment size of a generation.
pub fn segment_size(record: &GenerationRecord) -> Result<SegmentSize, RestoreError> {
    SegmentSize::new(u64::from(record.segment_size)).map_err(|error| RestoreError::Damage {
        what: format!("generation {} of cluster {}", record.generation, record.cluster),
        reason: error.to_string(),
    })
}

/// Pieces of WAL, and heartbeats, which move the time alone.
fn pieces(wal: &WalMap) -> Vec<Piece> {
    let stored = wal.pieces().iter().map(|piece| Piece {
        timeline: piece.timeline,
        range: piece.range,
        server_time: piece.server_time,
        summary: piece.summary.clone(),
    });
    let objects = wal.chains().iter().flat_map(|chain| &chain.objects);
    let heartbeats = objects.filter(|object| object.meta.start == object.meta.end).map(|object| Piece {
        timeline: object.meta.timeline,
        range: LsnRange::new(object.meta.start, object.meta.end),
        server_time: object.meta.server_time,
        summary: object.meta.summary.clone(),
    });
    stored.chain(heartbeats).collect()
}

/// The WAL of one path, from whichever timeline holds each part.
#[derive(Debug)]
pub struct PathReader {
    reader: WalReader,
    spans: Vec<(LsnRange, TimelineId)>,
}

fn spans(loaded: &Loaded, path: &TimelinePath) -> Vec<(LsnRange, TimelineId)> {
    let coverage = Coverage::of(path, &loaded.archive.pieces, loaded.archive.segment_size);
    let runs = coverage.runs.iter().flat_map(|run| &run.spans);
    runs.map(|span| (span.range, span.piece.timeline)).collect()
}

impl PathReader {
    /// Reads the WAL of `path` that `loaded` has.
    pub fn new(cluster: &Cluster, loaded: &Loaded, path: &TimelinePath, reading: Reading) -> Self {
        let reader = WalReader::reading(cluster.clone(), loaded.wal.clone(), reading);
        PathReader { reader, spans: spans(loaded, path) }
    }

    /// Reads the WAL that `loaded` has from now on, and goes on where it is.
    pub fn look_at(&mut self, loaded: &Loaded, path: &TimelinePath) {
        self.reader.look_at(loaded.wal.clone());
        self.spans = spans(loaded, path);
    }

    /// Takes pages of a backup from `near` where it can.
    pub fn with_near_pages(self, near: Box<dyn NearPages>) -> Self {
        PathReader { reader: self.reader.with_near_pages(near), ..self }
    }

    /// Whether any of the WAL stands as delta frames, which are decoded in order.
    pub fn has_deltas(&self) -> bool {
        self.reader.map().pieces().iter().any(|piece| match &piece.source {
            WalSource::Segment(entry) => entry.deltas.is_some(),
            WalSource::Flush { .. } => false,
        })
    }

    /// How far the path is stored without a hole from `from` on; `from` itself when that byte is not.
    pub fn contiguous_end(&self, from: Lsn) -> Lsn {
        let first = self.spans.partition_point(|(range, _)| range.end <= from);
        let mut end = from;
        for (range, _) in self.spans.get(first..).unwrap_or_default() {
            if range.start > end {
                break;
            }
            end = range.end;
        }
        end
    }

    fn span_at(&self, at: Lsn) -> Option<usize> {
        let number = self.spans.partition_point(|(range, _)| range.end <= at);
        self.spans.get(number).filter(|(range, _)| range.contains(at)).map(|_| number)
    }

    /// As [`PathBytes::read_some`], in the repository's own words.
    pub async fn read(&mut self, range: LsnRange) -> Result<Bytes, RepoError> {
        let found = self.span_at(range.start).and_then(|number| self.spans.get(number));
        let Some((span, timeline)) = found.copied() else {
            return Err(RepoError::NotFound { what: format!("WAL at {}", range.start), url: String::new() });
        };
        self.reader.read_some(timeline, LsnRange::new(range.start, range.end.min(span.end))).await
    }
}

#[async_trait]
impl PathBytes for PathReader {
    fn run_start(&self, at: Lsn) -> Option<Lsn> {
        let mut number = self.span_at(at)?;
        let mut start = self.spans.get(number)?.0.start;
        while let Some(before) = number.checked_sub(1).and_then(|before| self.spans.get(before)) {
            if before.0.end != start {
                break;
            }
            (start, number) = (before.0.start, number - 1);
        }
        Some(start)
    }

    async fn read_some(&mut self, range: LsnRange) -> Result<Bytes, RestoreError> {
        Ok(self.read(range).await?)
    }
}

impl Loaded {
    /// Decodes the records of the WAL of `path`.
    pub fn scan(&self, cluster: &Cluster, path: &TimelinePath) -> Decoding<PathReader> {
        Decoding::new(PathReader::new(cluster, self, path, Reading::Records), self.archive.segment_size)
    }
}
