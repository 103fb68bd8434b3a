//! Images that PostgreSQL compressed: unpacked to be stored as any image is, and packed again to the same bytes. Spec: formats/deltas.md.
//!
//! Invariant: what packs is specified and our own, never a library that may change: a frame decodes for ever. An image that does not come
//! back that way stays as it came, and so do those of zstd, whose entropy coding is too much to specify.

#![deny(clippy::indexing_slicing)]

use super::limits::FRAME_PLAIN_BYTES_MAX;
use super::overlap::Broken;
use super::pglz::{CharSign, TooManyLooks};
use super::records::ImageAt;
use super::structure::ImageShape;
use super::{lz4, pglz};
use crate::wal::record::ImageCompression;

/// In `Sources`: the image is packed by pglz with unsigned bytes.
pub const UNSIGNED: u8 = 0x80;

/// What makes an image as it was in the WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// pglz.
    Pglz(CharSign),
    /// A block of LZ4.
    Lz4,
}

impl Packing {
    /// The one of an image compressed by `compression` with these `flags` in `Sources`, if that can be.
    pub fn of(compression: ImageCompression, flags: u8) -> Option<Packing> {
        match (compression, flags) {
            (ImageCompression::Pglz, 0) => Some(Packing::Pglz(CharSign::Signed)),
            (ImageCompression::Pglz, UNSIGNED) => Some(Packing::Pglz(CharSign::Unsigned)),
            (ImageCompression::Lz4, 0) => Some(Packing::Lz4),
            _ => None,
        }
    }

    /// Its flags in `Sources`.
    pub fn flags(self) -> u8 {
        match self {
            Packing::Pglz(CharSign::Unsigned) => UNSIGNED,
            Packing::Pglz(CharSign::Signed) | Packing::Lz4 => 0,
        }
    }
}

/// Images of a frame as they were before PostgreSQL compressed them, without their holes.
#[derive(Debug, Default)]
pub struct PlainImages {
    bytes: Vec<u8>,
    /// By number.
    images: Vec<PlainImage>,
}

#[derive(Debug, Clone, Copy)]
struct PlainImage {
    number: usize,
    start: usize,
    packing: Packing,
}

impl PlainImages {
    /// Forgets everything, keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.images.clear();
    }

    /// Image `number` comes next, after those of lower numbers: its bytes are appended to what is returned.
    pub fn begin(&mut self, number: usize, packing: Packing) -> &mut Vec<u8> {
        self.images.push(PlainImage { number, start: self.bytes.len(), packing });
        &mut self.bytes
    }

    fn take_back(&mut self) {
        if let Some(image) = self.images.pop() {
            self.bytes.truncate(image.start);
        }
    }

    /// Image `number`, if it is one of them.
    pub fn get(&self, number: usize) -> Option<&[u8]> {
        Some(self.find(number)?.1)
    }

    /// Its flags in `Sources`.
    pub fn flags(&self, number: usize) -> u8 {
        self.find(number).map_or(0, |(packing, _)| packing.flags())
    }

    fn find(&self, number: usize) -> Option<(Packing, &[u8])> {
        let at = self.images.binary_search_by_key(&number, |image| image.number).ok()?;
        let end = self.images.get(at + 1).map_or(self.bytes.len(), |next| next.start);
        let image = self.images.get(at)?;
        Some((image.packing, self.bytes.get(image.start..end)?))
    }
}

/// What the encoder of a frame knows of its images: so its verifier packs none of them again that came back as they were unpacked, since
/// to pack the same gives the same.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// The images that it unpacked, each of which packs to what is in `body`.
    pub plain: &'a PlainImages,
    /// All images.
    pub images: &'a [ImageAt],
    /// The body of the frame.
    pub body: &'a [u8],
}

impl<'a> Known<'a> {
    fn packed(&self, number: usize, packing: Packing, plain: &[u8]) -> Option<&'a [u8]> {
        let same = self.plain.find(number)? == (packing, plain);
        Some(self.images.get(number)?.bytes(self.body)).filter(|_| same)
    }
}

/// Packs and unpacks. Keeps its memory.
#[derive(Debug)]
pub struct Repacker {
    pglz: pglz::Compressor,
    lz4: lz4::Compressor,
    packed: Vec<u8>,
    /// The sign that gave the last image back.
    sign: CharSign,
}

impl Default for Repacker {
    fn default() -> Self {
        Repacker {
            pglz: pglz::Compressor::default(),
            lz4: lz4::Compressor::default(),
            packed: Vec::new(),
            sign: CharSign::Signed,
        }
    }
}

impl Repacker {
    /// Unpacks image `number`, which has this `shape` and these `bytes`, into `to`; returns what packs it to the same bytes. `None`: it
    /// stays as it came.
    pub fn unpack(
        &mut self,
        number: usize,
        shape: &ImageShape,
        bytes: &[u8],
        to: &mut PlainImages,
    ) -> Option<Packing> {
        let len = shape.hole.image_bytes();
        if to.bytes.len() + len > FRAME_PLAIN_BYTES_MAX {
            return None;
        }
        let tries = match shape.compression {
            ImageCompression::Pglz => {
                [Some(Packing::Pglz(self.sign)), Some(Packing::Pglz(self.other_sign()))]
            }
            ImageCompression::Lz4 => [Some(Packing::Lz4), None],
            ImageCompression::None | ImageCompression::Zstd => [None, None],
        };
        let [Some(first), _] = tries else { return None };
        let start = to.bytes.len();
        let unpacked = match first {
            Packing::Pglz(_) => pglz::decompress(bytes, len, to.begin(number, first)),
            Packing::Lz4 => lz4::decompress(bytes, len, to.begin(number, first)),
        };
        let plain = to.bytes.get(start..).unwrap_or(&[]);
        let found = match unpacked {
            Err(Broken) => None,
            Ok(()) => tries
                .into_iter()
                .flatten()
                .find(|packing| self.pack(*packing, plain).is_ok() && self.packed == bytes),
        };
        match (found, to.images.last_mut()) {
            (Some(packing), Some(image)) => image.packing = packing,
            _ => to.take_back(),
        }
        if let Some(Packing::Pglz(sign)) = found {
            self.sign = sign;
        }
        found
    }

    fn other_sign(&self) -> CharSign {
        match self.sign {
            CharSign::Signed => CharSign::Unsigned,
            CharSign::Unsigned => CharSign::Signed,
        }
    }

    /// Makes `packed` of `plain`.
    fn pack(&mut self, packing: Packing, plain: &[u8]) -> Result<(), TooManyLooks> {
        self.packed.clear();
        match packing {
            Packing::Pglz(sign) => self.pglz.compress(plain, sign, &mut self.packed),
            Packing::Lz4 => {
                self.lz4.compress(plain, &mut self.packed);
                Ok(())
            }
        }
    }

    /// Appends image `number` of `plain`, which takes `len` bytes, packed. Of another length or with too many looks it is not the image
    /// that was encoded, which the frame's BLAKE3 tells: then it is cut, or zeros stand for what is missing.
    pub fn put(
        &mut self,
        number: usize,
        len: usize,
        plain: &PlainImages,
        known: Option<Known<'_>>,
        to: &mut Vec<u8>,
    ) {
        let Some((packing, bytes)) = plain.find(number) else { return };
        if let Some(packed) = known.and_then(|known| known.packed(number, packing, bytes)) {
            to.extend_from_slice(packed);
            return;
        }
        let end = to.len() + len;
        if self.pack(packing, bytes).is_ok() {
            to.extend_from_slice(self.packed.get(..len).unwrap_or(&self.packed));
        }
        to.resize(end, 0);
    }
}
