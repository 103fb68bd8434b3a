//! What a copy costs that has many segments: requests and bytes, counted.

use crate::bed::{copy_all, empty, open};
use crate::common::crash::{Mode, World, simulate};
use crate::common::sim_store::{Request, SimStore};
use walden::base::{Generation, Lsn, ObjectId, SystemId, TimelineId, Timestamp};
use walden::format::header::ObjectKind;
use walden::format::index::{IndexPage, WalEntry};
use walden::format::record::Record;
use walden::format::root::GenerationRecord;
use walden::format::wal::{WalMeta, WalSummary};
use walden::repo::index::{IndexEdit, empty_page};
use walden::repo::{Cluster, RepoError, RootChange, layout};

const SEGMENT_BYTES: u64 = 4096;

/// A plain segment of WAL, the `number`th.
async fn segment(cluster: &Cluster, number: u64) -> WalEntry {
    let repo = cluster.repo();
    let (generation, timeline) = (Generation(1), TimelineId(1));
    let (start, end) = (Lsn::new(number * SEGMENT_BYTES), Lsn::new((number + 1) * SEGMENT_BYTES));
    let id = ObjectId::random(&*repo.env().entropy);
    let key = layout::segment(cluster.name(), id);
    let mut writer = repo.writer(ObjectKind::WalSegment, &key, id.0, 0, 0);
    let bytes = vec![number as u8; SEGMENT_BYTES as usize];
    writer.add(&bytes, repo.chunk_id(&bytes), start.get());
    let server_time = Timestamp::from_micros(number as i64);
    let meta = WalMeta {
        generation,
        timeline,
        start,
        end,
        server_end: end,
        server_time,
        previous_link: [0; 32],
        predecessor: None,
        summary: WalSummary::empty(),
        deltas: None,
        extensions: Vec::new(),
    };
    let finished = writer.finish(meta.encode());
    repo.create_own(&key, &finished.bytes).await.unwrap();
    WalEntry {
        id,
        generation,
        timeline,
        start,
        end,
        object_len: finished.bytes.len() as u64,
        directory_offset: finished.directory_offset,
        server_time,
        summary: WalSummary::empty(),
        deltas: None,
    }
}

/// A cluster of `count` segments.
async fn source(world: &mut World, count: u64) -> Cluster {
    let record = GenerationRecord {
        cluster: world.cluster.clone(),
        generation: Generation(1),
        system_id: SystemId(77),
        major_version: 15,
        segment_size: 1 << 20,
        block_size: 8192,
    };
    let cluster = Cluster::create(world.open(20).await.unwrap(), record).await.unwrap();
    let mut wal = Vec::new();
    for number in 0..count {
        wal.push(segment(&cluster, number).await);
    }
    let page = IndexPage { wal, ..empty_page() };
    let add = |root: &_| {
        Ok::<_, RepoError>(Some(RootChange { root: Clone::clone(root), index: IndexEdit::Add(page.clone()) }))
    };
    cluster.commit(add).await.unwrap();
    cluster
}

/// Bytes of index objects that were read, and how many roots were made.
fn counted(store: &SimStore) -> (usize, usize) {
    let (log, objects) = (store.log(), store.objects());
    let read = log.iter().filter_map(|op| match &op.request {
        Request::Get(key) if key.as_str().contains("/index/") => objects.get(key).map(|bytes| bytes.len()),
        _ => None,
    });
    (read.sum(), log.iter().filter(|op| op.creates("/roots/")).count())
}

/// Each segment is committed by itself here, so that few of them show what many cost.
#[test]
fn a_commit_costs_what_it_adds_and_not_what_is_there() {
    let copied = |count| {
        simulate(async move {
            let mut world = World::new(70, Mode::Object, 64 << 10).await;
            let source = source(&mut world, count).await;
            let to = empty(&mut world, 71).await;
            let done = copy_all(&source, &open(&to, world.env()).await).await.unwrap();
            assert_eq!(done.wal_segments, count);
            counted(&to)
        })
    };
    let ((few, few_roots), (many, many_roots)) = (copied(60), copied(480));
    assert!(few_roots > 60 && many_roots > 480, "{few_roots}, {many_roots}");
    // Eight times as many; levels of the index are merged, so somewhat more than that.
    assert!(many < few * 16, "{many} bytes of index were read for 480 segments, {few} for 60");
}
