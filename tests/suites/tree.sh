#!/usr/bin/env bash
# A large tree in and out: tar, diff, times across a remount, rsync, a second extraction over the first.
#   tree.sh [DIRECTORY]     SOURCE: the tree (default: /usr/share)
. "$(dirname "$0")/lib.sh"
source=${SOURCE:-/usr/share}
suite_start "${1:-}"
archive=$scratch/tree.tar
check "archive $source" tar --format=posix -cf "$archive" -C "$source" .
reference=$scratch/reference
mkdir "$reference" && tar -xf "$archive" -C "$reference"
echo "$(find "$reference" | wc -l) objects, $(du -sh "$reference" | cut -f1)"

facts() { (cd "$1" && find . -printf '%P %y %m %T@ %l\n' | sort); }
same() { diff -r --no-dereference "$reference" tree && diff <(facts "$reference") <(facts tree); }
extract() { mkdir -p tree && tar -xf "$archive" -C tree; }
check "extract" extract
check "contents, modes and times" same
if [ -n "$mountpoint" ]; then
    # Longer than the commit interval, so that sizes were committed in the background.
    sleep 7
    check "unchanged by the commit" same
    remount() { cd / && "$ENVELOPEFS" umount "$mountpoint" && suite_mount && cd "$work"; }
    check "remount" remount
    check "unchanged by a remount" same
    exported() {
        cd / && "$ENVELOPEFS" umount "$mountpoint" || return
        "$ENVELOPEFS" export "$volume" "$scratch/export" && diff -r --no-dereference "$reference" "$scratch/export/suite/tree" &&
            diff <(facts "$reference") <(facts "$scratch/export/suite/tree")
        local status=$?
        suite_mount && cd "$work" && return $status
    }
    check "export" exported
fi
check "extract over it" extract
check "still the same" same
check "copy" eval 'cp -a tree copy && diff -r --no-dereference tree copy'
command -v rsync >/dev/null && check "rsync" eval 'rsync -aHAX tree/ synced/ && diff -r --no-dereference tree synced' || skip "rsync is not installed"
check "remove" rm -rf tree copy synced
