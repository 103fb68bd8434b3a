//! Rows of the four catalogs that tell what a transaction did: which files the catalogs are, and which rows a record
//! makes, moves and removes (`access/heapam_xlog.h`, `utils/relmapper.h`).

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::record::{BlockRef, Fragment, rmgr};
use super::scan::RawRecord;
use std::collections::HashMap;

/// A catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Catalog {
    /// pg_class: a row for every relation, with its filenumber.
    Class,
    /// pg_type: a row for every table's row type, among others; none for indexes, sequences and TOAST tables.
    Type,
    /// pg_index: a row for every index.
    Index,
    /// pg_database.
    Database,
}

/// Filenumbers that initdb gives the catalogs: their oids.
const CLASS: u32 = 1259;
const TYPE: u32 = 1247;
const INDEX: u32 = 2610;
const DATABASE: u32 = 1262;
/// The first filenumber that is not a catalog's as initdb made it.
const FIRST_NORMAL: u32 = 16384;
/// Databases whose maps are remembered.
const MAPS_MAX: usize = 10_000;

/// Which files the catalogs are. PostgreSQL keeps three of the four in a map beside the data, since they cannot be looked up in
/// pg_class; it logs the map when VACUUM FULL gives one a new file. pg_index is not in it: rewritten, it is not recognised.
#[derive(Debug, Default)]
pub(super) struct Catalogs {
    maps: HashMap<u32, Map>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Map {
    class: u32,
    kind: u32,
    database: u32,
}

const INITIAL: Map = Map { class: CLASS, kind: TYPE, database: DATABASE };

impl Catalogs {
    /// The catalog that `database` (0 for the shared ones) keeps in file `filenumber`.
    fn find(&self, database: u32, filenumber: u32) -> Option<Catalog> {
        if filenumber >= FIRST_NORMAL && self.maps.is_empty() {
            return None;
        }
        let map = self.maps.get(&database).unwrap_or(&INITIAL);
        match database {
            0 if filenumber == map.database => Some(Catalog::Database),
            0 => None,
            _ if filenumber == map.class => Some(Catalog::Class),
            _ if filenumber == map.kind => Some(Catalog::Type),
            _ if filenumber == INDEX => Some(Catalog::Index),
            _ => None,
        }
    }

    /// Takes over the map of `database`: oid and filenumber of each catalog in it.
    pub fn remap(&mut self, database: u32, mappings: &[(u32, u32)]) {
        let find = |oid| {
            mappings.iter().find(|(mapped, _)| *mapped == oid).map_or(oid, |(_, filenumber)| *filenumber)
        };
        self.set(database, Map { class: find(CLASS), kind: find(TYPE), database: find(DATABASE) });
    }

    /// `database` was copied from `source`, map included.
    pub fn copy(&mut self, source: u32, database: u32) {
        self.set(database, self.maps.get(&source).copied().unwrap_or(INITIAL));
    }

    fn set(&mut self, database: u32, map: Map) {
        if map == INITIAL {
            self.maps.remove(&database);
        } else if self.maps.len() < MAPS_MAX || self.maps.contains_key(&database) {
            self.maps.insert(database, map);
        }
    }
}

/// The place of a row: database, file, block and line pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Row {
    database: u32,
    filenumber: u32,
    block: u32,
    offset: u16,
}

/// What a record does to a catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RowChange {
    pub catalog: Catalog,
    /// The row that was; none in an insert.
    pub old: Option<Row>,
    /// The row that is; none in a delete.
    pub new: Option<Row>,
}

const INSERT: u8 = 0x00;
const DELETE: u8 = 0x10;
const UPDATE: u8 = 0x20;
const HOT_UPDATE: u8 = 0x40;
const HEAP_OPERATION_MASK: u8 = 0x70;

/// What `record` does to a row of a catalog, if that is what it does.
pub(super) fn row_change(record: &RawRecord<'_>, catalogs: &Catalogs) -> Option<RowChange> {
    if record.header.rmgr != rmgr::HEAP {
        return None;
    }
    let operation = record.header.info & HEAP_OPERATION_MASK;
    if !matches!(operation, INSERT | DELETE | UPDATE | HOT_UPDATE) {
        return None;
    }
    let mut fragments = record.fragments();
    let Some(Ok(Fragment::Block(block))) = fragments.next() else { return None };
    let catalog = catalogs.find(block.relation.database, block.relation.relation)?;
    let main = record.main_data();
    let offset = |at: usize| main.array(at).map(u16::from_le_bytes);
    let row = |block: BlockRef, offset: u16| Row {
        database: block.relation.database,
        filenumber: block.relation.relation,
        block: block.block,
        offset,
    };
    let (old, new) = match operation {
        INSERT => (None, Some(row(block, offset(0)?))),
        DELETE => (Some(row(block, offset(4)?)), None),
        // The first block is the new row's; a second of the main fork the old one's, when they differ.
        _ => {
            let other = fragments.find_map(|fragment| match fragment {
                Ok(Fragment::Block(other)) if other.fork == 0 => Some(other),
                _ => None,
            });
            (Some(row(other.unwrap_or(block), offset(4)?)), Some(row(block, offset(12)?)))
        }
    };
    Some(RowChange { catalog, old, new })
}
