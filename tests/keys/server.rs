//! Keys change beside a real PostgreSQL: what was stored before, during and after is restored with the slot that is left.

use crate::common::pg::{Pg, wait_until};
use crate::common::walden::{Place, finish};
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// A script that gives a key for a wrapped one, as a command of a key service would.
fn key_service(place: &Place) -> String {
    let key = place.ok(&["key", "generate"]);
    let wrapped: String = key.trim().chars().rev().collect();
    fs::write(place.path("wrapped"), wrapped).unwrap();
    let script = place.path("kms");
    fs::write(&script, "#!/bin/sh\n[ \"$1\" = decrypt ] && exec rev \"$2\"\nexit 3\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    format!("{} decrypt {}", script.display(), place.path("wrapped").display())
}

#[test]
fn keys_are_exchanged_while_a_server_is_archived() {
    let pg = Pg::builder(15).wal_segment_mib(1).start();
    let place = Place::init();
    let mut receive =
        place.start(place.command_for(&pg, &["receive", "--flush-interval", "50ms"]), "receive");
    let stored = || pg.wait_archived(LIMIT);
    pg.sql("CREATE TABLE t AS SELECT 1 AS a");
    stored();
    finish(&mut place.command_for(&pg, &["backup"])).expect(0);

    let command = key_service(&place);
    let added = place.ok(&["key", "add", "kms", "--new-key-command", &command]);
    assert!(added.contains("added key slot kms; it opens key epochs 1"), "{added}");
    let with = |args: &[&str]| {
        let mut other = place.command(args);
        other.env_remove("WALDEN_PASSPHRASE_FILE").env("WALDEN_KEY_COMMAND", &command);
        finish(&mut other)
    };
    let removed = with(&["key", "remove", "main", "--yes"]).expect(0);
    assert!(removed.contains("key epoch 2 was made, for kms"), "{removed}");
    let shut = place.run(&["info"]);
    assert_eq!(shut.code, 5, "{}", shut.err);

    // The receiver was opened with a slot that is gone: it goes on under the old epoch, until it is started with the new one.
    pg.sql("INSERT INTO t VALUES (2)");
    stored();
    receive.signal(Signal::TERM);
    assert_eq!(receive.wait(LIMIT).expect("it stops").code(), Some(0), "{}", place.log("receive"));
    let mut again = place.command_for(&pg, &["receive", "--flush-interval", "50ms"]);
    again.env_remove("WALDEN_PASSPHRASE_FILE").env("WALDEN_KEY_COMMAND", &command);
    let receive = place.start(again, "receive");
    pg.sql("INSERT INTO t VALUES (3)");
    stored();

    let refused = with(&["key", "destroy", "1", "--yes"]);
    assert_eq!(refused.code, 7, "{}", refused.err);
    assert!(
        refused.err.contains("segments of chunks") && refused.err.contains("walden key move"),
        "{}",
        refused.err
    );
    let moved = with(&["key", "move"]).expect(0);
    assert!(moved.contains("Everything in use is under the newest key epoch"), "{moved}");
    let gone = wait_until(LIMIT, || {
        with(&["gc", "--grace", "0s"]).expect(0);
        let ended = with(&["key", "destroy", "1", "--yes"]);
        assert!(matches!(ended.code, 0 | 7), "{}", ended.err);
        ended.code == 0
    });
    assert!(gone, "{}", with(&["key", "destroy", "1", "--yes"]).err);
    let list = with(&["--json", "key", "list"]).expect(0);
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    assert_eq!((&list["opened_by"], list["slots"].as_array().unwrap().len()), (&"kms".into(), 1), "{list}");
    assert_eq!(list["epochs"].as_array().unwrap().len(), 1, "{list}");
    assert!(list["epochs"][0]["objects"].as_u64().unwrap() > 0, "{list}");
    pg.sql("INSERT INTO t VALUES (4)");
    stored();
    drop(receive);
    with(&["verify"]).expect(0);

    let target = place.path("restored");
    with(&["restore", "--target-dir", &target.display().to_string()]).expect(0);
    for needed in ["repo", "kms", "wrapped"] {
        crate::common::pg::give_to_postgres(&place.path(needed));
    }
    let mut restored = Pg::adopt(15, &target);
    restored.start_again();
    restored.wait_for("SELECT NOT pg_is_in_recovery()", "t", LIMIT);
    assert_eq!(restored.sql("SELECT string_agg(a::text, ' ' ORDER BY a) FROM t"), "1 2 3 4");
}
