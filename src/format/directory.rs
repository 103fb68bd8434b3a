//! The directory at the end of an object: its frames, and what the object is about. Spec: formats/object.md.

use super::frame::{Codec, FrameKind};
use super::record::{Blob, record};
use crate::base::ChunkId;

record! {
    /// Everything about an object but the chunks themselves.
    pub struct Directory {
        /// A record that depends on the object's kind: `WalMeta`, `FenceMeta`, `ManifestMeta`; empty for segments of chunks.
        pub meta: Blob,
        /// The frames before the directory, in order.
        pub frames: Vec<FrameEntry>,
    }
}

record! {
    /// One frame.
    pub struct FrameEntry {
        /// Offset of the frame's head from the start of the object.
        pub offset: u64,
        /// Bytes of ciphertext and tag.
        pub sealed_len: u32,
        /// Bytes of the chunk.
        pub plain_len: u32,
        /// What the frame is.
        pub kind: FrameKind,
        /// How it was compressed.
        pub codec: Codec,
        /// The keyed BLAKE3 of the chunk.
        pub chunk: ChunkId,
        /// For WAL, the chunk's first LSN; otherwise 0.
        pub position: u64,
    }
}
