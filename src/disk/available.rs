//! How much memory there is to take: what the kernel says is available (`MemAvailable` of `/proc/meminfo`), and what is left of the
//! limits of the control groups that this process is in (version 2: `memory.max` and `memory.high`, 1: `memory.limit_in_bytes`;
//! cgroups(7)).

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes of memory that can be taken without pushing others out; 0 where the kernel does not say, and where it commits to no more than
/// it has (`vm.overcommit_memory` = 2): there what is mapped is taken from others before it is used.
pub fn available_memory() -> u64 {
    available_below(Path::new("/"))
}

/// The same of the machine whose `/proc` and `/sys` are below `root`.
fn available_below(root: &Path) -> u64 {
    let strict = fs::read_to_string(root.join("proc/sys/vm/overcommit_memory"));
    if strict.is_ok_and(|mode| mode.trim() == "2") {
        return 0;
    }
    let meminfo = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
    let machine = field(&meminfo, "MemAvailable:").map_or(0, |kibibytes| kibibytes.saturating_mul(1024));
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    groups.lines().filter_map(|line| group_room(root, line)).fold(machine, u64::min)
}

/// What the groups of a line of `/proc/self/cgroup`, one inside the other, leave. `None` is no limit.
fn group_room(root: &Path, line: &str) -> Option<u64> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?);
    let (mount, limits, used, cache): (_, &[&str], _, _) = if controllers.is_empty() {
        ("sys/fs/cgroup", &["memory.max", "memory.high"], "memory.current", "inactive_file")
    } else if controllers.split(',').any(|controller| controller == "memory") {
        let limit = &["memory.limit_in_bytes"];
        ("sys/fs/cgroup/memory", limit, "memory.usage_in_bytes", "total_inactive_file")
    } else {
        return None;
    };
    let mount = root.join(mount);
    // A container may see its own group as the mount's root, whatever the path says: what is not there has no limit.
    let folders = Path::new(path.trim_start_matches('/')).ancestors().map(|below| mount.join(below));
    let room = |folder: PathBuf| {
        let number = |name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
        let limit = limits.iter().filter_map(|limit| number(limit)).min()?;
        let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        // Pages of files that nobody has used twice make way.
        let used = number(used)?.saturating_sub(field(&stat, cache).unwrap_or(0));
        Some(limit.saturating_sub(used))
    };
    folders.filter_map(room).min()
}

/// The number behind `name` in lines of names and numbers.
fn field(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().map(str::split_whitespace);
    lines.find_map(|mut words| (words.next()? == name).then(|| words.next()?.parse().ok())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> u64 {
        let root = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        available_below(root.path())
    }

    const MEMINFO: (&str, &str) =
        ("proc/meminfo", "MemTotal:  2000 kB\nMemFree:  10 kB\nMemAvailable:  1000 kB\n");

    #[test]
    fn a_machine_without_limits_has_what_its_kernel_says() {
        assert_eq!(machine(&[]), 0);
        assert_eq!(machine(&[MEMINFO]), 1_024_000);
        let unlimited = [
            MEMINFO,
            ("proc/self/cgroup", "0::/user.slice\n"),
            ("sys/fs/cgroup/user.slice/memory.max", "max\n"),
            ("sys/fs/cgroup/user.slice/memory.current", "5\n"),
        ];
        assert_eq!(machine(&unlimited), 1_024_000);
        let strict = [MEMINFO, ("proc/sys/vm/overcommit_memory", "2\n")];
        assert_eq!(machine(&strict), 0);
    }

    #[test]
    fn the_narrowest_group_decides_and_cached_files_make_way() {
        let nested = [
            MEMINFO,
            ("proc/self/cgroup", "0::/a.slice/b.service\n"),
            ("sys/fs/cgroup/a.slice/memory.max", "9000\n"),
            ("sys/fs/cgroup/a.slice/memory.current", "8000\n"),
            ("sys/fs/cgroup/a.slice/memory.stat", "anon 1\ninactive_file 500\n"),
            ("sys/fs/cgroup/a.slice/b.service/memory.max", "5000\n"),
            ("sys/fs/cgroup/a.slice/b.service/memory.current", "1000\n"),
        ];
        assert_eq!(machine(&nested), 1500);
        let throttled = [&nested[..], &[("sys/fs/cgroup/a.slice/b.service/memory.high", "1700\n")]].concat();
        assert_eq!(machine(&throttled), 700);
    }

    #[test]
    fn groups_of_version_one_count_also_where_a_container_sees_its_own_as_the_root() {
        let container = [
            MEMINFO,
            ("proc/self/cgroup", "5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n0::/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "7000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "6000\n"),
            ("sys/fs/cgroup/memory/memory.stat", "cache 9\ntotal_inactive_file 10\n"),
        ];
        assert_eq!(machine(&container), 1010);
        let over = [
            container[0],
            container[1],
            container[2],
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "8000"),
        ];
        assert_eq!(machine(&over), 0);
    }
}
