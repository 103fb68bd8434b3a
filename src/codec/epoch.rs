//! The object that makes a key epoch: its secrets, sealed to every slot that has it from the beginning. No IO.
//! One object, so that of any number of rotations one wins whole, and none is ever half done. Spec: formats/keys.md.

use super::keyring::EpochKeys;
use super::keyslot::{KeySlotError, SlotPublic, misplaced, seal_epoch};
use super::link::decode_link;
use crate::base::{Entropy, RepositoryId, SlotName};
use crate::format::envelope::PlainObject;
use crate::format::keyslot::{Epoch, EpochLink, EpochSlot};
use crate::format::record::Blob;

/// An epoch as it was made.
#[derive(Debug, Clone)]
pub struct EpochObject {
    record: Epoch,
}

impl EpochObject {
    /// Makes `keys`' epoch for `slots`, of which there is one at least and [`SLOTS_MAX`] at most. `link` shows what it follows from;
    /// the first epoch has none.
    ///
    /// [`SLOTS_MAX`]: crate::format::keyslot::SLOTS_MAX
    pub fn create(
        repository: RepositoryId,
        keys: &EpochKeys,
        link: Option<&EpochLink>,
        slots: &[SlotPublic],
        entropy: &dyn Entropy,
    ) -> EpochObject {
        let sealed = slots.iter().map(|slot| Blob(seal_epoch(slot, keys, entropy))).collect();
        let link = link.map(|link| Blob(link.to_object()));
        EpochObject { record: Epoch { repository, epoch: keys.epoch, link, slots: sealed } }
    }

    /// Reads the `keys/epochs/<epoch>/_epoch` object `bytes` of `repository`.
    pub fn decode(bytes: &[u8], repository: RepositoryId, epoch: u32) -> Result<EpochObject, KeySlotError> {
        let record = Epoch::from_object(bytes)?;
        if record.repository != repository {
            return Err(misplaced("the epoch's repository", &record.repository, &repository));
        }
        if record.epoch != epoch {
            return Err(misplaced("the epoch's number", &record.epoch, &epoch));
        }
        Ok(EpochObject { record })
    }

    /// Its number.
    pub fn epoch(&self) -> u32 {
        self.record.epoch
    }

    /// The whole object.
    pub fn to_object(&self) -> Vec<u8> {
        self.record.to_object()
    }

    /// Its link; `None` in the first epoch, and when it cannot be read.
    pub fn link(&self) -> Option<EpochLink> {
        let bytes = self.record.link.as_ref()?;
        decode_link(&bytes.0, self.record.repository, self.record.epoch).ok()
    }

    /// The bytes that are sealed to `slot`: those of a `keys/epochs/<epoch>/<slot>` object.
    pub fn sealed_to(&self, slot: &SlotPublic) -> Option<&[u8]> {
        self.sealed().find(|(sealed, _)| slot.is_of(sealed)).map(|(_, bytes)| bytes)
    }

    /// Names of the slots that it was given to.
    pub fn slots(&self) -> Vec<SlotName> {
        self.sealed().map(|(sealed, _)| sealed.slot).collect()
    }

    /// What can be read of what it holds: another slot's damage is not ours.
    fn sealed(&self) -> impl Iterator<Item = (EpochSlot, &[u8])> {
        let slots = self.record.slots.iter();
        slots.filter_map(|bytes| Some((EpochSlot::from_object(&bytes.0).ok()?, bytes.0.as_slice())))
    }
}
