//! The index: which segments, backups, gaps and histories exist, merged by levels. Spec: formats/index.md.
//! An index object holds entries of its own and names the older index objects it builds on; a newer entry of the
//! same identity hides an older one.

use super::record::{Extension, code, record};
use super::wal::{Event, WalDeltas, WalSummary};
use crate::base::{BackupId, Generation, Lsn, ObjectId, TimelineId, Timestamp};
use crate::format::record::Blob;

record! {
    /// One index object: entries in frames of the object, this record in its directory's meta.
    pub struct IndexMeta {
        /// Older index objects, newest first, each with its entry count.
        pub levels: Vec<IndexLevel>,
        /// Entries in this object's own frames.
        pub entry_count: u64,
        /// Later versions' fields.
        pub extensions: Vec<Extension>,
    }
}

record! {
    /// An older index object.
    pub struct IndexLevel {
        /// Which.
        pub id: ObjectId,
        /// Entries in it.
        pub entry_count: u64,
    }
}

record! {
    /// The entries of one frame of an index object. Exactly one list is usually long.
    pub struct IndexPage {
        /// Compacted WAL.
        pub wal: Vec<WalEntry>,
        /// Segments of chunks.
        pub pages: Vec<PagesEntry>,
        /// Backups.
        pub backups: Vec<BackupEntry>,
        /// Gaps.
        pub gaps: Vec<GapEntry>,
        /// Timeline histories.
        pub histories: Vec<HistoryEntry>,
        /// Backups that the operator keeps.
        pub pins: Vec<PinEntry>,
        /// WAL that retention let go.
        pub expired: Vec<ExpiredEntry>,
        /// Identities that are gone: they hide entries of older levels.
        pub removed: Vec<RemovedEntry>,
    }
}

record! {
    /// A compacted WAL segment.
    pub struct WalEntry {
        /// Its id.
        pub id: ObjectId,
        /// Its generation.
        pub generation: Generation,
        /// Its timeline.
        pub timeline: TimelineId,
        /// First byte.
        pub start: Lsn,
        /// One past the last.
        pub end: Lsn,
        /// Bytes of the object.
        pub object_len: u64,
        /// Offset of its directory frame's head.
        pub directory_offset: u64,
        /// The server's clock when everything up to `end` had been sent.
        pub server_time: Timestamp,
        /// What it holds, events without relations lists.
        pub summary: WalSummary,
        /// What its delta frames are made of; `None` when it has none.
        pub deltas: Option<WalDeltas>,
    }
}

record! {
    /// A segment of chunks.
    pub struct PagesEntry {
        /// Its id.
        pub id: ObjectId,
        /// Bytes of the object.
        pub object_len: u64,
        /// Offset of its directory frame's head.
        pub directory_offset: u64,
        /// Chunks in it.
        pub chunk_count: u32,
        /// Bytes of their plaintexts.
        pub plain_bytes: u64,
    }
}

code! {
    /// What became of a backup.
    pub enum BackupState {
        /// Everything is stored, but WAL it needs is not durable yet.
        Pending = 1,
        /// Restorable.
        Complete = 2,
        /// Restorable, with blocks whose checksum was wrong on the server.
        Damaged = 3,
        /// Kept for its pages alone, which deltas of kept WAL refer to: retention let go of the WAL that made it consistent.
        Base = 4,
    }
}

record! {
    /// A backup. Its manifest is `backups/<id>`.
    pub struct BackupEntry {
        /// Its id.
        pub id: BackupId,
        /// Its generation.
        pub generation: Generation,
        /// Its timeline.
        pub timeline: TimelineId,
        /// Where recovery starts: the redo LSN of its checkpoint.
        pub redo: Lsn,
        /// The start LSN BASE_BACKUP gave (same as `redo` from a primary).
        pub start: Lsn,
        /// The stop LSN: the consistency point.
        pub stop: Lsn,
        /// When it began, by the server's clock.
        pub started_at: Timestamp,
        /// When it stopped, by the server's clock.
        pub stopped_at: Timestamp,
        /// Bytes of the files.
        pub bytes_raw: u64,
        /// Bytes of stored frames it refers to.
        pub bytes_stored: u64,
        /// Bytes it added to the repository.
        pub bytes_new: u64,
        /// Bytes of the manifest object.
        pub manifest_len: u64,
        /// Which of its manifest objects counts: one more each time it was sealed anew.
        pub manifest_number: u32,
        /// Blocks whose checksum was wrong.
        pub damaged_blocks: u64,
        /// The newest root before its work was registered: an epoch of deltas that began there or before is not the one of its recovery.
        pub root: u64,
        /// What became of it.
        pub state: BackupState,
    }
}

record! {
    /// WAL that was lost: a recorded, permanent, named gap.
    pub struct GapEntry {
        /// Its id.
        pub id: ObjectId,
        /// Its generation.
        pub generation: Generation,
        /// Its timeline.
        pub timeline: TimelineId,
        /// The first byte missing.
        pub start: Lsn,
        /// Where WAL begins again.
        pub end: Lsn,
        /// When it was recorded.
        pub recorded_at: Timestamp,
        /// Why.
        pub reason: String,
    }
}

record! {
    /// A timeline's history file, byte for byte.
    pub struct HistoryEntry {
        /// Its generation.
        pub generation: Generation,
        /// Its timeline.
        pub timeline: TimelineId,
        /// The file.
        pub content: Blob,
    }
}

record! {
    /// The operator keeps a backup, whatever the retention policy says.
    pub struct PinEntry {
        /// The backup.
        pub backup: BackupId,
        /// When it was pinned, by the clock of whoever did; shown, never decided upon.
        pub pinned_at: Timestamp,
        /// Until when; `None` until it is unpinned.
        pub until: Option<Timestamp>,
        /// Why, for people.
        pub reason: String,
    }
}

record! {
    /// WAL that retention let go, so that nobody takes it for lost.
    pub struct ExpiredEntry {
        /// Its generation.
        pub generation: Generation,
        /// Its timeline.
        pub timeline: TimelineId,
        /// The first byte that is gone.
        pub start: Lsn,
        /// One past the last.
        pub end: Lsn,
    }
}

code! {
    /// Kinds of identities that can go.
    pub enum RemovedKind {
        /// A compacted WAL segment.
        Wal = 1,
        /// A segment of chunks.
        Pages = 2,
        /// A backup.
        Backup = 3,
        /// What a backup that is gone referred to: not an object, but work for collection.
        Chunks = 4,
        /// A manifest object of a backup that another one replaced. It hides nothing.
        Manifest = 5,
    }
}

record! {
    /// An identity that is gone. The object itself stays for the grace period after `root`.
    pub struct RemovedEntry {
        /// What it was.
        pub kind: RemovedKind,
        /// Its object's file name: an id, or a backup's id.
        pub name: String,
        /// The root from which it is unreferenced.
        pub root: u64,
    }
}

/// Events kept small for the index: relation lists are in the segment's own directory.
pub fn without_relations(summary: &WalSummary) -> WalSummary {
    let strip = |event: &Event| Event { relations: Vec::new(), ..event.clone() };
    WalSummary { events: summary.events.iter().map(strip).collect(), ..summary.clone() }
}
