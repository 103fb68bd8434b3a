//! A server that let go of WAL before it was archived: the hole is recorded and shown, receiving goes on behind it, what lies
//! before it can still be restored, what lies in it is refused, and a new backup closes it.

mod common;

use common::pg::{Pg, majors, wait_until};
use common::walden::{Place, finish};
use rustix::process::Signal;
use std::time::Duration;
use walden::base::Lsn;

const LIMIT: Duration = Duration::from_secs(60);

fn flushed(pg: &Pg) -> Lsn {
    pg.sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap()
}

/// Writes until the slot has lost what it held.
fn let_go(pg: &Pg) {
    let lost = || {
        pg.sql("CREATE TABLE w AS SELECT repeat('x', 500) FROM generate_series(1, 2000); DROP TABLE w");
        pg.sql("SELECT pg_switch_wal()");
        pg.sql("CHECKPOINT");
        pg.sql("SELECT wal_status FROM pg_replication_slots") == "lost"
    };
    assert!(wait_until(LIMIT, lost), "the slot keeps its WAL");
}

#[test]
fn lost_wal_is_a_recorded_gap_that_a_backup_closes() {
    for major in majors() {
        let pg = Pg::builder(major).wal_segment_mib(1).option("max_slot_wal_keep_size", "1MB");
        let pg = pg.option("max_wal_size", "2MB").option("min_wal_size", "2MB").start();
        let place = Place::init();
        let receive = || {
            let receive = place.command_for(&pg, &["receive", "--flush-interval", "20ms"]);
            place.start(receive, "receive")
        };
        // A slot that is made anew begins inside the segment that the stream begins with: what it holds goes back by that.
        let acknowledged = |end: Lsn| {
            let query = "SELECT flush_lsn FROM pg_stat_replication WHERE application_name = 'walden_shop'";
            let reached = || pg.sql(query).parse::<Lsn>().is_ok_and(|flushed| flushed >= end);
            let reached = wait_until(LIMIT, reached);
            assert!(reached, "PostgreSQL {major}: {end} is not stored\n{}", place.log("receive"));
        };
        pg.sql("CREATE TABLE t AS SELECT 1 AS a");
        let mut receiver = receive();
        acknowledged(flushed(&pg));
        finish(&mut place.command_for(&pg, &["backup"])).expect(0);
        pg.sql("INSERT INTO t VALUES (2)");
        let before = flushed(&pg);
        acknowledged(before);
        receiver.signal(Signal::TERM);
        assert_eq!(receiver.wait(LIMIT).expect("it stops").code(), Some(0));
        pg.sql("INSERT INTO t VALUES (3)");
        let inside = flushed(&pg);
        let_go(&pg);

        let mut receiver = receive();
        acknowledged(flushed(&pg));
        let info = place.json(&["info"]);
        let gaps = info["clusters"][0]["window"]["gaps"].as_array().unwrap();
        let [gap] = gaps.as_slice() else { panic!("PostgreSQL {major}: {info}") };
        let end = |name: &str| gap[name].as_str().unwrap().parse::<Lsn>().unwrap();
        assert!(end("start_lsn") >= before && end("start_lsn") <= inside && inside < end("end_lsn"), "{gap}");

        finish(&mut place.command_for(&pg, &["backup"])).expect(0);
        pg.sql("INSERT INTO t VALUES (4)");
        acknowledged(flushed(&pg));
        receiver.signal(Signal::TERM);
        assert_eq!(receiver.wait(LIMIT).expect("it stops").code(), Some(0));
        let found = |name: &str, target: &[&str]| {
            let restored = place.restored(major, name, target);
            restored.sql("SELECT string_agg(a::text, ' ' ORDER BY a) FROM t")
        };
        assert_eq!(found("before", &["--to-lsn", &before.to_string()]), "1 2");
        assert_eq!(found("after", &["--latest"]), "1 2 3 4");
        let target = place.path("inside").display().to_string();
        let refused = place.run(&["restore", "--target-dir", &target, "--to-lsn", &inside.to_string()]);
        assert_eq!(refused.code, 3, "PostgreSQL {major}: {}{}", refused.out, refused.err);
        place.ok(&["verify"]);
    }
}
