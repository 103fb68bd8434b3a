//! A journal whose bytes were flipped: the receiver that finds it says so, or stores everything that had been acknowledged.

use crate::common::crash::{Mode, World, simulate};
use crate::common::sim_disk::SimDisk;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;
use walden::operate::{Exit, Failure};
use walden::receive::pipeline::ReceiveError;
use walden::repo::{Cluster, walmap};

/// Flips of one run.
const FLIPS: usize = 1000;

/// A world whose journal holds WAL that was acknowledged, is not in the repository, and is gone on the server.
async fn world() -> World {
    let mut world = World::new(3, Mode::Journal, 96 << 10).await;
    world.server.forget_at_once();
    for client in [1, 2] {
        let store = world.store.client(client);
        let (_stop, stopped) = watch::channel(false);
        let receiving = world.receiver(client, stopped).await;
        let cutting = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            store.cut(true);
            std::future::pending::<()>().await;
        };
        let both = async {
            tokio::select! { ended = receiving => ended, () = cutting => unreachable!() }
        };
        tokio::time::timeout(Duration::from_secs(20), both).await.expect_err("it ended");
        world.disk = world.disk.kill();
    }
    world
}

/// What the next receiver makes of `disk`.
#[derive(Debug)]
enum Outcome {
    /// Everything that was acknowledged is in the repository.
    Whole,
    /// It is not, and a gap says so.
    Gap,
    /// The receiver says why it does not go on.
    Refused(ReceiveError),
}

async fn outcome(world: &World, disk: SimDisk) -> Outcome {
    let mut fork = World::of(world.seed, Mode::Journal, world.server.fork(), world.store.fork(), disk);
    let (stop, stopped) = watch::channel(false);
    let receiving = fork.receiver(50, stopped).await;
    let stopping = async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        stop.send_replace(true);
        std::future::pending::<()>().await;
    };
    let ended = tokio::select! { ended = receiving => ended, () = stopping => unreachable!() };
    if let Err(error) = ended {
        return Outcome::Refused(error);
    }
    let Some(lost) = fork.lost().await else { return Outcome::Whole };
    let repo = fork.open(60).await.unwrap();
    let cluster = Cluster::open(repo, fork.cluster.clone()).await.unwrap();
    let gaps = walmap::load(&cluster).await.unwrap().index.gaps;
    assert!(!gaps.is_empty(), "silently lost: {lost}");
    Outcome::Gap
}

fn files(disk: &SimDisk) -> Vec<(PathBuf, usize)> {
    disk.files().into_iter().map(|path| (path.clone(), disk.bytes(&path).len())).collect()
}

#[test]
fn a_receiver_notices_flipped_bytes_of_its_journal_or_loses_nothing() {
    simulate(async {
        let world = world().await;
        assert!(matches!(outcome(&world, world.disk.fork(1)).await, Outcome::Whole));
        let files = files(&world.disk);
        let total: usize = files.iter().map(|(_, len)| len).sum();
        assert!(files.len() > 1 && total > 20_000, "{files:?}");
        let (mut whole, mut gaps, mut refused) = (0, 0, 0);
        let stride = if std::env::var_os("WALDEN_LONG").is_some() { 1 } else { total / FLIPS };
        for at in (0..total).step_by(stride) {
            let mut inside = at;
            let (path, _) = files
                .iter()
                .find(|(_, len)| match inside.checked_sub(*len) {
                    Some(rest) => {
                        inside = rest;
                        false
                    }
                    None => true,
                })
                .unwrap();
            let disk = world.disk.fork(1);
            disk.alter(path, |bytes| bytes[inside] ^= 1 << (at % 8));
            match outcome(&world, disk).await {
                Outcome::Whole => whole += 1,
                Outcome::Gap => {
                    assert_eq!(Some(path), files.last().map(|(path, _)| path), "byte {inside}: no torn tail");
                    gaps += 1;
                }
                Outcome::Refused(error) => {
                    let told = error.to_string();
                    let exit = Failure::from(error).exit;
                    assert_eq!(exit, Exit::Damage, "byte {inside} of {}: {told}", path.display());
                    assert!(told.contains(path.to_str().unwrap()), "{told}");
                    refused += 1;
                }
            }
        }
        println!("{whole} whole, {gaps} gaps, {refused} refused, of {total} bytes");
        assert!(refused > 0);
    });
}
