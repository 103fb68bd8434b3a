//! What PostgreSQL runs for each file. No runtime, no keys, no command-line library: when the file is staged, a rename.
//!
//! Exits with 0 when the file is in place, with 1 when the server proved that it is not in the archive, and with 255 for
//! everything else.

use super::{LOG, SERVE_ARGUMENT, SOCKET, WORKING};
use crate::base::WalFileName;
use crate::restore::recovery_file::RecoveryFile;
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How it is called.
pub const USAGE: &str =
    "usage: walden wal-fetch --recovery FILE %f %p  (a restore_command; walden restore writes it)";
/// The file is in place.
pub const EXIT_DONE: u8 = 0;
/// The index proves that the file is not in the archive.
pub const EXIT_ABSENT: u8 = 1;
/// Anything else: PostgreSQL stops, and is not promoted.
pub const EXIT_FAILED: u8 = 255;

/// How long a server may take to listen: it does so before it opens anything.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How long a server may say nothing. One that works says so, for an hour at most.
const ANSWER_PATIENCE: Duration = Duration::from_secs(600);
const CONNECT_WAIT_MIN: Duration = Duration::from_millis(2);
const CONNECT_WAIT_MAX: Duration = Duration::from_millis(100);
/// Servers asked after one another when each dies before it answers.
const SERVERS_MAX: u32 = 3;
/// Times a staged file is moved that comes and goes meanwhile.
const TAKES_MAX: u32 = 4;
/// A log that grew beyond this is begun anew.
const LOG_BYTES_MAX: u64 = 4 << 20;

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Invocation {
    /// Fetch a file for PostgreSQL.
    Fetch {
        /// The recovery file.
        recovery: PathBuf,
        /// The file's name, `%f`.
        name: String,
        /// Where PostgreSQL wants it, `%p`.
        to: PathBuf,
    },
    /// Serve; only ever said by a client.
    Serve {
        /// The recovery file.
        recovery: PathBuf,
    },
}

impl Invocation {
    /// Understands what follows `wal-fetch`.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, String> {
        let usage = || USAGE.to_owned();
        let (mut recovery, mut serve, mut rest) = (None, false, Vec::new());
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            if argument == "--recovery" {
                recovery = Some(PathBuf::from(arguments.next().ok_or_else(usage)?));
            } else if argument == SERVE_ARGUMENT {
                serve = true;
            } else {
                rest.push(argument);
            }
        }
        let recovery = recovery.ok_or_else(usage)?;
        match (serve, rest.as_slice()) {
            (true, []) => Ok(Invocation::Serve { recovery }),
            (false, [name, to]) => {
                let name = name.to_str().ok_or_else(usage)?.to_owned();
                Ok(Invocation::Fetch { recovery, name, to: PathBuf::from(to) })
            }
            _ => Err(usage()),
        }
    }
}

/// Fetches `name` to `to`. `binary` is this program, which can serve. Errors go to `say`, a line each.
pub fn fetch(recovery: &Path, name: &str, to: &Path, binary: &Path, say: &mut dyn FnMut(String)) -> u8 {
    match try_fetch(recovery, name, to, binary) {
        Ok(Answer::Staged) => EXIT_DONE,
        Ok(Answer::Absent(reason)) => {
            say(format!("{name} is not in the archive: {reason}"));
            EXIT_ABSENT
        }
        Err(reason) => {
            say(format!("{name} could not be fetched: {reason}"));
            EXIT_FAILED
        }
    }
}

enum Answer {
    Staged,
    Absent(String),
}

fn try_fetch(recovery: &Path, name: &str, to: &Path, binary: &Path) -> Result<Answer, String> {
    let recovery = absolute(recovery)?;
    let to = absolute(to)?;
    let Ok(wanted) = name.parse::<WalFileName>() else {
        return match name.ends_with(".backup") || name.ends_with(".partial") {
            true => Ok(Answer::Absent("such files are never stored".into())),
            false => Err("neither a WAL segment nor a timeline history file".into()),
        };
    };
    let file = RecoveryFile::read(&recovery).map_err(|error| error.to_string())?;
    let staging = file.staging_dir();
    // From inside, the socket's name is short however deep the directory lies.
    std::env::set_current_dir(&staging).map_err(|error| format!("{}: {error}", staging.display()))?;
    if take(wanted, &to)? {
        tell(wanted, &recovery, binary);
        return Ok(Answer::Staged);
    }
    let mut why = String::new();
    for _ in 0..SERVERS_MAX {
        let socket = connect_or_start(&recovery, binary)?;
        match ask(socket, wanted) {
            Ok(Answer::Staged) if take(wanted, &to)? => {
                tell(wanted, &recovery, binary);
                return Ok(Answer::Staged);
            }
            // Another client was faster.
            Ok(Answer::Staged) => "others take it first".clone_into(&mut why),
            Ok(Answer::Absent(reason)) => return Ok(Answer::Absent(reason)),
            Err(Unanswered::Failed(reason)) => return Err(reason),
            Err(Unanswered::Died(error)) => why = error.to_string(),
        }
    }
    let log = staging.join(LOG);
    Err(format!("the fetching process did not answer {SERVERS_MAX} times ({why}); see {}", log.display()))
}

fn absolute(path: &Path) -> Result<PathBuf, String> {
    std::path::absolute(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// Moves the staged file to where PostgreSQL wants it. `false` when it is not staged.
fn take(name: WalFileName, to: &Path) -> Result<bool, String> {
    let name = name.to_string();
    take_with(|| fs::rename(&name, to), Path::new(&name), to)
}

/// The same with `rename`, which moves `staged` to `to`.
fn take_with(mut rename: impl FnMut() -> io::Result<()>, staged: &Path, to: &Path) -> Result<bool, String> {
    let mut renamed = rename();
    for _ in 1..TAKES_MAX {
        match &renamed {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !staged.exists() => return Ok(false),
            // It was staged since. If it is there and still not found, that is the place to move it to.
            Err(error) if error.kind() == io::ErrorKind::NotFound => renamed = rename(),
            _ => break,
        }
    }
    match renamed {
        Ok(()) => Ok(true),
        // By hand, somebody may want it on another file system.
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            let copied = fs::copy(staged, to).and_then(|_| fs::remove_file(staged));
            copied.map(|()| true).map_err(|error| format!("{}: {error}", to.display()))
        }
        Err(error) => Err(format!("{}: {error}", to.display())),
    }
}

/// Says what was taken, so that more is staged; starts a server when there is none.
fn tell(name: WalFileName, recovery: &Path, binary: &Path) {
    let told = UnixStream::connect(SOCKET)
        .and_then(|mut socket| socket.write_all(format!("took {name}\n").as_bytes()));
    if told.is_err() {
        // The next call will need it, and will say so if it cannot be started.
        let _ = start(recovery, binary);
    }
}

enum Unanswered {
    Failed(String),
    Died(io::Error),
}

fn ask(mut socket: UnixStream, name: WalFileName) -> Result<Answer, Unanswered> {
    let mut line = String::new();
    let exchanged: io::Result<()> = (|| {
        socket.set_read_timeout(Some(ANSWER_PATIENCE))?;
        socket.write_all(format!("want {name}\n").as_bytes())?;
        let mut answer = BufReader::new(&socket);
        loop {
            line.clear();
            answer.read_line(&mut line)?;
            if line.trim_end() != WORKING {
                return Ok(());
            }
        }
    })();
    match exchanged {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            return Err(Unanswered::Failed("the fetching process does not answer".into()));
        }
        Err(error) => return Err(Unanswered::Died(error)),
        Ok(()) => {}
    }
    let (word, rest) = line.trim_end().split_once(' ').unwrap_or((line.trim_end(), ""));
    match word {
        "staged" => Ok(Answer::Staged),
        "absent" => Ok(Answer::Absent(rest.to_owned())),
        "failed" => Err(Unanswered::Failed(rest.to_owned())),
        _ => Err(Unanswered::Died(io::ErrorKind::UnexpectedEof.into())),
    }
}

fn connect_or_start(recovery: &Path, binary: &Path) -> Result<UnixStream, String> {
    let deadline = Instant::now() + START_PATIENCE;
    let mut wait = CONNECT_WAIT_MIN;
    let mut started = false;
    loop {
        let error = match UnixStream::connect(SOCKET) {
            Ok(socket) => return Ok(socket),
            Err(error) => error,
        };
        if !started {
            start(recovery, binary).map_err(|error| format!("{}: {error}", binary.display()))?;
            started = true;
        }
        if Instant::now() > deadline {
            return Err(format!(
                "the fetching process does not start ({error}); see {LOG} beside the recovery file"
            ));
        }
        std::thread::sleep(wait);
        wait = (wait * 2).min(CONNECT_WAIT_MAX);
    }
}

/// Starts a server that outlives us: PostgreSQL's pipes are not handed on.
fn start(recovery: &Path, binary: &Path) -> io::Result<()> {
    let fresh = fs::metadata(LOG).is_ok_and(|meta| meta.len() > LOG_BYTES_MAX);
    if fresh {
        fs::remove_file(LOG)?;
    }
    let log = OpenOptions::new().append(true).create(true).mode(0o600).open(LOG)?;
    let mut server = Command::new(binary);
    server.arg("wal-fetch").arg("--recovery").arg(recovery).arg(SERVE_ARGUMENT);
    server.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    server.spawn().map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Invocation, String> {
        Invocation::parse(arguments.iter().map(OsString::from))
    }

    #[test]
    fn waits_as_long_as_the_server_works() {
        let name: WalFileName = "000000010000000000000001".parse().unwrap();
        for (answer, staged) in [("working\nworking\nstaged\n", true), ("working\nfailed no room\n", false)] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(answer.as_bytes()).unwrap();
            match ask(ours, name) {
                Ok(Answer::Staged) => assert!(staged, "{answer}"),
                Err(Unanswered::Failed(reason)) => assert_eq!((reason.as_str(), staged), ("no room", false)),
                _ => panic!("{answer}"),
            }
        }
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"working\n").unwrap();
        drop(theirs);
        assert!(matches!(ask(ours, name), Err(Unanswered::Died(_))));
    }

    #[test]
    fn understands_what_restore_command_says() {
        let expected = Invocation::Fetch {
            recovery: "/r".into(),
            name: "00000002.history".into(),
            to: "pg_wal/X".into(),
        };
        assert_eq!(parse(&["--recovery", "/r", "00000002.history", "pg_wal/X"]), Ok(expected));
        assert_eq!(
            parse(&["--recovery", "/r", SERVE_ARGUMENT]),
            Ok(Invocation::Serve { recovery: "/r".into() })
        );
        for bad in [&["x", "y"][..], &["--recovery"], &["--recovery", "/r"], &["--recovery", "/r", "x"]] {
            assert!(parse(bad).unwrap_err().starts_with("usage"), "{bad:?}");
        }
    }

    #[test]
    fn a_file_that_is_staged_while_it_is_looked_for_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let [staged, to] = ["staged", "to"].map(|name| dir.path().join(name));
        let move_it = |to: &Path| fs::rename(&staged, to);
        assert_eq!(take_with(|| move_it(&to), &staged, &to), Ok(false), "nothing is staged");
        // It is there right after it was not found.
        let late = || {
            let moved = move_it(&to);
            if moved.is_err() {
                fs::write(&staged, "wal").unwrap();
            }
            moved
        };
        assert_eq!(take_with(late, &staged, &to), Ok(true));
        assert_eq!(fs::read(&to).unwrap(), b"wal");
        fs::write(&staged, "wal").unwrap();
        let nowhere = dir.path().join("no/where");
        let error = take_with(|| move_it(&nowhere), &staged, &nowhere).unwrap_err();
        assert!(error.contains("no/where") && staged.exists(), "{error}");
    }

    #[test]
    fn only_what_is_never_stored_is_absent_without_proof() {
        let exit = |name: &str| {
            fetch(
                Path::new("/nonexistent/r"),
                name,
                Path::new("/nonexistent/x"),
                Path::new("/bin/false"),
                &mut |_| {},
            )
        };
        assert_eq!(exit("00000001000000000000000A.00000028.backup"), EXIT_ABSENT);
        assert_eq!(exit("00000001000000000000000A.partial"), EXIT_ABSENT);
        assert_eq!(exit("pg_wal/RECOVERYXLOG"), EXIT_FAILED);
        assert_eq!(exit("00000001000000000000000A"), EXIT_FAILED, "no recovery file proves nothing");
        assert_eq!(exit("00000002.history"), EXIT_FAILED);
    }
}
