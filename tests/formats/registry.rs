//! Every record and code of the code, by name.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use walden::format::record::{Extension, Field, Record};
use walden::format::{
    delta, directory, frame, header, index, journal, keyslot, manifest, marker, root, verification, wal,
};

type Parts = Result<Vec<Vec<u8>>, String>;

pub struct RecordType {
    pub name: &'static str,
    pub fields: fn() -> Vec<(&'static str, String)>,
    parts: fn(&[u8]) -> Parts,
}

pub struct CodeType {
    pub name: &'static str,
    pub all: fn() -> Vec<(String, String)>,
}

macro_rules! records {
    ($($type:ty,)*) => {
        &[$(RecordType {
            name: <$type as Field>::TYPE,
            fields: <$type as Record>::fields,
            parts: |bytes| <$type as Record>::decode(bytes).map(|r| r.parts()).map_err(|e| e.to_string()),
        },)*]
    };
}

macro_rules! codes {
    ($($type:ty,)*) => {
        &[$(CodeType {
            name: <$type as Field>::TYPE,
            all: || <$type>::ALL.iter().map(|code| ((*code as u8).to_string(), format!("{code:?}"))).collect(),
        },)*]
    };
}

pub const RECORDS: &[RecordType] = records![
    Extension,
    delta::DeltaHead,
    delta::SectionEntry,
    delta::DeltaTables,
    delta::PageHeaderEntry,
    delta::RecordKind,
    delta::KindBlock,
    directory::Directory,
    directory::FrameEntry,
    index::IndexMeta,
    index::IndexLevel,
    index::IndexPage,
    index::WalEntry,
    index::PagesEntry,
    index::BackupEntry,
    index::GapEntry,
    index::HistoryEntry,
    index::PinEntry,
    index::ExpiredEntry,
    index::RemovedEntry,
    journal::JournalHead,
    journal::JournalBegin,
    journal::JournalPrevious,
    keyslot::KeySlot,
    keyslot::Epoch,
    keyslot::EpochSlot,
    keyslot::EpochLink,
    manifest::ManifestMeta,
    manifest::Tablespace,
    manifest::Setting,
    manifest::ConfigFile,
    manifest::DamagedBlock,
    manifest::ManifestPages,
    manifest::PageRef,
    manifest::ManifestPage,
    manifest::FileEntry,
    manifest::ContentRun,
    manifest::BlockMap,
    marker::RepositoryMarker,
    root::Root,
    root::StreamEntry,
    root::RetiredFlush,
    root::PendingEntry,
    root::Pending,
    root::Floor,
    root::GenerationRecord,
    verification::Verification,
    verification::BackupVerification,
    verification::DamageEntry,
    verification::VerifiedArc,
    wal::WalMeta,
    wal::WalDeltas,
    wal::DeltaEpoch,
    wal::DeltaStats,
    wal::Predecessor,
    wal::FenceMeta,
    wal::WalSummary,
    wal::Event,
    wal::RelationRef,
];

pub const CODES: &[CodeType] = codes![
    header::ObjectKind,
    delta::SectionCodec,
    delta::SectionKind,
    delta::MainForm,
    delta::ImageSource,
    delta::ColumnForm,
    frame::FrameKind,
    frame::Codec,
    index::BackupState,
    index::RemovedKind,
    journal::JournalFrameKind,
    keyslot::SlotKind,
    manifest::FileKind,
    manifest::RunKind,
    root::PendingKind,
    verification::VerifyDepth,
    verification::VerifyScope,
    verification::VerifyOutcome,
    wal::EventKind,
];

/// Fixed layouts, which the code writes by hand.
pub const UNBOUND: &[&str] = &["ObjectHeader", "FrameHead", "Trailer"];

/// The code decodes `bytes` as record `name`, and finds the same fields at the same places.
pub fn check_parts(name: &str, bytes: &[u8], parts: &[&[u8]]) {
    let record = RECORDS.iter().find(|record| record.name == name).unwrap();
    match (record.parts)(bytes) {
        Ok(found) => assert_eq!(found, parts, "`{name}`"),
        Err(error) => panic!("`{name}`: the table decodes what the code refuses: {error}"),
    }
}

/// Decodes `bytes` as record `name`, as the code does.
pub fn decode(name: &str, bytes: &[u8]) -> Result<(), String> {
    let record = RECORDS.iter().find(|record| record.name == name).unwrap();
    (record.parts)(bytes).map(|_| ())
}

/// Names declared with `record!` and `code!` anywhere in the sources.
pub fn declared_in_sources() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut dirs = vec![PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                dirs.push(entry);
            } else if entry.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(entry).unwrap();
                for block in ["\nrecord! {", "\ncode! {"].iter().flat_map(|open| text.split(open).skip(1)) {
                    let declaration = block.split("\n}").next().unwrap();
                    let word = declaration
                        .lines()
                        .filter_map(|line| line.trim().strip_prefix("pub "))
                        .find_map(|line| line.strip_prefix("struct ").or_else(|| line.strip_prefix("enum ")));
                    names.extend(word.map(|word| word.split([' ', '{']).next().unwrap().to_owned()));
                }
            }
        }
    }
    assert!(names.len() > 40, "the sources declare {names:?}");
    names
}
