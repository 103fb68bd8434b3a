//! The machine that is restored to: who shall own the files, where PostgreSQL's programs are, how a shell quotes. Looks,
//! changes nothing.

use super::files::Owner;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Who owns a restored cluster, when that is somebody else than we.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterOwner {
    /// The numbers.
    pub owner: Owner,
    /// The user's name.
    pub name: String,
}

/// PostgreSQL refuses to run as root, and files of others. So root gives what it restores to the owner of the directory, if
/// that is not root; else of the nearest directory above it that is not root's; else to `postgres`.
pub fn choose_owner(data_dir: &Path) -> Option<ClusterOwner> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = users();
    let named = |user: u32, group: u32| {
        let name = users.iter().find(|found| found.1 == user)?.0.clone();
        Some(ClusterOwner { owner: Owner { user, group }, name })
    };
    let above = data_dir.ancestors().filter_map(|dir| fs::metadata(dir).ok());
    let by_place = above.take_while(|meta| meta.mode() & 0o1000 == 0).find(|meta| meta.uid() != 0);
    by_place.and_then(|meta| named(meta.uid(), meta.gid())).or_else(|| {
        let (_, user, group) = users.iter().find(|user| user.0 == "postgres")?;
        named(*user, *group)
    })
}

/// Name, user and group of the local users.
fn users() -> Vec<(String, u32, u32)> {
    let text = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let user = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        let (user, group) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        Some((name, user, group))
    };
    text.lines().filter_map(user).collect()
}

/// PostgreSQL's program `name` of `major` version: where distributions put it, else what PATH finds.
pub fn find_program(name: &str, major: u32) -> PathBuf {
    let usual = [format!("/usr/lib/postgresql/{major}/bin"), format!("/usr/pgsql-{major}/bin")];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = usual.into_iter().map(PathBuf::from).chain(std::env::split_paths(&path));
    let found = candidates.map(|dir| dir.join(name)).find(|program| is_of(program, major));
    found.unwrap_or_else(|| PathBuf::from(name))
}

fn is_of(program: &Path, major: u32) -> bool {
    if !program.is_file() {
        return false;
    }
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output();
    // `pg_ctl (PostgreSQL) 15.19 (Debian 15.19-0+deb12u1)`
    let said = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let version = said.split_once(") ").map_or("", |(_, version)| version);
    version.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()) == Some(major)
}

/// `text` as one word of a shell command.
pub fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Whether `user` could read `path`, by its permission bits alone.
pub fn can_read(path: &Path, user: u32) -> bool {
    fs::metadata(path).is_ok_and(|meta| user == 0 || meta.uid() == user && meta.mode() & 0o400 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_only_when_they_must_be() {
        for (text, word) in
            [("/srv/pg-15", "/srv/pg-15"), ("", "''"), ("a b", "'a b'"), ("it's", r"'it'\''s'")]
        {
            assert_eq!(shell_word(text), word);
        }
    }

    #[test]
    fn programs_of_another_major_are_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("pg_ctl");
        fs::write(&program, "#!/bin/sh\necho 'pg_ctl (PostgreSQL) 15.19 (Debian 15.19-0+deb12u1)'\n")
            .unwrap();
        fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        assert!(is_of(&program, 15));
        assert!(!is_of(&program, 14) && !is_of(&program, 1) && !is_of(&dir.path().join("none"), 15));
    }
}
