//! What an index can be made of when it is damaged or gone: the directories of segments, manifests, and index objects that can still
//! be read. Pure. Spec: formats/index.md ("When it is lost").
//!
//! What an index object names stays named: also what does not open now. Only what is not there any more leaves, and is told.
//!
//! Exact: what compacted WAL and segments of chunks say of themselves. From manifests, but for figures that only people look at. Not at
//! all: removals, pins, recorded gaps and timeline histories that no readable index object has.

use super::cover::{Candidate, choose};
use crate::base::{BackupId, Generation, LsnRange, ObjectId, TimelineId, Timestamp};
use crate::format::index::{
    BackupEntry, GapEntry, HistoryEntry, IndexPage, PagesEntry, RemovedEntry, RemovedKind, WalEntry,
    without_relations,
};
use crate::format::manifest::ManifestMeta;
use crate::format::root::Root;
use crate::format::wal::WalMeta;
use crate::repo::backups::entry_of;
use crate::repo::index::empty_page;
use crate::repo::spans::Spans;
use crate::repo::{Index, layout};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

type Place = (Generation, TimelineId);

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

/// A manifest object as it lies there.
#[derive(Debug, Clone)]
pub struct FoundManifest {
    /// Its number: 0, or that under which it was sealed anew.
    pub number: u32,
    /// Its bytes.
    pub object_len: u64,
    /// What it says.
    pub meta: ManifestMeta,
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
    /// Manifest objects.
    pub manifests: Vec<FoundManifest>,
    /// Segments that are there and do not open, but for those that are to be left out.
    pub closed_segments: HashSet<ObjectId>,
    /// Manifest objects that are there and do not open, but for those that are to be left out.
    pub closed_manifests: HashSet<(BackupId, u32)>,
    /// WAL in flush objects that are not compacted.
    pub held: Spans,
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
    /// What a readable index object names and is not there: the last part of its name. It was collected, or it is lost; but for segments
    /// of WAL that others hold or that expired.
    pub gone: Vec<String>,
    /// Whether segments of chunks are among that.
    pub pages_gone: bool,
    /// What cannot be had any more, beside what is gone.
    pub losses: Vec<String>,
    /// What somebody has to know.
    pub notes: Vec<String>,
}

impl Rebuilt {
    fn of(page: IndexPage) -> Rebuilt {
        Rebuilt {
            page,
            left_out: Vec::new(),
            backups_found: Vec::new(),
            gone: Vec::new(),
            pages_gone: false,
            losses: Vec::new(),
            notes: Vec::new(),
        }
    }
}

/// An index that can be read, as one object: nothing else is asked, since it alone says what was removed and unpinned.
pub fn as_it_is(index: Index) -> Rebuilt {
    let expired = Spans::expired(&index.expired).to_expired();
    Rebuilt::of(IndexPage { expired, ..index.into_page() })
}

/// Puts an index together. `gap_id` draws the ids of gaps that are recorded anew, at `now`.
pub fn rebuild(
    root: &Root,
    inventory: Inventory,
    now: Timestamp,
    mut gap_id: impl FnMut() -> ObjectId,
) -> Rebuilt {
    let Inventory { mut known, wal, pages, manifests, closed_segments, closed_manifests, held } = inventory;
    let removed = removed_of(&mut known);
    let hidden: HashSet<(RemovedKind, &str)> =
        removed.iter().map(|entry| (entry.kind, entry.name.as_str())).collect();
    let mut rebuilt = Rebuilt::of(empty_page());
    let known_wal = std::mem::take(&mut known.wal);
    let wal = wal.into_iter().filter(|found| !hidden.contains(&(RemovedKind::Wal, &*found.id.to_string())));
    let (taken, wal_gone) = wal_of(known_wal, wal.collect(), &closed_segments, &held, &mut rebuilt);
    rebuilt.page.wal = taken;
    let known_pages = std::mem::take(&mut known.pages);
    let pages =
        pages.into_iter().filter(|found| !hidden.contains(&(RemovedKind::Pages, &*found.id.to_string())));
    rebuilt.page.pages = pages_of(known_pages, pages.collect(), &closed_segments, &mut rebuilt);
    let shown = |manifest: &FoundManifest| {
        let name = layout::manifest_name(&manifest.meta.id, manifest.number);
        !hidden.contains(&(RemovedKind::Backup, manifest.meta.id.as_str()))
            && !hidden.contains(&(RemovedKind::Manifest, &*name))
    };
    let manifests: Vec<FoundManifest> = manifests.into_iter().filter(shown).collect();
    let known_backups = std::mem::take(&mut known.backups);
    rebuilt.page.backups = backups_of(root, known_backups, manifests, &closed_manifests, &mut rebuilt);
    let mut there = held;
    for entry in &rebuilt.page.wal {
        there.add((entry.generation, entry.timeline), range_of(entry));
    }
    let mut expired = Spans::expired(&known.expired);
    let mut explained = there.clone();
    expired.iter().for_each(|(place, range)| explained.add(place, range));
    let lost = wal_gone
        .iter()
        .filter(|entry| !explained.covers((entry.generation, entry.timeline), range_of(entry)));
    rebuilt.gone.splice(0..0, lost.map(|entry| entry.id.to_string()));
    there.iter().for_each(|(place, range)| expired.remove(place, range));
    rebuilt.page.gaps = std::mem::take(&mut known.gaps);
    for ((generation, timeline), hole) in holes(&there, &rebuilt.page.gaps, &expired) {
        let (start, end) = (hole.start, hole.end);
        let loss = format!("no object holds WAL {hole} of timeline {timeline}: recorded as a gap");
        rebuilt.losses.push(loss);
        let reason = "no object held it when the index was made anew".to_owned();
        let id = gap_id();
        let gap = GapEntry { id, generation, timeline, start, end, recorded_at: now, reason };
        rebuilt.page.gaps.push(gap);
    }
    for (generation, timeline) in timelines(&there, &rebuilt.page.backups) {
        let own = |history: &HistoryEntry| (history.generation, history.timeline) == (generation, timeline);
        if timeline > TimelineId(1) && !known.histories.iter().any(own) {
            rebuilt.notes.push(format!(
                "the history of timeline {timeline} is not known: a receiver that connects to the server stores it again; until then \
                 nothing before timeline {timeline} leads to it"
            ));
        }
    }
    rebuilt.page.histories = known.histories;
    rebuilt.page.pins = known.pins;
    rebuilt.page.expired = expired.to_expired();
    rebuilt.page.removed = removed;
    rebuilt
}

/// What is removed, but for what the index has all the same: then an older one of its objects removed it, and the newer word counts.
fn removed_of(known: &mut Index) -> Vec<RemovedEntry> {
    let mut removed = std::mem::take(&mut known.removed);
    let names: HashSet<&str> = removed.iter().map(|entry| entry.name.as_str()).collect();
    let segments = known.wal.iter().map(|entry| (RemovedKind::Wal, entry.id.to_string()));
    let segments = segments.chain(known.pages.iter().map(|entry| (RemovedKind::Pages, entry.id.to_string())));
    let backups = known.backups.iter().flat_map(|backup| {
        let manifest = layout::manifest_name(&backup.id, backup.manifest_number);
        let id = backup.id.to_string();
        [(RemovedKind::Backup, id.clone()), (RemovedKind::Chunks, id), (RemovedKind::Manifest, manifest)]
    });
    let live: HashSet<(RemovedKind, String)> =
        segments.chain(backups).filter(|(_, name)| names.contains(name.as_str())).collect();
    removed.retain(|entry| !live.contains(&(entry.kind, entry.name.clone())));
    removed
}

fn range_of(entry: &WalEntry) -> LsnRange {
    LsnRange::new(entry.start, entry.end.max(entry.start))
}

/// The entries of WAL to take, and those that are known and not there.
fn wal_of(
    known: Vec<WalEntry>,
    found: Vec<Found<WalMeta>>,
    closed: &HashSet<ObjectId>,
    held: &Spans,
    rebuilt: &mut Rebuilt,
) -> (Vec<WalEntry>, Vec<WalEntry>) {
    let mut gone = Vec::new();
    let mut found: BTreeMap<ObjectId, Found<WalMeta>> =
        found.into_iter().map(|found| (found.id, found)).collect();
    let mut by_place: BTreeMap<Place, Vec<Candidate>> = BTreeMap::new();
    let mut add = |candidate: Candidate| {
        let place = (candidate.entry.generation, candidate.entry.timeline);
        by_place.entry(place).or_default().push(candidate);
    };
    for entry in known {
        let readable = found.remove(&entry.id).is_some();
        if readable || closed.contains(&entry.id) {
            add(Candidate { entry, known: true, readable });
        } else {
            gone.push(entry);
        }
    }
    for found in found.into_values() {
        add(Candidate { entry: wal_entry(found), known: false, readable: true });
    }
    let mut taken = Vec::new();
    for candidates in by_place.into_values() {
        let (chosen, rest) = choose(candidates, held);
        taken.extend(chosen.into_iter().map(|candidate| candidate.entry));
        rebuilt.left_out.extend(rest.into_iter().map(|candidate| candidate.entry.id));
    }
    (taken, gone)
}

fn wal_entry(found: Found<WalMeta>) -> WalEntry {
    let meta = found.what;
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
        deltas: meta.deltas,
    }
}

fn pages_of(
    known: Vec<PagesEntry>,
    found: Vec<Found<Chunks>>,
    closed: &HashSet<ObjectId>,
    rebuilt: &mut Rebuilt,
) -> Vec<PagesEntry> {
    let mut pages: BTreeMap<ObjectId, PagesEntry> = found
        .into_iter()
        .map(|found| {
            let entry = PagesEntry {
                id: found.id,
                object_len: found.object_len,
                directory_offset: found.directory_offset,
                chunk_count: found.what.count,
                plain_bytes: found.what.plain_bytes,
            };
            (entry.id, entry)
        })
        .collect();
    for entry in known {
        if pages.contains_key(&entry.id) || closed.contains(&entry.id) {
            pages.insert(entry.id, entry);
        } else {
            rebuilt.gone.push(entry.id.to_string());
            rebuilt.pages_gone = true;
        }
    }
    pages.into_values().collect()
}

fn backups_of(
    root: &Root,
    known: Vec<BackupEntry>,
    manifests: Vec<FoundManifest>,
    closed: &HashSet<(BackupId, u32)>,
    rebuilt: &mut Rebuilt,
) -> Vec<BackupEntry> {
    let mut found: HashMap<BackupId, BTreeMap<u32, FoundManifest>> = HashMap::new();
    for manifest in manifests {
        found.entry(manifest.meta.id.clone()).or_default().insert(manifest.number, manifest);
    }
    let mut backups = Vec::new();
    for mut entry in known {
        let objects = found.remove(&entry.id).unwrap_or_default();
        let newest = objects.values().next_back();
        match newest {
            // An object of another number: it was sealed anew in a root whose index is lost.
            Some(newest) if !objects.contains_key(&entry.manifest_number) => {
                let (before, now) = (entry.manifest_number, newest.number);
                (entry.manifest_number, entry.manifest_len) = (now, newest.object_len);
                let (before, now) =
                    (layout::manifest_name(&entry.id, before), layout::manifest_name(&entry.id, now));
                rebuilt.notes.push(format!("manifest {before} cannot be had: {now} takes its place"));
            }
            Some(_) => {}
            None if closed.contains(&(entry.id.clone(), entry.manifest_number)) => {}
            None => {
                rebuilt.gone.push(layout::manifest_name(&entry.id, entry.manifest_number));
                continue;
            }
        }
        backups.push(entry);
    }
    for objects in found.into_values() {
        if let Some((_, newest)) = objects.into_iter().next_back() {
            rebuilt.backups_found.push(newest.meta.id.clone());
            backups.push(backup_entry(root, &newest));
        }
    }
    rebuilt.backups_found.sort();
    backups.sort_by(|a, b| a.id.cmp(&b.id));
    backups
}

/// No epoch of deltas that is there now goes on: whether it began before the backup nobody knows. Whether its WAL is there decides anew.
fn backup_entry(root: &Root, found: &FoundManifest) -> BackupEntry {
    entry_of(&found.meta, (found.number, found.object_len), root.number)
}

/// WAL between the first and the last byte of a timeline that nothing holds, and that nothing explains.
fn holes(there: &Spans, gaps: &[GapEntry], expired: &Spans) -> Vec<(Place, LsnRange)> {
    let mut holes = Spans::default();
    there.hulls().for_each(|(place, hull)| holes.add(place, hull));
    there.iter().for_each(|(place, range)| holes.remove(place, range));
    expired.iter().for_each(|(place, range)| holes.remove(place, range));
    for gap in gaps {
        holes.remove((gap.generation, gap.timeline), LsnRange::new(gap.start, gap.end.max(gap.start)));
    }
    holes.iter().collect()
}

fn timelines(there: &Spans, backups: &[BackupEntry]) -> BTreeSet<Place> {
    let of_wal = there.iter().map(|(place, _)| place);
    of_wal.chain(backups.iter().map(|backup| (backup.generation, backup.timeline))).collect()
}

#[cfg(test)]
mod tests;
