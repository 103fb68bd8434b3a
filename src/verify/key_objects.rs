//! Key slots, epochs and their links, which are plain objects: whether each says that it is what its name says, and of which repository.

use crate::base::{ObjectKey, RepositoryId};
use crate::codec::check::check_header;
use crate::codec::read::Expect;
use crate::format::envelope::PlainObject;
use crate::format::keyslot::{Epoch, EpochLink, EpochSlot, KeySlot};
use crate::repo::layout::{self, KeyObject};

/// The repository that an object says it belongs to, if it says anything.
pub(super) fn repository_of(key: &ObjectKey, bytes: &[u8]) -> Option<RepositoryId> {
    match layout::parse_key_object(key) {
        Some(KeyObject::Slot(_)) => KeySlot::from_object(bytes).ok().map(|slot| slot.repository),
        Some(KeyObject::Epoch(_)) => Epoch::from_object(bytes).ok().map(|epoch| epoch.repository),
        Some(KeyObject::EpochSlot(..)) => EpochSlot::from_object(bytes).ok().map(|epoch| epoch.repository),
        Some(KeyObject::Link(_)) => EpochLink::from_object(bytes).ok().map(|link| link.repository),
        None => {
            let any = Expect { repository: None, key: None, kind: None };
            check_header(bytes, &any).ok().map(|(header, _)| header.repository)
        }
    }
}

/// Slots and epochs are plain: they repeat where they belong.
pub(super) fn judge_key_object(
    object: &KeyObject,
    bytes: &[u8],
    id: Option<RepositoryId>,
) -> Result<(), String> {
    let (repository, found) = match object {
        KeyObject::Slot(_) => {
            let slot = KeySlot::from_object(bytes).map_err(|error| error.to_string())?;
            (slot.repository, KeyObject::Slot(slot.name))
        }
        KeyObject::Epoch(_) => {
            let epoch = Epoch::from_object(bytes).map_err(|error| error.to_string())?;
            (epoch.repository, KeyObject::Epoch(epoch.epoch))
        }
        KeyObject::EpochSlot(..) => {
            let epoch = EpochSlot::from_object(bytes).map_err(|error| error.to_string())?;
            (epoch.repository, KeyObject::EpochSlot(epoch.epoch, epoch.slot))
        }
        KeyObject::Link(_) => {
            let link = EpochLink::from_object(bytes).map_err(|error| error.to_string())?;
            (link.repository, KeyObject::Link(link.epoch))
        }
    };
    if id.is_some_and(|id| id != repository) {
        return Err(format!("its repository is {repository}"));
    }
    if found != *object {
        return Err(format!("it is {found:?}"));
    }
    Ok(())
}
