//! A small repository with every kind of object, kept in memory, so that it can be damaged thousands of times.

use crate::common::crash::{Mode, World, simulate, unlock};
use crate::common::pg::temp_dir;
use crate::common::restoring::options;
use crate::common::sim_backup::Sent;
use crate::common::sim_server::SimServer;
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tokio::sync::watch;
use walden::base::{Anonymous, BackupId, Clock, Env, LsnRange, ObjectKey, TimelineId, Unwatched};
use walden::codec::keyslot::{self, SlotCost, Unlock};
use walden::disk::{OsEntropy, SystemClock};
use walden::format::header::{ObjectHeader, ObjectKind};
use walden::operate::Failure;
use walden::receive::compact::{self, DeltaOptions, Extent};
use walden::repo::{Cluster, RepoError, Repository, WalReader, layout, walmap};
use walden::restore::Target;
use walden::restore::run::plan;
use walden::retain::gc;
use walden::store::{ObjectMeta, Store, StoreError};
use walden::verify::{self, Options, Report};

/// The cluster that is damaged, and the one that is not.
pub const CLUSTER: &str = "shop";
pub const OTHER: &str = "stall";

pub type Objects = BTreeMap<ObjectKey, Bytes>;

/// A whole repository, and what belongs into it.
pub struct Scene {
    pub objects: Arc<Objects>,
    pub backups: Vec<Sent>,
    pub range: LsnRange,
    pub wal: Vec<u8>,
}

/// The scene, made once.
pub fn scene() -> &'static Scene {
    static SCENE: OnceLock<Scene> = OnceLock::new();
    // On a thread of its own: its clock is not the caller's.
    SCENE.get_or_init(|| std::thread::spawn(|| simulate(make(1))).join().unwrap())
}

/// Two clusters, each with compacted and uncompacted WAL of two writers, two backups, one that was broken off, a floor.
async fn make(seed: u64) -> Scene {
    let mut world = World::new(seed, Mode::Object, 16 << 10).await;
    world.pace = Some(Duration::from_secs(360_000));
    add_slot(&mut world).await;
    world.server = SimServer::new(seed, 16 << 10, false);
    fill(&mut world, OTHER).await;
    world.server = SimServer::new(seed + 1, 16 << 10, false);
    let backups = fill(&mut world, CLUSTER).await;
    let (range, wal) = world.server.wal_until(world.server.acknowledged());
    Scene { objects: Arc::new(world.store.objects()), backups, range, wal }
}

/// A second slot, opened by a passphrase.
async fn add_slot(world: &mut World) {
    let repo = world.open(1).await.unwrap();
    let entropy = &*repo.env().entropy;
    let passphrase = Unlock::Passphrase("correct horse".to_owned().into());
    let (name, keys) = ("spare".parse().unwrap(), repo.keys());
    let newest = keys.newest();
    let made = keyslot::create_slot(&passphrase, repo.id(), &name, newest, SlotCost::LEAST, entropy);
    let (slot, public) = made.unwrap();
    let epoch = keyslot::seal_epoch(&public, newest, entropy);
    world.store.put(&layout::slot(&name), slot.into());
    world.store.put(&layout::epoch_slot(1, &name), epoch.into());
}

async fn fill(world: &mut World, name: &str) -> Vec<Sent> {
    world.cluster = name.parse().unwrap();
    let first = receive(world, 1).await;
    let cluster = open(world).await;
    compact::compact(&cluster, Some(DeltaOptions { cache_bytes: 10 << 20 }), Extent::All).await.unwrap();
    tokio::time::sleep(Duration::from_secs(400)).await;
    gc::collect(&cluster, Duration::from_secs(300)).await.unwrap();
    world.server.write_more(24 << 10);
    let second = receive(world, 2).await;
    let broken_off = world.backup(3).await;
    let registered = async {
        while cluster.newest_root().await.unwrap().pending.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        ended = broken_off => panic!("the backup that is to be broken off: {ended:?}"),
        () = registered => {}
    }
    vec![first, second]
}

async fn open(world: &mut World) -> Cluster {
    let repo = world.open(9).await.unwrap();
    Cluster::open(repo, world.cluster.clone()).await.unwrap()
}

/// Receives all that the server writes, takes a backup beside that, and says what it holds.
async fn receive(world: &mut World, client: u32) -> Sent {
    let (stop, stopped) = watch::channel(false);
    let receiving = world.receiver(client, stopped).await;
    let backing_up = world.backup(10 + client).await;
    let server = world.server.clone();
    let working = async {
        let made = backing_up.await.unwrap();
        while !server.is_finished() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        stop.send_replace(true);
        server.sent(made.entry.timeline, made.entry.start).unwrap()
    };
    let (ended, sent) = tokio::join!(receiving, working);
    ended.unwrap();
    sent
}

/// When everything of a scene was stored, by the store's clock: long ago, as every object that rots was.
const SCENE_UNIX_MICROS: i64 = 1_700_000_000_000_000;

/// What a store does when it is asked for an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fails {
    /// The sector under it is bad.
    Unreadable,
    /// As a whole it can be read, and parts of it cannot: what shows only to who decodes WAL, which is read in parts.
    InParts,
    /// Access is refused.
    Denied,
    /// Nobody knows: a 5xx.
    Unknown,
}

/// The objects of a scene, some of them other. Cannot be written to, unless it is told; what is written is not in the scene.
#[derive(Debug, Clone)]
pub struct Damaged {
    whole: Arc<Objects>,
    other: BTreeMap<ObjectKey, Option<Bytes>>,
    written: Option<Arc<Mutex<Objects>>>,
    /// What was stored at another time than the rest.
    modified: Arc<Mutex<BTreeMap<ObjectKey, i64>>>,
    fails: Vec<(String, Fails)>,
    /// Objects on every list that are gone when they are asked for.
    listed: Vec<ObjectKey>,
}

impl Damaged {
    pub fn nowhere() -> Damaged {
        Damaged::of(scene().objects.clone())
    }

    fn of(whole: Arc<Objects>) -> Damaged {
        Damaged {
            whole,
            other: BTreeMap::new(),
            written: None,
            modified: Arc::default(),
            fails: Vec::new(),
            listed: Vec::new(),
        }
    }

    /// Fails for every object whose name begins so.
    pub fn failing(mut self, prefix: &str, fails: Fails) -> Damaged {
        self.fails.push((prefix.to_owned(), fails));
        self
    }

    /// Removes an object that lists go on to show: it went after they were made.
    pub fn gone_since(mut self, key: &ObjectKey) -> Damaged {
        self.listed.push(key.clone());
        self.with(key, None)
    }

    /// Says when an object was stored.
    pub fn stored_at(self, key: &ObjectKey, unix_micros: i64) -> Damaged {
        self.modified.lock().unwrap().insert(key.clone(), unix_micros);
        self
    }

    fn failure(&self, key: &ObjectKey) -> Result<(), StoreError> {
        let fails = self.fails.iter().find(|(prefix, _)| key.as_str().starts_with(prefix));
        let (key, reason) = (key.clone(), "as was asked".to_owned());
        match fails {
            None | Some((_, Fails::InParts)) => Ok(()),
            Some((_, Fails::Unreadable)) => Err(StoreError::Unreadable { key, reason }),
            Some((_, Fails::Denied)) => Err(StoreError::Denied { key, reason }),
            Some((_, Fails::Unknown)) => Err(StoreError::Unknown { key, reason }),
        }
    }

    /// Some objects alone.
    pub fn only(kept: impl Fn(&ObjectKey) -> bool) -> Damaged {
        let objects = scene().objects.iter().filter(|(key, _)| kept(key));
        let whole = objects.map(|(key, bytes)| (key.clone(), bytes.clone())).collect();
        Damaged::of(Arc::new(whole))
    }

    /// Lets it be written to.
    pub fn writable(self) -> Damaged {
        Damaged { written: Some(Arc::default()), ..self }
    }

    /// The objects that were written.
    pub fn written(&self) -> Objects {
        self.written.as_ref().unwrap().lock().unwrap().clone()
    }

    /// The objects.
    pub fn objects(&self) -> Arc<Objects> {
        self.whole.clone()
    }

    /// Puts other bytes, or nothing, in an object's place.
    pub fn with(mut self, key: &ObjectKey, bytes: Option<Bytes>) -> Damaged {
        self.other.insert(key.clone(), bytes);
        self
    }

    /// Changes an object that was written.
    pub fn alter(&self, key: &ObjectKey, change: impl FnOnce(&mut Vec<u8>)) {
        let mut written = self.written.as_ref().unwrap().lock().unwrap();
        let mut bytes = written[key].to_vec();
        change(&mut bytes);
        written.insert(key.clone(), bytes.into());
    }

    /// Flips bits of one byte.
    pub fn flipped(self, key: &ObjectKey, at: usize, bits: u8) -> Damaged {
        let mut bytes = self.whole[key].to_vec();
        bytes[at] ^= bits;
        self.with(key, Some(bytes.into()))
    }

    fn find(&self, key: &ObjectKey) -> Result<Bytes, StoreError> {
        let written = self.written.as_ref().and_then(|written| written.lock().unwrap().get(key).cloned());
        let found = self.other.get(key).map_or_else(|| self.whole.get(key).cloned(), Clone::clone);
        written.or(found).ok_or_else(|| StoreError::NotFound { key: key.clone() })
    }

    fn keys(&self) -> BTreeSet<ObjectKey> {
        let written =
            self.written.as_ref().map(|written| written.lock().unwrap().clone()).unwrap_or_default();
        self.whole.keys().chain(self.other.keys()).chain(written.keys()).cloned().collect()
    }
}

#[async_trait]
impl Store for Damaged {
    async fn create(&self, key: &ObjectKey, body: Bytes) -> Result<(), StoreError> {
        let Some(written) = &self.written else {
            return Err(StoreError::Denied { key: key.clone(), reason: "read-only".into() });
        };
        if self.find(key).is_ok() {
            return Err(StoreError::AlreadyExists { key: key.clone() });
        }
        written.lock().unwrap().insert(key.clone(), body);
        self.modified.lock().unwrap().insert(key.clone(), SystemClock.now().unix_micros());
        Ok(())
    }

    async fn get(&self, key: &ObjectKey) -> Result<Bytes, StoreError> {
        self.failure(key)?;
        self.find(key)
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.failure(key)?;
        if self.fails.iter().any(|(prefix, fails)| key.as_str() == prefix && *fails == Fails::InParts) {
            return Err(StoreError::Unreadable { key: key.clone(), reason: "as was asked".to_owned() });
        }
        let bytes = self.find(key)?;
        if range.end > bytes.len() as u64 {
            return Err(StoreError::Short { key: key.clone(), wanted: range.end });
        }
        Ok(bytes.slice(range.start as usize..range.end as usize))
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta, StoreError> {
        let len = self.find(key)?.len() as u64;
        let modified_unix_micros =
            self.modified.lock().unwrap().get(key).copied().unwrap_or(SCENE_UNIX_MICROS);
        Ok(ObjectMeta { key: key.clone(), len, modified_unix_micros })
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        let below =
            |key: &&ObjectKey| key.as_str().strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'));
        let mut found = Vec::new();
        for key in self.keys().iter().filter(below) {
            found.extend(self.head(key).await.ok());
        }
        for key in self.listed.iter().filter(below) {
            let (key, len) = (key.clone(), self.whole[key].len() as u64);
            found.push(ObjectMeta { key, len, modified_unix_micros: SCENE_UNIX_MICROS });
        }
        Ok(found)
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        match &self.written {
            Some(written) if written.lock().unwrap().remove(key).is_some() => Ok(()),
            _ => Err(StoreError::Denied { key: key.clone(), reason: "read-only".into() }),
        }
    }

    fn url(&self) -> String {
        "memory".into()
    }
}

fn env() -> Env {
    Env { clock: Arc::new(SystemClock), entropy: Arc::new(OsEntropy), scratch: Arc::new(Anonymous) }
}

/// What `walden verify` finds.
pub async fn verified(store: &Damaged) -> Result<Report, RepoError> {
    verified_with(store, Options::WHOLE).await
}

/// What it finds with options.
pub async fn verified_with(store: &Damaged, options: Options) -> Result<Report, RepoError> {
    verify::unlocking(Arc::new(store.clone()), &unlock(), env(), options, &Unwatched).await
}

/// The cluster that is damaged, opened.
pub async fn cluster(store: &Damaged) -> Result<Cluster, RepoError> {
    let repo = Repository::open(Arc::new(store.clone()), &unlock(), env()).await?;
    Cluster::open(Arc::new(repo), CLUSTER.parse().unwrap()).await
}

/// The same, whatever its newest root is like.
pub async fn cluster_unread(store: &Damaged) -> Cluster {
    let repo = Repository::open(Arc::new(store.clone()), &unlock(), env()).await.unwrap();
    Cluster::unchecked(Arc::new(repo), CLUSTER.parse().unwrap())
}

/// The files that a restore of one backup gives, as soon as it is consistent.
pub async fn restored_backup(store: &Damaged, number: usize) -> Result<Sent, Failure> {
    let cluster = cluster(store).await?;
    let ids = backup_ids();
    let dir = temp_dir();
    let mut options = options(&dir.path().join("restored"));
    options.request.target = Target::Immediate;
    options.request.backup = Some(ids[number].to_string());
    plan(&cluster, &options).await?.execute(Arc::new(Unwatched)).await?;
    read_back(&options.target_dir, number)
}

/// The ids of the two backups, oldest first.
pub fn backup_ids() -> &'static [BackupId] {
    static IDS: OnceLock<Vec<BackupId>> = OnceLock::new();
    IDS.get_or_init(|| {
        std::thread::spawn(|| {
            block_on(async {
                let cluster = cluster(&Damaged::nowhere()).await.unwrap();
                let index = walmap::load(&cluster).await.unwrap().index;
                index.backups.into_iter().map(|backup| backup.id).collect()
            })
        })
        .join()
        .unwrap()
    })
}

fn read_back(dir: &Path, number: usize) -> Result<Sent, Failure> {
    let mut files = Sent::new();
    for path in scene().backups[number].keys() {
        match fs::read(dir.join(path)) {
            Ok(content) => drop(files.insert(path.clone(), content)),
            Err(error) => panic!("{path}: {error}"),
        }
    }
    Ok(files)
}

/// What `walden verify --no-key` finds.
pub async fn verified_without_key(store: &Damaged) -> Result<Report, RepoError> {
    verify::without_key(store, &Unwatched).await
}

/// Backups of the cluster that a report says are hurt.
pub fn hurt(report: &Report) -> BTreeSet<&BackupId> {
    report.findings.iter().flat_map(|finding| &finding.backups).collect()
}

/// Whether a report names the object.
pub fn names(report: &Report, key: &ObjectKey) -> bool {
    report.findings.iter().any(|finding| finding.key == key.as_str())
}

/// What a restore gives: the files of the newest backup, and all WAL.
pub async fn restored(store: &Damaged) -> Result<(Sent, Vec<u8>), Failure> {
    let cluster = cluster(store).await?;
    let dir = temp_dir();
    let options = options(&dir.path().join("restored"));
    let done = plan(&cluster, &options).await?.execute(Arc::new(Unwatched)).await?;
    assert!(done.written.files > 0);
    let files = read_back(&options.target_dir, 1)?;
    let map = walmap::load(&cluster).await?.wal;
    let wal = WalReader::new(cluster, map).read(TimelineId(1), scene().range).await?;
    Ok((files, wal))
}

/// A runtime for one test.
pub fn block_on<T>(body: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(body)
}

/// What kind of object a key names, and whether it is of the cluster that is damaged.
pub fn kind(key: &ObjectKey) -> Option<&'static str> {
    let parts: Vec<&str> = key.as_str().split('/').collect();
    Some(match parts.as_slice() {
        ["walden"] => "marker",
        ["keys", "epochs", ..] => "sealed epoch",
        ["keys", _] => "key slot",
        ["clusters", CLUSTER, folder, ..] => match *folder {
            "generations" => "generation",
            "roots" => "root",
            "floors" => "floor",
            "wal" => wal_kind(key),
            "index" => "index",
            "segments" => segment_kind(key),
            "backups" => "manifest",
            "pending" => "pending",
            other => panic!("{other}"),
        },
        _ => return None,
    })
}

/// A flush object, or the fence that ends its stream.
fn wal_kind(key: &ObjectKey) -> &'static str {
    match ObjectHeader::decode(&scene().objects[key]) {
        Ok((header, _)) if header.kind == ObjectKind::Fence => "fence",
        _ => "flush object",
    }
}

/// Chunks, or WAL, with deltas or without.
fn segment_kind(key: &ObjectKey) -> &'static str {
    static DELTAS: OnceLock<BTreeSet<ObjectKey>> = OnceLock::new();
    let deltas = DELTAS.get_or_init(|| {
        std::thread::spawn(|| {
            block_on(async {
                let cluster = cluster(&Damaged::nowhere()).await.unwrap();
                let index = walmap::load(&cluster).await.unwrap().index;
                let with = index.wal.iter().filter(|entry| entry.deltas.is_some());
                with.map(|entry| layout::segment(cluster.name(), entry.id)).collect()
            })
        })
        .join()
        .unwrap()
    });
    match ObjectHeader::decode(&scene().objects[key]) {
        Ok((header, _)) if header.kind == ObjectKind::PagesSegment => "segment of pages",
        _ if deltas.contains(key) => "segment of deltas",
        _ => "segment of WAL",
    }
}
