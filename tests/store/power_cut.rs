//! The local store and the real journal disk on a real file system whose power is cut: an ext4 image is copied at the moment something
//! was said to be durable, and the copy, whose journal is then replayed, must hold it. Needs root and loop devices; skipped without.

use super::*;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use tempfile::TempDir;
use walden::disk::{Disk, OsDisk};
use walden::store::{StoreOptions, open};

/// A mounted image, unmounted when dropped.
struct Mounted {
    at: PathBuf,
}

impl Mounted {
    fn mount(image: &Path, at: PathBuf) -> Option<Mounted> {
        std::fs::create_dir_all(&at).unwrap();
        run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(&at)).then_some(Mounted { at })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run(Command::new("umount").arg(&self.at));
    }
}

/// A file system in an image, and what it held at moments past.
struct Power {
    dir: TempDir,
    now: Mounted,
    cuts: usize,
}

impl Power {
    fn on() -> Option<Power> {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        let made = rustix::process::getuid().is_root()
            && run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image));
        let now = made.then(|| Mounted::mount(&image, dir.path().join("now"))).flatten();
        match now {
            Some(now) => Some(Power { dir, now, cuts: 0 }),
            None => {
                eprintln!("skipped: no ext4 image can be mounted here");
                None
            }
        }
    }

    /// What the disk held at this moment, after the power came back.
    fn cut(&mut self) -> Mounted {
        self.cuts += 1;
        let copy = self.dir.path().join(format!("cut-{}", self.cuts));
        std::fs::copy(self.dir.path().join("image"), &copy).unwrap();
        Mounted::mount(&copy, self.dir.path().join(format!("after-{}", self.cuts))).unwrap()
    }
}

fn run(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

#[tokio::test]
async fn what_the_local_store_created_survives() {
    let Some(mut power) = Power::on() else { return };
    let store =
        open(power.now.at.join("deep/repository").to_str().unwrap(), &StoreOptions::default()).unwrap();
    for number in 0..4 {
        let name = key(&format!("clusters/c{number}/wal/s/{number}"));
        let body = Bytes::from(vec![number + 1; 100_000]);
        store.create(&name, body.clone()).await.unwrap();
        let after = power.cut();
        let found = std::fs::read(after.at.join("deep/repository").join(name.as_str()));
        assert!(found.is_ok_and(|found| found == body), "{name} was lost with the power");
    }
}

/// The writer died between naming an object and syncing its directory: whoever meets it makes the name durable.
#[tokio::test]
async fn a_name_left_unsynced_survives_once_it_was_met() {
    let Some(mut power) = Power::on() else { return };
    let root = power.now.at.join("repository");
    let store = open(root.to_str().unwrap(), &StoreOptions::default()).unwrap();
    store.create(&key("wal/1"), Bytes::from_static(b"one")).await.unwrap();
    std::fs::write(root.join("wal/staged"), b"two").unwrap();
    std::fs::File::open(root.join("wal/staged")).unwrap().sync_all().unwrap();
    std::fs::hard_link(root.join("wal/staged"), root.join("wal/2")).unwrap();
    let lost = power.cut();
    assert!(
        !lost.at.join("repository/wal/2").exists(),
        "this file system syncs names by itself: nothing is shown"
    );
    let again = store.create(&key("wal/2"), Bytes::from_static(b"two")).await;
    assert!(matches!(again, Err(StoreError::AlreadyExists { .. })));
    let after = power.cut();
    assert_eq!(std::fs::read(after.at.join("repository/wal/2")).unwrap(), b"two");
}

#[tokio::test]
async fn what_the_disk_synced_survives() {
    let Some(mut power) = Power::on() else { return };
    let disk: Arc<dyn Disk> = Arc::new(OsDisk);
    let (dir, below) = (power.now.at.join("a/b/journal"), Path::new("a/b/journal/1"));
    disk.create_dir(&dir).await.unwrap();
    assert!(power.cut().at.join("a/b/journal").is_dir());
    let mut file = disk.create(&dir.join("1")).await.unwrap();
    file.preallocate(1 << 20).await.unwrap();
    file.append(Bytes::from(vec![7; 50_000])).await.unwrap();
    file.sync_data().await.unwrap();
    disk.sync_dir(&dir).await.unwrap();
    assert_eq!(std::fs::read(power.cut().at.join(below)).unwrap(), [7; 50_000]);
    file.append(Bytes::from(vec![8; 50_000])).await.unwrap();
    file.sync_data().await.unwrap();
    assert_eq!(std::fs::read(power.cut().at.join(below)).unwrap().len(), 100_000);
    disk.remove(&dir.join("1")).await.unwrap();
    disk.sync_dir(&dir).await.unwrap();
    assert!(!power.cut().at.join(below).exists());
}
