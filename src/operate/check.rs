//! `walden check`: is everything so that WAL is archived and backups can be made? What the server says is gathered by
//! [`gather`], judged here without IO, a finding for each question.

pub mod gather;

use super::exit::Exit;
use super::units::Bytes;
use crate::base::{SystemId, limits};
use std::collections::BTreeMap;

/// How good an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, and may hurt one day.
    Warn,
    /// It does not work.
    Fail(Exit),
}

impl Level {
    /// One word for it.
    pub fn word(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail(_) => "fail",
        }
    }
}

/// The answer to one question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub name: &'static str,
    /// How good it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do, when something is to be done.
    pub hint: Option<String>,
}

impl Finding {
    /// A finding of `level`.
    pub fn new(name: &'static str, level: Level, found: impl ToString, hint: impl ToString) -> Finding {
        Finding { name, level, found: found.to_string(), hint: Some(hint.to_string()) }
    }

    /// As it should be.
    pub fn ok(name: &'static str, found: impl ToString) -> Finding {
        Finding { name, level: Level::Ok, found: found.to_string(), hint: None }
    }
}

/// What a server says of itself and of us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// server_version_num.
    pub version: u32,
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// The role we are.
    pub user: String,
    /// Whether the role may replicate (or is superuser).
    pub may_replicate: bool,
    /// Whether it may read settings and files of the server, for configuration kept outside the data directory.
    pub may_read_files: bool,
    /// WAL senders connected.
    pub senders: u64,
    /// Replication slots.
    pub slots: u64,
    /// Our slot, if it exists.
    pub slot: Option<SlotFacts>,
    /// Settings by name, in their base units.
    pub settings: BTreeMap<String, String>,
}

/// What a server says of a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotFacts {
    /// Whether it is physical.
    pub physical: bool,
    /// Whether a receiver is connected.
    pub active: bool,
    /// `reserved`, `extended`, `unreserved` or `lost`; none before it ever held WAL.
    pub wal_status: Option<String>,
    /// Bytes of WAL held for it.
    pub retained_bytes: u64,
    /// Bytes that may still be written before it is lost.
    pub safe_bytes: Option<u64>,
}

/// The settings that [`judge`] looks at.
pub const SETTINGS: &[&str] = &[
    "block_size",
    "data_checksums",
    "full_page_writes",
    "idle_replication_slot_timeout",
    "max_replication_slots",
    "max_slot_wal_keep_size",
    "max_wal_senders",
    "wal_level",
    "wal_sender_timeout",
];

/// Judges what was gathered; `slot` is the name of ours.
pub fn judge(facts: &Facts, slot: &str) -> Vec<Finding> {
    let judge = Judge { facts };
    let findings = [
        Some(judge.version()),
        Some(judge.role()),
        Some(judge.configuration_files()),
        Some(judge.wal_level()),
        Some(judge.senders()),
        Some(judge.slot(slot)),
        Some(judge.keep_size()),
        judge.idle_timeout(),
        Some(judge.full_page_writes()),
        Some(judge.checksums()),
        Some(judge.sender_timeout()),
        Some(judge.block_size()),
    ];
    findings.into_iter().flatten().collect()
}

/// Compares the server's system identifier with the one stored for the cluster, if there is one.
pub fn system_identifier(server: SystemId, stored: Option<SystemId>) -> Finding {
    const NAME: &str = "system identifier";
    match stored {
        Some(stored) if stored != server => Finding::new(
            NAME,
            Level::Fail(Exit::WrongSystem),
            format!("{server}, but the cluster in the repository has {stored}"),
            "check --connection, or store this server under another --cluster",
        ),
        Some(_) => Finding::ok(NAME, format!("{server}, as stored")),
        None => Finding::ok(
            NAME,
            format!("{server}, not stored yet: the first `walden receive` or backup stores it"),
        ),
    }
}

/// Whether `free` bytes are enough for what is written to `place`.
pub fn free_space(name: &'static str, place: &str, free: u64, low: u64) -> Finding {
    let found = format!("{} free in {place}", Bytes(free));
    if free >= low {
        return Finding::ok(name, found);
    }
    Finding::new(name, Level::Warn, found, format!("make room: at least {} should be free", Bytes(low)))
}

struct Judge<'a> {
    facts: &'a Facts,
}

impl Judge<'_> {
    fn setting(&self, name: &str) -> &str {
        self.facts.settings.get(name).map_or("unknown", String::as_str)
    }

    fn number(&self, name: &str) -> Option<i64> {
        self.setting(name).parse().ok()
    }

    fn version(&self) -> Finding {
        let (major, minor) = (self.facts.version / 10_000, self.facts.version % 10_000);
        let kind = if self.facts.in_recovery { "a standby" } else { "a primary" };
        let found = format!("{major}.{minor}, {kind}");
        if (14..=18).contains(&major) {
            return Finding::ok("version", found);
        }
        Finding::new("version", Level::Fail(Exit::Postgres), found, "walden works with PostgreSQL 14 to 18")
    }

    fn role(&self) -> Finding {
        let user = &self.facts.user;
        if self.facts.may_replicate {
            return Finding::ok("role", format!("{user} may replicate"));
        }
        let hint = format!("ALTER ROLE {user} REPLICATION");
        Finding::new("role", Level::Fail(Exit::Postgres), format!("{user} may not replicate"), hint)
    }

    fn configuration_files(&self) -> Finding {
        let user = &self.facts.user;
        if self.facts.may_read_files {
            return Finding::ok(
                "configuration",
                format!("{user} may read configuration files outside the data directory"),
            );
        }
        Finding::new(
            "configuration",
            Level::Warn,
            format!(
                "{user} may not read configuration files outside the data directory: backups are made without them"
            ),
            format!("GRANT pg_read_all_settings, pg_read_server_files TO {user}"),
        )
    }

    fn wal_level(&self) -> Finding {
        match self.setting("wal_level") {
            level @ ("replica" | "logical") => Finding::ok("wal_level", level),
            level => Finding::new(
                "wal_level",
                Level::Fail(Exit::Postgres),
                level,
                "set wal_level = replica and restart PostgreSQL",
            ),
        }
    }

    fn senders(&self) -> Finding {
        let (max, used) = (self.number("max_wal_senders").unwrap_or(0), self.facts.senders);
        let free = u64::try_from(max).unwrap_or(0).saturating_sub(used);
        let found = format!("{used} of max_wal_senders = {max} in use");
        let ours = u64::from(self.facts.slot.as_ref().is_some_and(|slot| slot.active));
        match free + ours {
            0 => Finding::new(
                "senders",
                Level::Fail(Exit::Postgres),
                found,
                "raise max_wal_senders and restart PostgreSQL",
            ),
            1 => Finding::new(
                "senders",
                Level::Warn,
                found,
                "walden needs one for receiving and one for each backup that runs: raise max_wal_senders",
            ),
            _ => Finding::ok("senders", found),
        }
    }

    fn slot(&self, name: &str) -> Finding {
        let Some(slot) = &self.facts.slot else {
            let (max, used) = (self.number("max_replication_slots").unwrap_or(0), self.facts.slots);
            let found = format!("{name} does not exist yet, {used} of max_replication_slots = {max} in use");
            if i64::try_from(used).unwrap_or(i64::MAX) >= max {
                let hint = "raise max_replication_slots and restart PostgreSQL";
                return Finding::new("slot", Level::Fail(Exit::Postgres), found, hint);
            }
            return Finding::new("slot", Level::Warn, found, "`walden receive` creates it: start it");
        };
        let status = slot.wal_status.as_deref().unwrap_or("holds no WAL yet");
        let mut found = format!("{name} {status}, holds {}", Bytes(slot.retained_bytes));
        if let Some(safe) = slot.safe_bytes {
            found += &format!(", {} until it is lost", Bytes(safe));
        }
        if !slot.physical {
            let hint = "choose another name with --slot, or drop that slot";
            return Finding::new(
                "slot",
                Level::Fail(Exit::Conflict),
                format!("{name} is a logical slot"),
                hint,
            );
        }
        match status {
            "lost" => Finding::new(
                "slot",
                Level::Fail(Exit::Postgres),
                found,
                "WAL was removed before it was archived: a running `walden receive` records the gap; take a backup after it",
            ),
            "unreserved" => Finding::new(
                "slot",
                Level::Warn,
                found,
                "WAL is about to be removed: see why `walden receive` is behind",
            ),
            _ if !slot.active => Finding::new(
                "slot",
                Level::Warn,
                format!("{found}, nobody is connected"),
                "start `walden receive`",
            ),
            _ => Finding::ok("slot", found),
        }
    }

    fn keep_size(&self) -> Finding {
        const NAME: &str = "max_slot_wal_keep_size";
        match self.number(NAME) {
            Some(-1) => Finding::new(
                NAME,
                Level::Warn,
                "-1: a slot that nobody reads keeps WAL until the server's disk is full",
                "set it to what the disk can spare; WAL lost that way is a recorded gap, not a stopped server",
            ),
            Some(mib) => Finding::ok(NAME, Bytes(u64::try_from(mib).unwrap_or(0) << 20)),
            None => Finding::new(NAME, Level::Warn, self.setting(NAME), "expected a number"),
        }
    }

    fn idle_timeout(&self) -> Option<Finding> {
        const NAME: &str = "idle_replication_slot_timeout";
        let value = self.facts.settings.get(NAME)?;
        Some(if value == "0" {
            Finding::ok(NAME, "0, slots do not expire")
        } else {
            Finding::new(
                NAME,
                Level::Warn,
                value,
                "a receiver that is down for longer loses its slot, and WAL with it",
            )
        })
    }

    fn full_page_writes(&self) -> Finding {
        match self.setting("full_page_writes") {
            "on" => Finding::ok("full_page_writes", "on"),
            other => Finding::new(
                "full_page_writes",
                Level::Fail(Exit::Postgres),
                format!("{other}: pages of a backup may be torn beyond repair"),
                "set full_page_writes = on and reload PostgreSQL",
            ),
        }
    }

    fn checksums(&self) -> Finding {
        match self.setting("data_checksums") {
            "on" => Finding::ok("checksums", "on"),
            other => Finding::new(
                "checksums",
                Level::Warn,
                format!("data_checksums = {other}: damage on the server's disk is backed up unseen"),
                "stop the server and run pg_checksums --enable",
            ),
        }
    }

    fn sender_timeout(&self) -> Finding {
        const NAME: &str = "wal_sender_timeout";
        match self.number(NAME) {
            Some(0) => Finding::new(
                NAME,
                Level::Warn,
                "0: the server never notices that a receiver is gone, and keeps its slot in use",
                "set it to 60s",
            ),
            Some(millis) if millis < 5_000 => Finding::new(
                NAME,
                Level::Warn,
                format!("{millis} ms: short stalls end the stream"),
                "set it to 60s",
            ),
            Some(millis) => Finding::ok(NAME, format!("{} s", millis / 1000)),
            None => Finding::new(NAME, Level::Warn, self.setting(NAME), "expected a number"),
        }
    }

    fn block_size(&self) -> Finding {
        let found = self.setting("block_size");
        if found == limits::BLOCK_BYTES.to_string() {
            return Finding::ok("block size", found);
        }
        Finding::new(
            "block size",
            Level::Fail(Exit::Postgres),
            found,
            "walden works with blocks of 8192 bytes only",
        )
    }
}

#[cfg(test)]
mod tests;
