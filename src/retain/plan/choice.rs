//! A plan in the making: what is kept and why, and then what that needs in its turn, until nothing is missing. Pure.

use super::{BackupFate, Facts, Keep, KeepWal, Plan, WalFate, is_complete};
use crate::base::{BackupId, Generation, Lsn, LsnRange, ObjectId, TimelineId, Timestamp};
use crate::format::index::{BackupEntry, BackupState, WalEntry};
use crate::repo::backups::needed_wal;
use crate::repo::spans::Spans;
use crate::retain::lines::{Era, Line, Restorable};
use crate::retain::policy::{self, Dated, Policy};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// WAL that is wanted, and why.
struct Wanted {
    place: (Generation, TimelineId),
    range: LsnRange,
    why: KeepWal,
}

/// A plan in the making.
pub(super) struct Choice<'a> {
    facts: &'a Facts<'a>,
    eras: &'a [Era],
    keeps: BTreeMap<BackupId, Vec<Keep>>,
    wanted: Vec<Wanted>,
}

impl<'a> Choice<'a> {
    pub(super) fn new(facts: &'a Facts<'a>, eras: &'a [Era]) -> Choice<'a> {
        Choice { facts, eras, keeps: BTreeMap::new(), wanted: Vec::new() }
    }

    pub(super) fn keep(&mut self, id: &BackupId, why: Keep) {
        let keeps = self.keeps.entry(id.clone()).or_default();
        if !keeps.contains(&why) {
            keeps.push(why);
        }
    }

    fn want(&mut self, era: &Era, timeline: TimelineId, range: LsnRange, why: KeepWal) {
        self.wanted.push(Wanted { place: (era.generation, timeline), range, why });
    }

    /// Keeps the WAL without which `backup` is worth nothing.
    pub(super) fn want_consistency(&mut self, era: &Era, backup: &BackupEntry) {
        for (timeline, range) in consistency(era, backup) {
            self.want(era, timeline, range, KeepWal::Consistency(backup.id.clone()));
        }
    }

    /// Everything of `line` from `from` on.
    fn want_line(&mut self, era: &Era, line: &Line, from: Lsn, why: KeepWal) {
        let Some(size) = era.size else { return };
        for (timeline, range) in line.wal_from(from, Lsn::MAX, size) {
            self.want(era, timeline, range, why.clone());
        }
    }

    pub(super) fn want_era(&mut self, era: &Era) {
        let of_era = self.facts.index.wal.iter().filter(|entry| entry.generation == era.generation);
        let timelines: BTreeSet<TimelineId> = of_era.map(|entry| entry.timeline).collect();
        for timeline in timelines {
            self.want(era, timeline, LsnRange::new(Lsn::ZERO, Lsn::MAX), KeepWal::Unknown);
        }
    }

    pub(super) fn keep_era(&mut self, era: &Era) {
        self.want_era(era);
        era.backups.iter().for_each(|backup| self.keep(&backup.id, Keep::Unknown));
    }

    pub(super) fn keep_all(&mut self, why: Keep) {
        for era in self.eras {
            self.want_era(era);
            era.backups.iter().for_each(|backup| self.keep(&backup.id, why.clone()));
        }
    }

    /// Pins, what restores read, and what is not restorable yet.
    pub(super) fn keep_what_nobody_may_take(&mut self, now: Timestamp) {
        for era in self.eras {
            for backup in &era.backups {
                let pin = self.facts.index.pins.iter().find(|pin| pin.backup == backup.id);
                if let Some(pin) = pin.filter(|pin| pin.until.is_none_or(|until| until > now)) {
                    self.keep(&backup.id, Keep::Pinned(pin.until, pin.reason.clone()));
                    self.want_consistency(era, backup);
                }
                if backup.state == BackupState::Pending && !self.never_restorable(era, backup) {
                    self.keep(&backup.id, Keep::Pending);
                    self.want_consistency(era, backup);
                }
                if self.facts.reading.contains(&backup.id) {
                    self.keep(&backup.id, Keep::Reading);
                    let Some(size) = era.size else { continue };
                    let from = needed_wal(backup, size).start;
                    let range = LsnRange::new(backup.redo.min(backup.stop), backup.stop);
                    for line in era.lines.iter().filter(|line| line.path.holds(backup.timeline, range)) {
                        let why = KeepWal::Recovery(backup.id.clone(), line.timeline());
                        self.want_line(era, line, from, why);
                    }
                }
            }
        }
    }

    /// Whether WAL that `backup` waits for will not come any more: retention let go of it, or it is lost. To a copy that nobody else
    /// writes to, it comes once its source was mended.
    fn never_restorable(&self, era: &Era, backup: &BackupEntry) -> bool {
        let index = self.facts.index;
        let root = self.facts.root;
        let is_copy = root.copied_from().is_some() && root.writer_epoch == 0;
        let mut gone = Spans::expired(&index.expired);
        for gap in index.gaps.iter().filter(|gap| !is_copy && gap.start < gap.end) {
            gone.add((gap.generation, gap.timeline), LsnRange::new(gap.start, gap.end));
        }
        let mut needed = consistency(era, backup).into_iter();
        needed.any(|(timeline, range)| gone.meets((era.generation, timeline), range))
    }

    /// The backups with which the window of `line` begins, and begins again after a gap, those after them, and all WAL from the first of
    /// them on.
    pub(super) fn keep_window(&mut self, era: &Era, line: &'a Line, start: Timestamp) {
        // In LSN order: where the server's clock was set back, a backup counts as young when one before it does.
        let young = line.restorable.iter().position(|of| of.backup.stopped_at > start);
        let (old, young) = line.restorable.split_at(young.unwrap_or(line.restorable.len()));
        let newest =
            |of: &[&'a Restorable]| of.iter().rev().find(|of| is_complete(of)).or(of.last()).copied();
        let mut anchors: Vec<&Restorable> = Vec::new();
        let mut runs: Vec<LsnRange> = old.iter().filter(|of| of.run_end > start).map(|of| of.run).collect();
        runs.dedup();
        for run in runs {
            anchors.extend(newest(&old.iter().filter(|of| of.run == run).collect::<Vec<_>>()));
        }
        if anchors.is_empty() && young.is_empty() {
            // WAL was lost since the last backup, and the window holds nothing: what is nearest to it stays.
            anchors.extend(newest(&old.iter().collect::<Vec<_>>()));
        }
        for restorable in young {
            self.keep(&restorable.backup.id, Keep::InWindow);
        }
        for anchor in &anchors {
            self.keep(&anchor.backup.id, Keep::WindowStart(line.timeline()));
        }
        let first = anchors.into_iter().chain(young).min_by_key(|of| of.needed.start);
        let Some(first) = first else {
            return self.want_line(era, line, Lsn::ZERO, KeepWal::NoBackup(line.timeline()));
        };
        let why = KeepWal::Recovery(first.backup.id.clone(), line.timeline());
        self.want_line(era, line, first.needed.start, why);
    }

    /// Restorable backups on the generations' own lines, newest first.
    fn own(&self) -> Vec<(&'a Era, &'a Line, &'a Restorable)> {
        let lines = self.eras.iter().flat_map(|era| era.lines.iter().map(move |line| (era, line)));
        let lines = lines.filter(|(_, line)| line.main);
        let mut all: Vec<_> =
            lines.flat_map(|(era, line)| line.restorable.iter().map(move |of| (era, line, of))).collect();
        all.sort_by(|a, b| {
            (b.2.backup.stopped_at, &b.2.backup.id).cmp(&(a.2.backup.stopped_at, &a.2.backup.id))
        });
        all
    }

    /// The newest complete ones. From the oldest of them on the cluster's own line, WAL stays.
    pub(super) fn keep_count(&mut self, count: u32) {
        let complete = self.own().into_iter().filter(|(_, _, of)| is_complete(of));
        for (era, line, of) in complete.take(count as usize).collect::<Vec<_>>() {
            self.keep(&of.backup.id, Keep::Count(count));
            if line.current {
                let why = KeepWal::Recovery(of.backup.id.clone(), line.timeline());
                self.want_line(era, line, of.needed.start, why);
            } else {
                self.want_consistency(era, &of.backup);
            }
        }
    }

    pub(super) fn keep_calendar(&mut self, policy: &Policy) {
        let own = self.own();
        let dated = |of: &Restorable| Dated {
            id: of.backup.id.clone(),
            at: of.backup.stopped_at,
            complete: is_complete(of),
        };
        let all: Vec<Dated> = own.iter().map(|(_, _, of)| dated(of)).collect();
        for (id, period, name) in policy::calendar(policy, &all) {
            self.keep(&id, Keep::Calendar(period, name));
            if let Some((era, _, of)) = own.iter().find(|(_, _, of)| of.backup.id == id) {
                self.want_consistency(era, &of.backup);
            }
        }
    }

    /// One complete backup always stays, with all WAL after it.
    pub(super) fn keep_last(&mut self) {
        let all = self.eras.iter().flat_map(|era| era.lines.iter().map(move |line| (era, line)));
        let all = all.flat_map(|(era, line)| line.restorable.iter().map(move |of| (era, line, of)));
        let complete: Vec<_> = all.filter(|(_, _, of)| is_complete(of)).collect();
        if complete.iter().any(|(_, _, of)| self.keeps.contains_key(&of.backup.id)) {
            return;
        }
        let newest = complete.into_iter().max_by_key(|(_, line, of)| {
            (line.current, line.main, of.backup.stopped_at, of.backup.id.clone())
        });
        if let Some((era, line, of)) = newest {
            self.keep(&of.backup.id, Keep::Last);
            let why = KeepWal::Recovery(of.backup.id.clone(), line.timeline());
            self.want_line(era, line, of.needed.start, why);
        }
    }

    /// The WAL of `line` that backups other than `id` can replay, and what no backup can replay as it is.
    pub(super) fn want_usable(&mut self, era: &Era, line: &Line, id: &BackupId) {
        let Some(size) = era.size else { return };
        if line.restorable.is_empty() {
            return self.want_line(era, line, Lsn::ZERO, KeepWal::NoBackup(line.timeline()));
        }
        let mut last_end = Lsn::ZERO;
        for of in &line.restorable {
            // Before the first backup that can replay it, and between runs, nobody can.
            let others = line.restorable.iter().filter(|other| other.run == of.run && other.backup.id != *id);
            let first = others.min_by_key(|other| other.needed.start);
            if let Some(first) = first {
                let why = KeepWal::Recovery(first.backup.id.clone(), line.timeline());
                for (timeline, range) in line.wal_from(first.needed.start, of.run.end, size) {
                    self.want(era, timeline, range, why.clone());
                }
            }
            last_end = last_end.max(of.run.end);
        }
        // WAL after the last run waits for a backup.
        self.want_line(era, line, last_end, KeepWal::NoBackup(line.timeline()));
    }

    /// Adds what kept WAL and kept backups need, until nothing is missing.
    pub(super) fn finish(mut self, now: Timestamp, window_start: Timestamp) -> Plan {
        let index = self.facts.index;
        let mut why: Vec<BTreeSet<KeepWal>> = vec![BTreeSet::new(); index.wal.len()];
        let mut done = 0;
        loop {
            for wanted in self.wanted.iter().skip(done) {
                let first =
                    index.wal.partition_point(|entry| (entry.generation, entry.timeline) < wanted.place);
                let of_place = index.wal.iter().zip(&mut why).skip(first);
                for (entry, why) in of_place.take_while(|(e, _)| (e.generation, e.timeline) == wanted.place) {
                    if LsnRange::new(entry.start, entry.end.max(entry.start))
                        .intersect(wanted.range)
                        .is_some()
                    {
                        why.insert(wanted.why.clone());
                    }
                }
            }
            done = self.wanted.len();
            keep_epochs(&index.wal, &mut why);
            self.keep_bases(&why);
            if self.wanted.len() == done {
                break;
            }
        }
        self.report(now, window_start, why)
    }

    /// The backups whose pages kept delta frames refer to. Of their own WAL nothing stays for that: it may refer to an older backup in its
    /// turn, and with backups from a standby it always does, so that nothing would ever go.
    fn keep_bases(&mut self, why: &[BTreeSet<KeepWal>]) {
        let index = self.facts.index;
        let mut bases: BTreeMap<&BackupId, (TimelineId, LsnRange)> = BTreeMap::new();
        for (entry, _) in index.wal.iter().zip(why).filter(|(_, why)| !why.is_empty()) {
            let Some(base) = entry.deltas.as_ref().and_then(|deltas| deltas.base.as_ref()) else { continue };
            let range = LsnRange::new(entry.start, entry.end);
            let known = bases.entry(base).or_insert((entry.timeline, range));
            *known = (known.0, LsnRange::new(known.1.start.min(range.start), known.1.end.max(range.end)));
        }
        let missing: Vec<_> = bases.into_iter().filter(|(id, _)| !self.keeps.contains_key(*id)).collect();
        for (id, (timeline, range)) in missing {
            let found = self.eras.iter().flat_map(|era| &era.backups).any(|backup| backup.id == *id);
            // One that is gone already cannot be kept.
            if found {
                self.keep(id, Keep::Deltas(timeline, range));
            }
        }
    }

    fn report(self, now: Timestamp, window_start: Timestamp, why: Vec<BTreeSet<KeepWal>>) -> Plan {
        let index = self.facts.index;
        let restorable: BTreeSet<&BackupId> = self
            .eras
            .iter()
            .flat_map(|era| era.lines.iter().flat_map(|line| &line.restorable))
            .map(|of| &of.backup.id)
            .collect();
        let removed = || index.wal.iter().zip(&why).filter(|(_, why)| why.is_empty()).map(|(entry, _)| entry);
        let mut keeps = self.keeps;
        let mut fate = |era: &Era, backup: &BackupEntry| {
            let keeps = keeps.remove(&backup.id).unwrap_or_default();
            let mut backup = backup.clone();
            let for_pages = !keeps.is_empty() && keeps.iter().all(|keep| matches!(keep, Keep::Deltas(..)));
            if for_pages
                && consistency(era, &backup).into_iter().any(|own| removed().any(|of| holds(of, era, own)))
            {
                backup.state = BackupState::Base;
            }
            BackupFate { restorable: restorable.contains(&backup.id), keeps, backup }
        };
        let all = self.eras.iter().flat_map(|era| era.backups.iter().map(move |backup| (era, backup)));
        let mut backups: Vec<BackupFate> = all.map(|(era, backup)| fate(era, backup)).collect();
        backups.sort_by(|a, b| (a.backup.stopped_at, &a.backup.id).cmp(&(b.backup.stopped_at, &b.backup.id)));
        let (mut wal, mut wal_removed, mut expired): (Vec<WalFate>, _, _) =
            (Vec::new(), Vec::new(), Spans::expired(&index.expired));
        for entry in removed() {
            wal_removed.push(entry.id);
            expired.add((entry.generation, entry.timeline), LsnRange::new(entry.start, entry.end));
        }
        for (entry, why) in index.wal.iter().zip(why) {
            let (place, range) = ((entry.generation, entry.timeline), LsnRange::new(entry.start, entry.end));
            if !why.is_empty() {
                expired.remove(place, range);
            }
            add_run(&mut wal, entry, why.into_iter().collect());
        }
        for (stream, object) in self.facts.flushed() {
            let range = LsnRange::new(object.meta.start, object.meta.end.max(object.meta.start));
            expired.remove((stream.generation, object.meta.timeline), range);
        }
        Plan { now, window_start, backups, wal, wal_removed, expired: expired.to_expired() }
    }
}

/// The WAL without which `backup` is worth nothing, on whichever timelines it may lie.
fn consistency(era: &Era, backup: &BackupEntry) -> Vec<(TimelineId, LsnRange)> {
    let Some(size) = era.size else { return Vec::new() };
    let needed = needed_wal(backup, size);
    match era.lines.iter().find(|line| line.timeline() == backup.timeline) {
        Some(line) => line.wal_from(needed.start, needed.end, size),
        None => vec![(backup.timeline, needed)],
    }
}

/// Whether `entry` has something of `range` on `timeline`.
fn holds(entry: &WalEntry, era: &Era, (timeline, range): (TimelineId, LsnRange)) -> bool {
    let own = LsnRange::new(entry.start, entry.end.max(entry.start));
    (entry.generation, entry.timeline) == (era.generation, timeline) && own.intersect(range).is_some()
}

/// Delta frames are decoded from the beginning of their epoch. What lies plain in between is kept with them: an epoch is whole as long as
/// nothing in it was let go.
fn keep_epochs(wal: &[WalEntry], why: &mut [BTreeSet<KeepWal>]) {
    let place = |entry: &WalEntry| (entry.generation, entry.timeline);
    let mut needed: HashMap<ObjectId, ((Generation, TimelineId), LsnRange)> = HashMap::new();
    for (entry, _) in wal.iter().zip(why.iter()).filter(|(_, why)| !why.is_empty()) {
        if let Some(deltas) = &entry.deltas {
            let whole = LsnRange::new(deltas.epoch.start.min(entry.end), entry.end);
            let (_, range) = needed.entry(deltas.epoch.id).or_insert((place(entry), whole));
            range.end = range.end.max(entry.end);
        }
    }
    let mut whole = Spans::default();
    needed.values().for_each(|(place, range)| whole.add(*place, *range));
    for (entry, why) in wal.iter().zip(why).filter(|(_, why)| why.is_empty()) {
        let of_epoch = match &entry.deltas {
            Some(deltas) => needed.get(&deltas.epoch.id).is_some_and(|(_, range)| entry.start < range.end),
            None => whole.meets(place(entry), LsnRange::new(entry.start, entry.end.max(entry.start))),
        };
        if of_epoch {
            why.insert(KeepWal::Epoch);
        }
    }
}

/// Adds a segment to the run before it, if that shares its fate and has no hole before it.
fn add_run(wal: &mut Vec<WalFate>, entry: &WalEntry, keeps: Vec<KeepWal>) {
    if let Some(last) = wal.last_mut()
        && (last.generation, last.timeline) == (entry.generation, entry.timeline)
        && last.range.end >= entry.start
        && last.keeps == keeps
    {
        last.range.end = last.range.end.max(entry.end);
        last.segments += 1;
        last.bytes_stored += entry.object_len;
        return;
    }
    wal.push(WalFate {
        generation: entry.generation,
        timeline: entry.timeline,
        range: LsnRange::new(entry.start, entry.end),
        segments: 1,
        bytes_stored: entry.object_len,
        keeps,
    });
}
