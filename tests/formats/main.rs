//! Holds the pages of `formats/` against the code and against the golden vectors: every table is compared with what the code
//! stores, and decoded from a vector field by field, by the table alone. `WALDEN_VECTORS=write` writes vectors that are missing.

mod deltas;
mod expected;
mod journal;
mod make;
mod packing;
mod refusals;
mod registry;
mod replaying;
mod samples;
mod tables;
mod vectors;

use registry::{CODES, RECORDS, UNBOUND};
use std::collections::BTreeSet;
use tables::{Pages, Shape};
use vectors::{Outcome, Vector};

#[test]
fn every_table_names_what_the_code_stores() {
    let pages = Pages::read();
    for (name, table) in &pages.tables {
        match table.shape {
            Shape::Record => {
                let record = RECORDS.iter().find(|record| record.name == name);
                let record =
                    record.unwrap_or_else(|| panic!("{}: `{name}` is no record of the code", table.page));
                let stated: Vec<(String, String)> =
                    table.rows.iter().map(|row| (row.name.clone(), row.kind.clone())).collect();
                let stored: Vec<(String, String)> =
                    (record.fields)().into_iter().map(|(field, kind)| (field.to_owned(), kind)).collect();
                assert_eq!(stated, stored, "{}: `{name}`", table.page);
            }
            Shape::Code => {
                let code = CODES.iter().find(|code| code.name == name);
                let code = code.unwrap_or_else(|| panic!("{}: `{name}` is no code of the code", table.page));
                let stated: Vec<(String, String)> =
                    table.rows.iter().map(|row| (row.place.clone(), row.name.clone())).collect();
                assert_eq!(stated, (code.all)(), "{}: `{name}`", table.page);
            }
            Shape::Fixed => {
                assert!(UNBOUND.contains(&name.as_str()), "{}: no test reads `{name}`", table.page);
                pages.check_offsets(name);
            }
        }
    }
}

#[test]
fn everything_the_code_stores_has_a_table() {
    let pages = Pages::read();
    let named: BTreeSet<&str> = pages.tables.keys().map(String::as_str).collect();
    let registered: BTreeSet<&str> = RECORDS
        .iter()
        .map(|r| r.name)
        .chain(CODES.iter().map(|c| c.name))
        .chain(UNBOUND.iter().copied())
        .collect();
    assert_eq!(named, registered);
    // The registry itself is held against the sources: nothing stored is forgotten in both.
    let declared = registry::declared_in_sources();
    let missing: Vec<&String> = declared.iter().filter(|name| !registered.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "declared with record! or code!, but in no table: {missing:?}");
}

#[test]
fn every_table_is_decoded_from_a_vector_field_by_field() {
    make::write_missing_if_asked();
    let pages = Pages::read();
    let mut seen = BTreeSet::new();
    for vector in vectors::all().iter().filter(|vector| vector.outcome() == Outcome::Opens) {
        let told = expected::tell(&pages, vector, &mut seen);
        let golden = vectors::read_text(&vector.file);
        assert_eq!(told, golden, "{}: what the tables make of it is not what was written", vector.file);
    }
    let tables: BTreeSet<String> = pages.tables.keys().cloned().collect();
    let unseen: Vec<&String> = tables.difference(&seen).collect();
    assert!(unseen.is_empty(), "in no vector: {unseen:?}");
}

#[test]
fn every_vector_ends_as_its_manifest_says() {
    make::write_missing_if_asked();
    let mut wrong = Vec::new();
    for vector in vectors::all() {
        let found = vectors::open(&vector);
        if let Err(why) = judge(&vector, &found) {
            wrong.push(format!("{}: {why}", vector.file));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn judge(vector: &Vector, found: &Result<(), vectors::Refusal>) -> Result<(), String> {
    match (vector.outcome(), found) {
        (Outcome::Opens, Ok(())) => Ok(()),
        (Outcome::Opens, Err(refusal)) => Err(format!("refused ({}): {}", refusal.class, refusal.message)),
        (Outcome::Refused, Ok(())) => Err(format!("opened, though {}", vector.reason)),
        (Outcome::Refused, Err(refusal)) => {
            let says = vector.says.as_deref().unwrap_or("(nothing named)");
            if Some(refusal.class.as_str()) == vector.error.as_deref() && refusal.message.contains(says) {
                return Ok(());
            }
            Err(format!(
                "refused as {}: {:?}, expected {:?}: {says:?}",
                refusal.class, refusal.message, vector.error
            ))
        }
    }
}

#[test]
fn every_file_is_listed_and_every_page_has_a_vector() {
    make::write_missing_if_asked();
    let all = vectors::all();
    let listed: BTreeSet<String> = all.iter().map(|vector| vector.file.clone()).collect();
    assert_eq!(listed.len(), all.len(), "a file is listed twice");
    assert_eq!(listed, vectors::files(), "files in formats/vectors, and those that vectors.toml lists");
    let with_vectors: BTreeSet<String> = all.iter().map(|vector| vector.page.clone()).collect();
    let without: Vec<String> = tables::page_names()
        .into_iter()
        .filter(|page| page != "README.md" && !with_vectors.contains(page))
        .collect();
    assert!(without.is_empty(), "pages without a vector: {without:?}");
    assert!(all.iter().all(|vector| !vector.reason.is_empty()), "a vector without a reason");
}
