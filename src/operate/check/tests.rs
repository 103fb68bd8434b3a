//! A good server has nothing to be said about; every setting that hurts is seen.

use super::*;

fn good() -> Facts {
    let settings = [
        ("block_size", "8192"),
        ("data_checksums", "on"),
        ("full_page_writes", "on"),
        ("max_replication_slots", "10"),
        ("max_slot_wal_keep_size", "65536"),
        ("max_wal_senders", "10"),
        ("wal_level", "replica"),
        ("wal_sender_timeout", "60000"),
    ];
    Facts {
        version: 150_019,
        in_recovery: false,
        user: "walden".into(),
        may_replicate: true,
        may_read_files: true,
        senders: 1,
        slots: 1,
        slot: Some(SlotFacts {
            physical: true,
            active: true,
            wal_status: Some("reserved".into()),
            retained_bytes: 1 << 20,
            safe_bytes: Some(60 << 30),
        }),
        settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
    }
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

#[test]
fn every_setting_that_hurts_is_seen() {
    for (name, value, level) in [
        ("wal_level", "minimal", "fail"),
        ("full_page_writes", "off", "fail"),
        ("data_checksums", "off", "warn"),
        ("max_slot_wal_keep_size", "-1", "warn"),
        ("wal_sender_timeout", "0", "warn"),
        ("wal_sender_timeout", "1000", "warn"),
        ("idle_replication_slot_timeout", "3600", "warn"),
        ("block_size", "16384", "fail"),
        ("max_wal_senders", "1", "warn"),
    ] {
        let mut facts = good();
        facts.settings.insert(name.into(), value.into());
        let said = complaints(&facts);
        assert_eq!(said.len(), 1, "{name} = {value}: {said:?}");
        assert_eq!(said[0].1, level, "{name} = {value}");
    }
}

#[test]
fn a_missing_setting_is_not_taken_for_a_good_one() {
    for name in SETTINGS.iter().filter(|name| **name != "idle_replication_slot_timeout") {
        let mut facts = good();
        facts.slot = None;
        facts.settings.remove(*name);
        assert!(complaints(&facts).len() > 1 || *name == "max_replication_slots", "{name}");
    }
}

#[test]
fn slots_are_judged_by_what_they_hold() {
    let slot = |change: &dyn Fn(&mut SlotFacts)| {
        let mut facts = good();
        change(facts.slot.as_mut().unwrap());
        complaints(&facts)
    };
    assert_eq!(slot(&|slot| slot.wal_status = Some("lost".into())), [("slot", "fail")]);
    assert_eq!(slot(&|slot| slot.wal_status = Some("unreserved".into())), [("slot", "warn")]);
    assert_eq!(slot(&|slot| slot.active = false), [("slot", "warn")]);
    assert_eq!(slot(&|slot| slot.physical = false), [("slot", "fail")]);
    let mut facts = good();
    facts.slot = None;
    assert_eq!(complaints(&facts), [("slot", "warn")]);
    facts.slots = 10;
    assert_eq!(complaints(&facts), [("slot", "fail")]);
}

#[test]
fn roles_versions_and_senders_are_judged() {
    let with = |change: &dyn Fn(&mut Facts)| {
        let mut facts = good();
        change(&mut facts);
        complaints(&facts)
    };
    assert_eq!(with(&|facts| facts.may_replicate = false), [("role", "fail")]);
    assert_eq!(with(&|facts| facts.may_read_files = false), [("configuration", "warn")]);
    assert_eq!(with(&|facts| facts.version = 130_010), [("version", "fail")]);
    assert_eq!(with(&|facts| facts.senders = 10), [("senders", "warn")]);
    assert_eq!(
        with(&|facts| {
            facts.senders = 10;
            facts.slot = None;
        }),
        [("senders", "fail"), ("slot", "warn")]
    );
}

#[test]
fn another_system_is_refused() {
    let (a, b) = (SystemId(1), SystemId(2));
    assert_eq!(system_identifier(a, Some(b)).level, Level::Fail(Exit::WrongSystem));
    assert_eq!(system_identifier(a, Some(a)).level, Level::Ok);
    assert_eq!(system_identifier(a, None).level, Level::Ok);
}
