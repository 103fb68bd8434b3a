//! `walden wal-get`.

use crate::context::Context;
use clap::Args;
use std::path::PathBuf;
use walden::base::WalFileName;
use walden::operate::wal_get::wal_get;
use walden::operate::{Exit, Failure};

const HELP: &str = "\
The file is what PostgreSQL had, byte for byte, or the command fails and leaves nothing. What is not stored yet at the end of the \
newest file is zeros, and so is what a timeline that was left does not have any more. A file that is there is not replaced; the new one is for its owner alone.

This is no restore_command for recovery: `walden restore` sets up `walden wal-fetch`, whose exit codes tell PostgreSQL when to wait, \
and which stages files ahead.

Examples:
  walden wal-get 00000001000000A3000000F1                        into this folder
  walden wal-get 00000001000000A3000000F1 --to /tmp && pg_waldump /tmp/00000001000000A3000000F1
  pg_rewind -D DIR --source-server … -c -C FILE                  where FILE has restore_command = 'walden wal-get %f --to %p'";

/// Write one WAL file, or a timeline's history, from anywhere in the repository
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct WalGet {
    /// The file's name, as in pg_wal
    #[arg(value_name = "NAME")]
    name: String,
    /// The file to write, or the folder to write it into
    #[arg(long, value_name = "FILE|DIR", default_value = ".")]
    to: PathBuf,
}

impl WalGet {
    /// Runs it.
    pub async fn run(&self, context: &Context) -> Result<(), Failure> {
        let name: WalFileName = self.name.parse().map_err(|_| {
            Failure::new(Exit::Usage, format!("{:?} is no name of a WAL file", self.name))
                .fact("expected", "one such as 00000001000000A3000000F1 or 00000002.history")
        })?;
        let repository = context.repository().await?;
        let cluster = context.cluster(&repository).await?;
        let written = wal_get(&cluster, name, &self.to).await?;
        context.output.result(&written, ToString::to_string)
    }
}
