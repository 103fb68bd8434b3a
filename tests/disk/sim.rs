//! Each fault of the simulated disk really happens.

use super::*;

const FILE: &str = "/d/1";

async fn disk(seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    disk.create_dir(Path::new("/d")).await.unwrap();
    disk
}

/// Over many seeds, what remains of a file after `write` and a crash; `None` when its name is gone.
fn after_crash(write: impl AsyncFn(&SimDisk)) -> Vec<Option<Vec<u8>>> {
    let mut outcomes = Vec::new();
    run(async {
        for seed in 0..200 {
            let disk = disk(seed).await;
            write(&disk).await;
            let disk = disk.crash();
            outcomes.push(disk.read(Path::new(FILE)).await.ok());
        }
    });
    outcomes
}

#[test]
fn synced_bytes_and_names_stay() {
    let outcomes = after_crash(async |disk| {
        let mut file = disk.create(Path::new(FILE)).await.unwrap();
        file.append(Bytes::from_static(b"hello")).await.unwrap();
        file.sync_data().await.unwrap();
        disk.sync_dir(Path::new("/d")).await.unwrap();
    });
    assert!(outcomes.iter().all(|outcome| outcome.as_deref() == Some(b"hello")));
}

#[test]
fn unsynced_bytes_survive_in_part_and_torn_anywhere() {
    let outcomes = after_crash(async |disk| {
        let mut file = disk.create(Path::new(FILE)).await.unwrap();
        file.append(Bytes::from(vec![1; 10])).await.unwrap();
        file.sync_data().await.unwrap();
        disk.sync_dir(Path::new("/d")).await.unwrap();
        file.append(Bytes::from(vec![2; 10_000])).await.unwrap();
    });
    let found: Vec<_> = outcomes.into_iter().map(Option::unwrap).collect();
    assert!(found.iter().all(|bytes| bytes.len() >= 10 && bytes[..10] == [1; 10]));
    let lens: std::collections::BTreeSet<_> = found.iter().map(Vec::len).collect();
    assert!(lens.len() > 100, "torn at {} places only", lens.len());
    assert!(found.iter().any(|bytes| bytes.contains(&0)), "no page was written out of order");
}

#[test]
fn names_survive_or_not() {
    let created = after_crash(async |disk| {
        let mut file = disk.create(Path::new(FILE)).await.unwrap();
        file.sync_data().await.unwrap();
    });
    assert!(created.iter().any(Option::is_some) && created.iter().any(Option::is_none));
    let removed = after_crash(async |disk| {
        disk.create(Path::new(FILE)).await.unwrap();
        disk.sync_dir(Path::new("/d")).await.unwrap();
        disk.remove(Path::new(FILE)).await.unwrap();
    });
    assert!(removed.iter().any(Option::is_some) && removed.iter().any(Option::is_none));
}

#[test]
fn a_failed_sync_loses_pages_and_the_next_one_lies() {
    let outcomes = after_crash(async |disk| {
        let mut file = disk.create(Path::new(FILE)).await.unwrap();
        file.append(Bytes::from(vec![1; 100])).await.unwrap();
        disk.set_faults(DiskFaults { sync_fails: 1.0, ..DiskFaults::default() });
        file.sync_data().await.unwrap_err();
        disk.set_faults(DiskFaults::default());
        file.sync_data().await.unwrap();
        disk.sync_dir(Path::new("/d")).await.unwrap();
        assert_eq!(disk.bytes(Path::new(FILE)), [1; 100], "the page cache shows what was not stored");
    });
    let lossy = outcomes.iter().flatten().filter(|bytes| **bytes != [1; 100]).count();
    assert!((50..200).contains(&lossy), "{lossy} of 200 lost something");
}

#[test]
fn a_full_disk_takes_a_part() {
    run(async {
        let disk = disk(1).await;
        disk.set_faults(DiskFaults { capacity: Some(100), ..DiskFaults::default() });
        let mut file = disk.create(Path::new(FILE)).await.unwrap();
        assert!(walden::disk::is_no_space(&file.preallocate(101).await.unwrap_err()));
        file.preallocate(60).await.unwrap();
        assert_eq!(disk.free_bytes(Path::new("/d")).await.unwrap(), 40);
        assert!(walden::disk::is_no_space(&file.append(Bytes::from(vec![1; 101])).await.unwrap_err()));
        assert_eq!(disk.len(Path::new(FILE)).await.unwrap(), 100);
    });
}

#[test]
fn an_append_fails_in_the_middle() {
    run(async {
        let disk = disk(1).await;
        disk.set_faults(DiskFaults { append_fails: 1.0, ..DiskFaults::default() });
        let mut file = disk.create(Path::new(FILE)).await.unwrap();
        file.append(Bytes::from(vec![1; 1000])).await.unwrap_err();
        assert!(disk.bytes(Path::new(FILE)).len() < 1000);
    });
}

#[test]
fn the_dead_do_nothing_and_hold_nothing() {
    run(async {
        let before = disk(1).await;
        let mut file = before.create(Path::new(FILE)).await.unwrap();
        let lock = before.lock(Path::new("/d")).await.unwrap();
        assert_eq!(before.lock(Path::new("/d")).await.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        file.append(Bytes::from_static(b"x")).await.unwrap();
        let after = before.kill();
        assert_eq!(after.read(Path::new(FILE)).await.unwrap(), b"x", "a kill lost what the page cache had");
        assert!(file.append(Bytes::from_static(b"y")).await.is_err());
        assert!(before.list(Path::new("/d")).await.is_err());
        let held = after.lock(Path::new("/d")).await.unwrap();
        drop(lock);
        assert!(after.lock(Path::new("/d")).await.is_err(), "the dead let go of another's lock");
        drop(held);
        after.lock(Path::new("/d")).await.unwrap();
    });
}

#[test]
fn operations_take_their_time_and_are_logged() {
    run(async {
        let disk = disk(1).await;
        let latency = Duration::from_millis(10)..Duration::from_millis(20);
        disk.set_faults(DiskFaults { latency, ..DiskFaults::default() });
        let begun = tokio::time::Instant::now();
        let mut file = disk.create(Path::new(FILE)).await.unwrap();
        file.sync_data().await.unwrap();
        assert!((20..40).contains(&begun.elapsed().as_millis()));
        let file = PathBuf::from(FILE);
        assert_eq!(disk.log(), [DiskOp::Create(file.clone()), DiskOp::SyncData(file, true)]);
    });
}

#[test]
fn the_same_seed_tells_the_same_story() {
    let story = || {
        after_crash(async |disk| {
            let mut file = disk.create(Path::new(FILE)).await.unwrap();
            file.append(Bytes::from(vec![1; 5000])).await.unwrap();
        })
    };
    assert_eq!(story(), story());
}
