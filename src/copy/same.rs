//! Whether both sides are of one server's history. Clones of a server, and servers restored from its backups, have its system
//! identifier; what tells them apart is where their timelines came from, and the WAL itself.

use super::error::CopyError;
use crate::base::{Lsn, LsnRange, TimelineId};
use crate::format::index::HistoryEntry;
use crate::repo::{Cluster, Index, WalMap, WalReader};

/// What of the WAL that both sides hold is compared: its end. What diverged once differs from there on.
const COMPARED_BYTES_MAX: u64 = 1 << 20;

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

/// Refuses a destination whose WAL in `range` is not the source's. Frames that went over as they were packed are not decoded again.
pub async fn refuse_other_wal(
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
