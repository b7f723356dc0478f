#!/usr/bin/env bash
# Power cuts under load.  powercut.sh [ext4|xfs|guest-ext4|guest-xfs]... [ROUNDS]     default: all four, 20 rounds each; SEED=1
# Needs root. Packages (Debian) are installed where they are missing. KERNEL_DEB: a linux-image package instead of Debian's newest.
#
# ext4, xfs: the backing store is a file system on a loop device, stopped by the FS_IOC_SHUTDOWN ioctl without writing its
#   journal. Modelled: what the kernel had not yet handed to the device is lost (dirty pages, journal in memory). Not modelled:
#   a device that loses or reorders what it was handed.
# guest-ext4, guest-xfs: the volume lies on a disk of a virtual machine that is killed. The disk is `crash_load disk`: a
#   volatile write cache in which everything since the last flush may be lost at the cut: all of it, or each page of 4096 bytes
#   by itself, or each request by itself, or everything after some request, or nothing, as the seed says. Modelled: loss of all
#   memory, loss and reordering of unflushed writes down to single pages, journal recovery on the next boot by another kernel
#   than the host's. Not modelled: pages of 4096 bytes that tear (see doc/FORMAT.md), flushes that a disk answers and does not
#   do. A line of the log counts when it has left the machine.
# After each cut: the journal is replayed, the file system checked (e2fsck -fn, xfs_repair -n), the volume mounted and verified
# as in kill9.sh.
. "$(dirname "$0")/lib.sh"
. "$here/crash_lib.sh"
modes=() rounds=20
for word; do if [[ $word =~ ^[0-9]+$ ]]; then rounds=$word; else modes+=("$word"); fi; done
((${#modes[@]})) || modes=(ext4 xfs guest-ext4 guest-xfs)
[ "$EUID" = 0 ] || { echo "powercut.sh: needs root" >&2; exit 2; }
CASE_LINES=20
: "${SUITE_OPTIONS:=commit=1}"

install() { # COMMAND PACKAGE...
    local missing=()
    while (($#)); do command -v "$1" >/dev/null || missing+=("$2"); shift 2; done
    ((${#missing[@]} == 0)) && return
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null || exit 2
}
install mkfs.ext4 e2fsprogs mkfs.xfs xfsprogs
crash_start

make_image() { # FS FILE
    rm -f "$2"
    truncate -s 512M "$2"
    if [ "$1" = xfs ]; then mkfs.xfs -q "$2"; else mkfs.ext4 -q -b 4096 "$2"; fi
}
sound() { # FS FILE
    if [ "$1" = xfs ]; then xfs_repair -n "$2"; else e2fsck -fn "$2"; fi
}

# --- loop devices ---
cut_loop() {
    touch "$scratch/crashed"
    "$CRASH_LOAD" cut "$backing" || return
    kill -9 "$daemon"
    wait "$daemon" 2>/dev/null
    daemon=
    crash_dead
}
replay() { # FS
    local i
    "$ENVELOPEFS" umount "$mountpoint" || return
    for ((i = 0; i < 100; i++)); do umount "$backing" && break; sleep 0.1; done
    mount -o loop "$scratch/image" "$backing" && umount "$backing" && sound "$1" "$scratch/image" &&
        mount -o loop "$scratch/image" "$backing"
}
loop_rounds() { # FS
    local round seed before
    backing=$scratch/backing volume=$scratch/backing/cipher
    mkdir -p "$backing" && rm -f "$state"/*
    check "$1: a disk" make_image "$1" "$scratch/image"
    check "$1: mount the disk" mount -o loop "$scratch/image" "$backing"
    touch "$backing/probe"
    check "$1: init" crash_init
    check "$1: mount" crash_mount
    for ((round = 1; round <= rounds; round++)); do
        seed=$((${SEED:-1} * 100000 + round)) before=$failed
        crash_load_start "$seed" probe="$backing/probe"
        crash_wait "$seed"
        check "$1 $round: the power is cut" cut_loop
        check "$1 $round: no error before" crash_load_end
        check "$1 $round: the journal is replayed, the disk sound" replay "$1"
        check "$1 $round: envelopefs check" "$ENVELOPEFS" check "$volume"
        check "$1 $round: mount again" crash_mount
        check "$1 $round: what was acknowledged is there" crash_verify "$seed"
        if ((failed > before)); then
            crash_keep "$round"
            crash_clean >/dev/null 2>&1 || { echo "$1 $round: the tree cannot be removed"; break; }
        elif ((round % ${CHAIN:-5} == 0)); then
            check "$1 $round: the tree can be removed" crash_clean
        fi
    done
    check "$1: unmount" crash_unmount
    check "$1: unmount the disk" umount "$backing"
    backing=
    check "$1: the load did its work" test "$operations" -gt "$rounds"
    echo "$1: $rounds cuts, $operations acknowledged operations verified"
    operations=0
}

# --- virtual machines ---
# A root file system in memory: busybox, the modules of the guest's kernel, and the programs under test with their libraries.
guest_build() {
    install qemu-system-x86_64 qemu-system-x86 busybox busybox-static cpio cpio depmod kmod gcc binutils
    busybox=$(dpkg -L busybox-static | grep -m1 '/busybox$') root=$scratch/guest
    mkdir -p "$scratch/kernel" "$root"/{bin,sbin,lib64,proc,sys,dev,disk,keep,mnt,tmp,etc,run}
    (cd "$scratch/kernel" && chmod 0777 . &&
        if [ -n "${KERNEL_DEB:-}" ]; then cp "$KERNEL_DEB" .; else
            apt-get update -qq
            apt-get download -qq "$(apt-cache depends linux-image-amd64 | sed -n 's/ *Depends: \(linux-image-[0-9]\)/\1/p' | head -1)"
        fi && dpkg-deb -x ./*.deb .) || return
    release=$(basename "$(ls -d "$scratch"/kernel/{usr/,}lib/modules/* 2>/dev/null | head -1)")
    kernel=$scratch/kernel/boot/vmlinuz-$release
    local modules program library
    modules=$(ls -d "$scratch"/kernel/{usr/,}lib/modules/"$release" 2>/dev/null | head -1)
    mkdir -p "$root/lib/modules/$release"
    for program in kernel/{crypto,lib,block} kernel/arch/x86/crypto kernel/fs/{ext4,jbd2,xfs,fuse} kernel/fs/mbcache.ko* \
        kernel/drivers/virtio kernel/drivers/block/virtio_blk.ko* kernel/drivers/char/virtio_console.ko* modules.order modules.builtin modules.builtin.modinfo; do
        for library in "$modules"/$program; do
            [ -e "$library" ] || continue
            mkdir -p "$root/lib/modules/$release/$(dirname "$program")"
            cp -r "$library" "$root/lib/modules/$release/$(dirname "$program")/"
        done
    done
    find "$root/lib/modules" -name '*.ko.xz' -exec xz -d {} +
    depmod -b "$root" "$release" || return
    cp "$busybox" "$root/bin/busybox"
    for program in sh mount umount mkdir cat ls rm sleep sync modprobe insmod echo grep sed touch basename head tail wc poweroff mountpoint find stat kill dmesg; do
        ln -s busybox "$root/bin/$program"
    done
    strip -o "$root/bin/envelopefs" "$ENVELOPEFS" && strip -o "$root/bin/crash_load" "$CRASH_LOAD" || return
    cp "$(command -v e2fsck)" "$(command -v xfs_repair)" "$root/sbin/"
    for program in "$root"/bin/{envelopefs,crash_load} "$root"/sbin/*; do
        ldd "$program" | sed -n 's/.*=> \(\/[^ ]*\).*/\1/p; s/^[[:space:]]*\(\/lib64[^ ]*\) .*/\1/p'
    done | sort -u | while read -r library; do
        mkdir -p "$root$(dirname "$library")" && cp -L "$library" "$root$library"
    done
    cp "$here/powercut_guest.sh" "$root/init"
    chmod 0755 "$root/init"
    (cd "$root" && find . | cpio -o -H newc --quiet | gzip -1 >"$scratch/initramfs")
}
# What leaves the machine: one line a message, in $scratch/port.
guest_start() { # FS SEED WORDS...
    local acknowledged
    acknowledged=$(awk '$1 == "A" { if ($3 + 0 >= n[$2] + 0) n[$2] = $3 + 0 } END { for (w in n) printf "%s%s:%s", k++ ? "," : "", w, n[w] }' "$acks" 2>/dev/null)
    rm -f "$scratch"/{nbd,port,disk.in,disk.out}
    mkfifo "$scratch/disk.in"
    "$CRASH_LOAD" disk "$scratch/nbd" "$scratch/image" <"$scratch/disk.in" >"$scratch/disk.out" 2>"$scratch/disk.errors" & disk=$!
    exec 7>"$scratch/disk.in"
    local i
    for ((i = 0; i < 200; i++)); do [ -S "$scratch/nbd" ] && break; sleep 0.05; done
    qemu-system-x86_64 -nodefaults -no-user-config -machine q35 "${accelerator[@]}" -smp 2 -m 1024 -display none -no-reboot \
        -kernel "$kernel" -initrd "$scratch/initramfs" \
        -append "console=ttyS0 quiet panic=-1 fs=$1 seed=$2 acks=$acknowledged options=$SUITE_OPTIONS ${*:3}" \
        -serial "file:$scratch/console" \
        -drive "if=none,id=disk,format=raw,cache=writeback,file.driver=nbd,file.server.type=unix,file.server.path=$scratch/nbd" \
        -device virtio-blk-pci,drive=disk \
        -drive "if=none,id=keep,format=raw,cache=unsafe,file=$scratch/keep" -device virtio-blk-pci,drive=keep \
        -device virtio-serial-pci -chardev "file,id=port,path=$scratch/port" -device virtserialport,chardev=port,name=acknowledgements \
        >"$scratch/qemu.log" 2>&1 7>&- & qemu=$!
}
# Hardware virtualisation where a guest boots by it in reasonable time (nested, it may not), else emulation.
guest_accelerator() {
    local i
    if [ -w /dev/kvm ]; then
        accelerator=(-accel kvm -cpu "host,arch-capabilities=off")
        make_image ext4 "$scratch/image" && make_image ext4 "$scratch/keep"
        guest_start ext4 0 probe
        for ((i = 0; i < 200; i++)); do grep -aqs '^BOOTED' "$scratch/port" && break; sleep 0.1; done
        guest_cut 0 >/dev/null
        ((i < 200)) && return
    fi
    echo "no usable /dev/kvm: the guest is emulated"
    accelerator=(-accel tcg -cpu max)
}
# Until a line with this word has come out of the machine.
guest_said() { # WORD
    local i
    for ((i = 0; i < ${GUEST_PATIENCE:-300} * 10; i++)); do
        grep -aq "^$1" "$scratch/port" 2>/dev/null && return
        grep -aq '^BAD' "$scratch/port" 2>/dev/null && break
        kill -0 "$qemu" 2>/dev/null || break
        sleep 0.1
    done
    cat "$scratch/port" "$scratch/qemu.log"
    tail -c 3000 "$scratch/console"
    return 1
}
# From the cut on the disk answers nothing, so that no acknowledgement can follow what is lost.
guest_cut() { # SEED
    echo "cut $1" >&7
    local i
    for ((i = 0; i < 200; i++)); do (($(wc -l <"$scratch/disk.out") > 1)) && break; sleep 0.05; done
    kill -9 "$qemu"
    wait "$qemu" 2>/dev/null
    exec 7>&-
    wait "$disk"
    local status=$?
    qemu= disk=
    cat "$scratch/disk.out"
    return $status
}
guest_line() { grep -a '^VERIFIED' "$scratch/port"; }
no_errors() { ! grep -a '^E ' "$scratch/port"; }
guest_rounds() { # FS
    local round seed kinds=() line before=$failed
    check "guest-$1: a disk" make_image "$1" "$scratch/image"
    check "guest-$1: a disk for what is kept" make_image ext4 "$scratch/keep"
    ((failed == before)) || return
    rm -f "$acks"
    local words=fresh
    for ((round = 1; round <= rounds + 1; round++)); do
        seed=$((${SEED:-1} * 100000 + round))
        ((round > rounds)) && words+=" last"
        guest_start "$1" "$seed" "$words"
        if ((round > rounds)); then
            check "guest-$1: the last cut is verified" guest_said DONE
        else
            check "guest-$1 $round: boots, and the cut before it is verified" guest_said LOADING
        fi
        ((failed > before)) || ((round > rounds)) || crash_wait "$seed"
        check "guest-$1 $round: the power is cut" guest_cut "$seed"
        check "guest-$1 $round: no error before" no_errors
        line=$(guest_line) && [[ $line =~ ^VERIFIED\ ([0-9]+)\ operations ]] && operations=$((operations + BASH_REMATCH[1]))
        kinds+=("$(sed -n '2s/:.*//p' "$scratch/disk.out")")
        [ -z "${VERBOSE:-}" ] || echo "guest-$1 $round: ${line:-nothing to verify}; $(sed -n 2p "$scratch/disk.out")"
        ((failed > before)) && { [ -z "${KEEP_FAILED:-}" ] || cp "$scratch"/{image,keep,port,acks,console} "$KEEP_FAILED"; break; }
        cp "$scratch/port" "$acks"
        words=
        ((round % ${CHAIN:-5} == 0)) && words=remove
    done
    check "guest-$1: the load did its work" test "$operations" -gt "$rounds"
    echo "guest-$1: $((round > rounds ? rounds : round)) cuts ($(printf '%s\n' "${kinds[@]}" | sort | uniq -c | tr -s ' \n' ' ')), $operations acknowledged operations verified"
    operations=0
}
powercut_end() {
    local status=$?
    for pid in ${qemu:-} ${disk:-}; do kill -9 "$pid" 2>/dev/null; done
    (exit $status)
    crash_end
}
trap powercut_end EXIT

for mode in "${modes[@]}"; do
    case $mode in
    ext4 | xfs) loop_rounds "$mode" ;;
    guest-*)
        if [ -z "${kernel:-}" ]; then
            check "a guest" guest_build
            guest_accelerator
            # Slow where it is emulated.
            SECONDS_MIN=${GUEST_SECONDS_MIN:-1} SECONDS_MAX=${GUEST_SECONDS_MAX:-6}
        fi
        guest_rounds "${mode#guest-}"
        ;;
    *) echo "powercut.sh: what is $mode?" >&2; exit 2 ;;
    esac
done
