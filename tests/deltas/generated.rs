//! Generated WAL: any mix of records, any place to begin, to cut and to damage.

use crate::bed::{self, Made, image_body, made_page, mib};
use proptest::prelude::*;
use walden::base::{Lsn, LsnRange, SystemId, TimelineId, Timestamp};
use walden::delta::{Encoder, Frame, FrameBody, Surprise};
use walden::wal::{Synth, WalVersion};

#[derive(Debug, Clone)]
enum Step {
    Noise(usize),
    Insert { xid: u32, block: u32, len: u16 },
    Commit { xid: u32, micros: i64 },
    Image { block: u32, changes: Vec<(usize, u8)>, hole: Option<(u16, u16)>, shift: usize },
    Switch,
    Overwritten(usize),
    Raw { rmgr: u8, info: u8, body: Vec<u8> },
    Timeline,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (24usize..3000).prop_map(Step::Noise),
        1 => (100_000usize..1_500_000).prop_map(Step::Noise),
        30 => (690u32..710, 0u32..1200, 20u16..300).prop_map(|(xid, block, len)| Step::Insert { xid, block, len }),
        10 => (690u32..710, any::<i64>()).prop_map(|(xid, micros)| Step::Commit { xid, micros }),
        20 => (
            0u32..1100,
            prop::collection::vec((0usize..8192, any::<u8>()), 0..60),
            prop::option::of((1u16..4000, 1u16..4000)),
            prop_oneof![Just(0usize), 1usize..200],
        )
            .prop_map(|(block, changes, hole, shift)| Step::Image { block, changes, hole, shift }),
        1 => Just(Step::Switch),
        1 => (9000usize..40_000).prop_map(Step::Overwritten),
        4 => (0u8..22, any::<u8>(), prop::collection::vec(any::<u8>(), 0..200))
            .prop_map(|(rmgr, info, body)| Step::Raw { rmgr, info, body }),
        1 => Just(Step::Timeline),
    ]
}

fn wal_of(version: WalVersion, start: Lsn, steps: &[Step]) -> Vec<u8> {
    let mut synth = Synth::new(version, mib(1), SystemId(7), TimelineId(1), start);
    let (mut timeline, apply) = (1, if version == WalVersion::V14 { 4 } else { 2 });
    for step in steps {
        match step {
            Step::Noise(len) => drop(synth.noise(*len)),
            Step::Insert { xid, block, len } => drop(synth.insert(*xid, *block, *len)),
            Step::Commit { xid, micros } => drop(synth.commit(*xid, Timestamp::from_micros(*micros))),
            Step::Image { block, changes, hole, shift } => {
                let mut page = made_page(*block);
                page.copy_within(0..8192 - shift, *shift);
                changes.iter().for_each(|(at, byte)| page[*at] = *byte);
                let body = match hole {
                    None => image_body(*block, &page, 0, apply),
                    Some((offset, len)) => {
                        let (before, after) = page.split_at(usize::from(*offset));
                        image_body(*block, &[before, &after[usize::from(*len)..]].concat(), *offset, apply)
                    }
                };
                synth.record(0, 0xB0, 0, &body);
            }
            Step::Switch => drop(synth.switch()),
            Step::Overwritten(len) => drop(synth.overwritten(*len, 100, Timestamp::from_micros(1))),
            Step::Raw { rmgr: 0, info, .. } if info & 0xF0 == 0x40 => {}
            Step::Raw { rmgr, info, body } => drop(synth.main_record(*rmgr, *info, 9, body)),
            Step::Timeline => {
                timeline += 1;
                synth.switch_timeline(TimelineId(timeline), Timestamp::from_micros(1));
            }
        }
    }
    synth.take()
}

fn version() -> impl Strategy<Value = WalVersion> {
    prop::sample::select(WalVersion::ALL.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_wal_comes_back(
        version in version(),
        offset in 0u64..3000,
        steps in prop::collection::vec(step(), 1..120),
        skip in 0usize..20_000,
        piece in prop_oneof![1000usize..20_000, Just(131_072usize)],
        flush in 1usize..200,
    ) {
        let start = Lsn::new((1 << 32) - 4096 + offset * 8);
        let wal = wal_of(version, start, &steps);
        let skip = skip.min(wal.len() - 1);
        bed::round_trip(bed::options(mib(1)), start.saturating_add(skip as u64), &wal[skip..], piece, flush, &mut Made::default());
    }

    #[test]
    fn damaged_wal_comes_back(
        version in version(),
        steps in prop::collection::vec(step(), 1..80),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let start = Lsn::new(1 << 32);
        let mut wal = wal_of(version, start, &steps);
        for (at, byte) in damage {
            let at = at.index(wal.len());
            wal[at] ^= byte;
        }
        bed::round_trip(bed::options(mib(1)), start, &wal, 50_000, 100, &mut Made::default());
    }
}

/// Frames of `wal`, fed in pieces, the blocks of each asked for so often before.
fn frames_asked(start: Lsn, wal: &[u8], piece: usize, times: usize) -> Vec<(LsnRange, Vec<u8>)> {
    let mut encoder = Encoder::new(bed::options(mib(1)), start);
    let mut frames = Vec::new();
    let mut take = |encoder: &mut Encoder, last: bool| loop {
        (0..times).for_each(|_| drop(encoder.base_blocks()));
        let frame = if last {
            encoder.flush_frame(&mut Made::default())
        } else {
            encoder.next_frame(&mut Made::default())
        };
        let Some(Frame { range, body: FrameBody::Plain(bytes, _) | FrameBody::Delta(bytes, _) }) = frame
        else {
            break;
        };
        frames.push((range, bytes));
    };
    for bytes in wal.chunks(piece) {
        encoder.feed(bytes);
        take(&mut encoder, false);
    }
    take(&mut encoder, true);
    frames
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn what_blocks_are_asked_for_changes_no_frame(
        version in version(),
        steps in prop::collection::vec(step(), 1..120),
        piece in 50_000usize..900_000,
        damage in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let start = Lsn::new(1 << 32);
        let mut wal = wal_of(version, start, &steps);
        if let Some((at, byte)) = damage {
            let at = at.index(wal.len());
            wal[at] ^= byte;
        }
        let frames = frames_asked(start, &wal, piece, 0);
        prop_assert!(frames == frames_asked(start, &wal, piece, 1) && frames == frames_asked(start, &wal, piece, 2));
    }
}

#[test]
fn whole_wal_makes_no_plain_frames_but_at_crashes() {
    let steps: Vec<Step> = (0..4000u32)
        .map(|turn| match turn % 5 {
            0 => Step::Image {
                block: turn % 900,
                changes: vec![(turn as usize, 1)],
                hole: Some((300, 1000)),
                shift: 0,
            },
            1 => Step::Commit { xid: turn, micros: i64::from(turn) * 999 },
            _ => Step::Insert { xid: turn, block: turn % 70, len: 100 + (turn % 9) as u16 },
        })
        .collect();
    for version in WalVersion::ALL {
        let wal = wal_of(version, Lsn::new(1 << 32), &steps);
        let outcome = bed::round_trip(
            bed::options(mib(1)),
            Lsn::new(1 << 32),
            &wal,
            131_072,
            usize::MAX,
            &mut Made::default(),
        );
        assert_eq!(outcome.surprises, [], "{version:?}");
        assert!(
            outcome.frames.len() > 3 && outcome.stats.images_base == 180 && outcome.stats.images_image == 620
        );
        // Tuples of the generator are noise; images and the rest nearly vanish.
        let noise: u64 = (0..4000u64).filter(|turn| turn % 5 > 1).map(|turn| 100 + turn % 9).sum();
        assert!(
            outcome.stats.stored < noise + noise / 8,
            "{} stored, {noise} of noise",
            outcome.stats.stored
        );
        let frames = outcome.frames.iter().rev().skip(1);
        assert!(frames.clone().all(|frame| frame.range.len() > 1 << 19), "frames of about 1 MiB");
    }
}

#[test]
fn a_record_over_many_frames_is_kept_and_reading_goes_on_behind_it() {
    let steps = [
        Step::Commit { xid: 3, micros: 5 },
        Step::Noise(5_300_000),
        Step::Commit { xid: 4, micros: 6 },
        Step::Image { block: 3, changes: vec![(9, 9)], hole: None, shift: 0 },
    ];
    let start = Lsn::new((1 << 32) + 8192);
    let wal = wal_of(WalVersion::V16, start, &steps);
    let outcome =
        bed::round_trip(bed::options(mib(1)), start, &wal, 131_072, usize::MAX, &mut Made::default());
    assert!(outcome.frames.len() >= 6);
    assert_eq!(outcome.stats.images_base, 1);
    // What is noise does not get smaller; page headers do.
    assert!(
        outcome.surprises.iter().all(|surprise| *surprise == Surprise::NoGain),
        "{:?}",
        outcome.surprises
    );
}

#[test]
fn an_image_refers_to_one_before_it_in_the_same_record_or_frame() {
    for version in WalVersion::ALL.iter() {
        let start = Lsn::new(1 << 32);
        let mut synth = Synth::new(*version, mib(1), SystemId(7), TimelineId(1), start);
        for turn in 0..6u8 {
            let mut pages = [made_page(1), made_page(1)];
            pages[0][100..140].fill(turn);
            pages[1][100..150].fill(turn + 1);
            // Two block references of one block, each with an image.
            let mut body = Vec::new();
            for id in 0..2u8 {
                let whole = image_body(1, &pages[0], 0, 0);
                body.push(id);
                body.extend(&whole[1..whole.len() - 8192]);
            }
            pages.iter().for_each(|page| body.extend(page));
            synth.record(0, 0xB0, 0, &body);
        }
        let wal = synth.take();
        let options = bed::options(mib(1));
        let outcome = bed::round_trip(options, start, &wal, wal.len(), 1, &mut Made::default());
        assert_eq!(outcome.surprises, []);
        assert_eq!((outcome.stats.images_base, outcome.stats.images_image), (1, 11));
    }
}

#[test]
fn zeros_after_a_switch_cost_nothing() {
    let steps = [Step::Commit { xid: 3, micros: 5 }, Step::Switch, Step::Commit { xid: 4, micros: 6 }];
    let start = Lsn::new(1 << 32);
    let wal = wal_of(WalVersion::V18, start, &steps);
    // Cut amid the zeros.
    let outcome = bed::round_trip(bed::options(mib(1)), start, &wal, 300_001, 1, &mut Made::default());
    assert_eq!(outcome.surprises, []);
    let lens = outcome.frames.iter().map(|frame| match &frame.body {
        FrameBody::Delta(bytes, _) => bytes.len(),
        FrameBody::Plain(raw, _) => raw.len(),
    });
    assert!(lens.sum::<usize>() < 3000 && wal.len() > 1 << 20);
}

#[test]
fn the_cache_forgets_alike_on_both_sides() {
    let steps: Vec<Step> = (0..3000u32)
        .map(|turn| Step::Image {
            block: 1000 + turn * turn % 97,
            changes: vec![(turn as usize, 1)],
            hole: None,
            shift: 0,
        })
        .collect();
    let (start, mut options) = (Lsn::new(1 << 32), bed::options(mib(1)));
    options.cache_pages_max = 40;
    let wal = wal_of(WalVersion::V15, start, &steps);
    let outcome = bed::round_trip(options, start, &wal, 131_072, usize::MAX, &mut Made::default());
    assert!(outcome.surprises.is_empty() && outcome.stats.images_image > 500);
}

#[test]
fn changes_are_forgotten_alike_on_both_sides() {
    // A history of 40 KiB under 4 MB of changes, some of blocks that are not in the cache.
    let steps: Vec<Step> = (0..24_000u32)
        .map(|turn| match turn % 32 {
            0 => Step::Image {
                block: 1000 + turn % 47,
                changes: vec![(turn as usize % 8192, 1)],
                hole: None,
                shift: 0,
            },
            _ => Step::Insert {
                xid: 700 + turn / 9,
                block: 1000 + turn * 7 % 50,
                len: 20 + (turn % 200) as u16,
            },
        })
        .collect();
    let (start, mut options) = (Lsn::new(1 << 32), bed::options(mib(1)));
    options.cache_pages_max = 40;
    for version in WalVersion::ALL {
        let wal = wal_of(version, start, &steps);
        let outcome = bed::round_trip(options, start, &wal, 131_072, 3, &mut Made::default());
        assert!(outcome.surprises.is_empty() && outcome.stats.images_image > 300, "{:?}", outcome.stats);
    }
}
