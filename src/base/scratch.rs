//! Room for what can be had again: pages that later ones are differences from. Where it is, memory or a file, is the caller's
//! choice, so that anonymous memory stays bounded whatever the size of a cluster.

use std::fmt;
use std::io;

/// A stretch of bytes of a length that is known from the start, zeros at first, whose room is taken as it is needed.
pub trait Memory: Send + Sync + fmt::Debug {
    /// The bytes that have room. Those beyond [`Memory::reach`] may not be there.
    fn bytes(&self) -> &[u8];

    /// The same, to be changed.
    fn bytes_mut(&mut self) -> &mut [u8];

    /// Takes room for the first `len` bytes, at least.
    ///
    /// # Errors
    /// No room, or `len` is more than was asked for when it was made. What had room before still has.
    fn reach(&mut self, len: usize) -> io::Result<()>;
}

/// Gives memory.
pub trait Scratch: Send + Sync + fmt::Debug {
    /// Memory of `len` bytes, none of which has room yet.
    fn memory(&self, len: usize) -> io::Result<Box<dyn Memory>>;
}

/// Anonymous memory grows by so many bytes at least.
const STEP_BYTES_MIN: usize = 1 << 20;

/// Anonymous memory, which grows as room is taken.
#[derive(Debug, Clone, Copy, Default)]
pub struct Anonymous;

#[derive(Debug)]
struct AnonymousMemory {
    bytes: Vec<u8>,
    len: usize,
}

impl Scratch for Anonymous {
    fn memory(&self, len: usize) -> io::Result<Box<dyn Memory>> {
        Ok(Box::new(AnonymousMemory { bytes: Vec::new(), len }))
    }
}

impl Memory for AnonymousMemory {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    fn reach(&mut self, len: usize) -> io::Result<()> {
        if len > self.len {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        if len > self.bytes.len() {
            // An eighth more, but no more than was asked for: much is moved without a copy, and what is never used costs as much.
            let room = len.saturating_add(STEP_BYTES_MIN.max(len / 8)).min(self.len);
            self.bytes.try_reserve_exact(room - self.bytes.len())?;
            self.bytes.resize(room, 0);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_taken_as_it_is_needed_and_no_further() {
        let mut memory = Anonymous.memory(100).unwrap();
        assert!(memory.bytes().is_empty());
        memory.reach(10).unwrap();
        memory.bytes_mut()[9] = 7;
        memory.reach(100).unwrap();
        assert_eq!((memory.bytes().len(), memory.bytes()[9]), (100, 7));
        assert!(memory.reach(101).is_err());
        assert_eq!(memory.bytes()[9], 7);
    }
}
