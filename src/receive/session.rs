//! `walden receive`: connects, takes the cluster over, streams, and starts again when the connection is lost.
//! Spec of what is safe: the machine's and the takeover's headers.

use super::journal::JournalHandle;
use super::machine::{Acknowledged, Cut};
use super::overlap::Overlap;
use super::pipeline::{Pipeline, ReceiveError, Stored};
use super::start::{self, Start};
use super::takeover;
use super::upstream::{
    Connector, Identity, Message, Server, Slot, Started, StatusSink, Upstream, UpstreamError,
};
use crate::base::{ClusterName, Generation, Lsn, LsnRange, ObjectId, TimelineId, limits};
use crate::disk::Disk;
use crate::disk::journal::{Journal, JournalOptions, JournalPosition};
use crate::format::index::{GapEntry, HistoryEntry};
use crate::format::record::Blob;
use crate::format::root::GenerationRecord;
use crate::repo::cluster::RootChange;
use crate::repo::index::{IndexEdit, empty_page};
use crate::repo::walmap::{self, Snapshot};
use crate::repo::{Cluster, RepoError, Repository, WalReader};
use crate::wal::{DecodeFrom, Summarizer, TimelineHistory};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// The first wait before connecting again.
const RECONNECT_WAIT_MIN: Duration = Duration::from_millis(500);
/// The longest.
const RECONNECT_WAIT_MAX: Duration = Duration::from_secs(30);
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
        Some(place) => Some(open_journal(&repo, &name, place).await?),
        None => None,
    };
    let mut receiver = Receiver { repo, name, options, stored, journal, pipeline: None };
    let mut wait = RECONNECT_WAIT_MIN;
    loop {
        let began = Instant::now();
        let ended = receiver.session(connector, &mut stop).await;
        match ended {
            Ok(Ended::Stopped) => return Ok(()),
            Ok(Ended::Again) => continue,
            Err(error) if error.is_transient() => {
                tracing::warn!(%error, "connecting again in {wait:?}");
                if !matches!(error, ReceiveError::Upstream(_)) {
                    // What the pipeline holds in memory may not be what is stored: the next takeover finds out.
                    receiver.pipeline = None;
                }
            }
            Err(error) => return Err(error),
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

enum Ended {
    Stopped,
    Again,
}

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
                done = progress => done?,
                () = tokio::time::sleep_until(until) => return Ok(false),
                _ = stop.changed() => {}
            }
        }
    }

    async fn session(&mut self, connector: &dyn Connector, stop: &mut Stop) -> Result<Ended, ReceiveError> {
        if *stop.borrow() {
            return Ok(Ended::Stopped);
        }
        let mut server = tokio::select! {
            server = connector.connect() => server?,
            _ = stop.changed() => return Ok(Ended::Again),
        };
        let identity = server.identify().await?;
        let record = generation_record(&self.name, &identity)?;
        let cluster = Cluster::create(self.repo.clone(), record).await?;
        let slot = server.ensure_slot(&self.options.slot).await?;
        let (server, pipeline) = self.resume(server, &cluster, &identity, &slot).await?;
        self.pipeline = Some(pipeline);
        let Some(pipeline) = &mut self.pipeline else { unreachable!("set above") };
        let at = pipeline.overlap_start().max(slot_segment(&slot, &identity));
        let at = at.min(pipeline.received());
        let (timeline, received) = (pipeline.timeline(), pipeline.received());
        if switch_passed(&cluster, &identity, timeline, received).await? {
            // Only the journal held what lies before the switch: it goes to the repository, then the next timeline begins.
            pipeline.drain().await?;
            return Ok(Ended::Again);
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
        let (upstream, sink) = match started {
            Ok(Started::Streaming(upstream, sink)) => (upstream, sink),
            Ok(Started::EndOfTimeline(next)) => {
                tracing::info!(%timeline, next = %next.timeline, at = %next.start, "timeline ends");
                pipeline.drain().await?;
                return Ok(Ended::Again);
            }
            Err(UpstreamError::WalRemoved { at, reason }) => {
                pipeline.drain().await?;
                let end = pipeline.received();
                record_gap(&cluster, timeline, end, &slot, &identity, &reason, at).await?;
                self.pipeline = None;
                return Ok(Ended::Again);
            }
            Err(error) => return Err(error.into()),
        };
        tracing::info!(cluster = %self.name, slot = self.options.slot, %timeline, %at, stream = %pipeline.stream(), "streaming");
        stream(pipeline, upstream, sink, self.options, stop).await
    }

    /// The pipeline that continues: the one at hand, or one over a stream newly won.
    async fn resume(
        &mut self,
        mut server: Box<dyn Server>,
        cluster: &Cluster,
        identity: &Identity,
        slot: &Slot,
    ) -> Result<(Box<dyn Server>, Pipeline), ReceiveError> {
        if let Some(mut pipeline) = self.pipeline.take() {
            if pipeline.timeline() == identity.timeline {
                return Ok((server, pipeline));
            }
            pipeline.drain().await?;
        }
        let snapshot = walmap::load(cluster).await?;
        store_histories(cluster, &snapshot, server.as_mut(), identity.timeline).await?;
        let snapshot = walmap::load(cluster).await?;
        let planned = self.begin(&snapshot, identity, slot).await?;
        let won = takeover::take_over(cluster, snapshot.root.generation, planned.start.timeline).await;
        let won = won.map_err(|error| match error {
            RepoError::Conflict { reason } => ReceiveError::Again(reason),
            other => other.into(),
        })?;
        // The writer before may have gone on until its fence: what was planned may be behind.
        let snapshot = walmap::load(cluster).await?;
        let begin = self.begin(&snapshot, identity, slot).await?;
        if begin.start.timeline != won.timeline {
            return Err(ReceiveError::Again("another writer moved to another timeline meanwhile".into()));
        }
        let overlap = match &begin.overlap {
            Some(overlap) => overlap.clone(),
            None => read_overlap(cluster, snapshot, &begin.start).await?,
        };
        let summarizer = resume_summarizer(identity, begin.stored, &overlap);
        tracing::info!(stream = %won.stream, epoch = won.writer_epoch, at = %begin.start.at, "took over");
        let parts = (self.options.cut, self.journal.clone());
        let stored = self.stored.clone();
        let pipeline = Pipeline::new(cluster.clone(), won, begin.stored, overlap, parts, summarizer, stored);
        Ok((server, pipeline))
    }

    /// Where to begin: where the repository ends, or the journal, which may be ahead of it.
    async fn begin(
        &self,
        snapshot: &Snapshot,
        identity: &Identity,
        slot: &Slot,
    ) -> Result<Begin, ReceiveError> {
        let stored = start::stored_end(snapshot);
        if let Some(journal) = &self.journal
            && let Some(begin) = journal_ahead(journal, stored).await?
        {
            return Ok(begin);
        }
        let start = plan(snapshot, identity, slot)?;
        Ok(Begin { start, stored: start.at, overlap: None })
    }
}

/// Where a stream begins, and where what is stored ends.
struct Begin {
    /// Where the server is to go on.
    start: Start,
    /// Where the repository's WAL ends: before `start.at` when the journal has what lies between.
    stored: Lsn,
    /// The bytes before `start.at`, when they come from the journal.
    overlap: Option<Overlap>,
}

/// Opens the journal and starts its task.
async fn open_journal(
    repo: &Arc<Repository>,
    cluster: &ClusterName,
    place: &JournalPlace,
) -> Result<JournalHandle, ReceiveError> {
    let options = JournalOptions {
        repository: repo.id(),
        cluster: cluster.clone(),
        key_epoch: repo.keys().newest().epoch,
        budget_bytes: place.budget_bytes,
    };
    let keys = Arc::new(repo.keys().clone());
    let entropy = repo.env().entropy.clone();
    let (journal, recovery) = Journal::open(place.disk.clone(), &place.dir, options, keys, entropy).await?;
    for (file, byte) in &recovery.torn {
        tracing::info!(file = %file.display(), byte, "journal file ends in the middle of a frame, as a crash leaves it");
    }
    if let (Some(first), Some(last)) = (recovery.found.first(), recovery.found.last()) {
        tracing::info!(start = %first.range.start, end = %last.range.end, timeline = %last.timeline, "journal opened");
    }
    Ok(JournalHandle::start(journal))
}

/// Where to begin when the journal holds WAL that the repository does not. It must continue what is stored.
async fn journal_ahead(
    journal: &JournalHandle,
    stored: Option<(TimelineId, Lsn, bool)>,
) -> Result<Option<Begin>, ReceiveError> {
    let Some(end) = journal.state().synced else { return Ok(None) };
    let stored_end = stored.map(|(timeline, lsn, _)| JournalPosition { timeline, lsn });
    if stored_end.is_some_and(|stored| stored >= end) {
        return Ok(None);
    }
    let from = stored_end
        .filter(|stored| stored.timeline == end.timeline)
        .unwrap_or(JournalPosition { timeline: end.timeline, lsn: Lsn::ZERO });
    let Some(first) = journal.first_past(from).await? else { return Ok(None) };
    if from.lsn > Lsn::ZERO && first != from.lsn {
        return Err(ReceiveError::Timeline(format!(
            "the journal begins at {first} on timeline {}, the repository ends at {}: WAL between them is missing",
            end.timeline, from.lsn
        )));
    }
    let tail_start = end.lsn.saturating_sub(limits::RESUME_OVERLAP_BYTES).max(first);
    let overlap = journal.tail(JournalPosition { lsn: tail_start, ..end }, end.lsn).await?;
    let start = Start { timeline: end.timeline, at: end.lsn, compare_from: None };
    Ok(Some(Begin { start, stored: first, overlap: Some(overlap) }))
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
        let deadline = pipeline.deadline();
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
            () = tokio::time::sleep_until(deadline) => {}
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

fn generation_record(name: &ClusterName, identity: &Identity) -> Result<GenerationRecord, ReceiveError> {
    if identity.block_size as usize != limits::BLOCK_BYTES {
        let found = identity.block_size;
        let reason = format!("block size {found}; walden knows {} only", limits::BLOCK_BYTES);
        return Err(UpstreamError::Refused(reason).into());
    }
    Ok(GenerationRecord {
        cluster: name.clone(),
        generation: Generation(1),
        system_id: identity.system_id,
        major_version: identity.major_version,
        segment_size: identity.segment_size.get(),
        block_size: identity.block_size,
    })
}

fn slot_segment(slot: &Slot, identity: &Identity) -> Lsn {
    slot.restart.map_or(Lsn::ZERO, |restart| identity.segment_size.segment_start(restart))
}

/// Whether the server left `timeline` at or before `received`, so that it has nothing more of it for us.
async fn switch_passed(
    cluster: &Cluster,
    identity: &Identity,
    timeline: TimelineId,
    received: Lsn,
) -> Result<bool, ReceiveError> {
    if timeline == identity.timeline {
        return Ok(false);
    }
    let snapshot = walmap::load(cluster).await?;
    let switch =
        stored_history(&snapshot, identity.timeline)?.and_then(|history| history.switch_after(timeline));
    Ok(switch.is_some_and(|(_, at)| at <= received))
}

fn plan(snapshot: &Snapshot, identity: &Identity, slot: &Slot) -> Result<Start, ReceiveError> {
    let history = stored_history(snapshot, identity.timeline)?;
    let end = start::stored_end(snapshot);
    start::plan(end, identity, history.as_ref(), slot)
}

fn stored_history(
    snapshot: &Snapshot,
    timeline: TimelineId,
) -> Result<Option<TimelineHistory>, ReceiveError> {
    let of_timeline =
        |entry: &&HistoryEntry| entry.generation == snapshot.root.generation && entry.timeline == timeline;
    let entry = snapshot.index.histories.iter().find(of_timeline);
    let parsed = entry.map(|entry| TimelineHistory::parse(entry.timeline, &entry.content.0)).transpose();
    parsed.map_err(|error| ReceiveError::Timeline(error.to_string()))
}

/// Stores the history files of `newest` and of the timelines before it that are not stored yet, before any of their WAL.
async fn store_histories(
    cluster: &Cluster,
    snapshot: &Snapshot,
    server: &mut dyn Server,
    newest: TimelineId,
) -> Result<(), ReceiveError> {
    let generation = snapshot.root.generation;
    let stored = |timeline| {
        snapshot.index.histories.iter().any(|e| e.generation == generation && e.timeline == timeline)
    };
    if newest == TimelineId::FIRST || stored(newest) {
        return Ok(());
    }
    let content = server.history(newest).await?;
    let parsed = TimelineHistory::parse(newest, &content)
        .map_err(|error| ReceiveError::Timeline(format!("{}: {error}", newest.history_file_name())))?;
    let mut entries = vec![HistoryEntry { generation, timeline: newest, content: Blob(content) }];
    for timeline in parsed.ancestors().filter(|t| *t != TimelineId::FIRST && !stored(*t)) {
        match server.history(timeline).await {
            Ok(content) => entries.push(HistoryEntry { generation, timeline, content: Blob(content) }),
            // The newest file names every switch of its ancestors: an old one that is gone costs nothing.
            Err(UpstreamError::Refused(reason)) => {
                tracing::warn!(%timeline, reason, "the server has no history file of an older timeline");
            }
            Err(error) => return Err(error.into()),
        }
    }
    cluster
        .commit::<RepoError>(|root| {
            let mut page = empty_page();
            page.histories = entries.clone();
            Ok(Some(RootChange { root: root.clone(), index: IndexEdit::Add(page) }))
        })
        .await?;
    Ok(())
}

/// The stored bytes right before `start`, to be compared with what the server sends again.
async fn read_overlap(cluster: &Cluster, snapshot: Snapshot, start: &Start) -> Result<Overlap, ReceiveError> {
    let Some(from) = start.compare_from else { return Ok(Overlap::empty(start.at)) };
    let from = from.max(start.at.saturating_sub(limits::RESUME_OVERLAP_BYTES));
    let stored = snapshot.wal.ranges(start.timeline);
    let Some(range) = stored.iter().find(|range| range.contains(from) || range.end == start.at) else {
        return Ok(Overlap::empty(start.at));
    };
    let range = LsnRange::new(from.max(range.start), start.at);
    let bytes = WalReader::new(cluster.clone(), snapshot.wal).read(start.timeline, range).await?;
    Ok(Overlap::ending_at(start.at, bytes.into()))
}

/// A summarizer that knows the bytes before the end of what is stored, so that a record that began there is understood.
fn resume_summarizer(identity: &Identity, stored: Lsn, overlap: &Overlap) -> Summarizer {
    if overlap.end() != stored {
        return Summarizer::new(identity.segment_size, stored, DecodeFrom::Anywhere);
    }
    let mut summarizer = Summarizer::new(identity.segment_size, overlap.start(), DecodeFrom::Anywhere);
    for (at, piece) in overlap.pieces() {
        summarizer.feed(at, piece);
    }
    // What was fed belongs to objects stored before.
    summarizer.take();
    summarizer
}

async fn record_gap(
    cluster: &Cluster,
    timeline: TimelineId,
    end: Lsn,
    slot: &Slot,
    identity: &Identity,
    reason: &str,
    asked: Lsn,
) -> Result<(), ReceiveError> {
    let resume = slot.restart.map_or(identity.flushed, |restart| restart);
    let resume = identity.segment_size.segment_start(resume);
    if resume <= end {
        let reason = format!("WAL at {asked} is gone, though the slot holds it from {resume} on: {reason}");
        return Err(UpstreamError::Refused(reason).into());
    }
    tracing::error!(%timeline, start = %end, end = %resume, reason, "WAL is lost: recording a gap; take a backup to close it");
    let entry = GapEntry {
        id: ObjectId::random(&*cluster.repo().env().entropy),
        generation: cluster.newest_root().await?.generation,
        timeline,
        start: end,
        end: resume,
        recorded_at: cluster.repo().env().clock.now(),
        reason: format!("the server no longer had WAL from {end} on: {reason}"),
    };
    cluster
        .commit::<RepoError>(|root| {
            let mut page = empty_page();
            page.gaps.push(entry.clone());
            Ok(Some(RootChange { root: root.clone(), index: IndexEdit::Add(page) }))
        })
        .await?;
    Ok(())
}
