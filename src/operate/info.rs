//! `walden info`: what can be restored, what it takes, and how far the archive is behind. The document's fields are a
//! promise: they are only ever added.

mod bytes;
mod older;
mod show;
mod verified;

pub use older::OlderInfo;
pub use verified::depth_name;

use super::failure::Failure;
use crate::base::limits::BLOCK_BYTES;
use crate::base::{BackupId, Lsn, Timestamp};
use crate::format::index::{BackupEntry, BackupState, ExpiredEntry, WalEntry};
use crate::format::wal::{DeltaStats, WalDeltas};
use crate::net::server::WalPosition;
use crate::repo::backups::state_now;
use crate::repo::walmap::{self, Snapshot};
use crate::repo::{Cluster, WalSource, verifications};
use crate::restore::archive::{self, Loaded};
use crate::restore::resolve::Window;
use bytes::Usage;
use serde::Serialize;
use std::collections::BTreeSet;

/// Why WAL between a backup that is kept for long and the window is not there.
const LET_GO: &str = "let go by retention";

/// The document.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Info {
    /// The repository's URL.
    pub repository: String,
    /// Its clusters.
    pub clusters: Vec<ClusterInfo>,
}

/// One cluster.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClusterInfo {
    /// Its name.
    pub name: String,
    /// PostgreSQL's system identifier, as text: it does not fit a JSON number.
    pub system_identifier: String,
    /// PostgreSQL's major version.
    pub major_version: u32,
    /// How often the cluster was upgraded or made anew, from 1.
    pub generation: u32,
    /// The timeline it is on.
    pub timeline: u32,
    /// What can be restored.
    pub window: WindowInfo,
    /// The newest durable position, if there is any WAL.
    pub durable_lsn: Option<String>,
    /// How far that is behind the server.
    pub lag: Lag,
    /// Backups, oldest first.
    pub backups: Vec<BackupInfo>,
    /// Generations before, that can still be restored; oldest first.
    pub older_generations: Vec<OlderInfo>,
    /// The newest verification; none when there was none.
    pub verification: Option<VerificationInfo>,
    /// WAL.
    pub wal: WalInfo,
    /// Everything stored of the cluster.
    pub bytes: BytesInfo,
}

/// The recovery window, in the server's own times.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WindowInfo {
    /// The earliest moment that can be restored; none without a restorable backup.
    pub start: Option<String>,
    /// The newest.
    pub end: Option<String>,
    /// What in between cannot.
    pub gaps: Vec<GapInfo>,
}

/// A gap.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GapInfo {
    /// The first byte of WAL that is missing.
    pub start_lsn: String,
    /// Where WAL begins again; none when it does not yet.
    pub end_lsn: Option<String>,
    /// The newest moment before it that can be restored, if the window reaches it.
    pub start: Option<String>,
    /// The earliest after it.
    pub end: Option<String>,
    /// Why.
    pub reason: Option<String>,
}

/// How far the archive is behind the server.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lag {
    /// Bytes of WAL; none when that is not known.
    pub bytes: Option<u64>,
    /// Seconds.
    pub seconds: Option<f64>,
    /// Who says so: `server` now, or the `repository` when the newest WAL was stored.
    pub measured_by: &'static str,
}

/// A backup.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BackupInfo {
    /// Its id.
    pub id: String,
    /// Its start LSN.
    pub start_lsn: String,
    /// Its stop LSN: the first position it can restore.
    pub stop_lsn: String,
    /// When it began, by the server's clock.
    pub started_at: String,
    /// When it stopped.
    pub stopped_at: String,
    /// Its timeline.
    pub timeline: u32,
    /// Bytes of its files.
    pub bytes_raw: u64,
    /// Bytes stored that it refers to.
    pub bytes_stored: u64,
    /// Bytes it added.
    pub bytes_new: u64,
    /// `complete`, `pending` (its WAL is not durable yet) or `damaged` (restorable, with bad blocks from the server).
    pub state: &'static str,
    /// Blocks whose checksum was wrong on the server.
    pub damaged_blocks: u64,
    /// Whether it stays whatever the retention policy says; none when it is not pinned.
    pub pin: Option<PinInfo>,
    /// What verification says of it; none when it was never verified.
    pub verified: Option<VerifiedInfo>,
}

/// A pin.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PinInfo {
    /// When it was made.
    pub pinned_at: String,
    /// Until when it holds; none until it is taken away.
    pub until: Option<String>,
    /// Why.
    pub reason: String,
}

/// What verification says of a backup.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VerifiedInfo {
    /// `verified`, or `damaged`: something that it needs is damaged or gone.
    pub outcome: &'static str,
    /// `references` (everything is there), `content` (everything opens and is what it should be) or `restored`.
    pub depth: &'static str,
    /// Since when that is known.
    pub at: String,
    /// Of one that is damaged, why.
    pub reason: Option<String>,
}

/// The newest verification of a cluster.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VerificationInfo {
    /// When it ended, by its host's clock.
    pub finished_at: String,
    /// How deep it looked.
    pub depth: &'static str,
    /// `whole`, or `sample`.
    pub scope: &'static str,
    /// Bytes that it, or one before it, read.
    pub bytes_covered: u64,
    /// Bytes that there were.
    pub bytes_total: u64,
    /// When the part was read that was read longest ago; none when nothing was.
    pub covered_since: Option<String>,
    /// How much is damaged.
    pub damage_count: u64,
    /// What is damaged; when it is much, some of it.
    pub damage: Vec<DamageInfo>,
}

/// One thing that is damaged.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DamageInfo {
    /// The object, or the one that refers to what is missing.
    pub object: String,
    /// What is wrong with it.
    pub found: String,
    /// What that costs.
    pub cost: String,
    /// When it was first found.
    pub found_at: String,
}

/// WAL of the cluster.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WalInfo {
    /// Bytes of WAL.
    pub bytes_raw: u64,
    /// Bytes of the objects that hold it.
    pub bytes_stored: u64,
    /// Bytes of replaced flush objects that wait for removal.
    pub bytes_waiting: u64,
    /// Objects that hold it.
    pub objects: u64,
    /// What of it stands as deltas; none when nothing does.
    pub deltas: Option<DeltaInfo>,
}

/// WAL that stands as deltas.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeltaInfo {
    /// Bytes of WAL in segments with delta frames.
    pub bytes_raw: u64,
    /// Bytes of these segments.
    pub bytes_stored: u64,
    /// Epochs: runs of WAL that are decoded from their start.
    pub epochs: u64,
    /// Images in delta frames.
    pub images: u64,
    /// The share of them that is stored as a difference from a page: of a backup, or of an earlier image.
    pub hit_rate: f64,
    /// The same of the newest segment alone.
    pub hit_rate_newest: f64,
    /// Bytes of images in the WAL.
    pub image_bytes_raw: u64,
    /// Bytes that they take, with the tuples that splits moved.
    pub image_bytes_stored: u64,
    /// Bytes that everything else takes in delta frames.
    pub record_bytes_stored: u64,
    /// The most bytes of pages that the newest epoch keeps to make differences from.
    pub cache_bytes: u64,
    /// The backup whose pages the newest segment refers to.
    pub base: Option<String>,
}

/// What is stored, by what it is good for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BytesInfo {
    /// In use.
    pub live: u64,
    /// Not in use any more, kept for the grace period.
    pub waiting: u64,
    /// Never committed: leftovers of aborted work, or of work that runs now.
    pub unreferenced: u64,
}

/// Looks at a cluster. `server` is where its server is, if it was asked.
pub async fn cluster(cluster: &Cluster, server: Option<WalPosition>) -> Result<ClusterInfo, Failure> {
    let snapshot = walmap::load(cluster).await?;
    let mut loaded = archive::load(cluster, &snapshot, snapshot.root.generation).await?;
    let segment_size = loaded.archive.segment_size;
    for backup in &mut loaded.archive.backups {
        backup.state = state_now(backup, &snapshot.wal, segment_size);
    }
    let usage = bytes::usage(cluster, &snapshot).await?;
    let now = cluster.repo().env().clock.now();
    let verification = verifications::newest(cluster).await?.result;
    let mut info = describe(cluster.name().as_str(), &snapshot, &loaded, &usage, server, now)?;
    info.older_generations = older::look(cluster, &snapshot, now).await?;
    if let Some(verification) = &verification {
        verified::add(&mut info, verification);
    }
    Ok(info)
}

fn describe(
    name: &str,
    snapshot: &Snapshot,
    loaded: &Loaded,
    usage: &Usage,
    server: Option<WalPosition>,
    now: Timestamp,
) -> Result<ClusterInfo, crate::restore::RestoreError> {
    Ok(ClusterInfo {
        name: name.to_owned(),
        system_identifier: loaded.record.system_id.to_string(),
        major_version: loaded.record.major_version,
        generation: loaded.record.generation.0,
        timeline: loaded.archive.current.0,
        window: window(&loaded.archive.window()?, loaded, &snapshot.index.expired),
        durable_lsn: snapshot.wal.durable_end().map(|end| end.lsn.to_string()),
        lag: lag(snapshot, server, now),
        backups: backups(snapshot, loaded, now),
        older_generations: Vec::new(),
        verification: None,
        wal: wal(snapshot, usage),
        bytes: BytesInfo { live: usage.live, waiting: usage.waiting, unreferenced: usage.unreferenced },
    })
}

fn backups(snapshot: &Snapshot, loaded: &Loaded, now: Timestamp) -> Vec<BackupInfo> {
    let pin = |id: &BackupId| {
        let mut pins = snapshot.index.pins.iter();
        let pin = pins.find(|pin| pin.backup == *id && pin.until.is_none_or(|until| until > now))?;
        Some(PinInfo {
            pinned_at: pin.pinned_at.to_string(),
            until: pin.until.map(|until| until.to_string()),
            reason: pin.reason.clone(),
        })
    };
    let entries = loaded.archive.backups.iter();
    entries.map(|entry| BackupInfo { pin: pin(&entry.id), ..BackupInfo::from(entry) }).collect()
}

/// Gaps are holes between the parts of the window, and recorded ones that no part follows yet.
fn window(window: &Window, loaded: &Loaded, expired: &[ExpiredEntry]) -> WindowInfo {
    let generation = loaded.archive.generation;
    let reason = |start: Lsn, end: Lsn| {
        let mut recorded = loaded.archive.gaps.iter();
        let lost = recorded.find(|gap| gap.start < end && start < gap.end).map(|gap| gap.reason.clone());
        let mut gone = expired.iter().filter(|gone| gone.generation == generation);
        let gone = gone.any(|gone| gone.start < end && start < gone.end);
        lost.or_else(|| gone.then(|| LET_GO.to_owned()))
    };
    let mut gaps: Vec<GapInfo> = Vec::new();
    for pair in window.parts.windows(2) {
        let [before, after] = pair else { continue };
        gaps.push(GapInfo {
            start_lsn: before.range.end.to_string(),
            end_lsn: Some(after.range.start.to_string()),
            start: Some(before.end.to_string()),
            end: Some(after.start.to_string()),
            reason: reason(before.range.end, after.range.start),
        });
    }
    let last = window.parts.last();
    for gap in &loaded.archive.gaps {
        if last.is_none_or(|last| gap.start >= last.range.end) {
            gaps.push(GapInfo {
                start_lsn: gap.start.to_string(),
                end_lsn: (gap.end < Lsn::MAX).then(|| gap.end.to_string()),
                start: last.filter(|last| gap.start == last.range.end).map(|last| last.end.to_string()),
                end: None,
                reason: Some(gap.reason.clone()),
            });
        }
    }
    WindowInfo {
        start: window.parts.first().map(|part| part.start.to_string()),
        end: last.map(|part| part.end.to_string()),
        gaps,
    }
}

/// Nothing is behind when everything the server flushed is durable, however long ago that was.
fn lag(snapshot: &Snapshot, server: Option<WalPosition>, now: Timestamp) -> Lag {
    let measured_by = if server.is_some() { "server" } else { "repository" };
    let Some(end) = snapshot.wal.durable_end() else {
        return Lag { bytes: None, seconds: None, measured_by };
    };
    let seconds = |since: Timestamp| (since.micros_since(end.server_time).max(0) as f64) / 1e6;
    let Some(server) = server else {
        let newest = snapshot.wal.chains().iter().rev().find_map(|chain| chain.objects.last());
        let bytes = newest.map(|object| object.meta.server_end.bytes_since(object.meta.end));
        return Lag { bytes, seconds: Some(seconds(now)), measured_by };
    };
    let bytes = server.end.bytes_since(end.lsn);
    Lag {
        bytes: Some(bytes),
        seconds: Some(if bytes == 0 { 0.0 } else { seconds(server.clock) }),
        measured_by,
    }
}

impl From<&BackupEntry> for BackupInfo {
    fn from(entry: &BackupEntry) -> BackupInfo {
        BackupInfo {
            id: entry.id.to_string(),
            start_lsn: entry.start.to_string(),
            stop_lsn: entry.stop.to_string(),
            started_at: entry.started_at.to_string(),
            stopped_at: entry.stopped_at.to_string(),
            timeline: entry.timeline.0,
            bytes_raw: entry.bytes_raw,
            bytes_stored: entry.bytes_stored,
            bytes_new: entry.bytes_new,
            state: match entry.state {
                BackupState::Pending => "pending",
                BackupState::Complete => "complete",
                BackupState::Damaged => "damaged",
                BackupState::Base => "base",
            },
            damaged_blocks: entry.damaged_blocks,
            pin: None,
            verified: None,
        }
    }
}

fn wal(snapshot: &Snapshot, usage: &Usage) -> WalInfo {
    let mut info = WalInfo {
        bytes_raw: 0,
        bytes_stored: 0,
        bytes_waiting: usage.flushes_waiting,
        objects: 0,
        deltas: deltas(snapshot),
    };
    for piece in snapshot.wal.pieces() {
        info.bytes_raw += piece.range.len();
        info.objects += 1;
        info.bytes_stored += match &piece.source {
            WalSource::Segment(entry) => entry.object_len,
            WalSource::Flush { object_len, .. } => *object_len,
        };
    }
    info
}

fn deltas(snapshot: &Snapshot) -> Option<DeltaInfo> {
    let mut segments: Vec<(&WalEntry, &WalDeltas)> = Vec::new();
    for piece in snapshot.wal.pieces() {
        if let WalSource::Segment(entry) = &piece.source
            && let Some(deltas) = &entry.deltas
        {
            segments.push((entry, deltas));
        }
    }
    let (_, newest) = *segments.last()?;
    let (mut bytes_raw, mut bytes_stored, mut stats) = (0, 0, DeltaStats::EMPTY);
    for (entry, deltas) in &segments {
        bytes_raw += entry.end.bytes_since(entry.start);
        bytes_stored += entry.object_len;
        stats.add(&deltas.stats);
    }
    let epochs: BTreeSet<[u8; 16]> = segments.iter().map(|(_, deltas)| deltas.epoch.id.0).collect();
    Some(DeltaInfo {
        bytes_raw,
        bytes_stored,
        epochs: epochs.len() as u64,
        images: stats.images,
        hit_rate: hit_rate(&stats),
        hit_rate_newest: hit_rate(&newest.stats),
        image_bytes_raw: stats.image_bytes,
        image_bytes_stored: stats.image_bytes_stored,
        record_bytes_stored: stats.record_bytes_stored,
        cache_bytes: u64::from(newest.epoch.cache_pages) * BLOCK_BYTES as u64,
        base: newest.base.as_ref().map(ToString::to_string),
    })
}

/// Of images; 1 where there are none.
fn hit_rate(stats: &DeltaStats) -> f64 {
    (stats.images_base + stats.images_image) as f64 / stats.images.max(1) as f64
        + f64::from(u8::from(stats.images == 0))
}

#[cfg(test)]
mod tests;
