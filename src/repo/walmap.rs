//! Which WAL is durable, and where it is: compacted segments of the index, and the chains of flush objects not yet compacted.
//! Pure but for [`load`] and [`load_unbroken`], which read the chains.

use super::chain::{self, Chain, Losses};
use super::cluster::{Cluster, object_is_gone};
use super::error::RepoError;
use super::index::Index;
use crate::base::{Generation, Lsn, LsnRange, StreamId, TimelineId, Timestamp};
use crate::format::index::{GapEntry, WalEntry};
use crate::format::root::Root;
use crate::format::wal::WalSummary;
use std::sync::Arc;

/// Times a reader starts again because compaction moved what it was reading.
const RELOADS_MAX: u32 = 20;

/// Where the bytes of a piece are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WalSource {
    /// A compacted segment.
    Segment(Box<WalEntry>),
    /// A flush object.
    Flush {
        /// Its stream.
        stream: StreamId,
        /// Its number.
        number: u64,
        /// Its bytes in the store.
        object_len: u64,
    },
}

/// A durable range of WAL in one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalPiece {
    /// The timeline it was streamed on.
    pub timeline: TimelineId,
    /// Its bytes.
    pub range: LsnRange,
    /// The server's clock at which everything up to its end had been sent.
    pub server_time: Timestamp,
    /// What it holds.
    pub summary: WalSummary,
    /// Where it is.
    pub source: WalSource,
}

/// The newest durable position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalEnd {
    /// Its timeline.
    pub timeline: TimelineId,
    /// One past the last durable byte.
    pub lsn: Lsn,
    /// The newest server time at which everything was durable.
    pub server_time: Timestamp,
}

/// All durable WAL of one generation: LSNs and timelines of another mean other bytes. It grows with the archive, and is shared, never
/// copied.
#[derive(Debug)]
pub struct WalMap {
    generation: Generation,
    /// By timeline and start.
    pieces: Vec<WalPiece>,
    /// How far each piece, or one before it on its timeline, reaches: what a lookup bisects, since pieces may overlap.
    reach: Vec<Lsn>,
    gaps: Vec<GapEntry>,
    chains: Vec<Chain>,
    end: Option<WalEnd>,
}

impl WalMap {
    /// Puts together what the index and the chains hold of `generation`.
    pub fn new(generation: Generation, index: &Index, chains: Vec<Chain>) -> WalMap {
        let mut pieces: Vec<WalPiece> = index
            .wal
            .iter()
            .filter(|entry| entry.generation == generation)
            .map(|entry| WalPiece {
                timeline: entry.timeline,
                range: LsnRange::new(entry.start, entry.end),
                server_time: entry.server_time,
                summary: entry.summary.clone(),
                source: WalSource::Segment(Box::new(entry.clone())),
            })
            .collect();
        let chains: Vec<Chain> =
            chains.into_iter().filter(|chain| chain.stream.generation == generation).collect();
        for chain in &chains {
            for object in &chain.objects {
                let meta = &object.meta;
                if meta.start == meta.end {
                    continue;
                }
                pieces.push(WalPiece {
                    timeline: meta.timeline,
                    range: LsnRange::new(meta.start, meta.end),
                    server_time: meta.server_time,
                    summary: meta.summary.clone(),
                    source: WalSource::Flush {
                        stream: chain.stream.id,
                        number: object.number,
                        object_len: object.object_len,
                    },
                });
            }
        }
        pieces.sort_by_key(|piece| (piece.timeline, piece.range.start, piece.range.end));
        let gaps = index.gaps.iter().filter(|gap| gap.generation == generation).cloned().collect();
        WalMap::of(generation, pieces, gaps, chains)
    }

    /// Of pieces in order.
    fn of(generation: Generation, pieces: Vec<WalPiece>, gaps: Vec<GapEntry>, chains: Vec<Chain>) -> WalMap {
        let (mut end, mut reach) = (None, Vec::with_capacity(pieces.len()));
        let mut last: Option<(TimelineId, Lsn)> = None;
        for piece in &pieces {
            advance(&mut end, piece.timeline, piece.range.end, piece.server_time);
            let before = last.filter(|(timeline, _)| *timeline == piece.timeline);
            let reached = before.map_or(piece.range.end, |(_, before)| before.max(piece.range.end));
            last = Some((piece.timeline, reached));
            reach.push(reached);
        }
        let objects = chains.iter().flat_map(|chain| &chain.objects);
        for heartbeat in objects.map(|object| &object.meta).filter(|meta| meta.start == meta.end) {
            advance(&mut end, heartbeat.timeline, heartbeat.end, heartbeat.server_time);
        }
        let mut map = WalMap { generation, pieces, reach, gaps: Vec::new(), chains, end };
        map.gaps = gaps.into_iter().filter_map(|gap| map.as_it_is(gap)).collect();
        map
    }

    /// A gap as it is by now: one that was recorded without an end, when its timeline seemed to be over, ends where WAL goes on; `None`
    /// when that is where it begins.
    fn as_it_is(&self, gap: GapEntry) -> Option<GapEntry> {
        if gap.end < Lsn::MAX || gap.generation != self.generation {
            return Some(gap);
        }
        let behind = self.around(gap.timeline, LsnRange::new(gap.start, Lsn::MAX));
        let next = behind.iter().map(|piece| piece.range).find(|range| range.end > gap.start);
        let end = next.map_or(Lsn::MAX, |range| range.start);
        (end > gap.start).then_some(GapEntry { end, ..gap })
    }

    /// The same without the pieces that `is_lost` says cannot be read.
    pub fn without(&self, is_lost: impl Fn(&WalPiece) -> bool) -> WalMap {
        let pieces = self.pieces.iter().filter(|piece| !is_lost(piece)).cloned().collect();
        WalMap::of(self.generation, pieces, self.gaps.clone(), self.chains.clone())
    }

    /// The generation it is about.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Every piece, by timeline and start.
    pub fn pieces(&self) -> &[WalPiece] {
        &self.pieces
    }

    /// Recorded gaps.
    pub fn gaps(&self) -> &[GapEntry] {
        &self.gaps
    }

    /// The chains not yet compacted, oldest stream first.
    pub fn chains(&self) -> &[Chain] {
        &self.chains
    }

    /// The newest durable position: of the highest timeline, the greatest.
    pub fn durable_end(&self) -> Option<WalEnd> {
        self.end
    }

    /// How far WAL of `timeline` is durable without a hole from `from` on; `from` itself when that byte is not.
    pub fn contiguous_end(&self, timeline: TimelineId, from: Lsn) -> Lsn {
        let mut end = from;
        for piece in self.around(timeline, LsnRange::new(from, Lsn::MAX)) {
            if piece.range.start > end {
                break;
            }
            end = end.max(piece.range.end);
        }
        end
    }

    /// The pieces of `timeline` that hold bytes of `range`, by start.
    pub fn overlapping(&self, timeline: TimelineId, range: LsnRange) -> impl Iterator<Item = &WalPiece> {
        self.around(timeline, range).iter().filter(move |piece| piece.range.intersect(range).is_some())
    }

    /// The pieces of `timeline` from the first that may hold bytes of `range` to the last. Nothing here is proportional to the archive.
    fn around(&self, timeline: TimelineId, range: LsnRange) -> &[WalPiece] {
        let begins = self.pieces.partition_point(|piece| piece.timeline < timeline);
        let ends = self.pieces.partition_point(|piece| {
            piece.timeline < timeline || piece.timeline == timeline && piece.range.start < range.end
        });
        let reach = self.reach.get(begins..ends).unwrap_or_default();
        let first = begins + reach.partition_point(|end| *end <= range.start);
        self.pieces.get(first..ends).unwrap_or_default()
    }

    /// Maximal ranges of `timeline` that are durable without a hole.
    pub fn ranges(&self, timeline: TimelineId) -> Vec<LsnRange> {
        let mut ranges: Vec<LsnRange> = Vec::new();
        for piece in self.of_timeline(timeline) {
            match ranges.last_mut() {
                Some(last) if piece.range.start <= last.end => last.end = last.end.max(piece.range.end),
                _ => ranges.push(piece.range),
            }
        }
        ranges
    }

    /// Timelines with any durable WAL, ascending.
    pub fn timelines(&self) -> Vec<TimelineId> {
        let mut timelines: Vec<TimelineId> = self.pieces.iter().map(|piece| piece.timeline).collect();
        timelines.dedup();
        timelines
    }

    fn of_timeline(&self, timeline: TimelineId) -> impl Iterator<Item = &WalPiece> {
        let first = self.pieces.partition_point(|piece| piece.timeline < timeline);
        self.pieces.iter().skip(first).take_while(move |piece| piece.timeline == timeline)
    }
}

/// A heartbeat moves the time and not the position; a position never moves back.
fn advance(end: &mut Option<WalEnd>, timeline: TimelineId, lsn: Lsn, server_time: Timestamp) {
    let next = WalEnd { timeline, lsn, server_time };
    *end = Some(match *end {
        Some(old) if (old.timeline, old.lsn) > (timeline, lsn) => old,
        Some(old) if (old.timeline, old.lsn) == (timeline, lsn) => {
            WalEnd { server_time: old.server_time.max(server_time), ..old }
        }
        _ => next,
    });
}

/// A root with its index and the WAL that both cover, of one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The root.
    pub root: Root,
    /// Its index.
    pub index: Index,
    /// Its WAL, of the root's generation unless another was asked for.
    pub wal: Arc<WalMap>,
}

impl Snapshot {
    /// The same moment with the WAL of `generation`. When something of it is gone, a newer root moved it.
    pub async fn with_generation(
        self,
        cluster: &Cluster,
        generation: Generation,
    ) -> Result<Snapshot, RepoError> {
        self.with_chains(cluster, generation, Losses::PassedBy).await
    }

    /// The same, as [`load_unbroken`] reads chains.
    pub async fn with_generation_unbroken(
        self,
        cluster: &Cluster,
        generation: Generation,
    ) -> Result<Snapshot, RepoError> {
        self.with_chains(cluster, generation, Losses::End).await
    }

    async fn with_chains(
        self,
        cluster: &Cluster,
        generation: Generation,
        losses: Losses,
    ) -> Result<Snapshot, RepoError> {
        if self.wal.generation() == generation {
            return Ok(self);
        }
        let chains = read_chains(cluster, &self.root, generation, losses).await?;
        let (index, wal) = mapped(generation, self.index, chains);
        Ok(Snapshot { wal, index, ..self })
    }

    /// Generations whose flush objects are not all compacted, oldest first: the root's own, and those before it.
    pub fn streamed(&self) -> Vec<Generation> {
        let mut all: Vec<Generation> = self.root.streams.iter().map(|stream| stream.generation).collect();
        all.sort();
        all.dedup();
        all
    }
}

/// Reads the newest root, its index and its chains; starts again when compaction and collection move them meanwhile. A flush object that
/// is missing or damaged costs no more than its own WAL.
pub async fn load(cluster: &Cluster) -> Result<Snapshot, RepoError> {
    load_as(cluster, None, Losses::PassedBy).await
}

/// [`load`] with the WAL of `generation`, whichever the root's is by now.
pub async fn load_generation(cluster: &Cluster, generation: Generation) -> Result<Snapshot, RepoError> {
    load_as(cluster, Some(generation), Losses::PassedBy).await
}

/// [`load`] with chains that end before the first object that is missing or damaged: what takes their place must not hide a loss.
pub async fn load_unbroken(cluster: &Cluster) -> Result<Snapshot, RepoError> {
    load_as(cluster, None, Losses::End).await
}

async fn load_as(
    cluster: &Cluster,
    generation: Option<Generation>,
    losses: Losses,
) -> Result<Snapshot, RepoError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let root = cluster.newest_root().await?;
        match try_load(cluster, &root, generation.unwrap_or(root.generation), losses).await {
            Ok((index, wal)) => {
                // An empty chain may mean that a newer root moved it: only the newest root's word counts.
                let newest = cluster.newest_root().await?;
                if newest.number == root.number || tries >= RELOADS_MAX {
                    return Ok(Snapshot { root, index, wal });
                }
            }
            Err(error) if object_is_gone(&error) && tries < RELOADS_MAX => {}
            Err(error) => return Err(error),
        }
    }
}

async fn try_load(
    cluster: &Cluster,
    root: &Root,
    generation: Generation,
    losses: Losses,
) -> Result<(Index, Arc<WalMap>), RepoError> {
    let index = cluster.index(root).await?;
    let chains = read_chains(cluster, root, generation, losses).await?;
    Ok(mapped(generation, index, chains))
}

/// The WAL that both cover; the index has its gaps as they are by now, too.
fn mapped(generation: Generation, mut index: Index, chains: Vec<Chain>) -> (Index, Arc<WalMap>) {
    let wal = Arc::new(WalMap::new(generation, &index, chains));
    index.gaps = index.gaps.into_iter().filter_map(|gap| wal.as_it_is(gap)).collect();
    (index, wal)
}

async fn read_chains(
    cluster: &Cluster,
    root: &Root,
    generation: Generation,
    losses: Losses,
) -> Result<Vec<Chain>, RepoError> {
    let mut chains = Vec::new();
    for stream in root.streams.iter().filter(|stream| stream.generation == generation) {
        chains.push(chain::read(cluster, stream, losses).await?);
    }
    Ok(chains)
}

#[cfg(test)]
mod tests;
