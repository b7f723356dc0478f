#!/usr/bin/env bash
# File system exerciser: random reads, writes, truncations and mappings of one file against a copy in memory.
#   fsx.sh [DIRECTORY]     needs `cargo install fsx` (FSX: the binary); SEEDS="1 2 3" OPERATIONS=20000
. "$(dirname "$0")/lib.sh"
fsx=${FSX:-fsx}
suite_need "$fsx" "cargo install fsx"
suite_start "${1:-}"
operations=${OPERATIONS:-20000}

# Name, largest file, largest operation, and the weights of each mode.
config() { # FILE_LENGTH OPERATION_MAX EXTRA...
    printf 'flen = %s\n[opsize]\nmax = %s\n[weights]\n' "$1" "$2"
    printf '%s\n' "${@:3}"
}
config 262144 65536 "close_open = 1" "invalidate = 1" "truncate = 5" "fsync = 1" "fdatasync = 1" \
    "mapread = 10" "mapwrite = 10" "read = 10" "write = 10" "punch_hole = 3" "posix_fallocate = 2" \
    "copy_file_range = 3" "sendfile = 1" >"$scratch/all.toml"
config 4194304 131072 "close_open = 0.5" "truncate = 1" "fsync = 0.5" "read = 10" "write = 10" \
    "mapread = 5" "mapwrite = 5" >"$scratch/large.toml"
# Sizes around a block and a page, without mappings: every request reaches the daemon as it is.
config 20000 5000 "close_open = 2" "truncate = 10" "fsync = 2" "read = 10" "write = 20" "mapread = 0" "mapwrite = 0" \
    "punch_hole = 5" >"$scratch/small.toml"

for seed in ${SEEDS:-1 2 3}; do
    check "defaults, seed $seed" "$fsx" -q -S "$seed" -N "$operations" "$work/default"
    for mode in all large small; do
        check "$mode, seed $seed" "$fsx" -q -f "$scratch/$mode.toml" -S "$seed" -N "$operations" -P "$scratch" "$work/$mode"
    done
done
