//! `walden analyze`.

use crate::context::Context;
use clap::Args;
use std::path::PathBuf;
use walden::operate::{Exit, Failure, analyze, units};

const HELP: &str = "\
Reads WAL record by record. What grows with what you may change: page images with the number of checkpoints, records with \
indexes and updates, switched segments with archive_timeout. A folder needs no repository and no key.

Examples:
  walden analyze --cluster shop                      the newest WAL in the repository
  walden analyze --cluster shop --max-bytes 64GiB    more of it
  walden analyze /var/lib/postgresql/15/main/pg_wal  WAL files as PostgreSQL wrote them";

/// Show where the bytes of WAL go: resource managers, page images, relations
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct Analyze {
    /// A folder of WAL files, instead of a cluster
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The most WAL of a cluster to read, the newest
    #[arg(long, value_name = "BYTES", default_value = "4GiB", conflicts_with = "dir")]
    max_bytes: String,
    /// Relations to show
    #[arg(long, value_name = "N", default_value_t = 20)]
    relations: usize,
}

impl Analyze {
    /// Runs it.
    pub async fn run(&self, context: &Context) -> Result<(), Failure> {
        let relations = self.relations;
        let analysis = match self.dir.clone() {
            Some(dir) => tokio::task::spawn_blocking(move || analyze::folder(&dir, relations))
                .await
                .unwrap_or_else(|died| std::panic::resume_unwind(died.into_panic()))?,
            None => {
                let bytes_max = units::bytes(&self.max_bytes).ok_or_else(|| {
                    let what = format!("--max-bytes is {:?}, expected a size such as 4GiB", self.max_bytes);
                    Failure::new(Exit::Usage, what)
                })?;
                let repository = context.repository().await?;
                let cluster = context.cluster(&repository).await?;
                analyze::cluster(&cluster, bytes_max, relations).await?
            }
        };
        context.output.result(&analysis, ToString::to_string)
    }
}
