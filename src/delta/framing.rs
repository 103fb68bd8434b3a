//! The pages around WAL: taking their headers out of a range, and putting them back. What a header says follows from its place and
//! from the records; one that says something else is kept as it is. Spec: formats/deltas.md.
//!
//! The **body** of a range is its bytes without page headers, and without the zeros before and after a switch.

#![deny(clippy::indexing_slicing)]

use crate::base::{Lsn, SegmentSize, SystemId, TimelineId};
use crate::format::FormatError;
use crate::format::delta::{DeltaHead, PageHeaderEntry};
use crate::format::record::Blob;
use crate::wal::page::{LongHeader, PAGE_BYTES, PageStart};
use crate::wal::{PageHeader, WalVersion};

/// A page header in a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Where the page begins, in bytes from the start of the range.
    pub raw: usize,
    /// The bytes of the body before it.
    pub body: usize,
    /// Bytes of the header.
    pub len: usize,
}

/// Where a range lies among pages.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// The range's first byte.
    pub start: Lsn,
    /// The size of a WAL segment.
    pub segment_size: SegmentSize,
    /// Zeros at the beginning.
    pub zero_len: usize,
}

impl Place {
    fn lsn(self, raw: usize) -> Lsn {
        self.start.saturating_add(raw as u64)
    }

    fn header_bytes(self, page: Lsn) -> usize {
        PageHeader::bytes_at(page, self.segment_size)
    }

    /// Whether the range's body begins inside of a page header; how many of its bytes are left.
    pub fn inside_header(self) -> Option<usize> {
        let first = self.lsn(self.zero_len);
        let page = first.align_down(PAGE_BYTES as u64);
        let (inside, header) = (first.bytes_since(page) as usize, self.header_bytes(page));
        (inside > 0 && inside < header).then(|| header - inside)
    }

    /// Bytes from body offset `at` to the next multiple of 8 in the WAL: page headers do not change that.
    pub fn padding(self, at: usize) -> usize {
        let lsn = self.lsn(self.zero_len.saturating_add(at)).get();
        (lsn.next_multiple_of(8) - lsn) as usize
    }

    /// Takes the page headers out of `raw`. Returns how much of it was used: a header that nothing follows is left.
    pub fn strip(self, raw: &[u8], body: &mut Vec<u8>, marks: &mut Vec<Mark>) -> usize {
        body.clear();
        marks.clear();
        let mut at = self.zero_len;
        while at < raw.len() {
            let lsn = self.lsn(at);
            let page = lsn.align_down(PAGE_BYTES as u64);
            let page_end = at.saturating_add(PAGE_BYTES - lsn.bytes_since(page) as usize).min(raw.len());
            if lsn == page {
                let len = self.header_bytes(page);
                if raw.len() - at <= len {
                    break;
                }
                marks.push(Mark { raw: at, body: body.len(), len });
                at += len;
            }
            body.extend_from_slice(raw.get(at..page_end).unwrap_or(&[]));
            at = page_end;
        }
        at
    }

    /// The page headers of a range whose body has `body_len` bytes.
    pub fn marks(self, body_len: usize) -> Vec<Mark> {
        let (mut marks, mut at, mut body) = (Vec::new(), self.zero_len, 0);
        while body < body_len {
            let lsn = self.lsn(at);
            let page = lsn.align_down(PAGE_BYTES as u64);
            let mut room = PAGE_BYTES - lsn.bytes_since(page) as usize;
            if lsn == page {
                let len = self.header_bytes(page);
                marks.push(Mark { raw: at, body, len });
                at = at.saturating_add(len);
                room -= len;
            }
            let piece = room.min(body_len - body);
            at = at.saturating_add(piece);
            body += piece;
        }
        marks
    }
}

/// Positions of the body's bytes, asked for in order.
#[derive(Debug)]
pub struct Positions<'a> {
    place: Place,
    marks: &'a [Mark],
    headers: usize,
}

impl<'a> Positions<'a> {
    /// Positions in a range with these page headers.
    pub fn new(place: Place, marks: &'a [Mark]) -> Self {
        Positions { place, marks, headers: 0 }
    }

    /// The position of body byte `at`, behind the header of a page that begins with it.
    pub fn lsn(&mut self, at: usize) -> Lsn {
        while let Some((mark, rest)) = self.marks.split_first().filter(|(mark, _)| mark.body <= at) {
            self.headers += mark.len;
            self.marks = rest;
        }
        self.place.lsn(self.place.zero_len + at + self.headers)
    }

    /// The position behind the body byte before `at`: before the header of a page that begins there. Not to be mixed with [`Self::lsn`].
    pub fn lsn_behind(&mut self, at: usize) -> Lsn {
        while let Some((mark, rest)) = self.marks.split_first().filter(|(mark, _)| mark.body < at) {
            self.headers += mark.len;
            self.marks = rest;
        }
        self.place.lsn(self.place.zero_len + at + self.headers)
    }

    /// Bytes of the range before the end of the first `at` bytes of its body.
    pub fn raw_end(place: Place, marks: &[Mark], at: usize) -> usize {
        let headers: usize = marks.iter().take_while(|mark| mark.body < at).map(|mark| mark.len).sum();
        place.zero_len + at + headers
    }
}

/// A record in a body, or the part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// Its first byte.
    pub start: usize,
    /// One past its last, no padding counted; may lie past the body's end.
    pub end: usize,
    /// Whether it began before the body.
    pub begun: bool,
}

/// What page headers are expected to be.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// The version of the pages.
    pub version: WalVersion,
    /// Their timeline.
    pub timeline: TimelineId,
    /// Whose they are.
    pub system_id: SystemId,
    /// Whether they bear BKP_REMOVABLE.
    pub removable: bool,
}

impl Expected {
    /// As a frame's head says.
    pub fn of(head: &DeltaHead) -> Result<Self, FormatError> {
        let version = WalVersion::from_magic(head.page_magic).ok_or_else(|| {
            FormatError::new(
                "delta frame",
                0,
                format!("page magic {:04x}", head.page_magic),
                "that of 14 to 18",
            )
        })?;
        let DeltaHead { timeline, system_id, removable, .. } = *head;
        Ok(Expected { version, timeline, system_id, removable })
    }

    /// The header of the page at `address`, where `rest` bytes of a record are still to come.
    fn header(&self, place: Place, mark: &Mark, rest: u32) -> Vec<u8> {
        let address = place.lsn(mark.raw);
        let first_of_segment = place.segment_size.segment_start(address) == address;
        let long = LongHeader { system_id: self.system_id, segment_size: place.segment_size };
        PageHeader {
            version: self.version,
            timeline: self.timeline,
            address,
            starts_with: if rest > 0 { PageStart::Continuation(rest) } else { PageStart::Record },
            removable: self.removable,
            long: first_of_segment.then_some(long),
        }
        .encode()
    }

    /// The headers at `marks`, where the records are `stretches`, in order.
    pub fn headers<'a>(
        &'a self,
        place: Place,
        marks: &'a [Mark],
        stretches: &'a [Stretch],
    ) -> impl Iterator<Item = Vec<u8>> + 'a {
        let mut stretches = stretches.iter().peekable();
        marks.iter().map(move |mark| {
            while stretches.next_if(|stretch| stretch.end <= mark.body).is_some() {}
            let rest = match stretches.peek() {
                Some(stretch) if stretch.begun || stretch.start < mark.body => {
                    (stretch.end - mark.body) as u32
                }
                _ => 0,
            };
            self.header(place, mark, rest)
        })
    }

    /// The page headers of `raw` that are not as expected.
    pub fn exceptions(
        &self,
        place: Place,
        raw: &[u8],
        marks: &[Mark],
        stretches: &[Stretch],
    ) -> Vec<PageHeaderEntry> {
        let headers = self.headers(place, marks, stretches);
        let mut exceptions = Vec::new();
        for (page, (mark, header)) in marks.iter().zip(headers).enumerate() {
            let found = raw.get(mark.raw..mark.raw + mark.len).unwrap_or(&[]);
            if found != header {
                exceptions.push(PageHeaderEntry { page: page as u32, bytes: Blob(found.to_vec()) });
            }
        }
        exceptions
    }

    /// Puts `body` back among page headers; appends to `raw`, which holds the zeros before it.
    pub fn dress(
        &self,
        place: Place,
        body: &[u8],
        stretches: &[Stretch],
        exceptions: &[PageHeaderEntry],
        raw: &mut Vec<u8>,
    ) -> Result<(), FormatError> {
        let marks = place.marks(body.len());
        let mut exceptions = exceptions.iter().peekable();
        let mut done = 0;
        for (page, (mark, header)) in marks.iter().zip(self.headers(place, &marks, stretches)).enumerate() {
            raw.extend_from_slice(body.get(done..mark.body).unwrap_or(&[]));
            done = mark.body;
            match exceptions.next_if(|entry| entry.page as usize == page) {
                None => raw.extend_from_slice(&header),
                Some(entry) if entry.bytes.0.len() == mark.len => raw.extend_from_slice(&entry.bytes.0),
                Some(entry) => {
                    let found = format!("a page header of {} bytes", entry.bytes.0.len());
                    return Err(FormatError::new("delta frame", page, found, format!("{}", mark.len)));
                }
            }
        }
        raw.extend_from_slice(body.get(done..).unwrap_or(&[]));
        match exceptions.next() {
            None => Ok(()),
            Some(entry) => {
                let found = format!("a header of page {}", entry.page);
                Err(FormatError::new("delta frame", marks.len(), found, "pages in order, that the frame has"))
            }
        }
    }
}
