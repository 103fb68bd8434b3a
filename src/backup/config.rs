//! Which other files a configuration file draws in. Pure: text in, paths out; who reads them decides what exists.
//! postgresql.conf has `include`, `include_if_exists` and `include_dir` (`utils/misc/guc-file.l`); pg_hba.conf and pg_ident.conf
//! have the same words from 16 on, and `@file` in their fields (`libpq/hba.c`).

use std::path::{Component, Path, PathBuf};

/// What kind of file a configuration file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigKind {
    /// postgresql.conf: `name = value`.
    Settings,
    /// pg_hba.conf and pg_ident.conf: fields.
    Fields,
}

/// Something that a configuration file draws in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Include {
    /// A file.
    File(PathBuf),
    /// The `.conf` files of a directory.
    Directory(PathBuf),
}

/// What `content` of the file at `path` draws in, in order. Paths are absolute: relative ones count from the file's directory.
pub fn includes(path: &Path, kind: ConfigKind, content: &[u8]) -> Vec<Include> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let absolute = |name: &str| clean(&folder.join(name));
    let mut found = Vec::new();
    for line in String::from_utf8_lossy(content).lines() {
        let words = match kind {
            ConfigKind::Settings => setting_words(line),
            ConfigKind::Fields => field_words(line),
        };
        let argument = words.get(1).filter(|word| !word.text.is_empty()).map(|word| absolute(&word.text));
        let word = words.first().filter(|word| !word.quoted).map(|word| word.text.to_ascii_lowercase());
        match (word.as_deref(), argument) {
            (Some("include" | "include_if_exists"), Some(path)) => found.push(Include::File(path)),
            (Some("include_dir"), Some(path)) => found.push(Include::Directory(path)),
            _ if kind == ConfigKind::Fields => {
                let lists = words.iter().filter(|word| !word.quoted);
                let names =
                    lists.filter_map(|word| word.text.strip_prefix('@').filter(|name| !name.is_empty()));
                found.extend(names.map(|name| Include::File(absolute(name))));
            }
            _ => {}
        }
    }
    found
}

struct Word {
    text: String,
    quoted: bool,
}

/// `name = 'value'` or `name value`, a comment cut off.
fn setting_words(line: &str) -> Vec<Word> {
    let line = line.trim_start();
    let name: String =
        line.chars().take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.')).collect();
    let rest = line.get(name.len()..).unwrap_or_default().trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    let value = match rest.strip_prefix('\'') {
        Some(quoted) => unquote(quoted),
        None => rest.split(|c: char| c.is_whitespace() || c == '#').next().unwrap_or_default().to_owned(),
    };
    vec![Word { text: name, quoted: false }, Word { text: value, quoted: true }]
}

/// The text up to the closing quote: `''` and `\x` stand for one character.
fn unquote(quoted: &str) -> String {
    let (mut text, mut chars) = (String::new(), quoted.chars().peekable());
    while let Some(c) = chars.next() {
        match c {
            '\'' if chars.peek() == Some(&'\'') => text.extend(chars.next()),
            '\'' => break,
            '\\' => text.extend(chars.next()),
            other => text.push(other),
        }
    }
    text
}

/// Fields between blanks and commas, double quotes taken off, a comment cut off.
fn field_words(line: &str) -> Vec<Word> {
    let (mut words, mut word, mut inside) = (Vec::new(), None::<Word>, false);
    for c in line.chars() {
        match c {
            '"' => {
                inside = !inside;
                word.get_or_insert(Word { text: String::new(), quoted: true });
            }
            '#' if !inside => break,
            c if !inside && (c.is_whitespace() || c == ',') => words.extend(word.take()),
            c => word.get_or_insert(Word { text: String::new(), quoted: false }).text.push(c),
        }
    }
    words.extend(word);
    words
}

/// `path` without `.` and `..`, as text alone allows.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                clean.pop();
            }
            other => clean.push(other),
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(kind: ConfigKind, text: &str) -> Vec<String> {
        let show = |include: &Include| match include {
            Include::File(path) => path.display().to_string(),
            Include::Directory(path) => format!("{}/", path.display()),
        };
        includes(Path::new("/etc/postgresql/15/main/x.conf"), kind, text.as_bytes())
            .iter()
            .map(show)
            .collect()
    }

    #[test]
    fn finds_what_postgresql_conf_includes() {
        let text = "# include 'not.conf'\ninclude_dir = 'conf.d'\t# Debian\nInclude 'a''b.conf'\n\
                    include_if_exists='../common.conf'\n include\t/srv/x.conf # y\nincludes = 'no'\nport = 5432\ninclude ''\n";
        let main = "/etc/postgresql/15/main";
        assert_eq!(
            found(ConfigKind::Settings, text),
            [
                format!("{main}/conf.d/"),
                format!("{main}/a'b.conf"),
                "/etc/postgresql/15/common.conf".into(),
                "/srv/x.conf".into()
            ]
        );
    }

    #[test]
    fn finds_what_pg_hba_includes() {
        let text = "# include x\ninclude more.conf\ninclude_dir \"with space\"\nhost @dbs all,@admins 10.0.0.0/8 scram-sha-256\n\
                    host \"@quoted\" @ all trust # @not\n\"include\" all all trust\n";
        let main = "/etc/postgresql/15/main";
        assert_eq!(
            found(ConfigKind::Fields, text),
            [
                format!("{main}/more.conf"),
                format!("{main}/with space/"),
                format!("{main}/dbs"),
                format!("{main}/admins")
            ]
        );
    }
}
