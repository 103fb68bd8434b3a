//! Two real receivers on one repository under load, one of them stopped (SIGSTOP) and woken: what it is sent from then on it
//! never acknowledges, it ends with 7 and says why, and nothing that either acknowledged before is missing.

mod common;

use common::archive::{Archive, Told};
use common::load::{load, prepare};
use common::pg::{Pg, Process, Stop, wait_until};
use common::walden::{Place, finish};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;
use walden::base::{Lsn, SegmentSize, TimelineId};

const LIMIT: Duration = Duration::from_secs(60);

fn receive(place: &Place, pg: &Pg, slot: &str, log: &str) -> Process {
    let args = ["receive", "--slot", slot, "--flush-interval", "20ms"];
    place.start(place.command_for(pg, &args), log)
}

/// Where the receiver of `log` says that it took over.
fn took_over_at(place: &Place, log: &str) -> Lsn {
    let mut at = None;
    let found = wait_until(LIMIT, || {
        let text = place.log(log);
        let line = text.lines().find(|line| line.contains("took over stream="));
        at = line.and_then(|line| line.rsplit_once(" at=")?.1.trim().parse().ok());
        at.is_some()
    });
    assert!(found, "{log} takes nothing over");
    at.unwrap()
}

/// Wakes a receiver that was taken over from, and holds it to how it has to end.
fn wake(mut stopped: Process, place: &Place, log: &str) {
    stopped.signal(Signal::CONT);
    let status = stopped.wait(LIMIT).unwrap_or_else(|| panic!("{log} goes on although it is fenced"));
    let said = place.log(log);
    assert_eq!(status.code(), Some(7), "{log}: {said}");
    assert!(said.contains("error: fenced: stream ") && said.contains("newer than ours"), "{said}");
    assert!(said.contains("hint: another `walden receive` took this cluster over"), "{said}");
}

#[test]
fn a_receiver_that_was_stopped_never_acknowledges_again() {
    let seed = std::env::var("WALDEN_SEED").ok().and_then(|seed| seed.parse::<u64>().ok()).unwrap_or(1);
    println!("seed {seed}; repeat with WALDEN_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let rounds = if std::env::var_os("WALDEN_LONG").is_some() { 50 } else { 5 };
    let pg = Pg::builder(17).wal_segment_mib(1).option("wal_keep_size", "8GB");
    let pg = pg.option("max_replication_slots", "64").option("max_wal_senders", "64").start();
    prepare(&pg);
    let place = Place::init();
    let archive = Archive::open(&place);
    let told = Told::watch(&pg);
    let running = load(&pg);
    let slot = |round: u32| format!("slot_{round}");

    let mut current = receive(&place, &pg, &slot(0), &slot(0));
    for round in 1..=rounds {
        let (old, new) = (slot(round - 1), slot(round));
        assert!(wait_until(LIMIT, || told.of(&old) > Lsn::ZERO), "{old} gets nowhere");
        std::thread::sleep(Duration::from_micros(rng.u64(..300_000)));
        current.signal(Signal::STOP);
        let next = receive(&place, &pg, &new, &new);
        let begins = took_over_at(&place, &new);
        assert!(wait_until(LIMIT, || told.of(&new) > begins), "{new} gets nowhere");
        wake(std::mem::replace(&mut current, next), &place, &old);
        told.look(&pg);
        assert!(told.of(&old) <= begins, "{old} acknowledged {}, and {new} began at {begins}", told.of(&old));
        pg.sql(&format!("SELECT pg_drop_replication_slot('{old}')"));
    }
    // The same slot, as when the service is started on a second host: it waits for the slot, and has it in the end.
    current.signal(Signal::STOP);
    let mut last = receive(&place, &pg, &slot(rounds), "last");
    let begins = took_over_at(&place, "last");
    let waits = wait_until(LIMIT, || place.log("last").contains("is in use"));
    assert!(waits, "{}", place.log("last"));
    wake(current, &place, &slot(rounds));
    assert!(wait_until(LIMIT, || told.of(&slot(rounds)) > begins), "{}", place.log("last"));
    drop(running);
    last.signal(Signal::TERM);
    assert_eq!(last.wait(LIMIT).expect("it stops").code(), Some(0));
    told.look(&pg);
    let stored = archive.compare("shop", &pg, TimelineId(1), SegmentSize::new(1 << 20).unwrap());
    assert!(stored.end >= told.of(&slot(rounds)));
}

/// Inserts the rows from `first` on, each in a transaction of its own. `acknowledged` has those whose commit returned.
fn insert(place: &Place, pg: &Pg, name: &str, first: u32) -> Process {
    let script = place.path(&format!("{name}.sql"));
    let insert = |row: u32| format!("INSERT INTO t VALUES ({row}) RETURNING a;\n");
    fs::write(&script, (first..first + 50_000).map(insert).collect::<String>()).unwrap();
    let mut psql = pg.command("psql");
    psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-f"]).arg(script);
    let out = fs::File::create(place.path(&format!("{name}.rows"))).unwrap();
    psql.stdout(out).stderr(std::process::Stdio::null());
    Process::start(psql)
}

fn acknowledged(place: &Place, name: &str) -> BTreeSet<u32> {
    let text = fs::read_to_string(place.path(&format!("{name}.rows"))).unwrap();
    // The last line may be half written.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| line.parse().unwrap()).collect()
}

#[test]
fn of_an_old_primary_and_its_promoted_standby_one_commits() {
    let major = 16;
    let pg = Pg::builder(major).wal_segment_mib(1).option("wal_keep_size", "1GB").start();
    pg.sql("CREATE TABLE t (a int)");
    let standby = pg.standby();
    let place = Place::init();
    let archive = Archive::open(&place);
    let old = receive(&place, &pg, "walden_shop", "old");
    took_over_at(&place, "old");
    finish(&mut place.command_for(&pg, &["backup"])).expect(0);
    // From now on no commit returns before a receiver has stored it.
    let synchronous = |server: &Pg| {
        server.sql("ALTER SYSTEM SET synchronous_standby_names = 'walden_shop'");
        server.sql("SELECT pg_reload_conf()");
        server.wait_for("SHOW synchronous_standby_names", "walden_shop", LIMIT);
    };
    synchronous(&pg);
    let told = Told::watch(&pg);
    let writer = insert(&place, &pg, "old-primary", 1);
    assert!(wait_until(LIMIT, || acknowledged(&place, "old-primary").len() > 20), "{}", place.log("old"));

    old.signal(Signal::STOP);
    let end = pg.sql("SELECT pg_current_wal_flush_lsn()");
    standby.wait_for(&format!("SELECT pg_last_wal_replay_lsn() >= '{end}'"), "t", LIMIT);
    standby.promote();
    let mut new = receive(&place, &standby, "walden_shop", "new");
    took_over_at(&place, "new");
    synchronous(&standby);
    let second = insert(&place, &standby, "new-primary", 1_000_000);
    assert!(wait_until(LIMIT, || acknowledged(&place, "new-primary").len() > 20), "{}", place.log("new"));

    // The old primary goes on, its receiver wakes: none of its commits returns any more.
    let before = acknowledged(&place, "old-primary");
    wake(old, &place, "old");
    told.look(&pg);
    let fork: Lsn = archive.snapshot("shop").unwrap().wal.ranges(TimelineId(1))[0].end;
    assert!(told.of("walden_shop") <= fork, "{} past {fork}", told.of("walden_shop"));
    assert_eq!(acknowledged(&place, "old-primary"), before);
    // Nor does it get in again: it is not the newest primary.
    let again = finish(&mut place.command_for(&pg, &["receive"]));
    assert_eq!(again.code, 7, "{}", again.err);
    assert!(again.err.contains("this server is not the newest primary"), "{}", again.err);
    assert_eq!(acknowledged(&place, "old-primary"), before);
    drop(writer);

    drop(second);
    let mut pg = pg;
    pg.stop(Stop::Immediate);
    new.signal(Signal::TERM);
    assert_eq!(new.wait(LIMIT).expect("it stops").code(), Some(0));
    let found = place.restored(major, "restored", &["--latest"]).sql("SELECT a FROM t");
    let found: BTreeSet<u32> = found.lines().map(|row| row.parse().unwrap()).collect();
    let missing: Vec<u32> = before
        .union(&acknowledged(&place, "new-primary"))
        .filter(|row| !found.contains(row))
        .copied()
        .collect();
    assert!(missing.is_empty(), "acknowledged and not restored: {missing:?}");
}
