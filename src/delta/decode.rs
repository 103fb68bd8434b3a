//! One delta frame into the WAL it was made of. Everything in a frame is held against bounds before memory is taken for it, and what
//! comes out against the frame's BLAKE3. Spec: formats/deltas.md.

use super::block::{BlockId, Page, PageSource, Vouched, page_check};
use super::cache::{ImageCache, Rotten};
use super::columns::ColumnReader;
use super::diff::{DifferenceReader, page_of};
use super::encode::range_of;
use super::error::{DeltaError, MissingPage};
use super::framing::Expected;
use super::keep::{KeptRecords, keep};
use super::outline::{OUTLINE_SECTIONS, Origin, Outline, Reference, outline};
use super::records::Groups;
use super::section::{SectionReader, read_head};
use super::structure::put_fragments;
use super::varint::Cursor;
use super::walk::stretches;
use crate::base::limits::BLOCK_BYTES;
use crate::base::{Lsn, LsnRange};
use crate::format::FormatError;
use crate::format::delta::{ImageSource, SectionKind};
use crate::wal::record::{RECORD_HEADER_BYTES, RecordHeader, record_crc};
use std::collections::HashMap;

/// Decodes frames of one epoch, in order.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    sections: SectionReader,
    body: Vec<u8>,
    contents: Vec<u8>,
    /// Where contents begin in `contents`, by the field that has their length.
    places: Vec<u32>,
    groups: Groups,
    base: BasePages,
    /// What was made of the last frame that was checked.
    made: Vec<u8>,
}

impl FrameDecoder {
    /// A decoder.
    pub fn new() -> Self {
        FrameDecoder::default()
    }

    /// What the images of `frame` refer to, in order: which pages to fetch, and which earlier frames to decode before it.
    pub fn references(&mut self, frame: &[u8]) -> Result<Vec<Reference>, DeltaError> {
        let (head, stored) = read_head(frame)?;
        self.sections.read(&head, stored, OUTLINE_SECTIONS)?;
        Ok(outline(head, &self.sections)?.references)
    }

    /// Puts the WAL of `frame` into `to`, in place of what is there; returns where it lies. On success its images are in `cache`;
    /// on failure the cache is as before, and `to` is empty.
    pub fn decode(
        &mut self,
        frame: &[u8],
        cache: &mut ImageCache,
        pages: &mut dyn PageSource,
        to: &mut Vec<u8>,
    ) -> Result<LsnRange, DeltaError> {
        let done = self.restore(frame, Some(cache), pages, to).and_then(|outline| {
            let same = *blake3::hash(to).as_bytes() == outline.head.raw_hash;
            if same { Ok(outline) } else { Err(self.blame(&outline, cache)) }
        });
        let outline = match done {
            Ok(outline) => outline,
            Err(error) => {
                to.clear();
                return Err(error);
            }
        };
        let records = KeptRecords {
            version: outline.version,
            structure: &outline.structure,
            stretches: &outline.records,
            lsns: &outline.lsns,
            images: &outline.images,
        };
        let range = range_of(&outline.head);
        keep(&records, &self.body, outline.place, &outline.marks, cache).map_err(|error| {
            to.clear();
            DeltaError::NoRoom { range, reason: error.to_string() }
        })?;
        Ok(range)
    }

    /// Puts the WAL of `frame` into `to` with zeros in the place of what images take from other pages, and returns where it lies. The
    /// records are as they were but for those images and for `xl_crc`, which fits what is there: enough to read records, at any
    /// place, without a cache and a base. That it is right is for the seal of the frame to say; its BLAKE3 cannot be compared.
    pub fn decode_records(&mut self, frame: &[u8], to: &mut Vec<u8>) -> Result<LsnRange, DeltaError> {
        let outline = self.restore(frame, None, &mut ZeroPages, to).inspect_err(|_| to.clear())?;
        Ok(range_of(&outline.head))
    }

    /// Whether `frame` decodes to `raw`, for its encoder: no BLAKE3 is needed for that, and the cache is not changed.
    pub(super) fn gives(
        &mut self,
        frame: &[u8],
        cache: &ImageCache,
        pages: &mut dyn PageSource,
        raw: &[u8],
    ) -> bool {
        let mut made = std::mem::take(&mut self.made);
        let same = self.restore(frame, Some(cache), pages, &mut made).is_ok() && made == raw;
        self.made = made;
        same
    }

    /// Puts what `frame` says into `to`; whether that is right is not known yet. Without a cache, zeros take the place of the pages
    /// that it would give.
    fn restore(
        &mut self,
        frame: &[u8],
        cache: Option<&ImageCache>,
        pages: &mut dyn PageSource,
        to: &mut Vec<u8>,
    ) -> Result<Outline, DeltaError> {
        to.clear();
        let (head, stored) = read_head(frame)?;
        self.sections.read(&head, stored, &[])?;
        let outline = outline(head, &self.sections)?;
        self.contents(&outline)?;
        self.records(&outline, cache, pages)?;
        self.raw(&outline, to)?;
        Ok(outline)
    }

    /// Fills `contents` and `places`.
    fn contents(&mut self, outline: &Outline) -> Result<(), DeltaError> {
        let section = |kind| self.sections.section(kind);
        let cursor = |what, kind| Cursor::new(what, section(kind));
        let mut from = ColumnReader {
            layouts: cursor("delta frame layouts", SectionKind::Layouts),
            constants: cursor("delta frame constants", SectionKind::Constants),
            columns: cursor("delta frame columns", SectionKind::Columns),
            differences: cursor("delta frame differences", SectionKind::Differences),
            rows: cursor("delta frame rows", SectionKind::Rows),
            digits: cursor("delta frame digits", SectionKind::Digits),
        };
        let structure = &outline.structure;
        self.contents.clear();
        self.places.clear();
        self.places.resize(structure.fields.len(), 0);
        for (records, plan) in outline.by_kind.iter().zip(&structure.plans) {
            for field in &plan.slots {
                for group in self.groups.of(structure, records, *field) {
                    let len = group.first().map_or(0, |first| first.len as usize);
                    let start = self.contents.len();
                    // All of this lies in records whose lengths were summed up already.
                    self.contents.resize(start + len * group.len(), 0);
                    for (row, content) in group.iter().enumerate() {
                        if let Some(place) = self.places.get_mut(content.field as usize) {
                            *place = (start + row * len) as u32;
                        }
                    }
                    if let Some(rows) = self.contents.get_mut(start..) {
                        from.get(rows, len)?;
                    }
                }
            }
        }
        let ColumnReader { layouts, constants, columns, differences, rows, digits } = from;
        for cursor in [layouts, constants, columns, differences, rows, digits] {
            cursor.finish()?;
        }
        Ok(())
    }

    /// Fills `body`.
    fn records(
        &mut self,
        outline: &Outline,
        cache: Option<&ImageCache>,
        pages: &mut dyn PageSource,
    ) -> Result<(), DeltaError> {
        let cursor = |what, kind| Cursor::new(what, self.sections.section(kind));
        let mut differences = DifferenceReader {
            literal_lens: cursor("delta frame literal lengths", SectionKind::LiteralLens),
            copy_lens: cursor("delta frame copy lengths", SectionKind::CopyLens),
            shifts: cursor("delta frame shifts", SectionKind::Shifts),
            literals: cursor("delta frame literals", SectionKind::Literals),
        };
        let mut stored = cursor("delta frame stored images", SectionKind::Stored);
        let mut edges = cursor("delta frame edges", SectionKind::Edges);
        self.base.fetch(outline, pages)?;
        let base = &self.base;
        let body = &mut self.body;
        body.clear();
        body.reserve(outline.body_len);
        body.extend_from_slice(edges.take(outline.head.head_len as usize)?);
        let (mut prev, mut next_image) = (outline.head.prev, 0);
        let mut latest: HashMap<BlockId, usize> = HashMap::new();
        for (number, stretch) in outline.records.iter().enumerate() {
            // Padding.
            body.resize(stretch.start, 0);
            let Some((kind, plan)) = outline.structure.kind_of(number) else { break };
            let fields = outline.structure.fields_of(number);
            let lsn = outline.lsns.get(number).copied().unwrap_or(Lsn::ZERO);
            let mut header = RecordHeader {
                total_len: (stretch.end - stretch.start) as u32,
                xid: outline.structure.xids.get(number).copied().unwrap_or(0),
                prev,
                info: kind.info,
                rmgr: kind.rmgr,
                crc: 0,
            };
            prev = lsn;
            body.extend_from_slice(&header.encode());
            put_fragments(kind, plan, fields, &outline.structure.tables.relations, body)?;
            let places = outline.structure.starts.get(number).and_then(|start| self.places.get(*start..));
            let places = places.unwrap_or(&[]);
            let content = |field: usize, body: &mut Vec<u8>| {
                let len = fields.get(field).copied().unwrap_or(0) as usize;
                let start = places.get(field).copied().unwrap_or(0) as usize;
                body.extend_from_slice(self.contents.get(start..start + len).unwrap_or(&[]));
            };
            for block in &plan.blocks {
                if block.image.is_some() {
                    let image = outline.images[next_image];
                    let source = outline.sources[next_image];
                    match source {
                        ImageSource::Stored => body.extend_from_slice(stored.take(image.shape.len)?),
                        ImageSource::Nothing => {
                            body.extend_from_slice(differences.literals.take(image.shape.len)?)
                        }
                        ImageSource::Base => {
                            let page = base.page(next_image);
                            differences.image(image.shape.hole, page, body)?;
                        }
                        ImageSource::Image => {
                            let reference = outline.references[next_image];
                            let mut page = [0; BLOCK_BYTES];
                            let older = earlier_image(&reference, outline, &latest, body, cache, &mut page)?;
                            differences.image(image.shape.hole, older, body)?;
                        }
                    }
                    if source != ImageSource::Stored {
                        latest.insert(image.shape.block, next_image);
                    }
                    next_image += 1;
                }
                if let Some(data) = block.data {
                    content(data, body);
                }
            }
            if let Some(main) = plan.main {
                content(main, body);
            }
            if let Some((head, rest)) = body
                .get_mut(stretch.start..)
                .and_then(|record| record.split_first_chunk_mut::<RECORD_HEADER_BYTES>())
            {
                header.crc = record_crc(rest, head);
                *head = header.encode();
            }
        }
        body.resize(outline.body_len - outline.head.tail_len as usize, 0);
        body.extend_from_slice(edges.take(outline.head.tail_len as usize)?);
        let DifferenceReader { literal_lens, copy_lens, shifts, literals } = differences;
        for cursor in [literal_lens, copy_lens, shifts, literals, stored, edges] {
            cursor.finish()?;
        }
        Ok(())
    }

    /// Why what was decoded is not what was encoded: a page that is not the one the frame was made with, or the frame itself.
    fn blame(&self, outline: &Outline, cache: &ImageCache) -> DeltaError {
        for (number, reference) in outline.references.iter().enumerate() {
            let (block, lsn) = (reference.block, reference.lsn);
            match reference.origin {
                Origin::Alone => {}
                Origin::Base { check: expected } => {
                    let found = page_check(self.base.page(number));
                    if found != expected {
                        return DeltaError::WrongPage { block, lsn, found, expected };
                    }
                }
                Origin::Image { lsn: image } => {
                    let cached = cache.get(&block).filter(|cached| cached.lsn == image);
                    if cached.is_some_and(|cached| cached.page(&mut [0; BLOCK_BYTES]).is_err()) {
                        return DeltaError::RottenImage { block, image };
                    }
                }
            }
        }
        DeltaError::Differs { range: range_of(&outline.head) }
    }

    fn raw(&self, outline: &Outline, raw: &mut Vec<u8>) -> Result<(), FormatError> {
        let head = &outline.head;
        let raw_len = head.raw_len as usize;
        raw.reserve(raw_len);
        raw.resize(outline.place.zero_len, 0);
        let body_len = self.body.len();
        let all = stretches(
            head.head_len as usize,
            &outline.records,
            head.tail_len as usize,
            head.rest_len,
            body_len,
        );
        let exceptions = &outline.structure.tables.page_headers;
        Expected::of(head)?.dress(outline.place, &self.body, &all, exceptions, raw)?;
        let switched = outline.records.last().and_then(|last| self.body.get(last.start..)?.first_chunk());
        if raw.len() < raw_len && switched.is_some_and(|header| RecordHeader::decode(header).is_switch()) {
            raw.resize(raw_len, 0);
        }
        if raw.len() != raw_len {
            return Err(FormatError::new("delta frame", 0, format!("{} bytes of WAL", raw.len()), raw_len));
        }
        Ok(())
    }
}

/// The pages of the base that a frame refers to, by image.
#[derive(Debug, Default)]
struct BasePages {
    pages: Vec<Box<Page>>,
    places: Vec<usize>,
}

/// Zeros for every page.
struct ZeroPages;

impl PageSource for ZeroPages {
    fn base_page(&mut self, _block: &BlockId, page: &mut Page) -> Option<Vouched> {
        page.fill(0);
        Some(Vouched::BySource)
    }
}

static ZEROS: Page = [0; BLOCK_BYTES];

impl BasePages {
    fn page(&self, image: usize) -> &Page {
        self.places.get(image).and_then(|place| self.pages.get(*place)).map_or(&ZEROS, |page| page)
    }

    /// Gets all that the frame of `outline` refers to. When some are missing, all of them are named.
    fn fetch(&mut self, outline: &Outline, pages: &mut dyn PageSource) -> Result<(), DeltaError> {
        self.places.clear();
        let (mut missing, mut used) = (Vec::new(), 0);
        for reference in &outline.references {
            self.places.push(used);
            let Origin::Base { .. } = reference.origin else { continue };
            if used == self.pages.len() {
                self.pages.push(Box::new([0; BLOCK_BYTES]));
            }
            let Some(page) = self.pages.get_mut(used) else { break };
            used += 1;
            // Who vouches for the page does not matter here: what comes of it has to have the frame's BLAKE3.
            if pages.base_page(&reference.block, page).is_none() {
                missing.push(MissingPage { block: reference.block, lsn: reference.lsn });
            }
        }
        if missing.is_empty() { Ok(()) } else { Err(DeltaError::MissingPages(missing)) }
    }
}

/// The earlier image that `reference` names: of this frame, or in the cache.
fn earlier_image<'a>(
    reference: &Reference,
    outline: &Outline,
    latest: &HashMap<BlockId, usize>,
    body: &[u8],
    cache: Option<&'a ImageCache>,
    page: &'a mut Page,
) -> Result<&'a Page, DeltaError> {
    let Origin::Image { lsn: image } = reference.origin else { return Ok(page) };
    let (block, lsn) = (reference.block, reference.lsn);
    if let Some(number) = latest.get(&block) {
        let earlier = outline.images[*number];
        if outline.lsns.get(earlier.record) == Some(&image) {
            page_of(earlier.bytes(body), earlier.shape.hole, page);
            return Ok(page);
        }
        return Err(DeltaError::MissingImage { block, image, lsn });
    }
    let Some(cache) = cache else { return Ok(page) };
    match cache.get(&block) {
        Some(cached) if cached.lsn == image => {
            cached.unchecked_page(page).map_err(|Rotten| DeltaError::RottenImage { block, image })
        }
        _ => Err(DeltaError::MissingImage { block, image, lsn }),
    }
}
