//! What transactions did to relations and databases: dropped, emptied, or rewrote them.
//!
//! A commit record lists the files that go away with it and says no more: DROP TABLE, TRUNCATE, VACUUM FULL and REINDEX
//! look alike there. What tells them apart came before, in the rows of pg_class, pg_type and pg_index that the transaction
//! changed, and in the files that it made. Found by reading the WAL of servers of all five versions (tests/wal/changes.rs):
//!
//! - A dropped relation loses its pg_class row, and a table its pg_type row too; an index only its pg_index row beside.
//! - VACUUM FULL, CLUSTER, ALTER TABLE and REFRESH make a new table under a name of its own, fill it, exchange the files, and
//!   drop it: the pg_class and pg_type rows that go are ones that the same transaction made. (Indexes and TOAST tables may
//!   be dropped and made anew, but their pg_type row does not exist.)
//! - TRUNCATE and REINDEX give the row that is there a new file: a file is made, then the pg_class row updated. After
//!   TRUNCATE the file has no block, or blocks that a table's inserts wrote; an index always has a page at least, from its build.
//! - REINDEX CONCURRENTLY ends with a transaction like DROP INDEX's, on the row that an earlier one exchanged.
//! - A file made and dropped in one transaction was never anybody's.
//! - A database copied onto itself is on its way to another tablespace, and the drop that follows is of the old place.
//!
//! Rows are told apart by their place (block and line pointer), since WAL rarely has their contents. All is followed within
//! bounds, and from where reading began: what was not seen makes a drop of a rewrite, never a rewrite of a drop.

use super::catalog::{Catalog, Catalogs, Row, RowChange, row_change};
use super::fact::Fact;
use super::finish::{Finished, Outcome};
use super::record::{Fragment, rmgr};
use super::scan::RawRecord;
use crate::format::wal::{EventKind, RelationRef};
use std::collections::{HashMap, HashSet};

/// Relations that an event names; it counts all.
pub const EVENT_RELATIONS_MAX: usize = 32;
/// Files, rows and transactions followed at a time. Beyond, all is forgotten and following begins anew.
const FOLLOWED_MAX: usize = if cfg!(test) { 1000 } else { 200_000 };
/// Rows that REINDEX CONCURRENTLY left to be dropped, remembered at a time.
const RETIRED_MAX: usize = 10_000;

/// Updated pg_class rows remembered of a transaction: REINDEX CONCURRENTLY exchanges one index in each of its own.
const UPDATED_MAX: usize = 16;

/// What a commit did to relations, or a record to a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub kind: EventKind,
    pub database: u32,
    pub relation_count: u32,
    pub relations: Vec<RelationRef>,
}

/// Follows the transactions that are under way.
#[derive(Debug, Default)]
pub(super) struct Changes {
    catalogs: Catalogs,
    transactions: HashMap<u32, Transaction>,
    /// Files made by transactions under way.
    files: HashMap<RelationRef, File>,
    /// Catalog rows made by transactions under way. Whoever changes one of them is the same transaction: others do not see it.
    rows: HashSet<Row>,
    /// pg_class rows of indexes that a committed REINDEX CONCURRENTLY exchanged for new ones.
    retired: HashSet<Row>,
    /// Databases whose files were copied to another tablespace.
    moved: HashSet<u32>,
    /// Databases being created, and by which transaction.
    creating: HashMap<u32, u32>,
}

/// What a transaction, or a subtransaction, did so far.
#[derive(Debug, Default)]
struct Transaction {
    files: Vec<RelationRef>,
    rows: Vec<Row>,
    /// The file made last, until a pg_class row says whose it is.
    unclaimed: Option<RelationRef>,
    /// The first pg_class rows that it updated, where they are now.
    updated: Vec<Row>,
    seen: Counts,
}

/// Changes to catalogs, counted.
#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    class_inserts: usize,
    class_updates: usize,
    index_updates: usize,
    /// Deleted rows that were there before the transaction.
    class_deletes: usize,
    type_deletes: usize,
    index_deletes: usize,
    database_deletes: usize,
    /// Of the deleted pg_class rows, those of indexes that REINDEX CONCURRENTLY exchanged.
    retired_deletes: usize,
    /// Deleted rows that the transaction had made itself.
    own_deletes: usize,
    /// Files made for relations without WAL.
    unlogged_files: usize,
}

/// A file made by a transaction under way.
#[derive(Debug, Clone, Copy, Default)]
struct File {
    /// It replaces the file of a relation that was there.
    replaces: bool,
    /// Something was written to it.
    written: bool,
    /// By a table's access method.
    written_as_table: bool,
}

impl Changes {
    /// Looks at a record.
    pub fn record(&mut self, record: &RawRecord<'_>) {
        if let Some(change) = row_change(record, &self.catalogs) {
            self.row_changed(record.header.xid, change);
        }
        if !self.files.is_empty() {
            self.mark_written(record);
        }
    }

    fn mark_written(&mut self, record: &RawRecord<'_>) {
        let by_table = matches!(record.header.rmgr, rmgr::HEAP | rmgr::HEAP2);
        for fragment in record.fragments() {
            let Ok(Fragment::Block(block)) = fragment else { break };
            if let Some(file) = self.files.get_mut(&block.relation).filter(|_| block.fork == 0) {
                file.written = true;
                file.written_as_table |= by_table;
            }
        }
    }

    fn row_changed(&mut self, xid: u32, change: RowChange) {
        self.stay_within_bounds(xid);
        let transaction = self.transactions.entry(xid).or_default();
        let class = change.catalog == Catalog::Class;
        let own = change.old.is_none_or(|row| self.rows.remove(&row));
        if let Some(row) = change.new {
            // An update leaves a row what it was: the transaction's own, or one that was there before.
            if own {
                self.rows.insert(row);
                transaction.rows.push(row);
            }
            if class {
                transaction.claim_file(change.old.is_some() && !own, &mut self.files);
                if change.old.is_some() && transaction.updated.len() < UPDATED_MAX {
                    transaction.updated.push(row);
                }
            }
        }
        let retired = class && change.old.is_some_and(|row| self.retired.remove(&row));
        transaction.seen.count(&change, own, retired);
    }

    /// Looks at a fact; the change that it completes.
    pub fn fact(&mut self, record: &RawRecord<'_>, fact: &Fact) -> Option<Change> {
        let xid = record.header.xid;
        match fact {
            Fact::Finished(finished) => return self.finished(finished),
            Fact::FileCreated { relation, fork } if xid != 0 => self.file_created(xid, *relation, *fork),
            Fact::RunningXacts { oldest_running, .. } => self.forget_before(*oldest_running),
            Fact::RelationMap { database, mappings } => self.catalogs.remap(*database, mappings),
            Fact::DatabaseCreated { database, source, .. } => {
                return self.database_created(xid, *database, source.map(|(database, _)| database));
            }
            Fact::DatabaseDropped { database, .. } => return self.database_dropped(xid, *database),
            _ => {}
        }
        None
    }

    fn file_created(&mut self, xid: u32, relation: RelationRef, fork: u32) {
        self.stay_within_bounds(xid);
        let transaction = self.transactions.entry(xid).or_default();
        match fork {
            0 => {
                self.files.insert(relation, File::default());
                transaction.files.push(relation);
                transaction.unclaimed = Some(relation);
            }
            3 => transaction.seen.unlogged_files += 1,
            _ => {}
        }
    }

    fn database_created(&mut self, xid: u32, database: u32, source: Option<u32>) -> Option<Change> {
        self.stay_within_bounds(xid);
        if source == Some(database) {
            self.moved.insert(database);
            return None;
        }
        if let Some(source) = source {
            self.catalogs.copy(source, database);
        }
        self.creating.insert(database, xid);
        Some(database_change(EventKind::CreateDatabase, database))
    }

    fn database_dropped(&mut self, xid: u32, database: u32) -> Option<Change> {
        let deletes_row =
            self.transactions.get(&xid).is_some_and(|transaction| transaction.seen.database_deletes > 0);
        let cleaning_up = self.creating.get(&database) == Some(&xid);
        let leaving_tablespace = self.moved.remove(&database) && !deletes_row;
        let dropped = !cleaning_up && !leaving_tablespace;
        dropped.then(|| database_change(EventKind::DropDatabase, database))
    }

    fn finished(&mut self, finished: &Finished) -> Option<Change> {
        let all = std::iter::once(&finished.xid).chain(&finished.subxids);
        let parts: Vec<_> = all.filter_map(|xid| self.transactions.remove(xid)).collect();
        self.creating.retain(|_, xid| *xid != finished.xid);
        let mut whole = Transaction::default();
        let mut made = HashMap::new();
        for part in parts {
            for row in &part.rows {
                self.rows.remove(row);
            }
            made.extend(part.files.iter().filter_map(|file| Some((*file, self.files.remove(file)?))));
            whole.join(part);
        }
        if finished.outcome == Outcome::Abort {
            return None;
        }
        if whole.seen.exchanges_indexes() && made.is_empty() && self.retired.len() < RETIRED_MAX {
            self.retired.extend(&whole.updated);
        }
        if finished.dropped_count == 0 {
            return None;
        }
        let before = |relation: &&RelationRef| !made.contains_key(*relation);
        let gone: Vec<_> = finished.dropped.iter().filter(before).copied().collect();
        let kind = whole.seen.kind(&gone, &made)?;
        let own_count = finished.dropped.len() - gone.len();
        Some(Change {
            kind,
            database: gone.first().map_or(finished.database, |relation| relation.database),
            relation_count: finished.dropped_count.saturating_sub(own_count as u32),
            relations: gone.into_iter().take(EVENT_RELATIONS_MAX).collect(),
        })
    }

    /// Forgets transactions that ended without a record, in a crash.
    fn forget_before(&mut self, oldest_running: u32) {
        let ended = |xid: u32| (xid.wrapping_sub(oldest_running) as i32) < 0;
        self.creating.retain(|_, xid| !ended(*xid));
        let gone: Vec<_> = self.transactions.keys().copied().filter(|xid| ended(*xid)).collect();
        for transaction in gone.iter().filter_map(|xid| self.transactions.remove(xid)) {
            for row in &transaction.rows {
                self.rows.remove(row);
            }
            for file in &transaction.files {
                self.files.remove(file);
            }
        }
    }

    fn stay_within_bounds(&mut self, xid: u32) {
        let places = self.transactions.len() + self.files.len() + self.moved.len() + self.creating.len();
        // A row that is updated over and over is there once, and named often.
        let rows =
            self.rows.len().max(self.transactions.get(&xid).map_or(0, |transaction| transaction.rows.len()));
        if places + rows > FOLLOWED_MAX {
            let catalogs = std::mem::take(&mut self.catalogs);
            *self = Changes { catalogs, ..Changes::default() };
        }
    }
}

impl Transaction {
    /// The pg_class row that comes after a new file is the one that names it. `replaces`: the relation was there before.
    fn claim_file(&mut self, replaces: bool, files: &mut HashMap<RelationRef, File>) {
        if let Some(file) = self.unclaimed.take().and_then(|relation| files.get_mut(&relation)) {
            file.replaces = replaces;
        }
    }

    /// Adds what a subtransaction did.
    fn join(&mut self, part: Transaction) {
        self.updated.extend(part.updated);
        let (all, some) = (&mut self.seen, part.seen);
        for (to, from) in [
            (&mut all.class_inserts, some.class_inserts),
            (&mut all.class_updates, some.class_updates),
            (&mut all.index_updates, some.index_updates),
            (&mut all.class_deletes, some.class_deletes),
            (&mut all.type_deletes, some.type_deletes),
            (&mut all.index_deletes, some.index_deletes),
            (&mut all.database_deletes, some.database_deletes),
            (&mut all.retired_deletes, some.retired_deletes),
            (&mut all.own_deletes, some.own_deletes),
            (&mut all.unlogged_files, some.unlogged_files),
        ] {
            *to += from;
        }
    }
}

impl Counts {
    fn count(&mut self, change: &RowChange, own: bool, retired: bool) {
        let counter = match (change.catalog, change.old, change.new) {
            (Catalog::Class, None, _) => &mut self.class_inserts,
            (Catalog::Class, Some(_), Some(_)) => &mut self.class_updates,
            (Catalog::Index, Some(_), Some(_)) => &mut self.index_updates,
            (_, Some(_), None) if own => &mut self.own_deletes,
            (Catalog::Class, Some(_), None) => &mut self.class_deletes,
            (Catalog::Type, Some(_), None) => &mut self.type_deletes,
            (Catalog::Index, Some(_), None) => &mut self.index_deletes,
            (Catalog::Database, Some(_), None) => &mut self.database_deletes,
            (Catalog::Type | Catalog::Index | Catalog::Database, _, _) => return,
        };
        *counter += 1;
        self.retired_deletes += usize::from(retired && change.new.is_none());
    }

    /// The step of REINDEX CONCURRENTLY that gives the new index the old one's name: it updates the pg_class and pg_index rows
    /// of both, and does nothing else to relations.
    fn exchanges_indexes(&self) -> bool {
        self.class_updates >= 2 && self.index_updates >= 2 && self.class_inserts + self.class_deletes == 0
    }

    /// What a commit did by which the files `gone`, older than it, go away; `made` are the files it leaves.
    fn kind(&self, gone: &[RelationRef], made: &HashMap<RelationRef, File>) -> Option<EventKind> {
        if gone.is_empty() {
            return None;
        }
        let same_place = |file: &RelationRef| {
            gone.iter().any(|old| (old.tablespace, old.database) == (file.tablespace, file.database))
        };
        let emptied = |(relation, file): (&RelationRef, &File)| {
            file.replaces && (!file.written || file.written_as_table) && same_place(relation)
        };
        let knows_class = self.class_inserts + self.class_updates + self.class_deletes + self.own_deletes > 0;
        let makes_files = !made.is_empty() || self.unlogged_files > 0;
        Some(if !knows_class || (self.class_deletes > 0 && self.type_deletes > 0) {
            EventKind::Drop
        } else if made.iter().any(emptied) {
            EventKind::Truncate
        } else if self.class_deletes > 0 && !makes_files {
            match self.class_deletes {
                deletes if deletes == self.retired_deletes => EventKind::Rewrite,
                deletes if deletes <= self.index_deletes => EventKind::DropIndex,
                _ => EventKind::Drop,
            }
        } else if makes_files || self.class_updates > 0 {
            EventKind::Rewrite
        } else {
            // Only rows of its own deleted: a table created and dropped, the first by a record without a transaction.
            return None;
        })
    }
}

fn database_change(kind: EventKind, database: u32) -> Change {
    Change { kind, database, relation_count: 0, relations: Vec::new() }
}

#[cfg(test)]
mod tests;
