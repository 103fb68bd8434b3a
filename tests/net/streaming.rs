//! SQL and physical streaming.

use super::common::pg::{Pg, Stop, majors};
use bytes::Bytes;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;
use tokio::time::timeout;
use walden::base::{Lsn, SegmentSize, TimelineId, Timestamp, WalFileName};
use walden::net::server::WalStatus;
use walden::net::{
    ConnectOptions, Connection, ConnectionKind, PgError, ReplicationEvent, ReplicationReader,
    ReplicationStream, ReplicationWriter, StartReplication, StatusUpdate, code,
};

const LIMIT: Duration = Duration::from_secs(30);

pub async fn connect(conninfo: &str, kind: ConnectionKind) -> Connection {
    let options = ConnectOptions::parse(conninfo, &|_| None).unwrap();
    Connection::connect(&options, kind, "walden_test").await.unwrap()
}

fn status(at: Lsn) -> StatusUpdate {
    StatusUpdate {
        write: at,
        flush: at,
        apply: Lsn::ZERO,
        clock: Timestamp::from_micros(0),
        reply_requested: false,
    }
}

pub async fn start(
    conninfo: &str,
    slot: Option<&str>,
    at: Lsn,
    timeline: TimelineId,
) -> (ReplicationReader, ReplicationWriter) {
    let connection = connect(conninfo, ConnectionKind::PhysicalReplication).await;
    match connection.start_physical(slot, at, timeline).await.unwrap() {
        StartReplication::Streaming(stream) => stream.split(),
        StartReplication::EndOfTimeline(_, next) => panic!("timeline ended: {next:?}"),
    }
}

/// Reads WAL from `at` until `end`, in order and without holes.
pub async fn read_wal(reader: &mut ReplicationReader, mut at: Lsn, end: Lsn) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    while at < end {
        match timeout(LIMIT, reader.next()).await.expect("WAL in time").unwrap() {
            ReplicationEvent::Wal { start, data, .. } => {
                assert_eq!(start, at);
                at = at.checked_add(data.len() as u64).unwrap();
                pieces.push(data);
            }
            ReplicationEvent::Keepalive { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    pieces
}

/// Writes WAL into the 1 MiB segments of timeline 1 in `dir`.
pub fn write_wal(dir: &Path, at: Lsn, bytes: &[u8]) {
    let size = SegmentSize::new(1 << 20).unwrap();
    let (mut at, mut bytes) = (at, bytes);
    while !bytes.is_empty() {
        let segment = size.segment_at(at).range(size);
        let (piece, rest) = bytes.split_at(bytes.len().min(segment.end.bytes_since(at) as usize));
        let name = WalFileName::segment(TimelineId(1), size.segment_at(at), size).to_string();
        let file = OpenOptions::new().create(true).write(true).truncate(false).open(dir.join(name)).unwrap();
        file.set_len(size.bytes()).unwrap();
        file.write_all_at(piece, at.bytes_since(segment.start)).unwrap();
        (at, bytes) = (at.checked_add(piece.len() as u64).unwrap(), rest);
    }
}

#[tokio::test]
async fn streams_what_the_server_has_in_pg_wal() {
    for major in majors() {
        let pg = Pg::builder(major).wal_segment_mib(1).option("autovacuum", "off").start();
        let mut sql = connect(&pg.conninfo(), ConnectionKind::Sql).await;
        assert_eq!(sql.server_version() / 10_000, major);
        let mut replication = connect(&pg.conninfo(), ConnectionKind::PhysicalReplication).await;
        let identity = replication.identify_system().await.unwrap();
        let control = sql.query_one("SELECT system_identifier FROM pg_control_system()").await.unwrap();
        assert_eq!(control.get(0), Some(identity.system_id.to_string().as_str()));
        replication.create_physical_slot("walden_shop").await.unwrap();
        let slot = sql.query_one("SELECT restart_lsn, wal_status FROM pg_replication_slots").await.unwrap();
        let first: Lsn = slot.parse("restart_lsn").unwrap();
        assert_eq!(slot.by_name("wal_status"), Some("reserved"));

        let size = SegmentSize::new(1 << 20).unwrap();
        let begin = size.segment_start(first);
        let (mut reader, writer) = start(&pg.conninfo(), Some("walden_shop"), begin, identity.timeline).await;
        sql.query("CREATE TABLE public.t AS SELECT g, repeat('x', 500) FROM generate_series(1, 8000) g")
            .await
            .unwrap();
        let end: Lsn = sql.query_one("SELECT pg_switch_wal() AS at").await.unwrap().parse("at").unwrap();
        let end = size.segment_at(end).range(size).end;
        let pieces = read_wal(&mut reader, begin, end).await;
        let streamed: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
        let mut at = begin;
        let mut segments = 0;
        while at < end {
            let name = WalFileName::segment(identity.timeline, size.segment_at(at), size);
            let file = std::fs::read(pg.data_dir().join("pg_wal").join(name.to_string())).unwrap();
            let offset = at.bytes_since(begin) as usize;
            assert!(streamed[offset..offset + file.len()] == file, "PostgreSQL {major}: {name} differs");
            at = at.checked_add(file.len() as u64).unwrap();
            segments += 1;
        }
        assert!(segments >= 4, "PostgreSQL {major}: {segments} segments");

        writer.status(status(end)).await.unwrap();
        let acknowledged = "SELECT count(*) FROM pg_replication_slots WHERE restart_lsn = ";
        pg.wait_for(&format!("{acknowledged}'{end}'"), "1", LIMIT);
        let in_use = connect(&pg.conninfo(), ConnectionKind::PhysicalReplication).await;
        let error = in_use.start_physical(Some("walden_shop"), end, identity.timeline).await.unwrap_err();
        assert_eq!(error.sqlstate(), Some(code::OBJECT_IN_USE), "{error}");
        assert!(error.is_transient());
        writer.close().await;
        drop(reader);
        pg.wait_for("SELECT count(*) FROM pg_replication_slots WHERE active", "0", LIMIT);
        replication.drop_slot("walden_shop").await.unwrap();
        let error = replication.drop_slot("walden_shop").await.unwrap_err();
        assert_eq!(error.sqlstate(), Some(code::UNDEFINED_OBJECT), "{error}");
        replication.close().await;
    }
}

#[tokio::test]
async fn follows_a_promoted_standby_onto_its_timeline() {
    for major in majors() {
        let pg = Pg::builder(major).wal_segment_mib(1).start();
        let mut standby = pg.standby();
        pg.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS a");
        standby.wait_for("SELECT count(*) FROM t", "1000", LIMIT);
        let conninfo = standby.conninfo();
        let begin = segment_start(&standby);
        let (mut reader, writer) = start(&conninfo, None, begin, TimelineId(1)).await;
        writer.status(status(begin)).await.unwrap();
        standby.promote();
        let mut received = begin;
        let next = loop {
            match timeout(LIMIT, reader.next()).await.expect("an event in time").unwrap() {
                ReplicationEvent::Wal { start, data, .. } => {
                    assert_eq!(start, received);
                    received = start.checked_add(data.len() as u64).unwrap();
                }
                ReplicationEvent::Keepalive { .. } => {}
                ReplicationEvent::EndOfTimeline(next) => break next,
                ReplicationEvent::End => panic!("the server shut down"),
            }
        };
        assert_eq!(next.timeline, TimelineId(2), "PostgreSQL {major}");
        assert!(
            next.start <= received && next.start > begin,
            "PostgreSQL {major}: {next:?}, received {received}"
        );
        assert!(matches!(reader.next().await, Err(PgError::Closed { .. })));
        // Nobody is told any more, and nobody minds.
        writer.status(status(received)).await.unwrap();

        let mut again = ReplicationStream::unite(reader, writer).unwrap();
        let identity = again.identify_system().await.unwrap();
        assert_eq!(identity.timeline, TimelineId(2));
        let history = again.timeline_history(TimelineId(2)).await.unwrap();
        let on_disk = std::fs::read(standby.data_dir().join("pg_wal/00000002.history")).unwrap();
        assert_eq!(history, on_disk);
        // Asked exactly at the end, there is nothing to copy.
        let StartReplication::EndOfTimeline(again, same) =
            again.start_physical(None, next.start, TimelineId(1)).await.unwrap()
        else {
            panic!("PostgreSQL {major} streams past the end of timeline 1")
        };
        assert_eq!(same, next);
        let StartReplication::Streaming(stream) =
            again.start_physical(None, begin_of(next.start), TimelineId(2)).await.unwrap()
        else {
            panic!("timeline 2 ended")
        };
        let (mut reader, writer) = stream.split();
        standby.sql("INSERT INTO t VALUES (0)");
        let end: Lsn = standby.sql("SELECT pg_current_wal_lsn()").parse().unwrap();
        read_wal(&mut reader, begin_of(next.start), end).await;
        writer.status(status(end)).await.unwrap();
        drop((reader, writer));
        standby.stop(Stop::Fast);
    }
}

fn begin_of(at: Lsn) -> Lsn {
    at.align_down(1 << 20)
}

/// The start of the WAL segment that the server writes (a standby: replays) now.
fn segment_start(pg: &Pg) -> Lsn {
    begin_of(pg.wal_lsn().parse().unwrap())
}

#[tokio::test]
async fn a_shutdown_waits_for_the_tail_and_then_ends_the_stream() {
    for major in majors() {
        let mut pg = Pg::builder(major).wal_segment_mib(1).start();
        let begin = segment_start(&pg);
        let (mut reader, writer) = start(&pg.conninfo(), None, begin, TimelineId(1)).await;
        // A walsender that does not stream yet is simply ended.
        let mut event = timeout(LIMIT, reader.next()).await.expect("WAL in time").unwrap();
        pg.signal(Stop::Fast);
        let mut received = begin;
        loop {
            match event {
                ReplicationEvent::Wal { start, data, .. } => {
                    received = start.checked_add(data.len() as u64).unwrap();
                    // The server may be content with an earlier update and gone.
                    let _ = writer.status(status(received)).await;
                }
                ReplicationEvent::Keepalive { .. } => {
                    let _ = writer.status(status(received)).await;
                }
                ReplicationEvent::End => break,
                ReplicationEvent::EndOfTimeline(next) => panic!("{next:?}"),
            }
            event = timeout(LIMIT, reader.next()).await.expect("an event in time").unwrap();
        }
        assert!(pg.wait_stopped(LIMIT), "PostgreSQL {major} hangs in its shutdown");
        pg.start_again();

        // A client whose tail does not become durable steps aside, and the shutdown proceeds.
        pg.sql("SELECT pg_switch_wal(); CREATE TABLE t AS SELECT 1 AS a");
        let begin = segment_start(&pg);
        let (mut reader, writer) = start(&pg.conninfo(), None, begin, TimelineId(1)).await;
        timeout(LIMIT, reader.next()).await.expect("WAL in time").unwrap();
        writer.status(status(begin)).await.unwrap();
        pg.signal(Stop::Fast);
        assert!(!pg.wait_stopped(Duration::from_millis(500)), "PostgreSQL {major} did not wait for us");
        writer.close().await;
        drop(reader);
        assert!(pg.wait_stopped(LIMIT), "PostgreSQL {major} hangs in its shutdown");
    }
}

#[tokio::test]
async fn next_may_be_dropped_at_any_moment() {
    let pg = Pg::builder(*majors().last().unwrap()).wal_segment_mib(1).option("wal_keep_size", "64").start();
    let begin = segment_start(&pg);
    pg.sql("CREATE TABLE t AS SELECT g, repeat('x', 500) FROM generate_series(1, 4000) g");
    let (mut reader, _writer) = start(&pg.conninfo(), None, begin, TimelineId(1)).await;
    let end: Lsn = pg.sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap();
    let mut at = begin;
    while at < end {
        // Polled once, then dropped, whatever it was doing.
        let event = match futures_util::FutureExt::now_or_never(reader.next()) {
            Some(event) => event.unwrap(),
            None => {
                tokio::task::yield_now().await;
                continue;
            }
        };
        if let ReplicationEvent::Wal { start, data, .. } = event {
            assert_eq!(start, at);
            at = start.checked_add(data.len() as u64).unwrap();
        }
    }
}

#[tokio::test]
async fn a_command_given_up_poisons_the_connection() {
    let pg = Pg::start(*majors().last().unwrap());
    let mut sql = connect(&pg.conninfo(), ConnectionKind::Sql).await;
    let given_up = timeout(Duration::from_millis(200), sql.query("SELECT pg_sleep(20)")).await;
    assert!(given_up.is_err());
    sql.cancel_token().unwrap().cancel().await.unwrap();
    let error = sql.query("SELECT 1").await.unwrap_err();
    assert!(matches!(error, PgError::Closed { .. }), "{error}");
    pg.wait_for(
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT pg_sleep%'",
        "0",
        LIMIT,
    );
}

#[tokio::test]
async fn sql_answers_and_errors() {
    for major in majors() {
        let pg = Pg::start(major);
        let mut sql = connect(&pg.conninfo(), ConnectionKind::Sql).await;
        let rows = sql
            .query("SELECT 1 AS a, NULL AS b; SELECT g AS a, 'é' AS b FROM generate_series(1, 3) g")
            .await
            .unwrap();
        assert_eq!(rows.len(), 3);
        assert_eq!((rows[2].by_name("a"), rows[2].get(1)), (Some("3"), Some("é")));
        assert!(sql.query("").await.unwrap().is_empty());
        let error = sql.query("SELECT 1; SELECT 1/0").await.unwrap_err();
        assert_eq!(error.sqlstate(), Some("22012"), "{error}");
        assert!(matches!(sql.query("SELECT '\0'").await, Err(PgError::Request { .. })));
        let error = sql.query_one("SELECT 1 WHERE false").await.unwrap_err();
        assert!(matches!(error, PgError::Protocol { .. }), "{error}");
        assert_eq!(sql.query_one("SELECT 42 AS x").await.unwrap().parse::<i32>("x").unwrap(), 42);
        assert_eq!(sql.parameter("in_hot_standby"), Some("off"));
        let error = sql.query("SELECT pg_terminate_backend(pg_backend_pid())").await.unwrap_err();
        assert_eq!(error.sqlstate(), Some(code::ADMIN_SHUTDOWN), "{error}");
        assert!(sql.query("SELECT 1").await.unwrap_err().is_transient());
    }
}

#[tokio::test]
async fn wal_that_is_gone_is_told_from_trouble_that_passes() {
    for major in majors() {
        let pg = Pg::builder(major)
            .wal_segment_mib(1)
            .option("max_slot_wal_keep_size", "1MB")
            .option("max_wal_size", "2MB")
            .option("min_wal_size", "2MB")
            .start();
        let mut replication = connect(&pg.conninfo(), ConnectionKind::PhysicalReplication).await;
        replication.create_physical_slot("late").await.unwrap();
        let mut sql = connect(&pg.conninfo(), ConnectionKind::Sql).await;
        let begin = sql.slot_state("late").await.unwrap().unwrap().restart_lsn.unwrap();
        for _ in 0..8 {
            pg.sql("CREATE TABLE t AS SELECT repeat('x', 500) FROM generate_series(1, 2000); DROP TABLE t; SELECT pg_switch_wal()");
        }
        pg.sql("CHECKPOINT");
        let slot = sql.slot_state("late").await.unwrap().unwrap();
        assert_eq!(slot.wal_status, Some(WalStatus::Lost), "PostgreSQL {major}: {slot:?}");
        for name in [Some("late"), None] {
            let connection = connect(&pg.conninfo(), ConnectionKind::PhysicalReplication).await;
            // The server may notice before it opens COPY, or within.
            let error = match connection.start_physical(name, begin, TimelineId(1)).await {
                Err(error) => error,
                Ok(StartReplication::Streaming(stream)) => {
                    let (mut reader, _writer) = stream.split();
                    timeout(LIMIT, reader.next()).await.expect("an answer in time").unwrap_err()
                }
                Ok(StartReplication::EndOfTimeline(_, next)) => panic!("{next:?}"),
            };
            assert!(error.is_wal_gone() && !error.is_transient(), "PostgreSQL {major} {name:?}: {error:?}");
        }
    }
}
