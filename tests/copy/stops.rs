//! A copy that is stopped at any request, on either side.

use crate::bed::{check, copy_all, empty, open, verified};
use crate::clusters::{DELTAS, received};
use crate::common::crash::{GRACE, Mode, WORK_GRACE, World, simulate, unlock};
use crate::common::keeping::{keep, window, with_backups};
use crate::common::keys;
use crate::common::sim_store::SimStore;
use std::time::Duration;
use walden::base::TimelineId;
use walden::copy::{Copied, CopyError};
use walden::format::index::BackupState;
use walden::receive::compact::{self, Extent};
use walden::repo::cluster::RootChange;
use walden::repo::walmap;
use walden::repo::{Cluster, RepoError, WalReader};
use walden::retain::gc;

/// What is left of a copy that never goes on: nothing, once it was collected.
async fn leaks(world: &mut World, store: &SimStore) -> Vec<String> {
    let repo = open(store, world.env()).await;
    let Ok(cluster) = Cluster::open(repo, world.cluster.clone()).await else { return Vec::new() };
    for _ in 0..3 {
        tokio::time::sleep(WORK_GRACE.max(GRACE) * 2).await;
        gc::collect_with(&cluster, GRACE, WORK_GRACE).await.unwrap();
        // The floor rises to a root that is old enough: one is made now for the next time.
        cluster.commit::<RepoError>(|root| Ok(Some(RootChange::of(root.clone())))).await.unwrap();
    }
    let root = cluster.newest_root().await.unwrap();
    let index = cluster.index(&root).await.unwrap();
    assert!(root.pending.is_empty(), "{:?}", root.pending);
    let mut named: Vec<String> = Vec::new();
    named.extend(index.wal.iter().map(|entry| entry.id.to_string()));
    named.extend(index.pages.iter().map(|entry| entry.id.to_string()));
    let manifest = |backup: &walden::format::index::BackupEntry| {
        walden::repo::layout::manifest_name(&backup.id, backup.manifest_number)
    };
    named.extend(index.backups.iter().map(manifest));
    let keys = store.objects().into_keys();
    let counts = |key: &str| key.contains("/segments/") || key.contains("/backups/");
    let names = keys.filter(|key| counts(key.as_str())).map(|key| key.file_name().to_owned());
    names.filter(|name| !named.contains(name)).collect()
}

#[test]
fn a_copy_stopped_at_any_request_goes_on_and_loses_nothing() {
    simulate(async {
        let mut world = with_backups(3, 2).await;
        let to = empty(&mut world, 30).await;
        let source = world.store.fork();
        let mut lives = World::of(3, Mode::Object, world.server.fork(), source.clone(), world.disk.fork(1));
        let copying = async |store: SimStore| {
            // Chance of its own: ids that were drawn before would come again.
            lives.seed += 1;
            let (ours, theirs) = (lives.env(), lives.env());
            let from = keys::open(&source.fork(), &unlock(), ours).await?;
            let from = Cluster::open(from, lives.cluster.clone()).await?;
            match copy_all(&from, &open(&store, theirs).await).await {
                Ok(copied) => {
                    assert!(copied.left_out.is_empty());
                    Ok(())
                }
                Err(CopyError::Destination(error)) => Err(error),
                Err(error) => panic!("{error}"),
            }
        };
        let looking = async |store: SimStore, done: bool| {
            let (backups, end) = check(&mut world, &store).await;
            if done {
                assert_eq!((backups, end), (2, world.server.end().get()));
            } else {
                let leaks = leaks(&mut world, &store.fork()).await;
                assert!(leaks.is_empty(), "{leaks:?}");
            }
        };
        let requests = keys::stopped_at_every_request(&to, copying, looking).await;
        assert!(requests > 30, "{requests}");
    });
}

#[test]
fn a_copy_is_whole_whatever_the_stores_do() {
    for seed in 1..=4 {
        simulate(async {
            let mut world = with_backups(seed, 2).await;
            let to = empty(&mut world, seed + 40).await;
            let mut faulty =
                World::of(seed, Mode::Object, world.server.fork(), to.clone(), world.disk.fork(1));
            faulty.unleash(Default::default());
            world.store.set_faults(to.faults());
            let mut copies = 0;
            let done = loop {
                copies += 1;
                assert!(copies < 50, "seed {seed}: it never ends");
                let Ok(source) = world.cluster_of(20).await else { continue };
                let Ok(repo) = keys::open(&to.client(9), &crate::bed::other_key(), world.env()).await else {
                    continue;
                };
                match copy_all(&source, &repo).await {
                    Ok(done) => break done,
                    Err(CopyError::Source(error) | CopyError::Destination(error))
                        if error.is_transient() || matches!(error, RepoError::Key { .. }) => {}
                    Err(error) => panic!("seed {seed}: {error}"),
                }
            };
            assert!(done.left_out.is_empty(), "seed {seed}");
            world.calm();
            faulty.calm();
            to.settle().await;
            assert_eq!(check(&mut world, &to).await, (2, world.server.end().get()), "seed {seed}");
            verified(&to, world.env()).await;
        });
    }
}

/// How a source leaves a copy in the lurch.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Lurch {
    /// The process that copies is gone with it, and another begins.
    Ends,
    /// Nothing arrives there any more.
    Fails,
    /// It stalls for longer than anything waits for it, and goes on.
    Stalls,
}

/// A process that copies `source` as one of its clients.
async fn copying(lives: &mut World, source: &SimStore, to: &SimStore) -> Result<Copied, CopyError> {
    lives.seed += 1;
    let (ours, theirs) = (lives.env(), lives.env());
    let from = keys::open(source, &unlock(), ours).await.map_err(CopyError::Source)?;
    let from = Cluster::open(from, lives.cluster.clone()).await.map_err(CopyError::Source)?;
    copy_all(&from, &open(to, theirs).await).await
}

/// What happens in the source meanwhile: flush objects become segments, old backups and their WAL go, and what was replaced is removed.
async fn kept(lives: &mut World, source: &SimStore) {
    lives.seed += 1;
    let env = lives.env();
    let repo = keys::open(&source.client(30), &unlock(), env).await.unwrap();
    let keeper = Cluster::open(repo, lives.cluster.clone()).await.unwrap();
    compact::compact(&keeper, Some(DELTAS), Extent::All).await.unwrap();
    for _ in 0..2 {
        keep(&keeper, &window(0), Duration::ZERO).await.unwrap();
        tokio::time::sleep(WORK_GRACE.max(GRACE) * 2).await;
    }
}

/// The copy has all that its source has now, and nothing that the server never wrote.
async fn assert_exact(lives: &mut World, source: &SimStore, to: &SimStore, what: &str) {
    let (ours, theirs) = (lives.env(), lives.env());
    let from = keys::open(&source.fork(), &unlock(), ours).await.unwrap();
    let from = walmap::load(&Cluster::open(from, lives.cluster.clone()).await.unwrap()).await.unwrap();
    let there = Cluster::open(open(&to.fork(), theirs).await, lives.cluster.clone()).await.unwrap();
    let copy = walmap::load(&there).await.unwrap();
    let (own, ranges) = (from.wal.ranges(TimelineId(1)), copy.wal.ranges(TimelineId(1)));
    let covered = |range| ranges.iter().any(|other| other.intersect(range) == Some(range));
    assert!(own.iter().all(|range| covered(*range)), "{what}: {ranges:?} of {own:?}");
    assert_eq!(copy.index.gaps, [], "{what}");
    let mut reader = WalReader::new(there.clone(), copy.wal.clone());
    for range in ranges {
        let bytes = reader.read(TimelineId(1), range).await.unwrap();
        let (whole, expected) = lives.server.wal_until(range.end);
        assert!(bytes == expected[range.start.bytes_since(whole.start) as usize..], "{what}: {range}");
    }
    for backup in from.index.backups.iter().filter(|backup| backup.state == BackupState::Complete) {
        let state = copy.index.backup(&backup.id).map(|backup| backup.state);
        assert_eq!(state, Some(BackupState::Complete), "{what}: backup {}", backup.id);
    }
    verified(to, lives.env()).await;
}

/// Lets the source fail a copy at every request that it makes there.
async fn left_at_every_request(lurch: Lurch, meanwhile: bool) {
    let mut world = with_backups(17, 2).await;
    // Some WAL is in segments, and some waits to be compacted.
    world.pace = Some(Duration::from_secs(360_000));
    world.server.write_more(256 << 10);
    received(&mut world, 2).await;
    let empty = empty(&mut world, 46).await;
    for requests in 1.. {
        let (source, to) = (world.store.fork(), empty.fork());
        let mut lives =
            World::of(1700 + requests, Mode::Object, world.server.fork(), source.clone(), world.disk.fork(1));
        let what = format!("{lurch:?} at request {requests}");
        let leaving = source.client(7);
        leaving.hold_after(requests);
        let mut copier =
            World::of(9000 + requests, Mode::Object, world.server.fork(), source.clone(), world.disk.fork(1));
        let mut copy = Box::pin(copying(&mut copier, &leaving, &to));
        let held = async {
            while !leaving.is_held() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let ended = tokio::select! {
            biased;
            ended = &mut copy => Some(ended),
            () = held => None,
        };
        if let Some(ended) = ended {
            assert!(requests > 30, "{requests}");
            assert!(ended.unwrap().left_out.is_empty());
            assert_exact(&mut lives, &source, &to, "whole").await;
            return;
        }
        if lurch == Lurch::Ends {
            drop(copy);
            if meanwhile {
                kept(&mut lives, &source).await;
            }
        } else {
            let going_on = async {
                if lurch == Lurch::Fails {
                    leaving.cut(true);
                    leaving.hold(false);
                }
                if meanwhile {
                    kept(&mut lives, &source).await;
                }
                if lurch == Lurch::Stalls {
                    tokio::time::sleep(Duration::from_secs(600)).await;
                    leaving.hold(false);
                }
            };
            let (ended, ()) = tokio::join!(copy, going_on);
            match ended {
                Ok(done) => assert!(done.left_out.is_empty() && done.missing.is_empty(), "{what}: {done:?}"),
                Err(CopyError::Source(error)) if error.is_transient() => {}
                Err(error) => panic!("{what}: {error}"),
            }
        }
        let again = copying(&mut lives, &source.client(8), &to).await;
        let done = again.unwrap_or_else(|error| panic!("{what}, then: {error}"));
        assert!(done.left_out.is_empty() && done.missing.is_empty(), "{what}: {done:?}");
        assert_exact(&mut lives, &source, &to, &what).await;
    }
}

#[test]
fn a_copy_whose_source_goes_away_at_any_request_goes_on_when_it_is_back() {
    simulate(left_at_every_request(Lurch::Fails, false));
}

#[test]
fn a_copy_that_ended_at_any_request_goes_on_whatever_its_source_did_since() {
    simulate(left_at_every_request(Lurch::Ends, true));
}

#[test]
fn a_copy_whose_source_stalls_at_any_request_beside_its_keeping_is_exact_in_the_end() {
    simulate(left_at_every_request(Lurch::Stalls, true));
}
