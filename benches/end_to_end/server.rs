//! The server that is measured: PostgreSQL 15 with the loyalty workload, and enough WAL of it held back by a slot.

use crate::common::pg::{Pg, Stop, give_to_postgres, wait_until};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Holds back the WAL that catching up is measured on.
pub const HOLDER: &str = "bench_holder";

/// How large things are.
#[derive(Debug, Clone)]
pub struct Size {
    /// Customers of the loyalty workload; 0.65 kB each.
    pub customers: u64,
    /// WAL of purchases.
    pub wal_bytes: u64,
}

/// A running server with WAL to catch up on.
#[derive(Debug)]
pub struct Server {
    /// The server.
    pub pg: Pg,
    /// Customers in it.
    pub customers: u64,
    /// Where the held WAL begins.
    pub wal_start: u64,
    /// Where it ends.
    pub wal_end: u64,
}

/// A file of `tools/workload`.
fn workload(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/workload").join(name)
}

fn set_options(pg: &mut Pg) {
    for (name, value) in [
        ("fsync", "on"),
        ("shared_buffers", "512MB"),
        ("max_wal_size", "8GB"),
        ("checkpoint_timeout", "5min"),
        ("archive_mode", "on"),
        ("max_wal_senders", "10"),
        ("max_replication_slots", "10"),
    ] {
        pg.set_option(name, value);
    }
}

impl Server {
    /// A server made now, in a folder that goes away; with `kept`, one that an earlier run left there, or will find.
    pub fn start(size: &Size, kept: Option<&Path>) -> Server {
        let mut pg = match kept {
            Some(dir) if dir.join("PG_VERSION").exists() => Pg::adopt(15, dir),
            Some(dir) => {
                let made = Pg::builder(15).create();
                std::fs::create_dir_all(dir.parent().expect("a directory's parent")).expect("its parent");
                crate::common::pg::run(
                    std::process::Command::new("cp").arg("-a").arg(made.data_dir()).arg(dir),
                );
                give_to_postgres(dir);
                Pg::adopt(15, dir)
            }
            None => Pg::builder(15).create(),
        };
        set_options(&mut pg);
        pg.start_again();
        let mut server = Server { pg, customers: size.customers, wal_start: 0, wal_end: 0 };
        if server.pg.sql("SELECT to_regclass('purchase') IS NULL") == "t" {
            server.fill(size.customers, true);
        }
        if server.pg.sql("SELECT to_regclass('bench') IS NULL") == "t" {
            server.write_wal(size);
        }
        server.archive_all_with("/bin/true");
        server.archive_with("");
        let ends =
            server.pg.sql("SELECT customers, wal_start - '0/0'::pg_lsn, wal_end - '0/0'::pg_lsn FROM bench");
        let ends: Vec<u64> = ends.split('|').map(|end| end.parse().expect("a number")).collect();
        (server.customers, server.wal_start, server.wal_end) = (ends[0], ends[1], ends[2]);
        server
    }

    /// A server with `customers`, in a folder that goes away, that keeps the WAL written from now on. With `first_vacuum` its tables were
    /// never vacuumed, and are not until [`Server::autovacuum`] says so.
    pub fn filled(customers: u64, first_vacuum: bool) -> Server {
        let mut pg = Pg::builder(15).create();
        set_options(&mut pg);
        // Checkpoints as PostgreSQL makes them by default, and every file is still there afterwards.
        pg.set_option("max_wal_size", "1GB");
        pg.set_option("max_replication_slots", "20");
        pg.set_option("max_wal_senders", "20");
        if first_vacuum {
            // It begins when it may, not up to a minute later.
            pg.set_option("autovacuum_naptime", "1s");
        }
        pg.start_again();
        let server = Server { pg, customers, wal_start: 0, wal_end: 0 };
        server.autovacuum(!first_vacuum);
        server.fill(customers, !first_vacuum);
        // A shop that has sold before: indexes of random keys that begin empty would stay in a few pages for long.
        let purchases = customers / 3;
        let analyze = if first_vacuum { "ANALYZE" } else { "VACUUM ANALYZE" };
        server.pg.sql(&format!(
            "INSERT INTO purchase (customer, amount, points, basket)
             SELECT 1 + n % {customers}, n % 5000, n % 50, jsonb_build_object('article', md5(n::text), 'pieces', 1 + n % 5, 'shop', n % 900,
                    'till', md5((n % 5000)::text)) FROM generate_series(1, {purchases}) AS n;
             {analyze} purchase; CHECKPOINT"
        ));
        server.archive_all_with("/bin/true");
        server.archive_with("");
        server.pg.sql("ALTER SYSTEM SET wal_keep_size = '256GB'");
        server.pg.sql("SELECT pg_reload_conf()");
        server
    }

    /// Whether the server vacuums by itself.
    pub fn autovacuum(&self, wanted: bool) {
        self.pg.sql(&format!("ALTER SYSTEM SET autovacuum = {wanted}; SELECT pg_reload_conf()"));
    }

    fn fill(&self, customers: u64, vacuum: bool) {
        let pg = &self.pg;
        // Filling is not measured, and its WAL is nobody's.
        eprintln!("filling a server with {customers} customers");
        self.archive_with("/bin/true");
        let psql_file = std::fs::read_to_string(workload("schema.sql")).expect("the workload's schema");
        let vacuum = if vacuum { "VACUUM;" } else { "" };
        pg.sql(&format!("\\set customers {customers}\n{psql_file}\n{vacuum}\nCHECKPOINT;"));
    }

    fn write_wal(&self, size: &Size) {
        let pg = &self.pg;
        self.drop_slot(HOLDER);
        pg.sql(&format!(
            "SELECT pg_switch_wal(); CHECKPOINT; SELECT pg_create_physical_replication_slot('{HOLDER}', true)"
        ));
        let start = pg.sql("SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'bench_holder'");
        eprintln!("writing {} MB of WAL", size.wal_bytes / 1_000_000);
        let mut load = self.load(size.customers, "100000", 4);
        let written = format!("SELECT (pg_current_wal_lsn() - '{start}'::pg_lsn) >= {}", size.wal_bytes);
        while pg.sql(&written) != "t" {
            assert!(load.try_wait().is_none(), "pgbench ended early");
            std::thread::sleep(Duration::from_secs(1));
        }
        load.signal(rustix::process::Signal::INT);
        load.wait(Duration::from_secs(60)).expect("pgbench stops");
        pg.sql(&format!(
            "CREATE TABLE bench AS SELECT {} AS customers, '{start}'::pg_lsn AS wal_start, pg_current_wal_lsn() AS wal_end",
            size.customers
        ));
        pg.sql("SELECT pg_switch_wal()");
    }

    /// pgbench with the loyalty workload.
    pub fn load(&self, customers: u64, seconds: &str, clients: u32) -> crate::common::pg::Process {
        let customers = format!("customers={customers}");
        let file = workload("purchase.pgbench");
        // The server's user may not be allowed into the checkout.
        let copy = self.pg.side_dir("workload").join("purchase.pgbench");
        std::fs::copy(&file, &copy).expect("the workload's script");
        let clients = clients.to_string();
        let copy = copy.display().to_string();
        self.pg.spawn("pgbench", &["-n", "-f", &copy, "-D", &customers, "-c", &clients, "-T", seconds])
    }

    /// pgbench's own tables, made.
    pub fn fill_tpcb(&self, scale: u64) {
        eprintln!("filling pgbench's tables at scale {scale}");
        let scale = scale.to_string();
        let mut made = self.pg.spawn("pgbench", &["-i", "-q", "-s", &scale]);
        let ended = made.wait(Duration::from_secs(1800));
        assert!(ended.is_some_and(|status| status.success()), "pgbench -i: {ended:?}");
    }

    /// pgbench with the transactions it is made for.
    pub fn load_tpcb(&self, seconds: &str, clients: u32) -> crate::common::pg::Process {
        self.pg.spawn("pgbench", &["-n", "-c", &clients.to_string(), "-T", seconds])
    }

    /// Sets what the server's archiver runs; empty: segments wait.
    pub fn archive_with(&self, command: &str) {
        let quoted = command.replace('\'', "''");
        self.pg.sql(&format!("ALTER SYSTEM SET archive_command = '{quoted}'; SELECT pg_reload_conf()"));
    }

    /// The same, until nothing waits.
    pub fn archive_all_with(&self, command: &str) {
        self.archive_with(command);
        let status = self.pg.data_dir().join("pg_wal/archive_status");
        let waits = |name: std::ffi::OsString| name.to_string_lossy().ends_with(".ready");
        let none_waits = || {
            let mut entries = std::fs::read_dir(&status).expect("the archive status").flatten();
            !entries.any(|entry| waits(entry.file_name()))
        };
        assert!(wait_until(Duration::from_secs(1800), none_waits), "the archiver does not get done");
    }

    /// A slot at the start of the held WAL.
    pub fn slot(&self, name: &str) {
        self.drop_slot(name);
        self.pg.sql(&format!("SELECT pg_copy_physical_replication_slot('{HOLDER}', '{name}')"));
    }

    /// Drops a slot, if it is there, once nobody uses it.
    pub fn drop_slot(&self, name: &str) {
        let sql = format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{name}'"
        );
        assert!(
            wait_until(Duration::from_secs(20), || self.pg.try_sql(&sql).is_ok()),
            "slot {name} stays in use"
        );
    }

    /// Bytes of the data directory without its WAL: what a backup copies.
    pub fn data_bytes(&self) -> u64 {
        let sql = "SELECT sum(pg_database_size(oid))::bigint FROM pg_database";
        self.pg.sql(sql).parse().expect("a number")
    }

    /// Stops it.
    pub fn stop(mut self) {
        self.pg.stop(Stop::Fast);
    }
}
