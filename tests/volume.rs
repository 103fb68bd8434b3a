//! What a gigabyte of WAL leaves behind: a handful of objects, once it is compacted and collected.

mod common;

use common::archive::{Archive, Told};
use common::pg::{Pg, wait_until};
use common::walden::{Place, files, finish};
use rustix::process::Signal;
use std::time::Duration;
use walden::base::Lsn;

#[test]
fn a_gigabyte_of_wal_is_twenty_objects_at_most() {
    let pg = Pg::builder(16).option("autovacuum", "off").option("max_wal_size", "256MB").start();
    let place = Place::init();
    let told = Told::watch(&pg);
    let mut receiver = place.start(place.command_for(&pg, &["receive"]), "receive");
    let limit = Duration::from_secs(120);
    pg.wait_for(
        "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'walden_shop'",
        "1",
        limit,
    );
    let begin: Lsn = pg.wal_lsn().parse().unwrap();
    pg.sql("CREATE TABLE t (a int, b text)");
    let end = loop {
        pg.sql("INSERT INTO t SELECT i, repeat(md5(i::text), 30) FROM generate_series(1, 100000) AS i; TRUNCATE t");
        let end: Lsn = pg.sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap();
        if end.bytes_since(begin) >= 1 << 30 {
            break end;
        }
    };
    assert!(wait_until(limit, || told.of("walden_shop") >= end), "{}", place.log("receive"));
    // No compaction is cut short: what that leaves is collected an hour later.
    let mut quiet = 0;
    let pending = place.path("repo/clusters/shop/pending");
    let idle = || {
        let any = std::fs::read_dir(&pending).is_ok_and(|mut entries| entries.next().is_some());
        quiet = if any { 0 } else { quiet + 1 };
        quiet >= 200
    };
    // Compaction gets what others leave of the cores.
    assert!(wait_until(5 * limit, idle), "{}", place.log("receive"));
    receiver.signal(Signal::TERM);
    assert_eq!(receiver.wait(limit).expect("it stops").code(), Some(0));
    place.ok(&["compact", "--all"]);
    place.ok(&["gc", "--grace", "0s"]);

    let cluster = place.path("repo/clusters/shop");
    // The fence of a stream stays for good, and counts.
    let objects: Vec<_> =
        ["wal", "segments"].iter().flat_map(|folder| files(&cluster.join(folder))).collect();
    let names: Vec<_> =
        objects.iter().map(|(path, bytes)| (path.display().to_string(), bytes.len())).collect();
    assert!(objects.len() <= 20, "{} objects: {names:#?}", objects.len());
    let archive = Archive::open(&place);
    assert!(archive.durable_end("shop") >= end);
    place.ok(&["verify"]);
}

#[test]
fn wal_segments_of_a_gibibyte_are_archived_and_recovered_from() {
    let pg = Pg::builder(17).wal_segment_mib(1024).option("min_wal_size", "2GB").start();
    let place = Place::init();
    let limit = Duration::from_secs(240);
    let receiver = place.start(place.command_for(&pg, &["receive"]), "receive");
    let sender = "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'walden_shop'";
    pg.wait_for(sender, "1", limit);
    pg.sql("CREATE TABLE t AS SELECT i, md5(i::text) AS b FROM generate_series(1, 20000) AS i");
    finish(&mut place.command_for(&pg, &["backup"])).expect(0);
    pg.sql("UPDATE t SET b = b || 'x'; SELECT pg_switch_wal()");
    pg.sql("INSERT INTO t SELECT i, 'new' FROM generate_series(1, 1000) AS i");
    let flushed = "SELECT flush_lsn >= pg_current_wal_flush_lsn() FROM pg_stat_replication";
    pg.wait_for(flushed, "t", limit);
    drop(receiver);
    place.ok(&["compact", "--all"]);
    let rows = "SELECT count(*), md5(string_agg(i || b, ',' ORDER BY i, b)) FROM t";
    let wanted = pg.sql(rows);
    drop(pg);
    let restored = place.restored(17, "restored", &["--latest"]);
    assert_eq!(restored.sql(rows), wanted);
}
