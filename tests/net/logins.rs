//! Who is let in, and whom we let ask: methods, password files, hosts in a row.

use super::common::pg::{Pg, Port, Stop, majors};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};
use walden::net::{ConnectOptions, Connection, ConnectionKind, PgError, code};

const SQL: ConnectionKind = ConnectionKind::Sql;
const REPLICATION: ConnectionKind = ConnectionKind::PhysicalReplication;
const SECRET: &str = "pä ss'w:o\\rd";

fn options(conninfo: &str) -> ConnectOptions {
    ConnectOptions::parse(conninfo, &|_| None).unwrap()
}

pub async fn attempt(conninfo: &str, kind: ConnectionKind) -> Result<Connection, PgError> {
    let result = Connection::connect(&options(conninfo), kind, "walden_test").await;
    if let Err(error) = &result {
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains(SECRET) && !shown.contains("wrong-word"), "{shown}");
    }
    result
}

/// The oldest and the newest major, for what does not change between.
pub fn ends() -> Vec<u32> {
    let majors = majors();
    if majors.len() > 2 { vec![majors[0], majors[majors.len() - 1]] } else { majors }
}

fn auth_code(result: Result<Connection, PgError>) -> Option<String> {
    match result.map(drop) {
        Err(PgError::Auth { code, .. }) => code,
        other => panic!("{other:?}"),
    }
}

fn auth_reason(result: Result<Connection, PgError>) -> String {
    match result.map(drop) {
        Err(PgError::Auth { reason, code: None, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

/// A server with a role for every method, over both kinds of socket.
fn server(major: u32) -> Pg {
    let mut builder = Pg::builder(major).tcp();
    for (role, method) in
        [("sc", "scram-sha-256"), ("md", "md5"), ("sc5", "md5"), ("pw", "password"), ("nobody", "reject")]
    {
        builder = builder
            .hba(&format!("local all,replication {role} {method}"))
            .hba(&format!("host all,replication {role} 127.0.0.1/32 {method}"));
    }
    let pg = builder.start();
    let secret = SECRET.replace('\'', "''");
    pg.sql(&format!(
        "SET password_encryption = 'scram-sha-256'; CREATE ROLE sc LOGIN REPLICATION PASSWORD '{secret}'"
    ));
    pg.sql(&format!(
        "SET password_encryption = 'scram-sha-256'; CREATE ROLE sc5 LOGIN REPLICATION PASSWORD '{secret}'"
    ));
    pg.sql(&format!("SET password_encryption = 'md5'; CREATE ROLE md LOGIN REPLICATION PASSWORD '{secret}'"));
    pg.sql(&format!("CREATE ROLE pw LOGIN REPLICATION PASSWORD '{secret}'; CREATE ROLE nobody LOGIN; CREATE ROLE plain LOGIN"));
    pg
}

fn quoted(password: &str) -> String {
    format!("password='{}'", password.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[tokio::test]
async fn every_method_with_right_wrong_and_no_password() {
    for major in majors() {
        let pg = server(major);
        for base in [pg.conninfo(), pg.tcp_conninfo()] {
            for role in ["sc", "sc5", "md", "pw"] {
                // In the clear over TCP only when told.
                let told = if role == "pw" { "require_auth=password" } else { "" };
                let base = format!("{base} user={role} {told}");
                for kind in [SQL, REPLICATION] {
                    let right = format!("{base} {}", quoted(SECRET));
                    let connection = attempt(&right, kind).await;
                    assert!(connection.is_ok(), "PostgreSQL {major} {role}: {:?}", connection.err());
                    let wrong = attempt(&format!("{base} password=wrong-word"), kind).await;
                    assert_eq!(auth_code(wrong).as_deref(), Some(code::INVALID_PASSWORD));
                    let none =
                        attempt(&format!("{base} passfile=/nonexistent"), kind).await.map(drop).unwrap_err();
                    assert!(none.hint().is_some_and(|hint| hint.contains("PGPASSWORD")), "{none}");
                    assert!(!none.is_transient());
                }
            }
        }
    }
}

#[tokio::test]
async fn a_password_in_the_clear_is_not_sent_over_bare_tcp() {
    let pg = server(majors()[0]);
    let base = format!("{} user=pw {}", pg.tcp_conninfo(), quoted(SECRET));
    let error = attempt(&base, SQL).await.map(drop).unwrap_err();
    assert!(matches!(&error, PgError::Auth { reason, .. } if reason.contains("in the clear")), "{error}");
    // It was not sent: the server saw a client that went away without a word.
    assert!(!pg.log().contains("password authentication failed"), "{}", pg.log());
    assert!(attempt(&format!("{base} require_auth=!none"), SQL).await.is_err());
}

#[tokio::test]
async fn methods_that_were_not_agreed_to_are_refused() {
    let pg = server(*majors().last().unwrap());
    let with = |role: &str, more: &str| format!("{} user={role} {} {more}", pg.conninfo(), quoted(SECRET));
    assert!(auth_reason(attempt(&with("md", "require_auth=scram-sha-256"), SQL).await).contains("md5"));
    assert!(
        auth_reason(attempt(&with("pw", "require_auth=scram-sha-256,md5"), SQL).await).contains("password")
    );
    assert!(auth_reason(attempt(&with("postgres", "require_auth=!none"), SQL).await).contains("none"));
    assert!(
        auth_reason(attempt(&with("sc", "channel_binding=require"), SQL).await).contains("channel_binding")
    );
    assert!(
        auth_reason(attempt(&with("postgres", "channel_binding=require"), SQL).await)
            .contains("channel_binding")
    );
    assert!(attempt(&with("sc", "require_auth=scram-sha-256 channel_binding=disable"), SQL).await.is_ok());
    assert!(attempt(&with("sc5", "require_auth=scram-sha-256"), SQL).await.is_ok());
}

#[tokio::test]
async fn who_may_not_in_is_told_what_to_change() {
    for major in majors() {
        let pg = server(major);
        let rejected = attempt(&format!("{} user=nobody", pg.conninfo()), SQL).await.map(drop).unwrap_err();
        assert_eq!(rejected.sqlstate(), Some(code::INVALID_AUTHORIZATION), "{rejected}");
        assert!(rejected.hint().is_some_and(|hint| hint.contains("pg_hba.conf")), "{rejected:?}");
        let plain =
            attempt(&format!("{} user=plain", pg.conninfo()), REPLICATION).await.map(drop).unwrap_err();
        assert!(matches!(plain, PgError::Auth { .. }), "PostgreSQL {major}: {plain}");
        assert!(
            plain.hint().is_some_and(|hint| hint.contains("REPLICATION")),
            "PostgreSQL {major}: {plain:?}"
        );
        let lost = attempt(&format!("{} dbname=nowhere", pg.conninfo()), SQL).await.map(drop).unwrap_err();
        assert_eq!(lost.sqlstate(), Some("3D000"), "{lost}");
    }
}

fn write(path: &Path, text: &str, mode: u32) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn password_files_are_read_anew_and_only_when_private() {
    let pg = server(majors()[0]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pass");
    let conninfo = format!("{} user=sc passfile='{}'", pg.tcp_conninfo(), file.display());
    let secret = SECRET.replace('\\', "\\\\").replace(':', "\\:");
    let (right, port) = (format!("127.0.0.1:*:*:sc:{secret}\n"), pg.port());
    write(&file, &right, 0o644);
    assert!(attempt(&conninfo, SQL).await.is_err());
    write(&file, &right, 0o600);
    assert!(attempt(&conninfo, SQL).await.is_ok());
    assert!(attempt(&conninfo, REPLICATION).await.is_ok());
    write(&file, &format!("127.0.0.1:{port}:replication:sc:{secret}\n*:*:*:*:wrong-word\n"), 0o600);
    assert!(attempt(&conninfo, REPLICATION).await.is_ok());
    assert_eq!(auth_code(attempt(&conninfo, SQL).await).as_deref(), Some(code::INVALID_PASSWORD));
    // A password given outright wins.
    assert!(attempt(&format!("{conninfo} {}", quoted(SECRET)), SQL).await.is_ok());
    let unix = format!("{} user=sc passfile='{}'", pg.conninfo(), file.display());
    write(
        &file,
        &format!(
            "{}:5432:*:*:wrong-word\n{}:*:postgres:sc:{secret}\n",
            "localhost",
            pg.socket_dir().display()
        ),
        0o600,
    );
    assert!(attempt(&unix, SQL).await.is_ok());
}

#[tokio::test]
async fn variables_and_services_lead_to_a_server() {
    let pg = server(majors()[0]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("services");
    write(&file, &format!("[shop]\nhost=127.0.0.1\nport={}\nuser=sc\ndbname=template1\n", pg.port()), 0o644);
    let env = |name: &str| match name {
        "PGSERVICEFILE" => Some(file.display().to_string()),
        "PGPASSWORD" => Some(SECRET.to_owned()),
        "PGAPPNAME" => Some("mine".to_owned()),
        _ => None,
    };
    let options = ConnectOptions::parse("service=shop", &env).unwrap();
    let mut sql = Connection::connect(&options, SQL, "walden_shop").await.unwrap();
    let row = sql
        .query_one("SELECT current_user, current_database(), current_setting('application_name')")
        .await
        .unwrap();
    assert_eq!((row.get(0), row.get(1), row.get(2)), (Some("sc"), Some("template1"), Some("mine")));
    let mut options = options;
    options.application_name = None;
    options.options = Some("-c work_mem=123kB".to_owned());
    let mut sql = Connection::connect(&options, SQL, "walden_shop").await.unwrap();
    let row = sql
        .query_one("SELECT current_setting('application_name'), current_setting('work_mem')")
        .await
        .unwrap();
    assert_eq!((row.get(0), row.get(1)), (Some("walden_shop"), Some("123kB")));
}

#[tokio::test]
async fn of_several_hosts_the_one_that_is_meant() {
    for major in ends() {
        let pg = Pg::builder(major).tcp().start();
        let standby = pg.standby();
        let dead = Port::reserve();
        let ports = |list: &[u16]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let hosts = |list: &[u16], target: &str| {
            let names = vec!["127.0.0.1"; list.len()].join(",");
            format!(
                "host={names} port={} user=postgres target_session_attrs={target} connect_timeout=5",
                ports(list)
            )
        };
        let (p, s, d) = (pg.port(), standby.port(), dead.number());
        for kind in [SQL, REPLICATION] {
            for (list, target, found) in [
                (&[d, s, p][..], "any", s),
                (&[d, s, p], "read-write", p),
                (&[d, s, p], "primary", p),
                (&[p, d, s], "standby", s),
                (&[p, d, s], "read-only", s),
                (&[p, s], "prefer-standby", s),
                (&[d, p], "prefer-standby", p),
            ] {
                let connection = attempt(&hosts(list, target), kind).await.unwrap();
                assert_eq!(connection.host(), format!("127.0.0.1:{found}"), "PostgreSQL {major} {target}");
            }
        }
        let error = attempt(&hosts(&[s, d], "primary"), SQL).await.map(drop).unwrap_err();
        let PgError::NoSuchHost { wanted: "primary", tried } = &error else { panic!("{error}") };
        assert!(tried.contains("is a standby") && tried.contains("refused"), "{tried}");
        let error = attempt(&hosts(&[d, d], "any"), SQL).await.map(drop).unwrap_err();
        assert!(matches!(error, PgError::Connect { .. }) && error.is_transient(), "{error}");
        assert!(attempt(&hosts(&[d], "any"), SQL).await.map(drop).unwrap_err().is_transient());
        pg.sql("ALTER SYSTEM SET default_transaction_read_only = on; SELECT pg_reload_conf()");
        pg.wait_for("SHOW default_transaction_read_only", "on", Duration::from_secs(10));
        let error = attempt(&hosts(&[p], "read-write"), SQL).await.map(drop).unwrap_err();
        assert!(matches!(error, PgError::NoSuchHost { .. }), "{error}");
    }
}

#[tokio::test]
async fn silence_is_given_up_in_time() {
    let port = Port::reserve();
    let silent = std::net::TcpListener::bind(("127.0.0.1", port.number())).unwrap();
    let begun = Instant::now();
    let conninfo = format!("host=127.0.0.1 port={} user=x connect_timeout=1", port.number());
    let error = attempt(&conninfo, SQL).await.map(drop).unwrap_err();
    assert!(matches!(error, PgError::Timeout { .. }) && error.is_transient(), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5));
    drop(silent);
}

#[tokio::test]
async fn what_is_not_postgres_is_an_error() {
    use tokio::io::AsyncWriteExt;
    for answer in [
        &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
        b"N",
        b"R\xff\xff\xff\xff",
        b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I",
        b"",
    ] {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                socket.write_all(answer).await.ok();
                socket.shutdown().await.ok();
            }
        });
        for mode in ["disable", "prefer", "require"] {
            let conninfo = format!("host=127.0.0.1 port={port} user=x sslmode={mode} connect_timeout=5");
            assert!(attempt(&conninfo, SQL).await.is_err(), "{answer:?} {mode}");
        }
        server.abort();
    }
}

#[tokio::test]
async fn a_server_in_its_shutdown_is_passed_over() {
    let (mut closing, open) = (Pg::builder(15).tcp().start(), Pg::builder(15).tcp().start());
    let session = attempt(&closing.tcp_conninfo(), SQL).await.unwrap();
    closing.signal(Stop::Smart);
    let conninfo = format!("host=127.0.0.1,127.0.0.1 port={},{} user=postgres", closing.port(), open.port());
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let connection = attempt(&conninfo, SQL).await.unwrap();
        if connection.host().ends_with(&open.port().to_string()) {
            break;
        }
        assert!(Instant::now() < deadline, "the closing server still lets everybody in");
    }
    let error = attempt(&closing.tcp_conninfo(), SQL).await.map(drop).unwrap_err();
    assert!(error.sqlstate() == Some(code::CANNOT_CONNECT_NOW) && error.is_transient(), "{error}");
    session.close().await;
    assert!(closing.wait_stopped(Duration::from_secs(20)));
}

#[tokio::test]
async fn a_unix_socket_of_somebody_else_is_refused() {
    let pg = Pg::start(majors()[0]);
    let error = attempt(&format!("{} requirepeer=daemon", pg.conninfo()), SQL).await.map(drop).unwrap_err();
    assert!(error.to_string().contains("requirepeer"), "{error}");
    assert!(attempt(&format!("{} requirepeer=no-such-user", pg.conninfo()), SQL).await.is_err());
    if super::common::pg::is_root() {
        assert!(attempt(&format!("{} requirepeer=postgres", pg.conninfo()), SQL).await.is_ok());
    }
}
