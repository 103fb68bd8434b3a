//! `walden repair wal`.

use crate::cli::Deltas;
use crate::context::Context;
use clap::Args;
use serde::Serialize;
use walden::base::{Lsn, LsnRange, ObjectKey};
use walden::operate::Failure;
use walden::receive::compact::{self, Extent};
use walden::repo::losses::{self, Loss};

const HELP: &str = "\
A flush object that is damaged or missing costs the WAL that it held: restores go around it, and `walden verify` names it. Nothing behind \
it in its stream is compacted until the loss is recorded as a gap, since that could hide it: by this command, or by `walden receive` once \
it has seen the loss for an hour, unless that may be the fence which ends the stream. First put a whole copy of the object in its place, if there is one anywhere: then nothing is lost. Receivers may run. Take a backup afterwards: moments behind the gap are restored from it.

Examples:
  walden repair wal --cluster shop --dry-run
  walden repair wal --cluster shop";

/// Record WAL that was lost from a repository, so that what follows it is compacted
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct RepairWal {
    /// Show what is lost, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    deltas: Deltas,
}

#[derive(Serialize)]
struct Repaired {
    cluster: String,
    dry_run: bool,
    losses: Vec<Lost>,
}

#[derive(Serialize)]
struct Lost {
    objects: Vec<Object>,
    timeline: u32,
    start_lsn: Option<String>,
    end_lsn: Option<String>,
    gaps: Vec<Gap>,
}

#[derive(Serialize)]
struct Object {
    key: String,
    found: String,
}

#[derive(Serialize)]
struct Gap {
    start_lsn: String,
    /// None where nothing follows.
    end_lsn: Option<String>,
}

impl RepairWal {
    /// Runs it.
    pub async fn run(&self, context: &Context) -> Result<(), Failure> {
        let repository = context.repository_to_write().await?;
        let cluster = context.cluster(&repository).await?;
        let found = if self.dry_run {
            losses::losses(&cluster).await?
        } else {
            let mut recorded = Vec::new();
            loop {
                compact::compact(&cluster, self.deltas.options(context), Extent::All).await?;
                match losses::record_first(&cluster).await? {
                    Some(loss) => recorded.push(loss),
                    None => break recorded,
                }
            }
        };
        let losses = found.iter().map(Lost::from).collect();
        let done = Repaired { cluster: cluster.name().to_string(), dry_run: self.dry_run, losses };
        context.output.result(&done, Repaired::text)
    }
}

impl From<&Loss> for Lost {
    fn from(loss: &Loss) -> Lost {
        let end = |gap: &LsnRange| (gap.end < Lsn::MAX).then(|| gap.end.to_string());
        let gap = |gap: &LsnRange| Gap { start_lsn: gap.start.to_string(), end_lsn: end(gap) };
        let object =
            |(key, found): &(ObjectKey, String)| Object { key: key.to_string(), found: found.clone() };
        let lsn = |at: Option<Lsn>| at.map(|at| at.to_string());
        Lost {
            objects: loss.reasons.iter().map(object).collect(),
            timeline: loss.timeline.0,
            start_lsn: lsn(loss.from),
            end_lsn: lsn(loss.to),
            gaps: loss.gaps.iter().map(gap).collect(),
        }
    }
}

impl Repaired {
    fn text(&self) -> String {
        if self.losses.is_empty() {
            return format!("cluster {}: no flush object is lost", self.cluster);
        }
        let mut text = String::new();
        for lost in &self.losses {
            for Object { key, found } in &lost.objects {
                text += &format!("{key}: {found}\n");
            }
            for Gap { start_lsn, end_lsn } in &lost.gaps {
                let end = end_lsn.as_deref().unwrap_or("its end");
                text += &format!("  gap {start_lsn}..{end} of timeline {}\n", lost.timeline);
            }
            if lost.gaps.is_empty() {
                text += "  no WAL is missing for it\n";
            }
        }
        text += match self.dry_run {
            true => "nothing was changed (--dry-run)",
            false => "recorded; take a backup: moments behind a gap are restored from it",
        };
        text
    }
}
