//! What a record does to a page, as far as it pays: heap tuples, B-tree tuples, pruning and splits, of 14 to 18. The outcome need not be the page
//! that the server has, only near to it, and the same in encoder and decoder. Spec: formats/deltas.md.

#![deny(clippy::indexing_slicing)]

use super::block::Page;
use super::heap;
use super::history::{Change, NO_BLOCK};
use super::slots::{Slots, put, u16_at};
use crate::wal::record::{RMGR_INFO_MASK, rmgr};

/// The resource manager of B-trees.
pub const RMGR_BTREE: u8 = 11;
/// Bytes of `BTPageOpaqueData`.
const OPAQUE_BYTES: usize = 16;
/// Bytes of a B-tree tuple before its key.
const INDEX_TUPLE_BYTES: usize = 8;

/// Operations of B-trees (`access/nbtxlog.h`).
mod op {
    pub const INSERT_LEAF: u8 = 0x00;
    pub const INSERT_UPPER: u8 = 0x10;
    pub const INSERT_META: u8 = 0x20;
    pub const SPLIT_L: u8 = 0x30;
    pub const SPLIT_R: u8 = 0x40;
    pub const DELETE: u8 = 0x70;
    pub const VACUUM: u8 = 0xC0;
}

/// `btpo_flags`.
mod btree_flag {
    pub const LEAF: u16 = 1;
    pub const INCOMPLETE_SPLIT: u16 = 0x80;
}

/// Whether [`apply`] does something for records of this resource manager.
pub fn knows(rmgr: u8) -> bool {
    matches!(rmgr, rmgr::HEAP | rmgr::HEAP2 | RMGR_BTREE)
}

/// Whether records of this operation split a page: block reference 0 is that page, 1 the new one, whose data are tuples of the former.
pub fn is_split(rmgr: u8, info: u8) -> bool {
    rmgr == RMGR_BTREE && matches!(info & RMGR_INFO_MASK, op::SPLIT_L | op::SPLIT_R)
}

/// Puts at the end of `moved` what a split with this main data moves from `older` to the new page, but for a new tuple.
pub fn moved_tuples(main: &[u8], older: &mut Page, moved: &mut Page) {
    let mut older = Slots::new(older);
    let mut slots = Slots::new(moved);
    slots.init(0);
    let is_last = older.special_bytes().get(4..8) == Some(&[0; 4]);
    let high_key = (!is_last).then_some(1);
    let mut number = 0;
    for from in high_key.into_iter().chain(usize::from(u16_at(main, 4)).max(1)..older.count() + 1) {
        let Some(tuple) = older.tuple(from) else { continue };
        number += 1;
        if let Some(to) = slots.add(number, tuple.len(), false) {
            to.copy_from_slice(tuple);
        }
    }
}

/// Applies `change` to the page of `block`.
pub fn apply(change: &Change<'_>, block: u32, page: &mut Page) {
    match change.rmgr {
        rmgr::HEAP => heap::apply(change, block, page),
        rmgr::HEAP2 => heap::apply_second(change, block, page),
        RMGR_BTREE => btree(change, page),
        _ => return,
    }
    Slots::new(page).set_lsn(change.end.get());
}

fn btree(change: &Change<'_>, page: &mut Page) {
    let main = |at| usize::from(u16_at(change.main, at));
    match (change.info & RMGR_INFO_MASK, change.role) {
        (op::INSERT_LEAF | op::INSERT_UPPER | op::INSERT_META, 0) => {
            if let Some(to) = Slots::new(page).add(main(0), change.data.len(), true) {
                to.copy_from_slice(change.data);
            }
        }
        (op::SPLIT_L | op::SPLIT_R, 1) => split_right(change, page),
        (info @ (op::SPLIT_L | op::SPLIT_R), 0) => split_left(change, info == op::SPLIT_L, page),
        (op::SPLIT_L | op::SPLIT_R, 2) => {
            let right = change.blocks[1];
            put(Slots::new(page).special_bytes(), 0, &right.to_le_bytes());
        }
        (op::DELETE, 0) => delete(change.data, main(4), page),
        (op::VACUUM, 0) => delete(change.data, main(0), page),
        _ => {}
    }
}

/// The bytes of the tuple that `bytes` begin with, with their padding.
fn tuple_bytes(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let len = usize::from(u16_at(bytes, 6) & 0x1FFF);
    let padded = len.next_multiple_of(8);
    (len >= INDEX_TUPLE_BYTES).then_some(())?;
    Some((bytes.get(..len)?, padded))
}

/// The new page of a split: its tuples come with the record, the last one first.
fn split_right(change: &Change<'_>, page: &mut Page) {
    let mut slots = Slots::new(page);
    slots.init(OPAQUE_BYTES);
    let (mut tuples, mut rest) = (Vec::new(), change.data);
    while let Some((tuple, padded)) = tuple_bytes(rest) {
        tuples.push(tuple);
        rest = rest.get(padded..).unwrap_or(&[]);
    }
    for (number, tuple) in tuples.iter().rev().enumerate() {
        if let Some(to) = slots.add(number + 1, tuple.len(), false) {
            to.copy_from_slice(tuple);
        }
    }
    let level = change.main.first_chunk::<4>().copied().unwrap_or_default();
    let flags = if level == [0; 4] { btree_flag::LEAF } else { 0 };
    let next = if change.blocks[2] == NO_BLOCK { 0 } else { change.blocks[2] };
    opaque(slots.special_bytes(), change.blocks[0], next, level, flags);
}

/// The page that was split keeps its first tuples, perhaps a new one, and has a new high key.
fn split_left(change: &Change<'_>, new_is_left: bool, page: &mut Page) {
    let (first_right, new_at) = (usize::from(u16_at(change.main, 4)), usize::from(u16_at(change.main, 6)));
    let mut older = *page;
    let mut older = Slots::new(&mut older);
    let level = change.main.first_chunk::<4>().copied().unwrap_or_default();
    let leaf = if level == [0; 4] { btree_flag::LEAF } else { 0 };
    let (mut previous, mut next) = ([0; 4], [0; 4]);
    if let Some((found, rest)) = older.special_bytes().split_first_chunk::<4>() {
        previous = *found;
        next = rest.first_chunk().copied().unwrap_or_default();
    }
    let (mut new, mut data) = (None, change.data);
    if new_is_left {
        let Some((tuple, padded)) = tuple_bytes(data) else { return };
        (new, data) = (Some(tuple), data.get(padded..).unwrap_or(&[]));
    }
    let Some((high_key, _)) = tuple_bytes(data) else { return };
    let mut slots = Slots::new(page);
    slots.init(OPAQUE_BYTES);
    let mut number = 0;
    let mut add = |tuple: &[u8]| {
        number += 1;
        if let Some(to) = slots.add(number, tuple.len(), false) {
            to.copy_from_slice(tuple);
        }
    };
    add(high_key);
    let first_key = if next == [0; 4] { 1 } else { 2 };
    for from in first_key..first_right.min(older.count() + 1) {
        if let Some(tuple) = new.filter(|_| from == new_at) {
            add(tuple);
        }
        if let Some(tuple) = older.tuple(from) {
            add(tuple);
        }
    }
    if let Some(tuple) = new.filter(|_| new_at == first_right) {
        add(tuple);
    }
    opaque(
        slots.special_bytes(),
        u32::from_le_bytes(previous),
        change.blocks[1],
        level,
        leaf | btree_flag::INCOMPLETE_SPLIT,
    );
}

fn opaque(special: &mut [u8], previous: u32, next: u32, level: [u8; 4], flags: u16) {
    put(special, 0, &previous.to_le_bytes());
    put(special, 4, &next.to_le_bytes());
    put(special, 8, &level);
    put(special, 12, &flags.to_le_bytes());
}

fn delete(numbers: &[u8], count: usize, page: &mut Page) {
    let mut slots = Slots::new(page);
    slots.remove(numbers.chunks_exact(2).take(count).map(|number| usize::from(u16_at(number, 0))));
    slots.compact();
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::base::Lsn;
    use crate::wal::WalVersion;
    use proptest::prelude::*;

    fn change<'a>(rmgr: u8, info: u8, role: u8, data: &'a [u8], main: &'a [u8]) -> Change<'a> {
        let (version, end) = (WalVersion::V15, Lsn::new(0x12_3456_7890));
        Change { version, end, xid: 700, rmgr, info, role, init: false, blocks: [5, 6, 7], data, main }
    }

    fn key(number: u8) -> Vec<u8> {
        [&[0, 0, 0, 0, number, 0, 16, 0][..], &[number; 8]].concat()
    }

    /// The tuples of a page, by line.
    fn tuples(page: &mut Page) -> Vec<Vec<u8>> {
        let mut slots = Slots::new(page);
        (1..=slots.count()).map(|line| slots.tuple(line).map_or(Vec::new(), |tuple| tuple.to_vec())).collect()
    }

    fn btree_page(keys: &[u8]) -> Page {
        let mut page = [0; 8192];
        Slots::new(&mut page).init(OPAQUE_BYTES);
        for (at, number) in keys.iter().enumerate() {
            let main = (at as u16 + 1).to_le_bytes();
            apply(&change(RMGR_BTREE, op::INSERT_LEAF, 0, &key(*number), &main), 5, &mut page);
        }
        page
    }

    #[test]
    fn keys_are_put_between_others_and_taken_away() {
        let mut page = btree_page(&[1, 3]);
        apply(&change(RMGR_BTREE, op::INSERT_LEAF, 0, &key(2), &[2, 0]), 5, &mut page);
        assert_eq!(tuples(&mut page), [key(1), key(2), key(3)]);
        apply(&change(RMGR_BTREE, op::VACUUM, 0, &[1, 0, 3, 0], &[2, 0, 0, 0]), 5, &mut page);
        assert_eq!(tuples(&mut page), [key(2)]);
        assert_eq!(page[..8], [0x12, 0, 0, 0, 0x90, 0x78, 0x56, 0x34]);
    }

    #[test]
    fn what_a_split_moves_is_what_its_record_has_but_for_the_new_tuple() {
        let main = [0, 0, 0, 0, 3, 0, 4, 0, 0, 0];
        let moved = |older: &Page| {
            let mut moved = [7; 8192];
            moved_tuples(&main, &mut older.clone(), &mut moved);
            tuples(&mut moved)
        };
        // The last page has no high key.
        let mut older = btree_page(&[1, 2, 4, 5, 6]);
        assert_eq!(moved(&older), [key(4), key(5), key(6)]);
        put(&mut older, 8180, &[9]);
        assert_eq!(moved(&older), [key(1), key(4), key(5), key(6)]);
        assert_eq!(moved(&[0; 8192]), [[0; 0]; 0]);
    }

    #[test]
    fn a_split_leaves_both_pages() {
        let mut left = btree_page(&[1, 2, 4, 5]);
        let main = [0, 0, 0, 0, 3, 0, 3, 0, 0, 0];
        apply(&change(RMGR_BTREE, op::SPLIT_L, 0, &[key(3), key(4)].concat(), &main), 5, &mut left);
        assert_eq!(tuples(&mut left), [key(4), key(1), key(2), key(3)]);
        let mut right = [9; 8192];
        apply(&change(RMGR_BTREE, op::SPLIT_L, 1, &[key(5), key(4)].concat(), &main), 6, &mut right);
        assert_eq!(tuples(&mut right), [key(4), key(5)]);
        assert_eq!(right[8176..], [5, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn a_row_is_inserted_updated_and_pruned() {
        let mut page = [0; 8192];
        let insert = Change {
            init: true,
            ..change(rmgr::HEAP, 0x80, 0, &[2, 0, 0, 8, 24, 0, b'a', b'b', b'c'], &[1, 0, 0])
        };
        apply(&insert, 5, &mut page);
        let row =
            [&700u32.to_le_bytes()[..], &[0; 8], &[0, 0, 5, 0, 1, 0], &[2, 0, 0, 8, 24, 0], b"abc"].concat();
        assert_eq!(tuples(&mut page), [row]);
        // Hot: "a" and "c" stay, "x" comes between them.
        let main = [&701u32.to_le_bytes()[..], &[1, 0, 0, 0x60], &[0; 4], &[2, 0]].concat();
        let mut update = change(rmgr::HEAP, 0x40, 0, &[1, 0, 1, 0, 2, 128, 0, 40, 24, 0, b'x'], &main);
        (update.xid, update.blocks) =
            (701, [5, crate::delta::history::NO_BLOCK, crate::delta::history::NO_BLOCK]);
        apply(&update, 5, &mut page);
        let both = tuples(&mut page);
        assert_eq!(both[0][..4], 700u32.to_le_bytes());
        assert_eq!(both[0][4..24], [0xBD, 2, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 2, 0, 2, 0x40, 0, 1, 24, 0]);
        assert_eq!((&both[1][..4], &both[1][24..]), (&701u32.to_le_bytes()[..], &b"axc"[..]));
        assert_eq!(Slots::new(&mut page).prune_xid(), 701);
        let prune = change(rmgr::HEAP2, 0x10, 0, &[1, 0, 2, 0], &[0, 0, 0, 0, 1, 0, 0, 0]);
        apply(&prune, 5, &mut page);
        assert_eq!(tuples(&mut page), [vec![], both[1].clone()]);
        assert_eq!(page[8192 - 32..][..27], both[1][..]);
    }

    proptest! {
        #[test]
        fn any_change_to_any_page_is_taken(
            version in prop::sample::select(WalVersion::ALL.to_vec()),
            kinds in prop::collection::vec(
                (
                    prop::sample::select(vec![rmgr::HEAP, rmgr::HEAP2, RMGR_BTREE]),
                    any::<u8>(), 0u8..3, any::<bool>(),
                    prop::collection::vec(prop_oneof![3 => 0u8..12, 1 => any::<u8>()], 0..200),
                    prop::collection::vec(prop_oneof![3 => 0u8..12, 1 => any::<u8>()], 0..40),
                ),
                1..20,
            ),
            lower in any::<u16>(), upper in any::<u16>(), special in any::<u16>(), byte in any::<u8>(),
        ) {
            let mut page = [byte; 8192];
            put(&mut page, 12, &[lower.to_le_bytes(), upper.to_le_bytes(), special.to_le_bytes()].concat());
            for (rmgr, info, role, init, data, main) in &kinds {
                apply(&Change { version, init: *init, ..change(*rmgr, *info, *role, data, main) }, 5, &mut page);
            }
        }
    }
}
