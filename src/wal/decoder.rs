//! Records as values. For tools and targets, which look at every record of a stretch; the stream's way is the
//! [`Summarizer`](super::Summarizer).

use super::record::{BlockRef, Fragment, MainData, RecordHeader};
use super::scan::{DecodeFrom, RawRecord, Scanner, Sink};
use super::{WalError, WalVersion};
use crate::base::{Lsn, SegmentSize, SystemId, TimelineId};
use std::collections::VecDeque;

/// A record. Images and block data are not kept, nor the middle of very long main data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its first byte.
    pub start: Lsn,
    /// Where the next record could start, before any page header: PostgreSQL's EndRecPtr. A switch ends its segment.
    pub end: Lsn,
    /// The version that wrote it.
    pub version: WalVersion,
    /// Its header.
    pub header: RecordHeader,
    /// The blocks it changes.
    pub blocks: Vec<BlockRef>,
    /// The replication origin.
    pub origin: Option<u16>,
    /// The top-level transaction, where the record of a subtransaction names it.
    pub top_xid: Option<u32>,
    main_head: Vec<u8>,
    main_tail: Vec<u8>,
    main_len: u32,
}

impl Record {
    fn new(raw: &RawRecord<'_>) -> Result<Self, WalError> {
        let main = raw.main_data();
        let mut record = Record {
            start: raw.start,
            end: raw.end,
            version: raw.version,
            header: raw.header,
            blocks: Vec::new(),
            origin: None,
            top_xid: None,
            main_head: main.head.to_vec(),
            main_tail: main.tail.to_vec(),
            main_len: main.len,
        };
        for fragment in raw.fragments() {
            match fragment.map_err(|error| WalError::of(raw.start, error))? {
                Fragment::Block(block) => record.blocks.push(block),
                Fragment::Origin(origin) => record.origin = Some(origin),
                Fragment::TopXid(xid) => record.top_xid = Some(xid),
                Fragment::Main(_) => {}
            }
        }
        Ok(record)
    }

    /// Its main data.
    pub fn main_data(&self) -> MainData<'_> {
        MainData { head: &self.main_head, tail: &self.main_tail, len: self.main_len }
    }
}

/// Decodes WAL fed in LSN order, in pieces of any size. Holds the records of what was fed and not yet taken: feed
/// pieces of at most a few MiB, and take between them.
#[derive(Debug)]
pub struct Decoder {
    scanner: Scanner,
    queue: Queue,
}

#[derive(Debug, Default)]
struct Queue(VecDeque<Result<Record, WalError>>);

impl Sink for Queue {
    fn begins(&mut self, _start: Lsn) {}

    fn record(&mut self, record: &RawRecord<'_>) {
        self.0.push_back(Record::new(record));
    }

    fn unread(&mut self, error: WalError) {
        self.0.push_back(Err(error));
    }
}

impl Decoder {
    /// A decoder whose next byte is at `start`.
    pub fn new(segment_size: SegmentSize, start: Lsn, from: DecodeFrom) -> Self {
        Decoder { scanner: Scanner::new(segment_size, start, from), queue: Queue::default() }
    }

    /// Reads `bytes`, the first of which is at `at`. Bytes read before are passed over; a jump forward is an error
    /// to take, and reading begins anew.
    pub fn feed(&mut self, at: Lsn, bytes: &[u8]) {
        self.scanner.feed(at, bytes, &mut self.queue);
    }

    /// The next record; `None` when more bytes are needed. After an error the records go on behind the damage.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Record>, WalError> {
        self.queue.0.pop_front().transpose()
    }

    /// Position of the next byte to feed.
    pub fn position(&self) -> Lsn {
        self.scanner.position()
    }

    /// The version, once a page was seen.
    pub fn version(&self) -> Option<WalVersion> {
        self.scanner.version()
    }

    /// The timeline of the last page.
    pub fn timeline(&self) -> Option<TimelineId> {
        self.scanner.timeline()
    }

    /// The cluster, once the first page of a segment was seen.
    pub fn system_id(&self) -> Option<SystemId> {
        self.scanner.system_id()
    }
}
