//! Random lives of a cluster: days of WAL, backups, failovers, clones, upgrades, gaps, pins, epochs of deltas.

use walden::base::{
    BackupId, Generation, Lsn, LsnRange, ObjectId, StreamId, SystemId, TimelineId, Timestamp,
};
use walden::format::index::{
    BackupEntry, BackupState, GapEntry, HistoryEntry, PinEntry, RemovedEntry, RemovedKind, WalEntry,
};
use walden::format::record::Blob;
use walden::format::root::{GenerationRecord, Root, StreamEntry};
use walden::format::wal::{DeltaEpoch, DeltaStats, WalDeltas, WalSummary};
use walden::repo::Index;
use walden::repo::lineage::Lineage;
use walden::restore::scan::{Meaning, Seen};
use walden::retain::plan::{Facts, Plan};

pub const SEGMENT: u64 = 1 << 20;
/// A record.
pub const RECORD: u64 = 64 << 10;
/// Records of a stored segment.
const RECORDS: u64 = 4;
const ENTRY: u64 = RECORD * RECORDS;
const DAY: i64 = 86_400_000_000;

/// Where the cluster is, or a line that it left.
#[derive(Debug, Clone)]
struct Place {
    generation: Generation,
    timeline: TimelineId,
    end: Lsn,
    parents: Vec<(TimelineId, Lsn)>,
}

/// A cluster and all that it ever wrote.
#[derive(Debug)]
pub struct History {
    pub rng: fastrand::Rng,
    pub root: Root,
    pub index: Index,
    pub generations: Vec<GenerationRecord>,
    /// Everything that was ever written.
    pub records: Vec<(Generation, TimelineId, Seen)>,
    pub clock: Timestamp,
    places: Vec<Place>,
    current: usize,
    epoch: Option<(DeltaEpoch, Generation, TimelineId)>,
    next_id: u32,
    deltas: bool,
}

fn record(generation: Generation) -> GenerationRecord {
    GenerationRecord {
        cluster: "shop".parse().unwrap(),
        generation,
        system_id: SystemId(u64::from(generation.0)),
        major_version: 13 + generation.0,
        segment_size: SEGMENT as u32,
        block_size: 8192,
    }
}

impl History {
    pub fn new(seed: u64) -> History {
        let mut rng = fastrand::Rng::with_seed(seed);
        let first = Place {
            generation: Generation(1),
            timeline: TimelineId(1),
            end: Lsn::new(16 * SEGMENT),
            parents: Vec::new(),
        };
        let root = Root::first("shop".parse().unwrap(), Generation(1), Timestamp::from_micros(0));
        let root = Root { writer_epoch: 1, ..root };
        let deltas = rng.bool();
        let mut history = History {
            rng,
            root,
            index: Index::default(),
            generations: vec![record(Generation(1))],
            records: Vec::new(),
            clock: Timestamp::from_unix_micros(1_795_000_000_000_000),
            places: vec![first],
            current: 0,
            epoch: None,
            next_id: 0,
            deltas,
        };
        history.stream();
        history
    }

    fn id(&mut self) -> ObjectId {
        self.next_id += 1;
        let mut id = [0; 16];
        id[..4].copy_from_slice(&self.next_id.to_be_bytes());
        ObjectId(id)
    }

    /// The current place is where the cluster streams from now on.
    fn stream(&mut self) {
        let id = StreamId(self.id().0);
        let place = &self.places[self.current];
        self.root.generation = place.generation;
        self.epoch = None;
        // Older streams leave the root at some time.
        if self.rng.bool() {
            self.root.streams.clear();
        }
        self.root.streams.push(StreamEntry {
            low_water_key_epoch: 1,
            id,
            generation: place.generation,
            timeline: place.timeline,
            writer_epoch: 1,
            low_water: 0,
            low_water_lsn: None,
            low_water_link: [0; 32],
        });
    }

    /// A day, with whatever it brings.
    pub fn day(&mut self) {
        match self.rng.u8(0..100) {
            0..5 => self.failover(),
            5..9 => self.clone_of_it(),
            9..11 => self.go_back(),
            11..13 => self.upgrade(),
            _ => {}
        }
        for part in 0..self.rng.i64(1..4) {
            self.write(self.current);
            self.clock = self.clock.saturating_add_micros(DAY / 4 + part);
        }
        if self.rng.u8(0..5) < 2 {
            self.backup(self.current);
        }
        if let (0, Some(backup)) = (self.rng.u8(0..20), self.any_backup()) {
            let (pinned_at, days) = (self.clock, self.rng.i64(1..40));
            let until = self.rng.bool().then(|| pinned_at.saturating_add_micros(days * DAY));
            self.index.pins.retain(|pin| pin.backup != backup);
            self.index.pins.push(PinEntry { backup, pinned_at, until, reason: String::new() });
        }
        if !self.index.pins.is_empty() && self.rng.u8(0..20) == 0 {
            self.index.pins.remove(0);
        }
        self.clock = self.clock.saturating_add_micros(DAY / 4);
    }

    fn any_backup(&mut self) -> Option<BackupId> {
        let count = self.index.backups.len();
        (count > 0).then(|| self.index.backups[self.rng.usize(0..count)].id.clone())
    }

    /// A stored segment of WAL, or a gap where it should be.
    fn write(&mut self, at: usize) {
        let id = self.id();
        let place = self.places[at].clone();
        // A line that left another in the middle of a piece begins with a shorter one.
        let start = place.end;
        let end = Lsn::new((start.get() + 1).next_multiple_of(ENTRY));
        self.places[at].end = end;
        let mut summary = WalSummary::empty();
        summary.first_record = Some(start);
        for number in 0..end.bytes_since(start) / RECORD {
            self.clock = self.clock.saturating_add_micros(self.rng.i64(1_000_000..60_000_000));
            let from = start.saturating_add(number * RECORD);
            let (end, xid, time) =
                (from.saturating_add(RECORD), self.next_id * 10 + number as u32, self.clock);
            let seen = Seen { start: from, end, meaning: Meaning::Commit { xid, time } };
            self.records.push((place.generation, place.timeline, seen));
            summary.extend(&WalSummary {
                finished_count: 1,
                commit_count: 1,
                time_first: Some(time),
                time_last: Some(time),
                time_min: Some(time),
                time_max: Some(time),
                xid_min: Some(xid),
                xid_max: Some(xid),
                last_record_end: Some(end),
                ..WalSummary::empty()
            });
        }
        let (generation, timeline) = (place.generation, place.timeline);
        if self.rng.u8(0..40) == 0 {
            let reason = "the slot was dropped".to_owned();
            self.index.gaps.push(GapEntry {
                id,
                generation,
                timeline,
                start,
                end,
                recorded_at: self.clock,
                reason,
            });
            self.epoch = None;
            return;
        }
        let deltas = self.deltas.then(|| self.deltas_at(at, start)).flatten();
        self.index.wal.push(WalEntry {
            id,
            generation,
            timeline,
            start,
            end,
            object_len: 1000,
            directory_offset: 1,
            server_time: self.clock,
            summary,
            deltas,
        });
        self.index.wal.sort_by_key(|e| (e.generation, e.timeline, e.start, e.end));
    }

    /// Of the current line alone: differences from the newest backup, in an epoch that began after it.
    fn deltas_at(&mut self, at: usize, start: Lsn) -> Option<WalDeltas> {
        if at != self.current || self.rng.u8(0..6) == 0 {
            return None;
        }
        let (generation, timeline) = (self.places[at].generation, self.places[at].timeline);
        if self.epoch.as_ref().is_none_or(|(_, g, t)| (*g, *t) != (generation, timeline)) {
            let epoch = DeltaEpoch { id: self.id(), start, root: self.root.number, cache_pages: 1024 };
            self.epoch = Some((epoch, generation, timeline));
        }
        let own = self.index.backups.iter().filter(|backup| backup.generation == generation);
        let base = own.max_by_key(|backup| (backup.stopped_at, &backup.id));
        let base = base.filter(|backup| backup.state != BackupState::Pending).map(|backup| backup.id.clone());
        let (epoch, _, _) = self.epoch.clone()?;
        Some(WalDeltas { epoch, base, stats: DeltaStats::EMPTY })
    }

    fn backup(&mut self, at: usize) {
        // Whoever backs up sees the server switch its WAL segment first.
        while !self.places[at].end.get().is_multiple_of(SEGMENT) {
            self.write(at);
        }
        self.epoch = None;
        let place = self.places[at].clone();
        // From a standby, recovery begins at a checkpoint that was made before.
        let before = if self.rng.u8(0..4) == 0 { self.rng.u64(1..3 * RECORDS) * RECORD } else { 0 };
        let begin = place.parents.last().map_or(Lsn::new(16 * SEGMENT), |(_, at)| *at);
        let redo = place.end.saturating_sub(before).max(begin).saturating_add(RECORD);
        let started_at = self.clock;
        for _ in 0..self.rng.u8(1..4) {
            self.write(at);
        }
        let stop = Lsn::new(self.places[at].end.get() - RECORD);
        self.clock = self.clock.saturating_add_micros(1_000_000);
        let (state, damaged_blocks) = match self.rng.u8(0..10) {
            0 => (BackupState::Damaged, 1),
            1 => (BackupState::Pending, 0),
            _ => (BackupState::Complete, 0),
        };
        self.index.backups.push(BackupEntry {
            manifest_number: 0,
            id: BackupId::at(self.clock),
            generation: place.generation,
            timeline: place.timeline,
            redo,
            start: redo,
            stop,
            started_at,
            stopped_at: self.clock,
            bytes_raw: 0,
            bytes_stored: 0,
            bytes_new: 0,
            manifest_len: 0,
            damaged_blocks,
            root: self.root.number,
            state,
        });
        self.root.number += 2;
    }

    /// The next timeline, from `from` on.
    fn branch(&mut self, from: &Place) -> Place {
        let own = self.places.iter().filter(|place| place.generation == from.generation);
        let next = TimelineId(own.map(|place| place.timeline.0).max().unwrap_or(0) + 1);
        let mut parents = from.parents.clone();
        parents.push((from.timeline, from.end));
        let lines = parents.iter().map(|(timeline, at)| format!("{timeline}\t{at}\tno reason\n"));
        self.index.histories.push(HistoryEntry {
            generation: from.generation,
            timeline: next,
            content: Blob(lines.collect::<String>().into_bytes()),
        });
        let place = Place { generation: from.generation, timeline: next, end: from.end, parents };
        self.places.push(place.clone());
        place
    }

    fn failover(&mut self) {
        let from = self.places[self.current].clone();
        self.branch(&from);
        self.current = self.places.len() - 1;
        self.stream();
    }

    /// A clone is restored to an earlier moment, and archives into the same cluster for a while.
    fn clone_of_it(&mut self) {
        let mut from = self.places[self.current].clone();
        let least = from.parents.last().map_or(Lsn::new(16 * SEGMENT), |(_, at)| *at);
        let records = from.end.bytes_since(least) / RECORD;
        let back = self.rng.u64(0..=records);
        from.end = Lsn::new(from.end.get() - back * RECORD);
        self.branch(&from);
        let at = self.places.len() - 1;
        // In whole pieces of its own from where it left.
        for _ in 0..self.rng.u8(1..6) {
            self.write(at);
        }
        if self.rng.bool() {
            self.backup(at);
            self.write(at);
        }
    }

    /// The cluster goes on on a line that it had left.
    fn go_back(&mut self) {
        self.current = self.rng.usize(0..self.places.len());
        self.stream();
    }

    fn upgrade(&mut self) {
        let generation = Generation(self.generations.len() as u32 + 1);
        self.generations.push(record(generation));
        let (ends, end) = (self.places[self.current].clone(), self.places[self.current].end);
        self.root.set_ended(ends.generation, ends.timeline);
        let end = Lsn::new(end.get().next_multiple_of(SEGMENT));
        self.places.push(Place { generation, timeline: TimelineId(1), end, parents: Vec::new() });
        self.current = self.places.len() - 1;
        self.stream();
    }

    pub fn facts(&self, clock: Timestamp) -> Facts<'_> {
        Facts {
            root: &self.root,
            index: &self.index,
            chains: &[],
            generations: &self.generations,
            reading: &[],
            clock,
            stored: Timestamp::MAX,
        }
    }

    /// What the index is once `plan` was carried out.
    pub fn apply(&mut self, plan: &Plan) {
        let gone: Vec<BackupId> = plan.backups_removed().map(|backup| backup.id.clone()).collect();
        self.index.wal.retain(|entry| !plan.wal_removed.contains(&entry.id));
        self.index.backups.retain(|backup| !gone.contains(&backup.id));
        self.index.pins.retain(|pin| !gone.contains(&pin.backup));
        for backup in &mut self.index.backups {
            if plan.bases().any(|base| *base == backup.id) {
                backup.state = BackupState::Base;
            }
        }
        self.index.expired = plan.expired.clone();
        let removed =
            |id: &BackupId| RemovedEntry { kind: RemovedKind::Backup, name: id.to_string(), root: 1 };
        self.index.removed.extend(gone.iter().map(removed));
    }

    /// Lines that anything was ever written on.
    pub fn lines(&self) -> Vec<(Generation, TimelineId, bool)> {
        let is_current = |at: usize| at == self.current;
        let places = self.places.iter().enumerate();
        places.map(|(at, place)| (place.generation, place.timeline, is_current(at))).collect()
    }

    pub fn lineage(&self, generation: Generation) -> Lineage {
        let mut lineage = Lineage::default();
        for place in self.places.iter().filter(|place| place.generation == generation) {
            lineage.insert(place.timeline, place.parents.clone());
        }
        lineage
    }

    /// Records that lie in stored WAL, or lay there before it expired: what is neither is a gap.
    pub fn hole_is_explained(&self, generation: Generation, timeline: TimelineId, hole: LsnRange) -> bool {
        let gaps =
            self.index.gaps.iter().filter(|gap| (gap.generation, gap.timeline) == (generation, timeline));
        let gone = self.index.expired.iter();
        let gone = gone.filter(|gone| (gone.generation, gone.timeline) == (generation, timeline));
        let known: Vec<LsnRange> = gaps
            .map(|gap| LsnRange::new(gap.start, gap.end))
            .chain(gone.map(|gone| LsnRange::new(gone.start, gone.end)))
            .collect();
        let mut at = hole.start;
        while at < hole.end {
            match known.iter().find(|range| range.contains(at)) {
                Some(range) => at = range.end,
                None => return false,
            }
        }
        true
    }
}
