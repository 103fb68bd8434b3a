//! One file being put together from parts that come in any order, on several threads.

use super::sync::Durability;
use super::{Owner, WriteOptions};
use crate::base::crc32c;
use crate::codec::crc;
use crate::format::manifest::{CHUNK_BYTES, ContentRun, FileEntry};
use crate::restore::error::RestoreError;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// A file.
#[derive(Debug)]
pub(super) struct FileJob {
    path: PathBuf,
    mode: u32,
    len: u64,
    crc32c: u32,
    owner: Option<Owner>,
    durability: Arc<Durability>,
    /// Lengths of its runs, and how many parts each has; zeros have none.
    runs: Vec<(u64, usize)>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    created: bool,
    left: usize,
    /// Each part's checksum.
    crcs: Vec<u32>,
}

/// A part of a file: one chunk.
#[derive(Debug)]
pub(super) struct Part {
    pub job: Arc<FileJob>,
    pub number: usize,
    pub offset: u64,
    pub len: u64,
}

impl FileJob {
    pub(super) fn new(path: PathBuf, entry: &FileEntry, runs: &[ContentRun], options: &WriteOptions) -> Self {
        let runs: Vec<_> = runs.iter().map(|run| (run.len, run.chunks.len())).collect();
        let count = runs.iter().map(|(_, parts)| parts).sum();
        FileJob {
            path,
            mode: entry.mode & 0o7777,
            len: entry.len,
            crc32c: entry.crc32c,
            owner: options.owner,
            durability: options.durability.clone(),
            runs,
            state: Mutex::new(State { created: false, left: count, crcs: vec![0; count] }),
        }
    }

    /// Whether it has nothing but zeros, or nothing at all.
    pub(super) fn is_empty(&self) -> bool {
        self.runs.iter().all(|(_, parts)| *parts == 0)
    }

    pub(super) fn finish_without_parts(&self) -> Result<(), RestoreError> {
        let file = self.create()?;
        self.finish(&file, &[])
    }

    /// Creates the file at its whole length, all hole.
    fn create(&self) -> Result<File, RestoreError> {
        let failed = |error| RestoreError::io(&self.path, "create", error);
        let open = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.path);
        let file = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_parents(&self.path, self.owner)?;
                open()
            }
            other => other,
        };
        let file = file.map_err(failed)?;
        file.set_len(self.len).map_err(failed)?;
        file.set_permissions(fs::Permissions::from_mode(self.mode)).map_err(failed)?;
        super::give(&self.path, self.owner)?;
        Ok(file)
    }

    /// The file, created by whoever comes first.
    fn open(&self) -> Result<File, RestoreError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.created {
            let file = self.create()?;
            state.created = true;
            return Ok(file);
        }
        drop(state);
        let flags = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
        let open = OpenOptions::new().write(true).custom_flags(flags).open(&self.path);
        open.map_err(|error| RestoreError::io(&self.path, "open", error))
    }

    fn finish(&self, file: &File, crcs: &[u32]) -> Result<(), RestoreError> {
        let found = self.combined(crcs);
        if found != self.crc32c {
            return Err(RestoreError::Damage {
                what: format!("file {}", self.path.display()),
                reason: format!("its content has CRC-32C {found:08x}, expected {:08x}", self.crc32c),
            });
        }
        self.durability.file_written(file, &self.path)
    }

    fn combined(&self, crcs: &[u32]) -> u32 {
        let (mut whole, mut crcs) = (0, crcs.iter());
        for (len, parts) in &self.runs {
            if *parts == 0 {
                whole = crc::combine(whole, crc::of_zeros(*len), *len);
            }
            let mut left = *len;
            for part in crcs.by_ref().take(*parts) {
                let len = left.min(CHUNK_BYTES as u64);
                whole = crc::combine(whole, *part, len);
                left -= len;
            }
        }
        whole
    }
}

impl Part {
    /// Writes the chunk to its place; the last of a file's parts finishes it.
    pub(super) fn write(&self, chunk: &[u8]) -> Result<(), RestoreError> {
        let job = &self.job;
        if chunk.len() as u64 != self.len {
            return Err(RestoreError::Damage {
                what: format!("file {}", job.path.display()),
                reason: format!("{} bytes at byte {}, expected {}", chunk.len(), self.offset, self.len),
            });
        }
        let file = job.open()?;
        file.write_all_at(chunk, self.offset).map_err(|error| RestoreError::io(&job.path, "write", error))?;
        job.durability.part_written(&file, &job.path, self.len);
        let crc = crc32c::crc32c(chunk);
        let crcs = {
            let mut state = job.state.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(slot) = state.crcs.get_mut(self.number) {
                *slot = crc;
            }
            state.left -= 1;
            if state.left > 0 {
                return Ok(());
            }
            std::mem::take(&mut state.crcs)
        };
        job.finish(&file, &crcs)
    }
}

/// Directories that the backup does not list, as its own are.
pub(super) fn make_parents(path: &Path, owner: Option<Owner>) -> Result<(), RestoreError> {
    let Some(parent) = path.parent() else { return Ok(()) };
    if parent.is_dir() {
        return Ok(());
    }
    make_parents(parent, owner)?;
    match fs::create_dir(parent) {
        // Another thread was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        other => other.map_err(|error| RestoreError::io(parent, "create", error))?,
    }
    let mode = fs::Permissions::from_mode(0o700);
    fs::set_permissions(parent, mode).map_err(|error| RestoreError::io(parent, "set the mode of", error))?;
    super::give(parent, owner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ChunkId;
    use crate::format::manifest::{FileKind, RunKind};
    use crate::restore::place::Places;

    fn options(dir: &Path) -> WriteOptions {
        let places = Places { data_dir: dir.to_owned(), wal_dir: None, tablespaces: Vec::new() };
        let durability = Arc::new(Durability::begin([dir]).unwrap());
        WriteOptions { places, owner: None, durability }
    }

    fn run(kind: RunKind, len: u64, chunks: usize) -> ContentRun {
        ContentRun { kind, len, chunks: vec![ChunkId([0; 32]); chunks] }
    }

    /// A file of a chunk and a bit, a hole, and some bytes more.
    fn example(dir: &Path, crc_flip: u32) -> (Arc<FileJob>, Vec<u8>, Vec<ContentRun>) {
        let chunk = CHUNK_BYTES as u64;
        let hole = 3 * chunk + 5;
        let mut content: Vec<u8> = (0..CHUNK_BYTES + 100).map(|n| (n % 251) as u8).collect();
        content.resize(content.len() + hole as usize, 0);
        content.extend_from_slice(b"the end");
        let runs = vec![
            run(RunKind::Chunks, chunk + 100, 2),
            run(RunKind::Zeros, hole, 0),
            run(RunKind::Chunks, 7, 1),
        ];
        let entry = FileEntry {
            path: "a/b/c".into(),
            kind: FileKind::Regular,
            mode: 0o640,
            modified: 0,
            len: content.len() as u64,
            crc32c: crc32c::crc32c(&content) ^ crc_flip,
            link: String::new(),
            content: Vec::new(),
        };
        (Arc::new(FileJob::new(dir.join("a/b/c"), &entry, &runs, &options(dir))), content, runs)
    }

    fn write(job: &Arc<FileJob>, content: &[u8], order: &[usize]) -> Result<(), RestoreError> {
        let chunk = CHUNK_BYTES as u64;
        let places = [(0, chunk), (chunk, 100), (content.len() as u64 - 7, 7)];
        for number in order {
            let (offset, len) = places[*number];
            let bytes = &content[offset as usize..(offset + len) as usize];
            Part { job: job.clone(), number: *number, offset, len }.write(bytes)?;
        }
        Ok(())
    }

    #[test]
    fn parts_in_any_order_make_the_file_and_zeros_stay_a_hole() {
        use std::os::unix::fs::MetadataExt;
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            let dir = tempfile::tempdir().unwrap();
            let (job, content, _) = example(dir.path(), 0);
            write(&job, &content, &order).unwrap();
            assert!(fs::read(dir.path().join("a/b/c")).unwrap() == content);
            let meta = fs::metadata(dir.path().join("a/b/c")).unwrap();
            assert_eq!(meta.mode() & 0o777, 0o640);
            assert!(meta.blocks() * 512 < content.len() as u64 / 2, "{} blocks", meta.blocks());
        }
    }

    #[test]
    fn a_wrong_checksum_or_length_is_damage_with_the_files_name() {
        let dir = tempfile::tempdir().unwrap();
        let (job, content, _) = example(dir.path(), 1);
        let error = write(&job, &content, &[0, 1, 2]).unwrap_err().to_string();
        assert!(error.contains("a/b/c") && error.contains("CRC-32C"), "{error}");
        let dir = tempfile::tempdir().unwrap();
        let (job, content, _) = example(dir.path(), 0);
        let short = Part { job, number: 2, offset: 0, len: 7 }.write(&content[..6]).unwrap_err();
        assert!(matches!(short, RestoreError::Damage { .. }));
    }

    #[test]
    fn files_of_nothing_and_of_zeros_need_no_parts() {
        for len in [0u64, 100_000] {
            let dir = tempfile::tempdir().unwrap();
            let runs = if len == 0 { vec![] } else { vec![run(RunKind::Zeros, len, 0)] };
            let entry = FileEntry {
                path: "z".into(),
                kind: FileKind::Regular,
                mode: 0o600,
                modified: 0,
                len,
                crc32c: crc::of_zeros(len),
                link: String::new(),
                content: runs.clone(),
            };
            let job = FileJob::new(dir.path().join("z"), &entry, &runs, &options(dir.path()));
            assert!(job.is_empty());
            job.finish_without_parts().unwrap();
            assert_eq!(fs::metadata(dir.path().join("z")).unwrap().len(), len);
        }
    }
}
