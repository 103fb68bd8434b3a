//! Work in progress and collection, under a simulated clock: work that goes on is never collected, however long it takes; of work
//! that stalled and a collector, only one wins; and a restore that may only read follows what moves.

mod common;

use common::crash::{GRACE, Gated, Made, Mode, WORK_GRACE, World, read_backup, simulate};
use common::pg::temp_dir;
use common::restoring::options;
use common::sim_backup::Sent;
use common::sim_server::SimServer;
use common::sim_store::{Request, SimStore, StoreFaults, StoreOp};
use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use walden::backup::BackupError;
use walden::base::{ObjectKey, Progress};
use walden::format::index::BackupState;
use walden::format::root::PendingKind;
use walden::receive::compact::{self, Extent};
use walden::repo::chunks::{ChunkIndex, ChunkReader, ChunkWriter};
use walden::repo::index::IndexEdit;
use walden::repo::{Cluster, RepoError, RootChange, layout, walmap};
use walden::restore::place::INCOMPLETE;
use walden::restore::run::plan;
use walden::retain::gc;

/// The client that receives.
const RECEIVER: u32 = 1;

/// A world without faults, whose server writes little.
async fn calm(seed: u64) -> World {
    let mut world = World::new(seed, Mode::Object, 32 << 10).await;
    world.server = SimServer::new(seed, 32 << 10, false);
    world
}

async fn cluster(world: &mut World) -> Cluster {
    let repo = world.open(500).await.unwrap();
    Cluster::open(repo, world.cluster.clone()).await.unwrap()
}

/// Collects for ever, every 20 s.
async fn collecting(world: &mut World) -> impl Future<Output = ()> + use<> {
    let (repo, name) = (world.open(600).await.unwrap(), world.cluster.clone());
    async move {
        loop {
            tokio::time::sleep(Duration::from_secs(20)).await;
            if let Ok(cluster) = Cluster::open(repo.clone(), name.clone()).await {
                gc::collect_with(&cluster, GRACE, WORK_GRACE).await.unwrap();
            }
        }
    }
}

/// What happens to `work` beside a receiver and a collector.
async fn beside<T>(world: &mut World, work: impl Future<Output = T>) -> T {
    let (_stop, stopped) = watch::channel(false);
    let receiving = world.receiver(RECEIVER, stopped).await;
    let collecting = collecting(world).await;
    tokio::select! {
        ended = receiving => panic!("receive ended: {ended:?}"),
        () = collecting => unreachable!(),
        done = work => done,
    }
}

/// Registrations that are there, but for those of the receiver, which may have been cut off in the middle of a compaction.
fn pending_objects(store: &SimStore) -> usize {
    let objects = store.objects();
    let log = store.log();
    let stays = |op: &&StoreOp| match &op.request {
        Request::Create(key, _) => op.creates("/pending/") && objects.contains_key(key),
        _ => false,
    };
    log.iter().filter(|op| op.client != RECEIVER).filter(stays).count()
}

/// What is registered in the newest root, but for compactions: the receiver may have been cut off in the middle of one.
async fn pending_kinds(world: &mut World) -> Vec<PendingKind> {
    let root = cluster(world).await.newest_root().await.unwrap();
    let kinds = root.pending.iter().map(|entry| entry.kind);
    kinds.filter(|kind| *kind != PendingKind::Compaction).collect()
}

/// The files of the only backup.
async fn files(world: &mut World) -> Sent {
    let cluster = cluster(world).await;
    let snapshot = walmap::load(&cluster).await.unwrap();
    let index = ChunkIndex::load(&cluster, &snapshot.index.pages).await.unwrap();
    let reader = ChunkReader::new(cluster.clone(), Arc::new(index), 1);
    let [backup] = snapshot.index.backups.as_slice() else { panic!("{:?}", snapshot.index.backups) };
    assert_eq!(backup.state, BackupState::Complete);
    assert_eq!(
        world.server.sent(backup.timeline, backup.start),
        Some(read_backup(&cluster, &reader, backup).await.unwrap())
    );
    world.server.sent(backup.timeline, backup.start).unwrap()
}

#[test]
fn a_backup_that_takes_longer_than_every_grace_is_made() {
    simulate(async {
        let mut world = calm(1).await;
        world.server.send_backups_slowly(Duration::from_secs(120));
        let (began, backup) = (Instant::now(), world.backup(2).await);
        beside(&mut world, backup).await.unwrap();
        let took = began.elapsed();
        assert!(took > WORK_GRACE * 4, "{took:?}");
        assert!(!files(&mut world).await.is_empty());
        assert_eq!(pending_kinds(&mut world).await, []);
        assert_eq!(pending_objects(&world.store), 0, "a renewal left its object");
        // One at the beginning and one for each quarter of the grace.
        let renewals =
            world.store.log().iter().filter(|op| op.creates("/pending/") && op.client == 2).count();
        let quarters = took.as_secs() / (WORK_GRACE.as_secs() / 4);
        assert!((4..=quarters + 2).contains(&(renewals as u64)), "{renewals} renewals in {took:?}");
    });
}

/// A backup that is stopped in its middle for a while; how it ended.
async fn stalled_backup(world: &mut World, stall: Duration) -> Made {
    world.server.send_backups_slowly(Duration::from_secs(3));
    let (gate, open) = watch::channel(true);
    let store = world.store.client(2);
    let before = Duration::from_millis(world.rng.u64(100..40_000));
    let backup = Gated::new(world.backup(2).await, open);
    let stalling = async {
        tokio::time::sleep(before).await;
        gate.send_replace(false);
        store.hold(true);
        tokio::time::sleep(stall).await;
        store.hold(false);
        gate.send_replace(true);
        std::future::pending::<()>().await;
    };
    let both = async {
        tokio::select! { made = backup => made, () = stalling => unreachable!() }
    };
    beside(world, both).await
}

#[test]
fn of_a_stalled_backup_and_the_collector_one_wins() {
    let (mut made, mut expired) = (0, 0);
    for seed in 1..=40 {
        simulate(async {
            let mut world = calm(seed).await;
            let stall = Duration::from_secs(world.rng.u64(30..200));
            match stalled_backup(&mut world, stall).await {
                Ok(_) => {
                    beside(&mut world, tokio::time::sleep(WORK_GRACE * 3)).await;
                    files(&mut world).await;
                    made += 1;
                }
                Err(BackupError::Expired) => {
                    assert!(stall > WORK_GRACE / 2, "seed {seed}: expired after {stall:?}");
                    let cluster = cluster(&mut world).await;
                    assert_eq!(walmap::load(&cluster).await.unwrap().index.backups, [], "seed {seed}");
                    beside(&mut world, tokio::time::sleep(WORK_GRACE * 3)).await;
                    assert_eq!(pending_objects(&world.store), 0, "seed {seed}: leftovers");
                    expired += 1;
                }
                // It slept so long that roots it would build on are gone: it gives way as well, with nothing committed.
                Err(error) if error.to_string().contains("nothing was committed") => {
                    assert!(stall > WORK_GRACE / 2, "seed {seed}: {error} after {stall:?}");
                    expired += 1;
                }
                Err(error) => panic!("seed {seed}: {error}"),
            }
        });
    }
    println!("{made} made, {expired} expired");
    assert!(made > 5 && expired > 5, "{made} made, {expired} expired");
}

/// Whatever it was about to read may be gone when it goes on; it never says that the repository is damaged.
#[test]
fn a_backup_that_stalls_at_any_request_is_made_or_gives_way() {
    let (mut made, mut gave_way) = (0, 0);
    for requests in 1.. {
        let stalled = simulate(async {
            let mut world = calm(1).await;
            let first = world.backup(3).await;
            beside(&mut world, first).await.unwrap();
            let store = world.store.client(2);
            store.hold_after(requests);
            let (backup, others) = (world.backup(2).await, world.backup(3).await);
            let waking = async {
                while !store.is_held() {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                // Theirs merges the index, so that the object that was there is collected.
                others.await.unwrap();
                tokio::time::sleep(WORK_GRACE * 3).await;
                store.hold(false);
                std::future::pending::<()>().await;
            };
            let both = async {
                tokio::select! { made = backup => made, () = waking => unreachable!() }
            };
            let began = Instant::now();
            match beside(&mut world, both).await {
                Ok(report) => {
                    let index = walmap::load(&cluster(&mut world).await).await.unwrap().index;
                    assert_eq!(
                        index.backup(&report.entry.id).map(|entry| entry.state),
                        Some(BackupState::Complete)
                    );
                    made += 1;
                }
                Err(BackupError::Expired) => gave_way += 1,
                Err(error) if error.to_string().contains("nothing was committed") => gave_way += 1,
                Err(error) => panic!("stalled after {requests} requests: {error}"),
            }
            began.elapsed() > WORK_GRACE * 3
        });
        if !stalled {
            break;
        }
    }
    println!("{made} made, {gave_way} gave way");
    assert!(made > 5 && gave_way > 5, "{made} made, {gave_way} gave way");
}

#[test]
fn of_a_stalled_compaction_and_the_collector_one_wins() {
    let (mut compacted, mut conflicts) = (0, 0);
    for seed in 1..=40 {
        simulate(async {
            let mut world = calm(seed).await;
            world.pace = Some(Duration::from_secs(360_000));
            beside(&mut world, tokio::time::sleep(Duration::from_secs(30))).await;
            let repo = world.open(2).await.unwrap();
            let theirs = Cluster::open(repo, world.cluster.clone()).await.unwrap();
            let (store, (gate, open)) = (world.store.client(2), watch::channel(true));
            let before = Duration::from_millis(world.rng.u64(0..4_000));
            let compacting =
                Gated::new(async move { compact::compact(&theirs, None, Extent::All).await }, open);
            let stalling = async {
                tokio::time::sleep(before).await;
                gate.send_replace(false);
                store.hold(true);
                tokio::time::sleep(WORK_GRACE * 2).await;
                store.hold(false);
                gate.send_replace(true);
            };
            let collecting = collecting(&mut world).await;
            let both = async { tokio::join!(compacting, stalling).0 };
            let ended = tokio::select! { ended = both => ended, () = collecting => unreachable!() };
            match ended {
                Ok(_) => compacted += 1,
                Err(RepoError::Conflict { .. }) => conflicts += 1,
                Err(error) => panic!("seed {seed}: {error}"),
            }
            beside(&mut world, tokio::time::sleep(WORK_GRACE * 3)).await;
            assert_eq!(world.lost().await, None, "seed {seed}");
        });
    }
    println!("{compacted} compacted, {conflicts} gave way");
    assert!(compacted > 5, "{compacted} compacted, {conflicts} gave way");
}

/// Does something once, when files begin to be restored.
struct Meanwhile<F>(Mutex<Option<F>>);

impl<F> std::fmt::Debug for Meanwhile<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Meanwhile")
    }
}

impl<F: FnOnce() + Send> Progress for Meanwhile<F> {
    fn stage(&self, name: &str, _bytes_total: Option<u64>) {
        if name == "restoring files"
            && let Some(act) = self.0.lock().unwrap().take()
        {
            act();
        }
    }

    fn advance(&self, _bytes: u64) {}
}

/// Restores while `meanwhile` happens; the files of the backup are there afterwards.
async fn restores(world: &mut World, meanwhile: impl FnOnce() + Send + 'static) {
    let sent = files(world).await;
    let dir = temp_dir();
    let options = options(&dir.path().join("restored"));
    let planned = plan(&cluster(world).await, &options).await.unwrap();
    planned.execute(Arc::new(Meanwhile(Mutex::new(Some(meanwhile))))).await.unwrap();
    for (path, content) in sent {
        assert_eq!(fs::read(options.target_dir.join(&path)).unwrap(), content, "{path}");
    }
    assert!(!options.target_dir.join(INCOMPLETE).exists());
}

async fn with_a_backup(seed: u64) -> World {
    let mut world = calm(seed).await;
    let backup = world.backup(2).await;
    beside(&mut world, backup).await.unwrap();
    world
}

/// Stores all chunks anew, as a collection that repacks segments would, and removes the old segments.
async fn repack(cluster: &Cluster, store: &SimStore) {
    let root = cluster.newest_root().await.unwrap();
    let index = cluster.index(&root).await.unwrap();
    let mut writer = ChunkWriter::create(cluster.clone(), Arc::new(ChunkIndex::empty()), 1);
    let keys: Vec<ObjectKey> =
        index.pages.iter().map(|entry| layout::segment(cluster.name(), entry.id)).collect();
    for key in &keys {
        let kind = walden::format::header::ObjectKind::PagesSegment;
        let object = cluster.repo().read_object(key, kind).await.unwrap();
        for number in 0..object.directory().frames.len() {
            writer.put(object.chunk(number, &*cluster.repo().keys()).unwrap().into()).await.unwrap();
        }
    }
    let (pages, _) = writer.finish().await.unwrap();
    cluster
        .commit_indexed::<RepoError>(|root, index| {
            let mut page = index.clone().into_page();
            page.pages = pages.clone();
            Ok(Some(RootChange { root: root.clone(), index: IndexEdit::Rewrite(page) }))
        })
        .await
        .unwrap();
    keys.iter().for_each(|key| store.lose(key));
}

#[test]
fn a_restore_is_registered_while_it_reads_and_not_after() {
    simulate(async {
        let mut world = with_a_backup(1).await;
        let (store, seen) = (world.store.clone(), Arc::new(Mutex::new(0)));
        let count = seen.clone();
        restores(&mut world, move || *count.lock().unwrap() = pending_objects(&store)).await;
        assert_eq!((*seen.lock().unwrap(), pending_objects(&world.store)), (1, 0));
        assert_eq!(pending_kinds(&mut world).await, []);
    });
}

#[test]
fn a_restore_that_may_only_read_follows_what_moves() {
    simulate(async {
        let mut world = with_a_backup(2).await;
        // What the store will be once it was repacked.
        let mut later =
            World::of(2, Mode::Object, world.server.fork(), world.store.fork(), world.disk.fork(1));
        repack(&cluster(&mut later).await, &later.store).await;
        let (now, later) = (world.store.clone(), later.store.objects());
        world.store.set_faults(StoreFaults { read_only: true, ..StoreFaults::default() });
        restores(&mut world, move || {
            for key in now.objects().keys().filter(|key| !later.contains_key(key)) {
                now.lose(key);
            }
            later.iter().for_each(|(key, bytes)| now.put(key, bytes.clone()));
        })
        .await;
        assert_eq!(pending_objects(&world.store), 0);
    });
}

#[test]
fn a_restore_whose_chunks_are_gone_for_good_says_so() {
    simulate(async {
        let mut world = with_a_backup(3).await;
        let dir = temp_dir();
        let options = options(&dir.path().join("restored"));
        let planned = plan(&cluster(&mut world).await, &options).await.unwrap();
        for key in world.store.objects().keys().filter(|key| key.as_str().contains("/segments/")) {
            world.store.lose(key);
        }
        let nothing = Arc::new(Meanwhile(Mutex::new(Some(|| {}))));
        let error = planned.execute(nothing).await.unwrap_err();
        let failure = walden::operate::Failure::from(error);
        assert_eq!(failure.exit, walden::operate::Exit::Damage, "{failure:?}");
        assert_eq!(pending_objects(&world.store), 0);
    });
}
