//! What transactions did to relations.

use super::fact::Fact;
use super::finish::Outcome;
use super::scan::RawRecord;
use super::summary::{Change, EVENT_RELATIONS_MAX};
use crate::format::wal::EventKind;

/// Follows transactions.
#[derive(Debug, Default)]
pub(super) struct Changes {}

impl Changes {
    /// Looks at a record.
    pub fn record(&mut self, _record: &RawRecord<'_>) {}

    /// Looks at a fact; the change that it completes.
    pub fn fact(&mut self, _record: &RawRecord<'_>, fact: &Fact) -> Option<Change> {
        match fact {
            Fact::Finished(finished) if finished.outcome == Outcome::Commit && finished.dropped_count > 0 => {
                let relations: Vec<_> = finished.dropped.iter().take(EVENT_RELATIONS_MAX).copied().collect();
                let database = relations.first().map_or(0, |relation| relation.database);
                Some(Change {
                    kind: EventKind::Drop,
                    database,
                    relation_count: finished.dropped_count,
                    relations,
                })
            }
            Fact::DatabaseCreated { database, .. } => {
                Some(database_change(EventKind::CreateDatabase, *database))
            }
            Fact::DatabaseDropped { database, .. } => {
                Some(database_change(EventKind::DropDatabase, *database))
            }
            _ => None,
        }
    }
}

fn database_change(kind: EventKind, database: u32) -> Change {
    Change { kind, database, relation_count: 0, relations: Vec::new() }
}
