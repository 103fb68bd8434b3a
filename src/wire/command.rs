//! The text of replication commands in both dialects: keywords (14) and parenthesised options (15 and later).
//! Source: `replication/repl_gram.y`, `repl_scanner.l`, `backup/basebackup.c` (`parse_basebackup_options`).

use crate::base::{Lsn, TimelineId};
use std::fmt::Write;

/// Which way a server takes options of replication commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// PostgreSQL 14: keywords in a row.
    Keywords,
    /// 15 and later: a list in parentheses.
    Parenthesised,
}

impl Dialect {
    /// The dialect of `server_version`, a number like 150019.
    pub fn of(server_version: u32) -> Self {
        if server_version < 150_000 { Dialect::Keywords } else { Dialect::Parenthesised }
    }
}

/// How long a replication slot lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotLifetime {
    /// Until it is dropped.
    Permanent,
    /// Until the connection that made it ends.
    Temporary,
}

/// `text` as an identifier of the replication grammar.
pub fn quote_identifier(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// `text` as a string of the replication grammar and of SQL with `standard_conforming_strings` on: only `'` is special.
pub fn quote_string(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// CREATE_REPLICATION_SLOT ... PHYSICAL, holding WAL from this moment on.
pub fn create_physical_slot(dialect: Dialect, name: &str, lifetime: SlotLifetime) -> String {
    let temporary = match lifetime {
        SlotLifetime::Permanent => "",
        SlotLifetime::Temporary => " TEMPORARY",
    };
    let reserve = match dialect {
        Dialect::Keywords => "RESERVE_WAL",
        Dialect::Parenthesised => "(RESERVE_WAL)",
    };
    format!("CREATE_REPLICATION_SLOT {}{temporary} PHYSICAL {reserve}", quote_identifier(name))
}

/// DROP_REPLICATION_SLOT, which fails at once when the slot is in use.
pub fn drop_slot(name: &str) -> String {
    format!("DROP_REPLICATION_SLOT {}", quote_identifier(name))
}

/// START_REPLICATION ... PHYSICAL.
pub fn start_physical(slot: Option<&str>, start: Lsn, timeline: TimelineId) -> String {
    let slot = slot.map(|name| format!("SLOT {} ", quote_identifier(name))).unwrap_or_default();
    format!("START_REPLICATION {slot}PHYSICAL {start} TIMELINE {timeline}")
}

/// TIMELINE_HISTORY.
pub fn timeline_history(timeline: TimelineId) -> String {
    format!("TIMELINE_HISTORY {timeline}")
}

/// How the server brings about the checkpoint a backup starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checkpoint {
    /// At once.
    #[default]
    Fast,
    /// Spread as configured; may take minutes.
    Spread,
}

/// The backup_manifest the server is to send at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ServerManifest {
    /// None.
    None,
    /// One with CRC-32C checksums.
    #[default]
    Crc32c,
    /// One with SHA-256 checksums.
    Sha256,
}

/// What to ask of BASE_BACKUP. Checksums are never verified by the server, and it never waits for archiving.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseBackupOptions {
    /// The label in backup_label.
    pub label: String,
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// KiB a second; the server takes 32 to 1,048,576.
    pub max_rate_kib: Option<u32>,
    /// Tablespaces as a `tablespace_map` file (as tar mode does) instead of symbolic links in `pg_tblspc`.
    pub tablespace_map: bool,
    /// The backup_manifest.
    pub manifest: ServerManifest,
    /// Estimates of tablespace sizes (which the server has to add up first).
    pub progress: bool,
    /// Relative to the manifest uploaded before (17 and later).
    pub incremental: bool,
}

impl BaseBackupOptions {
    /// A fast-checkpoint backup with a tablespace map, sizes and a CRC-32C manifest.
    pub fn new(label: impl Into<String>) -> Self {
        BaseBackupOptions {
            label: label.into(),
            checkpoint: Checkpoint::Fast,
            max_rate_kib: None,
            tablespace_map: true,
            manifest: ServerManifest::Crc32c,
            progress: true,
            incremental: false,
        }
    }
}

/// BASE_BACKUP in `dialect`.
pub fn base_backup(dialect: Dialect, options: &BaseBackupOptions) -> String {
    let checksums = match options.manifest {
        ServerManifest::None => None,
        ServerManifest::Crc32c => Some("'CRC32C'"),
        ServerManifest::Sha256 => Some("'SHA256'"),
    };
    let label = quote_string(&options.label);
    let mut command = String::from("BASE_BACKUP ");
    let mut separator = "";
    let mut push = |option: std::fmt::Arguments<'_>, between: &'static str| {
        // Writing to a String cannot fail.
        let _ = write!(command, "{separator}{option}");
        separator = between;
    };
    match dialect {
        Dialect::Keywords => {
            push(format_args!("LABEL {label}"), " ");
            if options.progress {
                push(format_args!("PROGRESS"), " ");
            }
            if options.checkpoint == Checkpoint::Fast {
                push(format_args!("FAST"), " ");
            }
            push(format_args!("NOWAIT"), " ");
            if let Some(rate) = options.max_rate_kib {
                push(format_args!("MAX_RATE {rate}"), " ");
            }
            if options.tablespace_map {
                push(format_args!("TABLESPACE_MAP"), " ");
            }
            push(format_args!("NOVERIFY_CHECKSUMS"), " ");
            if let Some(checksums) = checksums {
                push(format_args!("MANIFEST 'yes' MANIFEST_CHECKSUMS {checksums}"), " ");
            }
        }
        Dialect::Parenthesised => {
            push(format_args!("(LABEL {label}"), ", ");
            if options.progress {
                push(format_args!("PROGRESS true"), ", ");
            }
            let checkpoint = match options.checkpoint {
                Checkpoint::Fast => "fast",
                Checkpoint::Spread => "spread",
            };
            push(format_args!("CHECKPOINT '{checkpoint}'"), ", ");
            push(format_args!("WAIT false"), ", ");
            if let Some(rate) = options.max_rate_kib {
                push(format_args!("MAX_RATE {rate}"), ", ");
            }
            if options.tablespace_map {
                push(format_args!("TABLESPACE_MAP true"), ", ");
            }
            push(format_args!("VERIFY_CHECKSUMS false"), ", ");
            if let Some(checksums) = checksums {
                push(format_args!("MANIFEST 'yes', MANIFEST_CHECKSUMS {checksums}"), ", ");
            }
            if options.incremental {
                push(format_args!("INCREMENTAL true"), ", ");
            }
            push(format_args!("TARGET 'client'"), ", ");
            command.push(')');
        }
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speaks_both_dialects() {
        let mut options = BaseBackupOptions::new("it's");
        options.max_rate_kib = Some(4096);
        assert_eq!(
            base_backup(Dialect::Keywords, &options),
            "BASE_BACKUP LABEL 'it''s' PROGRESS FAST NOWAIT MAX_RATE 4096 TABLESPACE_MAP NOVERIFY_CHECKSUMS \
             MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'"
        );
        assert_eq!(
            base_backup(Dialect::Parenthesised, &options),
            "BASE_BACKUP (LABEL 'it''s', PROGRESS true, CHECKPOINT 'fast', WAIT false, MAX_RATE 4096, TABLESPACE_MAP true, \
             VERIFY_CHECKSUMS false, MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C', TARGET 'client')"
        );
        let create = |version| create_physical_slot(Dialect::of(version), "a\"b", SlotLifetime::Permanent);
        assert_eq!(create(140_023), "CREATE_REPLICATION_SLOT \"a\"\"b\" PHYSICAL RESERVE_WAL");
        assert_eq!(create(150_000), "CREATE_REPLICATION_SLOT \"a\"\"b\" PHYSICAL (RESERVE_WAL)");
    }

    #[test]
    fn never_asks_the_server_to_wait_or_verify() {
        for checkpoint in [Checkpoint::Fast, Checkpoint::Spread] {
            for manifest in [ServerManifest::None, ServerManifest::Crc32c, ServerManifest::Sha256] {
                let options = BaseBackupOptions { checkpoint, manifest, ..BaseBackupOptions::new("x") };
                let (old, new) =
                    (base_backup(Dialect::Keywords, &options), base_backup(Dialect::Parenthesised, &options));
                assert!(old.contains(" NOWAIT") && old.contains(" NOVERIFY_CHECKSUMS"), "{old}");
                assert!(new.contains(" WAIT false") && new.contains(" VERIFY_CHECKSUMS false"), "{new}");
            }
        }
    }

    #[test]
    fn starts_with_and_without_a_slot() {
        let start = |slot| start_physical(slot, Lsn::new(0x1_0000_00AB), TimelineId(10));
        assert_eq!(
            start(Some("walden_shop")),
            "START_REPLICATION SLOT \"walden_shop\" PHYSICAL 1/AB TIMELINE 10"
        );
        assert_eq!(start(None), "START_REPLICATION PHYSICAL 1/AB TIMELINE 10");
    }
}
