//! Planted faults: a decoder gives an error or the very bytes, never others; an encoder does not build on what is rotten.

use crate::bed::{self, Made, blocks, image_body, made_page, mib};
use std::io;
use walden::base::{Anonymous, Lsn, Memory, Scratch, SystemId, TimelineId, Timestamp};
use walden::delta::{
    BlockId, DeltaError, Encoder, FrameBody, FrameDecoder, ImageCache, NoBase, Origin, PageSource, Surprise,
    Verify, Window,
};
use walden::format::wal::RelationRef;
use walden::wal::record::RecordHeader;
use walden::wal::scan::{RawRecord, Scanner, Sink};
use walden::wal::{DecodeFrom, Synth, WalError, WalVersion};

const START: Lsn = Lsn::new(1 << 32);

fn block(block: u32) -> BlockId {
    BlockId { relation: RelationRef { tablespace: 1663, database: 5, relation: 16384 }, fork: 0, block }
}

/// Two frames: images of blocks 0 to 9 with other things between, then images of the same blocks.
fn two_frames(
    encoder: &mut Encoder,
    base: &mut Made,
    between: impl FnOnce(&mut Encoder),
) -> [(Vec<u8>, Vec<u8>); 2] {
    let mut synth = Synth::new(WalVersion::V15, mib(1), SystemId(7), TimelineId(1), START);
    let mut between = Some(between);
    [0u8, 1].map(|turn| {
        for number in 0..10u32 {
            let mut page = made_page(number);
            page[1000..1040].fill(turn + 1);
            synth.record(0, 0xB0, 0, &image_body(number, &page, 0, 2));
            synth.insert(700 + number, number, 60);
            synth.commit(700 + number, Timestamp::from_micros(i64::from(number)));
        }
        let wal = synth.take();
        encoder.feed(&wal);
        let frame = encoder.flush_frame(base).unwrap();
        if turn == 0 {
            between.take().unwrap()(encoder);
        }
        match frame.body {
            FrameBody::Delta(bytes, _) => (wal, bytes),
            FrameBody::Plain(_, surprise) => panic!("plain: {surprise:?}"),
        }
    })
}

/// The WAL of `frame`.
fn decode(
    decoder: &mut FrameDecoder,
    frame: &[u8],
    cache: &mut ImageCache,
    mut base: impl PageSource,
) -> Result<Vec<u8>, DeltaError> {
    let mut back = Vec::new();
    decoder.decode(frame, cache, &mut base, &mut back).map(|_| back)
}

fn encoder() -> Encoder {
    Encoder::new(bed::options(mib(1)), START)
}

#[test]
fn a_flipped_byte_anywhere_in_a_frame_is_an_error_or_changes_nothing() {
    let [(wal, first), _] = two_frames(&mut encoder(), &mut Made::default(), |_| {});
    let mut decoder = FrameDecoder::new();
    let mut wrong = Vec::new();
    for at in 0..first.len() {
        for bit in [0, 3, 7] {
            let mut flipped = first.clone();
            flipped[at] ^= 1 << bit;
            let mut cache = ImageCache::new(64);
            let mut back = Vec::new();
            match decoder.decode(&flipped, &mut cache, &mut Made::default(), &mut back) {
                Ok(_) if back != wal => wrong.push((at, bit)),
                Ok(_) => {}
                Err(_) => assert!(cache.is_empty() && back.is_empty(), "byte {at}: something is left"),
            }
        }
        assert!(decode(&mut decoder, &first[..at], &mut ImageCache::new(64), Made::default()).is_err());
    }
    assert_eq!(wrong, []);
}

#[test]
fn a_page_of_another_base_is_named() {
    let [(_, first), _] = two_frames(&mut encoder(), &mut Made::default(), |_| {});
    let other = Made { other: Some(4), ..Made::default() };
    let error = decode(&mut FrameDecoder::new(), &first, &mut ImageCache::new(64), other).unwrap_err();
    assert!(matches!(error, DeltaError::WrongPage { block: found, .. } if found == block(4)), "{error}");
    let rotten = Made { unlike_its_hash: Some(5), ..Made::default() };
    let error = decode(&mut FrameDecoder::new(), &first, &mut ImageCache::new(64), rotten).unwrap_err();
    assert!(matches!(error, DeltaError::WrongPage { block: found, .. } if found == block(5)), "{error}");
}

#[test]
fn missing_pages_are_all_named_and_can_be_listed_before() {
    let [(wal, first), _] = two_frames(&mut encoder(), &mut Made::default(), |_| {});
    let mut decoder = FrameDecoder::new();
    let error = decode(&mut decoder, &first, &mut ImageCache::new(64), NoBase).unwrap_err();
    let DeltaError::MissingPages(missing) = error else { panic!("{error}") };
    let listed = decoder.references(&first).unwrap();
    let of_base: Vec<_> =
        listed.iter().filter(|reference| matches!(reference.origin, Origin::Base { .. })).collect();
    assert_eq!(
        missing.iter().map(|page| page.block).collect::<Vec<_>>(),
        (0..10).map(block).collect::<Vec<_>>()
    );
    assert_eq!(
        of_base.iter().map(|reference| reference.block).collect::<Vec<_>>(),
        (0..10).map(block).collect::<Vec<_>>()
    );
    assert_eq!(missing[3].lsn, of_base[3].lsn);
    // Once they are there, the same decoder goes on.
    let decoded = decode(&mut decoder, &first, &mut ImageCache::new(64), Made::default()).unwrap();
    assert_eq!(decoded, wal);
}

#[test]
fn missing_pages_are_named_before_an_image_that_is_not_there() {
    let mut encoder = encoder();
    let mut synth = Synth::new(WalVersion::V15, mib(1), SystemId(7), TimelineId(1), START);
    let frames = [&[0u32][..], &[0, 1, 2]].map(|numbers| {
        for number in numbers {
            synth.record(0, 0xB0, 0, &image_body(*number, &made_page(*number), 0, 2));
        }
        encoder.feed(&synth.take());
        match encoder.flush_frame(&mut Made::default()).unwrap().body {
            FrameBody::Delta(bytes, _) => bytes,
            FrameBody::Plain(_, surprise) => panic!("plain: {surprise:?}"),
        }
    });
    let (mut decoder, mut cache) = (FrameDecoder::new(), ImageCache::new(64));
    let without = Made { without: Some(2), ..Made::default() };
    let error = decode(&mut decoder, &frames[1], &mut cache, without).unwrap_err();
    let DeltaError::MissingPages(missing) = error else { panic!("{error}") };
    assert_eq!(missing.iter().map(|page| page.block).collect::<Vec<_>>(), [block(2)]);
    let error = decode(&mut decoder, &frames[1], &mut cache, Made::default()).unwrap_err();
    assert!(matches!(error, DeltaError::MissingImage { block: found, .. } if found == block(0)), "{error}");
}

#[test]
fn an_image_that_is_not_in_the_cache_is_named() {
    let [(_, first), (wal, second)] = two_frames(&mut encoder(), &mut Made::default(), |_| {});
    let mut decoder = FrameDecoder::new();
    let error = decode(&mut decoder, &second, &mut ImageCache::new(64), Made::default()).unwrap_err();
    assert!(matches!(error, DeltaError::MissingImage { block: found, .. } if found == block(0)), "{error}");
    let listed = decoder.references(&second).unwrap();
    let first_lsns: Vec<Lsn> =
        decoder.references(&first).unwrap().iter().map(|reference| reference.lsn).collect();
    let wanted: Vec<Lsn> = listed
        .iter()
        .map(|reference| match reference.origin {
            Origin::Image { lsn } => lsn,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(wanted, first_lsns);
    let mut cache = ImageCache::new(64);
    decode(&mut decoder, &first, &mut cache, Made::default()).unwrap();
    assert_eq!(decode(&mut decoder, &second, &mut cache, Made::default()).unwrap(), wal);
}

#[test]
fn a_decoder_refuses_a_rotten_image() {
    let [(_, first), (_, second)] = two_frames(&mut encoder(), &mut Made::default(), |_| {});
    // Without checks nobody can say that it rotted, but what comes of it is refused as well.
    for (mut cache, named) in [(ImageCache::new(64), true), (bed::decoding_cache(64), false)] {
        let mut decoder = FrameDecoder::new();
        decode(&mut decoder, &first, &mut cache, Made::default()).unwrap();
        cache.rot(&block(7), 8000);
        let error = decode(&mut decoder, &second, &mut cache, Made::default()).unwrap_err();
        match error {
            DeltaError::RottenImage { block: found, .. } if named => assert_eq!(found, block(7)),
            DeltaError::Differs { .. } if !named => {}
            error => panic!("{error}"),
        }
    }
}

#[test]
#[should_panic(expected = "an encoder goes on with a cache for decoding")]
fn an_encoder_does_not_go_on_with_a_cache_that_has_no_checks() {
    let _ = Encoder::resume(bed::options(mib(1)), START, bed::decoding_cache(64));
}

#[test]
fn an_encoder_does_not_build_on_a_rotten_image() {
    let mut encoder = encoder();
    let frames =
        two_frames(&mut encoder, &mut Made::default(), |encoder| encoder.cache_mut().rot(&block(7), 8000));
    let (mut decoder, mut cache) = (FrameDecoder::new(), ImageCache::new(64));
    for (wal, frame) in &frames {
        assert_eq!(&decode(&mut decoder, frame, &mut cache, Made::default()).unwrap(), wal);
    }
    let listed = decoder.references(&frames[1].1).unwrap();
    assert!(matches!(listed[7].origin, Origin::Base { .. }), "{:?}", listed[7]);
    assert!(matches!(listed[6].origin, Origin::Image { .. }));
    assert_eq!(blocks(encoder.cache()), blocks(&cache));
}

#[test]
fn an_encoder_does_not_build_on_a_page_that_nothing_vouches_for() {
    let mut options = bed::options(mib(1));
    options.verify = Verify::Decode;
    let mut rotten = Made { unlike_its_hash: Some(5), without: Some(6), ..Made::default() };
    let [(wal, first), _] = two_frames(&mut Encoder::new(options, START), &mut rotten, |_| {});
    let mut decoder = FrameDecoder::new();
    let listed = decoder.references(&first).unwrap();
    assert_eq!([listed[5].origin, listed[6].origin], [Origin::Alone; 2]);
    assert!(matches!(listed[4].origin, Origin::Base { .. }));
    let decoded = decode(&mut decoder, &first, &mut ImageCache::new(64), Made::default()).unwrap();
    assert_eq!(decoded, wal);
}

/// A page that is made empty and has rows, and after that the image of it, in two frames; `between` changes the encoder's cache.
fn rows_and_their_image(between: impl FnOnce(&mut ImageCache)) -> [(Vec<u8>, Vec<u8>); 2] {
    let mut synth = Synth::new(WalVersion::V15, mib(1), SystemId(7), TimelineId(1), START);
    let mut page = [0; 8192];
    page[12..20].copy_from_slice(&[104, 0, 112, 14, 0, 32, 4, 32]);
    for line in 1..=20u16 {
        let row = blake3::hash(&line.to_le_bytes()).to_hex();
        let data =
            [&[2, 0, 2, 8, 24, 0][..], row.as_bytes(), row.as_bytes(), row.as_bytes(), &[9; 23]].concat();
        let flags = if line == 1 { 0x60 } else { 0x20 };
        let mut body = vec![0, flags];
        body.extend((data.len() as u16).to_le_bytes());
        [1663u32, 5, 16384, 5000].iter().for_each(|number| body.extend(number.to_le_bytes()));
        body.extend([255, 3]);
        body.extend(&data);
        body.extend(line.to_le_bytes());
        body.push(0);
        synth.record(10, if line == 1 { 0x80 } else { 0 }, 800, &body);
        let at = 8192 - 240 * usize::from(line);
        page[at..at + 4].copy_from_slice(&800u32.to_le_bytes());
        page[at + 14..at + 18].copy_from_slice(&[0x88, 0x13, line as u8, 0]);
        page[at + 18..at + 18 + data.len()].copy_from_slice(&data);
        let pointer = at as u32 | 1 << 15 | (18 + data.len() as u32) << 17;
        page[20 + 4 * usize::from(line)..][..4].copy_from_slice(&pointer.to_le_bytes());
    }
    let first = synth.take();
    synth.record(0, 0xB0, 0, &image_body(5000, &page, 0, 2));
    let second = synth.take();
    let (mut encoder, mut between) = (encoder(), Some(between));
    [first, second].map(|wal| {
        encoder.feed(&wal);
        let frame = encoder.flush_frame(&mut NoBase).unwrap();
        if let Some(between) = between.take() {
            between(encoder.cache_mut());
        }
        match frame.body {
            FrameBody::Delta(bytes, _) => (wal, bytes),
            FrameBody::Plain(_, surprise) => panic!("plain: {surprise:?}"),
        }
    })
}

#[test]
fn the_image_of_a_page_that_was_filled_since_is_made_of_its_rows() {
    let [(_, first), (wal, second)] = rows_and_their_image(|_| {});
    let (mut decoder, mut cache) = (FrameDecoder::new(), ImageCache::new(4096));
    decode(&mut decoder, &first, &mut cache, NoBase).unwrap();
    assert_eq!(decode(&mut decoder, &second, &mut cache, NoBase).unwrap(), wal);
    assert!(second.len() < 400, "{} bytes for an image of known rows", second.len());
}

#[test]
fn changes_that_rotted_are_not_built_on() {
    let [(_, first), (wal, second)] = rows_and_their_image(|_| {});
    let (mut decoder, mut cache) = (FrameDecoder::new(), ImageCache::new(4096));
    decode(&mut decoder, &first, &mut cache, NoBase).unwrap();
    // In the first change's row.
    cache.rot_changes(150);
    let error = decode(&mut decoder, &second, &mut cache, NoBase).unwrap_err();
    assert!(matches!(error, DeltaError::RottenImage { block: found, .. } if found == block(5000)), "{error}");
    // The encoder makes the image of nothing.
    let [_, (_, alone)] = rows_and_their_image(|cache| cache.rot_changes(150));
    assert_eq!(decode(&mut decoder, &alone, &mut ImageCache::new(4), NoBase).unwrap(), wal);
    assert!(alone.len() > 1000);
}

/// Memory of which only the first bytes have room.
#[derive(Debug)]
struct Cramped(usize);

impl Scratch for Cramped {
    fn memory(&self, len: usize) -> io::Result<Box<dyn Memory>> {
        Anonymous.memory(len.min(self.0))
    }
}

#[test]
fn without_room_for_pages_frames_are_plain_and_nothing_refers_to_what_is_lost() {
    // Room for five pages of ten, and for changes of theirs.
    let cramped = || ImageCache::within(&Cramped(5 * 8192), 64).unwrap();
    let mut small = Encoder::resume(bed::options(mib(1)), START, cramped());
    let mut synth = Synth::new(WalVersion::V15, mib(1), SystemId(7), TimelineId(1), START);
    let mut feed = |encoder: &mut Encoder| {
        for number in 0..10u32 {
            synth.record(0, 0xB0, 0, &image_body(number, &made_page(number), 0, 2));
        }
        let wal = synth.take();
        encoder.feed(&wal);
        (wal, encoder.flush_frame(&mut Made::default()).unwrap().body)
    };
    let (wal, first) = feed(&mut small);
    let FrameBody::Delta(first, _) = first else { panic!("it needs no room for later ones") };
    assert!(small.is_broken() && small.cache().is_empty());
    assert!(matches!(feed(&mut small).1, FrameBody::Plain(_, Surprise::NoRoom)));
    assert!(small.base_blocks().is_empty());

    // A decoder says so, and keeps nothing; one with room gives the WAL.
    let mut decoder = FrameDecoder::new();
    let mut cache = cramped();
    let error = decode(&mut decoder, &first, &mut cache, Made::default()).unwrap_err();
    assert!(matches!(error, DeltaError::NoRoom { .. }) && cache.is_empty(), "{error}");
    assert_eq!(decode(&mut decoder, &first, &mut ImageCache::new(64), Made::default()).unwrap(), wal);
}

#[test]
fn records_are_read_without_a_base_and_without_the_frames_before() {
    let [_, (wal, second)] = two_frames(&mut encoder(), &mut Made::default(), |_| {});
    let mut decoder = FrameDecoder::new();
    let mut hollow = Vec::new();
    let range = decoder.decode_records(&second, &mut Window::default(), &mut hollow).unwrap();
    assert_eq!((hollow.len(), range.len()), (wal.len(), wal.len() as u64));
    assert_ne!(hollow, wal, "images are not there");

    // The same records, whose checksums fit: all but the images.
    let (of_wal, of_hollow) = (records(range.start, &wal), records(range.start, &hollow));
    assert_eq!(of_wal.failed, of_hollow.failed);
    assert!(of_wal.all.len() >= 20, "{}", of_wal.all.len());
    assert_eq!(of_wal.all, of_hollow.all);
}

/// The records of the WAL from `start` on.
pub fn records(start: Lsn, wal: &[u8]) -> Records {
    let mut records = Records::default();
    let mut scanner = Scanner::new(mib(1), start, DecodeFrom::Anywhere);
    scanner.feed(start, wal, &mut records);
    records
}

/// Records, but for the bytes of images and data of blocks: where they lie, their headers but for the checksum, main data.
#[derive(Default)]
pub struct Records {
    pub all: Vec<String>,
    pub failed: usize,
}

impl Sink for Records {
    fn begins(&mut self, _start: Lsn) {}

    fn record(&mut self, record: &RawRecord<'_>) {
        let header = RecordHeader { crc: 0, ..record.header };
        let fragments: Vec<String> = record.fragments().map(|fragment| format!("{fragment:?}")).collect();
        self.all.push(format!("{} {} {header:?} {fragments:?}", record.start, record.end));
    }

    fn unread(&mut self, _error: WalError) {
        self.failed += 1;
    }
}
