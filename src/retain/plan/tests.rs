//! Decisions of retention, case by case. Time is in days, WAL in MiB; a segment of WAL is a MiB.

use super::*;
use crate::base::{Lsn, LsnRange, RepositoryId, StreamId, SystemId};
use crate::format::index::{GapEntry, HistoryEntry, PinEntry, WalEntry};
use crate::format::record::Blob;
use crate::format::root::{PendingEntry, PendingKind};
use crate::format::wal::{DeltaEpoch, DeltaStats, WalDeltas, WalSummary};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const DAY: i64 = 86_400 * 1_000_000;

/// A cluster whose server wrote 10 MiB a day since day 0.
struct Bed {
    root: Root,
    index: Index,
    generations: Vec<GenerationRecord>,
    reading: Vec<BackupId>,
    policy: Policy,
    clock: i64,
    stored: i64,
    next_id: u8,
}

fn at(day: i64) -> Timestamp {
    Timestamp::from_unix_micros(1_767_225_600_000_000 + day * DAY) // 2026-01-01
}

fn lsn(mib: u64) -> Lsn {
    Lsn::new(mib * MIB)
}

fn record(generation: u32) -> GenerationRecord {
    GenerationRecord {
        cluster: "shop".parse().unwrap(),
        generation: Generation(generation),
        system_id: SystemId(u64::from(generation)),
        major_version: 15,
        segment_size: MIB as u32,
        block_size: 8192,
    }
}

impl Bed {
    /// With a policy of a window of 10 days, and nothing else.
    fn new(days: i64) -> Bed {
        let root = Root::first("shop".parse().unwrap(), Generation(1), at(0));
        let root = Root { number: 50, writer_epoch: 1, ..root };
        let mut bed = Bed {
            root,
            index: Index::default(),
            generations: vec![record(1)],
            reading: Vec::new(),
            policy: Policy { window: Duration::from_secs(10 * 86_400), count_min: 1, keeps: [0; 4] },
            clock: days,
            stored: 1_000,
            next_id: 0,
        };
        bed.stream(1, 1);
        bed.wal(1, 1, 0..days);
        bed
    }

    fn stream(&mut self, generation: u32, timeline: u32) {
        self.root.generation = Generation(generation);
        self.root.streams.push(StreamEntry {
            low_water_key_epoch: 1,
            id: StreamId([self.root.streams.len() as u8; 16]),
            generation: Generation(generation),
            timeline: TimelineId(timeline),
            writer_epoch: 1,
            low_water: 0,
            low_water_lsn: None,
            low_water_link: [0; 32],
        });
    }

    /// A segment a day, 10 MiB from ten times the day on.
    fn wal(&mut self, generation: u32, timeline: u32, days: std::ops::Range<i64>) {
        for day in days {
            self.next_id += 1;
            self.index.wal.push(WalEntry {
                id: ObjectId([self.next_id; 16]),
                generation: Generation(generation),
                timeline: TimelineId(timeline),
                start: lsn(day as u64 * 10),
                end: lsn(day as u64 * 10 + 10),
                object_len: 1000,
                directory_offset: 1,
                server_time: at(day + 1),
                summary: WalSummary::empty(),
                deltas: None,
            });
        }
        self.index.wal.sort_by_key(|e| (e.generation, e.timeline, e.start, e.end));
    }

    /// A backup in the middle of `day`: redo at 5.5 MiB of it, stop at 6.
    fn backup(&mut self, generation: u32, timeline: u32, day: i64, state: BackupState) -> BackupId {
        let stopped_at = at(day).saturating_add_micros(DAY / 2);
        let id = BackupId::at(stopped_at.saturating_add_micros(i64::from(timeline) * 1_000_000));
        let start = lsn(day as u64 * 10 + 5);
        self.index.backups.push(BackupEntry {
            manifest_number: 0,
            id: id.clone(),
            generation: Generation(generation),
            timeline: TimelineId(timeline),
            redo: Lsn::new(start.get() + MIB / 2),
            start: Lsn::new(start.get() + MIB / 2),
            stop: lsn(day as u64 * 10 + 6),
            started_at: at(day),
            stopped_at,
            bytes_raw: 0,
            bytes_stored: 0,
            bytes_new: 0,
            manifest_len: 0,
            damaged_blocks: u64::from(state == BackupState::Damaged),
            root: 0,
            state,
        });
        self.index.backups.sort_by(|a, b| a.id.cmp(&b.id));
        id
    }

    fn complete(&mut self, day: i64) -> BackupId {
        self.backup(1, 1, day, BackupState::Complete)
    }

    fn completes(&mut self, days: &[i64]) {
        for day in days {
            self.complete(*day);
        }
    }

    /// Timeline `timeline` left `parent` at the end of `day`.
    fn fork(&mut self, generation: u32, timeline: u32, parent: u32, day: i64) {
        let content = format!("{parent}\t{}\tno reason\n", lsn(day as u64 * 10));
        self.index.histories.push(HistoryEntry {
            generation: Generation(generation),
            timeline: TimelineId(timeline),
            content: Blob(content.into_bytes()),
        });
    }

    fn deltas(&mut self, days: std::ops::Range<i64>, base: Option<&BackupId>) {
        self.next_id += 1;
        let start = lsn(days.start as u64 * 10);
        let epoch = DeltaEpoch { id: ObjectId([self.next_id; 16]), start, root: 1, cache_pages: 1024 };
        for entry in &mut self.index.wal {
            if days.contains(&((entry.start.get() / MIB / 10) as i64)) {
                let (epoch, base) = (epoch.clone(), base.cloned());
                entry.deltas = Some(WalDeltas { epoch, base, stats: DeltaStats::EMPTY });
            }
        }
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            root: &self.root,
            index: &self.index,
            chains: &[],
            generations: &self.generations,
            reading: &self.reading,
            clock: at(self.clock),
            stored: at(self.stored),
        }
    }

    fn plan(&self) -> Plan {
        plan(&self.facts(), &self.policy)
    }

    /// The days of the backups that go.
    fn gone(&self) -> Vec<i64> {
        let days = |backup: &BackupEntry| backup.stopped_at.micros_since(at(0)) / DAY;
        self.plan().backups_removed().map(days).collect()
    }

    /// WAL that goes, as `generation/timeline: first day..last day`.
    fn wal_gone(&self) -> Vec<String> {
        let plan = self.plan();
        let gone = plan.wal.iter().filter(|fate| fate.keeps.is_empty());
        gone.map(|fate| {
            let day = |lsn: Lsn| lsn.get() / MIB / 10;
            let (start, end) = (day(fate.range.start), day(fate.range.end));
            format!("{}/{}: {start}..{end}", fate.generation, fate.timeline)
        })
        .collect()
    }

    fn keeps(&self, id: &BackupId) -> Vec<Keep> {
        self.plan().backups.into_iter().find(|fate| fate.backup.id == *id).unwrap().keeps
    }

    /// The bed once its plan was carried out: nothing more goes then.
    fn expired(mut self) -> Bed {
        let plan = self.plan();
        let gone: Vec<BackupId> = plan.backups_removed().map(|backup| backup.id.clone()).collect();
        self.index.wal.retain(|entry| !plan.wal_removed.contains(&entry.id));
        self.index.backups.retain(|backup| !gone.contains(&backup.id));
        for backup in &mut self.index.backups {
            if plan.bases().any(|base| *base == backup.id) {
                backup.state = BackupState::Base;
            }
        }
        self.index.expired = plan.expired.clone();
        assert!(self.plan().is_empty(), "{:?}", self.plan());
        assert_eq!(self.plan().expired, self.index.expired);
        self
    }
}

#[test]
fn the_window_begins_with_the_newest_backup_before_it() {
    let mut bed = Bed::new(30);
    let ids: Vec<BackupId> = [3, 10, 18, 25].map(|day| bed.complete(day)).to_vec();
    assert_eq!(bed.plan().window_start, at(20));
    assert_eq!(bed.gone(), [3, 10]);
    assert_eq!(bed.wal_gone(), ["1/1: 0..18"]);
    assert_eq!(bed.keeps(&ids[2]), [Keep::WindowStart(TimelineId(1))]);
    assert_eq!(bed.keeps(&ids[3])[0], Keep::InWindow);
    let expired = bed.expired();
    let entry =
        ExpiredEntry { generation: Generation(1), timeline: TimelineId(1), start: lsn(0), end: lsn(180) };
    assert_eq!(expired.index.expired, [entry]);
}

#[test]
fn a_host_clock_that_jumped_ahead_expires_nothing_more() {
    let mut bed = Bed::new(30);
    bed.completes(&[3, 10, 18, 25]);
    bed.clock = 30_000;
    assert_eq!(bed.plan().now, at(30));
    assert_eq!(bed.gone(), [3, 10]);
}

#[test]
fn a_server_clock_that_jumped_ahead_expires_nothing_more() {
    let mut bed = Bed::new(30);
    bed.completes(&[3, 10, 18, 25]);
    bed.index.wal.last_mut().unwrap().server_time = at(30_000);
    assert_eq!(bed.plan().now, at(30));
    assert_eq!(bed.gone(), [3, 10]);
}

#[test]
fn clocks_of_host_and_server_that_jumped_ahead_together_expire_nothing_more() {
    let mut bed = Bed::new(30);
    bed.completes(&[3, 10, 18, 25]);
    bed.clock = 30_000;
    bed.index.wal.last_mut().unwrap().server_time = at(30_000);
    bed.stored = 30;
    assert_eq!(bed.plan().now, at(30));
    assert_eq!(bed.gone(), [3, 10]);
}

#[test]
fn a_host_clock_that_lags_expires_less() {
    let mut bed = Bed::new(30);
    bed.completes(&[3, 10, 18, 25]);
    bed.clock = 0;
    assert_eq!(bed.gone(), Vec::<i64>::new());
}

#[test]
fn a_cluster_that_stands_still_loses_nothing() {
    let mut bed = Bed::new(30);
    bed.completes(&[3, 10, 18, 25]);
    let now = bed.gone();
    bed.clock = 300;
    assert_eq!(bed.gone(), now);
}

#[test]
fn a_backup_before_one_that_looks_young_since_the_clock_was_set_back_stays() {
    let mut bed = Bed::new(30);
    bed.complete(3);
    let ahead = bed.complete(10);
    bed.complete(18);
    // Made while the server's clock was 15 days ahead.
    for backup in bed.index.backups.iter_mut().filter(|backup| backup.id == ahead) {
        backup.stopped_at = at(25);
    }
    assert_eq!(bed.gone(), Vec::<i64>::new());
}

#[test]
fn the_last_complete_backup_stays_whatever_is_newer_and_damaged() {
    let mut bed = Bed::new(30);
    bed.policy.count_min = 0;
    let complete = bed.complete(3);
    bed.backup(1, 1, 12, BackupState::Damaged);
    bed.backup(1, 1, 25, BackupState::Damaged);
    assert_eq!(bed.gone(), [12]);
    assert_eq!(bed.keeps(&complete), [Keep::WindowStart(TimelineId(1))]);
    assert_eq!(bed.wal_gone(), ["1/1: 0..3"]);
}

#[test]
fn while_no_complete_backup_is_restorable_nothing_goes() {
    let mut bed = Bed::new(30);
    bed.backup(1, 1, 3, BackupState::Damaged);
    bed.backup(1, 1, 5, BackupState::Damaged);
    assert!(bed.plan().is_empty());
    // Its WAL is not there: it is complete, and not restorable.
    bed.complete(8);
    bed.index.wal.retain(|entry| entry.start != lsn(80));
    assert!(bed.plan().is_empty());
}

#[test]
fn pending_backups_stay_and_let_nothing_go() {
    let mut bed = Bed::new(30);
    bed.complete(3);
    let pending = bed.backup(1, 1, 12, BackupState::Pending);
    bed.index.wal.retain(|entry| entry.start != lsn(120));
    assert_eq!(bed.gone(), Vec::<i64>::new());
    assert_eq!(bed.keeps(&pending), [Keep::Pending]);
    // Once its WAL is durable it counts, though its entry still says that it waits.
    bed.wal(1, 1, 12..13);
    assert_eq!(bed.gone(), [3]);
}

#[test]
fn backups_whose_wal_has_a_hole_do_not_count() {
    let mut bed = Bed::new(30);
    bed.complete(3);
    bed.complete(15);
    bed.index.wal.retain(|entry| entry.start != lsn(150));
    assert_eq!(bed.gone(), [15], "it cannot be restored, and is older than the window");
    assert_eq!(bed.wal_gone(), ["1/1: 0..3"]);
}

#[test]
fn the_window_begins_again_after_a_gap() {
    let mut bed = Bed::new(30);
    let before = bed.complete(3);
    let after = bed.backup(1, 1, 18, BackupState::Damaged);
    bed.index.wal.retain(|entry| entry.start != lsn(150));
    assert_eq!(bed.keeps(&after), [Keep::WindowStart(TimelineId(1))]);
    assert_eq!(bed.keeps(&before), [Keep::Count(1)], "the only complete one");
    // WAL was lost since the last backup: nothing of the window can be restored, and the nearest stays.
    bed.index.backups.retain(|backup| backup.id != after);
    bed.complete(1);
    assert_eq!(bed.gone(), [1]);
    assert!(bed.keeps(&before).contains(&Keep::WindowStart(TimelineId(1))));
}

#[test]
fn pins_keep_a_backup_and_what_makes_it_consistent() {
    let mut bed = Bed::new(30);
    let pinned = bed.complete(3);
    bed.complete(18);
    let pin = |until| PinEntry { backup: pinned.clone(), pinned_at: at(4), until, reason: "audit".into() };
    bed.index.pins = vec![pin(None)];
    assert_eq!(bed.gone(), Vec::<i64>::new());
    assert_eq!(bed.keeps(&pinned), [Keep::Pinned(None, "audit".into())]);
    assert_eq!(bed.wal_gone(), ["1/1: 0..3", "1/1: 4..18"]);
    bed.index.pins = vec![pin(Some(at(31)))];
    assert_eq!(bed.gone(), Vec::<i64>::new());
    bed.index.pins = vec![pin(Some(at(29)))];
    assert_eq!(bed.gone(), [3]);
    bed.index.pins = vec![pin(None)];
    let bed = bed.expired();
    let expired: Vec<(Lsn, Lsn)> = bed.index.expired.iter().map(|e| (e.start, e.end)).collect();
    assert_eq!(expired, [(lsn(0), lsn(30)), (lsn(40), lsn(180))]);
}

#[test]
fn the_newest_so_many_stay_with_all_wal_from_the_oldest_of_them_on() {
    let mut bed = Bed::new(60);
    bed.completes(&[3, 10, 18, 25]);
    bed.policy.count_min = 3;
    assert_eq!(bed.gone(), [3]);
    assert_eq!(bed.wal_gone(), ["1/1: 0..10"]);
    bed.backup(1, 1, 40, BackupState::Damaged);
    assert_eq!(bed.gone(), [3, 40], "a damaged one does not count, and is older than the window");
}

#[test]
fn the_calendar_keeps_backups_and_only_the_wal_that_makes_them_consistent() {
    let mut bed = Bed::new(80); // to 2026-03-22
    let ids: Vec<BackupId> = [2, 30, 40, 58, 68, 75].map(|day| bed.complete(day)).to_vec();
    bed.policy.keeps = [0, 0, 3, 0];
    assert_eq!(bed.gone(), [2, 40]);
    assert_eq!(bed.keeps(&ids[1]), [Keep::Calendar(Period::Month, "2026-01".into())]);
    assert_eq!(bed.wal_gone(), ["1/1: 0..30", "1/1: 31..58", "1/1: 59..68"]);
    bed.expired();
}

#[test]
fn what_a_restore_reads_stays_with_all_wal_after_it() {
    let mut bed = Bed::new(30);
    let id = bed.complete(3);
    bed.complete(18);
    bed.reading = vec![id.clone()];
    bed.root.pending = vec![PendingEntry { id: ObjectId([9; 16]), kind: PendingKind::Restore, root: 40 }];
    assert_eq!(bed.keeps(&id), [Keep::Reading]);
    assert_eq!(bed.wal_gone(), ["1/1: 0..3"]);
}

#[test]
fn deltas_keep_the_beginning_of_their_epoch_and_the_backup_they_refer_to() {
    let mut bed = Bed::new(30);
    let base = bed.complete(3);
    bed.complete(18);
    bed.deltas(14..22, Some(&base));
    let range = LsnRange::new(lsn(140), lsn(220));
    assert_eq!(bed.keeps(&base), [Keep::Deltas(TimelineId(1), range)]);
    // Its own WAL goes: nothing is restored from it.
    assert_eq!(bed.wal_gone(), ["1/1: 0..14"]);
    let plan = bed.plan();
    let epoch: Vec<&WalFate> = plan.wal.iter().filter(|fate| fate.keeps == [KeepWal::Epoch]).collect();
    assert_eq!(epoch.iter().map(|fate| fate.range).collect::<Vec<_>>(), [LsnRange::new(lsn(140), lsn(180))]);
    // What lies plain in between stays with it: an epoch is whole, or is not gone on with.
    for entry in bed.index.wal.iter_mut().filter(|entry| entry.start == lsn(150)) {
        entry.deltas = None;
    }
    assert_eq!(bed.wal_gone(), ["1/1: 0..14"]);
    // Of an epoch that is over before what is kept, nothing stays.
    bed.deltas(14..18, Some(&base));
    bed.deltas(18..22, None);
    assert_eq!(bed.gone(), [3]);
    assert_eq!(bed.wal_gone(), ["1/1: 0..18"]);
    bed.expired();
}

#[test]
fn a_backup_whose_wal_will_never_come_is_not_waited_for() {
    let mut bed = Bed::new(30);
    bed.completes(&[3, 10, 18, 25]);
    let pending = bed.backup(1, 1, 5, BackupState::Pending);
    let (start, end) = (lsn(50), lsn(60));
    bed.index.wal.retain(|entry| entry.start != start);
    assert_eq!(bed.keeps(&pending), [Keep::Pending]);
    bed.index.expired = vec![ExpiredEntry { generation: Generation(1), timeline: TimelineId(1), start, end }];
    assert_eq!(bed.gone(), [3, 5, 10]);
}

#[test]
fn a_copy_waits_for_wal_that_its_source_lost_until_a_receiver_takes_it_over() {
    let mut bed = Bed::new(30);
    bed.completes(&[3, 10, 18, 25]);
    let pending = bed.backup(1, 1, 5, BackupState::Pending);
    let (start, end) = (lsn(50), lsn(60));
    bed.index.wal.retain(|entry| entry.start != start);
    bed.index.gaps = vec![GapEntry {
        id: ObjectId([9; 16]),
        generation: Generation(1),
        timeline: TimelineId(1),
        start,
        end,
        recorded_at: at(6),
        reason: "the source of the copy could not read it".into(),
    }];
    bed.root.set_copied_from(RepositoryId([7; 16]), &"shop".parse().unwrap());
    bed.root.writer_epoch = 0;
    assert_eq!(bed.keeps(&pending), [Keep::Pending]);
    bed.root.writer_epoch = 1;
    assert_eq!(bed.gone(), [3, 5, 10]);
}

#[test]
fn backups_from_a_standby_do_not_keep_each_other_for_ever() {
    // The redo LSN of each lies in the epoch before, which is made of differences from the backup before it.
    let mut bed = Bed::new(30);
    let ids: Vec<BackupId> = (1..29).map(|day| bed.complete(day)).collect();
    for (day, pair) in (1..).zip(ids.windows(2)) {
        bed.deltas(day + 1..day + 2, Some(&pair[0]));
    }
    // The window begins with the backup of day 19; its own WAL refers to the one of day 18, whose WAL goes.
    assert_eq!(bed.plan().bases().collect::<Vec<_>>(), [&ids[17]]);
    assert_eq!(bed.gone(), (1..18).collect::<Vec<_>>());
    assert_eq!(bed.wal_gone(), ["1/1: 0..19"]);
    let mut bed = bed.expired();
    // It counts for nothing, and goes with the WAL that refers to it.
    bed.policy.count_min = 11;
    let only = [Keep::Deltas(TimelineId(1), LsnRange::new(lsn(190), lsn(200)))];
    assert_eq!(bed.keeps(&ids[17]), only);
    bed.policy.count_min = 1;
    bed.wal(1, 1, 30..31);
    bed.clock += 1;
    assert_eq!(bed.gone(), [18]);
    assert_eq!(bed.plan().bases().collect::<Vec<_>>(), [&ids[18]]);
}

#[test]
fn a_line_keeps_its_ancestors_backup_and_wal() {
    let mut bed = Bed::new(22);
    bed.complete(3);
    let anchor = bed.complete(15);
    bed.fork(1, 2, 1, 22);
    bed.stream(1, 2);
    bed.wal(1, 2, 22..30);
    bed.clock = 30;
    assert_eq!(bed.gone(), [3]);
    let keeps = bed.keeps(&anchor);
    assert!(keeps.contains(&Keep::WindowStart(TimelineId(2))), "{keeps:?}");
    assert_eq!(bed.wal_gone(), ["1/1: 0..15"]);
}

/// A clone was restored to day 12, ran until day 20 and archived into the same cluster; timeline 1 went on.
#[test]
fn a_clone_with_a_higher_timeline_does_not_displace_the_cluster_it_came_from() {
    let mut bed = Bed::new(40);
    bed.complete(3);
    let ours = bed.complete(28);
    bed.fork(1, 2, 1, 12);
    bed.wal(1, 2, 12..20);
    let theirs = bed.backup(1, 2, 15, BackupState::Complete);
    assert_eq!(bed.gone(), [3, 15], "its line was left before the window began");
    assert!(bed.keeps(&ours).contains(&Keep::WindowStart(TimelineId(1))));
    assert_eq!(bed.wal_gone(), ["1/1: 0..28", "1/2: 12..20"]);
    // While its own moments are inside the window, it has a window of its own.
    bed.index.wal.retain(|entry| entry.timeline == TimelineId(2) || entry.start < lsn(250));
    bed.index.backups.retain(|backup| backup.id != ours);
    bed.clock = 25;
    assert_eq!(bed.plan().now, at(25));
    let keeps = bed.keeps(&theirs);
    assert!(
        keeps.contains(&Keep::WindowStart(TimelineId(2))) || keeps.contains(&Keep::InWindow),
        "{keeps:?}"
    );
    assert_eq!(bed.gone(), Vec::<i64>::new());
}

/// Timelines can begin again at a lower number: a standby that never saw the others is promoted, and is where the cluster goes on.
#[test]
fn a_cluster_that_went_back_to_a_lower_timeline_is_judged_by_where_it_is() {
    let mut bed = Bed::new(40);
    bed.complete(3);
    let now = bed.complete(29);
    bed.fork(1, 7, 1, 10);
    bed.wal(1, 7, 10..12);
    bed.backup(1, 7, 11, BackupState::Complete);
    assert_eq!(bed.gone(), [3, 11]);
    assert!(bed.keeps(&now).contains(&Keep::WindowStart(TimelineId(1))));
}

#[test]
fn after_an_upgrade_the_older_generation_stays_until_the_window_has_passed() {
    let mut bed = Bed::new(20);
    bed.complete(3);
    let old = bed.complete(12);
    bed.generations.push(record(2));
    bed.stream(2, 1);
    bed.wal(2, 1, 20..25);
    let first = bed.backup(2, 1, 20, BackupState::Complete);
    bed.clock = 25;
    assert_eq!(bed.gone(), [3]);
    assert_eq!(bed.wal_gone(), ["1/1: 0..12"]);
    assert!(bed.keeps(&old).contains(&Keep::WindowStart(TimelineId(1))));
    bed.wal(2, 1, 25..45);
    bed.clock = 45;
    assert_eq!(bed.gone(), [3, 12]);
    assert_eq!(bed.wal_gone(), ["1/1: 0..20"]);
    assert!(bed.keeps(&first).contains(&Keep::WindowStart(TimelineId(1))));
}

#[test]
fn the_line_that_a_generation_ended_on_stays_its_own_when_its_newest_wal_has_gone() {
    let mut bed = Bed::new(14);
    bed.fork(1, 2, 1, 10);
    bed.wal(1, 2, 10..17);
    let own = bed.backup(1, 2, 11, BackupState::Complete);
    let left = bed.complete(13);
    let pin = PinEntry { backup: left.clone(), pinned_at: at(13), until: None, reason: String::new() };
    bed.index.pins.push(pin);
    bed.generations.push(record(2));
    bed.root.streams.clear();
    bed.root.set_ended(Generation(1), TimelineId(2));
    bed.stream(2, 1);
    bed.wal(2, 1, 17..60);
    bed.backup(2, 1, 17, BackupState::Complete);
    bed.policy.count_min = 2;
    bed.clock = 60;
    assert_eq!(bed.keeps(&own), [Keep::Count(2)]);
    assert_eq!(bed.wal_gone(), ["1/1: 0..13", "1/2: 10..11", "1/2: 12..17"]);
    // The line that was left has the newest WAL now.
    let bed = bed.expired();
    assert_eq!(bed.keeps(&own), [Keep::Count(2)]);
    assert_eq!(bed.keeps(&left).len(), 1, "it is pinned, and counts as nothing else");
}

#[test]
fn without_a_backup_of_the_new_generation_the_old_ones_last_stays() {
    let mut bed = Bed::new(20);
    bed.policy.count_min = 0;
    bed.complete(3);
    let last = bed.complete(12);
    bed.generations.push(record(2));
    bed.stream(2, 1);
    bed.wal(2, 1, 20..90);
    bed.clock = 90;
    assert_eq!(bed.gone(), [3]);
    assert_eq!(bed.keeps(&last), [Keep::Last]);
    assert_eq!(bed.wal_gone(), ["1/1: 0..12"], "and its WAL to its end, and all of the new one's");
}

#[test]
fn a_generation_that_is_not_known_well_enough_keeps_everything() {
    let mut bed = Bed::new(30);
    let ids = [3, 18, 25].map(|day| bed.complete(day));
    bed.wal(1, 2, 20..21); // whose history is missing
    assert!(bed.plan().is_empty());
    assert_eq!(bed.keeps(&ids[0])[0], Keep::Unknown);
    bed.fork(1, 2, 1, 20);
    assert_eq!(bed.gone(), [3]);
    bed.generations.clear();
    assert!(bed.plan().is_empty());
}

#[test]
fn wal_before_the_first_backup_goes_and_wal_without_one_stays() {
    let mut bed = Bed::new(30);
    assert!(bed.plan().is_empty());
    bed.complete(25);
    assert_eq!(bed.wal_gone(), ["1/1: 0..25"]);
}

#[test]
fn deleting_the_oldest_takes_the_wal_that_only_it_can_replay() {
    let mut bed = Bed::new(30);
    let ids = [3, 10, 18].map(|day| bed.complete(day));
    let gone = |id: &BackupId| {
        let plan = without(&bed.facts(), id);
        let wal = plan.wal.iter().filter(|fate| fate.keeps.is_empty()).map(|fate| fate.range);
        (plan.backups_removed().count(), wal.collect::<Vec<_>>())
    };
    assert_eq!(gone(&ids[0]), (1, vec![LsnRange::new(lsn(0), lsn(100))]));
    assert_eq!(gone(&ids[1]), (1, vec![LsnRange::new(lsn(0), lsn(30))]));
    bed.deltas(11..15, Some(&ids[1]));
    let plan = without(&bed.facts(), &ids[1]);
    assert_eq!(plan.backups_removed().count(), 0, "the first backup replays what refers to it");
}
