//! What is to be done so that the destination holds what is selected: pure. What it has is not done again, so an interrupted copy
//! goes on, and a finished one has nothing to do.
//!
//! WAL is told apart by its place and by what it is made of. A segment with delta frames is copied with its frames as they are, if
//! its epoch is there from its beginning and its base is copied too; otherwise it is stored plain. Where the destination holds WAL in
//! another form (flush objects that the source compacted since, a base that was not copied before), the source's form takes its place.

use super::selection::Selection;
use super::source::{Place, View};
use super::stretch::{self, Flush, Kind, Stretch};
use crate::base::{BackupId, Lsn, LsnRange, ObjectId, Timestamp};
use crate::format::index::{BackupEntry, BackupState, GapEntry, RemovedEntry, RemovedKind, WalEntry};
use crate::format::wal::{DeltaEpoch, DeltaStats, WalDeltas, WalSummary};
use crate::repo::Index;
use crate::repo::spans::Spans;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Where a summary comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum Summary {
    /// The segment's own directory.
    OfSegment,
    /// It is known.
    Known(WalSummary),
    /// The bytes are read for it.
    Anew,
}

/// WAL to be stored as one segment.
#[derive(Debug, Clone, PartialEq)]
pub struct Unit {
    /// Its generation and timeline.
    pub place: Place,
    /// Its bytes.
    pub range: LsnRange,
    /// The server's clock when everything up to its end had been sent.
    pub server_time: Timestamp,
    /// What it takes in the source, about.
    pub bytes_stored: u64,
    /// What its delta frames are made of; plain frames alone without.
    pub deltas: Option<WalDeltas>,
    /// What it holds.
    pub summary: Summary,
    /// Whether the source has it in delta frames: they are decoded in order.
    pub is_decoded: bool,
}

/// WAL that is committed at once.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Its generation and timeline.
    pub place: Place,
    /// What is stored.
    pub adds: Vec<Unit>,
    /// What it takes the place of.
    pub removes: Vec<ObjectId>,
    /// Gaps before it.
    pub gaps: Vec<GapEntry>,
}

/// The next thing to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Copies a backup.
    Backup(BackupEntry),
    /// Copies WAL.
    Wal(Group),
}

/// What is to be done, in this order: whatever was done when it is cut short is a shorter archive, and a whole one.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// The steps.
    pub steps: Vec<Step>,
    /// Gaps behind which the source has nothing.
    pub gaps: Vec<GapEntry>,
}

impl Plan {
    /// WAL to be copied.
    pub fn wal_bytes(&self) -> u64 {
        self.units().map(|unit| unit.range.len()).sum()
    }

    /// Backups to be copied.
    pub fn backups(&self) -> impl Iterator<Item = &BackupEntry> {
        self.steps.iter().filter_map(|step| match step {
            Step::Backup(backup) => Some(backup),
            Step::Wal(_) => None,
        })
    }

    /// Generations and timelines that something is copied of.
    pub fn places(&self) -> BTreeSet<Place> {
        let place = |step: &Step| match step {
            Step::Backup(backup) => (backup.generation, backup.timeline),
            Step::Wal(group) => group.place,
        };
        self.steps.iter().map(place).collect()
    }

    fn units(&self) -> impl Iterator<Item = &Unit> {
        self.steps.iter().flat_map(|step| match step {
            Step::Backup(_) => &[][..],
            Step::Wal(group) => &group.adds,
        })
    }
}

/// Plans from what both sides hold. Backups `left_out` are not copied; `lost` are gaps that WAL leaves which the source cannot read.
pub fn plan(
    view: &View,
    selection: &Selection,
    there: &Index,
    left_out: &BTreeSet<BackupId>,
    lost: &[GapEntry],
) -> Plan {
    let backups = backups(view, selection, there, left_out);
    let mut bases: BTreeSet<&BackupId> = there.backups.iter().map(|backup| &backup.id).collect();
    bases.extend(backups.iter().map(|backup| &backup.id));
    let expired = Spans::expired(&there.expired);
    let mut groups = Vec::new();
    for (generation, era) in &view.eras {
        for timeline in era.wal.timelines() {
            let place = (*generation, timeline);
            let Some(wanted) = selection.wal(place) else { continue };
            let stretches = chosen(stretch::of(&era.wal, timeline), wanted, &bases);
            let first = stretches.first().map_or(Lsn::MAX, |stretch| stretch.range.start);
            let mut line = Line { place, first, bases: &bases, expired: &expired, alive: HashMap::new() };
            groups.extend(line.groups(&stretches, &there.wal));
        }
    }
    let gaps = add_gaps(view.index.gaps.iter().chain(lost), selection, there, &mut groups);
    Plan { steps: in_order(view, backups, groups), gaps }
}

/// Backups to be copied, each when it is restorable, or when WAL that is wanted has deltas of its pages: what the destination let go
/// stays away.
fn backups(
    view: &View,
    selection: &Selection,
    there: &Index,
    left_out: &BTreeSet<BackupId>,
) -> Vec<BackupEntry> {
    let missing = |backup: &&BackupEntry| {
        selection.has(&backup.id)
            && !left_out.contains(&backup.id)
            && there.backup(&backup.id).is_none()
            && !is_let_go(view, backup, there)
            && match view.state(backup) {
                BackupState::Pending => false,
                BackupState::Base => is_base(view, selection, there, &backup.id),
                BackupState::Complete | BackupState::Damaged => true,
            }
    };
    let mut found: Vec<BackupEntry> = view.index.backups.iter().filter(missing).cloned().collect();
    found.sort_by(|a, b| (a.generation, a.stop, &a.id).cmp(&(b.generation, b.stop, &b.id)));
    found
}

/// Whether WAL that is copied is decoded from pages of `backup`, and the destination let go of nothing that this takes.
fn is_base(view: &View, selection: &Selection, there: &Index, backup: &BackupId) -> bool {
    let expired = Spans::expired(&there.expired);
    view.index.wal.iter().any(|entry| {
        let place = (entry.generation, entry.timeline);
        let range = LsnRange::new(entry.start, entry.end);
        entry.deltas.as_ref().is_some_and(|deltas| {
            deltas.base.as_ref() == Some(backup)
                && selection.wal(place).is_some_and(|wanted| wanted.intersect(range).is_some())
                && !expired.meets(place, LsnRange::new(deltas.epoch.start.min(entry.start), entry.end))
        })
    })
}

/// Whether the destination removed a backup, or WAL that it needs: of one that is kept for its pages alone, the source let that go.
pub fn is_let_go(view: &View, backup: &BackupEntry, there: &Index) -> bool {
    let of_backup = |entry: &&RemovedEntry| entry.kind == RemovedKind::Backup;
    let named = there.removed.iter().filter(of_backup).any(|entry| entry.name == backup.id.as_str());
    let place = (backup.generation, backup.timeline);
    let expired =
        || view.needed(backup).is_some_and(|needed| Spans::expired(&there.expired).meets(place, needed));
    named || backup.state != BackupState::Base && expired()
}

/// The stretches that hold `wanted`, and before them those that their epoch is decoded from, if these can be kept.
fn chosen(all: Vec<Stretch>, wanted: LsnRange, bases: &BTreeSet<&BackupId>) -> Vec<Stretch> {
    let first = all.partition_point(|stretch| stretch.range.end <= wanted.start);
    let end = all.partition_point(|stretch| stretch.range.start < wanted.end);
    let epoch = all.get(first).filter(|_| first < end).and_then(|stretch| stretch.deltas.as_ref());
    let mut from = first;
    if let Some(deltas) = epoch {
        let begins = all.partition_point(|stretch| stretch.range.end <= deltas.epoch.start);
        let prefix = all.get(begins..=first).unwrap_or_default();
        if prefix.iter().all(|stretch| stretch.deltas.as_ref().is_none_or(|deltas| has_base(deltas, bases))) {
            from = begins;
        }
    }
    let mut chosen: Vec<Stretch> = all.into_iter().skip(from).take(end.saturating_sub(from)).collect();
    // Flush objects past the end are not wanted; one that reaches over it is.
    if let Some(Stretch { range, kind: Kind::Flushes(flushes), server_time, bytes_stored, .. }) =
        chosen.last_mut()
    {
        flushes.retain(|flush| flush.range.start < wanted.end);
        if let Some(last) = flushes.last() {
            (range.end, *server_time) = (last.range.end, last.server_time);
        }
        *bytes_stored = flushes.iter().map(|flush| flush.bytes_stored).sum();
    }
    chosen
}

fn has_base(deltas: &WalDeltas, bases: &BTreeSet<&BackupId>) -> bool {
    deltas.base.as_ref().is_none_or(|base| bases.contains(base))
}

/// One timeline on both sides.
struct Line<'a> {
    place: Place,
    /// Where what is copied of it begins.
    first: Lsn,
    bases: &'a BTreeSet<&'a BackupId>,
    expired: &'a Spans,
    /// Epochs, and whether the destination has, or will have, all of them so far as the source has them.
    alive: HashMap<ObjectId, bool>,
}

/// Stretches of the source and segments of the destination that overlap each other, and nothing else.
#[derive(Default)]
struct Knot<'a> {
    ours: Vec<&'a Stretch>,
    theirs: Vec<&'a WalEntry>,
}

/// Knots of two lists, each in order.
fn knots<'a>(ours: &'a [Stretch], theirs: &[&'a WalEntry]) -> Vec<Knot<'a>> {
    let (mut ours, mut theirs) = (ours.iter().peekable(), theirs.iter().copied().peekable());
    let mut knots: Vec<Knot<'a>> = Vec::new();
    let mut end = Lsn::ZERO;
    loop {
        let own = ours.peek().map(|stretch| stretch.range);
        let other = theirs.peek().map(|entry| LsnRange::new(entry.start, entry.end));
        let (range, is_own) = match (own, other) {
            (Some(own), Some(other)) if own.start <= other.start => (own, true),
            (_, Some(other)) => (other, false),
            (Some(own), None) => (own, true),
            (None, None) => return knots,
        };
        if range.start >= end || knots.is_empty() {
            knots.push(Knot::default());
        }
        end = end.max(range.end);
        let Some(knot) = knots.last_mut() else { unreachable!("one was pushed") };
        if is_own { knot.ours.extend(ours.next()) } else { knot.theirs.extend(theirs.next()) }
    }
}

impl Line<'_> {
    fn groups(&mut self, ours: &[Stretch], there: &[WalEntry]) -> Vec<Group> {
        let theirs: Vec<&WalEntry> =
            there.iter().filter(|entry| (entry.generation, entry.timeline) == self.place).collect();
        let decided: Vec<Vec<Group>> = knots(ours, &theirs)
            .iter()
            .filter(|knot| !knot.ours.is_empty())
            .map(|knot| self.decide(knot))
            .collect();
        decided.into_iter().flatten().collect()
    }

    fn decide(&mut self, knot: &Knot<'_>) -> Vec<Group> {
        // In which form they would be stored; an epoch goes on from stretch to stretch.
        let epochs: BTreeSet<ObjectId> =
            knot.ours.iter().filter_map(|stretch| Some(stretch.deltas.as_ref()?.epoch.id)).collect();
        let deltas: Vec<Option<&WalDeltas>> = knot.ours.iter().map(|stretch| self.kept(stretch)).collect();
        let missing: Vec<(&Stretch, LsnRange)> = knot
            .ours
            .iter()
            .flat_map(|stretch| self.missing(stretch, knot).map(|range| (*stretch, range)))
            .collect();
        if missing.is_empty() && is_alike(knot, &deltas) {
            return Vec::new();
        }
        let fills: Vec<Unit> =
            missing.iter().flat_map(|(stretch, range)| self.fill(stretch, *range)).collect();
        let is_exact = fills.iter().all(|unit| unit.summary != Summary::Anew);
        let is_plain = deltas.iter().all(Option::is_none);
        if knot.theirs.is_empty() && self.is_whole(knot)
            || !(is_plain && is_exact) && self.is_replaceable(knot)
        {
            let adds = knot.ours.iter().zip(deltas).map(|(stretch, deltas)| self.whole(stretch, deltas));
            let removes = knot.theirs.iter().map(|entry| entry.id).collect();
            return vec![Group { place: self.place, adds: adds.collect(), removes, gaps: Vec::new() }];
        }
        // Not as the source has it: what follows in these epochs is plain too.
        self.alive.extend(epochs.into_iter().map(|epoch| (epoch, false)));
        let alone =
            |unit| Group { place: self.place, adds: vec![unit], removes: Vec::new(), gaps: Vec::new() };
        fills.into_iter().map(alone).collect()
    }

    /// The delta frames of `stretch`, if they can be copied as they are.
    fn kept<'s>(&mut self, stretch: &'s Stretch) -> Option<&'s WalDeltas> {
        let deltas = stretch.deltas.as_ref()?;
        let epoch = &deltas.epoch;
        // Its first segments may be plain, by themselves or merged with what was before, and a segment may hold WAL from before it.
        let before = LsnRange::new(epoch.start.min(stretch.range.start), stretch.range.start);
        let begins = epoch.start >= self.first && !self.expired.meets(self.place, before);
        let alive = self.alive.get(&epoch.id).copied().unwrap_or(begins);
        let kept = alive && has_base(deltas, self.bases) && matches!(stretch.kind, Kind::Segment);
        self.alive.insert(epoch.id, kept);
        kept.then_some(deltas)
    }

    /// What the destination neither holds of `stretch` nor let go.
    fn missing(&self, stretch: &Stretch, knot: &Knot<'_>) -> impl Iterator<Item = LsnRange> + use<> {
        let mut spans = Spans::default();
        spans.add(self.place, stretch.range);
        for entry in &knot.theirs {
            spans.remove(self.place, LsnRange::new(entry.start, entry.end));
        }
        let gone: Vec<LsnRange> =
            self.expired.iter().filter(|(place, _)| *place == self.place).map(|(_, range)| range).collect();
        gone.into_iter().for_each(|range| spans.remove(self.place, range));
        let ranges: Vec<LsnRange> = spans.iter().map(|(_, range)| range).collect();
        ranges.into_iter()
    }

    /// Whether nothing of the source's part was let go by the destination.
    fn is_whole(&self, knot: &Knot<'_>) -> bool {
        knot.ours.iter().all(|stretch| !self.expired.meets(self.place, stretch.range))
    }

    /// Whether the source holds all that the destination does here.
    fn is_replaceable(&self, knot: &Knot<'_>) -> bool {
        let covered = |entry: &&WalEntry| {
            let mut spans = Spans::default();
            spans.add(self.place, LsnRange::new(entry.start, entry.end));
            knot.ours.iter().for_each(|stretch| spans.remove(self.place, stretch.range));
            spans.iter().next().is_none()
        };
        self.is_whole(knot) && knot.theirs.iter().all(covered)
    }

    fn whole(&self, stretch: &Stretch, deltas: Option<&WalDeltas>) -> Unit {
        let summary = match &stretch.kind {
            Kind::Segment => Summary::OfSegment,
            Kind::Flushes(flushes) => Summary::Known(sum(flushes)),
            Kind::Rest => Summary::Anew,
        };
        self.unit(stretch, stretch.range, deltas.map(here), summary)
    }

    /// Plain WAL of `range`, a part of `stretch`.
    fn fill(&self, stretch: &Stretch, range: LsnRange) -> Vec<Unit> {
        if range == stretch.range {
            return vec![self.whole(stretch, None)];
        }
        let Kind::Flushes(flushes) = &stretch.kind else {
            return vec![self.unit(stretch, range, None, Summary::Anew)];
        };
        let inside: Vec<Flush> = flushes
            .iter()
            .filter(|flush| range.intersect(flush.range) == Some(flush.range))
            .cloned()
            .collect();
        let (start, end) =
            (inside.first().map(|flush| flush.range.start), inside.last().map(|flush| flush.range.end));
        let exact = (start, end) == (Some(range.start), Some(range.end));
        let summary = if exact { Summary::Known(sum(&inside)) } else { Summary::Anew };
        let mut unit = self.unit(stretch, range, None, summary);
        unit.bytes_stored = inside.iter().map(|flush| flush.bytes_stored).sum();
        unit.server_time = inside.last().map_or(unit.server_time, |flush| flush.server_time);
        vec![unit]
    }

    fn unit(&self, stretch: &Stretch, range: LsnRange, deltas: Option<WalDeltas>, summary: Summary) -> Unit {
        Unit {
            place: self.place,
            range,
            server_time: stretch.server_time,
            bytes_stored: stretch.bytes_stored,
            deltas,
            summary,
            is_decoded: stretch.deltas.is_some(),
        }
    }
}

/// The epoch as the destination names it. Its roots are others: root 0 says that the epoch does not go on where any backup is.
fn here(deltas: &WalDeltas) -> WalDeltas {
    WalDeltas { epoch: DeltaEpoch { root: 0, ..deltas.epoch.clone() }, ..deltas.clone() }
}

fn sum(flushes: &[Flush]) -> WalSummary {
    let mut summary = WalSummary::empty();
    flushes.iter().for_each(|flush| summary.extend(&flush.summary));
    summary
}

/// Whether both sides of a knot hold the same delta frames, `deltas` of the source's. Of one epoch and the same bytes, the destination
/// can have fewer delta frames than the source, never others; then what they take differs.
fn is_alike(knot: &Knot<'_>, deltas: &[Option<&WalDeltas>]) -> bool {
    if deltas.iter().all(Option::is_none) {
        return true;
    }
    let extent = |ranges: &mut dyn Iterator<Item = (Lsn, Lsn)>| {
        ranges.fold((Lsn::MAX, Lsn::ZERO), |all, one| (all.0.min(one.0), all.1.max(one.1)))
    };
    let ours = extent(&mut knot.ours.iter().map(|stretch| (stretch.range.start, stretch.range.end)));
    let theirs = extent(&mut knot.theirs.iter().map(|entry| (entry.start, entry.end)));
    let stats = |all: &mut dyn Iterator<Item = &WalDeltas>| {
        let mut stats: BTreeMap<ObjectId, DeltaStats> = BTreeMap::new();
        for deltas in all {
            stats.entry(deltas.epoch.id).or_insert(DeltaStats::EMPTY).add(&deltas.stats);
        }
        stats
    };
    ours == theirs
        && stats(&mut deltas.iter().flatten().copied())
            == stats(&mut knot.theirs.iter().filter_map(|entry| entry.deltas.as_ref()))
}

/// Gives each gap that the destination lacks to the WAL behind it; returns those behind which there is none. Before that WAL is there, a
/// gap would say that what has not been copied yet was lost. One whose WAL was copied before it was lost is none there.
fn add_gaps<'a>(
    gaps: impl Iterator<Item = &'a GapEntry>,
    selection: &Selection,
    there: &Index,
    groups: &mut [Group],
) -> Vec<GapEntry> {
    let mut gaps = gaps.peekable();
    if gaps.peek().is_none() {
        return Vec::new();
    }
    let mut held = Spans::default();
    for entry in &there.wal {
        held.add((entry.generation, entry.timeline), LsnRange::new(entry.start, entry.end));
    }
    let mut left = Vec::new();
    for gap in gaps {
        let place = (gap.generation, gap.timeline);
        let wanted = selection.wal(place).is_some_and(|wal| gap.end > wal.start && gap.start < wal.end);
        let known = || there.gaps.iter().any(|known| known.id == gap.id);
        let is_held = || gap.start < gap.end && held.covers(place, LsnRange::new(gap.start, gap.end));
        if !wanted || known() || is_held() {
            continue;
        }
        let behind = |group: &&mut Group| {
            group.place == place && group.adds.first().is_some_and(|unit| unit.range.start >= gap.end)
        };
        match groups.iter_mut().find(behind) {
            Some(group) => group.gaps.push(gap.clone()),
            None => left.push(gap.clone()),
        }
    }
    left
}

/// Each backup before the first WAL that it needs, or that refers to it.
fn in_order(view: &View, backups: Vec<BackupEntry>, groups: Vec<Group>) -> Vec<Step> {
    let (mut steps, mut backups) = (Vec::new(), backups);
    for group in groups {
        let due = |backup: &BackupEntry| {
            let place = (backup.generation, backup.timeline);
            let starts = view.needed(backup).map(|needed| needed.start);
            let needs = place == group.place
                && group.adds.iter().any(|unit| starts.is_some_and(|start| unit.range.end > start));
            let based = group.adds.iter().filter_map(|unit| unit.deltas.as_ref()?.base.as_ref());
            backup.generation < group.place.0 || needs || based.into_iter().any(|base| *base == backup.id)
        };
        steps.extend(backups.extract_if(.., |backup| due(backup)).map(Step::Backup));
        steps.push(Step::Wal(group));
    }
    steps.extend(backups.into_iter().map(Step::Backup));
    steps
}

#[cfg(test)]
pub(super) mod tests;
