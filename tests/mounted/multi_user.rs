//! A mount that several users share: owners, permissions, umask, set-id bits, sticky and set-gid directories.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown, symlink};
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags, mkdir, mkfifoat};

use super::metadata::{chmod, mode};
use super::xattr_acl;
use crate::common::*;
use crate::needs;

/// A mounted volume with a directory that everybody may write to.
fn shared() -> (Volume, Mount, PathBuf) {
    let volume = Volume::new();
    let mount = volume.mount();
    // The scratch directory lets everybody through; so must the CIPHERDIR where the baseline works in it.
    if baseline() {
        chmod(&volume.cipher, 0o755);
    }
    chmod(&mount.path, 0o755);
    let directory = mount.join("shared");
    fs::create_dir(&directory).unwrap();
    chmod(&directory, 0o777);
    (volume, mount, directory)
}
fn owner(path: &std::path::Path) -> (u32, u32) {
    let metadata = fs::symlink_metadata(path).unwrap();
    (metadata.uid(), metadata.gid())
}

#[test]
fn objects_belong_to_their_creator() {
    needs!(have_fuse, have_root);
    let (volume, mount, shared) = shared();
    for (name, user) in [("alice", ALICE), ("bob", BOB.umask(0o077))] {
        user.run(|| {
            fs::create_dir(shared.join(name)).unwrap();
            let at = |kind: &str| shared.join(name).join(kind);
            fs::write(at("file"), name).unwrap();
            symlink(name, at("link")).unwrap();
            symlink("t".repeat(3000), at("long link")).unwrap();
            mkfifoat(CWD, at("fifo"), Mode::from_raw_mode(0o666)).unwrap();
            drop(std::os::unix::net::UnixListener::bind(at("s")).ok());
            fs::create_dir(at(&"d".repeat(255))).unwrap();
            rustix::fs::setxattr(at("file"), "user.by", name.as_bytes(), rustix::fs::XattrFlags::empty()).unwrap();
        });
    }
    mount.unmount();
    let _mount = volume.mount();
    for (name, user, file, directory) in [("alice", ALICE, 0o644, 0o755), ("bob", BOB, 0o600, 0o700)] {
        for path in walk(&shared.join(name)).into_iter().chain([shared.join(name)]) {
            assert_eq!(owner(&path), (user.uid, user.gid), "{}", path.display());
        }
        assert_eq!(mode(&shared.join(name).join("file")), file);
        assert_eq!(mode(&shared.join(name)), directory);
        assert_eq!(xattr_acl::get(&shared.join(name).join("file"), "user.by").unwrap(), name.as_bytes());
    }
}

#[test]
fn permissions_are_enforced() {
    needs!(have_fuse, have_root);
    let (_volume, mount, shared) = shared();
    let secret = shared.join("secret");
    ALICE.run(|| {
        fs::write(&secret, b"alice only").unwrap();
        chmod(&secret, 0o600);
        fs::create_dir(shared.join("closed")).unwrap();
        fs::write(shared.join("closed/inside"), b"").unwrap();
        chmod(&shared.join("closed"), 0o700);
    });
    BOB.run(|| {
        assert_errno(File::open(&secret), libc::EACCES);
        assert_errno(OpenOptions::new().write(true).open(&secret), libc::EACCES);
        assert_errno(fs::metadata(shared.join("closed/inside")), libc::EACCES);
        assert_errno(fs::read_dir(shared.join("closed")), libc::EACCES);
        assert_errno(fs::set_permissions(&secret, fs::Permissions::from_mode(0o666)), libc::EPERM);
        assert_errno(chown(&secret, Some(BOB.uid), None), libc::EPERM);
        assert_errno(fs::write(mount.join("in the root"), b""), libc::EACCES);
        assert_errno(rustix::fs::access(&secret, rustix::fs::Access::READ_OK), libc::EACCES);
        assert_errno(File::options().write(true).open(&secret).and_then(|f| f.set_len(0)), libc::EACCES);
        assert_errno(rustix::fs::utimensat(CWD, &secret, &times(1), rustix::fs::AtFlags::empty()), libc::EPERM);
        // The directory is everybody's: names in it may be taken away even from files that may not be read.
        fs::rename(&secret, shared.join("renamed")).unwrap();
        fs::remove_file(shared.join("renamed")).unwrap();
    });
    // Root passes everywhere.
    assert_file(&shared.join("closed/inside"), b"");
}
fn times(seconds: i64) -> rustix::fs::Timestamps {
    let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: 0 };
    rustix::fs::Timestamps { last_access: time, last_modification: time }
}

#[test]
fn owners_of_restrictive_modes() {
    needs!(have_fuse, have_root);
    let (volume, mount, shared) = shared();
    ALICE.run(|| {
        // The mode holds for later opens, not for the handle that made the file.
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::EXCL;
        for raw in [0o400, 0o200, 0o000] {
            let path = shared.join(format!("{raw:o}"));
            let file = File::from(rustix::fs::open(&path, flags, Mode::from_raw_mode(raw)).unwrap());
            file.write_all_at(b"content", 0).unwrap();
            file.sync_all().unwrap();
            let mut buffer = [0; 7];
            file.read_exact_at(&mut buffer, 0).unwrap();
        }
        assert_errno(OpenOptions::new().write(true).open(shared.join("400")), libc::EACCES);
        assert_errno(File::open(shared.join("200")), libc::EACCES);
        // A write-only file can be written in the middle of a block.
        OpenOptions::new().write(true).open(shared.join("200")).unwrap().write_all_at(b"XX", 3).unwrap();
        assert_errno(File::open(shared.join("0")), libc::EACCES);
        // A directory that its owner may not write to can still be removed, as on ext4.
        for raw in [0o555, 0o000] {
            let path = shared.join(format!("d{raw:o}"));
            mkdir(&path, Mode::from_raw_mode(raw)).unwrap();
            assert_errno(File::create(path.join("x")), libc::EACCES);
            assert_eq!(mode(&path), raw);
            fs::rename(&path, shared.join("moved")).unwrap();
            fs::remove_dir(shared.join("moved")).unwrap();
        }
    });
    mount.unmount();
    let _mount = volume.mount();
    assert_file(&shared.join("400"), b"content");
    assert_file(&shared.join("200"), b"conXXnt");
    assert_file(&shared.join("0"), b"content");
    assert_eq!((mode(&shared.join("400")), mode(&shared.join("200")), mode(&shared.join("0"))), (0o400, 0o200, 0));
}

#[test]
fn supplementary_groups_count() {
    needs!(have_fuse, have_root);
    let (_volume, _mount, shared) = shared();
    fs::write(shared.join("file"), b"for the group").unwrap();
    chown(shared.join("file"), Some(0), Some(60_001)).unwrap();
    chmod(&shared.join("file"), 0o640);
    assert_errno(ALICE.run(|| File::open(shared.join("file"))), libc::EACCES);
    ALICE.groups(&[60_001]).run(|| {
        assert_file(&shared.join("file"), b"for the group");
        // One may give a file of one's own to a group one is in, and to no other.
        fs::write(shared.join("mine"), b"").unwrap();
        chown(shared.join("mine"), None, Some(60_001)).unwrap();
        assert_errno(chown(shared.join("mine"), None, Some(60_002)), libc::EPERM);
    });
    assert_eq!(owner(&shared.join("mine")), (ALICE.uid, 60_001));
}

#[test]
fn setgid_directories_hand_their_group_down() {
    needs!(have_fuse, have_root);
    let (volume, mount, shared) = shared();
    let directory = shared.join("project");
    fs::create_dir(&directory).unwrap();
    chown(&directory, Some(0), Some(60_001)).unwrap();
    chmod(&directory, 0o2777);
    ALICE.run(|| {
        fs::write(directory.join("file"), b"").unwrap();
        fs::create_dir(directory.join("sub")).unwrap();
        fs::write(directory.join("sub/file"), b"").unwrap();
        symlink("t", directory.join("link")).unwrap();
        fs::create_dir(directory.join("d".repeat(255))).unwrap();
        // A user outside the group cannot make a set-gid program for it.
        let flags = OFlags::CREATE | OFlags::RDWR;
        drop(rustix::fs::open(directory.join("program"), flags, Mode::from_raw_mode(0o2775)).unwrap());
    });
    mount.unmount();
    let _mount = volume.mount();
    for path in walk(&directory) {
        assert_eq!(owner(&path), (ALICE.uid, 60_001), "{}", path.display());
    }
    assert_eq!(mode(&directory.join("sub")), 0o2755);
    assert_eq!(mode(&directory.join("d".repeat(255))), 0o2755);
    assert_eq!(mode(&directory.join("program")) & 0o2000, 0, "set-gid without membership");
}

#[test]
fn sticky_directories_protect_names() {
    needs!(have_fuse, have_root);
    let (_volume, _mount, shared) = shared();
    chmod(&shared, 0o1777);
    ALICE.run(|| {
        fs::write(shared.join("alice"), b"").unwrap();
        fs::create_dir(shared.join("directory")).unwrap();
    });
    BOB.run(|| {
        fs::write(shared.join("bob"), b"").unwrap();
        assert_errno(fs::remove_file(shared.join("alice")), libc::EPERM);
        assert_errno(fs::rename(shared.join("alice"), shared.join("x")), libc::EPERM);
        assert_errno(fs::rename(shared.join("bob"), shared.join("alice")), libc::EPERM);
        assert_errno(fs::remove_dir(shared.join("directory")), libc::EPERM);
    });
    ALICE.run(|| fs::remove_file(shared.join("alice"))).unwrap();
}

/// Makes `file` an executable with both set-id bits that everybody may write to.
fn make_setid(path: &std::path::Path) {
    fs::write(path, b"program content").unwrap();
    chmod(path, 0o6777);
    assert_eq!(mode(path), 0o6777);
}

/// Any change of content by somebody without CAP_FSETID takes the set-id bits, whatever call it was.
#[test]
fn setid_bits_are_cleared_by_unprivileged_changes() {
    needs!(have_fuse, have_root);
    let (_volume, _mount, shared) = shared();
    type Change = (&'static str, fn(&std::path::Path));
    let changes: [Change; 8] = [
        ("write", |path| OpenOptions::new().write(true).open(path).unwrap().write_all_at(b"x", 0).unwrap()),
        ("append", |path| {
            use std::io::Write as _;
            OpenOptions::new().append(true).open(path).unwrap().write_all(b"x").unwrap();
        }),
        ("truncate", |path| OpenOptions::new().write(true).open(path).unwrap().set_len(3).unwrap()),
        ("O_TRUNC", |path| drop(OpenOptions::new().write(true).truncate(true).open(path).unwrap())),
        ("fallocate", |path| {
            let file = OpenOptions::new().write(true).open(path).unwrap();
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 10_000).unwrap();
        }),
        ("O_DIRECT write", |path| {
            let flags = if baseline() { 0 } else { libc::O_DIRECT };
            let file = OpenOptions::new().write(true).custom_flags(flags).open(path).unwrap();
            file.write_all_at(b"x", 0).unwrap();
        }),
        ("copy_file_range", |path| {
            let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
            rustix::fs::copy_file_range(&file, Some(&mut 0), &file, Some(&mut 9000), 5).unwrap();
        }),
        ("hole", |path| {
            use rustix::fs::FallocateFlags;
            let file = OpenOptions::new().write(true).open(path).unwrap();
            rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 3).unwrap();
        }),
    ];
    for (what, change) in changes {
        let path = shared.join(what);
        make_setid(&path);
        ALICE.run(|| change(&path));
        assert_eq!(mode(&path) & 0o6000, 0, "{what} by another user leaves {:o}", mode(&path));
        assert_eq!(mode(&path) & 0o777, 0o777);
        // Root keeps them.
        make_setid(&path);
        change(&path);
        assert_eq!(mode(&path), 0o6777, "{what} by root");
    }
}

#[test]
fn setid_bits_are_cleared_by_chown() {
    needs!(have_fuse, have_root);
    let (volume, mount, shared) = shared();
    let path = shared.join("program");
    make_setid(&path);
    chown(&path, Some(ALICE.uid), Some(ALICE.gid)).unwrap();
    assert_eq!(mode(&path), 0o777, "chown clears set-id bits, root's too");
    ALICE.run(|| {
        chmod(&path, 0o4755);
        chown(&path, None, Some(ALICE.gid)).unwrap();
    });
    assert_eq!(mode(&path), 0o755);
    mount.unmount();
    let _mount = volume.mount();
    assert_eq!(mode(&path), 0o755);
}

/// Bits and capabilities that come after the kernel has learnt, from earlier writes, that there are none.
#[test]
fn privileges_given_between_writes_are_cleared_by_the_next() {
    needs!(have_fuse, have_root);
    let (_volume, _mount, shared) = shared();
    let path = shared.join("program");
    fs::write(&path, b"content").unwrap();
    chmod(&path, 0o777);
    let file = ALICE.run(|| OpenOptions::new().write(true).open(&path).unwrap());
    let write = |byte: &[u8]| ALICE.run(|| file.write_all_at(byte, 0).unwrap());
    write(b"1");
    write(b"2");
    chmod(&path, 0o4777);
    write(b"3");
    assert_eq!(mode(&path), 0o777);
    write(b"4");
    chmod(&path, 0o2777);
    ALICE.run(|| file.set_len(3).unwrap());
    assert_eq!(mode(&path), 0o777);
    write(b"5");
    let mut capability = vec![0, 0, 0, 2];
    for word in [1_u32 << 13, 0, 0, 0] {
        capability.extend(word.to_le_bytes());
    }
    xattr_acl::set(&path, "security.capability", &capability).unwrap();
    write(b"6");
    assert_errno(xattr_acl::get(&path, "security.capability"), libc::ENODATA);
    // A change of owner to the same owner is one.
    chmod(&path, 0o4777);
    chown(&path, None, None).unwrap();
    assert_eq!(mode(&path), 0o777);
    // Without the right to execute for the group, set-gid means something else and stays.
    chmod(&path, 0o6767);
    write(b"7");
    assert_eq!(mode(&path), 0o2767);
}

/// File capabilities go the way of the set-id bits.
#[test]
fn capabilities_are_cleared_by_writes() {
    needs!(have_fuse, have_root);
    let (_volume, _mount, shared) = shared();
    let path = shared.join("program");
    fs::write(&path, b"content").unwrap();
    chmod(&path, 0o777);
    // VFS_CAP_REVISION_2, permitted CAP_NET_RAW (13).
    let mut capability = vec![0, 0, 0, 2];
    for word in [1_u32 << 13, 0, 0, 0] {
        capability.extend(word.to_le_bytes());
    }
    xattr_acl::set(&path, "security.capability", &capability).unwrap();
    assert_eq!(xattr_acl::get(&path, "security.capability").unwrap(), capability);
    ALICE.run(|| OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"x", 0).unwrap());
    assert_errno(xattr_acl::get(&path, "security.capability"), libc::ENODATA);
}

#[test]
fn setid_programs_keep_bits_across_remount() {
    needs!(have_fuse, have_root);
    let (volume, mount, shared) = shared();
    make_setid(&shared.join("program"));
    mount.unmount();
    let _mount = volume.mount();
    assert_eq!(mode(&shared.join("program")), 0o6777);
}

#[test]
fn many_users_at_once() {
    needs!(have_fuse, have_root);
    let (_volume, _mount, shared) = shared();
    std::thread::scope(|scope| {
        for index in 0..8 {
            let shared = &shared;
            scope.spawn(move || {
                let uid = 55_000 + index;
                let user = User { uid, gid: uid + 1000, groups: &[], umask: if index % 2 == 0 { 0o077 } else { 0 } };
                user.run(|| {
                    for round in 0..60 {
                        let path = shared.join(format!("{uid}-{round}"));
                        fs::write(&path, b"x").unwrap();
                        fs::create_dir(shared.join(format!("{uid}-{round}d"))).unwrap();
                    }
                });
            });
        }
    });
    for path in walk(&shared) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let uid: u32 = name[..5].parse().unwrap();
        assert_eq!(owner(&path), (uid, uid + 1000), "{name}");
        let full = if name.ends_with('d') { 0o777 } else { 0o666 };
        assert_eq!(mode(&path), if uid.is_multiple_of(2) { full & 0o700 } else { full }, "{name}");
    }
}

/// Work that the daemon does long after the call (writeback, commit) must not run into the caller's missing rights.
#[test]
fn late_writes_after_rights_were_taken() {
    needs!(have_fuse, have_root);
    let (volume, mount, shared) = shared();
    let path = shared.join("file");
    let file = ALICE.run(|| {
        let file = super::content::create(&path);
        file.write_all_at(&pattern(1, 50_000), 0).unwrap();
        file
    });
    chmod(&path, 0);
    chown(&path, Some(BOB.uid), Some(BOB.gid)).unwrap();
    file.write_all_at(&pattern(2, 50_000), 50_000).unwrap();
    drop(file);
    mount.unmount();
    let _mount = volume.mount();
    let mut model = pattern(1, 50_000);
    model.extend(pattern(2, 50_000));
    assert_file(&path, &model);
}
