//! What somebody who can write to the store, and once held a slot, does about key epochs: each attack and what comes of it.

use crate::common::crash::{Mode, World, simulate, unlock};
use crate::common::keys::{key, name, open, planted_epoch, stopped_at_every_request};
use crate::common::sim_store::{Request, SimStore, StoreOp};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use walden::base::progress::Unwatched;
use walden::base::{Entropy, Env, RepositoryId, SlotName};
use walden::codec::keyslot::{SlotCost, SlotPublic, slot_public};
use walden::codec::link::{link_key, make_link};
use walden::codec::{EpochKeys, EpochObject};
use walden::format::envelope::PlainObject;
use walden::format::keyslot::EpochLink;
use walden::rekey::destroy::destroy;
use walden::repo::{RepoError, Repository, layout, slots};
use walden::verify;

/// Epochs 1 to 4. Slot `main` began with epoch 1, slot `late` (key 5) with epoch 4; slot `eve`, which was given 1 and 2, was removed.
struct Bed {
    world: World,
    id: RepositoryId,
    /// What eve kept.
    eve: BTreeMap<u32, EpochKeys>,
    publics: Vec<SlotPublic>,
    /// The secret of epoch 4.
    newest: [u8; 32],
    /// A process that runs since before the attack.
    running: Arc<Repository>,
}

const NEWEST: u32 = 4;

async fn bed() -> Bed {
    let mut world = World::new(1, Mode::Object, 1 << 20).await;
    let repo = world.open(1).await.unwrap();
    slots::add(&repo, &name("eve"), &key(66), SlotCost::LEAST).await.unwrap();
    slots::rotate(&repo).await.unwrap();
    let env = world.env();
    let eves = open(&world.store, &key(66), env).await.unwrap();
    let eve = eves.keys().epochs().map(|keys| (keys.epoch, keys.clone())).collect();
    slots::remove(&repo, &BTreeSet::from([name("eve")])).await.unwrap();
    slots::rotate(&repo).await.unwrap();
    slots::add(&repo, &name("late"), &key(5), SlotCost::LEAST).await.unwrap();
    let objects = world.store.objects();
    let public = |slot: SlotName| slot_public(&objects[&layout::slot(&slot)], repo.id(), &slot).unwrap();
    let publics = vec![public(name("main")), public(name("late"))];
    let newest = repo.keys().epoch(NEWEST).unwrap().secret.0;
    let env = world.env();
    let running = open(&world.store, &unlock(), env).await.unwrap();
    Bed { id: repo.id(), world, eve, publics, newest, running }
}

impl Bed {
    fn entropy(&mut self) -> Arc<dyn Entropy> {
        self.world.env().entropy
    }

    fn env(&mut self) -> Env {
        self.world.env()
    }

    /// An epoch of eve's making, with the chunk id key, which she knows.
    fn made_by_eve(&mut self, epoch: u32) -> EpochKeys {
        let entropy = self.entropy();
        EpochKeys { epoch, ..self.eve[&2].next(&*entropy).unwrap() }
    }

    /// A link to `keys`, signed with the secret of `by`.
    fn link(&self, by: &EpochKeys, keys: &EpochKeys) -> EpochLink {
        let by = EpochKeys { epoch: keys.epoch - 1, ..by.clone() };
        make_link(self.id, &by, link_key(&keys.secret))
    }

    /// Stores `keys` as an epoch for everybody, over whatever is there, with `link` in it, and by itself where `linked` says so.
    fn plant(&mut self, keys: &EpochKeys, link: &EpochLink, linked: bool) {
        let entropy = self.entropy();
        let made = EpochObject::create(self.id, keys, Some(link), &self.publics, &*entropy);
        let store = &self.world.store;
        store.put(&layout::epoch(keys.epoch), made.to_object().into());
        for public in &self.publics {
            let bytes = made.sealed_to(public).unwrap().to_vec();
            store.put(&layout::epoch_slot(keys.epoch, public.name()), bytes.into());
        }
        if linked {
            self.put_link(link);
        }
    }

    fn put_link(&self, link: &EpochLink) {
        self.world.store.put(&layout::epoch_link(link.epoch), link.to_object().into());
    }

    fn lose(&self, epochs: impl IntoIterator<Item = u32>, links: impl IntoIterator<Item = u32>) {
        let store = &self.world.store;
        for epoch in epochs {
            store.lose(&layout::epoch(epoch));
            self.publics.iter().for_each(|public| store.lose(&layout::epoch_slot(epoch, public.name())));
        }
        links.into_iter().for_each(|link| store.lose(&layout::epoch_link(link)));
    }

    async fn destroyed(&mut self, epoch: u32) {
        let env = self.env();
        let repo = open(&self.world.store, &unlock(), env).await.unwrap();
        destroy(&repo, epoch, &Unwatched).await.unwrap();
    }

    /// What a repository that was opened seals under.
    fn seals_under(&self, opened: &Result<Arc<Repository>, RepoError>) -> String {
        let repo = match opened {
            Ok(repo) => repo,
            Err(_) => return "does not open".into(),
        };
        let newest = repo.keys().newest().clone();
        let held = self.eve.get(&newest.epoch).is_some_and(|eves| eves.secret.0 == newest.secret.0);
        match newest.secret.0 == self.newest {
            true => "epoch 4".into(),
            false if held => format!("epoch {}, an older state", newest.epoch),
            false => format!("eve's epoch {}", newest.epoch),
        }
    }
}

/// What comes of an attack: to a process that ran, to one that opens slot `main` or slot `late`, and to who rotates then.
struct Outcome {
    running: &'static str,
    main: &'static str,
    late: &'static str,
    rotates: bool,
}

const NOTHING: Outcome = Outcome { running: "epoch 4", main: "epoch 4", late: "epoch 4", rotates: true };
const BLOCKED: Outcome = Outcome { rotates: false, ..NOTHING };

struct Attack {
    name: &'static str,
    act: fn(&mut Bed),
    outcome: Outcome,
}

const ATTACKS: &[Attack] = &[
    Attack {
        name: "an epoch that leaves a number out",
        act: |bed| {
            let planted = bed.made_by_eve(6);
            let link = bed.link(&bed.eve[&2], &planted);
            bed.plant(&planted, &link, false);
        },
        outcome: BLOCKED,
    },
    Attack {
        name: "an epoch that leaves a number out, and its link",
        act: |bed| {
            let planted = bed.made_by_eve(6);
            let link = bed.link(&bed.eve[&2], &planted);
            bed.plant(&planted, &link, true);
        },
        outcome: BLOCKED,
    },
    Attack {
        name: "two epochs of a chain of their own",
        act: |bed| {
            let (fifth, sixth) = (bed.made_by_eve(5), bed.made_by_eve(6));
            let links = (bed.link(&bed.eve[&2], &fifth), bed.link(&fifth, &sixth));
            bed.plant(&fifth, &links.0, true);
            bed.plant(&sixth, &links.1, true);
        },
        outcome: BLOCKED,
    },
    Attack {
        name: "the next epoch, signed with one that was held",
        act: |bed| {
            let planted = bed.made_by_eve(5);
            let link = bed.link(&bed.eve[&2], &planted);
            bed.plant(&planted, &link, false);
        },
        outcome: BLOCKED,
    },
    Attack {
        name: "the link of the next epoch, and no epoch",
        act: |bed| {
            let planted = bed.made_by_eve(5);
            bed.put_link(&bed.link(&bed.eve[&2], &planted));
        },
        outcome: BLOCKED,
    },
    Attack {
        name: "the last number there is",
        act: |bed| {
            let planted = bed.made_by_eve(u32::MAX);
            let link = bed.link(&bed.eve[&2], &planted);
            bed.plant(&planted, &link, true);
        },
        outcome: BLOCKED,
    },
    Attack {
        name: "another secret in the place of the newest",
        act: |bed| {
            let planted = bed.made_by_eve(NEWEST);
            let link = bed.link(&bed.eve[&2], &planted);
            bed.plant(&planted, &link, false);
        },
        outcome: Outcome { main: "does not open", late: "does not open", ..BLOCKED },
    },
    Attack {
        name: "the link of another repository",
        act: |bed| {
            let elsewhere =
                EpochLink { repository: RepositoryId([7; 16]), ..bed.link(&bed.eve[&2], &bed.eve[&2]) };
            bed.put_link(&EpochLink { epoch: 4, ..elsewhere });
        },
        outcome: NOTHING,
    },
    Attack {
        name: "links that changed places",
        act: |bed| {
            let objects = bed.world.store.objects();
            let (third, fourth) = (layout::epoch_link(3), layout::epoch_link(4));
            bed.world.store.put(&third, objects[&fourth].clone());
            bed.world.store.put(&fourth, objects[&third].clone());
        },
        outcome: NOTHING,
    },
    Attack { name: "every link removed", act: |bed| bed.lose([], 2..=NEWEST), outcome: NOTHING },
    Attack {
        name: "a link removed with the epoch that has its copy",
        act: |bed| bed.lose([3], [3]),
        outcome: Outcome { main: "epoch 2, an older state", rotates: false, ..NOTHING },
    },
    Attack {
        name: "everything newer removed: an older state",
        act: |bed| bed.lose([3, 4], [3, 4]),
        outcome: Outcome { main: "epoch 2, an older state", late: "does not open", ..NOTHING },
    },
    Attack {
        name: "everything newer removed, and a chain that goes on from what was held",
        act: |bed| {
            bed.lose([3, 4], [3, 4]);
            let planted = bed.made_by_eve(3);
            let link = bed.link(&bed.eve[&2], &planted);
            bed.plant(&planted, &link, true);
        },
        // The one that remains: formats/keys.md says so.
        outcome: Outcome { main: "eve's epoch 3", late: "does not open", ..NOTHING },
    },
];

#[test]
fn attacks_on_epochs_and_what_comes_of_them() {
    println!("{:<75}{:<14}{:<28}{:<28}rotation", "attack", "running", "slot of epoch 1", "slot of epoch 4");
    for attack in ATTACKS {
        simulate(async {
            let mut bed = bed().await;
            (attack.act)(&mut bed);
            let (env, store) = (bed.env(), bed.world.store.clone());
            bed.running.follow_epochs().await.unwrap().ok();
            let running = bed.seals_under(&Ok(bed.running.clone()));
            let main = open(&store, &unlock(), env.clone()).await;
            let late = open(&store, &key(5), env.clone()).await;
            let (mains, lates) = (bed.seals_under(&main), bed.seals_under(&late));
            let rotated = rotated(&bed, main.as_ref().ok()).await;
            println!(
                "{:<75}{running:<14}{mains:<28}{lates:<28}{}",
                attack.name,
                rotated.as_ref().map_or_else(ToString::to_string, |epoch| format!("epoch {epoch}"))
            );
            let expected = &attack.outcome;
            assert_eq!(running, expected.running, "{}", attack.name);
            assert_eq!((mains.as_str(), lates.as_str()), (expected.main, expected.late), "{}", attack.name);
            assert_eq!(rotated.is_ok(), expected.rotates, "{}: {rotated:?}", attack.name);
        });
    }
}

/// What a rotation by the slot that began with epoch 1 makes, or by the process that runs, where that slot is shut.
async fn rotated(bed: &Bed, main: Option<&Arc<Repository>>) -> Result<u32, RepoError> {
    slots::rotate(main.unwrap_or(&bed.running)).await.map(|rotated| rotated.epoch)
}

/// The number of an epoch that was destroyed is free, but for its link.
#[test]
fn an_epoch_that_was_destroyed_is_not_brought_back_by_another() {
    simulate(async {
        let mut bed = bed().await;
        bed.destroyed(3).await;
        let planted = bed.made_by_eve(3);
        let link = bed.link(&bed.eve[&2], &planted);
        bed.plant(&planted, &link, false);
        let env = bed.env();
        for unlock in [unlock(), key(5)] {
            let repo = open(&bed.world.store, &unlock, env.clone()).await;
            assert_eq!(bed.seals_under(&repo), "epoch 4");
            assert!(repo.unwrap().keys().epoch(3).is_none());
        }
        // What was planted is removed like any other.
        bed.destroyed(3).await;
        let left = bed.world.store.objects();
        let left: Vec<_> = left.keys().filter(|key| key.as_str().starts_with("keys/epochs/3/")).collect();
        assert_eq!(left, [&layout::epoch_link(3)]);
    });
}

/// What stands in the place of the link of epoch 3.
const WRONG_LINKS: &[fn(&mut Bed)] = &[
    |bed| {
        let planted = bed.made_by_eve(3);
        let signer = bed.made_by_eve(2);
        bed.put_link(&bed.link(&signer, &planted));
    },
    |bed| bed.world.store.alter(&layout::epoch_link(3), |bytes| bytes[20] ^= 1),
    |bed| bed.world.store.alter(&layout::epoch_link(3), |bytes| bytes.truncate(30)),
];

#[test]
fn a_link_that_is_wrong_is_made_again_by_who_rotates_or_destroys() {
    for harm in WRONG_LINKS {
        for (rotates, epoch_before_is_gone) in [(true, false), (false, false), (true, true), (false, true)] {
            simulate(async {
                let mut bed = bed().await;
                if epoch_before_is_gone {
                    // Nobody signs for it any more: the object that made epoch 3 has a copy.
                    bed.destroyed(2).await;
                }
                let whole = bed.world.store.objects()[&layout::epoch_link(3)].clone();
                harm(&mut bed);
                let env = bed.env();
                let repo = open(&bed.world.store, &unlock(), env.clone()).await.unwrap();
                assert_eq!(repo.keys().newest().epoch, NEWEST);
                if rotates {
                    slots::rotate(&repo).await.unwrap();
                    assert_eq!(bed.world.store.objects()[&layout::epoch_link(3)], whole);
                }
                destroy(&repo, 3, &Unwatched).await.unwrap();
                // It is all that leads from the first epoch on, now that the third is gone.
                assert_eq!(bed.world.store.objects()[&layout::epoch_link(3)], whole);
                let repo = open(&bed.world.store, &unlock(), env).await.unwrap();
                assert_eq!(repo.keys().newest().epoch, if rotates { 5 } else { NEWEST });
            });
        }
    }
}

#[test]
fn mending_a_link_can_be_stopped_anywhere_and_no_epoch_is_lost() {
    simulate(async {
        let mut bed = bed().await;
        WRONG_LINKS[1](&mut bed);
        let env = bed.env();
        let rotating = async |store: SimStore| {
            let repo = open(&store, &unlock(), env.clone()).await?;
            slots::rotate(&repo).await.map(drop)
        };
        let check = async |store: SimStore, _done: bool| {
            let repo = open(&store, &unlock(), env.clone()).await.unwrap();
            assert!(repo.keys().newest().epoch >= NEWEST);
        };
        let requests = stopped_at_every_request(&bed.world.store, rotating, check).await;
        assert!(requests > 20, "{requests}");
    });
}

#[test]
fn a_store_that_does_not_delete_stops_nobody_for_an_old_link() {
    simulate(async {
        let mut bed = bed().await;
        WRONG_LINKS[1](&mut bed);
        bed.world.store.lock(BTreeSet::from([layout::epoch_link(3)]));
        let env = bed.env();
        let repo = open(&bed.world.store, &unlock(), env).await.unwrap();
        assert_eq!(slots::rotate(&repo).await.unwrap().epoch, 5);
        let refused = destroy(&repo, 3, &Unwatched).await.unwrap_err();
        assert!(refused.is_damage() && refused.to_string().contains("keys/epochs/3/_link"), "{refused}");
    });
}

#[test]
fn a_link_is_not_deleted_without_the_object_that_made_its_epoch() {
    simulate(async {
        let mut bed = bed().await;
        bed.world.store.lose(&layout::epoch(3));
        WRONG_LINKS[1](&mut bed);
        let before = bed.world.store.objects()[&layout::epoch_link(3)].clone();
        assert_eq!(slots::rotate(&bed.running).await.unwrap().epoch, 5);
        assert_eq!(bed.world.store.objects()[&layout::epoch_link(3)], before);
    });
}

/// Somebody who mends a link stalls right before it deletes what was wrong, wakes up for that alone at any moment of a destruction, and
/// dies.
#[test]
fn a_link_outlives_a_mend_that_stalls_beside_the_destruction_of_its_epoch() {
    let deletes = |store: &SimStore| {
        let is_link =
            |op: &StoreOp| matches!(&op.request, Request::Delete(key) if *key == layout::epoch_link(3));
        store.log().iter().any(is_link)
    };
    let mending = async |bed: &mut Bed, stop: u64| {
        WRONG_LINKS[1](bed);
        let (env, stalled) = (bed.env(), bed.world.store.client(7));
        let repo = open(&stalled, &unlock(), env).await.unwrap();
        stalled.hold_after(stop);
        let task = tokio::spawn(async move { slots::rotate(&repo).await.map(drop) });
        while !stalled.is_held() && !task.is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        (stalled, task)
    };
    let before_it = (1..).find(|stop| {
        simulate(async {
            let mut bed = bed().await;
            let (_, task) = mending(&mut bed, *stop).await;
            task.abort();
            deletes(&bed.world.store)
        })
    });
    let before_it = before_it.unwrap() - 1;
    for requests in 1.. {
        let is_done = simulate(async {
            let mut bed = bed().await;
            let (stalled, task) = mending(&mut bed, before_it).await;
            let (env, destroyer) = (bed.env(), bed.world.store.client(8));
            let repo = open(&destroyer, &unlock(), env.clone()).await.unwrap();
            destroyer.hold_after(requests);
            let destroying = tokio::spawn(async move { destroy(&repo, 3, &Unwatched).await });
            while !destroyer.is_held() && !destroying.is_finished() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            // What is deleted after its last look is beyond it.
            let log = bed.world.store.log().into_iter();
            let removed_it =
                |op: &StoreOp| matches!(&op.request, Request::Delete(key) if *key == layout::epoch(3));
            let is_look =
                |op: StoreOp| matches!(&op.request, Request::Create(key, _) if *key == layout::epoch_link(3));
            if destroying.is_finished() || log.skip_while(|op| !removed_it(op)).any(is_look) {
                return true;
            }
            stalled.hold_after(1);
            stalled.hold(false);
            while !deletes(&bed.world.store) && !task.is_finished() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            task.abort();
            destroyer.hold(false);
            destroying.await.unwrap().ok();
            let repo = open(&bed.world.store, &unlock(), env).await;
            assert_eq!(repo.map(|repo| repo.keys().newest().epoch).unwrap(), NEWEST, "stopped at {requests}");
            assert!(bed.world.store.objects().contains_key(&layout::epoch_link(3)), "stopped at {requests}");
            false
        });
        if is_done {
            break;
        }
    }
}

/// The copy of a link in the object that made its epoch is not thrown away while the other is wrong.
#[test]
fn an_epoch_is_not_destroyed_while_its_link_is_damaged_and_cannot_be_made_again() {
    simulate(async {
        let mut bed = bed().await;
        bed.destroyed(2).await;
        bed.world.store.lose(&layout::epoch(3));
        WRONG_LINKS[1](&mut bed);
        let env = bed.env();
        let repo = open(&bed.world.store, &key(5), env.clone()).await.unwrap();
        assert_eq!(repo.keys().newest().epoch, NEWEST);
        let before = bed.world.store.objects();
        let refused = destroy(&repo, 3, &Unwatched).await.unwrap_err();
        assert!(refused.is_damage() && refused.to_string().contains("keys/epochs/3/_link"), "{refused}");
        assert_eq!(bed.world.store.objects(), before);
    });
}

#[test]
fn what_was_planted_is_told_of_and_can_be_removed() {
    simulate(async {
        let mut bed = bed().await;
        let planted = bed.made_by_eve(6);
        let link = bed.link(&bed.eve[&2], &planted);
        bed.plant(&planted, &link, true);
        let env = bed.env();
        let repo = open(&bed.world.store, &unlock(), env.clone()).await.unwrap();
        let list =
            walden::operate::keys::gather(&bed.world.store, Ok(&*repo), false, &Unwatched).await.unwrap();
        let proved: Vec<(u32, Option<bool>, bool)> =
            list.epochs.iter().map(|epoch| (epoch.epoch, epoch.proved, epoch.newest)).collect();
        let yes = Some(true);
        let expected =
            [(1, yes, false), (2, yes, false), (3, yes, false), (4, yes, true), (6, Some(false), false)];
        assert_eq!(proved, expected);
        assert!(list.to_string().contains("6, not proved"), "{list}");
        let report = verify::with_key(&repo, verify::Options::WHOLE, &Unwatched).await.unwrap();
        let said: Vec<&str> = report.findings.iter().map(|finding| finding.key.as_str()).collect();
        assert!(said.contains(&"keys/epochs/6/_epoch"), "{said:?}");
        destroy(&repo, 6, &Unwatched).await.unwrap();
        let there = bed.world.store.objects();
        assert!(!there.contains_key(&layout::epoch(6)));
        assert_eq!(slots::rotate(&repo).await.unwrap().epoch, 5);
    });
}

/// Flips a byte of both copies of an epoch for a slot.
fn hurt(store: &SimStore, epoch: u32, slot: &str) {
    store.alter(&layout::epoch(epoch), |bytes| bytes[100] ^= 1);
    store.alter(&layout::epoch_slot(epoch, &name(slot)), |bytes| bytes[100] ^= 1);
}

#[test]
fn an_old_epoch_that_is_damaged_stops_nobody() {
    simulate(async {
        let mut bed = bed().await;
        let env = bed.env();
        for epoch in 1..NEWEST {
            let store = bed.world.store.fork();
            hurt(&store, epoch, "main");
            let repo = open(&store, &unlock(), env.clone()).await.unwrap();
            assert_eq!(bed.seals_under(&Ok(repo.clone())), "epoch 4");
            let open: Vec<u32> = repo.keys().epochs().map(|keys| keys.epoch).collect();
            assert_eq!(open, (1..=NEWEST).filter(|other| *other != epoch).collect::<Vec<_>>());
            assert_eq!(slots::rotate(&repo).await.unwrap().epoch, 5);
        }
    });
}

#[test]
fn another_slot_is_tried_when_the_newest_epoch_is_damaged_for_one() {
    simulate(async {
        let mut bed = bed().await;
        let env = bed.env();
        slots::add(&bed.running, &name("zero"), &unlock(), SlotCost::LEAST).await.unwrap();
        hurt(&bed.world.store, NEWEST, "main");
        let repo = open(&bed.world.store, &unlock(), env.clone()).await.unwrap();
        assert_eq!(repo.slot().name().as_str(), "zero");
        bed.world.store.alter(&layout::epoch_slot(NEWEST, &name("zero")), |bytes| bytes[100] ^= 1);
        let error = open(&bed.world.store, &unlock(), env.clone()).await.unwrap_err();
        assert!(matches!(error, RepoError::KeySlot { .. }), "{error}");
        assert!(error.to_string().contains("keys/epochs/4/_epoch"), "{error}");
    });
}

#[test]
fn an_epoch_in_the_place_of_another_is_passed_over_for_the_slots_own_copy() {
    for seed in 1..=5 {
        simulate(planted_epoch(seed)).unwrap();
    }
}

#[test]
fn whoever_is_removed_after_making_the_newest_epoch_does_not_know_the_next() {
    simulate(async {
        let mut world = World::new(2, Mode::Object, 1 << 20).await;
        let repo = world.open(1).await.unwrap();
        slots::add(&repo, &name("eve"), &key(66), SlotCost::LEAST).await.unwrap();
        let env = world.env();
        let eve = open(&world.store, &key(66), env).await.unwrap();
        // She makes an epoch that is not given to her slot, and knows it all the same.
        let objects = world.store.objects();
        let main = slot_public(&objects[&layout::slot(&name("main"))], repo.id(), &name("main")).unwrap();
        let entropy = world.env().entropy;
        let hers = eve.keys().newest().next(&*entropy).unwrap();
        let link = eve.keys().newest().link_to(&hers, repo.id());
        let made = EpochObject::create(repo.id(), &hers, Some(&link), &[main], &*entropy);
        world.store.put(&layout::epoch(2), made.to_object().into());
        world.store.put(&layout::epoch_link(2), link.to_object().into());
        let removed = slots::remove(&repo, &BTreeSet::from([name("eve")])).await.unwrap();
        assert_eq!(removed.rotated.map(|rotated| rotated.epoch), Some(3));
        assert_eq!(repo.keys().newest().epoch, 3);
    });
}
