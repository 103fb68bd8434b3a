//! Private PostgreSQL servers for tests: any major, unix socket in a directory of their own, run as user `postgres`
//! when we are root, ended by pid when dropped and by the kernel when the test process dies first.
//!
//! ```ignore
//! let pg = Pg::start(15);
//! pg.sql("CREATE TABLE t AS SELECT 1 AS a");
//! assert_eq!(pg.sql("SELECT a FROM t"), "1");
//! let options = ConnectOptions::parse(&pg.conninfo(), &|_| None)?;
//! ```
//!
//! Binaries come from `$WALDEN_PG_HOME/<major>/bin` (`tools/setup` puts them there). `WALDEN_PG_MAJORS=15,18` narrows [`majors`].

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{LazyLock, Mutex, mpsc};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The oldest and newest major that walden knows.
pub const MAJORS: [u32; 5] = [14, 15, 16, 17, 18];

const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// The majors to test on: all five, or those in `WALDEN_PG_MAJORS`.
pub fn majors() -> Vec<u32> {
    let Ok(list) = std::env::var("WALDEN_PG_MAJORS") else { return MAJORS.to_vec() };
    let majors: Vec<u32> =
        list.split([',', ' ']).filter(|m| !m.is_empty()).map(|m| m.parse().unwrap()).collect();
    assert!(!majors.is_empty() && majors.iter().all(|m| MAJORS.contains(m)), "WALDEN_PG_MAJORS={list}");
    majors
}

/// A program of PostgreSQL `major`, such as `pg_waldump`.
pub fn binary(major: u32, program: &str) -> PathBuf {
    let home = std::env::var_os("WALDEN_PG_HOME").map(PathBuf::from).unwrap_or_else(|| {
        let cache = if is_root() {
            PathBuf::from("/var/cache")
        } else {
            let home = || PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache");
            std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).unwrap_or_else(home)
        };
        cache.join("walden/pg")
    });
    let path = home.join(major.to_string()).join("bin").join(program);
    assert!(path.exists(), "{} is missing: run tools/setup", path.display());
    path
}

/// Whether we are root, whom PostgreSQL refuses.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A command that runs as the user who runs PostgreSQL, from `/`, with an environment of its own, and that the kernel ends
/// (by SIGQUIT) should this process die.
pub fn postgres_command(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "QUIT"]);
    if is_root() {
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]);
    }
    command.arg("--").arg(program.as_ref()).current_dir("/").env_clear();
    command.env("PATH", "/usr/bin:/bin").env("HOME", "/tmp").env("LC_ALL", "C").env("TZ", "UTC");
    command.stdin(Stdio::null());
    command
}

/// Gives `path` and everything below it to the user who runs PostgreSQL.
pub fn give_to_postgres(path: &Path) {
    if is_root() {
        let status = Command::new("chown").args(["-R", "postgres:postgres"]).arg(path).status().unwrap();
        assert!(status.success(), "chown {}", path.display());
    }
}

/// A directory in /tmp (a unix socket's path is at most 107 bytes) that PostgreSQL's user may enter.
pub fn temp_dir() -> TempDir {
    let dir = tempfile::Builder::new().prefix("walden-").tempdir_in("/tmp").unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// Starts a child from a thread that lives as long as the process: PR_SET_PDEATHSIG counts the parent thread, and a test's
/// thread may end before a server that it shares.
fn spawn(mut command: Command) -> io::Result<Child> {
    type Job = (Command, mpsc::Sender<io::Result<Child>>);
    static SPAWNER: LazyLock<Mutex<mpsc::Sender<Job>>> = LazyLock::new(|| {
        let (jobs, inbox) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            while let Ok((mut command, reply)) = inbox.recv() {
                reply.send(command.spawn()).ok();
            }
        });
        Mutex::new(jobs)
    });
    command.stdin(Stdio::null());
    let (reply, answer) = mpsc::channel();
    SPAWNER.lock().unwrap().send((command, reply)).unwrap();
    answer.recv().unwrap()
}

/// A child process, killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts `command`; see [`postgres_command`].
    pub fn start(command: Command) -> Process {
        Process { child: spawn(command).unwrap() }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        signal_pid(self.pid(), signal);
    }

    /// Its status, if it has ended.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits at most `limit` for its end.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let mut status = None;
        wait_until(limit, || {
            status = self.try_wait();
            status.is_some()
        });
        status
    }

    /// The child itself, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}

fn signal_pid(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, signal).ok();
}

/// Looks every 10 ms whether `done`, for at most `limit`; answers whether it was.
pub fn wait_until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A TCP port of 127.0.0.1 that no other test takes while this value lives: an abstract socket's name, which the kernel
/// frees with the process, reserves it among all test processes of the machine. Outside the ephemeral range.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _reservation: UnixListener,
}

impl Port {
    /// Reserves a free one.
    pub fn reserve() -> Port {
        for _ in 0..1000 {
            let number = fastrand::u16(15_000..32_000);
            let name = SocketAddr::from_abstract_name(format!("walden-test-port-{number}")).unwrap();
            let Ok(reservation) = UnixListener::bind_addr(&name) else { continue };
            if TcpListener::bind(("127.0.0.1", number)).is_ok() {
                return Port { number, _reservation: reservation };
            }
        }
        panic!("no free port among 15000 to 31999");
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }
}

/// How a server stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Waits for clients: SIGTERM.
    Smart,
    /// Ends clients, writes a checkpoint, waits for WAL senders: SIGINT.
    Fast,
    /// Recovery at the next start: SIGQUIT.
    Immediate,
    /// SIGKILL to the postmaster; its children notice.
    Kill,
}

/// What a server is made with.
#[derive(Debug, Clone)]
pub struct PgBuilder {
    major: u32,
    options: Vec<(String, String)>,
    initdb: Vec<String>,
    hba: Vec<String>,
    tcp: bool,
}

impl PgBuilder {
    /// A line of postgresql.conf.
    pub fn option(mut self, name: &str, value: &str) -> Self {
        self.options.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Megabytes of a WAL segment, a power of two from 1 to 1024.
    pub fn wal_segment_mib(self, mib: u32) -> Self {
        self.initdb_arg(&format!("--wal-segsize={mib}"))
    }

    /// No data checksums (they are on by default here).
    pub fn without_checksums(mut self) -> Self {
        self.initdb.retain(|arg| arg != "--data-checksums");
        if self.major >= 18 { self.initdb_arg("--no-data-checksums") } else { self }
    }

    /// An argument of initdb.
    pub fn initdb_arg(mut self, arg: &str) -> Self {
        self.initdb.push(arg.to_owned());
        self
    }

    /// A line of pg_hba.conf, before the lines that trust everybody.
    pub fn hba(mut self, line: &str) -> Self {
        self.hba.push(line.to_owned());
        self
    }

    /// Also listens on a TCP port of 127.0.0.1.
    pub fn tcp(mut self) -> Self {
        self.tcp = true;
        self
    }

    /// Runs initdb without starting the server.
    pub fn create(self) -> Pg {
        let mut pg = Pg::place(self.major, self.tcp);
        pg.options = self.options;
        let mut initdb = pg.command("initdb");
        initdb.arg("-D").arg(&pg.data_dir).args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
        ]);
        run(initdb.args(&self.initdb));
        if !self.hba.is_empty() {
            let trusting = fs::read_to_string(pg.data_dir.join("pg_hba.conf")).unwrap();
            pg.write("pg_hba.conf", format!("{}\n{trusting}", self.hba.join("\n")).as_bytes(), 0o600);
        }
        pg
    }

    /// Runs initdb and starts the server.
    pub fn start(self) -> Pg {
        let mut pg = self.create();
        pg.start_again();
        pg
    }
}

/// A private server. Dropping it ends the server and removes its files.
#[derive(Debug)]
pub struct Pg {
    major: u32,
    dir: TempDir,
    data_dir: PathBuf,
    port: u16,
    tcp: Option<Port>,
    options: Vec<(String, String)>,
    env: Vec<(String, String)>,
    server: Option<Process>,
}

impl Pg {
    /// A fresh server with checksums on.
    pub fn start(major: u32) -> Pg {
        Pg::builder(major).start()
    }

    /// What to make a fresh server with.
    pub fn builder(major: u32) -> PgBuilder {
        let initdb = vec!["--data-checksums".to_owned()];
        PgBuilder { major, options: Vec::new(), initdb, hba: Vec::new(), tcp: false }
    }

    /// A server over `data_dir`, made elsewhere (restored, say); not started. The directory is given to the server's user, and
    /// is not removed at the end.
    pub fn adopt(major: u32, data_dir: &Path) -> Pg {
        let mut pg = Pg::place(major, false);
        pg.data_dir = data_dir.to_owned();
        give_to_postgres(data_dir);
        pg
    }

    fn place(major: u32, tcp: bool) -> Pg {
        let dir = temp_dir();
        for name in ["data", "socket"] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(0o700)).unwrap();
        }
        give_to_postgres(&dir.path().join("data"));
        give_to_postgres(&dir.path().join("socket"));
        let tcp = tcp.then(Port::reserve);
        let port = tcp.as_ref().map_or(5432, Port::number);
        let data_dir = dir.path().join("data");
        Pg { major, dir, data_dir, port, tcp, options: Vec::new(), env: Vec::new(), server: None }
    }

    /// Its major version.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// Its data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The directory of its unix socket.
    pub fn socket_dir(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// A directory that lives as long as the server and belongs to its user; `name` is made when absent. For tablespaces.
    pub fn side_dir(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir_all(&path).unwrap();
        give_to_postgres(&path);
        path
    }

    /// The number in its socket's name, and its TCP port if it has one.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A connection string over its unix socket, as `postgres`.
    pub fn conninfo(&self) -> String {
        format!("host={} port={} user=postgres dbname=postgres", self.socket_dir().display(), self.port)
    }

    /// The same over TCP. The server was built with [`PgBuilder::tcp`].
    pub fn tcp_conninfo(&self) -> String {
        assert!(self.tcp.is_some(), "this server has no TCP port");
        format!("host=127.0.0.1 port={} user=postgres dbname=postgres", self.port)
    }

    /// The postmaster's process id. The server runs.
    pub fn pid(&self) -> u32 {
        self.server.as_ref().expect("the server runs").pid()
    }

    /// Whether the postmaster runs.
    pub fn is_running(&mut self) -> bool {
        self.server.as_mut().is_some_and(|server| server.try_wait().is_none())
    }

    /// A path of one of its programs.
    pub fn binary(&self, program: &str) -> PathBuf {
        binary(self.major, program)
    }

    /// One of its programs, run as its user, with PGHOST and the like set.
    pub fn command(&self, program: &str) -> Command {
        let binary = self.binary(program);
        let mut command = postgres_command(&binary);
        // The WAL receiver's library finds its own libpq, not an older one of the system.
        command.env("LD_LIBRARY_PATH", binary.parent().unwrap().with_file_name("lib"));
        command.env("PGHOST", self.socket_dir()).env("PGPORT", self.port.to_string());
        command.env("PGUSER", "postgres").env("PGDATABASE", "postgres");
        command
    }

    /// Everything the server logged.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// Writes a file of the data directory, owned by the server's user.
    pub fn write(&self, name: &str, bytes: &[u8], mode: u32) {
        let path = self.data_dir.join(name);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        if is_root() {
            let owner = fs::metadata(&self.data_dir).unwrap();
            use std::os::unix::fs::MetadataExt;
            chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
        }
    }

    /// Sets an option for the next start (on the command line, so it wins over every file).
    pub fn set_option(&mut self, name: &str, value: &str) {
        self.options.retain(|(known, _)| known != name);
        self.options.push((name.to_owned(), value.to_owned()));
    }

    /// Sets a variable of the server's environment for the next start.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.env.push((name.to_owned(), value.to_owned()));
    }

    /// Starts the stopped server; panics with its log when it does not come up.
    pub fn start_again(&mut self) {
        if let Err(why) = self.try_start() {
            panic!("PostgreSQL {} did not start: {why}", self.major);
        }
    }

    /// Starts the stopped server and waits until it takes connections; says why not, with its log.
    pub fn try_start(&mut self) -> Result<(), String> {
        self.launch();
        self.wait_ready(START_LIMIT)
    }

    /// Starts the stopped server without waiting for it.
    pub fn launch(&mut self) {
        assert!(!self.is_running(), "the server runs already");
        let mut command = self.command("postgres");
        command.arg("-D").arg(&self.data_dir);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        let listen = if self.tcp.is_some() { "127.0.0.1" } else { "" };
        let own = [
            ("listen_addresses", listen),
            ("port", &self.port.to_string()),
            ("unix_socket_directories", &self.socket_dir().display().to_string()),
            ("fsync", "off"),
            ("shared_buffers", "32MB"),
            ("log_timezone", "UTC"),
            ("logging_collector", "off"),
            ("log_line_prefix", "%m [%p] %a "),
        ];
        for (name, value) in own {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        for (name, value) in &self.options {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path()).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.server = Some(Process::start(command));
    }

    /// Waits until the launched server takes connections; says why not, with its log.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<(), String> {
        let mut ended = None;
        let pid = self.pid().to_string();
        let ready = wait_until(limit, || {
            ended = self.server.as_mut().and_then(Process::try_wait);
            ended.is_some()
                || self.status_line(&pid).is_some_and(|status| matches!(status.as_str(), "ready" | "standby"))
        });
        match ended {
            Some(status) => Err(format!("it ended with {status}\n{}", self.log())),
            None if ready => Ok(()),
            None => Err(format!("not ready after {limit:?}\n{}", self.log())),
        }
    }

    /// The status in postmaster.pid (its line 8), if the file is of process `pid`.
    fn status_line(&self, pid: &str) -> Option<String> {
        let file = fs::read_to_string(self.data_dir.join("postmaster.pid")).ok()?;
        let mut lines = file.lines();
        (lines.next()? == pid).then_some(())?;
        Some(lines.nth(6)?.trim().to_owned())
    }

    /// Stops the running server and waits until all its processes are gone.
    pub fn stop(&mut self, how: Stop) {
        self.signal(how);
        let limit = STOP_LIMIT;
        assert!(
            self.wait_stopped(limit),
            "PostgreSQL {} did not stop within {limit:?}\n{}",
            self.major,
            self.log()
        );
    }

    /// Asks the running server to stop; does not wait.
    pub fn signal(&self, how: Stop) {
        use rustix::process::Signal;
        signal_pid(
            self.pid(),
            match how {
                Stop::Smart => Signal::TERM,
                Stop::Fast => Signal::INT,
                Stop::Immediate => Signal::QUIT,
                Stop::Kill => Signal::KILL,
            },
        );
    }

    /// Waits until the server and its children are gone, at most `limit`.
    pub fn wait_stopped(&mut self, limit: Duration) -> bool {
        let Some(server) = self.server.as_mut() else { return true };
        let end = Instant::now() + limit;
        if server.wait(limit).is_none() {
            return false;
        }
        self.server = None;
        // Children of a killed postmaster hold the shared memory for a moment more; their current directory is the data directory.
        wait_until(end.saturating_duration_since(Instant::now()), || !anyone_in(&self.data_dir))
    }

    /// Stops and starts it.
    pub fn restart(&mut self, how: Stop) {
        self.stop(how);
        self.start_again();
    }

    /// Runs SQL with psql; rows on lines, fields joined by `|`. Panics with what the server said.
    pub fn sql(&self, sql: &str) -> String {
        match self.try_sql(sql) {
            Ok(rows) => rows,
            Err(why) => panic!("PostgreSQL {}: {why}\nin: {sql}", self.major),
        }
    }

    /// Runs SQL with psql; what the server said on failure. Every statement commits by itself.
    pub fn try_sql(&self, sql: &str) -> Result<String, String> {
        self.try_sql_in("postgres", sql)
    }

    /// As [`Pg::try_sql`], in another database.
    pub fn try_sql_in(&self, database: &str, sql: &str) -> Result<String, String> {
        let mut psql = self.command("psql");
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database, "-f", "-"]).stdin(Stdio::piped());
        let mut child = psql.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let sql = sql.to_owned();
        let feeder = std::thread::spawn(move || io::Write::write_all(&mut stdin, sql.as_bytes()).ok());
        let output = child.wait_with_output().unwrap();
        feeder.join().unwrap();
        if output.status.success() {
            Ok(String::from_utf8(output.stdout).unwrap().trim_end_matches('\n').to_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// Runs SQL again and again until it answers `expected`; panics after `limit`.
    pub fn wait_for(&self, sql: &str, expected: &str, limit: Duration) {
        let mut last = String::new();
        let done = wait_until(limit, || {
            last = self.try_sql(sql).unwrap_or_else(|why| why);
            last == expected
        });
        assert!(done, "{sql}: still {last:?} after {limit:?}, expected {expected:?}\n{}", self.log());
    }

    /// Waits until the receiver of the cluster `shop` has acknowledged all that was written up to now.
    pub fn wait_archived(&self, limit: Duration) {
        let end = self.sql("SELECT pg_current_wal_flush_lsn()");
        let query = format!(
            "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'walden_shop' AND flush_lsn >= '{end}'"
        );
        self.wait_for(&query, "1", limit);
    }

    /// Where the server's WAL ends (written, on a standby: replayed), as text.
    pub fn wal_lsn(&self) -> String {
        self.sql(
            "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END",
        )
    }

    /// A hot standby, made with pg_basebackup and streaming from this server.
    pub fn standby(&self) -> Pg {
        let mut standby = Pg::place(self.major, self.tcp.is_some());
        standby.options.clone_from(&self.options);
        let mut copy = self.command("pg_basebackup");
        run(copy.arg("-D").arg(&standby.data_dir).args(["-X", "stream", "-c", "fast", "-R", "--no-sync"]));
        standby.start_again();
        standby
    }

    /// Ends a standby's recovery and waits for it.
    pub fn promote(&self) {
        assert_eq!(self.sql("SELECT pg_promote()"), "t");
    }

    /// Starts one of its programs (`pgbench`, say) in the background; killed when dropped.
    pub fn spawn(&self, program: &str, args: &[&str]) -> Process {
        let log =
            fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("programs")).unwrap();
        let mut command = self.command(program);
        command.args(args).stdout(log.try_clone().unwrap()).stderr(log);
        Process::start(command)
    }
}

impl Drop for Pg {
    fn drop(&mut self) {
        if self.is_running() {
            self.signal(Stop::Immediate);
            if !self.wait_stopped(Duration::from_secs(10)) {
                self.signal(Stop::Kill);
                self.wait_stopped(Duration::from_secs(10));
            }
        }
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(25).collect();
            let mut text = format!("--- the end of the log of PostgreSQL {}\n", self.major);
            tail.iter().rev().for_each(|line| writeln!(text, "{line}").unwrap());
            eprint!("{text}");
        }
    }
}

/// Whether a process has `dir` as its current directory.
fn anyone_in(dir: &Path) -> bool {
    let Ok(dir) = dir.canonicalize() else { return false };
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes.filter_map(|entry| fs::read_link(entry.path().join("cwd")).ok()).any(|cwd| cwd == dir)
}

/// Runs a command to its end; panics with what it said when it fails.
pub fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    if !output.status.success() {
        let said =
            [String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)].concat();
        panic!("{command:?} ended with {}: {said}", output.status);
    }
    output
}
