//! One delta frame into the WAL it was made of. Everything in a frame is held against bounds before memory is taken for it, and what
//! comes out against the frame's BLAKE3. Spec: formats/deltas.md.

use super::block::{BlockId, PageSource};
use super::cache::ImageCache;
use super::columns::ColumnReader;
use super::diff::{DifferenceReader, page_of};
use super::encode::range_of;
use super::error::DeltaError;
use super::framing::{Dressed, Dresser, Expected};
use super::headers::KindHeaders;
use super::history::Check;
use super::keep::{KeptRecords, keep_all};
use super::moved::{MovedRows, SplitPages, near_of};
use super::outline::{OUTLINE_SECTIONS, Origin, Outline, Reference, outline};
use super::records::{Groups, QuickHasher};
use super::referred::{ZeroPages, all_missing, blame, cached_image, check_of, missing_page};
use super::repack::{Known, PlainImages, Repacker};
use super::section::{SectionReader, read_head};
use super::varint::Cursor;
use super::walk::edge_stretches;
use super::window::Window;
use crate::base::limits::BLOCK_BYTES;
use crate::base::{Lsn, LsnRange, crc32c};
use crate::format::FormatError;
use crate::format::delta::{ImageSource, SectionKind};
use crate::wal::record::{RECORD_HEADER_BYTES, RecordHeader};
use std::collections::HashMap;
use std::hash::BuildHasherDefault;

/// Where the checksum stands in a record's header, at its end.
const RECORD_CRC_AT: usize = RECORD_HEADER_BYTES - 4;

/// Decodes frames of one epoch, in order.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    pub(super) sections: SectionReader,
    pub(super) contents: Vec<u8>,
    /// Where contents begin in `contents`, by the field that has their length.
    pub(super) places: Vec<u32>,
    groups: Groups,
    /// A record that page headers are put into.
    pub(super) room: Vec<u8>,
    /// The last image of each block in the frame so far.
    latest: HashMap<BlockId, usize, BuildHasherDefault<QuickHasher>>,
    /// The images of the frame that PostgreSQL compressed and that are not stored so.
    pub(super) plain: PlainImages,
    repacker: Repacker,
    /// The pages that were split in the frame, as they were before.
    pub(super) split_pages: SplitPages,
    /// What was made of the last frame that was checked.
    made: Vec<u8>,
}

impl FrameDecoder {
    /// A decoder.
    pub fn new() -> Self {
        FrameDecoder::default()
    }

    /// What `frame` refers to: which pages to fetch, and which earlier frames to decode before it.
    pub fn references(&mut self, frame: &[u8]) -> Result<Vec<Reference>, DeltaError> {
        let (head, stored) = read_head(frame)?;
        self.sections.read(&head, stored, OUTLINE_SECTIONS, &Window::default())?;
        Ok(outline(head, &self.sections)?.all_references().copied().collect())
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
        let outline = self.proved(frame, cache, pages, to)?;
        self.fold(cache);
        let body = Dressed::new(to, outline.place, &outline.marks);
        let kept = keep_all(&self.kept(&outline), body, &self.plain, (outline.place, &outline.marks), cache);
        let range = range_of(&outline.head);
        kept.map_err(|error| {
            to.clear();
            DeltaError::NoRoom { range, reason: error.to_string() }
        })?;
        cache.window.push(range.start, self.sections.section(SectionKind::Digits));
        Ok(range)
    }

    /// Puts the WAL of `frame` into `to`, and holds it against its BLAKE3; on failure `to` is empty.
    pub(super) fn proved(
        &mut self,
        frame: &[u8],
        cache: &ImageCache,
        pages: &mut dyn PageSource,
        to: &mut Vec<u8>,
    ) -> Result<Outline, DeltaError> {
        let done = self.restore(frame, Some(cache), &cache.window, pages, None, to).and_then(|outline| {
            let same = *blake3::hash(to).as_bytes() == outline.head.raw_hash;
            if same { Ok(outline) } else { Err(blame(&outline, cache, pages)) }
        });
        done.inspect_err(|_| to.clear())
    }

    /// Makes the pages of images that were split what they were found to be with what records did to them.
    pub(super) fn fold(&self, cache: &mut ImageCache) {
        for ((block, origin), page) in &self.split_pages {
            if matches!(origin, Origin::Image { .. }) {
                cache.fold(block, page);
            }
        }
    }

    /// The records of the frame of `outline`, whose contents were decoded.
    pub(super) fn kept<'a>(&'a self, outline: &'a Outline) -> KeptRecords<'a> {
        KeptRecords {
            version: outline.version,
            structure: &outline.structure,
            stretches: &outline.records,
            lsns: &outline.lsns,
            images: &outline.images,
            contents: &self.contents,
            places: &self.places,
        }
    }

    /// Puts the WAL of `frame` into `to` with zeros in the place of what images and moved tuples take from other pages, and of images
    /// that are to be compressed again; returns where it lies. The records are as they were but for those and for `xl_crc`, which fits what is
    /// there: enough to read records, at any place, without a cache and a base. That it is right is for the seal of the frame to say;
    /// its BLAKE3 cannot be compared. `window` is that of the frames before it in its epoch, and goes on; a frame whose digits
    /// repeat none does not need it.
    ///
    /// # Errors
    /// [`DeltaError::WrongWindow`]: let the frames before it [`Self::pass`].
    pub fn decode_records(
        &mut self,
        frame: &[u8],
        window: &mut Window,
        to: &mut Vec<u8>,
    ) -> Result<LsnRange, DeltaError> {
        let restored = self.restore(frame, None, window, &mut ZeroPages, None, to);
        let range = range_of(&restored.inspect_err(|_| to.clear())?.head);
        window.push(range.start, self.sections.section(SectionKind::Digits));
        Ok(range)
    }

    /// Takes from `frame` what the window of later ones needs, and nothing else.
    pub fn pass(&mut self, frame: &[u8], window: &mut Window) -> Result<LsnRange, DeltaError> {
        let (head, stored) = read_head(frame)?;
        self.sections.read(&head, stored, &[SectionKind::Digits], window)?;
        window.push(head.start, self.sections.section(SectionKind::Digits));
        Ok(range_of(&head))
    }

    /// Whether `frame` decodes to `raw`, for its encoder: no BLAKE3 is needed for that, and the cache is not changed.
    pub(super) fn gives(
        &mut self,
        frame: &[u8],
        cache: &ImageCache,
        pages: &mut dyn PageSource,
        known: Known<'_>,
        raw: &[u8],
    ) -> bool {
        let mut made = std::mem::take(&mut self.made);
        let same = self.restore(frame, Some(cache), &cache.window, pages, Some(known), &mut made).is_ok()
            && made == raw;
        self.made = made;
        same
    }

    /// Puts what `frame` says into `to`; whether that is right is not known yet. Without a cache, zeros take the place of the pages
    /// that it would give.
    fn restore(
        &mut self,
        frame: &[u8],
        cache: Option<&ImageCache>,
        window: &Window,
        pages: &mut dyn PageSource,
        known: Option<Known<'_>>,
        to: &mut Vec<u8>,
    ) -> Result<Outline, DeltaError> {
        to.clear();
        let (head, stored) = read_head(frame)?;
        self.sections.read(&head, stored, &[], window)?;
        let outline = outline(head, &self.sections)?;
        self.contents(&outline)?;
        match self.records(&outline, cache, pages, known, to) {
            Ok(()) => Ok(outline),
            Err(error) => Err(all_missing(&outline, pages).map_or(error, DeltaError::MissingPages)),
        }
    }

    /// Fills `contents` with rows, and takes room there for moved tuples, which [`Self::records`] decodes first; fills `places`.
    pub(super) fn contents(&mut self, outline: &Outline) -> Result<(), DeltaError> {
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
            for field in plan.row_slots() {
                for group in self.groups.of(structure, records, field) {
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
        for (moved, _) in &outline.moved {
            let len = structure.fields.get(moved.data).copied().unwrap_or(0) as usize;
            if let Some(place) = self.places.get_mut(moved.data) {
                *place = self.contents.len() as u32;
            }
            self.contents.resize(self.contents.len() + len, 0);
        }
        let ColumnReader { layouts, constants, columns, differences, rows, digits } = from;
        for cursor in [layouts, constants, columns, differences, rows, digits] {
            cursor.finish()?;
        }
        Ok(())
    }

    /// Puts edges, records and page headers into `to`.
    fn records(
        &mut self,
        outline: &Outline,
        cache: Option<&ImageCache>,
        pages: &mut dyn PageSource,
        known: Option<Known<'_>>,
        to: &mut Vec<u8>,
    ) -> Result<(), DeltaError> {
        let FrameDecoder { sections, contents, places, room: among, latest, plain, repacker, .. } = self;
        let cursor = |what, kind| Cursor::new(what, sections.section(kind));
        let mut differences = DifferenceReader::of(sections);
        let mut stored = cursor("delta frame stored images", SectionKind::Stored);
        let mut edges = cursor("delta frame edges", SectionKind::Edges);
        let near = cache.map(|cache| near_of(cache, outline.all_references()));
        let rows = MovedRows { contents, places, split_pages: &mut self.split_pages };
        rows.take(outline, near.as_ref(), pages, &mut differences, |_| true)?;
        let Outline { head, structure, place, marks, .. } = outline;
        let raw_len = head.raw_len as usize;
        to.reserve(raw_len);
        let exceptions = &structure.tables.page_headers;
        let mut dresser = Dresser::new(Expected::of(head)?, *place, marks, exceptions, to);
        let (head_len, tail_len) = (head.head_len as usize, head.tail_len as usize);
        let [begun, unfinished] = edge_stretches(head_len, tail_len, head.rest_len, outline.body_len);
        dresser.put(begun, edges.take(head_len)?)?;
        latest.clear();
        plain.clear();
        let (mut prev, mut next_image) = (head.prev, 0);
        let mut room = [0; BLOCK_BYTES];
        let mut switched = false;
        let mut headers_of: Vec<Option<KindHeaders>> = structure.plans.iter().map(|_| None).collect();
        for (number, stretch) in outline.records.iter().enumerate() {
            let Some((kind, plan)) = structure.kind_of(number) else { break };
            let fields = structure.numbers(number, plan);
            let header = RecordHeader {
                total_len: (stretch.end - stretch.start) as u32,
                xid: structure.xids.get(number).copied().unwrap_or(0),
                prev,
                info: kind.info,
                rmgr: kind.rmgr,
                crc: 0,
            };
            prev = outline.lsns.get(number).copied().unwrap_or(Lsn::ZERO);
            let headers = match headers_of.get_mut(usize::from(structure.kinds[number])) {
                Some(Some(known)) => &*known,
                Some(none) => none.insert(KindHeaders::of(kind, plan, &structure.tables.relations)?),
                None => break,
            };
            dresser.pad(stretch.start);
            let made = dresser.open();
            let from = made.len();
            headers.put(&header, fields, made)?;
            let places = structure.starts.get(number).and_then(|start| places.get(*start..)).unwrap_or(&[]);
            let content = |field: usize, made: &mut Vec<u8>| {
                let len = fields.get(field).copied().unwrap_or(0) as usize;
                let start = places.get(field).copied().unwrap_or(0) as usize;
                made.extend_from_slice(contents.get(start..start + len).unwrap_or(&[]));
            };
            for block in &plan.blocks {
                if block.image.is_some() {
                    let image = outline.images[next_image];
                    let reference = outline.references[next_image];
                    let source = outline.sources[next_image];
                    let hole = image.shape.hole;
                    let older = match (source, reference.origin) {
                        (ImageSource::Base, origin) => {
                            // Who vouches for it does not matter here: what comes of it has to have the frame's BLAKE3.
                            match pages.lend_page(&reference.block, check_of(origin), &mut room) {
                                Some((older, _)) => Some(older),
                                None => return Err(DeltaError::MissingPages(vec![missing_page(&reference)])),
                            }
                        }
                        (ImageSource::Image, Origin::Image { lsn: earlier_lsn }) => {
                            let earlier = latest.get(&reference.block).map(|at| (*at, outline.images[*at]));
                            Some(match earlier {
                                None => cached_image(
                                    &reference,
                                    earlier_lsn,
                                    near.as_ref(),
                                    Check::Skip,
                                    &mut room,
                                )?,
                                Some((at, earlier))
                                    if outline.lsns.get(earlier.record) == Some(&earlier_lsn) =>
                                {
                                    let (end, hole) = (earlier.start + earlier.shape.len, earlier.shape.hole);
                                    if let Some(plain) = plain.get(at) {
                                        page_of([plain], hole, &mut room);
                                    } else if earlier.record == number {
                                        let start = from + earlier.start - stretch.start;
                                        let open = dresser.open().get(start..start + earlier.shape.len);
                                        page_of(open, hole, &mut room);
                                    } else {
                                        let pieces = dresser.dressed().pieces(earlier.start, end);
                                        page_of(pieces, hole, &mut room);
                                    }
                                    &room
                                }
                                Some(_) => {
                                    let (block, lsn) = (reference.block, reference.lsn);
                                    return Err(DeltaError::MissingImage { block, image: earlier_lsn, lsn });
                                }
                            })
                        }
                        (ImageSource::Stored | ImageSource::Nothing | ImageSource::Image, _) => None,
                    };
                    let packing = outline.packings[next_image];
                    let image_to = match packing {
                        None => dresser.open(),
                        Some(packing) => plain.begin(next_image, packing),
                    };
                    match older {
                        Some(older) => differences.image(hole, older, image_to)?,
                        None if source == ImageSource::Stored => {
                            image_to.extend_from_slice(stored.take(image.shape.len)?);
                        }
                        None => image_to.extend_from_slice(differences.literals.take(hole.image_bytes())?),
                    }
                    if packing.is_some() {
                        // What was made of zeros is not the image: there is no use in packing it.
                        match cache {
                            None => {
                                let len = dresser.open().len() + image.shape.len;
                                dresser.open().resize(len, 0);
                            }
                            Some(_) => {
                                repacker.put(next_image, image.shape.len, plain, known, dresser.open());
                            }
                        }
                    }
                    if source != ImageSource::Stored {
                        latest.insert(image.shape.block, next_image);
                    }
                    next_image += 1;
                }
                if let Some(data) = block.data {
                    content(data, dresser.open());
                }
            }
            if let Some(main) = plan.main {
                content(main, dresser.open());
            }
            // The checksum covers the header last: with a copy of it behind, it is made in one go.
            let made = dresser.open();
            made.extend_from_within(from..from + RECORD_CRC_AT);
            let crc = crc32c::crc32c(made.get(from + RECORD_HEADER_BYTES..).unwrap_or(&[]));
            made.truncate(made.len() - RECORD_CRC_AT);
            if let Some(to) = made.get_mut(from + RECORD_CRC_AT..).and_then(|rest| rest.first_chunk_mut()) {
                *to = crc.to_le_bytes();
            }
            dresser.close(*stretch, from, among)?;
            switched = header.is_switch();
        }
        dresser.pad(outline.body_len - tail_len);
        dresser.put(unfinished, edges.take(tail_len)?)?;
        let made = dresser.finish()?;
        if made < raw_len && switched {
            to.resize(raw_len, 0);
        }
        if to.len() != raw_len {
            return Err(
                FormatError::new("delta frame", 0, format!("{} bytes of WAL", to.len()), raw_len).into()
            );
        }
        let DifferenceReader { literal_lens, copy_lens, shifts, literals } = differences;
        for cursor in [literal_lens, copy_lens, shifts, literals, stored, edges] {
            cursor.finish()?;
        }
        Ok(())
    }
}
