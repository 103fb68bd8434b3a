//! What earlier runs left unproved: damage by its name, and places of what was too much to name. A run reads again what has a name,
//! the rest when its turn comes. What it proved, or what is gone, is healed; what became known as damaged meanwhile is not its business.

use super::listing::Listed;
use super::rotation::place_of;
use super::turn::Turn;
use crate::base::ObjectKey;
use crate::format::verification::Verification;
use crate::repo::RepoError;
use crate::repo::repository::exists;
use crate::store::{ObjectMeta, Store};
use std::collections::{BTreeMap, BTreeSet};

/// What is to be looked at again.
#[derive(Debug, Default)]
pub struct Again {
    /// By place; the object that lies there, if it is known.
    places: BTreeMap<u64, Option<ObjectKey>>,
    /// Objects of damage that was kept by its name.
    named: BTreeSet<ObjectKey>,
}

impl Again {
    /// What `before` says of a cluster that has `objects` now.
    pub fn new(before: Option<&Verification>, objects: &[ObjectMeta]) -> Again {
        let Some(before) = before else { return Again::default() };
        let named = before.damage.iter().filter_map(|known| ObjectKey::new(known.key.clone()));
        let named: BTreeSet<ObjectKey> = named.collect();
        let mut places: BTreeMap<u64, Option<ObjectKey>> =
            before.unproved.iter().map(|place| (*place, None)).collect();
        places.extend(named.iter().map(|key| (place_of(key), Some(key.clone()))));
        if !places.is_empty() {
            for meta in objects {
                if let Some(known) = places.get_mut(&place_of(&meta.key)) {
                    *known = Some(meta.key.clone());
                }
            }
        }
        Again { places, named }
    }

    /// Objects to be read whatever the budget is.
    pub fn named(&self) -> impl Iterator<Item = &ObjectKey> {
        self.named.iter()
    }

    /// Whether an object was not proved before, and is read in this run.
    pub fn is_read(&self, key: &ObjectKey, turn: &Turn<'_>) -> bool {
        self.named.contains(key) || (turn.has(key) && self.places.contains_key(&place_of(key)))
    }

    /// All listed objects of which that is so.
    pub fn read(&self, turn: &Turn<'_>, listed: &Listed) -> BTreeSet<ObjectKey> {
        let known = self.places.values().flatten();
        known.filter(|key| self.is_read(key, turn) && listed.find(key).is_some()).cloned().collect()
    }

    /// Places of objects that are not there any more: whoever misses them is told so by what refers to them.
    pub async fn gone(&self, store: &dyn Store, listed: &Listed) -> Result<BTreeSet<u64>, RepoError> {
        let mut gone = BTreeSet::new();
        for (place, key) in &self.places {
            let there = match key {
                None => false,
                Some(key) => listed.find(key).is_some() || exists(store, key).await?,
            };
            if !there {
                gone.insert(*place);
            }
        }
        Ok(gone)
    }
}
