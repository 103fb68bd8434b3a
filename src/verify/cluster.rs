//! Verification of one cluster: numbers, references, objects, WAL, pages; then what is stored of that.

use super::listing::{self, Listed};
use super::needs::Needs;
use super::objects::{self, Damaged, Expected, Judge, Read};
use super::references::{self, Known};
use super::results::{self, BackupProof, Needed};
use super::rotation::{place_of, place_of_bytes};
use super::turn::{EpochItem, Limit, Turn};
use super::wal::{self, Unit, Unreadable, epoch_of, key_of};
use super::{ClusterReport, Depth, Finding, Keep, Stored, cost, numbers, pages};
use crate::base::{ClusterName, Generation, ObjectKey, Progress, RepositoryId, SegmentSize, Timestamp};
use crate::format::index::BackupEntry;
use crate::format::verification::{VerifiedArc, VerifyDepth, VerifyScope};
use crate::repo::backups::{is_restorable, needed_wal, state_now};
use crate::repo::chain::Losses;
use crate::repo::chunks::{ChunkIndex, ChunkReader};
use crate::repo::walmap::{self, Snapshot, WalMap, WalPiece, WalSource};
use crate::repo::{Cluster, Index, RepoError, Repository, chain, layout, verifications};
use crate::store::{ObjectMeta, StoreError};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

/// Threads that decode manifests' pages.
const THREADS: usize = 2;

/// What a run looks at, and how.
#[derive(Debug)]
pub struct Task<'a> {
    /// The keys.
    pub repo: &'a Arc<Repository>,
    /// The repository that the marker names.
    pub id: Option<RepositoryId>,
    /// The cluster.
    pub name: &'a ClusterName,
    /// What a list showed.
    pub listed: &'a Listed,
    /// How deep.
    pub depth: Depth,
    /// How much.
    pub limit: Limit,
    /// Whether the result is stored.
    pub keep: Keep,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// What was read.
    pub read: Read,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// For people.
    pub report: ClusterReport,
}

/// One generation of a cluster.
struct GenerationWal {
    map: WalMap,
    size: Option<SegmentSize>,
}

/// What a cluster's newest root leads to.
struct Looked {
    cluster: Cluster,
    snapshot: Snapshot,
    generations: Vec<GenerationWal>,
    chunks: ChunkReader,
}

/// Looks at a cluster.
pub async fn check(task: &Task<'_>, progress: &dyn Progress) -> Result<Outcome, RepoError> {
    let started_at = task.repo.env().clock.now();
    let own = task.listed.under(&layout::cluster_prefix(task.name));
    progress.stage("following references", None);
    let mut findings = numbers::roots(task.repo, task.name, task.listed).await?;
    let handle = Cluster::unchecked(task.repo.clone(), task.name.clone());
    let before = verifications::newest(&handle).await?.result;
    let looked = match look(&handle, &mut findings).await? {
        Some(looked) => {
            let needs = looked.needs().await?;
            Some((looked.expected(needs), looked))
        }
        None => None,
    };
    let (expected, looked) = looked.unzip();
    let expected = expected.map(|expected| (task.name.clone(), expected));
    let judge = Arc::new(Judge { repo: Some(task.repo.clone()), id: task.id, expected });
    let known_arcs = before.as_ref().map_or(&[][..], |before| before.arcs.as_slice());
    let epochs = looked.as_ref().map_or_else(Vec::new, Looked::epochs);
    let mut turn = Turn::new(own, &epochs, known_arcs, task.limit);
    let mut read = Read::default();
    if task.depth == Depth::Content {
        progress
            .stage("reading objects", matches!(task.limit, Limit::Everything).then(|| listing::bytes(own)));
        let again = results::to_read_again(before.as_ref());
        let turn = Mutex::new(&mut turn);
        let next = || turn.lock().unwrap_or_else(PoisonError::into_inner).next_object();
        let store = &**task.repo.store();
        read.add(objects::read(store, &judge, std::iter::from_fn(next), progress).await?);
        let turn = turn.into_inner().unwrap_or_else(PoisonError::into_inner);
        let again: Vec<ObjectMeta> = again
            .iter()
            .filter(|key| !turn.has(key))
            .filter_map(|key| task.listed.find(key).cloned())
            .collect();
        read.add(
            objects::read(store, &judge, again.into_iter().filter(|meta| own.contains(meta)), progress)
                .await?,
        );
    }
    let mut damaged: BTreeMap<ObjectKey, Damaged> = std::mem::take(&mut read.damaged).into_iter().collect();
    let mut proofs = None;
    if let Some(looked) = &looked
        && let Some((_, expected)) = &judge.expected
    {
        let known = looked.known(task.listed);
        findings.extend(looked.wal(task, &turn, &known, &mut damaged, progress).await?);
        findings.extend(numbers::chains(&looked.cluster, &looked.snapshot, task.listed).await?);
        findings.extend(numbers::pending(&looked.cluster, &looked.snapshot.root).await?);
        findings.extend(references::backups(&known, &expected.needs, &mut damaged).await?);
        findings.extend(looked.generations(&findings, &damaged));
        if !read.suspects.is_empty() {
            findings.extend(looked.bad_pages(&expected.needs, &read.suspects).await?);
        }
        proofs = Some(looked.proofs(task.listed, &expected.needs));
    }
    // A generation's damage was told with the backups that it hurts.
    let told: HashSet<String> = findings.iter().map(|finding| finding.key.clone()).collect();
    findings.extend(damaged.into_iter().filter(|(key, _)| !told.contains(key.as_str())).map(
        |(key, damaged)| {
            // What is damaged and nothing refers to costs nothing, but somebody may want to know.
            let cost = cost::unreferenced(&key);
            Finding { key: key.to_string(), reason: damaged.reason, cost, backups: Vec::new() }
        },
    ));
    let (scope, arcs) = read_of(task, &turn, started_at);
    let run = results::Run {
        cluster: task.name,
        root: looked.as_ref().map_or(0, |looked| looked.snapshot.root.number),
        started_at,
        finished_at: task.repo.env().clock.now(),
        depth: task.depth.into(),
        scope,
        objects: read.objects,
        bytes: read.bytes,
        arcs: &arcs,
        listed: own,
        findings: &findings,
        backups: proofs.as_deref(),
    };
    let stored = store(&handle, task.keep, &run).await?;
    let report = ClusterReport::new(results::next(before.as_ref(), &run), stored);
    Ok(Outcome { read, findings, report })
}

/// What was read of the ring, and whether that is all.
fn read_of(task: &Task<'_>, turn: &Turn<'_>, at: Timestamp) -> (VerifyScope, Vec<VerifiedArc>) {
    match task.depth {
        Depth::References => (VerifyScope::Whole, Vec::new()),
        Depth::Content => {
            let scope = if turn.is_whole() { VerifyScope::Whole } else { VerifyScope::Sample };
            (scope, turn.arcs(task.listed.newest_unix_micros(), at))
        }
    }
}

/// Stores the result. Where that is not allowed, or the store has no room, the rest was worth it all the same.
async fn store(cluster: &Cluster, keep: Keep, run: &results::Run<'_>) -> Result<Stored, RepoError> {
    if keep == Keep::Discard {
        return Ok(Stored::No { reason: "as was asked".into() });
    }
    match verifications::store(cluster, |before| results::next(before, run)).await {
        Ok(stored) => Ok(Stored::Yes { number: stored.number }),
        Err(error @ RepoError::Store(StoreError::Denied { .. } | StoreError::NoSpace { .. })) => {
            Ok(Stored::No { reason: error.to_string() })
        }
        Err(error) => Err(error),
    }
}

/// Reads root, index, chains and directories; `None` when that fails, which is told.
async fn look(handle: &Cluster, findings: &mut Vec<Finding>) -> Result<Option<Looked>, RepoError> {
    let name = handle.name();
    let snapshot = match walmap::load(handle).await {
        Ok(snapshot) => snapshot,
        Err(error) if error.is_transient() => return Err(error),
        Err(error) => {
            let (key, reason) = match error {
                RepoError::Store(StoreError::NotFound { key }) => (key.to_string(), "it is gone".to_owned()),
                RepoError::Damage { key, reason } => (key.to_string(), reason),
                other => (layout::cluster_prefix(name), other.to_string()),
            };
            let flush = ObjectKey::new(key.clone()).and_then(|key| layout::parse_flush(&key));
            let cost = match flush {
                Some((stream, number)) => format!(
                    "everything of cluster {name} until it is removed or repaired; then, WAL of stream {stream} from object {number} on"
                ),
                None => format!("everything of cluster {name}"),
            };
            findings.push(Finding { key, reason, cost, backups: Vec::new() });
            return Ok(None);
        }
    };
    let mut generations = Vec::new();
    let (root, index) = (&snapshot.root, &snapshot.index);
    for generation in numbers_of(&snapshot) {
        let size = match handle.read_generation(generation).await {
            Ok(record) => SegmentSize::new(record.segment_size.into()).ok(),
            // Named where generations are looked for.
            Err(error) if error.is_damage() || matches!(error, RepoError::NoKey { .. }) => None,
            Err(error) => return Err(error),
        };
        let map = if generation == root.generation {
            snapshot.wal.clone()
        } else {
            older_wal(handle, generation, &snapshot).await?
        };
        generations.push(GenerationWal { map, size });
    }
    let chunks = Arc::new(ChunkIndex::load(handle, &index.pages).await?);
    let chunks = ChunkReader::new(handle.clone(), chunks, THREADS);
    Ok(Some(Looked { cluster: handle.clone(), snapshot, generations, chunks }))
}

/// WAL of a generation before the current one, with what of it was never compacted.
async fn older_wal(
    cluster: &Cluster,
    generation: Generation,
    snapshot: &Snapshot,
) -> Result<WalMap, RepoError> {
    let mut chains = Vec::new();
    for stream in snapshot.root.streams.iter().filter(|stream| stream.generation == generation) {
        chains.push(chain::read(cluster, stream, Losses::PassedBy).await?);
    }
    Ok(WalMap::new(generation, &snapshot.index, chains))
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
    fn known<'a>(&'a self, listed: &'a Listed) -> Known<'a> {
        Known { cluster: &self.cluster, snapshot: &self.snapshot, listed, chunks: &self.chunks }
    }

    async fn needs(&self) -> Result<Needs, RepoError> {
        let backups = &self.snapshot.index.backups;
        Needs::read(&self.cluster, self.chunks.index(), &self.chunks, backups).await
    }

    fn expected(&self, needs: Needs) -> Expected {
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

    fn pieces(&self) -> impl Iterator<Item = (&WalMap, &WalPiece)> {
        self.generations.iter().flat_map(|own| own.map.pieces().iter().map(move |piece| (&own.map, piece)))
    }

    fn epochs(&self) -> Vec<EpochItem> {
        let mut all: BTreeMap<_, u64> = BTreeMap::new();
        for (_, piece) in self.pieces() {
            if let (Some(epoch), WalSource::Segment(entry)) = (epoch_of(piece), &piece.source) {
                *all.entry(epoch.id).or_default() += entry.object_len;
            }
        }
        all.into_iter().map(|(id, bytes)| EpochItem { id, bytes }).collect()
    }

    /// Looks at WAL: every piece is there, none is missing, and what it is the turn of is decoded.
    async fn wal(
        &self,
        task: &Task<'_>,
        turn: &Turn<'_>,
        known: &Known<'_>,
        damaged: &mut BTreeMap<ObjectKey, Damaged>,
        progress: &dyn Progress,
    ) -> Result<Vec<Finding>, RepoError> {
        let (cluster, backups) = (&self.cluster, &self.snapshot.index.backups);
        let mut findings = Vec::new();
        for GenerationWal { map, size } in &self.generations {
            let bad = references::wal(known, map, damaged).await?;
            let mut lost = Vec::new();
            if task.depth == Depth::Content {
                let units = units(cluster, map, turn, &bad);
                progress.stage("decoding WAL", Some(units.iter().map(|unit| unit.range.len()).sum()));
                lost = wal::check(cluster, map, *size, &units, progress).await?;
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
        Ok(findings)
    }

    /// Generations that cannot be read: none of their backups can be restored.
    fn generations(&self, findings: &[Finding], damaged: &BTreeMap<ObjectKey, Damaged>) -> Vec<Finding> {
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

    async fn bad_pages(
        &self,
        needs: &Needs,
        suspects: &[objects::Suspect],
    ) -> Result<Vec<Finding>, RepoError> {
        let mut findings = Vec::new();
        for own in &self.generations {
            let of_generation = |suspect: &&objects::Suspect| {
                let backup = self.snapshot.index.backups.get(suspect.backup);
                backup.is_some_and(|backup| backup.generation == own.map.generation())
            };
            let suspects: Vec<objects::Suspect> = suspects.iter().filter(of_generation).cloned().collect();
            let backups = &self.snapshot.index.backups;
            let found =
                pages::judge(&self.cluster, &own.map, own.size, backups, needs, &self.chunks, &suspects);
            findings.extend(found.await?);
        }
        Ok(findings)
    }

    /// What each restorable backup needs.
    fn proofs(&self, listed: &Listed, needs: &Needs) -> Vec<BackupProof> {
        let keys: Vec<&ObjectKey> = self.chunks.index().segment_keys().collect();
        let mut proofs = Vec::new();
        for (backup, own) in self.snapshot.index.backups.iter().zip(&needs.backups) {
            let Some(GenerationWal { map, size }) =
                self.generations.iter().find(|own| own.map.generation() == backup.generation)
            else {
                continue;
            };
            let state = size.map_or(backup.state, |size| state_now(backup, map, size));
            if !is_restorable(state) {
                continue;
            }
            let needed = size.and_then(|size| self.needed(listed, needs, (backup, own), (map, size), &keys));
            proofs.push(BackupProof { id: backup.id.clone(), needed });
        }
        proofs
    }

    /// Everything that a backup needs; `None` when something of it was not listed.
    fn needed(
        &self,
        listed: &Listed,
        needs: &Needs,
        (backup, own): (&BackupEntry, &super::needs::BackupNeeds),
        (map, size): (&WalMap, SegmentSize),
        keys: &[&ObjectKey],
    ) -> Option<Vec<Needed>> {
        let mut wanted: BTreeSet<ObjectKey> =
            BTreeSet::from([layout::manifest(self.cluster.name(), &backup.id, backup.manifest_number)]);
        let segments = |own: &super::needs::BackupNeeds| {
            let numbered = own.segments.iter().zip(keys).filter(|(needed, _)| **needed);
            numbered.map(|(_, key)| ObjectKey::clone(key)).collect::<Vec<_>>()
        };
        wanted.extend(segments(own));
        let (mut epochs, range) = (BTreeMap::new(), needed_wal(backup, size));
        for piece in map.overlapping(backup.timeline, range) {
            wanted
                .extend(matches!(piece.source, WalSource::Segment(_)).then(|| key_of(&self.cluster, piece)));
            epochs.extend(epoch_of(piece).map(|epoch| (epoch.id, i64::MIN)));
        }
        for piece in map.pieces() {
            let Some(newest) = epoch_of(piece).and_then(|epoch| epochs.get_mut(&epoch.id)) else { continue };
            let key = key_of(&self.cluster, piece);
            *newest = i64::max(*newest, listed.find(&key)?.modified_unix_micros);
            wanted.insert(key);
            if let WalSource::Segment(entry) = &piece.source
                && let Some(base) = entry.deltas.as_ref().and_then(|deltas| deltas.base.as_ref())
                && let Some(base) = needs.backups.iter().find(|own| own.id == *base)
            {
                wanted.extend(segments(base));
            }
        }
        let mut all: Vec<Needed> = epochs
            .into_iter()
            .map(|(id, modified_unix_micros)| Needed { place: place_of_bytes(&id.0), modified_unix_micros })
            .collect();
        for key in wanted {
            let modified_unix_micros = listed.find(&key)?.modified_unix_micros;
            all.push(Needed { place: place_of(&key), modified_unix_micros });
        }
        Some(all)
    }
}

/// The WAL to decode: all of it; or epochs and segments whose turn it is, all that is not compacted, and what is damaged.
fn units(cluster: &Cluster, map: &WalMap, turn: &Turn<'_>, bad: &[Unreadable]) -> Vec<Unit> {
    if turn.is_whole() {
        return wal::runs(map);
    }
    let mut units: Vec<Unit> = Vec::new();
    for piece in map.pieces() {
        let key = key_of(cluster, piece);
        let wanted = match (epoch_of(piece), &piece.source) {
            (Some(epoch), _) => turn.has_epoch(&epoch.id),
            (None, WalSource::Segment(_)) => turn.has(&key),
            (None, WalSource::Flush { .. }) => true,
        };
        if !wanted && !bad.iter().any(|bad| bad.key == key) {
            continue;
        }
        match units.last_mut() {
            Some(last) if last.timeline == piece.timeline && piece.range.start <= last.range.end => {
                last.range.end = last.range.end.max(piece.range.end);
            }
            _ => units.push(Unit { timeline: piece.timeline, range: piece.range }),
        }
    }
    units
}

impl From<Depth> for VerifyDepth {
    fn from(depth: Depth) -> VerifyDepth {
        match depth {
            Depth::References => VerifyDepth::References,
            Depth::Content => VerifyDepth::Content,
        }
    }
}
