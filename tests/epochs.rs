//! WAL deltas on real servers, from receiving to restoring: every byte comes back, epochs begin at backups and are gone on with,
//! and what is damaged is named with what it costs.

mod common;

use common::archive::Archive;
use common::pg::{Pg, Process, majors};
use common::walden::{Place, finish};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use walden::base::{
    Anonymous, BackupId, Lsn, LsnRange, Memory, Scratch, SegmentNo, SegmentSize, TimelineId, WalFileName,
};
use walden::delta::{BlockId, Page};
use walden::format::Reader;
use walden::format::delta::{DeltaHead, SectionCodec, SectionKind};
use walden::format::index::WalEntry;
use walden::format::record::Field;
use walden::receive::compact::DeltaOptions;
use walden::repo::epochs::NearPages;
use walden::repo::layout;
use walden::repo::walmap::Snapshot;
use walden::restore::wal_fetch::pages::RestoredPages;

const SOON: Duration = Duration::from_secs(60);
/// Rows of the table.
const ROWS: u32 = 40_000;

/// A server that keeps its WAL, with a table that is worth a base.
fn server(major: u32) -> Pg {
    let pg = Pg::builder(major).option("wal_keep_size", "2GB").start();
    pg.sql("CREATE TABLE t (a int PRIMARY KEY, n int DEFAULT 0, b text)");
    pg.sql(&format!("INSERT INTO t SELECT i, 0, md5(i::text) FROM generate_series(1, {ROWS}) i"));
    pg.sql("VACUUM ANALYZE t");
    pg
}

/// Changes one row in `step`, so that nearly every page of the table gets an image after a checkpoint.
fn change(pg: &Pg, step: u32) {
    pg.sql("CHECKPOINT");
    pg.sql(&format!("UPDATE t SET n = n + 1 WHERE a % {step} = 0"));
    pg.sql(&format!("INSERT INTO t SELECT i, 0, md5(i::text) FROM generate_series((SELECT max(a) + 1 FROM t), (SELECT max(a) + {}  FROM t)) i", ROWS / 20));
}

fn receive(place: &Place, pg: &Pg) -> Process {
    receive_with(place, pg, &["--delta-cache", "64MB"])
}

fn receive_with(place: &Place, pg: &Pg, options: &[&str]) -> Process {
    // One that was ended may hold the slot for a moment.
    pg.wait_for("SELECT count(*) FROM pg_replication_slots WHERE active", "0", SOON);
    let receive = place.start(place.command_for(pg, &[&["receive"], options].concat()), "receive");
    pg.wait_for("SELECT count(*) FROM pg_stat_replication WHERE application_name = 'walden_shop'", "1", SOON);
    receive
}

/// Waits until all that the server has written by now is stored, with the end of a segment behind it.
fn settle(pg: &Pg) {
    pg.sql("SELECT pg_switch_wal()");
    wait_until_stored(pg);
}

fn wait_until_stored(pg: &Pg) {
    let stored = "SELECT flush_lsn >= pg_current_wal_flush_lsn() FROM pg_stat_replication";
    pg.wait_for(stored, "t", SOON);
}

/// Compacts all that the server has written by now.
fn compact(place: &Place, pg: &Pg) {
    settle(pg);
    finish(&mut place.command_for(pg, &["compact", "--all", "--delta-cache", "64MB"])).expect(0);
}

fn backup(place: &Place, pg: &Pg) -> BackupId {
    let out = finish(&mut place.command_for(pg, &["--json", "backup"])).expect(0);
    let document: serde_json::Value = serde_json::from_str(&out).unwrap();
    document["backup"]["id"].as_str().unwrap_or_else(|| panic!("{document}")).parse().unwrap()
}

fn snapshot(place: &Place) -> Snapshot {
    Archive::open(place).snapshot("shop").unwrap()
}

/// Compacted segments with delta frames, in order.
fn deltas(snapshot: &Snapshot) -> Vec<WalEntry> {
    let mut entries: Vec<WalEntry> =
        snapshot.index.wal.iter().filter(|entry| entry.deltas.is_some()).cloned().collect();
    entries.sort_by_key(|entry| entry.start);
    entries
}

fn contents(pg: &Pg) -> String {
    pg.sql("SELECT count(*), sum(n), md5(string_agg(a || ' ' || n || ' ' || b, ',' ORDER BY a)) FROM t")
}

#[test]
fn every_byte_comes_back_and_a_restore_is_exact_on_every_version() {
    for major in majors() {
        let pg = server(major);
        let place = Place::init();
        let receiving = receive(&place, &pg);
        let id = backup(&place, &pg);
        for step in [3, 4, 5] {
            change(&pg, step);
            compact(&place, &pg);
        }
        // Changes that no base knows.
        pg.sql("CREATE TABLE other AS SELECT a, b FROM t; CREATE INDEX ON other (b)");
        change(&pg, 2);
        // Files that the base has become others: shorter, new under the old name, gone.
        pg.sql("VACUUM FULL t");
        pg.sql("TRUNCATE other");
        pg.sql("CREATE DATABASE second");
        change(&pg, 3);
        pg.sql("DROP TABLE other");
        compact(&place, &pg);

        let found = snapshot(&place);
        let (entries, base) = (deltas(&found), Some(id.clone()));
        let newest = entries.last().unwrap().deltas.clone().unwrap();
        assert_eq!(newest.base, base, "PostgreSQL {major}");
        let referring: u64 = entries
            .iter()
            .map(|entry| entry.deltas.as_ref().unwrap())
            .map(|deltas| deltas.stats.images_base + deltas.stats.images_image)
            .sum();
        let images: u64 = entries.iter().map(|entry| entry.deltas.as_ref().unwrap().stats.images).sum();
        assert!(referring * 2 > images, "PostgreSQL {major}: {referring} of {images} images refer to a page");

        Archive::open(&place).compare("shop", &pg, TimelineId(1), SegmentSize::new(16 << 20).unwrap());
        let wanted = contents(&pg);
        let info = place.json(&["info"])["clusters"][0]["wal"]["deltas"].clone();
        assert_eq!(info["images"].as_u64(), Some(images), "{info}");
        assert!(info["hit_rate"].as_f64().unwrap() > 0.5 && info["base"] == id.to_string(), "{info}");
        place.ok(&["verify"]);
        // What it still stores would be its user's, whom the restored server is not.
        drop(receiving);
        let restored = place.restored(major, "restored", &["--latest"]);
        assert_eq!(contents(&restored), wanted, "PostgreSQL {major}");
        // Each epoch is decoded once, however often recovery asks.
        let log = fs::read_to_string(place.path("restored/pg_wal/walden/wal-fetch.log")).unwrap();
        let decoded: Vec<&str> = log.lines().filter(|line| line.contains("from its start")).collect();
        assert_eq!(decoded.len(), 1, "PostgreSQL {major}: {decoded:#?}");
    }
}

/// Pages of a restored directory which recovery changes: every third before it is asked for, the others right after they were.
#[derive(Debug)]
struct Fading {
    pages: RestoredPages,
    given: BTreeSet<BlockId>,
    /// How often something was given, and how often not.
    counts: Arc<[AtomicUsize; 2]>,
}

impl NearPages for Fading {
    fn backup(&self) -> &BackupId {
        self.pages.backup()
    }

    fn page(&mut self, block: &BlockId, check: u32, page: &mut Page) -> bool {
        let given = !block.block.is_multiple_of(3)
            && self.given.insert(*block)
            && self.pages.page(block, check, page);
        self.counts[usize::from(given)].fetch_add(1, Ordering::Relaxed);
        given
    }
}

#[test]
fn pages_that_recovery_changes_while_wal_is_decoded_come_from_the_repository() {
    let pg = server(15);
    let place = Place::init();
    let receiving = receive(&place, &pg);
    let id = backup(&place, &pg);
    for step in [3, 4] {
        change(&pg, step);
        compact(&place, &pg);
    }
    drop(receiving);
    let target = place.path("restored");
    place.ok(&["restore", "--target-dir", target.to_str().unwrap()]);
    let counts: Arc<[AtomicUsize; 2]> = Arc::default();
    let pages = RestoredPages::new(id, target);
    let near = Fading { pages, given: BTreeSet::new(), counts: counts.clone() };
    let (archive, timeline) = (Archive::open(&place), TimelineId(1));
    let read = archive.read_near("shop", timeline, Box::new(near));
    let [missed, given] = [0, 1].map(|at| counts[at].load(Ordering::Relaxed));
    assert!(given > 50 && missed > 50, "{given} pages were given, {missed} were not");
    let range = archive.compare("shop", &pg, timeline, SegmentSize::new(16 << 20).unwrap());
    assert_eq!(read.len() as u64, range.len());
}

#[test]
fn an_epoch_ends_when_a_backup_begins_and_outlives_a_receiver() {
    let pg = server(15);
    let place = Place::init();
    let mut receiving = receive(&place, &pg);
    change(&pg, 3);
    compact(&place, &pg);
    let first = deltas(&snapshot(&place)).last().unwrap().deltas.clone().unwrap();
    assert_eq!(first.base, None, "there is no backup yet");

    // Another process goes on with it, decoding what is stored.
    receiving.signal(Signal::KILL);
    receiving.wait(SOON).unwrap();
    receiving = receive(&place, &pg);
    change(&pg, 3);
    compact(&place, &pg);
    let entries = deltas(&snapshot(&place));
    let second = entries.last().unwrap().deltas.clone().unwrap();
    assert_eq!(second.epoch, first.epoch);
    assert!(second.stats.images_image > 0, "{second:?}");

    let id = backup(&place, &pg);
    change(&pg, 4);
    compact(&place, &pg);
    let found = snapshot(&place);
    let third = deltas(&found).last().unwrap().deltas.clone().unwrap();
    assert_ne!(third.epoch.id, first.epoch.id);
    assert_eq!(third.base, Some(id.clone()));
    let made = found.index.backups.iter().find(|backup| backup.id == id).unwrap();
    let size = SegmentSize::new(16 << 20).unwrap();
    assert!(third.epoch.start <= size.segment_start(made.redo), "{third:?} {made:?}");
    let of_recovery = |entry: &&WalEntry| entry.end > size.segment_start(made.redo);
    for entry in deltas(&found).iter().filter(of_recovery) {
        assert_eq!(entry.deltas.as_ref().unwrap().epoch, third.epoch, "recovery needs one epoch");
    }

    // The same bytes without a base and an epoch: off is off.
    change(&pg, 5);
    settle(&pg);
    let before = deltas(&snapshot(&place)).len();
    finish(&mut place.command_for(&pg, &["compact", "--all", "--wal-deltas", "off"])).expect(0);
    assert_eq!(deltas(&snapshot(&place)).len(), before);
    Archive::open(&place).compare("shop", &pg, TimelineId(1), size);
    drop(receiving);
}

#[test]
fn a_compactor_goes_on_with_its_epoch_without_decoding_it() {
    let pg = server(17);
    let place = Place::init();
    let receiving = receive(&place, &pg);
    let (archive, deltas_of) = (Archive::open(&place), DeltaOptions { cache_bytes: 64 << 20 });
    pg.wait_for("SELECT flush_lsn > '0/0' FROM pg_stat_replication", "t", SOON);
    let mut compactor = archive.compactor("shop", deltas_of);
    // Each leaves a plain tail, and small segments that are merged.
    for step in [3, 4, 5] {
        change(&pg, step);
        settle(&pg);
        let done = archive.compact_all(&mut compactor);
        assert!(done.segments > 0 && done.epochs_decoded == 0, "{done:?}");
    }
    // Another one decodes it once, and then the first does again: somebody added to its epoch.
    let mut both = [compactor, archive.compactor("shop", deltas_of)];
    for (which, decoded) in [(1, 1), (0, 1), (0, 0)] {
        change(&pg, 3);
        settle(&pg);
        let done = archive.compact_all(&mut both[which]);
        assert_eq!(done.epochs_decoded, decoded, "{done:?}");
    }
    let entries = deltas(&snapshot(&place));
    let epoch = |entry: &WalEntry| entry.deltas.as_ref().unwrap().epoch.id;
    assert!(entries.iter().all(|entry| epoch(entry) == epoch(&entries[0])), "one epoch");
    archive.compare("shop", &pg, TimelineId(1), SegmentSize::new(16 << 20).unwrap());
    drop(receiving);
}

#[test]
fn a_small_segment_that_is_damaged_is_left_and_keeps_nobody_from_receiving_or_from_merging_the_others() {
    let pg = server(16);
    let place = Place::init();
    let receiving = receive(&place, &pg);
    let little = || {
        pg.sql("UPDATE t SET n = n + 1 WHERE a < 1000");
        wait_until_stored(&pg);
    };
    // More than is merged with anything.
    change(&pg, 3);
    settle(&pg);
    drop(receiving);
    let archive = Archive::open(&place);
    let mut compactor = archive.compactor("shop", DeltaOptions { cache_bytes: 64 << 20 });
    archive.compact_all(&mut compactor);
    let receiving = receive_with(&place, &pg, &["--wal-deltas", "off"]);
    little();
    drop(receiving);
    archive.compact_all(&mut compactor);
    let newest_small = || {
        let wal = snapshot(&place).index.wal;
        let small = wal.into_iter().filter(|entry| entry.end.bytes_since(entry.start) <= 16 << 20);
        small.max_by_key(|entry| entry.start).unwrap().id
    };
    let key = |id| layout::segment(&"shop".parse().unwrap(), id);
    let (mut merged, mut damaged) = (0, Vec::new());
    for round in 0..4 {
        // Damage does not keep it from starting.
        let receiving = receive_with(&place, &pg, &["--wal-deltas", "off"]);
        little();
        drop(receiving);
        if round < 2 {
            damaged.push(newest_small());
        }
        match round {
            0 => flip_at(&place, key(damaged[0]).as_str(), 2),
            1 => {
                let path = place.path("repo").join(key(damaged[1]).as_str());
                let whole = fs::read(&path).unwrap();
                fs::remove_file(&path).unwrap();
                fs::write(&path, &whole[..whole.len() / 2]).unwrap();
            }
            _ => {}
        }
        let done = archive.compact_all(&mut compactor);
        merged += done.merged;
        assert_eq!(done.unreadable, damaged.len() as u64);
    }
    assert!(merged >= 2, "{merged} merged");
    let after = snapshot(&place).index.wal;
    let is_there = |id| after.iter().any(|entry| entry.id == id);
    assert!(damaged.iter().all(|id| is_there(*id)), "nothing took their place");
    let told = verify_fails(&place);
    assert!(damaged.iter().all(|id| told.contains(&id.to_string())), "{told}");
    let ended = place.run(&["compact", "--all"]);
    assert_eq!(ended.code, 4, "{}{}", ended.out, ended.err);
}

/// Room for so many pieces of memory.
#[derive(Debug)]
struct Pieces(AtomicUsize);

impl Scratch for Pieces {
    fn memory(&self, len: usize) -> io::Result<Box<dyn Memory>> {
        let taken = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if taken.is_err() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Anonymous.memory(len)
    }
}

#[test]
fn without_room_to_decode_what_was_encoded_wal_is_stored_without_deltas() {
    let pg = server(16);
    // An encoder takes two: pages, and changes of them. So does whoever decodes.
    for (pieces, with_deltas) in [(4, true), (2, false)] {
        let place = Place::init();
        let receiving = place.start(place.command_for(&pg, &["receive", "--wal-deltas", "off"]), "receive");
        pg.wait_for(
            "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'walden_shop'",
            "1",
            SOON,
        );
        change(&pg, 3);
        settle(&pg);
        let archive = Archive::open_within(&place, Arc::new(Pieces(pieces.into())));
        archive.compact_all(&mut archive.compactor("shop", DeltaOptions { cache_bytes: 64 << 20 }));
        drop(receiving);
        assert_eq!(!deltas(&snapshot(&place)).is_empty(), with_deltas, "{pieces} pieces");
        Archive::open(&place).compare("shop", &pg, TimelineId(1), SegmentSize::new(16 << 20).unwrap());
        pg.wait_for("SELECT count(*) FROM pg_replication_slots WHERE active", "0", SOON);
        pg.sql("SELECT pg_drop_replication_slot('walden_shop')");
    }
}

/// Flips a byte in the middle of an object of a repository in a directory.
fn flip(place: &Place, key: &str) {
    flip_at(place, key, 2);
}

/// The same behind the first `part`th of its bytes.
fn flip_at(place: &Place, key: &str, part: usize) {
    let path = place.path("repo").join(key);
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.len() / part;
    bytes[at] ^= 1;
    fs::remove_file(&path).unwrap();
    fs::write(&path, bytes).unwrap();
}

#[test]
fn damage_of_a_backup_and_of_a_segment_is_named_with_the_wal_that_it_costs() {
    let pg = server(16);
    let place = Place::init();
    let receiving = receive(&place, &pg);
    backup(&place, &pg);
    for step in [2, 3, 2] {
        change(&pg, step);
        compact(&place, &pg);
    }
    drop(receiving);
    place.ok(&["verify"]);
    let found = snapshot(&place);
    let entries = deltas(&found);
    let end = entries.last().unwrap().end;

    // What a segment holds can be looked at, but for images.
    let cluster = "shop".parse().unwrap();
    let newest = place.path("repo").join(layout::segment(&cluster, entries[0].id).as_str());
    let passphrase = place.path("passphrase");
    let mut inspect = std::process::Command::new(env!("CARGO_BIN_EXE_walden-inspect"));
    inspect.arg(&newest).arg("--repo").arg(place.path("repo")).arg("--passphrase-file").arg(&passphrase);
    let shown = finish(&mut inspect).expect(0);
    assert!(shown.contains("Delta") && shown.contains("cache_pages"), "{shown}");

    // The largest segment of chunks: the table's pages are in it.
    let pages = found.index.pages.iter().max_by_key(|pages| pages.object_len).unwrap();
    let key = layout::segment(&cluster, pages.id).to_string();
    let whole = fs::read(place.path("repo").join(&key)).unwrap();
    let mut hurt = whole.clone();
    // Every chunk of it.
    for at in (200..hurt.len() - 4096).step_by(4096) {
        hurt[at] ^= 1;
    }
    fs::remove_file(place.path("repo").join(&key)).unwrap();
    fs::write(place.path("repo").join(&key), &hurt).unwrap();
    let text = verify_fails(&place);
    assert!(text.contains(&key) && text.contains("it needs pages of backup"), "{text}");
    assert!(text.contains("cannot be decoded") && text.contains(&end.to_string()), "{text}");
    fs::remove_file(place.path("repo").join(&key)).unwrap();
    fs::write(place.path("repo").join(&key), &whole).unwrap();
    place.ok(&["verify"]);

    // The backup itself.
    let manifest =
        place.path("repo").join(layout::manifest(&cluster, &found.index.backups[0].id, 0).as_str());
    fs::rename(&manifest, place.path("manifest")).unwrap();
    let text = verify_fails(&place);
    assert!(text.contains("it needs pages of backup") && text.contains("cannot be decoded"), "{text}");
    fs::rename(place.path("manifest"), &manifest).unwrap();

    // A segment in the middle of the epoch: what follows it is lost too, and said to be.
    let middle = &entries[entries.len() / 2];
    flip(&place, layout::segment(&cluster, middle.id).as_str());
    let text = verify_fails(&place);
    let key = layout::segment(&cluster, middle.id);
    let named = |what: &str| text.contains(what);
    assert!(
        named(key.as_str()) && named("what follows it in its epoch") && named(&end.to_string()),
        "{text}"
    );
    assert!(named("restores to any moment after"), "the moments that are lost are told: {text}");
}

#[test]
fn records_are_read_at_any_place_where_identifiers_come_again() {
    let pg = server(17);
    pg.sql("CREATE TABLE p (a int, item text, till text)");
    let place = Place::init();
    let receiving = receive(&place, &pg);
    for _ in 0..3 {
        let till = "md5((i % 7000)::text)";
        pg.sql(&format!(
            "INSERT INTO p SELECT i, md5(random()::text), {till} FROM generate_series(1, 25000) i"
        ));
        compact(&place, &pg);
    }
    drop(receiving);
    let archive = Archive::open(&place);
    let timeline = TimelineId(1);
    archive.compare("shop", &pg, timeline, SegmentSize::new(16 << 20).unwrap());
    let all = archive.records("shop", timeline, None, usize::MAX).unwrap();
    let starts: Vec<_> = all.iter().map(|(start, _)| *start).collect();
    let frames = archive.delta_frames("shop", timeline, &starts);
    let window = |frame: &Vec<u8>| {
        let head = DeltaHead::get(&mut Reader::new("frame", frame)).unwrap();
        head.sections[SectionKind::Digits as usize].codec == SectionCodec::Window
    };
    let with_window = frames.iter().filter(|frame| window(frame)).count();
    assert!(with_window >= 6, "{with_window} of {} frames", frames.len());
    // Whoever begins there reads the same, and goes on.
    for (number, (start, _)) in all.iter().enumerate() {
        let read = archive.records("shop", timeline, Some(*start), 2).unwrap();
        assert!(read == all[number..all.len().min(number + 2)], "from {start} on");
    }
    place.ok(&["verify"]);
    let rows = place.json(&["analyze"]);
    assert!(rows.to_string().contains("Heap"), "{rows}");

    // Each segment by itself has its records.
    let entries = deltas(&snapshot(&place));
    assert!(entries.len() >= 2, "{} segments", entries.len());
    let gone = place.path("repo").join(layout::segment(&"shop".parse().unwrap(), entries[0].id).as_str());
    fs::rename(&gone, place.path("gone")).unwrap();
    for entry in &entries[1..] {
        let from = starts.iter().position(|start| *start >= entry.start).unwrap();
        let read = archive.records("shop", timeline, Some(starts[from]), 3).unwrap();
        assert!(read == all[from..all.len().min(from + 3)], "from {} on", starts[from]);
    }
}

/// Room whose bytes are counted.
#[derive(Debug, Default)]
struct Counted(Arc<AtomicUsize>);

#[derive(Debug)]
struct CountedMemory {
    memory: Box<dyn Memory>,
    reached: usize,
    all: Arc<AtomicUsize>,
}

impl Scratch for Counted {
    fn memory(&self, len: usize) -> io::Result<Box<dyn Memory>> {
        Ok(Box::new(CountedMemory { memory: Anonymous.memory(len)?, reached: 0, all: self.0.clone() }))
    }
}

impl Memory for CountedMemory {
    fn bytes(&self) -> &[u8] {
        self.memory.bytes()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.bytes_mut()
    }

    fn reach(&mut self, len: usize) -> io::Result<()> {
        self.all.fetch_add(len.saturating_sub(self.reached), Ordering::SeqCst);
        self.reached = self.reached.max(len);
        self.memory.reach(len)
    }
}

#[test]
fn a_range_far_into_its_epoch_is_read_with_the_pages_that_it_needs_alone() {
    let pg = server(16);
    let place = Place::init();
    let receiving = receive(&place, &pg);
    backup(&place, &pg);
    pg.sql("CREATE TABLE long (a int PRIMARY KEY, b text)");
    // Pages of the base, images of them, rows and splits in between, and images of those.
    for step in [3, 4, 5] {
        change(&pg, step);
        let rows = format!("SELECT i, md5(i::text) FROM generate_series({step}00000, {step}99999) i");
        pg.sql(&format!("INSERT INTO long {rows} ORDER BY i % 7919"));
        compact(&place, &pg);
    }
    drop(receiving);
    let (timeline, size) = (TimelineId(1), SegmentSize::new(16 << 20).unwrap());
    let whole = Archive::open(&place).compare("shop", &pg, timeline, size);
    let entries = deltas(&snapshot(&place));
    let of = |entry: &WalEntry| entry.deltas.as_ref().unwrap().epoch.clone();
    let (epoch, end) = (of(entries.last().unwrap()), entries.last().unwrap().end);
    assert!(end.bytes_since(epoch.start) > 100 << 20, "{} to {end}", epoch.start);
    let archive = Archive::open(&place);
    let (all, error) = archive.read_parts("shop", timeline, whole, whole.len());
    assert!(error.is_none() && all.len() as u64 == whole.len(), "{error:?}");

    let from = |back: u64, len: u64| {
        let start = end.saturating_sub(back);
        LsnRange::new(start, start.saturating_add(len).min(end))
    };
    // Within a frame, over many, over the end of a segment, to the end.
    let mib = 1 << 20;
    let ranges =
        [from(30 * mib, 100), from(20 * mib + 77, 3 * mib), from(25 * mib, 24 * mib), from(mib, mib)];
    let mut room = Vec::new();
    for range in ranges.into_iter().chain([LsnRange::new(epoch.start, end)]) {
        let taken = Arc::new(AtomicUsize::new(0));
        let archive = Archive::open_within(&place, Arc::new(Counted(taken.clone())));
        let (read, error) = archive.read_parts("shop", timeline, range, range.len());
        let at = range.start.bytes_since(whole.start) as usize;
        assert!(read == all[at..at + range.len() as usize], "{range}: {error:?}");
        room.push(taken.load(Ordering::SeqCst));
    }
    let everything = room.pop().unwrap();
    assert!(room.iter().all(|part| 2 * part < everything), "{room:?} of {everything}");

    // Files out of it, by hand.
    let files: Vec<(SegmentNo, Vec<u8>)> = (size.segment_at(whole.start).0..size.segment_at(end).0)
        .map(SegmentNo)
        .filter(|number| number.range(size).start >= whole.start)
        .filter_map(|number| {
            let name = WalFileName::segment(timeline, number, size).to_string();
            Some((number, fs::read(pg.data_dir().join("pg_wal").join(name)).ok()?))
        })
        .collect();
    assert!(files.len() >= 6, "{} files", files.len());
    for (number, file) in [&files[0], &files[files.len() / 2], &files[files.len() - 1]] {
        let name = WalFileName::segment(timeline, *number, size).to_string();
        let (folder, to) = (place.path("."), place.path(&name));
        let told = place.ok(&["wal-get", &name, "--to", folder.to_str().unwrap()]);
        assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(told.contains("16777216 bytes") && !told.contains("zeros"), "{told}");
        assert!(fs::read(&to).unwrap() == *file, "{name}");
        let again = place.run(&["wal-get", &name, "--to", to.to_str().unwrap()]);
        assert_eq!((again.code, fs::read(&to).unwrap() == *file), (7, true), "{}", again.err);
    }
    for (name, code) in [("0000000100000099000000FF", 6), ("00000007.history", 6), ("backup_label", 2)] {
        let ended = place.run(&["wal-get", name, "--to", place.path("none").to_str().unwrap()]);
        assert_eq!((ended.code, place.path("none").exists()), (code, false), "{name}: {}", ended.err);
    }
    let nowhere = place.path("no/such/folder");
    let name = WalFileName::segment(timeline, files[0].0, size).to_string();
    let ended = place.run(&["wal-get", &name, "--to", nowhere.to_str().unwrap()]);
    assert_eq!(ended.code, 2, "{}", ended.err);
}

#[test]
fn who_goes_on_behind_a_range_far_into_its_epoch_decodes_it_once_and_damage_costs_what_is_behind_it() {
    let pg = server(15);
    let place = Place::init();
    let receiving = receive(&place, &pg);
    backup(&place, &pg);
    pg.sql("CREATE TABLE long AS SELECT i, md5(i::text) AS b FROM generate_series(1, 700000) i");
    compact(&place, &pg);
    pg.sql("UPDATE long SET b = b || i WHERE i % 3 = 0");
    compact(&place, &pg);
    drop(receiving);
    let timeline = TimelineId(1);
    let entries = deltas(&snapshot(&place));
    let last = entries.last().unwrap();
    let (start, end) = (entries[0].deltas.as_ref().unwrap().epoch.start, last.end);
    assert!(last.start.bytes_since(start) > 70 << 20, "{start} to {end}");
    let whole = LsnRange::new(start, end);
    let (all, error) = Archive::open(&place).read_parts("shop", timeline, whole, whole.len());
    assert!(error.is_none(), "{error:?}");
    let tail = LsnRange::new(last.start.saturating_sub(3 << 20), end.min(last.start.saturating_add(3 << 20)));
    let expected = |range: LsnRange| {
        let at = range.start.bytes_since(start) as usize;
        &all[at..at + range.len() as usize]
    };
    for piece in [1 << 20, 3 << 20, 777_777] {
        // A part takes four pieces of memory, its base's pages among them, and whoever decodes everything three.
        let archive = Archive::open_within(&place, Arc::new(Pieces(8.into())));
        let (read, error) = archive.read_parts("shop", timeline, tail, piece);
        assert!(read == expected(tail), "pieces of {piece}: {error:?}");
    }
    // Without room for a part, everything is decoded.
    let archive = Archive::open_within(&place, Arc::new(NoFirst::default()));
    let (read, error) = archive.read_parts("shop", timeline, tail, tail.len());
    assert!(read == expected(tail), "{error:?}");

    let key = layout::segment(&"shop".parse().unwrap(), last.id);
    flip_at(&place, key.as_str(), 8);
    let damaged = LsnRange::new(tail.start, end.min(last.start.saturating_add(28 << 20)));
    let (read, error) = Archive::open(&place).read_parts("shop", timeline, damaged, damaged.len());
    assert!(error.is_some_and(|error| error.to_string().contains(key.as_str())));
    let len = read.len() as u64;
    assert!(len >= 3 << 20 && len < damaged.len() && read == expected(damaged)[..read.len()], "{len} bytes");
}

#[test]
fn ranges_are_read_alike_whether_plain_frames_lie_before_them_and_whatever_base_the_frames_before_had() {
    let pg = server(17);
    let place = Place::init();
    let receiving = receive(&place, &pg);
    let long = |name: &str| {
        pg.sql(&format!(
            "CREATE TABLE {name} AS SELECT i, md5(i::text) AS b FROM generate_series(1, 400000) i"
        ))
    };
    long("before");
    compact(&place, &pg);
    // While a backup is being made there is no base, and its epoch has begun.
    let slowly = place.command_for(&pg, &["backup", "--max-rate", "8MB", "--checkpoint", "fast"]);
    let mut slowly = place.start(slowly, "backup");
    pg.wait_for("SELECT count(*) FROM pg_stat_progress_basebackup WHERE phase ~ 'streaming'", "1", SOON);
    slowly.signal(Signal::STOP);
    change(&pg, 3);
    long("during");
    compact(&place, &pg);
    slowly.signal(Signal::CONT);
    assert!(slowly.wait(SOON).unwrap().success(), "{}", place.log("backup"));
    // Images of its pages; then of the same in plain frames, which leave nothing; then of what was before them.
    change(&pg, 2);
    compact(&place, &pg);
    drop(receiving);
    let receiving = receive_with(&place, &pg, &["--wal-deltas", "off"]);
    change(&pg, 3);
    settle(&pg);
    finish(&mut place.command_for(&pg, &["compact", "--all", "--wal-deltas", "off"])).expect(0);
    drop(receiving);
    let receiving = receive(&place, &pg);
    for step in [3, 4] {
        change(&pg, step);
        long(&format!("after_{step}"));
        compact(&place, &pg);
    }
    drop(receiving);

    let found = snapshot(&place);
    let timeline = TimelineId(1);
    let whole = found.wal.ranges(timeline)[0];
    let all = deltas(&found);
    let of = |entry: &WalEntry| entry.deltas.clone().unwrap();
    let last = of(all.last().unwrap());
    let of_epoch: Vec<&WalEntry> = all.iter().filter(|entry| of(entry).epoch == last.epoch).collect();
    let bases: BTreeSet<Option<BackupId>> = of_epoch.iter().map(|entry| of(entry).base).collect();
    assert_eq!(bases.len(), 2, "{bases:?}");
    let (start, end) = (last.epoch.start, of_epoch.last().unwrap().end);
    // Beside a few small ones that a receiver made of what comes behind a switch of segments.
    let is_plain = |entry: &&WalEntry| entry.deltas.is_none() && entry.end.bytes_since(entry.start) > 1 << 20;
    let plain = found.index.wal.iter().filter(is_plain).max_by_key(|entry| entry.start).unwrap();
    assert!(plain.start.bytes_since(start) > 64 << 20 && end > plain.end, "{start}, {plain:?}, {end}");

    let archive = Archive::open(&place);
    archive.compare("shop", &pg, timeline, SegmentSize::new(16 << 20).unwrap());
    let (expected, error) = archive.read_parts("shop", timeline, whole, whole.len());
    assert!(error.is_none(), "{error:?}");
    let mib = 1 << 20;
    let at = |lsn: Lsn, before: u64| lsn.saturating_sub(before);
    for (from, len) in [
        (at(plain.start, 2 * mib), 100),
        (at(plain.start, 2 * mib), 20 * mib),
        (at(plain.start, 77), plain.end.bytes_since(plain.start) + 3 * mib),
        (plain.start, plain.end.bytes_since(plain.start) + 3 * mib),
        (plain.end, 16 * mib),
        (at(end, 5 * mib), 5 * mib),
    ] {
        let range = LsnRange::new(from, from.saturating_add(len).min(end));
        let begin = range.start.bytes_since(whole.start) as usize;
        for piece in [range.len(), 777_777] {
            let (read, error) = archive.read_parts("shop", timeline, range, piece);
            assert!(read == expected[begin..begin + range.len() as usize], "{range} by {piece}: {error:?}");
        }
    }
}

/// Memory, but not the first time.
#[derive(Debug, Default)]
struct NoFirst(AtomicUsize);

impl Scratch for NoFirst {
    fn memory(&self, len: usize) -> io::Result<Box<dyn Memory>> {
        match self.0.fetch_add(1, Ordering::SeqCst) {
            0 => Err(io::ErrorKind::StorageFull.into()),
            _ => Anonymous.memory(len),
        }
    }
}

fn verify_fails(place: &Place) -> String {
    let ended = place.run(&["verify"]);
    assert_eq!(ended.code, 4, "{}{}", ended.out, ended.err);
    format!("{}{}", ended.out, ended.err)
}
