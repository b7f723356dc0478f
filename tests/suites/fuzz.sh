#!/usr/bin/env bash
# Coverage-guided fuzzing of every parser of foreign bytes (src/fuzzing, fuzz/).
#   fuzz.sh [MINUTES]    in all, shared equally; default 60. TARGETS="header tlvs" only these; CORES=1 at once.
# Works on the stable toolchain: LLVM's coverage is a compiler flag, and libFuzzer is built from its crate.
# New inputs go to fuzz/work/TARGET; FUZZ_MINIMISE=1 then makes the smallest set with the same coverage the new fuzz/corpus/TARGET.
# What breaks a promise is left in fuzz/artifacts/TARGET-*, and this fails.
. "$(dirname "$0")/lib.sh"
scratch=$(mktemp -d) && trap suite_end EXIT
cd "$repository/fuzz" || exit 2
minutes=${1:-60} cores=${CORES:-1}
triple=$(rustc -vV | sed -n 's/^host: //p')
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0 \
-Cdebug-assertions"
# With a target given, programs that only serve the build are not instrumented.
cargo build --release --locked --target "$triple" || exit 2
unset RUSTFLAGS
fuzzer=target/$triple/release/envelopefs-fuzz
# Nothing here may open anything: the answers of services are the fuzzer's own.
export AWS_ACCESS_KEY_ID=x AWS_SECRET_ACCESS_KEY=x AWS_EC2_METADATA_DISABLED=true AWS_CONFIG_FILE=/dev/null \
    AWS_SHARED_CREDENTIALS_FILE=/dev/null
unset VAULT_ADDR VAULT_TOKEN VAULT_NAMESPACE HTTPS_PROXY HTTP_PROXY ALL_PROXY https_proxy http_proxy all_proxy
targets=${TARGETS:-$(ls corpus)}
count=$(wc -w <<<"$targets")
seconds=$((minutes * 60 * cores / count)) && ((seconds >= 5)) || seconds=5
mkdir -p work artifacts

fuzz() { # TARGET
    local dictionary=()
    [ ! -e "dictionaries/$1.dict" ] || dictionary=(-dict="dictionaries/$1.dict")
    mkdir -p "work/$1"
    FUZZ_TARGET=$1 nice -n 19 "$fuzzer" "work/$1" "corpus/$1" "${dictionary[@]}" -max_total_time="$seconds" -max_len=20000 \
        -len_control=10 -timeout=20 -rss_limit_mb=1024 -malloc_limit_mb=64 -artifact_prefix="artifacts/$1-" -print_final_stats=1 \
        -close_fd_mask=1 >"$scratch/$1.log" 2>&1
    local status=$?
    printf '%-14s %12s executions  %6s edges  %5s inputs  %5s s\n' "$1" \
        "$(sed -n 's/^stat::number_of_executed_units: *//p' "$scratch/$1.log")" \
        "$(grep -o 'cov: [0-9]*' "$scratch/$1.log" | tail -1 | cut -d' ' -f2)" "$(ls "work/$1" | wc -l)" "$seconds"
    return $status
}
# libFuzzer's own minimisation, the large ones left out: the corpus is read in every run of the unit tests.
minimise() { # TARGET
    rm -rf "work/$1.min" && mkdir "work/$1.min"
    FUZZ_TARGET=$1 "$fuzzer" -merge=1 -max_len="${CORPUS_INPUT_MAX:-4200}" "work/$1.min" "corpus/$1" "work/$1" >>"$scratch/$1.log" 2>&1 || return
    find "work/$1.min" -type f -printf '%s %p\n' | sort -n | tail -n "+$((${CORPUS_INPUTS:-200} + 1))" | cut -d' ' -f2 | xargs -r rm
    cp -n "work/$1.min"/* "corpus/$1/"
}
for target in $targets; do
    while (($(jobs -rp | wc -l) >= cores)); do wait -n; done
    (fuzz "$target" && touch "$scratch/$target.good") &
done
wait
for target in $targets; do
    check "$target" test -e "$scratch/$target.good" || tail -n 30 "$scratch/$target.log"
    [ -z "${FUZZ_MINIMISE:-}" ] || minimise "$target"
done
