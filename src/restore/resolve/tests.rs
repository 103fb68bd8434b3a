//! Every rule of target resolution, against archives made of plain data.

use super::*;
use crate::base::{BackupId, LsnRange, ObjectId};
use crate::format::wal::{Event, EventKind, WalSummary};
use crate::repo::lineage::Leg;
use crate::restore::scan::Meaning;
use async_trait::async_trait;
use std::collections::HashSet;

const SEGMENT: u64 = 1 << 20;
const SECOND: i64 = 1_000_000;

fn lsn(at: u64) -> Lsn {
    Lsn::new(at)
}

fn range(start: u64, end: u64) -> LsnRange {
    LsnRange::new(lsn(start), lsn(end))
}

/// Seconds after some morning.
fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix_micros(1_795_000_000 * SECOND).saturating_add_micros(seconds * SECOND)
}

/// WAL of several timelines as it could have been: records of 100 bytes, each at a multiple of 100.
#[derive(Debug, Clone, Default)]
struct Source {
    records: Vec<(TimelineId, Seen)>,
    points: Vec<(TimelineId, Seen, String, Timestamp)>,
}

impl Source {
    fn put(&mut self, timeline: u32, start: u64, meaning: Meaning) {
        let seen = Seen { start: lsn(start), end: lsn(start + 100), meaning };
        self.records.push((TimelineId(timeline), seen));
    }

    fn commit(&mut self, timeline: u32, start: u64, xid: u32, seconds: i64) {
        self.put(timeline, start, Meaning::Commit { xid, time: at(seconds) });
    }

    fn point(&mut self, timeline: u32, start: u64, name: &str, seconds: i64) {
        self.put(timeline, start, Meaning::Other);
        let (timeline, seen) = *self.records.last().unwrap();
        self.points.push((timeline, seen, name.into(), at(seconds)));
    }

    /// Fills `from..to` with records that mean nothing, where there are none.
    fn fill(&mut self, timeline: u32, from: u64, to: u64) {
        let own = self.records.iter().filter(|(t, _)| t.0 == timeline);
        let there: HashSet<Lsn> = own.map(|(_, seen)| seen.start).collect();
        for start in (from..to).step_by(100).filter(|start| !there.contains(&lsn(*start))) {
            self.put(timeline, start, Meaning::Other);
        }
        self.records.sort_by_key(|(t, seen)| (*t, seen.start));
    }

    fn piece(&self, timeline: u32, start: u64, end: u64, server_seconds: i64) -> Piece {
        let mut summary = WalSummary::empty();
        for (_, seen) in self.within(timeline, start, end) {
            summary.first_record = summary.first_record.or(Some(seen.start));
            summary.last_record_end = Some(seen.end);
            let (xid, time, commit) = match seen.meaning {
                Meaning::Commit { xid, time } => (xid, time, 1),
                Meaning::Abort { xid, time } => (xid, time, 0),
                Meaning::Other | Meaning::Limits(_) => continue,
            };
            let one = WalSummary {
                finished_count: 1,
                commit_count: commit,
                time_first: Some(time),
                time_last: Some(time),
                time_min: Some(time),
                time_max: Some(time),
                xid_min: Some(xid),
                xid_max: Some(xid),
                ..WalSummary::empty()
            };
            summary.extend(&one);
        }
        for (t, seen, name, time) in &self.points {
            if t.0 == timeline && lsn(start) < seen.end && seen.end <= lsn(end) {
                summary.events.push(Event {
                    lsn: seen.start,
                    end: seen.end,
                    kind: EventKind::RestorePoint,
                    xid: 0,
                    time: *time,
                    database: 0,
                    relation_count: 0,
                    relations: Vec::new(),
                    name: name.clone(),
                    redo: Lsn::ZERO,
                });
            }
        }
        let (timeline, range) = (TimelineId(timeline), range(start, end));
        Piece { timeline, range, server_time: at(server_seconds), summary }
    }

    fn within(&self, timeline: u32, start: u64, end: u64) -> impl Iterator<Item = &(TimelineId, Seen)> {
        let ends = move |seen: &Seen| lsn(start) < seen.end && seen.end <= lsn(end);
        self.records.iter().filter(move |(t, seen)| t.0 == timeline && ends(seen))
    }
}

struct Memory<'a> {
    source: &'a Source,
    legs: Vec<Leg>,
}

#[async_trait]
impl WalScan for Memory<'_> {
    async fn scan(
        &self,
        range: LsnRange,
        visit: &mut crate::restore::scan::Visit<'_>,
    ) -> Result<(), RestoreError> {
        for leg in &self.legs {
            let Some(inside) = leg.range.intersect(range) else { continue };
            for (_, seen) in self.source.within(leg.timeline.0, inside.start.get(), inside.end.get()) {
                if visit(seen).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

fn backup(id: &str, timeline: u32, redo: u64, stop: u64, seconds: i64) -> BackupEntry {
    BackupEntry {
        id: id.parse::<BackupId>().unwrap(),
        generation: Generation(1),
        timeline: TimelineId(timeline),
        redo: lsn(redo),
        start: lsn(redo),
        stop: lsn(stop),
        started_at: at(seconds - 1),
        stopped_at: at(seconds),
        bytes_raw: 0,
        bytes_stored: 0,
        bytes_new: 0,
        manifest_len: 0,
        manifest_number: 0,
        damaged_blocks: 0,
        root: 0,
        state: BackupState::Complete,
    }
}

struct World {
    source: Source,
    archive: Archive,
}

impl World {
    fn new(source: Source, pieces: Vec<Piece>, backups: Vec<BackupEntry>) -> World {
        let archive = Archive {
            generation: Generation(1),
            segment_size: SegmentSize::new(SEGMENT).unwrap(),
            backups,
            gaps: Vec::new(),
            lineage: Lineage::default(),
            pieces,
            current: TimelineId(1),
        };
        World { source, archive }
    }

    fn ask(&self, request: &Request) -> Result<Resolution, RestoreError> {
        let scan = |path: &TimelinePath| Memory { source: &self.source, legs: path.legs().to_vec() };
        futures_util::future::FutureExt::now_or_never(self.archive.resolve(request, scan)).unwrap()
    }

    fn target(&self, target: Target) -> Result<Resolution, RestoreError> {
        self.ask(&Request::new(target))
    }

    /// The backup's day and where it stops: `<lsn` before the record there, `=lsn` after it.
    fn stop(&self, target: Target) -> String {
        self.shown(&Request::new(target))
    }

    fn shown(&self, request: &Request) -> String {
        match self.ask(request) {
            Ok(found) => {
                let stop = match found.stop {
                    Stop::Consistency => "consistency".into(),
                    Stop::Before(record) => format!("<{}", record.start.get()),
                    Stop::After(record) => format!("={}", record.start.get()),
                };
                format!("{} {stop}", &found.backup.id.as_str()[6..8])
            }
            Err(RestoreError::Outside { reason, .. }) => format!("outside: {reason}"),
            Err(error) => format!("{error}"),
        }
    }
}

const FIRST: &str = "20261101T000000Z";
const SECOND_BACKUP: &str = "20261102T000000Z";

/// Timeline 1: records from 0 to 100,000 in pieces of 10,000; every 1,000 bytes a commit, one a second, xid 100 + second. Two backups: redo 2,000 to stop 3,000 (second 3), redo 50,000 to stop 52,000 (second 52).
fn plain() -> World {
    let mut source = Source::default();
    for second in 1..100 {
        source.commit(1, second * 1000, 100 + second as u32, second as i64);
    }
    source.point(1, 20_500, "once", 20);
    source.point(1, 60_500, "twice", 60);
    source.point(1, 70_500, "twice", 70);
    source.fill(1, 0, 100_000);
    let pieces = (0..10).map(|n| source.piece(1, n * 10_000, (n + 1) * 10_000, n as i64 * 10 + 10)).collect();
    let backups = vec![backup(FIRST, 1, 2000, 3000, 3), backup(SECOND_BACKUP, 1, 50_000, 52_000, 52)];
    World::new(source, pieces, backups)
}

fn exclusive(target: Target) -> Request {
    Request { boundary: Boundary::Exclusive, ..Request::new(target) }
}

fn half(seconds: i64) -> Timestamp {
    at(seconds).saturating_add_micros(SECOND / 2)
}

#[test]
fn a_time_stops_before_the_first_commit_past_it() {
    let world = plain();
    for (time, expected) in [
        (half(30), "01 <31000"),
        (at(31), "01 <32000"),
        (at(51), "01 <52000"),
        (half(51), "01 <52000"),
        (at(52), "02 <53000"),
        (half(98), "02 <99000"),
        (at(3), "01 <4000"),
    ] {
        assert_eq!(world.stop(Target::Time(time)), expected, "{time}");
    }
    assert_eq!(world.shown(&exclusive(Target::Time(at(31)))), "01 <31000");
    assert_eq!(world.shown(&exclusive(Target::Time(half(30)))), "01 <31000");
}

#[test]
fn a_time_after_the_last_commit_means_all_of_it_and_no_more() {
    let world = plain();
    assert_eq!(world.stop(Target::Time(half(99))), "02 =99900");
    assert_eq!(
        world.stop(Target::Time(at(100))),
        "02 =99900",
        "the newest server time belongs to the window"
    );
    let late = world.stop(Target::Time(half(100)));
    assert!(late.starts_with("outside: everything is durable up to server time"), "{late}");
}

#[test]
fn an_idle_servers_window_grows_with_heartbeats() {
    let mut world = plain();
    world.archive.pieces.push(world.source.piece(1, 100_000, 100_000, 5000));
    assert_eq!(world.stop(Target::Time(at(4999))), "02 =99900");
    assert!(world.stop(Target::Time(at(5001))).starts_with("outside"));
}

#[test]
fn a_time_before_every_backup_is_outside_though_nothing_was_committed_since() {
    let world = plain();
    let early = world.stop(Target::Time(half(2)));
    assert!(early.contains("consistency point of every backup"), "{early}");
    let Err(RestoreError::Outside { window, .. }) = world.target(Target::Time(half(2))) else { panic!() };
    assert_eq!(window.parts.len(), 1);
    assert_eq!((window.parts[0].start, window.parts[0].end), (at(3), at(100)));
    assert_eq!(window.parts[0].range, range(3000, 100_000));
    assert!(window.to_string().contains("timeline 1 can be restored from"), "{window}");
}

#[test]
fn a_commit_past_the_time_inside_the_backup_rules_it_out() {
    let mut world = plain();
    // The second backup claims to have been consistent at second 50 though commits up to 52 are in it.
    world.archive.backups[1].stopped_at = at(50);
    assert_eq!(world.stop(Target::Time(at(50))), "01 <51000");
}

#[test]
fn neighbours_out_of_order_are_no_step_of_the_clock() {
    let mut source = Source::default();
    source.commit(1, 5000, 1, 10);
    source.put(1, 6000, Meaning::Commit { xid: 2, time: half(11) });
    source.commit(1, 7000, 3, 11);
    source.commit(1, 8000, 4, 12);
    source.fill(1, 0, 10_000);
    let pieces = vec![source.piece(1, 0, 6500, 11), source.piece(1, 6500, 10_000, 12)];
    let world = World::new(source, pieces, vec![backup(FIRST, 1, 100, 1000, 5)]);
    assert_eq!(world.stop(Target::Time(at(11))), "01 <6000", "as PostgreSQL: the first past it in LSN order");
}

/// Commits at seconds 100 to 199; the clock goes back an hour; commits from -3,400 on for 200 seconds.
fn stepped() -> World {
    let mut source = Source::default();
    for n in 0..100 {
        source.commit(1, 10_000 + n * 1000, 100 + n as u32, 100 + n as i64);
        source.commit(1, 200_000 + n * 1000, 500 + n as u32, -3400 + n as i64);
    }
    source.fill(1, 0, 300_000);
    let pieces = (0..3).map(|n| source.piece(1, n * 100_000, (n + 1) * 100_000, 200)).collect();
    World::new(source, pieces, vec![backup(FIRST, 1, 1000, 2000, -3500)])
}

#[test]
fn a_clock_set_back_is_refused_with_both_positions_and_the_commits_between() {
    let world = stepped();
    let Err(RestoreError::Ambiguous(ambiguity)) = world.target(Target::Time(at(150))) else { panic!() };
    let text = ambiguity.to_string();
    let Ambiguity::SteppedClock { stop, last, commit_count, commits, .. } = *ambiguity else { panic!() };
    assert_eq!((stop, last, commit_count), (lsn(61_000), lsn(299_100), 49 + 100));
    assert_eq!(commits.len(), LISTED_MAX);
    assert!(text.contains("--to-lsn 0/EE48 or --to-lsn 0/4905C"), "{text}");
    assert!(text.ends_with("and 129 more"), "{text}");
    // Either end can be had by position.
    assert_eq!(world.stop(Target::Lsn(stop)), "01 <61000");
    assert_eq!(world.stop(Target::Lsn(last)), "01 <299100");
    // A time of the second pass alone is refused too: from this backup on, PostgreSQL would stop in the first.
    assert!(matches!(world.target(Target::Time(at(-3350))), Err(RestoreError::Ambiguous(_))));
}

#[test]
fn a_step_inside_one_piece_is_found_though_its_first_and_last_times_look_sane() {
    let mut source = Source::default();
    for (n, seconds) in [100, 101, 200, 90, 201, 202].into_iter().enumerate() {
        source.commit(1, 10_000 + n as u64 * 1000, n as u32 + 1, seconds);
    }
    source.fill(1, 0, 20_000);
    let pieces = vec![source.piece(1, 0, 11_500, 101), source.piece(1, 11_500, 20_000, 202)];
    let world = World::new(source, pieces, vec![backup(FIRST, 1, 1000, 2000, 50)]);
    assert!(matches!(world.target(Target::Time(at(150))), Err(RestoreError::Ambiguous(_))));
    assert_eq!(world.stop(Target::Time(at(201))), "01 <15000");
    assert_eq!(world.stop(Target::Time(at(202))), "01 =19900");
}

#[test]
fn after_a_step_the_backup_of_the_second_pass_decides_and_says_so() {
    let mut world = stepped();
    world.archive.backups.push(backup(SECOND_BACKUP, 1, 210_000, 212_000, -3388));
    let found = world.target(Target::Time(at(-3350))).unwrap();
    assert_eq!(found.backup.id.as_str(), SECOND_BACKUP);
    let Stop::Before(record) = found.stop else { panic!() };
    assert_eq!(record.start, lsn(251_000));
    assert!(found.notes.iter().any(|note| note.contains("clock was set back")), "{:?}", found.notes);
    // From the first backup the same time is ambiguous.
    assert!(matches!(
        world.ask(&Request { backup: Some(FIRST.into()), ..Request::new(Target::Time(at(-3350))) }),
        Err(RestoreError::Ambiguous(_))
    ));
}

#[test]
fn an_lsn_means_everything_that_ends_at_or_before_it() {
    let world = plain();
    for (position, expected) in [
        (30_000, "01 <30000"),
        (30_050, "01 <30000"),
        (30_099, "01 <30000"),
        (30_100, "01 <30100"),
        (3000, "01 <3000"),
        (51_999, "01 <51900"),
        (52_000, "02 <52000"),
        (99_999, "02 <99900"),
        (100_000, "02 =99900"),
    ] {
        assert_eq!(world.stop(Target::Lsn(lsn(position))), expected, "{position}");
    }
    assert_eq!(world.shown(&exclusive(Target::Lsn(lsn(30_100)))), "01 <30000");
    assert_eq!(
        world.shown(&exclusive(Target::Lsn(lsn(52_000)))),
        "01 <51900",
        "not the backup that ends there"
    );
    assert!(world.stop(Target::Lsn(lsn(2999))).contains("before the consistency point"));
    assert!(world.stop(Target::Lsn(lsn(100_001))).contains("durable up to 0/186A0"));
}

#[test]
fn half_a_record_at_the_end_is_no_part_of_anything() {
    let mut world = plain();
    world.archive.pieces.push(world.source.piece(1, 100_000, 100_050, 101));
    assert_eq!(world.stop(Target::Latest), "02 =99900");
    assert_eq!(world.stop(Target::Lsn(lsn(100_050))), "02 =99900");
    assert_eq!(world.stop(Target::Time(at(101))), "02 =99900");
}

#[test]
fn latest_is_an_explicit_target() {
    let found = plain().target(Target::Latest).unwrap();
    assert_eq!(
        found.stop,
        Stop::After(Seen { start: lsn(99_900), end: lsn(100_000), meaning: Meaning::Other })
    );
    assert_eq!((found.wal, found.durable_end), (range(0, 100_000), lsn(100_000)));
}

#[test]
fn immediate_is_the_newest_backup_alone() {
    let world = plain();
    assert_eq!(world.stop(Target::Immediate), "02 consistency");
    assert_eq!(world.target(Target::Immediate).unwrap().wal, range(0, 52_000));
    let first = Request { backup: Some("20261101".into()), ..Request::new(Target::Immediate) };
    assert_eq!(world.shown(&first), "01 consistency");
}

#[test]
fn a_transaction_is_found_by_equality_and_belongs_to_its_target() {
    let mut world = plain();
    assert_eq!(world.stop(Target::Xid(130)), "01 =30000");
    assert_eq!(world.stop(Target::Xid(152)), "02 =52000");
    assert_eq!(world.stop(Target::Xid(151)), "01 =51000");
    assert_eq!(world.shown(&exclusive(Target::Xid(152))), "02 <52000");
    assert!(world.stop(Target::Xid(99)).contains("does not have it"));
    assert!(world.stop(Target::Xid(102)).contains("which no backup reaches"), "before the first backup");
    // Rolled back counts, as it does to PostgreSQL.
    world.source.records.iter_mut().filter(|(_, seen)| seen.start == lsn(40_000)).for_each(|(_, seen)| {
        seen.meaning = Meaning::Abort { xid: 140, time: at(40) };
    });
    assert_eq!(world.stop(Target::Xid(140)), "01 =40000");
}

#[test]
fn a_transaction_number_used_twice_is_refused_unless_one_alone_can_be_restored() {
    let mut world = plain();
    let again = world.source.records.iter_mut().find(|(_, seen)| seen.start == lsn(80_000)).unwrap();
    again.1.meaning = Meaning::Commit { xid: 130, time: at(80) };
    world.archive.pieces[8] = world.source.piece(1, 80_000, 90_000, 90);
    // Wrapped around: the piece that holds 80_000 has 130 next to 181.
    let shown = world.stop(Target::Xid(130));
    assert!(shown.contains("there 2 times") && shown.contains("commit of 130"), "{shown}");
    let second = Request { backup: Some("20261102".into()), ..Request::new(Target::Xid(130)) };
    assert_eq!(world.shown(&second), "02 =80000");
}

#[test]
fn restore_points_by_name_and_ambiguous_ones_listed() {
    let world = plain();
    assert_eq!(world.stop(Target::Name("once".into())), "01 =20500");
    let twice = world.stop(Target::Name("twice".into()));
    assert!(
        twice.contains("there 2 times") && twice.contains("0/ECB8") && twice.contains("0/113C8"),
        "{twice}"
    );
    assert_eq!(
        world.stop(Target::Lsn(lsn(60_600))),
        "02 <60600",
        "either can be had by the end that is printed"
    );
    assert!(world.stop(Target::Name("never".into())).contains("does not have it"));
    assert!(matches!(world.ask(&exclusive(Target::Name("once".into()))), Err(RestoreError::Usage { .. })));
}

#[test]
fn gaps_are_refused_and_never_walked_around() {
    let mut world = plain();
    world.archive.pieces.remove(4);
    world.archive.gaps.push(GapEntry {
        id: ObjectId([1; 16]),
        generation: Generation(1),
        timeline: TimelineId(1),
        start: lsn(40_000),
        end: lsn(50_000),
        recorded_at: at(50),
        reason: "the slot was lost".into(),
    });
    // The second backup's segment begins at 0, so it is not restorable either.
    assert_eq!(world.stop(Target::Time(half(38))), "01 <39000");
    assert!(world.stop(Target::Time(at(45))).contains("gap 0/9C40..0/C350 (the slot was lost)"));
    assert!(world.stop(Target::Lsn(lsn(45_000))).contains("the slot was lost"));
    let latest = world.stop(Target::Latest);
    assert!(latest.contains("WAL is missing after 0/9C40") && latest.contains("LSN target"), "{latest}");
    assert!(world.stop(Target::Xid(145)).contains("does not have it"));
    assert!(world.stop(Target::Xid(160)).contains("which no backup reaches"));
    let second = Request { backup: Some(SECOND_BACKUP.into()), ..Request::new(Target::Latest) };
    assert!(world.shown(&second).contains("not whole on the way"), "{}", world.shown(&second));
}

#[test]
fn a_backup_after_the_gap_opens_a_second_part_of_the_window() {
    let mut source = Source::default();
    for second in 1..40 {
        source.commit(1, second * 100_000, 100 + second as u32, second as i64);
    }
    source.fill(1, 0, 4_000_000);
    let pieces = vec![source.piece(1, 0, 900_000, 9), source.piece(1, SEGMENT, 4_000_000, 40)];
    let backups =
        vec![backup(FIRST, 1, 100_000, 200_000, 2), backup(SECOND_BACKUP, 1, 1_100_000, 1_200_000, 12)];
    let world = World::new(source, pieces, backups);
    assert_eq!(world.stop(Target::Latest), "02 =3999900");
    assert_eq!(world.stop(Target::Time(half(5))), "01 <600000");
    assert!(
        world.stop(Target::Time(half(10))).contains("lies in a gap"),
        "{}",
        world.stop(Target::Time(half(10)))
    );
    let first = Request { backup: Some(FIRST.into()), ..Request::new(Target::Latest) };
    assert!(world.shown(&first).contains("WAL is missing"), "latest never means less");
    let window = world.archive.window().unwrap();
    assert_eq!(
        window.parts.iter().map(|p| (p.start, p.end)).collect::<Vec<_>>(),
        [(at(2), at(9)), (at(12), at(40))]
    );
}

/// Timeline 1 up to 100,000; timeline 2 left it at 60,000 and reuses xids 160 and up.
fn forked() -> World {
    let mut world = plain();
    for second in 60..90 {
        world.source.commit(2, second * 1000, 100 + second as u32, 200 + second as i64);
    }
    world.source.point(2, 61_500, "new", 261);
    world.source.fill(2, 60_000, 90_000);
    world.archive.pieces.push(world.source.piece(2, 60_000, 90_000, 300));
    world.archive.lineage.insert(TimelineId(2), vec![(TimelineId(1), lsn(60_000))]);
    world.archive.current = TimelineId(2);
    world
}

#[test]
fn the_newest_timeline_is_followed_and_the_old_one_on_request() {
    let world = forked();
    let on = |timeline: u32, target: Target| {
        world.shown(&Request {
            timeline: TimelineChoice::Number(TimelineId(timeline)),
            ..Request::new(target)
        })
    };
    assert_eq!(world.stop(Target::Latest), "02 =89900");
    assert_eq!(world.target(Target::Latest).unwrap().path.timeline(), TimelineId(2));
    assert_eq!(on(1, Target::Latest), "02 =99900");
    assert_eq!(
        world.stop(Target::Xid(170)),
        "02 =70000",
        "the same number exists on both; one path has one of them"
    );
    assert_eq!(on(1, Target::Xid(195)), "02 =95000");
    assert!(world.stop(Target::Xid(195)).contains("does not have it"));
    assert_eq!(world.stop(Target::Name("new".into())), "02 =61500");
    assert!(on(1, Target::Name("new".into())).contains("timeline 2 has it at 0/F03C"));
    // The old server's commits past the fork are not this line's, nor is its time.
    assert_eq!(world.stop(Target::Time(at(80))), "02 <60000");
    assert_eq!(on(1, Target::Time(at(80))), "02 <81000");
    assert_eq!(world.stop(Target::Time(at(300))), "02 =89900");
    assert!(on(1, Target::Time(at(300))).contains("outside"));
}

#[test]
fn a_backup_past_the_fork_leads_to_its_own_line() {
    let mut world = forked();
    world.archive.backups.push(backup("20261103T000000Z", 1, 80_000, 81_000, 81));
    assert_eq!(world.stop(Target::Latest), "02 =89900", "not on the newest line");
    let own = Request { backup: Some("20261103".into()), ..Request::new(Target::Latest) };
    assert_eq!(world.shown(&own), "03 =99900");
    assert_eq!(world.ask(&own).unwrap().path.timeline(), TimelineId(1));
    let wrong = Request { timeline: TimelineChoice::Number(TimelineId(2)), ..own };
    assert!(world.shown(&wrong).contains("not whole on the way to timeline 2"), "{}", world.shown(&wrong));
    let unknown = Request { timeline: TimelineChoice::Number(TimelineId(7)), ..Request::new(Target::Latest) };
    assert!(matches!(world.ask(&unknown), Err(RestoreError::NotFound { .. })));
}

#[test]
fn backups_by_unique_prefix_and_never_pending_ones() {
    let mut world = plain();
    let with = |world: &World, prefix: &str| {
        world.ask(&Request { backup: Some(prefix.into()), ..Request::new(Target::Latest) })
    };
    assert!(matches!(with(&world, "2026110"), Err(RestoreError::Usage { .. })));
    assert!(matches!(with(&world, "2027"), Err(RestoreError::NotFound { .. })));
    assert!(with(&world, "20261101").is_ok());
    world.archive.backups[1].state = BackupState::Pending;
    assert!(matches!(with(&world, "20261102"), Err(RestoreError::NotFound { .. })));
    assert_eq!(world.stop(Target::Latest), "01 =99900", "a pending backup is not offered");
    world.archive.backups[0].state = BackupState::Damaged;
    world.archive.backups[0].damaged_blocks = 3;
    let notes = world.target(Target::Latest).unwrap().notes;
    assert!(notes.iter().any(|note| note.contains("3 blocks")), "{notes:?}");
    world.archive.backups.clear();
    assert!(world.stop(Target::Latest).contains("no backup is restorable"));
}
