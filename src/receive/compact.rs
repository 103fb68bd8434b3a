//! Compaction: flush objects become segments of up to 64 MiB of WAL, small segments are merged.
//! Off the acknowledgement path. A root that names the segments retires what they replace; until then nothing changed,
//! and whoever loses the race throws its segments away (collection removes them).

use super::pipeline::Stored;
use crate::base::planted::{Bug, planted};
use crate::base::{Generation, Lsn, LsnRange, ObjectId, StreamId, TimelineId, Timestamp, limits};
use crate::codec::KeySource;
use crate::disk::own_thread::{self, Priority};
use crate::format::header::ObjectKind;
use crate::format::index::{RemovedEntry, RemovedKind, WalEntry, without_relations};
use crate::format::record::Record;
use crate::format::root::{PendingKind, RetiredFlush, Root};
use crate::format::wal::{WalMeta, WalSummary};
use crate::repo::chain::{Chain, ChainEnd, ChainObject};
use crate::repo::cluster::{RootChange, object_is_gone};
use crate::repo::index::{Index, IndexEdit, empty_page};
use crate::repo::walmap::{self, Snapshot};
use crate::repo::{Cluster, PendingError, Registration, RepoError, WalReader, layout, walread};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Segments written by one commit.
const SEGMENTS_PER_COMMIT: usize = 16;
/// Neighbours at most this long are merged.
const SMALL_BYTES: u64 = limits::WAL_SEGMENT_BYTES_MAX / 4;
/// Small neighbours that are worth a merge in the background.
const SMALL_RUN: usize = 8;
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
}

/// Compacts until nothing of `extent` is left. Safe beside a running receiver and other compactions. It computes on the
/// thread that polls it, for tens of milliseconds at a time. If dropped: what it had registered and written stays until
/// collection takes it for abandoned.
pub async fn compact(cluster: &Cluster, extent: Extent) -> Result<Compacted, RepoError> {
    compact_until(cluster, extent, &mut std::pin::pin!(std::future::pending())).await
}

/// The same, cut short when `stopped` ends: what was registered is taken away then.
async fn compact_until(
    cluster: &Cluster,
    extent: Extent,
    stopped: &mut (impl Future<Output = ()> + Unpin),
) -> Result<Compacted, RepoError> {
    let mut total = Compacted::default();
    let mut tries = 0;
    loop {
        let snapshot = walmap::load(cluster).await?;
        let plan = plan(&snapshot, extent);
        if plan == Plan::default() {
            return Ok(total);
        }
        match run(cluster, snapshot, plan, stopped).await {
            Ok(done) => {
                total.flushes += done.flushes;
                total.merged += done.merged;
                total.segments += done.segments;
                total.wal_bytes += done.wal_bytes;
                tries = 0;
            }
            Err(Unfinished::Stopped) => return Ok(total),
            Err(Unfinished::Failed(error @ RepoError::Conflict { .. })) if tries < PASS_TRIES => {
                tracing::info!(%error, "another compaction was faster");
                tries += 1;
            }
            Err(Unfinished::Failed(error)) if object_is_gone(&error) && tries < PASS_TRIES => tries += 1,
            Err(Unfinished::Failed(error)) => return Err(error),
        }
    }
}

/// Why a pass did not commit.
enum Unfinished {
    Failed(RepoError),
    Stopped,
}

/// Compacts as the receiver stores: by bytes, by objects, by age; on a thread of its own, whose priority is low.
/// Returns when `stored`'s sender is gone.
pub async fn follow(cluster: Cluster, mut stored: watch::Receiver<Stored>) -> Result<(), RepoError> {
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
        let (cluster, mut watched) = (cluster.clone(), stored.clone());
        let pass = async move {
            let ended = async { while watched.changed().await.is_ok() {} };
            compact_until(&cluster, extent, &mut std::pin::pin!(ended)).await
        };
        // Receiving goes first, until it has left so much behind that reading it again would take long.
        let waiting = now.objects.saturating_sub(done.objects);
        let priority =
            if waiting > limits::COMPACT_OBJECTS_URGENT { Priority::Normal } else { Priority::Low };
        match own_thread::run("compact", priority, pass).await {
            Ok(compacted) => {
                let Compacted { flushes, merged, segments, wal_bytes } = compacted;
                tracing::info!(flushes, merged, segments, wal_bytes, "compacted");
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

/// One segment to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    generation: Generation,
    timeline: TimelineId,
    start: Lsn,
    end: Lsn,
    server_time: Timestamp,
    summary: WalSummary,
    replaces: Replaces,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Replaces {
    /// Flush objects `from..to` of a stream; `link` is the last one's.
    Flushes { stream: StreamId, from: u64, to: u64, link: [u8; 32] },
    /// Segments.
    Segments(Vec<ObjectId>),
}

/// What one commit does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Segments to write: a bounded number, oldest first.
    pub jobs: Vec<Job>,
    /// Streams that are fenced, wholly compacted and no longer needed to find the end of WAL. Their fences stay.
    pub finished: Vec<StreamId>,
}

/// What there is to do.
pub fn plan(snapshot: &Snapshot, extent: Extent) -> Plan {
    let mut jobs = Vec::new();
    for chain in snapshot.wal.chains() {
        plan_chain(chain, extent, &mut jobs);
    }
    if jobs.is_empty() {
        plan_merges(&snapshot.index, snapshot.root.generation, extent, &mut jobs);
    }
    jobs.truncate(SEGMENTS_PER_COMMIT);
    Plan { jobs, finished: finished_streams(snapshot.wal.chains()) }
}

/// A stream leaves the root when nothing of it is left to compact, nobody can write to it any more, and a later one
/// says where WAL ends.
fn finished_streams(chains: &[Chain]) -> Vec<StreamId> {
    let newest_with_end = chains.iter().rposition(|chain| chain.end_lsn().is_some()).unwrap_or(0);
    let finished = |chain: &&Chain| {
        chain.objects.is_empty()
            && matches!(chain.end, ChainEnd::Fenced { number, .. } if number == chain.stream.low_water)
    };
    chains.iter().take(newest_with_end).filter(finished).map(|chain| chain.stream.id).collect()
}

/// Cuts a chain into runs. Whole runs always go; the rest goes with [`Extent::All`], or when the stream is closed.
fn plan_chain(chain: &Chain, extent: Extent, jobs: &mut Vec<Job>) {
    let closed = matches!(chain.end, ChainEnd::Fenced { .. });
    let mut run: Vec<&ChainObject> = Vec::new();
    let mut bytes = 0;
    for object in &chain.objects {
        let len = object.meta.end.bytes_since(object.meta.start);
        if bytes > 0 && bytes + len > limits::WAL_SEGMENT_BYTES_MAX {
            jobs.extend(flush_job(chain, &run));
            (run, bytes) = (Vec::new(), 0);
        }
        bytes += len;
        run.push(object);
    }
    if extent == Extent::All || closed || bytes >= limits::WAL_SEGMENT_BYTES_MAX {
        jobs.extend(flush_job(chain, &run));
    }
}

fn flush_job(chain: &Chain, run: &[&ChainObject]) -> Option<Job> {
    let (first, last) = (run.first()?, run.last()?);
    let mut summary = WalSummary::empty();
    run.iter().for_each(|object| summary.extend(&object.meta.summary));
    Some(Job {
        generation: chain.stream.generation,
        timeline: chain.stream.timeline,
        start: first.meta.start,
        end: last.meta.end,
        server_time: last.meta.server_time,
        summary,
        replaces: Replaces::Flushes {
            stream: chain.stream.id,
            from: first.number,
            to: last.number + 1,
            link: last.link,
        },
    })
}

/// Runs of neighbours that fit into one segment together.
fn plan_merges(index: &Index, generation: Generation, extent: Extent, jobs: &mut Vec<Job>) {
    let mut run: Vec<&WalEntry> = Vec::new();
    let length = |run: &[&WalEntry]| run.iter().map(|e| e.end.bytes_since(e.start)).sum::<u64>();
    let enough = |run: &[&WalEntry]| run.len() >= if extent == Extent::All { 2 } else { SMALL_RUN };
    for entry in index.wal.iter().filter(|entry| entry.generation == generation) {
        let small = entry.end.bytes_since(entry.start) <= SMALL_BYTES;
        let joins = run.last().is_some_and(|last| last.timeline == entry.timeline && last.end == entry.start)
            && length(&run) + entry.end.bytes_since(entry.start) <= limits::WAL_SEGMENT_BYTES_MAX;
        if !(small && joins) {
            if enough(&run) {
                jobs.extend(merge_job(&run));
            }
            run.clear();
        }
        if small {
            run.push(entry);
        }
    }
    if enough(&run) {
        jobs.extend(merge_job(&run));
    }
}

fn merge_job(run: &[&WalEntry]) -> Option<Job> {
    let (first, last) = (run.first()?, run.last()?);
    let mut summary = WalSummary::empty();
    run.iter().for_each(|entry| summary.extend(&entry.summary));
    Some(Job {
        generation: first.generation,
        timeline: first.timeline,
        start: first.start,
        end: last.end,
        server_time: last.server_time,
        summary,
        replaces: Replaces::Segments(run.iter().map(|entry| entry.id).collect()),
    })
}

/// Carries a plan out, registered as work in progress from before the first segment is written: a pass that stalled until
/// collection took its segments for leftovers does not commit.
async fn run(
    cluster: &Cluster,
    snapshot: Snapshot,
    plan: Plan,
    stopped: &mut (impl Future<Output = ()> + Unpin),
) -> Result<Compacted, Unfinished> {
    let created = Registration::create(cluster, PendingKind::Compaction, None, "compaction").await;
    let registration = created.map_err(Unfinished::Failed)?;
    let passed = tokio::select! {
        passed = pass(cluster, snapshot, plan, &registration) => passed.map_err(Unfinished::Failed),
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
    cluster: &Cluster,
    snapshot: Snapshot,
    plan: Plan,
    registration: &Registration,
) -> Result<Compacted, RepoError> {
    let mut reader = WalReader::new(cluster.clone(), snapshot.wal);
    let mut written = Vec::with_capacity(plan.jobs.len());
    for job in plan.jobs {
        // A run of heartbeats has no WAL: it is retired without a segment.
        let entry = if job.start == job.end { None } else { Some(write(cluster, &mut reader, &job).await?) };
        written.push((job, entry));
    }
    let committing = |root: &Root, index: &Index| {
        let root = registration.leave(root).ok_or_else(|| conflict(PendingError::Expired.to_string()))?;
        commit(&root, index, &written, &plan.finished).map(Some)
    };
    cluster.commit_indexed(committing).await?;
    let mut done = Compacted::default();
    for (job, entry) in &written {
        match &job.replaces {
            Replaces::Flushes { from, to, .. } => done.flushes += to - from,
            Replaces::Segments(ids) => done.merged += ids.len() as u64,
        }
        done.segments += u64::from(entry.is_some());
        done.wal_bytes += job.end.bytes_since(job.start);
    }
    Ok(done)
}

fn conflict(reason: String) -> RepoError {
    RepoError::Conflict { reason }
}

/// Writes one segment and reads its directory back before anything it replaces may go.
async fn write(cluster: &Cluster, reader: &mut WalReader, job: &Job) -> Result<WalEntry, RepoError> {
    let repo = cluster.repo();
    let id = ObjectId::random(&*repo.env().entropy);
    let key = layout::segment(cluster.name(), id);
    let mut writer = repo.writer(ObjectKind::WalSegment, &key, id.0, 0, 0);
    // Address space for the worst case at once: a buffer that grows is copied again and again, and allocators keep the pieces.
    writer.reserve(limits::WAL_SEGMENT_BYTES_MAX as usize);
    let mut at = job.start;
    while at < job.end {
        let frame_end = at.saturating_add(1).align_down(limits::WAL_FRAME_BYTES as u64);
        let frame_end = frame_end.saturating_add(limits::WAL_FRAME_BYTES as u64).min(job.end);
        let range = LsnRange::new(at, frame_end);
        // A whole frame goes over as it was packed: compressing WAL twice would be half of all work.
        if let Some(packed) = reader.packed(job.timeline, range).await? {
            writer.add_packed(&packed, at.get());
        } else {
            let bytes = reader.read(job.timeline, range).await?;
            let chunk = repo.keys().chunk_id_key().chunk_id(&bytes);
            writer.add(&bytes, chunk, at.get());
        }
        at = frame_end;
    }
    let full = WalMeta {
        timeline: job.timeline,
        start: job.start,
        end: job.end,
        server_end: job.end,
        server_time: job.server_time,
        previous_link: [0; 32],
        predecessor: None,
        summary: job.summary.clone(),
        extensions: Vec::new(),
    };
    let finished = writer.finish(full.encode());
    let (object_len, directory_offset) = (finished.bytes.len() as u64, finished.directory_offset);
    if planted(Bug::RootBeforeData) {
        let (cluster, key, bytes) = (cluster.clone(), key.clone(), finished.bytes.clone());
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(3)).await;
            cluster.repo().create_own(&key, &bytes).await
        });
    } else {
        repo.create_own(&key, &finished.bytes).await?;
        drop(finished);
        walread::check_segment(cluster, &key, directory_offset, object_len).await?;
    }
    let entry = WalEntry {
        id,
        generation: job.generation,
        timeline: job.timeline,
        start: job.start,
        end: job.end,
        object_len,
        directory_offset,
        server_time: job.server_time,
        summary: without_relations(&job.summary),
    };
    Ok(entry)
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
            Replaces::Flushes { stream, from, to, link } => {
                let Some(open) = next.streams.iter_mut().find(|open| open.id == *stream) else {
                    return Err(conflict(format!("stream {stream} is compacted already")));
                };
                if open.low_water != *from {
                    return Err(conflict(format!("stream {stream} is compacted up to {}", open.low_water)));
                }
                open.low_water = *to;
                open.low_water_lsn = Some(job.end);
                open.low_water_link = *link;
                retire(
                    &mut next.retired,
                    RetiredFlush { stream: *stream, from: *from, to: *to, root: number },
                );
            }
            Replaces::Segments(ids) => {
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
