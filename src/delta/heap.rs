//! What heap records do to a page (`access/heapam_xlog.h`), near enough. Spec: formats/deltas.md.

#![deny(clippy::indexing_slicing)]

use super::block::Page;
use super::history::{Change, NO_BLOCK};
use super::slots::{Line, Slots, page_flag, put, u16_at, u32_at};
use crate::wal::WalVersion;

/// Bytes of a tuple's header before its bitmap.
const TUPLE_HEADER_BYTES: usize = 23;
/// Bytes of `xl_heap_header`: two masks and the length of the header.
const SHORT_HEADER_BYTES: usize = 5;

/// Tuples of no more bytes are copied without taking memory.
const SHORT_TUPLE_BYTES: usize = 256;

/// Operations of HEAP.
mod op {
    pub const MASK: u8 = 0x70;
    pub const INSERT: u8 = 0x00;
    pub const DELETE: u8 = 0x10;
    pub const UPDATE: u8 = 0x20;
    pub const HOT_UPDATE: u8 = 0x40;
    pub const LOCK: u8 = 0x60;
}

/// Operations of HEAP2; 0x10 to 0x30 are other ones before 17.
mod op2 {
    pub const PRUNE: u8 = 0x10;
    pub const VACUUM: u8 = 0x20;
    pub const PRUNE_LAST: u8 = 0x30;
    pub const MULTI_INSERT: u8 = 0x50;
}

/// Places in a tuple's header.
mod at {
    pub const XMIN: usize = 0;
    pub const XMAX: usize = 4;
    pub const CID: usize = 8;
    pub const CTID: usize = 12;
    pub const INFOMASK2: usize = 18;
    pub const INFOMASK: usize = 20;
    pub const HOFF: usize = 22;
}

/// `t_infomask` and `t_infomask2`.
mod mask {
    pub const XMAX_BITS: u16 = 0xDCD0;
    pub const COMBO_CID: u16 = 0x0020;
    pub const KEYSHR_LOCK: u16 = 0x0010;
    pub const EXCL_LOCK: u16 = 0x0040;
    pub const LOCK_ONLY: u16 = 0x0080;
    pub const XMIN_COMMITTED: u16 = 0x0100;
    pub const XMAX_IS_MULTI: u16 = 0x1000;
    pub const KEYS_UPDATED_2: u16 = 0x2000;
    pub const HOT_UPDATED_2: u16 = 0x4000;
}

/// Flags of `xl_heap_update`.
const PREFIX_FROM_OLD: u8 = 0x20;
const SUFFIX_FROM_OLD: u8 = 0x40;
/// Flag of `xl_heap_prune` since 17: tuples are moved together.
const CLEANUP_LOCK: u8 = 4;
/// Bytes of `xlhp_freeze_plan`: xmax, both masks, flags, padding, how many tuples.
const FREEZE_PLAN_BYTES: usize = 12;

/// Applies a record of HEAP.
pub fn apply(change: &Change<'_>, block: u32, page: &mut Page) {
    let mut slots = Slots::new(page);
    if change.init {
        slots.init(0);
    }
    let main = change.main;
    let xmax = u32_at(main, 0);
    match (change.info & op::MASK, change.role) {
        (op::INSERT, 0) => {
            if let Some((header, data)) = change.data.split_first_chunk() {
                let number = usize::from(u16_at(main, 0));
                insert(&mut slots, number, block, [change.xid, 0], header, &[data]);
            }
        }
        (op::DELETE, 0) => {
            let number = u16_at(main, 4);
            let bits = main.get(6).copied().unwrap_or(0);
            end(&mut slots, usize::from(number), xmax, bits, Some((block, number)), false);
            prunable(&mut slots, change.xid);
        }
        (op::LOCK, 0) => {
            let number = u16_at(main, 4);
            let bits = main.get(6).copied().unwrap_or(0);
            end(&mut slots, usize::from(number), xmax, bits, None, false);
        }
        (operation @ (op::UPDATE | op::HOT_UPDATE), role @ 0..=1) => {
            let (old, new) = (usize::from(u16_at(main, 4)), u16_at(main, 12));
            let bits = main.get(6).copied().unwrap_or(0);
            if role == 1 || change.blocks[1] == NO_BLOCK {
                end(&mut slots, old, xmax, bits, Some((change.blocks[0], new)), operation == op::HOT_UPDATE);
                prunable(&mut slots, change.xid);
            }
            if role == 0 {
                update(&mut slots, change, block, old, new);
            }
        }
        _ => {}
    }
}

/// Applies a record of HEAP2.
pub fn apply_second(change: &Change<'_>, block: u32, page: &mut Page) {
    let mut slots = Slots::new(page);
    if change.init {
        slots.init(0);
    }
    let since_17 = change.version >= WalVersion::V17;
    match change.info & op::MASK {
        op2::MULTI_INSERT => insert_many(&mut slots, change, block),
        op2::PRUNE..=op2::PRUNE_LAST if since_17 => prune_and_freeze(&mut slots, change),
        op2::PRUNE => {
            let (redirected, dead) =
                (usize::from(u16_at(change.main, 4)), usize::from(u16_at(change.main, 6)));
            let (redirected, rest) = halves(change.data, 4 * redirected);
            let (dead, unused) = halves(rest, 2 * dead);
            prune(&mut slots, redirected, dead, unused);
            slots.compact();
        }
        op2::VACUUM => {
            prune(&mut slots, &[], &[], change.data);
            slots.truncate();
            slots.flags(0, page_flag::HAS_FREE_LINES);
        }
        _ => {}
    }
}

/// Adds a tuple, with `xids` as xmin and xmax, whose data come in `parts`.
fn insert(
    slots: &mut Slots<'_>,
    number: usize,
    block: u32,
    xids: [u32; 2],
    header: &[u8; SHORT_HEADER_BYTES],
    parts: &[&[u8]],
) {
    let data_len: usize = parts.iter().map(|part| part.len()).sum();
    let Some(tuple) = slots.add(number, TUPLE_HEADER_BYTES + data_len, false) else { return };
    put(tuple, at::XMIN, &xids[0].to_le_bytes());
    put(tuple, at::XMAX, &xids[1].to_le_bytes());
    put(tuple, at::CID, &[0; 4]);
    put_tid(tuple, block, number as u16);
    put(tuple, at::INFOMASK2, header);
    let mut place = TUPLE_HEADER_BYTES;
    for part in parts {
        put(tuple, place, part);
        place += part.len();
    }
}

fn put_tid(tuple: &mut [u8], block: u32, number: u16) {
    put(tuple, at::CTID, &((block >> 16) as u16).to_le_bytes());
    put(tuple, at::CTID + 2, &(block as u16).to_le_bytes());
    put(tuple, at::CTID + 4, &number.to_le_bytes());
}

/// Adds the tuples of a multi-insert: each begins at an even place, with its length.
fn insert_many(slots: &mut Slots<'_>, change: &Change<'_>, block: u32) {
    let count = usize::from(u16_at(change.main, 2));
    let mut rest = change.data;
    for index in 0..count {
        let number = if change.init { index + 1 } else { usize::from(u16_at(change.main, 4 + 2 * index)) };
        let len = usize::from(u16_at(rest, 0));
        let Some((header, data)) = rest.get(2..).and_then(|rest| rest.split_first_chunk()) else { return };
        let Some(data) = data.get(..len) else { return };
        insert(slots, number, block, [change.xid, 0], header, &[data]);
        rest = rest.get((2 + SHORT_HEADER_BYTES + len).next_multiple_of(2)..).unwrap_or(&[]);
    }
}

/// Adds the new tuple of an update, of which parts may be those of the old one at the same page.
fn update(slots: &mut Slots<'_>, change: &Change<'_>, block: u32, old: usize, new: u16) {
    let flags = change.main.get(7).copied().unwrap_or(0);
    let new_xmax = u32_at(change.main, 8);
    let mut data = change.data;
    let mut len_of = |flag: u8| {
        if flags & flag == 0 {
            return 0;
        }
        let (len, rest) = halves(data, 2);
        data = rest;
        usize::from(u16_at(len, 0))
    };
    let (prefix_len, suffix_len) = (len_of(PREFIX_FROM_OLD), len_of(SUFFIX_FROM_OLD));
    let Some((header, data)) = data.split_first_chunk::<SHORT_HEADER_BYTES>() else { return };
    let header_len = usize::from(header[4]);
    let (bitmap, data) = halves(data, header_len.saturating_sub(TUPLE_HEADER_BYTES));
    // Adding may write over the old tuple where a page makes no sense. Most are short.
    let (mut short, mut long) = ([0; SHORT_TUPLE_BYTES], Vec::new());
    let older: &[u8] = match slots.tuple(old).filter(|_| prefix_len + suffix_len > 0) {
        Some(tuple) => match short.get_mut(..tuple.len()) {
            Some(room) => {
                room.copy_from_slice(tuple);
                room
            }
            None => {
                long.extend_from_slice(tuple);
                &long
            }
        },
        None => &[],
    };
    let older_header = usize::from(older.get(at::HOFF).copied().unwrap_or(0));
    let prefix = older.get(older_header..older_header + prefix_len).unwrap_or(&[]);
    let suffix = older.len().checked_sub(suffix_len).and_then(|from| older.get(from..)).unwrap_or(&[]);
    insert(slots, usize::from(new), block, [change.xid, new_xmax], header, &[bitmap, prefix, data, suffix]);
}

/// Ends or locks a tuple: sets xmax and what goes with it; where it was updated or deleted, what comes after it.
fn end(slots: &mut Slots<'_>, number: usize, xmax: u32, bits: u8, to: Option<(u32, u16)>, hot: bool) {
    let Some(tuple) = slots.tuple(number) else { return };
    let (mut mask, mut mask_2) = (u16_at(tuple, at::INFOMASK), u16_at(tuple, at::INFOMASK2));
    mask &= !(mask::XMAX_BITS | mask::COMBO_CID);
    mask_2 &= !(mask::KEYS_UPDATED_2 | mask::HOT_UPDATED_2);
    for (bit, set) in
        [(1, mask::XMAX_IS_MULTI), (2, mask::LOCK_ONLY), (4, mask::EXCL_LOCK), (8, mask::KEYSHR_LOCK)]
    {
        if bits & bit != 0 {
            mask |= set;
        }
    }
    if bits & 0x10 != 0 {
        mask_2 |= mask::KEYS_UPDATED_2;
    }
    if hot {
        mask_2 |= mask::HOT_UPDATED_2;
    }
    // Whoever ends a tuple saw that it is there.
    mask |= mask::XMIN_COMMITTED;
    put(tuple, at::XMAX, &xmax.to_le_bytes());
    put(tuple, at::CID, &[0; 4]);
    put(tuple, at::INFOMASK, &mask.to_le_bytes());
    put(tuple, at::INFOMASK2, &mask_2.to_le_bytes());
    if let Some((block, number)) = to {
        put_tid(tuple, block, number);
    }
}

fn prunable(slots: &mut Slots<'_>, xid: u32) {
    slots.flags(page_flag::ALL_VISIBLE, 0);
    if slots.prune_xid() == 0 {
        slots.set_prune_xid(xid);
    }
}

/// Both parts of `bytes`, the first of `len` bytes if there are so many.
fn halves(bytes: &[u8], len: usize) -> (&[u8], &[u8]) {
    bytes.split_at(len.min(bytes.len()))
}

fn numbers(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.chunks_exact(2).map(|number| u16_at(number, 0))
}

/// Makes line pointers redirect, dead and unused.
fn prune(slots: &mut Slots<'_>, redirected: &[u8], dead: &[u8], unused: &[u8]) {
    for pair in redirected.chunks_exact(4) {
        slots.set_line(usize::from(u16_at(pair, 0)), Line::Redirect(u16_at(pair, 2)));
    }
    numbers(dead).for_each(|number| slots.set_line(usize::from(number), Line::Dead));
    numbers(unused).for_each(|number| slots.set_line(usize::from(number), Line::Unused));
    slots.set_prune_xid(0);
    slots.flags(page_flag::FULL, 0);
}

/// Pruning and freezing since 17: parts of the block's data are there as flags say.
fn prune_and_freeze(slots: &mut Slots<'_>, change: &Change<'_>) {
    let flags = change.main.get(1).copied().unwrap_or(0);
    let mut rest = change.data;
    let mut plans: &[u8] = &[];
    if flags & 0x10 != 0 {
        let count = usize::from(u16_at(rest, 0));
        (plans, rest) = halves(rest.get(4..).unwrap_or(&[]), FREEZE_PLAN_BYTES * count);
    }
    let mut items = |flag: u8, bytes: usize| {
        if flags & flag == 0 {
            return &[][..];
        }
        let (items, after) = halves(rest.get(2..).unwrap_or(&[]), bytes * usize::from(u16_at(rest, 0)));
        rest = after;
        items
    };
    let (redirected, dead, unused) = (items(0x20, 4), items(0x40, 2), items(0x80, 2));
    if flags & 0xE0 != 0 {
        prune(slots, redirected, dead, unused);
        if flags & CLEANUP_LOCK != 0 {
            slots.compact();
        } else {
            slots.truncate();
            slots.flags(0, page_flag::HAS_FREE_LINES);
        }
    }
    let mut numbers = numbers(rest);
    for plan in plans.chunks_exact(FREEZE_PLAN_BYTES) {
        for number in numbers.by_ref().take(usize::from(u16_at(plan, 10))) {
            let Some(tuple) = slots.tuple(usize::from(number)) else { continue };
            put(tuple, at::XMAX, plan.get(..4).unwrap_or(&[]));
            put(tuple, at::INFOMASK2, plan.get(4..8).unwrap_or(&[]));
        }
    }
}
