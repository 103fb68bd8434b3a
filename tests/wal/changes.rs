//! What transactions did: drops told apart from truncations and rewrites, on real servers.

use crate::common::pg::{Pg, Stop, majors};
use crate::server::{Wal, insert_lsn};
use walden::base::{Lsn, LsnRange};
use walden::format::wal::{Event, EventKind, WalSummary};
use walden::wal::{DecodeFrom, Summarizer};

use EventKind::{CreateDatabase, Drop, DropDatabase, DropIndex, Rewrite, Truncate};

/// What a commit did, by what a person would say.
const CASES: &[(&str, &[EventKind])] = &[
    ("DROP TABLE plain", &[Drop]),
    ("DROP TABLE wide", &[Drop]),
    ("BEGIN; INSERT INTO kept VALUES (-1); SAVEPOINT a; DROP TABLE nested; RELEASE a; COMMIT", &[Drop]),
    ("BEGIN; DROP TABLE staged; PREPARE TRANSACTION 'p'; COMMIT PREPARED 'p'", &[Drop]),
    ("BEGIN; SAVEPOINT a; DROP TABLE other; ROLLBACK TO a; INSERT INTO kept VALUES (-2); COMMIT", &[]),
    ("BEGIN; DROP TABLE other; ROLLBACK", &[]),
    ("DROP SCHEMA app CASCADE", &[Drop]),
    ("DROP MATERIALIZED VIEW seen", &[Drop]),
    ("DROP TABLE part_2", &[Drop]),
    ("DROP TABLE part", &[Drop]),
    ("DROP TABLE checked", &[Drop]),
    ("DROP SEQUENCE counter", &[Drop]),
    ("DROP VIEW looking", &[]),
    ("BEGIN; DROP TABLE swapped; CREATE TABLE swapped (a int); COMMIT", &[Drop]),
    ("BEGIN; DROP TABLE swapped; CREATE TABLE swapped AS SELECT * FROM kept; COMMIT", &[Drop]),
    ("BEGIN; DROP TABLE swapped; TRUNCATE other; COMMIT", &[Drop]),
    ("BEGIN; DROP TABLE one; ALTER TABLE kept ADD f int; COMMIT", &[Drop]),
    ("DROP INDEX kept_b", &[DropIndex]),
    ("DROP INDEX CONCURRENTLY kept_c", &[DropIndex]),
    ("ALTER TABLE keyed DROP CONSTRAINT keyed_pkey", &[DropIndex]),
    ("TRUNCATE other", &[Truncate]),
    ("TRUNCATE other, wide_2 RESTART IDENTITY CASCADE", &[Truncate]),
    (
        "BEGIN; TRUNCATE wide_2; INSERT INTO wide_2 SELECT g, repeat('z', 3000) FROM generate_series(1, 50) g; COMMIT",
        &[Truncate],
    ),
    ("BEGIN; TRUNCATE wide_2; DROP INDEX kept_d; COMMIT", &[Truncate]),
    ("BEGIN; TRUNCATE kept; ROLLBACK", &[]),
    ("BEGIN; SAVEPOINT a; TRUNCATE other; RELEASE a; COMMIT", &[Truncate]),
    ("TRUNCATE empty", &[Truncate]),
    ("TRUNCATE part_top", &[Truncate]),
    ("VACUUM FULL kept", &[Rewrite]),
    ("VACUUM FULL empty", &[Rewrite]),
    ("VACUUM FULL wide_2", &[Rewrite]),
    ("CLUSTER kept USING kept_pkey", &[Rewrite]),
    ("REINDEX TABLE kept", &[Rewrite]),
    ("REINDEX INDEX kept_pkey", &[Rewrite]),
    ("REINDEX TABLE empty", &[Rewrite]),
    ("REINDEX TABLE gins", &[Rewrite]),
    ("TRUNCATE gins", &[Truncate]),
    ("REINDEX INDEX CONCURRENTLY kept_pkey", &[Rewrite]),
    ("REINDEX TABLE CONCURRENTLY wide_2", &[Rewrite]),
    ("ALTER TABLE kept ALTER COLUMN a TYPE bigint", &[Rewrite]),
    ("ALTER TABLE wide_2 ALTER COLUMN b TYPE varchar(9999)", &[Rewrite]),
    ("ALTER TABLE wide_3 ALTER COLUMN b TYPE int USING length(b)", &[Rewrite]),
    ("ALTER TABLE kept ADD COLUMN d double precision DEFAULT random()", &[Rewrite]),
    ("ALTER TABLE fresh SET UNLOGGED", &[Rewrite]),
    ("ALTER TABLE fresh SET LOGGED", &[Rewrite]),
    ("ALTER SEQUENCE counter_2 RESTART WITH 5", &[Rewrite]),
    ("REFRESH MATERIALIZED VIEW seen_2", &[Rewrite]),
    ("REFRESH MATERIALIZED VIEW CONCURRENTLY seen_2", &[]),
    ("REFRESH MATERIALIZED VIEW seen_2 WITH NO DATA", &[Rewrite]),
    ("ALTER TABLE kept SET TABLESPACE side", &[Rewrite]),
    ("ALTER TABLE empty SET TABLESPACE side", &[Rewrite]),
    ("ALTER INDEX kept_e SET TABLESPACE side", &[Rewrite]),
    ("CREATE TEMP TABLE t (a int PRIMARY KEY, b text); DROP TABLE t", &[]),
    ("CREATE TEMP TABLE t ON COMMIT DROP AS SELECT 1", &[]),
    ("BEGIN; CREATE TABLE t (a int PRIMARY KEY, b text); DROP TABLE t; COMMIT", &[]),
    ("BEGIN; CREATE SEQUENCE t; DROP SEQUENCE t; COMMIT", &[]),
    ("BEGIN; CREATE TABLE t (a int); SAVEPOINT a; DROP TABLE t; RELEASE a; COMMIT", &[]),
    ("BEGIN; CREATE TABLE t (a int); INSERT INTO t VALUES (1); TRUNCATE t; DROP TABLE t; COMMIT", &[]),
    ("BEGIN; CREATE TABLE t (a int); ROLLBACK", &[]),
    ("DELETE FROM deleted; VACUUM deleted", &[]),
    ("DROP TABLE unlogged_1", &[Drop]),
    ("TRUNCATE unlogged_2", &[Rewrite]),
    ("CREATE DATABASE made", &[CreateDatabase]),
    ("ALTER DATABASE made SET TABLESPACE side", &[]),
    ("DROP DATABASE made", &[DropDatabase]),
    ("VACUUM FULL pg_class", &[Rewrite]),
    ("VACUUM FULL pg_type", &[Rewrite]),
    ("DROP TABLE late_1", &[Drop]),
    ("TRUNCATE late_2", &[Truncate]),
    ("VACUUM FULL late_2", &[Rewrite]),
    ("REINDEX INDEX CONCURRENTLY late_2_pkey", &[Rewrite]),
    ("DROP INDEX late_3", &[DropIndex]),
    ("VACUUM FULL", &[Rewrite]),
    ("DROP TABLE late_2", &[Drop]),
];

const SETUP: &str = "
CREATE TABLE kept (a int PRIMARY KEY, b text, c int);
INSERT INTO kept SELECT g, repeat('x', 50), g FROM generate_series(1, 500) g;
CREATE INDEX kept_b ON kept (b); CREATE INDEX kept_c ON kept (c); CREATE INDEX kept_d ON kept (c, b);
CREATE INDEX kept_e ON kept (c, a);
CREATE TABLE plain AS SELECT * FROM kept; CREATE TABLE plain_2 AS SELECT * FROM kept;
CREATE TABLE wide (a serial PRIMARY KEY, b text); INSERT INTO wide (b) SELECT repeat('y', 4000) FROM generate_series(1, 50);
CREATE TABLE wide_2 (a serial PRIMARY KEY, b text); INSERT INTO wide_2 (b) SELECT repeat('y', 4000) FROM generate_series(1, 50);
CREATE INDEX wide_2_h ON wide_2 USING hash (a); CREATE INDEX wide_2_r ON wide_2 USING brin (a);
CREATE TABLE gins (a int, b text[]); INSERT INTO gins SELECT g, ARRAY[g::text] FROM generate_series(1, 99) g; CREATE INDEX gins_g ON gins USING gin (b);
CREATE TABLE wide_4 AS SELECT * FROM wide_2; CREATE TABLE nested (a int); CREATE TABLE staged (a int); CREATE TABLE one (a int); CREATE TABLE empty (a int PRIMARY KEY);
CREATE TABLE swapped AS SELECT * FROM kept; CREATE TABLE other AS SELECT * FROM kept;
CREATE TABLE keyed (a int PRIMARY KEY);
CREATE SCHEMA app; CREATE TABLE app.one (a serial PRIMARY KEY, b text); CREATE TABLE app.two AS SELECT * FROM kept;
CREATE VIEW app.three AS SELECT * FROM app.two; CREATE TYPE app.kind AS ENUM ('a');
CREATE MATERIALIZED VIEW seen AS SELECT * FROM plain_2;
CREATE MATERIALIZED VIEW seen_2 AS SELECT a, b FROM wide_4; CREATE UNIQUE INDEX ON seen_2 (a);
CREATE TABLE part (a int PRIMARY KEY, b text) PARTITION BY RANGE (a);
CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (10); CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (10) TO (20);
CREATE TABLE part_top (a int) PARTITION BY RANGE (a); CREATE TABLE part_low PARTITION OF part_top FOR VALUES FROM (0) TO (10);
INSERT INTO part_top VALUES (1);
CREATE TABLE checked (a int CHECK (a > 0), b int CHECK (b > 0)); CREATE TABLE checked_child (CHECK (a < 9)) INHERITS (checked); DROP TABLE checked_child;
CREATE TABLE wide_3 AS SELECT * FROM wide; CREATE INDEX ON wide_3 (a); CREATE SEQUENCE counter; CREATE SEQUENCE counter_2; CREATE VIEW looking AS SELECT 1;
CREATE TABLE fresh AS SELECT * FROM kept; CREATE TABLE deleted AS SELECT * FROM kept;
CREATE UNLOGGED TABLE unlogged_1 AS SELECT * FROM kept; CREATE UNLOGGED TABLE unlogged_2 AS SELECT * FROM kept;
CREATE TABLE late_1 AS SELECT * FROM kept; CREATE TABLE late_2 AS SELECT * FROM kept; ALTER TABLE late_2 ADD PRIMARY KEY (a);
CREATE INDEX late_3 ON kept (b, a);
";

struct Case {
    sql: &'static str,
    expected: &'static [EventKind],
    range: LsnRange,
}

#[test]
fn tells_drops_from_truncations_and_rewrites() {
    for major in majors() {
        check(major, if major % 2 == 0 { "replica" } else { "logical" });
    }
}

fn check(major: u32, wal_level: &str) {
    let mut pg = Pg::builder(major)
        .option("fsync", "off")
        .option("max_wal_size", "4GB")
        .option("wal_keep_size", "4GB")
        .option("max_prepared_transactions", "10")
        .option("autovacuum", "off")
        .option("wal_level", wal_level)
        .start();
    let side = pg.side_dir("side");
    pg.sql(&format!("CREATE TABLESPACE side LOCATION '{}'", side.display()));
    pg.sql(SETUP);
    let mut cases = Vec::new();
    for (at, (sql, expected)) in CASES.iter().enumerate() {
        // Now and then a checkpoint, so that catalog pages come as images too.
        if at % 3 == 0 {
            pg.sql("CHECKPOINT");
        }
        let start = insert_lsn(&pg);
        pg.sql(&sql.replace("; ", ";\n"));
        cases.push(Case { sql, expected, range: LsnRange::new(start, insert_lsn(&pg)) });
    }
    let end = insert_lsn(&pg);
    pg.stop(Stop::Fast);
    let wal = Wal::read(&pg, 16, 1, end);
    let summary = summarize(&wal, wal.start, 1 << 20);
    assert_eq!(summary.unread_count, 0);
    let failures: Vec<_> = cases.iter().filter_map(|case| judge(case, &summary)).collect();
    assert!(failures.is_empty(), "PostgreSQL {major}, wal_level {wal_level}:\n{}", failures.join("\n"));
    assert_eq!(summarize(&wal, wal.start, 5003).events, summary.events);
    // Begun after pg_class was given another file, which nothing tells: no drop may be taken for less.
    let moved = cases.iter().position(|case| case.sql == "VACUUM FULL pg_type").unwrap();
    let late = summarize(&wal, cases[moved].range.end.align_down(8192), 1 << 20);
    for case in &cases[moved + 1..] {
        let events = late.events.iter().filter(is_change).filter(|event| case.range.contains(event.lsn));
        let kinds: Vec<_> = events.map(|event| event.kind).collect();
        let lossy = case.expected == [Drop] || case.expected == [Truncate];
        assert!(!lossy || kinds == [Drop] || kinds == case.expected, "{}: {kinds:?}", case.sql);
    }
}

fn summarize(wal: &Wal, start: Lsn, piece: usize) -> WalSummary {
    let mut summarizer = Summarizer::new(wal.segment_size, start, DecodeFrom::Anywhere);
    let mut merged = WalSummary::empty();
    for chunk in wal.bytes[start.bytes_since(wal.start) as usize..].chunks(piece) {
        summarizer.feed(summarizer.position(), chunk);
        merged.extend(&summarizer.take());
    }
    merged
}

fn is_change(event: &&Event) -> bool {
    matches!(event.kind, Drop | Truncate | Rewrite | DropIndex | CreateDatabase | DropDatabase)
}

/// What is wrong with the events of a case.
fn judge(case: &Case, summary: &WalSummary) -> Option<String> {
    let events = summary.events.iter().filter(is_change).filter(|event| case.range.contains(event.lsn));
    let found: Vec<_> = events.clone().map(|event| event.kind).collect();
    // VACUUM FULL of a whole database commits once a table.
    let fits = if case.sql == "VACUUM FULL" {
        found.len() > 20 && found.iter().all(|kind| *kind == Rewrite)
    } else {
        found == case.expected
    };
    // Shared catalogs are of no database.
    let is_sound = |event: &Event| match event.kind {
        CreateDatabase | DropDatabase => event.database > 0,
        _ => event.relation_count > 0 && event.xid > 0 && !event.relations.is_empty(),
    };
    let sound = events.clone().all(is_sound);
    let shown: Vec<_> = events.filter(|event| found.len() < 20 || event.kind != Rewrite).collect();
    (!fits || !sound).then(|| format!("{}: {found:?}, expected {:?}\n{shown:?}", case.sql, case.expected))
}
