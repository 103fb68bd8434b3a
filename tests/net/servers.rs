//! What walden asks a server over SQL.

use super::common::pg::{Pg, majors};
use super::streaming::connect;
use std::time::Duration;
use walden::base::Lsn;
use walden::net::server::WalStatus;
use walden::net::{ConnectionKind, code};

#[tokio::test]
async fn settings_slots_and_positions_on_every_major() {
    for major in majors() {
        let pg = Pg::builder(major)
            .wal_segment_mib(4)
            .option("max_slot_wal_keep_size", "64MB")
            .option("wal_sender_timeout", "7s")
            .option("max_wal_senders", "5")
            .start();
        let mut sql = connect(&pg.conninfo(), ConnectionKind::Sql).await;
        let settings = sql.server_settings().await.unwrap();
        assert_eq!(settings.version / 10_000, major);
        assert_eq!(settings.wal_segment_size.bytes(), 4 << 20);
        assert_eq!((settings.block_size_bytes, settings.max_wal_senders), (8192, 5));
        assert_eq!(settings.max_slot_wal_keep_size_bytes, Some(64 << 20));
        assert_eq!(settings.wal_sender_timeout, Some(Duration::from_secs(7)));
        assert_eq!(settings.idle_replication_slot_timeout, None);
        assert_eq!(settings.data_directory.as_deref(), Some(pg.data_dir()));
        assert_eq!(settings.hba_file, Some(pg.data_dir().join("pg_hba.conf")));
        assert!(
            settings.data_checksums && settings.full_page_writes && !settings.fsync && !settings.in_recovery
        );
        assert_eq!(settings.raw["max_connections"].0, "100");
        let mut replication = connect(&pg.conninfo(), ConnectionKind::PhysicalReplication).await;
        assert_eq!(replication.identify_system().await.unwrap().system_id, settings.system_id);

        assert_eq!(sql.slot_state("it's none").await.unwrap(), None);
        replication.create_physical_slot("kept").await.unwrap();
        replication.create_temporary_slot("passing").await.unwrap();
        let kept = sql.slot_state("kept").await.unwrap().unwrap();
        assert!(kept.physical && !kept.temporary && !kept.active && kept.restart_lsn.is_some());
        assert_eq!(kept.wal_status, Some(WalStatus::Reserved));
        assert!(kept.safe_wal_size.is_some_and(|bytes| bytes > 0), "{kept:?}");
        let passing = sql.slot_state("passing").await.unwrap().unwrap();
        assert!(passing.temporary && passing.active_pid.is_some());
        assert_eq!(sql.slots().await.unwrap().len(), 2);
        let error = replication.create_physical_slot("kept").await.unwrap_err();
        assert_eq!(error.sqlstate(), Some(code::DUPLICATE_OBJECT), "{error}");
        assert_eq!(sql.walsender_count().await.unwrap(), 1);
        replication.close().await;
        pg.wait_for("SELECT count(*) FROM pg_replication_slots", "1", Duration::from_secs(20));
        assert_eq!(sql.walsender_count().await.unwrap(), 0);

        let position = sql.wal_position().await.unwrap();
        let flushed: Lsn = pg.sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap();
        assert!(position.end <= flushed && flushed.bytes_since(position.end) < 1 << 20);
        let now =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as i64;
        assert!((now - position.clock.unix_micros()).abs() < 60_000_000, "{:?}", position.clock);

        let standby = pg.standby();
        let mut sql = connect(&standby.conninfo(), ConnectionKind::Sql).await;
        assert!(sql.server_settings().await.unwrap().in_recovery);
        let position = sql.wal_position().await.unwrap();
        assert!(position.in_recovery && position.end > Lsn::ZERO);
    }
}

#[tokio::test]
async fn a_role_without_rights_sees_less_and_is_told() {
    for major in majors() {
        let pg = Pg::start(major);
        pg.sql("CREATE ROLE plain LOGIN REPLICATION; CREATE ROLE reader LOGIN");
        pg.sql("GRANT pg_read_all_settings, pg_read_server_files TO reader");
        let mut plain = connect(&format!("{} user=plain", pg.conninfo()), ConnectionKind::Sql).await;
        let role = plain.role_attributes().await.unwrap();
        assert!(role.replication && !role.superuser && !role.read_all_settings && !role.reads_any_file());
        let settings = plain.server_settings().await.unwrap();
        assert_eq!((settings.data_directory, settings.hba_file), (None, None));
        assert!(plain.wal_position().await.is_ok() && plain.slots().await.unwrap().is_empty());
        let error = plain.read_file_range("PG_VERSION", 0, 10).await.unwrap_err();
        assert_eq!(error.sqlstate(), Some("42501"), "{error}");
        assert!(plain.walsender_count().await.is_ok());

        let mut reader = connect(&format!("{} user=reader", pg.conninfo()), ConnectionKind::Sql).await;
        let role = reader.role_attributes().await.unwrap();
        assert!(role.read_all_settings && role.read_server_files && !role.reads_any_file());
        pg.sql("GRANT EXECUTE ON FUNCTION pg_read_binary_file(text, bigint, bigint, boolean) TO reader");
        assert!(reader.role_attributes().await.unwrap().reads_any_file());
        assert!(reader.server_settings().await.unwrap().data_directory.is_some());
        let mut root = connect(&pg.conninfo(), ConnectionKind::Sql).await;
        assert!(root.role_attributes().await.unwrap().reads_any_file());
        for sql in [&mut reader, &mut root] {
            let outside = std::fs::read("/etc/passwd").unwrap();
            let read = sql.read_file_range("/etc/passwd", 0, 1 << 20).await.unwrap().unwrap();
            assert_eq!(read, outside);
            assert_eq!(sql.read_file_range("gone", 0, 10).await.unwrap(), None);
            let control = std::fs::read(pg.data_dir().join("global/pg_control")).unwrap();
            let read = sql.read_file_range("global/pg_control", 100, 200).await.unwrap().unwrap();
            assert_eq!(read, control[100..300]);
        }
    }
}

#[tokio::test]
async fn binary_answers_are_raw_bytes() {
    let pg = Pg::start(*majors().last().unwrap());
    let mut sql = connect(&pg.conninfo(), ConnectionKind::Sql).await;
    let rows = sql
        .query_binary("SELECT g, decode(repeat('00ff', 50000), 'hex'), NULL FROM generate_series(1, 20) g")
        .await;
    let rows = rows.unwrap();
    assert_eq!(rows.len(), 20);
    assert_eq!(rows[6][0].as_deref(), Some(&[0, 0, 0, 7][..]));
    assert_eq!(rows[6][1].as_ref().unwrap().len(), 100_000);
    assert_eq!(rows[6][2], None);
    assert_eq!(sql.query_binary("SELECT 1/0").await.unwrap_err().sqlstate(), Some("22012"));
    assert!(sql.query_binary("SELECT 1 WHERE false").await.unwrap().is_empty());
    assert_eq!(sql.query_one("SELECT 1").await.unwrap().get(0), Some("1"));
}
