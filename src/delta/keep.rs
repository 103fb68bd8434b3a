//! What encoder and decoder keep of a frame for later ones, once it is sure: images, and what records did to the pages of images.
//! Spec: formats/deltas.md.

#![deny(clippy::indexing_slicing)]

use super::block::BlockId;
use super::cache::ImageCache;
use super::diff::page_of;
use super::directory::Near;
use super::framing::{Dressed, Mark, Place, Positions, Stretch};
use super::history::{Change, NO_BLOCK};
use super::records::ImageAt;
use super::repack::PlainImages;
use super::replay;
use super::structure::{ImageShape, Structure, flag};
use crate::base::Lsn;
use crate::wal::WalVersion;
use crate::wal::record::ImageCompression;
use std::io;

/// The records of a frame.
#[derive(Debug, Clone, Copy)]
pub struct KeptRecords<'a> {
    /// The version of the server.
    pub version: WalVersion,
    /// What they are.
    pub structure: &'a Structure,
    /// Where they lie in the body.
    pub stretches: &'a [Stretch],
    /// Their positions.
    pub lsns: &'a [Lsn],
    /// Their images.
    pub images: &'a [ImageAt],
    /// Where their contents are, if they are wanted.
    pub contents: &'a [u8],
    /// Where each begins there, by the field that has its length.
    pub places: &'a [u32],
}

impl<'a> KeptRecords<'a> {
    /// The content whose length is field `field` of record `record`, if that has one.
    fn content(&self, record: usize, field: Option<usize>) -> &'a [u8] {
        let Some(field) = field else { return &[] };
        let at = self.structure.starts.get(record).copied().unwrap_or(0) + field;
        let [start, len] =
            [self.places, &self.structure.fields].map(|of| of.get(at).copied().unwrap_or(0) as usize);
        self.contents.get(start..start + len).unwrap_or(&[])
    }
}

/// What is done with what the records of a frame leave.
pub trait Keeper {
    /// Where blocks are, before anything is done.
    fn find(&self, blocks: &[BlockId]) -> Vec<Near>;

    /// Image `number` of the frame is in the record at `lsn`.
    fn image(&mut self, number: usize, image: &ImageAt, lsn: Lsn) -> io::Result<()>;

    /// The page of `block` is an empty one from the record at `lsn` on.
    fn init(&mut self, block: BlockId, lsn: Lsn) -> io::Result<()>;

    /// A record changes `block`, which was at `near`. Data and main data of the change have `len` bytes.
    fn change(&mut self, block: &BlockId, near: Near, change: &Change<'_>, len: usize) -> io::Result<()>;
}

/// The images of a frame where they lie in its body.
#[derive(Debug)]
pub struct BodyImages<'a> {
    body: Dressed<'a>,
    plain: &'a PlainImages,
}

impl<'a> BodyImages<'a> {
    /// Those in `body`, but for those of `plain`.
    pub fn new(body: Dressed<'a>, plain: &'a PlainImages) -> Self {
        BodyImages { body, plain }
    }

    /// Puts image `number`, of the record at `lsn`, into `cache`. Images that are stored compressed are passed over.
    pub fn put(
        &mut self,
        number: usize,
        image: &ImageAt,
        lsn: Lsn,
        cache: &mut ImageCache,
    ) -> io::Result<()> {
        let ImageShape { block, hole, len, compression } = image.shape;
        if compression == ImageCompression::None {
            let pieces = self.body.pieces(image.start, image.start + len);
            return cache.insert(block, lsn, |page| page_of(pieces, hole, page));
        }
        match self.plain.get(number) {
            Some(bytes) => cache.insert(block, lsn, |page| page_of([bytes], hole, page)),
            None => Ok(()),
        }
    }
}

/// Keeps everything.
#[derive(Debug)]
struct Everything<'a> {
    images: BodyImages<'a>,
    cache: &'a mut ImageCache,
}

impl Keeper for Everything<'_> {
    fn find(&self, blocks: &[BlockId]) -> Vec<Near> {
        self.cache.find(blocks)
    }

    fn image(&mut self, number: usize, image: &ImageAt, lsn: Lsn) -> io::Result<()> {
        self.images.put(number, image, lsn, self.cache)
    }

    fn init(&mut self, block: BlockId, lsn: Lsn) -> io::Result<()> {
        self.cache.init(block, lsn)
    }

    fn change(&mut self, block: &BlockId, near: Near, change: &Change<'_>, _len: usize) -> io::Result<()> {
        self.cache.change(block, near, change)
    }
}

/// Keeps everything that `records` leave, whose images lie in `body`, in a range with page headers at `marks`.
///
/// # Errors
/// No room for it: `cache` is of no use any more, and empty.
pub fn keep_all(
    records: &KeptRecords<'_>,
    body: Dressed<'_>,
    plain: &PlainImages,
    (place, marks): (Place, &[Mark]),
    cache: &mut ImageCache,
) -> io::Result<()> {
    let images = BodyImages::new(body, plain);
    let kept = keep(records, (place, marks), &mut Everything { images, cache });
    if kept.is_err() {
        cache.clear();
    }
    kept
}

/// Tells `keeper` what `records` leave, in order. They lie in a range with page headers at `marks`.
pub fn keep(
    records: &KeptRecords<'_>,
    (place, marks): (Place, &[Mark]),
    keeper: &mut impl Keeper,
) -> io::Result<()> {
    let structure = records.structure;
    let mut near = near_blocks(records, keeper).into_iter();
    let mut positions = Positions::new(place, marks);
    let mut images = records.images.iter().enumerate();
    for (number, (stretch, lsn)) in records.stretches.iter().zip(records.lsns).enumerate() {
        let Some((kind, plan)) = structure.kind_of(number) else { break };
        let known = replay::knows(kind.rmgr);
        if kind.blocks.is_empty() || !known && plan.images.is_empty() {
            continue;
        }
        let fields = structure.numbers(number, plan);
        let of = |field: usize| fields.get(field).copied().unwrap_or(0);
        let mut change = Change {
            version: records.version,
            end: Lsn::ZERO,
            xid: structure.xids.get(number).copied().unwrap_or(0),
            rmgr: kind.rmgr,
            info: kind.info,
            role: 0,
            init: false,
            blocks: [NO_BLOCK; 3],
            data: &[],
            main: records.content(number, plan.main),
        };
        if known {
            change.end = positions.lsn_behind(stretch.end + place.padding(stretch.end));
            for (block, at) in kind.blocks.iter().zip(&plan.blocks) {
                if let Some(to) = change.blocks.get_mut(usize::from(block.id)) {
                    *to = of(at.block);
                }
            }
        }
        for (block, at) in kind.blocks.iter().zip(&plan.blocks) {
            match at.image.and_then(|_| images.next()) {
                Some((image_number, image)) => keeper.image(image_number, image, *lsn)?,
                None if known => {
                    let Some(near) = near.next() else { continue };
                    let Some(id) = structure.block(block, of(at.block)) else { continue };
                    change.role = block.id;
                    change.init = block.flags & flag::WILL_INIT != 0;
                    change.data = records.content(number, at.data);
                    if change.init {
                        keeper.init(id, *lsn)?;
                    }
                    let len =
                        [at.data, plan.main].into_iter().flatten().map(|field| of(field) as usize).sum();
                    keeper.change(&id, near, &change, len)?;
                }
                None => {}
            }
        }
    }
    Ok(())
}

/// Where the cache has the blocks that records change and have no image of, in order. All are looked for before any is changed, and so
/// are those of images, which are here or not.
fn near_blocks(records: &KeptRecords<'_>, keeper: &impl Keeper) -> Vec<Near> {
    let structure = records.structure;
    let (mut blocks, mut wanted) = (Vec::new(), Vec::with_capacity(2 * records.stretches.len()));
    // Records of a kind have the same block more often than not.
    let mut last: Vec<Option<(BlockId, usize)>> = vec![None; structure.plans.len()];
    for number in 0..records.stretches.len() {
        let Some((kind, plan)) = structure.kind_of(number) else { break };
        let known = replay::knows(kind.rmgr);
        if !known && plan.images.is_empty() {
            continue;
        }
        let fields = structure.numbers(number, plan);
        let mut last = structure.kinds.get(number).and_then(|kind| last.get_mut(usize::from(*kind)));
        for (block, at) in kind.blocks.iter().zip(&plan.blocks) {
            let id = structure.block(block, fields.get(at.block).copied().unwrap_or(0));
            let before = last.as_ref().and_then(|last| **last).filter(|(of_kind, _)| Some(*of_kind) == id);
            let place = match (before, id) {
                (Some((_, place)), _) => Some(place),
                (None, Some(id)) => {
                    blocks.push(id);
                    if let Some(last) = &mut last {
                        **last = Some((id, blocks.len() - 1));
                    }
                    Some(blocks.len() - 1)
                }
                (None, None) => None,
            };
            if known && at.image.is_none() {
                wanted.push(place);
            }
        }
    }
    let found = keeper.find(&blocks);
    let near = |place: Option<usize>| place.and_then(|place| found.get(place)).copied().unwrap_or_default();
    wanted.into_iter().map(near).collect()
}
