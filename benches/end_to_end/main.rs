//! The main job measured on a real server: catching up, how soon a commit is acknowledged, backup, restore, memory;
//! and what PostgreSQL waits for a WAL segment that is there.
//! One line of JSON a figure on standard output; progress on standard error.
//!
//! ```text
//! cargo bench --bench end_to_end -- [--customers N] [--wal-mb N] [--rounds N] [--seconds N] [--only NAME[,NAME]] [--server DIR] [--peers]
//!                                   [--pgbench] [--first-vacuum] [--one-way]
//! ```
//!
//! `--server DIR` keeps the server's data directory there for the next run. `--peers` measures pgBackRest on the same
//! server in the same run (`tools/bench-peers` installs it). Names: catch_up, acknowledge, backup, restore, wal_fetch; and, on a server
//! of their own with a load of `--seconds` (90 by default) after a backup: wal_stored (`--one-way`: archived in the default way only;
//! `--pgbench`: pgbench's own transactions; `--first-vacuum`: the tables are as they were filled, and autovacuum, which begins with the
//! load, logs an image of each of their pages), recovery, random_reads. Everything shares the machine with the server, as it says.

mod common;
mod meter;
mod peers;
mod random_reads;
mod recovery;
mod server;
mod stored;
mod wal_fetch;

use common::pg::{self, Process};
use common::walden::Place;
use meter::{Meter, Taken, Whom, assert_ended_well, figure, median, quantile, rounded, timed};
use serde_json::{Value, json};
use server::{Server, Size};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use walden::base::Lsn;
use walden::net::{ConnectOptions, Connection, ConnectionKind};

const LIMIT: Duration = Duration::from_secs(900);

/// What is asked for.
#[derive(Debug, Clone)]
struct Options {
    customers: Option<u64>,
    wal_bytes: u64,
    rounds: usize,
    seconds: u64,
    only: Vec<String>,
    server: Option<PathBuf>,
    peers: bool,
    tpcb: bool,
    first_vacuum: bool,
    one_way: bool,
}

/// Customers in the server that most is measured on: 3 GB of data.
const CUSTOMERS: u64 = 4_700_000;
/// Places where WAL is read at random.
const RANDOM_READS: usize = 15;

fn options() -> Options {
    let mut options = Options {
        customers: None,
        wal_bytes: 2_200_000_000,
        rounds: 3,
        seconds: 90,
        only: Vec::new(),
        server: None,
        peers: false,
        tpcb: false,
        first_vacuum: false,
        one_way: false,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().unwrap_or_else(|| panic!("{argument} takes a value"));
        let number = |text: String| text.parse::<u64>().unwrap_or_else(|_| panic!("{text} is not a number"));
        match argument.as_str() {
            "--customers" => options.customers = Some(number(value())),
            "--wal-mb" => options.wal_bytes = number(value()) * 1_000_000,
            "--rounds" => options.rounds = number(value()).max(1) as usize,
            "--seconds" => options.seconds = number(value()).max(1),
            "--only" => options.only = value().split(',').map(str::to_owned).collect(),
            "--server" => options.server = Some(PathBuf::from(value())),
            "--peers" => options.peers = true,
            "--pgbench" => options.tpcb = true,
            "--first-vacuum" => options.first_vacuum = true,
            "--one-way" => options.one_way = true,
            // What cargo bench says to every benchmark.
            "--bench" => {}
            other => panic!("unknown option {other}; the header of benches/end_to_end/main.rs lists them"),
        }
    }
    options
}

fn main() {
    let options = options();
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|only| only == name);
    assert!(
        !(options.tpcb && options.first_vacuum),
        "pgbench -i vacuums its tables: --pgbench goes without --first-vacuum"
    );
    if wanted("wal_fetch") {
        wal_fetch::wal_fetch();
    }
    if ["wal_stored", "recovery", "random_reads"].into_iter().any(wanted) {
        stored::wal_stored(&stored::Wanted {
            seconds: options.seconds,
            tpcb: options.tpcb,
            first_vacuum: options.first_vacuum,
            customers: options.customers,
            peers: options.peers,
            variants: wanted("wal_stored") && !options.one_way,
            recoveries: if wanted("recovery") { options.rounds } else { 0 },
            random_reads: if wanted("random_reads") { RANDOM_READS } else { 0 },
        });
    }
    if !["catch_up", "acknowledge", "backup", "restore"].into_iter().any(wanted) {
        return;
    }
    let size = Size { customers: options.customers.unwrap_or(CUSTOMERS), wal_bytes: options.wal_bytes };
    let server = Server::start(&size, options.server.as_deref());
    let peers = options.peers.then(|| peers::PgBackRest::configure(&server));
    let context = [
        ("server", json!(format!("PostgreSQL {}", server.pg.sql("SHOW server_version")))),
        ("cores", json!(std::thread::available_parallelism().map_or(0, usize::from))),
        ("data_bytes", json!(server.data_bytes())),
        ("wal_bytes", json!(server.wal_end - server.wal_start)),
        ("customers", json!(server.customers)),
        ("peer", json!(peers.as_ref().map(|peer| peer.version.clone()))),
    ];
    figure("machine", "this run", 0.0, "", &context);
    if wanted("catch_up") {
        catch_up(&server, options.rounds, peers.as_ref());
    }
    if wanted("acknowledge") {
        for ack in ["journal", "object"] {
            let without = acknowledge(&server, ack, "off");
            let with = acknowledge(&server, ack, "on");
            let name = format!("acknowledge_{ack}_p99_of_that_without_deltas");
            figure(&name, "walden", with / without, "times", &[]);
        }
    }
    if wanted("backup") || wanted("restore") {
        backup_and_restore(&server, options.rounds, peers.as_ref());
    }
    server.stop();
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn took(taken: &Taken) -> Vec<(&'static str, Value)> {
    vec![
        ("seconds", json!(rounded(taken.seconds))),
        ("cpu_seconds", json!(rounded(taken.cpu_seconds))),
        ("anon_mib_max", json!(taken.anon_bytes >> 20)),
    ]
}

fn start_receive(server: &Server, place: &Place, more: &[&str]) -> Process {
    let mut command = place.command_for(&server.pg, &[&["receive"], more].concat());
    let log = std::fs::File::create(place.path("receive.log")).expect("a log");
    command.stdout(log.try_clone().expect("a log")).stderr(log);
    Process::start(command)
}

fn stop_receive(mut receive: Process) {
    receive.signal(rustix::process::Signal::TERM);
    assert_ended_well("walden receive", receive.wait(Duration::from_secs(60)));
}

/// From nothing to everything acknowledged from the repository, process start and key derivation included.
fn catch_up(server: &Server, rounds: usize, peer: Option<&peers::PgBackRest>) {
    let wal_bytes = server.wal_end - server.wal_start;
    let (mut walden, mut archived) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let place = Place::init();
        server.slot("walden_shop");
        let sender = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'walden_shop' AND active";
        let began = Instant::now();
        let receive = start_receive(server, &place, &[]);
        let meter = Meter::start(Whom::Family(receive.pid()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (streaming, sender_cpu) = runtime.block_on(async {
            let mut sql = connect(server).await;
            let mut streaming = None;
            let mut sender_pid = 0;
            loop {
                if streaming.is_none()
                    && let Some(pid) = answer(&mut sql, sender).await
                {
                    sender_pid = pid.parse().expect("a pid");
                    streaming = Some(Instant::now());
                }
                let flushed = acknowledged(&mut sql).await;
                if flushed.is_some_and(|flushed| flushed.get() >= server.wal_end) {
                    break (streaming, meter::cpu_seconds(sender_pid));
                }
                assert!(began.elapsed() < LIMIT, "not caught up after {LIMIT:?}: {flushed:?}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let seconds = began.elapsed().as_secs_f64();
        let taken = meter.stop();
        let streamed = streaming.map_or(seconds, |at| at.elapsed().as_secs_f64());
        stop_receive(receive);
        server.drop_slot("walden_shop");
        let wal = &place.json(&["info"])["clusters"][0]["wal"];
        let mut context = took(&taken);
        context.extend([
            ("round", json!(round)),
            ("streaming_mb_per_s", json!(rounded(megabytes(wal_bytes) / streamed))),
            ("sender_cpu_seconds", json!(sender_cpu)),
            (
                "stored_share",
                json!(rounded(
                    wal["bytes_stored"].as_f64().unwrap_or(0.0) / wal["bytes_raw"].as_f64().unwrap_or(1.0)
                )),
            ),
        ]);
        figure("catch_up", "walden", megabytes(wal_bytes) / seconds, "MB/s", &context);
        walden.push(megabytes(wal_bytes) / seconds);
        if let Some(peer) = peer {
            let taken = peer.archive(server);
            let rate = megabytes(wal_bytes) / taken.seconds;
            figure("catch_up", "pgbackrest", rate, "MB/s", &took(&taken));
            archived.push(rate);
        }
    }
    summary("catch_up", "MB/s", &mut walden, &mut archived);
}

fn summary(name: &str, unit: &str, walden: &mut [f64], peer: &mut [f64]) {
    let walden = median(walden);
    let mut context = Vec::new();
    if !peer.is_empty() {
        let peer = median(peer);
        context = vec![("pgbackrest", json!(rounded(peer))), ("ratio", json!(rounded(walden / peer)))];
    }
    figure(&format!("{name}_median"), "walden", walden, unit, &context);
}

async fn connect(server: &Server) -> Connection {
    let options = ConnectOptions::parse(&server.pg.conninfo(), &|_| None).expect("a connection string");
    Connection::connect(&options, ConnectionKind::Sql, "bench").await.expect("let in")
}

async fn answer(sql: &mut Connection, query: &str) -> Option<String> {
    let rows = sql.query(query).await.expect("an answer");
    rows.first().and_then(|row| row.get(0)).map(str::to_owned)
}

/// What the receiver told the server is durable.
async fn acknowledged(sql: &mut Connection) -> Option<Lsn> {
    let query = "SELECT flush_lsn FROM pg_stat_replication WHERE application_name = 'walden_shop'";
    answer(sql, query).await?.parse().ok()
}

/// From COMMIT returned to acknowledged, under pgbench that writes as fast as it can; the 99th percentile in milliseconds.
fn acknowledge(server: &Server, ack: &str, deltas: &str) -> f64 {
    let place = Place::init();
    let journal = place.path("journal").display().to_string();
    let mut more = vec!["--ack", ack, "--wal-deltas", deltas];
    if ack == "journal" {
        more.extend(["--journal-dir", &journal]);
    }
    server.drop_slot("walden_shop");
    let receive = start_receive(server, &place, &more);
    let meter = Meter::start(Whom::Family(receive.pid()));
    let streaming = "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'walden_shop' AND state = 'streaming'";
    server.pg.wait_for(streaming, "1", Duration::from_secs(60));
    server.pg.sql("CREATE TABLE IF NOT EXISTS public.probe (at timestamptz)");
    let before = server.pg.sql(
        "SELECT pg_current_wal_lsn() - '0/0', xact_commit FROM pg_stat_database WHERE datname = 'postgres'",
    );
    let load = server.load(server.customers, "1000", 2);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    std::thread::sleep(Duration::from_secs(5));
    let mut waits = runtime.block_on(probe(server, Duration::from_secs(30)));
    drop(load);
    let after = server.pg.sql(
        "SELECT pg_current_wal_lsn() - '0/0', xact_commit FROM pg_stat_database WHERE datname = 'postgres'",
    );
    let number =
        |text: &str, at: usize| text.split('|').nth(at).and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0);
    let taken = meter.stop();
    stop_receive(receive);
    server.drop_slot("walden_shop");
    let mut context = took(&taken);
    context.extend([
        ("acknowledged_by", json!(ack)),
        ("wal_deltas", json!(deltas)),
        ("samples", json!(waits.len())),
        ("median_ms", json!(rounded(quantile(&mut waits, 0.5)))),
        ("max_ms", json!(rounded(quantile(&mut waits, 1.0)))),
        ("wal_mb_per_s", json!(rounded((number(&after, 0) - number(&before, 0)) / 1e6 / taken.seconds))),
        ("commits_per_s", json!(rounded((number(&after, 1) - number(&before, 1)) / taken.seconds))),
    ]);
    let p99 = quantile(&mut waits, 0.99);
    figure(&format!("acknowledge_{ack}_p99"), "walden", p99, "ms", &context);
    p99
}

/// Commits every 20 ms on one connection, looks every 2 ms on another what is acknowledged; milliseconds from one to the other.
async fn probe(server: &Server, length: Duration) -> Vec<f64> {
    let (mut writer, mut watcher) = (connect(server).await, connect(server).await);
    let (committed, mut commits) = tokio::sync::mpsc::unbounded_channel::<(Instant, Lsn)>();
    let writing = tokio::spawn(async move {
        let began = Instant::now();
        while began.elapsed() < length {
            writer.query("INSERT INTO public.probe VALUES (clock_timestamp())").await.expect("a commit");
            let returned = Instant::now();
            // A little later than the commit, never earlier: what is measured is an upper bound.
            let end = answer(&mut writer, "SELECT pg_current_wal_flush_lsn()").await.expect("a position");
            committed.send((returned, end.parse().expect("a position"))).ok();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut waiting: VecDeque<(Instant, Lsn)> = VecDeque::new();
    let mut waits = Vec::new();
    let mut ended = false;
    while !ended || !waiting.is_empty() {
        loop {
            match commits.try_recv() {
                Ok(commit) => waiting.push_back(commit),
                Err(error) => {
                    ended = error == tokio::sync::mpsc::error::TryRecvError::Disconnected;
                    break;
                }
            }
        }
        let durable = acknowledged(&mut watcher).await.unwrap_or(Lsn::ZERO);
        while let Some((returned, _)) = waiting.front().filter(|(_, end)| *end <= durable) {
            waits.push(returned.elapsed().as_secs_f64() * 1e3);
            waiting.pop_front();
        }
        let oldest = waiting.front().map_or(Duration::ZERO, |(returned, _)| returned.elapsed());
        assert!(oldest < Duration::from_secs(60), "a commit is not acknowledged after {oldest:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    writing.await.expect("the writer ends");
    waits
}

/// A full backup into an empty repository, a receiver beside it; then restores of it, each after a plain copy of the same files.
fn backup_and_restore(server: &Server, rounds: usize, peer: Option<&peers::PgBackRest>) {
    let (mut walden, mut peers) = (Vec::new(), Vec::new());
    let mut kept = None;
    for round in 0..rounds {
        let place = Place::init();
        server.drop_slot("walden_shop");
        let receive = start_receive(server, &place, &[]);
        let streaming = "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'walden_shop'";
        server.pg.wait_for(streaming, "1", Duration::from_secs(60));
        server.pg.sql("CHECKPOINT");
        drop_caches();
        let (taken, printed) = timed(&mut place.command_for(&server.pg, &["--json", "backup"]));
        let backup: Value = serde_json::from_str(&printed).expect("JSON");
        let raw = backup["backup"]["bytes_raw"].as_u64().expect("its size");
        let mut context = took(&taken);
        context.extend([
            ("round", json!(round)),
            ("bytes_raw", json!(raw)),
            ("bytes_stored", backup["backup"]["bytes_stored"].clone()),
        ]);
        figure("backup", "walden", megabytes(raw) / taken.seconds, "MB/s", &context);
        walden.push(megabytes(raw) / taken.seconds);
        if let Some(peer) = peer {
            drop_caches();
            let taken = peer.backup(server);
            figure("backup", "pgbackrest", megabytes(raw) / taken.seconds, "MB/s", &took(&taken));
            peers.push(megabytes(raw) / taken.seconds);
        }
        stop_receive(receive);
        server.drop_slot("walden_shop");
        kept = Some((place, raw));
    }
    summary("backup", "MB/s", &mut walden, &mut peers);
    let (place, raw) = kept.expect("at least one round");

    // The same files for everybody: what walden restores, copied.
    let source = place.path("reference");
    restore(&place, &source);
    let (mut walden, mut copies, mut peers) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        drop_caches();
        let copy = place.path("copy");
        let script = format!("cp -r '{}' '{}' && sync", source.display(), copy.display());
        let (taken, _) = timed(Command::new("sh").arg("-c").arg(script));
        figure("restore", "cp -r and sync", megabytes(raw) / taken.seconds, "MB/s", &took(&taken));
        copies.push(taken.seconds);
        std::fs::remove_dir_all(&copy).expect("the copy goes");

        drop_caches();
        let target = place.path("restored");
        let taken = restore(&place, &target);
        let mut context = took(&taken);
        context.push(("round", json!(round)));
        figure("restore", "walden", megabytes(raw) / taken.seconds, "MB/s", &context);
        walden.push(taken.seconds);
        std::fs::remove_dir_all(&target).expect("the restored directory goes");

        if let Some(peer) = peer {
            drop_caches();
            let taken = peer.restore();
            figure("restore", "pgbackrest", megabytes(raw) / taken.seconds, "MB/s", &took(&taken));
            peers.push(taken.seconds);
        }
    }
    let seconds = median(&mut walden);
    let mut context = vec![("seconds", json!(rounded(seconds)))];
    if !peers.is_empty() {
        context.push(("pgbackrest_seconds", json!(rounded(median(&mut peers)))));
    }
    figure("restore_of_cp_median", "walden", median(&mut copies) / seconds, "of cp's speed", &context);
}

/// To the backup's end, until the command says it is done: everything written and synced.
fn restore(place: &Place, target: &Path) -> Taken {
    let target = target.display().to_string();
    timed(&mut place.command(&["restore", "--target-dir", &target, "--immediate"])).0
}

/// Reads come from the disk, as they do after an accident. Only root may ask for that; otherwise they come from memory for all.
fn drop_caches() {
    timed(&mut Command::new("sync"));
    if pg::is_root() {
        std::fs::write("/proc/sys/vm/drop_caches", "3").ok();
    }
}
