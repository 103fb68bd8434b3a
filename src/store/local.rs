//! A store in a directory of this host.
//!
//! Why not `object_store`'s `LocalFileSystem`, even with `with_fsync(true)`: read at version 0.14.2, it syncs the file, the
//! directory it is linked into, and the directories it makes, which is right for one writer that never dies. But
//!
//! - a writer killed between link and fsync leaves a name that everyone sees and no one syncs. The next create says
//!   "exists already", the reader finds its own bytes, and both call durable what a power cut still takes away;
//! - a directory that another writer has made, and not yet synced, counts as there: only its own entries are synced;
//! - its staging files (`name#1`) stay for ever after a kill; deleting one leaves no trace either way;
//! - it resolves paths anew each time: when the file system under the repository goes away, it makes the directories again on
//!   whatever lies below, and archives into the void.
//!
//! So this adapter is ours, with these invariants:
//!
//! - **A name is published whole**: data is written to a nameless file (`O_TMPFILE`), fsynced, then linked, which fails if
//!   the name exists. Where there are no nameless files, a file under `.staging` is used, and swept when it is a day old.
//! - **Read-only means durable**: after the directory was synced, the object loses its write bits. Whoever meets one that
//!   still has them (a create that finds it, or any read) syncs the directory first. So no decision rests on a name that may vanish.
//! - **Directories are synced once by each process**, from the repository's root down, whoever made them.
//! - **The root is opened once**, and everything is relative to that handle: a file system that is unmounted lazily is
//!   still the one that is written, and an eager unmount is refused while we run.
//!
//! Deletions are not synced: an object that comes back after a power cut is garbage that collection finds again.

mod errors;

use super::{MappedObject, ObjectMeta, Store, StoreError};
use crate::base::ObjectKey;
use async_trait::async_trait;
use bytes::Bytes;
use errors::{sort_out, sort_out_read, sort_out_write};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use tokio::sync::Semaphore;

/// Operations of one store at a time: more would queue at the disk, not here.
const OPERATIONS_MAX: usize = 64;
/// Directories remembered as synced; beyond it they are forgotten and synced once more.
const DIRECTORIES_SYNCED_MAX: usize = 4096;
/// Where data waits for its name on file systems without nameless files. No [`ObjectKey`] holds a dot.
const STAGING: &str = ".staging";
/// The age at which a staged file has no living writer.
const STAGING_AGE_MAX_SECONDS: i64 = 24 * 3600;
const FILE_MODE: Mode = Mode::from_raw_mode(0o640);
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o750);
const WRITE_BITS: Mode = Mode::from_raw_mode(0o222);

/// A store in a directory of this host.
#[derive(Debug, Clone)]
pub struct LocalStore {
    tree: Arc<Tree>,
    operations: Arc<Semaphore>,
}

impl LocalStore {
    /// The store in `root`, which need not be there before the first create. Its path is made absolute now.
    pub fn open(root: &Path) -> io::Result<Self> {
        let tree = Tree {
            root: std::path::absolute(root)?,
            handle: OnceLock::new(),
            synced: Mutex::default(),
            nameless: AtomicBool::new(true),
            staged: AtomicU64::new(0),
        };
        Ok(LocalStore { tree: Arc::new(tree), operations: Arc::new(Semaphore::new(OPERATIONS_MAX)) })
    }

    /// Maps an object into memory; blocks. For short-lived tools alone, see [`MappedObject`].
    pub fn map(&self, key: &ObjectKey) -> Result<MappedObject, StoreError> {
        let (file, _) = self.tree.open_object(key)?;
        MappedObject::map(&file).map_err(|error| sort_out(key, "mapping it", error))
    }

    /// Runs `work` where it may block. Once begun it is finished, also when the caller is gone.
    async fn run<T, F>(&self, key: &ObjectKey, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Tree, &ObjectKey) -> Result<T, StoreError> + Send + 'static,
    {
        let unknown = |reason: String| StoreError::Unknown { key: key.clone(), reason };
        let permit =
            self.operations.clone().acquire_owned().await.map_err(|error| unknown(error.to_string()))?;
        let (tree, owned) = (self.tree.clone(), key.clone());
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work(&tree, &owned)
        });
        task.await.map_err(|error| unknown(format!("a blocking task ended early: {error}")))?
    }
}

#[async_trait]
impl Store for LocalStore {
    async fn create(&self, key: &ObjectKey, body: Bytes) -> Result<(), StoreError> {
        self.run(key, move |tree, key| tree.create(key, &body)).await
    }

    async fn get(&self, key: &ObjectKey) -> Result<Bytes, StoreError> {
        self.run(key, |tree, key| tree.get(key)).await
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.run(key, move |tree, key| tree.get_range(key, range)).await
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta, StoreError> {
        self.run(key, |tree, key| tree.open_object(key).map(|(_, stat)| meta(key.clone(), &stat))).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        let Some(key) = ObjectKey::new(if prefix.is_empty() { "repository" } else { prefix }) else {
            let reason = format!("{prefix:?} is no prefix of object names");
            return Err(StoreError::Url { url: self.url(), reason });
        };
        let prefix = prefix.to_owned();
        self.run(&key, move |tree, key| {
            let mut found = Vec::new();
            tree.list(&prefix, &mut found).map_err(|error| sort_out(key, "listing", error))?;
            found.sort_by(|a, b| a.key.cmp(&b.key));
            Ok(found)
        })
        .await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.run(key, |tree, key| match tree.delete(key) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(|error| sort_out(key, "removing", error)),
        })
        .await
    }

    fn url(&self) -> String {
        format!("file://{}", self.tree.root.display())
    }
}

/// The directory tree, with blocking operations.
#[derive(Debug)]
struct Tree {
    root: PathBuf,
    handle: OnceLock<OwnedFd>,
    /// Directories whose own names this process has made durable, relative to the root.
    synced: Mutex<HashSet<String>>,
    /// Whether this file system has nameless files that can be linked; until one refuses.
    nameless: AtomicBool,
    /// Staged files so far, for their names.
    staged: AtomicU64,
}

impl Tree {
    fn create(&self, key: &ObjectKey, body: &[u8]) -> Result<(), StoreError> {
        let failed = |doing| move |error| sort_out_write(key, doing, error);
        let root = self.root_to_write().map_err(failed("opening the repository"))?;
        let parent = parent_of(key.as_str());
        self.sync_ancestry(root, parent).map_err(failed("making its directory"))?;
        match self.publish(root, key, body) {
            Ok(file) => {
                sync_directory(root, parent).map_err(failed("syncing its directory"))?;
                drop_write_bits(&file);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // What the store says about the object, it says for good: opening it makes its name durable.
                Err(match self.open_object(key) {
                    Ok(_) => StoreError::AlreadyExists { key: key.clone() },
                    Err(StoreError::NotFound { key }) => {
                        StoreError::Unknown { key, reason: "another was there, and was removed".into() }
                    }
                    Err(other) => other,
                })
            }
            Err(error) => Err(sort_out_write(key, "storing it", error)),
        }
    }

    /// Writes `body`, fsyncs it, and gives it its name if no object has it.
    fn publish(&self, root: &OwnedFd, key: &ObjectKey, body: &[u8]) -> io::Result<File> {
        if self.nameless.load(Ordering::Relaxed) {
            match publish_nameless(root, key, body) {
                Ok(published) => return published,
                Err(Unsupported) => {
                    tracing::debug!(root = %self.root.display(), "no nameless files here: staging under {STAGING}");
                    self.sweep_staging(root)?;
                    self.nameless.store(false, Ordering::Relaxed);
                }
            }
        }
        let (file, staged) = self.stage(root)?;
        let published = write_durably(&file, body).and_then(|()| link_staged(root, &staged, key, &file));
        // Left behind only when we are killed here; swept when it is old.
        let _ = rustix::fs::unlinkat(root, &staged, AtFlags::empty());
        published.map(|()| file)
    }

    /// A new file under the staging directory.
    fn stage(&self, root: &OwnedFd) -> io::Result<(File, String)> {
        loop {
            let number = self.staged.fetch_add(1, Ordering::Relaxed);
            let name = format!("{STAGING}/{}-{number}", std::process::id());
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            match rustix::fs::openat(root, &name, flags, FILE_MODE) {
                Ok(file) => return Ok((File::from(file), name)),
                Err(Errno::EXIST) => continue,
                Err(other) => return Err(other.into()),
            }
        }
    }

    /// Makes the staging directory, and removes from it what is a day older than a file staged now.
    fn sweep_staging(&self, root: &OwnedFd) -> io::Result<()> {
        make_directory(root, STAGING)?;
        let (file, newest) = self.stage(root)?;
        let now = rustix::fs::fstat(&file)?.st_mtime;
        rustix::fs::unlinkat(root, &newest, AtFlags::empty())?;
        for name in names_in(root, STAGING)? {
            let path = format!("{STAGING}/{name}");
            let Ok(stat) = rustix::fs::statat(root, &path, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            if now.saturating_sub(stat.st_mtime) > STAGING_AGE_MAX_SECONDS {
                let _ = rustix::fs::unlinkat(root, &path, AtFlags::empty());
            }
        }
        Ok(())
    }

    fn get(&self, key: &ObjectKey) -> Result<Bytes, StoreError> {
        let (file, stat) = self.open_object(key)?;
        read_at(key, &file, 0..stat.st_size as u64)
    }

    fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes, StoreError> {
        let (file, stat) = self.open_object(key)?;
        // Asked before room is made for it: the length may come from a damaged reference.
        if range.start > range.end || range.end > stat.st_size as u64 {
            return Err(StoreError::Short { key: key.clone(), wanted: range.end });
        }
        read_at(key, &file, range)
    }

    fn delete(&self, key: &ObjectKey) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(self.root_to_read()?, key.as_str(), AtFlags::empty())?)
    }

    /// Opens an object whose name is durable, or made so now.
    fn open_object(&self, key: &ObjectKey) -> Result<(File, Stat), StoreError> {
        let open = || -> io::Result<(File, Stat)> {
            let root = self.root_to_read()?;
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let file = File::from(rustix::fs::openat(root, key.as_str(), flags, Mode::empty())?);
            let stat = rustix::fs::fstat(&file)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return Err(Errno::NOENT.into());
            }
            if Mode::from_raw_mode(stat.st_mode).intersects(WRITE_BITS) {
                self.settle(root, key, &file)?;
            }
            Ok((file, stat))
        };
        open().map_err(|error| sort_out(key, "opening it", error))
    }

    /// Makes the name of an object durable that its writer left, or is about to sync.
    fn settle(&self, root: &OwnedFd, key: &ObjectKey, file: &File) -> io::Result<()> {
        let parent = parent_of(key.as_str());
        match self.sync_ancestry(root, parent).and_then(|()| sync_directory(root, parent)) {
            Ok(()) => drop_write_bits(file),
            // One who may not open the directories writes nothing here, so decides nothing.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Makes `directory` and its parents up to the root, and their names durable, unless this process has done so.
    fn sync_ancestry(&self, root: &OwnedFd, directory: &str) -> io::Result<()> {
        if directory.is_empty()
            || self.synced.lock().unwrap_or_else(PoisonError::into_inner).contains(directory)
        {
            return Ok(());
        }
        let parent = parent_of(directory);
        self.sync_ancestry(root, parent)?;
        make_directory(root, directory)?;
        sync_directory(root, parent)?;
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        if synced.len() >= DIRECTORIES_SYNCED_MAX {
            synced.clear();
        }
        synced.insert(directory.to_owned());
        Ok(())
    }

    fn root_to_read(&self) -> io::Result<&OwnedFd> {
        match self.handle.get() {
            Some(handle) => Ok(handle),
            None => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let handle = rustix::fs::open(&self.root, flags, Mode::empty())?;
                Ok(self.handle.get_or_init(|| handle))
            }
        }
    }

    /// The root, made when it is not there; its name in its parent is synced before the handle is first used to write.
    fn root_to_write(&self) -> io::Result<&OwnedFd> {
        let here = String::new();
        if self.synced.lock().unwrap_or_else(PoisonError::into_inner).contains(&here) {
            return self.root_to_read();
        }
        let missing: Vec<&Path> = self.root.ancestors().take_while(|path| !path.exists()).collect();
        for path in missing.iter().rev() {
            match std::fs::DirBuilder::new().mode(DIRECTORY_MODE.as_raw_mode()).create(path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other?,
            }
        }
        for parent in missing.iter().filter_map(|path| path.parent()) {
            File::open(parent)?.sync_all()?;
        }
        let root = self.root_to_read()?;
        if missing.is_empty() {
            // Made by someone else, who may have died before this; where we may not open the parent, it was the operator.
            match self.root.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all()) {
                Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Err(error),
                _ => {}
            }
        }
        self.synced.lock().unwrap_or_else(PoisonError::into_inner).insert(here);
        Ok(root)
    }

    /// Objects under `directory`, unsorted. A directory that is not there has none.
    fn list(&self, directory: &str, found: &mut Vec<ObjectMeta>) -> io::Result<()> {
        let absent = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        let root = match self.root_to_read() {
            Err(error) if absent(&error) => return Ok(()),
            other => other?,
        };
        let names = match names_in(root, directory) {
            Err(error) if absent(&error) || error.kind() == io::ErrorKind::NotADirectory => return Ok(()),
            other => other?,
        };
        for name in names {
            let path = if directory.is_empty() { name } else { format!("{directory}/{name}") };
            // What is no object's name is not ours: `.staging`, `lost+found`.
            let Some(key) = ObjectKey::new(path) else { continue };
            match rustix::fs::statat(root, key.as_str(), AtFlags::empty()) {
                Err(Errno::NOENT) => {}
                Err(other) => return Err(other.into()),
                Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => self.list(key.as_str(), found)?,
                    FileType::RegularFile => found.push(meta(key, &stat)),
                    _ => {}
                },
            }
        }
        Ok(())
    }
}

/// This file system has no nameless files, or no way to name them.
struct Unsupported;

fn publish_nameless(root: &OwnedFd, key: &ObjectKey, body: &[u8]) -> Result<io::Result<File>, Unsupported> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let directory = or_here(parent_of(key.as_str()));
    let file = match rustix::fs::openat(root, directory, flags, FILE_MODE) {
        Ok(file) => File::from(file),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOSYS) => return Err(Unsupported),
        Err(other) => return Ok(Err(other.into())),
    };
    if let Err(error) = write_durably(&file, body) {
        return Ok(Err(error));
    }
    let nameless = format!("/proc/self/fd/{}", file.as_raw_fd());
    match rustix::fs::linkat(rustix::fs::CWD, &nameless, root, key.as_str(), AtFlags::SYMLINK_FOLLOW) {
        Ok(()) => Ok(Ok(file)),
        // No /proc, or no hard links.
        Err(Errno::NOENT | Errno::PERM | Errno::OPNOTSUPP | Errno::XDEV | Errno::NOSYS) => Err(Unsupported),
        Err(other) => Ok(Err(other.into())),
    }
}

/// Gives a staged file its name if no object has it: by link, or by rename where there are no hard links.
fn link_staged(root: &OwnedFd, staged: &str, key: &ObjectKey, file: &File) -> io::Result<()> {
    match rustix::fs::linkat(root, staged, root, key.as_str(), AtFlags::empty()) {
        Ok(()) => Ok(()),
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS) => {
            Ok(rustix::fs::renameat_with(root, staged, root, key.as_str(), RenameFlags::NOREPLACE)?)
        }
        // Over NFS a repeated request finds the link that it made itself.
        Err(_) if rustix::fs::fstat(file).is_ok_and(|stat| stat.st_nlink == 2) => Ok(()),
        Err(other) => Err(other.into()),
    }
}

fn write_durably(mut file: &File, body: &[u8]) -> io::Result<()> {
    file.write_all(body)?;
    file.sync_all()
}

/// Marks an object whose name is durable. Without the mark it is only synced once more, so a failure is no matter.
fn drop_write_bits(file: &File) {
    if let Ok(stat) = rustix::fs::fstat(file) {
        let _ = rustix::fs::fchmod(file, Mode::from_raw_mode(stat.st_mode) - WRITE_BITS);
    }
}

fn make_directory(root: &OwnedFd, directory: &str) -> io::Result<()> {
    match rustix::fs::mkdirat(root, directory, DIRECTORY_MODE) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(other) => Err(other.into()),
    }
}

fn sync_directory(root: &OwnedFd, directory: &str) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let handle = rustix::fs::openat(root, or_here(directory), flags, Mode::empty())?;
    Ok(rustix::fs::fsync(handle)?)
}

fn names_in(root: &OwnedFd, directory: &str) -> io::Result<Vec<String>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let handle = rustix::fs::openat(root, or_here(directory), flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::new(handle)? {
        if let Ok(name) = entry?.file_name().to_str() {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

fn read_at(key: &ObjectKey, file: &File, range: Range<u64>) -> Result<Bytes, StoreError> {
    let wanted = usize::try_from(range.end - range.start)
        .map_err(|_| StoreError::Short { key: key.clone(), wanted: range.end })?;
    let mut bytes = vec![0; wanted];
    match file.read_exact_at(&mut bytes, range.start) {
        Ok(()) => Ok(Bytes::from(bytes)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(StoreError::Short { key: key.clone(), wanted: range.end })
        }
        Err(error) => Err(sort_out_read(key, error)),
    }
}

fn meta(key: ObjectKey, stat: &Stat) -> ObjectMeta {
    let micros = (stat.st_mtime_nsec as i64) / 1000;
    let modified_unix_micros = stat.st_mtime.saturating_mul(1_000_000).saturating_add(micros);
    ObjectMeta { key, len: stat.st_size as u64, modified_unix_micros }
}

/// The directory of an object or directory, empty for the root.
fn parent_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn or_here(directory: &str) -> &str {
    if directory.is_empty() { "." } else { directory }
}

#[cfg(test)]
mod tests;
