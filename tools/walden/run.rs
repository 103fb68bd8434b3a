//! From arguments to an exit code: logs, the runtime, signals, and how failures are told.

use crate::cli::{Cli, Command};
use crate::context::Context;
use crate::output::tell;
use crate::signals::until_signal;
use clap::Parser;
use clap::error::ErrorKind;
use std::io::{IsTerminal, stderr};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;
use walden::operate::{Exit, Failure};

/// Parses the arguments, runs the command, and tells how it ended.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    start_logs(&cli);
    let json = cli.global.json;
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tell(&failure, json);
            ExitCode::from(failure.exit.code())
        }
    }
}

/// What clap prints for `--help`, `--version` and wrong usage; under `--json` the latter is a document too.
fn refuse(error: &clap::Error) -> ExitCode {
    let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if !asked && std::env::args_os().any(|arg| arg == "--json") {
        let text = error.render().to_string();
        let what = text.lines().next().unwrap_or_default();
        tell(&Failure::new(Exit::Usage, what.strip_prefix("error: ").unwrap_or(what)), true);
    } else {
        error.print().ok();
    }
    ExitCode::from(if asked { Exit::Done } else { Exit::Usage }.code())
}

/// Logs go to standard error; `WALDEN_LOG` (`walden=debug,object_store=info`) wins over `-v` and `-q`.
fn start_logs(cli: &Cli) {
    let daemon = matches!(cli.command, Command::Receive(_));
    let level = match (cli.global.quiet, cli.global.verbose) {
        (true, _) => "error",
        (false, 0) if daemon => "warn,walden=info",
        (false, 0) => "warn",
        (false, 1) => "warn,walden=debug",
        (false, _) => "trace",
    };
    let filter = EnvFilter::try_from_env("WALDEN_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr).with_target(false);
    logs.with_ansi(stderr().is_terminal()).init();
}

fn run(cli: Cli) -> Result<(), Failure> {
    if let Command::Completions(completions) = &cli.command {
        return completions.run();
    }
    let context = Context::new(&cli.global)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Exit::Internal, format!("no runtime: {error}")))?;
    let ended = runtime.block_on(async {
        match &cli.command {
            Command::Init(init) => until_signal(init.run(&context)).await,
            Command::Receive(receive) => receive.run(&context).await,
            Command::Verify(verify) => until_signal(verify.run(&context)).await,
            Command::Copy(copy) => until_signal(copy.run(&context)).await,
            Command::Compact(compact) => until_signal(compact.run(&context)).await,
            Command::Info(info) => until_signal(info.run(&context)).await,
            Command::Backup(backup) => backup.run(&context).await,
            Command::Check(check) => until_signal(check.run(&context)).await,
            Command::Restore(restore) => until_signal(restore.run(&context)).await,
            Command::Log(log) => until_signal(log.run(&context)).await,
            Command::WalGet(get) => until_signal(get.run(&context)).await,
            Command::Analyze(analyze) => until_signal(analyze.run(&context)).await,
            Command::Expire(expire) => until_signal(expire.run(&context)).await,
            Command::Pin(pin) => until_signal(pin.run(&context)).await,
            Command::Unpin(unpin) => until_signal(unpin.run(&context)).await,
            Command::Gc(gc) => until_signal(gc.run(&context)).await,
            Command::Repair(repair) => until_signal(repair.run(&context)).await,
            Command::Cluster(cluster) => until_signal(cluster.run(&context)).await,
            Command::Slot(slot) => until_signal(slot.run(&context)).await,
            Command::Key(key) => until_signal(key.run(&context)).await,
            Command::Completions(completions) => completions.run(),
        }
    });
    // A prompt or a secret's command may still block a thread; nothing waits for it.
    runtime.shutdown_background();
    ended
}
