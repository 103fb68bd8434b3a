//! `walden init`: makes a repository, or completes one; needs no server.

use crate::context::{Ask, Context};
use clap::Args;
use serde::Serialize;
use walden::base::RepositoryId;
use walden::format::keyslot::SlotCost;
use walden::operate::Failure;
use walden::repo::Repository;
use walden::store::probe_init;

const HELP: &str = "\
Creates what is missing and refuses what differs, so it can be run again. Before that it proves, with writers \
racing for the same names, that the store creates an object only once: everything rests on that.

Everything stored is encrypted. The passphrase or key opens the repository's first key slot, and nothing else \
does: if every key slot is lost, every backup in the repository is lost with it.

Examples:
  walden init --repo /srv/walden --passphrase-file /etc/walden/passphrase
  walden init --repo s3://backups/walden --key-command 'vault read -field=key secret/walden'";

/// Make a repository
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct Init {}

#[derive(Serialize)]
struct Made {
    url: String,
    #[serde(serialize_with = "shown")]
    repository_id: RepositoryId,
    created: bool,
}

fn shown<S: serde::Serializer>(id: &RepositoryId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

impl Init {
    /// Runs it.
    pub async fn run(&self, context: &Context) -> Result<(), Failure> {
        let store = context.store()?;
        let unlock = context.unlock(Ask::Twice).await?;
        if !context.settings.repository()?.single_writer {
            probe_init(&*store, &*context.env.entropy).await?;
        }
        let url = store.url();
        let (repository, created) =
            Repository::init(store, &unlock, SlotCost::DEFAULT, context.env.clone()).await?;
        let made = Made { url, repository_id: repository.id(), created };
        context.output.result(&made, |made| {
            let Made { url, repository_id, created } = made;
            if !created {
                return format!("repository {url} (id {repository_id}) was there already, and this key opens it");
            }
            format!(
                "created repository {url} (id {repository_id})\n\
                 Keep the passphrase or key safe, and a copy of it elsewhere: if every key slot of a repository is \
                 lost,\nevery backup in it is lost with it. Nobody can open it for you."
            )
        })
    }
}
