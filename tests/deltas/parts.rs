//! A part of an epoch, decoded by what it needs of the frames before it: the same bytes as by all of them, whatever was forgotten
//! meanwhile, and without the pages of others.

use crate::bed::{self, Made, image_body, mib};
use crate::splits::{block_header, split_to, tree_page, tuple};
use proptest::prelude::*;
use walden::base::{Lsn, SystemId, TimelineId};
use walden::delta::{
    DeltaError, Encoder, EncoderOptions, Frame, FrameBody, FrameDecoder, FrameTrace, FrameWants, ImageCache,
    NoBase, Tracer, Wants,
};
use walden::wal::{Synth, WalVersion};

const START: Lsn = Lsn::new(1 << 32);

#[derive(Debug, Clone)]
enum Step {
    /// The page of `block` with `tuples` tuples.
    Image { block: u32, first: usize, tuples: usize },
    /// A tuple is put at a line of `block`.
    Insert { block: u32, line: u16 },
    /// The tuples of `left` from a line on go to `right`, which is empty before: `tuples` of them, if they are as on an image.
    Split { left: u32, right: u32, line: u16, first: usize, tuples: usize },
    /// A frame ends.
    End,
}

fn step() -> impl Strategy<Value = Step> {
    let block = || 995u32..1007;
    prop_oneof![
        3 => (block(), 0usize..40, 20usize..120)
            .prop_map(|(block, first, tuples)| Step::Image { block, first, tuples }),
        12 => (block(), 1u16..60).prop_map(|(block, line)| Step::Insert { block, line }),
        1 => (block(), block(), 2u16..40, 0usize..60, 4usize..40)
            .prop_map(|(left, right, line, first, tuples)| Step::Split { left, right, line, first, tuples }),
        1 => Just(Step::End),
    ]
}

/// Frames of what `steps` write, and their WAL.
fn frames_of(options: EncoderOptions, version: WalVersion, steps: &[Step]) -> (Vec<Frame>, Vec<u8>) {
    let mut synth = Synth::new(version, mib(1), SystemId(7), TimelineId(1), START);
    let mut encoder = Encoder::new(options, START);
    let (mut frames, mut wal) = (Vec::new(), Vec::new());
    let apply = if version == WalVersion::V14 { 4 } else { 2 };
    for (number, step) in steps.iter().chain([&Step::End]).enumerate() {
        match step {
            Step::Image { block, first, tuples } => {
                let all: Vec<_> = (*first..first + tuples).map(tuple).collect();
                synth.record(0, 0xB0, 0, &image_body(*block, &tree_page(&all), 0, apply));
            }
            Step::Insert { block, line } => {
                let row = tuple(1000 + number);
                let head = block_header(0, 0x20, &row, *block);
                let body = [head, vec![255, 2], row.to_vec(), line.to_le_bytes().to_vec()].concat();
                synth.record(11, 0x00, 700, &body);
            }
            Step::Split { left, right, line, first, tuples } => {
                let moved: Vec<_> = (*first..first + tuples).map(tuple).collect();
                split_to(&mut synth, [*left, *right], 0x40, *line, &moved);
            }
            Step::End => {
                let bytes = synth.take();
                encoder.feed(&bytes);
                wal.extend(bytes);
                while let Some(frame) = encoder.flush_frame(&mut Made::default()) {
                    frames.push(frame);
                }
            }
        }
    }
    (frames, wal)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn any_part_is_the_same_as_when_everything_before_is_decoded(
        version in prop::sample::select(WalVersion::ALL.to_vec()),
        steps in prop::collection::vec(step(), 50..500),
        cache_pages_max in prop::sample::select(vec![0usize, 1, 2, 3, 5, 8, 40]),
        parts in prop::collection::vec((any::<prop::sample::Index>(), 1usize..4), 4),
    ) {
        let options = EncoderOptions { cache_pages_max, ..bed::options(mib(1)) };
        let (frames, wal) = frames_of(options, version, &steps);
        bed::come_back(options, frames.clone(), START, &wal, &mut Made::default());
        for (from, count) in parts {
            let from = from.index(frames.len());
            let wanted = from..(from + count).min(frames.len());
            bed::parts_are_the_same(options, &frames, START, &wal, wanted, &mut Made::default());
        }
    }
}

/// Frames of an image of each of blocks 990 to 999, and of each again, which is near to the first; and their WAL.
fn images_twice() -> (Vec<Frame>, Vec<u8>) {
    let image =
        |number: usize| Step::Image { block: 990 + number as u32 % 10, first: 3, tuples: 60 + number / 10 };
    let steps: Vec<Step> = (0..20).flat_map(|number| [image(number), Step::End]).collect();
    frames_of(bed::options(mib(1)), WalVersion::V16, &steps)
}

/// The traces of `frames`, and what is wanted of each for the last one.
fn wanted_for_the_last(frames: &[Frame]) -> Vec<(Vec<u8>, FrameTrace, Option<FrameWants>)> {
    let mut tracer = Tracer::new(4096);
    let mut traces: Vec<_> = frames
        .iter()
        .map(|frame| {
            let FrameBody::Delta(bytes, _) = &frame.body else { panic!("{frame:?}") };
            (bytes.clone(), tracer.frame(bytes).unwrap().1, None)
        })
        .collect();
    let (mut wants, last) = (Wants::none(4096), frames.len() - 1);
    for (number, (_, trace, found)) in traces.iter_mut().enumerate().rev() {
        *found = if number == last { Some(wants.whole(trace)) } else { wants.part(trace) };
    }
    traces
}

#[test]
fn what_a_part_does_not_need_is_not_decoded() {
    let (frames, wal) = images_twice();
    for number in 0..frames.len() {
        let options = bed::options(mib(1));
        let wanted = number..number + 1;
        let decoded = bed::parts_are_the_same(options, &frames, START, &wal, wanted, &mut Made::default());
        assert_eq!(decoded, number / 10, "frame {number}");
    }
}

#[test]
fn pages_of_the_base_are_wanted_for_what_is_decoded_alone() {
    let (frames, _) = images_twice();
    let traced = wanted_for_the_last(&frames);
    let wanted: Vec<_> =
        traced.iter().filter_map(|(bytes, trace, wants)| Some((bytes, trace, wants.as_ref()?))).collect();
    let blocks: Vec<u32> = wanted
        .iter()
        .flat_map(|(_, trace, wants)| wants.base_blocks(trace))
        .map(|block| block.block)
        .collect();
    assert_eq!((wanted.len(), blocks), (2, vec![999]));
    // It is missed where it is not there.
    let (bytes, trace, wants) = wanted[0];
    let mut cache = ImageCache::new(4096);
    let missing = FrameDecoder::new().pages(bytes, (trace, wants), &mut cache, &mut NoBase);
    assert!(matches!(missing, Err(DeltaError::MissingPages(pages)) if pages[0].block.block == 999));
}

#[test]
fn a_part_that_comes_out_wrong_is_refused() {
    let (frames, _) = images_twice();
    let (mut decoder, mut cache, mut back) = (FrameDecoder::new(), ImageCache::new(4096), vec![1]);
    let traced = wanted_for_the_last(&frames);
    let (last, before) = traced.split_last().unwrap();
    for (bytes, trace, wants) in before {
        match wants {
            Some(wants) => decoder.pages(bytes, (trace, wants), &mut cache, &mut Made::default()).unwrap(),
            None => decoder.pass_over(bytes, &mut cache).unwrap(),
        };
    }
    let block = *cache.blocks().next().unwrap();
    assert_eq!((block.block, cache.len()), (999, 1));
    let wants = last.2.as_ref().unwrap();
    let mut decode = |cache: &mut ImageCache, back: &mut Vec<u8>| {
        decoder.decode_wanted(&last.0, (&last.1, wants), cache, &mut NoBase, back)
    };
    cache.rot(&block, 8100);
    let rotten = decode(&mut cache, &mut back);
    assert!(
        matches!(rotten, Err(DeltaError::RottenImage { block: found, .. }) if found == block),
        "{rotten:?}"
    );
    assert!(back.is_empty());
    cache.rot(&block, 8100);
    assert_eq!(decode(&mut cache, &mut back), Ok(frames[frames.len() - 1].range));
}

#[test]
fn what_a_split_found_stays_when_it_is_forgotten_though_the_new_page_is_not_wanted() {
    let (left, right, other) = (995, 996, 997);
    let first = Step::Image { block: left, first: 0, tuples: 60 };
    // These tuples are 1002 and so on, by their numbers among the steps.
    let inserts = (0..30).map(|number| Step::Insert { block: left, line: 2 + number });
    let split = Step::Split { left, right, line: 62, first: 30, tuples: 30 };
    let others = (0..650).map(|number| Step::Insert { block: other, line: 2 + number % 100 });
    let again = Step::Image { block: left, first: 1002, tuples: 30 };
    let mut steps = vec![first, Step::End];
    steps.extend(inserts);
    steps.extend([Step::End, split, Step::End, Step::Image { block: other, first: 0, tuples: 2 }]);
    steps.extend(others);
    steps.extend([Step::End, again]);
    // A ring of 40 KiB, which the others fill.
    let options = EncoderOptions { cache_pages_max: 40, ..bed::options(mib(1)) };
    let (frames, wal) = frames_of(options, WalVersion::V17, &steps);
    let last = frames.len() - 1..frames.len();
    let decoded = bed::parts_are_the_same(options, &frames, START, &wal, last, &mut Made::default());
    assert_eq!((frames.len(), decoded), (5, 3));
}
