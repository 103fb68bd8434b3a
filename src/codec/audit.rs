//! For tests: whether a key was ever used twice with the same nonce on this thread.

use crate::format::header::HEADER_BYTES;
use std::cell::RefCell;
use std::collections::HashSet;

#[derive(Default)]
struct Seen {
    uses: HashSet<[u8; 32]>,
    reused: bool,
}

thread_local! {
    static SEEN: RefCell<Seen> = RefCell::default();
}

/// A frame was sealed: the header stands for the key, which is derived from it.
pub fn sealed(header: &[u8; HEADER_BYTES], nonce: &[u8]) {
    let mut hasher = blake3::Hasher::new();
    hasher.update(header).update(nonce);
    SEEN.with_borrow_mut(|seen| seen.reused |= !seen.uses.insert(*hasher.finalize().as_bytes()));
}

/// Whether a nonce was used twice since the last call; forgets everything.
pub fn take_reused() -> bool {
    SEEN.take().reused
}
