//! One value of every record, no two fields alike, so that fields that changed places would show.

use walden::base::*;
use walden::format::index::*;
use walden::format::manifest::*;
use walden::format::record::{Blob, Extension};
use walden::format::root::*;
use walden::format::verification::*;
use walden::format::wal::*;

pub fn cluster() -> ClusterName {
    "shop".parse().unwrap()
}

pub fn object(byte: u8) -> ObjectId {
    ObjectId([byte; 16])
}

pub fn stream(byte: u8) -> StreamId {
    StreamId([byte; 16])
}

pub fn backup_id() -> BackupId {
    "20261122T195501Z".parse().unwrap()
}

fn lsn(at: u64) -> Lsn {
    Lsn::new(at)
}

fn time(micros: i64) -> Timestamp {
    Timestamp::from_micros(848_000_000_000_000 + micros)
}

fn extensions() -> Vec<Extension> {
    vec![Extension { tag: 0x8001, value: Blob(b"later".to_vec()) }]
}

pub fn root() -> Root {
    Root {
        cluster: cluster(),
        number: 7,
        made_at: time(1),
        generation: Generation(2),
        writer_epoch: 5,
        floor: 3,
        streams: vec![
            StreamEntry {
                id: stream(0x51),
                generation: Generation(2),
                timeline: TimelineId(1),
                writer_epoch: 4,
                low_water: 17,
                low_water_lsn: Some(lsn(0x1_0000_0000)),
                low_water_link: [0x52; 32],
                low_water_key_epoch: 2,
            },
            StreamEntry {
                id: stream(0x53),
                generation: Generation(2),
                timeline: TimelineId(2),
                writer_epoch: 5,
                low_water: 0,
                low_water_lsn: None,
                low_water_link: [0; 32],
                low_water_key_epoch: 0,
            },
        ],
        retired: vec![RetiredFlush { stream: stream(0x51), from: 11, to: 17, root: 6 }],
        pending: vec![PendingEntry { id: object(0x61), kind: PendingKind::Backup, root: 4 }],
        index: Some(object(0x62)),
        deleted_at: None,
        extensions: extensions(),
    }
}

pub fn floor() -> Floor {
    Floor { cluster: cluster(), number: 3, root: 5 }
}

pub fn generation() -> GenerationRecord {
    GenerationRecord {
        cluster: cluster(),
        generation: Generation(2),
        system_id: SystemId(7_312_345_678_901_234_567),
        major_version: 15,
        segment_size: 16 << 20,
        block_size: 8192,
    }
}

pub fn pending() -> Pending {
    Pending {
        id: object(0x61),
        kind: PendingKind::Backup,
        began_at: time(2),
        backup: Some(backup_id()),
        holder: "db1 4711".into(),
    }
}

pub fn verification() -> Verification {
    let backup = |outcome, depth, reason: &str| BackupVerification {
        backup: backup_id(),
        outcome,
        depth,
        at: time(41),
        reason: reason.into(),
    };
    Verification {
        cluster: cluster(),
        number: 4,
        root: 7,
        started_at: time(42),
        finished_at: time(43),
        depth: VerifyDepth::Content,
        scope: VerifyScope::Sample,
        objects: 17,
        bytes: 123_456,
        bytes_covered: 234_567,
        bytes_total: 345_678,
        backups: vec![
            backup(VerifyOutcome::Verified, VerifyDepth::Content, ""),
            backup(VerifyOutcome::Damaged, VerifyDepth::References, "3 of its chunks are in no segment"),
        ],
        damage: vec![DamageEntry {
            key: "clusters/shop/backups/20261122T195501Z".into(),
            reason: "it is gone".into(),
            cost: "backup 20261122T195501Z".into(),
            found_at: time(44),
        }],
        damage_count: 2,
        arcs: vec![
            VerifiedArc { first: 0, last: 0x1000, listed_unix_micros: 1_795_377_301_123_456, at: time(45) },
            VerifiedArc {
                first: 0x1001,
                last: u64::MAX,
                listed_unix_micros: 1_795_377_301_123_457,
                at: time(46),
            },
        ],
        unproved: vec![0x0800, u64::MAX],
        extensions: extensions(),
    }
}

fn event(kind: EventKind) -> Event {
    Event {
        lsn: lsn(0x1_0001_0028),
        end: lsn(0x1_0001_0100),
        kind,
        xid: 750,
        time: time(33),
        database: 16384,
        relation_count: 2,
        relations: vec![RelationRef { tablespace: 1663, database: 16385, relation: 16390 }],
        name: "before the migration".into(),
        redo: lsn(0x1_0000_0060),
    }
}

pub fn summary() -> WalSummary {
    WalSummary {
        first_record: Some(lsn(0x1_0000_0028)),
        last_record_end: Some(lsn(0x1_0001_0200)),
        finished_count: 12,
        commit_count: 11,
        time_first: Some(time(31)),
        time_last: Some(time(34)),
        time_min: Some(time(30)),
        time_max: Some(time(35)),
        xid_min: Some(741),
        xid_max: Some(752),
        unread_count: 3,
        unread_first: Some(lsn(0x1_0000_8000)),
        events: EventKind::ALL.iter().copied().map(event).collect(),
    }
}

/// Number 0 of a stream that took over, of 40,000 bytes of WAL in two frames.
pub fn flush_first() -> WalMeta {
    WalMeta {
        generation: Generation(2),
        timeline: TimelineId(2),
        start: lsn(0x1_0000_0000),
        end: lsn(0x1_0000_0000 + 40_000),
        server_end: lsn(0x1_0002_0000),
        server_time: time(40),
        previous_link: [0x71; 32],
        predecessor: Some(Predecessor { stream: stream(0x51), fence_number: 19, end: lsn(0x1_0000_0000) }),
        summary: summary(),
        deltas: None,
        extensions: extensions(),
    }
}

pub fn heartbeat() -> WalMeta {
    WalMeta {
        generation: Generation(2),
        start: lsn(0x1_0000_9C40),
        end: lsn(0x1_0000_9C40),
        predecessor: None,
        summary: WalSummary::empty(),
        extensions: Vec::new(),
        ..flush_first()
    }
}

pub fn fence() -> FenceMeta {
    FenceMeta {
        successor: stream(0x53),
        writer_epoch: 5,
        previous_link: [0x72; 32],
        extensions: extensions(),
    }
}

pub fn segment() -> WalMeta {
    WalMeta { previous_link: [0; 32], predecessor: None, deltas: Some(deltas()), ..flush_first() }
}

fn deltas() -> WalDeltas {
    WalDeltas {
        epoch: DeltaEpoch { id: object(0x91), start: lsn(0x2000), root: 16, cache_pages: 1 << 19 },
        base: Some(backup_id()),
        stats: DeltaStats {
            images: 1_001,
            images_base: 502,
            images_image: 403,
            image_bytes: 7_000_004,
            image_bytes_stored: 60_005,
            record_bytes_stored: 90_006,
        },
    }
}

pub fn index_meta() -> IndexMeta {
    IndexMeta {
        levels: vec![IndexLevel { id: object(0x63), entry_count: 100 }],
        entry_count: 12,
        extensions: extensions(),
    }
}

pub fn index_page() -> IndexPage {
    IndexPage {
        wal: vec![WalEntry {
            id: object(0x81),
            generation: Generation(2),
            timeline: TimelineId(1),
            start: lsn(0x3000),
            end: lsn(0x5000),
            object_len: 4321,
            directory_offset: 4000,
            server_time: time(50),
            summary: without_relations(&summary()),
            deltas: Some(deltas()),
        }],
        pages: vec![PagesEntry {
            id: object(0x82),
            object_len: 8765,
            directory_offset: 8000,
            chunk_count: 3,
            plain_bytes: 270_000,
        }],
        backups: vec![backup_entry()],
        gaps: vec![GapEntry {
            id: object(0x83),
            generation: Generation(2),
            timeline: TimelineId(1),
            start: lsn(0x7000),
            end: lsn(0x9000),
            recorded_at: time(60),
            reason: "the slot was dropped".into(),
        }],
        histories: vec![HistoryEntry {
            generation: Generation(2),
            timeline: TimelineId(2),
            content: Blob(b"1\t1/0\tno recovery target specified\n".to_vec()),
        }],
        pins: vec![
            PinEntry {
                backup: backup_id(),
                pinned_at: time(90),
                until: Some(time(99)),
                reason: "before the migration".into(),
            },
            PinEntry {
                backup: "20261101T000000Z".parse().unwrap(),
                pinned_at: time(91),
                until: None,
                reason: String::new(),
            },
        ],
        expired: vec![ExpiredEntry {
            generation: Generation(1),
            timeline: TimelineId(1),
            start: lsn(0x1000),
            end: lsn(0x2000),
        }],
        removed: RemovedKind::ALL
            .iter()
            .zip([
                object(0x84).to_string(),
                object(0x85).to_string(),
                "20261101T000000Z".into(),
                "20261101T000000Z".into(),
            ])
            .map(|(kind, name)| RemovedEntry { kind: *kind, name, root: 6 })
            .collect(),
    }
}

fn backup_entry() -> BackupEntry {
    BackupEntry {
        id: backup_id(),
        generation: Generation(2),
        timeline: TimelineId(1),
        redo: lsn(0x2000),
        start: lsn(0x2028),
        stop: lsn(0x2138),
        started_at: time(70),
        stopped_at: time(80),
        bytes_raw: 1_000_001,
        bytes_stored: 400_002,
        bytes_new: 100_003,
        manifest_len: 2_004,
        manifest_number: 2,
        damaged_blocks: 1,
        root: 17,
        state: BackupState::Damaged,
    }
}

pub fn manifest_meta() -> ManifestMeta {
    ManifestMeta {
        id: backup_id(),
        cluster: cluster(),
        generation: Generation(2),
        system_id: SystemId(7_312_345_678_901_234_567),
        server_version: 150_019,
        segment_size: 16 << 20,
        checksums: true,
        timeline: TimelineId(1),
        start: lsn(0x2028),
        redo: lsn(0x2000),
        checkpoint: lsn(0x2060),
        stop: lsn(0x2138),
        started_at: time(70),
        stopped_at: time(80),
        tablespaces: vec![Tablespace { oid: 16400, path: "/srv/fast".into() }],
        settings: vec![Setting { name: "max_connections".into(), value: "200".into() }],
        config_files: vec![ConfigFile {
            path: "/etc/postgresql/15/main/pg_hba.conf".into(),
            content: Blob(b"local all all peer\n".to_vec()),
        }],
        damaged: vec![DamagedBlock { path: "base/16384/16390".into(), block: 42 }],
        file_count: 4,
        bytes_raw: 1_000_001,
        extensions: extensions(),
    }
}

pub fn manifest_pages(page: ChunkId) -> ManifestPages {
    ManifestPages { pages: vec![PageRef { chunk: page, file_count: 4, first: "PG_VERSION".into() }] }
}

/// A page of a small file, a large one, a directory and a link.
pub fn manifest_page(small: ChunkId, map: ChunkId) -> ManifestPage {
    let file = |path: &str, kind| FileEntry {
        path: path.into(),
        kind,
        mode: 0o600,
        modified: 1_795_377_301,
        len: 0,
        crc32c: 0,
        link: String::new(),
        content: Vec::new(),
    };
    let run = |kind, len, chunks| ContentRun { kind, len, chunks };
    ManifestPage {
        files: vec![
            FileEntry {
                len: 3,
                crc32c: 0x1234_5678,
                content: vec![run(RunKind::Chunks, 3, vec![small])],
                ..file("PG_VERSION", FileKind::Regular)
            },
            FileEntry { mode: 0o700, ..file("base/16384", FileKind::Directory) },
            FileEntry {
                len: 3_000_000,
                crc32c: 0x9abc_def0,
                content: vec![run(RunKind::Map, 2_900_000, vec![map]), run(RunKind::Zeros, 100_000, vec![])],
                ..file("base/16384/16390", FileKind::Regular)
            },
            FileEntry { link: "/srv/fast".into(), ..file("pg_tblspc/16400", FileKind::Link) },
        ],
    }
}

pub fn block_map() -> BlockMap {
    let chunks = (1..=12).map(|byte| ChunkId([byte; 32])).collect();
    BlockMap { runs: vec![ContentRun { kind: RunKind::Chunks, len: 2_900_000, chunks }] }
}
