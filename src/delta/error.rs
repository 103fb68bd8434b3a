//! Why a delta frame did not become WAL again, by what the caller does next: fetch pages, decode from earlier on, or give the
//! frame up as damaged.

use super::block::BlockId;
use crate::base::{Lsn, LsnRange};
use crate::format::FormatError;

/// A delta frame that was not decoded. No byte of it was handed out, and, but for [`DeltaError::NoRoom`], the image cache is as before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeltaError {
    /// The frame is not what the specification says: damage.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// Pages of the base that the source did not have. Fetch them all, and decode again.
    #[error("{} pages of the base are missing, first {}", .0.len(), .0.first().map_or("none".to_owned(), |p| p.to_string()))]
    MissingPages(Vec<MissingPage>),
    /// A page of the base is not the one that the frame was made with.
    #[error("the base's page of {block}: check {found:08x}, expected {expected:08x} by the image at {lsn}")]
    WrongPage {
        /// The block.
        block: BlockId,
        /// The record whose image refers to it.
        lsn: Lsn,
        /// The check of what the source gave.
        found: u32,
        /// The check in the frame.
        expected: u32,
    },
    /// An earlier image is not in the cache: the frames from it on were not all decoded, or the cache is smaller than the encoder's was.
    #[error("the image of {block} at {image} is not in the cache, needed by the one at {lsn}")]
    MissingImage {
        /// The block.
        block: BlockId,
        /// The record whose image is needed.
        image: Lsn,
        /// The record whose image refers to it.
        lsn: Lsn,
    },
    /// The cache's copy of an image changed since it was put there, as far as the cache has checks.
    #[error("the cached image of {block} at {image} is rotten")]
    RottenImage {
        /// The block.
        block: BlockId,
        /// The record whose image it was.
        image: Lsn,
    },
    /// Digits of the frame repeat those of frames before it, which were not all decoded, or are lost.
    #[error(
        "WAL {range}: its digits repeat those of the delta frames of its epoch from {from} on, which are lost or differ"
    )]
    WrongWindow {
        /// What the frame holds.
        range: LsnRange,
        /// Where the first of these frames begins, at the earliest.
        from: Lsn,
    },
    /// No room for what later frames refer to; the image cache is empty.
    #[error("no room for the images of WAL {range}: {reason}")]
    NoRoom {
        /// What was decoded.
        range: LsnRange,
        /// What the operating system says.
        reason: String,
    },
    /// Decoded, but not to the bytes that were encoded.
    #[error("WAL {range}: BLAKE3 of what was decoded differs from the frame's")]
    Differs {
        /// What the frame should hold.
        range: LsnRange,
    },
}

/// A page of the base that an image refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MissingPage {
    /// The block.
    pub block: BlockId,
    /// The first record whose image refers to it.
    pub lsn: Lsn,
}

impl std::fmt::Display for MissingPage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} for the image at {}", self.block, self.lsn)
    }
}
