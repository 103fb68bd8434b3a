//! The command line of walden: one file per command, each parses, calls the library, and prints.
//! Results go to standard output, logs and errors to standard error; exit codes are `operate::Exit`.

mod cli;
mod completions;
mod context;
mod init;
mod key;
mod output;
mod run;

use std::process::ExitCode;

fn main() -> ExitCode {
    run::main()
}
