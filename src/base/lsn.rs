//! WAL positions and timelines, in PostgreSQL's own notation (`access/xlogdefs.h`).
//! An [`Lsn`] is a byte offset into the WAL of one cluster; arithmetic on it is checked.

use std::fmt;
use std::str::FromStr;

/// A WAL position: a byte offset since the cluster was initialised. Printed as PostgreSQL does, `0/16B3748`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(u64);

impl Lsn {
    /// `0/0`, PostgreSQL's InvalidXLogRecPtr.
    pub const ZERO: Lsn = Lsn(0);
    /// The greatest position.
    pub const MAX: Lsn = Lsn(u64::MAX);

    /// The position `bytes` after the start of WAL.
    pub const fn new(bytes: u64) -> Self {
        Lsn(bytes)
    }

    /// The byte offset.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// `self + bytes`, or `None` past the end of 64 bits.
    pub fn checked_add(self, bytes: u64) -> Option<Lsn> {
        self.0.checked_add(bytes).map(Lsn)
    }

    /// `self + bytes`, stopping at [`Lsn::MAX`].
    pub fn saturating_add(self, bytes: u64) -> Lsn {
        Lsn(self.0.saturating_add(bytes))
    }

    /// `self - bytes`, stopping at [`Lsn::ZERO`].
    pub fn saturating_sub(self, bytes: u64) -> Lsn {
        Lsn(self.0.saturating_sub(bytes))
    }

    /// Bytes from `earlier` to `self`; 0 when `earlier` is not before it.
    pub fn bytes_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The position rounded down to a multiple of `unit`. `unit` is not 0.
    pub fn align_down(self, unit: u64) -> Lsn {
        assert!(unit > 0, "alignment unit is zero");
        Lsn(self.0 - self.0 % unit)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What was not an LSN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is not an LSN, expected two hexadecimal numbers like 0/16B3748")]
pub struct LsnParseError {
    /// The text as given.
    pub found: String,
}

impl FromStr for Lsn {
    type Err = LsnParseError;

    fn from_str(text: &str) -> Result<Self, LsnParseError> {
        let half = |part: &str| {
            let sane = (1..=8).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_hexdigit());
            if sane { u64::from_str_radix(part, 16).ok() } else { None }
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Lsn(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| LsnParseError { found: text.to_owned() })
    }
}

/// A half-open range of WAL, `start` up to and without `end`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LsnRange {
    /// The first byte.
    pub start: Lsn,
    /// One past the last byte; not before `start`.
    pub end: Lsn,
}

impl LsnRange {
    /// The range from `start` to `end`. `end` is not before `start`.
    pub fn new(start: Lsn, end: Lsn) -> Self {
        assert!(start <= end, "range {start}..{end} runs backwards");
        LsnRange { start, end }
    }

    /// Its length in bytes.
    pub fn len(self) -> u64 {
        self.end.0 - self.start.0
    }

    /// Whether it holds no byte.
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// Whether `at` lies inside.
    pub fn contains(self, at: Lsn) -> bool {
        self.start <= at && at < self.end
    }

    /// What both ranges hold, if anything.
    pub fn intersect(self, other: LsnRange) -> Option<LsnRange> {
        let (start, end) = (self.start.max(other.start), self.end.min(other.end));
        (start < end).then_some(LsnRange { start, end })
    }
}

impl fmt::Display for LsnRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// A timeline number; the first is 1. Printed as PostgreSQL does in messages, in decimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TimelineId(pub u32);

impl TimelineId {
    /// The timeline of a fresh cluster.
    pub const FIRST: TimelineId = TimelineId(1);

    /// The name of its history file, `00000002.history`.
    pub fn history_file_name(self) -> String {
        format!("{:08X}.history", self.0)
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_and_parses_as_postgres_does() {
        for (text, value) in [("0/0", 0), ("0/16B3748", 0x16B_3748), ("1A/FF000000", 0x1A_FF00_0000)] {
            assert_eq!(text.parse::<Lsn>().unwrap(), Lsn::new(value));
            assert_eq!(Lsn::new(value).to_string(), text);
        }
    }

    #[test]
    fn refuses_what_is_not_an_lsn() {
        for text in ["", "0", "/", "0/", "/0", "x/1", "0/123456789", "+1/0", "0/1/2", " 0/1"] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn intersects_ranges() {
        let range = |a, b| LsnRange::new(Lsn::new(a), Lsn::new(b));
        assert_eq!(range(0, 10).intersect(range(5, 20)), Some(range(5, 10)));
        assert_eq!(range(0, 10).intersect(range(10, 20)), None);
    }
}
