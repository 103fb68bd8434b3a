//! What can go wrong with a server, by the caller's next move. No text here ever holds a password: servers' messages are
//! repeated as they are, our own name users, hosts and files only.

use crate::wire::{ServerMessage, WireError};
use std::time::Duration;

/// Why a connection or a command failed.
#[derive(Debug, thiserror::Error)]
pub enum PgError {
    /// No server answered there. Try again later, or another host.
    #[error("cannot connect to {host}: {reason}")]
    Connect {
        /// Where.
        host: String,
        /// What happened.
        reason: String,
    },
    /// Servers answered, none of the kind asked for. Try again later.
    #[error("no host is {wanted}: {tried}")]
    NoSuchHost {
        /// The `target_session_attrs` asked for.
        wanted: &'static str,
        /// Each host and what it was.
        tried: String,
    },
    /// The server does not let us in, or we do not trust how it asks. An operator must change something.
    #[error("{host} does not accept user {user:?}: {reason}")]
    Auth {
        /// Where.
        host: String,
        /// As whom.
        user: String,
        /// What the server or our own policy said.
        reason: String,
        /// What the operator may do.
        hint: Option<String>,
        /// The server's SQLSTATE, when it was the server.
        code: Option<String>,
    },
    /// No TLS connection as demanded. An operator must change something.
    #[error("TLS with {host}: {reason}")]
    Tls {
        /// Where.
        host: String,
        /// What is wrong.
        reason: String,
        /// What the operator may do.
        hint: Option<String>,
    },
    /// The server refused the command, or ended the connection with a reason. [`PgError::sqlstate`] says which.
    #[error("PostgreSQL: {0}")]
    Server(Box<ServerMessage>),
    /// The server is not one walden works with.
    #[error("{host}: {reason}")]
    Unsupported {
        /// Where.
        host: String,
        /// What it is and what it should be.
        reason: String,
    },
    /// What came is not PostgreSQL's protocol. Connect anew; if it comes again, it is a bug or not a PostgreSQL.
    #[error("{host}: protocol: {error}")]
    Protocol {
        /// Where.
        host: String,
        /// What came.
        error: WireError,
    },
    /// Nothing came in time. Try again later.
    #[error("{host}: no answer to {during} within {limit:?}")]
    Timeout {
        /// Where.
        host: String,
        /// What we waited for.
        during: &'static str,
        /// How long.
        limit: Duration,
    },
    /// The connection is gone. Connect anew.
    #[error("connection to {host} ended: {reason}")]
    Closed {
        /// Where.
        host: String,
        /// How.
        reason: String,
    },
    /// What was asked for cannot be said in PostgreSQL's protocol: a name with a zero byte, a rate out of bounds.
    #[error("{what}: {reason}")]
    Request {
        /// Which argument.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl PgError {
    /// The server's SQLSTATE, when it gave one.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            PgError::Server(message) => Some(&message.code),
            PgError::Auth { code, .. } => code.as_deref(),
            _ => None,
        }
    }

    /// What the operator may do, when the server or we know.
    pub fn hint(&self) -> Option<&str> {
        match self {
            PgError::Server(message) => message.hint.as_deref(),
            PgError::Auth { hint, .. } | PgError::Tls { hint, .. } => hint.as_deref(),
            _ => None,
        }
    }

    /// Whether the same may succeed later without anybody changing anything: the network, a restart, a slot in use.
    pub fn is_transient(&self) -> bool {
        match self {
            PgError::Connect { .. } | PgError::NoSuchHost { .. } => true,
            PgError::Timeout { .. } | PgError::Closed { .. } | PgError::Protocol { .. } => true,
            PgError::Auth { .. } | PgError::Tls { .. } => false,
            PgError::Unsupported { .. } | PgError::Request { .. } => false,
            PgError::Server(message) => match message.code.get(..2) {
                _ if self.is_wal_gone() => false,
                // connection exceptions, insufficient resources, operator intervention, system errors
                Some("08" | "53" | "57" | "58") => true,
                _ => message.code == code::OBJECT_IN_USE,
            },
        }
    }

    /// Whether the server says that WAL we asked for is not there any more, or that the slot which should have held it was
    /// invalidated: a hole, which asking again does not fill.
    pub fn is_wal_gone(&self) -> bool {
        let PgError::Server(message) = self else { return false };
        match message.code.as_str() {
            // "requested WAL segment ... has already been removed"; "could not find ..." of other files does not say WAL.
            code::UNDEFINED_FILE => message.message.contains("WAL segment"),
            // "can no longer access replication slot", "cannot read from ... it has been invalidated"
            code::NOT_IN_PREREQUISITE_STATE => {
                let detail = message.detail.as_deref().unwrap_or_default();
                detail.contains("invalidated") || message.message.contains("can no longer")
            }
            _ => false,
        }
    }

    pub(super) fn protocol(host: &str, error: WireError) -> Self {
        PgError::Protocol { host: host.to_owned(), error }
    }

    pub(super) fn closed(host: &str, reason: impl std::fmt::Display) -> Self {
        PgError::Closed { host: host.to_owned(), reason: reason.to_string() }
    }
}

/// SQLSTATEs that decide what we do next (`utils/errcodes.txt`).
pub mod code {
    /// `undefined_object`: no such slot.
    pub const UNDEFINED_OBJECT: &str = "42704";
    /// `duplicate_object`: the slot exists.
    pub const DUPLICATE_OBJECT: &str = "42710";
    /// `object_in_use`: another walsender has the slot.
    pub const OBJECT_IN_USE: &str = "55006";
    /// `object_not_in_prerequisite_state`: among others a slot that lost its WAL.
    pub const NOT_IN_PREREQUISITE_STATE: &str = "55000";
    /// `undefined_file`: "requested WAL segment has already been removed".
    pub const UNDEFINED_FILE: &str = "58P01";
    /// `cannot_connect_now`: starting up, shutting down or in recovery.
    pub const CANNOT_CONNECT_NOW: &str = "57P03";
    /// `admin_shutdown`.
    pub const ADMIN_SHUTDOWN: &str = "57P01";
    /// `invalid_authorization_specification`: pg_hba.conf has no entry for us, or the role may not.
    pub const INVALID_AUTHORIZATION: &str = "28000";
    /// `insufficient_privilege`.
    pub const INSUFFICIENT_PRIVILEGE: &str = "42501";
    /// `invalid_password`.
    pub const INVALID_PASSWORD: &str = "28P01";
}
