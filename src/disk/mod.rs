//! The local disk: the journal, and the few files we keep beside it. Behind a trait, so that simulations can lose
//! what was not synced.

mod available;
mod host;
pub mod journal;
mod os;
pub mod own_thread;
mod scratch;
pub mod secret;

pub use available::available_memory;
pub use host::{OsEntropy, SystemClock};
pub use os::OsDisk;
pub use scratch::ScratchDir;
pub use secret::{SecretError, SecretSource};

use async_trait::async_trait;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// A directory tree on a disk that forgets what was not synced: bytes until `sync_data`, names until `sync_dir`.
#[async_trait]
pub trait Disk: Send + Sync + fmt::Debug {
    /// Creates a file that must not exist, with mode 0600, to be appended to.
    async fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// A whole file.
    async fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// At most `len` bytes of a file from `offset` on; fewer only where the file ends.
    async fn read_range(&self, path: &Path, offset: u64, len: usize) -> io::Result<Vec<u8>>;

    /// A file's length in bytes.
    async fn len(&self, path: &Path) -> io::Result<u64>;

    /// Names in a directory, sorted.
    async fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;

    /// Removes a file; `Ok` when there is none.
    async fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes a directory and its parents, mode 0700, durable on return.
    async fn create_dir(&self, dir: &Path) -> io::Result<()>;

    /// Makes creations and removals in `dir` durable.
    async fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Bytes free for us on the file system of `dir`.
    async fn free_bytes(&self, dir: &Path) -> io::Result<u64>;

    /// Takes `dir` for this process alone, until the guard is dropped or the process ends.
    /// `ErrorKind::WouldBlock` when another holds it.
    async fn lock(&self, dir: &Path) -> io::Result<Box<dyn DiskLock>>;
}

/// A directory held for this process alone; dropping it lets go.
pub trait DiskLock: Send + Sync + fmt::Debug {}

/// A file being appended to.
#[async_trait]
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// Reserves room so that appending up to `bytes` finds it; the file's length stays.
    async fn preallocate(&mut self, bytes: u64) -> io::Result<()>;

    /// Appends all of `bytes`. After an error the file may end in a part of them, and takes no more.
    async fn append(&mut self, bytes: bytes::Bytes) -> io::Result<()>;

    /// Makes everything appended durable (fdatasync). After an error nothing appended since the last success may be believed.
    async fn sync_data(&mut self) -> io::Result<()>;
}

/// Whether the disk, or our share of it, is full: the caller frees room and tries again, and loses nothing by waiting.
pub fn is_no_space(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let full = [Errno::NOSPC, Errno::DQUOT].map(|errno| Some(errno.raw_os_error()));
    full.contains(&error.raw_os_error())
        || matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
