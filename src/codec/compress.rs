//! zstd, one context a thread: making one costs more than compressing a small chunk with it.

use crate::base::ChunkId;
use crate::format::frame::{Codec, FRAME_HEAD_BYTES, TAG_BYTES};
use std::cell::RefCell;
use std::io;
use zstd::bulk::{Compressor, Decompressor};

/// zstd's level for everything written once and soon: level 1 compresses WAL as well as level 3 there, twice as fast.
pub const ZSTD_LEVEL: i32 = 1;

/// Room that a thread keeps between two frames; what a rare large one took beyond it is given back.
const SCRATCH_BYTES_KEPT: usize = 2 << 20;

thread_local! {
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A chunk as it lies in a frame, before it is sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedChunk {
    /// How it is packed.
    pub codec: Codec,
    /// The packed bytes.
    pub bytes: Vec<u8>,
    /// Bytes of the chunk itself.
    pub plain_len: usize,
    /// Its id.
    pub id: ChunkId,
}

impl PackedChunk {
    /// A delta frame of WAL of `plain_len` bytes, whose id is `id`.
    pub fn delta(frame: Vec<u8>, plain_len: usize, id: ChunkId) -> PackedChunk {
        PackedChunk { codec: Codec::Delta, bytes: frame, plain_len, id }
    }

    /// Compresses `chunk`, whose id is `id`.
    pub fn pack(chunk: &[u8], id: ChunkId) -> PackedChunk {
        let (codec, bytes) = compress(chunk);
        PackedChunk { codec, bytes, plain_len: chunk.len(), id }
    }

    /// Bytes of the frame it will be, head and tag included.
    pub fn stored_len(&self) -> usize {
        FRAME_HEAD_BYTES + self.bytes.len() + TAG_BYTES
    }
}

/// Compresses a chunk, or leaves it when that does not help.
pub fn compress(chunk: &[u8]) -> (Codec, Vec<u8>) {
    with_scratch(|scratch| {
        let codec = compress_onto(chunk, scratch);
        (codec, scratch.as_slice().to_vec())
    })
}

/// Appends a chunk to `to`, compressed when that makes it smaller.
pub fn compress_onto(chunk: &[u8], to: &mut Vec<u8>) -> Codec {
    let start = to.len();
    let packed = COMPRESSOR.with_borrow_mut(|kept| {
        let compressor = kept_or_made(kept, || Compressor::new(ZSTD_LEVEL))?;
        to.reserve(zstd::compress_bound(chunk.len()));
        let mut end = io::Cursor::new(std::mem::take(to));
        end.set_position(start as u64);
        let packed = compressor.compress_to_buffer(chunk, &mut end);
        *to = end.into_inner();
        packed
    });
    match packed {
        Ok(len) if len < chunk.len() && to.len() == start + len => Codec::Zstd,
        // Incompressible, or no memory for a context: a raw frame is always valid.
        _ => {
            to.truncate(start);
            to.extend_from_slice(chunk);
            Codec::Raw
        }
    }
}

/// Undoes [`compress`]; the error says what was found instead of `plain_len` bytes.
pub fn decompress(codec: Codec, packed: Vec<u8>, plain_len: usize) -> Result<Vec<u8>, String> {
    match codec {
        Codec::Raw => expect_len(packed, plain_len),
        Codec::Zstd => unzstd(&packed, plain_len),
        Codec::Delta => Err("a delta frame, which does not stand alone".into()),
    }
}

/// Undoes zstd. Takes `plain_len` bytes of memory at most, whatever `packed` claims.
pub(super) fn unzstd(packed: &[u8], plain_len: usize) -> Result<Vec<u8>, String> {
    let mut plain = Vec::new();
    unzstd_into(packed, plain_len, &mut plain)?;
    Ok(plain)
}

/// [`unzstd`] into `plain`, whose content is replaced. What it has room for already may be filled; more is never taken.
pub(super) fn unzstd_into(packed: &[u8], plain_len: usize, plain: &mut Vec<u8>) -> Result<(), String> {
    plain.clear();
    plain.reserve_exact(plain_len);
    DECOMPRESSOR.with_borrow_mut(|kept| {
        let error = |error: io::Error| format!("zstd: {error}");
        let decompressor = kept_or_made(kept, Decompressor::new).map_err(error)?;
        decompressor.decompress_to_buffer(packed, plain).map_err(error)?;
        if plain.len() == plain_len { Ok(()) } else { Err(format!("{} bytes", plain.len())) }
    })
}

/// Lends a buffer of this thread, empty.
pub(super) fn with_scratch<T>(work: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.clear();
        let done = work(scratch);
        if scratch.capacity() > SCRATCH_BYTES_KEPT {
            *scratch = Vec::new();
        }
        done
    })
}

fn expect_len(plain: Vec<u8>, plain_len: usize) -> Result<Vec<u8>, String> {
    if plain.len() == plain_len { Ok(plain) } else { Err(format!("{} bytes", plain.len())) }
}

fn kept_or_made<T>(kept: &mut Option<T>, make: impl FnOnce() -> io::Result<T>) -> io::Result<&mut T> {
    match kept {
        Some(context) => Ok(context),
        None => Ok(kept.insert(make()?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_back_what_it_took() {
        let repeated = b"walden ".repeat(1000);
        let noise: Vec<u8> = blake3::Hasher::new().finalize_xof().bytes(3000);
        for (chunk, codec) in [(repeated, Codec::Zstd), (noise, Codec::Raw), (Vec::new(), Codec::Raw)] {
            let (found, packed) = compress(&chunk);
            assert_eq!(found, codec);
            assert_eq!(decompress(found, packed, chunk.len()), Ok(chunk));
        }
    }

    #[test]
    fn appends_and_leaves_what_was_there() {
        let mut to = b"head".to_vec();
        compress_onto(&[7; 5000], &mut to);
        assert_eq!(to.get(..4), Some(b"head".as_slice()));
        assert!(to.len() < 100);
        assert_eq!(unzstd(&to[4..], 5000), Ok(vec![7; 5000]));
    }

    #[test]
    fn a_frame_that_unpacks_to_another_length_is_refused() {
        let (codec, packed) = compress(&[7; 5000]);
        assert!(decompress(codec, packed.clone(), 4999).is_err());
        assert!(decompress(codec, packed.clone(), 5001).is_err());
        assert!(decompress(Codec::Raw, packed, 5000).is_err());
        assert!(decompress(Codec::Zstd, b"not zstd".to_vec(), 8).is_err());
    }

    trait Xof {
        fn bytes(self, len: usize) -> Vec<u8>;
    }

    impl Xof for blake3::OutputReader {
        fn bytes(mut self, len: usize) -> Vec<u8> {
            let mut bytes = vec![0; len];
            self.fill(&mut bytes);
            bytes
        }
    }
}
