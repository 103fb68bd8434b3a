//! The digits of earlier frames, which those of a frame may repeat: identifiers come again long after the frame that had them first.
//! Spec: formats/deltas.md, "The window".

#![deny(clippy::indexing_slicing)]

use super::limits::WINDOW_BYTES_MAX;
use crate::base::Lsn;
use std::collections::VecDeque;

/// The digits of the last delta frames of an epoch: of as many as have room in [`WINDOW_BYTES_MAX`].
#[derive(Debug, Clone, Default)]
pub struct Window {
    /// Where each frame begins, and how many of the bytes are its.
    frames: VecDeque<(Lsn, usize)>,
    /// Of each frame a 0 and its digits: zstd takes what begins with its magic for a dictionary of its own form.
    bytes: Vec<u8>,
    /// Bytes before those of the first frame: frames that went, as long as it costs less to leave them than to move all others.
    gone: usize,
}

impl Window {
    /// What the frames from `from` on have.
    pub fn since(&self, from: Lsn) -> &[u8] {
        let before = self.frames.partition_point(|(start, _)| *start < from);
        let skipped: usize = self.frames.iter().take(before).map(|(_, len)| len).sum();
        self.bytes.get(self.gone + skipped..).unwrap_or(&[])
    }

    /// The next frame begins at `start` and has these digits.
    pub fn push(&mut self, start: Lsn, digits: &[u8]) {
        if digits.is_empty() {
            return;
        }
        let len = 1 + digits.len();
        let mut left = self.bytes.len() - self.gone + len;
        while left > WINDOW_BYTES_MAX {
            let Some((_, oldest)) = self.frames.pop_front() else { break };
            (self.gone, left) = (self.gone + oldest, left - oldest);
        }
        if self.gone >= WINDOW_BYTES_MAX {
            self.bytes.drain(..self.gone);
            self.gone = 0;
        }
        if len <= WINDOW_BYTES_MAX {
            self.frames.push_back((start, len));
            self.bytes.push(0);
            self.bytes.extend_from_slice(digits);
        }
    }

    /// Forgets everything: a new epoch begins.
    pub fn clear(&mut self) {
        self.frames.clear();
        self.bytes.clear();
        self.gone = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_the_digits_of_frames_from_a_place_on() {
        let mut window = Window::default();
        for (start, digits) in [(10, &b"abc"[..]), (20, b""), (30, b"d"), (40, b"ef")] {
            window.push(Lsn::new(start), digits);
        }
        for (from, expected) in
            [(0, &b"\0abc\0d\0ef"[..]), (10, b"\0abc\0d\0ef"), (11, b"\0d\0ef"), (31, b"\0ef"), (41, b"")]
        {
            assert_eq!(window.since(Lsn::new(from)), expected, "from {from}");
        }
        window.clear();
        assert_eq!(window.since(Lsn::ZERO), b"");
    }

    #[test]
    fn holds_the_last_frames_that_have_room() {
        let mut window = Window::default();
        let half = vec![1; WINDOW_BYTES_MAX / 2 - 1];
        for number in 1..=5 {
            window.push(Lsn::new(number), &half);
            assert_eq!(window.since(Lsn::ZERO).len(), number.min(2) as usize * (WINDOW_BYTES_MAX / 2));
            assert!(window.bytes.len() <= 2 * WINDOW_BYTES_MAX, "{} bytes", window.bytes.len());
        }
        assert_eq!(window.since(Lsn::new(4)).len(), WINDOW_BYTES_MAX);
        window.push(Lsn::new(6), b"a");
        assert_eq!(window.since(Lsn::ZERO).len(), WINDOW_BYTES_MAX / 2 + 2);
        // One that has no room by itself leaves none.
        window.push(Lsn::new(7), &vec![1; WINDOW_BYTES_MAX]);
        assert_eq!((window.since(Lsn::ZERO), window.frames.len()), (&[][..], 0));
        window.push(Lsn::new(8), b"a");
        assert_eq!(window.since(Lsn::ZERO), b"\0a");
    }
}
