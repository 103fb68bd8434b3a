//! `walden receive`: streams a server's WAL into the repository until SIGTERM.

use crate::check;
use crate::cli::Deltas;
use crate::context::Context;
use crate::signals::stop_on_signal;
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use walden::base::limits;
use walden::disk::OsDisk;
use walden::operate::config::{Ack, Retention};
use walden::operate::units::{self, Bytes};
use walden::operate::{Exit, Failure, daemon};
use walden::receive::machine::Cut;
use walden::receive::session::{JournalPlace, ReceiveOptions};

const HELP: &str = "\
Runs in the foreground until SIGTERM or ctrl-C, then stores what it has and ends. It creates its replication slot, or \
takes an existing one; PostgreSQL keeps all WAL from then on until it is stored, so nothing is lost while this does not \
run, and kill -9 loses nothing either. Lost connections are made again. It compacts and collects what it stored, and once an \
hour lets go of what [cluster.NAME.retention] of the configuration file does not keep; without that table nothing expires.

PostgreSQL sees it as application_name walden_<cluster>: name that in synchronous_standby_names to make commits wait \
until they are stored.

Examples:
  walden receive --repo /srv/walden --cluster shop --connection 'host=db1 user=walden'
  walden receive --cluster shop        with everything else in /etc/walden/walden.toml";

/// Stream a server's WAL into the repository
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct Receive {
    /// The replication slot [default: walden_<cluster>]
    #[arg(long, value_name = "NAME", value_parser = slot_name)]
    slot: Option<String>,
    /// When WAL is acknowledged: once it is in the repository (object), or in a journal on this host's disk (journal),
    /// which is faster, and loses what is not yet in the repository together with that disk [default: object]
    #[arg(long, value_name = "MODE")]
    ack: Option<Ack>,
    /// Where the journal lies; only with --ack journal [default: /var/lib/walden/<cluster>]
    #[arg(long, value_name = "DIR")]
    journal_dir: Option<PathBuf>,
    /// How old WAL may get before it leaves for the repository; 0: as soon as what left before is stored [default: 1s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    flush_interval: Option<Duration>,
    #[command(flatten)]
    deltas: Deltas,
}

/// Runs `work` to its end; `other` goes on beside it as long as that takes.
async fn beside<T>(work: impl Future<Output = T>, other: impl Future<Output = ()>) -> T {
    tokio::pin!(work);
    tokio::select! {
        ended = &mut work => return ended,
        () = other => {}
    }
    work.await
}

/// A duration on the command line.
pub fn duration(text: &str) -> Result<Duration, String> {
    units::duration(text).ok_or_else(|| "expected a duration such as 500ms, 30s or 24h".to_owned())
}

/// A replication slot on the command line.
pub fn slot_name(text: &str) -> Result<String, String> {
    units::slot_name(text).ok_or_else(|| format!("expected {}", units::SLOT_NAME))
}

#[derive(Serialize)]
struct Stopped {
    durable_lsn: String,
    wal_bytes: u64,
    stored_bytes: u64,
}

impl Receive {
    /// Runs it.
    pub async fn run(&self, context: &Context) -> Result<(), Failure> {
        let settings = &context.settings;
        let name = settings.require_cluster()?.clone();
        let repository = context.repository_to_write().await?;
        let connector = context.connector(&name)?;
        let interval =
            self.flush_interval.or(settings.cluster().flush_interval).unwrap_or(limits::FLUSH_INTERVAL);
        let journal = match settings.ack(self.ack) {
            Ack::Object if self.journal_dir.is_some() => {
                let what = "--journal-dir is given, but WAL is acknowledged from the repository and no journal is written";
                return Err(
                    Failure::new(Exit::Usage, what).hint("add --ack journal, or leave --journal-dir out")
                );
            }
            Ack::Object => None,
            Ack::Journal => Some(JournalPlace {
                disk: Arc::new(OsDisk),
                dir: settings.journal_dir(self.journal_dir.as_deref(), &name),
                budget_bytes: settings.cluster().journal_bytes_max.unwrap_or(limits::JOURNAL_BYTES_MAX),
            }),
        };
        let options = ReceiveOptions {
            slot: settings.slot(self.slot.as_deref(), &name),
            journal,
            cut: Cut { interval, ..Cut::default() },
            shutdown_grace: settings.cluster().shutdown_grace.unwrap_or(limits::SHUTDOWN_GRACE),
        };
        let (stop, stopping) = watch::channel(false);
        let journal_dir = options.journal.as_ref().map(|journal| journal.dir.as_path());
        let checking = check::warn_beside_receiving(context, repository.clone(), &options.slot, journal_dir);
        let deltas = self.deltas.options(context);
        let retention = settings.retention(&name).map(Retention::policy);
        let receiving = daemon::run(repository, name, &connector, &options, deltas, retention, stopping);
        let (ended, signal) = stop_on_signal(beside(receiving, checking), stop).await;
        let stored = ended?;
        let stopped = Stopped {
            durable_lsn: stored.durable.to_string(),
            wal_bytes: stored.wal_bytes,
            stored_bytes: stored.stored_bytes,
        };
        context.output.result(&stopped, |stopped| {
            let (wal, stored) = (Bytes(stopped.wal_bytes), Bytes(stopped.stored_bytes));
            format!("stopped; stored up to {}: {wal} of WAL in {stored}", stopped.durable_lsn)
        })?;
        match signal {
            Some(Exit::Interrupted) => {
                Err(Failure::new(Exit::Interrupted, "interrupted; everything received is stored"))
            }
            _ => Ok(()),
        }
    }
}
