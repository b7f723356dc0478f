# What the suites share: a fresh volume mounted for the run, counted cases, one summary line. Sourced, never run.
#
# A suite called with a directory works there (a plain file system, say, to see what the suite itself expects);
# called without one it makes and mounts a volume. ENVELOPEFS: the binary (default: the release build, made if missing);
# SUITE_OPTIONS: -o words of the mount; SUITE_KEEP=1 leaves everything in place.
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
passed=0 failed=0 skipped=0
scratch= volume= mountpoint= work=

suite_need() { # COMMAND HINT...
    command -v "$1" >/dev/null && return
    echo "$(basename "$0"): needs $1 (${*:2})" >&2
    exit 2
}

suite_mount() {
    "$ENVELOPEFS" mount ${SUITE_OPTIONS:+-o "$SUITE_OPTIONS"} "$volume" "$mountpoint" >>"$scratch/mount.log" 2>&1
}

suite_start() { # [DIRECTORY]
    scratch=$(mktemp -d "${TMPDIR:-/tmp}/envelopefs-suite-XXXXXX")
    chmod 0755 "$scratch"
    trap suite_end EXIT
    if [ $# -gt 0 ] && [ -n "$1" ]; then
        work=$(cd "$1" && pwd -P)/suite.$$
    else
        : "${ENVELOPEFS:=$repository/target/release/envelopefs}"
        [ -x "$ENVELOPEFS" ] || (cd "$repository" && cargo build --release --locked) || exit 2
        export ENVELOPEFS_CONFIG_DIR=$scratch/config
        volume=$scratch/cipher mountpoint=$scratch/mnt
        mkdir "$ENVELOPEFS_CONFIG_DIR" "$mountpoint"
        "$ENVELOPEFS" keygen "$ENVELOPEFS_CONFIG_DIR/cmk.json" >/dev/null || exit 2
        "$ENVELOPEFS" init --cmk "keyfile://$ENVELOPEFS_CONFIG_DIR/cmk.json" "$volume" >/dev/null || exit 2
        suite_mount || { cat "$scratch/mount.log" >&2; exit 2; }
        work=$mountpoint/suite
    fi
    mkdir "$work" && chmod 0755 "$work" || exit 2
    cd "$work" || exit 2
}

# Runs on every exit: unmounts, which is a case of its own, and prints the summary as the last line.
suite_end() {
    local status=$?
    trap - EXIT
    cd /
    if [ -z "${SUITE_KEEP:-}" ]; then
        [ -z "$work" ] || rm -rf "$work"
        if [ -n "$mountpoint" ] && mountpoint -q "$mountpoint"; then
            check "unmount" "$ENVELOPEFS" umount "$mountpoint"
            mountpoint -q "$mountpoint" && umount -l "$mountpoint"
        fi
        rm -rf --one-file-system "$scratch"
    else
        echo "kept: $scratch $work"
    fi
    ((status == 0)) || ((failed > 0)) || { echo "FAIL ended early (status $status)"; failed=$((failed + 1)); }
    ((skipped == 0)) || echo "$skipped skipped"
    echo "$passed passed, $failed failed"
    ((failed == 0))
    exit
}

# One case: its output is shown only where it fails. CASE_SECONDS bounds it.
check() { # NAME COMMAND...
    local name=$1 log=$scratch/case.log
    shift
    # Functions and builtins run in this shell; timeout needs a program.
    if [ "$(type -t "$1")" != file ]; then "$@" >"$log" 2>&1; else timeout -k 10 "${CASE_SECONDS:-600}" "$@" >"$log" 2>&1; fi
    local status=$?
    if ((status == 0)); then
        passed=$((passed + 1))
        [ -z "${VERBOSE:-}" ] || echo "ok   $name"
    else
        failed=$((failed + 1))
        echo "FAIL $name (status $status)"
        tail -n "${CASE_LINES:-5}" "$log" | sed 's/^/     /'
    fi
    return 0
}
skip() {
    skipped=$((skipped + 1))
    echo "skip $*"
}
