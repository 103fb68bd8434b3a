//! The machine's promises, one test each.

use super::*;

fn cut() -> Cut {
    Cut { bytes_max: 100, interval: Duration::from_secs(1), in_flight_max: 2, ..Cut::default() }
}

/// A machine at 1000 whose number 0 is durable.
fn machine(mode: AckMode) -> Machine {
    let mut machine = Machine::new(cut(), mode, Lsn::new(1000), 0, Timestamp::MIN, Duration::ZERO);
    let first = machine.take_flush(Duration::ZERO, false).expect("number 0 leaves at once");
    assert!(first.range.is_empty());
    machine.on_durable(0);
    machine
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn wal(machine: &mut Machine, len: usize, now: Duration) {
    let at = machine.received();
    machine.on_wal(at, Bytes::from(vec![7; len]), now).unwrap();
}

#[test]
fn acknowledges_only_the_contiguous_prefix() {
    let mut machine = machine(AckMode::Object);
    wal(&mut machine, 250, secs(0));
    let (one, two) =
        (machine.take_flush(secs(0), false).unwrap(), machine.take_flush(secs(0), false).unwrap());
    assert_eq!((one.number, two.number), (1, 2));
    assert!(machine.take_flush(secs(9), true).is_none(), "two in flight are the most");
    machine.on_durable(2);
    assert_eq!(machine.acknowledged().flush, Lsn::new(1000));
    machine.on_durable(1);
    assert_eq!(machine.acknowledged(), Acknowledged { write: Lsn::new(1200), flush: Lsn::new(1200) });
}

#[test]
fn leaves_by_size_by_age_and_on_request() {
    let mut machine = machine(AckMode::Object);
    wal(&mut machine, 10, secs(5));
    assert!(machine.take_flush(secs(5), false).is_none());
    assert_eq!(machine.deadline(), Some(secs(6)));
    assert_eq!(machine.take_flush(secs(6), false).unwrap().range.len(), 10);
    wal(&mut machine, 10, secs(6));
    machine.on_reply_requested();
    assert_eq!(machine.take_flush(secs(6), false).unwrap().range.len(), 10);
}

#[test]
fn with_interval_zero_the_next_object_waits_for_the_last() {
    let cut = Cut { interval: Duration::ZERO, ..cut() };
    let mut machine = Machine::new(cut, AckMode::Object, Lsn::new(0), 0, Timestamp::MIN, secs(0));
    assert!(machine.take_flush(secs(0), false).is_some());
    wal(&mut machine, 10, secs(0));
    assert!(machine.take_flush(secs(0), false).is_none());
    machine.on_durable(0);
    assert_eq!(machine.take_flush(secs(0), false).unwrap().range.len(), 10);
}

#[test]
fn refuses_a_hole_and_leaves_out_what_it_has() {
    let mut machine = machine(AckMode::Object);
    wal(&mut machine, 10, secs(0));
    let error = machine.on_wal(Lsn::new(1011), Bytes::from_static(b"x"), secs(0)).unwrap_err();
    assert_eq!(error, Hole { expected: Lsn::new(1010), found: Lsn::new(1011) });
    machine.on_wal(Lsn::new(1005), Bytes::from_static(b"oldold"), secs(0)).unwrap();
    assert_eq!(machine.received(), Lsn::new(1011));
    machine.on_wal(Lsn::new(1000), Bytes::from_static(b"old"), secs(0)).unwrap();
    assert_eq!(machine.received(), Lsn::new(1011));
}

#[test]
fn dates_an_object_by_the_newest_position_it_covers() {
    let mut machine = machine(AckMode::Object);
    let time = Timestamp::from_micros;
    machine.on_server_position(Lsn::new(1010), time(1));
    machine.on_server_position(Lsn::new(1010), time(2));
    machine.on_server_position(Lsn::new(5000), time(3));
    wal(&mut machine, 10, secs(0));
    assert_eq!(machine.take_flush(secs(1), false).unwrap().server_time, time(2));
    wal(&mut machine, 10, secs(1));
    assert_eq!(machine.take_flush(secs(2), false).unwrap().server_time, time(2), "5000 is not covered yet");
}

#[test]
fn a_clock_set_back_does_not_take_the_window_back() {
    let mut machine = machine(AckMode::Object);
    let time = Timestamp::from_micros;
    machine.on_server_position(Lsn::new(1010), time(100));
    machine.on_server_position(Lsn::new(1010), time(50));
    wal(&mut machine, 10, secs(0));
    assert_eq!(machine.take_flush(secs(1), false).unwrap().server_time, time(100));
}

#[test]
fn an_idle_stream_beats_once_a_minute_when_the_server_was_heard() {
    let mut machine = machine(AckMode::Object);
    assert!(machine.take_flush(secs(61), false).is_none(), "nothing was heard");
    assert_eq!(machine.deadline(), None, "and time alone changes nothing");
    machine.on_server_position(Lsn::new(1000), Timestamp::from_micros(9));
    assert!(machine.take_flush(secs(59), false).is_none());
    let beat = machine.take_flush(secs(60), false).unwrap();
    assert!(beat.range.is_empty());
    assert_eq!(beat.server_time, Timestamp::from_micros(9));
    assert!(machine.take_flush(secs(200), false).is_none(), "one is in flight");
}

#[test]
fn journal_mode_acknowledges_what_is_synced() {
    let mut machine = machine(AckMode::Journal);
    wal(&mut machine, 50, secs(0));
    assert_eq!(machine.acknowledged().flush, Lsn::new(1000));
    machine.on_journaled(Lsn::new(1030));
    assert_eq!(machine.acknowledged().flush, Lsn::new(1030));
}

#[test]
fn takes_no_more_than_the_buffer_allows() {
    let cut = Cut { buffered_bytes_max: 150, ..cut() };
    let mut machine = Machine::new(cut, AckMode::Object, Lsn::new(0), 1, Timestamp::MIN, secs(0));
    wal(&mut machine, 100, secs(0));
    assert!(machine.has_room());
    assert!(machine.take_flush(secs(0), false).is_some());
    wal(&mut machine, 60, secs(0));
    assert!(!machine.has_room(), "in flight counts");
    machine.on_durable(1);
    assert!(machine.has_room());
}
