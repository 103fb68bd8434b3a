//! Sources with damage: what cannot be read is named and is a gap in the copy, everything else is copied, and what was mended comes later.

use crate::bed::{check, cluster, copy_all, empty, open, verified};
use crate::clusters::{DELTAS, received, shape};
use crate::common::crash::{Mode, World, simulate};
use crate::common::keeping::{with_backups, with_backups_and_wal};
use crate::common::sim_store::{Request, SimStore, StoreFaults};
use std::collections::BTreeMap;
use std::time::Duration;
use walden::base::{Lsn, LsnRange, ObjectKey, TimelineId};
use walden::copy::Copied;
use walden::format::index::{BackupState, WalEntry};
use walden::receive::compact::{self, Extent};
use walden::repo::walmap::{self, Snapshot};
use walden::repo::{Cluster, WalReader, backups, layout};

async fn look(cluster: &Cluster) -> Snapshot {
    walmap::load(cluster).await.unwrap()
}

/// The same archive beside which `world` goes on.
fn twin(world: &World, seed: u64) -> World {
    World::of(seed, Mode::Object, world.server.fork(), world.store.fork(), world.disk.fork(1))
}

/// What the copy holds is the server's, up to `end`, and what it lacks before it is in its gaps, and nothing else; backups are restorable
/// whose WAL is there, and no others. Returns what it lacks.
async fn check_with_gaps(world: &mut World, source: &Snapshot, to: &SimStore, end: Lsn) -> Vec<LsnRange> {
    let theirs = cluster(&to.fork(), world).await;
    let there = look(&theirs).await;
    let ranges = there.wal.ranges(TimelineId(1));
    let mut reader = WalReader::new(theirs.clone(), there.wal.clone());
    for range in &ranges {
        let bytes = reader.read(TimelineId(1), *range).await.unwrap();
        let (whole, expected) = world.server.wal_until(range.end);
        assert!(bytes == expected[range.start.bytes_since(whole.start) as usize..], "WAL {range} differs");
    }
    let mut all = ranges.clone();
    let gaps: Vec<LsnRange> = there.wal.gaps().iter().map(|gap| LsnRange::new(gap.start, gap.end)).collect();
    all.extend(&gaps);
    all.sort_by_key(|range| range.start);
    let whole = source.wal.ranges(TimelineId(1));
    assert_eq!(all.first().map(|range| range.start), whole.first().map(|range| range.start));
    assert_eq!(all.last().map(|range| range.end), Some(end));
    assert!(all.windows(2).all(|pair| pair[0].end == pair[1].start), "{all:?}");
    assert_eq!(there.index.backups.len(), source.index.backups.len());
    let size = walden::base::SegmentSize::new(1 << 20).unwrap();
    for backup in &there.index.backups {
        let needed = backups::needed_wal(backup, size);
        let is_whole = ranges.iter().any(|range| range.intersect(needed) == Some(needed));
        let expected = if is_whole { BackupState::Complete } else { BackupState::Pending };
        assert_eq!(backup.state, expected, "backup {} needs {needed}, gaps {gaps:?}", backup.id);
    }
    verified(to, world.env()).await;
    gaps
}

/// From a damaged segment on, what cannot be decoded any more: the rest of its epoch.
fn lost_with(entry: &WalEntry, all: &[WalEntry]) -> LsnRange {
    let epoch = |entry: &WalEntry| entry.deltas.as_ref().map(|deltas| deltas.epoch.id);
    let of_epoch = all.iter().filter(|other| epoch(other).is_some() && epoch(other) == epoch(entry));
    let end = of_epoch.map(|other| other.end).max().unwrap_or(entry.end);
    LsnRange::new(entry.start, end.max(entry.end))
}

fn named(done: &Copied) -> Vec<String> {
    done.missing.iter().map(|missing| missing.object.clone()).collect()
}

/// Damages each segment of WAL in turn, by `harm`, and mends it again.
async fn each_segment(harm: impl Fn(&SimStore, &ObjectKey)) {
    let mut world = with_backups_and_wal(60, 3, 4 << 20).await;
    let source = world.cluster_of(20).await.unwrap();
    compact::compact(&source, Some(DELTAS), Extent::All).await.unwrap();
    let before = look(&source).await;
    assert!(before.index.wal.len() >= 3, "{}", before.index.wal.len());
    assert!(before.index.wal.iter().any(|entry| entry.deltas.is_some()));
    for (number, entry) in before.index.wal.iter().enumerate() {
        let mut world = twin(&world, 600 + number as u64);
        let to = empty(&mut world, 61).await;
        let source = world.cluster_of(20).await.unwrap();
        let key = layout::segment(source.name(), entry.id);
        let whole = world.store.objects()[&key].clone();
        harm(&world.store, &key);

        let done = copy_all(&source, &open(&to, world.env()).await).await.unwrap();
        assert_eq!(named(&done), [key.to_string()]);
        assert!(!done.missing[0].cost.is_empty() && done.left_out.is_empty(), "{done:?}");
        let (lost, end) = (lost_with(entry, &before.index.wal), before.wal.durable_end().unwrap().lsn);
        // A receiver that takes the copy over begins where it ends: behind a gap.
        match lost.end == end {
            true => assert_eq!(check_with_gaps(&mut world, &before, &to, lost.start).await, []),
            false => assert_eq!(check_with_gaps(&mut world, &before, &to, end).await, [lost]),
        }

        // As long as it is damaged, nothing more is done, and it is told again.
        let index = look(&cluster(&to, &mut world).await).await.index.into_page();
        let again = copy_all(&source, &open(&to, world.env()).await).await.unwrap();
        assert_eq!((named(&again), again.wal_segments, again.backups.len()), (vec![key.to_string()], 0, 0));
        assert_eq!(look(&cluster(&to, &mut world).await).await.index.into_page(), index);

        world.store.put(&key, whole);
        let mended = copy_all(&source, &open(&to, world.env()).await).await.unwrap();
        assert_eq!((named(&mended), mended.backups.len()), (vec![], 0));
        assert_eq!(check_with_gaps(&mut world, &before, &to, end).await, []);
        let there = look(&cluster(&to, &mut world).await).await;
        let shapes = |all: &[WalEntry]| all.iter().map(shape).collect::<Vec<_>>();
        assert_eq!(shapes(&there.index.wal), shapes(&before.index.wal), "{number}");
    }
}

#[test]
fn a_damaged_segment_costs_its_own_wal_until_it_is_mended() {
    simulate(each_segment(|store, key| {
        store.alter(key, |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        });
    }));
}

#[test]
fn a_segment_that_is_gone_costs_its_own_wal_until_it_is_back() {
    simulate(each_segment(|store, key| store.lose(key)));
}

#[test]
fn a_lost_flush_object_is_a_gap_and_what_follows_it_is_copied() {
    simulate(async {
        let mut world = with_backups(23, 1).await;
        // Nothing is compacted meanwhile.
        world.pace = Some(Duration::from_secs(360_000));
        world.server.write_more(2 << 20);
        received(&mut world, 2).await;
        let source = world.cluster_of(20).await.unwrap();
        let before = look(&source).await;
        let chain = before.wal.chains().last().unwrap();
        let objects: Vec<_> =
            chain.objects.iter().filter(|object| object.meta.start < object.meta.end).collect();
        assert!(objects.len() > 2, "{}", objects.len());
        let lost = objects[objects.len() / 2];
        let whole = world.store.objects()[&lost.key].clone();
        world.store.lose(&lost.key);
        let to = empty(&mut world, 53).await;
        let done = copy_all(&source, &open(&to, world.env()).await).await.unwrap();
        assert_eq!(named(&done), [lost.key.to_string()]);
        let range = LsnRange::new(lost.meta.start, lost.meta.end);
        let end = world.server.end();
        assert_eq!(check_with_gaps(&mut world, &before, &to, end).await, [range]);

        world.store.put(&lost.key, whole);
        let mended = copy_all(&source, &open(&to, world.env()).await).await.unwrap();
        assert_eq!((named(&mended), mended.wal_bytes), (vec![], range.len()));
        assert_eq!(check(&mut world, &to).await, (1, world.server.end().get()));
        verified(&to, world.env()).await;
    });
}

#[test]
fn wal_that_was_copied_before_it_was_lost_is_no_gap() {
    simulate(async {
        let mut world = with_backups_and_wal(63, 2, 2 << 20).await;
        let to = empty(&mut world, 64).await;
        let source = world.cluster_of(20).await.unwrap();
        copy_all(&source, &open(&to, world.env()).await).await.unwrap();
        let entry = look(&source).await.index.wal[0].clone();
        world.store.lose(&layout::segment(source.name(), entry.id));
        let again = copy_all(&source, &open(&to, world.env()).await).await.unwrap();
        assert_eq!((named(&again), again.wal_segments), (vec![], 0));
        assert_eq!(look(&cluster(&to, &mut world).await).await.index.gaps, []);
        assert_eq!(check(&mut world, &to).await, (2, world.server.end().get()));
    });
}

#[test]
fn the_end_of_what_was_copied_may_be_gone_on_either_side() {
    for is_of_the_source in [true, false] {
        simulate(async {
            let mut world = with_backups_and_wal(77, 1, 2 << 20).await;
            let to = empty(&mut world, 78).await;
            let source = world.cluster_of(20).await.unwrap();
            compact::compact(&source, Some(DELTAS), Extent::All).await.unwrap();
            copy_all(&source, &open(&to, world.env()).await).await.unwrap();
            let copied = world.server.end();
            world.pace = Some(Duration::from_secs(360_000));
            world.server.write_more(64 << 10);
            received(&mut world, 2).await;
            let theirs = cluster(&to, &mut world).await;
            let (of, store) = match is_of_the_source {
                true => (&source, &world.store),
                false => (&theirs, &to),
            };
            let wal = look(of).await.index.wal;
            let last = wal.iter().find(|entry| entry.end == copied).unwrap();
            store.lose(&layout::segment(of.name(), last.id));
            let done = copy_all(&source, &open(&to, world.env()).await).await.unwrap();
            assert_eq!((named(&done), done.left_out), (vec![], vec![]));
            let end = look(&theirs).await.wal.durable_end().unwrap().lsn;
            assert_eq!(end, world.server.end());
        });
    }
}

/// How often each range of these segments of chunks was read by `client`.
fn reads(world: &World, client: u32, ends: &BTreeMap<ObjectKey, u64>) -> BTreeMap<(ObjectKey, u64), usize> {
    let mut reads = BTreeMap::new();
    for op in world.store.log().iter().filter(|op| op.client == client) {
        if let Request::GetRange(key, range) = &op.request
            && range.start > 0
            && ends.get(key).is_some_and(|end| range.end <= *end)
        {
            *reads.entry((key.clone(), range.start)).or_default() += 1;
        }
    }
    reads
}

#[test]
fn a_damaged_backup_is_read_once_more_at_most_however_its_source_moves() {
    simulate(async {
        let mut world = with_backups(16, 2).await;
        let index = look(&world.cluster_of(20).await.unwrap()).await.index;
        let name = world.cluster.clone();
        let ends: BTreeMap<ObjectKey, u64> = index
            .pages
            .iter()
            .map(|entry| (layout::segment(&name, entry.id), entry.directory_offset))
            .collect();
        // The end of the chunks of the first segment: most is read before it.
        let (damaged, end) = ends.iter().next().unwrap();
        world.store.alter(damaged, |bytes| bytes[*end as usize - 20] ^= 1);
        let to = empty(&mut world, 39).await;
        to.set_faults(StoreFaults {
            latency: Duration::from_millis(100)..Duration::from_millis(900),
            ..StoreFaults::default()
        });
        let source = world.cluster_of(21).await.unwrap();
        let repo = open(&to, world.env()).await;
        let (_stop, stopped) = tokio::sync::watch::channel(false);
        world.pace = Some(Duration::from_millis(300));
        let receiving = world.receiver(1, stopped).await;
        let server = world.server.clone();
        // Every pass finds another index than the one before.
        let writing = async {
            loop {
                server.write_more(4 << 10);
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        let done = tokio::select! {
            done = copy_all(&source, &repo) => done.unwrap(),
            ended = receiving => panic!("{ended:?}"),
            () = writing => unreachable!(),
        };
        assert!(!done.left_out.is_empty(), "{done:?}");
        let reads = reads(&world, 21, &ends);
        assert!(reads.len() > 1 && reads.values().all(|times| *times <= 2), "{reads:?}");
    });
}

#[test]
fn the_end_of_a_stream_that_is_lost_is_told_and_is_no_gap_yet() {
    simulate(async {
        let mut world = with_backups(65, 1).await;
        world.pace = Some(Duration::from_secs(360_000));
        world.server.write_more(2 << 20);
        received(&mut world, 2).await;
        let source = world.cluster_of(20).await.unwrap();
        let before = look(&source).await;
        let objects = &before.wal.chains().last().unwrap().objects;
        // All behind it are damaged too: nothing says where WAL would begin again.
        let first = objects.iter().position(|object| object.meta.end > object.meta.start).unwrap() + 1;
        for object in &objects[first..] {
            world.store.alter(&object.key, |bytes| *bytes.last_mut().unwrap() ^= 1);
        }
        let to = empty(&mut world, 66).await;
        let done = copy_all(&source, &open(&to, world.env()).await).await.unwrap();
        assert!(named(&done).contains(&objects[first].key.to_string()), "{done:?}");
        assert_eq!((done.missing[0].start, done.missing[0].end), (Some(objects[first].meta.start), None));
        let there = look(&cluster(&to, &mut world).await).await;
        assert_eq!(there.index.gaps, []);
        let (_, end) = check(&mut world, &to).await;
        assert_eq!(Lsn::new(end), objects[first].meta.start);
    });
}
