//! The driver: passes over the source until little is left that it wrote meanwhile. Each pass holds what it reads, plans, copies backups
//! and WAL in the planned order, and commits what is durable.

use super::backup;
use super::chunks::{Chunks, learn};
use super::destination::Destination;
use super::error::CopyError;
use super::lost::{self, Losses, Missing};
use super::plan::{self, Group, Plan, Step, Unit};
use super::same;
use super::selection::{Scope, Selection};
use super::source::{Place, View};
use super::units::{Batch, copy_unit};
use crate::base::{
    BackupId, ClusterName, Generation, Lsn, ObjectKey, Progress, TimelineId, Timestamp, limits,
};
use crate::format::index::BackupEntry;
use crate::repo::cluster::object_is_gone;
use crate::repo::hold::Hold;
use crate::repo::{Cluster, Index, RepoError, Repository, WalReader};
use futures_util::StreamExt;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, watch};

/// Segments of WAL named by one root at most.
const SEGMENTS_PER_COMMIT_MAX: usize = 1024;
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
    /// Bytes of new segments, of chunks or of WAL, after which the destination's index names them: what an interruption wastes, about.
    pub commit_bytes: u64,
}

/// [`CopyOptions::commit_bytes`], when nobody says.
pub const COMMIT_BYTES: u64 = 1 << 30;

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
    /// WAL that cannot be read in the source, and that the destination does not hold.
    pub missing: Vec<Missing>,
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
/// On which side, and what. A backup that is damaged is left out of the copy of a cluster, and is no error: [`Copied::left_out`]. Nor is
/// damage of WAL: [`Copied::missing`].
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
        lost: Losses::default(),
        suspects: BTreeSet::new(),
        chunks: None,
        compared: BTreeSet::new(),
        view: None,
        is_related: false,
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
    /// WAL that cannot be read.
    lost: Losses,
    /// What was damaged once, and may only have moved: backups, and objects of WAL.
    suspects: BTreeSet<String>,
    /// Chunks, and what is known of them: what was proved is not read again in another pass.
    chunks: Option<Chunks<'a>>,
    /// Where the destination's WAL is known to be the source's.
    compared: BTreeSet<Place>,
    /// The source when the pass began.
    view: Option<Arc<View>>,
    /// Whether the destination is known to be of the source's history.
    is_related: bool,
    copied: Copied,
}

/// Why a pass ended early, and with what.
struct Stopped {
    error: CopyError,
    work: Work,
}

/// What was being copied.
enum Work {
    Backup(BackupId),
    Wal(Box<Unit>),
    Other,
}

impl From<CopyError> for Stopped {
    fn from(error: CopyError) -> Stopped {
        Stopped { error, work: Work::Other }
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
                Err(stopped) => self.has_moved(stopped).await?,
                Ok(_) => false,
            };
            match passed {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(Stopped { error, .. }) if moved && tries < TRIES_MAX => {
                    tracing::info!(%error, "something moved; looking again");
                    tries += 1;
                }
                // A damaged backup keeps nobody from copying the others, nor does damaged WAL.
                Err(Stopped { error: CopyError::Source(error), work: Work::Backup(backup) })
                    if !moved && error.is_damage() && self.job.options.scope == Scope::Cluster =>
                {
                    tracing::error!(%error, %backup, "the backup cannot be read whole, and is left out");
                    self.copied.left_out.push((backup.clone(), error.to_string()));
                    self.left_out.insert(backup);
                    tries = 0;
                }
                Err(Stopped { error: CopyError::Source(error), work: Work::Wal(unit) })
                    if !moved && error.is_damage() =>
                {
                    let Some(view) = &self.view else { unreachable!("the unit was planned from it") };
                    self.lost.add(view, self.job.source.name(), &unit, &error);
                    tracing::error!(%error, range = %unit.range, "WAL cannot be read, and is left out");
                    tries = 0;
                }
                Err(Stopped { error, .. }) => return Err(error),
            }
        }
    }

    /// Whether to look again: somebody changed what was to be written to, or moved what was read. What is damaged and named still has
    /// not moved; what is gone, and not named any more, has. Where neither is certain (an index that is read while its segments go finds
    /// chunks of them nowhere) anything may have: of a backup, or an object of WAL, that is believed once.
    async fn has_moved(&mut self, Stopped { error, work }: &Stopped) -> Result<bool, CopyError> {
        let damage = match error {
            CopyError::Source(damage) if damage.is_damage() => damage,
            other => return Ok(other.is_of_the_moment()),
        };
        let now = View::read(self.job.source).await.map_err(CopyError::Source)?.objects();
        let before = self.view.as_ref().map(|view| view.objects()).unwrap_or_default();
        let (object, is_gone) = (damage.damaged_object(), object_is_gone(damage));
        if let Some(name) = object.map(ObjectKey::file_name).filter(|name| before.contains(*name)) {
            if now.contains(name) {
                return Ok(false);
            }
            if is_gone {
                return Ok(true);
            }
        }
        let suspect = match work {
            Work::Backup(id) => Some(id.to_string()),
            Work::Wal(unit) => Some(object.map_or_else(|| unit.range.to_string(), ToString::to_string)),
            Work::Other => None,
        };
        let is_known = suspect.is_some_and(|suspect| !self.suspects.insert(suspect));
        Ok(!is_known && (is_gone || now != before))
    }

    /// One pass; whether the copy has caught up.
    async fn pass(&mut self) -> Result<bool, Stopped> {
        let (job, destination) = (self.job, self.destination);
        let mut view = View::read(job.source).await.map_err(CopyError::Source)?;
        view.leave_out(&self.lost);
        let view = Arc::new(view);
        self.view = Some(view.clone());
        let selection = match Selection::of(&job.options.scope, &view) {
            // It was copied, and let go by the source since.
            Err(CopyError::Name(_) | CopyError::Pending { .. }) if !self.copied.backups.is_empty() => {
                return Ok(true);
            }
            other => other?,
        };
        if !self.is_related {
            same::refuse_strangers((job.source, &view), &destination.cluster).await?;
            self.is_related = true;
        }
        destination.preface(job.source, &view, &selection).await?;
        let (_, there) = destination.now().await?;
        if let Selection::Backup(backup, _) = &selection
            && there.backup(&backup.id).is_none()
            && plan::is_let_go(&view, backup, &there)
        {
            return Err(CopyError::LetGo { id: backup.id.clone() }.into());
        }
        self.copied.missing = self.lost.missing(&view, &selection, &there);
        let env = job.repo.env();
        let gaps = lost::gaps(&self.copied.missing, &view, &selection, &there, env);
        let plan = plan::plan(&view, &selection, &there, &self.left_out, &gaps);
        let is_small = plan.backups().next().is_none() && plan.wal_bytes() <= CAUGHT_UP_BYTES;
        self.look_at(&view);
        self.compare(&view, &plan).await?;
        self.carry_out(&view, &there, &plan).await?;
        destination.conclude(&view, &selection, &plan.gaps).await?;
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
            let readers = (reader.get_mut(), &mut there);
            same::is_same_wal((self.job.source, to), readers, (timeline, range)).await?;
            self.compared.insert(place);
        }
        Ok(())
    }

    async fn carry_out(&mut self, view: &View, there: &Index, plan: &Plan) -> Result<(), Stopped> {
        let mut steps = plan.steps.iter().peekable();
        while let Some(step) = steps.next() {
            match step {
                Step::Backup(backup) => {
                    let copied = self.copy_backup(view, there, backup).await;
                    copied.map_err(|error| Stopped { error, work: Work::Backup(backup.id.clone()) })?;
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
    ) -> Result<(), CopyError> {
        let (job, destination) = (self.job, self.destination);
        let mut chunks = self.chunks_of(view, there).await?;
        let pin = view.index.pins.iter().find(|pin| pin.backup == backup.id);
        let before = chunks.tally;
        let copied = backup::copy(job.source, destination, backup, pin, &mut chunks, job.progress).await;
        let is_damaged = matches!(&copied, Err(CopyError::Source(error)) if error.is_damage());
        if is_damaged {
            chunks.save_all(&backup.id).await?;
        }
        self.copied.bytes_read += chunks.tally.bytes_read - before.bytes_read;
        self.copied.bytes_written += chunks.tally.bytes_written - before.bytes_written;
        self.copied.chunks_found += chunks.tally.chunks_found - before.chunks_found;
        if copied.is_ok() || is_damaged {
            self.chunks = Some(chunks);
        }
        copied.map(drop)
    }

    /// Chunks as both sides have them now, with what is known of them.
    async fn chunks_of(&mut self, view: &View, there: &Index) -> Result<Chunks<'a>, CopyError> {
        let (job, destination) = (self.job, self.destination);
        let known = match self.chunks.take() {
            Some(chunks) if chunks.is_of(&view.index) => return Ok(chunks),
            known => known,
        };
        let (ours, theirs) = ((job.source, &view.index), (destination, there));
        let mut chunks = Chunks::load(ours, theirs, job.options, job.progress).await?;
        match known {
            Some(known) => chunks.adopt(&known),
            None => learn(job.source, destination, (view, there), &mut chunks).await?,
        }
        Ok(chunks)
    }

    /// Copies WAL in order, several segments at a time. What is whole is committed, also when something fails behind it.
    async fn copy_wal(&mut self, view: &View, groups: &[&Group]) -> Result<(), Stopped> {
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
            (number, unit, Box::pin(copy_unit(job.source, destination, readers, view, unit)).await)
        });
        let mut copying = futures_util::stream::iter(copying).buffered(job.options.jobs.max(1));
        let mut batch = Batch::default();
        let mut failed = None;
        while let Some((number, unit, done)) = copying.next().await {
            let entry = match done {
                Ok(entry) => entry,
                Err(error) => {
                    failed = Some(Stopped { error, work: Work::Wal(Box::new(unit.clone())) });
                    break;
                }
            };
            job.progress.advance(unit.range.len());
            self.copied.bytes_read += unit.bytes_stored;
            let Some(group) = groups.get(number) else { unreachable!("units are of these groups") };
            batch.add(group, entry);
            if batch.bytes() >= job.options.commit_bytes || batch.segments() >= SEGMENTS_PER_COMMIT_MAX {
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
