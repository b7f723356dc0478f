//! Every store operation fails once; every operation is the last before a crash. Names stay whole either way.

use super::*;

/// Prepares a volume in `before`, and runs `act`, which may fail.
struct Scene {
    before: fn(&MemoryFs),
    act: fn(&MemoryFs) -> Result<()>,
    /// Checks that the names are those before (`false`) or after (`true`); nothing in between exists.
    shows: fn(&MemoryFs) -> Option<bool>,
}

fn ino(fs: &MemoryFs, path: &[&[u8]]) -> Option<Ino> {
    let mut at = ROOT;
    for name in path {
        at = match fs.lookup(at, name) {
            Ok(attr) => attr.ino,
            Err(e) if e.errno() == libc::ENOENT => return None,
            Err(e) => panic!("{}: {e}", String::from_utf8_lossy(name)),
        };
    }
    Some(at)
}

/// Content of a file by path, `None` where there is no such name.
fn text(fs: &MemoryFs, path: &[&[u8]]) -> Option<Vec<u8>> {
    ino(fs, path).map(|ino| content(fs, ino).unwrap())
}

const L: [u8; 255] = [b'l'; 255];
const M: [u8; 255] = [b'm'; 255];

fn scenes() -> Vec<(&'static str, Scene)> {
    fn nothing(_: &MemoryFs) {}
    fn two_directories(fs: &MemoryFs) {
        for name in [&L[..], b"old"] {
            fs.mkdir(&BY, ROOT, name, 0o755).unwrap();
        }
        let full = ino(fs, &[&L]).unwrap();
        file(fs, full, b"inside", b"1");
        fs.commit().unwrap();
    }
    fn two_files(fs: &MemoryFs) {
        file(fs, ROOT, &L, b"1");
        file(fs, ROOT, &M, b"2");
        fs.commit().unwrap();
    }
    vec![
        (
            "mkdir",
            Scene {
                before: nothing,
                act: |fs| fs.mkdir(&BY, ROOT, &L, 0o755).map(drop),
                shows: |fs| Some(!names(fs, ROOT).is_empty()),
            },
        ),
        (
            "create",
            Scene {
                before: nothing,
                act: |fs| fs.create(&BY, ROOT, &L, 0o644).map(|a| fs.release(a.ino)),
                shows: |fs| Some(!names(fs, ROOT).is_empty()),
            },
        ),
        (
            "rmdir",
            Scene {
                before: |fs| assert!(fs.mkdir(&BY, ROOT, &L, 0o755).is_ok()),
                act: |fs| fs.rmdir(ROOT, &L),
                shows: |fs| Some(names(fs, ROOT).is_empty()),
            },
        ),
        (
            "unlink",
            Scene { before: two_files, act: |fs| fs.unlink(ROOT, &L), shows: |fs| Some(names(fs, ROOT).len() == 1) },
        ),
        (
            "rename",
            Scene {
                before: two_files,
                act: |fs| fs.rename((ROOT, &L), (ROOT, &[b'n'; 255]), RenameMode::NoReplace),
                shows: |fs| match (text(fs, &[&L]), text(fs, &[&[b'n'; 255]])) {
                    (Some(old), None) => (old == b"1").then_some(false),
                    (None, Some(new)) => (new == b"1").then_some(true),
                    _ => None,
                },
            },
        ),
        (
            "rename over a file",
            Scene {
                before: two_files,
                act: |fs| fs.rename((ROOT, &L), (ROOT, &M), RenameMode::Replace),
                shows: |fs| match (text(fs, &[&L]), text(fs, &[&M])) {
                    (Some(a), Some(b)) => (a == b"1" && b == b"2").then_some(false),
                    (None, Some(b)) => (b == b"1").then_some(true),
                    _ => None,
                },
            },
        ),
        (
            "exchange",
            Scene {
                before: two_files,
                act: |fs| fs.rename((ROOT, &L), (ROOT, &M), RenameMode::Exchange),
                shows: |fs| match (text(fs, &[&L]), text(fs, &[&M])) {
                    (Some(a), Some(b)) if a == b"1" && b == b"2" => Some(false),
                    (Some(a), Some(b)) if a == b"2" && b == b"1" => Some(true),
                    _ => None,
                },
            },
        ),
        (
            "rename over a directory",
            Scene {
                before: two_directories,
                act: |fs| fs.rename((ROOT, &L), (ROOT, b"old"), RenameMode::Replace),
                // A crash may leave the replaced, empty directory at the old name; the new one is complete then.
                shows: |fs| match (text(fs, &[&L, b"inside"]), text(fs, &[b"old", b"inside"])) {
                    (Some(_), None) => Some(false),
                    (None, Some(_)) => Some(true),
                    _ => None,
                },
            },
        ),
        (
            "long symlink",
            Scene {
                before: nothing,
                act: |fs| fs.symlink(&BY, ROOT, &L, &[b't'; 3000]).map(drop),
                shows: |fs| match ino(fs, &[&L]) {
                    None => Some(false),
                    Some(ino) => (fs.readlink(ino).unwrap() == [b't'; 3000]).then_some(true),
                },
            },
        ),
        (
            "link",
            Scene {
                before: two_files,
                act: |fs| fs.link(fs.lookup(ROOT, &L)?.ino, ROOT, &[b'n'; 255]).map(drop),
                shows: |fs| Some(text(fs, &[&[b'n'; 255]]).is_some()),
            },
        ),
    ]
}

/// Every directory of the tree works.
fn walk(fs: &MemoryFs, dir: Ino) {
    for name in names(fs, dir) {
        let attr = fs.lookup(dir, &name).unwrap();
        if attr.stat.kind == Kind::Directory {
            walk(fs, attr.ino);
            let probe = fs.create(&BY, attr.ino, b"probe", 0o600).unwrap();
            fs.release(probe.ino);
            fs.unlink(attr.ino, b"probe").unwrap();
        }
    }
}

#[test]
fn a_failing_store_leaves_before_or_after() {
    for (what, scene) in scenes() {
        let mut n = 1;
        loop {
            let volume = Volume::new();
            let fs = volume.mount();
            (scene.before)(&fs);
            let raw = volume.raw(&fs, ROOT);
            let operations = volume.tree.operations();
            volume.tree.fail_after(n, libc::EIO);
            let result = (scene.act)(&fs);
            let reached = volume.tree.operations() - operations >= n;
            volume.tree.heal();
            let after = (scene.shows)(&fs).unwrap_or_else(|| panic!("{what}: half done after failure {n}"));
            if result.is_ok() {
                assert!(after, "{what}: success without effect at {n}");
            } else {
                assert!(!after, "{what}: failure with effect at {n}");
                assert_eq!(volume.raw(&fs, ROOT), raw, "{what}: leftovers after failure {n}");
            }
            walk(&fs, ROOT);
            // It can be done now, and a later mount sees the same.
            if result.is_err() {
                (scene.act)(&fs).unwrap_or_else(|e| panic!("{what}: not repeatable after failure {n}: {e}"));
            }
            drop(fs);
            let fs = volume.mount();
            assert_eq!((scene.shows)(&fs), Some(true), "{what} after failure {n}");
            walk(&fs, ROOT);
            if !reached {
                break;
            }
            n += 1;
        }
        assert!(n > 1, "{what} changes something");
    }
}

#[test]
fn a_store_that_fails_for_good_leaves_before_or_after() {
    for (what, scene) in scenes() {
        let mut n = 1;
        loop {
            let volume = Volume::new();
            let fs = volume.mount();
            (scene.before)(&fs);
            let operations = volume.tree.operations();
            volume.tree.fail_from(n, libc::EIO);
            let _ = (scene.act)(&fs);
            let reached = volume.tree.operations() - operations >= n;
            volume.tree.heal();
            drop(fs);
            let fs = volume.mount();
            assert!((scene.shows)(&fs).is_some(), "{what}: half done after failure {n}");
            walk(&fs, ROOT);
            if !reached {
                break;
            }
            n += 1;
        }
    }
}

#[test]
fn a_crash_leaves_before_or_after() {
    for (what, scene) in scenes() {
        let volume = Volume::new();
        let fs = volume.mount();
        (scene.before)(&fs);
        let base = volume.tree.snapshot();
        volume.tree.start_recording();
        (scene.act)(&fs).unwrap();
        let history = volume.tree.take_recording();
        let mut seen_after = false;
        for crash in 0..=history.len() {
            let tree = base.snapshot();
            for operation in &history[..crash] {
                tree.replay(operation).unwrap();
            }
            let crashed = volume.with_tree(tree);
            let fs = crashed.mount();
            let after = (scene.shows)(&fs).unwrap_or_else(|| panic!("{what}: half done after {crash} operations"));
            assert!(after || !seen_after, "{what}: undone by a later operation");
            seen_after |= after;
            walk(&fs, ROOT);
            // Nothing that a crash left keeps anybody from emptying the tree.
            for name in names(&fs, ROOT) {
                let attr = fs.lookup(ROOT, &name).unwrap();
                if attr.stat.kind == Kind::Directory {
                    for inside in names(&fs, attr.ino) {
                        fs.unlink(attr.ino, &inside).unwrap();
                    }
                    fs.rmdir(ROOT, &name).unwrap();
                } else {
                    fs.unlink(ROOT, &name).unwrap();
                }
            }
        }
        assert!(seen_after, "{what}");
    }
}

#[test]
fn a_failed_commit_is_repeated_and_reported_to_fsync() {
    let volume = Volume::new();
    let fs = volume.mount();
    let a = file(&fs, ROOT, b"a", b"x");
    volume.tree.fail_after(1, libc::EIO);
    refused(fs.commit(), libc::EIO);
    assert!(fs.needs_commit(), "it stays in the set");
    refused(fs.fsync(a, true), libc::EIO);
    fs.fsync(a, true).unwrap();
    fs.commit().unwrap();
    assert!(!fs.needs_commit());
    assert_eq!(content(&fs, a).unwrap(), b"x");
}

#[test]
fn when_the_store_cannot_sync_as_a_whole_files_are_synced_one_by_one() {
    let volume = Volume::new();
    let fs = volume.mount();
    for i in 1..31u8 {
        file(&fs, ROOT, &[b'f', i], &[i; 10]);
    }
    volume.tree.fail_after(1, libc::EIO);
    refused(fs.commit(), libc::EIO);
    assert!(!fs.needs_commit(), "each file was made durable by itself");
    drop(fs);
    let fs = volume.mount();
    for i in 1..31u8 {
        let ino = fs.lookup(ROOT, &[b'f', i]).unwrap().ino;
        assert_eq!(content(&fs, ino).unwrap(), [i; 10]);
    }
}

#[test]
fn a_full_store_fails_writes_and_keeps_what_there_was() {
    let volume = Volume::new();
    let fs = volume.mount();
    let a = file(&fs, ROOT, b"a", &[1; 10_000]);
    fs.commit().unwrap();
    volume.tree.write_budget(6000);
    fs.open(a, WRITE).unwrap();
    refused(fs.write(a, 10_000, &[2; 100_000]), libc::ENOSPC);
    volume.tree.heal();
    let size = fs.getattr(a).unwrap().stat.size;
    fs.release(a);
    fs.commit().unwrap();
    let got = content(&fs, a).unwrap();
    assert_eq!(got[..10_000], [1; 10_000]);
    assert_eq!(got.len() as u64, size);
    drop(fs);
    assert_eq!(volume.mount().lookup(ROOT, b"a").unwrap().stat.size, size);
}
