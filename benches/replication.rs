//! How fast WAL comes out of a walsender's messages: a unix socket, a sender that does nothing but write, one reading thread.
//! Bytes are as a server of 17 sends them in catch-up: CopyData of 128 KiB. The bar is 500 MB/s on one core.

#[path = "../tests/net/fake.rs"]
#[allow(dead_code)]
mod fake;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fake::Fake;
use std::time::{Duration, Instant};
use walden::base::{Lsn, TimelineId};
use walden::net::{
    ConnectOptions, Connection, ConnectionKind, ReplicationEvent, ReplicationReader, StartReplication,
};

const BATCH_BYTES: u64 = 256 << 20;

async fn read(reader: &mut ReplicationReader, bytes: u64) -> u64 {
    let mut got = 0;
    while got < bytes {
        match reader.next().await {
            Ok(ReplicationEvent::Wal { data, .. }) => got += data.len() as u64,
            other => panic!("{other:?}"),
        }
    }
    got
}

fn replication(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut group = criterion.benchmark_group("replication");
    group
        .throughput(Throughput::Bytes(BATCH_BYTES))
        .sample_size(10)
        .measurement_time(Duration::from_secs(10));
    for message_bytes in [8 << 10, 128 << 10] {
        let many: Vec<u8> =
            (0..(4 << 20) / message_bytes).flat_map(|_| fake::wal(0, &vec![7; message_bytes])).collect();
        let server = Fake::start(move |mut client| {
            if client.begin_streaming().is_some() {
                while client.say(&many) {}
            }
        });
        let (mut reader, _writer) = runtime.block_on(async {
            let options = ConnectOptions::parse(&server.conninfo(), &|_| None).expect("options");
            let connection =
                Connection::connect(&options, ConnectionKind::PhysicalReplication, "bench").await;
            match connection.expect("let in").start_physical(None, Lsn::ZERO, TimelineId(1)).await {
                Ok(StartReplication::Streaming(stream)) => stream.split(),
                other => panic!("{other:?}"),
            }
        });
        group.bench_function(format!("read_{}_kib_messages", message_bytes >> 10), |bencher| {
            bencher.iter_custom(|rounds| {
                let begun = Instant::now();
                runtime.block_on(read(&mut reader, rounds * BATCH_BYTES));
                begun.elapsed()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, replication);
criterion_main!(benches);
