#!/bin/bash
# Installs what the tests need and runs everything, the demo once included.
#
#   tools/test.sh                                 what CI runs
#   tools/test.sh --long [--seed N] [--minutes M] release builds, 10,000 seeds of crash rounds (5,000 for each way of
#                                                 acknowledging), then the figures of benches/end_to_end beside pgBackRest
#
# The seed of this run is printed first; a failure is repeated with --seed. Network: the package registries alone.

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$TOP"

LONG= SEED= MINUTES=10
while [ $# -gt 0 ]; do
    case "$1" in
        --long) LONG=1 ;;
        --seed) SEED=${2:?--seed takes a number}; shift ;;
        --minutes) MINUTES=${2:?--minutes takes a number}; shift ;;
        -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) die "unknown option $1" ;;
    esac
    shift
done
for number in "${SEED:-0}" "$MINUTES"; do
    case "$number" in *[!0-9]*) die "$number is not a number" ;; esac
done
# CI searches from a fixed seed, so that a change is what makes it fail; a long run goes elsewhere each time.
[ -n "$SEED" ] || { [ -n "$LONG" ] && SEED=$(date +%s) || SEED=1; }
export WALDEN_SEED=$SEED WALDEN_MINUTES=$MINUTES
# 200 seeds of crash rounds in CI (100 each way of acknowledging), 10,000 in a long run.
[ -z "$LONG" ] || export WALDEN_LONG=1 WALDEN_SEEDS=5000

STARTED=$SECONDS
STEP=
trap '[ $? = 0 ] || warn "tools/test.sh: FAILED in: ${STEP:-start} (seed $SEED)"' EXIT
step() {
    STEP=$1
    say "== $1 ($((SECONDS - STARTED)) s)"
}

say "seed $SEED${LONG:+, long, $MINUTES minutes for each search}"
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
PROFILE=()
[ -z "$LONG" ] || PROFILE=(--release)
# Tests that mount a small disk fail without root; a normal user runs all others, and is told.
NEXTEST=() SKIP=()
if [ "$(id -u)" != 0 ]; then
    warn "NOT RUN, since they need root: full disks of repository, journal and target (tests/full.rs, one of tests/restore.rs)"
    NEXTEST=(-E 'not (binary(full) | test(a_full_disk_leaves))')
    SKIP=(-- --skip a_full_)
fi
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --locked "${PROFILE[@]}" --no-fail-fast "${NEXTEST[@]}"
else
    cargo test --locked "${PROFILE[@]}" --no-fail-fast "${SKIP[@]}"
fi
cargo test --locked "${PROFILE[@]}" --doc --quiet
step "planted bugs"
cargo test --locked "${PROFILE[@]}" --features planted --test planted

if [ -x tools/demo.sh ]; then
    step "demo"
    tools/demo.sh
fi

if [ -n "$LONG" ]; then
    step "figures"
    tools/bench-peers
fi

say "tools/test.sh: everything passed in $((SECONDS - STARTED)) s (seed $SEED)"
