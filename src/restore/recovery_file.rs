//! What `walden wal-fetch` needs to know, in a file beside the WAL: repository, cluster, timeline path, where the secret
//! comes from. Never a secret itself. TOML, mode 0600; unknown keys are refused.

use super::error::RestoreError;
use crate::base::{BackupId, ClusterName, Generation, Lsn, LsnRange, SegmentSize, TimelineId};
use crate::disk::SecretSource;
use crate::repo::lineage::{Leg, TimelinePath};
use serde::Deserialize;
use std::fmt::Write;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The directory of ours, inside `pg_wal`: on its file system, so that a staged segment is handed over by a rename, and
/// left alone by base backups and pg_verifybackup.
pub const HOME: &str = "pg_wal/walden";
/// The file's name in [`HOME`].
pub const NAME: &str = "recovery.toml";
const VERSION: u32 = 1;
/// The largest file that is read: it has a line for each timeline and tablespace.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Which repository, and how to reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryPlace {
    /// Its URL, an absolute path if it is one.
    pub url: String,
    /// The address of an S3 server that is not Amazon's.
    pub endpoint: Option<String>,
    /// The region.
    pub region: Option<String>,
    /// Where the secret of its key slot comes from.
    pub secret: SecretSource,
}

/// A tablespace as it was restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedTablespace {
    /// Its oid.
    pub oid: u32,
    /// Its directory here.
    pub path: PathBuf,
}

/// The file's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryFile {
    /// The restored data directory, absolute.
    pub data_dir: PathBuf,
    /// The repository.
    pub repository: RepositoryPlace,
    /// The cluster.
    pub cluster: ClusterName,
    /// Its generation.
    pub generation: Generation,
    /// The backup that was restored.
    pub backup: BackupId,
    /// Its WAL segment size.
    pub segment_size: SegmentSize,
    /// The WAL that recovery reads.
    pub wal: LsnRange,
    /// Where the archive ended on the path when the restore was made. What was archived since is served too.
    pub durable_end: Lsn,
    /// The line of history to serve, and no other.
    pub path: TimelinePath,
    /// Tablespaces this restore made, which `--force` may empty again.
    pub tablespaces: Vec<PlacedTablespace>,
}

impl RecoveryFile {
    /// The directory where segments are staged.
    pub fn staging_dir(&self) -> PathBuf {
        self.data_dir.join(HOME)
    }

    /// The file as text. Refuses paths that are no text.
    pub fn encode(&self) -> Result<String, RestoreError> {
        let mut text =
            String::from("# Written by walden restore for its restore_command. It holds no secret.\n");
        let to = &mut text;
        line(to, "version", VERSION);
        line(to, "data_dir", path_text(&self.data_dir)?);
        line(to, "cluster", quoted(self.cluster.as_str()));
        line(to, "generation", self.generation);
        line(to, "backup", quoted(self.backup.as_str()));
        line(to, "segment_size", self.segment_size.bytes());
        line(to, "wal_start", quoted(&self.wal.start.to_string()));
        line(to, "wal_end", quoted(&self.wal.end.to_string()));
        line(to, "durable_end", quoted(&self.durable_end.to_string()));
        to.push_str("\n[repository]\n");
        line(to, "url", quoted(&self.repository.url));
        for (key, value) in [("endpoint", &self.repository.endpoint), ("region", &self.repository.region)] {
            if let Some(value) = value {
                line(to, key, quoted(value));
            }
        }
        match &self.repository.secret {
            SecretSource::PassphraseFile(path) => line(to, "passphrase_file", path_text(path)?),
            SecretSource::PassphraseCommand(command) => line(to, "passphrase_command", quoted(command)),
            SecretSource::KeyFile(path) => line(to, "key_file", path_text(path)?),
            SecretSource::KeyCommand(command) => line(to, "key_command", quoted(command)),
        }
        for leg in self.path.legs() {
            to.push_str("\n[[timeline]]\n");
            line(to, "id", leg.timeline);
            line(to, "start", quoted(&leg.range.start.to_string()));
        }
        for tablespace in &self.tablespaces {
            to.push_str("\n[[tablespace]]\n");
            line(to, "oid", tablespace.oid);
            line(to, "path", path_text(&tablespace.path)?);
        }
        Ok(text)
    }

    /// Reads the text back.
    pub fn decode(text: &str) -> Result<Self, String> {
        let raw: Raw = toml::from_str(text).map_err(|error| error.to_string())?;
        if raw.version != VERSION {
            return Err(format!("version {}, expected {VERSION}", raw.version));
        }
        let lsn = |text: &str| text.parse::<Lsn>().map_err(|error| error.to_string());
        let secret = {
            let RawRepository { passphrase_file, passphrase_command, key_file, key_command, .. } =
                &raw.repository;
            let all = [
                passphrase_file.clone().map(SecretSource::PassphraseFile),
                passphrase_command.clone().map(SecretSource::PassphraseCommand),
                key_file.clone().map(SecretSource::KeyFile),
                key_command.clone().map(SecretSource::KeyCommand),
            ];
            let mut given = all.into_iter().flatten();
            match (given.next(), given.next()) {
                (Some(one), None) => one,
                _ => return Err("expected exactly one source of the secret".into()),
            }
        };
        let mut parents = Vec::new();
        for pair in raw.timeline.windows(2) {
            if let [before, after] = pair {
                parents.push((TimelineId(before.id), lsn(&after.start)?));
            }
        }
        let last = raw.timeline.last().ok_or("no timeline")?;
        let (start, end) = (lsn(&raw.wal_start)?, lsn(&raw.wal_end)?);
        if start > end {
            return Err(format!("wal_end {end} is before wal_start {start}"));
        }
        Ok(RecoveryFile {
            data_dir: raw.data_dir,
            repository: RepositoryPlace {
                url: raw.repository.url,
                endpoint: raw.repository.endpoint,
                region: raw.repository.region,
                secret,
            },
            cluster: raw.cluster.parse().map_err(|error: crate::base::ids::IdError| error.to_string())?,
            generation: Generation(raw.generation),
            backup: raw.backup.parse().map_err(|error: crate::base::ids::IdError| error.to_string())?,
            segment_size: SegmentSize::new(raw.segment_size).map_err(|error| error.to_string())?,
            wal: LsnRange::new(start, end),
            durable_end: lsn(&raw.durable_end)?,
            path: TimelinePath::new(TimelineId(last.id), &parents).ok_or("timelines run backwards")?,
            tablespaces: raw
                .tablespace
                .into_iter()
                .map(|raw| PlacedTablespace { oid: raw.oid, path: raw.path })
                .collect(),
        })
    }

    /// Reads the file at `path`. Refuses one that others can read: what it says is believed.
    pub fn read(path: &Path) -> Result<Self, RestoreError> {
        let damage = |reason: String| RestoreError::Damage { what: path.display().to_string(), reason };
        let meta = fs::metadata(path).map_err(|error| RestoreError::io(path, "read", error))?;
        if meta.len() > FILE_BYTES_MAX || !meta.is_file() {
            return Err(damage("not a recovery file".into()));
        }
        if meta.mode() & 0o077 != 0 {
            let mode = meta.mode() & 0o777;
            return Err(RestoreError::Conflict {
                path: path.to_owned(),
                reason: format!("it can be read by others: mode {mode:04o}, expected 0600"),
                hint: format!("chmod 600 {}", path.display()),
            });
        }
        let text = fs::read_to_string(path).map_err(|error| RestoreError::io(path, "read", error))?;
        RecoveryFile::decode(&text).map_err(damage)
    }

    /// Where the leg that holds `at` lies.
    pub fn leg_at(&self, at: Lsn) -> Option<Leg> {
        self.path.legs().iter().copied().find(|leg| leg.range.contains(at))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    version: u32,
    data_dir: PathBuf,
    cluster: String,
    generation: u32,
    backup: String,
    segment_size: u64,
    wal_start: String,
    wal_end: String,
    durable_end: String,
    repository: RawRepository,
    timeline: Vec<RawTimeline>,
    #[serde(default)]
    tablespace: Vec<RawTablespace>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRepository {
    url: String,
    endpoint: Option<String>,
    region: Option<String>,
    passphrase_file: Option<PathBuf>,
    passphrase_command: Option<String>,
    key_file: Option<PathBuf>,
    key_command: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTimeline {
    id: u32,
    start: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTablespace {
    oid: u32,
    path: PathBuf,
}

fn line(to: &mut String, key: &str, value: impl std::fmt::Display) {
    // Writing to a String cannot fail.
    let _ = writeln!(to, "{key} = {value}");
}

fn path_text(path: &Path) -> Result<String, RestoreError> {
    match path.to_str() {
        Some(text) => Ok(quoted(text)),
        None => Err(RestoreError::usage(format!(
            "{}: a path that is not UTF-8 cannot be restored to",
            path.display()
        ))),
    }
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn example() -> RecoveryFile {
        let parents = [(TimelineId(1), Lsn::new(0x500_0000)), (TimelineId(2), Lsn::new(0x600_1000))];
        RecoveryFile {
            data_dir: "/srv/a \"b\"\\c\u{7f}/ü".into(),
            repository: RepositoryPlace {
                url: "s3://bucket/prefix".into(),
                endpoint: Some("http://127.0.0.1:21339".into()),
                region: None,
                secret: SecretSource::PassphraseCommand("pass show 'x' | head -1".into()),
            },
            cluster: "shop".parse().unwrap(),
            generation: Generation(2),
            backup: "20261122T195501Z".parse().unwrap(),
            segment_size: SegmentSize::DEFAULT,
            wal: LsnRange::new(Lsn::new(0x400_0000), Lsn::new(0x600_2000)),
            durable_end: Lsn::new(0x600_3000),
            path: TimelinePath::new(TimelineId(4), &parents).unwrap(),
            tablespaces: vec![PlacedTablespace { oid: 16_384, path: "/srv/fast".into() }],
        }
    }

    #[test]
    fn reads_back_what_it_wrote() {
        let mut file = example();
        assert_eq!(RecoveryFile::decode(&file.encode().unwrap()), Ok(file.clone()));
        for secret in [
            SecretSource::PassphraseFile("/etc/p".into()),
            SecretSource::KeyFile("/etc/k".into()),
            SecretSource::KeyCommand("k".into()),
        ] {
            file.repository.secret = secret;
            assert_eq!(RecoveryFile::decode(&file.encode().unwrap()), Ok(file.clone()));
        }
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        let text = example().encode().unwrap();
        let with = |from: &str, to: &str| RecoveryFile::decode(&text.replacen(from, to, 1)).unwrap_err();
        assert!(with("version = 1", "version = 2").contains("version 2"));
        assert!(with("cluster =", "colour = 1\ncluster =").contains("colour"));
        assert!(with("passphrase_command", "#").contains("one source"));
        assert!(with("[repository]", "[repository]\nkey_file = \"/k\"").contains("one source"));
        assert!(with("0/5000000", "0/7000000").contains("backwards"));
        assert!(with("segment_size = 16777216", "segment_size = 17").contains("17"));
        assert!(!text.contains("secret ="));
    }

    #[test]
    fn a_file_that_others_can_read_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        fs::write(&path, example().encode().unwrap()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(RecoveryFile::read(&path), Err(RestoreError::Conflict { .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(RecoveryFile::read(&path).unwrap(), example());
    }
}
