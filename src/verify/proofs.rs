//! What each restorable backup needs: its manifest, its chunks, its WAL, and what that is made of.

use super::listing::Listed;
use super::looked::{GenerationWal, Looked};
use super::needs::{BackupNeeds, Needs};
use super::results::{BackupProof, Needed};
use super::rotation::{place_of, place_of_bytes};
use super::wal::{Decoded, epoch_of, key_of};
use crate::base::{ObjectKey, SegmentSize};
use crate::format::index::BackupEntry;
use crate::repo::backups::{is_restorable, needed_wal, state_now};
use crate::repo::layout;
use crate::repo::walmap::{WalMap, WalSource};
use std::collections::{BTreeMap, BTreeSet};

impl Looked {
    /// What each restorable backup needs.
    pub fn proofs(&self, listed: &Listed, needs: &Needs, decoded: &Decoded) -> Vec<BackupProof> {
        let keys: Vec<&ObjectKey> = self.chunks.index().segment_keys().collect();
        let mut proofs = Vec::new();
        for (backup, own) in self.snapshot.index.backups.iter().zip(&needs.backups) {
            let Some(GenerationWal { map, size }) =
                self.generations.iter().find(|own| own.map.generation() == backup.generation)
            else {
                continue;
            };
            let state = size.map_or(backup.state, |size| state_now(backup, map, size));
            if !is_restorable(state) {
                continue;
            }
            let needed =
                size.and_then(|size| self.needed(listed, needs, decoded, (backup, own), (map, size), &keys));
            proofs.push(BackupProof { id: backup.id.clone(), needed });
        }
        proofs
    }

    /// Everything that a backup needs; `None` when something of it is not there, or was not listed.
    fn needed(
        &self,
        listed: &Listed,
        needs: &Needs,
        decoded: &Decoded,
        (backup, own): (&BackupEntry, &BackupNeeds),
        (map, size): (&WalMap, SegmentSize),
        keys: &[&ObjectKey],
    ) -> Option<Vec<Needed>> {
        let with_manifest = |own: &BackupNeeds, to: &mut BTreeSet<ObjectKey>| {
            let numbered = own.segments.iter().zip(keys).filter(|(needed, _)| **needed);
            to.extend(numbered.map(|(_, key)| ObjectKey::clone(key)));
            to.insert(layout::manifest(self.cluster.name(), &own.id, own.manifest_number));
        };
        let (mut wanted, mut all) = (BTreeSet::new(), Vec::new());
        with_manifest(own, &mut wanted);
        let (mut epochs, range) = (BTreeMap::new(), needed_wal(backup, size));
        for piece in map.overlapping(backup.timeline, range) {
            let key = key_of(&self.cluster, piece);
            match &piece.source {
                WalSource::Segment(_) => drop(wanted.insert(key)),
                // Decoded by every run that reads at all, whether it was listed in time or not.
                WalSource::Flush { .. } => {
                    let now = decoded.has((map.generation(), piece.timeline), piece.range);
                    let modified = listed.find(&key).map(|meta| meta.modified_unix_micros);
                    let modified_unix_micros = modified.or(now.then_some(i64::MIN))?;
                    all.push(Needed { place: place_of(&key), modified_unix_micros, now });
                }
            }
            epochs.extend(epoch_of(piece).map(|epoch| (epoch.id, i64::MIN)));
        }
        for piece in map.pieces() {
            let Some(newest) = epoch_of(piece).and_then(|epoch| epochs.get_mut(&epoch.id)) else { continue };
            let key = key_of(&self.cluster, piece);
            *newest = i64::max(*newest, listed.find(&key)?.modified_unix_micros);
            wanted.insert(key);
            if let WalSource::Segment(entry) = &piece.source
                && let Some(base) = entry.deltas.as_ref().and_then(|deltas| deltas.base.as_ref())
            {
                // Of one that is not whole, only decoding tells what it costs.
                let base = needs.backups.iter().find(|own| own.id == *base)?;
                if base.missing > 0 || base.broken.is_some() {
                    return None;
                }
                with_manifest(base, &mut wanted);
            }
        }
        all.extend(epochs.into_iter().map(|(id, modified_unix_micros)| {
            let place = place_of_bytes(&id.0);
            Needed { place, modified_unix_micros, now: false }
        }));
        for key in wanted {
            let modified_unix_micros = listed.find(&key)?.modified_unix_micros;
            all.push(Needed { place: place_of(&key), modified_unix_micros, now: false });
        }
        Some(all)
    }
}
