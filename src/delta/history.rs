//! What records did to the blocks of cached images, kept alike by encoder and decoder: a ring of changes.
//! Replaying them makes of an image the page that a later image is near to. Spec: formats/deltas.md.

#![deny(clippy::indexing_slicing)]

use crate::base::{Lsn, Memory, crc32c};
use crate::wal::WalVersion;
use std::io;

/// Bytes of a change but for its data and main data.
const ENTRY_BYTES: usize = CHECK_BYTES + FIELDS_BYTES;
/// A CRC-32C of what follows.
const CHECK_BYTES: usize = 4;
const FIELDS_BYTES: usize = 32;
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

/// A place in a history: how many bytes were put there before.
pub type ChangePlace = u64;

/// The last changes of an epoch.
#[derive(Debug)]
pub struct History {
    bytes_max: usize,
    ring: Box<dyn Memory>,
    /// Counts all bytes; the last `bytes_max` of them are there.
    head: u64,
}

impl History {
    /// An empty history of at most `bytes_max` bytes, in `ring`, which is as long. Room is taken as it fills.
    pub fn new(bytes_max: usize, ring: Box<dyn Memory>) -> Self {
        History { bytes_max, ring, head: 0 }
    }

    /// The most changes that may be there.
    pub fn changes_max(&self) -> usize {
        self.bytes_max / ENTRY_BYTES
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.head = 0;
    }

    /// Keeps `change`, unless it is too long; returns its place.
    ///
    /// # Errors
    /// No room for it: nothing is kept.
    pub fn put(&mut self, change: &Change<'_>) -> io::Result<Option<ChangePlace>> {
        let len = ENTRY_BYTES + change.data.len() + change.main.len();
        if len > CHANGE_BYTES_MAX.min(self.bytes_max) {
            return Ok(None);
        }
        // A change lies in one piece.
        let mut at = (self.head % self.bytes_max as u64) as usize;
        let mut place = self.head;
        if self.bytes_max - at < len {
            place += (self.bytes_max - at) as u64;
            at = 0;
        }
        self.ring.reach(at + len)?;
        self.head = place + len as u64;
        let [b0, b1, b2] = change.blocks.map(u64::from);
        let role = change.role & !INIT | if change.init { INIT } else { 0 };
        let words = [
            u64::from(change.data.len() as u16)
                | u64::from(change.main.len() as u16) << 16
                | u64::from(change.xid) << 32,
            change.end.get(),
            b0 | b1 << 32,
            b2 | u64::from(u32::from_le_bytes([change.version as u8, change.rmgr, change.info, role])) << 32,
        ];
        let mut fields = [0; FIELDS_BYTES];
        fields.chunks_exact_mut(8).zip(words).for_each(|(to, word)| to.copy_from_slice(&word.to_le_bytes()));
        let entry = self.ring.bytes_mut().get_mut(at..at + len);
        if let Some((check, entry)) = entry.and_then(|entry| entry.split_first_chunk_mut::<CHECK_BYTES>()) {
            let mut room = &mut *entry;
            for part in [&fields[..], change.data, change.main] {
                let (to, rest) = room.split_at_mut(part.len());
                to.copy_from_slice(part);
                room = rest;
            }
            *check = crc32c::crc32c(entry).to_le_bytes();
        }
        Ok(Some(place))
    }

    /// Whether the change at `place` is still there.
    pub fn has(&self, place: ChangePlace) -> bool {
        self.head - place <= self.bytes_max as u64
    }

    /// The change at `place`, which is still there; an error when it rotted.
    pub fn get(&self, place: ChangePlace) -> Result<Change<'_>, Rotten> {
        let at = (place % self.bytes_max as u64) as usize;
        let checked = self.ring.bytes().get(at..).and_then(|bytes| bytes.split_first_chunk::<CHECK_BYTES>());
        let (check, entry) = checked.ok_or(Rotten)?;
        let (fields, rest) = entry.split_first_chunk::<FIELDS_BYTES>().ok_or(Rotten)?;
        let mut words = [0u64; FIELDS_BYTES / 8];
        for (word, bytes) in words.iter_mut().zip(fields.chunks_exact(8)) {
            *word = bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        }
        let [lens, end, blocks, kind] = words;
        let (data_len, main_len) = (usize::from(lens as u16), usize::from((lens >> 16) as u16));
        let covered = entry.get(..FIELDS_BYTES + data_len + main_len).ok_or(Rotten)?;
        if crc32c::crc32c(covered) != u32::from_le_bytes(*check) {
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
        if let Some(byte) = self.ring.bytes_mut().get_mut(at) {
            *byte ^= 1;
        }
    }
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
        History::new(bytes, Anonymous.memory(bytes).unwrap())
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
            (0..9u8).map(|turn| history.put(&change(&[turn; 20])).unwrap().unwrap()).collect();
        // Five of 60 bytes have room.
        let there: Vec<bool> = places.iter().map(|place| history.has(*place)).collect();
        assert_eq!(there, [false, false, false, false, true, true, true, true, true]);
        let back = history.get(places[5]).unwrap();
        assert_eq!(format!("{back:?}"), format!("{:?}", change(&[5; 20])));
        assert_eq!(history.put(&change(&[0; 261])).unwrap(), None);
    }

    #[test]
    fn a_change_lies_in_one_piece() {
        let mut history = history(100);
        let places = [1, 2, 3].map(|turn| history.put(&change(&[turn; 10])).unwrap().unwrap());
        assert_eq!(places, [0, 50, 100]);
        assert_eq!(history.put(&change(&[4; 30])).unwrap(), Some(200));
        assert!(!history.has(places[2]) && history.ring.bytes().len() == 100);
    }

    #[test]
    fn a_change_that_rotted_is_not_given() {
        for at in 0..60 {
            let mut history = history(100);
            let place = history.put(&change(&[7; 20])).unwrap().unwrap();
            history.rot(at);
            assert_eq!(history.get(place).map(|_| ()), Err(Rotten), "byte {at}");
        }
    }
}
