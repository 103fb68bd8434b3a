//! A server under load, its WAL and a backup of it in a repository, and restores of it that the real binary feeds with WAL.

use crate::backup_bed::{Bed, CLUSTER, Receiving};
use crate::common::pg::{Pg, Process, give_to_postgres, run, temp_dir};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use walden::base::progress::Unwatched;
use walden::base::{Lsn, Timestamp};
use walden::disk::SecretSource;
use walden::repo::{Cluster, walmap};
use walden::restore::place::{Existing, TablespaceMapping};
use walden::restore::run::{ReachedBy, RestoreOptions, plan};
use walden::restore::settings::Harmful;
use walden::restore::{Request, RestoreError, Target, TargetAction};

/// The binary that PostgreSQL runs.
pub const WALDEN: &str = env!("CARGO_BIN_EXE_walden");
pub const RECOVERY_LIMIT: Duration = Duration::from_secs(120);

/// What one transaction left in the three tables, by its number.
pub type Rows = BTreeSet<(char, u32)>;

/// When and where a transaction was committed, by the source's own word.
#[derive(Debug, Clone, Copy)]
pub struct Committed {
    pub lsn: Lsn,
    pub time: Timestamp,
}

/// A repository with a key file, and room for restored directories.
pub struct Scene {
    pub bed: Bed,
    pub dir: TempDir,
    pub cluster: Cluster,
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

impl Scene {
    /// A repository, and a receiver that made the cluster in it.
    pub async fn new(pg: &Pg) -> (Scene, Receiving) {
        let bed = Bed::new().await;
        let receiving = Receiving::start(&bed.repo, pg);
        bed.wait_for_cluster().await;
        let dir = temp_dir();
        fs::write(dir.path().join("key"), "07".repeat(32)).unwrap();
        fs::set_permissions(dir.path().join("key"), fs::Permissions::from_mode(0o600)).unwrap();
        give_to_postgres(&dir.path().join("key"));
        let cluster = Cluster::open(bed.repo.clone(), CLUSTER.parse().unwrap()).await.unwrap();
        (Scene { bed, dir, cluster }, receiving)
    }

    /// The repository disappears, or is there again.
    pub fn cut_off(&self, cut: bool) {
        let (there, away) = (self.bed.repo_dir().join("clusters"), self.bed.repo_dir().join("away"));
        if cut { fs::rename(there, away).unwrap() } else { fs::rename(away, there).unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Options of a restore into `name`, its tablespaces beside it.
    pub async fn options(&self, name: &str, request: Request) -> RestoreOptions {
        let snapshot = walmap::load(&self.cluster).await.unwrap();
        let mut tablespaces = Vec::new();
        if let Some(backup) = snapshot.index.backups.last() {
            let opened = self.bed.open(&backup.id).await;
            for tablespace in &opened.manifest.meta.tablespaces {
                let new = self.path(&format!("{name}-{}", tablespace.oid));
                tablespaces.push(TablespaceMapping { old: tablespace.path.clone().into(), new });
            }
        }
        RestoreOptions {
            request,
            target_dir: self.path(name),
            wal_dir: None,
            config_dir: None,
            tablespaces,
            action: None,
            existing: Existing::Refuse,
            harmful: Harmful::Disarm,
            repository: ReachedBy {
                url: self.bed.repo_dir().display().to_string(),
                endpoint: None,
                region: None,
                secret: Some(SecretSource::KeyFile(self.path("key"))),
            },
            binary: WALDEN.into(),
            threads: 2,
        }
    }

    /// Restores, and gives the server over it, not started.
    pub async fn restore(&self, major: u32, options: &RestoreOptions) -> Result<Pg, RestoreError> {
        let planned = plan(&self.cluster, options).await?;
        planned.execute(Arc::new(Unwatched)).await?;
        // The server that feeds it runs as another user than this test.
        give_to_postgres(&self.bed.repo_dir());
        verify_backup(major, &options.target_dir);
        let pg = Pg::adopt(major, &options.target_dir);
        Ok(pg)
    }

    /// Restores `target` on the newest timeline, starts the server, and waits until it is there.
    pub async fn restored(&self, major: u32, name: &str, target: Target) -> Pg {
        let options = self.options(name, Request::new(target.clone())).await;
        let mut pg = self.restore(major, &options).await.unwrap();
        pg.start_again();
        wait_there(&pg, TargetAction::default_for(&target));
        pg
    }
}

/// Waits until recovery is where it should be.
pub fn wait_there(pg: &Pg, action: TargetAction) {
    match action {
        TargetAction::Pause => {
            pg.wait_for("SELECT pg_get_wal_replay_pause_state()", "paused", RECOVERY_LIMIT)
        }
        TargetAction::Promote => pg.wait_for("SELECT pg_is_in_recovery()", "f", RECOVERY_LIMIT),
        TargetAction::Shutdown => {}
    }
}

/// PostgreSQL's own proof of a restored directory; WAL is not in it.
fn verify_backup(major: u32, dir: &Path) {
    let pg = Pg::adopt(major, dir);
    let output = run(pg.command("pg_verifybackup").arg("-n").arg(dir));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("backup successfully verified"), "{said}");
}
