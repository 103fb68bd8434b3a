//! Which number each block has: a table of numbers alone, open-addressed, in which many blocks are looked for at once. A cache of pages is
//! asked for every block that a record changes, at random; what costs there is waiting for memory, and so all wait together.

#![deny(clippy::indexing_slicing)]

use super::block::BlockId;
use super::records::QuickHasher;
use prefetch_index::prefetch_index;
use std::hash::{Hash, Hasher};

/// No number.
pub const NONE: u32 = u32::MAX;
/// Places of a table that has some.
const PLACES_MIN: usize = 64;

/// Numbers by their blocks. Whoever asks knows the block of a number.
#[derive(Debug, Default)]
pub struct BlockTable {
    /// At most half of them are taken; a block is at the place of its hash or behind it, before the next one that is free.
    places: Vec<u32>,
    len: usize,
}

fn hash(block: &BlockId) -> usize {
    let mut hasher = QuickHasher::default();
    block.hash(&mut hasher);
    hasher.finish() as usize
}

impl BlockTable {
    /// How many numbers it has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.places.fill(NONE);
        self.len = 0;
    }

    /// All numbers.
    pub fn numbers(&self) -> impl Iterator<Item = u32> {
        self.places.iter().copied().filter(|number| *number != NONE)
    }

    fn mask(&self) -> usize {
        self.places.len().wrapping_sub(1)
    }

    fn at(&self, place: usize) -> u32 {
        self.places.get(place & self.mask()).copied().unwrap_or(NONE)
    }

    /// Of each of `blocks` a number that is most often its own; [`Self::get`] tells. All are asked for before the first one is looked at.
    pub fn guess<'a>(&self, blocks: impl Iterator<Item = &'a BlockId>, guesses: &mut Vec<u32>) {
        guesses.clear();
        guesses.extend(blocks.map(|block| {
            let place = hash(block) as u32;
            prefetch_index(&self.places, place as usize & self.mask());
            place
        }));
        guesses.iter_mut().for_each(|guess| *guess = self.at(*guess as usize));
    }

    /// The place of the first number from that of `hash` on that `wanted` says yes to.
    fn find(&self, hash: usize, wanted: impl Fn(u32) -> bool) -> Option<usize> {
        // A free place is never far: half of them are.
        (0..self.places.len())
            .map(|step| hash.wrapping_add(step) & self.mask())
            .take_while(|place| self.at(*place) != NONE)
            .find(|place| wanted(self.at(*place)))
    }

    /// The number of `block`, where `is` says whether a number is.
    pub fn get(&self, block: &BlockId, is: impl Fn(u32) -> bool) -> Option<u32> {
        self.find(hash(block), is).map(|place| self.at(place))
    }

    /// Adds `number`, of `block`, which has none. `block_of` gives the block of a number.
    pub fn insert<'a>(
        &mut self,
        block: &BlockId,
        number: u32,
        block_of: impl Fn(u32) -> Option<&'a BlockId>,
    ) {
        if 2 * (self.len + 1) > self.places.len() {
            let places = (2 * self.places.len()).max(PLACES_MIN);
            let before = std::mem::replace(&mut self.places, vec![NONE; places]);
            for number in before.into_iter().filter(|number| *number != NONE) {
                if let Some(block) = block_of(number) {
                    self.put(hash(block), number);
                }
            }
        }
        self.put(hash(block), number);
        self.len += 1;
    }

    fn put(&mut self, hash: usize, number: u32) {
        let (mut place, mask) = (hash & self.mask(), self.mask());
        while self.at(place) != NONE {
            place = (place + 1) & mask;
        }
        if let Some(free) = self.places.get_mut(place) {
            *free = number;
        }
    }

    /// Takes `number`, of `block`, away.
    pub fn remove<'a>(
        &mut self,
        block: &BlockId,
        number: u32,
        block_of: impl Fn(u32) -> Option<&'a BlockId>,
    ) {
        let Some(mut gap) = self.find(hash(block), |other| other == number) else { return };
        let mask = self.mask();
        // What lies behind, up to the next free place, and would not be found across the gap moves into it.
        let mut place = gap;
        loop {
            place = (place + 1) & mask;
            let other = self.at(place);
            if other == NONE {
                break;
            }
            let home = block_of(other).map_or(place, hash) & mask;
            if place.wrapping_sub(home) & mask >= place.wrapping_sub(gap) & mask {
                self.set(gap, other);
                gap = place;
            }
        }
        self.set(gap, NONE);
        self.len -= 1;
    }

    fn set(&mut self, place: usize, number: u32) {
        if let Some(to) = self.places.get_mut(place) {
            *to = number;
        }
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::format::wal::RelationRef;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn block(block: u32) -> BlockId {
        BlockId { relation: RelationRef { tablespace: 1, database: 2, relation: 3 }, fork: 0, block }
    }

    proptest! {
        #[test]
        fn has_what_a_map_has(steps in prop::collection::vec((0u32..120, any::<bool>()), 0..600)) {
            // The number of a block is not its own, and comes again.
            let (mut table, mut map, mut blocks) = (BlockTable::default(), HashMap::new(), Vec::<BlockId>::new());
            let mut free = Vec::new();
            for (at, add) in steps {
                let wanted = block(at);
                match (map.get(&wanted).copied(), add) {
                    (None, true) => {
                        let number = free.pop().unwrap_or(blocks.len() as u32);
                        blocks.resize(blocks.len().max(number as usize + 1), wanted);
                        blocks[number as usize] = wanted;
                        table.insert(&wanted, number, |number| blocks.get(number as usize));
                        map.insert(wanted, number);
                    }
                    (Some(number), false) => {
                        table.remove(&wanted, number, |number| blocks.get(number as usize));
                        map.remove(&wanted);
                        free.push(number);
                    }
                    _ => {}
                }
                prop_assert_eq!(table.len(), map.len());
            }
            let all: Vec<BlockId> = (0..120).map(block).collect();
            let is = |wanted: BlockId| { let blocks = &blocks; move |number: u32| blocks[number as usize] == wanted };
            for wanted in &all {
                prop_assert_eq!(table.get(wanted, is(*wanted)), map.get(wanted).copied());
            }
            let mut numbers: Vec<u32> = table.numbers().collect();
            let mut expected: Vec<u32> = map.values().copied().collect();
            numbers.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(numbers, expected);
            // Guesses are good where nothing is in the way.
            let mut guesses = Vec::new();
            table.guess(all.iter(), &mut guesses);
            let good = all.iter().zip(&guesses).filter(|(wanted, guess)| map.get(wanted) == Some(guess)).count();
            prop_assert!(guesses.len() == all.len() && good * 2 >= map.len());
            table.clear();
            prop_assert!(table.len() == 0 && table.numbers().next().is_none() && table.get(&all[0], |_| true).is_none());
        }
    }
}
