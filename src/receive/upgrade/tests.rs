//! Which server may follow which.

use super::*;
use crate::base::{Generation, SegmentSize, SystemId, TimelineId};

fn stored() -> GenerationRecord {
    GenerationRecord {
        cluster: "shop".parse().unwrap(),
        generation: Generation(1),
        system_id: SystemId(77),
        major_version: 14,
        segment_size: 1 << 20,
        block_size: 8192,
    }
}

fn server(system_id: u64, major_version: u32, flushed: u64) -> Identity {
    Identity {
        system_id: SystemId(system_id),
        major_version,
        timeline: TimelineId(1),
        flushed: Lsn::new(flushed),
        segment_size: SegmentSize::new(1 << 20).unwrap(),
        block_size: 8192,
    }
}

fn end() -> WalEnd {
    WalEnd { timeline: TimelineId(3), lsn: Lsn::new(1000), server_time: Timestamp::from_micros(5) }
}

fn judged(server: &Identity, may_be: NewServer, is_whole: bool, missing: MissingWal) -> Result<(), String> {
    let record = stored();
    let ending = Ending { record: &record, deleted_at: None, end: Some(end()), is_whole };
    decide(&ending, server, may_be, missing).map_err(|error| error.to_string())
}

#[test]
fn only_what_pg_upgrade_makes_follows_without_being_asked_for() {
    let upgraded = server(78, 17, 2000);
    assert_eq!(judged(&upgraded, NewServer::Upgraded, true, MissingWal::Refuse), Ok(()));
    let big_segments = Identity { segment_size: SegmentSize::new(1 << 24).unwrap(), ..upgraded };
    let others = [
        (server(77, 17, 2000), "same system identifier, 77"),
        (server(78, 14, 2000), "PostgreSQL 14, stored is 14"),
        (server(78, 13, 2000), "PostgreSQL 13, stored is 14"),
        (server(78, 17, 999), "before the end of what is stored, 0/3E8"),
        (big_segments, "16777216 bytes, those stored 1048576"),
    ];
    for (other, why) in others {
        let refused = judged(&other, NewServer::Upgraded, true, MissingWal::Refuse).unwrap_err();
        assert!(refused.contains(why) && refused.contains("generation 1 of cluster shop"), "{refused}");
        assert_eq!(judged(&other, NewServer::Any, true, MissingWal::Refuse), Ok(()));
    }
}

#[test]
fn wal_that_is_missing_is_given_up_only_when_somebody_says_so() {
    let upgraded = server(78, 17, 2000);
    for may_be in [NewServer::Upgraded, NewServer::Any] {
        let refused = judged(&upgraded, may_be, false, MissingWal::Refuse).unwrap_err();
        assert!(
            refused.contains("ends at 0/3E8") && refused.contains("not with a clean shutdown"),
            "{refused}"
        );
        assert_eq!(judged(&upgraded, may_be, false, MissingWal::Accept), Ok(()));
    }
}

#[test]
fn a_deleted_cluster_begins_anew_only_when_somebody_says_so() {
    let record = stored();
    let deleted_at = Some(Timestamp::from_micros(7));
    let ending = Ending { record: &record, deleted_at, end: None, is_whole: false };
    let judged = |may_be| decide(&ending, &server(77, 14, 2000), may_be, MissingWal::Refuse);
    assert!(judged(NewServer::Upgraded).unwrap_err().to_string().contains("was deleted at"));
    assert!(judged(NewServer::Any).is_ok());
}
