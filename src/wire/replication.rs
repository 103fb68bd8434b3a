//! What flows inside CopyBoth of physical replication: `w` WAL, `k` keepalive, and our `r` status update
//! (`protocol-replication.html`, "Streaming Replication Protocol"). Hot standby feedback is never sent.

use super::WireError;
use crate::base::{Lsn, Timestamp};
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// A message of the walsender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicationMessage {
    /// WAL.
    Wal {
        /// Where `data` begins.
        start: Lsn,
        /// The server's end of WAL.
        server_end: Lsn,
        /// The server's clock.
        server_time: Timestamp,
        /// The bytes; cut by the server at page boundaries.
        data: Bytes,
    },
    /// A sign of life.
    Keepalive {
        /// The server's end of WAL: what it has sent so far.
        server_end: Lsn,
        /// The server's clock.
        server_time: Timestamp,
        /// The server wants a status update now, or it may end the connection.
        reply_requested: bool,
    },
}

const WAL_HEADER_BYTES: usize = 25;

impl ReplicationMessage {
    /// Decodes the body of one CopyData, without copying WAL.
    #[inline]
    pub fn decode(mut body: Bytes) -> Result<Self, WireError> {
        match body.first() {
            Some(b'w') if body.len() >= WAL_HEADER_BYTES => {
                body.advance(1);
                let start = Lsn::new(body.get_u64());
                let server_end = Lsn::new(body.get_u64());
                let server_time = Timestamp::from_micros(body.get_i64());
                if start.checked_add(body.len() as u64).is_none() {
                    let reason = format!("{} bytes at {start} end past the last position", body.len());
                    return Err(WireError::malformed("WAL message", reason));
                }
                Ok(ReplicationMessage::Wal { start, server_end, server_time, data: body })
            }
            Some(b'k') if body.len() == 18 => {
                body.advance(1);
                let server_end = Lsn::new(body.get_u64());
                let server_time = Timestamp::from_micros(body.get_i64());
                Ok(ReplicationMessage::Keepalive {
                    server_end,
                    server_time,
                    reply_requested: body.get_u8() != 0,
                })
            }
            first => {
                let kind = first.map(|byte| char::from(*byte));
                Err(WireError::malformed(
                    "replication message",
                    format!("type {kind:?} of {} bytes", body.len()),
                ))
            }
        }
    }
}

/// What we tell the walsender about our progress. Nothing here is ever past what is durable as configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusUpdate {
    /// Received and written: what `remote_write` waits for.
    pub write: Lsn,
    /// Durable: what the slot may forget, and what `on` waits for.
    pub flush: Lsn,
    /// Applied; walden applies nothing and leaves it at `0/0`.
    pub apply: Lsn,
    /// Our clock.
    pub clock: Timestamp,
    /// The server is to answer at once.
    pub reply_requested: bool,
}

impl StatusUpdate {
    /// Appends the update as one CopyData.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u8(b'd');
        out.put_u32(4 + 34);
        out.put_u8(b'r');
        out.put_u64(self.write.get());
        out.put_u64(self.flush.get());
        out.put_u64(self.apply.get());
        out.put_i64(self.clock.micros());
        out.put_u8(u8::from(self.reply_requested));
    }
}

/// Where an old timeline's stream ended and the next begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextTimeline {
    /// The next timeline.
    pub timeline: crate::base::TimelineId,
    /// Where it branched off; may lie before what was received (half a record).
    pub start: Lsn,
}

impl NextTimeline {
    /// Reads the row that follows the end of a timeline: `next_tli`, `next_tli_startpos`.
    pub fn from_row(row: &super::Row) -> Result<Self, WireError> {
        let timeline = row.parse::<u32>("next_tli")?;
        let start = row.parse::<Lsn>("next_tli_startpos")?;
        if timeline == 0 {
            return Err(WireError::malformed("next_tli", "timeline 0"));
        }
        Ok(NextTimeline { timeline: crate::base::TimelineId(timeline), start })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wal(start: u64, data: &[u8]) -> Bytes {
        let mut body = BytesMut::new();
        body.put_u8(b'w');
        body.put_u64(start);
        body.put_u64(0x2000);
        body.put_i64(7);
        body.put_slice(data);
        body.freeze()
    }

    #[test]
    fn reads_wal_without_copying() {
        let body = wal(0x1000, b"abc");
        let at = body.as_ptr().wrapping_add(25);
        let ReplicationMessage::Wal { start, server_end, server_time, data } =
            ReplicationMessage::decode(body).unwrap()
        else {
            panic!("WAL")
        };
        assert_eq!((start, server_end, server_time.micros()), (Lsn::new(0x1000), Lsn::new(0x2000), 7));
        assert_eq!((&data[..], data.as_ptr()), (&b"abc"[..], at));
    }

    #[test]
    fn reads_keepalives() {
        let body = Bytes::from_static(b"k\0\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\x01\x01");
        assert_eq!(
            ReplicationMessage::decode(body).unwrap(),
            ReplicationMessage::Keepalive {
                server_end: Lsn::new(16),
                server_time: Timestamp::from_micros(1),
                reply_requested: true
            }
        );
    }

    #[test]
    fn refuses_what_is_not_a_replication_message() {
        for body in [&b""[..], b"w", b"k\0", b"x123", b"k\0\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\x01\x01\x01"] {
            assert!(ReplicationMessage::decode(Bytes::from_static(body)).is_err(), "{body:?}");
        }
        assert!(ReplicationMessage::decode(wal(u64::MAX - 1, b"abc")).is_err());
    }

    #[test]
    fn status_is_one_copy_data_of_34_bytes() {
        let mut out = BytesMut::new();
        let status = StatusUpdate {
            write: Lsn::new(3),
            flush: Lsn::new(2),
            apply: Lsn::ZERO,
            clock: Timestamp::from_micros(9),
            reply_requested: true,
        };
        status.encode(&mut out);
        assert_eq!(out.len(), 39);
        assert_eq!(&out[..6], b"d\0\0\0\x26r");
        assert_eq!((out[13], out[21], out[29], out[37], out[38]), (3, 2, 0, 9, 1));
    }

    proptest! {
        #[test]
        fn hostile_bodies_are_errors_not_panics(kind in prop::sample::select(b"wk\0r".to_vec()), tail in prop::collection::vec(any::<u8>(), 0..60)) {
            let mut body = vec![kind];
            body.extend(&tail);
            let _ = ReplicationMessage::decode(Bytes::from(body));
        }
    }
}
