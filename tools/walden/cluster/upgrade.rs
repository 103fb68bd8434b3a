//! `walden cluster upgrade`.

use crate::context::Context;
use clap::Args;
use std::path::PathBuf;
use std::sync::Arc;
use walden::base::limits;
use walden::disk::OsDisk;
use walden::operate::Failure;
use walden::operate::clusters::UpgradeInfo;
use walden::receive::machine::Cut;
use walden::receive::session::{JournalPlace, ReceiveOptions};
use walden::receive::upgrade::{self, MissingWal, NewServer, UpgradeOptions};

const HELP: &str = "\
After pg_upgrade the server has another system identifier and major version, and `walden receive` and `walden backup` refuse it. This \
connects to it and begins the cluster's next generation. Backups and WAL of the old server stay restorable, as far as retention keeps them; \
nobody adds to them any more, and a receiver that still runs for it ends with exit code 12.

Refused unless the server is what pg_upgrade makes of the one stored (another system identifier, a greater major version, WAL behind \
the old server's), and unless the old server's WAL is stored to its clean shutdown. What only this host's journal has is stored first; a journal on \
another host is emptied there, by its receiver.

In this order: stop the old server while `walden receive` runs; pg_upgrade; start the new server; this; `walden receive`; `walden backup`. A moment between \
the old server's end and that backup cannot be restored.

Example:
  walden cluster upgrade --cluster shop --connection 'host=db1 user=walden'";

/// Begin the next generation of a cluster, after pg_upgrade
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct Upgrade {
    /// Also when the server is not what pg_upgrade makes: one restored from a dump, made anew, an older one again; and for a name
    /// whose cluster was deleted
    #[arg(long)]
    new_system: bool,
    /// Give up WAL of the old server that is not stored
    #[arg(long)]
    accept_missing_wal: bool,
    /// Where this host's journal lies, if there is one [default: /var/lib/walden/<cluster>]
    #[arg(long, value_name = "DIR")]
    journal_dir: Option<PathBuf>,
}

impl Upgrade {
    /// Runs it.
    pub async fn run(&self, context: &Context) -> Result<(), Failure> {
        let settings = &context.settings;
        let name = settings.require_cluster()?.clone();
        let repository = context.repository_to_write().await?;
        let connector = context.connector(&name)?;
        // Whatever the mode is now: an earlier receiver may have left one.
        let journal = JournalPlace {
            disk: Arc::new(OsDisk),
            dir: settings.journal_dir(self.journal_dir.as_deref(), &name),
            budget_bytes: settings.cluster().journal_bytes_max.unwrap_or(limits::JOURNAL_BYTES_MAX),
        };
        let options = UpgradeOptions {
            server: if self.new_system { NewServer::Any } else { NewServer::Upgraded },
            missing: if self.accept_missing_wal { MissingWal::Accept } else { MissingWal::Refuse },
            receive: ReceiveOptions {
                slot: settings.slot(None, &name),
                journal: Some(journal),
                cut: Cut::default(),
                shutdown_grace: limits::SHUTDOWN_GRACE,
            },
        };
        let done = upgrade::upgrade(repository, name, &connector, &options).await?;
        context.output.result(&UpgradeInfo::from(&done), ToString::to_string)
    }
}
