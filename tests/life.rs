//! Sixty days of a cluster under a simulated clock: WAL three times a day, a backup and retention daily, failovers with and without the
//! standby's last WAL, an upgrade, pins, a rotation of keys each week with everything moved and the old epoch destroyed, and a key slot that is lost.
//! Every day the window is what the policy says, three moments in it are restored exactly, and nothing dead is left but what waits.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::crash::{Mode, World, read_backup, simulate};
use common::keys::{key, name, open};
use common::sim_server::{Commit, SimServer};
use common::sim_store::SimStore;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use walden::backup::{self, BackupJob, BackupOptions, Checkpoint, ReceiverElsewhere};
use walden::base::limits::{PAGES_LIVE_PERCENT_MIN, WORK_GRACE_MIN};
use walden::base::progress::Unwatched;
use walden::base::{BackupId, Generation, LsnRange, TimelineId, Timestamp};
use walden::codec::keyslot::{SlotCost, Unlock};
use walden::format::index::BackupState;
use walden::operate::info;
use walden::receive::compact::{self, DeltaOptions, Extent};
use walden::receive::pipeline::Stored;
use walden::receive::session;
use walden::receive::upgrade::{self, MissingWal, NewServer, UpgradeOptions};
use walden::rekey::destroy::{Destroyed, destroy};
use walden::rekey::reseal::reseal;
use walden::repo::chunks::{ChunkIndex, ChunkReader};
use walden::repo::walread::Reading;
use walden::repo::{Cluster, Repository, slots, walmap};
use walden::restore::archive::PathReader;
use walden::restore::resolve::Stop;
use walden::restore::{Request, Target, run};
use walden::retain::policy::Policy;
use walden::retain::{expire, gc, mark, pin};

const DAYS: u64 = 60;
const DAY: Duration = Duration::from_secs(86_400);
const WINDOW_DAYS: u64 = 30;
/// The day on which the key slot that everybody uses is lost.
const SLOT_LOST: u64 = 25;
/// The day of pg_upgrade.
const UPGRADED: u64 = 33;
const DELTAS: DeltaOptions = DeltaOptions { cache_bytes: 10 << 20 };

/// A backup that was said to be made.
#[derive(Debug, Clone)]
struct Made {
    id: BackupId,
    at: Timestamp,
    timeline: TimelineId,
    generation: Generation,
}

/// What happened, to be sure that something did.
#[derive(Debug, Default)]
struct Lived {
    restores: u64,
    failovers: u64,
    tails_lost: u64,
    pins: u64,
    rotations: u64,
    destroyed: u64,
    expired: u64,
    /// The most that the store held after a collection without grace, in hundredths of the live bytes.
    stored_percent: u64,
    /// The least share of the bytes of live segments of chunks that something refers to.
    chunks_live_percent: u64,
}

struct Life {
    world: World,
    unlock: Unlock,
    policy: Policy,
    made: Vec<Made>,
    pinned: BTreeMap<BackupId, Option<Timestamp>>,
    /// The server of each generation before the current one.
    older: Vec<SimServer>,
    clients: u32,
    lived: Lived,
}

fn micros(span: Duration) -> i64 {
    span.as_micros() as i64
}

impl Life {
    async fn new(seed: u64) -> Life {
        let mut world = World::new(seed, Mode::Object, 0).await;
        world.server = SimServer::new(seed, 0, false);
        world.server.switch_at_backups();
        let policy = Policy { window: DAY * WINDOW_DAYS as u32, count_min: 2, keeps: [0, 2, 1, 0] };
        let unlock = common::crash::unlock();
        let (made, pinned) = (Vec::new(), BTreeMap::new());
        let lived = Lived { chunks_live_percent: 100, ..Lived::default() };
        let older = Vec::new();
        let mut life = Life { world, unlock, policy, made, pinned, older, clients: 0, lived };
        // The slot that is left when the other is lost.
        slots::add(&*life.open().await, &name("escrow"), &key(8), SlotCost::LEAST).await.unwrap();
        life
    }

    fn now(&mut self) -> Timestamp {
        self.world.env().clock.now()
    }

    fn store(&mut self) -> SimStore {
        self.clients += 1;
        self.world.store.client(self.clients)
    }

    /// The repository, as the next process opens it.
    async fn open(&mut self) -> Arc<Repository> {
        let (store, env) = (self.store(), self.world.env());
        open(&store, &self.unlock, env).await.unwrap()
    }

    async fn cluster(&mut self) -> Cluster {
        Cluster::open(self.open().await, self.world.cluster.clone()).await.unwrap()
    }

    /// Receives until everything is stored, beside whatever else is done; then compacts.
    async fn receive<T>(&mut self, beside: impl Future<Output = T>) -> T {
        let (repo, server, options) = (self.open().await, self.world.server.clone(), self.world.options());
        let cluster = self.world.cluster.clone();
        let (stop, stopped) = watch::channel(false);
        let (stored, _) = watch::channel(Stored::default());
        let receiving = session::run(repo, cluster, &server, &options, stored, stopped);
        let other = async {
            let done = beside.await;
            while !server.is_finished() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            stop.send_replace(true);
            done
        };
        let (received, done) = tokio::join!(receiving, other);
        received.unwrap();
        compact::compact(&self.cluster().await, Some(DELTAS), Extent::All).await.unwrap();
        done
    }

    async fn part_of_a_day(&mut self) {
        let now = self.now();
        self.world.server.set_clock(now);
        let bytes = self.world.rng.u64(20_000..300_000);
        self.world.server.write_more(bytes);
        self.receive(std::future::ready(())).await;
    }

    async fn backup(&mut self) {
        let (repo, server) = (self.open().await, self.world.server.clone());
        let cluster = self.world.cluster.clone();
        let timeline = server.timeline();
        let options = BackupOptions {
            checkpoint: Checkpoint::Fast,
            max_rate_kib: None,
            wal_timeout: Duration::from_secs(600),
            application_name: "walden_shop_backup".into(),
            holder: "life".into(),
            renew_interval: WORK_GRACE_MIN / 4,
            threads: 1,
        };
        let (_stop, stop) = watch::channel(false);
        let job = BackupJob {
            repo,
            cluster,
            server: &server,
            options: &options,
            wal: &ReceiverElsewhere,
            progress: &Unwatched,
            stop,
        };
        let entry = self.receive(backup::run(job)).await.unwrap().entry;
        let generation = entry.generation;
        self.made.push(Made { id: entry.id, at: entry.stopped_at, timeline, generation });
    }

    /// The primary dies; every other time its standby lacks the last WAL.
    async fn fail_over(&mut self) {
        if self.lived.failovers.is_multiple_of(2) {
            self.world.server.standby_catches_up();
            self.part_of_a_day().await;
            self.lived.tails_lost += 1;
        }
        self.world.server.fail_over();
        self.lived.failovers += 1;
    }

    /// pg_upgrade makes another server of it, whose generation has no backup until one is made.
    async fn upgrade(&mut self) {
        let old = self.world.server.clone();
        old.shut_down();
        self.receive(std::future::ready(())).await;
        old.go_away();
        let new = old.upgraded(self.world.seed + 1, 0);
        let (repo, receive) = (self.open().await, self.world.options());
        let options = UpgradeOptions { server: NewServer::Upgraded, missing: MissingWal::Refuse, receive };
        let begun = upgrade::upgrade(repo, self.world.cluster.clone(), &new, &options).await.unwrap();
        assert!(begun.is_whole, "{begun:?}");
        self.world.server = new;
        self.older.push(old);
        self.part_of_a_day().await;
        self.backup().await;
        self.part_of_a_day().await;
    }

    async fn pins(&mut self) {
        let cluster = self.cluster().await;
        let index = cluster.index(&cluster.newest_root().await.unwrap()).await.unwrap();
        let restorable = index.backups.iter().filter(|backup| backup.state == BackupState::Complete);
        let ids: Vec<BackupId> = restorable.map(|backup| backup.id.clone()).collect();
        if self.world.rng.u8(0..8) == 0 {
            let id = ids[self.world.rng.usize(0..ids.len())].clone();
            let now = self.now();
            let days = self.world.rng.i64(1..20);
            let until = self.world.rng.bool().then(|| now.saturating_add_micros(days * micros(DAY)));
            pin::pin(&cluster, &id, until, "audit").await.unwrap();
            self.pinned.insert(id, until);
            self.lived.pins += 1;
        }
        if self.world.rng.u8(0..12) == 0
            && let Some(id) = self.pinned.keys().next().cloned()
        {
            // One whose pin ran out may be gone, with its pin.
            if index.pins.iter().any(|pin| pin.backup == id) {
                pin::unpin(&cluster, &id).await.unwrap();
            }
            self.pinned.remove(&id);
        }
    }

    /// A new epoch of keys; everything moves to it. What was sealed under the one before goes in the next week.
    async fn rotate(&mut self) {
        let repo = self.open().await;
        let rotated = slots::rotate(&repo).await.unwrap();
        assert!(rotated.passed_over.is_empty(), "{rotated:?}");
        self.lived.rotations += 1;
        let cluster = self.cluster().await;
        let moved = reseal(&cluster, u64::MAX, &Unwatched).await.unwrap();
        assert!(moved.finished, "{moved:?}");
    }

    async fn destroy_before(&mut self) {
        let repo = self.open().await;
        let newest = repo.keys().newest().epoch;
        match destroy(&repo, newest - 1, &Unwatched).await.unwrap() {
            Destroyed::Gone { .. } => self.lived.destroyed += 1,
            Destroyed::Refused(needed) => panic!("epoch {} is needed: {needed:?}", newest - 1),
        }
    }

    async fn lose_the_slot(&mut self) {
        self.world.store.lose(&walden::repo::layout::slot(&name("main")));
        self.unlock = key(8);
        let repo = self.open().await;
        slots::remove(&repo, &[name("main")].into()).await.unwrap();
        slots::add(&repo, &name("main2"), &key(7), SlotCost::LEAST).await.unwrap();
    }

    async fn keep(&mut self) {
        let cluster = self.cluster().await;
        let before = cluster.index(&cluster.newest_root().await.unwrap()).await.unwrap().backups.len();
        expire::expire(&cluster, &self.policy).await.unwrap();
        let after = cluster.index(&cluster.newest_root().await.unwrap()).await.unwrap().backups.len();
        self.lived.expired += (before - after) as u64;
        let collected = gc::collect(&cluster, WORK_GRACE_MIN).await.unwrap();
        assert_eq!(collected.swept.put_off, None);
        assert_eq!(collected.undeleted.count, 0);
    }

    fn server(&self, generation: Generation) -> &SimServer {
        self.older.get(generation.0 as usize - 1).unwrap_or(&self.world.server)
    }

    /// The beginning of the window, and the backup with which it has to begin.
    fn window(&mut self) -> (Timestamp, Option<Made>) {
        let newest = self.made.iter().map(|made| made.at).max().unwrap_or(Timestamp::MIN);
        let now = self.now().min(self.world.server.clock().max(newest));
        let start = now.saturating_add_micros(-micros(self.policy.window));
        let old = self.made.iter().filter(|made| made.at <= start);
        (start, old.max_by_key(|made| made.at).cloned())
    }

    /// Every backup of the window is there, and the one that it begins with; of older ones only those that the policy, a pin, or an older
    /// line of the window keeps.
    async fn check_window(&mut self) {
        let cluster = self.cluster().await;
        let root = cluster.newest_root().await.unwrap();
        let index = cluster.index(&root).await.unwrap();
        let ((start, _), now) = (self.window(), self.now());
        let is_lost = |made: &Made, stop| {
            let left = self.server(made.generation).left_behind();
            left.iter().any(|(line, at)| *line == made.timeline && stop > *at)
        };
        for made in self.made.iter().filter(|made| made.at > start) {
            assert!(index.backup(&made.id).is_some(), "backup {} of the window is gone", made.id);
        }
        let mut older = 0;
        for entry in index.backups.iter().filter(|entry| entry.stopped_at <= start) {
            let made = self.made.iter().find(|made| made.id == entry.id).expect("it was made");
            let pinned =
                self.pinned.get(&entry.id).is_some_and(|until| until.is_none_or(|until| until > now));
            let other = entry.state == BackupState::Base || is_lost(made, entry.stop);
            older += usize::from(!pinned && !other);
        }
        // The ones that the window begins with in each generation, and those of two weeks and a month.
        assert!(older <= 5, "{older} backups from before the window: {:#?}", index.backups);
        let info = info::cluster(&cluster, None).await.unwrap();
        let told = info.window.start.as_deref().expect("something can be restored");
        let first = index.backups.iter().map(|entry| entry.stopped_at).min().unwrap();
        assert!(told >= first.to_string().as_str(), "{told} before {first}");
    }

    /// Restores the moment `at`: the files are those that the server sent, the WAL up to where recovery stops is the server's, and it stops
    /// behind the last transaction up to then.
    async fn restore(&mut self, at: Timestamp) {
        let cluster = self.cluster().await;
        let snapshot = walmap::load(&cluster).await.unwrap();
        let resolved = run::resolve(&cluster, &snapshot, &Request::new(Target::Time(at))).await;
        let (loaded, resolved) = resolved.unwrap_or_else(|error| panic!("the moment {at}: {error}"));
        let server = self.server(resolved.backup.generation);
        let stop = match resolved.stop {
            Stop::Before(seen) => seen.start,
            Stop::After(seen) => seen.end,
            Stop::Consistency => resolved.backup.stop,
        };
        let commits = server.commits();
        let is_in = |commit: &&Commit| commit.end > resolved.backup.stop;
        let wrong = commits.iter().filter(is_in).find(|commit| (commit.time <= at) != (commit.end <= stop));
        assert_eq!(wrong, None, "the moment {at} stops at {stop}");
        let index = ChunkIndex::load(&cluster, &snapshot.index.pages).await.unwrap();
        let reader = ChunkReader::new(cluster.clone(), Arc::new(index), 1);
        let files = read_backup(&cluster, &reader, &resolved.backup).await.unwrap();
        let sent = server.sent(resolved.backup.timeline, resolved.backup.start);
        assert!(sent == Some(files), "the files of backup {} differ", resolved.backup.id);
        let mut wal = PathReader::new(&cluster, &loaded, &resolved.path, Reading::Exact);
        let (all, bytes) = server.wal_until(stop);
        let mut from = resolved.wal.start.max(all.start);
        while from < stop {
            let read = wal.read(LsnRange::new(from, stop)).await.unwrap();
            let own = from.bytes_since(all.start) as usize;
            assert!(read[..] == bytes[own..own + read.len()], "WAL at {from} differs");
            from = from.saturating_add(read.len() as u64);
        }
        self.lived.restores += 1;
    }

    async fn restores(&mut self) {
        let first = self.made.iter().map(|made| made.at).min().unwrap();
        let from = self.window().0.max(first);
        let end = self.world.server.commits().last().unwrap().time;
        for _ in 0..3 {
            // Between the old server's last transaction and the first backup of the next nothing can be restored.
            let at = loop {
                let span = end.micros_since(from).max(1);
                let at = from.saturating_add_micros(self.world.rng.i64(0..span));
                if !self.between().is_some_and(|(last, first)| last < at && at < first) {
                    break at;
                }
            };
            self.restore(at).await;
        }
    }

    fn between(&self) -> Option<(Timestamp, Timestamp)> {
        let last = self.older.last()?.commits().last()?.time;
        let first = self.made.iter().find(|made| made.generation.0 as usize > self.older.len())?;
        Some((last, first.at))
    }

    /// On a copy of the store, what a collection without a grace period leaves is what is live.
    async fn check_bytes(&mut self) {
        let (copy, env) = (self.world.store.fork(), self.world.env());
        let repo = open(&copy, &self.unlock, env).await.unwrap();
        let cluster = Cluster::open(repo, self.world.cluster.clone()).await.unwrap();
        for _ in 0..2 {
            gc::collect_with(&cluster, Duration::ZERO, Duration::ZERO).await.unwrap();
        }
        let bytes = info::cluster(&cluster, None).await.unwrap().bytes;
        let keys: u64 = copy
            .objects()
            .iter()
            .filter(|(key, _)| key.as_str().starts_with("keys/"))
            .map(|(_, body)| body.len() as u64)
            .sum();
        let percent = (copy.used() - keys) * 100 / bytes.live;
        self.lived.stored_percent = self.lived.stored_percent.max(percent);
        let index = cluster.index(&cluster.newest_root().await.unwrap()).await.unwrap();
        let marks = mark::mark(&cluster, &index).await.unwrap();
        for (entry, share) in marks.shares() {
            let percent = share.bytes_live * 100 / share.bytes;
            assert!(percent >= PAGES_LIVE_PERCENT_MIN, "{percent} % of segment {} is live", entry.id);
        }
        let (live, all) = marks
            .shares()
            .iter()
            .fold((0, 0), |sum, (_, share)| (sum.0 + share.bytes_live, sum.1 + share.bytes));
        self.lived.chunks_live_percent = self.lived.chunks_live_percent.min(live * 100 / all);
    }

    async fn day(&mut self, day: u64) {
        for part in 0..3 {
            let at = DAY * day as u32 + DAY / 3 * part;
            tokio::time::sleep_until(self.world.born() + at).await;
            self.part_of_a_day().await;
            if part == 1 {
                self.backup().await;
            }
        }
        if self.world.rng.u8(0..12) == 0 {
            self.fail_over().await;
            self.part_of_a_day().await;
        }
        if day == UPGRADED {
            self.upgrade().await;
        }
        match day % 7 {
            3 if day > 3 => self.destroy_before().await,
            6 => self.rotate().await,
            _ => {}
        }
        if day == SLOT_LOST {
            self.lose_the_slot().await;
        }
        self.pins().await;
        self.keep().await;
        self.check_window().await;
        self.restores().await;
        self.check_bytes().await;
    }
}

#[test]
fn sixty_days() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("WALDEN_SEED").unwrap_or(1);
    for seed in first..first + number("WALDEN_SEEDS").unwrap_or(1) {
        println!("seed {seed}");
        let lived = simulate(async {
            let mut life = Life::new(seed).await;
            for day in 0..DAYS {
                life.day(day).await;
            }
            life.lived
        });
        println!("seed {seed}: {lived:?}");
        assert!(lived.stored_percent <= 105, "{lived:?}");
        assert!(lived.failovers > 0 && lived.pins > 0 && lived.rotations > 7 && lived.destroyed > 6);
        assert!(lived.restores == 3 * DAYS && lived.expired > 20, "{lived:?}");
    }
}
