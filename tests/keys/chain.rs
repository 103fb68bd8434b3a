//! The chain of epochs: destroyed in any order, stopped anywhere, beside rotations, additions and processes that stalled.

use crate::common::crash::{Mode, World, simulate, unlock};
use crate::common::keys::{key, name, open, stopped_at_every_request};
use crate::common::sim_store::SimStore;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use walden::base::Env;
use walden::base::progress::Unwatched;
use walden::codec::keyslot::{SlotCost, Unlock};
use walden::rekey::destroy::{Destroyed, destroy};
use walden::repo::{RepoError, Repository, layout, slots};

/// A repository of epochs 1 to `last`: slot `main`, opened by [`unlock`], began with the first, slot `late` (key 5) with the last.
async fn chained(seed: u64, last: u32) -> (World, Arc<Repository>) {
    let mut world = World::new(seed, Mode::Object, 1 << 20).await;
    let repo = world.open(1).await.unwrap();
    for _ in 1..last {
        slots::rotate(&repo).await.unwrap();
    }
    slots::add(&repo, &name("late"), &key(5), SlotCost::LEAST).await.unwrap();
    (world, repo)
}

async fn epochs(store: &SimStore, unlock: &Unlock, env: &Env) -> Vec<u32> {
    let repo = open(store, unlock, env.clone()).await.unwrap();
    repo.keys().epochs().map(|keys| keys.epoch).collect()
}

/// Objects of an epoch, its link not counted.
fn objects_of(store: &SimStore, epoch: u32) -> usize {
    let prefix = format!("keys/epochs/{epoch}/");
    let objects = store.objects();
    objects.keys().filter(|key| key.as_str().starts_with(&prefix) && key.file_name() != "_link").count()
}

async fn gone(repo: &Arc<Repository>, epoch: u32) -> Result<(), RepoError> {
    match destroy(repo, epoch, &Unwatched).await {
        Ok(Destroyed::Gone { .. }) | Err(RepoError::NotFound { .. }) => Ok(()),
        Ok(Destroyed::Refused(needed)) => panic!("{needed:?}"),
        Err(error) => Err(error),
    }
}

#[test]
fn epochs_are_destroyed_in_any_order_and_what_is_left_stays_proved() {
    let orders: [&[u32]; 6] =
        [&[1, 2, 3, 4], &[4, 3, 2, 1], &[2, 3, 1, 4], &[3, 1, 4, 2], &[1, 4], &[2, 4, 3]];
    for order in orders {
        simulate(async {
            let (mut world, _) = chained(1, 5).await;
            let env = world.env();
            let mut left = BTreeSet::from([1, 2, 3, 4, 5]);
            for epoch in order {
                let repo = open(&world.store, &key(5), env.clone()).await.unwrap();
                gone(&repo, *epoch).await.unwrap();
                left.remove(epoch);
                let expected: Vec<u32> = left.iter().copied().collect();
                for unlock in [unlock(), key(5)] {
                    assert_eq!(epochs(&world.store, &unlock, &env).await, expected, "{order:?}");
                }
            }
            // Slots are added, and epochs made, as ever.
            let repo = open(&world.store, &unlock(), env.clone()).await.unwrap();
            slots::add(&repo, &name("later"), &key(6), SlotCost::LEAST).await.unwrap();
            slots::rotate(&repo).await.unwrap();
            left.insert(6);
            let expected: Vec<u32> = left.iter().copied().collect();
            for unlock in [unlock(), key(5), key(6)] {
                assert_eq!(epochs(&world.store, &unlock, &env).await, expected, "{order:?}");
            }
        });
    }
}

#[test]
fn destroying_runs_of_epochs_can_be_stopped_anywhere_and_every_slot_opens_what_is_left() {
    simulate(async {
        let (mut world, _) = chained(2, 5).await;
        let env = world.env();
        let destroying = async |store: SimStore| {
            let repo = open(&store, &key(5), env.clone()).await?;
            for epoch in [2, 3, 1] {
                gone(&repo, epoch).await?;
            }
            Ok(())
        };
        let check = async |store: SimStore, done: bool| {
            for unlock in [unlock(), key(5)] {
                let open = epochs(&store, &unlock, &env).await;
                assert!(open.ends_with(&[4, 5]), "{open:?}");
                assert!(!done || open == [4, 5], "{open:?}");
            }
            assert!(!done || (1..=3).all(|epoch| objects_of(&store, epoch) == 0));
        };
        let requests = stopped_at_every_request(&world.store, destroying, check).await;
        assert!(requests > 40, "{requests}");
    });
}

#[test]
fn a_process_that_slept_through_rotations_and_destructions_follows_to_the_newest() {
    simulate(async {
        let (mut world, repo) = chained(3, 2).await;
        let sleeper = world.open(2).await.unwrap();
        assert_eq!(sleeper.keys().newest().epoch, 2);
        for _ in 0..4 {
            slots::rotate(&repo).await.unwrap();
        }
        for epoch in [3, 4, 2] {
            gone(&repo, epoch).await.unwrap();
        }
        assert_eq!(sleeper.follow_epochs().await.unwrap(), Ok(6));
        assert_eq!(sleeper.keys().epochs().map(|keys| keys.epoch).collect::<Vec<_>>(), [1, 2, 5, 6]);
        let rotated = slots::rotate(&sleeper).await.unwrap();
        assert_eq!(rotated.epoch, 7);
    });
}

/// Somebody's rotation stalls at each of its requests, while others rotate twice and destroy what it was about to make.
#[test]
fn a_rotation_that_stalled_never_wins_a_number_that_was_destroyed() {
    let mut void = 0;
    for stop in 1.. {
        let more = simulate(async {
            let (mut world, repo) = chained(4, 2).await;
            let (env, store) = (world.env(), world.store.clone());
            let stalled = store.client(7);
            let rotator = open(&stalled, &unlock(), world.env()).await.unwrap();
            stalled.hold_after(stop);
            let rotating = tokio::spawn(async move { slots::rotate(&rotator).await });
            while !stalled.is_held() && !rotating.is_finished() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let more = stalled.is_held();
            while repo.keys().newest().epoch < 5 {
                slots::rotate(&repo).await.unwrap();
            }
            for epoch in [3, 4] {
                gone(&repo, epoch).await.unwrap();
            }
            stalled.hold(false);
            let rotated = rotating.await.unwrap().unwrap();
            void += u32::from(more && rotated.by_another);
            // It made its epoch before it stalled, or after it woke and looked; or it lost to the others.
            assert!(rotated.by_another || [3, 6].contains(&rotated.epoch), "stopped at {stop}: {rotated:?}");
            let newest = repo.follow_epochs().await.unwrap().unwrap();
            assert_eq!(newest, if rotated.epoch == 6 { 6 } else { 5 }, "stopped at {stop}");
            for unlock in [unlock(), key(5)] {
                let there = open(&store, &unlock, env.clone()).await.unwrap().keys();
                assert_eq!(there.newest().secret.0, repo.keys().newest().secret.0, "stopped at {stop}");
            }
            assert_eq!(objects_of(&store, 3) + objects_of(&store, 4), 0, "stopped at {stop}");
            more
        });
        if !more {
            break;
        }
    }
    assert!(void > 3, "{void} rotations found their number taken");
}

#[test]
fn a_slot_that_is_added_beside_a_destruction_brings_nothing_back() {
    let mut without = 0;
    for seed in 1..=60 {
        simulate(async {
            let (mut world, _) = chained(seed, 3).await;
            let (store, env) = (world.store.clone(), world.env());
            let adder = open(&store.client(2), &unlock(), env.clone()).await.unwrap();
            let destroyer = open(&store.client(3), &unlock(), world.env()).await.unwrap();
            let later = Duration::from_millis(world.rng.u64(0..400));
            let (ops, secret) = (name("ops"), key(2));
            let (added, destroyed) =
                tokio::join!(slots::add(&adder, &ops, &secret, SlotCost::LEAST), async {
                    tokio::time::sleep(later).await;
                    gone(&destroyer, 1).await
                });
            let added = added.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            destroyed.unwrap();
            without += u32::from(added.opens == [2, 3]);
            assert_eq!(objects_of(&store, 1), 0, "seed {seed}: {added:?}");
            for unlock in [unlock(), key(2), key(5)] {
                assert_eq!(epochs(&store, &unlock, &env).await, [2, 3], "seed {seed}");
            }
        });
    }
    println!("{without} of 60 additions saw the epoch go");
    assert!((5..60).contains(&without), "{without}");
}

#[test]
fn a_rotation_beside_a_destruction_leaves_every_slot_the_newest() {
    for seed in 1..=40 {
        simulate(async {
            let (mut world, _) = chained(seed, 3).await;
            let (store, env) = (world.store.clone(), world.env());
            let rotator = open(&store.client(2), &key(5), env.clone()).await.unwrap();
            let destroyer = open(&store.client(3), &unlock(), world.env()).await.unwrap();
            let later = Duration::from_millis(world.rng.u64(0..300));
            let (rotated, destroyed) = tokio::join!(slots::rotate(&rotator), async {
                tokio::time::sleep(later).await;
                gone(&destroyer, 2).await
            });
            assert_eq!(rotated.unwrap().epoch, 4, "seed {seed}");
            destroyed.unwrap();
            for unlock in [unlock(), key(5)] {
                assert_eq!(epochs(&store, &unlock, &env).await, [1, 3, 4], "seed {seed}");
            }
        });
    }
}

#[test]
fn an_epoch_is_destroyed_when_the_object_that_made_the_next_one_is_gone() {
    simulate(async {
        let (mut world, _) = chained(5, 4).await;
        let env = world.env();
        world.store.lose(&layout::epoch(2));
        let repo = open(&world.store, &unlock(), env.clone()).await.unwrap();
        gone(&repo, 1).await.unwrap();
        assert_eq!(epochs(&world.store, &unlock(), &env).await, [2, 3, 4]);
        // Its link may be lost as well: it is made again as long as the epoch before it is held, and refused when it is not.
        world.store.lose(&layout::epoch_link(3));
        gone(&repo, 2).await.unwrap();
        assert!(world.store.objects().contains_key(&layout::epoch_link(3)));
        world.store.lose(&layout::epoch_link(3));
        world.store.lose(&layout::epoch(3));
        let before = world.store.objects();
        let late = open(&world.store, &key(5), env.clone()).await.unwrap();
        let lost = gone(&late, 3).await.unwrap_err();
        assert!(matches!(lost, RepoError::Conflict { .. }), "{lost}");
        assert!(lost.to_string().contains("keys/epochs/3/_link"), "{lost}");
        assert_eq!(world.store.objects(), before);
    });
}

#[test]
fn the_newest_epoch_is_not_destroyed_and_nothing_is_by_a_slot_without_it() {
    simulate(async {
        let (mut world, repo) = chained(6, 2).await;
        let newest = destroy(&repo, 2, &Unwatched).await.unwrap_err();
        assert!(newest.to_string().contains("key epoch 2 is the newest"), "{newest}");
        let env = world.env();
        let removed = open(&world.store, &key(5), env).await.unwrap();
        slots::remove(&repo, &BTreeSet::from([name("late")])).await.unwrap();
        let refused = destroy(&removed, 1, &Unwatched).await.unwrap_err();
        assert!(refused.to_string().contains("key epoch 3 was not given to key slot late"), "{refused}");
    });
}
