//! From options to a connection: hosts in order, every address of each, TLS as asked, and the right kind of server.
//!
//! As libpq: a host that cannot be reached, is starting up or is of the wrong kind leads to the next one; one that does not
//! let us in ends the search.

use super::error::code;
use super::options::{ConnectOptions, Host, HostPort, SslMode, SslNegotiation, TargetSessionAttrs, files};
use super::socket::{Keepalive, Socket};
use super::startup::{self, Login};
use super::tls::{self, TlsPlan};
use super::{Connection, ConnectionKind, PgError};
use bytes::BytesMut;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

/// How a connection reaches its server: enough to reach it once more, for a cancel request.
#[derive(Debug, Clone)]
pub(super) struct Route {
    pub(super) host: Arc<str>,
    pub(super) address: Address,
    keepalive: Keepalive,
    timeout: Option<Duration>,
    tls: Option<Arc<TlsPlan>>,
}

/// Where exactly.
#[derive(Debug, Clone)]
pub(super) enum Address {
    Tcp(SocketAddr),
    Unix { path: PathBuf, owner: Option<u32> },
}

/// How a connection is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encryption {
    None,
    /// TLS if the server has it.
    Offered,
    Demanded,
}

impl Connection {
    /// Connects and proves who we are, for `kind`. `application_name` is used unless the options name one.
    /// If dropped: no connection.
    pub async fn connect(
        options: &ConnectOptions,
        kind: ConnectionKind,
        application_name: &str,
    ) -> Result<Connection, PgError> {
        let login = Login { options, kind, application_name };
        let passes: &[TargetSessionAttrs] = match &options.target {
            TargetSessionAttrs::PreferStandby => &[TargetSessionAttrs::Standby, TargetSessionAttrs::Any],
            target => std::slice::from_ref(target),
        };
        let mut failures: Vec<(String, PgError)> = Vec::new();
        let mut mismatches = Vec::new();
        for wanted in passes {
            failures.clear();
            for host in &options.hosts {
                match connect_host(&login, host).await {
                    Ok(connection) => match mismatch(&connection, *wanted) {
                        None => return Ok(connection),
                        Some(found) => {
                            connection.close().await;
                            mismatches.push(format!("{host} is {found}"));
                        }
                    },
                    Err(error) if leads_to_next_host(&error) => {
                        tracing::debug!(%host, %error, "host passed over");
                        failures.push((host.to_string(), error));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Err(nobody(options, failures, mismatches))
    }
}

/// The error when no host would do.
fn nobody(options: &ConnectOptions, failures: Vec<(String, PgError)>, mismatches: Vec<String>) -> PgError {
    if !mismatches.is_empty() {
        let failures = failures.into_iter().map(|(_, error)| error.to_string());
        let tried = mismatches.into_iter().chain(failures).collect::<Vec<_>>().join("; ");
        return PgError::NoSuchHost { wanted: options.target.as_str(), tried };
    }
    let mut failures = failures;
    match (failures.pop(), failures.is_empty()) {
        (Some((_, error)), true) => error,
        (last, _) => {
            let reasons = failures.iter().chain(&last).map(|(_, error)| error.to_string());
            let reason = reasons.collect::<Vec<_>>().join("; ");
            PgError::Connect { host: options.describe_hosts(), reason }
        }
    }
}

/// Why `connection` is not to a server of the kind wanted, if it is not.
fn mismatch(connection: &Connection, wanted: TargetSessionAttrs) -> Option<&'static str> {
    let on = |name| connection.parameter(name) == Some("on");
    let (standby, read_only) =
        (on("in_hot_standby"), on("in_hot_standby") || on("default_transaction_read_only"));
    match wanted {
        TargetSessionAttrs::Any | TargetSessionAttrs::PreferStandby => None,
        TargetSessionAttrs::ReadWrite => read_only.then_some("read-only"),
        TargetSessionAttrs::ReadOnly => (!read_only).then_some("not read-only"),
        TargetSessionAttrs::Primary => standby.then_some("a standby"),
        TargetSessionAttrs::Standby => (!standby).then_some("not a standby"),
    }
}

fn leads_to_next_host(error: &PgError) -> bool {
    match error {
        PgError::Connect { .. } | PgError::Timeout { .. } | PgError::Closed { .. } => true,
        error => error.sqlstate() == Some(code::CANNOT_CONNECT_NOW),
    }
}

async fn connect_host(login: &Login<'_>, host: &HostPort) -> Result<Connection, PgError> {
    let options = login.options;
    let name: Arc<str> = host.to_string().into();
    let failed = |reason: String| PgError::Connect { host: host.to_string(), reason };
    let (addresses, server_name) = match &host.host {
        Host::Unix(dir) => {
            let owner = match &options.require_peer {
                None => None,
                Some(owner) => Some(files::user_id(owner).ok_or_else(|| {
                    failed(format!("requirepeer names user {owner:?}, whom the system does not know"))
                })?),
            };
            (vec![Address::Unix { path: socket_path(dir, host.port), owner }], None)
        }
        Host::Tcp { name, address: Some(address) } => {
            (vec![Address::Tcp(SocketAddr::new(*address, host.port))], Some(name))
        }
        Host::Tcp { name: host_name, address: None } => {
            let lookup = tokio::net::lookup_host((host_name.as_str(), host.port));
            let found = within(options.connect_timeout, &name, "the name's lookup", async {
                lookup.await.map_err(|error| failed(error.to_string()))
            });
            (found.await?.map(Address::Tcp).collect(), Some(host_name))
        }
    };
    let mut last = failed("the name has no address".to_owned());
    for address in addresses {
        let attempts: &[Encryption] = match (server_name, options.tls.mode) {
            (None, _) | (_, SslMode::Disable) => &[Encryption::None],
            (_, SslMode::Allow) => &[Encryption::None, Encryption::Demanded],
            (_, SslMode::Prefer) => &[Encryption::Offered, Encryption::None],
            (_, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => &[Encryption::Demanded],
        };
        for (number, encryption) in attempts.iter().enumerate() {
            let tls = match (encryption, server_name) {
                (Encryption::None, _) | (_, None) => None,
                (_, Some(server_name)) => Some(Arc::new(tls::plan(&options.tls, &name, server_name)?)),
            };
            let route = Route {
                host: name.clone(),
                address: address.clone(),
                keepalive: options.keepalive,
                timeout: options.connect_timeout,
                tls,
            };
            let attempt = within(options.connect_timeout, &name, "the connection attempt", async {
                let (socket, route) = route.open(*encryption).await?;
                startup::start(socket, route, login).await
            });
            match attempt.await {
                Ok(connection) => return Ok(connection),
                Err(error) if number + 1 < attempts.len() && other_encryption_may_help(&error) => {
                    tracing::debug!(host = %name, %error, "trying again with the other kind of encryption");
                }
                Err(error) if leads_to_next_host(&error) => {
                    last = error;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
    }
    Err(last)
}

/// pg_hba.conf has no entry for this kind of connection, or TLS did not come about.
fn other_encryption_may_help(error: &PgError) -> bool {
    matches!(error, PgError::Tls { .. }) || error.sqlstate() == Some(code::INVALID_AUTHORIZATION)
}

/// The socket file of `port` in `dir`; `@` begins an abstract name.
fn socket_path(dir: &std::path::Path, port: u16) -> PathBuf {
    let file = format!(".s.PGSQL.{port}");
    match dir.to_str().and_then(|dir| dir.strip_prefix('@')) {
        Some(name) => PathBuf::from(format!("\0{name}/{file}")),
        None => dir.join(file),
    }
}

async fn within<T>(
    limit: Option<Duration>,
    host: &str,
    during: &'static str,
    work: impl Future<Output = Result<T, PgError>>,
) -> Result<T, PgError> {
    match limit {
        None => work.await,
        Some(limit) => match tokio::time::timeout(limit, work).await {
            Ok(result) => result,
            Err(_) => Err(PgError::Timeout { host: host.to_owned(), during, limit }),
        },
    }
}

impl Route {
    /// Opens the socket, with TLS as `encryption` says. The route given back says whether TLS came about.
    async fn open(mut self, encryption: Encryption) -> Result<(Socket, Route), PgError> {
        let failed = |error: std::io::Error| PgError::Connect {
            host: self.host.to_string(),
            reason: error.to_string(),
        };
        let stream = match &self.address {
            Address::Unix { path, owner } => {
                let stream = UnixStream::connect(path).await.map_err(failed)?;
                if let Some(owner) = owner {
                    let found = stream.peer_cred().map_err(failed)?.uid();
                    if found != *owner {
                        let reason = format!("requirepeer: the server runs as uid {found}, expected {owner}");
                        return Err(PgError::Connect { host: self.host.to_string(), reason });
                    }
                }
                return Ok((Socket::Unix(stream), self));
            }
            Address::Tcp(address) => TcpStream::connect(address).await.map_err(failed)?,
        };
        self.keepalive.apply(&stream).map_err(failed)?;
        let Some(plan) = self.tls.clone() else { return Ok((Socket::Tcp(stream), self)) };
        let mut stream = stream;
        if plan.negotiation == SslNegotiation::Postgres && !request_tls(&mut stream, &self.host).await? {
            if encryption == Encryption::Offered {
                self.tls = None;
                return Ok((Socket::Tcp(stream), self));
            }
            return Err(PgError::Tls {
                host: self.host.to_string(),
                reason: "the server does not offer it".to_owned(),
                hint: Some("set ssl = on on the server, or allow sslmode=prefer".to_owned()),
            });
        }
        let stream = plan.handshake(stream, &self.host).await?;
        Ok((Socket::Tls(Box::new(stream)), self))
    }

    pub(super) fn is_encrypted(&self) -> bool {
        self.tls.is_some()
    }

    pub(super) fn is_local(&self) -> bool {
        matches!(self.address, Address::Unix { .. })
    }

    /// Sends a cancel request; the server answers by closing.
    pub(super) async fn cancel(&self, process: i32, secret: i32) -> Result<(), PgError> {
        let encryption = if self.tls.is_some() { Encryption::Demanded } else { Encryption::None };
        let host = self.host.clone();
        within(self.timeout, &host, "the cancel request", async {
            let (mut socket, _) = self.clone().open(encryption).await?;
            let mut request = BytesMut::new();
            postgres_protocol::message::frontend::cancel_request(process, secret, &mut request);
            let closed = |error: std::io::Error| PgError::closed(&host, error);
            socket.write_all(&request).await.map_err(closed)?;
            socket.flush().await.map_err(closed)?;
            // It was heard once the server closes; how it closes does not matter.
            let _ = socket.read_u8().await;
            Ok(())
        })
        .await
    }
}

/// Asks for TLS; whether the server is willing. Exactly one byte is read, so that nothing sent in the clear can pass for
/// what comes within TLS.
async fn request_tls(stream: &mut TcpStream, host: &str) -> Result<bool, PgError> {
    let closed = |error: std::io::Error| PgError::closed(host, error);
    let mut request = BytesMut::new();
    postgres_protocol::message::frontend::ssl_request(&mut request);
    stream.write_all(&request).await.map_err(closed)?;
    match stream.read_u8().await.map_err(closed)? {
        b'S' => Ok(true),
        b'N' => Ok(false),
        other => Err(PgError::protocol(
            host,
            crate::wire::WireError::Malformed {
                what: "answer to SSLRequest",
                reason: format!("found {:?}, expected S or N", char::from(other)),
            },
        )),
    }
}
