//! `walden compact`.

use crate::cli::Deltas;
use crate::context::Context;
use clap::Args;
use serde::Serialize;
use walden::operate::units::Bytes;
use walden::operate::{Exit, Failure};
use walden::receive::compact::{self, Extent};

const HELP: &str = "\
`walden receive` does this by itself. What is replaced stays for a grace period, then `walden gc` (or receive) removes \
it. Safe beside a running receiver, and beside itself.

Example:
  walden compact --cluster shop --all";

/// Merge what was received into few, large, compressed segments
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct Compact {
    /// Everything received so far, not only what fills whole segments
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    deltas: Deltas,
}

#[derive(Serialize)]
struct Done {
    cluster: String,
    flush_objects: u64,
    merged_segments: u64,
    segments: u64,
    wal_bytes: u64,
    unreadable_segments: u64,
}

#[derive(Serialize)]
struct Compacted {
    clusters: Vec<Done>,
}

impl Compact {
    /// Runs it.
    pub async fn run(&self, context: &Context) -> Result<(), Failure> {
        let repository = context.repository_to_write().await?;
        let extent = if self.all { Extent::All } else { Extent::Full };
        let mut clusters = Vec::new();
        for cluster in context.clusters(&repository).await? {
            let done = compact::compact(&cluster, self.deltas.options(context), extent).await?;
            clusters.push(Done {
                cluster: cluster.name().to_string(),
                flush_objects: done.flushes,
                merged_segments: done.merged,
                segments: done.segments,
                wal_bytes: done.wal_bytes,
                unreadable_segments: done.unreadable,
            });
        }
        let unreadable: u64 = clusters.iter().map(|done| done.unreadable_segments).sum();
        context.output.result(&Compacted { clusters }, |compacted| {
            let line = |done: &Done| {
                format!(
                    "{}: {} of WAL, {} flush objects and {} small segments replaced by {} segments\n",
                    done.cluster,
                    Bytes(done.wal_bytes),
                    done.flush_objects,
                    done.merged_segments,
                    done.segments
                )
            };
            compacted.clusters.iter().map(line).collect()
        })?;
        match unreadable {
            0 => Ok(()),
            count => Err(Failure::new(
                Exit::Damage,
                format!("small segments that cannot be read, and were not merged: {count}"),
            )
            .hint("`walden verify` names them, and what is lost with each")),
        }
    }
}
