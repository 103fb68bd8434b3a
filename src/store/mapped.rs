//! Objects of a local store mapped into memory, for short-lived tools that look at parts of large ones (`walden-inspect`). The
//! daemon and `verify` read with pread: a bad sector under a map ends the process with SIGBUS instead of an error.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Deref;

/// The bytes of an object, read from the disk as they are touched.
#[derive(Debug)]
pub struct MappedObject {
    map: memmap2::Mmap,
}

impl MappedObject {
    /// Maps the whole of `file`, which is an object's.
    pub(super) fn map(file: &File) -> io::Result<Self> {
        // SAFETY: the bytes must not change while they are mapped. An object is written under no name, or another, and gets its
        // own when it is whole; from then on nobody opens it to write, and it has no write bits. Whoever cuts it by force
        // ends this process, which only reads.
        let map = unsafe { memmap2::Mmap::map(file)? };
        Ok(MappedObject { map })
    }
}

impl Deref for MappedObject {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}
