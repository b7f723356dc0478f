#!/usr/bin/env bash
# A build without encryption (cargo feature insecure-null-cipher) cannot be used by accident: it refuses every volume but its own,
# and the ordinary build refuses those.
#   null_cipher.sh     ENVELOPEFS_NULL: such a build (default: made in target/bench)
. "$(dirname "$0")/lib.sh"
if [ -z "${ENVELOPEFS_NULL:-}" ]; then
    ENVELOPEFS_NULL=$repository/target/bench/envelopefs-null
    (cd "$repository" && mkdir -p target/bench && cargo build --release --locked --features insecure-null-cipher &&
        cp target/release/envelopefs "$ENVELOPEFS_NULL" && cargo build --release --locked) || exit 2
fi
suite_start
cd /
cmk=keyfile://$ENVELOPEFS_CONFIG_DIR/cmk.json null=$scratch/null mnt=$scratch/null.mnt
mkdir "$mnt"

refuses() { # CODE TEXT COMMAND...
    local code=$1 text=$2 status=0
    shift 2
    "$@" >"$scratch/said" 2>&1 || status=$?
    cat "$scratch/said"
    [ "$status" = "$code" ] && grep -q -- "$text" "$scratch/said"
}
version_says_it() {
    "$ENVELOPEFS_NULL" --version | grep -q INSECURE-NULL-CIPHER && ! "$ENVELOPEFS" --version | grep -q NULL
}
mount_warns() {
    "$ENVELOPEFS_NULL" mount --cmk "$cmk" "$null" "$mnt" >"$scratch/said" 2>&1 </dev/null && grep -q 'WITHOUT ENCRYPTION' "$scratch/said"
}
unmount_the_ordinary_volume() {
    echo secret >"$work/file" && "$ENVELOPEFS" umount "$mountpoint"
}
ordinary_volume_is_refused() {
    for words in "mount --cmk $cmk $volume $mnt" "export --cmk $cmk $volume $scratch/out" "check --cmk $cmk $volume" "info $volume"; do
        # shellcheck disable=SC2086
        refuses 3 'suite 1, this program knows suite 65280' "$ENVELOPEFS_NULL" $words || return
    done
}
content_is_in_the_clear() {
    echo "these words are not encrypted" >"$mnt/file" && sync "$mnt/file" && grep -rq "these words are not encrypted" "$null/tree"
}
names_are_not() {
    [ ! -e "$null/tree/file" ]
}
null_volume_is_refused() {
    for words in "mount --cmk $cmk $null $mnt" "export --cmk $cmk $null $scratch/out" "check --cmk $cmk $null" "info $null"; do
        # shellcheck disable=SC2086
        refuses 3 'suite 65280 (INSECURE-NULL-CIPHER' "$ENVELOPEFS" $words || return
    done
}

check "unmount the ordinary volume" unmount_the_ordinary_volume
check "the version says what it is" version_says_it
check "an ordinary volume is refused" ordinary_volume_is_refused
check "init wants it spelled out" refuses 2 insecure-null-cipher "$ENVELOPEFS_NULL" init --cmk "$cmk" "$null"
check "mount --create makes no volume" refuses 2 'init alone' "$ENVELOPEFS_NULL" mount --create --cmk "$cmk" "$null" "$mnt"
check "the ordinary build has no such option" refuses 2 insecure-null-cipher "$ENVELOPEFS" init --insecure-null-cipher --cmk "$cmk" "$null"
check "a volume of its own is made" "$ENVELOPEFS_NULL" init --insecure-null-cipher --cmk "$cmk" "$null"
check "a mount warns" mount_warns
check "content is in the clear" content_is_in_the_clear
check "names are not" names_are_not
check "unmount it" "$ENVELOPEFS_NULL" umount "$mnt"
check "the ordinary build refuses it" null_volume_is_refused
