//! `walden key rotate`, `walden key move` and `walden key destroy`.

use crate::cli::{Deltas, bytes};
use crate::confirm::Confirm;
use crate::context::Context;
use crate::progress::watcher;
use clap::Args;
use serde::Serialize;
use std::collections::BTreeMap;
use walden::operate::units::Bytes;
use walden::operate::{Exit, Failure};
use walden::receive::compact::{self, Extent};
use walden::rekey::census::Kind;
use walden::rekey::destroy::{self, Destroyed, Needed};
use walden::rekey::reseal;
use walden::repo::slots;

const ROTATE_HELP: &str = "\
What is stored from now on is sealed under a new secret, which every slot gets that somebody vouched for. Running \
receivers follow within a minute, backups and compactions at their next commit. What is stored already stays under the \
epochs before: `walden key move` takes it along.

Example:
  walden key rotate";

const MOVE_HELP: &str = "\
Compacts what was received, and stores every segment, manifest and index object again that is sealed under an older key \
epoch. It reads and writes all of that once; --limit does it in parts, from a timer. What was replaced stays for a grace \
period, as after a compaction. Safe beside everything else, and can be interrupted.

Example:
  walden key move --limit 100GB";

const DESTROY_HELP: &str = "\
Refuses as long as anything is sealed under the epoch, or somebody may still seal something, and says what. In this order: \
`key rotate`, `key move`, a day of patience, `gc`, `key destroy`. What was sealed under it opens for nobody afterwards, \
also what others kept copies of, unless they kept one of the epoch too. An epoch that `key list` says is not proved, and \
that nothing is sealed under, goes in the same way.

Example:
  walden key destroy 1 --yes";

/// Begin the next key epoch
#[derive(Debug, Args)]
#[command(after_help = ROTATE_HELP)]
pub struct Rotate {}

#[derive(Serialize)]
struct RotatedKeys {
    epoch: u32,
    slots: Vec<String>,
    passed_over: Vec<PassedOver>,
    by_another: bool,
}

#[derive(Serialize)]
struct PassedOver {
    slot: String,
    reason: String,
}

impl Rotate {
    /// Runs it.
    pub async fn run(&self, context: &Context) -> Result<(), Failure> {
        let repository = context.repository_to_write().await?;
        let rotated = slots::rotate(&repository).await?;
        let passed = rotated.passed_over.into_iter();
        let done = RotatedKeys {
            epoch: rotated.epoch,
            slots: rotated.given.iter().map(ToString::to_string).collect(),
            passed_over: passed.map(|(slot, reason)| PassedOver { slot: slot.to_string(), reason }).collect(),
            by_another: rotated.by_another,
        };
        context.output.result(&done, |done| {
            let mut text = format!("key epoch {} begins, given to {}", done.epoch, done.slots.join(", "));
            if done.by_another {
                text += "\nanother rotation made it at the same time; that is as good";
            }
            for passed in &done.passed_over {
                text += &format!("\nnot given to {}: {}", passed.slot, passed.reason);
            }
            text + "\nWhat is stored already stays under the epochs before, until `walden key move` takes it along."
        })
    }
}

/// Seal what is stored under older key epochs anew, under the newest
#[derive(Debug, Args)]
#[command(after_help = MOVE_HELP)]
pub struct Move {
    /// Stop after about so many bytes, such as 100GB; the next time goes on
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    limit: Option<u64>,
    #[command(flatten)]
    deltas: Deltas,
}

#[derive(Serialize)]
struct Moves {
    clusters: Vec<MovedCluster>,
    finished: bool,
}

#[derive(Serialize)]
struct MovedCluster {
    cluster: String,
    flush_objects_compacted: u64,
    segments: u64,
    manifests: u64,
    index: bool,
    bytes: u64,
    unreadable: BTreeMap<String, String>,
    finished: bool,
}

impl Move {
    /// Runs it.
    pub async fn run(&self, context: &Context) -> Result<(), Failure> {
        let repository = context.repository_to_write().await?;
        slots::newest(&repository).await?;
        let progress = watcher(context.output);
        let mut left = self.limit.unwrap_or(u64::MAX);
        let mut clusters = Vec::new();
        for cluster in context.clusters(&repository).await? {
            let compacted = compact::compact(&cluster, self.deltas.options(context), Extent::All).await?;
            let moved = reseal::reseal(&cluster, left, &*progress).await?;
            left = left.saturating_sub(moved.bytes);
            clusters.push(MovedCluster {
                cluster: cluster.name().to_string(),
                flush_objects_compacted: compacted.flushes,
                segments: moved.segments,
                manifests: moved.manifests,
                index: moved.index,
                bytes: moved.bytes,
                finished: moved.finished,
                unreadable: moved
                    .unreadable
                    .into_iter()
                    .map(|(key, reason)| (key.to_string(), reason))
                    .collect(),
            });
        }
        drop(progress);
        let finished = clusters.iter().all(|cluster| cluster.finished);
        let unreadable: usize = clusters.iter().map(|cluster| cluster.unreadable.len()).sum();
        context.output.result(&Moves { clusters, finished }, |done| {
            let line = |cluster: &MovedCluster| {
                let unreadable = |(key, reason): (&String, &String)| format!("  not moved: {key}: {reason}\n");
                let unreadable: String = cluster.unreadable.iter().map(unreadable).collect();
                format!(
                    "{}: {} segments and {} manifests sealed anew, {}; {} flush objects compacted{}\n{unreadable}",
                    cluster.cluster,
                    cluster.segments,
                    cluster.manifests,
                    Bytes(cluster.bytes),
                    cluster.flush_objects_compacted,
                    if cluster.finished || !cluster.unreadable.is_empty() { "" } else { "; there is more" }
                )
            };
            let text: String = done.clusters.iter().map(line).collect();
            text + match done.finished {
                true => "Everything in use is under the newest key epoch; what was replaced goes after the grace period.",
                false if unreadable > 0 => "What cannot be read stays under its key epoch.",
                false => "The limit was reached: run it again to go on.",
            }
        })?;
        match unreadable {
            0 => Ok(()),
            count => {
                Err(Failure::new(Exit::Damage, format!("{count} objects cannot be read, and were not moved"))
                    .hint("`walden verify` says what each costs"))
            }
        }
    }
}

/// End an old key epoch: remove its secrets for good
#[derive(Debug, Args)]
#[command(after_help = DESTROY_HELP)]
pub struct Destroy {
    /// The epoch's number, as `key list` shows it
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    epoch: u32,
    #[command(flatten)]
    confirm: Confirm,
}

#[derive(Serialize)]
struct DestroyedEpoch {
    epoch: u32,
    objects: u64,
    void_flush_objects: u64,
}

impl Destroy {
    /// Runs it.
    pub async fn run(&self, context: &Context) -> Result<(), Failure> {
        let repository = context.repository_to_write().await?;
        let (epoch, url) = (self.epoch, repository.store().url());
        let question = format!(
            "Destroy key epoch {epoch} of {url}? What is sealed under it opens for nobody afterwards."
        );
        self.confirm.ask(&question, &epoch.to_string())?;
        let progress = watcher(context.output);
        let ended = destroy::destroy(&repository, epoch, &*progress).await?;
        drop(progress);
        let (objects, void_flush_objects) = match ended {
            Destroyed::Gone { objects, void } => (objects, void),
            Destroyed::Refused(needed) => return Err(refusal(epoch, &needed)),
        };
        context.output.result(&DestroyedEpoch { epoch, objects, void_flush_objects }, |done| {
            format!(
                "key epoch {epoch} is destroyed: {} objects with its secrets were removed\n\
                 A bucket with versions still has them: let its lifecycle rules remove old versions below keys/.",
                done.objects
            )
        })
    }
}

/// What an epoch is still needed for, and which command changes that.
fn refusal(epoch: u32, needed: &[Needed]) -> Failure {
    let (mut moves, mut waits, mut receives, mut said) = (false, false, false, Vec::new());
    for need in needed {
        said.push(match need {
            Needed::Objects { cluster, kinds } => {
                let kind = |(kind, tally): (&Kind, &walden::rekey::census::Tally)| {
                    match kind {
                        Kind::Roots | Kind::Pending => waits = true,
                        Kind::Index
                        | Kind::Flushes
                        | Kind::WalSegments
                        | Kind::ChunkSegments
                        | Kind::Manifests
                        | Kind::Verifications => moves = true,
                    }
                    format!("{} {} ({})", tally.objects, kind.name(), Bytes(tally.bytes))
                };
                format!("cluster {cluster}: {}", kinds.iter().map(kind).collect::<Vec<_>>().join(", "))
            }
            Needed::Stream { cluster, stream } => {
                receives = true;
                format!("cluster {cluster}: the writer of stream {stream} has not been seen under a later epoch")
            }
            Needed::Work { cluster, count } => {
                waits = true;
                format!("cluster {cluster}: {count} backups, restores or compactions that began before the next epoch")
            }
        });
    }
    let mut hints = Vec::new();
    if receives {
        hints.push("a running `walden receive` stores something under the newest epoch within a few minutes; where none runs, start it once");
    }
    if moves {
        hints.push("`walden key move` seals what is in use anew, and what it replaced goes with `walden gc` after the grace period");
    } else if waits {
        hints.push("it goes with `walden gc` after the grace period");
    }
    Failure::new(Exit::Conflict, format!("key epoch {epoch} is still needed; nothing was destroyed"))
        .fact("by", said.join("; "))
        .hint(hints.join("; "))
}
