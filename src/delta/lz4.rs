//! LZ4 blocks as images in WAL have them: bit for bit what `LZ4_compress_default` of liblz4 makes of up to 8192 bytes, on little-endian
//! servers. Spec: formats/deltas.md.
//!
//! The library may come to make something else. This is what it makes today, as the format has it: images that it packs otherwise stay as
//! they came.

#![deny(clippy::indexing_slicing)]

use super::overlap::{self, Broken};
use crate::base::limits::BLOCK_BYTES;

/// Places by the hash of their four bytes: two to this power.
const TABLE_BITS: u32 = 13;
const TABLE: usize = 1 << TABLE_BITS;
/// The shortest match.
const MATCH_MIN: usize = 4;
/// The last bytes are literals.
const LITERALS_LAST: usize = 5;
/// No match begins in the last bytes, so many less one.
const MATCH_ROOM: usize = 12;
/// After so many places without a match, the search goes on in steps of two, then of three, and so on.
const PATIENCE: usize = 64;
/// A length in a token that goes on in further bytes.
const LONG: usize = 15;
/// Bytes behind the input, so that words are read without a look at its end.
const PADDING: usize = 8;

/// Compresses. Keeps its memory.
#[derive(Debug)]
pub struct Compressor {
    /// The input, and zeros behind it.
    input: Box<[u8; BLOCK_BYTES + PADDING]>,
    /// The last place of each hash. A hash that did not come up has place 0, which is looked at as any other.
    table: Box<[u16; TABLE]>,
}

impl Default for Compressor {
    fn default() -> Self {
        Compressor { input: Box::new([0; BLOCK_BYTES + PADDING]), table: Box::new([0; TABLE]) }
    }
}

impl Compressor {
    /// Appends `input`, of at most 8192 bytes, compressed.
    pub fn compress(&mut self, input: &[u8], to: &mut Vec<u8>) {
        assert!(input.len() <= BLOCK_BYTES, "{} bytes are more than a block", input.len());
        let (head, rest) = self.input.split_at_mut(input.len());
        head.copy_from_slice(input);
        rest.fill(0);
        let mut literals_from = 0;
        if input.len() > MATCH_ROOM {
            self.table.fill(0);
            let (starts_end, copies_end) = (input.len() + 1 - MATCH_ROOM, input.len() - LITERALS_LAST);
            let mut at = 1;
            while let Some((mut place, mut from)) = self.search(at, starts_end) {
                while place > literals_from && from > 0 && self.byte(place - 1) == self.byte(from - 1) {
                    (place, from) = (place - 1, from - 1);
                }
                loop {
                    let (after, before) = (place + MATCH_MIN, from + MATCH_MIN);
                    let more = overlap::common(&*self.input, after, before, copies_end - after);
                    sequence(input.get(literals_from..place).unwrap_or(&[]), place - from, more, to);
                    place = after + more;
                    literals_from = place;
                    if place >= starts_end {
                        return last_literals(input.get(place..).unwrap_or(&[]), to);
                    }
                    self.seen(place - 2);
                    from = self.seen(place);
                    if overlap::word(&*self.input, from) != overlap::word(&*self.input, place) {
                        break;
                    }
                }
                at = place + 1;
            }
        }
        last_literals(input.get(literals_from..).unwrap_or(&[]), to);
    }

    /// The next place from `at` on whose four bytes are those at the last place of the same hash, and that one.
    #[inline]
    fn search(&mut self, at: usize, starts_end: usize) -> Option<(usize, usize)> {
        let (mut next, mut step, mut tries) = (at, 1, PATIENCE);
        loop {
            let place = next;
            next += step;
            step = tries / PATIENCE;
            tries += 1;
            if next > starts_end {
                return None;
            }
            let from = self.seen(place);
            if overlap::word(&*self.input, from) == overlap::word(&*self.input, place) {
                return Some((place, from));
            }
        }
    }

    /// Puts `place` into the table; returns the place before of the same hash.
    #[inline]
    fn seen(&mut self, place: usize) -> usize {
        let hash = overlap::word(&*self.input, place).wrapping_mul(2_654_435_761) >> (32 - TABLE_BITS);
        let last = self.table.get_mut(hash as usize);
        last.map_or(0, |last| usize::from(std::mem::replace(last, place as u16)))
    }

    #[inline]
    fn byte(&self, at: usize) -> u8 {
        self.input.get(at).copied().unwrap_or(0)
    }
}

/// Appends literals, and a copy from `distance` back of `more` bytes than the least.
#[inline]
fn sequence(literals: &[u8], distance: usize, more: usize, to: &mut Vec<u8>) {
    to.push((literals.len().min(LONG) << 4 | more.min(LONG)) as u8);
    rest_of_length(literals.len(), to);
    to.extend_from_slice(literals);
    to.extend_from_slice(&(distance as u16).to_le_bytes());
    rest_of_length(more, to);
}

fn last_literals(literals: &[u8], to: &mut Vec<u8>) {
    to.push((literals.len().min(LONG) << 4) as u8);
    rest_of_length(literals.len(), to);
    to.extend_from_slice(literals);
}

#[inline]
fn rest_of_length(len: usize, to: &mut Vec<u8>) {
    if let Some(rest) = len.checked_sub(LONG) {
        to.extend(std::iter::repeat_n(255, rest / 255));
        to.push((rest % 255) as u8);
    }
}

/// Appends what `packed` is the compressed form of, which is `len` bytes. Refuses what is no block of that length; what was appended
/// until then stays.
pub fn decompress(packed: &[u8], len: usize, to: &mut Vec<u8>) -> Result<(), Broken> {
    let (start, mut from) = (to.len(), packed);
    loop {
        let (token, rest) = from.split_first().ok_or(Broken)?;
        from = rest;
        let literals = length(usize::from(token >> 4), &mut from)?;
        let (bytes, rest) = from.split_at_checked(literals).ok_or(Broken)?;
        if literals > len - (to.len() - start) {
            return Err(Broken);
        }
        to.extend_from_slice(bytes);
        if rest.is_empty() {
            return if to.len() - start == len { Ok(()) } else { Err(Broken) };
        }
        let (distance, rest) = rest.split_first_chunk().ok_or(Broken)?;
        from = rest;
        let count = MATCH_MIN + length(usize::from(token & 0x0F), &mut from)?;
        if count > len - (to.len() - start) {
            return Err(Broken);
        }
        overlap::copy(to, start, usize::from(u16::from_le_bytes(*distance)), count)?;
    }
}

fn length(nibble: usize, from: &mut &[u8]) -> Result<usize, Broken> {
    let mut len = nibble;
    if nibble == LONG {
        loop {
            let (more, rest) = from.split_first().ok_or(Broken)?;
            *from = rest;
            len += usize::from(*more);
            if *more < 255 {
                break;
            }
        }
    }
    Ok(len)
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::super::overlap::tests::{inputs, unhex};
    use super::*;
    use proptest::prelude::*;

    fn packed(input: &[u8]) -> Vec<u8> {
        let mut to = vec![7];
        Compressor::default().compress(input, &mut to);
        to.split_off(1)
    }

    fn unpacked(packed: &[u8], len: usize) -> Result<Vec<u8>, Broken> {
        let mut to = vec![7; 5];
        let done = decompress(packed, len, &mut to);
        assert!(to.len() <= 5 + len, "{} bytes", to.len());
        done.map(|()| to.split_off(5))
    }

    /// An image of PostgreSQL 17 with liblz4 1.9.4, out of its WAL, without its hole; and as it was there.
    const IMAGE: [&str; 2] = [
        "000000006842c50d000000002400b81ff01f042000000000e89f1000b89f3000d09f30000000a9010100182060c4ba3e11f345faac87\
         4322cb4928910000260101001820b32a0cffe3c34dc5ae25fccce562494a000003000000082000000000000000000200000002000000",
        "80000000006842c50d0800802400b81ff01f04200c00f118e89f1000b89f3000d09f30000000a9010100182060c4ba3e11f345faac87\
         4322cb4928910000261800f108b32a0cffe3c34dc5ae25fccce562494a000003000000084800000200800200000002000000",
    ];

    #[test]
    fn an_image_is_packed_as_the_server_did() {
        let [plain, was] = IMAGE.map(unhex);
        assert_eq!(packed(&plain), was);
        assert_eq!(unpacked(&was, plain.len()), Ok(plain));
    }

    #[test]
    fn lengths_go_on_in_further_bytes() {
        assert_eq!(packed(&[]), [0]);
        assert_eq!(packed(&[9; 12]), [&[0xC0][..], &[9; 12]].concat());
        // One literal, a copy of all but the last five bytes, these.
        assert_eq!(packed(&[9; 1 + 4 + 15 + 5]), [0x1F, 9, 1, 0, 0, 0x50, 9, 9, 9, 9, 9]);
        assert_eq!(packed(&[9; 1 + 4 + 15 + 255 + 5]), [0x1F, 9, 1, 0, 255, 0, 0x50, 9, 9, 9, 9, 9]);
        let noise: Vec<u8> = (0..300u32).map(|at| ((at * at * 37) >> 3) as u8).collect();
        assert!(packed(&noise).starts_with(&[0xF0]) || packed(&noise).len() < 300);
    }

    #[test]
    fn refuses_what_is_cut_or_leads_elsewhere() {
        let [plain, was] = IMAGE.map(unhex);
        for len in 0..was.len() {
            assert_eq!(unpacked(&was[..len], plain.len()), Err(Broken), "{len} bytes");
        }
        assert_eq!(unpacked(&[&was[..], &[0]].concat(), plain.len()), Err(Broken), "a byte more");
        for len in [0, plain.len() - 1, plain.len() + 1] {
            assert_eq!(unpacked(&was, len), Err(Broken), "{len} bytes of an image");
        }
        // A copy before there is anything, one of no distance, one that leads before the start, a length without end.
        for bad in
            [&[0, 1, 0, 0x50, 1, 2, 3, 4, 5][..], &[0x10, 9, 0, 0, 0], &[0x10, 9, 2, 0, 0], &[0xFF; 300]]
        {
            assert_eq!(unpacked(bad, 9), Err(Broken), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_input_comes_back(input in inputs()) {
            let made = packed(&input);
            prop_assert!(made.len() <= input.len() + input.len() / 255 + 16);
            prop_assert!(unpacked(&made, input.len()) == Ok(input));
        }

        #[test]
        fn any_bytes_are_unpacked_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), len in 0usize..9000) {
            let _ = unpacked(&bytes, len);
        }
    }
}
