//! `walden pin` and `walden unpin`.

use crate::context::Context;
use crate::receive::duration;
use clap::Args;
use jiff::tz::TimeZone;
use serde::Serialize;
use std::time::Duration;
use walden::base::{BackupId, Timestamp};
use walden::operate::{Exit, Failure, when};
use walden::repo::{Cluster, backups};
use walden::retain::pin;

const HELP: &str = "\
A pinned backup stays whatever the retention policy says, with the WAL that makes it consistent: it can be restored to the \
moment it was taken. Pinning it again replaces the pin. `walden info` shows pins, `walden unpin` ends one.

Examples:
  walden pin 20261122T195501Z --reason 'before the migration'
  walden pin 20261122 --for 90d
  walden pin 20261122T195501Z --until '2027-06-30 00:00+00'";

/// Keep a backup, whatever the retention policy says
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct Pin {
    /// The backup, or the beginning of its id
    id: String,
    /// Until when [default: until it is unpinned]
    #[arg(long, value_name = "TIME", conflicts_with = "for")]
    until: Option<String>,
    /// For how long from now
    #[arg(long = "for", id = "for", value_name = "DURATION", value_parser = duration)]
    duration: Option<Duration>,
    /// Why, for people
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
}

/// End the pin of a backup
#[derive(Debug, Args)]
pub struct Unpin {
    /// The backup, or the beginning of its id
    id: String,
}

#[derive(Serialize)]
struct Pinned {
    cluster: String,
    backup: String,
    until: Option<String>,
    reason: String,
}

#[derive(Serialize)]
struct Unpinned {
    cluster: String,
    backup: String,
}

async fn find(cluster: &Cluster, name: &str) -> Result<BackupId, Failure> {
    let root = cluster.newest_root().await?;
    Ok(backups::named(&cluster.index(&root).await?.backups, name)?.id.clone())
}

impl Pin {
    fn until(&self, now: Timestamp) -> Result<Option<Timestamp>, Failure> {
        let until = match (&self.until, self.duration) {
            (Some(text), _) => when::parse(text, now, &TimeZone::system())?.at,
            (None, Some(duration)) => {
                now.saturating_add_micros(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX))
            }
            (None, None) => return Ok(None),
        };
        if until <= now {
            return Err(Failure::new(Exit::Usage, format!("the pin would end at {until}, which has passed")));
        }
        Ok(Some(until))
    }

    /// Runs it.
    pub async fn run(&self, context: &Context) -> Result<(), Failure> {
        let until = self.until(context.env.clock.now())?;
        let repository = context.repository_to_write().await?;
        let cluster = context.cluster(&repository).await?;
        let id = find(&cluster, &self.id).await?;
        let pinned = pin::pin(&cluster, &id, until, &self.reason).await?;
        let document = Pinned {
            cluster: cluster.name().to_string(),
            backup: id.to_string(),
            until: pinned.until.map(|until| until.to_string()),
            reason: pinned.reason,
        };
        context.output.result(&document, |pinned| {
            let until = pinned.until.as_deref().unwrap_or("it is unpinned");
            format!("backup {} of {} stays until {until}", pinned.backup, pinned.cluster)
        })
    }
}

impl Unpin {
    /// Runs it.
    pub async fn run(&self, context: &Context) -> Result<(), Failure> {
        let repository = context.repository_to_write().await?;
        let cluster = context.cluster(&repository).await?;
        let id = find(&cluster, &self.id).await?;
        pin::unpin(&cluster, &id).await?;
        let document = Unpinned { cluster: cluster.name().to_string(), backup: id.to_string() };
        context.output.result(&document, |unpinned| {
            format!(
                "backup {} of {} is not pinned any more: it stays as long as the retention policy keeps it",
                unpinned.backup, unpinned.cluster
            )
        })
    }
}
