//! The envelope of the few plain objects that are read before any key is at hand: the repository marker, key slots
//! and sealed epoch secrets. Magic, required bits, one record, CRC-32. Spec: formats/keys.md, formats/layout.md.
//! The CRC tells damage from a wrong passphrase; it proves nothing against someone who can write to the store.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::bytes::{FormatError, Reader, Writer};
use super::record::{Field, Record};

/// The most bytes a plain object may take, unless its kind says otherwise. Ours take a few hundred.
pub const PLAIN_OBJECT_BYTES_MAX: usize = 4096;
/// Magic and required bits.
pub const ENVELOPE_HEAD_BYTES: usize = 12;
/// The feature bits this version knows; any other is refused.
pub const REQUIRED_KNOWN: u32 = 0;
const CRC_BYTES: usize = 4;

/// A record stored as an object of its own.
pub trait PlainObject: Record {
    /// The first eight bytes: a name and the major version.
    const MAGIC: [u8; 8];
    /// The most bytes it may take.
    const BYTES_MAX: usize = PLAIN_OBJECT_BYTES_MAX;

    /// The whole object.
    fn to_object(&self) -> Vec<u8> {
        let mut to = Writer::new();
        to.put(&Self::MAGIC);
        0u32.put(&mut to);
        self.put(&mut to);
        let mut bytes = to.into_bytes();
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a whole object. Refuses a wrong magic, length, checksum, unknown required bits and leftover bytes.
    fn from_object(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut from = Reader::new(Self::TYPE, bytes);
        let magic: [u8; 8] = from.array()?;
        if magic != Self::MAGIC {
            let (found, expected) = (format!("{magic:02x?}"), format!("{:02x?}", Self::MAGIC));
            return Err(FormatError::new(Self::TYPE, 0, found, expected));
        }
        if bytes.len() > Self::BYTES_MAX {
            let (found, expected) =
                (format!("{} bytes", bytes.len()), format!("at most {}", Self::BYTES_MAX));
            return Err(FormatError::new(Self::TYPE, Self::BYTES_MAX, found, expected));
        }
        let crc_at = bytes.len().saturating_sub(CRC_BYTES);
        let (covered, stored) = bytes.split_at_checked(crc_at).unwrap_or((bytes, &[]));
        let stored = u32::get(&mut Reader::new(Self::TYPE, stored))?;
        let found = crc32fast::hash(covered);
        if stored != found {
            return Err(FormatError::new(
                Self::TYPE,
                crc_at,
                format!("crc {stored:08x}"),
                format!("{found:08x}"),
            ));
        }
        let mut from = Reader::new(Self::TYPE, covered);
        from.take(Self::MAGIC.len())?;
        let before = from.clone();
        let unknown = u32::get(&mut from)? & !REQUIRED_KNOWN;
        if unknown != 0 {
            return Err(before.error(format!("unknown required feature bits {unknown:#x}"), "a newer walden"));
        }
        let record = Self::get(&mut from)?;
        from.finish()?;
        record.check()?;
        Ok(record)
    }

    /// Refuses values that have a stored form but no meaning.
    fn check(&self) -> Result<(), FormatError> {
        Ok(())
    }
}
