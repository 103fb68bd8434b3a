//! A journal that was damaged: what had been durable is missed, and the file named; a torn tail is no damage.

use super::*;
use walden::codec::OpenError;
use walden::format::journal::JOURNAL_BEGIN_BYTES;

/// A journal of three files, each synced a few times; finished, so that every frame is vouched for. Returns where it ends.
async fn journal(finished: bool) -> (SimDisk, u64) {
    let disk = SimDisk::new(1);
    let mut end = 0;
    for _ in 0..3 {
        let (mut journal, _) = open(&disk).await;
        for len in [50, 1, 300] {
            journal.append(&record(end, len)).await.unwrap();
            end += len;
            journal.sync().await.unwrap();
        }
        if finished {
            journal.finish().await.unwrap();
        }
    }
    (disk, end)
}

/// The file that an error names.
fn named(error: &JournalError) -> Option<&Path> {
    match error {
        JournalError::Damage { path, .. } | JournalError::Closed { path, .. } => Some(path),
        _ => None,
    }
}

/// A future in which `change` was done to file `index`; what opening says.
async fn altered(
    disk: &SimDisk,
    index: usize,
    change: impl FnOnce(&mut Vec<u8>),
) -> (PathBuf, Result<Vec<(u64, u64)>, JournalError>) {
    let disk = disk.fork(1);
    let path = disk.files()[index].clone();
    disk.alter(&path, change);
    let opened = open_with(&disk, 256 << 10, 7).await;
    let found = match opened {
        Ok((journal, _)) => Ok(runs(&journal).await),
        Err(error) => Err(error),
    };
    (path, found)
}

#[test]
fn every_flipped_byte_of_a_finished_journal_is_named_or_harmless() {
    run(async {
        let (disk, end) = journal(true).await;
        let files = disk.files();
        let mut named_count = 0;
        for (index, file) in files.iter().enumerate() {
            for byte in 0..disk.bytes(file).len() {
                match altered(&disk, index, |bytes| bytes[byte] ^= 0x10).await {
                    (_, Ok(found)) => {
                        assert_eq!(found, [(0, end)], "byte {byte} of file {index} lost something")
                    }
                    (path, Err(error)) => {
                        assert_eq!(named(&error), Some(&*path), "byte {byte}: {error}");
                        named_count += 1;
                    }
                }
            }
        }
        // The marks at the ends are the only bytes that nothing needs.
        let marks = 3 * (16 + 29 + 16);
        let all: usize = files.iter().map(|file| disk.bytes(file).len()).sum();
        assert_eq!(named_count, all - marks);
    });
}

#[test]
fn a_torn_tail_is_cut_and_what_was_synced_before_stays() {
    run(async {
        let (disk, end) = journal(false).await;
        let disk = disk.kill();
        let last = disk.files().len() - 1;
        let len = disk.bytes(&disk.files()[last]).len();
        for cut in JOURNAL_BEGIN_BYTES..len {
            let (_, found) = altered(&disk, last, |bytes| bytes.truncate(cut)).await;
            let found = found.unwrap();
            assert!(found.len() == 1 && found[0].0 == 0 && found[0].1 < end, "cut at {cut}: {found:?}");
            // Garbage instead of nothing: a page that was never written.
            let (_, found) = altered(&disk, last, |bytes| bytes[cut..].fill(0)).await;
            assert!(found.unwrap()[0].1 < end);
        }
    });
}

#[test]
fn a_cut_in_an_older_file_is_damage() {
    run(async {
        let (disk, _) = journal(true).await;
        let len = disk.bytes(&disk.files()[0]).len();
        let mark = 16 + 29 + 16;
        for cut in 0..len {
            let (path, found) = altered(&disk, 0, |bytes| bytes.truncate(cut)).await;
            match found {
                Err(error) => assert_eq!(named(&error), Some(&*path), "cut at {cut}: {error}"),
                Ok(_) => assert!(cut >= len - mark, "cut at {cut} was not noticed"),
            }
        }
    });
}

#[test]
fn a_missing_or_exchanged_file_is_damage() {
    run(async {
        let (disk, end) = journal(true).await;
        let files = disk.files();
        let without = |index: usize| {
            let disk = disk.fork(1);
            disk.lose(&files[index]);
            disk
        };
        let missing = open_with(&without(1), 256 << 10, 7).await.unwrap_err();
        assert_eq!(named(&missing), Some(&*files[1]), "{missing}");
        // The oldest may have been trimmed; nobody says that it must be there.
        let (journal, _) = open_with(&without(0), 256 << 10, 7).await.unwrap();
        assert_eq!(runs(&journal).await, [(end / 3, end)]);
        let second = disk.bytes(&files[1]);
        let (path, exchanged) = altered(&disk, 0, |bytes| *bytes = second).await;
        let exchanged = exchanged.unwrap_err();
        assert!(
            matches!(&exchanged, JournalError::Closed { source: OpenError::Misplaced { .. }, .. }),
            "{exchanged}"
        );
        assert_eq!(named(&exchanged), Some(&*path));
    });
}

#[test]
fn frames_in_another_order_are_damage() {
    run(async {
        let (disk, _) = journal(true).await;
        let frame = |len: usize| 16 + 29 + len + 16;
        let (first, second) = (JOURNAL_BEGIN_BYTES, JOURNAL_BEGIN_BYTES + frame(50));
        let (path, found) = altered(&disk, 0, |bytes| {
            let end = second + frame(1);
            let swapped = [&bytes[second..end], &bytes[first..second]].concat();
            bytes[first..end].copy_from_slice(&swapped);
        })
        .await;
        let error = found.unwrap_err();
        assert!(matches!(&error, JournalError::Damage { byte, .. } if *byte == first as u64), "{error}");
        assert_eq!(named(&error), Some(&*path));
    });
}

/// Frame by frame: what a page in the middle of the unsynced tail loses is no damage; the same page once synced is.
#[test]
fn a_lost_page_is_damage_only_where_a_later_frame_knew_it_durable() {
    run(async {
        for synced in [false, true] {
            let disk = SimDisk::new(1);
            let (mut journal, _) = open_with(&disk, 16 << 20, 99).await.unwrap();
            journal.append(&record(0, 100)).await.unwrap();
            journal.sync().await.unwrap();
            // A jump in LSN makes a frame of its own.
            for start in [1000, 2000, 3000] {
                journal.append(&record(start, 10)).await.unwrap();
            }
            if synced {
                journal.sync().await.unwrap();
            }
            journal.append(&record(4000, 10)).await.unwrap();
            journal.append(&record(5000, 10)).await.unwrap();
            journal.append(&record(6000, 10)).await.unwrap();
            let disk = disk.kill();
            let second_frame = JOURNAL_BEGIN_BYTES + 16 + 29 + 100 + 16;
            let (_, found) = altered(&disk, 0, |bytes| bytes[second_frame..second_frame + 20].fill(0)).await;
            match found {
                Ok(found) => assert!(!synced && found == [(0, 100)], "{found:?}"),
                Err(error) => assert!(synced && matches!(error, JournalError::Damage { .. }), "{error}"),
            }
        }
    });
}

#[test]
fn on_a_full_disk_the_tail_is_read_and_said_not_to_be_durable() {
    run(async {
        let disk = SimDisk::new(1);
        let (mut journal, _) = open(&disk).await;
        journal.append(&record(0, 100)).await.unwrap();
        journal.sync().await.unwrap();
        journal.append(&record(100, 100)).await.unwrap();
        journal.sync().await.unwrap();
        let disk = disk.kill();
        disk.set_faults(DiskFaults { capacity: Some(10_000), ..DiskFaults::default() });
        let (mut journal, recovery) = open(&disk).await;
        assert!(recovery.tail_not_durable);
        assert_eq!(journal.synced(), Some(at(100)));
        assert_eq!(runs(&journal).await, [(0, 200)]);
        let refused = journal.append(&record(100, 100)).await.and(journal.sync().await);
        assert!(matches!(refused, Err(JournalError::NoSpace { .. })), "{refused:?}");
        disk.set_faults(DiskFaults::default());
        journal.append(&record(100, 150)).await.unwrap();
        assert_eq!(journal.sync().await.unwrap(), Some(at(250)));
        assert_eq!(runs(&journal).await, [(0, 250)]);
        drop(journal);
        let (journal, recovery) = open(&disk.crash()).await;
        assert!(!recovery.tail_not_durable);
        assert_eq!(runs(&journal).await, [(0, 250)]);
    });
}

#[test]
fn a_dropped_call_is_answered_with_where_to_go_on() {
    run(async {
        let disk = SimDisk::new(1);
        let (mut journal, _) = open(&disk).await;
        journal.append(&record(0, 100)).await.unwrap();
        journal.sync().await.unwrap();
        let latency = Duration::from_secs(1)..Duration::from_secs(2);
        disk.set_faults(DiskFaults { latency, ..DiskFaults::default() });
        journal.append(&record(100, 100)).await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(1), journal.sync()).await.is_err());
        assert!(
            matches!(journal.sync().await, Err(JournalError::Interrupted { synced, .. }) if synced == Some(at(100)))
        );
        journal.append(&record(100, 100)).await.unwrap();
        assert_eq!(journal.sync().await.unwrap(), Some(at(200)));
        assert_eq!(runs(&journal).await, [(0, 200)]);
    });
}

/// Every file has its own salt, also after crashes: with the counter from 0, a salt seen twice would be a nonce used twice.
#[test]
fn no_salt_is_used_twice() {
    run(async {
        let mut disk = SimDisk::new(5);
        let mut salts = std::collections::BTreeSet::new();
        let mut end = 0;
        for seed in 0..20 {
            let (mut journal, _) = open_with(&disk, 256 << 10, seed).await.unwrap();
            end = journal.end().map_or(end, |end| end.lsn.get());
            journal.append(&record(end, 100)).await.unwrap();
            end = journal.sync().await.unwrap().unwrap().lsn.get();
            disk = disk.crash();
        }
        let files = disk.files();
        for file in &files {
            assert!(salts.insert(disk.bytes(file)[88..120].to_vec()), "{}", file.display());
        }
        assert!(files.len() >= 20);
    });
}
