//! The last bytes that are stored, held against what the server sends again when a stream resumes.
//! Another history under the same positions is divergence: nothing of it may be stored.

use crate::base::planted::{Bug, planted};
use crate::base::{Lsn, limits};
use bytes::Bytes;
use std::collections::VecDeque;

/// The server sends other bytes than were stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server's WAL at {at} differs from what is stored: it took another course")]
pub struct Divergence {
    /// The first byte that differs.
    pub at: Lsn,
}

/// The newest bytes received, about [`limits::RESUME_OVERLAP_BYTES`] of them, without holes.
#[derive(Debug, Clone)]
pub struct Overlap {
    pieces: VecDeque<Bytes>,
    start: Lsn,
    end: Lsn,
}

impl Overlap {
    /// Nothing, at `at`.
    pub fn empty(at: Lsn) -> Overlap {
        Overlap { pieces: VecDeque::new(), start: at, end: at }
    }

    /// `bytes`, which end at `end`.
    pub fn ending_at(end: Lsn, bytes: Bytes) -> Overlap {
        let start = end.saturating_sub(bytes.len() as u64);
        Overlap { pieces: VecDeque::from([bytes]), start, end }
    }

    /// The first byte held.
    pub fn start(&self) -> Lsn {
        self.start
    }

    /// One past the last byte held.
    pub fn end(&self) -> Lsn {
        self.end
    }

    /// What is held, each piece with its position.
    pub fn pieces(&self) -> impl Iterator<Item = (Lsn, &Bytes)> {
        self.pieces.iter().scan(self.start, |at, piece| {
            let start = *at;
            *at = at.saturating_add(piece.len() as u64);
            Some((start, piece))
        })
    }

    /// Holds `bytes` at `at` against what is held, and takes in what is new. `at` is not past the end.
    pub fn take(&mut self, at: Lsn, bytes: &Bytes) -> Result<(), Divergence> {
        if !planted(Bug::OverlapNotCompared) {
            self.compare(at, bytes)?;
        }
        let known = usize::try_from(self.end.bytes_since(at)).unwrap_or(usize::MAX).min(bytes.len());
        let new = bytes.slice(known..);
        if new.is_empty() {
            return Ok(());
        }
        self.end = self.end.saturating_add(new.len() as u64);
        self.pieces.push_back(new);
        while let Some(first) = self.pieces.front() {
            let next = self.start.saturating_add(first.len() as u64);
            if self.end.bytes_since(next) < limits::RESUME_OVERLAP_BYTES {
                break;
            }
            self.start = next;
            self.pieces.pop_front();
        }
        Ok(())
    }

    fn compare(&self, at: Lsn, bytes: &[u8]) -> Result<(), Divergence> {
        for (piece_start, piece) in self.pieces() {
            let piece_end = piece_start.saturating_add(piece.len() as u64);
            let (from, to) = (at.max(piece_start), at.saturating_add(bytes.len() as u64).min(piece_end));
            if from < to {
                let len = to.bytes_since(from) as usize;
                let ours = piece.slice(from.bytes_since(piece_start) as usize..).slice(..len);
                let skip = from.bytes_since(at) as usize;
                let theirs = bytes.get(skip..skip + len).unwrap_or_default();
                if ours != theirs {
                    let same = ours.iter().zip(theirs).take_while(|(a, b)| a == b).count();
                    return Err(Divergence { at: from.saturating_add(same as u64) });
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn finds_the_first_byte_that_differs_across_pieces() {
        let mut overlap = Overlap::ending_at(Lsn::new(104), bytes("abcd"));
        overlap.take(Lsn::new(104), &bytes("efgh")).unwrap();
        assert_eq!((overlap.start(), overlap.end()), (Lsn::new(100), Lsn::new(108)));
        overlap.take(Lsn::new(98), &bytes("??abcdefghij")).unwrap();
        assert_eq!(overlap.end(), Lsn::new(110));
        assert_eq!(overlap.take(Lsn::new(102), &bytes("cdeX")), Err(Divergence { at: Lsn::new(105) }));
        assert_eq!(overlap.end(), Lsn::new(110), "nothing of another course is taken in");
    }

    #[test]
    fn keeps_no_more_than_it_must() {
        let mut overlap = Overlap::empty(Lsn::new(0));
        let piece = Bytes::from(vec![1; 128 << 10]);
        for _ in 0..100 {
            overlap.take(overlap.end(), &piece).unwrap();
        }
        let held = overlap.end().bytes_since(overlap.start());
        assert!((limits::RESUME_OVERLAP_BYTES..limits::RESUME_OVERLAP_BYTES + (128 << 10)).contains(&held));
    }
}
