# Shared by the scripts beside it (sourced, not run): where things are kept, who runs PostgreSQL, how to say things.

set -euo pipefail
umask 022
export LC_ALL=C

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# PostgreSQL refuses root, so as root everything lies where user postgres can traverse.
if [ "$(id -u)" = 0 ]; then
    CACHE=${WALDEN_CACHE:-/var/cache/walden}
else
    CACHE=${WALDEN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/walden}
fi
export WALDEN_CACHE=$CACHE
export WALDEN_PG_HOME=${WALDEN_PG_HOME:-$CACHE/pg}

say() { printf '%s\n' "$*"; }
warn() { printf '%s\n' "$*" >&2; }
die() { warn "error: $*"; exit 1; }

# as_postgres COMMAND...: runs it as user postgres when we are root, as ourselves otherwise, without our PG* variables.
as_postgres() {
    local clean=(env -u PGHOST -u PGPORT -u PGUSER -u PGDATABASE -u PGPASSWORD -u PGPASSFILE -u PGSERVICE -u PGOPTIONS)
    if [ "$(id -u)" = 0 ]; then
        setpriv --reuid=postgres --regid=postgres --init-groups "${clean[@]}" HOME=/tmp "$@"
    else
        "${clean[@]}" "$@"
    fi
}
