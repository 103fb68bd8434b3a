//! A server that says what a test wants it to: scripted bytes over a unix socket, from a thread of its own.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::JoinHandle;
use tempfile::TempDir;

/// One message: type byte, length, body.
pub fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32 + 4).to_be_bytes();
    [&[tag], &length[..], body].concat()
}

/// A `w` message inside CopyData.
pub fn wal(start: u64, data: &[u8]) -> Vec<u8> {
    let header = [&b"w"[..], &start.to_be_bytes(), &start.to_be_bytes(), &[0; 8]].concat();
    message(b'd', &[&header, data].concat())
}

/// What lets a client in without a password.
pub fn welcome() -> Vec<u8> {
    let version = message(b'S', b"server_version\x0015.19\0");
    [message(b'R', &[0; 4]), version, message(b'K', &[0, 0, 0, 1, 0, 0, 0, 2]), message(b'Z', b"I")].concat()
}

/// The answer to IDENTIFY_SYSTEM.
pub fn identity() -> Vec<u8> {
    let mut columns = vec![0, 4];
    for name in ["systemid", "timeline", "xlogpos", "dbname"] {
        columns.extend_from_slice(name.as_bytes());
        columns.extend_from_slice(&[0; 19]);
    }
    let row = b"\0\x04\0\0\0\x017\0\0\0\x011\0\0\0\x030/1\xff\xff\xff\xff";
    [message(b'T', &columns), message(b'D', row), message(b'C', b"IDENTIFY_SYSTEM\0"), message(b'Z', b"I")]
        .concat()
}

/// A listening server. Each client is served by `script`, one after another.
pub struct Fake {
    dir: TempDir,
    _thread: JoinHandle<()>,
}

impl Fake {
    pub fn start(mut script: impl FnMut(Client) + Send + 'static) -> Fake {
        let dir = tempfile::Builder::new().prefix("walden-").tempdir_in("/tmp").unwrap();
        let listener = UnixListener::bind(dir.path().join(".s.PGSQL.5432")).unwrap();
        let thread = std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                script(Client { stream });
            }
        });
        Fake { dir, _thread: thread }
    }

    pub fn conninfo(&self) -> String {
        format!("host={} user=x password=hush connect_timeout=5", PathBuf::from(self.dir.path()).display())
    }
}

/// A client of a [`Fake`].
pub struct Client {
    stream: UnixStream,
}

impl Client {
    pub fn say(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// The startup message's body; `None` when the client is gone.
    pub fn startup(&mut self) -> Option<Vec<u8>> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).ok()?;
        let mut body = vec![0; u32::from_be_bytes(length) as usize - 4];
        self.stream.read_exact(&mut body).ok()?;
        Some(body)
    }

    /// The next message of the client; `None` when it is gone.
    pub fn hear(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut tag = [0; 1];
        self.stream.read_exact(&mut tag).ok()?;
        Some((tag[0], self.startup()?))
    }

    /// Goes through startup, IDENTIFY_SYSTEM and START_REPLICATION; CopyBoth is open then.
    pub fn begin_streaming(&mut self) -> Option<()> {
        self.startup()?;
        self.say(&welcome());
        self.hear()?;
        self.say(&identity());
        self.hear()?;
        self.say(&message(b'W', &[0; 3])).then_some(())
    }
}
