//! `walden verify`.

use crate::context::{Ask, Context};
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::time::Duration;
use walden::base::Timestamp;
use walden::format::verification::{VerifyDepth, VerifyOutcome};
use walden::operate::units::{self, Bytes};
use walden::operate::{Exit, Failure};
use walden::verify::objects::{self, Fault};
use walden::verify::{self, Budget, ClusterReport, Keep, Options, Stored};

const HELP: &str = "\
Reads every object and proves it: checksums, seals, chunk ids, checksums of data pages, every WAL record, references from roots \
to the last chunk, and that the index says of objects what they are. Each damage is named with what it costs: moments that cannot \
be restored, backups, or nothing. Exits 4 when anything is damaged.

The result is stored in the repository, and `walden info` shows it: a backup is verified when everything that its restore needs \
was proved. Where the repository cannot be written to, the result is shown all the same, with a note.

With --sample, --bytes or --minutes a part is read, always what was not read for the longest time, so that runs after each other \
read everything; references are followed to the end every time.

With --no-key only checksums, lengths and places are checked; that needs no secret, so it can run on the host that \
stores the repository. Seals are not opened, and nobody can say then what is gone. Its result cannot be stored, since storing needs a key.

What cannot be looked at (a store that does not give an object, a key epoch that the key slot was not given) is named and is not \
damage: nothing is known of it, and the exit code is that of what hindered.

Examples:
  walden verify --repo /srv/walden
  walden verify --repo /srv/walden --sample 10%          # daily: everything in ten days
  walden verify --repo /srv/walden --minutes 30
  walden verify --repo /srv/walden --depth seals         # nothing that was proved before has changed, and what is new is proved
  walden verify --repo /srv/walden --depth references    # quick: nothing is missing or cut short
  walden verify --repo /srv/walden --no-key";

/// Read everything back and prove it
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct Verify {
    /// Checksums only, without any secret
    #[arg(long, conflicts_with_all = ["depth", "sample", "bytes", "minutes", "no_store"])]
    no_key: bool,
    /// How deep to look
    #[arg(long, value_enum, default_value_t = Depth::Content)]
    depth: Depth,
    /// Read this share of the bytes, such as 10%
    #[arg(long, value_name = "PERCENT", value_parser = percent, group = "budget")]
    sample: Option<f64>,
    /// Read so many bytes, such as 50GB
    #[arg(long, value_name = "SIZE", value_parser = size, group = "budget")]
    bytes: Option<u64>,
    /// Read for about so many minutes
    #[arg(long, value_name = "MINUTES", value_parser = clap::value_parser!(u32).range(1..), group = "budget")]
    minutes: Option<u32>,
    /// Do not store the result
    #[arg(long)]
    no_store: bool,
}

/// How deep to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Depth {
    /// Everything is there and has its length
    References,
    /// Everything opens and is what it should be; chunks that an earlier run proved are as they were then, by their seals: three times as fast
    Seals,
    /// Everything opens and is what it should be
    Content,
}

fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim().parse::<f64>().ok();
    let sane = number.filter(|number| *number > 0.0 && *number <= 100.0);
    sane.map(|number| number / 100.0).ok_or_else(|| "expected a share above 0 up to 100%, such as 10%".into())
}

fn size(text: &str) -> Result<u64, String> {
    let sane = units::bytes(text).filter(|bytes| *bytes > 0);
    sane.ok_or_else(|| "expected a size such as 500MB or 50GB".to_owned())
}

#[derive(Serialize)]
struct Verified {
    depth: &'static str,
    objects: u64,
    bytes: u64,
    damage: Vec<Damage>,
    unread: Vec<Unread>,
    clusters: Vec<Cluster>,
    failed: Vec<Failed>,
}

#[derive(Serialize)]
struct Unread {
    object: String,
    reason: String,
}

#[derive(Serialize)]
struct Failed {
    cluster: String,
    reason: String,
}

#[derive(Serialize)]
struct Damage {
    object: String,
    found: String,
    cost: String,
    backups: Vec<String>,
}

#[derive(Serialize)]
struct Cluster {
    name: String,
    bytes_total: u64,
    bytes_covered: u64,
    covered_since: Option<String>,
    backups: Vec<Backup>,
    stored: bool,
    not_stored_because: Option<String>,
}

#[derive(Serialize)]
struct Backup {
    id: String,
    outcome: &'static str,
    depth: &'static str,
    at: String,
}

impl From<ClusterReport> for Cluster {
    fn from(report: ClusterReport) -> Cluster {
        let backup = |known: &walden::format::verification::BackupVerification| Backup {
            id: known.backup.to_string(),
            outcome: match known.outcome {
                VerifyOutcome::Verified => "verified",
                VerifyOutcome::Damaged => "damaged",
            },
            depth: walden::operate::info::depth_name(known.depth),
            at: known.at.to_string(),
        };
        let because = match report.stored {
            Stored::Yes { .. } => None,
            Stored::No { reason } => Some(reason),
        };
        Cluster {
            name: report.name.to_string(),
            bytes_total: report.bytes_total,
            bytes_covered: report.bytes_covered,
            covered_since: report.covered_since.as_ref().map(Timestamp::to_string),
            backups: report.backups.iter().map(backup).collect(),
            stored: because.is_none(),
            not_stored_because: because,
        }
    }
}

impl From<objects::Unread> for Unread {
    fn from(unread: objects::Unread) -> Unread {
        Unread { object: unread.key.to_string(), reason: unread.reason }
    }
}

impl From<&verify::Failed> for Failed {
    fn from(failed: &verify::Failed) -> Failed {
        Failed { cluster: failed.name.to_string(), reason: failed.error.to_string() }
    }
}

/// What kept the run from looking at everything that it was to look at.
fn hindered(failed: Vec<verify::Failed>, unread: &[objects::Unread]) -> Option<Failure> {
    let count = failed.len();
    if let Some(first) = failed.into_iter().next() {
        let what = format!("cluster {}, the first of {count} that could not be verified", first.name);
        return Some(Failure::from(first.error).fact("verifying", what));
    }
    let first = unread.first()?;
    let exit = match first.fault {
        Fault::Store => Exit::Store,
        Fault::Key => Exit::Key,
    };
    let (key, count) = (&first.key, unread.len());
    Some(Failure::new(exit, format!("{count} objects could not be looked at, {key} first: {}", first.reason)))
}

impl Verify {
    /// Runs it.
    pub async fn run(&self, context: &Context) -> Result<(), Failure> {
        let progress = crate::progress::watcher(context.output);
        let report = if self.no_key {
            verify::without_key(&*context.store()?, &*progress).await?
        } else {
            let (store, unlock) = (context.store()?, context.unlock(Ask::Once).await?);
            verify::unlocking(store, &unlock, context.env.clone(), self.options(), &*progress).await?
        };
        let damage = |finding: verify::Finding| Damage {
            object: finding.key,
            found: finding.reason,
            cost: finding.cost,
            backups: finding.backups.iter().map(ToString::to_string).collect(),
        };
        let depth = match (report.clusters.is_empty() && report.failed.is_empty(), self.depth) {
            // Without keys there is nothing to say of clusters.
            (true, _) => VerifyDepth::Checksums,
            (false, Depth::References) => VerifyDepth::References,
            (false, Depth::Seals | Depth::Content) => VerifyDepth::Content,
        };
        let failed = report.failed.iter().map(Failed::from).collect();
        let hindered = hindered(report.failed, &report.unread);
        let verified = Verified {
            depth: walden::operate::info::depth_name(depth),
            objects: report.objects,
            bytes: report.bytes,
            damage: report.findings.into_iter().map(damage).collect(),
            unread: report.unread.into_iter().map(Unread::from).collect(),
            clusters: report.clusters.into_iter().map(Cluster::from).collect(),
            failed,
        };
        context.output.result(&verified, |verified| self.text(verified))?;
        if !verified.damage.is_empty() {
            let (count, objects) = (verified.damage.len(), verified.objects);
            let what = format!("{count} of {objects} objects or references are damaged");
            return Err(Failure::new(Exit::Damage, what)
                .hint("they are listed above, with what each costs; objects of which a copy is whole can be put back"));
        }
        hindered.map_or(Ok(()), Err)
    }

    fn options(&self) -> Options {
        let budget = match (self.sample, self.bytes, self.minutes) {
            (Some(share), ..) => Budget::Share(share),
            (_, Some(bytes), _) => Budget::Bytes(bytes),
            (.., Some(minutes)) => Budget::Time(Duration::from_secs(60 * u64::from(minutes))),
            (None, None, None) => Budget::Everything,
        };
        let depth = match self.depth {
            Depth::References => verify::Depth::References,
            Depth::Seals => verify::Depth::Seals,
            Depth::Content => verify::Depth::Content,
        };
        Options { depth, budget, keep: if self.no_store { Keep::Discard } else { Keep::Store } }
    }

    fn text(&self, verified: &Verified) -> String {
        let mut text = format!("{} objects, {} read", verified.objects, Bytes(verified.bytes));
        if verified.damage.is_empty() && verified.unread.is_empty() && verified.failed.is_empty() {
            text += match (verified.depth, self.options().budget) {
                ("checksums", _) => {
                    "; checksums, lengths and places are right; seals were not opened, and what is gone cannot be seen"
                }
                ("references", _) => "; everything that is referred to is there",
                (_, Budget::Everything) => "; everything is as it was written",
                _ => "; all that was read is as it was written",
            };
        }
        for damage in &verified.damage {
            text +=
                &format!("\ndamaged: {}\n  found: {}\n  costs: {}", damage.object, damage.found, damage.cost);
        }
        for Unread { object, reason } in &verified.unread {
            text += &format!("\nnot looked at: {object}\n  because: {reason}");
        }
        for cluster in &verified.clusters {
            text += &cluster.text();
        }
        for Failed { cluster, reason } in &verified.failed {
            text += &format!("\ncluster {cluster}: NOT VERIFIED\n  because: {reason}");
        }
        text
    }
}

impl Cluster {
    fn text(&self) -> String {
        let of = |outcome, depth| {
            let same =
                |backup: &&Backup| backup.outcome == outcome && (depth == "any" || backup.depth == depth);
            self.backups.iter().filter(same).count()
        };
        let (content, references) = (of("verified", "content"), of("verified", "references"));
        let mut text = format!("\ncluster {}: {} backups verified", self.name, content);
        if references > 0 {
            text += &format!(", of {references} more that all is there");
        }
        match of("damaged", "any") {
            0 => {}
            damaged => text += &format!(", {damaged} DAMAGED"),
        }
        match (&self.covered_since, self.bytes_covered == self.bytes_total) {
            (Some(since), true) => text += &format!("; every byte was read since {since}"),
            (Some(since), false) => {
                let share = 100.0 * self.bytes_covered as f64 / self.bytes_total.max(1) as f64;
                text += &format!("; {share:.1} % of {} were read since {since}", Bytes(self.bytes_total));
            }
            (None, _) => text += "; nothing was read yet",
        }
        if let Some(reason) = &self.not_stored_because {
            text += &format!("\n  the result was not stored: {reason}");
        }
        text
    }
}
