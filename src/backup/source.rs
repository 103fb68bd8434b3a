//! The server over SQL: who it is, its settings, its clock, a block read again, configuration outside the data directory.
//! A connection that was cut while the backup ran is made anew once.

use super::config::{ConfigKind, Include, includes};
use super::upstream::Source;
use crate::base::limits::BLOCK_BYTES;
use crate::format::manifest::{ConfigFile, Setting};
use crate::format::record::Blob;
use crate::net::server::{ServerSettings, WalPosition};
use crate::net::{ConnectOptions, Connection, ConnectionKind, PgError};
use crate::wire::command::quote_string;
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// The most bytes of a configuration file that are kept.
const CONFIG_BYTES_MAX: usize = 1 << 20;
/// The most configuration files that are kept.
const CONFIG_FILES_MAX: usize = 256;
/// insufficient_privilege.
const NO_PRIVILEGE: &str = "42501";
/// What must not stop us in the middle of a backup.
const PREPARE: &str =
    "SET search_path = pg_catalog; SET statement_timeout = '60s'; SET idle_session_timeout = 0";
/// Settings that a restored server must not undercut, or that say where things were.
const SETTINGS: &[&str] = &[
    "config_file",
    "data_directory",
    "external_pid_file",
    "hba_file",
    "ident_file",
    "log_directory",
    "max_connections",
    "max_locks_per_transaction",
    "max_prepared_transactions",
    "max_wal_senders",
    "max_worker_processes",
    "server_encoding",
    "shared_preload_libraries",
    "stats_temp_directory",
    "track_commit_timestamp",
    "wal_level",
    "wal_log_hints",
];

/// The settings of `server` that a manifest keeps.
pub fn settings_kept(server: &ServerSettings) -> Vec<Setting> {
    let known = SETTINGS.iter().filter_map(|name| Some((*name, &server.raw.get(*name)?.0)));
    known.map(|(name, value)| Setting { name: name.to_owned(), value: value.clone() }).collect()
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

/// The SQL side of a backup of a PostgreSQL server.
#[derive(Debug)]
pub struct SqlSource<'a> {
    options: &'a ConnectOptions,
    application_name: &'a str,
    connection: Option<Connection>,
}

/// Asks over the connection, once more over a new one when it was lost.
macro_rules! ask {
    ($source:ident, $connection:ident => $question:expr) => {{
        let $connection = $source.connection().await?;
        match $question.await {
            Err(error) if error.is_transient() && !matches!(error, PgError::Server(_)) => {
                tracing::debug!(%error, "the SQL connection was lost; connecting again");
                $source.connection = None;
                let $connection = $source.connection().await?;
                $question.await
            }
            other => other,
        }
    }};
}

impl<'a> SqlSource<'a> {
    /// Connects for SQL.
    pub async fn connect(options: &'a ConnectOptions, application_name: &'a str) -> Result<Self, PgError> {
        let mut source = SqlSource { options, application_name, connection: None };
        source.connection().await?;
        Ok(source)
    }

    async fn connection(&mut self) -> Result<&mut Connection, PgError> {
        if self.connection.is_none() {
            let mut connection =
                Connection::connect(self.options, ConnectionKind::Sql, self.application_name).await?;
            connection.query(PREPARE).await?;
            self.connection = Some(connection);
        }
        match &mut self.connection {
            Some(connection) => Ok(connection),
            None => unreachable!("connected above"),
        }
    }

    async fn read_file(&mut self, path: &str, offset: u64, len: usize) -> Result<FileRead, PgError> {
        match ask!(self, connection => connection.read_file_range(path, offset, len as u32)) {
            Ok(Some(content)) => Ok(FileRead::Content(content)),
            Ok(None) => Ok(FileRead::Gone),
            Err(error) if error.sqlstate() == Some(NO_PRIVILEGE) => Ok(FileRead::Refused),
            // A file that vanished between its look-up and its read, a directory where a file was: any other refusal.
            Err(PgError::Server(message)) => {
                tracing::debug!(path, error = %message.message, "not read over SQL");
                Ok(FileRead::Gone)
            }
            Err(error) => Err(error),
        }
    }

    /// The `.conf` files of a directory, last first; `None` when the server does not let us.
    async fn list_configs(&mut self, directory: &Path) -> Result<Option<Vec<PathBuf>>, PgError> {
        let sql = format!(
            "SELECT pg_ls_dir({}, true, false) ORDER BY 1 DESC",
            quote_string(&directory.to_string_lossy())
        );
        match ask!(self, connection => connection.query(&sql)) {
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

#[async_trait]
impl Source for SqlSource<'_> {
    async fn settings(&mut self) -> Result<ServerSettings, PgError> {
        ask!(self, connection => connection.server_settings())
    }

    async fn position(&mut self) -> Result<WalPosition, PgError> {
        ask!(self, connection => connection.wal_position())
    }

    async fn read_block(&mut self, path: &str, block: u32) -> Result<BlockRead, PgError> {
        let offset = u64::from(block) * BLOCK_BYTES as u64;
        Ok(match self.read_file(path, offset, BLOCK_BYTES).await? {
            FileRead::Content(content) => match <[u8; BLOCK_BYTES]>::try_from(&content[..]) {
                Ok(page) => BlockRead::Page(Box::new(page)),
                Err(_) => BlockRead::Gone,
            },
            FileRead::Gone => BlockRead::Gone,
            FileRead::Refused => BlockRead::Refused,
        })
    }

    async fn config_files(
        &mut self,
        server: &ServerSettings,
    ) -> Result<(Vec<ConfigFile>, Vec<String>), PgError> {
        let (mut files, mut missed, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
        if server.data_directory.is_none() {
            missed.push("where it is: the role is no member of pg_read_all_settings".to_owned());
        }
        let named = [
            (ConfigKind::Fields, &server.ident_file),
            (ConfigKind::Fields, &server.hba_file),
            (ConfigKind::Settings, &server.config_file),
        ];
        let mut due: Vec<(ConfigKind, Include)> =
            named.into_iter().filter_map(|(kind, path)| Some((kind, Include::File(path.clone()?)))).collect();
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
                    let inside = server.data_directory.as_ref().is_some_and(|data| path.starts_with(data));
                    if !inside {
                        files.push(ConfigFile {
                            path: path.to_string_lossy().into_owned(),
                            content: Blob(content.to_vec()),
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
}

enum FileRead {
    Content(Bytes),
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
