//! Record by record against pg_waldump, under a mixed load, at three segment sizes, over crashes and switches.

use crate::common::pg::{Pg, Stop, majors, run};
use crate::server::{Wal, insert_lsn};
use std::fs;
use walden::base::{Lsn, Timestamp};
use walden::wal::record::{ImageCompression, rmgr};
use walden::wal::{DecodeFrom, Fact, Outcome, Record, Summarizer, WalVersion};

const LOAD: &str = "
INSERT INTO pgbench_branches VALUES (1, 0);
INSERT INTO pgbench_tellers SELECT g, 1, 0 FROM generate_series(1, 10) g;
INSERT INTO pgbench_accounts SELECT g * 7, 1, 0, 'f' FROM generate_series(1, 3000) g;
CREATE TABLE big (a int PRIMARY KEY, b text);
INSERT INTO big SELECT g, repeat(md5(g::text), 8) FROM generate_series(1, 4000) g;
CREATE INDEX big_b ON big USING gin (string_to_array(b, 'a'));
CREATE INDEX big_h ON big USING hash (a);
CREATE INDEX big_r ON big USING brin (a);
CREATE TABLE points (p point);
INSERT INTO points SELECT point(g, g % 7) FROM generate_series(1, 2000) g;
CREATE INDEX points_s ON points USING spgist (p);
CREATE INDEX points_g ON points USING gist (p);
CREATE SEQUENCE s; SELECT nextval('s'), nextval('s');
CHECKPOINT;
UPDATE big SET b = b || 'x' WHERE a % 3 = 0;
DELETE FROM big WHERE a % 5 = 0;
VACUUM big;
BEGIN; INSERT INTO points VALUES (point(1, 1)); SAVEPOINT a; INSERT INTO points VALUES (point(2, 2)); ROLLBACK TO a;
SAVEPOINT b; INSERT INTO points VALUES (point(3, 3)); RELEASE b; COMMIT;
BEGIN; DELETE FROM points; ROLLBACK;
BEGIN; INSERT INTO points VALUES (point(4, 4)); SAVEPOINT c; INSERT INTO points VALUES (point(5, 5)); PREPARE TRANSACTION 'kept';
BEGIN; CREATE TABLE gone (a int); PREPARE TRANSACTION 'lost';
COMMIT PREPARED 'kept'; ROLLBACK PREPARED 'lost';
SELECT pg_create_restore_point('halfway') IS NULL;
SELECT pg_logical_emit_message(false, 'long', repeat('wal', 700000)) IS NULL;
SELECT pg_logical_emit_message(true, 'longer', repeat('wal', 2000000)) IS NULL;
SELECT pg_switch_wal() IS NULL;
BEGIN; SELECT count(*) FROM (SELECT 1 FROM pg_class) x; CREATE TABLE made (a int); DROP TABLE made; COMMIT;
DO $$ BEGIN FOR i IN 1..50 LOOP EXECUTE format('CREATE TABLE many_%s (a int PRIMARY KEY, b text)', i); END LOOP; END $$;
CREATE DATABASE other; DROP DATABASE other;
ALTER TABLE big ALTER COLUMN a TYPE bigint;
TRUNCATE points;
VACUUM FULL big;
REINDEX TABLE big;
";

#[test]
fn reads_every_record_as_pg_waldump_does_in_segments_of_1_mib() {
    majors().into_iter().for_each(|major| compare(major, 1));
}

#[test]
fn reads_every_record_as_pg_waldump_does_in_segments_of_16_mib() {
    majors().into_iter().for_each(|major| compare(major, 16));
}

#[test]
fn reads_every_record_as_pg_waldump_does_in_segments_of_64_mib() {
    majors().into_iter().for_each(|major| compare(major, 64));
}

fn compare(major: u32, segment_mib: u64) {
    let compression = match segment_mib {
        1 => "off",
        16 => "on",
        _ if major >= 15 => "lz4",
        _ => "off",
    };
    let mut pg = Pg::builder(major)
        .wal_segment_mib(segment_mib as u32)
        .option("fsync", "off")
        .option("max_wal_size", "4GB")
        .option("wal_keep_size", "4GB")
        .option("max_prepared_transactions", "10")
        .option("track_commit_timestamp", "on")
        .option("wal_level", if segment_mib == 16 { "logical" } else { "replica" })
        .option("wal_compression", compression)
        .option("wal_consistency_checking", if segment_mib == 64 { "heap,btree" } else { "" })
        .start();
    run(pg.command("pgbench").args(["-i", "-q", "-I", "dtp"]));
    pg.sql(LOAD);
    run(pg.command("pgbench").args(["-n", "-c", "4", "-t", "60"]));
    crash_in_a_long_record(&mut pg, segment_mib);
    run(pg.command("pgbench").args(["-n", "-c", "2", "-t", "50"]));
    let xid: u32 = pg.sql("BEGIN; CREATE TABLE last (a int); SELECT txid_current(); COMMIT").parse().unwrap();
    let time =
        pg.sql(&format!("SELECT (extract(epoch FROM pg_xact_commit_timestamp('{xid}')) * 1000000)::bigint"));
    let end = insert_lsn(&pg);
    pg.stop(Stop::Fast);

    let wal = Wal::read(&pg, segment_mib, 1, end);
    let (records, errors) = wal.records(1_000_003);
    // initdb's segments are gone, and the first that is there begins inside a record.
    let headless = errors.iter().filter(|error| error.at <= records[0].start).count();
    assert_eq!(errors.len(), headless.min(1), "PostgreSQL {major}, {segment_mib} MiB: {errors:?}");
    let dumped = dump(&pg, records[0].start, end);
    for (record, line) in records.iter().zip(&dumped) {
        assert_eq!(describe(record), normalise(line), "PostgreSQL {major}: {line}");
        compare_time(record, line);
    }
    assert_eq!(records.len(), dumped.len(), "PostgreSQL {major}, {segment_mib} MiB");
    assert!(records.len() > 10_000, "{} records", records.len());
    assert!(records.iter().all(|record| record.version == WalVersion::from_major(major).unwrap()));
    let overwritten =
        records.iter().filter(|record| matches!(Fact::of(record), Ok(Some(Fact::Overwritten { .. }))));
    assert_eq!(overwritten.count(), 1, "PostgreSQL {major}: one record was cut off by the crash");
    let longest = records.iter().map(|record| record.header.total_len).max().unwrap();
    assert!(longest > 6_000_000, "no record is longer than a segment");
    let last = records.iter().rev().find_map(|record| match Fact::of(record) {
        Ok(Some(Fact::Finished(finished))) if finished.outcome == Outcome::Commit => Some(finished),
        _ => None,
    });
    let last = last.unwrap();
    assert_eq!(last.xid, xid);
    assert_eq!(last.time, Timestamp::from_unix_micros(time.parse().unwrap()));
    if compression != "off" {
        let images = records.iter().flat_map(|record| &record.blocks).filter_map(|block| block.image);
        let wanted = if compression == "lz4" { ImageCompression::Lz4 } else { ImageCompression::Pglz };
        assert!(images.filter(|image| image.compression == wanted).count() > 10);
    }
    summaries_agree(&wal, &records, headless > 0);
}

#[test]
fn reads_over_a_promotion_on_both_timelines() {
    for major in majors() {
        let pg = Pg::builder(major).wal_segment_mib(1).option("wal_keep_size", "1GB").start();
        let mut standby = pg.standby();
        pg.sql("CREATE TABLE t AS SELECT generate_series(1, 3000) AS a");
        let replayed = pg.wal_lsn();
        let caught_up = format!("SELECT pg_last_wal_replay_lsn() >= '{replayed}'");
        standby.wait_for(&caught_up, "t", std::time::Duration::from_secs(20));
        standby.promote();
        standby.sql(
            "INSERT INTO t SELECT generate_series(1, 3000); SELECT pg_switch_wal() IS NULL; DELETE FROM t",
        );
        let end = insert_lsn(&standby);
        standby.stop(Stop::Fast);
        let wal = Wal::read(&standby, 1, 2, end);
        let (records, errors) = wal.records(100_003);
        assert!(errors.len() <= 1, "PostgreSQL {major}: {errors:?}");
        let dumped = dump_timeline(&standby, 2, records[0].start, end);
        assert_eq!(records.len(), dumped.len(), "PostgreSQL {major}");
        for (record, line) in records.iter().zip(&dumped) {
            assert_eq!(describe(record), normalise(line), "PostgreSQL {major}: {line}");
        }
        let promotion = records.iter().find_map(|record| match Fact::of(record) {
            Ok(Some(Fact::EndOfRecovery { timeline, previous, .. })) => Some((timeline.0, previous.0)),
            _ => None,
        });
        assert_eq!(promotion, Some((2, 1)), "PostgreSQL {major}");
        assert!(
            records[0].start < replayed.parse().unwrap(),
            "the segment begins with the old timeline's records"
        );
    }
}

/// Crashes while a long record is being written: the segment that holds its end is gone when the server starts again.
fn crash_in_a_long_record(pg: &mut Pg, segment_mib: u64) {
    let size = segment_mib << 20;
    let before = insert_lsn(pg).get();
    // Over the segment's end, wherever in the segment we are.
    let to_end = size - before % size;
    let pad = to_end.saturating_sub(100_000);
    if pad > 100_000 {
        pg.sql(&format!("SELECT pg_logical_emit_message(false, 'pad', repeat('p', {pad})) IS NULL"));
    }
    pg.sql("SELECT pg_logical_emit_message(true, 'torn', repeat('t', 400000)) IS NULL");
    let after = insert_lsn(pg).get();
    assert!(after / size > before / size, "the record did not cross a segment");
    pg.stop(Stop::Immediate);
    let segment = walden::base::SegmentNo(after / size);
    let size = walden::base::SegmentSize::new(size).unwrap();
    let name = walden::base::WalFileName::segment(walden::base::TimelineId(1), segment, size).to_string();
    fs::remove_file(pg.data_dir().join("pg_wal").join(name)).unwrap();
    pg.start_again();
}

/// The lines of pg_waldump from `start` up to `end`.
fn dump(pg: &Pg, start: Lsn, end: Lsn) -> Vec<String> {
    dump_timeline(pg, 1, start, end)
}

fn dump_timeline(pg: &Pg, timeline: u32, start: Lsn, end: Lsn) -> Vec<String> {
    let mut command = pg.command("pg_waldump");
    command.arg("-p").arg(pg.data_dir().join("pg_wal"));
    command.args(["-t", &timeline.to_string(), "-s", &start.to_string(), "-e", &end.to_string()]);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter(|line| line.starts_with("rmgr: ")).map(str::to_owned).collect()
}

/// A record in the words of [`normalise`].
fn describe(record: &Record) -> String {
    let header = &record.header;
    let full: u32 =
        record.blocks.iter().filter_map(|block| block.image).map(|image| u32::from(image.len)).sum();
    let name = rmgr::NAMES[header.rmgr as usize];
    let mut text = format!(
        "{name} {}/{} tx {} lsn {} prev {}",
        header.total_len - full,
        header.total_len,
        header.xid,
        record.start,
        header.prev,
    );
    for block in &record.blocks {
        let relation = block.relation;
        let fork = ["", " fork fsm", " fork vm", " fork init"][block.fork as usize];
        let image = match block.image {
            Some(image) if image.apply => " FPW",
            Some(_) => " FPW for WAL verification",
            None => "",
        };
        let (space, database, number) = (relation.tablespace, relation.database, relation.relation);
        text += &format!(" #{} {space}/{database}/{number}{fork} blk {}{image}", block.id, block.block);
    }
    text
}

/// What of a line of pg_waldump [`describe`] says too.
fn normalise(line: &str) -> String {
    let field = |name: &str| {
        let rest = line.split_once(name).unwrap_or_else(|| panic!("no {name:?} in {line}")).1;
        rest.split(',').next().unwrap().trim().to_owned()
    };
    let manager = field("rmgr: ").split_whitespace().next().unwrap().to_owned();
    let lengths: Vec<_> = field("len (rec/tot): ").split('/').map(|part| part.trim().to_owned()).collect();
    let lsn = |text: String| text.parse::<Lsn>().unwrap();
    let (start, prev) = (
        lsn(field("lsn: ")),
        lsn(line.split_once(", prev ").unwrap().1.split(',').next().unwrap().to_owned()),
    );
    let mut text = format!("{manager} {} tx {} lsn {start} prev {prev}", lengths.join("/"), field("tx: "));
    // `blkref #0: rel 1663/5/1259 fork vm blk 0 FPW`, with `,` or `;` between.
    for part in line.split("blkref #").skip(1) {
        let part = part.split([',', ';']).next().unwrap().trim().replace(": rel", "");
        text += &format!(" #{part}");
    }
    text
}

/// Commits and aborts: the time to the microsecond. The server's time zone is UTC.
fn compare_time(record: &Record, line: &str) {
    let Some(Fact::Finished(finished)) = Fact::of(record).unwrap() else { return };
    let description = line.split_once("desc: ").unwrap().1;
    let word = match (finished.outcome, finished.prepared) {
        (Outcome::Commit, false) => "COMMIT ",
        (Outcome::Commit, true) => "COMMIT_PREPARED ",
        (Outcome::Abort, false) => "ABORT ",
        (Outcome::Abort, true) => "ABORT_PREPARED ",
    };
    let mut rest = description.strip_prefix(word).unwrap_or_else(|| panic!("not {word}: {line}"));
    if finished.prepared {
        let (xid, later) = rest.split_once(": ").unwrap();
        assert_eq!(finished.xid.to_string(), xid, "{line}");
        rest = later;
    }
    let shown = finished.time.to_string();
    let shown = shown.trim_end_matches("+00");
    assert!(rest.contains(shown), "{shown} is not in {line}");
    let subxacts = line.split_once("subxacts: ").map_or("", |(_, list)| list.split(';').next().unwrap());
    let listed: Vec<u32> = subxacts.split_whitespace().map(|xid| xid.parse().unwrap()).collect();
    assert_eq!(finished.subxids, listed, "{line}");
    let relations = line.split_once("rels: ").map_or("", |(_, list)| list.split(';').next().unwrap());
    assert_eq!(finished.dropped.len(), relations.split_whitespace().count(), "{line}");
}

/// The summarizer says what the records say, however it is cut.
fn summaries_agree(wal: &Wal, records: &[Record], headless: bool) {
    let finished: Vec<_> = records
        .iter()
        .filter_map(|record| match Fact::of(record).unwrap() {
            Some(Fact::Finished(finished)) => Some(finished),
            _ => None,
        })
        .collect();
    for piece in [wal.bytes.len(), 777_777, 8192] {
        let mut summarizer = Summarizer::new(wal.segment_size, wal.start, DecodeFrom::Anywhere);
        let mut merged = walden::format::wal::WalSummary::empty();
        for chunk in wal.bytes.chunks(piece) {
            summarizer.feed(summarizer.position(), chunk);
            merged.extend(&summarizer.take());
        }
        assert_eq!(merged.unread_first.is_some(), headless, "{:?}", summarizer.take_error());
        assert_eq!(merged.finished_count as usize, finished.len());
        let commits = finished.iter().filter(|one| one.outcome == Outcome::Commit).count();
        assert_eq!(merged.commit_count as usize, commits);
        assert_eq!(merged.time_first, finished.first().map(|one| one.time));
        assert_eq!(merged.time_last, finished.last().map(|one| one.time));
        assert_eq!(merged.time_max, finished.iter().map(|one| one.time).max());
        assert_eq!(merged.time_min, finished.iter().map(|one| one.time).min());
        assert_eq!(merged.xid_min, finished.iter().map(|one| one.xid).min());
        assert_eq!(merged.xid_max, finished.iter().map(|one| one.xid).max());
        assert_eq!(merged.first_record, records.first().map(|record| record.start));
        assert_eq!(merged.last_record_end, records.last().map(|record| record.end));
    }
}
