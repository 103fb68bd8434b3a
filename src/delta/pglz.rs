//! pglz, PostgreSQL's own compression, as images in WAL have it: bit for bit what a server makes of the same bytes, from 14 to 18.
//! Spec: formats/deltas.md.
//!
//! The compressor is greedy: at each place the longest of a few earlier occurrences, found by lists of places whose next four bytes have
//! one key. Which of them are looked at, and in which order, decides on the bytes that come out, so all of that is part of the format.

#![deny(clippy::indexing_slicing)]

use super::overlap::{self, Broken};
use crate::base::limits::BLOCK_BYTES;

/// Lists of places, by key; a power of two. Short inputs have fewer.
const LISTS: usize = 8192;
/// A match is worth a tag from this length on.
const MATCH_MIN: usize = 3;
/// The longest match that a tag has room for.
const MATCH_MAX: usize = 273;
/// From this length on a tag has a third byte.
const MATCH_LONG: usize = 18;
/// No match is farther back, though a tag had room for one that is.
const DISTANCE_MAX: usize = 4094;
/// A match of this length ends the search at once; at each further place a tenth less, rounded, is enough.
const GOOD: usize = 128;
/// A tenth of this is nothing: it does not get less.
const TENTH: usize = 10;
/// Bytes behind the input, so that words are read without a look at its end.
const PADDING: usize = 8;

/// The most earlier places that the compressor looks at in one input: four times what a page of a table or an index took in the worst
/// case that was found.
pub const LOOKS_MAX: usize = 1 << 21;

/// Whether bytes are signed where keys are made of them: `char` is where the server was built for x86, and is not for ARM and POWER.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CharSign {
    /// -128 to 127.
    Signed,
    /// 0 to 255.
    Unsigned,
}

/// An input for which the compressor would look at more than [`LOOKS_MAX`] places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyLooks;

/// Compresses. Keeps its memory.
#[derive(Debug)]
pub struct Compressor {
    /// The input, and zeros behind it.
    input: Box<[u8; BLOCK_BYTES + PADDING]>,
    /// The key at each place.
    keys: Box<[u16; BLOCK_BYTES]>,
    /// For each key the last place that has it, plus 1; 0 is none.
    last: Box<[u16; LISTS]>,
    /// For each place the one before it of the same key, plus 1.
    before: Box<[u16; BLOCK_BYTES]>,
}

/// An earlier occurrence of what comes next.
#[derive(Debug, Clone, Copy)]
struct Match {
    len: usize,
    distance: usize,
}

impl Default for Compressor {
    fn default() -> Self {
        Compressor {
            input: Box::new([0; BLOCK_BYTES + PADDING]),
            keys: Box::new([0; BLOCK_BYTES]),
            last: Box::new([0; LISTS]),
            before: Box::new([0; BLOCK_BYTES]),
        }
    }
}

impl Compressor {
    /// Appends `input`, of at most 8192 bytes, compressed. Where the outcome is not a quarter shorter, or has no match in its first KiB, a
    /// server stores the input as it is; that is for the caller to see.
    pub fn compress(&mut self, input: &[u8], sign: CharSign, to: &mut Vec<u8>) -> Result<(), TooManyLooks> {
        self.compress_within(LOOKS_MAX, input, sign, to)
    }

    fn compress_within(
        &mut self,
        looks_max: usize,
        input: &[u8],
        sign: CharSign,
        to: &mut Vec<u8>,
    ) -> Result<(), TooManyLooks> {
        assert!(input.len() <= BLOCK_BYTES, "{} bytes are more than a block", input.len());
        let (head, rest) = self.input.split_at_mut(input.len());
        head.copy_from_slice(input);
        rest.fill(0);
        let lists = match input.len() {
            0..128 => 512,
            128..256 => 1024,
            256..512 => 2048,
            512..1024 => 4096,
            _ => LISTS,
        };
        self.make_keys(input, sign, lists as u16 - 1);
        self.last.fill(0);
        let mut items = Items { to, control_at: 0, bit: 0 };
        let (mut at, mut looks) = (0, 0);
        while at < input.len() {
            let taken = match self.longest(at, input.len(), &mut looks) {
                Some(found) => items.tag(found),
                None => items.literal(input.get(at).copied().unwrap_or(0)),
            };
            if looks > looks_max {
                return Err(TooManyLooks);
            }
            self.remember(at, taken);
            at += taken;
        }
        Ok(())
    }

    /// The key at each place: of four bytes, or of one where fewer than four are left.
    fn make_keys(&mut self, input: &[u8], sign: CharSign, mask: u16) {
        // A negative byte has ones above. Sixteen bits are enough, since no key has more than thirteen.
        let above = match sign {
            CharSign::Signed => 0xFF00,
            CharSign::Unsigned => 0,
        };
        let wide = |byte: u8| u16::from(byte) | if byte < 0x80 { 0 } else { above };
        let (fours, _) = self.keys.split_at_mut(input.len().saturating_sub(3));
        for (key, four) in fours.iter_mut().zip(input.array_windows::<4>()) {
            let [a, b, c, d] = four.map(wide);
            *key = (a << 6 ^ b << 4 ^ c << 2 ^ d) & mask;
        }
        let from = fours.len();
        for (key, byte) in self.keys.iter_mut().zip(input).skip(from) {
            *key = wide(*byte) & mask;
        }
    }

    /// The match to be taken at `at`, if there is one. Counts the places that were looked at.
    #[inline]
    fn longest(&self, at: usize, end: usize, looks: &mut usize) -> Option<Match> {
        let most = MATCH_MAX.min(end - at);
        if most < MATCH_MIN {
            return None;
        }
        // Whatever is shorter than a tag is no better than nothing.
        let mut best = Match { len: MATCH_MIN - 1, distance: 0 };
        let mut good = GOOD;
        let key = self.keys.get(at).copied().unwrap_or(0);
        let mut next = self.last.get(usize::from(key)).copied().unwrap_or(0);
        // The last three bytes that a longer match has to have.
        let mut wanted = self.three(at);
        while let Some(place) = usize::from(next).checked_sub(1) {
            *looks += 1;
            if at - place > DISTANCE_MAX {
                break;
            }
            if self.three(place + best.len + 1 - MATCH_MIN) == wanted {
                let len = overlap::common(&*self.input, at, place, most);
                if len > best.len {
                    best = Match { len, distance: at - place };
                    if len == most {
                        break;
                    }
                    wanted = self.three(at + len + 1 - MATCH_MIN);
                }
            }
            next = self.before.get(place).copied().unwrap_or(0);
            if best.len >= good {
                break;
            }
            good -= good / TENTH;
        }
        (best.len >= MATCH_MIN).then_some(best)
    }

    /// The three bytes at `at`.
    #[inline]
    fn three(&self, at: usize) -> u32 {
        overlap::word(&*self.input, at) << 8
    }

    /// Puts `count` places from `at` on into their lists.
    #[inline]
    fn remember(&mut self, at: usize, count: usize) {
        let keys = self.keys.iter().zip(self.before.iter_mut()).enumerate().skip(at).take(count);
        for (place, (key, before)) in keys {
            if let Some(last) = self.last.get_mut(usize::from(*key)) {
                *before = std::mem::replace(last, place as u16 + 1);
            }
        }
    }
}

/// What comes out: eight literals and tags behind a byte whose bits tell which is which, the lowest first.
#[derive(Debug)]
struct Items<'a> {
    to: &'a mut Vec<u8>,
    control_at: usize,
    /// The bit of the next item; 0 when there is no room for one.
    bit: u8,
}

impl Items<'_> {
    fn begin(&mut self, bit: u8) {
        if self.bit == 0 {
            self.control_at = self.to.len();
            self.to.push(0);
            self.bit = 1;
        }
        if let Some(control) = self.to.get_mut(self.control_at) {
            *control |= self.bit * bit;
        }
        self.bit <<= 1;
    }

    /// Both return how many bytes of the input they stand for.
    fn literal(&mut self, byte: u8) -> usize {
        self.begin(0);
        self.to.push(byte);
        1
    }

    fn tag(&mut self, Match { len, distance }: Match) -> usize {
        self.begin(1);
        let high = (distance >> 8 << 4) as u8;
        match len.checked_sub(MATCH_LONG) {
            None => self.to.extend_from_slice(&[high | (len - MATCH_MIN) as u8, distance as u8]),
            Some(more) => self.to.extend_from_slice(&[high | 0x0F, distance as u8, more as u8]),
        }
        len
    }
}

/// Appends what `packed` is a compressed form of, which is `len` bytes. Refuses what is none of so many bytes;
/// what was appended until then stays.
pub fn decompress(packed: &[u8], len: usize, to: &mut Vec<u8>) -> Result<(), Broken> {
    let (start, mut from) = (to.len(), packed.iter().copied());
    while to.len() - start < len {
        let control = from.next().ok_or(Broken)?;
        for bit in 0..8 {
            if to.len() - start == len {
                break;
            }
            let first = from.next().ok_or(Broken)?;
            if control >> bit & 1 == 0 {
                to.push(first);
                continue;
            }
            let distance = usize::from(first >> 4) << 8 | usize::from(from.next().ok_or(Broken)?);
            let mut count = usize::from(first & 0x0F) + MATCH_MIN;
            if count == MATCH_LONG {
                count += usize::from(from.next().ok_or(Broken)?);
            }
            if count > len - (to.len() - start) {
                return Err(Broken);
            }
            overlap::copy(to, start, distance, count)?;
        }
    }
    if from.next().is_none() { Ok(()) } else { Err(Broken) }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::super::overlap::tests::{inputs, unhex};
    use super::*;
    use proptest::prelude::*;

    fn packed(input: &[u8], sign: CharSign) -> Vec<u8> {
        let mut to = vec![7];
        Compressor::default().compress(input, sign, &mut to).unwrap();
        to.split_off(1)
    }

    fn unpacked(packed: &[u8], len: usize) -> Result<Vec<u8>, Broken> {
        let mut to = vec![7; 5];
        let done = decompress(packed, len, &mut to);
        assert!(to.len() <= 5 + len, "{} bytes", to.len());
        done.map(|()| to.split_off(5))
    }

    /// An image of PostgreSQL 17, out of its WAL, without its hole; and as it was there.
    const IMAGE: [&str; 2] = [
        "000000006074fb15000000002c00a81ff01f042000000000e89f1000a89f2000c89f2000b89f2000d89f20000000e40301001020d124\
         0000000000000000d803010010208ad80000000000000000fc010100102093730000000000000000640101001020445001000000000000\
         0003000000082000000000000000000200000002000000",
        "00000000006074fb150101082c00a81ff01f040220010ce89f1000a89f002000c89f2000b89f102000d89f0117e4030160001020d124\
         01220101d84902108ad80510fc010110938a73051064021044500104106003000000080260010102010404",
    ];

    #[test]
    fn an_image_is_packed_as_the_server_did() {
        let [plain, was] = IMAGE.map(unhex);
        assert_eq!(packed(&plain, CharSign::Signed), was);
        assert_eq!(unpacked(&was, plain.len()), Ok(plain));
    }

    #[test]
    fn the_sign_of_bytes_decides_on_lists_and_so_on_matches() {
        // What PostgreSQL's function makes of this, compiled with -fsigned-char and with -funsigned-char.
        let plain = unhex("9a9a9a9a9a9a9a9a9a080808080808080808080808080808080808080808080808a8080808");
        assert_eq!(packed(&plain, CharSign::Signed), unhex("0a9a0501080f0105a8080808"));
        assert_eq!(packed(&plain, CharSign::Unsigned), unhex("2a9a0501080f0105a80004"));
    }

    #[test]
    fn a_tag_has_a_third_byte_from_18_bytes_on_and_ends_at_273() {
        assert_eq!(packed(&[5; 1 + 17], CharSign::Signed), [2, 5, 14, 1]);
        assert_eq!(packed(&[5; 1 + 18], CharSign::Signed), [2, 5, 15, 1, 0]);
        assert_eq!(packed(&[5; 1 + 273 + 4], CharSign::Signed), [6, 5, 15, 1, 255, 1, 1]);
        // Fewer than four bytes have a key of their own.
        assert_eq!(packed(&[5; 1 + 273 + 3], CharSign::Signed), [2, 5, 15, 1, 255, 5, 5, 5]);
    }

    #[test]
    fn a_match_is_at_most_4094_back() {
        let noise = |seed: u8, len: usize| {
            let mut bytes = vec![0; len];
            blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
            bytes
        };
        let apart = |distance: usize| {
            let word = noise(1, 64);
            let input = [&word[..], &noise(2, distance - 64), &word].concat();
            input.len() + input.len().div_ceil(8) - packed(&input, CharSign::Signed).len()
        };
        assert!(apart(4094) > 50 && apart(4095) < 20, "{} and {}", apart(4094), apart(4095));
    }

    #[test]
    fn an_input_that_takes_too_long_is_given_up() {
        // Four bytes that come up three times: one place is looked at for each time but the first.
        let input = unhex("000102030405060700010203f0f1f2f300010203");
        let mut compressor = Compressor::default();
        let mut within = |looks| {
            let mut to = Vec::new();
            compressor.compress_within(looks, &input, CharSign::Signed, &mut to).map(|()| to.len())
        };
        assert_eq!((within(1), within(2)), (Err(TooManyLooks), Ok(18)));
        // The next input is packed as if there had been none before.
        let [plain, was] = IMAGE.map(unhex);
        let mut to = Vec::new();
        assert_eq!(compressor.compress(&plain, CharSign::Signed, &mut to), Ok(()));
        assert_eq!(to, was);
    }

    #[test]
    fn refuses_what_is_cut_or_leads_elsewhere() {
        let [plain, was] = IMAGE.map(unhex);
        for len in 0..was.len() {
            assert_eq!(unpacked(&was[..len], plain.len()), Err(Broken), "{len} bytes");
        }
        assert_eq!(unpacked(&[&was[..], &[0]].concat(), plain.len()), Err(Broken), "a byte more");
        assert_eq!(unpacked(&was, plain.len() - 1), Err(Broken), "a tag that goes beyond the end");
        // A tag before there is anything, one of no distance, one that leads before the start.
        for bad in [&[1, 0, 1][..], &[2, 5, 0, 0], &[2, 5, 0, 2]] {
            assert_eq!(unpacked(bad, 4), Err(Broken), "{bad:?}");
        }
        assert_eq!(unpacked(&[2, 5, 0, 1], 4), Ok(vec![5; 4]));
    }

    proptest! {
        #[test]
        fn any_input_comes_back(input in inputs(), unsigned in any::<bool>()) {
            let sign = if unsigned { CharSign::Unsigned } else { CharSign::Signed };
            let made = packed(&input, sign);
            prop_assert!(made.len() <= input.len() + input.len().div_ceil(8));
            prop_assert!(unpacked(&made, input.len()) == Ok(input));
        }

        #[test]
        fn any_bytes_are_unpacked_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), len in 0usize..9000) {
            let _ = unpacked(&bytes, len);
        }
    }
}
