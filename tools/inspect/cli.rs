//! What can be typed.

use clap::Parser;
use std::path::PathBuf;
use walden::disk::SecretSource;
use walden::operate::settings::Given;

const EXAMPLES: &str = "\
Examples:
  walden-inspect /srv/walden/clusters/shop/roots/00000000000000000007
  walden-inspect --repo /srv/walden --passphrase-file pass clusters/shop/roots/00000000000000000007
  walden-inspect --repo s3://bucket/walden --key-file key --frames clusters/shop/index/5d1e…
  walden-inspect --repo /srv/walden --key-file key /var/lib/walden/shop/00000000000000000003.journal

The options can also come from the environment (WALDEN_REPO, WALDEN_PASSPHRASE_FILE, …) or from walden.toml.
Exit codes are those of walden: 0 shown and good, 4 damaged (and shown as far as it is good), 5 wrong key, 6 not found.";

/// Show an object of a walden repository, a key slot, the marker, or a journal file
#[derive(Debug, Parser)]
#[command(name = "walden-inspect", version, about, after_help = EXAMPLES)]
pub struct Cli {
    /// A file; or, with --repo, the name of an object in the repository
    #[arg(value_name = "FILE")]
    pub file: String,
    /// The repository it belongs to, for its keys: a path, file://, s3://bucket/prefix, gs://…, az://…
    #[arg(long, value_name = "URL")]
    pub repo: Option<String>,
    /// A file that holds the repository's passphrase, readable by you alone
    #[arg(long, value_name = "FILE", group = "secret")]
    passphrase_file: Option<PathBuf>,
    /// A shell command that prints the passphrase
    #[arg(long, value_name = "COMMAND", group = "secret")]
    passphrase_command: Option<String>,
    /// A file that holds a key: 32 bytes in hexadecimal
    #[arg(long, value_name = "FILE", group = "secret")]
    key_file: Option<PathBuf>,
    /// A shell command that prints such a key
    #[arg(long, value_name = "COMMAND", group = "secret")]
    key_command: Option<String>,
    /// The configuration file, instead of /etc/walden/walden.toml
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Show what is in the frames too: index entries, files of a manifest, WAL of a journal
    #[arg(long)]
    pub frames: bool,
    /// Write the plaintext of one frame to standard output, and nothing else
    #[arg(long, value_name = "NUMBER", conflicts_with_all = ["frames", "json"])]
    pub frame: Option<u64>,
    /// Print one JSON document with "version": 1; errors too, on standard error
    #[arg(long)]
    pub json: bool,
}

impl Cli {
    /// What of them is merged with the environment and the configuration file.
    pub fn given(&self) -> Given {
        Given {
            repo: self.repo.clone(),
            passphrase_file: self.passphrase_file.clone(),
            passphrase_command: self.passphrase_command.clone(),
            key_file: self.key_file.clone(),
            key_command: self.key_command.clone(),
            ..Given::default()
        }
    }

    /// Where the passphrase or key comes from, by the options alone.
    pub fn secret(&self) -> Option<SecretSource> {
        let passphrase_file = self.passphrase_file.clone().map(SecretSource::PassphraseFile);
        passphrase_file
            .or_else(|| self.passphrase_command.clone().map(SecretSource::PassphraseCommand))
            .or_else(|| self.key_file.clone().map(SecretSource::KeyFile))
            .or_else(|| self.key_command.clone().map(SecretSource::KeyCommand))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
