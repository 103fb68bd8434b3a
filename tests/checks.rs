//! `walden receive` looks at what would go wrong later, says so, and receives all the same.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::pg::{Pg, wait_until};
use common::walden::Place;
use rustix::process::Signal;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn receive_warns_of_what_check_finds() {
    let pg = Pg::builder(15).option("full_page_writes", "off").without_checksums().start();
    let place = Place::init();
    let mut receiving = place.start(place.command_for(&pg, &["receive"]), "receive");
    pg.wait_for("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'", "1", LIMIT);
    let expected = ["full_page_writes: off", "checksums: off", "max_slot_wal_keep_size: -1"];
    let warned = |said: &str| {
        let said = format!("check: {said}");
        place.log("receive").lines().any(|line| line.contains("WARN") && line.contains(&said))
    };
    assert!(wait_until(LIMIT, || expected.iter().all(|said| warned(said))), "{}", place.log("receive"));
    receiving.signal(Signal::TERM);
    assert!(receiving.wait(LIMIT).unwrap().success(), "{}", place.log("receive"));
    // What is well, and what a receiver sees to itself, is not said.
    assert!(!warned("slot") && !warned("version") && !warned("wal_level"), "{}", place.log("receive"));
}
