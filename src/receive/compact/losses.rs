//! Losses that compaction comes to: what follows a lost flush object in its stream is not compacted until the loss is recorded, and is
//! read again by everybody who looks at the archive. Nobody may come to record it, so compaction does once it has lasted for
//! [`LOSS_LASTS_MIN`](limits::LOSS_LASTS_MIN): by then it is not a store that was out of order for a moment, and whoever had a whole
//! copy has had time to put it back.
//!
//! Refusals: those of [`losses::record`]; what may be a fence. What a store that fails does not give, what is sealed under a key that is
//! not held or was written by a newer walden, is no loss: then nothing is known, and nothing is recorded.

use crate::base::{ObjectKey, limits};
use crate::repo::losses::{self, Loss};
use crate::repo::{Cluster, RepoError};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// Time between two looks at all that is lost: each reads everything behind it.
const LOOK_INTERVAL: Duration = Duration::from_secs(600);

/// What is lost, and since when.
#[derive(Debug, Default)]
pub(super) struct LossWatch {
    seen: BTreeMap<ObjectKey, Seen>,
    looked: Option<Instant>,
}

/// A moment by two clocks: either may be set.
#[derive(Debug, Clone, Copy)]
struct Moment {
    /// By the store's, in microseconds.
    store: i64,
    own: Instant,
}

impl Moment {
    async fn now(cluster: &Cluster) -> Result<Moment, RepoError> {
        Ok(Moment { store: cluster.repo().store_now().await?, own: Instant::now() })
    }

    /// Whether both clocks say that it is so long ago.
    fn is_before(self, now: Moment, by: Duration) -> bool {
        let micros = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
        now.store.saturating_sub(self.store) >= micros && now.own.saturating_duration_since(self.own) >= by
    }
}

/// An object that is lost at every look.
#[derive(Debug, Clone, Copy)]
struct Seen {
    /// When it was first seen to be.
    since: Moment,
    looks: u32,
}

impl LossWatch {
    /// Nothing is lost now: what was has come back, or was recorded.
    pub fn forget(&mut self) {
        *self = LossWatch::default();
    }

    /// Looks at what is lost, unless that was done lately, and records the first loss if it has lasted. Whether it did: then there is more
    /// to compact. Everything before the loss is compacted.
    pub async fn tend(&mut self, cluster: &Cluster) -> Result<bool, RepoError> {
        if self.looked.is_some_and(|at| at.elapsed() < LOOK_INTERVAL) {
            return Ok(false);
        }
        self.looked = Some(Instant::now());
        // Before the look: however long the look takes, a loss is not older than what it shows.
        let now = Moment::now(cluster).await?;
        let found = losses::losses(cluster).await?;
        let is_new = |(key, _): &(ObjectKey, String)| !self.seen.contains_key(key);
        let first_seen = match found.iter().flat_map(|loss| &loss.reasons).any(is_new) {
            // After it: a loss is not older than the look that showed it first.
            true => Moment::now(cluster).await?,
            false => now,
        };
        self.see(&found, first_seen);
        for (key, reason) in found.iter().flat_map(|loss| &loss.reasons) {
            tracing::warn!(%key, "a flush object is lost, and nothing after it in its stream is compacted until that is recorded: {reason}");
        }
        match found.first() {
            Some(loss) if self.is_due(loss, now) && record(cluster, loss).await? => {
                // The next one may have lasted as long.
                self.looked = None;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Remembers what is lost now, and nothing else.
    fn see(&mut self, found: &[Loss], first_seen: Moment) {
        let lost = found.iter().flat_map(|loss| &loss.reasons);
        let new = Seen { since: first_seen, looks: 0 };
        let seen = |key: &ObjectKey| self.seen.get(key).copied().unwrap_or(new);
        let again = |seen: Seen| Seen { looks: seen.looks.saturating_add(1), ..seen };
        self.seen = lost.map(|(key, _)| (key.clone(), again(seen(key)))).collect();
    }

    fn is_due(&self, loss: &Loss, now: Moment) -> bool {
        loss.closed && !loss.may_be_fence && self.has_lasted(loss, now)
    }

    /// Whether every object of `loss` has been lost for so long, at so many looks.
    fn has_lasted(&self, loss: &Loss, now: Moment) -> bool {
        let lasted = |seen: &Seen| {
            seen.looks >= limits::LOSS_LOOKS_MIN && seen.since.is_before(now, limits::LOSS_LASTS_MIN)
        };
        loss.reasons.iter().all(|(key, _)| self.seen.get(key).is_some_and(lasted))
    }
}

async fn record(cluster: &Cluster, loss: &Loss) -> Result<bool, RepoError> {
    match losses::record(cluster, loss).await {
        Ok(()) => {}
        // It changed, or somebody else was faster: the next look says what there is.
        Err(error @ RepoError::Conflict { .. }) => {
            tracing::info!(%error, "a loss was not recorded");
            return Ok(false);
        }
        Err(error) => return Err(error),
    }
    for (key, reason) in &loss.reasons {
        tracing::error!(%key, timeline = %loss.timeline, "a flush object was lost for {:?}, and is given up: {reason}", limits::LOSS_LASTS_MIN);
    }
    for gap in &loss.gaps {
        tracing::error!(timeline = %loss.timeline, start = %gap.start, end = %gap.end, "WAL is lost, and recorded as a gap; take a backup to close it");
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{StreamId, TimelineId};

    const LASTS_MIN: Duration = limits::LOSS_LASTS_MIN;

    fn lost(keys: &[&str]) -> Loss {
        Loss {
            stream: StreamId([1; 16]),
            timeline: TimelineId(1),
            from_number: 5,
            to_number: 5 + keys.len() as u64,
            reasons: keys.iter().map(|key| (ObjectKey::new(*key).unwrap(), "cut".to_owned())).collect(),
            may_be_fence: false,
            from: None,
            to: None,
            gaps: Vec::new(),
            closed: true,
        }
    }

    /// A moment `store` and `own` after `begin` by the two clocks.
    fn after(begin: Instant, store: Duration, own: Duration) -> Moment {
        Moment { store: 1_000_000 + store.as_micros() as i64, own: begin + own }
    }

    fn see_often(watch: &mut LossWatch, loss: &Loss, since: Moment) {
        (0..limits::LOSS_LOOKS_MIN).for_each(|_| watch.see(std::slice::from_ref(loss), since));
    }

    #[test]
    fn a_loss_lasts_when_each_of_its_objects_was_lost_at_every_look_for_so_long() {
        let (one, both) = (lost(&["a"]), lost(&["a", "b"]));
        let (second, begin) = (Duration::from_secs(1), Instant::now());
        let at = |time: Duration| after(begin, time, time);
        let mut watch = LossWatch::default();
        see_often(&mut watch, &one, at(second));
        assert!(!watch.has_lasted(&one, at(LASTS_MIN)));
        assert!(watch.has_lasted(&one, at(second + LASTS_MIN)));
        see_often(&mut watch, &both, at(second * 5));
        assert!(!watch.has_lasted(&both, at(second * 4 + LASTS_MIN)), "one of them was lost later");
        assert!(watch.has_lasted(&both, at(second * 5 + LASTS_MIN)));
        watch.see(&[], at(second * 6));
        see_often(&mut watch, &both, at(second * 7));
        assert!(!watch.has_lasted(&both, at(second * 6 + LASTS_MIN)), "they were there in between");
    }

    #[test]
    fn neither_clock_nor_one_look_says_alone_that_it_has_lasted() {
        let (loss, begin) = (lost(&["a"]), Instant::now());
        let (first, late) = (after(begin, Duration::ZERO, Duration::ZERO), LASTS_MIN * 3);
        let mut watch = LossWatch::default();
        for _ in 1..limits::LOSS_LOOKS_MIN {
            watch.see(std::slice::from_ref(&loss), first);
            assert!(!watch.has_lasted(&loss, after(begin, late, late)), "too few looks");
        }
        watch.see(std::slice::from_ref(&loss), first);
        assert!(!watch.has_lasted(&loss, after(begin, late, LASTS_MIN / 2)), "the store's clock was set");
        assert!(!watch.has_lasted(&loss, after(begin, LASTS_MIN / 2, late)), "ours was");
        assert!(watch.has_lasted(&loss, after(begin, LASTS_MIN, LASTS_MIN)));
    }

    #[test]
    fn what_may_be_a_fence_waits_for_a_person() {
        let begin = Instant::now();
        let (first, late) =
            (after(begin, Duration::ZERO, Duration::ZERO), after(begin, LASTS_MIN, LASTS_MIN));
        let loss = lost(&["a"]);
        let mut watch = LossWatch::default();
        see_often(&mut watch, &loss, first);
        assert!(watch.is_due(&loss, late));
        assert!(!watch.is_due(&Loss { may_be_fence: true, ..loss.clone() }, late));
        assert!(!watch.is_due(&Loss { closed: false, ..loss }, late));
    }
}
