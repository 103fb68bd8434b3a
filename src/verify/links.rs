//! Whether each key epoch follows from the ones before it: what is not proved is never used, and says that somebody planted it, or that
//! links are lost. Spec: formats/keys.md.

use super::Finding;
use super::listing::Listed;
use crate::base::ObjectKey;
use crate::codec::link::decode_link;
use crate::repo::layout::{self, KeyObject};
use crate::repo::{RepoError, Repository};
use crate::store::StoreError;

/// Epochs and links that are listed and that the chain of links does not prove.
pub async fn findings(repo: &Repository, listed: &Listed) -> Result<Vec<Finding>, RepoError> {
    let keys = repo.keys();
    let mut findings = Vec::new();
    let mut finding = |key: ObjectKey, reason: String, cost: String| {
        findings.push(Finding { key: key.to_string(), backups: Vec::new(), reason, cost });
    };
    for (key, object) in listed.keys().filter_map(|key| Some((key, layout::parse_key_object(key)?))) {
        match object {
            // One that was not given to our slot is known by its link alone.
            KeyObject::Epoch(epoch) if keys.chain().key(epoch).is_none() => {
                let reason =
                    "no links lead to it from the epoch that the key slot began with: it is not proved";
                let cost = format!(
                    "nothing: key epoch {epoch} is not used; `walden key destroy {epoch}` removes it"
                );
                finding(key.clone(), reason.into(), cost);
            }
            KeyObject::Link(epoch) => {
                let bytes = match repo.store().get(key).await {
                    Err(StoreError::NotFound { .. }) => continue,
                    got => got?,
                };
                // Damage to it is found where all objects are read.
                let Ok(link) = decode_link(&bytes, repo.id(), epoch) else { continue };
                let right = keys.chain().key(epoch).map(|public| *public == link.public);
                let known_before =
                    epoch.checked_sub(1).is_some_and(|before| keys.chain().key(before).is_some());
                if right == Some(false) || (right.is_none() && known_before) {
                    let reason = "the holder of the epoch before did not sign it: somebody planted it";
                    finding(
                        key.clone(),
                        reason.into(),
                        format!("nothing: key epoch {epoch} is proved without it, or not used"),
                    );
                }
            }
            KeyObject::Epoch(_) | KeyObject::EpochSlot(..) | KeyObject::Slot(_) => {}
        }
    }
    Ok(findings)
}
