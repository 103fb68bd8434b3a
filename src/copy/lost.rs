//! WAL of the source that cannot be read: a compacted segment or a flush object that is damaged or gone, and of an epoch of deltas all
//! that is decoded by way of it. What is behind it is copied, and the copy records a gap where nothing else holds the WAL. Nothing
//! remembers it from one copy to the next: once the source was mended, what was lost is copied like anything that is missing.
//!
//! Where nothing lies behind it there is no gap: whoever writes to the copy next begins behind a gap, and would never ask the server for
//! WAL that it may still have.

use super::plan::Unit;
use super::selection::Selection;
use super::source::{Place, View};
use crate::base::{
    ClusterName, Env, Generation, Lsn, LsnRange, ObjectId, ObjectKey, StreamId, TimelineId, limits,
};
use crate::format::index::GapEntry;
use crate::repo::backups::needed_wal;
use crate::repo::chain::Chain;
use crate::repo::cost::{self, LostWal};
use crate::repo::spans::Spans;
use crate::repo::{Index, RepoError, WalPiece, WalSource, layout};
use std::collections::BTreeSet;

/// WAL that the copy does not have since the source cannot read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Its generation and timeline.
    pub place: Place,
    /// Its first byte, if that is known.
    pub start: Option<Lsn>,
    /// One past its last byte, if that is known.
    pub end: Option<Lsn>,
    /// The object that is at fault.
    pub object: String,
    /// What is wrong with it.
    pub reason: String,
    /// Which moments, and which backups, cannot be restored.
    pub cost: String,
}

impl Missing {
    fn range(&self) -> Option<LsnRange> {
        Some(LsnRange::new(self.start?, self.end.filter(|end| Some(*end) > self.start)?))
    }

    /// Whether nothing is missing after all: all of it is `held`, or it was a heartbeat, which has no bytes. An object of which nobody knows
    /// the end is held where its first byte is: objects are copied whole.
    fn is_held(&self, held: &Spans) -> bool {
        let Some(start) = self.start else { return false };
        let end = self.end.unwrap_or(start.saturating_add(1));
        end <= start || held.covers(self.place, LsnRange::new(start, end))
    }
}

/// What is known to be lost.
#[derive(Debug, Default)]
pub struct Losses {
    segments: BTreeSet<ObjectId>,
    flushes: BTreeSet<(StreamId, u64)>,
    found: Vec<Missing>,
}

impl Losses {
    /// Whether `piece` cannot be read.
    pub fn has(&self, piece: &WalPiece) -> bool {
        match &piece.source {
            WalSource::Segment(entry) => self.segments.contains(&entry.id),
            WalSource::Flush { stream, number, .. } => self.flushes.contains(&(*stream, *number)),
        }
    }

    /// Whether anything of `generation` was found to be lost.
    pub fn has_any_of(&self, generation: Generation) -> bool {
        self.found.iter().any(|missing| missing.place.0 == generation)
    }

    /// `unit` cannot be read, since `error` is the source's: what goes is the object that is at fault, or all that the unit was to be read
    /// from where that lies elsewhere; and what is decoded by way of it.
    pub fn add(&mut self, view: &View, name: &ClusterName, unit: &Unit, error: &RepoError) {
        let Some(era) = view.eras.get(&unit.place.0) else { return };
        let at_fault = |piece: &&WalPiece| error.damaged_object() == Some(&key_of(name, piece));
        // Records that reach into the unit are read from before it.
        let since = unit.range.start.saturating_sub(limits::RESUME_OVERLAP_BYTES);
        let read = LsnRange::new(since, unit.range.end);
        let mut lost: Vec<&WalPiece> = match era.wal.overlapping(unit.place.1, read).find(at_fault) {
            Some(piece) => vec![piece],
            None => era.wal.overlapping(unit.place.1, unit.range).collect(),
        };
        let epochs: BTreeSet<ObjectId> = lost.iter().filter_map(|piece| epoch_of(piece)).collect();
        if let Some(first) = lost.first().map(|piece| piece.range.start) {
            let behind = era.wal.overlapping(unit.place.1, LsnRange::new(first, Lsn::MAX));
            lost.extend(behind.filter(|piece| epoch_of(piece).is_some_and(|epoch| epochs.contains(&epoch))));
        }
        for piece in &lost {
            match &piece.source {
                WalSource::Segment(entry) => drop(self.segments.insert(entry.id)),
                WalSource::Flush { stream, number, .. } => drop(self.flushes.insert((*stream, *number))),
            }
        }
        let object = error.damaged_object().map_or_else(|| layout::cluster_prefix(name), ToString::to_string);
        let (start, end) = (
            lost.iter().map(|piece| piece.range.start).min(),
            lost.iter().map(|piece| piece.range.end).max(),
        );
        self.found.push(missing(view, unit.place, (start, end), object, error.to_string()));
    }

    /// What of `selection` the source cannot read and `there` does not hold: what was found, and flush objects that the chains of `view`
    /// lack.
    pub fn missing(&self, view: &View, selection: &Selection, there: &Index) -> Vec<Missing> {
        let chains = view.eras.values().flat_map(|era| era.wal.chains());
        let chains = chains.flat_map(|chain| of_chain(view, chain));
        let wanted = |of: &Missing| {
            let wal = selection.wal(of.place);
            wal.is_some_and(|wal| {
                of.start.is_none_or(|at| at < wal.end) && of.end.is_none_or(|at| at > wal.start)
            })
        };
        let mut missing: Vec<Missing> = self.found.iter().cloned().chain(chains).filter(wanted).collect();
        if !missing.is_empty() {
            let held = held(view, there);
            missing.retain(|of| !of.is_held(&held));
        }
        missing
    }
}

/// The gaps that `missing` leaves between what of `selection` the destination will hold, and that nothing explains there yet.
pub fn gaps(
    missing: &[Missing],
    view: &View,
    selection: &Selection,
    there: &Index,
    env: &Env,
) -> Vec<GapEntry> {
    if missing.is_empty() {
        return Vec::new();
    }
    let mut explained = held(view, there);
    Spans::expired(&there.expired).iter().for_each(|(place, range)| explained.add(place, range));
    for gap in there.gaps.iter().chain(&view.index.gaps) {
        explained.add((gap.generation, gap.timeline), LsnRange::new(gap.start, gap.end.max(gap.start)));
    }
    let mut gaps = Vec::new();
    for of in missing {
        let Some(range) = of.range() else { continue };
        let mut holes = Spans::default();
        holes.add(of.place, range);
        explained.iter().for_each(|(place, range)| holes.remove(place, range));
        explained.add(of.place, range);
        let holes =
            holes.iter().filter(|(place, hole)| is_followed(view, selection, there, (*place, hole.end)));
        gaps.extend(holes.map(|((generation, timeline), hole)| GapEntry {
            id: ObjectId::random(&*env.entropy),
            generation,
            timeline,
            start: hole.start,
            end: hole.end,
            recorded_at: env.clock.now(),
            reason: format!("the source of the copy could not read it: {}", of.reason),
        }));
    }
    gaps
}

/// WAL that either side can read.
fn held(view: &View, there: &Index) -> Spans {
    let mut held = Spans::default();
    for (generation, era) in &view.eras {
        era.wal.pieces().iter().for_each(|piece| held.add((*generation, piece.timeline), piece.range));
    }
    for entry in &there.wal {
        held.add((entry.generation, entry.timeline), LsnRange::new(entry.start, entry.end));
    }
    held
}

/// Whether the destination holds, or is going to hold, WAL behind `end` of a place, or of a later timeline.
fn is_followed(
    view: &View,
    selection: &Selection,
    there: &Index,
    ((generation, timeline), end): (Place, Lsn),
) -> bool {
    let is_behind = |of: TimelineId, its_end: Lsn| (of, its_end) > (timeline, end);
    let is_wanted = |piece: &WalPiece| {
        let wanted = selection.wal((generation, piece.timeline));
        wanted.is_some_and(|wanted| wanted.intersect(piece.range).is_some())
    };
    let pieces = view.eras.get(&generation).map(|era| era.wal.pieces()).unwrap_or_default();
    there.wal.iter().any(|entry| entry.generation == generation && is_behind(entry.timeline, entry.end))
        || pieces.iter().any(|piece| is_behind(piece.timeline, piece.range.end) && is_wanted(piece))
}

/// The flush objects of `chain` that are lost. Where their stream has nothing before or behind them, other WAL says where that ends and
/// begins.
fn of_chain(view: &View, chain: &Chain) -> Vec<Missing> {
    let place = (chain.stream.generation, chain.stream.timeline);
    let ranges = match view.eras.get(&place.0) {
        Some(era) if !chain.lost.is_empty() => era.wal.ranges(place.1),
        _ => return Vec::new(),
    };
    let before = |to: Lsn| ranges.iter().map(|range| range.end).filter(|end| *end <= to).max();
    let behind = |from: Lsn| {
        let goes_on = ranges.iter().any(|range| range.start <= from && from < range.end);
        ranges.iter().map(|range| range.start).filter(|start| !goes_on && *start >= from).min()
    };
    let mut all = Vec::new();
    let mut last = None;
    for lost in &chain.lost {
        let end = lost.to.or_else(|| lost.from.and_then(behind));
        // At the end of the chain only the first of several begins where the WAL before them ends.
        let is_first = last.replace(lost.from) != Some(lost.from);
        let from = lost.from.filter(|_| is_first || end.is_some());
        let start = from.or_else(|| lost.to.and_then(before));
        let (object, reason) = (lost.key.to_string(), format!("{}: {}", lost.key, lost.reason));
        all.push(missing(view, place, (start, end), object, reason));
    }
    all
}

fn missing(
    view: &View,
    place: Place,
    (start, end): (Option<Lsn>, Option<Lsn>),
    object: String,
    reason: String,
) -> Missing {
    let mut missing = Missing { place, start, end, object, reason, cost: String::new() };
    missing.cost = cost_of(view, &missing);
    missing
}

fn cost_of(view: &View, missing: &Missing) -> String {
    let (generation, timeline) = missing.place;
    let Some((era, range)) = view.eras.get(&generation).zip(missing.range()) else {
        return match (missing.start, missing.end) {
            (Some(start), _) => format!("WAL of timeline {timeline} from {start} on"),
            (None, Some(end)) => format!("WAL of timeline {timeline} before {end}"),
            (None, None) => format!("WAL of timeline {timeline}, nobody knows where"),
        };
    };
    let backups = &view.index.backups;
    let mut cost = cost::of_wal(&era.wal, backups, Some(era.size), LostWal { timeline, range });
    let needs = backups.iter().filter(|backup| {
        (backup.generation, backup.timeline) == missing.place
            && needed_wal(backup, era.size).intersect(range).is_some()
    });
    let needs: Vec<&str> = needs.map(|backup| backup.id.as_str()).collect();
    if !needs.is_empty() {
        cost += &format!("; not restorable there: backup {}", needs.join(", "));
    }
    cost
}

fn key_of(name: &ClusterName, piece: &WalPiece) -> ObjectKey {
    match &piece.source {
        WalSource::Segment(entry) => layout::segment(name, entry.id),
        WalSource::Flush { stream, number, .. } => layout::flush(name, *stream, *number),
    }
}

fn epoch_of(piece: &WalPiece) -> Option<ObjectId> {
    match &piece.source {
        WalSource::Segment(entry) => entry.deltas.as_ref().map(|deltas| deltas.epoch.id),
        WalSource::Flush { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::{G, MIB, T, segment, view};
    use super::*;
    use crate::base::{Anonymous, Entropy};
    use crate::disk::SystemClock;
    use crate::format::root::StreamEntry;
    use crate::repo::WalMap;
    use crate::repo::chain::{ChainEnd, Lost};
    use std::sync::Arc;

    /// Every gap here is the only one.
    #[derive(Debug)]
    struct Sevens;

    impl Entropy for Sevens {
        fn fill(&self, buffer: &mut [u8]) {
            buffer.fill(7);
        }
    }

    fn at(mib: u64) -> Lsn {
        Lsn::new(mib * MIB)
    }

    /// A source with WAL at these MiB, and a stream that lost objects behind and before such places.
    fn source(wal: &[(u64, u64)], lost: &[(Option<u64>, Option<u64>)]) -> View {
        let wal = (1..).zip(wal).map(|(id, (start, end))| segment(id, *start, *end, None));
        let mut view = view(wal.collect());
        let stream = StreamEntry {
            id: StreamId([1; 16]),
            generation: G,
            timeline: T,
            writer_epoch: 1,
            low_water: 0,
            low_water_lsn: None,
            low_water_link: [0; 32],
            low_water_key_epoch: 1,
        };
        let lost = (0..).zip(lost).map(|(number, (from, to))| Lost {
            number,
            key: layout::flush(&view.root.cluster, stream.id, number),
            reason: "it is damaged".into(),
            from: from.map(at),
            to: to.map(at),
            may_be_fence: false,
        });
        let end = ChainEnd::Open { next: 9 };
        let chain = Chain { lost: lost.collect(), stream, objects: Vec::new(), end };
        view.eras.get_mut(&G).unwrap().wal = WalMap::new(G, &view.index, vec![chain]).into();
        view
    }

    fn there(wal: &[(u64, u64)]) -> Index {
        let wal = (1..).zip(wal).map(|(id, (start, end))| segment(id, *start, *end, None));
        Index { wal: wal.collect(), ..Index::default() }
    }

    /// Start and end of what is missing, in MiB.
    fn missing(view: &View, there: &Index) -> Vec<(Option<u64>, Option<u64>)> {
        let mib = |lsn: Option<Lsn>| lsn.map(|lsn| lsn.get() / MIB);
        let missing = Losses::default().missing(view, &Selection::Everything, there);
        missing.iter().map(|of| (mib(of.start), mib(of.end))).collect()
    }

    #[test]
    fn objects_that_held_no_wal_or_whose_wal_is_held_are_not_missing() {
        let nowhere = there(&[]);
        let hole = source(&[(0, 10), (20, 30)], &[(Some(10), Some(20))]);
        assert_eq!(missing(&hole, &nowhere), [(Some(10), Some(20))]);
        assert_eq!(missing(&hole, &there(&[(10, 20)])), []);
        let heartbeat = source(&[(0, 10)], &[(Some(5), Some(5))]);
        assert_eq!(missing(&heartbeat, &nowhere), []);
        // Nobody knows how long the last ones were: the copy has the first, and perhaps the second.
        let tail = source(&[(0, 10)], &[(Some(10), None), (Some(10), None)]);
        assert_eq!(missing(&tail, &nowhere), [(Some(10), None), (None, None)]);
        assert_eq!(missing(&tail, &there(&[(0, 10)])), [(Some(10), None), (None, None)]);
        assert_eq!(missing(&tail, &there(&[(0, 12)])), [(None, None)]);
        // Another stream went on in their place, and lost some of its own later.
        let again = source(&[(0, 20), (30, 40)], &[(Some(10), None)]);
        assert_eq!(missing(&again, &nowhere), []);
    }

    #[test]
    fn what_is_lost_is_a_gap_only_where_wal_follows_it() {
        let env =
            Env { clock: Arc::new(SystemClock), entropy: Arc::new(Sevens), scratch: Arc::new(Anonymous) };
        let gaps = |view: &View, selection: &Selection, there: &Index| -> Vec<(u64, u64)> {
            let missing = Losses::default().missing(view, selection, there);
            assert_eq!(missing.len(), 1, "{missing:?}");
            let gaps = gaps(&missing, view, selection, there, &env);
            gaps.iter().map(|gap| (gap.start.get() / MIB, gap.end.get() / MIB)).collect()
        };
        let (all, nowhere) = (Selection::Everything, there(&[]));
        let followed = source(&[(0, 10), (20, 30)], &[(Some(10), Some(20))]);
        assert_eq!(gaps(&followed, &all, &nowhere), [(10, 20)]);
        let tail = source(&[(0, 10)], &[(Some(10), Some(20))]);
        assert_eq!(gaps(&tail, &all, &nowhere), []);
        assert_eq!(gaps(&tail, &all, &there(&[(0, 10)])), []);
        // A part of it is held, or what follows it was copied before it was lost too.
        assert_eq!(gaps(&tail, &all, &there(&[(15, 20)])), [(10, 15)]);
        assert_eq!(gaps(&tail, &all, &there(&[(20, 30)])), [(10, 20)]);
    }
}
