//! Adding, removing, rotating: a stop at every request, and races.

use crate::common::crash::{Mode, World, simulate, unlock};
use crate::common::keys::{key, name, open, planted_slot, stopped_at_every_request};
use crate::common::sim_store::SimStore;
use std::collections::BTreeSet;
use std::sync::Arc;
use walden::base::Env;
use walden::codec::keyslot::{SlotCost, Unlock};
use walden::format::envelope::PlainObject;
use walden::format::keyslot::EpochSlot;
use walden::repo::slots::{self, Standing};
use walden::repo::{RepoError, Repository, layout};

/// Epochs that `unlock` opens.
async fn epochs(store: &SimStore, unlock: &Unlock, env: &Env) -> Result<Vec<u32>, RepoError> {
    let repo = open(store, unlock, env.clone()).await?;
    Ok(repo.keys().epochs().map(|keys| keys.epoch).collect())
}

/// A repository of two epochs with slot `main`, opened by [`unlock`], and the slots `others`.
async fn repository(seed: u64, others: &[(&str, u8)]) -> (World, Arc<Repository>) {
    let mut world = World::new(seed, Mode::Object, 1 << 20).await;
    let repo = world.open(1).await.unwrap();
    slots::rotate(&repo).await.unwrap();
    for (slot, byte) in others {
        slots::add(&repo, &name(slot), &key(*byte), SlotCost::LEAST).await.unwrap();
    }
    (world, repo)
}

#[test]
fn adding_can_be_stopped_anywhere_and_done_again() {
    simulate(async {
        let (mut world, _) = repository(1, &[]).await;
        let env = world.env();
        let adding = async |store: SimStore| {
            let repo = open(&store, &unlock(), env.clone()).await?;
            slots::add(&repo, &name("ops"), &key(2), SlotCost::LEAST).await.map(drop)
        };
        let check = async |store: SimStore, done: bool| {
            assert_eq!(epochs(&store, &unlock(), &env).await.unwrap(), [1, 2]);
            if done {
                assert_eq!(epochs(&store, &key(2), &env).await.unwrap(), [1, 2]);
            }
        };
        let requests = stopped_at_every_request(&world.store, adding, check).await;
        assert!(requests > 10, "{requests}");
    });
}

#[test]
fn a_name_that_is_taken_is_refused_and_one_that_was_removed_is_not() {
    simulate(async {
        let (mut world, repo) = repository(2, &[("ops", 2)]).await;
        let taken = slots::add(&repo, &name("ops"), &key(3), SlotCost::LEAST).await.unwrap_err();
        assert!(taken.to_string().contains("there is a key slot ops already"), "{taken}");
        let again = slots::add(&repo, &name("ops"), &key(2), SlotCost::LEAST).await.unwrap();
        assert!(!again.created && again.sealed.is_empty(), "{again:?}");
        // What the removed slot was given comes back, as a store with stale requests may have it.
        let left_behind = world.store.objects();
        slots::remove(&repo, &BTreeSet::from([name("ops")])).await.unwrap();
        for epoch in [1, 2] {
            let key = layout::epoch_slot(epoch, &name("ops"));
            world.store.put(&key, left_behind[&key].clone());
        }
        let added = slots::add(&repo, &name("ops"), &key(4), SlotCost::LEAST).await.unwrap();
        assert_eq!((added.created, added.opens), (true, vec![1, 2, 3]));
        let env = world.env();
        assert_eq!(epochs(&world.store, &key(4), &env).await.unwrap(), [1, 2, 3]);
        assert!(epochs(&world.store, &key(2), &env).await.is_err());
        let now = world.store.objects();
        for epoch in [1, 2] {
            let key = layout::epoch_slot(epoch, &name("ops"));
            let public = |bytes: &[u8]| EpochSlot::from_object(bytes).unwrap().slot_public;
            assert_ne!(public(&now[&key]), public(&left_behind[&key]), "epoch {epoch}");
        }
    });
}

#[test]
fn rotating_can_be_stopped_anywhere_and_no_slot_is_ever_without_the_newest_epoch() {
    simulate(async {
        let (mut world, _) = repository(3, &[("ops", 2)]).await;
        let env = world.env();
        let rotating = async |store: SimStore| {
            let repo = open(&store, &unlock(), env.clone()).await?;
            slots::rotate(&repo).await.map(drop)
        };
        let check = async |store: SimStore, done: bool| {
            let main = epochs(&store, &unlock(), &env).await.unwrap();
            assert_eq!(main, epochs(&store, &key(2), &env).await.unwrap());
            assert!(main.len() >= if done { 3 } else { 2 }, "{main:?}");
            let repo = open(&store, &key(2), env.clone()).await.unwrap();
            for (slot, standing) in slots::standings(&repo).await.unwrap() {
                assert_eq!(standing, Standing::Vouched, "{slot}");
            }
        };
        let requests = stopped_at_every_request(&world.store, rotating, check).await;
        assert!(requests > 10, "{requests}");
    });
}

#[test]
fn removing_can_be_stopped_anywhere_and_the_others_open_everything() {
    simulate(async {
        let (mut world, _) = repository(4, &[("ops", 2)]).await;
        let env = world.env();
        let removing = async |store: SimStore| {
            let repo = open(&store, &key(2), env.clone()).await?;
            match slots::remove(&repo, &BTreeSet::from([name("main")])).await {
                // It was stopped after the last.
                Err(RepoError::NotFound { .. }) => Ok(()),
                other => other.map(drop),
            }
        };
        let check = async |store: SimStore, done: bool| {
            let ops = epochs(&store, &key(2), &env).await.unwrap();
            // Done again while the slot is there, it rotates again.
            assert!(ops.starts_with(&[1, 2]) && ops.len() <= 4, "{ops:?}");
            if done {
                assert!(ops.len() >= 3, "{ops:?}");
                assert!(epochs(&store, &unlock(), &env).await.is_err());
                assert!(store.objects().keys().all(|key| key.file_name() != "main"));
            }
        };
        let requests = stopped_at_every_request(&world.store, removing, check).await;
        assert!(requests > 10, "{requests}");
    });
}

#[test]
fn the_last_slot_stays() {
    simulate(async {
        let (world, repo) = repository(5, &[("ops", 2)]).await;
        let before = world.store.objects();
        let both = slots::remove(&repo, &BTreeSet::from([name("ops"), name("main")])).await.unwrap_err();
        assert!(both.to_string().contains("no key slot would be left"), "{both}");
        assert_eq!(world.store.objects(), before);
        slots::remove(&repo, &BTreeSet::from([name("ops")])).await.unwrap();
        let last = slots::remove(&repo, &BTreeSet::from([name("main")])).await.unwrap_err();
        assert!(matches!(last, RepoError::Conflict { .. }), "{last}");
        let none = slots::remove(&repo, &BTreeSet::from([name("ops")])).await.unwrap_err();
        assert!(matches!(none, RepoError::NotFound { .. }), "{none}");
    });
}

#[test]
fn of_removals_at_the_same_time_one_slot_is_always_left() {
    let (mut one, mut none) = (0, 0);
    for seed in 1..=40 {
        simulate(async {
            let (mut world, _) = repository(seed, &[("ops", 2)]).await;
            let (store, env) = (world.store.clone(), world.env());
            let main = open(&store.client(2), &unlock(), env.clone()).await.unwrap();
            let ops = open(&store.client(3), &key(2), env.clone()).await.unwrap();
            let later = std::time::Duration::from_millis(world.rng.u64(0..300));
            let (by_ops, by_main) =
                tokio::join!(async { slots::remove(&ops, &BTreeSet::from([name("main")])).await }, async {
                    tokio::time::sleep(later).await;
                    slots::remove(&main, &BTreeSet::from([name("ops")])).await
                });
            let (main, ops) = (epochs(&store, &unlock(), &env).await, epochs(&store, &key(2), &env).await);
            let done = usize::from(by_ops.is_ok()) + usize::from(by_main.is_ok());
            assert!(done < 2, "seed {seed}: both were removed");
            let left = if by_ops.is_ok() { &ops } else { &main };
            assert!(
                left.as_ref().is_ok_and(|epochs| epochs.contains(&3)) || done == 0,
                "seed {seed}: {left:?}"
            );
            assert!(main.is_ok() || ops.is_ok(), "seed {seed}");
            if done == 1 { one += 1 } else { none += 1 }
        });
    }
    println!("{one} of two removed one slot, {none} none");
    assert!(one > 10, "{one}, {none}");
}

#[test]
fn of_two_rotations_at_the_same_time_every_epoch_has_one_secret() {
    let mut lost = 0;
    for seed in 1..=40 {
        simulate(async {
            let (mut world, _) = repository(seed, &[("ops", 2)]).await;
            let (store, env) = (world.store.clone(), world.env());
            let main = open(&store.client(2), &unlock(), env.clone()).await.unwrap();
            let other_env = world.env();
            let ops = open(&store.client(3), &key(2), other_env).await.unwrap();
            let (first, second) = tokio::join!(slots::rotate(&main), slots::rotate(&ops));
            let (first, second) = (first.unwrap(), second.unwrap());
            lost += usize::from(first.by_another) + usize::from(second.by_another);
            assert!(!(first.by_another && second.by_another), "seed {seed}: nobody made it");
            let (by_main, by_ops) = (
                open(&store, &unlock(), env.clone()).await.unwrap().keys(),
                open(&store, &key(2), env.clone()).await.unwrap().keys(),
            );
            assert_eq!(by_main.newest().epoch, by_ops.newest().epoch, "seed {seed}");
            for (one, other) in by_main.epochs().zip(by_ops.epochs()) {
                assert_eq!(one.secret.0, other.secret.0, "seed {seed}: epoch {}", one.epoch);
            }
        });
    }
    assert!(lost > 10, "{lost} of 40 rotations lost");
}

#[test]
fn a_slot_that_is_added_beside_a_rotation_opens_the_newest_epoch() {
    for seed in 1..=60 {
        simulate(async {
            let (mut world, _) = repository(seed, &[]).await;
            let (store, env) = (world.store.clone(), world.env());
            let adder = open(&store.client(2), &unlock(), env.clone()).await.unwrap();
            let rotator = open(&store.client(3), &unlock(), world.env()).await.unwrap();
            let later = std::time::Duration::from_millis(world.rng.u64(0..200));
            let (ops, secret) = (name("ops"), key(2));
            let (added, rotated) = tokio::join!(slots::add(&adder, &ops, &secret, SlotCost::LEAST), async {
                tokio::time::sleep(later).await;
                slots::rotate(&rotator).await
            });
            added.unwrap();
            rotated.unwrap();
            assert_eq!(epochs(&store, &key(2), &env).await.unwrap(), [1, 2, 3], "seed {seed}");
        });
    }
}

#[test]
fn a_planted_slot_gets_nothing() {
    for seed in 1..=5 {
        simulate(planted_slot(seed)).unwrap();
    }
}

#[test]
fn damage_to_either_copy_of_an_epoch_loses_nothing() {
    simulate(async {
        let (mut world, _) = repository(6, &[("ops", 2)]).await;
        let env = world.env();
        let copies = |epoch| [layout::epoch(epoch), layout::epoch_slot(epoch, &name("main"))];
        for object in copies(1).into_iter().chain(copies(2)) {
            let (gone, hurt) = (world.store.fork(), world.store.fork());
            gone.lose(&object);
            hurt.alter(&object, |bytes| bytes[100] ^= 1);
            for store in [gone, hurt] {
                assert_eq!(epochs(&store, &unlock(), &env).await.unwrap(), [1, 2], "{object}");
            }
        }
        let both = world.store.fork();
        copies(2).iter().for_each(|object| both.alter(object, |bytes| bytes[100] ^= 1));
        let error = epochs(&both, &unlock(), &env).await.unwrap_err();
        assert!(error.to_string().contains("keys/epochs/2/_epoch"), "{error}");
    });
}
