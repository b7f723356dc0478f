//! Nodes, names and pins: what the kernel may rely on.

use super::*;

#[test]
fn every_lookup_is_given_back() {
    let volume = Volume::new();
    let fs = volume.mount();
    let dir = fs.mkdir(&BY, ROOT, b"d", 0o755).unwrap().ino;
    let a = file(&fs, dir, b"a", b"x");
    assert_eq!(fs.lookup(dir, b"a").unwrap().ino, a);
    assert_eq!(fs.link(a, ROOT, b"b").unwrap().ino, a);
    assert_eq!(fs.nodes.lookups(a), 3);
    fs.forget(a, 2);
    assert_eq!(fs.nodes.lookups(a), 1);
    fs.commit().unwrap();
    fs.forget(a, 1);
    fs.forget(dir, 1);
    assert_eq!(fs.nodes.len(), 1, "only the root is left");
    refused(fs.getattr(a), libc::ESTALE);
    refused(fs.lookup(dir, b"a"), libc::ESTALE);
    // The root stays whatever the kernel says.
    fs.forget(ROOT, 1000);
    assert_eq!(fs.getattr(ROOT).unwrap().ino, ROOT);
}

#[test]
fn a_forgotten_file_waits_for_its_commit() {
    let volume = Volume::new();
    let fs = volume.mount();
    let a = file(&fs, ROOT, b"a", b"x");
    fs.forget(a, 1);
    assert_eq!(fs.nodes.len(), 2);
    assert!(fs.needs_commit());
    // It is the same inode for whoever comes before the commit.
    assert_eq!(fs.lookup(ROOT, b"a").unwrap().stat.size, 1);
    fs.forget(a, 1);
    fs.commit().unwrap();
    assert!(!fs.needs_commit());
    assert_eq!(fs.nodes.len(), 1);
}

#[test]
fn the_root_has_number_one_and_nobody_else_has() {
    let volume = Volume::new();
    let fs = volume.mount();
    let backing = fs.root_ino;
    assert_eq!(fs.ino_of(backing), ROOT);
    for ino in [1, 2, backing, 77] {
        assert_eq!(fs.ino_of(fs.ino_of(ino)), ino, "a bijection");
    }
    let handle = fs.opendir(ROOT).unwrap();
    fs.readdir(ROOT, handle, 0, &mut |e| {
        assert_eq!(e.ino, ROOT);
        e.next < 2
    })
    .unwrap();
}

#[test]
fn an_unlinked_inode_works_without_a_handle() {
    let volume = Volume::new();
    let fs = volume.mount();
    let inodes = fs.statfs().unwrap();
    let a = fs.create(&BY, ROOT, b"a", 0o644).unwrap().ino;
    fs.write(a, 0, b"before").unwrap();
    fs.unlink(ROOT, b"a").unwrap();
    refused(fs.lookup(ROOT, b"a"), libc::ENOENT);
    fs.write(a, 6, b" after").unwrap();
    fs.fsync(a, false).unwrap();
    assert_eq!(read_open(&fs, a).unwrap(), b"before after");
    fs.setxattr(&BY, a, b"user.x", b"1", 0).unwrap();
    let attr = fs.setattr(a, &SetAttr { mode: Some(0o600), size: Some(6), ..SetAttr::default() }).unwrap();
    assert_eq!((attr.stat.mode, attr.stat.size, attr.stat.nlink), (0o600, 6, 0));
    fs.release(a);
    assert!(!fs.needs_commit(), "nobody will ever read it");
    // Not forgotten: the number still means this inode, and it opens again (as through /proc/PID/fd).
    assert_eq!(fs.getattr(a).unwrap().stat.size, 6);
    assert_eq!(content(&fs, a).unwrap(), b"before");
    fs.forget(a, 1);
    assert_eq!(fs.nodes.len(), 1);
    assert_eq!(fs.statfs().unwrap(), inodes, "the inode is gone from the store");
}

#[test]
fn a_name_gone_leaves_the_others() {
    let volume = Volume::new();
    let fs = volume.mount();
    let a = file(&fs, ROOT, b"a", b"x");
    fs.link(a, ROOT, &long(b'b')).unwrap();
    let node = fs.node(a).unwrap();
    fs.unlink(ROOT, b"a").unwrap();
    assert!(node.pin().is_none(), "another name leads to it");
    assert_eq!(node.links().len(), 1);
    assert_eq!(fs.getattr(a).unwrap().stat.nlink, 1);
    fs.unlink(ROOT, &long(b'b')).unwrap();
    assert!(node.pin().is_some());
    assert!(node.links().is_empty());
    assert_eq!(volume.raw(&fs, ROOT), [DIR_ID_NAME.to_vec()]);
    // A pinned inode without names cannot get one.
    refused(fs.link(a, ROOT, b"c"), libc::ENOENT);
}

#[test]
fn a_name_that_stays_unpins_the_inode() {
    let volume = Volume::new();
    let fs = volume.mount();
    let a = file(&fs, ROOT, b"a", b"x");
    volume.tree.fail_after(1, libc::EIO);
    refused(fs.unlink(ROOT, b"a"), libc::EIO);
    let node = fs.node(a).unwrap();
    assert!(node.pin().is_none());
    assert_eq!(node.links().len(), 1);
    assert_eq!(content(&fs, a).unwrap(), b"x");
}

#[test]
fn a_removed_directory_stays_an_inode() {
    let volume = Volume::new();
    let fs = volume.mount();
    let dir = fs.mkdir(&BY, ROOT, b"d", 0o755).unwrap().ino;
    fs.rmdir(ROOT, b"d").unwrap();
    assert_eq!(fs.getattr(dir).unwrap().ino, dir);
    refused(fs.create(&BY, dir, b"x", 0o644), libc::ENOENT);
    refused(fs.lookup(dir, b"x"), libc::ENOENT);
    assert!(fs.handles.get(dir).is_none());
    fs.forget(dir, 1);
    assert_eq!(fs.nodes.len(), 1);
    // The same for one that a rename replaced.
    let old = fs.mkdir(&BY, ROOT, b"old", 0o755).unwrap().ino;
    let new = fs.mkdir(&BY, ROOT, b"new", 0o755).unwrap().ino;
    fs.rename((ROOT, b"new"), (ROOT, b"old"), RenameMode::Replace).unwrap();
    assert_eq!(fs.lookup(ROOT, b"old").unwrap().ino, new);
    fs.handles.remove(old);
    assert_eq!(fs.getattr(old).unwrap().ino, old);
    assert!(fs.node(old).unwrap().links().is_empty());
    refused(fs.mkdir(&BY, old, b"x", 0o755), libc::ENOENT);
}

#[test]
fn an_entry_that_did_not_fit_counts_no_lookup() {
    let volume = Volume::new();
    let fs = volume.mount();
    let a = file(&fs, ROOT, b"a", b"x");
    let handle = fs.opendir(ROOT).unwrap();
    let mut seen = 0;
    fs.readdirplus(ROOT, handle, 2, &mut |_, _| {
        seen += 1;
        false
    })
    .unwrap();
    assert_eq!((seen, fs.nodes.lookups(a)), (1, 1));
    fs.readdirplus(ROOT, handle, 2, &mut |_, _| true).unwrap();
    assert_eq!(fs.nodes.lookups(a), 2);
    // Dots count none.
    fs.readdirplus(ROOT, handle, 0, &mut |e, _| e.next < 2).unwrap();
    assert_eq!(fs.nodes.lookups(a), 2);
}

#[test]
fn a_listing_is_one_snapshot_until_it_is_rewound() {
    let volume = Volume::new();
    let fs = volume.mount();
    file(&fs, ROOT, b"a", b"");
    file(&fs, ROOT, b"b", b"");
    let handle = fs.opendir(ROOT).unwrap();
    let list = |offset: u64, take: usize| {
        let (mut names, mut next) = (Vec::new(), offset);
        fs.readdir(ROOT, handle, offset, &mut |e| {
            if names.len() == take {
                return false;
            }
            names.push(e.name.clone());
            next = e.next;
            true
        })
        .unwrap();
        (names, next)
    };
    let (first, next) = list(0, 3);
    assert_eq!(first[..2], [b".".to_vec(), b"..".to_vec()]);
    file(&fs, ROOT, b"c", b"");
    let (rest, end) = list(next, 10);
    assert_eq!(rest.len(), 1, "what was there when the listing began");
    assert!(list(end, 10).0.is_empty());
    assert_eq!(list(0, 10).0.len(), 5);
    fs.unlink(ROOT, b"a").unwrap();
    // Gone since: plain names still show it, attributes cannot.
    let mut plus = 0;
    fs.readdirplus(ROOT, handle, 2, &mut |_, _| {
        plus += 1;
        true
    })
    .unwrap();
    assert_eq!((list(2, 10).0.len(), plus), (3, 2));
    fs.releasedir(handle);
    refused(fs.readdir(ROOT, handle, 0, &mut |_| true), libc::EBADF);
}

#[test]
fn paths_are_found_again_when_handles_are_evicted() {
    let volume = Volume::new();
    let fs = volume.try_mount(4, false).unwrap();
    let mut dirs = vec![ROOT];
    for i in 0..20 {
        let parent = dirs[dirs.len() - 1];
        dirs.push(fs.mkdir(&BY, parent, format!("d{i}").as_bytes(), 0o755).unwrap().ino);
    }
    let deepest = dirs[dirs.len() - 1];
    let leaf = file(&fs, deepest, b"leaf", b"content");
    fs.commit().unwrap();
    let other = fs.mkdir(&BY, ROOT, b"other", 0o755).unwrap().ino;
    for dir in &dirs {
        fs.getattr(*dir).unwrap();
    }
    assert_eq!(content(&fs, leaf).unwrap(), b"content");
    // Moving the top moves everything, and a cached handle stays right.
    fs.rename((ROOT, b"d0"), (other, &long(b'm')), RenameMode::NoReplace).unwrap();
    for dir in &dirs {
        fs.getattr(*dir).unwrap();
    }
    assert_eq!(content(&fs, leaf).unwrap(), b"content");
    assert_eq!(fs.lookup(other, &long(b'm')).unwrap().ino, dirs[1]);
}

#[test]
fn a_rename_over_a_hard_link_of_itself_does_nothing() {
    let volume = Volume::new();
    let fs = volume.mount();
    let a = file(&fs, ROOT, &long(b'a'), b"x");
    fs.link(a, ROOT, &long(b'b')).unwrap();
    let before = volume.raw(&fs, ROOT);
    fs.rename((ROOT, &long(b'a')), (ROOT, &long(b'b')), RenameMode::Replace).unwrap();
    fs.rename((ROOT, &long(b'a')), (ROOT, &long(b'a')), RenameMode::Replace).unwrap();
    fs.rename((ROOT, &long(b'a')), (ROOT, &long(b'b')), RenameMode::Exchange).unwrap();
    refused(fs.rename((ROOT, &long(b'a')), (ROOT, &long(b'b')), RenameMode::NoReplace), libc::EEXIST);
    assert_eq!(volume.raw(&fs, ROOT), before);
    assert_eq!(names(&fs, ROOT), [long(b'a'), long(b'b')]);
}

#[test]
fn reserved_and_impossible_names() {
    let volume = Volume::new();
    let plain = FsConfig { names: NameCodec::Plain, ..volume.config(8) };
    let tree = volume.tree.rooted_at(volume.tree.root());
    let fs = Fs::new(tree, volume.overflow.rooted_at(volume.overflow.root()), plain).unwrap();
    refused(fs.lookup(ROOT, DIR_ID_NAME), libc::ENOENT);
    refused(fs.unlink(ROOT, DIR_ID_NAME), libc::ENOENT);
    refused(fs.create(&BY, ROOT, b".envelopefs.x", 0o644), libc::EPERM);
    refused(fs.mkdir(&BY, ROOT, b".envelopefs.x", 0o755), libc::EPERM);
    file(&fs, ROOT, b"a", b"");
    refused(fs.rename((ROOT, b"a"), (ROOT, DIR_ID_NAME), RenameMode::Replace), libc::EPERM);
    refused(fs.lookup(ROOT, &[b'x'; 256]), libc::ENAMETOOLONG);
    assert_eq!(names(&fs, ROOT), [b"a"]);
    // Where names are encrypted, nothing is reserved.
    let volume = Volume::new();
    let fs = volume.mount();
    file(&fs, ROOT, DIR_ID_NAME, b"mine");
    assert_eq!(names(&fs, ROOT), [DIR_ID_NAME]);
}

#[test]
fn nothing_changes_on_a_read_only_mount() {
    let volume = Volume::new();
    {
        let fs = volume.mount();
        file(&fs, ROOT, b"a", b"content");
        fs.mkdir(&BY, ROOT, b"d", 0o755).unwrap();
        fs.commit().unwrap();
    }
    let fs = volume.try_mount(8, true).unwrap();
    let before = volume.tree.operations();
    let a = fs.lookup(ROOT, b"a").unwrap().ino;
    let rofs = libc::EROFS;
    refused(fs.create(&BY, ROOT, b"b", 0o644), rofs);
    refused(fs.mknod(&BY, ROOT, b"b", Kind::Fifo, 0o644, 0), rofs);
    refused(fs.mkdir(&BY, ROOT, b"b", 0o755), rofs);
    refused(fs.symlink(&BY, ROOT, b"b", b"t"), rofs);
    refused(fs.link(a, ROOT, b"b"), rofs);
    refused(fs.unlink(ROOT, b"a"), rofs);
    refused(fs.rmdir(ROOT, b"d"), rofs);
    refused(fs.rename((ROOT, b"a"), (ROOT, b"b"), RenameMode::Replace), rofs);
    refused(fs.setattr(a, &SetAttr { mode: Some(0), ..SetAttr::default() }), rofs);
    refused(fs.setxattr(&BY, a, b"user.x", b"", 0), rofs);
    refused(fs.removexattr(a, b"user.x"), rofs);
    refused(fs.open(a, WRITE), rofs);
    refused(fs.open(a, EMPTY), rofs);
    refused(fs.write(a, 0, b"x"), rofs);
    refused(fs.fallocate(a, 0, 0, 1), rofs);
    refused(fs.copy_range((a, 0), (a, 100), 1), rofs);
    assert_eq!(content(&fs, a).unwrap(), b"content");
    fs.commit().unwrap();
    assert_eq!(volume.tree.operations(), before);
}
