//! A disk that forgets what was not synced, from a seed. A handle belongs to one life of a process: `kill` ends that life and keeps the
//! page cache, `crash` also loses what was not durable. Both return the handle of the next life; older ones answer with errors.
//!
//! What a crash may do: bytes past the last good `sync_data` survive as a random prefix, torn at any byte, perhaps with a page
//! of zeros in it; a name made or removed since the last `sync_dir` of its directory is there or not, each by itself. What a
//! failed `sync_data` does is what Linux does: the pages count as clean, some were never stored, and the next one succeeds.

use async_trait::async_trait;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use walden::disk::{Disk, DiskFile, DiskLock};

const PAGE: usize = 4096;

/// What goes wrong, and how often; chances are of 1.
#[derive(Debug, Clone, Default)]
pub struct DiskFaults {
    /// `sync_data` fails, and loses pages.
    pub sync_fails: f64,
    /// `append` fails after a part.
    pub append_fails: f64,
    /// Bytes that the disk holds.
    pub capacity: Option<u64>,
    /// How long an operation takes.
    pub latency: Range<Duration>,
    /// Planted bug: `sync_data` does nothing and says Ok.
    pub sync_data_is_skipped: bool,
    /// Planted bug: `sync_dir` does nothing and says Ok.
    pub sync_dir_is_skipped: bool,
}

/// What was done, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskOp {
    Create(PathBuf),
    Append(PathBuf, usize),
    SyncData(PathBuf, bool),
    SyncDir(PathBuf),
    Remove(PathBuf),
    Crash,
    Kill,
}

/// A handle in one life of the process.
#[derive(Debug, Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    life: u64,
}

#[derive(Debug)]
struct State {
    rng: fastrand::Rng,
    faults: DiskFaults,
    life: u64,
    inodes: Vec<Inode>,
    /// Names as processes see them, and as the platter has them.
    live: BTreeMap<PathBuf, usize>,
    stored: BTreeMap<PathBuf, usize>,
    live_dirs: BTreeSet<PathBuf>,
    stored_dirs: BTreeSet<PathBuf>,
    locks: BTreeSet<PathBuf>,
    log: Vec<DiskOp>,
}

/// A file's bytes: as processes see them, and as the platter has them.
#[derive(Debug, Default, Clone)]
struct Inode {
    live: Vec<u8>,
    stored: Vec<u8>,
    /// From here on `live` is dirty: the next sync stores it.
    dirty_from: usize,
    /// Clean in the cache, and yet not stored: a failed sync lost them.
    lost: Vec<Range<usize>>,
    reserved: u64,
}

impl Inode {
    fn store(&mut self) {
        self.stored = self.live.clone();
        for range in &self.lost {
            self.stored[range.clone()].fill(0);
        }
        self.dirty_from = self.live.len();
    }
}

impl SimDisk {
    pub fn new(seed: u64) -> Self {
        let state = State {
            rng: fastrand::Rng::with_seed(seed),
            faults: DiskFaults::default(),
            life: 0,
            inodes: Vec::new(),
            live: BTreeMap::new(),
            stored: BTreeMap::new(),
            live_dirs: BTreeSet::from(["/".into()]),
            stored_dirs: BTreeSet::from(["/".into()]),
            locks: BTreeSet::new(),
            log: Vec::new(),
        };
        SimDisk { state: Arc::new(Mutex::new(state)), life: 0 }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn set_faults(&self, faults: DiskFaults) {
        self.state().faults = faults;
    }

    /// The power goes. Returns the disk as the next life finds it.
    pub fn crash(&self) -> SimDisk {
        let mut state = self.state();
        state.log.push(DiskOp::Crash);
        state.crash();
        state.next_life();
        SimDisk { state: self.state.clone(), life: state.life }
    }

    /// The process is killed; what the page cache shows stays.
    pub fn kill(&self) -> SimDisk {
        let mut state = self.state();
        state.log.push(DiskOp::Kill);
        state.next_life();
        SimDisk { state: self.state.clone(), life: state.life }
    }

    /// The same disk as it is now, apart from this one; for trying several futures.
    pub fn fork(&self, seed: u64) -> SimDisk {
        let state = self.state();
        let fork = State {
            rng: fastrand::Rng::with_seed(seed),
            faults: state.faults.clone(),
            life: state.life + 1,
            inodes: state.inodes.clone(),
            live: state.live.clone(),
            stored: state.stored.clone(),
            live_dirs: state.live_dirs.clone(),
            stored_dirs: state.stored_dirs.clone(),
            locks: BTreeSet::new(),
            log: Vec::new(),
        };
        let life = fork.life;
        SimDisk { state: Arc::new(Mutex::new(fork)), life }
    }

    /// What was done so far.
    pub fn log(&self) -> Vec<DiskOp> {
        self.state().log.clone()
    }

    /// Every file, as processes see it.
    pub fn files(&self) -> Vec<PathBuf> {
        self.state().live.keys().cloned().collect()
    }

    /// A file's bytes, as processes see them.
    pub fn bytes(&self, path: &Path) -> Vec<u8> {
        let state = self.state();
        state.inodes[state.live[path]].live.clone()
    }

    /// Changes a file, in the cache and on the platter.
    pub fn alter(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let inode = state.live[path];
        let inode = &mut state.inodes[inode];
        change(&mut inode.live);
        inode.lost.clear();
        inode.store();
    }

    /// Takes a file away, for good.
    pub fn lose(&self, path: &Path) {
        let mut state = self.state();
        state.live.remove(path);
        state.stored.remove(path);
    }

    /// Waits as long as an operation takes, and locks the state if this life goes on.
    async fn enter(&self) -> io::Result<MutexGuard<'_, State>> {
        let latency = self.state().latency();
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        self.alive()
    }

    fn alive(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state();
        if state.life == self.life { Ok(state) } else { Err(io::Error::other("this process has ended")) }
    }
}

impl State {
    fn latency(&mut self) -> Duration {
        let range = self.faults.latency.clone();
        if range.is_empty() {
            return Duration::ZERO;
        }
        Duration::from_nanos(self.rng.u64(range.start.as_nanos() as u64..range.end.as_nanos() as u64))
    }

    fn next_life(&mut self) {
        self.life += 1;
        self.locks.clear();
    }

    fn crash(&mut self) {
        let changed: BTreeSet<PathBuf> = self.live.keys().chain(self.stored.keys()).cloned().collect();
        for path in changed {
            let (live, stored) = (self.live.get(&path).copied(), self.stored.get(&path).copied());
            let survives = if live != stored && self.rng.bool() { live } else { stored };
            match survives {
                Some(inode) => drop(self.stored.insert(path, inode)),
                None => drop(self.stored.remove(&path)),
            }
        }
        self.live_dirs = self.stored_dirs.clone();
        let dirs = &self.stored_dirs;
        self.stored.retain(|path, _| path.parent().is_some_and(|dir| dirs.contains(dir)));
        self.live = self.stored.clone();
        for inode in &mut self.inodes {
            let dirty = inode.live.len() - inode.dirty_from;
            let kept = inode.dirty_from + self.rng.usize(0..=dirty);
            let mut survives = inode.stored.clone();
            survives.resize(survives.len().max(inode.dirty_from), 0);
            survives.extend_from_slice(&inode.live[inode.dirty_from..kept]);
            // Pages are written back in any order: one in the middle may be missing.
            if kept > inode.dirty_from && self.rng.u8(..4) == 0 {
                let page = self.rng.usize(inode.dirty_from..kept) / PAGE * PAGE;
                let hole = page.max(inode.dirty_from)..(page + PAGE).min(kept);
                survives[hole].fill(0);
            }
            inode.stored = survives.clone();
            inode.dirty_from = survives.len();
            inode.live = survives;
            inode.lost.clear();
            inode.reserved = 0;
        }
    }

    fn used(&self) -> u64 {
        self.live
            .values()
            .map(|inode| (self.inodes[*inode].live.len() as u64).max(self.inodes[*inode].reserved))
            .sum()
    }

    /// How many of `bytes` more fit.
    fn room(&self, inode: usize, bytes: usize) -> usize {
        let Some(capacity) = self.faults.capacity else { return bytes };
        let reserved = (self.inodes[inode].reserved as usize).saturating_sub(self.inodes[inode].live.len());
        bytes.min(reserved + capacity.saturating_sub(self.used()) as usize)
    }

    fn append_fails(&mut self) -> bool {
        self.faults.append_fails > 0.0 && self.rng.f64() < self.faults.append_fails
    }

    fn sync_fails(&mut self) -> bool {
        self.faults.sync_fails > 0.0 && self.rng.f64() < self.faults.sync_fails
    }

    fn file(&self, path: &Path) -> io::Result<&Inode> {
        let inode = self.live.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(&self.inodes[*inode])
    }
}

#[async_trait]
impl Disk for SimDisk {
    async fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.enter().await?;
        if state.live.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if !path.parent().is_some_and(|dir| state.live_dirs.contains(dir)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inode = state.inodes.len();
        state.inodes.push(Inode::default());
        state.live.insert(path.to_owned(), inode);
        state.log.push(DiskOp::Create(path.to_owned()));
        Ok(Box::new(SimFile { disk: self.clone(), path: path.to_owned(), inode }))
    }

    async fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        Ok(self.enter().await?.file(path)?.live.clone())
    }

    async fn read_range(&self, path: &Path, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let state = self.enter().await?;
        let bytes = &state.file(path)?.live;
        let start = bytes.len().min(offset as usize);
        Ok(bytes[start..bytes.len().min(start + len)].to_vec())
    }

    async fn len(&self, path: &Path) -> io::Result<u64> {
        Ok(self.enter().await?.file(path)?.live.len() as u64)
    }

    async fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let state = self.enter().await?;
        if !state.live_dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inside = state.live.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.filter_map(|path| path.file_name()).map(PathBuf::from).collect())
    }

    async fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.enter().await?;
        state.live.remove(path);
        state.log.push(DiskOp::Remove(path.to_owned()));
        Ok(())
    }

    async fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.enter().await?;
        for dir in dir.ancestors() {
            state.live_dirs.insert(dir.to_owned());
            state.stored_dirs.insert(dir.to_owned());
        }
        Ok(())
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.enter().await?;
        if !state.live_dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.log.push(DiskOp::SyncDir(dir.to_owned()));
        if !state.faults.sync_dir_is_skipped {
            let live: Vec<_> = state
                .live
                .iter()
                .filter(|(p, _)| p.parent() == Some(dir))
                .map(|(p, i)| (p.clone(), *i))
                .collect();
            state.stored.retain(|path, _| path.parent() != Some(dir));
            state.stored.extend(live);
        }
        Ok(())
    }

    async fn free_bytes(&self, _dir: &Path) -> io::Result<u64> {
        let state = self.enter().await?;
        Ok(state.faults.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(state.used())))
    }

    async fn lock(&self, dir: &Path) -> io::Result<Box<dyn DiskLock>> {
        let mut state = self.enter().await?;
        if !state.locks.insert(dir.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(SimLock { disk: self.clone(), dir: dir.to_owned() }))
    }
}

#[derive(Debug)]
struct SimLock {
    disk: SimDisk,
    dir: PathBuf,
}

impl DiskLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        if let Ok(mut state) = self.disk.alive() {
            state.locks.remove(&self.dir);
        }
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    path: PathBuf,
    inode: usize,
}

#[async_trait]
impl DiskFile for SimFile {
    async fn preallocate(&mut self, bytes: u64) -> io::Result<()> {
        let mut state = self.disk.enter().await?;
        let more = bytes.saturating_sub(state.inodes[self.inode].live.len() as u64);
        if (state.room(self.inode, more as usize) as u64) < more {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.inodes[self.inode].reserved = bytes;
        Ok(())
    }

    async fn append(&mut self, bytes: Bytes) -> io::Result<()> {
        let mut state = self.disk.enter().await?;
        let room = state.room(self.inode, bytes.len());
        let fails = state.append_fails();
        let part = if fails { state.rng.usize(0..=room) } else { room };
        state.inodes[self.inode].live.extend_from_slice(&bytes[..part]);
        state.log.push(DiskOp::Append(self.path.clone(), part));
        match part == bytes.len() && !fails {
            true => Ok(()),
            false if fails => Err(io::Error::other("simulated failure of an append")),
            false => Err(io::ErrorKind::StorageFull.into()),
        }
    }

    async fn sync_data(&mut self) -> io::Result<()> {
        let mut state = self.disk.enter().await?;
        let fails = state.sync_fails();
        state.log.push(DiskOp::SyncData(self.path.clone(), !fails));
        if state.faults.sync_data_is_skipped {
            return Ok(());
        }
        let state = &mut *state;
        let inode = &mut state.inodes[self.inode];
        if fails {
            let dirty = inode.dirty_from..inode.live.len();
            let from = state.rng.usize(dirty.start..=dirty.end);
            let to = state.rng.usize(from..=dirty.end);
            inode.lost.push(if state.rng.bool() { dirty } else { from..to });
        }
        inode.store();
        if fails { Err(io::Error::other("simulated failure of fdatasync")) } else { Ok(()) }
    }
}
