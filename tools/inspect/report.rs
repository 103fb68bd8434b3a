//! What is printed: a tree as text or as JSON, then what is wrong.

use serde_json::{Map, Value};
use std::fmt::Write as _;
use std::io::{self, Write as _};
use walden::format::show::Shown;
use walden::operate::{Exit, Failure};

/// Bytes shown in full; of longer ones the beginning.
const BYTES_SHOWN: usize = 64;
/// A record of more fields takes a line for each.
const LINE_FIELDS_MAX: usize = 8;

/// Everything that could be said of a file.
#[derive(Debug, Default)]
pub struct Report {
    fields: Vec<(&'static str, Shown)>,
    problem: Option<Failure>,
}

impl Report {
    /// Adds a part.
    pub fn add(&mut self, name: &'static str, value: Shown) {
        self.fields.push((name, value));
    }

    /// Notes that something is wrong; the first word counts.
    pub fn damage(&mut self, what: impl std::fmt::Display) {
        self.problem.get_or_insert_with(|| Failure::new(Exit::Damage, what));
    }

    /// Notes another problem; the first word counts.
    pub fn problem(&mut self, failure: Failure) {
        self.problem.get_or_insert(failure);
    }

    /// Prints what there is, then answers with the problem.
    pub fn print(self, json: bool) -> Result<(), Failure> {
        let text = if json {
            let mut document = Map::from_iter([("version".to_owned(), Value::from(1))]);
            document.extend(self.fields.iter().map(|(name, value)| ((*name).to_owned(), to_json(value))));
            let good = self.problem.is_none();
            document.insert("good".into(), good.into());
            serde_json::to_string_pretty(&Value::Object(document)).unwrap_or_default() + "\n"
        } else {
            let mut text = String::new();
            self.fields.iter().for_each(|(name, value)| tell(name, value, 0, &mut text));
            text
        };
        write_bytes(text.as_bytes())?;
        self.problem.map_or(Ok(()), Err)
    }
}

/// Writes to standard output. A reader that went away is no error.
pub fn write_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Internal, format!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}

fn tell(name: &str, value: &Shown, depth: usize, to: &mut String) {
    let indent = "  ".repeat(depth);
    // Writing to a String cannot fail.
    let mut line = |text: &str| writeln!(to, "{indent}{name}: {text}").unwrap_or_default();
    match value {
        Shown::Number(number) => line(&number.to_string()),
        Shown::Flag(flag) => line(if *flag { "yes" } else { "no" }),
        Shown::Text(text) if text.chars().any(char::is_control) => line(&format!("{text:?}")),
        Shown::Text(text) => line(text),
        Shown::Bytes(bytes) => line(&bytes_text(bytes)),
        Shown::Blob(bytes) => line(&blob_text(bytes)),
        Shown::Nothing => line("none"),
        Shown::List(items) if items.is_empty() => line("none"),
        Shown::List(items) => {
            for (at, item) in items.iter().enumerate() {
                match one_line(item) {
                    Some(text) => writeln!(to, "{indent}{name}[{at}]: {text}").unwrap_or_default(),
                    None => tell(&format!("{name}[{at}]"), item, depth, to),
                }
            }
        }
        Shown::Record(fields) => {
            writeln!(to, "{indent}{name}").unwrap_or_default();
            fields.iter().for_each(|(field, value)| tell(field, value, depth + 1, to));
        }
    }
}

/// A flat record in one line, so that lists of frames and files stay readable.
fn one_line(value: &Shown) -> Option<String> {
    let Shown::Record(fields) = value else { return None };
    if fields.len() > LINE_FIELDS_MAX {
        return None;
    }
    let mut parts = Vec::new();
    for (name, value) in fields {
        parts.push(match value {
            Shown::Number(number) => format!("{name} {number}"),
            Shown::Flag(flag) => format!("{name} {}", if *flag { "yes" } else { "no" }),
            Shown::Text(text) if text.is_empty() => continue,
            Shown::Text(text) => format!("{name} {text}"),
            Shown::Nothing => continue,
            Shown::List(items) if items.is_empty() => continue,
            Shown::Bytes(_) | Shown::Blob(_) | Shown::List(_) | Shown::Record(_) => return None,
        });
    }
    Some(parts.join("  "))
}

fn bytes_text(bytes: &[u8]) -> String {
    match bytes.get(..BYTES_SHOWN) {
        _ if bytes.iter().all(|byte| *byte == 0) => format!("{} zero bytes", bytes.len()),
        Some(beginning) if bytes.len() > BYTES_SHOWN => {
            format!("{}… ({} bytes)", hex(beginning), bytes.len())
        }
        _ => hex(bytes),
    }
}

fn blob_text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(|c| c.is_control() && !c.is_whitespace()) => format!("{text:?}"),
        _ => bytes_text(bytes),
    }
}

fn to_json(value: &Shown) -> Value {
    match value {
        // Everything stored has at most 64 bits.
        Shown::Number(number) => i64::try_from(*number)
            .map(Value::from)
            .or_else(|_| u64::try_from(*number).map(Value::from))
            .unwrap_or(Value::Null),
        Shown::Flag(flag) => (*flag).into(),
        Shown::Text(text) => text.clone().into(),
        Shown::Bytes(bytes) | Shown::Blob(bytes) => hex(bytes).into(),
        Shown::Nothing => Value::Null,
        Shown::List(items) => items.iter().map(to_json).collect(),
        Shown::Record(fields) => {
            fields.iter().map(|(name, value)| ((*name).to_owned(), to_json(value))).collect()
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
