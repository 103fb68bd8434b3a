//! Physical streaming: CopyBoth after START_REPLICATION, reader and writer owned apart.
//!
//! The writer sends status from a task of its own, so that no upload ever delays it. When an old timeline is streamed to its
//! end, the reader answers CopyDone itself and reads on to the idle state; then both parts make a [`Connection`] again.

use super::PgError;
use super::connection::{Connection, ServerFacts};
use super::frames::{CLOSE_TIMEOUT, FrameReader, FrameWriter};
use crate::base::{Lsn, TimelineId, Timestamp};
use crate::wire::command;
use crate::wire::message::{COPY_DATA, RowGatherer};
use crate::wire::{Message, ReplicationMessage, limits};
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::Mutex;

pub use crate::wire::replication::{NextTimeline, StatusUpdate};

/// What START_REPLICATION led to.
#[derive(Debug)]
pub enum StartReplication {
    /// WAL flows.
    Streaming(ReplicationStream),
    /// The position asked for is exactly the timeline's end: nothing to stream, the connection is idle again.
    EndOfTimeline(Connection, NextTimeline),
}

/// What the server streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicationEvent {
    /// WAL, in order and without holes on one timeline.
    Wal {
        /// Where `data` begins.
        start: Lsn,
        /// The server's end of WAL when it sent this.
        server_end: Lsn,
        /// The server's clock.
        server_time: Timestamp,
        /// The bytes: a slice of the read buffer, which lives as long as any slice of it (1 MiB).
        data: Bytes,
    },
    /// A sign of life.
    Keepalive {
        /// The server's end of WAL.
        server_end: Lsn,
        /// The server's clock.
        server_time: Timestamp,
        /// A status update is wanted now.
        reply_requested: bool,
    },
    /// The timeline ends here; [`ReplicationStream::unite`] gives the connection back.
    EndOfTimeline(NextTimeline),
    /// The server ends the stream because it shuts down; everything it had was sent.
    End,
}

/// A running stream.
#[derive(Debug)]
pub struct ReplicationStream {
    reader: ReplicationReader,
    writer: ReplicationWriter,
}

/// The receiving side of a stream.
#[derive(Debug)]
pub struct ReplicationReader {
    frames: FrameReader,
    shared: Arc<Shared>,
    facts: ServerFacts,
    state: State,
}

/// The sending side of a stream; clones send through the same socket.
#[derive(Debug, Clone)]
pub struct ReplicationWriter {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    sending: Mutex<Sending>,
}

#[derive(Debug)]
struct Sending {
    frames: FrameWriter,
    copy_done: bool,
}

#[derive(Debug)]
enum State {
    Streaming,
    /// The server said CopyDone, our own is not sent yet.
    Answering,
    /// Reading what follows both CopyDones.
    Draining {
        rows: RowGatherer,
        next: Option<NextTimeline>,
    },
    /// ReadyForQuery was read.
    Idle,
    /// The server shuts down, or the stream broke.
    Ended,
}

impl Connection {
    /// Starts streaming WAL from `start` on `timeline`. On an error the connection is gone; connect anew.
    pub async fn start_physical(
        mut self,
        slot: Option<&str>,
        start: Lsn,
        timeline: TimelineId,
    ) -> Result<StartReplication, PgError> {
        if !self.identified {
            self.identify_system().await?;
        }
        self.send_command(&command::start_physical(slot, start, timeline)).await?;
        let (mut rows, mut next) = (RowGatherer::default(), None);
        loop {
            match self.message(limits::SQL_MESSAGE_BYTES_MAX).await? {
                Message::CopyBoth => return Ok(StartReplication::Streaming(ReplicationStream::new(self))),
                Message::Error(error) => return Err(PgError::Server(Box::new(error))),
                Message::ReadyForQuery(_) => {
                    self.busy = false;
                    let Some(next) = next else {
                        return Err(
                            self.unexpected(&Message::CopyDone, "CopyBothResponse or the next timeline")
                        );
                    };
                    return Ok(StartReplication::EndOfTimeline(self, next));
                }
                message => match gather_next(&mut rows, &mut next, message) {
                    Ok(None) => {}
                    Ok(Some(other)) => return Err(self.unexpected(&other, "CopyBothResponse")),
                    Err(error) => return Err(self.facts.protocol(error)),
                },
            }
        }
    }
}

/// Takes in the row that names the next timeline and the CommandCompletes around it; gives back anything else.
fn gather_next(
    rows: &mut RowGatherer,
    next: &mut Option<NextTimeline>,
    message: Message,
) -> Result<Option<Message>, crate::wire::WireError> {
    match message {
        Message::RowDescription(columns) => rows.describe(columns),
        Message::DataRow(values) => {
            rows.push(values)?;
            if let Some(row) = rows.take().first() {
                *next = Some(NextTimeline::from_row(row)?);
            }
        }
        Message::CommandComplete(_) => {}
        other => return Ok(Some(other)),
    }
    Ok(None)
}

impl ReplicationStream {
    fn new(connection: Connection) -> Self {
        let Connection { reader, writer, facts, .. } = connection;
        let shared = Arc::new(Shared { sending: Mutex::new(Sending { frames: writer, copy_done: false }) });
        ReplicationStream {
            writer: ReplicationWriter { shared: shared.clone() },
            reader: ReplicationReader { frames: reader, shared, facts, state: State::Streaming },
        }
    }

    /// The two sides, for two tasks.
    pub fn split(self) -> (ReplicationReader, ReplicationWriter) {
        (self.reader, self.writer)
    }

    /// The connection again, after [`ReplicationEvent::EndOfTimeline`]. Every clone of the writer must be gone.
    pub fn unite(reader: ReplicationReader, writer: ReplicationWriter) -> Result<Connection, PgError> {
        let ReplicationReader { frames, shared, facts, state } = reader;
        if !matches!(state, State::Idle) || !Arc::ptr_eq(&shared, &writer.shared) {
            return Err(PgError::closed(&facts.host, "the stream has not come to the end of its timeline"));
        }
        drop(writer);
        match Arc::try_unwrap(shared) {
            Ok(shared) => {
                let writer = shared.sending.into_inner().frames;
                Ok(Connection { reader: frames, writer, facts, busy: false, identified: true })
            }
            Err(_) => Err(PgError::closed(&facts.host, "another task still holds its writer")),
        }
    }
}

impl ReplicationReader {
    /// The next event. Cancel-safe: a dropped call loses nothing. After an error, `End` or `EndOfTimeline` there is no more.
    #[inline]
    pub async fn next(&mut self) -> Result<ReplicationEvent, PgError> {
        loop {
            match &mut self.state {
                State::Streaming => {
                    let frame = self.frames.frame(limits::COPY_MESSAGE_BYTES_MAX).await?;
                    if frame.tag() == COPY_DATA {
                        return match ReplicationMessage::decode(frame.into_body()) {
                            Ok(message) => Ok(message.into()),
                            Err(error) => {
                                self.state = State::Ended;
                                Err(self.facts.protocol(error))
                            }
                        };
                    }
                    let message = Message::decode(frame).map_err(|error| self.facts.protocol(error))?;
                    match self.facts.absorb(message) {
                        None => {}
                        Some(Message::CopyDone) => self.state = State::Answering,
                        // A walsender that shuts down says that its command is complete, without CopyDone.
                        Some(Message::CommandComplete(_)) => {
                            self.state = State::Ended;
                            return Ok(ReplicationEvent::End);
                        }
                        Some(Message::Error(error)) => {
                            self.state = State::Ended;
                            return Err(PgError::Server(Box::new(error)));
                        }
                        Some(other) => {
                            self.state = State::Ended;
                            return Err(self.facts.protocol(other.unexpected("CopyData")));
                        }
                    }
                }
                State::Answering => {
                    self.shared.finish().await?;
                    self.state = State::Draining { rows: RowGatherer::default(), next: None };
                }
                State::Draining { rows, next } => {
                    let frame = self.frames.frame(limits::SQL_MESSAGE_BYTES_MAX).await?;
                    let message = Message::decode(frame).map_err(|error| self.facts.protocol(error))?;
                    let Some(message) = self.facts.absorb(message) else { continue };
                    match gather_next(rows, next, message).map_err(|error| self.facts.protocol(error))? {
                        None => {}
                        // Sent before the server saw our CopyDone.
                        Some(Message::CopyData(_)) => {}
                        Some(Message::ReadyForQuery(_)) => {
                            let event = next.map_or(ReplicationEvent::End, ReplicationEvent::EndOfTimeline);
                            self.state = State::Idle;
                            return Ok(event);
                        }
                        Some(Message::Error(error)) => {
                            self.state = State::Ended;
                            return Err(PgError::Server(Box::new(error)));
                        }
                        Some(other) => {
                            self.state = State::Ended;
                            return Err(self.facts.protocol(other.unexpected("the next timeline")));
                        }
                    }
                }
                State::Idle | State::Ended => {
                    return Err(PgError::closed(&self.facts.host, "the stream is over"));
                }
            }
        }
    }

    /// Where the stream comes from, for messages.
    pub fn host(&self) -> &str {
        self.frames.host()
    }
}

impl From<ReplicationMessage> for ReplicationEvent {
    #[inline]
    fn from(message: ReplicationMessage) -> Self {
        match message {
            ReplicationMessage::Wal { start, server_end, server_time, data } => {
                ReplicationEvent::Wal { start, server_end, server_time, data }
            }
            ReplicationMessage::Keepalive { server_end, server_time, reply_requested } => {
                ReplicationEvent::Keepalive { server_end, server_time, reply_requested }
            }
        }
    }
}

impl Shared {
    /// Sends our CopyDone once; nothing may follow it. Cancel-safe.
    async fn finish(&self) -> Result<(), PgError> {
        let mut sending = self.sending.lock().await;
        if !sending.copy_done {
            sending.copy_done = true;
            postgres_protocol::message::frontend::copy_done(sending.frames.out());
        }
        sending.frames.flush().await
    }
}

impl ReplicationWriter {
    /// Sends a status update. If dropped: it was not sent, or is sent whole, now or by the next call.
    /// After the end of the timeline there is nobody to tell, and it does nothing.
    pub async fn status(&self, update: StatusUpdate) -> Result<(), PgError> {
        let mut sending = self.shared.sending.lock().await;
        // A rest of an earlier, dropped call goes first, so that nothing piles up.
        sending.frames.flush().await?;
        if sending.copy_done {
            return Ok(());
        }
        update.encode(sending.frames.out());
        sending.frames.flush().await
    }

    /// Says goodbye, within two seconds; dropping the reader then closes the socket. For a primary that shuts down and must not wait for a tail that does not
    /// become durable. The slot keeps the WAL.
    pub async fn close(self) {
        // A status update that the server does not take may hold the lock for as long as the connection lives.
        let locked = tokio::time::timeout(CLOSE_TIMEOUT, self.shared.sending.lock()).await;
        if let Ok(mut sending) = locked {
            sending.copy_done = true;
            sending.frames.close().await;
        }
    }
}
