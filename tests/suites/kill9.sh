#!/usr/bin/env bash
# kill -9 of the daemon under load, again and again.  kill9.sh [ROUNDS]     default 200; SEED=1, CHAIN=10
#
# Modelled: the daemon dies at any instruction; the kernel, its page cache and the backing store live on. After each kill: the
# mount answers ENOTCONN, `envelopefs umount` works, the volume mounts again without repair, everything that an fsync
# acknowledged is there byte for byte, what was under way reads as old bytes, new bytes or zeros, and the whole tree lists and
# reads. `envelopefs check` finds no damage before the next mount.
. "$(dirname "$0")/lib.sh"
. "$here/crash_lib.sh"
rounds=${1:-200}
CASE_LINES=20
: "${SUITE_OPTIONS:=commit=1}"
crash_start
volume=$scratch/cipher
check "init" crash_init
((failed == 0)) || exit 1

kill_daemon() {
    touch "$scratch/crashed"
    kill -9 "$daemon"
    wait "$daemon" 2>/dev/null
    daemon=
    crash_dead
}
remove_dead() {
    "$ENVELOPEFS" umount "$mountpoint" && ! mountpoint -q "$mountpoint" && stat "$mountpoint" >/dev/null
}
check "mount" crash_mount
for ((round = 1; round <= rounds; round++)); do
    seed=$((${SEED:-1} * 100000 + round)) before=$failed
    crash_load_start "$seed"
    crash_wait "$seed"
    # Also in the middle of the first requests, and of a commit.
    check "round $round: the dead mount answers ENOTCONN" kill_daemon
    check "round $round: no error before the kill" crash_load_end
    check "round $round: envelopefs umount" remove_dead
    check "round $round: envelopefs check" "$ENVELOPEFS" check "$volume"
    check "round $round: mount again" crash_mount
    check "round $round: what was acknowledged is there" crash_verify "$seed"
    if ((failed > before)); then
        crash_keep "$round"
        crash_clean >/dev/null 2>&1 || { echo "round $round: the tree cannot be removed"; exit 1; }
    elif ((round % ${CHAIN:-10} == 0)); then
        check "round $round: the tree can be removed" crash_clean
        check "round $round: clean unmount" crash_unmount
        check "round $round: nothing is left below" crash_nothing_left
        check "round $round: mount" crash_mount
    fi
    [ -z "${VERBOSE:-}" ] || echo "round $round: $operations operations so far"
done
check "unmount" crash_unmount
check "envelopefs check" "$ENVELOPEFS" check "$volume"
check "the load did its work" test "$operations" -gt "$rounds"
echo "$rounds kills, $operations acknowledged operations verified"
