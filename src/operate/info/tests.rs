//! What is shown of windows, gaps and lag.

use super::*;
use crate::base::{ClusterName, Generation, LsnRange, ObjectId, SegmentSize, SystemId, TimelineId};
use crate::format::index::{GapEntry, WalEntry};
use crate::format::root::{GenerationRecord, Root};
use crate::format::wal::WalSummary;
use crate::repo::lineage::{Lineage, Piece};
use crate::repo::{Index, WalMap};
use crate::restore::resolve::Archive;
use std::sync::Arc;

const MIB: u64 = 1 << 20;

fn at(second: i64) -> Timestamp {
    Timestamp::from_micros(second * 1_000_000)
}

fn entry(start: u64, end: u64, second: i64) -> WalEntry {
    WalEntry {
        id: ObjectId([start as u8; 16]),
        generation: Generation(1),
        timeline: TimelineId(1),
        start: Lsn::new(start * MIB),
        end: Lsn::new(end * MIB),
        object_len: 1000,
        directory_offset: 900,
        server_time: at(second),
        summary: WalSummary::empty(),
        deltas: None,
    }
}

fn backup_at(start: u64, stop: u64, second: i64) -> BackupEntry {
    BackupEntry {
        id: crate::base::BackupId::at(at(second)),
        generation: Generation(1),
        timeline: TimelineId(1),
        redo: Lsn::new(start * MIB),
        start: Lsn::new(start * MIB),
        stop: Lsn::new(stop * MIB),
        started_at: at(second - 5),
        stopped_at: at(second),
        bytes_raw: 3 << 30,
        bytes_stored: 1 << 30,
        bytes_new: 1 << 30,
        manifest_len: 100,
        manifest_number: 0,
        damaged_blocks: 0,
        root: 0,
        state: BackupState::Complete,
    }
}

/// WAL 1..10 MiB, and 20..30 MiB after a gap, a backup in each.
fn info(backups: Vec<BackupEntry>, server: Option<WalPosition>) -> ClusterInfo {
    let index = Index {
        wal: vec![entry(1, 10, 100), entry(20, 30, 200)],
        gaps: vec![GapEntry {
            id: ObjectId([9; 16]),
            generation: Generation(1),
            timeline: TimelineId(1),
            start: Lsn::new(10 * MIB),
            end: Lsn::new(20 * MIB),
            recorded_at: at(150),
            reason: "the slot was dropped".into(),
        }],
        backups: backups.clone(),
        ..Index::default()
    };
    let name: ClusterName = "shop".parse().unwrap();
    let root = Root { number: 7, writer_epoch: 1, ..Root::first(name, Generation(1), at(200)) };
    let wal = Arc::new(WalMap::new(Generation(1), &index, Vec::new()));
    let piece = |entry: &WalEntry| Piece {
        timeline: entry.timeline,
        range: LsnRange::new(entry.start, entry.end),
        server_time: entry.server_time,
        summary: entry.summary.clone(),
    };
    let archive = Archive {
        generation: Generation(1),
        segment_size: SegmentSize::new(MIB).unwrap(),
        backups,
        gaps: index.gaps.clone(),
        lineage: Lineage::default(),
        pieces: index.wal.iter().map(piece).collect(),
        current: TimelineId(1),
    };
    let record = GenerationRecord {
        cluster: root.cluster.clone(),
        generation: Generation(1),
        system_id: SystemId(u64::MAX),
        major_version: 15,
        segment_size: MIB as u32,
        block_size: 8192,
    };
    let snapshot = Snapshot { root, index, wal: wal.clone() };
    let loaded = Loaded { record, archive, wal };
    describe("shop", &snapshot, &loaded, &Usage::default(), server, at(260)).unwrap()
}

#[test]
fn the_window_runs_from_the_first_backup_to_the_newest_durable_time_less_the_gap() {
    let info = info(vec![backup_at(2, 3, 50), backup_at(21, 22, 180)], None);
    assert_eq!(info.window.start.as_deref(), Some("2000-01-01 00:00:50.000000+00"));
    assert_eq!(info.window.end.as_deref(), Some("2000-01-01 00:03:20.000000+00"));
    let gap = GapInfo {
        start_lsn: "0/A00000".into(),
        end_lsn: Some("0/1600000".into()),
        start: Some("2000-01-01 00:01:40.000000+00".into()),
        end: Some("2000-01-01 00:03:00.000000+00".into()),
        reason: Some("the slot was dropped".into()),
    };
    assert_eq!(info.window.gaps, [gap]);
    assert_eq!((info.wal.bytes_raw, info.wal.bytes_stored, info.wal.objects), (19 * MIB, 2000, 2));
}

#[test]
fn a_gap_that_no_backup_closed_yet_is_shown() {
    let info = info(vec![backup_at(2, 3, 50)], None);
    assert_eq!(info.window.end.as_deref(), Some("2000-01-01 00:01:40.000000+00"));
    assert_eq!(info.window.gaps.len(), 1);
    assert_eq!(
        (info.window.gaps[0].end_lsn.as_deref(), &info.window.gaps[0].end),
        (Some("0/1400000"), &None)
    );
}

#[test]
fn without_a_backup_there_is_no_window() {
    let info = info(Vec::new(), None);
    assert_eq!((&info.window.start, &info.window.end), (&None, &None));
    assert!(info.to_string().contains("recovery window  none"));
}

#[test]
fn nothing_is_behind_when_everything_the_server_has_is_durable() {
    let behind = |flushed: u64| {
        let server = WalPosition { end: Lsn::new(flushed), in_recovery: false, clock: at(230) };
        let lag = info(Vec::new(), Some(server)).lag;
        (lag.bytes, lag.seconds)
    };
    assert_eq!(behind(30 * MIB), (Some(0), Some(0.0)));
    assert_eq!(behind(30 * MIB + 100), (Some(100), Some(30.0)));
    let unasked = info(Vec::new(), None).lag;
    assert_eq!((unasked.seconds, unasked.measured_by), (Some(60.0), "repository"));
}

#[test]
fn system_identifiers_stay_exact_in_json() {
    let json = serde_json::to_value(info(Vec::new(), None)).unwrap();
    assert_eq!(json["system_identifier"], "18446744073709551615");
    for field in ["name", "window", "durable_lsn", "lag", "backups", "wal"] {
        assert!(json.get(field).is_some(), "{field}");
    }
}
