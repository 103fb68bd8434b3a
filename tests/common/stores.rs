//! Real object stores on 127.0.0.1, each with a bucket, ended with the value that stands for it. SeaweedFS must be there (tools/setup);
//! the others are tested when tools/setup-stores.sh has installed them. None stands in for Google: its emulators do not speak
//! the XML requests that `object_store` sends; those are held against a server of canned answers, in src/store/remote/tests.rs.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use walden::store::{Credentials, StoreOptions};
use zeroize::Zeroizing;

/// How long a server may take until it serves.
const START_TIME_MAX: Duration = Duration::from_secs(60);
/// The key of azurite's only account; everybody's (Microsoft documents it).
const AZURITE_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// A running store.
#[derive(Debug)]
pub struct StoreServer {
    _process: Process,
    /// The bucket's URL; prefixes are appended before the `?` by [`StoreServer::url`].
    bucket: String,
    query: String,
    credentials: Credentials,
    /// Environment for programs that are to reach it, secrets included.
    pub env: Vec<(&'static str, String)>,
    _dir: TempDir,
}

/// A server's process, ended when dropped, also by the failure of whatever was to follow its start.
#[derive(Debug)]
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // SeaweedFS takes 17 s to end when asked kindly.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl StoreServer {
    /// The URL of a repository under `prefix`.
    pub fn url(&self, prefix: &str) -> String {
        format!("{}/{prefix}?{}", self.bucket, self.query)
    }

    /// The options that go with it.
    pub fn options(&self) -> StoreOptions {
        StoreOptions { credentials: self.credentials.clone(), ..StoreOptions::default() }
    }

    /// SeaweedFS's S3, required: it checks signatures, and creates conditionally without fault.
    pub fn seaweedfs() -> StoreServer {
        let weed = cache().join("bin/weed");
        assert!(weed.exists(), "{} is missing; run tools/setup", weed.display());
        let dir = tempfile::tempdir().unwrap();
        let identity = r#"{"identities":[{"name":"t","credentials":[{"accessKey":"testkey","secretKey":"testsecret"}],
            "actions":["Admin","Read","Write","List","Tagging"]}]}"#;
        std::fs::write(dir.path().join("s3.json"), identity).unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        let ports = free_ports(8);
        let mut command = Command::new(weed);
        command.current_dir(dir.path()).args(["server", "-dir=data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]);
        command.args(["-master.telemetry=false", "-master.electionTimeout=1s", "-volume.preStopSeconds=0"]);
        command.args([
            "-volume.max=0",
            "-master.volumeSizeLimitMB=256",
            "-filer",
            "-s3",
            "-s3.config=s3.json",
        ]);
        command.args(["-s3.port.iceberg=0", "-s3.port.lance=0"]);
        let names = ["master.port", "master.port.grpc", "volume.port", "volume.port.grpc"];
        let names = names.iter().chain(&["filer.port", "filer.port.grpc", "s3.port", "s3.port.grpc"]);
        command.args(names.zip(&ports).map(|(name, port)| format!("-{name}={port}")));
        let process = start(&mut command, dir.path());
        let (filer, s3) = (ports[4], ports[6]);
        // A folder of the filer is a bucket. The volume servers come last, so an object must be taken as well.
        wait_until("SeaweedFS", || {
            ask(filer, "POST", "/buckets/walden/", "") && ask(filer, "PUT", "/buckets/walden/ready", "x")
        });
        wait_until("SeaweedFS's S3", || TcpStream::connect(("127.0.0.1", s3)).is_ok());
        ask(filer, "DELETE", "/buckets/walden/ready", "");
        StoreServer::s3(process, s3, dir)
    }

    /// moto: fast, and checks little.
    pub fn moto() -> Option<StoreServer> {
        let home = installed("moto")?;
        let (dir, port) = (tempfile::tempdir().unwrap(), free_ports(1)[0]);
        let mut command = python(&home);
        command.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()]);
        let process = start(&mut command, dir.path());
        wait_until("moto", || ask(port, "PUT", "/walden", ""));
        Some(StoreServer::s3(process, port, dir))
    }

    /// nanio: ignores the condition of a conditional create.
    pub fn nanio() -> Option<StoreServer> {
        let home = installed("nanio")?;
        let (dir, port) = (tempfile::tempdir().unwrap(), free_ports(1)[0]);
        std::fs::create_dir_all(dir.path().join("data/walden")).unwrap();
        let mut command = python(&home);
        command.env("NANIO_ACCESS_KEY", "testkey").env("NANIO_SECRET_KEY", "testsecret");
        command.args(["-m", "nanio", "serve", "--host", "127.0.0.1", "--no-access-log"]);
        command.args(["--port", &port.to_string(), "--data-dir"]).arg(dir.path().join("data"));
        let process = start(&mut command, dir.path());
        wait_until("nanio", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Some(StoreServer::s3(process, port, dir))
    }

    /// azurite.
    pub fn azure() -> Option<StoreServer> {
        let home = installed("azurite")?;
        let (dir, port) = (tempfile::tempdir().unwrap(), free_ports(1)[0]);
        let mut command = Command::new(home.join("node_modules/.bin/azurite-blob"));
        command.args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string(), "-l"]).arg(dir.path());
        command.args(["--silent", "--disableTelemetry", "--skipApiVersionCheck"]);
        let process = start(&mut command, dir.path());
        wait_until("azurite", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        create_container(port);
        let (id, secret) = ("devstoreaccount1".to_owned(), AZURITE_KEY.to_owned());
        let query = format!("endpoint=http://127.0.0.1:{port}/{id}&allow_http=true");
        let env =
            vec![("AZURE_STORAGE_ACCOUNT_NAME", id.clone()), ("AZURE_STORAGE_ACCOUNT_KEY", secret.clone())];
        let credentials = Credentials::AccessKey { id, secret: Zeroizing::new(secret), session_token: None };
        Some(StoreServer {
            _process: process,
            bucket: "az://walden".to_owned(),
            query,
            credentials,
            env,
            _dir: dir,
        })
    }

    fn s3(process: Process, port: u16, dir: TempDir) -> StoreServer {
        let (id, secret) = ("testkey".to_owned(), "testsecret".to_owned());
        let query = format!("endpoint=http://127.0.0.1:{port}&allow_http=true&region=us-east-1");
        let env = vec![("AWS_ACCESS_KEY_ID", id.clone()), ("AWS_SECRET_ACCESS_KEY", secret.clone())];
        let credentials = Credentials::AccessKey { id, secret: Zeroizing::new(secret), session_token: None };
        StoreServer {
            _process: process,
            bucket: "s3://walden".to_owned(),
            query,
            credentials,
            env,
            _dir: dir,
        }
    }
}

/// As tools/lib.sh has it.
fn cache() -> PathBuf {
    let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(cache) = var("WALDEN_CACHE") {
        return cache;
    }
    match rustix::process::getuid().is_root() {
        true => "/var/cache/walden".into(),
        false => var("XDG_CACHE_HOME").unwrap_or_else(|| var("HOME").unwrap().join(".cache")).join("walden"),
    }
}

/// Where store `name` is; `None`, and a word about it, when it is not installed.
fn installed(name: &str) -> Option<PathBuf> {
    let homes = std::env::var_os("WALDEN_STORES_HOME").map_or_else(|| cache().join("stores"), PathBuf::from);
    let home = homes.join(name);
    if !home.exists() {
        eprintln!("skipped: {} is missing; tools/setup-stores.sh {name} installs it", home.display());
        return None;
    }
    Some(home)
}

fn python(home: &Path) -> Command {
    let mut command = Command::new("python3");
    command.env("PYTHONPATH", home);
    command
}

/// Starts a server with its output in `dir`.
fn start(command: &mut Command, dir: &Path) -> Process {
    let log =
        || Stdio::from(std::fs::File::options().create(true).append(true).open(dir.join("log")).unwrap());
    Process(command.stdin(Stdio::null()).stdout(log()).stderr(log()).spawn().unwrap())
}

fn wait_until(what: &str, mut serves: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !serves() {
        assert!(begun.elapsed() < START_TIME_MAX, "{what} does not serve after {START_TIME_MAX:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Asks a server on this host, and says whether it answered with success.
fn ask(port: u16, method: &str, path: &str, body: &str) -> bool {
    let answer = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let len = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {len}"
        );
        stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    answer().is_ok_and(|answer| answer.split(' ').nth(1).is_some_and(|status| status.starts_with('2')))
}

/// Azure wants a signature even for this; Python brings HMAC along.
fn create_container(port: u16) {
    let script = format!(
        r#"
import base64, email.utils, hashlib, hmac, urllib.request
date = email.utils.formatdate(usegmt=True)
headers = "x-ms-date:" + date + "\nx-ms-version:2021-12-02\n"
place = "/devstoreaccount1/devstoreaccount1/walden\nrestype:container"
text = "PUT\n\n\n\n\n\n\n\n\n\n\n\n" + headers + place
key = base64.b64decode("{AZURITE_KEY}")
sign = base64.b64encode(hmac.new(key, text.encode(), hashlib.sha256).digest()).decode()
url = "http://127.0.0.1:{port}/devstoreaccount1/walden?restype=container"
ask = urllib.request.Request(url, method="PUT", headers={{
    "x-ms-date": date, "x-ms-version": "2021-12-02", "Content-Length": "0",
    "Authorization": "SharedKey devstoreaccount1:" + sign}})
urllib.request.urlopen(ask).read()
"#
    );
    let made = Command::new("python3").args(["-c", &script]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// Ports that nobody listens on; held together while they are drawn, so that they differ.
fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}
