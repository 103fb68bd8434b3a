//! Reads the tables of `formats/*.md`, and decodes bytes by them alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

/// What a table describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Fields at fixed places.
    Fixed,
    /// Fields one after the other.
    Record,
    /// The values of one byte.
    Code,
}

/// One row. `place` is an offset or a code, empty in records.
#[derive(Debug, Clone)]
pub struct Row {
    pub place: String,
    pub name: String,
    pub kind: String,
}

#[derive(Debug)]
pub struct Table {
    pub page: String,
    pub shape: Shape,
    pub rows: Vec<Row>,
}

/// All pages, and the stored form of the values in records.md.
#[derive(Debug)]
pub struct Pages {
    pub tables: BTreeMap<String, Table>,
    values: BTreeMap<String, String>,
}

/// A decoded value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Plain(String),
    List(Vec<Value>),
    Nothing,
    Fields(String, Vec<(String, Value)>),
}

pub fn formats_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("formats")
}

pub fn page_names() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(formats_dir())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".md"))
        .collect();
    names.sort();
    names
}

fn code_text(cell: &str) -> String {
    cell.trim().trim_matches('`').to_owned()
}

impl Pages {
    pub fn read() -> Pages {
        let mut pages = Pages { tables: BTreeMap::new(), values: BTreeMap::new() };
        for page in page_names() {
            pages.read_page(&page, &fs::read_to_string(formats_dir().join(&page)).unwrap());
        }
        assert!(pages.values.len() > 15, "records.md has its table of values");
        pages
    }

    fn read_page(&mut self, page: &str, text: &str) {
        let (mut name, mut header): (Option<String>, Option<Vec<String>>) = (None, None);
        for line in text.lines() {
            if line.starts_with('#') {
                let heading = line.trim_start_matches('#').trim();
                let is_name = heading.len() > 2 && heading.starts_with('`') && heading.ends_with('`');
                name = is_name.then(|| code_text(heading));
                header = (page == "records.md" && heading == "Values").then(|| vec!["values".to_owned()]);
                continue;
            }
            let Some(cells) = line.strip_prefix('|').and_then(|rest| rest.strip_suffix('|')) else {
                // The table after a heading is its own; others on the page are for people.
                if name.is_some() && header.is_some() {
                    (name, header) = (None, None);
                }
                continue;
            };
            let cells: Vec<&str> = cells.split('|').map(str::trim).collect();
            if cells.iter().all(|cell| cell.chars().all(|c| c == '-')) {
                continue;
            }
            match (&name, &header) {
                (None, Some(_)) => {
                    self.values.insert(code_text(cells[0]), cells[1].to_owned());
                }
                (Some(_), None) => header = Some(cells.iter().map(|cell| (*cell).to_owned()).collect()),
                (Some(name), Some(header)) => self.add_row(page, name, header, &cells),
                (None, None) => {}
            }
        }
    }

    fn add_row(&mut self, page: &str, name: &str, header: &[String], cells: &[&str]) {
        let columns: Vec<&str> = header.iter().map(String::as_str).collect();
        let (shape, row) = match columns.as_slice() {
            ["offset", "field", "type", "meaning"] => (Shape::Fixed, (cells[0], cells[1], cells[2])),
            ["field", "type", "meaning"] => (Shape::Record, ("", cells[0], cells[1])),
            ["code", "name", "meaning"] => (Shape::Code, (cells[0], cells[1], "")),
            other => panic!("{page}: the table of `{name}` has columns {other:?}"),
        };
        let new = || Table { page: page.to_owned(), shape, rows: Vec::new() };
        let table = self.tables.entry(name.to_owned()).or_insert_with(new);
        assert_eq!(table.page, page, "`{name}` is on two pages");
        table.rows.push(Row { place: row.0.to_owned(), name: code_text(row.1), kind: code_text(row.2) });
    }

    /// The stated offsets of a fixed table are the sums of the sizes before.
    pub fn check_offsets(&self, name: &str) {
        let mut at = 0;
        for row in &self.tables[name].rows {
            assert_eq!(row.place, at.to_string(), "`{name}`: offset of {}", row.name);
            at += self.fixed_size(&row.kind);
        }
    }

    fn fixed_size(&self, kind: &str) -> usize {
        if self.tables.get(kind).is_some_and(|table| table.shape == Shape::Code) {
            return 1;
        }
        if let Some(count) = counted(kind, "bytes").or_else(|| counted(kind, "zero")) {
            return count;
        }
        let stored = &self.values[kind];
        match stored.strip_suffix(" bytes").or_else(|| stored.strip_suffix(" byte")) {
            Some(count) => count.parse().unwrap(),
            None => self.fixed_size(&code_text(stored)),
        }
    }

    /// Decodes all of `bytes` as `kind`. Notes the tables it went through, and checks each record against the code.
    pub fn decode(&self, kind: &str, bytes: &[u8], seen: &mut BTreeSet<String>) -> Value {
        let mut rest = bytes;
        let value = self.read_value(kind, &mut rest, seen);
        assert!(rest.is_empty(), "`{kind}`: {} bytes are left over", rest.len());
        value
    }

    /// Decodes what stands at the start of `rest` as `kind`, and leaves what follows.
    pub fn read_value(&self, kind: &str, rest: &mut &[u8], seen: &mut BTreeSet<String>) -> Value {
        if let Some(table) = self.tables.get(kind) {
            seen.insert(kind.to_owned());
            return match table.shape {
                Shape::Code => {
                    let byte = take(rest, 1)[0].to_string();
                    let row = table.rows.iter().find(|row| row.place == byte);
                    Value::Plain(row.unwrap_or_else(|| panic!("`{kind}` has no code {byte}")).name.clone())
                }
                Shape::Record | Shape::Fixed => self.read_fields(kind, table, rest, seen),
            };
        }
        if let Some(inner) = parameter(kind, "list") {
            let count = little_endian(take(rest, 4));
            return Value::List((0..count).map(|_| self.read_value(inner, rest, seen)).collect());
        }
        if let Some(inner) = parameter(kind, "option") {
            return match take(rest, 1) {
                [0] => Value::Nothing,
                [1] => self.read_value(inner, rest, seen),
                other => panic!("`{kind}` begins with {other:?}"),
            };
        }
        Value::Plain(self.read_plain(kind, rest))
    }

    fn read_fields(&self, kind: &str, table: &Table, rest: &mut &[u8], seen: &mut BTreeSet<String>) -> Value {
        let start = *rest;
        let (mut fields, mut parts) = (Vec::new(), Vec::new());
        for row in &table.rows {
            let before = *rest;
            let value = self.read_value(&row.kind, rest, seen);
            parts.push(&before[..before.len() - rest.len()]);
            fields.push((row.name.clone(), value));
        }
        if table.shape == Shape::Record {
            let bytes = &start[..start.len() - rest.len()];
            super::registry::check_parts(kind, bytes, &parts);
        }
        Value::Fields(kind.to_owned(), fields)
    }

    fn read_plain(&self, kind: &str, rest: &mut &[u8]) -> String {
        let stored = self.values.get(kind).map(|stored| code_text(stored));
        match kind {
            "u8" | "u16" | "u32" | "u64" => little_endian(take(rest, self.fixed_size(kind))).to_string(),
            "i64" => i64::from_le_bytes(take(rest, 8).try_into().unwrap()).to_string(),
            "bool" => match take(rest, 1) {
                [0] => "no".to_owned(),
                [1] => "yes".to_owned(),
                other => panic!("a bool is {other:?}"),
            },
            "Lsn" => {
                let lsn = little_endian(take(rest, 8));
                format!("{:X}/{:X}", lsn >> 32, lsn & 0xFFFF_FFFF)
            }
            "text" => {
                let count = little_endian(take(rest, 4)) as usize;
                format!("{:?}", std::str::from_utf8(take(rest, count)).unwrap())
            }
            "blob" => {
                let count = little_endian(take(rest, 4)) as usize;
                hex(take(rest, count))
            }
            _ => {
                if let Some(count) = counted(kind, "bytes") {
                    return hex(take(rest, count));
                }
                if let Some(count) = counted(kind, "zero") {
                    assert!(take(rest, count).iter().all(|byte| *byte == 0), "reserved bytes");
                    return "zeros".to_owned();
                }
                let stored = stored.unwrap_or_else(|| panic!("`{kind}` is in no table"));
                self.read_plain(&stored, rest)
            }
        }
    }
}

impl Value {
    /// The value as indented lines.
    pub fn tell(&self, name: &str, depth: usize, to: &mut String) {
        let indent = "  ".repeat(depth);
        match self {
            Value::Plain(text) => to.push_str(&format!("{indent}{name}: {text}\n")),
            Value::Nothing => to.push_str(&format!("{indent}{name}: none\n")),
            Value::List(items) if items.is_empty() => to.push_str(&format!("{indent}{name}: empty\n")),
            Value::List(items) => {
                for (at, item) in items.iter().enumerate() {
                    item.tell(&format!("{name}[{at}]"), depth, to);
                }
            }
            Value::Fields(kind, fields) => {
                to.push_str(&format!("{indent}{name}: {kind}\n"));
                fields.iter().for_each(|(field, value)| value.tell(field, depth + 1, to));
            }
        }
    }

    /// A field of a record, as text.
    pub fn field(&self, name: &str) -> &str {
        match self {
            Value::Fields(_, fields) => match fields.iter().find(|(field, _)| field == name) {
                Some((_, Value::Plain(text))) => text,
                other => panic!("{name} is {other:?}"),
            },
            other => panic!("{name} of {other:?}"),
        }
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> &'a [u8] {
    assert!(rest.len() >= count, "{count} bytes wanted, {} left", rest.len());
    let (taken, after) = rest.split_at(count);
    *rest = after;
    taken
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn counted(kind: &str, word: &str) -> Option<usize> {
    kind.strip_prefix(word)?.parse().ok()
}

fn parameter<'a>(kind: &'a str, word: &str) -> Option<&'a str> {
    kind.strip_prefix(word)?.strip_prefix('<')?.strip_suffix('>')
}
