//! `walden receive`: connects, takes the cluster over, streams, and starts again when the connection is lost.
//! Spec of what is safe: the machine's and the takeover's headers.

use super::journal::JournalHandle;
use super::machine::{Acknowledged, Cut};
use super::pipeline::{self, Pipeline, ReceiveError, Stored};
use super::resume;
use super::takeover;
use super::upstream::{
    Connector, Identity, Message, Server, Slot, Started, StatusSink, Upstream, UpstreamError,
};
use crate::base::{ClusterName, Generation, Lsn};
use crate::disk::Disk;
use crate::repo::walmap;
use crate::repo::{Cluster, RepoError, Repository};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// The first wait before connecting again.
const RECONNECT_WAIT_MIN: Duration = Duration::from_millis(500);
/// The longest.
const RECONNECT_WAIT_MAX: Duration = Duration::from_secs(30);
/// How long another may have the slot: the server finds out within `wal_sender_timeout`, a minute unless it is set, that a
/// receiver is gone.
const SLOT_PATIENCE: Duration = Duration::from_secs(90);
/// A status message is sent at least this often.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);

/// What `receive` is asked to do.
#[derive(Debug, Clone)]
pub struct ReceiveOptions {
    /// The replication slot.
    pub slot: String,
    /// The journal whose syncs are acknowledged; without one, what is durable in the repository is.
    pub journal: Option<JournalPlace>,
    /// How flush objects are cut.
    pub cut: Cut,
    /// How long the tail may take to become durable when the server asks for it.
    pub shutdown_grace: Duration,
}

/// Where the journal is.
#[derive(Debug, Clone)]
pub struct JournalPlace {
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// The directory, of this cluster alone.
    pub dir: PathBuf,
    /// The most bytes that its files may take.
    pub budget_bytes: u64,
}

/// How a running `receive` is asked to stop.
pub type Stop = watch::Receiver<bool>;

/// Receives until `stop`. Everything received is durable on `Ok`. If dropped: what was acknowledged is durable.
///
/// # Errors
/// Only what connecting again cannot mend; lost connections are mended here.
pub async fn run(
    repo: Arc<Repository>,
    name: ClusterName,
    connector: &dyn Connector,
    options: &ReceiveOptions,
    stored: watch::Sender<Stored>,
    mut stop: Stop,
) -> Result<(), ReceiveError> {
    let journal = match &options.journal {
        Some(place) => Some(resume::open_journal(&repo, &name, place).await?),
        None => None,
    };
    let mut receiver = Receiver { repo, name, options, stored, journal, pipeline: None };
    let mut wait = RECONNECT_WAIT_MIN;
    let mut slot_taken: Option<Instant> = None;
    loop {
        let began = Instant::now();
        let ended = receiver.session(connector, &mut stop).await;
        match ended {
            Ok(Ended::Stopped) => return Ok(()),
            Ok(Ended::Again) => {
                slot_taken = None;
                continue;
            }
            Err(error) if error.is_transient() => {
                let taken = matches!(&error, ReceiveError::Upstream(UpstreamError::SlotInUse { .. }));
                slot_taken = taken.then(|| slot_taken.unwrap_or(began));
                if slot_taken.is_some_and(|since| since.elapsed() > SLOT_PATIENCE) {
                    return Err(error);
                }
                tracing::warn!(%error, "connecting again in {wait:?}");
                match &error {
                    // The server may never come back: what only the journal has goes to the repository all the same.
                    ReceiveError::Upstream(_) if receiver.pipeline.is_none() => {
                        receiver.pipeline = receiver.resume_from_journal().await?;
                    }
                    ReceiveError::Upstream(_) => {}
                    _ => pipeline::give_up(&mut receiver.pipeline, &error).await,
                }
            }
            Err(error) => return Err(receiver.ended_by(error).await),
        }
        if began.elapsed() > RECONNECT_WAIT_MAX {
            wait = RECONNECT_WAIT_MIN;
        }
        if receiver.pause(wait, &mut stop).await? {
            return Ok(());
        }
        wait = (wait * 2).min(RECONNECT_WAIT_MAX);
    }
}

/// Stores what only the journal has, without a server. Says how far that is; none when it has nothing that the repository lacks.
///
/// # Errors
/// [`crate::disk::journal::JournalError::Busy`] while a receiver runs.
pub(super) async fn store_journal(
    repo: Arc<Repository>,
    name: ClusterName,
    options: &ReceiveOptions,
) -> Result<Option<Lsn>, ReceiveError> {
    let Some(place) = &options.journal else { return Ok(None) };
    let journal = Some(resume::open_journal(&repo, &name, place).await?);
    let (stored, _) = watch::channel(Stored::default());
    let mut receiver = Receiver { repo, name, options, stored, journal, pipeline: None };
    let Some(mut pipeline) = receiver.journal_pipeline().await? else { return Ok(None) };
    pipeline.drain().await?;
    Ok(Some(pipeline.durable()))
}

enum Ended {
    Stopped,
    Again,
}

/// A stream that runs.
type Opened = (Box<dyn Upstream>, Box<dyn StatusSink>);

struct Receiver<'a> {
    repo: Arc<Repository>,
    name: ClusterName,
    options: &'a ReceiveOptions,
    stored: watch::Sender<Stored>,
    journal: Option<JournalHandle>,
    pipeline: Option<Pipeline>,
}

impl Receiver<'_> {
    /// Waits, while what was received goes on being stored. True when asked to stop.
    async fn pause(&mut self, wait: Duration, stop: &mut Stop) -> Result<bool, ReceiveError> {
        let until = Instant::now() + wait;
        loop {
            if *stop.borrow() {
                if let Some(pipeline) = &mut self.pipeline {
                    drain_within(pipeline, self.options.shutdown_grace).await?;
                }
                return Ok(true);
            }
            let progress = async {
                match &mut self.pipeline {
                    Some(pipeline) => {
                        pipeline.pump(true);
                        pipeline.progress().await
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                done = progress => match done {
                    Err(error) if error.is_transient() => pipeline::give_up(&mut self.pipeline, &error).await,
                    done => done?,
                },
                () = tokio::time::sleep_until(until) => return Ok(false),
                _ = stop.changed() => {}
            }
        }
    }

    async fn session(&mut self, connector: &dyn Connector, stop: &mut Stop) -> Result<Ended, ReceiveError> {
        // A server may say nothing for long, at any step; whoever asks us to stop does not wait for it.
        let opened = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => None,
            opened = self.open(connector) => Some(opened?),
        };
        match (opened, &mut self.pipeline) {
            (Some(Some((upstream, sink))), Some(pipeline)) => {
                stream(pipeline, upstream, sink, self.options, stop).await
            }
            (Some(_), _) => Ok(Ended::Again),
            (None, pipeline) => {
                if let Some(pipeline) = pipeline {
                    drain_within(pipeline, self.options.shutdown_grace).await?;
                }
                Ok(Ended::Stopped)
            }
        }
    }

    /// The generation that the server is, now that it is the cluster's current one. A pipeline of an earlier one does not go on with
    /// it, nor does the journal.
    async fn settle_generation(&mut self, cluster: &Cluster) -> Result<Generation, ReceiveError> {
        let current = cluster.newest_root().await?.generation;
        if let Some(generation) = self.pipeline.as_ref().map(Pipeline::generation)
            && generation != current
        {
            let cluster = self.name.to_string();
            return Err(RepoError::NewGeneration { cluster, generation, current }.into());
        }
        if let (Some(journal), Some(place)) = (&self.journal, &self.options.journal) {
            resume::settle_journal(journal, &place.dir, cluster, current).await?;
        }
        Ok(current)
    }

    /// Ends on `error`. The old server may be gone for good when another one answers in its place: what was received of it is stored
    /// first. A fence may mean that the next generation began, or that the cluster was deleted.
    async fn ended_by(&mut self, error: ReceiveError) -> ReceiveError {
        let Some(pipeline) = &mut self.pipeline else { return error };
        match &error {
            ReceiveError::Repo(
                RepoError::WrongSystem { .. } | RepoError::Conflict { .. } | RepoError::NewGeneration { .. },
            ) => {
                if let Err(failed) = drain_within(pipeline, self.options.shutdown_grace).await {
                    tracing::debug!(error = %failed, "what was received and not stored stays in the slot, or the journal");
                }
            }
            ReceiveError::Repo(RepoError::Fenced { .. }) => {
                let generation = pipeline.generation();
                let opened = Cluster::open(self.repo.clone(), self.name.clone()).await;
                let cluster = match opened {
                    Ok(cluster) => cluster,
                    Err(deleted @ RepoError::Deleted { .. }) => return deleted.into(),
                    Err(_) => return error,
                };
                if let Ok(current) = cluster.newest_root().await.map(|root| root.generation)
                    && current != generation
                {
                    let cluster = self.name.to_string();
                    return RepoError::NewGeneration { cluster, generation, current }.into();
                }
            }
            _ => {}
        }
        error
    }

    /// Connects, takes over and begins to stream; `None` when what it found is to be begun anew. If dropped: begin anew.
    async fn open(&mut self, connector: &dyn Connector) -> Result<Option<Opened>, ReceiveError> {
        let mut server = connector.connect().await?;
        let identity = server.identify().await?;
        let record = resume::generation_record(&self.name, &identity)?;
        let cluster = Cluster::create(self.repo.clone(), record).await?;
        let generation = self.settle_generation(&cluster).await?;
        let slot = server.ensure_slot(&self.options.slot).await?;
        let server = self.resume(server, &cluster, (generation, &identity), &slot).await?;
        let Some(pipeline) = &mut self.pipeline else { unreachable!("resumed above") };
        let at = pipeline.overlap_start().max(resume::slot_segment(&slot, &identity));
        let at = at.min(pipeline.received());
        let (timeline, received) = (pipeline.timeline(), pipeline.received());
        if resume::switch_passed(&cluster, &identity, timeline, received).await? {
            // Only the journal held what lies before the switch: it goes to the repository, then the next timeline begins.
            pipeline.drain().await?;
            return Ok(None);
        }
        let started = match server.stream(&self.options.slot, at, timeline).await {
            Err(UpstreamError::WalRemoved { reason, .. }) if at < received => {
                // The overlap is a check; without it the stream can still continue exactly at the end.
                tracing::warn!(%at, reason, "the server has no WAL to compare with what is stored");
                let server = connector.connect().await?;
                server.stream(&self.options.slot, received, timeline).await
            }
            other => other,
        };
        let opened = match started {
            Ok(Started::Streaming(upstream, sink)) => (upstream, sink),
            Ok(Started::EndOfTimeline(next)) => {
                tracing::info!(%timeline, next = %next.timeline, at = %next.start, "timeline ends");
                pipeline.drain().await?;
                return Ok(None);
            }
            Err(UpstreamError::WalRemoved { at, reason }) => {
                pipeline.drain().await?;
                let end = pipeline.received();
                resume::record_gap(&cluster, (generation, timeline), end, &slot, &identity, &reason, at)
                    .await?;
                self.pipeline = None;
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        tracing::info!(cluster = %self.name, slot = self.options.slot, %timeline, %at, stream = %pipeline.stream(), "streaming");
        Ok(Some(opened))
    }

    /// Sees to the pipeline that continues: the one at hand, or one over a stream newly won.
    async fn resume(
        &mut self,
        mut server: Box<dyn Server>,
        cluster: &Cluster,
        (generation, identity): (Generation, &Identity),
        slot: &Slot,
    ) -> Result<Box<dyn Server>, ReceiveError> {
        if let Some(pipeline) = &mut self.pipeline {
            if pipeline.timeline() == identity.timeline {
                return Ok(server);
            }
            pipeline.drain().await?;
            self.pipeline = None;
        }
        let snapshot = walmap::load(cluster).await?;
        resume::still_of(&snapshot, generation)?;
        resume::store_histories(cluster, &snapshot, server.as_mut(), identity.timeline).await?;
        self.pipeline = Some(self.take_over(cluster, (generation, identity), slot).await?);
        Ok(server)
    }

    /// A pipeline that stores what the journal holds and the repository does not, without the server; none when there is
    /// no such WAL, or the store is away too.
    async fn resume_from_journal(&mut self) -> Result<Option<Pipeline>, ReceiveError> {
        match self.journal_pipeline().await {
            Err(error) if error.is_transient() => {
                tracing::warn!(%error, "what only the journal has cannot be stored now");
                Ok(None)
            }
            other => other,
        }
    }

    /// The same, and it fails when the store is away.
    async fn journal_pipeline(&mut self) -> Result<Option<Pipeline>, ReceiveError> {
        let Some(journal) = &self.journal else { return Ok(None) };
        let cluster = match Cluster::open(self.repo.clone(), self.name.clone()).await {
            Err(RepoError::NotFound { .. }) => return Ok(None),
            other => other?,
        };
        let snapshot = walmap::load(&cluster).await?;
        let Some(identity) = resume::journal_identity(journal, &cluster, &snapshot).await? else {
            return Ok(None);
        };
        tracing::info!(journal = %identity.flushed, "storing what only the journal has");
        let slot = Slot { restart: None, created: false };
        let generation = snapshot.root.generation;
        Ok(Some(self.take_over(&cluster, (generation, &identity), &slot).await?))
    }

    /// Wins a new stream, and continues in it where the repository ends, or the journal.
    async fn take_over(
        &mut self,
        cluster: &Cluster,
        (generation, identity): (Generation, &Identity),
        slot: &Slot,
    ) -> Result<Pipeline, ReceiveError> {
        let snapshot = walmap::load(cluster).await?;
        resume::still_of(&snapshot, generation)?;
        let planned = resume::begin(self.journal.as_ref(), &snapshot, identity, slot).await?;
        let won = takeover::take_over(cluster, generation, planned.start.timeline).await;
        let won = won.map_err(|error| match error {
            RepoError::Conflict { reason } => ReceiveError::Again(reason),
            other => other.into(),
        })?;
        // The writer before may have gone on until its fence: what was planned may be behind.
        let snapshot = walmap::load(cluster).await?;
        resume::still_of(&snapshot, generation)?;
        let begin = resume::begin(self.journal.as_ref(), &snapshot, identity, slot).await?;
        if begin.start.timeline != won.timeline {
            return Err(ReceiveError::Again("another writer moved to another timeline meanwhile".into()));
        }
        let overlap = match &begin.overlap {
            Some(overlap) => overlap.clone(),
            None => resume::read_overlap(cluster, snapshot, &begin.start).await?,
        };
        let summarizer = resume::summarizer(identity, begin.stored, &overlap);
        tracing::info!(stream = %won.stream, epoch = won.writer_epoch, at = %begin.start.at, "took over");
        let parts = (self.options.cut, self.journal.clone());
        let stored = self.stored.clone();
        Ok(Pipeline::new(cluster.clone(), won, begin.stored, overlap, parts, summarizer, stored))
    }
}

/// Streams until asked to stop, the timeline ends, or the connection is lost.
async fn stream(
    pipeline: &mut Pipeline,
    mut upstream: Box<dyn Upstream>,
    sink: Box<dyn StatusSink>,
    options: &ReceiveOptions,
    stop: &mut Stop,
) -> Result<Ended, ReceiveError> {
    let (status, wanted) = watch::channel(Status { acknowledged: pipeline.acknowledged(), asked: 0 });
    let mut reporting = tokio::spawn(report(sink, wanted));
    let mut tail: Option<(Lsn, Instant)> = None;
    let ended = loop {
        pipeline.pump(false);
        let acknowledged = pipeline.acknowledged();
        status.send_if_modified(|status| {
            std::mem::replace(&mut status.acknowledged, acknowledged) != acknowledged
        });
        if tail.is_some_and(|(end, _)| acknowledged.flush >= end) {
            tail = None;
        }
        let tail_deadline = tail.map_or_else(|| Instant::now() + options.shutdown_grace, |(_, until)| until);
        let due = pipeline.due_at();
        tokio::select! {
            biased;
            _ = stop.changed() => break Ok(Ended::Stopped),
            done = pipeline.progress() => done?,
            message = upstream.next(), if pipeline.has_room() => match message {
                Ok(Message::Wal { start, server_end, server_time, bytes }) => {
                    pipeline.on_wal(start, bytes, server_time)?;
                    pipeline.on_server_position(server_end, server_time);
                }
                Ok(Message::Keepalive { server_end, server_time, reply_requested }) => {
                    pipeline.on_server_position(server_end, server_time);
                    if reply_requested {
                        pipeline.on_reply_requested();
                        status.send_modify(|status| status.asked += 1);
                        tail.get_or_insert((pipeline.received(), Instant::now() + options.shutdown_grace));
                    }
                }
                Ok(Message::EndOfTimeline(next)) => {
                    tracing::info!(timeline = %pipeline.timeline(), next = %next.timeline, at = %next.start, "timeline ends");
                    pipeline.drain().await?;
                    break Ok(Ended::Again);
                }
                Err(error) => break Err(error.into()),
            },
            ended = &mut reporting => break Err(status_lost(ended)),
            () = tokio::time::sleep_until(tail_deadline), if tail.is_some() => {
                // A primary that shuts down waits for us; the slot keeps what we have not stored.
                let reason = format!("the tail was not durable within {:?}", options.shutdown_grace);
                break Err(UpstreamError::Lost(reason).into());
            }
            () = sleep_until_some(due) => {}
        }
    };
    if let Ok(Ended::Stopped) = ended {
        drain_within(pipeline, options.shutdown_grace).await?;
    }
    let acknowledged = pipeline.acknowledged();
    status.send_modify(|status| *status = Status { acknowledged, asked: status.asked + 1 });
    drop(status);
    if !reporting.is_finished() && tokio::time::timeout(options.shutdown_grace, &mut reporting).await.is_err()
    {
        reporting.abort();
    }
    ended
}

#[derive(Debug, Clone, Copy)]
struct Status {
    acknowledged: Acknowledged,
    asked: u64,
}

/// Sends status messages, from a task of its own so that no upload delays them; the last one, then closes.
async fn report(
    mut sink: Box<dyn StatusSink>,
    mut wanted: watch::Receiver<Status>,
) -> Result<(), UpstreamError> {
    loop {
        let acknowledged = wanted.borrow_and_update().acknowledged;
        sink.report(acknowledged).await?;
        if let Ok(Err(_)) = tokio::time::timeout(STATUS_INTERVAL, wanted.changed()).await {
            let acknowledged = wanted.borrow().acknowledged;
            sink.report(acknowledged).await?;
            return sink.close().await;
        }
    }
}

fn status_lost(ended: Result<Result<(), UpstreamError>, tokio::task::JoinError>) -> ReceiveError {
    match ended {
        Ok(Ok(())) => UpstreamError::Lost("the status task ended".into()).into(),
        Ok(Err(error)) => error.into(),
        Err(error) => ReceiveError::Internal(error.to_string()),
    }
}

async fn sleep_until_some(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

async fn drain_within(pipeline: &mut Pipeline, grace: Duration) -> Result<(), ReceiveError> {
    match tokio::time::timeout(grace, pipeline.drain()).await {
        Ok(done) => done,
        Err(_) => {
            // Nothing is lost: it was not acknowledged, and the slot keeps it.
            tracing::warn!(durable = %pipeline.durable(), received = %pipeline.received(), "stopping before everything received is stored");
            Ok(())
        }
    }
}
