//! BASE_BACKUP: the same events on every major, and archives that make a server.

use super::common::pg::{Pg, give_to_postgres, majors, run};
use super::streaming::{connect, start};
use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;
use tokio::time::timeout;
use walden::base::{Lsn, TimelineId};
use walden::net::{
    BaseBackupEvent, BaseBackupOptions, Checkpoint, ConnectionKind, PgError, ServerManifest, TablespaceRow,
};

const LIMIT: Duration = Duration::from_secs(60);

/// Everything a backup said, in order of coming.
#[derive(Default)]
struct Heard {
    start: Option<(Lsn, TimelineId)>,
    end: Option<(Lsn, TimelineId)>,
    tablespaces: Vec<TablespaceRow>,
    archives: BTreeMap<String, (Option<u32>, Vec<u8>)>,
    manifest: Vec<u8>,
    progress: u64,
}

async fn take(pg: &Pg, options: &BaseBackupOptions) -> Result<Heard, PgError> {
    let connection = connect(&pg.conninfo(), ConnectionKind::PhysicalReplication).await;
    let mut stream = connection.base_backup(options).await?;
    let mut heard = Heard::default();
    let mut archive = None;
    while let Some(event) = timeout(LIMIT, stream.next()).await.expect("an event in time")? {
        assert!(heard.end.is_none(), "{event:?} after the end");
        match event {
            BaseBackupEvent::Start { lsn, timeline } => heard.start = Some((lsn, timeline)),
            BaseBackupEvent::Tablespaces(rows) => heard.tablespaces = rows,
            BaseBackupEvent::Archive { name, tablespace_oid } => {
                heard.archives.insert(name.clone(), (tablespace_oid, Vec::new()));
                archive = Some(name);
            }
            BaseBackupEvent::Data(bytes) => {
                assert!(heard.manifest.is_empty(), "archive data after the manifest");
                let name = archive.as_ref().expect("an archive before its data");
                heard.archives.get_mut(name).unwrap().1.extend_from_slice(&bytes);
            }
            BaseBackupEvent::Manifest(bytes) => heard.manifest.extend_from_slice(&bytes),
            BaseBackupEvent::Progress(done) => heard.progress = done,
            BaseBackupEvent::End { lsn, timeline } => heard.end = Some((lsn, timeline)),
        }
    }
    let mut connection = stream.into_connection()?;
    assert_eq!(connection.identify_system().await?.timeline, heard.start.unwrap().1);
    Ok(heard)
}

fn untar(bytes: &[u8], into: &std::path::Path) {
    let file = into.with_extension("tar");
    std::fs::write(&file, bytes).unwrap();
    std::fs::create_dir_all(into).unwrap();
    run(Command::new("tar").arg("xf").arg(&file).arg("-C").arg(into));
}

#[tokio::test]
async fn every_major_says_the_same_and_the_archives_make_a_server() {
    for major in majors() {
        let pg = Pg::builder(major).wal_segment_mib(1).option("wal_keep_size", "256").start();
        let place = pg.side_dir("space");
        pg.sql(&format!("CREATE TABLESPACE other LOCATION '{}'", place.display()));
        pg.sql("CREATE TABLE here AS SELECT g FROM generate_series(1, 20000) g");
        pg.sql("CREATE TABLE there TABLESPACE other AS SELECT g FROM generate_series(1, 5000) g");
        let heard = take(&pg, &BaseBackupOptions::new("it's \"mine\"")).await.unwrap();

        let ((start, timeline), (end, end_timeline)) = (heard.start.unwrap(), heard.end.unwrap());
        assert!(start < end && timeline == TimelineId(1) && end_timeline == timeline, "PostgreSQL {major}");
        let [other, base] = heard.tablespaces.as_slice() else { panic!("{:?}", heard.tablespaces) };
        assert_eq!((base.oid, base.path.as_str()), (None, ""));
        assert_eq!(other.path, place.display().to_string());
        assert!(base.size_kib.unwrap() > 1000 && other.size_kib.unwrap() > 50);
        assert_eq!(heard.progress > 0, major >= 15);

        let directory = tempfile::Builder::new().prefix("walden-").tempdir_in("/tmp").unwrap();
        let data_dir = directory.path().join("data");
        let archives: Vec<_> = heard.archives.iter().map(|(name, (oid, _))| (name.as_str(), *oid)).collect();
        let other_name = format!("{}.tar", other.oid.unwrap());
        assert_eq!(archives, [(other_name.as_str(), other.oid), ("base.tar", None)]);
        for (name, (_, bytes)) in &heard.archives {
            assert_eq!(bytes.len() % 512, 0, "PostgreSQL {major}: {name}");
            assert!(bytes.ends_with(&[0; 1024]), "PostgreSQL {major}: {name} has no end");
            untar(bytes, &data_dir);
        }
        assert!(
            std::fs::read_to_string(data_dir.join("backup_label")).unwrap().contains("LABEL: it's \"mine\"")
        );
        assert!(std::fs::read_to_string(data_dir.join("tablespace_map")).unwrap().contains(&other.path));
        let manifest = String::from_utf8(heard.manifest).unwrap();
        assert!(
            manifest.starts_with('{')
                && manifest.trim_end().ends_with('}')
                && manifest.contains("\"CRC32C\"")
        );

        // With the WAL that the backup needs, and its tablespace elsewhere, the archives make a server.
        let (mut reader, _writer) = start_of(&pg, start).await;
        let wal = super::streaming::read_wal(&mut reader, start.align_down(1 << 20), end).await;
        let mut at = start.align_down(1 << 20);
        for piece in wal {
            super::streaming::write_wal(&data_dir.join("pg_wal"), at, &piece);
            at = at.checked_add(piece.len() as u64).unwrap();
        }
        let elsewhere = directory.path().join("elsewhere");
        untar(&heard.archives[&other_name].1, &elsewhere);
        give_to_postgres(directory.path());
        std::fs::write(
            data_dir.join("tablespace_map"),
            format!("{} {}\n", other.oid.unwrap(), elsewhere.display()),
        )
        .unwrap();
        run(Command::new("chmod").arg("-R").arg("go=").arg(directory.path()));
        let mut copy = Pg::adopt(major, &data_dir);
        copy.start_again();
        assert_eq!(
            copy.sql("SELECT (SELECT count(*) FROM here), (SELECT count(*) FROM there)"),
            "20000|5000"
        );
    }
}

async fn start_of(pg: &Pg, at: Lsn) -> (walden::net::ReplicationReader, walden::net::ReplicationWriter) {
    start(&pg.conninfo(), None, at.align_down(1 << 20), TimelineId(1)).await
}

#[tokio::test]
async fn options_are_honoured_on_every_major() {
    for major in majors() {
        // A server whose archiving hangs, and that would wait for it if it were not told otherwise.
        let pg =
            Pg::builder(major).option("archive_mode", "on").option("archive_command", "sleep 600").start();
        let options = BaseBackupOptions {
            checkpoint: Checkpoint::Spread,
            max_rate_kib: Some(1_048_576),
            manifest: ServerManifest::None,
            progress: false,
            tablespace_map: false,
            ..BaseBackupOptions::new("plain")
        };
        pg.sql("CHECKPOINT");
        let heard = take(&pg, &options).await.unwrap();
        assert!(heard.manifest.is_empty(), "PostgreSQL {major}");
        assert_eq!(heard.tablespaces[0].size_kib, None);
        let sha = BaseBackupOptions { manifest: ServerManifest::Sha256, ..BaseBackupOptions::new("sha") };
        let heard = take(&pg, &sha).await.unwrap();
        assert!(String::from_utf8(heard.manifest).unwrap().contains("\"SHA256\""), "PostgreSQL {major}");
    }
}

#[tokio::test]
async fn a_broken_page_is_sent_and_not_complained_about() {
    for major in majors() {
        let mut pg = Pg::start(major);
        pg.sql("CREATE TABLE t AS SELECT g FROM generate_series(1, 1000) g");
        let path = pg.data_dir().join(pg.sql("SELECT pg_relation_filepath('t')"));
        pg.stop(super::common::pg::Stop::Fast);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[5000] ^= 0xff;
        std::fs::write(&path, bytes).unwrap();
        pg.start_again();
        take(&pg, &BaseBackupOptions::new("broken")).await.unwrap();
    }
}

#[tokio::test]
async fn what_cannot_be_asked_is_refused_before_it_is() {
    let pg = Pg::start(majors()[0]);
    for options in [
        BaseBackupOptions { max_rate_kib: Some(31), ..BaseBackupOptions::new("x") },
        BaseBackupOptions { max_rate_kib: Some(1_048_577), ..BaseBackupOptions::new("x") },
        BaseBackupOptions::new("two\nlines"),
        BaseBackupOptions { incremental: pg.major() < 17, ..BaseBackupOptions::new("\0") },
    ] {
        let refused = take(&pg, &options).await;
        assert!(matches!(refused, Err(PgError::Request { .. })), "{options:?}");
    }
}

#[tokio::test]
async fn a_dropped_backup_ends_on_the_server() {
    for major in majors() {
        let pg = Pg::start(major);
        let options = BaseBackupOptions { max_rate_kib: Some(256), ..BaseBackupOptions::new("slow") };
        let connection = connect(&pg.conninfo(), ConnectionKind::PhysicalReplication).await;
        let mut stream = connection.base_backup(&options).await.unwrap();
        while !matches!(stream.next().await.unwrap(), Some(BaseBackupEvent::Data(_))) {}
        let token = stream.cancel_token().unwrap();
        token.cancel().await.unwrap();
        let error = loop {
            match timeout(LIMIT, stream.next()).await.expect("the end in time") {
                Ok(Some(_)) => {}
                Ok(None) => panic!("PostgreSQL {major}: the backup was not interrupted"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.sqlstate(), Some("57014"), "{error}");
        assert!(stream.next().await.is_err() && stream.into_connection().is_err());

        let connection = connect(&pg.conninfo(), ConnectionKind::PhysicalReplication).await;
        let mut stream = connection.base_backup(&options).await.unwrap();
        while !matches!(stream.next().await.unwrap(), Some(BaseBackupEvent::Data(_))) {}
        drop(stream);
        pg.wait_for("SELECT count(*) FROM pg_stat_replication", "0", LIMIT);
    }
}

#[tokio::test]
async fn an_incremental_backup_rests_on_an_uploaded_manifest() {
    for major in majors().into_iter().filter(|major| *major >= 17) {
        let pg = Pg::builder(major).option("summarize_wal", "on").start();
        pg.sql("CREATE TABLE t AS SELECT g, repeat('x', 100) FROM generate_series(1, 20000) g");
        let full = take(&pg, &BaseBackupOptions::new("full")).await.unwrap();
        pg.sql("UPDATE t SET g = 0 WHERE g = 1");
        let mut connection = connect(&pg.conninfo(), ConnectionKind::PhysicalReplication).await;
        let garbage = connection.upload_manifest(&"not a manifest".into()).await.unwrap_err();
        assert!(matches!(garbage, PgError::Server(_)), "{garbage}");
        connection.upload_manifest(&full.manifest.into()).await.unwrap();
        let options = BaseBackupOptions { incremental: true, ..BaseBackupOptions::new("more") };
        let mut stream = connection.base_backup(&options).await.unwrap();
        let mut bytes = 0;
        while let Some(event) = timeout(LIMIT, stream.next()).await.expect("an event in time").unwrap() {
            if let BaseBackupEvent::Data(data) = event {
                bytes += data.len();
            }
        }
        let whole = full.archives["base.tar"].1.len();
        assert!(bytes < whole / 2, "PostgreSQL {major}: {bytes} of {whole} bytes");
    }
}
