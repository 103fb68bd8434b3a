//! A newest root that is lost beside a receiver, backups and collection, under a simulated clock: nothing that was acknowledged is lost,
//! and everybody goes on with the root that is made anew, whoever stopped wherever.

use crate::common::crash::{GRACE, Mode, WORK_GRACE, World, simulate};
use crate::common::keeping::with_backups;
use crate::common::sim_server::SimServer;
use crate::common::sim_store::{SimStore, StoreFaults, StoreOp};
use std::time::Duration;
use tokio::sync::watch;
use walden::base::{ObjectKey, Unwatched};
use walden::format::header::ObjectKind;
use walden::format::record::Record;
use walden::format::root::{Floor, PendingKind, Root};
use walden::receive::pipeline::ReceiveError;
use walden::repair::root::{self, Plan};
use walden::repo::{Cluster, RepoError, RootChange, layout, roots, slots};
use walden::retain::{gc, pin};
use walden::verify;

/// The cluster, whatever its newest root is like.
async fn unread(world: &mut World, client: u32) -> Cluster {
    let repo = world.open(client).await.unwrap();
    Cluster::unchecked(repo, world.cluster.clone())
}

fn root_keys(world: &World) -> Vec<ObjectKey> {
    let prefix = format!("{}/", layout::roots_prefix(&world.cluster));
    world.store.objects().keys().filter(|key| key.as_str().starts_with(&prefix)).cloned().collect()
}

/// Flips a bit of each of the newest `count` roots, and leaves one. Says which was the newest.
fn damage(world: &World, count: usize) -> u64 {
    let keys = root_keys(world);
    for key in keys.iter().skip(1).rev().take(count) {
        world.store.alter(key, |bytes| bytes[200] ^= 1);
    }
    keys.last().unwrap().file_name().parse().unwrap()
}

async fn repair(world: &mut World, client: u32) -> Result<(Plan, Root), RepoError> {
    let cluster = unread(world, client).await;
    let plan = root::plan(&cluster).await?;
    let root = root::commit(&cluster, &plan).await?;
    Ok((plan, root))
}

/// A receiver writes, and others commit, while the newest roots are damaged and made anew.
async fn round(seed: u64) {
    let mut world = with_backups(seed, 2).await;
    let (_stop, stopped) = watch::channel(false);
    let mut receiving = Box::pin(world.receiver(2, stopped).await);
    let mut backup = Box::pin(world.backup(30).await);
    world.server.send_backups_slowly(Duration::from_secs(world.rng.u64(1..8)));
    let (before, lost_for) = (world.rng.u64(0..20_000), world.rng.u64(0..20_000));
    let count = world.rng.usize(1..=3);
    let server = world.server.clone();
    let mut made = None;
    let life = async {
        server.write_more(200 << 10);
        tokio::time::sleep(Duration::from_millis(before)).await;
        let damaged = damage(&world, count);
        server.write_more(200 << 10);
        tokio::time::sleep(Duration::from_millis(lost_for)).await;
        let plan = repair(&mut world, 7).await.map(|(plan, _)| (plan, damaged));
        server.write_more(200 << 10);
        tokio::time::sleep(Duration::from_secs(60)).await;
        plan
    };
    let repaired = {
        let mut life = Box::pin(life);
        let (mut received, mut backed_up) = (None, None);
        loop {
            tokio::select! {
                plan = &mut life => break plan,
                // It ends when it finds the root damaged; then it is begun anew below.
                ended = &mut receiving, if received.is_none() => received = Some(ended),
                ended = &mut backup, if backed_up.is_none() => { made = ended.as_ref().ok().map(|made| made.entry.id.clone()); backed_up = Some(ended) }
            }
        }
    };
    let (plan, damaged) = repaired.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    // A commit that was under way may have gone past the damaged roots.
    let is_noticed = !plan.is_whole() || plan.base.number > damaged;
    assert!(is_noticed && plan.broken_index.is_none(), "seed {seed}: {plan:?}");
    drop((receiving, backup));
    world.server.write_more(50 << 10);
    world.receive_all(3).await;
    assert_eq!(world.lost().await, None, "seed {seed}");
    let ours = world.cluster_of(8).await.unwrap();
    let index = ours.index(&ours.newest_root().await.unwrap()).await.unwrap();
    assert!(index.backups.len() >= 2, "seed {seed}");
    assert!(
        made.iter().all(|id| index.backup(id).is_some()),
        "seed {seed}: a backup that was said to be made"
    );
    // Collection goes on, and takes the damaged roots away in the end.
    for _ in 0..4 {
        tokio::time::sleep(WORK_GRACE * 2).await;
        let ours = world.cluster_of(8).await.unwrap();
        gc::collect_with(&ours, GRACE, WORK_GRACE).await.unwrap();
        ours.commit(|root| Ok::<_, RepoError>(Some(RootChange::of(root.clone())))).await.unwrap();
    }
    assert_eq!(world.lost().await, None, "seed {seed}");
    let report = verify::with_key(ours.repo(), verify::Options::WHOLE, &Unwatched).await.unwrap();
    assert_eq!(report.findings, [], "seed {seed}");
}

#[test]
fn a_receiver_goes_on_with_a_root_that_was_made_anew() {
    for seed in 1..=30 {
        simulate(round(seed));
    }
}

/// What becomes of the root before the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Damaged,
    Gone,
}

/// A world with backups, a damaged newest root, and before it one that had its own index object, with a pin, and is lost too.
async fn damaged(seed: u64, before: Before) -> World {
    let mut world = with_backups(seed, 2).await;
    let ours = world.cluster_of(7).await.unwrap();
    tokio::time::sleep(WORK_GRACE).await;
    gc::collect_with(&ours, GRACE, WORK_GRACE).await.unwrap();
    world.server.write_more(100 << 10);
    world.pace = Some(Duration::from_secs(1_000_000));
    world.receive_all(2).await;
    let index = ours.index(&ours.newest_root().await.unwrap()).await.unwrap();
    pin::pin(&ours, &index.backups[0].id, None, "tests").await.unwrap();
    ours.commit(|root| Ok::<_, RepoError>(Some(RootChange::of(root.clone())))).await.unwrap();
    damage(&world, 2);
    if before == Before::Gone {
        world.store.lose(root_keys(&world).iter().nth_back(1).unwrap());
    }
    world
}

/// Whether all that was committed is there.
async fn assert_whole(world: &mut World, told: &str) {
    assert_eq!(world.lost().await, None, "{told}");
    let ours = world.cluster_of(9).await.unwrap();
    let index = ours.index(&ours.newest_root().await.unwrap()).await.unwrap();
    assert_eq!((index.backups.len(), index.pins.len()), (2, 1), "{told}");
}

fn forked(world: &World, seed: u64) -> World {
    World::of(seed, Mode::Object, world.server.fork(), world.store.fork(), world.disk.fork(1))
}

async fn stopped_everywhere(before: Before) {
    let lost = damaged(41, before).await;
    let mut finished = false;
    let (mut requests, mut committed) = (0, 0);
    while !finished {
        requests += 1;
        let told = format!("{before:?}, stopped after {requests} requests");
        let mut world = forked(&lost, 4000 + requests);
        let theirs = unread(&mut world, 7).await;
        let stopped = world.store.client(7);
        stopped.hold_after(requests);
        let repairing = async {
            let plan = root::plan(&theirs).await?;
            root::commit(&theirs, &plan).await
        };
        tokio::select! {
            done = repairing => { done.unwrap(); finished = true; }
            () = held(&stopped) => {}
        }
        let plan = root::plan(&unread(&mut world, 8).await).await.unwrap();
        committed += u32::from(plan.is_whole());
        if !plan.is_whole() {
            let (_, root) = repair(&mut world, 8).await.unwrap();
            assert!(root.number > plan.base.number, "{told}");
        }
        assert_whole(&mut world, &told).await;
        world.server.write_more(20 << 10);
        world.receive_all(3).await;
        assert_whole(&mut world, &told).await;
    }
    assert!(requests > 20 && committed >= 2, "{requests} requests, {committed} times it was committed");
}

#[test]
fn a_repair_that_is_stopped_at_any_request_is_finished_by_the_next() {
    simulate(stopped_everywhere(Before::Damaged));
    simulate(stopped_everywhere(Before::Gone));
}

async fn held(client: &SimStore) {
    while !client.is_held() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn a_floor_that_rises_above_what_the_new_root_is_made_of_is_told() {
    simulate(async {
        let lost = damaged(43, Before::Damaged).await;
        let (mut requests, mut made) = (0, 0);
        loop {
            requests += 1;
            let mut world = forked(&lost, 6000 + requests);
            let (theirs, others) = (unread(&mut world, 7).await, unread(&mut world, 8).await);
            let plan = root::plan(&others).await.unwrap();
            let stopped = world.store.client(7);
            stopped.hold_after(requests);
            let rising = async {
                held(&stopped).await;
                let known = roots::newest_floor(others.repo(), others.name(), 0).await.unwrap();
                let number = known.map_or(0, |floor| floor.number) + 1;
                let key = layout::floor(others.name(), number);
                let floor = Floor { cluster: others.name().clone(), number, root: plan.base.number + 1 };
                let writer = others.repo().writer(ObjectKind::Floor, &key, [0; 16], number, 0);
                world.store.put(&key, writer.finish(floor.encode()).bytes);
                let is_made = world.store.objects().contains_key(&layout::root(others.name(), plan.number));
                stopped.hold(false);
                is_made
            };
            let repairing = async {
                let plan = root::plan(&theirs).await?;
                root::commit(&theirs, &plan).await
            };
            let mut repairing = Box::pin(repairing);
            let is_made = tokio::select! {
                done = &mut repairing => { done.unwrap(); break; }
                is_made = rising => is_made,
            };
            let ended = repairing.await;
            made += u32::from(is_made && ended.is_err());
            assert!(is_made || ended.is_err(), "the floor rose after {requests} requests: {ended:?}");
        }
        assert!(made > 0 && requests > 20, "{requests} requests, told {made} times once it was made");
    });
}

#[test]
fn a_root_that_cannot_be_read_for_a_moment_is_not_given_up() {
    simulate(async {
        let mut world = with_backups(45, 1).await;
        let newest = root_keys(&world).pop().unwrap();
        let whole = world.store.objects()[&newest].clone();
        damage(&world, 1);
        let ours = unread(&mut world, 7).await;
        let plan = root::plan(&ours).await.unwrap();
        let back = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            world.store.put(&newest, whole);
        };
        let (ended, ()) = tokio::join!(root::commit(&ours, &plan), back);
        assert!(matches!(ended, Err(RepoError::Conflict { .. })), "{ended:?}");
        assert_eq!(root_keys(&world).last(), Some(&newest));
    });
}

#[test]
fn a_receiver_outlives_a_store_that_does_not_say_whether_its_stream_is_named() {
    simulate(async {
        let mut world = with_backups(47, 1).await;
        world.pace = Some(Duration::from_secs(1_000_000));
        world.server.write_more(100 << 10);
        let before = world.store.log().len();
        let (stop, stopped) = watch::channel(false);
        let mut receiving = Box::pin(world.receiver(5, stopped).await);
        let first =
            |op: &StoreOp| op.client == 5 && op.creates("/wal/") && op.creates(&format!("/{:020}", 0));
        let stored = async {
            while !world.store.log()[before..].iter().any(first) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            world.store.set_faults(StoreFaults { read_fails: 1.0, ..StoreFaults::default() });
            world.server.go_away();
            tokio::time::sleep(Duration::from_secs(120)).await;
            world.store.set_faults(StoreFaults::default());
            tokio::time::sleep(Duration::from_secs(60)).await;
            stop.send_replace(true);
        };
        tokio::select! {
            ended = &mut receiving => panic!("{ended:?}"),
            () = stored => {}
        }
        receiving.await.unwrap();
        assert_eq!(world.lost().await, None);
    });
}

#[test]
fn a_receiver_that_was_taking_over_when_its_root_was_lost_acknowledges_nothing_that_nobody_finds() {
    simulate(async {
        let mut whole = with_backups(51, 1).await;
        whole.pace = Some(Duration::from_secs(1_000_000));
        whole.receive_all(2).await;
        let roots_before = root_keys(&whole).len();
        let (mut requests, mut named, mut unnamed) = (0, 0, 0);
        loop {
            requests += 1;
            let mut world = forked(&whole, 5000 + requests);
            world.pace = Some(Duration::from_secs(1_000_000));
            world.server.write_more(100 << 10);
            let (_stop, stopped) = watch::channel(false);
            let stalled = world.store.client(5);
            stalled.hold_after(requests);
            let mut receiving = Box::pin(world.receiver(5, stopped).await);
            tokio::select! {
                ended = &mut receiving => panic!("{ended:?}"),
                () = held(&stalled) => {}
            }
            if root_keys(&world).len() == roots_before {
                continue;
            }
            damage(&world, 1);
            let (plan, _) = repair(&mut world, 8).await.unwrap();
            if plan.streams.is_empty() {
                unnamed += 1
            } else {
                named += 1
            }
            // In every other round the server goes away, and what was received goes on being stored without it.
            let back = world.server.fork();
            let is_alone = requests % 2 == 0;
            if is_alone {
                world.server.go_away();
            }
            stalled.hold(false);
            // It goes on, or ends; what it acknowledges is found.
            let ended = tokio::time::timeout(Duration::from_secs(30), &mut receiving).await;
            if is_alone {
                // Unless it came to the damaged root.
                let goes_on = match &ended {
                    Ok(Err(ReceiveError::Repo(error))) => error.is_damage(),
                    ended => ended.is_err(),
                };
                assert!(goes_on, "stopped after {requests} requests: {ended:?}");
                world.server.become_another(&back);
            }
            assert_eq!(world.lost().await, None, "stopped after {requests} requests");
            world.server.write_more(20 << 10);
            drop(receiving);
            world.receive_all(6).await;
            assert_eq!(world.lost().await, None, "stopped after {requests} requests, and begun anew");
            // Nor does it leave a stream open that no root names.
            let plan = root::plan(&unread(&mut world, 8).await).await.unwrap();
            assert_eq!(plan.streams, [], "stopped after {requests} requests");
            if named > 5 {
                break;
            }
        }
        assert!(unnamed > 2, "its stream was found {named} times, and not {unnamed} times");
    });
}

#[test]
fn registered_work_goes_on_unless_it_has_stalled() {
    simulate(async {
        let mut world = with_backups(61, 1).await;
        let ours = world.cluster_of(7).await.unwrap();
        let register = |kind| walden::repo::Registration::create(&ours, kind, None, "tests");
        let old = register(PendingKind::Restore).await.unwrap();
        tokio::time::sleep(walden::base::limits::WORK_GRACE_MIN).await;
        let renewed = register(PendingKind::Restore).await.unwrap();
        renewed.renew().await.unwrap();
        let newest = register(PendingKind::Backup).await.unwrap();
        // The roots that registered the newest, and renewed the other.
        damage(&world, 2);
        let (plan, root) = repair(&mut world, 8).await.unwrap();
        assert_eq!(plan.work.going_on, root.pending);
        assert_eq!(plan.work.ended.len(), 2, "the old one, and what was renewed: {plan:?}");
        assert!(root.pending.iter().all(|entry| entry.root <= plan.base.number));
        assert!(old.leave(&root).is_none());
        renewed.renew().await.unwrap();
        assert!(newest.abandon().await.unwrap());
        assert_eq!(ours.newest_root().await.unwrap().pending.len(), 1);
    });
}

#[test]
fn collection_leaves_a_root_to_make_another_of() {
    simulate(async {
        let mut world = with_backups(71, 1).await;
        let ours = world.cluster_of(7).await.unwrap();
        for _ in 0..4 {
            tokio::time::sleep(WORK_GRACE * 4).await;
            gc::collect_with(&ours, GRACE, WORK_GRACE).await.unwrap();
            assert!(root_keys(&world).len() >= 2);
        }
        assert_eq!(root_keys(&world).len(), 2, "and no more");
        damage(&world, 1);
        repair(&mut world, 8).await.unwrap();
        assert_eq!(world.lost().await, None);
        // The one that was damaged is none.
        tokio::time::sleep(WORK_GRACE * 4).await;
        gc::collect_with(&ours, GRACE, WORK_GRACE).await.unwrap();
        damage(&world, 1);
        repair(&mut world, 8).await.unwrap();
        assert_eq!(world.lost().await, None);
    });
}

#[test]
fn a_slot_that_lacks_a_key_epoch_makes_no_root() {
    simulate(async {
        let mut world = with_backups(81, 1).await;
        let ours = world.cluster_of(7).await.unwrap();
        slots::rotate(ours.repo()).await.unwrap();
        let committed =
            ours.commit(|root| Ok::<_, RepoError>(Some(RootChange::of(root.clone())))).await.unwrap();
        damage(&world, 1);
        for key in world.store.objects().keys().filter(|key| key.as_str().starts_with("keys/epochs/1/")) {
            world.store.lose(key);
        }
        // The root before is of the first epoch.
        let error = root::plan(&unread(&mut world, 9).await).await.unwrap_err();
        assert!(matches!(error, RepoError::NoKey { .. }), "{error}");
        assert_eq!(root_keys(&world).last().unwrap(), &layout::root(&world.cluster, committed.number));
    });
}

#[test]
fn a_cluster_into_which_nobody_received_is_made_anew_as_such() {
    simulate(async {
        let mut world = World::new(91, Mode::Object, 0).await;
        world.server = SimServer::new(91, 0, false);
        let repo = world.open(7).await.unwrap();
        let identity = world.server.identity();
        let record = walden::format::root::GenerationRecord {
            cluster: world.cluster.clone(),
            generation: walden::base::Generation(1),
            system_id: identity.system_id,
            major_version: identity.major_version,
            segment_size: identity.segment_size.get(),
            block_size: identity.block_size,
        };
        let ours = Cluster::create(repo, record).await.unwrap();
        ours.commit(|root| Ok::<_, RepoError>(Some(RootChange::of(root.clone())))).await.unwrap();
        damage(&world, 1);
        let (_, root) = repair(&mut world, 8).await.unwrap();
        assert_eq!((root.number, root.writer_epoch, root.streams.len()), (3, 0, 0));
    });
}
