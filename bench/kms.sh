#!/usr/bin/env bash
# Speed of the key service beside others: Decrypt and GenerateDataKey at 64 connections, plain HTTP on loopback, one client.
#   bench/kms.sh [SECONDS A RUN]      default 10; CONNECTIONS=64; PROFILE=dev only to see whether it runs
# Servers: envelopefs, moto_server and ministack (ENVELOPEFS_TEST_TOOLS, as in tests/run.sh), and the bare cost: a server that
# does nothing but HTTP, one SigV4 verification and one AES-GCM a request. A server that is not installed is left out, loudly.
# Client and server share this host's processors, and so do others: compare figures of one run only.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-10} connections=${CONNECTIONS:-64} profile=${PROFILE:-release}
tools=${ENVELOPEFS_TEST_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/envelopefs-test-tools}

say() { echo "bench/kms.sh: $*" >&2; }

cargo build --profile "$profile" --locked
load=$(cargo bench --profile "$profile" --locked --bench kms_load --no-run --message-format=json 2>/dev/null |
    sed -n 's/.*"executable":"\([^"]*kms_load-[^"]*\)".*/\1/p' | tail -1)
[ -x "$load" ] || { say "the load could not be built"; exit 1; }
envelopefs=target/${profile/#dev/debug}/envelopefs

work=$(mktemp -d)
server=
stop() { # ends what start has started, and nothing else
    [ -z "$server" ] || { kill "$server" 2>/dev/null && wait "$server" 2>/dev/null || true; }
    server=
}
trap 'stop; rm -rf "$work"' EXIT

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

start() { # NAME COMMAND...: with `port` set
    "${@:2}" >"$work/$1.log" 2>&1 </dev/null &
    server=$!
    for _ in $(seq 300); do
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && return
        kill -0 "$server" 2>/dev/null || break
        sleep 0.2
    done
    cat "$work/$1.log" >&2
    return 1
}

measure() { # NAME ID SECRET
    local operation line
    for operation in Decrypt GenerateDataKey; do
        line=$("$load" load "$port" "$2" "$3" "$operation" "$connections" "$seconds")
        printf '%-12s %-16s %8s /s   p50 %8s us   p99 %8s us   %s failed\n' "$1" "$operation" \
            "$(field per_second)" "$(field p50_us)" "$(field p99_us)" "$(field failed)"
    done
}
field() { sed -n "s/.*\"$1\":\([0-9]*\).*/\1/p" <<<"$line"; }

uname -srm
echo "$(nproc) processors, $connections connections, $seconds s a run, load before: $(cut -d' ' -f1-3 /proc/loadavg)"

port=$(free_port)
start bare "$load" bare "$port"
measure bare id secret
stop

"$envelopefs" keygen "$work/seal.json" >/dev/null
root=$("$envelopefs" kms init "$work/kms" --seal "keyfile://$work/seal.json" --json)
access_key() { sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" <<<"$root"; }
port=$(free_port)
start envelopefs "$envelopefs" kms serve "$work/kms" --listen "127.0.0.1:$port"
measure envelopefs "$(access_key AccessKeyId)" "$(access_key SecretAccessKey)"
stop

for name in moto_server ministack; do
    program=$tools/bin/$name
    if [ ! -x "$program" ]; then
        say "$name is not installed: left out"
        continue
    fi
    port=$(free_port)
    case $name in
    moto_server) start "$name" "$program" -H 127.0.0.1 -p "$port" ;;
    ministack) start "$name" env BIND_HOST=127.0.0.1 GATEWAY_PORT="$port" "$program" ;;
    esac
    measure "$name" AKIDEXAMPLE secret
    stop
done
