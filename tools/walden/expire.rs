//! `walden expire`.

use crate::context::Context;
use crate::gc::{Done, Totals};
use crate::receive::duration;
use clap::{Args, value_parser};
use serde::Serialize;
use std::time::Duration;
use walden::base::limits;
use walden::operate::Failure;
use walden::operate::config::Retention;
use walden::operate::retention::Retained;
use walden::retain::{expire, gc};

const HELP: &str = "\
Every moment of the recovery window stays restorable: the newest complete backup before the window begins is kept, and all WAL \
from it on. Backups that are kept for longer keep the WAL that makes them consistent, and no more. The last restorable \
backup always stays, and so does what a pin, a running restore or the deltas of kept WAL need.

The window is counted back from the newest server time that is stored, or from this host's clock if that is earlier: \
a clock that jumped ahead, or a server that is down, expires nothing. Days, weeks (Monday to Sunday), months and years are \
those of UTC, and only those that have a backup are counted.

The policy comes from these options, else from [cluster.NAME.retention] in the configuration file, else it is 30 days and 2 backups. \
`walden receive` does this by itself once an hour for a cluster that has that table, and never for one that has not. What goes is out of reach \
at once, and its room is free after the grace period of `walden gc`, which runs afterwards.

Examples:
  walden expire --dry-run
  walden expire --window 30d --keep-weekly 8 --keep-monthly 12";

/// Let go of backups and WAL that the retention policy does not keep
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct Expire {
    /// Only print what would stay and what would go, with every reason
    #[arg(long)]
    dry_run: bool,
    /// Leave the removal of objects to the next `walden gc`
    #[arg(long)]
    no_gc: bool,
    /// How far back every moment stays restorable [default: 30d]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    window: Option<Duration>,
    /// How many complete backups stay, however old [default: 2]
    #[arg(long, value_name = "COUNT", value_parser = value_parser!(u32).range(1..))]
    min_backups: Option<u32>,
    /// Of how many days the newest backup stays [default: 0]
    #[arg(long, value_name = "COUNT")]
    keep_daily: Option<u32>,
    /// Of how many weeks [default: 0]
    #[arg(long, value_name = "COUNT")]
    keep_weekly: Option<u32>,
    /// Of how many months [default: 0]
    #[arg(long, value_name = "COUNT")]
    keep_monthly: Option<u32>,
    /// Of how many years [default: 0]
    #[arg(long, value_name = "COUNT")]
    keep_yearly: Option<u32>,
}

#[derive(Serialize)]
struct Document<'a> {
    clusters: Vec<Retained>,
    collected: &'a [Done],
}

impl Expire {
    fn given(&self) -> Retention {
        Retention {
            window: self.window,
            count_min: self.min_backups,
            keeps: [self.keep_daily, self.keep_weekly, self.keep_monthly, self.keep_yearly],
        }
    }

    /// Runs it.
    pub async fn run(&self, context: &Context) -> Result<(), Failure> {
        let repository =
            if self.dry_run { context.repository().await? } else { context.repository_to_write().await? };
        let (mut clusters, mut collected) = (Vec::new(), Totals::default());
        for cluster in context.clusters(&repository).await? {
            let policy = context.settings.policy(cluster.name(), self.given());
            let plan = match self.dry_run {
                true => expire::decide(&cluster, &policy).await?,
                false => expire::expire(&cluster, &policy).await?,
            };
            clusters.push(Retained::new(cluster.name().as_str(), &policy, &plan, !self.dry_run));
            if !self.dry_run && !self.no_gc {
                collected.add(cluster.name(), gc::collect(&cluster, limits::GRACE).await?);
            }
        }
        let document = Document { clusters, collected: collected.done() };
        context.output.result(&document, |document| {
            if document.clusters.is_empty() {
                return "no cluster yet: there is nothing to keep or to let go".into();
            }
            let retained = document.clusters.iter().map(ToString::to_string);
            let collected = document.collected.iter().map(ToString::to_string);
            retained.chain(collected).collect()
        })?;
        collected.failure()
    }
}
