//! What a run makes of a cluster's stored result. Pure. Spec: formats/verification.md.
//!
//! Invariant: a backup is verified only when each object that it needs was proved, and since the time of the one that was proved
//! longest ago; known damage of any of them makes it damaged, however it was found. Damage is known until its object was looked at
//! again as deep as it was found, and proved: a run that did not look there says nothing of it.

use super::{Finding, rotation};
use crate::base::{BackupId, ClusterName, ObjectKey, Timestamp};
use crate::format::verification::{
    BackupVerification, DAMAGE_KEPT_MAX, DAMAGE_TEXT_BYTES_MAX, DamageEntry, UNPROVED_MAX, Verification,
    VerifiedArc, VerifyDepth, VerifyOutcome, VerifyScope,
};
use crate::store::ObjectMeta;
use std::collections::{BTreeSet, HashSet};

/// One place that must have been read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needed {
    /// Where it lies on the ring.
    pub place: u64,
    /// When it was last modified, by the store's clock.
    pub modified_unix_micros: i64,
    /// Whether it was read and proved in this run, whatever the arcs say.
    pub now: bool,
}

/// A backup, and all that it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupProof {
    /// Which.
    pub id: BackupId,
    /// Every object; none when something that it needs was not listed.
    pub needed: Option<Vec<Needed>>,
}

/// What a run found.
#[derive(Debug)]
pub struct Run<'a> {
    /// The cluster.
    pub cluster: &'a ClusterName,
    /// The newest root that it looked at.
    pub root: u64,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Timestamp,
    /// How deep it looked.
    pub depth: VerifyDepth,
    /// Whether at everything.
    pub scope: VerifyScope,
    /// Objects read.
    pub objects: u64,
    /// Bytes read.
    pub bytes: u64,
    /// What was read of the ring, and up to which Last-Modified later runs may rely on that. This run saw all that it needs.
    pub arcs: &'a [VerifiedArc],
    /// Places that were not proved when it began, and are by now: looked at as deep as need be, or gone. Findings say otherwise.
    pub healed: &'a BTreeSet<u64>,
    /// Places that it should have looked at and could not.
    pub unseen: &'a BTreeSet<u64>,
    /// All objects of the cluster.
    pub listed: &'a [ObjectMeta],
    /// What is wrong.
    pub findings: &'a [Finding],
    /// Backups that are restorable, oldest first; none when the index could not be read.
    pub backups: Option<&'a [BackupProof]>,
}

/// What was read of a cluster, when, and what of that is not proved.
struct Seen {
    /// When the run began.
    now: Timestamp,
    /// As this run knows it.
    arcs: Vec<VerifiedArc>,
    unproved: BTreeSet<u64>,
    /// More is not proved than could be kept.
    overflowed: bool,
}

impl Seen {
    /// Since when all of `needed` is proved.
    fn proved_at(&self, needed: &[Needed]) -> Option<Timestamp> {
        let mut since = Timestamp::MAX;
        for object in needed {
            let read = rotation::read_at(&self.arcs, object.place, object.modified_unix_micros);
            since = since.min(if object.now { self.now } else { read? });
        }
        (!self.meets(needed)).then_some(since)
    }

    /// Whether something of `needed` is known as not proved.
    fn meets(&self, needed: &[Needed]) -> bool {
        self.overflowed || needed.iter().any(|object| self.unproved.contains(&object.place))
    }
}

/// The result to store after `before`.
pub fn next(before: Option<&Verification>, run: &Run<'_>) -> Verification {
    // A clock that was ahead must not make what it stamped the newest for good.
    let latest = Timestamp::from_micros(run.started_at.micros().saturating_sub(1));
    let known = rotation::not_after(before.map_or(&[][..], |before| before.arcs.as_slice()), latest);
    let damage = damage(before, run);
    let mut unproved = unproved(before, run);
    let overflowed = unproved.len() > UNPROVED_MAX;
    while unproved.len() > UNPROVED_MAX {
        unproved.pop_last();
    }
    // With more than can be kept, nobody could say later which objects on the arcs are proved.
    let merged = |new: &[VerifiedArc]| if overflowed { Vec::new() } else { rotation::merge(&known, new) };
    let all = |arc: &VerifiedArc| VerifiedArc { listed_unix_micros: i64::MAX, ..arc.clone() };
    let arcs = merged(&run.arcs.iter().map(all).collect::<Vec<_>>());
    let seen = Seen { now: run.started_at, arcs, unproved, overflowed };
    let covered = run.listed.iter().filter(|meta| {
        rotation::read_at(&seen.arcs, rotation::place_of(&meta.key), meta.modified_unix_micros).is_some()
    });
    Verification {
        cluster: run.cluster.clone(),
        number: 0,
        root: run.root,
        started_at: run.started_at,
        finished_at: run.finished_at,
        depth: run.depth,
        scope: run.scope,
        objects: run.objects,
        bytes: run.bytes,
        bytes_covered: covered.map(|meta| meta.len).sum(),
        bytes_total: run.listed.iter().map(|meta| meta.len).sum(),
        backups: backups(before, run, &seen),
        damage_count: damage.len() as u64 + forgotten(before, &damage, &seen.unproved),
        damage: damage.into_iter().take(DAMAGE_KEPT_MAX).collect(),
        arcs: merged(run.arcs),
        unproved: seen.unproved.into_iter().collect(),
        extensions: before.map_or_else(Vec::new, |before| before.extensions.clone()),
    }
}

/// How much damage beyond `damage` was found before and is not proved since: only its places were kept.
fn forgotten(before: Option<&Verification>, damage: &[DamageEntry], unproved: &BTreeSet<u64>) -> u64 {
    let beyond = before.map_or(0, |before| before.damage_count.saturating_sub(before.damage.len() as u64));
    let named: HashSet<u64> = damage.iter().filter_map(|known| place_of(&known.key)).collect();
    beyond.min(unproved.iter().filter(|place| !named.contains(place)).count() as u64)
}

/// Places that are not proved: those of damage, those that could not be looked at, and those known before that were not looked at since.
fn unproved(before: Option<&Verification>, run: &Run<'_>) -> BTreeSet<u64> {
    let known = before.map_or(&[][..], |before| before.unproved.as_slice());
    let mut all: BTreeSet<u64> = known.iter().filter(|place| !run.healed.contains(place)).copied().collect();
    all.extend(run.findings.iter().filter_map(|finding| place_of(&finding.key)));
    all.extend(run.unseen);
    all
}

/// The place of an object by its name.
pub fn place_of(key: &str) -> Option<u64> {
    ObjectKey::new(key).map(|key| rotation::place_of(&key))
}

fn backups(before: Option<&Verification>, run: &Run<'_>, seen: &Seen) -> Vec<BackupVerification> {
    let earlier = before.map_or(&[][..], |before| before.backups.as_slice());
    let Some(proofs) = run.backups else {
        // Nothing of the cluster can be read: whatever was verified before is not any more. Following references finds that out, and
        // when it is mended.
        let reason = run.findings.first().map_or_else(String::new, |finding| finding.reason.clone());
        let hurt = |known: &BackupVerification| {
            let deeper = (known.outcome == VerifyOutcome::Damaged).then_some(known.depth);
            let depth = deeper.unwrap_or(VerifyDepth::References).max(VerifyDepth::References);
            damaged(&known.backup, depth, run.started_at, &reason)
        };
        return earlier.iter().map(hurt).collect();
    };
    let mut all = Vec::new();
    for proof in proofs {
        let found = earlier.iter().find(|known| known.backup == proof.id);
        let found = found.filter(|found| found.outcome == VerifyOutcome::Damaged);
        let hurt = run.findings.iter().find(|finding| finding.backups.contains(&proof.id));
        if let Some(finding) = hurt {
            // What a deeper look found stays to be looked at as deep.
            let depth = found.map_or(run.depth, |found| found.depth.max(run.depth));
            let reason = format!("{}: {}", finding.key, finding.reason);
            all.push(damaged(&proof.id, depth, run.started_at, &reason));
            continue;
        }
        if proof.needed.is_none() {
            // Something that it needs is not there, or came while this run looked: nothing new is said of it.
            all.extend(earlier.iter().find(|known| known.backup == proof.id).cloned());
            continue;
        }
        let proved = proof.needed.as_ref().and_then(|needed| seen.proved_at(needed));
        let in_doubt = proof.needed.as_ref().is_none_or(|needed| seen.meets(needed));
        // Neither a look at references alone nor one elsewhere heals what reading found.
        if let Some(found) = found.filter(|found| found.depth > run.depth || in_doubt)
            && proved.is_none()
        {
            all.push(found.clone());
            continue;
        }
        let (depth, at) = match proved {
            Some(at) => (VerifyDepth::Content, at),
            None => (VerifyDepth::References, run.started_at),
        };
        let (backup, reason) = (proof.id.clone(), String::new());
        all.push(BackupVerification { backup, outcome: VerifyOutcome::Verified, depth, at, reason });
    }
    all
}

fn damaged(id: &BackupId, depth: VerifyDepth, at: Timestamp, reason: &str) -> BackupVerification {
    BackupVerification {
        backup: id.clone(),
        outcome: VerifyOutcome::Damaged,
        depth,
        at,
        reason: shortened(reason),
    }
}

/// What is wrong now, and what was found before and was not proved since.
fn damage(before: Option<&Verification>, run: &Run<'_>) -> Vec<DamageEntry> {
    let earlier = before.map_or(&[][..], |before| before.damage.as_slice());
    let first_found = |finding: &Finding| {
        let known = earlier
            .iter()
            .find(|known| known.key == finding.key && known.reason == shortened(&finding.reason));
        known.map_or(run.started_at, |known| known.found_at)
    };
    let mut all: Vec<DamageEntry> = run
        .findings
        .iter()
        .map(|finding| DamageEntry {
            key: finding.key.clone(),
            reason: shortened(&finding.reason),
            cost: shortened(&finding.cost),
            found_at: first_found(finding),
        })
        .collect();
    let found: HashSet<&str> = run.findings.iter().map(|finding| finding.key.as_str()).collect();
    let stays = |known: &&DamageEntry| {
        let healed = place_of(&known.key).is_none_or(|place| run.healed.contains(&place));
        !healed && !found.contains(known.key.as_str())
    };
    all.extend(earlier.iter().filter(stays).cloned());
    all
}

fn shortened(text: &str) -> String {
    let mut end = text.len().min(DAMAGE_TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
