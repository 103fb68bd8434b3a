//! Making everything durable that was written below some directories.
//!
//! On file systems known to report every failed write-back to it, one `syncfs` does, which since Linux 5.8 answers with any
//! error since the directory was opened: before the first write. Elsewhere each file is synced, and each directory.
//! Either way the disk begins early: a thread syncs what is being written while the cores unpack what comes next.

use crate::restore::error::RestoreError;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

/// ext2 to 4, XFS, btrfs, f2fs and tmpfs (`linux/magic.h`).
const SYNCFS_SURE: [i64; 5] = [0xEF53, 0x5846_5342, 0x9123_683E, 0xF2F5_2010, 0x0102_1994];
const SYNCFS_KERNEL: (u32, u32) = (5, 8);
/// Bytes written between two early syncs.
const WRITE_BACK_BYTES: u64 = 64 << 20;

/// Directories being written below.
#[derive(Debug)]
pub struct Durability {
    roots: Vec<(PathBuf, File)>,
    each_file: bool,
    written_bytes: AtomicU64,
    write_back: Mutex<Option<WriteBack>>,
}

/// The thread that syncs early. It ends when the sender is gone, with the first error: the kernel tells each one once.
#[derive(Debug)]
struct WriteBack {
    files: SyncSender<(File, PathBuf)>,
    thread: JoinHandle<Result<(), RestoreError>>,
}

impl WriteBack {
    fn begin() -> io::Result<WriteBack> {
        let (files, next) = sync_channel::<(File, PathBuf)>(1);
        let sync_all = move || {
            next.iter().try_for_each(|(file, path)| {
                file.sync_data().map_err(|error| RestoreError::io(&path, "sync", error))
            })
        };
        let thread = std::thread::Builder::new().name("write-back".into()).spawn(sync_all)?;
        Ok(WriteBack { files, thread })
    }

    /// Waits until it is done.
    fn finish(self) -> Result<(), RestoreError> {
        drop(self.files);
        self.thread.join().unwrap_or_else(|died| std::panic::resume_unwind(died))
    }
}

impl Durability {
    /// Begins to watch the file systems of `roots`, which exist.
    pub fn begin<'a>(roots: impl IntoIterator<Item = &'a Path>) -> Result<Self, RestoreError> {
        let mut opened = Vec::new();
        let mut each_file = !kernel_is_at_least(SYNCFS_KERNEL);
        for root in roots {
            let failed = |error| RestoreError::io(root, "open", error);
            let file = File::open(root).map_err(failed)?;
            let kind = rustix::fs::fstatfs(&file).map_err(|error| failed(error.into()))?.f_type;
            each_file |= !SYNCFS_SURE.contains(&(kind as i64));
            opened.push((root.to_owned(), file));
        }
        // Without a thread everything is synced at the end.
        let write_back = Mutex::new(WriteBack::begin().ok());
        Ok(Durability { roots: opened, each_file, written_bytes: AtomicU64::new(0), write_back })
    }

    /// A part of a file was written; now and then the file begins to go to the disk.
    pub(super) fn part_written(&self, file: &File, path: &Path, len: u64) {
        let before = self.written_bytes.fetch_add(len, Ordering::Relaxed);
        if before / WRITE_BACK_BYTES == (before + len) / WRITE_BACK_BYTES {
            return;
        }
        let write_back = self.write_back.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(write_back) = &*write_back
            && let Ok(file) = file.try_clone()
        {
            // When the disk is busy already, nothing is to be begun.
            write_back.files.try_send((file, path.to_owned())).ok();
        }
    }

    /// A file has all its bytes.
    pub(super) fn file_written(&self, file: &File, path: &Path) -> Result<(), RestoreError> {
        if !self.each_file {
            return Ok(());
        }
        file.sync_all().map_err(|error| RestoreError::io(path, "sync", error))
    }

    /// Makes everything written since durable. Blocks.
    pub fn sync(&self) -> Result<(), RestoreError> {
        let write_back = self.write_back.lock().unwrap_or_else(PoisonError::into_inner).take();
        write_back.map_or(Ok(()), WriteBack::finish)?;
        let mut synced = Vec::new();
        for (root, file) in &self.roots {
            let device = file.metadata().map_err(|error| RestoreError::io(root, "look at", error))?.dev();
            if self.each_file {
                sync_dirs(root)?;
            } else if !synced.contains(&device) {
                rustix::fs::syncfs(file).map_err(|error| RestoreError::io(root, "sync", error.into()))?;
                synced.push(device);
            }
        }
        Ok(())
    }
}

/// Syncs every directory below `root`.
fn sync_dirs(root: &Path) -> Result<(), RestoreError> {
    let failed = |error| RestoreError::io(root, "sync", error);
    for entry in fs::read_dir(root).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let kind = entry.file_type().map_err(failed)?;
        if kind.is_dir() {
            sync_dirs(&entry.path())?;
        }
    }
    super::sync_dir(root)
}

fn kernel_is_at_least(wanted: (u32, u32)) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) >= wanted,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::os::fd::OwnedFd;

    #[test]
    fn what_an_early_sync_met_is_told_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let durability = Durability::begin([dir.path()]).unwrap();
        // The kernel syncs no pipe: EINVAL.
        let (_end, pipe) = std::io::pipe().unwrap();
        let path = dir.path().join("16384");
        durability.part_written(&File::from(OwnedFd::from(pipe)), &path, WRITE_BACK_BYTES);
        let told = durability.sync().unwrap_err().to_string();
        assert!(told.contains(&path.display().to_string()), "{told}");
        assert!(Durability::begin([dir.path()]).unwrap().sync().is_ok());
    }
}
