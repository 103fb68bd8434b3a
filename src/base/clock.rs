//! Time and chance, passed in. Nothing in this crate reads a clock or draws a random number but through these traits.

use super::scratch::Scratch;
use std::fmt;
use std::sync::Arc;

/// Microseconds since 2000-01-01 00:00:00 UTC, as PostgreSQL's `TimestampTz` (`datatype/timestamp.h`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

/// Microseconds from 1970-01-01 to 2000-01-01.
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800 * 1_000_000;

impl Timestamp {
    /// Before every moment.
    pub const MIN: Timestamp = Timestamp(i64::MIN);
    /// After every moment.
    pub const MAX: Timestamp = Timestamp(i64::MAX);

    /// The moment `micros` microseconds after 2000-01-01 UTC.
    pub const fn from_micros(micros: i64) -> Self {
        Timestamp(micros)
    }

    /// Microseconds since 2000-01-01 UTC.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// The moment `micros` microseconds after 1970-01-01 UTC.
    pub fn from_unix_micros(micros: i64) -> Self {
        Timestamp(micros.saturating_sub(POSTGRES_EPOCH_MICROS))
    }

    /// Microseconds since 1970-01-01 UTC.
    pub fn unix_micros(self) -> i64 {
        self.0.saturating_add(POSTGRES_EPOCH_MICROS)
    }

    /// `self + micros`, stopping at the ends.
    pub fn saturating_add_micros(self, micros: i64) -> Self {
        Timestamp(self.0.saturating_add(micros))
    }

    /// Microseconds from `earlier` to `self`; negative when `earlier` is later.
    pub fn micros_since(self, earlier: Timestamp) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// RFC 3339 in UTC with microseconds, `2026-11-22 19:55:01.123456+00`, the way PostgreSQL prints it under `timezone = UTC`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_microsecond(self.unix_micros()) {
            Ok(time) => write!(f, "{}+00", time.strftime("%Y-%m-%d %H:%M:%S.%6f")),
            Err(_) if self.0 < 0 => f.write_str("-infinity"),
            Err(_) => f.write_str("infinity"),
        }
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where the time of day comes from.
pub trait Clock: Send + Sync + fmt::Debug {
    /// The time now.
    fn now(&self) -> Timestamp;
}

/// Where salts, ids and key material come from.
pub trait Entropy: Send + Sync + fmt::Debug {
    /// Fills `buffer` with random bytes.
    fn fill(&self, buffer: &mut [u8]);
}

/// Time, chance and room together, for what needs them.
#[derive(Debug, Clone)]
pub struct Env {
    /// The time of day.
    pub clock: Arc<dyn Clock>,
    /// Salts, ids and key material.
    pub entropy: Arc<dyn Entropy>,
    /// Room for pages that WAL deltas refer to.
    pub scratch: Arc<dyn Scratch>,
}

/// `N` random bytes.
pub fn random_bytes<const N: usize>(entropy: &dyn Entropy) -> [u8; N] {
    let mut bytes = [0; N];
    entropy.fill(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_postgres_does_in_utc() {
        assert_eq!(Timestamp::from_micros(0).to_string(), "2000-01-01 00:00:00.000000+00");
        assert_eq!(
            Timestamp::from_unix_micros(1_795_377_301_123_456).to_string(),
            "2026-11-22 19:55:01.123456+00"
        );
        assert_eq!(Timestamp::MAX.to_string(), "infinity");
    }
}
