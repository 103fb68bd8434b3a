//! What walden asks a server over SQL: settings, slots, positions, rights, files. Every answer holds on a primary and on a
//! standby, and for a role without special rights: what it may not see is `None`.

use super::{Connection, PgError};
use crate::base::{Lsn, SegmentSize, SystemId, Timestamp};
use crate::wire::command::quote_string;
use crate::wire::{Message, Row, WireError, limits};
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// A server's settings, as far as walden's work depends on them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerSettings {
    /// 150019 is 15.19.
    pub version: u32,
    /// Which `initdb` the server comes from.
    pub system_id: SystemId,
    /// It is a standby, or still recovers.
    pub in_recovery: bool,
    /// The size of its WAL segments.
    pub wal_segment_size: SegmentSize,
    /// The size of its pages.
    pub block_size_bytes: u32,
    /// Every page carries a checksum.
    pub data_checksums: bool,
    /// `minimal`, `replica` or `logical`.
    pub wal_level: String,
    /// Walsenders at once.
    pub max_wal_senders: u32,
    /// Slots at all.
    pub max_replication_slots: u32,
    /// WAL a slot may hold; `None` is all of it (-1).
    pub max_slot_wal_keep_size_bytes: Option<u64>,
    /// After how long an idle slot is invalidated; `None` is never (18 and later).
    pub idle_replication_slot_timeout: Option<Duration>,
    /// After how long a silent walsender's connection is ended; `None` is never.
    pub wal_sender_timeout: Option<Duration>,
    /// Torn pages are healed by WAL.
    pub full_page_writes: bool,
    /// Hint bits are logged even without checksums.
    pub wal_log_hints: bool,
    /// Commits are durable.
    pub fsync: bool,
    /// Commit times can be asked for over SQL.
    pub track_commit_timestamp: bool,
    /// Who is waited for.
    pub synchronous_standby_names: String,
    /// The data directory; `None` without pg_read_all_settings, as the files below.
    pub data_directory: Option<PathBuf>,
    /// postgresql.conf.
    pub config_file: Option<PathBuf>,
    /// pg_hba.conf.
    pub hba_file: Option<PathBuf>,
    /// pg_ident.conf.
    pub ident_file: Option<PathBuf>,
    /// All settings asked for as the server prints them, by name, with their unit; other rooms may need one more.
    pub raw: BTreeMap<String, (String, Option<String>)>,
}

/// Settings read besides those with a field of their own: a restored standby needs at least the source's values.
const RAW_SETTINGS: &[&str] = &[
    "archive_command",
    "archive_library",
    "archive_mode",
    "max_connections",
    "max_locks_per_transaction",
    "max_prepared_transactions",
    "max_worker_processes",
    "recovery_target_timeline",
    "server_encoding",
    "shared_preload_libraries",
    "synchronous_commit",
    "TimeZone",
    "wal_keep_size",
    "wal_compression",
];

/// How much of a slot's WAL is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalStatus {
    /// Within `max_wal_size`.
    Reserved,
    /// Beyond it, and kept.
    Extended,
    /// Beyond `max_slot_wal_keep_size`: the next checkpoint may remove it.
    Unreserved,
    /// Gone.
    Lost,
}

/// A row of `pg_replication_slots`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotState {
    /// Its name.
    pub name: String,
    /// Physical, not logical.
    pub physical: bool,
    /// It goes with its session.
    pub temporary: bool,
    /// A walsender has it now.
    pub active: bool,
    /// That walsender's process.
    pub active_pid: Option<i32>,
    /// The oldest WAL it holds; `None` when it never held any or has lost it.
    pub restart_lsn: Option<Lsn>,
    /// How much of it is there; `None` when it holds none.
    pub wal_status: Option<WalStatus>,
    /// Bytes of WAL that may still be written before it may lose some; `None` without a limit or when lost.
    pub safe_wal_size: Option<i64>,
    /// Why it was invalidated (17 and later).
    pub invalidation_reason: Option<String>,
}

/// Where a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalPosition {
    /// The end of its flushed WAL; on a standby, of what it has received or replayed.
    pub end: Lsn,
    /// It is a standby.
    pub in_recovery: bool,
    /// Its clock.
    pub clock: Timestamp,
}

/// What the connection's role may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleAttributes {
    /// The role.
    pub name: String,
    /// Everything.
    pub superuser: bool,
    /// Replication connections and slots.
    pub replication: bool,
    /// See where configuration files lie.
    pub read_all_settings: bool,
    /// Read any file that the server can read, given the function below.
    pub read_server_files: bool,
    /// EXECUTE on `pg_read_binary_file(text, bigint, bigint, boolean)`, which no predefined role includes.
    pub read_binary_file: bool,
}

impl RoleAttributes {
    /// Whether [`Connection::read_file_range`] may read files outside the data directory.
    pub fn reads_any_file(&self) -> bool {
        self.superuser || self.read_server_files && self.read_binary_file
    }
}

impl Connection {
    /// The server's settings now. Needs an SQL connection, as everything here.
    pub async fn server_settings(&mut self) -> Result<ServerSettings, PgError> {
        let identity =
            "SELECT system_identifier, pg_is_in_recovery() AS in_recovery FROM pg_control_system()";
        let identity = self.query_one(identity).await?;
        let rows = self.query("SELECT name, setting, unit FROM pg_settings ORDER BY name").await?;
        let wanted = |name: &str| FIELDS.contains(&name) || RAW_SETTINGS.contains(&name);
        let raw = rows
            .iter()
            .filter_map(|row| Some((row.get(0)?, row.get(1)?, row.get(2))))
            .filter(|(name, _, _)| wanted(name))
            .map(|(name, setting, unit)| (name.to_owned(), (setting.to_owned(), unit.map(str::to_owned))))
            .collect();
        settings(self.server_version(), &identity, raw).map_err(|error| self.facts.protocol(error))
    }

    /// The slot called `name`, if there is one.
    pub async fn slot_state(&mut self, name: &str) -> Result<Option<SlotState>, PgError> {
        let rows = self.query(&format!("{SLOTS} WHERE slot_name = {}", quote_string(name))).await?;
        let slot = rows.first().map(slot_from_row).transpose();
        slot.map_err(|error| self.facts.protocol(error))
    }

    /// All slots, by name.
    pub async fn slots(&mut self) -> Result<Vec<SlotState>, PgError> {
        let rows = self.query(&format!("{SLOTS} ORDER BY slot_name")).await?;
        let slots = rows.iter().map(slot_from_row).collect::<Result<_, _>>();
        slots.map_err(|error| self.facts.protocol(error))
    }

    /// Walsenders at work, base backups included.
    pub async fn walsender_count(&mut self) -> Result<u32, PgError> {
        let row = self.query_one("SELECT count(*) AS n FROM pg_stat_replication").await?;
        row.parse("n").map_err(|error| self.facts.protocol(error))
    }

    /// Where the server is now.
    pub async fn wal_position(&mut self) -> Result<WalPosition, PgError> {
        let row = self
            .query_one(
                "SELECT pg_is_in_recovery() AS in_recovery, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS clock, \
                 CASE WHEN pg_is_in_recovery() THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) \
                 ELSE pg_current_wal_flush_lsn() END AS at",
            )
            .await?;
        let read = || {
            Ok(WalPosition {
                end: row.parse("at")?,
                in_recovery: row.bool("in_recovery")?,
                clock: Timestamp::from_unix_micros(row.parse("clock")?),
            })
        };
        read().map_err(|error| self.facts.protocol(error))
    }

    /// What our role may do.
    pub async fn role_attributes(&mut self) -> Result<RoleAttributes, PgError> {
        let row = self
            .query_one(
                "SELECT rolname, rolsuper, rolreplication, \
                 pg_has_role(oid, 'pg_read_all_settings', 'USAGE') AS settings, \
                 pg_has_role(oid, 'pg_read_server_files', 'USAGE') AS files, \
                 has_function_privilege(oid, 'pg_read_binary_file(text, bigint, bigint, boolean)', 'EXECUTE') AS reader \
                 FROM pg_roles WHERE rolname = current_user",
            )
            .await?;
        let read = || {
            Ok(RoleAttributes {
                name: row.parse("rolname")?,
                superuser: row.bool("rolsuper")?,
                replication: row.bool("rolreplication")?,
                read_all_settings: row.bool("settings")?,
                read_server_files: row.bool("files")?,
                read_binary_file: row.bool("reader")?,
            })
        };
        read().map_err(|error| self.facts.protocol(error))
    }

    /// Up to `length` bytes of a server's file from `offset` on; `None` when there is no such file. Relative paths begin at
    /// the data directory. See [`RoleAttributes::reads_any_file`].
    pub async fn read_file_range(
        &mut self,
        path: &str,
        offset: u64,
        length: u32,
    ) -> Result<Option<Bytes>, PgError> {
        let path = quote_string(path);
        let select = format!("SELECT pg_read_binary_file({path}, {offset}, {length}, true)");
        let mut rows = self.query_binary(&select).await?;
        match (rows.pop().as_deref_mut(), rows.len()) {
            (Some([value]), 0) => Ok(value.take()),
            _ => Err(self.facts.protocol(WireError::malformed("pg_read_binary_file", "not one value"))),
        }
    }

    /// Runs one SELECT through binary COPY: values as the types' send functions make them, a `bytea` as its plain bytes.
    /// If dropped: the connection is lost.
    pub async fn query_binary(&mut self, select: &str) -> Result<Vec<Vec<Option<Bytes>>>, PgError> {
        self.send_command(&format!("COPY ({select}) TO STDOUT (FORMAT binary)")).await?;
        let mut copy = BytesMut::new();
        let mut failure = None;
        loop {
            match self.message(limits::SQL_MESSAGE_BYTES_MAX).await? {
                Message::CopyOut | Message::CopyDone | Message::CommandComplete(_) => {}
                Message::CopyData(piece) if copy.len() + piece.len() <= limits::SQL_MESSAGE_BYTES_MAX => {
                    copy.extend_from_slice(&piece);
                }
                Message::CopyData(_) => {
                    let reason = format!("more than {} bytes", limits::SQL_MESSAGE_BYTES_MAX);
                    return Err(self.facts.protocol(WireError::malformed("binary COPY", reason)));
                }
                Message::Error(error) => failure = Some(self.failure(error)?),
                Message::ReadyForQuery(_) => {
                    self.busy = false;
                    return match failure {
                        Some(failure) => Err(failure),
                        None => crate::wire::copy_binary::decode(copy.freeze())
                            .map_err(|error| self.facts.protocol(error)),
                    };
                }
                other => return Err(self.unexpected(&other, "CopyData")),
            }
        }
    }
}

/// Settings with a field of their own.
const FIELDS: &[&str] = &[
    "block_size",
    "config_file",
    "data_checksums",
    "data_directory",
    "fsync",
    "full_page_writes",
    "hba_file",
    "ident_file",
    "idle_replication_slot_timeout",
    "max_replication_slots",
    "max_slot_wal_keep_size",
    "max_wal_senders",
    "synchronous_standby_names",
    "track_commit_timestamp",
    "wal_level",
    "wal_log_hints",
    "wal_segment_size",
    "wal_sender_timeout",
];

type Raw = BTreeMap<String, (String, Option<String>)>;

fn settings(version: u32, identity: &Row, raw: Raw) -> Result<ServerSettings, WireError> {
    let text = |name: &'static str| match raw.get(name) {
        Some((setting, _)) => Ok(setting.as_str()),
        None => Err(WireError::malformed(name, "the server does not have this setting")),
    };
    let number = |name: &'static str| {
        text(name)?.parse::<u32>().map_err(|_| WireError::malformed(name, "expected a number"))
    };
    let on = |name: &'static str| Ok::<_, WireError>(text(name)? == "on");
    let path = |name: &str| {
        raw.get(name).map(|(setting, _)| PathBuf::from(setting)).filter(|p| !p.as_os_str().is_empty())
    };
    let amount = |name: &'static str| amount(name, raw.get(name));
    let duration = |name: &'static str| {
        Ok::<_, WireError>(amount(name)?.filter(|ms| *ms > 0).map(Duration::from_millis))
    };
    let segment = amount("wal_segment_size")?.unwrap_or_default();
    let system_id = identity.parse::<u64>("system_identifier")?;
    Ok(ServerSettings {
        version,
        system_id: SystemId(system_id),
        in_recovery: identity.bool("in_recovery")?,
        wal_segment_size: SegmentSize::new(segment)
            .map_err(|error| WireError::malformed("wal_segment_size", error))?,
        block_size_bytes: number("block_size")?,
        data_checksums: on("data_checksums")?,
        wal_level: text("wal_level")?.to_owned(),
        max_wal_senders: number("max_wal_senders")?,
        max_replication_slots: number("max_replication_slots")?,
        max_slot_wal_keep_size_bytes: amount("max_slot_wal_keep_size")?,
        idle_replication_slot_timeout: duration("idle_replication_slot_timeout")?,
        wal_sender_timeout: duration("wal_sender_timeout")?,
        full_page_writes: on("full_page_writes")?,
        wal_log_hints: on("wal_log_hints")?,
        fsync: on("fsync")?,
        track_commit_timestamp: on("track_commit_timestamp")?,
        synchronous_standby_names: text("synchronous_standby_names")?.to_owned(),
        data_directory: path("data_directory"),
        config_file: path("config_file"),
        hba_file: path("hba_file"),
        ident_file: path("ident_file"),
        raw,
    })
}

/// A setting in bytes or milliseconds, by its unit; `None` when it is absent or negative.
fn amount(name: &'static str, setting: Option<&(String, Option<String>)>) -> Result<Option<u64>, WireError> {
    let Some((text, unit)) = setting else { return Ok(None) };
    let value = text.parse::<i64>().map_err(|_| WireError::malformed(name, "expected a number"))?;
    let Ok(value) = u64::try_from(value) else { return Ok(None) };
    let unit = unit.as_deref().unwrap_or_default();
    let digits = unit.bytes().take_while(u8::is_ascii_digit).count();
    let (count, unit) = unit.split_at(digits);
    let factor: u64 = match unit {
        "" | "B" | "ms" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        "s" => 1000,
        "min" => 60 * 1000,
        "h" => 3600 * 1000,
        other => return Err(WireError::malformed(name, format!("unknown unit {other:?}"))),
    };
    let count = if count.is_empty() {
        1
    } else {
        count.parse().map_err(|_| WireError::malformed(name, "unknown unit"))?
    };
    Ok(Some(value.saturating_mul(factor).saturating_mul(count)))
}

const SLOTS: &str = "SELECT * FROM pg_replication_slots";

fn slot_from_row(row: &Row) -> Result<SlotState, WireError> {
    let wal_status = match row.by_name("wal_status") {
        None => None,
        Some("reserved") => Some(WalStatus::Reserved),
        Some("extended") => Some(WalStatus::Extended),
        Some("unreserved") => Some(WalStatus::Unreserved),
        Some("lost") => Some(WalStatus::Lost),
        Some(other) => return Err(WireError::malformed("wal_status", format!("found {other:?}"))),
    };
    Ok(SlotState {
        name: row.parse("slot_name")?,
        physical: row.by_name("slot_type") == Some("physical"),
        temporary: row.bool("temporary")?,
        active: row.bool("active")?,
        active_pid: row.parse_opt("active_pid")?,
        restart_lsn: row.parse_opt("restart_lsn")?,
        wal_status,
        safe_wal_size: row.parse_opt("safe_wal_size")?,
        invalidation_reason: row.by_name("invalidation_reason").map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::amount;

    #[test]
    fn amounts_have_units() {
        let amount =
            |text: &str, unit: Option<&str>| amount("x", Some(&(text.to_owned(), unit.map(str::to_owned))));
        assert_eq!(amount("16777216", Some("B")).unwrap(), Some(16 << 20));
        assert_eq!(amount("-1", Some("MB")).unwrap(), None);
        assert_eq!(amount("3", Some("8kB")).unwrap(), Some(3 * 8192));
        assert_eq!(amount("60000", Some("ms")).unwrap(), Some(60_000));
        assert_eq!(amount("2", Some("min")).unwrap(), Some(120_000));
        assert_eq!(amount("9223372036854775807", Some("GB")).unwrap(), Some(u64::MAX));
        assert!(amount("x", None).is_err() && amount("1", Some("furlong")).is_err());
    }
}
