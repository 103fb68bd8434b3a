//! Which events are shown, and the targets printed for them.

use super::*;

fn event(kind: EventKind, second: i64) -> Event {
    Event {
        lsn: Lsn::new(0x100_0000),
        end: Lsn::new(0x100_0100),
        kind,
        xid: 737,
        time: Timestamp::from_micros(second * 1_000_000),
        database: 5,
        relation_count: 2,
        relations: vec![RelationRef { tablespace: 1663, database: 5, relation: 16_385 }],
        name: "before it's gone".into(),
        redo: Lsn::ZERO,
    }
}

const ALL: [EventKind; 12] = [
    EventKind::CheckpointShutdown,
    EventKind::CheckpointOnline,
    EventKind::CheckpointRedo,
    EventKind::RestorePoint,
    EventKind::Drop,
    EventKind::DropIndex,
    EventKind::Truncate,
    EventKind::Rewrite,
    EventKind::CreateDatabase,
    EventKind::DropDatabase,
    EventKind::EndOfRecovery,
    EventKind::ParameterChange,
];

fn shown(options: &LogOptions) -> Vec<&'static str> {
    ALL.into_iter().filter(|kind| wanted(&event(*kind, 0), options)).map(kind_name).collect()
}

#[test]
fn drops_are_what_is_gone_and_not_what_was_rewritten() {
    let drops = LogOptions { drops: true, ..LogOptions::default() };
    assert_eq!(shown(&drops), ["drop", "truncate", "drop_database"]);
    assert_eq!(shown(&LogOptions { all: true, ..drops }), shown(&drops));
}

#[test]
fn checkpoints_and_rewrites_are_shown_on_demand() {
    let usual = shown(&LogOptions::default());
    assert!(
        !usual.contains(&"checkpoint") && !usual.contains(&"rewrite") && usual.contains(&"restore_point")
    );
    assert_eq!(shown(&LogOptions { all: true, ..LogOptions::default() }).len(), ALL.len());
}

#[test]
fn a_time_or_a_transaction_narrows() {
    let around = |second: i64| {
        let time = Some(Timestamp::from_micros(0));
        wanted(&event(EventKind::Drop, second), &LogOptions { around: time, ..LogOptions::default() })
    };
    // An event before the first commit has no time.
    let timeless = Event { time: Timestamp::MIN, ..event(EventKind::Drop, 0) };
    assert!(!wanted(
        &timeless,
        &LogOptions { around: Some(Timestamp::from_micros(0)), ..LogOptions::default() }
    ));
    assert!(around(-600) && around(600) && !around(601) && !around(-601));
    let of =
        |xid| wanted(&event(EventKind::Drop, 0), &LogOptions { xid: Some(xid), ..LogOptions::default() });
    assert!(of(737) && !of(738));
}

fn entry(kind: EventKind, timeline: u32) -> Entry {
    let mut found = Found { current: TimelineId(2), entries: BTreeMap::new() };
    found.event(TimelineId(timeline), &event(kind, 0));
    found.entries.into_values().next().unwrap()
}

#[test]
fn targets_can_be_pasted() {
    let drop = entry(EventKind::Drop, 2);
    assert_eq!(
        (drop.restore_before.as_str(), drop.restore_after.as_str()),
        ("--to-lsn 0/1000000", "--to-lsn 0/1000100")
    );
    assert_eq!(drop.relations, ["1663/5/16385"]);
    let point = entry(EventKind::RestorePoint, 2);
    assert_eq!(point.restore_after, "--to-name 'before it'\\''s gone'");
    assert_eq!(entry(EventKind::Drop, 3).restore_before, "--to-lsn 0/1000000 --timeline 3");
}

#[test]
fn people_see_what_is_gone() {
    let log = Log {
        cluster: "shop".into(),
        entries: vec![entry(EventKind::Drop, 2)],
        left_out: 0,
        unread: Vec::new(),
    };
    let text = log.to_string();
    assert!(text.contains("737  drop of 2 files (1663/5/16385, …)"), "{text}");
    assert!(text.contains("--to-lsn 0/1000000"), "{text}");
}
