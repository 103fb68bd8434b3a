//! Reads objects and has each judged ([`Judge`]).
//! An object that is gone is passed over: following references finds out whether anybody misses it. One that the store does not give,
//! or that is sealed under a key epoch that the slot was not given, is told apart: nothing is said of it.
//! Memory: `READS_IN_FLIGHT` objects, of `OBJECT_BYTES_MAX` at most, and `SUSPECTS_ALL_MAX` pages.

use super::judge::{Damaged, Judge, Suspect, Wrong};
use super::key_objects::repository_of;
use crate::base::{ObjectKey, Progress, RepositoryId, limits};
use crate::format::frame::DIRECTORY_PLAIN_BYTES_MAX;
use crate::repo::RepoError;
use crate::store::{ObjectMeta, Store, StoreError};
use bytes::Bytes;
use futures_util::StreamExt;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// Objects being read at once: a segment takes up to 64 MiB of memory, compressed.
const READS_IN_FLIGHT: usize = 4;
/// Pages with a wrong checksum of all objects that are looked into.
const SUSPECTS_ALL_MAX: usize = 4096;
/// Bytes of the longest object that is read: as many as its frames and its directory may have, compressed badly, and then some.
const OBJECT_BYTES_MAX: u64 = limits::WAL_SEGMENT_BYTES_MAX + 2 * DIRECTORY_PLAIN_BYTES_MAX as u64;
/// Tries to read an object that the store does not give.
const TRIES_MAX: u32 = 4;
/// The wait before the second one; each is twice as long as the one before.
const TRY_WAIT: Duration = Duration::from_millis(250);
/// Objects that a store may fail to give before it is the store that fails.
const UNREAD_MAX: usize = 16;

/// What reading gave.
#[derive(Debug, Default)]
pub struct Read {
    /// Objects read.
    pub objects: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Objects that are wrong, and why.
    pub damaged: Vec<(ObjectKey, Damaged)>,
    /// Pages whose checksum is wrong.
    pub suspects: Vec<Suspect>,
    /// Objects with such pages that are not among them: there are too many.
    pub unjudged: BTreeSet<ObjectKey>,
    /// Objects that were listed and are gone.
    pub gone: HashSet<ObjectKey>,
    /// Objects that could not be looked at, and why: nothing is known of them.
    pub unread: Vec<Unread>,
    /// Objects that name another repository than the marker.
    pub foreign: u64,
}

impl Read {
    /// Adds what was read elsewhere.
    pub fn add(&mut self, other: Read) {
        self.objects += other.objects;
        self.bytes += other.bytes;
        self.damaged.extend(other.damaged);
        for suspect in other.suspects {
            self.suspect(suspect);
        }
        self.unjudged.extend(other.unjudged);
        self.gone.extend(other.gone);
        self.unread.extend(other.unread);
        self.foreign += other.foreign;
    }

    fn suspect(&mut self, suspect: Suspect) {
        match self.suspects.len() < SUSPECTS_ALL_MAX {
            true => self.suspects.push(suspect),
            false => drop(self.unjudged.insert(suspect.key)),
        }
    }
}

/// An object of which nothing can be said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    /// Which.
    pub key: ObjectKey,
    /// What hinders.
    pub reason: String,
    /// Whose fault it is.
    pub fault: Fault,
}

/// Why an object could not be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The store did not give it.
    Store,
    /// The key slot was not given the epoch that it is sealed under.
    Key,
}

/// What came of reading one object.
enum Got {
    Checked(Box<Checked>),
    Gone(ObjectKey),
    Unread(Unread),
}

/// Reads and judges objects in order, several at a time; `metas` is asked for the next one only when it is begun.
pub async fn read(
    store: &dyn Store,
    judge: &Arc<Judge>,
    metas: impl Iterator<Item = ObjectMeta>,
    progress: &dyn Progress,
) -> Result<Read, RepoError> {
    let mut read = Read::default();
    let reads = futures_util::stream::iter(metas)
        .map(|meta| check(store, judge.clone(), meta))
        .buffer_unordered(READS_IN_FLIGHT);
    futures_util::pin_mut!(reads);
    let mut failed = 0;
    while let Some(got) = reads.next().await {
        let checked = match got? {
            Got::Checked(checked) => *checked,
            Got::Gone(key) => {
                read.gone.insert(key);
                continue;
            }
            Got::Unread(unread) => {
                failed += usize::from(unread.fault == Fault::Store);
                if failed > UNREAD_MAX {
                    return Err(StoreError::Unknown { key: unread.key, reason: unread.reason }.into());
                }
                read.unread.push(unread);
                continue;
            }
        };
        read.objects += 1;
        read.bytes += checked.len;
        progress.advance(checked.len);
        read.foreign += u64::from(checked.says.is_some() && checked.says != judge.id);
        for suspect in checked.suspects {
            read.suspect(suspect);
        }
        match checked.verdict {
            Ok(()) => {}
            Err(Wrong::Damaged(damaged)) => read.damaged.push((checked.key, damaged)),
            Err(Wrong::NoKey(reason)) => {
                read.unread.push(Unread { key: checked.key, reason, fault: Fault::Key });
            }
        }
    }
    Ok(read)
}

/// An object that was read.
struct Checked {
    key: ObjectKey,
    len: u64,
    /// The repository that it names.
    says: Option<RepositoryId>,
    suspects: Vec<Suspect>,
    verdict: Result<(), Wrong>,
}

async fn check(store: &dyn Store, judge: Arc<Judge>, meta: ObjectMeta) -> Result<Got, RepoError> {
    if meta.len > OBJECT_BYTES_MAX {
        let reason =
            format!("{} bytes, no object has more than {OBJECT_BYTES_MAX}; it was not read", meta.len);
        let (says, suspects, verdict) = (None, Vec::new(), Err(Damaged::from(reason).into()));
        return Ok(Got::Checked(Box::new(Checked { key: meta.key, len: 0, says, suspects, verdict })));
    }
    let bytes = match get(store, &meta.key).await {
        Ok(bytes) => bytes,
        // Collected since it was listed; what refers to it, if anything, is found out by following references.
        Err(StoreError::NotFound { key }) => return Ok(Got::Gone(key)),
        Err(StoreError::Unknown { key, reason }) => {
            return Ok(Got::Unread(Unread { key, reason, fault: Fault::Store }));
        }
        Err(error @ (StoreError::Unreadable { .. } | StoreError::Short { .. })) => {
            let (says, suspects) = (None, Vec::new());
            let verdict = Err(Damaged::from(error.to_string()).into());
            return Ok(Got::Checked(Box::new(Checked { key: meta.key, len: 0, says, suspects, verdict })));
        }
        Err(error) => return Err(error.into()),
    };
    let look = judge.look(&meta);
    let (key, len) = (meta.key, bytes.len() as u64);
    // What is sealed under an epoch that came while this reads has its epoch looked for.
    let keys = match &judge.repo {
        Some(repo) => Some(repo.keys_of(&bytes).await?),
        None => None,
    };
    // Checksums, seals and decompression keep a core busy: off the runtime's threads.
    let checking = tokio::task::spawn_blocking(move || {
        let says = repository_of(&key, &bytes);
        let mut suspects = Vec::new();
        let verdict = judge.object(&key, bytes, keys.as_deref(), look, &mut suspects);
        Got::Checked(Box::new(Checked { key, len, says, suspects, verdict }))
    });
    Ok(checking.await.unwrap_or_else(|died| std::panic::resume_unwind(died.into_panic())))
}

/// The bytes of an object, asked for again while the store does not say whether it has them.
async fn get(store: &dyn Store, key: &ObjectKey) -> Result<Bytes, StoreError> {
    let mut wait = TRY_WAIT;
    for _ in 1..TRIES_MAX {
        match store.get(key).await {
            Err(StoreError::Unknown { .. }) => tokio::time::sleep(wait).await,
            other => return other,
        }
        wait *= 2;
    }
    store.get(key).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_too_long_for_an_object_is_named_and_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let store = crate::store::LocalStore::open(dir.path()).unwrap();
        let judge =
            Arc::new(Judge { repo: None, id: None, epochs: BTreeSet::new(), expected: None, proved: None });
        let key = ObjectKey::new("clusters/shop/segments/dump").unwrap();
        let meta = |len| ObjectMeta { key: key.clone(), len, modified_unix_micros: 0 };
        let metas = [meta(OBJECT_BYTES_MAX), meta(200 << 30)];
        let read = read(&store, &judge, metas.into_iter(), &crate::base::Unwatched).await.unwrap();
        // The first one was asked for, and is not there.
        assert_eq!((read.gone.len(), read.damaged.len(), read.bytes), (1, 1, 0));
        assert!(read.damaged[0].1.reason.contains("it was not read"), "{}", read.damaged[0].1.reason);
    }
}
