//! `walden backup`.

use crate::backup_delete::Delete;
use crate::context::{Context, threads};
use crate::progress::watcher;
use crate::receive::{duration, slot_name};
use crate::signals::{stop_on_signal, until_signal};
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use walden::backup::{self, BackupJob, BackupOptions, BackupReport, Checkpoint};
use walden::base::limits;
use walden::operate::info::BackupInfo;
use walden::operate::own_wal::OwnWal;
use walden::operate::units::{self, Bytes};
use walden::operate::{Exit, Failure};

const HELP: &str = "\
Reads the server's whole data directory over the replication protocol, and stores what the cluster's earlier backups do \
not hold already. Every backup is complete: none needs another. Checksums are verified on the way; a block that stays \
wrong when it is read again marks the backup as damaged, and is named.

A backup can be restored once the WAL written while it ran is stored. A running `walden receive` does that; without one \
the backup streams that WAL itself.

Examples:
  walden backup --cluster shop
  walden backup --cluster shop --max-rate 50MB --checkpoint spread
  walden backup delete 20261122T195501Z";

/// Take a backup of the server, or remove one
#[derive(Debug, Args)]
#[command(after_help = HELP, args_conflicts_with_subcommands = true)]
pub struct Backup {
    #[command(subcommand)]
    instead: Option<Instead>,
    /// The checkpoint that a backup begins with: at once, or spread out as the server does by itself
    #[arg(long, value_enum, default_value_t = CheckpointKind::Fast)]
    checkpoint: CheckpointKind,
    /// The most the server may send in a second, 32kB to 1GB
    #[arg(long, value_name = "SIZE", value_parser = rate)]
    max_rate: Option<u32>,
    /// How long the backup's WAL may take to be stored after everything else is
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "10m")]
    wal_timeout: Duration,
    /// The receiver's replication slot [default: walden_<cluster>]
    #[arg(long, value_name = "NAME", value_parser = slot_name)]
    slot: Option<String>,
}

/// What can be done with a backup that is there.
#[derive(Debug, Subcommand)]
enum Instead {
    Delete(Delete),
}

/// How a backup's checkpoint is done.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum CheckpointKind {
    Fast,
    Spread,
}

/// A rate in KiB a second, within what the server takes.
fn rate(text: &str) -> Result<u32, String> {
    let kib = units::bytes(text).and_then(|bytes| u32::try_from(bytes / 1024).ok());
    kib.filter(|kib| (32..=1 << 20).contains(kib)).ok_or_else(|| "expected a size of 32kB to 1GB".to_owned())
}

#[derive(Serialize)]
struct Document {
    cluster: String,
    backup: BackupInfo,
    files: u64,
    streamed_wal: bool,
    warnings: Vec<String>,
}

impl Backup {
    /// Runs it.
    pub async fn run(&self, context: &Context) -> Result<(), Failure> {
        if let Some(Instead::Delete(delete)) = &self.instead {
            return until_signal(delete.run(context)).await;
        }
        let name = context.settings.require_cluster()?.clone();
        let repository = context.repository_to_write().await?;
        let server = Arc::new(context.connect_options()?);
        let slot = context.settings.slot(self.slot.as_deref(), &name);
        let wal = OwnWal::new(server.clone(), slot, &name, context.env.clock.clone());
        let options = BackupOptions {
            checkpoint: match self.checkpoint {
                CheckpointKind::Fast => Checkpoint::Fast,
                CheckpointKind::Spread => Checkpoint::Spread,
            },
            max_rate_kib: self.max_rate,
            wal_timeout: self.wal_timeout,
            application_name: format!("{}_backup", name.slot_name()),
            holder: holder(),
            renew_interval: limits::WORK_RENEW_INTERVAL,
            threads: threads(),
        };
        let progress = watcher(context.output);
        let (stop, stopping) = watch::channel(false);
        let job = BackupJob {
            repo: repository,
            cluster: name.clone(),
            server: &*server,
            options: &options,
            wal: &wal,
            progress: &*progress,
            stop: stopping,
        };
        let (ended, signal) = stop_on_signal(backup::run(job), stop).await;
        drop(progress);
        // Also after a failure: a slot made for this backup must not stay.
        let streamed = wal.finish().await;
        let report = match (ended, signal) {
            (Err(failure), Some(signal)) if failure.exit == Exit::Interrupted => {
                return Err(Failure { exit: signal, ..failure });
            }
            (Err(failure), _) => return Err(failure),

            (Ok(report), _) => report,
        };
        self.show(context, name.to_string(), report, streamed?)
    }

    fn show(
        &self,
        context: &Context,
        cluster: String,
        report: BackupReport,
        streamed: bool,
    ) -> Result<(), Failure> {
        for warning in &report.warnings {
            tracing::warn!("{warning}");
        }
        let document = Document {
            cluster,
            backup: BackupInfo::from(&report.entry),
            files: report.file_count,
            streamed_wal: streamed,
            warnings: report.warnings,
        };
        context.output.result(&document, |document| {
            let Document { cluster, backup, files, streamed_wal, .. } = document;
            let (raw, stored, new) =
                (Bytes(backup.bytes_raw), Bytes(backup.bytes_stored), Bytes(backup.bytes_new));
            let mut text = format!(
                "backup {} of {cluster} is {}: {raw} in {files} files, {stored} stored, {new} of that new\n\
                 it restores to any moment from {} on\n",
                backup.id, backup.state, backup.stopped_at
            );
            if *streamed_wal {
                text +=
                    "no receiver runs: WAL written from now on is not archived until `walden receive` does\n";
            }
            text
        })
    }
}

/// Who makes this, for people: host and process.
pub fn holder() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{} pid {}", host.trim(), std::process::id())
}
