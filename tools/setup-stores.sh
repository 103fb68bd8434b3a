#!/bin/bash
# Installs the object stores that tests/store.rs holds walden against, beside the SeaweedFS that tools/setup brings; does
# nothing the second time.
#
#   tools/setup-stores.sh            the one that is cheap: nanio, which must be refused
#   tools/setup-stores.sh all        also moto, and azurite, which needs npm
#   tools/setup-stores.sh NAME...    these
#
# They go to $WALDEN_STORES_HOME (~/.cache/walden/stores, /var/cache/walden/stores for root). Network: PyPI and npm.
# What is installed is tested: the tests skip a store that is not there, and fail when one that is does not start.

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

STORES=${WALDEN_STORES_HOME:-$CACHE/stores}
NANIO_VERSION=0.1.7 AZURITE_VERSION=3.37.0

NAMES=(nanio)
case "${1:-}" in
    "") ;;
    all) NAMES+=(moto azurite) ;;
    -h | --help) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) NAMES=("$@") ;;
esac

mkdir -p "$STORES"
exec 9>"$STORES/.setup.lock"
flock 9

# packages DIR PACKAGE...: Python packages in a folder of their own.
packages() {
    local dir=$1
    shift
    python3 -m pip install -q --disable-pip-version-check --no-warn-script-location --no-warn-conflicts --root-user-action=ignore \
        --target "$dir" "$@" >&2 9>&-
}

install_nanio() { packages "$1" "nanio==$NANIO_VERSION"; }

install_moto() { packages "$1" 'moto[server,s3]'; }

install_azurite() {
    command -v npm >/dev/null || die "azurite needs npm: apt-get install --no-install-recommends npm"
    (cd "$1" && npm install --silent --no-audit --no-fund --omit=dev "azurite@$AZURITE_VERSION" >&2 9>&-)
}

for name in "${NAMES[@]}"; do
    case "$name" in nanio | moto | azurite) ;; *) die "no store $name: nanio, moto, azurite" ;; esac
    [ ! -e "$STORES/$name" ] || continue
    say "installing $name into $STORES/$name"
    rm -rf "$STORES/$name.new"
    mkdir -p "$STORES/$name.new"
    "install_$name" "$STORES/$name.new"
    mv "$STORES/$name.new" "$STORES/$name"
done
say "ready: $(cd "$STORES" && echo *) in $STORES"
