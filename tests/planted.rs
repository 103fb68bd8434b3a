//! Bugs planted on purpose are found by the crash rounds within 200 seeds: the rounds look where it matters; and what walden looks
//! after itself, by walden.
#![cfg(feature = "planted")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "retain/history.rs"]
mod history;
#[path = "retain/promises.rs"]
mod promises;

use common::archive::Archive;
use common::crash::{Mode, Planted, diverging_round, duel, round, seal_one, simulate};
use common::keeping::{
    grace_by_the_store, keeping, keeping_beside_backups, stopped_keeper, with_backups, woken_below_the_floor,
};
use common::keys::{planted_epoch, planted_slot, rekeyed};
use common::pg::Pg;
use common::walden::Place;
use std::time::Duration;
use walden::base::planted::{Bug, plant};
use walden::base::{SegmentSize, TimelineId};
use walden::codec::audit;
use walden::format::index::WalEntry;
use walden::receive::compact::DeltaOptions;

const SEEDS: u64 = 200;

/// The first seed whose round goes wrong, and how.
fn found(bug: Option<Bug>, mut run: impl FnMut(u64) -> Result<(), String>) -> Option<(u64, String)> {
    plant(bug);
    let found = (1..=SEEDS).find_map(|seed| run(seed).err().map(|how| (seed, how)));
    plant(None);
    found
}

#[track_caller]
fn expect_found(what: &str, found: Option<(u64, String)>) {
    match found {
        Some((seed, how)) => println!("{what}: found by seed {seed}: {how}"),
        None => panic!("{what}: not found within {SEEDS} seeds"),
    }
}

fn rounds(mode: Mode) -> impl FnMut(u64) -> Result<(), String> {
    move |seed| simulate(round(seed, mode, Planted::default()))
}

#[test]
fn acknowledging_past_a_hole_is_found() {
    expect_found("acknowledge past a hole", found(Some(Bug::AcknowledgePastHole), rounds(Mode::Object)));
}

#[test]
fn acknowledging_before_fdatasync_is_found() {
    expect_found(
        "acknowledge before fdatasync",
        found(Some(Bug::AcknowledgeBeforeSync), rounds(Mode::Journal)),
    );
}

#[test]
fn a_root_before_its_data_is_found() {
    expect_found("root before data", found(Some(Bug::RootBeforeData), rounds(Mode::Object)));
}

#[test]
fn a_directory_that_is_not_synced_is_found() {
    let planted = Planted { directory_not_synced: true, ..Planted::default() };
    expect_found("directory not synced", found(None, |seed| simulate(round(seed, Mode::Journal, planted))));
}

#[test]
fn a_timeout_taken_for_success_is_found() {
    expect_found("timeout taken as success", found(Some(Bug::TimeoutIsSuccess), rounds(Mode::Object)));
}

#[test]
fn a_fence_that_is_skipped_is_found() {
    expect_found("fence skipped", found(Some(Bug::FenceSkipped), |seed| simulate(duel(seed))));
}

#[test]
fn a_journal_trimmed_early_is_found() {
    let planted = Planted { slow_store: true, ..Planted::default() };
    let found = found(Some(Bug::JournalTrimmedEarly), |seed| simulate(round(seed, Mode::Journal, planted)));
    expect_found("journal trimmed early", found);
}

#[test]
fn an_overlap_that_is_not_compared_is_found() {
    let found = found(Some(Bug::OverlapNotCompared), |seed| simulate(diverging_round(seed)));
    expect_found("overlap not compared", found);
}

#[test]
fn a_nonce_used_twice_is_found() {
    let found = found(Some(Bug::NonceReused), |seed| {
        audit::take_reused();
        simulate(seal_one(seed));
        if audit::take_reused() { Err("a key was used twice with one nonce".into()) } else { Ok(()) }
    });
    expect_found("nonce reused", found);
}

#[test]
fn expiry_by_name_is_found() {
    expect_found("expiry by name", found(Some(Bug::ExpiryByName), promises::life));
}

#[test]
fn a_floor_that_is_not_checked_is_found() {
    let found = found(Some(Bug::FloorNotChecked), |seed| simulate(woken_below_the_floor(seed)));
    expect_found("floor not checked", found);
}

#[test]
fn a_grace_period_by_the_hosts_clock_is_found() {
    let found = found(Some(Bug::GraceByHostClock), |seed| simulate(grace_by_the_store(seed)));
    expect_found("grace by the host's clock", found);
}

#[test]
fn chunks_that_go_beside_a_backup_that_found_them_are_found() {
    let found = found(Some(Bug::ChunksGoBesideBackups), |seed| simulate(keeping_beside_backups(seed)));
    expect_found("dedup against a dying chunk", found);
}

#[test]
fn what_is_forgotten_before_it_is_removed_is_found() {
    // Stopped at every fifth request: the removal alone takes twenty, and how many go before it is not the same each time.
    let found = found(Some(Bug::ForgottenBeforeRemoved), |seed| {
        simulate(async { stopped_keeper(&with_backups(3, 5).await, 5 * seed).await.map(drop) })
    });
    expect_found("index before delete", found);
}

#[test]
fn a_rotation_that_asks_nobody_for_a_voucher_is_found() {
    expect_found(
        "voucher not checked",
        found(Some(Bug::VoucherNotChecked), |seed| simulate(planted_slot(seed))),
    );
}

#[test]
fn taking_an_epoch_that_no_links_lead_to_is_found() {
    assert_eq!(found(None, |seed| simulate(planted_epoch(seed))), None);
    expect_found(
        "links not checked",
        found(Some(Bug::LinksNotChecked), |seed| simulate(planted_epoch(seed))),
    );
}

#[test]
fn destroying_an_epoch_that_flush_objects_need_is_found() {
    expect_found(
        "flush objects not counted",
        found(Some(Bug::FlushesNotCounted), |seed| simulate(rekeyed(seed))),
    );
}

#[test]
fn without_a_bug_nothing_is_found() {
    for seed in 1..=20 {
        promises::life(seed).unwrap();
        simulate(keeping(seed)).unwrap();
        simulate(keeping_beside_backups(seed)).unwrap();
        simulate(woken_below_the_floor(seed)).unwrap();
        simulate(grace_by_the_store(seed)).unwrap();
    }
    for seed in 1..=3 {
        simulate(planted_slot(seed)).unwrap();
        simulate(rekeyed(seed)).unwrap();
    }
    let slow_store = Planted { slow_store: true, ..Planted::default() };
    for (mode, planted, seeds) in [
        (Mode::Object, Planted::default(), 1..=20),
        (Mode::Journal, Planted::default(), 21..=40),
        (Mode::Journal, slow_store, 41..=60),
    ] {
        for seed in seeds {
            audit::take_reused();
            simulate(round(seed, mode, planted)).unwrap();
            assert!(!audit::take_reused(), "seed {seed}");
        }
    }
}

#[test]
fn deltas_that_the_repository_alone_does_not_decode_replace_nothing() {
    let limit = Duration::from_secs(60);
    for bug in [None, Some(Bug::EpochOutlived)] {
        let pg = Pg::builder(15).option("wal_keep_size", "1GB").start();
        let place = Place::init();
        let receiver = place.start(place.command_for(&pg, &["receive", "--wal-deltas", "off"]), "receive");
        let sender = "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'walden_shop'";
        pg.wait_for(sender, "1", limit);
        pg.sql("CREATE TABLE t AS SELECT i, md5(i::text) AS b FROM generate_series(1, 20000) AS i");
        let archive = Archive::open(&place);
        let mut compactor = archive.compactor("shop", DeltaOptions { cache_bytes: 64 << 20 });
        let mut images_after_change = |bug: Option<Bug>| {
            pg.sql("CHECKPOINT; UPDATE t SET b = b || 'x' WHERE i % 3 = 0; SELECT pg_switch_wal()");
            pg.wait_for(
                "SELECT flush_lsn >= pg_current_wal_flush_lsn() FROM pg_stat_replication",
                "t",
                limit,
            );
            plant(bug);
            archive.compact_all(&mut compactor);
            plant(None);
            let stored = archive.snapshot("shop").unwrap().index.wal;
            let of = |entry: &WalEntry| entry.deltas.as_ref().map_or(0, |deltas| deltas.stats.images_image);
            stored.iter().map(of).sum::<u64>()
        };
        let before = images_after_change(None);
        let after = images_after_change(bug);
        assert_eq!(after > before, bug.is_none(), "{bug:?}: {before}, then {after} images refer to others");
        drop(receiver);
        archive.compare("shop", &pg, TimelineId(1), SegmentSize::new(16 << 20).unwrap());
    }
}
