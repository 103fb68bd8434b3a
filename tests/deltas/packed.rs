//! Images that PostgreSQL compressed: stored as any image is, packed again to the same bytes, and the references of later ones.

use crate::bed::{self, Made, made_page, mib};
use crate::packing;
use proptest::prelude::*;
use walden::base::{Lsn, SystemId, TimelineId};
use walden::delta::{
    DeltaError, Encoder, EncoderOptions, FrameBody, FrameDecoder, ImageCache, NoBase, Verify, Window,
};
use walden::wal::{Synth, WalVersion};

const START: Lsn = Lsn::new(1 << 32);

/// How an image is in the WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Plain,
    Pglz,
    PglzUnsigned,
    Lz4,
    /// LZ4 of another compressor: literals alone.
    OtherLz4,
    /// Flagged as by pglz, and not.
    Noise,
    Zstd,
}

const HOWS: [How; 7] =
    [How::Plain, How::Pglz, How::PglzUnsigned, How::Lz4, How::OtherLz4, How::Noise, How::Zstd];

/// A page that both compressors make something of, unlike those of the other blocks.
fn page_for(block: u32, changes: &[(usize, u8)]) -> Vec<u8> {
    let mut page = made_page(block).to_vec();
    page.copy_within(0..3000, 5000);
    changes.iter().for_each(|(at, byte)| page[*at] = *byte);
    page
}

/// The body of a record with an image of `block`.
fn body(version: WalVersion, block: u32, page: &[u8], hole: Option<(usize, usize)>, how: How) -> Vec<u8> {
    let plain = match hole {
        None => page.to_vec(),
        Some((offset, len)) => [&page[..offset], &page[offset + len..]].concat(),
    };
    let (mut image, method) = match how {
        How::Plain => (plain.clone(), 0),
        How::Pglz => (packing::pglz(&plain, false), 4),
        How::PglzUnsigned => (packing::pglz(&plain, true), 4),
        How::Lz4 => (packing::lz4(&plain), 8),
        How::OtherLz4 => {
            let rest = plain.len() - 15;
            let lens = [vec![0xF0], vec![255; rest / 255], vec![(rest % 255) as u8]].concat();
            ([&lens, &plain[..]].concat(), 8)
        }
        How::Noise => (blake3::hash(&plain).as_bytes().to_vec(), 4),
        How::Zstd => (zstd::bulk::compress(&plain, 3).unwrap(), 16),
    };
    // An image that does not get shorter comes as it is; 14 has no LZ4 and no zstd.
    let mut method = if version == WalVersion::V14 && method > 4 { 0 } else { method };
    if image.len() >= 8192 || method == 0 {
        (image, method) = (plain, 0);
    }
    let flags = match version {
        WalVersion::V14 => 4 | (method / 2),
        _ => 2 | method,
    };
    let mut body = vec![0, 0x10, 0, 0];
    body.extend((image.len() as u16).to_le_bytes());
    body.extend((hole.map_or(0, |(offset, _)| offset) as u16).to_le_bytes());
    body.push(flags | u8::from(hole.is_some()));
    if let (true, Some((_, len))) = (method != 0, hole) {
        body.extend((len as u16).to_le_bytes());
    }
    [1663u32, 5, 16384, block].iter().for_each(|number| body.extend(number.to_le_bytes()));
    body.extend(image);
    body
}

fn synth(version: WalVersion) -> Synth {
    Synth::new(version, mib(1), SystemId(7), TimelineId(1), START)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn any_packed_images_come_back(
        version in prop::sample::select(WalVersion::ALL.to_vec()),
        steps in prop::collection::vec(
            (
                980u32..1020,
                prop::sample::select(HOWS.to_vec()),
                prop::collection::vec((0usize..8192, any::<u8>()), 0..30),
                prop::option::of((24usize..4000, 1usize..4000)),
                0usize..3,
            ),
            1..60,
        ),
        piece in 500usize..50_000,
        flush in 1usize..30,
    ) {
        let mut synth = synth(version);
        for (block, how, changes, hole, inserts) in steps {
            synth.record(0, 0xB0, 0, &body(version, block, &page_for(block, &changes), hole, how));
            for _ in 0..inserts {
                synth.insert(700, block, 90);
            }
        }
        bed::round_trip(bed::options(mib(1)), START, &synth.take(), piece, flush, &mut Made::default());
    }
}

/// Three frames with images of block 3, as they are in the WAL, and the stored frames; each image is of another change.
fn three_frames(how: How) -> Vec<(Vec<u8>, Vec<u8>, walden::delta::FrameStats)> {
    let mut synth = synth(WalVersion::V16);
    let options = EncoderOptions { verify: Verify::Decode, ..bed::options(mib(1)) };
    let mut encoder = Encoder::new(options, START);
    (0..3u8)
        .map(|turn| {
            for block in 0..4 {
                let page = page_for(block, &[(700, turn), (1000, turn), (6000, turn)]);
                synth.record(0, 0xB0, 0, &body(WalVersion::V16, block, &page, Some((3300, 200)), how));
            }
            let wal = synth.take();
            encoder.feed(&wal);
            match encoder.flush_frame(&mut Made::default()).unwrap().body {
                FrameBody::Delta(frame, stats) => (wal, frame, *stats),
                FrameBody::Plain(_, surprise) => panic!("{how:?}: {surprise:?}"),
            }
        })
        .collect()
}

#[test]
fn packed_images_are_made_of_the_base_and_of_each_other() {
    for how in [How::Pglz, How::PglzUnsigned, How::Lz4] {
        for (turn, (_, frame, stats)) in three_frames(how).into_iter().enumerate() {
            assert_eq!((stats.images_compressed, stats.images_stored), (4, 0), "{how:?}");
            let of_base = if turn == 0 { 4 } else { 0 };
            assert_eq!((stats.images_base, stats.images_image), (of_base, 4 - of_base), "{how:?}");
            assert!(turn == 0 || frame.len() < 600, "{how:?}: {} bytes", frame.len());
        }
    }
}

#[test]
fn images_that_do_not_come_back_stay_as_they_came_and_are_no_references() {
    for how in [How::OtherLz4, How::Zstd] {
        for (_, frame, stats) in three_frames(how) {
            assert_eq!((stats.images_compressed, stats.images_stored), (4, 4), "{how:?}");
            assert_eq!((stats.images_base, stats.images_image), (0, 0), "{how:?}");
            assert!(frame.len() > 3000, "{how:?}: {} bytes", frame.len());
        }
    }
}

#[test]
fn a_base_page_that_is_another_is_named_though_it_packs_to_another_length() {
    let frames = three_frames(How::Pglz);
    let (mut cache, mut back) = (ImageCache::new(64), Vec::new());
    let mut other = Made { other: Some(3), ..Made::default() };
    let error = FrameDecoder::new().decode(&frames[0].1, &mut cache, &mut other, &mut back).unwrap_err();
    assert!(matches!(error, DeltaError::WrongPage { block, .. } if block.block == 3), "{error}");
    assert!(cache.is_empty() && back.is_empty());
}

#[test]
fn a_flipped_byte_in_a_frame_of_packed_images_is_an_error_or_changes_nothing() {
    for how in [How::Pglz, How::Lz4] {
        let frames = three_frames(how);
        let mut decoder = FrameDecoder::new();
        let mut back = Vec::new();
        let (wal, frame, _) = &frames[0];
        for at in (0..frame.len()).filter(|at| *at < 600 || at % 19 == 0) {
            let mut flipped = frame.clone();
            flipped[at] ^= 1 << (at % 8);
            let mut cache = ImageCache::new(64);
            match decoder.decode(&flipped, &mut cache, &mut Made::default(), &mut back) {
                Ok(_) => assert!(back == *wal, "{how:?}: byte {at}"),
                Err(_) => assert!(cache.is_empty() && back.is_empty(), "byte {at}: something is left"),
            }
        }
    }
}

#[test]
fn records_are_read_without_a_base_where_images_are_packed() {
    let frames = three_frames(How::Lz4);
    let (mut decoder, mut window, mut back) = (FrameDecoder::new(), Window::default(), Vec::new());
    for (wal, frame, _) in &frames {
        decoder.decode_records(frame, &mut window, &mut back).unwrap();
        assert_eq!(back.len(), wal.len());
        // Images and the checksum of a record are others; where records begin and end is not.
        let differ = back.iter().zip(wal).filter(|(a, b)| a != b).count();
        assert!(differ > 1000, "{differ} bytes");
        let error = decoder.decode(frame, &mut ImageCache::new(64), &mut NoBase, &mut Vec::new());
        assert!(
            matches!(error, Err(DeltaError::MissingPages(_) | DeltaError::MissingImage { .. })),
            "{error:?}"
        );
    }
}

#[test]
fn images_to_be_packed_are_bounded_and_the_rest_stays() {
    // Zeros in a hundredth of their length: a frame's worth of them would be many times what decoders take.
    let mut synth = synth(WalVersion::V16);
    for block in 0..1500 {
        synth.record(0, 0xB0, 0, &body(WalVersion::V16, 2000 + block, &[0; 8192], None, How::Lz4));
    }
    let wal = synth.take();
    let outcome = bed::round_trip(bed::options(mib(1)), START, &wal, wal.len(), 1, &mut Made::default());
    assert_eq!(outcome.surprises, []);
    assert_eq!((outcome.stats.images_compressed, outcome.stats.images_stored), (1500, 1500 - 1024));
}
