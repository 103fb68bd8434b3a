//! Losses at the ends of streams, and what tells where they end.

use super::super::of_chain;
use super::*;
use crate::base::{ClusterName, Generation, ObjectId, ObjectKey, StreamId, Timestamp};
use crate::format::index::{GapEntry, HistoryEntry, WalEntry};
use crate::format::record::Blob;
use crate::format::root::{Root, StreamEntry};
use crate::format::wal::{FenceMeta, WalMeta, WalSummary};
use crate::repo::chain::{ChainEnd, ChainObject, Lost};
use crate::repo::{Index, WalMap};
use std::sync::Arc;

const G: Generation = Generation(1);

fn lsn(at: u64) -> Lsn {
    Lsn::new(at)
}

fn range(start: u64, end: u64) -> LsnRange {
    LsnRange::new(lsn(start), lsn(end))
}

/// A stream that is fenced.
fn stream(id: u8, timeline: u32, low_water: Option<u64>) -> Chain {
    let stream = StreamEntry {
        id: StreamId([id; 16]),
        generation: G,
        timeline: TimelineId(timeline),
        writer_epoch: u64::from(id),
        low_water: u64::from(low_water.is_some()),
        low_water_lsn: low_water.map(Lsn::new),
        low_water_link: [0; 32],
        low_water_key_epoch: 0,
    };
    let fence = FenceMeta {
        successor: StreamId([id + 1; 16]),
        writer_epoch: u64::from(id) + 1,
        previous_link: [0; 32],
        extensions: Vec::new(),
    };
    let end = ChainEnd::Fenced { number: stream.low_water, fence };
    Chain { stream, objects: Vec::new(), end, lost: Vec::new() }
}

impl Chain {
    fn with(mut self, start: u64, end: u64) -> Chain {
        let number = self.end_number();
        self.objects.push(ChainObject {
            number,
            key: ObjectKey::new(format!("{number}")).unwrap(),
            meta: WalMeta {
                generation: G,
                timeline: self.stream.timeline,
                start: lsn(start),
                end: lsn(end),
                server_end: lsn(end),
                server_time: Timestamp::from_micros(1),
                previous_link: [0; 32],
                predecessor: None,
                summary: WalSummary::empty(),
                deltas: None,
                extensions: Vec::new(),
            },
            object_len: 1,
            link: [1; 32],
            key_epoch: 1,
        });
        self.lost.iter_mut().for_each(|lost| lost.to = lost.to.or(Some(lsn(start))));
        self.counted()
    }

    fn losing(mut self) -> Chain {
        let number = self.end_number();
        let key = ObjectKey::new(format!("{number}")).unwrap();
        self.lost.push(Lost {
            number,
            key,
            reason: "cut".into(),
            may_be_fence: false,
            from: self.end_lsn(),
            to: None,
        });
        self.counted()
    }

    fn counted(mut self) -> Chain {
        if let ChainEnd::Fenced { number, .. } = &mut self.end {
            *number += 1;
        }
        self
    }
}

/// What the only loss among `chains` costs, the last of which is open, while `segments` of timeline 1 are compacted; `None` where it is
/// not recorded.
fn cost(
    mut chains: Vec<Chain>,
    segments: &[(u64, u64)],
    change: impl FnOnce(&mut Root, &mut Index),
) -> Option<Vec<LsnRange>> {
    let last = chains.last_mut().unwrap();
    last.end = ChainEnd::Open { next: last.end_number() };
    let mut root = Root::first("shop".parse::<ClusterName>().unwrap(), G, Timestamp::from_micros(1));
    root.streams = chains.iter().map(|chain| chain.stream.clone()).collect();
    let entry = |(start, end): &(u64, u64)| WalEntry {
        id: ObjectId([*start as u8; 16]),
        generation: G,
        timeline: TimelineId(1),
        start: lsn(*start),
        end: lsn(*end),
        object_len: 1,
        directory_offset: 0,
        server_time: Timestamp::from_micros(1),
        summary: WalSummary::empty(),
        deltas: None,
    };
    let mut index = Index { wal: segments.iter().map(entry).collect(), ..Index::default() };
    change(&mut root, &mut index);
    let wal = Arc::new(WalMap::new(G, &index, chains));
    let snapshot = Snapshot { root, index, wal };
    let chains = snapshot.wal.chains().iter().enumerate();
    let all: Vec<Loss> = chains.flat_map(|(at, chain)| of_chain(&snapshot, at, chain)).collect();
    let [loss] = &all[..] else { panic!("{all:?}") };
    loss.closed.then(|| loss.gaps.clone())
}

fn as_it_is(_: &mut Root, _: &mut Index) {}

/// A failover to timeline 2 at `at`.
fn left_at(at: u64) -> impl FnOnce(&mut Root, &mut Index) {
    move |_, index| {
        let content = Blob(format!("1\t{}\tno reason\n", lsn(at)).into_bytes());
        index.histories.push(HistoryEntry { generation: G, timeline: TimelineId(2), content });
    }
}

#[test]
fn a_tail_ends_where_the_next_stream_begins() {
    let lost = || stream(1, 1, Some(10)).losing();
    let cost_before = |next: Chain, segments: &[(u64, u64)]| cost(vec![lost(), next], segments, as_it_is);
    assert_eq!(cost_before(stream(2, 1, None).with(20, 30), &[(0, 10)]), Some(vec![range(10, 20)]));
    assert_eq!(
        cost_before(stream(2, 1, None).with(20, 20), &[(0, 10)]),
        Some(vec![range(10, 20)]),
        "heartbeat"
    );
    assert_eq!(cost_before(stream(2, 1, Some(30)), &[(0, 10), (20, 30)]), Some(vec![range(10, 20)]));
    assert_eq!(cost_before(stream(2, 1, Some(20)), &[(0, 10)]), Some(vec![range(10, 20)]), "heartbeats");
    assert_eq!(cost_before(stream(2, 1, None).with(10, 30), &[(0, 10)]), Some(vec![]), "sent again");
    assert_eq!(cost_before(stream(2, 1, None), &[(0, 10)]), None, "the next stream has nothing");
    assert_eq!(cost_before(stream(2, 1, None).with(5, 8), &[(0, 10)]), None, "the next stream is not so far");
}

#[test]
fn a_tail_that_nothing_follows_ends_where_its_timeline_was_left_or_nowhere() {
    let lost = || stream(1, 1, Some(10)).losing();
    let next = || stream(2, 2, None).with(100, 110);
    let to_no_end = Some(vec![LsnRange::new(lsn(10), Lsn::MAX)]);
    assert_eq!(cost(vec![lost(), next()], &[(0, 10)], left_at(15)), Some(vec![range(10, 15)]));
    assert_eq!(cost(vec![lost(), next()], &[(0, 10)], left_at(7)), to_no_end);
    assert_eq!(cost(vec![lost(), next()], &[(0, 10)], as_it_is), to_no_end);
    // Its generation is over: the fence behind it was an upgrade's.
    let mut closed = lost();
    closed.lost[0].to = None;
    let over = |root: &mut Root, _: &mut Index| root.generation = Generation(2);
    let rest = stream(2, 1, None);
    assert_eq!(cost(vec![closed, rest], &[(0, 10)], over), to_no_end);
}

#[test]
fn a_stream_that_is_lost_whole_costs_the_hole_between_its_neighbours() {
    let lost = || stream(2, 1, None).losing();
    let (before, after) = (|| stream(1, 1, None).with(0, 10), || stream(3, 1, None).with(20, 30));
    assert_eq!(cost(vec![before(), lost(), after()], &[], as_it_is), Some(vec![range(10, 20)]));
    assert_eq!(cost(vec![lost(), after()], &[(0, 10)], as_it_is), Some(vec![range(10, 20)]));
    assert_eq!(
        cost(vec![lost(), stream(3, 1, Some(30))], &[(0, 10), (20, 30)], as_it_is),
        Some(vec![range(10, 20)])
    );
    assert_eq!(cost(vec![lost(), after()], &[(0, 20)], as_it_is), Some(vec![]), "another object holds it");
    assert_eq!(cost(vec![lost(), after()], &[], as_it_is), Some(vec![range(0, 20)]), "the first of all");
    let failover = |at| cost(vec![lost(), stream(3, 2, None).with(100, 110)], &[(0, 10)], left_at(at));
    assert_eq!(failover(15), Some(vec![range(10, 15)]));
}

#[test]
fn the_beginning_of_a_timeline_is_where_it_left_the_one_before() {
    let chains = vec![stream(1, 1, Some(10)), stream(2, 2, None).losing().with(20, 30)];
    assert_eq!(cost(chains, &[(0, 10)], left_at(10)), Some(vec![range(10, 20)]));
}

#[test]
fn a_loss_costs_no_hole_but_its_own() {
    // What it held was sent again, and another hole follows.
    let chains = || vec![stream(1, 1, Some(10)).losing(), stream(2, 1, None).with(40, 50)];
    assert_eq!(cost(chains(), &[(0, 20), (30, 40)], as_it_is), Some(vec![]));
    assert_eq!(cost(chains(), &[(0, 10), (15, 20), (30, 40)], as_it_is), Some(vec![range(10, 15)]));
    let recorded = |_: &mut Root, index: &mut Index| {
        index.gaps.push(GapEntry {
            id: ObjectId([1; 16]),
            generation: G,
            timeline: TimelineId(1),
            start: lsn(15),
            end: lsn(40),
            recorded_at: Timestamp::MIN,
            reason: "recorded before".into(),
        });
    };
    assert_eq!(cost(chains(), &[(0, 10)], recorded), Some(vec![range(10, 15)]));
}
