//! `walden log`.

use crate::context::Context;
use clap::Args;
use jiff::tz::TimeZone;
use walden::operate::log::{self, LogOptions};
use walden::operate::{Failure, when};

const HELP: &str = "\
Each line says when something happened, where in the WAL, in which transaction, and what to give to `walden restore` to \
get everything that was committed before it. DROP and TRUNCATE are told apart from VACUUM FULL, CLUSTER and REINDEX, \
which replace files too. WAL knows files, not names: `16385` is what pg_class.relfilenode said. For a table, its indexes \
and TOAST are counted.

Examples:
  walden log --drops                           accidents
  walden log --around '2026-11-22 19:55'       what happened within ten minutes, and the commits next to that time
  walden log --xid 737                         how and when a transaction ended";

/// Show what happened: drops, truncations, databases, restore points, with a restore target for each
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct Log {
    /// Only what is gone: dropped tables and databases, emptied tables
    #[arg(long)]
    drops: bool,
    /// Only what is near this time, and the commits next to it
    #[arg(long, value_name = "TIME")]
    around: Option<String>,
    /// Only this transaction
    #[arg(long, value_name = "XID")]
    xid: Option<u32>,
    /// Checkpoints, changed parameters and rewritten tables too
    #[arg(long)]
    all: bool,
    /// The most entries to show, the newest
    #[arg(long, value_name = "N", default_value_t = 200)]
    limit: usize,
}

impl Log {
    /// Runs it.
    pub async fn run(&self, context: &Context) -> Result<(), Failure> {
        let now = context.env.clock.now();
        let moment =
            self.around.as_deref().map(|text| when::parse(text, now, &TimeZone::system())).transpose()?;
        if let Some(moment) = &moment {
            tracing::info!("around {moment}");
        }
        let repository = context.repository().await?;
        let cluster = context.cluster(&repository).await?;
        let options = LogOptions {
            drops: self.drops,
            all: self.all,
            around: moment.map(|moment| moment.at),
            xid: self.xid,
            limit: self.limit,
        };
        let found = log::log(&cluster, &options).await?;
        context.output.result(&found, ToString::to_string)
    }
}
