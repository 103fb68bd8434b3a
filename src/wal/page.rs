//! Page headers of WAL (`access/xlog_internal.h`, XLogPageHeaderData and XLogLongPageHeaderData).
//! Refuses unknown magics, flags and block sizes; whether a header fits its place is the scanner's question.
//!
//! ```text
//!  0 u16 magic      2 u16 info      4 u32 timeline      8 u64 page address     16 u32 rem_len   20 pad to 24
//! 24 u64 system id 32 u32 segment size 36 u32 block size                       (first page of a segment only)
//! ```

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::{WalError, WalVersion};
use crate::base::limits::BLOCK_BYTES;
use crate::base::{Lsn, SegmentSize, SystemId, TimelineId};
use crate::format::{FormatError, Reader};

/// Bytes of a page.
pub const PAGE_BYTES: usize = BLOCK_BYTES;
/// Bytes of the header of every page but the first of a segment.
pub const SHORT_HEADER_BYTES: usize = 24;
/// Bytes of the header of a segment's first page.
pub const LONG_HEADER_BYTES: usize = 40;

const FIRST_IS_CONTRECORD: u16 = 1;
const LONG_HEADER: u16 = 2;
const BKP_REMOVABLE: u16 = 4;
const FIRST_IS_OVERWRITE_CONTRECORD: u16 = 8;
const KNOWN_FLAGS: u16 = FIRST_IS_CONTRECORD | LONG_HEADER | BKP_REMOVABLE | FIRST_IS_OVERWRITE_CONTRECORD;

/// How the body of a page begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageStart {
    /// With a record.
    Record,
    /// With the rest of a record of the page before, this many bytes of it from here on.
    Continuation(u32),
    /// With a record, and the one that the page before left unfinished never ends: the server crashed while
    /// writing it and wrote on from here.
    Overwrite,
}

/// What a segment's first page says more than others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LongHeader {
    /// The cluster.
    pub system_id: SystemId,
    /// The segment size.
    pub segment_size: SegmentSize,
}

/// A page header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageHeader {
    /// The version that wrote it.
    pub version: WalVersion,
    /// The timeline it was written on. In the first segment of a new timeline, pages before the switch keep the old one.
    pub timeline: TimelineId,
    /// Its own position.
    pub address: Lsn,
    /// How its body begins.
    pub starts_with: PageStart,
    /// Whether the server said that full-page images are not needed by anyone (BKP_REMOVABLE); kept, not used.
    pub removable: bool,
    /// On a segment's first page.
    pub long: Option<LongHeader>,
}

impl PageHeader {
    /// Bytes of the header of the page at `address`.
    pub fn bytes_at(address: Lsn, segment_size: SegmentSize) -> usize {
        if segment_size.segment_start(address) == address { LONG_HEADER_BYTES } else { SHORT_HEADER_BYTES }
    }

    /// Reads the header that begins `bytes`: 24 of them at least, 40 where it is long.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut from = Reader::new("WAL page header", bytes);
        let magic = u16::from_le_bytes(from.array()?);
        let version = WalVersion::from_magic(magic).ok_or_else(|| {
            FormatError::new("WAL page magic", 0, format!("{magic:04X}"), "that of PostgreSQL 14 to 18")
        })?;
        let info = u16::from_le_bytes(from.array()?);
        if info & !KNOWN_FLAGS != 0 {
            return Err(FormatError::new("WAL page flags", 2, format!("{info:#06x}"), "known flags"));
        }
        let timeline = TimelineId(u32::from_le_bytes(from.array()?));
        let address = Lsn::new(u64::from_le_bytes(from.array()?));
        let rem_len = u32::from_le_bytes(from.array()?);
        from.take(4)?;
        let starts_with = match (info & FIRST_IS_CONTRECORD != 0, info & FIRST_IS_OVERWRITE_CONTRECORD != 0) {
            (true, _) if rem_len == 0 => {
                return Err(FormatError::new("WAL page rem_len", 16, 0, "the rest of a continued record"));
            }
            (true, _) => PageStart::Continuation(rem_len),
            (false, true) => PageStart::Overwrite,
            (false, false) => PageStart::Record,
        };
        let long = if info & LONG_HEADER != 0 { Some(LongHeader::decode(&mut from)?) } else { None };
        let removable = info & BKP_REMOVABLE != 0;
        Ok(PageHeader { version, timeline, address, starts_with, removable, long })
    }

    /// The header's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let (start_flag, rem_len) = match self.starts_with {
            PageStart::Record => (0, 0),
            PageStart::Continuation(rem_len) => (FIRST_IS_CONTRECORD, rem_len),
            PageStart::Overwrite => (FIRST_IS_OVERWRITE_CONTRECORD, 0),
        };
        let long_flag = if self.long.is_some() { LONG_HEADER } else { 0 };
        let removable_flag = if self.removable { BKP_REMOVABLE } else { 0 };
        let mut bytes = Vec::with_capacity(LONG_HEADER_BYTES);
        bytes.extend_from_slice(&self.version.magic().to_le_bytes());
        bytes.extend_from_slice(&(start_flag | long_flag | removable_flag).to_le_bytes());
        bytes.extend_from_slice(&self.timeline.0.to_le_bytes());
        bytes.extend_from_slice(&self.address.get().to_le_bytes());
        bytes.extend_from_slice(&rem_len.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        if let Some(long) = self.long {
            bytes.extend_from_slice(&long.system_id.0.to_le_bytes());
            bytes.extend_from_slice(&long.segment_size.get().to_le_bytes());
            bytes.extend_from_slice(&(PAGE_BYTES as u32).to_le_bytes());
        }
        bytes
    }

    /// Refuses a header that does not belong at `address` under `segment_size`.
    pub fn check_place(&self, address: Lsn, segment_size: SegmentSize) -> Result<(), WalError> {
        if self.address != address {
            return Err(WalError::new(address, "page address", self.address, address));
        }
        let first_of_segment = segment_size.segment_start(address) == address;
        match self.long {
            None if first_of_segment => Err(WalError::new(
                address,
                "page header",
                "a short one",
                "a long one, on a segment's first page",
            )),
            Some(_) if !first_of_segment => {
                Err(WalError::new(address, "page header", "a long one", "a short one, inside a segment"))
            }
            Some(long) if long.segment_size != segment_size => {
                Err(WalError::new(address, "segment size", long.segment_size.get(), segment_size.get()))
            }
            _ => Ok(()),
        }
    }
}

impl LongHeader {
    fn decode(from: &mut Reader<'_>) -> Result<Self, FormatError> {
        let system_id = SystemId(u64::from_le_bytes(from.array()?));
        let segment_bytes = u32::from_le_bytes(from.array()?);
        let segment_size = SegmentSize::new(u64::from(segment_bytes))
            .map_err(|_| from.error(segment_bytes, "a segment size from 1 MiB to 1 GiB"))?;
        let block_bytes = u32::from_le_bytes(from.array()?);
        if block_bytes as usize != PAGE_BYTES {
            return Err(from.error(block_bytes, "WAL blocks of 8192 bytes"));
        }
        Ok(LongHeader { system_id, segment_size })
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    fn header() -> PageHeader {
        PageHeader {
            version: WalVersion::V15,
            timeline: TimelineId(2),
            address: Lsn::new(3 << 24),
            starts_with: PageStart::Continuation(77),
            removable: true,
            long: Some(LongHeader { system_id: SystemId(9), segment_size: SegmentSize::DEFAULT }),
        }
    }

    #[test]
    fn headers_come_back() {
        for version in WalVersion::ALL {
            for starts_with in [PageStart::Record, PageStart::Overwrite, PageStart::Continuation(1)] {
                for long in [None, header().long] {
                    let header = PageHeader { version, starts_with, long, ..header() };
                    let bytes = header.encode();
                    assert_eq!(
                        bytes.len(),
                        if long.is_some() { LONG_HEADER_BYTES } else { SHORT_HEADER_BYTES }
                    );
                    assert_eq!(PageHeader::decode(&bytes).unwrap(), header);
                }
            }
        }
    }

    #[test]
    fn refuses_foreign_headers() {
        let good = header().encode();
        // Magic, an unknown flag, a continuation of nothing, a segment size, a block size; a cut.
        for (at, value) in [(0, 0x0E), (2, 0x10 | 3), (16, 0), (35, 0x80), (37, 0x40)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert!(PageHeader::decode(&bad).is_err(), "byte {at}");
        }
        assert!((0..LONG_HEADER_BYTES).all(|len| PageHeader::decode(&good[..len]).is_err()));
    }

    #[test]
    fn refuses_headers_out_of_place() {
        let (header, size) = (header(), SegmentSize::DEFAULT);
        assert!(header.check_place(header.address, size).is_ok());
        assert!(header.check_place(Lsn::new(4 << 24), size).is_err());
        assert!(header.check_place(header.address, SegmentSize::new(1 << 20).unwrap()).is_err());
        let short = PageHeader { long: None, ..header };
        assert!(short.check_place(short.address, size).is_err());
        let inside = PageHeader { address: Lsn::new((3 << 24) + 8192), ..header };
        assert!(inside.check_place(inside.address, size).is_err());
    }
}
