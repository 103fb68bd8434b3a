//! Pages of line pointers and tuples (`storage/bufpage.h`), as replay changes them. Whatever a page says, nothing outside of it is
//! touched: what makes no sense is not done. Spec: formats/deltas.md.

#![deny(clippy::indexing_slicing)]

use super::block::Page;
use crate::base::limits::BLOCK_BYTES;

/// Bytes of the page header, behind which line pointers begin.
const HEADER_BYTES: usize = 24;
/// Bytes of a line pointer.
const LINE_BYTES: usize = 4;
/// `pd_pagesize_version` of pages of 8192 bytes.
const SIZE_AND_LAYOUT: u16 = 0x2004;
/// The bits of a line pointer that say where its tuple is.
const OFFSET_BITS: u32 = 0x7FFF;
/// Tuples begin at multiples of this.
const ALIGNMENT: usize = 8;

/// Places in the page header.
mod at {
    pub const LSN: usize = 0;
    pub const FLAGS: usize = 10;
    pub const LOWER: usize = 12;
    pub const UPPER: usize = 14;
    pub const SPECIAL: usize = 16;
    pub const SIZE_AND_LAYOUT: usize = 18;
    pub const PRUNE_XID: usize = 20;
}

/// `pd_flags`.
pub mod page_flag {
    #![allow(missing_docs)]
    pub const HAS_FREE_LINES: u16 = 1;
    pub const FULL: u16 = 2;
    pub const ALL_VISIBLE: u16 = 4;
}

/// What a line pointer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// Nothing.
    Unused,
    /// A tuple.
    Normal {
        /// Where it is.
        offset: usize,
        /// Its bytes.
        len: usize,
    },
    /// Leads to another line.
    Redirect(u16),
    /// A tuple that is gone.
    Dead,
    /// A dead one that still has bytes.
    DeadTuple {
        /// Where it is.
        offset: usize,
        /// Its bytes.
        len: usize,
    },
}

impl Line {
    fn of(word: u32) -> Line {
        let (offset, len) = ((word & OFFSET_BITS) as usize, (word >> 17) as usize);
        match word >> 15 & 3 {
            0 => Line::Unused,
            1 => Line::Normal { offset, len },
            2 => Line::Redirect(offset as u16),
            _ if len == 0 => Line::Dead,
            _ => Line::DeadTuple { offset, len },
        }
    }

    fn word(self) -> u32 {
        match self {
            Line::Unused => 0,
            Line::Normal { offset, len } => offset as u32 | 1 << 15 | (len as u32) << 17,
            Line::Redirect(to) => u32::from(to) | 2 << 15,
            Line::Dead => 3 << 15,
            Line::DeadTuple { offset, len } => offset as u32 | 3 << 15 | (len as u32) << 17,
        }
    }
}

/// Where the tuple of a line pointer is and its bytes, if it has one.
fn tuple_of(word: u32) -> Option<(usize, usize)> {
    let (has, len) = (word >> 15 & 1 != 0, (word >> 17) as usize);
    let dead = word >> 15 & 2 != 0;
    (has && !(dead && len == 0)).then_some(((word & OFFSET_BITS) as usize, len))
}

/// Two bytes at `at`, or 0.
pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u16::from_le_bytes(*bytes))
}

/// Four bytes at `at`, or 0.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// Puts `new` at `at`, if there is room.
pub fn put(bytes: &mut [u8], at: usize, new: &[u8]) {
    if let Some(to) = bytes.get_mut(at..).and_then(|rest| rest.get_mut(..new.len())) {
        to.copy_from_slice(new);
    }
}

/// A page of line pointers.
#[derive(Debug)]
pub struct Slots<'a>(&'a mut Page);

impl<'a> Slots<'a> {
    /// The page.
    pub fn new(page: &'a mut Page) -> Self {
        Slots(page)
    }

    /// Makes it empty, with `special` bytes at its end.
    pub fn init(&mut self, special: usize) {
        self.0.fill(0);
        let end = (BLOCK_BYTES - special) as u16;
        self.put16(at::LOWER, HEADER_BYTES as u16);
        self.put16(at::UPPER, end);
        self.put16(at::SPECIAL, end);
        self.put16(at::SIZE_AND_LAYOUT, SIZE_AND_LAYOUT);
    }

    fn get16(&self, at: usize) -> usize {
        usize::from(u16_at(self.0, at))
    }

    fn put16(&mut self, at: usize, value: u16) {
        put(self.0, at, &value.to_le_bytes());
    }

    /// Sets the page's LSN, as two words of 32 bits, the higher first.
    pub fn set_lsn(&mut self, lsn: u64) {
        put(self.0, at::LSN, &((lsn >> 32) as u32).to_le_bytes());
        put(self.0, at::LSN + 4, &(lsn as u32).to_le_bytes());
    }

    /// Clears and sets flags of the page.
    pub fn flags(&mut self, clear: u16, set: u16) {
        let flags = u16_at(self.0, at::FLAGS);
        self.put16(at::FLAGS, flags & !clear | set);
    }

    /// The transaction since which pruning may pay.
    pub fn prune_xid(&self) -> u32 {
        u32_at(self.0, at::PRUNE_XID)
    }

    /// Sets it.
    pub fn set_prune_xid(&mut self, xid: u32) {
        put(self.0, at::PRUNE_XID, &xid.to_le_bytes());
    }

    /// The line pointers.
    pub fn count(&self) -> usize {
        self.get16(at::LOWER).min(BLOCK_BYTES).saturating_sub(HEADER_BYTES) / LINE_BYTES
    }

    /// Where the bytes behind tuples begin.
    pub fn special(&self) -> usize {
        self.get16(at::SPECIAL).min(BLOCK_BYTES)
    }

    /// Those bytes.
    pub fn special_bytes(&mut self) -> &mut [u8] {
        let special = self.special();
        self.0.get_mut(special..).unwrap_or(&mut [])
    }

    /// Line pointer `number`, from 1.
    pub fn line(&self, number: usize) -> Line {
        match number {
            1.. if number <= self.count() => {
                Line::of(u32_at(self.0, HEADER_BYTES + LINE_BYTES * (number - 1)))
            }
            _ => Line::Unused,
        }
    }

    /// Sets line pointer `number`, if there is one.
    pub fn set_line(&mut self, number: usize, line: Line) {
        if (1..=self.count()).contains(&number) {
            put(self.0, HEADER_BYTES + LINE_BYTES * (number - 1), &line.word().to_le_bytes());
        }
    }

    /// The tuple of line pointer `number`.
    pub fn tuple(&mut self, number: usize) -> Option<&mut [u8]> {
        match self.line(number) {
            Line::Normal { offset, len } => self.0.get_mut(offset..)?.get_mut(..len),
            _ => None,
        }
    }

    /// Puts a tuple of `len` bytes at line pointer `number`, which is one of the page's or the next one; where it is taken, later
    /// ones move by one if `shift`. Returns its bytes.
    pub fn add(&mut self, number: usize, len: usize, shift: bool) -> Option<&mut [u8]> {
        let count = self.count();
        if number == 0 || number > count + 1 {
            return None;
        }
        let inserts = shift || number == count + 1;
        let lower = HEADER_BYTES + LINE_BYTES * (count + usize::from(inserts));
        let upper = self.get16(at::UPPER).min(self.special()).checked_sub(len.next_multiple_of(ALIGNMENT))?;
        if lower > upper {
            return None;
        }
        let place = HEADER_BYTES + LINE_BYTES * (number - 1);
        if inserts {
            self.0.copy_within(place..lower - LINE_BYTES, place + LINE_BYTES);
            self.put16(at::LOWER, lower as u16);
        }
        self.set_line(number, Line::Normal { offset: upper, len });
        self.put16(at::UPPER, upper as u16);
        self.0.get_mut(upper..upper + len)
    }

    /// Takes line pointers away, by number, in ascending order: those behind move up.
    pub fn remove(&mut self, numbers: impl Iterator<Item = usize>) {
        let (count, mut gone, mut numbers) = (self.count(), 0, numbers.peekable());
        for number in 1..=count {
            if numbers.next_if_eq(&number).is_some() {
                gone += 1;
            } else if gone > 0 {
                let line = self.line(number);
                self.set_line(number - gone, line);
            }
        }
        self.put16(at::LOWER, (HEADER_BYTES + LINE_BYTES * (count - gone)) as u16);
    }

    /// Takes unused line pointers at the end away, all but the first.
    pub fn truncate(&mut self) {
        let mut count = self.count();
        while count > 1 && self.line(count) == Line::Unused {
            count -= 1;
        }
        self.put16(at::LOWER, (HEADER_BYTES + LINE_BYTES * count) as u16);
    }

    /// Moves the tuples together at the page's end, the first line pointer's last.
    pub fn compact(&mut self) {
        let (upper, unused) = self.compact_quickly().unwrap_or_else(|| self.compact_plainly());
        self.put16(at::UPPER, upper as u16);
        let set = if unused { page_flag::HAS_FREE_LINES } else { 0 };
        self.flags(page_flag::HAS_FREE_LINES, set);
    }

    /// Where the tuples begin afterwards, and whether a line pointer is unused. Tuples may come to lie over line pointers.
    fn compact_plainly(&mut self) -> (usize, bool) {
        let older = *self.0;
        let (mut upper, mut unused) = (self.special(), false);
        for number in 1..=self.count() {
            let (Line::Normal { offset, len } | Line::DeadTuple { offset, len }) = self.line(number) else {
                unused |= self.line(number) == Line::Unused;
                continue;
            };
            let Some(place) = upper.checked_sub(len.next_multiple_of(ALIGNMENT)) else { break };
            let Some(tuple) = older.get(offset..).and_then(|rest| rest.get(..len)) else { continue };
            put(self.0, place, tuple);
            self.set_line(
                number,
                match self.line(number) {
                    Line::DeadTuple { .. } => Line::DeadTuple { offset: place, len },
                    _ => Line::Normal { offset: place, len },
                },
            );
            upper = place;
        }
        (upper, unused)
    }

    /// The same for pages as servers make them, where all tuples have room behind the line pointers; nothing is done to others.
    fn compact_quickly(&mut self) -> Option<(usize, bool)> {
        let (lower, special) = (HEADER_BYTES + LINE_BYTES * self.count(), self.special());
        let older = *self.0;
        let done = compact_into(self.0, &older, lower, special);
        if done.is_none() {
            *self.0 = older;
        }
        done
    }
}

/// Moves the tuples of `page`, which is as `older` and has lines up to `lower`, together before `special`; see [`Slots::compact_quickly`].
/// On failure the page is anything.
fn compact_into(page: &mut Page, older: &Page, lower: usize, special: usize) -> Option<(usize, bool)> {
    let (head, tuples) = page.split_at_mut_checked(lower)?;
    // Tuples that lie side by side move together, where no byte between them has to stay.
    let (mut place, mut run, mut unused) = (special, 0..0, false);
    let mut shift = |from: std::ops::Range<usize>, to: usize| {
        if let Some(to) = to.checked_sub(lower).filter(|_| to != from.start) {
            put(tuples, to, older.get(from).unwrap_or(&[]));
        }
    };
    for word in head.get_mut(HEADER_BYTES..)?.as_chunks_mut::<LINE_BYTES>().0 {
        let bits = u32::from_le_bytes(*word);
        let Some((offset, len)) = tuple_of(bits) else {
            unused |= bits >> 15 & 3 == 0;
            continue;
        };
        if offset + len > BLOCK_BYTES {
            return None;
        }
        if offset + len == run.start && len.is_multiple_of(ALIGNMENT) {
            run.start = offset;
        } else {
            shift(run, place);
            run = offset..offset + len;
        }
        place = place.checked_sub(len.next_multiple_of(ALIGNMENT)).filter(|place| *place >= lower)?;
        *word = (bits & !OFFSET_BITS | place as u32).to_le_bytes();
    }
    shift(run, place);
    Some((place, unused))
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn quickly_and_plainly_makes_no_difference(
            lens in prop::collection::vec((0usize..600, 0u8..8), 0..60), special in 8000u16..8192,
            chaos in prop::option::of((any::<u16>(), any::<u16>(), prop::collection::vec(any::<u32>(), 0..30))), seed: u8,
        ) {
            let mut page: Page = std::array::from_fn(|at| (at * at / 7) as u8 ^ seed);
            let mut slots = Slots::new(&mut page);
            slots.init(usize::from(8192 - special / 8 * 8));
            for (number, (len, fate)) in lens.iter().enumerate() {
                // Most tuples fill their room.
                let len = if *fate < 5 { len.next_multiple_of(8) } else { *len };
                if let Some(tuple) = slots.add(number + 1, len, false) {
                    tuple.fill(number as u8 ^ seed);
                }
            }
            for (number, (_, fate)) in lens.iter().enumerate() {
                match (fate, slots.line(number + 1)) {
                    (0, _) => slots.set_line(number + 1, Line::Unused),
                    (1, Line::Normal { offset, len }) => slots.set_line(number + 1, Line::DeadTuple { offset, len }),
                    _ => {}
                }
            }
            // Pages that no server makes.
            let chaos_was = chaos.is_some();
            if let Some((lower, special, lines)) = chaos {
                for (number, word) in lines.iter().enumerate() {
                    put(&mut page, HEADER_BYTES + LINE_BYTES * number, &word.to_le_bytes());
                }
                put(&mut page, at::LOWER, &lower.to_le_bytes());
                put(&mut page, at::SPECIAL, &special.to_le_bytes());
            }
            let (mut plainly, before) = (page, page);
            let expected = Slots::new(&mut plainly).compact_plainly();
            match Slots::new(&mut page).compact_quickly() {
                Some(found) => prop_assert!(found == expected && page == plainly),
                None => prop_assert!(page == before && chaos_was),
            }
        }
    }
}
