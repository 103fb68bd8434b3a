//! The vectors of journal.md: a whole file, told by the tables, and files to refuse.

use super::expected::{derive, open as unseal};
use super::make::{Made, Seeded};
use super::tables::{Pages, hex};
use super::vectors::{self, REPOSITORY, Refusal, Vector};
use std::collections::BTreeSet;
use walden::base::clock::random_bytes;
use walden::base::{ClusterName, Generation, Lsn, ObjectKey, TimelineId, Timestamp};
use walden::codec::KeySource;
use walden::codec::journal::{JournalBuffer, JournalOpener, JournalSealer};
use walden::codec::object::Expect;
use walden::format::header::{ObjectHeader, ObjectKind};
use walden::format::journal::{
    JOURNAL_BEGIN_BYTES, JournalBegin, JournalFrame, JournalFrameKind, JournalHead, JournalPrevious,
    journal_place,
};

const NUMBER: u64 = 3;

fn cluster() -> ClusterName {
    "shop".parse().unwrap()
}

fn head(kind: JournalFrameKind, timeline: u32, start: u64, synced_len: u64) -> JournalHead {
    let server_time = match kind {
        JournalFrameKind::Wal => Timestamp::from_unix_micros(1_795_377_301_123_456),
        _ => Timestamp::from_micros(0),
    };
    JournalHead { kind, timeline: TimelineId(timeline), start: Lsn::new(start), server_time, synced_len }
}

/// A file of four frames, and where each begins.
fn file() -> Vec<Vec<u8>> {
    let header = ObjectHeader {
        kind: ObjectKind::Journal,
        required: 0,
        repository: REPOSITORY,
        owner: super::samples::stream(0x53).0,
        number: NUMBER,
        writer_epoch: 5,
        key_epoch: 0,
        place: ObjectHeader::place_of(&journal_place(&cluster(), NUMBER)),
        salt: random_bytes(&Seeded::new("journal")),
    };
    let secret = vectors::keyring().epoch_secret(0).unwrap();
    let begin = head(JournalFrameKind::Begin, 1, 0x16B_3748, 0);
    let begun_with =
        JournalBegin { generation: Generation(1), previous: JournalPrevious { number: 2, len: 4096 } };
    let (mut sealer, first) = JournalSealer::create(secret, &header, &begin, &begun_with);
    let mut parts = vec![first.to_vec()];
    let bodies: [(JournalFrameKind, u32, u64, &[u8]); 3] = [
        (JournalFrameKind::Wal, 1, 0x16B_3748, b"WAL of timeline 1"),
        (JournalFrameKind::Wal, 2, 0x16B_3000, b"WAL of timeline 2, from the fork on"),
        (JournalFrameKind::Mark, 2, 0x16B_3023, b""),
    ];
    for (kind, timeline, start, body) in bodies {
        let mut buffer = JournalBuffer::new(body.len());
        buffer.push(body);
        let synced_len = sealer.file_len();
        parts.push(sealer.seal(&head(kind, timeline, start, synced_len), buffer).to_vec());
    }
    parts
}

fn made(file: &str, bytes: Vec<u8>, refused: Option<(&'static str, &'static str)>, reason: &str) -> Made {
    Made {
        file: file.to_owned(),
        form: "journal",
        page: "journal.md",
        name: journal_place(&cluster(), NUMBER).to_string(),
        kind: Some(ObjectKind::Journal),
        meta: None,
        frames: Vec::new(),
        refused,
        reason: reason.to_owned(),
        bytes,
    }
}

pub fn all() -> Vec<Made> {
    let parts = file();
    let good = parts.concat();
    let refused = |name: &str, bytes, error, says, reason| {
        made(&format!("refused/journal-{name}.bin"), bytes, Some((error, says)), reason)
    };
    let [begin, first, second, mark] = &parts[..] else { panic!("a file of four frames") };
    let swapped = [&begin[..], second, first, mark].concat();
    let mut flipped = good.clone();
    flipped[JOURNAL_BEGIN_BYTES + 16 + 3] ^= 1;
    let elsewhere = Made {
        name: journal_place(&cluster(), NUMBER + 1).to_string(),
        ..refused("place", good.clone(), "misplaced", "its place", "the file lies under the next number")
    };
    vec![
        made("journal/left.bin", good.clone(), None, "a file left in order, with WAL of two timelines"),
        elsewhere,
        refused("bit", flipped, "format", "crc", "a bit of the first frame of WAL is flipped"),
        refused("reordered", swapped, "broken", "frame 1", "two frames are exchanged"),
        refused("begin", good[..JOURNAL_BEGIN_BYTES - 1].to_vec(), "format", "frame", "cut inside frame 0"),
    ]
}

/// Opens every frame with the code.
pub fn open(vector: &Vector, bytes: &[u8]) -> Result<(), Refusal> {
    let key = ObjectKey::new(vector.name.as_str()).unwrap();
    let expect = Expect { repository: Some(REPOSITORY), key: Some(&key), kind: Some(ObjectKind::Journal) };
    let opener = JournalOpener::open(bytes, vectors::keyring(), &expect).map_err(vectors::refused_object)?;
    for frame in walk(bytes).skip(1) {
        let (number, at) = frame.map_err(|message| Refusal { class: "format".into(), message })?;
        let plain = opener.frame(number, &bytes[at..]).map_err(vectors::refused_object)?;
        let refused = |error: walden::format::FormatError| Refusal {
            class: "format".into(),
            message: error.to_string(),
        };
        JournalFrame::decode(&plain).map_err(refused)?;
    }
    Ok(())
}

/// Numbers and offsets of the frames; their checksums are right.
fn walk(bytes: &[u8]) -> impl Iterator<Item = Result<(u64, usize), String>> {
    let (mut at, mut number) = (160, 0);
    std::iter::from_fn(move || {
        if at >= bytes.len() {
            return None;
        }
        let found = walden::format::frame::split_frame(&bytes[at..]);
        let here = (number, at);
        match found {
            Ok((head, _)) => {
                at += head.stored_len() as usize;
                number += 1;
                Some(Ok(here))
            }
            Err(error) => {
                at = usize::MAX;
                Some(Err(error.to_string()))
            }
        }
    })
}

/// The file as text, by the tables and the formulas of object.md alone.
pub fn tell(pages: &Pages, vector: &Vector, bytes: &[u8], seen: &mut BTreeSet<String>, told: &mut String) {
    let header_bytes = &bytes[..160];
    let header = pages.decode("ObjectHeader", header_bytes, seen);
    header.tell("header", 0, told);
    assert_eq!(header.field("place"), hex(&blake3::hash(vector.name.as_bytes()).as_bytes()[..16]));
    assert_eq!(header.field("kind"), "Journal");
    let epoch: u32 = header.field("key_epoch").parse().unwrap();
    assert_eq!(epoch, 0);
    let key = derive("walden v1 object key", &[&super::expected::lasting_secret(), &bytes[..120]]);
    let mut at = 160;
    for number in 0u64.. {
        if at == bytes.len() {
            break;
        }
        let head_bytes = &bytes[at..at + 16];
        let head = pages.decode("FrameHead", head_bytes, seen);
        let sealed_len: usize = head.field("sealed_len").parse().unwrap();
        let sealed = &bytes[at + 16..at + 16 + sealed_len];
        assert_eq!(head.field("crc"), crc32fast::hash(&[&head_bytes[..12], sealed].concat()).to_string());
        assert_eq!((head.field("kind"), head.field("codec")), ("Data", "Raw"));
        let mut nonce = [0; 24];
        nonce[..8].copy_from_slice(&number.to_le_bytes());
        let associated = [header_bytes, &number.to_le_bytes(), &head_bytes[..12]].concat();
        let plain = unseal(&key, nonce, &associated, sealed);
        head.tell(&format!("frame {number} at {at}"), 0, told);
        let (journal_head, body) = plain.split_at(29);
        let journal_head = pages.decode("JournalHead", journal_head, seen);
        journal_head.tell("head", 1, told);
        let synced_len: usize = journal_head.field("synced_len").parse().unwrap();
        assert!(synced_len <= at);
        match journal_head.field("kind") {
            "Begin" => pages.decode("JournalBegin", body, seen).tell("body", 1, told),
            _ => told.push_str(&format!("  body: {:?}\n", String::from_utf8_lossy(body))),
        }
        at += 16 + sealed_len;
        assert!(number > 0 || at == 241);
    }
}
