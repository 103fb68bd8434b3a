//! Moments as people write them: as PostgreSQL prints them, RFC 3339, or `10 minutes ago`. Pure: the time now and the
//! local zone are arguments. Microseconds are kept. A time that a clock showed twice, or never, is refused, not guessed.

use crate::base::Timestamp;
use jiff::SignedDuration;
use jiff::civil::DateTime;
use jiff::fmt::friendly::SpanParser;
use jiff::tz::{AmbiguousOffset, Offset, TimeZone};
use std::fmt;

const SECONDS_PER_DAY: i64 = 86_400;

/// Zone abbreviations that mean one offset wherever PostgreSQL's default set is used, in seconds east of UTC. What means
/// different offsets in different places (`IST`, `CST`, `BST`) is understood in a zone that uses it, and refused elsewhere.
const ABBREVIATIONS: &[(&str, i32)] = &[
    ("UTC", 0),
    ("UT", 0),
    ("GMT", 0),
    ("Z", 0),
    ("WET", 0),
    ("WEST", 3600),
    ("CET", 3600),
    ("CEST", 7200),
    ("EET", 7200),
    ("EEST", 10_800),
    ("MSK", 10_800),
    ("EST", -18_000),
    ("EDT", -14_400),
    ("MST", -25_200),
    ("MDT", -21_600),
    ("PST", -28_800),
    ("PDT", -25_200),
    ("JST", 32_400),
    ("KST", 32_400),
    ("NZST", 43_200),
    ("NZDT", 46_800),
];

/// A moment that was understood, and from what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// The moment.
    pub at: Timestamp,
    /// What was read into the text beyond what it says.
    pub reading: Reading,
}

/// How a moment was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading {
    /// It named its offset or zone.
    Exact,
    /// It named none: taken in this zone.
    Local {
        /// The zone's name.
        zone: String,
    },
    /// It counted back from now.
    Ago,
}

/// In UTC, with what was read into the text.
impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reading {
            Reading::Exact | Reading::Ago => write!(f, "{}", self.at),
            Reading::Local { zone } => {
                write!(f, "{} (no zone was given: taken as local time, {zone})", self.at)
            }
        }
    }
}

/// Why a text is no moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WhenError {
    /// It has another shape.
    #[error(
        "{found:?} is not a time, expected one like `2026-11-22 19:55:01.123456+00`, `2026-11-22T19:55:01Z` or `10 minutes ago`"
    )]
    Shape {
        /// The text as given.
        found: String,
    },
    /// The clock showed it twice.
    #[error("{found:?} happened twice in {zone}: at {earlier} and at {later}; name one of the two")]
    Twice {
        /// The text as given.
        found: String,
        /// The zone.
        zone: String,
        /// The first of the two.
        earlier: Timestamp,
        /// The second.
        later: Timestamp,
    },
    /// The clock skipped it.
    #[error("{found:?} never happened in {zone}: the clock was set forward past it")]
    Never {
        /// The text as given.
        found: String,
        /// The zone.
        zone: String,
    },
    /// Its zone is unknown, or means different offsets in different places.
    #[error(
        "{found:?}: zone {zone:?} is unknown or ambiguous; write an offset such as +01, or a name such as Europe/Berlin"
    )]
    Zone {
        /// The text as given.
        found: String,
        /// What stands where the zone should.
        zone: String,
    },
    /// PostgreSQL's times end at microseconds.
    #[error("{found:?} is more precise than a microsecond, which is the most PostgreSQL has")]
    TooPrecise {
        /// The text as given.
        found: String,
    },
    /// `10 minutes` without `ago`, or `-10 minutes ago`.
    #[error("{found:?} does not lie in the past; write `… ago`")]
    NotPast {
        /// The text as given.
        found: String,
    },
    /// Months and years have no fixed length.
    #[error("{found:?}: months and years differ in length; count in weeks, days, hours, minutes or seconds")]
    Calendar {
        /// The text as given.
        found: String,
    },
}

/// Understands `text`. `local` is the zone of times that name none.
pub fn parse(text: &str, now: Timestamp, local: &TimeZone) -> Result<Moment, WhenError> {
    let trimmed = text.trim();
    if trimmed.eq_ignore_ascii_case("now") {
        return Ok(Moment { at: now, reading: Reading::Ago });
    }
    match split(trimmed) {
        Some((date, time, zone)) => clock_time(text, date, time, zone, local),
        None => ago(text, trimmed, now),
    }
}

/// `2026-11-22 19:55:01.5 +01` as date, time and zone, by shape alone. A date alone is its midnight, as in PostgreSQL.
fn split(text: &str) -> Option<(&str, &str, &str)> {
    let date = text.get(..10)?;
    let shape = |(i, b): (usize, u8)| if matches!(i, 4 | 7) { b == b'-' } else { b.is_ascii_digit() };
    if !date.bytes().enumerate().all(shape) {
        return None;
    }
    let rest = text.get(10..)?;
    if rest.is_empty() {
        return Some((date, "00:00:00", ""));
    }
    let rest = rest.strip_prefix([' ', 'T', 't'])?.trim_start();
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != ':' && c != '.').unwrap_or(rest.len());
    let (time, zone) = rest.split_at(end);
    (time.len() >= 5).then_some((date, time, zone.trim()))
}

fn clock_time(text: &str, date: &str, time: &str, zone: &str, local: &TimeZone) -> Result<Moment, WhenError> {
    let found = || text.to_owned();
    let bad_shape = || WhenError::Shape { found: found() };
    if time.split_once('.').is_some_and(|(_, digits)| digits.trim_end_matches('0').len() > 6) {
        return Err(WhenError::TooPrecise { found: found() });
    }
    // jiff reads second 60 as 59; PostgreSQL never prints it.
    if time.split(':').nth(2).is_some_and(|second| second.starts_with("60")) {
        return Err(bad_shape());
    }
    let civil: DateTime = format!("{date}T{time}").parse().map_err(|_| bad_shape())?;
    let exact = |at| Moment { at, reading: Reading::Exact };
    if zone.is_empty() {
        let name = zone_name(local);
        let at = in_zone(text, civil, local)?;
        return Ok(Moment { at, reading: Reading::Local { zone: name } });
    }
    if zone.starts_with(['+', '-']) {
        let offset = offset(zone).ok_or_else(|| WhenError::Zone { found: found(), zone: zone.to_owned() })?;
        return at_offset(civil, offset).map(exact).ok_or_else(bad_shape);
    }
    if let Some(at) = by_abbreviation(civil, zone, local) {
        return Ok(exact(at));
    }
    let known = ABBREVIATIONS.iter().find(|(name, _)| name.eq_ignore_ascii_case(zone));
    if let Some(offset) = known.and_then(|(_, seconds)| Offset::from_seconds(*seconds).ok()) {
        return at_offset(civil, offset).map(exact).ok_or_else(bad_shape);
    }
    match TimeZone::get(zone) {
        Ok(named) if zone.contains('/') => in_zone(text, civil, &named).map(exact),
        _ => Err(WhenError::Zone { found: found(), zone: zone.to_owned() }),
    }
}

/// `+05`, `-03:30`, `+0530`, `+00:53:28`, as PostgreSQL prints offsets.
fn offset(text: &str) -> Option<Offset> {
    let sign = if text.starts_with('-') { -1 } else { 1 };
    let digits: String = match text.get(1..)? {
        plain if plain.bytes().all(|b| b.is_ascii_digit()) && matches!(plain.len(), 2 | 4) => {
            plain.to_owned()
        }
        colons if colons.split(':').all(|part| part.len() == 2) => colons.replace(':', ""),
        _ => return None,
    };
    let part = |at: usize| match digits.get(at..at + 2) {
        Some(two) => two.parse::<i32>().ok(),
        None => Some(0),
    };
    let (hours, minutes, seconds) = (part(0)?, part(2)?, part(4)?);
    if digits.len() > 6 || hours > 15 || minutes > 59 || seconds > 59 {
        return None;
    }
    Offset::from_seconds(sign * (hours * 3600 + minutes * 60 + seconds)).ok()
}

fn at_offset(civil: DateTime, offset: Offset) -> Option<Timestamp> {
    let at = offset.to_timestamp(civil).ok()?;
    Some(Timestamp::from_unix_micros(at.as_microsecond()))
}

/// The moment at which a clock in `zone` showed `civil` while the zone was called `abbreviation`.
fn by_abbreviation(civil: DateTime, abbreviation: &str, zone: &TimeZone) -> Option<Timestamp> {
    let offsets = match zone.to_ambiguous_timestamp(civil).offset() {
        AmbiguousOffset::Unambiguous { offset } => vec![offset],
        AmbiguousOffset::Gap { before, after } | AmbiguousOffset::Fold { before, after } => {
            vec![before, after]
        }
    };
    offsets.into_iter().find_map(|offset| {
        let at = offset.to_timestamp(civil).ok()?;
        let info = zone.to_offset_info(at);
        let same = info.offset() == offset && info.abbreviation().eq_ignore_ascii_case(abbreviation);
        same.then(|| Timestamp::from_unix_micros(at.as_microsecond()))
    })
}

fn in_zone(text: &str, civil: DateTime, zone: &TimeZone) -> Result<Timestamp, WhenError> {
    let found = || text.to_owned();
    let at = |offset| at_offset(civil, offset).ok_or_else(|| WhenError::Shape { found: found() });
    match zone.to_ambiguous_timestamp(civil).offset() {
        AmbiguousOffset::Unambiguous { offset } => at(offset),
        AmbiguousOffset::Gap { .. } => Err(WhenError::Never { found: found(), zone: zone_name(zone) }),
        AmbiguousOffset::Fold { before, after } => Err(WhenError::Twice {
            found: found(),
            zone: zone_name(zone),
            earlier: at(before)?,
            later: at(after)?,
        }),
    }
}

fn zone_name(zone: &TimeZone) -> String {
    match zone.iana_name() {
        Some(name) => name.to_owned(),
        None if *zone == TimeZone::UTC => "UTC".to_owned(),
        None => "the zone of this machine".to_owned(),
    }
}

fn ago(text: &str, trimmed: &str, now: Timestamp) -> Result<Moment, WhenError> {
    let found = || text.to_owned();
    let span = SpanParser::new().parse_span(trimmed).map_err(|_| WhenError::Shape { found: found() })?;
    if span.get_years() != 0 || span.get_months() != 0 {
        return Err(WhenError::Calendar { found: found() });
    }
    let days = i64::from(span.get_weeks()) * 7 + i64::from(span.get_days());
    let rest = span.weeks(0).days(0);
    let passed = SignedDuration::try_from(rest)
        .ok()
        .and_then(|rest| rest.checked_add(SignedDuration::from_secs(days * SECONDS_PER_DAY)))
        .ok_or_else(|| WhenError::Shape { found: found() })?;
    let micros = i64::try_from(passed.as_micros()).map_err(|_| WhenError::Shape { found: found() })?;
    if micros >= 0 {
        return Err(WhenError::NotPast { found: found() });
    }
    Ok(Moment { at: now.saturating_add_micros(micros), reading: Reading::Ago })
}

#[cfg(test)]
mod tests;
