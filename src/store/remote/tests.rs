//! What is sent and what is made of the answer, against a server that answers what it is told. The real servers' turn is in
//! tests/store.rs.

use super::*;
use crate::store::{Credentials, open};
use std::sync::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What the server does with a request.
#[derive(Debug, Clone)]
enum Answer {
    Say(u16, &'static str),
    /// Cuts the connection once the request is read.
    Cut,
    /// Never answers.
    Hang,
}

/// A server with one answer for everything, which keeps what it was sent.
struct Server {
    port: u16,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn start(answer: Answer) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let server = Server { port, seen: seen.clone() };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, answer.clone(), seen.clone()));
            }
        });
        server
    }

    fn store(&self, scheme: &str) -> Arc<dyn Store> {
        let account = if scheme == "az" { "/account" } else { "" };
        let url = format!(
            "{scheme}://bucket/a/b?endpoint=http://127.0.0.1:{}{account}&allow_http=true&region=us-east-1",
            self.port
        );
        let credentials = match scheme {
            "gs" => Credentials::Anonymous,
            _ => Credentials::AccessKey {
                id: "account".into(),
                secret: zeroize::Zeroizing::new("c2VjcmV0".into()),
                session_token: None,
            },
        };
        let request_timeout = Duration::from_millis(500);
        open(&url, &StoreOptions { credentials, request_timeout, ..StoreOptions::default() }).unwrap()
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

async fn serve(mut stream: TcpStream, answer: Answer, seen: Arc<Mutex<Vec<String>>>) {
    let mut bytes = Vec::new();
    loop {
        let whole = String::from_utf8_lossy(&bytes).split_once("\r\n\r\n").is_some_and(|(head, body)| {
            let head = head.to_ascii_lowercase();
            let len =
                head.split_once("content-length: ").and_then(|(_, l)| l.split("\r\n").next()?.parse().ok());
            body.len() >= len.unwrap_or(0)
        });
        if whole {
            seen.lock().unwrap().push(String::from_utf8_lossy(&bytes).into_owned());
            bytes.clear();
            match answer {
                Answer::Cut => return,
                Answer::Hang => std::future::pending().await,
                Answer::Say(status, body) => {
                    let len = body.len();
                    let etag = "ETag: \"e\"\r\nLast-Modified: Sun, 22 Nov 2026 19:55:01 GMT";
                    let said =
                        format!("HTTP/1.1 {status} Said\r\n{etag}\r\nContent-Length: {len}\r\n\r\n{body}");
                    stream.write_all(said.as_bytes()).await.unwrap();
                }
            }
        }
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
    }
}

fn key() -> ObjectKey {
    ObjectKey::new("wal/1").unwrap()
}

fn kind(error: StoreError) -> String {
    format!("{error:?}").split([' ', '{']).next().unwrap_or_default().to_owned()
}

async fn create(answer: Answer) -> (String, usize) {
    let server = Server::start(answer).await;
    let created = server.store("s3").create(&key(), Bytes::from_static(b"body")).await;
    (created.map_or_else(kind, |()| "ok".into()), server.seen().len())
}

#[tokio::test]
async fn answers_to_a_create_are_sorted_by_the_next_move_and_never_asked_for_twice() {
    let say = |status, body| Answer::Say(status, body);
    let conflict = "<Error><Code>ConditionalRequestConflict</Code></Error>";
    let table = [
        (say(200, ""), "ok"),
        (say(412, "<Error><Code>PreconditionFailed</Code></Error>"), "AlreadyExists"),
        (say(409, "<Error><Code>BlobAlreadyExists</Code></Error>"), "AlreadyExists"),
        (say(409, conflict), "Unknown"),
        (say(304, ""), "AlreadyExists"),
        (say(404, "<Error><Code>NoSuchBucket</Code></Error>"), "Url"),
        (say(404, ""), "Unknown"),
        (say(401, ""), "Denied"),
        (say(403, "<Error><Code>AccessDenied</Code></Error>"), "Denied"),
        (say(403, "<Error><Code>RequestTimeTooSkewed</Code></Error>"), "Unknown"),
        (say(403, "<Error><Code>QuotaExceeded</Code></Error>"), "NoSpace"),
        (say(400, "<Error><Code>ExpiredToken</Code></Error>"), "Denied"),
        (say(301, ""), "Url"),
        (say(408, ""), "Unknown"),
        (say(429, ""), "Unknown"),
        (say(500, "<Error><Code>InternalError</Code></Error>"), "Unknown"),
        (say(501, "<Error><Code>NotImplemented</Code></Error>"), "Unfit"),
        (say(503, "<Error><Code>SlowDown</Code></Error>"), "Unknown"),
        (say(507, ""), "NoSpace"),
        (say(500, "<Error><Code>XMinioStorageFull</Code></Error>"), "NoSpace"),
        (Answer::Cut, "Unknown"),
        (Answer::Hang, "Unknown"),
    ];
    for (answer, expected) in table {
        assert_eq!(create(answer.clone()).await, (expected.to_owned(), 1), "{answer:?}");
    }
}

#[tokio::test]
async fn a_create_asks_for_what_it_rests_on() {
    for (scheme, condition, place) in [
        ("s3", "if-none-match: *", "PUT /bucket/a/b/wal/1 "),
        ("gs", "x-goog-if-generation-match: 0", "PUT /bucket/a%2Fb%2Fwal%2F1 "),
        ("az", "if-none-match: *", "PUT /account/bucket/a/b/wal/1 "),
    ] {
        let server = Server::start(Answer::Say(if scheme == "az" { 201 } else { 200 }, "")).await;
        server.store(scheme).create(&key(), Bytes::from_static(b"body")).await.unwrap();
        let seen = server.seen();
        assert!(seen[0].starts_with(place), "{scheme}: {}", seen[0]);
        assert!(seen[0].to_ascii_lowercase().contains(condition), "{scheme}: {}", seen[0]);
        assert!(seen[0].ends_with("\r\n\r\nbody"));
    }
}

#[tokio::test]
async fn reads_are_repeated_and_sorted() {
    let ask = async |answer: Answer| {
        let server = Server::start(answer).await;
        let got = server.store("s3").get(&key()).await.map_or_else(kind, |_| "ok".into());
        (got, server.seen().len())
    };
    assert_eq!(ask(Answer::Say(200, "body")).await, ("ok".into(), 1));
    assert_eq!(ask(Answer::Say(404, "")).await, ("NotFound".into(), 1));
    assert_eq!(ask(Answer::Say(404, "<Code>NoSuchBucket</Code>")).await, ("Url".into(), 1));
    assert_eq!(ask(Answer::Say(403, "")).await, ("Denied".into(), 1));
    assert_eq!(ask(Answer::Say(503, "")).await, ("Unknown".into(), 1 + READ_RETRIES_MAX));
    assert_eq!(ask(Answer::Cut).await, ("Unknown".into(), 1 + READ_RETRIES_MAX));
}

#[tokio::test]
async fn a_range_past_the_end_is_short() {
    let server = Server::start(Answer::Say(416, "<Code>InvalidRange</Code>")).await;
    let refused = server.store("s3").get_range(&key(), 5..9).await;
    assert!(matches!(refused, Err(StoreError::Short { wanted: 9, .. })), "{refused:?}");
}

#[tokio::test]
async fn a_removal_of_nothing_is_fine_and_a_locked_object_is_not() {
    for (status, expected) in [(204, "ok"), (404, "ok"), (403, "Denied")] {
        let server = Server::start(Answer::Say(status, "")).await;
        let deleted = server.store("s3").delete(&key()).await.map_or_else(kind, |()| "ok".into());
        assert_eq!(deleted, expected, "{status}");
    }
}

#[tokio::test]
async fn a_single_writer_looks_before_it_writes() {
    let server = Server::start(Answer::Say(200, "")).await;
    let credentials = Credentials::Anonymous;
    let options = StoreOptions { single_writer: true, credentials, ..StoreOptions::default() };
    let url = format!("s3://bucket?endpoint=http://127.0.0.1:{}&allow_http=true", server.port);
    let store = open(&url, &options).unwrap();
    let refused = store.create(&key(), Bytes::from_static(b"body")).await;
    assert!(matches!(refused, Err(StoreError::AlreadyExists { .. })), "{refused:?}");
    assert!(server.seen()[0].starts_with("HEAD ") && server.seen().len() == 1);
}

#[tokio::test]
async fn nobody_there_is_an_unknown_outcome() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Server { port: listener.local_addr().unwrap().port(), seen: Arc::default() };
    drop(listener);
    let refused = server.store("s3").create(&key(), Bytes::new()).await;
    assert!(matches!(refused, Err(StoreError::Unknown { .. })), "{refused:?}");
}

#[test]
fn plain_http_is_asked_for_by_name() {
    let refused = open("s3://b?endpoint=http://127.0.0.1:1", &StoreOptions::default()).unwrap_err();
    assert!(refused.to_string().contains("allow_http"), "{refused}");
}
