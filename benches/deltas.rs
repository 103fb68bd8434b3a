//! What WAL deltas make of real WAL: stored over raw and where the bytes go, and how fast, beside zstd on the same bytes.
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
use walden::base::{Lsn, SegmentSize, WalFileName};
use walden::delta::{
    Encoder, EncoderOptions, Frame, FrameBody, FrameDecoder, FrameStats, ImageCache, Surprise, Verify,
};
use walden::format::delta::SectionKind;

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
) -> (Vec<Frame>, Duration) {
    let options =
        EncoderOptions { segment_size: wal.0, verify, page_key: PAGE_KEY, cache_pages_max: CACHE_PAGES };
    let begun = CoreTime::now();
    let mut encoder = Encoder::new(options, wal.1);
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
    (frames, begun.elapsed())
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
    // Once to have the pages in memory.
    encode(&wal, &mut base, Verify::Skip);
    let (frames, quick) = encode(&wal, &mut base, Verify::Skip);
    let (_, verified) = encode(&wal, &mut base, Verify::Decode);

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
    let (mut decoder, mut cache) = (FrameDecoder::new(), ImageCache::new(CACHE_PAGES));
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
    for kind in SectionKind::ALL {
        println!("    {kind:?} {}", of_raw(sum.sections[*kind as usize]));
    }
    println!("    heads {}", of_raw(sum.stored - sum.sections.iter().sum::<u64>()));
    println!(
        "encode {}, verified {}, decode {warm}, the first time {cold}",
        rate(raw, quick),
        rate(raw, verified)
    );
    for (name, chunk, level) in [("zstd -3 per 16 MiB", 16 << 20, 3), ("zstd -1 per 1 MiB", 1 << 20, 1)] {
        let (size, time) = zstd_by(&wal.2, chunk, level);
        println!("{name}: {} {}", of_raw(size as u64), rate(raw, time));
    }
}

fn sum_frames(frames: &[Frame]) -> usize {
    frames.iter().filter(|frame| matches!(frame.body, FrameBody::Delta(..))).count()
}
