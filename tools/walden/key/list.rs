//! `walden key list`: works without a key, as far as that goes.

use crate::context::{Ask, Context};
use crate::progress::watcher;
use clap::Args;
use walden::operate::{Exit, Failure, keys};
use walden::repo::{RepoError, Repository};

const HELP: &str = "\
Slots are what opens the repository. Epochs are what it is stored under: `key rotate` begins the next, `key move` takes \
what is stored along, `key destroy` ends an old one. How much each epoch still seals is counted by reading the header of \
every object; --no-count leaves that out. Without a passphrase or key everything is shown but whether a slot is vouched \
for: whether somebody who held the newest epoch gave it to that slot, so that the next one will be given to it too.

Example:
  walden key list --no-count";

/// Show key slots, epochs, and how much each epoch seals
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct List {
    /// Do not read the headers of all objects
    #[arg(long)]
    no_count: bool,
}

impl List {
    /// Runs it.
    pub async fn run(&self, context: &Context) -> Result<(), Failure> {
        let store = context.store()?;
        let opened = if context.settings.repository()?.secret.is_some() {
            let unlock = context.unlock(Ask::Once).await?;
            match Repository::open(store.clone(), &unlock, context.env.clone()).await {
                Ok(repository) => Ok(repository),
                Err(error @ (RepoError::Key { .. } | RepoError::KeySlot { .. })) => Err(error.to_string()),
                Err(error) => return Err(error.into()),
            }
        } else {
            Err("no passphrase or key was given".to_owned())
        };
        let progress = watcher(context.output);
        let repo = opened.as_ref().map_err(Clone::clone);
        let found = keys::gather(&*store, repo, !self.no_count, &*progress).await?;
        drop(progress);
        if found.slots.is_empty() {
            return Err(Failure::new(
                Exit::Damage,
                "the repository has no key slot: nothing in it can be opened",
            ));
        }
        context.output.result(&found, ToString::to_string)
    }
}
