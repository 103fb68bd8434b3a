//! The command line's promises: exit codes, where things are printed, who wins, what is refused.

mod common;

use common::pg::{Pg, Process, wait_until};
use common::walden::{Place, files, finish};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

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

/// Runs `walden --repo REPO ARGS` on a terminal of its own and types each line when its question stands there.
/// Returns the exit code and everything the terminal showed.
fn on_a_terminal(place: &Place, args: &str, answers: &[(&str, &str)]) -> (i32, String) {
    let binary = env!("CARGO_BIN_EXE_walden");
    let command = format!("{binary} --repo {} {args}", place.path("repo").display());
    let mut script = Command::new("script");
    script
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .env_clear()
        .env("SHELL", "/bin/sh");
    let mut script =
        script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("script, of bsdutils");
    let (mut keyboard, mut screen) = (script.stdin.take().unwrap(), script.stdout.take().unwrap());
    let mut shown = Vec::new();
    for (question, answer) in answers {
        let mut byte = [0];
        while !String::from_utf8_lossy(&shown).contains(question) {
            assert_eq!(screen.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&shown));
            shown.extend(byte);
        }
        // Nobody types so fast that the terminal still echoes.
        std::thread::sleep(Duration::from_millis(300));
        keyboard.write_all(format!("{answer}\n").as_bytes()).unwrap();
    }
    screen.read_to_end(&mut shown).unwrap();
    (script.wait().unwrap().code().unwrap(), String::from_utf8_lossy(&shown).into_owned())
}

#[test]
fn a_passphrase_is_asked_for_on_a_terminal_and_not_shown() {
    let place = Place::new();
    let twice = |second| [("New passphrase", "correct horse"), ("The same again", second)];
    let (code, shown) = on_a_terminal(&place, "init", &twice("correct house"));
    assert_eq!(code, 5, "{shown}");
    assert!(!place.path("repo").exists(), "{shown}");
    let (code, shown) = on_a_terminal(&place, "init", &twice("correct horse"));
    assert_eq!(code, 0, "{shown}");
    assert!(!shown.contains("horse"), "{shown}");
    let (code, shown) = on_a_terminal(&place, "info", &[("Passphrase of the repository", "wrong")]);
    assert_eq!(code, 5, "{shown}");
    let (code, shown) = on_a_terminal(&place, "info", &[("Passphrase of the repository", "correct horse")]);
    assert_eq!(code, 0, "{shown}");
    // Nobody is there to ask.
    let mut info = place.command(&["info"]);
    let ended = finish(info.env_remove("WALDEN_PASSPHRASE_FILE"));
    assert_eq!(ended.code, 2, "{}", ended.err);
    assert!(ended.err.contains("\nhint: give --passphrase-file"), "{}", ended.err);
}

#[test]
fn key_slots_are_added_and_removed_at_a_terminal() {
    let place = Place::init();
    let file = place.path("passphrase").display().to_string();
    let add = format!("key add ops --passphrase-file {file}");
    let twice = [("New passphrase for key slot ops", "battery"), ("The same again", "battery")];
    let (code, shown) = on_a_terminal(&place, &add, &twice);
    assert_eq!(code, 0, "{shown}");
    assert!(shown.contains("added key slot ops") && !shown.contains("battery"), "{shown}");
    let remove = format!("key remove main --passphrase-file {file}");
    let (code, shown) = on_a_terminal(&place, &remove, &[("Type main to go on", "yes")]);
    assert!(code == 2 && shown.contains("nothing was done"), "{shown}");
    assert_eq!(place.json(&["key", "list"])["slots"].as_array().unwrap().len(), 2);
    let (code, shown) = on_a_terminal(&place, &remove, &[("Type main to go on", "main")]);
    assert!(code == 0 && shown.contains("removed key slot main"), "{shown}");
    assert_eq!(place.run(&["info"]).code, 5);
    // Without a key that opens it, what can be seen is shown, and what cannot be is said.
    let list = place.json(&["key", "list"]);
    assert_eq!(
        (&list["opened_by"], &list["slots"][0]["vouched"]),
        (&serde_json::Value::Null, &serde_json::Value::Null)
    );
    assert_eq!(list["slots"][0]["epochs"], serde_json::json!([1, 2]));
    assert!(list["unchecked"].as_str().unwrap().contains("vouchers were not checked"), "{list}");
}

#[test]
fn what_would_lose_a_repository_is_refused() {
    let place = Place::init();
    place.write_private("other", "battery staple\n");
    let other = place.path("other").display().to_string();
    for (args, code, says) in [
        (&["key", "remove", "main", "--yes"][..], 7, "no key slot would be left"),
        (&["key", "remove", "main"], 2, "--yes says that it is meant"),
        (&["key", "remove", "nobody", "--yes"], 6, "key slot nobody not found"),
        (&["key", "destroy", "1", "--yes"], 7, "is the newest"),
        (&["key", "destroy", "9", "--yes"], 6, "key epoch 9 not found"),
        (&["key", "destroy", "0", "--yes"], 2, "0 is not in 1.."),
        (&["key", "add", "main", "--new-passphrase-file", &other], 7, "there is a key slot main already"),
        (&["key", "add", "epochs", "--new-passphrase-file", &other], 2, "epochs"),
        (&["key", "add", "ops"], 2, "--new-passphrase-file"),
    ] {
        let ended = place.run(args);
        assert_eq!(ended.code, code, "{args:?}: {}", ended.err);
        assert!(ended.err.contains(says), "{args:?}: {}", ended.err);
    }
    assert_eq!(place.json(&["key", "list"])["slots"].as_array().unwrap().len(), 1);
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

#[test]
fn a_journal_directory_without_a_journal_is_refused() {
    let place = Place::init();
    let journal = place.path("journal").display().to_string();
    let ended = place.run(&["receive", "--connection", "host=127.0.0.1 port=1", "--journal-dir", &journal]);
    assert_eq!(ended.code, 2, "{}", ended.err);
    assert!(ended.err.contains("--ack journal"), "{}", ended.err);
    assert!(!place.path("journal").exists());
}

/// A server, a repository, and a `walden receive` between them.
fn archived(major: u32) -> (Pg, Place, Process) {
    let pg = Pg::builder(major).wal_segment_mib(1).start();
    let place = Place::init();
    let receive = Process::start(place.command_for(&pg, &["receive", "--flush-interval", "100ms"]));
    let active = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'walden_shop' AND active";
    pg.wait_for(active, "1", Duration::from_secs(60));
    (pg, place, receive)
}

#[test]
fn receive_stops_cleanly_on_sigterm_and_leaves_its_slot() {
    let (pg, place, mut receive) = archived(15);
    pg.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS a");
    let end = pg.sql("SELECT pg_current_wal_flush_lsn()");
    // What it has is stored; what the server did not send it yet is not waited for.
    let sent = format!("SELECT bool_and(sent_lsn >= '{end}') FROM pg_stat_replication");
    pg.wait_for(&sent, "t", Duration::from_secs(60));
    receive.signal(rustix::process::Signal::TERM);
    let status = receive.wait(Duration::from_secs(60)).expect("it stops");
    assert_eq!(status.code(), Some(0));
    let durable = place.json(&["info"])["clusters"][0]["durable_lsn"].as_str().unwrap().to_owned();
    assert_eq!(pg.sql(&format!("SELECT '{durable}'::pg_lsn >= '{end}'::pg_lsn")), "t", "{durable} {end}");

    assert_eq!(finish(&mut place.command_for(&pg, &["slot", "drop"])).code, 0);
    assert_eq!(pg.sql("SELECT count(*) FROM pg_replication_slots"), "0");
    assert_eq!(finish(&mut place.command_for(&pg, &["slot", "drop"])).code, 6);
}

#[test]
fn sigint_stops_receive_with_130() {
    let (_pg, _place, mut receive) = archived(15);
    receive.signal(rustix::process::Signal::INT);
    assert_eq!(receive.wait(Duration::from_secs(60)).expect("it stops").code(), Some(130));
}

#[test]
fn an_interrupted_backup_says_so_and_leaves_nothing() {
    let limit = Duration::from_secs(60);
    let (pg, place, receive) = archived(15);
    let pending = place.path("repo/clusters/shop/pending");
    let any = || fs::read_dir(&pending).is_ok_and(|mut entries| entries.next().is_some());
    for (signal, code) in [(rustix::process::Signal::INT, 130), (rustix::process::Signal::TERM, 143)] {
        let slowly = place.command_for(&pg, &["backup", "--max-rate", "1MB"]);
        let mut backup = place.start(slowly, "backup");
        let streaming =
            "SELECT count(*) FROM pg_stat_progress_basebackup WHERE phase = 'streaming database files'";
        pg.wait_for(streaming, "1", limit);
        assert!(any(), "it is registered");
        backup.signal(signal);
        assert_eq!(backup.wait(limit).expect("it stops").code(), Some(code), "{}", place.log("backup"));
        assert!(
            place.log("backup").contains("interrupted; nothing was kept of it"),
            "{}",
            place.log("backup")
        );
        // The receiver may be compacting.
        assert!(wait_until(limit, || !any()), "it is registered still");
        assert_eq!(place.json(&["info"])["clusters"][0]["backups"], serde_json::json!([]));
        pg.wait_for("SELECT count(*) FROM pg_stat_progress_basebackup", "0", limit);
    }
    drop(receive);
}

#[test]
fn a_place_where_we_may_not_write_is_no_bug_of_ours() {
    let (pg, place, receive) = archived(15);
    finish(&mut place.command_for(&pg, &["backup"])).expect(0);
    drop(receive);
    // Refused to root too.
    let refused = "/sys/walden";
    let restore = place.run(&["restore", "--latest", "--target-dir", refused]);
    assert_eq!(restore.code, 2, "{}", restore.err);
    let receive = ["receive", "--ack", "journal", "--journal-dir", refused];
    let receive = finish(&mut place.command_for(&pg, &receive));
    assert_eq!(receive.code, 2, "{}", receive.err);
    for slot in ["Bad-Slot", ""] {
        let refused = finish(&mut place.command_for(&pg, &["receive", "--slot", slot]));
        assert_eq!(refused.code, 2, "{}", refused.err);
        assert!(refused.err.contains("1 to 63 of a-z, 0-9 and _"), "{}", refused.err);
    }
}

#[test]
fn check_sees_a_position_durable_and_names_what_fails() {
    let (pg, place, receive) = archived(15);
    let checked = finish(&mut place.command_for(&pg, &["--json", "check"])).expect(0);
    let document: serde_json::Value = serde_json::from_str(&checked).unwrap();
    let checks = document["checks"].as_array().unwrap();
    let level = |name: &str| checks.iter().find(|check| check["name"] == name).unwrap()["level"].clone();
    assert_eq!(document["ok"], true);
    assert_eq!((level("archived"), level("slot")), ("ok".into(), "ok".into()));
    assert_eq!(level("max_slot_wal_keep_size"), "warn");
    drop(receive);

    // The same cluster name for another server.
    let other = Pg::start(15);
    assert_eq!(finish(&mut place.command_for(&other, &["check"])).code, 11);
    assert_eq!(finish(&mut place.command_for(&other, &["receive"])).code, 11);
    assert_eq!(finish(&mut place.command_for(&other, &["backup"])).code, 11);
    assert_eq!(
        other.sql("SELECT count(*) FROM pg_replication_slots"),
        "0",
        "a refused server keeps no slot of ours"
    );
}

#[test]
fn a_backup_without_a_receiver_is_complete_and_leaves_no_slot() {
    let pg = Pg::builder(15).wal_segment_mib(1).start();
    let place = Place::init();
    let made = finish(&mut place.command_for(&pg, &["--json", "backup"])).expect(0);
    let document: serde_json::Value = serde_json::from_str(&made).unwrap();
    assert_eq!((&document["backup"]["state"], &document["streamed_wal"]), (&"complete".into(), &true.into()));
    assert_eq!(pg.sql("SELECT count(*) FROM pg_replication_slots"), "0");

    let info = place.json(&["info"]);
    let cluster = &info["clusters"][0];
    assert_eq!(cluster["system_identifier"], pg.sql("SELECT system_identifier FROM pg_control_system()"));
    assert!(cluster["window"]["start"].is_string() && cluster["window"]["gaps"] == serde_json::json!([]));
    for field in ["id", "start_lsn", "stop_lsn", "bytes_raw", "bytes_stored", "bytes_new", "state"] {
        assert!(!cluster["backups"][0][field].is_null(), "{field}");
    }
    for field in ["bytes_raw", "bytes_stored", "bytes_waiting"] {
        assert!(cluster["wal"][field].is_u64(), "{field}");
    }
    let restore = |args: &[&str]| {
        place.run(&[&["restore", "--target-dir", "/nonexistent/r", "--dry-run"], args].concat())
    };
    assert_eq!(restore(&["--to-time", "2001-01-01 00:00:00+00"]).code, 3);
    assert_eq!(restore(&["--to-time", "half past nine"]).code, 2);
    assert_eq!(restore(&["--to-lsn", "0/1", "--latest"]).code, 2);
    assert_eq!(restore(&["--backup", "19990101T000000Z"]).code, 6);
    let planned = restore(&["--latest"]).expect(0);
    assert!(planned.contains("start with") && !std::path::Path::new("/nonexistent").exists(), "{planned}");
}

#[test]
fn log_finds_a_drop_and_not_a_rewrite() {
    let (pg, place, receive) = archived(15);
    pg.sql("CREATE TABLE kept AS SELECT generate_series(1, 100) AS a; CREATE TABLE gone (a int)");
    pg.sql("VACUUM FULL kept");
    pg.sql("DROP TABLE gone");
    let drops = |args: &[&str]| place.json(args)["entries"].as_array().unwrap().clone();
    let mut found = Vec::new();
    wait_until(Duration::from_secs(30), || {
        found = drops(&["log", "--drops"]);
        !found.is_empty()
    });
    assert_eq!(found.iter().map(|entry| &entry["kind"]).collect::<Vec<_>>(), ["drop"]);
    // Compaction moves it into the index, which leaves relations out; it is shown with them all the same.
    finish(&mut place.command_for(&pg, &["compact", "--all"])).expect(0);
    assert_eq!(drops(&["log", "--drops"]), found);
    let xid = found[0]["xid"].to_string();
    assert_eq!(drops(&["log", "--xid", &xid])[0]["lsn"], found[0]["lsn"]);
    let around = drops(&["log", "--around", found[0]["time"].as_str().unwrap()]);
    assert!(around.iter().any(|entry| entry["kind"] == "commit"), "{around:?}");
    drop(receive);
}
