//! What the root says that takes the place of lost ones. Pure. Spec: formats/root.md ("When the newest is lost").

use super::lost_index::Lost;
use crate::base::{BackupId, Generation, LsnRange, ObjectId, Timestamp};
use crate::format::index::{IndexPage, PinEntry, RemovedKind};
use crate::format::root::{PendingEntry, Root, StreamEntry};
use crate::repo::Index;
use crate::repo::index::empty_page;
use crate::repo::spans::Spans;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// What lost roots left.
#[derive(Debug)]
pub struct Traces<'a> {
    /// Streams that they named, oldest first.
    pub streams: &'a [StreamEntry],
    /// The highest writer epoch that was seen.
    pub epoch_max: u64,
    /// The highest generation of what is added to the index.
    pub generation: Option<Generation>,
    /// Registered work that goes on.
    pub going_on: &'a [PendingEntry],
}

/// Root `number`, made of `base`. When it is made, by whom, and where its index begins is seen to by whoever commits it.
pub fn root(base: &Root, number: u64, traces: &Traces<'_>) -> Root {
    let mut next = with_streams(base, traces.streams);
    next.generation = next.generation.max(traces.generation.unwrap_or(next.generation));
    // A root raises it by one at most. A copy into which nobody receives stays one: its epoch is 0 (formats/index.md).
    let is_written = base.writer_epoch > 0 || traces.epoch_max > 0;
    if is_written {
        next.writer_epoch = (base.writer_epoch + (number - base.number)).max(traces.epoch_max + 1);
    }
    next.deleted_at = base.deleted_at.filter(|_| next.generation == base.generation);
    next.pending = if next.deleted_at.is_none() { traces.going_on.to_vec() } else { Vec::new() };
    if next.deleted_at.is_none() {
        next.set_rebuilt_at(number);
    }
    next
}

/// `root` that names `streams` too.
pub fn with_streams(root: &Root, streams: &[StreamEntry]) -> Root {
    let mut next = root.clone();
    next.streams.extend(streams.iter().cloned());
    next.streams.sort_by_key(|stream| stream.writer_epoch);
    let newest = next.streams.iter().map(|stream| stream.generation).max();
    next.generation = newest.map_or(root.generation, |newest| newest.max(root.generation));
    next
}

/// What an index gets.
#[derive(Debug)]
pub struct Additions {
    /// The entries.
    pub page: IndexPage,
    /// Removals by lost roots, which are not done again.
    pub removals_undone: usize,
    /// Backups that are not added, since segments of chunks that were stored for them are gone.
    pub backups_not_whole: BTreeSet<BackupId>,
}

impl Default for Additions {
    fn default() -> Additions {
        Additions { page: empty_page(), removals_undone: 0, backups_not_whole: BTreeSet::new() }
    }
}

impl Additions {
    /// The highest generation of any of them.
    pub fn generation(&self) -> Option<Generation> {
        let wal = self.page.wal.iter().map(|entry| entry.generation);
        let backups = self.page.backups.iter().map(|backup| backup.generation);
        let gaps = self.page.gaps.iter().map(|gap| gap.generation);
        let histories = self.page.histories.iter().map(|history| history.generation);
        wal.chain(backups).chain(gaps).chain(histories).max()
    }
}

/// What the index objects of lost roots, newest first, add to `index`, which is that of `base`. `held` is the WAL of flush objects.
///
/// Entries of `index` stay as they are, but for a pin that an added one outlasts. Compacted WAL is added where nothing else holds it: what
/// it took the place of is all there, and is compacted again.
pub fn additions(base: &Root, index: &Index, held: Spans, lost: Vec<Lost>) -> Additions {
    let mut added = Additions::default();
    let gone: HashSet<(RemovedKind, &str)> =
        index.removed.iter().map(|removed| (removed.kind, removed.name.as_str())).collect();
    let mut covered = held;
    for entry in &index.wal {
        covered
            .add((entry.generation, entry.timeline), LsnRange::new(entry.start, entry.end.max(entry.start)));
    }
    let mut segments: HashSet<ObjectId> = index.pages.iter().map(|entry| entry.id).collect();
    let mut backups: HashSet<BackupId> = index.backups.iter().map(|backup| backup.id.clone()).collect();
    let mut gaps: HashSet<ObjectId> = index.gaps.iter().map(|gap| gap.id).collect();
    let mut histories: HashSet<_> =
        index.histories.iter().map(|history| (history.generation, history.timeline)).collect();
    let mut pins: BTreeMap<BackupId, PinEntry> =
        index.pins.iter().map(|pin| (pin.backup.clone(), pin.clone())).collect();
    let mut removals = HashSet::new();
    for Lost { page, is_whole } in lost {
        removals.extend(
            page.removed
                .into_iter()
                .filter(|removed| removed.root > base.number)
                .map(|removed| (removed.kind, removed.name)),
        );
        for entry in page.wal {
            let (place, range) =
                ((entry.generation, entry.timeline), LsnRange::new(entry.start, entry.end.max(entry.start)));
            if !covered.covers(place, range) && !gone.contains(&(RemovedKind::Wal, &*entry.id.to_string())) {
                covered.add(place, range);
                added.page.wal.push(entry);
            }
        }
        for entry in page.pages {
            if !gone.contains(&(RemovedKind::Pages, &*entry.id.to_string())) && segments.insert(entry.id) {
                added.page.pages.push(entry);
            }
        }
        for entry in page.backups {
            if gone.contains(&(RemovedKind::Backup, entry.id.as_str())) || backups.contains(&entry.id) {
                continue;
            }
            if is_whole {
                backups.insert(entry.id.clone());
                added.page.backups.push(entry);
            } else {
                added.backups_not_whole.insert(entry.id);
            }
        }
        added.page.gaps.extend(page.gaps.into_iter().filter(|gap| gaps.insert(gap.id)));
        let own = page.histories.into_iter();
        added.page.histories.extend(own.filter(|entry| histories.insert((entry.generation, entry.timeline))));
        for pin in page.pins {
            let known = pins.get(&pin.backup);
            if known.is_none_or(|known| ends(known) < ends(&pin)) {
                pins.insert(pin.backup.clone(), pin.clone());
                added.page.pins.retain(|other| other.backup != pin.backup);
                added.page.pins.push(pin);
            }
        }
    }
    added.backups_not_whole.retain(|id| !backups.contains(id));
    added.removals_undone = removals.len();
    added
}

fn ends(pin: &PinEntry) -> Timestamp {
    pin.until.unwrap_or(Timestamp::MAX)
}

/// What a root that takes the place of others cannot know.
pub fn notes(base: &Root, number: u64, additions: &Additions) -> Vec<String> {
    let lost = match number - base.number {
        0 | 1 => "a root that is gone".to_owned(),
        2 => format!("root {}", base.number + 1),
        _ => format!("roots {} to {}", base.number + 1, number - 1),
    };
    let mut notes = Vec::new();
    if number - base.number <= 1 {
        notes.push(format!(
            "what was stored for a newest root that is gone without a trace is found only before the next commit: this looked for that of \
             root {number}, and had anybody committed since it went, its number would be another root's"
        ));
    }
    if additions.removals_undone > 0 {
        notes.push(format!(
            "{} removals by {lost} are undone, nothing of that was collected: remove again what should be gone",
            additions.removals_undone
        ));
    }
    for id in &additions.backups_not_whole {
        notes.push(format!("backup {id} lacks chunks that were stored for it: it is not taken"));
    }
    notes.push(format!(
        "what {lost} alone may have said is not known: that a backup was unpinned, that the cluster was deleted or its next generation \
         began; do that again if it was done"
    ));
    notes
}

#[cfg(test)]
mod tests;
