//! kill -9 of the real binary, again and again, between a real server under load and a repository. What the server was ever
//! told is flushed can be read back byte for byte, without anything that the dead process left on its host but a journal
//! that was acknowledged; and in the end no committed row is missing.

mod common;

use common::archive::{Archive, Told};
use common::load::{load, prepare, rows, tablespace_maps};
use common::pg::{Pg, Process, majors, wait_until};
use common::walden::Place;
use rustix::process::Signal;
use std::fs;
use std::time::Duration;
use walden::base::{Lsn, SegmentSize, TimelineId};

const LIMIT: Duration = Duration::from_secs(60);
const SEGMENT_MIB: u32 = 1;

/// 5 rounds a version, 50 in a long run.
fn round_count() -> u32 {
    if std::env::var_os("WALDEN_LONG").is_some() { 50 } else { 5 }
}

/// One receiver, killed and started again.
struct Side {
    cluster: &'static str,
    ack: &'static str,
    slot: &'static str,
    process: Option<Process>,
}

const SIDES: [Side; 2] = [
    Side { cluster: "object", ack: "object", slot: "walden_object", process: None },
    Side { cluster: "journal", ack: "journal", slot: "walden_journal", process: None },
];

impl Side {
    /// Starts it, in an empty home: what it kept on this host is gone, but for the journal.
    fn start(&mut self, place: &Place, conninfo: &str, flush_interval: &str) {
        let home = place.path(&format!("home-{}", self.cluster));
        fs::remove_dir_all(&home).ok();
        fs::create_dir(&home).unwrap();
        let mut command = place.command(&["receive", "--cluster", self.cluster, "--ack", self.ack]);
        command.args(["--flush-interval", flush_interval, "--connection", conninfo]);
        command.env("HOME", home);
        if self.ack == "journal" {
            command.arg("--journal-dir").arg(place.path("journal"));
        }
        self.process = Some(place.start(command, self.cluster));
    }

    fn kill(&mut self) {
        let mut process = self.process.take().expect("it was started");
        assert!(process.try_wait().is_none(), "{} ended by itself", self.cluster);
        process.signal(Signal::KILL);
        process.wait(LIMIT).expect("it is dead");
    }
}

fn rounds_on(major: u32) {
    if !majors().contains(&major) {
        return;
    }
    let seed = std::env::var("WALDEN_SEED").ok().and_then(|seed| seed.parse::<u64>().ok()).unwrap_or(1);
    println!("seed {seed}; repeat with WALDEN_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed.wrapping_mul(100).wrapping_add(u64::from(major)));
    let size = SegmentSize::new(u64::from(SEGMENT_MIB) << 20).unwrap();
    let pg = Pg::builder(major).wal_segment_mib(SEGMENT_MIB).option("wal_keep_size", "8GB");
    let pg = pg.option("autovacuum", "off").start();
    prepare(&pg);
    let place = Place::init();
    let archive = Archive::open(&place);
    let told = Told::watch(&pg);
    let mut sides = SIDES;
    let running = load(&pg);

    for round in 0..round_count() {
        let before: Vec<Lsn> = sides.iter().map(|side| told.of(side.slot)).collect();
        for side in &mut sides {
            side.start(&place, &pg.conninfo(), rng.choice(["0", "20ms", "200ms", "1s"]).unwrap());
        }
        // Now and then it dies before it got anywhere.
        if round == 0 || rng.u32(..4) > 0 {
            let told_more = |(side, before): (&Side, &Lsn)| told.of(side.slot) > *before;
            let went_on = wait_until(LIMIT, || sides.iter().zip(&before).all(told_more));
            assert!(went_on, "round {round}: nothing more is acknowledged than {before:?}");
        }
        if round == 0 {
            for side in &sides {
                let mut backup = place.command_for(&pg, &["backup", "--cluster", side.cluster]);
                common::walden::finish(&mut backup).expect(0);
            }
        }
        // Beside the receivers, and killed with them.
        let other = match rng.u32(..4) {
            0 => Some(&["compact", "--all"][..]),
            1 => Some(&["backup"][..]),
            2 => Some(&["gc", "--grace", "1s"][..]),
            _ => None,
        };
        let others = other.map(|args| {
            SIDES.map(|side| {
                let mut command = place.command_for(&pg, args);
                command.env("WALDEN_CLUSTER", side.cluster);
                place.start(command, "beside")
            })
        });
        std::thread::sleep(Duration::from_micros(rng.u64(..1_500_000)));
        rng.shuffle(&mut sides);
        sides.iter_mut().for_each(Side::kill);
        drop(others);
        pg.wait_for("SELECT count(*) FROM pg_stat_replication", "0", LIMIT);
        told.look(&pg);
        for side in &mut sides {
            check(side, &place, &archive, told.of(side.slot), (&pg, size));
        }
    }
    let stored_alone = place.log("journal").matches("storing what only the journal has").count();
    assert!(stored_alone > 0, "the journal was never ahead of the repository");
    drop(running);
    pg.wait_for("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'", "0", LIMIT);

    let end: Lsn = pg.sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap();
    let committed = rows(&pg);
    assert!(committed.len() > 300, "{} rows prove nothing", committed.len());
    for side in &mut sides {
        side.start(&place, &pg.conninfo(), "20ms");
        assert!(wait_until(LIMIT, || told.of(side.slot) >= end), "{} does not get to {end}", side.cluster);
        side.kill();
        check(side, &place, &archive, end, (&pg, size));
        let target = format!("restored-{}", side.cluster);
        let maps = tablespace_maps(&pg, &place.path(&target));
        let mut args = vec!["--latest", "--cluster", side.cluster];
        maps.iter().for_each(|map| args.extend(["--tablespace-map", map]));
        let restored = place.restored(major, &target, &args);
        assert!(rows(&restored) == committed, "{}: rows differ", side.cluster);
    }
}

/// What was acknowledged is in the repository, as the server wrote it. What only the journal holds gets there without a
/// server: it may be gone for good.
fn check(side: &mut Side, place: &Place, archive: &Archive, told: Lsn, (pg, size): (&Pg, SegmentSize)) {
    if told == Lsn::ZERO {
        return;
    }
    if side.ack == "journal" {
        side.start(place, "host=/nonexistent user=nobody", "1s");
        let stored = wait_until(LIMIT, || archive.durable_end(side.cluster) >= told);
        assert!(stored, "the journal was acknowledged up to {told}, and is not stored");
        side.kill();
    }
    let range = archive.compare(side.cluster, pg, TimelineId(1), size);
    assert!(range.end >= told, "{}: {range} is stored, {told} was acknowledged", side.cluster);
}

#[test]
fn acknowledged_outlives_kill_9_on_14() {
    rounds_on(14);
}

#[test]
fn acknowledged_outlives_kill_9_on_15() {
    rounds_on(15);
}

#[test]
fn acknowledged_outlives_kill_9_on_16() {
    rounds_on(16);
}

#[test]
fn acknowledged_outlives_kill_9_on_17() {
    rounds_on(17);
}

#[test]
fn acknowledged_outlives_kill_9_on_18() {
    rounds_on(18);
}
