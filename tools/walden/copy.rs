//! `walden copy`.

use crate::backup::holder;
use crate::context::{Context, threads};
use crate::progress::watcher;
use crate::signals::stop_on_signal;
use clap::{Args, ValueEnum, value_parser};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Instant;
use tokio::sync::watch;
use walden::base::{ClusterName, limits};
use walden::copy::{self, BackupWal, Copied, CopyJob, CopyOptions, Scope};
use walden::operate::config::{Place, RepositoryTable};
use walden::operate::settings::Given;
use walden::operate::units::{Bytes, Span};
use walden::operate::{Exit, Failure};

const HELP: &str = "\
Copies a cluster, every backup and all WAL up to now, or one backup with its WAL, into another repository, which \
`walden init` has made and which has keys of its own. The copy takes as much room as what it is of, and is a \
cluster like any other: info, verify, restore, expire and gc work on it, and a receiver can take it over when the source is lost.

Run again, it copies what is new; cut short, it goes on where it was. What is there is not copied again, and what the \
copy's retention let go does not come back. Until it is done, the copy is a shorter archive, and a whole one. Every chunk and \
every byte of WAL is proved against its id on the way; `walden verify --repo TO` proves what was stored.

The source may be read-only. Nothing is copied into a cluster that a receiver has written to.

Examples:
  walden copy --cluster shop --to s3://elsewhere/walden --to-key-file /etc/walden/key2
  walden copy --cluster shop --to offsite --as shop_old --backup 20261122T195501Z --wal needed";

/// Copy a cluster, or one backup with its WAL, into another repository
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct Copy {
    /// The other repository: a path, a URL, or the name of a [repository.NAME]
    #[arg(long, value_name = "URL")]
    to: String,
    /// A file that holds the other repository's passphrase
    #[arg(long, value_name = "FILE")]
    to_passphrase_file: Option<PathBuf>,
    /// A shell command that prints it
    #[arg(long, value_name = "COMMAND")]
    to_passphrase_command: Option<String>,
    /// A file that holds a key of the other repository
    #[arg(long, value_name = "FILE")]
    to_key_file: Option<PathBuf>,
    /// A shell command that prints such a key
    #[arg(long, value_name = "COMMAND")]
    to_key_command: Option<String>,
    /// What the cluster is called there [default: as here]
    #[arg(long = "as", value_name = "NAME")]
    name: Option<ClusterName>,
    /// Only this backup, by its id or the beginning of it
    #[arg(long, value_name = "ID")]
    backup: Option<String>,
    /// Which WAL goes with one backup: all from its beginning on, or what makes it consistent and no more
    #[arg(long, value_enum, default_value_t = WalKind::All, requires = "backup")]
    wal: WalKind,
    /// Segments of WAL in flight; each may take 64 MiB of memory
    #[arg(long, value_name = "COUNT", default_value_t = 4, value_parser = value_parser!(u8).range(1..=64))]
    jobs: u8,
}

/// Which WAL goes with a backup.
#[derive(Debug, Clone, ValueEnum)]
enum WalKind {
    All,
    Needed,
}

#[derive(Serialize)]
struct Document {
    cluster: String,
    to: String,
    backups: Vec<String>,
    left_out: Vec<LeftOut>,
    missing_wal: Vec<MissingWal>,
    wal_segments: u64,
    wal_bytes: u64,
    bytes_read: u64,
    bytes_written: u64,
    chunks_found: u64,
    seconds: f64,
    end: Option<End>,
}

#[derive(Serialize)]
struct LeftOut {
    backup: String,
    reason: String,
}

/// WAL that the source cannot read.
#[derive(Serialize)]
struct MissingWal {
    generation: u32,
    timeline: u32,
    start_lsn: Option<String>,
    end_lsn: Option<String>,
    object: String,
    reason: String,
    cost: String,
}

#[derive(Serialize)]
struct End {
    timeline: u32,
    lsn: String,
    server_time: String,
}

impl Copy {
    fn to(&self, context: &Context) -> Result<RepositoryTable, Failure> {
        let given = Given {
            passphrase_file: self.to_passphrase_file.clone(),
            passphrase_command: self.to_passphrase_command.clone(),
            key_file: self.to_key_file.clone(),
            key_command: self.to_key_command.clone(),
            ..Given::default()
        };
        let names = ["--to-passphrase-file", "--to-passphrase-command", "--to-key-file", "--to-key-command"];
        let secret = given.secret(names, Place::Flag("command line"))?;
        Ok(context.settings.another_repository(&self.to, Place::Flag("--to"), secret)?)
    }

    fn scope(&self) -> Scope {
        let wal = match self.wal {
            WalKind::All => BackupWal::All,
            WalKind::Needed => BackupWal::Needed,
        };
        self.backup.clone().map_or(Scope::Cluster, |name| Scope::Backup { name, wal })
    }

    /// Runs it.
    pub async fn run(&self, context: &Context) -> Result<(), Failure> {
        let to = self.to(context)?;
        let source = context.repository().await?;
        let source = context.cluster(&source).await?;
        let repo = context.another_to_write(&to).await?;
        let name = self.name.clone().unwrap_or_else(|| source.name().clone());
        let options = CopyOptions {
            scope: self.scope(),
            jobs: usize::from(self.jobs),
            threads: threads(),
            holder: format!("copy of {} from {}, {}", source.name(), source.repo().store().url(), holder()),
            renew_interval: limits::WORK_RENEW_INTERVAL,
            commit_bytes: copy::COMMIT_BYTES,
        };
        let progress = watcher(context.output);
        let (stop, stopping) = watch::channel(false);
        let job = CopyJob {
            source: &source,
            repo: &repo,
            name: &name,
            options: &options,
            progress: &*progress,
            stop: stopping,
        };
        let began = Instant::now();
        let (ended, signal) = stop_on_signal(copy::copy(&job), stop).await;
        drop(progress);
        let copied = match (ended, signal) {
            (Err(failure), Some(signal)) if failure.exit == Exit::Interrupted => {
                return Err(Failure { exit: signal, ..failure });
            }
            (ended, _) => ended?,
        };
        let damaged = damage(&copied);
        let document = document(source.name().as_str(), repo.store().url(), copied, began);
        context.output.result(&document, text)?;
        damaged.map_or(Ok(()), Err)
    }
}

/// What could not be copied since the source is damaged.
fn damage(copied: &Copied) -> Option<Failure> {
    let backup = copied.left_out.first().map(|(id, reason)| {
        let what = format!("backup {id} of the source cannot be read whole, and was left out");
        Failure::new(Exit::Damage, what).fact("found", reason)
    });
    let wal = copied.missing.first().map(|missing| {
        let what =
            format!("WAL of the source cannot be read, and is missing in the copy: {}", missing.object);
        Failure::new(Exit::Damage, what).fact("found", &missing.reason).fact("cost", &missing.cost)
    });
    let hint = "run `walden verify` on the source; everything else was copied, and another copy fills in what was mended";
    backup.or(wal).map(|failure| failure.hint(hint))
}

fn document(cluster: &str, to: String, copied: Copied, began: Instant) -> Document {
    let end = copied.end.map(|(timeline, lsn, server_time)| End {
        timeline: timeline.0,
        lsn: lsn.to_string(),
        server_time: server_time.to_string(),
    });
    let left_out = copied.left_out.into_iter().map(|(id, reason)| LeftOut { backup: id.to_string(), reason });
    let missing = copied.missing.into_iter().map(|missing| MissingWal {
        generation: missing.place.0.0,
        timeline: missing.place.1.0,
        start_lsn: missing.start.map(|start| start.to_string()),
        end_lsn: missing.end.map(|end| end.to_string()),
        object: missing.object,
        reason: missing.reason,
        cost: missing.cost,
    });
    Document {
        cluster: cluster.to_owned(),
        to,
        backups: copied.backups.iter().map(ToString::to_string).collect(),
        left_out: left_out.collect(),
        missing_wal: missing.collect(),
        wal_segments: copied.wal_segments,
        wal_bytes: copied.wal_bytes,
        bytes_read: copied.bytes_read,
        bytes_written: copied.bytes_written,
        chunks_found: copied.chunks_found,
        seconds: began.elapsed().as_secs_f64(),
        end,
    }
}

fn text(document: &Document) -> String {
    let Document { cluster, to, backups, wal_segments, wal_bytes, bytes_read, bytes_written, .. } = document;
    let elapsed = std::time::Duration::from_secs_f64(document.seconds);
    let rate = Bytes((*bytes_read as f64 / document.seconds.max(0.001)) as u64);
    let mut text = format!(
        "{cluster}: {} backups and {} of WAL in {wal_segments} segments copied to {to}\n\
         {} read in {} ({rate}/s), {} written, {} chunks were there already\n",
        backups.len(),
        Bytes(*wal_bytes),
        Bytes(*bytes_read),
        Span(elapsed),
        Bytes(*bytes_written),
        document.chunks_found,
    );
    for LeftOut { backup, reason } in &document.left_out {
        text += &format!("left out: backup {backup}: {reason}\n");
    }
    for MissingWal { object, reason, cost, .. } in &document.missing_wal {
        text += &format!("left out: {object}: {reason}\n  costs {cost}\n");
    }
    match &document.end {
        Some(End { timeline, lsn, server_time }) => {
            text += &format!("the copy ends at {lsn} on timeline {timeline}, {server_time}\n");
        }
        None => text += "there is no WAL yet\n",
    }
    text
}
