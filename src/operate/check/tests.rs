//! A good server has nothing to be said about; every setting that hurts is seen.

use super::*;
use crate::base::{Lsn, SegmentSize, Timestamp};
use std::collections::BTreeMap;

fn good() -> Facts {
    let settings = ServerSettings {
        version: 150_019,
        system_id: SystemId(7),
        in_recovery: false,
        wal_segment_size: SegmentSize::DEFAULT,
        block_size_bytes: 8192,
        data_checksums: true,
        wal_level: "replica".into(),
        max_wal_senders: 10,
        max_replication_slots: 10,
        max_slot_wal_keep_size_bytes: Some(64 << 30),
        idle_replication_slot_timeout: None,
        wal_sender_timeout: Some(Duration::from_secs(60)),
        full_page_writes: true,
        wal_log_hints: false,
        fsync: true,
        track_commit_timestamp: false,
        synchronous_standby_names: String::new(),
        data_directory: None,
        config_file: None,
        hba_file: None,
        ident_file: None,
        raw: BTreeMap::new(),
    };
    let role = RoleAttributes {
        name: "walden".into(),
        superuser: false,
        replication: true,
        read_all_settings: true,
        read_server_files: true,
        read_binary_file: true,
    };
    let slot = SlotState {
        name: "walden_shop".into(),
        physical: true,
        temporary: false,
        active: true,
        active_pid: Some(1),
        restart_lsn: Some(Lsn::new(1 << 20)),
        wal_status: Some(WalStatus::Reserved),
        safe_wal_size: Some(60 << 30),
        invalidation_reason: None,
    };
    let position =
        WalPosition { end: Lsn::new(2 << 20), in_recovery: false, clock: Timestamp::from_micros(0) };
    Facts { settings, role, senders: 1, slots: vec![slot], position }
}

fn complaints(facts: &Facts) -> Vec<(&'static str, &'static str)> {
    let findings = judge(facts, "walden_shop");
    assert!(findings.iter().all(|finding| (finding.level == Level::Ok) == finding.hint.is_none()));
    findings.iter().filter(|f| f.level != Level::Ok).map(|f| (f.name, f.level.word())).collect()
}

#[test]
fn a_good_server_passes() {
    assert_eq!(complaints(&good()), []);
}

fn with(change: impl Fn(&mut Facts)) -> Vec<(&'static str, &'static str)> {
    let mut facts = good();
    change(&mut facts);
    complaints(&facts)
}

#[test]
fn every_setting_that_hurts_is_seen() {
    let set = |change: &dyn Fn(&mut ServerSettings)| with(|facts| change(&mut facts.settings));
    assert_eq!(set(&|s| s.version = 130_010), [("version", "fail")]);
    assert_eq!(set(&|s| s.version = 190_000), [("version", "fail")]);
    assert_eq!(set(&|s| s.wal_level = "minimal".into()), [("wal_level", "fail")]);
    assert_eq!(set(&|s| s.full_page_writes = false), [("full_page_writes", "fail")]);
    assert_eq!(set(&|s| s.block_size_bytes = 16_384), [("block size", "fail")]);
    assert_eq!(set(&|s| s.data_checksums = false), [("checksums", "warn")]);
    assert_eq!(set(&|s| s.max_slot_wal_keep_size_bytes = None), [("max_slot_wal_keep_size", "warn")]);
    assert_eq!(set(&|s| s.wal_sender_timeout = None), [("wal_sender_timeout", "warn")]);
    assert_eq!(
        set(&|s| s.wal_sender_timeout = Some(Duration::from_secs(1))),
        [("wal_sender_timeout", "warn")]
    );
    let idle = Some(Duration::from_secs(3600));
    assert_eq!(set(&|s| s.idle_replication_slot_timeout = idle), [("idle_replication_slot_timeout", "warn")]);
}

#[test]
fn slots_are_judged_by_what_they_hold() {
    let slot = |change: &dyn Fn(&mut SlotState)| with(|facts| facts.slots.iter_mut().for_each(change));
    assert_eq!(slot(&|slot| slot.wal_status = Some(WalStatus::Lost)), [("slot", "fail")]);
    assert_eq!(slot(&|slot| slot.wal_status = Some(WalStatus::Unreserved)), [("slot", "warn")]);
    assert_eq!(slot(&|slot| slot.active = false), [("slot", "warn")]);
    assert_eq!(slot(&|slot| slot.physical = false), [("slot", "fail")]);
    assert_eq!(slot(&|slot| slot.name = "another".into()), [("slot", "warn")]);
    let full = with(|facts| {
        facts.slots.iter_mut().for_each(|slot| slot.name = "another".into());
        facts.settings.max_replication_slots = 1;
    });
    assert_eq!(full, [("slot", "fail")]);
}

#[test]
fn roles_and_senders_are_judged() {
    assert_eq!(with(|facts| facts.role.replication = false), [("role", "fail")]);
    assert_eq!(with(|facts| facts.role.read_binary_file = false), [("configuration", "warn")]);
    assert_eq!(with(|facts| facts.role.read_all_settings = false), [("configuration", "warn")]);
    let superuser = |facts: &mut Facts| {
        facts.role = RoleAttributes {
            name: "postgres".into(),
            superuser: true,
            replication: false,
            read_all_settings: false,
            read_server_files: false,
            read_binary_file: false,
        };
    };
    assert_eq!(with(superuser), []);
    assert_eq!(with(|facts| facts.senders = 10), [("senders", "warn")]);
    let none_left = with(|facts| {
        facts.senders = 10;
        facts.slots.clear();
    });
    assert_eq!(none_left, [("senders", "fail"), ("slot", "warn")]);
}

#[test]
fn another_system_is_refused() {
    let (a, b) = (SystemId(1), SystemId(2));
    assert_eq!(system_identifier(a, Some(b)).level, Level::Fail(Exit::WrongSystem));
    assert_eq!(system_identifier(a, Some(a)).level, Level::Ok);
    assert_eq!(system_identifier(a, None).level, Level::Ok);
}

#[test]
fn a_generation_without_a_backup_is_worth_a_warning() {
    let first = backups(0, Generation(1));
    assert_eq!((first.level, first.found.contains("nothing can be restored yet")), (Level::Warn, true));
    let second = backups(0, Generation(2));
    assert!(second.level == Level::Warn && second.found.contains("generation 2"), "{}", second.found);
    assert_eq!(backups(3, Generation(2)).level, Level::Ok);
}

#[test]
fn what_is_lost_and_a_gap_that_no_backup_closed_fail_the_check() {
    let level = |lost, first, gap| stored_wal(lost, first, gap).level;
    assert_eq!(level(0, None, None), Level::Ok);
    assert_eq!(level(0, None, Some("0/1000000 to 0/1200000")), Level::Fail(Exit::Damage));
    assert_eq!(level(2, Some("clusters/shop/wal/1: cut"), None), Level::Fail(Exit::Damage));
    let lost = stored_wal(2, Some("clusters/shop/wal/1: cut"), Some("0/1000000 to 0/1200000"));
    assert!(lost.found.contains("2 flush objects are lost"), "{}", lost.found);
}
