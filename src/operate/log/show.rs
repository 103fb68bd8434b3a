//! The document as a person reads it: what happened, and the options that restore the moment before.

use super::{Entry, Log};
use std::fmt;

/// Relations named in one line.
const RELATIONS_SHOWN: usize = 3;

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for at in &self.unread {
            writeln!(
                f,
                "WAL that could not be read, {at}: what it did is not listed (`walden verify` says more)"
            )?;
        }
        if self.entries.is_empty() {
            return writeln!(f, "the archive of {} holds nothing of what was asked for", self.cluster);
        }
        if self.left_out > 0 {
            writeln!(f, "{} older entries are not shown (--limit)", self.left_out)?;
        }
        writeln!(f, "{:<29}  {:<14}  {:>10}  {:<40}  everything before it", "time", "LSN", "xid", "what")?;
        self.entries.iter().try_for_each(|entry| writeln!(f, "{entry}"))
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let xid = self.xid.map(|xid| xid.to_string()).unwrap_or_default();
        write!(
            f,
            "{:<29}  {:<14}  {xid:>10}  {:<40}  {}",
            self.time,
            self.lsn,
            self.what(),
            self.restore_before
        )
    }
}

impl Entry {
    fn what(&self) -> String {
        let mut text = self.kind.replace('_', " ");
        if let Some(name) = &self.name {
            text += &format!(" {name:?}");
        }
        if self.relation_count > 0 {
            let plural = if self.relation_count == 1 { "" } else { "s" };
            text += &format!(" of {} file{plural}", self.relation_count);
        }
        if !self.relations.is_empty() {
            let shown: Vec<&str> = self.relations.iter().take(RELATIONS_SHOWN).map(String::as_str).collect();
            let more = if self.relation_count as usize > shown.len() { ", …" } else { "" };
            text += &format!(" ({}{more})", shown.join(", "));
        } else if let Some(database) = self.database {
            text += &format!(" in database {database}");
        }
        text
    }
}
