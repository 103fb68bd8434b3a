//! What walden needs of a store, asked of every backend.

use super::*;
use futures_util::future::join_all;
use std::sync::Arc;
use walden::store::{StoreOptions, open};

/// Bytes of a large object: as a flush object at its fullest, and more than one buffer of anybody's.
const LARGE_BYTES: usize = 8 << 20;

/// A store under its own prefix of a server.
fn on(server: &StoreServer, prefix: &str) -> Arc<dyn Store> {
    open(&server.url(prefix), &server.options()).unwrap()
}

/// Everything, once.
async fn conforms(store: Arc<dyn Store>) {
    probe_start(&*store, &Chance).await.unwrap();
    probe_init(&*store, &Chance).await.unwrap();
    creates_once(&*store).await;
    reads_back(&*store).await;
    lists(&*store).await;
    deletes(&*store).await;
    takes_many_at_once(store.clone()).await;
    for meta in store.list("").await.unwrap() {
        store.delete(&meta.key).await.unwrap();
    }
    assert!(store.list("").await.unwrap().is_empty());
}

async fn creates_once(store: &dyn Store) {
    let name = key("clusters/shop/roots/00000000000000000001");
    store.create(&name, Bytes::from_static(b"one")).await.unwrap();
    for body in ["one", "two", ""] {
        let again = store.create(&name, Bytes::from_static(body.as_bytes())).await;
        assert!(matches!(&again, Err(StoreError::AlreadyExists { key }) if *key == name), "{again:?}");
    }
    assert_eq!(store.get(&name).await.unwrap(), "one");
    store.create(&key("empty"), Bytes::new()).await.unwrap();
    assert_eq!(store.get(&key("empty")).await.unwrap(), "");
    // A name and one below it, as a segment and a folder of the same name would be, never meet in a repository; siblings do.
    store
        .create(&key("clusters/shop/roots/00000000000000000002"), Bytes::from_static(b"next"))
        .await
        .unwrap();
}

async fn reads_back(store: &dyn Store) {
    let (name, body) = (key("clusters/shop/wal/s/1"), body(LARGE_BYTES));
    store.create(&name, body.clone()).await.unwrap();
    assert_eq!(store.get(&name).await.unwrap(), body);
    let len = body.len() as u64;
    for range in [0..1, 0..len, len - 1..len, 4095..4097, 1_000_000..7_000_000, 5..5] {
        let found = store.get_range(&name, range.clone()).await.unwrap();
        assert_eq!(found, body.slice(range.start as usize..range.end as usize), "{range:?}");
    }
    for end in [len + 1, len + LARGE_BYTES as u64] {
        for start in [0, len - 1, len, len + 1] {
            if start < end {
                let short = store.get_range(&name, start..end).await;
                assert!(
                    matches!(short, Err(StoreError::Short { wanted, .. }) if wanted == end),
                    "{start}..{end}: {short:?}"
                );
            }
        }
    }
    let meta = store.head(&name).await.unwrap();
    assert_eq!((meta.key, meta.len), (name, len));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as i64;
    assert!((now - meta.modified_unix_micros).abs() < 600_000_000, "Last-Modified is off by minutes");
    let none = key("clusters/shop/wal/s/2");
    let answers = [
        store.get(&none).await.map(drop),
        store.get_range(&none, 0..1).await.map(drop),
        store.get_range(&none, 0..0).await.map(drop),
        store.head(&none).await.map(drop),
    ];
    for answer in answers {
        assert!(matches!(&answer, Err(StoreError::NotFound { key }) if *key == none), "{answer:?}");
    }
}

async fn lists(store: &dyn Store) {
    for name in ["list/a/1", "list/a/2", "list/ab/1", "list/b"] {
        store.create(&key(name), Bytes::from_static(b"xyz")).await.unwrap();
    }
    let names = async |prefix: &str| {
        let found = store.list(prefix).await.unwrap();
        found.into_iter().map(|meta| meta.key.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names("list").await, ["list/a/1", "list/a/2", "list/ab/1", "list/b"]);
    assert_eq!(names("list/a").await, ["list/a/1", "list/a/2"]);
    assert!(names("none").await.is_empty() && names("list/a/1").await.is_empty());
    let (all, listed) = (names("").await, store.list("list/a").await.unwrap());
    assert!(all.contains(&"list/b".to_owned()) && all.contains(&"clusters/shop/wal/s/1".to_owned()));
    let head = store.head(&key("list/a/1")).await.unwrap();
    assert_eq!(listed[0].len, 3);
    // Some stores round what a head says to seconds.
    assert!((head.modified_unix_micros - listed[0].modified_unix_micros).abs() <= 1_000_000);
}

async fn deletes(store: &dyn Store) {
    let name = key("list/a/1");
    store.delete(&name).await.unwrap();
    assert!(matches!(store.get(&name).await, Err(StoreError::NotFound { .. })));
    store.delete(&name).await.unwrap();
    store.delete(&key("never/there")).await.unwrap();
    store.create(&name, Bytes::from_static(b"again")).await.unwrap();
    assert_eq!(store.get(&name).await.unwrap(), "again");
}

async fn takes_many_at_once(store: Arc<dyn Store>) {
    let jobs = (0..150).map(|number| {
        let store = store.clone();
        tokio::spawn(async move {
            let (name, body) = (key(&format!("many/{number:03}")), body(1000 + number));
            store.create(&name, body.clone()).await.unwrap();
            assert_eq!(store.get_range(&name, 3..900).await.unwrap(), body.slice(3..900));
        })
    });
    for job in join_all(jobs).await {
        job.unwrap();
    }
    assert_eq!(store.list("many").await.unwrap().len(), 150);
}

fn body(len: usize) -> Bytes {
    (0..len).map(|at| (at as u32).wrapping_mul(0x9E37_79B1).to_be_bytes()[0]).collect()
}

/// A prefix of a prefix and a sibling see nothing of each other.
async fn keeps_prefixes_apart(server: &StoreServer) {
    let (inner, outer, sibling) = (on(server, "a/b"), on(server, "a"), on(server, "ab"));
    inner.create(&key("walden"), Bytes::from_static(b"inner")).await.unwrap();
    assert!(matches!(outer.get(&key("walden")).await, Err(StoreError::NotFound { .. })));
    assert_eq!(outer.get(&key("b/walden")).await.unwrap(), "inner");
    assert!(sibling.list("").await.unwrap().is_empty());
    assert_eq!(inner.list("").await.unwrap()[0].key, key("walden"));
    inner.delete(&key("walden")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("file://{}", dir.path().join("a repository").display()).replace(' ', "%20");
    conforms(open(&url, &StoreOptions::default()).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seaweedfs() {
    let server = StoreServer::seaweedfs();
    conforms(on(&server, "x/repository")).await;
    keeps_prefixes_apart(&server).await;
    let stranger = Credentials::AccessKey {
        id: "testkey".into(),
        secret: zeroize::Zeroizing::new("wrong".into()),
        session_token: None,
    };
    let options = StoreOptions { credentials: stranger, ..StoreOptions::default() };
    let refused = open(&server.url("x"), &options).unwrap().create(&key("a"), Bytes::new()).await;
    assert!(matches!(refused, Err(StoreError::Denied { .. })), "{refused:?}");
    let elsewhere = server.url("x").replace("s3://walden", "s3://nowhere");
    let refused = open(&elsewhere, &server.options()).unwrap().get(&key("walden")).await;
    assert!(matches!(refused, Err(StoreError::Url { .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moto() {
    let Some(server) = StoreServer::moto() else { return };
    conforms(on(&server, "x")).await;
    keeps_prefixes_apart(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure() {
    let Some(server) = StoreServer::azure() else { return };
    conforms(on(&server, "x")).await;
    keeps_prefixes_apart(&server).await;
}

/// nanio ignores the condition. It is refused, unless the operator vouches for being the only writer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_overwrites_is_refused() {
    let Some(server) = StoreServer::nanio() else { return };
    let store = on(&server, "x");
    for refused in [probe_start(&*store, &Chance).await, probe_init(&*store, &Chance).await] {
        assert!(matches!(&refused, Err(StoreError::Unfit { .. })), "{refused:?}");
    }
    assert!(store.list("").await.unwrap().is_empty(), "probe objects stay");
    let options = StoreOptions { single_writer: true, ..server.options() };
    let store = open(&server.url("x"), &options).unwrap();
    probe_init(&*store, &Chance).await.unwrap();
    creates_once(&*store).await;
}
