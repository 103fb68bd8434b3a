//! The index as one process knows it that commits again and again: read once, brought up to date with what the process itself adds, and
//! read again when somebody else changed it. So a commit costs what it adds, not what is there.

use super::cluster::Cluster;
use super::error::RepoError;
use super::index::Index;
use crate::base::ObjectId;
use crate::format::index::{IndexPage, RemovedKind};
use crate::format::root::Root;
use std::collections::HashSet;

/// An index, and which. Empty until it is asked for.
#[derive(Debug, Default)]
pub struct IndexCache {
    index: Index,
    /// The newest index object of what `index` is, if it is known at all.
    of: Option<Option<ObjectId>>,
}

impl IndexCache {
    /// The index of `root`: read, unless it is the one that is known.
    pub async fn at(&mut self, cluster: &Cluster, root: &Root) -> Result<&Index, RepoError> {
        if self.of != Some(root.index) {
            self.of = None;
            self.index = cluster.index(root).await?;
            self.of = Some(root.index);
        }
        Ok(&self.index)
    }

    /// `next` was committed, which adds `page` to the index of `base`.
    pub(super) fn added(&mut self, page: IndexPage, base: &Root, next: &Root) {
        if self.of == Some(base.index) {
            add(&mut self.index, page);
            self.of = Some(next.index);
        }
    }
}

/// Makes of `index` what reading it below `page` gives, but for [`Index::objects`].
fn add(index: &mut Index, mut page: IndexPage) {
    let of_kind =
        |kind| page.removed.iter().filter(move |gone| gone.kind == kind).map(|gone| gone.name.clone());
    let (wal, pages): (HashSet<String>, HashSet<String>) =
        (of_kind(RemovedKind::Wal).collect(), of_kind(RemovedKind::Pages).collect());
    let backups: HashSet<String> = of_kind(RemovedKind::Backup).collect();
    if !wal.is_empty() {
        for list in [&mut index.wal, &mut page.wal] {
            list.retain(|entry| !wal.contains(&entry.id.to_string()));
        }
    }
    if !pages.is_empty() {
        for list in [&mut index.pages, &mut page.pages] {
            list.retain(|entry| !pages.contains(&entry.id.to_string()));
        }
    }
    if !backups.is_empty() {
        for list in [&mut index.backups, &mut page.backups] {
            list.retain(|entry| !backups.contains(entry.id.as_str()));
        }
    }
    if !page.removed.is_empty() {
        let again: HashSet<(RemovedKind, &str)> =
            page.removed.iter().map(|gone| (gone.kind, gone.name.as_str())).collect();
        index.removed.retain(|gone| !again.contains(&(gone.kind, gone.name.as_str())));
        index.removed.splice(0..0, page.removed);
    }
    put(&mut index.wal, page.wal, |entry| {
        (entry.generation, entry.timeline, entry.start, entry.end, entry.id)
    });
    put(&mut index.pages, page.pages, |entry| entry.id);
    put(&mut index.backups, page.backups, |entry| entry.id.clone());
    // A gap of which a part was filled begins elsewhere.
    let gaps: HashSet<ObjectId> = page.gaps.iter().map(|gap| gap.id).collect();
    index.gaps.retain(|gap| !gaps.contains(&gap.id));
    put(&mut index.gaps, page.gaps, |gap| (gap.generation, gap.timeline, gap.start, gap.id));
    put(&mut index.histories, page.histories, |history| (history.generation, history.timeline));
    put(&mut index.pins, page.pins, |pin| pin.backup.clone());
    put(&mut index.expired, page.expired, |gone| (gone.generation, gone.timeline, gone.start));
}

/// Puts entries into a list that is in order of `key`, each in the place of the one of the same key, if there is one.
fn put<T, K: Ord>(list: &mut Vec<T>, entries: Vec<T>, key: impl Fn(&T) -> K) {
    let mut fresh = Vec::new();
    for entry in entries {
        let at = list.partition_point(|other| key(other) < key(&entry));
        match list.get_mut(at).filter(|other| key(other) == key(&entry)) {
            Some(other) => *other = entry,
            None => fresh.push(entry),
        }
    }
    fresh.sort_by_key(&key);
    // Nearly always they belong behind all others.
    let in_order = list.last().zip(fresh.first()).is_none_or(|(last, first)| key(last) <= key(first));
    list.extend(fresh);
    if !in_order {
        list.sort_by_key(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Generation, Lsn, TimelineId, Timestamp};
    use crate::format::index::{GapEntry, PagesEntry, RemovedEntry, WalEntry};
    use crate::format::wal::WalSummary;
    use crate::repo::index::{empty_page, merge};

    fn id(rng: &mut fastrand::Rng) -> ObjectId {
        ObjectId([rng.u8(0..40); 16])
    }

    fn page(rng: &mut fastrand::Rng) -> IndexPage {
        let mut page = empty_page();
        for _ in 0..rng.usize(0..6) {
            let id = id(rng);
            // An identity has one place, and is not used for another.
            let start = Lsn::new(u64::from(id.0[0] / 2));
            page.wal.push(WalEntry {
                id,
                generation: Generation(1),
                timeline: TimelineId(1),
                start,
                end: start.saturating_add(5),
                object_len: 1,
                directory_offset: 0,
                server_time: Timestamp::from_micros(rng.i64(0..1000)),
                summary: WalSummary::empty(),
                deltas: None,
            });
        }
        page.wal.sort_by_key(|entry| entry.id);
        page.wal.dedup_by_key(|entry| entry.id);
        if rng.bool() {
            let (id, start) = (id(rng), Lsn::new(rng.u64(0..9)));
            let (generation, timeline) = (Generation(1), TimelineId(1));
            let (recorded_at, reason) = (Timestamp::from_micros(0), String::new());
            page.gaps.push(GapEntry { id, generation, timeline, start, end: start, recorded_at, reason });
            let id = ObjectId([rng.u8(0..40); 16]);
            page.pages.push(PagesEntry {
                id,
                object_len: rng.u64(..),
                directory_offset: 0,
                chunk_count: 1,
                plain_bytes: 1,
            });
        }
        for kind in [RemovedKind::Wal, RemovedKind::Pages, RemovedKind::Chunks] {
            if rng.u8(0..3) == 0 {
                page.removed.push(RemovedEntry { kind, name: id(rng).to_string(), root: rng.u64(..) });
            }
        }
        page
    }

    /// Against merging everything that was ever added.
    #[test]
    fn what_is_added_makes_of_it_what_reading_it_again_would_give() {
        let mut rng = fastrand::Rng::with_seed(11);
        for _ in 0..50 {
            let (mut index, mut all) = (Index::default(), Vec::new());
            for _ in 0..30 {
                let next = page(&mut rng);
                all.insert(0, next.clone());
                add(&mut index, next);
                assert_eq!(index.clone().into_page(), merge(all.clone()).into_page());
            }
        }
    }
}
