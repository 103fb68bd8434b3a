//! The tuples that a B-tree split moves to its new page: made of the page that was split, or what says why not.

use crate::bed::{self, image_body, mib};
use crate::faults::records;
use walden::base::{Lsn, SystemId, TimelineId};
use walden::delta::{
    BlockId, DeltaError, Encoder, EncoderOptions, FrameBody, FrameDecoder, ImageCache, NoBase, Origin, Page,
    PageSource, Surprise, Verify, Vouched, Window, page_check,
};
use walden::format::wal::RelationRef;
use walden::wal::{Synth, WalVersion};

const START: Lsn = Lsn::new(1 << 32);
pub const TUPLE_BYTES: usize = 24;
/// The page that is split.
const LEFT: u32 = 7;
/// Its new right neighbour.
const RIGHT: u32 = 9;
const SPLIT_L: u8 = 0x30;
const SPLIT_R: u8 = 0x40;

fn left() -> BlockId {
    BlockId { relation: RelationRef { tablespace: 1663, database: 5, relation: 16384 }, fork: 0, block: LEFT }
}

/// A tuple with a key of 16 random bytes.
pub fn tuple(number: usize) -> [u8; TUPLE_BYTES] {
    let key = blake3::hash(&number.to_le_bytes());
    let mut tuple = [0; TUPLE_BYTES];
    tuple[..8].copy_from_slice(&[0, 0, number as u8, (number >> 8) as u8, 5, 0, 24, 0]);
    tuple[8..].copy_from_slice(&key.as_bytes()[..16]);
    tuple
}

/// A page with a high key and these tuples, whose bytes lie in the order of their keys, as after many inserts.
pub fn tree_page(tuples: &[[u8; TUPLE_BYTES]]) -> Page {
    let mut page = [0; 8192];
    let all: Vec<_> = [tuple(9999)].into_iter().chain(tuples.iter().copied()).collect();
    let mut by_key: Vec<usize> = (0..all.len()).collect();
    by_key.sort_by_key(|number| all[*number][8..].to_vec());
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    for (turn, number) in by_key.iter().enumerate() {
        let at = 8176 - TUPLE_BYTES * (turn + 1);
        put(at, &all[*number]);
        put(24 + 4 * number, &(at as u32 | 1 << 15 | (TUPLE_BYTES as u32) << 17).to_le_bytes());
    }
    let upper = 8176 - TUPLE_BYTES * all.len();
    for (at, value) in [(12, 24 + 4 * all.len()), (14, upper), (16, 8176), (18, 0x2004)] {
        put(at, &(value as u16).to_le_bytes());
    }
    put(8180, &4u32.to_le_bytes());
    page
}

pub fn block_header(id: u8, flags: u8, data: &[u8], block: u32) -> Vec<u8> {
    let mut header = vec![id, flags];
    header.extend((data.len() as u16).to_le_bytes());
    [1663u32, 5, 16384, block].iter().for_each(|number| header.extend(number.to_le_bytes()));
    header
}

/// An insert at `line`.
fn insert(synth: &mut Synth, line: u16, tuple: &[u8]) {
    let main = vec![255, 2];
    let body =
        [block_header(0, 0x20, tuple, LEFT), main, tuple.to_vec(), line.to_le_bytes().to_vec()].concat();
    synth.record(11, 0x00, 700, &body);
}

/// A split before line `first_right`, which moves `moved`, in order of lines.
fn split(synth: &mut Synth, info: u8, first_right: u16, moved: &[[u8; TUPLE_BYTES]]) {
    split_of(synth, LEFT, info, first_right, moved);
}

fn split_of(synth: &mut Synth, block: u32, info: u8, first_right: u16, moved: &[[u8; TUPLE_BYTES]]) {
    split_to(synth, [block, RIGHT], info, first_right, moved);
}

/// The same to another page than [`RIGHT`].
pub fn split_to(
    synth: &mut Synth,
    [block, right]: [u32; 2],
    info: u8,
    first_right: u16,
    moved: &[[u8; TUPLE_BYTES]],
) {
    let data: Vec<u8> = moved.iter().rev().flatten().copied().collect();
    let left_data = [tuple(1), tuple(2)].concat();
    let headers = [block_header(0, 0x20, &left_data, block), block_header(1, 0x60, &data, right)].concat();
    let numbers = [first_right, first_right.saturating_add(1), 0].map(u16::to_le_bytes).concat();
    let body = [headers, vec![255, 10], left_data, data, vec![0; 4], numbers].concat();
    synth.record(11, info, 700, &body);
}

/// As compaction encodes: what does not come back is stored plain.
fn encoder() -> Encoder {
    Encoder::new(EncoderOptions { verify: Verify::Decode, ..bed::options(mib(1)) }, START)
}

fn synth() -> Synth {
    Synth::new(WalVersion::V16, mib(1), SystemId(7), TimelineId(1), START)
}

/// A frame of `wal`, which was made since the last one.
fn encode(encoder: &mut Encoder, wal: &[u8], base: &mut dyn PageSource) -> FrameBody {
    encoder.feed(wal);
    encoder.flush_frame(base).unwrap().body
}

fn delta(body: FrameBody) -> Vec<u8> {
    match body {
        FrameBody::Delta(bytes, _) => bytes,
        FrameBody::Plain(_, surprise) => panic!("plain: {surprise:?}"),
    }
}

/// Frames, with their WAL: of a page's image and 60 inserts between its 120 tuples; of a split that moves its last 90 and a new one. `between`
/// changes the encoder's cache.
fn grown_and_split(between: impl FnOnce(&mut ImageCache)) -> [(Vec<u8>, Vec<u8>); 2] {
    let mut tuples: Vec<_> = (100..220).map(tuple).collect();
    let (mut synth, mut encoder) = (synth(), encoder());
    synth.record(0, 0xB0, 0, &image_body(LEFT, &tree_page(&tuples), 0, 2));
    for number in 0..60 {
        let at = number * 3;
        tuples.insert(at, tuple(1000 + number));
        insert(&mut synth, at as u16 + 2, &tuple(1000 + number));
    }
    let first = synth.take();
    let first_frame = delta(encode(&mut encoder, &first, &mut NoBase));
    between(encoder.cache_mut());
    let mut moved = [&[tuple(9999)], &tuples[90..]].concat();
    moved.insert(40, tuple(5000));
    split(&mut synth, SPLIT_R, 92, &moved);
    let second = synth.take();
    let second_frame = delta(encode(&mut encoder, &second, &mut NoBase));
    [(first, first_frame), (second, second_frame)]
}

fn decode(frame: &[u8], cache: &mut ImageCache, base: &mut dyn PageSource) -> Result<Vec<u8>, DeltaError> {
    let mut back = Vec::new();
    FrameDecoder::new().decode(frame, cache, base, &mut back).map(|_| back)
}

#[test]
fn what_a_split_moves_is_made_of_the_page_that_was_split() {
    let [(_, first), (wal, second)] = grown_and_split(|_| {});
    let mut cache = ImageCache::new(64);
    decode(&first, &mut cache, &mut NoBase).unwrap();
    assert_eq!(decode(&second, &mut cache, &mut NoBase).unwrap(), wal);
    let moved = 92 * TUPLE_BYTES;
    assert!(wal.len() > moved && second.len() < 500, "{} bytes for a split of known tuples", second.len());
}

#[test]
fn a_page_that_was_split_goes_on_from_there() {
    let mut tuples: Vec<_> = (100..280).map(tuple).collect();
    let (mut synth, mut encoder, mut cache) = (synth(), encoder(), ImageCache::new(64));
    synth.record(0, 0xB0, 0, &image_body(LEFT, &tree_page(&tuples), 0, 2));
    let mut frames = Vec::new();
    for turn in 0..4 {
        // Between a split and the next, the page has new tuples; those of this frame are not known to its split.
        let lens = (0..4).map(|part| {
            for number in 0..20 {
                let new = tuple(1000 + turn * 100 + part * 20 + number);
                tuples.insert(number * 2, new);
                insert(&mut synth, number as u16 * 2 + 2, &new);
            }
            if part == 3 {
                let moved = [&[tuple(9999)], &tuples[100..]].concat();
                split(&mut synth, SPLIT_L, 102, &moved);
                tuples.truncate(100);
                // The high key that the record has.
                insert(&mut synth, 1, &tuple(2));
                tuples.insert(0, tuple(2));
            }
            let wal = synth.take();
            let frame = delta(encode(&mut encoder, &wal, &mut NoBase));
            assert_eq!(decode(&frame, &mut cache, &mut NoBase).unwrap(), wal);
            frame.len()
        });
        frames.push(lens.last().unwrap());
    }
    // 20 new tuples twice, and the split's own; what it moves would take 16 bytes each.
    assert!(frames.iter().all(|len| *len < 1600), "{frames:?}");
    synth.record(0, 0xB0, 0, &image_body(LEFT, &tree_page(&tuples), 0, 2));
    let wal = synth.take();
    let frame = delta(encode(&mut encoder, &wal, &mut NoBase));
    assert_eq!(decode(&frame, &mut cache, &mut NoBase).unwrap(), wal);
}

#[test]
fn a_rotten_page_is_not_built_on() {
    let [(_, first), (wal, second)] = grown_and_split(|_| {});
    let mut cache = ImageCache::new(64);
    decode(&first, &mut cache, &mut NoBase).unwrap();
    cache.rot_changes(150);
    let error = decode(&second, &mut cache, &mut NoBase).unwrap_err();
    assert!(matches!(error, DeltaError::RottenImage { block, .. } if block == left()), "{error}");
    // The encoder makes the tuples of nothing, and the frame can be decoded alone.
    let [_, (_, alone)] = grown_and_split(|cache| cache.rot_changes(150));
    assert_eq!(decode(&alone, &mut ImageCache::new(4), &mut NoBase).unwrap(), wal);
    assert!(alone.len() > 1400);
}

#[test]
fn a_split_whose_page_is_not_in_the_cache_is_named() {
    let [_, (_, second)] = grown_and_split(|_| {});
    let error = decode(&second, &mut ImageCache::new(64), &mut NoBase).unwrap_err();
    assert!(matches!(error, DeltaError::MissingImage { block, .. } if block == left()), "{error}");
}

/// One page.
struct One(Option<Page>);

impl PageSource for One {
    fn base_page(&mut self, block: &BlockId, page: &mut Page) -> Option<Vouched> {
        *page = self.0.filter(|_| *block == left())?;
        Some(Vouched::BySource)
    }
}

#[test]
fn the_page_that_was_split_may_be_of_the_base() {
    let tuples: Vec<_> = (100..260).map(tuple).collect();
    let page = tree_page(&tuples);
    let mut synth = synth();
    split(&mut synth, SPLIT_L, 82, &[&[tuple(9999)], &tuples[80..]].concat());
    let wal = synth.take();
    let mut encoder = encoder();
    encoder.feed(&wal);
    assert_eq!(encoder.base_blocks(), [left()], "what is fetched ahead");
    let frame = delta(encoder.flush_frame(&mut One(Some(page))).unwrap().body);
    assert!(frame.len() < 500, "{} bytes", frame.len());
    assert_eq!(decode(&frame, &mut ImageCache::new(4), &mut One(Some(page))).unwrap(), wal);

    let references = FrameDecoder::new().references(&frame).unwrap();
    let [reference] = references[..] else { panic!("{references:?}") };
    assert_eq!((reference.block, reference.origin), (left(), Origin::Base { check: page_check(&page) }));
    let error = decode(&frame, &mut ImageCache::new(4), &mut One(None)).unwrap_err();
    assert!(matches!(&error, DeltaError::MissingPages(pages) if pages[0].block == left()), "{error}");
    let other = tree_page(&tuples[1..]);
    let error = decode(&frame, &mut ImageCache::new(4), &mut One(Some(other))).unwrap_err();
    assert!(matches!(error, DeltaError::WrongPage { block, .. } if block == left()), "{error}");
}

/// The same page for every block, but for its first tuple.
struct Many;

impl PageSource for Many {
    fn base_page(&mut self, block: &BlockId, page: &mut Page) -> Option<Vouched> {
        let first = tuple(block.block as usize);
        *page = tree_page(&[&[first], &(100..260).map(tuple).collect::<Vec<_>>()[..]].concat());
        Some(Vouched::BySource)
    }
}

#[test]
fn splits_and_images_of_the_same_pages_in_a_frame_come_back() {
    let page = |block: u32| {
        let mut page = [0; 8192];
        let id = BlockId { block, ..left() };
        Many.base_page(&id, &mut page).unwrap();
        page
    };
    let moved = [&[tuple(9999)], &(180..260).map(tuple).collect::<Vec<_>>()[..]].concat();
    let mut synth = synth();
    for block in [1, 2, 3, 2] {
        split_of(&mut synth, block, SPLIT_L, 83, &moved);
    }
    for block in [1, 4, 2, 5, 1] {
        synth.record(0, 0xB0, 0, &image_body(block, &page(block), 0, 2));
    }
    let wal = synth.take();
    let frame = delta(encode(&mut encoder(), &wal, &mut Many));
    assert!(frame.len() < 1500, "{} bytes", frame.len());
    assert_eq!(decode(&frame, &mut ImageCache::new(16), &mut Many).unwrap(), wal);
}

#[test]
fn tuples_that_the_page_does_not_have_need_no_page() {
    let mut synth = synth();
    split(&mut synth, SPLIT_L, 2, &(300..400).map(tuple).collect::<Vec<_>>());
    let wal = synth.take();
    let frame = delta(encode(&mut encoder(), &wal, &mut Many));
    assert_eq!(decode(&frame, &mut ImageCache::new(4), &mut NoBase).unwrap(), wal);
}

#[test]
fn more_splits_than_pages_may_be_referred_to_are_stored_plain() {
    let frame_of = |splits: u32| {
        let mut synth = synth();
        (0..splits).for_each(|block| split_of(&mut synth, block, SPLIT_L, 83, &[tuple(3)]));
        encode(&mut encoder(), &synth.take(), &mut NoBase)
    };
    assert!(matches!(frame_of(4096), FrameBody::Delta(..)));
    assert!(matches!(frame_of(4097), FrameBody::Plain(_, Surprise::TooMuch)));
}

#[test]
fn a_page_that_is_no_tree_costs_no_byte_of_the_wal() {
    // Whatever stands there, lines that lead anywhere and a split before any line: it comes back.
    for seed in 0..200u64 {
        let mut page = [0; 8192];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut page);
        let mut synth = synth();
        let first_right = [0, 1, 2, u16::MAX, page[0].into()][seed as usize % 5];
        split(&mut synth, [SPLIT_L, SPLIT_R][seed as usize % 2], first_right, &[tuple(3); 40]);
        let wal = synth.take();
        let mut encoder = encoder();
        let frame = delta(encode(&mut encoder, &wal, &mut One(Some(page))));
        assert_eq!(decode(&frame, &mut ImageCache::new(4), &mut One(Some(page))).unwrap(), wal);
    }
}

#[test]
fn a_split_of_more_than_a_page_is_stored_plain() {
    let mut synth = synth();
    split(&mut synth, SPLIT_R, 2, &[tuple(3); 342]);
    let wal = synth.take();
    let mut encoder = encoder();
    let body = encode(&mut encoder, &wal, &mut NoBase);
    assert!(matches!(body, FrameBody::Plain(_, Surprise::Record)));
}

#[test]
fn records_of_splits_are_read_without_the_pages() {
    let [_, (wal, second)] = grown_and_split(|_| {});
    let mut hollow = Vec::new();
    let range = FrameDecoder::new().decode_records(&second, &mut Window::default(), &mut hollow).unwrap();
    assert_eq!(hollow.len(), wal.len());
    assert_ne!(hollow, wal, "moved tuples are not there");
    assert_eq!(records(range.start, &hollow).all, records(range.start, &wal).all);
}
