//! What can be said of an object without its key: header, CRC of every frame, trailer. Spec: formats/object.md.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::read::{Expect, OpenError};
use crate::format::frame::{FrameHead, FrameKind, TRAILER_BYTES, Trailer, split_frame};
use crate::format::header::{HEADER_BYTES, ObjectHeader};
use crate::format::{FormatError, Reader};

/// Reads and checks a header without keys.
pub fn check_header(bytes: &[u8], expect: &Expect<'_>) -> Result<(ObjectHeader, [u8; 32]), OpenError> {
    let plain = bytes.get(..HEADER_BYTES).unwrap_or(bytes);
    let (header, commitment) = match ObjectHeader::decode(plain) {
        Err(error) if ObjectHeader::is_newer(plain) => return Err(OpenError::Newer(error)),
        decoded => decoded?,
    };
    let misplaced = |what, found: String, expected: String| OpenError::Misplaced { what, found, expected };
    if let Some(expected) = expect.kind.filter(|kind| *kind != header.kind) {
        return Err(misplaced("its kind", format!("{:?}", header.kind), format!("{expected:?}")));
    }
    if let Some(expected) = expect.repository.filter(|id| *id != header.repository) {
        return Err(misplaced("its repository", header.repository.to_string(), expected.to_string()));
    }
    if let Some(key) = expect.key.filter(|key| ObjectHeader::place_of(key) != header.place) {
        return Err(misplaced("its place", "another object's".into(), key.to_string()));
    }
    Ok((header, commitment))
}

/// Checks the CRC of every frame and the trailer, without keys. Returns the header and the count of frames.
pub fn check_without_key(bytes: &[u8], expect: &Expect<'_>) -> Result<(ObjectHeader, u32), OpenError> {
    let (header, _) = check_header(bytes, expect)?;
    let trailer = read_trailer(bytes)?;
    let misfit = |frame: u64, found: String| OpenError::Content {
        frame,
        found,
        expected: format!("the directory as frame {}, at byte {}, and the trailer", trailer.frame_count, {
            trailer.directory_offset
        }),
    };
    let (mut count, mut end) = (0u64, HEADER_BYTES as u64);
    for frame in walk_frames(bytes) {
        let frame = frame?;
        count = frame.number.saturating_add(1);
        end = frame.end();
        let last = count == u64::from(trailer.frame_count);
        let directory = frame.head.kind == FrameKind::Directory;
        if directory != last || (last && frame.offset != trailer.directory_offset) {
            return Err(misfit(frame.number, format!("{:?} at byte {}", frame.head.kind, frame.offset)));
        }
    }
    if count != u64::from(trailer.frame_count)
        || end.saturating_add(TRAILER_BYTES as u64) != trailer.object_len
    {
        return Err(misfit(count, format!("{count} frames that end at byte {end}")));
    }
    Ok((header, trailer.frame_count))
}

/// A frame as found by [`walk_frames`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameAt {
    /// Its number.
    pub number: u64,
    /// Where its head begins.
    pub offset: u64,
    /// Its head.
    pub head: FrameHead,
}

impl FrameAt {
    /// One past its last byte.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.head.stored_len())
    }
}

/// The frames of an object from its first on, each with its CRC checked, without trailer or directory: an object that was
/// cut or lost its directory can be read as far as it is good. Ends after the directory, the first error, or the bytes.
pub fn walk_frames(bytes: &[u8]) -> impl Iterator<Item = Result<FrameAt, FormatError>> + '_ {
    let mut next = Some((0u64, HEADER_BYTES));
    std::iter::from_fn(move || {
        let (number, offset) = next.take()?;
        let rest = bytes.get(offset..).filter(|rest| !rest.is_empty())?;
        match split_frame(rest) {
            Ok((head, _)) => {
                let frame = FrameAt { number, offset: offset as u64, head };
                if head.kind != FrameKind::Directory {
                    next = usize::try_from(frame.end()).ok().map(|end| (number.saturating_add(1), end));
                }
                Some(Ok(frame))
            }
            Err(error) => Some(Err(error.shifted(offset))),
        }
    })
}

/// The trailer of a whole object.
pub fn read_trailer(bytes: &[u8]) -> Result<Trailer, OpenError> {
    let start = bytes.len().saturating_sub(TRAILER_BYTES);
    let trailer = Trailer::decode(bytes.get(start..).unwrap_or_default(), bytes.len() as u64);
    Ok(trailer.map_err(|error| error.shifted(start))?)
}

/// The bytes of an object from `offset` on.
pub(super) fn slice_from(bytes: &[u8], offset: u64) -> Result<&[u8], OpenError> {
    let mut from = Reader::new("object", bytes);
    from.take(usize::try_from(offset).unwrap_or(usize::MAX))?;
    Ok(bytes.get(from.position()..).unwrap_or_default())
}
