//! What a command works with: option over environment over file. Pure: the environment is a function, the file is parsed.

use super::config::{
    Ack, ClusterTable, ConfigError, ConfigFile, Place, RepositoryTable, Retention, Switch, nearest,
    one_secret,
};
use crate::base::{ClusterName, limits};
use crate::disk::SecretSource;
use crate::net::contains_password;
use crate::receive::compact::DeltaOptions;
use crate::retain::policy::Policy;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where journals lie when nobody says: a directory for each cluster.
pub const JOURNAL_HOME: &str = "/var/lib/walden";
/// Where pages that WAL deltas refer to are kept while a process works, when nobody says, for those who may write there.
pub const CACHE_HOME: &str = "/var/cache/walden";

/// What was given on the command line, or in the environment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Given {
    /// `--repo`: a URL, a path, or the name of a `[repository.NAME]`.
    pub repo: Option<String>,
    /// `--cluster`.
    pub cluster: Option<String>,
    /// `--connection`.
    pub connection: Option<String>,
    /// `--passphrase-file`.
    pub passphrase_file: Option<PathBuf>,
    /// `--passphrase-command`.
    pub passphrase_command: Option<String>,
    /// `--key-file`.
    pub key_file: Option<PathBuf>,
    /// `--key-command`.
    pub key_command: Option<String>,
    /// `--cache-dir`.
    pub cache_dir: Option<PathBuf>,
}

impl Given {
    /// What `WALDEN_…` variables say; empty ones say nothing.
    pub fn from_env(env: &dyn Fn(&str) -> Option<String>) -> Given {
        let text = |name| env(name).filter(|value| !value.is_empty());
        let path = |name| text(name).map(PathBuf::from);
        Given {
            repo: text("WALDEN_REPO"),
            cluster: text("WALDEN_CLUSTER"),
            connection: text("WALDEN_CONNECTION"),
            passphrase_file: path("WALDEN_PASSPHRASE_FILE"),
            passphrase_command: text("WALDEN_PASSPHRASE_COMMAND"),
            key_file: path("WALDEN_KEY_FILE"),
            key_command: text("WALDEN_KEY_COMMAND"),
            cache_dir: path("WALDEN_CACHE_DIR"),
        }
    }

    /// The source of a secret, if one was given. `names` are what the four are called where they were given, at `place`.
    ///
    /// # Errors
    /// Several were.
    pub fn secret(
        &self,
        names: [&'static str; 4],
        place: Place,
    ) -> Result<Option<SecretSource>, ConfigError> {
        let [passphrase_file, passphrase_command, key_file, key_command] = names;
        let sources = [
            (passphrase_file, self.passphrase_file.clone().map(SecretSource::PassphraseFile)),
            (passphrase_command, self.passphrase_command.clone().map(SecretSource::PassphraseCommand)),
            (key_file, self.key_file.clone().map(SecretSource::KeyFile)),
            (key_command, self.key_command.clone().map(SecretSource::KeyCommand)),
        ];
        one_secret(sources, &place)
    }
}

/// Everything that was configured, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    repository: Option<RepositoryTable>,
    repositories: BTreeMap<String, RepositoryTable>,
    cluster_name: Option<ClusterName>,
    cluster: ClusterTable,
    retentions: BTreeMap<ClusterName, Retention>,
}

impl Settings {
    /// Resolves `flags` over `env` over `file`.
    pub fn resolve(flags: &Given, env: &Given, file: &ConfigFile) -> Result<Settings, ConfigError> {
        if flags.connection.as_deref().is_some_and(contains_password) {
            return Err(ConfigError::Secret {
                place: Place::Flag("--connection"),
                key: "its password".into(),
            });
        }
        let cluster_name = cluster_name(flags, env, file)?;
        let mut cluster =
            cluster_name.as_ref().and_then(|name| file.clusters.get(name)).cloned().unwrap_or_default();
        let repository = repository(flags, env, file, &cluster)?;
        if let Some(connection) = flags.connection.clone().or_else(|| env.connection.clone()) {
            cluster.connection = Some(connection);
        }
        if let Some(dir) = flags.cache_dir.clone().or_else(|| env.cache_dir.clone()) {
            cluster.cache_dir = Some(dir);
        }
        let retention = |(name, table): (&ClusterName, &ClusterTable)| Some((name.clone(), table.retention?));
        let retentions = file.clusters.iter().filter_map(retention).collect();
        let repositories = file.repositories.clone();
        Ok(Settings { repository, repositories, cluster_name, cluster, retentions })
    }

    /// The repository. An error when none was given.
    pub fn repository(&self) -> Result<&RepositoryTable, ConfigError> {
        self.repository.as_ref().ok_or_else(|| ConfigError::Missing {
            what: "the repository (--repo URL-or-path, WALDEN_REPO, or [repository.NAME] in the configuration file)".into(),
        })
    }

    /// Another repository than the one that a command is about: `given` is a URL, a path, or the name of a `[repository.NAME]`, and
    /// was given as `place`. Its secret is `secret`, or else the file's; the other repository's is not tried.
    pub fn another_repository(
        &self,
        given: &str,
        place: Place,
        secret: Option<SecretSource>,
    ) -> Result<RepositoryTable, ConfigError> {
        let table = named_or_url(given, place, &self.repositories)?;
        Ok(RepositoryTable { secret: secret.or(table.secret.clone()), ..table })
    }

    /// The cluster's name, where one was given or the file defines exactly one.
    pub fn cluster_name(&self) -> Option<&ClusterName> {
        self.cluster_name.as_ref()
    }

    /// The cluster's name. An error when none was given.
    pub fn require_cluster(&self) -> Result<&ClusterName, ConfigError> {
        self.cluster_name.as_ref().ok_or_else(|| ConfigError::Missing {
            what: "the cluster's name (--cluster NAME, WALDEN_CLUSTER, or [cluster.NAME] in the configuration file)".into(),
        })
    }

    /// The connection string; empty (libpq's defaults and `PG*` variables) when none was given.
    pub fn connection(&self) -> &str {
        self.cluster.connection.as_deref().unwrap_or("")
    }

    /// What the file says of the cluster.
    pub fn cluster(&self) -> &ClusterTable {
        &self.cluster
    }

    /// The acknowledgement mode: `flag`, else the file's, else `object`.
    pub fn ack(&self, flag: Option<Ack>) -> Ack {
        flag.or(self.cluster.ack).unwrap_or_default()
    }

    /// The journal's directory: `flag`, else the file's, else one under [`JOURNAL_HOME`].
    pub fn journal_dir(&self, flag: Option<&Path>, cluster: &ClusterName) -> PathBuf {
        let given = flag.or(self.cluster.journal_dir.as_deref()).map(Path::to_owned);
        given.unwrap_or_else(|| Path::new(JOURNAL_HOME).join(cluster.as_str()))
    }

    /// How WAL deltas are made: by `flags`, else by the file; `None` when they are off.
    pub fn deltas(&self, switch: Option<Switch>, cache_bytes: Option<u64>) -> Option<DeltaOptions> {
        let switch = switch.or(self.cluster.wal_deltas).unwrap_or(Switch::On);
        let cache_bytes = cache_bytes.or(self.cluster.delta_cache_bytes).unwrap_or(limits::DELTA_CACHE_BYTES);
        (switch == Switch::On).then_some(DeltaOptions { cache_bytes })
    }

    /// What the file says of the retention of a cluster, if it says anything.
    pub fn retention(&self, cluster: &ClusterName) -> Option<Retention> {
        self.retentions.get(cluster).copied()
    }

    /// What is to be kept of a cluster: by `flags`, else by the file, else by default.
    pub fn policy(&self, cluster: &ClusterName, flags: Retention) -> Policy {
        flags.or(self.retention(cluster).unwrap_or_default()).policy()
    }

    /// The slot's name: `flag`, else the file's, else `walden_<cluster>`.
    pub fn slot(&self, flag: Option<&str>, cluster: &ClusterName) -> String {
        let given = flag.or(self.cluster.slot.as_deref()).map(str::to_owned);
        given.unwrap_or_else(|| cluster.slot_name())
    }
}

fn cluster_name(flags: &Given, env: &Given, file: &ConfigFile) -> Result<Option<ClusterName>, ConfigError> {
    let given =
        [(&flags.cluster, Place::Flag("--cluster")), (&env.cluster, Place::Variable("WALDEN_CLUSTER"))];
    for (name, place) in given {
        if let Some(name) = name {
            let bad =
                |error: crate::base::ids::IdError| ConfigError::Name { place, reason: error.to_string() };
            return name.parse().map(Some).map_err(bad);
        }
    }
    let mut names = file.clusters.keys();
    match (names.next(), names.next()) {
        (Some(only), None) => Ok(Some(only.clone())),
        _ => Ok(None),
    }
}

fn repository(
    flags: &Given,
    env: &Given,
    file: &ConfigFile,
    cluster: &ClusterTable,
) -> Result<Option<RepositoryTable>, ConfigError> {
    let given = [(&flags.repo, Place::Flag("--repo")), (&env.repo, Place::Variable("WALDEN_REPO"))];
    let chosen = given.into_iter().find_map(|(repo, place)| repo.as_ref().map(|repo| (repo.as_str(), place)));
    let mut table = match (chosen, cluster.repositories.as_slice()) {
        (Some((repo, place)), _) => Some(named_or_url(repo, place, &file.repositories)?),
        (None, [name]) => Some(named(name, file)?),
        (None, []) => {
            let mut tables = file.repositories.values();
            match (tables.next(), tables.next()) {
                (Some(only), None) => Some(only.clone()),
                _ => None,
            }
        }
        (None, several) => {
            return Err(ConfigError::Missing {
                what: format!("--repo NAME (the cluster has {}: {})", several.len(), several.join(", ")),
            });
        }
    };
    let of_flags = flags.secret(
        ["--passphrase-file", "--passphrase-command", "--key-file", "--key-command"],
        Place::Flag("command line"),
    )?;
    let of_env = env.secret(
        ["WALDEN_PASSPHRASE_FILE", "WALDEN_PASSPHRASE_COMMAND", "WALDEN_KEY_FILE", "WALDEN_KEY_COMMAND"],
        Place::Variable("environment"),
    )?;
    if let (Some(table), Some(secret)) = (&mut table, of_flags.or(of_env)) {
        table.secret = Some(secret);
    }
    Ok(table)
}

fn named(name: &str, file: &ConfigFile) -> Result<RepositoryTable, ConfigError> {
    file.repositories.get(name).cloned().ok_or_else(|| {
        let known = nearest(name, file.repositories.keys().map(String::as_str));
        let known = known.map(|name| format!(", did you mean {name:?}?")).unwrap_or_default();
        ConfigError::Missing {
            what: format!("[repository.{name}], which a cluster names in the configuration file,{known}"),
        }
    })
}

/// A name of the file's, or else a URL or path. A lone word that is no name of the file's is taken for a path only if it
/// looks like one, so that a mistyped name does not become a new directory.
fn named_or_url(
    repo: &str,
    place: Place,
    known: &BTreeMap<String, RepositoryTable>,
) -> Result<RepositoryTable, ConfigError> {
    if let Some(table) = known.get(repo) {
        return Ok(table.clone());
    }
    if repo.contains('/') || repo == "." || repo == ".." {
        return Ok(RepositoryTable { url: repo.to_owned(), ..RepositoryTable::default() });
    }
    let near = nearest(repo, known.keys().map(String::as_str));
    let near = near.map(|name| format!(", did you mean {name}?")).unwrap_or_default();
    let reason = format!(
        "{repo:?} is neither a URL, a path (write ./{repo}), nor a [repository.NAME] of the configuration file{near}"
    );
    Err(ConfigError::Name { place, reason })
}

#[cfg(test)]
mod tests;
