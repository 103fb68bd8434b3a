//! What frames of an epoch do to the pages of its cache, found out from their outlines alone: no page is made, and none is read. What
//! a range needs of the frames before it follows from their traces (`wants`), and so it can be decoded without most of what they hold
//! (`partial`). Spec: formats/deltas.md.

#![deny(clippy::indexing_slicing)]

use super::block::BlockId;
use super::cache::ImageCache;
use super::directory::{Directory, Near};
use super::encode::range_of;
use super::error::DeltaError;
use super::history::{Change, Ring};
use super::keep::{Keeper, KeptRecords, keep};
use super::outline::{OUTLINE_SECTIONS, Origin, Outline, Reference, outline};
use super::records::{ImageAt, QuickHasher};
use super::repack::Packing;
use super::section::{SectionReader, read_head};
use super::window::Window;
use crate::base::{Lsn, LsnRange};
use crate::format::delta::ImageSource;
use crate::wal::record::ImageCompression;
use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::io;

/// Bits in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bits {
    words: Vec<u64>,
    len: usize,
}

impl Bits {
    /// So many bits that are 0.
    pub fn zeros(len: usize) -> Bits {
        Bits { words: vec![0; len.div_ceil(64)], len }
    }

    /// Appends one.
    pub fn push(&mut self, bit: bool) {
        if self.len.is_multiple_of(64) {
            self.words.push(0);
        }
        self.len += 1;
        self.set(self.len - 1, bit);
    }

    /// Bit `at`; 0 beyond the end.
    pub fn get(&self, at: usize) -> bool {
        self.words.get(at / 64).is_some_and(|word| word >> (at % 64) & 1 != 0)
    }

    /// Makes bit `at`, which there is, be `bit`.
    pub fn set(&mut self, at: usize, bit: bool) {
        if let Some(word) = self.words.get_mut(at / 64) {
            *word = *word & !(1 << (at % 64)) | u64::from(bit) << (at % 64);
        }
    }

    /// Whether one is 1.
    pub fn any(&self) -> bool {
        self.words.iter().any(|word| *word != 0)
    }
}

/// What an image or a split of a frame is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    /// Nothing that is in a slot or in the base.
    Alone,
    /// The page of the base.
    OfBase(BlockId),
    /// The page in a slot as it was before the frame.
    OfSlot(u32),
    /// An image of the same frame, by its number.
    OfImage(u32),
}

/// What the images and records of a frame do to slots.
#[derive(Debug)]
pub struct FrameTrace {
    /// The ring of changes before the frame.
    pub(super) ring: Ring,
    /// By image: the slot that it comes to, if any, and what it is made of.
    pub(super) images: Vec<(Option<u32>, Made)>,
    /// The slots of pages that are made empty, in order.
    pub(super) inits: Vec<Option<u32>>,
    /// By split whose tuples moved: what those are made of, and the slot of the new page behind the frame.
    pub(super) moved: Vec<(Made, Option<u32>)>,
    /// By change of a block without image, in order: whether the block has a slot.
    pub(super) kept: Bits,
    /// The slots that are changed, each once.
    pub(super) changed: Vec<u32>,
}

impl FrameTrace {
    /// Bytes that it takes, about.
    pub fn bytes(&self) -> usize {
        size_of::<FrameTrace>()
            + size_of_val(&*self.images)
            + size_of_val(&*self.inits)
            + size_of_val(&*self.moved)
            + size_of_val(&*self.kept.words)
            + size_of_val(&*self.changed)
    }
}

/// Follows an epoch, frame by frame.
#[derive(Debug)]
pub struct Tracer {
    sections: SectionReader,
    directory: Directory,
    ring: Ring,
    /// By slot: the number of the last frame that changed it.
    changed_in: Vec<u32>,
    frames: u32,
}

impl Tracer {
    /// At the start of an epoch whose encoder had a cache of `pages_max` pages.
    pub fn new(pages_max: usize) -> Self {
        Tracer {
            sections: SectionReader::default(),
            directory: Directory::new(pages_max),
            ring: Ring::of(pages_max),
            changed_in: Vec::new(),
            frames: 0,
        }
    }

    /// What `frame`, the next one of the epoch, does; and where it lies.
    pub fn frame(&mut self, frame: &[u8]) -> Result<(LsnRange, FrameTrace), DeltaError> {
        let (head, stored) = read_head(frame)?;
        self.sections.read(&head, stored, OUTLINE_SECTIONS, &Window::default())?;
        let outline = outline(head, &self.sections)?;
        self.frames += 1;
        let mut trace = FrameTrace {
            ring: self.ring,
            images: self.images(&outline),
            inits: Vec::new(),
            moved: Vec::new(),
            kept: Bits::default(),
            changed: Vec::new(),
        };
        let moved: Vec<Made> =
            outline.moved.iter().map(|(_, reference)| self.made(reference, outline.head.start)).collect();
        let records = KeptRecords {
            version: outline.version,
            structure: &outline.structure,
            stretches: &outline.records,
            lsns: &outline.lsns,
            images: &outline.images,
            contents: &[],
            places: &[],
        };
        let mut keeper = Follower { tracer: self, packings: &outline.packings, trace: &mut trace };
        let range = range_of(&outline.head);
        keep(&records, (outline.place, &outline.marks), &mut keeper)
            .map_err(|error| DeltaError::NoRoom { range, reason: error.to_string() })?;
        let new_slots = outline.moved.iter().map(|(tuples, _)| self.directory.slot(&tuples.new));
        trace.moved = moved.into_iter().zip(new_slots).collect();
        Ok((range, trace))
    }

    /// Whether a cache that got all of the same frames has the same blocks, and the same changes; for tests.
    #[doc(hidden)]
    pub fn is_at(&self, cache: &ImageCache) -> bool {
        let entries = |directory: &Directory| -> Vec<Option<(BlockId, Lsn)>> {
            let all = (0..).map_while(|slot| directory.entry(slot));
            all.map(|entry| (directory.slot(&entry.block).is_some()).then_some((entry.block, entry.lsn)))
                .collect()
        };
        self.ring == cache.history.ring && entries(&self.directory) == entries(&cache.directory)
    }

    /// What the images of a frame are made of; their slots are not known yet.
    fn images(&self, outline: &Outline) -> Vec<(Option<u32>, Made)> {
        let mut latest: HashMap<BlockId, u32, BuildHasherDefault<QuickHasher>> = HashMap::default();
        let each = outline.references.iter().zip(&outline.sources).enumerate();
        each.map(|(number, (reference, source))| {
            let within = matches!(reference.origin, Origin::Image { lsn } if lsn >= outline.head.start);
            let made = match latest.get(&reference.block) {
                Some(earlier) if within => Made::OfImage(*earlier),
                _ => self.made(reference, outline.head.start),
            };
            if *source != ImageSource::Stored {
                latest.insert(reference.block, number as u32);
            }
            (None, made)
        })
        .collect()
    }

    /// What `reference` of a frame from `start` on is to, unless it is to an image of that frame.
    fn made(&self, reference: &Reference, start: Lsn) -> Made {
        match reference.origin {
            Origin::Base { .. } => Made::OfBase(reference.block),
            // What is not there is missed by who decodes it.
            Origin::Image { lsn } if lsn < start => {
                self.directory.slot(&reference.block).map_or(Made::Alone, Made::OfSlot)
            }
            Origin::Image { .. } | Origin::Alone => Made::Alone,
        }
    }
}

/// Follows the records of a frame.
struct Follower<'a> {
    tracer: &'a mut Tracer,
    packings: &'a [Option<Packing>],
    trace: &'a mut FrameTrace,
}

impl Keeper for Follower<'_> {
    fn find(&self, blocks: &[BlockId]) -> Vec<Near> {
        self.tracer.directory.find(blocks)
    }

    fn image(&mut self, number: usize, image: &ImageAt, lsn: Lsn) -> io::Result<()> {
        let packed = self.packings.get(number).is_some_and(Option::is_some);
        if (packed || image.shape.compression == ImageCompression::None)
            && let Some((slot, _)) = self.trace.images.get_mut(number)
        {
            *slot = self.tracer.directory.insert(image.shape.block, lsn);
        }
        Ok(())
    }

    fn init(&mut self, block: BlockId, lsn: Lsn) -> io::Result<()> {
        self.trace.inits.push(self.tracer.directory.insert(block, lsn));
        Ok(())
    }

    fn change(&mut self, block: &BlockId, near: Near, _change: &Change<'_>, len: usize) -> io::Result<()> {
        let Tracer { directory, ring, changed_in, frames, .. } = &mut *self.tracer;
        let slot = directory.slot_of(block, near);
        self.trace.kept.push(slot.is_some());
        let Some(slot) = slot else { return Ok(()) };
        ring.take(len);
        if changed_in.len() <= slot as usize {
            changed_in.resize(slot as usize + 1, 0);
        }
        if let Some(last) = changed_in.get_mut(slot as usize).filter(|last| **last != *frames) {
            *last = *frames;
            self.trace.changed.push(slot);
        }
        Ok(())
    }
}
