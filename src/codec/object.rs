//! Writing whole objects: header, sealed frames, directory, trailer. Spec: formats/object.md.
//! A writer holds the object in memory until `finish`; each chunk is compressed and sealed where it will lie.

pub use super::check::{check_header, check_without_key, read_trailer, walk_frames};
pub use super::compress::{PackedChunk, ZSTD_LEVEL, compress, decompress};
pub use super::read::{Expect, ObjectReader, OpenError, OpenObject};
use super::seal::{EpochSecret, ObjectKeys};
use crate::base::ChunkId;
use crate::format::directory::{Directory, FrameEntry};
use crate::format::frame::{
    Codec, FRAME_HEAD_BYTES, FrameHead, FrameKind, TAG_BYTES, TRAILER_BYTES, Trailer,
};
use crate::format::header::ObjectHeader;
use crate::format::record::{Blob, Record};
use bytes::Bytes;

/// Builds one object in memory.
pub struct ObjectWriter {
    keys: ObjectKeys,
    bytes: Vec<u8>,
    frames: Vec<FrameEntry>,
}

impl ObjectWriter {
    /// Begins an object. `header.salt` is fresh.
    pub fn create(secret: &EpochSecret, header: &ObjectHeader) -> Self {
        let keys = ObjectKeys::create(secret, header);
        let bytes = keys.header_bytes().to_vec();
        ObjectWriter { keys, bytes, frames: Vec::new() }
    }

    /// Adds a chunk of at most [`FRAME_PLAIN_BYTES_MAX`] bytes, compressed when that helps. `id` is its keyed BLAKE3.
    ///
    /// [`FRAME_PLAIN_BYTES_MAX`]: crate::format::frame::FRAME_PLAIN_BYTES_MAX
    pub fn add(&mut self, chunk: &[u8], id: ChunkId, position: u64) {
        let offset = self.begin_frame();
        let codec = super::compress::compress_onto(chunk, &mut self.bytes);
        self.finish_data(offset, codec, chunk.len(), id, position);
    }

    /// Adds a chunk that was packed elsewhere: on another thread, or for another object.
    pub fn add_packed(&mut self, chunk: &PackedChunk, position: u64) {
        let offset = self.begin_frame();
        self.bytes.extend_from_slice(&chunk.bytes);
        self.finish_data(offset, chunk.codec, chunk.plain_len, chunk.id, position);
    }

    /// Makes room for `bytes` more at once: a large object then never moves while it grows.
    pub fn reserve(&mut self, bytes: usize) {
        self.bytes.reserve_exact(bytes);
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether no chunk was added.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Chunks so far.
    pub fn frame_count(&self) -> usize {
        self.frames.len()
    }

    /// Ends the object with its directory, whose `meta` depends on the kind.
    pub fn finish(mut self, meta: Vec<u8>) -> Finished {
        let directory = Directory { meta: Blob(meta), frames: std::mem::take(&mut self.frames) };
        let number = directory.frames.len();
        let plain = directory.encode();
        let offset = self.begin_frame();
        let codec = super::compress::compress_onto(&plain, &mut self.bytes);
        self.seal_frame(number, FrameKind::Directory, codec, offset, plain.len());
        let trailer = Trailer {
            directory_offset: offset as u64,
            frame_count: number as u32 + 1,
            object_len: (self.bytes.len() + TRAILER_BYTES) as u64,
        };
        self.bytes.extend_from_slice(&trailer.encode());
        Finished { bytes: Bytes::from(self.bytes), directory_offset: trailer.directory_offset, directory }
    }

    /// Leaves room for a frame's head; its body is to be appended. Returns the frame's offset.
    fn begin_frame(&mut self) -> usize {
        let offset = self.bytes.len();
        self.bytes.extend_from_slice(&[0; FRAME_HEAD_BYTES]);
        offset
    }

    fn finish_data(&mut self, offset: usize, codec: Codec, plain_len: usize, id: ChunkId, position: u64) {
        let head = self.seal_frame(self.frames.len(), FrameKind::Data, codec, offset, plain_len);
        self.frames.push(FrameEntry {
            offset: offset as u64,
            sealed_len: head.sealed_len,
            plain_len: head.plain_len,
            kind: head.kind,
            codec,
            chunk: id,
            position,
        });
    }

    /// Seals the body that was appended after `begin_frame` gave `offset`, and puts its head before it.
    fn seal_frame(
        &mut self,
        number: usize,
        kind: FrameKind,
        codec: Codec,
        offset: usize,
        plain_len: usize,
    ) -> FrameHead {
        assert!(plain_len <= kind.plain_bytes_max(), "a {kind:?} frame of {plain_len} bytes");
        let (_, frame) = self.bytes.split_at_mut(offset);
        let (_, body) = frame.split_at_mut(FRAME_HEAD_BYTES);
        let head = FrameHead {
            sealed_len: (body.len() + TAG_BYTES) as u32,
            plain_len: plain_len as u32,
            kind,
            codec,
        };
        let tag = self.keys.seal_slice(number as u64, &head, body);
        self.bytes.extend_from_slice(&tag);
        let (_, frame) = self.bytes.split_at_mut(offset);
        let (head_bytes, sealed) = frame.split_at_mut(FRAME_HEAD_BYTES);
        head_bytes.copy_from_slice(&head.encode(sealed));
        head
    }
}

/// A finished object.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Its bytes.
    pub bytes: Bytes,
    /// Where its directory frame's head is.
    pub directory_offset: u64,
    /// Its directory.
    pub directory: Directory,
}

impl Finished {
    /// The BLAKE3 of the whole object: the link that the next of its stream carries.
    pub fn link(&self) -> [u8; 32] {
        *blake3::hash(&self.bytes).as_bytes()
    }
}

/// Bytes that a frame of `sealed_len` takes in the object, head included.
pub fn stored_frame_len(sealed_len: u32) -> u64 {
    FRAME_HEAD_BYTES as u64 + u64::from(sealed_len)
}

#[cfg(test)]
mod tests;
