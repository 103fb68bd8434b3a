//! Which generation of a cluster a request is about: a moment belongs to the server that there was then. [`by_time`] and [`by_lsn`] are
//! pure.
//!
//! Rules: a named backup decides; a time is of the newest generation that can be restored from then on, and a time between the end
//! of one and the first backup of the next is refused; an LSN is of the only generation whose window holds it; everything else means
//! the newest generation, and nothing else in its place.

use super::archive::{self, Loaded};
use super::error::RestoreError;
use super::resolve::{Window, WindowPart};
use super::target::{Request, Target};
use crate::base::{Generation, Lsn, Timestamp};
use crate::format::index::BackupEntry;
use crate::repo::Cluster;
use crate::repo::walmap::Snapshot;
use std::collections::BTreeSet;

/// What of one generation can be restored.
#[derive(Debug, Clone)]
pub struct Restorable {
    /// Which.
    pub generation: Generation,
    /// Its PostgreSQL's major version.
    pub major_version: u32,
    /// Its window, on its own line.
    pub window: Window,
}

impl Restorable {
    fn first(&self) -> Option<&WindowPart> {
        self.window.parts.first()
    }

    fn last(&self) -> Option<&WindowPart> {
        self.window.parts.last()
    }

    fn name(&self) -> String {
        format!("generation {} (PostgreSQL {})", self.generation, self.major_version)
    }

    fn start(&self) -> String {
        match self.first() {
            Some(part) => {
                format!("whose first complete backup is consistent at {} ({})", part.start, part.range.start)
            }
            None => "which has no complete backup yet".to_owned(),
        }
    }
}

/// Finds the generation that `request` is about, and reads what there is of it.
pub async fn choose(
    cluster: &Cluster,
    snapshot: &Snapshot,
    request: &Request,
) -> Result<Loaded, RestoreError> {
    let newest = snapshot.root.generation;
    if let Some(prefix) = &request.backup {
        let generation = of_backup(&snapshot.index.backups, prefix)?.unwrap_or(newest);
        return archive::load(cluster, snapshot, generation).await;
    }
    let mut numbers = generations_with_backups(&snapshot.index.backups);
    numbers.insert(newest);
    let mut all = Vec::new();
    for generation in numbers.into_iter().rev() {
        match archive::load(cluster, snapshot, generation).await {
            Ok(loaded) => all.push(loaded),
            // Damage of an older one keeps nobody from restoring what is not of it.
            Err(error) if generation != newest && is_damage(&error) => {
                tracing::error!(%error, "generation {generation} is left out");
            }
            Err(error) => return Err(error),
        }
    }
    if all.len() == 1 {
        return Ok(all.remove(0));
    }
    let mut windows = Vec::new();
    for loaded in &all {
        windows.push(Restorable {
            generation: loaded.archive.generation,
            major_version: loaded.record.major_version,
            // A history that is missing there is told when it is chosen.
            window: loaded
                .archive
                .window()
                .unwrap_or(Window { timeline: loaded.archive.current, parts: Vec::new() }),
        });
    }
    let chosen = match &request.target {
        Target::Time(time) => by_time(&windows, *time),
        Target::Lsn(lsn) => by_lsn(&windows, *lsn),
        Target::Latest | Target::Immediate | Target::Xid(_) | Target::Name(_) => newest_only(&windows),
    };
    let chosen = chosen.map_err(|refused| refused.error(&request.target))?;
    Ok(all.remove(chosen))
}

fn is_damage(error: &RestoreError) -> bool {
    match error {
        RestoreError::Damage { .. } => true,
        RestoreError::Repo(error) => error.is_damage(),
        _ => false,
    }
}

/// The generations of which there are backups.
pub fn generations_with_backups(backups: &[BackupEntry]) -> BTreeSet<Generation> {
    backups.iter().map(|backup| backup.generation).collect()
}

/// The generation of the backups whose ids begin with `prefix`; none when there is none.
fn of_backup(backups: &[BackupEntry], prefix: &str) -> Result<Option<Generation>, RestoreError> {
    let fits: Vec<&BackupEntry> = backups.iter().filter(|b| b.id.as_str().starts_with(prefix)).collect();
    let generations: BTreeSet<Generation> = fits.iter().map(|backup| backup.generation).collect();
    if generations.len() > 1 {
        let ids: Vec<&str> = fits.iter().map(|backup| backup.id.as_str()).collect();
        return Err(RestoreError::usage(format!("backup {prefix} is ambiguous: {}", ids.join(", "))));
    }
    Ok(generations.into_iter().next())
}

/// Why no generation fits.
#[derive(Debug, Clone)]
pub enum Refused {
    /// Nothing can be restored there.
    Outside {
        /// Why.
        reason: String,
        /// What can be restored of the generation that is nearest.
        window: Window,
    },
    /// More than one fits.
    Ambiguous(String),
}

impl Refused {
    fn error(self, target: &Target) -> RestoreError {
        match self {
            Refused::Outside { reason, window } => {
                RestoreError::Outside { target: target.to_string(), reason, window: Box::new(window) }
            }
            Refused::Ambiguous(reason) => RestoreError::Usage {
                reason: format!("target {target} is ambiguous: {reason}"),
                hint: Some("choose the generation by one of its backups (--backup)".into()),
            },
        }
    }
}

/// The generation that `time` belongs to, of `all` from the newest to the oldest. One that cannot be reached at all is left to the
/// generation that is nearest, which says so.
pub fn by_time(all: &[Restorable], time: Timestamp) -> Result<usize, Refused> {
    let begun = |of: &Restorable| of.first().is_some_and(|part| part.start <= time);
    let Some(chosen) = all.iter().position(begun) else {
        // Before everything: the oldest says where the window begins.
        return Ok(all.iter().rposition(|of| of.first().is_some()).unwrap_or(0));
    };
    let ended = all.get(chosen).filter(|of| of.last().is_some_and(|part| part.end < time));
    match (ended, chosen.checked_sub(1).and_then(|newer| all.get(newer))) {
        (Some(ended), Some(newer)) => {
            let end = ended.last().map(|part| format!("{} ({})", part.end, part.range.end));
            Err(Refused::Outside {
                reason: format!(
                    "it lies between the end of {}, which can be restored up to {}, and {}, {}",
                    ended.name(),
                    end.unwrap_or_default(),
                    newer.name(),
                    newer.start()
                ),
                window: ended.window.clone(),
            })
        }
        _ => Ok(chosen),
    }
}

/// The generation whose window holds `lsn`, of `all` from the newest to the oldest. When none does, the newest that can be restored says
/// so.
pub fn by_lsn(all: &[Restorable], lsn: Lsn) -> Result<usize, Refused> {
    let holds = |of: &Restorable| match (of.first(), of.last()) {
        (Some(first), Some(last)) => first.range.start <= lsn && lsn <= last.range.end,
        _ => false,
    };
    let mut fits = all.iter().enumerate().filter(|(_, of)| holds(of));
    match (fits.next(), fits.next()) {
        (Some((chosen, _)), None) => Ok(chosen),
        (None, _) => Ok(all.iter().position(|of| of.first().is_some()).unwrap_or(0)),
        (Some((_, one)), Some((_, other))) => {
            Err(Refused::Ambiguous(format!("{} and {} both have it", one.name(), other.name())))
        }
    }
}

/// The newest generation, unless nothing can be restored of it while an older one can: that is never taken in its place.
pub fn newest_only(all: &[Restorable]) -> Result<usize, Refused> {
    let Some(newest) = all.first().filter(|newest| newest.first().is_none()) else { return Ok(0) };
    let Some(older) = all.iter().find(|of| of.first().is_some()) else { return Ok(0) };
    let end = older.last().map(|part| format!("{} ({})", part.end, part.range.end)).unwrap_or_default();
    Err(Refused::Outside {
        reason: format!(
            "it means {}, {}; {} can be restored up to {end}, with a time or one of its backups",
            newest.name(),
            newest.start(),
            older.name()
        ),
        window: older.window.clone(),
    })
}

#[cfg(test)]
mod tests;
