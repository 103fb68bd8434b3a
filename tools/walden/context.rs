//! What every command starts from: settings, the repository opened with its key, time and chance.

use crate::cli::Global;
use crate::output::Output;
use std::io::{IsTerminal, stderr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use walden::base::{ClusterName, Env};
use walden::codec::keyslot::Unlock;
use walden::disk::{OsEntropy, ScratchDir, SystemClock};
use walden::net::ConnectOptions;
use walden::operate::config::RepositoryTable;
use walden::operate::settings::{CACHE_HOME, Given, Settings};
use walden::operate::{Exit, Failure, config};
use walden::receive::postgres::PostgresConnector;
use walden::repo::{Cluster, RepoError, Repository};
use walden::store::{self, Store, probe_start};
use zeroize::Zeroizing;

/// Whether a prompt asks once or, for a new passphrase, twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// The passphrase is known.
    Once,
    /// It is being chosen.
    Twice,
}

/// What a command works with.
#[derive(Debug)]
pub struct Context {
    pub settings: Settings,
    pub env: Env,
    pub output: Output,
}

/// Threads that pack or unpack chunks: two a core, so that a core is not idle while one waits for the disk or for its next chunk.
pub fn threads() -> usize {
    2 * std::thread::available_parallelism().map_or(2, usize::from)
}

/// Where pages are kept: where somebody says, else where caches are, else where large temporary files are.
fn cache_dirs(given: Option<&Path>) -> Vec<PathBuf> {
    if let Some(dir) = given {
        return vec![dir.to_owned()];
    }
    let own = std::env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let own = own.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    let own = own.map(|dir| dir.join("walden"));
    [Some(PathBuf::from(CACHE_HOME)), own, Some(PathBuf::from("/var/tmp"))].into_iter().flatten().collect()
}

impl Context {
    /// Reads environment and configuration file.
    pub fn new(global: &Global) -> Result<Context, Failure> {
        let environment = Given::from_env(&|name| std::env::var(name).ok());
        let from_env = std::env::var_os("WALDEN_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
        let file = config::load(global.config.as_deref().or(from_env.as_deref()))?;
        let settings = Settings::resolve(&global.given(), &environment, &file)?;
        let scratch = ScratchDir::first_of(cache_dirs(settings.cluster().cache_dir.as_deref()));
        let env =
            Env { clock: Arc::new(SystemClock), entropy: Arc::new(OsEntropy), scratch: Arc::new(scratch) };
        Ok(Context { settings, env, output: Output::new(global) })
    }

    /// The repository's store, not yet asked anything.
    pub fn store(&self) -> Result<Arc<dyn Store>, Failure> {
        let repository = self.settings.repository()?;
        Ok(store::open(&repository.url, &repository.store_options())?)
    }

    /// The passphrase or key: from its source, else from a person at the terminal.
    pub async fn unlock(&self, ask: Ask) -> Result<Unlock, Failure> {
        let source = self.settings.repository()?.secret.clone();
        let read = move || match source {
            Some(source) => source.unlock().map_err(Failure::from),
            None => prompt(ask),
        };
        tokio::task::spawn_blocking(read).await.map_err(|error| Failure::new(Exit::Internal, error))?
    }

    /// The repository, opened.
    pub async fn repository(&self) -> Result<Arc<Repository>, Failure> {
        let store = self.store()?;
        let unlock = self.unlock(Ask::Once).await?;
        Ok(Arc::new(Repository::open(store, &unlock, self.env.clone()).await?))
    }

    /// The repository, opened to be written to: its store is proved to keep what exists.
    pub async fn repository_to_write(&self) -> Result<Arc<Repository>, Failure> {
        let repository = self.repository().await?;
        if !self.settings.repository()?.single_writer {
            probe_start(&**repository.store(), &*self.env.entropy).await?;
        }
        Ok(repository)
    }

    /// Another repository, opened to be written to.
    pub async fn another_to_write(&self, table: &RepositoryTable) -> Result<Arc<Repository>, Failure> {
        let store = store::open(&table.url, &table.store_options())?;
        let (source, url) = (table.secret.clone(), store.url());
        let read = move || {
            match source {
            Some(source) => source.unlock().map_err(Failure::from),
            None if stderr().is_terminal() => ask_passphrase(Ask::Once, &url),
            None => Err(Failure::new(Exit::Usage, format!("the passphrase or key of {url} is missing"))
                .hint("give --to-passphrase-file, --to-passphrase-command, --to-key-file or --to-key-command, or a [repository.NAME] that has one")),
        }
        };
        let unlock = tokio::task::spawn_blocking(read).await;
        let unlock = unlock.map_err(|error| Failure::new(Exit::Internal, error))??;
        let opened = Repository::open(store, &unlock, self.env.clone()).await;
        let repository = opened.map_err(|error| match error {
            missing @ RepoError::NotFound { .. } => {
                Failure::from(missing).hint("`walden init --repo` with that repository makes it")
            }
            error => error.into(),
        })?;
        if !table.single_writer {
            probe_start(&**repository.store(), &*self.env.entropy).await?;
        }
        Ok(Arc::new(repository))
    }

    /// The cluster that was named, else the only one of the repository.
    pub async fn cluster(&self, repository: &Arc<Repository>) -> Result<Cluster, Failure> {
        let name = match self.settings.cluster_name() {
            Some(name) => name.clone(),
            None => {
                let there = self.clusters(repository).await?;
                let names = there.into_iter().map(|cluster| cluster.name().clone()).collect();
                only_cluster(names, &repository.store().url())?
            }
        };
        Ok(Cluster::open(repository.clone(), name).await?)
    }

    /// The cluster that was named, else all of the repository that are there: not those that were deleted, nor those whose first
    /// start did not get so far.
    pub async fn clusters(&self, repository: &Arc<Repository>) -> Result<Vec<Cluster>, Failure> {
        if let Some(name) = self.settings.cluster_name() {
            return Ok(vec![Cluster::open(repository.clone(), name.clone()).await?]);
        }
        let mut clusters = Vec::new();
        for name in repository.clusters().await? {
            match Cluster::open(repository.clone(), name.clone()).await {
                Ok(cluster) => clusters.push(cluster),
                Err(RepoError::Deleted { .. }) => {}
                Err(RepoError::NotFound { .. }) => {
                    tracing::warn!(cluster = %name, "its first start was interrupted: it holds nothing, and is passed over");
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(clusters)
    }

    /// [`Context::clusters`], with those that were deleted: something of them may still be there.
    pub async fn collectable(&self, repository: &Arc<Repository>) -> Result<Vec<Cluster>, Failure> {
        let names = match self.settings.cluster_name() {
            Some(name) => vec![name.clone()],
            None => repository.clusters().await?,
        };
        let mut clusters = Vec::new();
        for name in names {
            match Cluster::open(repository.clone(), name.clone()).await {
                Ok(cluster) => clusters.push(cluster),
                Err(RepoError::Deleted { .. }) => clusters.push(Cluster::unchecked(repository.clone(), name)),
                Err(RepoError::NotFound { .. }) if self.settings.cluster_name().is_none() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(clusters)
    }

    /// [`Context::cluster`] for one whose newest root may be damaged: it is not looked at.
    pub async fn cluster_unread(&self, repository: &Arc<Repository>) -> Result<Cluster, Failure> {
        let name = match self.settings.cluster_name() {
            Some(name) => name.clone(),
            None => only_cluster(repository.clusters().await?, &repository.store().url())?,
        };
        Ok(Cluster::unchecked(repository.clone(), name))
    }

    /// How a receiver of the cluster `name` reaches the server.
    pub fn connector(&self, name: &ClusterName) -> Result<PostgresConnector, Failure> {
        Ok(PostgresConnector {
            options: Arc::new(self.connect_options()?),
            application_name: name.slot_name(),
            clock: self.env.clock.clone(),
        })
    }

    /// How to reach the server.
    pub fn connect_options(&self) -> Result<ConnectOptions, Failure> {
        Ok(ConnectOptions::parse(self.settings.connection(), &|name| std::env::var(name).ok())?)
    }
}

fn only_cluster(names: Vec<ClusterName>, url: &str) -> Result<ClusterName, Failure> {
    let mut names = names.into_iter();
    match (names.next(), names.next()) {
        (Some(only), None) => Ok(only),
        (None, _) => Err(Failure::new(Exit::NotFound, format!("repository {url} holds no cluster yet"))
            .hint("`walden receive` or `walden backup` stores the first")),
        (Some(first), Some(second)) => {
            Err(Failure::new(Exit::Usage, "the repository holds several clusters")
                .fact(
                    "found",
                    format!("{first}, {second}{}", if names.next().is_some() { ", …" } else { "" }),
                )
                .hint("choose one with --cluster"))
        }
    }
}

fn prompt(ask: Ask) -> Result<Unlock, Failure> {
    if !stderr().is_terminal() {
        return Err(Failure::new(
            Exit::Usage,
            "the repository's passphrase or key is missing, and there is no terminal to ask at",
        )
        .hint("give --passphrase-file, --passphrase-command, --key-file or --key-command"));
    }
    ask_passphrase(ask, "the repository")
}

/// Asks for the passphrase of `what` at the terminal.
pub fn ask_passphrase(ask: Ask, what: &str) -> Result<Unlock, Failure> {
    let read = |prompt: &str| {
        let typed = rpassword::prompt_password(prompt);
        typed
            .map(Zeroizing::new)
            .map_err(|error| Failure::new(Exit::Key, format!("no passphrase was typed: {error}")))
    };
    let passphrase = read(&match ask {
        Ask::Once => format!("Passphrase of {what}: "),
        Ask::Twice => format!("New passphrase for {what}: "),
    })?;
    if passphrase.is_empty() {
        return Err(Failure::new(
            Exit::Key,
            match ask {
                Ask::Once => format!("no passphrase was typed for {what}"),
                Ask::Twice => "an empty passphrase protects nothing".to_owned(),
            },
        ));
    }
    if ask == Ask::Twice && read("The same again: ")? != passphrase {
        return Err(Failure::new(Exit::Key, "the two passphrases differ; nothing was made"));
    }
    Ok(Unlock::Passphrase(passphrase))
}
