//! `walden wal-fetch`, which PostgreSQL runs for each WAL file: decided before anything of the command line is set up.
//! Every exit code means something to PostgreSQL, so none comes from elsewhere: a panic ends with 255 too.

use std::ffi::OsString;
use std::io::stderr;
use std::panic::catch_unwind;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use tracing_subscriber::EnvFilter;
use walden::base::{Anonymous, Env};
use walden::disk::{OsEntropy, SystemClock};
use walden::restore::wal_fetch::client::{self, EXIT_DONE, EXIT_FAILED, Invocation};
use walden::restore::wal_fetch::server;

/// The exit code, if this is a `wal-fetch`.
pub fn main() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != "wal-fetch" {
        return None;
    }
    let code = catch_unwind(|| run(arguments.collect())).unwrap_or(EXIT_FAILED);
    Some(ExitCode::from(code))
}

fn run(arguments: Vec<OsString>) -> u8 {
    let say = |line: String| eprintln!("walden wal-fetch: {line}");
    if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        println!("{}", client::USAGE);
        return EXIT_DONE;
    }
    let binary = std::env::current_exe();
    match (Invocation::parse(arguments), binary) {
        (Ok(Invocation::Fetch { recovery, name, to }), Ok(binary)) => {
            client::fetch(&recovery, &name, &to, &binary, &mut { say })
        }
        (Ok(Invocation::Serve { recovery }), _) => serve(&recovery),
        (Err(usage), _) => {
            say(usage);
            EXIT_FAILED
        }
        (_, Err(error)) => {
            say(format!("this program's own path: {error}"));
            EXIT_FAILED
        }
    }
}

fn serve(recovery: &Path) -> u8 {
    let filter = EnvFilter::try_from_env("WALDEN_LOG").unwrap_or_else(|_| EnvFilter::new("warn,walden=info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(false)
        .with_target(false)
        .init();
    // The server keeps pages beside what it stages.
    let env =
        Env { clock: Arc::new(SystemClock), entropy: Arc::new(OsEntropy), scratch: Arc::new(Anonymous) };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "no runtime");
            return EXIT_FAILED;
        }
    };
    let ended = runtime.block_on(server::serve(recovery, env));
    runtime.shutdown_background();
    match ended {
        Ok(_) => EXIT_DONE,
        Err(error) => {
            tracing::error!(%error, "cannot serve");
            EXIT_FAILED
        }
    }
}
