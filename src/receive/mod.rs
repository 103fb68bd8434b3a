//! Receiving WAL: from the walsender into flush objects, acknowledged only when durable as configured, then compacted.
//! [`machine`] decides, the other modules act: [`session`] talks to the server, [`takeover`] wins the stream,
//! [`pipeline`] stores, [`compact`] replaces flush objects by segments.

pub mod compact;
pub mod journal;
pub mod machine;
pub mod overlap;
pub mod pipeline;
pub mod postgres;
mod resume;
pub mod seal;
pub mod session;
pub mod start;
pub mod takeover;
pub mod upgrade;
pub mod upstream;
