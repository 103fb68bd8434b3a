//! The WAL of one timeline as it lies in the source: compacted segments, and runs of flush objects no longer than a segment. Pure.

use crate::base::{Lsn, LsnRange, TimelineId, Timestamp, limits};
use crate::format::wal::{WalDeltas, WalSummary};
use crate::repo::{WalMap, WalPiece, WalSource};

/// What is stored as one segment.
#[derive(Debug, Clone)]
pub struct Stretch {
    /// Its bytes.
    pub range: LsnRange,
    /// The server's clock when everything up to its end had been sent.
    pub server_time: Timestamp,
    /// What it takes in the source.
    pub bytes_stored: u64,
    /// What its delta frames are made of.
    pub deltas: Option<WalDeltas>,
    /// What it is in the source.
    pub kind: Kind,
}

/// What a stretch is in the source.
#[derive(Debug, Clone)]
pub enum Kind {
    /// A compacted segment.
    Segment,
    /// Flush objects.
    Flushes(Vec<Flush>),
    /// What others do not hold of an object that overlaps them.
    Rest,
}

/// A flush object of a run.
#[derive(Debug, Clone)]
pub struct Flush {
    /// Its bytes.
    pub range: LsnRange,
    /// What they hold.
    pub summary: WalSummary,
    /// The server's clock.
    pub server_time: Timestamp,
    /// What it takes in the source.
    pub bytes_stored: u64,
}

/// The stretches of `timeline`, in order; none overlaps another.
pub fn of(wal: &WalMap, timeline: TimelineId) -> Vec<Stretch> {
    let mut found: Vec<Stretch> = Vec::new();
    for piece in wal.overlapping(timeline, LsnRange::new(Lsn::ZERO, Lsn::MAX)) {
        let end = found.last().map_or(Lsn::ZERO, |last| last.range.end);
        if piece.range.end <= end {
            continue;
        }
        if !joined(found.last_mut(), piece) {
            found.push(stretch(piece, end));
        }
    }
    found
}

/// Adds a flush object to the run before it, if it fits.
fn joined(last: Option<&mut Stretch>, piece: &WalPiece) -> bool {
    let (Some(last), WalSource::Flush { object_len, .. }) = (last, &piece.source) else { return false };
    let Kind::Flushes(flushes) = &mut last.kind else { return false };
    if last.range.end != piece.range.start
        || last.range.len() + piece.range.len() > limits::WAL_SEGMENT_BYTES_MAX
    {
        return false;
    }
    flushes.push(flush(piece, *object_len));
    last.range.end = piece.range.end;
    last.server_time = last.server_time.max(piece.server_time);
    last.bytes_stored += object_len;
    true
}

fn stretch(piece: &WalPiece, from: Lsn) -> Stretch {
    let start = piece.range.start.max(from);
    let (bytes_stored, deltas, kind) = match &piece.source {
        WalSource::Segment(entry) => (entry.object_len, entry.deltas.clone(), Kind::Segment),
        WalSource::Flush { object_len, .. } => {
            (*object_len, None, Kind::Flushes(vec![flush(piece, *object_len)]))
        }
    };
    let kind = if start > piece.range.start { Kind::Rest } else { kind };
    let range = LsnRange::new(start, piece.range.end);
    Stretch { range, server_time: piece.server_time, bytes_stored, deltas, kind }
}

fn flush(piece: &WalPiece, bytes_stored: u64) -> Flush {
    let (range, summary, server_time) = (piece.range, piece.summary.clone(), piece.server_time);
    Flush { range, summary, server_time, bytes_stored }
}
