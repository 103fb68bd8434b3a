//! The harness itself: a server of every major starts, crashes, follows and goes away.

mod common;

use common::pg::{Pg, Port, Stop, majors};
use std::path::Path;

#[test]
fn serves_crashes_and_goes_away() {
    for major in majors() {
        let mut pg = Pg::builder(major).wal_segment_mib(1).option("max_wal_senders", "4").start();
        assert_eq!(pg.sql("SELECT current_setting('server_version_num')::int / 10000"), major.to_string());
        assert_eq!(pg.sql("SHOW wal_segment_size; SHOW data_checksums; SHOW max_wal_senders"), "1MB\non\n4");
        pg.sql("CREATE TABLE kept AS SELECT 1 AS a");
        for how in [Stop::Fast, Stop::Immediate, Stop::Kill] {
            pg.restart(how);
            assert_eq!(pg.sql("SELECT a FROM kept"), "1", "PostgreSQL {major} after {how:?}");
        }
        assert!(pg.try_sql("SELECT 1/0").unwrap_err().contains("division by zero"));
        let (pid, data_dir) = (pg.pid(), pg.data_dir().to_owned());
        drop(pg);
        assert!(!Path::new(&format!("/proc/{pid}")).exists() && !data_dir.exists());
    }
}

#[test]
fn a_standby_follows_and_is_promoted() {
    for major in majors() {
        let pg = Pg::builder(major).tcp().start();
        let standby = pg.standby();
        assert_ne!(pg.port(), standby.port());
        pg.sql("CREATE TABLE t AS SELECT generate_series(1, 10) AS a");
        standby.wait_for("SELECT count(*) FROM t", "10", std::time::Duration::from_secs(20));
        standby.promote();
        standby.sql("INSERT INTO t VALUES (11)");
        assert_eq!(standby.sql("SELECT pg_is_in_recovery(), count(*) FROM t"), "f|11");
    }
}

#[test]
fn a_server_that_does_not_start_says_why() {
    let mut pg = Pg::builder(15).create();
    pg.set_option("max_connections", "none");
    let why = pg.try_start().unwrap_err();
    assert!(why.contains("max_connections"), "{why}");
}

#[test]
fn ports_are_taken_once() {
    let ports: Vec<Port> = (0..20).map(|_| Port::reserve()).collect();
    let mut numbers: Vec<u16> = ports.iter().map(Port::number).collect();
    numbers.sort();
    numbers.dedup();
    assert_eq!(numbers.len(), 20);
}
