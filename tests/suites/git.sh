#!/usr/bin/env bash
# git: clone, fsck, many commits, repack, worktrees.  git.sh [DIRECTORY]   SOURCE: a repository to clone (default: this one)
. "$(dirname "$0")/lib.sh"
suite_need git "Debian: git"
source=${SOURCE:-$repository}
suite_start "${1:-}"
export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=suite GIT_AUTHOR_EMAIL=suite@localhost
export GIT_COMMITTER_NAME=$GIT_AUTHOR_NAME GIT_COMMITTER_EMAIL=$GIT_AUTHOR_EMAIL
export GIT_CONFIG_COUNT=3 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*' \
    GIT_CONFIG_KEY_1=core.fsync GIT_CONFIG_VALUE_1=all GIT_CONFIG_KEY_2=gc.auto GIT_CONFIG_VALUE_2=0
whole() { git -C "$1" fsck --full --strict --no-dangling; }
clean() { [ -z "$(git -C "$1" status --porcelain)" ]; }

check "clone" git clone -q --no-local "$source" a
check "fsck" whole a
check "a clone is clean" clean a
check "the tree equals its archive" eval 'mkdir x && git -C a archive HEAD | tar -x -C x && diff -r --no-dereference -x .git a x'
check "the archive equals the source" eval '[ "$(git -C a archive HEAD | sha256sum)" = "$(git -C "$source" archive "$(git -C a rev-parse HEAD)" | sha256sum)" ]'
check "clone by hard links" eval 'git clone -q a b && whole b'
commits() {
    local i
    for i in $(seq 150); do
        echo "$i" >>"a/file$((i % 7))" && git -C a add -A && git -C a commit -qm "commit $i" || return
    done
    whole a
}
check "150 commits" commits
check "gc" eval 'git -C a gc -q --prune=now && whole a && clean a'
check "repack, multi-pack index, commit graph" eval 'git -C a repack -qad && git -C a multi-pack-index write --no-progress &&
    git -C a multi-pack-index verify --no-progress && git -C a commit-graph write --no-progress && whole a'
check "rebase" eval 'git -C a checkout -qb topic HEAD~50 && echo y >a/topic && git -C a add topic && git -C a commit -qm topic && git -C a rebase -q @{-1} && whole a'
check "worktree" eval 'git -C a worktree add -q ../w HEAD~3 && clean w && git -C a worktree remove ../w'
check "bundle" eval 'git -C a bundle create -q ../bundle HEAD && git clone -q bundle d && whole d'
check "push" eval 'git init -q --bare e && git -C a push -q ../e HEAD:refs/heads/m && whole e'
check "parallel checkout" eval 'git -c checkout.workers=4 clone -q a p && clean p'
check "remove everything" eval 'rm -rf -- * && [ -z "$(ls -A)" ]'
