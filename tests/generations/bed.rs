//! A world with one generation in it, and what is to hold when another began.

use crate::common::crash::{Mode, World};
use crate::common::sim_server::SimServer;
use std::time::Duration;
use tokio::sync::watch;
use walden::base::{Generation, TimelineId};
use walden::receive::pipeline::ReceiveError;
use walden::receive::upgrade::{self, MissingWal, NewServer, UpgradeError, UpgradeOptions, Upgraded};
use walden::repo::chain::ChainEnd;
use walden::repo::{Cluster, WalReader, walmap};

pub const FIRST: Generation = Generation(1);
pub const SECOND: Generation = Generation(2);

/// A world whose server was archived to its end, shut down, and is gone; and the server that pg_upgrade makes of it.
pub async fn shut_down(seed: u64, mode: Mode) -> (World, SimServer, SimServer) {
    let mut world = World::new(seed, mode, 200 << 10).await;
    world.server = SimServer::new(seed, 200 << 10, false);
    let old = world.server.clone();
    receive_until_finished(&mut world, 1).await;
    old.shut_down();
    receive_until_finished(&mut world, 1).await;
    old.go_away();
    let new = old.upgraded(seed + 1, 150 << 10);
    (world, old, new)
}

/// Receives until everything of `world.server` is acknowledged and stored.
pub async fn receive_until_finished(world: &mut World, client: u32) {
    let (stop, stopped) = watch::channel(false);
    let (receiving, server) = (world.receiver(client, stopped).await, world.server.clone());
    let watching = async {
        while !server.is_finished() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        stop.send_replace(true);
        std::future::pending::<()>().await;
    };
    let ended: Result<(), ReceiveError> =
        tokio::select! { ended = receiving => ended, () = watching => unreachable!() };
    ended.unwrap();
}

pub fn options(world: &mut World, server: NewServer, missing: MissingWal) -> UpgradeOptions {
    UpgradeOptions { server, missing, receive: world.options() }
}

/// Upgrades to `new` as a process of its own.
pub async fn upgrade_to(
    world: &mut World,
    client: u32,
    new: &SimServer,
    (server, missing): (NewServer, MissingWal),
) -> Result<Upgraded, UpgradeError> {
    let repo = world.open(client).await.unwrap();
    let options = options(world, server, missing);
    upgrade::upgrade(repo, world.cluster.clone(), new, &options).await
}

pub const STRICT: (NewServer, MissingWal) = (NewServer::Upgraded, MissingWal::Refuse);
pub const ANY: (NewServer, MissingWal) = (NewServer::Any, MissingWal::Accept);

/// The bytes of `generation` are those of `server`, to its end or beyond what it was told.
pub async fn holds(cluster: &Cluster, generation: Generation, server: &SimServer) {
    let snapshot = walmap::load_generation(cluster, generation).await.unwrap();
    let end = snapshot.wal.durable_end().unwrap().lsn;
    assert!(end >= server.acknowledged(), "acknowledged up to {}, stored up to {end}", server.acknowledged());
    let (range, expected) = server.wal_until(end);
    assert_eq!(snapshot.wal.ranges(TimelineId(1)), [range], "generation {generation}");
    let stored = WalReader::new(cluster.clone(), snapshot.wal).read(TimelineId(1), range).await.unwrap();
    assert!(stored == expected, "generation {generation} is not what its server wrote");
}

/// Nobody can add to any stream of `generation`.
pub async fn is_closed(cluster: &Cluster, generation: Generation) {
    let snapshot = walmap::load_generation(cluster, generation).await.unwrap();
    for chain in snapshot.wal.chains() {
        assert!(matches!(chain.end, ChainEnd::Fenced { .. }), "stream {} is open", chain.stream.id);
    }
}
