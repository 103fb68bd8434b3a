//! TLS against real servers: whose certificate is believed, whose is not, and our own.

use super::common::pg::{Pg, majors};
use super::logins::{attempt, ends};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod,
    KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use walden::base::{Lsn, TimelineId};
use walden::net::{Connection, ConnectionKind, PgError, ReplicationEvent, StartReplication, code};

const SQL: ConnectionKind = ConnectionKind::Sql;

/// An authority, and a directory for what it makes.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    dir: TempDir,
    name: &'static str,
}

impl Authority {
    fn new(name: &'static str) -> Authority {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
        Authority { issuer: Issuer::new(params, key), dir, name }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.file(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    }

    /// A certificate and its key, in PEM.
    fn sign(&self, params: &CertificateParams) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// `<name>.crt` and `<name>.key` of a client called `name`.
    fn client(&self, name: &str) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        let (cert, key) = self.sign(&params);
        let cert = self.write(&format!("{name}.crt"), &cert, 0o644);
        let key = self.write(&format!("{name}.key"), &key, 0o600);
        format!("sslcert={} sslkey={}", cert.display(), key.display())
    }
}

fn server_params(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, "the server");
    params.serial_number = Some(SerialNumber::from_slice(&[7]));
    params
}

/// A server with `cert` and `key`, that trusts `clients` and lets in by TLS only, but for role `bare`.
fn server(major: u32, (cert, key): &(String, String), clients: &Path) -> Pg {
    let builder = Pg::builder(major).tcp().option("ssl", "on").option("ssl_ca_file", "clients.crt");
    let mut pg = builder
        .hba("hostssl all,replication sc 127.0.0.1/32 scram-sha-256")
        .hba("hostssl all,replication pw 127.0.0.1/32 password")
        .hba("hostssl all,replication certified 127.0.0.1/32 cert")
        .hba("hostnossl all bare 127.0.0.1/32 trust")
        .hba("hostssl all postgres 127.0.0.1/32 trust")
        .hba("hostssl replication postgres 127.0.0.1/32 trust")
        .hba("host all all 127.0.0.1/32 reject")
        .create();
    pg.write("server.crt", cert.as_bytes(), 0o644);
    pg.write("server.key", key.as_bytes(), 0o600);
    pg.write("clients.crt", &std::fs::read(clients).unwrap(), 0o644);
    pg.start_again();
    pg.sql("SET password_encryption = 'scram-sha-256'; CREATE ROLE sc LOGIN REPLICATION PASSWORD 'x'");
    pg.sql("CREATE ROLE pw LOGIN REPLICATION PASSWORD 'x'; CREATE ROLE certified LOGIN REPLICATION; CREATE ROLE bare LOGIN");
    pg
}

fn to(pg: &Pg, host: &str, more: &str) -> String {
    format!("host={host} hostaddr=127.0.0.1 port={} user=postgres dbname=postgres {more}", pg.port())
}

async fn encrypted(connection: &mut Connection) -> (bool, String) {
    let row = connection
        .query_one(
            "SELECT ssl, coalesce(version, '') AS version FROM pg_stat_ssl WHERE pid = pg_backend_pid()",
        )
        .await
        .unwrap();
    (row.bool("ssl").unwrap(), row.by_name("version").unwrap().to_owned())
}

fn tls_reason(result: Result<Connection, PgError>) -> String {
    match result.map(drop) {
        Err(error @ PgError::Tls { .. }) => {
            assert!(!error.is_transient());
            error.to_string()
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn certificates_are_believed_as_far_as_asked() {
    for major in ends() {
        let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
        let pg =
            server(major, &ours.sign(&server_params(&["db.example", "127.0.0.1"])), &ours.file("ca.crt"));
        let root = |authority: &Authority| format!("sslrootcert={}", authority.file("ca.crt").display());
        let (good, bad) = (root(&ours), root(&theirs));
        for (host, more) in [
            ("db.example", format!("sslmode=verify-full {good}")),
            ("127.0.0.1", format!("sslmode=verify-full {good}")),
            ("other.example", format!("sslmode=verify-ca {good}")),
            ("other.example", format!("sslmode=require {good}")),
            ("other.example", "sslmode=require".to_owned()),
            ("other.example", "sslmode=prefer".to_owned()),
            ("other.example", "sslmode=allow".to_owned()),
        ] {
            let mut connection = attempt(&to(&pg, host, &more), SQL).await.unwrap();
            assert_eq!(encrypted(&mut connection).await, (true, "TLSv1.3".to_owned()), "{host} {more}");
        }
        let mut old =
            attempt(&to(&pg, "x", "sslmode=require ssl_max_protocol_version=TLSv1.2"), SQL).await.unwrap();
        assert_eq!(encrypted(&mut old).await, (true, "TLSv1.2".to_owned()));
        let wrong_name =
            attempt(&to(&pg, "other.example", &format!("sslmode=verify-full {good}")), SQL).await;
        assert!(tls_reason(wrong_name).contains("other.example"));
        for mode in ["require", "verify-ca", "verify-full"] {
            let unknown = attempt(&to(&pg, "db.example", &format!("sslmode={mode} {bad}")), SQL).await;
            assert!(tls_reason(unknown).contains("UnknownIssuer"), "{mode}");
        }
        let missing =
            attempt(&to(&pg, "db.example", "sslmode=verify-full sslrootcert=/nonexistent"), SQL).await;
        assert!(tls_reason(missing).contains("/nonexistent"));
        let bare = attempt(&to(&pg, "x", "sslmode=disable"), SQL).await.map(drop).unwrap_err();
        assert_eq!(bare.sqlstate(), Some(code::INVALID_AUTHORIZATION), "{bare}");
        // Who is let in without TLS only, is found without TLS, if the mode leaves it open.
        let mut bare = attempt(&to(&pg, "x", "user=bare sslmode=prefer"), SQL).await.unwrap();
        assert!(!encrypted(&mut bare).await.0);
        assert!(attempt(&to(&pg, "x", "user=bare sslmode=require"), SQL).await.is_err());
        // Within TLS a password may be sent as it is, and a cancel request goes through TLS too.
        let mut pw = attempt(&to(&pg, "x", "user=pw password=x sslmode=require"), SQL).await.unwrap();
        let token = pw.cancel_token().unwrap();
        let sleep = pw.query("SELECT pg_sleep(30)");
        let (error, cancelled) = tokio::join!(sleep, async {
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            token.cancel().await
        });
        cancelled.unwrap();
        assert_eq!(error.unwrap_err().sqlstate(), Some("57014"));
    }
}

#[tokio::test]
async fn client_certificates_prove_who_we_are() {
    for major in ends() {
        let ours = Authority::new("ours");
        let pg = server(major, &ours.sign(&server_params(&["db"])), &ours.file("ca.crt"));
        let (certified, other) = (ours.client("certified"), ours.client("other"));
        let login = |more: &str| to(&pg, "db", &format!("user=certified sslmode=require {more}"));
        for kind in [SQL, ConnectionKind::PhysicalReplication] {
            attempt(&login(&certified), kind).await.unwrap();
            assert!(attempt(&login(&format!("{certified} sslcertmode=disable")), kind).await.is_err());
            let wrong = attempt(&login(&other), kind).await.map(drop).unwrap_err();
            assert!(matches!(wrong, PgError::Auth { .. }), "PostgreSQL {major}: {wrong}");
        }
        let key = ours.file("certified.key");
        std::fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
        assert!(tls_reason(attempt(&login(&certified), SQL).await).contains("group or world access"));
        std::fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
        let crossed = format!(
            "sslcert={} sslkey={}",
            ours.file("certified.crt").display(),
            ours.file("other.key").display()
        );
        assert!(tls_reason(attempt(&login(&crossed), SQL).await).contains("do not belong together"));
        let gone = "sslcert=/nonexistent/c.crt sslkey=/nonexistent/c.key";
        assert!(tls_reason(attempt(&login(gone), SQL).await).contains("/nonexistent/c.crt"));
        ours.write(
            "locked.key",
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
            0o600,
        );
        let locked = format!(
            "sslcert={} sslkey={}",
            ours.file("certified.crt").display(),
            ours.file("locked.key").display()
        );
        assert!(tls_reason(attempt(&login(&locked), SQL).await).contains("encrypted"));
        let required = "user=postgres sslcertmode=require";
        assert!(
            tls_reason(attempt(&to(&pg, "db", &format!("sslmode=require {required}")), SQL).await)
                .contains("sslcertmode")
        );
        attempt(&to(&pg, "db", &format!("sslmode=require {required} {certified}")), SQL).await.unwrap();
    }
}

#[tokio::test]
async fn scram_is_bound_to_the_connection() {
    for major in ends() {
        let ours = Authority::new("ours");
        for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let cert = server_params(&["db"]).self_signed(&key).unwrap();
            let pg = server(major, &(cert.pem(), key.serialize_pem()), &ours.file("ca.crt"));
            let login = |more: &str| to(&pg, "db", &format!("user=sc password=x sslmode=require {more}"));
            attempt(&login("channel_binding=require"), SQL).await.unwrap();
            attempt(&login("channel_binding=prefer"), ConnectionKind::PhysicalReplication).await.unwrap();
            attempt(&login("channel_binding=disable"), SQL).await.unwrap();
            let wrong =
                attempt(&login("channel_binding=require password=y"), SQL).await.map(drop).unwrap_err();
            assert_eq!(wrong.sqlstate(), Some(code::INVALID_PASSWORD));
        }
    }
}

#[tokio::test]
async fn a_self_signed_certificate_is_believed_when_it_is_the_one_we_hold() {
    let major = *majors().last().unwrap();
    let ours = Authority::new("ours");
    // As `openssl req -x509` makes them: marked as an authority.
    let make = |year: i32, authority: bool| {
        let mut params = server_params(&["db"]);
        params.is_ca = if authority { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::NoCa };
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    };
    for authority in [true, false] {
        let (good, expired, other) = (make(4000, authority), make(2001, authority), make(4000, authority));
        let pg = server(major, &good, &ours.file("ca.crt"));
        let held = ours.write("held.crt", &good.0, 0o644);
        let another = ours.write("another.crt", &other.0, 0o644);
        let login = |host: &str, root: &Path, mode: &str| {
            to(&pg, host, &format!("sslmode={mode} sslrootcert={}", root.display()))
        };
        attempt(&login("db", &held, "verify-full"), SQL).await.unwrap();
        attempt(&login("other", &held, "verify-ca"), SQL).await.unwrap();
        tls_reason(attempt(&login("other", &held, "verify-full"), SQL).await);
        tls_reason(attempt(&login("db", &another, "verify-ca"), SQL).await);

        let pg = server(major, &expired, &ours.file("ca.crt"));
        let held = ours.write("expired.crt", &expired.0, 0o644);
        let login = to(&pg, "db", &format!("sslmode=verify-ca sslrootcert={}", held.display()));
        assert!(tls_reason(attempt(&login, SQL).await).contains("expired"), "authority: {authority}");
    }
}

#[tokio::test]
async fn expired_and_revoked_certificates_are_refused() {
    let major = majors()[0];
    let ours = Authority::new("ours");
    let mut params = server_params(&["db"]);
    let pg = server(major, &ours.sign(&params), &ours.file("ca.crt"));
    let login = |pg: &Pg, more: &str| {
        to(pg, "db", &format!("sslmode=verify-full sslrootcert={} {more}", ours.file("ca.crt").display()))
    };
    let list = |serial: u8| {
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from_slice(&[serial]),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(4000, 1, 1),
            crl_number: SerialNumber::from_slice(&[1]),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let path = ours.write("list.crl", &list.signed_by(&ours.issuer).unwrap().pem().unwrap(), 0o644);
        format!("sslcrl={}", path.display())
    };
    attempt(&login(&pg, &list(8)), SQL).await.unwrap();
    assert!(tls_reason(attempt(&login(&pg, &list(7)), SQL).await).contains("Revoked"));
    assert!(tls_reason(attempt(&login(&pg, "sslcrl=/nonexistent"), SQL).await).contains("sslcrl"));
    params.not_after = date_time_ymd(2001, 1, 1);
    let pg = server(major, &ours.sign(&params), &ours.file("ca.crt"));
    assert!(tls_reason(attempt(&login(&pg, ""), SQL).await).contains("expired"));
    assert_eq!(ours.name, "ours");
}

#[tokio::test]
async fn tls_may_begin_at_once() {
    for major in majors() {
        let ours = Authority::new("ours");
        let pg = server(major, &ours.sign(&server_params(&["db"])), &ours.file("ca.crt"));
        let result = attempt(&to(&pg, "db", "sslmode=require sslnegotiation=direct"), SQL).await;
        if major >= 17 {
            assert!(encrypted(&mut result.unwrap()).await.0);
        } else {
            assert!(result.is_err(), "PostgreSQL {major}");
        }
    }
}

#[tokio::test]
async fn a_server_without_tls_is_used_only_if_that_was_left_open() {
    let pg = Pg::builder(majors()[0]).tcp().start();
    for mode in ["disable", "allow", "prefer"] {
        attempt(&format!("{} sslmode={mode}", pg.tcp_conninfo()), SQL).await.unwrap();
    }
    let error = attempt(&format!("{} sslmode=require", pg.tcp_conninfo()), SQL).await;
    assert!(tls_reason(error).contains("does not offer"));
    // As libpq, TLS is not for unix sockets.
    attempt(&format!("{} sslmode=verify-full", pg.conninfo()), SQL).await.unwrap();
}

#[tokio::test]
async fn wal_streams_within_tls() {
    let ours = Authority::new("ours");
    let pg = server(*majors().last().unwrap(), &ours.sign(&server_params(&["db"])), &ours.file("ca.crt"));
    let begin = pg.wal_lsn().parse::<Lsn>().unwrap().align_down(16 << 20);
    pg.sql("CREATE TABLE t AS SELECT g, repeat('x', 500) FROM generate_series(1, 20000) g");
    let end: Lsn = pg.wal_lsn().parse().unwrap();
    let connection =
        attempt(&to(&pg, "db", "sslmode=require"), ConnectionKind::PhysicalReplication).await.unwrap();
    let StartReplication::Streaming(stream) =
        connection.start_physical(None, begin, TimelineId(1)).await.unwrap()
    else {
        panic!("timeline 1 ended")
    };
    let (mut reader, _writer) = stream.split();
    let mut at = begin;
    while at < end {
        if let ReplicationEvent::Wal { start, data, .. } = reader.next().await.unwrap() {
            assert_eq!(start, at);
            at = start.checked_add(data.len() as u64).unwrap();
        }
    }
}
