//! The proof at the end of a check: something written now is seen durable in the repository, and read back from it.

use super::{Finding, Level};
use crate::base::{Lsn, LsnRange, ObjectId, limits};
use crate::net::Connection;
use crate::operate::units::Span;
use crate::operate::{Exit, Failure};
use crate::repo::{Cluster, WalReader, walmap};
use std::time::{Duration, Instant};

const NAME: &str = "archived";
/// Time between two looks at the repository.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Writes a message into the server's WAL (on a standby: takes its position), waits at most `patience` until that is durable
/// in the repository, and reads it back. `receiving` is whether anybody streams.
pub async fn archived(
    server: &mut Connection,
    cluster: &Cluster,
    receiving: bool,
    patience: Duration,
) -> Result<Finding, Failure> {
    if !receiving {
        let found = "not tried: nobody receives WAL now";
        return Ok(Finding::new(
            NAME,
            Level::Warn,
            found,
            "start `walden receive`, and check again beside it",
        ));
    }
    let mark = format!("walden check {}", ObjectId::random(&*cluster.repo().env().entropy));
    let position = server.wal_position().await?;
    let (wanted, mark) = if position.in_recovery {
        (position.end, None)
    } else {
        // A receiver that is waited for by every commit may be the one that does not answer.
        server.query("SET synchronous_commit = local").await?;
        let row = server
            .query_one(&format!("SELECT pg_logical_emit_message(true, 'walden', '{mark}') AS lsn"))
            .await?;
        let written = row.by_name("lsn").and_then(|lsn| lsn.parse().ok()).unwrap_or(position.end);
        (written, Some(mark))
    };
    let began = Instant::now();
    let (reader, timeline) = loop {
        let snapshot = walmap::load(cluster).await?;
        let end = snapshot.wal.durable_end();
        if let Some(end) = end.filter(|end| end.lsn >= wanted) {
            break (WalReader::new(cluster.clone(), snapshot.wal), end.timeline);
        }
        if began.elapsed() >= patience {
            let durable = end.map_or(Lsn::ZERO, |end| end.lsn);
            let found = format!("{wanted} is not durable after {}, only {durable} is", Span(patience));
            return Ok(Finding::new(
                NAME,
                Level::Fail(Exit::Postgres),
                found,
                "see what `walden receive` logs",
            ));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    };
    let took = Span(began.elapsed());
    read_back(reader, timeline, wanted, mark.as_deref())
        .await
        .map(|()| Finding::ok(NAME, format!("{wanted} was durable after {took} and read back")))
}

async fn read_back(
    mut reader: WalReader,
    timeline: crate::base::TimelineId,
    end: Lsn,
    mark: Option<&str>,
) -> Result<(), Failure> {
    // The message with its record header, and perhaps the header of a page in between.
    let start = end.saturating_sub(limits::BLOCK_BYTES as u64);
    let start = reader
        .map()
        .ranges(timeline)
        .iter()
        .find(|range| range.contains(start))
        .map_or(end.saturating_sub(1), |_| start);
    let bytes = reader.read(timeline, LsnRange::new(start, end)).await?;
    let Some(mark) = mark else { return Ok(()) };
    // A page's header may cut the message in two: its random end is enough, and one of the halves is whole.
    let digits = mark.rsplit(' ').next().unwrap_or(mark);
    let (first, second) = digits.split_at(digits.len() / 2);
    let holds = |part: &str| bytes.windows(part.len()).any(|window| window == part.as_bytes());
    if holds(first) || holds(second) {
        return Ok(());
    }
    Err(Failure::new(Exit::Damage, "what was read back is not what was written")
        .fact("where", format!("WAL {start}..{end}"))
        .fact("expected", format!("the message {mark:?}"))
        .hint("run `walden verify`"))
}
