//! Where to stop, and which backup to start from, for each kind of target.

use super::window::{self, Ambiguity, Candidate, Occurrence, Window};
use super::{Archive, CLOCK_DISORDER_MAX_MICROS, Resolution, Stop};
use crate::base::{Lsn, LsnRange, Timestamp};
use crate::format::index::{BackupEntry, BackupState};
use crate::repo::backups::needed_wal;
use crate::repo::lineage::{Coverage, Run, Span, TimelinePath};
use crate::restore::error::RestoreError;
use crate::restore::scan::{Meaning, Seen, WalScan};
use crate::restore::target::{Boundary, Request, Target};
use std::ops::ControlFlow;

/// One resolution under way.
pub(super) struct Resolver<'a, S> {
    pub archive: &'a Archive,
    pub request: &'a Request,
    pub path: &'a TimelinePath,
    pub coverage: &'a Coverage<'a>,
    pub scan: &'a S,
    pub chosen: Option<&'a BackupEntry>,
}

impl<'a, S: WalScan> Resolver<'a, S> {
    pub(super) async fn resolve(&self) -> Result<Resolution, RestoreError> {
        let candidates = self.candidates()?;
        let (candidate, stop) = match &self.request.target {
            Target::Latest => self.latest(&candidates).await?,
            Target::Immediate => self.immediate(&candidates)?,
            Target::Time(time) => self.time(&candidates, *time).await?,
            Target::Lsn(lsn) => self.lsn(&candidates, *lsn).await?,
            Target::Xid(xid) => self.xid(&candidates, *xid).await?,
            Target::Name(name) => self.name(&candidates, name)?,
        };
        let backup = candidate.backup;
        let needed = needed_wal(backup, self.archive.segment_size);
        let last = match stop {
            Stop::Consistency => backup.stop,
            Stop::Before(record) | Stop::After(record) => record.end,
        };
        // What PostgreSQL itself would refuse as "before consistent recovery point" never leaves here.
        assert!(match stop {
            Stop::Consistency => true,
            Stop::Before(record) => record.start >= backup.stop,
            Stop::After(record) => record.end >= backup.stop,
        });
        Ok(Resolution {
            backup: backup.clone(),
            path: self.path.clone(),
            stop,
            wal: LsnRange::new(needed.start, last.max(needed.end).min(candidate.run.range.end)),
            durable_end: candidate.run.range.end,
            window: self.window(),
            notes: self.notes(candidate).await?,
        })
    }

    /// Backups that can be restored on this path, newest first.
    fn candidates(&self) -> Result<Vec<Candidate<'_>>, RestoreError> {
        let mut all = window::candidates(self.archive, self.path, self.coverage);
        if let Some(chosen) = self.chosen {
            all.retain(|candidate| candidate.backup.id == chosen.id);
            if all.is_empty() {
                let reason = format!(
                    "the WAL {} of timeline {} that backup {} needs is not whole on the way to timeline {}",
                    needed_wal(chosen, self.archive.segment_size),
                    chosen.timeline,
                    chosen.id,
                    self.path.timeline()
                );
                return Err(self.outside(reason));
            }
        }
        if all.is_empty() {
            let reason = format!("no backup is restorable on the way to timeline {}", self.path.timeline());
            return Err(self.outside(reason));
        }
        Ok(all)
    }

    async fn latest<'c>(&self, all: &'c [Candidate<'c>]) -> Result<(&'c Candidate<'c>, Stop), RestoreError> {
        let end = self.coverage.end().unwrap_or(Lsn::ZERO);
        let Some(candidate) = all.iter().find(|candidate| candidate.run.range.end == end) else {
            let reach = all.iter().map(|candidate| candidate.run.range.end).max().unwrap_or(Lsn::ZERO);
            return Err(self.outside(format!(
                "WAL is missing after {reach} and begins again before {end}, and no backup was completed since; \
                 {reach} can be restored with an LSN target"
            )));
        };
        Ok((candidate, Stop::After(self.last_record(candidate.run).await?)))
    }

    fn immediate<'c>(&self, all: &'c [Candidate<'c>]) -> Result<(&'c Candidate<'c>, Stop), RestoreError> {
        let candidate = all.first().ok_or_else(|| self.outside("there is no backup".into()))?;
        Ok((candidate, Stop::Consistency))
    }

    async fn time<'c>(
        &self,
        all: &'c [Candidate<'c>],
        time: Timestamp,
    ) -> Result<(&'c Candidate<'c>, Stop), RestoreError> {
        for candidate in all.iter().filter(|candidate| candidate.backup.stopped_at <= time) {
            let run = candidate.run;
            let Some(stop) = self.first_past(candidate, time).await? else {
                if time > run.server_time {
                    return Err(self.outside(self.beyond(run, &format!("server time {}", run.server_time))));
                }
                return Ok((candidate, Stop::After(self.last_record(run).await?)));
            };
            if stop.start < candidate.backup.stop {
                continue;
            }
            self.refuse_stepped_clock(run, &stop, time).await?;
            return Ok((candidate, Stop::Before(stop)));
        }
        let point = "the consistency point of every backup it could start from lies past it";
        Err(self.outside(point.into()))
    }

    async fn lsn<'c>(
        &self,
        all: &'c [Candidate<'c>],
        lsn: Lsn,
    ) -> Result<(&'c Candidate<'c>, Stop), RestoreError> {
        let end = self.coverage.end().unwrap_or(Lsn::ZERO);
        if lsn > end {
            return Err(self.outside(format!("WAL is durable up to {end}")));
        }
        for candidate in all.iter().filter(|candidate| candidate.backup.stop <= lsn) {
            let run = candidate.run;
            if lsn > run.range.end {
                return Err(self.outside(self.beyond(run, &format!("{}", run.range.end))));
            }
            // The first record that ends past the target is the first that does not belong to it.
            let from = match self.request.boundary {
                Boundary::Inclusive => lsn,
                Boundary::Exclusive => lsn.saturating_sub(1),
            };
            let stop = match self.first_ending_after(run, from).await? {
                Some(record) => Stop::Before(record),
                None => Stop::After(self.last_record(run).await?),
            };
            if let Stop::Before(record) = stop
                && record.start < candidate.backup.stop
            {
                continue;
            }
            return Ok((candidate, stop));
        }
        Err(self.outside("it is before the consistency point of every backup".into()))
    }

    async fn xid<'c>(
        &self,
        all: &'c [Candidate<'c>],
        xid: u32,
    ) -> Result<(&'c Candidate<'c>, Stop), RestoreError> {
        let mut found: Vec<Occurrence> = Vec::new();
        for run in &self.coverage.runs {
            for span in &run.spans {
                let summary = &span.piece.summary;
                let within = summary.xid_min.is_some_and(|min| min <= xid)
                    && summary.xid_max.is_some_and(|max| xid <= max);
                if !within && !may_hide_commits(span, all) {
                    continue;
                }
                let visit = &mut |seen: &Seen| {
                    if let Meaning::Commit { xid: x, time } | Meaning::Abort { xid: x, time } = seen.meaning
                        && x == xid
                    {
                        found.push(Occurrence { seen: *seen, time });
                    }
                    ControlFlow::Continue(())
                };
                self.scan.scan(span.range, visit).await?;
            }
        }
        self.occurrence(all, found)
    }

    fn name<'c>(
        &self,
        all: &'c [Candidate<'c>],
        name: &str,
    ) -> Result<(&'c Candidate<'c>, Stop), RestoreError> {
        self.occurrence(all, window::restore_points(self.coverage, name))
    }

    /// The one of `found` that can be restored, with the newest backup for it.
    fn occurrence<'c>(
        &self,
        all: &'c [Candidate<'c>],
        found: Vec<Occurrence>,
    ) -> Result<(&'c Candidate<'c>, Stop), RestoreError> {
        let exclusive = self.request.boundary == Boundary::Exclusive;
        let fits = |candidate: &&Candidate<'_>, seen: &Seen| {
            let reached = if exclusive { seen.start } else { seen.end };
            candidate.run.range.start <= seen.start
                && seen.start < candidate.run.range.end
                && candidate.backup.redo <= seen.start
                && candidate.backup.stop <= reached
        };
        let mut restorable = found.iter().filter_map(|occurrence| {
            all.iter().find(|candidate| fits(candidate, &occurrence.seen)).map(|by| (by, occurrence.seen))
        });
        match (restorable.next(), restorable.next()) {
            (Some((candidate, seen)), None) => {
                Ok((candidate, if exclusive { Stop::Before(seen) } else { Stop::After(seen) }))
            }
            (Some(_), Some(_)) => {
                let target = self.request.target.clone();
                Err(RestoreError::Ambiguous(Box::new(Ambiguity::Repeated { target, found })))
            }
            (None, _) => Err(self.outside(match found.first() {
                Some(Occurrence { seen, time }) => {
                    format!("it is at {} ({time}), which no backup reaches", seen.start)
                }
                None => {
                    let elsewhere = window::elsewhere(self.archive, self.path, &self.request.target);
                    format!(
                        "the WAL on the way to timeline {} does not have it{elsewhere}",
                        self.path.timeline()
                    )
                }
            })),
        }
    }

    /// The first commit or abort past `time` that begins at or after the candidate's redo.
    async fn first_past(
        &self,
        candidate: &Candidate<'_>,
        time: Timestamp,
    ) -> Result<Option<Seen>, RestoreError> {
        let boundary = self.request.boundary;
        let redo = candidate.backup.redo;
        for span in candidate.run.spans_after(redo) {
            let summary = &span.piece.summary;
            let past = summary.time_max.is_some_and(|max| is_past(max, time, boundary));
            if !past && summary.unread_count == 0 {
                continue;
            }
            let mut first = None;
            let visit = &mut |seen: &Seen| match seen.meaning {
                Meaning::Commit { time: at, .. } | Meaning::Abort { time: at, .. }
                    if seen.start >= redo && is_past(at, time, boundary) =>
                {
                    first = Some(*seen);
                    ControlFlow::Break(())
                }
                _ => ControlFlow::Continue(()),
            };
            self.scan.scan(LsnRange::new(span.range.start.max(redo), span.range.end), visit).await?;
            if first.is_some() {
                return Ok(first);
            }
        }
        Ok(None)
    }

    /// The first record that ends past `from`.
    async fn first_ending_after(&self, run: &Run<'_>, from: Lsn) -> Result<Option<Seen>, RestoreError> {
        let mut first = None;
        for span in run.spans_after(from) {
            let visit = &mut |seen: &Seen| {
                first = Some(*seen);
                ControlFlow::Break(())
            };
            self.scan.scan(LsnRange::new(span.range.start.max(from), span.range.end), visit).await?;
            if first.is_some() {
                break;
            }
        }
        Ok(first)
    }

    /// The last complete record of a run.
    async fn last_record(&self, run: &Run<'_>) -> Result<Seen, RestoreError> {
        for span in run.spans.iter().rev() {
            let mut last = None;
            let visit = &mut |seen: &Seen| {
                last = Some(*seen);
                ControlFlow::Continue(())
            };
            self.scan.scan(span.range, visit).await?;
            if let Some(last) = last {
                return Ok(last);
            }
        }
        Err(RestoreError::Damage {
            what: format!("WAL {}", run.range),
            reason: "no complete record in it, expected those of a backup at least".into(),
        })
    }

    /// Refuses a time that was passed more than once: commits that belong to it lie past the record to stop at.
    async fn refuse_stepped_clock(
        &self,
        run: &Run<'_>,
        stop: &Seen,
        time: Timestamp,
    ) -> Result<(), RestoreError> {
        let boundary = self.request.boundary;
        let mut running_max = Timestamp::MIN;
        let mut stepped = window::Stepped::new(*stop, time);
        for span in run.spans_after(stop.start) {
            let summary = &span.piece.summary;
            let before = summary.time_min.is_some_and(|min| !is_past(min, time, boundary));
            if before || summary.unread_count > 0 {
                let visit = &mut |seen: &Seen| {
                    if let Meaning::Commit { time: at, .. } | Meaning::Abort { time: at, .. } = seen.meaning
                        && seen.start >= stop.start
                    {
                        running_max = running_max.max(at);
                        let belongs = matches!(seen.meaning, Meaning::Commit { .. })
                            && !is_past(at, time, boundary)
                            && running_max.micros_since(at) > CLOCK_DISORDER_MAX_MICROS;
                        stepped.add(seen, at, belongs);
                    }
                    ControlFlow::Continue(())
                };
                self.scan
                    .scan(LsnRange::new(span.range.start.max(stop.start), span.range.end), visit)
                    .await?;
            } else {
                stepped.skip(summary.commit_count);
            }
            running_max = running_max.max(summary.time_max.unwrap_or(Timestamp::MIN));
        }
        match stepped.finish() {
            Some(ambiguity) => Err(RestoreError::Ambiguous(Box::new(ambiguity))),
            None => Ok(()),
        }
    }

    fn window(&self) -> Window {
        window::window(self.archive, self.path, self.coverage)
    }

    fn outside(&self, reason: String) -> RestoreError {
        RestoreError::Outside {
            target: self.request.target.to_string(),
            reason,
            window: Box::new(self.window()),
        }
    }

    /// Why nothing can be restored past `at`, the end of `run`.
    fn beyond(&self, run: &Run<'_>, at: &str) -> String {
        let end = run.range.end;
        // One that ends nowhere, on a timeline that was left before, is none of this path.
        let mut own = self.archive.gaps.iter().filter(|gap| gap.timeline == self.path.timeline_at(gap.start));
        let gap = own.find(|gap| gap.start <= end && end < gap.end);
        match gap {
            Some(gap) if gap.end == Lsn::MAX => format!("WAL from {} on is lost ({})", gap.start, gap.reason),
            Some(gap) => format!("it lies in the gap {}..{} ({})", gap.start, gap.end, gap.reason),
            None if self.coverage.end() == Some(end) => format!("everything is durable up to {at}"),
            None => format!("it lies in a gap: WAL ends at {end} and begins again later"),
        }
    }

    async fn notes(&self, candidate: &Candidate<'_>) -> Result<Vec<String>, RestoreError> {
        let mut notes = Vec::new();
        let backup = candidate.backup;
        if backup.state == BackupState::Damaged {
            notes.push(format!(
                "backup {} has {} blocks whose checksum was wrong on the server",
                backup.id, backup.damaged_blocks
            ));
        }
        if let Target::Time(time) = self.request.target
            && let Some(newest) = self.newest_commit_before(candidate, time).await?
        {
            notes.push(format!(
                "the clock was set back before backup {}: it holds a commit of {newest}, past the target",
                backup.id
            ));
        }
        Ok(notes)
    }

    /// The newest commit time before the candidate's redo, if that is past `time` by more than disorder explains.
    async fn newest_commit_before(
        &self,
        candidate: &Candidate<'_>,
        time: Timestamp,
    ) -> Result<Option<Timestamp>, RestoreError> {
        let redo = candidate.backup.redo;
        let suspicious = |newest: &Timestamp| newest.micros_since(time) > CLOCK_DISORDER_MAX_MICROS;
        let mut newest: Option<Timestamp> = None;
        for span in candidate.run.spans.iter().take_while(|span| span.range.start < redo) {
            let Some(max) = span.piece.summary.time_max.filter(suspicious) else { continue };
            if span.range.end <= redo {
                newest = newest.max(Some(max));
                continue;
            }
            let visit = &mut |seen: &Seen| {
                if let Meaning::Commit { time, .. } = seen.meaning {
                    newest = newest.max(Some(time));
                }
                ControlFlow::Continue(())
            };
            self.scan.scan(LsnRange::new(span.range.start, redo), visit).await?;
        }
        Ok(newest.filter(suspicious))
    }
}

/// What a summary could not read may be a commit. Before every backup that does not matter: there a stream may begin
/// with the end of a record.
fn may_hide_commits(span: &Span<'_>, candidates: &[Candidate<'_>]) -> bool {
    let oldest = candidates.iter().map(|candidate| candidate.backup.redo).min();
    span.piece.summary.unread_count > 0 && oldest.is_some_and(|redo| span.range.end > redo)
}

/// Whether PostgreSQL would stop at a commit of `time` when asked for `target` (`recoveryStopsBefore`).
fn is_past(time: Timestamp, target: Timestamp, boundary: Boundary) -> bool {
    match boundary {
        Boundary::Inclusive => time > target,
        Boundary::Exclusive => time >= target,
    }
}
