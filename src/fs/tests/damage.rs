//! A backing tree that somebody else has changed.

use super::*;
use crate::format::dir_id::DirRecord;
use crate::store::BackingFile;

const ROOT_USER: Creator = Creator { uid: 0, gid: 0, umask: 0 };

fn raw_name(fs: &MemoryFs, parent: Ino, name: &[u8]) -> Box<[u8]> {
    let dir = fs.dir(parent).unwrap();
    fs.encode_new(&dir, name).unwrap().name
}

fn handle(fs: &MemoryFs, ino: Ino) -> crate::store::memory::MemoryHandle {
    (*fs.handle(&fs.node(ino).unwrap()).unwrap()).clone()
}

/// A committed file and its backing file, on a fresh mount.
fn tampered(change: impl FnOnce(&dyn Fn() -> crate::store::memory::MemoryFile)) -> (Volume, MemoryFs) {
    let volume = Volume::new();
    let fs = volume.mount();
    file(&fs, ROOT, b"a", &[5; 9000]);
    fs.commit().unwrap();
    let raw = raw_name(&fs, ROOT, b"a");
    drop(fs);
    let place = Place::Entry { dir: volume.tree.root(), name: &raw };
    change(&|| volume.tree.open_file(place, Access::ReadWrite).unwrap());
    let fs = volume.mount();
    (volume, fs)
}

#[test]
fn a_directory_without_its_id_is_refused_and_never_given_a_new_one() {
    let volume = Volume::new();
    let fs = volume.mount();
    let dir = fs.mkdir(&BY, ROOT, b"d", 0o755).unwrap().ino;
    file(&fs, dir, b"inside", b"");
    volume.tree.unlink(&handle(&fs, dir), DIR_ID_NAME).unwrap();
    drop(fs);
    let fs = volume.mount();
    let dir = fs.lookup(ROOT, b"d").unwrap().ino;
    let eio = libc::EIO;
    refused(fs.lookup(dir, b"inside"), eio);
    refused(fs.create(&BY, dir, b"new", 0o644), eio);
    refused(fs.mkdir(&BY, dir, b"new", 0o755), eio);
    refused(fs.unlink(dir, b"inside"), eio);
    let listing = fs.opendir(dir).unwrap();
    refused(fs.readdir(dir, listing, 0, &mut |_| true), eio);
    // It holds something that cannot be read: it stays.
    refused(fs.rmdir(ROOT, b"d"), libc::ENOTEMPTY);
    assert_eq!(volume.raw(&fs, dir).len(), 1);
    // The directory itself can be looked at and moved.
    fs.getattr(dir).unwrap();
    fs.rename((ROOT, b"d"), (ROOT, b"e"), RenameMode::NoReplace).unwrap();
    let inside = volume.raw(&fs, dir).remove(0);
    volume.tree.unlink(&handle(&fs, dir), &inside).unwrap();
    fs.rmdir(ROOT, b"e").unwrap();
}

#[test]
fn a_root_without_its_id_does_not_mount() {
    let volume = Volume::new();
    volume.tree.unlink(volume.tree.root(), DIR_ID_NAME).unwrap();
    refused(volume.try_mount(8, false), libc::EIO);
    refused(Fs::new(MemoryStore::new(), MemoryStore::new(), volume.config(8)), libc::EIO);
}

#[test]
fn ids_of_another_volume_or_forged_ones_are_refused() {
    let volume = Volume::new();
    let fs = volume.mount();
    let dir = fs.mkdir(&BY, ROOT, b"d", 0o755).unwrap().ino;
    let inner = handle(&fs, dir);
    volume.tree.unlink(&inner, DIR_ID_NAME).unwrap();
    let other = VolumeKeys::derive(&[8; 16], &Secret32::from_bytes([4; 32]));
    let forged = DirRecord { id: [1; 16], parent: [2; 16], keys: None }.encode(&other.dir_id).unwrap();
    volume.tree.symlink(&inner, DIR_ID_NAME, &forged, ROOT_USER).unwrap();
    drop(fs);
    let fs = volume.mount();
    let dir = fs.lookup(ROOT, b"d").unwrap().ino;
    refused(fs.create(&BY, dir, b"x", 0o644), libc::EIO);
    // A file in the symlink's place.
    volume.tree.unlink(&inner, DIR_ID_NAME).unwrap();
    volume.tree.create_file(&inner, DIR_ID_NAME, 0o600, ROOT_USER).unwrap();
    refused(fs.create(&BY, dir, b"x", 0o644), libc::EIO);
    // Nothing else inside: it may go.
    fs.rmdir(ROOT, b"d").unwrap();
}

#[test]
fn entries_that_belong_elsewhere_are_hidden_and_never_deleted() {
    let volume = Volume::new();
    let fs = volume.mount();
    let (d, e) = (fs.mkdir(&BY, ROOT, b"d", 0o755).unwrap().ino, fs.mkdir(&BY, ROOT, b"e", 0o755).unwrap().ino);
    file(&fs, d, b"a", b"");
    file(&fs, d, &long(b'l'), b"");
    fs.commit().unwrap();
    let (from, to) = (handle(&fs, d), handle(&fs, e));
    for name in volume.raw(&fs, d).into_iter().filter(|n| n != DIR_ID_NAME) {
        volume.tree.rename((&from, &name), (&to, &name), RenameMode::NoReplace).unwrap();
    }
    assert!(names(&fs, e).is_empty());
    refused(fs.lookup(e, b"a"), libc::ENOENT);
    refused(fs.rmdir(ROOT, b"e"), libc::ENOTEMPTY);
    refused(fs.rename((ROOT, b"d"), (ROOT, b"e"), RenameMode::Replace), libc::ENOTEMPTY);
    assert_eq!(volume.raw(&fs, e).len(), 4);
    fs.rmdir(ROOT, b"d").unwrap();
}

#[test]
fn a_long_name_without_its_companion_is_hidden_but_found() {
    let volume = Volume::new();
    let fs = volume.mount();
    file(&fs, ROOT, &long(b'l'), b"x");
    let companion = volume.raw(&fs, ROOT).into_iter().find(|n| n.ends_with(b".name")).unwrap();
    volume.tree.unlink(volume.tree.root(), &companion).unwrap();
    assert!(names(&fs, ROOT).is_empty());
    let ino = fs.lookup(ROOT, &long(b'l')).unwrap().ino;
    assert_eq!(content(&fs, ino).unwrap(), b"x");
    // A companion that says another name, and one that is a file.
    volume.tree.symlink(volume.tree.root(), &companion, b"AAAA", ROOT_USER).unwrap();
    assert!(names(&fs, ROOT).is_empty());
    fs.rename((ROOT, &long(b'l')), (ROOT, b"short"), RenameMode::NoReplace).unwrap();
    volume.tree.symlink(volume.tree.root(), &companion, b"AAAA", ROOT_USER).unwrap();
    fs.rename((ROOT, b"short"), (ROOT, &long(b'l')), RenameMode::NoReplace).unwrap();
    assert_eq!(names(&fs, ROOT), [long(b'l')], "a wrong companion is replaced with the entry");
}

#[test]
fn leftovers_never_keep_a_directory() {
    let volume = Volume::new();
    let fs = volume.mount();
    let dir = fs.mkdir(&BY, ROOT, b"d", 0o755).unwrap().ino;
    let inner = handle(&fs, dir);
    file(&fs, dir, &long(b'l'), b"");
    let companion = volume.raw(&fs, dir).into_iter().find(|n| n.ends_with(b".name")).unwrap();
    let target = volume.tree.readlink(Place::Entry { dir: &inner, name: &companion }).unwrap();
    fs.unlink(dir, &long(b'l')).unwrap();
    volume.tree.symlink(&inner, &companion, &target, ROOT_USER).unwrap();
    for i in 0..2 {
        let temp = crate::format::names::temp_name([i; 16]);
        volume.tree.mkdir(&inner, &temp, 0o700, ROOT_USER).unwrap();
        if i == 0 {
            let nested = volume.tree.pin(&inner, &temp).unwrap();
            volume.tree.symlink(&nested, DIR_ID_NAME, b"x", ROOT_USER).unwrap();
        }
    }
    assert!(names(&fs, dir).is_empty());
    fs.rmdir(ROOT, b"d").unwrap();
    assert_eq!(volume.raw(&fs, ROOT), [DIR_ID_NAME.to_vec()]);
}

#[test]
fn other_objects_in_a_files_place_are_never_followed() {
    let volume = Volume::new();
    let fs = volume.mount();
    let a = file(&fs, ROOT, b"a", b"x");
    let b = file(&fs, ROOT, b"b", b"y");
    fs.commit().unwrap();
    let (raw, other) = (raw_name(&fs, ROOT, b"a"), raw_name(&fs, ROOT, b"b"));
    let tree = &volume.tree;
    tree.unlink(tree.root(), &raw).unwrap();
    tree.symlink(tree.root(), &raw, b"/etc/passwd", ROOT_USER).unwrap();
    refused(fs.open(a, READ), libc::EIO);
    refused(fs.getattr(a), libc::EIO);
    tree.unlink(tree.root(), &raw).unwrap();
    tree.mknod(tree.root(), &raw, Kind::Fifo, 0o600, 0, ROOT_USER).unwrap();
    refused(fs.open(a, READ), libc::EIO);
    // Another authentic file: another inode.
    tree.unlink(tree.root(), &raw).unwrap();
    tree.link(Place::Entry { dir: tree.root(), name: &other }, tree.root(), &raw).unwrap();
    refused(fs.open(a, READ), libc::EIO);
    refused(fs.getattr(a), libc::EIO);
    assert_eq!(content(&fs, b).unwrap(), b"y");
    // Looked up anew it is what it is.
    assert_eq!(fs.lookup(ROOT, b"a").unwrap().ino, b);
    fs.unlink(ROOT, b"a").unwrap();
}

#[test]
fn a_planted_symlink_has_no_target() {
    let volume = Volume::new();
    let fs = volume.mount();
    let raw = raw_name(&fs, ROOT, b"l");
    volume.tree.symlink(volume.tree.root(), &raw, b"/etc/passwd", ROOT_USER).unwrap();
    let l = fs.lookup(ROOT, b"l").unwrap().ino;
    refused(fs.readlink(l), libc::EIO);
    fs.unlink(ROOT, b"l").unwrap();
}

#[test]
fn a_lost_or_changed_overflow_object_is_reported() {
    let volume = Volume::new();
    let fs = volume.mount();
    let l = fs.symlink(&BY, ROOT, b"l", &[b't'; 2000]).unwrap().ino;
    let name = volume.overflow.list(volume.overflow.root()).unwrap().remove(0).name;
    let place = Place::Entry { dir: volume.overflow.root(), name: &name };
    volume.overflow.open_file(place, Access::ReadWrite).unwrap().write_at(b"A", 60).unwrap();
    refused(fs.readlink(l), libc::EIO);
    volume.overflow.unlink(volume.overflow.root(), &name).unwrap();
    refused(fs.readlink(l), libc::EIO);
    fs.forget(l, 1);
    let l = fs.lookup(ROOT, b"l").unwrap();
    assert_eq!(l.stat.size, 0);
    fs.unlink(ROOT, b"l").unwrap();
}

#[test]
fn a_damaged_header_refuses_open_but_not_stat_unlink_or_emptying() {
    let (_volume, fs) = tampered(|open| open().write_at(&[0xff; 64], 100).unwrap());
    let a = fs.lookup(ROOT, b"a").unwrap();
    assert_eq!(a.stat.size, 9000);
    refused(fs.open(a.ino, READ), libc::EIO);
    refused(fs.open(a.ino, WRITE), libc::EIO);
    assert!(fs.node(a.ino).unwrap().content().is_none(), "a failed open keeps nothing");
    fs.open(a.ino, EMPTY).unwrap();
    fs.write(a.ino, 0, b"new").unwrap();
    fs.release(a.ino);
    assert_eq!(content(&fs, a.ino).unwrap(), b"new");
    fs.unlink(ROOT, b"a").unwrap();
}

#[test]
fn a_bad_block_costs_that_block_only() {
    let (_volume, fs) = tampered(|open| open().write_at(&[0xff; 1], 2 * 4096 + 4096 + 100).unwrap());
    let a = fs.lookup(ROOT, b"a").unwrap().ino;
    fs.open(a, READ).unwrap();
    let mut buf = [0; 100];
    assert_eq!(fs.read(a, 0, &mut buf).unwrap(), 100);
    refused(fs.read(a, 4048, &mut buf), libc::EIO);
    assert_eq!(fs.read(a, 2 * 4048, &mut buf).unwrap(), 100);
    assert_eq!(buf, [5; 100]);
}

#[test]
fn an_impossible_length_clamps_in_stat_and_refuses_open() {
    let (_volume, fs) = tampered(|open| {
        let file = open();
        let blocks = (file.stat().unwrap().size - 2 * 4096) / 4096;
        file.set_len(2 * 4096 + blocks * 4096 + 4090).unwrap();
    });
    let a = fs.lookup(ROOT, b"a").unwrap();
    assert_eq!(a.stat.size % 4048, 0);
    refused(fs.open(a.ino, READ), libc::EIO);
    fs.setattr(a.ino, &SetAttr { size: Some(0), ..SetAttr::default() }).unwrap();
    assert!(content(&fs, a.ino).unwrap().is_empty());
}

#[test]
fn a_changed_attribute_is_left_out_and_refused() {
    let volume = Volume::new();
    let fs = volume.mount();
    let a = file(&fs, ROOT, b"a", b"x");
    for name in [&b"user.good"[..], b"user.bad"] {
        fs.setxattr(&BY, a, name, b"value", 0).unwrap();
    }
    let node = fs.node(a).unwrap();
    let codec = fs.content_of(&node, false).unwrap().content.xattrs(false).unwrap().unwrap();
    let bad = codec.name(b"user.bad");
    fs.with_place(&node, |place| fs.store.set_xattr(place, &bad, &[0; 50], 0)).unwrap();
    refused(fs.getxattr(a, b"user.bad"), libc::EIO);
    assert_eq!(fs.listxattr(a).unwrap(), [b"user.good"]);
    fs.removexattr(a, b"user.bad").unwrap();
    assert_eq!(fs.getxattr(a, b"user.good").unwrap(), b"value");
}
