//! `walden wal-get`: a WAL file as PostgreSQL had it, out of the repository. Recovery has `wal-fetch` for that, which stages ahead; this is
//! one file from anywhere, for `pg_waldump`, `pg_rewind`, and whoever wants to see.

use super::exit::Exit;
use super::failure::{Failure, disk_failure, is_no_space};
use crate::base::{Lsn, LsnRange, WalFileName};
use crate::repo::walmap::{self, Snapshot};
use crate::repo::walread::Reading;
use crate::repo::{Cluster, RepoError};
use crate::restore::archive::{self, PathReader};
use crate::restore::wal_fetch::compose::{Composition, compose};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde::Serialize;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The document. Fields are only ever added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WalFile {
    /// The cluster.
    pub cluster: String,
    /// The file's name.
    pub name: String,
    /// Where it was written to.
    pub path: PathBuf,
    /// Its bytes.
    pub bytes: u64,
    /// Where what is stored of it ends, when that is before its end: zeros follow.
    pub stored_to: Option<String>,
}

impl fmt::Display for WalFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} bytes", self.path.display(), self.bytes)?;
        match &self.stored_to {
            Some(end) => write!(f, ", zeros from {end} on: no more of it is stored on its timeline"),
            None => Ok(()),
        }
    }
}

/// Writes file `name` of `cluster` to `to`, or into that folder, where it is not there yet: all of it or nothing, for its owner alone.
///
/// # Errors
/// A file that is not stored ([`Exit::NotFound`]), a `to` that is there ([`Exit::Conflict`]), damage, and what a store or a disk says.
pub async fn wal_get(cluster: &Cluster, name: WalFileName, to: &Path) -> Result<WalFile, Failure> {
    let to = &if to.is_dir() { to.join(name.to_string()) } else { to.to_owned() };
    if to.exists() {
        return Err(is_there(to));
    }
    let snapshot = walmap::load(cluster).await?;
    let (bytes, stored_to) = match name {
        WalFileName::History(_) => (history(cluster, &snapshot, name)?, None),
        WalFileName::Segment { .. } => segment(cluster, &snapshot, name).await?,
    };
    let len = bytes.len() as u64;
    let target = to.to_owned();
    let written = tokio::task::spawn_blocking(move || write_new(&target, &bytes)).await;
    match written.unwrap_or_else(|died| std::panic::resume_unwind(died.into_panic())) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(is_there(to)),
        Err(error) => return Err(not_written(to, &error)),
    }
    Ok(WalFile {
        cluster: cluster.name().to_string(),
        name: name.to_string(),
        path: to.to_owned(),
        bytes: len,
        stored_to: stored_to.map(|end| end.to_string()),
    })
}

fn is_there(to: &Path) -> Failure {
    Failure::new(Exit::Conflict, format!("{} is there already", to.display())).hint("give another --to")
}

fn not_written(to: &Path, error: &io::Error) -> Failure {
    let what = format!("{}: {error}", to.display());
    match error.kind() {
        _ if is_no_space(error) => Failure::new(Exit::NoSpace, what),
        io::ErrorKind::NotFound => {
            Failure::new(Exit::Usage, what).hint("--to names a folder that is there, or a file in one")
        }
        _ => disk_failure(what, error),
    }
}

fn not_stored(cluster: &Cluster, name: WalFileName, why: impl fmt::Display) -> Failure {
    Failure::new(Exit::NotFound, format!("{name} of cluster {} is not stored", cluster.name()))
        .fact("found", why)
        .hint("`walden info` shows which WAL is")
}

fn history(cluster: &Cluster, snapshot: &Snapshot, name: WalFileName) -> Result<Vec<u8>, Failure> {
    let generation = snapshot.root.generation;
    let found =
        snapshot.index.histories.iter().find(|history| {
            history.generation == generation && WalFileName::History(history.timeline) == name
        });
    let found =
        found.ok_or_else(|| not_stored(cluster, name, "no such timeline, or one without a history"))?;
    Ok(found.content.0.clone())
}

/// A segment, and where what is stored of it ends, when that is before its end.
async fn segment(
    cluster: &Cluster,
    snapshot: &Snapshot,
    name: WalFileName,
) -> Result<(Vec<u8>, Option<Lsn>), Failure> {
    let loaded = archive::load(cluster, snapshot, snapshot.root.generation).await?;
    let size = loaded.archive.segment_size;
    let WalFileName::Segment { timeline, .. } = name else { unreachable!("a history has no WAL") };
    let Some(number) = name.segment_no(size) else {
        let segment_size = format!("a segment of {} MiB has no such number", size.bytes() >> 20);
        return Err(not_stored(cluster, name, segment_size));
    };
    let Some(path) = loaded.archive.lineage.path(timeline) else {
        return Err(not_stored(cluster, name, format!("nothing is known of timeline {timeline}")));
    };
    let lies = number.range(size);
    let mut reader = PathReader::new(cluster, &loaded, &path, Reading::Parts);
    let run = LsnRange::new(lies.start, reader.contiguous_end(lies.start));
    if run.is_empty() {
        return Err(not_stored(cluster, name, format!("WAL at {} is not there", lies.start)));
    }
    let stored = match compose(timeline, number, size, &path, run) {
        Composition::Of(stored) => stored,
        Composition::Absent(why) => return Err(not_stored(cluster, name, why)),
    };
    let len = usize::try_from(lies.len()).unwrap_or(usize::MAX);
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < stored.len() as usize {
        let at = lies.start.saturating_add(bytes.len() as u64);
        match reader.read(LsnRange::new(at, stored.end)).await {
            Ok(some) => bytes.extend_from_slice(&some),
            // Collected meanwhile.
            Err(RepoError::NotFound { what, .. }) => return Err(not_stored(cluster, name, what)),
            Err(error) => return Err(error.into()),
        }
    }
    bytes.resize(len, 0);
    Ok((bytes, (stored.end < lies.end).then_some(stored.end)))
}

/// Writes `bytes` to `to`, which may not be there, durably, under another name first.
fn write_new(to: &Path, bytes: &[u8]) -> io::Result<()> {
    let Some(name) = to.file_name() else { return Err(io::ErrorKind::NotFound.into()) };
    let folder = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let partial = folder.join(format!(".{}.{}.partial", name.to_string_lossy(), std::process::id()));
    // WAL is what its tables are: nobody else reads it, and nobody has laid a link where it goes.
    let made = File::options().write(true).create_new(true).mode(0o600).open(&partial);
    let mut file = made.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => io::Error::other(format!("{} is in the way", partial.display())),
        _ => error,
    })?;
    let written = (|| {
        file.write_all(bytes)?;
        file.sync_all()?;
        match renameat_with(CWD, &partial, CWD, to, RenameFlags::NOREPLACE) {
            // A file system that cannot tell.
            Err(Errno::INVAL | Errno::NOSYS) if !to.exists() => fs::rename(&partial, to)?,
            other => other?,
        }
        File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        drop(fs::remove_file(&partial));
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn nothing_that_is_there_is_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let (to, other) = (dir.path().join("f"), dir.path().join("other"));
        fs::write(&other, b"before").unwrap();
        // A link where the file goes, to nothing; and where it is written first.
        symlink(dir.path().join("gone"), &to).unwrap();
        assert_eq!(write_new(&to, b"wal").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(!dir.path().join("gone").exists());
        fs::remove_file(&to).unwrap();
        let partial = dir.path().join(format!(".f.{}.partial", std::process::id()));
        symlink(&other, &partial).unwrap();
        let error = write_new(&to, b"wal").unwrap_err();
        assert!(error.to_string().contains("is in the way") && partial.exists() && !to.exists(), "{error}");
        fs::remove_file(&partial).unwrap();
        fs::write(&to, b"before").unwrap();
        assert_eq!(write_new(&to, b"wal").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(!partial.exists());
        for path in [&to, &other] {
            assert_eq!(fs::read(path).unwrap(), b"before");
        }
        fs::remove_file(&to).unwrap();
        write_new(&to, b"wal").unwrap();
        assert_eq!((fs::read(&to).unwrap(), partial.exists()), (b"wal".to_vec(), false));
    }
}
