//! `walden backup delete`.

use crate::context::Context;
use clap::Args;
use serde::Serialize;
use walden::operate::Failure;
use walden::operate::info::{self, WindowInfo};
use walden::operate::units::Bytes;
use walden::repo::{Cluster, backups};
use walden::retain::delete::{self, Pins};

const HELP: &str = "\
WAL that no other backup can replay goes with it, and the recovery window shrinks accordingly: both are printed. Refused for the last \
restorable backup, whatever is said, for one that a restore reads, and for one whose pages the WAL after older backups is \
made of. What it alone held is free after the grace period of `walden gc`.

Example:
  walden backup delete 20261122T195501Z";

/// Remove a backup, with the WAL that only it can replay
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct Delete {
    /// The backup, or the beginning of its id
    id: String,
    /// Also when it is pinned
    #[arg(long)]
    force: bool,
}

#[derive(Serialize)]
struct Document {
    cluster: String,
    deleted: String,
    wal_bytes_removed: u64,
    window_before: WindowInfo,
    window: WindowInfo,
}

impl Delete {
    /// Runs it.
    pub async fn run(&self, context: &Context) -> Result<(), Failure> {
        let repository = context.repository_to_write().await?;
        let cluster = context.cluster(&repository).await?;
        let root = cluster.newest_root().await?;
        let id = backups::named(&cluster.index(&root).await?.backups, &self.id)?.id.clone();
        let before = window(&cluster).await?;
        let pins = if self.force { Pins::Override } else { Pins::Respect };
        let plan = delete::delete(&cluster, &id, pins).await?;
        let removed = plan.wal.iter().filter(|fate| fate.keeps.is_empty()).map(|fate| fate.range.len());
        let document = Document {
            cluster: cluster.name().to_string(),
            deleted: id.to_string(),
            wal_bytes_removed: removed.sum(),
            window_before: before,
            window: window(&cluster).await?,
        };
        context.output.result(&document, show)
    }
}

async fn window(cluster: &Cluster) -> Result<WindowInfo, Failure> {
    Ok(info::cluster(cluster, None).await?.window)
}

fn show(document: &Document) -> String {
    let Document { cluster, deleted, wal_bytes_removed, window_before, window } = document;
    let span = |window: &WindowInfo| match (&window.start, &window.end) {
        (Some(start), Some(end)) => format!("{start}  to  {end}, {} gaps", window.gaps.len()),
        _ => "none".to_owned(),
    };
    let mut text = format!(
        "backup {deleted} of {cluster} is removed, and {} of WAL with it\n",
        Bytes(*wal_bytes_removed)
    );
    if window == window_before {
        text += &format!("recovery window  {}, as before\n", span(window));
    } else {
        text += &format!("recovery window  {}\nbefore           {}\n", span(window), span(window_before));
    }
    text
}
