//! Files as they come out of the archives: pages judged and read again, content stored as chunks, entries collected.
//! Memory: the open chunk, the bounds of the chunk writer and the manifest builder.

use super::cutter::{Piece, is_zero};
use super::error::BackupError;
use super::label::{BACKUP_LABEL, LABEL_BYTES_MAX};
use super::source::BlockRead;
use super::tar::TarEntry;
use super::upstream::Source;
use crate::base::limits::BLOCK_BYTES;
use crate::base::{Lsn, crc32c};
use crate::format::manifest::{CHUNK_BYTES, DamagedBlock, FileEntry, FileKind, Tablespace};
use crate::repo::chunks::ChunkWriter;
use crate::repo::manifest::{ManifestBuilder, RunBuilder};
use crate::wal::checksum::{
    BLOCKS_PER_FILE, PageVerdict, Suspect, judge_page, page_lsn, relation_file, suspects,
};
use bytes::Bytes;
use std::collections::HashSet;
use std::time::Duration;

/// Tries before a block is called bad, and the first wait between two; it doubles.
const TRIES_MAX: u32 = 6;
const TRY_WAIT: Duration = Duration::from_millis(20);
/// Bad blocks after which the others are tried once only: the disk is broken, and waiting does not mend it.
const PATIENT_BLOCKS_MAX: usize = 64;
/// Damaged blocks that are listed; more are counted.
const DAMAGED_LISTED_MAX: usize = 4096;
/// Blocks to be looked at again once the end of the backup is known.
const DOUBTFUL_MAX: usize = 4096;
/// What PostgreSQL writes for a client that makes no links; entries of the manifest say it.
const TABLESPACE_MAP: &str = "tablespace_map";

/// Takes in the files of one backup.
#[derive(Debug)]
pub struct Intake<'a, 's> {
    chunks: ChunkWriter,
    manifest: ManifestBuilder,
    source: &'a mut (dyn Source + 's),
    /// Where the backup starts; pages without checksums are not judged.
    judge_from: Option<Lsn>,
    open: Option<OpenFile>,
    own_links: HashSet<String>,
    label: Vec<u8>,
    found: Findings,
    doubtful: Vec<(DamagedBlock, u32)>,
}

#[derive(Debug)]
struct OpenFile {
    entry: TarEntry,
    relation: Option<u32>,
    offset: u64,
    crc32c: u32,
    runs: RunBuilder,
}

/// What a backup's files came to.
#[derive(Debug, Default)]
pub struct Findings {
    /// Bytes of all files.
    pub bytes_raw: u64,
    /// Damaged blocks, the first ones listed.
    pub damaged: Vec<DamagedBlock>,
    /// How many there are.
    pub damaged_count: u64,
    /// Blocks whose checksum was wrong and that could not be read again.
    pub unread_count: u64,
    /// Blocks that were wrong at first, and right when read again.
    pub mended_count: u64,
}

/// All files of a backup, stored but for the last segments.
#[derive(Debug)]
pub struct Taken {
    /// The chunks.
    pub chunks: ChunkWriter,
    /// The entries.
    pub manifest: ManifestBuilder,
    /// backup_label.
    pub label: Vec<u8>,
    /// The rest.
    pub found: Findings,
}

impl<'a, 's> Intake<'a, 's> {
    /// Before the first file.
    pub fn new(chunks: ChunkWriter, source: &'a mut (dyn Source + 's)) -> Self {
        Intake {
            chunks,
            manifest: ManifestBuilder::default(),
            source,
            judge_from: None,
            open: None,
            own_links: HashSet::new(),
            label: Vec::new(),
            found: Findings::default(),
            doubtful: Vec::new(),
        }
    }

    /// From now on pages are judged, in a backup that starts at `judge_from`; `None` when they carry no checksums.
    pub fn begin(&mut self, judge_from: Option<Lsn>) {
        self.judge_from = judge_from;
    }

    /// Adds the links of `tablespaces`, in place of what the server's archive says of them.
    pub fn link(&mut self, tablespaces: &[Tablespace]) {
        for tablespace in tablespaces {
            let path = format!("pg_tblspc/{}", tablespace.oid);
            self.manifest.add(&FileEntry {
                path: path.clone(),
                kind: FileKind::Link,
                mode: 0o777,
                modified: 0,
                len: 0,
                crc32c: 0,
                link: tablespace.path.clone(),
                content: Vec::new(),
            });
            self.own_links.insert(path);
        }
    }

    /// Takes the next piece of a file.
    pub async fn take(&mut self, piece: Piece) -> Result<(), BackupError> {
        match piece {
            Piece::Begin(entry) => {
                let (relation, runs) = (relation_file(&entry.path), RunBuilder::default());
                self.open = Some(OpenFile { entry, relation, offset: 0, crc32c: 0, runs });
            }
            Piece::Part(part) => self.part(part).await?,
            Piece::End => self.end().await?,
        }
        Ok(())
    }

    async fn part(&mut self, mut part: Vec<u8>) -> Result<(), BackupError> {
        let Some(mut file) = self.open.take() else {
            unreachable!("a part follows the beginning of its file")
        };
        if let (Some(start), Some(number)) = (self.judge_from, file.relation) {
            let first = (file.offset / BLOCK_BYTES as u64) as u32;
            for suspect in suspects(&part, number, first, start) {
                self.mend(&file.entry.path, number, first, suspect, start, &mut part).await?;
            }
        }
        if file.entry.path == BACKUP_LABEL && self.label.len() <= LABEL_BYTES_MAX {
            self.label.extend_from_slice(&part);
        }
        let len = part.len();
        file.crc32c = crc32c::crc32c_append(file.crc32c, &part);
        file.offset += len as u64;
        if is_zero(&part) {
            file.runs.zeros(len, &mut self.chunks).await?;
        } else {
            let id = self.chunks.put(Bytes::from(part)).await?;
            file.runs.chunk(id, len, &mut self.chunks).await?;
        }
        self.open = Some(file);
        Ok(())
    }

    async fn end(&mut self) -> Result<(), BackupError> {
        let Some(file) = self.open.take() else { unreachable!("an end follows the beginning of its file") };
        let path = &file.entry.path;
        if path == TABLESPACE_MAP || self.own_links.contains(path) {
            return Ok(());
        }
        self.found.bytes_raw += file.entry.size;
        self.manifest.add(&FileEntry {
            kind: file.entry.kind.into(),
            mode: file.entry.mode,
            modified: file.entry.modified,
            len: file.entry.size,
            crc32c: file.crc32c,
            content: file.runs.finish(&mut self.chunks).await?,
            path: file.entry.path,
            link: file.entry.link,
        });
        Ok(())
    }

    /// Reads a suspect block again until it is right, and puts what was read in its place. One that stays wrong is damaged.
    async fn mend(
        &mut self,
        path: &str,
        number: u32,
        first: u32,
        suspect: Suspect,
        start: Lsn,
        part: &mut [u8],
    ) -> Result<(), BackupError> {
        let at = (suspect.block - first) as usize * BLOCK_BYTES;
        let Some(stored) = part.get_mut(at..at + BLOCK_BYTES) else {
            unreachable!("a suspect lies in its part")
        };
        let damaged = || DamagedBlock { path: path.to_owned(), block: suspect.block };
        if let PageVerdict::Skipped { .. } = suspect.verdict {
            // Torn, most likely, and WAL has it. An LSN past the end of the backup will tell damage.
            if self.doubtful.len() < DOUBTFUL_MAX {
                self.doubtful.push((damaged(), number));
            }
            return Ok(());
        }
        let block = suspect.block.wrapping_add(number.wrapping_mul(BLOCKS_PER_FILE));
        let tries = if self.found.damaged.len() < PATIENT_BLOCKS_MAX { TRIES_MAX } else { 1 };
        let mut wait = TRY_WAIT;
        for again in 0..tries {
            if again > 0 {
                tokio::time::sleep(wait).await;
                wait *= 2;
            }
            match self.source.read_block(path, suspect.block).await? {
                BlockRead::Page(page) => match judge_page(&page, block, start) {
                    PageVerdict::Ok | PageVerdict::New => {
                        stored.copy_from_slice(&*page);
                        self.found.mended_count += 1;
                        return Ok(());
                    }
                    PageVerdict::Skipped { .. } => return Ok(()),
                    PageVerdict::Bad => {}
                },
                BlockRead::Gone => return Ok(()),
                BlockRead::Refused => {
                    self.found.unread_count += 1;
                    break;
                }
            }
        }
        self.damage(damaged());
        Ok(())
    }

    fn damage(&mut self, block: DamagedBlock) {
        tracing::warn!(path = %block.path, block = block.block, "a block's checksum is wrong");
        self.found.damaged_count += 1;
        if self.found.damaged.len() < DAMAGED_LISTED_MAX {
            self.found.damaged.push(block);
        }
    }

    /// The end of the backup: blocks whose LSN lies past everything that was written are not torn, but damaged.
    pub async fn finish(mut self, stop: Lsn) -> Result<Taken, BackupError> {
        for (block, number) in std::mem::take(&mut self.doubtful) {
            let Ok(BlockRead::Page(page)) = self.source.read_block(&block.path, block.block).await else {
                continue;
            };
            let in_relation = block.block.wrapping_add(number.wrapping_mul(BLOCKS_PER_FILE));
            let verdict = judge_page(&page, in_relation, Lsn::ZERO);
            let wrong = !matches!(verdict, PageVerdict::Ok | PageVerdict::New);
            if wrong && page_lsn(&page) > stop && page_lsn(&page) > self.source.position().await?.end {
                self.damage(block);
            }
        }
        self.found.damaged.sort_by(|a, b| (&a.path, a.block).cmp(&(&b.path, b.block)));
        Ok(Taken { chunks: self.chunks, manifest: self.manifest, label: self.label, found: self.found })
    }
}

const _: () = assert!(CHUNK_BYTES.is_multiple_of(BLOCK_BYTES));
