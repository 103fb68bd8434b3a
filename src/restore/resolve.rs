//! From a request to a backup and the record to stop at. Decides, writes nothing. Spec: engine.md, "Restore".
//!
//! Rules: never another target than the one asked for; the newest restorable backup whose consistency point is not
//! past it; a time means what it means to PostgreSQL, the first commit or abort in LSN order past it, from that
//! backup's redo on; whatever is ambiguous is refused and shown; whatever lies in a gap or outside is refused, and the
//! window shown.

mod stop;
mod window;

use stop::Resolver;
pub use window::{Ambiguity, Candidate, Occurrence, Window, WindowPart};

use super::error::RestoreError;
use super::scan::{Seen, WalScan};
use super::target::{Boundary, Request, Target, TimelineChoice};
use crate::base::{Generation, Lsn, LsnRange, SegmentSize, TimelineId, Timestamp};
use crate::format::index::{BackupEntry, BackupState, GapEntry};
use crate::repo::lineage::{Coverage, Lineage, Piece, TimelinePath};

/// How far commit times may be out of order before the clock is said to have stepped back: they are taken before the
/// record is written, so neighbours swap by milliseconds all the time.
pub const CLOCK_DISORDER_MAX_MICROS: i64 = 1_000_000;
/// The most commits an [`Ambiguity`] lists.
pub const LISTED_MAX: usize = 20;

/// What a generation of a cluster has to restore from.
#[derive(Debug, Clone)]
pub struct Archive {
    /// The generation.
    pub generation: Generation,
    /// Its WAL segment size.
    pub segment_size: SegmentSize,
    /// Its backups, whatever became of them.
    pub backups: Vec<BackupEntry>,
    /// Its recorded gaps.
    pub gaps: Vec<GapEntry>,
    /// Its timelines.
    pub lineage: Lineage,
    /// Its WAL.
    pub pieces: Vec<Piece>,
    /// The timeline the cluster is on.
    pub current: TimelineId,
}

/// Where PostgreSQL is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// As soon as it is consistent.
    Consistency,
    /// Right before this record.
    Before(Seen),
    /// Right after this record.
    After(Seen),
}

/// A request, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolution {
    /// The backup to start from.
    pub backup: BackupEntry,
    /// The line of history to follow.
    pub path: TimelinePath,
    /// Where to stop.
    pub stop: Stop,
    /// The WAL that recovery reads, from the start of a WAL segment.
    pub wal: LsnRange,
    /// Where the archive ends on this path, without a hole since the backup.
    pub durable_end: Lsn,
    /// Every other choice that was there.
    pub window: Window,
    /// What a person should know beside it.
    pub notes: Vec<String>,
}

impl Archive {
    /// Understands `request`, looking into WAL through `scan`, which decodes along the path it is asked to make.
    pub async fn resolve<S: WalScan>(
        &self,
        request: &Request,
        scan: impl FnOnce(&TimelinePath) -> S,
    ) -> Result<Resolution, RestoreError> {
        if request.boundary == Boundary::Exclusive
            && matches!(request.target, Target::Latest | Target::Immediate | Target::Name(_))
        {
            return Err(RestoreError::usage(format!(
                "exclusive has no meaning for target {}: only a time, an LSN or a transaction can be left out",
                request.target
            )));
        }
        let chosen = request.backup.as_deref().map(|prefix| self.backup(prefix)).transpose()?;
        let path = self.path_for(request.timeline, chosen)?;
        let coverage = Coverage::of(&path, &self.pieces, self.segment_size);
        let scan = scan(&path);
        let resolver =
            Resolver { archive: self, request, path: &path, coverage: &coverage, scan: &scan, chosen };
        resolver.resolve().await
    }

    /// The window of the timeline that is restored by default.
    pub fn window(&self) -> Result<Window, RestoreError> {
        let path = self.path_for(TimelineChoice::Newest, None)?;
        let coverage = Coverage::of(&path, &self.pieces, self.segment_size);
        Ok(window::window(self, &path, &coverage))
    }

    /// The one backup whose id begins with `prefix`.
    pub fn backup(&self, prefix: &str) -> Result<&BackupEntry, RestoreError> {
        let mut fits = self.backups.iter().filter(|backup| backup.id.as_str().starts_with(prefix));
        let list = |of: &mut dyn Iterator<Item = &BackupEntry>| {
            of.map(|backup| backup.id.as_str()).collect::<Vec<_>>().join(", ")
        };
        match (fits.next(), fits.next()) {
            (Some(backup), None) => {
                let reason = match backup.state {
                    BackupState::Complete | BackupState::Damaged => return Ok(backup),
                    BackupState::Pending => "its WAL is not durable yet",
                    BackupState::Base => {
                        "retention let go of its WAL; it is kept for its pages, which other WAL refers to"
                    }
                };
                let what = format!("restorable backup {}", backup.id);
                Err(RestoreError::NotFound { what, reason: reason.into() })
            }
            (Some(first), Some(second)) => {
                let all = list(&mut [first, second].into_iter().chain(fits));
                Err(RestoreError::usage(format!("backup {prefix} is ambiguous: {all}")))
            }
            (None, _) => Err(RestoreError::NotFound {
                what: format!("backup {prefix}"),
                reason: match list(&mut self.backups.iter()) {
                    all if all.is_empty() => "there is no backup".into(),
                    all => format!("there are {all}"),
                },
            }),
        }
    }

    /// The path to follow: what was asked for, the cluster's own, or the newest line that `chosen` lies on.
    fn path_for(
        &self,
        choice: TimelineChoice,
        chosen: Option<&BackupEntry>,
    ) -> Result<TimelinePath, RestoreError> {
        let no_history = |timeline: TimelineId| RestoreError::NotFound {
            what: format!("timeline {timeline}"),
            reason: format!("the archive has no {} that leads to it", timeline.history_file_name()),
        };
        if let TimelineChoice::Number(timeline) = choice {
            let known =
                self.current == timeline || self.pieces.iter().any(|piece| piece.timeline == timeline);
            let path = self.lineage.path(timeline).filter(|_| known || timeline != TimelineId::FIRST);
            return path.ok_or_else(|| no_history(timeline));
        }
        let on = |path: &TimelinePath, backup: &BackupEntry| {
            path.holds(backup.timeline, LsnRange::new(backup.redo.min(backup.stop), backup.stop))
        };
        let current = self.lineage.path(self.current);
        match (current, chosen) {
            (Some(path), None) => Ok(path),
            (Some(path), Some(backup)) if on(&path, backup) => Ok(path),
            (None, None) => Err(no_history(self.current)),
            (_, Some(backup)) => {
                let lines = self.lineage.timelines().filter_map(|timeline| self.lineage.path(timeline));
                lines
                    .filter(|path| on(path, backup))
                    .max_by_key(|path| self.newest_time(path.timeline()))
                    .ok_or_else(|| no_history(backup.timeline))
            }
        }
    }

    fn newest_time(&self, timeline: TimelineId) -> Timestamp {
        let own = self.pieces.iter().filter(|piece| piece.timeline == timeline);
        own.map(|piece| piece.server_time).max().unwrap_or(Timestamp::MIN)
    }
}

#[cfg(test)]
mod tests;
