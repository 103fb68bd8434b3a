//! `walden log`: what happened in the WAL that a person looks for, with a restore target for each moment.
//! Events come from the summaries of the index; commits around a time or of a transaction are read from the WAL itself.

mod show;

use super::failure::Failure;
use crate::base::{Lsn, LsnRange, TimelineId, Timestamp};
use crate::format::header::ObjectKind;
use crate::format::record::Record;
use crate::format::wal::{Event, EventKind, RelationRef, WalMeta};
use crate::repo::lineage::{Coverage, TimelinePath};
use crate::repo::walmap;
use crate::repo::walread::open_segment;
use crate::repo::{Cluster, RepoError, WalPiece, WalSource, layout};
use crate::restore::archive::{self, Loaded};
use crate::restore::scan::{Meaning, Seen, WalScan};
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;

/// How far from the time of `--around` events are shown.
const AROUND_MICROS: u64 = 600 * 1_000_000;
/// Commits shown on either side of it.
const AROUND_COMMITS: usize = 10;
/// Pieces of WAL read for those on either side: quiet clusters have many without a commit, which are not read.
const AROUND_PIECES: usize = 3;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogOptions {
    /// Only what is gone: dropped relations and databases, emptied tables.
    pub drops: bool,
    /// Checkpoints and rewrites too.
    pub all: bool,
    /// Only what is near this time, and the commits next to it.
    pub around: Option<Timestamp>,
    /// Only this transaction.
    pub xid: Option<u32>,
    /// The most entries, the newest.
    pub limit: usize,
}

/// The document. Fields are only ever added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Log {
    /// The cluster.
    pub cluster: String,
    /// What happened, by position.
    pub entries: Vec<Entry>,
    /// Older entries that fit too and are not shown.
    pub left_out: u64,
    /// Where WAL could not be read: something may hide there.
    pub unread: Vec<String>,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Where its record starts.
    pub lsn: String,
    /// Where it ends.
    pub end_lsn: String,
    /// When, by the server's clock.
    pub time: String,
    /// The transaction, if it is one's.
    pub xid: Option<u32>,
    /// The timeline.
    pub timeline: u32,
    /// What.
    pub kind: &'static str,
    /// The database's oid.
    pub database: Option<u32>,
    /// Files that are gone.
    pub relation_count: u32,
    /// The first of them, `tablespace/database/filenumber`.
    pub relations: Vec<String>,
    /// A restore point's name.
    pub name: Option<String>,
    /// Options of `walden restore` that give everything before it.
    pub restore_before: String,
    /// Options that give everything up to it, and it.
    pub restore_after: String,
    #[serde(skip)]
    at: (u32, Lsn),
}

/// The kind's name in documents.
pub fn kind_name(kind: EventKind) -> &'static str {
    match kind {
        EventKind::CheckpointShutdown => "shutdown_checkpoint",
        EventKind::CheckpointOnline => "checkpoint",
        EventKind::CheckpointRedo => "checkpoint_redo",
        EventKind::RestorePoint => "restore_point",
        EventKind::Drop => "drop",
        EventKind::DropIndex => "drop_index",
        EventKind::Truncate => "truncate",
        EventKind::Rewrite => "rewrite",
        EventKind::CreateDatabase => "create_database",
        EventKind::DropDatabase => "drop_database",
        EventKind::EndOfRecovery => "end_of_recovery",
        EventKind::ParameterChange => "parameter_change",
    }
}

/// Looks into the WAL of a cluster's current generation.
pub async fn log(cluster: &Cluster, options: &LogOptions) -> Result<Log, Failure> {
    let snapshot = walmap::load(cluster).await?;
    let loaded = archive::load(cluster, &snapshot, snapshot.root.generation).await?;
    let mut found = Found { current: loaded.archive.current, entries: BTreeMap::new() };
    let mut unread = Vec::new();
    for piece in loaded.wal.pieces() {
        let summary = &piece.summary;
        if let Some(at) = summary.unread_first {
            unread.push(format!("timeline {} at {at}", piece.timeline));
        }
        for event in summary.events.iter().filter(|event| wanted(event, options)) {
            found.event(piece.timeline, event);
        }
    }
    let path = loaded.archive.lineage.path(loaded.archive.current);
    if let (Some(path), Some(xid)) = (&path, options.xid) {
        transaction(cluster, &loaded, path, xid, &mut found).await?;
    }
    if let (Some(path), Some(time), false) = (&path, options.around, options.drops) {
        commits_around(cluster, &loaded, path, time, &mut found).await?;
    }
    let left_out = found.entries.len().saturating_sub(options.limit);
    let mut entries: Vec<Entry> = found.entries.into_values().skip(left_out).collect();
    for entry in entries.iter_mut().filter(|entry| entry.relation_count > 0 && entry.relations.is_empty()) {
        entry.relations = relations(cluster, &loaded, entry.at).await?;
    }
    Ok(Log { cluster: cluster.name().to_string(), entries, left_out: left_out as u64, unread })
}

fn wanted(event: &Event, options: &LogOptions) -> bool {
    if options.xid.is_some_and(|xid| event.xid != xid) {
        return false;
    }
    if options.around.is_some_and(|time| event.time.micros_since(time).unsigned_abs() > AROUND_MICROS) {
        return false;
    }
    match event.kind {
        EventKind::Drop | EventKind::Truncate | EventKind::DropDatabase => true,
        EventKind::DropIndex
        | EventKind::RestorePoint
        | EventKind::CreateDatabase
        | EventKind::EndOfRecovery => !options.drops,
        EventKind::CheckpointShutdown
        | EventKind::CheckpointOnline
        | EventKind::CheckpointRedo
        | EventKind::ParameterChange
        | EventKind::Rewrite => options.all && !options.drops,
    }
}

/// Entries by timeline and position: pieces may overlap, and a commit may be an event too.
struct Found {
    current: TimelineId,
    entries: BTreeMap<(u32, Lsn), Entry>,
}

impl Found {
    fn event(&mut self, timeline: TimelineId, event: &Event) {
        let mut entry = self.entry(timeline, event.lsn, event.end, event.time, kind_name(event.kind));
        entry.xid = (event.xid != 0).then_some(event.xid);
        entry.database = (event.database != 0).then_some(event.database);
        entry.relation_count = event.relation_count;
        entry.relations = event.relations.iter().map(relation_text).collect();
        if event.kind == EventKind::RestorePoint {
            entry.restore_after = format!("--to-name {}", shell_word(&event.name));
            entry.name = Some(event.name.clone());
        }
        self.entries.insert(entry.at, entry);
    }

    fn finished(&mut self, path: &TimelinePath, seen: &Seen) {
        let (xid, time, kind) = match seen.meaning {
            Meaning::Commit { xid, time } => (xid, time, "commit"),
            Meaning::Abort { xid, time } => (xid, time, "rollback"),
            Meaning::Other | Meaning::Limits(_) => return,
        };
        let mut entry = self.entry(path.timeline_at(seen.start), seen.start, seen.end, time, kind);
        entry.xid = Some(xid);
        self.entries.entry(entry.at).or_insert(entry);
    }

    fn entry(&self, timeline: TimelineId, lsn: Lsn, end: Lsn, time: Timestamp, kind: &'static str) -> Entry {
        let timeline_option =
            if timeline > self.current { format!(" --timeline {timeline}") } else { String::new() };
        Entry {
            lsn: lsn.to_string(),
            end_lsn: end.to_string(),
            time: time.to_string(),
            xid: None,
            timeline: timeline.0,
            kind,
            database: None,
            relation_count: 0,
            relations: Vec::new(),
            name: None,
            restore_before: format!("--to-lsn {lsn}{timeline_option}"),
            restore_after: format!("--to-lsn {end}{timeline_option}"),
            at: (timeline.0, lsn),
        }
    }
}

pub(super) fn relation_text(relation: &RelationRef) -> String {
    format!("{}/{}/{}", relation.tablespace, relation.database, relation.relation)
}

fn shell_word(text: &str) -> String {
    crate::restore::host::shell_word(text)
}

/// Where and how a transaction ended, wherever that is: xids come again after four billion.
async fn transaction(
    cluster: &Cluster,
    loaded: &Loaded,
    path: &TimelinePath,
    xid: u32,
    found: &mut Found,
) -> Result<(), Failure> {
    let coverage = Coverage::of(path, &loaded.archive.pieces, loaded.archive.segment_size);
    let scan = loaded.scan(cluster, path);
    for span in coverage.runs.iter().flat_map(|run| &run.spans) {
        let summary = &span.piece.summary;
        if !(summary.xid_min.is_some_and(|min| min <= xid) && summary.xid_max.is_some_and(|max| xid <= max)) {
            continue;
        }
        let mut ends = Vec::new();
        let visit = &mut |seen: &Seen| {
            if matches!(seen.meaning, Meaning::Commit { xid: x, .. } | Meaning::Abort { xid: x, .. } if x == xid)
            {
                ends.push(*seen);
            }
            ControlFlow::Continue(())
        };
        scan.scan(span.range, visit).await?;
        ends.iter().for_each(|seen| found.finished(path, seen));
    }
    Ok(())
}

/// The commits next to a time on either side, in order of position.
async fn commits_around(
    cluster: &Cluster,
    loaded: &Loaded,
    path: &TimelinePath,
    time: Timestamp,
    found: &mut Found,
) -> Result<(), Failure> {
    let coverage = Coverage::of(path, &loaded.archive.pieces, loaded.archive.segment_size);
    let with_commits =
        coverage.runs.iter().flat_map(|run| &run.spans).filter(|s| s.piece.summary.finished_count > 0);
    let spans: Vec<_> = with_commits.collect();
    let past = |max: Option<Timestamp>| max.is_some_and(|max| max > time);
    let at = spans.iter().position(|span| past(span.piece.summary.time_max)).unwrap_or(spans.len());
    let from = at.saturating_sub(AROUND_PIECES);
    let scan = loaded.scan(cluster, path);
    let (mut before, mut after) = (VecDeque::new(), Vec::new());
    for span in spans.iter().skip(from).take(2 * AROUND_PIECES) {
        let visit = &mut |seen: &Seen| {
            let (Meaning::Commit { time: at, .. } | Meaning::Abort { time: at, .. }) = seen.meaning else {
                return ControlFlow::Continue(());
            };
            if at > time || !after.is_empty() {
                after.push(*seen);
            } else {
                before.push_back(*seen);
                if before.len() > AROUND_COMMITS {
                    before.pop_front();
                }
            }
            if after.len() >= AROUND_COMMITS { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        scan.scan(span.range, visit).await?;
        if after.len() >= AROUND_COMMITS {
            break;
        }
    }
    before.iter().chain(&after).for_each(|seen| found.finished(path, seen));
    Ok(())
}

/// The relations of the event at `at`: the index leaves them out, the segment's own directory has them.
async fn relations(cluster: &Cluster, loaded: &Loaded, at: (u32, Lsn)) -> Result<Vec<String>, RepoError> {
    let (timeline, lsn) = (TimelineId(at.0), at.1);
    let range = LsnRange::new(lsn, lsn.saturating_add(1));
    let holds = |piece: &&WalPiece| piece.summary.events.iter().any(|event| event.lsn == lsn);
    // A record belongs to the piece that holds its last byte, which may be the one after.
    let mut pieces = loaded
        .wal
        .pieces()
        .iter()
        .filter(|piece| piece.timeline == timeline && piece.range.end > range.start);
    let Some(WalPiece { source: WalSource::Segment(entry), .. }) = pieces.find(holds) else {
        return Ok(Vec::new());
    };
    let key = layout::segment(cluster.name(), entry.id);
    let (_, directory) =
        open_segment(cluster, &key, ObjectKind::WalSegment, entry.directory_offset, entry.object_len).await?;
    let meta = WalMeta::decode(&directory.meta.0).map_err(|error| RepoError::damage(&key, error))?;
    let event = meta.summary.events.iter().find(|event| event.lsn == lsn);
    Ok(event.map(|event| event.relations.iter().map(relation_text).collect()).unwrap_or_default())
}

#[cfg(test)]
mod tests;
