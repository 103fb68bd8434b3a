//! Makes the golden vectors, once: `WALDEN_VECTORS=write` writes files that are missing and the manifest. What is there stays.

use super::tables::Pages;
use super::vectors::{self, KEY, PASSPHRASE, REPOSITORY};
use super::{deltas, expected, journal, refusals, samples};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::sync::Once;
use walden::base::{ChunkId, Entropy, Generation, Lsn, ObjectKey, RepositoryId, SlotName, TimelineId};
use walden::codec::keyslot::{SlotPublic, create_slot, seal_epoch};
use walden::codec::{EpochKeys, EpochObject, KeySource, ObjectWriter, SlotCost, Unlock};
use walden::format::envelope::PlainObject;
use walden::format::header::{ObjectHeader, ObjectKind};
use walden::format::marker::{REPOSITORY_VERSION, RepositoryMarker};
use walden::format::record::Record;
use walden::format::root::Root;
use zeroize::Zeroizing;

/// A vector with its bytes.
pub struct Made {
    pub file: String,
    pub form: &'static str,
    pub page: &'static str,
    pub name: String,
    pub kind: Option<ObjectKind>,
    pub meta: Option<&'static str>,
    pub frames: Vec<&'static str>,
    /// How it is refused, and a part of what is said.
    pub refused: Option<(&'static str, &'static str)>,
    pub reason: String,
    pub bytes: Vec<u8>,
}

/// Bytes that never repeat, by BLAKE3 of a seed and a count.
#[derive(Debug)]
pub struct Seeded(pub &'static str, std::sync::atomic::AtomicU64);

impl Seeded {
    pub fn new(seed: &'static str) -> Self {
        Seeded(seed, Default::default())
    }
}

impl Entropy for Seeded {
    fn fill(&self, buffer: &mut [u8]) {
        let count = self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.0.as_bytes()).update(&count.to_le_bytes()).finalize_xof().fill(buffer);
    }
}

pub fn write_missing_if_asked() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if std::env::var("WALDEN_VECTORS").as_deref() == Ok("write") {
            write_missing();
        }
    });
}

fn write_missing() {
    // Keys first: everything else is sealed with them.
    let mut all = keys();
    write_files(&all);
    all.extend(objects());
    all.extend(refusals::all());
    all.extend(journal::all());
    all.extend(deltas::all());
    write_files(&all);
    fs::write(vectors::dir().join("vectors.toml"), manifest(&all)).unwrap();
    for vector in vectors::all().iter().filter(|vector| vector.outcome() == vectors::Outcome::Opens) {
        let path = vectors::dir().join(vectors::text_of(&vector.file));
        if !path.exists() {
            fs::write(path, expected::tell(&Pages::read(), vector, &mut BTreeSet::new())).unwrap();
        }
    }
}

fn write_files(all: &[Made]) {
    for made in all {
        let path = vectors::dir().join(&made.file);
        if !path.exists() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, &made.bytes).unwrap();
        }
    }
}

fn manifest(all: &[Made]) -> String {
    let mut text = "# Every golden vector: what it is, where it would lie, what must happen when it is opened, and why.\n\
                    # Written by `WALDEN_VECTORS=write cargo test --test formats`; explained in formats/README.md.\n"
        .to_owned();
    for made in all {
        let quoted = |text: &str| format!("{text:?}");
        let mut line = |key: &str, value: String| writeln!(text, "{key} = {value}").unwrap();
        line("\n[[vector]]\nfile", quoted(&made.file));
        line("form", quoted(made.form));
        line("page", quoted(made.page));
        line("name", quoted(&made.name));
        if let Some(kind) = made.kind {
            line("kind", format!("\"{kind:?}\""));
        }
        if let Some(meta) = made.meta {
            line("meta", quoted(meta));
        }
        if !made.frames.is_empty() {
            line("frames", format!("{:?}", made.frames));
        }
        line("expect", quoted(if made.refused.is_some() { "refused" } else { "opens" }));
        if let Some((error, says)) = made.refused {
            line("error", quoted(error));
            line("says", quoted(says));
        }
        line("reason", quoted(&made.reason));
    }
    text
}

/// The slots of the vectors and the epochs sealed to them.
pub struct Keys {
    pub first: EpochKeys,
    pub second: EpochKeys,
    pub main: (Vec<u8>, SlotPublic),
    pub spare: (Vec<u8>, SlotPublic),
}

pub fn slot_name(name: &str) -> SlotName {
    name.parse().unwrap()
}

pub fn make_keys() -> Keys {
    let entropy = Seeded::new("keys");
    let first = EpochKeys::first(&entropy);
    let second = first.next(&entropy).unwrap();
    let slot = |name: &str, unlock: Unlock| {
        create_slot(&unlock, REPOSITORY, &slot_name(name), &first, SlotCost::DEFAULT, &entropy).unwrap()
    };
    let main = slot("main", Unlock::Passphrase(Zeroizing::new(PASSPHRASE.to_owned())));
    let spare = slot("spare", Unlock::Key(Zeroizing::new(KEY)));
    Keys { first, second, main, spare }
}

fn plain(
    file: &str,
    form: &'static str,
    page: &'static str,
    name: &str,
    bytes: Vec<u8>,
    reason: &str,
) -> Made {
    Made {
        file: file.to_owned(),
        form,
        page,
        name: name.to_owned(),
        kind: None,
        meta: None,
        frames: Vec::new(),
        refused: None,
        reason: reason.to_owned(),
        bytes,
    }
}

fn keys() -> Vec<Made> {
    let keys = make_keys();
    let marker = RepositoryMarker { version: REPOSITORY_VERSION, id: REPOSITORY };
    let mut made = vec![
        plain("marker.bin", "marker", "layout.md", "walden", marker.to_object(), "a marker of version 1"),
        plain(
            "keys/main.bin",
            "slot",
            "keys.md",
            "keys/main",
            keys.main.0.clone(),
            "a slot opened by a passphrase",
        ),
        plain(
            "keys/spare.bin",
            "slot",
            "keys.md",
            "keys/spare",
            keys.spare.0.clone(),
            "a slot opened by a key",
        ),
    ];
    let entropy = Seeded::new("epochs");
    for epoch in [&keys.first, &keys.second] {
        let (file, name) =
            (format!("keys/epoch-{}-main.bin", epoch.epoch), format!("keys/epochs/{}/main", epoch.epoch));
        let bytes = seal_epoch(&keys.main.1, epoch, &entropy);
        let reason = match epoch.epoch {
            1 => "the first epoch",
            _ => "the second epoch",
        };
        made.push(plain(&file, "epoch", "keys.md", &name, bytes, reason));
    }
    let slots = [keys.main.1.clone(), keys.spare.1.clone()];
    let link = keys.first.link_to(&keys.second, REPOSITORY);
    let bytes = link.to_object();
    let reason = "the link of the second epoch, signed by the holder of the first";
    made.push(plain("keys/link-2.bin", "link", "keys.md", "keys/epochs/2/_link", bytes, reason));
    let second = EpochObject::create(REPOSITORY, &keys.second, Some(&link), &slots, &entropy).to_object();
    let reason = "the second epoch as it was made, for both slots at once";
    made.push(plain("keys/epoch-2.bin", "made-epoch", "keys.md", "keys/epochs/2/_epoch", second, reason));
    made
}

/// What an object is made of.
pub struct Draft {
    pub file: &'static str,
    pub page: &'static str,
    pub name: String,
    pub kind: ObjectKind,
    pub owner: [u8; 16],
    pub number: u64,
    pub writer_epoch: u64,
    pub key_epoch: u32,
    pub meta: Option<(&'static str, Vec<u8>)>,
    pub frames: Vec<(&'static str, Vec<u8>, u64)>,
}

impl Draft {
    pub fn header(&self) -> ObjectHeader {
        let mut salt = [0; 32];
        Seeded::new(self.file).fill(&mut salt);
        ObjectHeader {
            kind: self.kind,
            required: 0,
            repository: REPOSITORY,
            owner: self.owner,
            number: self.number,
            writer_epoch: self.writer_epoch,
            key_epoch: self.key_epoch,
            place: ObjectHeader::place_of(&ObjectKey::new(self.name.as_str()).unwrap()),
            salt,
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let keyring = vectors::keyring();
        let mut writer = ObjectWriter::create(keyring.epoch_secret(self.key_epoch).unwrap(), &self.header());
        for (_, chunk, position) in &self.frames {
            writer.add(chunk, chunk_id(chunk), *position);
        }
        let meta = self.meta.as_ref().map_or(Vec::new(), |(_, meta)| meta.clone());
        writer.finish(meta).bytes.to_vec()
    }

    pub fn made(&self, reason: &str) -> Made {
        Made {
            file: format!("objects/{}.bin", self.file),
            form: "object",
            page: self.page,
            name: self.name.clone(),
            kind: Some(self.kind),
            meta: self.meta.as_ref().map(|(meta, _)| *meta),
            frames: self.frames.iter().map(|(kind, _, _)| *kind).collect(),
            refused: None,
            reason: reason.to_owned(),
            bytes: self.bytes(),
        }
    }
}

pub fn chunk_id(chunk: &[u8]) -> ChunkId {
    vectors::keyring().chunk_id_key().chunk_id(chunk)
}

fn numbered(
    file: &'static str,
    kind: ObjectKind,
    name: &str,
    number: u64,
    meta: (&'static str, Vec<u8>),
) -> Draft {
    Draft {
        file,
        page: "root.md",
        name: format!("clusters/shop/{name}"),
        kind,
        owner: [0; 16],
        number,
        writer_epoch: 0,
        key_epoch: if kind.is_lasting() { 0 } else { 2 },
        meta: Some(meta),
        frames: Vec::new(),
    }
}

pub fn root() -> Draft {
    let meta = ("Root", samples::root().encode());
    let draft = numbered("root", ObjectKind::Root, "roots/00000000000000000007", 7, meta);
    Draft { writer_epoch: 5, ..draft }
}

/// The root of a copy of a cluster that was upgraded twice, whose index was made anew.
fn root_of_copy() -> Root {
    let mut root = Root { generation: Generation(3), ..samples::root() };
    root.set_rebuilt_at(6);
    root.set_copied_from(RepositoryId([0x41; 16]), &"till".parse().unwrap());
    root.set_ended(Generation(1), TimelineId(3));
    root.set_ended(Generation(2), TimelineId(2));
    root
}

/// WAL-like bytes: some repeat, some do not.
fn wal_bytes(len: usize) -> Vec<u8> {
    let mut noise = vec![0; len / 4];
    Seeded::new("wal").fill(&mut noise);
    (0..len).map(|at| if at % 64 < 16 { noise[at / 4 % noise.len()] } else { (at / 64) as u8 }).collect()
}

/// Two frames of WAL: one that compresses, and one that does not.
pub fn flush() -> Draft {
    let mut noise = vec![0; 7232];
    Seeded::new("noise").fill(&mut noise);
    let start = samples::flush_first().start;
    let frame = |bytes: Vec<u8>, at: Lsn| ("raw", bytes, at.get());
    Draft {
        file: "flush",
        page: "wal.md",
        name: format!("clusters/shop/wal/{}/00000000000000000000", samples::stream(0x53)),
        kind: ObjectKind::Flush,
        owner: [0x53; 16],
        number: 0,
        writer_epoch: 5,
        key_epoch: 1,
        meta: Some(("WalMeta", samples::flush_first().encode())),
        frames: vec![frame(wal_bytes(32_768), start), frame(noise, start.saturating_add(32_768))],
    }
}

pub fn pages_segment() -> Draft {
    let (small, map) = (b"15\n".to_vec(), samples::block_map().encode());
    let page = samples::manifest_page(chunk_id(&small), chunk_id(&map)).encode();
    Draft {
        file: "pages",
        page: "manifest.md",
        name: format!("clusters/shop/segments/{}", samples::object(0x82)),
        kind: ObjectKind::PagesSegment,
        owner: [0x82; 16],
        number: 0,
        writer_epoch: 0,
        key_epoch: 2,
        meta: None,
        frames: vec![("raw", small, 0), ("BlockMap", map, 0), ("ManifestPage", page, 0)],
    }
}

fn objects() -> Vec<Made> {
    let stream = |file, number: u64, kind, epoch, meta: (&'static str, Vec<u8>), stream: u8| Draft {
        file,
        name: format!("clusters/shop/wal/{}/{number:020}", samples::stream(stream)),
        kind,
        owner: [stream; 16],
        number,
        writer_epoch: epoch,
        key_epoch: if kind.is_lasting() { 0 } else { 1 },
        meta: Some(meta),
        frames: Vec::new(),
        ..flush()
    };
    let id_of = |file, folder: &str, kind, id: u8, number, meta: (&'static str, Vec<u8>), frames| Draft {
        file,
        name: format!("clusters/shop/{folder}/{}", samples::object(id)),
        kind,
        owner: [id; 16],
        number,
        writer_epoch: 0,
        meta: Some(meta),
        frames,
        ..root()
    };
    let page_chunk = pages_segment().frames[2].1.clone();
    let manifest_frame = samples::manifest_pages(chunk_id(&page_chunk)).encode();
    let manifest_meta = ("ManifestMeta", samples::manifest_meta().encode());
    let index_meta = ("IndexMeta", samples::index_meta().encode());
    let index_frame = vec![("IndexPage", samples::index_page().encode(), 0)];
    let generation = ("GenerationRecord", samples::generation().encode());
    let pending = ("Pending", samples::pending().encode());
    vec![
        root().made(
            "a root with streams open and closed, retired objects, pending work, and an extension to skip",
        ),
        numbered(
            "floor",
            ObjectKind::Floor,
            "floors/00000000000000000003",
            3,
            ("Floor", samples::floor().encode()),
        )
        .made("a floor"),
        numbered("generation", ObjectKind::Generation, "generations/000002", 2, generation)
            .made("a generation"),
        id_of("pending", "pending", ObjectKind::Pending, 0x61, 0, pending, Vec::new()).made("pending work"),
        Draft {
            page: "verification.md",
            ..numbered(
                "verification",
                ObjectKind::Verification,
                "verifications/00000000000000000004",
                4,
                ("Verification", samples::verification().encode()),
            )
        }
        .made("a verification by samples: a backup that is verified, one that is damaged"),
        flush().made("number 0 of a stream that took over: a zstd frame, a raw frame, events of every kind"),
        stream("heartbeat", 1, ObjectKind::Flush, 5, ("WalMeta", samples::heartbeat().encode()), 0x53)
            .made("a heartbeat: no WAL, no frames"),
        stream("fence", 19, ObjectKind::Fence, 5, ("FenceMeta", samples::fence().encode()), 0x51)
            .made("a fence"),
        Draft {
            file: "wal-segment",
            name: format!("clusters/shop/segments/{}", samples::object(0x81)),
            kind: ObjectKind::WalSegment,
            owner: [0x81; 16],
            writer_epoch: 0,
            key_epoch: 2,
            meta: Some(("WalMeta", samples::segment().encode())),
            ..flush()
        }
        .made("compacted WAL: no link, no predecessor"),
        pages_segment().made("chunks: a small file, a block map, a page of a manifest"),
        Draft {
            page: "index.md",
            ..id_of("index", "index", ObjectKind::Index, 0x62, 7, index_meta, index_frame)
        }
        .made("an index object over an older one, with an entry of every kind"),
        Draft {
            file: "manifest",
            page: "manifest.md",
            name: format!("clusters/shop/backups/{}", samples::backup_id()),
            kind: ObjectKind::Manifest,
            owner: [0; 16],
            number: 0,
            writer_epoch: 0,
            meta: Some(manifest_meta),
            frames: vec![("ManifestPages", manifest_frame, 0)],
            ..root()
        }
        .made("a backup's manifest, of one page"),
        Draft { file: "root-of-copy", meta: Some(("Root", root_of_copy().encode())), ..root() }
            .made("a root of a copy, with every extension of its own"),
        Draft { page: "records.md", file: "root-extension", ..root() }
            .made("an unknown extension is skipped, and kept by whoever rewrites the record"),
        Draft {
            page: "object.md",
            file: "empty",
            kind: ObjectKind::PagesSegment,
            meta: None,
            frames: Vec::new(),
            ..pages_segment()
        }
        .made("an object of nothing but its directory"),
    ]
}
