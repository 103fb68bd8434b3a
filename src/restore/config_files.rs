//! Where configuration that lay outside the source's data directory goes, and how it finds its way there. Pure.
//!
//! Debian keeps `postgresql.conf`, `pg_hba.conf` and `pg_ident.conf` in /etc and names absolute paths in them. The copies
//! keep their places relative to each other; known absolute paths are rewritten, and the paths of the data directory and
//! of the other two files are appended to the copy of `postgresql.conf`, whose last word counts.

use super::error::RestoreError;
use super::settings::quoted;
use crate::format::manifest::{ConfigFile, Setting};
use std::path::{Component, Path, PathBuf};

/// Files from beyond the directory of `postgresql.conf` go below this one, by their whole path.
const ELSEWHERE: &str = "elsewhere";

/// A configuration file as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedConfig {
    /// Where it was on the source.
    pub source: String,
    /// Where it goes, below the configuration directory.
    pub relative: PathBuf,
    /// Its bytes.
    pub content: Vec<u8>,
}

/// Where the configuration of a restored server is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigLayout {
    /// Files to write; none when all of it was in the data directory.
    pub files: Vec<PlacedConfig>,
    /// Directories that an `include_dir` names, below the configuration directory. PostgreSQL does not start without one, and
    /// an empty one (Debian's `conf.d`) leaves no file to show that it was there.
    pub dirs: Vec<PathBuf>,
    /// The copy of `postgresql.conf`, below the configuration directory, when it is among them.
    pub main: Option<PathBuf>,
}

/// Lays `files` out below `config_dir` for a server whose data directory is `data_dir`; both absolute.
pub fn layout(
    files: &[ConfigFile],
    settings: &[Setting],
    config_dir: &Path,
    data_dir: &Path,
) -> Result<ConfigLayout, RestoreError> {
    let named = |name: &str| settings.iter().find(|s| s.name == name).map(|s| s.value.as_str());
    let find = |setting: &str, file_name: &str| {
        let by_setting = named(setting).and_then(|path| files.iter().find(|file| file.path == path));
        by_setting.or_else(|| files.iter().find(|file| file.path.rsplit('/').next() == Some(file_name)))
    };
    let main = find("config_file", "postgresql.conf");
    let base = main.or(files.first()).and_then(|file| Path::new(&file.path).parent()).map(Path::to_owned);
    let place = |path: &str| -> Result<PathBuf, RestoreError> {
        let path = Path::new(path);
        let sane = path.is_absolute()
            && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        if !sane {
            return Err(RestoreError::Damage {
                what: format!("configuration file {}", path.display()),
                reason: "its path is not absolute and plain".into(),
            });
        }
        match base.as_ref().and_then(|base| path.strip_prefix(base).ok()) {
            Some(relative) => Ok(relative.to_owned()),
            None => Ok(Path::new(ELSEWHERE).join(path.strip_prefix("/").unwrap_or(path))),
        }
    };
    let mut moved: Vec<(String, String)> = Vec::new();
    for file in files {
        let target = config_dir.join(place(&file.path)?);
        moved.push((file.path.clone(), text(&target)?));
        if let (Some(from), Some(to)) = (Path::new(&file.path).parent(), target.parent()) {
            moved.push((text(from)?, text(to)?));
        }
    }
    let mut dirs = Vec::new();
    for file in files {
        let beside = Path::new(&file.path).parent().unwrap_or(Path::new("/"));
        for dir in included_dirs(&file.content.0).map(|dir| beside.join(dir)) {
            // What climbs, PostgreSQL looks for where the copy says; we make nothing there.
            let Some(relative) = dir.to_str().and_then(|dir| place(dir).ok()) else { continue };
            moved.push((text(&dir)?.trim_end_matches('/').to_owned(), text(&config_dir.join(&relative))?));
            dirs.push(relative);
        }
    }
    dirs.sort();
    dirs.dedup();
    moved.sort();
    moved.dedup();
    let mut placed = Vec::new();
    for file in files {
        let mut content = rewrite(&file.content.0, &moved);
        if main.is_some_and(|main| main.path == file.path) {
            let mut lines =
                format!("\n# appended by walden restore\ndata_directory = {}\n", quoted(&text(data_dir)?));
            for (setting, name) in [("hba_file", "pg_hba.conf"), ("ident_file", "pg_ident.conf")] {
                if let Some(other) = find(setting, name) {
                    let path = text(&config_dir.join(place(&other.path)?))?;
                    lines.push_str(&format!("{setting} = {}\n", quoted(&path)));
                }
            }
            content.extend_from_slice(lines.as_bytes());
        }
        placed.push(PlacedConfig { source: file.path.clone(), relative: place(&file.path)?, content });
    }
    let main = main.map(|main| place(&main.path)).transpose()?;
    Ok(ConfigLayout { files: placed, dirs, main })
}

/// What the lines `include_dir 'conf.d'` and `include_dir = /etc/conf.d` name.
fn included_dirs(content: &[u8]) -> impl Iterator<Item = String> {
    let lines = std::str::from_utf8(content).unwrap_or_default().lines();
    lines.filter_map(|line| {
        let line = line.trim_start();
        let (name, rest) = line.split_at_checked("include_dir".len())?;
        if !name.eq_ignore_ascii_case("include_dir") || !rest.starts_with([' ', '\t', '=', '\'']) {
            return None;
        }
        let value = rest.trim_start();
        let value = value.strip_prefix('=').unwrap_or(value).trim_start();
        let dir = match value.strip_prefix('\'') {
            Some(quoted) => quoted.split_once('\'')?.0,
            None => value.split([' ', '\t', '#']).next()?,
        };
        (!dir.is_empty()).then(|| dir.to_owned())
    })
}

fn text(path: &Path) -> Result<String, RestoreError> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| {
        RestoreError::usage(format!("{}: a path that is not UTF-8 cannot be configured", path.display()))
    })
}

/// Replaces known absolute paths that stand as whole words, outside comments.
fn rewrite(content: &[u8], moved: &[(String, String)]) -> Vec<u8> {
    // Not text, not understood: left as it is.
    let Ok(content) = std::str::from_utf8(content) else { return content.to_vec() };
    let mut out = String::with_capacity(content.len());
    for line in content.split_inclusive('\n') {
        if line.trim_start().starts_with('#') {
            out.push_str(line);
        } else {
            rewrite_line(line, moved, &mut out);
        }
    }
    out.into_bytes()
}

fn rewrite_line(line: &str, moved: &[(String, String)], out: &mut String) {
    let boundary = |c: char| c.is_whitespace() || matches!(c, '\'' | '"' | '@' | ',' | '=' | '#');
    let mut word = String::new();
    for c in line.chars() {
        if boundary(c) {
            push_word(&word, moved, out);
            word.clear();
            out.push(c);
        } else {
            word.push(c);
        }
    }
    push_word(&word, moved, out);
}

fn push_word(word: &str, moved: &[(String, String)], out: &mut String) {
    let path = if word.len() > 1 { word.trim_end_matches('/') } else { word };
    match moved.iter().find(|(from, _)| from == path) {
        Some((_, to)) => out.push_str(to),
        None => out.push_str(word),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::record::Blob;

    fn file(path: &str, content: &str) -> ConfigFile {
        ConfigFile { path: path.into(), content: Blob(content.into()) }
    }

    fn debian() -> ConfigLayout {
        let files = [
            file(
                "/etc/postgresql/15/main/postgresql.conf",
                "data_directory = '/var/lib/postgresql/15/main'\n\
                 hba_file='/etc/postgresql/15/main/pg_hba.conf'\n\
                 # include '/etc/shared.conf'\n\
                 include '/etc/shared.conf' # and /etc/shared.conf\n\
                 include_dir '/etc/postgresql/15/main/conf.d/'\ninclude_dir = 'conf.d'",
            ),
            file("/etc/postgresql/15/main/pg_hba.conf", "local all @/etc/users/list peer\n"),
            file("/etc/postgresql/15/main/pg_ident.conf", ""),
            file("/etc/postgresql/15/main/conf.d/a.conf", "x = 1\n"),
            file("/etc/shared.conf", "y = '/etc/shared.configuration'\n"),
            file("/etc/users/list", "me\n"),
        ];
        layout(&files, &[], Path::new("/srv/conf"), Path::new("/srv/it's")).unwrap()
    }

    fn content(layout: &ConfigLayout, relative: &str) -> String {
        let file = layout.files.iter().find(|file| file.relative == Path::new(relative)).unwrap();
        String::from_utf8(file.content.clone()).unwrap()
    }

    #[test]
    fn a_debian_cluster_keeps_its_shape_and_finds_its_files() {
        let layout = debian();
        assert_eq!(layout.main.as_deref(), Some(Path::new("postgresql.conf")));
        let expected = "data_directory = '/var/lib/postgresql/15/main'\n\
            hba_file='/srv/conf/pg_hba.conf'\n\
            # include '/etc/shared.conf'\n\
            include '/srv/conf/elsewhere/etc/shared.conf' # and /srv/conf/elsewhere/etc/shared.conf\n\
            include_dir '/srv/conf/conf.d'\ninclude_dir = 'conf.d'\n\
            # appended by walden restore\n\
            data_directory = '/srv/it''s'\n\
            hba_file = '/srv/conf/pg_hba.conf'\n\
            ident_file = '/srv/conf/pg_ident.conf'\n";
        assert_eq!(content(&layout, "postgresql.conf"), expected);
        assert_eq!(content(&layout, "pg_hba.conf"), "local all @/srv/conf/elsewhere/etc/users/list peer\n");
        assert_eq!(content(&layout, "elsewhere/etc/shared.conf"), "y = '/etc/shared.configuration'\n");
        assert_eq!(content(&layout, "conf.d/a.conf"), "x = 1\n");
    }

    #[test]
    fn directories_that_are_included_are_there_also_when_they_are_empty() {
        let main = "include_dir = 'conf.d'\t\t\t# of a new cluster\n#include_dir 'not.d'\ninclude_directory 'x'\n\
            INCLUDE_DIR '/etc/all.d/'\n  include_dir ../up.d\n";
        let files = [file("/etc/postgresql/15/main/postgresql.conf", main)];
        let placed = layout(&files, &[], Path::new("/c"), Path::new("/d")).unwrap();
        assert_eq!(placed.dirs, [Path::new("conf.d"), Path::new("elsewhere/etc/all.d")]);
        let rewritten = content(&placed, "postgresql.conf");
        assert!(rewritten.contains("INCLUDE_DIR '/c/elsewhere/etc/all.d'\n"), "{rewritten}");
        assert!(rewritten.starts_with("include_dir = 'conf.d'\t"), "{rewritten}");
    }

    #[test]
    fn nothing_outside_means_nothing_to_write() {
        let nothing = layout(&[], &[], Path::new("/c"), Path::new("/d")).unwrap();
        assert_eq!(nothing, ConfigLayout::default());
    }

    #[test]
    fn paths_that_climb_are_refused() {
        for path in ["/etc/../root/.ssh/config", "relative.conf"] {
            let refused = layout(&[file(path, "")], &[], Path::new("/c"), Path::new("/d"));
            assert!(matches!(refused, Err(RestoreError::Damage { .. })), "{path}");
        }
    }

    #[test]
    fn the_source_says_which_file_is_which() {
        let settings = [Setting { name: "config_file".into(), value: "/etc/pg/main.conf".into() }];
        let files = [file("/etc/pg/postgresql.conf", "old"), file("/etc/pg/main.conf", "new")];
        let placed = layout(&files, &settings, Path::new("/c"), Path::new("/d")).unwrap();
        assert_eq!(placed.main.as_deref(), Some(Path::new("main.conf")));
        assert!(content(&placed, "main.conf").contains("data_directory = '/d'"));
        assert_eq!(content(&placed, "postgresql.conf"), "old");
    }
}
