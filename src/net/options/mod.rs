//! How to reach a server: a connection string or URL, then the service file, then `PG*` variables, then defaults, as libpq.
//! Parsing is pure: variables and files come in through [`Surroundings`]. Passwords never show in `Debug` or errors.
//!
//! Differences from libpq, all on the safe side: without a host `/var/run/postgresql` and `/tmp` are tried; without
//! `connect_timeout` an address gets 10 s; SQL without `dbname` goes to `postgres`; a password is sent in clear over TCP only
//! within TLS, or when `require_auth` lists `password`; options that walden cannot honour are refused, not ignored.

pub(super) mod files;
mod keywords;
mod resolve;
mod secret;
mod string;
#[cfg(test)]
mod tests;

use super::socket::Keepalive;
pub use files::{FoundFile, OsSurroundings, Surroundings};
pub use secret::Secret;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;
pub use string::{ConnectionStringError, contains_password};

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A directory that holds its socket, or `@name` for an abstract one.
    Unix(PathBuf),
    /// A name or an address.
    Tcp {
        /// The name: what is looked up, and what a certificate must be for.
        name: String,
        /// The address to connect to, without a lookup.
        address: Option<IpAddr>,
    },
}

/// A host and its port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// Where.
    pub host: Host,
    /// The port; of a unix socket, the end of its name.
    pub port: u16,
}

impl std::fmt::Display for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.host {
            Host::Unix(dir) => write!(f, "{}:{}", dir.display(), self.port),
            Host::Tcp { name, .. } if name.contains(':') => write!(f, "[{name}]:{}", self.port),
            Host::Tcp { name, .. } => write!(f, "{name}:{}", self.port),
        }
    }
}

macro_rules! choice {
    ($(#[$doc:meta])* pub enum $name:ident($key:literal, $default:ident) { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            /// As it stands in a connection string.
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }

            fn parse(text: &str) -> Result<Self, ConnectionStringError> {
                match text {
                    "" => Ok($name::default()),
                    $($text => Ok($name::$variant),)*
                    _ => Err(ConnectionStringError::value($key, concat!("expected one of", $(" ", $text,)*))),
                }
            }
        }
    };
}

choice! {
    /// Which server a connection is meant for.
    pub enum TargetSessionAttrs("target_session_attrs", Any) {
        /// Any.
        #[default]
        Any = "any",
        /// One whose sessions may write.
        ReadWrite = "read-write",
        /// One whose sessions may not.
        ReadOnly = "read-only",
        /// One not in recovery.
        Primary = "primary",
        /// One in recovery.
        Standby = "standby",
        /// One in recovery, or else any.
        PreferStandby = "prefer-standby",
    }
}

choice! {
    /// How much TLS.
    pub enum SslMode("sslmode", Prefer) {
        /// None.
        Disable = "disable",
        /// When the server will not have it otherwise.
        Allow = "allow",
        /// When the server can.
        #[default]
        Prefer = "prefer",
        /// Always; the certificate is checked only when there is a root certificate file.
        Require = "require",
        /// Always, with a certificate from a trusted authority.
        VerifyCa = "verify-ca",
        /// Always, with a certificate from a trusted authority for the host's name.
        VerifyFull = "verify-full",
    }
}

choice! {
    /// Whether SCRAM must be bound to the TLS connection.
    pub enum ChannelBinding("channel_binding", Prefer) {
        /// Never.
        Disable = "disable",
        /// When the server can.
        #[default]
        Prefer = "prefer",
        /// Always.
        Require = "require",
    }
}

choice! {
    /// How TLS begins.
    pub enum SslNegotiation("sslnegotiation", Postgres) {
        /// After asking in PostgreSQL's protocol.
        #[default]
        Postgres = "postgres",
        /// At once (17 and later).
        Direct = "direct",
    }
}

choice! {
    /// Whether a client certificate is sent.
    pub enum SslCertMode("sslcertmode", Allow) {
        /// Never.
        Disable = "disable",
        /// When the server asks and there is one.
        #[default]
        Allow = "allow",
        /// Always; a server that does not ask for one is refused.
        Require = "require",
    }
}

choice! {
    /// A version of TLS.
    pub enum TlsVersion("ssl_min_protocol_version", V12) {
        /// Older than what rustls speaks.
        V10 = "TLSv1",
        /// Older than what rustls speaks.
        V11 = "TLSv1.1",
        /// TLS 1.2.
        #[default]
        V12 = "TLSv1.2",
        /// TLS 1.3.
        V13 = "TLSv1.3",
    }
}

/// Where trusted certificates come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootCerts {
    /// The system's.
    System,
    /// A file that must be there.
    File(PathBuf),
    /// `~/.postgresql/root.crt`, if it is there.
    Default(Option<PathBuf>),
}

/// A certificate or key file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsFile {
    /// It was named and must be there.
    Named(PathBuf),
    /// The default, if it is there.
    Default(Option<PathBuf>),
}

/// Everything about TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsOptions {
    /// How much of it.
    pub mode: SslMode,
    /// How it begins.
    pub negotiation: SslNegotiation,
    /// Whom to trust.
    pub root_certs: RootCerts,
    /// Certificates that are no longer good.
    pub revocations: TlsFile,
    /// Our certificate.
    pub cert: TlsFile,
    /// Its key.
    pub key: TlsFile,
    /// Whether our certificate is sent.
    pub cert_mode: SslCertMode,
    /// Whether the host's name is sent in the clear, so that a proxy can tell where to.
    pub sni: bool,
    /// The oldest version accepted.
    pub version_min: TlsVersion,
    /// The newest version offered.
    pub version_max: TlsVersion,
}

/// A way to prove who we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AuthMethod {
    /// The server asks for nothing (`trust`, `peer`, `cert`).
    None,
    /// The password in the clear.
    Password,
    /// Its MD5 hash.
    Md5,
    /// SCRAM-SHA-256.
    ScramSha256,
}

impl AuthMethod {
    /// As `require_auth` calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            AuthMethod::None => "none",
            AuthMethod::Password => "password",
            AuthMethod::Md5 => "md5",
            AuthMethod::ScramSha256 => "scram-sha-256",
        }
    }
}

/// How to reach a server and prove who we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectOptions {
    /// Tried in order.
    pub hosts: Vec<HostPort>,
    /// The role.
    pub user: String,
    /// The database, when one was named.
    pub database: Option<String>,
    /// The password, when one was given.
    pub password: Option<Secret>,
    /// The password file, read at every connect.
    pub passfile: Option<PathBuf>,
    /// Ways to prove who we are that we agree to; `None` is all of them, but a password in the clear only within TLS or over
    /// a unix socket.
    pub require_auth: Option<Vec<AuthMethod>>,
    /// Whether SCRAM must be bound to the TLS connection.
    pub channel_binding: ChannelBinding,
    /// Which server is meant.
    pub target: TargetSessionAttrs,
    /// TLS.
    pub tls: TlsOptions,
    /// The owner that a unix socket's server must have.
    pub require_peer: Option<String>,
    /// How long one address may take to let us in; `None` is for ever.
    pub connect_timeout: Option<Duration>,
    /// TCP keepalive.
    pub keepalive: Keepalive,
    /// `application_name`, when the operator set one.
    pub application_name: Option<String>,
    /// Command line options for the server (`-c name=value`).
    pub options: Option<String>,
}

/// How long one address may take when the connection string does not say.
pub const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
/// The most hosts in one connection string.
pub const HOSTS_MAX: usize = 64;

impl ConnectOptions {
    /// Takes `text` apart, a conninfo string or a URL, and fills it up from service files, `env` and defaults.
    pub fn parse(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConnectionStringError> {
        ConnectOptions::parse_within(text, &OsSurroundings { env })
    }

    /// The same with files passed in.
    pub fn parse_within(text: &str, around: &dyn Surroundings) -> Result<Self, ConnectionStringError> {
        resolve::resolve(string::parse(text)?, around)
    }

    /// The hosts, for messages.
    pub fn describe_hosts(&self) -> String {
        self.hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}
