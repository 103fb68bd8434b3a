//! The startup message and what follows until the server waits for commands: authentication, parameters, the cancel key.
//!
//! What we refuse: a password in the clear over unprotected TCP unless agreed to, methods that `require_auth` leaves out,
//! a server that skips SCRAM's last message, servers older than 14.

use super::cancel::CancelToken;
use super::connect::Route;
use super::connection::ServerFacts;
use super::error::code;
use super::frames::{FrameReader, FrameWriter, SQL_BUFFER_BYTES, STREAM_BUFFER_BYTES};
use super::options::{AuthMethod, ChannelBinding, ConnectOptions, Secret, files};
use super::socket::Socket;
use super::{Connection, ConnectionKind, PgError, tls};
use crate::wire::{Authentication, Message, ServerMessage, limits};
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::frontend;
use std::collections::BTreeMap;
use zeroize::Zeroizing;

/// The oldest server walden works with.
const SERVER_VERSION_MIN: u32 = 140_000;

/// Who wants in, and for what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Login<'a> {
    pub(super) options: &'a ConnectOptions,
    pub(super) kind: ConnectionKind,
    pub(super) application_name: &'a str,
}

/// Goes through startup on a fresh socket.
pub(super) async fn start(socket: Socket, route: Route, login: &Login<'_>) -> Result<Connection, PgError> {
    let binding = match &socket {
        Socket::Tls(stream) => tls::server_end_point(stream),
        Socket::Tcp(_) | Socket::Unix(_) => None,
    };
    let buffer_bytes = match login.kind {
        ConnectionKind::Sql => SQL_BUFFER_BYTES,
        ConnectionKind::PhysicalReplication => STREAM_BUFFER_BYTES,
    };
    let host = route.host.clone();
    let (read_half, write_half) = tokio::io::split(socket);
    let mut connection = Connection {
        reader: FrameReader::new(read_half, buffer_bytes, host.clone()),
        writer: FrameWriter::new(write_half, host.clone()),
        facts: ServerFacts { host, parameters: BTreeMap::new(), version: 0, cancel: None },
        busy: true,
        identified: false,
    };
    frontend::startup_message(parameters(login), connection.writer.out())
        .map_err(|error| PgError::Request { what: "startup parameter", reason: error.to_string() })?;
    connection.writer.flush().await?;
    let mut exchange =
        Exchange { login, route: &route, binding, scram: Scram::None, method: AuthMethod::None };
    exchange.authenticate(&mut connection).await?;
    settle(&mut connection, &route, login).await?;
    Ok(connection)
}

fn parameters<'a>(login: &Login<'a>) -> Vec<(&'static str, &'a str)> {
    let options = login.options;
    let mut parameters = vec![
        ("user", options.user.as_str()),
        ("application_name", options.application_name.as_deref().unwrap_or(login.application_name)),
        ("client_encoding", "UTF8"),
    ];
    match login.kind {
        ConnectionKind::Sql => {
            parameters.push(("database", options.database.as_deref().unwrap_or("postgres")));
            // Answers that we parse must not depend on the role's settings, nor names on its schemas.
            parameters.extend([
                ("DateStyle", "ISO, MDY"),
                ("TimeZone", "UTC"),
                ("search_path", "pg_catalog"),
            ]);
        }
        ConnectionKind::PhysicalReplication => parameters.push(("replication", "true")),
    }
    if let Some(options) = &options.options {
        parameters.push(("options", options));
    }
    parameters
}

/// Reads on after AuthenticationOk until the server waits for commands.
async fn settle(connection: &mut Connection, route: &Route, login: &Login<'_>) -> Result<(), PgError> {
    loop {
        match connection.message(limits::STARTUP_MESSAGE_BYTES_MAX).await? {
            Message::BackendKey { process, secret } => {
                let token = CancelToken { route: route.clone(), process, secret: Zeroizing::new(secret) };
                connection.facts.cancel = Some(token);
            }
            Message::ReadyForQuery(_) => break,
            Message::Error(error) => return Err(refusal(route, login, error)),
            other => return Err(connection.unexpected(&other, "ReadyForQuery")),
        }
    }
    connection.busy = false;
    let unsupported = |reason: String| PgError::Unsupported { host: route.host.to_string(), reason };
    let text = connection.parameter("server_version").unwrap_or_default();
    let Some(version) = version_number(text) else {
        return Err(unsupported(format!("server version {text:?} is not a version of PostgreSQL")));
    };
    if version < SERVER_VERSION_MIN {
        return Err(unsupported(format!("PostgreSQL {text}, walden needs 14 or later")));
    }
    connection.facts.version = version;
    Ok(())
}

/// `15.19 (Debian 15.19-1)` is 150019, `18beta1` and `18devel` are 180000.
fn version_number(text: &str) -> Option<u32> {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let (major, rest) = text.split_at(digits(text));
    let major = major.parse::<u32>().ok().filter(|major| (1..1000).contains(major))?;
    let minor = rest.strip_prefix('.').map_or("", |minor| &minor[..digits(minor)]);
    let minor =
        if minor.is_empty() { 0 } else { minor.parse::<u32>().ok().filter(|minor| *minor < 10_000)? };
    Some(major * 10_000 + minor)
}

/// The server's own reason not to let us in.
fn refusal(route: &Route, login: &Login<'_>, error: ServerMessage) -> PgError {
    if !error.code.starts_with("28") && error.code != code::INSUFFICIENT_PRIVILEGE {
        return PgError::Server(Box::new(error));
    }
    let hint = match error.code.as_str() {
        code::INVALID_AUTHORIZATION if error.message.contains("pg_hba.conf") => match login.kind {
            ConnectionKind::PhysicalReplication => {
                Some("pg_hba.conf needs a line for database \"replication\" and this role")
            }
            ConnectionKind::Sql => Some("pg_hba.conf needs a line for this database and role"),
        },
        code::INSUFFICIENT_PRIVILEGE if login.kind == ConnectionKind::PhysicalReplication => {
            Some("the role needs the REPLICATION attribute: ALTER ROLE ... REPLICATION")
        }
        _ => None,
    };
    PgError::Auth {
        host: route.host.to_string(),
        user: login.options.user.clone(),
        reason: error.to_string(),
        hint: hint.map(str::to_owned).or(error.hint),
        code: Some(error.code),
    }
}

enum Scram {
    None,
    Asked(Box<sasl::ScramSha256>),
    Answered(Box<sasl::ScramSha256>),
    Proven,
}

/// One authentication.
struct Exchange<'a> {
    login: &'a Login<'a>,
    route: &'a Route,
    /// The hash of the server's certificate, for channel binding.
    binding: Option<Vec<u8>>,
    scram: Scram,
    /// What proved, or will prove, who we are.
    method: AuthMethod,
}

impl Exchange<'_> {
    async fn authenticate(&mut self, connection: &mut Connection) -> Result<(), PgError> {
        loop {
            let request = match connection.message(limits::STARTUP_MESSAGE_BYTES_MAX).await? {
                Message::Authentication(request) => request,
                Message::Error(error) => return Err(refusal(self.route, self.login, error)),
                other => return Err(connection.unexpected(&other, "an authentication request")),
            };
            match request {
                Authentication::Ok => return self.accepted(),
                Authentication::CleartextPassword => {
                    self.agree(AuthMethod::Password)?;
                    let password = self.password().await?;
                    send_secret(connection, password.reveal()).await?;
                }
                Authentication::Md5 { salt } => {
                    self.agree(AuthMethod::Md5)?;
                    let password = self.password().await?;
                    let user = self.login.options.user.as_bytes();
                    let hash = Zeroizing::new(md5_hash(user, password.reveal().as_bytes(), salt));
                    send_secret(connection, &hash).await?;
                }
                Authentication::Sasl { mechanisms } => self.begin_scram(connection, &mechanisms).await?,
                Authentication::SaslContinue(data) => {
                    let Scram::Asked(mut scram) = std::mem::replace(&mut self.scram, Scram::None) else {
                        return Err(self.refuse("SCRAM goes on that was not begun"));
                    };
                    scram.update(&data).map_err(|error| self.refuse(format!("SCRAM: {error}")))?;
                    frontend::sasl_response(scram.message(), connection.writer.out())
                        .map_err(|error| self.refuse(format!("SCRAM: {error}")))?;
                    connection.writer.flush().await?;
                    self.scram = Scram::Answered(scram);
                }
                Authentication::SaslFinal(data) => {
                    let Scram::Answered(mut scram) = std::mem::replace(&mut self.scram, Scram::None) else {
                        return Err(self.refuse("SCRAM ends that was not begun"));
                    };
                    scram
                        .finish(&data)
                        .map_err(|_| self.refuse("the server did not prove that it knows the password"))?;
                    self.scram = Scram::Proven;
                }
                Authentication::Unsupported(name) => {
                    return Err(
                        self.refuse(format!("the server asks for {name}, which walden does not know"))
                    );
                }
            }
        }
    }

    async fn begin_scram(
        &mut self,
        connection: &mut Connection,
        mechanisms: &[String],
    ) -> Result<(), PgError> {
        self.agree(AuthMethod::ScramSha256)?;
        let options = self.login.options;
        let offers = |name: &str| mechanisms.iter().any(|mechanism| mechanism == name);
        let wanted = options.channel_binding != ChannelBinding::Disable;
        let bound = self.binding.take().filter(|_| wanted && offers(sasl::SCRAM_SHA_256_PLUS));
        let (mechanism, binding) = match bound {
            Some(hash) => (sasl::SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(hash)),
            None if options.channel_binding == ChannelBinding::Require => {
                return Err(self.refuse("channel_binding=require, but the connection cannot be bound"));
            }
            None if !offers(sasl::SCRAM_SHA_256) => {
                let found = mechanisms.join(", ");
                return Err(
                    self.refuse(format!("the server offers {found}, expected {}", sasl::SCRAM_SHA_256))
                );
            }
            // "I could have, you did not offer": the server then knows if somebody cut its offer out.
            None if wanted && self.route.is_encrypted() && !offers(sasl::SCRAM_SHA_256_PLUS) => {
                (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested())
            }
            None => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported()),
        };
        let password = self.password().await?;
        let scram = sasl::ScramSha256::new(password.reveal().as_bytes(), binding);
        frontend::sasl_initial_response(mechanism, scram.message(), connection.writer.out())
            .map_err(|error| self.refuse(format!("SCRAM: {error}")))?;
        connection.writer.flush().await?;
        self.scram = Scram::Asked(Box::new(scram));
        Ok(())
    }

    /// The server is satisfied; are we?
    fn accepted(&self) -> Result<(), PgError> {
        if self.method == AuthMethod::None {
            self.agree_to(AuthMethod::None)?;
        }
        if self.method == AuthMethod::ScramSha256 && !matches!(self.scram, Scram::Proven) {
            return Err(self.refuse("the server skipped its part of SCRAM"));
        }
        if self.login.options.channel_binding == ChannelBinding::Require
            && self.method != AuthMethod::ScramSha256
        {
            return Err(self.refuse("channel_binding=require, but the server let us in without it"));
        }
        Ok(())
    }

    /// Before anything is sent by `method`. One method, once: a second request would be for what the first did not give away.
    fn agree(&mut self, method: AuthMethod) -> Result<(), PgError> {
        if self.method != AuthMethod::None {
            return Err(self.refuse("the server asks a second time"));
        }
        if method != AuthMethod::ScramSha256 && self.login.options.channel_binding == ChannelBinding::Require
        {
            let reason = format!("channel_binding=require, but the server asks for {}", method.as_str());
            return Err(self.refuse(reason));
        }
        self.agree_to(method)?;
        self.method = method;
        Ok(())
    }

    fn agree_to(&self, method: AuthMethod) -> Result<(), PgError> {
        match &self.login.options.require_auth {
            Some(methods) if methods.contains(&method) => return Ok(()),
            Some(_) => {
                let reason =
                    format!("the server asks for {}, which require_auth leaves out", method.as_str());
                return Err(self.refuse(reason));
            }
            None => {}
        }
        if method == AuthMethod::Password && !self.route.is_encrypted() && !self.route.is_local() {
            return Err(self.refuse_with(
                "the server asks for the password in the clear over an unprotected connection",
                "use sslmode=require or scram-sha-256; require_auth=password sends it all the same",
            ));
        }
        Ok(())
    }

    fn refuse(&self, reason: impl Into<String>) -> PgError {
        PgError::Auth {
            host: self.route.host.to_string(),
            user: self.login.options.user.clone(),
            reason: reason.into(),
            hint: None,
            code: None,
        }
    }

    fn refuse_with(&self, reason: &str, advice: &str) -> PgError {
        match self.refuse(reason) {
            PgError::Auth { host, user, reason, code, .. } => {
                PgError::Auth { host, user, reason, hint: Some(advice.to_owned()), code }
            }
            other => other,
        }
    }

    /// The password from the options, or from the password file as it is now.
    async fn password(&self) -> Result<Secret, PgError> {
        let options = self.login.options;
        if let Some(password) = options.password.clone().filter(|password| !password.is_empty()) {
            return Ok(password);
        }
        let advice = "give it in PGPASSWORD, ~/.pgpass or a service file";
        let missing = || self.refuse_with("the server asks for a password, and none is given", advice);
        let path = options.passfile.clone().ok_or_else(missing)?;
        let (hosts, port) = self.passfile_hosts();
        let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
        let database = options.database.as_deref();
        let databases: &[&str] = match (self.login.kind, database) {
            (ConnectionKind::Sql, database) => &[database.unwrap_or("postgres")],
            (ConnectionKind::PhysicalReplication, None) => &["replication", "postgres"],
            (ConnectionKind::PhysicalReplication, Some(database)) => &["replication", database],
        };
        let found = tokio::task::spawn_blocking({
            let path = path.clone();
            move || files::read_file(&path)
        });
        let file = match found.await {
            Ok(Ok(Some(file))) => file,
            Ok(Ok(None)) => return Err(missing()),
            Ok(Err(error)) => {
                tracing::warn!(path = %path.display(), %error, "password file cannot be read");
                return Err(missing());
            }
            Err(_) => return Err(missing()),
        };
        if let Some(reason) = files::passfile_refusal(file.mode) {
            tracing::warn!(path = %path.display(), "password file ignored: it {reason}");
            return Err(missing());
        }
        let query = files::PasswordQuery { hosts: &hosts, port, databases, user: &options.user };
        files::password_in(file.text.reveal(), query).ok_or_else(missing)
    }

    /// Names of the host in a password file, and the port: a default socket directory is `localhost` too.
    fn passfile_hosts(&self) -> (Vec<String>, u16) {
        let (host, port) = self.route.host.rsplit_once(':').unwrap_or((&self.route.host, "0"));
        let mut hosts = vec![host.trim_start_matches('[').trim_end_matches(']').to_owned()];
        if matches!(host, "/var/run/postgresql" | "/tmp") {
            hosts.push("localhost".to_owned());
        }
        (hosts, port.parse().unwrap_or_default())
    }
}

/// Sends a password message past the shared buffer, so that no copy stays in it.
async fn send_secret(connection: &mut Connection, secret: &str) -> Result<(), PgError> {
    let length = u32::try_from(secret.len() + 5).unwrap_or(u32::MAX);
    let mut message = Zeroizing::new(Vec::with_capacity(secret.len() + 6));
    message.push(b'p');
    message.extend_from_slice(&length.to_be_bytes());
    message.extend_from_slice(secret.as_bytes());
    message.push(0);
    connection.writer.send_directly(&message).await
}

#[cfg(test)]
mod tests {
    use super::version_number;

    #[test]
    fn versions_become_numbers() {
        for (text, number) in [
            ("15.19", 150_019),
            ("14.23 (Debian 14.23-1.pgdg12+1)", 140_023),
            ("18beta1", 180_000),
            ("19devel", 190_000),
            ("9.6.24", 90_006),
            ("17", 170_000),
        ] {
            assert_eq!(version_number(text), Some(number), "{text}");
        }
        for text in ["", "x", ".1", "99999999999", "15.99999999"] {
            assert_eq!(version_number(text), None, "{text}");
        }
    }
}
