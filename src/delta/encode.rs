//! One range of WAL into one delta frame. Spec: formats/deltas.md.

use super::block::{BlockId, Page, PageSource, Vouched, page_check, page_hash};
use super::cache::{ImageCache, NearCache, Rotten};
use super::columns::{ColumnWriter, Columns};
use super::diff::{Differ, Differences, Hole, page_of};
use super::framing::{Dressed, Expected, Mark, Positions};
use super::keep::{KeptRecords, keep_all};
use super::limits::{SECTIONS, SECTIONS_BYTES_MAX};
use super::outline::Origin;
use super::records::{ImageAt, RecordSplitter};
use super::repack::{Known, PlainImages, Repacker};
use super::replay::moved_tuples;
use super::section::SectionWriter;
use super::structure::MovedTuples;
use super::varint;
use super::walk::{Parts, Surprise};
use crate::base::limits::BLOCK_BYTES;
use crate::base::{Lsn, LsnRange, SystemId, TimelineId};
use crate::format::delta::{DELTA_MAGIC, DeltaHead, ImageSource};
use crate::format::record::Record;
use crate::wal::PageHeader;
use crate::wal::record::{ImageCompression, RecordHeader};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;

/// Where the bytes of a frame went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FrameStats {
    /// Bytes of WAL.
    pub raw: u64,
    /// Bytes of images in them.
    pub images_raw: u64,
    /// Images.
    pub images: u64,
    /// Of these, as differences from a page of the base.
    pub images_base: u64,
    /// Of these, as differences from an earlier image.
    pub images_image: u64,
    /// Of all, those that PostgreSQL compressed.
    pub images_compressed: u64,
    /// Of these, those that stay as they came.
    pub images_stored: u64,
    /// Pages that the source gave and that did not match what vouches for them.
    pub pages_rotten: u64,
    /// Records.
    pub records: u64,
    /// Stored bytes of each section.
    pub sections: [u64; SECTIONS],
    /// Stored bytes of everything.
    pub stored: u64,
}

impl FrameStats {
    /// Adds those of another frame.
    pub fn add(&mut self, other: &FrameStats) {
        self.raw += other.raw;
        self.images_raw += other.images_raw;
        self.images += other.images;
        self.images_base += other.images_base;
        self.images_image += other.images_image;
        self.images_compressed += other.images_compressed;
        self.images_stored += other.images_stored;
        self.pages_rotten += other.pages_rotten;
        self.records += other.records;
        self.sections.iter_mut().zip(other.sections).for_each(|(sum, len)| *sum += len);
        self.stored += other.stored;
    }
}

/// Pages of the base that a frame refers to, as they were when the frame was made.
#[derive(Debug, Default)]
pub struct UsedPages {
    /// Kept from frame to frame; of this one are those that `places` names.
    pages: Vec<Box<Page>>,
    places: HashMap<BlockId, usize>,
}

impl UsedPages {
    fn get(&self, block: &BlockId) -> Option<&Page> {
        self.places.get(block).and_then(|place| self.pages.get(*place)).map(|page| &**page)
    }

    /// Gets the base's page of `block`, if there is one that is what the backup stored; counts those that are not.
    fn fetch(
        &mut self,
        key: &[u8; 32],
        block: &BlockId,
        pages: &mut dyn PageSource,
        stats: &mut FrameStats,
    ) -> Option<&Page> {
        if self.places.contains_key(block) {
            return self.get(block);
        }
        let place = self.places.len();
        if place == self.pages.len() {
            self.pages.push(Box::new([0; BLOCK_BYTES]));
        }
        let page = self.pages.get_mut(place)?;
        let vouched = match pages.base_page(block, page)? {
            Vouched::BySource => true,
            Vouched::ByHash(hash) => page_hash(key, page) == hash,
        };
        if !vouched {
            stats.pages_rotten += 1;
            return None;
        }
        self.places.insert(*block, place);
        Some(page)
    }
}

impl PageSource for &UsedPages {
    fn base_page(&mut self, block: &BlockId, page: &mut Page) -> Option<Vouched> {
        *page = *self.get(block)?;
        Some(Vouched::BySource)
    }

    fn lend_page<'a>(
        &'a mut self,
        block: &BlockId,
        _expected: u32,
        _room: &'a mut Page,
    ) -> Option<(&'a Page, Vouched)> {
        Some((self.get(block)?, Vouched::BySource))
    }
}

/// Where pages from before a frame are.
struct Older<'a> {
    key: &'a [u8; 32],
    used: &'a mut UsedPages,
    cache: &'a NearCache<'a>,
    pages: &'a mut dyn PageSource,
}

impl<'a> Older<'a> {
    /// The page of `block` before this frame, and where it is from.
    fn page(self, block: BlockId, stats: &mut FrameStats, room: &'a mut Page) -> (Origin, Option<&'a Page>) {
        if let Some(cached) = self.cache.get(&block) {
            match cached.page(room) {
                Ok(page) => return (Origin::Image { lsn: cached.lsn }, Some(page)),
                Err(Rotten) => stats.pages_rotten += 1,
            }
        }
        match self.used.fetch(self.key, &block, self.pages, stats) {
            Some(page) => (Origin::Base { check: page_check(page) }, Some(page)),
            None => (Origin::Alone, None),
        }
    }
}

/// Says of what something in the record at `lsn` is made.
fn put_reference(origin: Origin, lsn: Lsn, references: &mut Vec<u8>) -> ImageSource {
    match origin {
        Origin::Alone => ImageSource::Nothing,
        Origin::Base { check } => {
            references.extend_from_slice(&check.to_le_bytes());
            ImageSource::Base
        }
        Origin::Image { lsn: earlier } => {
            // In units of 8 bytes: records start at multiples of 8.
            varint::put(lsn.bytes_since(earlier) / 8, references);
            ImageSource::Image
        }
    }
}

/// A page that was split in a frame, as it was before.
#[derive(Debug)]
struct SplitPage {
    origin: Origin,
    page: Box<Page>,
    /// Whether moved tuples refer to it.
    referred: bool,
}

/// Makes frames. Keeps memory and contexts from one to the next.
#[derive(Debug)]
pub struct FrameEncoder {
    key: [u8; 32],
    /// The records of the next frame, and then of the last.
    pub splitter: RecordSplitter,
    /// The pages of the base that the last frame refers to.
    pub used: UsedPages,
    columns: Columns,
    column_writer: ColumnWriter,
    repacker: Repacker,
    /// The images of the last frame that PostgreSQL compressed and that are stored as others are.
    plain: PlainImages,
    differ: Differ,
    differences: Differences,
    /// The pages that were split in the last frame and were somewhere before.
    split_pages: HashMap<BlockId, SplitPage>,
    sections: SectionWriter,
}

/// What page headers said last: the head of a frame without one repeats it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Context {
    timeline: Option<TimelineId>,
    system_id: Option<SystemId>,
    removable: bool,
}

impl FrameEncoder {
    /// An encoder that holds pages of the base against hashes keyed with `key`.
    pub fn new(key: [u8; 32]) -> Self {
        FrameEncoder {
            key,
            splitter: RecordSplitter::default(),
            used: UsedPages::default(),
            columns: Columns::default(),
            column_writer: ColumnWriter::default(),
            repacker: Repacker::default(),
            plain: PlainImages::default(),
            differ: Differ::default(),
            differences: Differences::default(),
            split_pages: HashMap::new(),
            sections: SectionWriter::new(),
        }
    }

    /// The frame of `raw`, which has `parts`, `body` and `marks`, and whose records the splitter took apart. It may repeat digits of
    /// frames from `window_from` on.
    #[allow(clippy::too_many_arguments)]
    pub fn encode(
        &mut self,
        raw: &[u8],
        parts: &Parts,
        body: &[u8],
        marks: &[Mark],
        context: &mut Context,
        window_from: Lsn,
        cache: &ImageCache,
        pages: &mut dyn PageSource,
    ) -> Result<(Vec<u8>, FrameStats), Surprise> {
        let place = parts.place;
        let mut stats = FrameStats { raw: raw.len() as u64, ..FrameStats::default() };
        context.learn(raw, marks);
        let expected = Expected {
            version: parts.version,
            timeline: context.timeline.unwrap_or(TimelineId(0)),
            system_id: context.system_id.unwrap_or(SystemId(0)),
            removable: context.removable,
        };
        let stretches = parts.stretches(body.len());
        self.splitter.structure.tables.page_headers = expected.exceptions(place, raw, marks, &stretches);

        self.columns.clear();
        self.splitter.put_contents(body, &mut self.column_writer, &mut self.columns);
        self.differences.clear();
        self.used.places.clear();
        self.plain.clear();
        self.split_pages.clear();
        let lsns = record_lsns(parts, marks);
        let (mut sources, mut references, mut stored) = (Vec::new(), Vec::new(), Vec::new());
        let moved = self.splitter.moved.iter().map(|moved| moved.block);
        let images = self.splitter.images.iter().map(|image| image.shape.block);
        let near = cache.near(&moved.chain(images).collect::<Vec<BlockId>>());
        for number in 0..self.splitter.moved.len() {
            let moved = self.splitter.moved[number];
            let lsn = lsns.get(moved.record).copied().unwrap_or(Lsn::ZERO);
            sources.push(self.moved(body, moved, lsn, &near, pages, &mut references, &mut stats) as u8);
        }
        let mut latest: HashMap<BlockId, usize> = HashMap::new();
        for number in 0..self.splitter.images.len() {
            let image = self.splitter.images[number];
            let source = self.image(
                body,
                number,
                &lsns,
                &latest,
                &near,
                pages,
                &mut references,
                &mut stored,
                &mut stats,
            )?;
            sources.push(source as u8 | self.plain.flags(number));
            if source != ImageSource::Stored {
                latest.insert(image.shape.block, number);
            }
        }

        let structure = &self.splitter.structure;
        let tables = structure.tables.encode();
        let (mut kinds, mut xids, mut numbers) = (Vec::new(), Vec::new(), Vec::new());
        structure.put_kinds(&mut kinds);
        structure.put_xids(&mut xids);
        structure.put_numbers(&self.splitter.by_kind, &mut numbers);
        let tail = body.len() - parts.tail_len;
        let edges = [&body[..parts.head_len], &body[tail..]].concat();
        let (columns, differences) = (&self.columns, &self.differences);
        let sections: [&[u8]; SECTIONS] = [
            &tables,
            &kinds,
            &xids,
            &numbers,
            &sources,
            &references,
            &differences.literal_lens,
            &differences.copy_lens,
            &differences.shifts,
            &differences.literals,
            &stored,
            &columns.layouts,
            &columns.constants,
            &columns.columns,
            &columns.differences,
            &columns.rows,
            &columns.digits,
            &edges,
        ];
        if sections.iter().map(|section| section.len()).sum::<usize>() > SECTIONS_BYTES_MAX {
            return Err(Surprise::TooMuch);
        }
        let prev = parts.records.first().and_then(|record| body.get(record.start..)?.first_chunk());
        let head = DeltaHead {
            magic: DELTA_MAGIC,
            start: place.start,
            raw_len: raw.len() as u32,
            raw_hash: *blake3::hash(raw).as_bytes(),
            page_magic: parts.version.magic(),
            segment_bytes: place.segment_size.get(),
            timeline: expected.timeline,
            system_id: expected.system_id,
            removable: expected.removable,
            prev: prev.map_or(Lsn::ZERO, |header| RecordHeader::decode(header).prev),
            zero_len: place.zero_len as u32,
            head_len: parts.head_len as u32,
            record_count: parts.records.len() as u32,
            tail_len: parts.tail_len as u32,
            rest_len: parts.rest_len,
            sections: Vec::new(),
        };
        let (frame, stored_lens) = self.sections.frame(head, &sections, &cache.window, window_from);
        stats.sections = stored_lens;
        stats.stored = frame.len() as u64;
        stats.records = parts.records.len() as u64;
        if frame.len() >= raw.len() {
            return Err(Surprise::NoGain);
        }
        Ok((frame, stats))
    }

    /// Stores image `number`, and says of what it was made.
    #[allow(clippy::too_many_arguments)]
    fn image(
        &mut self,
        body: &[u8],
        number: usize,
        lsns: &[Lsn],
        latest: &HashMap<BlockId, usize>,
        cache: &NearCache<'_>,
        pages: &mut dyn PageSource,
        references: &mut Vec<u8>,
        stored: &mut Vec<u8>,
        stats: &mut FrameStats,
    ) -> Result<ImageSource, Surprise> {
        let image = self.splitter.images[number];
        let mut bytes = image.bytes(body);
        stats.images += 1;
        stats.images_raw += bytes.len() as u64;
        if image.shape.compression != ImageCompression::None {
            stats.images_compressed += 1;
            self.repacker.unpack(number, &image.shape, bytes, &mut self.plain);
            match self.plain.get(number) {
                Some(plain) => bytes = plain,
                None => {
                    stats.images_stored += 1;
                    stored.extend_from_slice(bytes);
                    return Ok(ImageSource::Stored);
                }
            }
        }
        let (block, hole) = (image.shape.block, image.shape.hole);
        let lsn = lsns.get(image.record).copied().unwrap_or(Lsn::ZERO);
        if let Some(earlier) = latest.get(&block) {
            let plain = self.plain.get(*earlier);
            let earlier = self.splitter.images[*earlier];
            let mut page = [0; BLOCK_BYTES];
            page_of([plain.unwrap_or(earlier.bytes(body))], earlier.shape.hole, &mut page);
            let origin = Origin::Image { lsn: lsns.get(earlier.record).copied().unwrap_or(Lsn::ZERO) };
            put_reference(origin, lsn, references);
            self.differ.put(bytes, hole, &page, &mut self.differences);
            stats.images_image += 1;
            return Ok(ImageSource::Image);
        }
        let mut room = [0; BLOCK_BYTES];
        let older = Older { key: &self.key, used: &mut self.used, cache, pages };
        let (origin, older) = older.page(block, stats, &mut room);
        match older {
            Some(older) => self.differ.put(bytes, hole, older, &mut self.differences),
            None => self.differences.literals.extend_from_slice(bytes),
        }
        let source = put_reference(origin, lsn, references);
        stats.images_image += u64::from(source == ImageSource::Image);
        stats.images_base += u64::from(source == ImageSource::Base);
        Ok(source)
    }

    /// Stores tuples that a split moved, and says of what they were made.
    #[allow(clippy::too_many_arguments)]
    fn moved(
        &mut self,
        body: &[u8],
        moved: MovedTuples,
        lsn: Lsn,
        cache: &NearCache<'_>,
        pages: &mut dyn PageSource,
        references: &mut Vec<u8>,
        stats: &mut FrameStats,
    ) -> ImageSource {
        let FrameEncoder { key, used, splitter, split_pages, differ, differences, .. } = self;
        let [tuples, main] = [moved.data, moved.main].map(|field| splitter.content(body, field));
        if let Entry::Vacant(place) = split_pages.entry(moved.block) {
            let older = Older { key, used, cache, pages };
            if let (origin, Some(page)) = older.page(moved.block, stats, &mut [0; BLOCK_BYTES]) {
                place.insert(SplitPage { origin, page: Box::new(*page), referred: false });
            }
        }
        if let Some(split) = split_pages.get_mut(&moved.block) {
            let (before, mut near) = (differences.mark(), [0; BLOCK_BYTES]);
            moved_tuples(main, &mut split.page.clone(), &mut near);
            differ.put(tuples, Hole::before(tuples.len()), &near, differences);
            // Tuples that are newer than this frame, or than the base, are not there: nothing is gained by asking for the page.
            if differences.literals_since(before) * 8 <= tuples.len() * 7 {
                split.referred = true;
                return put_reference(split.origin, lsn, references);
            }
            differences.rewind(before);
        }
        differences.literals.extend_from_slice(tuples);
        ImageSource::Nothing
    }

    /// What a verifier need not find out again about the frame that was made last, whose body is `body`.
    pub fn known<'a>(&'a self, body: &'a [u8]) -> Known<'a> {
        Known { plain: &self.plain, images: &self.splitter.images, body }
    }

    /// Keeps in `cache` what the frame that was made last has of images and digits, and what its records did to their pages.
    ///
    /// # Errors
    /// No room: the cache is empty.
    pub fn keep(&self, parts: &Parts, body: &[u8], marks: &[Mark], cache: &mut ImageCache) -> io::Result<()> {
        let referred = self.split_pages.iter().filter(|(_, split)| split.referred);
        for (block, split) in referred.filter(|(_, split)| matches!(split.origin, Origin::Image { .. })) {
            cache.fold(block, &split.page);
        }
        let lsns = record_lsns(parts, marks);
        let records = KeptRecords {
            version: parts.version,
            structure: &self.splitter.structure,
            stretches: &parts.records,
            lsns: &lsns,
            images: &self.splitter.images,
            contents: body,
            places: &self.splitter.contents,
        };
        let bare = Dressed::bare(body, parts.place);
        keep_all(&records, bare, &self.plain, (parts.place, marks), cache)?;
        cache.window.push(parts.place.start, &self.columns.digits);
        Ok(())
    }
}

impl ImageAt {
    /// Its bytes in `body`.
    pub fn bytes<'a>(&self, body: &'a [u8]) -> &'a [u8] {
        body.get(self.start..self.start + self.shape.len).unwrap_or(&[])
    }
}

fn record_lsns(parts: &Parts, marks: &[Mark]) -> Vec<Lsn> {
    let mut positions = Positions::new(parts.place, marks);
    parts.records.iter().map(|record| positions.lsn(record.start)).collect()
}

impl Context {
    fn learn(&mut self, raw: &[u8], marks: &[Mark]) {
        let headers = marks.iter().filter_map(|mark| PageHeader::decode(raw.get(mark.raw..)?).ok());
        for (number, header) in headers.enumerate() {
            if number == 0 {
                self.timeline = Some(header.timeline);
                self.removable = header.removable;
            }
            if let Some(long) = header.long {
                self.system_id = Some(long.system_id);
            }
        }
    }
}

/// The range of a frame.
pub fn range_of(head: &DeltaHead) -> LsnRange {
    LsnRange::new(head.start, head.start.saturating_add(u64::from(head.raw_len)))
}
