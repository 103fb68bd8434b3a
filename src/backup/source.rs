//! The server over SQL: who it is, its settings, its clock, a block read again, configuration outside the data directory.
//! A connection that was cut while the backup ran is made anew once.

use super::config::{ConfigKind, Include, includes};
use super::error::BackupError;
use crate::base::limits::BLOCK_BYTES;
use crate::base::lsn::LsnParseError;
use crate::base::{Lsn, SegmentSize, Timestamp};
use crate::format::manifest::{ConfigFile, Setting};
use crate::format::record::Blob;
use crate::net::{ConnectOptions, Connection, ConnectionKind, PgError};
use crate::wire::{Row, WireError};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// The most bytes of a configuration file that are kept.
const CONFIG_BYTES_MAX: usize = 1 << 20;
/// The most configuration files that are kept.
const CONFIG_FILES_MAX: usize = 256;
/// insufficient_privilege.
const NO_PRIVILEGE: &str = "42501";
/// What must not stop us in the middle of a backup, and what answers must look like.
const PREPARE: &str = "SET search_path = pg_catalog; SET bytea_output = hex; SET standard_conforming_strings = on; \
                       SET statement_timeout = '60s'; SET idle_session_timeout = 0";

/// Settings that a restored server must not undercut, or that say what its directory was like.
const SETTINGS: &str = "'max_connections', 'max_worker_processes', 'max_wal_senders', 'max_prepared_transactions', \
                        'max_locks_per_transaction', 'wal_level', 'wal_log_hints', 'track_commit_timestamp', \
                        'data_directory_mode', 'server_encoding', 'lc_collate', 'shared_preload_libraries', \
                        'config_file', 'hba_file', 'ident_file', 'data_directory'";

/// What the server says of itself.
#[derive(Debug, Clone)]
pub struct ServerFacts {
    /// server_version_num.
    pub version: u32,
    /// Its WAL segment size.
    pub segment_size: SegmentSize,
    /// Whether pages carry checksums.
    pub checksums: bool,
    /// Settings worth keeping.
    pub settings: Vec<Setting>,
    /// Where its data directory and configuration files are; none of those it does not let us see.
    paths: Vec<(ConfigKind, PathBuf)>,
    data_directory: Option<PathBuf>,
}

/// A block read again.
#[derive(Debug, PartialEq, Eq)]
pub enum BlockRead {
    /// What is there now.
    Page(Box<[u8; BLOCK_BYTES]>),
    /// The file is gone or shorter now: WAL says so too.
    Gone,
    /// The server does not let us.
    Refused,
}

/// The SQL side of a backup.
#[derive(Debug)]
pub struct Source<'a> {
    options: &'a ConnectOptions,
    application_name: &'a str,
    connection: Option<Connection>,
}

impl<'a> Source<'a> {
    /// Connects for SQL.
    pub async fn connect(options: &'a ConnectOptions, application_name: &'a str) -> Result<Self, PgError> {
        let mut source = Source { options, application_name, connection: None };
        source.connection = Some(source.open().await?);
        Ok(source)
    }

    async fn open(&self) -> Result<Connection, PgError> {
        let mut connection =
            Connection::connect(self.options, ConnectionKind::Sql, self.application_name).await?;
        connection.query(PREPARE).await?;
        Ok(connection)
    }

    /// Runs a query that changes nothing; once more when the connection was lost.
    async fn query(&mut self, sql: &str) -> Result<Vec<Row>, PgError> {
        if let Some(mut connection) = self.connection.take() {
            match connection.query(sql).await {
                Err(error) if error.is_transient() && !matches!(error, PgError::Server(_)) => {
                    tracing::debug!(%error, "the SQL connection was lost; connecting again");
                }
                other => {
                    self.connection = Some(connection);
                    return other;
                }
            }
        }
        let mut connection = self.open().await?;
        let rows = connection.query(sql).await;
        self.connection = Some(connection);
        rows
    }

    async fn value(&mut self, sql: &str) -> Result<String, BackupError> {
        let rows = self.query(sql).await?;
        let value = rows.first().and_then(|row| row.get(0)).map(str::to_owned);
        value.ok_or_else(|| {
            WireError::Malformed { what: "answer", reason: format!("no value from {sql}") }.into()
        })
    }

    /// Asks who the server is. Refuses another block size than PostgreSQL's default.
    pub async fn facts(&mut self) -> Result<ServerFacts, BackupError> {
        let number = |what: &'static str, text: String| {
            text.parse::<u64>().map_err(|_| WireError::Malformed { what, reason: format!("found {text:?}") })
        };
        let version = number("server_version_num", self.value("SHOW server_version_num").await?)? as u32;
        let block_size = number("block_size", self.value("SHOW block_size").await?)?;
        if block_size != BLOCK_BYTES as u64 {
            let reason = format!("the server's block size is {block_size}; walden knows {BLOCK_BYTES} only");
            return Err(BackupError::Unsupported { reason });
        }
        let sql = "SELECT setting FROM pg_settings WHERE name = 'wal_segment_size'";
        let segment_size = SegmentSize::new(number("wal_segment_size", self.value(sql).await?)?)
            .map_err(|error| BackupError::Unsupported { reason: error.to_string() })?;
        let checksums = self.value("SHOW data_checksums").await? == "on";
        let sql = format!("SELECT name, setting FROM pg_settings WHERE name IN ({SETTINGS}) ORDER BY name");
        let rows = self.query(&sql).await?;
        let setting = |row: &Row| {
            Some(Setting { name: row.by_name("name")?.to_owned(), value: row.by_name("setting")?.to_owned() })
        };
        let all: Vec<Setting> = rows.iter().filter_map(setting).collect();
        let path = |name: &str| {
            all.iter().find(|s| s.name == name && !s.value.is_empty()).map(|s| PathBuf::from(&s.value))
        };
        let files = [
            (ConfigKind::Settings, "config_file"),
            (ConfigKind::Fields, "hba_file"),
            (ConfigKind::Fields, "ident_file"),
        ];
        Ok(ServerFacts {
            version,
            segment_size,
            checksums,
            paths: files.iter().filter_map(|(kind, name)| Some((*kind, path(name)?))).collect(),
            data_directory: path("data_directory"),
            settings: all,
        })
    }

    /// The server's clock.
    pub async fn now(&mut self) -> Result<Timestamp, BackupError> {
        let text = self.value("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint").await?;
        match text.parse() {
            Ok(micros) => Ok(Timestamp::from_unix_micros(micros)),
            Err(_) => Err(WireError::Malformed { what: "clock", reason: format!("found {text:?}") }.into()),
        }
    }

    /// The end of the server's WAL: no page has a greater LSN.
    pub async fn wal_end(&mut self) -> Result<Lsn, BackupError> {
        let sql = "SELECT CASE WHEN pg_is_in_recovery() THEN coalesce(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) \
                   ELSE pg_current_wal_insert_lsn() END";
        let text = self.value(sql).await?;
        text.parse().map_err(|error: LsnParseError| {
            WireError::Malformed { what: "WAL position", reason: error.to_string() }.into()
        })
    }

    /// Reads block `block` of the file at `path` again, from the server's disk.
    pub async fn read_block(&mut self, path: &str, block: u32) -> Result<BlockRead, PgError> {
        let offset = u64::from(block) * BLOCK_BYTES as u64;
        Ok(match self.read_file(path, offset, BLOCK_BYTES).await? {
            FileRead::Content(content) => match <[u8; BLOCK_BYTES]>::try_from(content) {
                Ok(page) => BlockRead::Page(Box::new(page)),
                Err(_) => BlockRead::Gone,
            },
            FileRead::Gone => BlockRead::Gone,
            FileRead::Refused => BlockRead::Refused,
        })
    }

    async fn read_file(&mut self, path: &str, offset: u64, len: usize) -> Result<FileRead, PgError> {
        let sql = format!("SELECT pg_read_binary_file({}, {offset}, {len}, true)", quoted(path));
        match self.query(&sql).await {
            Ok(rows) => match rows.first().and_then(|row| row.bytes(0)) {
                Some(text) => Ok(unhex(text).map_or(FileRead::Gone, FileRead::Content)),
                None => Ok(FileRead::Gone),
            },
            Err(error) if error.sqlstate() == Some(NO_PRIVILEGE) => Ok(FileRead::Refused),
            // A file that vanished between its look-up and its read, a directory where a file was: any other refusal.
            Err(PgError::Server(message)) => {
                tracing::debug!(path, error = %message.message, "not read over SQL");
                Ok(FileRead::Gone)
            }
            Err(error) => Err(error),
        }
    }

    /// The configuration files outside the data directory with everything they include, and what could not be read.
    pub async fn config_files(
        &mut self,
        facts: &ServerFacts,
    ) -> Result<(Vec<ConfigFile>, Vec<String>), PgError> {
        let (mut files, mut missed, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
        if facts.data_directory.is_none() || facts.paths.is_empty() {
            missed.push(
                "where configuration files are: the role is no member of pg_read_all_settings".to_owned(),
            );
        }
        let mut due: Vec<(ConfigKind, Include)> =
            facts.paths.iter().rev().map(|(kind, path)| (*kind, Include::File(path.clone()))).collect();
        while let Some((kind, next)) = due.pop() {
            let path = match next {
                Include::File(path) => path,
                Include::Directory(path) => {
                    match self.list_configs(&path).await? {
                        Some(names) => due.extend(names.into_iter().map(|name| (kind, Include::File(name)))),
                        None => missed.push(unreadable(&path)),
                    }
                    continue;
                }
            };
            if !seen.insert(path.clone()) || seen.len() > CONFIG_FILES_MAX {
                continue;
            }
            match self.read_file(&path.to_string_lossy(), 0, CONFIG_BYTES_MAX + 1).await? {
                FileRead::Content(content) if content.len() <= CONFIG_BYTES_MAX => {
                    due.extend(
                        includes(&path, kind, &content).into_iter().rev().map(|include| (kind, include)),
                    );
                    let inside = facts.data_directory.as_ref().is_some_and(|data| path.starts_with(data));
                    if !inside {
                        files.push(ConfigFile {
                            path: path.to_string_lossy().into_owned(),
                            content: Blob(content),
                        });
                    }
                }
                FileRead::Content(_) => missed.push(format!("{}: larger than 1 MiB", path.display())),
                FileRead::Gone => {}
                FileRead::Refused => missed.push(unreadable(&path)),
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok((files, missed))
    }

    /// The `.conf` files of a directory, last first; `None` when the server does not let us.
    async fn list_configs(&mut self, directory: &Path) -> Result<Option<Vec<PathBuf>>, PgError> {
        let sql = format!(
            "SELECT pg_ls_dir({}, true, false) ORDER BY 1 DESC",
            quoted(&directory.to_string_lossy())
        );
        match self.query(&sql).await {
            Ok(rows) => {
                let names = rows.iter().filter_map(|row| row.get(0));
                let configs = names.filter(|name| name.ends_with(".conf") && !name.starts_with('.'));
                Ok(Some(configs.map(|name| directory.join(name)).collect()))
            }
            Err(PgError::Server(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

enum FileRead {
    Content(Vec<u8>),
    Gone,
    Refused,
}

fn unreadable(path: &Path) -> String {
    format!(
        "{}: the role may not read it; it needs pg_read_server_files and EXECUTE on pg_read_binary_file(text,bigint,bigint,boolean) \
         and pg_ls_dir(text,boolean,boolean)",
        path.display()
    )
}

/// `text` as a string constant, with standard_conforming_strings.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Bytes of `\x6162…`.
fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    let digits = text.strip_prefix(b"\\x")?;
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let (pairs, rest) = digits.as_chunks::<2>();
    let bytes = pairs.iter().map(|[high, low]| Some((digit(*high)? << 4 | digit(*low)?) as u8));
    if rest.is_empty() { bytes.collect() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_bytea_and_quotes_names() {
        assert_eq!(unhex(b"\\x00fFa0"), Some(vec![0, 0xff, 0xa0]));
        assert_eq!(unhex(b"\\x"), Some(Vec::new()));
        assert!(unhex(b"00").is_none() && unhex(b"\\x0").is_none() && unhex(b"\\xzz").is_none());
        assert_eq!(quoted("it's"), "'it''s'");
    }
}
