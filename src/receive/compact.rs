//! Compaction: flush objects become segments of up to 64 MiB of WAL, small segments are merged.
//! Off the acknowledgement path. A root that names the segments retires what they replace; until then nothing changed,
//! and whoever loses the race throws its segments away (collection removes them).

mod epoch;
mod losses;
mod plan;
mod write;

pub use epoch::DeltaOptions;
pub use plan::{Job, Plan, Replaces, plan};

use super::pipeline::Stored;
use crate::base::{ObjectId, ObjectKey, StreamId, limits};
use crate::disk::own_thread::{self, Priority};
use crate::format::index::{RemovedEntry, RemovedKind, WalEntry};
use crate::format::root::{PendingKind, RetiredFlush, Root};
use crate::repo::cluster::{RootChange, object_is_gone};
use crate::repo::index::{Index, IndexEdit, empty_page};
use crate::repo::walmap::{self, Snapshot};
use crate::repo::{Cluster, PendingError, Registration, RepoError, WalReader, layout};
use epoch::Epochs;
use losses::LossWatch;
use std::collections::HashSet;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How long a pass that failed tries to take its registration away.
const ABANDON_LIMIT: Duration = Duration::from_secs(30);
/// Times a pass starts again because another compaction was faster.
const PASS_TRIES: u32 = 5;

/// What may wait for more WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Whole segments only; what is left waits.
    Full,
    /// Everything received.
    All,
}

/// What a compaction did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Compacted {
    /// Flush objects replaced.
    pub flushes: u64,
    /// Small segments merged away.
    pub merged: u64,
    /// Segments written.
    pub segments: u64,
    /// WAL in them.
    pub wal_bytes: u64,
    /// Epochs of deltas that were decoded from the repository, to go on with them.
    pub epochs_decoded: u64,
    /// Small segments that cannot be read, and so were not merged.
    pub unreadable: u64,
}

/// Compacts one cluster, pass after pass.
#[derive(Debug)]
pub struct Compactor {
    cluster: Cluster,
    epochs: Epochs,
    losses: LossWatch,
    /// Small segments that could not be read, and so are merged with none as long as this lives.
    unreadable: HashSet<ObjectId>,
}

/// What a look at the archive gave.
struct Next {
    /// What is to be compacted, if anything is.
    work: Option<(Snapshot, Plan)>,
    /// Whether it came to a loss.
    lost: bool,
}

/// Compacts until nothing of `extent` is left, as [`Compactor::compact`] does.
pub async fn compact(
    cluster: &Cluster,
    deltas: Option<DeltaOptions>,
    extent: Extent,
) -> Result<Compacted, RepoError> {
    Compactor::new(cluster.clone(), deltas).compact(extent).await
}

impl Compactor {
    /// Compacts `cluster`, with deltas or without.
    pub fn new(cluster: Cluster, deltas: Option<DeltaOptions>) -> Compactor {
        Compactor {
            cluster,
            epochs: Epochs::new(deltas),
            losses: LossWatch::default(),
            unreadable: HashSet::new(),
        }
    }

    /// Compacts until nothing of `extent` is left; records losses that its passes have met for [`limits::LOSS_LASTS_MIN`]. Safe beside a running receiver and other compactions. It computes on the
    /// thread that polls it, for tens of milliseconds at a time. If dropped: what it had registered and written stays until
    /// collection takes it for abandoned.
    pub async fn compact(&mut self, extent: Extent) -> Result<Compacted, RepoError> {
        self.compact_until(extent, &mut std::pin::pin!(std::future::pending())).await
    }

    /// The same, cut short when `stopped` ends: what was registered is taken away then.
    async fn compact_until(
        &mut self,
        extent: Extent,
        stopped: &mut (impl Future<Output = ()> + Unpin),
    ) -> Result<Compacted, RepoError> {
        let mut total = Compacted::default();
        let mut tries = 0;
        loop {
            total.unreadable = self.unreadable.len() as u64;
            let next = match self.next(extent).await {
                Err(error) if object_is_gone(&error) && tries < PASS_TRIES => {
                    tries += 1;
                    continue;
                }
                next => next?,
            };
            if !next.lost {
                self.losses.forget();
            }
            let (snapshot, plan) = match next.work {
                Some(work) => work,
                None if next.lost && self.recorded_loss().await => continue,
                None => return Ok(total),
            };
            match self.run(snapshot, plan, stopped).await {
                Ok(done) => {
                    total.flushes += done.flushes;
                    total.merged += done.merged;
                    total.segments += done.segments;
                    total.wal_bytes += done.wal_bytes;
                    total.epochs_decoded += done.epochs_decoded;
                    tries = 0;
                }
                Err(Unfinished::Stopped) => return Ok(total),
                Err(Unfinished::Failed(error @ RepoError::Conflict { .. })) if tries < PASS_TRIES => {
                    tracing::info!(%error, "somebody else was faster; compacting anew");
                    tries += 1;
                }
                Err(Unfinished::Failed(error)) if object_is_gone(&error) && tries < PASS_TRIES => tries += 1,
                Err(Unfinished::Failed(error)) => return Err(error),
            }
        }
    }

    /// What to do next, if anything: what generations that are over have left goes first, to its last byte.
    async fn next(&self, extent: Extent) -> Result<Next, RepoError> {
        let snapshot = walmap::load_unbroken(&self.cluster).await?;
        let mut lost = is_broken(&snapshot);
        let current = snapshot.root.generation;
        for over in snapshot.streamed().into_iter().filter(|generation| *generation < current) {
            let older = snapshot.clone().with_generation_unbroken(&self.cluster, over).await?;
            lost |= is_broken(&older);
            let plan = plan(&older, Extent::All, &self.unreadable);
            if plan != Plan::default() {
                return Ok(Next { work: Some((older, plan)), lost });
            }
        }
        let plan = plan(&snapshot, extent, &self.unreadable);
        Ok(Next { work: (plan != Plan::default()).then_some((snapshot, plan)), lost })
    }

    /// Whether a loss was recorded, behind which there is more to compact. What hinders that is no failure of compaction.
    async fn recorded_loss(&mut self) -> bool {
        self.losses.tend(&self.cluster).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "what is lost could not be looked at");
            false
        })
    }

    /// Carries a plan out, registered as work in progress from before the first segment is written: a pass that stalled until
    /// collection took its segments for leftovers does not commit.
    async fn run(
        &mut self,
        snapshot: Snapshot,
        plan: Plan,
        stopped: &mut (impl Future<Output = ()> + Unpin),
    ) -> Result<Compacted, Unfinished> {
        let created = Registration::create(&self.cluster, PendingKind::Compaction, None, "compaction").await;
        let registration = created.map_err(Unfinished::Failed)?;
        let passed = tokio::select! {
            passed = self.pass(snapshot, plan, &registration) => passed.map_err(Unfinished::Failed),
            expired = registration.keep(limits::WORK_RENEW_INTERVAL) => Err(Unfinished::Failed(conflict(expired.to_string()))),
            () = stopped => Err(Unfinished::Stopped),
        };
        match &passed {
            Ok(_) => registration.left().await,
            // What cannot be taken back now expires.
            Err(_) => drop(tokio::time::timeout(ABANDON_LIMIT, registration.abandon()).await),
        }
        passed
    }

    async fn pass(
        &mut self,
        snapshot: Snapshot,
        plan: Plan,
        registration: &Registration,
    ) -> Result<Compacted, RepoError> {
        let (cluster, mut epochs) = (&self.cluster, self.epochs.for_pass());
        let mut reader = WalReader::new(cluster.clone(), snapshot.wal.clone());
        let mut written = Vec::with_capacity(plan.jobs.len());
        for job in plan.jobs {
            // A run of heartbeats has no WAL: it is retired without a segment.
            let entry = match &job.replaces {
                _ if job.start == job.end => None,
                Replaces::Segments { ids, deltas } => {
                    match write::merge(cluster, &snapshot.index, &job).await {
                        Ok(entry) => {
                            if let Some(deltas) = deltas {
                                epochs.merged(&snapshot.index, &deltas.epoch, job.end);
                            }
                            Some(entry)
                        }
                        // What cannot be merged keeps nobody from merging the others.
                        Err(error) => {
                            self.unreadable.insert(unreadable(cluster, ids, error).await?);
                            continue;
                        }
                    }
                }
                Replaces::Flushes { plain_from, .. } => {
                    // Little WAL is not worth the decoding of an epoch.
                    let encoder = if *plain_from == job.start {
                        None
                    } else {
                        epochs.encoder(cluster, &snapshot, &mut reader, &job).await?
                    };
                    let entry = write::flushes(cluster, &mut reader, &job, *plain_from, encoder).await?;
                    let proved = match is_first(&entry, &snapshot.index, &written) {
                        true => write::decode_first(cluster, &entry).await,
                        false => Ok(()),
                    };
                    match proved {
                        Ok(()) => Some(entry),
                        // Nothing is lost but room, as long as the flush objects are there.
                        // Without room to decode it, nobody knows what it is: that is as bad.
                        Err(error) if error.is_damage() || error.is_no_space() => {
                            tracing::error!(%error, "WAL deltas were not proved to be what they should; WAL is stored without them");
                            epochs.give_up();
                            Some(write::flushes(cluster, &mut reader, &job, job.start, None).await?)
                        }
                        Err(error) => return Err(error),
                    }
                }
            };
            written.push((job, entry));
        }
        let committing = |root: &Root, index: &Index| {
            let root = registration.leave(root).ok_or_else(|| conflict(PendingError::Expired.to_string()))?;
            commit(&root, index, &written, &plan.finished).map(Some)
        };
        cluster.commit_indexed(committing).await?;
        let mut done = Compacted { epochs_decoded: epochs.decoded(), ..Compacted::default() };
        self.epochs = epochs;
        for (job, entry) in &written {
            match &job.replaces {
                Replaces::Flushes { from, to, .. } => done.flushes += to - from,
                Replaces::Segments { ids, .. } => done.merged += ids.len() as u64,
            }
            done.segments += u64::from(entry.is_some());
            done.wal_bytes += job.end.bytes_since(job.start);
        }
        Ok(done)
    }
}

/// Whether nothing of the epoch of `entry` was stored before it.
fn is_first(entry: &WalEntry, index: &Index, written: &[(Job, Option<WalEntry>)]) -> bool {
    let epoch_of = |entry: &WalEntry| entry.deltas.as_ref().map(|deltas| deltas.epoch.id);
    let mut before = index.wal.iter().chain(written.iter().filter_map(|(_, entry)| entry.as_ref()));
    epoch_of(entry).is_some_and(|epoch| !before.any(|other| epoch_of(other) == Some(epoch)))
}

/// The one of the segments `ids` that `error` says cannot be read.
///
/// # Errors
/// `error`, when that is not what it says: somebody else was faster, perhaps.
async fn unreadable(cluster: &Cluster, ids: &[ObjectId], error: RepoError) -> Result<ObjectId, RepoError> {
    let of_key =
        |key: &ObjectKey| ids.iter().copied().find(|id| layout::segment(cluster.name(), *id) == *key);
    let Some(id) = error.damaged_object().and_then(of_key) else { return Err(error) };
    if object_is_gone(&error) {
        let index = walmap::load_unbroken(cluster).await?.index;
        if !index.wal.iter().any(|entry| entry.id == id) {
            return Err(error);
        }
    }
    tracing::error!(%error, "a small segment of WAL is not merged; `walden verify` says what is lost");
    Ok(id)
}

/// Why a pass did not commit.
enum Unfinished {
    Failed(RepoError),
    Stopped,
}

/// Compacts as the receiver stores: by bytes, by objects, by age; on a thread of its own, whose priority is low.
/// Returns when `stored`'s sender is gone.
pub async fn follow(
    cluster: Cluster,
    deltas: Option<DeltaOptions>,
    mut stored: watch::Receiver<Stored>,
) -> Result<(), RepoError> {
    let mut compactor = Compactor::new(cluster, deltas);
    let mut done = *stored.borrow();
    let mut oldest: Option<Instant> = None;
    loop {
        let deadline = oldest.unwrap_or_else(Instant::now) + limits::COMPACT_INTERVAL;
        let due = tokio::select! {
            changed = stored.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                false
            }
            () = tokio::time::sleep_until(deadline), if oldest.is_some() => true,
        };
        let now = *stored.borrow_and_update();
        oldest.get_or_insert_with(Instant::now);
        let wal_bytes = now.wal_bytes.saturating_sub(done.wal_bytes);
        let many = now.objects.saturating_sub(done.objects) >= limits::COMPACT_OBJECTS_MAX;
        let extent = if due || many { Extent::All } else { Extent::Full };
        if !due && !many && wal_bytes < limits::WAL_SEGMENT_BYTES_MAX {
            continue;
        }
        let mut watched = stored.clone();
        let pass = async move {
            let ended = async { while watched.changed().await.is_ok() {} };
            let done = compactor.compact_until(extent, &mut std::pin::pin!(ended)).await;
            (compactor, done)
        };
        // Receiving goes first, until it has left so much behind that reading it again would take long.
        let waiting = now.objects.saturating_sub(done.objects);
        let priority =
            if waiting > limits::COMPACT_OBJECTS_URGENT { Priority::Normal } else { Priority::Low };
        let ended;
        (compactor, ended) = own_thread::run("compact", priority, pass).await;
        match ended {
            Ok(compacted) => {
                let Compacted { flushes, merged, segments, wal_bytes, epochs_decoded, unreadable } =
                    compacted;
                tracing::info!(flushes, merged, segments, wal_bytes, epochs_decoded, unreadable, "compacted");
                done = now;
                oldest = None;
            }
            Err(error) if error.is_transient() || matches!(error, RepoError::Conflict { .. }) => {
                tracing::warn!(%error, "compaction failed; it is tried again");
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Whether WAL behind what is lost waits in its flush objects: what took their place would hide the loss.
fn is_broken(snapshot: &Snapshot) -> bool {
    snapshot.wal.chains().iter().any(|chain| !chain.lost.is_empty())
}

fn conflict(reason: String) -> RepoError {
    RepoError::Conflict { reason }
}

/// The next root and index, or a conflict when what was compacted is not what is there now.
fn commit(
    root: &Root,
    index: &Index,
    written: &[(Job, Option<WalEntry>)],
    finished: &[StreamId],
) -> Result<RootChange, RepoError> {
    let mut next = root.clone();
    let mut page = empty_page();
    let number = root.number + 1;
    for (job, entry) in written {
        match &job.replaces {
            Replaces::Flushes { stream, from, to, link, key_epoch, .. } => {
                // Segments that are merged refer to what they referred to before: there is nothing to refuse.
                if let Some(deltas) = entry.as_ref().and_then(|entry| entry.deltas.as_ref()) {
                    epoch::check(root, index, job, deltas)?;
                }
                let Some(open) = next.streams.iter_mut().find(|open| open.id == *stream) else {
                    return Err(conflict(format!("stream {stream} is compacted already")));
                };
                if open.low_water != *from {
                    return Err(conflict(format!("stream {stream} is compacted up to {}", open.low_water)));
                }
                open.low_water = *to;
                open.low_water_lsn = Some(job.end);
                open.low_water_link = *link;
                open.low_water_key_epoch = *key_epoch;
                retire(
                    &mut next.retired,
                    RetiredFlush { stream: *stream, from: *from, to: *to, root: number },
                );
            }
            Replaces::Segments { ids, .. } => {
                for id in ids {
                    if !index.wal.iter().any(|entry| entry.id == *id) {
                        return Err(conflict(format!("segment {id} is replaced already")));
                    }
                    page.removed.push(RemovedEntry {
                        kind: RemovedKind::Wal,
                        name: id.to_string(),
                        root: number,
                    });
                }
            }
        }
        page.wal.extend(entry.clone());
    }
    next.streams.retain(|stream| !finished.contains(&stream.id));
    let index = if page == empty_page() { IndexEdit::Keep } else { IndexEdit::Add(page) };
    Ok(RootChange { root: next, index })
}

/// Neighbouring runs of one stream become one entry: its grace starts with the newer root.
fn retire(retired: &mut Vec<RetiredFlush>, run: RetiredFlush) {
    match retired.iter_mut().rev().find(|last| last.stream == run.stream) {
        Some(last) if last.to == run.from => {
            last.to = run.to;
            last.root = run.root;
        }
        _ => retired.push(run),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{BackupId, Generation, Lsn, TimelineId, Timestamp};
    use crate::format::index::ExpiredEntry;
    use crate::format::root::PendingEntry;
    use crate::format::wal::{DeltaEpoch, DeltaStats, WalDeltas, WalSummary};

    fn entry(id: u8, start: u64, deltas: Option<WalDeltas>) -> WalEntry {
        WalEntry {
            id: ObjectId([id; 16]),
            generation: Generation(1),
            timeline: TimelineId(1),
            start: Lsn::new(start),
            end: Lsn::new(start + 10),
            object_len: 1,
            directory_offset: 1,
            server_time: Timestamp::from_micros(0),
            summary: WalSummary::empty(),
            deltas,
        }
    }

    #[test]
    fn the_first_segment_of_an_epoch_is_the_first_with_delta_frames_wherever_the_epoch_begins() {
        let deltas = |epoch: u8, start: u64| {
            let epoch =
                DeltaEpoch { id: ObjectId([epoch; 16]), start: Lsn::new(start), root: 1, cache_pages: 1 };
            Some(WalDeltas { epoch, base: None, stats: DeltaStats::EMPTY })
        };
        // What the epoch began with came out plain.
        let stored =
            Index { wal: vec![entry(1, 90, deltas(8, 90)), entry(2, 100, None)], ..Index::default() };
        let behind = entry(3, 110, deltas(9, 100));
        assert!(is_first(&behind, &stored, &[]));
        assert!(!is_first(&entry(3, 110, None), &stored, &[]), "nothing in it is to be decoded");
        assert!(!is_first(&entry(3, 110, deltas(8, 90)), &stored, &[]));
        let job = Job {
            generation: Generation(1),
            timeline: TimelineId(1),
            start: Lsn::new(110),
            end: Lsn::new(120),
            server_time: Timestamp::from_micros(0),
            summary: WalSummary::empty(),
            replaces: Replaces::Segments { ids: Vec::new(), deltas: None },
        };
        assert!(
            !is_first(&entry(4, 120, deltas(9, 100)), &stored, &[(job, Some(behind))]),
            "of the same pass"
        );
    }

    /// Neighbours, the first of delta frames whose base is gone, in an epoch whose beginning is, and which a backup ended.
    #[test]
    fn what_segments_refer_to_may_be_gone_when_they_are_merged_but_not_when_they_are_new() {
        let epoch = DeltaEpoch { id: ObjectId([9; 16]), start: Lsn::new(100), root: 1, cache_pages: 1 };
        let base = Some("20261122T195501Z".parse::<BackupId>().unwrap());
        let deltas = WalDeltas { epoch, base, stats: DeltaStats::EMPTY };
        let wal = vec![entry(1, 120, Some(deltas.clone())), entry(2, 130, None)];
        let (generation, timeline) = (Generation(1), TimelineId(1));
        let expired = ExpiredEntry { generation, timeline, start: Lsn::new(100), end: Lsn::new(120) };
        let index = Index { wal, expired: vec![expired], ..Index::default() };
        let first = Root::first("shop".parse().unwrap(), generation, Timestamp::from_micros(0));
        let backup = PendingEntry { id: ObjectId([7; 16]), kind: PendingKind::Backup, root: 5 };
        let root = Root { pending: vec![backup], ..first };
        let merge = Job {
            generation,
            timeline,
            start: Lsn::new(120),
            end: Lsn::new(140),
            server_time: Timestamp::from_micros(0),
            summary: WalSummary::empty(),
            replaces: Replaces::Segments {
                ids: vec![ObjectId([1; 16]), ObjectId([2; 16])],
                deltas: Some(deltas.clone()),
            },
        };
        let merged = WalEntry { end: Lsn::new(140), ..entry(3, 120, Some(deltas)) };
        let change = commit(&root, &index, &[(merge.clone(), Some(merged.clone()))], &[]).unwrap();
        let IndexEdit::Add(page) = change.index else { panic!("an index page") };
        assert_eq!((page.wal, page.removed.len()), (vec![merged.clone()], 2));

        let replaces = Replaces::Flushes {
            stream: StreamId([1; 16]),
            from: 0,
            to: 1,
            link: [0; 32],
            key_epoch: 1,
            plain_from: Lsn::new(140),
        };
        let fresh = Job { replaces, ..merge };
        let refused = commit(&root, &index, &[(fresh, Some(merged))], &[]);
        assert!(matches!(refused, Err(RepoError::Conflict { reason }) if reason.ends_with("is gone")));
    }
}
