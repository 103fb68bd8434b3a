//! The base backup of a simulated primary: a small data directory that changes between backups, sent as a tar in pieces of any
//! size over a connection that may break. Everything that was sent is remembered, to hold what is stored against it.

use super::sim_server::{SEGMENT, SimServer};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use walden::backup::BlockRead;
use walden::backup::upstream::{Archives, Connected, Replication, Server, Source};
use walden::base::{Lsn, SegmentSize};
use walden::format::manifest::ConfigFile;
use walden::net::server::{ServerSettings, WalPosition};
use walden::net::{BaseBackupEvent, BaseBackupOptions, PgError, TablespaceRow};

/// What one backup sent: content by path.
pub type Sent = BTreeMap<String, Vec<u8>>;

/// Relations of the primary, and how many blocks each has: one takes several chunks.
const RELATIONS: [(&str, usize); 5] =
    [("base/1/1001", 1), ("base/1/1002", 3), ("base/1/1002_fsm", 2), ("base/5/1003", 70), ("global/1004", 1)];
const BLOCK: usize = 8192;

/// A data directory, by how often each relation was changed.
#[derive(Debug, Clone, Default)]
pub struct DataDir {
    versions: BTreeMap<&'static str, u64>,
}

impl DataDir {
    /// Changes some relations; now and then one is again as it was some changes ago, when only backups that are gone by now had it.
    pub fn change(&mut self, rng: &mut fastrand::Rng) {
        for (path, _) in RELATIONS {
            let version = self.versions.entry(path).or_default();
            match rng.u8(0..9) {
                0 | 1 => *version += 1,
                2 => *version = version.saturating_sub(rng.u64(1..4)),
                _ => {}
            }
        }
    }

    /// Its files now, in a backup whose recovery starts at `redo`.
    pub fn files(&self, redo: Lsn) -> Sent {
        let mut files = Sent::new();
        files.insert("PG_VERSION".into(), b"15\n".to_vec());
        let label = format!("START WAL LOCATION: {redo} (file x)\nCHECKPOINT LOCATION: {redo}\nLABEL: x\n");
        files.insert("backup_label".into(), label.into_bytes());
        files.insert("global/pg_control".into(), vec![7; BLOCK]);
        files.insert("postgresql.conf".into(), b"max_connections = 100\n".to_vec());
        for (path, blocks) in RELATIONS {
            let version = self.versions.get(path).copied().unwrap_or_default();
            let block = |number: usize| {
                // One block in seven is of this version alone, and one in five was never written.
                let own = if number.is_multiple_of(7) { version } else { 0 };
                let fill = format!("{path} {number} {own} ").into_bytes();
                let len = if number % 5 == 4 { 0 } else { BLOCK };
                let mut page: Vec<u8> = fill.into_iter().cycle().take(len).collect();
                page.resize(BLOCK, 0);
                page
            };
            files.insert(path.into(), (0..blocks).flat_map(block).collect());
        }
        files
    }
}

/// A tar of `files`, as PostgreSQL 15 sends it: directories first, closed by two zero blocks.
fn tar(files: &Sent) -> Vec<u8> {
    let mut bytes = Vec::new();
    for dir in ["base", "base/1", "base/5", "global", "pg_wal"] {
        bytes.extend(header(&format!("{dir}/"), b'5', 0));
    }
    for (path, content) in files {
        bytes.extend(header(path, b'0', content.len()));
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn header(path: &str, kind: u8, size: usize) -> [u8; 512] {
    let mut block = [0; 512];
    let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, path);
    put(100, if kind == b'5' { "0000700" } else { "0000600" });
    put(108, "0000145");
    put(116, "0000150");
    put(124, &format!("{size:011o}"));
    put(136, "15277302345");
    put(257, "ustar\x0000");
    put(148, "        ");
    block[156] = kind;
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn broken() -> PgError {
    PgError::Closed { host: "sim".into(), reason: "the network broke".into() }
}

#[async_trait]
impl Server for SimServer {
    async fn connect<'a>(&'a self, _application_name: &'a str) -> Result<Connected<'a>, PgError> {
        self.pause().await;
        Ok(Connected { replication: Box::new(self.clone()), source: Box::new(self.clone()) })
    }
}

#[async_trait]
impl Replication for SimServer {
    async fn base_backup(
        self: Box<Self>,
        _options: &BaseBackupOptions,
    ) -> Result<Box<dyn Archives>, PgError> {
        self.pause().await;
        let (start, files) = self.begin_backup();
        let mut events = VecDeque::from([
            BaseBackupEvent::Start { lsn: start, timeline: self.timeline() },
            BaseBackupEvent::Tablespaces(vec![TablespaceRow {
                oid: None,
                path: String::new(),
                size_kib: None,
            }]),
            BaseBackupEvent::Archive { name: "base.tar".into(), tablespace_oid: None },
        ]);
        let mut archive = Bytes::from(tar(&files));
        while !archive.is_empty() {
            let len = self.chance(|rng| rng.usize(1..=96 << 10)).min(archive.len());
            events.push_back(BaseBackupEvent::Data(archive.split_to(len)));
        }
        Ok(Box::new(SimArchives { server: *self, start, files: Some(files), events }))
    }
}

#[derive(Debug)]
struct SimArchives {
    server: SimServer,
    start: Lsn,
    files: Option<Sent>,
    events: VecDeque<BaseBackupEvent>,
}

#[async_trait]
impl Archives for SimArchives {
    async fn next(&mut self) -> Result<Option<BaseBackupEvent>, PgError> {
        self.server.pause_in_backup().await;
        if self.server.breaks(100) {
            return Err(broken());
        }
        if let Some(event) = self.events.pop_front() {
            return Ok(Some(event));
        }
        let Some(files) = self.files.take() else { return Ok(None) };
        let lsn = self.server.end_backup(self.start, files);
        Ok(Some(BaseBackupEvent::End { lsn, timeline: self.server.timeline() }))
    }
}

#[async_trait]
impl Source for SimServer {
    async fn settings(&mut self) -> Result<ServerSettings, PgError> {
        Ok(ServerSettings {
            version: SimServer::identity(self).major_version * 10_000 + 19,
            system_id: SimServer::identity(self).system_id,
            in_recovery: false,
            wal_segment_size: SegmentSize::new(SEGMENT).unwrap(),
            block_size_bytes: BLOCK as u32,
            data_checksums: false,
            wal_level: "replica".into(),
            max_wal_senders: 10,
            max_replication_slots: 10,
            max_slot_wal_keep_size_bytes: None,
            idle_replication_slot_timeout: None,
            wal_sender_timeout: Some(Duration::from_secs(60)),
            full_page_writes: true,
            wal_log_hints: false,
            fsync: true,
            track_commit_timestamp: false,
            synchronous_standby_names: String::new(),
            data_directory: Some("/srv/sim".into()),
            config_file: Some("/srv/sim/postgresql.conf".into()),
            hba_file: None,
            ident_file: None,
            raw: BTreeMap::new(),
        })
    }

    async fn position(&mut self) -> Result<WalPosition, PgError> {
        self.pause().await;
        Ok(WalPosition { end: self.end(), in_recovery: false, clock: self.clock() })
    }

    async fn read_block(&mut self, _path: &str, _block: u32) -> Result<BlockRead, PgError> {
        Ok(BlockRead::Refused)
    }

    async fn config_files(
        &mut self,
        _server: &ServerSettings,
    ) -> Result<(Vec<ConfigFile>, Vec<String>), PgError> {
        Ok((Vec::new(), Vec::new()))
    }
}
