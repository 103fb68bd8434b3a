//! `[cluster.NAME.retention]`: what is to be kept. Without the table nothing expires by itself.

use super::{ConfigError, Section};
use crate::operate::units;
use crate::retain::policy::Policy;
use std::time::Duration;

pub(super) const KEYS: &[&str] =
    &["window", "min_backups", "keep_daily", "keep_weekly", "keep_monthly", "keep_yearly"];

/// A retention policy as far as somebody gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retention {
    /// `window`.
    pub window: Option<Duration>,
    /// `min_backups`, at least 1.
    pub count_min: Option<u32>,
    /// `keep_daily`, `keep_weekly`, `keep_monthly`, `keep_yearly`.
    pub keeps: [Option<u32>; 4],
}

impl Retention {
    /// What is given here, else there.
    pub fn or(self, other: Retention) -> Retention {
        let [daily, weekly, monthly, yearly] = self.keeps;
        let [other_daily, other_weekly, other_monthly, other_yearly] = other.keeps;
        Retention {
            window: self.window.or(other.window),
            count_min: self.count_min.or(other.count_min),
            keeps: [
                daily.or(other_daily),
                weekly.or(other_weekly),
                monthly.or(other_monthly),
                yearly.or(other_yearly),
            ],
        }
    }

    /// The policy, with defaults where nobody gave anything.
    pub fn policy(self) -> Policy {
        let default = Policy::default();
        Policy {
            window: self.window.unwrap_or(default.window),
            count_min: self.count_min.unwrap_or(default.count_min),
            keeps: self.keeps.map(|keep| keep.unwrap_or(0)),
        }
    }
}

impl Section<'_, '_, '_> {
    /// The table `retention` of a cluster, if there is one.
    pub(super) fn retention(&self) -> Result<Option<Retention>, ConfigError> {
        let Some(value) = self.table.get("retention") else { return Ok(None) };
        let path = format!("{}.retention", self.path);
        let table = self.file.table(&path, value)?;
        let section = Section { file: self.file, path: &path, table, at: value.span().start };
        section.only(KEYS)?;
        let count = |key: &str| {
            section.get(key, "a number", |value| {
                u32::try_from(value.as_integer()?.as_str().parse::<i64>().ok()?).ok()
            })
        };
        let window = section
            .get("window", "a duration such as \"30d\"", |value| value.as_str().and_then(units::duration))?;
        let count_min = section.get("min_backups", "a number, 1 at least", |value| {
            let number = u32::try_from(value.as_integer()?.as_str().parse::<i64>().ok()?).ok();
            number.filter(|number| *number > 0)
        })?;
        let keeps =
            [count("keep_daily")?, count("keep_weekly")?, count("keep_monthly")?, count("keep_yearly")?];
        Ok(Some(Retention { window, count_min, keeps }))
    }
}
