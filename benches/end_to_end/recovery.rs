//! From nothing to a promoted server: restore of a backup and replay of all WAL since, from deltas, from plain frames, from
//! pgBackRest; and replay from files that lie on this disk already, which is as fast as PostgreSQL replays.

use crate::common::pg::Pg;
use crate::common::walden::Place;
use crate::meter::{figure, median, rounded};
use crate::peers::PgBackRest;
use crate::server::Server;
use crate::stored::Variant;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(3600);

/// Where a recovery gets its files and its WAL from.
enum From<'a> {
    Walden(&'a Place),
    /// Files from there, WAL from this folder.
    Folder(&'a Place, PathBuf),
    PgBackRest(&'a PgBackRest),
}

/// Recovers each way, `rounds` times in turn, and holds what is there against the server.
pub fn recovery(
    server: &Server,
    [deltas, plain]: [&Variant; 2],
    peer: Option<&PgBackRest>,
    rounds: usize,
    wal_bytes: u64,
) {
    let count = "SELECT count(*) || ' ' || (SELECT count(*) FROM customer) FROM purchase";
    let expected = server.pg.sql(count);
    let files = server.pg.data_dir().join("pg_wal");
    let mut ways = vec![
        ("deltas", From::Walden(&deltas.place)),
        ("plain", From::Walden(&plain.place)),
        ("WAL on this disk", From::Folder(&plain.place, files)),
    ];
    ways.extend(peer.map(|peer| ("pgbackrest", From::PgBackRest(peer))));
    let mut all: Vec<(Vec<f64>, Vec<f64>)> = vec![Default::default(); ways.len()];
    for round in 0..rounds {
        for ((name, from), (totals, replays)) in ways.iter().zip(&mut all) {
            crate::drop_caches();
            let (restored, replayed, found) = recover(from, count);
            assert_eq!(found, expected, "{name}");
            let context = [
                ("round", json!(round)),
                ("restore_seconds", json!(rounded(restored))),
                ("replay_mb_per_s", json!(rounded(crate::megabytes(wal_bytes) / replayed))),
            ];
            figure("recovery", name, restored + replayed, "s", &context);
            totals.push(restored + replayed);
            replays.push(crate::megabytes(wal_bytes) / replayed);
        }
    }
    let base = median(&mut all[0].0);
    for ((name, _), (totals, replays)) in ways.iter().zip(&mut all) {
        let (seconds, rate) = (median(totals), median(replays));
        let context = [
            ("replay_mb_per_s", json!(rounded(rate))),
            ("of_deltas", json!(rounded(seconds / base))),
            ("wal_bytes", json!(wal_bytes)),
        ];
        figure("recovery_median", name, seconds, "s", &context);
    }
}

/// Seconds that restoring took, and from there until the server is promoted; what it then answers to `query`.
fn recover(from: &From<'_>, query: &str) -> (f64, f64, String) {
    let began = Instant::now();
    let target = match from {
        From::Walden(place) | From::Folder(place, _) => {
            let target = place.path("recovered");
            place.ok(&["restore", "--target-dir", &text(&target)]);
            target
        }
        From::PgBackRest(peer) => {
            let target = peer.path("recovered");
            peer.restore_into(&target, "default");
            target
        }
    };
    let restored = began.elapsed().as_secs_f64();
    if let From::Walden(place) = from {
        for needed in ["passphrase", "repo"] {
            crate::common::pg::give_to_postgres(&place.path(needed));
        }
    }
    let mut pg = Pg::adopt(15, &target);
    // As the server has them: not every tool sees to it that recovery finds them.
    let settings = [
        ("fsync", "on"),
        ("shared_buffers", "512MB"),
        ("archive_mode", "off"),
        ("max_wal_senders", "20"),
        ("max_replication_slots", "20"),
    ];
    settings.into_iter().for_each(|(name, value)| pg.set_option(name, value));
    if let From::Folder(_, files) = from {
        pg.set_option("restore_command", &format!("cp {}/%f %p", files.display()));
    }
    let began = Instant::now();
    pg.launch();
    pg.wait_ready(LIMIT).unwrap_or_else(|why| panic!("{why}"));
    pg.wait_for("SELECT pg_is_in_recovery()", "f", LIMIT);
    let replayed = began.elapsed().as_secs_f64();
    let found = pg.sql(query);
    drop(pg);
    std::fs::remove_dir_all(&target).expect("the recovered directory goes");
    (restored, replayed, found)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
