# Sourced by run.sh and scale.sh: installs the peers, builds what is compared, and tells the rest where it all is.
# ENVELOPEFS, ENVELOPEFS_NULL, PASSTHROUGH_LL: programs that are there already, and are not built.

say() { echo "$(basename "$0"): $*" >&2; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
built=$root/target/bench
mkdir -p "$built"

# Debian package of each command, and of the files that the passthrough is built from.
packages=()
while read -r command package; do
    command -v "$command" >/dev/null || packages+=("$package")
done <<'END'
fio fio
gocryptfs gocryptfs
securefs securefs
encfs encfs
fusermount3 fuse3
gcc gcc
dpkg-source dpkg-dev
python3 python3
tar tar
END
[[ -e /usr/include/stdio.h ]] || packages+=(libc6-dev)
[[ -e /usr/include/fuse3/fuse_lowlevel.h ]] || packages+=(libfuse3-dev)
if ((${#packages[@]})); then
    if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
        say "please install: ${packages[*]}"
        exit 1
    fi
    say "installing ${packages[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # One by one: a peer that this release lacks is left out of the comparison and does not end it.
    for package in "${packages[@]}"; do
        apt-get install -y -qq --no-install-recommends "$package" >/dev/null || say "NOT INSTALLED: $package"
    done
fi
if ((EUID == 0)) && [[ ! -e /dev/fuse ]]; then
    modprobe fuse 2>/dev/null || mknod -m 0666 /dev/fuse c 10 229
fi

# Debian's fuse3 source package, unpacked in $1. The system's own list of sources stays as it is: a second one is made
# from it, with source packages in place of binary ones, and used with lists and caches of its own.
fetch_fuse3() {
    local apt=$1/apt version
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
    apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Identifier: Packages' 'Origin: Debian' | sort -u |
        sed "s|^|deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] |" >"$apt/sources.list"
    local options=(-qq -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o Dir::State::lists="$apt/lists" -o Dir::Cache="$apt/cache" -o APT::Sandbox::User=root)
    version=$(dpkg-query -W -f '${source:Version}' libfuse3-dev)
    apt-get "${options[@]}" update
    (cd "$1" && apt-get "${options[@]}" source --download-only "fuse3=$version" && dpkg-source --no-check -x fuse3_*.dsc fuse3 >/dev/null)
}

# libfuse's example file system, which encrypts nothing: what a careful FUSE program in C can reach.
build_passthrough() {
    local work
    work=$(mktemp -d)
    fetch_fuse3 "$work" &&
        gcc -O2 -D_FILE_OFFSET_BITS=64 -I/usr/include/fuse3 -o "$built/passthrough_ll.new" \
            "$work/fuse3/example/passthrough_ll.c" -lfuse3 -lpthread &&
        mv "$built/passthrough_ll.new" "$built/passthrough_ll"
    local status=$?
    rm -rf "$work"
    return $status
}
if [[ -z ${PASSTHROUGH_LL:-} ]]; then
    export PASSTHROUGH_LL=$built/passthrough_ll
    if [[ ! -x $PASSTHROUGH_LL ]]; then
        say "building passthrough_ll from Debian's fuse3 source package"
        build_passthrough || say "NO PASSTHROUGH: its source could not be had or built; it is left out"
    fi
fi

# The ordinary build last, so that it is the one that stays in target/release.
build() {
    (cd "$root" && cargo build --quiet --locked --release --bin envelopefs "${@:2}" && cp target/release/envelopefs "$1")
}
if [[ -z ${ENVELOPEFS_NULL:-} ]]; then
    export ENVELOPEFS_NULL=$built/envelopefs-null
    say "building the null cipher"
    build "$ENVELOPEFS_NULL" --features insecure-null-cipher
fi
if [[ -z ${ENVELOPEFS:-} ]]; then
    export ENVELOPEFS=$built/envelopefs
    say "building envelopefs"
    build "$ENVELOPEFS"
fi
