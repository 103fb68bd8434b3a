//! What a delta frame may hold, so that nobody's bytes make a decoder take more than a few tens of MiB.

use crate::base::limits::WAL_FRAME_BYTES;
use crate::format::delta::SectionKind;

/// The most that the sections of a frame may be when decompressed.
pub const SECTIONS_BYTES_MAX: usize = 12 << 20;
/// The most bytes of images that PostgreSQL compressed and that are not stored so, as they were before.
pub const FRAME_PLAIN_BYTES_MAX: usize = 8 << 20;
/// The most bytes of digits of earlier frames, and of a byte for each of these frames, that a frame may repeat.
pub const WINDOW_BYTES_MAX: usize = 512 << 10;
/// How far back the first of these frames may begin: who wants one frame by itself reads no more than this.
pub const WINDOW_WAL_BYTES: u64 = 32 << 20;
/// Sections of a frame.
pub const SECTIONS: usize = 18;
/// The most images and splits in a frame: what refers to pages.
pub const FRAME_IMAGES_MAX: usize = 4096;
/// The most kinds of records in a frame, and the most relations.
pub const FRAME_KINDS_MAX: usize = 1 << 16;

const _: () = assert!(SECTIONS_BYTES_MAX >= 2 * WAL_FRAME_BYTES + FRAME_PLAIN_BYTES_MAX);
const _: () = assert!(SECTIONS == SectionKind::ALL.len());
