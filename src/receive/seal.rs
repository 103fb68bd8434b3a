//! Turning a flush into an object: frames of WAL, its summary, and the link to the object before. On blocking threads:
//! several flushes are compressed at once, then sealed one after the other, since each carries the hash of the one before.

use super::machine::Flush;
use super::takeover::Won;
use crate::base::{Lsn, ObjectKey, limits};
use crate::codec::object::PackedChunk;
use crate::format::header::ObjectKind;
use crate::format::record::Record;
use crate::format::wal::{Predecessor, WalMeta, WalSummary};
use crate::repo::{Cluster, layout};
use crate::wal::Summarizer;
use bytes::Bytes;

/// An object ready to be stored.
#[derive(Debug)]
pub struct Sealed {
    /// Its number.
    pub number: u64,
    /// Its key.
    pub key: ObjectKey,
    /// Its bytes.
    pub bytes: Bytes,
}

/// Seals the objects of one stream, in order.
#[derive(Debug)]
pub struct Sealer {
    cluster: Cluster,
    won: Won,
    predecessor: Option<Predecessor>,
    link: [u8; 32],
    summarizer: Summarizer,
}

impl Sealer {
    /// A sealer for the stream `won`, whose WAL begins at `start`; `continues` when that is where the stream before ends.
    pub fn new(cluster: Cluster, won: Won, continues: bool, summarizer: Summarizer) -> Sealer {
        let before = won.before.as_ref().filter(|_| continues);
        let link = before.map_or([0; 32], |before| before.link);
        let predecessor = won.before.as_ref().map(|before| before.predecessor.clone());
        Sealer { cluster, won, predecessor, link, summarizer }
    }

    /// Seals the next flush.
    pub fn seal(&mut self, packed: &Packed) -> Sealed {
        let Packed { flush, frames } = packed;
        let key = layout::flush(self.cluster.name(), self.won.stream, flush.number);
        let repo = self.cluster.repo();
        let mut writer =
            repo.writer(ObjectKind::Flush, &key, self.won.stream.0, flush.number, self.won.writer_epoch);
        writer.reserve(frames.iter().map(|(_, frame)| frame.stored_len()).sum());
        frames.iter().for_each(|(at, frame)| writer.add_packed(frame, at.get()));
        let meta = WalMeta {
            generation: self.won.generation,
            timeline: self.won.timeline,
            start: flush.range.start,
            end: flush.range.end,
            server_end: flush.server_end,
            server_time: flush.server_time,
            previous_link: self.link,
            predecessor: if flush.number == 0 { self.predecessor.take() } else { None },
            summary: self.summarize(flush),
            deltas: None,
            extensions: Vec::new(),
        };
        let finished = writer.finish(meta.encode());
        self.link = finished.link();
        Sealed { number: flush.number, key, bytes: finished.bytes }
    }

    fn summarize(&mut self, flush: &Flush) -> WalSummary {
        let mut at = flush.range.start;
        for piece in &flush.pieces {
            self.summarizer.feed(at, piece);
            at = at.saturating_add(piece.len() as u64);
        }
        self.summarizer.take()
    }
}

/// A flush whose frames are compressed.
#[derive(Debug)]
pub struct Packed {
    flush: Flush,
    frames: Vec<(Lsn, PackedChunk)>,
}

/// Compresses the flush's bytes, cut at multiples of [`limits::WAL_FRAME_BYTES`], so that equal WAL makes equal chunks.
pub fn pack(cluster: &Cluster, flush: Flush) -> Packed {
    let pack = |frame: &[u8]| PackedChunk::pack(frame, cluster.repo().chunk_id(frame));
    let mut frames = Vec::new();
    let mut frame = Vec::with_capacity(limits::WAL_FRAME_BYTES);
    let mut at = flush.range.start;
    for piece in &flush.pieces {
        let mut piece = piece.clone();
        while !piece.is_empty() {
            let end = at.saturating_add(frame.len() as u64);
            let room = limits::WAL_FRAME_BYTES - (end.get() % limits::WAL_FRAME_BYTES as u64) as usize;
            let part = piece.split_to(room.min(piece.len()));
            frame.extend_from_slice(&part);
            if part.len() == room {
                frames.push((at, pack(&frame)));
                at = at.saturating_add(frame.len() as u64);
                frame.clear();
            }
        }
    }
    if !frame.is_empty() {
        frames.push((at, pack(&frame)));
    }
    Packed { flush, frames }
}
