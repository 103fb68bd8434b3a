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
use std::iter::Peekable;
use std::slice::Iter;

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
    fn headers<'a>(
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
}

/// Puts a body back among page headers, as it grows.
#[derive(Debug)]
pub struct Dresser<'a> {
    expected: Expected,
    place: Place,
    marks: &'a [Mark],
    exceptions: Peekable<Iter<'a, PageHeaderEntry>>,
    /// Headers that were put.
    pages: usize,
    /// Bytes of the body that were put.
    body: usize,
    raw: &'a mut Vec<u8>,
}

impl<'a> Dresser<'a> {
    /// The range begins in `raw`, in place of what is there, with its zeros; its page headers will be at `marks`.
    pub fn new(
        expected: Expected,
        place: Place,
        marks: &'a [Mark],
        exceptions: &'a [PageHeaderEntry],
        raw: &'a mut Vec<u8>,
    ) -> Self {
        raw.clear();
        raw.resize(place.zero_len, 0);
        Dresser { expected, place, marks, exceptions: exceptions.iter().peekable(), pages: 0, body: 0, raw }
    }

    /// Appends bytes of the body that are all of `stretch`, or the part of it that the body has.
    pub fn put(&mut self, stretch: Stretch, mut bytes: &[u8]) -> Result<(), FormatError> {
        while !bytes.is_empty() {
            if let Some(mark) = self.marks.get(self.pages).filter(|mark| mark.body == self.body) {
                let continues = stretch.begun || stretch.start < self.body;
                let rest = if continues { stretch.end.saturating_sub(self.body) } else { 0 };
                self.header(mark, rest as u32)?;
            }
            let room = self.marks.get(self.pages).map_or(usize::MAX, |next| next.body - self.body);
            let (piece, rest) = bytes.split_at(room.min(bytes.len()));
            self.raw.extend_from_slice(piece);
            self.body += piece.len();
            bytes = rest;
        }
        Ok(())
    }

    /// Where the next bytes of the body may be put together, behind what is there; [`Self::close`] takes them.
    pub fn open(&mut self) -> &mut Vec<u8> {
        self.raw
    }

    /// Takes the bytes from `from` on as [`Self::put`] does: where they are, up to the first page that begins among them. `room` is of
    /// any content.
    pub fn close(&mut self, stretch: Stretch, from: usize, room: &mut Vec<u8>) -> Result<(), FormatError> {
        let len = self.raw.len().saturating_sub(from);
        let before = self.marks.get(self.pages).map_or(len, |next| next.body - self.body);
        if before >= len && before > 0 {
            self.body += len;
            return Ok(());
        }
        room.clear();
        room.extend_from_slice(self.raw.get(from + before..).unwrap_or(&[]));
        self.raw.truncate(from + before);
        self.body += before;
        self.put(stretch, room)
    }

    /// Appends padding, which no page begins inside of, up to byte `at` of the body.
    pub fn pad(&mut self, at: usize) {
        let missing = at.saturating_sub(self.body);
        self.raw.resize(self.raw.len() + missing, 0);
        self.body += missing;
    }

    fn header(&mut self, mark: &Mark, rest: u32) -> Result<(), FormatError> {
        let page = self.pages;
        match self.exceptions.next_if(|entry| entry.page as usize == page) {
            None => self.raw.extend_from_slice(&self.expected.header(self.place, mark, rest)),
            Some(entry) if entry.bytes.0.len() == mark.len => self.raw.extend_from_slice(&entry.bytes.0),
            Some(entry) => {
                let found = format!("a page header of {} bytes", entry.bytes.0.len());
                return Err(FormatError::new("delta frame", page, found, format!("{}", mark.len)));
            }
        }
        self.pages += 1;
        Ok(())
    }

    /// What was put so far.
    pub fn dressed(&self) -> Dressed<'_> {
        Dressed::new(self.raw, self.place, self.marks)
    }

    /// Refuses headers of pages that the range does not have; returns the length of what was put.
    pub fn finish(mut self) -> Result<usize, FormatError> {
        match self.exceptions.next() {
            None => Ok(self.raw.len()),
            Some(entry) => {
                let found = format!("a header of page {}", entry.page);
                let expected = "pages in order, that the frame has";
                Err(FormatError::new("delta frame", self.marks.len(), found, expected))
            }
        }
    }
}

/// A body where it lies in the WAL, among page headers.
#[derive(Debug, Clone)]
pub struct Dressed<'a> {
    raw: &'a [u8],
    place: Place,
    marks: &'a [Mark],
    /// Headers before what was asked for last.
    passed: usize,
}

impl<'a> Dressed<'a> {
    /// The body of the range `raw`, whose page headers are at `marks`.
    pub fn new(raw: &'a [u8], place: Place, marks: &'a [Mark]) -> Self {
        Dressed { raw, place, marks, passed: 0 }
    }

    /// A body that was taken out of the WAL already.
    pub fn bare(body: &'a [u8], place: Place) -> Self {
        Dressed { raw: body, place: Place { zero_len: 0, ..place }, marks: &[], passed: 0 }
    }

    /// Bytes `start` to `end` of the body, in the pieces that page headers leave of them. Quick for those that come after what was asked
    /// for last. Fewer when the range has not so many.
    pub fn pieces(&mut self, start: usize, end: usize) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let body_of = |number: usize| self.marks.get(number).map_or(usize::MAX, |mark| mark.body);
        if self.passed > 0 && body_of(self.passed - 1) > start {
            self.passed = 0;
        }
        while body_of(self.passed) <= start {
            self.passed += 1;
        }
        let before = self.passed.checked_sub(1).and_then(|last| self.marks.get(last));
        let mut at =
            before.map_or(self.place.zero_len + start, |mark| mark.raw + mark.len + start - mark.body);
        let (raw, mut marks, mut done) = (self.raw, self.marks.get(self.passed..).unwrap_or(&[]), start);
        std::iter::from_fn(move || {
            if done >= end {
                return None;
            }
            let len = match marks.split_first() {
                Some((mark, _)) if mark.body < end => mark.body - done,
                _ => end - done,
            };
            let piece = raw.get(at..at + len)?;
            (at, done) = (at + len, done + len);
            if let Some((mark, rest)) = marks.split_first().filter(|(mark, _)| mark.body == done) {
                (at, marks) = (mark.raw + mark.len, rest);
            }
            Some(piece)
        })
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;

    /// A body of three pages and more from the end of a segment on, dressed in pieces, and where its page headers are.
    fn dressed(body: &[u8], piece: usize) -> (Place, Vec<u8>, Vec<Mark>) {
        let start = Lsn::new((5 << 20) - 8192 - 1000);
        let place = Place { start, segment_size: SegmentSize::new(1 << 20).unwrap(), zero_len: 0 };
        let expected = Expected {
            version: WalVersion::V16,
            timeline: TimelineId(3),
            system_id: SystemId(9),
            removable: false,
        };
        let marks = place.marks(body.len());
        let mut raw = vec![0xEE; 7];
        let mut dresser = Dresser::new(expected, place, &marks, &[], &mut raw);
        let whole = Stretch { start: 0, end: body.len(), begun: false };
        body.chunks(piece).for_each(|bytes| dresser.put(whole, bytes).unwrap());
        let len = dresser.finish().unwrap();
        assert_eq!(len, raw.len());
        (place, raw, marks)
    }

    fn body() -> Vec<u8> {
        (0..30_000u32).map(|at| (at * at / 64) as u8).collect()
    }

    #[test]
    fn a_body_dressed_in_pieces_is_stripped_again() {
        let body = body();
        let whole = dressed(&body, body.len());
        for piece in [1, 7, 1000, 8192] {
            let (place, raw, marks) = dressed(&body, piece);
            assert!(raw == whole.1, "pieces of {piece}");
            let (mut back, mut found) = (Vec::new(), Vec::new());
            assert_eq!(place.strip(&raw, &mut back, &mut found), raw.len());
            assert!(back == body && found == marks);
            let header = PageHeader::decode(&raw[marks[1].raw..]).unwrap();
            assert_eq!(header.starts_with, PageStart::Continuation((body.len() - marks[1].body) as u32));
        }
    }

    #[test]
    fn any_part_of_a_body_is_found_among_page_headers() {
        let body = body();
        let (place, raw, marks) = dressed(&body, 500);
        assert_eq!((marks.len(), marks[1].len), (4, 40));
        let edges = marks.iter().flat_map(|mark| [mark.body.saturating_sub(3), mark.body, mark.body + 3]);
        let places: Vec<usize> = edges.chain([0, 1, body.len() - 1, body.len()]).collect();
        let (mut among, mut bare) = (Dressed::new(&raw, place, &marks), Dressed::bare(&body, place));
        // Forward and back.
        for start in &places {
            for end in places.iter().filter(|end| *end >= start) {
                for dressed in [&mut among, &mut bare] {
                    let pieces: Vec<&[u8]> = dressed.pieces(*start, *end).collect();
                    assert!(pieces.concat() == body[*start..*end], "{start} to {end}");
                }
            }
        }
        assert!(among.pieces(29_000, 30_001).map(<[u8]>::len).sum::<usize>() < 1_001);
    }
}
