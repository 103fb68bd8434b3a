//! Whatever a cluster went through: every moment of the window stays restorable by the resolver, on every line that was written to since
//! the window began; what is planned twice removes nothing more; what is gone is explained.

use super::history::{History, SEGMENT};
use async_trait::async_trait;
use futures_util::FutureExt;
use std::ops::ControlFlow;
use std::time::Duration;
use walden::base::{BackupId, Generation, Lsn, LsnRange, SegmentSize, TimelineId, Timestamp};
use walden::format::index::BackupState;
use walden::repo::backups::state_now;
use walden::repo::lineage::{Piece, TimelinePath};
use walden::repo::{Index, WalMap};
use walden::restore::resolve::{Archive, Resolution};
use walden::restore::scan::{Seen, Visit, WalScan};
use walden::restore::{Request, RestoreError, Target, TimelineChoice};
use walden::retain::plan::{Plan, plan};
use walden::retain::policy::Policy;

/// Records of one path.
struct Records<'a> {
    history: &'a History,
    generation: Generation,
    path: TimelinePath,
}

#[async_trait]
impl WalScan for Records<'_> {
    async fn scan(&self, range: LsnRange, visit: &mut Visit<'_>) -> Result<(), RestoreError> {
        let on_path = |timeline: TimelineId, seen: &Seen| {
            self.path.holds(timeline, LsnRange::new(seen.start, seen.end))
        };
        let inside = |seen: &Seen| range.start < seen.end && seen.end <= range.end;
        let own = self.history.records.iter().filter(|(generation, timeline, seen)| {
            *generation == self.generation && inside(seen) && on_path(*timeline, seen)
        });
        let mut all: Vec<&Seen> = own.map(|(_, _, seen)| seen).collect();
        all.sort_by_key(|seen| seen.start);
        for seen in all {
            if let ControlFlow::Break(()) = visit(seen) {
                break;
            }
        }
        Ok(())
    }
}

fn size() -> SegmentSize {
    SegmentSize::new(SEGMENT).unwrap()
}

/// What can be restored of a line by `index`.
fn archive(history: &History, index: &Index, generation: Generation, timeline: TimelineId) -> Archive {
    let wal = WalMap::new(generation, index, Vec::new());
    let own = index.backups.iter().filter(|backup| backup.generation == generation);
    let backups = own.cloned().map(|mut backup| {
        backup.state = state_now(&backup, &wal, size());
        backup
    });
    let pieces = wal.pieces().iter().map(|piece| Piece {
        timeline: piece.timeline,
        range: piece.range,
        server_time: piece.server_time,
        summary: piece.summary.clone(),
    });
    Archive {
        generation,
        segment_size: size(),
        backups: backups.collect(),
        gaps: wal.gaps().to_vec(),
        lineage: history.lineage(generation),
        pieces: pieces.collect(),
        current: timeline,
    }
}

fn resolve(history: &History, archive: &Archive, timeline: TimelineId, target: Target) -> Option<Resolution> {
    let request = Request { timeline: TimelineChoice::Number(timeline), ..Request::new(target) };
    let generation = archive.generation;
    let scan = |path: &TimelinePath| Records { history, generation, path: path.clone() };
    archive.resolve(&request, scan).now_or_never().unwrap().ok()
}

/// Whether the backup `id` can be restored on the way to `timeline`.
fn restores(history: &History, archive: &Archive, timeline: TimelineId, id: &BackupId) -> bool {
    let mut request =
        Request { timeline: TimelineChoice::Number(timeline), ..Request::new(Target::Immediate) };
    request.backup = Some(id.to_string());
    let generation = archive.generation;
    let scan = |path: &TimelinePath| Records { history, generation, path: path.clone() };
    archive.resolve(&request, scan).now_or_never().unwrap().is_ok()
}

/// Moments of a line at or after `start`.
fn moments(history: &mut History, archive: &Archive, start: Timestamp, count: usize) -> Vec<Target> {
    let inside: Vec<(Lsn, Lsn, Timestamp)> = archive
        .pieces
        .iter()
        .filter(|piece| piece.server_time > start)
        .map(|piece| (piece.range.start, piece.range.end, piece.server_time))
        .collect();
    let mut targets = Vec::new();
    for _ in 0..count.min(inside.len()) {
        let (from, to, time) = inside[history.rng.usize(0..inside.len())];
        targets.push(match history.rng.bool() {
            true => Target::Lsn(Lsn::new(history.rng.u64(from.get()..=to.get()))),
            false => {
                let back = history.rng.i64(0..200_000_000);
                Target::Time(time.saturating_add_micros(-back).max(start.saturating_add_micros(1)))
            }
        });
    }
    targets.push(Target::Time(start.saturating_add_micros(1)));
    targets
}

/// Which LSN targets of the window are moments before it: pieces that reach over its beginning hold both.
fn is_before(
    history: &History,
    archive: &Archive,
    timeline: TimelineId,
    target: &Target,
    start: Timestamp,
) -> bool {
    let Target::Lsn(lsn) = target else { return false };
    let Some(path) = archive.lineage.path(timeline) else { return false };
    let newest = history.records.iter().filter(|(generation, timeline, seen)| {
        let on_path = path.holds(*timeline, LsnRange::new(seen.start, seen.end));
        *generation == archive.generation && seen.end <= *lsn && on_path
    });
    let time = |seen: &Seen| match seen.meaning {
        walden::restore::scan::Meaning::Commit { time, .. } => time,
        _ => Timestamp::MIN,
    };
    newest.map(|(_, _, seen)| time(seen)).max().is_none_or(|newest| newest <= start)
}

fn policy(rng: &mut fastrand::Rng) -> Policy {
    let mut keep = |max: u32| if rng.bool() { 0 } else { rng.u32(0..max) };
    let keeps = [keep(6), keep(5), keep(4), keep(3)];
    let days = rng.u64(0..25);
    Policy {
        window: Duration::from_secs(days * 86_400 + rng.u64(0..86_400)),
        count_min: rng.u32(1..5),
        keeps,
    }
}

/// What does not hold after a plan was carried out.
fn check(history: &mut History, before: &Index, plan: &Plan) -> Result<(), String> {
    let start = plan.window_start;
    let after = history.index.clone();
    for (generation, timeline, current) in history.lines() {
        let whole = archive(history, before, generation, timeline);
        let end = whole.pieces.iter().filter(|piece| piece.timeline == timeline);
        let end = end.map(|piece| piece.server_time).max().unwrap_or(Timestamp::MIN);
        if !current && end <= start {
            continue;
        }
        let left = archive(history, &after, generation, timeline);
        for target in moments(history, &whole, start, 6) {
            if is_before(history, &whole, timeline, &target, start) {
                continue;
            }
            let Some(was) = resolve(history, &whole, timeline, target.clone()) else { continue };
            let now = resolve(history, &left, timeline, target.clone());
            let same = |now: &Resolution| {
                (now.stop, &now.path, now.durable_end) == (was.stop, &was.path, was.durable_end)
            };
            if !now.as_ref().is_some_and(same) {
                return Err(format!(
                    "{target} on {generation}/{timeline} (the window begins {start}): {:?} from {}, then {:?}",
                    was.stop,
                    was.backup.id,
                    now.map(|now| now.stop)
                ));
            }
        }
    }
    for entry in &after.wal {
        let Some(deltas) = &entry.deltas else { continue };
        if let Some(base) = &deltas.base
            && before.backup(base).is_some()
            && after.backup(base).is_none()
        {
            return Err(format!("WAL at {} refers to backup {base}, which is gone", entry.start));
        }
        let of_epoch = |index: &Index| {
            let own = index
                .wal
                .iter()
                .filter(|other| other.deltas.as_ref().is_some_and(|other| other.epoch.id == deltas.epoch.id));
            own.filter(|other| other.start < entry.start).count()
        };
        if of_epoch(before) != of_epoch(&after) {
            return Err(format!(
                "WAL at {} is decoded from {} on, and that is gone",
                entry.start, deltas.epoch.start
            ));
        }
    }
    for pair in after.wal.windows(2) {
        let [one, next] = pair else { continue };
        if (one.generation, one.timeline) == (next.generation, next.timeline) && one.end < next.start {
            let hole = LsnRange::new(one.end, next.start);
            if !history.hole_is_explained(one.generation, one.timeline, hole) {
                return Err(format!(
                    "nothing explains the hole {hole} of {}/{}",
                    one.generation, one.timeline
                ));
            }
        }
    }
    let gone = |id: &BackupId| before.backup(id).is_some() && after.backup(id).is_none();
    let pinned = before.pins.iter().filter(|pin| pin.until.is_none_or(|until| until > plan.now));
    if let Some(pin) = pinned.into_iter().find(|pin| gone(&pin.backup)) {
        return Err(format!("backup {} was pinned, and is gone", pin.backup));
    }
    let any = |history: &History, index: &Index| {
        history.lines().iter().any(|(generation, timeline, _)| {
            let archive = archive(history, index, *generation, *timeline);
            let complete = archive.backups.iter().filter(|backup| backup.state == BackupState::Complete);
            complete.into_iter().any(|backup| restores(history, &archive, *timeline, &backup.id))
        })
    };
    if any(history, before) && !any(history, &after) {
        return Err("no complete backup is left".into());
    }
    Ok(())
}

/// A life of some months, with retention every few days.
pub fn life(seed: u64) -> Result<(), String> {
    let mut history = History::new(seed);
    let policy = policy(&mut history.rng);
    let mut removed = 0;
    for day in 0..history.rng.u32(20..90) {
        history.day();
        if history.rng.u8(0..3) > 0 {
            continue;
        }
        // A host's clock may be anywhere.
        let clock = match history.rng.u8(0..6) {
            0 => Timestamp::MAX,
            1 => history.clock.saturating_add_micros(-history.rng.i64(0..1_000_000_000_000)),
            _ => history.clock,
        };
        let (before, plan_made) = (history.index.clone(), plan(&history.facts(clock), &policy));
        history.apply(&plan_made);
        removed += plan_made.wal_removed.len() + plan_made.backups_removed().count();
        check(&mut history, &before, &plan_made)
            .map_err(|wrong| format!("day {day}, {policy:?}: {wrong}"))?;
        let again = plan(&history.facts(clock), &policy);
        if !again.is_empty() {
            return Err(format!("day {day}: a second time {:?} goes", again.wal_removed));
        }
        if again.expired != plan_made.expired {
            return Err(format!("day {day}: a second time other WAL is said to have expired"));
        }
    }
    REMOVED.with(|all| all.set(all.get() + removed as u64));
    Ok(())
}

thread_local! {
    static REMOVED: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

#[test]
fn what_the_window_promises_stays_restorable_whatever_happened() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("WALDEN_SEED").unwrap_or(1);
    let seeds = first..first + number("WALDEN_SEEDS").unwrap_or(200);
    println!("seeds {seeds:?}");
    for seed in seeds.clone() {
        if let Err(wrong) = life(seed) {
            panic!("seed {seed}: {wrong}");
        }
    }
    let removed = REMOVED.with(std::cell::Cell::get);
    assert!(removed > 20 * (seeds.end - seeds.start), "hardly anything went: {removed}");
}
