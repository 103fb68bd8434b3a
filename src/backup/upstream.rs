//! What a backup needs of a server: BASE_BACKUP's stream, and a few answers over SQL. PostgreSQL gives them
//! (`source`); a simulated server does in the crash rounds.

use super::source::{BlockRead, SqlSource};
use crate::format::manifest::ConfigFile;
use crate::net::server::{ServerSettings, WalPosition};
use crate::net::{BaseBackupEvent, BaseBackupOptions, BaseBackupStream, PgError};
use crate::net::{ConnectOptions, Connection, ConnectionKind};
use async_trait::async_trait;
use std::fmt::Debug;

/// A server that can be backed up.
#[async_trait]
pub trait Server: Send + Sync + Debug {
    /// Connects twice: for the stream, and for questions. PostgreSQL shows the connections as `application_name`.
    async fn connect<'a>(&'a self, application_name: &'a str) -> Result<Connected<'a>, PgError>;
}

/// A server's two connections.
#[derive(Debug)]
pub struct Connected<'a> {
    /// For BASE_BACKUP.
    pub replication: Box<dyn Replication>,
    /// For questions.
    pub source: Box<dyn Source + 'a>,
}

/// A connection that can begin a base backup.
#[async_trait]
pub trait Replication: Send + Sync + Debug {
    /// Begins it.
    async fn base_backup(self: Box<Self>, options: &BaseBackupOptions) -> Result<Box<dyn Archives>, PgError>;
}

/// A running base backup. Dropping it ends the backup on the server.
#[async_trait]
pub trait Archives: Send + Debug {
    /// What comes next; `None` after the end.
    async fn next(&mut self) -> Result<Option<BaseBackupEvent>, PgError>;
}

/// The server over SQL.
#[async_trait]
pub trait Source: Send + Sync + Debug {
    /// The server's settings.
    async fn settings(&mut self) -> Result<ServerSettings, PgError>;

    /// The server's clock, and the end of its WAL.
    async fn position(&mut self) -> Result<WalPosition, PgError>;

    /// Reads block `block` of the file at `path` again, from the server's disk.
    async fn read_block(&mut self, path: &str, block: u32) -> Result<BlockRead, PgError>;

    /// The configuration files outside the data directory with everything they include, and what could not be read.
    async fn config_files(
        &mut self,
        server: &ServerSettings,
    ) -> Result<(Vec<ConfigFile>, Vec<String>), PgError>;
}

#[async_trait]
impl Server for ConnectOptions {
    async fn connect<'a>(&'a self, application_name: &'a str) -> Result<Connected<'a>, PgError> {
        let kind = ConnectionKind::PhysicalReplication;
        let replication = Box::new(Connection::connect(self, kind, application_name).await?);
        let source = Box::new(SqlSource::connect(self, application_name).await?);
        Ok(Connected { replication, source })
    }
}

#[async_trait]
impl Replication for Connection {
    async fn base_backup(self: Box<Self>, options: &BaseBackupOptions) -> Result<Box<dyn Archives>, PgError> {
        Ok(Box::new(Connection::base_backup(*self, options).await?))
    }
}

#[async_trait]
impl Archives for BaseBackupStream {
    async fn next(&mut self) -> Result<Option<BaseBackupEvent>, PgError> {
        BaseBackupStream::next(self).await
    }
}
