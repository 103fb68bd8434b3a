//! The house rules that a machine can check: layers, headers, file lengths, pure rooms, reasons for dependencies.
//! The layers are read from the code map in `src/lib.rs`: what it says is what holds.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The most lines of a file, its tests not counted.
const LINES_MAX: usize = 500;
/// The least a header says.
const HEADER_MIN: usize = 15;
/// What is on its way: each is to go.
const WAIVED: &[&str] = &["src/receive/journal.rs"];
/// Rooms that do no IO, read no clock and spawn nothing.
const PURE: &[&str] = &["base", "format", "codec", "wal", "wire", "delta"];
/// What a pure room does not say.
const IMPURE: &[&str] = &[
    "std::fs",
    "std::net",
    "std::process",
    "std::thread",
    "std::env",
    "tokio",
    "SystemTime",
    "Instant::now",
    "getrandom",
    "rustix",
];
/// Not a room: the one function per parser that fuzzing calls.
const NO_ROOM: &str = "fuzzing";

struct Source {
    /// Relative to the package.
    path: String,
    text: String,
}

impl Source {
    fn room(&self) -> &str {
        let inside = self.path.strip_prefix("src/").unwrap();
        inside.split(['/', '.']).next().unwrap()
    }

    fn is_tests(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/") || self.path.starts_with("tests/")
    }

    /// The file without the unit tests at its end.
    fn without_tests(&self) -> &str {
        let at = ["\n#[cfg(test)]\nmod ", "\n#[cfg(test)]\n#[allow("]
            .iter()
            .filter_map(|m| self.text.find(m))
            .min();
        self.text.get(..at.unwrap_or(self.text.len())).unwrap()
    }
}

fn package() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The Rust files under these folders.
fn sources(folders: &[&str]) -> Vec<Source> {
    fn walk(dir: &Path, to: &mut Vec<Source>) {
        let mut entries: Vec<PathBuf> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                if path.file_name().is_some_and(|name| name != "target" && name != "corpus") {
                    walk(&path, to);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(package()).unwrap().to_str().unwrap().to_owned();
                to.push(Source { path, text });
            }
        }
    }
    let mut all = Vec::new();
    folders
        .iter()
        .map(|folder| package().join(folder))
        .filter(|dir| dir.is_dir())
        .for_each(|dir| walk(&dir, &mut all));
    assert!(!all.is_empty(), "no sources under {folders:?}");
    all
}

fn report(rule: &str, mut broken: Vec<String>) {
    broken.retain(|what| !WAIVED.iter().any(|waived| what.contains(waived)));
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

/// The floor of each room, the lowest 0, as the code map in lib.rs draws them.
fn floors() -> BTreeMap<String, usize> {
    let text = fs::read_to_string(package().join("src/lib.rs")).unwrap();
    let map = text.split("```text\n").nth(1).and_then(|rest| rest.split("//! ```").next()).unwrap();
    let lines: Vec<&str> = map.lines().map(|line| line.trim_start_matches("//!").trim_start()).collect();
    let mut floors = BTreeMap::new();
    for (height, line) in lines.iter().rev().enumerate() {
        // Rooms are two spaces apart; what a floor is for follows after more.
        let rooms = line.split("   ").next().unwrap();
        for room in rooms.split_whitespace() {
            assert!(floors.insert(room.to_owned(), height).is_none(), "lib.rs draws {room} twice");
        }
    }
    floors
}

/// The rooms that a source imports: `crate::room`, alone or in braces.
fn imports(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in code_lines(text).join("\n").split("crate::").skip(1) {
        match line.strip_prefix('{') {
            None => found.push(first_word(line)),
            Some(group) => {
                let mut depth = 0;
                for part in group.split_inclusive([',', '{', '}']) {
                    if depth == 0 && !first_word(part.trim_start()).is_empty() {
                        found.push(first_word(part.trim_start()));
                    }
                    match part.chars().last() {
                        Some('{') => depth += 1,
                        Some('}') if depth == 0 => break,
                        Some('}') => depth -= 1,
                        _ => {}
                    }
                }
            }
        }
    }
    found
}

fn first_word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

fn code_lines(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect()
}

#[test]
fn imports_go_downward() {
    let floors = floors();
    let mut broken = Vec::new();
    for source in sources(&["src"]) {
        let room = source.room();
        if matches!(room, "lib" | NO_ROOM) {
            continue;
        }
        let Some(floor) = floors.get(room) else {
            broken.push(format!("{}: lib.rs draws no room {room}", source.path));
            continue;
        };
        for import in imports(&source.text) {
            match floors.get(&import) {
                Some(other) if other < floor || import == room => {}
                Some(_) => {
                    broken.push(format!("{}: {room} imports {import}, which is not below it", source.path))
                }
                // An item of the crate itself, a macro.
                None => {}
            }
        }
    }
    report("imports go strictly downward (src/lib.rs)", broken);
}

#[test]
fn the_layer_rule_finds_what_it_should() {
    let found = imports(
        "use crate::base::{Lsn, ids::X};\nuse crate::{codec::seal, repo::{a, b}, wal};\n// crate::net\n",
    );
    assert_eq!(found, ["base", "codec", "repo", "wal"]);
    let floors = floors();
    assert!(floors["base"] < floors["format"] && floors["format"] < floors["codec"]);
    assert!(floors["codec"] < floors["store"] && floors["store"] < floors["repo"]);
    assert!(floors["repo"] < floors["receive"] && floors["receive"] == floors["backup"]);
    assert!(floors["receive"] < floors["operate"] && floors["operate"] < floors["tools/walden/"]);
}

#[test]
fn every_file_says_what_it_is_for() {
    let all = sources(&["src", "tools", "tests", "benches", "fuzz"]);
    let silent = all.iter().filter(|source| {
        let header = source.text.lines().take_while(|line| line.starts_with("//!"));
        !source.path.ends_with("/tests.rs") && header.map(str::len).sum::<usize>() < HEADER_MIN
    });
    report("a file begins with a `//!` header", silent.map(|source| source.path.clone()).collect());
}

#[test]
fn headers_name_pages_that_exist() {
    let mut broken = Vec::new();
    for source in sources(&["src", "tools"]) {
        for rest in source.text.split("formats/").skip(1) {
            let page: String =
                rest.chars().take_while(|c| c.is_alphanumeric() || matches!(c, '.' | '_' | '-')).collect();
            let page = page.trim_end_matches('.');
            if page.ends_with(".md") && !package().join("formats").join(page).exists() {
                broken.push(format!("{}: formats/{page}", source.path));
            }
        }
    }
    report("pages that are named exist", broken);
}

#[test]
fn files_stay_short() {
    let all = sources(&["src", "tools", "benches"]);
    let long = all.iter().filter(|source| !source.is_tests()).filter_map(|source| {
        let lines = source.without_tests().lines().count();
        (lines > LINES_MAX).then(|| format!("{}: {lines} lines", source.path))
    });
    report("a file has at most 500 lines without its tests", long.collect());
}

#[test]
fn pure_rooms_stay_pure() {
    let mut broken = Vec::new();
    for source in sources(&["src"]) {
        if !PURE.contains(&source.room()) || source.is_tests() {
            continue;
        }
        for line in code_lines(source.without_tests()) {
            if let Some(word) = IMPURE.iter().find(|word| line.contains(**word)) {
                broken.push(format!("{}: {word}: {}", source.path, line.trim()));
            }
        }
    }
    report("base, format, codec, wal, wire and delta do no IO, read no clock and spawn nothing", broken);
}

#[test]
fn the_library_never_prints_and_queues_are_bounded() {
    let mut broken = Vec::new();
    for source in sources(&["src"]).iter().filter(|source| !source.is_tests()) {
        for line in code_lines(source.without_tests()) {
            if let Some(word) =
                ["println!", "print!(", "eprint!(", "unbounded"].iter().find(|word| line.contains(**word))
            {
                broken.push(format!("{}: {word}", source.path));
            }
        }
    }
    report("the library never prints, and every queue has a bound", broken);
}

#[test]
fn every_dependency_has_its_reason() {
    let text = fs::read_to_string(package().join("Cargo.toml")).unwrap();
    let (mut inside, mut before, mut broken) = (false, "", Vec::new());
    for line in text.lines() {
        if line.starts_with('[') {
            inside = line.contains("dependencies");
        } else if inside && line.contains(" = ") && !line.starts_with('#') && !before.starts_with('#') {
            broken.push(line.to_owned());
        }
        before = line;
    }
    report("a dependency has a line above it that says why", broken);
}
