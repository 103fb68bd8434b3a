//! Bugs that tests plant, to show that the crash rounds would find them. Without the feature `planted` there are none,
//! and every question is answered `false` at compile time.

/// A bug that would lose data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Bug {
    /// Acknowledges an object before the ones before it are durable.
    AcknowledgePastHole = 1,
    /// Creates the root that names a segment before the segment.
    RootBeforeData = 2,
    /// Takes a request whose outcome is unknown for done.
    TimeoutIsSuccess = 3,
    /// Takes over without fencing the streams before.
    FenceSkipped = 4,
    /// Trims what was received from the journal, not what is durable in the repository.
    JournalTrimmedEarly = 5,
    /// Does not hold what the server sends again against what is stored.
    OverlapNotCompared = 6,
    /// Seals every frame of an object with the same nonce.
    NonceReused = 7,
    /// Acknowledges what was appended to the journal before it was synced.
    AcknowledgeBeforeSync = 8,
    /// Begins an epoch of WAL deltas with the pages of the one before.
    EpochOutlived = 9,
    /// Believes in a root that was won below the floor.
    FloorNotChecked = 10,
    /// Takes the highest timeline for the one that the cluster is on, and nothing for the others.
    ExpiryByName = 11,
    /// Measures the grace period by the host's clock.
    GraceByHostClock = 12,
    /// Gives the next key epoch to every slot, also to those that nobody vouches for.
    VoucherNotChecked = 13,
    /// Destroys a key epoch without counting the flush objects that are sealed under it.
    FlushesNotCounted = 14,
    /// Lets chunks go while a backup is being made that may have found them stored.
    ChunksGoBesideBackups = 15,
    /// Forgets what was let go before it is removed.
    ForgottenBeforeRemoved = 16,
    /// Takes an epoch that the links do not lead to.
    LinksNotChecked = 17,
}

/// Whether `bug` is planted in this process.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn planted(_bug: Bug) -> bool {
    false
}

#[cfg(feature = "planted")]
pub use with_feature::{plant, planted};

#[cfg(feature = "planted")]
mod with_feature {
    use super::Bug;
    use std::cell::Cell;

    thread_local! {
        static PLANTED: Cell<u8> = const { Cell::new(0) };
    }

    /// Whether `bug` is planted on this thread.
    pub fn planted(bug: Bug) -> bool {
        PLANTED.get() == bug as u8
    }

    /// Plants `bug` on this thread, instead of any before; `None` roots it out.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.set(bug.map_or(0, |bug| bug as u8));
    }
}
