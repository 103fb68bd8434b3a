//! Writing and reading whole objects: header, sealed frames, directory, trailer. Spec: formats/object.md.
//! A writer holds the object in memory until `finish`; a reader opens any part it is given, in any order.

use super::seal::{EpochSecret, KeySource, ObjectKeys};
use crate::base::{ChunkId, ObjectKey, RepositoryId};
use crate::format::directory::{Directory, FrameEntry};
use crate::format::frame::{Codec, FRAME_HEAD_BYTES, FRAME_PLAIN_BYTES_MAX, FrameHead, FrameKind, TAG_BYTES};
use crate::format::frame::{TRAILER_BYTES, Trailer, split_frame};
use crate::format::header::{HEADER_BYTES, ObjectHeader, ObjectKind};
use crate::format::record::{Blob, Record};
use crate::format::{FormatError, Reader};
use bytes::Bytes;

/// zstd's level for everything written once and soon: level 1 compresses WAL as well as level 3 there, twice as fast.
pub const ZSTD_LEVEL: i32 = 1;

/// Why an object could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Its bytes are wrong.
    #[error(transparent)]
    Format(#[from] FormatError),
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
    pub fn add(&mut self, chunk: &[u8], id: ChunkId, position: u64) {
        let (codec, packed) = compress(chunk);
        self.add_packed(codec, packed, chunk.len(), id, position);
    }

    /// Adds a chunk that [`compress`] packed elsewhere, on another thread perhaps.
    pub fn add_packed(
        &mut self,
        codec: Codec,
        packed: Vec<u8>,
        plain_len: usize,
        id: ChunkId,
        position: u64,
    ) {
        let offset = self.bytes.len() as u64;
        let head = self.push_frame(FrameKind::Data, codec, packed, plain_len);
        self.frames.push(FrameEntry {
            offset,
            sealed_len: head.sealed_len,
            plain_len: head.plain_len,
            kind: head.kind,
            codec,
            chunk: id,
            position,
        });
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
        let directory_offset = self.bytes.len() as u64;
        let plain = directory.encode();
        let (codec, packed) = compress(&plain);
        self.push_frame(FrameKind::Directory, codec, packed, plain.len());
        let trailer = Trailer {
            directory_offset,
            frame_count: directory.frames.len() as u32 + 1,
            object_len: (self.bytes.len() + TRAILER_BYTES) as u64,
        };
        self.bytes.extend_from_slice(&trailer.encode());
        Finished { bytes: Bytes::from(self.bytes), directory_offset, directory }
    }

    fn push_frame(
        &mut self,
        kind: FrameKind,
        codec: Codec,
        mut packed: Vec<u8>,
        plain_len: usize,
    ) -> FrameHead {
        assert!(plain_len <= FRAME_PLAIN_BYTES_MAX, "a frame of {plain_len} bytes");
        let counter = self.frames.len() as u64;
        let sealed_len = (packed.len() + TAG_BYTES) as u32;
        let head = FrameHead { sealed_len, plain_len: plain_len as u32, kind, codec };
        self.keys.seal(counter, &head, &mut packed);
        self.bytes.extend_from_slice(&head.encode(&packed));
        self.bytes.extend_from_slice(&packed);
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

/// Opens an object, or parts of one.
pub struct ObjectReader {
    header: ObjectHeader,
    keys: ObjectKeys,
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
        Ok(ObjectReader { header, keys })
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
        let packed =
            self.keys.open_frame(number, &head, sealed).map_err(|_| OpenError::Broken { frame: number })?;
        decompress(head.codec, packed, head.plain_len as usize).map_err(|found| OpenError::Content {
            frame: number,
            found,
            expected: format!("{} bytes", head.plain_len),
        })
    }

    /// Opens the directory frame, whose head stands at the start of `bytes`. `frame_count` is the trailer's.
    pub fn directory(&self, frame_count: u32, bytes: &[u8]) -> Result<Directory, OpenError> {
        let number = u64::from(frame_count.saturating_sub(1));
        let plain = self.frame(number, FrameKind::Directory, bytes)?;
        let directory = Directory::decode(&plain)?;
        if directory.frames.len() as u64 != number {
            let found = format!("{} frames", directory.frames.len());
            return Err(OpenError::Content { frame: number, found, expected: number.to_string() });
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
        let chunk = self.frame(number, FrameKind::Data, bytes)?;
        let found = keys.chunk_id_key().chunk_id(&chunk);
        if found != entry.chunk {
            let (found, expected) = (format!("chunk {found}"), entry.chunk.to_string());
            return Err(OpenError::Content { frame: number, found, expected });
        }
        Ok(chunk)
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
    /// Opens `bytes`, all of an object.
    pub fn open(bytes: Bytes, keys: &dyn KeySource, expect: &Expect<'_>) -> Result<Self, OpenError> {
        let reader = ObjectReader::open(&bytes, keys, expect)?;
        let trailer = read_trailer(&bytes)?;
        let directory =
            reader.directory(trailer.frame_count, slice_from(&bytes, trailer.directory_offset)?)?;
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
        let entry = self.directory.frames.get(number).ok_or_else(|| OpenError::Content {
            frame: number as u64,
            found: "no such frame".into(),
            expected: format!("below {}", self.directory.frames.len()),
        })?;
        self.reader.chunk(number as u64, entry, slice_from(&self.bytes, entry.offset)?, keys)
    }

    /// The BLAKE3 of the whole object.
    pub fn link(&self) -> [u8; 32] {
        *blake3::hash(&self.bytes).as_bytes()
    }
}

/// Reads and checks a header without keys.
pub fn check_header(bytes: &[u8], expect: &Expect<'_>) -> Result<(ObjectHeader, [u8; 32]), OpenError> {
    let (header, commitment) = ObjectHeader::decode(bytes.get(..HEADER_BYTES).unwrap_or(bytes))?;
    let misplaced = |what, found: String, expected: String| OpenError::Misplaced { what, found, expected };
    if let Some(expected) = expect.kind.filter(|kind| *kind != header.kind) {
        return Err(misplaced("its kind", format!("{:?}", header.kind), format!("{expected:?}")));
    }
    if let Some(expected) = expect.repository.filter(|id| *id != header.repository) {
        return Err(misplaced("its repository", header.repository.to_string(), expected.to_string()));
    }
    if let Some(key) = expect.key.filter(|key| ObjectHeader::place_of(key) != header.place) {
        return Err(misplaced("its place", "another object's".into(), key.to_string()));
    }
    Ok((header, commitment))
}

/// Checks the CRC of every frame and the trailer, without keys. Returns the header and the count of frames.
pub fn check_without_key(bytes: &[u8], expect: &Expect<'_>) -> Result<(ObjectHeader, u32), OpenError> {
    let (header, _) = check_header(bytes, expect)?;
    let trailer = read_trailer(bytes)?;
    let mut offset = HEADER_BYTES as u64;
    for number in 0..trailer.frame_count {
        let (head, _) = split_frame(slice_from(bytes, offset)?)?;
        let last = number + 1 == trailer.frame_count;
        if last != (head.kind == FrameKind::Directory) || (last && offset != trailer.directory_offset) {
            let expected = "the directory as the last frame, where the trailer says".into();
            return Err(OpenError::Content {
                frame: number.into(),
                found: format!("{:?}", head.kind),
                expected,
            });
        }
        offset += head.stored_len();
    }
    if offset + TRAILER_BYTES as u64 != bytes.len() as u64 {
        let found = format!("frames end at byte {offset}");
        let expected = format!("{}", bytes.len() - TRAILER_BYTES);
        return Err(OpenError::Content { frame: trailer.frame_count.into(), found, expected });
    }
    Ok((header, trailer.frame_count))
}

/// The trailer of a whole object.
pub fn read_trailer(bytes: &[u8]) -> Result<Trailer, OpenError> {
    let start = bytes.len().saturating_sub(TRAILER_BYTES);
    Ok(Trailer::decode(bytes.get(start..).unwrap_or_default(), bytes.len() as u64)?)
}

fn slice_from(bytes: &[u8], offset: u64) -> Result<&[u8], OpenError> {
    let mut from = Reader::new("object", bytes);
    from.take(usize::try_from(offset).unwrap_or(usize::MAX))?;
    Ok(bytes.get(from.position()..).unwrap_or_default())
}

/// Compresses a chunk, or leaves it when that does not help.
pub fn compress(chunk: &[u8]) -> (Codec, Vec<u8>) {
    match zstd::bulk::compress(chunk, ZSTD_LEVEL) {
        Ok(packed) if packed.len() < chunk.len() => (Codec::Zstd, packed),
        _ => (Codec::Raw, chunk.to_vec()),
    }
}

/// Undoes [`compress`]; the error says what was found instead of `plain_len` bytes.
pub fn decompress(codec: Codec, packed: Vec<u8>, plain_len: usize) -> Result<Vec<u8>, String> {
    let plain = match codec {
        Codec::Raw => packed,
        Codec::Zstd => zstd::bulk::decompress(&packed, plain_len).map_err(|e| format!("zstd: {e}"))?,
    };
    if plain.len() == plain_len { Ok(plain) } else { Err(format!("{} bytes", plain.len())) }
}

/// Bytes that a frame of `sealed_len` takes in the object, head included.
pub fn stored_frame_len(sealed_len: u32) -> u64 {
    FRAME_HEAD_BYTES as u64 + u64::from(sealed_len)
}
