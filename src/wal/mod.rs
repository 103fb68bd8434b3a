//! Reading PostgreSQL's WAL, 14 to 18, any segment size: pages, records, and what they say. No IO.
//!
//! [`scan::Scanner`] walks the bytes in LSN order and finds records; [`Decoder`] makes them values, [`Summarizer`]
//! folds them into a [`WalSummary`](crate::format::wal::WalSummary) at the speed of memory. [`fact`] reads what
//! single records mean, `change` what transactions did to relations.
//!
//! Foreign bytes never panic and never stop the reader: damage is a [`WalError`] with its place, after which
//! reading goes on at the next page that starts a record. Memory is bounded whatever a record's length says:
//! image bodies are not kept, and of very long main data only the beginning and the end.

mod catalog;
mod change;
pub mod checksum;
mod decoder;
mod error;
pub mod fact;
pub mod finish;
mod gather;
pub mod history;
pub mod page;
pub mod record;
pub mod scan;
mod summary;
pub mod synth;
mod version;

pub use change::EVENT_RELATIONS_MAX;
pub use decoder::{Decoder, Record};
pub use error::WalError;
pub use fact::Fact;
pub use finish::{Finished, Outcome};
pub use history::{HistoryError, TimelineHistory};
pub use page::PageHeader;
pub use scan::DecodeFrom;
pub use summary::Summarizer;
pub use synth::Synth;
pub use version::WalVersion;
