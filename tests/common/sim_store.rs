//! A store that fails in every way a real one does, from a seed, under tokio's paused clock. Handles are clones of one store and outlive
//! any process; each belongs to a numbered client, which can be cut off or held up.
//!
//! A create or delete ends in one of five ways: done; failed before it was done; done but said to be unknown; duplicated (done, and the same
//! request done once more later); delayed (done at a later time, maybe long after the caller was told that nobody knows). Whatever was
//! sent is done even if the caller is gone. An honest store never overwrites, so that a late request finds the name taken,
//! unless it was removed in the meantime: then it is created again. `Lie` makes the store dishonest.

use async_trait::async_trait;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use walden::base::ObjectKey;
use walden::store::{ObjectMeta, Store, StoreError};

/// How often a create or delete ends otherwise than done; chances are of 1.
#[derive(Debug, Clone, Copy, Default)]
pub struct Chances {
    pub failed_before: f64,
    pub done_but_unknown: f64,
    pub duplicated: f64,
    pub delayed: f64,
}

/// How a store that does not keep its promise breaks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lie {
    #[default]
    None,
    /// Creates over what is there, and says Ok.
    Overwrites,
    /// Creates over what is there, and says that it exists.
    OverwritesAndSaysExists,
    /// Looks when the request arrives, and writes when it is done.
    Races,
}

/// What goes wrong, and how often.
#[derive(Debug, Clone)]
pub struct StoreFaults {
    pub create: Chances,
    pub delete: Chances,
    /// A get, head or list fails.
    pub read_fails: f64,
    /// How long an operation takes.
    pub latency: Range<Duration>,
    /// How much later a duplicated or delayed request is done.
    pub delay: Range<Duration>,
    /// When a caller is told that nobody knows.
    pub timeout: Duration,
    /// How old the state is that a list shows.
    pub list_age: Range<Duration>,
    /// How often a list leaves out an object.
    pub list_misses: f64,
    /// Bytes that the store holds.
    pub capacity: Option<u64>,
    /// Everything is refused.
    pub denies: bool,
    /// Everything that changes something is refused.
    pub read_only: bool,
    pub lie: Lie,
}

impl Default for StoreFaults {
    fn default() -> Self {
        StoreFaults {
            create: Chances::default(),
            delete: Chances::default(),
            read_fails: 0.0,
            latency: Duration::from_millis(1)..Duration::from_millis(20),
            delay: Duration::from_secs(1)..Duration::from_secs(120),
            timeout: Duration::from_secs(30),
            list_age: Duration::ZERO..Duration::ZERO,
            list_misses: 0.0,
            capacity: None,
            denies: false,
            read_only: false,
            lie: Lie::None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Done,
    FailedBefore,
    DoneButUnknown,
    Duplicated,
    Delayed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    Create(ObjectKey, Bytes),
    Delete(ObjectKey),
    Get(ObjectKey),
    GetRange(ObjectKey, Range<u64>),
    Head(ObjectKey),
    List(String),
}

/// One operation: what was asked, how it went, and what the caller was told.
#[derive(Debug, Clone)]
pub struct StoreOp {
    pub client: u32,
    pub asked_at: Duration,
    pub request: Request,
    pub verdict: Verdict,
    /// When it was done in the store, and whether that changed anything; twice if duplicated.
    pub done: Vec<(Duration, bool)>,
    /// `ok`, or the error's first word; `None` while the caller waits, or when it is gone.
    pub told: Option<String>,
}

impl StoreOp {
    /// Whether it creates an object whose key has `part`.
    pub fn creates(&self, part: &str) -> bool {
        matches!(&self.request, Request::Create(key, _) if key.as_str().contains(part))
    }
}

/// A handle of one client.
#[derive(Debug, Clone)]
pub struct SimStore {
    world: Arc<Mutex<World>>,
    changed: Arc<Notify>,
    client: u32,
}

#[derive(Debug)]
struct World {
    rng: fastrand::Rng,
    faults: StoreFaults,
    born: Instant,
    clock_unix_micros: i64,
    objects: BTreeMap<ObjectKey, Stored>,
    /// What was removed, and when: lists may still show it.
    removed: Vec<(ObjectKey, Stored, Duration)>,
    log: Vec<StoreOp>,
    cut: BTreeSet<u32>,
    held: BTreeSet<u32>,
    /// The requests that a client still makes before it is held up.
    stalls: BTreeMap<u32, u64>,
    /// What an object lock keeps.
    locked: BTreeSet<ObjectKey>,
    /// Clients that may only read.
    readers: BTreeSet<u32>,
}

#[derive(Debug, Clone)]
struct Stored {
    bytes: Bytes,
    at: Duration,
    modified_unix_micros: i64,
}

impl SimStore {
    /// An empty store, and client 0's handle. Its clock begins at 2026-11-22.
    pub fn new(seed: u64) -> Self {
        let world = World {
            rng: fastrand::Rng::with_seed(seed),
            faults: StoreFaults::default(),
            born: Instant::now(),
            clock_unix_micros: 1_795_377_301_000_000,
            objects: BTreeMap::new(),
            removed: Vec::new(),
            log: Vec::new(),
            cut: BTreeSet::new(),
            held: BTreeSet::new(),
            stalls: BTreeMap::new(),
            locked: BTreeSet::new(),
            readers: BTreeSet::new(),
        };
        SimStore { world: Arc::new(Mutex::new(world)), changed: Arc::new(Notify::new()), client: 0 }
    }

    /// The same store for another client.
    pub fn client(&self, client: u32) -> SimStore {
        SimStore { client, ..self.clone() }
    }

    /// Another store with the same objects, in which everything works.
    pub fn fork(&self) -> SimStore {
        let fork = SimStore::new(0);
        {
            let (mut theirs, ours) = (fork.world(), self.world());
            theirs.objects = ours.objects.clone();
            (theirs.born, theirs.clock_unix_micros) = (ours.born, ours.clock_unix_micros);
        }
        fork
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    pub fn set_faults(&self, faults: StoreFaults) {
        self.world().faults = faults;
    }

    pub fn faults(&self) -> StoreFaults {
        self.world().faults.clone()
    }

    /// Sets the store's own clock, that of Last-Modified, off by `micros`.
    pub fn skew_clock(&self, micros: i64) {
        self.world().clock_unix_micros += micros;
    }

    /// Cuts this client off: its requests do not arrive, and answers do not reach it; it is told so after the timeout.
    pub fn cut(&self, cut: bool) {
        let mut world = self.world();
        if cut {
            world.cut.insert(self.client)
        } else {
            world.cut.remove(&self.client)
        };
    }

    /// Holds this client up: its requests and answers wait, as those of a process that is stopped.
    pub fn hold(&self, held: bool) {
        let mut world = self.world();
        if held {
            world.held.insert(self.client)
        } else {
            world.held.remove(&self.client)
        };
        drop(world);
        self.changed.notify_waiters();
    }

    /// Holds this client up once it has made `requests` more: the answer to the last of them waits.
    pub fn hold_after(&self, requests: u64) {
        self.world().stalls.insert(self.client, requests);
    }

    /// Keeps these objects from being removed, and no others any more.
    pub fn lock(&self, locked: BTreeSet<ObjectKey>) {
        self.world().locked = locked;
    }

    /// Refuses everything with which `client` would change something.
    pub fn refuse_writes_of(&self, client: u32) {
        self.world().readers.insert(client);
    }

    /// Lets `client` change things again.
    pub fn allow_writes_of(&self, client: u32) {
        self.world().readers.remove(&client);
    }

    /// Whether this client is held up.
    pub fn is_held(&self) -> bool {
        self.world().held.contains(&self.client)
    }

    /// Everything that was asked, in order.
    pub fn log(&self) -> Vec<StoreOp> {
        self.world().log.clone()
    }

    /// What is stored now.
    pub fn objects(&self) -> BTreeMap<ObjectKey, Bytes> {
        self.world().objects.iter().map(|(key, stored)| (key.clone(), stored.bytes.clone())).collect()
    }

    /// Bytes stored now.
    pub fn used(&self) -> u64 {
        self.world().used()
    }

    /// Puts an object there, over whatever is there.
    pub fn put(&self, key: &ObjectKey, bytes: Bytes) {
        self.world().insert(key, bytes);
    }

    /// Changes an object's bytes.
    pub fn alter(&self, key: &ObjectKey, change: impl FnOnce(&mut Vec<u8>)) {
        let mut world = self.world();
        let stored = world.objects.get_mut(key).unwrap();
        let mut bytes = stored.bytes.to_vec();
        change(&mut bytes);
        stored.bytes = bytes.into();
    }

    /// Takes an object away.
    pub fn lose(&self, key: &ObjectKey) {
        self.world().objects.remove(key);
    }

    /// Waits until everything sent so far is done.
    pub async fn settle(&self) {
        let faults = self.faults();
        let last = faults.delay.end.max(faults.latency.end);
        tokio::time::sleep(last * 2 + Duration::from_secs(1)).await;
    }

    /// Until this client is neither held up nor, while `while_cut`, cut off.
    async fn pass(&self, key: &ObjectKey) -> Result<(), StoreError> {
        loop {
            let changed = self.changed.notified();
            let (held, cut, timeout) = {
                let world = self.world();
                (world.held.contains(&self.client), world.cut.contains(&self.client), world.faults.timeout)
            };
            if cut {
                tokio::time::sleep(timeout).await;
                return Err(unknown(key, "simulated cut"));
            }
            if !held {
                return Ok(());
            }
            changed.await;
        }
    }

    fn begin(&self, request: Request, verdict: Verdict) -> usize {
        let mut world = self.world();
        let stalls = world.stalls.get_mut(&self.client).is_some_and(|left| {
            *left = left.saturating_sub(1);
            *left == 0
        });
        if stalls {
            world.stalls.remove(&self.client);
            world.held.insert(self.client);
        }
        let asked_at = world.now();
        let op = StoreOp { client: self.client, asked_at, request, verdict, done: Vec::new(), told: None };
        world.log.push(op);
        world.log.len() - 1
    }

    fn tell<T>(&self, number: usize, result: Result<T, StoreError>) -> Result<T, StoreError> {
        let told = match &result {
            Ok(_) => "ok".to_owned(),
            Err(error) => format!("{error:?}").split([' ', '{']).next().unwrap_or_default().to_owned(),
        };
        self.world().log[number].told = Some(told);
        result
    }

    /// Has `request` done in the store after `after`, whatever becomes of the caller.
    fn send(&self, number: usize, after: Duration) -> oneshot::Receiver<Result<(), StoreError>> {
        let (answer, answered) = oneshot::channel();
        let world = self.world.clone();
        let there = world.lock().unwrap().there(number);
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            let _ = answer.send(world.lock().unwrap().do_it(number, there));
        });
        answered
    }

    /// Sends a request that changes something, to the end that chance gives it.
    async fn change(&self, key: &ObjectKey, request: Request) -> Result<(), StoreError> {
        self.pass(key).await?;
        let (verdict, latency, delay, timeout) = {
            let mut world = self.world();
            let chances = match request {
                Request::Create(..) => world.faults.create,
                _ => world.faults.delete,
            };
            let (latency, delay) = (world.faults.latency.clone(), world.faults.delay.clone());
            (world.verdict(chances), world.within(latency), world.within(delay), world.faults.timeout)
        };
        let number = self.begin(request, verdict);
        let gone = |_| unknown(key, "the store is gone");
        let result = match verdict {
            Verdict::FailedBefore => {
                tokio::time::sleep(latency).await;
                Err(unknown(key, "simulated failure before it was done"))
            }
            Verdict::Done => self.send(number, latency).await.map_err(gone)?,
            Verdict::DoneButUnknown => {
                self.send(number, latency).await.map_err(gone)?.ok();
                Err(unknown(key, "simulated loss of the answer"))
            }
            Verdict::Duplicated => {
                drop(self.send(number, latency + delay));
                self.send(number, latency).await.map_err(gone)?
            }
            Verdict::Delayed => match tokio::time::timeout(timeout, self.send(number, delay)).await {
                Ok(answer) => answer.map_err(gone)?,
                Err(_) => Err(unknown(key, "simulated timeout")),
            },
        };
        let result = self.pass(key).await.and(result);
        self.tell(number, result)
    }

    async fn look<T>(
        &self,
        key: &ObjectKey,
        request: Request,
        look: impl FnOnce(&mut World) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.pass(key).await?;
        let number = self.begin(request, Verdict::Done);
        let latency = {
            let mut world = self.world();
            let latency = world.faults.latency.clone();
            world.within(latency)
        };
        tokio::time::sleep(latency).await;
        let result = {
            let mut world = self.world();
            let chance = world.faults.read_fails;
            match chance > 0.0 && world.rng.f64() < chance {
                true => Err(unknown(key, "simulated failure of a read")),
                false if world.faults.denies => Err(denied(key)),
                false => look(&mut world),
            }
        };
        let result = self.pass(key).await.and(result);
        self.tell(number, result)
    }
}

impl World {
    fn now(&self) -> Duration {
        self.born.elapsed()
    }

    fn within(&mut self, range: Range<Duration>) -> Duration {
        if range.is_empty() {
            return range.start;
        }
        Duration::from_nanos(self.rng.u64(range.start.as_nanos() as u64..range.end.as_nanos() as u64))
    }

    fn verdict(&mut self, chances: Chances) -> Verdict {
        let mut drawn = self.rng.f64();
        let ways = [
            (chances.failed_before, Verdict::FailedBefore),
            (chances.done_but_unknown, Verdict::DoneButUnknown),
            (chances.duplicated, Verdict::Duplicated),
            (chances.delayed, Verdict::Delayed),
        ];
        for (chance, verdict) in ways {
            if drawn < chance {
                return verdict;
            }
            drawn -= chance;
        }
        Verdict::Done
    }

    fn used(&self) -> u64 {
        self.objects.values().map(|stored| stored.bytes.len() as u64).sum()
    }

    fn insert(&mut self, key: &ObjectKey, bytes: Bytes) {
        let at = self.now();
        let modified_unix_micros = self.clock_unix_micros + at.as_micros() as i64;
        self.objects.insert(key.clone(), Stored { bytes, at, modified_unix_micros });
    }

    /// Whether the object of a create is there when the request arrives.
    fn there(&self, number: usize) -> bool {
        matches!(&self.log[number].request, Request::Create(key, _) if self.objects.contains_key(key))
    }

    fn do_it(&mut self, number: usize, was_there: bool) -> Result<(), StoreError> {
        let at = self.now();
        let refused = self.readers.contains(&self.log[number].client);
        let (changed, result) = match self.log[number].request.clone() {
            Request::Create(key, _) | Request::Delete(key) if refused => (false, Err(denied(&key))),
            Request::Create(key, bytes) => self.create(key, bytes, was_there),
            Request::Delete(key) if self.faults.denies || self.faults.read_only => (false, Err(denied(&key))),
            Request::Delete(key) if self.locked.contains(&key) => (false, Err(denied(&key))),
            Request::Delete(key) => {
                let removed = self.objects.remove(&key);
                let changed = removed.is_some();
                self.removed.extend(removed.map(|stored| (key, stored, at)));
                (changed, Ok(()))
            }
            other => panic!("{other:?} changes nothing"),
        };
        self.log[number].done.push((at, changed));
        result
    }

    fn create(&mut self, key: ObjectKey, bytes: Bytes, was_there: bool) -> (bool, Result<(), StoreError>) {
        if self.faults.denies || self.faults.read_only {
            return (false, Err(denied(&key)));
        }
        if self.faults.capacity.is_some_and(|capacity| self.used() + bytes.len() as u64 > capacity) {
            return (false, Err(StoreError::NoSpace { key, reason: "simulated full store".into() }));
        }
        let exists = Err(StoreError::AlreadyExists { key: key.clone() });
        let (writes, result) = match (self.faults.lie, self.objects.contains_key(&key)) {
            (Lie::None, true) => (false, exists),
            (Lie::OverwritesAndSaysExists, true) => (true, exists),
            (Lie::Races, _) if was_there => (false, exists),
            _ => (true, Ok(())),
        };
        if writes {
            self.insert(&key, bytes);
        }
        (writes, result)
    }

    fn stored(&self, key: &ObjectKey) -> Result<&Stored, StoreError> {
        self.objects.get(key).ok_or_else(|| StoreError::NotFound { key: key.clone() })
    }

    /// What a list shows: the state of a while ago, perhaps with something missing.
    fn list(&mut self, prefix: &str) -> Vec<ObjectMeta> {
        let range = self.faults.list_age.clone();
        let seen_at = self.now().saturating_sub(self.within(range));
        let gone = self.removed.iter().filter(|(_, _, removed_at)| *removed_at > seen_at);
        let shown = self.objects.iter().chain(gone.map(|(key, stored, _)| (key, stored)));
        let below = |key: &ObjectKey| {
            prefix.is_empty() || key.as_str().strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
        };
        let mut found: Vec<_> = shown
            .filter(|(key, stored)| below(key) && stored.at <= seen_at)
            .map(|(key, stored)| meta(key, stored))
            .collect();
        found.sort_by(|a, b| a.key.cmp(&b.key));
        found.dedup_by(|a, b| a.key == b.key);
        let misses = self.faults.list_misses;
        found.retain(|_| misses == 0.0 || self.rng.f64() >= misses);
        found
    }
}

fn meta(key: &ObjectKey, stored: &Stored) -> ObjectMeta {
    let (len, modified_unix_micros) = (stored.bytes.len() as u64, stored.modified_unix_micros);
    ObjectMeta { key: key.clone(), len, modified_unix_micros }
}

fn unknown(key: &ObjectKey, reason: &str) -> StoreError {
    StoreError::Unknown { key: key.clone(), reason: reason.to_owned() }
}

fn denied(key: &ObjectKey) -> StoreError {
    StoreError::Denied { key: key.clone(), reason: "simulated refusal".to_owned() }
}

#[async_trait]
impl Store for SimStore {
    async fn create(&self, key: &ObjectKey, body: Bytes) -> Result<(), StoreError> {
        self.change(key, Request::Create(key.clone(), body)).await
    }

    async fn get(&self, key: &ObjectKey) -> Result<Bytes, StoreError> {
        let request = Request::Get(key.clone());
        self.look(key, request, |world| Ok(world.stored(key)?.bytes.clone())).await
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes, StoreError> {
        let request = Request::GetRange(key.clone(), range.clone());
        self.look(key, request, |world| {
            let bytes = &world.stored(key)?.bytes;
            if range.start > range.end || range.end > bytes.len() as u64 {
                return Err(StoreError::Short { key: key.clone(), wanted: range.end });
            }
            Ok(bytes.slice(range.start as usize..range.end as usize))
        })
        .await
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta, StoreError> {
        self.look(key, Request::Head(key.clone()), |world| Ok(meta(key, world.stored(key)?))).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        let key = ObjectKey::new("listing").unwrap();
        self.look(&key, Request::List(prefix.to_owned()), |world| Ok(world.list(prefix))).await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.change(key, Request::Delete(key.clone())).await
    }

    fn url(&self) -> String {
        "sim://store".to_owned()
    }
}
