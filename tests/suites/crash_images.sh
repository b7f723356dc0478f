#!/usr/bin/env bash
# Crash images in memory by the million: what tests/crash looks at in a sample, over many seeds.
#   crash_images.sh     SAMPLES=300 images drawn at each operation, SEEDS="1 2 3". Needs neither root nor FUSE.
# A failure names its seed, image and the operations that it dropped, and the variables that look at that image alone.
. "$(dirname "$0")/lib.sh"
scratch=$(mktemp -d) && trap suite_end EXIT
cd "$repository" || exit 2
export ENVELOPEFS_CRASH_SAMPLES=${SAMPLES:-300}
CASE_LINES=60 CASE_SECONDS=14400
for seed in ${SEEDS:-1 2 3}; do
    check "crash images, seed $seed" env ENVELOPEFS_CRASH_SEED="$seed" cargo test --locked --test crash -- --nocapture
done
