//! A primary made of synthetic WAL: streams in pieces of any size, drops connections, asks for replies, removes WAL
//! behind its slot, and remembers everything it was ever told to be flushed. It can fail over, with or without the tail that
//! its standby lacked.

use super::sim_backup::{DataDir, Sent};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::Instant;
use walden::base::{Lsn, LsnRange, SegmentSize, SystemId, TimelineId, Timestamp};
use walden::receive::machine::Acknowledged;
use walden::receive::upstream::{
    Connector, Identity, Message, NextTimeline, Server, Slot, Started, StatusSink, Upstream, UpstreamError,
};
use walden::wal::{Synth, WalVersion};

/// The primary's WAL segments.
pub const SEGMENT: u64 = 1 << 20;
const START: u64 = 16 * SEGMENT;

/// A primary; clones are the same one.
#[derive(Debug, Clone)]
pub struct SimServer(Arc<Mutex<State>>);

#[derive(Debug, Clone)]
struct State {
    rng: fastrand::Rng,
    synth: Synth,
    wal: Vec<u8>,
    restart: Option<Lsn>,
    acknowledged: Lsn,
    xid: u32,
    clock: i64,
    wal_max: u64,
    session: u64,
    exclusive: bool,
    unstable: bool,
    forgets_at_once: bool,
    data: DataDir,
    backups: BTreeMap<(SystemId, TimelineId, Lsn), Sent>,
    backup_pause_ms: u64,
    switches: bool,
    identity: Identity,
    start: u64,
    down: bool,
    /// Where each older timeline was left for the next.
    switched: Vec<(TimelineId, Lsn)>,
    commits: Vec<Commit>,
    standby: Option<Standby>,
}

/// A transaction on the line that the server is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// Its record.
    pub start: Lsn,
    /// Where that ends.
    pub end: Lsn,
    /// Its time.
    pub time: Timestamp,
}

/// What a standby has of the server.
#[derive(Debug, Clone)]
struct Standby {
    synth: Synth,
    wal_len: usize,
}

impl SimServer {
    /// A primary that writes up to `wal_max` bytes. `unstable`: connections break.
    pub fn new(seed: u64, wal_max: u64, unstable: bool) -> SimServer {
        let size = SegmentSize::new(SEGMENT).unwrap();
        let start = Lsn::new(START);
        let synth = Synth::new(WalVersion::V15, size, SystemId(77), TimelineId(1), start).with_seed(seed);
        SimServer(Arc::new(Mutex::new(State {
            rng: fastrand::Rng::with_seed(seed),
            synth,
            wal: Vec::new(),
            restart: None,
            acknowledged: Lsn::ZERO,
            xid: 700,
            clock: 800_000_000_000_000,
            wal_max,
            session: 0,
            exclusive: true,
            unstable,
            forgets_at_once: false,
            data: DataDir::default(),
            backups: BTreeMap::new(),
            backup_pause_ms: 50,
            switches: false,
            identity: Identity {
                system_id: SystemId(77),
                major_version: 15,
                timeline: TimelineId(1),
                flushed: start,
                segment_size: size,
                block_size: 8192,
            },
            start: START,
            down: false,
            switched: Vec::new(),
            commits: Vec::new(),
            standby: None,
        })))
    }

    /// What pg_upgrade makes of it: another system identifier and major version, the same files, and WAL from the next WAL segment on.
    pub fn upgraded(&self, seed: u64, wal_max: u64) -> SimServer {
        let old = self.state().clone();
        let start = (old.end().get() / SEGMENT + 2) * SEGMENT;
        let identity = Identity {
            system_id: SystemId(old.identity.system_id.0 + 1),
            major_version: old.identity.major_version + 1,
            timeline: TimelineId(1),
            ..old.identity.clone()
        };
        let (at, size) = (Lsn::new(start), old.identity.segment_size);
        let synth = Synth::new(WalVersion::V15, size, identity.system_id, TimelineId(1), at).with_seed(seed);
        SimServer(Arc::new(Mutex::new(State {
            rng: fastrand::Rng::with_seed(seed),
            synth,
            wal: Vec::new(),
            wal_max,
            restart: None,
            acknowledged: Lsn::ZERO,
            clock: old.clock + 60_000_000,
            switched: Vec::new(),
            commits: Vec::new(),
            standby: None,
            identity,
            start,
            down: false,
            ..old
        })))
    }

    /// Says that it is another server, in all else the same.
    pub fn pose_as(&self, system_id: u64, major_version: u32) {
        let mut state = self.state();
        (state.identity.system_id, state.identity.major_version) = (SystemId(system_id), major_version);
    }

    /// Who it is.
    pub fn identity(&self) -> Identity {
        let state = self.state();
        Identity { flushed: state.end(), ..state.identity.clone() }
    }

    /// Writes no more but the checkpoint of its shutdown, which receivers still get.
    pub fn shut_down(&self) {
        let mut state = self.state();
        let state = &mut *state;
        state.synth.checkpoint(Timestamp::from_micros(state.clock));
        state.wal.extend(state.synth.take());
        state.wal_max = state.wal.len() as u64;
    }

    /// Another server answers in its place.
    pub fn become_another(&self, other: &SimServer) {
        let other = other.state().clone();
        *self.state() = other;
    }

    /// Nobody can connect to it any more, and streams end.
    pub fn go_away(&self) {
        self.state().down = true;
    }

    /// Another server in the same state.
    pub fn fork(&self) -> SimServer {
        SimServer(Arc::new(Mutex::new(self.state().clone())))
    }

    /// Writes up to `bytes` more.
    pub fn write_more(&self, bytes: u64) {
        let mut state = self.state();
        state.wal_max = state.wal.len() as u64 + bytes;
    }

    /// Switches to a new WAL segment when a backup begins, as PostgreSQL does.
    pub fn switch_at_backups(&self) {
        self.state().switches = true;
    }

    /// Lets several sessions stream at once, as if each had a slot of its own.
    pub fn allow_many_sessions(&self) {
        self.state().exclusive = false;
    }

    /// Removes WAL up to the very byte that was acknowledged, not by whole segments: nobody can get it from here again.
    pub fn forget_at_once(&self) {
        self.state().forgets_at_once = true;
    }

    /// The highest position it was ever told to be flushed.
    pub fn acknowledged(&self) -> Lsn {
        self.state().acknowledged
    }

    /// Whether everything it will write was acknowledged.
    pub fn is_finished(&self) -> bool {
        let state = self.state();
        state.wal.len() as u64 >= state.wal_max && state.acknowledged == state.end()
    }

    /// Its WAL from the start up to `end`.
    pub fn wal_until(&self, end: Lsn) -> (LsnRange, Vec<u8>) {
        let state = self.state();
        let start = Lsn::new(state.start);
        let len = end.bytes_since(start) as usize;
        (LsnRange::new(start, end.max(start)), state.wal[..len].to_vec())
    }

    /// Rewrites history from `from` on, as a primary restored to an earlier moment would.
    pub fn diverge(&self, from: Lsn) {
        let mut state = self.state();
        let at = from.bytes_since(Lsn::new(state.start)) as usize;
        for byte in &mut state.wal[at..] {
            *byte ^= 0x55;
        }
    }

    /// The end of its WAL.
    pub fn end(&self) -> Lsn {
        self.state().end()
    }

    /// Sets its clock, unless that is ahead.
    pub fn set_clock(&self, now: Timestamp) {
        let mut state = self.state();
        state.clock = state.clock.max(now.micros());
    }

    /// Transactions on the line that it is on.
    pub fn commits(&self) -> Vec<Commit> {
        self.state().commits.clone()
    }

    /// Its timeline.
    pub fn timeline(&self) -> TimelineId {
        self.state().identity.timeline
    }

    /// Timelines that were left, and where.
    pub fn left_behind(&self) -> Vec<(TimelineId, Lsn)> {
        self.state().switched.clone()
    }

    /// The standby has everything by now.
    pub fn standby_catches_up(&self) {
        let mut state = self.state();
        state.standby = Some(Standby { synth: state.synth.clone(), wal_len: state.wal.len() });
    }

    /// The standby takes over with what it has, on the next timeline.
    pub fn fail_over(&self) {
        let mut state = self.state();
        let state = &mut *state;
        if let Some(standby) = state.standby.take() {
            state.synth = standby.synth;
            state.wal.truncate(standby.wal_len);
        }
        let switch = state.end();
        state.commits.retain(|commit| commit.end <= switch);
        state.switched.push((state.identity.timeline, switch));
        state.identity.timeline = TimelineId(state.identity.timeline.0 + 1);
        state.synth.switch_timeline(state.identity.timeline, Timestamp::from_micros(state.clock));
        let bytes = state.synth.take();
        state.wal.extend(bytes);
        state.wal_max = state.wal.len() as u64;
        let slot = switch.align_down(SEGMENT);
        state.restart = state.restart.map(|restart| restart.min(slot));
        state.acknowledged = state.acknowledged.min(switch);
        state.session += 1;
    }

    /// Its clock.
    pub fn clock(&self) -> Timestamp {
        Timestamp::from_micros(self.state().clock)
    }

    /// Sends each piece of a backup after up to so long.
    pub fn send_backups_slowly(&self, pause_max: Duration) {
        self.state().backup_pause_ms = pause_max.as_millis() as u64;
    }

    /// Takes as long as a piece of a backup does.
    pub async fn pause_in_backup(&self) {
        let pause = {
            let mut state = self.state();
            let max = state.backup_pause_ms;
            state.rng.u64(1..max)
        };
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }

    /// Takes a while.
    pub async fn pause(&self) {
        let pause = self.state().rng.u64(1..50);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }

    /// What its own chance says.
    pub fn chance<T>(&self, say: impl FnOnce(&mut fastrand::Rng) -> T) -> T {
        say(&mut self.state().rng)
    }

    /// Whether a connection breaks now, once in `often`.
    pub fn breaks(&self, often: u32) -> bool {
        let mut state = self.state();
        state.unstable && state.rng.u32(0..often) == 0
    }

    /// Makes a checkpoint, and says where a backup that begins with it starts and what it holds.
    pub fn begin_backup(&self) -> (Lsn, Sent) {
        let mut state = self.state();
        let state = &mut *state;
        state.data.change(&mut state.rng);
        // Ids of backups are whole seconds.
        state.clock += 1_000_000;
        if state.switches {
            state.synth.switch();
            let bytes = state.synth.take();
            state.wal.extend(bytes);
        }
        let made = state.synth.checkpoint(Timestamp::from_micros(state.clock));
        state.wal.extend(state.synth.take());
        (made.start, state.data.files(made.start))
    }

    /// Ends the backup that began at `start` and sent `files`; says where it is consistent.
    pub fn end_backup(&self, start: Lsn, files: Sent) -> Lsn {
        let mut state = self.state();
        state.synth.noise(64);
        let bytes = state.synth.take();
        state.wal.extend(bytes);
        let key = (state.identity.system_id, state.identity.timeline, start);
        state.backups.insert(key, files);
        state.end()
    }

    /// What the backup that began at `start` of `timeline` sent.
    pub fn sent(&self, timeline: TimelineId, start: Lsn) -> Option<Sent> {
        let state = self.state();
        state.backups.get(&(state.identity.system_id, timeline, start)).cloned()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

impl State {
    fn end(&self) -> Lsn {
        Lsn::new(self.start + self.wal.len() as u64)
    }

    /// Writes some records.
    fn write(&mut self) {
        for _ in 0..self.rng.usize(0..12) {
            if self.wal.len() as u64 >= self.wal_max {
                return;
            }
            self.clock += self.rng.i64(1..200_000);
            let time = Timestamp::from_micros(self.clock);
            self.xid += 1;
            match self.rng.u8(0..10) {
                0..4 => {
                    let made = self.synth.commit(self.xid, time);
                    self.commits.push(Commit { start: made.start, end: made.end, time });
                }
                4..7 => drop(self.synth.page_image(self.xid, self.xid)),
                7 => drop(self.synth.checkpoint(time)),
                8 => drop(self.synth.noise(self.rng.usize(30..60_000))),
                _ => drop(self.synth.abort(self.xid, time)),
            }
        }
        let bytes = self.synth.take();
        self.wal.extend(bytes);
    }
}

#[async_trait]
impl Connector for SimServer {
    async fn connect(&self) -> Result<Box<dyn Server>, UpstreamError> {
        let pause = self.state().rng.u64(1..50);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        if self.state().down {
            return Err(UpstreamError::Lost("connection refused".into()));
        }
        Ok(Box::new(self.clone()))
    }
}

#[async_trait]
impl Server for SimServer {
    async fn identify(&mut self) -> Result<Identity, UpstreamError> {
        Ok(SimServer::identity(self))
    }

    async fn ensure_slot(&mut self, _slot: &str) -> Result<Slot, UpstreamError> {
        let mut state = self.state();
        let created = state.restart.is_none();
        let restart = *{
            let start = Lsn::new(state.start);
            state.restart.get_or_insert(start)
        };
        Ok(Slot { restart: Some(restart), created })
    }

    async fn history(&mut self, timeline: TimelineId) -> Result<Vec<u8>, UpstreamError> {
        let state = self.state();
        let older = state.switched.iter().filter(|(older, _)| *older < timeline);
        let lines = older.map(|(older, at)| format!("{older}\t{at}\tno recovery target specified\n"));
        match lines.collect::<String>() {
            content if content.is_empty() || timeline > state.identity.timeline => {
                Err(UpstreamError::Refused(format!("no history of timeline {timeline}")))
            }
            content => Ok(content.into_bytes()),
        }
    }

    async fn stream(
        self: Box<Self>,
        slot: &str,
        start: Lsn,
        timeline: TimelineId,
    ) -> Result<Started, UpstreamError> {
        let mut state = self.state();
        let left = state.switched.iter().find(|(older, _)| *older == timeline);
        let until = left.map(|(older, at)| NextTimeline { timeline: TimelineId(older.0 + 1), start: *at });
        if let Some(next) = until.filter(|next| next.start == start) {
            return Ok(Started::EndOfTimeline(next));
        }
        let restart = state.restart.unwrap_or(Lsn::new(state.start));
        let oldest = if state.forgets_at_once { restart } else { restart.align_down(SEGMENT) };
        if start < oldest {
            let reason = format!("removed up to {oldest}");
            return Err(UpstreamError::WalRemoved { at: start, reason });
        }
        if start > state.end() {
            let reason = format!("ends at {}", state.end());
            return Err(UpstreamError::Ahead { at: start, reason });
        }
        let _ = slot;
        state.session += 1;
        let session = state.session;
        drop(state);
        let stream = SimStream { server: (*self).clone(), at: start, until, session, ready: Instant::now() };
        let sink = SimSink { server: (*self).clone(), session };
        Ok(Started::Streaming(Box::new(stream), Box::new(sink)))
    }
}

struct SimStream {
    server: SimServer,
    at: Lsn,
    /// Where its timeline ends, unless that is the server's.
    until: Option<NextTimeline>,
    session: u64,
    ready: Instant,
}

#[async_trait]
impl Upstream for SimStream {
    async fn next(&mut self) -> Result<Message, UpstreamError> {
        loop {
            // Cancel-safe: a dropped call does not put the next message off.
            tokio::time::sleep_until(self.ready).await;
            let pause = self.server.state().rng.u64(1..40);
            self.ready = Instant::now() + Duration::from_millis(pause);
            let mut state = self.server.state();
            if state.down || state.exclusive && state.session != self.session {
                return Err(UpstreamError::Lost("another session took the slot".into()));
            }
            if state.unstable && state.rng.u32(0..400) == 0 {
                return Err(UpstreamError::Lost("the network broke".into()));
            }
            state.write();
            let (end, time) = (state.end(), Timestamp::from_micros(state.clock));
            let end = self.until.map_or(end, |next| next.start);
            let left = end.bytes_since(self.at) as usize;
            if let (0, Some(next)) = (left, self.until) {
                return Ok(Message::EndOfTimeline(next));
            }
            if left == 0 {
                if state.rng.u8(0..4) == 0 {
                    let reply_requested = state.rng.bool();
                    return Ok(Message::Keepalive { server_end: end, server_time: time, reply_requested });
                }
                continue;
            }
            let len = left.min(state.rng.usize(1..=128 << 10));
            let from = self.at.bytes_since(Lsn::new(state.start)) as usize;
            let bytes = Bytes::copy_from_slice(&state.wal[from..from + len]);
            let start = self.at;
            self.at = Lsn::new(start.get() + len as u64);
            return Ok(Message::Wal { start, server_end: end, server_time: time, bytes });
        }
    }
}

struct SimSink {
    server: SimServer,
    session: u64,
}

#[async_trait]
impl StatusSink for SimSink {
    async fn report(&mut self, acknowledged: Acknowledged) -> Result<(), UpstreamError> {
        let mut state = self.server.state();
        if state.exclusive && state.session != self.session {
            return Err(UpstreamError::Lost("another session took the slot".into()));
        }
        assert!(acknowledged.flush <= state.end(), "acknowledged what was never written");
        state.acknowledged = state.acknowledged.max(acknowledged.flush);
        // As PostgreSQL does: the slot follows the newest report, even backwards.
        if acknowledged.flush > Lsn::ZERO {
            state.restart = Some(acknowledged.flush);
        }
        Ok(())
    }

    async fn close(&mut self) -> Result<(), UpstreamError> {
        Ok(())
    }
}
