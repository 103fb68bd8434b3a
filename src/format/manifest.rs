//! Backup manifests: a tree that maps every file of a data directory to chunks. Spec: formats/manifest.md.
//! The manifest object holds references to pages; a page lists files, sorted by path; a large file lists block maps;
//! a block map lists chunks. Pages and block maps are chunks themselves, so what did not change is shared between backups.
//! Every file is cut from its own start and no two files share a chunk but by equality, so that nothing about the order
//! or the neighbourhood of files matters to deduplication.

use super::record::{Blob, Extension, code, record};
use crate::base::{BackupId, ChunkId, ClusterName, Generation, Lsn, SystemId, TimelineId, Timestamp};

/// Bytes of a full chunk of a relation file or a large file: 32 blocks.
pub const CHUNK_BYTES: usize = 256 << 10;
/// The most chunk ids in a block map.
pub const BLOCK_MAP_CHUNKS_MAX: usize = 4096;
/// A file of at most this many chunks lists them in place.
pub const INLINE_CHUNKS_MAX: usize = 8;
/// The most files in a page.
pub const PAGE_FILES_MAX: usize = 2048;
/// The most pages referred to in one frame of a manifest object.
pub const FRAME_PAGES_MAX: usize = 4096;

record! {
    /// The manifest's directory meta: everything but the files.
    pub struct ManifestMeta {
        /// The backup.
        pub id: BackupId,
        /// Its cluster.
        pub cluster: ClusterName,
        /// Its generation.
        pub generation: Generation,
        /// PostgreSQL's system identifier.
        pub system_id: SystemId,
        /// server_version_num, 150019.
        pub server_version: u32,
        /// Bytes of a WAL segment.
        pub segment_size: u32,
        /// Whether data checksums were on.
        pub checksums: bool,
        /// Its timeline.
        pub timeline: TimelineId,
        /// The start LSN BASE_BACKUP gave.
        pub start: Lsn,
        /// Where recovery starts.
        pub redo: Lsn,
        /// The checkpoint record.
        pub checkpoint: Lsn,
        /// The stop LSN.
        pub stop: Lsn,
        /// When it began, by the server's clock.
        pub started_at: Timestamp,
        /// When it stopped.
        pub stopped_at: Timestamp,
        /// Tablespaces outside the data directory.
        pub tablespaces: Vec<Tablespace>,
        /// Settings of the source that a restored server must not undercut: name and value.
        pub settings: Vec<Setting>,
        /// Files outside the data directory, for `--config-dir`.
        pub config_files: Vec<ConfigFile>,
        /// Blocks whose checksum was wrong.
        pub damaged: Vec<DamagedBlock>,
        /// Files, directories and links in all pages.
        pub file_count: u64,
        /// Bytes of all files.
        pub bytes_raw: u64,
        /// Later versions' fields.
        pub extensions: Vec<Extension>,
    }
}

record! {
    /// A tablespace.
    pub struct Tablespace {
        /// Its oid; the name of its link in pg_tblspc.
        pub oid: u32,
        /// Its directory on the source.
        pub path: String,
    }
}

record! {
    /// A setting of the source.
    pub struct Setting {
        /// Its name.
        pub name: String,
        /// Its value, as pg_settings shows it.
        pub value: String,
    }
}

record! {
    /// A configuration file outside the data directory.
    pub struct ConfigFile {
        /// Its absolute path on the source.
        pub path: String,
        /// Its bytes.
        pub content: Blob,
    }
}

record! {
    /// A block whose checksum was wrong, read again and again.
    pub struct DamagedBlock {
        /// The file, relative to the data directory (`pg_tblspc/<oid>/…` in tablespaces).
        pub path: String,
        /// The block's number in the file.
        pub block: u32,
    }
}

record! {
    /// One frame of a manifest object.
    pub struct ManifestPages {
        /// In order of path, across frames too; at most `FRAME_PAGES_MAX`.
        pub pages: Vec<PageRef>,
    }
}

record! {
    /// Where a page is.
    pub struct PageRef {
        /// The chunk that holds it, a `ManifestPage`.
        pub chunk: ChunkId,
        /// Files in it.
        pub file_count: u32,
        /// The path of its first file.
        pub first: String,
    }
}

record! {
    /// A page: files whose paths follow each other.
    pub struct ManifestPage {
        /// Sorted by path, bytewise, without duplicates, across pages too; 1 to `PAGE_FILES_MAX`.
        pub files: Vec<FileEntry>,
    }
}

code! {
    /// What a path is.
    pub enum FileKind {
        /// A file of bytes.
        Regular = 1,
        /// A directory.
        Directory = 2,
        /// A symbolic link.
        Link = 3,
    }
}

record! {
    /// One path of the data directory.
    pub struct FileEntry {
        /// Relative to the data directory; `pg_tblspc/<oid>/…` in tablespaces.
        pub path: String,
        /// What it is.
        pub kind: FileKind,
        /// Permission bits.
        pub mode: u32,
        /// Modification time, seconds since 1970.
        pub modified: i64,
        /// Bytes.
        pub len: u64,
        /// CRC-32C of the content.
        pub crc32c: u32,
        /// A link's target, otherwise empty.
        pub link: String,
        /// Where the content is, in order; the runs' lengths add up to `len`.
        pub content: Vec<ContentRun>,
    }
}

code! {
    /// How a run of content is stored.
    pub enum RunKind {
        /// Chunks, concatenated.
        Chunks = 1,
        /// A block map: one chunk that lists chunks (`BlockMap`).
        Map = 2,
        /// Zeros.
        Zeros = 3,
    }
}

record! {
    /// A run of a file's content.
    pub struct ContentRun {
        /// How it is stored.
        pub kind: RunKind,
        /// Bytes of the run: for a map, of what its chunks hold.
        pub len: u64,
        /// The chunks, each of `CHUNK_BYTES` but the last of the run; the map's one; none for zeros.
        pub chunks: Vec<ChunkId>,
    }
}

record! {
    /// A block map: the runs of a large part of a file, never `Map` again.
    pub struct BlockMap {
        /// At most `BLOCK_MAP_CHUNKS_MAX` chunks in all.
        pub runs: Vec<ContentRun>,
    }
}
