//! Digits that repeat those of earlier frames: what is gained, what a frame then needs, and what it says when that is not there.

use crate::bed::{self, Made, mib};
use crate::faults::records;
use walden::base::{Lsn, SystemId, TimelineId};
use walden::delta::limits::{WINDOW_BYTES_MAX, WINDOW_WAL_BYTES};
use walden::delta::{
    DeltaError, Encoder, Frame, FrameBody, FrameDecoder, ImageCache, NoBase, Surprise, Window, sections,
};
use walden::format::Reader;
use walden::format::delta::{DeltaHead, SectionCodec, SectionKind};
use walden::format::record::Field;
use walden::wal::{Synth, WalVersion};

const START: Lsn = Lsn::new(1 << 32);
/// More identifiers than a frame has, and fewer than a window.
const POOL: u32 = 9000;

fn synth(start: Lsn) -> Synth {
    Synth::new(WalVersion::V17, mib(1), SystemId(7), TimelineId(1), start)
}

/// A row with an identifier of its own and one of `pool`.
fn row(synth: &mut Synth, number: u32, pool: u32) {
    let own = blake3::hash(&number.to_le_bytes()).to_hex();
    let known = blake3::hash(&(u64::from(number) * 7919 % u64::from(pool)).to_le_bytes()).to_hex();
    let row = format!("{number:08}-{}{}", &own[..32], &known[..32]);
    synth.main_record(10, 0, 9, row.as_bytes());
}

/// So many MiB and a half of rows with identifiers of `pool`.
fn rows(start: Lsn, mib: u64, pool: u32) -> Vec<u8> {
    let mut synth = synth(start);
    for number in 0.. {
        if synth.position().bytes_since(start) >= (mib << 20) + (1 << 19) {
            break;
        }
        row(&mut synth, number, pool);
    }
    synth.take()
}

fn encode(encoder: &mut Encoder, wal: &[u8]) -> Vec<Frame> {
    encoder.feed(wal);
    std::iter::from_fn(|| encoder.flush_frame(&mut NoBase)).collect()
}

fn encoder() -> Encoder {
    Encoder::new(bed::options(mib(1)), START)
}

fn delta(frame: &Frame) -> &[u8] {
    match &frame.body {
        FrameBody::Delta(bytes, _) => bytes,
        FrameBody::Plain(_, surprise) => panic!("plain: {surprise:?}"),
    }
}

/// How the digits of `frame` are stored, and how many bytes they take.
fn digits(frame: &Frame) -> (SectionCodec, u32) {
    let head = DeltaHead::get(&mut Reader::new("frame", delta(frame))).unwrap();
    let entry = &head.sections[SectionKind::Digits as usize];
    (entry.codec, entry.stored_len)
}

#[test]
fn identifiers_that_come_again_are_stored_once() {
    let wal = rows(START, 3, POOL);
    let outcome = bed::round_trip(bed::options(mib(1)), START, &wal, 100_000, 1000, &mut NoBase);
    let stored: Vec<(SectionCodec, u32)> = outcome.frames.iter().map(digits).collect();
    assert!(stored[0].0 != SectionCodec::Window, "nothing is before it: {stored:?}");
    for (codec, len) in &stored[1..3] {
        // Half of the digits come again.
        assert!(*codec == SectionCodec::Window && len * 10 < stored[0].1 * 7, "{stored:?}");
    }
}

#[test]
fn a_window_begins_anew_with_an_object_and_after_32_mib() {
    let mut encoder = encoder();
    let first = encode(&mut encoder, &rows(START, 2, POOL));
    let object = START.saturating_add(3 << 20);
    encoder.seek(object);
    let second = encode(&mut encoder, &rows(object, 2, POOL));
    let codecs = |frames: &[Frame]| frames.iter().map(|frame| digits(frame).0).collect::<Vec<_>>();
    for frames in [&first, &second] {
        let codecs = codecs(frames);
        assert!(codecs[0] != SectionCodec::Window && codecs[1] == SectionCodec::Window, "{codecs:?}");
    }
    // Its records need nothing of the object before.
    let (mut decoder, mut window) = (FrameDecoder::new(), Window::default());
    for frame in &second {
        decoder.decode_records(delta(frame), &mut window, &mut Vec::new()).unwrap();
    }

    let wal = rows(START, 36, POOL);
    let outcome = bed::round_trip(bed::options(mib(1)), START, &wal, 1 << 20, 1000, &mut NoBase);
    let alone: Vec<u64> = outcome
        .frames
        .iter()
        .filter(|frame| digits(frame).0 != SectionCodec::Window)
        .map(|frame| frame.range.start.bytes_since(START))
        .collect();
    assert_eq!((alone.len(), alone[0]), (2, 0), "{alone:?}");
    let anew = WINDOW_WAL_BYTES..WINDOW_WAL_BYTES + (2 << 20);
    assert!(anew.contains(&alone[1]), "{alone:?}");
}

#[test]
fn identifiers_that_do_not_come_again_leave_every_frame_by_itself() {
    let wal = rows(START, 4, u32::MAX);
    let frames = encode(&mut encoder(), &wal);
    for frame in &frames {
        assert_ne!(digits(frame).0, SectionCodec::Window);
        let mut alone = Vec::new();
        FrameDecoder::new().decode_records(delta(frame), &mut Window::default(), &mut alone).unwrap();
        let from = frame.range.start.bytes_since(START) as usize;
        assert_eq!(alone, wal[from..from + alone.len()]);
    }
}

#[test]
fn identifiers_that_come_again_after_long_are_found_soon() {
    let mut synth = synth(START);
    // Each once, in nine frames, then some of few.
    for number in 0..80_000 {
        row(&mut synth, number, u32::MAX);
    }
    let anew = synth.position();
    for number in 0..120_000 {
        row(&mut synth, number, POOL);
    }
    let wal = synth.take();
    let outcome = bed::round_trip(bed::options(mib(1)), START, &wal, 100_000, 1000, &mut NoBase);
    let windows = |frames: &[Frame]| {
        frames.iter().map(|frame| digits(frame).0 == SectionCodec::Window).collect::<Vec<_>>()
    };
    let before = outcome.frames.partition_point(|frame| frame.range.start < anew);
    let (alone, again) = outcome.frames.split_at(before);
    assert!(alone.len() >= 8 && windows(alone).iter().all(|window| !window), "{:?}", windows(alone));
    let again = windows(again);
    let first = again.iter().position(|window| *window).unwrap();
    assert!(again.len() > 8 && first <= 8 && again[first..].iter().all(|window| *window), "{again:?}");
}

#[test]
fn a_frame_whose_window_is_not_there_says_from_where_on_and_leaves_nothing() {
    let wal = rows(START, 2, POOL);
    let frames = encode(&mut encoder(), &wal);
    let (mut decoder, mut cache, mut back) = (FrameDecoder::new(), ImageCache::new(64), vec![1]);
    let mut decode = |frame: &Frame, cache: &mut ImageCache| {
        decoder.decode(delta(frame), cache, &mut Made::default(), &mut back).map(|_| back.clone())
    };
    let error = decode(&frames[1], &mut cache).unwrap_err();
    let expected = DeltaError::WrongWindow { range: frames[1].range, from: START };
    assert_eq!(error, expected);
    assert!(error.to_string().contains(&START.to_string()), "{error}");
    // It goes on with what is missing, and failed frames have not been counted.
    decode(&frames[0], &mut cache).unwrap();
    let from = frames[1].range.start.bytes_since(START) as usize;
    let found = decode(&frames[1], &mut cache).unwrap();
    assert!(found == wal[from..from + found.len()]);
    // Once more: the window went on.
    assert_eq!(decode(&frames[1], &mut cache).unwrap_err(), expected);

    let mut hollow = vec![1];
    let error = FrameDecoder::new().decode_records(delta(&frames[1]), &mut Window::default(), &mut hollow);
    assert_eq!((error, hollow), (Err(expected), Vec::new()));
}

#[test]
fn records_at_any_place_need_the_digits_before_them_alone() {
    let wal = rows(START, 5, POOL);
    let frames = encode(&mut encoder(), &wal);
    for (number, frame) in frames.iter().enumerate() {
        let (mut decoder, mut window, mut found) = (FrameDecoder::new(), Window::default(), Vec::new());
        for before in &frames[..number] {
            assert_eq!(decoder.pass(delta(before), &mut window), Ok(before.range));
        }
        decoder.decode_records(delta(frame), &mut window, &mut found).unwrap();
        let from = frame.range.start.bytes_since(START) as usize;
        assert!(found == wal[from..from + found.len()], "frame {number}");
        assert!(!records(frame.range.start, &found).all.is_empty());
    }
}

#[test]
fn an_encoder_that_goes_on_with_what_was_decoded_makes_the_same_frames() {
    let wal = rows(START, 3, POOL);
    let (first, second) = wal.split_at(5 << 18);
    let mut encoder = encoder();
    let frames = encode(&mut encoder, first);
    encoder.seek(encoder.position());
    let expected = encode(&mut encoder, second);
    let (mut decoder, mut cache) = (FrameDecoder::new(), ImageCache::new(4096));
    for frame in &frames {
        decoder.decode(delta(frame), &mut cache, &mut NoBase, &mut Vec::new()).unwrap();
    }
    let mut resumed = Encoder::resume(bed::options(mib(1)), START.saturating_add(first.len() as u64), cache);
    let again = encode(&mut resumed, second);
    assert!(again.iter().map(digits).eq(expected.iter().map(digits)));
    assert!(again.iter().any(|frame| digits(frame).0 == SectionCodec::Window));
    // A new epoch in the memory of the old one does not know its digits.
    let mut cache = resumed.into_cache();
    cache.clear();
    let begun = encode(&mut Encoder::resume(bed::options(mib(1)), START, cache), first);
    assert!(begun.iter().zip(&frames).all(|(begun, frame)| delta(begun) == delta(frame)));
}

#[test]
fn plain_frames_add_nothing_to_a_window() {
    let mut encoder = encoder();
    let mut wal = rows(START, 1, POOL);
    // Not WAL at all, up to where it is again.
    let again = START.saturating_add(2 << 20);
    wal.resize(wal.len().next_multiple_of(8192) + 50_000, 0x5A);
    let mut frames = encode(&mut encoder, &wal);
    let (start, behind) = (encoder.position(), wal.len());
    wal.resize(again.bytes_since(START) as usize, 0x5A);
    assert!(start < again);
    frames.extend(encode(&mut encoder, &wal[behind..]));
    wal.extend(rows(again, 1, POOL));
    frames.extend(encode(&mut encoder, &wal[again.bytes_since(START) as usize..]));
    assert!(frames.iter().any(|frame| matches!(frame.body, FrameBody::Plain(..))));
    let deltas: Vec<&Frame> =
        frames.iter().filter(|frame| matches!(frame.body, FrameBody::Delta(..))).collect();
    assert!(digits(deltas.last().unwrap()).0 == SectionCodec::Window);
    let (mut decoder, mut cache, mut back) = (FrameDecoder::new(), ImageCache::new(4096), Vec::new());
    for frame in deltas {
        decoder.decode(delta(frame), &mut cache, &mut NoBase, &mut back).unwrap();
        let from = frame.range.start.bytes_since(START) as usize;
        assert!(back == wal[from..from + back.len()]);
    }
}

#[test]
fn a_frame_that_was_made_and_is_stored_plain_adds_nothing_to_a_window() {
    let mut encoder = encoder();
    let first = encode(&mut encoder, &rows(START, 1, POOL));
    let small = encoder.position();
    let mut synth = synth(small);
    for number in 0..4u32 {
        synth.main_record(10, 0, 9, &blake3::hash(&number.to_le_bytes()).to_hex().as_bytes()[..16]);
    }
    let plain = encode(&mut encoder, &synth.take());
    assert!(matches!(plain[..], [Frame { body: FrameBody::Plain(_, Surprise::NoGain), .. }]), "{plain:?}");
    for number in 0..9000 {
        row(&mut synth, number, POOL);
    }
    let last = encode(&mut encoder, &synth.take());
    assert_eq!(digits(&last[0]).0, SectionCodec::Window);
    let (mut decoder, mut cache) = (FrameDecoder::new(), ImageCache::new(4096));
    for frame in first.iter().chain(&last) {
        let decoded = decoder.decode(delta(frame), &mut cache, &mut NoBase, &mut Vec::new());
        assert_eq!(decoded, Ok(frame.range));
    }
}

#[test]
fn a_window_is_never_larger_than_its_bound() {
    // Nothing but digits: nearly half a MiB of them a frame.
    let mut synth = synth(START);
    let mut hasher = blake3::Hasher::new();
    while synth.position().bytes_since(START) < 11 << 19 {
        let mut digits = String::new();
        for _ in 0..64 {
            digits += hasher.update(b"more").finalize().to_hex().as_str();
        }
        synth.main_record(10, 0, 9, digits.as_bytes());
    }
    let wal = synth.take();
    let outcome = bed::round_trip(bed::options(mib(1)), START, &wal, 100_000, 1000, &mut NoBase);
    let mut window = Window::default();
    for frame in &outcome.frames {
        sections(delta(frame), &mut window).unwrap();
        let held = window.since(START).len();
        assert!((WINDOW_BYTES_MAX / 2..=WINDOW_BYTES_MAX).contains(&held), "{held} bytes");
    }
}

#[test]
fn a_flipped_byte_of_digits_with_a_window_is_an_error_or_changes_nothing() {
    let wal = rows(START, 2, POOL);
    let frames = encode(&mut encoder(), &wal);
    let (first, second) = (delta(&frames[0]), delta(&frames[1]));
    let stored = digits(&frames[1]).1 as usize;
    let from = frames[1].range.start.bytes_since(START) as usize;
    let right = &wal[from..from + frames[1].range.len() as usize];
    let mut decoder = FrameDecoder::new();
    // The digits are the last section but one, and that is short.
    for at in (second.len() - stored - 100..second.len()).step_by(97) {
        let mut cache = ImageCache::new(64);
        let mut back = Vec::new();
        decoder.decode(first, &mut cache, &mut NoBase, &mut back).unwrap();
        let mut flipped = second.to_vec();
        flipped[at] ^= 1 << (at % 8);
        match decoder.decode(&flipped, &mut cache, &mut NoBase, &mut back) {
            Ok(_) => assert!(back == right, "byte {at}"),
            Err(_) => {
                assert!(back.is_empty(), "byte {at}");
                // Nothing of it was kept.
                decoder.decode(second, &mut cache, &mut NoBase, &mut back).unwrap();
                assert!(back == right, "byte {at}");
            }
        }
    }
}
