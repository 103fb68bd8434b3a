//! Files of credentials, in the form of AWS's: sections of `name = value`. What the file holds is never in an error.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// The values of one section.
pub(super) type Section = BTreeMap<String, Zeroizing<String>>;

/// Reads section `profile` of the file at `path`, which only its owner may read.
pub(super) fn read_private(path: &Path, profile: &str) -> Result<Section, String> {
    check_private(path)?;
    read(path, profile)?.ok_or_else(|| format!("{} has no section [{profile}]", path.display()))
}

/// Refuses a file that others than its owner may read.
pub(super) fn check_private(path: &Path) -> Result<(), String> {
    let meta = std::fs::metadata(path).map_err(|error| format!("{}: {error}", path.display()))?;
    match meta.mode() & 0o077 {
        0 => Ok(()),
        _ => Err(format!("{} can be read by others; chmod 600 it", path.display())),
    }
}

/// Where AWS's tools look, and the section they take.
pub(super) fn aws_default(env: &dyn Fn(&str) -> Option<String>) -> Option<(PathBuf, String)> {
    let path = match env("AWS_SHARED_CREDENTIALS_FILE") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(env("HOME")?).join(".aws/credentials"),
    };
    Some((path, env("AWS_PROFILE").unwrap_or_else(|| "default".into())))
}

/// Reads section `profile`; `None` when the file or the section is not there.
pub(super) fn read(path: &Path, profile: &str) -> Result<Option<Section>, String> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => Zeroizing::new(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{}: {error}", path.display())),
    };
    Ok(section(&text, profile))
}

fn section(text: &str, profile: &str) -> Option<Section> {
    let (mut inside, mut found) = (false, None);
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(['#', ';'])) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            inside = name.trim() == profile;
            if inside {
                found.get_or_insert_with(Section::new);
            }
        } else if let (true, Some((name, value))) = (inside, line.split_once('=')) {
            let value = Zeroizing::new(value.trim().to_owned());
            found.get_or_insert_with(Section::new).insert(name.trim().to_ascii_lowercase(), value);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const TEXT: &str = "[default]\naws_access_key_id=AKIA\n; a note\n[other]\n aws_access_key_id = X \nAWS_SECRET_ACCESS_KEY = a=b\n";

    #[test]
    fn a_section_is_found_by_its_name() {
        let other = section(TEXT, "other").unwrap();
        assert_eq!(other["aws_access_key_id"].as_str(), "X");
        assert_eq!(other["aws_secret_access_key"].as_str(), "a=b");
        assert_eq!(section(TEXT, "default").unwrap().len(), 1);
        assert!(section(TEXT, "none").is_none());
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), TEXT).unwrap();
        for (mode, fine) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false)] {
            std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            let read = read_private(file.path(), "other");
            assert_eq!(read.is_ok(), fine, "{mode:o}");
            assert!(!format!("{:?}", read.err()).contains("a=b"));
        }
        assert!(
            read_private(file.path(), "none").is_err() && read(Path::new("/none"), "x").unwrap().is_none()
        );
    }

    #[test]
    fn looks_where_awss_tools_look() {
        let env = |name: &str| (name == "HOME").then(|| "/home/a".to_owned());
        assert_eq!(aws_default(&env), Some(("/home/a/.aws/credentials".into(), "default".into())));
        let env = |name: &str| match name {
            "AWS_SHARED_CREDENTIALS_FILE" => Some("/c".to_owned()),
            "AWS_PROFILE" => Some("p".to_owned()),
            _ => None,
        };
        assert_eq!(aws_default(&env), Some(("/c".into(), "p".into())));
    }
}
