//! Where the passphrase or key of a repository comes from: a file that only we can read, or a command that prints it.
//! Refuses files that others can read, as ssh does. The secret is wiped from memory, and never part of an error.

use crate::base::ids::hex_bytes;
use crate::codec::keyslot::Unlock;
use rustix::process::geteuid;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use zeroize::Zeroizing;

/// The longest secret in bytes, its newline included.
const SECRET_BYTES_MAX: usize = 64 << 10;

/// Where a secret comes from. Holds none: it may be shown, and written into files of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// A file that holds a passphrase.
    PassphraseFile(PathBuf),
    /// A shell command that prints a passphrase.
    PassphraseCommand(String),
    /// A file that holds 32 bytes in hexadecimal.
    KeyFile(PathBuf),
    /// A shell command that prints 32 bytes in hexadecimal.
    KeyCommand(String),
}

/// Why there is no secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file is not to be read.
    #[error("{origin}: {reason}")]
    Unreadable {
        /// Which source.
        origin: SecretSource,
        /// What the system said.
        reason: io::Error,
    },
    /// Others can read the file.
    #[error("{origin} can be read by others: mode {mode:04o}, expected 0600")]
    Exposed {
        /// Which source.
        origin: SecretSource,
        /// Its permission bits.
        mode: u32,
    },
    /// The command failed; its standard error went to ours.
    #[error("{origin} ended with {status}")]
    Failed {
        /// Which source.
        origin: SecretSource,
        /// How it ended.
        status: ExitStatus,
    },
    /// What came is no such secret.
    #[error("{origin} gave {found}, expected {expected}")]
    Shape {
        /// Which source.
        origin: SecretSource,
        /// What is wrong with it, without a byte of it.
        found: &'static str,
        /// What it should have been.
        expected: &'static str,
    },
}

impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SecretSource::PassphraseFile(path) => write!(f, "passphrase file {}", path.display()),
            // Its text may hold a secret.
            SecretSource::PassphraseCommand(_) => f.write_str("the passphrase command"),
            SecretSource::KeyFile(path) => write!(f, "key file {}", path.display()),
            SecretSource::KeyCommand(_) => f.write_str("the key command"),
        }
    }
}

impl SecretSource {
    /// Reads the secret. Blocks; a command may ask the operator for something.
    pub fn unlock(&self) -> Result<Unlock, SecretError> {
        let text = match self {
            SecretSource::PassphraseFile(path) | SecretSource::KeyFile(path) => self.read_file(path)?,
            SecretSource::PassphraseCommand(command) | SecretSource::KeyCommand(command) => {
                self.run(command)?
            }
        };
        let line = text.strip_suffix('\n').unwrap_or(&text);
        let line = line.strip_suffix('\r').unwrap_or(line);
        match self {
            SecretSource::PassphraseFile(_) | SecretSource::PassphraseCommand(_) if line.is_empty() => {
                Err(self.shape("nothing", "a passphrase"))
            }
            SecretSource::PassphraseFile(_) | SecretSource::PassphraseCommand(_) => {
                Ok(Unlock::Passphrase(Zeroizing::new(line.to_owned())))
            }
            SecretSource::KeyFile(_) | SecretSource::KeyCommand(_) => {
                hex_bytes::<32>(line.trim()).map(|key| Unlock::Key(Zeroizing::new(key))).ok_or_else(|| {
                    self.shape("something else", "64 hexadecimal digits (`walden key generate` makes them)")
                })
            }
        }
    }

    fn shape(&self, found: &'static str, expected: &'static str) -> SecretError {
        SecretError::Shape { origin: self.clone(), found, expected }
    }

    fn unreadable(&self, reason: io::Error) -> SecretError {
        SecretError::Unreadable { origin: self.clone(), reason }
    }

    fn read_file(&self, path: &PathBuf) -> Result<Zeroizing<String>, SecretError> {
        let file = File::open(path).map_err(|error| self.unreadable(error))?;
        let meta = file.metadata().map_err(|error| self.unreadable(error))?;
        // A pipe (`<(…)` of a shell) has no readers but us.
        if meta.is_file() {
            let mode = meta.mode() & 0o777;
            // As PostgreSQL with its TLS keys: root may share a file with our group.
            let roots_for_our_group = meta.uid() == 0 && !geteuid().is_root() && mode & 0o037 == 0;
            if mode & 0o077 != 0 && !roots_for_our_group {
                return Err(SecretError::Exposed { origin: self.clone(), mode });
            }
        }
        self.read_all(file)
    }

    fn run(&self, command: &str) -> Result<Zeroizing<String>, SecretError> {
        let mut shell = Command::new("/bin/sh");
        shell.arg("-c").arg(command).stdin(Stdio::inherit()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = shell.spawn().map_err(|error| self.unreadable(error))?;
        let text = match child.stdout.take() {
            Some(pipe) => self.read_all(pipe),
            None => Err(self.shape("no output", "a secret")),
        };
        let status = child.wait().map_err(|error| self.unreadable(error))?;
        if !status.success() {
            return Err(SecretError::Failed { origin: self.clone(), status });
        }
        text
    }

    /// Reads to the end into one allocation, so that no copy is left behind by growing.
    fn read_all(&self, mut from: impl Read) -> Result<Zeroizing<String>, SecretError> {
        let mut bytes = Zeroizing::new(vec![0u8; SECRET_BYTES_MAX]);
        let mut len = 0;
        while let Some(room) = bytes.get_mut(len..).filter(|room| !room.is_empty()) {
            match from.read(room) {
                Ok(0) => break,
                Ok(count) => len += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.unreadable(error)),
            }
        }
        if len == SECRET_BYTES_MAX {
            return Err(self.shape("more than 64 KiB", "a secret on one line"));
        }
        match bytes.get(..len).map(std::str::from_utf8) {
            Some(Ok(text)) => Ok(Zeroizing::new(text.to_owned())),
            _ => Err(self.shape("bytes that are no UTF-8", "text")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn file(content: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (dir, path)
    }

    fn passphrase(source: SecretSource) -> String {
        match source.unlock().unwrap() {
            Unlock::Passphrase(text) => text.to_string(),
            Unlock::Key(_) => panic!("{source} gave a key"),
        }
    }

    #[test]
    fn a_passphrase_is_the_line_without_its_end() {
        for content in ["geheim ß", "geheim ß\n", "geheim ß\r\n"] {
            let (_dir, path) = file(content.as_bytes(), 0o600);
            assert_eq!(passphrase(SecretSource::PassphraseFile(path)), "geheim ß");
        }
        assert_eq!(passphrase(SecretSource::PassphraseCommand("printf 'a b\\n'".into())), "a b");
    }

    #[test]
    fn files_that_others_can_read_are_refused() {
        for mode in [0o604, 0o660, 0o644, 0o640, 0o602, 0o601] {
            let (_dir, path) = file(b"geheim", mode);
            let error = SecretSource::PassphraseFile(path).unlock().unwrap_err();
            assert!(matches!(error, SecretError::Exposed { mode: found, .. } if found == mode));
            assert!(!error.to_string().contains("geheim"));
        }
    }

    #[test]
    fn a_key_is_64_hexadecimal_digits() {
        let (_dir, path) = file(format!("{}\n", "0f".repeat(32)).as_bytes(), 0o400);
        let Unlock::Key(key) = SecretSource::KeyFile(path).unlock().unwrap() else { panic!("no key") };
        assert_eq!(*key, [15; 32]);
        for bad in ["", "0f", &"0g".repeat(32), &"0f".repeat(33)] {
            let error = SecretSource::KeyCommand(format!("echo '{bad}'")).unlock().unwrap_err();
            assert!(matches!(error, SecretError::Shape { .. }), "{bad:?}");
        }
    }

    #[test]
    fn failures_of_a_command_and_empty_secrets_are_errors() {
        let failed = SecretSource::PassphraseCommand("echo geheim; exit 3".into()).unlock().unwrap_err();
        assert!(failed.to_string().ends_with("ended with exit status: 3"), "{failed}");
        assert!(!failed.to_string().contains("geheim"), "{failed}");
        for source in [
            SecretSource::PassphraseCommand("true".into()),
            SecretSource::PassphraseCommand("printf '\\377'".into()),
        ] {
            assert!(matches!(source.unlock(), Err(SecretError::Shape { .. })));
        }
        let missing = SecretSource::PassphraseFile("/nonexistent/secret".into()).unlock();
        assert!(matches!(missing, Err(SecretError::Unreadable { .. })));
    }
}
