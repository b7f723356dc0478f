#!/usr/bin/env bash
# The lock protocol under a model checker (shuttle): thousands of schedules of the key cache, branch making, the node table,
# the dirty set and one file's locks; then the library's tests under ThreadSanitizer, where a nightly toolchain is there.
#   models.sh     TSAN=0 leaves the second part out
. "$(dirname "$0")/lib.sh"
scratch=$(mktemp -d) && trap suite_end EXIT
cd "$repository" || exit 2
CASE_SECONDS=7200 CASE_LINES=60
check "schedules" cargo test --locked --lib --features shuttle model:: -- --test-threads=1
if [ "${TSAN:-1}" = 0 ]; then
    :
elif rustc +nightly --version >/dev/null 2>&1 && [ -d "$(rustc +nightly --print sysroot)/lib/rustlib/src/rust/library" ]; then
    triple=$(rustc -vV | sed -n 's/^host: //p')
    # The standard library has to be instrumented too, or its own atomics look like races.
    RUSTFLAGS=-Zsanitizer=thread check "ThreadSanitizer" cargo +nightly test --locked --lib -Zbuild-std --target "$triple" \
        --target-dir target/tsan -- fs:: file:: keys::cache keys::keyring sys::locked
else
    skip "ThreadSanitizer: rustup toolchain install nightly --component rust-src"
fi
