//! Connection strings taken apart: `key=value` conninfo with libpq's quoting, and `postgresql://` URLs.
//! Pure. No error repeats a value: any of them may hold a password that is in the wrong place.
//! Source: libpq's `conninfo_parse` and `conninfo_uri_parse_options` (`fe-connect.c`).

use super::keywords;
use zeroize::Zeroizing;

/// What is wrong with a connection string, a service file or a variable. Never repeats a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionStringError {
    /// The text does not parse.
    #[error("connection string: {reason}")]
    Syntax {
        /// What is wrong, and where.
        reason: String,
    },
    /// A key that is none.
    #[error("connection string: unknown option {name:?}")]
    UnknownOption {
        /// The key.
        name: String,
    },
    /// A value that the key does not take.
    #[error("connection option {name}: {reason}")]
    Value {
        /// The key.
        name: String,
        /// What is wrong with its value.
        reason: String,
    },
    /// A service that is not defined, or a service file that does not parse.
    #[error("service {service:?}: {reason}")]
    Service {
        /// The service.
        service: String,
        /// What is wrong.
        reason: String,
    },
}

impl ConnectionStringError {
    pub(super) fn value(name: &str, reason: impl Into<String>) -> Self {
        ConnectionStringError::Value { name: name.to_owned(), reason: reason.into() }
    }

    fn syntax(reason: impl Into<String>) -> Self {
        ConnectionStringError::Syntax { reason: reason.into() }
    }
}

/// Keys and values in the order given; a later one wins.
pub(super) type Pairs = Vec<(&'static str, Zeroizing<String>)>;

/// Takes `text` apart.
pub(super) fn parse(text: &str) -> Result<Pairs, ConnectionStringError> {
    match url_rest(text) {
        Some(rest) => parse_url(rest),
        None => parse_conninfo(text),
    }
}

/// What follows the scheme of a connection URL.
fn url_rest(text: &str) -> Option<&str> {
    text.strip_prefix("postgresql://").or_else(|| text.strip_prefix("postgres://"))
}

/// Whether `text` holds a password or another secret, which a command line must not. Text that does not parse is judged by
/// its looks, and in doubt it does.
pub fn contains_password(text: &str) -> bool {
    match parse(text) {
        Ok(pairs) => pairs.iter().any(|(key, value)| keywords::SECRETS.contains(key) && !value.is_empty()),
        Err(_) => {
            let authority = url_rest(text).map(|rest| rest.rsplit_once('@').map_or("", |(user, _)| user));
            authority.is_some_and(|user| user.contains(':'))
                || keywords::SECRETS.iter().any(|key| text.to_ascii_lowercase().contains(key))
        }
    }
}

/// The static name of a key, if walden knows it.
pub(super) fn known(name: &str) -> Result<&'static str, ConnectionStringError> {
    match keywords::find(name) {
        Some(keyword) => Ok(keyword.name),
        // A URL whose host holds an unquoted '=' lands here too; only the shape of a keyword is repeated.
        None if name.len() <= 40 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') => {
            Err(ConnectionStringError::UnknownOption { name: name.to_owned() })
        }
        None => Err(ConnectionStringError::syntax(
            "an option's name has other characters than letters, digits and _",
        )),
    }
}

fn parse_conninfo(text: &str) -> Result<Pairs, ConnectionStringError> {
    let mut pairs = Pairs::new();
    let mut chars = text.char_indices().peekable();
    loop {
        while chars.next_if(|(_, c)| c.is_ascii_whitespace()).is_some() {}
        let Some(&(start, _)) = chars.peek() else { return Ok(pairs) };
        let mut name = String::new();
        while let Some((_, c)) = chars.next_if(|(_, c)| *c != '=' && !c.is_ascii_whitespace()) {
            name.push(c);
        }
        while chars.next_if(|(_, c)| c.is_ascii_whitespace()).is_some() {}
        if chars.next_if(|(_, c)| *c == '=').is_none() {
            let reason = format!("missing \"=\" after the word at byte {start}");
            return Err(ConnectionStringError::syntax(reason));
        }
        while chars.next_if(|(_, c)| c.is_ascii_whitespace()).is_some() {}
        let mut value = Zeroizing::new(String::new());
        if chars.next_if(|(_, c)| *c == '\'').is_some() {
            loop {
                match chars.next() {
                    Some((_, '\'')) => break,
                    Some((_, '\\')) => value.extend(chars.next().map(|(_, c)| c)),
                    Some((_, c)) => value.push(c),
                    None => {
                        let reason = format!("the quoted value of the option at byte {start} does not end");
                        return Err(ConnectionStringError::syntax(reason));
                    }
                }
            }
        } else {
            while let Some((_, c)) = chars.next_if(|(_, c)| !c.is_ascii_whitespace()) {
                match c {
                    '\\' => value.extend(chars.next().map(|(_, c)| c)),
                    c => value.push(c),
                }
            }
        }
        pairs.push((known(&name)?, value));
    }
}

fn parse_url(rest: &str) -> Result<Pairs, ConnectionStringError> {
    let mut pairs = Pairs::new();
    // The user part ends at the first '@' before any '/'.
    let authority_end = rest.find('/').unwrap_or(rest.len());
    let (user, rest) = match rest.find('@') {
        Some(at) if at < authority_end => (Some(&rest[..at]), &rest[at + 1..]),
        _ => (None, rest),
    };
    if let Some(user) = user {
        let (name, password) = user.split_once(':').map_or((user, None), |(name, word)| (name, Some(word)));
        if !name.is_empty() {
            pairs.push(("user", decode(name, "the user")?));
        }
        if let Some(password) = password.filter(|password| !password.is_empty()) {
            pairs.push(("password", decode(password, "the password")?));
        }
    }
    let hosts_end = host_list_end(rest)?;
    let (hosts, rest) = rest.split_at(hosts_end);
    let (names, ports) = split_hosts(hosts)?;
    if names.iter().any(|name| !name.is_empty()) {
        pairs.push(("host", names.join(",").into()));
    }
    if ports.iter().any(|port| !port.is_empty()) {
        pairs.push(("port", ports.join(",").into()));
    }
    let (path, query) = rest.split_once('?').map_or((rest, None), |(path, query)| (path, Some(query)));
    if let Some(database) = path.strip_prefix('/').filter(|name| !name.is_empty()) {
        pairs.push(("dbname", decode(database, "the database")?));
    }
    for option in query.unwrap_or_default().split('&').filter(|_| query.is_some_and(|q| !q.is_empty())) {
        let Some((key, value)) = option.split_once('=') else {
            return Err(ConnectionStringError::syntax("an option after ? has no \"=\""));
        };
        if value.contains('=') {
            return Err(ConnectionStringError::syntax("an option after ? has more than one \"=\""));
        }
        let (key, value) = (decode(key, "an option's name")?, decode(value, "an option's value")?);
        match key.as_str() {
            // As JDBC writes it.
            "ssl" if *value == "true" => pairs.push(("sslmode", "require".to_owned().into())),
            key => pairs.push((known(key)?, value)),
        }
    }
    Ok(pairs)
}

/// Where the host list ends: at the first '/' or '?' outside brackets.
fn host_list_end(rest: &str) -> Result<usize, ConnectionStringError> {
    let mut in_brackets = false;
    for (at, c) in rest.char_indices() {
        match c {
            '[' => in_brackets = true,
            ']' => in_brackets = false,
            '/' | '?' if !in_brackets => return Ok(at),
            _ => {}
        }
    }
    if in_brackets {
        return Err(ConnectionStringError::syntax("an IPv6 address has no closing \"]\""));
    }
    Ok(rest.len())
}

/// Hosts and ports of `a:1,[::1]:2,b`, in two lists of one length.
fn split_hosts(hosts: &str) -> Result<(Vec<String>, Vec<String>), ConnectionStringError> {
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for host in hosts.split(',') {
        let (name, port) = match host.strip_prefix('[') {
            Some(inner) => {
                let Some((address, after)) = inner.split_once(']') else {
                    return Err(ConnectionStringError::syntax("an IPv6 address has no closing \"]\""));
                };
                if address.is_empty() {
                    return Err(ConnectionStringError::syntax("an IPv6 address is empty"));
                }
                match (after.is_empty(), after.strip_prefix(':')) {
                    (true, _) => (address, ""),
                    (false, Some(port)) => (address, port),
                    _ => return Err(ConnectionStringError::syntax("unexpected text after an IPv6 address")),
                }
            }
            None => host.split_once(':').unwrap_or((host, "")),
        };
        names.push(decode(name, "a host")?.to_string());
        ports.push(decode(port, "a port")?.to_string());
    }
    Ok((names, ports))
}

/// Percent-decoding, as in libpq: `%00` is refused, `+` stays.
fn decode(text: &str, what: &str) -> Result<Zeroizing<String>, ConnectionStringError> {
    let syntax = |reason: &str| ConnectionStringError::syntax(format!("{what}: {reason}"));
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
        match (digit(), digit()) {
            (Some(0), Some(0)) => return Err(syntax("%00 is not allowed")),
            (Some(high), Some(low)) => bytes.push((high * 16 + low) as u8),
            _ => return Err(syntax("% is not followed by two hexadecimal digits")),
        }
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| syntax("is not UTF-8 once decoded"))?;
    Ok(Zeroizing::new(text.to_owned()))
}
