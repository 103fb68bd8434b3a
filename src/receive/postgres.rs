//! A real PostgreSQL behind the traits of [`super::upstream`].

use super::machine::Acknowledged;
use super::upstream::{
    Connector, Identity, Message, NextTimeline, Server, Slot, Started, StatusSink, Upstream, UpstreamError,
};
use crate::base::{Clock, Lsn, SegmentSize, TimelineId};
use crate::net::{
    ConnectOptions, Connection, ConnectionKind, PgError, ReplicationEvent, ReplicationReader,
    ReplicationWriter, StartReplication, StatusUpdate, code,
};
use async_trait::async_trait;
use std::sync::Arc;

/// Connects to the server of one cluster.
#[derive(Debug, Clone)]
pub struct PostgresConnector {
    /// Where and as whom.
    pub options: Arc<ConnectOptions>,
    /// What `synchronous_standby_names` calls us.
    pub application_name: String,
    /// Dates status messages.
    pub clock: Arc<dyn Clock>,
}

struct PostgresServer {
    connection: Connection,
    connector: PostgresConnector,
}

struct Reader {
    stream: ReplicationReader,
    /// What came first, read to see that the stream really begins.
    first: Option<ReplicationEvent>,
}

struct Sink {
    writer: Option<ReplicationWriter>,
    clock: Arc<dyn Clock>,
    last: Option<Acknowledged>,
}

#[async_trait]
impl Connector for PostgresConnector {
    async fn connect(&self) -> Result<Box<dyn Server>, UpstreamError> {
        let kind = ConnectionKind::PhysicalReplication;
        let connection =
            Connection::connect(&self.options, kind, &self.application_name).await.map_err(sorted)?;
        Ok(Box::new(PostgresServer { connection, connector: self.clone() }))
    }
}

#[async_trait]
impl Server for PostgresServer {
    async fn identify(&mut self) -> Result<Identity, UpstreamError> {
        let system = self.connection.identify_system().await.map_err(sorted)?;
        let segment = show_bytes(&mut self.connection, "wal_segment_size").await?;
        let block_size = show_bytes(&mut self.connection, "block_size").await?;
        let segment_size =
            SegmentSize::new(segment).map_err(|error| UpstreamError::Refused(error.to_string()))?;
        Ok(Identity {
            system_id: system.system_id,
            major_version: self.connection.server_version() / 10_000,
            timeline: system.timeline,
            flushed: system.xlogpos,
            segment_size,
            block_size: u32::try_from(block_size).unwrap_or(u32::MAX),
        })
    }

    async fn ensure_slot(&mut self, slot: &str) -> Result<Slot, UpstreamError> {
        let created = match self.connection.create_physical_slot(slot).await {
            Ok(()) => true,
            Err(error) if error.sqlstate() == Some(code::DUPLICATE_OBJECT) => false,
            Err(error) => return Err(sorted(error)),
        };
        let state = self.slot_state(slot).await?;
        if !created && state.lost {
            tracing::error!(slot, "the server let go of the slot's WAL; making the slot anew");
            self.connection.drop_slot(slot).await.map_err(|error| slot_error(slot, error))?;
            self.connection.create_physical_slot(slot).await.map_err(sorted)?;
            let state = self.slot_state(slot).await?;
            return Ok(Slot { restart: state.restart, created: true });
        }
        Ok(Slot { restart: state.restart, created })
    }

    async fn history(&mut self, timeline: TimelineId) -> Result<Vec<u8>, UpstreamError> {
        let content = self.connection.timeline_history(timeline).await;
        content.map(|bytes| bytes.to_vec()).map_err(|error| match error.sqlstate() {
            Some(code::UNDEFINED_FILE) => UpstreamError::Refused(error.to_string()),
            _ => sorted(error),
        })
    }

    async fn stream(
        mut self: Box<Self>,
        slot: &str,
        start: Lsn,
        timeline: TimelineId,
    ) -> Result<Started, UpstreamError> {
        let clock = self.connector.clock.clone();
        let end = self.connection.identify_system().await.map_err(sorted)?.xlogpos;
        let started = self.connection.start_physical(Some(slot), start, timeline).await;
        match started.map_err(|error| start_error(slot, start, error))? {
            StartReplication::Streaming(stream) => {
                let (mut stream, writer) = stream.split();
                // The server opens the stream whether or not it has that WAL, and says so only when it reads it. At its end it
                // may say nothing for long.
                let first = match start < end {
                    true => Some(stream.next().await.map_err(|error| start_error(slot, start, error))?),
                    false => None,
                };
                Ok(Started::Streaming(
                    Box::new(Reader { stream, first }),
                    Box::new(Sink { writer: Some(writer), clock, last: None }),
                ))
            }
            StartReplication::EndOfTimeline(connection, next) => {
                connection.close().await;
                Ok(Started::EndOfTimeline(NextTimeline { timeline: next.timeline, start: next.start }))
            }
        }
    }
}

struct SlotState {
    restart: Option<Lsn>,
    lost: bool,
}

impl PostgresServer {
    /// A slot's state, over a SQL connection of its own: 14 has no replication command for it, and none says that it is lost.
    async fn slot_state(&self, slot: &str) -> Result<SlotState, UpstreamError> {
        let options = &self.connector.options;
        let name = &self.connector.application_name;
        let mut sql = Connection::connect(options, ConnectionKind::Sql, name).await.map_err(sorted)?;
        let query = format!(
            "SELECT restart_lsn, wal_status FROM pg_catalog.pg_replication_slots WHERE slot_name = '{}'",
            slot.replace('\'', "''")
        );
        let row = sql.query_one(&query).await.map_err(sorted)?;
        sql.close().await;
        let restart =
            row.parse_opt("restart_lsn").map_err(|error| UpstreamError::Refused(error.to_string()))?;
        Ok(SlotState { restart, lost: row.by_name("wal_status") == Some("lost") })
    }
}

#[async_trait]
impl Upstream for Reader {
    async fn next(&mut self) -> Result<Message, UpstreamError> {
        let event = match self.first.take() {
            Some(first) => first,
            None => self.stream.next().await.map_err(stream_error)?,
        };
        match event {
            ReplicationEvent::Wal { start, server_end, server_time, data } => {
                Ok(Message::Wal { start, server_end, server_time, bytes: data })
            }
            ReplicationEvent::Keepalive { server_end, server_time, reply_requested } => {
                Ok(Message::Keepalive { server_end, server_time, reply_requested })
            }
            ReplicationEvent::EndOfTimeline(next) => {
                Ok(Message::EndOfTimeline(NextTimeline { timeline: next.timeline, start: next.start }))
            }
            ReplicationEvent::End => Err(UpstreamError::Lost("the server shut down".into())),
        }
    }
}

#[async_trait]
impl StatusSink for Sink {
    async fn report(&mut self, acknowledged: Acknowledged) -> Result<(), UpstreamError> {
        let Some(writer) = &self.writer else { return Ok(()) };
        let update = StatusUpdate {
            write: acknowledged.write,
            flush: acknowledged.flush,
            apply: Lsn::ZERO,
            clock: self.clock.now(),
            // A server that has nothing to send tells its time only when it is asked for, or hears nothing from us.
            reply_requested: self.last == Some(acknowledged),
        };
        self.last = Some(acknowledged);
        writer.status(update).await.map_err(stream_error)
    }

    async fn close(&mut self) -> Result<(), UpstreamError> {
        if let Some(writer) = self.writer.take() {
            writer.close().await;
        }
        Ok(())
    }
}

/// A setting in bytes: `SHOW` answers `16MB`, `8192`.
async fn show_bytes(connection: &mut Connection, setting: &'static str) -> Result<u64, UpstreamError> {
    let row = connection.query_one(&format!("SHOW {setting}")).await.map_err(sorted)?;
    let text = row.get(0).unwrap_or_default();
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &text[digits.len()..] {
        "" | "B" => Some(1),
        "kB" => Some(1 << 10),
        "MB" => Some(1 << 20),
        "GB" => Some(1 << 30),
        _ => None,
    };
    let bytes = digits.parse::<u64>().ok().zip(unit).and_then(|(number, unit)| number.checked_mul(unit));
    bytes.ok_or_else(|| UpstreamError::Refused(format!("{setting} is {text:?}, expected a size")))
}

/// Sorts an error of a command by what to do next.
fn sorted(error: PgError) -> UpstreamError {
    if error.is_transient() {
        return UpstreamError::Lost(error.to_string());
    }
    UpstreamError::Refused(match error.hint() {
        Some(hint) => format!("{error} ({hint})"),
        None => error.to_string(),
    })
}

fn slot_error(slot: &str, error: PgError) -> UpstreamError {
    match error.sqlstate() {
        Some(code::OBJECT_IN_USE) => {
            UpstreamError::SlotInUse { slot: slot.to_owned(), reason: error.to_string() }
        }
        _ => sorted(error),
    }
}

fn start_error(slot: &str, at: Lsn, error: PgError) -> UpstreamError {
    match error.is_wal_gone() {
        true => UpstreamError::WalRemoved { at, reason: error.to_string() },
        false => slot_error(slot, error),
    }
}

/// Once it streams, a missing file means that the server removed what it was about to send: connecting again finds out.
fn stream_error(error: PgError) -> UpstreamError {
    UpstreamError::Lost(error.to_string())
}
