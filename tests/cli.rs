//! The command line's promises that need no server: exit codes, where things are printed, who wins, what is refused.

mod common;

use common::walden::{Place, files, finish};
use std::fs;
use std::os::unix::fs::PermissionsExt;

#[test]
fn init_can_be_run_again_and_changes_nothing() {
    let place = Place::new();
    let made = place.ok(&["init"]);
    assert!(made.contains("if every key slot of a repository is lost"), "{made}");
    let before = files(&place.path("repo"));
    assert!(place.ok(&["init"]).contains("was there already"));
    let again = place.json(&["init"]);
    assert_eq!((&again["version"], &again["created"]), (&1.into(), &false.into()));
    assert_eq!(files(&place.path("repo")), before);
}

#[test]
fn a_wrong_passphrase_is_refused_without_being_shown() {
    let place = Place::init();
    let mut init = place.command(&["init", "--passphrase-command", "echo battery-staple"]);
    let ended = finish(&mut init);
    assert_eq!((ended.code, ended.out.as_str()), (5, ""));
    assert!(ended.err.starts_with("error: ") && ended.err.contains("\nhint: "), "{}", ended.err);
    assert!(!ended.err.contains("staple") || ended.err.contains("`echo"), "{}", ended.err);
}

#[test]
fn secrets_that_others_can_read_are_refused() {
    let place = Place::new();
    fs::set_permissions(place.path("passphrase"), fs::Permissions::from_mode(0o640)).unwrap();
    let ended = place.run(&["init"]);
    assert_eq!(ended.code, 5);
    assert!(ended.err.contains("mode 0640, expected 0600\nhint: chmod 600 "), "{}", ended.err);
    assert!(!place.path("repo").join("walden").exists());
}

#[test]
fn errors_are_documents_under_json() {
    let place = Place::init();
    for (args, code, kind) in [
        (&["--json", "init", "--passphrase-command", "echo no"][..], 5, "key"),
        (&["--json", "init", "--repo", "ftp://host/x"], 2, "usage"),
        (&["--json", "init", "--no-such-option"], 2, "usage"),
        (&["--json", "init", "--config", "/nonexistent.toml"], 2, "usage"),
    ] {
        let ended = place.run(args);
        assert_eq!((ended.code, ended.out.as_str()), (code, ""), "{args:?}: {}", ended.err);
        let document: serde_json::Value = serde_json::from_str(ended.err.trim()).unwrap();
        assert_eq!(document["version"], 1);
        assert_eq!((&document["error"]["code"], &document["error"]["kind"]), (&code.into(), &kind.into()));
        assert!(!document["error"]["message"].as_str().unwrap().is_empty());
    }
}

#[test]
fn a_password_on_the_command_line_is_refused_with_advice() {
    let place = Place::init();
    for connection in ["host=a password=hunter2", "postgresql://u:hunter2@a/db"] {
        let ended = place.run(&["init", "--connection", connection]);
        assert_eq!(ended.code, 2);
        assert!(ended.err.contains(".pgpass") && !ended.err.contains("hunter2"), "{}", ended.err);
    }
}

#[test]
fn an_option_beats_the_environment_which_beats_the_file() {
    let place = Place::new();
    let config = place.path("walden.toml");
    let url = |name: &str| place.path(name).display().to_string();
    let passphrase = place.path("passphrase").display().to_string();
    let text = format!("[repository.main]\nurl = {:?}\npassphrase_file = {passphrase:?}\n", url("of-file"));
    fs::write(&config, text).unwrap();
    let made = |env: Option<&str>, args: &[&str]| {
        let mut command = place.command(&["--json", "init", "--config", config.to_str().unwrap()]);
        command.args(args).env_remove("WALDEN_REPO").env_remove("WALDEN_PASSPHRASE_FILE");
        if let Some(repo) = env {
            command.env("WALDEN_REPO", repo).env("WALDEN_PASSPHRASE_FILE", &passphrase);
        }
        let document: serde_json::Value = serde_json::from_str(&finish(&mut command).expect(0)).unwrap();
        document["url"].as_str().unwrap().to_owned()
    };
    assert!(made(None, &[]).ends_with("/of-file"));
    assert!(made(Some(&url("of-env")), &[]).ends_with("/of-env"));
    assert!(made(Some(&url("of-env")), &["--repo", &url("of-flag")]).ends_with("/of-flag"));

    fs::write(&config, "[repository.main]\nulr = \"/x\"\n").unwrap();
    let ended = place.run(&["init", "--config", config.to_str().unwrap()]);
    assert_eq!(ended.code, 2);
    assert!(
        ended.err.contains("line 2: unknown key repository.main.ulr, did you mean url?"),
        "{}",
        ended.err
    );
}

#[test]
fn keys_open_repositories_as_passphrases_do() {
    let place = Place::new();
    let key = place.path("key").display().to_string();
    place.ok(&["key", "generate", "--out", &key]);
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(place.run(&["key", "generate", "--out", &key]).code, 7);
    let init = |args: &[&str]| {
        let mut command = place.command(args);
        finish(command.env_remove("WALDEN_PASSPHRASE_FILE"))
    };
    init(&["init", "--key-file", &key]).expect(0);
    init(&["init", "--key-command", &format!("cat {key}")]).expect(0);
    assert_eq!(init(&["init", "--passphrase-file", place.path("passphrase").to_str().unwrap()]).code, 5);
    let generated = place.ok(&["key", "generate"]);
    assert!(generated.trim().len() == 64 && generated.trim().bytes().all(|b| b.is_ascii_hexdigit()));
}

#[test]
fn help_and_completions_are_results() {
    let place = Place::new();
    for args in [
        &["--help"][..],
        &["init", "--help"],
        &["completions", "bash"],
        &["completions", "zsh"],
        &["--version"],
    ] {
        let ended = place.run(args);
        assert_eq!((ended.code, ended.err.as_str()), (0, ""), "{args:?}");
        assert!(ended.out.contains("walden"), "{args:?}");
    }
    assert_eq!(place.run(&[]).code, 2);
}
