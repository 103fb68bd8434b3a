//! Bad input, through the binary: each a clear error with its exit code, nothing lost, nothing half written.

mod common;

use common::archive::Told;
use common::pg::{Pg, wait_until};
use common::stores::StoreServer;
use common::walden::{Ended, Place, files, finish};
use rustix::process::Signal;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use walden::base::Lsn;

const LIMIT: Duration = Duration::from_secs(60);

/// A server, and a repository with a backup of it and some WAL past that; nobody receives any more.
fn archived() -> (Pg, Place) {
    let pg = Pg::builder(15).wal_segment_mib(1).option("wal_keep_size", "1GB").start();
    pg.sql("CREATE TABLE t (a int)");
    let place = Place::init();
    let told = Told::watch(&pg);
    let receive = place.command_for(&pg, &["receive", "--flush-interval", "20ms"]);
    let mut receiver = place.start(receive, "receive");
    for row in 0..10 {
        pg.sql(&format!("INSERT INTO t VALUES ({row})"));
        let end: Lsn = pg.sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap();
        assert!(wait_until(LIMIT, || told.of("walden_shop") >= end), "{}", place.log("receive"));
        if row == 4 {
            finish(&mut place.command_for(&pg, &["backup"])).expect(0);
        }
    }
    receiver.signal(Signal::TERM);
    assert_eq!(receiver.wait(LIMIT).expect("it stops").code(), Some(0));
    (pg, place)
}

fn restore(place: &Place, args: &[&str]) -> Ended {
    let target = place.path("target").display().to_string();
    place.run(&[&["restore", "--target-dir", &target], args].concat())
}

#[test]
fn a_wrong_passphrase_opens_nothing_and_changes_nothing() {
    let (pg, place) = archived();
    let before = files(&place.path("repo"));
    let target = place.path("target").display().to_string();
    for args in [
        &["restore", "--target-dir", &target][..],
        &["receive"],
        &["backup"],
        &["info"],
        &["log"],
        &["verify"],
        &["compact", "--all"],
        &["gc"],
        &["check"],
    ] {
        let mut command = place.command_for(&pg, args);
        command.env_remove("WALDEN_PASSPHRASE_FILE").args(["--passphrase-command", "echo battery-staple"]);
        let ended = finish(&mut command);
        assert_eq!(ended.code, 5, "{args:?}: {}{}", ended.out, ended.err);
    }
    assert_eq!(files(&place.path("repo")), before);
    assert!(!place.path("target").exists());
}

#[test]
fn targets_outside_the_window_are_refused_with_the_window() {
    let (pg, place) = archived();
    let info = place.json(&["info"]);
    let window = &info["clusters"][0]["window"];
    // Seconds are enough to recognise the moments by.
    let moment = |name: &str| window[name].as_str().unwrap()[..19].replace('T', " ");
    for target in [
        &["--to-time", "2001-01-01 00:00:00+00"][..],
        &["--to-time", "2201-01-01 00:00:00+00"],
        &["--to-lsn", "0/10"],
        &["--to-lsn", "FF/0"],
        &["--to-xid", "4000000000"],
        &["--to-name", "nobody made this"],
    ] {
        let refused = restore(&place, target);
        assert_eq!(refused.code, 3, "{target:?}: {}{}", refused.out, refused.err);
        for part in ["is outside the recovery window", &moment("start"), &moment("end")] {
            assert!(refused.err.contains(part), "{target:?}, {part}: {}", refused.err);
        }
        assert!(!place.path("target").exists(), "{target:?}");
    }

    // What lies in the way stays as it is, with --force too when it is no data directory.
    fs::create_dir(place.path("target")).unwrap();
    fs::write(place.path("target/precious"), "1").unwrap();
    for args in [&["--latest"][..], &["--latest", "--force"]] {
        let refused = restore(&place, args);
        assert_eq!(refused.code, 7, "{args:?}: {}{}", refused.out, refused.err);
        assert_eq!(files(&place.path("target")), [(place.path("target/precious"), b"1".to_vec())]);
    }

    // A slot that somebody reads is not dropped.
    let reader =
        pg.spawn("pg_receivewal", &["-n", "-S", "walden_shop", "-D", pg.side_dir("wal").to_str().unwrap()]);
    pg.wait_for("SELECT active FROM pg_replication_slots", "t", LIMIT);
    let refused = finish(&mut place.command_for(&pg, &["slot", "drop"]));
    assert_eq!(refused.code, 7, "{}", refused.err);
    assert!(refused.err.contains("walden_shop is in use"), "{}", refused.err);
    assert_eq!(pg.sql("SELECT count(*) FROM pg_replication_slots"), "1");
    drop(reader);
}

#[test]
fn a_missing_object_of_a_backup_is_named_and_never_passed_over() {
    let (_pg, place) = archived();
    let objects = |folder: &str| {
        let found = files(&place.path("repo/clusters/shop").join(folder));
        found.into_iter().map(|(path, bytes)| (bytes.len(), path)).collect::<Vec<_>>()
    };
    let largest = objects("segments").into_iter().max().unwrap().1;
    let away = place.path("away");
    fs::rename(&largest, &away).unwrap();
    let name = PathBuf::from(largest.file_name().unwrap()).display().to_string();
    let damaged = restore(&place, &["--latest"]);
    assert_eq!(damaged.code, 4, "{}: {}{}", largest.display(), damaged.out, damaged.err);
    assert!(damaged.err.contains(&name), "{name}: {}", damaged.err);
    assert!(!place.path("target/global/pg_control").exists(), "nobody can start it");
    assert_eq!(place.run(&["verify"]).code, 4, "{}", largest.display());
    fs::rename(&away, &largest).unwrap();
    fs::remove_dir_all(place.path("target")).ok();
    let restored = place.restored(15, "whole", &["--latest"]);
    assert_eq!(restored.sql("SELECT count(*) FROM t"), "10");
}

#[test]
fn a_flush_object_lost_from_the_middle_is_not_taken_for_the_end_of_wal() {
    let (_pg, place) = archived();
    let mut flushes = files(&place.path("repo/clusters/shop/wal"));
    flushes.sort();
    let (lost, _) = &flushes[flushes.len() - 5];
    fs::remove_file(lost).unwrap();
    let refused = restore(&place, &["--latest"]);
    assert_eq!(refused.code, 4, "{}{}", refused.out, refused.err);
    let number = lost.file_name().unwrap().to_str().unwrap();
    assert!(refused.err.contains(&format!("{number}\n  found: it is missing")), "{}", refused.err);
    assert_eq!(place.run(&["verify"]).code, 4);
    // What lies before it is restored when that is asked for.
    let end = refused.err.split("--to-lsn ").nth(1).unwrap().split_whitespace().next().unwrap();
    let restored = place.restored(15, "before", &["--to-lsn", end]);
    let rows: u32 = restored.sql("SELECT count(*) FROM t").parse().unwrap();
    assert!((5..10).contains(&rows), "{rows}");
    // Recorded, it is a gap like any other.
    let dry = place.run(&["repair", "wal", "--dry-run"]);
    assert!(dry.code == 0 && dry.out.contains(number), "{}{}", dry.out, dry.err);
    assert_eq!(place.run(&["verify"]).code, 4, "nothing was changed");
    let recorded = place.run(&["repair", "wal"]);
    assert!(recorded.code == 0 && recorded.out.contains("gap"), "{}{}", recorded.out, recorded.err);
    let verified = place.run(&["verify"]);
    assert_eq!(verified.code, 0, "{}{}", verified.out, verified.err);
    let refused = restore(&place, &["--latest"]);
    assert_eq!(refused.code, 3, "{}{}", refused.out, refused.err);
}

#[test]
fn a_store_that_overwrites_is_refused_by_init() {
    let Some(store) = StoreServer::nanio() else { return };
    let mut place = Place::new();
    let keys = "[default]\naws_access_key_id = testkey\naws_secret_access_key = testsecret\n";
    let credentials = place.write_private("credentials", keys);
    place.repo = format!("{}&credentials_file={}", store.url("archive"), credentials.display());
    let refused = place.run(&["init"]);
    assert_eq!(refused.code, 9, "{}{}", refused.out, refused.err);
    assert!(refused.err.contains("hint: walden rests on conditional creation"), "{}", refused.err);
    let there = place.run(&["info"]);
    assert_eq!(there.code, 6, "nothing was made: {}{}", there.out, there.err);
}
