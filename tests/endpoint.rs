//! `endpoint` and `region` of the configuration file reach the store, whichever program asks.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::thread;

/// A service that refuses everything, and the head of the first request that it got.
fn refusing() -> (u16, thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") && client.read(&mut byte).unwrap() == 1 {
            head.push(byte[0]);
        }
        client
            .write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            .unwrap();
        String::from_utf8(head).unwrap()
    });
    (port, serving)
}

/// What the service of the configuration file is asked by `program`.
fn asked(program: &str, args: &[&str]) -> String {
    let (port, serving) = refusing();
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("walden.toml");
    let table = format!(
        "[repository.main]\nurl = \"s3://bucket/prefix?allow_http=true\"\n\
         endpoint = \"http://127.0.0.1:{port}\"\nregion = \"eu-7\"\n"
    );
    fs::write(&config, table).unwrap();
    let output = Command::new(program)
        .env_clear()
        .env("AWS_ACCESS_KEY_ID", "id")
        .env("AWS_SECRET_ACCESS_KEY", "secret")
        .args(args)
        .arg("--config")
        .arg(&config)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(9), "{told}");
    serving.join().unwrap()
}

#[test]
fn walden_asks_the_endpoint_of_the_configuration_file() {
    let head = asked(env!("CARGO_BIN_EXE_walden"), &["verify", "--no-key"]);
    assert!(head.starts_with("GET /bucket/prefix/walden "), "{head}");
    assert!(head.contains("/eu-7/s3/aws4_request"), "{head}");
}

#[test]
fn inspect_asks_the_endpoint_of_the_configuration_file() {
    let head = asked(env!("CARGO_BIN_EXE_walden-inspect"), &["keys/main"]);
    assert!(head.starts_with("GET /bucket/prefix/keys/main "), "{head}");
    assert!(head.contains("/eu-7/s3/aws4_request"), "{head}");
}
