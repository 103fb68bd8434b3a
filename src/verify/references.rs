//! What a cluster's newest root leads to: every object is there and of the length that the index says, WAL has no holes but recorded
//! gaps, every backup finds its chunks and its WAL. A damaged object is put to what it costs.

use super::cost::LostWal;
use super::judge::Damaged;
use super::listing::Listed;
use super::needs::{self, Needs};
use super::wal::{Unreadable, epoch_end, epoch_of, key_of};
use super::{Finding, cost};
use crate::base::{BackupId, LsnRange, ObjectKey, SegmentSize};
use crate::format::index::BackupEntry;
use crate::format::root::StreamEntry;
use crate::repo::backups::{is_restorable, needed_wal};
use crate::repo::chain::Lost;
use crate::repo::chunks::{ChunkIndex, ChunkReader, Location};
use crate::repo::cluster::object_is_gone;
use crate::repo::spans::Spans;
use crate::repo::walmap::{Snapshot, WalMap, WalPiece, WalSource};
use crate::repo::{Cluster, RepoError, layout};
use crate::store::StoreError;
use std::collections::{BTreeMap, HashMap, HashSet};

/// What is known of a cluster while it is looked at.
#[derive(Debug)]
pub struct Known<'a> {
    /// The cluster.
    pub cluster: &'a Cluster,
    /// Its newest root, index and WAL.
    pub snapshot: &'a Snapshot,
    /// What a list showed.
    pub listed: &'a Listed,
    /// Its chunks.
    pub chunks: &'a ChunkReader,
    /// What was listed, and was gone when it was to be read.
    pub gone: &'a HashSet<ObjectKey>,
}

impl Known<'_> {
    fn index(&self) -> &ChunkIndex {
        self.chunks.index()
    }

    /// What is wrong with an object that is referred to as one of `len` bytes; takes it out of `damaged`.
    pub async fn wrong(
        &self,
        key: &ObjectKey,
        len: u64,
        damaged: &mut BTreeMap<ObjectKey, Damaged>,
    ) -> Result<Option<Damaged>, RepoError> {
        if let Some(damaged) = damaged.remove(key) {
            return Ok(Some(damaged));
        }
        let found = match self.listed.find(key).filter(|_| !self.gone.contains(key)) {
            Some(meta) => meta.len,
            None => match self.cluster.repo().store().head(key).await {
                Ok(meta) => meta.len,
                Err(StoreError::NotFound { .. }) if self.is_named_still(key).await? => {
                    return Ok(Some("it is gone".to_owned().into()));
                }
                Err(StoreError::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(error.into()),
            },
        };
        Ok((found != len).then(|| format!("{found} bytes, the index says {len}").into()))
    }

    /// Whether the newest root still leads to a segment, a manifest or a flush object: it may have been replaced and collected meanwhile.
    async fn is_named_still(&self, key: &ObjectKey) -> Result<bool, RepoError> {
        let root = self.cluster.newest_root().await?;
        if root.number == self.snapshot.root.number {
            return Ok(true);
        }
        if let Some((id, number)) = layout::parse_flush(key) {
            return Ok(root.streams.iter().any(|stream| stream.id == id && stream.low_water <= number));
        }
        let index = match self.cluster.index(&root).await {
            // Nothing newer says that it was replaced.
            Err(error) if error.is_damage() => return Ok(true),
            index => index?,
        };
        let name = self.cluster.name();
        let segments = index.wal.iter().map(|entry| entry.id).chain(index.pages.iter().map(|entry| entry.id));
        let mut manifests =
            index.backups.iter().map(|backup| layout::manifest(name, &backup.id, backup.manifest_number));
        Ok(segments.map(|id| layout::segment(name, id)).any(|named| named == *key)
            || manifests.any(|named| named == *key))
    }
}

/// Holes between durable ranges that neither a gap explains nor retention.
pub fn holes(
    cluster: &Cluster,
    snapshot: &Snapshot,
    map: &WalMap,
    size: Option<SegmentSize>,
) -> Vec<Finding> {
    let index = &snapshot.index;
    let mut holes = Spans::default();
    for timeline in map.timelines() {
        let ranges = map.ranges(timeline);
        for (before, after) in ranges.iter().zip(ranges.iter().skip(1)) {
            holes.add((map.generation(), timeline), LsnRange::new(before.end, after.start));
        }
    }
    for gap in map.gaps() {
        holes.remove((map.generation(), gap.timeline), LsnRange::new(gap.start, gap.end.max(gap.start)));
    }
    // Told by the objects that held it.
    for chain in map.chains() {
        for (from, to) in chain.lost.iter().filter_map(|lost| Some((lost.from?, lost.to?))) {
            holes.remove((map.generation(), chain.stream.timeline), LsnRange::new(from, to.max(from)));
        }
    }
    for gone in &index.expired {
        holes.remove((gone.generation, gone.timeline), LsnRange::new(gone.start, gone.end.max(gone.start)));
    }
    let finding = |((_, timeline), range): (_, LsnRange)| Finding {
        key: layout::cluster_prefix(cluster.name()),
        reason: format!("no object holds WAL {range} of timeline {timeline}, and no gap is recorded"),
        cost: cost::of_wal(map, &index.backups, size, LostWal { timeline, range }),
        backups: Vec::new(),
    };
    holes.iter().map(finding).collect()
}

/// Flush objects that were durable and are missing or damaged.
pub fn lost_flushes(map: &WalMap, backups: &[BackupEntry], size: Option<SegmentSize>) -> Vec<Finding> {
    let all = map.chains().iter().flat_map(|chain| chain.lost.iter().map(move |lost| (&chain.stream, lost)));
    let finding = |(stream, lost): (&StreamEntry, &Lost)| Finding {
        key: lost.key.to_string(),
        reason: lost.reason.clone(),
        cost: match (lost.from, lost.to) {
            (Some(from), Some(to)) => {
                let range = LsnRange::new(from, to);
                cost::of_wal(map, backups, size, LostWal { timeline: stream.timeline, range })
            }
            (Some(from), None) => format!("WAL of stream {} from {from} on", stream.id),
            (None, _) => format!("the first WAL of stream {}", stream.id),
        },
        backups: Vec::new(),
    };
    all.map(finding).collect()
}

/// Objects of WAL that are wrong, with all that they hold; of an epoch of deltas, with all that follows in it.
pub async fn wal(
    known: &Known<'_>,
    map: &WalMap,
    damaged: &mut BTreeMap<ObjectKey, Damaged>,
) -> Result<Vec<Unreadable>, RepoError> {
    let mut bad = Vec::new();
    let backups: HashSet<&BackupId> = known.snapshot.index.backups.iter().map(|backup| &backup.id).collect();
    for piece in map.pieces() {
        let key = key_of(known.cluster, piece);
        let len = match &piece.source {
            WalSource::Segment(entry) => entry.object_len,
            WalSource::Flush { object_len, .. } => *object_len,
        };
        let wrong = match known.wrong(&key, len, damaged).await? {
            Some(wrong) => wrong.reason,
            None => match missing_base(&backups, piece) {
                Some(reason) => reason,
                None => continue,
            },
        };
        let end = epoch_of(piece).and_then(|epoch| epoch_end(map, piece.timeline, epoch.id));
        bad.push(Unreadable {
            timeline: piece.timeline,
            range: LsnRange::new(
                piece.range.start,
                end.map_or(piece.range.end, |end| end.max(piece.range.end)),
            ),
            key,
            reason: wrong,
            epoch_start: epoch_of(piece).map(|epoch| epoch.start),
        });
    }
    Ok(bad)
}

/// Why a piece cannot be decoded whose images are differences from pages of a backup that is not there.
fn missing_base(backups: &HashSet<&BackupId>, piece: &WalPiece) -> Option<String> {
    let WalSource::Segment(entry) = &piece.source else { return None };
    let base = entry.deltas.as_ref()?.base.as_ref()?;
    (!backups.contains(base))
        .then(|| format!("it needs pages of backup {base}, which the index does not have"))
}

/// Segments of chunks, manifests, and chunks that are in none.
pub async fn backups(
    known: &Known<'_>,
    needs: &Needs,
    damaged: &mut BTreeMap<ObjectKey, Damaged>,
) -> Result<Vec<Finding>, RepoError> {
    let (cluster, index) = (known.cluster, known.index());
    let numbers: HashMap<&ObjectKey, usize> =
        index.segment_keys().enumerate().map(|(at, key)| (key, at)).collect();
    let lost_segments: HashMap<&ObjectKey, &RepoError> =
        index.lost().iter().map(|lost| (&lost.key, &lost.error)).collect();
    let mut bad: BTreeMap<usize, Damaged> = BTreeMap::new();
    let (mut findings, mut lost) = (Vec::new(), Vec::new());
    for entry in &known.snapshot.index.pages {
        let key = layout::segment(cluster.name(), entry.id);
        // One that was gone when its directory was to be read, and that no root leads to any more, was collected.
        let unread = lost_segments.get(&key).filter(|error| !object_is_gone(error));
        let unread = unread.map(|error| Damaged::from(error.to_string()));
        let Some(wrong) = known.wrong(&key, entry.object_len, damaged).await?.or(unread) else { continue };
        match numbers.get(&key) {
            Some(number) => drop(bad.insert(*number, wrong)),
            None => lost.push((key, wrong)),
        }
    }
    let mut hurt: BTreeMap<usize, Vec<BackupId>> = BTreeMap::new();
    for own in needs.backups.iter().filter(|own| bad.keys().any(|at| own.segments.get(*at) == Some(&true))) {
        let is_hurt = |at: Location| {
            let wrong = bad.get(&at.segment_number());
            wrong.is_some_and(|wrong| wrong.frames.is_empty() || wrong.frames.contains(&at.frame_number()))
        };
        match needs::hurt_by(cluster, index, known.chunks, own, &is_hurt).await {
            Ok(segments) => {
                segments.into_iter().for_each(|at| hurt.entry(at).or_default().push(own.id.clone()))
            }
            Err(error) if error.is_damage() => {}
            Err(error) => return Err(error),
        }
    }
    let keys: Vec<&ObjectKey> = index.segment_keys().collect();
    for (number, wrong) in bad {
        let backups = hurt.remove(&number).unwrap_or_default();
        let Some(key) = keys.get(number) else { continue };
        findings.push(Finding {
            key: key.to_string(),
            reason: wrong.reason,
            cost: cost_of_backups(&backups),
            backups,
        });
    }
    // What was in a segment whose directory cannot be read, nobody knows: backups that miss something may miss it from there.
    let missing: Vec<BackupId> = needs.wrong().map(|own| own.id.clone()).collect();
    for (key, wrong) in lost {
        let (cost, backups) = (cost_of_backups(&missing), missing.clone());
        findings.push(Finding { key: key.to_string(), reason: wrong.reason, cost, backups });
    }
    for (backup, own) in known.snapshot.index.backups.iter().zip(&needs.backups) {
        let key = layout::manifest(cluster.name(), &backup.id, backup.manifest_number);
        let mut add = |reason: String| {
            let (cost, backups) = (format!("backup {}", backup.id), vec![backup.id.clone()]);
            findings.push(Finding { key: key.to_string(), reason, cost, backups });
        };
        if let Some(wrong) = known.wrong(&key, backup.manifest_len, damaged).await? {
            add(wrong.reason);
            continue;
        }
        // Removed since the index was read, with what it needs: nobody misses it.
        if (own.broken.is_some() || own.missing > 0) && !known.is_named_still(&key).await? {
            continue;
        }
        if let Some(reason) = &own.broken {
            add(reason.clone());
        }
        if own.missing > 0 {
            add(format!("{} of its chunks are in no segment", own.missing));
        }
    }
    Ok(findings)
}

fn cost_of_backups(backups: &[BackupId]) -> String {
    match backups {
        [] => "nothing: no backup needs what is damaged of it".into(),
        [one] => format!("backup {one}"),
        many => format!("backups {}", many.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    }
}

/// Backups that miss WAL without which they are worth nothing.
pub fn uncovered(
    cluster: &Cluster,
    map: &WalMap,
    backups: &[BackupEntry],
    size: SegmentSize,
    lost: &[Unreadable],
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let own = backups.iter().filter(|backup| backup.generation == map.generation());
    for backup in own.filter(|backup| is_restorable(backup.state)) {
        let needed = needed_wal(backup, size);
        let end = map.contiguous_end(backup.timeline, needed.start);
        let damaged = || {
            let own = lost.iter().filter(|lost| lost.timeline == backup.timeline);
            own.filter_map(|lost| lost.range.intersect(needed)).next()
        };
        let reason = match damaged() {
            _ if end < needed.end => format!("it needs WAL {needed}, which is there only up to {end}"),
            Some(lost) => format!("it needs WAL {lost}, which is damaged"),
            None => continue,
        };
        findings.push(Finding {
            key: layout::manifest(cluster.name(), &backup.id, backup.manifest_number).to_string(),
            reason,
            cost: format!("backup {}", backup.id),
            backups: vec![backup.id.clone()],
        });
    }
    findings
}
