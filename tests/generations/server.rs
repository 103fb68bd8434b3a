//! A real pg_upgrade: what was archived before it and after it comes back, each from the server that there was.

use crate::common::pg::{Pg, Stop, binary, majors, postgres_command, run, temp_dir, wait_until};
use crate::common::walden::Place;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// Starts `walden receive` beside `pg`.
fn receive(place: &Place, pg: &Pg, name: &str) -> crate::common::pg::Process {
    place.start(place.command_for(pg, &["receive", "--cluster", "shop", "--flush-interval", "200ms"]), name)
}

fn acknowledged(pg: &Pg) {
    let sql = "SELECT coalesce(bool_and(flush_lsn >= pg_current_wal_flush_lsn()), false) FROM pg_stat_replication \
               WHERE application_name = 'walden_shop'";
    pg.wait_for(sql, "t", LIMIT);
}

fn now(pg: &Pg) -> String {
    pg.sql("SET timezone = 'UTC'; SELECT to_char(clock_timestamp(), 'YYYY-MM-DD HH24:MI:SS.US+00')")
}

fn rows(pg: &Pg) -> String {
    pg.sql("SELECT count(*) || ' ' || coalesce(sum(a), 0) FROM t")
}

#[test]
fn pg_upgrade_begins_a_generation_and_both_can_be_restored() {
    let installed = majors();
    let (Some(&from), Some(&to)) = (installed.first(), installed.iter().rfind(|major| **major <= 17)) else {
        panic!("no PostgreSQL is installed");
    };
    assert!(from < to, "two major versions are needed, {installed:?} are there");
    let place = Place::init();
    let mut old = Pg::builder(from).wal_segment_mib(1).option("wal_keep_size", "128MB").start();
    old.sql("CREATE TABLE t (a int)");
    let mut receiving = receive(&place, &old, "receive-old");
    wait_until(LIMIT, || place.log("receive-old").contains("streaming"));
    let ran = place.command_for(&old, &["backup", "--cluster", "shop"]).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    old.sql("INSERT INTO t SELECT generate_series(1, 1000)");
    let before_rows = rows(&old);
    let before = now(&old);
    std::thread::sleep(Duration::from_millis(1100));
    old.sql("INSERT INTO t SELECT generate_series(1001, 1500)");
    acknowledged(&old);
    // The receiver sees the shutdown to its end.
    old.stop(Stop::Fast);
    let mut new = Pg::builder(to).wal_segment_mib(1).create();
    upgrade_files(&old, &new);
    new.start_again();

    let refused =
        crate::common::walden::finish(&mut place.command_for(&new, &["receive", "--cluster", "shop"]));
    assert!(refused.err.contains("walden cluster upgrade"), "{}", refused.err);
    assert_eq!(refused.code, 11, "{}", refused.err);
    let done = crate::common::walden::finish(
        &mut place.command_for(&new, &["cluster", "upgrade", "--cluster", "shop", "--json"]),
    );
    assert_eq!(done.code, 0, "{}", done.err);
    let done: serde_json::Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!((&done["begun"], &done["whole"]), (&true.into(), &true.into()), "{done}");
    assert_eq!(done["after"]["generation"], 2);
    // It never comes back to a server that is over; it is killed, since its server is gone for good.
    receiving.signal(rustix::process::Signal::TERM);
    receiving.wait(LIMIT);

    let mut receiving = receive(&place, &new, "receive-new");
    wait_until(LIMIT, || place.log("receive-new").contains("streaming"));
    let between = now(&new);
    new.sql("INSERT INTO t SELECT generate_series(1501, 1600)");
    let ran = place.command_for(&new, &["backup", "--cluster", "shop"]).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    new.sql("INSERT INTO t SELECT generate_series(1601, 2000)");
    let after_rows = rows(&new);
    let after = now(&new);
    std::thread::sleep(Duration::from_millis(1100));
    new.sql("INSERT INTO t SELECT generate_series(2001, 2010)");
    acknowledged(&new);
    receiving.signal(rustix::process::Signal::TERM);
    assert!(receiving.wait(LIMIT).unwrap().success(), "{}", place.log("receive-new"));

    let listed = place.json(&["cluster", "list"]);
    let generations = listed["clusters"][0]["generations"].as_array().unwrap();
    assert_eq!(generations.len(), 2, "{listed}");
    assert_eq!((&generations[0]["major_version"], &generations[0]["backups"]), (&from.into(), &1.into()));
    assert_eq!((&generations[1]["major_version"], &generations[1]["backups"]), (&to.into(), &1.into()));
    let info = place.json(&["info", "--cluster", "shop"]);
    assert_eq!(info["clusters"][0]["older_generations"][0]["major_version"], from, "{info}");

    let restored = place.restored(from, "before", &["--cluster", "shop", "--to-time", &before]);
    assert_eq!(rows(&restored), before_rows);
    drop(restored);
    let restored = place.restored(to, "after", &["--cluster", "shop", "--to-time", &after]);
    assert_eq!(rows(&restored), after_rows);
    drop(restored);
    let target = place.path("between").display().to_string();
    let refused =
        place.run(&["restore", "--cluster", "shop", "--target-dir", &target, "--to-time", &between]);
    assert_eq!(refused.code, 3, "{}", refused.err);
    let (old_name, new_name) =
        (format!("generation 1 (PostgreSQL {from})"), format!("generation 2 (PostgreSQL {to})"));
    assert!(refused.err.contains(&old_name) && refused.err.contains(&new_name), "{}", refused.err);
    let verified = place.run(&["verify"]);
    assert_eq!(verified.code, 0, "{}{}", verified.out, verified.err);

    // And the end of it all.
    let refused = place.run(&["cluster", "delete", "shop"]);
    assert!(refused.code != 0 && place.run(&["info"]).code == 0, "{}", refused.err);
    place.ok(&["cluster", "delete", "shop", "--confirm", "shop", "--force"]);
    let listed = place.json(&["cluster", "list"]);
    assert_eq!(listed["clusters"][0]["state"], "deleted", "{listed}");
    assert_eq!(place.run(&["info", "--cluster", "shop"]).code, 6);
    for command in ["info", "verify", "gc", "expire"] {
        // Of all clusters.
        let mut ran = place.command(&[command]);
        let ran = crate::common::walden::finish(ran.env_remove("WALDEN_CLUSTER"));
        assert_eq!(ran.code, 0, "{command} of a repository with a deleted cluster: {}{}", ran.out, ran.err);
    }
}

/// Runs pg_upgrade from the stopped `old` into the fresh `new`.
fn upgrade_files(old: &Pg, new: &Pg) {
    let work = temp_dir();
    crate::common::pg::give_to_postgres(work.path());
    let bin = |pg: &Pg| binary(pg.major(), "postgres").parent().unwrap().to_owned();
    let mut command = postgres_command(binary(new.major(), "pg_upgrade"));
    command.current_dir(work.path());
    command.arg("-b").arg(bin(old)).arg("-B").arg(bin(new));
    command.arg("-d").arg(old.data_dir()).arg("-D").arg(new.data_dir());
    command.arg("-s").arg(work.path()).arg("-U").arg("postgres");
    run(&mut command);
}
