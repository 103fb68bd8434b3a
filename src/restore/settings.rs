//! Which settings a restored server gets beside its own, and why; each is printed. Pure.
//!
//! They are appended to `postgresql.auto.conf`, which beats `postgresql.conf`. Recovery settings always; settings that keep
//! the copy from hurting production unless `--keep-settings`; limits that recovery must not undercut, raised to the source's.

use super::resolve::Stop;
use super::scan::SourceLimits;
use super::target::TargetAction;
use crate::base::TimelineId;
use crate::format::manifest::Setting;

/// Whether settings that could hurt production stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Harmful {
    /// They are turned off.
    #[default]
    Disarm,
    /// They stay (`--keep-settings`).
    Keep,
}

/// A line that is appended, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingChange {
    /// The setting.
    pub name: String,
    /// Its value, unquoted.
    pub value: String,
    /// Why it is set.
    pub reason: &'static str,
}

/// What decides about settings.
#[derive(Debug, Clone)]
pub struct SettingsInput<'a> {
    /// PostgreSQL's major version.
    pub major: u32,
    /// Where to stop.
    pub stop: &'a Stop,
    /// What to do there.
    pub action: TargetAction,
    /// The timeline to follow.
    pub timeline: TimelineId,
    /// The whole command.
    pub restore_command: &'a str,
    /// Settings of the source, as its backup recorded them.
    pub source: &'a [Setting],
    /// The greatest limits of the source in the WAL that is replayed.
    pub limits: SourceLimits,
    /// Whether settings that could hurt production stay.
    pub harmful: Harmful,
}

const RECOVERY: &str = "recovery";
const TO_THE_TARGET: &str = "where recovery stops";
const NO_OTHER_TARGET: &str = "no other target";
const NO_ARCHIVING: &str = "must not write into the source's archive";
const NO_COUPLING: &str = "must not attach itself to, or wait for, the source's other servers";
const NO_COMMANDS: &str = "must not run the source's recovery commands";
const AT_LEAST_THE_SOURCE: &str = "not below the source's, or recovery pauses";
const OWN_FILES: &str = "must not write over the source's files outside its data directory";

/// Everything to append, in order: the target comes after the empty targets, or PostgreSQL sees two.
pub fn changes(input: &SettingsInput<'_>) -> Vec<SettingChange> {
    let mut changes = Vec::new();
    if input.harmful == Harmful::Disarm {
        disarm(input, &mut changes);
    }
    raise(input, &mut changes);
    recover(input, &mut changes);
    changes
}

fn set(changes: &mut Vec<SettingChange>, name: &str, value: impl ToString, reason: &'static str) {
    changes.push(SettingChange { name: name.to_owned(), value: value.to_string(), reason });
}

fn disarm(input: &SettingsInput<'_>, to: &mut Vec<SettingChange>) {
    set(to, "archive_mode", "off", NO_ARCHIVING);
    set(to, "archive_command", "", NO_ARCHIVING);
    if input.major >= 15 {
        set(to, "archive_library", "", NO_ARCHIVING);
    }
    set(to, "synchronous_standby_names", "", NO_COUPLING);
    set(to, "primary_conninfo", "", NO_COUPLING);
    set(to, "primary_slot_name", "", NO_COUPLING);
    set(to, "max_logical_replication_workers", 0, NO_COUPLING);
    if input.major >= 17 {
        set(to, "sync_replication_slots", "off", NO_COUPLING);
    }
    set(to, "archive_cleanup_command", "", NO_COMMANDS);
    set(to, "recovery_end_command", "", NO_COMMANDS);
    // A backup may not know them: its role may not have seen them. What is unknown is taken for harmful.
    let inside = |name: &str| source(input, name).is_some_and(|value| !value.starts_with('/'));
    set(to, "external_pid_file", "", OWN_FILES);
    if !inside("log_directory") {
        set(to, "log_directory", "log", OWN_FILES);
    }
    if input.major == 14 && !inside("stats_temp_directory") {
        set(to, "stats_temp_directory", "pg_stat_tmp", OWN_FILES);
    }
}

fn raise(input: &SettingsInput<'_>, to: &mut Vec<SettingChange>) {
    let limits = limits_of(input.source).max(input.limits);
    for (name, value) in [
        ("max_connections", limits.max_connections),
        ("max_worker_processes", limits.max_worker_processes),
        ("max_wal_senders", limits.max_wal_senders),
        ("max_prepared_transactions", limits.max_prepared_transactions),
        ("max_locks_per_transaction", limits.max_locks_per_transaction),
    ] {
        if value > 0 {
            set(to, name, value, AT_LEAST_THE_SOURCE);
        }
    }
}

fn recover(input: &SettingsInput<'_>, to: &mut Vec<SettingChange>) {
    set(to, "hot_standby", "on", RECOVERY);
    set(to, "recovery_min_apply_delay", 0, RECOVERY);
    set(to, "restore_command", input.restore_command, RECOVERY);
    set(to, "recovery_target_timeline", input.timeline, RECOVERY);
    for other in ["recovery_target_name", "recovery_target_time", "recovery_target_xid"] {
        set(to, other, "", NO_OTHER_TARGET);
    }
    match input.stop {
        Stop::Consistency => {
            set(to, "recovery_target_lsn", "", NO_OTHER_TARGET);
            set(to, "recovery_target", "immediate", TO_THE_TARGET);
        }
        Stop::Before(record) | Stop::After(record) => {
            let inclusive = if matches!(input.stop, Stop::After(_)) { "on" } else { "off" };
            set(to, "recovery_target", "", NO_OTHER_TARGET);
            set(to, "recovery_target_lsn", record.start, TO_THE_TARGET);
            set(to, "recovery_target_inclusive", inclusive, TO_THE_TARGET);
        }
    }
    set(to, "recovery_target_action", input.action.as_str(), RECOVERY);
}

/// The value of a setting of the source.
fn source<'a>(input: &SettingsInput<'a>, name: &str) -> Option<&'a str> {
    input.source.iter().find(|setting| setting.name == name).map(|setting| setting.value.as_str())
}

fn limits_of(source: &[Setting]) -> SourceLimits {
    let value = |name: &str| {
        let found = source.iter().find(|setting| setting.name == name);
        found.and_then(|setting| setting.value.parse().ok()).unwrap_or(0)
    };
    SourceLimits {
        max_connections: value("max_connections"),
        max_worker_processes: value("max_worker_processes"),
        max_wal_senders: value("max_wal_senders"),
        max_prepared_transactions: value("max_prepared_transactions"),
        max_locks_per_transaction: value("max_locks_per_transaction"),
    }
}

/// The lines as they are appended to `postgresql.auto.conf`.
pub fn render(changes: &[SettingChange]) -> String {
    let mut text = String::from("\n# appended by walden restore\n");
    for SettingChange { name, value, .. } in changes {
        text.push_str(&format!("{name} = {}\n", quoted(value)));
    }
    text
}

/// A value as PostgreSQL's configuration files quote it (`guc-file.l`).
pub fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

/// `restore_command` for a walden at `binary` and the recovery file at `recovery`, both absolute: nothing of it depends on
/// PostgreSQL's environment but a shell.
pub fn restore_command(binary: &str, recovery: &str) -> String {
    let word = |path: &str| format!("'{}'", path.replace('\'', "'\\''")).replace('%', "%%");
    format!("{} wal-fetch --recovery {} %f \"%p\"", word(binary), word(recovery))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Lsn;
    use crate::restore::scan::{Meaning, Seen};

    fn input<'a>(stop: &'a Stop, source: &'a [Setting]) -> SettingsInput<'a> {
        SettingsInput {
            major: 15,
            stop,
            action: TargetAction::Pause,
            timeline: TimelineId(3),
            restore_command: "c",
            source,
            limits: SourceLimits::default(),
            harmful: Harmful::Disarm,
        }
    }

    fn value<'a>(changes: &'a [SettingChange], name: &str) -> Option<&'a str> {
        changes.iter().rev().find(|change| change.name == name).map(|change| change.value.as_str())
    }

    fn setting(name: &str, value: &str) -> Setting {
        Setting { name: name.into(), value: value.into() }
    }

    const RECORD: Seen = Seen { start: Lsn::new(0x5000), end: Lsn::new(0x5100), meaning: Meaning::Other };

    #[test]
    fn exactly_one_target_is_set_and_comes_last_of_the_targets() {
        for (stop, name, expected) in [
            (Stop::Before(RECORD), "recovery_target_lsn", "0/5000"),
            (Stop::After(RECORD), "recovery_target_lsn", "0/5000"),
            (Stop::Consistency, "recovery_target", "immediate"),
        ] {
            let all = changes(&input(&stop, &[]));
            let targets: Vec<_> = ["", "_name", "_time", "_xid", "_lsn"]
                .iter()
                .map(|end| format!("recovery_target{end}"))
                .map(|name| all.iter().position(|change| change.name == name).unwrap())
                .collect();
            let last = *targets.iter().max().unwrap();
            assert_eq!((all[last].name.as_str(), all[last].value.as_str()), (name, expected));
            assert!(targets.iter().filter(|at| **at != last).all(|at| all[*at].value.is_empty()));
            assert_eq!(value(&all, "recovery_target_timeline"), Some("3"));
        }
        let inclusive =
            |stop| value(&changes(&input(&stop, &[])), "recovery_target_inclusive").map(str::to_owned);
        assert_eq!(inclusive(Stop::Before(RECORD)).as_deref(), Some("off"));
        assert_eq!(inclusive(Stop::After(RECORD)).as_deref(), Some("on"));
    }

    #[test]
    fn what_could_hurt_production_is_off_unless_kept() {
        let stop = Stop::Consistency;
        let source = [setting("log_directory", "/var/log/pg")];
        let mut asked = input(&stop, &source);
        let all = changes(&asked);
        for name in ["archive_command", "archive_library", "synchronous_standby_names", "primary_conninfo"] {
            assert_eq!(value(&all, name), Some(""), "{name}");
        }
        assert_eq!(value(&all, "archive_mode"), Some("off"));
        assert_eq!(value(&all, "external_pid_file"), Some(""), "whether the backup knows of it or not");
        assert_eq!(value(&all, "log_directory"), Some("log"));
        assert_eq!(value(&changes(&input(&stop, &[])), "log_directory"), Some("log"), "unknown is harmful");
        let relative = [setting("log_directory", "pg_log")];
        assert_eq!(value(&changes(&input(&stop, &relative)), "log_directory"), None);
        assert_eq!(value(&all, "sync_replication_slots"), None, "15 does not know it");
        asked.major = 14;
        assert_eq!(value(&changes(&asked), "archive_library"), None, "14 does not know it");
        asked.harmful = Harmful::Keep;
        let kept = changes(&asked);
        assert_eq!(value(&kept, "archive_mode"), None);
        assert!(value(&kept, "restore_command").is_some());
    }

    #[test]
    fn limits_are_the_greatest_of_the_backup_and_of_the_wal() {
        let source = [setting("max_connections", "100"), setting("max_worker_processes", "8")];
        let stop = Stop::Consistency;
        let mut asked = input(&stop, &source);
        asked.limits =
            SourceLimits { max_connections: 50, max_worker_processes: 16, ..SourceLimits::default() };
        let all = changes(&asked);
        assert_eq!(value(&all, "max_connections"), Some("100"));
        assert_eq!(value(&all, "max_worker_processes"), Some("16"));
        assert_eq!(value(&all, "max_wal_senders"), None, "unknown is not lowered to nothing");
    }

    #[test]
    fn quoting_survives_every_layer() {
        let command = restore_command("/opt/it's 100%/walden", "/srv/a\\b/recovery.toml");
        let expected = r#"'/opt/it'\''s 100%%/walden' wal-fetch --recovery '/srv/a\b/recovery.toml' %f "%p""#;
        assert_eq!(command, expected);
        let text =
            render(&[SettingChange { name: "restore_command".into(), value: command, reason: RECOVERY }]);
        let expected = r#"restore_command = '''/opt/it''\\''''s 100%%/walden'' wal-fetch --recovery ''/srv/a\\b/recovery.toml'' %f "%p"'"#;
        assert_eq!(text.lines().last().unwrap(), expected);
    }
}
