//! A server under load, its WAL and a backup of it in a repository, and restores of it that the real binary feeds with WAL.

use crate::backup_bed::{Bed, CLUSTER, Receiving};
use crate::common::pg::{Pg, give_to_postgres, run, temp_dir};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use walden::base::progress::Unwatched;
use walden::disk::SecretSource;
use walden::repo::{Cluster, walmap};
use walden::restore::place::{Existing, TablespaceMapping};
use walden::restore::run::{ReachedBy, RestoreOptions, plan};
use walden::restore::settings::Harmful;
use walden::restore::{Request, RestoreError, Target, TargetAction};

/// The binary that PostgreSQL runs.
pub const WALDEN: &str = env!("CARGO_BIN_EXE_walden");
pub const RECOVERY_LIMIT: Duration = Duration::from_secs(120);

/// A repository with a key file, and room for restored directories.
pub struct Scene {
    pub bed: Bed,
    pub dir: TempDir,
    pub cluster: Cluster,
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
