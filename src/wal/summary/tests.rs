//! Summaries of made-up WAL: what they say, and that how the WAL was cut changes nothing.

use super::*;
use crate::wal::Synth;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

fn size() -> SegmentSize {
    SegmentSize::new(MIB).unwrap()
}

fn at(micros: i64) -> Timestamp {
    Timestamp::from_micros(micros)
}

/// A megabyte or two in which the clock steps back, with everything that a summary holds.
fn varied(version: WalVersion, seed: u64) -> Vec<u8> {
    let mut synth = Synth::new(version, size(), SystemId(7), TimelineId(1), Lsn::new(MIB)).with_seed(seed);
    synth.checkpoint(at(0));
    for xid in 700..760 {
        synth.noise(30 + (xid as usize * 37 + seed as usize) % 30_000);
        synth.page_image(xid, 3);
        match xid % 10 {
            0 => synth.abort(xid, at(i64::from(xid))),
            1 => synth.restore_point(&format!("point {xid}"), at(1000)),
            2 => synth.overwritten(30_000, 9000, at(1)),
            3 => synth.commit(xid - 50, at(i64::from(xid) - 50)),
            _ => synth.commit(xid, at(i64::from(xid))),
        };
    }
    synth.switch();
    synth.switch_timeline(TimelineId(2), at(5));
    synth.noise(1 << 20);
    synth.commit(800, at(1));
    synth.take()
}

fn summary(bytes: &[u8], cuts: &[usize]) -> WalSummary {
    let mut summarizer = Summarizer::new(size(), Lsn::new(MIB), DecodeFrom::Anywhere);
    let (mut merged, mut from) = (WalSummary::empty(), 0);
    for cut in cuts.iter().copied().chain([bytes.len()]) {
        summarizer.feed(summarizer.position(), &bytes[from..cut]);
        merged.extend(&summarizer.take());
        from = cut;
    }
    merged
}

#[test]
fn says_what_the_wal_holds() {
    let mut synth = Synth::new(WalVersion::V17, size(), SystemId(7), TimelineId(1), Lsn::new(MIB));
    let checkpoint = synth.checkpoint(at(1_000_000));
    synth.commit(20, at(50));
    synth.abort(10, at(90));
    let point = synth.restore_point("before", at(60));
    let last = synth.commit(15, at(70));
    let bytes = synth.take();
    let summary = summary(&bytes, &[]);
    assert_eq!((summary.first_record, summary.last_record_end), (Some(checkpoint.start), Some(last.end)));
    assert_eq!((summary.finished_count, summary.commit_count), (3, 2));
    assert_eq!((summary.time_first, summary.time_last), (Some(at(50)), Some(at(70))));
    assert_eq!((summary.time_min, summary.time_max), (Some(at(50)), Some(at(90))));
    assert_eq!((summary.xid_min, summary.xid_max), (Some(10), Some(20)));
    assert_eq!((summary.unread_count, summary.unread_first), (0, None));
    let [first, second] = &summary.events[..] else { panic!("{:?}", summary.events) };
    assert_eq!(
        (first.kind, first.redo, first.time),
        (EventKind::CheckpointShutdown, checkpoint.start, at(1_000_000))
    );
    assert_eq!((second.kind, second.name.as_str(), second.time), (EventKind::RestorePoint, "before", at(60)));
    assert_eq!((second.lsn, second.end), (point.start, point.end));
}

#[test]
fn a_record_belongs_to_the_range_of_its_last_byte() {
    let mut synth = Synth::new(WalVersion::V15, size(), SystemId(7), TimelineId(1), Lsn::new(MIB));
    let noise = synth.noise(30_000);
    let commit = synth.commit(5, at(3));
    let bytes = synth.take();
    // A commit record has 34 bytes, and 6 of padding.
    let last_byte = commit.start.saturating_add(33).bytes_since(Lsn::new(MIB)) as usize;
    for (cut, in_first) in [(last_byte, false), (last_byte + 1, true)] {
        let mut summarizer = Summarizer::new(size(), Lsn::new(MIB), DecodeFrom::Anywhere);
        summarizer.feed(Lsn::new(MIB), &bytes[..cut]);
        let first = summarizer.take();
        summarizer.feed(summarizer.position(), &bytes[cut..]);
        let second = summarizer.take();
        assert_eq!((first.commit_count, second.commit_count), if in_first { (1, 0) } else { (0, 1) });
        assert_eq!(first.first_record, Some(noise.start));
        assert_eq!(second.first_record, None);
        assert_eq!(first.last_record_end, Some(if in_first { commit.end } else { noise.end }));
    }
}

#[test]
fn damage_is_counted_and_passed() {
    let bytes = varied(WalVersion::V18, 1);
    let whole = summary(&bytes, &[]);
    assert_eq!(whole.unread_count, 0);
    for hit in (100..bytes.len()).step_by(bytes.len() / 50) {
        let mut damaged = bytes.clone();
        damaged[hit..hit + 20].iter_mut().for_each(|byte| *byte ^= 0x55);
        let mut summarizer = Summarizer::new(size(), Lsn::new(MIB), DecodeFrom::Anywhere);
        summarizer.feed(Lsn::new(MIB), &damaged);
        let damaged = summarizer.take();
        assert!(damaged.commit_count <= whole.commit_count);
        if damaged.commit_count < whole.commit_count {
            assert!(damaged.unread_count > 0 && summarizer.take_error().is_some());
            assert!(damaged.unread_first.unwrap() <= Lsn::new(MIB + hit as u64).saturating_add(20));
        }
    }
}

#[test]
fn a_restart_with_an_overlap_loses_nothing() {
    let bytes = varied(WalVersion::V16, 2);
    for cut in (200_000..bytes.len()).step_by(50_021) {
        let mut merged = summary(&bytes[..cut], &[]);
        let overlap = cut.saturating_sub(MIB as usize).next_multiple_of(8192);
        let start = Lsn::new(MIB + overlap as u64);
        let mut again = Summarizer::new(size(), start, DecodeFrom::Anywhere);
        again.feed(start, &bytes[overlap..cut]);
        again.take();
        again.feed(again.position(), &bytes[cut..]);
        merged.extend(&again.take());
        let whole = summary(&bytes, &[]);
        assert_eq!(merged.commit_count + merged.unread_count, whole.commit_count + merged.unread_count);
        assert!(merged.unread_count == 0 || overlap > MIB as usize, "{cut}");
    }
}

#[test]
fn hostile_lengths_take_no_memory() {
    // A record that claims a gigabyte, and pages that continue it.
    let mut synth = Synth::new(WalVersion::V18, size(), SystemId(7), TimelineId(1), Lsn::new(MIB));
    synth.noise(24);
    let start = synth.next_record_start().bytes_since(Lsn::new(MIB)) as usize;
    synth.noise(20 << 20);
    let mut bytes = synth.take();
    let total = 1020u32 << 20;
    bytes[start..start + 4].copy_from_slice(&total.to_le_bytes());
    let mut got = (8192 - start % 8192) as u32;
    for page in (start.next_multiple_of(8192)..bytes.len()).step_by(8192) {
        bytes[page + 16..page + 20].copy_from_slice(&(total - got).to_le_bytes());
        got += 8192 - if page % MIB as usize == 0 { 40 } else { 24 };
    }
    let mut summarizer = Summarizer::new(size(), Lsn::new(MIB), DecodeFrom::Anywhere);
    summarizer.feed(Lsn::new(MIB), &bytes);
    assert_eq!(summarizer.take().unread_count, 0, "still waiting for its end");
    assert!(summarizer.scanner.gathered_bytes() <= 4 << 20);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn cuts_anywhere_give_the_same_summary(
        version in proptest::sample::select(WalVersion::ALL.to_vec()),
        seed in 0u64..1000,
        cuts in proptest::collection::vec(0f64..1.0, 0..40),
    ) {
        let bytes = varied(version, seed);
        let mut cuts: Vec<_> = cuts.iter().map(|cut| (cut * bytes.len() as f64) as usize).collect();
        cuts.sort_unstable();
        prop_assert_eq!(summary(&bytes, &cuts), summary(&bytes, &[]));
    }

    #[test]
    fn cuts_of_damaged_wal_give_the_same_summary(
        seed in 0u64..1000,
        flips in proptest::collection::vec((0f64..1.0, 1u8..), 1..20),
        cuts in proptest::collection::vec(0f64..1.0, 0..20),
    ) {
        let mut bytes = varied(WalVersion::V16, seed);
        for (at, mask) in flips {
            let at = (at * bytes.len() as f64) as usize;
            bytes[at] ^= mask;
        }
        let mut cuts: Vec<_> = cuts.iter().map(|cut| (cut * bytes.len() as f64) as usize).collect();
        cuts.sort_unstable();
        prop_assert_eq!(summary(&bytes, &cuts), summary(&bytes, &[]));
    }

    #[test]
    fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..20_000), at in 0u64..100_000) {
        let mut summarizer = Summarizer::new(size(), Lsn::new(at), DecodeFrom::RecordStart(WalVersion::V14));
        summarizer.feed(Lsn::new(at), &noise);
        summarizer.take();
    }
}
