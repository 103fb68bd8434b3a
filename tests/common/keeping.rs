//! Retention and collection beside everything else, under a simulated clock and a store that fails: backups, compaction and two hosts
//! that expire and collect, each stopped for a while and woken at any time; or stopped for good at one request.

use super::crash::{GRACE, Gated, Made, Mode, Planted, WORK_GRACE, World};
use super::sim_server::{SEGMENT, SimServer};
use super::sim_store::StoreFaults;
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::watch;
use walden::backup::BackupError;
use walden::base::{BackupId, Lsn, ObjectKey, SegmentSize, TimelineId, Timestamp};
use walden::format::index::{BackupEntry, BackupState, RemovedKind};
use walden::repo::backups::{needed_wal, state_now};
use walden::repo::walmap::{self, Snapshot};
use walden::repo::{Cluster, RepoError, WalReader, layout};
use walden::retain::policy::Policy;
use walden::retain::{expire, gc};

/// What goes on in a round.
type Work = Pin<Box<dyn Future<Output = Result<(), String>>>>;
type Backup = Pin<Box<dyn Future<Output = Made>>>;

/// What was seen of a cluster, to be held against what is there later.
#[derive(Debug, Default)]
pub struct Seen {
    /// When each complete backup that was ever there was consistent.
    complete: Vec<(BackupId, Timestamp)>,
    /// Backups that are gone now.
    pub expired: usize,
}

/// A window of so many seconds of the server's clock.
pub fn window(seconds: u64) -> Policy {
    Policy { window: Duration::from_secs(seconds), count_min: 1, keeps: [0; 4] }
}

/// Lets go and collects, once.
pub async fn keep(cluster: &Cluster, policy: &Policy, grace: Duration) -> Result<gc::Collected, RepoError> {
    expire::expire(cluster, policy).await?;
    gc::collect_with(cluster, grace, WORK_GRACE).await
}

impl World {
    /// The cluster, as a process of its own sees it.
    pub async fn cluster_of(&mut self, client: u32) -> Result<Cluster, RepoError> {
        let repo = self.open(client).await?;
        Cluster::open(repo, self.cluster.clone()).await
    }

    /// What is promised and does not hold.
    pub async fn broken_promise(&mut self, policy: &Policy, seen: &mut Seen) -> Option<String> {
        let faults = self.store.faults();
        self.store.set_faults(StoreFaults::default());
        let found = self.hold_against(policy, seen).await;
        self.store.set_faults(faults);
        found.err()
    }

    async fn hold_against(&mut self, policy: &Policy, seen: &mut Seen) -> Result<(), String> {
        let text = |error: RepoError| error.to_string();
        let told = self.server.acknowledged();
        let cluster = match self.cluster_of(1000).await {
            Err(RepoError::NotFound { .. }) => return Ok(()),
            other => other.map_err(text)?,
        };
        let snapshot = walmap::load(&cluster).await.map_err(text)?;
        self.compare_backups(&cluster, &snapshot).await?;
        let size = SegmentSize::new(SEGMENT).unwrap();
        let is_complete =
            |backup: &&BackupEntry| state_now(backup, &snapshot.wal, size) == BackupState::Complete;
        let mut complete: Vec<BackupEntry> =
            snapshot.index.backups.iter().filter(is_complete).cloned().collect();
        complete.sort_by_key(|backup| backup.stop);
        let stored = snapshot.wal.durable_end().map_or(Timestamp::MIN, |end| end.server_time);
        // The server tells its time when a backup ends, too.
        let made = snapshot.index.backups.iter().map(|backup| backup.stopped_at);
        let newest = made.chain(seen.complete.iter().map(|(_, at)| *at)).max().unwrap_or(stored).max(stored);
        let back = i64::try_from(policy.window.as_micros()).unwrap();
        let start = newest.saturating_add_micros(-back);
        let needed = seen.complete.iter().map(|(_, at)| *at).filter(|at| *at <= start).max();
        for backup in &complete {
            let known = (backup.id.clone(), backup.stopped_at);
            if !seen.complete.contains(&known) {
                seen.complete.push(known);
            }
        }
        seen.expired = seen.complete.len() - complete.len();
        if complete.is_empty() && !seen.complete.is_empty() {
            return Err("no complete backup is left".into());
        }
        let anchor = complete.iter().rev().find(|backup| backup.stopped_at <= start);
        if let Some(needed) = needed
            && anchor.is_none_or(|anchor| anchor.stopped_at < needed)
        {
            return Err(format!("the window begins {start}, and the backup of {needed} is gone"));
        }
        match anchor.or(complete.first()) {
            Some(first) => self.compare_wal(&cluster, &snapshot, needed_wal(first, size).start, told).await,
            None => Ok(()),
        }
    }

    async fn compare_wal(
        &self,
        cluster: &Cluster,
        snapshot: &Snapshot,
        from: Lsn,
        told: Lsn,
    ) -> Result<(), String> {
        let end = snapshot.wal.contiguous_end(TimelineId(1), from);
        if end < told {
            return Err(format!("WAL from {from} on is there up to {end}, acknowledged up to {told}"));
        }
        let (whole, bytes) = self.server.wal_until(told);
        if from >= told {
            return Ok(());
        }
        let range = walden::base::LsnRange::new(from, told);
        let read = WalReader::new(cluster.clone(), snapshot.wal.clone()).read(TimelineId(1), range).await;
        match read.map_err(|error| format!("WAL {range}: {error}"))? {
            read if read[..] == bytes[from.bytes_since(whole.start) as usize..] => Ok(()),
            _ => Err(format!("WAL {range} differs from the server's")),
        }
    }

    /// Objects of the kinds that a root or an index names which these do not, and which do not wait for removal.
    pub async fn leaks(&mut self) -> Vec<String> {
        let cluster = self.cluster_of(1000).await.unwrap();
        let root = cluster.newest_root().await.unwrap();
        let replaced = |key: &&ObjectKey| {
            let Some((stream, number)) = layout::parse_flush(key) else { return false };
            let waits =
                root.retired.iter().any(|run| run.stream == stream && (run.from..run.to).contains(&number));
            let open = root.streams.iter().find(|open| open.id == stream);
            open.is_some_and(|open| number < open.low_water) && !waits
        };
        let flushes: Vec<String> =
            self.store.objects().keys().filter(replaced).map(ToString::to_string).collect();
        let index = cluster.index(&root).await.unwrap();
        let name = cluster.name();
        let mut named: Vec<String> = Vec::new();
        named.extend(index.wal.iter().map(|entry| layout::segment(name, entry.id).to_string()));
        named.extend(index.pages.iter().map(|entry| layout::segment(name, entry.id).to_string()));
        named.extend(
            index
                .backups
                .iter()
                .map(|entry| layout::manifest(name, &entry.id, entry.manifest_number).to_string()),
        );
        named.extend(index.removed.iter().filter_map(|removed| match removed.kind {
            RemovedKind::Wal | RemovedKind::Pages => {
                Some(layout::segment(name, removed.name.parse().unwrap()).to_string())
            }
            RemovedKind::Backup | RemovedKind::Manifest => {
                Some(layout::manifest_named(name, &removed.name).unwrap().to_string())
            }
            RemovedKind::Chunks => None,
        }));
        let objects = self.store.objects();
        let of_kind = |key: &&String| key.contains("/segments/") || key.contains("/backups/");
        let keys: Vec<String> = objects.keys().map(ToString::to_string).collect();
        let unnamed = keys.iter().filter(of_kind).filter(|key| !named.contains(key)).cloned();
        unnamed.chain(flushes).collect()
    }
}

/// Expires and collects for ever, whatever fails.
async fn keeper(world: &mut World, client: u32, policy: Policy) -> impl Future<Output = ()> + use<> {
    let pauses: Vec<u64> = (0..64).map(|_| world.rng.u64(5..60)).collect();
    let (store, env, name) = (world.store.client(client), world.env(), world.cluster.clone());
    async move {
        for pause in pauses.iter().cycle() {
            tokio::time::sleep(Duration::from_secs(*pause)).await;
            let unlock = super::crash::unlock();
            let opened =
                walden::repo::Repository::open(std::sync::Arc::new(store.clone()), &unlock, env.clone())
                    .await;
            let Ok(repo) = opened else { continue };
            let Ok(cluster) = Cluster::open(std::sync::Arc::new(repo), name.clone()).await else { continue };
            let _ = keep(&cluster, &policy, GRACE).await;
        }
    }
}

/// Backups one after the other; those that fail are not.
async fn backups(world: &mut World, client: u32) -> impl Future<Output = Result<(), String>> + use<> {
    let mut all: Vec<(u64, Backup)> = Vec::new();
    for number in 0..8 {
        all.push((world.rng.u64(5..40), Box::pin(world.backup(client + number).await)));
    }
    async move {
        for (pause, backup) in all {
            tokio::time::sleep(Duration::from_secs(pause)).await;
            match backup.await {
                Ok(_)
                | Err(BackupError::Expired | BackupError::WalMissing { .. } | BackupError::Pg(_))
                | Err(BackupError::Repo(_)) => {}
                Err(error) => return Err(format!("a backup: {error}")),
            }
        }
        Ok(())
    }
}

/// One round: two lanes of backups and two keepers beside a receiver, any of which stalls for minutes. How many backups expired.
pub async fn keeping(seed: u64) -> Result<usize, String> {
    // From some MiB on WAL is compacted to segments of several epochs.
    let wal = if seed.is_multiple_of(4) { 4 << 20 } else { 400 << 10 };
    let mut world = World::new(seed, Mode::Object, wal).await;
    world.unleash(Planted::default());
    let policy = window(world.rng.u64(0..30));
    if seed.is_multiple_of(2) {
        // Half of the rounds are spared the network's faults, so that backups get made.
        world.server = SimServer::new(seed, wal, false);
    }
    if world.rng.u8(0..3) == 0 {
        world.server.send_backups_slowly(Duration::from_secs(world.rng.u64(1..15)));
    }
    let mut seen = Seen::default();
    let mut gates = Vec::new();
    let mut works: Vec<Work> = Vec::new();
    for lane in 0..2 {
        let (gate, open) = watch::channel(true);
        gates.push(((100 + 10 * lane)..(108 + 10 * lane), gate));
        works.push(Box::pin(Gated::new(backups(&mut world, 100 + 10 * lane).await, open)));
    }
    for client in [200, 201] {
        let (gate, open) = watch::channel(true);
        gates.push((client..client + 1, gate));
        let keeping = keeper(&mut world, client, policy).await;
        works.push(Box::pin(async move {
            Gated::new(keeping, open).await;
            Ok(())
        }));
    }
    let mut receiving: Vec<_> = Vec::new();
    let (_stop, stopped) = watch::channel(false);
    for life in 0..6 {
        receiving.push(world.receiver(life, stopped.clone()).await);
    }
    works.push(Box::pin(async move {
        for receiving in receiving {
            // Among faults it ends now and then, and is begun again.
            let _ = receiving.await;
        }
        Ok(())
    }));
    let mut works: Vec<Option<_>> = works.into_iter().map(Some).collect();
    for _ in 0..world.rng.u32(6..14) {
        let pause = Duration::from_secs(world.rng.u64(5..60));
        let stalled = world.rng.bool().then(|| world.rng.usize(0..gates.len()));
        if let Some(stalled) = stalled {
            let (clients, gate) = &gates[stalled];
            gate.send_replace(false);
            clients.clone().for_each(|client| world.store.client(client).hold(true));
        }
        let long = if stalled.is_some() { GRACE.mul_f64(world.rng.f64() * 3.0) } else { Duration::ZERO };
        run_for(&mut works, pause + long).await?;
        if let Some(stalled) = stalled {
            let (clients, gate) = &gates[stalled];
            clients.clone().for_each(|client| world.store.client(client).hold(false));
            gate.send_replace(true);
        }
        if let Some(broken) = world.broken_promise(&policy, &mut seen).await {
            return Err(broken);
        }
    }
    world.calm();
    run_for(&mut works, Duration::from_secs(600)).await?;
    drop(works);
    // What was late is done by now, and what was abandoned is old.
    for _ in 0..4 {
        tokio::time::sleep(WORK_GRACE.max(GRACE) * 2).await;
        let Ok(cluster) = world.cluster_of(300).await else { break };
        keep(&cluster, &policy, GRACE).await.map_err(|error| format!("the last keeper: {error}"))?;
    }
    if let Some(broken) = world.broken_promise(&policy, &mut seen).await {
        return Err(broken);
    }
    match world.leaks().await {
        leaks if leaks.is_empty() => Ok(seen.expired),
        leaks => Err(format!("left behind: {leaks:?}")),
    }
}

/// Runs all of `works` for so long; an error of one is one of the round.
async fn run_for(works: &mut [Option<Work>], span: Duration) -> Result<(), String> {
    let all = std::future::poll_fn(|context| {
        for work in works.iter_mut() {
            if let Some(running) = work
                && let std::task::Poll::Ready(ended) = running.as_mut().poll(context)
            {
                *work = None;
                ended?;
            }
        }
        std::task::Poll::<Result<std::convert::Infallible, String>>::Pending
    });
    match tokio::time::timeout(span, all).await {
        Err(_) => Ok(()),
        Ok(Err(error)) => Err(error),
        Ok(Ok(never)) => match never {},
    }
}

/// A world without faults and its receiver, in which `count` backups were made, with WAL after each.
pub async fn with_backups(seed: u64, count: u32) -> World {
    with_backups_and_wal(seed, count, 64 << 10).await
}

/// The same with so many bytes of WAL after each backup: from some MiB on they are compacted to segments of several epochs of deltas.
pub async fn with_backups_and_wal(seed: u64, count: u32, wal: u64) -> World {
    let mut world = World::new(seed, Mode::Object, wal).await;
    world.server = SimServer::new(seed, wal, false);
    if wal > SEGMENT {
        world.server.switch_at_backups();
    }
    let server = world.server.clone();
    let mut backups = Vec::new();
    for number in 0..count {
        backups.push(world.backup(10 + number).await);
    }
    let making = async {
        for backup in backups {
            backup.await.unwrap();
            server.write_more(wal);
            tokio::time::sleep(Duration::from_secs(30)).await;
            while !server.is_finished() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
    };
    beside_receiving(&mut world, making).await;
    world
}

/// Runs `work` beside a receiver.
async fn beside_receiving<T>(world: &mut World, work: impl Future<Output = T>) -> T {
    let (_stop, stopped) = watch::channel(false);
    let receiving = world.receiver(1, stopped).await;
    tokio::select! {
        ended = receiving => panic!("receive ended: {ended:?}"),
        done = work => done,
    }
}

/// Whether a keeper was stopped before it was done.
pub enum Stopped {
    Before,
    Never,
}

/// A keeper of `before` is stopped for good after so many requests, and others go on: nothing is lost, and nothing left.
pub async fn stopped_keeper(before: &World, requests: u64) -> Result<Stopped, String> {
    let (policy, at_first) = (window(0), before.store.used());
    let (server, store) = (before.server.fork(), before.store.fork());
    let mut world = World::of(3000 + requests, Mode::Object, server, store, before.disk.fork(1));
    let mut seen = Seen::default();
    world.broken_promise(&policy, &mut seen).await.map_or(Ok(()), Err)?;
    let text = |error: RepoError| error.to_string();
    let theirs = world.cluster_of(7).await.map_err(text)?;
    let stopped = world.store.client(7);
    stopped.hold_after(requests);
    let held = async {
        while !stopped.is_held() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let stopped = tokio::select! {
        done = keep(&theirs, &policy, Duration::ZERO) => done.map(|_| Stopped::Never).map_err(text)?,
        () = held => Stopped::Before,
    };
    world.broken_promise(&policy, &mut seen).await.map_or(Ok(()), Err)?;
    // Somebody else goes on, once what was registered is old.
    for _ in 0..3 {
        tokio::time::sleep(WORK_GRACE * 2).await;
        let ours = world.cluster_of(8).await.map_err(text)?;
        keep(&ours, &policy, Duration::ZERO).await.map_err(text)?;
    }
    world.broken_promise(&policy, &mut seen).await.map_or(Ok(()), Err)?;
    if seen.expired != 4 {
        return Err(format!("{} backups expired", seen.expired));
    }
    let leaks = world.leaks().await;
    if !leaks.is_empty() {
        return Err(format!("left behind: {leaks:?}"));
    }
    let ours = world.cluster_of(8).await.map_err(text)?;
    let index = ours.index(&ours.newest_root().await.map_err(text)?).await.map_err(text)?;
    if !index.removed.is_empty() {
        return Err(format!("still to be removed: {:?}", index.removed));
    }
    match world.store.used() {
        used if used < at_first * 2 / 3 => Ok(stopped),
        used => Err(format!("{used} of {at_first} bytes are left")),
    }
}

/// Old backups go while a new one is being made that finds chunks of theirs stored: at its beginning, in its middle, at its end.
pub async fn keeping_beside_backups(seed: u64) -> Result<(), String> {
    let mut world = with_backups(seed, 4).await;
    let policy = window(0);
    world.server.send_backups_slowly(Duration::from_millis(world.rng.u64(50..3000)));
    let keepers = world.cluster_of(7).await.map_err(|error| error.to_string())?;
    let backup = world.backup(50).await;
    let longest = if world.rng.bool() { 1_000 } else { 40_000 };
    let before = Duration::from_millis(world.rng.u64(0..longest));
    let keeping = async {
        tokio::time::sleep(before).await;
        for _ in 0..3 {
            keep(&keepers, &policy, Duration::ZERO).await.map_err(|error| error.to_string())?;
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        Ok::<_, String>(())
    };
    let both = async { tokio::join!(backup, keeping) };
    let (made, kept) = beside_receiving(&mut world, both).await;
    kept?;
    made.map_err(|error| format!("the backup: {error}"))?;
    let mut seen = Seen::default();
    world.broken_promise(&policy, &mut seen).await.map_or(Ok(()), Err)
}

/// A keeper is stopped right before it creates a root, and wakes when that number has been won by others and removed.
pub async fn woken_below_the_floor(seed: u64) -> Result<(), String> {
    let mut world = with_backups(seed, 3).await;
    let (stalled, id) = (world.store.client(7), 7);
    let theirs = world.cluster_of(id).await.map_err(|error| error.to_string())?;
    let root = theirs.newest_root().await.map_err(|error| error.to_string())?;
    let index = theirs.index(&root).await.map_err(|error| error.to_string())?;
    let backup = index.backups.first().ok_or("no backup")?.id.clone();
    let server = world.server.clone();
    stalled.hold_after(world.rng.u64(1..40));
    let (gate, open) = watch::channel(true);
    let pinning = Gated::new(
        async move { walden::retain::pin::pin(&theirs, &backup, None, "audit").await.map(|_| backup) },
        open,
    );
    let others = async {
        while !stalled.is_held() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        gate.send_replace(false);
        // Roots are made and removed meanwhile: new WAL is compacted.
        for _ in 0..8 {
            server.write_more(16 << 10);
            tokio::time::sleep(GRACE / 2).await;
        }
        stalled.hold(false);
        gate.send_replace(true);
        std::future::pending::<()>().await;
    };
    let both = async {
        tokio::select! { pinned = pinning => pinned, () = others => unreachable!() }
    };
    let pinned = beside_receiving(&mut world, both).await;
    let ours = world.cluster_of(8).await.map_err(|error| error.to_string())?;
    let root = ours.newest_root().await.map_err(|error| error.to_string())?;
    let index = ours.index(&root).await.map_err(|error| error.to_string())?;
    match pinned {
        Ok(id) if index.pins.iter().any(|pin| pin.backup == id) => Ok(()),
        Ok(id) => Err(format!("backup {id} was said to be pinned, and is not")),
        Err(RepoError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// The host's clock is a year ahead of the store's: what was let go a moment ago stays for the grace period all the same.
pub async fn grace_by_the_store(seed: u64) -> Result<(), String> {
    let mut world = with_backups(seed, 3).await;
    // Everything that is there is older than the grace period; then the store's clock is set back.
    tokio::time::sleep(GRACE * 2).await;
    world.store.skew_clock(-365 * 86_400 * 1_000_000);
    let ours = world.cluster_of(7).await.map_err(|error| error.to_string())?;
    let index = ours.index(&ours.newest_root().await.map_err(|error| error.to_string())?).await;
    let manifests: Vec<_> = index
        .map_err(|error| error.to_string())?
        .backups
        .iter()
        .map(|backup| layout::manifest(ours.name(), &backup.id, backup.manifest_number))
        .collect();
    let mut gone = 0;
    for _ in 0..2 {
        keep(&ours, &window(0), GRACE).await.map_err(|error| error.to_string())?;
        let objects = world.store.objects();
        gone = manifests.iter().filter(|key| !objects.contains_key(key)).count();
    }
    match gone {
        0 => Ok(()),
        gone => Err(format!("{gone} manifests are gone at once, not after {GRACE:?}")),
    }
}
