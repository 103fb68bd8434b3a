//! The next generation of a cluster: nothing is lost of the one before, nothing of one gets into the other.

use crate::bed::*;
use crate::common::crash::{Mode, World, simulate};
use crate::common::sim_server::{SEGMENT, SimServer};
use std::time::Duration;
use tokio::sync::watch;
use walden::backup::BackupError;
use walden::base::{Generation, TimelineId};
use walden::operate::{Exit, Failure};
use walden::receive::compact::{self, DeltaOptions, Extent};
use walden::receive::pipeline::ReceiveError;
use walden::receive::upgrade::{NewServer, UpgradeError};
use walden::repo::walmap::{self, WalSource};
use walden::repo::{Cluster, RepoError};
use walden::restore::generations;
use walden::restore::{Request, Target};

#[test]
fn each_generation_is_its_servers_wal_and_nothing_else() {
    for mode in [Mode::Object, Mode::Journal] {
        simulate(async {
            let (mut world, old, new) = shut_down(1, mode).await;
            let done = upgrade_to(&mut world, 2, &new, STRICT).await.unwrap();
            assert_eq!((done.before.generation, done.after.generation), (FIRST, SECOND));
            assert!(done.is_whole, "the old server was shut down in order");
            assert_eq!(done.end.map(|end| end.lsn), Some(old.end()));
            let cluster = world.cluster_of(3).await.unwrap();
            is_closed(&cluster, FIRST).await;
            // Again: there is nothing to do.
            let again = upgrade_to(&mut world, 2, &new, STRICT).await.unwrap();
            assert_eq!((&again.before, &again.after), (&done.after, &done.after));

            world.server = new.clone();
            receive_until_finished(&mut world, 4).await;
            holds(&cluster, FIRST, &old).await;
            holds(&cluster, SECOND, &new).await;
            let snapshot = walmap::load(&cluster).await.unwrap();
            assert_eq!(snapshot.root.generation, SECOND);
            let first = snapshot.wal.chains().iter().find_map(|chain| chain.objects.first());
            if let Some(first) = first.filter(|first| first.number == 0) {
                assert_eq!(first.meta.predecessor, None, "it continues the old server's WAL");
            }
        });
    }
}

#[test]
fn a_stop_at_any_request_of_an_upgrade_is_gone_on_with() {
    let mut stops = 0;
    simulate(async {
        let (mut before, old, new) = shut_down(2, Mode::Object).await;
        let at_first = before.cluster_of(9).await.unwrap().newest_root().await.unwrap();
        for requests in 1.. {
            let (server, store) = (old.fork(), before.store.fork());
            let mut world = World::of(2000 + requests, Mode::Object, server, store, before.disk.fork(1));
            let stopped = world.store.client(7);
            let repo = world.open(7).await.unwrap();
            let options = options(&mut world, STRICT.0, STRICT.1);
            stopped.hold_after(requests);
            let upgrading = walden::receive::upgrade::upgrade(repo, world.cluster.clone(), &new, &options);
            let held = async {
                while !stopped.is_held() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            let finished = tokio::select! { done = upgrading => { done.unwrap(); true } () = held => false };
            let cluster = world.cluster_of(8).await.unwrap();
            // Whatever was done, all of the old server's WAL is there, and what nobody finished is finished.
            holds(&cluster, FIRST, &old).await;
            let done = upgrade_to(&mut world, 8, &new, STRICT).await.unwrap();
            assert_eq!(done.after.generation, SECOND, "after {requests} requests");
            is_closed(&cluster, FIRST).await;
            holds(&cluster, FIRST, &old).await;
            let root = cluster.newest_root().await.unwrap();
            assert_eq!(
                root.writer_epoch,
                at_first.writer_epoch + 1,
                "it began once, after {requests} requests"
            );
            if finished {
                break;
            }
            stops += 1;
        }
    });
    assert!(stops > 15, "{stops} stops");
}

#[test]
fn a_receiver_fences_what_an_upgrade_left_open() {
    simulate(async {
        let (mut world, old, new) = shut_down(3, Mode::Object).await;
        let cluster = world.cluster_of(2).await.unwrap();
        let record = record_of(&world, &new);
        let root = cluster.begin_generation(FIRST, &record).await.unwrap();
        assert_eq!(root.ended(), [(FIRST, TimelineId(1))]);
        world.server = new.clone();
        receive_until_finished(&mut world, 4).await;
        is_closed(&cluster, FIRST).await;
        holds(&cluster, FIRST, &old).await;
        holds(&cluster, SECOND, &new).await;
    });
}

fn record_of(world: &World, server: &SimServer) -> walden::format::root::GenerationRecord {
    let identity = server.identity();
    walden::format::root::GenerationRecord {
        cluster: world.cluster.clone(),
        generation: Generation(0),
        system_id: identity.system_id,
        major_version: identity.major_version,
        segment_size: SEGMENT as u32,
        block_size: 8192,
    }
}

#[test]
fn of_upgrades_to_two_servers_one_wins_and_an_abandoned_number_is_passed_over() {
    simulate(async {
        let (mut world, _, new) = shut_down(4, Mode::Object).await;
        let other = new.fork();
        other.pose_as(99, 17);
        let (one, two) = (world.cluster_of(2).await.unwrap(), world.cluster_of(3).await.unwrap());
        let (mine, theirs) = (record_of(&world, &new), record_of(&world, &other));
        let (first, second) =
            tokio::join!(one.begin_generation(FIRST, &mine), two.begin_generation(FIRST, &theirs));
        let won = [&first, &second].into_iter().filter(|done| done.is_ok()).count();
        assert_eq!(won, 1, "{first:?} {second:?}");
        let lost = first.err().or(second.err()).unwrap();
        assert!(matches!(lost, RepoError::Conflict { .. }), "{lost}");
        // Both made their object; the winner's number is its own, and the other's is of nobody.
        let current = one.generation().await.unwrap();
        let all = one.generations(&one.newest_root().await.unwrap()).await.unwrap();
        assert_eq!(all.last(), Some(&current));
        let again =
            upgrade_to(&mut world, 5, if current.system_id.0 == 99 { &other } else { &new }, STRICT).await;
        assert_eq!(again.unwrap().after, current);
    });
}

#[test]
fn two_at_once_to_the_same_server_are_one() {
    simulate(async {
        let (mut world, _, new) = shut_down(5, Mode::Object).await;
        let (one, two) = (world.cluster_of(2).await.unwrap(), world.cluster_of(3).await.unwrap());
        let record = record_of(&world, &new);
        let before = one.newest_root().await.unwrap().writer_epoch;
        let (first, second) =
            tokio::join!(one.begin_generation(FIRST, &record), two.begin_generation(FIRST, &record));
        assert_eq!(first.unwrap().generation, SECOND);
        assert_eq!(second.unwrap().generation, SECOND);
        assert_eq!(one.newest_root().await.unwrap().writer_epoch, before + 1, "it began once");
    });
}

/// The old server goes on, as when somebody upgrades to the wrong one: its receiver says what happened, and does not come back.
#[test]
fn a_receiver_of_the_old_server_ends_and_says_why() {
    for mode in [Mode::Object, Mode::Journal] {
        simulate(async {
            let mut world = World::new(6, mode, 100 << 10).await;
            world.server = SimServer::new(6, 100 << 10, false);
            let (old, new) = (world.server.clone(), world.server.upgraded(7, 50 << 10));
            let (_stop, stopped) = watch::channel(false);
            let receiving = world.receiver(1, stopped).await;
            let server = old.clone();
            let mut upgraded = Vec::new();
            let upgrading = async {
                while !server.is_finished() {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                // Not without being told: the old server was never shut down.
                let refused = upgrade_without_journal(&mut world, &new, STRICT).await.unwrap_err();
                assert!(matches!(refused, UpgradeError::MissingWal { .. }), "{refused}");
                upgraded.push(upgrade_without_journal(&mut world, &new, ANY).await.unwrap());
                server.write_more(100 << 10);
                std::future::pending::<()>().await;
            };
            let ended = tokio::select! { ended = receiving => ended, () = upgrading => unreachable!() };
            assert_eq!(upgraded.len(), 1, "it ended before: {ended:?}");
            superseded(ended.unwrap_err());
            // Started again it is refused at once.
            let (_stop, stopped) = watch::channel(false);
            superseded(world.receiver(1, stopped).await.await.unwrap_err());
            let cluster = world.cluster_of(8).await.unwrap();
            let first = walmap::load_generation(&cluster, FIRST).await.unwrap().wal;
            let (range, expected) = old.wal_until(first.durable_end().unwrap().lsn);
            let stored =
                walden::repo::WalReader::new(cluster.clone(), first).read(TimelineId(1), range).await;
            assert!(stored.unwrap() == expected);
            assert_eq!(
                walmap::load(&cluster).await.unwrap().wal.pieces(),
                [],
                "it wrote into the next generation"
            );
        });
    }
}

/// pg_upgrade in place: the new server answers where the old one did, while its receiver still runs.
#[test]
fn a_receiver_that_finds_the_new_server_in_the_place_of_the_old_one_ends() {
    for (mode, upgraded) in
        [(Mode::Object, false), (Mode::Object, true), (Mode::Journal, false), (Mode::Journal, true)]
    {
        simulate(async {
            let mut world = World::new(20, mode, 100 << 10).await;
            world.server = SimServer::new(20, 100 << 10, false);
            let place = world.server.clone();
            let (_stop, stopped) = watch::channel(false);
            let receiving = world.receiver(1, stopped).await;
            let mut servers = None;
            let replacing = async {
                while !place.is_finished() {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                place.shut_down();
                while !place.is_finished() {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                tokio::time::sleep(Duration::from_secs(10)).await;
                place.go_away();
                let (old, new) = (place.fork(), place.upgraded(21, 80 << 10));
                tokio::time::sleep(Duration::from_secs(5)).await;
                if upgraded {
                    // Its journal is open elsewhere, and everything is stored.
                    upgrade_to(&mut world, 2, &new, STRICT).await.unwrap();
                }
                place.become_another(&new);
                servers = Some((old, new));
                std::future::pending::<()>().await;
            };
            let ended = tokio::select! { ended = receiving => ended, () = replacing => unreachable!() };
            let failure = Failure::from(ended.unwrap_err());
            let expected = if upgraded { Exit::Superseded } else { Exit::WrongSystem };
            assert_eq!(failure.exit, expected, "{failure}");
            let (old, new) = servers.unwrap();
            if !upgraded {
                assert!(failure.to_string().contains("walden cluster upgrade --cluster shop"), "{failure}");
                upgrade_to(&mut world, 2, &new, STRICT).await.unwrap();
            }
            receive_until_finished(&mut world, 1).await;
            let cluster = world.cluster_of(3).await.unwrap();
            holds(&cluster, FIRST, &old).await;
            holds(&cluster, SECOND, &place).await;
        });
    }
}

async fn upgrade_without_journal(
    world: &mut World,
    new: &SimServer,
    (server, missing): (NewServer, walden::receive::upgrade::MissingWal),
) -> Result<walden::receive::upgrade::Upgraded, UpgradeError> {
    let repo = world.open(5).await.unwrap();
    let mut options = options(world, server, missing);
    options.receive.journal = None;
    walden::receive::upgrade::upgrade(repo, world.cluster.clone(), new, &options).await
}

fn superseded(error: ReceiveError) {
    let told = error.to_string();
    assert!(told.contains("generation 2 of cluster shop began"), "{told}");
    assert_eq!(Failure::from(error).exit, Exit::Superseded);
}

/// The receiver was killed with WAL that only its journal has, acknowledged, and the server is gone.
async fn killed_with_a_journal(seed: u64) -> (World, SimServer, SimServer) {
    let mut world = World::new(seed, Mode::Journal, 60 << 10).await;
    world.server = SimServer::new(seed, 60 << 10, false);
    world.server.forget_at_once();
    receive_until_finished(&mut world, 1).await;
    let old = world.server.clone();
    let store = world.store.client(1);
    let (_stop, stopped) = watch::channel(false);
    let receiving = world.receiver(1, stopped).await;
    let server = old.clone();
    let mut told = false;
    let cutting = async {
        tokio::time::sleep(Duration::from_secs(20)).await;
        // From now on the store hears nothing, and the journal goes on.
        store.cut(true);
        server.write_more(60 << 10);
        while !server.is_finished() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        server.shut_down();
        while !server.is_finished() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        told = true;
    };
    tokio::select! { ended = receiving => panic!("{ended:?}"), () = cutting => {} }
    assert!(told);
    store.cut(false);
    old.go_away();
    // The disk's lock goes with its process.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let new = old.upgraded(seed + 1, 100 << 10);
    (world, old, new)
}

#[test]
fn what_only_the_journal_has_is_stored_before_the_next_generation_begins() {
    simulate(async {
        let (mut world, old, new) = killed_with_a_journal(8).await;
        let cluster = world.cluster_of(3).await.unwrap();
        let stored = walmap::load(&cluster).await.unwrap().wal.durable_end().unwrap().lsn;
        assert!(stored < old.acknowledged(), "the journal has nothing that the repository lacks");
        let done = upgrade_to(&mut world, 2, &new, STRICT).await.unwrap();
        assert_eq!(done.journal_stored, Some(old.end()));
        assert!(done.is_whole);
        holds(&cluster, FIRST, &old).await;
        // The journal is that of the next generation now.
        world.server = new.clone();
        receive_until_finished(&mut world, 1).await;
        holds(&cluster, FIRST, &old).await;
        holds(&cluster, SECOND, &new).await;
    });
}

#[test]
fn what_a_journal_elsewhere_has_is_asked_for_and_never_gets_into_the_next_generation() {
    simulate(async {
        let (mut world, old, new) = killed_with_a_journal(9).await;
        let refused = upgrade_without_journal(&mut world, &new, STRICT).await.unwrap_err();
        assert!(matches!(refused, UpgradeError::MissingWal { .. }), "{refused}");
        assert!(Failure::from(refused).hint.unwrap().contains("journal"));
        upgrade_without_journal(&mut world, &new, (NewServer::Upgraded, ANY.1)).await.unwrap();
        world.server = new.clone();
        let (_stop, stopped) = watch::channel(false);
        let refused = world.receiver(1, stopped).await.await.unwrap_err();
        match &refused {
            ReceiveError::LeftBehind { held, current, to, .. } => {
                assert_eq!((*held, *current, to.lsn), (FIRST, SECOND, old.end()));
            }
            other => panic!("{other}"),
        }
        let cluster = world.cluster_of(3).await.unwrap();
        assert_eq!(walmap::load(&cluster).await.unwrap().wal.pieces(), []);
        assert_eq!(new.acknowledged().get(), 0, "it was acknowledged to the new server");
    });
}

#[test]
fn a_backup_of_the_old_server_does_not_commit() {
    simulate(async {
        let mut world = World::new(10, Mode::Object, 50 << 10).await;
        world.server = SimServer::new(10, 50 << 10, false);
        let (old, new) = (world.server.clone(), world.server.upgraded(11, 50 << 10));
        receive_until_finished(&mut world, 1).await;
        old.send_backups_slowly(Duration::from_secs(20));
        let backing = world.backup(6).await;
        let upgrading = async {
            tokio::time::sleep(Duration::from_secs(15)).await;
            upgrade_to(&mut world, 2, &new, ANY).await.unwrap();
            std::future::pending::<()>().await;
        };
        let ended = tokio::select! { ended = backing => ended, () = upgrading => unreachable!() };
        match ended {
            Err(BackupError::Repo(
                error @ RepoError::NewGeneration { generation: FIRST, current: SECOND, .. },
            )) => {
                assert_eq!(Failure::from(error).exit, Exit::Superseded);
            }
            other => panic!("{other:?}"),
        }
        let cluster = world.cluster_of(8).await.unwrap();
        let snapshot = walmap::load(&cluster).await.unwrap();
        assert_eq!((snapshot.index.backups.len(), snapshot.root.pending.len()), (0, 0));
    });
}

/// Which backups deltas refer to is decided by a function with tests of its own; here, that nothing of it is left behind.
#[test]
fn what_a_generation_that_is_over_left_is_compacted_to_its_last_byte() {
    simulate(async {
        let mut world = World::new(12, Mode::Object, 300 << 10).await;
        world.server = SimServer::new(12, 300 << 10, false);
        world.pace = Some(Duration::from_secs(360_000));
        let old = world.server.clone();
        receive_until_finished(&mut world, 1).await;
        old.shut_down();
        receive_until_finished(&mut world, 1).await;
        old.go_away();
        let new = old.upgraded(13, 300 << 10);
        upgrade_to(&mut world, 2, &new, STRICT).await.unwrap();
        world.server = new.clone();
        receive_until_finished(&mut world, 1).await;
        let cluster = world.cluster_of(3).await.unwrap();
        let flushed = |snapshot: &walmap::Snapshot| {
            let pieces = snapshot.wal.pieces().iter();
            pieces.filter(|piece| matches!(piece.source, WalSource::Flush { .. })).count()
        };
        let before = walmap::load_generation(&cluster, FIRST).await.unwrap();
        assert!(flushed(&before) > 0, "there is nothing to compact");
        let deltas = Some(DeltaOptions { cache_bytes: 10 << 20 });
        compact::compact(&cluster, deltas, Extent::Full).await.unwrap();
        let after = walmap::load_generation(&cluster, FIRST).await.unwrap();
        assert_eq!((flushed(&after), after.wal.pieces().is_empty()), (0, false));
        holds(&cluster, FIRST, &old).await;
        holds(&cluster, SECOND, &new).await;
    });
}

async fn backup_beside_receiving(world: &mut World) {
    let (stop, stopped) = watch::channel(false);
    let (receiving, backup) = (world.receiver(1, stopped).await, world.backup(6).await);
    let backing = async {
        backup.await.unwrap();
        stop.send_replace(true);
        std::future::pending::<()>().await;
    };
    tokio::select! { ended = receiving => ended.unwrap(), () = backing => unreachable!() }
}

#[test]
fn a_restore_takes_the_server_that_there_was() {
    simulate(async {
        let mut world = World::new(14, Mode::Object, 100 << 10).await;
        world.server = SimServer::new(14, 100 << 10, false);
        let old = world.server.clone();
        backup_beside_receiving(&mut world).await;
        receive_until_finished(&mut world, 1).await;
        let before = old.clock();
        old.shut_down();
        receive_until_finished(&mut world, 1).await;
        old.go_away();
        let new = old.upgraded(15, 100 << 10);
        upgrade_to(&mut world, 2, &new, STRICT).await.unwrap();
        let cluster = world.cluster_of(3).await.unwrap();
        let chosen = |cluster: Cluster, target: Target| async move {
            let snapshot = walmap::load(&cluster).await.unwrap();
            let chosen = generations::choose(&cluster, &snapshot, &Request::new(target)).await;
            chosen.map(|loaded| loaded.record.generation).map_err(|error| error.to_string())
        };
        let time = chosen(cluster.clone(), Target::Time(before)).await;
        assert_eq!(time, Ok(FIRST));
        let latest = chosen(cluster.clone(), Target::Latest).await.unwrap_err();
        assert!(
            latest.contains("generation 2 (PostgreSQL 16), which has no complete backup yet"),
            "{latest}"
        );
        world.server = new.clone();
        receive_until_finished(&mut world, 1).await;
        let between = new.clock();
        let refused = chosen(cluster.clone(), Target::Time(between)).await.unwrap_err();
        assert!(refused.contains("the end of generation 1") && refused.contains("generation 2"), "{refused}");
        new.write_more(50 << 10);
        backup_beside_receiving(&mut world).await;
        receive_until_finished(&mut world, 1).await;
        assert_eq!(chosen(cluster.clone(), Target::Time(new.clock())).await, Ok(SECOND));
        assert_eq!(chosen(cluster.clone(), Target::Latest).await, Ok(SECOND));
        assert_eq!(chosen(cluster.clone(), Target::Time(before)).await, Ok(FIRST));
        assert!(chosen(cluster.clone(), Target::Time(between)).await.is_err());
        assert_eq!(chosen(cluster.clone(), Target::Lsn(old.end())).await, Ok(FIRST));
        assert_eq!(chosen(cluster, Target::Lsn(new.end())).await, Ok(SECOND));
    });
}
