//! What connection options come from besides the string: variables, service files, password files. Reading is thin and
//! behind [`Surroundings`]; taking apart is pure.

use super::secret::Secret;
use super::string::{ConnectionStringError, Pairs, known};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// A file as found.
#[derive(Debug)]
pub struct FoundFile {
    /// Its text.
    pub text: Secret,
    /// `st_mode`.
    pub mode: u32,
}

/// Variables and files around a connection string.
pub trait Surroundings {
    /// An environment variable.
    fn var(&self, name: &str) -> Option<String>;
    /// A file; `None` when there is none.
    fn read(&self, path: &Path) -> io::Result<Option<FoundFile>>;
    /// The name of the user we run as.
    fn user(&self) -> Option<String>;
    /// The home directory.
    fn home(&self) -> Option<PathBuf>;
}

/// The process's surroundings, with variables from a function.
pub struct OsSurroundings<'a> {
    /// Looks up a variable.
    pub env: &'a dyn Fn(&str) -> Option<String>,
}

impl Surroundings for OsSurroundings<'_> {
    fn var(&self, name: &str) -> Option<String> {
        (self.env)(name).filter(|value| !value.is_empty())
    }

    fn read(&self, path: &Path) -> io::Result<Option<FoundFile>> {
        read_file(path)
    }

    fn user(&self) -> Option<String> {
        let uid = rustix::process::geteuid().as_raw();
        passwd_field(uid, PASSWD_NAME).or_else(|| self.var("USER")).or_else(|| self.var("LOGNAME"))
    }

    fn home(&self) -> Option<PathBuf> {
        let uid = rustix::process::geteuid().as_raw();
        self.var("HOME").or_else(|| passwd_field(uid, PASSWD_HOME)).map(PathBuf::from)
    }
}

/// A file's text and mode, if it is there.
pub(in crate::net) fn read_file(path: &Path) -> io::Result<Option<FoundFile>> {
    let read = || -> io::Result<FoundFile> {
        let mode = std::fs::metadata(path)?.mode();
        Ok(FoundFile { text: Secret::new(std::fs::read_to_string(path)?), mode })
    };
    match read() {
        Ok(found) => Ok(Some(found)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

const PASSWD_NAME: usize = 0;
const PASSWD_UID: usize = 2;
const PASSWD_HOME: usize = 5;

/// A field of `uid`'s line in /etc/passwd.
fn passwd_field(uid: u32, field: usize) -> Option<String> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    let uid = uid.to_string();
    let line = passwd.lines().find(|line| line.split(':').nth(PASSWD_UID) == Some(uid.as_str()))?;
    line.split(':').nth(field).map(str::to_owned)
}

/// The uid of the user called `name` in /etc/passwd.
pub(in crate::net) fn user_id(name: &str) -> Option<u32> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    line.split(':').nth(PASSWD_UID)?.parse().ok()
}

/// The options of `[service]` in a service file's text; `None` when it has no such section.
pub(super) fn service_options(text: &str, service: &str) -> Result<Option<Pairs>, ConnectionStringError> {
    let failed = |line: usize, reason: &str| ConnectionStringError::Service {
        service: service.to_owned(),
        reason: format!("line {}: {reason}", line + 1),
    };
    let mut found: Option<Pairs> = None;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[') {
            if found.is_some() {
                break;
            }
            if name.strip_suffix(']') == Some(service) {
                found = Some(Pairs::new());
            }
            continue;
        }
        let Some(pairs) = &mut found else { continue };
        if line.starts_with("ldap") {
            return Err(failed(number, "LDAP lookups are not supported"));
        }
        let Some((key, value)) = line.split_once('=') else {
            return Err(failed(number, "expected key=value"));
        };
        match key {
            "service" | "servicefile" => return Err(failed(number, "a service cannot name a service")),
            key => pairs.push((known(key)?, Zeroizing::new(value.to_owned()))),
        }
    }
    Ok(found)
}

/// What a password file is asked for: any of the names of the host; of the databases, the first that has a line.
#[derive(Debug, Clone, Copy)]
pub(in crate::net) struct PasswordQuery<'a> {
    pub(in crate::net) hosts: &'a [&'a str],
    pub(in crate::net) port: u16,
    pub(in crate::net) databases: &'a [&'a str],
    pub(in crate::net) user: &'a str,
}

/// The password of the first matching line of a password file's text (`host:port:database:user:password`).
pub(in crate::net) fn password_in(text: &str, query: PasswordQuery<'_>) -> Option<Secret> {
    let port = query.port.to_string();
    query.databases.iter().find_map(|database| {
        let wanted: [&[&str]; 4] = [query.hosts, &[&port], &[database], &[query.user]];
        text.lines().find_map(|line| match_line(line, wanted))
    })
}

fn match_line(line: &str, wanted: [&[&str]; 4]) -> Option<Secret> {
    if line.starts_with('#') {
        return None;
    }
    let mut rest = line;
    for want in wanted {
        let (field, after) = next_field(rest);
        let after = after?;
        if !want.contains(&field.as_str()) && &rest[..rest.len() - after.len() - 1] != "*" {
            return None;
        }
        rest = after;
    }
    Some(Secret::new(next_field(rest).0.to_string()))
}

/// The text up to the next unescaped `:`, unescaped, and what follows it.
fn next_field(text: &str) -> (Zeroizing<String>, Option<&str>) {
    let mut field = Zeroizing::new(String::new());
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            ':' => return (field, Some(&text[at + 1..])),
            '\\' => field.extend(chars.next().map(|(_, c)| c)),
            c => field.push(c),
        }
    }
    (field, None)
}

/// Why a password file is not used, if it is not: libpq's rule, no access for group or others.
pub(in crate::net) fn passfile_refusal(mode: u32) -> Option<&'static str> {
    const FILE_TYPE: u32 = 0o170_000;
    const REGULAR: u32 = 0o100_000;
    if mode & FILE_TYPE != REGULAR {
        return Some("is not a regular file");
    }
    if mode & 0o077 != 0 {
        return Some("has group or world access; permissions should be u=rw (0600) or less");
    }
    None
}
