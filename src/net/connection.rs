//! A connection that is let in and waits for commands.
//!
//! A command that was dropped before its answer was read leaves the connection unusable: the next one says so instead of
//! taking the old answer for its own.

use super::PgError;
use super::cancel::CancelToken;
use super::frames::{FrameReader, FrameWriter};
use crate::base::{Lsn, SystemId, TimelineId};
use crate::wire::command::{self, Dialect, SlotLifetime};
use crate::wire::message::RowGatherer;
use crate::wire::{Message, Row, ServerMessage, WireError, limits};
use bytes::Bytes;
use postgres_protocol::message::frontend;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionKind {
    /// SQL in a database (`postgres` unless the options name one).
    Sql,
    /// Physical replication: replication commands and SHOW, no SQL.
    PhysicalReplication,
}

/// Who the server is: the answer to IDENTIFY_SYSTEM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SystemIdentity {
    /// Which `initdb` it comes from.
    pub system_id: SystemId,
    /// Its timeline.
    pub timeline: TimelineId,
    /// The end of its flushed WAL; on a standby, of what it may send.
    pub xlogpos: Lsn,
}

/// A connection waiting for commands.
#[derive(Debug)]
pub struct Connection {
    pub(super) reader: FrameReader,
    pub(super) writer: FrameWriter,
    pub(super) facts: ServerFacts,
    /// A command was sent and its ReadyForQuery has not been read.
    pub(super) busy: bool,
    /// IDENTIFY_SYSTEM was run, which a standby demands before START_REPLICATION.
    pub(super) identified: bool,
}

/// What the server said of itself, kept in every state of a connection.
#[derive(Debug)]
pub(super) struct ServerFacts {
    pub(super) host: Arc<str>,
    pub(super) parameters: BTreeMap<String, String>,
    pub(super) version: u32,
    pub(super) cancel: Option<CancelToken>,
}

impl ServerFacts {
    /// Takes in what may come at any time; gives back anything else.
    pub(super) fn absorb(&mut self, message: Message) -> Option<Message> {
        match message {
            Message::ParameterStatus { name, value } => {
                self.parameters.insert(name, value);
                None
            }
            Message::Notice(notice) => {
                log_notice(&self.host, &notice);
                None
            }
            Message::Other("NotificationResponse") => None,
            other => Some(other),
        }
    }

    pub(super) fn protocol(&self, error: WireError) -> PgError {
        PgError::protocol(&self.host, error)
    }
}

fn log_notice(host: &str, notice: &ServerMessage) {
    if notice.severity == "WARNING" {
        tracing::warn!(host, code = %notice.code, "PostgreSQL: {}", notice.message);
    } else {
        tracing::debug!(host, code = %notice.code, "PostgreSQL: {}", notice.message);
    }
}

impl Connection {
    /// Runs `sql`, one or more statements in the simple protocol, and gives the rows of the last that returned any.
    /// Not bounded in time: wrap it where a server may hang. If dropped: the statement may have run, and the connection is lost.
    pub async fn query(&mut self, sql: &str) -> Result<Vec<Row>, PgError> {
        self.send_command(sql).await?;
        let mut rows = RowGatherer::default();
        let mut failure = None;
        loop {
            match self.message(limits::SQL_MESSAGE_BYTES_MAX).await? {
                Message::RowDescription(columns) => rows.describe(columns),
                Message::DataRow(values) => rows.push(values).map_err(|error| self.facts.protocol(error))?,
                Message::CommandComplete(_) | Message::EmptyQuery => {}
                Message::Error(error) => failure = Some(self.failure(error)?),
                Message::ReadyForQuery(_) => {
                    self.busy = false;
                    return match failure {
                        Some(failure) => Err(failure),
                        None => Ok(rows.take()),
                    };
                }
                other => return Err(self.unexpected(&other, "rows or the end of the command")),
            }
        }
    }

    /// The only row that `sql` returns.
    pub async fn query_one(&mut self, sql: &str) -> Result<Row, PgError> {
        let mut rows = self.query(sql).await?;
        match (rows.pop(), rows.len()) {
            (Some(row), 0) => Ok(row),
            (_, rest) => {
                let reason = format!("{} rows, expected 1", if rest == 0 { 0 } else { rest + 1 });
                Err(self.facts.protocol(WireError::Malformed { what: "answer", reason }))
            }
        }
    }

    /// The server's version as a number: 150019 is 15.19.
    pub fn server_version(&self) -> u32 {
        self.facts.version
    }

    /// A setting that the server reports on its own: `server_version`, `in_hot_standby`, `TimeZone`, ...
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.facts.parameters.get(name).map(String::as_str)
    }

    /// Where the connection leads, for messages: `db1:5432` or `/run/postgresql:5432`.
    pub fn host(&self) -> &str {
        &self.facts.host
    }

    /// What can interrupt this connection's running command from elsewhere.
    pub fn cancel_token(&self) -> Option<CancelToken> {
        self.facts.cancel.clone()
    }

    /// Asks a replication connection who the server is.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, PgError> {
        let row = self.query_one("IDENTIFY_SYSTEM").await?;
        self.identified = true;
        let read = || {
            Ok(SystemIdentity {
                system_id: SystemId(row.parse("systemid")?),
                timeline: TimelineId(row.parse("timeline")?),
                xlogpos: row.parse("xlogpos")?,
            })
        };
        read().map_err(|error| self.facts.protocol(error))
    }

    /// Creates a physical slot that holds WAL from now on.
    pub async fn create_physical_slot(&mut self, name: &str) -> Result<(), PgError> {
        self.create_slot(name, SlotLifetime::Permanent).await
    }

    /// Creates a physical slot that holds WAL from now on, until this connection ends.
    pub async fn create_temporary_slot(&mut self, name: &str) -> Result<(), PgError> {
        self.create_slot(name, SlotLifetime::Temporary).await
    }

    async fn create_slot(&mut self, name: &str, lifetime: SlotLifetime) -> Result<(), PgError> {
        let command = command::create_physical_slot(self.dialect(), name, lifetime);
        self.query(&command).await.map(drop)
    }

    /// Drops a slot; fails at once when it is in use.
    pub async fn drop_slot(&mut self, name: &str) -> Result<(), PgError> {
        self.query(&command::drop_slot(name)).await.map(drop)
    }

    /// The history file of `timeline`, byte for byte.
    pub async fn timeline_history(&mut self, timeline: TimelineId) -> Result<Bytes, PgError> {
        let row = self.query_one(&command::timeline_history(timeline)).await?;
        match (row.get(0), row.bytes(1)) {
            (Some(name), Some(content)) if name == timeline.history_file_name() => Ok(content.clone()),
            (name, _) => {
                let reason = format!("file {name:?}, expected {}", timeline.history_file_name());
                Err(self.facts.protocol(WireError::Malformed { what: "TIMELINE_HISTORY", reason }))
            }
        }
    }

    /// Says goodbye and closes.
    pub async fn close(mut self) {
        self.writer.close().await;
    }

    pub(super) fn dialect(&self) -> Dialect {
        Dialect::of(self.facts.version)
    }

    /// Sends a command; its answer is to be read up to ReadyForQuery.
    pub(super) async fn send_command(&mut self, text: &str) -> Result<(), PgError> {
        if self.busy {
            return Err(PgError::closed(
                &self.facts.host,
                "an earlier command was given up before its answer",
            ));
        }
        if text.contains('\0') {
            return Err(PgError::Request { what: "command", reason: "contains a zero byte".to_owned() });
        }
        self.busy = true;
        frontend::query(text, self.writer.out())
            .map_err(|error| PgError::Request { what: "command", reason: error.to_string() })?;
        self.writer.flush().await
    }

    /// The next message that is not a parameter or a notice.
    pub(super) async fn message(&mut self, body_bytes_max: usize) -> Result<Message, PgError> {
        loop {
            let frame = self.reader.frame(body_bytes_max).await?;
            let message = Message::decode(frame).map_err(|error| self.facts.protocol(error))?;
            if let Some(message) = self.facts.absorb(message) {
                return Ok(message);
            }
        }
    }

    /// An error to be kept until ReadyForQuery; one that ends the connection at once is `Err`.
    pub(super) fn failure(&self, error: ServerMessage) -> Result<PgError, PgError> {
        let fatal = matches!(error.severity.as_str(), "FATAL" | "PANIC");
        let error = PgError::Server(Box::new(error));
        if fatal { Err(error) } else { Ok(error) }
    }

    pub(super) fn unexpected(&self, message: &Message, expected: &'static str) -> PgError {
        self.facts.protocol(message.unexpected(expected))
    }
}
