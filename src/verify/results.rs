//! What a run makes of a cluster's stored result. Pure. Spec: formats/verification.md.
//!
//! Invariant: a backup is verified only when each object that it needs was proved, and since the time of the one that was proved
//! longest ago; known damage of any of them makes it damaged, however it was found.

use super::{Finding, rotation};
use crate::base::{BackupId, ClusterName, ObjectKey, Timestamp};
use crate::format::verification::{
    BackupVerification, DAMAGE_KEPT_MAX, DAMAGE_TEXT_BYTES_MAX, DamageEntry, Verification, VerifiedArc,
    VerifyDepth, VerifyOutcome, VerifyScope,
};
use crate::store::ObjectMeta;
use std::collections::HashSet;

/// One place that must have been read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needed {
    /// Where it lies on the ring.
    pub place: u64,
    /// When it was last modified, by the store's clock.
    pub modified_unix_micros: i64,
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
    /// What was read of the ring.
    pub arcs: &'a [VerifiedArc],
    /// All objects of the cluster.
    pub listed: &'a [ObjectMeta],
    /// What is wrong.
    pub findings: &'a [Finding],
    /// Backups that are restorable, oldest first; none when the index could not be read.
    pub backups: Option<&'a [BackupProof]>,
}

/// The result to store after `before`.
pub fn next(before: Option<&Verification>, run: &Run<'_>) -> Verification {
    let known = before.map_or(&[][..], |before| before.arcs.as_slice());
    let arcs = rotation::merge(known, run.arcs);
    let damage = damage(before, run);
    let covered = run.listed.iter().filter(|meta| {
        rotation::read_at(&arcs, rotation::place_of(&meta.key), meta.modified_unix_micros).is_some()
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
        backups: backups(before, run, &arcs),
        damage_count: damage.len() as u64,
        damage: damage.into_iter().take(DAMAGE_KEPT_MAX).collect(),
        arcs,
        extensions: before.map_or_else(Vec::new, |before| before.extensions.clone()),
    }
}

fn backups(before: Option<&Verification>, run: &Run<'_>, arcs: &[VerifiedArc]) -> Vec<BackupVerification> {
    let earlier = before.map_or(&[][..], |before| before.backups.as_slice());
    let Some(proofs) = run.backups else {
        // Nothing of the cluster can be read: whatever was verified before is not any more.
        let reason = run.findings.first().map_or_else(String::new, |finding| finding.reason.clone());
        let hurt = |known: &BackupVerification| damaged(&known.backup, run.depth, run.started_at, &reason);
        return earlier.iter().map(hurt).collect();
    };
    let mut all = Vec::new();
    for proof in proofs {
        let hurt = run.findings.iter().find(|finding| finding.backups.contains(&proof.id));
        if let Some(finding) = hurt {
            all.push(damaged(
                &proof.id,
                run.depth,
                run.started_at,
                &format!("{}: {}", finding.key, finding.reason),
            ));
            continue;
        }
        // A look at references alone does not heal what reading found.
        let found = earlier.iter().find(|known| known.backup == proof.id);
        if let Some(found) = found
            && found.outcome == VerifyOutcome::Damaged
            && found.depth > run.depth
        {
            all.push(found.clone());
            continue;
        }
        let proved = proof.needed.as_ref().and_then(|needed| proved_at(needed, arcs));
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

/// Since when all of `needed` is proved.
fn proved_at(needed: &[Needed], arcs: &[VerifiedArc]) -> Option<Timestamp> {
    let mut since = Timestamp::MAX;
    for object in needed {
        since = since.min(rotation::read_at(arcs, object.place, object.modified_unix_micros)?);
    }
    Some(since)
}

/// What is wrong now, and what was found before by reading and was not read again.
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
    if run.depth < VerifyDepth::Content {
        let listed: HashSet<&str> = run.listed.iter().map(|meta| meta.key.as_str()).collect();
        let unread = |known: &&DamageEntry| {
            listed.contains(known.key.as_str()) && !all.iter().any(|found| found.key == known.key)
        };
        let kept: Vec<DamageEntry> = earlier.iter().filter(unread).cloned().collect();
        all.extend(kept);
    }
    all
}

/// Objects that were damaged before: read again by every run that reads at all.
pub fn to_read_again(before: Option<&Verification>) -> Vec<ObjectKey> {
    before.map_or_else(Vec::new, |before| {
        before.damage.iter().filter_map(|known| ObjectKey::new(known.key.clone())).collect()
    })
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
