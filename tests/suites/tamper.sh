#!/usr/bin/env bash
# The differential tamper fuzz for long: random damage below, every answer held to the truth.
#   tamper.sh [ROUNDS]      default 200000 trees in memory and 500 on real mounts; ENVELOPEFS_TAMPER_SEED repeats a run
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${1:-200000}
export ENVELOPEFS_TAMPER_ROUNDS=$rounds ENVELOPEFS_TAMPER_MOUNT_ROUNDS=$((rounds / 400 + 1))
passed=0 failed=0
for name in library::random_tampering library::fuzzed_headers mounted_fuzz::random_tampering_below_a_mount; do
    if cargo test --locked --test tamper -- --exact --nocapture "$name"; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
done
echo "$passed passed, $failed failed"
((failed == 0))
