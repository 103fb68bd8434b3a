//! What can be restored at all, and how to say so: the window with its gaps, backups that can serve, and what made a
//! request ambiguous.

use super::{Archive, LISTED_MAX};
use crate::base::{BackupId, Lsn, LsnRange, TimelineId, Timestamp};
use crate::format::index::BackupEntry;
use crate::format::wal::{Event, EventKind};
use crate::repo::backups::{is_restorable, needed_wal};
use crate::repo::lineage::{Coverage, Run, TimelinePath};
use crate::restore::scan::{Meaning, Seen};
use crate::restore::target::Target;
use std::fmt;

/// A backup with the WAL that follows it.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// The backup.
    pub backup: &'a BackupEntry,
    /// The hole-free WAL that holds everything it needs, and what follows.
    pub run: &'a Run<'a>,
}

/// Restorable backups on `path`, newest first.
pub(super) fn candidates<'a>(
    archive: &'a Archive,
    path: &TimelinePath,
    coverage: &'a Coverage<'a>,
) -> Vec<Candidate<'a>> {
    let mut all: Vec<Candidate<'a>> = Vec::new();
    for backup in &archive.backups {
        let sane = backup.redo <= backup.stop && backup.generation == archive.generation;
        if !is_restorable(backup.state)
            || !sane
            || !path.holds(backup.timeline, LsnRange::new(backup.redo, backup.stop))
        {
            continue;
        }
        if let Some(run) = coverage.run_with(needed_wal(backup, archive.segment_size)) {
            all.push(Candidate { backup, run });
        }
    }
    all.sort_by(|a, b| (b.backup.stop, &b.backup.id).cmp(&(a.backup.stop, &a.backup.id)));
    all
}

/// A part of the recovery window without a gap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowPart {
    /// The backup it begins with.
    pub backup: BackupId,
    /// Its consistency point and the end of durable WAL.
    pub range: LsnRange,
    /// When that backup was consistent.
    pub start: Timestamp,
    /// The newest server time at which everything was durable.
    pub end: Timestamp,
}

/// What can be restored on one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The timeline it leads to.
    pub timeline: TimelineId,
    /// Its parts, oldest first, with gaps between them; none without a restorable backup.
    pub parts: Vec<WindowPart>,
}

pub(super) fn window(archive: &Archive, path: &TimelinePath, coverage: &Coverage<'_>) -> Window {
    let all = candidates(archive, path, coverage);
    let part = |run: &Run<'_>| {
        let first = all.iter().rev().find(|candidate| candidate.run.range == run.range)?.backup;
        Some(WindowPart {
            backup: first.id.clone(),
            range: LsnRange::new(first.stop, run.range.end),
            start: first.stopped_at,
            end: run.server_time.max(first.stopped_at),
        })
    };
    Window { timeline: path.timeline(), parts: coverage.runs.iter().filter_map(part).collect() }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.parts.is_empty() {
            return write!(f, "nothing can be restored on timeline {}: no complete backup", self.timeline);
        }
        write!(f, "timeline {} can be restored", self.timeline)?;
        for (number, part) in self.parts.iter().enumerate() {
            let (and, start, end) = (if number == 0 { "" } else { ", and" }, part.start, part.end);
            write!(f, "{and} from {start} ({}) to {end} ({})", part.range.start, part.range.end)?;
        }
        Ok(())
    }
}

/// A place in the WAL that fits a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occurrence {
    /// The record.
    pub seen: Seen,
    /// Its time.
    pub time: Timestamp,
}

/// A request that more than one moment fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ambiguity {
    /// The clock stepped back over the time asked for.
    SteppedClock {
        /// The time asked for.
        time: Timestamp,
        /// Where PostgreSQL would stop: the start of the first commit or abort past the time.
        stop: Lsn,
        /// The end of the last commit that belongs to the time all the same.
        last: Lsn,
        /// Commits between the two.
        commit_count: u64,
        /// The first of them, at most [`LISTED_MAX`].
        commits: Vec<Occurrence>,
    },
    /// The transaction or restore point is there more than once.
    Repeated {
        /// What was asked for.
        target: Target,
        /// Every place.
        found: Vec<Occurrence>,
    },
}

impl fmt::Display for Ambiguity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ambiguity::SteppedClock { time, stop, last, commit_count, commits } => {
                write!(
                    f,
                    "target time {time} was passed more than once, the clock was set back: PostgreSQL would stop at \
                     {stop}, but commits at or before that time go on to {last}; choose one with an LSN target \
                     (--to-lsn {stop} or --to-lsn {last}, or between); {commit_count} commits lie between"
                )?;
                list(f, commits, *commit_count)
            }
            Ambiguity::Repeated { target, found } => {
                write!(f, "target {target} is there {} times; choose one with --to-lsn", found.len())?;
                list(f, found, found.len() as u64)
            }
        }
    }
}

fn list(f: &mut fmt::Formatter<'_>, found: &[Occurrence], count: u64) -> fmt::Result {
    for Occurrence { seen, time } in found.iter().take(LISTED_MAX) {
        write!(f, "\n  {time}  ends at {}", seen.end)?;
        match seen.meaning {
            Meaning::Commit { xid, .. } => write!(f, "  commit of {xid}")?,
            Meaning::Abort { xid, .. } => write!(f, "  abort of {xid}")?,
            Meaning::Other | Meaning::Limits(_) => {}
        }
    }
    let listed = found.len().min(LISTED_MAX) as u64;
    if count > listed { write!(f, "\n  and {} more", count - listed) } else { Ok(()) }
}

/// Watches the commits after a stop for those that the clock put back before it.
#[derive(Debug)]
pub(super) struct Stepped {
    stop: Seen,
    time: Timestamp,
    last: Option<Lsn>,
    count: u64,
    count_at_last: u64,
    commits: Vec<Occurrence>,
}

impl Stepped {
    pub(super) fn new(stop: Seen, time: Timestamp) -> Self {
        Stepped { stop, time, last: None, count: 0, count_at_last: 0, commits: Vec::new() }
    }

    /// A commit or abort at `time`, which `belongs` to the target though it lies past the stop.
    pub(super) fn add(&mut self, seen: &Seen, time: Timestamp, belongs: bool) {
        if matches!(seen.meaning, Meaning::Commit { .. }) {
            self.count += 1;
            if self.commits.len() < LISTED_MAX {
                self.commits.push(Occurrence { seen: *seen, time });
            }
        }
        if belongs {
            self.last = Some(seen.end);
            self.count_at_last = self.count;
        }
    }

    /// `commits` were passed over: none of them belongs.
    pub(super) fn skip(&mut self, commits: u64) {
        self.count += commits;
    }

    pub(super) fn finish(mut self) -> Option<Ambiguity> {
        let last = self.last?;
        self.commits.retain(|commit| commit.seen.end <= last);
        Some(Ambiguity::SteppedClock {
            time: self.time,
            stop: self.stop.start,
            last,
            commit_count: self.count_at_last,
            commits: self.commits,
        })
    }
}

/// Restore points called `name` on the path.
pub(super) fn restore_points(coverage: &Coverage<'_>, name: &str) -> Vec<Occurrence> {
    let spans = coverage.runs.iter().flat_map(|run| &run.spans);
    spans
        .flat_map(|span| {
            let inside = |event: &Event| event.lsn < span.range.end && span.range.start < event.end;
            let events = span.piece.summary.events.iter();
            events.filter(move |event| event.kind == EventKind::RestorePoint && inside(event))
        })
        .filter(|event| event.name == name)
        .map(|event| Occurrence {
            seen: Seen { start: event.lsn, end: event.end, meaning: Meaning::Other },
            time: event.time,
        })
        .collect()
}

/// Where else a restore point is, when the path does not have it.
pub(super) fn elsewhere(archive: &Archive, path: &TimelinePath, target: &Target) -> String {
    let Target::Name(name) = target else { return String::new() };
    for timeline in archive.lineage.timelines().filter(|timeline| *timeline != path.timeline()) {
        let Some(other) = archive.lineage.path(timeline) else { continue };
        let coverage = Coverage::of(&other, &archive.pieces, archive.segment_size);
        if let Some(found) = restore_points(&coverage, name).first() {
            return format!("; timeline {timeline} has it at {}", found.seen.start);
        }
    }
    String::new()
}
