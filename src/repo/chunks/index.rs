//! The index of stored chunks: from id to segment and frame, read from the segments' directories.
//! A segment that is gone or damaged is left out, so that a backup stores its chunks again; nothing is believed unseen.

use super::{Prefix, SHARDS, prefix_of, shard_of};
use crate::base::limits::CHAIN_GETS_IN_FLIGHT;
use crate::base::{ChunkId, ObjectKey};
use crate::codec::object::{ObjectReader, stored_frame_len};
use crate::format::directory::FrameEntry;
use crate::format::header::{HEADER_BYTES, ObjectKind};
use crate::format::index::PagesEntry;
use crate::repo::walread::open_segment;
use crate::repo::{Cluster, RepoError, layout};
use futures_util::{StreamExt, stream};
use std::ops::Range;

/// Where a chunk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// The segment's number in the index.
    pub(super) segment: u32,
    /// The frame in it.
    pub(super) frame: u32,
}

impl Location {
    /// The number of its segment, as in [`ChunkIndex::segment_keys`].
    pub fn segment_number(self) -> usize {
        self.segment as usize
    }

    /// The number of its frame in the segment.
    pub fn frame_number(self) -> usize {
        self.frame as usize
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    prefix: Prefix,
    location: Location,
}

/// A segment of the index.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) key: ObjectKey,
    pub(super) reader: ObjectReader,
    /// Where each frame starts, and where the last one ends.
    starts: Box<[u32]>,
}

impl Segment {
    /// The stored bytes of `frame`, its head included.
    pub(super) fn frame_range(&self, frame: u32) -> Range<u64> {
        let at = |number: usize| self.starts.get(number).copied().map_or(0, u64::from);
        at(frame as usize)..at(frame as usize + 1)
    }
}

/// A segment that the index names and that cannot be read.
#[derive(Debug)]
pub struct LostSegment {
    /// Its key.
    pub key: ObjectKey,
    /// Why.
    pub error: RepoError,
}

/// Which chunks are stored, and where.
#[derive(Debug)]
pub struct ChunkIndex {
    segments: Vec<Segment>,
    /// By the first bits of the id; each sorted by prefix, then location.
    shards: Vec<Vec<Entry>>,
    lost: Vec<LostSegment>,
}

impl ChunkIndex {
    /// An index of nothing.
    pub fn empty() -> Self {
        ChunkIndex { segments: Vec::new(), shards: vec![Vec::new(); SHARDS], lost: Vec::new() }
    }

    /// Bytes of memory that an index of `pages` takes.
    pub fn bytes_for(pages: &[PagesEntry]) -> u64 {
        let chunk_count: u64 = pages.iter().map(|entry| u64::from(entry.chunk_count)).sum();
        chunk_count * (size_of::<Entry>() + size_of::<u32>()) as u64
    }

    /// Reads the directories of `pages`, the segments of a root's index: those that wait for deletion are not among them.
    ///
    /// # Errors
    /// A store that fails, or a key epoch without secret. Segments that are damaged or gone are no error: [`Self::lost`].
    pub async fn load(cluster: &Cluster, pages: &[PagesEntry]) -> Result<ChunkIndex, RepoError> {
        let mut index = ChunkIndex::empty();
        let chunk_count: usize = pages.iter().map(|entry| entry.chunk_count as usize).sum();
        // Ids are uniform: a shard's share varies by the square root of it. Room for three times that, and no doubling.
        let share = chunk_count / SHARDS;
        let room = share + 3 * share.isqrt() + 1;
        index.shards.iter_mut().for_each(|shard| shard.reserve_exact(if chunk_count > 0 { room } else { 0 }));
        // Futures that borrow nothing: the compiler cannot tell otherwise that they are Send.
        let opening = stream::iter(pages.to_vec()).map(|entry| open(cluster.clone(), entry));
        let mut opened = opening.buffered(CHAIN_GETS_IN_FLIGHT);
        while let Some((key, result)) = opened.next().await {
            match result {
                Ok(segment) => index.add(key, segment),
                Err(error) if error.is_damage() => {
                    index.lost.push(LostSegment { key, error });
                }
                Err(error) => return Err(error),
            }
        }
        index.shards.iter_mut().for_each(|shard| shard.sort_unstable_by_key(|e| (e.prefix, e.location)));
        Ok(index)
    }

    fn add(&mut self, key: ObjectKey, (reader, frames): (ObjectReader, Vec<FrameEntry>)) {
        let segment = self.segments.len() as u32;
        let mut starts: Vec<u32> = Vec::with_capacity(frames.len() + 1);
        starts.extend(frames.iter().map(|frame| frame.offset as u32));
        let end = frames.last().map_or(0, |last| last.offset + stored_frame_len(last.sealed_len));
        starts.push(end as u32);
        for (frame, entry) in (0..).zip(&frames) {
            let prefix = prefix_of(&entry.chunk);
            if let Some(shard) = self.shards.get_mut(shard_of(&prefix)) {
                shard.push(Entry { prefix, location: Location { segment, frame } });
            }
        }
        self.segments.push(Segment { key, reader, starts: starts.into_boxed_slice() });
    }

    /// Where `id` is stored; where it is stored more than once, the first of the places.
    pub fn find(&self, id: &ChunkId) -> Option<Location> {
        self.find_all(id).next()
    }

    /// Every place of `id`.
    pub fn find_all(&self, id: &ChunkId) -> impl Iterator<Item = Location> + use<'_> {
        let prefix = prefix_of(id);
        let shard = self.shards.get(shard_of(&prefix)).map_or(&[][..], Vec::as_slice);
        let first = shard.partition_point(|entry| entry.prefix < prefix);
        shard.iter().skip(first).take_while(move |entry| entry.prefix == prefix).map(|entry| entry.location)
    }

    /// Bytes that a chunk takes in its segment.
    pub fn stored_bytes(&self, at: Location) -> u64 {
        let range = self.segment(at).map_or(0..0, |segment| segment.frame_range(at.frame));
        range.end.saturating_sub(range.start)
    }

    /// Places of chunks.
    pub fn len(&self) -> usize {
        self.shards.iter().map(Vec::len).sum()
    }

    /// Whether nothing is stored.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Segments that could not be read; their chunks are not in this index.
    pub fn lost(&self) -> &[LostSegment] {
        &self.lost
    }

    /// The keys of the segments that were read.
    pub fn segment_keys(&self) -> impl Iterator<Item = &ObjectKey> {
        self.segments.iter().map(|segment| &segment.key)
    }

    /// How many frames each of them has, in the same order.
    pub fn frame_counts(&self) -> impl Iterator<Item = usize> {
        self.segments.iter().map(|segment| segment.starts.len().saturating_sub(1))
    }

    /// The segment that holds `at`.
    pub fn segment_key(&self, at: Location) -> Option<&ObjectKey> {
        self.segment(at).map(|segment| &segment.key)
    }

    pub(super) fn segment(&self, at: Location) -> Option<&Segment> {
        self.segments.get(at.segment as usize)
    }
}

/// Opens one segment; the key comes along, for the report.
async fn open(
    cluster: Cluster,
    entry: PagesEntry,
) -> (ObjectKey, Result<(ObjectReader, Vec<FrameEntry>), RepoError>) {
    let key = layout::segment(cluster.name(), entry.id);
    let opened = async {
        let (offset, len) = (entry.directory_offset, entry.object_len);
        let (reader, directory) = open_segment(&cluster, &key, ObjectKind::PagesSegment, offset, len).await?;
        check_frames(&key, &entry, &directory.frames)?;
        Ok((reader, directory.frames))
    };
    let result = opened.await;
    (key, result)
}

/// Frames stand one behind the other, from the header to the directory, within 32 bits.
fn check_frames(key: &ObjectKey, entry: &PagesEntry, frames: &[FrameEntry]) -> Result<(), RepoError> {
    if frames.len() != entry.chunk_count as usize {
        let found = format!("{} chunks, the index says {}", frames.len(), entry.chunk_count);
        return Err(RepoError::damage(key, found));
    }
    let mut at = HEADER_BYTES as u64;
    for (number, frame) in frames.iter().enumerate() {
        if frame.offset != at {
            let found = format!("its directory puts frame {number} at byte {}, not {at}", frame.offset);
            return Err(RepoError::damage(key, found));
        }
        at += stored_frame_len(frame.sealed_len);
    }
    if at != entry.directory_offset || at > u64::from(u32::MAX) {
        return Err(RepoError::damage(
            key,
            format!("its frames end at byte {at}, not {}", entry.directory_offset),
        ));
    }
    Ok(())
}
