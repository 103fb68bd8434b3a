//! Key slots and sealed epoch secrets: the layouts. The cryptography is `codec::keyslot`. Spec: formats/keys.md.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::bytes::FormatError;
use super::envelope::PlainObject;
use super::record::{Blob, Field, code, record};
use crate::base::{RepositoryId, SlotName};

code! {
    /// What opens a key slot.
    pub enum SlotKind {
        /// A passphrase, stretched by argon2id.
        Passphrase = 1,
        /// A key of 32 bytes, from a file or a command.
        Key = 2,
    }
}

record! {
    /// A `keys/<slot>` object: an X25519 pair, its private half wrapped.
    pub struct KeySlot {
        /// The repository it belongs to.
        pub repository: RepositoryId,
        /// Its name; the key's too.
        pub name: SlotName,
        /// What opens it.
        pub kind: SlotKind,
        /// The public half, to which epoch secrets are sealed.
        pub public: [u8; 32],
        /// The epoch that was the newest when it was made: every later one has to follow from it.
        pub start: u32,
        /// The link key of epoch `start`.
        pub start_link: [u8; 32],
        /// Random, new for every slot: makes the wrapping key this slot's own.
        pub salt: [u8; 32],
        /// argon2id's memory in KiB; 0 for a key.
        pub cost_memory_kib: u32,
        /// argon2id's passes; 0 for a key.
        pub cost_passes: u32,
        /// argon2id's lanes; 0 for a key.
        pub cost_lanes: u32,
        /// The private half and the anchor, 32 bytes each, and a tag.
        pub wrapped: [u8; 80],
    }
}

record! {
    /// A `keys/epochs/<n>/_link` object: the link key of epoch n, signed by whoever held the epoch before. It outlives the epoch.
    pub struct EpochLink {
        /// The repository it belongs to.
        pub repository: RepositoryId,
        /// The epoch; in the key too.
        pub epoch: u32,
        /// The epoch's link key: what signs the link of the next one is checked by it.
        pub public: [u8; 32],
        /// By the link key of the epoch before.
        pub signature: [u8; 64],
    }
}

record! {
    /// A `keys/epochs/<n>/_epoch` object: its creation makes epoch n, and gives it to every slot at once.
    pub struct Epoch {
        /// The repository it belongs to.
        pub repository: RepositoryId,
        /// The epoch; in the key too.
        pub epoch: u32,
        /// The bytes of its [`EpochLink`] object; the first epoch has none.
        pub link: Option<Blob>,
        /// For each slot that was given the epoch when it was made, the bytes of an [`EpochSlot`] object.
        pub slots: Vec<Blob>,
    }
}

record! {
    /// A `keys/epochs/<n>/<slot>` object, or one of those in an [`Epoch`]: the secrets of epoch n, sealed to the slot's public half.
    pub struct EpochSlot {
        /// The repository it belongs to.
        pub repository: RepositoryId,
        /// The epoch; in the key too.
        pub epoch: u32,
        /// The slot; in the key too.
        pub slot: SlotName,
        /// The slot's public half.
        pub slot_public: [u8; 32],
        /// The public half of a pair made for this object alone.
        pub ephemeral_public: [u8; 32],
        /// The epoch's secret and the chunk id key, 32 bytes each, and a tag.
        pub sealed: [u8; 80],
        /// Proof, under the epoch's secret, that someone who held it wanted this slot to have it.
        pub voucher: [u8; 32],
    }
}

/// The most memory that argon2id may be told to use, 1 GiB: a slot is foreign, and its cost is paid before anything
/// in it is proven.
pub const COST_MEMORY_KIB_MAX: u32 = 1 << 20;
/// The most passes.
pub const COST_PASSES_MAX: u32 = 16;
/// The most lanes.
pub const COST_LANES_MAX: u32 = 16;
/// argon2id needs this much memory for each lane.
pub const COST_MEMORY_KIB_PER_LANE: u32 = 8;

/// What argon2id is told for a passphrase. Always within bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotCost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

impl SlotCost {
    /// 64 MiB, 3 passes, 1 lane: about a fifth of a second.
    pub const DEFAULT: SlotCost = SlotCost { memory_kib: 64 << 10, passes: 3, lanes: 1 };
    /// The least there is. For tests and keys that nobody must guess.
    pub const LEAST: SlotCost = SlotCost { memory_kib: COST_MEMORY_KIB_PER_LANE, passes: 1, lanes: 1 };

    /// Checks a cost; `None` when it is out of bounds.
    pub fn new(memory_kib: u32, passes: u32, lanes: u32) -> Option<Self> {
        let sane = (1..=COST_PASSES_MAX).contains(&passes)
            && (1..=COST_LANES_MAX).contains(&lanes)
            && memory_kib <= COST_MEMORY_KIB_MAX
            && memory_kib >= lanes.saturating_mul(COST_MEMORY_KIB_PER_LANE);
        sane.then_some(SlotCost { memory_kib, passes, lanes })
    }

    /// Memory in KiB.
    pub fn memory_kib(self) -> u32 {
        self.memory_kib
    }

    /// Passes over the memory.
    pub fn passes(self) -> u32 {
        self.passes
    }

    /// Lanes, computed one after the other.
    pub fn lanes(self) -> u32 {
        self.lanes
    }
}

impl KeySlot {
    /// The cost of its passphrase; `None` for a key, or when it is out of bounds.
    pub fn cost(&self) -> Option<SlotCost> {
        match self.kind {
            SlotKind::Passphrase => SlotCost::new(self.cost_memory_kib, self.cost_passes, self.cost_lanes),
            SlotKind::Key => None,
        }
    }
}

impl PlainObject for KeySlot {
    const MAGIC: [u8; 8] = *b"WALDKEY\x01";

    fn check(&self) -> Result<(), FormatError> {
        let costs = (self.cost_memory_kib, self.cost_passes, self.cost_lanes);
        let (sane, expected) = match self.kind {
            SlotKind::Passphrase => {
                (self.cost().is_some(), "at most 1 GiB, 16 passes, 16 lanes, and 8 KiB a lane")
            }
            SlotKind::Key => (costs == (0, 0, 0), "no cost for a key"),
        };
        if sane {
            return Ok(());
        }
        let found = format!("argon2id cost of {} KiB, {} passes, {} lanes", costs.0, costs.1, costs.2);
        Err(FormatError::new(Self::TYPE, 0, found, expected))
    }
}

/// The first epoch of a repository: it follows no other.
pub const FIRST_EPOCH: u32 = 1;

/// The most slots a repository may have: what its epochs are given to at once fits into one request.
pub const SLOTS_MAX: usize = 128;

impl PlainObject for Epoch {
    const MAGIC: [u8; 8] = *b"WALDEPA\x01";
    const BYTES_MAX: usize = 64 << 10;

    fn check(&self) -> Result<(), FormatError> {
        if !(1..=SLOTS_MAX).contains(&self.slots.len()) {
            let found = format!("{} slots", self.slots.len());
            return Err(FormatError::new(Self::TYPE, 0, found, "1 to 128"));
        }
        if self.link.is_none() != (self.epoch == FIRST_EPOCH) {
            let found =
                format!("epoch {} {} a link", self.epoch, self.link.as_ref().map_or("without", |_| "with"));
            return Err(FormatError::new(Self::TYPE, 0, found, "a link in every epoch but the first"));
        }
        Ok(())
    }
}

impl PlainObject for EpochSlot {
    const MAGIC: [u8; 8] = *b"WALDEPO\x01";
}

impl PlainObject for EpochLink {
    const MAGIC: [u8; 8] = *b"WALDEPL\x01";
}
