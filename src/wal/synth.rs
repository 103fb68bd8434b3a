//! Makes valid WAL of any version and segment size, for tests and simulations: records over pages and segments,
//! commits at given times, checkpoints, page images, switches, records that a crash cut off, new timelines.
//! Deterministic: the same calls give the same bytes.
//!
//! Invariant: [`take`](Synth::take) hands out bytes up to [`position`](Synth::position), as a server streams them;
//! a page's header comes with the first byte behind it.

use super::WalVersion;
use super::page::{LongHeader, PAGE_BYTES, PageHeader, PageStart};
use super::record::{INFO_NOOP, INFO_SWITCH, RECORD_HEADER_BYTES, RecordHeader, record_crc, rmgr};
use crate::base::{Lsn, SegmentSize, SystemId, TimelineId, Timestamp};

/// Where a made record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    /// Its first byte.
    pub start: Lsn,
    /// Where the next one could start, before any page header.
    pub end: Lsn,
}

/// A maker of WAL.
#[derive(Debug, Clone)]
pub struct Synth {
    version: WalVersion,
    segment_size: SegmentSize,
    system_id: SystemId,
    timeline: TimelineId,
    at: Lsn,
    prev: Lsn,
    /// Bytes since the last `take`, up to `at`.
    pending: Vec<u8>,
    seed: u64,
    overwrite_next: bool,
}

impl Synth {
    /// WAL from `start` on, a multiple of 8. At the start of a page the page's header comes first.
    pub fn new(
        version: WalVersion,
        segment_size: SegmentSize,
        system_id: SystemId,
        timeline: TimelineId,
        start: Lsn,
    ) -> Self {
        assert!(start.get().is_multiple_of(8), "WAL starts at {start}, not at a multiple of 8");
        Synth {
            version,
            segment_size,
            system_id,
            timeline,
            at: start,
            prev: Lsn::ZERO,
            pending: Vec::new(),
            seed: 0,
            overwrite_next: false,
        }
    }

    /// The same with other noise.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// One past the last byte made.
    pub fn position(&self) -> Lsn {
        self.at
    }

    /// The timeline of the pages made from here on.
    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// The bytes since the last call.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.pending)
    }

    /// The next random number (SplitMix64).
    fn random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.seed ^ (self.seed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn random_bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.random().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }

    /// A commit of `xid` at `time`.
    pub fn commit(&mut self, xid: u32, time: Timestamp) -> Made {
        self.main_record(rmgr::XACT, 0x00, xid, &time.micros().to_le_bytes())
    }

    /// A rollback of `xid` at `time`.
    pub fn abort(&mut self, xid: u32, time: Timestamp) -> Made {
        self.main_record(rmgr::XACT, 0x20, xid, &time.micros().to_le_bytes())
    }

    /// A record of `len` bytes that means nothing, its header included; 24 at least. Lengths that no main data
    /// header can give (25, and 282 to 284) become one or three bytes longer.
    pub fn noise(&mut self, len: usize) -> Made {
        let body_len = match len.saturating_sub(RECORD_HEADER_BYTES) {
            0 => return self.record(rmgr::XLOG, INFO_NOOP, 0, &[]),
            1 => 2,
            len @ 258..=260 => len.max(261),
            len => len,
        };
        let main_len = if body_len <= 257 { body_len - 2 } else { body_len - 5 };
        let main = self.random_bytes(main_len);
        self.main_record(rmgr::XLOG, INFO_NOOP, 0, &main)
    }

    /// A page image of block `block` of relation 16384 in database 5.
    pub fn page_image(&mut self, xid: u32, block: u32) -> Made {
        let mut body = vec![0, 0x10, 0, 0];
        body.extend_from_slice(&(PAGE_BYTES as u16).to_le_bytes());
        body.extend_from_slice(&[0, 0]);
        body.push(if self.version == WalVersion::V14 { 4 } else { 2 });
        for number in [1663, 5, 16384, block] {
            body.extend_from_slice(&u32::to_le_bytes(number));
        }
        // A page compresses: half of it is zero.
        body.extend(self.random_bytes(PAGE_BYTES / 2));
        body.extend(vec![0; PAGE_BYTES / 2]);
        self.record(rmgr::XLOG, 0xB0, xid, &body)
    }

    /// A row of `len` bytes put into block `block` of relation 16384 in database 5: what most records are like.
    pub fn insert(&mut self, xid: u32, block: u32, len: u16) -> Made {
        let mut body = vec![0, 0x20];
        body.extend_from_slice(&len.to_le_bytes());
        for number in [1663, 5, 16384, block] {
            body.extend_from_slice(&u32::to_le_bytes(number));
        }
        body.extend_from_slice(&[255, 3]);
        body.extend(self.random_bytes(usize::from(len)));
        body.extend_from_slice(&[1, 0, 0]);
        self.record(rmgr::HEAP, 0, xid, &body)
    }

    /// A checkpoint that nothing else ran beside: its redo is its own start.
    pub fn checkpoint(&mut self, time: Timestamp) -> Made {
        let mut main = vec![0; 88];
        let start = self.next_record_start().get().to_le_bytes();
        let timeline = self.timeline.0.to_le_bytes();
        let seconds = time.unix_micros().div_euclid(1_000_000).to_le_bytes();
        for (at, bytes) in [(0, &start[..]), (8, &timeline), (12, &timeline), (64, &seconds)] {
            for (to, from) in main.iter_mut().skip(at).zip(bytes) {
                *to = *from;
            }
        }
        self.main_record(rmgr::XLOG, 0x00, 0, &main)
    }

    /// A named restore point; at most 63 bytes of `name` count.
    pub fn restore_point(&mut self, name: &str, time: Timestamp) -> Made {
        let mut main = time.micros().to_le_bytes().to_vec();
        main.extend(name.bytes().take(63));
        main.resize(72, 0);
        self.main_record(rmgr::XLOG, 0x70, 0, &main)
    }

    /// A switch, and zeros up to the end of the segment.
    pub fn switch(&mut self) -> Made {
        let made = self.record(rmgr::XLOG, INFO_SWITCH, 0, &[]);
        let size = self.segment_size.bytes();
        let end = self.at.saturating_add(size - 1).align_down(size);
        self.pending.resize(self.pending.len() + end.bytes_since(self.at) as usize, 0);
        self.at = end;
        Made { end, ..made }
    }

    /// A record of `len` bytes that the server did not finish: its first `written` bytes, up to the end of their page,
    /// and a new page on which the server, started again, says so. `written` does not reach the record's end.
    pub fn overwritten(&mut self, len: usize, written: usize, time: Timestamp) -> Made {
        let (prev, torn_start) = (self.prev, self.next_record_start());
        let mut other = Synth { pending: Vec::new(), ..self.clone() };
        other.noise(len);
        let in_page = PAGE_BYTES as u64;
        let cut = torn_start.saturating_add(written as u64 + in_page - 1).align_down(in_page);
        let cut = cut.max(torn_start.align_down(in_page).saturating_add(in_page));
        assert!(cut < other.at, "a record of {len} bytes at {torn_start} ends before {cut}");
        let torn = other.pending.get(..cut.bytes_since(self.at) as usize).unwrap_or(&[]);
        self.pending.extend_from_slice(torn);
        self.seed = other.seed;
        self.at = cut;
        self.prev = prev;
        self.overwrite_next = true;
        let mut main = torn_start.get().to_le_bytes().to_vec();
        main.extend_from_slice(&time.micros().to_le_bytes());
        self.main_record(rmgr::XLOG, 0xD0, 0, &main)
    }

    /// Goes on on `timeline`. Later pages bear it; the segment made so far is to be copied by the caller under the new
    /// name, as PostgreSQL does.
    pub fn switch_timeline(&mut self, timeline: TimelineId, time: Timestamp) -> Made {
        let previous = std::mem::replace(&mut self.timeline, timeline);
        let mut main = time.micros().to_le_bytes().to_vec();
        main.extend_from_slice(&timeline.0.to_le_bytes());
        main.extend_from_slice(&previous.0.to_le_bytes());
        if self.version >= WalVersion::V17 {
            main.extend_from_slice(&1u32.to_le_bytes());
        }
        self.main_record(rmgr::XLOG, 0x90, 0, &main)
    }

    /// A record with main data only.
    pub fn main_record(&mut self, rmgr: u8, info: u8, xid: u32, main: &[u8]) -> Made {
        let mut body = Vec::with_capacity(main.len() + 5);
        match u8::try_from(main.len()) {
            Ok(len) => body.extend_from_slice(&[255, len]),
            Err(_) => {
                body.push(254);
                body.extend_from_slice(&(main.len() as u32).to_le_bytes());
            }
        }
        body.extend_from_slice(main);
        self.record(rmgr, info, xid, &body)
    }

    /// A record whose bytes after the header are `body`.
    pub fn record(&mut self, rmgr: u8, info: u8, xid: u32, body: &[u8]) -> Made {
        let total_len = (RECORD_HEADER_BYTES + body.len()) as u32;
        let mut header = RecordHeader { total_len, xid, prev: self.prev, info, rmgr, crc: 0 };
        header.crc = record_crc(body, &header.encode());
        if self.page_room() == 0 {
            self.page_header(None);
        }
        let start = self.at;
        let mut rest: &[u8] = &[&header.encode(), body].concat();
        loop {
            let room = self.page_room().min(rest.len());
            let (here, later) = rest.split_at(room);
            self.put(here);
            rest = later;
            if rest.is_empty() {
                break;
            }
            self.page_header(Some(rest.len() as u32));
        }
        let padding = self.at.get().next_multiple_of(8) - self.at.get();
        self.put(&[0; 8][..padding as usize]);
        self.prev = start;
        Made { start, end: self.at }
    }

    /// Where the next record will start.
    pub fn next_record_start(&self) -> Lsn {
        if self.page_room() > 0 {
            return self.at;
        }
        self.at.saturating_add(PageHeader::bytes_at(self.at, self.segment_size) as u64)
    }

    /// Bytes left in the page that `at` lies in; 0 at a page's first byte, where its header is missing yet.
    fn page_room(&self) -> usize {
        let in_page = (self.at.get() % PAGE_BYTES as u64) as usize;
        if in_page == 0 { 0 } else { PAGE_BYTES - in_page }
    }

    fn page_header(&mut self, rem_len: Option<u32>) {
        let overwrites = std::mem::take(&mut self.overwrite_next);
        let starts_with = match rem_len {
            Some(rem_len) => PageStart::Continuation(rem_len),
            None if overwrites => PageStart::Overwrite,
            None => PageStart::Record,
        };
        let first_of_segment = self.segment_size.segment_start(self.at) == self.at;
        let long = LongHeader { system_id: self.system_id, segment_size: self.segment_size };
        let header = PageHeader {
            version: self.version,
            timeline: self.timeline,
            address: self.at,
            starts_with,
            removable: true,
            long: first_of_segment.then_some(long),
        };
        self.put(&header.encode());
    }

    fn put(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
        self.at = self.at.saturating_add(bytes.len() as u64);
    }
}
