//! Connections to PostgreSQL 14 to 18: SQL in the simple protocol, physical replication, base backups.
//!
//! ```text
//! ConnectOptions::parse   connection string, URL, service file, PG* variables
//! Connection::connect     hosts in order, TLS, authentication, target_session_attrs
//!   .query                rows
//!   .base_backup          -> BaseBackupStream of events, the same on every major
//!   .start_physical       -> ReplicationStream -> split: reader, writer -> (end of timeline) unite
//! ```
//!
//! Nothing here retries: a [`PgError`] says whether trying again makes sense, and who calls decides when. Passwords never
//! show in `Debug`, errors or logs.

mod base_backup;
mod cancel;
mod connect;
mod connection;
mod error;
mod frames;
pub mod options;
mod replication;
pub mod server;
mod socket;
mod startup;
mod tls;

pub use base_backup::{
    BaseBackupEvent, BaseBackupOptions, BaseBackupStream, Checkpoint, ServerManifest, TablespaceRow,
};
pub use cancel::CancelToken;
pub use connection::{Connection, ConnectionKind, SystemIdentity};
pub use error::{PgError, code};
pub use options::{ConnectOptions, ConnectionStringError, contains_password};
pub use replication::{
    NextTimeline, ReplicationEvent, ReplicationReader, ReplicationStream, ReplicationWriter,
    StartReplication, StatusUpdate,
};
pub use socket::Keepalive;
