//! `walden analyze` against `pg_waldump --stats`, on a folder of WAL files and on an archive.

mod common;

use common::pg::{Pg, Stop, majors, wait_until};
use common::walden::{Place, finish};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

/// Records, bytes without images, bytes of images.
type Sums = BTreeMap<String, [u64; 3]>;

/// The server's WAL files, by name.
fn segments(pg: &Pg) -> Vec<String> {
    let names = fs::read_dir(pg.data_dir().join("pg_wal")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut segments: Vec<String> = names.filter(|name| name.len() == 24).collect();
    segments.sort();
    segments
}

/// What pg_waldump counts from the first WAL file on.
fn as_pg_waldump_counts(pg: &Pg) -> Sums {
    let (wal_dir, segments) = (pg.data_dir().join("pg_wal"), segments(pg));
    let mut command = pg.command("pg_waldump");
    // It ends with an error where WAL ends, after what was asked for.
    let last = segments.last().unwrap();
    command.arg("--path").arg(&wal_dir).args(["--stats=rmgr", &segments[0], last]);
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let table = text.lines().skip_while(|line| !line.starts_with("----"));
    let mut sums = Sums::new();
    for line in table.skip(1).take_while(|line| !line.trim_start().starts_with("----")) {
        let (name, counts) = line.split_once(char::is_whitespace).unwrap();
        // Shares stand in parentheses.
        let numbers = counts.split(')').map(|part| part.split('(').next().unwrap().trim());
        let numbers: Vec<u64> = numbers.filter_map(|number| number.parse().ok()).collect();
        if numbers[0] > 0 {
            sums.insert(name.to_owned(), [numbers[0], numbers[1], numbers[2]]);
        }
    }
    assert!(sums.contains_key("Heap"), "{text}");
    sums
}

fn number(document: &Value, name: &str) -> u64 {
    document[name].as_u64().unwrap_or_else(|| panic!("{name} in {document}"))
}

fn load(pg: &Pg) {
    pg.sql("CREATE TABLE t (a int PRIMARY KEY, b text)");
    pg.sql("INSERT INTO t SELECT i, md5(i::text) FROM generate_series(1, 20000) i");
    pg.sql("CHECKPOINT");
    pg.sql("UPDATE t SET b = b || 'x' WHERE a % 5 = 0");
    pg.sql("SELECT pg_switch_wal()");
    pg.sql("DELETE FROM t WHERE a % 7 = 0");
    pg.sql("VACUUM t");
}

#[test]
fn a_folder_is_counted_as_pg_waldump_counts() {
    let place = Place::new();
    for major in majors() {
        let compressed = if major % 2 == 0 { "on" } else { "off" };
        let mut pg = Pg::builder(major)
            .wal_segment_mib(1)
            .option("wal_keep_size", "512MB")
            .option("wal_compression", compressed)
            .start();
        load(&pg);
        let relation = pg.sql("SELECT pg_relation_filenode('t')");
        pg.stop(Stop::Fast);
        let wal_dir = pg.data_dir().join("pg_wal").display().to_string();
        let found = place.json(&["analyze", &wal_dir]);
        let mut sums = Sums::new();
        for rmgr in found["by_rmgr"].as_array().unwrap() {
            let counts = ["records", "bytes_records", "bytes_images"].map(|name| number(rmgr, name));
            sums.insert(rmgr["rmgr"].as_str().unwrap().to_owned(), counts);
        }
        assert_eq!(sums, as_pg_waldump_counts(&pg), "PostgreSQL {major}");

        let parts = ["bytes_images", "bytes_records", "bytes_switches", "bytes_overhead"];
        let parts: u64 = parts.iter().map(|name| number(&found, name)).sum();
        assert_eq!(parts, number(&found, "bytes_raw"));
        assert!(number(&found, "bytes_switches") > 0 && number(&found, "checkpoints") >= 2);
        assert_eq!(number(&found, "images_compressed") > 0, compressed == "on", "PostgreSQL {major}");
        let first = &found["relations"][0];
        assert!(first["relation"].as_str().unwrap().ends_with(&format!("/{relation}")), "{first}");
        assert!(number(first, "images") > 0 && number(first, "bytes_data") > 20_000 * 32);

        // What is left over from one relation to all.
        let one = place.json(&["analyze", &wal_dir, "--relations", "1"]);
        let bytes = |of: &Value| number(of, "bytes_data") + number(of, "bytes_images");
        let others: u64 = found["relations"].as_array().unwrap().iter().skip(1).map(bytes).sum();
        let left_out = number(&found, "bytes_relations_left_out") + others;
        assert_eq!(number(&one, "bytes_relations_left_out"), left_out);

        // Without a file in the middle: neither its bytes nor its records, nor those of files that wait to be written over.
        let names = segments(&pg);
        assert!(names.len() > 6, "{names:?}");
        fs::remove_file(format!("{wal_dir}/{}", names[2])).unwrap();
        fs::write(format!("{wal_dir}/0000000100000000000000FE"), vec![0; 1 << 20]).unwrap();
        let holed = place.json(&["analyze", &wal_dir]);
        assert_eq!(number(&holed, "bytes_raw"), number(&found, "bytes_raw") - (1 << 20));
        assert_eq!(holed["end_lsn"], found["end_lsn"]);
        assert!(number(&holed, "records") < number(&found, "records"));
    }
}

#[test]
fn an_archive_says_what_its_wal_takes() {
    let pg = Pg::builder(15).wal_segment_mib(1).start();
    let place = Place::init();
    let receive = place.start(place.command_for(&pg, &["receive"]), "receive");
    pg.wait_for("SELECT count(*) FROM pg_stat_replication", "1", Duration::from_secs(30));
    load(&pg);
    let stored = "SELECT flush_lsn >= pg_current_wal_flush_lsn() FROM pg_stat_replication";
    pg.wait_for(stored, "t", Duration::from_secs(30));
    let end = pg.sql("SELECT flush_lsn FROM pg_stat_replication");
    let newest = || place.json(&["analyze"]);
    assert!(wait_until(Duration::from_secs(30), || number(&newest(), "records") > 20_000));
    let whole = newest();
    assert!(number(&whole, "bytes_stored") * 2 < number(&whole, "bytes_raw"), "{whole}");
    // A record that began before the archive did.
    assert!(number(&whole, "unread_count") <= 1, "{whole}");
    assert!(whole["end_lsn"].as_str().unwrap() >= end.as_str(), "{whole}");
    finish(&mut place.command_for(&pg, &["compact", "--all"])).expect(0);
    let compacted = newest();
    for name in ["records", "bytes_images", "images"] {
        assert!(number(&compacted, name) >= number(&whole, name), "{name}: {compacted}");
    }
    let parts = ["bytes_delta_images", "bytes_delta_records", "bytes_plain_and_overhead"];
    let parts = parts.map(|name| number(&compacted["stored"], name));
    assert!(parts.iter().all(|bytes| *bytes > 0), "{compacted}");
    assert_eq!(parts.iter().sum::<u64>(), number(&compacted, "bytes_stored"));
    assert_eq!(number(&whole["stored"], "bytes_delta_records"), 0, "{whole}");
    drop(receive);
}

#[test]
fn what_is_no_wal_is_refused() {
    let place = Place::new();
    let dir = place.path("wal");
    fs::create_dir(&dir).unwrap();
    let dir = dir.display().to_string();
    let code = |args: &[&str]| {
        let ended = place.run(args);
        assert!(ended.err.starts_with("error: "), "{args:?}: {}", ended.err);
        ended.code
    };
    assert_eq!(code(&["analyze", &dir]), 6, "no WAL file");
    fs::write(format!("{dir}/000000010000000000000001"), vec![0; 1 << 20]).unwrap();
    let nothing = place.json(&["analyze", &dir]);
    assert_eq!((number(&nothing, "records"), number(&nothing, "bytes_overhead")), (0, 1 << 20));
    fs::write(format!("{dir}/000000010000000000000002"), vec![0; 1000]).unwrap();
    assert_eq!(code(&["analyze", &dir]), 4, "files of different sizes");
    assert_eq!(code(&["analyze", "/nonexistent"]), 2);
    assert_eq!(code(&["analyze", &dir, "--max-bytes", "1GiB"]), 2);
    assert_eq!(code(&["analyze", "--max-bytes", "much"]), 2);
}
