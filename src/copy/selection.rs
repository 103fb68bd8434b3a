//! What of a cluster is copied: all of it, or one backup with its WAL. Pure.

use super::error::CopyError;
use super::source::{Place, View};
use crate::base::{BackupId, Lsn, LsnRange};
use crate::format::index::{BackupEntry, BackupState};
use crate::repo::backups::named;
use std::collections::BTreeMap;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Every backup, all WAL, every generation.
    Cluster,
    /// One backup and WAL of it.
    Backup {
        /// Its id, or the beginning of it.
        name: String,
        /// Which WAL.
        wal: BackupWal,
    },
}

/// Which WAL goes with one backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupWal {
    /// Everything from its beginning on, on every timeline that leads on from it: it restores to any later moment.
    All,
    /// What makes it consistent: it restores to the moment it was taken.
    Needed,
}

/// What of a cluster is copied.
#[derive(Debug, Clone)]
pub enum Selection {
    /// Everything.
    Everything,
    /// A backup, and WAL by timeline of its generation.
    Backup(BackupEntry, BTreeMap<Place, LsnRange>),
}

impl Selection {
    /// Understands `scope`.
    ///
    /// # Errors
    /// A backup that is not there, or not restorable.
    pub fn of(scope: &Scope, view: &View) -> Result<Selection, CopyError> {
        let Scope::Backup { name, wal } = scope else { return Ok(Selection::Everything) };
        let backup = named(&view.index.backups, name)?;
        match view.state(backup) {
            BackupState::Pending => return Err(CopyError::Pending { id: backup.id.clone() }),
            BackupState::Base => return Err(CopyError::BaseAlone { id: backup.id.clone() }),
            BackupState::Complete | BackupState::Damaged => {}
        }
        let Some(needed) = view.needed(backup) else {
            return Err(CopyError::Pending { id: backup.id.clone() });
        };
        let own = (backup.generation, backup.timeline);
        let mut wanted = BTreeMap::from([(own, needed)]);
        if *wal == BackupWal::All {
            let onward = LsnRange::new(needed.start, Lsn::MAX);
            wanted.insert(own, onward);
            let lineage = view.lineage(backup.generation);
            let span = LsnRange::new(backup.redo.min(backup.stop), backup.stop);
            for timeline in lineage.timelines() {
                let path = lineage.path(timeline);
                if path.is_some_and(|path| path.holds(backup.timeline, span)) {
                    wanted.insert((backup.generation, timeline), onward);
                }
            }
        }
        Ok(Selection::Backup(backup.clone(), wanted))
    }

    /// Whether a backup is copied.
    pub fn has(&self, id: &BackupId) -> bool {
        match self {
            Selection::Everything => true,
            Selection::Backup(backup, _) => backup.id == *id,
        }
    }

    /// The WAL of `place` that is copied.
    pub fn wal(&self, place: Place) -> Option<LsnRange> {
        match self {
            Selection::Everything => Some(LsnRange::new(Lsn::ZERO, Lsn::MAX)),
            Selection::Backup(_, wanted) => wanted.get(&place).copied(),
        }
    }

    /// Whether anything of the generation of `place` is copied.
    pub fn has_generation(&self, generation: crate::base::Generation) -> bool {
        match self {
            Selection::Everything => true,
            Selection::Backup(backup, _) => backup.generation == generation,
        }
    }
}
