//! Records found in pages, however the bytes are cut.

use super::*;
use crate::base::Timestamp;
use crate::wal::{Decoder, Fact, Record, Synth};

const MIB: u64 = 1 << 20;

fn synth(version: WalVersion, start: u64) -> Synth {
    let size = SegmentSize::new(MIB).unwrap();
    Synth::new(version, size, SystemId(7), TimelineId(1), Lsn::new(start))
}

fn decode_all(bytes: &[u8], start: Lsn, from: DecodeFrom, piece: usize) -> (Vec<Record>, Vec<WalError>) {
    let mut decoder = Decoder::new(SegmentSize::new(MIB).unwrap(), start, from);
    let (mut records, mut errors) = (Vec::new(), Vec::new());
    for chunk in bytes.chunks(piece) {
        decoder.feed(decoder.position(), chunk);
        loop {
            match decoder.next() {
                Ok(Some(record)) => records.push(record),
                Ok(None) => break,
                Err(error) => errors.push(error),
            }
        }
    }
    (records, errors)
}

fn spans(records: &[Record]) -> Vec<(Lsn, Lsn)> {
    records.iter().map(|record| (record.start, record.end)).collect()
}

/// Records of every interesting length, over pages and segments, with switches.
fn varied(version: WalVersion) -> (Vec<u8>, Vec<(Lsn, Lsn)>) {
    let mut synth = synth(version, MIB);
    let mut made = Vec::new();
    for len in (24..300).chain([8000, 8152, 8168, 20_000, 70_000, 65_536, 100_000]) {
        made.push(synth.noise(len));
    }
    made.push(synth.switch());
    made.push(synth.noise(3 << 20));
    made.push(synth.page_image(9, 4));
    made.push(synth.switch());
    made.push(synth.switch());
    made.push(synth.noise(24));
    let made = made.iter().map(|made| (made.start, made.end)).collect();
    (synth.take(), made)
}

#[test]
fn finds_every_record_whatever_the_pieces() {
    for version in WalVersion::ALL {
        let (bytes, made) = varied(version);
        for piece in [bytes.len(), 1 << 17, 8192, 4096 + 8, 31] {
            let (records, errors) = decode_all(&bytes, Lsn::new(MIB), DecodeFrom::Anywhere, piece);
            assert_eq!(errors, []);
            assert_eq!(spans(&records), made, "pieces of {piece}");
        }
    }
}

#[test]
fn byte_by_byte_too() {
    let mut synth = synth(WalVersion::V18, MIB);
    let made = [synth.noise(9000), synth.commit(3, Timestamp::from_micros(5)), synth.noise(40)];
    let (records, errors) = decode_all(&synth.take(), Lsn::new(MIB), DecodeFrom::Anywhere, 1);
    assert_eq!(errors, []);
    assert_eq!(spans(&records), made.map(|made| (made.start, made.end)));
}

#[test]
fn starts_at_any_byte_and_says_what_it_missed() {
    let (bytes, made) = varied(WalVersion::V16);
    for skip in (0..bytes.len()).step_by(4099) {
        let start = Lsn::new(MIB + skip as u64);
        let (records, errors) = decode_all(&bytes[skip..], start, DecodeFrom::Anywhere, 1 << 16);
        let found = spans(&records);
        assert!(made.ends_with(&found), "from {start}");
        let to_page_end = skip.next_multiple_of(8192).min(bytes.len());
        let in_zeros = bytes[skip..to_page_end].iter().all(|byte| *byte == 0);
        // Nothing is passed over silently; at the start of a page, and in the zeros after a switch, nothing is missed.
        let switches = |end: Lsn| end.align_down(MIB) == end;
        let missed =
            !in_zeros || made.iter().any(|(begin, end)| *begin < start && *end > start && !switches(*end));
        assert_eq!(!errors.is_empty(), missed, "from {start}: {errors:?}");
        assert!(errors.len() <= 2);
    }
}

#[test]
fn starts_at_any_record() {
    let (bytes, made) = varied(WalVersion::V14);
    for (at, (start, _)) in made.iter().enumerate().step_by(7) {
        let from = DecodeFrom::RecordStart(WalVersion::V14);
        let (records, errors) =
            decode_all(&bytes[start.bytes_since(Lsn::new(MIB)) as usize..], *start, from, 999);
        assert_eq!(errors, []);
        assert_eq!(spans(&records), made[at..]);
    }
}

#[test]
fn drops_what_was_overwritten() {
    for (len, written) in [(9000, 1), (20_000, 9000), (3 << 20, 1 << 20), (3 << 20, (1 << 20) + 1)] {
        let mut synth = synth(WalVersion::V17, MIB);
        let before = synth.noise(3000);
        let torn = synth.next_record_start();
        let after = synth.overwritten(len, written, Timestamp::from_micros(1));
        let last = synth.noise(100);
        let (records, errors) = decode_all(&synth.take(), Lsn::new(MIB), DecodeFrom::Anywhere, 5000);
        assert_eq!(errors, []);
        assert_eq!(spans(&records), [before, after, last].map(|made| (made.start, made.end)));
        assert_eq!(Fact::of(&records[1]), Ok(Some(Fact::Overwritten { lsn: torn })));
    }
}

#[test]
fn follows_a_new_timeline_and_refuses_an_older_one() {
    let mut synth = synth(WalVersion::V15, MIB);
    synth.noise(20_000);
    synth.switch_timeline(TimelineId(4), Timestamp::from_micros(1));
    synth.noise(20_000);
    let bytes = synth.take();
    let mut decoder = Decoder::new(SegmentSize::new(MIB).unwrap(), Lsn::new(MIB), DecodeFrom::Anywhere);
    decoder.feed(Lsn::new(MIB), &bytes[..16_384]);
    assert_eq!((decoder.timeline(), decoder.system_id()), (Some(TimelineId(1)), Some(SystemId(7))));
    decoder.feed(decoder.position(), &bytes[16_384..]);
    assert_eq!(decoder.timeline(), Some(TimelineId(4)));
    assert!((0..3).all(|_| decoder.next().unwrap().is_some()));
    let mut older = bytes.clone();
    let last_page = (bytes.len() - 1) / 8192 * 8192;
    older[last_page + 4] = 3;
    assert_eq!(decode_all(&older, Lsn::new(MIB), DecodeFrom::Anywhere, 8192).1.len(), 1);
}

#[test]
fn goes_on_behind_damage() {
    let mut synth = synth(WalVersion::V18, MIB);
    let made = [64, 9000, 8168, 300, 70_000, 24, 31].map(|len| synth.noise(len));
    let made = made.map(|made| (made.start, made.end)).to_vec();
    let bytes = synth.take();
    for at in (40..bytes.len()).step_by(31) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x41;
        let (records, errors) = decode_all(&damaged, Lsn::new(MIB), DecodeFrom::Anywhere, 1 << 20);
        let found = spans(&records);
        let hit = Lsn::new(MIB + at as u64);
        let (before, after): (Vec<_>, Vec<_>) = found.iter().partition(|(start, _)| *start < hit);
        assert!(made.starts_with(&before) && made.ends_with(&after), "byte {at}");
        // What is not covered by any checksum: padding, a page's padding, and the zeros after a switch.
        assert!(!errors.is_empty() || found == made, "byte {at}");
        assert!(errors.len() <= 2, "byte {at}: {errors:?}");
    }
}

#[test]
fn a_record_of_another_record_is_damage() {
    // Valid by itself, but linked to nothing that stands before it.
    let (mut one, mut other) = (synth(WalVersion::V16, MIB), synth(WalVersion::V16, MIB));
    for _ in 0..4 {
        one.noise(64);
    }
    other.noise(128);
    let at = other.next_record_start().bytes_since(Lsn::new(MIB)) as usize;
    let mut bytes = one.take();
    other.noise(64);
    bytes[at..at + 64].copy_from_slice(&other.take()[at..]);
    let (records, errors) = decode_all(&bytes, Lsn::new(MIB), DecodeFrom::Anywhere, 8192);
    assert_eq!((records.len(), errors.len()), (2, 1), "{errors:?}");
}

#[test]
fn repeated_bytes_are_passed_over_and_jumps_are_told() {
    let (bytes, made) = varied(WalVersion::V15);
    let mut decoder = Decoder::new(SegmentSize::new(MIB).unwrap(), Lsn::new(MIB), DecodeFrom::Anywhere);
    decoder.feed(Lsn::new(MIB), &bytes[..10_000]);
    decoder.feed(Lsn::new(MIB), &bytes[..20_000]);
    decoder.feed(Lsn::new(MIB + 5), &bytes[5..100]);
    decoder.feed(Lsn::new(MIB + 40_000), &bytes[40_000..]);
    let (mut records, mut errors) = (Vec::new(), 0);
    loop {
        match decoder.next() {
            Ok(Some(record)) => records.push((record.start, record.end)),
            Ok(None) => break,
            Err(_) => errors += 1,
        }
    }
    assert_eq!(errors, 1);
    let jump = Lsn::new(MIB + 20_000);
    let (before, after): (Vec<_>, Vec<_>) = records.iter().partition(|(start, _)| *start < jump);
    assert!(made.starts_with(&before) && made.ends_with(&after) && !after.is_empty());
}

#[test]
fn crosses_segments_of_every_size() {
    for bits in 20..=30 {
        let size = SegmentSize::new(1 << bits).unwrap();
        let start = Lsn::new(5 * size.bytes() - 3 * 8192);
        let mut synth = Synth::new(WalVersion::V17, size, SystemId(7), TimelineId(1), start);
        let made = [30_000, 100, 8152, 24].map(|len| synth.noise(len));
        let mut decoder = Decoder::new(size, start, DecodeFrom::Anywhere);
        decoder.feed(start, &synth.take());
        for made in made {
            let record = decoder.next().unwrap().unwrap();
            assert_eq!((record.start, record.end), (made.start, made.end), "segments of 2^{bits} bytes");
        }
        assert_eq!(decoder.system_id(), Some(SystemId(7)));
        // The same bytes under another size are no WAL past the segment's end.
        let other = SegmentSize::new(1 << if bits == 20 { 21 } else { bits - 1 }).unwrap();
        let mut synth = Synth::new(WalVersion::V17, size, SystemId(7), TimelineId(1), start);
        synth.noise(30_000);
        let mut decoder = Decoder::new(other, start, DecodeFrom::Anywhere);
        decoder.feed(start, &synth.take());
        assert!(decoder.next().is_err());
    }
}
