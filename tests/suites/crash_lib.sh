# What the crash suites share: the load generator, crashed mounts, verification. Sourced after lib.sh, never run.
#
# The load (tests/crash_load) keeps its log and the state that each round started from outside the mount. CHAIN rounds go on
# from what the last one left, then everything is removed, which has to leave nothing. SECONDS_MIN and _MAX bound the load.

crash_start() {
    scratch=$(mktemp -d "${TMPDIR:-/tmp}/envelopefs-suite-XXXXXX")
    chmod 0755 "$scratch"
    trap crash_end EXIT
    : "${ENVELOPEFS:=$repository/target/release/envelopefs}"
    [ -x "$ENVELOPEFS" ] || (cd "$repository" && cargo build --release --locked) || exit 2
    [ -n "${CRASH_LOAD:-}" ] || CRASH_LOAD=$(cd "$repository" &&
        cargo test --locked --test crash_load --no-run --message-format=json 2>/dev/null |
        sed -n 's/.*"executable":"\([^"]*crash_load[^"]*\)".*/\1/p' | tail -1)
    [ -x "$CRASH_LOAD" ] || { echo "cannot build the load (tests/crash_load)" >&2; exit 2; }
    export ENVELOPEFS_CONFIG_DIR=$scratch/config ENVELOPEFS_RUNTIME_DIR=$scratch/run ENVELOPEFS_LOG=info
    mountpoint=$scratch/mnt state=$scratch/state acks=$scratch/acks
    mkdir "$ENVELOPEFS_CONFIG_DIR" "$mountpoint" "$state"
    "$ENVELOPEFS" keygen "$ENVELOPEFS_CONFIG_DIR/cmk.json" >/dev/null || exit 2
    daemon= load= operations=0
}
crash_init() { "$ENVELOPEFS" init --cmk "keyfile://$ENVELOPEFS_CONFIG_DIR/cmk.json" "$volume"; }

# Mounts in the foreground and waits for the daemon's word.
crash_mount() {
    : >"$scratch/daemon.log"
    "$ENVELOPEFS" mount --foreground ${SUITE_OPTIONS:+-o "$SUITE_OPTIONS"} "$volume" "$mountpoint" >"$scratch/daemon.log" 2>&1 &
    daemon=$!
    local i
    for ((i = 0; i < 3000; i++)); do
        grep -q 'info: mounted' "$scratch/daemon.log" && return
        kill -0 "$daemon" 2>/dev/null || break
        sleep 0.02
    done
    cat "$scratch/daemon.log"
    return 1
}
crash_load_start() { # SEED OPTIONS...
    rm -f "$acks" "$scratch/crashed"
    "$CRASH_LOAD" load "$mountpoint" "$state" "$acks" "$1" until="$scratch/crashed" "${@:2}" >"$scratch/load.log" 2>&1 &
    load=$!
}
# Sleeps for a time that follows from the seed.
crash_wait() { # SEED
    sleep "$(awk -v s="$1" -v a="${SECONDS_MIN:-0.3}" -v b="${SECONDS_MAX:-2}" 'BEGIN { srand(s); printf "%.2f", a + rand() * (b - a) }')"
}
crash_load_end() {
    wait "$load"
    local status=$?
    load=
    ((status == 0)) || { cat "$scratch/load.log"; return 1; }
}
# Whatever asks the daemon is told that it is gone (attributes that the kernel has cached it still answers itself).
crash_dead() {
    local answer
    answer=$(LC_ALL=C ls "$mountpoint" 2>&1) && { echo "a dead mount answers"; return 1; }
    [[ $answer == *"Transport endpoint is not connected"* ]] || { echo "$answer"; return 1; }
}
crash_verify() { # SEED
    local answer status
    answer=$("$CRASH_LOAD" verify "$mountpoint" "$state" "$acks" "$1" 2>&1)
    status=$?
    echo "$answer"
    [[ $answer =~ ^([0-9]+)\ operations ]] && operations=$((operations + BASH_REMATCH[1]))
    if grep -E 'panicked|error: ' "$scratch/daemon.log"; then return 1; fi
    return $status
}
crash_unmount() {
    "$ENVELOPEFS" umount "$mountpoint" || return
    wait "$daemon"
    local status=$?
    daemon=
    ((status == 0)) || cat "$scratch/daemon.log"
    return $status
}
crash_clean() { rm -rf "${mountpoint:?}"/* && [ -z "$(ls -A "$mountpoint")" ] && rm -f "$state"/*; }
# Nothing of the removed tree is left below, but for the root's own objects.
crash_nothing_left() {
    local left
    left=$(find "$volume/tree" -mindepth 1 ! -name "$(basename "$(find "$volume/tree" -maxdepth 1 -type l | head -1)")" | wc -l)
    ((left == 0)) || { find "$volume/tree" | head; return 1; }
}

# A round that failed is kept for a look, and the next ones start afresh.
crash_keep() { # ROUND
    [ -z "${KEEP_FAILED:-}" ] || cp -a "$volume" "$acks" "$state" "$scratch/daemon.log" "$KEEP_FAILED" 2>/dev/null
}
crash_end() {
    local status=$?
    trap - EXIT
    cd /
    for pid in $load $daemon; do kill -9 "$pid" 2>/dev/null; wait "$pid" 2>/dev/null; done
    mountpoint -q "$mountpoint" 2>/dev/null || stat "$mountpoint" >/dev/null 2>&1 || umount -l "$mountpoint" 2>/dev/null
    mountpoint -q "$mountpoint" && umount -l "$mountpoint"
    [ -z "${backing:-}" ] || { mountpoint -q "$backing" && { umount "$backing" || umount -l "$backing"; }; }
    if [ -n "${SUITE_KEEP:-}" ]; then echo "kept: $scratch"; else rm -rf --one-file-system "$scratch"; fi
    ((status == 0)) || ((failed > 0)) || { echo "FAIL ended early (status $status)"; failed=$((failed + 1)); }
    ((skipped == 0)) || echo "$skipped skipped"
    echo "$passed passed, $failed failed"
    ((failed == 0))
    exit
}
