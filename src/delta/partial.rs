//! Of a frame what later ones want, and nothing else: a page is made when it is, and no WAL is. What comes of it is proven by the
//! BLAKE3 of the frames that refer to it.

#![deny(clippy::indexing_slicing)]

use super::block::{BlockId, Page, PageSource};
use super::cache::ImageCache;
use super::decode::FrameDecoder;
use super::diff::{DifferenceReader, page_of};
use super::directory::Near;
use super::encode::range_of;
use super::error::DeltaError;
use super::framing::Dressed;
use super::history::{Change, Check};
use super::keep::{BodyImages, Keeper, keep};
use super::moved::{MovedRows, near_of};
use super::outline::{Origin, Outline, Reference, outline};
use super::records::ImageAt;
use super::referred::{base_page, cached_image};
use super::section::read_head;
use super::trace::{Bits, FrameTrace, Made};
use super::varint::Cursor;
use super::wants::FrameWants;
use crate::base::limits::BLOCK_BYTES;
use crate::base::{Lsn, LsnRange};
use crate::format::delta::{ImageSource, SectionKind};
use std::io;

/// Pages of images by the images' numbers, in order.
type MadePages = Vec<(usize, Box<Page>)>;

impl FrameDecoder {
    /// As [`FrameDecoder::decode`], with a cache that has what is wanted of the frames before, and gets of this one what `wants` says: all of it.
    pub fn decode_wanted(
        &mut self,
        frame: &[u8],
        (trace, wants): (&FrameTrace, &FrameWants),
        cache: &mut ImageCache,
        pages: &mut dyn PageSource,
        to: &mut Vec<u8>,
    ) -> Result<LsnRange, DeltaError> {
        cache.history.ring = trace.ring;
        let outline = self.proved(frame, cache, pages, to)?;
        self.fold(cache);
        let body = Dressed::new(to, outline.place, &outline.marks);
        let images = Images::InBody(BodyImages::new(body, &self.plain));
        self.keep_wanted(&outline, Sparse { cache, trace, wants, images, changes: 0, inits: 0 })
    }

    /// Puts of `frame` into `cache` what `wants` says.
    pub fn pages(
        &mut self,
        frame: &[u8],
        (trace, wants): (&FrameTrace, &FrameWants),
        cache: &mut ImageCache,
        pages: &mut dyn PageSource,
    ) -> Result<LsnRange, DeltaError> {
        cache.history.ring = trace.ring;
        let (head, stored) = read_head(frame)?;
        self.sections.read(&head, stored, &[], &cache.window)?;
        let outline = outline(head, &self.sections)?;
        self.contents(&outline)?;
        let made = self.wanted_images(&outline, trace, wants, cache, pages)?;
        self.fold(cache);
        let images = Images::Made(&made);
        self.keep_wanted(&outline, Sparse { cache, trace, wants, images, changes: 0, inits: 0 })
    }

    /// Nothing of `frame` is wanted but digits, which later frames may repeat.
    pub fn pass_over(&mut self, frame: &[u8], cache: &mut ImageCache) -> Result<LsnRange, DeltaError> {
        self.pass(frame, &mut cache.window)
    }

    fn keep_wanted(&self, outline: &Outline, mut sparse: Sparse<'_>) -> Result<LsnRange, DeltaError> {
        let range = range_of(&outline.head);
        keep(&self.kept(outline), (outline.place, &outline.marks), &mut sparse)
            .map_err(|error| DeltaError::NoRoom { range, reason: error.to_string() })?;
        sparse.cache.window.push(range.start, self.sections.section(SectionKind::Digits));
        Ok(range)
    }

    /// The images of a frame that are wanted, and the contents that are moved tuples.
    fn wanted_images(
        &mut self,
        outline: &Outline,
        trace: &FrameTrace,
        wants: &FrameWants,
        cache: &ImageCache,
        pages: &mut dyn PageSource,
    ) -> Result<MadePages, DeltaError> {
        let FrameDecoder { sections, contents, places, split_pages, room: image, .. } = self;
        let mut differences = DifferenceReader::of(sections);
        let mut stored = Cursor::new("delta frame stored images", sections.section(SectionKind::Stored));
        let of = |wanted: &Bits, number: &usize| wanted.get(*number);
        let moved = outline.moved.iter().map(|(_, reference)| reference).enumerate();
        let images = outline.references.iter().enumerate();
        let near = near_of(
            cache,
            (moved.filter(|(number, _)| of(&wants.moved, number)))
                .chain(images.filter(|(number, _)| of(&wants.images, number)))
                .map(|(_, reference)| reference),
        );
        let rows = MovedRows { contents, places, split_pages };
        rows.take(outline, Some(&near), pages, &mut differences, |number| wants.moved.get(number))?;
        let mut made = MadePages::new();
        let mut room = [0; BLOCK_BYTES];
        let each = outline.images.iter().zip(&outline.references).zip(&outline.sources).enumerate();
        for (number, ((ImageAt { shape, .. }, reference), source)) in each {
            let wanted = wants.images.get(number);
            image.clear();
            match source {
                ImageSource::Stored => drop(stored.take(shape.len)?),
                ImageSource::Nothing => {
                    let bytes = differences.literals.take(shape.hole.image_bytes())?;
                    image.extend_from_slice(if wanted { bytes } else { &[] });
                }
                ImageSource::Base | ImageSource::Image if !wanted => differences.pass(shape.hole)?,
                // No BLAKE3 tells here which page was another one.
                ImageSource::Base => {
                    differences.image(shape.hole, base_page(reference, pages, &mut room)?, image)?;
                }
                ImageSource::Image => {
                    let of = trace.images.get(number).map(|(_, made)| *made);
                    let earlier = match of {
                        Some(Made::OfImage(earlier)) => page_in(&made, earlier as usize),
                        _ => None,
                    };
                    let older = match earlier {
                        Some(earlier) => earlier,
                        None => {
                            cached_image(reference, lsn_of(reference), Some(&near), Check::Skip, &mut room)?
                        }
                    };
                    differences.image(shape.hole, older, image)?;
                }
            }
            if wanted && *source != ImageSource::Stored {
                let mut page = Box::new([0; BLOCK_BYTES]);
                page_of([&image[..]], shape.hole, &mut page);
                made.push((number, page));
            }
        }
        Ok(made)
    }
}

/// The position of the image that `reference` is to.
fn lsn_of(reference: &Reference) -> Lsn {
    match reference.origin {
        Origin::Image { lsn } => lsn,
        Origin::Base { .. } | Origin::Alone => Lsn::ZERO,
    }
}

fn page_in(made: &MadePages, number: usize) -> Option<&Page> {
    let at = made.binary_search_by_key(&number, |(number, _)| *number).ok()?;
    made.get(at).map(|(_, page)| &**page)
}

/// Where the images of a frame are.
enum Images<'a> {
    /// In its body: all of them.
    InBody(BodyImages<'a>),
    /// These, as pages.
    Made(&'a MadePages),
}

/// Keeps in a cache what is wanted, at the places that it has for those who keep everything.
struct Sparse<'a> {
    cache: &'a mut ImageCache,
    trace: &'a FrameTrace,
    wants: &'a FrameWants,
    images: Images<'a>,
    /// Changes so far.
    changes: usize,
    /// Pages that were made empty so far.
    inits: usize,
}

impl Keeper for Sparse<'_> {
    fn find(&self, blocks: &[BlockId]) -> Vec<Near> {
        self.cache.find(blocks)
    }

    fn image(&mut self, number: usize, image: &ImageAt, lsn: Lsn) -> io::Result<()> {
        match &mut self.images {
            Images::InBody(images) => images.put(number, image, lsn, self.cache),
            Images::Made(made) => match page_in(made, number) {
                Some(page) => self.cache.insert(image.shape.block, lsn, |to| *to = *page),
                None => Ok(()),
            },
        }
    }

    fn init(&mut self, block: BlockId, lsn: Lsn) -> io::Result<()> {
        self.inits += 1;
        if self.wants.inits.get(self.inits - 1) { self.cache.init(block, lsn) } else { Ok(()) }
    }

    fn change(&mut self, block: &BlockId, near: Near, change: &Change<'_>, len: usize) -> io::Result<()> {
        self.changes += 1;
        if !self.trace.kept.get(self.changes - 1) {
            return Ok(());
        }
        match self.cache.history.ring.take(len) {
            Some(place) => self.cache.change_at(block, near, change, place),
            None => Ok(()),
        }
    }
}
