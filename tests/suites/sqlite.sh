#!/usr/bin/env bash
# SQLite: 10 000 transactions in WAL and in rollback mode with integrity checks, many writers, a killed writer.
#   sqlite.sh [DIRECTORY]     needs sqlite3; TRANSACTIONS=10000
. "$(dirname "$0")/lib.sh"
suite_need sqlite3 "Debian: sqlite3"
suite_start "${1:-}"
transactions=${TRANSACTIONS:-10000}

statements() { # FIRST LAST: one transaction a row, with updates and deletes among them
    awk -v first="$1" -v last="$2" 'BEGIN {
        for (i = first; i <= last; i++) {
            printf "begin; insert into t values(%d, randomblob(%d), %d);", i, (i * 37) % 3000, i * 7
            if (i % 5 == 0) printf "update t set b = randomblob(900) where i = %d;", i - 3
            if (i % 11 == 0) printf "delete from t where i = %d;", i - 7
            print "commit;"
        }
    }'
}
fill() { # DATABASE JOURNAL_MODE SYNCHRONOUS
    rm -f "$1" "$1"-*
    { echo "pragma journal_mode=$2; pragma synchronous=$3; create table t(i integer primary key, b blob, n int);"
      echo "create index x on t(n);"; statements 1 "$transactions"; } | sqlite3 -bail "$1" >/dev/null
}
sound() { # DATABASE
    [ "$(sqlite3 "$1" 'pragma integrity_check')" = ok ] &&
        [ "$(sqlite3 "$1" 'select count(*) from t')" = $((transactions - transactions / 11)) ]
}
for mode in wal delete truncate persist; do
    check "$transactions transactions, $mode" fill "$mode.db" "$mode" normal
    check "integrity, $mode" sound "$mode.db"
done
check "synchronous=full, rollback journal" eval 'transactions=500 fill full.db delete full && transactions=500 sound full.db'
check "vacuum" sqlite3 wal.db vacuum
check "integrity after vacuum" sound wal.db
check "backup" eval 'sqlite3 wal.db ".backup copy.db" && sound copy.db'

writers() { # JOURNAL_MODE: four processes, 200 rows each
    rm -f many.db*
    sqlite3 many.db "pragma journal_mode=$1; create table n(w int, i int, primary key(w, i))" >/dev/null || return
    local jobs=() w
    for w in 1 2 3 4; do
        (for i in $(seq 200); do echo "insert into n values($w, $i);"; done |
            sqlite3 -bail -cmd '.timeout 60000' many.db) & jobs+=($!)
    done
    local status=0
    for job in "${jobs[@]}"; do wait "$job" || status=1; done
    ((status == 0)) && [ "$(sqlite3 many.db 'select count(*) from n')" = 800 ] &&
        [ "$(sqlite3 many.db 'pragma integrity_check')" = ok ]
}
check "four writers, WAL" writers wal
check "four writers, rollback journal" writers delete

killed() { # JOURNAL_MODE: a writer dies in the middle of a transaction
    rm -f hot.db*
    sqlite3 hot.db "pragma journal_mode=$1; create table z(x)" >/dev/null
    sqlite3 hot.db "with recursive c(x) as (select 1 union all select x + 1 from c where x < 20000)
        insert into z select hex(randomblob(50)) from c" || return
    local before pid
    before=$(sqlite3 hot.db 'select count(*), sum(length(x)) from z')
    mkfifo "$scratch/input.$1"
    sqlite3 -cmd 'pragma cache_size=5' hot.db <"$scratch/input.$1" & pid=$!
    exec 9>"$scratch/input.$1"
    echo "begin; update z set x = hex(randomblob(60)); select 1;" >&9
    # Until the update is on its way to the disk.
    for _ in $(seq 100); do [ -n "$(find . -name 'hot.db-*' -size +100k)" ] && break; sleep 0.1; done
    kill -9 $pid; wait $pid; exec 9>&-
    [ "$(sqlite3 hot.db 'select count(*), sum(length(x)) from z')" = "$before" ] &&
        [ "$(sqlite3 hot.db 'pragma integrity_check')" = ok ]
}
check "recovery after a killed writer, rollback journal" killed delete
check "recovery after a killed writer, WAL" killed wal
