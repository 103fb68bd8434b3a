//! `walden verify`.

use crate::context::{Ask, Context};
use clap::Args;
use serde::Serialize;
use walden::operate::units::Bytes;
use walden::operate::{Exit, Failure};
use walden::verify;

const HELP: &str = "\
Reads every object and proves it: checksums, seals, chunk ids, the chain of WAL, references from roots to the last chunk. \
Each damage is named with what it costs: an interval of WAL, a backup, or nothing. Exits 4 when anything is damaged.

With --no-key only checksums, lengths and places are checked; that needs no secret, so it can run on the host that \
stores the repository.

Examples:
  walden verify --repo /srv/walden
  walden verify --repo /srv/walden --no-key";

/// Read everything back and prove it
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct Verify {
    /// Checksums only, without any secret
    #[arg(long)]
    no_key: bool,
}

#[derive(Serialize)]
struct Verified {
    objects: u64,
    bytes: u64,
    damage: Vec<Damage>,
}

#[derive(Serialize)]
struct Damage {
    object: String,
    found: String,
    cost: String,
}

impl Verify {
    /// Runs it.
    pub async fn run(&self, context: &Context) -> Result<(), Failure> {
        let progress = crate::progress::watcher(context.output);
        let report = if self.no_key {
            verify::without_key(&*context.store()?, &*progress).await?
        } else {
            let (store, unlock) = (context.store()?, context.unlock(Ask::Once).await?);
            verify::unlocking(store, &unlock, context.env.clone(), &*progress).await?
        };
        let damage = |finding: verify::Finding| Damage {
            object: finding.key,
            found: finding.reason,
            cost: finding.cost,
        };
        let verified = Verified {
            objects: report.objects,
            bytes: report.bytes,
            damage: report.findings.into_iter().map(damage).collect(),
        };
        context.output.result(&verified, |verified| {
            let mut text = format!("{} objects, {} read", verified.objects, Bytes(verified.bytes));
            for damage in &verified.damage {
                text += &format!(
                    "\ndamaged: {}\n  found: {}\n  costs: {}",
                    damage.object, damage.found, damage.cost
                );
            }
            if verified.damage.is_empty() {
                text += "; everything is as it was written";
            }
            text
        })?;
        if verified.damage.is_empty() {
            return Ok(());
        }
        let count = verified.damage.len();
        Err(Failure::new(
            Exit::Damage,
            format!("{count} of {} objects or references are damaged", verified.objects),
        ))
    }
}
