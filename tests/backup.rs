//! Backups of real servers: complete, checked, deduplicated, and gone without a trace when they are given up.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod backup {
    pub mod bed;
    pub mod rebuild;
}
mod common;

use backup::bed::{Bed, Receiving, Watcher};
use backup::rebuild;
use common::pg::{Pg, Stop, majors};
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::time::Duration;
use walden::backup::BackupError;
use walden::base::{Lsn, SegmentSize};
use walden::format::index::BackupState;
use walden::format::manifest::{FileKind, RunKind};
use walden::repo::{RepoError, backups, walmap};
use walden::wal::checksum;

/// Two tablespaces, tables over several chunks in each place, files with holes, a table of zero pages.
fn fill(pg: &Pg) {
    let (fast, slow) = (pg.side_dir("fast"), pg.side_dir("slow"));
    pg.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", fast.display()));
    pg.sql(&format!("CREATE TABLESPACE slow LOCATION '{}'", slow.display()));
    for (table, place) in [("a", "pg_default"), ("b", "fast"), ("c", "slow")] {
        pg.sql(&format!(
            "CREATE TABLE {table} TABLESPACE {place} AS SELECT i AS id, md5(i::text) AS text FROM generate_series(1, 50000) AS i; \
             CREATE INDEX ON {table} (text) TABLESPACE {place}"
        ));
    }
    pg.sql("CREATE UNLOGGED TABLE u AS SELECT generate_series(1, 1000) AS id");
    pg.sql("VACUUM; CHECKPOINT");
}

const ROWS: &str =
    "SELECT count(*), sum(hashtext(text)::bigint) FROM (TABLE a UNION ALL TABLE b UNION ALL TABLE c) AS t";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_and_its_wal_are_a_server() {
    for (major, mib) in majors().into_iter().zip([1, 16, 1, 16, 1]) {
        let pg = Pg::builder(major).wal_segment_mib(mib).start();
        fill(&pg);
        let bed = Bed::new().await;
        let receiving = Receiving::start(&bed.repo, &pg);
        let load = pg.spawn(
            "psql",
            &[
                "-Xqc",
                "DO $$ BEGIN FOR i IN 1..200000 LOOP INSERT INTO b VALUES (i, i::text); \
            IF i % 100 = 0 THEN COMMIT; END IF; END LOOP; END $$",
            ],
        );
        let first = bed.backup(&pg).await.unwrap();
        drop(load);
        pg.sql("SELECT pg_switch_wal()");
        assert_eq!((first.entry.state, first.entry.damaged_blocks), (BackupState::Complete, 0), "{first:?}");
        assert!(first.warnings.is_empty(), "{:?}", first.warnings);
        assert!(
            first.entry.bytes_stored < first.entry.bytes_raw / 3
                && first.entry.bytes_new >= first.entry.bytes_stored
        );

        let opened = bed.open(&first.entry.id).await;
        let meta = &opened.manifest.meta;
        assert_eq!((meta.tablespaces.len(), meta.checksums, meta.server_version / 10_000), (2, true, major));
        assert_eq!(meta.redo, meta.start);
        assert!(
            meta.checkpoint >= meta.redo && meta.stop > meta.checkpoint && meta.stopped_at > meta.started_at
        );
        assert!(meta.settings.iter().any(|s| s.name == "max_connections" && s.value == "100"));
        let files = opened.files().await;
        assert_eq!(files.len() as u64, first.file_count);
        assert_eq!(files.iter().filter(|file| file.kind == FileKind::Link).count(), 2);
        assert!(files.iter().all(|file| file.path != "tablespace_map"));
        let sizes: u64 = files.iter().map(|file| file.len).sum();
        assert_eq!(sizes, first.entry.bytes_raw);
        assert!(
            files.iter().any(|file| file.content.iter().any(|run| run.kind == RunKind::Map)),
            "tables of many chunks"
        );

        let restored = rebuild::rebuild(&opened, &files, &first.entry, &pg).await;
        let server = restored.start(major);
        let rows = server.sql(ROWS);
        let (count, _) = rows.split_once('|').unwrap();
        assert!(count.parse::<u64>().unwrap() >= 150_000, "{rows}");
        assert_eq!(server.sql("SELECT count(*) FROM u"), "0");
        server.sql("INSERT INTO c VALUES (0, 'usable'); CREATE TABLE d TABLESPACE fast AS TABLE b");
        drop(server);
        receiving.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_backup_of_an_idle_cluster_adds_next_to_nothing() {
    for major in majors() {
        // Without a table of its own: a fresh cluster is the smallest, and so the hardest.
        let pg = Pg::builder(major).option("autovacuum", "off").start();
        pg.sql("CHECKPOINT");
        let bed = Bed::new().await;
        let receiving = Receiving::start(&bed.repo, &pg);
        let before = bed.stored_bytes();
        let first = bed.backup(&pg).await.unwrap();
        let between = bed.stored_bytes();
        let second = bed.forgetful().await.backup(&pg).await.unwrap();
        let after = bed.stored_bytes();
        receiving.stop().await;
        assert_ne!(first.entry.id, second.entry.id);
        assert_eq!(second.entry.state, BackupState::Complete);
        let (added_first, added) = (between - before, after - between);
        assert!(
            added * 100 <= added_first,
            "PostgreSQL {major}: {added} after {added_first}: {:?}",
            second.chunks
        );
        assert!(second.entry.bytes_new * 100 <= first.entry.bytes_new, "{first:?}\n{second:?}");
        let stored = second.entry.bytes_stored.abs_diff(first.entry.bytes_stored);
        assert!(
            stored * 100 < first.entry.bytes_stored,
            "the second is as large as the first, whoever stored it"
        );
        let opened = bed.open(&second.entry.id).await;
        rebuild::check_contents(&opened, &opened.files().await).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_block_is_named() {
    for major in majors() {
        let mut pg = Pg::start(major);
        fill(&pg);
        let path = pg.sql("SELECT pg_relation_filepath('b')");
        pg.stop(Stop::Fast);
        let file = pg.data_dir().join(&path);
        let mut disk = fs::OpenOptions::new().read(true).write(true).open(&file).unwrap();
        let mut byte = [0];
        disk.seek(SeekFrom::Start(37 * 8192 + 5000)).unwrap();
        disk.read_exact(&mut byte).unwrap();
        disk.seek(SeekFrom::Start(37 * 8192 + 5000)).unwrap();
        disk.write_all(&[byte[0] ^ 0x10]).unwrap();
        // One more whose LSN lies past all WAL: it says itself that it is newer than the backup.
        disk.seek(SeekFrom::Start(40 * 8192)).unwrap();
        disk.write_all(&[0x7f; 8]).unwrap();
        drop(disk);
        pg.start_again();
        let bed = Bed::new().await;
        let receiving = Receiving::start(&bed.repo, &pg);
        let report = bed.backup(&pg).await.unwrap();
        receiving.stop().await;
        let found: Vec<(&str, u32)> = report.damaged.iter().map(|d| (d.path.as_str(), d.block)).collect();
        assert_eq!(found, [(path.as_str(), 37), (path.as_str(), 40)], "PostgreSQL {major}");
        assert_eq!((report.entry.state, report.entry.damaged_blocks), (BackupState::Damaged, 2));
        assert!(
            report.warnings[0].contains(&path) && report.warnings[0].contains("block 37"),
            "{:?}",
            report.warnings
        );
        assert_eq!(bed.open(&report.entry.id).await.manifest.meta.damaged, report.damaged);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checksums_agree_with_the_server() {
    let pg = Pg::start(majors()[0]);
    fill(&pg);
    let mut judged = 0;
    for table in ["a", "a_text_idx", "pg_attribute", "b", "c"] {
        let content =
            fs::read(pg.data_dir().join(pg.sql(&format!("SELECT pg_relation_filepath('{table}')")))).unwrap();
        assert_eq!(checksum::suspects(&content, 0, 0, Lsn::MAX), [], "{table}");
        judged += content.len() / 8192;
    }
    assert!(judged > 300);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_is_stopped_leaves_nothing_behind() {
    // One of each dialect.
    for major in majors().into_iter().filter(|major| matches!(major, 14 | 17)) {
        let pg = Pg::start(major);
        fill(&pg);
        let bed = Bed::new().await;
        let receiving = Receiving::start(&bed.repo, &pg);
        bed.wait_for_cluster().await;
        // Slow enough to be caught in the middle.
        let (watcher, stop) = Watcher::stopping_after(4 << 20);
        let error = bed.backup_watched(&pg.conninfo(), Some(4096), &watcher, stop).await.unwrap_err();
        assert!(matches!(error, BackupError::Interrupted), "{error}");
        let snapshot = walmap::load(&bed.cluster().await).await.unwrap();
        assert_eq!(
            (snapshot.root.pending.len(), snapshot.index.pages.len(), snapshot.index.backups.len()),
            (0, 0, 0)
        );
        assert_eq!(bed.objects_under("pending"), 0);
        pg.wait_for("SELECT count(*) FROM pg_stat_progress_basebackup", "0", Duration::from_secs(20));
        let report = bed.backup(&pg).await.unwrap();
        assert_eq!(report.entry.state, BackupState::Complete);
        receiving.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_ends_the_backup_and_nothing_stays() {
    let mut pg = Pg::start(18);
    let bed = Bed::new().await;
    let receiving = Receiving::start(&bed.repo, &pg);
    bed.wait_for_cluster().await;
    let (watcher, reached) = Watcher::stopping_after(4 << 20);
    let (_, never) = Watcher::patient();
    let conninfo = pg.conninfo();
    let kill = async {
        let mut reached = reached.clone();
        reached.wait_for(|reached| *reached).await.unwrap();
        pg.stop(Stop::Kill);
    };
    let (ended, ()) = tokio::join!(bed.backup_watched(&conninfo, Some(4096), &watcher, never), kill);
    assert!(matches!(ended, Err(BackupError::Pg(_))), "{ended:?}");
    let snapshot = walmap::load(&bed.cluster().await).await.unwrap();
    assert_eq!((snapshot.root.pending.len(), snapshot.index.backups.len()), (0, 0));
    pg.start_again();
    assert_eq!(bed.backup(&pg).await.unwrap().entry.state, BackupState::Complete);
    receiving.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registration_that_was_collected_voids_the_backup() {
    let pg = Pg::start(15);
    let bed = Bed::new().await;
    let receiving = Receiving::start(&bed.repo, &pg);
    bed.wait_for_cluster().await;
    let collector = bed.collect_registrations();
    let (watcher, stop) = Watcher::patient();
    let error = bed.backup_watched(&pg.conninfo(), Some(8192), &watcher, stop).await.unwrap_err();
    assert!(matches!(error, BackupError::Expired), "{error}");
    collector.await.unwrap();
    let snapshot = walmap::load(&bed.cluster().await).await.unwrap();
    assert_eq!((snapshot.root.pending.len(), snapshot.index.backups.len()), (0, 0));
    receiving.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_wal_a_backup_is_pending_until_somebody_stores_it() {
    let pg = Pg::builder(16).option("wal_keep_size", "1GB").start();
    let bed = Bed::new().await;
    let error = bed.backup_waiting(&pg, Duration::from_millis(300)).await.unwrap_err();
    let BackupError::WalMissing { id, range, .. } = error else { panic!("{error}") };
    let size = SegmentSize::DEFAULT;
    assert_eq!(range.start, size.segment_start(range.start), "whole WAL segments");
    let state = async || {
        let snapshot = walmap::load(&bed.cluster().await).await.unwrap();
        let entry = snapshot.index.backup(&id).unwrap().clone();
        (entry.state, backups::state_now(&entry, &snapshot.wal, size))
    };
    assert_eq!(state().await, (BackupState::Pending, BackupState::Pending));
    let receiving = Receiving::start(&bed.repo, &pg);
    receiving.wait_durable(&pg).await;
    receiving.stop().await;
    let (_, now) = state().await;
    // The first start of a receiver begins at the current WAL segment, which may lie behind the backup.
    if walmap::load(&bed.cluster().await).await.unwrap().wal.pieces()[0].range.start <= range.start {
        assert_eq!(now, BackupState::Complete);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backups_begun_in_one_second_have_ids_of_their_own() {
    let pg = Pg::builder(17).option("max_wal_senders", "10").start();
    let bed = Bed::new().await;
    let receiving = Receiving::start(&bed.repo, &pg);
    bed.wait_for_cluster().await;
    let (a, b) = tokio::join!(bed.backup(&pg), bed.backup(&pg));
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_ne!(a.entry.id, b.entry.id);
    receiving.stop().await;
    for id in [&a.entry.id, &b.entry.id] {
        let opened = bed.open(id).await;
        rebuild::check_contents(&opened, &opened.files().await).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configuration_outside_the_data_directory_is_stored() {
    for major in majors() {
        let mut pg = Pg::builder(major).create();
        let etc = pg.side_dir("etc");
        fs::create_dir(etc.join("conf.d")).unwrap();
        let main = fs::read_to_string(pg.data_dir().join("postgresql.conf")).unwrap();
        let files = [
            ("postgresql.conf", format!("{main}\ninclude_dir 'conf.d'\ninclude_if_exists 'none.conf'\n")),
            ("conf.d/one.conf", "work_mem = '5MB'\n".to_owned()),
            ("conf.d/ignored.txt", "x".to_owned()),
            ("pg_hba.conf", "local all all trust\nlocal replication @roles trust\n".to_owned()),
            ("roles", "postgres walden\n".to_owned()),
        ];
        for (name, content) in &files {
            fs::write(etc.join(name), content).unwrap();
        }
        common::pg::give_to_postgres(&etc);
        pg.set_option("config_file", &etc.join("postgresql.conf").display().to_string());
        pg.set_option("hba_file", &etc.join("pg_hba.conf").display().to_string());
        pg.start_again();
        pg.sql("CREATE ROLE walden LOGIN REPLICATION");
        let bed = Bed::new().await;
        let receiving = Receiving::start(&bed.repo, &pg);
        let report = bed.backup(&pg).await.unwrap();
        assert!(report.warnings.is_empty(), "{:?}", report.warnings);
        let stored = bed.open(&report.entry.id).await.manifest.meta.config_files;
        let names: Vec<&str> =
            stored.iter().map(|f| f.path.strip_prefix(etc.to_str().unwrap()).unwrap()).collect();
        assert_eq!(
            names,
            ["/conf.d/one.conf", "/pg_hba.conf", "/postgresql.conf", "/roles"],
            "PostgreSQL {major}"
        );
        assert_eq!(stored[0].content.0, files[1].1.as_bytes());

        // A role that may only replicate: the backup is made, and says what it lacks.
        let plain = bed.backup_as(&pg, "walden").await.unwrap();
        assert_eq!(plain.entry.state, BackupState::Complete);
        assert!(plain.warnings.iter().any(|w| w.contains("pg_read_all_settings")), "{:?}", plain.warnings);
        // What the docs tell to grant is enough.
        pg.sql("GRANT pg_read_all_settings, pg_read_server_files TO walden; \
                GRANT EXECUTE ON FUNCTION pg_read_binary_file(text, bigint, bigint, boolean), pg_ls_dir(text, boolean, boolean) TO walden");
        let granted = bed.backup_as(&pg, "walden").await.unwrap();
        assert!(granted.warnings.is_empty(), "{:?}", granted.warnings);
        assert_eq!(bed.open(&granted.entry.id).await.manifest.meta.config_files, stored);
        receiving.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster_is_refused() {
    let (mine, other) = (Pg::start(15), Pg::start(15));
    let bed = Bed::new().await;
    let receiving = Receiving::start(&bed.repo, &mine);
    bed.wait_for_cluster().await;
    let error = bed.backup(&other).await.unwrap_err();
    assert!(matches!(error, BackupError::Repo(RepoError::WrongSystem { .. })), "{error}");
    receiving.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_can_be_the_source() {
    for major in majors() {
        let primary = Pg::start(major);
        primary.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS id; CHECKPOINT");
        let standby = primary.standby();
        let bed = Bed::new().await;
        let receiving = Receiving::start(&bed.repo, &primary);
        bed.wait_for_cluster().await;
        let report = bed.backup(&standby).await.unwrap();
        assert_eq!(report.entry.state, BackupState::Complete);
        receiving.stop().await;
        let opened = bed.open(&report.entry.id).await;
        let files = opened.files().await;
        let restored = rebuild::rebuild(&opened, &files, &report.entry, &primary).await;
        fs::remove_file(restored.path().join("standby.signal")).unwrap();
        assert_eq!(restored.start(major).sql("SELECT count(*) FROM t"), "1000");
    }
}
