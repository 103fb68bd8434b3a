//! What retention keeps and lets go, and why: one pure function from root, index and clock. Printed it is `walden expire --dry-run`.
//!
//! Rules: every moment of the window stays restorable on every line that was written to since it began; what is kept for longer
//! keeps the WAL that makes it consistent; WAL goes only below the start of the WAL segment with the redo LSN of the oldest
//! backup that needs it, and never from the middle of what delta frames need; a backup whose pages alone are needed becomes a base; and while no complete backup is restorable, nothing goes.
//! Now is the least of the host's clock, the newest server time, and when the store says that it took the newest root: whichever jumps
//! ahead, nothing expires by it.

mod choice;

use super::lines::{self, Era, Restorable};
use super::policy::{Period, Policy};
use crate::base::planted::{Bug, planted};
use crate::base::{BackupId, Generation, LsnRange, ObjectId, TimelineId, Timestamp};
use crate::format::index::{BackupEntry, BackupState, ExpiredEntry};
use crate::format::root::{GenerationRecord, Root, StreamEntry};
use crate::repo::Index;
use crate::repo::chain::{Chain, ChainObject};
use choice::Choice;

/// What a plan is made of.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The root.
    pub root: &'a Root,
    /// Its index.
    pub index: &'a Index,
    /// The chains of its streams, as they were read then or before: what was compacted since is passed over.
    pub chains: &'a [Chain],
    /// The generations.
    pub generations: &'a [GenerationRecord],
    /// Backups that registered restores read.
    pub reading: &'a [BackupId],
    /// The time of day on this host.
    pub clock: Timestamp,
    /// When the root was stored, by the store's clock.
    pub stored: Timestamp,
}

impl<'a> Facts<'a> {
    /// Flush objects that are not compacted, with their streams.
    pub fn flushed(&self) -> impl Iterator<Item = (&'a StreamEntry, &'a ChainObject)> + use<'a> {
        let root = self.root;
        self.chains.iter().flat_map(move |chain| {
            let stream = root.streams.iter().find(|stream| stream.id == chain.stream.id);
            let waiting =
                move |object: &&ChainObject| stream.is_some_and(|stream| object.number >= stream.low_water);
            chain.objects.iter().filter(waiting).map(move |object| (&chain.stream, object))
        })
    }

    /// What counts as now.
    pub fn now(&self) -> Timestamp {
        let compacted = self.index.wal.iter().map(|entry| entry.server_time);
        let flushed = self.flushed().map(|(_, object)| object.meta.server_time);
        let made = self.index.backups.iter().map(|backup| backup.stopped_at);
        let newest = compacted.chain(flushed).chain(made).max().unwrap_or(Timestamp::MIN);
        newest.min(self.clock).min(self.stored)
    }
}

/// Why a backup stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keep {
    /// The window of a line begins with it.
    WindowStart(TimelineId),
    /// It is younger than the beginning of the window.
    InWindow,
    /// It is one of the newest so many.
    Count(u32),
    /// It is the newest of a period.
    Calendar(Period, String),
    /// The operator pinned it: until when, and why.
    Pinned(Option<Timestamp>, String),
    /// Its WAL is not durable yet.
    Pending,
    /// A restore reads it.
    Reading,
    /// Delta frames of kept WAL refer to its pages.
    Deltas(TimelineId, LsnRange),
    /// No other complete backup would be restorable.
    Last,
    /// The record of its generation, or the history of one of its timelines, is missing: nobody can say what needs it.
    Unknown,
    /// No complete backup is restorable: nothing goes.
    NothingRestorable,
    /// Nobody asked for it to go.
    NotAsked,
}

/// Why WAL stays.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeepWal {
    /// Recovery on the way to a timeline, from a backup on.
    Recovery(BackupId, TimelineId),
    /// A line without a restorable backup: it is not known from where on it will be needed.
    NoBackup(TimelineId),
    /// It makes a backup consistent.
    Consistency(BackupId),
    /// Delta frames after it are decoded from here on.
    Epoch,
    /// Its generation is not known well enough to say what needs it.
    Unknown,
}

/// What becomes of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupFate {
    /// The backup, as it is afterwards.
    pub backup: BackupEntry,
    /// Whether all of the WAL that it needs was stored.
    pub restorable: bool,
    /// Why it stays; it goes when there is no reason.
    pub keeps: Vec<Keep>,
}

/// What becomes of a run of compacted WAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalFate {
    /// Its generation.
    pub generation: Generation,
    /// Its timeline.
    pub timeline: TimelineId,
    /// Its bytes.
    pub range: LsnRange,
    /// Segments.
    pub segments: u64,
    /// Bytes of the segments.
    pub bytes_stored: u64,
    /// Why it stays; it goes when there is no reason.
    pub keeps: Vec<KeepWal>,
}

/// What is kept and what goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What counts as now.
    pub now: Timestamp,
    /// The beginning of the window.
    pub window_start: Timestamp,
    /// Every backup, oldest first.
    pub backups: Vec<BackupFate>,
    /// Every run of compacted WAL.
    pub wal: Vec<WalFate>,
    /// Compacted segments that go.
    pub wal_removed: Vec<ObjectId>,
    /// The whole list of WAL that retention let go, afterwards.
    pub expired: Vec<ExpiredEntry>,
}

impl Plan {
    /// Backups that go.
    pub fn backups_removed(&self) -> impl Iterator<Item = &BackupEntry> {
        self.backups.iter().filter(|fate| fate.keeps.is_empty()).map(|fate| &fate.backup)
    }

    /// Backups whose WAL goes, and whose pages stay.
    pub fn bases(&self) -> impl Iterator<Item = &BackupId> {
        let bases = self.backups.iter().filter(|fate| !fate.keeps.is_empty());
        bases.filter(|fate| fate.backup.state == BackupState::Base).map(|fate| &fate.backup.id)
    }

    /// Whether nothing goes.
    pub fn is_empty(&self) -> bool {
        self.wal_removed.is_empty() && self.backups_removed().next().is_none()
    }
}

/// What `policy` keeps.
pub fn plan(facts: &Facts<'_>, policy: &Policy) -> Plan {
    let now = facts.now();
    let window = i64::try_from(policy.window.as_micros()).unwrap_or(i64::MAX);
    let start = now.saturating_add_micros(window.saturating_neg());
    let eras = lines::eras(facts);
    let mut choice = Choice::new(facts, &eras);
    choice.keep_what_nobody_may_take(now);
    if eras.iter().all(|era| !has_complete(era)) {
        choice.keep_all(Keep::NothingRestorable);
    }
    for era in &eras {
        if !era.is_known() {
            choice.keep_era(era);
            continue;
        }
        let by_name = planted(Bug::ExpiryByName);
        for line in era.lines.iter().filter(|line| line.current || (line.end > start && !by_name)) {
            choice.keep_window(era, line, start);
        }
        let whole = era.backups.iter().filter(|backup| backup.state != BackupState::Base);
        for backup in whole.filter(|backup| backup.stopped_at > start) {
            choice.keep(&backup.id, Keep::InWindow);
            choice.want_consistency(era, backup);
        }
    }
    choice.keep_count(policy.count_min);
    choice.keep_calendar(policy);
    choice.keep_last();
    choice.finish(now, start)
}

/// What goes when nothing but the backup `id` does: WAL that no other backup can replay goes with it.
pub fn without(facts: &Facts<'_>, id: &BackupId) -> Plan {
    let eras = lines::eras(facts);
    let mut choice = Choice::new(facts, &eras);
    for era in &eras {
        if !era.is_known() {
            choice.want_era(era);
        }
        for backup in era.backups.iter().filter(|backup| backup.id != *id) {
            choice.keep(&backup.id, Keep::NotAsked);
            choice.want_consistency(era, backup);
        }
        for line in &era.lines {
            choice.want_usable(era, line, id);
        }
    }
    let now = facts.now();
    choice.finish(now, now)
}

fn has_complete(era: &Era) -> bool {
    era.lines.iter().flat_map(|line| &line.restorable).any(is_complete)
}

fn is_complete(restorable: &Restorable) -> bool {
    restorable.backup.state == BackupState::Complete
}

#[cfg(test)]
mod tests;
