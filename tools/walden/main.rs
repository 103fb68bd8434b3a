//! The command line of walden: one file per command, each parses, calls the library, and prints.
//! Results go to standard output, logs and errors to standard error; exit codes are `operate::Exit`.

mod analyze;
mod backup;
mod backup_delete;
mod check;
mod cli;
mod cluster;
mod compact;
mod completions;
mod confirm;
mod context;
mod copy;
mod expire;
mod gc;
mod info;
mod init;
mod key;
mod log;
mod output;
mod pin;
mod progress;
mod receive;
mod repair;
mod repair_root;
mod repair_wal;
mod restore;
mod run;
mod signals;
mod slot;
mod verify;
mod wal_fetch;
mod wal_get;

use std::process::ExitCode;
use walden::operate::Exit;

fn main() -> ExitCode {
    // Called once for each WAL file of a recovery, and to be quick.
    wal_fetch::main().unwrap_or_else(|| {
        // A panic is a bug of ours, and has the exit code that was promised for one.
        std::panic::catch_unwind(run::main).unwrap_or(ExitCode::from(Exit::Internal.code()))
    })
}
