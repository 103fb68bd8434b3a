//! What lost WAL costs, in the operator's terms: which moments cannot be restored, and what serves the later ones. Pure.

use super::backups::needed_wal;
use super::walmap::WalMap;
use crate::base::{LsnRange, SegmentSize, TimelineId};
use crate::format::index::BackupEntry;
use crate::format::wal::WalSummary;

/// Lost WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LostWal {
    /// Its timeline.
    pub timeline: TimelineId,
    /// Its bytes.
    pub range: LsnRange,
}

/// What losing WAL costs: recovery stops before it, until a backup that begins behind it takes over.
pub fn of_wal(wal: &WalMap, backups: &[BackupEntry], size: Option<SegmentSize>, lost: LostWal) -> String {
    let LostWal { timeline, range } = lost;
    let where_it_is = format!("WAL {range} of timeline {timeline}");
    let Some(size) = size else { return where_it_is };
    let own = || backups.iter().filter(|backup| backup.generation == wal.generation());
    let before = |backup: &&BackupEntry| {
        backup.timeline < timeline
            || (backup.timeline == timeline && needed_wal(backup, size).start < range.end)
    };
    if !own().any(|backup| before(&backup)) {
        return format!("nothing: no backup needs {where_it_is}");
    }
    let commits = commits_in(wal, lost);
    let of_timeline = wal.pieces().iter().filter(|piece| piece.timeline == timeline);
    let since =
        of_timeline.filter(|piece| piece.range.end <= range.start).map(|piece| piece.server_time).max();
    // Whoever begins on this timeline and ends on one that branches off behind the loss goes through it too.
    let branches = match wal.timelines().iter().any(|other| *other > timeline) {
        true => ", and of later timelines by way of it",
        false => "",
    };
    let from = since.map_or(format!("the beginning of timeline {timeline}"), |since| since.to_string());
    let next = own()
        .filter(|backup| backup.timeline == timeline && needed_wal(backup, size).start >= range.end)
        .min_by_key(|backup| backup.stop);
    match next {
        Some(next) => format!(
            "restores to moments between {from} and {} of timeline {timeline}{branches} ({where_it_is}{commits}); backup {} \
             serves what follows",
            next.stopped_at, next.id
        ),
        None => format!(
            "restores to any moment after {from} of timeline {timeline}{branches} ({where_it_is}{commits}), until there is another backup"
        ),
    }
}

fn commits_in(wal: &WalMap, lost: LostWal) -> String {
    let mut all = WalSummary::empty();
    for piece in wal.overlapping(lost.timeline, lost.range) {
        all.time_first = all.time_first.or(piece.summary.time_first);
        all.time_last = piece.summary.time_last.or(all.time_last);
        all.commit_count += piece.summary.commit_count;
    }
    match (all.time_first, all.time_last) {
        (Some(first), Some(last)) => format!(", commits from {first} to {last}"),
        _ => ", no commits".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Generation, Lsn, ObjectId, Timestamp};
    use crate::format::index::{BackupState, WalEntry};
    use crate::repo::Index;

    const TIMELINE: TimelineId = TimelineId(1);
    const MINUTE: i64 = 60_000_000;

    fn backup(id: &str, redo: u64, stop: u64, minute: i64) -> BackupEntry {
        BackupEntry {
            manifest_number: 0,
            id: id.parse().unwrap(),
            generation: Generation(1),
            timeline: TIMELINE,
            redo: Lsn::new(redo),
            start: Lsn::new(redo),
            stop: Lsn::new(stop),
            started_at: Timestamp::from_micros((minute - 1) * MINUTE),
            stopped_at: Timestamp::from_micros(minute * MINUTE),
            bytes_raw: 0,
            bytes_stored: 0,
            bytes_new: 0,
            manifest_len: 0,
            damaged_blocks: 0,
            root: 0,
            state: BackupState::Complete,
        }
    }

    /// Segments of 16 MiB, a minute each.
    fn wal() -> WalMap {
        let entry = |number: i64| WalEntry {
            id: ObjectId([number as u8; 16]),
            generation: Generation(1),
            timeline: TIMELINE,
            start: Lsn::new(number as u64 * 0x100_0000),
            end: Lsn::new((number as u64 + 1) * 0x100_0000),
            object_len: 0,
            directory_offset: 0,
            server_time: Timestamp::from_micros((number + 1) * MINUTE),
            summary: WalSummary::empty(),
            deltas: None,
        };
        let index = Index { wal: (1..9).map(entry).collect(), ..Index::default() };
        WalMap::new(Generation(1), &index, Vec::new())
    }

    fn cost(backups: &[BackupEntry], start: u64, end: u64) -> String {
        let range = LsnRange::new(Lsn::new(start), Lsn::new(end));
        of_wal(&wal(), backups, Some(SegmentSize::DEFAULT), LostWal { timeline: TIMELINE, range })
    }

    #[test]
    fn what_is_lost_lies_between_two_moments() {
        let (a, b) = (
            backup("20261122T000000Z", 0x110_0000, 0x120_0000, 2),
            backup("20261123T000000Z", 0x610_0000, 0x620_0000, 7),
        );
        let both = [a.clone(), b];
        let told = cost(&both, 0x400_0000, 0x500_0000);
        assert!(told.starts_with("restores to moments between 2000-01-01 00:04:00.000000+00 and 2000-01-01 00:07:00.000000+00 of timeline 1"), "{told}");
        assert!(told.ends_with("backup 20261123T000000Z serves what follows"), "{told}");
        let told = cost(&both, 0x700_0000, 0x800_0000);
        assert!(
            told.starts_with("restores to any moment after 2000-01-01 00:07:00.000000+00 of timeline 1"),
            "{told}"
        );
        // The second backup needs the end of what is lost.
        let told = cost(&both, 0x500_0000, 0x600_0001);
        assert!(told.starts_with("restores to any moment after 2000-01-01 00:05:00.000000+00"), "{told}");
        let told = cost(&[a], 0x100_0000, 0x200_0000);
        assert!(told.starts_with("restores to any moment after the beginning of timeline 1"), "{told}");
    }

    #[test]
    fn wal_before_every_backup_costs_nothing() {
        let later = backup("20261123T000000Z", 0x610_0000, 0x620_0000, 7);
        let told = cost(&[later], 0x400_0000, 0x500_0000);
        assert_eq!(told, "nothing: no backup needs WAL 0/4000000..0/5000000 of timeline 1");
        assert!(cost(&[], 0x400_0000, 0x500_0000).starts_with("nothing"));
    }
}
