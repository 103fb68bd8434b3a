//! The clock of a live server set back an hour between two commits: a time that was passed more than once is refused with both
//! positions and the commits between; every other time, and the position that is asked for instead, is restored to the row.

mod common;

use common::load::time;
use common::pg::{Pg, majors, run};
use common::walden::{Place, finish};
use rustix::process::Signal;
use std::fs;
use std::process::Command;
use std::time::Duration;
use walden::base::Timestamp;

const LIMIT: Duration = Duration::from_secs(60);

/// A server whose clock can be set while it runs.
fn with_a_clock(major: u32, place: &Place) -> Pg {
    let library = place.path("shift.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clock/shift.c");
    run(Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
        .arg(&library)
        .arg(source));
    set_clock(place, 0);
    let mut pg = Pg::builder(major).wal_segment_mib(1).option("track_commit_timestamp", "on");
    pg = pg.option("autovacuum", "off");
    let mut pg = pg.create();
    pg.set_env("LD_PRELOAD", &library.display().to_string());
    pg.set_env("WALDEN_CLOCK_SHIFT", &place.path("shift").display().to_string());
    pg.start_again();
    pg
}

/// Renamed into place: the server never reads half a number.
fn set_clock(place: &Place, seconds: i64) {
    fs::write(place.path("shift.new"), seconds.to_string()).unwrap();
    fs::rename(place.path("shift.new"), place.path("shift")).unwrap();
}

/// Commits a row; when, by the server's word.
fn insert(pg: &Pg, row: u32) -> Timestamp {
    let xid = pg.sql(&format!("INSERT INTO t VALUES ({row}) RETURNING pg_current_xact_id()"));
    time(&pg.sql(&format!(
        "SET timezone = 'UTC'; SELECT to_char(pg_xact_commit_timestamp('{xid}'::xid), 'YYYY-MM-DD HH24:MI:SS.US')"
    )))
}

#[test]
fn a_clock_that_was_set_back_is_not_guessed_around_on_14() {
    set_back_an_hour(14);
}

#[test]
fn a_clock_that_was_set_back_is_not_guessed_around_on_15() {
    set_back_an_hour(15);
}

#[test]
fn a_clock_that_was_set_back_is_not_guessed_around_on_16() {
    set_back_an_hour(16);
}

#[test]
fn a_clock_that_was_set_back_is_not_guessed_around_on_17() {
    set_back_an_hour(17);
}

#[test]
fn a_clock_that_was_set_back_is_not_guessed_around_on_18() {
    set_back_an_hour(18);
}

fn set_back_an_hour(major: u32) {
    if !majors().contains(&major) {
        return;
    }
    let place = Place::init();
    let pg = with_a_clock(major, &place);
    pg.sql("CREATE TABLE t (a int)");
    // Three hours before, so that what comes has a past inside the recovery window.
    set_clock(&place, -3 * 3600);
    let receive = place.command_for(&pg, &["receive", "--flush-interval", "100ms"]);
    let mut receiver = place.start(receive, "receive");
    pg.wait_for(
        "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'walden_shop'",
        "1",
        LIMIT,
    );
    finish(&mut place.command_for(&pg, &["backup"])).expect(0);
    let zero = insert(&pg, 0);
    set_clock(&place, 0);
    let one = insert(&pg, 1);
    let between = pg.wal_lsn();
    let two = insert(&pg, 2);
    set_clock(&place, -3600);
    let three = insert(&pg, 3);
    let four = insert(&pg, 4);
    assert!(four > three && four < one && one < two, "the clock was set back");
    set_clock(&place, 0);
    let five = insert(&pg, 5);
    pg.sql("SELECT pg_switch_wal()");
    // A clock that jumps ahead makes the server give up on its connections: the receiver comes again.
    let acknowledged = "SELECT flush_lsn >= pg_current_wal_flush_lsn() FROM pg_stat_replication \
        WHERE application_name = 'walden_shop'";
    pg.wait_for(acknowledged, "t", LIMIT);
    receiver.signal(Signal::TERM);
    assert_eq!(receiver.wait(LIMIT).expect("it stops").code(), Some(0), "{}", place.log("receive"));
    drop(pg);

    // After the first, before the second: PostgreSQL would leave out the third and fourth, which are older.
    for (moment, first_left_out) in [(one, two), (three, one)] {
        let refused = place.run(&[
            "--json",
            "restore",
            "--target-dir",
            place.path("refused").to_str().unwrap(),
            "--to-time",
            &moment.to_string(),
        ]);
        assert_eq!(refused.code, 2, "{}{}", refused.out, refused.err);
        let document: serde_json::Value = serde_json::from_str(&refused.err).unwrap();
        let said = document["error"]["message"].as_str().unwrap();
        assert!(said.contains("the clock was set back") && said.contains("--to-lsn"), "{said}");
        for commit in [three, four].iter().filter(|commit| **commit > first_left_out || **commit <= moment) {
            assert!(said.contains(&commit.to_string()), "{commit} is not among:\n{said}");
        }
        assert!(!place.path("refused").exists());
    }
    let restored = |name: &str, target: &[&str]| {
        let pg = place.restored(major, name, target);
        pg.sql("SELECT string_agg(a::text, ' ' ORDER BY a) FROM t")
    };
    assert_eq!(restored("at-lsn", &["--to-lsn", &between]), "0 1");
    assert_eq!(restored("before", &["--to-time", &zero.to_string()]), "0");
    assert_eq!(restored("after", &["--to-time", &two.to_string()]), "0 1 2 3 4");
    assert_eq!(restored("last", &["--to-time", &five.to_string()]), "0 1 2 3 4 5");
    assert_eq!(restored("latest", &["--latest"]), "0 1 2 3 4 5");
}
