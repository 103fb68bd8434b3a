//! Restores of real servers: exactly what was committed, under load, in time, by position, by transaction and by name; and
//! never a server that is promoted before its target.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[allow(dead_code)]
#[path = "backup/bed.rs"]
mod backup_bed;
mod common;
mod restore {
    pub mod bed;
}

use backup_bed::Receiving;
use common::load::{Rows, commits, expected, load, prepare, quiet_moment, rows, time};
use common::mount::SmallDisk;
use common::pg::{Pg, Stop, give_to_postgres, majors, postgres_command, run, wait_until};
use restore::bed::{RECOVERY_LIMIT, Scene, WALDEN, wait_there};
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use walden::base::progress::Unwatched;
use walden::base::{Lsn, TimelineId, Timestamp};
use walden::restore::place::{Existing, INCOMPLETE};
use walden::restore::run::plan;
use walden::restore::{Request, RestoreError, Target, TargetAction, TimelineChoice};

fn source(major: u32, mib: u32) -> Pg {
    let pg = Pg::builder(major).wal_segment_mib(mib);
    let pg =
        pg.option("track_commit_timestamp", "on").option("wal_keep_size", "2GB").option("autovacuum", "off");
    pg.option("max_prepared_transactions", "5").start()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_target_gives_exactly_what_was_committed_by_then() {
    for (major, mib) in majors().into_iter().zip([1, 16, 1, 16, 1]) {
        let pg = source(major, mib);
        prepare(&pg);
        let begin: Lsn = pg.wal_lsn().parse().unwrap();
        let (scene, receiving) = Scene::new(&pg).await;
        receiving.stop().await;
        let journal = scene.path("journal");
        let receiving = Receiving::with_journal(&scene.bed.repo, &pg, &journal);
        let running = load(&pg);
        tokio::time::sleep(Duration::from_millis(500)).await;
        scene.bed.backup(&pg).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let named: Lsn = pg.sql("SELECT pg_create_restore_point('before the accident')").parse().unwrap();
        let position: Lsn = pg.wal_lsn().parse().unwrap();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        receiving.wait_durable(&pg).await;
        receiving.stop().await;
        assert!(fs::read_dir(&journal).unwrap().count() > 0, "there was a journal");
        fs::remove_dir_all(&journal).unwrap();

        // The load goes on meanwhile; what it commits from here on lies past every target but the last.
        let all = rows(&pg);
        let committed = commits(&pg, begin);
        let moment = quiet_moment(&committed);
        let backup_stop =
            scene.cluster.index(&scene.cluster.newest_root().await.unwrap()).await.unwrap().backups[0].stop;
        let after_backup = all.iter().map(|(_, xid)| *xid).filter(|xid| committed[xid].lsn > backup_stop);
        let xids: Vec<u32> = after_backup.collect();
        let xid = xids[xids.len() / 2];

        let check = |name: &str, restored: &Pg, expected: Rows| {
            let found = rows(restored);
            let (missing, extra) = (expected.difference(&found).count(), found.difference(&expected).count());
            assert_eq!((missing, extra), (0, 0), "PostgreSQL {major}, {name}: of {} rows", expected.len());
            assert!(
                found.len() > 100 && (name == "latest" || found.len() < all.len()),
                "{name} proves nothing"
            );
        };
        // By the source's own commit timestamps.
        let by_time = pg.sql(&format!(
            "SELECT count(*) FROM (TABLE a UNION ALL TABLE b UNION ALL TABLE c) AS t \
             WHERE pg_xact_commit_timestamp(x::text::xid) <= '{moment}'"
        ));
        let restored = scene.restored(major, "time", Target::Time(moment)).await;
        check("time", &restored, expected(&all, &committed, |commit| commit.time <= moment));
        assert_eq!(rows(&restored).len().to_string(), by_time);
        // Paused, readable, and after a word from the operator a server of its own.
        restored.sql("SELECT pg_wal_replay_resume()");
        restored.wait_for("SELECT pg_is_in_recovery()", "f", Duration::from_secs(60));
        restored
            .sql("INSERT INTO b VALUES (0, 'usable'); CREATE TABLE d TABLESPACE slow AS TABLE a; CHECKPOINT");
        assert_eq!(restored.sql("SHOW archive_mode"), "off");
        drop(restored);

        let restored = scene.restored(major, "lsn", Target::Lsn(position)).await;
        check("lsn", &restored, expected(&all, &committed, |commit| commit.lsn < position));
        drop(restored);
        let restored = scene.restored(major, "xid", Target::Xid(xid)).await;
        check("xid", &restored, expected(&all, &committed, |commit| commit.lsn <= committed[&xid].lsn));
        drop(restored);
        let restored = scene.restored(major, "name", Target::Name("before the accident".into())).await;
        check("name", &restored, expected(&all, &committed, |commit| commit.lsn < named));
        drop(restored);
        assert!(rows(&pg).len() > all.len(), "the load paused");
        drop(running);
        // The last of its transactions may still be under way.
        let gone = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'";
        pg.wait_for(gone, "0", Duration::from_secs(30));
        let receiving = Receiving::start(&scene.bed.repo, &pg);
        receiving.wait_durable(&pg).await;
        receiving.stop().await;
        let restored = scene.restored(major, "latest", Target::Latest).await;
        check("latest", &restored, rows(&pg));
        assert_eq!(restored.sql("SELECT timeline_id FROM pg_control_checkpoint()"), "2");
        drop(restored);
    }
}

/// One of the majors under test, spread over the tests.
fn one_of_them(number: usize) -> u32 {
    let majors = majors();
    majors[number % majors.len()]
}

/// A small source with a backup, its receiver still running.
async fn backed_up(pg: &Pg) -> (Scene, Receiving) {
    let (scene, receiving) = Scene::new(pg).await;
    scene.bed.backup(pg).await.unwrap();
    (scene, receiving)
}

fn server_now(pg: &Pg) -> Timestamp {
    time(&pg.sql("SET timezone = 'UTC'; SELECT to_char(clock_timestamp(), 'YYYY-MM-DD HH24:MI:SS.US')"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_server_a_crash_and_prepared_transactions() {
    for major in majors() {
        let mut pg = source(major, 1);
        pg.sql("CREATE TABLE t (a int)");
        let (scene, receiving) = backed_up(&pg).await;
        pg.sql("INSERT INTO t VALUES (1)");
        pg.sql("BEGIN; INSERT INTO t VALUES (2); PREPARE TRANSACTION 'two'");
        let prepared = pg.sql("SELECT transaction FROM pg_prepared_xacts");
        pg.sql("INSERT INTO t VALUES (3)");
        let before_the_crash = server_now(&pg);
        pg.stop(Stop::Kill);
        pg.start_again();
        pg.sql("COMMIT PREPARED 'two'");
        let last = server_now(&pg);
        tokio::time::sleep(Duration::from_millis(1100)).await;
        // Idle but for a record that is no commit.
        pg.sql("SELECT pg_switch_wal(); CHECKPOINT");
        receiving.wait_durable(&pg).await;
        receiving.stop().await;
        let found = |pg: &Pg| pg.sql("SELECT string_agg(a::text, ' ' ORDER BY a) FROM t");
        let xid: u32 = prepared.parse().unwrap();
        for (name, target, expected) in [
            ("crash", Target::Time(before_the_crash), "1 3"),
            ("idle", Target::Time(last.saturating_add_micros(500_000)), "1 2 3"),
            ("prepared", Target::Xid(xid), "1 2 3"),
        ] {
            let restored = scene.restored(major, name, target).await;
            assert_eq!(found(&restored), expected, "{name}");
        }
        let late = Request::new(Target::Time(last.saturating_add_micros(3_600_000_000)));
        let refused = plan(&scene.cluster, &scene.options("late", late).await).await.unwrap_err();
        assert!(matches!(&refused, RestoreError::Outside { .. }), "{refused}");
        assert!(!scene.path("late").exists(), "nothing is written before coverage is known");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_window_grows_while_the_server_writes_nothing() {
    let major = one_of_them(3);
    let pg = source(major, 16);
    pg.sql("CREATE TABLE t AS SELECT 1 AS a");
    let (scene, receiving) = backed_up(&pg).await;
    pg.sql("INSERT INTO t VALUES (2)");
    pg.sql("CHECKPOINT");
    // The last that it writes by itself is a snapshot of running transactions, 15 seconds later at most.
    let quiet = "SELECT pg_current_wal_insert_lsn()";
    let mut before = String::new();
    let is_quiet = wait_until(Duration::from_secs(120), || {
        let last = std::mem::replace(&mut before, pg.sql(quiet));
        std::thread::sleep(Duration::from_secs(17));
        last == before
    });
    assert!(is_quiet);
    let end = pg.sql(quiet);
    let moment = server_now(&pg);
    let options = scene.options("idle", Request::new(Target::Time(moment))).await;
    let begun = Instant::now();
    while let Err(error) = plan(&scene.cluster, &options).await {
        assert!(matches!(&error, RestoreError::Outside { .. }), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(120), "{error}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(pg.sql(quiet), end, "the server was idle");
    let mut restored = scene.restore(major, &options).await.unwrap();
    restored.start_again();
    wait_there(&restored, TargetAction::Pause);
    assert_eq!(restored.sql("SELECT count(*) FROM t"), "2");
    receiving.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starts_from_the_root_directory_with_an_empty_environment() {
    let major = one_of_them(1);
    let pg = source(major, 16);
    pg.sql("CREATE TABLE t AS SELECT 1 AS a");
    let (scene, receiving) = backed_up(&pg).await;
    pg.sql("INSERT INTO t VALUES (2)");
    receiving.wait_durable(&pg).await;
    let mut options = scene.options("bare", Request::new(Target::Latest)).await;
    options.wal_dir = Some(scene.path("bare wal's"));
    let restored = scene.restore(major, &options).await.unwrap();
    assert!(fs::symlink_metadata(options.target_dir.join("pg_wal")).unwrap().is_symlink());
    give_to_postgres(&scene.path("bare wal's"));
    // `setpriv` runs as root; `env -i` is what PostgreSQL gets.
    let mut server = postgres_command("/usr/bin/env");
    server
        .arg("-i")
        .arg(restored.binary("postgres"))
        .arg("-D")
        .arg(restored.data_dir())
        .args(["-c", "listen_addresses="]);
    server.arg("-c").arg(format!("unix_socket_directories={}", restored.socket_dir().display()));
    let server = common::pg::Process::start(server);
    restored.wait_for("SELECT count(*) FROM t", "2", RECOVERY_LIMIT);
    wait_there(&restored, TargetAction::Promote);
    server.signal(rustix::process::Signal::INT);
    receiving.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_cut_off_in_mid_recovery_stops_the_server_and_never_promotes_it() {
    let major = one_of_them(2);
    let pg = source(major, 1);
    pg.sql("CREATE TABLE t (a int, b text)");
    let (scene, receiving) = backed_up(&pg).await;
    for _ in 0..6 {
        pg.sql("INSERT INTO t SELECT i, repeat('x', 900) FROM generate_series(1, 15000) AS i");
    }
    receiving.wait_durable(&pg).await;
    receiving.stop().await;
    let options = scene.options("cut", Request::new(Target::Latest)).await;
    let mut restored = scene.restore(major, &options).await.unwrap();
    restored.set_option("log_min_messages", "debug1");
    // Replay is slowed down, so that the cut falls into it.
    restored.set_option("shared_buffers", "1MB");
    restored.launch();
    let begun = wait_until(RECOVERY_LIMIT, || restored.log().matches("restored log file").count() > 3);
    assert!(begun, "{}", restored.log());
    scene.cut_off(true);
    assert!(restored.wait_stopped(Duration::from_secs(180)), "{}", restored.log());
    let log = restored.log();
    assert!(log.contains("could not restore file") && log.contains("FATAL"), "{log}");
    assert!(!log.contains("ready to accept connections") && !log.contains("selected new timeline"), "{log}");
    assert!(options.target_dir.join("recovery.signal").exists());
    scene.cut_off(false);
    restored.start_again();
    wait_there(&restored, TargetAction::Promote);
    assert_eq!(restored.sql("SELECT count(*) FROM t"), "90000");
}

/// User and system time of the children that ended and were waited for.
fn cpu_of_children() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    // cutime and cstime: fields 16 and 17 of proc(5), in hundredths of a second; the first after the name is the third.
    let ticks: u64 = fields[13..15].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_staged_file_is_handed_over_within_five_milliseconds() {
    let major = one_of_them(3);
    let pg = source(major, 1);
    let (scene, receiving) = backed_up(&pg).await;
    pg.sql("CREATE TABLE t AS SELECT i, repeat('x', 900) AS b FROM generate_series(1, 20000) AS i");
    receiving.wait_durable(&pg).await;
    receiving.stop().await;
    let options = scene.options("timed", Request::new(Target::Latest)).await;
    let planned = plan(&scene.cluster, &options).await.unwrap();
    let wal = planned.plan.wal();
    planned.execute(Arc::new(Unwatched)).await.unwrap();
    give_to_postgres(&scene.bed.repo_dir());
    let recovery = options.target_dir.join("pg_wal/walden/recovery.toml");
    let staging = recovery.parent().unwrap();
    let fetch = |name: &str, to: &str| {
        let mut command = Command::new(WALDEN);
        command
            .arg("wal-fetch")
            .arg("--recovery")
            .arg(&recovery)
            .args([name, to])
            .current_dir(&options.target_dir);
        command.env_clear().output().unwrap()
    };
    let first = wal.start.get() >> 20;
    let name = |number: u64| format!("0000000100000000{number:08X}");
    assert_eq!(fetch(&name(first), "pg_wal/RECOVERYXLOG").status.code(), Some(0), "nothing is staged yet");
    for number in first + 1..first + 12 {
        let staged = wait_until(Duration::from_secs(30), || staging.join(name(number)).exists());
        assert!(staged, "{}", fs::read_to_string(staging.join("wal-fetch.log")).unwrap());
        let output = fetch(&name(number), "pg_wal/RECOVERYXLOG");
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_eq!(fs::metadata(options.target_dir.join("pg_wal/RECOVERYXLOG")).unwrap().len(), 1 << 20);
    }
    // Process start included. Other tests keep both cores busy: of the clock the ten best calls count, and on average the time
    // that a call takes on a core. What it takes on an idle machine is a figure of benches/end_to_end.
    const CALLS: usize = 100;
    let mut taken = Vec::new();
    let before = cpu_of_children();
    for _ in 0..CALLS {
        fs::rename(options.target_dir.join("pg_wal/RECOVERYXLOG"), staging.join(name(first))).unwrap();
        let begun = Instant::now();
        let output = fetch(&name(first), "pg_wal/RECOVERYXLOG");
        taken.push(begun.elapsed());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
    let on_a_core = (cpu_of_children() - before) / CALLS as u32;
    taken.sort();
    println!("on a core {on_a_core:?}, median {:?}, worst {:?}", taken[CALLS / 2], taken[CALLS - 1]);
    assert!(on_a_core <= Duration::from_millis(5), "{on_a_core:?}");
    assert!(taken[9] <= Duration::from_millis(5), "{taken:?}");
    // Beyond the archive, on another timeline, another cluster's history: proved to be absent.
    for absent in
        [name(first + 4000), name(first).replacen("00000001", "00000002", 1), "00000002.history".into()]
    {
        let output = fetch(&absent, "pg_wal/RECOVERYXLOG");
        assert_eq!(output.status.code(), Some(1), "{absent}: {output:?}");
    }
    assert_eq!(fetch("nonsense", "x").status.code(), Some(255));
    // Recovery is over: the server goes, and leaves nothing but its log.
    fs::remove_file(options.target_dir.join("recovery.signal")).unwrap();
    let names = || {
        let entries = fs::read_dir(staging).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let gone = wait_until(Duration::from_secs(20), || names() == ["lock", "recovery.toml", "wal-fetch.log"]);
    assert!(gone, "{:?}", names());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_timeline_is_followed_across_its_fork_and_the_old_one_on_request() {
    let major = one_of_them(4);
    let mut pg = source(major, 1);
    pg.sql("CREATE TABLE t AS SELECT 1 AS a");
    let (scene, receiving) = backed_up(&pg).await;
    pg.sql("INSERT INTO t VALUES (2)");
    receiving.wait_durable(&pg).await;
    receiving.stop().await;
    // The first restore becomes the new primary, in the middle of a segment.
    let promoted = scene.restored(major, "promoted", Target::Latest).await;
    // The old one goes on for a while: nobody's history but its own.
    pg.sql("INSERT INTO t VALUES (99)");
    pg.stop(Stop::Fast);
    promoted.sql("INSERT INTO t VALUES (3)");
    let receiving = Receiving::start(&scene.bed.repo, &promoted);
    receiving.wait_durable(&promoted).await;
    receiving.stop().await;
    give_to_postgres(&scene.bed.repo_dir());
    let found = |pg: &Pg| pg.sql("SELECT string_agg(a::text, ' ' ORDER BY a) FROM t");
    let newest = scene.restored(major, "newest", Target::Latest).await;
    assert_eq!(found(&newest), "1 2 3");
    // Timeline 2 exists: its history was served, so its number is not used again.
    assert_eq!(newest.sql("SELECT timeline_id FROM pg_control_checkpoint()"), "3");
    drop(newest);
    let first = Request { timeline: TimelineChoice::Number(TimelineId(1)), ..Request::new(Target::Latest) };
    let mut old = scene.restore(major, &scene.options("old", first).await).await.unwrap();
    old.start_again();
    wait_there(&old, TargetAction::Promote);
    assert_eq!(found(&old), "1 2");
    assert_eq!(old.sql("SELECT timeline_id FROM pg_control_checkpoint()"), "3");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_leaves_what_nobody_can_start_and_force_replaces_it() {
    let major = one_of_them(1);
    let pg = source(major, 16);
    let (scene, receiving) = backed_up(&pg).await;
    receiving.wait_durable(&pg).await;
    receiving.stop().await;
    let mounted = SmallDisk::mount(&scene.path("small"), 8);
    let mut options = scene.options("small/data", Request::new(Target::Latest)).await;
    let full = plan(&scene.cluster, &options).await.unwrap().execute(Arc::new(Unwatched)).await.unwrap_err();
    assert!(matches!(&full, RestoreError::NoSpace { .. }), "{full}");
    assert!(options.target_dir.join(INCOMPLETE).exists());
    assert!(!options.target_dir.join("global/pg_control").exists());
    let mut broken = Pg::adopt(major, &options.target_dir);
    assert!(broken.try_start().is_err());
    let refused = plan(&scene.cluster, &options).await.unwrap_err();
    assert!(matches!(&refused, RestoreError::Conflict { hint, .. } if hint.contains("--force")), "{refused}");
    mounted.resize(400);
    options.existing = Existing::Replace;
    let mut restored = scene.restore(major, &options).await.unwrap();
    restored.start_again();
    wait_there(&restored, TargetAction::Promote);
    // A server runs in it now: that is refused whatever is said.
    let running = plan(&scene.cluster, &options).await.unwrap_err();
    assert!(
        matches!(&running, RestoreError::Conflict { reason, .. } if reason.contains("a server runs")),
        "{running}"
    );
    drop(restored);
    drop(mounted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn production_is_not_harmed_and_limits_follow_the_source() {
    for major in majors() {
        let mut pg = Pg::builder(major).option("wal_keep_size", "1GB").create();
        // What a primary in production has in its files, and what an earlier recovery left behind.
        let own = fs::read_to_string(pg.data_dir().join("postgresql.conf")).unwrap();
        let conf = format!(
            "{own}\nsynchronous_commit = local\nsynchronous_standby_names = 'walden_shop'\narchive_mode = on\narchive_command = 'false'\n\
             primary_conninfo = 'host=/nonexistent'\nrecovery_target_time = '2000-01-01 00:00:00+00'\n\
             recovery_end_command = 'touch /tmp/walden-must-not-exist'\n"
        );
        pg.write("postgresql.conf", conf.as_bytes(), 0o600);
        pg.start_again();
        pg.sql("CREATE TABLE t AS SELECT 1 AS a");
        let (scene, receiving) = backed_up(&pg).await;
        // Raised after the backup: only the WAL knows.
        pg.set_option("max_connections", "137");
        pg.restart(Stop::Fast);
        pg.sql("INSERT INTO t VALUES (2)");
        receiving.wait_durable(&pg).await;
        receiving.stop().await;
        let restored = scene.restored(major, "safe", Target::Latest).await;
        assert_eq!(restored.sql("SELECT count(*) FROM t"), "2");
        for (name, expected) in [
            ("archive_mode", "off"),
            ("synchronous_standby_names", ""),
            ("primary_conninfo", ""),
            ("recovery_end_command", ""),
            ("max_logical_replication_workers", "0"),
            ("max_connections", "137"),
        ] {
            assert_eq!(restored.sql(&format!("SHOW {name}")), expected, "PostgreSQL {major}, {name}");
        }
        assert!(!std::path::Path::new("/tmp/walden-must-not-exist").exists());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configuration_from_outside_starts_with_the_printed_command_alone() {
    let major = one_of_them(1);
    let mut pg = Pg::builder(major).create();
    let etc = pg.side_dir("etc");
    let named = |name: &str| etc.join(name).display().to_string();
    fs::create_dir(etc.join("conf.d")).unwrap();
    // As pg_createcluster leaves it.
    fs::create_dir(etc.join("empty.d")).unwrap();
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        fs::rename(pg.data_dir().join(name), etc.join(name)).unwrap();
    }
    let sockets = pg.socket_dir().display().to_string();
    let conf = format!(
        "{}\ndata_directory = '{}'\nhba_file = '{}'\nident_file = '{}'\ninclude_dir = '{}'\ninclude_dir = 'empty.d'\n\
         external_pid_file = '{}'\nlisten_addresses = ''\nunix_socket_directories = '{sockets}'\n",
        fs::read_to_string(etc.join("postgresql.conf")).unwrap(),
        pg.data_dir().display(),
        named("pg_hba.conf"),
        named("pg_ident.conf"),
        named("conf.d"),
        named("pid"),
    );
    fs::write(etc.join("postgresql.conf"), conf).unwrap();
    fs::write(etc.join("conf.d/own.conf"), "work_mem = '5MB'\n").unwrap();
    give_to_postgres(&etc);
    pg.set_option("config_file", &named("postgresql.conf"));
    pg.start_again();
    pg.sql("CREATE TABLE t AS SELECT 1 AS a");
    let (scene, receiving) = backed_up(&pg).await;
    receiving.wait_durable(&pg).await;
    receiving.stop().await;
    // It has the source's sockets, as it has all of its configuration.
    pg.stop(Stop::Fast);
    for (name, config_dir) in [("apart", Some(scene.path("conf"))), ("inside", None)] {
        let mut options = scene.options(name, Request::new(Target::Latest)).await;
        options.config_dir = config_dir;
        let planned = plan(&scene.cluster, &options).await.unwrap();
        let command = planned.plan.start_command.clone();
        planned.execute(Arc::new(Unwatched)).await.unwrap();
        give_to_postgres(&scene.bed.repo_dir());
        // The test's PostgreSQL may be another than the machine's.
        let pg_ctl = pg.binary("pg_ctl").display().to_string();
        let from = command.split_whitespace().find(|word| word.ends_with("pg_ctl")).unwrap().to_owned();
        let command = command.replacen(&from, &pg_ctl, 1);
        run(Command::new("/bin/sh").args(["-c", &command]).stdout(std::process::Stdio::null()));
        wait_there(&pg, TargetAction::Promote);
        assert_eq!(pg.sql("SELECT count(*) FROM t"), "1", "{name}");
        assert_eq!(pg.sql("SHOW work_mem"), "5MB", "{name}: what was included is there");
        assert_eq!(pg.sql("SHOW data_directory"), options.target_dir.display().to_string());
        assert_eq!(pg.sql("SHOW external_pid_file"), "", "{name}: production's file is left alone");
        let mut stop = pg.command("pg_ctl");
        run(stop.arg("-D").arg(&options.target_dir).args(["-m", "fast", "stop"]));
    }
}
