//! A real PostgreSQL is archived, backed up, copied under another key, and restored from the copy alone.

use crate::common::pg::{Pg, give_to_postgres, run};
use crate::common::walden::{Place, finish};
use rustix::process::Signal;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_server_is_restored_from_a_copy_when_its_own_repository_is_gone() {
    let pg = Pg::builder(15).wal_segment_mib(1).start();
    let place = Place::init();
    let mut receive =
        place.start(place.command_for(&pg, &["receive", "--flush-interval", "50ms"]), "receive");
    let stored = || pg.wait_archived(LIMIT);
    pg.sql("CREATE TABLE t AS SELECT i AS a, repeat('x', 100) AS b FROM generate_series(1, 20000) AS i");
    stored();
    finish(&mut place.command_for(&pg, &["backup"])).expect(0);
    pg.sql("UPDATE t SET b = 'y' WHERE a % 3 = 0");
    pg.sql("CHECKPOINT");
    stored();
    place.ok(&["compact", "--all"]);

    let key = place.ok(&["key", "generate"]);
    let key_file = place.write_private("key2", &key);
    let (to, key_arg) = (place.path("elsewhere").display().to_string(), key_file.display().to_string());
    let there = |args: &[&str]| {
        let mut command = place.command(args);
        command.env_remove("WALDEN_PASSPHRASE_FILE").env("WALDEN_REPO", &to).env("WALDEN_KEY_FILE", &key_arg);
        finish(&mut command)
    };
    let missing = place.run(&["copy", "--to", &to, "--to-key-file", &key_arg]);
    assert_eq!(missing.code, 6, "{}", missing.err);
    there(&["init"]).expect(0);
    let wrong = place.run(&["copy", "--to", &to]);
    assert_eq!(wrong.code, 2, "{}", wrong.err);
    let copied = place.json(&["copy", "--to", &to, "--to-key-file", &key_arg]);
    assert_eq!(copied["backups"].as_array().unwrap().len(), 1, "{copied}");

    // The server goes on, and so does its copy.
    pg.sql("INSERT INTO t VALUES (0, 'last')");
    stored();
    let more = place.json(&["copy", "--to", &to, "--to-key-file", &key_arg]);
    assert_eq!(more["backups"].as_array().unwrap().len(), 0, "{more}");
    assert!(more["wal_bytes"].as_u64().unwrap() > 0, "{more}");
    let expected = pg.sql("SELECT count(*), md5(string_agg(a || b, ',' ORDER BY a)) FROM t");
    receive.signal(Signal::TERM);
    assert_eq!(receive.wait(LIMIT).expect("it stops").code(), Some(0), "{}", place.log("receive"));
    std::fs::remove_dir_all(place.path("repo")).unwrap();

    there(&["verify"]).expect(0);
    let info = there(&["info"]).expect(0);
    assert!(info.contains("complete"), "{info}");
    let target = place.path("restored");
    there(&["restore", "--target-dir", &target.display().to_string()]).expect(0);
    for needed in ["elsewhere", "key2"] {
        give_to_postgres(&place.path(needed));
    }
    let output = run(pg.command("pg_verifybackup").arg("-n").arg(&target));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut restored = Pg::adopt(15, &target);
    restored.start_again();
    restored.wait_for("SELECT NOT pg_is_in_recovery()", "t", LIMIT);
    assert_eq!(restored.sql("SELECT count(*), md5(string_agg(a || b, ',' ORDER BY a)) FROM t"), expected);
}
