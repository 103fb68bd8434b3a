//! One function for each parser of foreign bytes, for `fuzz/` and for `tests/corpus.rs`, which replays the corpora. Each takes any
//! bytes and panics when a promise is broken: what decodes encodes to the same bytes, how input is cut changes nothing, work ends.
//! Not a room of the house, and no part of the API.

mod delta;

use crate::backup::tar::{TarEvent, TarReader};
use crate::base::{
    ClusterName, Lsn, ObjectId, ObjectKey, RepositoryId, SegmentSize, SystemId, TimelineId, Timestamp,
    WalFileName,
};
use crate::codec::journal::JournalOpener;
use crate::codec::keyring::{EpochKeys, Keyring};
use crate::codec::keyslot::{self, SlotCost, Unlock};
use crate::codec::object::{Expect, ObjectWriter, OpenObject, check_without_key, decompress, walk_frames};
use crate::codec::{EpochSecret, KeySource};
use crate::format::directory::Directory;
use crate::format::envelope::PlainObject;
use crate::format::frame::{Codec, Trailer};
use crate::format::header::{ObjectHeader, ObjectKind};
use crate::format::index::{IndexMeta, IndexPage};
use crate::format::journal::{JournalBegin, JournalFrame, JournalHead};
use crate::format::keyslot::{Epoch, EpochLink, EpochSlot, KeySlot};
use crate::format::manifest::{BlockMap, ManifestMeta, ManifestPage, ManifestPages};
use crate::format::marker::RepositoryMarker;
use crate::format::record::Record;
use crate::format::root::{Floor, GenerationRecord, Pending, Root};
use crate::format::verification::Verification;
use crate::format::wal::{FenceMeta, WalMeta, WalSummary};
use crate::net::options::{FoundFile, Secret, Surroundings};
use crate::net::{ConnectOptions, contains_password};
use crate::operate::config;
use crate::wal::record::Fragments;
use crate::wal::{DecodeFrom, Decoder, Fact, PageHeader, Summarizer, Synth, TimelineHistory, WalVersion};
use crate::wire::frame::Taken;
use crate::wire::{BackupMessage, Message, ReplicationMessage, limits, take_frame};
use bytes::{Bytes, BytesMut};
pub use delta::{delta_frame, delta_wal};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use zeroize::Zeroizing;

/// A parser under test.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name: that of the fuzz target and of its corpus.
    pub name: &'static str,
    /// Feeds it.
    pub run: fn(&[u8]),
}

macro_rules! targets {
    ($($name:ident)*) => {
        /// Every target.
        pub const TARGETS: &[Target] = &[$(Target { name: stringify!($name), run: $name },)*];
    };
}

targets! {
    object directory index root manifest wal_meta key_slot journal
    wal_bytes wal_record wal_page delta_frame delta_wal history replication messages base_backup copy_binary
    tar conninfo config names
}

const ANY: Expect<'static> = Expect { repository: None, key: None, kind: None };
const REPOSITORY: RepositoryId = RepositoryId([7; 16]);

fn keyring() -> &'static Keyring {
    static KEYRING: OnceLock<Keyring> = OnceLock::new();
    KEYRING.get_or_init(|| Keyring::new(REPOSITORY, EpochKeys::first(&Still)))
}

/// No chance at all.
#[derive(Debug)]
struct Still;

impl crate::base::Entropy for Still {
    fn fill(&self, buffer: &mut [u8]) {
        buffer.fill(7);
    }
}

fn header(kind: ObjectKind) -> ObjectHeader {
    ObjectHeader {
        kind,
        required: 0,
        repository: REPOSITORY,
        owner: [1; 16],
        number: 2,
        writer_epoch: 3,
        key_epoch: 1,
        place: [4; 16],
        salt: [5; 32],
    }
}

/// A record that decodes is its bytes; nothing is lost, nothing is added.
fn record<T: Record + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(record) = T::decode(bytes) {
        assert_eq!(record.encode(), bytes);
        assert_eq!(record.parts().concat(), bytes);
    }
}

/// A whole object from anyone; then these bytes as its chunk, written and read back; then cut where they say.
pub fn object(bytes: &[u8]) {
    let _ = check_without_key(bytes, &ANY);
    let _ = OpenObject::open(Bytes::copy_from_slice(bytes), keyring(), &ANY);
    let _ = Trailer::decode(bytes, bytes.len() as u64);
    let frames = walk_frames(bytes).count();
    assert!(frames <= bytes.len(), "a frame takes at least a byte");
    let _ = decompress(Codec::Zstd, bytes.to_vec(), bytes.len().saturating_mul(4).min(1 << 20));

    let mut writer = ObjectWriter::create(&EpochSecret([7; 32]), &header(ObjectKind::PagesSegment));
    writer.add(bytes, keyring().chunk_id_key().chunk_id(bytes), 0);
    let made = writer.finish(Vec::new()).bytes;
    let chunk = OpenObject::open(made.clone(), keyring(), &ANY).map(|open| open.chunk(0, keyring()));
    assert_eq!(chunk, Ok(Ok(bytes.to_vec())));
    let cut = bytes.iter().fold(0usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte)))
        % made.len();
    assert!(OpenObject::open(made.slice(..cut), keyring(), &ANY).is_err(), "cut at {cut}");
}

/// A directory, also as it would come out of an object.
pub fn directory(bytes: &[u8]) {
    record::<Directory>(bytes);
    // Authentic, but not written by us: a meta and chunks that say anything.
    let mut writer = ObjectWriter::create(&EpochSecret([7; 32]), &header(ObjectKind::Index));
    let (meta, chunk) = bytes.split_at(bytes.len() / 2);
    writer.add(chunk, crate::base::ChunkId([0; 32]), 0);
    if let Ok(open) = OpenObject::open(writer.finish(meta.to_vec()).bytes, keyring(), &ANY) {
        let _ = open.meta::<IndexMeta>();
        let _ = open.chunk(0, keyring());
    }
}

/// Pages and meta of the index.
pub fn index(bytes: &[u8]) {
    record::<IndexPage>(bytes);
    record::<IndexMeta>(bytes);
}

/// Roots, floors, generations, pending work.
pub fn root(bytes: &[u8]) {
    record::<Root>(bytes);
    record::<Floor>(bytes);
    record::<GenerationRecord>(bytes);
    record::<Pending>(bytes);
    record::<Verification>(bytes);
}

/// Everything of a manifest.
pub fn manifest(bytes: &[u8]) {
    record::<ManifestMeta>(bytes);
    record::<ManifestPages>(bytes);
    record::<ManifestPage>(bytes);
    record::<BlockMap>(bytes);
}

/// What directories of WAL objects say. Summaries add up without overflow.
pub fn wal_meta(bytes: &[u8]) {
    record::<WalMeta>(bytes);
    record::<FenceMeta>(bytes);
    record::<WalSummary>(bytes);
}

/// Key slots, sealed epochs, the marker: as they come, and with the checksum made right.
pub fn key_slot(bytes: &[u8]) {
    let mut repaired = bytes.to_vec();
    if let Some((covered, crc)) = repaired.split_last_chunk_mut::<4>() {
        *crc = crc32fast::hash(covered).to_le_bytes();
    }
    let unlock = Unlock::Key(Zeroizing::new([7; 32]));
    for bytes in [bytes, &repaired] {
        if let Ok(marker) = RepositoryMarker::from_object(bytes) {
            assert_eq!(marker.to_object(), bytes);
        }
        if let Ok(slot) = KeySlot::from_object(bytes) {
            assert_eq!(slot.to_object(), bytes);
            let opened = keyslot::open_slot(bytes, slot.repository, &slot.name, &unlock);
            assert!(opened.is_err(), "a slot that nobody made opened");
        }
        if let Ok(epoch) = Epoch::from_object(bytes) {
            assert_eq!(epoch.to_object(), bytes);
        }
        if let Ok(link) = EpochLink::from_object(bytes) {
            assert_eq!(link.to_object(), bytes);
            let mut chain = keyring().chain().clone();
            assert!(chain.extend(&link).is_err(), "a link that nobody signed");
        }
        if let Ok(epoch) = EpochSlot::from_object(bytes) {
            assert_eq!(epoch.to_object(), bytes);
            assert!(!keyslot::vouched(&epoch, keyring().newest()), "a voucher that nobody made");
            let name = &epoch.slot;
            let newest = keyring().newest();
            let made = keyslot::create_slot(&unlock, epoch.repository, name, newest, SlotCost::LEAST, &Still);
            let opened =
                made.and_then(|(slot, _)| keyslot::open_slot(&slot, epoch.repository, name, &unlock));
            if let Ok(slot) = opened {
                assert!(
                    keyslot::open_epoch(&slot, epoch.epoch, bytes).is_err(),
                    "an epoch that nobody sealed opened"
                );
            }
        }
    }
}

/// Journal files: plain, and the plaintext of their frames.
pub fn journal(bytes: &[u8]) {
    let _ = JournalOpener::open(bytes, keyring(), &ANY);
    record::<JournalHead>(bytes);
    record::<JournalBegin>(bytes);
    if let Ok(frame) = JournalFrame::decode(bytes) {
        assert_eq!([frame.head.encode(), frame.body.to_vec()].concat(), bytes);
        let _ = frame.begin();
    }
}

/// Cuts `bytes` into pieces whose lengths the first byte chooses.
fn pieces(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let step = usize::from(bytes.first().copied().unwrap_or(0)) + 1;
    bytes.chunks(step)
}

fn version(byte: u8) -> WalVersion {
    let versions = [14, 15, 16, 17, 18].map(WalVersion::from_major);
    versions.get(usize::from(byte) % 5).copied().flatten().unwrap_or(WalVersion::V17)
}

fn one_mib() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap_or(SegmentSize::DEFAULT)
}

/// Reads WAL whole and in pieces: the outcome is the same.
fn read_wal(start: Lsn, from: DecodeFrom, wal: &[u8]) {
    let (mut whole, mut cut) = (Decoder::new(one_mib(), start, from), Decoder::new(one_mib(), start, from));
    let (mut summary, mut cut_summary) =
        (Summarizer::new(one_mib(), start, from), Summarizer::new(one_mib(), start, from));
    whole.feed(start, wal);
    summary.feed(start, wal);
    let mut at = start;
    for piece in pieces(wal) {
        cut.feed(at, piece);
        cut_summary.feed(at, piece);
        at = at.saturating_add(piece.len() as u64);
    }
    let all = |decoder: &mut Decoder| {
        let mut found = Vec::new();
        loop {
            match decoder.next() {
                Ok(Some(record)) => {
                    let _ = Fact::of(&record);
                    let _ = record.main_data().bytes(0, 8);
                    found.push(format!("{record:?}"));
                }
                Ok(None) => return found,
                Err(error) => found.push(error.to_string()),
            }
            assert!(found.len() <= wal.len() + 8, "more records than bytes");
        }
    };
    assert_eq!(all(&mut whole), all(&mut cut));
    let (summary, cut_summary) = (summary.take(), cut_summary.take());
    assert_eq!(summary, cut_summary);
    record::<WalSummary>(&summary.encode());
}

/// Any bytes as WAL, at a position that they choose.
pub fn wal_bytes(bytes: &[u8]) {
    let Some((choice, wal)) = bytes.split_first() else { return };
    let start = Lsn::new((1 << 32) + u64::from(*choice & 0xF0) * 512);
    let from = match choice & 1 {
        0 => DecodeFrom::Anywhere,
        _ => DecodeFrom::RecordStart(version(choice >> 1)),
    };
    read_wal(start, from, wal);
}

/// Valid pages and checksums around records whose content is these bytes.
pub fn wal_record(bytes: &[u8]) {
    let Some(([choice, rmgr, info, xid], rest)) = bytes.split_first_chunk() else { return };
    let version = version(*choice);
    let start = Lsn::new((1 << 32) + 8192);
    let mut synth = Synth::new(version, one_mib(), SystemId(7), TimelineId(1), start);
    let time = Timestamp::from_micros(1);
    synth.noise(24 + usize::from(choice >> 4) * 600);
    match choice & 0x08 {
        0 => synth.main_record(*rmgr, *info, u32::from(*xid), rest),
        _ => synth.record(*rmgr, *info, u32::from(*xid), rest),
    };
    synth.commit(9, time);
    read_wal(start, DecodeFrom::RecordStart(version), &synth.take());
    let fragments = Fragments::new(version, u32::from_le_bytes([*xid, *info, 0, 0]), rest);
    assert!(fragments.take(rest.len() + 2).count() <= rest.len() + 1, "fragments take at least a byte each");
}

/// A page header.
pub fn wal_page(bytes: &[u8]) {
    if let Ok(header) = PageHeader::decode(bytes) {
        let again = header.encode();
        assert_eq!(PageHeader::decode(&again), Ok(header));
        let _ = header.check_place(Lsn::new(1 << 32), one_mib());
    }
}

/// A timeline history: what it says survives being written again.
pub fn history(bytes: &[u8]) {
    let timeline = TimelineId(bytes.first().map_or(2, |byte| u32::from(*byte) + 2));
    if let Ok(history) = TimelineHistory::parse(timeline, bytes) {
        let again = TimelineHistory::parse(timeline, history.to_text().as_bytes());
        assert_eq!(again.as_ref().map(TimelineHistory::switches), Ok(history.switches()));
        let _ = (history.path(), history.begins_at(), history.timeline_at(Lsn::new(1)));
    }
}

/// Messages inside CopyBoth.
pub fn replication(bytes: &[u8]) {
    let _ = ReplicationMessage::decode(Bytes::copy_from_slice(bytes));
}

/// A server's stream of messages, whole and in pieces.
pub fn messages(bytes: &[u8]) {
    let read = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let (mut buffer, mut found) = (BytesMut::new(), Vec::new());
        for piece in pieces {
            buffer.extend_from_slice(piece);
            loop {
                match take_frame(&mut buffer, limits::STARTUP_MESSAGE_BYTES_MAX) {
                    Ok(Taken::Need(_)) => break,
                    Ok(Taken::Frame(frame)) => {
                        let message = Message::decode(frame);
                        found.push(format!("{message:?}"));
                    }
                    Err(error) => {
                        found.push(error.to_string());
                        return found;
                    }
                }
            }
        }
        found
    };
    assert_eq!(read(&mut std::iter::once(bytes)), read(&mut pieces(bytes)));
}

/// Messages of a base backup's COPY.
pub fn base_backup(bytes: &[u8]) {
    let _ = BackupMessage::decode(Bytes::copy_from_slice(bytes));
}

/// COPY's binary format.
pub fn copy_binary(bytes: &[u8]) {
    let _ = crate::wire::copy_binary::decode(Bytes::copy_from_slice(bytes));
}

/// A tar stream, whole and in pieces: the same entries and the same bytes.
pub fn tar(bytes: &[u8]) {
    let read = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let (mut reader, mut found, mut content) = (TarReader::new(), Vec::new(), Vec::new());
        for piece in pieces {
            reader.feed(Bytes::copy_from_slice(piece));
            loop {
                match reader.next_event() {
                    Ok(None) => break,
                    Ok(Some(TarEvent::Data(data))) => content.extend_from_slice(&data),
                    Ok(Some(event)) => found.push(format!("{event:?} after {}", content.len())),
                    // Where exactly a piece is told to be wrong depends on where it begins.
                    Err(_) => {
                        found.push("refused".to_owned());
                        return (found, content);
                    }
                }
            }
        }
        found.push(format!("{:?}", reader.finish().is_ok()));
        (found, content)
    };
    assert_eq!(read(&mut std::iter::once(bytes)), read(&mut pieces(bytes)));
}

/// Files and variables that say what the input says.
struct Around {
    file: String,
}

impl Surroundings for Around {
    fn var(&self, name: &str) -> Option<String> {
        matches!(name, "PGSERVICEFILE" | "PGPASSFILE").then(|| "/file".to_owned())
    }

    fn read(&self, _path: &Path) -> io::Result<Option<FoundFile>> {
        Ok(Some(FoundFile { text: Secret::new(self.file.clone()), mode: 0o100_600 }))
    }

    fn user(&self) -> Option<String> {
        Some("user".to_owned())
    }

    fn home(&self) -> Option<PathBuf> {
        Some(PathBuf::from("/home/user"))
    }
}

/// A connection string; what follows a NUL is the service file and the password file around it.
pub fn conninfo(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (text, file) = text.split_once('\0').unwrap_or((&text, ""));
    let _ = contains_password(text);
    if let Ok(options) = ConnectOptions::parse_within(text, &Around { file: file.to_owned() }) {
        let _ = options.describe_hosts();
    }
}

/// The configuration file.
pub fn config(bytes: &[u8]) {
    let _ = config::parse(&String::from_utf8_lossy(bytes), Path::new("walden.toml"));
}

/// Short texts: positions, WAL file names, ids, keys. What parses prints as it was, but for case and leading zeros.
pub fn names(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(lsn) = text.parse::<Lsn>() {
        assert_eq!(lsn.to_string().parse(), Ok(lsn));
    }
    if let Ok(name) = text.parse::<WalFileName>() {
        assert_eq!(name.to_string(), text);
        let _ = name.segment_no(one_mib());
    }
    if let Ok(id) = text.parse::<ObjectId>() {
        assert_eq!(id.to_string(), text.to_lowercase());
    }
    if let Ok(name) = text.parse::<ClusterName>() {
        assert_eq!(name.as_str(), text);
    }
    if let Some(key) = ObjectKey::new(text) {
        assert!(
            !key.as_str().contains("..") && !key.as_str().starts_with('/'),
            "{key} leaves the repository"
        );
    }
}
