//! What a person sees of verification, on a real server: results in `info`, damage shown loudly, samples, a read-only repository, and an
//! index and a root that are damaged and made anew.

mod common;

use common::pg::{Pg, wait_until};
use common::walden::{Ended, Place, finish};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// A server with data checksums, a backup, WAL that is compacted, and a second backup.
fn archived() -> (Pg, Place) {
    let pg = Pg::builder(16).wal_segment_mib(1).start();
    assert_eq!(pg.sql("SHOW data_checksums"), "on");
    let place = Place::init();
    let receive = place.start(place.command_for(&pg, &["receive"]), "receive");
    wait_until(Duration::from_secs(30), || {
        pg.sql("SELECT count(*) FROM pg_stat_replication WHERE application_name = 'walden_shop'") == "1"
    });
    for round in 1..=2 {
        pg.sql(&format!(
            "CREATE TABLE t{round} AS SELECT i, md5(i::text) AS text FROM generate_series(1, 20000) AS i"
        ));
        pg.sql("CHECKPOINT");
        finish(&mut place.command_for(&pg, &["backup"])).expect(0);
        pg.sql("SELECT pg_switch_wal()");
        finish(&mut place.command_for(&pg, &["compact", "--all"])).expect(0);
    }
    drop(receive);
    (pg, place)
}

fn objects(place: &Place, folder: &str) -> Vec<PathBuf> {
    let dir = place.path("repo").join("clusters/shop").join(folder);
    let mut found: Vec<PathBuf> = fs::read_dir(dir)
        .map_or_else(|_| Vec::new(), |entries| entries.map(|entry| entry.unwrap().path()).collect());
    found.sort();
    found
}

/// Puts other bytes in a file's place; gives those before.
fn replace(path: &PathBuf, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let before = fs::read(path).unwrap();
    let mut bytes = before.clone();
    change(&mut bytes);
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
    before
}

fn backups(place: &Place) -> Vec<(String, String)> {
    let info = place.json(&["info"]);
    let known = info["clusters"][0]["backups"].as_array().unwrap().clone();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or("never").to_owned();
    known
        .iter()
        .map(|backup| (text(&backup["verified"]["outcome"]), text(&backup["verified"]["depth"])))
        .collect()
}

fn told(outcome: &str, depth: &str) -> (String, String) {
    (outcome.to_owned(), depth.to_owned())
}

#[test]
fn verification_is_shown_by_info_and_a_lost_index_is_made_anew() {
    let (pg, place) = archived();
    assert_eq!(backups(&place), [told("never", "never"), told("never", "never")]);
    assert!(place.ok(&["info"]).contains("verified         never"));
    assert!(
        place.ok(&["verify", "--depth", "references"]).contains("everything that is referred to is there")
    );
    assert_eq!(backups(&place), [told("verified", "references"), told("verified", "references")]);
    let sample = |share: &str| {
        let sample = place.json(&["verify", "--sample", share]);
        assert!(sample["clusters"][0]["stored"] == true && sample["failed"] == serde_json::json!([]));
        let bytes = |name: &str| sample["clusters"][0][name].as_u64().unwrap();
        (bytes("bytes_covered"), bytes("bytes_total"))
    };
    let ((first, total), (second, _)) = (sample("30%"), sample("30%"));
    assert!(0 < first && first < second && second < total, "{first}, {second} of {total}");
    let said = place.ok(&["verify", "--no-key"]);
    assert!(said.contains("seals were not opened") && !said.contains("as it was written"), "{said}");
    let said = place.ok(&["verify"]);
    assert!(
        said.contains("everything is as it was written") && said.contains("2 backups verified"),
        "{said}"
    );
    assert_eq!(backups(&place), [told("verified", "content"), told("verified", "content")]);
    let info = place.ok(&["info"]);
    assert!(info.contains("content of everything") && info.contains("nothing is damaged"), "{info}");
    assert_eq!(objects(&place, "verifications").len(), 1);
    assert!(
        !place.path("repo/probe").exists() || fs::read_dir(place.path("repo/probe")).unwrap().count() == 0
    );
    for wrong in [
        &["verify", "--sample", "0%"][..],
        &["verify", "--sample", "5%", "--bytes", "1MB"],
        &["verify", "--no-key", "--no-store"],
    ] {
        assert_eq!(place.run(wrong).code, 2, "{wrong:?}");
    }

    // The manifest of the second backup.
    let manifest = objects(&place, "backups").pop().unwrap();
    let whole = replace(&manifest, |bytes| bytes[300] ^= 1);
    let Ended { code, out, .. } = place.run(&["verify"]);
    assert_eq!(code, 4);
    assert!(out.contains("1 DAMAGED") && out.contains("costs: backup"), "{out}");
    assert_eq!(backups(&place), [told("verified", "content"), told("damaged", "content")]);
    let info = place.ok(&["info"]);
    // WAL that is made of differences from its pages is hurt with it.
    assert!(info.contains(" DAMAGE") && info.contains("DAMAGED in the repository"), "{info}");
    replace(&manifest, |bytes| *bytes = whole);
    place.ok(&["verify"]);

    // Every index object.
    assert_eq!(place.run(&["repair", "index"]).code, 7, "there is nothing to repair");
    for index in objects(&place, "index") {
        replace(&index, |bytes| bytes[170] ^= 1);
    }
    let Ended { code, err, .. } = place.run(&["info"]);
    assert!(code == 4 && err.contains("walden repair index"), "{err}");
    let roots = objects(&place, "roots").len();
    let dry = place.ok(&["repair", "index", "--dry-run"]);
    assert!(dry.contains("2 backups") && dry.contains("nothing was changed"), "{dry}");
    assert_eq!(objects(&place, "roots").len(), roots);
    let repaired = place.json(&["repair", "index"]);
    assert_eq!(repaired["backups"].as_array().unwrap().len(), 2);
    let Ended { out, .. } = place.run(&["verify"]);
    // The old index objects are still there, and nothing leads to them.
    assert!(out.contains("2 backups verified") && !out.contains("DAMAGED"), "{out}");
    let restored = place.restored(16, "restored", &["--latest"]);
    restored.wait_for("SELECT pg_is_in_recovery()", "f", Duration::from_secs(60));
    let rows = "SELECT count(*), sum(hashtext(text)::bigint) FROM (TABLE t1 UNION ALL TABLE t2) AS t";
    assert_eq!(restored.sql(rows), pg.sql(rows));
}

#[test]
fn a_damaged_root_is_told_with_what_mends_it_and_everybody_goes_on() {
    let (pg, place) = archived();
    let whole = place.run(&["repair", "root"]);
    assert!(whole.code == 7 && whole.err.contains("--anyway"), "there is nothing to repair: {}", whole.err);
    let roots = objects(&place, "roots");
    let newest = roots.last().unwrap();
    replace(newest, |bytes| bytes[200] ^= 1);
    for command in
        [&["info"][..], &["compact", "--all"], &["gc"], &["log"], &["repair", "index"], &["receive"]]
    {
        let Ended { code, err, .. } = finish(&mut place.command_for(&pg, command));
        assert!(code == 4 && err.contains("walden repair root --cluster shop"), "{command:?}: {code} {err}");
    }
    let Ended { code, out, .. } = place.run(&["verify"]);
    assert!(code == 4 && out.contains("until `walden repair root`"), "{out}");
    let dry = place.ok(&["repair", "root", "--dry-run"]);
    assert!(dry.contains("cannot be read") && dry.contains("nothing was changed"), "{dry}");
    assert_eq!(objects(&place, "roots"), roots);
    let repaired = place.json(&["repair", "root"]);
    let number: u64 = newest.file_name().unwrap().to_str().unwrap().parse().unwrap();
    assert_eq!((&repaired["root"], &repaired["made_from"]), (&(number + 1).into(), &(number - 1).into()));
    assert_eq!(repaired["damaged"][0]["root"], number);
    let receive = place.start(place.command_for(&pg, &["receive"]), "receive");
    pg.sql("CREATE TABLE t3 AS SELECT i FROM generate_series(1, 1000) AS i");
    finish(&mut place.command_for(&pg, &["backup"])).expect(0);
    drop(receive);
    let Ended { out, .. } = place.run(&["verify"]);
    assert!(out.contains("3 backups verified") && !out.contains("until `walden repair root`"), "{out}");
    for (name, backup) in [("first", 0), ("newest", 2)] {
        let info = place.json(&["info"]);
        let id = info["clusters"][0]["backups"][backup]["id"].as_str().unwrap().to_owned();
        let restored = place.restored(16, name, &["--latest", "--backup", &id]);
        restored.wait_for("SELECT pg_is_in_recovery()", "f", Duration::from_secs(60));
        let rows = "SELECT (SELECT sum(hashtext(text)::bigint) FROM t2), (SELECT count(*) FROM t3)";
        assert_eq!(restored.sql(rows), pg.sql(rows));
    }
}
