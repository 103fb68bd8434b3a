//! What a cluster's newest root leads to: index, chains, directories, and what of the WAL is to be decoded.

use super::judge::{Damaged, Expected, Suspect};
use super::listing::Listed;
use super::needs::Needs;
use super::references::{self, Known};
use super::turn::{EpochItem, Turn};
use super::wal::{self, Decoded, Unit, Unreadable, epoch_of, key_of};
use super::{Depth, Finding, cost, pages};
use crate::base::{BackupId, Generation, ObjectId, ObjectKey, Progress, SegmentSize};
use crate::format::index::BackupEntry;
use crate::repo::backups::state_now;
use crate::repo::chunks::{ChunkIndex, ChunkReader};
use crate::repo::cluster::object_is_gone;
use crate::repo::walmap::{self, Snapshot, WalMap, WalPiece, WalSource};
use crate::repo::{Cluster, Index, RepoError, layout};
use crate::store::StoreError;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

/// Threads that decode manifests' pages.
const THREADS: usize = 2;
/// Times a look begins anew because retention let go of what it was looking at, or compaction and collection moved it.
const RELOADS_MAX: u32 = 5;

/// One generation of a cluster.
#[derive(Debug)]
pub(super) struct GenerationWal {
    pub map: Arc<WalMap>,
    pub size: Option<SegmentSize>,
}

/// What a cluster's newest root leads to.
#[derive(Debug)]
pub(super) struct Looked {
    pub cluster: Cluster,
    pub snapshot: Snapshot,
    pub generations: Vec<GenerationWal>,
    pub chunks: ChunkReader,
}

/// What looking at WAL gave.
#[derive(Debug, Default)]
pub(super) struct WalLooked {
    pub findings: Vec<Finding>,
    pub decoded: Decoded,
}

/// [`look_once`], with what backups need; again while something of that is wrong and a newer root may have moved it.
///
/// # Errors
/// As [`look_once`].
pub(super) async fn look(
    handle: &Cluster,
    findings: &mut Vec<Finding>,
) -> Result<Option<(Looked, Needs)>, RepoError> {
    let mut wrong_before = Vec::new();
    for tries in 1.. {
        let Some(looked) = look_once(handle, findings).await? else { return Ok(None) };
        let needs = looked.needs().await?;
        let wrong: Vec<BackupId> = needs.wrong().map(|own| own.id.clone()).collect();
        let moved = handle.newest_root().await?.number != looked.snapshot.root.number;
        if wrong.is_empty() || wrong == wrong_before || !moved || tries >= RELOADS_MAX {
            return Ok(Some((looked, needs)));
        }
        wrong_before = wrong;
    }
    unreachable!("it ends some time")
}

/// Reads root, index, chains and directories; `None` when that fails, which is told.
///
/// # Errors
/// What is no damage: a store that fails or refuses, a key epoch that our slot was not given. Nothing is known then.
async fn look_once(handle: &Cluster, findings: &mut Vec<Finding>) -> Result<Option<Looked>, RepoError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let Some(looked) = try_look(handle, findings).await? else { return Ok(None) };
        // A segment that is gone may have been replaced since the index was read.
        let gone = looked.chunks.index().lost().iter().any(|lost| object_is_gone(&lost.error));
        let moved = gone && handle.newest_root().await?.number != looked.snapshot.root.number;
        if !moved || tries >= RELOADS_MAX {
            return Ok(Some(looked));
        }
    }
}

async fn try_look(handle: &Cluster, findings: &mut Vec<Finding>) -> Result<Option<Looked>, RepoError> {
    let snapshot = match walmap::load(handle).await {
        Ok(snapshot) => snapshot,
        Err(error) if !error.is_damage() && !matches!(error, RepoError::NotFound { .. }) => {
            return Err(error);
        }
        Err(error) => {
            findings.push(unreadable(handle, error));
            return Ok(None);
        }
    };
    let mut generations = Vec::new();
    let (root, index) = (&snapshot.root, &snapshot.index);
    for generation in numbers_of(&snapshot) {
        let size = match handle.read_generation(generation).await {
            Ok(record) => SegmentSize::new(record.segment_size.into()).ok(),
            // Named where generations are looked for.
            Err(error) if error.is_damage() || error.is_shut() => None,
            Err(error) => return Err(error),
        };
        let map = if generation == root.generation {
            snapshot.wal.clone()
        } else {
            match walmap::load_generation(handle, generation).await {
                Ok(of) => of.wal,
                Err(error) if error.is_damage() => {
                    findings.push(unreadable(handle, error));
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        };
        generations.push(GenerationWal { map, size });
    }
    let chunks = Arc::new(ChunkIndex::load(handle, &index.pages).await?);
    let chunks = ChunkReader::new(handle.clone(), chunks, THREADS);
    Ok(Some(Looked { cluster: handle.clone(), snapshot, generations, chunks }))
}

/// A root or an index that cannot be read: all else hangs on it.
fn unreadable(handle: &Cluster, error: RepoError) -> Finding {
    let name = handle.name();
    let (key, reason) = match error {
        RepoError::Store(StoreError::NotFound { key }) => (key.to_string(), "it is gone".to_owned()),
        RepoError::Damage { key, reason } => (key.to_string(), reason),
        other => (layout::cluster_prefix(name), other.to_string()),
    };
    let of_root = ObjectKey::new(key.as_str()).is_some_and(|key| layout::is_root(&key));
    let until = if of_root { "until `walden repair root`, " } else { "" };
    let cost = format!("{until}everything of cluster {name}");
    Finding { key, reason, cost, backups: Vec::new() }
}

/// Every generation of which there is anything.
fn numbers_of(snapshot: &Snapshot) -> BTreeSet<Generation> {
    let Index { wal, backups, .. } = &snapshot.index;
    let mut all: BTreeSet<Generation> = wal.iter().map(|entry| entry.generation).collect();
    all.extend(backups.iter().map(|entry| entry.generation));
    all.extend(snapshot.root.streams.iter().map(|stream| stream.generation));
    all.insert(snapshot.root.generation);
    all
}

impl Looked {
    pub fn known<'a>(&'a self, listed: &'a Listed, gone: &'a HashSet<ObjectKey>) -> Known<'a> {
        Known { cluster: &self.cluster, snapshot: &self.snapshot, listed, chunks: &self.chunks, gone }
    }

    /// Segments of chunks that were not there when their directories were to be read.
    pub fn gone(&self) -> impl Iterator<Item = &ObjectKey> {
        let lost = self.chunks.index().lost().iter();
        lost.filter(|lost| object_is_gone(&lost.error)).map(|lost| &lost.key)
    }

    async fn needs(&self) -> Result<Needs, RepoError> {
        let backups = &self.snapshot.index.backups;
        Needs::read(&self.cluster, self.chunks.index(), &self.chunks, backups).await
    }

    pub fn expected(&self, needs: Needs) -> Expected {
        let (index, name) = (&self.snapshot.index, self.cluster.name());
        let numbers: BTreeMap<&ObjectKey, usize> =
            self.chunks.index().segment_keys().enumerate().map(|(at, key)| (key, at)).collect();
        let number = |id| numbers.get(&layout::segment(name, id)).copied();
        Expected {
            wal: index.wal.iter().map(|entry| (entry.id, entry.clone())).collect(),
            pages: index.pages.iter().map(|entry| (entry.id, (entry.clone(), number(entry.id)))).collect(),
            backups: index.backups.iter().map(|entry| (entry.id.clone(), entry.clone())).collect(),
            needs,
        }
    }

    pub fn pieces(&self) -> impl Iterator<Item = (&WalMap, &WalPiece)> {
        self.generations.iter().flat_map(|own| own.map.pieces().iter().map(move |piece| (&*own.map, piece)))
    }

    pub fn epochs(&self) -> Vec<EpochItem> {
        let mut all: BTreeMap<_, u64> = BTreeMap::new();
        for (_, piece) in self.pieces() {
            if let (Some(epoch), WalSource::Segment(entry)) = (epoch_of(piece), &piece.source) {
                *all.entry(epoch.id).or_default() += entry.object_len;
            }
        }
        all.into_iter().map(|(id, bytes)| EpochItem { id, bytes }).collect()
    }

    /// Looks at WAL: every piece is there, none is missing, and what it is the turn of is decoded, and what is `suspect`.
    pub async fn wal(
        &self,
        depth: Depth,
        turn: &Turn<'_>,
        suspect: &(dyn Fn(&ObjectKey) -> bool + Sync),
        known: &Known<'_>,
        damaged: &mut BTreeMap<ObjectKey, Damaged>,
        progress: &dyn Progress,
    ) -> Result<WalLooked, RepoError> {
        let (cluster, backups) = (&self.cluster, &self.snapshot.index.backups);
        let mut looked = WalLooked::default();
        for GenerationWal { map, size } in &self.generations {
            let findings = &mut looked.findings;
            let bad = references::wal(known, map, damaged).await?;
            let mut lost = Vec::new();
            if depth.reads() {
                let bad: HashSet<&ObjectKey> = bad.iter().map(|bad| &bad.key).collect();
                let units = units(cluster, map, turn, &|key| bad.contains(key) || suspect(key));
                progress.stage("decoding WAL", Some(units.iter().map(|unit| unit.range.len()).sum()));
                let mut decoded = wal::check(cluster, map, *size, &units, progress).await?;
                lost = self.lost_still((map.generation(), *size), &mut decoded, findings, progress).await?;
                looked.decoded.add(decoded);
            }
            // Decoding says from where on an object is of no use, reading what is wrong with it.
            for lost in &mut lost {
                if let Some(bad) = bad.iter().find(|bad| bad.key == lost.key) {
                    lost.reason.clone_from(&bad.reason);
                }
            }
            let untold = |bad: &&Unreadable| !lost.iter().any(|lost| lost.key == bad.key);
            let rest: Vec<Unreadable> = bad.iter().filter(untold).cloned().collect();
            lost.extend(rest);
            for Unreadable { timeline, range, key, reason, epoch_start } in &lost {
                let what = cost::LostWal { timeline: *timeline, range: *range };
                let mut cost = cost::of_wal(map, backups, *size, what);
                if let Some(start) = epoch_start {
                    cost += &format!(
                        "; what follows it in its epoch of deltas, which begins at {start}, cannot be decoded"
                    );
                }
                findings.push(Finding {
                    key: key.to_string(),
                    reason: reason.clone(),
                    cost,
                    backups: Vec::new(),
                });
            }
            findings.extend(references::holes(cluster, &self.snapshot, map, *size));
            findings.extend(references::lost_flushes(map, backups, *size));
            if let Some(size) = size {
                let now = |backup: &BackupEntry| BackupEntry {
                    state: if backup.generation == map.generation() {
                        state_now(backup, map, *size)
                    } else {
                        backup.state
                    },
                    ..backup.clone()
                };
                let backups: Vec<BackupEntry> = backups.iter().map(now).collect();
                findings.extend(references::uncovered(cluster, map, &backups, *size, &lost));
            }
        }
        Ok(looked)
    }

    /// What is lost of what was decoded, by the newest root too: while this looks, retention lets go of WAL, and compaction and collection
    /// move it. It is read again where it lies now, and is lost when nothing moved it, or when it is the same again; and when it was found
    /// to be before that. All of it stays lost when nothing newer can be read, which is told.
    async fn lost_still(
        &self,
        (generation, size): (Generation, Option<SegmentSize>),
        decoded: &mut Decoded,
        findings: &mut Vec<Finding>,
        progress: &dyn Progress,
    ) -> Result<Vec<Unreadable>, RepoError> {
        let (mut lost, mut root) = (std::mem::take(&mut decoded.lost), self.snapshot.root.number);
        for _ in 0..RELOADS_MAX {
            if lost.is_empty() {
                break;
            }
            let now = match self.moved_since(root, generation).await {
                Ok(Some(now)) => now,
                Ok(None) => break,
                Err(error) if error.is_damage() => {
                    findings.push(unreadable(&self.cluster, error));
                    break;
                }
                Err(error) => return Err(error),
            };
            root = now.root.number;
            let mut again =
                wal::check(&self.cluster, &now.wal, size, &units_of(&now.wal, &lost), progress).await?;
            // What a chain lost is in no piece, and is not decoded.
            let mut found: Vec<Unreadable> =
                lost.iter().filter(|lost| is_lost_of_chain(&now.wal, lost)).cloned().collect();
            found.append(&mut again.lost);
            again.unread.retain(|unread| !decoded.unread.contains(unread));
            decoded.add(again);
            let is_same = found == lost;
            lost = found;
            if is_same {
                break;
            }
        }
        Ok(lost)
    }

    /// What there is of `generation` now, when a newer root than `root` is there.
    async fn moved_since(&self, root: u64, generation: Generation) -> Result<Option<Snapshot>, RepoError> {
        if self.cluster.newest_root().await?.number == root {
            return Ok(None);
        }
        walmap::load_generation(&self.cluster, generation).await.map(Some)
    }

    /// Generations that cannot be read: none of their backups can be restored.
    pub fn generations(&self, findings: &[Finding], damaged: &BTreeMap<ObjectKey, Damaged>) -> Vec<Finding> {
        let name = self.cluster.name();
        let hurt = self.generations.iter().filter(|own| own.size.is_none()).map(|own| {
            let generation = own.map.generation();
            let of = self.snapshot.index.backups.iter().filter(|backup| backup.generation == generation);
            let key = layout::generation(name, generation);
            let told = findings
                .iter()
                .find(|finding| finding.key == key.as_str())
                .map(|finding| finding.reason.clone());
            let reason = damaged.get(&key).map(|damaged| damaged.reason.clone()).or(told);
            Finding {
                key: key.to_string(),
                reason: reason.unwrap_or_else(|| "it cannot be read".into()),
                cost: format!(
                    "generation {generation} of cluster {name} cannot be restored: its geometry is not known"
                ),
                backups: of.map(|backup| backup.id.clone()).collect(),
            }
        });
        hurt.collect()
    }

    /// What is damaged of pages whose checksum is wrong, and with what nothing can be said.
    pub async fn bad_pages(&self, needs: &Needs, suspects: &[Suspect]) -> Result<pages::Judged, RepoError> {
        let mut judged = pages::Judged::default();
        for own in &self.generations {
            let of_generation = |suspect: &&Suspect| {
                let backup = self.snapshot.index.backups.get(suspect.backup);
                backup.is_some_and(|backup| backup.generation == own.map.generation())
            };
            let suspects: Vec<Suspect> = suspects.iter().filter(of_generation).cloned().collect();
            let backups = &self.snapshot.index.backups;
            let found =
                pages::judge(&self.cluster, &own.map, own.size, backups, needs, &self.chunks, &suspects);
            let found = found.await?;
            judged.findings.extend(found.findings);
            judged.undecided.extend(found.undecided);
        }
        Ok(judged)
    }

    /// Which of `keys` hold WAL that was not decoded, or is of an epoch that was not: all of that is made of each other.
    pub fn undecoded(&self, keys: &BTreeSet<ObjectKey>, decoded: &Decoded) -> BTreeSet<ObjectKey> {
        let mut undecoded = BTreeSet::new();
        let has =
            |map: &WalMap, piece: &WalPiece| decoded.has((map.generation(), piece.timeline), piece.range);
        for (map, piece) in self.pieces() {
            let key = key_of(&self.cluster, piece);
            if !keys.contains(&key) {
                continue;
            }
            let whole = match epoch_of(piece) {
                None => has(map, piece),
                Some(epoch) => {
                    let of_epoch = |other: &&WalPiece| epoch_of(other).is_some_and(|of| of.id == epoch.id);
                    map.pieces().iter().filter(of_epoch).all(|piece| has(map, piece))
                }
            };
            if !whole {
                undecoded.insert(key);
            }
        }
        undecoded
    }
}

/// The WAL to decode: all of it; or epochs and segments whose turn it is, all that is not compacted, and what is suspect: with the
/// rest of its epoch, and with the piece before, whose last record leads to it.
fn units(
    cluster: &Cluster,
    map: &WalMap,
    turn: &Turn<'_>,
    suspect: &dyn Fn(&ObjectKey) -> bool,
) -> Vec<Unit> {
    if turn.is_whole() {
        return wal::runs(map);
    }
    let pieces = map.pieces();
    let suspects: Vec<bool> = pieces.iter().map(|piece| suspect(&key_of(cluster, piece))).collect();
    let with_suspects = pieces.iter().zip(&suspects).filter(|(_, suspect)| **suspect);
    let epochs: HashSet<ObjectId> =
        with_suspects.filter_map(|(piece, _)| epoch_of(piece)).map(|epoch| epoch.id).collect();
    let in_doubt = |piece: &WalPiece| epoch_of(piece).is_some_and(|epoch| epochs.contains(&epoch.id));
    let mut units: Vec<Unit> = Vec::new();
    for (at, piece) in pieces.iter().enumerate() {
        let wanted = match (epoch_of(piece), &piece.source) {
            (Some(epoch), _) => turn.has_epoch(&epoch.id),
            (None, WalSource::Segment(_)) => turn.has(&key_of(cluster, piece)),
            (None, WalSource::Flush { .. }) => true,
        };
        let is_suspect = |at: usize| suspects.get(at) == Some(&true);
        let leads_to_suspect = pieces
            .get(at + 1)
            .is_some_and(|next| (is_suspect(at + 1) || in_doubt(next)) && next.timeline == piece.timeline);
        if wanted || is_suspect(at) || in_doubt(piece) || leads_to_suspect {
            add(&mut units, piece);
        }
    }
    units
}

/// Whether `lost` is a flush object that its chain in `map` lost.
fn is_lost_of_chain(map: &WalMap, lost: &Unreadable) -> bool {
    map.chains().iter().flat_map(|chain| &chain.lost).any(|of_chain| of_chain.key == lost.key)
}

/// The pieces that hold what is `lost`, each with the one before, whose last record leads to it.
fn units_of(map: &WalMap, lost: &[Unreadable]) -> Vec<Unit> {
    let holds = |piece: &WalPiece| {
        lost.iter().any(|lost| lost.timeline == piece.timeline && lost.range.intersect(piece.range).is_some())
    };
    let (pieces, mut units) = (map.pieces(), Vec::new());
    for (at, piece) in pieces.iter().enumerate() {
        let leads_to_it =
            pieces.get(at + 1).is_some_and(|next| next.timeline == piece.timeline && holds(next));
        if holds(piece) || leads_to_it {
            add(&mut units, piece);
        }
    }
    units
}

/// Adds a piece to the last of `units` where it continues that.
fn add(units: &mut Vec<Unit>, piece: &WalPiece) {
    match units.last_mut() {
        Some(last) if last.timeline == piece.timeline && piece.range.start <= last.range.end => {
            last.range.end = last.range.end.max(piece.range.end);
        }
        _ => units.push(Unit { timeline: piece.timeline, range: piece.range }),
    }
}
