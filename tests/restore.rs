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

use common::pg::{Pg, majors};
use restore::bed::{Committed, Rows, Scene, commits, load, prepare, rows};
use std::collections::BTreeMap;
use std::time::Duration;
use walden::base::{Lsn, Timestamp};
use walden::restore::Target;

fn source(major: u32, mib: u32) -> Pg {
    let pg = Pg::builder(major).wal_segment_mib(mib);
    let pg =
        pg.option("track_commit_timestamp", "on").option("wal_keep_size", "2GB").option("autovacuum", "off");
    pg.option("max_prepared_transactions", "5").start()
}

/// The rows of transactions that `belongs` says are in.
fn expected(all: &Rows, commits: &BTreeMap<u32, Committed>, belongs: impl Fn(&Committed) -> bool) -> Rows {
    let known = |xid: &u32| commits.get(xid).unwrap_or_else(|| panic!("transaction {xid} is not in the WAL"));
    all.iter().filter(|(_, xid)| belongs(known(xid))).copied().collect()
}

/// A moment in the middle third of the load at which nobody committed for a while: commit times are taken before the record
/// is written, so that close neighbours may swap.
fn quiet_moment(commits: &BTreeMap<u32, Committed>) -> Timestamp {
    let mut times: Vec<Timestamp> = commits.values().map(|commit| commit.time).collect();
    times.sort();
    let third = times.len() / 3;
    let gaps = times[third..2 * third].windows(2).map(|pair| (pair[1].micros_since(pair[0]), pair[0]));
    let (gap, after) = gaps.max().unwrap();
    assert!(gap > 1000, "the load leaves {gap} microseconds at most");
    after.saturating_add_micros(gap / 2)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_target_gives_exactly_what_was_committed_by_then() {
    for (major, mib) in majors().into_iter().zip([1, 16, 1, 16, 1]) {
        let pg = source(major, mib);
        prepare(&pg);
        let begin: Lsn = pg.wal_lsn().parse().unwrap();
        let (scene, receiving) = Scene::new(&pg).await;
        let running = load(&pg);
        tokio::time::sleep(Duration::from_millis(500)).await;
        scene.bed.backup(&pg).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let named: Lsn = pg.sql("SELECT pg_create_restore_point('before the accident')").parse().unwrap();
        let position: Lsn = pg.wal_lsn().parse().unwrap();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        drop(running);
        receiving.wait_durable(&pg).await;
        receiving.stop().await;

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
        let restored = scene.restored(major, "latest", Target::Latest).await;
        check("latest", &restored, all.clone());
        assert_eq!(restored.sql("SELECT timeline_id FROM pg_control_checkpoint()"), "2");
        drop(restored);
    }
}
