//! Everything a restore will do, decided before a byte is written: `--dry-run` prints it, [`run`](super::run) does it.

use super::config_files::ConfigLayout;
use super::host::{ClusterOwner, shell_word};
use super::place::{Clearance, Existing, Places};
use super::recovery_file::RecoveryFile;
use super::resolve::{Resolution, Stop};
use super::scan::Meaning;
use super::settings::SettingChange;
use super::target::{Request, TargetAction};
use crate::base::{ClusterName, LsnRange};
use serde_json::{Value, json};
use std::fmt;
use std::path::{Path, PathBuf};

/// What a restore will do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The cluster.
    pub cluster: ClusterName,
    /// PostgreSQL's version number, 150019.
    pub server_version: u32,
    /// What was asked for.
    pub request: Request,
    /// How it was understood.
    pub resolution: Resolution,
    /// What PostgreSQL does at the target.
    pub action: TargetAction,
    /// Where it is written.
    pub places: Places,
    /// What is emptied first.
    pub clearance: Clearance,
    /// Whether what is there may be replaced.
    pub existing: Existing,
    /// Who owns it, when not we.
    pub owner: Option<ClusterOwner>,
    /// Files in the backup.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Tablespaces: the directory on the source, and here.
    pub tablespaces: Vec<(String, PathBuf)>,
    /// Lines appended to `postgresql.auto.conf`.
    pub settings: Vec<SettingChange>,
    /// Configuration from outside the source's data directory.
    pub config: ConfigLayout,
    /// Where that goes.
    pub config_dir: PathBuf,
    /// For `wal-fetch`.
    pub recovery_file: RecoveryFile,
    /// The command that starts the server.
    pub start_command: String,
    /// Lines to inspect the server at the target, and to go on.
    pub after: Vec<String>,
    /// What a person should know.
    pub notes: Vec<String>,
}

impl Plan {
    /// The WAL that recovery reads.
    pub fn wal(&self) -> LsnRange {
        self.resolution.wal
    }

    /// PostgreSQL's major version.
    pub fn major(&self) -> u32 {
        self.server_version / 10_000
    }

    /// The plan as a document. Fields are only ever added.
    pub fn to_json(&self) -> Value {
        let Resolution { backup, path, stop, wal, durable_end, .. } = &self.resolution;
        let (kind, record) = match stop {
            Stop::Consistency => ("consistency", None),
            Stop::Before(record) => ("before", Some(record)),
            Stop::After(record) => ("after", Some(record)),
        };
        let pairs = self.tablespaces.iter().map(|(old, new)| json!({ "from": old, "to": new }));
        let settings =
            self.settings.iter().map(|s| json!({ "name": s.name, "value": s.value, "reason": s.reason }));
        json!({
            "cluster": self.cluster.as_str(),
            "server_version": self.server_version,
            "target": self.request.target.to_string(),
            "timeline": path.timeline().0,
            "backup": backup.id.as_str(),
            "stop": {
                "kind": kind,
                "lsn": record.map(|record| record.start.to_string()),
                "time": record.and_then(|record| time_of(&record.meaning)),
                "xid": record.and_then(|record| xid_of(&record.meaning)),
            },
            "action": self.action.as_str(),
            "wal": { "start": wal.start.to_string(), "end": wal.end.to_string(), "bytes": wal.len() },
            "durable_lsn": durable_end.to_string(),
            "target_dir": self.places.data_dir,
            "wal_dir": self.places.wal_dir,
            "owner": self.owner.as_ref().map(|owner| owner.name.as_str()),
            "replaces": self.clearance.directories().collect::<Vec<_>>(),
            "files": self.files,
            "bytes": self.bytes,
            "tablespaces": pairs.collect::<Vec<_>>(),
            "settings": settings.collect::<Vec<_>>(),
            "config_files": self.config_paths().collect::<Vec<_>>(),
            "start_command": self.start_command,
            "after": self.after,
            "notes": self.notes,
        })
    }

    /// Where each configuration file goes.
    pub fn config_paths(&self) -> impl Iterator<Item = PathBuf> + '_ {
        self.config.files.iter().map(|file| self.config_dir.join(&file.relative))
    }
}

fn time_of(meaning: &Meaning) -> Option<String> {
    match meaning {
        Meaning::Commit { time, .. } | Meaning::Abort { time, .. } => Some(time.to_string()),
        Meaning::Other | Meaning::Limits(_) => None,
    }
}

fn xid_of(meaning: &Meaning) -> Option<u32> {
    match meaning {
        Meaning::Commit { xid, .. } | Meaning::Abort { xid, .. } => Some(*xid),
        Meaning::Other | Meaning::Limits(_) => None,
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, record) = match self {
            Stop::Consistency => return f.write_str("as soon as the backup is consistent"),
            Stop::Before(record) => ("before", record),
            Stop::After(record) => ("after", record),
        };
        write!(f, "{word} the record at {}", record.start)?;
        match record.meaning {
            Meaning::Commit { xid, time } => write!(f, ", the commit of transaction {xid} at {time}"),
            Meaning::Abort { xid, time } => write!(f, ", the rollback of transaction {xid} at {time}"),
            Meaning::Other | Meaning::Limits(_) => Ok(()),
        }
    }
}

/// For people: one fact a line.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Resolution { backup, path, stop, wal, .. } = &self.resolution;
        let major = self.major();
        let mut line = |name: &str, value: &dyn fmt::Display| writeln!(f, "{name:<14}{value}");
        line("cluster", &format_args!("{}, PostgreSQL {major}", self.cluster))?;
        line("target", &self.request.target)?;
        line("stops", stop)?;
        line("then", &self.action.as_str())?;
        line("timeline", &path.timeline())?;
        line(
            "backup",
            &format_args!("{}, consistent at {} ({})", backup.id, backup.stop, backup.stopped_at),
        )?;
        line("files", &format_args!("{}, {}", self.files, bytes(self.bytes)))?;
        line("WAL", &format_args!("{wal}, {}", bytes(wal.len())))?;
        line("into", &self.places.data_dir.display())?;
        if let Some(wal_dir) = &self.places.wal_dir {
            line("pg_wal", &wal_dir.display())?;
        }
        for (old, new) in &self.tablespaces {
            line("tablespace", &format_args!("{old} -> {}", new.display()))?;
        }
        for dir in self.clearance.directories() {
            line("empties", &dir.display())?;
        }
        if let Some(owner) = &self.owner {
            line("owner", &owner.name)?;
        }
        for (file, path) in self.config.files.iter().zip(self.config_paths()) {
            line("configuration", &format_args!("{} -> {}", file.source, path.display()))?;
        }
        for SettingChange { name, value, reason } in &self.settings {
            line("setting", &format_args!("{name} = {} ({reason})", super::settings::quoted(value)))?;
        }
        for note in &self.notes {
            line("note", note)?;
        }
        line("start with", &self.start_command)?;
        for text in &self.after {
            line("then", text)?;
        }
        Ok(())
    }
}

/// A size as people read it.
fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    let unit_name = units.get(unit).unwrap_or(&"");
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {unit_name}") }
}

/// The command that starts a server of `data_dir`, whose `postgresql.conf` is in `config`.
pub(super) fn start_command(
    pg_ctl: &Path,
    data_dir: &Path,
    config: Option<(&Path, &Path)>,
    owner: Option<&ClusterOwner>,
) -> String {
    let word = |path: &Path| shell_word(&path.to_string_lossy());
    let mut command = match owner {
        Some(owner) => format!("runuser -u {} -- ", shell_word(&owner.name)),
        None => String::new(),
    };
    command.push_str(&word(pg_ctl));
    // Recovery may take as long as it takes.
    let log = data_dir.join("walden_start.log");
    match config {
        Some((config_dir, main)) if main == Path::new("postgresql.conf") => {
            command.push_str(&format!(" -D {} -l {}", word(config_dir), word(&log)));
        }
        Some((config_dir, main)) => {
            let option = format!("-c config_file={}", word(&config_dir.join(main)));
            command.push_str(&format!(" -D {} -o {} -l {}", word(data_dir), shell_word(&option), word(&log)));
        }
        None => command.push_str(&format!(" -D {} -l {}", word(data_dir), word(&log))),
    }
    command.push_str(" -t 86400 start");
    command
}

/// What to do once PostgreSQL is at the target.
pub(super) fn after(action: TargetAction) -> Vec<String> {
    let psql = |sql: &str, what: &str| format!("psql -c \"{sql}\"   # {what}");
    match action {
        TargetAction::Pause => vec![
            psql(
                "SELECT pg_get_wal_replay_pause_state(), pg_last_wal_replay_lsn(), pg_last_xact_replay_timestamp()",
                "it waits at the target, readable",
            ),
            psql(
                "SELECT pg_wal_replay_resume()",
                "ends recovery: the server becomes writable, on a new timeline",
            ),
        ],
        TargetAction::Promote => vec![psql("SELECT pg_is_in_recovery()", "f once recovery is over")],
        TargetAction::Shutdown => vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::files::Owner;

    #[test]
    fn the_start_command_finds_its_configuration() {
        let start = |config: Option<(&str, &str)>, owner: Option<&ClusterOwner>| {
            let config = config.map(|(dir, main)| (Path::new(dir), Path::new(main)));
            start_command(Path::new("/bin/pg_ctl"), Path::new("/srv/my data"), config, owner)
        };
        let tail = "-l '/srv/my data/walden_start.log' -t 86400 start";
        assert_eq!(start(None, None), format!("/bin/pg_ctl -D '/srv/my data' {tail}"));
        assert_eq!(
            start(Some(("/etc/pg", "postgresql.conf")), None),
            format!("/bin/pg_ctl -D /etc/pg {tail}")
        );
        assert_eq!(
            start(Some(("/etc/pg", "main.conf")), None),
            format!("/bin/pg_ctl -D '/srv/my data' -o '-c config_file=/etc/pg/main.conf' {tail}")
        );
        let owner = ClusterOwner { owner: Owner { user: 1, group: 1 }, name: "postgres".into() };
        assert!(start(None, Some(&owner)).starts_with("runuser -u postgres -- /bin/pg_ctl"));
    }

    #[test]
    fn sizes_are_readable() {
        for (count, text) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB")] {
            assert_eq!(bytes(count), text);
        }
    }
}
