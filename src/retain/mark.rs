//! Which stored chunks backups refer to. Every stored chunk has an entry in a table, sorted by id, in scratch room; what a manifest
//! leads to is marked there. Pages and block maps that backups share are read once.
//!
//! Memory: 64 bytes a segment, 20 a chunk in scratch room, and the directories of the segments that hold the pages and block maps
//! at hand. A segment that cannot be read is left alone: nobody knows what it holds.

use crate::base::limits::CHAIN_GETS_IN_FLIGHT;
use crate::base::{ChunkId, Memory, ObjectId};
use crate::codec::object::stored_frame_len;
use crate::format::directory::FrameEntry;
use crate::format::header::ObjectKind;
use crate::format::index::PagesEntry;
use crate::format::manifest::RunKind;
use crate::repo::chunks::{ChunkIndex, ChunkReader};
use crate::repo::manifest::Manifest;
use crate::repo::walread::open_segment;
use crate::repo::{Cluster, Index, RepoError, layout};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

/// Bytes of an entry: so much of the chunk's id that the odds of two alike are nothing (and then a dead one stays), its segment
/// and frame, what it takes there, and whether it is referred to.
const ENTRY_BYTES: usize = 20;
type Entry = [u8; ENTRY_BYTES];
type Prefix = [u8; 8];
/// Directories read at once.
const DIRECTORIES_IN_FLIGHT: usize = 4 * CHAIN_GETS_IN_FLIGHT;
/// Block maps whose segments are looked up together.
const MAPS_AT_ONCE: usize = 1024;
/// Pages of a manifest whose segments are looked up together.
const PAGES_AT_ONCE: usize = 4096;
/// Pages and block maps read ahead.
const READ_AHEAD: usize = 8;
/// Threads that open them.
const THREADS: usize = 2;

/// How much of a segment is referred to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Share {
    /// Bytes of its frames.
    pub bytes: u64,
    /// Bytes of those that are referred to.
    pub bytes_live: u64,
}

/// Every stored chunk, and whether it is referred to.
#[derive(Debug)]
pub struct Marks {
    segments: Vec<PagesEntry>,
    table: Box<dyn Memory>,
    len: usize,
}

fn entry_of(frame: &FrameEntry, segment: u32, number: u16) -> Entry {
    let mut entry = [0; ENTRY_BYTES];
    entry[..8].copy_from_slice(&prefix_of(&frame.chunk));
    entry[8..12].copy_from_slice(&segment.to_be_bytes());
    entry[12..14].copy_from_slice(&number.to_be_bytes());
    entry[16..].copy_from_slice(&(stored_frame_len(frame.sealed_len) as u32).to_be_bytes());
    entry
}

fn prefix_of(id: &ChunkId) -> Prefix {
    let mut prefix = [0; 8];
    prefix.copy_from_slice(&id.0[..8]);
    prefix
}

fn segment_of(entry: &Entry) -> u32 {
    u32::from_be_bytes([entry[8], entry[9], entry[10], entry[11]])
}

fn frame_of(entry: &Entry) -> u16 {
    u16::from_be_bytes([entry[12], entry[13]])
}

fn bytes_of(entry: &Entry) -> u64 {
    u64::from(u32::from_be_bytes([entry[16], entry[17], entry[18], entry[19]]))
}

fn is_live(entry: &Entry) -> bool {
    entry[14] != 0
}

/// What the backups of `index` refer to.
///
/// # Errors
/// [`RepoError::Damage`] for a manifest, page or block map that cannot be read: what it refers to is not known.
pub async fn mark(cluster: &Cluster, index: &Index) -> Result<Marks, RepoError> {
    let mut marks = Marks::load(cluster, &index.pages).await?;
    let (mut pages_seen, mut maps_seen) = (HashSet::new(), HashSet::new());
    for backup in &index.backups {
        let manifest = Manifest::open(cluster, &backup.id, backup.manifest_number).await?;
        let numbers = 0..manifest.pages.len();
        let fresh: Vec<usize> = numbers
            .filter(|number| manifest.pages.get(*number).is_some_and(|page| pages_seen.insert(page.chunk)))
            .collect();
        let mut maps: Vec<(ChunkId, u64)> = Vec::new();
        for some in fresh.chunks(PAGES_AT_ONCE) {
            let ids: Vec<ChunkId> =
                some.iter().filter_map(|number| manifest.pages.get(*number)).map(|page| page.chunk).collect();
            let chunks = marks.reader(cluster, &ids).await?;
            ids.iter().for_each(|id| marks.set(id));
            // Futures that borrow nothing of the loop: the compiler cannot tell otherwise that they are Send.
            let read = |number: usize| manifest.page(number, &chunks);
            let mut pages = stream::iter(some.iter().copied()).map(read).buffered(READ_AHEAD);
            while let Some(files) = pages.try_next().await? {
                for run in files.iter().flat_map(|file| &file.content) {
                    run.chunks.iter().for_each(|id| marks.set(id));
                    let map = run.chunks.first().filter(|_| run.kind == RunKind::Map);
                    maps.extend(map.filter(|id| maps_seen.insert(**id)).map(|id| (*id, run.len)));
                }
            }
        }
        for some in maps.chunks(MAPS_AT_ONCE) {
            let ids: Vec<ChunkId> = some.iter().map(|(id, _)| *id).collect();
            let chunks = marks.reader(cluster, &ids).await?;
            let read = |(id, len): (ChunkId, u64)| manifest.map(id, len, &chunks);
            let mut read = stream::iter(some.iter().copied()).map(read).buffered(READ_AHEAD);
            while let Some(runs) = read.try_next().await? {
                runs.iter().flat_map(|run| &run.chunks).for_each(|id| marks.set(id));
            }
        }
    }
    Ok(marks)
}

impl Marks {
    /// Reads the directories of `pages`, none of whose chunks is referred to yet.
    pub async fn load(cluster: &Cluster, pages: &[PagesEntry]) -> Result<Marks, RepoError> {
        let chunk_count: usize = pages.iter().map(|entry| entry.chunk_count as usize).sum();
        let bytes = chunk_count * ENTRY_BYTES;
        let no_room =
            |error: std::io::Error| RepoError::NoRoom { bytes: bytes as u64, reason: error.to_string() };
        let mut table = cluster.repo().env().scratch.memory(bytes).map_err(no_room)?;
        table.reach(bytes).map_err(no_room)?;
        let mut marks = Marks { segments: pages.to_vec(), table, len: 0 };
        let numbered: Vec<(u32, PagesEntry)> = (0..).zip(pages.iter().cloned()).collect();
        let opening = stream::iter(numbered).map(|(number, entry)| frames_of(cluster.clone(), number, entry));
        let mut opened = opening.buffer_unordered(DIRECTORIES_IN_FLIGHT);
        while let Some((number, frames)) = opened.next().await {
            match frames {
                Ok(frames) => marks.add(number, &frames),
                Err(error) if error.is_damage() => {
                    tracing::warn!(%error, "a segment of chunks cannot be read, and is left alone");
                }
                Err(error) => return Err(error),
            }
        }
        marks.entries_mut().sort_unstable();
        Ok(marks)
    }

    fn add(&mut self, segment: u32, frames: &[FrameEntry]) {
        for (frame, number) in frames.iter().zip(0..) {
            let at = self.len * ENTRY_BYTES;
            if let Some(place) = self.table.bytes_mut().get_mut(at..at + ENTRY_BYTES) {
                place.copy_from_slice(&entry_of(frame, segment, number));
                self.len += 1;
            }
        }
    }

    fn entries(&self) -> &[Entry] {
        let (entries, _) = self.table.bytes().as_chunks::<ENTRY_BYTES>();
        entries.get(..self.len).unwrap_or_default()
    }

    fn entries_mut(&mut self) -> &mut [Entry] {
        let (entries, _) = self.table.bytes_mut().as_chunks_mut::<ENTRY_BYTES>();
        entries.get_mut(..self.len).unwrap_or_default()
    }

    /// Where the entries of `prefix` begin. Ids are uniform, so that a guess is near.
    fn first(&self, prefix: Prefix) -> usize {
        let entries = self.entries();
        let before = |at: usize| entries.get(at).is_some_and(|entry| entry[..8] < prefix[..]);
        let guess = ((u128::from(u64::from_be_bytes(prefix)) * entries.len() as u128) >> 64) as usize;
        let (mut low, mut high, mut step) = (guess, guess, 8);
        while low > 0 && !before(low - 1) {
            low = low.saturating_sub(step);
            step *= 2;
        }
        step = 8;
        while before(high) {
            high = (high + step).min(entries.len());
            step *= 2;
        }
        let inside = entries.get(low..high).unwrap_or_default();
        low + inside.partition_point(|entry| entry[..8] < prefix[..])
    }

    /// Marks every place of `id`.
    pub fn set(&mut self, id: &ChunkId) {
        let prefix = prefix_of(id);
        let first = self.first(prefix);
        for entry in self.entries_mut().iter_mut().skip(first).take_while(|entry| entry[..8] == prefix) {
            entry[14] = 1;
        }
    }

    /// A reader of the chunks `ids`, by the directories of their segments alone.
    async fn reader(&self, cluster: &Cluster, ids: &[ChunkId]) -> Result<ChunkReader, RepoError> {
        let mut numbers = BTreeSet::new();
        for id in ids {
            let prefix = prefix_of(id);
            let places = self.entries().iter().skip(self.first(prefix));
            numbers.extend(places.take_while(|entry| entry[..8] == prefix).map(segment_of));
        }
        let pages: Vec<PagesEntry> =
            numbers.into_iter().filter_map(|number| self.segments.get(number as usize)).cloned().collect();
        let index = ChunkIndex::load(cluster, &pages).await?;
        Ok(ChunkReader::new(cluster.clone(), Arc::new(index), THREADS))
    }

    /// The segments that could be read, and how much of each is referred to.
    pub fn shares(&self) -> Vec<(PagesEntry, Share)> {
        let mut shares = vec![Share::default(); self.segments.len()];
        for entry in self.entries() {
            if let Some(share) = shares.get_mut(segment_of(entry) as usize) {
                share.bytes += bytes_of(entry);
                share.bytes_live += if is_live(entry) { bytes_of(entry) } else { 0 };
            }
        }
        let read = self.segments.iter().cloned().zip(shares);
        read.filter(|(_, share)| share.bytes > 0).collect()
    }

    /// The frames of `segments` that are referred to, in order.
    pub fn live_frames(&self, segments: &HashSet<ObjectId>) -> BTreeMap<ObjectId, Vec<u16>> {
        let mut frames: BTreeMap<ObjectId, Vec<u16>> = BTreeMap::new();
        for entry in self.entries().iter().filter(|entry| is_live(entry)) {
            let id = self.segments.get(segment_of(entry) as usize).map(|segment| segment.id);
            if let Some(id) = id.filter(|id| segments.contains(id)) {
                frames.entry(id).or_default().push(frame_of(entry));
            }
        }
        frames.values_mut().for_each(|frames| frames.sort_unstable());
        frames
    }
}

async fn frames_of(
    cluster: Cluster,
    number: u32,
    entry: PagesEntry,
) -> (u32, Result<Vec<FrameEntry>, RepoError>) {
    let key = layout::segment(cluster.name(), entry.id);
    let (offset, len) = (entry.directory_offset, entry.object_len);
    let opened = open_segment(&cluster, &key, ObjectKind::PagesSegment, offset, len).await;
    let frames = opened.and_then(|(_, directory)| {
        let found = directory.frames.len();
        if found != entry.chunk_count as usize || u16::try_from(found).is_err() {
            let reason = format!("{found} chunks, the index says {}", entry.chunk_count);
            return Err(RepoError::damage(&key, reason));
        }
        Ok(directory.frames)
    });
    (number, frames)
}
