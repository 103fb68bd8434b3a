//! From a tar archive to the parts of its files: each file cut from its own start at [`CHUNK_BYTES`], which is page-aligned.
//! Pure: pieces of the archive in, pieces of files out. Says which files are relations, and where in the relation they lie.

use super::tar::{EntryKind, TarEntry, TarError, TarEvent, TarReader};
use crate::format::manifest::CHUNK_BYTES;
use bytes::Bytes;

/// What comes out of an archive next.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// A file, directory or link begins; its path is relative to the data directory.
    Begin(TarEntry),
    /// The next part of it: [`CHUNK_BYTES`], or the last bytes. Never empty.
    Part(Vec<u8>),
    /// All of it was given.
    End,
}

/// Cuts one archive.
#[derive(Debug)]
pub struct Cutter {
    tar: TarReader,
    /// What archive paths are relative to: `pg_tblspc/<oid>` for a tablespace.
    folder: Option<String>,
    part: Vec<u8>,
    left: u64,
    waiting: Bytes,
    ended: bool,
}

impl Cutter {
    /// Before the first byte of the archive of tablespace `oid`, or of the data directory.
    pub fn new(oid: Option<u32>) -> Self {
        Cutter {
            tar: TarReader::new(),
            folder: oid.map(|oid| format!("pg_tblspc/{oid}")),
            part: Vec::new(),
            left: 0,
            waiting: Bytes::new(),
            ended: false,
        }
    }

    /// Gives the next piece of the archive. Take everything out before giving another.
    pub fn feed(&mut self, piece: Bytes) {
        self.tar.feed(piece);
    }

    /// The next piece of a file; `None` until more is fed.
    pub fn next_piece(&mut self) -> Result<Option<Piece>, TarError> {
        loop {
            if let Some(part) = self.take_part() {
                return Ok(Some(Piece::Part(part)));
            }
            if std::mem::take(&mut self.ended) {
                return Ok(Some(Piece::End));
            }
            match self.tar.next_event()? {
                Some(TarEvent::Entry(mut entry)) => {
                    if let Some(folder) = &self.folder {
                        entry.path = format!("{folder}/{}", entry.path);
                    }
                    self.left = entry.size;
                    return Ok(Some(Piece::Begin(entry)));
                }
                Some(TarEvent::Data(bytes)) => self.waiting = bytes,
                Some(TarEvent::EntryEnd) => self.ended = true,
                None => return Ok(None),
            }
        }
    }

    /// Says that the archive ended; refuses one that was cut.
    pub fn finish(self) -> Result<(), TarError> {
        self.tar.finish()
    }

    /// Moves waiting bytes into the open part; returns it when it is full or the file's last.
    fn take_part(&mut self) -> Option<Vec<u8>> {
        if self.waiting.is_empty() {
            return None;
        }
        if self.part.capacity() == 0 {
            self.part.reserve_exact(usize::try_from(self.left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES));
        }
        let count = self.waiting.len().min(CHUNK_BYTES - self.part.len());
        self.part.extend_from_slice(&self.waiting.split_to(count));
        self.left = self.left.saturating_sub(count as u64);
        let whole = self.part.len() == CHUNK_BYTES || self.left == 0;
        whole.then(|| std::mem::take(&mut self.part))
    }
}

/// Whether all of `content` is zero.
pub fn is_zero(content: &[u8]) -> bool {
    let (blocks, rest) = content.as_chunks::<128>();
    let zero = |bytes: &[u8]| bytes.iter().fold(0, |seen, byte| seen | byte) == 0;
    blocks.iter().all(|block| zero(block)) && zero(rest)
}

/// The kind of a manifest entry.
impl From<EntryKind> for crate::format::manifest::FileKind {
    fn from(kind: EntryKind) -> Self {
        use crate::format::manifest::FileKind;
        match kind {
            EntryKind::Regular => FileKind::Regular,
            EntryKind::Directory => FileKind::Directory,
            EntryKind::Link => FileKind::Link,
        }
    }
}

#[cfg(test)]
mod tests;
