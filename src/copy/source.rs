//! What is copied, as it is at one moment: index, generations, and the WAL of each.

use super::lost::Losses;
use crate::base::{Generation, Lsn, SegmentSize, TimelineId, Timestamp};
use crate::format::index::{BackupEntry, BackupState};
use crate::format::root::{GenerationRecord, Root};
use crate::repo::backups::{needed_wal, state_now};
use crate::repo::lineage::Lineage;
use crate::repo::walmap;
use crate::repo::{Cluster, Index, RepoError, WalMap, layout};
use crate::wal::TimelineHistory;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Generation and timeline.
pub type Place = (Generation, TimelineId);

/// One generation.
#[derive(Debug)]
pub struct Era {
    /// Its record.
    pub record: GenerationRecord,
    /// The size of its WAL segments.
    pub size: SegmentSize,
    /// Its WAL.
    pub wal: Arc<WalMap>,
}

/// A cluster at one moment.
#[derive(Debug)]
pub struct View {
    /// The root.
    pub root: Root,
    /// Its index.
    pub index: Index,
    /// Every generation of which anything is stored.
    pub eras: BTreeMap<Generation, Era>,
}

/// Whoever opened the cluster before it was deleted sees an empty one, not a whole one.
pub fn refuse_deleted(cluster: &Cluster, root: &Root) -> Result<(), RepoError> {
    match root.deleted_at {
        Some(at) => Err(RepoError::Deleted { cluster: cluster.name().to_string(), at }),
        None => Ok(()),
    }
}

impl View {
    /// Reads it. [`RepoError::Deleted`] when it was deleted meanwhile.
    pub async fn read(cluster: &Cluster) -> Result<View, RepoError> {
        let snapshot = walmap::load(cluster).await?;
        let (root, index) = (snapshot.root.clone(), snapshot.index.clone());
        refuse_deleted(cluster, &root)?;
        let mut numbers = BTreeSet::from([root.generation]);
        numbers.extend(index.wal.iter().map(|entry| entry.generation));
        numbers.extend(index.backups.iter().map(|backup| backup.generation));
        numbers.extend(root.streams.iter().map(|stream| stream.generation));
        let mut eras = BTreeMap::new();
        for generation in numbers {
            let record = cluster.read_generation(generation).await?;
            let size = SegmentSize::new(u64::from(record.segment_size))
                .map_err(|error| RepoError::Configuration { reason: error.to_string() })?;
            let wal = if generation == root.generation {
                snapshot.wal.clone()
            } else {
                snapshot.clone().with_generation(cluster, generation).await?.wal
            };
            eras.insert(generation, Era { record, size, wal });
        }
        Ok(View { root, index, eras })
    }

    /// Takes out WAL that was found to be lost.
    pub fn leave_out(&mut self, lost: &Losses) {
        for (generation, era) in &mut self.eras {
            if lost.has_any_of(*generation) {
                era.wal = Arc::new(era.wal.without(|piece| lost.has(piece)));
            }
        }
    }

    /// What `backup` is now.
    pub fn state(&self, backup: &BackupEntry) -> BackupState {
        let era = self.eras.get(&backup.generation);
        era.map_or(BackupState::Pending, |era| state_now(backup, &era.wal, era.size))
    }

    /// The WAL without which `backup` is worth nothing.
    pub fn needed(&self, backup: &BackupEntry) -> Option<crate::base::LsnRange> {
        self.eras.get(&backup.generation).map(|era| needed_wal(backup, era.size))
    }

    /// The timelines of `generation` and where they left each other.
    pub fn lineage(&self, generation: Generation) -> Lineage {
        let mut lineage = Lineage::default();
        for history in self.index.histories.iter().filter(|history| history.generation == generation) {
            // One that makes no sense leads nowhere; it is copied all the same.
            if let Ok(parsed) = TimelineHistory::parse(history.timeline, &history.content.0) {
                let parents = parsed.switches().iter().map(|switch| (switch.timeline, switch.at)).collect();
                lineage.insert(history.timeline, parents);
            }
        }
        lineage
    }

    /// The objects that its index leads to. What was read of a view whose objects are others now may have moved.
    pub fn objects(&self) -> BTreeSet<String> {
        let segments =
            self.index.wal.iter().map(|entry| entry.id).chain(self.index.pages.iter().map(|entry| entry.id));
        let manifests =
            self.index.backups.iter().map(|backup| layout::manifest_name(&backup.id, backup.manifest_number));
        segments.map(|id| id.to_string()).chain(manifests).collect()
    }

    /// The server's clock at which everything up to an end of WAL had been sent, the newest that is known: by the object that ends there,
    /// or by heartbeats, which move the time alone.
    pub fn moments(&self) -> HashMap<(Place, Lsn), Timestamp> {
        let mut moments: HashMap<(Place, Lsn), Timestamp> = HashMap::new();
        for (generation, era) in &self.eras {
            let pieces =
                era.wal.pieces().iter().map(|piece| (piece.timeline, piece.range.end, piece.server_time));
            let objects = era.wal.chains().iter().flat_map(|chain| &chain.objects).map(|object| &object.meta);
            let sent = objects.map(|meta| (meta.timeline, meta.end, meta.server_time));
            for (timeline, end, at) in pieces.chain(sent) {
                let known = moments.entry(((*generation, timeline), end)).or_insert(at);
                *known = at.max(*known);
            }
        }
        moments
    }
}
