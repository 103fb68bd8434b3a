//! How results and failures are shown: text for people, or one JSON document.

use crate::cli::Global;
use serde::Serialize;
use std::io::{self, Write};
use walden::operate::{Exit, Failure};

/// Where results go.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    json: bool,
    quiet: bool,
}

/// A `--json` document: its fields beside `"version": 1`.
#[derive(Serialize)]
struct Document<'a, T> {
    version: u32,
    #[serde(flatten)]
    fields: &'a T,
}

impl Output {
    /// As the options say.
    pub fn new(global: &Global) -> Output {
        Output { json: global.json, quiet: global.quiet }
    }

    /// Whether progress is not to be shown.
    pub fn is_quiet(self) -> bool {
        self.quiet || self.json
    }

    /// Prints a result: `document` under `--json`, else what `text` says.
    pub fn result<T: Serialize>(self, document: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        let printed = if self.json {
            let document = Document { version: 1, fields: document };
            serde_json::to_string_pretty(&document)
                .map_err(|error| Failure::new(Exit::Internal, format!("the result makes no JSON: {error}")))?
        } else {
            text(document)
        };
        print(printed.trim_end())
    }
}

/// Prints to standard output, with a newline. A reader that went away (`| head`) is no error.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Internal, format!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Tells a failure on standard error.
pub fn tell(failure: &Failure, json: bool) {
    let text = if json { failure.json().to_string() } else { failure.to_string() };
    writeln!(io::stderr().lock(), "{text}").ok();
}
