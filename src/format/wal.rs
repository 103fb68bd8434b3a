//! What the directories of flush objects, fences and compacted WAL say. Spec: formats/wal.md.

use super::record::{Extension, code, record};
use crate::base::{BackupId, Generation, Lsn, ObjectId, StreamId, TimelineId, Timestamp};

record! {
    /// The directory's meta of a flush object or a compacted WAL segment.
    pub struct WalMeta {
        /// The generation of the cluster it comes from.
        pub generation: Generation,
        /// The timeline the bytes were streamed on.
        pub timeline: TimelineId,
        /// The first byte.
        pub start: Lsn,
        /// One past the last byte; equal to `start` in a heartbeat.
        pub end: Lsn,
        /// The server's end of WAL when the object was sealed.
        pub server_end: Lsn,
        /// The server's clock of the newest message by then at which everything up to `end` had been sent.
        pub server_time: Timestamp,
        /// Flush objects: the BLAKE3 of the object before, in this stream or, for number 0, of the predecessor's
        /// last; zero when there is none, and in compacted segments.
        pub previous_link: [u8; 32],
        /// Number 0 of a stream that takes over from another.
        pub predecessor: Option<Predecessor>,
        /// What the bytes hold.
        pub summary: WalSummary,
        /// What its delta frames are made of; `None` when it has none.
        pub deltas: Option<WalDeltas>,
        /// Later versions' fields.
        pub extensions: Vec<Extension>,
    }
}

record! {
    /// What the delta frames of a segment are made of.
    pub struct WalDeltas {
        /// Their epoch.
        pub epoch: DeltaEpoch,
        /// The backup that images may be differences from.
        pub base: Option<BackupId>,
        /// What they hold.
        pub stats: DeltaStats,
    }
}

record! {
    /// An epoch: delta frames that are decoded in LSN order, from the first on.
    pub struct DeltaEpoch {
        /// Which.
        pub id: ObjectId,
        /// Where it begins.
        pub start: Lsn,
        /// The newest root when it began.
        pub root: u64,
        /// The most pages in its image cache.
        pub cache_pages: u32,
    }
}

record! {
    /// Where the bytes of delta frames are, for people.
    pub struct DeltaStats {
        /// Images.
        pub images: u64,
        /// Of these, as differences from pages of the base.
        pub images_base: u64,
        /// Of these, as differences from earlier images.
        pub images_image: u64,
        /// Bytes of images in the WAL.
        pub image_bytes: u64,
        /// What they take in the frames, with the tuples that splits moved.
        pub image_bytes_stored: u64,
        /// What everything else takes.
        pub record_bytes_stored: u64,
    }
}

impl DeltaStats {
    /// Of nothing.
    pub const EMPTY: DeltaStats = DeltaStats {
        images: 0,
        images_base: 0,
        images_image: 0,
        image_bytes: 0,
        image_bytes_stored: 0,
        record_bytes_stored: 0,
    };

    /// Adds those of other frames.
    pub fn add(&mut self, other: &DeltaStats) {
        self.images += other.images;
        self.images_base += other.images_base;
        self.images_image += other.images_image;
        self.image_bytes += other.image_bytes;
        self.image_bytes_stored += other.image_bytes_stored;
        self.record_bytes_stored += other.record_bytes_stored;
    }
}

record! {
    /// The stream before, as its successor found and closed it.
    pub struct Predecessor {
        /// Its id.
        pub stream: StreamId,
        /// The number its fence won.
        pub fence_number: u64,
        /// Where its chain ends.
        pub end: Lsn,
    }
}

record! {
    /// The directory's meta of a fence.
    pub struct FenceMeta {
        /// The stream that follows.
        pub successor: StreamId,
        /// Its writer epoch.
        pub writer_epoch: u64,
        /// The BLAKE3 of the last flush object before the fence; zero when there is none.
        pub previous_link: [u8; 32],
        /// Later versions' fields.
        pub extensions: Vec<Extension>,
    }
}

record! {
    /// What a range of WAL holds, record by record. A record belongs to the range that holds its last byte.
    pub struct WalSummary {
        /// Start of the first record that begins in the range.
        pub first_record: Option<Lsn>,
        /// End of the last record that ends in the range: where the next could start, before any page header. Up to 7
        /// bytes past the range's end, and after a WAL switch the end of the WAL segment.
        pub last_record_end: Option<Lsn>,
        /// Commits and aborts, prepared ones included.
        pub finished_count: u64,
        /// Commits alone.
        pub commit_count: u64,
        /// Time of the first commit or abort, in LSN order.
        pub time_first: Option<Timestamp>,
        /// Time of the last.
        pub time_last: Option<Timestamp>,
        /// The least time: with `time_max` it tells where a clock that was set back makes a moment ambiguous.
        pub time_min: Option<Timestamp>,
        /// The greatest time.
        pub time_max: Option<Timestamp>,
        /// The smallest xid that finished.
        pub xid_min: Option<u32>,
        /// The greatest.
        pub xid_max: Option<u32>,
        /// Stretches that could not be read: damage, or the end of a record whose beginning was not seen. A commit may hide there.
        pub unread_count: u64,
        /// Where the first was noticed.
        pub unread_first: Option<Lsn>,
        /// Checkpoints, restore points and events, in LSN order.
        pub events: Vec<Event>,
    }
}

record! {
    /// One thing in the WAL that a person looks for.
    pub struct Event {
        /// The record's start.
        pub lsn: Lsn,
        /// Its end.
        pub end: Lsn,
        /// What happened.
        pub kind: EventKind,
        /// The transaction, or 0.
        pub xid: u32,
        /// Commit time, or the record's own; the newest commit's where it has none, `-infinity` before the first.
        pub time: Timestamp,
        /// The database's oid, or 0.
        pub database: u32,
        /// Relations dropped and files truncated, counted.
        pub relation_count: u32,
        /// The first of them, by filenumber.
        pub relations: Vec<RelationRef>,
        /// A restore point's name, otherwise empty.
        pub name: String,
        /// A checkpoint's redo, otherwise `0/0`.
        pub redo: Lsn,
    }
}

record! {
    /// A relation's file: tablespace, database, filenumber.
    #[derive(Copy, PartialOrd, Ord, Hash)]
    pub struct RelationRef {
        /// Tablespace oid.
        pub tablespace: u32,
        /// Database oid.
        pub database: u32,
        /// The relation's filenumber.
        pub relation: u32,
    }
}

code! {
    /// Kinds of events.
    pub enum EventKind {
        /// A shutdown checkpoint.
        CheckpointShutdown = 1,
        /// An online checkpoint.
        CheckpointOnline = 2,
        /// A named restore point.
        RestorePoint = 3,
        /// A commit that dropped relations for good.
        Drop = 4,
        /// A commit that emptied relations (TRUNCATE).
        Truncate = 5,
        /// A commit that rewrote relations into new files (VACUUM FULL, CLUSTER, REINDEX, ALTER TABLE).
        Rewrite = 6,
        /// A database created.
        CreateDatabase = 7,
        /// A database dropped.
        DropDatabase = 8,
        /// The end of a recovery.
        EndOfRecovery = 9,
        /// Changed parameters (wal_level, max_connections and so on).
        ParameterChange = 10,
        /// The redo point of an online checkpoint, from PostgreSQL 17.
        CheckpointRedo = 11,
        /// A commit that dropped indexes and nothing else.
        DropIndex = 12,
    }
}

impl WalSummary {
    /// A summary of nothing.
    pub fn empty() -> Self {
        WalSummary {
            first_record: None,
            last_record_end: None,
            finished_count: 0,
            commit_count: 0,
            time_first: None,
            time_last: None,
            time_min: None,
            time_max: None,
            xid_min: None,
            xid_max: None,
            unread_count: 0,
            unread_first: None,
            events: Vec::new(),
        }
    }

    /// Adds the summary of the range right after this one's.
    pub fn extend(&mut self, next: &WalSummary) {
        self.first_record = self.first_record.or(next.first_record);
        self.last_record_end = next.last_record_end.or(self.last_record_end);
        self.finished_count += next.finished_count;
        self.commit_count += next.commit_count;
        self.time_first = self.time_first.or(next.time_first);
        self.time_last = next.time_last.or(self.time_last);
        self.time_min = [self.time_min, next.time_min].into_iter().flatten().min();
        self.time_max = self.time_max.max(next.time_max);
        self.xid_min = [self.xid_min, next.xid_min].into_iter().flatten().min();
        self.xid_max = self.xid_max.max(next.xid_max);
        self.unread_count += next.unread_count;
        self.unread_first = self.unread_first.or(next.unread_first);
        self.events.extend(next.events.iter().cloned());
    }
}
