//! Bytes in, bytes out: compressing, sealing and opening objects. No IO. Spec: formats/object.md, formats/keys.md.

pub mod object;
pub mod seal;

pub use object::{ObjectReader, ObjectWriter, OpenError};
pub use seal::{ChunkIdKey, EpochSecret, KeySource};
