//! Room for pages: in files without a name, mapped, which the kernel writes out when memory is short, and which count as no
//! anonymous memory; or, as far as the caller lets it, in memory, where a page that changes costs nothing but itself (a changed
//! page of a file is written to the disk within seconds, and has to be taken anew for the next change). Gone with the process.
//!
//! Room is taken before it is touched, so that a full disk is an error and not a signal. A bad sector under the map ends the
//! process, as `kill -9` would: nothing that matters is there, and the next process begins with an empty file.

#![allow(unsafe_code)]

use crate::base::{Memory, Scratch};
use memmap2::{Advice, MmapMut, MmapOptions};
use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Room is taken in steps of so many bytes.
const STEP_BYTES: usize = 16 << 20;

/// Gives memory in files of a folder.
#[derive(Debug, Clone)]
pub struct ScratchDir {
    dirs: Vec<PathBuf>,
    /// Bytes that may still be taken of memory.
    memory_left: Arc<AtomicUsize>,
}

impl ScratchDir {
    /// In the first of `dirs` that can be made and written to when memory is asked for.
    pub fn first_of(dirs: Vec<PathBuf>) -> Self {
        ScratchDir { dirs, memory_left: Arc::default() }
    }

    /// The same, but for `bytes` of memory, which all that it gives share: what needs more than is left of them moves to a file.
    pub fn with_memory(self, bytes: usize) -> Self {
        ScratchDir { memory_left: Arc::new(AtomicUsize::new(bytes)), ..self }
    }

    fn file(&self, len: usize) -> io::Result<MappedFile> {
        let mut failed = io::Error::from(io::ErrorKind::NotFound);
        for dir in &self.dirs {
            match MappedFile::create(dir, len) {
                Ok(file) => return Ok(file),
                Err(error) => failed = io::Error::new(error.kind(), format!("{}: {error}", dir.display())),
            }
        }
        Err(failed)
    }
}

impl Scratch for ScratchDir {
    fn memory(&self, len: usize) -> io::Result<Box<dyn Memory>> {
        // The file is made in any case: a folder that cannot be written to is found out now, not when memory is used up.
        let file = self.file(len)?;
        let any = len > 0 && self.memory_left.load(Ordering::Relaxed) > 0;
        // What is not touched takes nothing, so all of it can be mapped.
        let memory = any.then(|| MmapOptions::new().len(len).no_reserve_swap().map_anon().ok()).flatten();
        if let Some(memory) = &memory {
            // Pages of it are looked up all over: fewer, larger ones are found faster. Where there are none, it does without.
            let _ = memory.advise(Advice::HugePage);
        }
        Ok(Box::new(Mapped { left: self.memory_left.clone(), memory, file, reached: 0 }))
    }
}

/// A map of which the first bytes have room.
#[derive(Debug)]
struct Mapped {
    /// See [`ScratchDir::memory_left`]; what was reached in memory is taken of it.
    left: Arc<AtomicUsize>,
    /// Where it lies, as long as there is memory.
    memory: Option<MmapMut>,
    /// Where it lies otherwise.
    file: MappedFile,
    reached: usize,
}

#[derive(Debug)]
struct MappedFile {
    dir: PathBuf,
    file: File,
    /// The whole file; what has no room yet is never touched.
    map: MmapMut,
}

impl MappedFile {
    fn create(dir: &Path, len: usize) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let file = nameless_file(dir)?;
        file.set_len(len.max(1) as u64)?;
        // SAFETY: the file has no name, and nobody else has it open: nothing but this map changes it, and nothing cuts it.
        let map = unsafe { MmapMut::map_mut(&file)? };
        Ok(MappedFile { dir: dir.to_owned(), file, map })
    }

    /// Takes room on the disk for the bytes from `from` to `to`.
    fn take(&self, from: usize, to: usize) -> io::Result<()> {
        let (offset, more) = (from as u64, (to - from) as u64);
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), offset, more) {
            // File systems that cannot take room ahead have to be trusted.
            Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
            Err(error) => {
                let error = io::Error::from(error);
                Err(io::Error::new(error.kind(), format!("{}: {error}", self.dir.display())))
            }
        }
    }
}

impl Mapped {
    /// Takes room in memory for the bytes up to `end`, if it lies there and there is enough.
    fn take_memory(&self, end: usize) -> bool {
        let take = |left: usize| left.checked_sub(end - self.reached);
        self.memory.is_some() && self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// Moves what lies in memory to the file, and takes room there up to `end`.
    fn take_file(&mut self, end: usize) -> io::Result<()> {
        let Some(memory) = &self.memory else { return self.file.take(self.reached, end) };
        self.file.take(0, end)?;
        if let (Some(to), Some(from)) = (self.file.map.get_mut(..self.reached), memory.get(..self.reached)) {
            to.copy_from_slice(from);
        }
        self.give_memory();
        Ok(())
    }

    fn give_memory(&mut self) {
        if self.memory.take().is_some() {
            self.left.fetch_add(self.reached, Ordering::Relaxed);
        }
    }
}

impl Memory for Mapped {
    fn bytes(&self) -> &[u8] {
        self.memory.as_ref().unwrap_or(&self.file.map).get(..self.reached).unwrap_or(&[])
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.as_mut().unwrap_or(&mut self.file.map).get_mut(..self.reached).unwrap_or(&mut [])
    }

    fn reach(&mut self, len: usize) -> io::Result<()> {
        if len <= self.reached {
            return Ok(());
        }
        if len > self.file.map.len() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let end = len.next_multiple_of(STEP_BYTES).min(self.file.map.len());
        if !self.take_memory(end) {
            self.take_file(end)?;
        }
        self.reached = end;
        Ok(())
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        self.give_memory();
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

    #[test]
    fn memory_is_taken_as_far_as_it_goes_and_what_needs_more_moves_to_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("cache");
        let scratch = ScratchDir::first_of(vec![folder]).with_memory(2 * STEP_BYTES);
        let mut pages = scratch.memory(3 * STEP_BYTES).unwrap();
        pages.reach(1).unwrap();
        pages.bytes_mut()[STEP_BYTES - 1] = 7;
        let mut other = scratch.memory(100).unwrap();
        other.reach(100).unwrap();
        other.bytes_mut()[99] = 8;
        assert_eq!(scratch.memory_left.load(Ordering::Relaxed), STEP_BYTES - 100);
        pages.reach(STEP_BYTES + 1).unwrap();
        pages.reach(3 * STEP_BYTES).unwrap();
        assert_eq!((pages.bytes().len(), pages.bytes()[STEP_BYTES - 1]), (3 * STEP_BYTES, 7));
        assert_eq!(other.bytes()[99], 8);
        assert_eq!(
            scratch.memory_left.load(Ordering::Relaxed),
            2 * STEP_BYTES - 100,
            "given back by who moved"
        );
        drop((pages, other));
        assert_eq!(scratch.memory_left.load(Ordering::Relaxed), 2 * STEP_BYTES);
    }

    #[test]
    fn a_folder_that_cannot_be_is_found_out_before_memory_is_used_up() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        ScratchDir::first_of(vec![file]).with_memory(STEP_BYTES).memory(100).unwrap_err();
    }
}
