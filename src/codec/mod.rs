//! Bytes in, bytes out: compressing, sealing and opening objects, and the key slots that guard their secrets. No IO.
//! Spec: formats/object.md, formats/keys.md.

#[cfg(feature = "planted")]
pub mod audit;
pub mod check;
pub mod compress;
pub mod crc;
pub mod epoch;
pub mod journal;
pub mod keyring;
pub mod keyslot;
pub mod link;
pub mod object;
pub mod read;
pub mod seal;
mod wrap;

pub use epoch::EpochObject;
pub use keyring::{EpochKeys, Keyring};
pub use keyslot::{KeySlotError, SlotCost, Unlock};
pub use link::Chain;
pub use object::{ObjectReader, ObjectWriter, OpenError};
pub use seal::{ChunkIdKey, EpochSecret, KeySource};
