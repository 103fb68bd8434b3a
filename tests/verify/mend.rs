//! An index that is made anew beside collection, late lists and several key epochs, under a simulated clock.

use crate::common::crash::{GRACE, WORK_GRACE, World, read_backup, simulate};
use crate::common::keeping::with_backups;
use crate::common::sim_store::StoreFaults;
use std::sync::Arc;
use std::time::Duration;
use walden::base::{ObjectKey, TimelineId, Unwatched};
use walden::format::root::Root;
use walden::rekey::reseal::reseal;
use walden::repair::{self, Options, Plan};
use walden::repo::chunks::{ChunkIndex, ChunkReader};
use walden::repo::index::IndexEdit;
use walden::repo::{Cluster, Index, RepoError, RootChange, WalReader, layout, slots, walmap};
use walden::retain::{gc, pin};

/// A cluster with backups in which nothing is registered, and everything is older than every grace period.
async fn quiet(world: &mut World) -> Cluster {
    tokio::time::sleep(WORK_GRACE * 4).await;
    let cluster = world.cluster_of(7).await.unwrap();
    gc::collect_with(&cluster, GRACE, WORK_GRACE).await.unwrap();
    cluster
}

async fn newest_index(cluster: &Cluster) -> Index {
    cluster.index(&cluster.newest_root().await.unwrap()).await.unwrap()
}

async fn plan_of(cluster: &Cluster) -> Plan {
    repair::plan(cluster, &Options::default(), &Unwatched).await.unwrap()
}

/// Flips a bit of `key`, `back` bytes before its end.
fn flip(world: &World, key: &ObjectKey, back: usize) {
    world.store.alter(key, |bytes| {
        let at = bytes.len() - back;
        bytes[at] ^= 1;
    });
}

fn lose_index(world: &World, cluster: &Cluster) {
    let prefix = format!("{}/", layout::index_prefix(cluster.name()));
    for key in world.store.objects().keys().filter(|key| key.as_str().starts_with(&prefix)) {
        flip(world, key, 60);
    }
}

/// Commits the index it has as one object, under the newest key epoch.
async fn rewrite(cluster: &Cluster) {
    let edit = |root: &Root, index: &Index| {
        let index = IndexEdit::Rewrite(index.clone().into_page());
        Ok::<_, RepoError>(Some(RootChange { root: root.clone(), index }))
    };
    cluster.commit_indexed(edit).await.unwrap();
}

/// All WAL and the files of all backups are what the server sent.
async fn assert_all_is_there(world: &World, cluster: &Cluster, backups: usize) {
    let snapshot = walmap::load(cluster).await.unwrap();
    let index = ChunkIndex::load(cluster, &snapshot.index.pages).await.unwrap();
    let reader = ChunkReader::new(cluster.clone(), Arc::new(index), 1);
    assert_eq!(snapshot.index.backups.len(), backups);
    for backup in &snapshot.index.backups {
        let files = read_backup(cluster, &reader, backup).await.unwrap();
        assert_eq!(world.server.sent(backup.timeline, backup.start), Some(files), "{}", backup.id);
    }
    let (range, expected) = world.server.wal_until(world.server.acknowledged());
    let stored = WalReader::new(cluster.clone(), snapshot.wal).read(TimelineId(1), range).await.unwrap();
    assert!(stored == expected, "WAL {range} differs");
}

#[test]
fn what_a_new_index_leaves_out_has_a_grace_period_from_then_on_and_goes_only_if_it_opens() {
    simulate(async {
        let mut world = with_backups(21, 2).await;
        let ours = quiet(&mut world).await;
        lose_index(&world, &ours);
        let mut plan = plan_of(&ours).await;
        assert_eq!(plan.refusal(), None);
        // As if nobody had found two of the segments.
        assert!(plan.rebuilt.page.pages.len() >= 2);
        let left_out: Vec<ObjectKey> =
            plan.rebuilt.page.pages.drain(..2).map(|entry| layout::segment(ours.name(), entry.id)).collect();
        flip(&world, &left_out[1], 60);
        repair::commit(&ours, &plan).await.unwrap();
        let there = |world: &World| -> Vec<bool> {
            let objects = world.store.objects();
            left_out.iter().map(|key| objects.contains_key(key)).collect()
        };
        for _ in 0..3 {
            gc::collect_with(&ours, GRACE, WORK_GRACE).await.unwrap();
            assert_eq!(there(&world), [true, true]);
            tokio::time::sleep(WORK_GRACE / 4).await;
        }
        tokio::time::sleep(WORK_GRACE).await;
        for _ in 0..2 {
            // Roots that are younger make no difference.
            rewrite(&ours).await;
            gc::collect_with(&ours, GRACE, WORK_GRACE).await.unwrap();
            assert_eq!(
                there(&world),
                [false, true],
                "one is as old as a leftover has to be, one does not open"
            );
            tokio::time::sleep(WORK_GRACE * 2).await;
        }
    });
}

#[test]
fn what_a_late_list_does_not_show_stays_named() {
    simulate(async {
        let mut world = with_backups(22, 2).await;
        let ours = quiet(&mut world).await;
        rewrite(&ours).await;
        let before = newest_index(&ours).await;
        pin::pin(&ours, &before.backups[0].id, None, "audit").await.unwrap();
        let newest = newest_index(&ours).await.objects[0];
        flip(&world, &layout::index(ours.name(), newest), 60);
        world.store.set_faults(StoreFaults { list_misses: 1.0, ..StoreFaults::default() });
        let plan = plan_of(&ours).await;
        assert_eq!((&plan.rebuilt.gone, plan.unreadable.len()), (&vec![], 1), "{:?}", plan.unreadable);
        repair::commit(&ours, &plan).await.unwrap();
        world.store.set_faults(StoreFaults::default());
        let after = newest_index(&ours).await;
        assert_eq!((&after.wal, &after.pages), (&before.wal, &before.pages));
        assert_eq!(after.backups, before.backups);
        assert_all_is_there(&world, &ours, 2).await;
        assert_eq!(world.lost().await, None);
    });
}

#[test]
fn a_repository_of_two_key_epochs_with_moved_manifests_gets_its_index_back() {
    simulate(async {
        let mut world = with_backups(23, 2).await;
        let ours = quiet(&mut world).await;
        slots::rotate(ours.repo()).await.unwrap();
        reseal(&ours, u64::MAX, &Unwatched).await.unwrap();
        let before = newest_index(&ours).await;
        assert!(before.backups.iter().all(|backup| backup.manifest_number > 0), "{:?}", before.backups);
        lose_index(&world, &ours);
        let plan = plan_of(&ours).await;
        assert_eq!(plan.refusal(), None);
        repair::commit(&ours, &plan).await.unwrap();
        let numbers = |index: &Index| -> Vec<u32> {
            index.backups.iter().map(|backup| backup.manifest_number).collect()
        };
        assert_eq!(numbers(&newest_index(&ours).await), numbers(&before));
        assert_all_is_there(&world, &ours, 2).await;
        // Nothing that is needed goes with what the move left behind.
        for _ in 0..3 {
            tokio::time::sleep(WORK_GRACE * 2).await;
            rewrite(&ours).await;
            gc::collect_with(&ours, GRACE, WORK_GRACE).await.unwrap();
        }
        assert_all_is_there(&world, &ours, 2).await;
    });
}

#[test]
fn a_slot_that_lacks_a_key_epoch_makes_no_index() {
    simulate(async {
        let mut world = with_backups(24, 2).await;
        let ours = quiet(&mut world).await;
        slots::rotate(ours.repo()).await.unwrap();
        // Roots and index are of the new epoch alone; what they lead to is not.
        for _ in 0..3 {
            rewrite(&ours).await;
            tokio::time::sleep(WORK_GRACE * 2 + Duration::from_secs(1)).await;
            gc::collect_with(&ours, GRACE, WORK_GRACE).await.unwrap();
        }
        for key in world.store.objects().keys().filter(|key| key.as_str().starts_with("keys/epochs/1/")) {
            world.store.lose(key);
        }
        let theirs = world.cluster_of(9).await.unwrap();
        let whole = newest_index(&theirs).await;
        assert_eq!(whole.backups.len(), 2);
        lose_index(&world, &theirs);
        let root = theirs.newest_root().await.unwrap().number;
        let error = repair::plan(&theirs, &Options::default(), &Unwatched).await.unwrap_err();
        let RepoError::NoKey { key, .. } = &error else { panic!("{error}") };
        assert!(key.as_str().contains("/backups/") || key.as_str().contains("/segments/"), "{key}");
        assert_eq!(theirs.newest_root().await.unwrap().number, root);
        // Whoever holds it, makes one.
        let plan = plan_of(&ours).await;
        repair::commit(&ours, &plan).await.unwrap();
        assert_all_is_there(&world, &ours, 2).await;
    });
}
