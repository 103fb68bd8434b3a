//! A load of which every committed row is known: by its transaction, where that committed, and when.

use super::pg::{Pg, Process, temp_dir};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tempfile::TempDir;
use walden::base::{Lsn, Timestamp};

/// What one transaction left in the three tables, by its number.
pub type Rows = BTreeSet<(char, u32)>;

/// When and where a transaction was committed, by the source's own word.
#[derive(Debug, Clone, Copy)]
pub struct Committed {
    pub lsn: Lsn,
    pub time: Timestamp,
}

/// Tables in three tablespaces; every row names its transaction.
pub fn prepare(pg: &Pg) {
    for name in ["fast", "slow"] {
        let dir = pg.side_dir(name);
        pg.sql(&format!("CREATE TABLESPACE {name} LOCATION '{}'", dir.display()));
    }
    for (table, place) in [("a", "pg_default"), ("b", "fast"), ("c", "slow")] {
        pg.sql(&format!(
            "CREATE TABLE {table} (x bigint DEFAULT pg_current_xact_id()::text::bigint, t text) TABLESPACE {place}"
        ));
    }
    pg.sql("CREATE TABLE noise AS SELECT i, repeat('x', 500) AS t FROM generate_series(1, 3000) AS i");
    pg.sql("CREATE INDEX ON noise (i)");
}

/// A load that does not pause: one writer of the three tables, and others who make WAL.
pub fn load(pg: &Pg) -> (TempDir, Vec<Process>) {
    let dir = temp_dir();
    let script = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        path.display().to_string()
    };
    let rows = script(
        "rows",
        "BEGIN; INSERT INTO a DEFAULT VALUES; INSERT INTO b DEFAULT VALUES; INSERT INTO c DEFAULT VALUES; COMMIT;\n",
    );
    let noise = script(
        "noise",
        "\\set i random(1, 3000)\nUPDATE noise SET t = md5(random()::text) || repeat('y', 468) WHERE i = :i;\n",
    );
    let aborts = script(
        "aborts",
        "BEGIN; INSERT INTO a DEFAULT VALUES; SAVEPOINT s; INSERT INTO b DEFAULT VALUES; ROLLBACK;\n",
    );
    let bench =
        |script: &str, rate: &str| pg.spawn("pgbench", &["-n", "-T", "600", "-R", rate, "-f", script]);
    let running = vec![bench(&rows, "150"), bench(&noise, "150"), bench(&aborts, "20")];
    (dir, running)
}

pub fn rows(pg: &Pg) -> Rows {
    let text = pg.sql("SELECT 'a', x FROM a UNION ALL SELECT 'b', x FROM b UNION ALL SELECT 'c', x FROM c");
    let row = |line: &str| {
        let (table, xid) = line.split_once('|').unwrap();
        (table.chars().next().unwrap(), xid.parse().unwrap())
    };
    text.lines().map(row).collect()
}

/// Every commit in the source's WAL from `from` on, as pg_waldump reads it.
pub fn commits(pg: &Pg, from: Lsn) -> BTreeMap<u32, Committed> {
    let mut dump = pg.command("pg_waldump");
    dump.arg("-p").arg(pg.data_dir().join("pg_wal")).args(["-r", "Transaction", "-s", &from.to_string()]);
    // It ends with an error where WAL ends.
    let output = dump.args(["-e", &pg.wal_lsn()]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut found = BTreeMap::new();
    for line in text.lines().filter(|line| line.contains("desc: COMMIT ")) {
        let word = |name: &str| {
            let rest = line.split_once(name).unwrap().1.trim_start();
            rest.split([',', ' ']).next().unwrap().to_owned()
        };
        let stamp = line.split_once("desc: COMMIT ").unwrap().1;
        let time = time(&stamp[..stamp.find(" UTC").unwrap_or_else(|| panic!("{line}"))]);
        found.insert(word("tx:").parse().unwrap(), Committed { lsn: word("lsn:").parse().unwrap(), time });
    }
    assert!(!found.is_empty(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    found
}

/// `2026-11-22 19:55:01.123456` in UTC.
pub fn time(text: &str) -> Timestamp {
    let text = text.trim_end_matches("+00");
    let (date, clock) = text.split_once(' ').unwrap();
    let moment: jiff::Timestamp = format!("{date}T{clock}Z").parse().unwrap();
    Timestamp::from_unix_micros(moment.as_microsecond())
}

/// `OLD=NEW` for `--tablespace-map` of what [`prepare`] made: into directories beside `target`.
pub fn tablespace_maps(pg: &Pg, target: &Path) -> Vec<String> {
    let beside = |name: &str| format!("{}={}-{name}", pg.side_dir(name).display(), target.display());
    vec![beside("fast"), beside("slow")]
}

/// The rows of transactions that `belongs` says are in.
pub fn expected(
    all: &Rows,
    commits: &BTreeMap<u32, Committed>,
    belongs: impl Fn(&Committed) -> bool,
) -> Rows {
    let known = |xid: &u32| commits.get(xid).unwrap_or_else(|| panic!("transaction {xid} is not in the WAL"));
    all.iter().filter(|(_, xid)| belongs(known(xid))).copied().collect()
}

/// A moment in the middle third of the load at which nobody committed for a while: commit times are taken before the record
/// is written, so that close neighbours may swap.
pub fn quiet_moment(commits: &BTreeMap<u32, Committed>) -> Timestamp {
    let mut times: Vec<Timestamp> = commits.values().map(|commit| commit.time).collect();
    times.sort();
    let third = times.len() / 3;
    let gaps = times[third..2 * third].windows(2).map(|pair| (pair[1].micros_since(pair[0]), pair[0]));
    let (gap, after) = gaps.max().unwrap();
    assert!(gap > 1000, "the load leaves {gap} microseconds at most");
    after.saturating_add_micros(gap / 2)
}
