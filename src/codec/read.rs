//! Opening objects, whole or in parts, in any order. Spec: formats/object.md.
//! Refuses what stands in the wrong place, was sealed with another secret, was cut, reordered or changed.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::check::{check_header, read_trailer, slice_from};
use super::compress::{PackedChunk, unzstd_into, with_scratch};
use super::seal::{KeySource, ObjectKeys};
use crate::base::{ObjectKey, RepositoryId};
use crate::format::FormatError;
use crate::format::directory::{Directory, FrameEntry};
use crate::format::frame::{Codec, FrameHead, FrameKind, TRAILER_BYTES, Trailer, split_frame};
use crate::format::header::{HEADER_BYTES, ObjectHeader, ObjectKind};
use crate::format::record::Record;
use bytes::Bytes;

/// Why an object could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Its bytes are wrong.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// It is whole, and of a later version.
    #[error("written by a newer walden, use that version: {0}")]
    Newer(FormatError),
    /// It says it is something else.
    #[error("{what} is {found}, expected {expected}")]
    Misplaced {
        /// Which of its fields.
        what: &'static str,
        /// What it says.
        found: String,
        /// What was asked for.
        expected: String,
    },
    /// No secret of its key epoch is held.
    #[error("sealed under key epoch {epoch}, whose secret no key slot gave")]
    NoKey {
        /// Which.
        epoch: u32,
    },
    /// It was sealed with another secret.
    #[error("sealed with another secret than this repository's key epoch {epoch}")]
    WrongKey {
        /// Which.
        epoch: u32,
    },
    /// A frame does not open: it was changed, or stands in another's place.
    #[error("frame {frame}: the seal is broken")]
    Broken {
        /// Its number.
        frame: u64,
    },
    /// A frame opens, but its content is not what the directory or a reference says.
    #[error("frame {frame}: {found}, expected {expected}")]
    Content {
        /// Its number.
        frame: u64,
        /// What it holds.
        found: String,
        /// What it should.
        expected: String,
    },
}

/// What a reader insists on.
#[derive(Debug, Clone)]
pub struct Expect<'a> {
    /// The repository; `None` when any will do (`walden-inspect`).
    pub repository: Option<RepositoryId>,
    /// The key it was read under; `None` when any will do.
    pub key: Option<&'a ObjectKey>,
    /// What it should be; `None` when any will do.
    pub kind: Option<ObjectKind>,
}

/// Opens an object, or parts of one.
pub struct ObjectReader {
    header: ObjectHeader,
    keys: Box<ObjectKeys>,
}

impl std::fmt::Debug for ObjectReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectReader").field("header", &self.header).finish_non_exhaustive()
    }
}

impl ObjectReader {
    /// Reads the header at the start of `bytes` and finds its key. Refuses another repository, place or kind.
    pub fn open(bytes: &[u8], keys: &dyn KeySource, expect: &Expect<'_>) -> Result<Self, OpenError> {
        let (header, commitment) = check_header(bytes, expect)?;
        let epoch = header.key_epoch;
        let secret = keys.epoch_secret(epoch).ok_or(OpenError::NoKey { epoch })?;
        let keys = ObjectKeys::open(secret, &header, &commitment).ok_or(OpenError::WrongKey { epoch })?;
        Ok(ObjectReader { header, keys: Box::new(keys) })
    }

    /// The header.
    pub fn header(&self) -> &ObjectHeader {
        &self.header
    }

    /// Opens frame `number`, whose head stands at the start of `bytes`: CRC, seal, compression, length.
    pub fn frame(&self, number: u64, kind: FrameKind, bytes: &[u8]) -> Result<Vec<u8>, OpenError> {
        let (head, sealed) = split_frame(bytes)?;
        if head.kind != kind {
            let (found, expected) = (format!("{:?}", head.kind), format!("{kind:?}"));
            return Err(OpenError::Content { frame: number, found, expected });
        }
        self.open_frame(number, &head, sealed)
    }

    fn open_frame(&self, number: u64, head: &FrameHead, sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        let mut plain = Vec::new();
        self.open_frame_into(number, head, sealed, &mut plain)?;
        Ok(plain)
    }

    fn open_frame_into(
        &self,
        number: u64,
        head: &FrameHead,
        sealed: &[u8],
        plain: &mut Vec<u8>,
    ) -> Result<(), OpenError> {
        let broken = |_| OpenError::Broken { frame: number };
        let plain_len = head.plain_len as usize;
        match head.codec {
            Codec::Raw => self.keys.open_frame_into(number, head, sealed, plain).map_err(broken),
            Codec::Zstd => with_scratch(|packed| {
                self.keys.open_frame_into(number, head, sealed, packed).map_err(broken)?;
                unzstd_into(packed, plain_len, plain).map_err(|found| OpenError::Content {
                    frame: number,
                    found,
                    expected: format!("{plain_len} bytes"),
                })
            }),
            Codec::Delta => Err(OpenError::Content {
                frame: number,
                found: "a delta frame".into(),
                expected: "a chunk that stands alone".into(),
            }),
        }
    }

    /// What frame `number`, whose head stands at the start of `bytes`, was packed to: CRC and seal, nothing is unpacked.
    pub fn packed_frame(&self, number: u64, bytes: &[u8]) -> Result<(FrameHead, Vec<u8>), OpenError> {
        let (head, sealed) = split_frame(bytes)?;
        let packed = self.keys.open_frame(number, &head, sealed);
        Ok((head, packed.map_err(|_| OpenError::Broken { frame: number })?))
    }

    /// Opens the directory frame, whose head stands at the start of `bytes`. `frame_count` is the trailer's.
    /// Refuses one whose entries do not lie one after the other from the header on.
    pub fn directory(&self, frame_count: u32, bytes: &[u8]) -> Result<Directory, OpenError> {
        let number = u64::from(frame_count.saturating_sub(1));
        let plain = self.frame(number, FrameKind::Directory, bytes)?;
        let directory = Directory::decode(&plain)?;
        if directory.frames.len() as u64 != number {
            let found = format!("{} frames", directory.frames.len());
            return Err(OpenError::Content { frame: number, found, expected: number.to_string() });
        }
        let mut offset = HEADER_BYTES as u64;
        for (entry, frame) in directory.frames.iter().zip(0..) {
            if entry.offset != offset || entry.kind != FrameKind::Data {
                let found = format!("{:?} at byte {}", entry.kind, entry.offset);
                return Err(OpenError::Content {
                    frame,
                    found,
                    expected: format!("a chunk at byte {offset}"),
                });
            }
            offset = offset.saturating_add(head_of(entry).stored_len());
        }
        Ok(directory)
    }

    /// Opens the chunk of `entry`, frame `number`, whose head stands at the start of `bytes`. The id is checked.
    pub fn chunk(
        &self,
        number: u64,
        entry: &FrameEntry,
        bytes: &[u8],
        keys: &dyn KeySource,
    ) -> Result<Vec<u8>, OpenError> {
        let mut chunk = Vec::new();
        self.chunk_into(number, entry, bytes, keys, &mut chunk)?;
        Ok(chunk)
    }

    /// The same into `chunk`, whose content is replaced: for who looks at many, one after the other.
    pub fn chunk_into(
        &self,
        number: u64,
        entry: &FrameEntry,
        bytes: &[u8],
        keys: &dyn KeySource,
        chunk: &mut Vec<u8>,
    ) -> Result<(), OpenError> {
        let (head, sealed) = split_entry(number, entry, bytes)?;
        self.open_frame_into(number, &head, sealed, chunk)?;
        let found = keys.chunk_id_key().chunk_id(chunk);
        if found != entry.chunk {
            let (found, expected) = (format!("chunk {found}"), entry.chunk.to_string());
            return Err(OpenError::Content { frame: number, found, expected });
        }
        Ok(())
    }

    /// The same chunk as it was packed: the seal vouches for it, what it unpacks to is not checked.
    pub fn packed_chunk(
        &self,
        number: u64,
        entry: &FrameEntry,
        bytes: &[u8],
    ) -> Result<PackedChunk, OpenError> {
        let (head, sealed) = split_entry(number, entry, bytes)?;
        let packed = self.keys.open_frame(number, &head, sealed);
        Ok(PackedChunk {
            codec: head.codec,
            bytes: packed.map_err(|_| OpenError::Broken { frame: number })?,
            plain_len: head.plain_len as usize,
            id: entry.chunk,
        })
    }
}

/// Head and sealed bytes of `entry`, frame `number`, which stands at the start of `bytes` and is as the directory says.
fn split_entry<'a>(
    number: u64,
    entry: &FrameEntry,
    bytes: &'a [u8],
) -> Result<(FrameHead, &'a [u8]), OpenError> {
    let (head, sealed) = split_frame(bytes)?;
    if head != head_of(entry) {
        let (found, expected) = (head.to_string(), head_of(entry).to_string());
        return Err(OpenError::Content { frame: number, found, expected });
    }
    Ok((head, sealed))
}

/// The head that the frame of `entry` has.
fn head_of(entry: &FrameEntry) -> FrameHead {
    FrameHead {
        sealed_len: entry.sealed_len,
        plain_len: entry.plain_len,
        kind: entry.kind,
        codec: entry.codec,
    }
}

/// A whole object, opened: its directory, and its chunks on demand.
#[derive(Debug)]
pub struct OpenObject {
    bytes: Bytes,
    reader: ObjectReader,
    directory: Directory,
}

impl OpenObject {
    /// Opens `bytes`, all of an object: nothing but its frames lies between header and trailer.
    pub fn open(bytes: Bytes, keys: &dyn KeySource, expect: &Expect<'_>) -> Result<Self, OpenError> {
        let reader = ObjectReader::open(&bytes, keys, expect)?;
        let trailer = read_trailer(&bytes)?;
        let at_directory = slice_from(&bytes, trailer.directory_offset)?;
        let directory = reader.directory(trailer.frame_count, at_directory)?;
        let (head, _) = split_frame(at_directory)?;
        check_ends(&trailer, &directory, &head)?;
        Ok(OpenObject { bytes, reader, directory })
    }

    /// The header.
    pub fn header(&self) -> &ObjectHeader {
        self.reader.header()
    }

    /// The directory.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The directory's meta as a record of type `T`.
    pub fn meta<T: Record>(&self) -> Result<T, OpenError> {
        Ok(T::decode(&self.directory.meta.0)?)
    }

    /// Chunk `number`, checked.
    pub fn chunk(&self, number: usize, keys: &dyn KeySource) -> Result<Vec<u8>, OpenError> {
        let entry = self.entry(number)?;
        self.reader.chunk(number as u64, entry, slice_from(&self.bytes, entry.offset)?, keys)
    }

    /// Chunk `number`, checked, into `chunk`, whose content is replaced.
    pub fn chunk_into(
        &self,
        number: usize,
        keys: &dyn KeySource,
        chunk: &mut Vec<u8>,
    ) -> Result<(), OpenError> {
        let entry = self.entry(number)?;
        self.reader.chunk_into(number as u64, entry, slice_from(&self.bytes, entry.offset)?, keys, chunk)
    }

    /// Chunk `number` as it was packed, for another object: whoever unpacks it there checks it against its id.
    pub fn packed_chunk(&self, number: usize) -> Result<PackedChunk, OpenError> {
        let entry = self.entry(number)?;
        self.reader.packed_chunk(number as u64, entry, slice_from(&self.bytes, entry.offset)?)
    }

    fn entry(&self, number: usize) -> Result<&FrameEntry, OpenError> {
        self.directory.frames.get(number).ok_or_else(|| OpenError::Content {
            frame: number as u64,
            found: "no such frame".into(),
            expected: format!("below {}", self.directory.frames.len()),
        })
    }

    /// The BLAKE3 of the whole object.
    pub fn link(&self) -> [u8; 32] {
        *blake3::hash(&self.bytes).as_bytes()
    }
}

/// The directory follows the last chunk, and the trailer the directory.
fn check_ends(trailer: &Trailer, directory: &Directory, head: &FrameHead) -> Result<(), OpenError> {
    let last = directory.frames.last();
    let chunks_end =
        last.map_or(HEADER_BYTES as u64, |entry| entry.offset.saturating_add(head_of(entry).stored_len()));
    let directory_end = trailer.directory_offset.saturating_add(head.stored_len());
    let object_end = directory_end.saturating_add(TRAILER_BYTES as u64);
    if chunks_end == trailer.directory_offset && object_end == trailer.object_len {
        return Ok(());
    }
    Err(OpenError::Content {
        frame: directory.frames.len() as u64,
        found: format!("a directory from byte {} to {directory_end}", trailer.directory_offset),
        expected: format!("one from byte {chunks_end} to the trailer"),
    })
}
