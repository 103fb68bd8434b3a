//! Pages that a frame refers to, as its decoder gets them; and which of them are missing, or not what the frame was made with.

#![deny(clippy::indexing_slicing)]

use super::block::{BlockId, Page, PageSource, Vouched, page_check};
use super::cache::{ImageCache, NearCache, Rotten};
use super::encode::range_of;
use super::error::{DeltaError, MissingPage};
use super::history::Check;
use super::outline::{Origin, Outline, Reference};
use crate::base::Lsn;
use crate::base::limits::BLOCK_BYTES;

/// Why what was decoded is not what was encoded: a page that is not the one the frame was made with, or the frame itself.
pub fn blame(outline: &Outline, cache: &ImageCache, pages: &mut dyn PageSource) -> DeltaError {
    let mut room = [0; BLOCK_BYTES];
    for reference in outline.all_references() {
        let (block, lsn) = (reference.block, reference.lsn);
        match reference.origin {
            Origin::Alone => {}
            Origin::Base { check: expected } => {
                let found = pages.lend_page(&block, expected, &mut room).map(|(page, _)| page_check(page));
                if let Some(found) = found.filter(|found| *found != expected) {
                    return DeltaError::WrongPage { block, lsn, found, expected };
                }
            }
            Origin::Image { lsn: image } => {
                let cached = cache.get(&block).filter(|cached| cached.lsn == image);
                if cached.is_some_and(|cached| cached.page(&mut room).is_err()) {
                    return DeltaError::RottenImage { block, image };
                }
            }
        }
    }
    DeltaError::Differs { range: range_of(&outline.head) }
}

/// The page of the base that `reference` is to, if it is the one that the frame was made with.
pub fn base_page<'a>(
    reference: &Reference,
    pages: &'a mut dyn PageSource,
    room: &'a mut Page,
) -> Result<&'a Page, DeltaError> {
    let (block, lsn, expected) = (reference.block, reference.lsn, check_of(reference.origin));
    let Some((page, _)) = pages.lend_page(&block, expected, room) else {
        return Err(DeltaError::MissingPages(vec![missing_page(reference)]));
    };
    let found = page_check(page);
    if found == expected { Ok(page) } else { Err(DeltaError::WrongPage { block, lsn, found, expected }) }
}

/// Pages of the base that the frame of `outline` refers to and `pages` does not have, if there are any.
pub fn all_missing(outline: &Outline, pages: &mut dyn PageSource) -> Option<Vec<MissingPage>> {
    let mut room = [0; BLOCK_BYTES];
    let of_base = outline.all_references().filter(|made| matches!(made.origin, Origin::Base { .. }));
    let missing: Vec<MissingPage> = of_base
        .filter(|reference| {
            pages.lend_page(&reference.block, check_of(reference.origin), &mut room).is_none()
        })
        .map(missing_page)
        .collect();
    (!missing.is_empty()).then_some(missing)
}

/// Zeros for every page.
pub struct ZeroPages;

impl PageSource for ZeroPages {
    fn base_page(&mut self, _block: &BlockId, page: &mut Page) -> Option<Vouched> {
        page.fill(0);
        Some(Vouched::BySource)
    }
}

/// The check of the page of the base that an image is made of.
pub fn check_of(origin: Origin) -> u32 {
    match origin {
        Origin::Base { check } => check,
        Origin::Alone | Origin::Image { .. } => 0,
    }
}

/// The page of the base that `reference` is to, as missing.
pub fn missing_page(reference: &Reference) -> MissingPage {
    MissingPage { block: reference.block, lsn: reference.lsn }
}

/// The image of an earlier frame that is `image` of the block of `reference`, with what records did to it since, held against its check, if
/// it has one, where `check` says so; zeros without a cache.
pub fn cached_image<'a>(
    reference: &Reference,
    image: Lsn,
    cache: Option<&'a NearCache<'_>>,
    check: Check,
    room: &'a mut Page,
) -> Result<&'a Page, DeltaError> {
    let (block, lsn) = (reference.block, reference.lsn);
    let Some(cache) = cache else {
        room.fill(0);
        return Ok(room);
    };
    match cache.get(&block) {
        Some(cached) if cached.lsn == image => {
            let page = match check {
                Check::Compare => cached.page(room),
                Check::Skip => cached.unchecked_page(room),
            };
            page.map_err(|Rotten| DeltaError::RottenImage { block, image })
        }
        _ => Err(DeltaError::MissingImage { block, image, lsn }),
    }
}
