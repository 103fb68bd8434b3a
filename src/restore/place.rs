//! Where a restore may write: the data directory, the WAL directory, the tablespaces. Looking writes nothing.
//!
//! Each place must be absent or empty. `--force` (`Existing::Replace`) allows exactly this: to empty a data directory that
//! no server uses (one with a PG_VERSION, or what an interrupted restore left), and with it the WAL directory and the
//! tablespaces that an earlier restore made for that same data directory, as its recovery file and links say. A running
//! server's directory, a directory that is no data directory, and anybody else's tablespace are refused even then.

use super::error::RestoreError;
use super::recovery_file::{HOME, NAME, PlacedTablespace, RecoveryFile};
use crate::format::manifest::Tablespace;
use rustix::process::{Pid, test_kill_process};
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

/// While this file is there, the directory is no cluster. `global/pg_control` is written last too, so that PostgreSQL agrees.
pub const INCOMPLETE: &str = "walden_restore_incomplete";
const POSTMASTER_PID: &str = "postmaster.pid";

/// What to do when the target is not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    /// Refuse.
    #[default]
    Refuse,
    /// Empty what this module's header allows (`--force`).
    Replace,
}

/// Where to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The data directory, absolute.
    pub data_dir: PathBuf,
    /// The directory that `pg_wal` links to; none for one inside the data directory.
    pub wal_dir: Option<PathBuf>,
    /// The tablespaces, each with its directory here.
    pub tablespaces: Vec<PlacedTablespace>,
}

/// One `--tablespace-map OLD=NEW`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablespaceMapping {
    /// The directory on the source.
    pub old: PathBuf,
    /// The directory here.
    pub new: PathBuf,
}

impl std::str::FromStr for TablespaceMapping {
    type Err = String;

    /// `OLD=NEW`; a `=` inside a path is written `\=`, as pg_basebackup has it.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = vec![String::new()];
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match (c, chars.peek(), parts.last_mut()) {
                ('\\', Some('='), Some(part)) => {
                    part.push('=');
                    chars.next();
                }
                ('=', _, _) => parts.push(String::new()),
                (c, _, Some(part)) => part.push(c),
                (_, _, None) => {}
            }
        }
        match parts.as_slice() {
            [old, new] if Path::new(old).is_absolute() && Path::new(new).is_absolute() => {
                Ok(TablespaceMapping { old: PathBuf::from(old), new: PathBuf::from(new) })
            }
            _ => Err(format!("{text:?} is not a tablespace mapping, expected OLD=NEW, both absolute")),
        }
    }
}

impl Places {
    /// Decides on the places. Refuses mappings of tablespaces that are not there, and places inside each other.
    pub fn new(
        data_dir: &Path,
        wal_dir: Option<&Path>,
        tablespaces: &[Tablespace],
        mappings: &[TablespaceMapping],
    ) -> Result<Self, RestoreError> {
        for (number, mapping) in mappings.iter().enumerate() {
            if !tablespaces.iter().any(|tablespace| Path::new(&tablespace.path) == mapping.old) {
                let known: Vec<_> = tablespaces.iter().map(|tablespace| tablespace.path.as_str()).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                let old = mapping.old.display();
                return Err(RestoreError::usage(format!(
                    "the backup has no tablespace at {old}; it has {known}"
                )));
            }
            if mappings.iter().take(number).any(|other| other.old == mapping.old) {
                return Err(RestoreError::usage(format!("{} is mapped twice", mapping.old.display())));
            }
        }
        let placed = tablespaces.iter().map(|tablespace| {
            let mapped = mappings.iter().find(|mapping| mapping.old == Path::new(&tablespace.path));
            let path = mapped.map_or_else(|| PathBuf::from(&tablespace.path), |mapping| mapping.new.clone());
            PlacedTablespace { oid: tablespace.oid, path }
        });
        let places = Places {
            data_dir: data_dir.to_owned(),
            wal_dir: wal_dir.map(Path::to_owned),
            tablespaces: placed.collect(),
        };
        places.apart()?;
        Ok(places)
    }

    /// Every place.
    pub(super) fn all(&self) -> impl Iterator<Item = &Path> {
        let tablespaces = self.tablespaces.iter().map(|tablespace| tablespace.path.as_path());
        [Some(self.data_dir.as_path()), self.wal_dir.as_deref()].into_iter().flatten().chain(tablespaces)
    }

    fn apart(&self) -> Result<(), RestoreError> {
        for (number, place) in self.all().enumerate() {
            let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
            if !place.is_absolute() || !place.components().all(plain) || place.parent().is_none() {
                return Err(RestoreError::usage(format!("{}: not an absolute, plain path", place.display())));
            }
            if let Some(other) =
                self.all().take(number).find(|o| o.starts_with(place) || place.starts_with(o))
            {
                let (place, other) = (place.display(), other.display());
                return Err(RestoreError::usage(format!(
                    "{place} and {other} are not apart from each other"
                )));
            }
        }
        Ok(())
    }

    /// Looks whether all places are free, or may be made so.
    pub fn inspect(&self, existing: Existing) -> Result<Clearance, RestoreError> {
        let mut clearance = Clearance::default();
        let found = look(&self.data_dir)?;
        let earlier = self.earlier();
        match found {
            Found::Free => {}
            Found::Occupied if existing == Existing::Refuse => {
                let hint = match self.data_dir.join(INCOMPLETE).exists() {
                    true => "an interrupted restore left it; --force replaces it",
                    false => "--force replaces a data directory that no server uses",
                };
                return Err(conflict(&self.data_dir, "the directory is not empty", hint));
            }
            Found::Occupied => {
                self.refuse_running()?;
                let ours = [INCOMPLETE, "PG_VERSION"].iter().any(|name| self.data_dir.join(name).exists());
                if !ours {
                    let reason = "the directory is not empty, and no data directory";
                    return Err(conflict(&self.data_dir, reason, "choose another, or empty it yourself"));
                }
                clearance.data_dir = Some(self.data_dir.clone());
            }
        }
        if let Some(wal_dir) = &self.wal_dir
            && look(wal_dir)? == Found::Occupied
        {
            let linked = fs::read_link(self.data_dir.join("pg_wal")).is_ok_and(|to| to == *wal_dir);
            if !(existing == Existing::Replace && linked && earlier.is_some()) {
                let reason = "the WAL directory is not empty, and not this target's";
                return Err(conflict(wal_dir, reason, "choose another, or empty it yourself"));
            }
            clearance.others.push(wal_dir.clone());
        }
        for tablespace in &self.tablespaces {
            if look(&tablespace.path)? == Found::Free {
                continue;
            }
            let link = self.data_dir.join("pg_tblspc").join(tablespace.oid.to_string());
            let linked = fs::read_link(link).is_ok_and(|to| to == tablespace.path);
            let made = earlier.as_ref().is_some_and(|file| file.tablespaces.contains(tablespace));
            if !(existing == Existing::Replace && linked && made) {
                let reason = "the tablespace's directory is not empty; a server may be using it";
                let hint = format!("give it another with --tablespace-map {}=NEW", tablespace.path.display());
                return Err(conflict(&tablespace.path, reason, &hint));
            }
            clearance.others.push(tablespace.path.clone());
        }
        Ok(clearance)
    }

    /// What an earlier restore into this data directory said it made.
    fn earlier(&self) -> Option<RecoveryFile> {
        let file = RecoveryFile::read(&self.data_dir.join(HOME).join(NAME)).ok()?;
        (file.data_dir == self.data_dir).then_some(file)
    }

    fn refuse_running(&self) -> Result<(), RestoreError> {
        let path = self.data_dir.join(POSTMASTER_PID);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(RestoreError::io(&path, "read", error)),
        };
        let pid = text.lines().next().and_then(|line| line.trim().parse::<i32>().ok()).map(i32::abs);
        match pid.and_then(Pid::from_raw) {
            Some(pid) if self.is_used_by(pid) => Err(conflict(
                &self.data_dir,
                &format!("a server runs in it, process {}", pid.as_raw_nonzero()),
                "stop it first",
            )),
            _ => Ok(()),
        }
    }

    /// A process that lives and does not demonstrably work elsewhere: a postmaster's current directory is its data directory.
    fn is_used_by(&self, pid: Pid) -> bool {
        if test_kill_process(pid).is_err_and(|error| error == rustix::io::Errno::SRCH) {
            return false;
        }
        let works_in = fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero()));
        match (works_in, fs::canonicalize(&self.data_dir)) {
            (Ok(cwd), Ok(data_dir)) => cwd == data_dir,
            _ => true,
        }
    }
}

/// What has to be emptied first. Made by [`Places::inspect`] only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Clearance {
    data_dir: Option<PathBuf>,
    others: Vec<PathBuf>,
}

impl Clearance {
    /// Directories that will be emptied.
    pub fn directories(&self) -> impl Iterator<Item = &Path> {
        self.data_dir.iter().chain(&self.others).map(PathBuf::as_path)
    }

    /// Empties them; pg_control goes first, so that what is left when this is interrupted cannot be started.
    pub fn clear(&self) -> Result<(), RestoreError> {
        if let Some(data_dir) = &self.data_dir {
            mark_incomplete(data_dir)?;
            remove(&data_dir.join("global/pg_control"))?;
        }
        for dir in &self.others {
            empty(dir, None)?;
        }
        match &self.data_dir {
            Some(data_dir) => empty(data_dir, Some(INCOMPLETE)),
            None => Ok(()),
        }
    }
}

/// Marks a directory as no cluster.
pub fn mark_incomplete(data_dir: &Path) -> Result<(), RestoreError> {
    let path = data_dir.join(INCOMPLETE);
    let text = "walden restore has not finished here. Do not start a server; restore again with --force.\n";
    fs::write(&path, text).map_err(|error| RestoreError::io(&path, "write", error))
}

fn remove(path: &Path) -> Result<(), RestoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(RestoreError::io(path, "remove", error)),
        _ => Ok(()),
    }
}

/// Removes everything in `dir` but `kept`, following no link.
fn empty(dir: &Path, kept: Option<&str>) -> Result<(), RestoreError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| RestoreError::io(&path, "empty", error)
    };
    for entry in fs::read_dir(dir).map_err(failed(dir))? {
        let entry = entry.map_err(failed(dir))?;
        if kept.is_some_and(|kept| entry.file_name() == kept) {
            continue;
        }
        let path = entry.path();
        let is_dir = entry.file_type().map_err(failed(&path))?.is_dir();
        let done = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        done.map_err(failed(&path))?;
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// Absent or empty.
    Free,
    /// Something is in it.
    Occupied,
}

fn look(dir: &Path) -> Result<Found, RestoreError> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(if entries.next().is_none() { Found::Free } else { Found::Occupied }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => match fs::symlink_metadata(dir) {
            Ok(_) => Err(conflict(dir, "a link that leads nowhere", "remove it")),
            Err(_) => Ok(Found::Free),
        },
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            Err(conflict(dir, "not a directory", "choose another"))
        }
        Err(error) => Err(RestoreError::io(dir, "look into", error)),
    }
}

fn conflict(path: &Path, reason: &str, hint: &str) -> RestoreError {
    RestoreError::Conflict { path: path.to_owned(), reason: reason.to_owned(), hint: hint.to_owned() }
}

#[cfg(test)]
mod tests;
