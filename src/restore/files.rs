//! Writing a backup's files. Chunks come in any order on several threads and go to their places in their files; zeros stay
//! holes; each file's CRC-32C is put together from its parts and checked. `global/pg_control` is held back: whoever calls
//! writes it after everything else is durable, so that what an interruption leaves cannot be started.
//!
//! Memory: two batches of `BATCH_CHUNKS_MAX` places and what the chunk reader holds.

mod job;
mod sync;

pub use sync::Durability;

use super::backup_manifest::BackupManifestWriter;
use super::error::RestoreError;
use super::place::Places;
use crate::base::progress::Progress;
use crate::base::{ChunkId, crc32c};
use crate::format::manifest::{CHUNK_BYTES, ContentRun, FileEntry, FileKind, RunKind};
use crate::repo::chunks::ChunkReader;
use crate::repo::manifest::Manifest;
use futures_util::StreamExt;
use job::{FileJob, Part};
use rustix::fs::{Gid, Uid};
use std::collections::HashSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::task::JoinSet;

/// Chunks asked for at once: enough that neighbours in a segment are read together.
const BATCH_CHUNKS_MAX: usize = 4096;
/// Batches under way.
const BATCHES_MAX: usize = 2;
/// PostgreSQL's control file: without it nothing starts.
pub const CONTROL: &str = "global/pg_control";
/// Where recovery starts.
const LABEL: &str = "backup_label";
/// What a backup may hold and a restored server must not get: signals of a standby's own, links that are made from the
/// manifest, a manifest that is written anew.
const LEFT_OUT: &[&str] =
    &["tablespace_map", "standby.signal", "recovery.signal", "backup_manifest", super::place::INCOMPLETE];
/// What pg_verifybackup does not look for, since a restore changes it.
const NOT_LISTED: &[&str] = &["postgresql.auto.conf"];

/// Who owns what is written, when not we.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub user: u32,
    /// The group.
    pub group: u32,
}

/// How files are written.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// Where.
    pub places: Places,
    /// Who owns them.
    pub owner: Option<Owner>,
    /// How they become durable.
    pub durability: Arc<Durability>,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Written {
    /// Files.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Bytes of them that are holes.
    pub hole_bytes: u64,
}

/// Everything is in place but the control file.
#[derive(Debug)]
pub struct AlmostDone {
    /// What was written.
    pub written: Written,
    control: FileEntry,
    /// Permission bits of directories in the backup, which the data directory itself gets too.
    directory_mode: u32,
}

/// Makes the directories that all others are in: data directory, WAL directory, tablespaces with their links.
pub fn make_places(options: &WriteOptions) -> Result<(), RestoreError> {
    let places = &options.places;
    let make = |dir: &Path| {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|e| RestoreError::io(dir, "create", e))?;
        let private = fs::Permissions::from_mode(0o700);
        fs::set_permissions(dir, private).map_err(|e| RestoreError::io(dir, "set the mode of", e))?;
        give(dir, options.owner)
    };
    let link = |target: &Path, at: &Path| {
        symlink(target, at).map_err(|e| RestoreError::io(at, "link", e))?;
        give(at, options.owner)
    };
    make(&places.data_dir)?;
    super::place::mark_incomplete(&places.data_dir)?;
    let pg_wal = places.data_dir.join("pg_wal");
    match &places.wal_dir {
        Some(wal_dir) => {
            make(wal_dir)?;
            link(wal_dir, &pg_wal)?;
        }
        None => make(&pg_wal)?,
    }
    let links = places.data_dir.join("pg_tblspc");
    make(&links)?;
    for tablespace in &places.tablespaces {
        make(&tablespace.path)?;
        link(&tablespace.path, &links.join(tablespace.oid.to_string()))?;
    }
    Ok(())
}

/// Writes all files of `manifest` but the control file and those `replaced`, and lists them in `listing`. Nothing is durable
/// yet. If dropped:
/// writes under way are finished, no other begins.
pub async fn write_files<W: Write>(
    manifest: &Manifest,
    chunks: &ChunkReader,
    options: &WriteOptions,
    replaced: &HashSet<String>,
    listing: &mut BackupManifestWriter<W>,
    progress: &Arc<dyn Progress>,
) -> Result<AlmostDone, RestoreError> {
    let mut writing = Writing {
        options: options.clone(),
        chunks: chunks.clone(),
        progress: progress.clone(),
        batch: Vec::new(),
        batches: JoinSet::new(),
        written: Written::default(),
    };
    let (mut control, mut labelled) = (None, false);
    let mut directory_mode = 0o700;
    let tablespace_links: Vec<String> =
        options.places.tablespaces.iter().map(|tablespace| format!("pg_tblspc/{}", tablespace.oid)).collect();
    let mut pages = std::pin::pin!(manifest.files(chunks));
    while let Some(page) = pages.next().await {
        for entry in page? {
            let left_out = LEFT_OUT.contains(&entry.path.as_str())
                || tablespace_links.contains(&entry.path)
                || replaced.contains(&entry.path);
            match entry.kind {
                _ if left_out => {}
                FileKind::Directory => {
                    if entry.path == "global" {
                        directory_mode = entry.mode & 0o777;
                    }
                    writing.directory(&entry)?;
                }
                FileKind::Regular => {
                    if !NOT_LISTED.contains(&entry.path.as_str()) {
                        list(listing, &options.places.data_dir, &entry)?;
                    }
                    labelled |= entry.path == LABEL;
                    if entry.path == CONTROL {
                        control = Some(entry);
                    } else {
                        let runs = manifest.runs(chunks, &entry).await?;
                        writing.file(&entry, runs).await?;
                    }
                }
                FileKind::Link => {
                    return Err(RestoreError::Damage {
                        what: format!("backup {}, {}", manifest.meta.id, entry.path),
                        reason: "a link that is no tablespace".into(),
                    });
                }
            }
        }
    }
    writing.flush().await?;
    writing.all_batches().await?;
    let Some(control) = control.filter(|_| labelled) else {
        // Without its label PostgreSQL would begin recovery at the wrong place, and not notice.
        let (what, reason) =
            (format!("backup {}", manifest.meta.id), format!("no {CONTROL} or {LABEL} in it"));
        return Err(RestoreError::Damage { what, reason });
    };
    Ok(AlmostDone { written: writing.written, control, directory_mode })
}

fn list<W: Write>(
    listing: &mut BackupManifestWriter<W>,
    data_dir: &Path,
    entry: &FileEntry,
) -> Result<(), RestoreError> {
    let listed = listing.file(&entry.path, entry.len, entry.modified, entry.crc32c);
    listed.map_err(|error| RestoreError::io(&data_dir.join("backup_manifest"), "write", error))
}

impl AlmostDone {
    /// Writes the control file, durably. Everything else is durable before.
    pub async fn write_control(
        &self,
        manifest: &Manifest,
        chunks: &ChunkReader,
        options: &WriteOptions,
    ) -> Result<(), RestoreError> {
        let mut content = Vec::new();
        for run in manifest.runs(chunks, &self.control).await? {
            for id in &run.chunks {
                content.extend_from_slice(&chunks.read(*id).await?);
            }
            content.resize(content.len() + if run.chunks.is_empty() { run.len as usize } else { 0 }, 0);
        }
        if crc32c::crc32c(&content) != self.control.crc32c || content.len() as u64 != self.control.len {
            return Err(RestoreError::Damage {
                what: format!("backup {}, {CONTROL}", manifest.meta.id),
                reason: "its checksum is wrong".into(),
            });
        }
        let data_dir = &options.places.data_dir;
        write_durably(&data_dir.join(CONTROL), &content, self.control.mode & 0o777, options.owner)?;
        let mode =
            fs::Permissions::from_mode(if self.directory_mode & 0o050 == 0o050 { 0o750 } else { 0o700 });
        fs::set_permissions(data_dir, mode)
            .map_err(|error| RestoreError::io(data_dir, "set the mode of", error))
    }
}

/// Creates or replaces a small file; durable on return, its name too.
pub fn write_durably(
    path: &Path,
    content: &[u8],
    mode: u32,
    owner: Option<Owner>,
) -> Result<(), RestoreError> {
    let failed = |error: io::Error| RestoreError::io(path, "write", error);
    fs::write(path, content).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)?;
    give(path, owner)?;
    fs::File::open(path).and_then(|file| file.sync_all()).map_err(failed)?;
    match path.parent() {
        Some(dir) => sync_dir(dir),
        None => Ok(()),
    }
}

/// Makes `dir` and its parents where they are missing.
pub fn make_dirs(dir: &Path, owner: Option<Owner>) -> Result<(), RestoreError> {
    job::make_parents(&dir.join("x"), owner)
}

/// Makes the names in `dir` durable.
pub fn sync_dir(dir: &Path) -> Result<(), RestoreError> {
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| RestoreError::io(dir, "sync", error))
}

/// Gives `path`, itself and not where it leads, to `owner`.
pub fn give(path: &Path, owner: Option<Owner>) -> Result<(), RestoreError> {
    let Some(owner) = owner else { return Ok(()) };
    let (user, group) = (Uid::from_raw(owner.user), Gid::from_raw(owner.group));
    rustix::fs::chownat(rustix::fs::CWD, path, Some(user), Some(group), rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| RestoreError::io(path, "give away", error.into()))
}

/// Files being written.
struct Writing {
    options: WriteOptions,
    chunks: ChunkReader,
    progress: Arc<dyn Progress>,
    batch: Vec<(ChunkId, Part)>,
    batches: JoinSet<Result<(), RestoreError>>,
    written: Written,
}

impl Writing {
    fn path_of(&self, entry: &FileEntry) -> PathBuf {
        self.options.places.data_dir.join(&entry.path)
    }

    fn directory(&self, entry: &FileEntry) -> Result<(), RestoreError> {
        let path = self.path_of(entry);
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                job::make_parents(&path, self.options.owner)
                    .and_then(|()| fs::create_dir(&path).map_err(|e| RestoreError::io(&path, "create", e)))?
            }
            other => other.map_err(|error| RestoreError::io(&path, "create", error))?,
        }
        let mode = fs::Permissions::from_mode(entry.mode & 0o7777);
        fs::set_permissions(&path, mode)
            .map_err(|error| RestoreError::io(&path, "set the mode of", error))?;
        give(&path, self.options.owner)
    }

    /// Plans the parts of a file; begins to write when enough is planned.
    async fn file(&mut self, entry: &FileEntry, runs: Vec<ContentRun>) -> Result<(), RestoreError> {
        let holes: u64 = runs.iter().filter(|run| run.kind == RunKind::Zeros).map(|run| run.len).sum();
        self.written.files += 1;
        self.written.bytes += entry.len;
        self.written.hole_bytes += holes;
        self.progress.advance(holes);
        let job = Arc::new(FileJob::new(self.path_of(entry), entry, &runs, &self.options));
        if job.is_empty() {
            return job.finish_without_parts();
        }
        let (mut offset, mut number) = (0, 0);
        for run in runs {
            let mut left = run.len;
            for id in run.chunks {
                let len = left.min(CHUNK_BYTES as u64);
                self.batch.push((id, Part { job: job.clone(), number, offset, len }));
                (offset, left, number) = (offset + len, left - len, number + 1);
            }
            // Zeros; a run of chunks leaves nothing.
            offset += left;
            if self.batch.len() >= BATCH_CHUNKS_MAX {
                self.flush().await?;
            }
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), RestoreError> {
        while self.batches.len() >= BATCHES_MAX {
            self.one_batch().await?;
        }
        let batch = std::mem::take(&mut self.batch);
        if !batch.is_empty() {
            let (chunks, progress) = (self.chunks.clone(), self.progress.clone());
            self.batches.spawn(async move {
                let write = move |part: Part, chunk: &[u8]| {
                    part.write(chunk)?;
                    progress.advance(chunk.len() as u64);
                    Ok(())
                };
                chunks.fetch(batch, Arc::new(write)).await
            });
        }
        Ok(())
    }

    async fn one_batch(&mut self) -> Result<(), RestoreError> {
        match self.batches.join_next().await {
            Some(Ok(done)) => done,
            Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
            None => Ok(()),
        }
    }

    async fn all_batches(&mut self) -> Result<(), RestoreError> {
        while !self.batches.is_empty() {
            self.one_batch().await?;
        }
        Ok(())
    }
}
