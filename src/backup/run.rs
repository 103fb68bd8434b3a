//! The driver of `walden backup`: registers, streams BASE_BACKUP in, stores files, manifest and index entry, waits for the WAL.
//! Nothing refers to what was stored before the commit; an error, a stop or a kill before it leaves a registration at most,
//! which collection removes. After the commit the backup exists, and is restorable as soon as its WAL is durable.

use super::cutter::Cutter;
use super::error::BackupError;
use super::intake::{Findings, Intake, Taken};
use super::label::BackupLabel;
use super::source::settings_kept;
use super::upstream::{Connected, Replication, Server, Source};
use super::wal::{self, EnsureWal};
use crate::base::limits::BLOCK_BYTES;
use crate::base::progress::Progress;
use crate::base::{BackupId, ClusterName, Generation, Lsn, LsnRange, ObjectKey, TimelineId, Timestamp};
use crate::format::index::{BackupEntry, BackupState, PagesEntry};
use crate::format::manifest::{DamagedBlock, ManifestMeta, Tablespace};
use crate::format::root::{GenerationRecord, PendingKind, Root};
use crate::net::server::ServerSettings;
use crate::net::{BaseBackupEvent, BaseBackupOptions, Checkpoint, ServerManifest};
use crate::repo::backups::entry_of;
use crate::repo::chunks::{ChunkIndex, ChunkStats, ChunkWriter};
use crate::repo::cluster::{RootChange, object_is_gone};
use crate::repo::index::{IndexEdit, empty_page};
use crate::repo::manifest::Manifest;
use crate::repo::{Cluster, Index, Registration, RepoError, Repository, backups, layout};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Seconds by which an id may move because others have it.
const ID_BUMPS_MAX: i64 = 120;
/// How long a failed backup tries to take its registration away.
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(30);
/// How long WAL may take so that one commit does for all.
const SETTLE_LIMIT: Duration = Duration::from_secs(2);
const MICROS: i64 = 1_000_000;

/// What `backup` is asked to do.
#[derive(Debug, Clone)]
pub struct BackupOptions {
    /// The checkpoint it begins with.
    pub checkpoint: Checkpoint,
    /// KiB a second that the server may send; it takes 32 to 1,048,576.
    pub max_rate_kib: Option<u32>,
    /// How long its WAL may take to become durable.
    pub wal_timeout: Duration,
    /// What the connections call themselves.
    pub application_name: String,
    /// Host and process, for people who find the registration.
    pub holder: String,
    /// Time between two renewals of its registration.
    pub renew_interval: Duration,
    /// Threads that compress.
    pub threads: usize,
}

/// A backup that was made.
#[derive(Debug, Clone)]
pub struct BackupReport {
    /// Its entry in the index.
    pub entry: BackupEntry,
    /// Files, directories and links.
    pub file_count: u64,
    /// What was stored, and what was there.
    pub chunks: ChunkStats,
    /// Damaged blocks, the first ones.
    pub damaged: Vec<DamagedBlock>,
    /// What an operator should know.
    pub warnings: Vec<String>,
}

/// Everything a backup works with.
#[derive(Debug)]
pub struct BackupJob<'a> {
    /// The repository.
    pub repo: Arc<Repository>,
    /// The cluster; made if it is not there.
    pub cluster: ClusterName,
    /// The server.
    pub server: &'a dyn Server,
    /// What is asked for.
    pub options: &'a BackupOptions,
    /// Who sees to the WAL.
    pub wal: &'a dyn EnsureWal,
    /// Who watches.
    pub progress: &'a dyn Progress,
    /// Set to true to stop.
    pub stop: watch::Receiver<bool>,
}

/// Makes a backup. On `Ok` it is durable and restorable. If dropped: nothing refers to what was stored, or the backup exists.
///
/// # Errors
/// [`BackupError::WalMissing`]: the backup exists, and is not restorable yet. Any other: there is none.
pub async fn run(job: BackupJob<'_>) -> Result<BackupReport, BackupError> {
    let mut stop = job.stop.clone();
    let name = &job.options.application_name;
    let connected = async {
        let Connected { replication, mut source } = job.server.connect(name).await?;
        let server = source.settings().await?;
        let cluster = Cluster::create(job.repo.clone(), generation_of(&job.cluster, &server)?).await?;
        Ok::<_, BackupError>((replication, source, server, cluster))
    };
    let (replication, source, server, cluster) = tokio::select! {
        connected = connected => connected?,
        () = stopped(&mut stop) => return Err(BackupError::Interrupted),
    };
    let registration = Registration::create(&cluster, PendingKind::Backup, None, &job.options.holder).await?;
    let mut backup = Backup { job: &job, cluster: &cluster, registration: &registration, server, source };
    let stored = tokio::select! {
        stored = backup.store_and_settle(replication) => stored,
        () = stopped(&mut stop) => Err(BackupError::Interrupted),
        expired = registration.keep(job.options.renew_interval) => Err(expired.into()),
    };
    let committed = match stored {
        Ok((report, new)) => backup.commit(&report.entry, new).await.map(|()| report),
        Err(error) => Err(error),
    };
    let mut report = match committed {
        Ok(report) => report,
        Err(error) => {
            let abandoned = tokio::time::timeout(CLEAN_UP_LIMIT, registration.abandon()).await;
            match abandoned {
                Ok(Ok(false)) if matches!(&error, BackupError::Repo(gone) if object_is_gone(gone)) => {
                    return Err(BackupError::Expired);
                }
                Ok(Ok(_)) => {}
                _ => {
                    tracing::warn!("the backup's registration stays in the repository until it is collected")
                }
            }
            return Err(error);
        }
    };
    if report.entry.state == BackupState::Pending {
        backup.complete(&mut report, &mut stop).await?;
    }
    Ok(report)
}

/// The generation that `server` is, in a cluster that may be new.
fn generation_of(cluster: &ClusterName, server: &ServerSettings) -> Result<GenerationRecord, BackupError> {
    if server.block_size_bytes as usize != BLOCK_BYTES {
        let found = server.block_size_bytes;
        let reason = format!("the server's block size is {found}; walden knows {BLOCK_BYTES} only");
        return Err(BackupError::Unsupported { reason });
    }
    Ok(GenerationRecord {
        cluster: cluster.clone(),
        generation: Generation(1),
        system_id: server.system_id,
        major_version: server.version / 10_000,
        segment_size: server.wal_segment_size.get(),
        block_size: server.block_size_bytes,
    })
}

/// Returns once `stop` is set.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending().await
    }
}

/// The segments that hold the chunks of a backup.
struct Segments {
    /// It made them: they are to be committed with it.
    made: Vec<PagesEntry>,
    /// It found them, with chunks of it.
    relied_on: Vec<ObjectKey>,
}

struct Backup<'a> {
    job: &'a BackupJob<'a>,
    cluster: &'a Cluster,
    registration: &'a Registration,
    server: ServerSettings,
    source: Box<dyn Source + 'a>,
}

/// Where and when BASE_BACKUP began and ended.
struct Span {
    timeline: TimelineId,
    start: Lsn,
    stop: Lsn,
    started_at: Timestamp,
    stopped_at: Timestamp,
    tablespaces: Vec<Tablespace>,
}

impl Backup<'_> {
    /// Stores everything, and gives the WAL a moment to become durable: then one commit does.
    async fn store_and_settle(
        &mut self,
        replication: Box<dyn Replication>,
    ) -> Result<(BackupReport, Segments), BackupError> {
        let (mut report, segments) = self.store(replication).await?;
        self.job.progress.stage("waiting for WAL", None);
        let deadline = Instant::now() + SETTLE_LIMIT.min(self.job.options.wal_timeout);
        let (place, range) = (place_of(&report.entry), self.needed_wal(&report.entry));
        let durable = match self.job.wal.wait(self.cluster, place, range, deadline).await {
            Ok(true) => wal::is_durable(self.cluster, place, range).await?,
            // What failed is told after the commit: the backup is there, and WAL may still come.
            Ok(false) | Err(_) => false,
        };
        if durable {
            report.entry.state = state_with_wal(&report.entry);
        }
        Ok((report, segments))
    }

    fn needed_wal(&self, entry: &BackupEntry) -> LsnRange {
        backups::needed_wal(entry, self.server.wal_segment_size)
    }

    /// Streams and stores everything. Nothing refers to it yet; the segments are to be committed with the entry.
    async fn store(
        &mut self,
        replication: Box<dyn Replication>,
    ) -> Result<(BackupReport, Segments), BackupError> {
        let (job, cluster) = (self.job, self.cluster);
        // Again, now that it is registered: the next generation may have begun since.
        cluster.check_server(&generation_of(&job.cluster, &self.server)?).await?;
        job.progress.stage("reading the index", None);
        let index = cluster.index(self.registration.root()).await?;
        let known = Arc::new(ChunkIndex::load(cluster, &index.pages).await?);
        let mut warnings: Vec<String> = Vec::new();
        for lost in known.lost() {
            warnings
                .push(format!("earlier backups are damaged: {} cannot be read: {}", lost.key, lost.error));
        }
        job.wal.begin(cluster).await.map_err(|source| self.wal_failed(source))?;
        job.progress.stage("checkpoint", None);
        let chunks = ChunkWriter::create(cluster.clone(), known, job.options.threads);
        let (span, taken) = self.stream(replication, chunks).await?;
        job.progress.stage("storing the manifest", None);
        let (config_files, missed) = self.source.config_files(&self.server).await?;
        warnings.extend(missed.into_iter().map(|missed| format!("configuration not stored: {missed}")));
        let Taken { mut chunks, manifest, label, found } = taken;
        findings_to_tell(&found, &mut warnings);
        let label = BackupLabel::parse(&label)?;
        let file_count = manifest.file_count();
        let pages = manifest.finish(&mut chunks).await?;
        let relied_on = chunks.relied_on();
        let (made, stats) = chunks.finish().await?;
        let meta = ManifestMeta {
            id: BackupId::at(span.started_at),
            cluster: cluster.name().clone(),
            generation: self.registration.root().generation,
            system_id: self.server.system_id,
            server_version: self.server.version,
            segment_size: self.server.wal_segment_size.get(),
            checksums: self.server.data_checksums,
            timeline: span.timeline,
            start: span.start,
            redo: label.redo,
            checkpoint: label.checkpoint,
            stop: span.stop,
            started_at: span.started_at,
            stopped_at: span.stopped_at,
            tablespaces: span.tablespaces,
            settings: settings_kept(&self.server),
            config_files,
            damaged: found.damaged,
            file_count,
            bytes_raw: found.bytes_raw,
            extensions: Vec::new(),
        };
        let mut manifest = Manifest { meta, pages };
        let manifest_len = self.create_manifest(&mut manifest).await?;
        let root = self.registration.began_after();
        let entry = BackupEntry {
            bytes_stored: stats.bytes_stored + manifest_len,
            bytes_new: stats.bytes_new + manifest_len,
            damaged_blocks: found.damaged_count,
            ..entry_of(&manifest.meta, (0, manifest_len), root)
        };
        let damaged = manifest.meta.damaged;
        let report = BackupReport { entry, file_count, chunks: stats, damaged, warnings };
        Ok((report, Segments { made, relied_on }))
    }

    /// Runs BASE_BACKUP and takes its files in.
    async fn stream(
        &mut self,
        replication: Box<dyn Replication>,
        chunks: ChunkWriter,
    ) -> Result<(Span, Taken), BackupError> {
        let progress = self.job.progress;
        let mut span = Span {
            timeline: TimelineId::FIRST,
            start: Lsn::ZERO,
            stop: Lsn::ZERO,
            started_at: self.source.position().await?.clock,
            stopped_at: Timestamp::MIN,
            tablespaces: Vec::new(),
        };
        let options = BaseBackupOptions {
            checkpoint: self.job.options.checkpoint,
            max_rate_kib: self.job.options.max_rate_kib,
            manifest: ServerManifest::None,
            ..BaseBackupOptions::new(format!("walden {}", BackupId::at(span.started_at)))
        };
        let mut events = replication.base_backup(&options).await?;
        let mut intake = Intake::new(chunks, &mut *self.source);
        let mut archive: Option<(String, Cutter)> = None;
        while let Some(event) = events.next().await? {
            match event {
                BaseBackupEvent::Start { lsn, timeline } => {
                    (span.start, span.timeline) = (lsn, timeline);
                    intake.begin(self.server.data_checksums.then_some(lsn));
                }
                BaseBackupEvent::Tablespaces(rows) => {
                    let sizes: Option<u64> = rows.iter().map(|row| row.size_kib).sum();
                    progress.stage("reading files", sizes.map(|kib| kib.saturating_mul(1024)));
                    // Those inside the data directory (developers' in-place ones) are no links.
                    let outside = rows.iter().filter(|row| row.path.starts_with('/'));
                    span.tablespaces = outside
                        .filter_map(|row| Some(Tablespace { oid: row.oid?, path: row.path.clone() }))
                        .collect();
                    intake.link(&span.tablespaces);
                }
                BaseBackupEvent::Archive { name, tablespace_oid } => {
                    end_archive(archive.replace((name, Cutter::new(tablespace_oid))))?;
                }
                BaseBackupEvent::Data(bytes) => {
                    progress.advance(bytes.len() as u64);
                    let Some((name, cutter)) = &mut archive else { continue };
                    cutter.feed(bytes);
                    let wrong = |source| BackupError::Archive { archive: name.clone(), source };
                    while let Some(piece) = cutter.next_piece().map_err(wrong)? {
                        intake.take(piece).await?;
                    }
                }
                BaseBackupEvent::Manifest(_) | BaseBackupEvent::Progress(_) => {}
                BaseBackupEvent::End { lsn, .. } => span.stop = lsn,
            }
        }
        end_archive(archive.take())?;
        let taken = intake.finish(span.stop).await?;
        span.stopped_at = self.source.position().await?.clock;
        Ok((span, taken))
    }

    /// Creates the manifest object under the first id that nobody has.
    async fn create_manifest(&self, manifest: &mut Manifest) -> Result<u64, BackupError> {
        let began = manifest.meta.started_at;
        let index = self.cluster.index(self.registration.root()).await?;
        for bump in 0..ID_BUMPS_MAX {
            manifest.meta.id = BackupId::at(began.saturating_add_micros(bump * MICROS));
            // The first manifest of a backup goes when it is sealed anew, and its id stays taken.
            let id = &manifest.meta.id;
            if index.backup(id).is_some() || index.removed.iter().any(|removed| removed.name == id.as_str()) {
                continue;
            }
            match manifest.create(self.cluster).await {
                Err(RepoError::Conflict { .. }) => {}
                other => return Ok(other?),
            }
        }
        let reason = format!("{ID_BUMPS_MAX} backups have ids from {} on", BackupId::at(began));
        Err(RepoError::Conflict { reason }.into())
    }

    /// Commits segments and backup. Collection lets nothing go while a backup is registered; this does not rest on that alone.
    async fn commit(&self, entry: &BackupEntry, segments: Segments) -> Result<(), BackupError> {
        let mut page = empty_page();
        page.pages = segments.made;
        page.backups.push(entry.clone());
        let edit = |root: &Root, index: &Index| {
            let name = self.cluster.name();
            if root.generation != entry.generation {
                let (cluster, generation) = (name.to_string(), entry.generation);
                let current = root.generation;
                return Err(RepoError::NewGeneration { cluster, generation, current }.into());
            }
            let root = self.registration.leave(root).ok_or(BackupError::Expired)?;
            if index.backup(&entry.id).is_some() {
                let reason = format!("another backup has the id {}", entry.id);
                return Err(RepoError::Conflict { reason }.into());
            }
            let there: HashSet<_> = index.pages.iter().map(|entry| layout::segment(name, entry.id)).collect();
            match segments.relied_on.iter().find(|key| !there.contains(key)) {
                Some(key) => Err(BackupError::ChunksGone { key: key.clone() }),
                None => Ok(Some(RootChange { root, index: IndexEdit::Add(page.clone()) })),
            }
        };
        self.cluster.commit_indexed(edit).await?;
        self.registration.left().await;
        Ok(())
    }

    /// Waits for the WAL, and commits that the backup is restorable.
    async fn complete(
        &self,
        report: &mut BackupReport,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), BackupError> {
        let (entry, cluster) = (&mut report.entry, self.cluster);
        let range = self.needed_wal(entry);
        let missing = |reason: String, source| {
            let (id, timeline) = (entry.id.clone(), entry.timeline);
            BackupError::WalMissing { id, timeline, range, reason, source }
        };
        let deadline = Instant::now() + self.job.options.wal_timeout;
        let waited = tokio::select! {
            waited = self.job.wal.wait(cluster, place_of(entry), range, deadline) => waited,
            () = stopped(stop) => return Err(missing("interrupted".into(), None)),
        };
        match waited {
            Ok(true) if wal::is_durable(cluster, place_of(entry), range).await? => {}
            Ok(said) => {
                let snapshot = crate::repo::walmap::load_generation(cluster, entry.generation).await?;
                let end = snapshot.wal.contiguous_end(entry.timeline, range.start);
                let late = if said { "the receiver says it is" } else { "--wal-timeout is over" };
                return Err(missing(format!("durable up to {end}, {late}"), None));
            }
            Err(source) => return Err(missing(source.to_string(), Some(source))),
        }
        entry.state = state_with_wal(entry);
        let commit = |root: &Root, index: &Index| {
            // A backup removed meanwhile stays removed, and a manifest that was sealed anew meanwhile stays the one it has.
            let Some(now) = index.backup(&entry.id) else { return Ok::<_, RepoError>(None) };
            *entry = BackupEntry { state: entry.state, ..now.clone() };
            let mut page = empty_page();
            page.backups.push(entry.clone());
            Ok(Some(RootChange { root: root.clone(), index: IndexEdit::Add(page) }))
        };
        cluster.commit_indexed(commit).await?;
        Ok(())
    }

    fn wal_failed(&self, source: wal::WalFailure) -> BackupError {
        BackupError::Wal { source }
    }
}

fn end_archive(archive: Option<(String, Cutter)>) -> Result<(), BackupError> {
    match archive {
        Some((archive, cutter)) => cutter.finish().map_err(|source| BackupError::Archive { archive, source }),
        None => Ok(()),
    }
}

/// Which WAL belongs to it.
fn place_of(entry: &BackupEntry) -> (Generation, TimelineId) {
    (entry.generation, entry.timeline)
}

/// What a backup is once its WAL is durable.
fn state_with_wal(entry: &BackupEntry) -> BackupState {
    if entry.damaged_blocks > 0 { BackupState::Damaged } else { BackupState::Complete }
}

fn findings_to_tell(found: &Findings, warnings: &mut Vec<String>) {
    for block in &found.damaged {
        warnings.push(format!("damaged on the server: block {} of {}", block.block, block.path));
    }
    if found.unread_count > 0 {
        warnings.push(format!(
            "{} of the damaged blocks may have been torn: the role may not read them again (it needs EXECUTE on \
             pg_read_binary_file(text,bigint,bigint,boolean))",
            found.unread_count
        ));
    }
}
