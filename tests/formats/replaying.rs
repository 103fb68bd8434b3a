//! What records do to pages, by the section Replay of deltas.md alone; and the vectors of it.

use walden::base::{Lsn, SegmentSize, SystemId, TimelineId};
use walden::delta::{BlockId, Encoder, EncoderOptions, FrameBody, NoBase, Verify};
use walden::format::wal::RelationRef;
use walden::wal::{Synth, WalVersion};

/// A change of a page.
#[derive(Debug, Clone)]
pub struct Change {
    pub since_17: bool,
    pub rmgr: u8,
    pub info: u8,
    pub xid: u32,
    /// The record's end, with its padding.
    pub end: u64,
    /// The number of the block reference, and whether it has flag 0x40.
    pub reference: u8,
    pub init: bool,
    /// The blocks of references 0 to 2.
    pub blocks: [Option<u32>; 3],
    pub data: Vec<u8>,
    pub main: Vec<u8>,
}

fn word(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
}

fn long(bytes: &[u8], at: usize) -> u32 {
    u32::from(word(bytes, at)) | u32::from(word(bytes, at + 2)) << 16
}

/// A page, by its places.
pub struct Paper(pub Vec<u8>);

impl Paper {
    fn word(&self, at: usize) -> usize {
        usize::from(word(&self.0, at))
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn set_word(&mut self, at: usize, value: usize) {
        self.set(at, &(value as u16).to_le_bytes());
    }

    pub fn lines(&self) -> usize {
        (self.word(12) - 24) / 4
    }

    fn make_empty(&mut self, special: usize) {
        self.0 = vec![0; 8192];
        for (at, value) in [(12, 24), (14, special), (16, special), (18, 0x2004)] {
            self.set_word(at, value);
        }
    }

    /// Offset, state and length.
    fn line(&self, line: usize) -> (usize, u32, usize) {
        let pointer = long(&self.0, 20 + 4 * line);
        ((pointer & 0x7FFF) as usize, pointer >> 15 & 3, (pointer >> 17) as usize)
    }

    fn set_line(&mut self, line: usize, offset: usize, state: u32, len: usize) {
        let pointer = offset as u32 | state << 15 | (len as u32) << 17;
        self.set(20 + 4 * line, &pointer.to_le_bytes());
    }

    /// The tuple of a line, and where it lies.
    fn tuple(&self, line: usize) -> (usize, Vec<u8>) {
        let (offset, state, len) = self.line(line);
        assert_eq!(state, 1, "the vectors change tuples that are there");
        (offset, self.0[offset..offset + len].to_vec())
    }

    fn add(&mut self, line: usize, tuple: &[u8], moves_others: bool) {
        let count = self.lines();
        assert!(line >= 1 && line <= count + 1, "the vectors have no other");
        if moves_others || line == count + 1 {
            self.0.copy_within(20 + 4 * line..24 + 4 * count, 24 + 4 * line);
            self.set_word(12, 24 + 4 * (count + 1));
        }
        let upper = self.word(14) - tuple.len().next_multiple_of(8);
        assert!(upper >= self.word(12), "the vectors have room");
        self.set_word(14, upper);
        self.set_line(line, upper, 1, tuple.len());
        self.set(upper, tuple);
    }

    fn take_away(&mut self, gone: &[usize]) {
        let kept: Vec<_> =
            (1..=self.lines()).filter(|line| !gone.contains(line)).map(|line| self.line(line)).collect();
        for (number, (offset, state, len)) in kept.iter().enumerate() {
            self.set_line(number + 1, *offset, *state, *len);
        }
        self.set_word(12, 24 + 4 * kept.len());
    }

    fn compact(&mut self) {
        let (older, mut upper, mut unused) = (self.0.clone(), self.word(16), false);
        for line in 1..=self.lines() {
            let (offset, state, len) = self.line(line);
            if state == 1 || state == 3 && len > 0 {
                upper -= len.next_multiple_of(8);
                self.set(upper, &older[offset..offset + len]);
                self.set_line(line, upper, state, len);
            }
            unused |= state == 0;
        }
        self.set_word(14, upper);
        self.0[10] = self.0[10] & !1 | u8::from(unused);
    }

    fn prunable(&mut self, xid: u32) {
        self.0[10] &= !4;
        if long(&self.0, 20) == 0 {
            self.set(20, &xid.to_le_bytes());
        }
    }
}

fn place(block: u32, line: u16) -> Vec<u8> {
    [&((block >> 16) as u16).to_le_bytes()[..], &(block as u16).to_le_bytes(), &line.to_le_bytes()].concat()
}

/// A heap tuple before its masks.
fn heap_tuple(xmin: u32, xmax: u32, block: u32, line: usize, rest: &[u8]) -> Vec<u8> {
    [&xmin.to_le_bytes()[..], &xmax.to_le_bytes(), &[0; 4], &place(block, line as u16), rest].concat()
}

/// Applies `change` to the page of `block`.
pub fn apply(change: &Change, block: u32, page: &mut Paper) {
    match change.rmgr {
        10 => heap(change, block, page),
        9 => heap_2(change, block, page),
        _ => tree(change, page),
    }
    page.set(0, &((change.end >> 32) as u32).to_le_bytes());
    page.set(4, &(change.end as u32).to_le_bytes());
}

fn heap(change: &Change, block: u32, page: &mut Paper) {
    let Change { main, data, xid, .. } = change;
    if change.init {
        page.make_empty(8192);
    }
    let old = usize::from(word(main, 4));
    let end = |page: &mut Paper, next: Option<Vec<u8>>, hot: bool| {
        let (at, tuple) = page.tuple(old);
        let mut mask = word(&tuple, 20) & !0xDCF0 | 0x0100;
        for (bit, set) in [(1, 0x1000), (2, 0x0080), (4, 0x0040), (8, 0x0010)] {
            mask |= if main[6] & bit != 0 { set } else { 0 };
        }
        let mut mask_2 = word(&tuple, 18) & !0x6000;
        mask_2 |= if main[6] & 0x10 != 0 { 0x2000 } else { 0 } | if hot { 0x4000 } else { 0 };
        page.set_word(at + 20, mask.into());
        page.set_word(at + 18, mask_2.into());
        page.set(at + 4, &main[..4]);
        page.set(at + 8, &[0; 4]);
        if let Some(next) = next {
            page.set(at + 12, &next);
        }
    };
    match change.info & 0x70 {
        0x00 => {
            let line = usize::from(word(main, 0));
            page.add(line, &heap_tuple(*xid, 0, block, line, data), false);
        }
        0x10 => {
            end(page, Some(place(block, old as u16)), false);
            page.prunable(*xid);
        }
        0x60 => end(page, None, false),
        operation @ (0x20 | 0x40) => {
            let line = word(main, 12);
            if change.reference == 1 || change.blocks[1].is_none() {
                end(page, Some(place(change.blocks[0].unwrap(), line)), operation == 0x40);
                page.prunable(*xid);
            }
            if change.reference == 0 {
                let (mut at, mut lens) = (0, [0, 0]);
                for (number, flag) in [0x20, 0x40].into_iter().enumerate() {
                    if main[7] & flag != 0 {
                        lens[number] = usize::from(word(data, at));
                        at += 2;
                    }
                }
                let older = if lens == [0, 0] { vec![0; 24] } else { page.tuple(old).1 };
                let (masks, rest) = data[at..].split_at(5);
                let (bitmap, rest) = rest.split_at(usize::from(masks[4]) - 23);
                let from = usize::from(older[22]);
                let (prefix, suffix) = (&older[from..from + lens[0]], &older[older.len() - lens[1]..]);
                let all = [masks, bitmap, prefix, rest, suffix].concat();
                let tuple = heap_tuple(*xid, long(main, 8), block, line.into(), &all);
                page.add(line.into(), &tuple, false);
            }
        }
        other => panic!("operation {other:#x}"),
    }
}

fn heap_2(change: &Change, block: u32, page: &mut Paper) {
    let Change { main, data, .. } = change;
    if change.init {
        page.make_empty(8192);
    }
    let numbers = |bytes: &[u8]| -> Vec<usize> { bytes.chunks(2).map(|two| word(two, 0).into()).collect() };
    let prune = |page: &mut Paper, pairs: &[usize], dead: &[usize], unused: &[usize]| {
        pairs.chunks(2).for_each(|pair| page.set_line(pair[0], pair[1], 2, 0));
        dead.iter().for_each(|line| page.set_line(*line, 0, 3, 0));
        unused.iter().for_each(|line| page.set_line(*line, 0, 0, 0));
        page.set(20, &[0; 4]);
        page.0[10] &= !2;
    };
    let truncate = |page: &mut Paper| {
        while page.lines() > 1 && page.line(page.lines()).1 == 0 {
            page.set_word(12, page.word(12) - 4);
        }
        page.0[10] |= 1;
    };
    match change.info & 0x70 {
        0x50 => {
            let mut at = 0;
            for number in 0..usize::from(word(main, 2)) {
                let line = if change.init { number + 1 } else { word(main, 4 + 2 * number).into() };
                let len = usize::from(word(data, at));
                let rest = &data[at + 2..at + 7 + len];
                page.add(line, &heap_tuple(change.xid, 0, block, line, rest), false);
                at = (at + 7 + len).next_multiple_of(2);
            }
        }
        operation if !change.since_17 => {
            let all = numbers(data);
            if operation == 0x20 {
                prune(page, &[], &[], &all);
                return truncate(page);
            }
            let (pairs, rest) = all.split_at(2 * usize::from(word(main, 4)));
            let (dead, unused) = rest.split_at(word(main, 6).into());
            prune(page, pairs, dead, unused);
            page.compact();
        }
        _ => {
            let (mut at, flags) = (0, main[1]);
            let mut part = |flag: u8, head: usize, each: usize| -> &[u8] {
                if flags & flag == 0 {
                    return &[];
                }
                let count = usize::from(word(data, at));
                let part = &data[at + head..at + head + count * each];
                at += head + count * each;
                part
            };
            let plans = part(0x10, 4, 12);
            let [pairs, dead, unused] = [part(0x20, 2, 4), part(0x40, 2, 2), part(0x80, 2, 2)].map(numbers);
            let mut lines = numbers(&data[at..]).into_iter();
            if flags & 0xE0 != 0 {
                prune(page, &pairs, &dead, &unused);
                if flags & 4 != 0 { page.compact() } else { truncate(page) }
            }
            for plan in plans.chunks(12) {
                for line in lines.by_ref().take(word(plan, 10).into()) {
                    let (at, _) = page.tuple(line);
                    page.set(at + 4, &plan[..4]);
                    page.set(at + 18, &plan[4..8]);
                }
            }
        }
    }
}

/// The tuples that `bytes` are.
fn tree_tuples(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let len = usize::from(word(bytes, 6) & 0x1FFF);
        all.push(&bytes[..len]);
        bytes = &bytes[len.next_multiple_of(8)..];
    }
    all
}

fn tree(change: &Change, page: &mut Paper) {
    let Change { main, data, .. } = change;
    let main_word = |at| usize::from(word(main, at));
    let numbers =
        |count: usize| -> Vec<usize> { data.chunks(2).take(count).map(|two| word(two, 0).into()).collect() };
    let leaf = u8::from(main.get(..4) == Some(&[0; 4]));
    let finish = |page: &mut Paper, before: &[u8], after: u32, flags: u8| {
        page.set(8176, &[before, &after.to_le_bytes(), &main[..4], &[flags, 0, 0, 0]].concat());
    };
    match (change.info & 0xF0, change.reference) {
        (0x00 | 0x10 | 0x20, 0) => page.add(main_word(0), data, true),
        (0x30 | 0x40, 1) => {
            page.make_empty(8176);
            for (number, tuple) in tree_tuples(data).iter().rev().enumerate() {
                page.add(number + 1, tuple, false);
            }
            finish(page, &change.blocks[0].unwrap().to_le_bytes(), change.blocks[2].unwrap_or(0), leaf);
        }
        (operation @ (0x30 | 0x40), 0) => {
            let mut older = Paper(page.0.clone());
            let mut given = tree_tuples(data).into_iter();
            let new = (operation == 0x30).then(|| given.next().unwrap().to_vec());
            let mut tuples = vec![given.next().unwrap().to_vec()];
            let first = if older.0[8180..8184] == [0; 4] { 1 } else { 2 };
            for line in first..main_word(4) {
                tuples.extend(new.clone().filter(|_| line == main_word(6)));
                tuples.push(older.tuple(line).1);
            }
            tuples.extend(new.filter(|_| main_word(6) == main_word(4)));
            page.make_empty(8176);
            tuples.iter().enumerate().for_each(|(number, tuple)| page.add(number + 1, tuple, false));
            let before = older.0.drain(8176..8180).collect::<Vec<u8>>();
            finish(page, &before, change.blocks[1].unwrap(), 0x80 | leaf);
        }
        (0x30 | 0x40, 2) => page.set(8176, &change.blocks[1].unwrap().to_le_bytes()),
        (0x70, 0) => {
            page.take_away(&numbers(main_word(4)));
            page.compact();
        }
        (0xC0, 0) => {
            page.take_away(&numbers(main_word(0)));
            page.compact();
        }
        _ => {}
    }
}

/// What a split moves of `page`, at the end of zeros.
pub fn moved(main: &[u8], page: &Paper) -> Vec<u8> {
    let mut near = Paper(Vec::new());
    near.make_empty(8192);
    let special = page.word(16);
    let high_key = (page.0[special + 4..special + 8] != [0; 4]).then_some(1);
    for line in high_key.into_iter().chain(usize::from(word(main, 4)).max(1)..=page.lines()) {
        near.add(near.lines() + 1, &page.tuple(line).1, false);
    }
    near.0
}

const START: Lsn = Lsn::new((1 << 32) + (9 << 20) + 8192);
/// A heap, one that is made empty, and B-tree pages: one that is split, its new neighbour, and the next one.
const HEAP: u32 = 300;
const FRESH: u32 = 301;
const LEFT: u32 = 400;
const RIGHT: u32 = 401;
const NEXT: u32 = 402;

struct Part {
    id: u8,
    flags: u8,
    block: u32,
    data: Vec<u8>,
}

fn part(id: u8, flags: u8, block: u32, data: Vec<u8>) -> Part {
    Part { id, flags: flags | if data.is_empty() { 0 } else { 0x20 }, block, data }
}

fn body(parts: &[Part], main: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    for part in parts {
        body.extend([part.id, part.flags]);
        body.extend((part.data.len() as u16).to_le_bytes());
        [1663u32, 5, 16384, part.block].iter().for_each(|number| body.extend(number.to_le_bytes()));
    }
    body.extend([255, main.len() as u8]);
    parts.iter().for_each(|part| body.extend(&part.data));
    body.extend(main);
    body
}

fn words(numbers: &[u16]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// Masks, header length and so many bytes of a row.
fn row(seed: u32, len: usize) -> Vec<u8> {
    let text = blake3::hash(&seed.to_le_bytes()).to_hex().repeat(4);
    [&[3, 0x60, 0xF2, 0xDC, 24, 0][..], &text.as_bytes()[..len]].concat()
}

fn tree_tuple(seed: u16) -> Vec<u8> {
    let key = blake3::hash(&seed.to_le_bytes());
    [&[0, 0, seed as u8, 0, 5, 0, 24, 0][..], &key.as_bytes()[..16]].concat()
}

fn tree_page(seeds: std::ops::Range<u16>, next: u32) -> Vec<u8> {
    let mut page = Paper(Vec::new());
    page.make_empty(8176);
    for (number, seed) in seeds.enumerate() {
        page.add(number + 1, &tree_tuple(seed), false);
    }
    page.set(8180, &next.to_le_bytes());
    page.0
}

/// Frames in order: images; records that change their pages, one of every operation that is replayed, a split among them; the images again.
pub fn frames(version: WalVersion) -> Vec<Vec<u8>> {
    let size = SegmentSize::new(1 << 20).unwrap();
    let options =
        EncoderOptions { segment_size: size, verify: Verify::Decode, page_key: [7; 32], cache_pages_max: 16 };
    let mut encoder = Encoder::new(options, START);
    let mut synth = Synth::new(version, size, SystemId(77), TimelineId(3), START);
    let image = |synth: &mut Synth, block: u32, page: &[u8]| {
        synth.record(0, 0xB0, 0, &super::deltas::image_body(block, page, None, 2, b""));
    };
    let mut frames = Vec::new();
    let mut frame_of = |wal: Vec<u8>, encoder: &mut Encoder| {
        encoder.feed(&wal);
        match encoder.flush_frame(&mut NoBase).unwrap().body {
            FrameBody::Delta(frame, _) => frames.push(frame),
            FrameBody::Plain(_, surprise) => panic!("plain: {surprise:?}"),
        }
    };

    let mut heap = Paper(Vec::new());
    heap.make_empty(8192);
    for line in 1..=10 {
        heap.add(line, &heap_tuple(600, 0, HEAP, line, &row(line as u32, 60)), false);
    }
    image(&mut synth, HEAP, &heap.0);
    image(&mut synth, LEFT, &tree_page(100..140, NEXT));
    image(&mut synth, NEXT, &tree_page(200..210, 0));
    frame_of(synth.take(), &mut encoder);

    let xmax = 900u32.to_le_bytes();
    let mut change = |rmgr: u8, info: u8, parts: &[Part], main: &[u8]| {
        synth.record(rmgr, info, 900, &body(parts, main));
    };
    let fresh = |data: Vec<u8>| part(0, 0, FRESH, data);
    let on_heap = |data: Vec<u8>| part(0, 0, HEAP, data);
    change(10, 0x00, &[on_heap(row(50, 30))], &[11, 0, 0]);
    change(10, 0x10, &[on_heap(vec![])], &[&xmax[..], &[2, 0, 0x10, 0]].concat());
    change(10, 0x60, &[on_heap(vec![])], &[&xmax[..], &[3, 0, 2 | 4, 0]].concat());
    change(10, 0x60, &[on_heap(vec![])], &[&xmax[..], &[7, 0, 1 | 8, 0]].concat());
    let hot = [&words(&[10, 8])[..], &row(51, 20)].concat();
    change(10, 0x40, &[on_heap(hot)], &[&xmax[..], &[4, 0, 0, 0x60], &[0; 4], &[12, 0]].concat());
    change(10, 0x80, &[part(0, 0x40, FRESH, row(52, 41))], &[1, 0, 0]);
    let moved = [fresh(row(53, 33)), part(1, 0, HEAP, vec![])];
    change(10, 0x20, &moved, &[&xmax[..], &[5, 0, 0x10, 0], &[9, 0, 0, 0], &[2, 0]].concat());
    let many = |seeds: [u32; 2]| -> Vec<u8> {
        let rows = seeds.map(|seed| row(seed, 20 + seed as usize % 7));
        let mut data = Vec::new();
        for row in rows {
            data.resize(data.len().next_multiple_of(2), 0);
            data.extend((row.len() as u16 - 5).to_le_bytes());
            data.extend(row);
        }
        data
    };
    change(9, 0x50, &[on_heap(many([60, 61]))], &[&[0, 0][..], &words(&[2, 13, 14])].concat());
    change(9, 0x50, &[fresh(many([62, 63]))], &[&[0, 0][..], &words(&[2, 3, 4])].concat());
    change(9, 0xD0, &[part(0, 0x40, FRESH + 9, many([64, 65]))], &[0, 0, 2, 0]);
    if version < WalVersion::V17 {
        change(9, 0x10, &[on_heap(words(&[4, 12, 2, 6, 8]))], &[&xmax[..], &words(&[1, 1])].concat());
        change(9, 0x20, &[fresh(words(&[1, 4]))], &words(&[2]));
    } else {
        let plan = [&xmax[..], &[0x0B, 0x80, 0, 3], &[0, 0], &words(&[2])].concat();
        let data = [&[1, 0, 0, 0][..], &plan, &words(&[1, 4, 12, 1, 2, 2, 6, 8, 9, 10])].concat();
        change(9, 0x10, &[on_heap(data)], &[0, 0x10 | 0x20 | 0x40 | 0x80 | 4]);
        change(9, 0x20, &[fresh(words(&[2, 1, 4]))], &[0, 0x80]);
        change(9, 0x30, &[fresh([&[1, 0, 0, 0][..], &plan[..10], &words(&[1, 2])].concat())], &[0, 0x10]);
    }
    let on_left = |data: Vec<u8>| part(0, 0, LEFT, data);
    change(11, 0x00, &[on_left(tree_tuple(300))], &[5, 0]);
    change(11, 0x70, &[on_left(words(&[7, 9]))], &[&xmax[..], &words(&[2])].concat());
    change(11, 0xC0, &[on_left(words(&[3]))], &words(&[1]));
    frame_of(synth.take(), &mut encoder);

    // What is split is known by now, but for a tuple that comes in the frame of the split.
    let mut change = |rmgr: u8, info: u8, parts: &[Part], main: &[u8]| {
        synth.record(rmgr, info, 901, &body(parts, main));
    };
    change(11, 0x00, &[on_left(tree_tuple(301))], &[30, 0]);
    let [new, high_key] = [302, 303].map(tree_tuple);
    let mut moved: Vec<Vec<u8>> = (122..140).map(tree_tuple).collect();
    moved.insert(9, tree_tuple(301));
    moved.insert(0, tree_tuple(100));
    moved.reverse();
    let split =
        [on_left([new, high_key].concat()), part(1, 0x40, RIGHT, moved.concat()), part(2, 0, NEXT, vec![])];
    change(11, 0x30, &split, &[&[0; 4][..], &words(&[21, 12, 0])].concat());
    frame_of(synth.take(), &mut encoder);

    for block in [HEAP, FRESH, FRESH + 9, LEFT, RIGHT, NEXT] {
        let relation = RelationRef { tablespace: 1663, database: 5, relation: 16384 };
        let mut page = [0; 8192];
        let cached = encoder.cache().get(&BlockId { relation, fork: 0, block }).unwrap();
        let mut page = *cached.page(&mut page).unwrap();
        page[5000] ^= 1;
        image(&mut synth, block, &page);
    }
    frame_of(synth.take(), &mut encoder);
    frames
}
