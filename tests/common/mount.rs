//! A small disk, to be filled: a tmpfs, which needs root to be mounted.

use super::pg::{is_root, run};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted small disk, gone with this value.
#[derive(Debug)]
pub struct SmallDisk {
    dir: PathBuf,
}

impl SmallDisk {
    /// Mounts one of `mib` MiB over `dir`, which is made.
    pub fn mount(dir: &Path, mib: u32) -> SmallDisk {
        assert!(is_root(), "this test mounts a small disk: run it as root");
        fs::create_dir_all(dir).unwrap();
        let size = format!("size={mib}M");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "walden-test"]).arg(dir));
        SmallDisk { dir: dir.to_owned() }
    }

    /// Gives it `mib` MiB.
    pub fn resize(&self, mib: u32) {
        run(Command::new("mount").args(["-o", &format!("remount,size={mib}M")]).arg(&self.dir));
    }

    /// Takes all the room that is left; [`SmallDisk::make_room`] gives it back.
    pub fn fill(&self) {
        let mut ballast = fs::File::create(self.dir.join("ballast")).unwrap();
        for len in [1 << 16, 1 << 12, 1] {
            while ballast.write_all(&vec![b'x'; len]).is_ok() {}
        }
    }

    /// Gives back what [`SmallDisk::fill`] took.
    pub fn make_room(&self) {
        fs::remove_file(self.dir.join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.dir).status().ok();
    }
}
