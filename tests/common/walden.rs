//! The real binary: a repository, a passphrase, and commands run in an environment of their own.

use super::pg::{Pg, Process, give_to_postgres, temp_dir};
use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;
use tempfile::TempDir;

/// How long a restored server may replay.
const RECOVERY_LIMIT: Duration = Duration::from_secs(120);

/// The binary under test.
pub const WALDEN: &str = env!("CARGO_BIN_EXE_walden");

/// A place with a passphrase file and room for a repository, journals and restored directories.
#[derive(Debug)]
pub struct Place {
    dir: TempDir,
    /// The URL of its repository; a directory of the place unless changed.
    pub repo: String,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; -1 for a signal.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Place {
    /// A new place; `init` has not run.
    pub fn new() -> Place {
        let dir = temp_dir();
        let repo = dir.path().join("repo").display().to_string();
        let place = Place { dir, repo };
        place.write_private("passphrase", "correct horse\n");
        place
    }

    /// A new place with a repository in it.
    pub fn init() -> Place {
        let place = Place::new();
        place.ok(&["init"]);
        place
    }

    /// Writes a file that only its owner may read.
    pub fn write_private(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).unwrap();
        std::io::Write::write_all(&mut { file }, content.as_bytes()).unwrap();
        path
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command with the repository, the cluster `shop` and the passphrase in its environment, and nothing else.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(WALDEN);
        command
            .args(args)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.dir.path())
            .env("TZ", "UTC");
        command.env("WALDEN_REPO", &self.repo).env("WALDEN_CLUSTER", "shop");
        command.env("WALDEN_PASSPHRASE_FILE", self.path("passphrase"));
        command.env("WALDEN_CONFIG", "/dev/null");
        command.stdin(std::process::Stdio::null());
        command
    }

    /// The same with a server to connect to.
    pub fn command_for(&self, pg: &Pg, args: &[&str]) -> Command {
        let mut command = self.command(args);
        command.env("WALDEN_CONNECTION", pg.conninfo());
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, args: &[&str]) -> Ended {
        finish(&mut self.command(args))
    }

    /// Runs a command that must end with 0; its standard output.
    pub fn ok(&self, args: &[&str]) -> String {
        self.run(args).expect(0)
    }

    /// Runs a command with `--json` that must end with 0; its document.
    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        let out = self.ok(&[&["--json"], args].concat());
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{args:?} printed no JSON: {error}\n{out}"))
    }
}

impl Place {
    /// Starts a command in the background, its output at the end of the log `name`, which a failing test shows.
    pub fn start(&self, mut command: Command, name: &str) -> Process {
        let log = self.path(&format!("{name}.log"));
        let log = fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        Process::start(command)
    }

    /// What the log `name` says.
    pub fn log(&self, name: &str) -> String {
        let log = fs::read(self.path(&format!("{name}.log"))).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Restores into `name` with the arguments `args`, starts a server of `major` there, and waits until it is where it was to
    /// stop. What it needs to fetch WAL is given to its user.
    pub fn restored(&self, major: u32, name: &str, args: &[&str]) -> Pg {
        let target = self.path(name);
        let target_arg = target.display().to_string();
        self.ok(&[&["restore", "--target-dir", &target_arg], args].concat());
        for needed in ["passphrase", "credentials", "repo"].map(|name| self.path(name)) {
            if needed.exists() {
                give_to_postgres(&needed);
            }
        }
        let mut pg = Pg::adopt(major, &target);
        pg.start_again();
        let there = "SELECT NOT pg_is_in_recovery() OR pg_get_wal_replay_pause_state() = 'paused'";
        pg.wait_for(there, "t", RECOVERY_LIMIT);
        pg
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let entries = fs::read_dir(self.dir.path()).into_iter().flatten().flatten();
        for path in
            entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "log"))
        {
            let log = String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).into_owned();
            let tail: Vec<&str> = log.lines().rev().take(25).collect();
            let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
            eprintln!("--- the end of {}\n{tail}", path.display());
        }
    }
}

/// Runs a command to its end.
pub fn finish(command: &mut Command) -> Ended {
    let Output { status, stdout, stderr } = command.output().unwrap();
    Ended {
        code: status.code().unwrap_or(-1),
        out: String::from_utf8(stdout).unwrap(),
        err: String::from_utf8(stderr).unwrap(),
    }
}

impl Ended {
    /// Its standard output, if it ended with `code`; panics otherwise.
    pub fn expect(self, code: i32) -> String {
        assert_eq!(self.code, code, "standard output:\n{}\nstandard error:\n{}", self.out, self.err);
        self.out
    }
}

/// Every file below `dir` with its bytes, sorted by path.
pub fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            match entry.file_type().unwrap() {
                kind if kind.is_dir() => dirs.push(entry.path()),
                kind if kind.is_file() => found.push((entry.path(), fs::read(entry.path()).unwrap())),
                _ => {}
            }
        }
    }
    found.sort();
    found
}
