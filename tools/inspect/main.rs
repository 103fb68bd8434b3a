//! walden-inspect: shows any object of a repository, a key slot, the marker, or a journal file. What is plain is shown always, what is
//! encrypted with `--repo` and a key. A damaged file is shown as far as it is good, and the exit code says that it is damaged.
//! Reads only; secrets are never shown.

mod cli;
mod journal;
mod load;
mod object;
mod plain;
mod report;

use clap::Parser;
use cli::Cli;
use std::io::Write;
use std::process::ExitCode;
use walden::operate::{Exit, Failure};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            error.print().ok();
            return ExitCode::from(if error.use_stderr() { Exit::Usage } else { Exit::Done }.code());
        }
    };
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let text = if cli.json { failure.json().to_string() } else { failure.to_string() };
            writeln!(std::io::stderr().lock(), "{text}").ok();
            ExitCode::from(failure.exit.code())
        }
    }
}

fn run(cli: &Cli) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Exit::Internal, format!("no runtime: {error}")))?;
    let loaded = runtime.block_on(load::load(cli))?;
    if let Some(number) = cli.frame {
        return report::write_bytes(&object::frame(&loaded, number)?);
    }
    let report = match loaded.bytes.get(..8) {
        Some(b"WALDREP\x01" | b"WALDKEY\x01" | b"WALDEPO\x01" | b"WALDEPA\x01" | b"WALDEPL\x01") => {
            plain::report(&loaded)
        }
        _ => object::report(&loaded, cli.frames),
    };
    report.print(cli.json)
}
