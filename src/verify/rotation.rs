//! Which objects a verification by samples reads, so that runs after each other read everything. Pure.
//! Every object has a place on a ring by its key; what was read is kept as arcs of it, whatever the number of objects. A run begins
//! where nobody looked for the longest time and goes on from there until its budget is used up. Spec: formats/verification.md.
//!
//! Invariant: after as many runs as the budget goes into the bytes (and one more), everything that was there before the first of
//! them was read; objects added and removed meanwhile move no other.

use crate::base::{ObjectKey, Timestamp};
use crate::format::header::ObjectHeader;
use crate::format::verification::{ARCS_MAX, VerifiedArc};

/// The place of an object on the ring.
pub fn place_of(key: &ObjectKey) -> u64 {
    place_of_bytes(&ObjectHeader::place_of(key))
}

/// The place of what is not one object, by random bytes.
pub fn place_of_bytes(bytes: &[u8; 16]) -> u64 {
    u64::from_be_bytes(*bytes.first_chunk::<8>().unwrap_or(&[0; 8]))
}

/// The arcs of one pass over the ring, from `first` on up to and with `last`; two where it passes the end.
pub fn arcs_between(first: u64, last: u64, listed_unix_micros: i64, at: Timestamp) -> Vec<VerifiedArc> {
    let arc = |first, last| VerifiedArc { first, last, listed_unix_micros, at };
    if first <= last { vec![arc(first, last)] } else { vec![arc(0, last), arc(first, u64::MAX)] }
}

/// All of the ring.
pub fn whole(listed_unix_micros: i64, at: Timestamp) -> Vec<VerifiedArc> {
    vec![VerifiedArc { first: 0, last: u64::MAX, listed_unix_micros, at }]
}

/// Where the next run begins: the first place of what was never read, or was read longest ago.
pub fn next_start(arcs: &[VerifiedArc]) -> u64 {
    let mut never = Vec::new();
    let mut expected = Some(0);
    for arc in arcs {
        if expected.is_some_and(|place| place < arc.first) {
            never.push((expected.unwrap_or(0), arc.first - 1));
        }
        expected = arc.last.checked_add(1);
    }
    if let Some(place) = expected {
        never.push((place, u64::MAX));
    }
    match (never.as_slice(), arcs) {
        // The stretch that was never read may pass the end of the ring: then it begins before that.
        ([(0, _), .., (last_start, u64::MAX)], _) => *last_start,
        ([(first, _), ..], _) => *first,
        ([], arcs) => {
            let oldest = arcs.iter().min_by_key(|arc| arc.at);
            // Of one read in one run, in two parts, the part before the end of the ring was read first.
            let same = |arc: &&VerifiedArc| oldest.is_some_and(|oldest| oldest.at == arc.at);
            let parts: Vec<&VerifiedArc> = arcs.iter().filter(same).collect();
            match parts.as_slice() {
                [first, .., last] if first.first == 0 && last.last == u64::MAX => last.first,
                [first, ..] => first.first,
                [] => 0,
            }
        }
    }
}

/// `arcs`, none of them read after `latest`: a host's clock that was ahead, or steps back, would leave arcs that are never the oldest.
pub fn not_after(arcs: &[VerifiedArc], latest: Timestamp) -> Vec<VerifiedArc> {
    arcs.iter().map(|arc| VerifiedArc { at: arc.at.min(latest), ..arc.clone() }).collect()
}

/// What is read since when, after `new` was read on top of `old`.
pub fn merge(old: &[VerifiedArc], new: &[VerifiedArc]) -> Vec<VerifiedArc> {
    let mut arcs: Vec<VerifiedArc> = Vec::new();
    for arc in old {
        arcs.extend(
            new.iter()
                .fold(vec![arc.clone()], |left, cut| left.iter().flat_map(|arc| without(arc, cut)).collect()),
        );
    }
    arcs.extend(new.iter().cloned());
    arcs.sort_by_key(|arc| arc.first);
    while arcs.len() > ARCS_MAX && fuse_one(&mut arcs) {}
    arcs
}

/// What is left of `arc` beside `cut`.
fn without(arc: &VerifiedArc, cut: &VerifiedArc) -> Vec<VerifiedArc> {
    if cut.last < arc.first || arc.last < cut.first {
        return vec![arc.clone()];
    }
    let mut left = Vec::new();
    if arc.first < cut.first {
        left.push(VerifiedArc { last: cut.first - 1, ..arc.clone() });
    }
    if cut.last < arc.last {
        left.push(VerifiedArc { first: cut.last + 1, ..arc.clone() });
    }
    left
}

/// Makes one of the two neighbours whose times are nearest, with the earlier times of both. Where no two touch, forgets the oldest.
fn fuse_one(arcs: &mut Vec<VerifiedArc>) -> bool {
    let touching = |pair: &[VerifiedArc]| match pair {
        [a, b] if a.last.checked_add(1) == Some(b.first) => Some(a.at.micros_since(b.at).unsigned_abs()),
        _ => None,
    };
    let nearest = arcs.windows(2).enumerate().filter_map(|(at, pair)| Some((touching(pair)?, at))).min();
    match nearest {
        Some((_, at)) => {
            let second = arcs.remove(at + 1);
            if let Some(first) = arcs.get_mut(at) {
                first.last = second.last;
                first.at = first.at.min(second.at);
                first.listed_unix_micros = first.listed_unix_micros.min(second.listed_unix_micros);
            }
            true
        }
        None => {
            let oldest = (0..arcs.len()).min_by_key(|at| arcs.get(*at).map(|arc| arc.at));
            oldest.map(|at| arcs.remove(at)).is_some()
        }
    }
}

/// When what lies at `place`, and was last modified then by the store's clock, was read; `None` when it was not.
pub fn read_at(arcs: &[VerifiedArc], place: u64, modified_unix_micros: i64) -> Option<Timestamp> {
    let after = arcs.partition_point(|arc| arc.first <= place);
    let arc = after.checked_sub(1).and_then(|at| arcs.get(at))?;
    (place <= arc.last && modified_unix_micros <= arc.listed_unix_micros).then_some(arc.at)
}

#[cfg(test)]
mod tests;
