//! What an index can be made of when it is damaged or gone: the directories of segments, manifests, and index objects that can still
//! be read. Pure. Spec: formats/index.md ("When it is lost").
//!
//! Exact: what compacted WAL and segments of chunks say of themselves. From manifests, but for figures that only people look at. Not at
//! all: removals, recorded gaps and timeline histories that no readable index object has.

use super::cover::{Candidate, choose};
use crate::base::{BackupId, Generation, Lsn, ObjectId, ObjectKey, TimelineId, Timestamp};
use crate::format::index::{
    BackupEntry, BackupState, GapEntry, IndexPage, PagesEntry, RemovedKind, WalEntry, without_relations,
};
use crate::format::manifest::ManifestMeta;
use crate::format::root::Root;
use crate::format::wal::WalMeta;
use crate::repo::Index;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// A segment as it lies there.
#[derive(Debug, Clone)]
pub struct Found<T> {
    /// Its id.
    pub id: ObjectId,
    /// Its bytes.
    pub object_len: u64,
    /// Where its directory frame's head begins.
    pub directory_offset: u64,
    /// What it says.
    pub what: T,
}

/// Chunks of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunks {
    /// How many.
    pub count: u32,
    /// Bytes of their plaintexts.
    pub plain_bytes: u64,
}

/// Everything that was found.
#[derive(Debug, Default)]
pub struct Inventory {
    /// What index objects say that can be read.
    pub known: Index,
    /// Segments of WAL.
    pub wal: Vec<Found<WalMeta>>,
    /// Segments of chunks.
    pub pages: Vec<Found<Chunks>>,
    /// Of each backup its newest manifest object, with number and length.
    pub manifests: HashMap<BackupId, (ManifestMeta, u32, u64)>,
    /// What cannot be read, and why.
    pub unreadable: Vec<(ObjectKey, String)>,
}

impl Inventory {
    /// Takes the manifest object `name` of `len` bytes, unless a newer one of the same backup is there: one that was sealed anew.
    pub fn take_manifest(&mut self, meta: ManifestMeta, name: &str, len: u64) {
        let number = name.split_once('-').map_or(Some(0), |(_, number)| number.parse().ok());
        let Some(number) = number else { return };
        match self.manifests.get(&meta.id) {
            Some((_, newer, _)) if *newer >= number => {}
            _ => drop(self.manifests.insert(meta.id.clone(), (meta, number, len))),
        }
    }
}

/// An index, and what is to be said of it.
#[derive(Debug)]
pub struct Rebuilt {
    /// The index.
    pub page: IndexPage,
    /// Segments of WAL that are not needed: others hold the same.
    pub left_out: Vec<ObjectId>,
    /// Backups that no readable index object names.
    pub backups_found: Vec<BackupId>,
    /// What somebody has to know.
    pub notes: Vec<String>,
}

/// Puts an index together. `gap_id` draws the ids of gaps that are recorded anew, at `now`.
pub fn rebuild(
    root: &Root,
    inventory: Inventory,
    now: Timestamp,
    mut gap_id: impl FnMut() -> ObjectId,
) -> Rebuilt {
    let Inventory { known, wal, pages, manifests, .. } = inventory;
    let gone =
        |kind, name: &str| known.removed.iter().any(|removed| removed.kind == kind && removed.name == name);
    let mut notes = Vec::new();
    let (taken, left_out) = choose_wal(root, &known, wal, &|id| gone(RemovedKind::Wal, &id.to_string()));
    let known_pages: HashMap<ObjectId, &PagesEntry> =
        known.pages.iter().map(|entry| (entry.id, entry)).collect();
    let pages =
        pages.into_iter().filter(|found| !gone(RemovedKind::Pages, &found.id.to_string())).map(|found| {
            known_pages.get(&found.id).map_or_else(|| pages_entry(&found), |entry| PagesEntry::clone(entry))
        });
    let pages: Vec<PagesEntry> = pages.collect();
    let (backups, backups_found) =
        backups(root, &known, manifests, &|id| gone(RemovedKind::Backup, id.as_str()));
    if !backups_found.is_empty() {
        let names: Vec<String> = backups_found.iter().map(ToString::to_string).collect();
        notes.push(format!(
            "backups known from their manifests alone: {}; what they take is not known any more, and one that had been removed on \
             purpose is back",
            names.join(", ")
        ));
    }
    let mut gaps = known.gaps.clone();
    for (generation, timeline, start, end) in holes(&taken) {
        let recorded = gaps.iter().any(|gap| {
            gap.generation == generation && gap.timeline == timeline && gap.start <= start && gap.end >= end
        }) || known.expired.iter().any(|gone| {
            (gone.generation, gone.timeline) == (generation, timeline)
                && gone.start <= start
                && gone.end >= end
        });
        if !recorded {
            notes.push(format!(
                "no segment holds WAL {start}..{end} of timeline {timeline}: recorded as a gap"
            ));
            let reason = "no segment held it when the index was rebuilt".to_owned();
            gaps.push(GapEntry { id: gap_id(), generation, timeline, start, end, recorded_at: now, reason });
        }
    }
    for (generation, timeline) in timelines(&taken, &backups) {
        let known =
            known.histories.iter().any(|known| known.generation == generation && known.timeline == timeline);
        if timeline > TimelineId(1) && !known {
            notes.push(format!(
                "the history of timeline {timeline} is not known: a receiver that connects to the server stores it again; until then \
                 nothing before timeline {timeline} leads to it"
            ));
        }
    }
    let Index { histories, removed, pins, expired, .. } = known;
    let page = IndexPage { wal: taken, pages, backups, gaps, histories, removed, pins, expired };
    Rebuilt { page, left_out, backups_found, notes }
}

/// The entries of WAL to take, and the ids of what is not needed.
fn choose_wal(
    root: &Root,
    known: &Index,
    found: Vec<Found<WalMeta>>,
    gone: &dyn Fn(ObjectId) -> bool,
) -> (Vec<WalEntry>, Vec<ObjectId>) {
    let named: HashMap<ObjectId, &WalEntry> = known.wal.iter().map(|entry| (entry.id, entry)).collect();
    let mut by_timeline: BTreeMap<(Generation, TimelineId), Vec<Candidate>> = BTreeMap::new();
    let mut left_out = Vec::new();
    for found in found {
        let known = named.get(&found.id);
        let entry = known.map_or_else(|| wal_entry(&found), |entry| WalEntry::clone(entry));
        // Beyond what a stream still has for itself, a compaction stored it that never came to its root.
        let own = |stream: &&crate::format::root::StreamEntry| {
            stream.generation == entry.generation && stream.timeline == entry.timeline
        };
        let compacted = root.streams.iter().filter(own).filter_map(|stream| stream.low_water_lsn).min();
        if gone(entry.id) || compacted.is_some_and(|end| entry.end > end) {
            left_out.push(entry.id);
            continue;
        }
        let known = known.is_some();
        by_timeline.entry((entry.generation, entry.timeline)).or_default().push(Candidate { entry, known });
    }
    let mut taken = Vec::new();
    for candidates in by_timeline.into_values() {
        let (chosen, rest) = choose(candidates);
        taken.extend(chosen.into_iter().map(|candidate| candidate.entry));
        left_out.extend(rest.into_iter().map(|candidate| candidate.entry.id));
    }
    (taken, left_out)
}

fn wal_entry(found: &Found<WalMeta>) -> WalEntry {
    let meta = &found.what;
    WalEntry {
        id: found.id,
        generation: meta.generation,
        timeline: meta.timeline,
        start: meta.start,
        end: meta.end,
        object_len: found.object_len,
        directory_offset: found.directory_offset,
        server_time: meta.server_time,
        summary: without_relations(&meta.summary),
        deltas: meta.deltas.clone(),
    }
}

fn pages_entry(found: &Found<Chunks>) -> PagesEntry {
    PagesEntry {
        id: found.id,
        object_len: found.object_len,
        directory_offset: found.directory_offset,
        chunk_count: found.what.count,
        plain_bytes: found.what.plain_bytes,
    }
}

fn backups(
    root: &Root,
    known: &Index,
    manifests: HashMap<BackupId, (ManifestMeta, u32, u64)>,
    gone: &dyn Fn(&BackupId) -> bool,
) -> (Vec<BackupEntry>, Vec<BackupId>) {
    let (mut backups, mut found) = (Vec::new(), Vec::new());
    let mut manifests: Vec<_> = manifests.into_values().filter(|(meta, ..)| !gone(&meta.id)).collect();
    manifests.sort_by(|(a, ..), (b, ..)| a.id.cmp(&b.id));
    for (meta, manifest_number, manifest_len) in manifests {
        if let Some(entry) = known.backup(&meta.id) {
            backups.push(entry.clone());
            continue;
        }
        found.push(meta.id.clone());
        backups.push(BackupEntry {
            generation: meta.generation,
            timeline: meta.timeline,
            redo: meta.redo,
            start: meta.start,
            stop: meta.stop,
            started_at: meta.started_at,
            stopped_at: meta.stopped_at,
            bytes_raw: meta.bytes_raw,
            // Figures for people, which only the work that made it knew.
            bytes_stored: 0,
            bytes_new: 0,
            manifest_len,
            manifest_number,
            damaged_blocks: meta.damaged.len() as u64,
            // No epoch of deltas that is there now goes on: whether it began before the backup nobody knows.
            root: root.number,
            // Whether its WAL is there decides anew.
            state: BackupState::Pending,
            id: meta.id,
        });
    }
    backups.sort_by(|a, b| a.id.cmp(&b.id));
    (backups, found)
}

/// WAL between segments of a timeline that none of them holds.
fn holes(taken: &[WalEntry]) -> Vec<(Generation, TimelineId, Lsn, Lsn)> {
    let mut holes = Vec::new();
    for (before, after) in taken.iter().zip(taken.iter().skip(1)) {
        let same = before.generation == after.generation && before.timeline == after.timeline;
        if same && before.end < after.start {
            holes.push((before.generation, before.timeline, before.end, after.start));
        }
    }
    holes
}

fn timelines(taken: &[WalEntry], backups: &[BackupEntry]) -> BTreeSet<(Generation, TimelineId)> {
    let of_wal = taken.iter().map(|entry| (entry.generation, entry.timeline));
    of_wal.chain(backups.iter().map(|backup| (backup.generation, backup.timeline))).collect()
}

/// Segments that `page` names and nobody found.
pub fn missing(known: &Index, inventory_ids: &HashSet<ObjectId>) -> Vec<ObjectId> {
    let named = known.wal.iter().map(|entry| entry.id).chain(known.pages.iter().map(|entry| entry.id));
    named.filter(|id| !inventory_ids.contains(id)).collect()
}
