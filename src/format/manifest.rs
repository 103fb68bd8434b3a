//! Backup manifests: a tree that maps every file of a data directory to chunks. Spec: formats/manifest.md.
//! Entries are sorted by path. A file's chunks are listed in block maps, which are chunks themselves and so are
//! shared while unchanged; a file of a few chunks lists them in place.

use super::record::{Blob, Extension, code, record};
use crate::base::{BackupId, ChunkId, ClusterName, Generation, Lsn, SystemId, TimelineId, Timestamp};

/// Bytes of a full chunk of a relation file or a large file: 32 blocks.
pub const CHUNK_BYTES: usize = 256 << 10;
/// The most chunk ids in a block map.
pub const BLOCK_MAP_CHUNKS_MAX: usize = 4096;
/// A file of at most this many chunks lists them in place.
pub const INLINE_CHUNKS_MAX: usize = 8;

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
        /// Entries in the frames.
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
    /// The entries of one frame of a manifest.
    pub struct ManifestPage {
        /// Sorted by path, across pages too.
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
        /// Where the content is.
        pub content: Vec<ContentRun>,
    }
}

code! {
    /// How a run of content is stored.
    pub enum RunKind {
        /// Chunks, concatenated.
        Chunks = 1,
        /// Block maps: chunks that list chunks (`BlockMap`).
        Maps = 2,
        /// A part of one chunk that packs small files.
        Packed = 3,
        /// Zeros.
        Zeros = 4,
    }
}

record! {
    /// A run of a file's content.
    pub struct ContentRun {
        /// How it is stored.
        pub kind: RunKind,
        /// Where the run starts inside a packed chunk; 0 for other kinds.
        pub offset: u64,
        /// Bytes of the run.
        pub len: u64,
        /// The chunks; empty for zeros.
        pub chunks: Vec<ChunkId>,
    }
}

record! {
    /// A block map: the runs of a large part of a file (never `Maps` again).
    pub struct BlockMap {
        /// At most `BLOCK_MAP_CHUNKS_MAX` chunks in all.
        pub runs: Vec<ContentRun>,
    }
}
