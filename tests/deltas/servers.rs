//! WAL of real servers of every major: bit for bit, with a base that was copied half-way. Each pair of settings in CI, every
//! combination of them in a long run.

use crate::bed::{self, mib};
use crate::common::pages::DataDirectory;
use crate::common::pg::temp_dir;
use crate::common::pg::{MAJORS, Pg, Stop, majors, run};
use std::collections::BTreeSet;
use std::process::Command;
use walden::base::{Lsn, SegmentSize, TimelineId, WalFileName};
use walden::delta::Surprise;

const WORKLOAD: &str = include_str!("../../tools/workload/schema.sql");
const PURCHASE: &str = include_str!("../../tools/workload/purchase.pgbench");
const CUSTOMERS: &str = "2000";
const BEFORE: &str = "
CREATE TABLE big (a int PRIMARY KEY, b text, c text);
INSERT INTO big SELECT g, repeat(md5(g::text), 4), gen_random_uuid() FROM generate_series(1, 6000) g;
CREATE TABLE points (p point);
INSERT INTO points SELECT point(g, g % 7) FROM generate_series(1, 2000) g;
CREATE SEQUENCE s;
CHECKPOINT;
";
const AFTER: &str = "
UPDATE big SET b = b || 'x' WHERE a % 3 = 0;
DELETE FROM big WHERE a % 5 = 0;
VACUUM big;
CREATE INDEX big_t ON big (b, a);
CREATE INDEX big_i ON big USING gin (string_to_array(b, 'a'));
CREATE INDEX big_h ON big USING hash (a);
CREATE INDEX big_r ON big USING brin (a);
CREATE INDEX points_s ON points USING spgist (p);
CREATE INDEX points_g ON points USING gist (p);
INSERT INTO big SELECT g, md5(g::text), '' FROM generate_series(7000, 9000) g;
INSERT INTO points SELECT point(g, g) FROM generate_series(1, 500) g;
SELECT nextval('s'), nextval('s');
BEGIN; INSERT INTO points VALUES (point(1, 1)); SAVEPOINT a; INSERT INTO points VALUES (point(2, 2)); ROLLBACK TO a;
SAVEPOINT b; INSERT INTO points VALUES (point(3, 3)); RELEASE b; COMMIT;
BEGIN; INSERT INTO points VALUES (point(4, 4)); PREPARE TRANSACTION 'kept';
BEGIN; CREATE TABLE gone (a int); PREPARE TRANSACTION 'lost';
COMMIT PREPARED 'kept'; ROLLBACK PREPARED 'lost';
SELECT pg_create_restore_point('halfway') IS NULL;
SELECT pg_logical_emit_message(false, 'long', repeat('wal', 700000)) IS NULL;
SELECT pg_logical_emit_message(true, 'short', 'message') IS NULL;
SELECT pg_switch_wal() IS NULL;
CHECKPOINT;
UPDATE big SET c = c || 'y' WHERE a % 4 = 0;
DO $$ BEGIN FOR i IN 1..40 LOOP EXECUTE format('CREATE TABLE many_%s (a int PRIMARY KEY, b text)', i); END LOOP; END $$;
DO $$ BEGIN FOR i IN 1..20 LOOP EXECUTE format('ALTER TABLE many_%s ADD c int DEFAULT 7', i);
EXECUTE format('DROP TABLE many_%s', i + 20); END LOOP; END $$;
DO $$ BEGIN FOR i IN 1..100 LOOP BEGIN INSERT INTO points VALUES (point(i, i)); EXCEPTION WHEN others THEN NULL; END; END LOOP; END $$;
CREATE TABLE large AS SELECT g AS a, md5(g::text) AS b FROM generate_series(1, 60000) g;
CREATE UNLOGGED TABLE unlogged (a int PRIMARY KEY);
INSERT INTO unlogged SELECT generate_series(1, 2000);
CREATE TEMPORARY TABLE passing AS SELECT generate_series(1, 2000) AS a;
ALTER TABLE unlogged SET LOGGED;
CREATE DATABASE other; DROP DATABASE other;
ALTER TABLE big ALTER COLUMN a TYPE bigint;
TRUNCATE points;
VACUUM FULL big;
CLUSTER big USING big_pkey;
REINDEX TABLE big;
";

/// What a server is made with.
#[derive(Debug, Clone, Copy)]
struct Cell {
    major: u32,
    segment_mib: u32,
    compression: &'static str,
    checksums: bool,
}

/// Cells of `major`: all there are, or so many that over all majors each two settings meet.
fn cells(major: u32, all: bool) -> Vec<Cell> {
    // 14 has pglz only, and the 15 that tools/setup installs is built without zstd.
    let (compressions, known) = match major {
        14 => (["off", "pglz", "pglz", "off"], 2),
        15 => (["off", "pglz", "lz4", "off"], 3),
        _ => (["off", "pglz", "lz4", "zstd"], 4),
    };
    let mut cells = Vec::new();
    for (number, compression) in compressions.into_iter().enumerate() {
        if all && number >= known {
            break;
        }
        for (size, segment_mib) in [1, 16, 64].into_iter().enumerate() {
            for checksums in [true, false] {
                let diagonal = major as usize + number;
                if all || (diagonal % 3 == size && diagonal.is_multiple_of(2) == checksums) {
                    cells.push(Cell { major, segment_mib, compression, checksums });
                }
            }
        }
    }
    cells
}

fn wal_comes_back_on(major: u32) {
    if !majors().contains(&major) {
        return;
    }
    for cell in cells(major, std::env::var_os("WALDEN_LONG").is_some()) {
        comes_back(cell);
    }
}

fn comes_back(cell: Cell) {
    let mut builder = Pg::builder(cell.major)
        .wal_segment_mib(cell.segment_mib)
        .option("wal_level", "logical")
        .option("max_prepared_transactions", "5")
        .option("wal_keep_size", "8GB")
        .option(
            "wal_compression",
            if cell.major == 14 && cell.compression == "pglz" { "on" } else { cell.compression },
        );
    if !cell.checksums {
        builder = builder.without_checksums();
    }
    let mut pg = builder.start();
    run(pg.command("pgbench").args(["-i", "-q", "-s", "1"]));
    pg.sql(&format!("\\set customers {CUSTOMERS}\n{WORKLOAD}"));
    pg.sql(BEFORE);
    let copy = temp_dir();
    run(Command::new("cp").arg("-a").arg(pg.data_dir().join("base")).arg(copy.path()));
    run(Command::new("cp").arg("-a").arg(pg.data_dir().join("global")).arg(copy.path()));
    pg.sql(AFTER);
    // Each file is copied, or each page is logged: what 14 does always, and what it cannot.
    for strategy in ["file_copy", "wal_log"].into_iter().filter(|_| cell.major > 14) {
        pg.sql(&format!("CREATE DATABASE by_{strategy} STRATEGY {strategy}"));
    }
    run(pg.command("pgbench").args(["-n", "-t", "400", "-c", "4"]));
    let script = pg.side_dir("workload").join("purchase.pgbench");
    std::fs::write(&script, PURCHASE).unwrap();
    let customers = format!("customers={CUSTOMERS}");
    run(pg.command("pgbench").args(["-n", "-D", &customers, "-t", "300", "-c", "4", "-f"]).arg(&script));
    // A crash amid a record leaves one that is overwritten.
    pg.restart(Stop::Kill);
    run(pg.command("pgbench").args(["-n", "-t", "100", "-c", "2"]));
    let end: Lsn = pg.sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap();
    let (size, start, wal) = read_wal(&pg, cell.segment_mib, end);

    let mut base = DataDirectory::open(copy.path());
    let outcome = bed::round_trip(bed::options(size), start, &wal, 131_072, usize::MAX, &mut base);
    let stats = outcome.stats;
    let ratio = stats.stored as f64 / stats.raw as f64;
    println!("{cell:?}: {} bytes, {ratio:.4}, {stats:?}, plain {:?}", wal.len(), outcome.surprises);
    let strange =
        outcome.surprises.iter().filter(|surprise| !matches!(surprise, Surprise::NoGain | Surprise::Record));
    assert_eq!(strange.count(), 0, "{cell:?}: {:?}", outcome.surprises);
    // A crash costs a frame or two; nothing else is strange about a server's WAL.
    assert!(outcome.surprises.len() <= 2, "{cell:?}: {:?}", outcome.surprises);
    let unpacked = stats.images_compressed - stats.images_stored;
    match cell.compression {
        "zstd" => assert!(stats.images_compressed > 500 && unpacked == 0, "{cell:?}: {stats:?}"),
        compression => {
            assert_eq!(stats.images_compressed > 500, compression != "off", "{cell:?}: {stats:?}");
            assert_eq!(stats.images_stored, 0, "{cell:?}: {stats:?}");
            assert!(stats.images_base > 50 && stats.images_image > 50, "{cell:?}: {stats:?}");
            assert!(ratio < if compression == "off" { 0.2 } else { 0.3 }, "{cell:?}: {ratio}");
        }
    }
    // From the middle of a record on, in other pieces, flushed at odd places.
    let skip = 12_345;
    bed::round_trip(
        bed::options(size),
        start.saturating_add(skip),
        &wal[skip as usize..],
        77_777,
        9,
        &mut base,
    );
}

fn read_wal(pg: &Pg, segment_mib: u32, end: Lsn) -> (SegmentSize, Lsn, Vec<u8>) {
    let (size, dir) = (mib(u64::from(segment_mib)), pg.data_dir().join("pg_wal"));
    let mut numbers: Vec<_> = std::fs::read_dir(&dir)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok()?.parse::<WalFileName>().ok())
        .filter_map(|name| name.segment_no(size))
        .filter(|number| number.range(size).start < end)
        .collect();
    numbers.sort();
    let start = numbers[0].range(size).start;
    let mut wal = Vec::new();
    for number in numbers {
        assert_eq!(number.range(size).start.bytes_since(start), wal.len() as u64, "a segment is missing");
        wal.extend(
            std::fs::read(dir.join(WalFileName::segment(TimelineId(1), number, size).to_string())).unwrap(),
        );
    }
    wal.truncate(end.bytes_since(start) as usize);
    (size, start, wal)
}

#[test]
fn each_two_settings_meet_in_a_cell() {
    let pairs = |all: bool| {
        let cells = MAJORS.iter().flat_map(|major| cells(*major, all));
        let of = |cell: Cell| {
            let settings = [
                format!("major {}", cell.major),
                format!("{} MiB", cell.segment_mib),
                cell.compression.to_owned(),
                format!("checksums {}", cell.checksums),
            ];
            let all = settings.clone();
            all.into_iter().flat_map(move |a| settings.clone().into_iter().map(move |b| (a.clone(), b)))
        };
        cells.flat_map(of).collect::<BTreeSet<_>>()
    };
    assert_eq!(pairs(false), pairs(true));
}

#[test]
fn wal_comes_back_on_14() {
    wal_comes_back_on(14);
}

#[test]
fn wal_comes_back_on_15() {
    wal_comes_back_on(15);
}

#[test]
fn wal_comes_back_on_16() {
    wal_comes_back_on(16);
}

#[test]
fn wal_comes_back_on_17() {
    wal_comes_back_on(17);
}

#[test]
fn wal_comes_back_on_18() {
    wal_comes_back_on(18);
}
