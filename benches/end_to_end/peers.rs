//! pgBackRest on the same server: asynchronous archiving, a full backup and a restore, with zstd, AES and a process a core.
//! Debian's package; a missing one is an error, not a figure left out.

use crate::common::pg::{give_to_postgres, postgres_command, temp_dir};
use crate::meter::{Meter, Taken, Whom, timed};
use crate::server::Server;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

const STANZA: &str = "shop";

/// A configured pgBackRest.
#[derive(Debug)]
pub struct PgBackRest {
    dir: TempDir,
    /// What it says it is.
    pub version: String,
}

impl PgBackRest {
    /// Configures it for `server`.
    pub fn configure(server: &Server) -> PgBackRest {
        let said = Command::new("pgbackrest").arg("version").output();
        let said = said.unwrap_or_else(|error| panic!("pgbackrest: {error}; tools/bench-peers installs it"));
        let version = String::from_utf8_lossy(&said.stdout).trim().to_owned();
        let dir = temp_dir();
        let at = dir.path().display();
        let processes = std::thread::available_parallelism().map_or(2, usize::from);
        let configuration = format!(
            "[global]\nrepo1-path={at}/repo\nrepo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass=not-a-secret-here\n\
             compress-type=zst\ncompress-level=3\nprocess-max={processes}\narchive-async=y\nspool-path={at}/spool\n\
             lock-path={at}/lock\nlog-path={at}/log\nlog-level-console=warn\nlog-level-file=off\nstart-fast=y\n\
             archive-timeout=600\nrepo1-retention-full=9\n\n\
             [{STANZA}]\npg1-path={}\npg1-socket-path={}\npg1-port={}\npg1-user=postgres\n",
            server.pg.data_dir().display(),
            server.pg.socket_dir().display(),
            server.pg.port(),
        );
        std::fs::write(dir.path().join("pgbackrest.conf"), configuration).expect("its configuration");
        let peer = PgBackRest { dir, version };
        peer.empty();
        peer
    }

    /// Begins with an empty repository.
    fn empty(&self) {
        for name in ["repo", "spool", "lock", "log"] {
            let path = self.dir.path().join(name);
            std::fs::remove_dir_all(&path).ok();
            std::fs::create_dir(&path).expect("a directory");
        }
        give_to_postgres(self.dir.path());
        timed(&mut self.command(&["stanza-create"]));
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = postgres_command("/usr/bin/pgbackrest");
        command.arg(format!("--config={}", self.configuration())).arg(format!("--stanza={STANZA}"));
        command.args(arguments);
        command
    }

    fn configuration(&self) -> String {
        self.dir.path().join("pgbackrest.conf").display().to_string()
    }

    fn archive_command(&self) -> String {
        format!("/usr/bin/pgbackrest --config={} --stanza={STANZA} archive-push %p", self.configuration())
    }

    /// Archives the held WAL into an empty repository, as the server's archiver asks for it.
    pub fn archive(&self, server: &Server) -> Taken {
        self.empty();
        let status = server.pg.data_dir().join("pg_wal/archive_status");
        let first = segment_name(server.wal_start);
        let last = segment_name(server.wal_end);
        for entry in std::fs::read_dir(&status).expect("the archive status").flatten() {
            let name = entry.file_name().into_string().expect("a name");
            if let Some(segment) = name.strip_suffix(".done")
                && (first.as_str()..=last.as_str()).contains(&segment)
            {
                std::fs::rename(entry.path(), status.join(format!("{segment}.ready"))).expect("a new name");
            }
        }
        let meter = Meter::start(Whom::Named("pgbackrest"));
        server.archive_all_with(&self.archive_command());
        let taken = meter.stop();
        server.archive_with("");
        taken
    }

    /// Takes a backup into an empty repository, and has the server archive from now on.
    pub fn begin(&self, server: &Server) {
        self.empty();
        server.archive_all_with(&self.archive_command());
        timed(&mut self.command(&["--type=full", "backup"]));
    }

    /// Ends that; bytes that each WAL file takes, by its name.
    pub fn end_archive(&self, server: &Server) -> impl Fn(&str) -> u64 + use<> {
        server.archive_all_with(&self.archive_command());
        server.archive_with("");
        let mut dirs = vec![self.dir.path().join("repo/archive")];
        let mut bytes = HashMap::new();
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).expect("its archive").flatten() {
                let name = entry.file_name().into_string().expect("a name");
                let meta = entry.metadata().expect("its length");
                if meta.is_dir() {
                    dirs.push(entry.path());
                } else if let Some(segment) = name.get(..24) {
                    bytes.insert(segment.to_owned(), meta.len());
                }
            }
        }
        move |name| *bytes.get(name).unwrap_or_else(|| panic!("{name} is not in its archive"))
    }

    /// A full backup into an empty repository.
    pub fn backup(&self, server: &Server) -> Taken {
        self.empty();
        server.archive_all_with(&self.archive_command());
        let (taken, _) = timed(&mut self.command(&["--type=full", "backup"]));
        server.archive_all_with(&self.archive_command());
        server.archive_with("");
        taken
    }

    /// Restores the newest backup into a new directory, and removes it.
    pub fn restore(&self) -> Taken {
        let target = self.dir.path().join("restored");
        let taken = self.restore_into(&target, "immediate");
        std::fs::remove_dir_all(&target).expect("the restored directory goes");
        taken
    }

    /// Restores the newest backup into `target`, with `kind` of a recovery target.
    pub fn restore_into(&self, target: &Path, kind: &str) -> Taken {
        std::fs::create_dir(target).expect("a directory");
        give_to_postgres(target);
        let (pg_path, kind) = (format!("--pg1-path={}", target.display()), format!("--type={kind}"));
        timed(&mut self.command(&[&pg_path, &kind, "--archive-mode=off", "restore"])).0
    }

    /// A path beside its repository.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// The name of the segment of 16 MiB that holds byte `lsn` on timeline 1.
pub fn segment_name(lsn: u64) -> String {
    format!("00000001{:08X}{:08X}", lsn >> 32, (lsn & 0xFFFF_FFFF) >> 24)
}
