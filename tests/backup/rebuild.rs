//! A data directory out of a backup and its WAL, by the simplest means: what a restore must be able to do.

use super::bed::Opened;
use crate::common::pg::{Pg, give_to_postgres, temp_dir};
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;
use walden::base::{ChunkId, SegmentSize, WalFileName, crc32c};
use walden::format::index::BackupEntry;
use walden::format::manifest::{CHUNK_BYTES, FileEntry, FileKind, RunKind};
use walden::repo::{RepoError, WalReader, backups, walmap};

/// A data directory.
pub struct Rebuilt {
    dir: TempDir,
}

impl Rebuilt {
    pub fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("data")
    }

    /// Starts a server over it.
    pub fn start(&self, major: u32) -> Pg {
        give_to_postgres(self.dir.path());
        let mut pg = Pg::adopt(major, &self.path());
        pg.start_again();
        pg
    }
}

/// Every chunk of `file` and where it begins.
async fn chunks(opened: &Opened, file: &FileEntry) -> Vec<(ChunkId, u64)> {
    let (mut at, mut found) = (0, Vec::new());
    for run in opened.manifest.runs(&opened.reader, file).await.unwrap() {
        if run.kind == RunKind::Chunks {
            let starts = (at..).step_by(CHUNK_BYTES);
            found.extend(run.chunks.iter().copied().zip(starts));
        }
        at += run.len;
    }
    assert_eq!(at, file.len, "{}", file.path);
    found
}

/// The content of every file has its length and CRC-32C.
pub async fn check_contents(opened: &Opened, files: &[FileEntry]) {
    let dir = temp_dir();
    let path = dir.path().join("file");
    for file in files.iter().filter(|file| file.kind == FileKind::Regular) {
        write(opened, file, &path).await;
        fs::remove_file(&path).unwrap();
    }
}

async fn write(opened: &Opened, file: &FileEntry, path: &Path) {
    let out = Arc::new(fs::File::create_new(path).unwrap());
    out.set_len(file.len).unwrap();
    let to = out.clone();
    let deliver = Arc::new(move |at: u64, chunk: &[u8]| {
        to.write_all_at(chunk, at).unwrap();
        Ok::<(), RepoError>(())
    });
    opened.reader.fetch(chunks(opened, file).await, deliver).await.unwrap();
    let content = fs::read(path).unwrap();
    assert_eq!(content.len() as u64, file.len, "{}", file.path);
    assert_eq!(crc32c::crc32c(&content), file.crc32c, "{}", file.path);
}

/// Files, tablespaces beside them, and the WAL from the repository.
pub async fn rebuild(opened: &Opened, files: &[FileEntry], entry: &BackupEntry, source: &Pg) -> Rebuilt {
    let dir = temp_dir();
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    for file in files {
        let path = data.join(&file.path);
        match file.kind {
            FileKind::Directory => fs::create_dir_all(&path).unwrap(),
            FileKind::Link => {
                assert!(Path::new(&file.link).starts_with(source.data_dir().parent().unwrap()));
                let place = dir.path().join(path.file_name().unwrap());
                fs::create_dir_all(&place).unwrap();
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                symlink(&place, &path).unwrap();
                continue;
            }
            FileKind::Regular => {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                write(opened, file, &path).await;
            }
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(file.mode)).unwrap();
    }
    fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).unwrap();
    let wal = walmap::load(&opened.cluster).await.unwrap().wal;
    let size = SegmentSize::new(opened.manifest.meta.segment_size.into()).unwrap();
    let needed = backups::needed_wal(entry, size);
    let end = wal.contiguous_end(entry.timeline, needed.start);
    let mut reader = WalReader::new(opened.cluster.clone(), wal);
    let mut segment = size.segment_at(needed.start);
    while segment.range(size).start < end {
        let mut range = segment.range(size);
        range.end = range.end.min(end);
        let mut bytes = reader.read(entry.timeline, range).await.unwrap();
        bytes.resize(size.bytes() as usize, 0);
        let name = WalFileName::segment(entry.timeline, segment, size).to_string();
        fs::write(data.join("pg_wal").join(name), bytes).unwrap();
        segment = segment.next();
    }
    Rebuilt { dir }
}
