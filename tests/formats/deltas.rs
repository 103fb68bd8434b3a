//! The vectors of deltas.md: delta frames, made into WAL again by the tables and the rules of that page alone, and frames to refuse.

use super::make::Made;
use super::packing;
use super::replaying::{self, Change, Paper};
use super::tables::{Pages, Value, hex};
use super::vectors::Refusal;
use std::collections::{BTreeMap, BTreeSet};
use walden::base::{Lsn, SegmentSize, SystemId, TimelineId, Timestamp, crc32c};
use walden::delta::{
    BlockId, DeltaError, Encoder, EncoderOptions, FrameBody, FrameDecoder, ImageCache, Page, PageSource,
    Verify, Vouched,
};
use walden::format::Writer;
use walden::format::delta::{DeltaHead, SectionCodec, SectionEntry, SectionKind};
use walden::format::record::Field;
use walden::wal::{Synth, WalVersion};

const KEY: [u8; 32] = [7; 32];
const START: Lsn = Lsn::new((1 << 32) + (7 << 20) + 8192);

/// The base of the vectors: relation 1663/5/16384, blocks 0 to 99, as deltas.md says.
fn page(block: usize) -> Vec<u8> {
    if block != TREE {
        return (0..8192).map(|at| ((at * at + 31 * block) >> 4) as u8).collect();
    }
    let mut page = vec![0; 8192];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    let upper = |line: usize| 8176 - 24 * line;
    for (at, value) in [(12, 24 + 4 * TREE_LINES), (14, upper(TREE_LINES)), (16, 8176), (18, 0x2004)] {
        put(at, &(value as u16).to_le_bytes());
    }
    for line in 1..=TREE_LINES {
        put(20 + 4 * line, &(upper(line) as u32 | 1 << 15 | 24 << 17).to_le_bytes());
        put(upper(line), &tree_tuple(line));
    }
    put(8180, &[1]);
    page
}

/// The block of the base that is a B-tree page, and its lines.
const TREE: usize = 50;
const TREE_LINES: usize = 250;

fn tree_tuple(line: usize) -> [u8; 24] {
    std::array::from_fn(|at| match at {
        6 => 24,
        7 => 0,
        at => (line * line + 7 * at) as u8,
    })
}

/// The base, with more blocks than there are, or another one.
struct Base {
    blocks: u32,
    other: Option<u32>,
}

const BASE: Base = Base { blocks: 100, other: None };

impl PageSource for Base {
    fn base_page(&mut self, block: &BlockId, page: &mut Page) -> Option<Vouched> {
        let there = block.relation.relation == 16384 && block.fork == 0 && block.block < self.blocks;
        let add = u8::from(self.other == Some(block.block));
        for (to, byte) in page.iter_mut().zip(self::page(block.block as usize)) {
            *to = byte.wrapping_add(add);
        }
        there.then_some(Vouched::BySource)
    }
}

/// A record with an image of `block`; `info` as 15 and later have it, or with 14's bits for an image that is applied.
pub fn image_body(block: u32, image: &[u8], hole: Option<(u16, u16)>, info: u8, data: &[u8]) -> Vec<u8> {
    let mut body = vec![0, if data.is_empty() { 0x10 } else { 0x30 }];
    body.extend((data.len() as u16).to_le_bytes());
    body.extend((image.len() as u16).to_le_bytes());
    body.extend(hole.map_or(0, |hole| hole.0).to_le_bytes());
    body.push(info | u8::from(hole.is_some()));
    if let (true, Some(hole)) = (info & 28 != 0, hole) {
        body.extend(hole.1.to_le_bytes());
    }
    [1663u32, 5, 16384, block].iter().for_each(|number| body.extend(number.to_le_bytes()));
    body.extend(image);
    body.extend(data);
    body
}

fn insert_body(block: u32, tuple: &[u8]) -> Vec<u8> {
    let mut body = vec![0, 0x20];
    body.extend((tuple.len() as u16).to_le_bytes());
    [1663u32, 5, 16384, block].iter().for_each(|number| body.extend(number.to_le_bytes()));
    body.extend([255, 3]);
    body.extend(tuple);
    body.extend([block as u8, 0, 0]);
    body
}

/// WAL with everything that a delta frame tells apart.
fn everything() -> Vec<u8> {
    let size = SegmentSize::new(1 << 20).unwrap();
    let mut synth = Synth::new(WalVersion::V17, size, SystemId(77), TimelineId(3), START);
    let noise = |seed: u32| blake3::hash(&seed.to_le_bytes()).to_hex().to_string();
    synth.noise(9000);
    for turn in 0..9u32 {
        let tuple =
            [&[1, 2, 3][..], &(40 + turn).to_le_bytes(), noise(turn).as_bytes(), &[turn as u8; 2]].concat();
        synth.record(10, 0, 700 + turn / 2, &insert_body(60 + turn, &tuple));
        synth.commit(700 + turn / 2, Timestamp::from_micros(1_000_000 + i64::from(turn * turn) * 77_777));
    }
    // Of the base, a tuple changed.
    let mut changed = page(3);
    changed[100..130].fill(9);
    synth.record(0, 0xB0, 0, &image_body(3, &changed, None, 2, b""));
    // The same block again, with a hole.
    let holed = [&changed[..200], &changed[4200..]].concat();
    synth.record(0, 0xB0, 0, &image_body(3, &holed, Some((200, 4000)), 2, b"data"));
    // Tuples moved by 16 bytes.
    let moved = [&page(7)[..1000], &[5; 16], &page(7)[1000..8176]].concat();
    synth.record(0, 0xB0, 0, &image_body(7, &moved, None, 2, b""));
    // Not in the base.
    let alone: Vec<u8> = (0..8192).map(|at| (at / 300) as u8).collect();
    synth.record(0, 0xB0, 0, &image_body(500, &alone, None, 2, b""));
    // Compressed by PostgreSQL.
    synth.record(0, 0xB0, 0, &image_body(8, &[0xAB; 300], Some((300, 2000)), 2 | 4, b""));
    // Origin, top-level transaction, long main data.
    let mut body = vec![253, 9, 0, 252];
    body.extend(699u32.to_le_bytes());
    body.push(254);
    body.extend(300u32.to_le_bytes());
    body.extend([0x33; 300]);
    synth.record(10, 0x20, 701, &body);
    synth.noise(5000);
    let mut wal = synth.take();
    // A page header that says otherwise.
    wal[8192 * 2 + 2] ^= 4;
    wal
}

/// WAL with images compressed in every way.
fn packed() -> Vec<u8> {
    const APPLY: u8 = 2;
    let size = SegmentSize::new(1 << 20).unwrap();
    let mut synth = Synth::new(WalVersion::V17, size, SystemId(77), TimelineId(3), START);
    let mut image = |block: u32, image: &[u8], hole: Option<(u16, u16)>, method: u8| {
        synth.record(0, 0xB0, 0, &image_body(block, image, hole, APPLY | method, b""));
    };
    // Of the base, by pglz; of that, with a hole, by LZ4; of that by pglz.
    let mut changed = page(3);
    changed[100..130].fill(9);
    image(3, &packing::pglz(&changed, false), None, 4);
    let holed = [&changed[..200], &changed[4200..]].concat();
    image(3, &packing::lz4(&holed), Some((200, 4000)), 8);
    image(3, &packing::pglz(&holed, false), Some((200, 4000)), 4);
    // Of bytes whose sign matters.
    let signs = [&[0x9A; 9][..], &[8; 24], &[0xA8], &[8; 3]].concat();
    assert_ne!(packing::pglz(&signs, false), packing::pglz(&signs, true));
    image(7, &packing::pglz(&signs, true), Some((30, 8192 - 37)), 4);
    // Not in the base: places far apart, for lengths and distances of every size.
    let words: Vec<u8> = (0..1024u32)
        .flat_map(|n| blake3::hash(&(n * n % 37).to_le_bytes()).as_bytes()[..8].to_vec())
        .collect();
    image(500, &packing::lz4(&words), None, 8);
    image(501, &packing::pglz(&words, false), None, 4);
    let runs: Vec<u8> = (0..8192).map(|at| (at / 1500) as u8).collect();
    image(502, &packing::lz4(&runs), None, 8);
    image(503, &packing::pglz(&runs, false), None, 4);
    // By zstd; and by something that the server is not: all literals.
    image(8, &[0xAB; 300], None, 16);
    let literals: Vec<u8> = [7; 90].chunks(8).flat_map(|bytes| [&[0], bytes].concat()).collect();
    image(9, &literals, Some((90, 8102)), 4);
    synth.take()
}

/// An image by pglz with the bits of 14.
fn packed_by_14() -> Vec<u8> {
    let size = SegmentSize::new(1 << 20).unwrap();
    let mut synth = Synth::new(WalVersion::V14, size, SystemId(77), TimelineId(3), START);
    let holed = [&page(4)[..200], &page(4)[700..]].concat();
    synth.record(0, 0xB0, 0, &image_body(4, &packing::pglz(&holed, false), Some((200, 500)), 2 | 4, b""));
    synth.take()
}

/// A frame with more compressed images than may be packed.
fn too_much() -> Vec<u8> {
    let size = SegmentSize::new(1 << 20).unwrap();
    let mut synth = Synth::new(WalVersion::V17, size, SystemId(77), TimelineId(3), START);
    let zeros = packing::lz4(&[0; 8192]);
    (0..1025).for_each(|block| {
        synth.record(0, 0xB0, 0, &image_body(1000 + block, &zeros, None, 2 | 8, b""));
    });
    encode(START, &synth.take(), &mut { BASE })
}

fn options() -> EncoderOptions {
    let segment_size = SegmentSize::new(1 << 20).unwrap();
    EncoderOptions { segment_size, verify: Verify::Decode, page_key: KEY, cache_pages_max: 16 }
}

fn encode(start: Lsn, wal: &[u8], base: &mut dyn PageSource) -> Vec<u8> {
    let mut encoder = Encoder::new(options(), start);
    encoder.feed(wal);
    match encoder.flush_frame(base).unwrap().body {
        FrameBody::Delta(frame, _) => frame,
        FrameBody::Plain(_, surprise) => panic!("a plain frame: {surprise:?}"),
    }
}

/// From inside of a record to inside of another.
fn good() -> Vec<u8> {
    let wal = everything();
    encode(START.saturating_add(100), &wal[100..wal.len() - 1001], &mut { BASE })
}

/// A split of `block` before its line `first_right`, which moves `tuples`.
fn split_body(block: u32, first_right: u16, tuples: &[u8]) -> Vec<u8> {
    let high_key = tree_tuple(7);
    let mut body = Vec::new();
    for (id, flags, data) in [(0, 0x20u8, &high_key[..]), (1, 0x60 | 0x80, tuples)] {
        body.extend([id, flags]);
        body.extend((data.len() as u16).to_le_bytes());
        if id == 0 {
            [1663u32, 5, 16384].iter().for_each(|number| body.extend(number.to_le_bytes()));
        }
        body.extend((block + 200 * u32::from(id)).to_le_bytes());
    }
    body.extend([255, 10]);
    body.extend(high_key);
    body.extend(tuples);
    body.extend([0; 4]);
    [first_right, first_right + 3, 0].iter().for_each(|number| body.extend(number.to_le_bytes()));
    body
}

/// Splits: of a page of the base, with a new tuple among those that move; of one that is nowhere, beside an image.
fn splits() -> Vec<u8> {
    let size = SegmentSize::new(1 << 20).unwrap();
    let mut synth = Synth::new(WalVersion::V17, size, SystemId(77), TimelineId(3), START);
    let mut tuples: Vec<[u8; 24]> = (120..=TREE_LINES).map(tree_tuple).collect();
    tuples.insert(3, tree_tuple(1000));
    tuples.insert(0, tree_tuple(1));
    tuples.reverse();
    synth.record(0, 0xB0, 0, &image_body(3, &page(3), None, 2, b""));
    synth.record(11, 0x40, 700, &split_body(TREE as u32, 120, tuples.as_flattened()));
    synth.record(11, 0x30, 700, &split_body(150, 2, tuples[..40].as_flattened()));
    // Not a split, though it looks like one.
    synth.record(11, 0x50, 700, &split_body(TREE as u32, 120, tuples[..40].as_flattened()));
    synth.take()
}

/// A range that ends among the zeros after a switch.
fn switched() -> Vec<u8> {
    let size = SegmentSize::new(1 << 20).unwrap();
    let start = Lsn::new((1 << 32) + (8 << 20) - 4 * 8192);
    let mut synth = Synth::new(WalVersion::V14, size, SystemId(77), TimelineId(3), start);
    synth.commit(9, Timestamp::from_micros(5));
    synth.switch();
    let wal = synth.take();
    encode(start, &wal[..20_000], &mut { BASE })
}

fn made(file: &str, bytes: Vec<u8>, refused: Option<(&'static str, &'static str)>, reason: &str) -> Made {
    Made {
        file: file.to_owned(),
        form: "delta",
        page: "deltas.md",
        name: "frame".to_owned(),
        kind: None,
        meta: None,
        frames: Vec::new(),
        refused,
        reason: reason.to_owned(),
        bytes,
    }
}

/// Frames, each behind its length, whose images need what records did to earlier ones.
fn replays(version: WalVersion, file: &str) -> Made {
    let bytes = joined(&replaying::frames(version));
    let reason = "records of every operation that is replayed, and images of what they changed";
    Made { form: "deltas", name: "frames".to_owned(), ..made(file, bytes, None, reason) }
}

/// A frame with another head; its sections as they are.
fn with_head(frame: &[u8], change: impl FnOnce(&mut DeltaHead)) -> Vec<u8> {
    let mut from = walden::format::Reader::new("frame", frame);
    let mut head = DeltaHead::get(&mut from).unwrap();
    let rest = from.take(from.remaining()).unwrap();
    change(&mut head);
    let mut to = Writer::new();
    head.put(&mut to);
    to.put(rest);
    to.into_bytes()
}

/// A frame with another section, stored raw.
fn with_section(frame: &[u8], kind: SectionKind, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut from = walden::format::Reader::new("frame", frame);
    let mut head = DeltaHead::get(&mut from).unwrap();
    let mut body = Vec::new();
    let (mut change, mut sections) = (Some(change), head.sections.clone());
    for (number, entry) in sections.iter_mut().enumerate() {
        let stored = from.take(entry.stored_len as usize).unwrap();
        if number != kind as usize {
            body.extend(stored);
            continue;
        }
        let mut plain = plain_of(format!("{:?}", entry.codec).as_str(), stored);
        change.take().unwrap()(&mut plain);
        entry.codec = SectionCodec::Raw;
        (entry.plain_len, entry.stored_len) = (plain.len() as u32, plain.len() as u32);
        body.extend(plain);
    }
    head.sections = sections;
    let mut to = Writer::new();
    head.put(&mut to);
    to.put(&body);
    to.into_bytes()
}

fn plain_of(codec: &str, stored: &[u8]) -> Vec<u8> {
    match codec {
        "Raw" => stored.to_vec(),
        "Zstd" => zstd::decode_all(stored).unwrap(),
        other => panic!("{other} without a window"),
    }
}

/// A section that repeats what is in the window that `kept` has for a frame at `start`.
fn plain_after(kept: &Kept, start: u64, stored: &[u8]) -> Vec<u8> {
    let of = |at: usize| u32::from_le_bytes(stored[at..at + 4].try_into().unwrap());
    let window = kept.window(start - u64::from(of(4)));
    assert_eq!(of(0), crc32c::crc32c(&window));
    let mut plain = Vec::new();
    let mut from = zstd::stream::read::Decoder::with_dictionary(&stored[8..], &window).unwrap();
    std::io::Read::read_to_end(&mut from, &mut plain).unwrap();
    plain
}

/// WAL from `start` on with the identifiers of `numbers`.
fn identifiers(start: Lsn, numbers: std::ops::Range<u32>) -> Vec<u8> {
    let mut synth = Synth::new(WalVersion::V17, options().segment_size, SystemId(77), TimelineId(3), start);
    for number in numbers {
        let identifier = blake3::hash(&number.to_le_bytes()).to_hex();
        synth.record(10, 0, 700, &insert_body(60, identifier.as_bytes()));
    }
    synth.take()
}

/// Frames that repeat identifiers of those before; the last two are of another object.
fn windows() -> Vec<Vec<u8>> {
    let mut encoder = Encoder::new(options(), START);
    let (mut frames, mut at) = (Vec::new(), START);
    for (number, identifiers) in [0..8, 4..12, 0..12, 0..12, 0..12].into_iter().enumerate() {
        if number == 3 {
            at = at.align_down(8192).saturating_add(50 * 8192);
            encoder.seek(at);
        }
        let wal = self::identifiers(at, identifiers);
        encoder.feed(&wal);
        at = at.saturating_add(wal.len() as u64);
        match encoder.flush_frame(&mut { BASE }).unwrap().body {
            FrameBody::Delta(frame, _) => frames.push(frame),
            FrameBody::Plain(_, surprise) => panic!("a plain frame: {surprise:?}"),
        }
    }
    frames
}

/// The frame with another distance of its window.
fn with_window_distance(frame: &[u8], distance: u32) -> Vec<u8> {
    let head = DeltaHead::get(&mut walden::format::Reader::new("frame", frame)).unwrap();
    let behind =
        |entries: &[SectionEntry]| entries.iter().map(|entry| entry.stored_len as usize).sum::<usize>();
    let at = frame.len() - behind(&head.sections[SectionKind::Digits as usize..]);
    let mut frame = frame.to_vec();
    frame[at + 4..at + 8].copy_from_slice(&distance.to_le_bytes());
    frame
}

/// Frames one after the other, each behind its length.
fn joined(frames: &[Vec<u8>]) -> Vec<u8> {
    frames.iter().flat_map(|frame| [&(frame.len() as u32).to_le_bytes()[..], frame].concat()).collect()
}

pub fn all() -> Vec<Made> {
    let good = good();
    let packing = encode(START, &packed(), &mut { BASE });
    let splits = encode(START, &splits(), &mut { BASE });
    let windows = windows();
    let joined_made = |made: Made| Made { form: "deltas", name: "frames".to_owned(), ..made };
    let refused = |name: &str, bytes, error, says, reason| {
        made(&format!("refused/delta-{name}.bin"), bytes, Some((error, says)), reason)
    };
    // A frame whose image refers to one of a frame before.
    let (first, second) = {
        let size = SegmentSize::new(1 << 20).unwrap();
        let mut synth = Synth::new(WalVersion::V17, size, SystemId(77), TimelineId(3), START);
        synth.record(0, 0xB0, 0, &image_body(3, &page(3), None, 2, b""));
        let first = synth.take();
        synth.record(0, 0xB0, 0, &image_body(3, &page(3), None, 2, b""));
        (first, synth.take())
    };
    let mut encoder = Encoder::new(options(), START);
    encoder.feed(&first);
    encoder.flush_frame(&mut { BASE }).unwrap();
    encoder.feed(&second);
    let FrameBody::Delta(dependent, _) = encoder.flush_frame(&mut { BASE }).unwrap().body else {
        panic!("a delta frame")
    };
    let elsewhere = encode(START, &first_of(150, &page(150)), &mut Base { blocks: 200, other: None });
    let others: Vec<u8> = page(3).iter().map(|byte| byte.wrapping_add(1)).collect();
    let other = encode(START, &first_of(3, &others), &mut Base { blocks: 100, other: Some(3) });
    vec![
        made("deltas/everything.bin", good.clone(), None, "a frame with every kind of everything"),
        made("deltas/switch.bin", switched(), None, "a commit, a switch, and zeros"),
        made("deltas/splits.bin", splits.clone(), None, "what splits of pages move"),
        joined_made(made(
            "deltas/windows.bin",
            joined(&windows),
            None,
            "frames that repeat identifiers of those before, in two objects",
        )),
        joined_made(refused(
            "window-other",
            joined(&[encode(START, &identifiers(START, 10..18), &mut { BASE }), windows[1].clone()]),
            "wrong-window",
            "digits repeat those of the delta frames",
            "digits that repeat those of another frame than the one before",
        )),
        refused(
            "window-none",
            windows[1].clone(),
            "wrong-window",
            "digits repeat those of the delta frames",
            "digits that repeat those of a frame that is not there",
        ),
        refused(
            "window-far",
            with_window_distance(&windows[1], (32 << 20) + 1),
            "format",
            "33554433 bytes back",
            "digits that repeat those of a frame more than 32 MiB back",
        ),
        refused(
            "window-of-rows",
            with_head(&good, |head| head.sections[SectionKind::Rows as usize].codec = SectionCodec::Window),
            "format",
            "Digits alone",
            "rows that are compressed as digits may be",
        ),
        refused(
            "split-stored",
            with_section(&splits, SectionKind::Sources, |plain| plain[0] = 3),
            "format",
            "code of ImageSource",
            "moved tuples that are stored as compressed images are",
        ),
        refused(
            "split-shift",
            with_section(&splits, SectionKind::Shifts, |plain| *plain = vec![0x80, 0x7F]),
            "format",
            "page",
            "a copy of moved tuples from outside of the page",
        ),
        refused(
            "split-no-page",
            encode(START, &elsewhere_split(), &mut Base { blocks: 200, other: None }),
            "missing-pages",
            "block 150",
            "a split of a page that the base does not have",
        ),
        replays(WalVersion::V16, "deltas/replay-16.bin"),
        replays(WalVersion::V17, "deltas/replay-17.bin"),
        made("deltas/packed.bin", packing.clone(), None, "images that PostgreSQL compressed, in every way"),
        made(
            "deltas/packed-14.bin",
            encode(START, &packed_by_14(), &mut { BASE }),
            None,
            "an image that PostgreSQL 14 compressed",
        ),
        refused(
            "packed-zstd",
            with_section(&packing, SectionKind::Sources, |plain| plain[8] = 0),
            "format",
            "compression",
            "an image by zstd that is to be packed",
        ),
        refused(
            "packed-sign",
            with_section(&packing, SectionKind::Sources, |plain| plain[4] |= 0x80),
            "format",
            "compression",
            "an image by LZ4 with a sign",
        ),
        refused(
            "packed-other-sign",
            with_section(&packing, SectionKind::Sources, |plain| plain[3] &= 0x7F),
            "differs",
            "BLAKE3",
            "an image packed with the other sign",
        ),
        refused(
            "packed-bomb",
            with_section(&too_much(), SectionKind::Sources, |plain| *plain.last_mut().unwrap() = 0),
            "format",
            "compressed images of 8396800 bytes",
            "images to be packed of more than 8 MiB",
        ),
        refused(
            "magic",
            with_head(&good, |head| head.magic ^= 1 << 24),
            "format",
            "magic",
            "major version 0",
        ),
        refused(
            "longer",
            with_head(&good, |head| head.raw_len = (1 << 20) + 1),
            "format",
            "bytes of WAL",
            "a range of more than 1 MiB",
        ),
        refused(
            "hash",
            with_head(&good, |head| head.raw_hash[5] ^= 1),
            "differs",
            "BLAKE3",
            "the range's hash has a flipped bit",
        ),
        refused(
            "bomb",
            with_head(&good, |head| head.sections[9].plain_len = 13 << 20),
            "format",
            "sections of",
            "a section that would be 13 MiB",
        ),
        refused("cut", good[..good.len() - 1].to_vec(), "format", "of sections", "the last byte is gone"),
        refused(
            "longer-body",
            [&good[..], &[0]].concat(),
            "format",
            "of sections",
            "a byte after the last section",
        ),
        refused(
            "records",
            with_head(&good, |head| head.record_count += 1),
            "format",
            "records",
            "one record more than there are kinds",
        ),
        refused(
            "segment",
            with_head(&good, |head| head.segment_bytes = 3 << 20),
            "format",
            "segment size",
            "a segment size that PostgreSQL does not have",
        ),
        refused(
            "layout",
            with_section(&good, SectionKind::Layouts, |plain| plain[1] = 0),
            "format",
            "a run of no column",
            "a run of columns that is empty",
        ),
        refused(
            "form",
            with_section(&good, SectionKind::Layouts, |plain| plain[0] = 9),
            "format",
            "ColumnForm",
            "a form of columns that there is not",
        ),
        refused(
            "left-over",
            with_section(&good, SectionKind::Digits, |plain| plain.push(0)),
            "format",
            "digits",
            "a digit that no row takes",
        ),
        refused(
            "source",
            with_section(&good, SectionKind::Sources, |plain| plain[0] = 3),
            "format",
            "compression",
            "an uncompressed image that is stored as one that is",
        ),
        refused(
            "copies",
            with_section(&good, SectionKind::CopyLens, |plain| plain[0] = 0xFF),
            "format",
            "copy",
            "a copy of more than the image has room for",
        ),
        refused(
            "shift",
            with_section(&good, SectionKind::Shifts, |plain| *plain = vec![0xFF, 0xFF, 3]),
            "format",
            "page",
            "a copy from outside of the page",
        ),
        refused(
            "value",
            with_section(&good, SectionKind::Constants, |plain| plain[0] ^= 1),
            "differs",
            "BLAKE3",
            "a constant that was another",
        ),
        refused(
            "no-page",
            elsewhere,
            "missing-pages",
            "block 150",
            "an image of a page that the base does not have",
        ),
        refused("wrong-page", other, "wrong-page", "block 3", "made with another base"),
        refused(
            "no-image",
            dependent,
            "missing-image",
            "block 3",
            "decoded without the frame before, whose image it needs",
        ),
    ]
}

/// WAL with an image of `block`.
fn first_of(block: u32, image: &[u8]) -> Vec<u8> {
    let size = SegmentSize::new(1 << 20).unwrap();
    let mut synth = Synth::new(WalVersion::V17, size, SystemId(77), TimelineId(3), START);
    synth.record(0, 0xB0, 0, &image_body(block, image, None, 2, b""));
    synth.take()
}

/// A split of a page that only another base has.
fn elsewhere_split() -> Vec<u8> {
    let size = SegmentSize::new(1 << 20).unwrap();
    let mut synth = Synth::new(WalVersion::V17, size, SystemId(77), TimelineId(3), START);
    synth.record(11, 0x30, 700, &split_body(150, 2, &[5; 4800]));
    synth.take()
}

/// Decodes with the code.
pub fn open(bytes: &[u8]) -> Result<(), Refusal> {
    open_frames(&[bytes])
}

/// The same of frames that are decoded one after the other, each behind its length.
pub fn open_all(bytes: &[u8]) -> Result<(), Refusal> {
    open_frames(&split(bytes))
}

fn open_frames(frames: &[&[u8]]) -> Result<(), Refusal> {
    let (mut decoder, mut cache) = (FrameDecoder::new(), ImageCache::new(16));
    let decoded = frames
        .iter()
        .try_for_each(|frame| decoder.decode(frame, &mut cache, &mut { BASE }, &mut Vec::new()).map(|_| ()));
    decoded.map_err(|error| {
        let class = match &error {
            DeltaError::Format(_) => "format",
            DeltaError::MissingPages(_) => "missing-pages",
            DeltaError::WrongPage { .. } => "wrong-page",
            DeltaError::MissingImage { .. } => "missing-image",
            DeltaError::RottenImage { .. } => "rotten-image",
            DeltaError::WrongWindow { .. } => "wrong-window",
            DeltaError::NoRoom { .. } => "no-room",
            DeltaError::Differs { .. } => "differs",
        };
        Refusal { class: class.into(), message: error.to_string() }
    })
}

/// Bytes of one section, taken from the front.
struct Section(Vec<u8>, usize);

impl Section {
    fn take(&mut self, count: usize) -> Vec<u8> {
        self.1 += count;
        self.0[self.1 - count..self.1].to_vec()
    }

    fn varint(&mut self) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = self.take(1)[0];
            value |= u64::from(byte & 0x7F) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    }

    fn signed(&mut self) -> i64 {
        zigzag(self.varint())
    }
}

fn zigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// A position as it is written.
fn position(text: &str) -> u64 {
    let (high, low) = text.split_once('/').unwrap();
    u64::from_str_radix(high, 16).unwrap() << 32 | u64::from_str_radix(low, 16).unwrap()
}

fn number(value: &Value, field: &str) -> u64 {
    value.field(field).parse().unwrap()
}

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    let Value::Fields(_, fields) = value else { panic!("{field} of {value:?}") };
    match fields.iter().find(|(name, _)| name == field) {
        Some((_, Value::List(items))) => items,
        other => panic!("{field} is {other:?}"),
    }
}

/// The frame as text, and the WAL it makes, by the tables and the rules alone.
pub fn tell(pages: &Pages, bytes: &[u8], seen: &mut BTreeSet<String>, told: &mut String) {
    tell_frame(pages, bytes, seen, told, &mut Kept::default());
}

/// The same of frames that are decoded one after the other, each behind its length.
pub fn tell_all(pages: &Pages, bytes: &[u8], seen: &mut BTreeSet<String>, told: &mut String) {
    let mut kept = Kept::default();
    for frame in split(bytes) {
        tell_frame(pages, frame, seen, told, &mut kept);
    }
}

/// Frames that stand one after the other, each behind its length.
fn split(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut frames = Vec::new();
    while let Some((len, rest)) = bytes.split_first_chunk() {
        let (frame, rest) = rest.split_at(u32::from_le_bytes(*len) as usize);
        frames.push(frame);
        bytes = rest;
    }
    frames
}

/// What earlier frames left: the last image of each block, and what records did to its page since.
#[derive(Default)]
struct Kept {
    pages: BTreeMap<Block, (u64, Vec<u8>)>,
    changes: BTreeMap<Block, Vec<Change>>,
    change_bytes: usize,
    /// The digits of each frame, and where it begins.
    digits: Vec<(u64, Vec<u8>)>,
}

/// Tablespace, database, relation, fork, block.
type Block = [u32; 5];

impl Kept {
    /// The page of `block` after the changes since its image, and the position of that.
    fn page(&self, block: &Block) -> Option<(u64, Vec<u8>)> {
        let (lsn, page) = self.pages.get(block)?;
        let mut page = Paper(page.clone());
        for change in self.changes.get(block).into_iter().flatten() {
            replaying::apply(change, block[4], &mut page);
        }
        Some((*lsn, page.0))
    }

    /// The window that begins at `from`.
    fn window(&self, from: u64) -> Vec<u8> {
        let since = self.digits.iter().filter(|(start, digits)| *start >= from && !digits.is_empty());
        let window: Vec<u8> = since.flat_map(|(_, digits)| [&[0], &digits[..]].concat()).collect();
        assert!(window.len() <= 524_288, "the vectors stay below the bound");
        window
    }

    fn put(&mut self, block: Block, lsn: u64, page: Vec<u8>) {
        self.pages.insert(block, (lsn, page));
        self.changes.remove(&block);
        assert!(self.pages.len() <= 16, "the cache of the vectors");
    }

    fn change(&mut self, block: Block, change: Change) {
        if self.pages.contains_key(&block) {
            self.change_bytes += 44 + change.data.len() + change.main.len();
            assert!(self.change_bytes <= 16 * 1024, "the vectors stay below what the ring holds");
            self.changes.entry(block).or_default().push(change);
        }
    }
}

fn tell_frame(pages: &Pages, bytes: &[u8], seen: &mut BTreeSet<String>, told: &mut String, kept: &mut Kept) {
    let mut rest = bytes;
    let head = pages.read_value("DeltaHead", &mut rest, seen);
    assert_eq!(number(&head, "magic"), u64::from(u32::from_le_bytes(*b"WDL\x01")));
    head.tell("head", 0, told);
    let start = position(head.field("start"));
    let mut sections = BTreeMap::new();
    for (index, entry) in list(&head, "sections").iter().enumerate() {
        let Value::Plain(name) = pages.decode("SectionKind", &[index as u8], seen) else { panic!("a code") };
        let (stored, after) = rest.split_at(number(entry, "stored_len") as usize);
        rest = after;
        let plain = match entry.field("codec") {
            "Window" => {
                assert_eq!(name, "Digits");
                plain_after(kept, start, stored)
            }
            codec => plain_of(codec, stored),
        };
        if name == "Digits" {
            kept.digits.push((start, plain.clone()));
        }
        assert_eq!(plain.len() as u64, number(entry, "plain_len"));
        told.push_str(&format!("{name}: {} bytes, BLAKE3 {}\n", plain.len(), blake3::hash(&plain)));
        sections.insert(name, Section(plain, 0));
    }
    assert!(rest.is_empty());
    let tables = sections.remove("Tables").unwrap().0;
    let tables = pages.decode("DeltaTables", &tables, seen);
    tables.tell("tables", 0, told);

    let mut reader = Rebuild {
        pages,
        seen,
        head: &head,
        tables: &tables,
        sections,
        kept,
        splits: BTreeSet::new(),
        left: Vec::new(),
    };
    let raw = reader.raw();
    let left: Vec<_> = reader.sections.iter().filter(|(_, section)| section.1 < section.0.len()).collect();
    assert!(left.is_empty(), "left over in {:?}", left.iter().map(|(name, _)| name).collect::<Vec<_>>());
    assert_eq!(head.field("raw_hash"), hex(blake3::hash(&raw).as_bytes()));
    told.push_str(&format!("WAL: {} bytes\n", raw.len()));
    let (splits, left) = (std::mem::take(&mut reader.splits), std::mem::take(&mut reader.left));
    for block in splits {
        let (lsn, page) = kept.page(&block).unwrap();
        kept.put(block, lsn, page);
    }
    for (block, lsn, what) in left {
        match what {
            Left::Image(page) => kept.put(block, lsn, page),
            Left::Change(change) => {
                if change.init {
                    kept.put(block, lsn, vec![0; 8192]);
                }
                kept.change(block, change);
            }
        }
    }
}

/// What a frame leaves for later ones.
enum Left {
    Image(Vec<u8>),
    Change(Change),
}

/// How an image is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    None,
    Pglz,
    Lz4,
    Zstd,
}

struct Rebuild<'a> {
    pages: &'a Pages,
    seen: &'a mut BTreeSet<String>,
    head: &'a Value,
    tables: &'a Value,
    sections: BTreeMap<String, Section>,
    kept: &'a Kept,
    /// Pages of earlier frames that moved tuples refer to.
    splits: BTreeSet<Block>,
    /// What this frame leaves, in order, with the position of its record.
    left: Vec<(Block, u64, Left)>,
}

/// A record being rebuilt.
#[derive(Default)]
struct Rebuilt {
    kind: usize,
    xid: u32,
    /// Of moved tuples: how far back the image is that they refer to, and where it is.
    refers_to: Option<(u64, u64)>,
    /// In the order of the kind.
    numbers: Vec<u32>,
    contents: Vec<Vec<u8>>,
}

impl Rebuild<'_> {
    fn section(&mut self, name: &str) -> &mut Section {
        self.sections.get_mut(name).unwrap()
    }

    fn code(&mut self, kind: &str, byte: u8) -> String {
        match self.pages.decode(kind, &[byte], self.seen) {
            Value::Plain(name) => name,
            other => panic!("{other:?}"),
        }
    }

    /// Which numbers a kind has: what each is, and whether contents of so many bytes belong to it.
    fn plan(&self, kind: &Value) -> Vec<(&'static str, bool)> {
        let mut plan = Vec::new();
        let has = |id: u64| list(kind, "blocks").iter().any(|block| number(block, "id") == id);
        let split = number(kind, "rmgr") == 11
            && [0x30, 0x40].contains(&(number(kind, "info") & 0xF0))
            && has(0)
            && kind.field("main") != "None";
        for block in list(kind, "blocks") {
            let (flags, info) = (number(block, "flags"), number(block, "image_info"));
            plan.push(("block", false));
            if flags & 0x20 != 0 {
                let moved = split && number(block, "id") == 1;
                plan.push(if moved { ("moved", false) } else { ("data", true) });
            }
            if flags & 0x10 != 0 {
                plan.extend([("image", false), ("offset", false)]);
                if info & 1 != 0 && self.compressed(info) {
                    plan.push(("hole", false));
                }
            }
        }
        if kind.field("top_xid") == "yes" {
            plan.push(("top", false));
        }
        if kind.field("main") != "None" {
            plan.push(("main", true));
        }
        plan
    }

    /// By what an image is compressed: nothing, pglz, LZ4, zstd.
    fn method(&self, info: u64) -> Method {
        match number(self.head, "page_magic") {
            0xD10D if info & 2 != 0 => Method::Pglz,
            0xD10D => Method::None,
            _ if info & 4 != 0 => Method::Pglz,
            _ if info & 8 != 0 => Method::Lz4,
            _ if info & 16 != 0 => Method::Zstd,
            _ => Method::None,
        }
    }

    fn compressed(&self, info: u64) -> bool {
        self.method(info) != Method::None
    }

    fn records(&mut self) -> Vec<Rebuilt> {
        let count = number(self.head, "record_count") as usize;
        let mut records: Vec<Rebuilt> = (0..count).map(|_| Rebuilt::default()).collect();
        let kinds = self.section("Kinds").take(2 * count);
        let mut last = 0i64;
        for (at, record) in records.iter_mut().enumerate() {
            record.kind = usize::from(kinds[at]) + 256 * usize::from(kinds[count + at]);
            record.xid = match self.section("Xids").varint() {
                0 => last as u32,
                1 => 0,
                n => {
                    last += zigzag(n - 1);
                    last as u32
                }
            };
        }
        let kinds = list(self.tables, "kinds");
        for (kind, value) in kinds.iter().enumerate() {
            for _ in self.plan(value) {
                let mut last = 0;
                for record in records.iter_mut().filter(|record| record.kind == kind) {
                    last += self.section("Numbers").signed();
                    record.numbers.push(last as u32);
                }
            }
        }
        for (kind, value) in kinds.iter().enumerate() {
            let plan = self.plan(value);
            for at in (0..plan.len()).filter(|at| plan[*at].1) {
                let mut groups: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
                for (index, record) in records.iter().enumerate().filter(|(_, record)| record.kind == kind) {
                    groups.entry(record.numbers[at]).or_default().push(index);
                }
                for (len, group) in groups {
                    for (row, index) in self.rows(group.len(), len as usize).into_iter().zip(group) {
                        records[index].contents.push(row);
                    }
                }
            }
        }
        records
    }

    /// Puts what splits moved into `records`.
    fn put_moved(&mut self, records: &mut [Rebuilt]) {
        let kinds = list(self.tables, "kinds");
        for (kind, value) in kinds.iter().enumerate() {
            let plan = self.plan(value);
            let Some(at) = plan.iter().position(|(name, _)| *name == "moved") else { continue };
            let blocks = list(value, "blocks");
            let split = blocks.iter().position(|block| number(block, "id") == 0).unwrap();
            let of_split = plan.iter().enumerate().filter(|(_, (name, _))| *name == "block").nth(split);
            let of_split = of_split.unwrap().0;
            let place = plan[..at].iter().filter(|(_, content)| *content).count();
            for record in records.iter_mut().filter(|record| record.kind == kind) {
                let block = self.block(&blocks[split], record.numbers[of_split]);
                let main = record.contents.last().unwrap().clone();
                let tuples = self.moved(block, &main, record.numbers[at] as usize, record);
                record.contents.insert(place, tuples);
            }
        }
    }

    /// The `len` bytes of tuples that the split `record`, with these main data, moved from `block`.
    fn moved(&mut self, block: Block, main: &[u8], len: usize, record: &mut Rebuilt) -> Vec<u8> {
        let source = self.section("Sources").take(1)[0];
        let older = match self.code("ImageSource", source).as_str() {
            "Nothing" => return self.section("Literals").take(len),
            "Base" => {
                let page = page(block[4] as usize);
                assert_eq!(self.section("References").take(4), crc32c::crc32c(&page).to_le_bytes());
                page
            }
            "Image" => {
                let distance = self.section("References").varint() * 8;
                let (lsn, page) = self.kept.page(&block).unwrap();
                record.refers_to = Some((distance, lsn));
                self.splits.insert(block);
                page
            }
            other => panic!("{other}"),
        };
        self.difference(&replaying::moved(main, &Paper(older)), len, 0, 8192 - len)
    }

    /// The block of a block reference.
    fn block(&self, block: &Value, block_number: u32) -> Block {
        let relation = &list(self.tables, "relations")[number(block, "relation") as usize];
        let of = |field| number(relation, field) as u32;
        let fork = number(block, "flags") as u32 & 0x0F;
        [of("tablespace"), of("database"), of("relation"), fork, block_number]
    }

    /// Writes down what `record`, which ends at `end` with its padding, does to blocks that it has no image of.
    fn leave(&mut self, record: &Rebuilt, at: u64, end: u64) {
        let kind = &list(self.tables, "kinds")[record.kind];
        if ![9, 10, 11].contains(&number(kind, "rmgr")) {
            return;
        }
        let (plan, mut contents) = (self.plan(kind), record.contents.iter());
        let main =
            if kind.field("main") == "None" { Vec::new() } else { record.contents.last().unwrap().clone() };
        let mut blocks = [None; 3];
        let mut changes = Vec::new();
        let mut numbers = plan.iter().zip(&record.numbers).filter(|((name, _), _)| *name == "block");
        for block in list(kind, "blocks") {
            let (id, flags) = (number(block, "id") as u8, number(block, "flags"));
            let block_number = *numbers.next().unwrap().1;
            if let Some(to) = blocks.get_mut(usize::from(id)) {
                *to = Some(block_number);
            }
            let data = if flags & 0x20 != 0 { contents.next().unwrap().clone() } else { Vec::new() };
            if flags & 0x10 == 0 {
                changes.push((self.block(block, block_number), id, flags & 0x40 != 0, data));
            }
        }
        for (block, reference, init, data) in changes {
            let change = Change {
                since_17: number(self.head, "page_magic") >= 0xD116,
                rmgr: number(kind, "rmgr") as u8,
                info: number(kind, "info") as u8,
                xid: record.xid,
                end,
                reference,
                init,
                blocks,
                data,
                main: main.clone(),
            };
            self.left.push((block, at, Left::Change(change)));
        }
    }

    /// An image of `len` bytes as a difference from `older`.
    fn difference(&mut self, older: &[u8], len: usize, offset: usize, hole: usize) -> Vec<u8> {
        let (mut image, mut shift) = (Vec::new(), 0);
        while image.len() < len {
            let n = self.section("LiteralLens").varint();
            image.extend(self.section("Literals").take((n / 2) as usize));
            if n % 2 == 1 {
                shift += self.section("Shifts").signed();
            }
            for _ in 0..self.section("CopyLens").varint() {
                let place = if image.len() < offset || hole == 0 { image.len() } else { image.len() + hole };
                image.push(older[(place as i64 + shift) as usize]);
            }
        }
        image
    }

    fn rows(&mut self, count: usize, width: usize) -> Vec<Vec<u8>> {
        if count < 4 || width == 0 {
            return (0..count).map(|_| self.section("Rows").take(width)).collect();
        }
        let mut rows = vec![Vec::new(); count];
        while rows[0].len() < width {
            let form = self.section("Layouts").take(1)[0];
            let form = self.code("ColumnForm", form);
            let run = self.section("Layouts").varint() as usize;
            match form.as_str() {
                "Constant" => {
                    let values = self.section("Constants").take(run);
                    rows.iter_mut().for_each(|row| row.extend(&values));
                }
                "Column" => {
                    for _ in 0..run {
                        let column = self.section("Columns").take(count);
                        rows.iter_mut().zip(column).for_each(|(row, byte)| row.push(byte));
                    }
                }
                "Difference" => {
                    for _ in 0..run {
                        let (column, mut last) = (self.section("Differences").take(count), 0u8);
                        for (row, byte) in rows.iter_mut().zip(column) {
                            last = last.wrapping_add(byte);
                            row.push(last);
                        }
                    }
                }
                "Row" => rows
                    .iter_mut()
                    .for_each(|row| row.extend(self.sections.get_mut("Rows").unwrap().take(run))),
                _ => {
                    for row in &mut rows {
                        let text = hex(&self.sections.get_mut("Digits").unwrap().take(run.div_ceil(2)));
                        row.extend(&text.as_bytes()[..run]);
                    }
                }
            }
        }
        rows
    }

    fn raw(&mut self) -> Vec<u8> {
        let head = self.head;
        let start = position(head.field("start"));
        let of = |field: &str| number(head, field) as usize;
        let (zero_len, head_len, tail_len, rest_len) =
            (of("zero_len"), of("head_len"), of("tail_len"), of("rest_len"));
        let first = start + zero_len as u64;
        let padding = |body: &Vec<u8>| (8 - (first as usize + body.len()) % 8) % 8;
        let mut records = self.records();
        self.put_moved(&mut records);
        let mut body = self.section("Edges").take(head_len);
        let pad = padding(&body).min(self.room(first, &body));
        body.extend(vec![0; pad]);
        // Where each record begins and ends in the body.
        let mut spans = if head_len > 0 { vec![(-1, head_len)] } else { Vec::new() };
        let mut prev = position(head.field("prev"));
        let mut earlier = BTreeMap::new();
        let mut switched = false;
        for record in records {
            let begin = body.len();
            let at = first + begin as u64 + self.headers_before(first, begin + 1).1 as u64;
            if let Some((distance, image)) = record.refers_to {
                assert_eq!(at - distance, image);
            }
            let bytes = self.record(&record, at, prev, &mut earlier);
            let len = begin + bytes.len();
            let padded = len + (8 - (first as usize + len) % 8) % 8;
            let end = first + padded as u64 + self.headers_before(first, padded).1 as u64;
            self.leave(&record, at, end);
            switched = bytes[17] == 0 && bytes[16] & 0xF0 == 0x40;
            spans.push((begin as i64, begin + bytes.len()));
            body.extend(bytes);
            let pad = padding(&body).min(self.room(first, &body));
            body.extend(vec![0; pad]);
            prev = at;
        }
        if tail_len > 0 {
            spans.push((body.len() as i64, body.len() + tail_len));
            body.extend(self.section("Edges").take(tail_len));
        }
        if let Some(last) = spans.last_mut().filter(|last| last.1 == body.len()) {
            last.1 += rest_len;
        }
        let mut raw = vec![0; zero_len];
        let mut page = 0;
        for (at, byte) in body.iter().enumerate() {
            let place = start + raw.len() as u64;
            if place.is_multiple_of(8192) {
                let inside = spans.iter().find(|span| span.0 < at as i64 && at < span.1);
                raw.extend(self.page_header(place, inside.map_or(0, |span| span.1 - at), page));
                page += 1;
            }
            raw.push(*byte);
        }
        if switched {
            raw.resize(of("raw_len"), 0);
        }
        raw
    }

    /// Page headers before the first `count` bytes of a body that begins at `first`, and their bytes.
    fn headers_before(&self, first: u64, count: usize) -> (usize, usize) {
        let (mut at, mut headers, mut bytes) = (first, 0, 0);
        for _ in 0..count {
            if at.is_multiple_of(8192) {
                let len = if at.is_multiple_of(number(self.head, "segment_bytes")) { 40 } else { 24 };
                headers += 1;
                bytes += len;
                at += len as u64;
            }
            at += 1;
        }
        (headers, bytes)
    }

    /// Bytes of the range that the body has not filled.
    fn room(&self, first: u64, body: &[u8]) -> usize {
        let (raw_len, zero_len) =
            (number(self.head, "raw_len") as usize, number(self.head, "zero_len") as usize);
        raw_len - zero_len - self.headers_before(first, body.len()).1 - body.len()
    }

    fn page_header(&self, address: u64, rest: usize, page: usize) -> Vec<u8> {
        let head = self.head;
        let exception =
            list(self.tables, "page_headers").iter().find(|entry| number(entry, "page") == page as u64);
        if let Some(entry) = exception {
            let text = entry.field("bytes").to_owned();
            return text
                .as_bytes()
                .chunks(2)
                .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
                .collect();
        }
        let long = address.is_multiple_of(number(head, "segment_bytes"));
        let mut info = if rest > 0 { 1u16 } else { 0 };
        info |= if long { 2 } else { 0 } | if head.field("removable") == "yes" { 4 } else { 0 };
        let mut bytes = (number(head, "page_magic") as u16).to_le_bytes().to_vec();
        bytes.extend(info.to_le_bytes());
        bytes.extend((number(head, "timeline") as u32).to_le_bytes());
        bytes.extend(address.to_le_bytes());
        bytes.extend((rest as u32).to_le_bytes());
        bytes.extend([0; 4]);
        if long {
            bytes.extend(number(head, "system_id").to_le_bytes());
            bytes.extend((number(head, "segment_bytes") as u32).to_le_bytes());
            bytes.extend(8192u32.to_le_bytes());
        }
        bytes
    }

    /// The bytes of a record at `at`.
    fn record(
        &mut self,
        record: &Rebuilt,
        at: u64,
        prev: u64,
        earlier: &mut BTreeMap<Block, (u64, Vec<u8>)>,
    ) -> Vec<u8> {
        let kind = &list(self.tables, "kinds")[record.kind];
        let (mut numbers, mut contents) = (record.numbers.iter().copied(), record.contents.iter());
        let (mut headers, mut payload) = (Vec::new(), Vec::new());
        for block in list(kind, "blocks") {
            let (flags, info) = (number(block, "flags"), number(block, "image_info"));
            let block_number = numbers.next().unwrap();
            let data_len = if flags & 0x20 != 0 { numbers.next().unwrap() } else { 0 };
            headers.extend([number(block, "id") as u8, flags as u8]);
            headers.extend((data_len as u16).to_le_bytes());
            if flags & 0x10 != 0 {
                let (len, offset) = (numbers.next().unwrap() as usize, numbers.next().unwrap() as usize);
                headers.extend((len as u16).to_le_bytes());
                headers.extend((offset as u16).to_le_bytes());
                headers.push(info as u8);
                let hole = match (info & 1 != 0, self.compressed(info)) {
                    (false, _) => 0,
                    (true, false) => 8192 - len,
                    (true, true) => {
                        let hole = numbers.next().unwrap();
                        headers.extend((hole as u16).to_le_bytes());
                        hole as usize
                    }
                };
                let id = self.block(block, block_number);
                payload.extend(self.image(id, len, offset, hole, info, at, earlier));
            }
            if flags & 0x80 == 0 {
                let relation = &list(self.tables, "relations")[number(block, "relation") as usize];
                for field in ["tablespace", "database", "relation"] {
                    headers.extend((number(relation, field) as u32).to_le_bytes());
                }
            }
            headers.extend(block_number.to_le_bytes());
            if flags & 0x20 != 0 {
                payload.extend(contents.next().unwrap());
            }
        }
        if let Value::Fields(_, fields) = kind
            && let Some((_, Value::Plain(origin))) = fields.iter().find(|(name, _)| name == "origin")
        {
            headers.push(253);
            headers.extend(origin.parse::<u16>().unwrap().to_le_bytes());
        }
        if kind.field("top_xid") == "yes" {
            headers.push(252);
            headers.extend(numbers.next().unwrap().to_le_bytes());
        }
        match kind.field("main") {
            "Short" => headers.extend([255, numbers.next().unwrap() as u8]),
            "Long" => {
                headers.push(254);
                headers.extend(numbers.next().unwrap().to_le_bytes());
            }
            _ => {}
        }
        payload.extend(contents.next().into_iter().flatten());
        let body = [headers, payload].concat();
        let mut bytes = (body.len() as u32 + 24).to_le_bytes().to_vec();
        bytes.extend(record.xid.to_le_bytes());
        bytes.extend(prev.to_le_bytes());
        bytes.extend([number(kind, "info") as u8, number(kind, "rmgr") as u8, 0, 0]);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&body), &bytes);
        bytes.extend(crc.to_le_bytes());
        bytes.extend(body);
        bytes
    }

    #[allow(clippy::too_many_arguments)]
    fn image(
        &mut self,
        id: Block,
        len: usize,
        offset: usize,
        hole: usize,
        info: u64,
        at: u64,
        earlier: &mut BTreeMap<Block, (u64, Vec<u8>)>,
    ) -> Vec<u8> {
        let source = self.section("Sources").take(1)[0];
        // Of an image that is packed, what is packed.
        let (packed_len, len) = (len, 8192 - hole);
        let older = match self.code("ImageSource", source & 0x7F).as_str() {
            "Stored" => return self.section("Stored").take(packed_len),
            "Nothing" => None,
            "Base" => {
                let page = page(id[4] as usize);
                assert_eq!(self.section("References").take(4), crc32c::crc32c(&page).to_le_bytes());
                Some(page)
            }
            _ => {
                let distance = self.section("References").varint() * 8;
                let (lsn, page) = earlier.get(&id).cloned().unwrap_or_else(|| self.kept.page(&id).unwrap());
                assert_eq!(lsn, at - distance);
                Some(page)
            }
        };
        let image = match older {
            None => self.section("Literals").take(len),
            Some(older) => self.difference(&older, len, offset, hole),
        };
        let page = [
            &image[..if hole > 0 { offset } else { len }],
            &vec![0; hole][..],
            &image[if hole > 0 { offset } else { len }..],
        ];
        earlier.insert(id, (at, page.concat()));
        self.left.push((id, at, Left::Image(page.concat())));
        let packed = match (self.method(info), source & 0x80 != 0) {
            (Method::Pglz, unsigned) => packing::pglz(&image, unsigned),
            (Method::Lz4, false) => packing::lz4(&image),
            (Method::None, false) => image,
            other => panic!("{other:?}"),
        };
        assert_eq!(packed.len(), packed_len);
        packed
    }
}
