//! Tuples that B-tree splits moved to a new page: differences from the page that was split. Spec: formats/deltas.md.

use super::block::{BlockId, Page, PageSource};
use super::cache::{ImageCache, NearCache};
use super::diff::{DifferenceReader, Hole};
use super::error::DeltaError;
use super::history::Check;
use super::outline::{Origin, Outline, Reference};
use super::referred::{cached_image, missing_page};
use super::replay::moved_tuples;
use crate::base::limits::BLOCK_BYTES;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// The pages that were split in a frame, as they were before.
pub type SplitPages = HashMap<(BlockId, Origin), Box<Page>>;

/// `cache` with the pages near that `references` are to.
pub fn near_of<'a, 'b>(
    cache: &'a ImageCache,
    references: impl Iterator<Item = &'b Reference>,
) -> NearCache<'a> {
    let of_cache = references.filter(|made| matches!(made.origin, Origin::Image { .. }));
    cache.near(&of_cache.map(|made| made.block).collect::<Vec<BlockId>>())
}

/// Where moved tuples go: among the contents of a frame, whose others are there already.
#[derive(Debug)]
pub struct MovedRows<'a> {
    /// The contents.
    pub contents: &'a mut [u8],
    /// Where each begins there, by the field that has its length.
    pub places: &'a [u32],
    /// The pages that they are differences from, to be filled.
    pub split_pages: &'a mut SplitPages,
}

impl MovedRows<'_> {
    /// Takes the moved tuples of the frame of `outline`, by number those that are `wanted`; others are passed over. Without a cache,
    /// zeros take the place of its pages.
    pub fn take(
        self,
        outline: &Outline,
        cache: Option<&NearCache<'_>>,
        pages: &mut dyn PageSource,
        differences: &mut DifferenceReader<'_>,
        wanted: impl Fn(usize) -> bool,
    ) -> Result<(), DeltaError> {
        let MovedRows { contents, places, split_pages } = self;
        split_pages.clear();
        let mut tuples = Vec::new();
        for (number, (moved, reference)) in outline.moved.iter().enumerate() {
            let place = |field: usize| {
                let [start, len] =
                    [places, &outline.structure.fields].map(|of| of.get(field).copied().unwrap_or(0));
                start as usize..start as usize + len as usize
            };
            let (room, main) = (place(moved.data), place(moved.main));
            let hole = Hole::before(room.len());
            if !wanted(number) {
                match reference.origin {
                    Origin::Alone => drop(differences.literals.take(room.len())?),
                    Origin::Base { .. } | Origin::Image { .. } => differences.pass(hole)?,
                }
                continue;
            }
            tuples.clear();
            match split_page(reference, cache, pages, split_pages)? {
                Some(split) => {
                    let mut near = [0; BLOCK_BYTES];
                    moved_tuples(contents.get(main).unwrap_or(&[]), &mut split.clone(), &mut near);
                    differences.image(hole, &near, &mut tuples)?;
                }
                None => tuples.extend_from_slice(differences.literals.take(room.len())?),
            }
            if let Some(to) = contents.get_mut(room) {
                to.copy_from_slice(&tuples);
            }
        }
        Ok(())
    }
}

/// The page that was split, if `reference` is to one.
fn split_page<'a>(
    reference: &Reference,
    cache: Option<&NearCache<'_>>,
    pages: &mut dyn PageSource,
    split_pages: &'a mut SplitPages,
) -> Result<Option<&'a mut Box<Page>>, DeltaError> {
    let place = match split_pages.entry((reference.block, reference.origin)) {
        Entry::Occupied(known) => return Ok(Some(known.into_mut())),
        Entry::Vacant(place) => place,
    };
    let mut room = [0; BLOCK_BYTES];
    let page = match reference.origin {
        Origin::Alone => return Ok(None),
        Origin::Base { check } => match pages.lend_page(&reference.block, check, &mut room) {
            Some((page, _)) => page,
            None => return Err(DeltaError::MissingPages(vec![missing_page(reference)])),
        },
        // It goes into the cache: where that has checks, nothing that rotted may get a new one.
        Origin::Image { lsn } => cached_image(reference, lsn, cache, Check::Compare, &mut room)?,
    };
    Ok(Some(place.insert(Box::new(*page))))
}
