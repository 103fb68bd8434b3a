//! A flush object that is damaged or missing costs the WAL that it held, and nothing else: receiving goes on, what lies before and
//! behind it can be read, `verify` names it, and once it is recorded everything behind it is compacted.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::crash::{Mode, WORK_GRACE, World, simulate};
use common::sim_server::SimServer;
use std::time::Duration;
use tokio::sync::watch;
use walden::base::limits::FLUSHES_IN_FLIGHT_MAX;
use walden::base::progress::Unwatched;
use walden::base::{Lsn, LsnRange, ObjectKey, TimelineId};
use walden::receive::compact::{self, Extent};
use walden::repair::wal;
use walden::repo::{Cluster, RepoError, WalReader, layout, walmap};
use walden::retain::gc;
use walden::verify;

/// What becomes of an object.
#[derive(Debug, Clone, Copy)]
enum Harm {
    Flipped,
    Cut,
    Gone,
}

/// Receives `bytes` more, in flush objects that are not compacted.
async fn receive(world: &mut World, client: u32, bytes: u64) {
    world.pace = Some(Duration::from_secs(1_000_000));
    world.server.write_more(bytes);
    let (stop, stopped) = watch::channel(false);
    let (receiving, server) = (world.receiver(client, stopped).await, world.server.clone());
    let finishing = async {
        while !server.is_finished() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        stop.send_replace(true);
    };
    let (received, ()) = tokio::join!(receiving, finishing);
    received.unwrap();
}

fn flushes(world: &World) -> Vec<ObjectKey> {
    let objects = world.store.objects();
    let mut keys: Vec<ObjectKey> =
        objects.keys().filter(|key| layout::parse_flush(key).is_some()).cloned().collect();
    // A fence is the last of its stream.
    keys.sort();
    let last = |at: usize| {
        let stream = |key: &ObjectKey| layout::parse_flush(key).map(|(stream, _)| stream);
        keys.get(at + 1).is_none_or(|next| stream(next) != stream(&keys[at]))
    };
    (0..keys.len()).filter(|at| !last(*at)).map(|at| keys[at].clone()).collect()
}

async fn cluster(world: &mut World) -> Cluster {
    Cluster::open(world.open(1000).await.unwrap(), world.cluster.clone()).await.unwrap()
}

/// Everything that can be read of the WAL is the server's, and what cannot is `lost` at most.
async fn check(world: &mut World, lost: LsnRange) {
    let cluster = cluster(world).await;
    let map = walmap::load(&cluster).await.unwrap().wal;
    let end = world.server.end();
    let (whole, bytes) = world.server.wal_until(end);
    let ranges = map.ranges(TimelineId(1));
    let held: u64 = ranges.iter().map(|range| range.len()).sum();
    assert!(held + lost.len() >= whole.len(), "{ranges:?} of {whole}, lost {lost}");
    let mut reader = WalReader::new(cluster, map);
    for range in ranges {
        let read = reader.read(TimelineId(1), range).await.unwrap();
        let at = range.start.bytes_since(whole.start) as usize;
        assert!(read[..] == bytes[at..at + read.len()], "{range} differs");
    }
}

/// What the object held.
async fn range_of(world: &mut World, key: &ObjectKey) -> LsnRange {
    let cluster = cluster(world).await;
    let snapshot = walmap::load(&cluster).await.unwrap();
    let mut objects = snapshot.wal.chains().iter().flat_map(|chain| &chain.objects);
    let object = objects.find(|object| object.key == *key).unwrap();
    LsnRange::new(object.meta.start, object.meta.end)
}

async fn verify(world: &mut World) -> Vec<String> {
    let cluster = cluster(world).await;
    let report = verify::with_key(cluster.repo(), verify::Options::WHOLE, &Unwatched).await.unwrap();
    report.findings.into_iter().map(|finding| finding.key).collect()
}

/// As `walden repair wal` does it.
async fn record(cluster: &Cluster) -> Result<Vec<wal::Loss>, RepoError> {
    let mut all = Vec::new();
    loop {
        compact::compact(cluster, None, Extent::All).await?;
        match wal::record_first(cluster).await? {
            Some(loss) => all.push(loss),
            None => return Ok(all),
        }
    }
}

/// Whether anything was lost.
async fn harmed(seed: u64, place: usize, harm: Harm) -> bool {
    let mut world = World::new(seed, Mode::Object, 0).await;
    world.server = SimServer::new(seed, 0, false);
    receive(&mut world, 1, 900 << 10).await;
    let keys = flushes(&world);
    let key = keys[place.min(keys.len() - 1)].clone();
    let (stream, number) = layout::parse_flush(&key).unwrap();
    let later = layout::flush(&world.cluster, stream, number + FLUSHES_IN_FLIGHT_MAX as u64);
    if matches!(harm, Harm::Gone) && !keys.contains(&later) {
        // Its writer may have died before it was there: nobody can know, and the stream ends with it.
        return false;
    }
    let lost = range_of(&mut world, &key).await;
    match harm {
        Harm::Flipped => world.store.alter(&key, |bytes| bytes[200] ^= 4),
        Harm::Cut => world.store.alter(&key, |bytes| bytes.truncate(bytes.len() / 2)),
        Harm::Gone => world.store.lose(&key),
    }
    let told = format!("seed {seed}: {harm:?} {key}, {lost}");
    assert!(verify(&mut world).await.contains(&key.to_string()), "{told}");
    // Whoever receives goes on, behind what is lost or from there on, whoever compacts does not hide it.
    receive(&mut world, 2, 200 << 10).await;
    check(&mut world, lost).await;
    let ours = cluster(&mut world).await;
    compact::compact(&ours, None, Extent::All).await.unwrap();
    check(&mut world, lost).await;
    assert!(verify(&mut world).await.contains(&key.to_string()), "{told}: it is told until it is recorded");
    let losses = wal::losses(&ours).await.unwrap();
    assert_eq!(losses.len(), 1, "{told}: {losses:?}");
    let recorded = record(&ours).await.unwrap();
    assert_eq!(recorded, losses, "{told}");
    assert_eq!(record(&ours).await.unwrap(), [], "{told}: a second time");
    check(&mut world, lost).await;
    // Until it is collected it is there, and nothing needs it.
    assert!(verify(&mut world).await.iter().all(|told| *told == key.to_string()), "{told}");
    // Everything is compacted, and what was replaced goes, the damaged object too.
    let snapshot = walmap::load(&ours).await.unwrap();
    assert!(snapshot.wal.chains().iter().all(|chain| chain.objects.is_empty()), "{told}");
    let gaps: Vec<LsnRange> =
        snapshot.wal.gaps().iter().map(|gap| LsnRange::new(gap.start, gap.end)).collect();
    assert!(gaps.iter().all(|gap| *gap == lost), "{told}: {gaps:?}");
    receive(&mut world, 3, 100 << 10).await;
    tokio::time::sleep(WORK_GRACE * 2).await;
    for _ in 0..2 {
        gc::collect_with(&ours, Duration::ZERO, WORK_GRACE).await.unwrap();
    }
    assert!(!world.store.objects().contains_key(&key), "{told}");
    check(&mut world, lost).await;
    assert_eq!(verify(&mut world).await, Vec::<String>::new(), "{told}");
    true
}

#[test]
fn a_lost_flush_object_costs_its_own_wal_and_nothing_else() {
    for harm in [Harm::Flipped, Harm::Cut, Harm::Gone] {
        let mut rounds = 0;
        for place in [0, 1, 2, 4, usize::MAX] {
            for seed in 1..=2 {
                rounds += usize::from(simulate(harmed(seed, place, harm)));
            }
        }
        assert!(rounds >= 5, "{harm:?}: {rounds} rounds");
    }
}

/// The newest flush object is lost after the journal let go of it, and the journal has what follows: whether that hit a seed.
async fn lost_behind_the_journal(seed: u64) -> bool {
    let mut world = World::new(seed, Mode::Journal, 0).await;
    world.server = SimServer::new(seed, 0, false);
    world.server.forget_at_once();
    receive(&mut world, 1, 300 << 10).await;
    // The repository is away from some moment on: what follows is in the journal alone.
    let (store, away) = (world.store.clone(), Duration::from_millis(world.rng.u64(500..6000)));
    world.server.write_more(1 << 20);
    let (stop, stopped) = watch::channel(false);
    let (receiving, server) = (world.receiver(2, stopped).await, world.server.clone());
    let cutting = async {
        tokio::time::sleep(away).await;
        store.cut(true);
        for _ in 0..300 {
            if server.is_finished() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        stop.send_replace(true);
    };
    // It may end with what it could not store.
    let (_, ()) = tokio::join!(receiving, cutting);
    world.store.cut(false);
    let ours = cluster(&mut world).await;
    let chains = walmap::load(&ours).await.unwrap().wal.chains().to_vec();
    let newest = chains.iter().flat_map(|chain| &chain.objects).max_by_key(|object| object.meta.end).unwrap();
    let lost = LsnRange::new(newest.meta.start, newest.meta.end);
    world.store.alter(&newest.key, |bytes| bytes[200] ^= 4);
    receive(&mut world, 3, 50 << 10).await;
    check(&mut world, lost).await;
    let whole = walmap::load(&ours).await.unwrap().wal.ranges(TimelineId(1)).len() == 1;
    record(&ours).await.unwrap();
    assert!(whole || !walmap::load(&ours).await.unwrap().wal.gaps().is_empty(), "seed {seed}");
    !whole
}

#[test]
fn a_journal_that_let_go_of_what_is_lost_goes_on_behind_it() {
    let hit = (1..=40).filter(|seed| simulate(lost_behind_the_journal(*seed))).count();
    println!("{hit} of 40 seeds");
    assert!(hit > 0, "the journal had it in every round");
}

#[test]
fn what_a_live_receiver_may_still_follow_is_not_recorded() {
    simulate(async {
        let mut world = World::new(5, Mode::Object, 0).await;
        world.server = SimServer::new(5, 0, false);
        receive(&mut world, 1, 300 << 10).await;
        let last = flushes(&world).pop().unwrap();
        // The receiver that ended left no fence: the last object may be the newest of one that runs.
        let objects = world.store.objects();
        let newest = objects.keys().filter(|key| layout::parse_flush(key).is_some()).max().unwrap().clone();
        assert!(newest >= last);
        world.store.alter(&newest, |bytes| bytes[200] ^= 4);
        let ours = cluster(&mut world).await;
        let refused = record(&ours).await.unwrap_err();
        assert!(matches!(refused, RepoError::Conflict { .. }), "{refused}");
        receive(&mut world, 2, 64 << 10).await;
        record(&ours).await.unwrap();
        assert_eq!(verify(&mut world).await, [newest.to_string()], "until it is collected");
        check(&mut world, LsnRange::new(Lsn::ZERO, Lsn::ZERO)).await;
        let end = walmap::load(&ours).await.unwrap().wal.contiguous_end(TimelineId(1), Lsn::new(16 << 20));
        assert_eq!(end, world.server.end(), "what was lost was sent again");
    });
}
