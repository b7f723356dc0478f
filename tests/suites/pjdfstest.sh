#!/usr/bin/env bash
# POSIX conformance by pjdfstest (the Rust one).  pjdfstest.sh [DIRECTORY] [-- TEST_PATTERNS]
# Needs root, `cargo install pjdfstest` (PJDFSTEST: the binary) and two users (PJD_USERS="nobody:nogroup games:games").
. "$(dirname "$0")/lib.sh"
pjdfstest=${PJDFSTEST:-pjdfstest}
suite_need "$pjdfstest" "cargo install pjdfstest, with libacl1-dev"
[ "$EUID" = 0 ] || { echo "pjdfstest.sh: needs root" >&2; exit 2; }
directory=
[ $# -gt 0 ] && [ "$1" != -- ] && { directory=$1; shift; }
[ "${1:-}" = -- ] && shift
suite_start "$directory"

read -r first second <<<"${PJD_USERS:-nobody:nogroup games:games}"
cat >"$scratch/pjdfstest.toml" <<END
[features]
posix_fallocate = {}
utimensat = {}
utime_now = {}
rename_ctime = {}
[settings]
naptime = 0.02
allow_remount = false
[dummy_auth]
entries = [["${first%:*}", "${first#*:}"], ["${second%:*}", "${second#*:}"]]
END
timeout -k 10 "${CASE_SECONDS:-3000}" "$pjdfstest" -c "$scratch/pjdfstest.toml" -p "$work" "$@" 2>&1 |
    sed 's/\x1b\[[0-9;]*m//g' >"$scratch/out"
grep -E 'FAILED *$' "$scratch/out" | sed 's/^/FAIL /; s/  */ /g'
count() { grep -E '^Summary' "$scratch/out" | tail -1 | grep -oE "[0-9]+ $1" | cut -d' ' -f1; }
passed=$((passed + $(count passed || echo 0))) skipped=$((skipped + $(count skipped || echo 0)))
failures=$(count failed)
failed=$((failed + ${failures:-1}))
((failed == 0)) || [ -n "${failures:-}" ] || tail -20 "$scratch/out"
