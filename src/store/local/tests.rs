//! The local store on a real directory: what it publishes, what it refuses, what it leaves behind.

use super::*;
use futures_util::future::join_all;
use std::os::unix::fs::PermissionsExt;
use tempfile::TempDir;

fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text).unwrap()
}

fn store() -> (TempDir, LocalStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(&dir.path().join("repo/main")).unwrap();
    (dir, store)
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn a_name_is_won_once_and_its_bytes_stay() {
    for nameless in [true, false] {
        let (_dir, store) = store();
        if !nameless {
            store.tree.handle.get_or_init(|| {
                std::fs::create_dir_all(store.tree.root.join(STAGING)).unwrap();
                rustix::fs::open(&store.tree.root, OFlags::RDONLY, Mode::empty()).unwrap()
            });
            store.tree.nameless.store(false, Ordering::Relaxed);
        }
        let key = key("clusters/shop/wal/s/00000000000000000001");
        let racers = (0..16u8).map(|i| {
            let (store, key) = (store.clone(), key.clone());
            tokio::spawn(async move { (i, store.create(&key, Bytes::from(vec![i; 100_000])).await) })
        });
        let results = join_all(racers).await.into_iter().map(Result::unwrap).collect::<Vec<_>>();
        let winners = results.iter().filter(|(_, r)| r.is_ok()).map(|(i, _)| *i).collect::<Vec<_>>();
        assert_eq!(winners.len(), 1);
        assert!(results.iter().all(|(_, r)| matches!(r, Ok(()) | Err(StoreError::AlreadyExists { .. }))));
        assert_eq!(store.get(&key).await.unwrap(), vec![winners[0]; 100_000]);
        let staged = std::fs::read_dir(store.tree.root.join(STAGING)).map_or(0, |dir| dir.count());
        assert_eq!(staged, 0, "staged files stay behind");
    }
}

#[tokio::test]
async fn reads_ranges_and_refuses_those_past_the_end() {
    let (_dir, store) = store();
    let key = key("a/b");
    store.create(&key, Bytes::from_static(b"0123456789")).await.unwrap();
    assert_eq!(store.get_range(&key, 3..7).await.unwrap(), "3456");
    assert_eq!(store.get_range(&key, 10..10).await.unwrap(), "");
    assert_eq!(store.head(&key).await.unwrap().len, 10);
    for end in [11, u64::MAX] {
        assert!(
            matches!(store.get_range(&key, 3..end).await, Err(StoreError::Short { wanted, .. }) if wanted == end)
        );
    }
    let none = ObjectKey::new("a/none").unwrap();
    assert!(matches!(store.get(&none).await, Err(StoreError::NotFound { .. })));
    assert!(matches!(store.get_range(&none, 0..1).await, Err(StoreError::NotFound { .. })));
    assert!(matches!(store.head(&none).await, Err(StoreError::NotFound { .. })));
    // A directory is no object.
    assert!(matches!(store.get(&ObjectKey::new("a").unwrap()).await, Err(StoreError::NotFound { .. })));
}

#[tokio::test]
async fn an_object_can_be_mapped() {
    let (_dir, store) = store();
    store.create(&key("a"), Bytes::from_static(b"mapped")).await.unwrap();
    assert_eq!(&*store.map(&key("a")).unwrap(), b"mapped");
    store.create(&key("empty"), Bytes::new()).await.unwrap();
    assert!(store.map(&key("empty")).unwrap().is_empty());
    assert!(matches!(store.map(&key("none")), Err(StoreError::NotFound { .. })));
}

#[tokio::test]
async fn lists_by_whole_parts_of_names_and_in_order() {
    let (_dir, store) = store();
    assert!(store.list("").await.unwrap().is_empty());
    for name in ["a/2", "a/1", "ab/1", "a/c/3", "walden"] {
        store.create(&key(name), Bytes::new()).await.unwrap();
    }
    let names = |found: Vec<ObjectMeta>| found.into_iter().map(|m| m.key.to_string()).collect::<Vec<_>>();
    assert_eq!(names(store.list("a").await.unwrap()), ["a/1", "a/2", "a/c/3"]);
    assert_eq!(names(store.list("").await.unwrap()), ["a/1", "a/2", "a/c/3", "ab/1", "walden"]);
    assert!(store.list("none").await.unwrap().is_empty());
    assert!(store.list("a/1").await.unwrap().is_empty());
    assert!(store.list("../x").await.is_err());
    store.delete(&key("a/1")).await.unwrap();
    store.delete(&key("a/1")).await.unwrap();
    assert_eq!(names(store.list("a").await.unwrap()), ["a/2", "a/c/3"]);
}

#[tokio::test]
async fn reading_makes_nothing() {
    let (dir, store) = store();
    assert!(matches!(store.get(&key("walden")).await, Err(StoreError::NotFound { .. })));
    store.delete(&key("walden")).await.unwrap();
    assert!(!dir.path().join("repo").exists());
}

/// A writer killed between link and fsync leaves write bits on; whoever meets the object syncs its name and takes them off.
#[tokio::test]
async fn a_name_left_unsynced_is_settled_by_whoever_meets_it() {
    let (_dir, store) = store();
    store.create(&key("wal/1"), Bytes::from_static(b"one")).await.unwrap();
    assert_eq!(mode(&store.tree.root.join("wal/1")) & 0o222, 0, "durable, yet writable");
    for (name, meet) in [("wal/2", "get"), ("wal/3", "range"), ("wal/4", "head"), ("wal/5", "create")] {
        let path = store.tree.root.join(name);
        std::fs::write(&path, "left").unwrap();
        match meet {
            "get" => drop(store.get(&key(name)).await.unwrap()),
            "range" => drop(store.get_range(&key(name), 0..1).await.unwrap()),
            "head" => drop(store.head(&key(name)).await.unwrap()),
            _ => {
                let again = store.create(&key(name), Bytes::from_static(b"left")).await;
                assert!(matches!(again, Err(StoreError::AlreadyExists { .. })));
            }
        }
        assert_eq!(mode(&path) & 0o222, 0, "{meet} trusted a name that may vanish");
    }
}

#[tokio::test]
async fn the_root_is_not_made_anew_when_it_goes_away() {
    let (dir, store) = store();
    store.create(&key("walden"), Bytes::new()).await.unwrap();
    std::fs::rename(dir.path().join("repo"), dir.path().join("gone")).unwrap();
    store.create(&key("wal/1"), Bytes::from_static(b"x")).await.unwrap();
    assert!(!dir.path().join("repo").exists());
    assert!(dir.path().join("gone/main/wal/1").exists());
    std::fs::remove_dir_all(dir.path().join("gone")).unwrap();
    let lost = store.create(&key("new/1"), Bytes::new()).await;
    assert!(matches!(lost, Err(StoreError::Unknown { .. })), "{lost:?}");
}

#[tokio::test]
async fn staged_files_of_the_dead_are_swept() {
    let (_dir, store) = store();
    let staging = store.tree.root.join(STAGING);
    std::fs::create_dir_all(&staging).unwrap();
    for (name, age) in [("1-1", 25 * 3600), ("2-2", 3600)] {
        let file = File::create(staging.join(name)).unwrap();
        file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(age)).unwrap();
    }
    store.tree.sweep_staging(store.tree.root_to_read().unwrap()).unwrap();
    assert!(!staging.join("1-1").exists() && staging.join("2-2").exists());
}

#[test]
fn errors_are_sorted_by_the_next_move() {
    let sorted = |errno: Errno| sort_out(&key("a"), "reading it", errno.into());
    assert!(matches!(sorted(Errno::NOENT), StoreError::NotFound { .. }));
    assert!(matches!(sorted(Errno::NOSPC), StoreError::NoSpace { .. }));
    assert!(matches!(sorted(Errno::DQUOT), StoreError::NoSpace { .. }));
    assert!(matches!(sorted(Errno::ACCESS), StoreError::Denied { .. }));
    assert!(matches!(sorted(Errno::ROFS), StoreError::Denied { .. }));
    assert!(matches!(sorted(Errno::IO), StoreError::Unknown { .. }));
}

#[test]
fn what_the_medium_does_not_give_is_damage_and_what_else_fails_is_not() {
    let key = key("a");
    for errno in [Errno::IO, Errno::BADMSG, Errno::UCLEAN] {
        let error = sort_out_read(&key, errno.into());
        assert!(matches!(error, StoreError::Unreadable { .. }), "{error:?}");
    }
    for errno in [Errno::TIMEDOUT, Errno::STALE, Errno::NFILE] {
        let error = sort_out_read(&key, errno.into());
        assert!(matches!(error, StoreError::Unknown { .. }), "{error:?}");
    }
    // While writing, nobody knows what became of it.
    assert!(matches!(sort_out_write(&key, "storing it", Errno::IO.into()), StoreError::Unknown { .. }));
}
