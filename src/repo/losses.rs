//! Flush objects that are lost, and how that is recorded: then what follows them is compacted, and a gap says what is missing. By
//! `walden repair wal`, or by compaction once a loss has lasted. Spec: formats/wal.md.
//! One root a loss, oldest first: the stream's low water moves past it, the object is retired, and WAL that nothing else holds
//! becomes a gap. Between two losses there is compaction, since low water never moves past WAL that is not in a segment.

use super::chain::{self, Chain, ChainEnd, Numbered};
use super::cluster::{Cluster, RootChange};
use super::error::RepoError;
use super::index::{IndexEdit, empty_page};
use super::layout;
use super::walmap::{self, Snapshot};
use crate::base::{Lsn, LsnRange, ObjectId, ObjectKey, StreamId, TimelineId};
use crate::format::index::GapEntry;
use crate::format::root::{RetiredFlush, Root};
use crate::format::wal::WalMeta;

mod missing;

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
    pub reasons: Vec<(ObjectKey, String)>,
    /// Whether one of them may be the fence that keeps its number taken: then a person is to say that it goes.
    pub may_be_fence: bool,
    /// Where the WAL before them ends, if there is any.
    pub from: Option<Lsn>,
    /// Where WAL begins again in the stream, if it does.
    pub to: Option<Lsn>,
    /// WAL that no other object holds; up to [`Lsn::MAX`] where nothing follows on its timeline.
    pub gaps: Vec<LsnRange>,
    /// Whether it can be recorded: an open stream that ends with it may still be written to by who knows what it was, and where one that is
    /// closed ends is known once the next one has anything.
    pub closed: bool,
}

/// What is lost, oldest stream first. Changes nothing.
pub async fn losses(cluster: &Cluster) -> Result<Vec<Loss>, RepoError> {
    let snapshot = walmap::load(cluster).await?;
    let mut all = Vec::new();
    for generation in snapshot.streamed() {
        let of = snapshot.clone().with_generation(cluster, generation).await?;
        all.extend(of.wal.chains().iter().enumerate().flat_map(|(at, chain)| of_chain(&of, at, chain)));
    }
    Ok(all)
}

fn of_chain(snapshot: &Snapshot, at: usize, chain: &Chain) -> Vec<Loss> {
    let mut all: Vec<Loss> = Vec::new();
    for lost in &chain.lost {
        let reason = (lost.key.clone(), lost.reason.clone());
        if let Some(last) = all.last_mut().filter(|last| last.to_number == lost.number) {
            last.to_number += 1;
            last.may_be_fence |= lost.may_be_fence;
            last.reasons.push(reason);
            continue;
        }
        all.push(Loss {
            stream: chain.stream.id,
            timeline: chain.stream.timeline,
            from_number: lost.number,
            to_number: lost.number + 1,
            reasons: vec![reason],
            may_be_fence: lost.may_be_fence,
            from: lost.from,
            to: lost.to,
            gaps: Vec::new(),
            closed: lost.to.is_some() || matches!(chain.end, ChainEnd::Fenced { .. }),
        });
    }
    for loss in &mut all {
        match missing::missing(snapshot, at, loss) {
            Some(gaps) => loss.gaps = gaps,
            None => loss.closed = false,
        }
    }
    all
}

/// Records the first loss, before which everything is compacted; none when nothing is lost. As [`record`] does.
pub async fn record_first(cluster: &Cluster) -> Result<Option<Loss>, RepoError> {
    let Some(loss) = losses(cluster).await?.into_iter().next() else { return Ok(None) };
    record(cluster, &loss).await?;
    Ok(Some(loss))
}

/// Records `loss`, which is the first, before which everything is compacted. Durable on `Ok`. If dropped: recorded or not, and it can be
/// done again.
///
/// # Errors
/// [`RepoError::Conflict`] where it is not what is lost first, where WAL before it is not compacted, and for a stream that ends with what
/// is lost and is not closed, or has nothing behind it yet: a receiver that starts closes it, and stores what follows.
pub async fn record(cluster: &Cluster, loss: &Loss) -> Result<(), RepoError> {
    if !loss.closed {
        let reason = format!(
            "stream {} ends with what is lost of it, and nothing is stored behind it that says where: start `walden receive`, and repair then",
            loss.stream
        );
        return Err(RepoError::Conflict { reason });
    }
    let link = link_behind(cluster, loss).await?;
    // Read once more: what is recorded is given up.
    if losses(cluster).await?.first() != Some(loss) {
        let reason = format!("what is lost of stream {} changes while it is looked at", loss.stream);
        return Err(RepoError::Conflict { reason });
    }
    cluster.commit::<RepoError>(|root| change(cluster, root, loss, link).map(Some)).await?;
    Ok(())
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
