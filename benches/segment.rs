//! A whole segment of 64 MiB of WAL: made in memory, written to a local store, read back chunk by chunk, checked without a key.

mod common;

use common::Maker;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use walden::base::{ObjectKey, RepositoryId};
use walden::codec::object::{Expect, OpenObject, check_without_key};
use walden::codec::{ChunkIdKey, EpochSecret, KeySource, ObjectWriter};
use walden::format::header::{ObjectHeader, ObjectKind};
use walden::store::{LocalStore, Store};

const SEGMENT_BYTES: usize = 64 << 20;
const FRAME_BYTES: usize = walden::base::limits::WAL_FRAME_BYTES;

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

fn make(keys: &Keys, wal: &[u8]) -> bytes::Bytes {
    let header = ObjectHeader {
        kind: ObjectKind::WalSegment,
        required: 0,
        repository: RepositoryId([3; 16]),
        owner: [4; 16],
        number: 0,
        writer_epoch: 0,
        key_epoch: 1,
        place: [7; 16],
        salt: [8; 32],
    };
    let mut writer = ObjectWriter::create(&keys.secret, &header);
    for (frame, position) in wal.chunks(FRAME_BYTES).zip((0u64..).step_by(FRAME_BYTES)) {
        writer.add(frame, keys.chunk_id_key.chunk_id(frame), position);
    }
    writer.finish(Vec::new()).bytes
}

fn segment(c: &mut Criterion) {
    let keys = Keys { secret: EpochSecret([1; 32]), chunk_id_key: ChunkIdKey([2; 32]) };
    let wal = Maker::new(1).wal(SEGMENT_BYTES);
    let stored = make(&keys, &wal);
    let any = Expect { repository: None, key: None, kind: None };
    let mut group = c.benchmark_group("segment_64MiB");
    group.throughput(Throughput::Bytes(SEGMENT_BYTES as u64)).sample_size(10);
    group.bench_function("make", |b| b.iter(|| make(&keys, black_box(&wal))));
    group.bench_function("read", |b| {
        b.iter(|| {
            let open = OpenObject::open(stored.clone(), &keys, &any).unwrap();
            (0..open.directory().frames.len()).map(|n| open.chunk(n, &keys).unwrap().len()).sum::<usize>()
        });
    });
    group.bench_function("check_without_key", |b| {
        b.iter(|| check_without_key(black_box(&stored), &any).unwrap())
    });

    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(dir.path()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut number = 0;
    group.bench_function("store_and_fetch", |b| {
        b.iter(|| {
            number += 1;
            let key = ObjectKey::new(format!("segments/{number}")).unwrap();
            runtime.block_on(async {
                store.create(&key, stored.clone()).await.unwrap();
                let fetched = store.get(&key).await.unwrap();
                store.delete(&key).await.unwrap();
                fetched.len()
            })
        });
    });
    group.finish();
}

criterion_group!(benches, segment);
criterion_main!(benches);
