//! What records did to the blocks of cached images, kept alike by encoder and decoder: a ring of changes, in which those of a block
//! are a chain, the last one first: so a block holds one place, however often it changes, and forgets nothing by itself. Replaying them makes of an image the page that a later image is near to. Spec: formats/deltas.md.

#![deny(clippy::indexing_slicing)]

use crate::base::limits::BLOCK_BYTES;
use crate::base::{Lsn, Memory};
use crate::wal::WalVersion;
use prefetch_index::prefetch_index;
use std::io;

/// Bytes of a change but for its data and main data.
const ENTRY_BYTES: usize = CHECK_BYTES + FIELDS_BYTES;
/// A check of what follows.
const CHECK_BYTES: usize = 4;
const FIELDS_BYTES: usize = 40;
/// Bytes of changes for each page that a cache may have.
const HISTORY_BYTES_PER_PAGE: usize = BLOCK_BYTES / 8;
/// Bytes that a processor gets from memory at once.
pub const LINE_BYTES: usize = 64;
/// Changes of one frame's blocks whose places are held at once: a few blocks may have all changes of the ring.
const CHAINED_MAX: usize = 1 << 16;
/// A change of more bytes than this is not kept.
pub const CHANGE_BYTES_MAX: usize = 9000;
/// The block of a block reference that a record does not have.
pub const NO_BLOCK: u32 = u32::MAX;
/// Set beside the number of the block reference when replay starts from an empty page.
const INIT: u8 = 0x80;

/// What a record does to one of its blocks.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    /// The version of the server.
    pub version: WalVersion,
    /// The end of the record, with its padding.
    pub end: Lsn,
    /// Its transaction.
    pub xid: u32,
    /// Its resource manager.
    pub rmgr: u8,
    /// `xl_info`.
    pub info: u8,
    /// The number of the block reference in it.
    pub role: u8,
    /// Whether replay starts from an empty page.
    pub init: bool,
    /// The blocks of its block references 0, 1 and 2, or [`NO_BLOCK`].
    pub blocks: [u32; 3],
    /// The data of this block.
    pub data: &'a [u8],
    /// Main data.
    pub main: &'a [u8],
}

impl Change<'_> {
    /// Bytes of its data and main data.
    fn contents(&self) -> usize {
        self.data.len() + self.main.len()
    }
}

/// A place in a history: how many bytes were put there before.
pub type ChangePlace = u64;
/// The place of no change, which is before the first of a block: like one that was forgotten.
pub const NO_CHANGE: ChangePlace = u64::MAX;

/// Changes of some blocks, each block's in order.
#[derive(Debug, Default)]
pub struct Chains {
    /// The last change of each, in ascending order.
    lasts: Vec<ChangePlace>,
    /// Where the places of each end.
    ends: Vec<usize>,
    places: Vec<ChangePlace>,
}

impl Chains {
    /// The change at `last` and those before it that are still there, in order, if they were asked for and there were not too many.
    pub fn of(&self, last: ChangePlace) -> Option<&[ChangePlace]> {
        let chain = self.lasts.binary_search(&last).ok()?;
        let start = chain.checked_sub(1).map_or(Some(&0), |before| self.ends.get(before))?;
        self.places.get(*start..*self.ends.get(chain)?)
    }
}

/// Where changes come to lie in a history, and which of them are still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ring {
    bytes_max: usize,
    /// Counts all bytes; the last `bytes_max` of them are there.
    head: u64,
}

impl Ring {
    /// That of a cache of at most `pages_max` pages, empty.
    pub fn of(pages_max: usize) -> Ring {
        Ring { bytes_max: pages_max * HISTORY_BYTES_PER_PAGE, head: 0 }
    }

    /// The same with nothing in it.
    pub fn emptied(self) -> Ring {
        Ring { head: 0, ..self }
    }

    /// The most bytes.
    pub fn bytes_max(self) -> usize {
        self.bytes_max
    }

    /// Takes room for a change with data and main data of `contents` bytes, unless that is too long; returns its place.
    pub fn take(&mut self, contents: usize) -> Option<ChangePlace> {
        let len = ENTRY_BYTES + contents;
        if len > CHANGE_BYTES_MAX.min(self.bytes_max) {
            return None;
        }
        // A change lies in one piece.
        let at = self.at(self.head);
        let place =
            if self.bytes_max - at < len { self.head + (self.bytes_max - at) as u64 } else { self.head };
        self.head = place + len as u64;
        Some(place)
    }

    /// Whether the change at `place` is still there.
    pub fn has(self, place: ChangePlace) -> bool {
        self.head.checked_sub(place).is_some_and(|since| since <= self.bytes_max as u64)
    }

    /// Where the change at `place` begins.
    fn at(self, place: ChangePlace) -> usize {
        let bytes_max = self.bytes_max as u64;
        // As it is for any cache of a power of two: a division takes as long as all else here.
        let at = if bytes_max.is_power_of_two() { place & (bytes_max - 1) } else { place % bytes_max };
        at as usize
    }
}

/// The last changes of an epoch.
#[derive(Debug)]
pub struct History {
    /// Where they are.
    pub ring: Ring,
    memory: Box<dyn Memory>,
    /// Bytes of the memory that have room.
    reached: usize,
    checks: Checks,
}

impl History {
    /// An empty history in `memory`, which is as long as `ring`. Room is taken as it fills.
    pub fn new(ring: Ring, memory: Box<dyn Memory>, checks: Checks) -> Self {
        History { ring, memory, reached: 0, checks }
    }

    /// Keeps `change`, which comes after the one at `before`, unless it is too long; returns its place.
    ///
    /// # Errors
    /// No room for it: nothing is kept.
    pub fn put(&mut self, change: &Change<'_>, before: ChangePlace) -> io::Result<Option<ChangePlace>> {
        let mut ring = self.ring;
        let Some(place) = ring.take(change.contents()) else { return Ok(None) };
        self.write(place, change, before)?;
        self.ring = ring;
        Ok(Some(place))
    }

    /// Puts `change` at `place`, which has room for it.
    ///
    /// # Errors
    /// No room for it: nothing is put.
    pub fn write(&mut self, place: ChangePlace, change: &Change<'_>, before: ChangePlace) -> io::Result<()> {
        let (at, len) = (self.ring.at(place), ENTRY_BYTES + change.contents());
        if at + len > self.reached {
            self.memory.reach(at + len)?;
            self.reached = at + len;
        }
        let [b0, b1, b2] = change.blocks.map(u64::from);
        let role = change.role & !INIT | if change.init { INIT } else { 0 };
        let words = [
            before,
            u64::from(change.data.len() as u16)
                | u64::from(change.main.len() as u16) << 16
                | u64::from(change.xid) << 32,
            change.end.get(),
            b0 | b1 << 32,
            b2 | u64::from(u32::from_le_bytes([change.version as u8, change.rmgr, change.info, role])) << 32,
        ];
        let fields = words.map(u64::to_le_bytes);
        let entry = self.memory.bytes_mut().get_mut(at..at + len);
        if let Some((check, entry)) = entry.and_then(|entry| entry.split_first_chunk_mut::<CHECK_BYTES>()) {
            let mut room = &mut *entry;
            for part in [fields.as_flattened(), change.data, change.main] {
                let (to, rest) = room.split_at_mut(part.len());
                to.copy_from_slice(part);
                room = rest;
            }
            if self.checks == Checks::Made {
                *check = check_of(entry).to_le_bytes();
            }
        }
        Ok(())
    }

    /// Whether the change at `place` is still there.
    pub fn has(&self, place: ChangePlace) -> bool {
        self.ring.has(place)
    }

    /// Puts the places of the change at `last` and of those before it that are still there into `places`, in order.
    pub fn chain(&self, last: ChangePlace, places: &mut Vec<ChangePlace>) {
        places.clear();
        let mut place = Some(last).filter(|last| self.has(*last));
        while let Some(found) = place {
            places.push(found);
            place = self.before(found);
        }
        places.reverse();
    }

    /// The change of the same block before the one at `place`, if both are still there.
    fn before(&self, place: ChangePlace) -> Option<ChangePlace> {
        let at = self.ring.at(place) + CHECK_BYTES;
        let before = u64::from_le_bytes(*self.memory.bytes().get(at..)?.first_chunk()?);
        // What rotted may say anything; the check of the change then says so.
        (before < place && self.has(before)).then_some(before)
    }

    /// Has the first lines of the change at `place` brought near, in which all of most changes lies.
    fn bring_near(&self, place: ChangePlace) {
        let (bytes, at) = (self.memory.bytes(), self.ring.at(place));
        prefetch_index(bytes, at);
        prefetch_index(bytes, at + LINE_BYTES);
    }

    /// The chains of the changes at `lasts`, which are brought near: one step of each in turn, so that none waits for the memory of another.
    /// None at all when they are more than [`CHAINED_MAX`] changes together: then each is for [`Self::chain`].
    pub fn chains(&self, mut lasts: Vec<ChangePlace>) -> Chains {
        lasts.retain(|last| self.has(*last));
        lasts.sort_unstable();
        lasts.dedup();
        let mut ends = vec![0usize; lasts.len()];
        let mut going: Vec<(usize, ChangePlace)> = lasts.iter().copied().enumerate().collect();
        let mut steps = going.clone();
        going.iter().for_each(|(_, last)| self.bring_near(*last));
        while !going.is_empty() {
            if steps.len() > CHAINED_MAX {
                return Chains::default();
            }
            going.retain_mut(|(chain, place)| {
                let before = self.before(*place);
                if let Some(before) = before {
                    self.bring_near(before);
                    *place = before;
                    steps.push((*chain, before));
                }
                before.is_some()
            });
        }
        for (chain, _) in &steps {
            if let Some(len) = ends.get_mut(*chain) {
                *len += 1;
            }
        }
        let mut sum = 0;
        for end in &mut ends {
            sum += *end;
            *end = sum;
        }
        // Each chain's steps go back from its last change.
        let (mut places, mut free) = (vec![NO_CHANGE; steps.len()], ends.clone());
        for (chain, place) in steps {
            if let Some(end) = free.get_mut(chain) {
                *end -= 1;
                if let Some(to) = places.get_mut(*end) {
                    *to = place;
                }
            }
        }
        Chains { lasts, ends, places }
    }

    /// The change at `place`, which is still there; an error when it rotted, as far as `check` finds out.
    pub fn get(&self, place: ChangePlace, check: Check) -> Result<Change<'_>, Rotten> {
        let at = self.ring.at(place);
        let checked =
            self.memory.bytes().get(at..).and_then(|bytes| bytes.split_first_chunk::<CHECK_BYTES>());
        let (expected, entry) = checked.ok_or(Rotten)?;
        let (fields, rest) = entry.split_first_chunk::<FIELDS_BYTES>().ok_or(Rotten)?;
        let mut words = [0u64; FIELDS_BYTES / 8];
        for (word, bytes) in words.iter_mut().zip(fields.chunks_exact(8)) {
            *word = bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        }
        let [_before, lens, end, blocks, kind] = words;
        let (data_len, main_len) = (usize::from(lens as u16), usize::from((lens >> 16) as u16));
        let covered = entry.get(..FIELDS_BYTES + data_len + main_len).ok_or(Rotten)?;
        if check == Check::Compare && check_of(covered) != u32::from_le_bytes(*expected) {
            return Err(Rotten);
        }
        let rest = rest.get(..data_len + main_len).ok_or(Rotten)?;
        let (data, main) = rest.split_at(data_len);
        let [version, rmgr, info, role] = ((kind >> 32) as u32).to_le_bytes();
        Ok(Change {
            version: WalVersion::ALL.get(usize::from(version)).copied().ok_or(Rotten)?,
            end: Lsn::new(end),
            xid: (lens >> 32) as u32,
            rmgr,
            info,
            role: role & !INIT,
            init: role & INIT != 0,
            blocks: [blocks as u32, (blocks >> 32) as u32, kind as u32],
            data,
            main,
        })
    }

    /// Flips a bit of byte `at`, for tests of what happens then.
    #[doc(hidden)]
    pub fn rot(&mut self, at: usize) {
        if let Some(byte) = self.memory.bytes_mut().get_mut(at) {
            *byte ^= 1;
        }
    }
}

/// Whether what is kept gets checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checks {
    /// It does: an encoder has to know that it builds on what decoders will have.
    Made,
    /// It does not: a decoder holds what comes of it against the frame's BLAKE3.
    None,
}

/// Whether what was kept is held against its check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// It is: by an encoder, whose frames have to come of what decoders have.
    Compare,
    /// It is not: by a decoder, which holds what comes of it against the frame's BLAKE3.
    Skip,
}

/// A quick check of a change: its words multiplied in pairs, each product folded. It finds rot, and is no part of the format.
fn check_of(bytes: &[u8]) -> u32 {
    const ODD: [u64; 2] = [0x9E37_79B9_7F4A_7C15, 0xD6E8_FEB8_6659_FD93];
    let fold = |a: u64, b: u64| {
        let product = u128::from(a) * u128::from(b);
        product as u64 ^ (product >> 64) as u64
    };
    let halves = |pair: &[u8; 16]| {
        let both = u128::from_le_bytes(*pair);
        (both as u64, (both >> 64) as u64)
    };
    let (pairs, rest) = bytes.as_chunks::<16>();
    let mut last = [0; 16];
    last.iter_mut().zip(rest).for_each(|(to, byte)| *to = *byte);
    // Every pair has a factor of its own, so that none waits for the one before.
    let mut sum = bytes.len() as u64;
    for (number, pair) in pairs.iter().chain([&last]).enumerate() {
        let (low, high) = halves(pair);
        sum = sum.wrapping_add(fold(low ^ ODD[0], high ^ ODD[1].wrapping_add(number as u64)));
    }
    fold(sum ^ ODD[0], ODD[1]) as u32
}

/// What was kept is not what it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotten;

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::base::{Anonymous, Scratch};

    fn history(bytes: usize) -> History {
        let ring = Ring { bytes_max: bytes, head: 0 };
        History::new(ring, Anonymous.memory(bytes).unwrap(), Checks::Made)
    }

    fn change(data: &[u8]) -> Change<'_> {
        Change {
            version: WalVersion::V16,
            end: Lsn::new(0x1_0000_0008),
            xid: 0xAABB_CCDD,
            rmgr: 10,
            info: 0x80,
            role: 1,
            init: true,
            blocks: [1, 0xFFFF_FFF0, NO_BLOCK],
            data,
            main: b"main",
        }
    }

    #[test]
    fn changes_come_back_until_they_are_forgotten() {
        let mut history = history(300);
        let places: Vec<ChangePlace> =
            (0..9u8).map(|turn| history.put(&change(&[turn; 20]), NO_CHANGE).unwrap().unwrap()).collect();
        // Four of 68 bytes have room.
        let there: Vec<bool> = places.iter().map(|place| history.has(*place)).collect();
        assert_eq!(there, [false, false, false, false, false, true, true, true, true]);
        let back = history.get(places[5], Check::Compare).unwrap();
        assert_eq!(format!("{back:?}"), format!("{:?}", change(&[5; 20])));
        assert_eq!(history.put(&change(&[0; 253]), NO_CHANGE).unwrap(), None);
    }

    #[test]
    fn a_chain_ends_at_the_first_change_and_at_those_that_are_forgotten() {
        let mut history = history(300);
        let (mut last, mut places, mut kept) = ([NO_CHANGE; 2], Vec::new(), [Vec::new(), Vec::new()]);
        history.chain(NO_CHANGE, &mut places);
        assert!(places.is_empty());
        for turn in 0..20usize {
            let of = turn % 2;
            last[of] = history.put(&change(&[turn as u8; 20]), last[of]).unwrap().unwrap();
            kept[of].push(last[of]);
            history.chain(last[of], &mut places);
            let there: Vec<ChangePlace> = kept[of].iter().copied().filter(|at| history.has(*at)).collect();
            assert_eq!(places, there, "turn {turn}");
            let chains = history.chains(vec![last[1], NO_CHANGE, last[0], last[1]]);
            for (of, last) in last.into_iter().enumerate().filter(|(_, last)| *last != NO_CHANGE) {
                let there = kept[of].iter().copied().filter(|at| history.has(*at));
                assert_eq!(chains.of(last).unwrap(), there.collect::<Vec<_>>(), "turn {turn}");
            }
            assert_eq!((chains.of(NO_CHANGE), chains.of(1)), (None, None));
        }
        assert!(places.len() == 2 && kept[1].len() == 10);
    }

    #[test]
    fn chains_of_too_many_changes_are_not_held_at_once() {
        let mut history = history((CHAINED_MAX + 10) * (ENTRY_BYTES + 4));
        let (mut last, mut places) = ([NO_CHANGE; 2], Vec::new());
        for turn in 0..=CHAINED_MAX {
            last[turn % 2] = history.put(&change(b""), last[turn % 2]).unwrap().unwrap();
            if turn + 1 == CHAINED_MAX {
                let chains = history.chains(last.to_vec());
                assert_eq!(last.map(|last| chains.of(last).map(<[_]>::len)), [Some(CHAINED_MAX / 2); 2]);
            }
        }
        let chains = history.chains(last.to_vec());
        assert_eq!((chains.of(last[0]), chains.of(last[1])), (None, None));
        history.chain(last[0], &mut places);
        assert_eq!(places.len(), CHAINED_MAX / 2 + 1);
    }

    #[test]
    fn a_change_lies_in_one_piece() {
        let mut history = history(116);
        let mut put = |byte, len| history.put(&change(&vec![byte; len]), NO_CHANGE).unwrap();
        assert_eq!([put(1, 10), put(2, 10), put(3, 10)], [Some(0), Some(58), Some(116)]);
        assert_eq!(put(4, 30), Some(232));
        assert!(!history.has(116) && history.memory.bytes().len() == 116);
    }

    #[test]
    fn a_change_that_rotted_is_not_given() {
        for at in 0..68 {
            let mut history = history(100);
            let place = history.put(&change(&[7; 20]), NO_CHANGE).unwrap().unwrap();
            history.rot(at);
            history.chain(place, &mut Vec::new());
            assert_eq!(history.get(place, Check::Compare).map(|_| ()), Err(Rotten), "byte {at}");
            // What a decoder makes of it is anything, and no more than there is.
            let _ = history.get(place, Check::Skip);
        }
    }
}
