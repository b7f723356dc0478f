#!/usr/bin/env bash
# Compares envelopefs with its peers, a passthrough and itself without a cipher, workload by workload, on this machine.
#   bench/run.sh [--backing tmpfs|DIR] [--rounds N] [--targets A,B] [--workloads X,Y] [--tree TAR|DIR] [--size 512m] [--out DIR]
# Writes table.md, plot.svg and results.json to DIR (target/bench/results). Needs root, Rust, and nothing else running.
set -euo pipefail
source "$(dirname "$0")/prepare.sh"
exec python3 -B "$root/bench/compare.py" "$@"
