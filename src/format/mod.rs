//! Byte layouts of everything walden stores: headers, frames, directories, and the records inside them.
//! Pure: no IO, no cryptography (that is `codec`). Every decoder takes foreign bytes and answers with a
//! [`FormatError`], never a panic. Specs: formats/*.md, normative; a test holds both against each other.

pub mod bytes;
pub mod delta;
pub mod directory;
pub mod envelope;
pub mod frame;
pub mod header;
pub mod index;
pub mod journal;
pub mod keyslot;
pub mod manifest;
pub mod marker;
pub mod record;
pub mod root;
pub mod show;
pub mod verification;
pub mod wal;

pub use bytes::{FormatError, Reader, Writer};
pub use record::Record;
