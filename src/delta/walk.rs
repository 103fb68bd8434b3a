//! Cutting raw WAL into frames, and a frame into the parts that the codec knows: zeros after a switch, the end of a record begun
//! before, whole records, the beginning of one that ends later. Anything else is a surprise, and makes a plain frame.

#![deny(clippy::indexing_slicing)]

use super::framing::{Mark, Place, Positions, Stretch};
use crate::base::{Lsn, SegmentSize};
use crate::wal::page::PageStart;
use crate::wal::record::{RECORD_BYTES_MAX, RECORD_HEADER_BYTES, RecordHeader, record_crc};
use crate::wal::{PageHeader, WalVersion};

/// What the next byte of the WAL is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Not known: the next page header tells.
    Unknown,
    /// So many bytes of a record, then padding and records.
    Rest(u32),
    /// Zeros up to the end of the segment.
    Zeros,
}

/// Why a range is not cut into parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Surprise {
    /// It begins or ends inside of a page header.
    PageHeader,
    /// A page header that no server writes.
    UnknownPage,
    /// A record that does not parse, link or recompute.
    Record,
    /// Something where there should be zeros.
    NotZero,
    /// More of something than a frame may hold.
    TooMuch,
    /// The frame would not be smaller, or did not decode to the same bytes.
    NoGain,
    /// The frame did not decode to the same bytes: a bug of ours, which costs nothing but space.
    Differs,
    /// There was no room for what an earlier frame left to later ones.
    NoRoom,
}

/// The parts of a range.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Where it lies, and the zeros before.
    pub place: Place,
    /// Its version, by its page headers or those before.
    pub version: WalVersion,
    /// Bytes of a record begun before.
    pub head_len: usize,
    /// Whole records.
    pub records: Vec<Stretch>,
    /// Bytes of a record that ends later.
    pub tail_len: usize,
    /// How many of its bytes come later.
    pub rest_len: u32,
}

impl Parts {
    /// Head, records and tail as page headers see them.
    pub fn stretches(&self, body_len: usize) -> Vec<Stretch> {
        let [head, tail] = edge_stretches(self.head_len, self.tail_len, self.rest_len, body_len);
        let mut all = Vec::with_capacity(self.records.len() + 2);
        all.push(head);
        all.extend_from_slice(&self.records);
        all.push(tail);
        all
    }
}

/// Head and tail as page headers see them, in a body of `body_len` bytes; empty where there is none.
pub fn edge_stretches(head_len: usize, tail_len: usize, rest_len: u32, body_len: usize) -> [Stretch; 2] {
    let beyond = body_len + rest_len as usize;
    let goes_on = head_len > 0 && head_len == body_len;
    let head = Stretch { start: 0, end: if goes_on { beyond } else { head_len }, begun: true };
    let tail = Stretch { start: body_len - tail_len, end: beyond, begun: false };
    [head, if tail_len > 0 { tail } else { Stretch { start: body_len, end: body_len, begun: false } }]
}

/// A range that makes one frame.
#[derive(Debug)]
pub struct Cut {
    /// Its length in raw bytes.
    pub len: usize,
    /// What follows it.
    pub next: Next,
    /// Its parts; the body and the marks are in the walker.
    pub parts: Result<Parts, Surprise>,
}

/// Whether more WAL follows what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum More {
    /// It does: the cut may be before the end.
    Follows,
    /// Everything is to be cut.
    Ends,
}

/// Cuts ranges.
#[derive(Debug)]
pub struct Walker {
    segment_size: SegmentSize,
    version: Option<WalVersion>,
    /// The body of the last range.
    pub body: Vec<u8>,
    /// The page headers of the last range.
    pub marks: Vec<Mark>,
}

impl Walker {
    /// A walker over WAL with segments of this size.
    pub fn new(segment_size: SegmentSize) -> Self {
        Walker { segment_size, version: None, body: Vec::new(), marks: Vec::new() }
    }

    /// Cuts the first frame's range off `raw`, which is at `start` and not longer than a frame may be.
    pub fn cut(&mut self, next: Next, start: Lsn, raw: &[u8], more: More) -> Cut {
        let plain = |len, next, surprise| Cut { len, next, parts: Err(surprise) };
        let mut place = Place { start, segment_size: self.segment_size, zero_len: 0 };
        if next == Next::Zeros {
            let segment_end = self.segment_end(start);
            place.zero_len = (segment_end.bytes_since(start) as usize).min(raw.len());
            if raw.iter().take(place.zero_len).any(|byte| *byte != 0) {
                return plain(raw.len(), Next::Unknown, Surprise::NotZero);
            }
        }
        if let Some(left) = place.inside_header().filter(|_| place.zero_len < raw.len()) {
            return plain(left.min(raw.len()), Next::Unknown, Surprise::PageHeader);
        }
        let len = place.strip(raw, &mut self.body, &mut self.marks);
        if len == 0 {
            return plain(raw.len(), Next::Unknown, Surprise::PageHeader);
        }
        let raw = raw.get(..len).unwrap_or(raw);
        if let Some(mark) = self.marks.first() {
            let header = raw.get(mark.raw..).map(PageHeader::decode);
            match header {
                Some(Ok(header)) => self.version = Some(header.version),
                _ => return plain(len, Next::Unknown, Surprise::UnknownPage),
            }
        }
        let Some(version) = self.version else { return plain(len, Next::Unknown, Surprise::UnknownPage) };
        let next = match next {
            Next::Zeros
                if place.zero_len == len && start.saturating_add(len as u64) < self.segment_end(start) =>
            {
                Next::Zeros
            }
            Next::Zeros => Next::Rest(0),
            other => other,
        };
        let mut parts = Parts { place, version, head_len: 0, records: Vec::new(), tail_len: 0, rest_len: 0 };
        match self.parts(&mut parts, next, raw, more) {
            Ok((len, next)) => Cut { len, next, parts: Ok(parts) },
            Err(surprise) => plain(len, Next::Unknown, surprise),
        }
    }

    fn segment_end(&self, at: Lsn) -> Lsn {
        self.segment_size.segment_start(at).saturating_add(self.segment_size.bytes())
    }

    fn parts(
        &mut self,
        parts: &mut Parts,
        next: Next,
        raw: &[u8],
        more: More,
    ) -> Result<(usize, Next), Surprise> {
        let place = parts.place;
        let rest = match next {
            Next::Zeros => return Ok((raw.len(), next)),
            Next::Rest(rest) => rest as usize,
            Next::Unknown => match self.first_record(raw)? {
                Some(at) => at,
                None => {
                    parts.head_len = self.body.len();
                    return Ok((raw.len(), Next::Unknown));
                }
            },
        };
        parts.head_len = rest.min(self.body.len());
        if rest >= self.body.len() && rest > 0 {
            let left = rest - self.body.len();
            parts.rest_len = left as u32;
            return Ok((raw.len(), Next::Rest(left as u32)));
        }
        let mut at = self.pass_padding(place, rest)?;
        let marks = std::mem::take(&mut self.marks);
        let mut positions = Positions::new(place, &marks);
        let mut prev: Option<Lsn> = None;
        let mut switched = false;
        let mut next = Next::Rest(0);
        while at < self.body.len() {
            let lsn = positions.lsn(at);
            match self.record(parts.version, lsn, at, prev)? {
                Some((header, end)) => {
                    parts.records.push(Stretch { start: at, end, begun: false });
                    at = self.pass_padding(place, end)?;
                    prev = Some(lsn);
                    if header.is_switch() {
                        switched = true;
                        break;
                    }
                }
                None => {
                    let got = self.body.len() - at;
                    parts.tail_len = got;
                    let total = self
                        .body
                        .get(at..)
                        .and_then(|tail| tail.first_chunk())
                        .map(|len| u32::from_le_bytes(*len));
                    next = match total {
                        Some(total) => Next::Rest(total - got as u32),
                        None => Next::Unknown,
                    };
                    parts.rest_len = total.map_or(0, |total| total - got as u32);
                    break;
                }
            }
        }
        self.marks = marks;
        if switched {
            return self.after_switch(place, at, raw);
        }
        if parts.tail_len == 0 {
            return Ok((raw.len(), next));
        }
        // Where a record crosses the end, the frame ends before it, unless that makes it small.
        let end = Positions::raw_end(place, &self.marks, at);
        if more == More::Follows && end > raw.len() / 2 {
            self.truncate(at);
            parts.tail_len = 0;
            parts.rest_len = 0;
            return Ok((end, Next::Rest(0)));
        }
        Ok((raw.len(), next))
    }

    /// The body ends at `at`.
    fn truncate(&mut self, at: usize) {
        self.body.truncate(at);
        self.marks.retain(|mark| mark.body < at);
    }

    /// Zeros follow from `at` to the end of the segment, or of what is there.
    fn after_switch(&mut self, place: Place, at: usize, raw: &[u8]) -> Result<(usize, Next), Surprise> {
        let end = Positions::raw_end(place, &self.marks, at);
        // The byte before: a switch may end its segment exactly.
        let last = place.start.saturating_add(end.saturating_sub(1) as u64);
        let segment_end = self.segment_end(last).bytes_since(place.start) as usize;
        let len = segment_end.min(raw.len());
        if raw.get(end..len).unwrap_or(&[]).iter().any(|byte| *byte != 0) {
            return Err(Surprise::NotZero);
        }
        self.truncate(at);
        Ok((len, if len == segment_end { Next::Rest(0) } else { Next::Zeros }))
    }

    /// Where the first record begins, by the first page header: after what the page continues, if anything.
    fn first_record(&self, raw: &[u8]) -> Result<Option<usize>, Surprise> {
        let Some(mark) = self.marks.first() else { return Ok(None) };
        let header = raw.get(mark.raw..).map(PageHeader::decode);
        let Some(Ok(header)) = header else { return Err(Surprise::UnknownPage) };
        Ok(Some(match header.starts_with {
            PageStart::Record | PageStart::Overwrite => mark.body,
            PageStart::Continuation(rest) => mark.body.saturating_add(rest as usize),
        }))
    }

    fn pass_padding(&self, place: Place, at: usize) -> Result<usize, Surprise> {
        let end = (at + place.padding(at)).min(self.body.len());
        match self.body.get(at..end) {
            Some(padding) if padding.iter().all(|byte| *byte == 0) => Ok(end),
            _ => Err(Surprise::NotZero),
        }
    }

    /// The record at `at`, and where it ends; `None` when it ends later.
    fn record(
        &self,
        version: WalVersion,
        lsn: Lsn,
        at: usize,
        prev: Option<Lsn>,
    ) -> Result<Option<(RecordHeader, usize)>, Surprise> {
        let rest = self.body.get(at..).unwrap_or(&[]);
        if let Some(len) = rest.first_chunk().map(|len| u32::from_le_bytes(*len))
            && !(RECORD_HEADER_BYTES as u32..=RECORD_BYTES_MAX).contains(&len)
        {
            return Err(Surprise::Record);
        }
        let Some(header_bytes) = rest.first_chunk::<RECORD_HEADER_BYTES>() else { return Ok(None) };
        let header = RecordHeader::decode(header_bytes);
        header.check(version, lsn, prev).map_err(|_| Surprise::Record)?;
        let Some(record) = rest.get(..header.total_len as usize) else { return Ok(None) };
        let body = record.get(RECORD_HEADER_BYTES..).unwrap_or(&[]);
        if record_crc(body, header_bytes) != header.crc || header_bytes.get(18..20) != Some(&[0, 0]) {
            return Err(Surprise::Record);
        }
        Ok(Some((header, at + record.len())))
    }
}
