//! `walden cluster delete`.

use crate::confirm;
use crate::context::Context;
use clap::Args;
use walden::base::ClusterName;
use walden::operate::deletion::{Deleted, describe, failure};
use walden::operate::{Exit, Failure};
use walden::repo::{Cluster, RepoError};
use walden::retain::cluster::{self, Running};

const HELP: &str = "\
Prints what is lost and asks for the name; --confirm NAME answers where there is no terminal. Refused while a backup is pinned, and, unless --force \
is given, while a receiver stores WAL or other work is registered. From the first step on nothing of it can be restored; the objects \
are removed right away, without the grace period of `walden gc`. Interrupted, it is done again. The slot on the server stays: `walden slot drop`.

Fences, floors, generations and one root stay for ever, some hundred bytes each: no process that was held up writes to numbers that are free again. So \
the name stays known, and `walden receive` refuses it; `walden cluster upgrade --new-system` begins it anew.

Example:
  walden cluster delete shop";

/// Delete a cluster: all its backups and WAL
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct Delete {
    /// The cluster
    name: ClusterName,
    /// The name once more: it is meant
    #[arg(long, value_name = "NAME")]
    confirm: Option<String>,
    /// Also while a receiver writes or work is registered, and when what it holds cannot be read: they fail
    #[arg(long)]
    force: bool,
}

impl Delete {
    /// Runs it.
    pub async fn run(&self, context: &Context) -> Result<(), Failure> {
        let repository = context.repository_to_write().await?;
        let known = match Cluster::open(repository.clone(), self.name.clone()).await {
            // Something of it may still be there.
            Err(RepoError::Deleted { .. }) => Cluster::unchecked(repository, self.name.clone()),
            opened => opened?,
        };
        let doomed = cluster::survey(&known).await?;
        let running = if self.force { Running::Override } else { Running::Respect };
        if doomed.deleted_at.is_none() {
            cluster::hinders(&doomed, running).map_err(failure)?;
            self.ask(&describe(&self.name, &doomed))?;
        }
        let purged = cluster::delete(&known, &doomed, running).await.map_err(failure)?;
        let deleted = Deleted::new(&self.name, &doomed, &purged);
        context.output.result(&deleted, ToString::to_string)?;
        deleted.failure()
    }

    fn ask(&self, question: &str) -> Result<(), Failure> {
        match self.confirm.as_deref() {
            Some(name) if name == self.name.as_str() => Ok(()),
            Some(other) => {
                let what =
                    format!("--confirm {other} is not the cluster's name, {}; nothing was done", self.name);
                Err(Failure::new(Exit::Usage, what))
            }
            None => confirm::ask(question, self.name.as_str(), &format!("--confirm {}", self.name)),
        }
    }
}
