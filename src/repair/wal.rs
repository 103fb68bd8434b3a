//! `walden repair wal`: records that flush objects are lost, so that what follows them is compacted and a gap says what is missing.
//! One root a loss, oldest first: the stream's low water moves past it, the object is retired, and WAL that nothing else holds
//! becomes a gap. Between two losses there is compaction, since low water never moves past WAL that is not in a segment.

use crate::base::{Lsn, LsnRange, ObjectId, StreamId, TimelineId};
use crate::format::index::GapEntry;
use crate::format::root::{RetiredFlush, Root};
use crate::format::wal::WalMeta;
use crate::repo::chain::{self, Chain, ChainEnd, Numbered};
use crate::repo::cluster::RootChange;
use crate::repo::index::{IndexEdit, empty_page};
use crate::repo::spans::Spans;
use crate::repo::walmap::{self, Snapshot};
use crate::repo::{Cluster, RepoError, layout};

/// Flush objects in a row that are lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// Their stream.
    pub stream: StreamId,
    /// Its timeline.
    pub timeline: TimelineId,
    /// The first of them.
    pub from_number: u64,
    /// One past the last of them.
    pub to_number: u64,
    /// What is wrong with each, by its key.
    pub reasons: Vec<(String, String)>,
    /// Where the WAL before them ends, if there is any.
    pub from: Option<Lsn>,
    /// Where WAL begins again in the stream, if it does.
    pub to: Option<Lsn>,
    /// WAL that no other object holds.
    pub gaps: Vec<LsnRange>,
    /// Whether it can be recorded: an open stream that ends with it may still be written to by who knows what it was.
    pub closed: bool,
}

/// What is lost, oldest stream first. Changes nothing.
pub async fn losses(cluster: &Cluster) -> Result<Vec<Loss>, RepoError> {
    let snapshot = walmap::load(cluster).await?;
    let mut all = Vec::new();
    for generation in snapshot.streamed() {
        let of = snapshot.clone().with_generation(cluster, generation).await?;
        all.extend(of.wal.chains().iter().flat_map(|chain| of_chain(&of, chain)));
    }
    Ok(all)
}

fn of_chain(snapshot: &Snapshot, chain: &Chain) -> Vec<Loss> {
    let mut all: Vec<Loss> = Vec::new();
    for lost in &chain.lost {
        let reason = (lost.key.to_string(), lost.reason.clone());
        if let Some(last) = all.last_mut().filter(|last| last.to_number == lost.number) {
            last.to_number += 1;
            last.reasons.push(reason);
            continue;
        }
        all.push(Loss {
            stream: chain.stream.id,
            timeline: chain.stream.timeline,
            from_number: lost.number,
            to_number: lost.number + 1,
            reasons: vec![reason],
            from: lost.from,
            to: lost.to,
            gaps: Vec::new(),
            closed: lost.to.is_some() || matches!(chain.end, ChainEnd::Fenced { .. }),
        });
    }
    for loss in &mut all {
        loss.gaps = missing(snapshot, chain, loss);
    }
    all
}

/// WAL of a loss that no other object holds. Where the stream has nothing before or behind it, others say where WAL ends and begins.
fn missing(snapshot: &Snapshot, chain: &Chain, loss: &Loss) -> Vec<LsnRange> {
    let ranges = snapshot.wal.ranges(loss.timeline);
    let before = |to: Lsn| ranges.iter().map(|range| range.end).filter(|end| *end <= to).max();
    let behind = |from: Lsn| ranges.iter().map(|range| range.start).filter(|start| *start >= from).min();
    let from = loss.from.or_else(|| loss.to.and_then(before));
    let to = loss.to.or_else(|| loss.from.and_then(behind));
    let (Some(from), Some(to)) = (from, to) else { return Vec::new() };
    let place = (chain.stream.generation, chain.stream.timeline);
    let mut hole = Spans::default();
    hole.add(place, LsnRange::new(from, to.max(from)));
    ranges.iter().for_each(|range| hole.remove(place, *range));
    hole.iter().map(|(_, range)| range).filter(|range| range.start < range.end).collect()
}

/// Records the first loss, before which everything is compacted; none when nothing is lost. Durable on `Ok`. If dropped: recorded or not,
/// and it can be done again.
///
/// # Errors
/// [`RepoError::Conflict`] where WAL before it is not compacted, and for a stream that is not closed and ends with what is lost: a
/// receiver that starts closes it.
pub async fn record_first(cluster: &Cluster) -> Result<Option<Loss>, RepoError> {
    let Some(loss) = losses(cluster).await?.into_iter().next() else { return Ok(None) };
    if !loss.closed {
        let reason = format!(
            "stream {} ends with what is lost of it, and is not closed: start `walden receive`, which closes it, and repair then",
            loss.stream
        );
        return Err(RepoError::Conflict { reason });
    }
    let link = link_behind(cluster, &loss).await?;
    // Read once more: what is recorded is given up.
    if losses(cluster).await?.first() != Some(&loss) {
        let reason = format!("what is lost of stream {} changes while it is looked at", loss.stream);
        return Err(RepoError::Conflict { reason });
    }
    cluster.commit::<RepoError>(|root| change(cluster, root, &loss, link).map(Some)).await?;
    Ok(Some(loss))
}

/// What the object or the fence behind a loss says of the object before it.
async fn link_behind(cluster: &Cluster, loss: &Loss) -> Result<[u8; 32], RepoError> {
    let key = layout::flush(cluster.name(), loss.stream, loss.to_number);
    let bytes = cluster.repo().read(&key).await?;
    match chain::open_numbered(cluster, loss.stream, loss.to_number, bytes).await? {
        Numbered::Fence(fence) => Ok(fence.previous_link),
        Numbered::Flush(object) => {
            let meta: WalMeta = object.meta().map_err(|error| RepoError::open(&key, error))?;
            Ok(meta.previous_link)
        }
    }
}

fn change(cluster: &Cluster, root: &Root, loss: &Loss, link: [u8; 32]) -> Result<RootChange, RepoError> {
    let mut next = root.clone();
    let number = root.number + 1;
    let moved = || RepoError::Conflict {
        reason: format!("stream {} is not compacted up to its object {}", loss.stream, loss.from_number),
    };
    let stream = next.streams.iter_mut().find(|stream| stream.id == loss.stream).ok_or_else(moved)?;
    if stream.low_water != loss.from_number {
        return Err(moved());
    }
    let generation = stream.generation;
    stream.low_water = loss.to_number;
    stream.low_water_lsn = loss.to.or(loss.from);
    stream.low_water_link = link;
    next.retired.push(RetiredFlush {
        stream: loss.stream,
        from: loss.from_number,
        to: loss.to_number,
        root: number,
    });
    let repo = cluster.repo();
    let mut page = empty_page();
    page.gaps = loss
        .gaps
        .iter()
        .map(|gap| GapEntry {
            id: ObjectId::random(&*repo.env().entropy),
            generation,
            timeline: loss.timeline,
            start: gap.start,
            end: gap.end,
            recorded_at: repo.env().clock.now(),
            reason: loss
                .reasons
                .iter()
                .map(|(key, why)| format!("{key}: {why}"))
                .collect::<Vec<_>>()
                .join("; "),
        })
        .collect();
    let index = if page.gaps.is_empty() { IndexEdit::Keep } else { IndexEdit::Add(page) };
    Ok(RootChange { root: next, index })
}
