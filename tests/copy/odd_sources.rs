//! Sources that older servers, retention, loss, deletion or cloning have left their marks on.

use crate::bed::{cluster, copy_all, copy_as, empty, open, verified};
use crate::clusters::DELTAS;
use crate::common::crash::{Mode, World, simulate};
use crate::common::keeping::{with_backups, with_backups_and_wal};
use walden::base::{Generation, StreamId, SystemId, TimelineId};
use walden::copy::{BackupWal, CopyError, Scope};
use walden::format::index::{BackupState, WalEntry};
use walden::format::root::{GenerationRecord, Root, StreamEntry};
use walden::receive::compact::{self, Extent};
use walden::repo::index::IndexEdit;
use walden::repo::walmap::{self, Snapshot};
use walden::repo::{Cluster, Index, RepoError, RootChange};
use walden::retain::cluster::{Running, delete, survey};

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
            generation: Generation(1),
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
            source.begin_generation(Generation(number), &now).await.unwrap();
        }
        // One says itself on which timeline it ended, of the other its last stream does.
        let ended = [(first.generation, TimelineId(3)), (Generation(2), TimelineId(5))];
        let say = |root: &Root| {
            let mut next = root.clone();
            next.set_ended(ended[0].0, ended[0].1);
            next.streams.push(StreamEntry {
                id: StreamId([9; 16]),
                generation: ended[1].0,
                timeline: ended[1].1,
                writer_epoch: 1,
                low_water: 0,
                low_water_lsn: None,
                low_water_link: [0; 32],
                low_water_key_epoch: 1,
            });
            Ok(Some(RootChange::of(next)))
        };
        source.commit::<RepoError>(say).await.unwrap();
        let to = empty(&mut world, 51).await;
        copy_all(&source, &open(&to, world.env()).await).await.unwrap();
        let theirs = cluster(&to, &mut world).await;
        let root = theirs.newest_root().await.unwrap();
        assert_eq!(theirs.generations(&root).await.unwrap().len(), 3);
        assert_eq!(root.ended(), ended);
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
