//! The command line of walden: one file per command, each parses, calls the library, and prints.
//! Results go to standard output, logs and errors to standard error; exit codes are `operate::Exit`.

mod backup;
mod check;
mod cli;
mod compact;
mod completions;
mod context;
mod gc;
mod info;
mod init;
mod key;
mod log;
mod output;
mod progress;
mod receive;
mod restore;
mod run;
mod signals;
mod slot;
mod verify;
mod wal_fetch;

use std::process::ExitCode;

fn main() -> ExitCode {
    // Called once for each WAL file of a recovery, and to be quick.
    wal_fetch::main().unwrap_or_else(run::main)
}
