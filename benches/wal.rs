//! How fast WAL is read: page images, small records, and the two mixed as a busy server writes them.
//! The promise is 1 GB/s of raw WAL on one core for the summarizer, which every byte passes on its way.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use walden::base::{Lsn, SegmentSize, SystemId, TimelineId, Timestamp};
use walden::wal::{DecodeFrom, Decoder, Summarizer, Synth, WalVersion};

const START: Lsn = Lsn::new(16 << 20);
const BYTES: usize = 64 << 20;
/// What a walsender sends at a time.
const PIECE: usize = 128 << 10;

fn synth() -> Synth {
    Synth::new(WalVersion::V18, SegmentSize::DEFAULT, SystemId(1), TimelineId(1), START)
}

/// WAL of about [`BYTES`]; `step` adds one transaction's.
fn make(mut step: impl FnMut(&mut Synth, u32)) -> Vec<u8> {
    let (mut synth, mut xid) = (synth(), 1000);
    while synth.position().bytes_since(START) < BYTES as u64 {
        step(&mut synth, xid);
        synth.commit(xid, Timestamp::from_micros(i64::from(xid) * 100));
        xid += 1;
    }
    synth.take()
}

fn small(synth: &mut Synth, xid: u32) {
    for row in 0..6 {
        synth.insert(xid, xid + row, 60 + (row as u16) * 20);
    }
}

fn images(synth: &mut Synth, xid: u32) {
    for block in 0..20 {
        synth.page_image(xid, block);
    }
}

fn mixed(synth: &mut Synth, xid: u32) {
    small(synth, xid);
    if xid.is_multiple_of(3) {
        synth.page_image(xid, xid);
    }
}

fn summarize(wal: &[u8]) -> u64 {
    let mut summarizer = Summarizer::new(SegmentSize::DEFAULT, START, DecodeFrom::Anywhere);
    for piece in wal.chunks(PIECE) {
        summarizer.feed(summarizer.position(), piece);
    }
    let summary = summarizer.take();
    assert_eq!(summary.unread_count, 0);
    summary.commit_count
}

fn decode(wal: &[u8]) -> usize {
    let mut decoder = Decoder::new(SegmentSize::DEFAULT, START, DecodeFrom::Anywhere);
    let mut count = 0;
    for piece in wal.chunks(PIECE) {
        decoder.feed(decoder.position(), piece);
        while let Ok(Some(_)) = decoder.next() {
            count += 1;
        }
    }
    count
}

fn benches(criterion: &mut Criterion) {
    for (name, wal) in [("small", make(small)), ("mixed", make(mixed)), ("images", make(images))] {
        let mut group = criterion.benchmark_group("wal");
        group.sample_size(10).throughput(Throughput::Bytes(wal.len() as u64));
        group.bench_function(format!("summarize/{name}"), |bench| bench.iter(|| summarize(&wal)));
        group.bench_function(format!("decode/{name}"), |bench| bench.iter(|| decode(&wal)));
        group.finish();
    }
}

criterion_group!(all, benches);
criterion_main!(all);
