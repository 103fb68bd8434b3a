//! The difference of a page image from an older page of the block: literals and copies in turn, at the same place of the older page or,
//! where tuples were moved, at a distance that stays until it changes. Spec: formats/deltas.md.
//!
//! The bytes of an image are those outside of its hole, in order; places are places in the page.

use super::block::Page;
use super::section::SectionReader;
use super::varint::{self, Cursor};
use crate::base::limits::BLOCK_BYTES;
use crate::format::FormatError;
use crate::format::delta::SectionKind;

/// An equal run shorter than this inside literals is not worth a copy.
const COPY_MIN: usize = 6;
/// A run that was moved is copied from this length on.
const MOVED_MIN: usize = 16;
/// An image with more literals than this is searched for what was moved.
const SEARCH_FROM: usize = 192;
/// Tuples lie at multiples of this.
const ALIGNMENT: usize = 8;
const TABLE_BITS: u32 = 11;

/// The bytes that an image leaves out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hole {
    /// Where it begins.
    pub offset: usize,
    /// How many they are.
    pub len: usize,
}

impl Hole {
    /// The hole of what is the last `len` bytes of a page.
    pub fn before(len: usize) -> Hole {
        Hole { offset: 0, len: BLOCK_BYTES.saturating_sub(len) }
    }

    /// The bytes of an image with this hole.
    pub fn image_bytes(self) -> usize {
        BLOCK_BYTES.saturating_sub(self.len)
    }

    /// The place in the page of byte `at` of the image, and the bytes from there to the hole or the page's end.
    fn place(self, at: usize) -> (usize, usize) {
        if at < self.offset { (at, self.offset - at) } else { (at + self.len, BLOCK_BYTES - self.len - at) }
    }
}

/// The page that an image stands for: its bytes, which come in pieces, around a hole of zeros.
pub fn page_of<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, hole: Hole, page: &mut Page) {
    let mut at = 0;
    for mut piece in pieces {
        while !piece.is_empty() && at < hole.image_bytes() {
            let (place, room) = hole.place(at);
            let (bytes, rest) = piece.split_at(room.min(piece.len()));
            page[place..place + bytes.len()].copy_from_slice(bytes);
            (at, piece) = (at + bytes.len(), rest);
        }
    }
    page[hole.offset..hole.offset + hole.len].fill(0);
}

/// Differences of many images, each kind of number in a section of its own.
#[derive(Debug, Clone, Default)]
pub struct Differences {
    /// Twice the length of each run of literals, plus one where the distance changes after it.
    pub literal_lens: Vec<u8>,
    /// The length of each copy.
    pub copy_lens: Vec<u8>,
    /// By how much the distance changed.
    pub shifts: Vec<u8>,
    /// The literals.
    pub literals: Vec<u8>,
}

/// Lengths to go back to.
#[derive(Debug, Clone, Copy)]
pub struct Mark([usize; 4]);

impl Differences {
    /// Forgets everything, keeps the memory.
    pub fn clear(&mut self) {
        self.rewind(Mark([0; 4]));
    }

    /// Where it is now.
    pub fn mark(&self) -> Mark {
        Mark([self.literal_lens.len(), self.copy_lens.len(), self.shifts.len(), self.literals.len()])
    }

    /// Literals since `mark`.
    pub fn literals_since(&self, mark: Mark) -> usize {
        self.literals.len() - mark.0[3]
    }

    /// Goes back to where it was.
    pub fn rewind(&mut self, Mark([literal_lens, copy_lens, shifts, literals]): Mark) {
        self.literal_lens.truncate(literal_lens);
        self.copy_lens.truncate(copy_lens);
        self.shifts.truncate(shifts);
        self.literals.truncate(literals);
    }
}

/// Makes differences. Keeps the memory of its search table.
#[derive(Debug)]
pub struct Differ {
    table: Vec<u16>,
}

/// Where copies are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Search {
    /// At the same place, or the distance of the copy before.
    SamePlace,
    /// Also where the search table has an equal word.
    Moved,
}

/// An image that is searched for what was moved.
#[derive(Debug)]
struct TooManyLiterals;

/// A literal run and a copy that are being put together.
#[derive(Debug, Default)]
struct Step {
    literals: usize,
    shift_change: i64,
    copy: usize,
}

impl Default for Differ {
    fn default() -> Self {
        Differ { table: vec![0; 1 << TABLE_BITS] }
    }
}

impl Differ {
    /// Appends the difference of `image` from `older`.
    pub fn put(&mut self, image: &[u8], hole: Hole, older: &Page, to: &mut Differences) {
        assert!(image.len() == hole.image_bytes(), "an image of {} bytes with {hole:?}", image.len());
        let before = to.mark();
        if self.run(image, hole, older, Search::SamePlace, to).is_err() {
            self.index(older);
            to.rewind(before);
            let searched = self.run(image, hole, older, Search::Moved, to);
            assert!(searched.is_ok(), "a search that was given up");
        }
    }

    fn index(&mut self, older: &Page) {
        self.table.fill(0);
        // Backward, so that of equal words the first is found.
        for (number, word) in older.chunks_exact(ALIGNMENT).enumerate().rev() {
            let word = word_of(word, 0);
            if word != 0 {
                self.table[slot(word)] = number as u16 + 1;
            }
        }
    }

    /// Gives up as soon as an image in the same place has so many literals that moved bytes are searched for.
    fn run(
        &self,
        image: &[u8],
        hole: Hole,
        older: &Page,
        search: Search,
        to: &mut Differences,
    ) -> Result<(), TooManyLiterals> {
        let moved = search == Search::Moved;
        let literals_max = if moved { usize::MAX } else { to.literals.len() + SEARCH_FROM };
        let (mut step, mut shift, mut at) = (Step::default(), 0isize, 0);
        while at < image.len() {
            let (place, room) = hole.place(at);
            let span = &image[at..at + room];
            let mut found =
                equal(span, older, place as isize + shift).filter(|len| *len >= COPY_MIN || *len == room);
            let mut to_shift = shift;
            if found.is_none() && shift != 0 {
                to_shift = 0;
                found = equal(span, older, place as isize).filter(|len| *len >= MOVED_MIN);
            }
            if found.is_none() && moved && place.is_multiple_of(ALIGNMENT) && span.len() >= ALIGNMENT {
                let word = word_of(span, 0);
                if let Some(number) = self.table[slot(word)].checked_sub(1) {
                    let from = isize::from(number as i16) * ALIGNMENT as isize;
                    to_shift = from - place as isize;
                    found = equal(span, older, from).filter(|len| *len >= MOVED_MIN);
                }
            }
            match found {
                Some(len) => {
                    if step.copy > 0 && to_shift != shift {
                        flush(&mut step, to);
                    }
                    if to_shift != shift {
                        step.shift_change = (to_shift - shift) as i64;
                        shift = to_shift;
                    }
                    step.copy += len;
                    at += len;
                }
                None => {
                    if step.copy > 0 {
                        flush(&mut step, to);
                    }
                    let run = unequal(span, older, place as isize + shift, moved.then_some(place));
                    to.literals.extend_from_slice(&span[..run]);
                    if to.literals.len() > literals_max {
                        return Err(TooManyLiterals);
                    }
                    step.literals += run;
                    at += run;
                }
            }
        }
        if step.literals + step.copy > 0 {
            flush(&mut step, to);
        }
        Ok(())
    }
}

fn flush(step: &mut Step, to: &mut Differences) {
    let changes = step.shift_change != 0;
    varint::put((step.literals as u64) << 1 | u64::from(changes), &mut to.literal_lens);
    varint::put(step.copy as u64, &mut to.copy_lens);
    if changes {
        varint::put_signed(step.shift_change, &mut to.shifts);
    }
    *step = Step::default();
}

fn slot(word: u64) -> usize {
    (word.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - TABLE_BITS)) as usize
}

fn word_of(bytes: &[u8], at: usize) -> u64 {
    match bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        Some(word) => u64::from_le_bytes(*word),
        None => 0,
    }
}

/// How many first bytes of `span` equal the page's from `from` on; `None` when none, or outside of the page.
#[inline]
fn equal(span: &[u8], older: &Page, from: isize) -> Option<usize> {
    let from = usize::try_from(from).ok().filter(|from| *from < BLOCK_BYTES)?;
    let other = &older[from..];
    if span[0] != other[0] {
        return None;
    }
    let most = span.len().min(other.len());
    let (span, other) = (&span[..most], &other[..most]);
    let mut len = 0;
    let wide = span.as_chunks::<64>().0.iter().zip(other.as_chunks::<64>().0);
    len += 64 * wide.take_while(|(a, b)| same(a, b)).count();
    for (a, b) in span[len..].as_chunks::<8>().0.iter().zip(other[len..].as_chunks::<8>().0) {
        let differ = u64::from_le_bytes(*a) ^ u64::from_le_bytes(*b);
        if differ != 0 {
            return Some(len + differ.trailing_zeros() as usize / 8);
        }
        len += 8;
    }
    len += span[len..].iter().zip(&other[len..]).take_while(|(a, b)| a == b).count();
    Some(len)
}

/// Whether both are equal, by words: a call of `memcmp` for so few bytes costs more than it does.
#[inline]
fn same(a: &[u8; 64], b: &[u8; 64]) -> bool {
    let words = a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0);
    let differ = words.fold(0, |bits, (a, b)| bits | (u64::from_le_bytes(*a) ^ u64::from_le_bytes(*b)));
    differ == 0
}

/// How many first bytes of `span`, one at least, are not worth another look for a copy from `from` on; where moved tuples are
/// looked for, the next place that one may begin is worth it.
fn unequal(span: &[u8], older: &Page, from: isize, place: Option<usize>) -> usize {
    let other = usize::try_from(from).ok().and_then(|from| older.get(from..)).unwrap_or(&[]);
    let most = place.map_or(span.len(), |place| (ALIGNMENT - place % ALIGNMENT).min(span.len()));
    let rest = span.get(1..most).unwrap_or(&[]).iter().zip(other.iter().skip(1));
    1 + rest.take_while(|(a, b)| a != b).count()
}

/// Reads differences.
#[derive(Debug, Clone)]
pub struct DifferenceReader<'a> {
    /// See [`Differences::literal_lens`].
    pub literal_lens: Cursor<'a>,
    /// See [`Differences::copy_lens`].
    pub copy_lens: Cursor<'a>,
    /// See [`Differences::shifts`].
    pub shifts: Cursor<'a>,
    /// See [`Differences::literals`].
    pub literals: Cursor<'a>,
}

impl<'a> DifferenceReader<'a> {
    /// Those of a frame.
    pub fn of(sections: &'a SectionReader) -> Self {
        let cursor = |what, kind| Cursor::new(what, sections.section(kind));
        DifferenceReader {
            literal_lens: cursor("delta frame literal lengths", SectionKind::LiteralLens),
            copy_lens: cursor("delta frame copy lengths", SectionKind::CopyLens),
            shifts: cursor("delta frame shifts", SectionKind::Shifts),
            literals: cursor("delta frame literals", SectionKind::Literals),
        }
    }

    /// Passes over an image with `hole`.
    pub fn pass(&mut self, hole: Hole) -> Result<(), FormatError> {
        let (mut done, total) = (0, hole.image_bytes());
        while done < total {
            let first = self.literal_lens.varint()?;
            let literals = (first >> 1) as usize;
            if literals > total - done {
                return Err(self.literal_lens.error(literals, "literals that the image has room for"));
            }
            self.literals.take(literals)?;
            if first & 1 != 0 {
                self.shifts.signed()?;
            }
            let copy = self.copy_lens.varint()? as usize;
            if copy > total - done - literals || copy + literals == 0 {
                return Err(self.copy_lens.error(copy, "a copy that the image has room for"));
            }
            done += literals + copy;
        }
        Ok(())
    }

    /// Appends the image with `hole` to `to`.
    pub fn image(&mut self, hole: Hole, older: &Page, to: &mut Vec<u8>) -> Result<(), FormatError> {
        let (start, total) = (to.len(), hole.image_bytes());
        let mut shift = 0i64;
        loop {
            let done = to.len() - start;
            if done == total {
                return Ok(());
            }
            let first = self.literal_lens.varint()?;
            let (literals, changes) = ((first >> 1) as usize, first & 1 != 0);
            if literals > total - done {
                return Err(self.literal_lens.error(literals, "literals that the image has room for"));
            }
            to.extend_from_slice(self.literals.take(literals)?);
            if changes {
                shift = shift.saturating_add(self.shifts.signed()?);
            }
            let mut copy = self.copy_lens.varint()? as usize;
            if copy > total - done - literals || copy + literals == 0 {
                return Err(self.copy_lens.error(copy, "a copy that the image has room for"));
            }
            while copy > 0 {
                let (place, room) = hole.place(to.len() - start);
                let piece = copy.min(room);
                let from = i64::try_from(place).ok().and_then(|place| place.checked_add(shift));
                let from = from.and_then(|from| usize::try_from(from).ok());
                let Some(bytes) = from.and_then(|from| older.get(from..from.checked_add(piece)?)) else {
                    return Err(self
                        .shifts
                        .error(format!("a copy at {place} by {shift}"), "one inside the page"));
                };
                to.extend_from_slice(bytes);
                copy -= piece;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn back(made: &Differences, hole: Hole, older: &Page) -> Result<Vec<u8>, FormatError> {
        let cursor = |bytes| Cursor::new("test", bytes);
        let mut from = DifferenceReader {
            literal_lens: cursor(&made.literal_lens),
            copy_lens: cursor(&made.copy_lens),
            shifts: cursor(&made.shifts),
            literals: cursor(&made.literals),
        };
        let mut image = Vec::new();
        from.image(hole, older, &mut image)?;
        let DifferenceReader { literal_lens, copy_lens, shifts, literals } = from;
        [literal_lens, copy_lens, shifts, literals].into_iter().try_for_each(Cursor::finish)?;
        Ok(image)
    }

    fn noise(seed: u8) -> Page {
        let mut page = [0; BLOCK_BYTES];
        blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut page);
        page
    }

    fn difference(image: &[u8], hole: Hole, older: &Page) -> Differences {
        let mut made = Differences::default();
        Differ::default().put(image, hole, older, &mut made);
        assert_eq!(back(&made, hole, older).as_deref(), Ok(image));
        made
    }

    #[test]
    fn an_equal_page_is_one_copy() {
        let made = difference(&noise(1), Hole::default(), &noise(1));
        assert_eq!((made.literals.len(), made.copy_lens.len()), (0, 2));
    }

    #[test]
    fn tuples_that_moved_are_copied() {
        let older = noise(1);
        let moved = [&older[..2000], &[7; 64], &older[2000..6000], &older[6800..], &[7; 736]].concat();
        let made = difference(&moved, Hole::default(), &older);
        assert!(made.literals.len() < 850, "{} literals", made.literals.len());
    }

    #[test]
    fn an_unlike_page_is_all_literals() {
        let made = difference(&noise(1), Hole::default(), &noise(2));
        assert!(made.literals.len() > 8180);
    }

    #[test]
    fn refuses_what_goes_past_the_image_or_the_page() {
        let (hole, older) = (Hole::default(), noise(1));
        let made = |literal_lens: &[u8], copy_lens: &[u8], shifts: &[u8]| Differences {
            literal_lens: literal_lens.to_vec(),
            copy_lens: copy_lens.to_vec(),
            shifts: shifts.to_vec(),
            literals: vec![0; 9000],
        };
        // More literals than room, more copies, a copy before the page's start and past its end, neither.
        for bad in [
            made(&[0x82, 0x80, 0x01], &[], &[]),
            made(&[0], &[0x81, 0x40], &[]),
            made(&[1], &[0x80, 0x40], &[1]),
            made(&[1], &[0x80, 0x40], &[2]),
            made(&[0], &[0], &[]),
        ] {
            assert!(back(&bad, hole, &older).is_err(), "{:?}", bad.literal_lens);
        }
    }

    proptest! {
        #[test]
        fn any_image_comes_back(
            changes in prop::collection::vec((0usize..8192, 0usize..300, any::<u8>()), 0..12),
            moves in prop::collection::vec((0usize..8000, 0usize..8000, 0usize..2000), 0..4),
            offset in 1usize..4000,
            hole_len in prop_oneof![Just(0usize), 1usize..4000],
        ) {
            let older = noise(3);
            let mut page = older;
            for (from, to, len) in moves {
                page.copy_within(from..(from + len.min(8192 - to)).min(8192), to);
            }
            for (at, len, byte) in changes {
                page[at..(at + len).min(8192)].fill(byte);
            }
            let hole = if hole_len > 0 { Hole { offset, len: hole_len } } else { Hole::default() };
            let image = [&page[..hole.offset], &page[hole.offset + hole.len..]].concat();
            difference(&image, hole, &older);
            let mut filled = [1; BLOCK_BYTES];
            page_of([&image[..]], hole, &mut filled);
            let mut pieces = [1; BLOCK_BYTES];
            page_of(image.chunks(1000), hole, &mut pieces);
            prop_assert!(pieces == filled);
            page[hole.offset..hole.offset + hole.len].fill(0);
            prop_assert!(filled == page);
        }
    }
}
