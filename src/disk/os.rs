//! The operating system's disk. Every appended file has a thread of its own, so that an fdatasync of the journal never
//! waits behind the blocking work of others (an upload that reads, a backup that hashes), nor they behind it.
//!
//! Invariant: a file whose fdatasync failed once says so for ever. Linux reports a failed write-back one time, drops the
//! pages, and calls the next fdatasync a success.

use super::{Disk, DiskFile, DiskLock};
use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::{FallocateFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use tokio::sync::{mpsc, oneshot};

/// Commands waiting at a file's thread. Callers await each; more than one is left only by a caller that was cancelled.
const COMMANDS_WAITING_MAX: usize = 4;

/// The operating system's disk.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsDisk;

#[async_trait]
impl Disk for OsDisk {
    async fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let path = path.to_owned();
        let file = blocking(move || {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::APPEND | OFlags::CLOEXEC;
            Ok(File::from(rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)?))
        })
        .await?;
        Ok(Box::new(OsFile::start(file)?))
    }

    async fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let path = path.to_owned();
        blocking(move || std::fs::read(path)).await
    }

    async fn read_range(&self, path: &Path, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let path = path.to_owned();
        blocking(move || read_range(&path, offset, len)).await
    }

    async fn len(&self, path: &Path) -> io::Result<u64> {
        let path = path.to_owned();
        blocking(move || Ok(std::fs::metadata(path)?.len())).await
    }

    async fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let dir = dir.to_owned();
        blocking(move || {
            let names = std::fs::read_dir(dir)?.map(|entry| Ok(PathBuf::from(entry?.file_name())));
            let mut names = names.collect::<io::Result<Vec<_>>>()?;
            names.sort();
            Ok(names)
        })
        .await
    }

    async fn remove(&self, path: &Path) -> io::Result<()> {
        let path = path.to_owned();
        blocking(move || match std::fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        })
        .await
    }

    async fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let dir = dir.to_owned();
        blocking(move || create_dir_durably(&dir)).await
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let dir = dir.to_owned();
        blocking(move || sync_dir(&dir)).await
    }

    async fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let dir = dir.to_owned();
        blocking(move || {
            let stat = rustix::fs::statvfs(&dir)?;
            Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
        })
        .await
    }

    async fn lock(&self, dir: &Path) -> io::Result<Box<dyn DiskLock>> {
        let dir = dir.to_owned();
        let held = blocking(move || {
            let handle = File::open(dir)?;
            rustix::fs::flock(&handle, FlockOperation::NonBlockingLockExclusive)?;
            Ok(handle)
        })
        .await?;
        Ok(Box::new(OsLock { _held: held }))
    }
}

/// A directory's flock, which the kernel lets go of when the handle closes, however the process ends.
#[derive(Debug)]
struct OsLock {
    _held: File,
}

impl DiskLock for OsLock {}

/// The sender's half of a file whose thread does the work.
#[derive(Debug)]
struct OsFile {
    commands: mpsc::Sender<(Command, oneshot::Sender<io::Result<()>>)>,
}

#[derive(Debug)]
enum Command {
    Preallocate(u64),
    Append(Bytes),
    Sync,
}

impl OsFile {
    /// Starts the thread that owns `file`. It ends when the sender is dropped and its last command is done.
    fn start(file: File) -> io::Result<OsFile> {
        let (commands, mut waiting) = mpsc::channel(COMMANDS_WAITING_MAX);
        let mut worker = Worker { file, appendable: true, syncable: true };
        std::thread::Builder::new().name("walden-disk".into()).spawn(move || {
            while let Some((command, reply)) = waiting.blocking_recv() {
                let reply: oneshot::Sender<io::Result<()>> = reply;
                // The caller may have gone; what it asked for is done all the same.
                let _ = reply.send(worker.run(command));
            }
        })?;
        Ok(OsFile { commands })
    }

    async fn ask(&mut self, command: Command) -> io::Result<()> {
        let gone = || io::Error::other("the file's thread has ended");
        let (reply, answer) = oneshot::channel();
        self.commands.send((command, reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

#[async_trait]
impl DiskFile for OsFile {
    async fn preallocate(&mut self, bytes: u64) -> io::Result<()> {
        self.ask(Command::Preallocate(bytes)).await
    }

    async fn append(&mut self, bytes: Bytes) -> io::Result<()> {
        self.ask(Command::Append(bytes)).await
    }

    async fn sync_data(&mut self) -> io::Result<()> {
        self.ask(Command::Sync).await
    }
}

/// The thread's half.
struct Worker {
    file: File,
    appendable: bool,
    syncable: bool,
}

impl Worker {
    fn run(&mut self, command: Command) -> io::Result<()> {
        match command {
            Command::Preallocate(bytes) => preallocate(&self.file, bytes),
            Command::Append(_) if !self.appendable => {
                Err(io::Error::other("an earlier append to this file failed"))
            }
            Command::Append(bytes) => {
                let result = self.file.write_all(&bytes);
                self.appendable = result.is_ok();
                result
            }
            Command::Sync if !self.syncable => {
                Err(io::Error::other("an earlier fdatasync of this file failed"))
            }
            Command::Sync => {
                let result = rustix::fs::fdatasync(&self.file);
                self.syncable = result.is_ok();
                Ok(result?)
            }
        }
    }
}

/// Reserves blocks and keeps the length. A file system that cannot is no error: room is then found, or not, at the append.
fn preallocate(file: &File, bytes: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, bytes) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        other => Ok(other?),
    }
}

fn read_range(path: &Path, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let mut bytes = Vec::with_capacity(len);
    let mut window = FileWindow { file: &file, at: offset };
    (&mut window).take(len as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads a file from a position on with pread.
struct FileWindow<'a> {
    file: &'a File,
    at: u64,
}

impl Read for FileWindow<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.at)?;
        self.at = self.at.saturating_add(count as u64);
        Ok(count)
    }
}

/// fsyncs a directory.
fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Makes `dir` and the parents it lacks, and syncs the directory that holds each of them. The one that holds `dir` is synced
/// also when `dir` is there: whoever made it may have died before that. Its parents we may then be forbidden to open.
fn create_dir_durably(dir: &Path) -> io::Result<()> {
    let dir = std::path::absolute(dir)?;
    let missing: Vec<&Path> = dir.ancestors().take_while(|path| !path.exists()).collect();
    for path in missing.iter().rev() {
        match std::fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
            other => other?,
        }
    }
    if !dir.is_dir() {
        return Err(Errno::NOTDIR.into());
    }
    for path in &missing {
        path.parent().map_or(Ok(()), sync_dir)?;
    }
    match dir.parent().map_or(Ok(()), sync_dir) {
        Err(error) if missing.is_empty() && error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => other,
    }
}

/// Runs `work` where it may block.
async fn blocking<T, F>(work: F) -> io::Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> io::Result<T> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(io::Error::other(format!("a blocking task ended early: {error}"))),
    }
}

#[cfg(test)]
mod tests;
