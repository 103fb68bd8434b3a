//! From keys and values to [`ConnectOptions`]: the string wins over the service, the service over variables, variables over
//! defaults. Pure but for [`Surroundings`].

use super::files::{Surroundings, service_options};
use super::keywords::{self, KEYWORDS, Use};
use super::string::{ConnectionStringError, Pairs};
use super::*;
use std::collections::BTreeMap;
use zeroize::Zeroizing;

/// Where a system's service file lies when PGSYSCONFDIR does not say: Debian's place.
const SYSTEM_SERVICE_DIR: &str = "/etc/postgresql-common";
/// Socket directories of the common builds.
const SOCKET_DIRS: [&str; 2] = ["/var/run/postgresql", "/tmp"];
const DEFAULT_PORT: u16 = 5432;

/// The value of every key that has one.
struct Layers(BTreeMap<&'static str, Zeroizing<String>>);

impl Layers {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(|value| value.as_str())
    }

    /// A value that is not empty.
    fn some(&self, key: &str) -> Option<&str> {
        self.get(key).filter(|value| !value.is_empty())
    }

    fn number<T: std::str::FromStr>(&self, key: &'static str) -> Result<Option<T>, ConnectionStringError> {
        let parse = |text: &str| {
            text.trim().parse().map_err(|_| ConnectionStringError::value(key, "expected a number"))
        };
        self.some(key).map(parse).transpose()
    }

    fn seconds(&self, key: &'static str) -> Result<Option<Duration>, ConnectionStringError> {
        Ok(self.number::<i32>(key)?.filter(|n| *n > 0).map(|n| Duration::from_secs(n.unsigned_abs().into())))
    }
}

pub(super) fn resolve(
    explicit: Pairs,
    around: &dyn Surroundings,
) -> Result<ConnectOptions, ConnectionStringError> {
    let mut layers = Layers(explicit.into_iter().collect());
    add_service(&mut layers, around)?;
    for keyword in KEYWORDS {
        if let Some(value) =
            keyword.env.filter(|_| !layers.0.contains_key(keyword.name)).and_then(|env| around.var(env))
        {
            layers.0.insert(keyword.name, value.into());
        }
    }
    refuse_what_would_be_ignored(&layers)?;

    let user = match layers.some("user").map(str::to_owned).or_else(|| around.user()) {
        Some(user) => user,
        None => {
            return Err(ConnectionStringError::value(
                "user",
                "none is given, and the system does not name us",
            ));
        }
    };
    let home = around.home().map(|home| home.join(".postgresql"));
    let in_home = |name: &str| TlsFile::Default(home.as_ref().map(|dir| dir.join(name)));
    let file = |key: &str, name: &str| match layers.some(key) {
        Some(path) => TlsFile::Named(path.into()),
        None => in_home(name),
    };
    let options = ConnectOptions {
        hosts: hosts(&layers)?,
        user,
        database: layers.some("dbname").map(str::to_owned),
        password: layers.some("password").map(Secret::new),
        passfile: layers.some("passfile").map(PathBuf::from).or_else(|| Some(around.home()?.join(".pgpass"))),
        require_auth: layers.some("require_auth").map(require_auth).transpose()?,
        channel_binding: ChannelBinding::parse(layers.get("channel_binding").unwrap_or_default())?,
        target: TargetSessionAttrs::parse(layers.get("target_session_attrs").unwrap_or_default())?,
        tls: TlsOptions {
            mode: ssl_mode(&layers)?,
            negotiation: SslNegotiation::parse(layers.get("sslnegotiation").unwrap_or_default())?,
            root_certs: match layers.some("sslrootcert") {
                Some("system") => RootCerts::System,
                Some(path) => RootCerts::File(path.into()),
                None => RootCerts::Default(home.as_ref().map(|dir| dir.join("root.crt"))),
            },
            revocations: file("sslcrl", "root.crl"),
            cert: file("sslcert", "postgresql.crt"),
            key: file("sslkey", "postgresql.key"),
            cert_mode: SslCertMode::parse(layers.get("sslcertmode").unwrap_or_default())?,
            sni: flag(&layers, "sslsni")?,
            version_min: tls_version(&layers, "ssl_min_protocol_version", TlsVersion::V12)?,
            version_max: tls_version(&layers, "ssl_max_protocol_version", TlsVersion::V13)?,
        },
        require_peer: layers.some("requirepeer").map(str::to_owned),
        connect_timeout: match layers.number::<i32>("connect_timeout")? {
            None => Some(CONNECT_TIMEOUT_DEFAULT),
            Some(seconds) if seconds <= 0 => None,
            Some(seconds) => Some(Duration::from_secs(seconds.unsigned_abs().into())),
        },
        keepalive: Keepalive {
            enabled: flag(&layers, "keepalives")?,
            idle: layers.seconds("keepalives_idle")?,
            interval: layers.seconds("keepalives_interval")?,
            count: layers.number::<i32>("keepalives_count")?.filter(|n| *n > 0).map(i32::unsigned_abs),
            user_timeout: layers
                .number::<i32>("tcp_user_timeout")?
                .filter(|n| *n > 0)
                .map(|n| Duration::from_millis(n.unsigned_abs().into())),
        },
        application_name: layers
            .some("application_name")
            .or(layers.some("fallback_application_name"))
            .map(str::to_owned),
        options: layers.some("options").map(str::to_owned),
    };
    check_together(&options)?;
    Ok(options)
}

/// Puts a service's options below the explicit ones.
fn add_service(layers: &mut Layers, around: &dyn Surroundings) -> Result<(), ConnectionStringError> {
    let Some(service) = layers.some("service").map(str::to_owned).or_else(|| around.var("PGSERVICE")) else {
        return Ok(());
    };
    let failed = |reason: String| ConnectionStringError::Service { service: service.clone(), reason };
    let named = layers.some("servicefile").map(str::to_owned).or_else(|| around.var("PGSERVICEFILE"));
    let user_file = match &named {
        Some(path) => Some(PathBuf::from(path)),
        None => around.home().map(|home| home.join(".pg_service.conf")),
    };
    let system_dir = around.var("PGSYSCONFDIR").unwrap_or_else(|| SYSTEM_SERVICE_DIR.to_owned());
    let system_file = PathBuf::from(system_dir).join("pg_service.conf");
    for path in user_file.into_iter().chain([system_file]) {
        let read = around.read(&path).map_err(|error| failed(format!("{}: {error}", path.display())))?;
        let Some(file) = read else {
            if named.as_ref().is_some_and(|named| path.as_os_str() == named.as_str()) {
                return Err(failed(format!("service file {} not found", path.display())));
            }
            continue;
        };
        if let Some(pairs) = service_options(file.text.reveal(), &service)? {
            for (key, value) in pairs {
                layers.0.entry(key).or_insert(value);
            }
            return Ok(());
        }
    }
    Err(failed("no service file defines it".to_owned()))
}

fn refuse_what_would_be_ignored(layers: &Layers) -> Result<(), ConnectionStringError> {
    for (key, value) in &layers.0 {
        if let Some(Use::Refused(harmless)) = keywords::find(key).map(|keyword| keyword.how)
            && !harmless.contains(&value.as_str())
        {
            return Err(ConnectionStringError::value(key, "walden does not support it"));
        }
    }
    Ok(())
}

fn hosts(layers: &Layers) -> Result<Vec<HostPort>, ConnectionStringError> {
    let list = |key: &str| layers.some(key).map(|text| text.split(',').map(str::trim).collect::<Vec<_>>());
    let (names, addresses) = (list("host"), list("hostaddr"));
    let count = match (&names, &addresses) {
        (Some(names), Some(addresses)) if names.len() != addresses.len() => {
            let reason = format!("{} addresses for {} hosts", addresses.len(), names.len());
            return Err(ConnectionStringError::value("hostaddr", reason));
        }
        (Some(list), _) | (None, Some(list)) => list.len(),
        (None, None) => 1,
    };
    if count > HOSTS_MAX {
        return Err(ConnectionStringError::value("host", format!("{count} hosts, at most {HOSTS_MAX}")));
    }
    let ports = list("port").unwrap_or_default();
    if ports.len() > 1 && ports.len() != count {
        let reason = format!("{} ports for {count} hosts", ports.len());
        return Err(ConnectionStringError::value("port", reason));
    }
    let mut hosts = Vec::with_capacity(count);
    for index in 0..count {
        let port =
            match ports.get(if ports.len() == 1 { 0 } else { index }).filter(|port| !port.is_empty()) {
                None => DEFAULT_PORT,
                Some(text) => text.parse().ok().filter(|port| *port > 0).ok_or_else(|| {
                    ConnectionStringError::value("port", "expected numbers from 1 to 65535")
                })?,
            };
        let at = |list: &Option<Vec<&str>>| {
            let found = list.as_ref().and_then(|list| list.get(index)).filter(|text| !text.is_empty());
            found.map(|text| (*text).to_owned())
        };
        match (at(&names), at(&addresses)) {
            (name, Some(address)) => {
                let parsed = address.parse::<IpAddr>().map_err(|_| {
                    ConnectionStringError::value("hostaddr", "expected an IPv4 or IPv6 address")
                })?;
                let name = name.unwrap_or(address);
                hosts.push(HostPort { host: Host::Tcp { name, address: Some(parsed) }, port });
            }
            (Some(name), None) if name.starts_with(['/', '@']) => {
                hosts.push(HostPort { host: Host::Unix(name.into()), port });
            }
            (Some(name), None) => hosts.push(HostPort { host: Host::Tcp { name, address: None }, port }),
            (None, None) => {
                hosts.extend(SOCKET_DIRS.map(|dir| HostPort { host: Host::Unix(dir.into()), port }))
            }
        }
    }
    Ok(hosts)
}

fn flag(layers: &Layers, key: &'static str) -> Result<bool, ConnectionStringError> {
    Ok(layers.number::<i32>(key)? != Some(0))
}

fn tls_version(
    layers: &Layers,
    key: &'static str,
    default: TlsVersion,
) -> Result<TlsVersion, ConnectionStringError> {
    match layers.some(key) {
        None => Ok(default),
        Some(text) => TlsVersion::parse(text)
            .map_err(|_| ConnectionStringError::value(key, "expected one of TLSv1 TLSv1.1 TLSv1.2 TLSv1.3")),
    }
}

fn ssl_mode(layers: &Layers) -> Result<SslMode, ConnectionStringError> {
    let system = layers.some("sslrootcert") == Some("system");
    match layers.some("sslmode") {
        None if system => Ok(SslMode::VerifyFull),
        Some(mode) if system && mode != "verify-full" => {
            Err(ConnectionStringError::value("sslmode", "sslrootcert=system demands verify-full"))
        }
        mode => SslMode::parse(mode.unwrap_or_default()),
    }
}

/// A list of methods, all wanted or (with `!`) all unwanted.
fn require_auth(text: &str) -> Result<Vec<AuthMethod>, ConnectionStringError> {
    const ALL: [AuthMethod; 4] =
        [AuthMethod::None, AuthMethod::Password, AuthMethod::Md5, AuthMethod::ScramSha256];
    let invalid = |reason: &str| ConnectionStringError::value("require_auth", reason);
    let (mut named, mut negated) = (Vec::new(), None);
    for item in text.split(',').map(str::trim) {
        let (name, not) = item.strip_prefix('!').map_or((item, false), |name| (name, true));
        if *negated.get_or_insert(not) != not {
            return Err(invalid("methods with and without ! cannot be mixed"));
        }
        match (ALL.iter().find(|method| method.as_str() == name), name) {
            (Some(method), _) => named.push(*method),
            (None, "gss" | "sspi" | "oauth") => {}
            (None, _) => return Err(invalid("expected some of none password md5 scram-sha-256")),
        }
    }
    Ok(if negated == Some(true) {
        // As when nothing is demanded, a password in the clear has to be agreed to by name.
        ALL.into_iter().filter(|m| !named.contains(m) && *m != AuthMethod::Password).collect()
    } else {
        named
    })
}

fn check_together(options: &ConnectOptions) -> Result<(), ConnectionStringError> {
    let tls = &options.tls;
    if tls.negotiation == SslNegotiation::Direct
        && matches!(tls.mode, SslMode::Disable | SslMode::Allow | SslMode::Prefer)
    {
        return Err(ConnectionStringError::value(
            "sslnegotiation",
            "direct demands sslmode=require or stronger",
        ));
    }
    let order = |version| match version {
        TlsVersion::V10 => 0,
        TlsVersion::V11 => 1,
        TlsVersion::V12 => 2,
        TlsVersion::V13 => 3,
    };
    if order(tls.version_min) > order(tls.version_max) || order(tls.version_max) < order(TlsVersion::V12) {
        let reason = "expected TLSv1.2 or TLSv1.3, and not below ssl_min_protocol_version";
        return Err(ConnectionStringError::value("ssl_max_protocol_version", reason));
    }
    let zero = |text: &str| text.contains('\0');
    let texts = [
        Some(&options.user),
        options.database.as_ref(),
        options.application_name.as_ref(),
        options.options.as_ref(),
    ];
    if texts.into_iter().flatten().any(|text| zero(text)) {
        return Err(ConnectionStringError::value("user", "a value contains a zero byte"));
    }
    Ok(())
}
