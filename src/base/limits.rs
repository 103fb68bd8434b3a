//! Named bounds that several rooms share, and their relations, checked at compile time.

use std::time::Duration;

/// PostgreSQL's block size; any other is refused.
pub const BLOCK_BYTES: usize = 8192;
/// The most WAL in one flush object before it leaves by size.
pub const FLUSH_BYTES_MAX: usize = 8 << 20;
/// How old the oldest byte of a flush object may get before it leaves by age.
pub const FLUSH_INTERVAL: Duration = Duration::from_secs(1);
/// Flush objects being stored at once.
pub const FLUSHES_IN_FLIGHT_MAX: usize = 4;
/// Time between two heartbeats of an idle stream.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(60);
/// Received WAL held in memory at once, waiting or being stored.
pub const RECEIVE_BUFFER_BYTES_MAX: usize = 48 << 20;
/// Raw WAL in one frame of a flush object or compacted segment.
pub const WAL_FRAME_BYTES: usize = 1 << 20;
/// Raw WAL in one compacted segment.
pub const WAL_SEGMENT_BYTES_MAX: u64 = 64 << 20;
/// Flush objects waiting that start a compaction, whatever their size.
pub const COMPACT_OBJECTS_MAX: u64 = 1000;
/// Flush objects waiting from which on compaction does not yield to receiving any more: a start reads them all.
pub const COMPACT_OBJECTS_URGENT: u64 = 4 * COMPACT_OBJECTS_MAX;
/// Age of the oldest waiting flush object that starts a compaction.
pub const COMPACT_INTERVAL: Duration = Duration::from_secs(600);
/// How long a flush object has to be lost, by the store's clock and by ours, before compaction records that by itself.
pub const LOSS_LASTS_MIN: Duration = Duration::from_secs(3600);
/// Looks in that time that have to show it.
pub const LOSS_LOOKS_MIN: u32 = 4;
/// Overlap with what is stored that a resume reads again and compares.
pub const RESUME_OVERLAP_BYTES: u64 = 1 << 20;
/// Gets in flight while a chain is read: whole objects, for the hashes that link them.
pub const CHAIN_GETS_IN_FLIGHT: usize = 8;
/// The least time between two roots of one process.
pub const ROOT_INTERVAL: Duration = Duration::from_secs(1);
/// How long a replaced object stays before it is removed.
pub const GRACE: Duration = Duration::from_secs(24 * 3600);
/// How long registered work is left alone without a renewal, and what nobody names without a root: whatever grace is asked for.
pub const WORK_GRACE_MIN: Duration = Duration::from_secs(3600);
/// Time between two renewals of registered work. Each is a root.
pub const WORK_RENEW_INTERVAL: Duration = Duration::from_secs(900);
/// How often a receiver looks for a new key epoch; whoever commits a root looks then.
pub const EPOCH_FOLLOW_INTERVAL: Duration = Duration::from_secs(60);
/// What the files of a journal may take, when nobody says.
pub const JOURNAL_BYTES_MAX: u64 = 16 << 30;
/// Bytes of pages that WAL deltas of one epoch refer to, when nobody says: in a file under `--cache-dir`.
pub const DELTA_CACHE_BYTES: u64 = 4 << 30;
/// How long the tail may take to become durable when the primary shuts down.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);
/// Of a hundred bytes of a segment of chunks, so many are referred to at least: with fewer it is written anew.
pub const PAGES_LIVE_PERCENT_MIN: u64 = 50;
/// Stored bytes of one segment of chunks, about.
pub const PAGES_SEGMENT_BYTES: usize = 32 << 20;

const _: () = assert!(FLUSH_BYTES_MAX >= WAL_FRAME_BYTES && WAL_FRAME_BYTES.is_multiple_of(BLOCK_BYTES));
const _: () = assert!(RECEIVE_BUFFER_BYTES_MAX > FLUSH_BYTES_MAX * FLUSHES_IN_FLIGHT_MAX);
const _: () = assert!(WAL_SEGMENT_BYTES_MAX >= FLUSH_BYTES_MAX as u64);
const _: () = assert!(LOSS_LASTS_MIN.as_secs() > 2 * COMPACT_INTERVAL.as_secs());
const _: () = assert!(GRACE.as_secs() >= WORK_GRACE_MIN.as_secs());
const _: () = assert!(WORK_RENEW_INTERVAL.as_secs() * 4 <= WORK_GRACE_MIN.as_secs());
