//! The tar stream that BASE_BACKUP sends, read as it arrives: pieces of any size in, events out, nothing copied.
//! Refuses paths that leave the data directory, wrong checksums, kinds of entries that PostgreSQL does not send, and
//! sizes no file has. PostgreSQL 14 leaves out the two zero blocks at the end: the end of the input is the end.
//! Layout: POSIX ustar; sizes of 8 GiB and more in base-256, as `src/port/tar.c` writes them.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use bytes::{Buf, Bytes};
use std::collections::VecDeque;

/// Bytes of a tar block.
pub const TAR_BLOCK_BYTES: usize = 512;
/// The most bytes one entry may claim: what the largest file of ext4 holds.
pub const ENTRY_BYTES_MAX: u64 = 1 << 44;
/// The longest path after a prefix was joined.
const PATH_BYTES_MAX: usize = 256;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A file of bytes.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
}

/// The head of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TarEntry {
    /// Relative, without `.`, `..` or empty parts.
    pub path: String,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits.
    pub mode: u32,
    /// Modification time, seconds since 1970.
    pub modified: i64,
    /// Bytes that follow; 0 unless it is a regular file.
    pub size: u64,
    /// A link's target, otherwise empty.
    pub link: String,
}

/// What a stream says next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TarEvent {
    /// An entry begins.
    Entry(TarEntry),
    /// Bytes of the current entry.
    Data(Bytes),
    /// All of the current entry was given.
    EntryEnd,
}

/// A stream that is not a tar of a data directory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tar stream at byte {at}: {found}, expected {expected}")]
pub struct TarError {
    /// Offset of the header's block, or of the end.
    pub at: u64,
    /// What stands there.
    pub found: String,
    /// What should.
    pub expected: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A header is due.
    Header,
    /// Bytes of a file, then as many bytes of padding.
    Content { left: u64, padding: u64 },
    /// Zeros up to the next block.
    Padding { left: u64 },
    /// A zero block was seen: nothing but zeros may follow.
    End,
}

/// Reads a tar stream piece by piece. One per archive.
#[derive(Debug)]
pub struct TarReader {
    state: State,
    input: VecDeque<Bytes>,
    buffered: usize,
    at: u64,
}

impl Default for TarReader {
    fn default() -> Self {
        TarReader::new()
    }
}

impl TarReader {
    /// Before the first byte.
    pub fn new() -> Self {
        TarReader { state: State::Header, input: VecDeque::new(), buffered: 0, at: 0 }
    }

    /// Gives the next piece. Take all events before giving another: pieces wait in memory.
    pub fn feed(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.buffered = self.buffered.saturating_add(piece.len());
            self.input.push_back(piece);
        }
    }

    /// The next event; `None` until more is fed.
    pub fn next_event(&mut self) -> Result<Option<TarEvent>, TarError> {
        loop {
            match self.state {
                State::Header => match self.header()? {
                    Some(Some(entry)) => return Ok(Some(TarEvent::Entry(entry))),
                    Some(None) => self.state = State::End,
                    None => return Ok(None),
                },
                State::Content { left: 0, padding } => {
                    self.state = State::Padding { left: padding };
                    return Ok(Some(TarEvent::EntryEnd));
                }
                State::Content { left, padding } => {
                    let Some(piece) = self.take_piece(left) else { return Ok(None) };
                    self.state = State::Content { left: left.saturating_sub(piece.len() as u64), padding };
                    return Ok(Some(TarEvent::Data(piece)));
                }
                State::Padding { left: 0 } => self.state = State::Header,
                State::Padding { left } => {
                    let Some(piece) = self.take_piece(left) else { return Ok(None) };
                    self.state = State::Padding { left: left.saturating_sub(piece.len() as u64) };
                }
                State::End => {
                    let Some(piece) = self.take_piece(u64::MAX) else { return Ok(None) };
                    if piece.iter().any(|byte| *byte != 0) {
                        return Err(self.error("bytes after the end of the archive", "zeros"));
                    }
                }
            }
        }
    }

    /// Says that the input ended. Refuses an archive cut in an entry.
    pub fn finish(self) -> Result<(), TarError> {
        let whole = match self.state {
            State::Header => self.buffered == 0,
            State::End => true,
            State::Content { .. } | State::Padding { .. } => false,
        };
        if whole {
            Ok(())
        } else {
            Err(self.error("the end of the stream inside an entry", "the rest of it"))
        }
    }

    fn error(&self, found: impl Into<String>, expected: &'static str) -> TarError {
        TarError { at: self.at, found: found.into(), expected }
    }

    /// At most `limit` bytes that lie together; `None` when there are none.
    fn take_piece(&mut self, limit: u64) -> Option<Bytes> {
        let front = self.input.front_mut()?;
        let count = front.len().min(usize::try_from(limit).unwrap_or(usize::MAX));
        let piece = front.split_to(count);
        if front.is_empty() {
            self.input.pop_front();
        }
        self.consumed(count);
        Some(piece)
    }

    fn consumed(&mut self, count: usize) {
        self.buffered = self.buffered.saturating_sub(count);
        self.at = self.at.saturating_add(count as u64);
    }

    /// The next header: an entry, or `Some(None)` for a zero block; `None` until a block is there.
    fn header(&mut self) -> Result<Option<Option<TarEntry>>, TarError> {
        if self.buffered < TAR_BLOCK_BYTES {
            return Ok(None);
        }
        let mut block = [0; TAR_BLOCK_BYTES];
        let mut rest: &mut [u8] = &mut block;
        while let Some(front) = self.input.front_mut() {
            let count = front.len().min(rest.len());
            let (part, after) = rest.split_at_mut(count);
            front.copy_to_slice(part);
            rest = after;
            if !front.is_empty() {
                break;
            }
            self.input.pop_front();
        }
        let parsed = parse_header(&block).map_err(|(found, expected)| self.error(found, expected))?;
        self.consumed(TAR_BLOCK_BYTES);
        let Some(entry) = parsed else { return Ok(Some(None)) };
        let over = entry.size.checked_rem(TAR_BLOCK_BYTES as u64).unwrap_or(0);
        let padding = if over == 0 { 0 } else { (TAR_BLOCK_BYTES as u64).saturating_sub(over) };
        self.state = State::Content { left: entry.size, padding };
        Ok(Some(Some(entry)))
    }
}

type Refusal = (String, &'static str);

/// A field of the header. The offsets are those of ustar, all inside the block.
fn field(block: &[u8; TAR_BLOCK_BYTES], at: usize, len: usize) -> &[u8] {
    block.get(at..).and_then(|rest| rest.get(..len)).unwrap_or_default()
}

fn parse_header(block: &[u8; TAR_BLOCK_BYTES]) -> Result<Option<TarEntry>, Refusal> {
    if block.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let stored = number(field(block, 148, 8)).ok_or(("no checksum".to_owned(), "a tar header"))?;
    let sum = header_sum(block);
    if stored != sum {
        return Err((format!("header checksum {sum}"), "the checksum that the header states"));
    }
    if field(block, 257, 5) != b"ustar" {
        return Err(("no ustar magic".into(), "a ustar header"));
    }
    let numbered = |what: &str, at, len| {
        number(field(block, at, len))
            .ok_or_else(|| (format!("a {what} that is no number"), "octal or base-256"))
    };
    let kind = match field(block, 156, 1) {
        [b'0' | 0] => EntryKind::Regular,
        [b'5'] => EntryKind::Directory,
        [b'2'] => EntryKind::Link,
        other => return Err((format!("entry of type {other:?}"), "a file, directory or symbolic link")),
    };
    let path = entry_path(field(block, 345, 155), field(block, 0, 100))?;
    let stated = numbered("size", 124, 12)?;
    if stated > ENTRY_BYTES_MAX {
        return Err((format!("{path:?} of {stated} bytes"), "at most 16 TiB"));
    }
    let size = match kind {
        EntryKind::Regular => stated,
        EntryKind::Directory | EntryKind::Link if stated == 0 => 0,
        EntryKind::Directory | EntryKind::Link => {
            return Err((format!("{path:?}, no file, of {stated} bytes"), "0 bytes"));
        }
    };
    let link = text(field(block, 157, 100))?;
    if (kind == EntryKind::Link) == link.is_empty() {
        return Err((
            format!("{path:?} with link target {link:?}"),
            "a target for links, and for links alone",
        ));
    }
    Ok(Some(TarEntry {
        path,
        kind,
        mode: (numbered("mode", 100, 8)? & 0o7777) as u32,
        modified: i64::try_from(numbered("time", 136, 12)?).unwrap_or(i64::MAX),
        size,
        link,
    }))
}

/// The sum of the header's bytes, its checksum field counted as spaces.
fn header_sum(block: &[u8; TAR_BLOCK_BYTES]) -> u64 {
    let plain: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    let own: u64 = field(block, 148, 8).iter().map(|byte| u64::from(*byte)).sum();
    plain.saturating_sub(own).saturating_add(8 * 32)
}

/// A number in octal digits with spaces or zeros around, or in base-256 when the first bit is set.
fn number(field: &[u8]) -> Option<u64> {
    match field.split_first() {
        Some((0x80, rest)) => rest.iter().try_fold(0u64, |value, byte| {
            value.checked_mul(256).and_then(|value| value.checked_add(u64::from(*byte)))
        }),
        Some(_) => {
            let text = std::str::from_utf8(field).ok()?;
            let digits = text.trim_matches([' ', '\0']);
            let octal = !digits.is_empty() && digits.bytes().all(|b| matches!(b, b'0'..=b'7'));
            if octal { u64::from_str_radix(digits, 8).ok() } else { None }
        }
        None => None,
    }
}

/// A text field up to its first NUL.
fn text(field: &[u8]) -> Result<String, Refusal> {
    let bytes = field.split(|byte| *byte == 0).next().unwrap_or_default();
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err((format!("name {:?}", String::from_utf8_lossy(bytes)), "UTF-8")),
    }
}

/// The joined path, without the slash that PostgreSQL puts after directories and links.
fn entry_path(prefix: &[u8], name: &[u8]) -> Result<String, Refusal> {
    let (prefix, name) = (text(prefix)?, text(name)?);
    let joined = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
    let path = joined.strip_suffix('/').unwrap_or(&joined);
    let path = path.strip_prefix("./").unwrap_or(path);
    let inside = path.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if !inside || path.len() > PATH_BYTES_MAX {
        return Err((format!("path {joined:?}"), "a path inside the data directory"));
    }
    Ok(path.to_owned())
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
pub(in crate::backup) mod testing;
#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests;
