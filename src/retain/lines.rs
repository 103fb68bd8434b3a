//! The lines of history that a cluster's backups and WAL lie on: each timeline of each generation, with its ancestors. Pure.
//! What retention promises, it promises of lines: by where they lead and by the server's clock, never by the height of a number.

use super::plan::Facts;
use crate::base::planted::{Bug, planted};
use crate::base::{Generation, Lsn, LsnRange, SegmentSize, TimelineId, Timestamp};
use crate::format::index::{BackupEntry, HistoryEntry, WalEntry};
use crate::format::wal::WalSummary;
use crate::repo::backups::{is_restorable, needed_wal, state_when};
use crate::repo::lineage::{Coverage, Lineage, Piece, TimelinePath};
use crate::wal::history::TimelineHistory;
use std::collections::BTreeSet;

/// One generation.
#[derive(Debug)]
pub struct Era {
    /// Which.
    pub generation: Generation,
    /// Its WAL segment size; `None` when its record is not known: then nothing of it goes.
    pub size: Option<SegmentSize>,
    /// Its backups as they are now: those whose WAL became durable are no longer pending.
    pub backups: Vec<BackupEntry>,
    /// Its timelines.
    pub lines: Vec<Line>,
    /// Timelines whose ancestors are not known: then nothing of it goes either.
    pub orphans: Vec<TimelineId>,
}

/// A timeline with its ancestors.
#[derive(Debug)]
pub struct Line {
    /// The way there.
    pub path: TimelinePath,
    /// The newest server time at which something of its own was stored.
    pub end: Timestamp,
    /// Whether it is its generation's own: the others branched off, or were left.
    pub main: bool,
    /// Whether the cluster is on it now.
    pub current: bool,
    /// Its restorable backups, in LSN order.
    pub restorable: Vec<Restorable>,
}

/// A backup whose WAL is whole on a line.
#[derive(Debug, Clone)]
pub struct Restorable {
    /// The backup.
    pub backup: BackupEntry,
    /// The WAL without which it is worth nothing.
    pub needed: LsnRange,
    /// The stored WAL without a hole that holds it.
    pub run: LsnRange,
    /// The newest server time at which all of that was durable.
    pub run_end: Timestamp,
}

impl Era {
    /// Whether what is to be known of it is: nothing is decided about the others.
    pub fn is_known(&self) -> bool {
        self.size.is_some() && self.orphans.is_empty()
    }
}

/// Every generation that anything is stored of, oldest first.
pub fn eras(facts: &Facts<'_>) -> Vec<Era> {
    let index = facts.index;
    let mut generations: BTreeSet<Generation> = BTreeSet::from([facts.root.generation]);
    generations.extend(index.wal.iter().map(|entry| entry.generation));
    generations.extend(index.backups.iter().map(|backup| backup.generation));
    generations.extend(facts.root.streams.iter().map(|stream| stream.generation));
    generations.into_iter().map(|generation| era(facts, generation)).collect()
}

fn era(facts: &Facts<'_>, generation: Generation) -> Era {
    let index = facts.index;
    let record = facts.generations.iter().find(|record| record.generation == generation);
    let size = record.and_then(|record| SegmentSize::new(u64::from(record.segment_size)).ok());
    let pieces = pieces(facts, generation);
    let own: Vec<&BackupEntry> =
        index.backups.iter().filter(|backup| backup.generation == generation).collect();
    let streamed = facts.root.streams.iter().rev().find(|stream| stream.generation == generation);
    let mut timelines: BTreeSet<TimelineId> = pieces.iter().map(|piece| piece.timeline).collect();
    timelines.extend(own.iter().map(|backup| backup.timeline));
    let lineage = lineage(index.histories.iter().filter(|history| history.generation == generation));
    // On which it is streamed, or was when the next one began: also when nothing of its own is left, its ancestors are there.
    let ended = facts.root.ended().into_iter().find(|(ended, _)| *ended == generation);
    let ended = ended.map(|(_, timeline)| timeline).filter(|timeline| lineage.path(*timeline).is_some());
    let known_main = streamed.map(|stream| stream.timeline).or(ended);
    timelines.extend(known_main);
    let end_of = |timeline: TimelineId| {
        let stored = pieces.iter().filter(|piece| piece.timeline == timeline).map(|piece| piece.server_time);
        let made = own.iter().filter(|backup| backup.timeline == timeline).map(|backup| backup.stopped_at);
        stored.chain(made).max().unwrap_or(Timestamp::MIN)
    };
    // Where nobody says which, where its newest WAL is.
    let main = known_main
        .or_else(|| timelines.iter().copied().max_by_key(|timeline| (end_of(*timeline), *timeline)));
    let main = if planted(Bug::ExpiryByName) { timelines.last().copied() } else { main };
    let mut era = Era { generation, size, backups: Vec::new(), lines: Vec::new(), orphans: Vec::new() };
    let Some(size) = size else {
        era.backups = own.iter().map(|backup| (*backup).clone()).collect();
        return era;
    };
    era.backups = own.iter().map(|backup| as_it_is_now(backup, &pieces, size)).collect();
    for timeline in timelines {
        let Some(path) = lineage.path(timeline) else {
            era.orphans.push(timeline);
            continue;
        };
        let coverage = Coverage::of(&path, &pieces, size);
        era.lines.push(Line {
            restorable: restorable(&era.backups, &path, &coverage, size),
            end: end_of(timeline),
            main: main == Some(timeline),
            current: main == Some(timeline) && generation == facts.root.generation,
            path,
        });
    }
    era
}

/// What is stored of a generation; what it holds does not matter here.
fn pieces(facts: &Facts<'_>, generation: Generation) -> Vec<Piece> {
    let piece = |timeline, start, end, server_time| Piece {
        timeline,
        range: LsnRange::new(start, Lsn::max(start, end)),
        server_time,
        summary: WalSummary::empty(),
    };
    let compacted = facts.index.wal.iter().filter(|entry| entry.generation == generation);
    let compacted =
        compacted.map(|entry: &WalEntry| piece(entry.timeline, entry.start, entry.end, entry.server_time));
    let flushed = facts.flushed().filter(|(stream, _)| stream.generation == generation);
    let flushed = flushed.map(|(_, object)| {
        let meta = &object.meta;
        piece(meta.timeline, meta.start, meta.end, meta.server_time)
    });
    let mut pieces: Vec<Piece> = compacted.chain(flushed).collect();
    pieces.sort_by_key(|piece| (piece.timeline, piece.range.start, piece.range.end));
    pieces
}

fn lineage<'a>(histories: impl Iterator<Item = &'a HistoryEntry>) -> Lineage {
    let mut lineage = Lineage::default();
    for history in histories {
        // One that cannot be read makes an orphan of its timeline.
        if let Ok(parsed) = TimelineHistory::parse(history.timeline, &history.content.0) {
            let parents = parsed.switches().iter().map(|switch| (switch.timeline, switch.at)).collect();
            lineage.insert(history.timeline, parents);
        }
    }
    lineage
}

/// A backup that was committed as pending becomes restorable by itself once its WAL is durable.
fn as_it_is_now(backup: &BackupEntry, pieces: &[Piece], size: SegmentSize) -> BackupEntry {
    let needed = needed_wal(backup, size);
    let mut end = needed.start;
    for piece in pieces.iter().filter(|piece| piece.timeline == backup.timeline) {
        if piece.range.start <= end {
            end = end.max(piece.range.end);
        }
    }
    BackupEntry { state: state_when(backup, needed, end), ..backup.clone() }
}

fn restorable(
    backups: &[BackupEntry],
    path: &TimelinePath,
    coverage: &Coverage<'_>,
    size: SegmentSize,
) -> Vec<Restorable> {
    let mut found: Vec<Restorable> = Vec::new();
    for backup in backups {
        let sane = is_restorable(backup.state) && backup.redo <= backup.stop;
        if !sane || !path.holds(backup.timeline, LsnRange::new(backup.redo, backup.stop)) {
            continue;
        }
        let needed = needed_wal(backup, size);
        if let Some(run) = coverage.run_with(needed) {
            let (backup, run_end) = (backup.clone(), run.server_time.max(backup.stopped_at));
            found.push(Restorable { backup, needed, run: run.range, run_end });
        }
    }
    found.sort_by(|a, b| (a.backup.stop, &a.backup.id).cmp(&(b.backup.stop, &b.backup.id)));
    found
}

impl Line {
    /// The timeline it leads to.
    pub fn timeline(&self) -> TimelineId {
        self.path.timeline()
    }

    /// The WAL of this line from `from` on, by timeline. A timeline's copy of its parent's last WAL segment belongs to it.
    pub fn wal_from(&self, from: Lsn, until: Lsn, size: SegmentSize) -> Vec<(TimelineId, LsnRange)> {
        let asked = LsnRange::new(from, until.max(from));
        let of_leg = |leg: &crate::repo::lineage::Leg| {
            let valid = LsnRange::new(size.segment_start(leg.range.start), leg.range.end);
            valid.intersect(asked).map(|range| (leg.timeline, range))
        };
        self.path.legs().iter().filter_map(of_leg).collect()
    }
}
