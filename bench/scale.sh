#!/usr/bin/env bash
# What the work costs, and how that grows: CPU, memory, descriptors, large directories, sparse files, many writers, latencies.
#   bench/scale.sh [--backing tmpfs|DIR] [--targets A,B] [--measures X,Y] [--entries N] [--tree TAR|DIR] [--out DIR]
# Writes scale.md and scale.json to DIR (target/bench/results). Needs root, Rust, and nothing else running.
set -euo pipefail
source "$(dirname "$0")/prepare.sh"
exec python3 -B "$root/bench/scale.py" "$@"
