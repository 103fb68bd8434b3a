//! Moments of a cluster whose server was upgraded.

use super::*;
use crate::base::{BackupId, LsnRange, TimelineId};

fn part(start: i64, end: i64, range: (u64, u64)) -> WindowPart {
    let at = Timestamp::from_micros;
    WindowPart {
        backup: BackupId::at(at(start)),
        range: LsnRange::new(Lsn::new(range.0), Lsn::new(range.1)),
        start: at(start),
        end: at(end),
    }
}

fn of(generation: u32, parts: Vec<WindowPart>) -> Restorable {
    let window = Window { timeline: TimelineId(1), parts };
    Restorable { generation: Generation(generation), major_version: 13 + generation, window }
}

/// Newest first: generation 3 has no backup yet, 2 can be restored from 200 to 300, 1 from 100 to 150 with a gap.
fn all() -> Vec<Restorable> {
    vec![
        of(3, Vec::new()),
        of(2, vec![part(200, 300, (5000, 6000))]),
        of(1, vec![part(100, 110, (1000, 1100)), part(120, 150, (1200, 5000))]),
    ]
}

fn reason<T: std::fmt::Debug>(result: Result<T, Refused>) -> String {
    match result.unwrap_err() {
        Refused::Outside { reason, .. } | Refused::Ambiguous(reason) => reason,
    }
}

#[test]
fn a_moment_belongs_to_the_server_that_there_was() {
    let all = all();
    let by = |time| by_time(&all, Timestamp::from_micros(time));
    for (time, expected) in [(100, 2), (115, 2), (150, 2), (200, 1), (300, 1), (50, 2)] {
        assert_eq!(by(time).ok(), Some(expected), "{time}");
    }
}

#[test]
fn a_moment_between_two_servers_names_both() {
    let all = all();
    let between = reason(by_time(&all, Timestamp::from_micros(180)));
    assert!(between.contains("the end of generation 1 (PostgreSQL 14)"), "{between}");
    assert!(between.contains("generation 2 (PostgreSQL 15), whose first complete backup"), "{between}");
    let after = reason(by_time(&all, Timestamp::from_micros(301)));
    assert!(
        after.contains("generation 2") && after.contains("generation 3 (PostgreSQL 16), which has no"),
        "{after}"
    );
}

#[test]
fn a_position_that_two_servers_had_is_not_guessed() {
    let all = all();
    assert_eq!(by_lsn(&all, Lsn::new(1000)).ok(), Some(2));
    assert_eq!(by_lsn(&all, Lsn::new(5500)).ok(), Some(1));
    assert_eq!(
        by_lsn(&all, Lsn::new(9000)).ok(),
        Some(1),
        "the newest that can be restored says that it is outside"
    );
    let both = reason(by_lsn(&all, Lsn::new(5000)));
    assert!(both.contains("generation 2") && both.contains("generation 1"), "{both}");
}

#[test]
fn the_latest_moment_is_never_one_of_an_older_server() {
    let all = all();
    let refused = reason(newest_only(&all));
    assert!(refused.contains("generation 3 (PostgreSQL 16), which has no complete backup yet"), "{refused}");
    assert!(refused.contains("generation 2 (PostgreSQL 15) can be restored up to"), "{refused}");
    assert_eq!(newest_only(&all[1..]).ok(), Some(0));
    assert_eq!(newest_only(&all[..1]).ok(), Some(0), "with nothing anywhere the newest says so");
}
