//! Putting files into the staging directory: each once at a time, whole or not at all, tried again until patience ends.
//! A staged segment is synced: PostgreSQL syncs it anyway before it relies on it, and would wait for that.

use super::compose::{Composition, compose, first_choice, next_segments};
use crate::base::{Lsn, LsnRange, SegmentNo, SegmentSize, TimelineId, WalFileName};
use crate::repo::lineage::TimelinePath;
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

/// Segments staged ahead.
pub const AHEAD_SEGMENTS_MAX: usize = 16;
/// Their bytes, but for a single larger one.
pub const AHEAD_BYTES_MAX: u64 = 256 << 20;
/// Segments being fetched ahead at once.
const AHEAD_FETCHES_MAX: usize = 3;
/// The copy of the last segment.
const LAST: &str = "last";
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
const ZEROS: &[u8] = &[0; 64 << 10];

/// Why a file could not be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// It may work again.
    Passing(String),
    /// It will not.
    Lasting(String),
}

/// Where WAL comes from.
#[async_trait]
pub trait Archive: Send + Sync + 'static {
    /// The hole-free WAL of the path around the start of recovery; read anew when `from` is at or past what was known.
    async fn run(&self, from: Lsn) -> Result<LsnRange, Trouble>;

    /// A history file; none only after the newest index was asked.
    async fn history(&self, timeline: TimelineId) -> Result<Option<Bytes>, Trouble>;

    /// Timelines whose history files are known.
    async fn histories(&self) -> Result<Vec<TimelineId>, Trouble>;

    /// Waits until the next segment may be read, where they are read one after the other: in the order in which they were asked for.
    async fn turn(&self) -> Result<Option<OwnedMutexGuard<()>>, Trouble>;

    /// Bytes of the path from `range.start` on, at least one and at most up to `range.end`.
    async fn read_some(&self, range: LsnRange) -> Result<Bytes, Trouble>;
}

/// What became of a file that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is in the staging directory.
    Staged,
    /// It is not in the archive: that is proved.
    Absent(String),
    /// Nobody knows.
    Failed(String),
}

/// How far fetching a file has come.
#[derive(Debug, Clone)]
enum Fetch {
    Begun,
    /// Whoever reads what follows it may begin.
    OutOfTheWay,
    Done(Outcome),
}

impl Fetch {
    fn outcome(&self) -> Option<&Outcome> {
        match self {
            Fetch::Done(outcome) => Some(outcome),
            Fetch::Begun | Fetch::OutOfTheWay => None,
        }
    }

    fn has_failed(&self) -> bool {
        self.outcome().is_some_and(|outcome| *outcome != Outcome::Staged)
    }
}

/// What to stage, and how patiently.
#[derive(Debug, Clone)]
pub struct StageOptions {
    /// The staging directory.
    pub dir: PathBuf,
    /// The line of history.
    pub path: TimelinePath,
    /// The WAL segment size.
    pub segment_size: SegmentSize,
    /// Nothing from here on is staged before it is asked for.
    pub needed: Lsn,
    /// How long trouble may last.
    pub patience: Duration,
}

/// Stages files.
#[derive(Debug)]
pub struct Stager<A> {
    archive: Arc<A>,
    options: StageOptions,
    under_way: Mutex<HashMap<WalFileName, watch::Receiver<Fetch>>>,
    /// Held by who stages ahead, so that segments are begun in their order.
    ahead: tokio::sync::Mutex<()>,
    ahead_fetches: Arc<Semaphore>,
    /// One past the newest segment that was staged. What lies before it is there or was taken, and is not staged ahead again: where
    /// WAL stands as deltas, to go back means to decode the epoch from its start.
    staged_end: AtomicU64,
    /// The last segment, of which a copy is kept: recovery reads it again when it ends.
    last: Mutex<Option<(WalFileName, LsnRange)>>,
}

impl<A: Archive> Stager<A> {
    /// Stages what `archive` holds.
    pub fn new(archive: Arc<A>, options: StageOptions) -> Arc<Self> {
        Arc::new(Stager {
            archive,
            options,
            under_way: Mutex::new(HashMap::new()),
            ahead: tokio::sync::Mutex::default(),
            ahead_fetches: Arc::new(Semaphore::new(AHEAD_FETCHES_MAX)),
            staged_end: AtomicU64::new(0),
            last: Mutex::new(None),
        })
    }

    /// Has `name` staged. What is under way already is waited for. If dropped: it goes on.
    pub async fn want(self: &Arc<Self>, name: WalFileName) -> Outcome {
        if self.path_of(name).exists() {
            return Outcome::Staged;
        }
        loop {
            let (mut fetch, ours) = self.begin(name, self.options.patience, None);
            let outcome = fetch.wait_for(|fetch| fetch.outcome().is_some()).await;
            match outcome.ok().as_deref().and_then(Fetch::outcome) {
                // It was fetched ahead, which is tried once: now somebody waits for it.
                Some(Outcome::Failed(_)) if !ours => {}
                Some(outcome) => return outcome.clone(),
                None => return Outcome::Failed(format!("fetching {name} was given up")),
            }
        }
    }

    /// Stages what recovery will ask for after `name`. Returns at once.
    pub fn stage_after(self: &Arc<Self>, name: WalFileName) {
        let Some(number) = name.segment_no(self.options.segment_size) else { return };
        let stager = self.clone();
        tokio::spawn(async move {
            let _alone = stager.ahead.lock().await;
            let StageOptions { segment_size, needed, .. } = stager.options;
            let mut begun: Vec<watch::Receiver<Fetch>> = Vec::new();
            for next in next_segments(number, segment_size, needed, AHEAD_SEGMENTS_MAX, AHEAD_BYTES_MAX) {
                let Ok(permit) = stager.ahead_fetches.clone().acquire_owned().await else { return };
                // One try each, and whoever needs it will ask.
                if begun.iter().any(|fetch| fetch.borrow().has_failed()) {
                    return;
                }
                match stager.stage_ahead(next, permit).await {
                    ControlFlow::Continue(fetch) => begun.extend(fetch),
                    ControlFlow::Break(()) => return,
                }
            }
        });
    }

    /// Begins to fetch a segment unless it is there, and waits until the next one may begin.
    async fn stage_ahead(
        self: &Arc<Self>,
        number: SegmentNo,
        permit: OwnedSemaphorePermit,
    ) -> ControlFlow<(), Option<watch::Receiver<Fetch>>> {
        let options = &self.options;
        if number.0 < self.staged_end.load(Ordering::Relaxed) {
            return ControlFlow::Continue(None);
        }
        let Ok(run) = self.archive.run(Lsn::ZERO).await else { return ControlFlow::Break(()) };
        let Some(name) = first_choice(number, options.segment_size, &options.path, run) else {
            return ControlFlow::Break(());
        };
        if self.path_of(name).exists() {
            return ControlFlow::Continue(None);
        }
        let (mut fetch, _) = self.begin(name, Duration::ZERO, Some(permit));
        match fetch.wait_for(|fetch| !matches!(fetch, Fetch::Begun)).await {
            Ok(state) if !state.has_failed() => {}
            _ => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(Some(fetch))
    }

    /// Stages every history file there is: PostgreSQL asks for them one after the other.
    pub async fn stage_histories(self: &Arc<Self>) {
        for timeline in self.archive.histories().await.unwrap_or_default() {
            self.want(WalFileName::History(timeline)).await;
        }
    }

    fn path_of(&self, name: WalFileName) -> PathBuf {
        self.options.dir.join(name.to_string())
    }

    /// Fetches `name` with `permit`, unless that is under way already; says which.
    fn begin(
        self: &Arc<Self>,
        name: WalFileName,
        patience: Duration,
        permit: Option<OwnedSemaphorePermit>,
    ) -> (watch::Receiver<Fetch>, bool) {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fetch) = under_way.get(&name) {
            return (fetch.clone(), false);
        }
        if let (None, Some(number)) = (&permit, name.segment_no(self.options.segment_size)) {
            // Asked for, and neither there nor under way: recovery that goes back wants what follows once more.
            self.staged_end.fetch_min(number.0, Ordering::Relaxed);
        }
        let (tell, fetch) = watch::channel(Fetch::Begun);
        under_way.insert(name, fetch.clone());
        let stager = self.clone();
        tokio::spawn(async move {
            let result = stager.try_until(name, patience, &tell).await;
            if let (Outcome::Staged, Some(number)) = (&result, name.segment_no(stager.options.segment_size)) {
                stager.staged_end.fetch_max(number.0.saturating_add(1), Ordering::Relaxed);
            }
            stager.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
            tell.send_replace(Fetch::Done(result));
            drop(permit);
        });
        (fetch, true)
    }

    async fn try_until(&self, name: WalFileName, patience: Duration, tell: &watch::Sender<Fetch>) -> Outcome {
        let deadline = Instant::now() + patience;
        let mut wait = BACKOFF_MIN;
        loop {
            match self.try_once(name, tell).await {
                Ok(outcome) => return outcome,
                Err(Trouble::Lasting(reason)) => return Outcome::Failed(reason),
                Err(Trouble::Passing(reason)) if Instant::now() + wait > deadline => {
                    return Outcome::Failed(reason);
                }
                Err(Trouble::Passing(reason)) => tracing::warn!(%name, reason, "fetching again"),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(BACKOFF_MAX);
        }
    }

    async fn try_once(&self, name: WalFileName, tell: &watch::Sender<Fetch>) -> Result<Outcome, Trouble> {
        let options = &self.options;
        match (name, name.segment_no(options.segment_size)) {
            (WalFileName::History(timeline), _) => match self.archive.history(timeline).await? {
                Some(content) => {
                    let mut file = self.create(name)?;
                    file.write_all(&content).map_err(|error| on_disk(&options.dir, error))?;
                    self.finish(name, file).await
                }
                None => Ok(Outcome::Absent(format!("the cluster has no timeline {timeline}"))),
            },
            (WalFileName::Segment { timeline, .. }, Some(number)) => {
                let run = self.archive.run(number.range(options.segment_size).end).await?;
                match compose(timeline, number, options.segment_size, &options.path, run) {
                    Composition::Of(range) => self.write_segment(name, range, tell).await,
                    Composition::Absent(reason) => Ok(Outcome::Absent(reason)),
                }
            }
            (WalFileName::Segment { .. }, None) => {
                let size = options.segment_size.bytes();
                Ok(Outcome::Absent(format!("no segment of {size} bytes has that name")))
            }
        }
    }

    async fn write_segment(
        &self,
        name: WalFileName,
        range: LsnRange,
        tell: &watch::Sender<Fetch>,
    ) -> Result<Outcome, Trouble> {
        let turn = self.archive.turn().await?;
        if turn.is_none() {
            tell.send_replace(Fetch::OutOfTheWay);
        }
        let failed = |error| on_disk(&self.options.dir, error);
        if turn.is_some() && self.copy_last(name, range) {
            let file = File::open(self.temporary(name)).map_err(failed)?;
            return self.finish(name, file).await;
        }
        let mut file = self.create(name)?;
        let mut at = range.start;
        while at < range.end {
            let some = self.archive.read_some(LsnRange::new(at, range.end)).await?;
            assert!(!some.is_empty(), "an archive read nothing");
            at = at.saturating_add(some.len() as u64);
            file.write_all(&some).map_err(failed)?;
        }
        // Zeros that are written, not a hole: the server may use the file again for WAL of its own.
        let mut left = self.options.segment_size.bytes().saturating_sub(range.len());
        while left > 0 {
            let some = ZEROS.get(..left.min(ZEROS.len() as u64) as usize).unwrap_or(ZEROS);
            file.write_all(some).map_err(failed)?;
            left -= some.len() as u64;
        }
        if turn.is_some() && range.end >= self.options.needed {
            self.keep_last(name, range);
        }
        // Whoever reads next need not wait for the disk.
        drop(turn);
        tell.send_replace(Fetch::OutOfTheWay);
        self.finish(name, file).await
    }

    /// Puts the kept copy into the temporary file of `name`, if it is one of `range`.
    fn copy_last(&self, name: WalFileName, range: LsnRange) -> bool {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != Some((name, range)) {
            return false;
        }
        let copied = std::fs::copy(self.options.dir.join(LAST), self.temporary(name));
        if let Err(error) = &copied {
            tracing::warn!(%error, %name, "the copy of the last segment cannot be had; it is read again");
            *last = None;
        }
        copied.is_ok()
    }

    /// Keeps a copy of what the temporary file of `name` holds. Without room for one, it is read again when it is wanted again.
    fn keep_last(&self, name: WalFileName, range: LsnRange) {
        let copied = std::fs::copy(self.temporary(name), self.options.dir.join(LAST));
        if let Err(error) = &copied {
            tracing::warn!(%error, %name, "no copy of the last segment is kept");
            std::fs::remove_file(self.options.dir.join(LAST)).ok();
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = copied.is_ok().then_some((name, range));
    }

    fn temporary(&self, name: WalFileName) -> PathBuf {
        self.options.dir.join(format!("{name}.tmp"))
    }

    fn create(&self, name: WalFileName) -> Result<File, Trouble> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.open(self.temporary(name)).map_err(|error| on_disk(&self.options.dir, error))
    }

    async fn finish(&self, name: WalFileName, file: File) -> Result<Outcome, Trouble> {
        let (from, to) = (self.temporary(name), self.path_of(name));
        let done = tokio::task::spawn_blocking(move || {
            file.sync_data()?;
            std::fs::rename(from, to)
        });
        let done = done.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        done.map(|()| Outcome::Staged).map_err(|error| on_disk(&self.options.dir, error))
    }
}

/// A full disk may be emptied; anything else of the disk's may pass too.
fn on_disk(dir: &Path, error: io::Error) -> Trouble {
    Trouble::Passing(format!("{}: {error}", dir.display()))
}

#[cfg(test)]
mod tests;
