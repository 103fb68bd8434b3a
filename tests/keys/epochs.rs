//! Moving and destroying: a stop at every request, one kind of object at a time, and beside receiving, backups and compaction.

use crate::common::crash::{GRACE, Mode, WORK_GRACE, World, simulate, unlock};
use crate::common::keys::{key, name, open, stopped_at_every_request};
use crate::common::sim_server::SimServer;
use crate::common::sim_store::SimStore;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::watch;
use walden::base::progress::Unwatched;
use walden::base::{Generation, ObjectKey, Progress, SystemId};
use walden::codec::{KeySource, SlotCost};
use walden::format::header::ObjectHeader;
use walden::format::root::{GenerationRecord, PendingKind};
use walden::receive::compact::{self, Extent};
use walden::rekey::census::{self, Kind};
use walden::rekey::destroy::{Destroyed, Needed, destroy};
use walden::rekey::reseal::reseal;
use walden::repo::cluster::RootChange;
use walden::repo::{Cluster, Registration, RepoError, layout, slots};
use walden::retain::gc;

const ALL: &dyn Progress = &Unwatched;

/// A world with a backup and WAL, compacted and not, whose receiver has ended.
async fn archived(seed: u64) -> World {
    let mut world = World::new(seed, Mode::Object, 64 << 10).await;
    world.server = SimServer::new(seed, 64 << 10, false);
    world.pace = Some(Duration::from_secs(360_000));
    let backup = world.backup(2).await;
    received(&mut world, 1, backup).await.unwrap();
    let cluster = cluster(&mut world, 3).await;
    compact::compact(&cluster, None, Extent::All).await.unwrap();
    world.server.write_more(64 << 10);
    received(&mut world, 4, tokio::time::sleep(Duration::from_secs(90))).await;
    world
}

/// What comes of `work` beside a receiver, which then stops in order.
async fn received<T>(world: &mut World, client: u32, work: impl Future<Output = T>) -> T {
    let (stop, stopped) = watch::channel(false);
    let receiving = world.receiver(client, stopped).await;
    let working = async {
        let done = work.await;
        stop.send_replace(true);
        done
    };
    let (ended, done) = tokio::join!(receiving, working);
    ended.unwrap();
    done
}

async fn cluster(world: &mut World, client: u32) -> Cluster {
    let repo = world.open(client).await.unwrap();
    Cluster::open(repo, world.cluster.clone()).await.unwrap()
}

/// The same world with another store.
fn with_store(world: &World, store: SimStore) -> World {
    World::of(world.seed, Mode::Object, world.server.fork(), store, world.disk.fork(1))
}

/// Everything acknowledged is there, and every file of every backup.
async fn check(world: &World, store: &SimStore) {
    let mut copy = with_store(world, store.fork());
    assert_eq!(copy.lost().await, None);
    let cluster = cluster(&mut copy, 900).await;
    let index = cluster.index(&cluster.newest_root().await.unwrap()).await.unwrap();
    assert_eq!(index.backups.len(), 1, "the backup is there");
}

/// Compacts, moves, and collects until nothing is left to collect.
async fn move_all(world: &mut World, client: u32) {
    let cluster = cluster(world, client).await;
    compact::compact(&cluster, None, Extent::All).await.unwrap();
    assert!(reseal(&cluster, u64::MAX, ALL).await.unwrap().finished);
    for _ in 0..3 {
        tokio::time::sleep(WORK_GRACE.max(GRACE) * 2).await;
        gc::collect_with(&cluster, GRACE, WORK_GRACE).await.unwrap();
        // The floor rises to a root that is old enough: one is made now for the next time.
        cluster.commit::<RepoError>(|root| Ok(Some(RootChange::of(root.clone())))).await.unwrap();
    }
}

#[test]
fn what_cannot_be_read_keeps_nothing_else_from_being_moved() {
    simulate(async {
        let mut world = archived(41).await;
        let cluster = cluster(&mut world, 5).await;
        slots::rotate(cluster.repo()).await.unwrap();
        compact::compact(&cluster, None, Extent::All).await.unwrap();
        let index = cluster.index(&cluster.newest_root().await.unwrap()).await.unwrap();
        let key = walden::repo::layout::segment(cluster.name(), index.pages[0].id);
        for harm in [|bytes: &mut Vec<u8>| bytes[3] ^= 1, |bytes: &mut Vec<u8>| bytes[300] ^= 1] {
            let whole = world.store.objects()[&key].clone();
            world.store.alter(&key, harm);
            let moved = reseal(&cluster, u64::MAX, ALL).await.unwrap();
            assert!(!moved.finished, "{moved:?}");
            assert_eq!(moved.unreadable.keys().collect::<Vec<_>>(), [&key]);
            world.store.put(&key, whole);
        }
        let moved = reseal(&cluster, u64::MAX, ALL).await.unwrap();
        assert!(moved.finished && moved.unreadable.is_empty(), "{moved:?}");
        assert_eq!((moved.segments, moved.manifests), (1, 0), "the others were moved before");
        check(&world, &world.store).await;
    });
}

/// A world whose first epoch nothing needs any more; and before that, an object of each kind that was sealed under it.
async fn ready(seed: u64) -> (World, BTreeMap<Kind, (ObjectKey, Bytes)>) {
    let mut world = archived(seed).await;
    let cluster = cluster(&mut world, 5).await;
    let registration = Registration::create(&cluster, PendingKind::Backup, None, "a test").await.unwrap();
    let mut kinds = BTreeMap::new();
    for (key, bytes) in world.store.objects() {
        if let Ok((header, _)) = ObjectHeader::decode(&bytes)
            && let Some(kind) = Kind::of(header.kind)
        {
            kinds.entry(kind).or_insert((key, bytes));
        }
    }
    assert_eq!(kinds.len(), 7, "{:?}", kinds.keys());
    registration.abandon().await.unwrap();
    slots::rotate(cluster.repo()).await.unwrap();
    // A receiver that knows the new epoch shows it, and fences the one before.
    world.server.write_more(8 << 10);
    received(&mut world, 6, tokio::time::sleep(Duration::from_secs(90))).await;
    move_all(&mut world, 7).await;
    (world, kinds)
}

async fn destroyed(world: &World, store: SimStore) -> Result<Destroyed, RepoError> {
    let mut copy = with_store(world, store);
    destroy(&copy.open(8).await.unwrap(), 1, ALL).await
}

#[test]
fn what_was_moved_is_whole_and_the_old_epoch_opens_nothing_that_counts() {
    simulate(async {
        let (world, kinds) = ready(1).await;
        let ended = destroyed(&world, world.store.clone()).await.unwrap();
        assert!(matches!(ended, Destroyed::Gone { objects: 2, .. }), "{ended:?}");
        check(&world, &world.store).await;
        let counted = census::count(&world.store, ALL).await.unwrap();
        assert_eq!(counted.epochs.keys().collect::<Vec<_>>(), [&2]);
        let repo = with_store(&world, world.store.fork()).open(9).await.unwrap();
        assert!(repo.keys().epoch_secret(1).is_none());
        let (key, bytes) = &kinds[&Kind::Manifests];
        let kind = walden::format::header::ObjectKind::Manifest;
        let shut = repo.open_object(key, kind, bytes.clone()).await.unwrap_err();
        assert!(matches!(shut, RepoError::NoKey { .. }), "{shut}");
    });
}

/// What `destroy` says is left, with the object of `kind` of the first epoch back in its place.
fn refused_for(kind: Kind) {
    simulate(async {
        let (world, kinds) = ready(2).await;
        let (key, bytes) = kinds[&kind].clone();
        let store = world.store.fork();
        store.put(&key, bytes);
        let before = store.objects();
        match destroyed(&world, store.clone()).await.unwrap() {
            Destroyed::Refused(needed) => {
                let [Needed::Objects { kinds, .. }] = needed.as_slice() else { panic!("{needed:?}") };
                assert_eq!(
                    kinds.iter().map(|(kind, tally)| (*kind, tally.objects)).collect::<Vec<_>>(),
                    [(kind, 1)]
                );
            }
            other => panic!("{kind:?}: {other:?}"),
        }
        assert!(before.keys().all(|key| store.objects().contains_key(key)), "it removed something");
    });
}

#[test]
fn destroy_refuses_for_a_root() {
    refused_for(Kind::Roots);
}

#[test]
fn destroy_refuses_for_an_index_object() {
    refused_for(Kind::Index);
}

#[test]
fn destroy_refuses_for_a_flush_object() {
    // One that the chain needs, by a world in which nothing was compacted since the rotation.
    simulate(async {
        let mut world = archived(3).await;
        slots::rotate(cluster(&mut world, 5).await.repo()).await.unwrap();
        world.server.write_more(8 << 10);
        received(&mut world, 6, tokio::time::sleep(Duration::from_secs(90))).await;
        let Destroyed::Refused(needed) = destroyed(&world, world.store.clone()).await.unwrap() else {
            panic!()
        };
        let flushes = |need: &Needed| match need {
            Needed::Objects { kinds, .. } => kinds.get(&Kind::Flushes).map_or(0, |tally| tally.objects),
            Needed::Stream { .. } | Needed::Work { .. } => 0,
        };
        assert!(needed.iter().map(flushes).sum::<u64>() > 0, "{needed:?}");
        check(&world, &world.store).await;
    });
}

#[test]
fn destroy_refuses_for_a_wal_segment() {
    refused_for(Kind::WalSegments);
}

#[test]
fn destroy_refuses_for_a_segment_of_chunks() {
    refused_for(Kind::ChunkSegments);
}

#[test]
fn destroy_refuses_for_a_manifest() {
    refused_for(Kind::Manifests);
}

#[test]
fn destroy_refuses_for_a_pending_entry() {
    refused_for(Kind::Pending);
}

#[test]
fn destroy_refuses_for_work_that_began_before_the_next_epoch() {
    simulate(async {
        let mut world = archived(4).await;
        let working = cluster(&mut world, 5).await;
        let registration = Registration::create(&working, PendingKind::Backup, None, "a test").await.unwrap();
        let other = cluster(&mut world, 6).await;
        tokio::time::sleep(Duration::from_secs(10)).await;
        slots::rotate(other.repo()).await.unwrap();
        // It is as young as ever, and its object is of the new epoch.
        registration.renew().await.unwrap();
        assert_eq!(working.repo().keys().newest().epoch, 2, "it learned of the epoch when it was renewed");
        let works = async |world: &World| match destroyed(world, world.store.clone()).await.unwrap() {
            Destroyed::Refused(needed) => {
                needed.iter().any(|need| matches!(need, Needed::Work { count: 1, .. }))
            }
            other => panic!("{other:?}"),
        };
        assert!(works(&world).await);
        registration.abandon().await.unwrap();
        tokio::time::sleep(Duration::from_secs(10)).await;
        let later = Registration::create(&working, PendingKind::Backup, None, "a test").await.unwrap();
        assert!(!works(&world).await, "work that began later knows of the epoch");
        later.abandon().await.unwrap();
    });
}

#[test]
fn destroy_refuses_while_a_receiver_may_not_know_of_the_next_epoch() {
    simulate(async {
        let mut world = archived(5).await;
        slots::rotate(cluster(&mut world, 5).await.repo()).await.unwrap();
        move_all(&mut world, 6).await;
        let Destroyed::Refused(needed) = destroyed(&world, world.store.clone()).await.unwrap() else {
            panic!()
        };
        assert!(needed.iter().any(|need| matches!(need, Needed::Stream { .. })), "{needed:?}");
        world.server.write_more(8 << 10);
        received(&mut world, 7, tokio::time::sleep(Duration::from_secs(90))).await;
        move_all(&mut world, 8).await;
        let ended = destroyed(&world, world.store.clone()).await.unwrap();
        assert!(matches!(ended, Destroyed::Gone { .. }), "{ended:?}");
        check(&world, &world.store).await;
    });
}

#[test]
fn moving_can_be_stopped_anywhere_and_nothing_is_lost() {
    simulate(async {
        let mut world = archived(6).await;
        let moving = cluster(&mut world, 5).await;
        compact::compact(&moving, None, Extent::All).await.unwrap();
        slots::rotate(moving.repo()).await.unwrap();
        let mut lives = with_store(&world, world.store.fork());
        // Chance of its own: ids that the world drew before would come again.
        lives.seed += 1000;
        let moves = async |store: SimStore| {
            let env = lives.env();
            let cluster = Cluster::open(open(&store, &unlock(), env).await?, world.cluster.clone()).await?;
            // In parts, so that it stops between roots too.
            while !reseal(&cluster, 1, ALL).await?.finished {}
            Ok(())
        };
        let looks = async |store: SimStore, _done: bool| check(&world, &store).await;
        let requests = stopped_at_every_request(&world.store, moves, looks).await;
        assert!(requests > 30, "{requests}");
    });
}

#[test]
fn destroying_can_be_stopped_anywhere_and_nothing_is_lost() {
    simulate(async {
        let (world, _) = ready(7).await;
        let mut lives = with_store(&world, world.store.fork());
        // Chance of its own: ids that the world drew before would come again.
        lives.seed += 1000;
        let destroying = async |store: SimStore| {
            let env = lives.env();
            match destroy(&open(&store, &unlock(), env).await?, 1, ALL).await {
                Ok(Destroyed::Gone { .. }) | Err(RepoError::NotFound { .. }) => Ok(()),
                Ok(Destroyed::Refused(needed)) => panic!("{needed:?}"),
                Err(error) => Err(error),
            }
        };
        let looks = async |store: SimStore, done: bool| {
            check(&world, &store).await;
            let epochs =
                store.objects().keys().filter(|key| key.as_str().starts_with("keys/epochs/1/")).count();
            assert!(!done || epochs == 0, "{epochs} objects are left");
        };
        let requests = stopped_at_every_request(&world.store, destroying, looks).await;
        assert!(requests > 30, "{requests}");
    });
}

#[test]
fn whoever_meets_an_epoch_that_it_does_not_hold_looks_for_it() {
    simulate(async {
        let mut world = archived(8).await;
        let reading = cluster(&mut world, 5).await;
        let rotating = cluster(&mut world, 6).await;
        slots::rotate(rotating.repo()).await.unwrap();
        rotating.commit::<RepoError>(|root| Ok(Some(RootChange::of(root.clone())))).await.unwrap();
        assert_eq!(reading.repo().keys().newest().epoch, 1);
        let root = reading.newest_root().await.unwrap();
        assert_eq!(reading.repo().keys().newest().epoch, 2);
        let bytes = &world.store.objects()[&layout::root(reading.name(), root.number)];
        assert_eq!(ObjectHeader::decode(bytes).unwrap().0.key_epoch, 2);
    });
}

#[test]
fn an_epoch_whose_maker_died_is_completed_before_anything_is_sealed_under_it() {
    simulate(async {
        let world = archived(12).await;
        let (epoch, link) = (layout::epoch(2), layout::epoch_link(2));
        for requests in 1.. {
            let store = world.store.fork();
            let mut copy = with_store(&world, store.clone());
            copy.seed += 1000 + requests;
            let running = cluster(&mut copy, 5).await;
            let rotator = copy.open(7).await.unwrap();
            let dying = store.client(7);
            dying.hold_after(requests);
            let held = async {
                while !dying.is_held() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::select! {
                rotated = slots::rotate(&rotator) => panic!("{rotated:?}: nobody died between the two objects"),
                () = held => {}
            }
            store.settle().await;
            let there = store.objects();
            if !there.contains_key(&epoch) || there.contains_key(&link) {
                continue;
            }
            // Whoever starts takes it, and shows it to those who run before it seals anything under it.
            let starting = cluster(&mut copy, 8).await;
            assert_eq!(starting.repo().keys().newest().epoch, 2);
            let root =
                starting.commit::<RepoError>(|root| Ok(Some(RootChange::of(root.clone())))).await.unwrap();
            running.repo().follow_epochs().await.unwrap().unwrap();
            assert_eq!(running.repo().keys().newest().epoch, 2);
            // No damage to one object loses what is sealed under it.
            store.lose(&epoch);
            let again = cluster(&mut copy, 9).await;
            assert_eq!(again.newest_root().await.unwrap().number, root.number);
            return;
        }
    });
}

#[test]
fn a_first_start_that_was_interrupted_blocks_no_destruction() {
    simulate(async {
        let mut world = World::new(9, Mode::Object, 64 << 10).await;
        let repo = world.open(5).await.unwrap();
        let record = GenerationRecord {
            cluster: world.cluster.clone(),
            generation: Generation(1),
            system_id: SystemId(7),
            major_version: 16,
            segment_size: 16 << 20,
            block_size: 8192,
        };
        Cluster::create(repo.clone(), record).await.unwrap();
        let first = layout::root(&world.cluster, 1);
        world.store.lose(&first);
        slots::rotate(&repo).await.unwrap();
        let ended = destroy(&repo, 1, ALL).await.unwrap();
        assert!(matches!(ended, Destroyed::Gone { .. }), "{ended:?}");
        // Whoever stalled there finds the number of its root taken.
        let header = ObjectHeader::decode(&world.store.objects()[&first]).unwrap().0;
        assert_eq!(header.key_epoch, 2);
        Cluster::open(repo, world.cluster.clone()).await.unwrap();
    });
}

#[test]
fn moving_is_refused_to_a_slot_without_the_newest_epoch() {
    simulate(async {
        let mut world = archived(10).await;
        let repo = world.open(5).await.unwrap();
        slots::add(&repo, &name("eve"), &key(66), SlotCost::LEAST).await.unwrap();
        let env = world.env();
        let eves = open(&world.store, &key(66), env).await.unwrap();
        let eves = Cluster::open(eves, world.cluster.clone()).await.unwrap();
        slots::remove(&repo, &BTreeSet::from([name("eve")])).await.unwrap();
        let before = world.store.objects();
        let refused = reseal(&eves, u64::MAX, ALL).await.unwrap_err();
        assert!(matches!(refused, RepoError::Conflict { .. }), "{refused}");
        assert!(refused.to_string().contains("key epoch 2 was not given to key slot eve"), "{refused}");
        assert_eq!(world.store.objects(), before);
    });
}

/// A rotation, a move and in the end a destruction, beside a receiver that compacts and collects, and a backup.
#[test]
fn keys_change_beside_everything_else() {
    for seed in 1..=8 {
        simulate(async {
            let mut world = World::new(seed, Mode::Journal, 256 << 10).await;
            world.server = SimServer::new(seed, 256 << 10, false);
            let rotator = world.open(5).await.unwrap();
            let backup = world.backup(2).await;
            let pause = Duration::from_millis(world.rng.u64(0..20_000));
            let (repo, name) = (world.open(6).await.unwrap(), world.cluster.clone());
            let server = world.server.clone();
            let changing = async {
                tokio::time::sleep(pause).await;
                slots::rotate(&rotator).await.unwrap();
                server.write_more(64 << 10);
                let cluster = Cluster::open(repo.clone(), name.clone()).await.unwrap();
                loop {
                    match reseal(&cluster, 1 << 20, ALL).await {
                        Ok(moved) if moved.finished => break,
                        Ok(_) | Err(RepoError::Conflict { .. }) => {}
                        Err(error) => panic!("seed {seed}: {error}"),
                    }
                }
            };
            let (made, ()) = received(&mut world, 1, async { tokio::join!(backup, changing) }).await;
            made.unwrap();
            check(&world, &world.store).await;
            world.server.write_more(16 << 10);
            received(&mut world, 3, tokio::time::sleep(Duration::from_secs(60))).await;
            move_all(&mut world, 7).await;
            check(&world, &world.store).await;
            let ended = destroyed(&world, world.store.clone()).await.unwrap();
            assert!(matches!(ended, Destroyed::Gone { .. }), "seed {seed}: {ended:?}");
            check(&world, &world.store).await;
            // Receiving goes on.
            world.server.write_more(16 << 10);
            received(&mut world, 9, tokio::time::sleep(Duration::from_secs(60))).await;
            check(&world, &world.store).await;
        });
    }
}
