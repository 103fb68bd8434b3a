//! Retention beside everything else, and stopped at any request: 200 seeds in CI, 10,000 with `--long`.

use crate::common::crash::{GRACE, Mode, WORK_GRACE, World, simulate};
use crate::common::keeping::{
    Seen, Stopped, grace_by_the_store, keep, keeping, keeping_beside_backups, stopped_keeper, window,
    with_backups, with_backups_and_wal, woken_below_the_floor,
};
use crate::common::sim_store::{Request as Asked, SimStore};
use std::cell::Cell;
use std::convert::Infallible as Never;
use std::time::Duration;
use tokio::sync::watch;
use walden::base::{ObjectId, ObjectKey, Unwatched};
use walden::format::index::{BackupState, RemovedKind};
use walden::format::root::PendingKind;
use walden::operate::{Exit, Failure};
use walden::receive::compact::{self, Extent};
use walden::repo::{Cluster, Registration, RepoError, layout};
use walden::restore::{Request, RestoreError, Target};
use walden::retain::delete::{self, DeleteError, Pins};
use walden::retain::{gc, pin};
use walden::verify::{self, Report};

#[test]
fn of_backups_keepers_and_stalled_processes_none_loses_anything() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("WALDEN_SEED").unwrap_or(1);
    let seeds = first..first + number("WALDEN_SEEDS").unwrap_or(200);
    println!("seeds {seeds:?}");
    let (mut expired, count) = (0, seeds.end - seeds.start);
    for seed in seeds {
        match simulate(keeping(seed)) {
            Ok(gone) => expired += gone as u64,
            Err(wrong) => panic!("seed {seed}: {wrong}"),
        }
    }
    assert!(expired >= count, "hardly a backup expired: {expired} in {count} rounds");
}

async fn cluster(world: &mut World, client: u32) -> Cluster {
    world.cluster_of(client).await.unwrap()
}

#[test]
fn a_stop_at_any_request_of_expire_and_gc_loses_nothing_and_leaves_nothing() {
    let mut stops = 0;
    simulate(async {
        let before = with_backups(3, 5).await;
        for requests in 1.. {
            match stopped_keeper(&before, requests).await {
                Ok(Stopped::Before) => stops += 1,
                Ok(Stopped::Never) => break,
                Err(wrong) => panic!("after {requests} requests: {wrong}"),
            }
        }
    });
    println!("{stops} stops");
    assert!(stops > 40, "{stops} stops");
}

/// Live bytes of the segments of chunks, and all bytes of them.
async fn chunk_bytes(cluster: &Cluster) -> (u64, u64) {
    let root = cluster.newest_root().await.unwrap();
    let index = cluster.index(&root).await.unwrap();
    let marks = walden::retain::mark::mark(cluster, &index).await.unwrap();
    marks.shares().iter().fold((0, 0), |sum, (_, share)| (sum.0 + share.bytes_live, sum.1 + share.bytes))
}

#[test]
fn what_only_removed_backups_referred_to_goes_and_sparse_segments_are_written_anew() {
    let (mut dropped, mut rewritten) = (0, 0);
    for seed in 1..=8 {
        simulate(async {
            let mut world = with_backups(seed, 6).await;
            let ours = cluster(&mut world, 7).await;
            let (live, all) = chunk_bytes(&ours).await;
            assert_eq!(live, all, "nothing is dead while every backup is there");
            let done = keep(&ours, &window(0), Duration::ZERO).await.unwrap();
            (dropped, rewritten) = (dropped + done.swept.dropped, rewritten + done.swept.rewritten);
            assert_eq!(done.swept.put_off, None);
            let (live, all) = chunk_bytes(&ours).await;
            assert!(live * 2 >= all, "seed {seed}: {live} of {all} bytes are live");
            let again = gc::collect_with(&ours, Duration::ZERO, WORK_GRACE).await.unwrap();
            assert_eq!(again.swept, Default::default());
            let mut seen = Seen::default();
            assert_eq!(world.broken_promise(&window(0), &mut seen).await, None);
        });
    }
    assert!(dropped > 0 && rewritten > 0, "{dropped} dropped, {rewritten} written anew");
}

#[test]
fn while_a_backup_runs_no_chunk_goes() {
    simulate(async {
        let mut world = with_backups(6, 4).await;
        // Some twenty pieces: it is not over when the keeper comes.
        world.server.send_backups_slowly(Duration::from_secs(20));
        let ours = cluster(&mut world, 7).await;
        let (_stop, stopped) = watch::channel(false);
        let (receiving, backup) = (world.receiver(1, stopped).await, world.backup(40).await);
        let keeping = async {
            tokio::time::sleep(Duration::from_secs(30)).await;
            let done = keep(&ours, &window(0), GRACE).await.unwrap();
            assert_eq!(done.swept.put_off.as_deref(), Some("a backup is being made"));
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = receiving => panic!("receive ended: {ended:?}"),
            () = keeping => unreachable!(),
            made = backup => { made.unwrap(); }
        }
        let done = gc::collect_with(&ours, GRACE, WORK_GRACE).await.unwrap();
        assert!(done.swept.put_off.is_none() && done.swept.dropped + done.swept.rewritten > 0, "{done:?}");
        assert_eq!(world.broken_promise(&window(0), &mut Seen::default()).await, None);
    });
}

#[test]
fn one_object_that_the_store_keeps_hinders_no_other() {
    simulate(async {
        let mut world = with_backups(7, 4).await;
        let ours = cluster(&mut world, 7).await;
        walden::retain::expire::expire(&ours, &window(0)).await.unwrap();
        let root = ours.newest_root().await.unwrap();
        let index = ours.index(&root).await.unwrap();
        let locked: Vec<ObjectKey> = index
            .removed
            .iter()
            .filter(|removed| removed.kind == RemovedKind::Backup)
            .take(2)
            .map(|removed| walden::repo::layout::manifest_named(ours.name(), &removed.name).unwrap())
            .collect();
        world.store.lock(locked.iter().cloned().collect());
        let done = gc::collect_with(&ours, Duration::ZERO, WORK_GRACE).await.unwrap();
        assert_eq!(done.undeleted.count, 2, "{done:?}");
        let named: Vec<&ObjectKey> = done.undeleted.first.iter().map(|(key, _)| key).collect();
        assert!(locked.iter().all(|key| named.contains(&key)), "{named:?}");
        assert!(done.removed > 2, "{done:?}");
        let left = ours.index(&ours.newest_root().await.unwrap()).await.unwrap().removed;
        let backups = left.iter().filter(|removed| removed.kind == RemovedKind::Backup);
        assert_eq!(backups.count(), 2, "they are tried again: {left:?}");
        world.store.lock(Default::default());
        for _ in 0..2 {
            let done = gc::collect_with(&ours, Duration::ZERO, WORK_GRACE).await.unwrap();
            assert_eq!(done.undeleted.count, 0, "{done:?}");
        }
        assert!(locked.iter().all(|key| !world.store.objects().contains_key(key)));
        assert_eq!(ours.index(&ours.newest_root().await.unwrap()).await.unwrap().removed, []);
    });
}

#[test]
fn a_backup_is_removed_unless_something_needs_it() {
    simulate(async {
        let mut world = with_backups(8, 3).await;
        let ours = cluster(&mut world, 7).await;
        let index = ours.index(&ours.newest_root().await.unwrap()).await.unwrap();
        let ids: Vec<_> = index.backups.iter().map(|backup| backup.id.clone()).collect();
        let refusal = |error: DeleteError| (Failure::from(error).exit, ());
        pin::pin(&ours, &ids[0], None, "audit").await.unwrap();
        let refused = delete::delete(&ours, &ids[0], Pins::Respect).await.unwrap_err();
        assert!(matches!(refused, DeleteError::Pinned { .. }), "{refused}");
        assert_eq!(refusal(refused).0, Exit::Conflict);
        delete::delete(&ours, &ids[0], Pins::Override).await.unwrap();
        delete::delete(&ours, &ids[1], Pins::Respect).await.unwrap();
        let refused = delete::delete(&ours, &ids[2], Pins::Override).await.unwrap_err();
        assert!(matches!(refused, DeleteError::Last { .. }), "{refused}");
        let gone = delete::delete(&ours, &ids[0], Pins::Override).await.unwrap_err();
        assert_eq!(refusal(gone).0, Exit::NotFound);
        let index = ours.index(&ours.newest_root().await.unwrap()).await.unwrap();
        assert_eq!((index.backups.len(), index.pins.len()), (1, 0), "its pin went with it");
        assert_eq!(world.broken_promise(&window(0), &mut Seen::default()).await, None);
    });
}

#[test]
fn wal_between_a_pinned_backup_and_the_window_goes_and_is_no_damage() {
    simulate(async {
        // How many segments there are depends on when compaction's thread is done: the scene is made until it has what goes and what stays.
        let mut seed = 11;
        let (mut world, ours, before) = loop {
            let mut world = with_backups_and_wal(seed, 4, 2 << 20).await;
            let ours = cluster(&mut world, 7).await;
            let before = ours.index(&ours.newest_root().await.unwrap()).await.unwrap();
            if before.wal.len() > 3 && before.wal.iter().any(|entry| entry.deltas.is_some()) {
                break (world, ours, before);
            }
            seed += 1;
            assert!(seed < 31, "{} segments", before.wal.len());
        };
        let ids: Vec<_> = before.backups.iter().map(|backup| backup.id.clone()).collect();
        pin::pin(&ours, &ids[0], None, "audit").await.unwrap();
        for _ in 0..2 {
            keep(&ours, &window(0), Duration::ZERO).await.unwrap();
        }
        let after = ours.index(&ours.newest_root().await.unwrap()).await.unwrap();
        let left: Vec<_> = after.backups.iter().map(|backup| backup.id.clone()).collect();
        // One between them stays where deltas of the newest one's WAL refer to its pages.
        assert!(left.len() < 4 && left.first() == ids.first() && left.last() == ids.last(), "{left:?}");
        assert!(after.wal.len() < before.wal.len() && !after.expired.is_empty());
        let report = walden::verify::with_key(
            ours.repo(),
            walden::verify::Options::WHOLE,
            &walden::base::progress::Unwatched,
        )
        .await
        .unwrap();
        assert_eq!(report.findings, []);
        let info = walden::operate::info::cluster(&ours, None).await.unwrap();
        let gaps: Vec<_> = info.window.gaps.iter().map(|gap| gap.reason.as_deref()).collect();
        assert_eq!(gaps, [Some("let go by retention")]);
        assert_eq!(info.backups[0].pin.as_ref().map(|pin| pin.reason.as_str()), Some("audit"));
        let snapshot = walden::repo::walmap::load(&ours).await.unwrap();
        let generation = snapshot.root.generation;
        let loaded = walden::restore::archive::load(&ours, &snapshot, generation).await.unwrap();
        for backup in &after.backups {
            let mut request = Request::new(Target::Immediate);
            request.backup = Some(backup.id.to_string());
            let resolved = loaded.archive.resolve(&request, |path| loaded.scan(&ours, path)).await;
            match backup.state {
                BackupState::Base => assert!(matches!(resolved, Err(RestoreError::NotFound { .. }))),
                _ => assert_eq!(resolved.unwrap().backup.id, backup.id),
            }
        }
        if let Some(base) = after.backups.iter().find(|backup| backup.state == BackupState::Base) {
            pin::pin(&ours, &base.id, None, "too late").await.unwrap_err();
        }
        assert_eq!(world.broken_promise(&window(0), &mut Seen::default()).await, None);
    });
}

/// Lets `stalled` go on once it was held up, which `was_held` says then, and `others` are through; never ends.
async fn go_on_after(stalled: &SimStore, was_held: &Cell<bool>, others: impl Future<Output = ()>) -> Never {
    while !stalled.is_held() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    was_held.set(true);
    others.await;
    stalled.hold(false);
    std::future::pending().await
}

/// What `verify` finds when WAL is compacted, and everything goes that the policy lets go, before the answer to its request of this number;
/// none when it makes fewer.
async fn verified_beside_keeping(before: &World, requests: u64) -> Option<Report> {
    let (server, store) = (before.server.fork(), before.store.fork());
    let mut world = World::of(5000 + requests, Mode::Object, server, store, before.disk.fork(1));
    let (theirs, ours) = (world.open(7).await.unwrap(), cluster(&mut world, 8).await);
    let verifying = world.store.client(7);
    verifying.hold_after(requests);
    let was_held = Cell::new(false);
    let keeping = go_on_after(&verifying, &was_held, async {
        compact::compact(&ours, None, Extent::All).await.unwrap();
        for _ in 0..2 {
            keep(&ours, &window(0), Duration::ZERO).await.unwrap();
        }
    });
    let report = tokio::select! {
        report = verify::with_key(&theirs, verify::Options::WHOLE, &Unwatched) => report.unwrap(),
        never = keeping => match never {},
    };
    was_held.get().then_some(report)
}

#[test]
fn what_goes_while_it_is_verified_is_no_damage() {
    let mut rounds = 0;
    simulate(async {
        let mut before = with_backups_and_wal(11, 3, 2 << 20).await;
        // Not compacted.
        before.server.write_more(300 << 10);
        before.pace = Some(Duration::from_secs(360_000));
        let (stop, stopped) = watch::channel(false);
        let (receiving, server) = (before.receiver(2, stopped).await, before.server.clone());
        let stopping = async {
            while !server.is_finished() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            stop.send_replace(true);
        };
        tokio::join!(receiving, stopping).0.unwrap();
        for requests in 1.. {
            let Some(report) = verified_beside_keeping(&before, requests).await else { break };
            let told = format!("everything went before the answer to request {requests}");
            assert_eq!(report.findings, [], "{told}");
            assert!(report.failed.is_empty() && report.unread.is_empty(), "{told}: {report:?}");
            rounds += 1;
        }
    });
    println!("{rounds} rounds");
    assert!(rounds > 50, "{rounds} rounds");
}

/// Whether a collection made as many requests as `requests`, held up at that one while others made roots, collected, and raised the floor
/// above every root that it knows.
async fn collected_late(before: &World, requests: u64) -> bool {
    let (server, store) = (before.server.fork(), before.store.fork());
    let mut world = World::of(6000 + requests, Mode::Object, server, store, before.disk.fork(1));
    let (theirs, ours) = (cluster(&mut world, 7).await, cluster(&mut world, 8).await);
    let stalled = world.store.client(7);
    stalled.hold_after(requests);
    let was_held = Cell::new(false);
    let others = go_on_after(&stalled, &was_held, async {
        for _ in 0..6 {
            tokio::time::sleep(Duration::from_secs(2)).await;
            keep(&ours, &window(0), Duration::ZERO).await.unwrap();
        }
    });
    let told = format!("held up at request {requests}");
    tokio::select! {
        done = gc::collect_with(&theirs, Duration::ZERO, WORK_GRACE) => match done {
            // It won a root that nobody reads any more.
            Err(RepoError::Conflict { reason }) => assert!(reason.contains("stalled while others went on"), "{told}: {reason}"),
            done => { done.expect(&told); }
        },
        never = others => match never {},
    }
    assert_eq!(world.broken_promise(&window(0), &mut Seen::default()).await, None, "{told}");
    was_held.get()
}

#[test]
fn a_collection_that_stalls_at_any_request_and_wakes_loses_nothing() {
    let mut rounds = 0;
    simulate(async {
        let before = with_backups(3, 5).await;
        for requests in 1.. {
            if !collected_late(&before, requests).await {
                break;
            }
            rounds += 1;
        }
    });
    println!("{rounds} rounds");
    assert!(rounds > 30, "{rounds} rounds");
}

#[test]
fn a_store_clock_that_steps_back_makes_no_leftover_of_what_a_backup_stores() {
    simulate(async {
        let mut world = with_backups(12, 1).await;
        let ours = cluster(&mut world, 7).await;
        let work = Registration::create(&ours, PendingKind::Backup, None, "client 60").await.unwrap();
        let stored = layout::segment(ours.name(), ObjectId([6; 16]));
        let collecting = async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            world.store.skew_clock(-(WORK_GRACE.as_micros() as i64) * 9 / 10);
            ours.repo().create_own(&stored, &b"of the backup"[..].into()).await.unwrap();
            for _ in 0..40 {
                tokio::time::sleep(WORK_GRACE / 10).await;
                gc::collect_with(&ours, Duration::ZERO, WORK_GRACE).await.unwrap();
                assert!(world.store.objects().contains_key(&stored), "it is not that old");
            }
        };
        tokio::select! {
            expired = work.keep(WORK_GRACE / 4) => panic!("{expired}"),
            () = collecting => {}
        }
        work.abandon().await.unwrap();
        gc::collect_with(&ours, Duration::ZERO, WORK_GRACE).await.unwrap();
        assert!(!world.store.objects().contains_key(&stored), "nobody will need it");
    });
}

#[test]
fn a_keeper_asks_for_what_it_removes_only_after_the_root_that_lets_it_go() {
    simulate(async {
        let mut world = with_backups(9, 4).await;
        let ours = cluster(&mut world, 7).await;
        let named = ours.index(&ours.newest_root().await.unwrap()).await.unwrap();
        keep(&ours, &window(0), Duration::ZERO).await.unwrap();
        let log = world.store.log();
        let segments: Vec<ObjectKey> =
            named.pages.iter().map(|entry| walden::repo::layout::segment(ours.name(), entry.id)).collect();
        let mut roots = 0;
        for op in log.iter().filter(|op| op.client == 7) {
            match &op.request {
                Asked::Create(key, _) if key.as_str().contains("/roots/") => roots += 1,
                Asked::Delete(key) if segments.contains(key) => {
                    assert!(roots >= 2, "{key} was removed before the roots that let it go");
                }
                _ => {}
            }
        }
        assert!(roots >= 2);
    });
}

#[test]
fn a_backup_that_begins_at_any_time_finds_no_chunk_that_goes() {
    for seed in 1..=40 {
        if let Err(wrong) = simulate(keeping_beside_backups(seed)) {
            panic!("seed {seed}: {wrong}");
        }
    }
}

#[test]
fn a_root_that_was_won_again_below_the_floor_is_void() {
    for seed in 1..=40 {
        if let Err(wrong) = simulate(woken_below_the_floor(seed)) {
            panic!("seed {seed}: {wrong}");
        }
    }
}

#[test]
fn the_grace_period_is_counted_by_the_stores_clock() {
    for seed in 1..=5 {
        if let Err(wrong) = simulate(grace_by_the_store(seed)) {
            panic!("seed {seed}: {wrong}");
        }
    }
}
