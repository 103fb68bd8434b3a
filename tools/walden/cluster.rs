//! `walden cluster`: the clusters of a repository, and their servers' generations.

mod delete;
mod list;
mod upgrade;

use crate::context::Context;
use clap::Subcommand;
use walden::operate::Failure;

/// List, upgrade and delete clusters
#[derive(Debug, Subcommand)]
pub enum Cluster {
    List(list::List),
    Upgrade(upgrade::Upgrade),
    Delete(delete::Delete),
}

impl Cluster {
    /// Runs it.
    pub async fn run(&self, context: &Context) -> Result<(), Failure> {
        match self {
            Cluster::List(list) => list.run(context).await,
            Cluster::Upgrade(upgrade) => upgrade.run(context).await,
            Cluster::Delete(delete) => delete.run(context).await,
        }
    }
}
