//! Where a stream begins: a pure decision over what is stored and what the server says.

use super::pipeline::ReceiveError;
use super::upstream::{Identity, Slot};
use crate::base::{Lsn, TimelineId};
use crate::repo::walmap::Snapshot;
use crate::wal::TimelineHistory;

/// Where a stream begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// Its timeline.
    pub timeline: TimelineId,
    /// Its first byte.
    pub at: Lsn,
    /// The first stored byte that the server may be asked for again, to compare.
    pub compare_from: Option<Lsn>,
}

/// The end of what is stored: timeline and position. A gap moves the position to where WAL begins again. One that was recorded without
/// an end, when its timeline seemed to be over, does not: a server that is still there may have what is missing.
pub fn stored_end(snapshot: &Snapshot) -> Option<(TimelineId, Lsn, bool)> {
    let end = snapshot.wal.durable_end()?;
    let gap = snapshot.wal.gaps().iter().filter(|gap| gap.timeline == end.timeline && gap.start >= end.lsn);
    match gap.map(|gap| gap.end).filter(|end| *end < Lsn::MAX).max() {
        Some(after_gap) => Some((end.timeline, after_gap, true)),
        None => Some((end.timeline, end.lsn, false)),
    }
}

/// Decides where to begin. `stored` is [`stored_end`]'s answer; `history` is the server's timeline's, none on the first.
///
/// # Errors
/// [`ReceiveError::Timeline`] when the server is on an older timeline than what is stored: it is not the newest primary.
pub fn plan(
    stored: Option<(TimelineId, Lsn, bool)>,
    identity: &Identity,
    history: Option<&TimelineHistory>,
    slot: &Slot,
) -> Result<Start, ReceiveError> {
    let size = identity.segment_size;
    let timeline = identity.timeline;
    let Some((stored_timeline, end, after_gap)) = stored else {
        let at = size.segment_start(slot.restart.unwrap_or(identity.flushed));
        return Ok(Start { timeline, at, compare_from: None });
    };
    if timeline == stored_timeline {
        let compare_from = (!after_gap).then_some(Lsn::ZERO);
        return Ok(Start { timeline, at: end, compare_from });
    }
    if timeline < stored_timeline {
        return Err(ReceiveError::Timeline(format!(
            "the server is on timeline {timeline}, WAL of timeline {stored_timeline} is stored already: \
             this server is not the newest primary"
        )));
    }
    let Some(history) = history else {
        return Err(ReceiveError::Timeline(format!("the history of timeline {timeline} is not stored")));
    };
    match history.switch_after(stored_timeline) {
        // The old timeline goes on past what is stored: its rest comes first.
        Some((_, switch)) if switch > end && !after_gap => {
            Ok(Start { timeline: stored_timeline, at: end, compare_from: Some(Lsn::ZERO) })
        }
        // What is stored of the old timeline past the switch stays, beyond the fork. The new timeline repeats the
        // segment of the switch from its start.
        Some((next, switch)) => {
            Ok(Start { timeline: next, at: size.segment_start(switch), compare_from: None })
        }
        // The server's line forked off before the stored timeline began.
        None => {
            let switch = history.begins_at();
            Ok(Start { timeline, at: size.segment_start(switch), compare_from: None })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{ClusterName, Generation, ObjectId, Timestamp};
    use crate::format::index::{GapEntry, WalEntry};
    use crate::format::root::Root;
    use crate::format::wal::WalSummary;
    use crate::repo::{Index, WalMap};
    use std::sync::Arc;

    const G: Generation = Generation(1);
    const TIMELINE: TimelineId = TimelineId(1);
    const NOW: Timestamp = Timestamp::from_micros(1);

    /// WAL up to `end`, and gaps.
    fn stored(end: u64, gaps: &[(u64, Lsn)]) -> Snapshot {
        let wal = WalEntry {
            id: ObjectId([1; 16]),
            generation: G,
            timeline: TIMELINE,
            start: Lsn::ZERO,
            end: Lsn::new(end),
            object_len: 1,
            directory_offset: 0,
            server_time: NOW,
            summary: WalSummary::empty(),
            deltas: None,
        };
        let gap = |(start, end): &(u64, Lsn)| GapEntry {
            id: ObjectId([2; 16]),
            generation: G,
            timeline: TIMELINE,
            start: Lsn::new(*start),
            end: *end,
            recorded_at: NOW,
            reason: "lost".to_owned(),
        };
        let index = Index { wal: vec![wal], gaps: gaps.iter().map(gap).collect(), ..Index::default() };
        let root = Root::first("shop".parse::<ClusterName>().unwrap(), G, NOW);
        let wal = Arc::new(WalMap::new(G, &index, Vec::new()));
        Snapshot { root, index, wal }
    }

    #[test]
    fn a_gap_behind_what_is_stored_moves_the_end_and_one_without_an_end_does_not() {
        let end = |gaps: &[(u64, Lsn)]| stored_end(&stored(100, gaps)).unwrap();
        assert_eq!(end(&[]), (TIMELINE, Lsn::new(100), false));
        assert_eq!(
            end(&[(50, Lsn::new(70)), (90, Lsn::MAX)]),
            (TIMELINE, Lsn::new(100), false),
            "stored since"
        );
        assert_eq!(end(&[(100, Lsn::new(140))]), (TIMELINE, Lsn::new(140), true));
        assert_eq!(end(&[(100, Lsn::MAX)]), (TIMELINE, Lsn::new(100), false));
        assert_eq!(end(&[(100, Lsn::MAX), (100, Lsn::new(140))]), (TIMELINE, Lsn::new(140), true));
    }

    #[test]
    fn a_journal_goes_on_behind_what_a_gap_tells_of_and_behind_nothing_else() {
        let lost = |gaps: &[(u64, Lsn)]| {
            super::super::resume::is_lost_from(&stored(100, gaps), TIMELINE, Lsn::new(100))
        };
        assert!(lost(&[(100, Lsn::MAX)]) && lost(&[(100, Lsn::new(140))]));
        assert!(!lost(&[]) && !lost(&[(110, Lsn::MAX)]) && !lost(&[(50, Lsn::new(70))]));
    }
}
