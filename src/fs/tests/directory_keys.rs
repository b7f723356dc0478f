//! CMKs of directories: who inherits them and when, what stays, and that a change is whole or has not happened.

use super::*;
use crate::format::KeyGroup;
use crate::format::header::Unverified;
use crate::store::BackingFile;

/// A volume whose mounts were given two CMKs for directories beside its own.
fn volume() -> Volume {
    Volume { more: vec![TestCmk::named("a", 10), TestCmk::named("b", 11)], ..Volume::new() }
}

fn group(names: &[&str]) -> KeyGroup {
    Some(names.iter().map(|name| KeyRef { provider: "test".into(), key: (*name).into() }).collect())
}

fn directory(fs: &MemoryFs, parent: Ino, name: &[u8]) -> Ino {
    fs.mkdir(&BY, parent, name, 0o755).unwrap().ino
}

/// A directory in the root, with CMKs of its own.
fn tenant(fs: &MemoryFs, name: &str) -> Ino {
    let ino = directory(fs, ROOT, name.as_bytes());
    fs.set_directory_keys(ino, group(&[name])).unwrap();
    ino
}

/// The CMKs that a file's header names; none where it has no header.
fn hangs_on(fs: &MemoryFs, ino: Ino) -> Vec<String> {
    let backing = fs.open_backing(&fs.node(ino).unwrap(), Access::Read).unwrap();
    let mut slot = vec![0; 4096];
    backing.read_at(&mut slot, 0).unwrap();
    match Unverified::parse(&slot, Geometry { header_pages: 1 }) {
        Ok(header) => header.claims().slots.iter().map(|slot| slot.key_ref.clone()).collect(),
        Err(_) => Vec::new(),
    }
}

fn empty(fs: &MemoryFs, parent: Ino, name: &[u8]) -> Ino {
    let ino = fs.create(&BY, parent, name, 0o644).unwrap().ino;
    fs.release(ino);
    ino
}

fn fill(fs: &MemoryFs, ino: Ino) {
    fs.open(ino, WRITE).unwrap();
    fs.write(ino, 0, b"filled").unwrap();
    fs.release(ino);
}

#[test]
fn new_files_hang_on_the_directory_s_cmks_and_old_ones_keep_theirs() {
    let volume = volume();
    let fs = volume.mount();
    let d = directory(&fs, ROOT, b"d");
    let old = file(&fs, d, b"old", b"1");
    assert_eq!(fs.directory_keys(d).unwrap(), None);
    fs.set_directory_keys(d, group(&["b", "a"])).unwrap();
    let new = file(&fs, d, b"new", b"2");
    let outside = file(&fs, ROOT, b"outside", b"3");
    fs.commit().unwrap();
    for _ in 0..2 {
        assert_eq!(hangs_on(&fs, old), ["one"]);
        assert_eq!(hangs_on(&fs, new), ["b", "a"]);
        assert_eq!(hangs_on(&fs, outside), ["one"]);
        // A write keeps the keys that are there.
        fill(&fs, old);
        fs.commit().unwrap();
    }
    assert_eq!(content(&fs, new).unwrap(), b"2");
    fs.set_directory_keys(d, None).unwrap();
    assert_eq!(hangs_on(&fs, file(&fs, d, b"last", b"4")), ["one"]);
    assert_eq!(hangs_on(&fs, new), ["b", "a"]);
}

#[test]
fn directories_inherit_at_their_making_and_keep_what_they_have() {
    let volume = volume();
    let fs = volume.mount();
    let a = tenant(&fs, "a");
    (0..5).fold(a, |at, _| directory(&fs, at, b"deeper"));
    let own = directory(&fs, a, b"own");
    fs.set_directory_keys(own, group(&["b"])).unwrap();
    directory(&fs, own, b"x");
    drop(fs);

    let fs = volume.mount();
    let down = |path: &[&[u8]]| path.iter().fold(ROOT, |at, name| fs.lookup(at, name).unwrap().ino);
    let path: &[&[u8]] = &[b"a", b"deeper", b"deeper", b"deeper", b"deeper", b"deeper"];
    assert_eq!(fs.directory_keys(down(path)).unwrap(), group(&["a"]));
    assert_eq!(hangs_on(&fs, file(&fs, down(path), b"f", b"1")), ["a"]);
    assert_eq!(hangs_on(&fs, file(&fs, down(&[b"a", b"own", b"x"]), b"f", b"1")), ["b"]);
    // A change above does not reach below.
    fs.set_directory_keys(down(&[b"a"]), group(&["b"])).unwrap();
    assert_eq!(fs.directory_keys(down(path)).unwrap(), group(&["a"]));
    fs.set_directory_keys(down(&[b"a", b"own"]), None).unwrap();
    assert_eq!(fs.directory_keys(down(&[b"a", b"own", b"x"])).unwrap(), group(&["b"]));
    assert_eq!(fs.directory_keys(ROOT).unwrap(), None);
    // The root may have some, too.
    fs.set_directory_keys(ROOT, group(&["b"])).unwrap();
    assert_eq!(fs.directory_keys(directory(&fs, ROOT, b"new")).unwrap(), group(&["b"]));
}

#[test]
fn a_rename_changes_no_directory_s_cmks_and_no_file_s_keys() {
    let volume = volume();
    let fs = volume.mount();
    let (a, b) = (tenant(&fs, "a"), tenant(&fs, "b"));
    let moved = file(&fs, a, b"f", b"1");
    let inner = directory(&fs, a, b"inner");
    fs.rename((a, b"f"), (b, b"f"), RenameMode::NoReplace).unwrap();
    fs.rename((a, b"inner"), (b, b"inner"), RenameMode::NoReplace).unwrap();
    assert_eq!(hangs_on(&fs, moved), ["a"]);
    assert_eq!(fs.directory_keys(inner).unwrap(), group(&["a"]));
    assert_eq!(hangs_on(&fs, file(&fs, inner, b"g", b"1")), ["a"]);
    assert_eq!(hangs_on(&fs, file(&fs, b, b"g", b"1")), ["b"]);
    // It hangs on the same keys until it has none: emptied, it takes those of where it is.
    fill(&fs, moved);
    assert_eq!(hangs_on(&fs, moved), ["a"]);
    fs.open(moved, EMPTY).unwrap();
    fs.write(moved, 0, b"anew").unwrap();
    fs.release(moved);
    assert_eq!(hangs_on(&fs, moved), ["b"]);
    // Exchanged directories and files, and one over another.
    directory(&fs, ROOT, b"c");
    fs.rename((ROOT, b"a"), (ROOT, b"b"), RenameMode::Exchange).unwrap();
    assert_eq!((fs.directory_keys(a).unwrap(), fs.directory_keys(b).unwrap()), (group(&["a"]), group(&["b"])));
    fs.rename((ROOT, b"b"), (ROOT, b"c"), RenameMode::Replace).unwrap();
    assert_eq!(fs.directory_keys(fs.lookup(ROOT, b"c").unwrap().ino).unwrap(), group(&["a"]));
    drop(fs);
    let fs = volume.mount();
    assert_eq!(fs.directory_keys(fs.lookup(ROOT, b"a").unwrap().ino).unwrap(), group(&["b"]));
}

#[test]
fn a_file_without_a_header_takes_the_keys_of_where_it_is_when_it_is_first_written() {
    let volume = volume();
    let fs = volume.mount();
    let a = tenant(&fs, "a");
    tenant(&fs, "b");
    for name in [&b"later"[..], b"moved", b"changed"] {
        empty(&fs, a, name);
    }
    drop(fs);
    let fs = volume.mount();
    let (a, b) = (fs.lookup(ROOT, b"a").unwrap().ino, fs.lookup(ROOT, b"b").unwrap().ino);
    let later = fs.lookup(a, b"later").unwrap().ino;
    fill(&fs, later);
    assert_eq!(hangs_on(&fs, later), ["a"]);

    // Moved while it is open and empty.
    let moved = fs.lookup(a, b"moved").unwrap().ino;
    fs.open(moved, WRITE).unwrap();
    fs.rename((a, b"moved"), (b, b"moved"), RenameMode::NoReplace).unwrap();
    fs.write(moved, 0, b"x").unwrap();
    fs.release(moved);
    assert_eq!(hangs_on(&fs, moved), ["b"]);

    // The directory's CMKs change while a file in it is open: a log that is emptied and written on.
    let changed = fs.lookup(a, b"changed").unwrap().ino;
    fs.open(changed, WRITE).unwrap();
    fs.write(changed, 0, b"x").unwrap();
    assert_eq!(hangs_on(&fs, changed), ["a"]);
    fs.set_directory_keys(a, group(&["b"])).unwrap();
    fs.write(changed, 1, b"y").unwrap();
    assert_eq!(hangs_on(&fs, changed), ["a"]);
    fs.setattr(changed, &SetAttr { size: Some(0), ..SetAttr::default() }).unwrap();
    fs.write(changed, 0, b"z").unwrap();
    fs.release(changed);
    assert_eq!(hangs_on(&fs, changed), ["b"]);
}

#[test]
fn a_file_with_names_in_two_directories_takes_the_keys_of_one_of_them() {
    let volume = volume();
    let fs = volume.mount();
    let (a, b) = (tenant(&fs, "a"), tenant(&fs, "b"));
    let both = empty(&fs, a, b"f");
    fs.link(both, b, b"f").unwrap();
    fs.unlink(b, b"f").unwrap();
    fill(&fs, both);
    assert_eq!(hangs_on(&fs, both), ["a"], "the name that is left");
    // With keys, a link changes nothing.
    fs.link(both, b, b"f").unwrap();
    fill(&fs, both);
    assert_eq!(hangs_on(&fs, both), ["a"]);
    // Without any name: those of its last directory.
    let orphan = fs.create(&BY, b, b"orphan", 0o600).unwrap().ino;
    fs.unlink(b, b"orphan").unwrap();
    fs.write(orphan, 0, b"x").unwrap();
    assert_eq!(hangs_on(&fs, orphan), ["b"]);
    fs.release(orphan);
}

#[test]
fn without_the_directory_s_cmk_nothing_new_is_made_and_nothing_falls_back() {
    let with_all = volume();
    let fs = with_all.mount();
    let (a, b) = (tenant(&fs, "a"), tenant(&fs, "b"));
    file(&fs, a, b"foreign", b"of a");
    fs.rename((a, b"foreign"), (b, b"foreign"), RenameMode::NoReplace).unwrap();
    file(&fs, b, b"own", b"of b");
    empty(&fs, b, b"empty");
    fs.commit().unwrap();
    drop(fs);
    let without_b = Volume { more: vec![with_all.more[0].clone()], ..with_all };
    let fs = without_b.mount();
    let b = fs.lookup(ROOT, b"b").unwrap().ino;
    // What headers name decides for what exists.
    assert_eq!(content(&fs, fs.lookup(b, b"foreign").unwrap().ino).unwrap(), b"of a");
    refused(content(&fs, fs.lookup(b, b"own").unwrap().ino), libc::ENOKEY);
    refused(fs.create(&BY, b, b"new", 0o644), libc::ENOKEY);
    refused(fs.mknod(&BY, b, b"new", Kind::File, 0o644, 0), libc::ENOKEY);
    assert_eq!(names(&fs, b), [&b"empty"[..], b"foreign", b"own"]);
    let headerless = fs.lookup(b, b"empty").unwrap().ino;
    assert_eq!(content(&fs, headerless).unwrap(), b"");
    refused(fs.open(headerless, WRITE), libc::ENOKEY);
    refused(fs.open(headerless, EMPTY), libc::ENOKEY);
    refused(fs.write(headerless, 0, b"x"), libc::ENOKEY);
    assert_eq!(hangs_on(&fs, headerless), [""; 0]);
    // What needs no key works: directories (they inherit all the same), links, removal.
    let inside = directory(&fs, b, b"inside");
    assert_eq!(fs.directory_keys(inside).unwrap(), group(&["b"]));
    refused(fs.create(&BY, inside, b"new", 0o644), libc::ENOKEY);
    fs.symlink(&BY, b, b"link", b"target").unwrap();
    fs.unlink(b, b"own").unwrap();
    let a = fs.lookup(ROOT, b"a").unwrap().ino;
    assert_eq!(hangs_on(&fs, file(&fs, a, b"fine", b"x")), ["a"]);
    refused(fs.set_directory_keys(a, group(&["a", "b"])), libc::ENOKEY);
    assert_eq!(fs.directory_keys(a).unwrap(), group(&["a"]));
    // Back to the volume's own CMKs needs nothing of b.
    fs.set_directory_keys(b, None).unwrap();
    assert_eq!(hangs_on(&fs, file(&fs, b, b"new", b"x")), ["one"]);
}

#[test]
fn a_refused_cmk_of_one_directory_leaves_the_others_alone() {
    let volume = volume();
    let fs = volume.mount();
    let (a, b) = (tenant(&fs, "a"), tenant(&fs, "b"));
    file(&fs, a, b"f", b"a");
    file(&fs, b, b"f", b"b");
    fs.commit().unwrap();
    drop(fs);
    volume.more[1].refuses.store(true, Ordering::Relaxed);
    let fs = volume.mount();
    let (a, b) = (fs.lookup(ROOT, b"a").unwrap().ino, fs.lookup(ROOT, b"b").unwrap().ino);
    assert_eq!(content(&fs, fs.lookup(a, b"f").unwrap().ino).unwrap(), b"a");
    file(&fs, a, b"g", b"a");
    refused(content(&fs, fs.lookup(b, b"f").unwrap().ino), libc::EKEYREVOKED);
    let new = empty(&fs, b, b"g");
    fs.open(new, WRITE).unwrap();
    refused(fs.write(new, 0, b"x"), libc::EKEYREVOKED);
    assert_eq!(hangs_on(&fs, new), [""; 0]);
}

/// Puts another record into a directory, below the mount.
fn plant(volume: &Volume, fs: &MemoryFs, ino: Ino, target: &[u8]) {
    let handle = fs.handle(&fs.node(ino).unwrap()).unwrap();
    volume.tree.unlink(&handle, DIR_ID_NAME).unwrap();
    volume.tree.symlink(&handle, DIR_ID_NAME, target, BY.creator()).unwrap();
}

fn record(fs: &MemoryFs, ino: Ino) -> Vec<u8> {
    let handle = fs.handle(&fs.node(ino).unwrap()).unwrap();
    fs.store.readlink(Place::Entry { dir: &*handle, name: DIR_ID_NAME }).unwrap()
}

#[test]
fn a_record_that_was_changed_or_stripped_of_its_keys_is_refused() {
    let volume = volume();
    let fs = volume.mount();
    let a = tenant(&fs, "a");
    let (good, plain) = (record(&fs, a), record(&fs, ROOT));
    assert_eq!(plain.len(), 59);
    let mut flipped = good.clone();
    flipped[50] = if flipped[50] == b'A' { b'B' } else { b'A' };
    for bad in [flipped, good[..59].to_vec(), [&good[..43], &plain[43..]].concat()] {
        plant(&volume, &fs, a, &bad);
        let again = volume.mount();
        let a = again.lookup(ROOT, b"a").unwrap().ino;
        refused(again.create(&BY, a, b"f", 0o644), libc::EIO);
        refused(again.directory_keys(a), libc::EIO);
        refused(again.set_directory_keys(a, None), libc::EIO);
    }
    // Changed while a mount has the directory in memory: nothing is written over it.
    refused(fs.set_directory_keys(a, None), libc::EIO);
    plant(&volume, &fs, a, &good);
    fs.set_directory_keys(a, None).unwrap();
    assert_eq!(record(&fs, a).len(), 59);
}

/// The record is bound to the id, and the id to the names inside: another directory's record hides everything.
#[test]
fn a_record_of_another_directory_opens_nothing_here() {
    let volume = volume();
    let fs = volume.mount();
    let (a, b) = (tenant(&fs, "a"), tenant(&fs, "b"));
    file(&fs, b, b"secret", b"of b");
    fs.commit().unwrap();
    plant(&volume, &fs, b, &record(&fs, a));
    refused(fs.set_directory_keys(b, None), libc::EIO);
    let again = volume.mount();
    let b = again.lookup(ROOT, b"b").unwrap().ino;
    refused(again.lookup(b, b"secret"), libc::ENOENT);
    assert!(names(&again, b).is_empty());
}

#[test]
fn times_of_the_directory_stay() {
    let volume = volume();
    let fs = volume.mount();
    let d = directory(&fs, ROOT, b"d");
    let before = fs.getattr(d).unwrap().stat;
    fs.set_directory_keys(d, group(&["a"])).unwrap();
    let after = fs.getattr(d).unwrap().stat;
    assert_eq!((before.mtime, before.atime, before.nlink), (after.mtime, after.atime, after.nlink));
}

#[test]
fn only_directories_of_a_writable_mount_and_lists_that_fit() {
    let volume = volume();
    let fs = volume.mount();
    let f = file(&fs, ROOT, b"f", b"x");
    refused(fs.set_directory_keys(f, group(&["a"])), libc::ENOTDIR);
    refused(fs.directory_keys(f), libc::ENOTDIR);
    refused(fs.set_directory_keys(ROOT, Some(Arc::from([]))), libc::ENOKEY);
    refused(fs.set_directory_keys(ROOT, group(&["a", "a"])), libc::ENOKEY);
    let long = "x".repeat(1000);
    match fs.set_directory_keys(ROOT, group(&[&long])) {
        Err(FsError::Key(KeyError::Config(text))) => assert!(text.contains("has room for 723"), "{text}"),
        other => panic!("{other:?}"),
    }
    let gone = directory(&fs, ROOT, b"gone");
    let handle = fs.opendir(gone).unwrap();
    fs.rmdir(ROOT, b"gone").unwrap();
    refused(fs.set_directory_keys(gone, group(&["a"])), libc::ENOENT);
    fs.releasedir(handle);
    fs.commit().unwrap();
    drop(fs);
    let read_only = volume.try_mount(64, true).unwrap();
    refused(read_only.set_directory_keys(ROOT, None), libc::EROFS);
}

/// A directory with a record of `a` and a file, and the change to `b`.
fn scene(volume: &Volume) -> (MemoryFs, Ino) {
    let fs = volume.mount();
    let d = tenant(&fs, "a");
    file(&fs, d, b"f", b"x");
    fs.commit().unwrap();
    (fs, d)
}

/// Everything works in the directory, and it can be removed.
fn works(fs: &MemoryFs) -> KeyGroup {
    let d = fs.lookup(ROOT, b"a").unwrap().ino;
    let keys = fs.directory_keys(d).unwrap();
    let name = keys.as_ref().unwrap()[0].key.clone();
    assert_eq!(names(fs, d), [b"f"]);
    assert_eq!(content(fs, fs.lookup(d, b"f").unwrap().ino).unwrap(), b"x");
    let new = file(fs, d, b"new", b"y");
    assert_eq!(hangs_on(fs, new), [name]);
    for name in [&b"f"[..], b"new"] {
        fs.unlink(d, name).unwrap();
    }
    fs.rmdir(ROOT, b"a").unwrap();
    keys
}

#[test]
fn every_failure_leaves_the_old_or_the_new_group() {
    for for_good in [false, true] {
        let mut n = 1;
        let mut outcomes = std::collections::HashSet::new();
        loop {
            let volume = volume();
            let (fs, d) = scene(&volume);
            let operations = volume.tree.operations();
            let before = volume.raw(&fs, d);
            match for_good {
                true => volume.tree.fail_from(n, libc::EIO),
                false => volume.tree.fail_after(n, libc::EIO),
            }
            let result = fs.set_directory_keys(d, group(&["b"]));
            let reached = volume.tree.operations() - operations >= n;
            volume.tree.heal();
            // What this mount believes is what a later one reads.
            let believed = fs.directory_keys(d).unwrap();
            if !for_good {
                assert_eq!(volume.raw(&fs, d), before, "leftovers after failure {n}");
            }
            drop(fs);
            let keys = works(&volume.mount());
            assert_eq!(keys, believed, "failure {n}");
            assert!(keys == group(&["a"]) || keys == group(&["b"]));
            if result.is_ok() {
                assert_eq!(keys, group(&["b"]), "success without effect at {n}");
            }
            outcomes.insert((result.is_ok(), keys == group(&["b"])));
            if !reached {
                break;
            }
            n += 1;
        }
        // Symlink, rename, times, sync.
        assert!(n >= 4, "{n}");
        assert!(outcomes.contains(&(false, false)) && outcomes.contains(&(true, true)));
    }
}

#[test]
fn every_crash_leaves_the_old_or_the_new_group() {
    let volume = volume();
    let (fs, d) = scene(&volume);
    let base = volume.tree.snapshot();
    volume.tree.start_recording();
    fs.set_directory_keys(d, group(&["b"])).unwrap();
    let history = volume.tree.take_recording();
    let mut seen = Vec::new();
    for crash in 0..=history.len() {
        let tree = base.snapshot();
        for operation in &history[..crash] {
            tree.replay(operation).unwrap();
        }
        seen.push(works(&volume.with_tree(tree).mount()));
    }
    assert_eq!(seen.first().unwrap(), &group(&["a"]));
    assert_eq!(seen.last().unwrap(), &group(&["b"]));
    assert!(seen.is_sorted_by_key(|keys| *keys == group(&["b"])), "undone by a later operation");
}

/// Files that are made while the group changes hang on the old or the new one, never on the volume's.
#[test]
fn a_change_during_creation_is_old_or_new() {
    let volume = volume();
    let fs = volume.mount();
    let d = tenant(&fs, "a");
    std::thread::scope(|scope| {
        let changer = scope.spawn(|| {
            for n in 0..50 {
                fs.set_directory_keys(d, group(&[["b", "a"][n % 2]])).unwrap();
            }
        });
        for n in 0..100u8 {
            let new = file(&fs, d, &[b'f', n / 50 + 1, n % 50 + 50], b"x");
            assert!([["a"], ["b"]].iter().any(|names| hangs_on(&fs, new) == names), "{:?}", hangs_on(&fs, new));
        }
        changer.join().unwrap();
    });
}
