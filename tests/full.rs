//! Full disks: of the repository, of the journal, of the target. A clear error with its exit code, nothing lost or half written,
//! and a receiver goes on by itself as soon as there is room.

mod common;

use common::archive::{Archive, Told};
use common::mount::SmallDisk;
use common::pg::{Pg, Process, wait_until};
use common::walden::{Ended, Place, files, finish};
use rustix::process::Signal;
use std::path::PathBuf;
use std::time::Duration;
use walden::base::{Lsn, SegmentSize, TimelineId};

const LIMIT: Duration = Duration::from_secs(60);
const SLOT: &str = "walden_shop";

fn source(major: u32) -> Pg {
    let pg = Pg::builder(major).wal_segment_mib(1).option("wal_keep_size", "1GB").start();
    pg.sql("CREATE TABLE t (a int, b text)");
    pg
}

/// About 4 MiB of WAL.
fn write_wal(pg: &Pg) -> Lsn {
    pg.sql("INSERT INTO t SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, 10000) AS i");
    pg.sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap()
}

fn wait_told(told: &Told, upto: Lsn, place: &Place) {
    assert!(wait_until(LIMIT, || told.of(SLOT) >= upto), "not told {upto}\n{}", place.log("receive"));
}

fn stop(mut receiver: Process) {
    receiver.signal(Signal::TERM);
    assert_eq!(receiver.wait(LIMIT).expect("it stops").code(), Some(0));
}

fn expect_full(ended: &Ended) {
    assert_eq!(ended.code, 10, "{}", ended.err);
    assert!(ended.err.contains("no space left"), "{}", ended.err);
}

fn names(place: &Place) -> Vec<PathBuf> {
    files(&place.path("repo")).into_iter().map(|(path, _)| path).collect()
}

#[test]
fn a_full_repository_is_waited_for_and_loses_nothing() {
    let pg = source(16);
    let place = Place::new();
    let disk = SmallDisk::mount(&place.path("repo"), 200);
    place.ok(&["init"]);
    let told = Told::watch(&pg);
    let receive = ["receive", "--flush-interval", "50ms"];
    let receiver = place.start(place.command_for(&pg, &receive), "receive");
    wait_told(&told, write_wal(&pg), &place);

    disk.fill();
    let full = told.of(SLOT);
    let before = names(&place);
    let end = write_wal(&pg);
    let said = wait_until(LIMIT, || place.log("receive").contains("no space left in the store"));
    assert!(said, "{}", place.log("receive"));
    // Whoever comes now is told at once.
    expect_full(&finish(&mut place.command_for(&pg, &["backup"])));
    expect_full(&finish(&mut place.command_for(&pg, &receive)));
    expect_full(&place.run(&["compact", "--all"]));
    assert!(told.of(SLOT) < end, "acknowledged {} of {end} from a full store", told.of(SLOT));
    assert!(told.of(SLOT) >= full);
    let new: Vec<PathBuf> = names(&place).into_iter().filter(|name| !before.contains(name)).collect();
    let half = |name: &PathBuf| std::fs::metadata(name).is_ok_and(|meta| meta.len() == 0);
    assert!(!new.iter().any(half), "half written: {new:?}");

    disk.make_room();
    wait_told(&told, end, &place);
    finish(&mut place.command_for(&pg, &["backup"])).expect(0);
    stop(receiver);
    let range = Archive::open(&place).compare("shop", &pg, TimelineId(1), SegmentSize::new(1 << 20).unwrap());
    assert!(range.end >= end);
    place.ok(&["verify"]);
    let restored = place.restored(16, "restored", &["--latest"]);
    assert_eq!(restored.sql("SELECT count(*) FROM t"), "20000");
}

#[test]
fn a_full_journal_is_waited_for_and_loses_nothing() {
    let pg = source(17);
    let place = Place::init();
    let disk = SmallDisk::mount(&place.path("journal"), 200);
    let dir = place.path("journal/shop").display().to_string();
    let receive = ["receive", "--ack", "journal", "--flush-interval", "1s", "--journal-dir", &dir];
    let told = Told::watch(&pg);
    // From the first moment: it may hold what the repository lacks, so that this is no reason not to begin.
    disk.fill();
    let mut receiver = place.start(place.command_for(&pg, &receive), "receive");
    let stuck = || place.log("receive").matches("the journal does not go on").count();
    let end = write_wal(&pg);
    assert!(wait_until(LIMIT, || stuck() == 1), "{}", place.log("receive"));
    wait_told(&told, end, &place);
    let archive = Archive::open(&place);
    assert!(archive.durable_end("shop") >= end, "acknowledged by a journal that is full");
    disk.make_room();
    wait_told(&told, write_wal(&pg), &place);
    assert!(std::fs::read_dir(&dir).unwrap().count() > 0, "the journal goes on");
    disk.fill();
    // A journal file has room of its own; what is written goes past it.
    let mut end = Lsn::ZERO;
    let stuck_again = wait_until(LIMIT, || {
        end = write_wal(&pg);
        stuck() == 2
    });
    assert!(stuck_again, "{}", place.log("receive"));
    assert!(receiver.try_wait().is_none(), "{}", place.log("receive"));
    disk.make_room();
    end = end.max(write_wal(&pg));
    wait_told(&told, end, &place);
    // What is acknowledged is there, whatever dies now.
    receiver.signal(Signal::KILL);
    receiver.wait(LIMIT);
    let receiver = place.start(place.command_for(&pg, &receive), "receive");
    assert!(wait_until(LIMIT, || archive.durable_end("shop") >= end), "{}", place.log("receive"));
    stop(receiver);
    archive.compare("shop", &pg, TimelineId(1), SegmentSize::new(1 << 20).unwrap());
}

#[test]
fn a_full_target_is_said_and_force_begins_anew() {
    let pg = source(15);
    let place = Place::init();
    finish(&mut place.command_for(&pg, &["backup"])).expect(0);
    let disk = SmallDisk::mount(&place.path("small"), 8);
    let target = place.path("small/data").display().to_string();
    let full = place.run(&["restore", "--latest", "--target-dir", &target]);
    expect_full(&full);
    assert!(full.err.contains("hint: what was written is marked and cannot be started"), "{}", full.err);
    assert_eq!(place.run(&["restore", "--latest", "--target-dir", &target]).code, 7);
    disk.resize(400);
    let restored = place.restored(15, "small/data", &["--latest", "--force"]);
    assert_eq!(restored.sql("SELECT count(*) FROM t"), "0");
    drop(restored);
}
