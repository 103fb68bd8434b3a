//! The plain head of a frame and the trailer of an object. Spec: formats/object.md.
//! Lengths and a CRC-32 let a host without keys find rot; the authenticated data binds them for one with keys.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::bytes::{FormatError, Reader, Writer};
use super::header::HEADER_BYTES;
use super::record::{Field, code};
use std::fmt;

/// A frame head's length in bytes.
pub const FRAME_HEAD_BYTES: usize = 16;
/// The trailer's length in bytes.
pub const TRAILER_BYTES: usize = 32;
/// The most plaintext a chunk may hold.
pub const FRAME_PLAIN_BYTES_MAX: usize = 16 << 20;
/// The most plaintext a directory may hold: a segment of WAL that is nothing but commits that drop something.
pub const DIRECTORY_PLAIN_BYTES_MAX: usize = 64 << 20;
/// The tag that Poly1305 adds.
pub const TAG_BYTES: usize = 16;
const TRAILER_MAGIC: [u8; 4] = *b"\x1aEND";

code! {
    /// What a frame is.
    pub enum FrameKind {
        /// A chunk.
        Data = 1,
        /// The directory, always the last frame.
        Directory = 2,
    }
}

code! {
    /// How a frame's plaintext was made smaller.
    pub enum Codec {
        /// Not at all.
        Raw = 0,
        /// zstd, one zstd frame.
        Zstd = 1,
        /// A delta frame of WAL (formats/deltas.md), of compacted WAL segments alone: it may need frames before it.
        Delta = 2,
    }
}

/// The plain head of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHead {
    /// Bytes of ciphertext and tag that follow.
    pub sealed_len: u32,
    /// Bytes of the chunk once opened and decompressed.
    pub plain_len: u32,
    /// What the frame is.
    pub kind: FrameKind,
    /// How it was compressed.
    pub codec: Codec,
}

/// For messages: `Data frame, Zstd, 9064 bytes sealed of 32768`.
impl fmt::Display for FrameHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FrameHead { sealed_len, plain_len, kind, codec } = self;
        write!(f, "{kind:?} frame, {codec:?}, {sealed_len} bytes sealed of {plain_len}")
    }
}

impl FrameKind {
    /// The most plaintext a frame of this kind may hold.
    pub const fn plain_bytes_max(self) -> usize {
        match self {
            FrameKind::Data => FRAME_PLAIN_BYTES_MAX,
            FrameKind::Directory => DIRECTORY_PLAIN_BYTES_MAX,
        }
    }
}

impl FrameHead {
    /// The head without its CRC: what the CRC and the associated data cover.
    pub fn bound_bytes(&self) -> [u8; 12] {
        let [s0, s1, s2, s3] = self.sealed_len.to_le_bytes();
        let [p0, p1, p2, p3] = self.plain_len.to_le_bytes();
        [s0, s1, s2, s3, p0, p1, p2, p3, self.kind as u8, self.codec as u8, 0, 0]
    }

    /// The CRC of this head and `sealed`.
    pub fn crc(&self, sealed: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.bound_bytes());
        hasher.update(sealed);
        hasher.finalize()
    }

    /// The head as stored, with the CRC of `sealed`.
    pub fn encode(&self, sealed: &[u8]) -> [u8; FRAME_HEAD_BYTES] {
        let mut bytes = [0; FRAME_HEAD_BYTES];
        let (bound, crc) = bytes.split_at_mut(12);
        bound.copy_from_slice(&self.bound_bytes());
        crc.copy_from_slice(&self.crc(sealed).to_le_bytes());
        bytes
    }

    /// Reads a head and its CRC. Refuses lengths no frame has.
    pub fn decode(bytes: &[u8]) -> Result<(FrameHead, u32), FormatError> {
        let mut from = Reader::new("frame head", bytes);
        let sealed_len = u32::get(&mut from)?;
        let plain_len = u32::get(&mut from)?;
        let kind = FrameKind::get(&mut from)?;
        let codec = Codec::get(&mut from)?;
        if plain_len as usize > kind.plain_bytes_max() {
            return Err(FormatError::new("frame head", 4, plain_len, "a possible chunk length"));
        }
        // What does not get smaller is stored raw, so nothing is longer than its plaintext and a tag.
        let body_len = u64::from(sealed_len).checked_sub(TAG_BYTES as u64);
        let possible = match codec {
            Codec::Raw => body_len == Some(u64::from(plain_len)),
            Codec::Zstd | Codec::Delta => {
                body_len.is_some_and(|len| (1..u64::from(plain_len)).contains(&len))
            }
        };
        if !possible {
            return Err(FormatError::new("frame head", 0, sealed_len, "a possible frame length"));
        }
        let before = from.clone();
        if u16::get(&mut from)? != 0 {
            return Err(before.error("reserved bytes that are not zero", "zeros"));
        }
        let crc = u32::get(&mut from)?;
        Ok((FrameHead { sealed_len, plain_len, kind, codec }, crc))
    }

    /// Head and sealed bytes together.
    pub fn stored_len(&self) -> u64 {
        (FRAME_HEAD_BYTES as u64).saturating_add(u64::from(self.sealed_len))
    }
}

/// Reads the frame at the start of `bytes`: head and sealed bytes, CRC checked.
pub fn split_frame(bytes: &[u8]) -> Result<(FrameHead, &[u8]), FormatError> {
    let (head, crc) = FrameHead::decode(bytes)?;
    let mut from = Reader::new("frame", bytes);
    from.take(FRAME_HEAD_BYTES)?;
    let sealed = from.take(head.sealed_len as usize)?;
    let found = head.crc(sealed);
    if found != crc {
        return Err(FormatError::new("frame", 0, format!("crc {found:08x}"), format!("{crc:08x}")));
    }
    Ok((head, sealed))
}

/// The end of a whole object: where its directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// Offset of the directory frame's head.
    pub directory_offset: u64,
    /// Frames of the object, the directory included.
    pub frame_count: u32,
    /// Bytes of the whole object, this trailer included.
    pub object_len: u64,
}

impl Trailer {
    /// The trailer as stored.
    pub fn encode(&self) -> [u8; TRAILER_BYTES] {
        let mut to = Writer::new();
        self.directory_offset.put(&mut to);
        self.object_len.put(&mut to);
        self.frame_count.put(&mut to);
        0u32.put(&mut to);
        let bound = to.into_bytes();
        let mut bytes = [0; TRAILER_BYTES];
        let (fields, end) = bytes.split_at_mut(24);
        fields.copy_from_slice(&bound);
        let (crc, magic) = end.split_at_mut(4);
        crc.copy_from_slice(&crc32fast::hash(&bound).to_le_bytes());
        magic.copy_from_slice(&TRAILER_MAGIC);
        bytes
    }

    /// Reads the last bytes of an object of `object_len` bytes. Refuses another length: a truncated or padded object.
    pub fn decode(bytes: &[u8], object_len: u64) -> Result<Trailer, FormatError> {
        let mut from = Reader::new("object trailer", bytes);
        let bound = from.clone().take(24)?;
        let directory_offset = u64::get(&mut from)?;
        let stored_len = u64::get(&mut from)?;
        let frame_count = u32::get(&mut from)?;
        from.take(4)?;
        let before = from.clone();
        let (crc, found) = (u32::get(&mut from)?, crc32fast::hash(bound));
        if crc != found || from.array()? != TRAILER_MAGIC {
            return Err(before.error("no trailer", "the end of a whole object"));
        }
        if bound.get(20..24) != Some(&[0; 4]) {
            return Err(before.error("reserved bytes that are not zero", "zeros"));
        }
        from.finish()?;
        if stored_len != object_len {
            let found = format!("an object of {object_len} bytes");
            return Err(FormatError::new("object trailer", 8, found, format!("{stored_len} bytes")));
        }
        let room = (TRAILER_BYTES + FRAME_HEAD_BYTES) as u64;
        let directory = HEADER_BYTES as u64..=object_len.saturating_sub(room);
        if !directory.contains(&directory_offset) {
            let expected = format!("{} to {}", directory.start(), directory.end());
            return Err(FormatError::new(
                "object trailer",
                0,
                format!("directory at {directory_offset}"),
                expected,
            ));
        }
        if frame_count == 0 {
            return Err(FormatError::new("object trailer", 16, "no frames", "a directory at least"));
        }
        Ok(Trailer { directory_offset, frame_count, object_len })
    }
}
