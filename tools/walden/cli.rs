//! What can be typed: the options that every command has, and the commands.

use crate::context::Context;
use clap::{ArgAction, Args, Parser, Subcommand};
use std::path::PathBuf;
use walden::operate::config::Switch;
use walden::operate::settings::Given;
use walden::operate::units;
use walden::receive::compact::DeltaOptions;

const ABOUT: &str = "Archives a live PostgreSQL 14 to 18, and restores it to any moment";

const EXAMPLES: &str = "\
Examples:
  walden init --repo /srv/walden --passphrase-file /etc/walden/passphrase
  walden key generate > /etc/walden/key

Every option that names a thing can also come from the environment (WALDEN_REPO, WALDEN_CLUSTER, \
WALDEN_CONNECTION, WALDEN_PASSPHRASE_FILE, …) or from a file (--config, else /etc/walden/walden.toml); an option wins over the environment, which wins over the file.";

/// Parsed arguments.
#[derive(Debug, Parser)]
#[command(name = "walden", version, about = ABOUT, after_help = EXAMPLES, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// The repository: a path, file://, s3://bucket/prefix, gs://…, az://…, or the name of a [repository.NAME]
    #[arg(long, global = true, value_name = "URL", display_order = 100)]
    pub repo: Option<String>,
    /// The cluster's name in the repository
    #[arg(long, global = true, value_name = "NAME", display_order = 101)]
    pub cluster: Option<String>,
    /// How to reach PostgreSQL, as libpq takes it: `host=db1 user=walden`, postgresql://…; no password here
    #[arg(long, global = true, value_name = "CONNINFO", display_order = 102)]
    pub connection: Option<String>,
    /// A file that holds the repository's passphrase, readable by you alone
    #[arg(long, global = true, value_name = "FILE", display_order = 103)]
    pub passphrase_file: Option<PathBuf>,
    /// A shell command that prints the passphrase
    #[arg(long, global = true, value_name = "COMMAND", display_order = 104)]
    pub passphrase_command: Option<String>,
    /// A file that holds a key: 32 bytes in hexadecimal, as `walden key generate` prints them
    #[arg(long, global = true, value_name = "FILE", display_order = 105)]
    pub key_file: Option<PathBuf>,
    /// A shell command that prints such a key
    #[arg(long, global = true, value_name = "COMMAND", display_order = 106)]
    pub key_command: Option<String>,
    /// Where pages that WAL deltas refer to are kept while a command works [default: /var/cache/walden, ~/.cache/walden,
    /// or /var/tmp]
    #[arg(long, global = true, value_name = "DIR", display_order = 107)]
    pub cache_dir: Option<PathBuf>,
    /// The configuration file, instead of /etc/walden/walden.toml
    #[arg(long, global = true, value_name = "FILE", display_order = 108)]
    pub config: Option<PathBuf>,
    /// Print one JSON document with "version": 1; errors too, on standard error
    #[arg(long, global = true, display_order = 109)]
    pub json: bool,
    /// Log more; twice for everything
    #[arg(long, short, global = true, action = ArgAction::Count, display_order = 110)]
    pub verbose: u8,
    /// Log errors only, and show no progress
    #[arg(long, short, global = true, conflicts_with = "verbose", display_order = 111)]
    pub quiet: bool,
}

impl Global {
    /// What of them is merged with the environment and the file.
    pub fn given(&self) -> Given {
        Given {
            repo: self.repo.clone(),
            cluster: self.cluster.clone(),
            connection: self.connection.clone(),
            passphrase_file: self.passphrase_file.clone(),
            passphrase_command: self.passphrase_command.clone(),
            key_file: self.key_file.clone(),
            key_command: self.key_command.clone(),
            cache_dir: self.cache_dir.clone(),
        }
    }
}

/// How WAL deltas are made.
#[derive(Debug, Clone, Args)]
pub struct Deltas {
    /// Whether compacted WAL is stored as differences from pages that the repository holds, at about a quarter of the size; off is
    /// for WAL whose every segment stands alone [default: on]
    #[arg(long, value_name = "on|off")]
    wal_deltas: Option<Switch>,
    /// Bytes of earlier pages kept to make differences from, and at most as many again of the backup's, in files under --cache-dir
    /// [default: 4GB]
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    delta_cache: Option<u64>,
}

impl Deltas {
    /// By these options over the configuration file.
    pub fn options(&self, context: &Context) -> Option<DeltaOptions> {
        context.settings.deltas(self.wal_deltas, self.delta_cache)
    }
}

pub fn bytes(text: &str) -> Result<u64, String> {
    units::bytes(text).ok_or_else(|| "expected a size such as 512MB or 4GB".to_owned())
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    Init(crate::init::Init),
    Receive(crate::receive::Receive),
    Backup(crate::backup::Backup),
    Restore(crate::restore::Restore),
    Copy(crate::copy::Copy),
    Compact(crate::compact::Compact),
    Verify(crate::verify::Verify),
    Expire(crate::expire::Expire),
    Pin(crate::pin::Pin),
    Unpin(crate::pin::Unpin),
    Gc(crate::gc::Gc),
    #[command(subcommand)]
    Repair(crate::repair::Repair),
    Info(crate::info::Info),
    Log(crate::log::Log),
    WalGet(crate::wal_get::WalGet),
    Analyze(crate::analyze::Analyze),
    Check(crate::check::Check),
    #[command(subcommand)]
    Cluster(crate::cluster::Cluster),
    #[command(subcommand)]
    Slot(crate::slot::Slot),
    #[command(subcommand)]
    Key(crate::key::Key),
    Completions(crate::completions::Completions),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_and_option_is_explained() {
        fn look(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{} says nothing", command.get_name());
            for arg in command.get_arguments() {
                assert!(arg.get_help().is_some(), "{} {} says nothing", command.get_name(), arg.get_id());
            }
            command.get_subcommands().for_each(look);
        }
        look(&Cli::command());
    }
}
