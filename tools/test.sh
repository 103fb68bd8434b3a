#!/bin/bash
# Installs what the tests need and runs everything, the demo once included.
#
#   tools/test.sh [--seed N]        what CI runs, searching from the fixed seed 1 or from N
#   tools/test.sh --long [--help]   every number that the tests name, in parts: tools/test-long.sh
#
# The seed is printed first; a failure is repeated with --seed. Network: the package registries alone.

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$TOP"

# CI searches from a fixed seed, so that a change is what makes it fail.
SEED=1 ARGUMENTS=()
while [ $# -gt 0 ]; do
    case "$1" in
        --long) shift; exec tools/test-long.sh ${ARGUMENTS[@]+"${ARGUMENTS[@]}"} "$@" ;;
        --seed) SEED=${2:?--seed takes a number}; ARGUMENTS+=(--seed "$2"); shift ;;
        --minutes) ARGUMENTS+=(--minutes "${2:?--minutes takes a number}"); shift ;;
        -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) die "unknown option $1" ;;
    esac
    shift
done
case "$SEED" in *[!0-9]*) die "$SEED is not a number" ;; esac
case "${ARGUMENTS[*]-}" in *--minutes*) die "--minutes needs --long" ;; esac
export WALDEN_SEED=$SEED

STARTED=$SECONDS
STEP=
trap '[ $? = 0 ] || warn "tools/test.sh: FAILED in: ${STEP:-start} (seed $SEED)"' EXIT
step() {
    STEP=$1
    say "== $1 ($((SECONDS - STARTED)) s)"
}

say "seed $SEED"
step "setup"
tools/setup
tools/setup-stores.sh

step "format"
cargo fmt --check
step "lints"
cargo clippy --locked --all-targets -- -D warnings
step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --lib --quiet

step "tests"
# Tests that mount a small disk fail without root; a normal user runs all others, and is told.
NEXTEST=() SKIP=()
if [ "$(id -u)" != 0 ]; then
    warn "NOT RUN, since they need root: full disks of repository, journal and target (tests/full.rs, one of tests/restore.rs)"
    NEXTEST=(-E 'not (binary(full) | test(a_full_disk_leaves))')
    SKIP=(-- --skip a_full_)
fi
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --locked --no-fail-fast "${NEXTEST[@]}"
else
    cargo test --locked --no-fail-fast "${SKIP[@]}"
fi
cargo test --locked --doc --quiet
step "planted bugs"
cargo test --locked --features planted --test planted

if [ -x tools/demo.sh ]; then
    step "demo"
    tools/demo.sh
fi

say "tools/test.sh: everything passed in $((SECONDS - STARTED)) s (seed $SEED)"
