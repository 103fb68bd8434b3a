//! The retention policy, and what its calendar keeps. Pure. Days, weeks (ISO, from Monday), months and years are those of UTC.
//! A keep of so many days is of the newest so many days that have a backup, not of days that passed: a cluster that stands still loses nothing.

use crate::base::{BackupId, Timestamp};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// What is to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// How far back every moment stays restorable.
    pub window: Duration,
    /// Complete backups that stay, however old.
    pub count_min: u32,
    /// Days, weeks, months and years of which the newest backup stays, by [`Period::ALL`].
    pub keeps: [u32; 4],
}

impl Default for Policy {
    fn default() -> Policy {
        Policy { window: 30 * DAY, count_min: 2, keeps: [0; 4] }
    }
}

/// A part of the calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Period {
    /// A day.
    Day,
    /// A week, Monday to Sunday.
    Week,
    /// A month.
    Month,
    /// A year.
    Year,
}

impl Period {
    /// All of them, in the order of [`Policy::keeps`].
    pub const ALL: [Period; 4] = [Period::Day, Period::Week, Period::Month, Period::Year];

    /// The one that holds `at`, as its name: `2026-11-22`, `2026-W47`, `2026-11`, `2026`. Names of one kind sort by time.
    /// A moment that no calendar has is of none.
    fn name_of(self, at: Timestamp) -> Option<String> {
        let at = jiff::Timestamp::from_microsecond(at.unix_micros()).ok()?;
        let date = at.to_zoned(jiff::tz::TimeZone::UTC).date();
        Some(match self {
            Period::Day => format!("{:04}-{:02}-{:02}", date.year(), date.month(), date.day()),
            Period::Week => {
                let week = date.iso_week_date();
                format!("{:04}-W{:02}", week.year(), week.week())
            }
            Period::Month => format!("{:04}-{:02}", date.year(), date.month()),
            Period::Year => format!("{:04}", date.year()),
        })
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Period::Day => "day",
            Period::Week => "week",
            Period::Month => "month",
            Period::Year => "year",
        })
    }
}

/// A restorable backup, as the calendar sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dated {
    /// Which.
    pub id: BackupId,
    /// When it was consistent, by the server's clock.
    pub at: Timestamp,
    /// Whether no block of it was bad on the server: one that has bad blocks stands for its day only when no other does.
    pub complete: bool,
}

/// The backups that the calendar keeps, each with the period whose newest it is.
pub fn calendar(policy: &Policy, backups: &[Dated]) -> Vec<(BackupId, Period, String)> {
    let mut kept = Vec::new();
    for (period, count) in Period::ALL.into_iter().zip(policy.keeps) {
        let mut newest: BTreeMap<String, &Dated> = BTreeMap::new();
        for backup in backups {
            let Some(name) = period.name_of(backup.at) else { continue };
            let rank = |of: &Dated| (of.complete, of.at, of.id.clone());
            let best = newest.entry(name).or_insert(backup);
            if rank(backup) > rank(best) {
                *best = backup;
            }
        }
        let chosen = newest.into_iter().rev().take(count as usize);
        kept.extend(chosen.map(|(name, backup)| (backup.id.clone(), period, name)));
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        Timestamp::from_unix_micros(text.parse::<jiff::Timestamp>().unwrap().as_microsecond())
    }

    fn dated(text: &str, complete: bool) -> Dated {
        Dated { id: BackupId::at(at(text)), at: at(text), complete }
    }

    fn kept(keeps: [u32; 4], backups: &[Dated]) -> Vec<String> {
        let policy = Policy { keeps, ..Policy::default() };
        calendar(&policy, backups).into_iter().map(|(id, _, name)| format!("{name} {id}")).collect()
    }

    #[test]
    fn the_newest_of_each_period_stays() {
        let backups: Vec<Dated> = [
            "2025-12-28T23:59:59Z", // Sunday of 2025-W52
            "2025-12-29T00:00:00Z", // Monday of 2026-W01
            "2026-01-01T12:00:00Z",
            "2026-01-01T18:00:00Z",
            "2026-02-03T00:00:00Z",
        ]
        .map(|text| dated(text, true))
        .to_vec();
        assert_eq!(kept([0; 4], &backups), Vec::<String>::new());
        let days = ["2026-02-03 20260203T000000Z", "2026-01-01 20260101T180000Z"];
        assert_eq!(kept([2, 0, 0, 0], &backups), days);
        let weeks = ["2026-W06 20260203T000000Z", "2026-W01 20260101T180000Z", "2025-W52 20251228T235959Z"];
        assert_eq!(kept([0, 9, 0, 0], &backups), weeks);
        let months = ["2026-02 20260203T000000Z", "2026-01 20260101T180000Z", "2025-12 20251229T000000Z"];
        assert_eq!(kept([0, 0, 3, 0], &backups), months);
        assert_eq!(kept([0, 0, 0, 2], &backups), ["2026 20260203T000000Z", "2025 20251229T000000Z"]);
    }

    #[test]
    fn a_damaged_backup_stands_for_its_day_only_alone() {
        let both = [dated("2026-01-01T12:00:00Z", true), dated("2026-01-01T18:00:00Z", false)];
        assert_eq!(kept([1, 0, 0, 0], &both), ["2026-01-01 20260101T120000Z"]);
        assert_eq!(kept([1, 0, 0, 0], &both[1..]), ["2026-01-01 20260101T180000Z"]);
    }

    #[test]
    fn days_without_a_backup_do_not_count() {
        let old = [dated("2020-01-01T12:00:00Z", true), dated("2021-06-01T12:00:00Z", true)];
        assert_eq!(kept([2, 0, 0, 0], &old).len(), 2);
    }
}
