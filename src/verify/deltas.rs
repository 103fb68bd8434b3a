//! WAL that stands as delta frames: every epoch is decoded from its start, from the repository alone. What one damaged object costs
//! is everything of its epoch from there on.

use super::Finding;
use crate::base::{Lsn, LsnRange, ObjectId, TimelineId};
use crate::format::wal::DeltaEpoch;
use crate::repo::walmap::{Snapshot, WalSource};
use crate::repo::{Cluster, RepoError, WalReader, layout};

/// An epoch, and the WAL of its segments.
struct Stored {
    timeline: TimelineId,
    epoch: DeltaEpoch,
    ranges: Vec<LsnRange>,
}

/// Decodes every epoch of the current generation.
pub async fn check(cluster: &Cluster, snapshot: &Snapshot) -> Result<Vec<Finding>, RepoError> {
    let mut findings = Vec::new();
    for stored in epochs(snapshot) {
        let mut reader = WalReader::new(cluster.clone(), snapshot.wal.clone());
        if let Err((at, error)) = decode(&mut reader, &stored).await {
            if !error.is_damage() {
                return Err(error);
            }
            let key = match &error {
                RepoError::Damage { key, .. } => key.to_string(),
                _ => layout::segments(cluster.name()).to_string(),
            };
            let end = stored.ranges.last().map_or(at, |last| last.end);
            let (timeline, start) = (stored.timeline, stored.epoch.start);
            let cost = format!(
                "WAL {} of timeline {timeline}: what follows it in its epoch, which begins at {start}, cannot be decoded",
                LsnRange::new(at, end)
            );
            findings.push(Finding { key, reason: error.to_string(), cost });
        }
    }
    Ok(findings)
}

/// Reads all of an epoch; where that failed, and why.
async fn decode(reader: &mut WalReader, stored: &Stored) -> Result<(), (Lsn, RepoError)> {
    for range in &stored.ranges {
        let mut at = range.start;
        while at < range.end {
            let some = reader.read_some(stored.timeline, LsnRange::new(at, range.end)).await;
            at = at.saturating_add(some.map_err(|error| (at, error))?.len() as u64);
        }
    }
    Ok(())
}

/// The epochs of the WAL, each with its segments in order.
fn epochs(snapshot: &Snapshot) -> Vec<Stored> {
    let mut all: Vec<Stored> = Vec::new();
    for piece in snapshot.wal.pieces() {
        let WalSource::Segment(entry) = &piece.source else { continue };
        let Some(deltas) = &entry.deltas else { continue };
        let id: ObjectId = deltas.epoch.id;
        match all.iter_mut().find(|stored| stored.epoch.id == id) {
            Some(stored) => stored.ranges.push(piece.range),
            None => all.push(Stored {
                timeline: piece.timeline,
                epoch: deltas.epoch.clone(),
                ranges: vec![piece.range],
            }),
        }
    }
    all
}
