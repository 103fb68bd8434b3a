//! The main job with the repository on a real S3 server: an accident under load is found, and undone to the row, by a server
//! that fetches its WAL from there.

mod common;

use common::load::{Committed, commits, expected, load, prepare, quiet_moment, rows, tablespace_maps};
use common::pg::{Pg, Process, majors};
use common::stores::StoreServer;
use common::walden::{Place, finish};
use rustix::process::Signal;
use std::time::Duration;
use walden::base::Lsn;

const LIMIT: Duration = Duration::from_secs(60);

fn receive(place: &Place, pg: &Pg) -> Process {
    place.start(place.command_for(pg, &["receive", "--flush-interval", "200ms"]), "receive")
}

#[test]
fn an_accident_is_undone_from_s3() {
    let store = StoreServer::seaweedfs();
    let major = *majors().last().unwrap();
    let pg = Pg::builder(major).wal_segment_mib(1).option("wal_keep_size", "2GB");
    let pg = pg.option("autovacuum", "off").start();
    prepare(&pg);
    pg.sql("CREATE TABLE accident AS SELECT generate_series(1, 1000) AS a");
    let begin: Lsn = pg.wal_lsn().parse().unwrap();
    let mut place = Place::new();
    let keys = "[default]\naws_access_key_id = testkey\naws_secret_access_key = testsecret\n";
    let credentials = place.write_private("credentials", keys);
    place.repo = format!("{}&credentials_file={}", store.url("archive"), credentials.display());
    place.ok(&["init"]);

    let running = load(&pg);
    let mut receiver = receive(&place, &pg);
    let first = "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'walden_shop'";
    pg.wait_for(first, "1", LIMIT);
    finish(&mut place.command_for(&pg, &["backup"])).expect(0);
    // Nothing of it is on this host: killed, and started again.
    receiver.signal(Signal::KILL);
    receiver.wait(LIMIT);
    let mut receiver = receive(&place, &pg);
    let enough = "SELECT count(*) > 300 FROM a";
    pg.wait_for(enough, "t", LIMIT);
    let named: Lsn = pg.sql("SELECT pg_create_restore_point('before the accident')").parse().unwrap();
    pg.sql("DROP TABLE accident");
    pg.wait_for("SELECT count(*) > 600 FROM a", "t", LIMIT);
    drop(running);
    pg.wait_for("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'", "0", LIMIT);
    receiver.signal(Signal::TERM);
    assert_eq!(receiver.wait(LIMIT).expect("it stops").code(), Some(0), "{}", place.log("receive"));

    let all = rows(&pg);
    let committed = commits(&pg, begin);
    let restored = |name: &str, target: &[&str]| {
        let maps = tablespace_maps(&pg, &place.path(name));
        let mut args = target.to_vec();
        maps.iter().for_each(|map| args.extend(["--tablespace-map", map]));
        place.restored(major, name, &args)
    };
    let moment = quiet_moment(&committed);
    // One of the last before the accident, long after the backup.
    let xid =
        expected(&all, &committed, |commit| commit.lsn < named).iter().map(|(_, xid)| *xid).max().unwrap();
    type Belongs<'a> = &'a dyn Fn(&Committed) -> bool;
    let belongs: [(&str, &[&str], Belongs); 4] = [
        ("by-time", &["--to-time", &moment.to_string()], &|commit| commit.time <= moment),
        ("by-lsn", &["--to-lsn", &named.to_string()], &|commit| commit.lsn < named),
        ("by-xid", &["--to-xid", &xid.to_string()], &|commit| commit.lsn <= committed[&xid].lsn),
        ("by-name", &["--to-name", "before the accident"], &|commit| commit.lsn < named),
    ];
    for (name, target, belongs) in belongs {
        let wanted = expected(&all, &committed, belongs);
        let found = rows(&restored(name, target));
        assert!(
            found == wanted && found.len() > 100 && found.len() < all.len(),
            "{name}: {} rows",
            found.len()
        );
    }

    // The printed target alone is enough, also when all of it is compacted.
    place.ok(&["compact", "--all"]);
    place.ok(&["gc", "--grace", "0s"]);
    let drops = place.json(&["log", "--drops"]);
    let target = drops["entries"][0]["restore_before"].as_str().unwrap_or_else(|| panic!("{drops}"));
    // While recovery is paused the table is still locked by the transaction that drops it.
    let before = restored(
        "before",
        &[&target.split(' ').collect::<Vec<_>>()[..], &["--target-action", "promote"]].concat(),
    );
    assert_eq!(before.sql("SELECT count(*) FROM accident"), "1000");
    drop(before);

    let latest = restored("latest", &["--latest"]);
    assert!(rows(&latest) == all);
    assert_eq!(latest.sql("SELECT to_regclass('accident')"), "");
    latest.sql("INSERT INTO a DEFAULT VALUES");
}
