//! Frames over a socket. The reader fills one large buffer and cuts messages out of it without copying; the writer keeps
//! what is not sent yet, so that dropping a call never tears a message.

use super::PgError;
use super::socket::Socket;
use crate::wire::frame::{Frame, Taken, take_frame};
use bytes::BytesMut;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

/// The read buffer of a connection that streams.
pub(super) const STREAM_BUFFER_BYTES: usize = 1 << 20;
/// The read buffer of one that does not.
pub(super) const SQL_BUFFER_BYTES: usize = 16 << 10;
/// A read is not begun with less room than this; what is left of the buffer is given up.
const READ_ROOM_BYTES_MIN: usize = 16 << 10;
/// A long message's room grows by at most this before the bytes are there.
const READ_ROOM_BYTES_MAX: usize = 8 << 20;
/// How long saying goodbye may take.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The receiving side.
#[derive(Debug)]
pub(super) struct FrameReader {
    half: ReadHalf<Socket>,
    buffer: BytesMut,
    buffer_bytes: usize,
    host: Arc<str>,
}

impl FrameReader {
    pub(super) fn new(half: ReadHalf<Socket>, buffer_bytes: usize, host: Arc<str>) -> Self {
        FrameReader { half, buffer: BytesMut::new(), buffer_bytes, host }
    }

    pub(super) fn host(&self) -> &Arc<str> {
        &self.host
    }

    /// The next message, of at most `body_bytes_max`. Cancel-safe: what was read stays in the buffer.
    #[inline]
    pub(super) async fn frame(&mut self, body_bytes_max: usize) -> Result<Frame, PgError> {
        loop {
            match take_frame(&mut self.buffer, body_bytes_max) {
                Ok(Taken::Frame(frame)) => return Ok(frame),
                Ok(Taken::Need(missing)) => self.fill(missing).await?,
                Err(error) => return Err(PgError::protocol(&self.host, error)),
            }
        }
    }

    async fn fill(&mut self, missing: usize) -> Result<(), PgError> {
        let room = self.buffer.capacity() - self.buffer.len();
        if room < missing.min(READ_ROOM_BYTES_MAX) || room < READ_ROOM_BYTES_MIN {
            self.buffer.reserve(missing.min(READ_ROOM_BYTES_MAX).max(self.buffer_bytes));
        }
        match self.half.read_buf(&mut self.buffer).await {
            Ok(0) => Err(PgError::closed(&self.host, "the server closed it")),
            Ok(_) => Ok(()),
            // PostgreSQL does not always say goodbye in TLS; frames have their own lengths, so nothing is cut unseen.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(PgError::closed(&self.host, "the server closed it"))
            }
            Err(error) => Err(PgError::closed(&self.host, error)),
        }
    }
}

/// The sending side.
#[derive(Debug)]
pub(super) struct FrameWriter {
    half: WriteHalf<Socket>,
    out: BytesMut,
    host: Arc<str>,
}

impl FrameWriter {
    pub(super) fn new(half: WriteHalf<Socket>, host: Arc<str>) -> Self {
        FrameWriter { half, out: BytesMut::new(), host }
    }

    /// Where whole messages are put; [`FrameWriter::flush`] sends them.
    pub(super) fn out(&mut self) -> &mut BytesMut {
        &mut self.out
    }

    /// Sends what was put. Cancel-safe: the rest is sent by the next call.
    pub(super) async fn flush(&mut self) -> Result<(), PgError> {
        while !self.out.is_empty() {
            match self.half.write_buf(&mut self.out).await {
                Ok(0) => return Err(PgError::closed(&self.host, "nothing can be sent")),
                Ok(_) => {}
                Err(error) => return Err(PgError::closed(&self.host, error)),
            }
        }
        self.half.flush().await.map_err(|error| PgError::closed(&self.host, error))
    }

    /// Sends what was put, then `message`, which is not copied into any buffer of ours.
    pub(super) async fn send_directly(&mut self, message: &[u8]) -> Result<(), PgError> {
        self.flush().await?;
        self.half.write_all(message).await.map_err(|error| PgError::closed(&self.host, error))?;
        self.half.flush().await.map_err(|error| PgError::closed(&self.host, error))
    }

    /// Says Terminate and shuts the sending side, within a second; whether the server heard it does not matter.
    pub(super) async fn close(&mut self) {
        postgres_protocol::message::frontend::terminate(&mut self.out);
        let goodbye = async {
            if self.flush().await.is_ok() {
                // The other side may be gone already.
                let _ = self.half.shutdown().await;
            }
        };
        if tokio::time::timeout(CLOSE_TIMEOUT, goodbye).await.is_err() {
            tracing::debug!(host = %self.host, "the server did not take our goodbye in time");
        }
    }
}
