//! Delta frames from anyone, and any WAL into delta frames and back.

use super::{one_mib, record, version};
use crate::base::{Lsn, SystemId, TimelineId};
use crate::delta::{
    BlockId, Encoder, EncoderOptions, FrameBody, FrameDecoder, ImageCache, Page, PageSource, Tracer, Verify,
    Vouched, Wants, Window,
};
use crate::format::Reader;
use crate::format::delta::{DeltaHead, DeltaTables};
use crate::format::record::{Field, Record};
use crate::wal::Synth;

/// A base with the even blocks.
struct EvenBlocks;

impl PageSource for EvenBlocks {
    fn base_page(&mut self, block: &BlockId, page: &mut Page) -> Option<Vouched> {
        page.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at / 40) as u8);
        block.block.is_multiple_of(2).then_some(Vouched::BySource)
    }
}

/// A delta frame from anyone: an error, or WAL of the length and the hash that it says. What failed leaves no image.
pub fn delta_frame(bytes: &[u8]) {
    record::<DeltaTables>(bytes);
    let (mut decoder, mut cache) = (FrameDecoder::new(), ImageCache::new(8));
    let listed = decoder.references(bytes);
    let mut wal = vec![1];
    match decoder.decode(bytes, &mut cache, &mut EvenBlocks, &mut wal) {
        Ok(range) => {
            assert!(listed.is_ok(), "a frame that decodes has its references listed");
            assert_eq!(wal.len() as u64, range.len());
        }
        Err(_) => assert!(cache.is_empty() && wal.is_empty(), "a frame that failed left something"),
    }
    // As the first frame of an epoch, wanted as a whole.
    let traced = Tracer::new(8).frame(bytes);
    assert!(traced.is_ok() || listed.is_err(), "a frame whose references are listed can be followed");
    if let Ok((range, trace)) = traced {
        let wants = Wants::none(8).whole(&trace);
        let (mut sparse, mut again) = (ImageCache::new(8), Vec::new());
        let decoded =
            decoder.decode_wanted(bytes, (&trace, &wants), &mut sparse, &mut EvenBlocks, &mut again);
        assert!(again == wal && decoded.is_ok() != wal.is_empty(), "{range} decodes to something else");
        let taken = decoder.pages(bytes, (&trace, &wants), &mut ImageCache::new(8), &mut EvenBlocks);
        assert!(taken.is_ok() || decoded.is_err(), "a frame that decodes gives its pages");
    }
    if let Ok(head) = DeltaHead::decode(bytes) {
        assert_eq!(head.encode(), bytes);
    }
    let mut window = Window::default();
    if let Ok(head) = DeltaHead::get(&mut Reader::new("delta frame", bytes)) {
        // What the vectors have before a frame that repeats digits.
        let digits: Vec<u8> =
            (0..8u32).flat_map(|number| *blake3::hash(&number.to_le_bytes()).as_bytes()).collect();
        window.push(head.start.saturating_sub(8), &digits);
    }
    let mut records = vec![1];
    match decoder.decode_records(bytes, &mut window, &mut records) {
        Ok(range) => assert_eq!(records.len() as u64, range.len()),
        Err(_) => assert!(records.is_empty(), "a frame that failed left something"),
    }
}

/// Valid pages and checksums around records whose content is these bytes: encoded, whatever they are, and decoded to the same.
pub fn delta_wal(bytes: &[u8]) {
    let Some(([choice, rmgr, info, piece], rest)) = bytes.split_first_chunk() else { return };
    let version = version(*choice);
    let start = Lsn::new((1 << 32) + 8192);
    let mut synth = Synth::new(version, one_mib(), SystemId(7), TimelineId(1), start);
    let step = usize::from(*piece) + 1;
    for (number, content) in rest.chunks(step).enumerate() {
        synth.insert(number as u32, number as u32, u16::from(*piece));
        match choice & 0x08 {
            0 => synth.main_record(*rmgr, *info, 9, content),
            _ => synth.record(*rmgr, *info, 9, content),
        };
    }
    let mut wal = synth.take();
    if choice & 0x10 != 0 {
        // Damaged, too.
        let at = rest.len().wrapping_mul(7919) % wal.len().max(1);
        wal.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1);
    }
    let skip = usize::from(choice >> 5) * 1001 % wal.len().max(1);
    let options = EncoderOptions {
        segment_size: one_mib(),
        verify: if choice & 0x20 != 0 { Verify::Decode } else { Verify::Skip },
        page_key: [7; 32],
        cache_pages_max: 2,
    };
    let wal = wal.get(skip..).unwrap_or(&[]);
    let mut encoder = Encoder::new(options, start.saturating_add(skip as u64));
    let (mut decoder, mut cache, mut back) = (FrameDecoder::new(), ImageCache::new(2), Vec::new());
    for part in wal.chunks(wal.len() / 2 + 1) {
        encoder.feed(part);
        while let Some(frame) = encoder.flush_frame(&mut EvenBlocks) {
            match frame.body {
                FrameBody::Plain(raw, _) => back.extend(raw),
                FrameBody::Delta(delta, _) => {
                    let mut raw = Vec::new();
                    let decoded = decoder.decode(&delta, &mut cache, &mut EvenBlocks, &mut raw);
                    assert_eq!(decoded, Ok(frame.range));
                    back.extend(raw);
                }
            }
        }
    }
    assert!(back == wal, "{} bytes came back of {}", back.len(), wal.len());
}
