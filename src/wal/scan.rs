//! Finding records in a run of WAL bytes: page headers, continuations over pages and segments, overwritten
//! continuations, switches, timelines. Fed in LSN order in pieces of any size; the outcome does not depend on the pieces.
//!
//! Invariant: every record handed to the sink has the right checksum and, when the one before is known, links to it.
//! After damage the scanner reads on at the next page that starts a record.

#![deny(clippy::indexing_slicing)]

use super::gather::{Gather, main_offset};
use super::page::{LONG_HEADER_BYTES, LongHeader, PAGE_BYTES, PageHeader, PageStart};
use super::record::{Fragments, MainData, RECORD_HEADER_BYTES, RecordHeader, record_crc};
use super::{WalError, WalVersion};
use crate::base::{Lsn, SegmentSize, SystemId, TimelineId};

/// What the first byte fed is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeFrom {
    /// The first byte of a record, or of the header of a page that starts with one.
    RecordStart(WalVersion),
    /// Anything: reading begins at the next page that starts a record. What ends before goes unread, and is counted.
    Anywhere,
}

/// A record as it lies in the WAL.
#[derive(Debug, Clone, Copy)]
pub struct RawRecord<'a> {
    /// Its first byte.
    pub start: Lsn,
    /// Where the next record could start, before any page header: PostgreSQL's EndRecPtr. A switch ends its segment.
    pub end: Lsn,
    /// The version that wrote it.
    pub version: WalVersion,
    /// Its header.
    pub header: RecordHeader,
    head: &'a [u8],
    long_main: Option<MainData<'a>>,
}

impl<'a> RawRecord<'a> {
    /// Block references and other headers.
    pub fn fragments(&self) -> Fragments<'a> {
        let body = self.head.get(RECORD_HEADER_BYTES..).unwrap_or(&[]);
        Fragments::new(self.version, self.header.total_len, body)
    }

    /// The main data; empty when the fragments do not parse.
    pub fn main_data(&self) -> MainData<'a> {
        self.long_main.unwrap_or_else(|| {
            let start = main_offset(self.version, self.header.total_len, self.head) as usize;
            MainData::whole(self.head.get(start..).unwrap_or(&[]))
        })
    }
}

/// What a scan is for.
pub trait Sink {
    /// The first byte of a record was at `start`.
    fn begins(&mut self, start: Lsn);
    /// The last byte of a record was read.
    fn record(&mut self, record: &RawRecord<'_>);
    /// Something was not read: damage, or the end of a record whose beginning was not seen.
    fn unread(&mut self, error: WalError);
}

/// Where in its structure the next byte lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// A record starts here.
    Ready,
    /// Inside a record, being gathered.
    Record,
    /// The end of a record that is not gathered, then `Ready`. `told`: the sink knows already.
    Skip { left: usize, told: bool },
    /// Zeros up to the next multiple of 8.
    Padding { left: usize },
    /// A page inside a record that is not gathered; a later page says where it ends.
    SkipPage { told: bool },
    /// Nothing here can be read; the next page may start a record.
    Seek { told: bool },
    /// After a switch: zeros up to the end of the segment.
    Switched,
}

/// A state machine over WAL bytes.
#[derive(Debug, Clone)]
pub struct Scanner {
    segment_size: SegmentSize,
    /// Position of the next byte.
    at: Lsn,
    mode: Mode,
    page_header: [u8; LONG_HEADER_BYTES],
    page_header_got: usize,
    gather: Gather,
    /// Start of the last record, when nothing was lost since.
    prev: Option<Lsn>,
    version: Option<WalVersion>,
    timeline: Option<TimelineId>,
    system_id: Option<SystemId>,
}

impl Scanner {
    /// A scanner whose next byte is at `start`.
    pub fn new(segment_size: SegmentSize, start: Lsn, from: DecodeFrom) -> Self {
        let (mode, version) = match from {
            DecodeFrom::RecordStart(version) => (Mode::Ready, Some(version)),
            DecodeFrom::Anywhere => (Mode::Seek { told: false }, None),
        };
        Scanner {
            segment_size,
            at: start,
            mode,
            page_header: [0; LONG_HEADER_BYTES],
            page_header_got: 0,
            gather: Gather::default(),
            prev: None,
            version,
            timeline: None,
            system_id: None,
        }
    }

    /// Position of the next byte.
    pub fn position(&self) -> Lsn {
        self.at
    }

    /// The version, once a page was seen.
    pub fn version(&self) -> Option<WalVersion> {
        self.version
    }

    /// The timeline of the last page header.
    pub fn timeline(&self) -> Option<TimelineId> {
        self.timeline
    }

    /// The cluster, once the first page of a segment was seen.
    pub fn system_id(&self) -> Option<SystemId> {
        self.system_id
    }

    /// Bytes held of a record that is not complete.
    #[cfg(test)]
    pub(super) fn gathered_bytes(&self) -> usize {
        self.gather.held_bytes()
    }

    /// Reads `bytes`, the first of which is at `at`. Bytes before [`position`](Self::position) were read before and are
    /// passed over; after a jump forward reading begins anew.
    pub fn feed(&mut self, at: Lsn, bytes: &[u8], sink: &mut impl Sink) {
        if at > self.at {
            self.damaged(WalError::new(self.at, "next WAL byte", format!("at {at}"), "here"), sink);
            self.at = at;
            self.page_header_got = 0;
        }
        let known = self.at.bytes_since(at);
        let mut rest = usize::try_from(known).ok().and_then(|known| bytes.get(known..)).unwrap_or(&[]);
        while !rest.is_empty() {
            let in_page = (self.at.get() % PAGE_BYTES as u64) as usize;
            let used = if self.mode == Mode::Switched {
                self.pass_segment(rest.len())
            } else if in_page == 0 || self.page_header_got > 0 {
                self.take_page_header(rest, sink)
            } else {
                let room = (PAGE_BYTES - in_page).min(rest.len());
                let used = self.take_body(rest.get(..room).unwrap_or(&[]), sink);
                self.at = self.at.saturating_add(used as u64);
                used
            };
            rest = rest.get(used..).unwrap_or(&[]);
        }
    }

    /// Passes over up to `count` bytes of a segment that a switch ended.
    fn pass_segment(&mut self, count: usize) -> usize {
        let segment_end = self.segment_size.segment_start(self.at).saturating_add(self.segment_size.bytes());
        let left = segment_end.bytes_since(self.at);
        let used = left.min(count as u64);
        self.at = self.at.saturating_add(used);
        if used == left {
            self.mode = Mode::Ready;
        }
        used as usize
    }

    fn take_page_header(&mut self, bytes: &[u8], sink: &mut impl Sink) -> usize {
        let page = self.at.align_down(PAGE_BYTES as u64);
        let wanted = PageHeader::bytes_at(page, self.segment_size);
        let used = (wanted - self.page_header_got).min(bytes.len());
        for (to, from) in self.page_header.iter_mut().skip(self.page_header_got).zip(bytes.iter().take(used))
        {
            *to = *from;
        }
        self.page_header_got += used;
        self.at = self.at.saturating_add(used as u64);
        if self.page_header_got == wanted {
            self.page_header_got = 0;
            if let Err(error) = self.begin_page(page, wanted, sink) {
                self.bad_page(error, wanted, sink);
            }
        }
        used
    }

    fn begin_page(&mut self, page: Lsn, header_len: usize, sink: &mut impl Sink) -> Result<(), WalError> {
        let bytes = self.page_header.get(..header_len).unwrap_or(&[]);
        let header = PageHeader::decode(bytes).map_err(|error| WalError::of(page, error))?;
        header.check_place(page, self.segment_size)?;
        self.check_continuity(page, &header)?;
        self.version = Some(header.version);
        self.timeline = Some(header.timeline);
        match (self.mode, header.starts_with) {
            (Mode::Ready, PageStart::Record) => Ok(()),
            // The server crashed with the tail of its WAL lost between two records: nothing is missing.
            (Mode::Ready, PageStart::Overwrite) => Ok(()),
            (Mode::Ready, PageStart::Continuation(rem_len)) => Err(WalError::new(
                page,
                "start of the page",
                format!("{rem_len} bytes of a record"),
                "a record",
            )),
            (Mode::Record, PageStart::Continuation(rem_len)) if self.missing() == Some(rem_len) => Ok(()),
            (Mode::Record, PageStart::Overwrite) => {
                self.mode = Mode::Ready;
                Ok(())
            }
            (Mode::Record, PageStart::Record | PageStart::Continuation(_)) => {
                let found = format!("{:?} at {page}", header.starts_with);
                sink.unread(WalError::new(
                    self.gather.start,
                    "end of the record",
                    found,
                    format!("{:?}", self.missing()),
                ));
                self.lose_told();
                self.enter(header.starts_with, header_len, true);
                Ok(())
            }
            (Mode::Seek { told } | Mode::SkipPage { told }, starts_with) => {
                self.enter(starts_with, header_len, told);
                Ok(())
            }
            (Mode::Skip { .. } | Mode::Padding { .. } | Mode::Switched, _) => {
                Err(WalError::new(page, "page", "one inside padding", "none"))
            }
        }
    }

    /// Refuses a page of another version, cluster, or of an older timeline than the page before.
    fn check_continuity(&mut self, page: Lsn, header: &PageHeader) -> Result<(), WalError> {
        if let Some(version) = self.version.filter(|version| *version != header.version) {
            return Err(WalError::new(page, "major version", header.version.major(), version.major()));
        }
        if let Some(timeline) = self.timeline.filter(|timeline| *timeline > header.timeline) {
            return Err(WalError::new(page, "timeline", header.timeline, format!("{timeline} or later")));
        }
        if let Some(LongHeader { system_id, .. }) = header.long {
            if let Some(known) = self.system_id.filter(|known| *known != system_id) {
                return Err(WalError::new(page, "system identifier", system_id, known));
            }
            self.system_id = Some(system_id);
        }
        Ok(())
    }

    /// Begins a page without knowing what came before.
    fn enter(&mut self, starts_with: PageStart, header_len: usize, told: bool) {
        self.prev = None;
        self.mode = match starts_with {
            PageStart::Record | PageStart::Overwrite => Mode::Ready,
            PageStart::Continuation(rem_len) => {
                let left = rem_len as usize;
                if left <= PAGE_BYTES - header_len {
                    Mode::Skip { left, told }
                } else {
                    Mode::SkipPage { told }
                }
            }
        };
    }

    /// Bytes that the record being gathered still misses.
    fn missing(&self) -> Option<u32> {
        self.gather.total_len().and_then(|total| total.checked_sub(self.gather.got))
    }

    /// Reads up to the end of `bytes`, which lie within one page; returns how many it took.
    fn take_body(&mut self, bytes: &[u8], sink: &mut impl Sink) -> usize {
        let mut rest = bytes;
        while !rest.is_empty() && self.mode != Mode::Switched {
            let at = self.at.saturating_add((bytes.len() - rest.len()) as u64);
            let used = match self.mode {
                Mode::Ready => self.take_record_start(at, rest, sink),
                Mode::Record => self.take_record_rest(at, rest, sink),
                Mode::Skip { left, told } => {
                    let used = left.min(rest.len());
                    self.mode = Mode::Skip { left: left - used, told };
                    if used == left {
                        let end = at.saturating_add(used as u64);
                        if !told {
                            sink.unread(WalError::new(
                                end,
                                "record that ends here",
                                "without its beginning",
                                "whole",
                            ));
                        }
                        self.mode = padding(end);
                    }
                    used
                }
                Mode::Padding { left } => {
                    let used = left.min(rest.len());
                    self.mode = if used == left { Mode::Ready } else { Mode::Padding { left: left - used } };
                    used
                }
                Mode::Seek { told } => {
                    // Zeros may be what follows a switch: nothing to read.
                    if !told && let Some(zeros) = rest.iter().position(|byte| *byte != 0) {
                        let at = at.saturating_add(zeros as u64);
                        self.damaged(WalError::new(at, "WAL", "inside a page", "the start of a page"), sink);
                    }
                    rest.len()
                }
                Mode::SkipPage { .. } | Mode::Switched => rest.len(),
            };
            rest = rest.get(used..).unwrap_or(&[]);
        }
        bytes.len() - rest.len()
    }

    fn take_record_start(&mut self, at: Lsn, bytes: &[u8], sink: &mut impl Sink) -> usize {
        sink.begins(at);
        let Some(version) = self.version else {
            // Not reached: a record starts only after a page header, or where the caller named the version.
            self.mode = Mode::Seek { told: true };
            return 0;
        };
        let whole = bytes.first_chunk::<RECORD_HEADER_BYTES>().and_then(|header_bytes| {
            let header = RecordHeader::decode(header_bytes);
            Some((header, header_bytes, bytes.get(..header.total_len as usize)?))
        });
        let Some((header, header_bytes, record)) = whole else {
            self.gather.begin(at);
            self.mode = Mode::Record;
            return self.take_record_rest(at, bytes, sink);
        };
        let end = at.saturating_add(record.len() as u64);
        let checked = header.check(version, at, self.prev).and_then(|()| {
            let body = record.get(RECORD_HEADER_BYTES..).unwrap_or(&[]);
            check_crc(at, &header, record_crc(body, header_bytes))
        });
        match checked {
            Ok(()) => {
                self.finish(version, at, end, header, record, None, sink);
                record.len()
            }
            Err(error) => {
                self.damaged(error, sink);
                bytes.len()
            }
        }
    }

    fn take_record_rest(&mut self, at: Lsn, bytes: &[u8], sink: &mut impl Sink) -> usize {
        match self.gather_rest(at, bytes, sink) {
            Ok(used) => used,
            Err(error) => {
                self.damaged(error, sink);
                bytes.len()
            }
        }
    }

    fn gather_rest(&mut self, at: Lsn, bytes: &[u8], sink: &mut impl Sink) -> Result<usize, WalError> {
        let start = self.gather.start;
        let Some(version) = self.version else {
            return Err(WalError::new(start, "version", "unknown", "that of a page header"));
        };
        let mut used = 0;
        if self.gather.header().is_none() {
            used = (RECORD_HEADER_BYTES - self.gather.got as usize).min(bytes.len());
            self.gather.push_header(bytes.get(..used).unwrap_or(&[]));
            // The length alone is sure to be on the page where the record starts, and tells the next page's rem_len.
            if let Some(header) = self.gather.header() {
                RecordHeader::decode(header).check(version, start, self.prev)?;
            }
        }
        let Some(header) = self.gather.header().map(RecordHeader::decode) else { return Ok(used) };
        let rest = bytes.get(used..).unwrap_or(&[]);
        let missing = header.total_len - self.gather.got;
        let piece = rest.get(..missing as usize).unwrap_or(rest);
        self.gather.push_body(version, piece);
        used += piece.len();
        if self.gather.got == header.total_len {
            check_crc(start, &header, self.gather.crc().unwrap_or_default())?;
            let gather = std::mem::take(&mut self.gather);
            let (head, long_main) = gather.parts();
            self.finish(version, start, at.saturating_add(used as u64), header, head, long_main, sink);
            self.gather = gather;
            self.gather.release();
        }
        Ok(used)
    }

    /// Hands over a checked record whose last byte is before `last_end`.
    #[allow(clippy::too_many_arguments)]
    fn finish(
        &mut self,
        version: WalVersion,
        start: Lsn,
        last_end: Lsn,
        header: RecordHeader,
        head: &[u8],
        long_main: Option<MainData<'_>>,
        sink: &mut impl Sink,
    ) {
        let aligned = align_up(last_end, 8);
        let end = if header.is_switch() { align_up(aligned, self.segment_size.bytes()) } else { aligned };
        self.prev = Some(start);
        self.mode = if end > aligned { Mode::Switched } else { padding(last_end) };
        sink.record(&RawRecord { start, end, version, header, head, long_main });
    }

    /// A page that cannot be read. While seeking it is part of a stretch that was told of, or, zero, of one where nothing is.
    fn bad_page(&mut self, error: WalError, header_len: usize, sink: &mut impl Sink) {
        let zero = self.page_header.iter().take(header_len).all(|byte| *byte == 0);
        match self.mode {
            Mode::Seek { told } | Mode::SkipPage { told } if told || zero => self.mode = Mode::Seek { told },
            _ => self.damaged(error, sink),
        }
    }

    fn damaged(&mut self, error: WalError, sink: &mut impl Sink) {
        sink.unread(error);
        self.lose_told();
    }

    fn lose_told(&mut self) {
        self.prev = None;
        self.mode = Mode::Seek { told: true };
    }
}

fn check_crc(start: Lsn, header: &RecordHeader, found: u32) -> Result<(), WalError> {
    if found == header.crc {
        return Ok(());
    }
    Err(WalError::new(start, "record checksum", format!("{found:08X}"), format!("{:08X}", header.crc)))
}

fn align_up(at: Lsn, unit: u64) -> Lsn {
    at.saturating_add(unit - 1).align_down(unit)
}

fn padding(at: Lsn) -> Mode {
    match align_up(at, 8).bytes_since(at) as usize {
        0 => Mode::Ready,
        left => Mode::Padding { left },
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests;
