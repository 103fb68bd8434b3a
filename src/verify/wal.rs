//! WAL as a recovery reads it: byte for byte from whatever holds it, epochs of deltas from their start, and record after record: each
//! has its checksum and links to the one before. What one damaged object of an epoch costs is everything of the epoch behind it.
//!
//! A run is WAL without a hole. It may begin inside a record (nothing tells where the first one starts) and end in one. A part of a
//! run is read up to the first record behind it, which links to its last one: so what is wrong at the beginning of the next part shows.

use super::objects::{Fault, Unread};
use crate::base::{Generation, Lsn, LsnRange, ObjectId, ObjectKey, Progress, SegmentSize, TimelineId};
use crate::format::wal::DeltaEpoch;
use crate::repo::spans::Spans;
use crate::repo::walmap::{WalMap, WalPiece, WalSource};
use crate::repo::{Cluster, RepoError, WalReader, layout};
use crate::wal::WalError;
use crate::wal::scan::{DecodeFrom, RawRecord, Scanner, Sink};
use std::sync::Arc;

/// Errors in the records of one run that are told.
const ERRORS_TOLD_MAX: usize = 16;
/// Bytes behind a unit in which the record is looked for that links to its last one.
const LINK_BYTES_MAX: u64 = 1 << 20;

/// A part of the WAL that is read at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Its timeline.
    pub timeline: TimelineId,
    /// Its bytes, without a hole.
    pub range: LsnRange,
}

/// WAL that cannot be read, or be recovered from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// Its timeline.
    pub timeline: TimelineId,
    /// What is lost.
    pub range: LsnRange,
    /// The object at fault.
    pub key: ObjectKey,
    /// Why.
    pub reason: String,
    /// The beginning of the epoch of deltas that it is of: all of that from there on is lost.
    pub epoch_start: Option<Lsn>,
}

/// What came of decoding.
#[derive(Debug, Default)]
pub struct Decoded {
    /// What cannot be read, or be recovered from.
    pub lost: Vec<Unreadable>,
    /// What was decoded to its end, with its records.
    pub whole: Spans,
    /// What is sealed under keys that are not ours.
    pub unread: Vec<Unread>,
}

impl Decoded {
    /// Adds what was decoded of another generation.
    pub fn add(&mut self, other: Decoded) {
        self.lost.extend(other.lost);
        other.whole.iter().for_each(|(place, range)| self.whole.add(place, range));
        self.unread.extend(other.unread);
    }

    /// Whether all of `range` was decoded, and every record of it read.
    pub fn has(&self, place: (Generation, TimelineId), range: LsnRange) -> bool {
        let holds = |held: LsnRange| held.start <= range.start && range.end <= held.end;
        range.is_empty() || self.whole.iter().any(|(of, held)| of == place && holds(held))
    }
}

/// The key of the object that holds a piece.
pub fn key_of(cluster: &Cluster, piece: &WalPiece) -> ObjectKey {
    match &piece.source {
        WalSource::Segment(entry) => layout::segment(cluster.name(), entry.id),
        WalSource::Flush { stream, number, .. } => layout::flush(cluster.name(), *stream, *number),
    }
}

/// The epoch of deltas that a piece is of.
pub fn epoch_of(piece: &WalPiece) -> Option<&DeltaEpoch> {
    match &piece.source {
        WalSource::Segment(entry) => entry.deltas.as_ref().map(|deltas| &deltas.epoch),
        WalSource::Flush { .. } => None,
    }
}

/// All WAL, in runs.
pub fn runs(map: &WalMap) -> Vec<Unit> {
    let of = |timeline| map.ranges(timeline).into_iter().map(move |range| Unit { timeline, range });
    map.timelines().into_iter().flat_map(of).collect()
}

/// Reads `units` and checks their records; without `segment_size` their bytes alone. Records at the end of a unit are read to their
/// ends, and the next one with them, if these are stored.
///
/// # Errors
/// A store that fails, no room for an epoch's pages. What is damaged is given.
pub async fn check(
    cluster: &Cluster,
    map: &Arc<WalMap>,
    segment_size: Option<SegmentSize>,
    units: &[Unit],
    progress: &dyn Progress,
) -> Result<Decoded, RepoError> {
    let mut done = Decoded::default();
    let mut reader = WalReader::new(cluster.clone(), map.clone());
    for unit in units {
        let place = (map.generation(), unit.timeline);
        let mut at = unit.range.start;
        while at < unit.range.end {
            let rest = Unit { range: LsnRange::new(at, unit.range.end), ..unit.clone() };
            let (errors, failed) = match read_run(&mut reader, map, segment_size, &rest, progress).await? {
                Ran::Whole(errors) => (errors, None),
                Ran::Failed { errors, at, error } => (errors, Some((at, error))),
            };
            done.lost.extend(errors.into_iter().map(|error| of_record(cluster, map, unit.timeline, &error)));
            let end = failed.as_ref().map_or(unit.range.end, |(at, _)| *at);
            // Records are known only with the geometry.
            if segment_size.is_some() && at < end {
                done.whole.add(place, LsnRange::new(at, end));
            }
            let Some((failed, error)) = failed else { break };
            let unreadable = of_object(cluster, map, unit.timeline, failed, &error);
            at = unreadable.range.end;
            match error {
                RepoError::NoKey { key, reason } | RepoError::Newer { key, reason } => {
                    done.unread.push(Unread { key, reason, fault: Fault::Key });
                }
                _ => done.lost.push(unreadable),
            }
        }
    }
    Ok(done)
}

/// What came of a run.
enum Ran {
    Whole(Vec<WalError>),
    Failed { errors: Vec<WalError>, at: Lsn, error: RepoError },
}

async fn read_run(
    reader: &mut WalReader,
    map: &WalMap,
    segment_size: Option<SegmentSize>,
    unit: &Unit,
    progress: &dyn Progress,
) -> Result<Ran, RepoError> {
    let scanner = |size| Scanner::new(size, unit.range.start, DecodeFrom::Anywhere);
    let mut scanner = segment_size.map(scanner);
    let mut records = Records::default();
    let stored_end = map.contiguous_end(unit.timeline, unit.range.start);
    let mut at = unit.range.start;
    loop {
        let end = if at < unit.range.end { unit.range.end } else { stored_end };
        let done = at >= unit.range.end && (scanner.is_none() || records.lead_past(unit.range.end, at));
        if at >= end || done {
            return Ok(Ran::Whole(records.errors));
        }
        match reader.read_some(unit.timeline, LsnRange::new(at, end)).await {
            Ok(bytes) => {
                if let Some(scanner) = &mut scanner {
                    scanner.feed(at, &bytes, &mut records);
                }
                at = at.saturating_add(bytes.len() as u64);
                progress.advance(bytes.len() as u64);
            }
            Err(error) if !is_at_fault(&error) => return Err(error),
            // Behind the unit, it is not the unit's.
            Err(_) if at >= unit.range.end => return Ok(Ran::Whole(records.errors)),
            Err(error) => return Ok(Ran::Failed { errors: records.errors, at, error }),
        }
    }
}

/// Whether what holds the WAL is at fault: also where it was collected meanwhile and nothing holds it now.
fn is_at_fault(error: &RepoError) -> bool {
    error.is_damage() || error.is_shut() || matches!(error, RepoError::NotFound { .. })
}

/// What is lost when the byte at `at` cannot be had.
fn of_object(
    cluster: &Cluster,
    map: &WalMap,
    timeline: TimelineId,
    at: Lsn,
    error: &RepoError,
) -> Unreadable {
    let wanted = LsnRange::new(at, at.saturating_add(1));
    let piece = map.overlapping(timeline, wanted).next();
    let epoch_start = piece.and_then(epoch_of).map(|epoch| epoch.start);
    let end = piece.map_or(wanted.end, |piece| match epoch_of(piece) {
        Some(epoch) => epoch_end(map, timeline, epoch.id).unwrap_or(piece.range.end),
        None => piece.range.end,
    });
    let own = || piece.map_or_else(|| layout::segments(cluster.name()), |piece| key_of(cluster, piece));
    let (key, reason) = match error {
        RepoError::Damage { key, reason } => (key.clone(), reason.clone()),
        RepoError::Store(crate::store::StoreError::NotFound { key }) => {
            (key.clone(), "it is gone".to_owned())
        }
        other => (own(), other.to_string()),
    };
    Unreadable { timeline, range: LsnRange::new(at, end.max(wanted.end)), key, reason, epoch_start }
}

/// Where the WAL of an epoch ends.
pub fn epoch_end(map: &WalMap, timeline: TimelineId, id: ObjectId) -> Option<Lsn> {
    let pieces = map.pieces().iter().filter(|piece| piece.timeline == timeline);
    pieces
        .filter(|piece| epoch_of(piece).is_some_and(|epoch| epoch.id == id))
        .map(|piece| piece.range.end)
        .max()
}

/// A record that is wrong ends every recovery there: the object has it as it was received.
fn of_record(cluster: &Cluster, map: &WalMap, timeline: TimelineId, error: &WalError) -> Unreadable {
    let wanted = LsnRange::new(error.at, error.at.saturating_add(1));
    let piece = map.overlapping(timeline, wanted).next();
    Unreadable {
        timeline,
        range: wanted,
        key: piece.map_or_else(|| layout::segments(cluster.name()), |piece| key_of(cluster, piece)),
        reason: format!("{error}; it was stored like that, and no recovery gets past it"),
        epoch_start: None,
    }
}

/// Watches records go by.
#[derive(Debug, Default)]
struct Records {
    /// Where a record began that has not ended.
    open: Option<Lsn>,
    /// Whether one began: what goes unread before is the end of one that began before the run.
    begun: bool,
    /// Where the last record began that was read, or that could not be.
    passed: Option<Lsn>,
    errors: Vec<WalError>,
}

impl Records {
    /// Whether reading up to `at` was enough to know all of a unit that ends at `end`: records that began in it have ended, and the
    /// next one links to the last of them, or does not.
    fn lead_past(&self, end: Lsn, at: Lsn) -> bool {
        let open = self.open.is_some_and(|start| start < end);
        !open && (self.passed >= Some(end) || at >= end.saturating_add(LINK_BYTES_MAX))
    }
}

impl Sink for Records {
    fn begins(&mut self, start: Lsn) {
        self.open = Some(start);
        self.begun = true;
    }

    fn record(&mut self, record: &RawRecord<'_>) {
        self.open = None;
        self.passed = Some(record.start);
    }

    fn unread(&mut self, error: WalError) {
        self.open = None;
        self.passed = Some(error.at);
        if self.begun && self.errors.len() < ERRORS_TOLD_MAX {
            self.errors.push(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::SystemId;
    use crate::wal::{Synth, WalVersion};

    #[test]
    fn a_flipped_bit_of_a_record_is_an_error_and_half_records_at_the_ends_are_none() {
        let (size, start) = (SegmentSize::DEFAULT, Lsn::new(0x100_0000));
        let mut synth = Synth::new(WalVersion::V15, size, SystemId(1), TimelineId(1), start);
        for xid in 0..2000u32 {
            synth.insert(700 + xid, xid, 100);
        }
        let bytes = synth.take();
        let errors = |from: usize, to: usize, bytes: &[u8]| {
            let at = start.saturating_add(from as u64);
            let mut scanner = Scanner::new(size, at, DecodeFrom::Anywhere);
            let mut records = Records::default();
            scanner.feed(at, &bytes[from..to], &mut records);
            records.errors
        };
        assert!(bytes.len() > 10 * 8192);
        assert_eq!(errors(0, bytes.len(), &bytes), []);
        assert_eq!(errors(8192 + 17, bytes.len() - 11, &bytes), []);
        let mut flipped = bytes.clone();
        flipped[3 * 8192 + 100] ^= 4;
        assert!(!errors(0, bytes.len(), &flipped).is_empty());
    }

    #[test]
    fn what_is_wrong_at_the_beginning_of_the_next_part_shows_behind_this_one() {
        let (size, start) = (SegmentSize::DEFAULT, Lsn::new(0x100_0000));
        let wal = |seed| {
            let mut synth =
                Synth::new(WalVersion::V15, size, SystemId(1), TimelineId(1), start).with_seed(seed);
            let mut starts = Vec::new();
            for xid in 0..400u32 {
                starts.push(synth.next_record_start());
                synth.insert(700 + xid, xid, 100 + (xid % 7) as u16);
            }
            (synth.take(), starts)
        };
        let (bytes, starts) = wal(1);
        // As a unit is read that ends with a record, and one that ends inside the next: in pieces, while that is not enough.
        let errors = |unit_end: Lsn, bytes: &[u8]| {
            let mut scanner = Scanner::new(size, start, DecodeFrom::Anywhere);
            let (mut records, mut at, mut read) = (Records::default(), start, 0);
            while at < unit_end || !records.lead_past(unit_end, at) {
                let piece = if at < unit_end { unit_end.bytes_since(at) as usize } else { 64 };
                scanner.feed(at, &bytes[read..read + piece], &mut records);
                (at, read) = (at.saturating_add(piece as u64), read + piece);
            }
            assert!(at <= unit_end.saturating_add(1024), "no more than needed: {at}");
            records.errors.len()
        };
        let next = starts[200];
        for unit_end in [next, next.saturating_sub(40)] {
            assert_eq!(errors(unit_end, &bytes), 0);
            let mut garbage = bytes.clone();
            let at = next.bytes_since(start) as usize;
            garbage[at + 12] ^= 0x40;
            assert!(errors(unit_end, &garbage) > 0, "the record links to another one");
        }
    }
}
