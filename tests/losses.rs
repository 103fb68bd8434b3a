//! A flush object that is damaged or missing costs the WAL that it held, and nothing else: receiving goes on, what lies before and
//! behind it can be read, `verify` names it, and once it is recorded everything behind it is compacted.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::crash::{Mode, WORK_GRACE, World, simulate, unlock};
use common::keys::open;
use common::sim_server::SimServer;
use common::sim_store::{Request, StoreFaults, StoreOp};
use std::time::Duration;
use tokio::sync::watch;
use walden::base::limits::{COMPACT_INTERVAL, FLUSHES_IN_FLIGHT_MAX, LOSS_LASTS_MIN};
use walden::base::progress::Unwatched;
use walden::base::{Generation, Lsn, LsnRange, ObjectKey, TimelineId};
use walden::format::header::{ObjectHeader, ObjectKind};
use walden::receive::compact::{self, Compactor, Extent};
use walden::receive::upgrade::{self, MissingWal, NewServer, UpgradeOptions};
use walden::repo::fences::FENCE_BYTES_MAX;
use walden::repo::losses::{self, Loss};
use walden::repo::{Cluster, RepoError, RootChange, WalReader, layout, slots, walmap};
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
    world.receive_all(client).await;
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
async fn record(cluster: &Cluster) -> Result<Vec<Loss>, RepoError> {
    let mut all = Vec::new();
    loop {
        compact::compact(cluster, None, Extent::All).await?;
        match losses::record_first(cluster).await? {
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
    // A heartbeat that was cut may have been a fence, for all that is known.
    let left = world.store.objects().get(&key).cloned();
    let stays =
        left.is_some_and(|left| left.len() as u64 <= FENCE_BYTES_MAX && ObjectHeader::decode(&left).is_err());
    assert!(verify(&mut world).await.contains(&key.to_string()), "{told}");
    // Whoever receives goes on, behind what is lost or from there on, whoever compacts does not hide it.
    receive(&mut world, 2, 200 << 10).await;
    check(&mut world, lost).await;
    let ours = cluster(&mut world).await;
    compact::compact(&ours, None, Extent::All).await.unwrap();
    check(&mut world, lost).await;
    assert!(verify(&mut world).await.contains(&key.to_string()), "{told}: it is told until it is recorded");
    let lost_now = losses::losses(&ours).await.unwrap();
    assert_eq!(lost_now.len(), 1, "{told}: {lost_now:?}");
    let recorded = record(&ours).await.unwrap();
    assert_eq!(recorded, lost_now, "{told}");
    assert_eq!(record(&ours).await.unwrap(), [], "{told}: a second time");
    check(&mut world, lost).await;
    // Until it is collected it is there, and nothing needs it.
    assert!(verify(&mut world).await.iter().all(|told| *told == key.to_string()), "{told}");
    // Everything is compacted, and what was replaced goes, the damaged object too.
    let snapshot = walmap::load(&ours).await.unwrap();
    assert!(snapshot.wal.chains().iter().all(|chain| chain.objects.is_empty()), "{told}");
    let gaps: Vec<LsnRange> =
        snapshot.wal.gaps().iter().map(|gap| LsnRange::new(gap.start, gap.end)).collect();
    // Where the first of all began, nobody knows any more.
    let is_lost = |gap: &LsnRange| gap.end == lost.end && [lost.start, Lsn::ZERO].contains(&gap.start);
    assert!(gaps.iter().all(is_lost), "{told}: {gaps:?}");
    receive(&mut world, 3, 100 << 10).await;
    tokio::time::sleep(WORK_GRACE * 2).await;
    for _ in 0..2 {
        gc::collect_with(&ours, Duration::ZERO, WORK_GRACE).await.unwrap();
    }
    assert_eq!(world.store.objects().contains_key(&key), stays, "{told}");
    check(&mut world, lost).await;
    let named: Vec<String> = stays.then(|| key.to_string()).into_iter().collect();
    assert_eq!(verify(&mut world).await, named, "{told}");
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

/// A world with WAL in flush objects of two writers, the first of which left `key` in the middle; and what that holds.
async fn uncompacted(seed: u64) -> (World, ObjectKey, LsnRange) {
    let mut world = World::new(seed, Mode::Object, 0).await;
    world.server = SimServer::new(seed, 0, false);
    receive(&mut world, 1, 2 << 20).await;
    let key = flushes(&world)[2].clone();
    receive(&mut world, 2, 200 << 10).await;
    let lost = range_of(&mut world, &key).await;
    (world, key, lost)
}

async fn gaps(cluster: &Cluster) -> Vec<LsnRange> {
    let map = walmap::load(cluster).await.unwrap().wal;
    map.gaps().iter().map(|gap| LsnRange::new(gap.start, gap.end)).collect()
}

/// WAL that is not compacted.
async fn waiting(cluster: &Cluster) -> u64 {
    let map = walmap::load(cluster).await.unwrap().wal;
    let objects = map.chains().iter().flat_map(|chain| &chain.objects);
    objects.map(|object| object.meta.end.bytes_since(object.meta.start)).sum()
}

/// Compacts as a receiver does, again and again, for so long.
async fn compact_for(compactor: &mut Compactor, time: Duration) {
    for _ in 0..time.as_secs() / COMPACT_INTERVAL.as_secs() {
        tokio::time::sleep(COMPACT_INTERVAL).await;
        // A pass that fails is tried again.
        compactor.compact(Extent::All).await.ok();
    }
}

#[test]
fn a_loss_that_nobody_repairs_is_recorded_beside_a_receiver_once_it_has_lasted() {
    for (seed, harm) in [(1, Harm::Flipped), (2, Harm::Cut), (3, Harm::Gone)] {
        simulate(async {
            let (mut world, key, lost) = uncompacted(seed).await;
            match harm {
                Harm::Flipped => world.store.alter(&key, |bytes| bytes[200] ^= 4),
                Harm::Cut => world.store.alter(&key, |bytes| bytes.truncate(bytes.len() / 2)),
                Harm::Gone => world.store.lose(&key),
            }
            let ours = cluster(&mut world).await;
            world.pace = Some(COMPACT_INTERVAL);
            let (stop, stopped) = watch::channel(false);
            let (receiving, server) = (world.receiver(3, stopped).await, world.server.clone());
            let watching = async {
                let mut recorded_after = None;
                for minute in 0..120 {
                    server.write_more(1 << 10);
                    tokio::time::sleep(Duration::from_secs(60)).await;
                    if recorded_after.is_none() && !gaps(&ours).await.is_empty() {
                        recorded_after = Some(Duration::from_secs(60 * minute));
                    }
                }
                stop.send_replace(true);
                recorded_after
            };
            let (received, recorded_after) = tokio::join!(receiving, watching);
            received.unwrap();
            let told = format!("{harm:?}: recorded after {recorded_after:?}");
            let after = recorded_after.expect(&told);
            assert!(after >= LOSS_LASTS_MIN && after <= LOSS_LASTS_MIN + COMPACT_INTERVAL * 3, "{told}");
            assert_eq!(gaps(&ours).await, [lost], "{told}");
            let streams = ours.newest_root().await.unwrap().streams.len();
            assert!(streams <= 2, "{told}: {streams} streams are left");
            compact::compact(&ours, None, Extent::All).await.unwrap();
            assert_eq!(waiting(&ours).await, 0, "{told}");
            check(&mut world, lost).await;
            tokio::time::sleep(WORK_GRACE * 2).await;
            for _ in 0..2 {
                gc::collect_with(&ours, Duration::ZERO, WORK_GRACE).await.unwrap();
            }
            assert_eq!(verify(&mut world).await, Vec::<String>::new(), "{told}");
        });
    }
}

#[test]
fn two_losses_that_have_lasted_are_recorded_in_one_pass() {
    simulate(async {
        let (mut world, key, _) = uncompacted(4).await;
        let (stream, number) = layout::parse_flush(&key).unwrap();
        let next_but_one = layout::flush(&world.cluster, stream, number + 2);
        for key in [&key, &next_but_one] {
            world.store.alter(key, |bytes| bytes[200] ^= 4);
        }
        let mut compactor = Compactor::new(cluster(&mut world).await, None);
        compact_for(&mut compactor, LOSS_LASTS_MIN).await;
        let ours = cluster(&mut world).await;
        assert_eq!(gaps(&ours).await, []);
        compact_for(&mut compactor, COMPACT_INTERVAL * 2).await;
        assert_eq!((gaps(&ours).await.len(), waiting(&ours).await), (2, 0));
    });
}

#[test]
fn a_store_that_fails_for_hours_loses_nothing() {
    simulate(async {
        let (mut world, key, lost) = uncompacted(5).await;
        let ours = cluster(&mut world).await;
        let mut compactor = Compactor::new(ours.clone(), None);
        // Damaged when the store was seen last, and whole when it is back.
        let whole = world.store.objects()[&key].clone();
        world.store.alter(&key, |bytes| bytes[200] ^= 4);
        compactor.compact(Extent::All).await.unwrap();
        world.store.put(&key, whole);
        world.store.set_faults(StoreFaults { read_fails: 1.0, ..StoreFaults::default() });
        compact_for(&mut compactor, LOSS_LASTS_MIN * 2).await;
        world.store.set_faults(StoreFaults::default());
        assert_eq!(gaps(&ours).await, []);
        compact_for(&mut compactor, COMPACT_INTERVAL).await;
        assert_eq!((gaps(&ours).await, waiting(&ours).await), (Vec::new(), 0), "{key}, {lost}");
        check(&mut world, LsnRange::new(Lsn::ZERO, Lsn::ZERO)).await;
    });
}

#[test]
fn a_store_that_lies_now_and_then_loses_nothing() {
    simulate(async {
        let (mut world, key, _) = uncompacted(6).await;
        let ours = cluster(&mut world).await;
        let mut compactor = Compactor::new(ours.clone(), None);
        let whole = world.store.objects()[&key].clone();
        // Each time it is seen to be lost, and the next time it is there; but for what is before it, nothing is compacted meanwhile.
        for _ in 0..10 {
            world.store.alter(&key, |bytes| bytes[200] ^= 4);
            compactor.compact(Extent::All).await.unwrap();
            world.store.put(&key, whole.clone());
            assert_eq!(losses::losses(&ours).await.unwrap(), []);
            // What follows waits for a lock in the store, as if others held it up.
            world.store.refuse_writes_of(1000);
            compactor.compact(Extent::All).await.unwrap_err();
            world.store.allow_writes_of(1000);
            tokio::time::sleep(COMPACT_INTERVAL * 2).await;
        }
        assert_eq!(gaps(&ours).await, []);
        compact_for(&mut compactor, COMPACT_INTERVAL).await;
        assert_eq!((gaps(&ours).await, waiting(&ours).await), (Vec::new(), 0));
        check(&mut world, LsnRange::new(Lsn::ZERO, Lsn::ZERO)).await;
    });
}

#[test]
fn what_a_key_is_missing_for_is_not_lost() {
    simulate(async {
        let mut world = World::new(7, Mode::Object, 0).await;
        world.server = SimServer::new(7, 0, false);
        receive(&mut world, 1, 100 << 10).await;
        // It holds the first epoch alone, and what is sealed under the second is there and shut.
        let ours = cluster(&mut world).await;
        slots::rotate(cluster(&mut world).await.repo()).await.unwrap();
        receive(&mut world, 2, 400 << 10).await;
        let secrets: Vec<(ObjectKey, bytes::Bytes)> = world.store.objects().into_iter().collect();
        let secrets = secrets
            .into_iter()
            .filter(|(key, _)| key.as_str().starts_with("keys/epochs/2/") && key.file_name() != "_link");
        let secrets: Vec<(ObjectKey, bytes::Bytes)> = secrets.collect();
        assert!(secrets.len() >= 2);
        secrets.iter().for_each(|(key, _)| world.store.lose(key));
        let mut compactor = Compactor::new(ours.clone(), None);
        let shut = compactor.compact(Extent::All).await.unwrap_err();
        assert!(matches!(shut, RepoError::NoKey { .. }), "{shut}");
        compact_for(&mut compactor, LOSS_LASTS_MIN * 2).await;
        secrets.into_iter().for_each(|(key, bytes)| world.store.put(&key, bytes));
        let ours = cluster(&mut world).await;
        compact::compact(&ours, None, Extent::All).await.unwrap();
        assert_eq!((gaps(&ours).await, waiting(&ours).await), (Vec::new(), 0));
        check(&mut world, LsnRange::new(Lsn::ZERO, Lsn::ZERO)).await;
    });
}

#[test]
fn the_end_of_a_stream_that_is_open_is_not_recorded_however_long_it_is_lost() {
    simulate(async {
        let mut world = World::new(8, Mode::Object, 0).await;
        world.server = SimServer::new(8, 0, false);
        receive(&mut world, 1, 300 << 10).await;
        let objects = world.store.objects();
        let newest = objects.keys().filter(|key| layout::parse_flush(key).is_some()).max().unwrap().clone();
        world.store.alter(&newest, |bytes| bytes[200] ^= 4);
        let ours = cluster(&mut world).await;
        let mut compactor = Compactor::new(ours.clone(), None);
        compact_for(&mut compactor, LOSS_LASTS_MIN * 2).await;
        assert_eq!((gaps(&ours).await, losses::losses(&ours).await.unwrap().len()), (Vec::new(), 1));
        // Whoever receives now closes it, and has what was lost sent again.
        receive(&mut world, 2, 64 << 10).await;
        compact_for(&mut compactor, LOSS_LASTS_MIN * 2).await;
        assert_eq!((losses::losses(&ours).await.unwrap(), waiting(&ours).await), (Vec::new(), 0));
        check(&mut world, LsnRange::new(Lsn::ZERO, Lsn::ZERO)).await;
    });
}

fn newest_flush(world: &World) -> ObjectKey {
    let objects = world.store.objects();
    objects.keys().filter(|key| layout::parse_flush(key).is_some()).max().unwrap().clone()
}

#[test]
fn the_last_wal_of_a_generation_is_a_gap_without_an_end_once_it_is_lost() {
    simulate(async {
        let mut world = World::new(9, Mode::Object, 0).await;
        world.server = SimServer::new(9, 0, false);
        receive(&mut world, 1, 600 << 10).await;
        let newest = newest_flush(&world);
        let lost = range_of(&mut world, &newest).await;
        let new = world.server.upgraded(10, 100 << 10);
        world.server.go_away();
        let (repo, receive) = (world.open(2).await.unwrap(), world.options());
        let options = UpgradeOptions { server: NewServer::Any, missing: MissingWal::Accept, receive };
        upgrade::upgrade(repo, world.cluster.clone(), &new, &options).await.unwrap();
        world.store.alter(&newest, |bytes| bytes[200] ^= 4);
        let ours = cluster(&mut world).await;
        compact_for(&mut Compactor::new(ours.clone(), None), LOSS_LASTS_MIN * 2).await;
        let old = walmap::load_generation(&ours, Generation(1)).await.unwrap().wal;
        let gaps: Vec<LsnRange> = old.gaps().iter().map(|gap| LsnRange::new(gap.start, gap.end)).collect();
        assert_eq!(gaps, [LsnRange::new(lost.start, Lsn::MAX)]);
        assert_eq!(losses::losses(&ours).await.unwrap(), []);
    });
}

#[test]
fn the_last_wal_before_a_failover_is_a_gap_up_to_it_once_it_is_lost() {
    simulate(async {
        let mut world = World::new(10, Mode::Object, 0).await;
        world.server = SimServer::new(10, 0, false);
        receive(&mut world, 1, 600 << 10).await;
        let newest = newest_flush(&world);
        let lost = range_of(&mut world, &newest).await;
        world.server.standby_catches_up();
        world.server.fail_over();
        receive(&mut world, 2, 300 << 10).await;
        world.store.alter(&newest, |bytes| bytes[200] ^= 4);
        let ours = cluster(&mut world).await;
        compact_for(&mut Compactor::new(ours.clone(), None), LOSS_LASTS_MIN * 2).await;
        assert_eq!(gaps(&ours).await, [LsnRange::new(lost.start, world.server.left_behind()[0].1)]);
        assert_eq!(losses::losses(&ours).await.unwrap(), []);
    });
}

#[test]
fn a_damaged_fence_is_not_given_up_and_stays_when_a_person_does() {
    simulate(async {
        let mut world = World::new(11, Mode::Object, 0).await;
        world.server = SimServer::new(11, 0, false);
        receive(&mut world, 1, 300 << 10).await;
        receive(&mut world, 2, 100 << 10).await;
        let fences = world.store.objects().into_iter().filter(|(_, bytes)| {
            ObjectHeader::decode(bytes).is_ok_and(|(header, _)| header.kind == ObjectKind::Fence)
        });
        let (fence, _) = fences.last().unwrap();
        world.store.alter(&fence, |bytes| bytes[20] ^= 4);
        // Whoever takes over closes the stream behind it.
        receive(&mut world, 3, 100 << 10).await;
        let ours = cluster(&mut world).await;
        compact_for(&mut Compactor::new(ours.clone(), None), LOSS_LASTS_MIN * 2).await;
        assert_eq!(losses::losses(&ours).await.unwrap().len(), 1, "a compactor does not record it");
        record(&ours).await.unwrap();
        receive(&mut world, 4, 100 << 10).await;
        tokio::time::sleep(WORK_GRACE * 2).await;
        for _ in 0..2 {
            gc::collect_with(&ours, Duration::ZERO, WORK_GRACE).await.unwrap();
        }
        assert!(world.store.objects().contains_key(&fence), "its number is free again");
        assert_eq!(losses::losses(&ours).await.unwrap(), []);
    });
}

#[test]
fn what_a_newer_walden_wrote_is_not_lost() {
    simulate(async {
        let (mut world, key, _) = uncompacted(12).await;
        let whole = world.store.objects()[&key].clone();
        world.store.alter(&key, |bytes| {
            bytes[12] = 1;
            let crc = crc32fast::hash(&bytes[..152]);
            bytes[152..156].copy_from_slice(&crc.to_le_bytes());
        });
        let ours = cluster(&mut world).await;
        let mut compactor = Compactor::new(ours.clone(), None);
        let refused = compactor.compact(Extent::All).await.unwrap_err();
        assert!(matches!(refused, RepoError::Newer { .. }) && !refused.is_damage(), "{refused}");
        compact_for(&mut compactor, LOSS_LASTS_MIN * 2).await;
        world.store.put(&key, whole);
        compact_for(&mut compactor, COMPACT_INTERVAL).await;
        assert_eq!((gaps(&ours).await, waiting(&ours).await), (Vec::new(), 0));
    });
}

/// Verification is held up after this or that number of requests; meanwhile an object is harmed, and a root is made.
#[test]
fn a_loss_that_verification_comes_to_is_told_although_roots_move_meanwhile() {
    let mut met = 0;
    simulate(async {
        let (mut world, key, _) = uncompacted(13).await;
        // Odd and even.
        for requests in (1..).step_by(5) {
            let store = world.store.fork();
            let (looking, other) = (store.client(7), store.client(8));
            let repo = open(&looking, &unlock(), world.env()).await.unwrap();
            let ours = open(&other, &unlock(), world.env()).await.unwrap();
            let ours = Cluster::open(ours, world.cluster.clone()).await.unwrap();
            looking.hold_after(requests);
            let verifying =
                async { verify::with_key(&repo, verify::Options::WHOLE, &Unwatched).await.unwrap() };
            let mut verifying = std::pin::pin!(verifying);
            let held = async {
                while !looking.is_held() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::select! { biased; _ = &mut verifying => break, () = held => {} }
            match requests % 2 {
                0 => store.lose(&key),
                _ => store.alter(&key, |bytes| bytes.iter_mut().for_each(|byte| *byte ^= 0x55)),
            }
            ours.commit::<RepoError>(|root| Ok(Some(RootChange::of(root.clone())))).await.unwrap();
            let before = store.log().len();
            looking.hold(false);
            let report = verifying.await;
            let comes_to_it = |op: &StoreOp| match &op.request {
                Request::Get(read) | Request::GetRange(read, _) | Request::Head(read) => {
                    op.client == 7 && *read == key
                }
                Request::Create(..) | Request::Delete(_) | Request::List(_) => false,
            };
            if store.log()[before..].iter().any(comes_to_it) {
                met += 1;
                let told = report.findings.iter().any(|finding| finding.key == key.to_string());
                assert!(told, "after {requests} requests: {:?}", report.findings);
            }
        }
    });
    assert!(met > 5, "{met}");
}
