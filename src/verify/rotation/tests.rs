//! Runs after each other over a ring to which objects are added and from which they are removed.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn time(at: u64) -> Timestamp {
    Timestamp::from_micros(at as i64)
}

/// Objects by place: bytes, and when they were stored.
type Ring = BTreeMap<u64, (u64, i64)>;

/// One run as the driver does it: reads from the start on while the budget lasts, one object at least.
fn run(ring: &Ring, arcs: &[VerifiedArc], budget: u64, now: u64) -> (Vec<u64>, Vec<VerifiedArc>) {
    let listed = ring.values().map(|(_, stored)| *stored).max().unwrap_or(i64::MIN);
    let start = next_start(arcs);
    let ordered: Vec<(u64, u64)> =
        ring.range(start..).chain(ring.range(..start)).map(|(place, (len, _))| (*place, *len)).collect();
    let (mut read, mut used, mut end) = (Vec::new(), 0, start.wrapping_sub(1));
    for (place, len) in &ordered {
        if used + len > budget && !read.is_empty() {
            end = place.wrapping_sub(1);
            break;
        }
        used += len;
        read.push(*place);
    }
    let new = if end == start.wrapping_sub(1) {
        whole(listed, time(now))
    } else {
        arcs_between(start, end, listed, time(now))
    };
    (read, merge(arcs, &new))
}

fn assert_sound(arcs: &[VerifiedArc]) {
    assert!(arcs.len() <= ARCS_MAX);
    assert!(arcs.iter().all(|arc| arc.first <= arc.last));
    assert!(arcs.windows(2).all(|pair| pair[0].last < pair[1].first), "{arcs:?}");
}

#[test]
fn begins_where_nobody_looked_for_the_longest_time() {
    assert_eq!(next_start(&[]), 0);
    let arcs = arcs_between(10, 20, 5, time(1));
    assert_eq!(next_start(&arcs), 21, "what was never read begins behind it");
    let arcs = merge(&arcs, &arcs_between(21, 9, 5, time(2)));
    assert_eq!(next_start(&arcs), 10);
    let arcs = merge(&arcs, &arcs_between(10, 20, 5, time(3)));
    assert_eq!(next_start(&arcs), 21, "the part before the end of the ring was read first");
}

#[test]
fn what_came_after_the_list_was_not_read() {
    let arcs = arcs_between(u64::MAX - 1, 5, 100, time(7));
    assert_eq!(read_at(&arcs, 0, 100), Some(time(7)));
    assert_eq!(read_at(&arcs, u64::MAX, 99), Some(time(7)));
    assert_eq!(read_at(&arcs, 5, 101), None);
    assert_eq!(read_at(&arcs, 6, 1), None);
}

#[test]
fn no_arc_is_younger_than_the_run_that_goes_on_with_it() {
    let arcs = merge(&arcs_between(0, 9, 5, time(7)), &arcs_between(10, u64::MAX, 5, time(3)));
    let told = |latest| not_after(&arcs, time(latest)).iter().map(|arc| arc.at).collect::<Vec<_>>();
    assert_eq!(told(5), [time(5), time(3)]);
    assert_eq!(told(2), [time(2), time(2)]);
}

#[test]
fn many_arcs_become_few_and_never_claim_too_much() {
    let mut arcs = Vec::new();
    for at in 0..2000u64 {
        let first = at * 1000;
        arcs = merge(&arcs, &arcs_between(first, first + 999, at as i64, time(at)));
        assert_sound(&arcs);
    }
    for at in 0..2000u64 {
        if let Some(read) = read_at(&arcs, at * 1000 + 500, 0) {
            assert!(read <= time(at), "an arc is not younger than what it was made of");
        }
    }
    // Arcs that do not touch cannot become one: the oldest is forgotten, and read again first.
    let mut arcs = Vec::new();
    for at in 0..1000u64 {
        arcs = merge(&arcs, &arcs_between(at * 1000, at * 1000 + 9, 0, time(at)));
        assert_sound(&arcs);
    }
    assert_eq!(read_at(&arcs, 0, 0), None);
    assert_eq!(read_at(&arcs, 999_000, 0), Some(time(999)));
}

#[derive(Debug, Clone)]
enum Step {
    Add(u64, u64),
    Remove(usize),
    Run(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => (any::<u64>(), 1..100u64).prop_map(|(place, len)| Step::Add(place, len)),
        1 => any::<usize>().prop_map(Step::Remove),
        2 => (1..400u64).prop_map(Step::Run),
    ];
    proptest::collection::vec(step, 1..120)
}

proptest! {
    /// Whatever happened before: runs of one budget cover everything that is there, in as many as its bytes need, and what is
    /// said to have been read was read then.
    #[test]
    fn everything_is_read_by_turns(steps in steps(), budget in 50..500u64) {
        let (mut ring, mut arcs, mut clock) = (Ring::new(), Vec::new(), 0);
        let mut last_read: BTreeMap<u64, Timestamp> = BTreeMap::new();
        let check = |ring: &Ring, arcs: &[VerifiedArc], last_read: &BTreeMap<u64, Timestamp>| {
            assert_sound(arcs);
            for (place, (_, stored)) in ring {
                if let Some(at) = read_at(arcs, *place, *stored) {
                    assert!(last_read.get(place).is_some_and(|read| at <= *read), "{place} was not read at {at}");
                }
            }
        };
        for step in steps {
            clock += 1;
            match step {
                Step::Add(place, len) => drop(ring.insert(place, (len, clock as i64))),
                Step::Remove(at) => {
                    let place = ring.keys().nth(at % ring.len().max(1)).copied();
                    place.map(|place| (ring.remove(&place), last_read.remove(&place)));
                }
                Step::Run(budget) => {
                    let (read, next) = run(&ring, &arcs, budget, clock);
                    last_read.extend(read.iter().map(|place| (*place, time(clock))));
                    arcs = next;
                }
            }
            // An object that takes the place of another is another.
            last_read.retain(|place, read| ring.get(place).is_some_and(|(_, stored)| time(*stored as u64) <= *read));
            check(&ring, &arcs, &last_read);
        }
        let (before, bytes) = (clock, ring.values().map(|(len, _)| len).sum::<u64>());
        // Objects are at most 99 bytes, so that each run but the last leaves less than that of its budget.
        let turns = bytes / (budget - 49).max(1) + 2 + arcs.len() as u64;
        for added in 0..turns {
            clock += 1;
            // What is added meanwhile does not starve what was there, nor is it starved itself.
            ring.insert(added.wrapping_mul(0x9E37_79B9_7F4A_7C15), (1, clock as i64));
            clock += 1;
            let (read, next) = run(&ring, &arcs, budget, clock);
            last_read.extend(read.iter().map(|place| (*place, time(clock))));
            arcs = next;
            check(&ring, &arcs, &last_read);
        }
        for (place, (_, stored)) in ring.iter().filter(|(_, (_, stored))| *stored <= before as i64) {
            let read = read_at(&arcs, *place, *stored);
            prop_assert!(read.is_some_and(|read| read > time(before)), "{place}: {read:?} in {turns} runs");
        }
    }
}
