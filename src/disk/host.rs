//! Time and chance of the host: the only clock and the only random numbers outside of tests.

use crate::base::{Clock, Entropy, Timestamp};
use std::time::{SystemTime, UNIX_EPOCH};

/// The host's time of day. It may step; nothing that decides what is kept rests on it alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let micros = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |micros| -micros),
        };
        Timestamp::from_unix_micros(micros)
    }
}

/// The operating system's random numbers.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsEntropy;

impl Entropy for OsEntropy {
    /// Panics when the operating system has no random numbers: a salt that is not random would break every seal.
    fn fill(&self, buffer: &mut [u8]) {
        if let Err(error) = getrandom::fill(buffer) {
            panic!("the operating system gives no random numbers: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::random_bytes;

    #[test]
    fn the_clock_is_in_this_century() {
        let now = SystemClock.now();
        assert!(now > Timestamp::from_micros(0) && now < Timestamp::from_unix_micros(4_102_444_800_000_000));
    }

    #[test]
    fn random_bytes_differ() {
        assert_ne!(random_bytes::<32>(&OsEntropy), random_bytes::<32>(&OsEntropy));
    }
}
