//! Whether both sides are of one server's history. Clones of a server, and servers restored from its backups, have its system
//! identifier; what tells them apart is where their timelines came from, and the WAL itself. Into a destination that holds anything, nothing
//! is copied before something proves that it is of the same history: it was copied from this very cluster, or both hold what was drawn by
//! chance (epochs of deltas, gaps), a backup, or WAL that is byte for byte the same.

use super::error::CopyError;
use super::source::View;
use crate::base::{Lsn, LsnRange, ObjectId, TimelineId};
use crate::format::index::{BackupEntry, HistoryEntry};
use crate::repo::cluster::object_is_gone;
use crate::repo::{Cluster, Index, WalMap, WalReader};
use std::collections::HashSet;

/// What of the WAL that both sides hold is compared: its end. What diverged once differs from there on.
const COMPARED_BYTES_MAX: u64 = 1 << 20;

/// Refuses a destination of which nothing proves that it is of the history of `from`.
pub async fn refuse_strangers((from, ours): (&Cluster, &View), to: &Cluster) -> Result<(), CopyError> {
    let theirs = View::read(to).await?;
    let Index { wal, backups, gaps, expired, .. } = &theirs.index;
    let holds_nothing = wal.is_empty() && backups.is_empty() && gaps.is_empty() && expired.is_empty();
    let origin = theirs.root.copied_from();
    let is_origin = origin.is_some_and(|(id, name)| id == from.repo().id() && name == *from.name());
    if holds_nothing || is_origin || shares(&ours.index, &theirs.index) {
        return Ok(());
    }
    for (generation, own) in &ours.eras {
        let Some(other) = theirs.eras.get(generation) else { continue };
        for timeline in own.wal.timelines() {
            let Some(range) = last_common(&own.wal, &other.wal, timeline) else { continue };
            let mut readers = (
                WalReader::new(from.clone(), own.wal.clone()),
                WalReader::new(to.clone(), other.wal.clone()),
            );
            if is_same_wal((from, to), (&mut readers.0, &mut readers.1), (timeline, range)).await? {
                return Ok(());
            }
        }
    }
    Err(CopyError::Unrelated { cluster: to.name().clone(), url: to.repo().store().url() })
}

/// Whether both indexes name something that no two servers have in common by chance.
fn shares(ours: &Index, theirs: &Index) -> bool {
    let epochs = |index: &Index| -> HashSet<ObjectId> {
        index.wal.iter().filter_map(|entry| Some(entry.deltas.as_ref()?.epoch.id)).collect()
    };
    let gaps = |index: &Index| -> HashSet<ObjectId> { index.gaps.iter().map(|gap| gap.id).collect() };
    // To the microsecond of the server's clock, and to the byte of its WAL.
    let same = |own: &BackupEntry, other: &BackupEntry| {
        (own.generation, own.timeline, own.redo, own.start, own.stop)
            == (other.generation, other.timeline, other.redo, other.start, other.stop)
            && (own.started_at, own.stopped_at, own.bytes_raw)
                == (other.started_at, other.stopped_at, other.bytes_raw)
    };
    let backup = |own: &BackupEntry| theirs.backup(&own.id).is_some_and(|other| same(own, other));
    !epochs(ours).is_disjoint(&epochs(theirs))
        || !gaps(ours).is_disjoint(&gaps(theirs))
        || ours.backups.iter().any(backup)
}

/// Refuses a destination that knows another beginning of a timeline than the source.
pub fn refuse_other_history(to: &Cluster, there: &Index, ours: &HistoryEntry) -> Result<(), CopyError> {
    let same_timeline =
        |other: &&HistoryEntry| (other.generation, other.timeline) == (ours.generation, ours.timeline);
    match there.histories.iter().filter(same_timeline).any(|other| other.content != ours.content) {
        true => Err(differs(to, format!("the history of timeline {}", ours.timeline))),
        false => Ok(()),
    }
}

/// The end of the WAL of `timeline` that both hold.
pub fn last_common(ours: &WalMap, theirs: &WalMap, timeline: TimelineId) -> Option<LsnRange> {
    let theirs = theirs.ranges(timeline);
    let common = ours
        .ranges(timeline)
        .into_iter()
        .rev()
        .find_map(|range| theirs.iter().rev().find_map(|other| range.intersect(*other)))?;
    let start = common.end.saturating_sub(COMPARED_BYTES_MAX).max(common.start);
    Some(LsnRange::new(start, common.end))
}

/// Refuses a destination whose WAL in `range` is not the source's; whether it is the same. It is not known where either side cannot read
/// it: that proves nothing, and keeps nobody from copying what is behind it.
pub async fn is_same_wal(
    (from, to): (&Cluster, &Cluster),
    (ours, theirs): (&mut WalReader, &mut WalReader),
    (timeline, range): (TimelineId, LsnRange),
) -> Result<bool, CopyError> {
    match refuse_other_wal(to, ours, theirs, (timeline, range)).await {
        Ok(()) => Ok(true),
        Err(error) if is_lost((from, to), &error).await? => {
            tracing::warn!(%error, "WAL {range} on timeline {timeline}, which both sides hold, cannot be compared");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Whether `error` says that an object is damaged, or that one is gone which its side names as ever: one that is not named any more has
/// moved.
async fn is_lost((from, to): (&Cluster, &Cluster), error: &CopyError) -> Result<bool, CopyError> {
    let (error, now) = match error {
        CopyError::Source(error) if object_is_gone(error) => {
            (error, View::read(from).await.map_err(CopyError::Source)?)
        }
        CopyError::Destination(error) if object_is_gone(error) => (error, View::read(to).await?),
        CopyError::Source(error) | CopyError::Destination(error) => return Ok(error.is_damage()),
        _ => return Ok(false),
    };
    Ok(error.damaged_object().is_some_and(|key| now.objects().contains(key.file_name())))
}

/// Refuses a destination whose WAL in `range` is not the source's. Frames that went over as they were packed are not decoded again.
async fn refuse_other_wal(
    to: &Cluster,
    ours: &mut WalReader,
    theirs: &mut WalReader,
    (timeline, range): (TimelineId, LsnRange),
) -> Result<(), CopyError> {
    let mut at = range.start;
    while at < range.end {
        let (own, lies) = ours.frame(timeline, at).await.map_err(CopyError::Source)?;
        let (other, others) = theirs.frame(timeline, at).await?;
        let part = LsnRange::new(at, lies.end.min(others.end).min(range.end));
        if lies != others || own.codec != other.codec || own.bytes != other.bytes {
            let own = ours.read(timeline, part).await.map_err(CopyError::Source)?;
            let other = theirs.read(timeline, part).await?;
            if let Some(number) = own.iter().zip(&other).position(|(own, other)| own != other) {
                let first: Lsn = part.start.saturating_add(number as u64);
                return Err(differs(to, format!("the WAL of timeline {timeline} at {first}")));
            }
        }
        at = part.end;
    }
    Ok(())
}

fn differs(to: &Cluster, what: String) -> CopyError {
    CopyError::Differs { what, cluster: to.name().clone(), url: to.repo().store().url() }
}
