//! The sections of a delta frame: what of one kind stands together, and is compressed together. Spec: formats/deltas.md.

use super::limits::{SECTIONS, SECTIONS_BYTES_MAX};
use crate::base::limits::WAL_FRAME_BYTES;
use crate::format::delta::{DeltaHead, SectionCodec, SectionEntry, SectionKind};
use crate::format::record::Field;
use crate::format::{FormatError, Reader, Writer};
use std::io;
use zstd::bulk::{Compressor, Decompressor};

/// zstd's level for sections: below it records lose a tenth, above it costs more than it gives.
pub const ZSTD_LEVEL: i32 = 3;
/// Sections shorter than this are not worth a zstd frame.
const COMPRESS_FROM: usize = 32;

/// Compresses sections and puts a frame together.
pub struct SectionWriter {
    compressor: Option<Compressor<'static>>,
    body: Vec<u8>,
}

impl std::fmt::Debug for SectionWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SectionWriter").field("body", &self.body.len()).finish_non_exhaustive()
    }
}

impl SectionWriter {
    /// A writer at [`ZSTD_LEVEL`]; without memory for a context, sections are stored as they are.
    pub fn new() -> Self {
        SectionWriter { compressor: Compressor::new(ZSTD_LEVEL).ok(), body: Vec::new() }
    }

    /// The frame of `head` and these sections, in the order of `SectionKind`; and the stored length of each.
    pub fn frame(&mut self, mut head: DeltaHead, sections: &[&[u8]; SECTIONS]) -> (Vec<u8>, [u64; SECTIONS]) {
        self.body.clear();
        head.sections = sections.iter().map(|section| self.section(section)).collect();
        let mut to = Writer::new();
        head.put(&mut to);
        to.put(&self.body);
        let mut lens = [0; SECTIONS];
        lens.iter_mut().zip(&head.sections).for_each(|(len, entry)| *len = u64::from(entry.stored_len));
        (to.into_bytes(), lens)
    }

    fn section(&mut self, plain: &[u8]) -> SectionEntry {
        let (start, plain_len) = (self.body.len(), plain.len() as u32);
        if let Some(compressor) = self.compressor.as_mut().filter(|_| plain.len() >= COMPRESS_FROM) {
            self.body.reserve(zstd::compress_bound(plain.len()));
            let mut end = io::Cursor::new(std::mem::take(&mut self.body));
            end.set_position(start as u64);
            let packed = compressor.compress_to_buffer(plain, &mut end);
            self.body = end.into_inner();
            if let Ok(len) = packed
                && len < plain.len()
                && self.body.len() == start + len
            {
                return SectionEntry { codec: SectionCodec::Zstd, plain_len, stored_len: len as u32 };
            }
            self.body.truncate(start);
        }
        self.body.extend_from_slice(plain);
        SectionEntry { codec: SectionCodec::Raw, plain_len, stored_len: plain_len }
    }
}

/// Decompresses sections.
#[derive(Default)]
pub struct SectionReader {
    decompressor: Option<Decompressor<'static>>,
    plain: Vec<Vec<u8>>,
}

impl std::fmt::Debug for SectionReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SectionReader").field("plain", &self.plain.len()).finish_non_exhaustive()
    }
}

/// The head of `frame`, and the bytes after it. Refuses what no frame has before anything is decompressed.
pub fn read_head(frame: &[u8]) -> Result<(DeltaHead, &[u8]), FormatError> {
    let mut from = Reader::new("delta frame", frame);
    let head = DeltaHead::get(&mut from)?;
    let refuse = |found: &dyn ToString, expected: &str| {
        Err(FormatError::new("delta frame", 0, found.to_string(), expected))
    };
    if head.magic != crate::format::delta::DELTA_MAGIC {
        return refuse(&format!("magic {:08x}", head.magic), "that of a delta frame of version 1");
    }
    if head.raw_len == 0 || head.raw_len as usize > WAL_FRAME_BYTES {
        return refuse(&format!("{} bytes of WAL", head.raw_len), "1 to 1048576");
    }
    if head.start.checked_add(u64::from(head.raw_len)).is_none() {
        return refuse(&head.start, "a position that WAL can have");
    }
    if head.sections.len() != SectionKind::ALL.len() {
        return refuse(&format!("{} sections", head.sections.len()), "18 sections");
    }
    let plain: u64 = head.sections.iter().map(|section| u64::from(section.plain_len)).sum();
    if plain > SECTIONS_BYTES_MAX as u64 {
        return refuse(&format!("sections of {plain} bytes"), &format!("{SECTIONS_BYTES_MAX} at most"));
    }
    let stored: u64 = head.sections.iter().map(|section| u64::from(section.stored_len)).sum();
    if stored != from.remaining() as u64 {
        return refuse(&format!("{} bytes of sections", from.remaining()), &stored.to_string());
    }
    for section in &head.sections {
        let possible = match section.codec {
            SectionCodec::Raw => section.stored_len == section.plain_len,
            SectionCodec::Zstd => (1..section.plain_len).contains(&section.stored_len),
        };
        if !possible {
            return refuse(
                &format!("a section of {} stored as {}", section.plain_len, section.stored_len),
                "shorter",
            );
        }
    }
    let rest = from.take(from.remaining())?;
    Ok((head, rest))
}

impl SectionReader {
    /// Decompresses every section of `head`, which lie in `stored`. Takes as much memory as the head says, which is bounded.
    pub fn read(&mut self, head: &DeltaHead, stored: &[u8], only: &[SectionKind]) -> Result<(), FormatError> {
        let mut from = Reader::new("delta frame section", stored);
        for (number, entry) in head.sections.iter().enumerate() {
            let packed = from.take(entry.stored_len as usize)?;
            if number == self.plain.len() {
                self.plain.push(Vec::new());
            }
            let Some(plain) = self.plain.get_mut(number) else { break };
            plain.clear();
            if !only.is_empty() && !only.iter().any(|kind| *kind as usize == number) {
                continue;
            }
            match entry.codec {
                SectionCodec::Raw => plain.extend_from_slice(packed),
                SectionCodec::Zstd => {
                    let error = |found: String| {
                        let expected = format!("{} bytes by zstd", entry.plain_len);
                        FormatError::new("delta frame section", number, found, expected)
                    };
                    let decompressor = match &mut self.decompressor {
                        Some(decompressor) => decompressor,
                        none => none.insert(Decompressor::new().map_err(|why| error(why.to_string()))?),
                    };
                    plain.reserve_exact(entry.plain_len as usize);
                    decompressor.decompress_to_buffer(packed, plain).map_err(|why| error(why.to_string()))?;
                    if plain.len() != entry.plain_len as usize {
                        return Err(error(format!("{} bytes", plain.len())));
                    }
                }
            }
        }
        Ok(())
    }

    /// A section that was read.
    pub fn section(&self, kind: SectionKind) -> &[u8] {
        self.plain.get(kind as usize).map_or(&[], Vec::as_slice)
    }
}

/// What the sections of `frame` hold, in stored order: for people who ask where the bytes go.
///
/// # Errors
/// What no delta frame is.
pub fn sections(frame: &[u8]) -> Result<Vec<(SectionKind, Vec<u8>)>, FormatError> {
    let (head, stored) = read_head(frame)?;
    let mut reader = SectionReader::default();
    reader.read(&head, stored, &[])?;
    Ok(SectionKind::ALL.iter().copied().zip(reader.plain).collect())
}
