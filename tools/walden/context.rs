//! What every command starts from: settings, the repository opened with its key, time and chance.

use crate::cli::Global;
use crate::output::Output;
use std::io::{IsTerminal, stderr};
use std::path::PathBuf;
use std::sync::Arc;
use walden::base::Env;
use walden::codec::keyslot::Unlock;
use walden::disk::{OsEntropy, SystemClock};
use walden::operate::settings::{Given, Settings};
use walden::operate::{Exit, Failure, config};
use walden::store::{self, Store, StoreOptions};
use zeroize::Zeroizing;

/// What a command works with.
#[derive(Debug)]
pub struct Context {
    pub settings: Settings,
    pub env: Env,
    pub output: Output,
}

impl Context {
    /// Reads environment and configuration file.
    pub fn new(global: &Global) -> Result<Context, Failure> {
        let environment = Given::from_env(&|name| std::env::var(name).ok());
        let from_env = std::env::var_os("WALDEN_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
        let file = config::load(global.config.as_deref().or(from_env.as_deref()))?;
        let settings = Settings::resolve(&global.given(), &environment, &file)?;
        let env = Env { clock: Arc::new(SystemClock), entropy: Arc::new(OsEntropy) };
        Ok(Context { settings, env, output: Output::new(global) })
    }

    /// The repository's store, not yet asked anything.
    pub fn store(&self) -> Result<Arc<dyn Store>, Failure> {
        let repository = self.settings.repository()?;
        Ok(store::open(&repository.url, &StoreOptions { single_writer: repository.single_writer })?)
    }

    /// The passphrase or key of a new repository: from its source, else from a person at the terminal.
    pub async fn unlock_new(&self) -> Result<Unlock, Failure> {
        let source = self.settings.repository()?.secret.clone();
        let read = move || match source {
            Some(source) => source.unlock().map_err(Failure::from),
            None => prompt(),
        };
        tokio::task::spawn_blocking(read).await.map_err(|error| Failure::new(Exit::Internal, error))?
    }
}

fn prompt() -> Result<Unlock, Failure> {
    if !stderr().is_terminal() {
        return Err(Failure::new(
            Exit::Usage,
            "the repository's passphrase or key is missing, and there is no terminal to ask at",
        )
        .hint("give --passphrase-file, --passphrase-command, --key-file or --key-command"));
    }
    let read = |prompt: &str| {
        let typed = rpassword::prompt_password(prompt);
        typed
            .map(Zeroizing::new)
            .map_err(|error| Failure::new(Exit::Key, format!("no passphrase was typed: {error}")))
    };
    let passphrase = read("New passphrase for the repository: ")?;
    if passphrase.is_empty() {
        return Err(Failure::new(Exit::Key, "an empty passphrase protects nothing"));
    }
    if read("The same again: ")? != passphrase {
        return Err(Failure::new(Exit::Key, "the two passphrases differ; nothing was made"));
    }
    Ok(Unlock::Passphrase(passphrase))
}
