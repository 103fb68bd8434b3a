//! What one core does between plaintext and stored bytes: compress and seal, open and decompress, and each part alone.
//! Targets: 600 MB/s of WAL compressed and sealed, 1.2 GB/s opened and decompressed.

mod common;

use common::{CoreTime, Maker};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use walden::base::{ChunkId, RepositoryId};
use walden::codec::compress::{compress, compress_onto, decompress};
use walden::codec::object::{Expect, OpenObject};
use walden::codec::seal::ObjectKeys;
use walden::codec::{ChunkIdKey, EpochSecret, KeySource, ObjectWriter};
use walden::format::frame::{Codec, FrameHead, FrameKind, TAG_BYTES};
use walden::format::header::{ObjectHeader, ObjectKind};
use walden::format::manifest::CHUNK_BYTES;

const CHUNKS: usize = 8;

struct Keys {
    secret: EpochSecret,
    chunk_id_key: ChunkIdKey,
}

impl KeySource for Keys {
    fn epoch_secret(&self, _epoch: u32) -> Option<&EpochSecret> {
        Some(&self.secret)
    }

    fn chunk_id_key(&self) -> &ChunkIdKey {
        &self.chunk_id_key
    }
}

fn keys() -> Keys {
    Keys { secret: EpochSecret([1; 32]), chunk_id_key: ChunkIdKey([2; 32]) }
}

fn header() -> ObjectHeader {
    ObjectHeader {
        kind: ObjectKind::Flush,
        required: 0,
        repository: RepositoryId([3; 16]),
        owner: [4; 16],
        number: 5,
        writer_epoch: 6,
        key_epoch: 1,
        place: [7; 16],
        salt: [8; 32],
    }
}

fn object(chunks: &[Vec<u8>]) -> bytes::Bytes {
    let mut writer = ObjectWriter::create(&keys().secret, &header());
    chunks.iter().for_each(|chunk| writer.add(chunk, ChunkId([0; 32]), 0));
    writer.finish(Vec::new()).bytes
}

fn throughput(c: &mut Criterion<CoreTime>) {
    let mut maker = Maker::new(1);
    let data: [(&str, Vec<Vec<u8>>); 2] = [
        ("wal", (0..CHUNKS).map(|_| maker.wal(1 << 20)).collect()),
        ("pages", (0..CHUNKS * 4).map(|_| maker.pages(CHUNK_BYTES)).collect()),
    ];
    let any = Expect { repository: None, key: None, kind: None };
    for (name, chunks) in &data {
        let raw: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        let stored = object(chunks);
        println!("{name}: stored/raw {:.3}", stored.len() as f64 / raw as f64);
        let mut group = c.benchmark_group(*name);
        group.throughput(Throughput::Bytes(raw)).sample_size(20);
        group.bench_function("compress_and_seal", |b| b.iter(|| object(black_box(chunks))));
        group.bench_function("with_chunk_ids", |b| {
            let keys = keys();
            b.iter(|| {
                let mut writer = ObjectWriter::create(&keys.secret, &header());
                chunks.iter().for_each(|chunk| writer.add(chunk, keys.chunk_id_key.chunk_id(chunk), 0));
                writer.finish(Vec::new()).bytes
            });
        });
        group.bench_function("open_and_decompress", |b| {
            let open = OpenObject::open(stored.clone(), &keys(), &any).unwrap();
            let reader = walden::codec::ObjectReader::open(&stored, &keys(), &any).unwrap();
            let at = |offset: u64| &stored[offset as usize..];
            b.iter(|| {
                for (number, entry) in open.directory().frames.iter().enumerate() {
                    black_box(reader.frame(number as u64, FrameKind::Data, at(entry.offset)).unwrap());
                }
            });
        });
        group.bench_function("compress", |b| {
            let mut to = Vec::new();
            b.iter(|| {
                for chunk in chunks {
                    to.clear();
                    black_box(compress_onto(chunk, &mut to));
                }
            });
        });
        group.bench_function("decompress", |b| {
            let packed: Vec<(Codec, Vec<u8>)> = chunks.iter().map(|chunk| compress(chunk)).collect();
            b.iter_batched(
                || packed.clone(),
                |packed| {
                    for ((codec, packed), chunk) in packed.into_iter().zip(chunks) {
                        black_box(decompress(codec, packed, chunk.len()).unwrap());
                    }
                },
                BatchSize::LargeInput,
            );
        });
        group.finish();
    }
    parts(c, &data[0].1[0]);
}

/// The seal, the chunk id and the checksum alone, on 1 MiB.
fn parts(c: &mut Criterion<CoreTime>, chunk: &[u8]) {
    let mut group = c.benchmark_group("parts");
    group.throughput(Throughput::Bytes(chunk.len() as u64)).sample_size(20);
    let sealer = ObjectKeys::create(&keys().secret, &header());
    let head = FrameHead {
        sealed_len: (chunk.len() + TAG_BYTES) as u32,
        plain_len: chunk.len() as u32,
        kind: FrameKind::Data,
        codec: Codec::Raw,
    };
    let mut body = chunk.to_vec();
    group.bench_function("seal", |b| b.iter(|| sealer.seal_slice(0, &head, &mut body)));
    group.bench_function("chunk_id", |b| b.iter(|| keys().chunk_id_key.chunk_id(black_box(chunk))));
    group.bench_function("crc", |b| b.iter(|| head.crc(black_box(chunk))));
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(CoreTime);
    targets = throughput
}
criterion_main!(benches);
