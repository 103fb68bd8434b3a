//! What single records say, version by version.

use super::*;
use crate::base::{SegmentSize, SystemId};
use crate::wal::{DecodeFrom, Decoder, Outcome, Synth};

fn one_record(version: WalVersion, rmgr: u8, info: u8, xid: u32, main: &[u8]) -> Record {
    let size = SegmentSize::new(1 << 20).unwrap();
    let start = Lsn::new(1 << 20);
    let mut synth = Synth::new(version, size, SystemId(7), TimelineId(1), start);
    synth.main_record(rmgr, info, xid, main);
    let mut decoder = Decoder::new(size, start, DecodeFrom::Anywhere);
    decoder.feed(start, &synth.take());
    decoder.next().unwrap().unwrap()
}

fn fact(version: WalVersion, rmgr: u8, info: u8, main: &[u8]) -> Option<Fact> {
    Fact::of(&one_record(version, rmgr, info, 3, main)).unwrap()
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A commit with every optional part there is.
fn full_commit(version: WalVersion, invalidations: u32) -> Vec<u8> {
    let mut main = 123_456i64.to_le_bytes().to_vec();
    let stats = u32::from(version >= WalVersion::V15) << 8;
    main.extend(words(&[0xFF | stats, 5, 1663]));
    main.extend(words(&[2, 901, 902]));
    main.extend(words(&[2, 1663, 5, 16384, 1664, 0, 16385]));
    if stats != 0 {
        main.extend(words(&[2]));
        main.extend(vec![0xEE; 2 * if version == WalVersion::V18 { 16 } else { 12 }]);
    }
    main.extend(words(&[invalidations]));
    main.extend(vec![0xDD; 16 * invalidations as usize]);
    main.extend(words(&[900]));
    main.extend_from_slice(b"the name\0");
    main.extend_from_slice(&[0xCC; 16]);
    main
}

#[test]
fn reads_every_part_of_a_commit_in_its_order() {
    for version in WalVersion::ALL {
        // The last is longer than what is kept: its middle is gone, the xid behind it is not.
        for invalidations in [0, 3, 5000, 400_000] {
            let main = full_commit(version, invalidations);
            let Some(Fact::Finished(finished)) = fact(version, rmgr::XACT, 0x80 | 0x30, &main) else {
                panic!()
            };
            assert_eq!((finished.xid, finished.outcome, finished.prepared), (900, Outcome::Commit, true));
            assert_eq!(finished.time, Timestamp::from_micros(123_456));
            assert_eq!((finished.database, &finished.subxids[..]), (5, &[901, 902][..]));
            let of = |tablespace, database, relation| RelationRef { tablespace, database, relation };
            assert_eq!(finished.dropped, [of(1663, 5, 16384), of(1664, 0, 16385)]);
            assert_eq!((finished.dropped_count, finished.gid.as_deref()), (2, Some("the name")));
        }
    }
}

#[test]
fn plain_ends_of_transactions() {
    let time = 5i64.to_le_bytes();
    for (info, outcome) in [(0x00, Outcome::Commit), (0x20, Outcome::Abort)] {
        let Some(Fact::Finished(finished)) = fact(WalVersion::V14, rmgr::XACT, info, &time) else { panic!() };
        assert_eq!((finished.xid, finished.outcome, finished.prepared), (3, outcome, false));
        assert_eq!((finished.time, finished.dropped_count), (Timestamp::from_micros(5), 0));
    }
    // Aborts have no invalidations: the two-phase xid follows at once, whatever the flag says.
    let mut main = time.to_vec();
    main.extend(words(&[1 << 3 | 1 << 4, 77]));
    let Some(Fact::Finished(finished)) = fact(WalVersion::V16, rmgr::XACT, 0x80 | 0x40, &main) else {
        panic!()
    };
    assert_eq!((finished.xid, finished.outcome, finished.prepared), (77, Outcome::Abort, true));
    for info in [0x10, 0x50, 0x60] {
        assert_eq!(
            fact(WalVersion::V16, rmgr::XACT, info, &time),
            None,
            "prepare, assignment, invalidations"
        );
    }
}

#[test]
fn cut_main_data_is_an_error_and_hostile_counts_take_no_memory() {
    let main = full_commit(WalVersion::V18, 3);
    for len in 0..main.len() - 16 - 9 {
        let record = one_record(WalVersion::V18, rmgr::XACT, 0x80 | 0x30, 3, &main[..len]);
        assert!(Fact::of(&record).is_err(), "{len} bytes");
    }
    for at in [8 + 4 + 8, 8 + 4 + 8 + 12] {
        let mut hostile = main.clone();
        hostile[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Fact::of(&one_record(WalVersion::V18, rmgr::XACT, 0x80 | 0x30, 3, &hostile)).is_err());
    }
    for (rmgr, info) in [
        (0, 0x00),
        (0, 0x10),
        (0, 0x60),
        (0, 0x70),
        (0, 0x90),
        (0, 0xD0),
        (2, 0x10),
        (4, 0),
        (7, 0),
        (8, 0x10),
    ] {
        assert!(Fact::of(&one_record(WalVersion::V15, rmgr, info, 3, &[1, 2])).is_err(), "{rmgr} {info:#x}");
    }
}

#[test]
fn databases_in_both_dialects() {
    let created = words(&[50, 1663, 1, 1664]);
    let dropped = words(&[50, 2, 1663, 1700]);
    let drop = Some(Fact::DatabaseDropped { database: 50, tablespaces: vec![1663, 1700] });
    let create = |source| Some(Fact::DatabaseCreated { database: 50, tablespace: 1663, source });
    assert_eq!(fact(WalVersion::V14, rmgr::DBASE, 0x00, &created), create(Some((1, 1664))));
    assert_eq!(fact(WalVersion::V14, rmgr::DBASE, 0x10, &dropped), drop);
    for version in WalVersion::ALL.into_iter().skip(1) {
        assert_eq!(fact(version, rmgr::DBASE, 0x00, &created), create(Some((1, 1664))));
        assert_eq!(fact(version, rmgr::DBASE, 0x10, &created), create(None));
        assert_eq!(fact(version, rmgr::DBASE, 0x20, &dropped), drop);
    }
}

#[test]
fn the_redo_point_has_a_record_from_17() {
    for version in WalVersion::ALL {
        let record = one_record(version, rmgr::XLOG, 0xE0, 0, &1u32.to_le_bytes());
        let redo =
            Fact::Checkpoint { kind: CheckpointKind::Redo, redo: record.start, time: None, next_xid: 0 };
        assert_eq!(Fact::of(&record), Ok((version >= WalVersion::V17).then_some(redo)));
    }
}
