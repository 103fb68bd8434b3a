//! The index as read and as written: levels of index objects, the newest first. Spec: formats/index.md.
//! A commit writes one new object with its entries and those of small levels below it, so that levels stay few
//! and each entry is rewritten a logarithmic number of times.

use super::cluster::Cluster;
use super::error::RepoError;
use super::layout;
use crate::base::{BackupId, Generation, Lsn, ObjectId, ObjectKey, TimelineId};
use crate::format::header::ObjectKind;
use crate::format::index::{
    BackupEntry, ExpiredEntry, GapEntry, HistoryEntry, IndexLevel, IndexMeta, IndexPage, PagesEntry,
    PinEntry, RemovedEntry, RemovedKind, WalEntry,
};
use crate::format::record::{Field, Record, stored};
use std::collections::{BTreeMap, HashMap, HashSet};

/// A level is merged into the new object unless it has this many times its entries.
const LEVEL_RATIO: u64 = 2;
/// Entries in one frame of an index object.
const PAGE_ENTRIES: usize = 1024;
/// Bytes of entries in one frame, unless a single one is longer.
const PAGE_BYTES: usize = 4 << 20;

/// What a commit does to the index.
#[derive(Debug)]
pub enum IndexEdit {
    /// Nothing.
    Keep,
    /// Adds entries and removals on top.
    Add(IndexPage),
    /// Replaces everything.
    Rewrite(IndexPage),
}

/// Everything the index says, merged.
#[derive(Debug, Default, Clone)]
pub struct Index {
    /// Compacted WAL, by generation, timeline and start.
    pub wal: Vec<WalEntry>,
    /// Segments of chunks, by id.
    pub pages: Vec<PagesEntry>,
    /// Backups, by id.
    pub backups: Vec<BackupEntry>,
    /// Gaps, by generation, timeline and start.
    pub gaps: Vec<GapEntry>,
    /// Timeline histories, by generation and timeline.
    pub histories: Vec<HistoryEntry>,
    /// Backups that the operator keeps, by backup.
    pub pins: Vec<PinEntry>,
    /// WAL that retention let go, by generation, timeline and start.
    pub expired: Vec<ExpiredEntry>,
    /// What is gone and not yet collected.
    pub removed: Vec<RemovedEntry>,
    /// The index objects read, newest first.
    pub objects: Vec<ObjectId>,
}

impl Index {
    /// A backup by its id.
    pub fn backup(&self, id: &BackupId) -> Option<&BackupEntry> {
        self.backups.iter().find(|backup| backup.id == *id)
    }

    /// Everything, as the entries of a rewritten index.
    pub fn into_page(self) -> IndexPage {
        IndexPage {
            wal: self.wal,
            pages: self.pages,
            backups: self.backups,
            gaps: self.gaps,
            histories: self.histories,
            pins: self.pins,
            expired: self.expired,
            removed: self.removed,
        }
    }
}

/// A page without entries.
pub fn empty_page() -> IndexPage {
    Index::default().into_page()
}

/// Reads the index under its newest object.
pub async fn load(cluster: &Cluster, newest: Option<ObjectId>) -> Result<Index, RepoError> {
    let mut merged = Merge::default();
    let mut objects = Vec::new();
    if let Some(id) = newest {
        let (meta, page) = read_object(cluster, id).await?;
        objects.push(id);
        merged.add_older(page);
        for level in &meta.levels {
            // A level lists its own lower levels too, but the newest object's list is the whole of it.
            let (_, page) = read_object(cluster, level.id).await?;
            objects.push(level.id);
            merged.add_older(page);
        }
    }
    Ok(Index { objects, ..merged.finish() })
}

/// Writes what `edit` makes of the index under `newest`; returns the object to put into the root.
pub async fn write(
    cluster: &Cluster,
    newest: Option<ObjectId>,
    edit: IndexEdit,
    root_number: u64,
) -> Result<Option<ObjectId>, RepoError> {
    let (mut merged, levels) = match edit {
        IndexEdit::Keep => return Ok(newest),
        IndexEdit::Rewrite(page) => (Merge::with(page), Vec::new()),
        IndexEdit::Add(page) => {
            let merged = Merge::with(page);
            match newest {
                None => (merged, Vec::new()),
                Some(id) => {
                    let (meta, page) = read_object(cluster, id).await?;
                    let own = IndexLevel { id, entry_count: meta.entry_count };
                    absorb(cluster, merged, own, page, meta.levels).await?
                }
            }
        }
    };
    let page = std::mem::take(&mut merged).finish().into_page();
    let id = ObjectId::random(&*cluster.repo().env().entropy);
    let key = layout::index(cluster.name(), id);
    let mut writer = cluster.repo().writer(ObjectKind::Index, &key, id.0, root_number, 0);
    let mut entry_count = 0;
    for part in split(page) {
        entry_count += count(&part);
        let plain = part.encode();
        let chunk = cluster.repo().chunk_id(&plain);
        writer.add(&plain, chunk, 0);
    }
    let meta = IndexMeta { levels, entry_count, extensions: Vec::new() };
    cluster.repo().create_own(&key, &writer.finish(meta.encode()).bytes).await?;
    Ok(Some(id))
}

/// Merges levels into `merged`, newest first, while they are small beside it; returns those that stay.
async fn absorb(
    cluster: &Cluster,
    mut merged: Merge,
    newest: IndexLevel,
    newest_page: IndexPage,
    older: Vec<IndexLevel>,
) -> Result<(Merge, Vec<IndexLevel>), RepoError> {
    if newest.entry_count > merged.count() * LEVEL_RATIO {
        return Ok((merged, std::iter::once(newest).chain(older).collect()));
    }
    merged.add_older(newest_page);
    let mut older = older.into_iter();
    while let Some(level) = older.next() {
        if level.entry_count > merged.count() * LEVEL_RATIO {
            return Ok((merged, std::iter::once(level).chain(older).collect()));
        }
        let (_, page) = read_object(cluster, level.id).await?;
        merged.add_older(page);
    }
    Ok((merged, Vec::new()))
}

/// One index object itself.
#[derive(Debug)]
pub struct IndexObject {
    /// The root that it was made for.
    pub root: u64,
    /// The older index objects that it names.
    pub levels: Vec<ObjectId>,
    /// Its entries.
    pub page: IndexPage,
}

/// Reads one index object, without those that it names.
pub async fn read_one(cluster: &Cluster, id: ObjectId) -> Result<IndexObject, RepoError> {
    let key = layout::index(cluster.name(), id);
    let root = cluster.repo().read_object(&key, ObjectKind::Index).await?.header().number;
    let (meta, page) = read_object(cluster, id).await?;
    Ok(IndexObject { root, levels: meta.levels.iter().map(|level| level.id).collect(), page })
}

/// Entries of several index objects, newest first, as one.
pub fn merge(pages: Vec<IndexPage>) -> Index {
    let mut merged = Merge::default();
    pages.into_iter().for_each(|page| merged.add_older(page));
    merged.finish()
}

async fn read_object(cluster: &Cluster, id: ObjectId) -> Result<(IndexMeta, IndexPage), RepoError> {
    let key = layout::index(cluster.name(), id);
    let object = cluster.repo().read_object(&key, ObjectKind::Index).await?;
    if object.header().owner != id.0 {
        return Err(RepoError::damage(&key, "its header names another index object"));
    }
    let meta: IndexMeta = object.meta().map_err(|error| RepoError::open(&key, error))?;
    let mut whole = empty_page();
    for number in 0..object.directory().frames.len() {
        let page = read_page(&key, &object, number, cluster)?;
        whole.wal.extend(page.wal);
        whole.pages.extend(page.pages);
        whole.backups.extend(page.backups);
        whole.gaps.extend(page.gaps);
        whole.histories.extend(page.histories);
        whole.pins.extend(page.pins);
        whole.expired.extend(page.expired);
        whole.removed.extend(page.removed);
    }
    if count(&whole) != meta.entry_count {
        let found = format!("{} entries, its directory says {}", count(&whole), meta.entry_count);
        return Err(RepoError::damage(&key, found));
    }
    Ok((meta, whole))
}

fn read_page(
    key: &ObjectKey,
    object: &crate::codec::object::OpenObject,
    number: usize,
    cluster: &Cluster,
) -> Result<IndexPage, RepoError> {
    let plain = object.chunk(number, &*cluster.repo().keys()).map_err(|error| RepoError::open(key, error))?;
    IndexPage::decode(&plain).map_err(|error| RepoError::damage(key, error))
}

fn count(page: &IndexPage) -> u64 {
    (page.wal.len()
        + page.pages.len()
        + page.backups.len()
        + page.gaps.len()
        + page.histories.len()
        + page.pins.len()
        + page.expired.len()
        + page.removed.len()) as u64
}

/// Cuts a page into pages of bounded size, one list each. By bytes too: a summary with many events is long.
fn split(page: IndexPage) -> Vec<IndexPage> {
    fn cut<T: Clone + Field>(list: &[T], pages: &mut Vec<IndexPage>, set: impl Fn(&mut IndexPage, Vec<T>)) {
        let mut put = |part: Vec<T>| {
            if !part.is_empty() {
                let mut page = empty_page();
                set(&mut page, part);
                pages.push(page);
            }
        };
        let (mut part, mut bytes) = (Vec::new(), 0);
        for entry in list {
            let len = stored(entry).len();
            if part.len() == PAGE_ENTRIES || bytes + len > PAGE_BYTES {
                put(std::mem::take(&mut part));
                bytes = 0;
            }
            part.push(entry.clone());
            bytes += len;
        }
        put(part);
    }
    let mut pages = Vec::new();
    cut(&page.wal, &mut pages, |page, part| page.wal = part);
    cut(&page.pages, &mut pages, |page, part| page.pages = part);
    cut(&page.backups, &mut pages, |page, part| page.backups = part);
    cut(&page.gaps, &mut pages, |page, part| page.gaps = part);
    cut(&page.histories, &mut pages, |page, part| page.histories = part);
    cut(&page.pins, &mut pages, |page, part| page.pins = part);
    cut(&page.expired, &mut pages, |page, part| page.expired = part);
    cut(&page.removed, &mut pages, |page, part| page.removed = part);
    pages
}

/// Levels merged, the newest first: what came first stays.
#[derive(Debug, Default)]
struct Merge {
    wal: HashMap<ObjectId, WalEntry>,
    pages: HashMap<ObjectId, PagesEntry>,
    backups: BTreeMap<BackupId, BackupEntry>,
    gaps: HashMap<ObjectId, GapEntry>,
    histories: HashMap<(u32, u32), HistoryEntry>,
    pins: BTreeMap<BackupId, PinEntry>,
    expired: BTreeMap<(Generation, TimelineId, Lsn), ExpiredEntry>,
    removed: Vec<RemovedEntry>,
    gone: HashSet<(RemovedKind, String)>,
}

impl Merge {
    fn with(page: IndexPage) -> Self {
        let mut merge = Merge::default();
        merge.add_older(page);
        merge
    }

    fn add_older(&mut self, page: IndexPage) {
        let gone = |kind: RemovedKind, name: &str, set: &HashSet<(RemovedKind, String)>| {
            set.contains(&(kind, name.to_owned()))
        };
        // Removals of a page hide what older pages say, and its own additions win over its own removals never:
        // an identity is random or a time, and is not used again.
        for removed in page.removed {
            if self.gone.insert((removed.kind, removed.name.clone())) {
                self.removed.push(removed);
            }
        }
        for entry in page.wal {
            if !gone(RemovedKind::Wal, &entry.id.to_string(), &self.gone) {
                self.wal.entry(entry.id).or_insert(entry);
            }
        }
        for entry in page.pages {
            if !gone(RemovedKind::Pages, &entry.id.to_string(), &self.gone) {
                self.pages.entry(entry.id).or_insert(entry);
            }
        }
        for entry in page.backups {
            if !gone(RemovedKind::Backup, entry.id.as_str(), &self.gone) {
                self.backups.entry(entry.id.clone()).or_insert(entry);
            }
        }
        for entry in page.gaps {
            self.gaps.entry(entry.id).or_insert(entry);
        }
        for entry in page.histories {
            self.histories.entry((entry.generation.0, entry.timeline.0)).or_insert(entry);
        }
        for entry in page.pins {
            self.pins.entry(entry.backup.clone()).or_insert(entry);
        }
        for entry in page.expired {
            self.expired.entry((entry.generation, entry.timeline, entry.start)).or_insert(entry);
        }
    }

    fn count(&self) -> u64 {
        (self.wal.len()
            + self.pages.len()
            + self.backups.len()
            + self.gaps.len()
            + self.histories.len()
            + self.pins.len()
            + self.expired.len()
            + self.removed.len()) as u64
    }

    fn finish(self) -> Index {
        let mut wal: Vec<WalEntry> = self.wal.into_values().collect();
        wal.sort_by_key(|e| (e.generation, e.timeline, e.start, e.end, e.id));
        let mut pages: Vec<PagesEntry> = self.pages.into_values().collect();
        pages.sort_by_key(|e| e.id);
        let mut gaps: Vec<GapEntry> = self.gaps.into_values().collect();
        gaps.sort_by_key(|e| (e.generation, e.timeline, e.start, e.id));
        let mut histories: Vec<HistoryEntry> = self.histories.into_values().collect();
        histories.sort_by_key(|e| (e.generation, e.timeline));
        Index {
            wal,
            pages,
            backups: self.backups.into_values().collect(),
            gaps,
            histories,
            pins: self.pins.into_values().collect(),
            expired: self.expired.into_values().collect(),
            removed: self.removed,
            objects: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages_entry(id: u8) -> PagesEntry {
        PagesEntry {
            id: ObjectId([id; 16]),
            object_len: 1,
            directory_offset: 0,
            chunk_count: 1,
            plain_bytes: 1,
        }
    }

    #[test]
    fn a_newer_removal_hides_an_older_entry_and_keeps_the_others() {
        let mut newer = empty_page();
        let name = ObjectId([1; 16]).to_string();
        newer.removed.push(RemovedEntry { kind: RemovedKind::Pages, name, root: 9 });
        let mut older = empty_page();
        older.pages = vec![pages_entry(1), pages_entry(2)];
        let mut merge = Merge::with(newer);
        merge.add_older(older);
        let index = merge.finish();
        assert_eq!(index.pages, vec![pages_entry(2)]);
        assert_eq!(index.removed.len(), 1);
    }

    #[test]
    fn splits_long_lists_and_loses_nothing() {
        let mut page = empty_page();
        page.pages = (0..=255).cycle().take(PAGE_ENTRIES * 2 + 1).map(pages_entry).collect();
        let parts = split(page.clone());
        assert_eq!(parts.len(), 3);
        assert_eq!(parts.iter().map(count).sum::<u64>(), count(&page));
    }

    #[test]
    fn splits_few_long_entries_by_their_bytes() {
        let mut page = empty_page();
        page.gaps = (0..10)
            .map(|id| GapEntry {
                id: ObjectId([id; 16]),
                generation: crate::base::Generation(1),
                timeline: crate::base::TimelineId(1),
                start: crate::base::Lsn::new(1),
                end: crate::base::Lsn::new(2),
                recorded_at: crate::base::Timestamp::from_micros(0),
                reason: "x".repeat(PAGE_BYTES / 3),
            })
            .collect();
        let parts = split(page.clone());
        assert_eq!(parts.iter().map(|part| part.gaps.len()).collect::<Vec<_>>(), [2, 2, 2, 2, 2]);
        assert!(parts.iter().all(|part| part.encode().len() < PAGE_BYTES + 1024));
    }
}
