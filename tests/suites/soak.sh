#!/usr/bin/env bash
# A long mixed load, with an eye on the daemon's memory and descriptors; then very many inodes.
#   soak.sh [MINUTES] [INODES]     default 60 and 1 000 000; SAMPLE=5 (seconds), INODES=0 leaves that part out
#
# At once, each over and over: fsx (where it is installed), fio with verification, tar in and out with diff, SQLite with an
# integrity check, 64 threads that create, rename, link, truncate and remove in shared directories.
# Criteria: no part fails; the median resident size of the last third of the samples is at most that of the first third after
# the warm-up (a tenth of the time) plus a fifth plus 16 MiB; descriptors when all is quiet are those of the fresh mount plus
# 8 (directories in its cache); `envelopefs check` is clean.
# Inodes: a cached inode takes at most INODE_BYTES=1024 of resident memory; when the kernel has forgotten all of them and met
# them again, the size is at most a tenth and 4 MiB above what it was (as root: it takes drop_caches to have the kernel forget).
. "$(dirname "$0")/lib.sh"
. "$here/crash_lib.sh"
minutes=${1:-60} inodes=${2:-1000000}
suite_need fio "Debian: fio"
suite_need sqlite3 "Debian: sqlite3"
CASE_LINES=20 CASE_SECONDS=7200
crash_start
volume=$scratch/cipher
check "init" crash_init
check "mount" crash_mount
((failed == 0)) || exit 1

resident() { sed -n 's/^VmRSS:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$daemon/status"; } # KiB
descriptors() { ls "/proc/$daemon/fd" | wc -l; }
median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
end=$((SECONDS + minutes * 60))

# Runs a part over and over, until the time is over or it fails.
again() { # NAME
    local work=$mountpoint/$1 cycle=0
    mkdir "$work" || return
    while ((SECONDS < end)); do
        cycle=$((cycle + 1))
        "$1" "$work" "$cycle" >"$scratch/$1.log" 2>&1 || { echo "cycle $cycle"; tail -n 20 "$scratch/$1.log"; return 1; }
        echo "$cycle" >"$scratch/$1.cycles"
    done
}
exerciser() { "${FSX:-fsx}" -q -S "$2" -N 3000 "$1/file"; }
blocks() {
    fio --name=job --directory="$1" --size=8m --rw=randwrite --bsrange=512-70000 --bs_unaligned=1 --verify=crc32c --do_verify=1 \
        --verify_fatal=1 --verify_state_save=0 --numjobs=4 --thread --randseed="$2" --eta=never --output-format=terse &&
        rm -f "$1"/job.*
}
source=${SOURCE:-/usr/share/perl}
tree() {
    mkdir "$1/t" && tar -cf "$scratch/in.tar" -C "$source" . && tar -xf "$scratch/in.tar" -C "$1/t" &&
        diff -r --no-dereference "$source" "$1/t" && tar -cf - -C "$1/t" . | tar -df - -C "$1/t" && rm -rf "$1/t"
}
database() {
    rm -f "$1"/db*
    { echo "pragma journal_mode=$( (($2 % 2)) && echo wal || echo delete); create table t(i integer primary key, b blob);"
      for ((i = 0; i < 200; i++)); do echo "insert into t values($i, randomblob($((i * 37 % 3000))));"; done; } | sqlite3 -bail "$1/db" &&
        [ "$(sqlite3 "$1/db" 'pragma integrity_check; select count(*) from t')" = $'ok\n200' ]
}
storm() { "$CRASH_LOAD" storm "$1" "$2" 20 64 && rm -rf "$1"/* && [ -z "$(ls -A "$1")" ]; }

descriptors_before=$(descriptors)
parts=(blocks tree database storm) jobs=()
if command -v "${FSX:-fsx}" >/dev/null; then parts+=(exerciser); else skip "fsx is not installed"; fi
((minutes > 0)) || parts=()
for part in "${parts[@]}"; do
    again "$part" >"$scratch/$part.failed" 2>&1 & jobs+=($!)
done
most=0
: >"$scratch/resident"
while ((SECONDS < end)); do
    sleep "${SAMPLE:-5}"
    kill -0 "$daemon" || break
    resident >>"$scratch/resident"
    now=$(descriptors)
    ((now <= most)) || most=$now
done
for index in "${!jobs[@]}"; do
    ended() { wait "${jobs[index]}" || { cat "$scratch/${parts[index]}.failed"; return 1; }; }
    check "${parts[index]}" ended
    echo "${parts[index]}: $(cat "$scratch/${parts[index]}.cycles" 2>/dev/null || echo 0) cycles"
done
flat() {
    local all warm third first last
    all=$(wc -l <"$scratch/resident")
    warm=$((all / 10 + 1)) third=$(((all - all / 10) / 3))
    ((third > 0)) || { echo "only $all samples"; return 1; }
    first=$(tail -n +"$warm" "$scratch/resident" | head -n "$third" | median)
    last=$(tail -n "$third" "$scratch/resident" | median)
    echo "$all samples of the resident size: median $first KiB in the first third, $last KiB in the last" | tee "$scratch/said"
    ((last <= first + first / 5 + 16384))
}
quiet() {
    rm -rf "${mountpoint:?}"/*
    local i now
    # Some commits, after which no closed file keeps a descriptor.
    for ((i = 0; i < 30; i++)); do now=$(descriptors); ((now <= descriptors_before + 8)) && break; sleep 1; done
    echo "descriptors: $descriptors_before when fresh, at most $most under load, $now when quiet" >"$scratch/said"
    cat "$scratch/said"
    ((now <= descriptors_before + 8)) || { ls -l "/proc/$daemon/fd"; return 1; }
}
if ((minutes > 0)); then
    check "resident memory is flat" flat
    cat "$scratch/said"
    check "descriptors come back" quiet
    cat "$scratch/said"
fi

met() { [ "$(find "$mountpoint/many" -type f -links 1 | wc -l)" = "$inodes" ]; }
forgotten() {
    sync
    echo 2 >/proc/sys/vm/drop_caches
    # The kernel sends what it forgets in the background: until the size stands still.
    local before=0 i
    for ((i = 0; i < 120 && before != $(resident); i++)); do before=$(resident); sleep 2; done
}
if ((inodes > 0)); then
    # A fresh process: nothing to use again.
    check "unmount" crash_unmount
    check "mount" crash_mount
    start=$(resident)
    check "$inodes inodes" eval 'mkdir "$mountpoint/many" && "$CRASH_LOAD" many "$mountpoint/many" "$inodes" && met'
    first=$(resident)
    each=$(((first - start) * 1024 / inodes))
    echo "$inodes cached inodes: $first KiB resident, $start KiB before: $each bytes each"
    check "a cached inode takes at most ${INODE_BYTES:-1024} bytes" test "$each" -le "${INODE_BYTES:-1024}"
    if [ "$EUID" = 0 ]; then
        check "the kernel forgets" forgotten
        echo "forgotten: $(resident) KiB resident"
        check "all are met again" met
        again=$(resident)
        echo "met again: $again KiB resident"
        check "memory is used again" test "$again" -le $((start + (first - start) * 11 / 10 + 4096))
    else
        skip "forgetting: not root"
    fi
    check "all are removed" eval 'rm -rf "$mountpoint/many" && [ -z "$(ls -A "$mountpoint")" ]'
    echo "removed: $(resident) KiB resident, $(descriptors) descriptors"
fi
check "unmount" crash_unmount
check "nothing is left below" crash_nothing_left
check "envelopefs check" "$ENVELOPEFS" check "$volume"
