//! Bugs planted on purpose are found by the crash rounds within 200 seeds: the rounds look where it matters.
#![cfg(feature = "planted")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::crash::{Mode, Planted, diverging_round, duel, round, seal_one, simulate};
use walden::base::planted::{Bug, plant};
use walden::codec::audit;

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
    let planted = Planted { directory_not_synced: true };
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
    expect_found("journal trimmed early", found(Some(Bug::JournalTrimmedEarly), rounds(Mode::Journal)));
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
fn without_a_bug_nothing_is_found() {
    for (mode, seeds) in [(Mode::Object, 1..=20), (Mode::Journal, 21..=40)] {
        for seed in seeds {
            audit::take_reused();
            simulate(round(seed, mode, Planted::default())).unwrap();
            assert!(!audit::take_reused(), "seed {seed}");
        }
    }
}
