//! A record that arrives in pieces, kept within bounds: its headers and fragment headers whole, images and block
//! data not beyond [`HEAD_BYTES_MAX`], main data up to [`MAIN_BYTES_MAX`] and its last [`TAIL_BYTES`]. The checksum is
//! computed over all of it as it passes.

#![deny(clippy::indexing_slicing)]

use super::WalVersion;
use super::record::{FRAGMENTS_BYTES_MAX, Fragment, Fragments, MainData, RECORD_HEADER_BYTES, finish_crc};
use crate::base::{Lsn, crc32c};

/// Records up to here are kept whole.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// The beginning of main data that is kept of longer records.
const MAIN_BYTES_MAX: usize = 3 << 20;
/// The end of main data that is kept when its middle is not: more than a prepared commit's xid, name and origin take.
const TAIL_BYTES: usize = 1 << 10;

const _: () = assert!(HEAD_BYTES_MAX > FRAGMENTS_BYTES_MAX && TAIL_BYTES < MAIN_BYTES_MAX);

/// A record being gathered.
#[derive(Debug, Clone, Default)]
pub(super) struct Gather {
    /// Where it starts.
    pub start: Lsn,
    /// Bytes so far.
    pub got: u32,
    head: Vec<u8>,
    body_crc: u32,
    main: Option<LongMain>,
}

/// The main data of a record longer than what is kept whole.
#[derive(Debug, Clone, Default)]
struct LongMain {
    /// Its offset in the record.
    start: u32,
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl Gather {
    /// Begins a record at `start`.
    pub fn begin(&mut self, start: Lsn) {
        self.start = start;
        self.got = 0;
        self.head.clear();
        self.body_crc = 0;
        self.main = None;
    }

    /// The record's length, once its first bytes are there.
    pub fn total_len(&self) -> Option<u32> {
        self.head.first_chunk().map(|len| u32::from_le_bytes(*len))
    }

    /// The record's header, once it is there.
    pub fn header(&self) -> Option<&[u8; RECORD_HEADER_BYTES]> {
        self.head.first_chunk()
    }

    /// Adds bytes of the header. `bytes` do not go past it.
    pub fn push_header(&mut self, bytes: &[u8]) {
        self.head.extend_from_slice(bytes);
        self.got += bytes.len() as u32;
        assert!(self.head.len() <= RECORD_HEADER_BYTES, "a record header of {} bytes", self.head.len());
    }

    /// Adds bytes after the header.
    pub fn push_body(&mut self, version: WalVersion, bytes: &[u8]) {
        self.body_crc = crc32c::crc32c_append(self.body_crc, bytes);
        let room = HEAD_BYTES_MAX - self.head.len();
        let (into_head, beyond) = bytes.split_at(room.min(bytes.len()));
        self.head.extend_from_slice(into_head);
        self.got += bytes.len() as u32;
        if beyond.is_empty() {
            return;
        }
        if self.main.is_none() {
            self.main = Some(self.long_main(version));
        }
        let beyond_at = self.got - beyond.len() as u32;
        if let Some(main) = &mut self.main {
            // Before the main data lie images and block data.
            let before_main = main.start.saturating_sub(beyond_at) as usize;
            main.push(beyond.get(before_main..).unwrap_or(&[]));
        }
    }

    /// The main data as far as it lies in the head already.
    fn long_main(&self, version: WalVersion) -> LongMain {
        let total_len = self.total_len().unwrap_or(0);
        let start = main_offset(version, total_len, &self.head);
        let mut main = LongMain { start, ..LongMain::default() };
        main.push(self.head.get(start as usize..).unwrap_or(&[]));
        main
    }

    /// The checksum of what was gathered.
    pub fn crc(&self) -> Option<u32> {
        self.header().map(|header| finish_crc(self.body_crc, header))
    }

    /// The record's bytes from its header on, and its main data where those are not all.
    pub fn parts(&self) -> (&[u8], Option<MainData<'_>>) {
        let main = self.main.as_ref().map(|main| MainData {
            head: &main.head,
            tail: main.tail.get(main.tail.len().saturating_sub(TAIL_BYTES)..).unwrap_or(&[]),
            len: self.got.saturating_sub(main.start),
        });
        (&self.head, main)
    }

    /// Bytes held.
    #[cfg(test)]
    pub fn held_bytes(&self) -> usize {
        self.head.len() + self.main.as_ref().map_or(0, |main| main.head.len() + main.tail.len())
    }

    /// Gives back the memory that a long record took.
    pub fn release(&mut self) {
        self.main = None;
        if self.head.capacity() > PAGE_SCALE {
            self.head = Vec::new();
        }
    }
}

/// Buffers up to here stay allocated from one record to the next.
const PAGE_SCALE: usize = 16 << 10;

impl LongMain {
    fn push(&mut self, bytes: &[u8]) {
        let room = MAIN_BYTES_MAX - self.head.len();
        let (into_head, beyond) = bytes.split_at(room.min(bytes.len()));
        self.head.extend_from_slice(into_head);
        self.tail.extend_from_slice(beyond);
        // Trimmed now and then, not at every push.
        if self.tail.len() > 64 * TAIL_BYTES {
            self.tail.drain(..self.tail.len() - TAIL_BYTES);
        }
    }
}

/// The offset of the main data in a record of `total_len` bytes that begins with `head`; `total_len` when it has none,
/// or does not say.
pub(super) fn main_offset(version: WalVersion, total_len: u32, head: &[u8]) -> u32 {
    let body = head.get(RECORD_HEADER_BYTES..).unwrap_or(&[]);
    let last = Fragments::new(version, total_len, body).last();
    match last {
        Some(Ok(Fragment::Main(len))) => total_len.saturating_sub(len),
        _ => total_len,
    }
}
