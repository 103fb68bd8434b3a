//! Made-up data that compresses as the real thing does: heap pages of short rows, and WAL that is mostly images of such pages.

// Each benchmark uses a part of it.
#![allow(dead_code)]

use criterion::measurement::{Measurement, ValueFormatter, WallTime};

/// Time that this thread spent on a core: what a figure per core means on a machine that others use too.
pub struct CoreTime;

impl Measurement for CoreTime {
    type Intermediate = u64;
    type Value = u64;

    fn start(&self) -> u64 {
        core_nanos()
    }

    fn end(&self, start: u64) -> u64 {
        core_nanos().saturating_sub(start).max(1)
    }

    fn add(&self, a: &u64, b: &u64) -> u64 {
        a + b
    }

    fn zero(&self) -> u64 {
        0
    }

    fn to_f64(&self, value: &u64) -> f64 {
        *value as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        // Nanoseconds are shown as criterion shows its own.
        static WALL: WallTime = WallTime;
        WALL.formatter()
    }
}

/// The first number of schedstat: nanoseconds on a core.
fn core_nanos() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0)
}

const PAGE_BYTES: usize = 8192;
const WORDS: [&str; 16] = [
    "purchase",
    "customer",
    "loyalty",
    "points",
    "store",
    "Berlin",
    "pending",
    "shipped",
    "returned",
    "card",
    "voucher",
    "2026-11-22",
    "18:55:01",
    "EUR",
    "null",
    "active",
];

/// A maker of bytes; the same seed makes the same bytes.
pub struct Maker {
    state: u64,
    row: u64,
}

impl Maker {
    /// A maker.
    pub fn new(seed: u64) -> Self {
        Maker { state: seed, row: seed << 20 }
    }

    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A heap page: header, line pointers, rows from the end, a hole between.
    pub fn page(&mut self) -> Vec<u8> {
        let mut page = vec![0u8; PAGE_BYTES];
        let (mut lower, mut upper) = (24, PAGE_BYTES);
        loop {
            let row = self.row_bytes();
            let start = upper - row.len().next_multiple_of(8);
            if start < lower + 4 + 600 {
                break;
            }
            page[start..start + row.len()].copy_from_slice(&row);
            let pointer = (start as u32) | 1 << 15 | (row.len() as u32) << 17;
            page[lower..lower + 4].copy_from_slice(&pointer.to_le_bytes());
            (lower, upper) = (lower + 4, start);
        }
        page[0..8].copy_from_slice(&(self.row * 100).to_le_bytes());
        page[12..14].copy_from_slice(&(lower as u16).to_le_bytes());
        page[14..16].copy_from_slice(&(upper as u16).to_le_bytes());
        page
    }

    /// A tuple header, a few integers that grow, words, and eight bytes that nobody can compress.
    fn row_bytes(&mut self) -> Vec<u8> {
        self.row += 1;
        let (random, id) = (self.random(), self.row);
        let mut row = Vec::with_capacity(128);
        row.extend_from_slice(&(740 + (id >> 6) as u32).to_le_bytes());
        row.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 2, 8, 24, 0, 0, 0, 0, 0]);
        row.extend_from_slice(&id.to_le_bytes());
        row.extend_from_slice(&(random % 3_000_000).to_le_bytes());
        row.extend_from_slice(&(848_000_000_000_000 + id * 1371).to_le_bytes());
        for shift in [0, 4, 8] {
            let word = WORDS[(random >> shift) as usize % WORDS.len()];
            row.push((word.len() as u8) << 1 | 1);
            row.extend_from_slice(word.as_bytes());
        }
        row.extend_from_slice(&random.to_le_bytes());
        row
    }

    /// `len` bytes of pages.
    pub fn pages(&mut self, len: usize) -> Vec<u8> {
        let mut pages = Vec::with_capacity(len + PAGE_BYTES);
        while pages.len() < len {
            pages.extend_from_slice(&self.page());
        }
        pages.truncate(len);
        pages
    }

    /// `len` bytes that read like WAL: five in six an image of a page without its hole, the others short records.
    pub fn wal(&mut self, len: usize) -> Vec<u8> {
        let mut wal = Vec::with_capacity(len + PAGE_BYTES);
        while wal.len() < len {
            let page = self.page();
            let (lower, upper) = (
                usize::from(page[12]) | usize::from(page[13]) << 8,
                usize::from(page[14]) | usize::from(page[15]) << 8,
            );
            self.record(&mut wal, &[&page[..lower], &page[upper..]].concat());
            for _ in 0..8 {
                let row = self.row_bytes();
                self.record(&mut wal, &row);
            }
        }
        wal.truncate(len);
        wal
    }

    fn record(&mut self, wal: &mut Vec<u8>, body: &[u8]) {
        let random = self.random();
        wal.extend_from_slice(&(body.len() as u32 + 45).to_le_bytes());
        wal.extend_from_slice(&(740 + (self.row >> 6) as u32).to_le_bytes());
        wal.extend_from_slice(&(wal.len() as u64).to_le_bytes());
        wal.extend_from_slice(&[0x00, 0x0a, 0, 0]);
        wal.extend_from_slice(&(random as u32).to_le_bytes());
        wal.extend_from_slice(&[0, 0x20, 0, 0, 0x7f, 6, 0, 0, 5, 0, 0, 0, 0, 0x40, 0, 0]);
        wal.extend_from_slice(&((self.row % 100_000) as u32).to_le_bytes());
        wal.extend_from_slice(body);
        wal.resize(wal.len().next_multiple_of(8), 0);
    }
}
