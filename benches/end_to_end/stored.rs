//! What WAL takes in the repository: a load that begins right after a backup, compacted with deltas, beside zstd -3 of each WAL file
//! and pgBackRest's archive of the same files.

use crate::meter::{figure, rounded, timed};
use crate::peers::{PgBackRest, segment_name};
use crate::server::Server;
use crate::walden_place::Place;
use serde_json::{Value, json};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(600);
/// Clients of the load.
const CLIENTS: u32 = 8;

/// Loads the server for `seconds` after a backup, and says what the WAL of that takes.
pub fn wal_stored(server: &Server, seconds: u64, peer: Option<&PgBackRest>) {
    let place = Place::init();
    let pg = &server.pg;
    server.drop_slot("walden_shop");
    // Checkpoints as PostgreSQL makes them by default, and every file is still there afterwards.
    set(server, "max_wal_size", "1GB");
    set(server, "wal_keep_size", "64GB");
    if let Some(peer) = peer {
        peer.begin_archive(server);
    }
    let receive = crate::start_receive(server, &place, &[]);
    let sender = "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'walden_shop'";
    pg.wait_for(sender, "1", SOON);
    timed(&mut place.command_for(pg, &["backup"]));
    let number = |sql: &str| pg.sql(sql).parse::<u64>().expect("a position");
    pg.sql("SELECT pg_switch_wal()");
    let start = number("SELECT pg_current_wal_lsn() - '0/0'");
    let mut load = server.load(server.customers, &seconds.to_string(), CLIENTS);
    load.wait(Duration::from_secs(seconds) + SOON).expect("pgbench ends");
    pg.sql("SELECT pg_switch_wal()");
    let end = number("SELECT pg_current_wal_lsn() - '0/0'");
    let flushed = format!(
        "SELECT flush_lsn - '0/0' >= {end} FROM pg_stat_replication WHERE application_name = 'walden_shop'"
    );
    pg.wait_for(&flushed, "t", SOON);
    crate::stop_receive(receive);
    server.drop_slot("walden_shop");

    let (taken, _) = timed(&mut place.command(&["compact", "--all"]));
    let info = place.json(&["info"]);
    let wal = &info["clusters"][0]["wal"];
    let bytes = |of: &Value, name: &str| of[name].as_u64().unwrap_or(0);
    let (raw, stored) = (bytes(wal, "bytes_raw"), bytes(wal, "bytes_stored"));
    let deltas = &wal["deltas"];
    let share = |part: u64, whole: u64| json!(rounded(part as f64 / whole.max(1) as f64));
    let context = [
        ("seconds", json!(seconds)),
        ("bytes_raw", json!(raw)),
        ("bytes_stored", json!(stored)),
        ("image_share_of_raw", share(bytes(deltas, "image_bytes_raw"), raw)),
        (
            "image_bytes_stored_share",
            share(bytes(deltas, "image_bytes_stored"), bytes(deltas, "image_bytes_raw")),
        ),
        ("record_bytes_stored", deltas["record_bytes_stored"].clone()),
        ("hit_rate", deltas["hit_rate"].clone()),
        ("compact_cpu_seconds", json!(rounded(taken.cpu_seconds))),
    ];
    figure("wal_stored_share", "walden", stored as f64 / raw as f64, "of raw", &context);

    let (zstd, files) = by_zstd(server, start, end);
    let context = [("bytes_raw", json!(files)), ("bytes_stored", json!(zstd))];
    figure("wal_stored_share", "zstd -3 per WAL file", zstd as f64 / files.max(1) as f64, "of raw", &context);
    if let Some(peer) = peer {
        let stored = peer.end_archive(server, start, end);
        let context = [("bytes_raw", json!(files)), ("bytes_stored", json!(stored))];
        figure("wal_stored_share", "pgbackrest", stored as f64 / files.max(1) as f64, "of raw", &context);
    }
    set(server, "max_wal_size", "8GB");
    set(server, "wal_keep_size", "0");
}

fn set(server: &Server, name: &str, value: &str) {
    server.pg.sql(&format!("ALTER SYSTEM SET {name} = '{value}'"));
    server.pg.sql("SELECT pg_reload_conf()");
}

/// The WAL files from `start` to `end`, each compressed by zstd at level 3; bytes of that, and of the files.
fn by_zstd(server: &Server, start: u64, end: u64) -> (u64, u64) {
    let dir = server.pg.data_dir().join("pg_wal");
    let (mut packed, mut raw) = (0, 0);
    let mut at = start;
    while at < end {
        let file = std::fs::read(dir.join(segment_name(at))).expect("a WAL file that was kept");
        raw += file.len() as u64;
        packed += zstd::bulk::compress(&file, 3).expect("room").len() as u64;
        at = (at >> 24 << 24) + (1 << 24);
    }
    (packed, raw)
}
