//! `walden key generate`: 32 random bytes.

use crate::context::Context;
use crate::output::print;
use clap::Args;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use walden::base::clock::random_bytes;
use walden::operate::failure::is_no_space;
use walden::operate::{Exit, Failure};
use zeroize::Zeroizing;

/// Print a new key: 32 random bytes in hexadecimal, for --key-file or --key-command
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  walden key generate --out /etc/walden/key")]
pub struct Generate {
    /// Write it to this new file, readable by you alone, instead of standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Generate {
    /// Runs it.
    pub fn run(&self, context: &Context) -> Result<(), Failure> {
        let bytes = Zeroizing::new(random_bytes::<32>(&*context.env.entropy));
        let hex = Zeroizing::new(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        let Some(path) = &self.out else { return print(&hex) };
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let written = file.and_then(|mut file| {
            file.write_all(format!("{}\n", *hex).as_bytes())?;
            file.sync_all()
        });
        written.map_err(|error| {
            let exit = match error.kind() {
                std::io::ErrorKind::AlreadyExists => Exit::Conflict,
                _ if is_no_space(&error) => Exit::NoSpace,
                _ => Exit::Usage,
            };
            Failure::new(exit, format!("{}: {error}", path.display()))
        })
    }
}
