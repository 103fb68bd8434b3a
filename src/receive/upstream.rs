//! The server as `receive` sees it: a few questions, a stream of WAL, a place for status messages.
//! A trait, so that simulations bring servers that crash, skip and lie; PostgreSQL's is in [`super::postgres`].

use super::machine::Acknowledged;
use crate::base::{Lsn, SegmentSize, SystemId, TimelineId, Timestamp};
use async_trait::async_trait;
use bytes::Bytes;
use std::fmt;

/// What the server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its system identifier.
    pub system_id: SystemId,
    /// Its major version.
    pub major_version: u32,
    /// Its timeline.
    pub timeline: TimelineId,
    /// How far its WAL is flushed.
    pub flushed: Lsn,
    /// Its WAL segment size.
    pub segment_size: SegmentSize,
    /// Its block size.
    pub block_size: u32,
}

/// The replication slot, there now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// From where on it holds WAL; none when it never reserved any, or lost it.
    pub restart: Option<Lsn>,
    /// Whether it was made just now: what came before may be gone.
    pub created: bool,
}

/// Where the next timeline begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextTimeline {
    /// Which.
    pub timeline: TimelineId,
    /// Where the old one ends.
    pub start: Lsn,
}

/// One message of the stream.
#[derive(Debug, Clone)]
pub enum Message {
    /// WAL.
    Wal {
        /// Its first byte.
        start: Lsn,
        /// The server's end of WAL.
        server_end: Lsn,
        /// The server's clock.
        server_time: Timestamp,
        /// The bytes.
        bytes: Bytes,
    },
    /// A sign of life.
    Keepalive {
        /// What the server has sent up to.
        server_end: Lsn,
        /// Its clock.
        server_time: Timestamp,
        /// Whether it wants a status message.
        reply_requested: bool,
    },
    /// The timeline ends here.
    EndOfTimeline(NextTimeline),
}

/// Why the server gave nothing, by what to do next.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// Connect again later.
    #[error("{0}")]
    Lost(String),
    /// The slot is another's now; it may be let go.
    #[error("replication slot {slot} is in use: {reason}")]
    SlotInUse {
        /// Which.
        slot: String,
        /// What the server said.
        reason: String,
    },
    /// The server no longer has that WAL.
    #[error("WAL at {at} is gone from the server: {reason}")]
    WalRemoved {
        /// From where it was asked for.
        at: Lsn,
        /// What the server said.
        reason: String,
    },
    /// The server's WAL ends before that position.
    #[error("the server's WAL ends before {at}: {reason}")]
    Ahead {
        /// From where it was asked for.
        at: Lsn,
        /// What the server said.
        reason: String,
    },
    /// It will not work without somebody mending something.
    #[error("{0}")]
    Refused(String),
}

/// Makes connections.
#[async_trait]
pub trait Connector: Send + Sync + fmt::Debug {
    /// Connects for replication.
    async fn connect(&self) -> Result<Box<dyn Server>, UpstreamError>;
}

/// A replication connection.
#[async_trait]
pub trait Server: Send {
    /// Who it is.
    async fn identify(&mut self) -> Result<Identity, UpstreamError>;

    /// The slot, made with its WAL reserved if it is not there.
    async fn ensure_slot(&mut self, slot: &str) -> Result<Slot, UpstreamError>;

    /// A timeline's history file.
    async fn history(&mut self, timeline: TimelineId) -> Result<Vec<u8>, UpstreamError>;

    /// Streams `timeline` from `start` on.
    async fn stream(
        self: Box<Self>,
        slot: &str,
        start: Lsn,
        timeline: TimelineId,
    ) -> Result<Started, UpstreamError>;
}

/// What became of asking for a stream.
pub enum Started {
    /// It streams.
    Streaming(Box<dyn Upstream>, Box<dyn StatusSink>),
    /// The timeline ends exactly there.
    EndOfTimeline(NextTimeline),
}

/// The stream.
#[async_trait]
pub trait Upstream: Send {
    /// The next message. Cancel-safe.
    async fn next(&mut self) -> Result<Message, UpstreamError>;
}

/// Where status messages go.
#[async_trait]
pub trait StatusSink: Send {
    /// Tells the server what is acknowledged.
    async fn report(&mut self, acknowledged: Acknowledged) -> Result<(), UpstreamError>;

    /// Ends the stream in good order.
    async fn close(&mut self) -> Result<(), UpstreamError>;
}
