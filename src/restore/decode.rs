//! The real [`WalScan`]: WAL of one path, read from wherever it is and decoded.
//!
//! A record that ends in a range may begin long before it: reading begins some way back, and further back when the first
//! record found there begins past the start of the range.

use super::error::RestoreError;
use super::scan::{Meaning, Seen, SourceLimits, Visit, WalScan};
use crate::base::{Lsn, LsnRange, SegmentSize};
use crate::wal::record::{RECORD_HEADER_BYTES, rmgr};
use crate::wal::scan::{RawRecord, Scanner, Sink};
use crate::wal::{DecodeFrom, Fact, Outcome, WalError};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Mutex;

/// How far back reading begins at first: longer than nearly every record.
const BACK_BYTES: u64 = 64 << 10;
/// Factor by which it goes further back.
const BACK_FACTOR: u64 = 8;
const PAGE_BYTES: u64 = crate::base::limits::BLOCK_BYTES as u64;

/// WAL bytes of one path, hole-free in runs.
#[async_trait]
pub trait PathBytes: Send {
    /// The start of the run that holds the byte at `at`.
    fn run_start(&self, at: Lsn) -> Option<Lsn>;

    /// Bytes from `range.start` on, at least one and at most up to `range.end`. Checked.
    async fn read_some(&mut self, range: LsnRange) -> Result<Bytes, RestoreError>;
}

/// Decodes what a [`PathBytes`] gives.
#[derive(Debug)]
pub struct Decoding<B> {
    bytes: Mutex<B>,
    segment_size: SegmentSize,
}

impl<B> Decoding<B> {
    /// Decodes `bytes`.
    pub fn new(bytes: B, segment_size: SegmentSize) -> Self {
        Decoding { bytes: Mutex::new(bytes), segment_size }
    }
}

#[async_trait]
impl<B: PathBytes> WalScan for Decoding<B> {
    async fn scan(&self, range: LsnRange, visit: &mut Visit<'_>) -> Result<(), RestoreError> {
        let mut bytes = self.bytes.lock().await;
        let Some(run_start) = bytes.run_start(range.start) else {
            return Err(undecodable(range, "not stored, though the index says so"));
        };
        let mut back = BACK_BYTES;
        loop {
            let from = range.start.saturating_sub(back).align_down(PAGE_BYTES).max(run_start);
            let mut pass =
                Pass { range, run_start: from == run_start, first: None, done: false, failed: None, visit };
            let mut scanner = Scanner::new(self.segment_size, from, DecodeFrom::Anywhere);
            while scanner.position() < range.end && !pass.is_over() {
                let at = scanner.position();
                let some = bytes.read_some(LsnRange::new(at, range.end)).await?;
                scanner.feed(at, &some, &mut pass);
            }
            if pass.began_too_late() || (pass.first.is_none() && from > run_start) {
                back = back.saturating_mul(BACK_FACTOR);
                continue;
            }
            return match pass.failed {
                Some(error) => Err(undecodable(range, &error.to_string())),
                None => Ok(()),
            };
        }
    }
}

fn undecodable(range: LsnRange, reason: &str) -> RestoreError {
    RestoreError::Damage { what: format!("WAL {range}"), reason: reason.to_owned() }
}

/// One reading of a range.
struct Pass<'a, 'b> {
    range: LsnRange,
    /// Nothing lies before what is read.
    run_start: bool,
    /// Start of the first record found.
    first: Option<Lsn>,
    done: bool,
    failed: Option<WalError>,
    visit: &'a mut Visit<'b>,
}

impl Pass<'_, '_> {
    fn is_over(&self) -> bool {
        self.done || self.failed.is_some() || self.began_too_late()
    }

    /// A record that ends in the range may begin before what was read.
    fn began_too_late(&self) -> bool {
        !self.run_start && self.first.is_some_and(|first| first > self.range.start)
    }
}

impl Sink for Pass<'_, '_> {
    fn begins(&mut self, start: Lsn) {
        self.first.get_or_insert(start);
    }

    fn record(&mut self, record: &RawRecord<'_>) {
        // Behind damage nothing is believed: what it hides may be what is looked for.
        if self.done || self.failed.is_some() || self.began_too_late() {
            return;
        }
        let last = last_byte_end(record);
        if last <= self.range.start || last > self.range.end {
            return;
        }
        match meaning(record) {
            Ok(meaning) => {
                let seen = Seen { start: record.start, end: record.end, meaning };
                self.done = (self.visit)(&seen).is_break();
            }
            Err(error) => self.unread(error),
        }
    }

    fn unread(&mut self, error: WalError) {
        // Before the first record reading finds its feet; before the range it does not matter.
        if self.first.is_some() && error.at >= self.range.start {
            self.failed.get_or_insert(error);
        }
    }
}

/// One past the record's last byte, without padding.
fn last_byte_end(record: &RawRecord<'_>) -> Lsn {
    if record.header.is_switch() {
        return record.start.saturating_add(RECORD_HEADER_BYTES as u64);
    }
    let padding = (8 - u64::from(record.header.total_len) % 8) % 8;
    record.end.saturating_sub(padding)
}

fn meaning(record: &RawRecord<'_>) -> Result<Meaning, WalError> {
    Ok(match Fact::of_raw(record)? {
        Some(Fact::Finished(finished)) => {
            let (xid, time) = (finished.xid, finished.time);
            match finished.outcome {
                Outcome::Commit => Meaning::Commit { xid, time },
                Outcome::Abort => Meaning::Abort { xid, time },
            }
        }
        Some(Fact::ParameterChange { .. }) => Meaning::Limits(limits(record)),
        _ => Meaning::Other,
    })
}

/// The limits in a parameter change (`xl_parameter_change`: five integers, then what does not matter here).
fn limits(record: &RawRecord<'_>) -> SourceLimits {
    debug_assert!(record.header.rmgr == rmgr::XLOG);
    let main = record.main_data();
    let field = |number: usize| main.u32(number * 4).unwrap_or(0);
    SourceLimits {
        max_connections: field(0),
        max_worker_processes: field(1),
        max_wal_senders: field(2),
        max_prepared_transactions: field(3),
        max_locks_per_transaction: field(4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{SystemId, TimelineId, Timestamp};
    use crate::wal::{Synth, WalVersion};
    use std::ops::ControlFlow;

    const SEGMENT: u64 = 1 << 20;

    /// Bytes from `start` on, handed out a few at a time.
    struct Held {
        start: Lsn,
        bytes: Vec<u8>,
        reads: usize,
    }

    #[async_trait]
    impl PathBytes for Held {
        fn run_start(&self, at: Lsn) -> Option<Lsn> {
            (self.start <= at).then_some(self.start)
        }

        async fn read_some(&mut self, range: LsnRange) -> Result<Bytes, RestoreError> {
            self.reads += 1;
            let from = range.start.bytes_since(self.start) as usize;
            let to = range.end.bytes_since(self.start).min(from as u64 + 10_007) as usize;
            Ok(Bytes::copy_from_slice(&self.bytes[from..to]))
        }
    }

    fn synth() -> Synth {
        let size = SegmentSize::new(SEGMENT).unwrap();
        Synth::new(WalVersion::V16, size, SystemId(7), TimelineId(1), Lsn::new(SEGMENT))
    }

    fn decoding(mut synth: Synth) -> Decoding<Held> {
        let held = Held { start: Lsn::new(SEGMENT), bytes: synth.take(), reads: 0 };
        Decoding::new(held, SegmentSize::new(SEGMENT).unwrap())
    }

    fn scan(decoding: &Decoding<Held>, range: LsnRange) -> Result<Vec<Seen>, RestoreError> {
        let mut all = Vec::new();
        let mut visit = |seen: &Seen| {
            all.push(*seen);
            ControlFlow::Continue(())
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(decoding.scan(range, &mut visit))?;
        Ok(all)
    }

    #[test]
    fn ranges_share_out_every_record_however_they_are_cut() {
        let mut synth = synth();
        for n in 0..200u32 {
            synth.noise(100 + n as usize * 61);
            synth.commit(n, Timestamp::from_micros(i64::from(n)));
        }
        synth.noise(700_000);
        synth.commit(1000, Timestamp::from_micros(5));
        synth.switch();
        synth.commit(1001, Timestamp::from_micros(6));
        let end = synth.position();
        let decoding = decoding(synth);
        let whole = scan(&decoding, LsnRange::new(Lsn::new(SEGMENT), end)).unwrap();
        let commits =
            |seen: &[Seen]| seen.iter().filter(|s| matches!(s.meaning, Meaning::Commit { .. })).count();
        assert_eq!(commits(&whole), 202);
        for step in [50_000, 333_333, 8192, 1_000_003] {
            let mut shared = Vec::new();
            let mut at = Lsn::new(SEGMENT);
            while at < end {
                let next = at.saturating_add(step).min(end);
                shared.extend(scan(&decoding, LsnRange::new(at, next)).unwrap());
                at = next;
            }
            assert_eq!(shared, whole, "cut every {step} bytes");
        }
    }

    #[test]
    fn stops_reading_when_told() {
        let mut synth = synth();
        for n in 0..5000u32 {
            synth.commit(n, Timestamp::from_micros(0));
        }
        let end = synth.position();
        let decoding = decoding(synth);
        let mut count = 0;
        let mut visit = |_: &Seen| {
            count += 1;
            if count == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(decoding.scan(LsnRange::new(Lsn::new(SEGMENT), end), &mut visit)).unwrap();
        assert_eq!((count, runtime.block_on(decoding.bytes.lock()).reads), (3, 1));
    }

    #[test]
    fn damage_is_refused_and_half_a_record_at_the_end_is_not() {
        let mut synth = synth();
        let first = synth.commit(1, Timestamp::from_micros(0));
        for _ in 0..1000 {
            synth.noise(300);
        }
        let last = synth.noise(5000);
        let range = LsnRange::new(Lsn::new(SEGMENT), last.start.saturating_add(100));
        let mut decoding = decoding(synth);
        assert_eq!(scan(&decoding, range).unwrap().len(), 1001);
        decoding.bytes.get_mut().bytes[100_000] ^= 1;
        assert!(matches!(scan(&decoding, range), Err(RestoreError::Damage { .. })));
        let before = LsnRange::new(first.start, Lsn::new(SEGMENT + 90_000));
        assert!(scan(&decoding, before).is_ok(), "damage elsewhere does not matter");
    }

    #[test]
    fn limits_are_read_from_parameter_changes() {
        let mut synth = synth();
        let numbers: Vec<u8> = [120u32, 9, 11, 3, 70, 1, 0].iter().flat_map(|n| n.to_le_bytes()).collect();
        synth.main_record(rmgr::XLOG, 0x60, 0, &numbers);
        let end = synth.position();
        let seen = scan(&decoding(synth), LsnRange::new(Lsn::new(SEGMENT), end)).unwrap();
        let expected = SourceLimits {
            max_connections: 120,
            max_worker_processes: 9,
            max_wal_senders: 11,
            max_prepared_transactions: 3,
            max_locks_per_transaction: 70,
        };
        assert_eq!(seen.first().map(|seen| seen.meaning), Some(Meaning::Limits(expected)));
    }
}
