//! `walden gc`.

use crate::context::Context;
use crate::receive::duration;
use clap::Args;
use serde::Serialize;
use std::fmt;
use std::time::Duration;
use walden::base::{ClusterName, ObjectKey, limits};
use walden::operate::units::Bytes;
use walden::operate::{Exit, Failure};
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

/// What was collected of one cluster.
#[derive(Debug, Serialize)]
pub struct Done {
    cluster: String,
    flush_objects: u64,
    segments_and_manifests: u64,
    index_objects: u64,
    roots: u64,
    leftovers: u64,
    expired_work: u64,
    chunk_segments_dropped: u64,
    chunk_segments_rewritten: u64,
    chunk_bytes_freed: u64,
    chunks_put_off: Option<String>,
    not_removed: u64,
    /// The first of them.
    refused: Vec<Refused>,
}

/// An object that the store would not remove.
#[derive(Debug, Serialize)]
pub struct Refused {
    key: String,
    reason: String,
}

#[derive(Serialize)]
struct Document<'a> {
    clusters: &'a [Done],
}

/// What was collected of several clusters, and what the store refused.
#[derive(Debug, Default)]
pub struct Totals(Vec<Done>);

impl Totals {
    /// Adds what was collected of `cluster`.
    pub fn add(&mut self, cluster: &ClusterName, done: gc::Collected) {
        let refused = |(key, reason): (ObjectKey, String)| Refused { key: key.to_string(), reason };
        self.0.push(Done {
            cluster: cluster.to_string(),
            flush_objects: done.flushes,
            segments_and_manifests: done.removed,
            index_objects: done.indexes,
            roots: done.roots,
            leftovers: done.orphans,
            expired_work: done.expired,
            chunk_segments_dropped: done.swept.dropped,
            chunk_segments_rewritten: done.swept.rewritten,
            chunk_bytes_freed: done.swept.bytes_freed,
            chunks_put_off: done.swept.put_off,
            not_removed: done.undeleted.count,
            refused: done.undeleted.first.into_iter().map(refused).collect(),
        });
    }

    /// What was collected.
    pub fn done(&self) -> &[Done] {
        &self.0
    }

    /// An error when the store refused to remove anything: the rest is done.
    pub fn failure(&self) -> Result<(), Failure> {
        let count: u64 = self.0.iter().map(|done| done.not_removed).sum();
        let Some(first) = self.0.iter().flat_map(|done| &done.refused).next() else { return Ok(()) };
        let what = format!("the store did not remove {count} objects; everything else is done");
        Err(Failure::new(Exit::Store, what)
            .fact("first", &first.key)
            .fact("reason", &first.reason)
            .hint("they are tried again by the next `walden gc`; an object lock ends by itself, missing rights do not"))
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: removed {} flush objects, {} segments and manifests, {} index objects, {} roots, {} leftovers; \
             {} abandoned works expired",
            self.cluster,
            self.flush_objects,
            self.segments_and_manifests,
            self.index_objects,
            self.roots,
            self.leftovers,
            self.expired_work
        )?;
        if self.chunk_segments_dropped + self.chunk_segments_rewritten > 0 {
            writeln!(
                f,
                "  {} segments of chunks dropped and {} written anew: {} are free after the grace period",
                self.chunk_segments_dropped,
                self.chunk_segments_rewritten,
                Bytes(self.chunk_bytes_freed)
            )?;
        }
        if let Some(why) = &self.chunks_put_off {
            writeln!(f, "  chunks of removed backups stay until the next collection: {why}")?;
        }
        self.refused
            .iter()
            .try_for_each(|refused| writeln!(f, "  not removed: {}: {}", refused.key, refused.reason))
    }
}

impl Gc {
    /// Runs it.
    pub async fn run(&self, context: &Context) -> Result<(), Failure> {
        let repository = context.repository_to_write().await?;
        let mut totals = Totals::default();
        for cluster in context.collectable(&repository).await? {
            let done = gc::collect(&cluster, self.grace.unwrap_or(limits::GRACE)).await?;
            totals.add(cluster.name(), done);
        }
        let document = Document { clusters: totals.done() };
        context
            .output
            .result(&document, |document| document.clusters.iter().map(ToString::to_string).collect())?;
        totals.failure()
    }
}
