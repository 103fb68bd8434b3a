//! PostgreSQL's checksum of data pages, which files have such pages, and what a page read while the server runs says about itself.
//! No IO. Shapes: `storage/bufpage.h`; algorithm: `storage/checksum_impl.h` (32 lanes of FNV-1a with a twist).

#![deny(clippy::indexing_slicing)]

use crate::base::Lsn;
use crate::base::limits::BLOCK_BYTES;

/// Blocks in one file of a relation, 1 GiB: file `.N` begins at block `N * 131072`.
pub const BLOCKS_PER_FILE: u32 = (1 << 30) / BLOCK_BYTES as u32;

const LANES: usize = 32;
const LANE_ROW_BYTES: usize = LANES * 4;
const FNV_PRIME: u32 = 16_777_619;

/// Where each lane begins: 32 random words fixed by PostgreSQL.
const LANE_SEEDS: [u32; LANES] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// What a page says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageVerdict {
    /// Its checksum is right.
    Ok,
    /// All zeros: never initialised.
    New,
    /// Its checksum is wrong, but it was changed at or past the start of the backup: perhaps torn, and in WAL.
    Skipped {
        /// Its LSN.
        lsn: Lsn,
    },
    /// Its checksum is wrong.
    Bad,
}

/// The checksum of a page, as PostgreSQL stores it in the page. `block` counts from the start of the relation.
pub fn page_checksum(page: &[u8; BLOCK_BYTES], block: u32) -> u16 {
    let mut lanes = LANE_SEEDS;
    let (rows, _) = page.as_chunks::<LANE_ROW_BYTES>();
    let mut rows = rows.iter().map(words);
    if let Some(mut first) = rows.next() {
        // The checksum's own field, the low half of the third word, counts as zero.
        if let Some(word) = first.get_mut(2) {
            *word &= 0xFFFF_0000;
        }
        mix(&mut lanes, &first);
    }
    rows.for_each(|row| mix(&mut lanes, &row));
    mix(&mut lanes, &[0; LANES]);
    mix(&mut lanes, &[0; LANES]);
    let folded = lanes.iter().fold(block, |sum, lane| sum ^ lane);
    (folded % 65_535 + 1) as u16
}

#[inline(always)]
fn words(row: &[u8; LANE_ROW_BYTES]) -> [u32; LANES] {
    let mut words = [0; LANES];
    let (quads, _) = row.as_chunks::<4>();
    for (word, quad) in words.iter_mut().zip(quads) {
        *word = u32::from_le_bytes(*quad);
    }
    words
}

#[inline(always)]
fn mix(lanes: &mut [u32; LANES], row: &[u32; LANES]) {
    for (lane, word) in lanes.iter_mut().zip(row) {
        let mixed = *lane ^ word;
        *lane = mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17);
    }
}

/// The page's LSN: two words, the high one first.
pub fn page_lsn(page: &[u8; BLOCK_BYTES]) -> Lsn {
    let word =
        |at| u32::from_le_bytes([byte(page, at), byte(page, at + 1), byte(page, at + 2), byte(page, at + 3)]);
    Lsn::new(u64::from(word(0)) << 32 | u64::from(word(4)))
}

/// The checksum that the page states.
pub fn stored_checksum(page: &[u8; BLOCK_BYTES]) -> u16 {
    u16::from_le_bytes([byte(page, 8), byte(page, 9)])
}

/// PostgreSQL's PageIsNew: no end of free space was ever set.
fn is_new(page: &[u8; BLOCK_BYTES]) -> bool {
    byte(page, 14) == 0 && byte(page, 15) == 0
}

fn byte(page: &[u8; BLOCK_BYTES], at: usize) -> u8 {
    page.get(at).copied().unwrap_or(0)
}

/// What the page of `block` (counted from the start of the relation) says, in a backup that began at `start`.
/// A page that is new by its header but holds something is as unreadable to the server as one with a wrong checksum.
pub fn judge_page(page: &[u8; BLOCK_BYTES], block: u32, start: Lsn) -> PageVerdict {
    if is_new(page) {
        if page.iter().all(|byte| *byte == 0) {
            return PageVerdict::New;
        }
    } else if stored_checksum(page) == page_checksum(page, block) {
        return PageVerdict::Ok;
    }
    match page_lsn(page) {
        lsn if lsn >= start => PageVerdict::Skipped { lsn },
        _ => PageVerdict::Bad,
    }
}

/// A block of a file whose checksum is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suspect {
    /// Its number in the file.
    pub block: u32,
    /// Why.
    pub verdict: PageVerdict,
}

/// The pages of `content` that are `Bad` or `Skipped`. `content` begins at block `first_block` of file number
/// `file_number` of its relation; a part of a page at its end is a file being extended, and not judged.
pub fn suspects(content: &[u8], file_number: u32, first_block: u32, start: Lsn) -> Vec<Suspect> {
    let base = file_number.wrapping_mul(BLOCKS_PER_FILE);
    let (pages, _) = content.as_chunks::<BLOCK_BYTES>();
    let numbered = pages.iter().zip(first_block..);
    let judged = numbered
        .map(|(page, block)| Suspect { block, verdict: judge_page(page, base.wrapping_add(block), start) });
    judged.filter(|s| matches!(s.verdict, PageVerdict::Bad | PageVerdict::Skipped { .. })).collect()
}

/// The number of a relation's file: 0 for the first, `N` for `.N`; `None` when `path` is not of a relation, which alone has pages with
/// checksums. Main, free space, visibility and init forks; in `global/`, `base/<database>/` and
/// `pg_tblspc/<oid>/PG_<version>/<database>/`.
pub fn relation_file(path: &str) -> Option<u32> {
    let parts: Vec<&str> = path.split('/').collect();
    let name = match parts.as_slice() {
        ["global", name] => name,
        ["base", database, name] if is_oid(database) => name,
        ["pg_tblspc", oid, version, database, name]
            if is_oid(oid) && version.starts_with("PG_") && is_oid(database) =>
        {
            name
        }
        _ => return None,
    };
    let (stem, number) = match name.split_once('.') {
        Some((stem, number)) if is_oid(number) => (stem, number.parse().ok()?),
        Some(_) => return None,
        None => (*name, 0),
    };
    let relation = match stem.split_once('_') {
        Some((relation, "fsm" | "vm" | "init")) => relation,
        Some(_) => return None,
        None => stem,
    };
    is_oid(relation).then_some(number)
}

/// Decimal digits of a 32-bit number, as PostgreSQL writes them.
fn is_oid(text: &str) -> bool {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits && !text.starts_with('0') && text.parse::<u32>().is_ok()
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests;
