//! Connection strings as libpq reads them.

use super::*;
use proptest::prelude::*;
use std::collections::HashMap;
use std::io;
use std::path::Path;

#[derive(Default)]
struct Fake {
    vars: HashMap<&'static str, &'static str>,
    files: HashMap<&'static str, &'static str>,
}

impl Surroundings for Fake {
    fn var(&self, name: &str) -> Option<String> {
        self.vars.get(name).map(|value| (*value).to_owned())
    }

    fn read(&self, path: &Path) -> io::Result<Option<FoundFile>> {
        let text = path.to_str().and_then(|path| self.files.get(path));
        Ok(text.map(|text| FoundFile { text: Secret::new(*text), mode: 0o100_600 }))
    }

    fn user(&self) -> Option<String> {
        Some("os".to_owned())
    }

    fn home(&self) -> Option<PathBuf> {
        Some(PathBuf::from("/home/os"))
    }
}

fn parse(text: &str) -> Result<ConnectOptions, ConnectionStringError> {
    ConnectOptions::parse_within(text, &Fake::default())
}

fn hosts(text: &str) -> String {
    parse(text).unwrap().describe_hosts()
}

#[test]
fn conninfo_quotes_as_libpq() {
    let options = parse(r" user = 'a\'b \\ c'  dbname=x\ y password='p=w' host=h port = 7 ").unwrap();
    assert_eq!(options.user, r"a'b \ c");
    assert_eq!(options.database.as_deref(), Some("x y"));
    assert_eq!(options.password, Some(Secret::new("p=w")));
    assert_eq!(options.describe_hosts(), "h:7");
    assert_eq!(parse("user=a user=b").unwrap().user, "b");
    assert_eq!(parse("user=''").unwrap().user, "os");
}

#[test]
fn urls_name_users_hosts_and_options() {
    let url = "postgresql://al%20ice:s%3Acr:et@db1:5433,[2001:db8::1]:5434,db3/shop%2Feu?sslmode=require&application_name=x%26y";
    let options = parse(url).unwrap();
    assert_eq!(options.user, "al ice");
    assert_eq!(options.password, Some(Secret::new("s:cr:et")));
    assert_eq!(options.database.as_deref(), Some("shop/eu"));
    assert_eq!(options.tls.mode, SslMode::Require);
    assert_eq!(options.application_name.as_deref(), Some("x&y"));
    assert_eq!(options.describe_hosts(), "db1:5433, [2001:db8::1]:5434, db3:5432");
    assert_eq!(hosts("postgres://%2Frun%2Fpg:6000/x"), "/run/pg:6000");
    assert_eq!(hosts("postgresql:///x?host=/run/pg&port=6001"), "/run/pg:6001");
    assert_eq!(parse("postgres://h?ssl=true").unwrap().tls.mode, SslMode::Require);
    assert_eq!(hosts("postgres://"), "/var/run/postgresql:5432, /tmp:5432");
}

#[test]
fn hosts_ports_and_addresses_go_together() {
    assert_eq!(hosts("host=a,b port=1,2"), "a:1, b:2");
    assert_eq!(hosts("host=a,b port=9"), "a:9, b:9");
    assert_eq!(hosts("host=a,b port=,2"), "a:5432, b:2");
    assert_eq!(hosts("host=/sock,@abstract"), "/sock:5432, @abstract:5432");
    let options = parse("host=db hostaddr=::1").unwrap();
    let address = "::1".parse().ok();
    assert_eq!(options.hosts, [HostPort { host: Host::Tcp { name: "db".into(), address }, port: 5432 }]);
    for text in
        ["host=a,b port=1,2,3", "host=a hostaddr=1.1.1.1,2.2.2.2", "hostaddr=nope", "port=0", "port=70000"]
    {
        assert!(parse(text).is_err(), "{text}");
    }
}

#[test]
fn errors_never_repeat_a_value() {
    let texts = [
        "password='topsecret",
        "topsecret",
        "user=a topsecret!x=1",
        "sslmode=topsecret",
        "port=topsecret",
        "connect_timeout=topsecret",
        "postgres://u:topsecret%zz@h/",
        "postgres://u:topsecret@[::1/",
        "postgres://h/?topsecret",
        "postgres://h/?sslmode=topsecret=",
        "target_session_attrs=topsecret",
        "require_auth=topsecret",
        "hostaddr=topsecret",
        "sslpassword=topsecret",
        "scram_client_key=topsecret",
    ];
    for text in texts {
        let error = parse(text).expect_err(text);
        assert!(!format!("{error} {error:?}").contains("topsecret"), "{error}");
    }
    let options = parse("user=u password=topsecret").unwrap();
    assert!(!format!("{options:?} {options:#?}").contains("topsecret"));
}

#[test]
fn tells_whether_a_password_is_inside() {
    for text in [
        "password=x",
        "host=a password = 'x'",
        "postgres://u:x@h/",
        "postgresql://h/d?password=x",
        "sslpassword=x",
        "password='x",
        "postgres://u:x@[::1",
        "PassWord=x",
    ] {
        assert!(contains_password(text), "{text}");
    }
    for text in [
        "",
        "host=a user=password",
        "postgres://u@h:5432/d",
        "postgres://h/d?user=x",
        "password=''",
        "service=x",
    ] {
        assert!(!contains_password(text), "{text}");
    }
}

#[test]
fn the_string_wins_over_the_service_and_the_service_over_variables() {
    let mut fake = Fake::default();
    fake.vars.extend([("PGUSER", "env"), ("PGDATABASE", "env"), ("PGHOST", "env"), ("PGSERVICE", "shop")]);
    fake.files.insert(
        "/home/os/.pg_service.conf",
        "# services\n[other]\nuser=wrong\n\n[shop]\nhost=svc\ndbname=svc\nport=6000\n[shop]\nport=1\n",
    );
    let options = ConnectOptions::parse_within("host=mine", &fake).unwrap();
    assert_eq!(options.describe_hosts(), "mine:6000");
    assert_eq!((options.database.as_deref(), options.user.as_str()), (Some("svc"), "env"));
    let error = ConnectOptions::parse_within("service=nowhere", &fake).unwrap_err();
    assert!(
        matches!(error, ConnectionStringError::Service { ref service, .. } if service == "nowhere"),
        "{error}"
    );
}

#[test]
fn service_files_are_looked_for_where_libpq_does() {
    let mut fake = Fake::default();
    fake.files.insert("/etc/postgresql-common/pg_service.conf", "[sys]\nhost=sys\n");
    fake.files.insert("/conf/pg_service.conf", "[sys]\nhost=conf\n");
    fake.files.insert("/mine.conf", "[mine]\nhost=mine\npassword=a=b\n");
    let host = |fake: &Fake, text: &str| ConnectOptions::parse_within(text, fake).map(|o| o.describe_hosts());
    assert_eq!(host(&fake, "service=sys").unwrap(), "sys:5432");
    fake.vars.insert("PGSYSCONFDIR", "/conf");
    assert_eq!(host(&fake, "service=sys").unwrap(), "conf:5432");
    assert_eq!(host(&fake, "service=mine servicefile=/mine.conf").unwrap(), "mine:5432");
    fake.vars.insert("PGSERVICEFILE", "/gone.conf");
    assert!(host(&fake, "service=sys").is_err());
    fake.vars.insert("PGSERVICEFILE", "/bad.conf");
    for bad in ["[s]\nhost", "[s]\nservice=x", "[s]\nldap://x", "[s]\nnonsense=1"] {
        fake.files.insert("/bad.conf", bad);
        assert!(host(&fake, "service=s").is_err(), "{bad}");
    }
}

#[test]
fn refuses_what_it_cannot_honour() {
    for text in [
        "gssencmode=require",
        "sslcrldir=/x",
        "sslpassword=x",
        "load_balance_hosts=random",
        "nonsense=1",
        "sslmode=allow sslnegotiation=direct",
        "ssl_max_protocol_version=TLSv1.1",
        "ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2",
        "sslrootcert=system sslmode=require",
        "require_auth=md5,!none",
        "require_auth=kerberos",
    ] {
        assert!(parse(text).is_err(), "{text}");
    }
    assert!(
        parse(
            "gssencmode=prefer client_encoding=UTF8 replication=true krbsrvname=x load_balance_hosts=disable"
        )
        .is_ok()
    );
}

#[test]
fn tls_and_timeouts_have_libpqs_defaults_but_for_a_finite_connect() {
    let options = parse("").unwrap();
    assert_eq!(options.tls.mode, SslMode::Prefer);
    assert_eq!(options.tls.root_certs, RootCerts::Default(Some("/home/os/.postgresql/root.crt".into())));
    assert_eq!(options.connect_timeout, Some(CONNECT_TIMEOUT_DEFAULT));
    assert_eq!(options.passfile.as_deref(), Some(Path::new("/home/os/.pgpass")));
    assert!(options.keepalive.enabled && options.tls.sni);
    assert_eq!(parse("connect_timeout=0").unwrap().connect_timeout, None);
    assert_eq!(parse("connect_timeout=3").unwrap().connect_timeout, Some(Duration::from_secs(3)));
    assert_eq!(parse("sslrootcert=system").unwrap().tls.mode, SslMode::VerifyFull);
    let options = parse("keepalives=0 keepalives_idle=5 keepalives_count=3 tcp_user_timeout=250").unwrap();
    let expected = Keepalive {
        enabled: false,
        idle: Some(Duration::from_secs(5)),
        interval: None,
        count: Some(3),
        user_timeout: Some(Duration::from_millis(250)),
    };
    assert_eq!(options.keepalive, expected);
}

#[test]
fn require_auth_lists_or_excludes() {
    let methods = |text| parse(text).unwrap().require_auth.unwrap();
    assert_eq!(methods("require_auth=scram-sha-256"), [AuthMethod::ScramSha256]);
    assert_eq!(methods("require_auth=password,md5"), [AuthMethod::Password, AuthMethod::Md5]);
    assert_eq!(methods("require_auth=!none"), [AuthMethod::Md5, AuthMethod::ScramSha256]);
    assert_eq!(parse("").unwrap().require_auth, None);
}

#[test]
fn password_files_match_line_by_line() {
    use files::{PasswordQuery, passfile_refusal, password_in};
    let text = "# a comment\nh:5432:d:other:no\nh:*:d:u:first\n*:5432:*:u:se\\:co\\\\nd\nshort:line\n";
    let ask = |host, port, databases: &[&str], user| {
        password_in(text, PasswordQuery { hosts: &[host], port, databases, user })
            .map(|found| found.reveal().to_owned())
    };
    assert_eq!(ask("h", 1, &["d"], "u").as_deref(), Some("first"));
    assert_eq!(ask("x", 5432, &["d"], "u").as_deref(), Some("se:co\\nd"));
    assert_eq!(ask("x", 5433, &["d"], "u"), None);
    assert_eq!(ask("short", 5432, &["d"], "x"), None);
    assert_eq!(ask("h", 1, &["replication", "d"], "u").as_deref(), Some("first"));
    // An escaped asterisk is a user of that name, not everybody.
    let query = PasswordQuery { hosts: &["x", "h"], port: 1, databases: &["d"], user: "u" };
    assert_eq!(password_in("h:1:d:\\*:x", query), None);
    assert_eq!(password_in("h:1:d:\\u:x", query), Some(Secret::new("x")));
    assert!(passfile_refusal(0o100_640).is_some() && passfile_refusal(0o040_600).is_some());
    assert!(passfile_refusal(0o100_600).is_none() && passfile_refusal(0o100_400).is_none());
}

proptest! {
    #[test]
    fn hostile_strings_are_errors_not_panics(text in "\\PC{0,80}") {
        let _ = parse(&text);
        let _ = parse(&format!("postgresql://{text}"));
        let _ = contains_password(&text);
    }

    #[test]
    fn hostile_strings_of_our_own_signs(text in "[\\]\\[:/?@&=%,'\\\\ a0]{0,40}") {
        let _ = parse(&text);
        let _ = parse(&format!("postgres://{text}"));
        let _ = contains_password(&format!("postgres://{text}"));
    }

    #[test]
    fn any_value_survives_quoting(value in "[^\0]{1,40}") {
        let quoted = value.replace('\\', "\\\\").replace('\'', "\\'");
        prop_assert_eq!(parse(&format!("user='{quoted}'")).unwrap().user, value);
    }

    #[test]
    fn a_password_in_a_url_is_always_seen(password in "[a-zA-Z0-9!~:.]{1,20}") {
        let found = contains_password(&format!("postgres://u:{password}@h/d"));
        prop_assert!(found);
    }
}
