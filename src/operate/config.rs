//! The configuration file: `[repository.NAME]` and `[cluster.NAME]` tables. Pure but for [`load`].
//! Refuses keys it does not know, with the nearest one it knows, and every key that would hold a secret.

mod retention;

pub use retention::Retention;

use super::units;
use crate::base::ClusterName;
use crate::disk::SecretSource;
use crate::net::contains_password;
use crate::store::StoreOptions;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

/// Where the file is when nobody says.
pub const DEFAULT_PATH: &str = "/etc/walden/walden.toml";

const REPOSITORY_KEYS: &[&str] = &[
    "url",
    "passphrase_file",
    "passphrase_command",
    "key_file",
    "key_command",
    "endpoint",
    "region",
    "single_writer",
];
const CLUSTER_KEYS: &[&str] = &[
    "connection",
    "repositories",
    "ack",
    "journal_dir",
    "journal_size",
    "slot",
    "flush_interval",
    "shutdown_grace",
    "wal_deltas",
    "delta_cache",
    "cache_dir",
    "retention",
];
/// What people call secrets. Store credentials come from the environment or the cloud's own files.
const SECRET_WORDS: &[&str] =
    &["password", "passphrase", "secret", "secret_key", "secret_access_key", "access_key", "token", "key"];

/// A parsed file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigFile {
    /// Repositories by name.
    pub repositories: BTreeMap<String, RepositoryTable>,
    /// Clusters by name.
    pub clusters: BTreeMap<ClusterName, ClusterTable>,
}

/// A `[repository.NAME]` table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RepositoryTable {
    /// `url`.
    pub url: String,
    /// One of `passphrase_file`, `passphrase_command`, `key_file`, `key_command`.
    pub secret: Option<SecretSource>,
    /// `endpoint`: the address of an S3 server that is not Amazon's.
    pub endpoint: Option<String>,
    /// `region`.
    pub region: Option<String>,
    /// `single_writer`: the operator declares that one process at a time writes.
    pub single_writer: bool,
}

impl RepositoryTable {
    /// What the table says of its store beside the URL, which comes first where both say something.
    pub fn store_options(&self) -> StoreOptions {
        let at = StoreOptions::at(self.endpoint.as_deref(), self.region.as_deref());
        StoreOptions { single_writer: self.single_writer, ..at }
    }
}

/// A `[cluster.NAME]` table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClusterTable {
    /// `connection`, without a password.
    pub connection: Option<String>,
    /// `repositories`, by name.
    pub repositories: Vec<String>,
    /// `ack`.
    pub ack: Option<Ack>,
    /// `journal_dir`.
    pub journal_dir: Option<PathBuf>,
    /// `journal_size`, in bytes.
    pub journal_bytes_max: Option<u64>,
    /// `slot`.
    pub slot: Option<String>,
    /// `flush_interval`.
    pub flush_interval: Option<Duration>,
    /// `shutdown_grace`.
    pub shutdown_grace: Option<Duration>,
    /// `wal_deltas`.
    pub wal_deltas: Option<Switch>,
    /// `delta_cache`, in bytes.
    pub delta_cache_bytes: Option<u64>,
    /// `cache_dir`.
    pub cache_dir: Option<PathBuf>,
    /// `retention`.
    pub retention: Option<Retention>,
}

/// Whether something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switch {
    /// It is.
    On,
    /// It is not.
    Off,
}

impl std::str::FromStr for Switch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "on" => Ok(Switch::On),
            "off" => Ok(Switch::Off),
            _ => Err(format!("{text:?} is neither on nor off")),
        }
    }
}

/// When PostgreSQL is told that WAL is safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ack {
    /// Once it is durable in the repository.
    #[default]
    Object,
    /// Once it is durable in the journal.
    Journal,
}

impl fmt::Display for Ack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Ack::Object => "object",
            Ack::Journal => "journal",
        })
    }
}

impl std::str::FromStr for Ack {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "object" => Ok(Ack::Object),
            "journal" => Ok(Ack::Journal),
            _ => Err(format!("{text:?} is not an acknowledgement mode, expected object or journal")),
        }
    }
}

/// What is wrong with the configuration, and where.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {reason}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
    /// It is not TOML.
    #[error("{place}: {reason}")]
    Syntax {
        /// File and line.
        place: Place,
        /// What the parser said.
        reason: String,
    },
    /// A key that means nothing.
    #[error("{place}: unknown key {key}{}", nearest_text(.nearest))]
    UnknownKey {
        /// File and line.
        place: Place,
        /// The key, with its table.
        key: String,
        /// The nearest known key.
        nearest: Option<String>,
    },
    /// A secret stands in the file, or would.
    #[error("{place}: {key}: no secret may stand here, where others can read it")]
    Secret {
        /// File and line.
        place: Place,
        /// The key, with its table.
        key: String,
    },
    /// A value of the wrong kind.
    #[error("{place}: {key} is {found}, expected {expected}")]
    Value {
        /// File and line.
        place: Place,
        /// The key, with its table.
        key: String,
        /// The value.
        found: String,
        /// What it should have been.
        expected: String,
    },
    /// Two keys of which one is enough.
    #[error("{place}: both {first} and {second} are given, expected one source of the secret")]
    TwoSecrets {
        /// File and line, or where else.
        place: Place,
        /// The one.
        first: String,
        /// The other.
        second: String,
    },
    /// Something nobody gave.
    #[error("{what} is missing")]
    Missing {
        /// What, and how to give it.
        what: String,
    },
    /// A name that the file does not define, or that is not a name.
    #[error("{place}: {reason}")]
    Name {
        /// Where it was given.
        place: Place,
        /// What is wrong with it.
        reason: String,
    },
}

fn nearest_text(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!(", did you mean {name}?")).unwrap_or_default()
}

/// Where a setting was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On a line of a file.
    Line(PathBuf, usize),
    /// In a file.
    File(PathBuf),
    /// As an option on the command line.
    Flag(&'static str),
    /// In a variable of the environment.
    Variable(&'static str),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line(path, line) => write!(f, "{} line {line}", path.display()),
            Place::File(path) => write!(f, "{}", path.display()),
            Place::Flag(flag) => f.write_str(flag),
            Place::Variable(name) => f.write_str(name),
        }
    }
}

/// Reads the file at `path`; without one, the file at [`DEFAULT_PATH`] if there is one.
pub fn load(path: Option<&Path>) -> Result<ConfigFile, ConfigError> {
    let place = path.unwrap_or(Path::new(DEFAULT_PATH));
    match std::fs::read_to_string(place) {
        Ok(text) => parse(&text, place),
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.is_none() => Ok(ConfigFile::default()),
        Err(reason) => Err(ConfigError::Unreadable { path: place.to_owned(), reason }),
    }
}

/// Parses the `text` of the file at `path`, which is not read.
pub fn parse(text: &str, path: &Path) -> Result<ConfigFile, ConfigError> {
    let file = Source { text, path };
    let table = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        place: file.place(error.span().map_or(0, |span| span.start)),
        reason: error.message().to_owned(),
    })?;
    let mut config = ConfigFile::default();
    for (key, value) in table.get_ref() {
        let kind = key.get_ref().as_ref();
        if !matches!(kind, "repository" | "cluster") {
            return Err(file.unknown("", key, &["repository", "cluster"]));
        }
        for (name, table) in file.table(kind, value)? {
            let path = format!("{kind}.{}", name.get_ref());
            let section =
                Section { file: &file, path: &path, table: file.table(&path, table)?, at: name.span().start };
            if kind == "repository" {
                section.only(REPOSITORY_KEYS)?;
                config.repositories.insert(name.get_ref().to_string(), section.repository()?);
            } else {
                section.only(CLUSTER_KEYS)?;
                let place = file.place(name.span().start);
                let name: ClusterName =
                    name.get_ref().parse().map_err(|error: crate::base::ids::IdError| ConfigError::Name {
                        place,
                        reason: error.to_string(),
                    })?;
                config.clusters.insert(name, section.cluster()?);
            }
        }
    }
    Ok(config)
}

/// The known name nearest to `name`, if one is near at all.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let distances = known.into_iter().map(|candidate| (strsim::osa_distance(name, candidate), candidate));
    let (distance, best) = distances.min()?;
    (distance <= name.len().max(best.len()).div_ceil(3)).then(|| best.to_owned())
}

struct Source<'a> {
    text: &'a str,
    path: &'a Path,
}

impl Source<'_> {
    fn place(&self, offset: usize) -> Place {
        let before = self.text.get(..offset).unwrap_or(self.text);
        Place::Line(self.path.to_owned(), before.matches('\n').count() + 1)
    }

    fn table<'t, 'd>(
        &self,
        key: &str,
        value: &'t Spanned<DeValue<'d>>,
    ) -> Result<&'t DeTable<'d>, ConfigError> {
        value.get_ref().as_table().ok_or_else(|| self.wrong(key, value, "a table of settings"))
    }

    fn wrong(&self, key: &str, value: &Spanned<DeValue<'_>>, expected: &str) -> ConfigError {
        let found = self.text.get(value.span()).unwrap_or(value.get_ref().type_str());
        ConfigError::Value {
            place: self.place(value.span().start),
            key: key.to_owned(),
            found: found.to_owned(),
            expected: expected.to_owned(),
        }
    }

    fn unknown(&self, table: &str, key: &Spanned<DeString<'_>>, known: &[&str]) -> ConfigError {
        let name = key.get_ref().as_ref();
        let full = if table.is_empty() { name.to_owned() } else { format!("{table}.{name}") };
        let place = self.place(key.span().start);
        if SECRET_WORDS.contains(&name) {
            return ConfigError::Secret { place, key: full };
        }
        ConfigError::UnknownKey { place, key: full, nearest: nearest(name, known.iter().copied()) }
    }
}

struct Section<'s, 't, 'd> {
    file: &'s Source<'s>,
    path: &'s str,
    table: &'t DeTable<'d>,
    at: usize,
}

impl Section<'_, '_, '_> {
    fn only(&self, known: &[&str]) -> Result<(), ConfigError> {
        match self.table.keys().find(|key| !known.contains(&key.get_ref().as_ref())) {
            Some(key) => Err(self.file.unknown(self.path, key, known)),
            None => Ok(()),
        }
    }

    fn get<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&DeValue<'_>) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.table.get(key) else { return Ok(None) };
        let wrong = || self.file.wrong(&format!("{}.{key}", self.path), value, expected);
        read(value.get_ref()).map(Some).ok_or_else(wrong)
    }

    fn string(&self, key: &str) -> Result<Option<String>, ConfigError> {
        self.get(key, "a string", |value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned))
    }

    fn path(&self, key: &str) -> Result<Option<PathBuf>, ConfigError> {
        let absolute = |text: &str| Path::new(text).is_absolute().then(|| PathBuf::from(text));
        self.get(key, "an absolute path", |value| value.as_str().and_then(absolute))
    }

    fn duration(&self, key: &str) -> Result<Option<Duration>, ConfigError> {
        self.get(key, "a duration such as \"500ms\" or \"1s\"", |value| {
            value.as_str().and_then(units::duration)
        })
    }

    fn repository(&self) -> Result<RepositoryTable, ConfigError> {
        let url = self.string("url")?.ok_or_else(|| ConfigError::Missing {
            what: format!("{}: {}.url", self.file.place(self.at), self.path),
        })?;
        let sources = [
            ("passphrase_file", self.path("passphrase_file")?.map(SecretSource::PassphraseFile)),
            ("passphrase_command", self.string("passphrase_command")?.map(SecretSource::PassphraseCommand)),
            ("key_file", self.path("key_file")?.map(SecretSource::KeyFile)),
            ("key_command", self.string("key_command")?.map(SecretSource::KeyCommand)),
        ];
        Ok(RepositoryTable {
            url,
            secret: one_secret(sources, &self.file.place(self.at))?,
            endpoint: self.string("endpoint")?,
            region: self.string("region")?,
            single_writer: self
                .get("single_writer", "true or false", |value| value.as_bool())?
                .unwrap_or(false),
        })
    }

    fn cluster(&self) -> Result<ClusterTable, ConfigError> {
        let names = |value: &DeValue<'_>| {
            let names = value.as_array()?.iter();
            names.map(|name| name.get_ref().as_str().map(str::to_owned)).collect::<Option<Vec<String>>>()
        };
        let connection = self.string("connection")?;
        if connection.as_deref().is_some_and(contains_password) {
            let key = format!("{}.connection", self.path);
            return Err(ConfigError::Secret { place: self.file.place(self.at), key });
        }
        Ok(ClusterTable {
            connection,
            repositories: self.get("repositories", "a list of names", names)?.unwrap_or_default(),
            ack: self.get("ack", "\"object\" or \"journal\"", |value| value.as_str()?.parse().ok())?,
            journal_dir: self.path("journal_dir")?,
            journal_bytes_max: self.get("journal_size", "a size such as \"10GB\"", |value| {
                value.as_str().and_then(units::bytes)
            })?,
            slot: self.get("slot", units::SLOT_NAME, |value| value.as_str().and_then(units::slot_name))?,
            flush_interval: self.duration("flush_interval")?,
            shutdown_grace: self.duration("shutdown_grace")?,
            wal_deltas: self.get("wal_deltas", "\"on\" or \"off\"", |value| match value.as_bool() {
                Some(on) => Some(if on { Switch::On } else { Switch::Off }),
                None => value.as_str()?.parse().ok(),
            })?,
            delta_cache_bytes: self.get("delta_cache", "a size such as \"4GB\"", |value| {
                value.as_str().and_then(units::bytes)
            })?,
            cache_dir: self.path("cache_dir")?,
            retention: self.retention()?,
        })
    }
}

/// The one source that is given, if any.
pub(super) fn one_secret<'a>(
    sources: impl IntoIterator<Item = (&'a str, Option<SecretSource>)>,
    place: &Place,
) -> Result<Option<SecretSource>, ConfigError> {
    let mut found: Option<(&str, SecretSource)> = None;
    for (name, source) in sources {
        match (source, &found) {
            (None, _) => {}
            (Some(source), None) => found = Some((name, source)),
            (Some(_), Some((first, _))) => {
                return Err(ConfigError::TwoSecrets {
                    place: place.clone(),
                    first: (*first).to_owned(),
                    second: name.to_owned(),
                });
            }
        }
    }
    Ok(found.map(|(_, source)| source))
}

#[cfg(test)]
mod tests;
