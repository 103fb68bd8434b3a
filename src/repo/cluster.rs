//! One cluster of a repository: its generation, and the commit loop. Spec: formats/root.md.
//! A commit is the creation of the next root; whoever loses the race reads the winner's and decides again.

use super::error::RepoError;
use super::index::{self, Index, IndexEdit};
use super::index_cache::IndexCache;
use super::layout;
use super::repository::{Created, Repository};
use super::roots::{self, NONE};
use super::slots;
use crate::base::planted::{Bug, planted};
use crate::base::{ClusterName, limits};
use crate::format::header::ObjectKind;
use crate::format::record::Record;
use crate::format::root::{GenerationRecord, ROOT_BYTES_MAX, Root};
use crate::store::StoreError;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Races a commit may lose before it gives up; each lost one means that somebody else made progress.
const COMMIT_TRIES_MAX: u32 = 100;

/// A cluster of a repository. Clones share what was learned.
#[derive(Debug, Clone)]
pub struct Cluster {
    repo: Arc<Repository>,
    name: ClusterName,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root_known: AtomicU64,
    last_commit: Mutex<Option<Instant>>,
}

/// What a commit changes.
#[derive(Debug)]
pub struct RootChange {
    /// The next root; `number`, `made_at`, `floor` and `index` are set by the commit.
    pub root: Root,
    /// What becomes of the index.
    pub index: IndexEdit,
}

impl RootChange {
    /// Changes the root alone.
    pub fn of(root: Root) -> Self {
        RootChange { root, index: IndexEdit::Keep }
    }
}

impl Cluster {
    /// The cluster `name`. [`RepoError::NotFound`] when the repository has none of that name, [`RepoError::Deleted`] when it had.
    pub async fn open(repo: Arc<Repository>, name: ClusterName) -> Result<Cluster, RepoError> {
        let cluster = Cluster::unchecked(repo, name);
        match cluster.find_root().await? {
            Some((root, _)) => cluster.refuse_deleted(&root).map(|()| cluster),
            None => Err(RepoError::NotFound {
                what: format!("cluster {}", cluster.name),
                url: cluster.repo.store().url(),
            }),
        }
    }

    /// The cluster `record.cluster`, made if it is not there. Refuses another system identifier, version or geometry
    /// than the current generation's, and a cluster that was deleted.
    pub async fn create(repo: Arc<Repository>, record: GenerationRecord) -> Result<Cluster, RepoError> {
        let cluster = Cluster::unchecked(repo, record.cluster.clone());
        if cluster.find_root().await?.is_none() {
            cluster.create_first(&record).await?;
        }
        cluster.check_server(&record).await?;
        Ok(cluster)
    }

    /// The cluster `name`, whether it is there or not: for who looks into what is damaged.
    pub fn unchecked(repo: Arc<Repository>, name: ClusterName) -> Cluster {
        let shared = Shared { root_known: AtomicU64::new(NONE), last_commit: Mutex::new(None) };
        Cluster { repo, name, shared: Arc::new(shared) }
    }

    /// The repository.
    pub fn repo(&self) -> &Arc<Repository> {
        &self.repo
    }

    /// The name.
    pub fn name(&self) -> &ClusterName {
        &self.name
    }

    /// The newest root.
    pub async fn newest_root(&self) -> Result<Root, RepoError> {
        match self.find_root().await? {
            Some((root, _)) => Ok(root),
            None => Err(RepoError::NotFound {
                what: format!("cluster {}", self.name),
                url: self.repo.store().url(),
            }),
        }
    }

    /// The index of `root`.
    pub async fn index(&self, root: &Root) -> Result<Index, RepoError> {
        index::load(self, root.index).await
    }

    /// Commits what `edit` makes of the newest root; asks it again when another commit came first. `None` from `edit`
    /// means that there is nothing to do. Durable on `Ok`. If dropped: not committed, or committed whole.
    ///
    /// # Errors
    /// What `edit` answers, or [`RepoError::Conflict`] when the root won was void (a stalled process below the floor).
    pub async fn commit<E: From<RepoError>>(
        &self,
        mut edit: impl FnMut(&Root) -> Result<Option<RootChange>, E>,
    ) -> Result<Root, E> {
        self.commit_loop(None, |root, _| edit(root)).await
    }

    /// [`Cluster::commit`] for an edit that depends on the index too.
    pub async fn commit_indexed<E: From<RepoError>>(
        &self,
        edit: impl FnMut(&Root, &Index) -> Result<Option<RootChange>, E>,
    ) -> Result<Root, E> {
        self.commit_cached(&mut IndexCache::default(), edit).await
    }

    /// The same for who commits again and again: the index is read as `cache` says.
    pub async fn commit_cached<E: From<RepoError>>(
        &self,
        cache: &mut IndexCache,
        edit: impl FnMut(&Root, &Index) -> Result<Option<RootChange>, E>,
    ) -> Result<Root, E> {
        self.commit_loop(Some(cache), edit).await
    }

    async fn commit_loop<E: From<RepoError>>(
        &self,
        mut cache: Option<&mut IndexCache>,
        mut edit: impl FnMut(&Root, &Index) -> Result<Option<RootChange>, E>,
    ) -> Result<Root, E> {
        let mut last_commit = self.shared.last_commit.lock().await;
        let unread = Index::default();
        for _ in 0..COMMIT_TRIES_MAX {
            let Some((base, floor)) = self.find_root().await? else {
                let what = format!("cluster {}", self.name);
                return Err(RepoError::NotFound { what, url: self.repo.store().url() }.into());
            };
            let index = match &mut cache {
                Some(cache) => cache.at(self, &base).await,
                None => Ok(&unread),
            };
            let Some(index) = self.unless_moved(&base, index).await? else { continue };
            let Some(change) = edit(&base, index)? else { return Ok(base) };
            self.refuse_revival(&base, &change)?;
            // After the root that it builds on: what was made before that root is known then (formats/keys.md).
            self.follow_epochs().await?;
            if let Some(before) = *last_commit {
                tokio::time::sleep_until(before + limits::ROOT_INTERVAL).await;
            }
            *last_commit = Some(Instant::now());
            let mut root = change.root;
            root.number = base.number + 1;
            root.made_at = self.repo.env().clock.now();
            root.floor = floor;
            let added = match &change.index {
                IndexEdit::Add(page) if cache.is_some() => Some(page.clone()),
                IndexEdit::Keep | IndexEdit::Add(_) | IndexEdit::Rewrite(_) => None,
            };
            // Index before root: a root never names what is not there.
            let written = index::write(self, base.index, change.index, root.number).await;
            let Some(written) = self.unless_moved(&base, written).await? else { continue };
            root.index = written.filter(|_| root.deleted_at.is_none());
            match self.create_root(&root).await? {
                NewRoot::Won => {
                    if let (Some(cache), Some(page)) = (cache, added) {
                        cache.added(page, &base, &root);
                    }
                    return Ok(root);
                }
                NewRoot::Taken => {}
                NewRoot::Void { floor } => return Err(void(root.number, floor).into()),
            }
        }
        let reason = format!("cluster {}: lost {COMMIT_TRIES_MAX} races for the next root", self.name);
        Err(RepoError::Conflict { reason }.into())
    }

    /// Creates the same root under each of `numbers` in turn, out of `base`, the newest root that can be read: what lies between is damaged
    /// or gone, and [`Cluster::commit`] builds on the newest alone. `change.root.index` is the index object that `change.index` builds on.
    /// Returns the last of them. Durable on `Ok`. If dropped: those before some number are there.
    ///
    /// # Errors
    /// [`RepoError::Conflict`] when a number is taken, or the floor is above `base`, so that what it leads to may be gone: no root has that
    /// number then, unless it says that one was made and the floor rose beside it.
    pub async fn commit_over(
        &self,
        base: &Root,
        numbers: &[u64],
        change: RootChange,
    ) -> Result<Root, RepoError> {
        self.follow_epochs().await?;
        let (mut floor, least) = self.floor_after(base.floor).await?;
        if least > base.number {
            return Err(void(base.number, least));
        }
        let mut root = change.root;
        // Before the roots that lead to it, and for the last of them: as long as that is not there, collection leaves it.
        let last = numbers.last().copied().unwrap_or(root.number);
        root.index = index::write(self, root.index, change.index, last).await?;
        for number in numbers {
            root.number = *number;
            root.made_at = self.repo.env().clock.now();
            root.floor = floor;
            match self.create_root(&root).await? {
                NewRoot::Won => {}
                NewRoot::Taken => {
                    let reason = format!("somebody else committed root {number} meanwhile: look again");
                    return Err(RepoError::Conflict { reason });
                }
                NewRoot::Void { floor } => return Err(void(*number, floor)),
            }
            let least;
            (floor, least) = self.floor_after(floor).await?;
            if least > base.number {
                return Err(went_on(&root, base.number, least));
            }
        }
        Ok(root)
    }

    /// The number of the newest floor, from `known` on, and the least root that it keeps.
    async fn floor_after(&self, known: u64) -> Result<(u64, u64), RepoError> {
        let floor = roots::newest_floor(&self.repo, &self.name, known).await?;
        Ok(floor.map_or((NONE, NONE), |floor| (floor.number, floor.root)))
    }

    pub(super) fn refuse_deleted(&self, root: &Root) -> Result<(), RepoError> {
        match root.deleted_at {
            Some(at) => Err(RepoError::Deleted { cluster: self.name.to_string(), at }),
            None => Ok(()),
        }
    }

    /// After the last root of a deleted cluster comes the same again, or the first root of the next generation: whoever woke up
    /// late does not bring anything back.
    fn refuse_revival(&self, base: &Root, change: &RootChange) -> Result<(), RepoError> {
        let begins_anew = change.root.generation > base.generation && change.root.streams == base.streams;
        let closed = |root: &Root| Root { streams: Vec::new(), ..root.clone() };
        let is_the_same = closed(&change.root) == closed(base)
            && (change.root.streams == base.streams || change.root.streams.is_empty())
            && matches!(change.index, IndexEdit::Keep);
        if begins_anew || is_the_same { Ok(()) } else { self.refuse_deleted(base) }
    }

    /// What was read of `root`; `None` when something that it refers to is gone because a newer root took its place: this process
    /// stalled while others went on.
    pub(crate) async fn unless_moved<T>(
        &self,
        root: &Root,
        read: Result<T, RepoError>,
    ) -> Result<Option<T>, RepoError> {
        match read {
            Err(error) if object_is_gone(&error) => match self.find_root().await? {
                Some((newest, _)) if newest.number > root.number => Ok(None),
                _ => Err(error),
            },
            read => read.map(Some),
        }
    }

    /// Creates `root`, unless another has its number.
    async fn create_root(&self, root: &Root) -> Result<NewRoot, RepoError> {
        let key = layout::root(&self.name, root.number);
        let body = root.encode();
        if body.len() > ROOT_BYTES_MAX {
            let reason = format!("root {} takes {} bytes, {ROOT_BYTES_MAX} at most", root.number, body.len());
            return Err(RepoError::Conflict { reason });
        }
        let writer = self.repo.writer(ObjectKind::Root, &key, [0; 16], root.number, root.writer_epoch);
        match self.repo.create(&key, &writer.finish(body).bytes).await? {
            Created::Taken(_) => return Ok(NewRoot::Taken),
            Created::Ours => {}
        }
        // A number below the floor may have been won before, and removed: winning it again is void.
        let floor = roots::newest_floor(&self.repo, &self.name, root.floor).await?;
        let floor = floor.filter(|floor| floor.root > root.number && !planted(Bug::FloorNotChecked));
        if let Some(floor) = floor {
            return Ok(NewRoot::Void { floor: floor.root });
        }
        self.shared.root_known.fetch_max(root.number, Ordering::Relaxed);
        Ok(NewRoot::Won)
    }

    /// Seals under the newest key epoch from now on, which everybody finds.
    pub(super) async fn follow_epochs(&self) -> Result<(), RepoError> {
        if let Err(epoch) = self.repo.follow_epochs().await? {
            let slot = self.repo.slot().name();
            tracing::warn!("key epoch {epoch} was not given to key slot {slot}, which opened the repository");
        }
        slots::settle(&self.repo).await
    }

    pub(super) async fn find_root(&self) -> Result<Option<(Root, u64)>, RepoError> {
        let known = self.shared.root_known.load(Ordering::Relaxed);
        let found = roots::newest_root(&self.repo, &self.name, known).await?;
        if let Some((root, _)) = &found {
            self.shared.root_known.fetch_max(root.number, Ordering::Relaxed);
        }
        Ok(found)
    }

    async fn create_first(&self, record: &GenerationRecord) -> Result<(), RepoError> {
        self.follow_epochs().await?;
        // Taken: an interrupted or concurrent start made it; `check_server` compares afterwards.
        self.create_generation(record).await?;
        let root = Root::first(self.name.clone(), record.generation, self.repo.env().clock.now());
        // Taken or void: others made the cluster meanwhile, in the latter case so long ago that its first root is gone.
        self.create_root(&root).await?;
        Ok(())
    }
}

/// What became of a root that was to be created.
enum NewRoot {
    Won,
    /// Another has its number.
    Taken,
    /// It was created below the floor, where nobody looks.
    Void {
        floor: u64,
    },
}

fn void(number: u64, floor: u64) -> RepoError {
    let reason = format!(
        "root {number} is below the floor {floor}: this process stalled while others went on; nothing was committed"
    );
    RepoError::Conflict { reason }
}

/// What is said when a root was made out of one that somebody else could let go.
fn went_on(root: &Root, base: u64, floor: u64) -> RepoError {
    let number = root.number;
    let reason = format!(
        "root {number} was made of root {base}, and collection let that go beside it (the floor is root {floor} by now): somebody could \
         read a newer root. What was committed after root {base} may be missing from root {number}, and what root {base} led to may be \
         gone: stop everything that writes, and see what `walden verify` says"
    );
    RepoError::Conflict { reason }
}

/// Whether an error says that an object that was referred to is not there: a reader plans again on the newest root.
pub fn object_is_gone(error: &RepoError) -> bool {
    matches!(error, RepoError::Store(StoreError::NotFound { .. }))
}
