//! What verification found, for the document.

use super::{ClusterInfo, DamageInfo, VerificationInfo, VerifiedInfo};
use crate::format::verification::{Verification, VerifyDepth, VerifyOutcome, VerifyScope};

/// How deep was looked, in documents.
pub fn depth_name(depth: VerifyDepth) -> &'static str {
    match depth {
        VerifyDepth::Checksums => "checksums",
        VerifyDepth::References => "references",
        VerifyDepth::Content => "content",
        VerifyDepth::Restored => "restored",
    }
}

/// Adds what `found` says of the cluster and its backups.
pub fn add(info: &mut ClusterInfo, found: &Verification) {
    let older = info.older_generations.iter_mut().flat_map(|older| &mut older.backups);
    for backup in info.backups.iter_mut().chain(older) {
        let known = found.backups.iter().find(|known| known.backup.as_str() == backup.id);
        backup.verified = known.map(|known| VerifiedInfo {
            outcome: match known.outcome {
                VerifyOutcome::Verified => "verified",
                VerifyOutcome::Damaged => "damaged",
            },
            depth: depth_name(known.depth),
            at: known.at.to_string(),
            reason: (!known.reason.is_empty()).then(|| known.reason.clone()),
        });
    }
    info.verification = Some(VerificationInfo {
        finished_at: found.finished_at.to_string(),
        depth: depth_name(found.depth),
        scope: match found.scope {
            VerifyScope::Whole => "whole",
            VerifyScope::Sample => "sample",
        },
        bytes_covered: found.bytes_covered,
        bytes_total: found.bytes_total,
        covered_since: found.arcs.iter().map(|arc| arc.at).min().map(|at| at.to_string()),
        damage_count: found.damage_count,
        damage: found
            .damage
            .iter()
            .map(|known| DamageInfo {
                object: known.key.clone(),
                found: known.reason.clone(),
                cost: known.cost.clone(),
                found_at: known.found_at.to_string(),
            })
            .collect(),
    });
}
