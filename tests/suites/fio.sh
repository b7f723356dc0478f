#!/usr/bin/env bash
# fio with verification: engines, block sizes, direct and buffered, several jobs.  fio.sh [DIRECTORY]   SIZE=64m
. "$(dirname "$0")/lib.sh"
suite_need fio "Debian: fio"
suite_start "${1:-}"

run() { # NAME OPTIONS...
    check "$1" fio --name=job --directory="$work" --size="${SIZE:-64m}" --verify_fatal=1 --verify_state_save=0 \
        --do_verify=1 --verify=crc32c --randseed="${SEED:-11}" --eta=never --output-format=terse "${@:2}"
    rm -f "$work"/job.* "$work"/shared
}
for engine in psync libaio io_uring mmap; do
    run "$engine, random 4 KiB writes" --ioengine=$engine --rw=randwrite --bs=4k
    run "$engine, sequential 1 MiB writes" --ioengine=$engine --rw=write --bs=1m
    run "$engine, odd sizes" --ioengine=$engine --rw=randwrite --bsrange=512-70000 --bs_unaligned=1
done
run "queue of 32, verified behind the writes" --ioengine=libaio --iodepth=32 --rw=randwrite --bs=8k --verify_backlog=128
run "O_DIRECT, libaio" --ioengine=libaio --direct=1 --iodepth=16 --rw=randwrite --bs=4k
run "O_DIRECT, io_uring" --ioengine=io_uring --direct=1 --iodepth=16 --rw=randwrite --bs=16k
run "O_DIRECT, sequential" --ioengine=psync --direct=1 --rw=write --bs=1m
run "O_SYNC" --ioengine=psync --sync=1 --size=4m --rw=randwrite --bs=4k
run "fsync every 8" --ioengine=psync --fsync=8 --size=16m --rw=randwrite --bs=4k
run "fdatasync every write" --ioengine=psync --fdatasync=1 --size=4m --rw=write --bs=4k
run "four jobs, a file each" --ioengine=psync --numjobs=4 --size=16m --rw=randwrite --bs=4k
run "four jobs, one file" --ioengine=psync --numjobs=4 --filename="$work/shared" --size=16m --offset_increment=16m \
    --rw=randwrite --bs=4k
run "reads and writes" --ioengine=psync --rw=randrw --bs=4k
run "a page in 256 KiB" --ioengine=psync --rw=write:252k --bs=4k
run "zeros" --ioengine=psync --rw=randwrite --bs=4k --verify=pattern --verify_pattern=0x00
run "fallocate before" --ioengine=psync --fallocate=posix --rw=randwrite --bs=4k
cold() {
    fio --name=cold --directory="$work" --size=32m --rw=randwrite --bs=4k --verify=crc32c --do_verify=0 \
        --verify_state_save=0 --randseed=5 --end_fsync=1 --output-format=terse || return
    if [ -n "$mountpoint" ]; then cd / && "$ENVELOPEFS" umount "$mountpoint" && suite_mount && cd "$work" || return; fi
    fio --name=cold --directory="$work" --size=32m --rw=randwrite --bs=4k --verify=crc32c --verify_only=1 \
        --verify_fatal=1 --verify_state_save=0 --randseed=5 --output-format=terse
}
check "written, remounted, verified" cold
