//! What WAL takes in the repository: one load that begins right after a backup, archived with deltas and without, without a backup,
//! with small caches and across several backups, beside zstd -3 of each WAL file and pgBackRest's archive of the same files.
//! What is archived is then recovered ([`crate::recovery`]) and read at random places ([`crate::random_reads`]), if that is asked for.

use crate::common::archive::Archive;
use crate::common::pg::Process;
use crate::common::walden::Place;
use crate::meter::{Meter, Taken, Whom, figure, rounded, timed};
use crate::peers::{PgBackRest, segment_name};
use crate::random_reads::random_reads;
use crate::recovery::recovery;
use crate::server::Server;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(900);
/// Clients of the load.
const CLIENTS: u32 = 8;
/// Customers, unless it is said how many: the figures of WAL are for 2 GB of data.
const CUSTOMERS: u64 = 3_000_000;
/// Scale of pgbench's own tables: 1.5 GB.
const TPCB_SCALE: u64 = 100;
/// Backups that follow the first one where there are several.
const MORE_BACKUPS: u32 = 3;
const GIB: u64 = 1 << 30;

/// What is asked for.
#[derive(Debug)]
pub struct Wanted {
    /// How long the load is.
    pub seconds: u64,
    /// pgbench's own transactions, instead of the loyalty workload.
    pub tpcb: bool,
    /// The first vacuum of the tables falls into the load.
    pub first_vacuum: bool,
    /// Customers of the loyalty workload.
    pub customers: Option<u64>,
    /// Beside pgBackRest.
    pub peers: bool,
    /// More than one way to archive.
    pub variants: bool,
    /// Recover what was archived, so often.
    pub recoveries: usize,
    /// Read it at so many random places.
    pub random_reads: usize,
}

/// One way to archive the load.
pub struct Variant {
    /// Which.
    pub name: &'static str,
    /// Its repository.
    pub place: Place,
    slot: String,
    options: Vec<String>,
    /// Its receiver, and what that takes; it runs during the load, or catches up afterwards.
    live: Option<(Process, Meter)>,
    /// The most anonymous memory that its receivers took.
    anon_bytes: u64,
}

impl Variant {
    /// Begins to archive, and takes a backup if it is to have one.
    fn begin(server: &Server, name: &'static str, options: &[&str], backup: bool, live: bool) -> Variant {
        let place = Place::init();
        let slot = format!("walden_{}", name.replace([' ', '%'], "_"));
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        let mut variant = Variant { name, place, slot, options, live: None, anon_bytes: 0 };
        variant.receive(server);
        if backup {
            variant.backup(server);
        }
        if !live {
            variant.stop();
        }
        variant
    }

    fn receive(&mut self, server: &Server) {
        let mut more = vec!["--slot", &self.slot];
        more.extend(self.options.iter().map(String::as_str));
        let receive = crate::start_receive(server, &self.place, &more);
        let active = format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{}'", self.slot);
        server.pg.wait_for(&active, "t", SOON);
        let meter = Meter::start(Whom::Family(receive.pid()));
        self.live = Some((receive, meter));
    }

    fn stop(&mut self) {
        if let Some((receive, meter)) = self.live.take() {
            self.anon_bytes = self.anon_bytes.max(meter.stop().anon_bytes);
            crate::stop_receive(receive);
        }
    }

    fn backup(&self, server: &Server) {
        timed(&mut self.place.command_for(&server.pg, &["backup", "--slot", &self.slot]));
    }

    /// Archives everything up to `end`, and compacts it; what compacting took that was left to do.
    fn finish(&mut self, server: &Server, end: u64) -> Taken {
        if self.live.is_none() {
            self.receive(server);
        }
        let there = format!(
            "SELECT restart_lsn - '0/0' >= {end} FROM pg_replication_slots WHERE slot_name = '{}'",
            self.slot
        );
        server.pg.wait_for(&there, "t", SOON);
        self.stop();
        server.drop_slot(&self.slot);
        let mut compact = vec!["compact", "--all"];
        compact.extend(self.options.iter().map(String::as_str));
        timed(&mut self.place.command(&compact)).0
    }

    /// Bytes of the repository that each GiB of WAL from `start` to `end` takes, as it is spread over its segments.
    fn stored_by_gib(&self, start: u64, end: u64) -> Vec<u64> {
        let snapshot = Archive::open(&self.place).snapshot("shop").expect("a cluster");
        let part = |gib: u64| {
            let (from, to) = (start + gib * GIB, (start + (gib + 1) * GIB).min(end));
            let of = |entry: &walden::format::index::WalEntry| {
                let common = entry.end.get().min(to).saturating_sub(entry.start.get().max(from));
                let share = common as f64 / (entry.end.get() - entry.start.get()) as f64;
                (entry.object_len as f64 * share) as u64
            };
            snapshot.index.wal.iter().map(of).sum()
        };
        (0..(end - start).div_ceil(GIB)).map(part).collect()
    }
}

/// Archives one load in several ways, and says what each takes.
pub fn wal_stored(wanted: &Wanted) {
    let customers = wanted.customers.unwrap_or(CUSTOMERS);
    let server = Server::filled(customers, wanted.first_vacuum);
    if wanted.tpcb {
        server.fill_tpcb(TPCB_SCALE);
    }
    let data_bytes = server.data_bytes();
    let context = [
        ("workload", json!(if wanted.tpcb { "pgbench" } else { "loyalty" })),
        ("seconds", json!(wanted.seconds)),
        ("first_vacuum", json!(wanted.first_vacuum)),
        ("data_bytes", json!(data_bytes)),
    ];
    figure("wal_stored_load", "this run", 0.0, "", &context);
    let share = |percent: u64| (data_bytes * percent / 100).to_string();
    let caches = [share(2), share(10), share(50)];
    let mut variants = vec![Variant::begin(&server, "deltas", &[], true, true)];
    if wanted.recoveries > 0 || wanted.variants {
        variants.push(Variant::begin(&server, "plain", &["--wal-deltas", "off"], true, false));
    }
    if wanted.variants {
        variants.push(Variant::begin(&server, "no backup", &[], false, false));
        for (name, cache) in ["cache 2 %", "cache 10 %", "cache 50 %"].into_iter().zip(&caches) {
            variants.push(Variant::begin(&server, name, &["--delta-cache", cache], true, false));
        }
        variants.push(Variant::begin(&server, "more backups", &[], true, true));
    }
    let peer = wanted.peers.then(|| PgBackRest::configure(&server));
    if let Some(peer) = &peer {
        peer.begin(&server);
    }

    let pg = &server.pg;
    let number = |sql: &str| pg.sql(sql).parse::<u64>().expect("a position");
    pg.sql("SELECT pg_switch_wal()");
    let start = number("SELECT pg_current_wal_lsn() - '0/0'");
    load(&server, wanted, variants.iter().find(|variant| variant.name == "more backups"));
    pg.sql("SELECT pg_switch_wal()");
    // Whole files: the server may have begun another one already.
    let end = number("SELECT pg_current_wal_lsn() - '0/0'") >> 24 << 24;

    let zstd = by_zstd(&server, start, end);
    let archived = peer.as_ref().map(|peer| by_gib(&peer.end_archive(&server), start, end));
    for (name, stored) in [("zstd -3 per WAL file", Some(&zstd)), ("pgbackrest", archived.as_ref())] {
        if let Some(stored) = stored {
            tell(name, stored, (start, end), &zstd, &[]);
        }
    }
    for variant in &mut variants {
        let taken = variant.finish(&server, end);
        let wal = &variant.place.json(&["info"])["clusters"][0]["wal"];
        let stored = variant.stored_by_gib(start, end);
        let mut context = delta_context(wal, &taken);
        context.push(("receive_anon_mib_max", json!(variant.anon_bytes >> 20)));
        tell(variant.name, &stored, (start, end), &zstd, &context);
    }
    if wanted.random_reads > 0 {
        random_reads(&variants[0].place, start, end, wanted.random_reads);
    }
    if wanted.recoveries > 0 {
        let [deltas, plain, ..] = variants.as_slice() else { unreachable!("both were begun") };
        recovery(&server, [deltas, plain], peer.as_ref(), wanted.recoveries, end - start);
    }
    server.stop();
}

/// The load, with backups at even distances in it where `more_backups` is.
fn load(server: &Server, wanted: &Wanted, more_backups: Option<&Variant>) {
    let seconds = wanted.seconds.to_string();
    server.autovacuum(true);
    let mut load = match wanted.tpcb {
        true => server.load_tpcb(&seconds, CLIENTS),
        false => server.load(server.customers, &seconds, CLIENTS),
    };
    let began = Instant::now();
    for number in 1..=MORE_BACKUPS {
        let Some(variant) = more_backups else { break };
        let at = Duration::from_secs(wanted.seconds) * number / (MORE_BACKUPS + 1);
        std::thread::sleep(at.saturating_sub(began.elapsed()));
        variant.backup(server);
    }
    let ended = load.wait(Duration::from_secs(wanted.seconds) + SOON);
    assert!(ended.is_some_and(|status| status.success()), "pgbench: {ended:?}");
}

/// What the deltas of a cluster are made of.
fn delta_context(wal: &Value, compacting: &Taken) -> Vec<(&'static str, Value)> {
    let bytes = |of: &Value, name: &str| of[name].as_u64().unwrap_or(0);
    let deltas = &wal["deltas"];
    let share = |part: u64, whole: u64| json!(rounded(part as f64 / whole.max(1) as f64));
    vec![
        ("image_share_of_raw", share(bytes(deltas, "image_bytes_raw"), bytes(wal, "bytes_raw"))),
        (
            "image_bytes_stored_share",
            share(bytes(deltas, "image_bytes_stored"), bytes(deltas, "image_bytes_raw")),
        ),
        ("record_bytes_stored", deltas["record_bytes_stored"].clone()),
        ("hit_rate", deltas["hit_rate"].clone()),
        ("compact_rest_cpu_seconds", json!(rounded(compacting.cpu_seconds))),
    ]
}

/// Stored bytes over raw bytes and over zstd's, whole and GiB by GiB.
fn tell(name: &str, stored: &[u64], (start, end): (u64, u64), zstd: &[u64], more: &[(&'static str, Value)]) {
    let (raw, sum) = ((end - start) as f64, stored.iter().sum::<u64>() as f64);
    let raw_of = |gib: usize| GIB.min(end - start - gib as u64 * GIB) as f64;
    let shares = stored.iter().enumerate().map(|(gib, bytes)| json!(rounded(*bytes as f64 / raw_of(gib))));
    let mut context = vec![
        ("bytes_raw", json!(end - start)),
        ("bytes_stored", json!(sum)),
        ("of_zstd", json!(rounded(sum / zstd.iter().sum::<u64>() as f64))),
        ("by_gib", shares.collect()),
    ];
    context.extend(more.iter().cloned());
    figure("wal_stored_share", name, sum / raw, "of raw", &context);
}

/// Bytes by GiB of the WAL files from `start` to `end`, each compressed by zstd at level 3.
fn by_zstd(server: &Server, start: u64, end: u64) -> Vec<u64> {
    let dir = server.pg.data_dir().join("pg_wal");
    let packed = |name: &str| {
        let file = std::fs::read(dir.join(name)).expect("a WAL file that was kept");
        zstd::bulk::compress(&file, 3).expect("room").len() as u64
    };
    by_gib(&packed, start, end)
}

/// Bytes of the WAL files from `start` to `end`, by GiB.
fn by_gib(bytes_of: &dyn Fn(&str) -> u64, start: u64, end: u64) -> Vec<u64> {
    let mut sums = vec![0; (end - start).div_ceil(GIB) as usize];
    let mut at = start;
    while at < end {
        sums[((at - start) / GIB) as usize] += bytes_of(&segment_name(at));
        at = (at >> 24 << 24) + (1 << 24);
    }
    sums
}
