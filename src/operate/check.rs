//! `walden check`: is everything so that WAL is archived and backups can be made? What the server says is judged
//! without IO, a finding for each question.

mod archived;

pub use archived::archived;

use super::exit::Exit;
use super::units::{Bytes, Span};
use crate::base::{Generation, SystemId, limits};
use crate::net::server::{RoleAttributes, ServerSettings, SlotState, WalPosition, WalStatus};
use crate::net::{Connection, PgError};
use std::time::Duration;

/// The question about the replication slot.
pub const SLOT: &str = "slot";
/// A shorter `wal_sender_timeout` ends streams that merely stall.
const SENDER_TIMEOUT_LOW: Duration = Duration::from_secs(5);

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
    /// Its settings.
    pub settings: ServerSettings,
    /// The role we are.
    pub role: RoleAttributes,
    /// WAL senders connected.
    pub senders: u32,
    /// Its replication slots.
    pub slots: Vec<SlotState>,
    /// Where it is.
    pub position: WalPosition,
}

/// Asks a server over SQL.
pub async fn gather(server: &mut Connection) -> Result<Facts, PgError> {
    Ok(Facts {
        settings: server.server_settings().await?,
        role: server.role_attributes().await?,
        senders: server.walsender_count().await?,
        slots: server.slots().await?,
        position: server.wal_position().await?,
    })
}

/// Judges what was gathered; `slot` is the name of ours.
pub fn judge(facts: &Facts, slot: &str) -> Vec<Finding> {
    let judge = Judge { facts };
    let ours = facts.slots.iter().find(|known| known.name == slot);
    let findings = [
        Some(judge.version()),
        Some(judge.role()),
        Some(judge.configuration_files()),
        Some(judge.wal_level()),
        Some(judge.senders(ours)),
        Some(judge.slot(slot, ours)),
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
            "after pg_upgrade `walden cluster upgrade` makes it the next generation; else check --connection, or store this server \
             under another --cluster",
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

/// Whether anything of the server can be restored: `complete` backups of the cluster's current generation.
pub fn backups(complete: usize, generation: Generation) -> Finding {
    const NAME: &str = "backups";
    match complete {
        0 if generation == Generation(1) => {
            warn(NAME, "no complete backup: nothing can be restored yet", "`walden backup` takes one")
        }
        0 => warn(
            NAME,
            format!(
                "no complete backup of generation {generation}: nothing of this server can be restored yet"
            ),
            "`walden backup` takes one; backups of older generations are those of other servers",
        ),
        count => Finding::ok(NAME, format!("{count} complete")),
    }
}

/// Whether WAL that was stored can still be read: `lost` flush objects, by what is wrong with the first; and a `gap` behind which nothing
/// can be restored yet.
pub fn stored_wal(lost: usize, first: Option<&str>, gap: Option<&str>) -> Finding {
    const NAME: &str = "stored WAL";
    match (first, gap) {
        (None, None) => Finding::ok(NAME, "no flush object is lost, and no gap is open"),
        (None, Some(gap)) => Finding::new(
            NAME,
            Level::Fail(Exit::Damage),
            format!("a gap is recorded, and no backup was taken behind it: {gap}"),
            "`walden backup` takes one: until then no moment behind the gap can be restored",
        ),
        (Some(first), _) => Finding::new(
            NAME,
            Level::Fail(Exit::Damage),
            format!("{lost} flush objects are lost, the first: {first}"),
            "put whole copies in their places; or `walden repair wal` records the gap, as `walden receive` does by itself an hour after it saw \
             the loss: then take a backup. Until then what follows them in their streams is not compacted",
        ),
    }
}

struct Judge<'a> {
    facts: &'a Facts,
}

impl Judge<'_> {
    fn version(&self) -> Finding {
        let settings = &self.facts.settings;
        let (major, minor) = (settings.version / 10_000, settings.version % 10_000);
        let kind = if settings.in_recovery { "a standby" } else { "a primary" };
        let found = format!("{major}.{minor}, {kind}");
        if (14..=18).contains(&major) {
            return Finding::ok("version", found);
        }
        fail("version", found, "walden works with PostgreSQL 14 to 18")
    }

    fn role(&self) -> Finding {
        let role = &self.facts.role;
        if role.superuser || role.replication {
            return Finding::ok("role", format!("{} may replicate", role.name));
        }
        fail(
            "role",
            format!("{} may not replicate", role.name),
            format!("ALTER ROLE {} REPLICATION", role.name),
        )
    }

    fn configuration_files(&self) -> Finding {
        const NAME: &str = "configuration";
        let role = &self.facts.role;
        if role.superuser || role.read_all_settings && role.reads_any_file() {
            return Finding::ok(
                NAME,
                format!("{} may read configuration files outside the data directory", role.name),
            );
        }
        let found = format!(
            "{} may not read configuration files outside the data directory: backups are made without them",
            role.name
        );
        let grant = format!(
            "GRANT pg_read_all_settings, pg_read_server_files TO {0}; \
             GRANT EXECUTE ON FUNCTION pg_read_binary_file(text, bigint, bigint, boolean) TO {0}",
            role.name
        );
        warn(NAME, found, grant)
    }

    fn wal_level(&self) -> Finding {
        match self.facts.settings.wal_level.as_str() {
            level @ ("replica" | "logical") => Finding::ok("wal_level", level),
            level => fail("wal_level", level, "set wal_level = replica and restart PostgreSQL"),
        }
    }

    fn senders(&self, slot: Option<&SlotState>) -> Finding {
        let (max, used) = (self.facts.settings.max_wal_senders, self.facts.senders);
        let found = format!("{used} of max_wal_senders = {max} in use");
        let ours = u32::from(slot.is_some_and(|slot| slot.active));
        match max.saturating_sub(used) + ours {
            0 => fail("senders", found, "raise max_wal_senders and restart PostgreSQL"),
            1 => warn(
                "senders",
                found,
                "walden needs one for receiving and one for each backup that runs: raise max_wal_senders",
            ),
            _ => Finding::ok("senders", found),
        }
    }

    fn slot(&self, name: &str, slot: Option<&SlotState>) -> Finding {
        let Some(slot) = slot else {
            let (max, used) = (self.facts.settings.max_replication_slots, self.facts.slots.len());
            let found = format!("{name} does not exist yet, {used} of max_replication_slots = {max} in use");
            if used >= max as usize {
                return fail(SLOT, found, "raise max_replication_slots and restart PostgreSQL");
            }
            return warn(SLOT, found, "`walden receive` creates it: start it");
        };
        if !slot.physical {
            let hint = "choose another name with --slot, or drop that slot";
            return Finding::new(
                SLOT,
                Level::Fail(Exit::Conflict),
                format!("{name} is a logical slot"),
                hint,
            );
        }
        let held = slot.restart_lsn.map_or(0, |restart| self.facts.position.end.bytes_since(restart));
        let mut found = format!("{name} holds {}", Bytes(held));
        if let Some(safe) = slot.safe_wal_size {
            found += &format!(", may lose WAL after {} more", Bytes(u64::try_from(safe).unwrap_or(0)));
        }
        match slot.wal_status {
            Some(WalStatus::Lost) => fail(
                SLOT,
                format!("{name} has lost WAL before it was archived"),
                "a running `walden receive` records the gap; take a backup after it",
            ),
            Some(WalStatus::Unreserved) => {
                warn(SLOT, found, "WAL is about to be removed: see why `walden receive` is behind")
            }
            Some(WalStatus::Reserved | WalStatus::Extended) | None if !slot.active => {
                warn(SLOT, format!("{found}, nobody is connected"), "start `walden receive`")
            }
            Some(WalStatus::Reserved | WalStatus::Extended) | None => Finding::ok(SLOT, found),
        }
    }

    fn keep_size(&self) -> Finding {
        const NAME: &str = "max_slot_wal_keep_size";
        match self.facts.settings.max_slot_wal_keep_size_bytes {
            None => warn(
                NAME,
                "-1: a slot that nobody reads keeps WAL until the server's disk is full",
                "set it to what the disk can spare; WAL lost that way is a recorded gap, not a stopped server",
            ),
            Some(bytes) => Finding::ok(NAME, Bytes(bytes)),
        }
    }

    fn idle_timeout(&self) -> Option<Finding> {
        const NAME: &str = "idle_replication_slot_timeout";
        let timeout = self.facts.settings.idle_replication_slot_timeout?;
        let hint = "a receiver that is down for longer loses its slot, and WAL with it: set it to 0";
        Some(warn(NAME, Span(timeout), hint))
    }

    fn full_page_writes(&self) -> Finding {
        const NAME: &str = "full_page_writes";
        if self.facts.settings.full_page_writes {
            return Finding::ok(NAME, "on");
        }
        fail(
            NAME,
            "off: pages of a backup may be torn beyond repair",
            "set full_page_writes = on and reload PostgreSQL",
        )
    }

    fn checksums(&self) -> Finding {
        const NAME: &str = "checksums";
        if self.facts.settings.data_checksums {
            return Finding::ok(NAME, "on");
        }
        warn(
            NAME,
            "off: damage on the server's disk is backed up unseen",
            "stop the server and run pg_checksums --enable",
        )
    }

    fn sender_timeout(&self) -> Finding {
        const NAME: &str = "wal_sender_timeout";
        match self.facts.settings.wal_sender_timeout {
            None => warn(
                NAME,
                "0: the server never notices that a receiver is gone, and keeps its slot in use",
                "set it to 60s",
            ),
            Some(timeout) if timeout < SENDER_TIMEOUT_LOW => {
                warn(NAME, format!("{}: short stalls end the stream", Span(timeout)), "set it to 60s")
            }
            Some(timeout) => Finding::ok(NAME, Span(timeout)),
        }
    }

    fn block_size(&self) -> Finding {
        let found = self.facts.settings.block_size_bytes;
        if found as usize == limits::BLOCK_BYTES {
            return Finding::ok("block size", found);
        }
        fail("block size", found, "walden works with blocks of 8192 bytes only")
    }
}

fn warn(name: &'static str, found: impl ToString, hint: impl ToString) -> Finding {
    Finding::new(name, Level::Warn, found, hint)
}

fn fail(name: &'static str, found: impl ToString, hint: impl ToString) -> Finding {
    Finding::new(name, Level::Fail(Exit::Postgres), found, hint)
}

#[cfg(test)]
mod tests;
