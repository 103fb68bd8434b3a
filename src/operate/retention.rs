//! What retention keeps and lets go, for people and as a document: each backup with every reason, each run of WAL that goes, and
//! what stays for what. The document's fields are a promise: they are only ever added.

use super::units::{Bytes, Span};
use crate::format::index::BackupState;
use crate::retain::plan::{BackupFate, Keep, KeepWal, Plan, WalFate};
use crate::retain::policy::{Period, Policy};
use serde::Serialize;
use std::fmt::{self, Write};

/// What becomes of one cluster.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Retained {
    /// Its name.
    pub cluster: String,
    /// Whether it was done, or would be.
    pub done: bool,
    /// The policy, in a sentence.
    pub policy: String,
    /// What counts as now: the smaller of this host's clock and the newest server time that is stored.
    pub now: String,
    /// The beginning of the window.
    pub window_start: String,
    /// Every backup, oldest first.
    pub backups: Vec<BackupLine>,
    /// WAL that stays and WAL that goes, in order.
    pub wal: Vec<WalLine>,
    /// WAL that stays, in bytes of WAL.
    pub wal_bytes_kept: u64,
    /// WAL that goes.
    pub wal_bytes_removed: u64,
    /// Bytes of the segments of WAL that go. What backups free is known to collection alone: they share what they hold.
    pub stored_bytes_removed: u64,
}

/// What becomes of a backup.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BackupLine {
    /// Its id.
    pub id: String,
    /// When it was consistent.
    pub stopped_at: String,
    /// Its timeline.
    pub timeline: u32,
    /// Its generation.
    pub generation: u32,
    /// `keep` or `remove`.
    pub fate: &'static str,
    /// Every reason.
    pub reasons: Vec<String>,
}

/// What becomes of a run of WAL.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WalLine {
    /// Its generation.
    pub generation: u32,
    /// Its timeline.
    pub timeline: u32,
    /// Its first byte.
    pub start_lsn: String,
    /// One past its last.
    pub end_lsn: String,
    /// Bytes of WAL.
    pub bytes: u64,
    /// Bytes of its segments.
    pub bytes_stored: u64,
    /// `keep` or `remove`.
    pub fate: &'static str,
    /// Every reason.
    pub reasons: Vec<String>,
}

impl Retained {
    /// What `plan` says of `cluster`.
    pub fn new(cluster: &str, policy: &Policy, plan: &Plan, done: bool) -> Retained {
        let bytes = |gone: bool, of: fn(&WalFate) -> u64| {
            plan.wal.iter().filter(|fate| fate.keeps.is_empty() == gone).map(of).sum()
        };
        Retained {
            cluster: cluster.to_owned(),
            done,
            policy: describe(policy),
            now: plan.now.to_string(),
            window_start: plan.window_start.to_string(),
            backups: plan.backups.iter().map(BackupLine::from).collect(),
            wal: plan.wal.iter().map(WalLine::from).collect(),
            wal_bytes_kept: bytes(false, |fate| fate.range.len()),
            wal_bytes_removed: bytes(true, |fate| fate.range.len()),
            stored_bytes_removed: bytes(true, |fate| fate.bytes_stored),
        }
    }
}

/// A policy in a sentence.
pub fn describe(policy: &Policy) -> String {
    let mut text = format!("a window of {}, at least {} backups", whole(policy.window), policy.count_min);
    for (period, count) in Period::ALL.into_iter().zip(policy.keeps).filter(|(_, count)| *count > 0) {
        write!(text, ", the newest of {count} {period}s").unwrap_or_default();
    }
    text
}

/// `30 days`, or as exact as it was given.
fn whole(window: std::time::Duration) -> String {
    match window.as_secs() {
        0 => "nothing".into(),
        seconds if seconds % 86_400 == 0 && seconds == 86_400 => "1 day".into(),
        seconds if seconds % 86_400 == 0 => format!("{} days", seconds / 86_400),
        _ => Span(window).to_string(),
    }
}

fn fate(kept: bool) -> &'static str {
    if kept { "keep" } else { "remove" }
}

impl From<&BackupFate> for BackupLine {
    fn from(of: &BackupFate) -> BackupLine {
        let mut reasons: Vec<String> = of.keeps.iter().map(reason).collect();
        if reasons.is_empty() {
            reasons.push("older than the window, and nothing else keeps it".into());
        }
        match of.backup.state {
            BackupState::Damaged => reasons.push("it is damaged, and stands in for no complete one".into()),
            BackupState::Complete if !of.restorable => {
                reasons.push("the WAL that makes it consistent is not whole: it cannot be restored".into());
            }
            BackupState::Base => {
                reasons.push("the WAL that made it consistent was let go: it cannot be restored".into());
            }
            BackupState::Pending | BackupState::Complete => {}
        }
        BackupLine {
            id: of.backup.id.to_string(),
            stopped_at: of.backup.stopped_at.to_string(),
            timeline: of.backup.timeline.0,
            generation: of.backup.generation.0,
            fate: fate(!of.keeps.is_empty()),
            reasons,
        }
    }
}

fn reason(keep: &Keep) -> String {
    match keep {
        Keep::WindowStart(timeline) => format!("the window on timeline {timeline} begins with it"),
        Keep::InWindow => "younger than the beginning of the window".into(),
        Keep::Count(1) => "the newest complete backup".into(),
        Keep::Count(count) => format!("one of the newest {count}"),
        Keep::Calendar(period, name) => format!("the newest of {period} {name}"),
        Keep::Pinned(until, why) => {
            let until = until.map(|until| format!(" until {until}")).unwrap_or_default();
            let why = if why.is_empty() { String::new() } else { format!(": {why}") };
            format!("pinned{until}{why}")
        }
        Keep::Pending => "its WAL is not durable yet".into(),
        Keep::Reading => "a restore reads it".into(),
        Keep::Deltas(timeline, range) => {
            format!("WAL {range} of timeline {timeline} is stored as differences from its pages")
        }
        Keep::Last => "no other complete backup is restorable".into(),
        Keep::Unknown => {
            "a history of its generation is missing: nobody can say what needs it (`walden verify`)".into()
        }
        Keep::NothingRestorable => "no complete backup is restorable: nothing goes".into(),
        Keep::NotAsked => "not asked for".into(),
    }
}

impl From<&WalFate> for WalLine {
    fn from(of: &WalFate) -> WalLine {
        let mut reasons: Vec<String> = of.keeps.iter().map(wal_reason).collect();
        if reasons.is_empty() {
            reasons.push("no kept backup replays it".into());
        }
        WalLine {
            generation: of.generation.0,
            timeline: of.timeline.0,
            start_lsn: of.range.start.to_string(),
            end_lsn: of.range.end.to_string(),
            bytes: of.range.len(),
            bytes_stored: of.bytes_stored,
            fate: fate(!of.keeps.is_empty()),
            reasons,
        }
    }
}

fn wal_reason(keep: &KeepWal) -> String {
    match keep {
        KeepWal::Recovery(backup, timeline) => {
            format!("recovery from backup {backup} on the way to timeline {timeline}")
        }
        KeepWal::NoBackup(timeline) => format!("no backup on the way to timeline {timeline} yet"),
        KeepWal::Consistency(backup) => format!("makes backup {backup} consistent"),
        KeepWal::Epoch => "WAL after it is decoded from here on".into(),
        KeepWal::Unknown => "not enough is known of its generation".into(),
    }
}

impl fmt::Display for Retained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.done { "" } else { " would" };
        writeln!(f, "{}: {}", self.cluster, self.policy)?;
        writeln!(f, "  the window begins {}, counted from {}", self.window_start, self.now)?;
        let several = self.backups.iter().any(|b| (b.generation, b.timeline) != (1, 1));
        for backup in &self.backups {
            let (fate, id) = (backup.fate, &backup.id);
            let place = match several {
                true => format!(" ({}/{})", backup.generation, backup.timeline),
                false => String::new(),
            };
            writeln!(f, "  {fate:<7} backup {id}{place}: {}", backup.reasons.join("; "))?;
        }
        for wal in &self.wal {
            let (fate, start, end) = (wal.fate, &wal.start_lsn, &wal.end_lsn);
            let place = match (wal.generation, wal.timeline) {
                (1, 1) => String::new(),
                (generation, timeline) => format!(" ({generation}/{timeline})"),
            };
            let (raw, stored) = (Bytes(wal.bytes), Bytes(wal.bytes_stored));
            let reasons = wal.reasons.join("; ");
            writeln!(f, "  {fate:<7} WAL {start}..{end}{place}, {raw} in {stored}: {reasons}")?;
        }
        let gone = self.backups.iter().filter(|backup| backup.fate == "remove").count();
        if gone == 0 && self.wal_bytes_removed == 0 {
            return writeln!(f, "  nothing goes");
        }
        let (wal, stored) = (Bytes(self.wal_bytes_removed), Bytes(self.stored_bytes_removed));
        let go = if self.done { "went" } else { "go" };
        let backups = if gone == 1 { "backup" } else { "backups" };
        writeln!(f, "  {gone} {backups} and {wal} of WAL ({stored} stored){verb} {go}")
    }
}
