//! Sources that older servers, retention, loss, deletion or cloning have left their marks on.

use crate::bed::{check, cluster, copy_all, copy_as, empty, open, verified};
use crate::clusters::received;
use crate::common::crash::{Mode, World, simulate};
use crate::common::keeping::{with_backups, with_backups_and_wal};
use std::time::Duration;
use walden::base::{Lsn, SystemId, TimelineId};
use walden::copy::{BackupWal, CopyError, Scope};
use walden::format::index::{BackupState, HistoryEntry, IndexPage, WalEntry};
use walden::format::record::Blob;
use walden::format::root::{GenerationRecord, Root};
use walden::receive::compact::{self, DeltaOptions, Extent};
use walden::repo::index::{IndexEdit, empty_page};
use walden::repo::walmap::{self, Snapshot};
use walden::repo::{Cluster, Index, RepoError, RootChange};
use walden::retain::cluster::{Running, delete, survey};

const DELTAS: DeltaOptions = DeltaOptions { cache_bytes: 10 << 20 };

async fn look(cluster: &Cluster) -> Snapshot {
    walmap::load(cluster).await.unwrap()
}

#[test]
fn records_of_generations_of_which_nothing_is_left_are_copied_too() {
    simulate(async {
        let mut world = World::new(21, Mode::Object, 64 << 10).await;
        let repo = world.open(20).await.unwrap();
        let first = GenerationRecord {
            cluster: world.cluster.clone(),
            generation: walden::base::Generation(1),
            system_id: SystemId(77),
            major_version: 15,
            segment_size: 1 << 20,
            block_size: 8192,
        };
        let source = Cluster::create(repo, first.clone()).await.unwrap();
        let mut now = first.clone();
        for number in 1..3 {
            now.system_id = SystemId(77 + u64::from(number));
            now.major_version += 1;
            source.begin_generation(walden::base::Generation(number), &now).await.unwrap();
        }
        let to = empty(&mut world, 51).await;
        copy_all(&source, &open(&to, world.env()).await).await.unwrap();
        let theirs = cluster(&to, &mut world).await;
        let root = theirs.newest_root().await.unwrap();
        assert_eq!(theirs.generations(&root).await.unwrap().len(), 3);
        assert_eq!(theirs.read_generation(first.generation).await.unwrap(), first);
        verified(&to, world.env()).await;
    });
}

/// Makes a backup whose pages deltas refer to one that is kept for them alone, as retention does.
async fn keep_for_pages(cluster: &Cluster) {
    let change = |root: &Root, index: &Index| {
        let bases: Vec<_> =
            index.wal.iter().filter_map(|entry| entry.deltas.as_ref()?.base.clone()).collect();
        let mut next = index.clone();
        let base = next.backups.iter_mut().find(|backup| bases.contains(&backup.id)).unwrap();
        base.state = BackupState::Base;
        Ok(Some(RootChange { root: root.clone(), index: IndexEdit::Rewrite(next.into_page()) }))
    };
    cluster.commit_indexed::<RepoError>(change).await.unwrap();
}

#[test]
fn a_backup_kept_for_its_pages_is_copied_for_them_and_is_no_backup_to_ask_for() {
    simulate(async {
        let mut world = with_backups_and_wal(11, 4, 2 << 20).await;
        let source = world.cluster_of(20).await.unwrap();
        compact::compact(&source, Some(DELTAS), Extent::All).await.unwrap();
        keep_for_pages(&source).await;
        let ours = look(&source).await;
        let base = ours.index.backups.iter().find(|backup| backup.state == BackupState::Base).unwrap();
        let to = empty(&mut world, 52).await;
        let repo = open(&to, world.env()).await;
        let (before, name) = (to.objects(), world.cluster.clone());
        for wal in [BackupWal::All, BackupWal::Needed] {
            let scope = Scope::Backup { name: base.id.to_string(), wal };
            let refused = copy_as(&source, &repo, &name, scope).await.unwrap_err();
            assert!(matches!(refused, CopyError::BaseAlone { .. }), "{refused}");
        }
        assert_eq!(to.objects(), before, "nothing was made");

        copy_all(&source, &repo).await.unwrap();
        let theirs = look(&cluster(&to, &mut world).await).await;
        let states = |snapshot: &Snapshot| {
            let backups = snapshot.index.backups.iter();
            let mut states: Vec<_> = backups.map(|backup| (backup.id.clone(), backup.state)).collect();
            states.sort_by(|a, b| a.0.cmp(&b.0));
            states
        };
        assert_eq!(states(&theirs), states(&ours));
        let deltas = |entry: &WalEntry| {
            let deltas = entry.deltas.as_ref().map(|deltas| (deltas.base.clone(), deltas.stats.images));
            (entry.start, entry.end, deltas)
        };
        let all = |snapshot: &Snapshot| snapshot.index.wal.iter().map(deltas).collect::<Vec<_>>();
        assert_eq!(all(&theirs), all(&ours));
        verified(&to, world.env()).await;
        let again = copy_all(&source, &repo).await.unwrap();
        assert_eq!((again.backups.len(), again.wal_segments), (0, 0), "{again:?}");
    });
}

#[test]
fn what_lies_before_a_lost_object_is_copied_before_the_loss_is_told() {
    simulate(async {
        let mut world = with_backups(23, 1).await;
        // Nothing is compacted meanwhile.
        world.pace = Some(Duration::from_secs(360_000));
        world.server.write_more(2 << 20);
        received(&mut world, 2).await;
        let source = world.cluster_of(20).await.unwrap();
        let before = look(&source).await;
        let chain = before.wal.chains().last().unwrap();
        let shape: Vec<_> = chain.objects.iter().map(|object| (object.number, object.meta.end)).collect();
        assert!(shape.len() > 2, "{shape:?}");
        let lost = &chain.objects[shape.len() / 2];
        world.store.lose(&lost.key);
        let to = empty(&mut world, 53).await;
        let told = copy_all(&source, &open(&to, world.env()).await).await.unwrap_err();
        assert!(
            matches!(&told, CopyError::Source(error) if error.to_string().contains(lost.key.as_str())),
            "{told}"
        );
        let (_, end) = check(&mut world, &to).await;
        assert_eq!(Lsn::new(end), lost.meta.start);
        verified(&to, world.env()).await;
    });
}

#[test]
fn a_source_that_was_deleted_since_it_was_opened_is_no_empty_one() {
    simulate(async {
        let mut world = with_backups(24, 1).await;
        let source = world.cluster_of(20).await.unwrap();
        let to = empty(&mut world, 54).await;
        let repo = open(&to, world.env()).await;
        copy_all(&source, &repo).await.unwrap();
        let before = look(&cluster(&to, &mut world).await).await.index.into_page();
        let other = world.cluster_of(21).await.unwrap();
        let doomed = survey(&other).await.unwrap();
        delete(&other, &doomed, Running::Override).await.unwrap();
        let gone = copy_all(&source, &repo).await.unwrap_err();
        assert!(matches!(gone, CopyError::Source(RepoError::Deleted { .. })), "{gone}");
        assert_eq!(look(&cluster(&to, &mut world).await).await.index.into_page(), before);
    });
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
