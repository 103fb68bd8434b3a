//! WAL segment sizes, numbers and file names (`access/xlog_internal.h`).
//! A segment size is a power of two from 1 MiB to 1 GiB; 16 MiB is never assumed.

use super::lsn::{Lsn, LsnRange, TimelineId};
use std::fmt;
use std::str::FromStr;

/// The size of a WAL segment in bytes: a power of two from 1 MiB to 1 GiB.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SegmentSize(u32);

/// A segment size that PostgreSQL does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("WAL segment size {found} is not a power of two from 1 MiB to 1 GiB")]
pub struct SegmentSizeError {
    /// The size in bytes as found.
    pub found: u64,
}

impl SegmentSize {
    /// PostgreSQL's default, 16 MiB.
    pub const DEFAULT: SegmentSize = SegmentSize(16 << 20);

    /// Checks `bytes`.
    pub fn new(bytes: u64) -> Result<Self, SegmentSizeError> {
        match u32::try_from(bytes) {
            Ok(size) if size.is_power_of_two() && (1 << 20..=1 << 30).contains(&size) => {
                Ok(SegmentSize(size))
            }
            _ => Err(SegmentSizeError { found: bytes }),
        }
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }

    /// The size in bytes, as the 32 bits that page headers hold.
    pub fn get(self) -> u32 {
        self.0
    }

    /// The segment that holds the byte at `at`.
    pub fn segment_at(self, at: Lsn) -> SegmentNo {
        SegmentNo(at.get() / self.bytes())
    }

    /// The first byte of the segment that holds `at`.
    pub fn segment_start(self, at: Lsn) -> Lsn {
        at.align_down(self.bytes())
    }

    /// Segments per 4 GiB, the unit of the middle part of a WAL file name.
    fn segments_per_xlog_id(self) -> u64 {
        (1 << 32) / self.bytes()
    }
}

/// The number of a WAL segment: its first byte divided by the segment size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SegmentNo(pub u64);

impl SegmentNo {
    /// The bytes of the segment.
    pub fn range(self, size: SegmentSize) -> LsnRange {
        let start = Lsn::new(self.0.saturating_mul(size.bytes()));
        LsnRange::new(start, start.saturating_add(size.bytes()))
    }

    /// The next segment.
    pub fn next(self) -> SegmentNo {
        SegmentNo(self.0 + 1)
    }
}

/// A file that PostgreSQL asks its archive for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum WalFileName {
    /// A WAL segment, `000000010000000000000001`. The last two groups of its name depend on the segment size.
    Segment {
        /// Its timeline.
        timeline: TimelineId,
        /// The middle eight digits.
        xlog_id: u32,
        /// The last eight digits.
        index: u32,
    },
    /// A timeline's history, `00000002.history`.
    History(TimelineId),
}

/// What PostgreSQL would not ask an archive for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is neither a WAL segment nor a timeline history file")]
pub struct WalFileNameError {
    /// The name as given.
    pub found: String,
}

impl WalFileName {
    /// The name of segment `number` on `timeline`.
    pub fn segment(timeline: TimelineId, number: SegmentNo, size: SegmentSize) -> Self {
        let per_id = size.segments_per_xlog_id();
        WalFileName::Segment {
            timeline,
            xlog_id: (number.0 / per_id) as u32,
            index: (number.0 % per_id) as u32,
        }
    }

    /// The segment's number under `size`; `None` for a history file, or an index past what `size` allows.
    pub fn segment_no(self, size: SegmentSize) -> Option<SegmentNo> {
        match self {
            WalFileName::Segment { xlog_id, index, .. } if u64::from(index) < size.segments_per_xlog_id() => {
                Some(SegmentNo(u64::from(xlog_id) * size.segments_per_xlog_id() + u64::from(index)))
            }
            _ => None,
        }
    }
}

impl fmt::Display for WalFileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WalFileName::Segment { timeline, xlog_id, index } => {
                write!(f, "{:08X}{xlog_id:08X}{index:08X}", timeline.0)
            }
            WalFileName::History(timeline) => f.write_str(&timeline.history_file_name()),
        }
    }
}

impl FromStr for WalFileName {
    type Err = WalFileNameError;

    fn from_str(name: &str) -> Result<Self, WalFileNameError> {
        let upper_hex = |s: &str| s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
        let group = |s: &str| if upper_hex(s) { u32::from_str_radix(s, 16).ok() } else { None };
        let parsed = match (name.strip_suffix(".history"), name.len()) {
            (Some(timeline), 16) => group(timeline).map(|t| WalFileName::History(TimelineId(t))),
            (None, 24) if name.is_ascii() => {
                let (timeline, rest) = name.split_at(8);
                let (xlog_id, index) = rest.split_at(8);
                match (group(timeline), group(xlog_id), group(index)) {
                    (Some(t), Some(xlog_id), Some(index)) => {
                        Some(WalFileName::Segment { timeline: TimelineId(t), xlog_id, index })
                    }
                    _ => None,
                }
            }
            _ => None,
        };
        parsed.ok_or_else(|| WalFileNameError { found: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_segments_as_postgres_does_at_every_size() {
        let name = |lsn: &str, size: u64| {
            let size = SegmentSize::new(size).unwrap();
            let name = WalFileName::segment(TimelineId(3), size.segment_at(lsn.parse().unwrap()), size);
            assert_eq!(name.to_string().parse::<WalFileName>().unwrap(), name);
            assert_eq!(name.segment_no(size), Some(size.segment_at(lsn.parse().unwrap())));
            name.to_string()
        };
        assert_eq!(name("1/2A000028", 16 << 20), "00000003000000010000002A");
        assert_eq!(name("1/2A000028", 1 << 20), "0000000300000001000002A0");
        assert_eq!(name("1/C0000028", 1 << 30), "000000030000000100000003");
    }

    #[test]
    fn refuses_other_names() {
        let other = ["", "00000001000000000000000G", "0000000100000000000000011", "1.history"];
        let partial = "000000010000000000000001.partial";
        for name in other.into_iter().chain([partial, "00000001.History", "00000001000000000000000a"]) {
            assert!(name.parse::<WalFileName>().is_err(), "{name:?}");
        }
    }

    #[test]
    fn refuses_sizes_that_postgres_does_not_have() {
        for size in [0, 1 << 19, (16 << 20) + 1, 1 << 31, u64::MAX] {
            assert!(SegmentSize::new(size).is_err());
        }
    }
}
