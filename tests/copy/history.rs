//! Which source a copy may go on from: the same history, and nothing that only looks like it. And how far its window reaches.

use crate::bed::{cluster, copy_all, copy_as, empty, open, verified};
use crate::clusters::DELTAS;
use crate::common::crash::{GRACE, World, simulate};
use crate::common::keeping::{keep, window, with_backups, with_backups_and_wal};
use crate::common::sim_store::SimStore;
use std::time::Duration;
use tokio::sync::watch;
use walden::base::{BackupId, Generation, SystemId, TimelineId, Timestamp};
use walden::copy::{BackupWal, CopyError, Scope};
use walden::format::index::{HistoryEntry, IndexPage};
use walden::format::record::Blob;
use walden::format::root::{GenerationRecord, Root};
use walden::operate::info::{self, WindowInfo};
use walden::receive::compact::{self, Extent};
use walden::repo::index::{IndexEdit, empty_page};
use walden::repo::walmap::{self, Snapshot};
use walden::repo::{Cluster, RepoError, RootChange, layout};

async fn look(cluster: &Cluster) -> Snapshot {
    walmap::load(cluster).await.unwrap()
}

/// Lets go of everything but the newest backup.
async fn keep_the_newest(source: &Cluster) {
    compact::compact(source, Some(DELTAS), Extent::All).await.unwrap();
    for _ in 0..3 {
        keep(source, &window(0), Duration::ZERO).await.unwrap();
        tokio::time::sleep(GRACE * 2).await;
    }
}

/// The first backup with the WAL that makes it consistent.
async fn first_backup(source: &Cluster) -> Scope {
    let backups = look(source).await.index.backups;
    let first = backups.iter().min_by_key(|backup| backup.start).unwrap();
    Scope::Backup { name: first.id.to_string(), wal: BackupWal::Needed }
}

/// The cluster of `world`, a store into which its first backup was copied with the WAL that that needs, and the copy.
async fn with_its_first_backup_copied(world: &mut World, seed: u64) -> (Cluster, SimStore, Cluster) {
    let source = world.cluster_of(20).await.unwrap();
    let to = empty(world, seed).await;
    let scope = first_backup(&source).await;
    copy_as(&source, &open(&to, world.env()).await, &world.cluster, scope).await.unwrap();
    let theirs = cluster(&to, world).await;
    (source, to, theirs)
}

async fn assert_nothing_in_common(ours: &Cluster, theirs: &Cluster) {
    let (ours, theirs) = (look(ours).await, look(theirs).await);
    let ranges = (ours.wal.ranges(TimelineId(1)), theirs.wal.ranges(TimelineId(1)));
    assert!(
        ranges.0.iter().all(|own| ranges.1.iter().all(|other| own.intersect(*other).is_none())),
        "{ranges:?}"
    );
}

#[test]
fn a_twin_that_holds_nothing_in_common_with_the_copy_is_refused() {
    simulate(async {
        let mut world = with_backups_and_wal(61, 1, 2 << 20).await;
        let (source, to, theirs) = with_its_first_backup_copied(&mut world, 67).await;
        let before = look(&theirs).await.index.into_page();

        let mut twin = with_backups_and_wal(62, 5, 2 << 20).await;
        let clone = twin.cluster_of(20).await.unwrap();
        keep_the_newest(&clone).await;
        assert_nothing_in_common(&clone, &theirs).await;
        let refused = copy_all(&clone, &open(&to, world.env()).await).await.unwrap_err();
        assert!(matches!(refused, CopyError::Unrelated { .. }), "{refused}");
        assert_eq!(look(&theirs).await.index.into_page(), before);
        copy_all(&source, &open(&to, world.env()).await).await.unwrap();
        verified(&to, world.env()).await;
    });
}

#[test]
fn a_source_that_let_go_of_all_that_was_copied_is_known_by_where_the_copy_came_from() {
    simulate(async {
        let mut world = with_backups_and_wal(68, 3, 2 << 20).await;
        let (source, to, theirs) = with_its_first_backup_copied(&mut world, 69).await;
        let origin = look(&theirs).await.root.copied_from();
        assert_eq!(origin, Some((source.repo().id(), world.cluster.clone())));
        keep_the_newest(&source).await;
        assert_nothing_in_common(&source, &theirs).await;
        let kept: Vec<BackupId> =
            look(&source).await.index.backups.into_iter().map(|backup| backup.id).collect();
        let mut done = copy_all(&source, &open(&to, world.env()).await).await.unwrap();
        done.backups.sort();
        assert!(!kept.is_empty() && done.backups == kept, "{kept:?}: {done:?}");
        verified(&to, world.env()).await;
    });
}

#[test]
fn a_copy_of_the_copy_is_known_by_what_both_hold() {
    simulate(async {
        let mut world = with_backups_and_wal(72, 2, 2 << 20).await;
        let source = world.cluster_of(20).await.unwrap();
        let (near, far) = (empty(&mut world, 73).await, empty(&mut world, 74).await);
        copy_all(&source, &open(&near, world.env()).await).await.unwrap();
        copy_all(&source, &open(&far, world.env()).await).await.unwrap();
        let from = cluster(&near, &mut world).await;
        let done = copy_all(&from, &open(&far, world.env()).await).await.unwrap();
        assert_eq!((done.backups.len(), done.wal_segments), (0, 0), "{done:?}");
        let theirs = cluster(&far, &mut world).await;
        let origin = look(&theirs).await.root.copied_from();
        assert_eq!(origin, Some((from.repo().id(), from.name().clone())));

        // One that does not say where it came from, made before copies did.
        let forget = |root: &Root| {
            let mut root = root.clone();
            root.extensions.clear();
            Ok::<_, RepoError>(Some(RootChange::of(root)))
        };
        theirs.commit(forget).await.unwrap();
        copy_all(&source, &open(&far, world.env()).await).await.unwrap();
        verified(&far, world.env()).await;
    });
}

async fn window_of(cluster: &Cluster) -> WindowInfo {
    info::cluster(cluster, None).await.unwrap().window
}

/// Receives for `span` while the server writes nothing.
async fn idle(world: &mut World, client: u32, span: Duration) {
    let (_stop, stopped) = watch::channel(false);
    let receiving = world.receiver(client, stopped).await;
    tokio::select! {
        ended = receiving => panic!("{ended:?}"),
        () = tokio::time::sleep(span) => {}
    }
}

#[test]
fn the_window_of_a_copy_grows_with_that_of_an_idle_source() {
    for compacted in [true, false] {
        simulate(async {
            let mut world = with_backups(75, 1).await;
            if !compacted {
                world.pace = Some(Duration::from_secs(360_000));
            }
            let source = world.cluster_of(20).await.unwrap();
            let to = empty(&mut world, 76).await;
            copy_all(&source, &open(&to, world.env()).await).await.unwrap();
            let theirs = cluster(&to, &mut world).await;
            let mut before = window_of(&theirs).await;
            assert_eq!(before, window_of(&source).await);
            world.pace = Some(Duration::from_secs(360_000));
            for client in 2..5 {
                // The server writes nothing, and its clock goes on.
                world.server.set_clock(Timestamp::from_micros(world.server.clock().micros() + 1_000_000_000));
                idle(&mut world, client, Duration::from_secs(1000)).await;
                let done = copy_all(&source, &open(&to, world.env()).await).await.unwrap();
                assert_eq!((done.wal_segments, done.bytes_written), (0, 0), "{done:?}");
                let now = window_of(&theirs).await;
                assert_eq!(now, window_of(&source).await);
                assert!(now.end > before.end, "{now:?}, before {before:?}");
                before = now;
            }
            verified(&to, world.env()).await;
            // Looked at again, nothing more is written.
            let index = look(&theirs).await.index.objects;
            copy_all(&source, &open(&to, world.env()).await).await.unwrap();
            assert_eq!(look(&theirs).await.index.objects, index);
        });
    }
}

#[test]
fn a_clone_of_the_server_is_not_copied_into_its_copy() {
    simulate(async {
        let mut world = with_backups(25, 1).await;
        let source = world.cluster_of(20).await.unwrap();
        let to = empty(&mut world, 55).await;
        copy_all(&source, &open(&to, world.env()).await).await.unwrap();
        let theirs = cluster(&to, &mut world).await;
        let before = look(&theirs).await.index.into_page();

        // The same system identifier and timeline, and other WAL: from the beginning on, plain on one side, deltas on the other.
        let mut twin = with_backups_and_wal(26, 1, 2 << 20).await;
        let clone = twin.cluster_of(20).await.unwrap();
        for compacted in [false, true] {
            if compacted {
                compact::compact(&clone, Some(DELTAS), Extent::All).await.unwrap();
            }
            let refused = copy_all(&clone, &open(&to, world.env()).await).await.unwrap_err();
            assert!(matches!(refused, CopyError::Differs { .. }), "{refused}");
            assert!(refused.to_string().contains("timeline 1 at "), "{refused}");
            assert_eq!(look(&theirs).await.index.into_page(), before);
        }
        copy_all(&source, &open(&to, world.env()).await).await.unwrap();
        verified(&to, world.env()).await;
    });
}

#[test]
fn a_server_that_is_refused_leaves_no_record_of_its_generations() {
    simulate(async {
        let mut world = with_backups(25, 1).await;
        let source = world.cluster_of(20).await.unwrap();
        let to = empty(&mut world, 55).await;
        copy_all(&source, &open(&to, world.env()).await).await.unwrap();
        let theirs = cluster(&to, &mut world).await;

        let mut twin = with_backups_and_wal(26, 1, 2 << 20).await;
        let clone = twin.cluster_of(20).await.unwrap();
        let first = clone.generation().await.unwrap();
        let next = GenerationRecord { system_id: SystemId(79), ..first.clone() };
        clone.begin_generation(first.generation, &next).await.unwrap();
        let refused = copy_all(&clone, &open(&to, world.env()).await).await.unwrap_err();
        assert!(matches!(refused, CopyError::Differs { .. }), "{refused}");
        let of_next = layout::generation(theirs.name(), Generation(first.generation.0 + 1));
        assert!(!to.objects().contains_key(&of_next));
        verified(&to, world.env()).await;
    });
}

/// Adds a history to the index of `cluster`.
async fn add_history(cluster: &Cluster, reason: &str) {
    let generation = cluster.newest_root().await.unwrap().generation;
    let content = format!("1\t0/1200000\t{reason}\n").into_bytes();
    let history = HistoryEntry { generation, timeline: TimelineId(2), content: Blob(content) };
    let page = IndexPage { histories: vec![history], ..empty_page() };
    let change =
        |root: &Root| Ok(Some(RootChange { root: root.clone(), index: IndexEdit::Add(page.clone()) }));
    cluster.commit::<RepoError>(change).await.unwrap();
}

#[test]
fn a_timeline_that_began_otherwise_in_the_destination_is_refused() {
    simulate(async {
        let mut world = with_backups(27, 1).await;
        let source = world.cluster_of(20).await.unwrap();
        let to = empty(&mut world, 56).await;
        copy_all(&source, &open(&to, world.env()).await).await.unwrap();
        let theirs = cluster(&to, &mut world).await;
        add_history(&theirs, "no recovery target specified").await;
        let before = look(&theirs).await.index.into_page();
        add_history(&source, "before 2026-11-22 19:55:01+00").await;
        let refused = copy_all(&source, &open(&to, world.env()).await).await.unwrap_err();
        assert!(
            matches!(&refused, CopyError::Differs { what, .. } if what == "the history of timeline 2"),
            "{refused}"
        );
        assert_eq!(look(&theirs).await.index.into_page(), before);
    });
}
