//! What real servers seldom do: crashes, failures half-way, and transactions that are too large to follow.
//! Everything else is in tests/wal/changes.rs.

use super::*;
use crate::base::{Lsn, SegmentSize, SystemId, TimelineId, Timestamp};
use crate::format::wal::Event;
use crate::wal::{DecodeFrom, Summarizer, Synth, WalVersion};

const CLASS: u32 = 1259;
const TYPE: u32 = 1247;
const DB: u32 = 5;

struct Server(Synth);

impl Server {
    fn new() -> Self {
        let start = Lsn::new(1 << 24);
        Server(Synth::new(WalVersion::V16, SegmentSize::DEFAULT, SystemId(7), TimelineId(1), start))
    }

    fn words(&mut self, rmgr: u8, info: u8, xid: u32, words: &[u32]) {
        let main: Vec<_> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.0.main_record(rmgr, info, xid, &main);
    }

    /// A heap record on one block of a catalog.
    fn heap(&mut self, info: u8, xid: u32, (tablespace, database, relation): (u32, u32, u32), main: &[u8]) {
        let mut body = vec![0, 0, 0, 0];
        for number in [tablespace, database, relation, 0] {
            body.extend_from_slice(&u32::to_le_bytes(number));
        }
        body.extend_from_slice(&[255, main.len() as u8]);
        body.extend_from_slice(main);
        self.0.record(rmgr::HEAP, info, xid, &body);
    }

    fn insert_row(&mut self, xid: u32, catalog: u32, offset: u8) {
        self.heap(0x00, xid, (1663, DB, catalog), &[offset, 0, 0]);
    }

    fn delete_row(&mut self, xid: u32, catalog: u32, offset: u8) {
        self.heap(0x10, xid, (1663, DB, catalog), &[0, 0, 0, 0, offset, 0, 0, 0]);
    }

    fn delete_database_row(&mut self, xid: u32) {
        self.heap(0x10, xid, (1664, 0, 1262), &[0, 0, 0, 0, 1, 0, 0, 0]);
    }

    fn make_file(&mut self, xid: u32, number: u32) {
        self.words(rmgr::SMGR, 0x10, xid, &[1663, DB, number, 0]);
    }

    /// A commit (or, with `abort`, a rollback) of `xid` and `subxids`, by which `files` go.
    fn finish(&mut self, xid: u32, abort: bool, subxids: &[u32], files: &[u32]) {
        let mut main = 1i64.to_le_bytes().to_vec();
        let mut words = vec![1 << 1 | 1 << 2, subxids.len() as u32];
        words.extend_from_slice(subxids);
        words.push(files.len() as u32);
        words.extend(files.iter().flat_map(|file| [1663, DB, *file]));
        main.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        self.0.main_record(rmgr::XACT, 0x80 | if abort { 0x20 } else { 0 }, xid, &main);
    }

    fn events(mut self) -> Vec<Event> {
        let mut summarizer = Summarizer::new(SegmentSize::DEFAULT, Lsn::new(1 << 24), DecodeFrom::Anywhere);
        summarizer.feed(summarizer.position(), &self.0.take());
        let summary = summarizer.take();
        assert_eq!(summary.unread_count, 0);
        summary.events
    }

    fn kinds(self) -> Vec<EventKind> {
        self.events().iter().map(|event| event.kind).collect()
    }
}

#[test]
fn rows_made_in_a_subtransaction_are_the_transactions_own() {
    let mut server = Server::new();
    server.make_file(11, 16500);
    server.insert_row(11, CLASS, 1);
    server.insert_row(11, TYPE, 1);
    server.delete_row(12, TYPE, 1);
    server.delete_row(12, CLASS, 1);
    server.finish(10, false, &[11, 12], &[16500]);
    assert_eq!(server.kinds(), []);
}

#[test]
fn what_was_rolled_back_counts_for_nothing() {
    let mut server = Server::new();
    server.delete_row(11, CLASS, 1);
    server.delete_row(11, TYPE, 1);
    server.finish(11, true, &[], &[]);
    server.make_file(10, 16500);
    server.insert_row(10, CLASS, 2);
    server.finish(10, false, &[], &[16400]);
    assert_eq!(server.kinds(), [EventKind::Rewrite]);
}

#[test]
fn what_a_crash_left_behind_is_forgotten() {
    let running =
        |server: &mut Server, oldest| server.words(rmgr::STANDBY, 0x10, 0, &[0, 0, 0, 30, oldest, 0]);
    for (oldest, expected) in [(10, vec![]), (20, vec![EventKind::Drop])] {
        let mut server = Server::new();
        server.insert_row(10, CLASS, 1);
        server.insert_row(10, TYPE, 1);
        running(&mut server, oldest);
        // The same place, if the transaction is gone, holds another row by now.
        server.delete_row(20, CLASS, 1);
        server.delete_row(20, TYPE, 1);
        server.make_file(20, 16600);
        server.finish(20, false, &[], &[16500]);
        let expected = if expected.is_empty() { vec![EventKind::Rewrite] } else { expected };
        assert_eq!(server.kinds(), expected, "oldest running {oldest}");
    }
}

#[test]
fn a_transaction_too_large_to_follow_shows_as_a_drop() {
    let mut server = Server::new();
    for number in 0..2000 {
        server.make_file(10, 20_000 + number);
    }
    server.delete_row(10, CLASS, 1);
    server.delete_row(10, TYPE, 1);
    server.finish(10, false, &[], &[16500]);
    assert_eq!(server.kinds(), [EventKind::Drop]);
}

#[test]
fn an_event_counts_all_relations_and_names_the_first() {
    let mut server = Server::new();
    server.delete_row(10, CLASS, 1);
    server.delete_row(10, TYPE, 1);
    let files: Vec<_> = (16384..16484).collect();
    server.finish(10, false, &[], &files);
    let [event] = &server.events()[..] else { panic!() };
    assert_eq!((event.relation_count, event.relations.len()), (100, EVENT_RELATIONS_MAX));
    assert_eq!((event.relations[0].relation, event.database, event.xid), (16384, DB, 10));
    assert_eq!(event.time, Timestamp::from_micros(1));
}

#[test]
fn a_database_that_failed_to_move_is_dropped_all_the_same() {
    let copy = [50, 1700, 50, 1663];
    let mut moved = Server::new();
    moved.words(rmgr::DBASE, 0x00, 10, &copy);
    moved.words(rmgr::DBASE, 0x20, 0, &[50, 1, 1663]);
    moved.delete_database_row(12);
    moved.words(rmgr::DBASE, 0x20, 12, &[50, 1, 1700]);
    assert_eq!(moved.kinds(), [EventKind::DropDatabase]);
    let mut failed = Server::new();
    failed.words(rmgr::DBASE, 0x00, 10, &copy);
    failed.finish(10, true, &[], &[]);
    failed.delete_database_row(12);
    failed.words(rmgr::DBASE, 0x20, 12, &[50, 1, 1663]);
    assert_eq!(failed.kinds(), [EventKind::DropDatabase]);
}

#[test]
fn a_failed_creation_cleans_up_without_an_event() {
    let mut server = Server::new();
    server.words(rmgr::DBASE, 0x10, 10, &[60, 1663]);
    server.words(rmgr::DBASE, 0x20, 10, &[60, 1, 1663]);
    server.finish(10, true, &[], &[]);
    assert_eq!(server.kinds(), [EventKind::CreateDatabase]);
}

#[test]
fn a_copied_database_has_its_sources_map() {
    let mut server = Server::new();
    // pg_class of database 5 is moved to 30000, then 5 is copied to 6; a table is dropped there.
    server.words(rmgr::RELMAP, 0x00, 9, &[DB, 1663, 512, 0x0059_2717, 2, CLASS, 30_000, TYPE, TYPE]);
    server.words(rmgr::DBASE, 0x00, 9, &[6, 1663, DB, 1663]);
    server.make_file(10, 40_000);
    server.heap(0x10, 10, (1663, 6, 30_000), &[0, 0, 0, 0, 1, 0, 0, 0]);
    server.heap(0x10, 10, (1663, 6, TYPE), &[0, 0, 0, 0, 1, 0, 0, 0]);
    server.finish(10, false, &[], &[16500]);
    assert_eq!(server.kinds(), [EventKind::CreateDatabase, EventKind::Drop]);
}
