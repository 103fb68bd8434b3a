//! `walden gc`.

use crate::context::Context;
use crate::receive::duration;
use clap::Args;
use serde::Serialize;
use std::time::Duration;
use walden::base::limits;
use walden::operate::Failure;
use walden::retain::gc;

const HELP: &str = "\
`walden receive` does this by itself, once an hour. An object is removed when nothing has referred to it for the grace \
period, by the store's own clock; restores and backups that are running count as referring, however long they take. \
Leftovers of aborted work stay for an hour at least.

Example:
  walden gc --grace 24h";

/// Remove what nothing refers to any more
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct Gc {
    /// How long something must have been unreferenced
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    grace: Option<Duration>,
}

#[derive(Serialize)]
struct Done {
    cluster: String,
    flush_objects: u64,
    segments_and_manifests: u64,
    index_objects: u64,
    roots: u64,
    leftovers: u64,
    expired_work: u64,
}

#[derive(Serialize)]
struct Collected {
    clusters: Vec<Done>,
}

impl Gc {
    /// Runs it.
    pub async fn run(&self, context: &Context) -> Result<(), Failure> {
        let repository = context.repository_to_write().await?;
        let mut clusters = Vec::new();
        for cluster in context.clusters(&repository).await? {
            let done = gc::collect(&cluster, self.grace.unwrap_or(limits::GRACE)).await?;
            clusters.push(Done {
                cluster: cluster.name().to_string(),
                flush_objects: done.flushes,
                segments_and_manifests: done.removed,
                index_objects: done.indexes,
                roots: done.roots,
                leftovers: done.orphans,
                expired_work: done.expired,
            });
        }
        context.output.result(&Collected { clusters }, |collected| {
            let line = |done: &Done| {
                format!(
                    "{}: removed {} flush objects, {} segments and manifests, {} index objects, {} roots, {} leftovers; \
                     {} abandoned works expired\n",
                    done.cluster,
                    done.flush_objects,
                    done.segments_and_manifests,
                    done.index_objects,
                    done.roots,
                    done.leftovers,
                    done.expired_work
                )
            };
            collected.clusters.iter().map(line).collect()
        })
    }
}
