//! Room for pages in files without a name, mapped: the kernel writes them out when memory is short, they count as no anonymous
//! memory, and they are gone with the process.
//!
//! Room is taken before it is touched, so that a full disk is an error and not a signal. A bad sector under the map ends the
//! process, as `kill -9` would: nothing that matters is there, and the next process begins with an empty file.

#![allow(unsafe_code)]

use crate::base::{Memory, Scratch};
use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Room is taken in steps of so many bytes.
const STEP_BYTES: usize = 16 << 20;

/// Gives memory in files of a folder.
#[derive(Debug, Clone)]
pub struct ScratchDir {
    dirs: Vec<PathBuf>,
}

impl ScratchDir {
    /// In the first of `dirs` that can be made and written to when memory is asked for.
    pub fn first_of(dirs: Vec<PathBuf>) -> Self {
        ScratchDir { dirs }
    }
}

impl Scratch for ScratchDir {
    fn memory(&self, len: usize) -> io::Result<Box<dyn Memory>> {
        let mut failed = io::Error::from(io::ErrorKind::NotFound);
        for dir in &self.dirs {
            match MappedMemory::create(dir, len) {
                Ok(memory) => return Ok(Box::new(memory)),
                Err(error) => failed = io::Error::new(error.kind(), format!("{}: {error}", dir.display())),
            }
        }
        Err(failed)
    }
}

#[derive(Debug)]
struct MappedMemory {
    dir: PathBuf,
    file: File,
    /// The whole file; what has no room yet is never touched.
    map: memmap2::MmapMut,
    reached: usize,
}

impl MappedMemory {
    fn create(dir: &Path, len: usize) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let file = nameless_file(dir)?;
        file.set_len(len.max(1) as u64)?;
        // SAFETY: the file has no name, and nobody else has it open: nothing but this map changes it, and nothing cuts it.
        let map = unsafe { memmap2::MmapMut::map_mut(&file)? };
        Ok(MappedMemory { dir: dir.to_owned(), file, map, reached: 0 })
    }
}

impl Memory for MappedMemory {
    fn bytes(&self) -> &[u8] {
        self.map.get(..self.reached).unwrap_or(&[])
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.map.get_mut(..self.reached).unwrap_or(&mut [])
    }

    fn reach(&mut self, len: usize) -> io::Result<()> {
        if len <= self.reached {
            return Ok(());
        }
        if len > self.map.len() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let end = len.next_multiple_of(STEP_BYTES).min(self.map.len());
        let (offset, more) = (self.reached as u64, (end - self.reached) as u64);
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), offset, more) {
            // File systems that cannot take room ahead have to be trusted.
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(error) => {
                let error = io::Error::from(error);
                return Err(io::Error::new(error.kind(), format!("{}: {error}", self.dir.display())));
            }
        }
        self.reached = end;
        Ok(())
    }
}

/// A file in `dir` that has no name, or had one for a moment.
fn nameless_file(dir: &Path) -> io::Result<File> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::open(dir, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode) {
        Ok(file) => Ok(File::from(file)),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = dir.join(format!(".walden-scratch-{}-{number}", std::process::id()));
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file = File::from(rustix::fs::open(&path, flags, mode)?);
            std::fs::remove_file(&path)?;
            Ok(file)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_there_stays_and_has_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = ScratchDir::first_of(vec![dir.path().join("cache")]);
        let mut memory = scratch.memory(STEP_BYTES + 100).unwrap();
        assert!(memory.bytes().is_empty());
        memory.reach(1).unwrap();
        assert_eq!(memory.bytes().len(), STEP_BYTES);
        memory.bytes_mut()[5] = 7;
        memory.reach(STEP_BYTES + 100).unwrap();
        assert_eq!((memory.bytes().len(), memory.bytes()[5]), (STEP_BYTES + 100, 7));
        assert!(memory.reach(STEP_BYTES + 101).is_err());
        assert_eq!(std::fs::read_dir(dir.path().join("cache")).unwrap().count(), 0);
    }

    #[test]
    fn the_first_folder_that_can_be_is_taken_and_the_last_that_cannot_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let [file, other] = ["file", "other"].map(|name| dir.path().join(name));
        std::fs::write(&file, "x").unwrap();
        let error = ScratchDir::first_of(vec![file.join("a"), file.clone()]).memory(1).unwrap_err();
        assert!(error.to_string().starts_with(file.to_str().unwrap()), "{error}");
        assert!(!error.to_string().contains("/a"), "{error}");
        let scratch = ScratchDir::first_of(vec![file, other.clone()]);
        assert!(!other.exists(), "nothing is made before it is needed");
        scratch.memory(1).unwrap().reach(1).unwrap();
        assert!(other.exists());
    }
}
