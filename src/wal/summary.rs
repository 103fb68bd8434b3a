//! Folding a stream of WAL into summaries of its stretches, at the speed of memory and within a few MiB.
//! Fed in LSN order in pieces of any size, cut anywhere: a record belongs to the stretch that holds its last byte, and
//! the summaries of two neighbours, one extended by the other, equal the summary of both.
//!
//! Never fails: what cannot be read is counted in the summary, and reading goes on behind it.

use super::change::Changes;
use super::fact::{CheckpointKind, Fact};
use super::finish::{Finished, Outcome};
use super::scan::{DecodeFrom, RawRecord, Scanner, Sink};
use super::{WalError, WalVersion};
use crate::base::{Lsn, SegmentSize, SystemId, TimelineId, Timestamp};
use crate::format::wal::{Event, EventKind, WalSummary};

/// Summarizes a stream of WAL.
#[derive(Debug)]
pub struct Summarizer {
    scanner: Scanner,
    fold: Fold,
}

#[derive(Debug)]
struct Fold {
    summary: WalSummary,
    changes: Changes,
    /// Time of the newest commit or abort, across stretches.
    newest_time: Timestamp,
    last_error: Option<WalError>,
}

impl Summarizer {
    /// A summarizer whose next byte is at `start`.
    ///
    /// To go on where another ended, feed some WAL before that place first, [`DecodeFrom::Anywhere`], and
    /// [`take`](Self::take) its summary away: records that straddle the place are then read whole. When one was longer
    /// than what was fed again, the next summary counts it as unread.
    pub fn new(segment_size: SegmentSize, start: Lsn, from: DecodeFrom) -> Self {
        let fold = Fold {
            summary: WalSummary::empty(),
            changes: Changes::default(),
            newest_time: Timestamp::MIN,
            last_error: None,
        };
        Summarizer { scanner: Scanner::new(segment_size, start, from), fold }
    }

    /// Reads `bytes`, the first of which is at `at`. Bytes read before are passed over; a jump forward counts as unread.
    pub fn feed(&mut self, at: Lsn, bytes: &[u8]) {
        self.scanner.feed(at, bytes, &mut self.fold);
    }

    /// What was fed since the last `take`.
    pub fn take(&mut self) -> WalSummary {
        std::mem::replace(&mut self.fold.summary, WalSummary::empty())
    }

    /// The last thing that could not be read, since it was last asked for.
    pub fn take_error(&mut self) -> Option<WalError> {
        self.fold.last_error.take()
    }

    /// Position of the next byte to feed.
    pub fn position(&self) -> Lsn {
        self.scanner.position()
    }

    /// The version, once a page was seen.
    pub fn version(&self) -> Option<WalVersion> {
        self.scanner.version()
    }

    /// The timeline of the last page.
    pub fn timeline(&self) -> Option<TimelineId> {
        self.scanner.timeline()
    }

    /// The cluster, once the first page of a segment was seen.
    pub fn system_id(&self) -> Option<SystemId> {
        self.scanner.system_id()
    }
}

impl Sink for Fold {
    fn begins(&mut self, start: Lsn) {
        self.summary.first_record.get_or_insert(start);
    }

    fn record(&mut self, record: &RawRecord<'_>) {
        self.summary.last_record_end = Some(record.end);
        self.changes.record(record);
        match Fact::of_raw(record) {
            Ok(None) => {}
            Ok(Some(fact)) => self.fact(record, fact),
            Err(error) => self.unread(error),
        }
    }

    fn unread(&mut self, error: WalError) {
        self.summary.unread_count += 1;
        self.summary.unread_first.get_or_insert(error.at);
        self.last_error = Some(error);
    }
}

impl Fold {
    fn fact(&mut self, record: &RawRecord<'_>, fact: Fact) {
        let change = self.changes.fact(record, &fact);
        let event = match fact {
            Fact::Finished(finished) => {
                self.finished(&finished);
                change.map(|change| {
                    let mut event = self.event(record, change.kind);
                    event.xid = finished.xid;
                    event.database = change.database;
                    event.relation_count = change.relation_count;
                    event.relations = change.relations;
                    event
                })
            }
            Fact::Checkpoint { kind, redo, time, .. } => {
                let kind = match kind {
                    CheckpointKind::Shutdown => EventKind::CheckpointShutdown,
                    CheckpointKind::Online => EventKind::CheckpointOnline,
                    CheckpointKind::Redo => EventKind::CheckpointRedo,
                };
                let event = self.event(record, kind);
                Some(Event { redo, time: time.unwrap_or(event.time), ..event })
            }
            Fact::RestorePoint { time, name } => {
                Some(Event { time, name, ..self.event(record, EventKind::RestorePoint) })
            }
            Fact::EndOfRecovery { time, .. } => {
                Some(Event { time, ..self.event(record, EventKind::EndOfRecovery) })
            }
            Fact::ParameterChange { .. } => Some(self.event(record, EventKind::ParameterChange)),
            Fact::DatabaseCreated { database, .. } | Fact::DatabaseDropped { database, .. } => {
                change.map(|change| Event { database, ..self.event(record, change.kind) })
            }
            Fact::Switch
            | Fact::Overwritten { .. }
            | Fact::FileCreated { .. }
            | Fact::RunningXacts { .. }
            | Fact::RelationMap { .. } => None,
        };
        self.summary.events.extend(event);
    }

    fn event(&self, record: &RawRecord<'_>, kind: EventKind) -> Event {
        Event {
            lsn: record.start,
            end: record.end,
            kind,
            xid: record.header.xid,
            time: self.newest_time,
            database: 0,
            relation_count: 0,
            relations: Vec::new(),
            name: String::new(),
            redo: Lsn::ZERO,
        }
    }

    fn finished(&mut self, finished: &Finished) {
        self.newest_time = finished.time;
        let summary = &mut self.summary;
        summary.finished_count += 1;
        summary.commit_count += u64::from(finished.outcome == Outcome::Commit);
        let (time, xid) = (Some(finished.time), Some(finished.xid));
        summary.time_first = summary.time_first.or(time);
        summary.time_last = time;
        summary.time_min = summary.time_min.or(time).min(time);
        summary.time_max = summary.time_max.max(time);
        summary.xid_min = summary.xid_min.or(xid).min(xid);
        summary.xid_max = summary.xid_max.max(xid);
    }
}

#[cfg(test)]
mod tests;
