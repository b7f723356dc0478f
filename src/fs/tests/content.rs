//! Content state, sizes, times, attributes, symlinks and the background commit.

use std::time::Duration;

use super::*;
use crate::file::Seek;
use crate::format::geometry::PLAIN;
use crate::store::Timestamp;
use crate::store::memory::Operation;

#[test]
fn a_size_stays_while_the_kernel_knows_the_inode() {
    let volume = Volume::new();
    {
        let fs = volume.mount();
        file(&fs, ROOT, b"a", &[1; 5000]);
        // Killed: the file stays growing.
    }
    let fs = volume.mount();
    let a = fs.lookup(ROOT, b"a").unwrap();
    assert_eq!(a.stat.size, 5000);
    fs.open(a.ino, WRITE).unwrap();
    fs.write(a.ino, 5000, b"more").unwrap();
    assert_eq!(fs.lookup(ROOT, b"a").unwrap().stat.size, 5004);
    fs.release(a.ino);
    assert_eq!(fs.getattr(a.ino).unwrap().stat.size, 5004);
    fs.commit().unwrap();
    assert_eq!(fs.getattr(a.ino).unwrap().stat.size, 5004);
    assert!(fs.node(a.ino).unwrap().content().is_none(), "a committed closed file holds no descriptor");
}

#[test]
fn one_descriptor_serves_readers_and_writers() {
    let volume = Volume::new();
    let fs = volume.mount();
    let a = file(&fs, ROOT, b"a", b"0123");
    fs.commit().unwrap();
    fs.open(a, READ).unwrap();
    let first = fs.node(a).unwrap().content().unwrap();
    assert!(!first.is_writable());
    fs.open(a, WRITE).unwrap();
    assert!(Arc::ptr_eq(&first, &fs.node(a).unwrap().content().unwrap()));
    assert!(first.is_writable());
    fs.write(a, 2, b"xx").unwrap();
    fs.release(a);
    assert_eq!(read_open(&fs, a).unwrap(), b"01xx");
    fs.release(a);
    // A write-back that comes without any open.
    fs.write(a, 4, b"late").unwrap();
    assert_eq!(content(&fs, a).unwrap(), b"01xxlate");
}

#[test]
fn emptying_a_file_asks_for_no_key() {
    let volume = Volume::new();
    {
        let fs = volume.mount();
        file(&fs, ROOT, b"a", b"secret");
        fs.commit().unwrap();
    }
    volume.cmk.refuses.store(true, Ordering::Relaxed);
    let calls = volume.cmk.calls.load(Ordering::Relaxed);
    let fs = volume.mount();
    let a = fs.lookup(ROOT, b"a").unwrap();
    assert_eq!(a.stat.size, 6);
    refused(fs.getxattr(a.ino, b"user.x"), libc::ENODATA);
    assert!(fs.listxattr(a.ino).unwrap().is_empty());
    assert_eq!(volume.cmk.calls.load(Ordering::Relaxed), calls);
    refused(fs.open(a.ino, READ), libc::EKEYREVOKED);
    let calls = volume.cmk.calls.load(Ordering::Relaxed);
    fs.open(a.ino, EMPTY).unwrap();
    fs.release(a.ino);
    assert_eq!(fs.getattr(a.ino).unwrap().stat.size, 0);
    fs.unlink(ROOT, b"a").unwrap();
    assert_eq!(volume.cmk.calls.load(Ordering::Relaxed), calls);
}

#[test]
fn times_win_over_the_commit() {
    let volume = Volume::new();
    let fs = volume.mount();
    let a = file(&fs, ROOT, b"a", b"x");
    let then = Timestamp { sec: 1_000_000_000, nsec: 7 };
    let set = SetAttr { mtime: Some(SetTime::At(then)), ..SetAttr::default() };
    assert_eq!(fs.setattr(a, &set).unwrap().stat.mtime, then);
    assert!(fs.needs_commit());
    fs.commit().unwrap();
    assert_eq!(fs.getattr(a).unwrap().stat.mtime, then);
    drop(fs);
    assert_eq!(volume.mount().lookup(ROOT, b"a").unwrap().stat.mtime, then);
}

#[test]
fn a_commit_never_puts_an_older_time_back() {
    let volume = Volume::new();
    let fs = volume.mount();
    let a = file(&fs, ROOT, b"a", b"x");
    for round in 0..1000 {
        fs.write(a, round, b"x").unwrap();
        let then = Timestamp { sec: 1 + round as i64, nsec: 0 };
        let start = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                fs.commit().unwrap();
            });
            start.wait();
            fs.setattr(a, &SetAttr { mtime: Some(SetTime::At(then)), ..SetAttr::default() }).unwrap();
        });
        assert_eq!(fs.getattr(a).unwrap().stat.mtime, then, "round {round}");
    }
}

#[test]
fn attributes_change_together() {
    let volume = Volume::new();
    let fs = volume.mount();
    let a = file(&fs, ROOT, b"a", &[7; 9000]);
    fs.commit().unwrap();
    let set = SetAttr {
        mode: Some(0o4711),
        uid: Some(5),
        gid: Some(6),
        size: Some(4100),
        atime: Some(SetTime::At(Timestamp { sec: 1, nsec: 0 })),
        mtime: Some(SetTime::At(Timestamp { sec: 2, nsec: 0 })),
        drop_set_id: false,
    };
    let st = fs.setattr(a, &set).unwrap().stat;
    assert_eq!((st.mode, st.uid, st.gid, st.size, st.atime.sec, st.mtime.sec), (0o4711, 5, 6, 4100, 1, 2));
    assert_eq!(fs.node(a).unwrap().owner(), Some((5, 6)));
    let dir = fs.mkdir(&BY, ROOT, b"d", 0o755).unwrap().ino;
    refused(fs.setattr(dir, &SetAttr { size: Some(0), ..SetAttr::default() }), libc::EISDIR);
    let fifo = fs.mknod(&BY, ROOT, b"f", Kind::Fifo, 0o600, 0).unwrap().ino;
    refused(fs.setattr(fifo, &SetAttr { size: Some(0), ..SetAttr::default() }), libc::EINVAL);
    refused(fs.open(fifo, READ), libc::EINVAL);
    refused(fs.open(dir, READ), libc::EISDIR);
}

#[test]
fn mode_and_umask_reach_the_store() {
    let volume = Volume::new();
    let fs = volume.mount();
    let a = fs.create(&Caller { umask: 0o077, ..BY }, ROOT, b"a", libc::S_IFREG | 0o666).unwrap().stat;
    assert_eq!((a.mode, a.uid, a.gid), (0o600, 1000, 1000));
    let d = fs.mkdir(&BY, ROOT, b"d", libc::S_IFDIR | 0o1777).unwrap().stat;
    assert_eq!((d.mode, d.uid), (0o1755, 1000));
    let n = fs.mknod(&BY, ROOT, b"n", Kind::File, 0o640, 0).unwrap().stat;
    assert_eq!((n.kind, n.mode, n.size), (Kind::File, 0o640, 0));
    refused(fs.mknod(&BY, ROOT, b"x", Kind::Directory, 0o755, 0), libc::EINVAL);
}

#[test]
fn copies_stop_at_the_end_and_never_overlap() {
    let volume = Volume::new();
    let fs = volume.mount();
    let data: Vec<u8> = (0..3_000_000u32).map(|i| (i / 7) as u8).collect();
    let a = file(&fs, ROOT, b"a", &data);
    let b = file(&fs, ROOT, b"b", b"");
    assert_eq!(fs.copy_range((a, 10), (b, 0), u64::from(u32::MAX)).unwrap(), 2_999_990);
    assert_eq!(fs.getattr(b).unwrap().stat.size, 2_999_990);
    let mut tail = [0; 10];
    fs.read(b, 2_999_980, &mut tail).unwrap();
    assert_eq!(tail, data[2_999_990..]);
    assert_eq!(fs.copy_range((a, 3_000_000), (b, 0), 10).unwrap(), 0);
    refused(fs.copy_range((a, 0), (a, 99), 100), libc::EINVAL);
    refused(fs.copy_range((a, 99), (a, 0), 100), libc::EINVAL);
    assert_eq!(fs.copy_range((a, 0), (a, 100), 100).unwrap(), 100);
    refused(fs.copy_range((a, u64::MAX), (b, 0), 10), libc::EFBIG);
}

#[test]
fn seeks_and_ranges() {
    let volume = Volume::new();
    let fs = volume.mount();
    let a = file(&fs, ROOT, b"a", b"x");
    assert_eq!(fs.seek(a, Seek::Data, 0).unwrap(), 0);
    refused(fs.seek(a, Seek::Hole, 1), libc::ENXIO);
    refused(fs.fallocate(a, 0, 0, 0), libc::EINVAL);
    refused(fs.fallocate(a, libc::FALLOC_FL_COLLAPSE_RANGE, 0, 1), libc::EOPNOTSUPP);
    refused(fs.write(a, u64::MAX - 1, b"xx"), libc::EFBIG);
    fs.fallocate(a, 0, 0, 10_000).unwrap();
    assert_eq!(fs.getattr(a).unwrap().stat.size, 10_000);
}

#[test]
fn space_is_told_in_plaintext() {
    let volume = Volume::new();
    let fs = volume.mount();
    let (raw, shown) = (volume.tree.statfs().unwrap(), fs.statfs().unwrap());
    assert_eq!(u128::from(shown.blocks), u128::from(raw.blocks) * PLAIN as u128 / 4096);
    assert!(shown.blocks_available <= raw.blocks_available);
    assert_eq!(shown.name_max, 255);
}

#[test]
fn symlinks_of_every_length() {
    let volume = Volume::new();
    let fs = volume.mount();
    for len in [1, 2, 44, 100, 735, 736, 1023, 1024, 4095] {
        let name = format!("l{len}");
        let target = vec![b'/'; len];
        let made = fs.symlink(&BY, ROOT, name.as_bytes(), &target).unwrap();
        assert_eq!(made.stat.size, len as u64);
        assert_eq!(fs.readlink(made.ino).unwrap(), target);
        fs.forget(made.ino, 1);
        assert_eq!(fs.lookup(ROOT, name.as_bytes()).unwrap().stat.size, len as u64);
    }
    assert_eq!(volume.overflow.list(volume.overflow.root()).unwrap().len(), 4);
    refused(fs.symlink(&BY, ROOT, b"x", &[b'a'; 4096]), libc::ENAMETOOLONG);
    refused(fs.symlink(&BY, ROOT, b"x", b""), libc::ENOENT);
    refused(fs.symlink(&BY, ROOT, b"l4095", &[b'a'; 4095]), libc::EEXIST);
    assert_eq!(volume.overflow.list(volume.overflow.root()).unwrap().len(), 4, "a failed link leaves no object");
    let file = file(&fs, ROOT, b"f", b"");
    refused(fs.readlink(file), libc::EINVAL);
}

#[test]
fn a_removed_long_symlink_keeps_its_target_for_its_holders() {
    let volume = Volume::new();
    let fs = volume.mount();
    let target = vec![b't'; 3000];
    let l = fs.symlink(&BY, ROOT, b"l", &target).unwrap().ino;
    fs.link(l, ROOT, b"m").unwrap();
    fs.unlink(ROOT, b"l").unwrap();
    assert_eq!(volume.overflow.list(volume.overflow.root()).unwrap().len(), 1, "another name needs it");
    file(&fs, ROOT, b"f", b"");
    fs.rename((ROOT, b"f"), (ROOT, b"m"), RenameMode::Replace).unwrap();
    assert!(volume.overflow.list(volume.overflow.root()).unwrap().is_empty());
    assert_eq!(fs.readlink(l).unwrap(), target);
}

/// An attribute whose file lost its header in a crash could never be opened again.
#[test]
fn a_sealed_attribute_stands_only_where_the_header_is_durable() {
    let volume = Volume::new();
    let fs = volume.mount();
    for content in [&b""[..], b"written, not synced"] {
        let a = file(&fs, ROOT, if content.is_empty() { b"a" } else { b"b" }, b"");
        volume.tree.start_recording();
        if !content.is_empty() {
            fs.write(a, 0, content).unwrap();
        }
        fs.setxattr(&BY, a, b"user.n", b"v", 0).unwrap();
        fs.setxattr(&BY, a, b"user.m", b"v", 0).unwrap();
        let operations = volume.tree.take_recording();
        let at = |wanted: &dyn Fn(&Operation) -> bool| operations.iter().position(wanted).unwrap();
        let header = at(&|o| matches!(o, Operation::Write { offset: 0, .. }));
        let sync = at(&|o| matches!(o, Operation::SyncData { .. }));
        let attribute = at(&|o| matches!(o, Operation::SetXattr { .. }));
        assert!(header < sync && sync < attribute, "{operations:?}");
        // One flush a file, not one an attribute.
        assert_eq!(operations.iter().filter(|o| o.is_sync()).count(), 1);
    }
}

#[test]
fn attributes_of_every_namespace() {
    let volume = Volume::new();
    let fs = volume.mount();
    let a = file(&fs, ROOT, b"a", b"");
    let dir = fs.mkdir(&BY, ROOT, b"d", 0o755).unwrap().ino;
    let link = fs.symlink(&BY, ROOT, b"l", b"t").unwrap().ino;
    for (ino, name) in [(a, &b"user.n"[..]), (dir, b"user.n"), (link, b"trusted.n")] {
        refused(fs.getxattr(ino, name), libc::ENODATA);
        refused(fs.removexattr(ino, name), libc::ENODATA);
        refused(fs.setxattr(&BY, ino, name, b"v", libc::XATTR_REPLACE), libc::ENODATA);
        fs.setxattr(&BY, ino, name, b"v", libc::XATTR_CREATE).unwrap();
        refused(fs.setxattr(&BY, ino, name, b"v", libc::XATTR_CREATE), libc::EEXIST);
        fs.setxattr(&BY, ino, name, b"w", libc::XATTR_REPLACE).unwrap();
        assert_eq!(fs.getxattr(ino, name).unwrap(), b"w");
        assert_eq!(fs.listxattr(ino).unwrap(), [name]);
    }
    fs.setxattr(&BY, a, b"security.x", b"clear", 0).unwrap();
    refused(fs.setxattr(&BY, a, b"system.other", b"", 0), libc::EOPNOTSUPP);
    refused(fs.getxattr(a, b"other.x"), libc::EOPNOTSUPP);
    // Neither name nor value is readable below; what was put there by others is not shown.
    let node = fs.node(a).unwrap();
    fs.with_place(&node, |place| fs.store.set_xattr(place, b"user.planted", b"x", 0)).unwrap();
    let raw = fs.with_place(&node, |place| fs.store.list_xattrs(place)).unwrap();
    assert!(!raw.contains(&b"user.n".to_vec()));
    assert!(raw.contains(&b"security.x".to_vec()));
    let mut shown = fs.listxattr(a).unwrap();
    shown.sort();
    assert_eq!(shown, [&b"security.x"[..], b"user.n"]);
    refused(fs.getxattr(a, b"user.planted"), libc::ENODATA);
    // They survive truncation and a new mount.
    fs.open(a, EMPTY).unwrap();
    fs.release(a);
    fs.commit().unwrap();
    drop(fs);
    let fs = volume.mount();
    let found = fs.lookup(ROOT, b"a").unwrap();
    assert_eq!((found.stat.size, fs.getxattr(found.ino, b"user.n").unwrap()), (0, b"w".to_vec()));
    let dir = fs.lookup(ROOT, b"d").unwrap().ino;
    assert_eq!(fs.getxattr(dir, b"user.n").unwrap(), b"w");
}

#[test]
fn an_acl_by_a_stranger_to_the_group_drops_setgid() {
    let volume = Volume::new();
    let fs = volume.mount();
    let a = file(&fs, ROOT, b"a", b"");
    let reset = SetAttr { mode: Some(0o2755), gid: Some(4242), ..SetAttr::default() };
    let mode_after = |by: &Caller, name: &[u8]| {
        fs.setattr(a, &reset).unwrap();
        fs.setxattr(by, a, name, b"\x02\0\0\0", 0).unwrap();
        fs.getattr(a).unwrap().stat.mode
    };
    let acl = b"system.posix_acl_access";
    assert_eq!(mode_after(&BY, acl), 0o755);
    assert_eq!(mode_after(&Caller { gid: 4242, ..BY }, acl), 0o2755);
    assert_eq!(mode_after(&Caller { uid: 0, ..BY }, acl), 0o2755);
    assert_eq!(mode_after(&BY, b"system.posix_acl_default"), 0o2755);
    // Groups of the calling process count.
    let groups = rustix::process::getgroups().unwrap();
    if let Some(group) = groups.first() {
        let group = group.as_raw();
        fs.setattr(a, &SetAttr { mode: Some(0o2755), gid: Some(group), ..SetAttr::default() }).unwrap();
        let by = Caller { gid: group ^ 1, pid: std::process::id(), ..BY };
        fs.setxattr(&by, a, acl, b"\x02\0\0\0", 0).unwrap();
        assert_eq!(fs.getattr(a).unwrap().stat.mode, 0o2755);
    }
}

#[test]
fn many_closed_files_call_for_a_commit_and_then_commit_themselves() {
    let volume = Volume::new();
    // A quarter goes to directories: 12 files may linger.
    let fs = volume.try_mount(16, false).unwrap();
    assert!(!fs.wait_commit_wanted(Duration::ZERO));
    for i in 0..7 {
        file(&fs, ROOT, format!("f{i}").as_bytes(), b"x");
    }
    assert!(fs.wait_commit_wanted(Duration::ZERO));
    fs.commit().unwrap();
    assert!(!fs.wait_commit_wanted(Duration::ZERO));
    let lingering = || {
        (0..100)
            .filter(|i| {
                let ino = fs.lookup(ROOT, format!("g{i}").as_bytes()).map(|a| a.ino);
                ino.is_ok_and(|ino| fs.node(ino).unwrap().content().is_some())
            })
            .count()
    };
    for i in 0..100 {
        file(&fs, ROOT, format!("g{i}").as_bytes(), b"x");
        assert!(lingering() <= 12);
    }
    fs.commit().unwrap();
    assert_eq!(lingering(), 0);
    // Files without content never linger.
    for i in 0..100 {
        file(&fs, ROOT, format!("e{i}").as_bytes(), b"");
    }
    assert!(!fs.needs_commit());
}

#[test]
fn the_committer_can_be_woken() {
    let volume = Volume::new();
    let fs = volume.mount();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| fs.wait_commit_wanted(Duration::from_secs(600)));
        fs.want_commit();
        assert!(waiter.join().unwrap());
    });
}

#[test]
fn inodes_work_from_many_threads() {
    let volume = Volume::new();
    let fs = volume.try_mount(8, false).unwrap();
    let dirs: Vec<Ino> = (0..3).map(|i| fs.mkdir(&BY, ROOT, &[b'0' + i], 0o755).unwrap().ino).collect();
    std::thread::scope(|scope| {
        for t in 1..5u8 {
            let (fs, dirs) = (&fs, &dirs);
            scope.spawn(move || {
                for i in 0..200usize {
                    let (from, to) = (dirs[i % 3], dirs[(i + 1 + usize::from(t) % 2) % 3]);
                    let name = [b'n', t];
                    let ino = file(fs, from, &name, &[t; 100]);
                    fs.rename((from, &name), (to, &long(t + b'a')), RenameMode::Replace).unwrap();
                    assert_eq!(content(fs, ino).unwrap(), [t; 100]);
                    fs.unlink(to, &long(t + b'a')).unwrap();
                    fs.forget(ino, 1);
                    names(fs, to);
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..50 {
                fs.commit().unwrap();
            }
        });
    });
    fs.commit().unwrap();
    for dir in &dirs {
        assert_eq!(volume.raw(&fs, *dir), [DIR_ID_NAME.to_vec()]);
        fs.forget(*dir, 1);
    }
    assert_eq!(fs.nodes.len(), 1);
}
