//! The latest moment, which is not known when WAL at the end of a path was lost: what is left of it without a hole ends too early, whether
//! the loss is recorded or not. Pure.

use super::error::RestoreError;
use super::resolve::Resolution;
use crate::base::{Lsn, LsnRange};
use crate::format::index::GapEntry;
use crate::format::root::StreamEntry;
use crate::repo::chain::Chain;
use crate::repo::lineage::TimelinePath;
use crate::repo::walmap::Snapshot;

/// Refuses `--latest` where WAL was lost at or behind the end of what `resolution` restores.
pub(super) fn refuse(snapshot: &Snapshot, resolution: Option<&Resolution>) -> Result<(), RestoreError> {
    let on_path = |chain: &&Chain| {
        let StreamEntry { generation, timeline, .. } = chain.stream;
        resolution.is_none_or(|found| {
            generation == found.backup.generation
                && found.path.legs().iter().any(|leg| leg.timeline == timeline)
        })
    };
    let chains = snapshot.wal.chains().iter().filter(on_path);
    for lost in chains.flat_map(|chain| &chain.lost) {
        let begins = resolution.map_or(Lsn::ZERO, |found| found.wal.start);
        if lost.to.is_some_and(|to| to <= begins) {
            continue;
        }
        let (before, all) = match lost.from {
            Some(from) => {
                (format!("WAL from {from} on is lost"), format!("; --to-lsn {from} restores all before it"))
            }
            None => ("its WAL is lost".to_owned(), String::new()),
        };
        return Err(RestoreError::Damage {
            what: lost.key.to_string(),
            reason: format!("{}: {before}{all}", lost.reason),
        });
    }
    let recorded = resolution.and_then(|found| {
        let own = snapshot.index.gaps.iter().filter(|gap| gap.generation == found.backup.generation);
        recorded(own, &found.path, found.durable_end)
    });
    match recorded {
        None => Ok(()),
        Some(GapEntry { start, reason, .. }) => Err(RestoreError::Damage {
            what: format!("WAL from {start} on"),
            reason: format!(
                "it is lost, and recorded as a gap ({reason}); --to-lsn {start} restores all before it"
            ),
        }),
    }
}

/// The gap that `path` ends with: nothing but heartbeats follows it up to `end`.
fn recorded<'a>(
    mut gaps: impl Iterator<Item = &'a GapEntry>,
    path: &TimelinePath,
    end: Lsn,
) -> Option<&'a GapEntry> {
    gaps.find(|gap| {
        let lost = LsnRange::new(gap.start, gap.end.max(gap.start));
        let mut legs = path.legs().iter().filter(|leg| leg.timeline == gap.timeline);
        legs.any(|leg| leg.range.intersect(lost).is_some_and(|lost| lost.end > end))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Generation, ObjectId, TimelineId, Timestamp};

    #[test]
    fn a_gap_ends_a_path_that_has_no_wal_behind_it() {
        let path = TimelinePath::new(TimelineId(2), &[(TimelineId(1), Lsn::new(50))]).unwrap();
        let is_ended_by = |timeline: u32, start: u64, end: Lsn, durable_end: u64| {
            let gap = GapEntry {
                id: ObjectId([1; 16]),
                generation: Generation(1),
                timeline: TimelineId(timeline),
                start: Lsn::new(start),
                end,
                recorded_at: Timestamp::MIN,
                reason: "cut".into(),
            };
            recorded([&gap].into_iter(), &path, Lsn::new(durable_end)).is_some()
        };
        assert!(is_ended_by(2, 80, Lsn::MAX, 80));
        assert!(is_ended_by(2, 80, Lsn::new(90), 80), "heartbeats alone follow");
        assert!(!is_ended_by(2, 80, Lsn::new(90), 100), "a backup behind it is restored");
        assert!(is_ended_by(1, 40, Lsn::MAX, 40));
        assert!(!is_ended_by(1, 40, Lsn::MAX, 60), "the child's WAL follows");
        assert!(!is_ended_by(1, 50, Lsn::MAX, 50), "the timeline was left before");
    }
}
