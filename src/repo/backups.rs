//! What a backup needs to be restorable, and whether it is. Pure.
//! A backup that was committed as pending becomes restorable by itself once its WAL is durable, whoever stored that.

use super::walmap::WalMap;
use crate::base::{BackupId, Lsn, LsnRange, SegmentSize};
use crate::format::index::{BackupEntry, BackupState, RemovedEntry, RemovedKind};
use crate::format::manifest::ManifestMeta;
use crate::repo::layout;

/// The WAL without which `backup` is worth nothing: from the start of the WAL segment that holds its redo LSN to its stop LSN.
pub fn needed_wal(backup: &BackupEntry, size: SegmentSize) -> LsnRange {
    let start = size.segment_start(backup.redo.min(backup.start));
    LsnRange::new(start, backup.stop.max(start))
}

/// The entry of a backup whose manifest is object `number`, of `manifest_len` bytes: pending, as of `root`, and without the figures that
/// only the work that made it knows.
pub fn entry_of(meta: &ManifestMeta, (number, manifest_len): (u32, u64), root: u64) -> BackupEntry {
    BackupEntry {
        id: meta.id.clone(),
        generation: meta.generation,
        timeline: meta.timeline,
        redo: meta.redo,
        start: meta.start,
        stop: meta.stop,
        started_at: meta.started_at,
        stopped_at: meta.stopped_at,
        bytes_raw: meta.bytes_raw,
        bytes_stored: 0,
        bytes_new: 0,
        manifest_len,
        manifest_number: number,
        damaged_blocks: meta.damaged.len() as u64,
        root,
        state: BackupState::Pending,
    }
}

/// Why a name names no backup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// None begins like it.
    #[error("there is no backup {name}")]
    Unknown {
        /// What was given.
        name: String,
        /// Those that are there.
        known: Vec<BackupId>,
    },
    /// Several do.
    #[error("backup {name} is ambiguous")]
    Ambiguous {
        /// What was given.
        name: String,
        /// Those that begin like it.
        fits: Vec<BackupId>,
    },
}

/// The one backup whose id begins with `name`.
pub fn named<'a>(backups: &'a [BackupEntry], name: &str) -> Result<&'a BackupEntry, NameError> {
    let fits: Vec<&BackupEntry> =
        backups.iter().filter(|backup| backup.id.as_str().starts_with(name)).collect();
    let ids = |of: &[&BackupEntry]| of.iter().map(|backup| backup.id.clone()).collect();
    match fits.as_slice() {
        [backup] => Ok(backup),
        [] => {
            let known = backups.iter().map(|backup| backup.id.clone()).collect();
            Err(NameError::Unknown { name: name.to_owned(), known })
        }
        several => Err(NameError::Ambiguous { name: name.to_owned(), fits: ids(several) }),
    }
}

/// Whether a backup in `state` can be restored, as far as it itself is concerned.
pub fn is_restorable(state: BackupState) -> bool {
    match state {
        BackupState::Complete | BackupState::Damaged => true,
        BackupState::Pending | BackupState::Base => false,
    }
}

/// What `backup` is now that `wal` is durable. `wal` is of its generation.
pub fn state_now(backup: &BackupEntry, wal: &WalMap, size: SegmentSize) -> BackupState {
    let needed = needed_wal(backup, size);
    state_when(backup, needed, wal.contiguous_end(backup.timeline, needed.start))
}

/// What `backup` is when the WAL that it needs is durable up to `end`.
pub fn state_when(backup: &BackupEntry, needed: LsnRange, end: Lsn) -> BackupState {
    match backup.state {
        BackupState::Pending if end < needed.end => BackupState::Pending,
        BackupState::Pending if backup.damaged_blocks > 0 => BackupState::Damaged,
        BackupState::Pending => BackupState::Complete,
        BackupState::Complete => BackupState::Complete,
        BackupState::Damaged => BackupState::Damaged,
        BackupState::Base => BackupState::Base,
    }
}

/// The removals that take `backup` out of the index from `root` on: of the backup, and of its manifest object, if that was sealed anew.
pub fn removal(backup: &BackupEntry, root: u64) -> Vec<RemovedEntry> {
    let mut removed = vec![RemovedEntry { kind: RemovedKind::Backup, name: backup.id.to_string(), root }];
    if backup.manifest_number > 0 {
        let name = layout::manifest_name(&backup.id, backup.manifest_number);
        removed.push(RemovedEntry { kind: RemovedKind::Manifest, name, root });
    }
    removed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Generation, ObjectId, TimelineId, Timestamp};
    use crate::format::index::WalEntry;
    use crate::format::wal::WalSummary;
    use crate::repo::Index;

    const TIMELINE: TimelineId = TimelineId(1);

    fn backup() -> BackupEntry {
        BackupEntry {
            id: "20261122T195501Z".parse().unwrap(),
            generation: Generation(1),
            timeline: TIMELINE,
            redo: Lsn::new(0x250_0000),
            start: Lsn::new(0x250_0000),
            stop: Lsn::new(0x310_0000),
            started_at: Timestamp::from_micros(0),
            stopped_at: Timestamp::from_micros(1),
            bytes_raw: 0,
            bytes_stored: 0,
            bytes_new: 0,
            manifest_len: 0,
            manifest_number: 0,
            damaged_blocks: 0,
            root: 0,
            state: BackupState::Pending,
        }
    }

    fn wal(ranges: &[(u64, u64)]) -> WalMap {
        let entry = |&(start, end): &(u64, u64)| WalEntry {
            id: ObjectId([0; 16]),
            generation: Generation(1),
            timeline: TIMELINE,
            start: Lsn::new(start),
            end: Lsn::new(end),
            object_len: 0,
            directory_offset: 0,
            server_time: Timestamp::from_micros(0),
            summary: WalSummary::empty(),
            deltas: None,
        };
        let index = Index { wal: ranges.iter().map(entry).collect(), ..Index::default() };
        WalMap::new(Generation(1), &index, Vec::new())
    }

    #[test]
    fn a_backup_is_restorable_when_all_of_its_wal_is_durable() {
        let size = SegmentSize::DEFAULT;
        assert_eq!(needed_wal(&backup(), size), LsnRange::new(Lsn::new(0x200_0000), Lsn::new(0x310_0000)));
        let state = |ranges: &[(u64, u64)]| state_now(&backup(), &wal(ranges), size);
        assert_eq!(state(&[]), BackupState::Pending);
        assert_eq!(
            state(&[(0x250_0000, 0x400_0000)]),
            BackupState::Pending,
            "its segment's start is missing"
        );
        assert_eq!(state(&[(0x200_0000, 0x30F_FFFF)]), BackupState::Pending, "one byte short");
        assert_eq!(
            state(&[(0x200_0000, 0x280_0000), (0x290_0000, 0x400_0000)]),
            BackupState::Pending,
            "a hole"
        );
        assert_eq!(state(&[(0x100_0000, 0x280_0000), (0x280_0000, 0x310_0000)]), BackupState::Complete);
        let damaged = BackupEntry { damaged_blocks: 1, ..backup() };
        assert_eq!(state_now(&damaged, &wal(&[(0x200_0000, 0x310_0000)]), size), BackupState::Damaged);
    }

    #[test]
    fn the_manifest_object_that_counts_goes_with_its_backup() {
        let cluster = "shop".parse().unwrap();
        let keys = |backup: &BackupEntry| -> Vec<String> {
            let named = removal(backup, 7).into_iter().map(|removed| removed.name);
            named.map(|name| layout::manifest_named(&cluster, &name).unwrap().to_string()).collect()
        };
        let first = backup();
        assert_eq!(keys(&first), ["clusters/shop/backups/20261122T195501Z"]);
        let moved = BackupEntry { manifest_number: 3, ..first };
        let expected = layout::manifest(&cluster, &moved.id, 3).to_string();
        assert_eq!(keys(&moved).last(), Some(&expected));
        assert_eq!(expected, "clusters/shop/backups/20261122T195501Z-3");
        assert_eq!(layout::manifest_named(&cluster, "20261122T195501Z-x"), None);
    }
}
