#!/usr/bin/env bash
# Many rounds of the crash tests: kill -9 of the daemon and power cuts of the backing store, under load.
#   crash.sh     ROUNDS=50; root for the power cuts. The load and its oracle are tests/mounted/durability.rs.
. "$(dirname "$0")/lib.sh"
scratch=$(mktemp -d) && trap suite_end EXIT
cd "$repository" || exit 2
export ENVELOPEFS_TEST_CRASH_ROUNDS=${ROUNDS:-50}
[ "$EUID" = 0 ] || { export ENVELOPEFS_TEST_SKIP_ROOT=1; skip "power cuts: not root"; }
CASE_LINES=40 CASE_SECONDS=7200
for name in kill_9_loses_nothing_that_was_synced a_power_cut_loses_nothing_that_was_synced appended_records_survive_kill_9 \
    sqlite_survives_kill_9 new_directories_survive_a_power_cut_whole sync_is_bounded_by_the_commit_interval; do
    check "$name" cargo test --locked --test mounted "durability::$name" -- --exact
done
