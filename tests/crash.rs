//! What was acknowledged is recoverable, byte for byte, whatever crashes: 200 seeds in CI, 10,000 with `--long`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::crash::{Mode, Planted, diverging_round, duel, round, simulate};

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("WALDEN_SEED").unwrap_or(1);
    first..first + number("WALDEN_SEEDS").unwrap_or(100)
}

fn rounds(mode: Mode) {
    println!("seeds {:?}", seeds());
    for seed in seeds() {
        if let Err(lost) = simulate(round(seed, mode, Planted::default())) {
            panic!("seed {seed}, {mode:?}: {lost}");
        }
    }
}

#[test]
fn acknowledged_by_object_is_recoverable() {
    rounds(Mode::Object);
}

#[test]
fn acknowledged_by_journal_is_recoverable() {
    rounds(Mode::Journal);
}

#[test]
fn of_two_receivers_the_one_that_was_stopped_is_fenced() {
    for seed in seeds() {
        if let Err(wrong) = simulate(duel(seed)) {
            panic!("seed {seed}: {wrong}");
        }
    }
}

#[test]
fn another_course_of_history_is_refused() {
    for seed in seeds().take(20) {
        if let Err(wrong) = simulate(diverging_round(seed)) {
            panic!("seed {seed}: {wrong}");
        }
    }
}
