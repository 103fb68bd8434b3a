//! The real disk: modes, exclusive creation, locks, and that one failed sync is remembered.

use super::*;
use std::os::unix::fs::PermissionsExt;

#[tokio::test]
async fn appends_and_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1");
    let mut file = OsDisk.create(&path).await.unwrap();
    file.preallocate(1 << 20).await.unwrap();
    file.append(Bytes::from_static(b"hello ")).await.unwrap();
    file.append(Bytes::from_static(b"world")).await.unwrap();
    file.sync_data().await.unwrap();
    OsDisk.sync_dir(dir.path()).await.unwrap();
    assert_eq!(OsDisk.read(&path).await.unwrap(), b"hello world");
    assert_eq!(OsDisk.len(&path).await.unwrap(), 11, "preallocation changed the length");
    assert_eq!(OsDisk.read_range(&path, 6, 3).await.unwrap(), b"wor");
    assert_eq!(OsDisk.read_range(&path, 9, 100).await.unwrap(), b"ld");
    assert_eq!(OsDisk.read_range(&path, 100, 100).await.unwrap(), b"");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(OsDisk.list(dir.path()).await.unwrap(), [PathBuf::from("1")]);
    assert!(OsDisk.free_bytes(dir.path()).await.unwrap() > 0);
}

#[tokio::test]
async fn creates_only_what_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1");
    OsDisk.create(&path).await.unwrap();
    assert_eq!(OsDisk.create(&path).await.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    OsDisk.remove(&path).await.unwrap();
    OsDisk.remove(&path).await.unwrap();
    OsDisk.create(&path).await.unwrap();
}

#[tokio::test]
async fn makes_private_directories_with_their_parents() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("a/b/c");
    OsDisk.create_dir(&deep).await.unwrap();
    OsDisk.create_dir(&deep).await.unwrap();
    for made in ["a", "a/b", "a/b/c"] {
        assert_eq!(std::fs::metadata(dir.path().join(made)).unwrap().permissions().mode() & 0o777, 0o700);
    }
    std::fs::write(dir.path().join("file"), "").unwrap();
    assert!(OsDisk.create_dir(&dir.path().join("file")).await.is_err());
}

#[tokio::test]
async fn a_directory_has_one_holder() {
    let dir = tempfile::tempdir().unwrap();
    let held = OsDisk.lock(dir.path()).await.unwrap();
    assert_eq!(OsDisk.lock(dir.path()).await.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    drop(held);
    OsDisk.lock(dir.path()).await.unwrap();
}

/// A pipe takes appends and refuses fdatasync, as a disk with a lost page does once.
#[test]
fn a_failed_sync_is_never_believed_later() {
    let (_reader, writer) = io::pipe().unwrap();
    let mut worker =
        Worker { file: std::os::fd::OwnedFd::from(writer).into(), appendable: true, syncable: true };
    worker.run(Command::Append(Bytes::from_static(b"x"))).unwrap();
    assert!(worker.run(Command::Sync).is_err());
    let dir = tempfile::tempdir().unwrap();
    worker.file = File::create(dir.path().join("healthy again")).unwrap();
    assert!(worker.run(Command::Sync).is_err());
}

#[test]
fn a_failed_append_ends_the_file() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("1"), "").unwrap();
    let mut worker =
        Worker { file: File::open(dir.path().join("1")).unwrap(), appendable: true, syncable: true };
    assert!(worker.run(Command::Append(Bytes::from_static(b"x"))).is_err());
    worker.file = File::create(dir.path().join("2")).unwrap();
    assert!(worker.run(Command::Append(Bytes::from_static(b"x"))).is_err());
}

#[tokio::test]
async fn a_dropped_append_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1");
    let mut file = OsDisk.create(&path).await.unwrap();
    for _ in 0..20 {
        let append = file.append(Bytes::from(vec![7; 1 << 16]));
        let _ = futures_util::future::poll_immediate(append).await;
    }
    file.sync_data().await.unwrap();
    assert_eq!(OsDisk.len(&path).await.unwrap() % (1 << 16), 0);
}

#[test]
fn a_full_disk_is_recognised() {
    use crate::disk::is_no_space;
    assert!(is_no_space(&Errno::NOSPC.into()) && is_no_space(&Errno::DQUOT.into()));
    assert!(is_no_space(&io::ErrorKind::StorageFull.into()) && !is_no_space(&Errno::IO.into()));
}
