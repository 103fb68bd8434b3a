//! What a session finds out before it streams: where the repository and the journal end, which timeline comes next,
//! which bytes to hold the server's against, and which WAL is gone.

use super::journal::JournalHandle;
use super::overlap::Overlap;
use super::pipeline::ReceiveError;
use super::session::JournalPlace;
use super::start::{self, Start};
use super::upstream::{Identity, Server, Slot, UpstreamError};
use crate::base::{ClusterName, Generation, Lsn, LsnRange, ObjectId, SegmentSize, TimelineId, limits};
use crate::disk::journal::{Journal, JournalOptions, JournalPosition};
use crate::format::index::{GapEntry, HistoryEntry};
use crate::format::record::Blob;
use crate::format::root::GenerationRecord;
use crate::repo::cluster::{RootChange, object_is_gone};
use crate::repo::index::{IndexEdit, empty_page};
use crate::repo::walmap::{self, Snapshot};
use crate::repo::{Cluster, RepoError, Repository, WalReader};
use crate::wal::{DecodeFrom, Summarizer, TimelineHistory};
use std::path::Path;
use std::sync::Arc;

/// Where to begin: where the repository ends, or the journal, which may be ahead of it.
pub(super) async fn begin(
    journal: Option<&JournalHandle>,
    snapshot: &Snapshot,
    identity: &Identity,
    slot: &Slot,
) -> Result<Begin, ReceiveError> {
    if let Some(journal) = journal
        && let Some(begin) = journal_ahead(journal, snapshot).await?
    {
        return Ok(begin);
    }
    let start = plan(snapshot, identity, slot)?;
    Ok(Begin { start, stored: start.at, overlap: None })
}

/// Where a stream begins, and where what is stored ends.
pub(super) struct Begin {
    /// Where the server is to go on.
    pub(super) start: Start,
    /// Where the repository's WAL ends: before `start.at` when the journal has what lies between.
    pub(super) stored: Lsn,
    /// The bytes before `start.at`, when they come from the journal.
    pub(super) overlap: Option<Overlap>,
}

/// Opens the journal and starts its task.
pub(super) async fn open_journal(
    repo: &Arc<Repository>,
    cluster: &ClusterName,
    place: &JournalPlace,
) -> Result<JournalHandle, ReceiveError> {
    let options =
        JournalOptions { repository: repo.id(), cluster: cluster.clone(), budget_bytes: place.budget_bytes };
    let keys = repo.keys();
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
async fn journal_ahead(journal: &JournalHandle, snapshot: &Snapshot) -> Result<Option<Begin>, ReceiveError> {
    let Some(end) = journal.state().synced else { return Ok(None) };
    let stored_end = start::stored_end(snapshot).map(|(timeline, lsn, _)| JournalPosition { timeline, lsn });
    if stored_end.is_some_and(|stored| stored >= end) {
        return Ok(None);
    }
    let from = stored_end
        .filter(|stored| stored.timeline == end.timeline)
        .unwrap_or(JournalPosition { timeline: end.timeline, lsn: Lsn::ZERO });
    let Some(first) = journal.first_past(from).await? else { return Ok(None) };
    if from.lsn > Lsn::ZERO && first > from.lsn && is_lost_from(snapshot, end.timeline, from.lsn) {
        tracing::error!(start = %from.lsn, end = %first, "WAL is lost from the repository, and the journal does not have it any more; take a backup");
    } else if from.lsn > Lsn::ZERO && first != from.lsn {
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

/// Whether what followed `at` was stored, and is lost since: it was let go from the journal then.
pub(super) fn is_lost_from(snapshot: &Snapshot, timeline: TimelineId, at: Lsn) -> bool {
    let chains = snapshot.wal.chains().iter().filter(|chain| chain.stream.timeline == timeline);
    chains.flat_map(|chain| &chain.lost).any(|lost| lost.from == Some(at) && lost.to.is_none())
        || snapshot.wal.gaps().iter().any(|gap| gap.timeline == timeline && gap.start == at && gap.end > at)
}

/// Lets the journal begin anew when all that it holds is of an earlier generation than `current`, and stored.
///
/// # Errors
/// [`ReceiveError::LeftBehind`] when the repository lacks some of it: it is never put into another generation.
pub(super) async fn settle_journal(
    journal: &JournalHandle,
    dir: &Path,
    cluster: &Cluster,
    current: Generation,
) -> Result<(), ReceiveError> {
    let state = journal.state();
    let Some(held) = state.generation.filter(|held| *held != current) else { return Ok(()) };
    if let Some(to) = state.synced {
        let snapshot = walmap::load_generation(cluster, held).await?;
        let stored = snapshot.wal.durable_end();
        let from = stored.map_or(JournalPosition { lsn: Lsn::ZERO, ..to }, |end| JournalPosition {
            timeline: end.timeline,
            lsn: end.lsn,
        });
        if from < to {
            return Err(ReceiveError::LeftBehind { dir: dir.to_owned(), held, current, from, to });
        }
    }
    tracing::info!(generation = %held, "all that the journal held is stored; it begins anew");
    journal.discard().await;
    Ok(())
}

/// The server as it was when the journal's newest WAL came, from what is stored of it; none when the journal holds nothing
/// that the repository lacks.
pub(super) async fn journal_identity(
    journal: &JournalHandle,
    cluster: &Cluster,
    snapshot: &Snapshot,
) -> Result<Option<Identity>, ReceiveError> {
    // What it holds of another generation is settled when the server is there.
    if journal.state().generation != Some(snapshot.root.generation) {
        return Ok(None);
    }
    let Some(ahead) = journal_ahead(journal, snapshot).await? else { return Ok(None) };
    let record = cluster.read_generation(snapshot.root.generation).await?;
    let segment_size = SegmentSize::new(record.segment_size.into());
    Ok(Some(Identity {
        system_id: record.system_id,
        major_version: record.major_version,
        timeline: ahead.start.timeline,
        flushed: ahead.start.at,
        segment_size: segment_size.map_err(|error| ReceiveError::Internal(error.to_string()))?,
        block_size: record.block_size,
    }))
}

pub(super) fn generation_record(
    name: &ClusterName,
    identity: &Identity,
) -> Result<GenerationRecord, ReceiveError> {
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

pub(super) fn slot_segment(slot: &Slot, identity: &Identity) -> Lsn {
    slot.restart.map_or(Lsn::ZERO, |restart| identity.segment_size.segment_start(restart))
}

/// Begins again when another generation began since the server was held against it.
pub(super) fn still_of(snapshot: &Snapshot, generation: Generation) -> Result<(), ReceiveError> {
    match snapshot.root.generation {
        current if current == generation => Ok(()),
        current => Err(ReceiveError::Again(format!("generation {current} of the cluster began"))),
    }
}

/// Whether the server left `timeline` at or before `received`, so that it has nothing more of it for us.
pub(super) async fn switch_passed(
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
pub(super) async fn store_histories(
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
pub(super) async fn read_overlap(
    cluster: &Cluster,
    snapshot: Snapshot,
    start: &Start,
) -> Result<Overlap, ReceiveError> {
    let Some(from) = start.compare_from else { return Ok(Overlap::empty(start.at)) };
    let from = from.max(start.at.saturating_sub(limits::RESUME_OVERLAP_BYTES));
    let stored = snapshot.wal.ranges(start.timeline);
    let Some(range) = stored.iter().find(|range| range.contains(from) || range.end == start.at) else {
        return Ok(Overlap::empty(start.at));
    };
    let mut reader = WalReader::new(cluster.clone(), snapshot.wal);
    let (from, mut since, mut frames) = (from.max(range.start), start.at, Vec::new());
    while since > from {
        match frame_before(cluster, &mut reader, start.timeline, (from, since)).await {
            Ok(Some((begins, bytes))) => {
                since = begins;
                frames.push(bytes);
            }
            // Compaction leaves the newest WAL in plain frames: to start must not mean to decode an epoch.
            Ok(None) => break,
            // It costs what it held, and keeps nobody from receiving what comes behind it.
            Err(error) if error.is_damage() => {
                tracing::error!(%error, compared = %LsnRange::new(since, start.at), "stored WAL cannot be held against the server's; `walden verify` says what is lost");
                break;
            }
            Err(error) => return Err(error.into()),
        }
    }
    frames.reverse();
    Ok(Overlap::ending_at(start.at, frames.concat().into()))
}

/// The bytes of the plain frame that ends right before `since`, from `from` on at most, and where they begin.
async fn frame_before(
    cluster: &Cluster,
    reader: &mut WalReader,
    timeline: TimelineId,
    (from, since): (Lsn, Lsn),
) -> Result<Option<(Lsn, Vec<u8>)>, RepoError> {
    let begins = match reader.plain_before(timeline, since).await {
        // Collected meanwhile, perhaps.
        Err(error) if object_is_gone(&error) => {
            let generation = reader.map().generation();
            reader.look_at(walmap::load_generation(cluster, generation).await?.wal);
            reader.plain_before(timeline, since).await?
        }
        found => found?,
    };
    let Some(begins) = begins.map(|begins| begins.max(from)) else { return Ok(None) };
    let bytes = reader.read(timeline, LsnRange::new(begins, since)).await?;
    Ok(Some((begins, bytes)))
}

/// A summarizer that knows the bytes before the end of what is stored, so that a record that began there is understood.
pub(super) fn summarizer(identity: &Identity, stored: Lsn, overlap: &Overlap) -> Summarizer {
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

pub(super) async fn record_gap(
    cluster: &Cluster,
    (generation, timeline): (Generation, TimelineId),
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
        generation,
        timeline,
        start: end,
        end: resume,
        recorded_at: cluster.repo().env().clock.now(),
        reason: format!("the server no longer had WAL from {end} on: {reason}"),
    };
    cluster
        .commit::<RepoError>(|root| {
            if root.generation != generation {
                let (cluster, current) = (cluster.name().to_string(), root.generation);
                return Err(RepoError::NewGeneration { cluster, generation, current });
            }
            let mut page = empty_page();
            page.gaps.push(entry.clone());
            Ok(Some(RootChange { root: root.clone(), index: IndexEdit::Add(page) }))
        })
        .await?;
    Ok(())
}
