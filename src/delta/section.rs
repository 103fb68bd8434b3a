//! The sections of a delta frame: what of one kind stands together, and is compressed together. Spec: formats/deltas.md.

use super::error::DeltaError;
use super::limits::{SECTIONS, SECTIONS_BYTES_MAX, WINDOW_WAL_BYTES};
use super::window::Window;
use crate::base::crc32c;
use crate::base::limits::WAL_FRAME_BYTES;
use crate::base::{Lsn, LsnRange};
use crate::format::delta::{DeltaHead, SectionCodec, SectionEntry, SectionKind};
use crate::format::record::Field;
use crate::format::{FormatError, Reader, Writer};
use std::io;
use zstd::bulk::Compressor;
use zstd::zstd_safe::{DCtx, ErrorCode, get_error_name};

/// zstd's level for sections: below it records lose a tenth, above it costs more than it gives.
pub const ZSTD_LEVEL: i32 = 3;
/// Sections shorter than this are not worth a zstd frame.
const COMPRESS_FROM: usize = 32;
/// The part of a section's stored bytes that a window has to save: a frame that stands alone is worth some.
const WINDOW_SAVES_PART: usize = 16;
/// Digits of fewer bytes do without a window: they have little to save, and tell nothing about those of other frames.
const WINDOW_FROM: usize = 1024;
/// To try both ways costs a tenth of encoding, and identifiers that come again do so for long: after a window that saved enough, as many
/// sections take theirs without being compressed alone, as long as they would save as much of what that took.
const WINDOWS_TRUSTED: u32 = 7;
/// After windows that did not, as many sections try none as there were such windows in turn, and this many at most.
const WINDOWS_PASSED_MAX: u32 = 7;
/// Bytes of a section with a window before what is compressed: the window's check, and how far back it begins.
const WINDOW_HEAD_BYTES: usize = 8;

/// Compresses sections and puts a frame together.
pub struct SectionWriter {
    compressor: Option<Compressor<'static>>,
    body: Vec<u8>,
    windowed: Vec<u8>,
    /// Of the section that was last compressed both ways: its bytes, and those it took alone.
    alone: (usize, usize),
    /// Sections that may still go by that.
    trusted: u32,
    /// Windows in turn that did not save enough.
    lost: u32,
    /// Sections that have to pass before one is tried again.
    passing: u32,
}

impl std::fmt::Debug for SectionWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SectionWriter").field("body", &self.body.len()).finish_non_exhaustive()
    }
}

impl SectionWriter {
    /// A writer at [`ZSTD_LEVEL`]; without memory for a context, sections are stored as they are.
    pub fn new() -> Self {
        SectionWriter {
            compressor: Compressor::new(ZSTD_LEVEL).ok(),
            body: Vec::new(),
            windowed: Vec::new(),
            alone: (0, 0),
            trusted: 0,
            lost: 0,
            passing: 0,
        }
    }

    /// The frame of `head` and these sections, in the order of `SectionKind`; and the stored length of each. Digits may repeat what
    /// `window` has from `window_from` on.
    pub fn frame(
        &mut self,
        mut head: DeltaHead,
        sections: &[&[u8]; SECTIONS],
        window: &Window,
        window_from: Lsn,
    ) -> (Vec<u8>, [u64; SECTIONS]) {
        self.body.clear();
        let distance = head.start.bytes_since(window_from) as u32;
        head.sections = SectionKind::ALL
            .iter()
            .zip(sections)
            .map(|(kind, section)| match kind {
                SectionKind::Digits => self.section_after(window.since(window_from), distance, section),
                _ => self.section(section),
            })
            .collect();
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

    /// A section that may repeat what is in `window`, which begins so far back.
    fn section_after(&mut self, window: &[u8], distance: u32, plain: &[u8]) -> SectionEntry {
        if plain.len() < WINDOW_FROM || window.is_empty() {
            return self.section(plain);
        }
        if self.passing > 0 {
            self.passing -= 1;
            return self.section(plain);
        }
        let Some(compressor) = self.compressor.as_mut() else { return self.section(plain) };
        self.windowed.clear();
        self.windowed.reserve(zstd::compress_bound(plain.len()));
        let context = compressor.context_mut();
        if context.compress_using_dict(&mut self.windowed, plain, window, ZSTD_LEVEL).is_err() {
            return self.section(plain);
        }
        let stored_len = self.windowed.len() + WINDOW_HEAD_BYTES;
        let saves = |alone: usize| stored_len <= alone - alone / WINDOW_SAVES_PART;
        if self.trusted > 0 && saves(plain.len() * self.alone.1 / self.alone.0) {
            self.trusted -= 1;
        } else {
            let before = self.body.len();
            let alone = self.section(plain);
            if !saves(alone.stored_len as usize) {
                self.trusted = 0;
                self.lost = (self.lost + 1).min(WINDOWS_PASSED_MAX);
                self.passing = self.lost;
                return alone;
            }
            self.body.truncate(before);
            (self.alone, self.trusted) = ((plain.len(), alone.stored_len as usize), WINDOWS_TRUSTED);
            self.lost = 0;
        }
        self.body.extend_from_slice(&crc32c::crc32c(window).to_le_bytes());
        self.body.extend_from_slice(&distance.to_le_bytes());
        self.body.extend_from_slice(&self.windowed);
        SectionEntry {
            codec: SectionCodec::Window,
            plain_len: plain.len() as u32,
            stored_len: stored_len as u32,
        }
    }
}

/// Decompresses sections.
#[derive(Default)]
pub struct SectionReader {
    context: Option<DCtx<'static>>,
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
    for (kind, section) in SectionKind::ALL.iter().zip(&head.sections) {
        let possible = match section.codec {
            SectionCodec::Raw => section.stored_len == section.plain_len,
            SectionCodec::Zstd => (1..section.plain_len).contains(&section.stored_len),
            SectionCodec::Window if *kind != SectionKind::Digits => {
                return refuse(&format!("section {kind:?} with a window"), "Digits alone with one");
            }
            SectionCodec::Window => {
                (WINDOW_HEAD_BYTES as u32 + 1..section.plain_len).contains(&section.stored_len)
            }
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
    /// Decompresses sections of `head`, which lie in `stored`: those of `only`, or all if there are none. Takes as much memory as the head
    /// says, which is bounded. Digits may repeat what is in `window`.
    pub fn read(
        &mut self,
        head: &DeltaHead,
        stored: &[u8],
        only: &[SectionKind],
        window: &Window,
    ) -> Result<(), DeltaError> {
        let mut from = Reader::new("delta frame section", stored);
        self.plain.resize_with(SECTIONS, Vec::new);
        for (number, (entry, plain)) in head.sections.iter().zip(&mut self.plain).enumerate() {
            let packed = from.take(entry.stored_len as usize)?;
            plain.clear();
            if !only.is_empty() && !only.iter().any(|kind| *kind as usize == number) {
                continue;
            }
            let wrong = |found: &str| {
                let expected = format!("{} bytes by zstd", entry.plain_len);
                FormatError::new("delta frame section", number, found, expected)
            };
            let (packed, window) = match entry.codec {
                SectionCodec::Raw => {
                    plain.extend_from_slice(packed);
                    continue;
                }
                SectionCodec::Zstd => (packed, None),
                SectionCodec::Window => {
                    let (check, rest) = packed.split_first_chunk().ok_or_else(|| wrong("no check"))?;
                    let (distance, packed) = rest.split_first_chunk().ok_or_else(|| wrong("no distance"))?;
                    let distance = u64::from(u32::from_le_bytes(*distance));
                    if distance > WINDOW_WAL_BYTES {
                        return Err(wrong(&format!("a window {distance} bytes back")).into());
                    }
                    let from = head.start.saturating_sub(distance);
                    let digits = window.since(from);
                    if u32::from_le_bytes(*check) != crc32c::crc32c(digits) {
                        let end = head.start.saturating_add(u64::from(head.raw_len));
                        return Err(DeltaError::WrongWindow { range: LsnRange::new(head.start, end), from });
                    }
                    (packed, Some(digits))
                }
            };
            let context = match &mut self.context {
                Some(context) => context,
                none => none.insert(DCtx::try_create().ok_or_else(|| wrong("no memory"))?),
            };
            plain.reserve_exact(entry.plain_len as usize);
            let unpacked = match window {
                Some(window) => context.decompress_using_dict(plain, packed, window),
                None => context.decompress(plain, packed),
            };
            unpacked.map_err(|code: ErrorCode| wrong(get_error_name(code)))?;
            if plain.len() != entry.plain_len as usize {
                return Err(wrong(&format!("{} bytes", plain.len())).into());
            }
        }
        Ok(())
    }

    /// A section that was read.
    pub fn section(&self, kind: SectionKind) -> &[u8] {
        self.plain.get(kind as usize).map_or(&[], Vec::as_slice)
    }
}

/// What the sections of `frame` hold, in stored order: for people who ask where the bytes go. `window` is that of the frames of its epoch
/// before it, and goes on.
///
/// # Errors
/// What no delta frame is.
pub fn sections(frame: &[u8], window: &mut Window) -> Result<Vec<(SectionKind, Vec<u8>)>, DeltaError> {
    let (head, stored) = read_head(frame)?;
    let mut reader = SectionReader::default();
    reader.read(&head, stored, &[], window)?;
    window.push(head.start, reader.section(SectionKind::Digits));
    Ok(SectionKind::ALL.iter().copied().zip(reader.plain).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hexadecimal digits, two a byte; or decimal ones, which zstd makes a sixth smaller by themselves.
    fn digits(seed: u32, decimal: bool) -> Vec<u8> {
        let mut bytes = vec![0; 40_000];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        if decimal {
            bytes.iter_mut().for_each(|byte| *byte = *byte / 16 * 10 / 16 * 16 + *byte % 10);
        }
        bytes
    }

    /// How a section is stored whose window has so many bytes of it, and how many bytes it takes.
    fn store(writer: &mut SectionWriter, plain: &[u8], known: usize) -> (SectionCodec, u32) {
        writer.body.clear();
        let window = [&[0], &plain[..known], &digits(u32::MAX, false)].concat();
        let entry = writer.section_after(&window, 1 << 20, plain);
        assert_eq!(writer.body.len(), entry.stored_len as usize);
        (entry.codec, entry.stored_len)
    }

    #[test]
    fn windows_that_save_nothing_are_tried_more_and_more_seldom() {
        let mut writer = SectionWriter::new();
        let tried: Vec<bool> = (0..60)
            .map(|turn| {
                let passing = writer.passing;
                let (codec, _) = store(&mut writer, &digits(turn, false), 0);
                assert_eq!(codec, SectionCodec::Raw);
                passing == 0
            })
            .collect();
        let at: Vec<usize> = (0..60).filter(|turn| tried[*turn]).collect();
        assert_eq!(at, [0, 2, 5, 9, 14, 20, 27, 35, 43, 51, 59]);
        // The next one that is tried and saves is taken, and so are those behind it.
        let codecs: Vec<SectionCodec> =
            (60..80).map(|turn| store(&mut writer, &digits(turn, false), 30_000).0).collect();
        assert_eq!(codecs.iter().filter(|codec| **codec == SectionCodec::Window).count(), 13);
        assert!(codecs[7..].iter().all(|codec| *codec == SectionCodec::Window));
    }

    #[test]
    fn what_sections_take_alone_is_found_out_anew() {
        let mut writer = SectionWriter::new();
        for turn in 0..20 {
            let (codec, len) = store(&mut writer, &digits(turn, false), 30_000);
            assert!(codec == SectionCodec::Window && len < 20_000, "turn {turn}: {codec:?}, {len}");
        }
        // By what those took alone, a window would save a sixth of these, which take the same without one.
        let codecs: Vec<SectionCodec> =
            (20..60).map(|turn| store(&mut writer, &digits(turn, true), 0).0).collect();
        assert!(codecs[8..].iter().all(|codec| *codec == SectionCodec::Zstd), "{codecs:?}");
        assert!(codecs[..8].contains(&SectionCodec::Window), "nothing was trusted");
    }

    #[test]
    fn few_digits_do_without_a_window_and_tell_nothing() {
        let mut writer = SectionWriter::new();
        for turn in 0..4 {
            let plain = digits(turn, false);
            assert_eq!(store(&mut writer, &plain[..WINDOW_FROM - 1], WINDOW_FROM - 1).0, SectionCodec::Raw);
            assert_eq!(store(&mut writer, &plain, 30_000).0, SectionCodec::Window);
        }
    }
}
