//! Durations and sizes as operators write them: `500ms`, `1h 30m`, `64MiB`, `16MB`. Pure.
//! Units of size are powers of 1024 in either spelling, as in postgresql.conf.

use jiff::SignedDuration;
use jiff::fmt::friendly::SpanParser;
use std::fmt;
use std::time::Duration;

/// A duration of at least 0: `0`, `500ms`, `30 minutes`, `1d 12h`. `None` for anything else, months and years included.
pub fn duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let span = SpanParser::new().parse_span(text).ok()?;
    if span.get_years() != 0 || span.get_months() != 0 || span.is_negative() {
        return None;
    }
    let days = i64::from(span.get_weeks()) * 7 + i64::from(span.get_days());
    let rest = SignedDuration::try_from(span.weeks(0).days(0)).ok()?;
    Duration::try_from(rest.checked_add(SignedDuration::from_hours(days * 24))?).ok()
}

/// A number of bytes: `4096`, `64MiB`, `16 MB`, `1g`. `None` for anything else.
pub fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// What PostgreSQL takes as the name of a replication slot, for error messages.
pub const SLOT_NAME: &str = "a slot's name: 1 to 63 of a-z, 0-9 and _";

/// The name of a replication slot. `None` for one that PostgreSQL would refuse.
pub fn slot_name(text: &str) -> Option<String> {
    let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    ((1..=63).contains(&text.len()) && text.bytes().all(known)).then(|| text.to_owned())
}

/// Bytes for people: `1.5 GiB`, with one decimal from a KiB on.
#[derive(Debug, Clone, Copy)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = ["KiB", "MiB", "GiB", "TiB", "PiB"];
        if self.0 < 1024 {
            return f.pad(&format!("{} B", self.0));
        }
        let mut value = self.0 as f64 / 1024.0;
        let mut unit = 0;
        while value >= 1023.95 && unit + 1 < units.len() {
            value /= 1024.0;
            unit += 1;
        }
        f.pad(&format!("{value:.1} {}", units.get(unit).copied().unwrap_or("PiB")))
    }
}

/// A duration for people: `840 ms`, `12.3 s`, `5 min 2 s`, `3 h 20 min`, `2 d 4 h`.
#[derive(Debug, Clone, Copy)]
pub struct Span(pub Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let text = match seconds {
            0 => format!("{} ms", self.0.as_millis()),
            1..60 => format!("{:.1} s", self.0.as_secs_f64()),
            60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
            3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
            _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
        };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_durations() {
        for (text, millis) in [
            ("0", 0),
            ("500ms", 500),
            ("1s", 1000),
            ("30 minutes", 1_800_000),
            ("1d 12h", 129_600_000),
            ("24h", 86_400_000),
        ] {
            assert_eq!(duration(text), Some(Duration::from_millis(millis)), "{text:?}");
        }
        for text in ["", "1", "-1s", "1 month", "1y", "5 apples", "1s ago", "9999999999999999999s"] {
            assert_eq!(duration(text), None, "{text:?}");
        }
    }

    #[test]
    fn knows_what_a_slot_may_be_called() {
        for name in ["walden_shop", "a", "1", &"x".repeat(63)] {
            assert_eq!(slot_name(name).as_deref(), Some(name));
        }
        for name in ["", "walden-shop", "Shop", "a b", "ä", &"x".repeat(64)] {
            assert_eq!(slot_name(name), None, "{name:?}");
        }
    }

    #[test]
    fn reads_sizes() {
        for (text, size) in
            [("0", 0), ("4096", 4096), ("64MiB", 64 << 20), ("16 MB", 16 << 20), ("1g", 1 << 30)]
        {
            assert_eq!(bytes(text), Some(size), "{text:?}");
        }
        for text in ["", "MB", "1.5GB", "-1", "1 MBit", "99999999999999999999", "18446744073709551615k"] {
            assert_eq!(bytes(text), None, "{text:?}");
        }
    }

    #[test]
    fn shows_both_to_people() {
        for (size, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(Bytes(size).to_string(), text);
        }
        for (millis, text) in [
            (840, "840 ms"),
            (12_340, "12.3 s"),
            (302_000, "5 min 2 s"),
            (12_000_000, "3 h 20 min"),
            (187_200_000, "2 d 4 h"),
        ] {
            assert_eq!(Span(Duration::from_millis(millis)).to_string(), text);
        }
    }
}
