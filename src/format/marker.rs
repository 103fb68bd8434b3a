//! The `walden` object: the first one of a repository, created once at `init`. Spec: formats/layout.md.

use super::bytes::FormatError;
use super::envelope::{ENVELOPE_HEAD_BYTES, PlainObject};
use super::record::{Field, record};
use crate::base::RepositoryId;

/// The version of the repository's layout that this program writes and reads.
pub const REPOSITORY_VERSION: u32 = 1;

record! {
    /// What makes an object-store prefix a repository.
    pub struct RepositoryMarker {
        /// The version of its layout.
        pub version: u32,
        /// Which repository; every other object repeats it.
        pub id: RepositoryId,
    }
}

impl PlainObject for RepositoryMarker {
    const MAGIC: [u8; 8] = *b"WALDREP\x01";

    fn check(&self) -> Result<(), FormatError> {
        if self.version == REPOSITORY_VERSION {
            return Ok(());
        }
        let found = format!("repository version {}", self.version);
        Err(FormatError::new(Self::TYPE, ENVELOPE_HEAD_BYTES, found, format!("version {REPOSITORY_VERSION}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_is_refused() {
        let newer = RepositoryMarker { version: 2, id: RepositoryId([7; 16]) }.to_object();
        let error = RepositoryMarker::from_object(&newer).unwrap_err();
        assert!(error.to_string().contains("repository version 2"), "{error}");
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_refused() {
        let marker = RepositoryMarker { version: REPOSITORY_VERSION, id: RepositoryId([7; 16]) };
        let bytes = marker.to_object();
        assert_eq!(RepositoryMarker::from_object(&bytes), Ok(marker));
        for at in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[at / 8] ^= 1 << (at % 8);
            assert!(RepositoryMarker::from_object(&flipped).is_err(), "bit {at}");
        }
        for len in 0..bytes.len() {
            assert!(RepositoryMarker::from_object(&bytes[..len]).is_err(), "{len} bytes");
        }
    }
}
