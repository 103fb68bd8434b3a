//! `walden cluster list`.

use crate::context::Context;
use clap::Args;
use walden::operate::{Failure, clusters};

const HELP: &str = "\
Each pg_upgrade begins a generation: another system identifier and major version, with WAL and backups of its own. Bytes are those that the \
newest root leads to; `walden info` has more of one cluster. A name that was deleted stays known.

Example:
  walden cluster list --json | jq '.clusters[].name'";

/// Show the clusters of the repository, their generations, last backups and the end of their WAL
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct List {}

impl List {
    /// Runs it.
    pub async fn run(&self, context: &Context) -> Result<(), Failure> {
        let repository = context.repository().await?;
        context.output.result(&clusters::list(&repository).await?, ToString::to_string)
    }
}
