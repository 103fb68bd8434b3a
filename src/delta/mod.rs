//! WAL deltas: raw WAL into frames of record columns and differences of page images, bit for bit, and back. No IO, no clock.
//! Spec: formats/deltas.md.
//!
//! [`Encoder`] is fed with raw WAL in LSN order and hands out [`Frame`]s; [`FrameDecoder`] undoes them, in the same order, with the
//! pages that a [`PageSource`] gives. The way of a frame: `walk` cuts the range and finds records, `framing` takes page headers
//! off, `records`, `structure` and `headers` take records apart, `columns` stores their contents, `diff` the images, after `repack` unpacked
//! those that `pglz` or `lz4` packed (`overlap` is what these share), `section` compresses, digits with a `window` of earlier ones;
//! `encode` and `decode` put these together, with the tuples that splits `moved`. What a frame leaves for later ones `keep` puts into `cache`
//! (images, in the slots that a `directory` has for them, found by a `table`) and `history` (what records did to their pages since), from
//! which `replay`, with `heap` and `slots`, makes the page that a later image is near to.
//!
//! Whoever wants a range far into an epoch does not decode what lies before: [`Tracer`] follows what frames do to the cache by their outlines
//! alone, [`Wants`] tells backward what of that is needed, and a decoder makes no other pages (`partial`).
//!
//! Refuses nothing: what the codec does not understand becomes a plain frame. Decoding refuses whatever does not give the very
//! bytes that were encoded.

mod block;
mod cache;
mod columns;
mod decode;
mod diff;
mod directory;
mod encode;
mod encoder;
mod error;
mod framing;
mod headers;
mod heap;
mod history;
mod keep;
pub mod limits;
mod lz4;
mod moved;
mod outline;
mod overlap;
mod partial;
mod pglz;
mod records;
mod referred;
mod repack;
mod replay;
mod section;
mod slots;
mod structure;
mod table;
mod trace;
mod varint;
mod walk;
mod wants;
mod window;

pub use block::{BlockId, NoBase, Page, PageSource, Vouched, page_check, page_hash};
pub use cache::{Cached, ImageCache};
pub use decode::FrameDecoder;
pub use encode::FrameStats;
pub use encoder::{Encoder, EncoderOptions, Frame, FrameBody, Verify};
pub use error::{DeltaError, MissingPage};
pub use outline::{Origin, Reference};
pub use section::sections;
pub use trace::{FrameTrace, Tracer};
pub use walk::Surprise;
pub use wants::{FrameWants, Wants};
pub use window::Window;
