//! Encoding a run of WAL and decoding it again, each frame compared.

use crate::common::pages::PAGE_KEY;
use std::collections::BTreeSet;
use std::ops::Range;
use walden::base::{Anonymous, Lsn, SegmentSize};
use walden::delta::{
    BlockId, Encoder, EncoderOptions, Frame, FrameBody, FrameDecoder, FrameStats, FrameTrace, FrameWants,
    ImageCache, Page, PageSource, Surprise, Tracer, Verify, Vouched, Wants, page_hash,
};

pub fn mib(count: u64) -> SegmentSize {
    SegmentSize::new(count << 20).unwrap()
}

pub fn options(segment_size: SegmentSize) -> EncoderOptions {
    // Without the encoder's own check: what comes back is compared here, and must not need it.
    EncoderOptions { segment_size, verify: Verify::Skip, page_key: PAGE_KEY, cache_pages_max: 4096 }
}

/// A cache as readers have it.
pub fn decoding_cache(pages_max: usize) -> ImageCache {
    ImageCache::for_decoding(&Anonymous, pages_max).unwrap()
}

/// What a run came to.
#[derive(Debug, Default)]
pub struct Outcome {
    pub frames: Vec<Frame>,
    pub stats: FrameStats,
    pub surprises: Vec<Surprise>,
}

/// Frames of `wal`, fed in pieces of `piece` bytes, and flushed after each `flush` pieces.
pub fn encode(
    options: EncoderOptions,
    start: Lsn,
    wal: &[u8],
    piece: usize,
    flush: usize,
    base: &mut dyn PageSource,
) -> Vec<Frame> {
    let mut encoder = Encoder::new(options, start);
    let mut frames = Vec::new();
    for (number, bytes) in wal.chunks(piece).enumerate() {
        encoder.feed(bytes);
        while let Some(frame) = encoder.next_frame(base) {
            frames.push(frame);
        }
        if number % flush == flush - 1 {
            while let Some(frame) = encoder.flush_frame(base) {
                frames.push(frame);
            }
        }
    }
    while let Some(frame) = encoder.flush_frame(base) {
        frames.push(frame);
    }
    frames
}

/// Encodes `wal`, decodes what comes of it, and compares.
pub fn round_trip(
    options: EncoderOptions,
    start: Lsn,
    wal: &[u8],
    piece: usize,
    flush: usize,
    base: &mut dyn PageSource,
) -> Outcome {
    let frames = encode(options, start, wal, piece, flush, base);
    come_back(options, frames, start, wal, base)
}

/// Decodes `frames` of `wal`, all and in parts, and compares.
pub fn come_back(
    options: EncoderOptions,
    frames: Vec<Frame>,
    start: Lsn,
    wal: &[u8],
    base: &mut dyn PageSource,
) -> Outcome {
    let (mut decoder, mut cache) = (FrameDecoder::new(), decoding_cache(options.cache_pages_max));
    let mut tracer = Tracer::new(options.cache_pages_max);
    let (mut at, mut outcome) = (start, Outcome::default());
    let mut back = Vec::new();
    for frame in &frames {
        let expected = &wal[at.bytes_since(start) as usize..frame.range.end.bytes_since(start) as usize];
        assert_eq!(frame.range.start, at);
        at = frame.range.end;
        match &frame.body {
            FrameBody::Plain(raw, surprise) => {
                assert!(raw == expected, "frame {}", frame.range);
                outcome.surprises.push(*surprise);
            }
            FrameBody::Delta(bytes, stats) => {
                let range = decoder.decode(bytes, &mut cache, base, &mut back);
                assert_eq!(range, Ok(frame.range));
                assert!(back == expected, "frame {}", frame.range);
                tracer.frame(bytes).expect("a trace");
                assert!(tracer.is_at(&cache), "frame {} is followed to another cache", frame.range);
                outcome.stats.add(stats);
            }
        }
    }
    assert_eq!(at.bytes_since(start), wal.len() as u64);
    for from in [0, frames.len() / 3, frames.len() - 1] {
        for count in [1, 3] {
            let wanted = from..(from + count).min(frames.len());
            parts_are_the_same(options, &frames, start, wal, wanted, base);
        }
    }
    outcome.frames = frames;
    outcome
}

/// Decodes the `wanted` ones of `frames` by what they want of those before, and compares. Returns how many of these were decoded.
pub fn parts_are_the_same(
    options: EncoderOptions,
    frames: &[Frame],
    start: Lsn,
    wal: &[u8],
    wanted: Range<usize>,
    base: &mut dyn PageSource,
) -> usize {
    let delta = |frame: &Frame| match &frame.body {
        FrameBody::Delta(bytes, _) => Some(bytes.clone()),
        FrameBody::Plain(..) => None,
    };
    let mut tracer = Tracer::new(options.cache_pages_max);
    let mut traced: Vec<(usize, Vec<u8>, FrameTrace, Option<FrameWants>)> = Vec::new();
    for (number, frame) in frames[..wanted.end].iter().enumerate() {
        let Some(bytes) = delta(frame) else { continue };
        let (range, trace) = tracer.frame(&bytes).expect("a trace");
        assert_eq!(range, frame.range);
        traced.push((number, bytes, trace, None));
    }
    let mut wants = Wants::none(options.cache_pages_max);
    for (number, _, trace, found) in traced.iter_mut().rev() {
        *found = if wanted.contains(number) { Some(wants.whole(trace)) } else { wants.part(trace) };
    }
    let (mut decoder, mut cache) = (FrameDecoder::new(), decoding_cache(options.cache_pages_max));
    let (mut back, mut decoded) = (Vec::new(), 0);
    for (number, bytes, trace, found) in &traced {
        let range = match found {
            Some(found) if wanted.contains(number) => {
                let range = decoder.decode_wanted(bytes, (trace, found), &mut cache, base, &mut back);
                let at = |lsn: Lsn| lsn.bytes_since(start) as usize;
                let expected = &wal[at(frames[*number].range.start)..at(frames[*number].range.end)];
                assert!(range.is_err() || back == expected, "frame {number} of {wanted:?}");
                range
            }
            Some(found) => {
                decoded += 1;
                decoder.pages(bytes, (trace, found), &mut cache, base)
            }
            None => decoder.pass_over(bytes, &mut cache),
        };
        assert_eq!(range, Ok(frames[*number].range), "frame {number} of {wanted:?}");
    }
    decoded
}

/// The blocks in a cache.
pub fn blocks(cache: &ImageCache) -> BTreeSet<BlockId> {
    cache.blocks().copied().collect()
}

/// A base whose page of every block below 1000 follows from its number; one page may be another.
#[derive(Debug, Clone, Copy, Default)]
pub struct Made {
    pub other: Option<u32>,
    pub without: Option<u32>,
    pub unlike_its_hash: Option<u32>,
}

pub fn made_page(block: u32) -> Page {
    let mut page = [0; 8192];
    blake3::Hasher::new().update(&block.to_le_bytes()).finalize_xof().fill(&mut page[4096..]);
    page[..4096].iter_mut().enumerate().for_each(|(at, byte)| *byte = (at / 50) as u8);
    page
}

impl PageSource for Made {
    fn base_page(&mut self, block: &BlockId, page: &mut Page) -> Option<Vouched> {
        if block.block >= 1000 || self.without == Some(block.block) {
            return None;
        }
        *page = made_page(block.block);
        page[17] ^= u8::from(self.other == Some(block.block));
        let hash = page_hash(&PAGE_KEY, page);
        page[18] ^= u8::from(self.unlike_its_hash == Some(block.block));
        Some(Vouched::ByHash(hash))
    }
}

/// The body of a record with an image of `block`.
pub fn image_body(block: u32, image: &[u8], hole_offset: u16, flags: u8) -> Vec<u8> {
    let mut body = vec![0, 0x10, 0, 0];
    body.extend((image.len() as u16).to_le_bytes());
    body.extend(hole_offset.to_le_bytes());
    body.push(flags | u8::from(image.len() < 8192));
    [1663u32, 5, 16384, block].iter().for_each(|number| body.extend(number.to_le_bytes()));
    body.extend(image);
    body
}
