//! The driver: passes over the source until little is left that it wrote meanwhile. Each pass holds what it reads, plans, copies backups
//! and WAL in the planned order, and commits what is durable.

use super::backup;
use super::chunks::Chunks;
use super::destination::Destination;
use super::error::CopyError;
use super::plan::{self, Group, Plan, Step, Unit};
use super::same;
use super::selection::{Scope, Selection};
use super::source::{Place, View};
use super::wal;
use crate::base::{BackupId, ClusterName, Generation, Lsn, Progress, TimelineId, Timestamp, limits};
use crate::format::index::{BackupEntry, WalEntry};
use crate::repo::cluster::object_is_gone;
use crate::repo::hold::Hold;
use crate::repo::manifest::Manifest;
use crate::repo::{Cluster, Index, RepoError, Repository, WalReader};
use futures_util::StreamExt;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, watch};

/// Segments of WAL named by one root.
const SEGMENTS_PER_COMMIT: usize = 16;
/// Times a pass begins again because what it read has moved.
const TRIES_MAX: u32 = 5;
/// With no more than so much in a pass the copy has caught up: the source goes on writing.
const CAUGHT_UP_BYTES: u64 = limits::WAL_SEGMENT_BYTES_MAX;
/// How long a copy tries to take its registration away.
const LEAVE_LIMIT: Duration = Duration::from_secs(30);

/// How a copy is made.
#[derive(Debug, Clone)]
pub struct CopyOptions {
    /// What is copied.
    pub scope: Scope,
    /// Segments of WAL in flight, 64 MiB of memory each at most.
    pub jobs: usize,
    /// Threads that open, and that pack, chunks.
    pub threads: usize,
    /// Host and process, for people who find the registrations.
    pub holder: String,
    /// Time between two renewals of the registration.
    pub renew_interval: Duration,
    /// Bytes of new segments of chunks after which the destination's index names them: what an interruption wastes, about.
    pub chunks_commit_bytes: u64,
}

/// [`CopyOptions::chunks_commit_bytes`], when nobody says.
pub const CHUNKS_COMMIT_BYTES: u64 = 1 << 30;

/// Everything a copy works with.
#[derive(Debug)]
pub struct CopyJob<'a> {
    /// What is copied.
    pub source: &'a Cluster,
    /// Where to.
    pub repo: &'a Arc<Repository>,
    /// What the cluster is called there; made if it is not there.
    pub name: &'a ClusterName,
    /// How.
    pub options: &'a CopyOptions,
    /// Who watches.
    pub progress: &'a dyn Progress,
    /// Set to true to stop.
    pub stop: watch::Receiver<bool>,
}

/// What was copied.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Copied {
    /// Backups.
    pub backups: Vec<BackupId>,
    /// Backups that cannot be read whole, and why.
    pub left_out: Vec<(BackupId, String)>,
    /// Segments of WAL.
    pub wal_segments: u64,
    /// WAL in them.
    pub wal_bytes: u64,
    /// Stored bytes that were read.
    pub bytes_read: u64,
    /// Bytes that were written.
    pub bytes_written: u64,
    /// Chunks that were read, and were in the destination already.
    pub chunks_found: u64,
    /// Looks at the source.
    pub passes: u64,
    /// The end of the destination's WAL, and the server's clock then.
    pub end: Option<(TimelineId, Lsn, Timestamp)>,
}

/// Copies until the destination has caught up. What was committed is durable, also after an error, and the next copy goes on from
/// there. If dropped: a registration stays until it is collected, with what was stored and not committed.
///
/// # Errors
/// On which side, and what. A backup that is damaged is left out of the copy of a cluster, and is no error: [`Copied::left_out`].
pub async fn copy(job: &CopyJob<'_>) -> Result<Copied, CopyError> {
    let view = View::read(job.source).await.map_err(CopyError::Source)?;
    let selection = Selection::of(&job.options.scope, &view)?;
    let source = (job.source, &view);
    let holder = &job.options.holder;
    let destination = Destination::open(job.repo, job.name, source, &selection, holder).await?;
    drop(view);
    let mut copier = Copier {
        job,
        destination: &destination,
        readers: BTreeMap::new(),
        left_out: BTreeSet::new(),
        compared: BTreeSet::new(),
        seen: BTreeSet::new(),
        copied: Copied::default(),
    };
    let done = tokio::select! {
        done = copier.passes() => done,
        _expired = destination.registration.keep(job.options.renew_interval) => Err(CopyError::Expired),
    };
    if !matches!(tokio::time::timeout(LEAVE_LIMIT, destination.leave()).await, Ok(Ok(()))) {
        tracing::warn!("the copy's registration stays in the destination until it is collected");
    }
    done.map(|()| copier.copied)
}

struct Copier<'a> {
    job: &'a CopyJob<'a>,
    destination: &'a Destination,
    /// Of each generation the reader that decodes epochs: what it decoded is not decoded again.
    readers: BTreeMap<Generation, Mutex<WalReader>>,
    left_out: BTreeSet<BackupId>,
    /// Where the destination's WAL is known to be the source's.
    compared: BTreeSet<Place>,
    /// What the source's index led to when the pass began.
    seen: BTreeSet<String>,
    copied: Copied,
}

/// Why a pass ended early, and with which backup.
struct Stopped {
    error: CopyError,
    backup: Option<BackupId>,
}

impl From<CopyError> for Stopped {
    fn from(error: CopyError) -> Stopped {
        Stopped { error, backup: None }
    }
}

impl From<RepoError> for Stopped {
    fn from(error: RepoError) -> Stopped {
        CopyError::from(error).into()
    }
}

impl<'a> Copier<'a> {
    async fn passes(&mut self) -> Result<(), CopyError> {
        let mut tries = 0;
        loop {
            let before = self.copied.bytes_written;
            let holder = format!("copy, {}", self.job.options.holder);
            let hold = Hold::take(self.job.source, None, &holder).await;
            let mut stop = self.job.stop.clone();
            let passing = async {
                tokio::select! {
                    // Boxed: it is large.
                    passed = Box::pin(self.pass()) => passed,
                    () = stopped(&mut stop) => Err(CopyError::Interrupted.into()),
                }
            };
            let passed = hold.during(passing).await;
            hold.release().await;
            self.copied.passes += 1;
            // Whoever got further may be disturbed again.
            tries = if self.copied.bytes_written > before { 0 } else { tries };
            let moved = match &passed {
                Err(Stopped { error, .. }) => self.has_moved(error).await?,
                Ok(_) => false,
            };
            match passed {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(Stopped { error, .. }) if moved && tries < TRIES_MAX => {
                    tracing::info!(%error, "something moved; looking again");
                    tries += 1;
                }
                // A damaged backup keeps nobody from copying the others.
                Err(Stopped { error: CopyError::Source(error), backup: Some(backup) })
                    if error.is_damage() && self.job.options.scope == Scope::Cluster =>
                {
                    tracing::error!(%error, %backup, "the backup cannot be read whole, and is left out");
                    self.copied.left_out.push((backup.clone(), error.to_string()));
                    self.left_out.insert(backup);
                    tries = 0;
                }
                Err(Stopped { error, .. }) => return Err(error),
            }
        }
    }

    /// Whether to look again: somebody changed what was to be written to, or moved what was read. An index that is read while its
    /// segments go finds chunks of them nowhere.
    async fn has_moved(&self, error: &CopyError) -> Result<bool, CopyError> {
        match error {
            CopyError::Source(damage) if damage.is_damage() => {
                let now = View::read(self.job.source).await.map_err(CopyError::Source)?;
                Ok(now.objects() != self.seen)
            }
            other => Ok(other.is_of_the_moment()),
        }
    }

    /// One pass; whether the copy has caught up.
    async fn pass(&mut self) -> Result<bool, Stopped> {
        let (job, destination) = (self.job, self.destination);
        let view = View::read(job.source).await.map_err(CopyError::Source)?;
        self.seen = view.objects();
        let selection = match Selection::of(&job.options.scope, &view) {
            // It was copied, and let go by the source since.
            Err(CopyError::Name(_) | CopyError::Pending { .. }) if !self.copied.backups.is_empty() => {
                return Ok(true);
            }
            other => other?,
        };
        destination.preface(job.source, &view, &selection).await?;
        let (_, there) = destination.now().await?;
        if let Selection::Backup(backup, _) = &selection
            && there.backup(&backup.id).is_none()
            && plan::is_let_go(&view, backup, &there)
        {
            return Err(CopyError::LetGo { id: backup.id.clone() }.into());
        }
        let plan = plan::plan(&view, &selection, &there, &self.left_out);
        let is_small = plan.backups().next().is_none() && plan.wal_bytes() <= CAUGHT_UP_BYTES;
        self.look_at(&view);
        self.compare(&view, &plan).await?;
        self.carry_out(&view, &there, &plan).await?;
        destination.conclude(&view, &selection, &plan.gaps).await?;
        // Now that everything before it was copied.
        view.lost_end()?;
        let end = View::read(&destination.cluster).await?;
        let newest = end.eras.get(&end.root.generation).and_then(|era| era.wal.durable_end());
        self.copied.end = newest.map(|end| (end.timeline, end.lsn, end.server_time));
        Ok(is_small)
    }

    fn look_at(&mut self, view: &View) {
        for (generation, era) in &view.eras {
            match self.readers.get_mut(generation) {
                Some(reader) => reader.get_mut().look_at(era.wal.clone()),
                None => {
                    let reader = WalReader::new(self.job.source.clone(), era.wal.clone());
                    self.readers.insert(*generation, Mutex::new(reader));
                }
            }
        }
    }

    /// Refuses to add to WAL of another server, at the end of what both hold of a timeline. What is damaged there tells nothing.
    async fn compare(&mut self, view: &View, plan: &Plan) -> Result<(), CopyError> {
        let places: Vec<Place> = plan.places().difference(&self.compared).copied().collect();
        if places.is_empty() {
            return Ok(());
        }
        let to = &self.destination.cluster;
        let now = View::read(to).await?;
        for place in places {
            let (generation, timeline) = place;
            let (ours, theirs) = (view.eras.get(&generation), now.eras.get(&generation));
            let common = ours.zip(theirs).and_then(|(ours, theirs)| {
                Some((same::last_common(&ours.wal, &theirs.wal, timeline)?, theirs.wal.clone()))
            });
            let Some((range, theirs)) = common else {
                // What will be there comes from here.
                self.compared.insert(place);
                continue;
            };
            let Some(reader) = self.readers.get_mut(&generation) else {
                unreachable!("one of each was made")
            };
            let mut there = WalReader::new(to.clone(), theirs);
            match same::refuse_other_wal(to, reader.get_mut(), &mut there, (timeline, range)).await {
                Ok(()) => {}
                Err(CopyError::Source(error) | CopyError::Destination(error))
                    if error.is_damage() && !object_is_gone(&error) =>
                {
                    tracing::warn!(%error, "WAL {range} on timeline {timeline}, which both sides hold, cannot be compared");
                }
                Err(error) => return Err(error),
            }
            self.compared.insert(place);
        }
        Ok(())
    }

    async fn carry_out(&mut self, view: &View, there: &Index, plan: &Plan) -> Result<(), Stopped> {
        let mut chunks: Option<Chunks<'a>> = None;
        let mut steps = plan.steps.iter().peekable();
        while let Some(step) = steps.next() {
            match step {
                Step::Backup(backup) => {
                    let copied = self.copy_backup(view, there, backup, &mut chunks).await;
                    copied.map_err(|error| Stopped { error, backup: Some(backup.id.clone()) })?;
                    self.copied.backups.push(backup.id.clone());
                }
                Step::Wal(first) => {
                    let mut groups = vec![first];
                    while let Some(Step::Wal(group)) = steps.next_if(|step| matches!(step, Step::Wal(_))) {
                        groups.push(group);
                    }
                    self.copy_wal(view, &groups).await?;
                }
            }
        }
        Ok(())
    }

    async fn copy_backup(
        &mut self,
        view: &View,
        there: &Index,
        backup: &BackupEntry,
        at_hand: &mut Option<Chunks<'a>>,
    ) -> Result<(), CopyError> {
        let (job, destination) = (self.job, self.destination);
        let chunks = match at_hand {
            Some(chunks) => chunks,
            nothing => {
                let (ours, theirs) = ((job.source, &view.index), (destination, there));
                let mut chunks = Chunks::load(ours, theirs, job.options, job.progress).await?;
                learn(job.source, destination, (view, there), &mut chunks).await?;
                nothing.insert(chunks)
            }
        };
        let pin = view.index.pins.iter().find(|pin| pin.backup == backup.id);
        let before = chunks.tally;
        backup::copy(job.source, destination, backup, pin, chunks, job.progress).await?;
        self.copied.bytes_read += chunks.tally.bytes_read - before.bytes_read;
        self.copied.bytes_written += chunks.tally.bytes_written - before.bytes_written;
        self.copied.chunks_found += chunks.tally.chunks_found - before.chunks_found;
        Ok(())
    }

    /// Copies WAL in order, several segments at a time. What is whole is committed, also when something fails behind it.
    async fn copy_wal(&mut self, view: &View, groups: &[&Group]) -> Result<(), CopyError> {
        let (job, destination) = (self.job, self.destination);
        let units: Vec<(usize, &Unit)> = groups
            .iter()
            .enumerate()
            .flat_map(|(number, group)| group.adds.iter().map(move |unit| (number, unit)))
            .collect();
        let total = units.iter().map(|(_, unit)| unit.range.len()).sum();
        job.progress.stage("copying WAL", Some(total));
        let readers = &self.readers;
        let copying = units.into_iter().map(move |(number, unit)| async move {
            let entry = Box::pin(copy_unit(job.source, destination, readers, view, unit)).await?;
            Ok::<_, CopyError>((number, unit, entry))
        });
        let mut copying = futures_util::stream::iter(copying).buffered(job.options.jobs.max(1));
        let mut batch = Batch::default();
        let mut failed = None;
        while let Some(done) = copying.next().await {
            let (number, unit, entry) = match done {
                Ok(done) => done,
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            };
            job.progress.advance(unit.range.len());
            self.copied.bytes_read += unit.bytes_stored;
            let Some(group) = groups.get(number) else { unreachable!("units are of these groups") };
            batch.add(group, entry);
            if batch.segments() >= SEGMENTS_PER_COMMIT {
                batch.commit(destination, &mut self.copied).await?;
            }
        }
        drop(copying);
        batch.commit(destination, &mut self.copied).await?;
        failed.map_or(Ok(()), Err)
    }
}

/// Returns once `stop` is set.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending().await
    }
}

/// Segments that are stored and not named yet: groups that are whole, and the one that is not.
#[derive(Default)]
struct Batch {
    whole: Vec<(Group, Vec<WalEntry>)>,
    open: Vec<WalEntry>,
}

impl Batch {
    fn add(&mut self, group: &Group, entry: WalEntry) {
        self.open.push(entry);
        if self.open.len() == group.adds.len() {
            self.whole.push((group.clone(), std::mem::take(&mut self.open)));
        }
    }

    fn segments(&self) -> usize {
        self.whole.iter().map(|(_, entries)| entries.len()).sum()
    }

    async fn commit(&mut self, to: &Destination, copied: &mut Copied) -> Result<(), CopyError> {
        if self.whole.is_empty() {
            return Ok(());
        }
        to.add_wal(&self.whole).await?;
        for entry in std::mem::take(&mut self.whole).iter().flat_map(|(_, entries)| entries) {
            copied.wal_segments += 1;
            copied.wal_bytes += entry.end.bytes_since(entry.start);
            copied.bytes_written += entry.object_len;
        }
        Ok(())
    }
}

/// Copies one unit; durable on return. What has delta frames is read in the order of the epoch, one unit at a time.
async fn copy_unit(
    source: &Cluster,
    destination: &Destination,
    readers: &BTreeMap<Generation, Mutex<WalReader>>,
    view: &View,
    unit: &Unit,
) -> Result<WalEntry, CopyError> {
    let to = &destination.cluster;
    let (Some(era), Some(reader)) = (view.eras.get(&unit.place.0), readers.get(&unit.place.0)) else {
        unreachable!("the plan is of these generations")
    };
    let sealed = if unit.is_decoded {
        wal::seal(&mut *reader.lock().await, unit, era, source, to).await
    } else {
        let mut reader = WalReader::new(source.clone(), era.wal.clone());
        wal::seal(&mut reader, unit, era, source, to).await
    };
    let (sealed, cluster) = (sealed.map_err(CopyError::Source)?, to.clone());
    // A task of its own: what is decoded meanwhile does not hold it up.
    match tokio::spawn(async move { sealed.store(&cluster).await }).await {
        Ok(stored) => Ok(stored?),
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Learns names of chunks from the newest backup that both sides hold. What cannot be learned is read.
async fn learn(
    source: &Cluster,
    destination: &Destination,
    (view, there): (&View, &Index),
    chunks: &mut Chunks<'_>,
) -> Result<(), CopyError> {
    let same = |own: &BackupEntry, other: &BackupEntry| {
        (own.generation, own.start, own.stop) == (other.generation, other.start, other.stop)
    };
    let both = view.index.backups.iter().filter_map(|own| {
        let other = there.backup(&own.id).filter(|other| same(own, other))?;
        Some((own, other))
    });
    let Some((own, other)) = both.max_by_key(|(own, _)| (own.generation, own.stop)) else { return Ok(()) };
    let learned = async {
        let ours = Manifest::open(source, &own.id, own.manifest_number).await.map_err(CopyError::Source)?;
        let theirs = Manifest::open(&destination.cluster, &other.id, other.manifest_number).await?;
        chunks.learn(&ours, &theirs).await
    };
    match learned.await {
        Err(CopyError::Source(error) | CopyError::Destination(error)) if error.is_damage() => {
            tracing::warn!(%error, backup = %own.id, "a backup that both sides hold cannot be read; chunks are read again");
            Ok(())
        }
        other => other,
    }
}
