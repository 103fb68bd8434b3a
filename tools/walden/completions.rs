//! `walden completions SHELL`.

use crate::cli::Cli;
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use std::io;
use walden::operate::Failure;

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  walden completions bash > /etc/bash_completion.d/walden")]
pub struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    /// Runs it.
    pub fn run(&self) -> Result<(), Failure> {
        clap_complete::generate(self.shell, &mut Cli::command(), "walden", &mut io::stdout().lock());
        Ok(())
    }
}
