//! Removes one backup by the operator's order, with the WAL that no other backup can replay.
//! Refused: the last restorable one, whatever is said; one that a restore reads; one whose pages WAL of other backups is made of;
//! a pinned one, unless the pin is overridden.

use super::expire::commit;
use super::lines::{Line, eras};
use super::plan::{Facts, Keep, Plan, without};
use crate::base::{BackupId, LsnRange, TimelineId, Timestamp};
use crate::format::index::BackupState;
use crate::repo::{Cluster, RepoError};

/// Whether a pin hinders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pins {
    /// It does.
    Respect,
    /// It goes with the backup.
    Override,
}

/// Why a backup was not removed.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// There is no such backup.
    #[error("there is no backup {0}")]
    NotFound(BackupId),
    /// Without it nothing could be restored.
    #[error("backup {id} is the last from which {what} can be restored")]
    Last {
        /// Which.
        id: BackupId,
        /// What could not be any more.
        what: String,
    },
    /// The operator pinned it.
    #[error("backup {id} is pinned{}{}", until_when(.until), because(.reason))]
    Pinned {
        /// Which.
        id: BackupId,
        /// Until when.
        until: Option<Timestamp>,
        /// Why.
        reason: String,
    },
    /// A restore reads it.
    #[error("a restore reads backup {0}")]
    Reading(BackupId),
    /// WAL that other backups need is made of its pages.
    #[error(
        "WAL {range} of timeline {timeline}, which older backups replay, is stored as differences from pages of backup {id}"
    )]
    Deltas {
        /// Which.
        id: BackupId,
        /// The WAL's timeline.
        timeline: TimelineId,
        /// The WAL.
        range: LsnRange,
    },
    /// The repository failed.
    #[error(transparent)]
    Repo(#[from] RepoError),
}

fn until_when(until: &Option<Timestamp>) -> String {
    until.map(|until| format!(" until {until}")).unwrap_or_default()
}

fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}

/// Takes the backup `id` out of the index, in one root. Durable on `Ok`: the plan says what went. If dropped: all of it or nothing.
pub async fn delete(cluster: &Cluster, id: &BackupId, pins: Pins) -> Result<Plan, DeleteError> {
    commit(cluster, |facts| check(facts, id, pins)).await
}

/// What goes with the backup `id`, if it may.
pub fn check(facts: &Facts<'_>, id: &BackupId, pins: Pins) -> Result<Plan, DeleteError> {
    if facts.index.backup(id).is_none() {
        return Err(DeleteError::NotFound(id.clone()));
    }
    if let Some(what) = last_of(facts, id) {
        return Err(DeleteError::Last { id: id.clone(), what });
    }
    if facts.reading.contains(id) {
        return Err(DeleteError::Reading(id.clone()));
    }
    let now = facts.now();
    let pin = facts.index.pins.iter().find(|pin| pin.backup == *id);
    if let Some(pin) = pin.filter(|pin| pins == Pins::Respect && pin.until.is_none_or(|until| until > now)) {
        let (until, reason) = (pin.until, pin.reason.clone());
        return Err(DeleteError::Pinned { id: id.clone(), until, reason });
    }
    let plan = without(facts, id);
    let keeps = plan.backups.iter().find(|fate| fate.backup.id == *id).map(|fate| &fate.keeps);
    match keeps.and_then(|keeps| keeps.first()) {
        None => Ok(plan),
        Some(Keep::Deltas(timeline, range)) => {
            Err(DeleteError::Deltas { id: id.clone(), timeline: *timeline, range: *range })
        }
        Some(other) => unreachable!("nothing else keeps it: {other:?}"),
    }
}

/// What only the backup `id` can restore, if that is the whole cluster, or the timeline that it is on.
fn last_of(facts: &Facts<'_>, id: &BackupId) -> Option<String> {
    let eras = eras(facts);
    let lines: Vec<&Line> = eras.iter().flat_map(|era| &era.lines).collect();
    let only = |of: &[&Line], complete: bool| {
        let mut fit = of
            .iter()
            .flat_map(|line| &line.restorable)
            .filter(|restorable| !complete || restorable.backup.state == BackupState::Complete);
        fit.clone().any(|restorable| restorable.backup.id == *id)
            && fit.all(|restorable| restorable.backup.id == *id)
    };
    // A damaged backup does not stand in for a complete one, and better one than none.
    let last = |of: &[&Line]| only(of, true) || only(of, false);
    if last(&lines) {
        return Some("this cluster".into());
    }
    let own = facts.index.backup(id)?;
    if eras.iter().any(|era| era.generation == own.generation && !era.is_known()) {
        return Some(format!("generation {}, as far as is known,", own.generation));
    }
    let current = lines.iter().find(|line| line.current)?;
    if last(&[current]) {
        return Some(format!("timeline {}, which the cluster is on,", current.timeline()));
    }
    // Behind its last gap, a line is restorable from the backups there alone.
    let end = current.restorable.iter().map(|of| of.run.end).max()?;
    let mut newest = current.restorable.iter().filter(|of| of.run.end == end);
    newest
        .all(|of| of.backup.id == *id)
        .then(|| format!("the present of timeline {}, since its last gap,", current.timeline()))
}
