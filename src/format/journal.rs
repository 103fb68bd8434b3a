//! What the frames of a local journal file say. Spec: formats/journal.md.
//! The file's header is that of every object; its frames are numbered from 0 and have no directory, since the file has no end.

use super::bytes::{FormatError, Reader};
use super::frame::{FRAME_HEAD_BYTES, TAG_BYTES};
use super::header::HEADER_BYTES;
use super::record::{Field, Record, code, record};
use crate::base::{ClusterName, Generation, Lsn, ObjectKey, TimelineId, Timestamp};

/// The record head's length in bytes.
pub const JOURNAL_HEAD_BYTES: usize = 29;
/// The length in bytes of the body of the first frame.
pub const JOURNAL_BEGIN_BODY_BYTES: usize = 20;
/// Where the second frame of a journal file begins: header and first frame are written and synced before anything else.
pub const JOURNAL_BEGIN_BYTES: usize =
    HEADER_BYTES + FRAME_HEAD_BYTES + JOURNAL_HEAD_BYTES + JOURNAL_BEGIN_BODY_BYTES + TAG_BYTES;

code! {
    /// What a journal frame is.
    pub enum JournalFrameKind {
        /// The first frame of a file: its body is a `JournalBegin`.
        Begin = 1,
        /// WAL, as received.
        Wal = 2,
        /// Nothing but `synced_len`: the file was left in order.
        Mark = 3,
    }
}

record! {
    /// The first bytes of a journal frame's plaintext.
    pub struct JournalHead {
        /// What follows.
        pub kind: JournalFrameKind,
        /// The timeline of the WAL; of the journal's end in other kinds.
        pub timeline: TimelineId,
        /// The position of the first byte of WAL; the journal's end in other kinds.
        pub start: Lsn,
        /// The server's clock when it sent the last of the WAL; 0 in other kinds.
        pub server_time: Timestamp,
        /// Bytes of this file that were durable when the frame was sealed: a break before them is damage, not a torn tail.
        pub synced_len: u64,
    }
}

record! {
    /// What a file is begun with.
    pub struct JournalBegin {
        /// The generation of the cluster that all of its WAL comes from.
        pub generation: Generation,
        /// The file before.
        pub previous: JournalPrevious,
    }
}

record! {
    /// The file before, and how much of it was durable when this file was begun. What it holds past `len` counts as far
    /// as it is whole; this file may repeat it.
    pub struct JournalPrevious {
        /// Its number; 0 when there is none.
        pub number: u64,
        /// Its bytes that were durable: a break in them is damage.
        pub len: u64,
    }
}

/// The opened plaintext of a journal frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalFrame<'a> {
    /// Its head.
    pub head: JournalHead,
    /// WAL, a `JournalBegin`, or nothing.
    pub body: &'a [u8],
}

impl<'a> JournalFrame<'a> {
    /// Reads a plaintext. Refuses WAL that runs past the end of 64 bits, and a body where there is none.
    pub fn decode(plain: &'a [u8]) -> Result<Self, FormatError> {
        let mut from = Reader::new("journal frame", plain);
        let head = JournalHead::get(&mut from)?;
        let before = from.clone();
        let body = from.take(from.remaining())?;
        match head.kind {
            JournalFrameKind::Wal if head.start.checked_add(body.len() as u64).is_none() => {
                Err(before.error(format!("{} bytes at {}", body.len(), head.start), "WAL within 64 bits"))
            }
            JournalFrameKind::Begin if body.len() != JOURNAL_BEGIN_BODY_BYTES => {
                Err(before.error(format!("{} bytes", body.len()), "generation and previous file"))
            }
            JournalFrameKind::Mark if !body.is_empty() => {
                Err(before.error(format!("{} bytes", body.len()), "nothing after a mark"))
            }
            _ => Ok(JournalFrame { head, body }),
        }
    }

    /// What the file was begun with, in the first frame.
    pub fn begin(&self) -> Result<JournalBegin, FormatError> {
        JournalBegin::decode(self.body)
    }
}

/// The name that places journal file `number` of `cluster`, as an object's key would. It is in no store.
pub fn journal_place(cluster: &ClusterName, number: u64) -> ObjectKey {
    match ObjectKey::new(format!("journal/{cluster}/{number:020}")) {
        Some(key) => key,
        None => unreachable!("a cluster's name has only safe characters"),
    }
}

/// The file name of journal file `number`.
pub fn journal_file_name(number: u64) -> String {
    format!("{number:020}.journal")
}

/// The number of a journal file by its name; `None` for anything else.
pub fn journal_file_number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".journal")?;
    let sane = digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit());
    if sane { digits.parse().ok().filter(|number| *number > 0) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_as_the_spec_says() {
        let head = JournalHead {
            kind: JournalFrameKind::Begin,
            timeline: TimelineId(1),
            start: Lsn::new(2),
            server_time: Timestamp::from_micros(3),
            synced_len: 4,
        };
        assert_eq!(head.encode().len(), JOURNAL_HEAD_BYTES);
        let begin =
            JournalBegin { generation: Generation(1), previous: JournalPrevious { number: 1, len: 2 } };
        assert_eq!(begin.encode().len(), JOURNAL_BEGIN_BODY_BYTES);
        assert_eq!(JOURNAL_BEGIN_BYTES, 241);
    }

    #[test]
    fn file_names_are_their_numbers() {
        assert_eq!(journal_file_number(&journal_file_name(7)), Some(7));
        for bad in [
            "7.journal",
            "00000000000000000000.journal",
            "00000000000000000007",
            "0000000000000000000x.journal",
        ] {
            assert_eq!(journal_file_number(bad), None, "{bad}");
        }
    }

    #[test]
    fn refuses_bodies_that_no_kind_has() {
        let head = |kind, start| JournalHead {
            kind,
            timeline: TimelineId(1),
            start: Lsn::new(start),
            server_time: Timestamp::from_micros(0),
            synced_len: 0,
        };
        let frame = |head: JournalHead, body: &[u8]| [head.encode(), body.to_vec()].concat();
        assert!(JournalFrame::decode(&frame(head(JournalFrameKind::Wal, 5), b"wal")).is_ok());
        assert!(JournalFrame::decode(&frame(head(JournalFrameKind::Wal, u64::MAX - 1), b"wal")).is_err());
        assert!(JournalFrame::decode(&frame(head(JournalFrameKind::Mark, 5), b"x")).is_err());
        assert!(JournalFrame::decode(&frame(head(JournalFrameKind::Begin, 5), b"x")).is_err());
        assert!(JournalFrame::decode(&[9; 29]).is_err());
    }
}
