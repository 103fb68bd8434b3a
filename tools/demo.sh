#!/bin/bash
# The main job, shown on a private PostgreSQL 15: stream, back up, lose a table, find the moment, restore to just before it.
#
#   tools/demo.sh          installs what is missing, builds, and shows it in a temporary folder that goes away
#   KEEP=1 tools/demo.sh   leaves the folder
#   WALDEN_BIN=FILE tools/demo.sh   shows this binary instead of building one
#
# Everything runs as a normal user; as root, as user postgres. Exits with 0 only if no committed row was lost.

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$TOP"
case "${1:-}" in
    "") ;;
    -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) die "unknown option $1" ;;
esac

bold() { printf '\n\033[1m%s\033[0m\n' "$*"; }
[ -t 1 ] || bold() { printf '\n== %s\n' "$*"; }
now() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.1f", b - a }'; }
human() { numfmt --to=iec-i --suffix=B --format=%.1f "$1"; }

bold "Setup"
tools/setup demo
BINARY=${WALDEN_BIN:-}
if [ -z "$BINARY" ]; then
    cargo build --release --locked --bin walden
    BINARY=${CARGO_TARGET_DIR:-target}/release/walden
fi

PG=$WALDEN_PG_HOME/15
WORK=$(mktemp -d /tmp/walden-demo.XXXXXX)
chmod 755 "$WORK"
mkdir "$WORK"/{bin,source,socket,restored,restored-socket}
# User postgres may not be allowed into this checkout.
cp "$BINARY" "$WORK/bin/walden"
(umask 077 && head -c 24 /dev/urandom | base64 >"$WORK/passphrase")
[ "$(id -u)" != 0 ] || chown -R postgres:postgres "$WORK"

RECEIVE_PID= LOAD_PID=
cleanup() {
    local status=$?
    [ -z "$LOAD_PID" ] || kill "$LOAD_PID" 2>/dev/null || true
    [ -z "$RECEIVE_PID" ] || kill "$RECEIVE_PID" 2>/dev/null || true
    for data in "$WORK/source" "$WORK/restored/data"; do
        [ ! -f "$data/postmaster.pid" ] || kill -QUIT "$(head -n 1 "$data/postmaster.pid")" 2>/dev/null || true
    done
    wait 2>/dev/null || true
    if [ $status != 0 ]; then
        tail -n 20 "$WORK"/*.log "$WORK"/*/log "$WORK"/restored/data/walden_start.log 2>/dev/null >&2 || true
        warn "tools/demo.sh: FAILED"
    fi
    if [ -n "${KEEP:-}" ]; then say "kept: $WORK"; else rm -rf "$WORK"; fi
    exit $status
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Where walden's options come from here; a real setup has them in /etc/walden/walden.toml.
SETTINGS=(
    WALDEN_CONFIG=/dev/null
    WALDEN_REPO="$WORK/repository"
    WALDEN_CLUSTER=shop
    WALDEN_PASSPHRASE_FILE="$WORK/passphrase"
    WALDEN_CONNECTION="host=$WORK/socket user=postgres"
    PATH="$WORK/bin:$PG/bin:$PATH"
    LD_LIBRARY_PATH="$PG/lib"
    TZ=UTC
)
run() { (cd "$WORK" && as_postgres env "${SETTINGS[@]}" "$@"); }
walden() {
    say "\$ walden $*"
    run walden "$@"
}
sql() { run psql -XAtq -v ON_ERROR_STOP=1 -h "$WORK/socket" -U postgres -d postgres "$@"; }

bold "A PostgreSQL 15, and a repository"
run initdb -D "$WORK/source" -k -A trust -U postgres -E UTF8 --locale=C >"$WORK/initdb.log"
cat >>"$WORK/source/postgresql.conf" <<CONF
listen_addresses = ''
unix_socket_directories = '$WORK/socket'
track_commit_timestamp = on
max_slot_wal_keep_size = 10GB
CONF
run pg_ctl -D "$WORK/source" -l "$WORK/source/log" -w start >/dev/null
walden init

bold "Streaming, under a live write load"
sql -q <<SQL
CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer int NOT NULL, amount numeric(12,2) NOT NULL,
                     note text NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp());
INSERT INTO orders (customer, amount, note)
SELECT i % 5000, (i * 7919 % 100000) / 100.0, md5(i::text) || md5((i * 3)::text) FROM generate_series(1, 200000) AS i;
CREATE INDEX ON orders (customer, at);
CREATE TABLE ledger (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer int NOT NULL, points int NOT NULL);
SQL
say "\$ walden receive &"
(cd "$WORK" && exec env "${SETTINGS[@]}" bash -c '
    if [ "$(id -u)" = 0 ]; then exec setpriv --reuid=postgres --regid=postgres --init-groups env HOME=/tmp walden receive; fi
    exec walden receive') >"$WORK/receive.log" 2>&1 &
RECEIVE_PID=$!
cat >"$WORK/load.pgbench" <<'LOAD'
\set customer random(1, 5000)
\set amount random(100, 500000)
BEGIN;
INSERT INTO orders (customer, amount, note) VALUES (:customer, :amount / 100.0, md5(random()::text));
INSERT INTO ledger (customer, points) VALUES (:customer, :amount / 1000);
END;
LOAD
(cd "$WORK" && exec env "${SETTINGS[@]}" bash -c '
    load=(pgbench -n -h "$PWD/socket" -U postgres -f load.pgbench -c 2 -T 600 -R 200 postgres)
    if [ "$(id -u)" = 0 ]; then exec setpriv --reuid=postgres --regid=postgres --init-groups env HOME=/tmp "${load[@]}"; fi
    exec "${load[@]}"') >"$WORK/load.log" 2>&1 &
LOAD_PID=$!
sleep 3
walden check

bold "A backup, while the load goes on"
BACKUP_BEGAN=$(now)
walden backup
BACKUP_SECONDS=$(since "$BACKUP_BEGAN")
sleep 3

run walden --json info >"$WORK/info.json"
field() { python3 -c "import json,sys; d=json.load(open(sys.argv[1])); print(eval(sys.argv[2], {'d': d}))" "$WORK/info.json" "$1"; }
BEHIND_SECONDS=$(field "round(d['clusters'][0]['lag']['seconds'], 3)")
BEHIND_BYTES=$(field "d['clusters'][0]['lag']['bytes']")
say "behind the server, under the load: $BEHIND_BYTES bytes, $BEHIND_SECONDS s"

bold "The accident: DROP TABLE orders"
kill -0 "$LOAD_PID" 2>/dev/null || die "the write load ended before the accident"
# What was committed is written down outside, with commit times, until the moment of the accident. The load writes on; the
# lock keeps it out between the last look and the accident.
sql -q <<SQL
BEGIN;
LOCK TABLE orders, ledger IN ACCESS EXCLUSIVE MODE;
\copy (SELECT o.*, pg_xact_commit_timestamp(o.xmin) FROM orders o ORDER BY id) TO '$WORK/committed-orders'
\copy (SELECT l.*, pg_xact_commit_timestamp(l.xmin) FROM ledger l ORDER BY id) TO '$WORK/committed-ledger'
\echo DROP TABLE orders
DROP TABLE orders;
COMMIT;
SQL
COMMITTED=$(($(wc -l <"$WORK/committed-orders") + $(wc -l <"$WORK/committed-ledger")))
LOADED=$(wc -l <"$WORK/committed-ledger")
[ "$LOADED" -gt 0 ] || die "the write load committed nothing, so this would show nothing"
say "committed by then: $COMMITTED rows, $LOADED transactions of the load; the last at $(tail -n 1 "$WORK/committed-ledger" | cut -f 4)"
# What is committed afterwards must not be in the restored server.
sql -c "INSERT INTO ledger (customer, points) SELECT i, 1 FROM generate_series(1, 1000) AS i"
wait "$LOAD_PID" 2>/dev/null || true
LOAD_PID=

bold "The accident, found by walden alone"
DROP_LSN=
for _ in $(seq 1 60); do
    DROP_LSN=$(run walden --json log --drops | python3 -c '
import json, sys
drops = [e for e in json.load(sys.stdin)["entries"] if e["kind"] == "drop"]
print(drops[-1]["restore_before"].split()[1] if drops else "")')
    [ -z "$DROP_LSN" ] || break
    sleep 0.5
done
[ -n "$DROP_LSN" ] || die "walden log --drops does not list the accident"
walden log --drops
walden info
run walden --json info >"$WORK/info.json"

bold "Restore to just before it"
RESTORE_BEGAN=$(now)
walden restore --target-dir "$WORK/restored/data" --to-lsn "$DROP_LSN" --target-action promote | tee "$WORK/restore.log"
# The printed command, given only a place for its socket: the source has its own.
START=$(sed -n 's/^start with *//p' "$WORK/restore.log")
START=${START#runuser -u postgres -- }
say "\$ $START"
echo "unix_socket_directories = '$WORK/restored-socket'" | as_postgres tee -a "$WORK/restored/data/postgresql.auto.conf" >/dev/null
run bash -c "$START" >/dev/null
restored() { run psql -XAtq -v ON_ERROR_STOP=1 -h "$WORK/restored-socket" -U postgres -d postgres "$@"; }
for _ in $(seq 1 600); do
    [ "$(restored -c 'SELECT pg_is_in_recovery()' 2>/dev/null)" != f ] || break
    sleep 0.2
done
USABLE_SECONDS=$(since "$RESTORE_BEGAN")
restored -c "INSERT INTO ledger (customer, points) VALUES (0, 0)"
restored -c "\\copy (SELECT o.*, pg_xact_commit_timestamp(o.xmin) FROM orders o ORDER BY id) TO '$WORK/restored-orders'"
restored -c "\\copy (SELECT l.*, pg_xact_commit_timestamp(l.xmin) FROM ledger l WHERE customer <> 0 ORDER BY id) TO '$WORK/restored-ledger'"

LOST=0 TOO_MANY=0
for table in orders ledger; do
    LOST=$((LOST + $(comm -23 <(sort "$WORK/committed-$table") <(sort "$WORK/restored-$table") | wc -l)))
    TOO_MANY=$((TOO_MANY + $(comm -13 <(sort "$WORK/committed-$table") <(sort "$WORK/restored-$table") | wc -l)))
done

WRITTEN=$(field "d['clusters'][0]['wal']['bytes_raw'] + d['clusters'][0]['backups'][0]['bytes_raw']")
STORED=$(field "d['clusters'][0]['wal']['bytes_stored'] + d['clusters'][0]['backups'][0]['bytes_stored']")

bold "Summary"
say "lost transactions: $LOST"
say "rows compared: $COMMITTED, rows too many: $TOO_MANY"
say "seconds behind the server under load: $BEHIND_SECONDS"
say "bytes stored of bytes written: $(human "$STORED") of $(human "$WRITTEN") ($((STORED * 100 / WRITTEN)) %)"
say "backup: $BACKUP_SECONDS s; time to a usable database: $USABLE_SECONDS s"
[ "$LOST" = 0 ] && [ "$TOO_MANY" = 0 ] || die "the restored rows are not those committed"
