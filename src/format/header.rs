//! The plain header of every object and journal file. Spec: formats/object.md.
//! Whose it is, what it is, where it belongs; its bytes are bound into the key of the frames that follow.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::bytes::{FormatError, Reader, Writer};
use super::record::{Field, code};
use crate::base::{ObjectKey, RepositoryId};

/// The first eight bytes: a name, the major version 1, and a byte that text tools stumble over.
pub const MAGIC: [u8; 8] = *b"WALDEN\x01\x1a";
/// The header's length in bytes.
pub const HEADER_BYTES: usize = 160;
/// The feature bits this version knows; any other is refused.
pub const REQUIRED_KNOWN: u32 = 0;
const REQUIRED_AT: usize = 12;
const COMMITMENT_AT: usize = 120;
/// Where the checksum of all before it stands.
const CRC_AT: usize = COMMITMENT_AT + 32;
/// The key epoch of objects that are never removed, and of journals: sealed under the lasting key.
pub const LASTING_EPOCH: u32 = 0;

code! {
    /// What an object is.
    pub enum ObjectKind {
        /// WAL of one stream, as received.
        Flush = 1,
        /// The end of a stream, written by its successor.
        Fence = 2,
        /// Compacted WAL.
        WalSegment = 3,
        /// Chunks of backups.
        PagesSegment = 4,
        /// Logical changes.
        LogicalSegment = 5,
        /// A part of a cluster's index.
        Index = 6,
        /// What makes up a cluster.
        Root = 7,
        /// The least root that stays.
        Floor = 8,
        /// A cluster's system identifier and major version.
        Generation = 9,
        /// A backup.
        Manifest = 10,
        /// Work in progress.
        Pending = 11,
        /// A local journal file.
        Journal = 12,
        /// What verification found.
        Verification = 13,
    }
}

impl ObjectKind {
    /// Whether it is sealed under the lasting key, and under no epoch: it must stay readable as long as the repository.
    pub fn is_lasting(self) -> bool {
        match self {
            ObjectKind::Fence | ObjectKind::Floor | ObjectKind::Generation | ObjectKind::Journal => true,
            ObjectKind::Flush
            | ObjectKind::WalSegment
            | ObjectKind::PagesSegment
            | ObjectKind::LogicalSegment
            | ObjectKind::Index
            | ObjectKind::Root
            | ObjectKind::Manifest
            | ObjectKind::Pending
            | ObjectKind::Verification => false,
        }
    }
}

/// The header's fields but magic, commitment and checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectHeader {
    /// What the object is.
    pub kind: ObjectKind,
    /// Feature bits a reader must know.
    pub required: u32,
    /// The repository it belongs to.
    pub repository: RepositoryId,
    /// The stream, or the object's own id; zero for numbered objects of a cluster.
    pub owner: [u8; 16],
    /// Its number in the stream or among its kind; 0 where there is none.
    pub number: u64,
    /// The epoch of the writer; 0 where writers have none.
    pub writer_epoch: u64,
    /// The key epoch whose secret seals it; [`LASTING_EPOCH`] for the lasting key.
    pub key_epoch: u32,
    /// The first 16 bytes of the BLAKE3 of its key, so that an object moved elsewhere is refused.
    pub place: [u8; 16],
    /// Random, new for every object sealed.
    pub salt: [u8; 32],
}

impl ObjectHeader {
    /// The place of an object named `key`.
    pub fn place_of(key: &ObjectKey) -> [u8; 16] {
        let hash = blake3::hash(key.as_str().as_bytes());
        let mut place = [0; 16];
        place.copy_from_slice(hash.as_bytes().first_chunk::<16>().unwrap_or(&[0; 16]));
        place
    }

    /// The bytes before the commitment: what the object's key is derived from.
    pub fn derivation_bytes(&self) -> Vec<u8> {
        let mut to = Writer::new();
        to.put(&MAGIC);
        self.kind.put(&mut to);
        to.put(&[0; 3]);
        self.required.put(&mut to);
        self.repository.put(&mut to);
        to.put(&self.owner);
        self.number.put(&mut to);
        self.writer_epoch.put(&mut to);
        self.key_epoch.put(&mut to);
        0u32.put(&mut to);
        to.put(&self.place);
        to.put(&self.salt);
        let bytes = to.into_bytes();
        assert!(bytes.len() == COMMITMENT_AT, "header layout");
        bytes
    }

    /// The whole header.
    pub fn encode(&self, commitment: &[u8; 32]) -> [u8; HEADER_BYTES] {
        let mut bytes = self.derivation_bytes();
        bytes.extend_from_slice(commitment);
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        let mut header = [0; HEADER_BYTES];
        header.copy_from_slice(&bytes);
        header
    }

    /// Whether `bytes` begin with a whole header of a later version: its checksum is right, and its major version, or a feature that a reader
    /// must know, is none that this version knows.
    pub fn is_newer(bytes: &[u8]) -> bool {
        let Some((plain, crc)) = bytes.get(..CRC_AT).zip(bytes.get(CRC_AT..CRC_AT + 4)) else { return false };
        let (Some(magic), Some(required)) =
            (plain.first_chunk::<8>(), plain.get(REQUIRED_AT..REQUIRED_AT + 4))
        else {
            return false;
        };
        let ([name @ .., major, end], [own_name @ .., own_major, own_end]) = (*magic, MAGIC);
        let is_known =
            required.iter().zip((!REQUIRED_KNOWN).to_le_bytes()).all(|(bits, unknown)| bits & unknown == 0);
        crc == crc32fast::hash(plain).to_le_bytes()
            && (name, end) == (own_name, own_end)
            && (major > own_major || !is_known)
    }

    /// Reads a header and its commitment. Refuses a wrong magic, checksum, unknown kind or unknown required bit.
    pub fn decode(bytes: &[u8]) -> Result<(ObjectHeader, [u8; 32]), FormatError> {
        let mut from = Reader::new("object header", bytes);
        let magic: [u8; 8] = from.array()?;
        if magic != MAGIC {
            return Err(FormatError::new(
                "object header",
                0,
                format!("{magic:02x?}"),
                format!("{MAGIC:02x?}"),
            ));
        }
        let mut check = from.clone();
        check.take(144)?;
        let (at, stored) = (check.position(), u32::get(&mut check)?);
        let crc = crc32fast::hash(bytes.get(..at).unwrap_or_default());
        if stored != crc {
            let (found, expected) = (format!("crc {stored:08x}"), format!("{crc:08x}"));
            return Err(FormatError::new("object header", at, found, expected));
        }
        let kind = ObjectKind::get(&mut from)?;
        zero(&mut from, 3)?;
        let before = from.clone();
        let required = u32::get(&mut from)?;
        if required & !REQUIRED_KNOWN != 0 {
            let unknown = required & !REQUIRED_KNOWN;
            return Err(before.error(format!("unknown required feature bits {unknown:#x}"), "a newer walden"));
        }
        let repository = RepositoryId::get(&mut from)?;
        let owner = from.array()?;
        let number = u64::get(&mut from)?;
        let writer_epoch = u64::get(&mut from)?;
        let before = from.clone();
        let key_epoch = u32::get(&mut from)?;
        if kind.is_lasting() != (key_epoch == LASTING_EPOCH) {
            // Whoever ever held a slot has the lasting key: it must open nothing but what it is for.
            let expected = if kind.is_lasting() { "the lasting key" } else { "an epoch" };
            return Err(before.error(format!("{kind:?} under key epoch {key_epoch}"), expected));
        }
        zero(&mut from, 4)?;
        let place = from.array()?;
        let salt = from.array()?;
        let commitment = from.array()?;
        from.take(4)?;
        zero(&mut from, 4)?;
        let header =
            ObjectHeader { kind, required, repository, owner, number, writer_epoch, key_epoch, place, salt };
        Ok((header, commitment))
    }
}

/// Reserved bytes are zero, so that a flipped one is noticed and a later version may use them.
fn zero(from: &mut Reader<'_>, count: usize) -> Result<(), FormatError> {
    let before = from.clone();
    if from.take(count)?.iter().any(|b| *b != 0) {
        return Err(before.error("reserved bytes that are not zero", "zeros"));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_refused() {
        let key = ObjectKey::new("clusters/shop/roots/1").unwrap();
        let header = ObjectHeader {
            kind: ObjectKind::Root,
            required: 0,
            repository: RepositoryId([1; 16]),
            owner: [0; 16],
            number: 1,
            writer_epoch: 2,
            key_epoch: 3,
            place: ObjectHeader::place_of(&key),
            salt: [4; 32],
        };
        let bytes = header.encode(&[5; 32]);
        assert_eq!(ObjectHeader::decode(&bytes).unwrap(), (header, [5; 32]));
        for at in 0..bytes.len() * 8 {
            let mut flipped = bytes;
            flipped[at / 8] ^= 1 << (at % 8);
            assert!(ObjectHeader::decode(&flipped).is_err(), "bit {at}");
            assert!(!ObjectHeader::is_newer(&flipped), "bit {at}");
        }
    }

    #[test]
    fn a_whole_header_of_a_later_version_is_told_from_damage() {
        let changed = |at: usize, byte: u8| {
            let mut bytes = [0; HEADER_BYTES];
            bytes[..8].copy_from_slice(&MAGIC);
            bytes[at] = byte;
            let crc = crc32fast::hash(&bytes[..CRC_AT]);
            bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
            bytes
        };
        assert!(ObjectHeader::is_newer(&changed(6, 2)));
        assert!(ObjectHeader::is_newer(&changed(REQUIRED_AT, 1)));
        assert!(ObjectHeader::is_newer(&changed(REQUIRED_AT + 3, 0x80)));
        assert!(!ObjectHeader::is_newer(&changed(6, 1)), "ours");
        assert!(!ObjectHeader::is_newer(&changed(0, b'V')), "another program's");
        assert!(!ObjectHeader::is_newer(&changed(6, 2)[..100]), "cut");
    }
}
