//! A staged WAL segment handed to PostgreSQL, again and again: the whole call, from its start to its end, as a restore pays it
//! for each segment. Beside it a program that does nothing: what starting one costs here. No large server is needed.

use crate::common::pg::Pg;
use crate::common::walden::{Place, WALDEN};
use crate::meter::{figure, quantile, rounded, timed};
use serde_json::json;
use std::process::Command;
use std::time::Instant;
use walden::base::WalFileName;
use walden::restore::recovery_file::{HOME, NAME, RecoveryFile};

const CALLS: usize = 1000;
const MAJOR: u32 = 15;

/// Prints the figure.
pub fn wal_fetch() {
    let pg = Pg::start(MAJOR);
    let place = Place::init();
    timed(&mut place.command_for(&pg, &["backup"]));
    let target = place.path("restored");
    crate::restore(&place, &target);

    let staging = target.join(HOME);
    let recovery = RecoveryFile::read(&staging.join(NAME)).expect("a recovery file");
    let timeline = recovery.leg_at(recovery.wal.start).expect("its timeline").timeline;
    let size = recovery.segment_size;
    let name = WalFileName::segment(timeline, size.segment_at(recovery.wal.start), size).to_string();
    let wanted = "pg_wal/RECOVERYXLOG";
    let recovery = staging.join(NAME);
    let mut fetch = Command::new(WALDEN);
    fetch.arg("wal-fetch").arg("--recovery").arg(&recovery).args([&name, wanted]);
    fetch.current_dir(&target).env_clear();
    // The first call starts the process that stages, and waits for it.
    ended_well(&mut fetch);
    let mut taken = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        std::fs::rename(target.join(wanted), staging.join(&name)).expect("staged again");
        taken.push(ended_well(&mut fetch));
    }
    let mut nothing: Vec<f64> = (0..CALLS).map(|_| ended_well(&mut Command::new("/bin/true"))).collect();
    let context = [
        ("calls", json!(CALLS)),
        ("p99_ms", json!(rounded(quantile(&mut taken, 0.99)))),
        ("max_ms", json!(rounded(quantile(&mut taken, 1.0)))),
        ("nothing_median_ms", json!(rounded(quantile(&mut nothing, 0.5)))),
        ("nothing_max_ms", json!(rounded(quantile(&mut nothing, 1.0)))),
    ];
    figure("wal_fetch_staged_median", "walden", quantile(&mut taken, 0.5), "ms", &context);
}

/// Runs it; milliseconds from before its start to after its end.
fn ended_well(command: &mut Command) -> f64 {
    let began = Instant::now();
    let status = command.status().expect("it starts");
    let taken = began.elapsed().as_secs_f64() * 1e3;
    assert!(status.success(), "{command:?} ended with {status}");
    taken
}
