#!/bin/sh
# The first process of the virtual machine of powercut.sh, under busybox: replays, checks, verifies what the last cut left, then
# loads until it is cut itself. What it has to say leaves by a virtio port, one line a message.
#
# Words of the kernel's command line: fs= seed= acks=WORKER:NUMBER,… (of the round before) options= (of the mount);
# fresh: nothing is there yet; remove: everything is removed after it was verified; last: verify only; probe: boot only.
export PATH=/bin:/sbin ENVELOPEFS_CONFIG_DIR=/keep/config ENVELOPEFS_RUNTIME_DIR=/run/envelopefs ENVELOPEFS_LOG=info
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in virtio_pci virtio_blk virtio_console crc32c_generic ext4 xfs fuse; do modprobe $module; done
for word in $(cat /proc/cmdline); do
    case $word in *=*) eval "word_${word%%=*}=\${word#*=}" 2>/dev/null ;; fresh | remove | last | probe) eval "word_$word=1" ;; esac
done
port=
while [ -z "$port" ]; do
    for name in /sys/class/virtio-ports/*/name; do
        [ "$(cat $name 2>/dev/null)" = acknowledgements ] && port=/dev/$(basename ${name%/name})
    done
done
exec 5>$port
say() { echo "$*" >&5; }
say BOOTED
bad() {
    say "BAD $*"
    cat /tmp/daemon.log
    while :; do sleep 60; done
}
told() { # WHAT COMMAND...: its output is part of the complaint
    what=$1
    shift
    "$@" >/tmp/out 2>&1 || { sed 's/^/BAD /' /tmp/out | tail -n 12 >&5; bad "$what"; }
}
mount_volume() {
    envelopefs mount --foreground -o "$word_options" /disk/cipher /mnt >/tmp/daemon.log 2>&1 5>&- &
    daemon=$!
    until grep -q 'info: mounted' /tmp/daemon.log; do
        kill -0 $daemon || { sed 's/^/BAD /' /tmp/daemon.log >&5; bad "the volume does not mount"; }
        sleep 0.05
    done
}

while [ -n "$word_probe" ]; do sleep 60; done
told "the disk of what is kept" mount /dev/vdb /keep
mkdir -p /keep/config /keep/state
told "the disk does not mount" mount -t $word_fs /dev/vda /disk
if [ -n "$word_fresh" ]; then
    told keygen envelopefs keygen /keep/config/cmk.json
    told init envelopefs init --cmk keyfile:///keep/config/cmk.json /disk/cipher
    mount_volume
else
    # The mount has replayed the journal; now the file system must be sound.
    told "the disk does not unmount" umount /disk
    case $word_fs in
    ext4) told "the file system is not sound" e2fsck -fn /dev/vda ;;
    xfs) told "the file system is not sound" xfs_repair -n /dev/vda ;;
    esac
    told "the disk does not mount" mount -t $word_fs /dev/vda /disk
    told "envelopefs check" envelopefs check /disk/cipher
    mount_volume
    echo "$word_acks" | sed 's/,/\n/g' | sed 's/:/ /; s/^/A /' >/tmp/acks
    told "what was acknowledged is not there" crash_load verify /mnt /keep/state /tmp/acks $((word_seed - 1))
    say "VERIFIED $(head -1 /tmp/out)"
    grep -E 'panicked|error: ' /tmp/daemon.log >/tmp/out && bad "the log: $(head -3 /tmp/out)"
    if [ -n "$word_remove" ]; then
        rm -rf /mnt/* || bad "the tree cannot be removed"
        [ -z "$(ls -A /mnt)" ] || bad "the tree cannot be removed: $(ls -A /mnt)"
        rm -f /keep/state/*
    fi
fi
# What is kept must not be lost by the cut; the volume's disk gets no sync of ours.
rm -rf /tmp/state && mkdir /tmp/state && for file in /keep/state/*; do [ -e "$file" ] && cat "$file" >/tmp/state/$(basename "$file"); done
if [ -n "$word_last" ]; then
    told "unmount" envelopefs umount /mnt
    told "the disk does not unmount" umount /disk
    umount /keep
    say DONE
    while :; do sleep 60; done
fi
mount -o remount,ro /keep
say LOADING
exec 5>&-
# The port can be opened once at a time.
crash_load load /mnt /tmp/state $port $word_seed >/tmp/out 2>&1
exec 5>$port
say "E load 0 ended: $(head -3 /tmp/out)"
while :; do sleep 60; done
