//! PostgreSQL's protocol as bytes: frames, messages, replication and base backup sub-messages, commands.
//! Pure: no IO, no clock. Everything the server sends is foreign: a message that does not fit is a [`WireError`],
//! never a panic, and no length the server names is believed before it is compared with a bound of [`limits`].
//! Source: PostgreSQL's `protocol.sgml`, `libpq/protocol.h`, `replication/walsender.c`, `backup/basebackup_copy.c`.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

pub mod base_backup;
pub mod command;
pub mod copy_binary;
pub mod frame;
pub mod limits;
pub mod message;
pub mod replication;
pub mod row;

pub use base_backup::{BackupMessage, TablespaceRow};
pub use frame::{Frame, take_frame};
pub use message::{Authentication, Message, ServerMessage, TransactionStatus};
pub use replication::{ReplicationMessage, StatusUpdate};
pub use row::{Columns, Row};

/// What a server sent that is not PostgreSQL's protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A length no message of this phase has.
    #[error("message {tag:?} of {found} bytes, expected {least} to {most}", tag = char::from(*.tag))]
    Length {
        /// The message's type byte.
        tag: u8,
        /// The length it claims.
        found: u64,
        /// The shortest it may be.
        least: u64,
        /// The longest we accept in this phase.
        most: u64,
    },
    /// A message whose body is not what its type says.
    #[error("{what}: {reason}")]
    Malformed {
        /// Which message or field.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A well-formed message where another one belongs.
    #[error("found {found}, expected {expected}")]
    Unexpected {
        /// What came.
        found: String,
        /// What belongs there.
        expected: &'static str,
    },
}

impl WireError {
    pub(crate) fn malformed(what: &'static str, reason: impl std::fmt::Display) -> Self {
        WireError::Malformed { what, reason: reason.to_string() }
    }
}
