//! Timeline history files, `00000003.history`: which timelines came before, and where each was left.
//! Lines are `parent<TAB>switch LSN<TAB>reason`, oldest first (`access/timeline.c`). Foreign bytes: refused, never guessed.

use crate::base::{Lsn, LsnRange, TimelineId};
use std::fmt::Write as _;

/// The most bytes a history file may have: thousands of failovers.
pub const HISTORY_BYTES_MAX: usize = 1 << 20;

/// A timeline that was left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Switch {
    /// Which.
    pub timeline: TimelineId,
    /// Where it was left: the next timeline goes on from here.
    pub at: Lsn,
    /// Why, for people.
    pub reason: String,
}

/// The history of one timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistory {
    timeline: TimelineId,
    switches: Vec<Switch>,
}

/// A history file that says no history.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("history of timeline {timeline}, line {line}: {found:?}, expected {expected}")]
pub struct HistoryError {
    /// Of which timeline.
    pub timeline: TimelineId,
    /// The line, from 1.
    pub line: usize,
    /// What it says.
    pub found: String,
    /// What it should.
    pub expected: &'static str,
}

impl TimelineHistory {
    /// The history of a timeline without ancestors.
    pub fn none(timeline: TimelineId) -> Self {
        TimelineHistory { timeline, switches: Vec::new() }
    }

    /// Reads the history file of `timeline`. Comments and empty lines are passed over, as PostgreSQL does.
    pub fn parse(timeline: TimelineId, content: &[u8]) -> Result<Self, HistoryError> {
        let wrong = |line: usize, found: &str, expected| HistoryError {
            timeline,
            line,
            found: found.chars().take(80).collect(),
            expected,
        };
        if content.len() > HISTORY_BYTES_MAX {
            return Err(wrong(0, "", "at most 1 MiB"));
        }
        let text = std::str::from_utf8(content).map_err(|_| wrong(0, "bytes that are not UTF-8", "text"))?;
        let mut switches: Vec<Switch> = Vec::new();
        for (number, line) in text.lines().enumerate().map(|(number, line)| (number + 1, line)) {
            let trimmed = line.trim_start();
            if trimmed.is_empty() || trimmed.starts_with('#') {
                continue;
            }
            let mut parts = trimmed.splitn(3, '\t');
            let parent = parts.next().and_then(|text| text.trim().parse::<u32>().ok());
            let at = parts.next().and_then(|text| text.trim().parse::<Lsn>().ok());
            let (Some(parent), Some(at)) = (parent, at) else {
                return Err(wrong(number, line, "a timeline, a tab and an LSN"));
            };
            let ascends = switches.last().is_none_or(|last| last.timeline.0 < parent && last.at <= at);
            if !ascends || parent == 0 || parent >= timeline.0 {
                return Err(wrong(number, line, "timelines and positions in ascending order, below its own"));
            }
            // `lines` leaves the carriage return of a last line that does not end.
            let reason = parts.next().unwrap_or_default().trim_end_matches('\r').to_owned();
            switches.push(Switch { timeline: TimelineId(parent), at, reason });
        }
        Ok(TimelineHistory { timeline, switches })
    }

    /// The file's text.
    pub fn to_text(&self) -> String {
        self.switches.iter().fold(String::new(), |mut text, switch| {
            let _ = writeln!(text, "{}\t{}\t{}", switch.timeline, switch.at, switch.reason);
            text
        })
    }

    /// Whose history it is.
    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// The timelines left, oldest first.
    pub fn switches(&self) -> &[Switch] {
        &self.switches
    }

    /// The timelines before, oldest first.
    pub fn ancestors(&self) -> impl Iterator<Item = TimelineId> + '_ {
        self.switches.iter().map(|switch| switch.timeline)
    }

    /// Where the timeline itself begins; `0/0` without ancestors.
    pub fn begins_at(&self) -> Lsn {
        self.switches.last().map_or(Lsn::ZERO, |last| last.at)
    }

    /// Where `ancestor` was left, and for which timeline; `None` when this history does not pass through it.
    pub fn switch_after(&self, ancestor: TimelineId) -> Option<(TimelineId, Lsn)> {
        let position = self.switches.iter().position(|switch| switch.timeline == ancestor)?;
        let next = self.switches.get(position + 1).map_or(self.timeline, |next| next.timeline);
        self.switches.get(position).map(|switch| (next, switch.at))
    }

    /// The one path of WAL that leads here: each timeline with the range on which it counts, oldest first. The last
    /// is open-ended.
    pub fn path(&self) -> Vec<(TimelineId, LsnRange)> {
        let mut start = Lsn::ZERO;
        let mut path = Vec::with_capacity(self.switches.len() + 1);
        for switch in &self.switches {
            path.push((switch.timeline, LsnRange::new(start, switch.at)));
            start = switch.at;
        }
        path.push((self.timeline, LsnRange::new(start, Lsn::MAX)));
        path
    }

    /// The timeline whose WAL counts at `at`.
    pub fn timeline_at(&self, at: Lsn) -> TimelineId {
        self.switches.iter().find(|switch| at < switch.at).map_or(self.timeline, |switch| switch.timeline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str =
        "1\t0/A000198\tno recovery target specified\n\n# kept\n2\t0/C000000\tbefore 2000-01-01\n";

    fn lsn(text: &str) -> Lsn {
        text.parse().unwrap()
    }

    #[test]
    fn reads_the_path_that_leads_here() {
        let history = TimelineHistory::parse(TimelineId(4), FILE.as_bytes()).unwrap();
        assert_eq!(history.begins_at(), lsn("0/C000000"));
        assert_eq!(history.switch_after(TimelineId(1)), Some((TimelineId(2), lsn("0/A000198"))));
        assert_eq!(history.switch_after(TimelineId(2)), Some((TimelineId(4), lsn("0/C000000"))));
        assert_eq!(history.switch_after(TimelineId(3)), None);
        assert_eq!(history.timeline_at(lsn("0/A000197")), TimelineId(1));
        assert_eq!(history.timeline_at(lsn("0/A000198")), TimelineId(2));
        assert_eq!(history.timeline_at(Lsn::MAX), TimelineId(4));
        let path: Vec<TimelineId> = history.path().into_iter().map(|(timeline, _)| timeline).collect();
        assert_eq!(path, [TimelineId(1), TimelineId(2), TimelineId(4)]);
        assert_eq!(TimelineHistory::parse(TimelineId(4), history.to_text().as_bytes()).unwrap(), history);
    }

    #[test]
    fn refuses_what_is_no_history() {
        for text in
            ["1", "x\t0/1\t", "1\t0/Z\t", "0\t0/1\t", "4\t0/1\t", "2\t0/5\t\n1\t0/6\t", "1\t0/9\t\n2\t0/8\t"]
        {
            assert!(TimelineHistory::parse(TimelineId(4), text.as_bytes()).is_err(), "{text:?}");
        }
        assert!(TimelineHistory::parse(TimelineId(4), &[0xff]).is_err());
    }

    proptest::proptest! {
        #[test]
        fn whatever_parses_is_a_path_without_holes(
            lines in proptest::collection::vec((0u32..9, 0u64..1 << 36, "[ -~\t]{0,12}"), 0..6),
            noise in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..60),
        ) {
            let _ = TimelineHistory::parse(TimelineId(9), &noise);
            let text = lines.iter().fold(String::new(), |text, (timeline, at, reason)| {
                format!("{text}{timeline}\t{}\t{reason}\n", Lsn::new(*at))
            });
            if let Ok(history) = TimelineHistory::parse(TimelineId(9), text.as_bytes()) {
                let path = history.path();
                proptest::prop_assert_eq!(path.len(), lines.len() + 1);
                let joined = path.windows(2).all(|pair| pair[0].1.end == pair[1].1.start && pair[0].0 < pair[1].0);
                proptest::prop_assert!(joined);
                let again = TimelineHistory::parse(TimelineId(9), history.to_text().as_bytes());
                proptest::prop_assert_eq!(again, Ok(history));
            }
        }
    }
}
