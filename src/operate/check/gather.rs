//! Asks a server over SQL what [`judge`](super::judge) wants to know.

use super::{Facts, SETTINGS, SlotFacts};
use crate::net::{Connection, PgError};
use crate::wire::Row;

/// Gathers the facts about the server of `connection` and its slot `slot`.
pub async fn facts(connection: &mut Connection, slot: &str) -> Result<Facts, PgError> {
    let role = connection
        .query_one(
            "SELECT current_user, pg_is_in_recovery() AS in_recovery, rolsuper OR rolreplication AS may_replicate, \
             pg_has_role(oid, 'pg_read_all_settings', 'usage') AND pg_has_role(oid, 'pg_read_server_files', 'usage') \
             AS may_read_files, (SELECT count(*) FROM pg_catalog.pg_stat_replication) AS senders, \
             (SELECT count(*) FROM pg_catalog.pg_replication_slots) AS slots \
             FROM pg_catalog.pg_roles WHERE rolname = current_user",
        )
        .await?;
    let names: Vec<String> = SETTINGS.iter().map(|name| literal(name)).collect();
    let query =
        format!("SELECT name, setting FROM pg_catalog.pg_settings WHERE name IN ({})", names.join(", "));
    let settings = connection.query(&query).await?.iter().map(|row| (text(row, 0), text(row, 1))).collect();
    let query = format!(
        "SELECT slot_type = 'physical' AS physical, active, wal_status, safe_wal_size, \
         greatest(0, pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() \
         ELSE pg_current_wal_lsn() END, restart_lsn))::bigint AS retained \
         FROM pg_catalog.pg_replication_slots WHERE slot_name = {}",
        literal(slot)
    );
    let slot = connection.query(&query).await?.first().map(|row| SlotFacts {
        physical: is_true(row, "physical"),
        active: is_true(row, "active"),
        wal_status: row.by_name("wal_status").map(str::to_owned),
        retained_bytes: number(row, "retained").unwrap_or(0),
        safe_bytes: number(row, "safe_wal_size"),
    });
    Ok(Facts {
        version: connection.server_version(),
        in_recovery: is_true(&role, "in_recovery"),
        user: role.by_name("current_user").unwrap_or_default().to_owned(),
        may_replicate: is_true(&role, "may_replicate"),
        may_read_files: is_true(&role, "may_read_files"),
        senders: number(&role, "senders").unwrap_or(0),
        slots: number(&role, "slots").unwrap_or(0),
        slot,
        settings,
    })
}

/// `text` as an SQL string literal.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn text(row: &Row, index: usize) -> String {
    row.get(index).unwrap_or_default().to_owned()
}

fn is_true(row: &Row, name: &str) -> bool {
    row.by_name(name) == Some("t")
}

fn number(row: &Row, name: &str) -> Option<u64> {
    row.by_name(name).and_then(|value| value.parse().ok())
}
