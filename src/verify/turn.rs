//! What a run reads of a cluster: everything, or what its budget allows, from where nobody looked for the longest time.
//! Objects and epochs of deltas stand in one order, that of the ring; the next is asked for when there is room for it.
//! Memory: 24 bytes an object.

use super::rotation;
use crate::base::{ObjectId, ObjectKey, Timestamp};
use crate::format::verification::VerifiedArc;
use crate::store::ObjectMeta;
use std::time::Duration;
use tokio::time::Instant;

/// How much of a repository is read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// Everything.
    Everything,
    /// A share of the bytes, above 0 and up to 1.
    Share(f64),
    /// So many bytes.
    Bytes(u64),
    /// What can be read in that time.
    Time(Duration),
}

/// The part of a budget that is for one cluster.
#[derive(Debug, Clone, Copy)]
pub enum Limit {
    /// None.
    Everything,
    /// So many bytes.
    Bytes(u64),
    /// Until then.
    Until(Instant),
}

impl Budget {
    /// What of it is for a cluster of `own` bytes of the `left` ones that were not looked at yet, `own` included, of `total` in all.
    pub fn limit(self, started: Instant, own: u64, left: u64, total: u64) -> Limit {
        let part = |whole: f64, of: u64| whole * own as f64 / of.max(1) as f64;
        match self {
            Budget::Everything => Limit::Everything,
            Budget::Share(share) => Limit::Bytes((share * own as f64).ceil() as u64),
            Budget::Bytes(bytes) => Limit::Bytes(part(bytes as f64, total).ceil() as u64),
            Budget::Time(time) => {
                let now = Instant::now();
                let rest = (started + time).saturating_duration_since(now);
                Limit::Until(now + Duration::from_secs_f64(part(rest.as_secs_f64(), left)))
            }
        }
    }
}

/// One thing on the ring.
#[derive(Debug, Clone, Copy)]
enum Item {
    /// An object, by its number in the list.
    Object(u32),
    Epoch,
}

/// An epoch of deltas: its WAL is decoded as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochItem {
    /// Which.
    pub id: ObjectId,
    /// Stored bytes of it.
    pub bytes: u64,
}

/// Gives one object after the other.
#[derive(Debug)]
pub struct Turn<'a> {
    objects: &'a [ObjectMeta],
    /// Place, bytes, what; in the order of reading.
    items: Vec<(u64, u64, Item)>,
    next: usize,
    start: u64,
    limit: Limit,
    used: u64,
}

impl<'a> Turn<'a> {
    /// A turn over `objects` and `epochs` that goes on where `arcs` were read longest ago.
    pub fn new(
        objects: &'a [ObjectMeta],
        epochs: &[EpochItem],
        arcs: &[VerifiedArc],
        limit: Limit,
    ) -> Turn<'a> {
        let start = match limit {
            Limit::Everything => 0,
            Limit::Bytes(_) | Limit::Until(_) => rotation::next_start(arcs),
        };
        let numbered = objects.iter().zip(0u32..);
        let objects_at =
            numbered.map(|(meta, number)| (rotation::place_of(&meta.key), meta.len, Item::Object(number)));
        let epochs_at =
            epochs.iter().map(|epoch| (rotation::place_of_bytes(&epoch.id.0), epoch.bytes, Item::Epoch));
        let mut items: Vec<(u64, u64, Item)> = objects_at.chain(epochs_at).collect();
        // Everything is read in the order of its names, which is that of a disk more likely.
        if !matches!(limit, Limit::Everything) {
            items.sort_by_key(|(place, ..)| place.wrapping_sub(start));
        }
        Turn { objects, items, next: 0, start, limit, used: 0 }
    }

    /// The next object, while there is room.
    pub fn next_object(&mut self) -> Option<ObjectMeta> {
        loop {
            let (_, bytes, item) = *self.items.get(self.next)?;
            let room = match self.limit {
                Limit::Everything => true,
                Limit::Bytes(bytes_max) => self.next == 0 || self.used.saturating_add(bytes) <= bytes_max,
                Limit::Until(until) => self.next == 0 || Instant::now() < until,
            };
            if !room {
                return None;
            }
            self.next += 1;
            self.used = self.used.saturating_add(bytes);
            if let Item::Object(number) = item {
                return self.objects.get(number as usize).cloned();
            }
        }
    }

    /// Whether everything was given.
    pub fn is_whole(&self) -> bool {
        self.next >= self.items.len()
    }

    /// Whether an object was given.
    pub fn has(&self, key: &ObjectKey) -> bool {
        self.has_place(rotation::place_of(key))
    }

    /// Whether it is the turn of an epoch.
    pub fn has_epoch(&self, id: &ObjectId) -> bool {
        self.has_place(rotation::place_of_bytes(&id.0))
    }

    fn has_place(&self, place: u64) -> bool {
        let next = self.items.get(self.next);
        next.is_none_or(|(next, ..)| place.wrapping_sub(self.start) < next.wrapping_sub(self.start))
    }

    /// What was read of the ring, once it was.
    pub fn arcs(&self, listed_unix_micros: i64, at: Timestamp) -> Vec<VerifiedArc> {
        match self.items.get(self.next) {
            None => rotation::whole(listed_unix_micros, at),
            // One of several at one place: none of them counts.
            Some((place, ..)) if *place == self.start => Vec::new(),
            Some((place, ..)) => {
                rotation::arcs_between(self.start, place.wrapping_sub(1), listed_unix_micros, at)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn objects() -> Vec<ObjectMeta> {
        let key = |number: u32| ObjectKey::new(format!("clusters/shop/segments/{number:032x}")).unwrap();
        (0..100).map(|number| ObjectMeta { key: key(number), len: 10, modified_unix_micros: 5 }).collect()
    }

    #[test]
    fn runs_of_a_tenth_read_everything_in_ten_and_nothing_twice() {
        let (objects, mut arcs) = (objects(), Vec::new());
        let epoch = EpochItem { id: ObjectId([0x80; 16]), bytes: 30 };
        let (mut read, mut epochs) = (HashSet::new(), 0);
        for run in 0..11 {
            let mut turn = Turn::new(
                &objects,
                &[epoch],
                &arcs,
                Budget::Share(0.1).limit(Instant::now(), 1000, 1000, 1000),
            );
            while let Some(meta) = turn.next_object() {
                assert!(
                    read.insert(meta.key.clone()) || read.len() == 100,
                    "{} again in run {run}",
                    meta.key
                );
            }
            epochs += u32::from(turn.has_epoch(&epoch.id));
            arcs = rotation::merge(&arcs, &turn.arcs(5, Timestamp::from_micros(run)));
        }
        assert_eq!((read.len(), epochs), (100, 1));
    }

    #[test]
    fn one_object_is_read_however_small_the_budget() {
        let objects = objects();
        let mut turn = Turn::new(&objects, &[], &[], Limit::Bytes(1));
        assert!(turn.next_object().is_some() && turn.next_object().is_none() && !turn.is_whole());
        let mut turn = Turn::new(&objects, &[], &[], Limit::Everything);
        assert_eq!(std::iter::from_fn(|| turn.next_object()).count(), 100);
        assert!(turn.is_whole());
        assert_eq!(turn.arcs(5, Timestamp::from_micros(1)), rotation::whole(5, Timestamp::from_micros(1)));
    }

    #[test]
    fn budgets_are_shared_by_bytes() {
        let bytes = |limit| match limit {
            Limit::Bytes(bytes) => bytes,
            other => panic!("{other:?}"),
        };
        let now = Instant::now();
        assert_eq!(bytes(Budget::Bytes(1000).limit(now, 300, 400, 600)), 500);
        assert_eq!(bytes(Budget::Share(0.25).limit(now, 300, 300, 600)), 75);
        let Limit::Until(until) = Budget::Time(Duration::from_secs(100)).limit(now, 300, 400, 600) else {
            panic!()
        };
        let seconds = until.duration_since(now).as_secs_f64();
        assert!((74.0..76.0).contains(&seconds), "{seconds}");
    }
}
