//! Deleting a cluster: nothing of it can be read from the first step on, whoever was held up brings nothing back, and the name
//! begins anew above everything that was.

use crate::bed::*;
use crate::common::crash::{GRACE, Mode, World, simulate};
use crate::common::keeping::with_backups;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::watch;
use walden::base::{ObjectKey, Unwatched};
use walden::format::header::{ObjectHeader, ObjectKind};
use walden::rekey::destroy::destroy;
use walden::repair::root;
use walden::repo::{Cluster, RepoError, slots};
use walden::retain::cluster::{self, DeleteClusterError, Doomed, Purged, Running};
use walden::retain::{gc, pin};
use walden::verify;

/// What stays of a deleted cluster.
fn left(world: &World) -> BTreeSet<String> {
    let kinds = world.store.objects().into_keys().filter_map(|key| {
        let mut parts = key.as_str().split('/');
        (parts.next() == Some("clusters")).then(|| parts.nth(1).map(str::to_owned)).flatten()
    });
    kinds.collect()
}

async fn survey(world: &mut World, client: u32) -> (Cluster, Doomed) {
    let repo = world.open(client).await.unwrap();
    let known = Cluster::unchecked(repo, world.cluster.clone());
    let doomed = cluster::survey(&known).await.unwrap();
    (known, doomed)
}

async fn delete(world: &mut World, client: u32, running: Running) -> Result<Purged, DeleteClusterError> {
    let (known, doomed) = survey(world, client).await;
    cluster::delete(&known, &doomed, running).await
}

async fn is_gone(world: &mut World) {
    let opened = world.cluster_of(90).await;
    assert!(matches!(opened, Err(RepoError::Deleted { .. })), "{opened:?}");
    let expected = ["floors", "generations", "roots", "wal"].map(str::to_owned);
    assert_eq!(left(world), BTreeSet::from(expected));
    let roots = world.store.objects().into_keys().filter(|key| key.as_str().contains("/roots/")).count();
    assert_eq!(roots, 1, "roots are left");
}

/// Nobody runs any more.
async fn quiet(seed: u64) -> World {
    let mut world = with_backups(seed, 2).await;
    tokio::time::sleep(cluster::WRITTEN_LATELY * 2).await;
    let server = world.server.clone();
    world.server = server;
    world
}

#[test]
fn a_stop_at_any_request_of_a_deletion_leaves_nothing_to_restore_and_is_gone_on_with() {
    let mut stops = 0;
    simulate(async {
        let before = quiet(3).await;
        for requests in 1.. {
            let (server, store) = (before.server.fork(), before.store.fork());
            let mut world = World::of(3000 + requests, Mode::Object, server, store, before.disk.fork(1));
            let stopped = world.store.client(7);
            let repo = world.open(7).await.unwrap();
            let known = Cluster::unchecked(repo, world.cluster.clone());
            let doomed = cluster::survey(&known).await.unwrap();
            assert_eq!(doomed.backups.len(), 2);
            stopped.hold_after(requests);
            let deleting = cluster::delete(&known, &doomed, Running::Respect);
            let held = async {
                while !stopped.is_held() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            let finished = tokio::select! { done = deleting => { done.unwrap(); true } () = held => false };
            // All of it is there, or nothing that anybody would take for it.
            match world.cluster_of(8).await {
                Ok(whole) => {
                    let root = whole.newest_root().await.unwrap();
                    assert_eq!(
                        whole.index(&root).await.unwrap().backups.len(),
                        2,
                        "after {requests} requests"
                    );
                }
                Err(error) => assert!(matches!(error, RepoError::Deleted { .. }), "{error}"),
            }
            delete(&mut world, 8, Running::Respect).await.unwrap();
            is_gone(&mut world).await;
            if finished {
                break;
            }
            stops += 1;
        }
    });
    assert!(stops > 15, "{stops} stops");
}

#[test]
fn a_writer_that_wakes_up_later_brings_nothing_back_and_leaves_nothing() {
    let mut slept = 0;
    for requests in (1..60).step_by(3) {
        simulate(async {
            let mut world = with_backups(5, 1).await;
            let server = world.server.clone();
            server.write_more(200 << 10);
            let stalled = world.store.client(2);
            let (_stop, stopped) = watch::channel(false);
            let receiving = world.receiver(2, stopped).await;
            stalled.hold_after(requests);
            let deleting = async {
                while !stalled.is_held() {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                delete(&mut world, 8, Running::Override).await.unwrap();
                tokio::time::sleep(GRACE * 2).await;
                stalled.hold(false);
                std::future::pending::<()>().await;
            };
            let ended = tokio::select! { ended = receiving => ended, () = deleting => unreachable!() };
            let told = ended.unwrap_err().to_string();
            assert!(told.contains("cluster shop was deleted at"), "after {requests} requests: {told}");
            slept += 1;
            // What it was about to store when it was held up is there for nobody, and collection takes it.
            tokio::time::sleep(GRACE).await;
            let known = Cluster::unchecked(world.open(9).await.unwrap(), world.cluster.clone());
            gc::collect(&known, GRACE).await.unwrap();
            is_gone(&mut world).await;
        });
    }
    assert!(slept > 10, "{slept}");
}

#[test]
fn what_is_pinned_or_at_work_is_not_deleted() {
    simulate(async {
        let mut world = quiet(7).await;
        let owner = world.cluster_of(3).await.unwrap();
        let index = owner.index(&owner.newest_root().await.unwrap()).await.unwrap();
        let id = index.backups[0].id.clone();
        let (known, unpinned) = survey(&mut world, 4).await;
        pin::pin(&owner, &id, None, "before the migration").await.unwrap();
        for running in [Running::Respect, Running::Override] {
            let refused = delete(&mut world, 8, running).await.unwrap_err();
            assert!(matches!(&refused, DeleteClusterError::Pinned { count: 1, .. }), "{refused}");
            assert!(refused.to_string().contains("before the migration"), "{refused}");
            // Pinned after somebody had looked.
            let late = cluster::delete(&known, &unpinned, running).await.unwrap_err();
            assert!(matches!(late, DeleteClusterError::Pinned { .. }), "{late}");
        }
        pin::unpin(&owner, &id).await.unwrap();

        let work = walden::repo::Registration::create(
            &owner,
            walden::format::root::PendingKind::Restore,
            Some(id),
            "a restore of somebody's",
        );
        let work = work.await.unwrap();
        let refused = delete(&mut world, 8, Running::Respect).await.unwrap_err();
        assert!(refused.to_string().contains("a restore of somebody's"), "{refused}");
        work.abandon().await.unwrap();

        world.server.write_more(10 << 10);
        receive_until_finished(&mut world, 5).await;
        let refused = delete(&mut world, 8, Running::Respect).await.unwrap_err();
        assert!(refused.to_string().contains("a receiver stored WAL"), "{refused}");
        tokio::time::sleep(cluster::WRITTEN_LATELY * 2).await;
        delete(&mut world, 8, Running::Respect).await.unwrap();
        is_gone(&mut world).await;
        // A second time there is nothing to do.
        assert_eq!(delete(&mut world, 8, Running::Respect).await.unwrap().objects, 0);
    });
}

#[test]
fn a_deleted_name_is_refused_and_begins_anew_above_everything_that_was() {
    simulate(async {
        let mut world = quiet(9).await;
        let before = world.cluster_of(3).await.unwrap().newest_root().await.unwrap();
        delete(&mut world, 8, Running::Respect).await.unwrap();
        let (_stop, stopped) = watch::channel(false);
        let refused = world.receiver(1, stopped).await.await.unwrap_err();
        assert!(refused.to_string().contains("was deleted"), "{refused}");
        let backup = world.backup(6).await.await.unwrap_err();
        assert!(backup.to_string().contains("was deleted"), "{backup}");
        let same = world.server.fork();
        let refused = upgrade_to(&mut world, 2, &same, STRICT).await.unwrap_err();
        assert!(refused.to_string().contains("was deleted at"), "{refused}");

        let done = upgrade_to(&mut world, 2, &same, ANY).await.unwrap();
        assert_eq!(done.after.generation, SECOND);
        let anew = world.cluster_of(3).await.unwrap();
        let root = anew.newest_root().await.unwrap();
        assert!(root.number > before.number && root.writer_epoch > before.writer_epoch, "{root:?}");
        assert_eq!((root.streams.len(), root.index, root.deleted_at), (0, None, None));
        same.write_more(50 << 10);
        world.server = same.clone();
        receive_until_finished(&mut world, 1).await;
        let snapshot = walden::repo::walmap::load(&anew).await.unwrap();
        assert_eq!(snapshot.wal.durable_end().map(|end| end.lsn), Some(same.end()));
    });
}

#[test]
fn a_name_that_began_anew_has_its_backups_again_when_all_its_new_roots_are_lost() {
    simulate(async {
        let mut world = quiet(19).await;
        delete(&mut world, 8, Running::Respect).await.unwrap();
        let known = Cluster::unchecked(world.open(9).await.unwrap(), world.cluster.clone());
        let deleted = known.newest_root().await.unwrap().number;
        let same = world.server.fork();
        upgrade_to(&mut world, 2, &same, ANY).await.unwrap();
        same.write_more(100 << 10);
        world.server = same;
        world.pace = Some(Duration::from_secs(1_000_000));
        let (_stop, stopped) = watch::channel(false);
        let receiving = world.receiver(1, stopped).await;
        let backing_up = world.backup(10).await;
        let made = tokio::select! {
            ended = receiving => panic!("{ended:?}"),
            made = backing_up => made.unwrap(),
        };
        for key in of_folder(&world, "roots") {
            if key.file_name().parse::<u64>().unwrap() > deleted {
                world.store.alter(&key, |bytes| bytes[200] ^= 1);
            }
        }
        let plan = root::plan(&known).await.unwrap();
        assert_eq!(plan.base.number, deleted);
        let root = root::commit(&known, &plan).await.unwrap();
        assert_eq!((root.generation, root.deleted_at), (SECOND, None));
        let index = known.index(&root).await.unwrap();
        let backups: Vec<_> = index.backups.iter().map(|backup| &backup.id).collect();
        assert_eq!(backups, [&made.entry.id]);
        assert_eq!(world.lost().await, None);
    });
}

#[test]
fn what_an_object_lock_holds_goes_later() {
    simulate(async {
        let mut world = quiet(11).await;
        let locked: BTreeSet<ObjectKey> = world
            .store
            .objects()
            .into_keys()
            .filter(|key| key.as_str().contains("/segments/"))
            .take(1)
            .collect();
        assert_eq!(locked.len(), 1);
        world.store.lock(locked.clone());
        let purged = delete(&mut world, 8, Running::Respect).await.unwrap();
        assert_eq!((purged.undeleted.count, Some(&purged.undeleted.first[0].0)), (1, locked.first()));
        assert!(matches!(world.cluster_of(9).await, Err(RepoError::Deleted { .. })));
        world.store.lock(BTreeSet::new());
        let known = Cluster::unchecked(world.open(9).await.unwrap(), world.cluster.clone());
        assert_eq!(gc::collect(&known, GRACE).await.unwrap().orphans, 1);
        is_gone(&mut world).await;
    });
}

#[test]
fn a_damaged_cluster_can_be_deleted_when_somebody_insists() {
    simulate(async {
        let mut world = quiet(13).await;
        let damaged: Vec<ObjectKey> = world
            .store
            .objects()
            .into_keys()
            .filter(|key| key.as_str().contains("/index/") || key.as_str().contains("/wal/"))
            .collect();
        assert!(damaged.len() > 1);
        damaged.iter().for_each(|key| world.store.alter(key, |bytes| bytes[100] ^= 1));
        let refused = delete(&mut world, 8, Running::Respect).await.unwrap_err();
        assert!(refused.to_string().contains("cannot be read"), "{refused}");
        delete(&mut world, 8, Running::Override).await.unwrap();
        is_gone(&mut world).await;
    });
}

fn of_folder(world: &World, folder: &str) -> Vec<ObjectKey> {
    let part = format!("/{folder}/");
    world.store.objects().into_keys().filter(|key| key.as_str().contains(&part)).collect()
}

fn is_fence(world: &World, key: &ObjectKey) -> bool {
    let objects = world.store.objects();
    ObjectHeader::decode(&objects[key]).is_ok_and(|(header, _)| header.kind == ObjectKind::Fence)
}

#[test]
fn what_the_old_life_left_is_collected_in_the_new_one_which_keeps_its_own() {
    simulate(async {
        let mut world = quiet(15).await;
        world.server.write_more(200 << 10);
        receive_until_finished(&mut world, 4).await;
        let owner = world.cluster_of(3).await.unwrap();
        let verify = async |of: &Cluster| {
            verify::with_key(of.repo(), verify::Options::WHOLE, &Unwatched).await.unwrap();
        };
        verify(&owner).await;
        // A deletion that was cut short left these.
        let mut left: Vec<ObjectKey> = of_folder(&world, "wal");
        left.retain(|key| !is_fence(&world, key));
        left.extend(of_folder(&world, "verifications"));
        assert!(left.len() > 2, "{left:?}");
        world.store.lock(left.iter().cloned().collect());
        delete(&mut world, 8, Running::Override).await.unwrap();
        world.store.lock(BTreeSet::new());
        let fences = of_folder(&world, "wal").into_iter().filter(|key| is_fence(&world, key));
        let fences: Vec<ObjectKey> = fences.collect();
        let same = world.server.fork();
        upgrade_to(&mut world, 2, &same, ANY).await.unwrap();
        same.write_more(200 << 10);
        world.server = same.clone();
        receive_until_finished(&mut world, 1).await;
        let own: Vec<ObjectKey> =
            of_folder(&world, "wal").into_iter().filter(|key| !left.contains(key)).collect();
        assert!(own.len() > 2, "{own:?}");

        let anew = world.cluster_of(3).await.unwrap();
        let there = |world: &World, keys: &[ObjectKey]| {
            let objects = world.store.objects();
            keys.iter().filter(|key| objects.contains_key(*key)).count()
        };
        gc::collect_with(&anew, GRACE * 100, GRACE * 100).await.unwrap();
        assert_eq!(there(&world, &left), left.len(), "the grace period is not over");
        tokio::time::sleep(GRACE * 2).await;
        gc::collect_with(&anew, GRACE, GRACE).await.unwrap();
        // The newest result of verification is only replaced by another.
        let result = of_folder(&world, "verifications");
        assert_eq!((there(&world, &left), there(&world, &result)), (1, 1));
        assert_eq!((there(&world, &own), there(&world, &fences)), (own.len(), fences.len()));
        let snapshot = walden::repo::walmap::load(&anew).await.unwrap();
        assert_eq!(snapshot.wal.durable_end().map(|end| end.lsn), Some(same.end()));
        // The new life's own results stay.
        verify(&anew).await;
        tokio::time::sleep(GRACE * 2).await;
        gc::collect_with(&anew, GRACE, GRACE).await.unwrap();
        assert_eq!(of_folder(&world, "verifications").len(), 1);
    });
}

#[test]
fn what_may_be_a_fence_is_not_deleted_with_the_cluster() {
    simulate(async {
        let mut world = quiet(17).await;
        world.server.write_more(50 << 10);
        receive_until_finished(&mut world, 4).await;
        let fence = of_folder(&world, "wal").into_iter().find(|key| is_fence(&world, key)).unwrap();
        let flush = of_folder(&world, "wal").into_iter();
        let flush = flush.max_by_key(|key| world.store.objects()[key].len()).unwrap();
        for key in [&fence, &flush] {
            world.store.alter(key, |bytes| bytes[100] ^= 1);
        }
        let purged = delete(&mut world, 8, Running::Override).await.unwrap();
        assert_eq!((purged.may_be_fences, purged.undeleted.count), (vec![fence.clone()], 0));
        is_gone(&mut world).await;
        let objects = world.store.objects();
        assert!(objects.contains_key(&fence) && !objects.contains_key(&flush));
        // Whatever it is, nobody reads it, and it keeps no key epoch.
        let repo = world.open(9).await.unwrap();
        slots::rotate(&repo).await.unwrap();
        destroy(&repo, 1, &Unwatched).await.unwrap();
    });
}
