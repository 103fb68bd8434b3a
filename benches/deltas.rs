//! What WAL deltas make of real WAL: stored over raw and where the bytes go, beside the entropy of what stands together, and how
//! fast; and zstd on the same bytes, and on the records alone.
//!
//! ```sh
//! cargo bench --bench deltas -- WAL_DIR BASE_DIR        # segments of one timeline; a data directory as the backup copied it
//! ```

#[path = "../tests/common/pages.rs"]
mod pages;

use pages::{DataDirectory, PAGE_KEY};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use walden::base::crc32c::crc32c;
use walden::base::limits::BLOCK_BYTES;
use walden::base::{Lsn, SegmentSize, WalFileName};
use walden::delta::{
    Encoder, EncoderOptions, Frame, FrameBody, FrameDecoder, FrameStats, ImageCache, Surprise, Verify,
    Window, sections,
};
use walden::disk::ScratchDir;
use walden::format::delta::SectionKind;
use walden::wal::{DecodeFrom, Decoder, Record};

/// Time that this thread was on a core: what others do on the machine is not measured.
#[derive(Clone, Copy)]
struct CoreTime(u64);

impl CoreTime {
    fn now() -> CoreTime {
        let text = fs::read_to_string("/proc/thread-self/schedstat").expect("the thread's times");
        CoreTime(text.split(' ').next().and_then(|ns| ns.parse().ok()).expect("nanoseconds"))
    }

    fn elapsed(self) -> Duration {
        Duration::from_nanos(CoreTime::now().0 - self.0)
    }
}

/// What a walsender sends at a time.
const PIECE: usize = 128 << 10;
/// 4 GiB, the default of an epoch.
const CACHE_PAGES: usize = 524_288;

/// Memory as `wal-fetch` takes it.
fn memory() -> ScratchDir {
    ScratchDir::first_of(vec![std::env::temp_dir()]).with_memory(2 * CACHE_PAGES * BLOCK_BYTES)
}

/// An empty cache for encoders.
fn image_cache() -> ImageCache {
    ImageCache::within(&memory(), CACHE_PAGES).expect("room for a cache")
}

/// The WAL in a folder: its first byte, and the bytes.
fn read_wal(dir: &Path) -> (SegmentSize, Lsn, Vec<u8>) {
    let mut names: Vec<(String, WalFileName)> = fs::read_dir(dir)
        .expect("a folder of WAL")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| Some((name.clone(), name.parse().ok()?)))
        .filter(|(_, name)| matches!(name, WalFileName::Segment { .. }))
        .collect();
    names.sort_by(|a, b| a.0.cmp(&b.0));
    let first = fs::metadata(dir.join(&names.first().expect("a segment").0)).expect("its size").len();
    let size = SegmentSize::new(first).expect("a segment size");
    let start = names[0].1.segment_no(size).expect("a segment").range(size).start;
    let mut bytes = Vec::new();
    for (number, (name, parsed)) in names.iter().enumerate() {
        let at = parsed.segment_no(size).expect("a segment").range(size).start;
        assert_eq!(at, start.saturating_add(number as u64 * size.bytes()), "{name} does not follow");
        bytes.extend(fs::read(dir.join(name)).expect("a segment"));
    }
    (size, start, bytes)
}

fn encode(
    wal: &(SegmentSize, Lsn, Vec<u8>),
    base: &mut DataDirectory,
    verify: Verify,
    cache: &mut ImageCache,
) -> (Vec<Frame>, Duration) {
    let options =
        EncoderOptions { segment_size: wal.0, verify, page_key: PAGE_KEY, cache_pages_max: CACHE_PAGES };
    cache.clear();
    let begun = CoreTime::now();
    let mut encoder = Encoder::resume(options, wal.1, std::mem::replace(cache, ImageCache::new(0)));
    let mut frames = Vec::new();
    for piece in wal.2.chunks(PIECE) {
        encoder.feed(piece);
        while let Some(frame) = encoder.next_frame(base) {
            frames.push(frame);
        }
    }
    while let Some(frame) = encoder.flush_frame(base) {
        frames.push(frame);
    }
    let took = begun.elapsed();
    *cache = encoder.into_cache();
    (frames, took)
}

fn rate(bytes: usize, time: Duration) -> String {
    format!("{:.0} MB/s", bytes as f64 / time.as_secs_f64() / 1e6)
}

fn zstd_by(wal: &[u8], chunk: usize, level: i32) -> (usize, Duration) {
    let mut compressor = zstd::bulk::Compressor::new(level).expect("a compressor");
    let begun = CoreTime::now();
    let sum = wal.chunks(chunk).map(|chunk| compressor.compress(chunk).expect("compressed").len()).sum();
    (sum, begun.elapsed())
}

fn main() {
    let args: Vec<PathBuf> =
        std::env::args().skip(1).filter(|arg| arg != "--bench").map(PathBuf::from).collect();
    let [wal_dir, base_dir] = args.as_slice() else {
        eprintln!("usage: cargo bench --bench deltas -- WAL_DIR BASE_DIR");
        return;
    };
    let wal = read_wal(wal_dir);
    let raw = wal.2.len();
    let mut base = DataDirectory::open(base_dir);
    // Epochs follow each other in the same memory; the first one takes it. Once before, to have the base's pages in memory.
    encode(&wal, &mut base, Verify::Skip, &mut image_cache());
    let mut cache = image_cache();
    let (_, first) = encode(&wal, &mut base, Verify::Skip, &mut cache);
    let (frames, quick) = encode(&wal, &mut base, Verify::Skip, &mut cache);
    let (checked, verified) = encode(&wal, &mut base, Verify::Decode, &mut cache);
    assert_eq!(sum_frames(&checked), sum_frames(&frames), "every frame comes back");

    let mut sum = FrameStats::default();
    let (mut plain, mut plain_raw, mut surprises) = (0usize, 0usize, HashMap::<Surprise, usize>::new());
    for frame in &frames {
        match &frame.body {
            FrameBody::Delta(_, stats) => sum.add(stats),
            FrameBody::Plain(bytes, surprise) => {
                *surprises.entry(*surprise).or_default() += 1;
                plain_raw += bytes.len();
                plain += zstd_by(bytes, bytes.len(), 1).0;
            }
        }
    }
    // Twice: the memory of the cache is taken by the first run.
    let mut decoder = FrameDecoder::new();
    let mut cache = ImageCache::for_decoding(&memory(), CACHE_PAGES).expect("room for a cache");
    let mut back = Vec::new();
    let [cold, warm] = [(); 2].map(|()| {
        cache.clear();
        let (begun, mut decoded) = (CoreTime::now(), 0);
        for frame in &frames {
            if let FrameBody::Delta(bytes, _) = &frame.body {
                decoder.decode(bytes, &mut cache, &mut base, &mut back).expect("a frame decodes");
                decoded += back.len();
            }
        }
        rate(decoded, begun.elapsed())
    });

    let of_raw = |bytes: u64| format!("{:.4}", bytes as f64 / raw as f64);
    println!(
        "raw {raw}, frames {}, plain {} ({plain_raw} bytes) {surprises:?}",
        frames.len(),
        frames.len() - sum_frames(&frames)
    );
    println!(
        "images {} ({} of raw), {} from the base, {} from images, {} rotten; records {}; cached {}",
        sum.images,
        of_raw(sum.images_raw),
        sum.images_base,
        sum.images_image,
        sum.pages_rotten,
        sum.records,
        cache.len()
    );
    let of = |kinds: &[SectionKind]| kinds.iter().map(|kind| sum.sections[*kind as usize]).sum::<u64>();
    use SectionKind as S;
    let images =
        of(&[S::Sources, S::References, S::LiteralLens, S::CopyLens, S::Shifts, S::Literals, S::Stored]);
    let records = sum.stored - images;
    println!("stored {} {}", sum.stored + plain as u64, of_raw(sum.stored + plain as u64));
    println!(
        "  images  {} (of image bytes {:.4})",
        of_raw(images),
        images as f64 / sum.images_raw.max(1) as f64
    );
    println!("  records {} ({:.1} bytes each)", of_raw(records), records as f64 / sum.records.max(1) as f64);
    println!("    section       of raw   stored bytes    plain bytes  entropy of its bytes");
    let (plain_bytes, entropy) = contents(&frames);
    for kind in SectionKind::ALL {
        let at = *kind as usize;
        let name = format!("{kind:?}");
        println!(
            "    {name:<12} {}  {:>13}  {:>13}  {:>13.0}",
            of_raw(sum.sections[at]),
            sum.sections[at],
            plain_bytes[at],
            entropy[at]
        );
    }
    println!("    heads        {}", of_raw(sum.stored - sum.sections.iter().sum::<u64>()));
    let alone = records_alone(&wal);
    let (packed, _) = zstd_by(&alone, 16 << 20, 3);
    println!(
        "records alone: {} bytes; zstd -3 per 16 MiB makes {packed} of them, deltas {records}: {:.3} of that",
        alone.len(),
        records as f64 / packed as f64
    );
    println!(
        "encode {}, the first time {}, verified {}; decode {warm}, the first time {cold}",
        rate(raw, quick),
        rate(raw, first),
        rate(raw, verified)
    );
    let (hash, checksum, unpack) = bounds(&wal.2, &frames);
    println!(
        "what decoding cannot do without: BLAKE3 {}, CRC-32C {}, zstd's part {}; all three {}",
        rate(raw, hash),
        rate(raw, checksum),
        rate(raw, unpack),
        rate(raw, hash + checksum + unpack)
    );
    for (name, chunk, level) in [("zstd -3 per 16 MiB", 16 << 20, 3), ("zstd -1 per 1 MiB", 1 << 20, 1)] {
        let (size, time) = zstd_by(&wal.2, chunk, level);
        println!("{name}: {} {}", of_raw(size as u64), rate(raw, time));
    }
}

/// Bytes of each section before compression, and their entropy byte by byte, frame by frame, in bytes.
fn contents(frames: &[Frame]) -> (Vec<u64>, Vec<f64>) {
    let mut plain = vec![0; SectionKind::ALL.len()];
    let mut entropy = vec![0.0; SectionKind::ALL.len()];
    let mut window = Window::default();
    for frame in frames {
        let FrameBody::Delta(bytes, _) = &frame.body else { continue };
        for (kind, section) in sections(bytes, &mut window).expect("a frame") {
            let mut counts = [0u32; 256];
            section.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
            let all = section.len() as f64;
            let bits: f64 = counts
                .iter()
                .filter(|count| **count > 0)
                .map(|count| f64::from(*count) * (all / f64::from(*count)).log2())
                .sum();
            plain[kind as usize] += section.len() as u64;
            entropy[kind as usize] += bits / 8.0;
        }
    }
    (plain, entropy)
}

/// How long it takes to hash all WAL frame by frame, to checksum it, and to decompress the sections of its frames: decoding does all of
/// this, before it puts one byte in its place.
fn bounds(wal: &[u8], frames: &[Frame]) -> (Duration, Duration, Duration) {
    let timed = |work: &dyn Fn()| {
        let begun = CoreTime::now();
        work();
        begun.elapsed()
    };
    let hash = timed(&|| {
        wal.chunks(1 << 20).for_each(|frame| {
            std::hint::black_box(blake3::hash(frame));
        });
    });
    let checksum = timed(&|| {
        // As long as a record of a small row is.
        wal.chunks(128).for_each(|record| {
            std::hint::black_box(crc32c(record));
        });
    });
    let unpack = timed(&|| {
        let mut window = Window::default();
        for frame in frames {
            if let FrameBody::Delta(bytes, _) = &frame.body {
                std::hint::black_box(sections(bytes, &mut window).expect("a frame"));
            }
        }
    });
    (hash, checksum, unpack)
}

/// Bytes of page headers before the first record of the page at `at`.
fn page_header_bytes(size: SegmentSize, at: Lsn) -> u64 {
    if at.get().is_multiple_of(size.bytes()) { 40 } else { 24 }
}

/// The records without their images, page headers and padding.
fn records_alone((size, start, wal): &(SegmentSize, Lsn, Vec<u8>)) -> Vec<u8> {
    let mut alone = Vec::new();
    let mut decoder = Decoder::new(*size, *start, DecodeFrom::Anywhere);
    let mut record = Vec::new();
    for (number, piece) in wal.chunks(PIECE).enumerate() {
        decoder.feed(start.saturating_add((number * PIECE) as u64), piece);
        while let Some(found) = decoder.next().expect("WAL of a server") {
            gather(*size, *start, wal, &found, &mut record);
            // Images and data of blocks follow their headers, in the same order; main data is last.
            let images =
                found.blocks.iter().filter_map(|block| block.image).map(|image| usize::from(image.len));
            let data: usize = found.blocks.iter().map(|block| usize::from(block.data_len)).sum();
            let bodies = images.sum::<usize>() + data + found.main_data().len as usize;
            let mut at = record.len() - bodies;
            alone.extend_from_slice(&record[..at]);
            for block in &found.blocks {
                at += block.image.map_or(0, |image| usize::from(image.len));
                alone.extend_from_slice(&record[at..at + usize::from(block.data_len)]);
                at += usize::from(block.data_len);
            }
            alone.extend_from_slice(&record[at..]);
        }
    }
    alone
}

/// The bytes of `found` without the page headers amid them.
fn gather(size: SegmentSize, start: Lsn, wal: &[u8], found: &Record, record: &mut Vec<u8>) {
    record.clear();
    let (mut at, mut left) = (found.start, u64::from(found.header.total_len));
    while left > 0 {
        let within = at.get() % 8192;
        if within == 0 {
            at = at.saturating_add(page_header_bytes(size, at));
            continue;
        }
        let part = left.min(8192 - within);
        let from = at.bytes_since(start) as usize;
        record.extend_from_slice(&wal[from..from + part as usize]);
        at = at.saturating_add(part);
        left -= part;
    }
}

fn sum_frames(frames: &[Frame]) -> usize {
    frames.iter().filter(|frame| matches!(frame.body, FrameBody::Delta(..))).count()
}
