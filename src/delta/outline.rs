//! What stands in a delta frame before contents and images: its head, its records' structure, and what its images refer to.
//! Held against bounds before memory is taken for anything. Spec: formats/deltas.md.

use super::block::BlockId;
use super::framing::{Expected, Mark, Place, Positions, Stretch};
use super::limits::{FRAME_IMAGES_MAX, FRAME_PLAIN_BYTES_MAX};
use super::records::ImageAt;
use super::repack::{Packing, UNSIGNED};
use super::section::SectionReader;
use super::structure::{ByKind, MovedTuples, Structure};
use super::varint::Cursor;
use crate::base::{Lsn, SegmentSize};
use crate::format::FormatError;
use crate::format::delta::{DeltaHead, DeltaTables, ImageSource, SectionKind};
use crate::format::record::Record;
use crate::wal::WalVersion;
use crate::wal::record::{ImageCompression, RECORD_BYTES_MAX};

/// What an image is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// Nothing else.
    Alone,
    /// The page of the epoch's base, with this check.
    Base {
        /// The page's check.
        check: u32,
    },
    /// The image of the same block in the record at this position.
    Image {
        /// The record.
        lsn: Lsn,
    },
}

/// An image of a frame, or what a split moved from a page, and what it refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reference {
    /// The block.
    pub block: BlockId,
    /// The record that has it.
    pub lsn: Lsn,
    /// What it is made of.
    pub origin: Origin,
}

/// What stands in a frame before contents and images.
#[derive(Debug)]
pub struct Outline {
    /// Its head.
    pub head: DeltaHead,
    /// The version of its pages.
    pub version: WalVersion,
    /// Where it lies.
    pub place: Place,
    /// Its records, without contents.
    pub structure: Structure,
    /// The same records kind by kind.
    pub by_kind: ByKind,
    /// Where they lie in the body.
    pub records: Vec<Stretch>,
    /// Their positions.
    pub lsns: Vec<Lsn>,
    /// The page headers.
    pub marks: Vec<Mark>,
    /// Bytes of the body.
    pub body_len: usize,
    /// Its images.
    pub images: Vec<ImageAt>,
    /// What each refers to.
    pub references: Vec<Reference>,
    /// What each is made of.
    pub sources: Vec<ImageSource>,
    /// What packs each that PostgreSQL compressed and that is not stored so.
    pub packings: Vec<Option<Packing>>,
    /// The tuples that splits moved, and of which page each is a difference.
    pub moved: Vec<(MovedTuples, Reference)>,
}

/// The sections that tell what a frame refers to.
pub const OUTLINE_SECTIONS: &[SectionKind] = &[
    SectionKind::Tables,
    SectionKind::Kinds,
    SectionKind::Xids,
    SectionKind::Numbers,
    SectionKind::Sources,
    SectionKind::References,
];

/// Reads everything of a frame but contents and images.
pub fn outline(head: DeltaHead, sections: &SectionReader) -> Result<Outline, FormatError> {
    let refuse = |found: String, expected: String| Err(FormatError::new("delta frame", 0, found, expected));
    let segment_size = match SegmentSize::new(u64::from(head.segment_bytes)) {
        Ok(size) => size,
        Err(error) => return refuse(error.to_string(), "a segment size".to_owned()),
    };
    let version = Expected::of(&head)?.version;
    let (raw_len, zero_len) = (head.raw_len as usize, head.zero_len as usize);
    let place = Place { start: head.start, segment_size, zero_len };
    let edges = u64::from(head.head_len) + u64::from(head.tail_len) + u64::from(head.zero_len);
    if edges > raw_len as u64 || place.inside_header().is_some_and(|_| zero_len < raw_len) {
        return refuse(
            format!("{edges} bytes at the edges"),
            format!("{raw_len} at most, outside of page headers"),
        );
    }
    if u64::from(head.rest_len) > u64::from(RECORD_BYTES_MAX) {
        return refuse(format!("a rest of {} bytes", head.rest_len), "one of a record".to_owned());
    }
    let tables = DeltaTables::decode(sections.section(SectionKind::Tables))?;
    let parts =
        [SectionKind::Kinds, SectionKind::Xids, SectionKind::Numbers].map(|kind| sections.section(kind));
    let (structure, by_kind) = Structure::read(tables, version, head.record_count as usize, parts)?;

    let (mut records, mut at) = (Vec::with_capacity(structure.kinds.len()), head.head_len as usize);
    at += place.padding(at);
    for record in 0..structure.kinds.len() {
        let len =
            structure.kind_of(record).map_or(0, |(_, plan)| plan.record_len(structure.numbers(record, plan)));
        let end = at as u64 + len;
        if end > raw_len as u64 {
            return refuse(format!("records of {end} bytes"), format!("{raw_len} at most"));
        }
        records.push(Stretch { start: at, end: end as usize, begun: false });
        at = end as usize + place.padding(end as usize);
    }
    let body_len = body_len(&head, place, &records, at);
    let marks = place.marks(body_len);
    let mut positions = Positions::new(place, &marks);
    let lsns: Vec<Lsn> = records.iter().map(|record| positions.lsn(record.start)).collect();
    let moved = structure.moved(&by_kind)?;
    let mut outline = Outline {
        head,
        version,
        place,
        structure,
        by_kind,
        records,
        lsns,
        marks,
        body_len,
        images: Vec::new(),
        references: Vec::new(),
        sources: Vec::new(),
        packings: Vec::new(),
        moved: Vec::new(),
    };
    outline.read_references(sections, &moved)?;
    Ok(outline)
}

/// The length of a body whose records and their padding end at `at`: a frame may end inside of padding.
fn body_len(head: &DeltaHead, place: Place, records: &[Stretch], at: usize) -> usize {
    if head.tail_len > 0 {
        return at + head.tail_len as usize;
    }
    let last = records.last().map_or(head.head_len as usize, |record| record.end);
    // Of the padding as much as the range has room for.
    let headers: usize = place.marks(at).iter().map(|mark| mark.len).sum();
    let room = (head.raw_len as usize).saturating_sub(place.zero_len + headers);
    at.min(room.max(last))
}

impl Outline {
    /// What its moved tuples and its images are differences from.
    pub fn all_references(&self) -> impl Iterator<Item = &Reference> {
        self.moved.iter().map(|(_, reference)| reference).chain(&self.references)
    }

    fn read_references(
        &mut self,
        sections: &SectionReader,
        moved: &[MovedTuples],
    ) -> Result<(), FormatError> {
        let mut sources = Cursor::new("delta frame sources", sections.section(SectionKind::Sources));
        let mut from = Cursor::new("delta frame references", sections.section(SectionKind::References));
        if moved.len() > FRAME_IMAGES_MAX {
            return Err(sources.error(moved.len(), format!("{FRAME_IMAGES_MAX} images and splits at most")));
        }
        for tuples in moved {
            let code = sources.byte()?;
            let source = ImageSource::ALL.get(usize::from(code)).copied();
            let source = source.filter(|source| *source != ImageSource::Stored);
            let source =
                source.ok_or_else(|| sources.error(code, "a code of ImageSource but that of Stored"))?;
            let lsn = self.lsns.get(tuples.record).copied().unwrap_or(Lsn::ZERO);
            let origin = read_origin(source, lsn, &mut from)?;
            self.moved.push((*tuples, Reference { block: tuples.block, lsn, origin }));
        }
        self.read_images(&mut sources, &mut from)?;
        sources.finish()?;
        from.finish()
    }

    fn read_images(&mut self, sources: &mut Cursor<'_>, from: &mut Cursor<'_>) -> Result<(), FormatError> {
        let mut plain_bytes = 0;
        for record in 0..self.records.len() {
            let Some((kind, plan)) = self.structure.kind_of(record) else { break };
            if plan.images.is_empty() {
                continue;
            }
            let fields = self.structure.numbers(record, plan);
            let lsn = self.lsns.get(record).copied().unwrap_or(Lsn::ZERO);
            let mut start = self.records.get(record).map_or(0, |record| record.start) + plan.header_bytes;
            for (block, at) in kind.blocks.iter().zip(&plan.blocks) {
                if let Some(shape) = self.structure.image(self.version, block, at, fields)? {
                    let byte = sources.byte()?;
                    let (flags, code) = (byte & UNSIGNED, byte & !UNSIGNED);
                    let source = ImageSource::ALL.get(usize::from(code)).copied();
                    let source = source.ok_or_else(|| sources.error(code, "a code of ImageSource"))?;
                    let packing = match (shape.compression, source) {
                        (ImageCompression::None, _) | (_, ImageSource::Stored) => None,
                        (compression, _) => Packing::of(compression, flags),
                    };
                    let compressed = shape.compression != ImageCompression::None;
                    let stored = source == ImageSource::Stored;
                    if compressed != (stored || packing.is_some()) || (packing.is_none() && flags != 0) {
                        let found = format!("{source:?} with flags {flags:#04x}");
                        return Err(sources.error(found, "one that fits the image's compression"));
                    }
                    if packing.is_some() {
                        plain_bytes += shape.hole.image_bytes();
                    }
                    if plain_bytes > FRAME_PLAIN_BYTES_MAX {
                        let found = format!("compressed images of {plain_bytes} bytes");
                        return Err(sources.error(found, format!("{FRAME_PLAIN_BYTES_MAX} at most")));
                    }
                    let origin = read_origin(source, lsn, from)?;
                    self.images.push(ImageAt { shape, record, start });
                    self.references.push(Reference { block: shape.block, lsn, origin });
                    self.sources.push(source);
                    self.packings.push(packing);
                    let found = self.images.len() + self.moved.len();
                    if found > FRAME_IMAGES_MAX {
                        let expected = format!("{FRAME_IMAGES_MAX} images and splits at most");
                        return Err(sources.error(found, expected));
                    }
                    start += shape.len;
                }
                start += at.data.and_then(|data| fields.get(data)).copied().unwrap_or(0) as usize;
            }
        }
        Ok(())
    }
}

/// What something in the record at `lsn` is made of.
fn read_origin(source: ImageSource, lsn: Lsn, from: &mut Cursor<'_>) -> Result<Origin, FormatError> {
    Ok(match source {
        ImageSource::Nothing | ImageSource::Stored => Origin::Alone,
        ImageSource::Base => {
            let check = from.take(4)?.first_chunk().map_or(0, |check| u32::from_le_bytes(*check));
            Origin::Base { check }
        }
        ImageSource::Image => Origin::Image { lsn: lsn.saturating_sub(from.varint()?.saturating_mul(8)) },
    })
}
