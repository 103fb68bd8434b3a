//! What to store, and what to acknowledge: a machine without IO or clock.
//! Invariant: `acknowledged <= durable as configured`, and only the contiguous prefix counts.

use crate::base::planted::{Bug, planted};
use crate::base::{Lsn, LsnRange, Timestamp, limits};
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::Duration;

/// Messages whose server position lies past what is stored, kept to date the recovery window.
const MARKS_MAX: usize = 1024;

/// Which position is acknowledged as flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AckMode {
    /// What is durable in the repository.
    Object,
    /// What is durable in the journal.
    Journal,
}

/// How flush objects are cut.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    /// WAL in one object that makes it leave at once.
    pub bytes_max: usize,
    /// Age of the oldest byte that makes it leave; zero: as soon as the one before is durable.
    pub interval: Duration,
    /// Objects being stored at once.
    pub in_flight_max: usize,
    /// Time between two heartbeats of an idle stream.
    pub heartbeat: Duration,
    /// Received bytes held in memory at once.
    pub buffered_bytes_max: usize,
}

impl Default for Cut {
    fn default() -> Self {
        Cut {
            bytes_max: limits::FLUSH_BYTES_MAX,
            interval: limits::FLUSH_INTERVAL,
            in_flight_max: limits::FLUSHES_IN_FLIGHT_MAX,
            heartbeat: limits::HEARTBEAT_INTERVAL,
            buffered_bytes_max: limits::RECEIVE_BUFFER_BYTES_MAX,
        }
    }
}

/// What the status message to the server says. `apply` is never reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Acknowledged {
    /// The write position.
    pub write: Lsn,
    /// The flush position.
    pub flush: Lsn,
}

/// The next flush object, to be sealed and stored in order of its number.
#[derive(Debug, Clone)]
pub struct Flush {
    /// Its number in the stream.
    pub number: u64,
    /// Its WAL; empty in a heartbeat.
    pub range: LsnRange,
    /// The bytes of `range`.
    pub pieces: Vec<Bytes>,
    /// The server's end of WAL, as known now.
    pub server_end: Lsn,
    /// The newest server time at which everything up to the end of `range` had been sent.
    pub server_time: Timestamp,
}

/// WAL that does not continue what was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("WAL at {found}, expected {expected}: the server skipped some")]
pub struct Hole {
    /// Where it should have begun.
    pub expected: Lsn,
    /// Where it begins.
    pub found: Lsn,
}

#[derive(Debug)]
struct InFlight {
    number: u64,
    end: Lsn,
    len: usize,
    durable: bool,
}

/// The machine of one stream.
#[derive(Debug)]
pub struct Machine {
    cut: Cut,
    mode: AckMode,
    received: Lsn,
    journaled: Lsn,
    waiting: VecDeque<Bytes>,
    waiting_start: Lsn,
    waiting_since: Option<Duration>,
    in_flight: VecDeque<InFlight>,
    in_flight_bytes: usize,
    next_number: u64,
    durable: Lsn,
    /// (server end of WAL, server time), both ascending: once the first is stored, the window reaches the second.
    marks: VecDeque<(Lsn, Timestamp)>,
    server_end: Lsn,
    server_time: Timestamp,
    sealed_time: Timestamp,
    last_flush: Duration,
    tail_wanted: Option<Lsn>,
    first_pending: bool,
}

impl Machine {
    /// A machine for a stream whose next number is `next_number` and that continues at `start`, all before it durable.
    /// `server_time` is the newest one stored. Number 0 is stored at once, empty if need be: it names the predecessor.
    pub fn new(
        cut: Cut,
        mode: AckMode,
        start: Lsn,
        next_number: u64,
        server_time: Timestamp,
        now: Duration,
    ) -> Machine {
        assert!(cut.in_flight_max > 0 && cut.bytes_max > 0, "a machine that may store nothing");
        // Readers take an object that far past a missing one for proof that one was lost.
        assert!(
            cut.in_flight_max <= limits::FLUSHES_IN_FLIGHT_MAX,
            "more objects in flight than the format allows"
        );
        Machine {
            cut,
            mode,
            received: start,
            journaled: start,
            waiting: VecDeque::new(),
            waiting_start: start,
            waiting_since: None,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            next_number,
            durable: start,
            marks: VecDeque::new(),
            server_end: start,
            server_time,
            sealed_time: server_time,
            last_flush: now,
            tail_wanted: None,
            first_pending: next_number == 0,
        }
    }

    /// One past the last byte received.
    pub fn received(&self) -> Lsn {
        self.received
    }

    /// One past the last byte of the contiguous prefix that is durable in the repository.
    pub fn durable(&self) -> Lsn {
        self.durable
    }

    /// The newest server time whose WAL is all durable in the repository, as far as it was sealed.
    pub fn server_end(&self) -> Lsn {
        self.server_end
    }

    /// WAL from the server, or from the journal. Bytes before [`Machine::received`] are left out: the caller compared them.
    pub fn on_wal(&mut self, at: Lsn, bytes: Bytes, now: Duration) -> Result<(), Hole> {
        if at > self.received {
            return Err(Hole { expected: self.received, found: at });
        }
        let known = usize::try_from(self.received.bytes_since(at)).unwrap_or(usize::MAX).min(bytes.len());
        let new = bytes.slice(known..);
        if new.is_empty() {
            return Ok(());
        }
        self.received = self.received.saturating_add(new.len() as u64);
        self.waiting_since.get_or_insert(now);
        self.waiting.push_back(new);
        Ok(())
    }

    /// What a message said of the server: its end of WAL at a time of its clock.
    pub fn on_server_position(&mut self, server_end: Lsn, server_time: Timestamp) {
        self.server_end = self.server_end.max(server_end);
        // A clock that was set back does not take the window back.
        self.server_time = self.server_time.max(server_time);
        match self.marks.back_mut() {
            Some((end, time)) if *end >= server_end => *time = self.server_time,
            _ => self.marks.push_back((server_end, self.server_time)),
        }
        if self.marks.len() > MARKS_MAX {
            // Dropping one in the middle dates the window a little earlier, never later.
            self.marks.remove(MARKS_MAX / 2);
        }
    }

    /// The server wants an answer once all it sent is durable: the tail leaves at once.
    pub fn on_reply_requested(&mut self) {
        self.tail_wanted = Some(self.received);
    }

    /// Everything up to `upto` is durable in the journal; this may be ahead of what was taken in here.
    pub fn on_journaled(&mut self, upto: Lsn) {
        self.journaled = self.journaled.max(upto);
    }

    /// Object `number` is durable in the repository.
    pub fn on_durable(&mut self, number: u64) {
        if let Some(object) = self.in_flight.iter_mut().find(|object| object.number == number) {
            object.durable = true;
        }
        if planted(Bug::AcknowledgePastHole)
            && let Some(last) = self.in_flight.iter().rposition(|object| object.durable)
        {
            self.in_flight.iter_mut().take(last).for_each(|object| object.durable = true);
        }
        while let Some(first) = self.in_flight.front().filter(|object| object.durable) {
            self.durable = first.end;
            self.in_flight_bytes -= first.len;
            self.in_flight.pop_front();
        }
    }

    /// Whether more WAL may be taken in.
    pub fn has_room(&self) -> bool {
        self.buffered_bytes() < self.cut.buffered_bytes_max
    }

    /// Bytes received and not yet durable in the repository.
    pub fn buffered_bytes(&self) -> usize {
        self.in_flight_bytes + self.received.bytes_since(self.waiting_start) as usize
    }

    /// Whether everything received is durable in the repository.
    pub fn is_drained(&self) -> bool {
        self.durable == self.received && self.in_flight.is_empty() && !self.first_pending
    }

    /// The next object to store, if one is due at `now`. `finishing` sends what there is.
    pub fn take_flush(&mut self, now: Duration, finishing: bool) -> Option<Flush> {
        if self.in_flight.len() >= self.cut.in_flight_max || !self.is_due(now, finishing) {
            return None;
        }
        let mut pieces = Vec::new();
        let mut room = self.cut.bytes_max;
        while let Some(mut piece) = self.waiting.pop_front() {
            if piece.len() > room {
                self.waiting.push_front(piece.split_off(room));
            }
            room -= piece.len();
            pieces.push(piece);
            if room == 0 {
                break;
            }
        }
        let len = self.cut.bytes_max - room;
        let range = LsnRange::new(self.waiting_start, self.waiting_start.saturating_add(len as u64));
        self.waiting_start = range.end;
        self.waiting_since = (!self.waiting.is_empty()).then_some(now);
        self.first_pending = false;
        self.last_flush = now;
        while let Some((_, time)) = self.marks.front().filter(|(end, _)| *end <= range.end) {
            self.sealed_time = *time;
            self.marks.pop_front();
        }
        if self.tail_wanted.is_some_and(|tail| tail <= range.end) {
            self.tail_wanted = None;
        }
        let number = self.next_number;
        self.next_number += 1;
        self.in_flight_bytes += len;
        self.in_flight.push_back(InFlight { number, end: range.end, len, durable: false });
        Some(Flush { number, range, pieces, server_end: self.server_end, server_time: self.sealed_time })
    }

    /// When to ask [`Machine::take_flush`] again if nothing else happens; `None` when time alone changes nothing.
    pub fn deadline(&self) -> Option<Duration> {
        match self.waiting_since {
            _ if self.in_flight.len() >= self.cut.in_flight_max => None,
            Some(since) if !self.cut.interval.is_zero() => Some(since + self.cut.interval),
            Some(since) => self.in_flight.is_empty().then_some(since),
            None => self.may_beat().then(|| self.last_flush + self.cut.heartbeat),
        }
    }

    /// Whether a heartbeat has something to say: everything is stored, and the server was heard since.
    fn may_beat(&self) -> bool {
        self.in_flight.is_empty() && self.marks.front().is_some_and(|(end, _)| *end <= self.received)
    }

    /// What may be told to the server.
    pub fn acknowledged(&self) -> Acknowledged {
        assert!(self.durable <= self.received, "durable {}, received {}", self.durable, self.received);
        let flush = match self.mode {
            AckMode::Object => self.durable,
            AckMode::Journal => self.journaled.max(self.durable),
        };
        Acknowledged { write: flush, flush }
    }

    fn is_due(&self, now: Duration, finishing: bool) -> bool {
        let waiting = self.received.bytes_since(self.waiting_start);
        if self.first_pending || (finishing && waiting > 0) {
            return true;
        }
        if waiting == 0 {
            return self.may_beat() && now >= self.last_flush + self.cut.heartbeat;
        }
        let by_size = waiting >= self.cut.bytes_max as u64;
        let by_tail = self.tail_wanted.is_some();
        let by_age = match self.waiting_since {
            Some(_) if self.cut.interval.is_zero() => self.in_flight.is_empty(),
            Some(since) => now >= since + self.cut.interval,
            None => false,
        };
        by_size || by_tail || by_age
    }
}

#[cfg(test)]
mod tests;
