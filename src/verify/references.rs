//! What a cluster's newest root leads to: every object is there and whole, WAL has no holes but recorded gaps, every
//! backup finds its chunks and its WAL. A damaged object is put to what it costs.

use super::{Finding, deltas, numbers};
use crate::base::{Lsn, LsnRange, ObjectKey, Progress, SegmentSize};
use crate::format::index::BackupEntry;
use crate::format::wal::WalSummary;
use crate::repo::chunks::{ChunkIndex, ChunkReader};
use crate::repo::manifest::Manifest;
use crate::repo::walmap::{self, Snapshot, WalSource};
use crate::repo::{Cluster, RepoError, layout};
use crate::store::StoreError;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Threads that decode manifests' pages.
const THREADS: usize = 2;

/// Follows everything. Takes out of `damaged` what it finds referred to, as findings with their cost.
pub async fn check(
    cluster: &Cluster,
    listed: &BTreeSet<ObjectKey>,
    damaged: &mut BTreeMap<ObjectKey, String>,
    progress: &dyn Progress,
) -> Result<Vec<Finding>, RepoError> {
    let mut findings = Vec::new();
    let snapshot = match walmap::load(cluster).await.map_err(as_damage) {
        Ok(snapshot) => snapshot,
        Err(RepoError::Damage { key, reason }) => {
            damaged.remove(&key);
            let cost = match layout::parse_flush(&key) {
                Some((stream, number)) => format!("WAL of stream {stream} from object {number} on"),
                None => format!("everything of cluster {}", cluster.name()),
            };
            findings.push(Finding { key: key.to_string(), reason, cost });
            return Ok(findings);
        }
        Err(error) => return Err(error),
    };
    let mut lost_wal = Vec::new();
    for piece in snapshot.wal.pieces() {
        let key = match &piece.source {
            WalSource::Segment(entry) => layout::segment(cluster.name(), entry.id),
            WalSource::Flush { stream, number, .. } => layout::flush(cluster.name(), *stream, *number),
        };
        if let Some(reason) = missing_or_damaged(cluster, &key, damaged).await? {
            lost_wal.push(piece.range);
            let cost = format!("WAL {} of timeline {}{}", piece.range, piece.timeline, times(&piece.summary));
            findings.push(Finding { key: key.to_string(), reason, cost });
        }
    }
    findings.extend(holes(cluster, &snapshot));
    findings.extend(numbers::chains(cluster, &snapshot, listed).await?);
    findings.extend(numbers::pending(cluster, &snapshot.root).await?);
    findings.extend(check_backups(cluster, &snapshot, damaged, &lost_wal).await?);
    progress.stage("decoding WAL", None);
    findings.extend(deltas::check(cluster, &snapshot).await?);
    Ok(findings)
}

/// What is gone and referred to is damaged.
fn as_damage(error: RepoError) -> RepoError {
    match error {
        RepoError::Store(StoreError::NotFound { key }) => {
            RepoError::Damage { key, reason: "it is gone".into() }
        }
        other => other,
    }
}

/// Why `key` is not to be had, if it is not.
async fn missing_or_damaged(
    cluster: &Cluster,
    key: &ObjectKey,
    damaged: &mut BTreeMap<ObjectKey, String>,
) -> Result<Option<String>, RepoError> {
    if let Some(reason) = damaged.remove(key) {
        return Ok(Some(reason));
    }
    match cluster.repo().store().head(key).await {
        Ok(_) => Ok(None),
        Err(StoreError::NotFound { .. }) => Ok(Some("it is gone".into())),
        Err(error) => Err(error.into()),
    }
}

fn times(summary: &WalSummary) -> String {
    match (summary.time_first, summary.time_last) {
        (Some(first), Some(last)) => format!(", commits from {first} to {last}"),
        _ => ", no commits".into(),
    }
}

/// Holes between durable ranges that no gap explains.
fn holes(cluster: &Cluster, snapshot: &Snapshot) -> Vec<Finding> {
    let mut findings = Vec::new();
    for timeline in snapshot.wal.timelines() {
        let ranges = snapshot.wal.ranges(timeline);
        for (before, after) in ranges.iter().zip(ranges.iter().skip(1)) {
            let hole = LsnRange::new(before.end, after.start);
            let recorded = snapshot
                .wal
                .gaps()
                .iter()
                .any(|gap| gap.timeline == timeline && gap.start <= hole.start && gap.end >= hole.end);
            if !recorded {
                findings.push(Finding {
                    key: layout::cluster_prefix(cluster.name()),
                    reason: format!(
                        "no object holds WAL {hole} of timeline {timeline}, and no gap is recorded"
                    ),
                    cost: format!("WAL {hole} of timeline {timeline}"),
                });
            }
        }
    }
    findings
}

async fn check_backups(
    cluster: &Cluster,
    snapshot: &Snapshot,
    damaged: &mut BTreeMap<ObjectKey, String>,
    lost_wal: &[LsnRange],
) -> Result<Vec<Finding>, RepoError> {
    let mut findings = Vec::new();
    let mut bad_segments = BTreeSet::new();
    for entry in &snapshot.index.pages {
        let key = layout::segment(cluster.name(), entry.id);
        if let Some(reason) = missing_or_damaged(cluster, &key, damaged).await? {
            bad_segments.insert(key.clone());
            let cost = "nothing: no backup needs a chunk of it".to_owned();
            findings.push(Finding { key: key.to_string(), reason, cost });
        }
    }
    let index = Arc::new(ChunkIndex::load(cluster, &snapshot.index.pages).await?);
    let chunks = ChunkReader::new(cluster.clone(), index.clone(), THREADS);
    let size = match cluster.generation().await {
        Ok(generation) => generation.segment_size,
        // Named where generations are looked for.
        Err(error) if error.is_damage() => return Ok(findings),
        Err(error) => return Err(error),
    };
    for backup in &snapshot.index.backups {
        let key = layout::manifest(cluster.name(), &backup.id, backup.manifest_number);
        let name = format!("backup {}", backup.id);
        if let Some(reason) = missing_or_damaged(cluster, &key, damaged).await? {
            findings.push(Finding { key: key.to_string(), reason, cost: name });
            continue;
        }
        let mut hurt = BTreeSet::new();
        let mut missing: u64 = 0;
        let visited = async {
            let manifest = Manifest::open(cluster, &backup.id, backup.manifest_number).await?;
            let visit = |id: &_| {
                let whole = index.find_all(id).filter_map(|at| index.segment_key(at)).collect::<Vec<_>>();
                match whole.iter().find(|key| !bad_segments.contains(**key)) {
                    Some(_) => {}
                    None if whole.is_empty() => missing += 1,
                    None => hurt.extend(whole.into_iter().cloned()),
                }
            };
            manifest.visit_chunks(&chunks, visit).await
        };
        if let Err(error) = visited.await {
            findings.push(Finding { key: key.to_string(), reason: error.to_string(), cost: name.clone() });
        }
        if missing > 0 {
            let reason = format!("{missing} of its chunks are in no segment");
            findings.push(Finding { key: key.to_string(), reason, cost: name.clone() });
        }
        for finding in findings.iter_mut().filter(|f| hurt.iter().any(|key| key.as_str() == f.key)) {
            finding.cost = match finding.cost.strip_prefix("backup") {
                Some(others) => format!("backup{others}, {}", backup.id),
                None => name.clone(),
            };
        }
        if let Some(reason) = uncovered(snapshot, backup, size, lost_wal) {
            findings.push(Finding { key: key.to_string(), reason, cost: name });
        }
    }
    Ok(findings)
}

/// What of the WAL that makes a restorable backup consistent is not there.
fn uncovered(
    snapshot: &Snapshot,
    backup: &BackupEntry,
    segment_size: u32,
    lost_wal: &[LsnRange],
) -> Option<String> {
    if backup.state == crate::format::index::BackupState::Pending
        || backup.generation != snapshot.wal.generation()
    {
        return None;
    }
    let start = SegmentSize::new(segment_size.into()).ok()?.segment_start(backup.redo);
    let needed = LsnRange::new(start, backup.stop.max(start));
    let end: Lsn = snapshot.wal.contiguous_end(backup.timeline, start);
    if end < needed.end {
        return Some(format!("it needs WAL {needed}, which is there only up to {end}"));
    }
    let lost = lost_wal.iter().find_map(|range| range.intersect(needed))?;
    Some(format!("it needs WAL {lost}, which is damaged"))
}

/// What a damaged object costs that nothing leads to.
pub fn cost_unreferenced(key: &ObjectKey) -> String {
    let parts: Vec<&str> = key.as_str().split('/').collect();
    match parts.as_slice() {
        ["walden"] => "everything: without the marker this is no repository".into(),
        ["keys", "epochs", epoch, "_epoch"] => {
            format!("nothing, as long as key epoch {epoch} is sealed to each slot in an object of its own")
        }
        ["keys", "epochs", epoch, slot] => format!("key slot {slot} does not open key epoch {epoch}"),
        ["keys", slot] => format!("key slot {slot} opens nothing"),
        ["clusters", _, "roots", _] => "nothing, unless it is the newest root".into(),
        ["clusters", _, "floors", _] => {
            "nothing now; the newest root cannot be found without the newest floor".into()
        }
        ["clusters", name, "generations", _] => format!("cluster {name} cannot be told from another"),
        ["clusters", _, "wal", stream, number] => {
            format!("nothing, unless stream {stream} is not compacted up to {number}")
        }
        _ => "nothing: no root leads to it".into(),
    }
}
