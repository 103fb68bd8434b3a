//! The golden vectors: their manifest, and opening them with the code.

use super::{registry, tables};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use walden::base::{ObjectKey, RepositoryId, SlotName};
use walden::codec::keyslot::{KeySlotError, SlotPrivate, Unlock, open_epoch, open_slot};
use walden::codec::link::decode_link;
use walden::codec::object::{Expect, OpenObject};
use walden::codec::{EpochObject, Keyring, OpenError};
use walden::format::envelope::PlainObject;
use walden::format::header::ObjectKind;
use walden::format::marker::RepositoryMarker;
use zeroize::Zeroizing;

pub const REPOSITORY: RepositoryId = RepositoryId([0xa7; 16]);
pub const PASSPHRASE: &str = "correct horse battery staple";
pub const KEY: [u8; 32] = [0x4b; 32];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Opens,
    Refused,
}

/// One entry of vectors.toml.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vector {
    /// Relative to formats/vectors.
    pub file: String,
    /// `object`, `marker`, `slot`, `epoch`, `link`, `made-epoch`, `journal` or `delta`.
    pub form: String,
    /// The page it belongs to.
    pub page: String,
    /// The name under which it is read.
    pub name: String,
    /// Objects: the kind that is expected.
    pub kind: Option<String>,
    /// Objects: the record in the directory's meta.
    pub meta: Option<String>,
    /// Objects: the record in each frame; `raw` where there is none.
    #[serde(default)]
    pub frames: Vec<String>,
    expect: String,
    /// Refused: how.
    pub error: Option<String>,
    /// Refused: a part of what is said.
    pub says: Option<String>,
    /// Why.
    pub reason: String,
}

impl Vector {
    pub fn outcome(&self) -> Outcome {
        match self.expect.as_str() {
            "opens" => Outcome::Opens,
            "refused" => Outcome::Refused,
            other => panic!("{}: expect = {other:?}", self.file),
        }
    }
}

/// How the code refused a vector.
#[derive(Debug)]
pub struct Refusal {
    pub class: String,
    pub message: String,
}

pub fn dir() -> PathBuf {
    tables::formats_dir().join("vectors")
}

pub fn all() -> Vec<Vector> {
    #[derive(Deserialize)]
    struct Manifest {
        vector: Vec<Vector>,
    }
    let text = fs::read_to_string(dir().join("vectors.toml")).unwrap();
    toml::from_str::<Manifest>(&text).unwrap().vector
}

pub fn read(file: &str) -> Vec<u8> {
    fs::read(dir().join(file)).unwrap()
}

/// What the tables make of a vector: the file beside it.
pub fn read_text(file: &str) -> String {
    fs::read_to_string(dir().join(text_of(file))).unwrap()
}

pub fn text_of(file: &str) -> String {
    file.replace(".bin", ".txt")
}

/// Every vector file there is, relative to formats/vectors.
pub fn files() -> BTreeSet<String> {
    fn walk(dir: &Path, base: &Path, to: &mut BTreeSet<String>) {
        for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                walk(&path, base, to);
            } else if path.extension().is_some_and(|extension| extension == "bin") {
                to.insert(path.strip_prefix(base).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    let mut files = BTreeSet::new();
    walk(&dir(), &dir(), &mut files);
    files
}

pub fn unlock(slot: &SlotName) -> Unlock {
    match slot.as_str() {
        "spare" => Unlock::Key(Zeroizing::new(KEY)),
        _ => Unlock::Passphrase(Zeroizing::new(PASSPHRASE.to_owned())),
    }
}

pub fn main_slot() -> &'static SlotPrivate {
    static SLOT: OnceLock<SlotPrivate> = OnceLock::new();
    SLOT.get_or_init(|| {
        let name = "main".parse().unwrap();
        open_slot(&read("keys/main.bin"), REPOSITORY, &name, &unlock(&name)).unwrap()
    })
}

pub fn keyring() -> &'static Keyring {
    static KEYRING: OnceLock<Keyring> = OnceLock::new();
    KEYRING.get_or_init(|| {
        let epoch = |n: u32| open_epoch(main_slot(), n, &read(&format!("keys/epoch-{n}-main.bin"))).unwrap();
        let mut keyring = Keyring::new(REPOSITORY, epoch(1));
        keyring.chain_mut().extend(&decode_link(&read("keys/link-2.bin"), REPOSITORY, 2).unwrap()).unwrap();
        keyring.insert(epoch(2)).unwrap();
        keyring
    })
}

/// Opens a vector and everything in it.
pub fn open(vector: &Vector) -> Result<(), Refusal> {
    let bytes = read(&vector.file);
    let format = |error: &dyn ToString| Refusal { class: "format".into(), message: error.to_string() };
    match vector.form.as_str() {
        "object" => open_object(vector, bytes),
        "marker" => RepositoryMarker::from_object(&bytes).map(|_| ()).map_err(|error| format(&error)),
        "slot" => {
            let name = last_part(&vector.name).parse().unwrap();
            open_slot(&bytes, REPOSITORY, &name, &unlock(&name)).map(|_| ()).map_err(refused_slot)
        }
        "epoch" => {
            let epoch: u32 = vector.name.split('/').nth(2).unwrap().parse().unwrap();
            let keys = open_epoch(main_slot(), epoch, &bytes).map_err(refused_slot)?;
            Keyring::clone(keyring()).insert(keys).map_err(refused_slot)
        }
        "link" => {
            let epoch: u32 = vector.name.split('/').nth(2).unwrap().parse().unwrap();
            let link = decode_link(&bytes, REPOSITORY, epoch).map_err(refused_slot)?;
            main_slot().chain().extend(&link).map_err(refused_slot)
        }
        "made-epoch" => {
            let epoch: u32 = vector.name.split('/').nth(2).unwrap().parse().unwrap();
            let made = EpochObject::decode(&bytes, REPOSITORY, epoch).map_err(refused_slot)?;
            let sealed = made.sealed_to(main_slot().public()).expect("it was made for slot main");
            let keys = open_epoch(main_slot(), epoch, sealed).map_err(refused_slot)?;
            let mut chain = main_slot().chain();
            if let Some(link) = made.link() {
                chain.extend(&link).map_err(refused_slot)?;
            }
            Keyring::proved(chain, keys).map(drop).map_err(refused_slot)
        }
        "journal" => super::journal::open(vector, &bytes),
        "delta" => super::deltas::open(&bytes),
        "deltas" => super::deltas::open_all(&bytes),
        other => panic!("{}: form = {other:?}", vector.file),
    }
}

fn open_object(vector: &Vector, bytes: Vec<u8>) -> Result<(), Refusal> {
    let key = ObjectKey::new(vector.name.as_str()).unwrap();
    let kind = ObjectKind::ALL.iter().find(|kind| Some(format!("{kind:?}")) == vector.kind).copied();
    assert!(kind.is_some(), "{}: kind = {:?}", vector.file, vector.kind);
    let expect = Expect { repository: Some(REPOSITORY), key: Some(&key), kind };
    let object = OpenObject::open(bytes.into(), keyring(), &expect).map_err(refused_object)?;
    let record = |kind: &str, bytes: &[u8]| match kind {
        "raw" => Ok(()),
        kind => registry::decode(kind, bytes).map_err(|message| Refusal { class: "format".into(), message }),
    };
    match &vector.meta {
        Some(meta) => record(meta, &object.directory().meta.0)?,
        None => assert!(object.directory().meta.0.is_empty(), "{}: meta is not named", vector.file),
    }
    for number in 0..object.directory().frames.len() {
        let chunk = object.chunk(number, keyring()).map_err(refused_object)?;
        record(&vector.frames[number], &chunk)?;
    }
    Ok(())
}

pub(super) fn refused_object(error: OpenError) -> Refusal {
    let class = match &error {
        OpenError::Format(_) => "format",
        OpenError::Newer(_) => "newer",
        OpenError::Misplaced { .. } => "misplaced",
        OpenError::NoKey { .. } => "no-key",
        OpenError::WrongKey { .. } => "wrong-key",
        OpenError::Broken { .. } => "broken",
        OpenError::Content { .. } => "content",
    };
    Refusal { class: class.into(), message: error.to_string() }
}

fn refused_slot(error: KeySlotError) -> Refusal {
    let class = match &error {
        KeySlotError::Damaged(_) => "format",
        KeySlotError::WrongSecret { .. } => "wrong-secret",
        KeySlotError::WrongKind { .. } => "wrong-kind",
        KeySlotError::Misplaced { .. } => "misplaced",
        KeySlotError::Forged { .. } => "forged",
        KeySlotError::Unlinked { .. } => "unlinked",
        KeySlotError::EmptyPassphrase { .. } | KeySlotError::NoMemory { .. } => "other",
    };
    Refusal { class: class.into(), message: error.to_string() }
}

pub fn last_part(name: &str) -> &str {
    name.rsplit('/').next().unwrap()
}
