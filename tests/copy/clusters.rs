//! Copies of simulated clusters: what they hold, how large they are, how they go on, and what is refused.

use crate::bed::{check, cluster, copy_all, copy_as, empty, open, verified, wal};
use crate::common::crash::{GRACE, World, simulate};
use crate::common::keeping::{keep, window, with_backups, with_backups_and_wal};
use crate::common::sim_store::{Request, SimStore, StoreFaults};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::watch;
use walden::base::ClusterName;
use walden::copy::{BackupWal, CopyError, Scope};
use walden::format::index::{BackupState, PagesEntry, WalEntry};
use walden::receive::compact::{self, DeltaOptions, Extent};
use walden::repo::walmap::{self, Snapshot};
use walden::repo::{Cluster, RepoError, layout};
use walden::retain::{gc, pin};

pub const DELTAS: DeltaOptions = DeltaOptions { cache_bytes: 10 << 20 };

async fn look(cluster: &Cluster) -> Snapshot {
    walmap::load(cluster).await.unwrap()
}

/// What segments take, chunks and WAL.
fn stored(store: &SimStore) -> usize {
    let objects = store.objects();
    objects.iter().filter(|(key, _)| key.as_str().contains("/segments/")).map(|(_, bytes)| bytes.len()).sum()
}

/// Range, epoch and base of compacted WAL, and how many images its delta frames have.
pub type Deltas = (String, Option<String>, u64);

pub fn shape(entry: &WalEntry) -> (u64, u64, Option<Deltas>) {
    let deltas = entry.deltas.as_ref();
    let deltas = deltas.map(|deltas| {
        let base = deltas.base.as_ref().map(ToString::to_string);
        (deltas.epoch.id.to_string(), base, deltas.stats.images)
    });
    (entry.start.get(), entry.end.get(), deltas)
}

/// Requests that a client has made to create objects of this kind.
fn creates(store: &SimStore, client: u32, part: &str) -> usize {
    store.log().iter().filter(|op| op.client == client && op.creates(part)).count()
}

/// Receives what the server writes for a while.
pub async fn received(world: &mut World, client: u32) {
    let (stop, stopped) = watch::channel(false);
    let receiving = world.receiver(client, stopped).await;
    let server = world.server.clone();
    let waiting = async {
        while !server.is_finished() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        stop.send_replace(true);
    };
    let (ended, ()) = tokio::join!(receiving, waiting);
    ended.unwrap();
}

#[test]
fn a_copy_has_everything_under_other_keys_in_the_same_room() {
    simulate(async {
        let mut world = with_backups_and_wal(2, 3, 4 << 20).await;
        let source = world.cluster_of(20).await.unwrap();
        compact::compact(&source, Some(DELTAS), Extent::All).await.unwrap();
        let pinned = look(&source).await.index.backups[0].id.clone();
        pin::pin(&source, &pinned, None, "audit").await.unwrap();
        let to = empty(&mut world, 31).await;
        let done = copy_all(&source, &open(&to, world.env()).await).await.unwrap();
        assert_eq!((done.backups.len(), done.left_out.len()), (3, 0));
        assert_eq!(check(&mut world, &to).await, (3, world.server.end().get()));
        verified(&to, world.env()).await;

        let (ours, theirs) = (look(&source).await, look(&cluster(&to, &mut world).await).await);
        let shapes = |snapshot: &Snapshot| snapshot.index.wal.iter().map(shape).collect::<Vec<_>>();
        assert!(ours.index.wal.iter().filter(|entry| entry.deltas.is_some()).count() > 2, "deltas of epochs");
        assert!(ours.index.wal.iter().any(|entry| shape(entry).2.is_some_and(|deltas| deltas.1.is_some())));
        assert_eq!(shapes(&ours), shapes(&theirs), "segment by segment");
        assert_eq!(theirs.index.pins, ours.index.pins);
        assert!(theirs.root.pending.is_empty() && look(&source).await.root.pending.is_empty());
        let live: u64 = ours.index.wal.iter().map(|entry| entry.object_len).sum::<u64>()
            + ours.index.pages.iter().map(|entry| entry.object_len).sum::<u64>();
        let ratio = stored(&to) as f64 / live as f64;
        assert!((0.98..1.02).contains(&ratio), "{ratio}");
        assert_eq!(done.end.unwrap().1, world.server.end());

        let before = to.objects();
        let again = copy_all(&source, &open(&to.client(3), world.env()).await).await.unwrap();
        assert_eq!((again.wal_segments, again.backups.len(), again.bytes_written), (0, 0, 0));
        assert_eq!(creates(&to, 3, "/segments/") + creates(&to, 3, "/backups/"), 0);
        assert!(
            before
                .keys()
                .filter(|key| key.as_str().contains("/segments/"))
                .all(|key| to.objects().contains_key(key))
        );
    });
}

#[test]
fn a_copy_follows_its_source_and_takes_its_deltas_for_what_was_not_compacted_yet() {
    simulate(async {
        let mut world = with_backups(4, 1).await;
        world.pace = Some(Duration::from_secs(360_000));
        let to = empty(&mut world, 32).await;
        let source = world.cluster_of(20).await.unwrap();
        world.server.write_more(2 << 20);
        received(&mut world, 2).await;
        assert!(
            !look(&source).await.wal.chains().iter().all(|chain| chain.objects.is_empty()),
            "flush objects"
        );
        copy_all(&source, &open(&to, world.env()).await).await.unwrap();
        assert_eq!(check(&mut world, &to).await, (1, world.server.end().get()));

        // More of them: only what is new is stored.
        world.server.write_more(64 << 10);
        received(&mut world, 3).await;
        let more = copy_all(&source, &open(&to, world.env()).await).await.unwrap();
        assert!(more.wal_bytes >= 64 << 10 && more.wal_bytes < 1 << 20, "{more:?}");
        assert_eq!(check(&mut world, &to).await, (1, world.server.end().get()));

        compact::compact(&source, Some(DELTAS), Extent::All).await.unwrap();
        copy_all(&source, &open(&to, world.env()).await).await.unwrap();
        let theirs = cluster(&to, &mut world).await;
        let shapes = |snapshot: &Snapshot| snapshot.index.wal.iter().map(shape).collect::<Vec<_>>();
        assert_eq!(shapes(&look(&source).await), shapes(&look(&theirs).await));
        assert!(look(&theirs).await.index.wal.iter().any(|entry| entry.deltas.is_some()));
        for _ in 0..3 {
            tokio::time::sleep(GRACE * 2).await;
            gc::collect_with(&theirs, GRACE, GRACE).await.unwrap();
            theirs
                .commit::<RepoError>(|root| Ok(Some(walden::repo::RootChange::of(root.clone()))))
                .await
                .unwrap();
        }
        let index = look(&source).await.index;
        let wal = index.wal.iter().map(|entry| entry.object_len);
        let room: u64 = wal.chain(index.pages.iter().map(|entry| entry.object_len)).sum();
        assert!(stored(&to) as u64 <= room * 102 / 100, "{} for {room}", stored(&to));
        assert_eq!(check(&mut world, &to).await, (1, world.server.end().get()));
        verified(&to, world.env()).await;
    });
}

/// Stored bytes of chunks in these segments that a client has read.
fn chunks_read(world: &World, client: u32, name: &ClusterName, pages: &[PagesEntry]) -> u64 {
    let ends: BTreeMap<_, _> =
        pages.iter().map(|entry| (layout::segment(name, entry.id), entry.directory_offset)).collect();
    let log = world.store.log();
    let reads = log.iter().filter(|op| op.client == client).filter_map(|op| match &op.request {
        Request::GetRange(key, range)
            if range.start > 0 && ends.get(key).is_some_and(|end| range.end <= *end) =>
        {
            Some(range.end - range.start)
        }
        _ => None,
    });
    reads.sum()
}

#[test]
fn chunks_of_a_backup_that_both_hold_are_not_read_again() {
    simulate(async {
        let mut world = with_backups(5, 1).await;
        let to = empty(&mut world, 33).await;
        let source = world.cluster_of(20).await.unwrap();
        copy_all(&source, &open(&to, world.env()).await).await.unwrap();
        let old = look(&source).await.index.pages;
        let (stop, stopped) = watch::channel(false);
        let receiving = world.receiver(2, stopped).await;
        let backup = world.backup(3).await;
        let making = async {
            backup.await.unwrap();
            stop.send_replace(true);
        };
        let (ended, ()) = tokio::join!(receiving, making);
        ended.unwrap();
        let index = look(&source).await.index;
        let following = world.cluster_of(21).await.unwrap();
        let done = copy_all(&following, &open(&to, world.env()).await).await.unwrap();
        assert_eq!(done.backups, [index.backups[1].id.clone()]);
        assert_eq!(done.chunks_found, 0, "{done:?}");
        assert_eq!(check(&mut world, &to).await, (2, world.server.end().get()));

        let beginning = world.cluster_of(22).await.unwrap();
        let fresh = empty(&mut world, 43).await;
        copy_all(&beginning, &open(&fresh, world.env()).await).await.unwrap();
        let read = |client| chunks_read(&world, client, source.name(), &old);
        assert!(read(21) * 2 < read(22), "{} of {}", read(21), read(22));
    });
}

#[test]
fn one_backup_is_copied_with_the_wal_that_was_asked_for() {
    for (wanted, number) in [(BackupWal::All, 0), (BackupWal::All, 1), (BackupWal::Needed, 1)] {
        simulate(async {
            let mut world = with_backups_and_wal(6, 3, 3 << 20).await;
            let source = world.cluster_of(20).await.unwrap();
            compact::compact(&source, Some(DELTAS), Extent::All).await.unwrap();
            let backup = look(&source).await.index.backups[number].clone();
            let to = empty(&mut world, 34).await;
            let name = "other".parse().unwrap();
            let scope = Scope::Backup { name: backup.id.to_string(), wal: wanted };
            let done = copy_as(&source, &open(&to, world.env()).await, &name, scope.clone()).await.unwrap();
            assert_eq!(done.backups, std::slice::from_ref(&backup.id));
            let theirs = Cluster::open(open(&to, world.env()).await, name.clone()).await.unwrap();
            let snapshot = look(&theirs).await;
            assert_eq!(snapshot.index.backups.len(), 1);
            assert_eq!(snapshot.index.backups[0].state, BackupState::Complete);
            let (range, bytes) = wal(&theirs, &snapshot).await.unwrap();
            let (whole, expected) = world.server.wal_until(range.end);
            assert!(bytes == expected[range.start.bytes_since(whole.start) as usize..]);
            assert!(range.start <= backup.start && range.end >= backup.stop);
            match wanted {
                BackupWal::All => assert_eq!(range.end, world.server.end()),
                BackupWal::Needed => assert!(range.end < world.server.end()),
            }
            verified(&to, world.env()).await;
            let again = copy_as(&source, &open(&to, world.env()).await, &name, scope).await.unwrap();
            assert_eq!((again.wal_segments, again.backups.len()), (0, 0));

            // The rest of the cluster, into the same copy: WAL whose base was missing takes less room then.
            copy_as(&source, &open(&to, world.env()).await, &name, Scope::Cluster).await.unwrap();
            let shapes = |snapshot: &Snapshot| snapshot.index.wal.iter().map(shape).collect::<Vec<_>>();
            assert_eq!(shapes(&look(&theirs).await), shapes(&look(&source).await));
            verified(&to, world.env()).await;
        });
    }
}

#[test]
fn a_receiver_takes_a_copy_over_and_nothing_is_copied_into_it_any_more() {
    simulate(async {
        let mut world = with_backups_and_wal(7, 1, 2 << 20).await;
        let to = empty(&mut world, 35).await;
        let source = world.cluster_of(20).await.unwrap();
        copy_all(&source, &open(&to, world.env()).await).await.unwrap();
        let copied = world.server.end();
        let mut after = World::of(8, world.mode, world.server.clone(), to.clone(), world.disk.fork(1));
        after.server.write_more(2 << 20);
        let repo = open(&to, after.env()).await;
        let (stop, stopped) = watch::channel(false);
        let (stored, _) = watch::channel(Default::default());
        let options = walden::receive::session::ReceiveOptions {
            slot: "walden_shop".into(),
            journal: None,
            cut: Default::default(),
            shutdown_grace: Duration::from_secs(5),
        };
        let (server, name) = (after.server.clone(), after.cluster.clone());
        let receiving = walden::receive::session::run(repo.clone(), name, &server, &options, stored, stopped);
        let waiting = async {
            while !server.is_finished() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            stop.send_replace(true);
        };
        let (ended, ()) = tokio::join!(receiving, waiting);
        ended.unwrap();
        assert!(world.server.end() > copied);
        let theirs = cluster(&to, &mut world).await;
        compact::compact(&theirs, Some(DELTAS), Extent::All).await.unwrap();
        assert_eq!(check(&mut world, &to).await, (1, world.server.end().get()));
        let snapshot = look(&theirs).await;
        let epochs = |entry: &&WalEntry| entry.deltas.as_ref().map(|deltas| deltas.epoch.id);
        let before: Vec<_> = snapshot
            .index
            .wal
            .iter()
            .filter(|entry| entry.end <= copied)
            .filter_map(|e| epochs(&e))
            .collect();
        let later: Vec<_> = snapshot
            .index
            .wal
            .iter()
            .filter(|entry| entry.start >= copied)
            .filter_map(|e| epochs(&e))
            .collect();
        assert!(
            !later.is_empty() && later.iter().all(|epoch| !before.contains(epoch)),
            "an epoch of its own"
        );
        verified(&to, world.env()).await;
        match copy_all(&source, &open(&to, world.env()).await).await {
            Err(CopyError::Written { .. }) => {}
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn what_is_no_copy_of_the_source_is_refused() {
    simulate(async {
        let mut world = with_backups(9, 1).await;
        let source = world.cluster_of(20).await.unwrap();
        let itself = copy_all(&source, source.repo()).await.unwrap_err();
        assert!(matches!(itself, CopyError::Itself { .. }), "{itself}");
        let to = empty(&mut world, 36).await;
        let repo = open(&to, world.env()).await;
        let mut record = source.generation().await.unwrap();
        record.system_id = walden::base::SystemId(78);
        Cluster::create(repo.clone(), record).await.unwrap();
        let before = to.objects();
        let other = copy_all(&source, &repo).await.unwrap_err();
        assert!(matches!(other, CopyError::Destination(RepoError::WrongSystem { .. })), "{other}");
        assert_eq!(to.objects(), before, "nothing was written");
        // Beside itself under another name it may be.
        let name = "twin".parse().unwrap();
        copy_as(&source, source.repo(), &name, Scope::Cluster).await.unwrap();
        let scope = Scope::Backup { name: "1999".into(), wal: BackupWal::All };
        let unknown = copy_as(&source, &repo, &name, scope).await.unwrap_err();
        assert!(matches!(unknown, CopyError::Name(_)), "{unknown}");
    });
}

#[test]
fn a_source_that_is_read_only_is_copied_beside_its_compaction_expiry_and_collection() {
    for seed in 10..14 {
        simulate(async {
            let mut world = with_backups_and_wal(seed, 3, 512 << 10).await;
            let to = empty(&mut world, 37).await;
            let keeper = world.cluster_of(20).await.unwrap();
            // Another host's view: nothing that it writes is taken, so nothing keeps for it what it reads.
            let source = world.cluster_of(21).await.unwrap();
            to.set_faults(StoreFaults {
                latency: Duration::from_millis(100)..Duration::from_millis(900),
                ..StoreFaults::default()
            });
            world.store.refuse_writes_of(21);
            let repo = open(&to, world.env()).await;
            let policy = window(0);
            let keeping = async {
                loop {
                    compact::compact(&keeper, Some(DELTAS), Extent::All).await.unwrap();
                    keep(&keeper, &policy, Duration::ZERO).await.unwrap();
                    tokio::time::sleep(Duration::from_secs(2)).await;
                }
            };
            let copied = tokio::select! {
                copied = copy_all(&source, &repo) => copied.unwrap(),
                () = keeping => unreachable!(),
            };
            assert!(copied.left_out.is_empty(), "{copied:?}");
            let wrote = |op: &&crate::common::sim_store::StoreOp| {
                op.client == 21
                    && matches!(op.request, Request::Create(..))
                    && op.done.iter().any(|(_, done)| *done)
            };
            assert_eq!(world.store.log().iter().filter(wrote).count(), 0);
            let theirs = cluster(&to, &mut world).await;
            let snapshot = look(&theirs).await;
            assert!(!snapshot.index.backups.is_empty());
            assert!(snapshot.index.backups.iter().all(|backup| backup.state == BackupState::Complete));
            let (range, bytes) = wal(&theirs, &snapshot).await.unwrap();
            assert_eq!(range.end, world.server.end());
            let (whole, expected) = world.server.wal_until(range.end);
            assert!(bytes == expected[range.start.bytes_since(whole.start) as usize..]);
            to.set_faults(StoreFaults::default());
            verified(&to, world.env()).await;
        });
    }
}

#[test]
fn what_the_copys_retention_let_go_does_not_come_back() {
    simulate(async {
        let mut world = with_backups_and_wal(15, 3, 2 << 20).await;
        let to = empty(&mut world, 38).await;
        let source = world.cluster_of(20).await.unwrap();
        compact::compact(&source, Some(DELTAS), Extent::All).await.unwrap();
        copy_all(&source, &open(&to, world.env()).await).await.unwrap();
        let theirs = cluster(&to, &mut world).await;
        for _ in 0..3 {
            keep(&theirs, &window(0), Duration::ZERO).await.unwrap();
            tokio::time::sleep(GRACE * 2).await;
        }
        let kept = look(&theirs).await.index;
        assert!(kept.backups.len() < 3 && !kept.expired.is_empty(), "{:?}", kept.expired);
        let again = copy_all(&source, &open(&to, world.env()).await).await.unwrap();
        assert_eq!((again.backups.len(), again.wal_segments), (0, 0), "{again:?}");
        let gone = look(&source).await.index.backups[0].id.to_string();
        let scope = Scope::Backup { name: gone, wal: BackupWal::All };
        let refused = copy_as(&source, &open(&to, world.env()).await, &world.cluster.clone(), scope).await;
        assert!(matches!(refused, Err(CopyError::LetGo { .. })), "{refused:?}");
        verified(&to, world.env()).await;
    });
}

#[test]
fn a_damaged_backup_is_left_out_and_named() {
    simulate(async {
        let mut world = with_backups(16, 2).await;
        let source = world.cluster_of(20).await.unwrap();
        let index = look(&source).await.index;
        let damaged = &index.backups[0];
        let key = walden::repo::layout::manifest(source.name(), &damaged.id, damaged.manifest_number);
        world.store.alter(&key, |bytes| bytes[200] ^= 1);
        let to = empty(&mut world, 39).await;
        let done = copy_all(&source, &open(&to, world.env()).await).await.unwrap();
        assert_eq!(done.left_out.iter().map(|(id, _)| id).collect::<Vec<_>>(), [&damaged.id]);
        assert_eq!(done.backups, [index.backups[1].id.clone()]);
        assert_eq!(check(&mut world, &to).await, (1, world.server.end().get()));
        verified(&to, world.env()).await;
    });
}
