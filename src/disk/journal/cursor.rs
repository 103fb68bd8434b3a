//! Walking the frames of one journal file, with bounded memory. Tells a frame that is not whole, which a crash may leave at the
//! end of what was synced, from one that is whole and yet does not open, which nothing but damage leaves.

use super::error::JournalError;
use crate::codec::journal::JournalOpener;
use crate::codec::{KeySource, OpenError, read::Expect};
use crate::disk::Disk;
use crate::format::FormatError;
use crate::format::frame::{FRAME_HEAD_BYTES, FrameHead, split_frame};
use crate::format::journal::{JOURNAL_BEGIN_BYTES, JournalFrame};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes read at once.
const READ_BYTES: usize = 2 << 20;

/// How a journal file begins.
pub(super) enum Begin {
    /// In order.
    Whole(Box<JournalOpener>),
    /// Not whole, and nothing follows: the file was being made when the process ended, and never held anything.
    Torn,
}

/// Reads the beginning of the file at `path`, of `file_len` bytes. It was synced before anything was appended, so that a broken
/// one with anything after it is damage.
pub(super) async fn open_begin(
    disk: &dyn Disk,
    path: &Path,
    file_len: u64,
    keys: &dyn KeySource,
    expect: &Expect<'_>,
) -> Result<Begin, JournalError> {
    let read = disk.read_range(path, 0, JOURNAL_BEGIN_BYTES).await;
    let bytes = read.map_err(|error| JournalError::io(path, "reading its beginning", error))?;
    match JournalOpener::open(&bytes, keys, expect) {
        Ok(opener) => Ok(Begin::Whole(Box::new(opener))),
        Err(OpenError::Format(_)) if file_len <= JOURNAL_BEGIN_BYTES as u64 => Ok(Begin::Torn),
        Err(OpenError::Format(error)) => {
            Err(JournalError::damage(path, error.at as u64, error.found, error.expected))
        }
        Err(OpenError::Broken { frame } | OpenError::Content { frame, .. }) => {
            Err(JournalError::damage(path, 0, format!("frame {frame} that does not open"), "the first frame"))
        }
        Err(source) => Err(JournalError::Closed { path: path.to_owned(), source }),
    }
}

/// What a cursor comes upon.
pub(super) enum Step {
    /// A frame's plaintext.
    Frame { offset: u64, plain: Vec<u8> },
    /// Bytes that are no whole frame: at their end, or broken.
    NotWhole { offset: u64, error: FormatError },
    /// The limit, which is the end of a frame.
    End,
}

/// A place in one journal file.
pub(super) struct Cursor {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    /// Bytes of the file that count.
    limit: u64,
    /// Where the next frame begins, and its number.
    offset: u64,
    frame: u64,
    window: Vec<u8>,
    window_at: u64,
}

impl Cursor {
    /// Before the second frame of the file at `path`, of which `limit` bytes count.
    pub(super) fn new(disk: Arc<dyn Disk>, path: PathBuf, limit: u64) -> Self {
        let offset = JOURNAL_BEGIN_BYTES as u64;
        Cursor { disk, path, limit, offset, frame: 1, window: Vec::new(), window_at: offset }
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The next frame's number.
    pub(super) fn frame(&self) -> u64 {
        self.frame
    }

    /// The next frame.
    pub(super) async fn next(&mut self, opener: &JournalOpener) -> Result<Step, JournalError> {
        let offset = self.offset;
        if offset == self.limit {
            return Ok(Step::End);
        }
        self.fill(FRAME_HEAD_BYTES).await?;
        let stored_len = match FrameHead::decode(self.here()) {
            Ok((head, _)) => head.stored_len(),
            Err(error) => return Ok(Step::NotWhole { offset, error }),
        };
        self.fill(usize::try_from(stored_len).unwrap_or(usize::MAX)).await?;
        if let Err(error) = split_frame(self.here()) {
            return Ok(Step::NotWhole { offset, error });
        }
        let plain = opener
            .frame(self.frame, self.here())
            .map_err(|error| JournalError::damage(&self.path, offset, error, "a frame of this file"))?;
        self.offset += stored_len;
        self.frame += 1;
        Ok(Step::Frame { offset, plain })
    }

    /// The window from the current offset on.
    fn here(&self) -> &[u8] {
        usize::try_from(self.offset - self.window_at)
            .ok()
            .and_then(|skip| self.window.get(skip..))
            .unwrap_or_default()
    }

    /// Has `need` bytes in the window, or all up to the limit.
    async fn fill(&mut self, need: usize) -> Result<(), JournalError> {
        let left = usize::try_from(self.limit.saturating_sub(self.offset)).unwrap_or(usize::MAX);
        if self.here().len() >= need.min(left) {
            return Ok(());
        }
        let len = need.max(READ_BYTES).min(left);
        let read = self.disk.read_range(&self.path, self.offset, len).await;
        self.window = read.map_err(|error| JournalError::io(&self.path, "reading it", error))?;
        self.window_at = self.offset;
        Ok(())
    }
}

/// How many numbers are tried for a frame found past a broken one: how many frames may be lost in between.
const LOST_FRAMES_MAX: u64 = 256;

/// Looks past a break at `broken_at`, where frame `frame` was to stand, for a frame that was sealed when the bytes at the
/// break were durable already: then the break is damage. Returns where that frame is. A frame that is whole but cannot be
/// opened counts as well: far more is lost before it than one sync writes.
pub(super) fn frame_that_knew(
    opener: &JournalOpener,
    tail: &[u8],
    broken_at: u64,
    frame: u64,
) -> Option<u64> {
    let (mut skip, mut number) = (1, frame);
    while let Some(rest) = tail.get(skip..).filter(|rest| rest.len() > FRAME_HEAD_BYTES) {
        let found = if looks_like_head(rest) { split_frame(rest).ok() } else { None };
        let Some((found, _)) = found else {
            skip += 1;
            continue;
        };
        let opened = (number..number + LOST_FRAMES_MAX).find_map(|n| Some((n, opener.frame(n, rest).ok()?)));
        let at = broken_at + skip as u64;
        let Some((opened_as, plain)) = opened else { return Some(at) };
        if JournalFrame::decode(&plain).map_or(true, |frame| frame.head.synced_len > broken_at) {
            return Some(at);
        }
        number = opened_as + 1;
        skip += found.stored_len() as usize;
    }
    None
}

/// Kind `Data`, codec `Raw` and the reserved zeros of a frame head: cheap to look for at every byte.
fn looks_like_head(bytes: &[u8]) -> bool {
    bytes.get(8..12) == Some(&[1, 0, 0, 0])
}
