//! What people paste, in zones with hostile clocks.

use super::*;

fn now() -> Timestamp {
    utc("2026-11-22 20:00:00+00")
}

fn utc(text: &str) -> Timestamp {
    parse(text, Timestamp::from_micros(0), &TimeZone::UTC).unwrap().at
}

fn berlin() -> TimeZone {
    TimeZone::get("Europe/Berlin").unwrap()
}

fn read(text: &str) -> String {
    parse(text, now(), &berlin()).unwrap().at.to_string()
}

#[test]
fn reads_what_postgres_prints() {
    for (text, expected) in [
        ("2026-11-22 19:55:01.123456+00", "2026-11-22 19:55:01.123456+00"),
        ("2026-11-22 19:55:01+00", "2026-11-22 19:55:01.000000+00"),
        ("2026-11-22 20:55:01.5+01", "2026-11-22 19:55:01.500000+00"),
        ("2026-11-23 01:25:01.000001+05:30", "2026-11-22 19:55:01.000001+00"),
        ("2026-11-22 16:25:01-03:30", "2026-11-22 19:55:01.000000+00"),
        ("1890-01-01 00:53:28+00:53:28", "1890-01-01 00:00:00.000000+00"),
        ("2026-11-22 19:55:01.123 UTC", "2026-11-22 19:55:01.123000+00"),
        ("2026-11-22 20:55:01.123 CET", "2026-11-22 19:55:01.123000+00"),
        ("2026-07-01 21:55:01 CEST", "2026-07-01 19:55:01.000000+00"),
        ("2026-11-22 14:55:01 EST", "2026-11-22 19:55:01.000000+00"),
        ("  2026-11-22 19:55:01+00  ", "2026-11-22 19:55:01.000000+00"),
    ] {
        assert_eq!(read(text), expected, "{text:?}");
        assert_eq!(parse(text, now(), &berlin()).unwrap().reading, Reading::Exact);
    }
}

#[test]
fn reads_rfc_3339() {
    for text in [
        "2026-11-22T19:55:01Z",
        "2026-11-22t19:55:01.000z",
        "2026-11-22T20:55:01+01:00",
        "2026-11-22T19:55:01.000000000Z",
    ] {
        assert_eq!(read(text), "2026-11-22 19:55:01.000000+00", "{text:?}");
    }
}

#[test]
fn prints_what_it_reads() {
    for micros in [0, 1, -1, 999_999, 848_692_501_123_456, -3_471_000_000_000_001] {
        let at = Timestamp::from_micros(micros);
        assert_eq!(utc(&at.to_string()), at);
    }
}

#[test]
fn a_time_without_zone_is_local_and_says_so() {
    let moment = parse("2026-07-01 12:00", now(), &berlin()).unwrap();
    assert_eq!(moment.at, utc("2026-07-01 10:00:00+00"));
    assert_eq!(
        moment.to_string(),
        "2026-07-01 10:00:00.000000+00 (no zone was given: taken as local time, Europe/Berlin)"
    );
    assert_eq!(read("2026-11-22"), "2026-11-21 23:00:00.000000+00");
}

#[test]
fn the_hour_that_comes_twice_is_refused_unless_named() {
    let twice = parse("2026-10-25 02:30:00", now(), &berlin()).unwrap_err();
    assert_eq!(
        twice.to_string(),
        "\"2026-10-25 02:30:00\" happened twice in Europe/Berlin: at 2026-10-25 00:30:00.000000+00 and at \
         2026-10-25 01:30:00.000000+00; name one of the two"
    );
    assert_eq!(read("2026-10-25 02:30:00 CEST"), "2026-10-25 00:30:00.000000+00");
    assert_eq!(read("2026-10-25 02:30:00 CET"), "2026-10-25 01:30:00.000000+00");
    assert_eq!(read("2026-10-25 02:30:00+02"), "2026-10-25 00:30:00.000000+00");
    let named = parse("2026-10-25 02:30:00 Europe/Paris", now(), &TimeZone::UTC);
    assert!(matches!(named, Err(WhenError::Twice { .. })));
}

#[test]
fn the_hour_that_never_comes_is_refused() {
    assert!(matches!(parse("2026-03-29 02:30:00", now(), &berlin()), Err(WhenError::Never { .. })));
}

#[test]
fn an_abbreviation_of_many_meanings_needs_its_zone() {
    let kolkata = TimeZone::get("Asia/Kolkata").unwrap();
    let chicago = TimeZone::get("America/Chicago").unwrap();
    let at = |zone: &TimeZone, text: &str| parse(text, now(), zone).map(|moment| moment.at.to_string());
    assert_eq!(at(&kolkata, "2026-11-23 01:25:01 IST").unwrap(), "2026-11-22 19:55:01.000000+00");
    assert_eq!(at(&chicago, "2026-11-22 13:55:01 CST").unwrap(), "2026-11-22 19:55:01.000000+00");
    for text in [
        "2026-11-23 01:25:01 IST",
        "2026-11-22 13:55:01 CST",
        "2026-07-01 12:00:00 BST",
        "2026-11-22 12:00 XYZ",
    ] {
        assert!(matches!(at(&berlin(), text), Err(WhenError::Zone { .. })), "{text:?}");
    }
}

#[test]
fn counts_back_from_now() {
    for (text, expected) in [
        ("10 minutes ago", "2026-11-22 19:50:00.000000+00"),
        ("1 hour 30 minutes ago", "2026-11-22 18:30:00.000000+00"),
        ("90s ago", "2026-11-22 19:58:30.000000+00"),
        ("2 days ago", "2026-11-20 20:00:00.000000+00"),
        ("1 week ago", "2026-11-15 20:00:00.000000+00"),
        ("now", "2026-11-22 20:00:00.000000+00"),
    ] {
        assert_eq!(read(text), expected, "{text:?}");
    }
    assert!(matches!(parse("10 minutes", now(), &berlin()), Err(WhenError::NotPast { .. })));
    assert!(matches!(parse("1 month ago", now(), &berlin()), Err(WhenError::Calendar { .. })));
}

#[test]
fn refuses_everything_else() {
    for text in [
        "",
        "yesterday",
        "infinity",
        "22.11.2026 19:55",
        "11/22/2026 19:55",
        "2026-11-22 19",
        "2026-11-22 24:00:00",
        "2026-11-22 23:59:60+00",
        "2026-13-01 00:00:00+00",
        "2026-02-30 00:00:00+00",
        "2026-11-22x19:55:01Z",
        "2026-11-22 19:55:01+00 BC",
        "2026-11-22 19:55:01+99",
        "2026-11-22 19:55:01+1",
        "2026-11-22 19:55:01+00:00:00:00",
        "2026-11-22 19:55:01.+00",
        "99999999999999999999 weeks ago",
        "2026-11-2\u{fe}",
    ] {
        let read = parse(text, now(), &berlin());
        assert!(read.is_err(), "{text:?} was read as {read:?}");
    }
    assert!(matches!(
        parse("2026-11-22 19:55:01.1234567+00", now(), &berlin()),
        Err(WhenError::TooPrecise { .. })
    ));
}
