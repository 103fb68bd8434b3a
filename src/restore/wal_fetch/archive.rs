//! The repository as the server sees it: opened at the first question, looked at anew when something newer is asked for.

use super::pages::RestoredPages;
use super::stage::{Archive, Trouble};
use crate::base::{Env, Lsn, LsnRange, TimelineId};
use crate::format::index::WalEntry;
use crate::repo::walmap::{self, Snapshot};
use crate::repo::walread::Reading;
use crate::repo::{Cluster, Index, RepoError, Repository, WalMap};
use crate::restore::archive::{Loaded, PathReader, load};
use crate::restore::error::RestoreError;
use crate::restore::recovery_file::{RecoveryFile, RepositoryPlace};
use crate::store::{self, StoreError, StoreOptions};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::{Mutex, OwnedMutexGuard};

/// Readers, each with a segment open: one for who waits, and one for each fetch ahead.
const READERS_MAX: usize = 4;

/// A repository that is reached by a recovery file.
#[derive(Debug)]
pub struct RepoArchive {
    file: RecoveryFile,
    env: Env,
    opened: Mutex<Option<Arc<Opened>>>,
}

#[derive(Debug)]
struct Opened {
    cluster: Cluster,
    histories: Vec<(TimelineId, Bytes)>,
    run: LsnRange,
    readers: Arc<Vec<Mutex<PathReader>>>,
    /// Held while a WAL segment is read, where it stands as delta frames: they are decoded in order.
    turn: Option<Arc<Mutex<()>>>,
}

/// Opens the repository at `place` with its own secret source. Blocks a thread while the secret is fetched and derived.
pub async fn open_repository(place: &RepositoryPlace, env: Env) -> Result<Repository, RestoreError> {
    let store = store::open(&place.url, &store_options(place)).map_err(RepoError::from)?;
    let secret = place.secret.clone();
    let unlock = tokio::task::spawn_blocking(move || secret.unlock()).await;
    let unlock = unlock
        .map_err(|error| RestoreError::Key { reason: error.to_string() })?
        .map_err(|error| RestoreError::Key { reason: error.to_string() })?;
    Ok(Repository::open(store, &unlock, env).await?)
}

fn store_options(place: &RepositoryPlace) -> StoreOptions {
    StoreOptions::at(place.endpoint.as_deref(), place.region.as_deref())
}

impl RepoArchive {
    /// The archive of `file`. Nothing is opened yet.
    pub fn new(file: RecoveryFile, env: Env) -> Self {
        RepoArchive { file, env, opened: Mutex::new(None) }
    }

    /// What was opened; looked at anew when `enough` says it does not do.
    async fn opened(&self, enough: impl Fn(&Opened) -> bool) -> Result<Arc<Opened>, Trouble> {
        let mut opened = self.opened.lock().await;
        if let Some(known) = opened.as_ref().filter(|known| enough(known)) {
            return Ok(known.clone());
        }
        let cluster = match opened.as_ref() {
            Some(known) => known.cluster.clone(),
            None => self.open().await.map_err(trouble)?,
        };
        let fresh = Arc::new(self.look(cluster, opened.as_deref()).await.map_err(trouble)?);
        *opened = Some(fresh.clone());
        Ok(fresh)
    }

    async fn open(&self) -> Result<Cluster, RestoreError> {
        let repository = open_repository(&self.file.repository, self.env.clone()).await?;
        let cluster = Cluster::open(Arc::new(repository), self.file.cluster.clone()).await?;
        tracing::info!(cluster = %self.file.cluster, "opened the repository");
        Ok(cluster)
    }

    async fn look(&self, cluster: Cluster, before: Option<&Opened>) -> Result<Opened, RestoreError> {
        let snapshot = walmap::load(&cluster).await?;
        let kept = self.needed(snapshot);
        let loaded = load(&cluster, &kept, self.file.generation).await?;
        let own = kept.index.histories.iter().filter(|history| history.generation == self.file.generation);
        let histories =
            own.map(|history| (history.timeline, Bytes::from(history.content.0.clone()))).collect();
        let reader = || {
            let pages = RestoredPages::new(self.file.backup.clone(), self.file.data_dir.clone());
            PathReader::new(&cluster, &loaded, &self.file.path, Reading::Exact)
                .with_near_pages(Box::new(pages))
        };
        let first = reader();
        let run = run(&first, &loaded, &self.file)?;
        if !first.has_deltas() {
            let readers = (0..READERS_MAX).map(|_| Mutex::new(reader())).collect();
            return Ok(Opened { cluster, histories, run, readers: Arc::new(readers), turn: None });
        }
        // One reader, which goes on where it is: another would have to decode the epoch from its start.
        let (readers, turn) =
            match before.and_then(|before| Some((before.readers.clone(), before.turn.clone()?))) {
                Some((readers, turn)) => {
                    for known in readers.iter() {
                        known.lock().await.look_at(&loaded, &self.file.path);
                    }
                    (readers, turn)
                }
                None => (Arc::new(vec![Mutex::new(first)]), Arc::default()),
            };
        Ok(Opened { cluster, histories, run, readers, turn: Some(turn) })
    }

    /// The snapshot without WAL that recovery does not need: readers hold a copy each. An epoch of deltas is needed from its start.
    fn needed(&self, snapshot: Snapshot) -> Snapshot {
        let on_path = |timeline: TimelineId| self.file.path.legs().iter().any(|leg| leg.timeline == timeline);
        let mut wal = snapshot.index.wal;
        let epoch = |entry: &WalEntry| entry.deltas.as_ref().map(|deltas| deltas.epoch.id);
        let read = |entry: &WalEntry| entry.end > self.file.wal.start && on_path(entry.timeline);
        let epochs: BTreeSet<[u8; 16]> =
            wal.iter().filter(|entry| read(entry)).filter_map(epoch).map(|id| id.0).collect();
        wal.retain(|entry| read(entry) || epoch(entry).is_some_and(|id| epochs.contains(&id.0)));
        let index = Index { wal, pages: Vec::new(), ..snapshot.index };
        let chains = snapshot.wal.chains().to_vec();
        let wal = Arc::new(WalMap::new(snapshot.wal.generation(), &index, chains));
        Snapshot { wal, root: snapshot.root, index }
    }
}

/// The hole-free WAL from the start of recovery on. What was durable when the restore was made still has to be there.
fn run(reader: &PathReader, loaded: &Loaded, file: &RecoveryFile) -> Result<LsnRange, RestoreError> {
    let start = file.wal.start;
    let end = reader.contiguous_end(start);
    if end < file.wal.end {
        return Err(RestoreError::Damage {
            what: format!("WAL of generation {} of cluster {}", loaded.record.generation, file.cluster),
            reason: format!("{end} follows {start} without a hole, recovery needs {}", file.wal.end),
        });
    }
    Ok(LsnRange::new(start, end))
}

#[async_trait]
impl Archive for RepoArchive {
    async fn run(&self, from: Lsn) -> Result<LsnRange, Trouble> {
        Ok(self.opened(|known| from <= known.run.end).await?.run)
    }

    async fn history(&self, timeline: TimelineId) -> Result<Option<Bytes>, Trouble> {
        let has = |known: &Opened| {
            known.histories.iter().find(|(t, _)| *t == timeline).map(|(_, content)| content.clone())
        };
        let known = self.opened(|known| has(known).is_some()).await?;
        Ok(has(&known))
    }

    async fn histories(&self) -> Result<Vec<TimelineId>, Trouble> {
        let known = self.opened(|_| true).await?;
        Ok(known.histories.iter().map(|(timeline, _)| *timeline).collect())
    }

    async fn turn(&self) -> Result<Option<OwnedMutexGuard<()>>, Trouble> {
        match self.opened(|_| true).await?.turn.clone() {
            Some(turn) => Ok(Some(turn.lock_owned().await)),
            None => Ok(None),
        }
    }

    async fn read_some(&self, range: LsnRange) -> Result<Bytes, Trouble> {
        let known = self.opened(|_| true).await?;
        // A free reader, preferring the one that read the same segment before.
        let preferred = (range.start.get() / self.file.segment_size.bytes()) as usize;
        let readers = known.readers.len();
        for step in 0..readers {
            let number = (preferred + step) % readers;
            if let Some(Ok(mut reader)) = known.readers.get(number).map(|reader| reader.try_lock()) {
                return reader.read(range).await.map_err(|error| trouble(error.into()));
            }
        }
        match known.readers.get(preferred % readers) {
            Some(reader) => reader.lock().await.read(range).await.map_err(|error| trouble(error.into())),
            None => Err(Trouble::Lasting("no reader".into())),
        }
    }
}

/// Whether it may pass. A store that cannot be reached may come back; so may one that is being mended, and room on a full disk.
fn trouble(error: RestoreError) -> Trouble {
    let reason = error.to_string();
    match error {
        RestoreError::Repo(RepoError::Store(StoreError::Url { .. } | StoreError::Unfit { .. })) => {
            Trouble::Lasting(reason)
        }
        RestoreError::Repo(RepoError::Store(_) | RepoError::NoRoom { .. })
        | RestoreError::Io { .. }
        | RestoreError::NoSpace { .. } => Trouble::Passing(reason),
        _ => Trouble::Lasting(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ObjectKey;
    use crate::disk::SecretSource;

    #[test]
    fn what_may_pass_is_waited_for() {
        let passes = |error| matches!(trouble(RestoreError::Repo(error)), Trouble::Passing(_));
        let key = ObjectKey::new("clusters/shop/segments/1").unwrap();
        assert!(passes(RepoError::NoRoom { bytes: 1, reason: "no space left".into() }));
        assert!(passes(RepoError::Store(StoreError::NotFound { key: key.clone() })));
        assert!(!passes(RepoError::damage(&key, "a bit flipped")));
    }

    #[test]
    fn the_repository_is_reached_where_the_restore_reached_it() {
        let place = RepositoryPlace {
            url: "s3://bucket/walden".into(),
            endpoint: Some("https://s3.example.org".into()),
            region: Some("eu-7".into()),
            secret: SecretSource::KeyFile("/k".into()),
        };
        let options = store_options(&place);
        assert_eq!((options.endpoint, options.region), (place.endpoint, place.region));
    }

    #[test]
    fn a_store_may_come_back_and_a_wrong_key_may_not() {
        let key = ObjectKey::new("a").unwrap_or_else(|| unreachable!("a plain name"));
        let unknown = RepoError::Store(StoreError::Unknown { key, reason: "cut".into() });
        assert!(matches!(trouble(unknown.into()), Trouble::Passing(_)));
        assert!(matches!(trouble(RestoreError::Key { reason: "no".into() }), Trouble::Lasting(_)));
        assert!(matches!(trouble(RepoError::Key { reason: "no".into() }.into()), Trouble::Lasting(_)));
    }
}
