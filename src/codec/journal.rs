//! Sealing and opening the frames of a local journal file. Spec: formats/journal.md.
//! No IO. A sealer belongs to one file and its salt; its counter only goes up, and a file that was opened again has none.

use super::read::{Expect, ObjectReader, OpenError};
use super::seal::{EpochSecret, KeySource, ObjectKeys};
use crate::base::Generation;
use crate::format::frame::{Codec, FRAME_HEAD_BYTES, FrameHead, FrameKind, TAG_BYTES};
use crate::format::header::{HEADER_BYTES, ObjectHeader};
use crate::format::journal::{
    JOURNAL_BEGIN_BYTES, JOURNAL_HEAD_BYTES, JournalBegin, JournalFrame, JournalHead, JournalPrevious,
};
use crate::format::record::Record;
use bytes::Bytes;

const BODY_AT: usize = FRAME_HEAD_BYTES + JOURNAL_HEAD_BYTES;

/// A frame being filled, with room for its heads in front.
#[derive(Debug)]
pub struct JournalBuffer {
    bytes: Vec<u8>,
}

impl JournalBuffer {
    /// An empty one with room for `body_bytes`.
    pub fn new(body_bytes: usize) -> Self {
        let mut bytes = Vec::with_capacity(BODY_AT + body_bytes + TAG_BYTES);
        bytes.resize(BODY_AT, 0);
        JournalBuffer { bytes }
    }

    /// Appends to the body.
    pub fn push(&mut self, body: &[u8]) {
        self.bytes.extend_from_slice(body);
    }

    /// Bytes of the body.
    pub fn len(&self) -> usize {
        self.bytes.len() - BODY_AT
    }

    /// Whether the body is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Seals the frames of one journal file.
pub struct JournalSealer {
    keys: ObjectKeys,
    frames: u64,
    len: u64,
}

impl std::fmt::Debug for JournalSealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JournalSealer")
            .field("frames", &self.frames)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl JournalSealer {
    /// Begins a file: its header and first frame. `header.salt` is fresh, `begin` of kind `Begin`.
    pub fn create(
        secret: &EpochSecret,
        header: &ObjectHeader,
        begin: &JournalHead,
        begun_with: &JournalBegin,
    ) -> (Self, Bytes) {
        let keys = ObjectKeys::create(secret, header);
        let mut bytes = keys.header_bytes().to_vec();
        let mut sealer = JournalSealer { keys, frames: 0, len: bytes.len() as u64 };
        let mut body = JournalBuffer::new(0);
        body.push(&begun_with.encode());
        bytes.extend_from_slice(&sealer.seal(begin, body));
        assert!(bytes.len() == JOURNAL_BEGIN_BYTES, "journal layout");
        (sealer, Bytes::from(bytes))
    }

    /// The next frame as stored.
    pub fn seal(&mut self, head: &JournalHead, buffer: JournalBuffer) -> Bytes {
        let mut bytes = buffer.bytes;
        let plain_len = (bytes.len() - FRAME_HEAD_BYTES) as u32;
        let sealed_len = plain_len + TAG_BYTES as u32;
        let frame = FrameHead { sealed_len, plain_len, kind: FrameKind::Data, codec: Codec::Raw };
        bytes[FRAME_HEAD_BYTES..BODY_AT].copy_from_slice(&head.encode());
        let tag = self.keys.seal_slice(self.frames, &frame, &mut bytes[FRAME_HEAD_BYTES..]);
        bytes.extend_from_slice(&tag);
        let stored_head = frame.encode(&bytes[FRAME_HEAD_BYTES..]);
        bytes[..FRAME_HEAD_BYTES].copy_from_slice(&stored_head);
        self.frames += 1;
        self.len += bytes.len() as u64;
        Bytes::from(bytes)
    }

    /// Bytes of the file once everything sealed is appended.
    pub fn file_len(&self) -> u64 {
        self.len
    }
}

/// Opens the frames of one journal file.
#[derive(Debug)]
pub struct JournalOpener {
    reader: ObjectReader,
    begin: JournalHead,
    begun_with: JournalBegin,
}

impl JournalOpener {
    /// Opens the first [`JOURNAL_BEGIN_BYTES`] of a file.
    pub fn open(bytes: &[u8], keys: &dyn KeySource, expect: &Expect<'_>) -> Result<Self, OpenError> {
        let reader = ObjectReader::open(bytes, keys, expect)?;
        let plain = reader.frame(0, FrameKind::Data, bytes.get(HEADER_BYTES..).unwrap_or_default())?;
        let frame = JournalFrame::decode(&plain)?;
        let begun_with = frame.begin()?;
        Ok(JournalOpener { reader, begin: frame.head, begun_with })
    }

    /// The header.
    pub fn header(&self) -> &ObjectHeader {
        self.reader.header()
    }

    /// The first frame's head: where the journal stood when the file was begun.
    pub fn begin(&self) -> &JournalHead {
        &self.begin
    }

    /// The file before, and how much of it was durable.
    pub fn previous(&self) -> &JournalPrevious {
        &self.begun_with.previous
    }

    /// The generation of the cluster that the file's WAL comes from.
    pub fn generation(&self) -> Generation {
        self.begun_with.generation
    }

    /// The plaintext of frame `number`, which stands at the start of `bytes`; [`JournalFrame::decode`] reads it.
    pub fn frame(&self, number: u64, bytes: &[u8]) -> Result<Vec<u8>, OpenError> {
        self.reader.frame(number, FrameKind::Data, bytes)
    }
}

#[cfg(test)]
mod tests;
