//! Making everything durable that was written below some directories.
//!
//! On file systems known to report every failed write-back to it, one `syncfs` does, which since Linux 5.8 answers with any
//! error since the directory was opened: before the first write. Elsewhere each file is synced, and each directory.

use crate::restore::error::RestoreError;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// ext2 to 4, XFS, btrfs, f2fs and tmpfs (`linux/magic.h`).
const SYNCFS_SURE: [i64; 5] = [0xEF53, 0x5846_5342, 0x9123_683E, 0xF2F5_2010, 0x0102_1994];
const SYNCFS_KERNEL: (u32, u32) = (5, 8);

/// Directories being written below.
#[derive(Debug)]
pub struct Durability {
    roots: Vec<(PathBuf, File)>,
    each_file: bool,
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
        Ok(Durability { roots: opened, each_file })
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
