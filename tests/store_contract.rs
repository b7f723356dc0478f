//! One contract for every store: the same suite runs on the disk and in memory. Knows the trait only.

use std::io;

use envelopefs::store::disk::DiskStore;
use envelopefs::store::memory::MemoryStore;
use envelopefs::store::{Access, BackingFile, Creator, Kind, Place, RenameMode, SetTime, Stat, Store, Timestamp};

/// The identity of the test process, so that the suite runs for every user.
fn me(umask: u32) -> Creator {
    Creator { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw(), umask }
}

fn at<'a, S: Store>(store: &'a S, name: &'a str) -> Place<'a, S::Handle> {
    Place::Entry { dir: store.root(), name: name.as_bytes() }
}

fn make<S: Store>(store: &S, name: &str) -> S::File {
    store.create_file(store.root(), name.as_bytes(), 0o644, me(0o022)).expect("the file is created")
}

fn make_dir<S: Store>(store: &S, name: &str) -> S::Handle {
    store.mkdir(store.root(), name.as_bytes(), 0o755, me(0o022)).expect("the directory is created");
    store.pin(store.root(), name.as_bytes()).expect("the directory is pinned")
}

fn stat<S: Store>(store: &S, name: &str) -> Stat {
    store.stat(at(store, name)).expect("the object exists")
}

#[track_caller]
fn refused<T>(result: io::Result<T>, errno: i32) {
    let error = result.err().expect("an error");
    assert_eq!(error.raw_os_error(), Some(errno), "{error}");
}

/// How much one subdirectory adds to a directory's link count: 1, or 0 on file systems that do not count them (btrfs).
fn links_per_subdirectory<S: Store>(store: &S) -> u64 {
    store.mkdir(store.root(), b"counted", 0o700, me(0)).unwrap();
    let links = stat(store, "counted").nlink;
    store.rmdir(store.root(), b"counted").unwrap();
    links - 1
}

fn names<S: Store>(store: &S, dir: &S::Handle) -> Vec<String> {
    let entries = store.list(dir).expect("the directory lists");
    let mut names: Vec<String> = entries.iter().map(|e| String::from_utf8_lossy(&e.name).into_owned()).collect();
    names.sort();
    names
}

fn content<F: BackingFile>(file: &F) -> Vec<u8> {
    let mut bytes = vec![0xee; file.stat().expect("the file has attributes").size as usize + 100];
    let n = file.read_at(&mut bytes, 0).expect("the file reads");
    bytes.truncate(n);
    bytes
}

fn reads_and_writes<S: Store>(store: &S) {
    let file = make(store, "f");
    file.write_at(b"hello", 0).unwrap();
    file.write_at(b"world", 10_000).unwrap();
    assert_eq!(file.stat().unwrap().size, 10_005);
    let mut buf = [0xff; 12];
    assert_eq!(file.read_at(&mut buf, 9_998).unwrap(), 7);
    assert_eq!(&buf[..7], b"\0\0world");
    assert_eq!(file.read_at(&mut buf, 10_005).unwrap(), 0);
    assert_eq!(file.read_at(&mut buf, 1 << 50).unwrap(), 0);
    assert_eq!(file.read_at(&mut [], 0).unwrap(), 0);
    file.write_at(b"", 1 << 40).unwrap();
    assert_eq!(file.stat().unwrap().size, 10_005);
    // Larger than any buffer on the way.
    let large: Vec<u8> = (0..3_000_001u32).map(|i| (i % 251) as u8).collect();
    file.write_at(&large, 3).unwrap();
    let read = content(&file);
    assert!(read[..3] == b"hel"[..] && read[3..] == large[..]);
    file.sync_data().unwrap();
    file.sync_all().unwrap();
    store.sync_dir(store.root()).unwrap();
    store.sync_fs().unwrap();
}

fn a_write_beyond_the_largest_file_fails<S: Store>(store: &S) {
    let file = make(store, "f");
    assert!(file.write_at(b"xy", i64::MAX as u64).is_err());
    assert!(file.write_at(b"xy", u64::MAX).is_err());
    refused(file.set_len(u64::MAX), libc::EFBIG);
    assert_eq!(file.stat().unwrap().size, 0);
}

fn read_only_files_refuse_changes<S: Store>(store: &S) {
    make(store, "f").write_at(b"abc", 0).unwrap();
    let file = store.open_file(at(store, "f"), Access::Read).unwrap();
    refused(file.write_at(b"x", 0), libc::EBADF);
    refused(file.set_len(0), libc::EINVAL);
    refused(file.punch_hole(0, 1), libc::EBADF);
    refused(file.allocate(0, 1), libc::EBADF);
    assert_eq!(content(&file), b"abc");
    file.sync_data().unwrap();
}

fn truncation_zeroes_what_it_cuts<S: Store>(store: &S) {
    let file = make(store, "f");
    file.write_at(&[1; 10_000], 0).unwrap();
    file.set_len(5_000).unwrap();
    assert_eq!(file.stat().unwrap().size, 5_000);
    file.set_len(10_000).unwrap();
    let bytes = content(&file);
    assert!(bytes.len() == 10_000 && bytes[..5_000] == [1; 5_000] && bytes[5_000..] == [0; 5_000]);
    file.set_len(0).unwrap();
    assert_eq!(content(&file), b"");
}

fn holes<S: Store>(store: &S) {
    let file = make(store, "f");
    assert_eq!(file.seek_data(0).unwrap(), None);
    assert_eq!(file.seek_hole(0).unwrap(), None);
    file.set_len(1 << 40).unwrap();
    assert_eq!(file.seek_data(0).unwrap(), None);
    assert_eq!(file.seek_hole(12_345).unwrap(), Some(12_345));
    file.write_at(&[1; 128 << 10], 1 << 20).unwrap();
    assert_eq!(file.seek_data(0).unwrap(), Some(1 << 20));
    assert_eq!(file.seek_data((1 << 20) + 77).unwrap(), Some((1 << 20) + 77));
    assert_eq!(file.seek_hole(1 << 20).unwrap(), Some((1 << 20) + (128 << 10)));
    assert_eq!(file.seek_data(2 << 20).unwrap(), None);
    assert_eq!(file.seek_hole(1 << 40).unwrap(), None);
    assert!(file.stat().unwrap().blocks * 512 < 1 << 20);

    // Unaligned: whole pages go, the rest is zeroed.
    file.punch_hole((1 << 20) + 100, 64 << 10).unwrap();
    assert_eq!(file.stat().unwrap().size, 1 << 40);
    let mut bytes = vec![9; 128 << 10];
    file.read_at(&mut bytes, 1 << 20).unwrap();
    let end = 100 + (64 << 10);
    assert!(bytes[..100].iter().all(|b| *b == 1));
    assert!(bytes[100..end].iter().all(|b| *b == 0));
    assert!(bytes[end..].iter().all(|b| *b == 1));
    assert_eq!(file.seek_hole(1 << 20).unwrap(), Some((1 << 20) + 4096));

    // Past the end: allowed, and without effect on the length. An empty range is not allowed.
    file.set_len(10).unwrap();
    file.punch_hole(4, 1 << 20).unwrap();
    assert_eq!(file.stat().unwrap().size, 10);
    refused(file.punch_hole(0, 0), libc::EINVAL);
    // The end of the file counts as a hole.
    let full = make(store, "full");
    full.write_at(b"12345", 0).unwrap();
    assert_eq!(full.seek_hole(2).unwrap(), Some(5));
    assert_eq!(full.seek_data(2).unwrap(), Some(2));
}

fn allocation_changes_neither_bytes_nor_length<S: Store>(store: &S) {
    let file = make(store, "f");
    file.write_at(b"abc", 0).unwrap();
    match file.allocate(0, 1 << 20) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return,
        other => other.unwrap(),
    }
    assert_eq!(content(&file), b"abc");
    refused(file.allocate(0, 0), libc::EINVAL);
}

fn mtime_alone<S: Store>(store: &S) {
    let file = make(store, "f");
    let before = file.stat().unwrap();
    for mtime in [Timestamp { sec: 1_234_567_890, nsec: 123_456_789 }, Timestamp { sec: -5, nsec: 999_999_999 }] {
        file.set_mtime(mtime).unwrap();
        assert_eq!(file.stat().unwrap().mtime, mtime);
        assert_eq!(file.stat().unwrap().atime, before.atime);
    }
    // Works through a read-only descriptor, too.
    store.open_file(at(store, "f"), Access::Read).unwrap().set_mtime(before.mtime).unwrap();
    assert_eq!(file.stat().unwrap().mtime, before.mtime);
}

fn times<S: Store>(store: &S) {
    make(store, "f");
    store.symlink(store.root(), b"l", b"f", me(0)).unwrap();
    let handle = store.pin(store.root(), b"f").unwrap();
    let link = store.pin(store.root(), b"l").unwrap();
    let early = Timestamp { sec: -1_000_000_000, nsec: 1 };
    let late = Timestamp { sec: 4_000_000_000, nsec: 999_999_999 };
    for place in [at(store, "f"), Place::Pinned(&handle), at(store, "l"), Place::Pinned(&link)] {
        store.set_times(place, SetTime::At(late), SetTime::At(early)).unwrap();
        let now = store.stat(place).unwrap();
        assert_eq!((now.atime, now.mtime), (late, early));
        store.set_times(place, SetTime::At(early), SetTime::Omit).unwrap();
        let now = store.stat(place).unwrap();
        assert_eq!((now.atime, now.mtime), (early, early));
        store.set_times(place, SetTime::Omit, SetTime::Now).unwrap();
        let now = store.stat(place).unwrap();
        assert!(now.atime == early && now.mtime.sec > 0);
        let invalid = SetTime::At(Timestamp { sec: 0, nsec: 1_000_000_000 });
        refused(store.set_times(place, invalid, SetTime::Omit), libc::EINVAL);
        // The next place starts from other times.
        store.set_times(place, SetTime::Now, SetTime::Now).unwrap();
    }
    refused(store.set_times(at(store, "none"), SetTime::Now, SetTime::Now), libc::ENOENT);
}

fn changes_move_times<S: Store>(store: &S) {
    let old = Timestamp { sec: 1000, nsec: 0 };
    let file = make(store, "f");
    let age = |name| store.set_times(at(store, name), SetTime::At(old), SetTime::At(old)).unwrap();
    let dir = make_dir(store, "d");
    type Change<'a> = (&'a str, Box<dyn Fn() + 'a>, bool);
    let changes: Vec<Change> = vec![
        ("f", Box::new(|| file.write_at(b"x", 0).unwrap()), true),
        ("f", Box::new(|| file.set_len(0).unwrap()), true),
        ("f", Box::new(|| store.chmod(at(store, "f"), 0o600).unwrap()), false),
        ("f", Box::new(|| store.set_xattr(at(store, "f"), b"user.t", b"1", 0).unwrap()), false),
        ("f", Box::new(|| store.link(at(store, "f"), store.root(), b"g").unwrap()), false),
        ("d", Box::new(|| store.symlink(&dir, b"x", b"y", me(0)).unwrap()), true),
        ("d", Box::new(|| store.unlink(&dir, b"x").unwrap()), true),
    ];
    for (name, change, moves) in &changes {
        age(name);
        change();
        assert_eq!(stat(store, name).mtime != old, *moves, "{name}");
        assert_ne!(stat(store, name).ctime, old);
    }
}

fn creation<S: Store>(store: &S) {
    let file = store.create_file(store.root(), b"f", 0o666, me(0o027)).unwrap();
    let made = file.stat().unwrap();
    assert_eq!((made.kind, made.mode, made.nlink, made.size), (Kind::File, 0o640, 1, 0));
    assert_eq!((made.uid, made.gid), (me(0).uid, me(0).gid));
    assert_eq!(made, stat(store, "f"));
    refused(store.create_file(store.root(), b"f", 0o666, me(0)).map(drop), libc::EEXIST);

    store.mkdir(store.root(), b"d", 0o777, me(0o022)).unwrap();
    let made = stat(store, "d");
    assert_eq!((made.kind, made.mode), (Kind::Directory, 0o755));
    assert!((1..=2).contains(&made.nlink));
    refused(store.mkdir(store.root(), b"d", 0o777, me(0)), libc::EEXIST);
    refused(store.mkdir(store.root(), b"f", 0o777, me(0)), libc::EEXIST);

    store.mknod(store.root(), b"p", Kind::Fifo, 0o666, 0, me(0o002)).unwrap();
    store.mknod(store.root(), b"s", Kind::Socket, 0o666, 0, me(0)).unwrap();
    store.mknod(store.root(), b"r", Kind::File, 0o600, 0, me(0)).unwrap();
    assert_eq!((stat(store, "p").kind, stat(store, "p").mode), (Kind::Fifo, 0o664));
    assert_eq!(stat(store, "s").kind, Kind::Socket);
    assert_eq!((stat(store, "r").kind, stat(store, "r").size), (Kind::File, 0));
    refused(store.mknod(store.root(), b"x", Kind::Directory, 0o700, 0, me(0)), libc::EINVAL);
    refused(store.mknod(store.root(), b"x", Kind::Symlink, 0o700, 0, me(0)), libc::EINVAL);
    refused(store.mknod(store.root(), b"p", Kind::Fifo, 0o700, 0, me(0)), libc::EEXIST);

    // A umask set for one call does not outlive it.
    store.mkdir(store.root(), b"open", 0o777, me(0)).unwrap();
    assert_eq!(stat(store, "open").mode, 0o777);
    let mut kinds: Vec<_> = store.list(store.root()).unwrap().into_iter().map(|e| (e.name, e.kind)).collect();
    kinds.sort_by(|a, b| a.0.cmp(&b.0));
    let expected = [
        ("d", Kind::Directory),
        ("f", Kind::File),
        ("open", Kind::Directory),
        ("p", Kind::Fifo),
        ("r", Kind::File),
        ("s", Kind::Socket),
    ];
    assert!(kinds.iter().map(|(n, k)| (&**n, *k)).eq(expected.iter().map(|(n, k)| (n.as_bytes(), *k))), "{kinds:?}");
}

fn opening_other_kinds<S: Store>(store: &S) {
    make(store, "f");
    make_dir(store, "d");
    store.mknod(store.root(), b"p", Kind::Fifo, 0o666, 0, me(0)).unwrap();
    store.mknod(store.root(), b"s", Kind::Socket, 0o666, 0, me(0)).unwrap();
    store.symlink(store.root(), b"l", b"f", me(0)).unwrap();
    for access in [Access::Read, Access::ReadWrite] {
        for (name, errno) in [("d", libc::EIO), ("p", libc::EIO), ("s", libc::EIO), ("l", libc::ELOOP)] {
            refused(store.open_file(at(store, name), access).map(drop), errno);
            let handle = store.pin(store.root(), name.as_bytes()).unwrap();
            refused(store.open_file(Place::Pinned(&handle), access).map(drop), errno);
        }
        refused(store.open_file(at(store, "none"), access).map(drop), libc::ENOENT);
    }
}

fn names_are_single_components<S: Store>(store: &S) {
    make_dir(store, "d");
    let root = store.root();
    for name in [&b""[..], b".", b"..", b"d/x", b"/", b"d\0x"] {
        let place = Place::Entry { dir: root, name };
        refused(store.pin(root, name).map(drop), libc::EINVAL);
        refused(store.stat(place), libc::EINVAL);
        refused(store.open_file(place, Access::Read).map(drop), libc::EINVAL);
        refused(store.create_file(root, name, 0o600, me(0)).map(drop), libc::EINVAL);
        refused(store.mkdir(root, name, 0o700, me(0)), libc::EINVAL);
        refused(store.mknod(root, name, Kind::Fifo, 0o600, 0, me(0)), libc::EINVAL);
        refused(store.symlink(root, name, b"t", me(0)), libc::EINVAL);
        refused(store.readlink(place), libc::EINVAL);
        refused(store.link(at(store, "d"), root, name), libc::EINVAL);
        refused(store.link(place, root, b"n"), libc::EINVAL);
        refused(store.unlink(root, name), libc::EINVAL);
        refused(store.rmdir(root, name), libc::EINVAL);
        refused(store.rename((root, name), (root, b"n"), RenameMode::Replace), libc::EINVAL);
        refused(store.rename((root, b"d"), (root, name), RenameMode::Replace), libc::EINVAL);
        refused(store.chmod(place, 0o700), libc::EINVAL);
        refused(store.chown(place, None, None), libc::EINVAL);
        refused(store.set_times(place, SetTime::Now, SetTime::Now), libc::EINVAL);
        refused(store.get_xattr(place, b"user.a"), libc::EINVAL);
        refused(store.set_xattr(place, b"user.a", b"", 0), libc::EINVAL);
        refused(store.list_xattrs(place), libc::EINVAL);
        refused(store.remove_xattr(place, b"user.a"), libc::EINVAL);
    }
    let long = [b'n'; 256];
    refused(store.mkdir(root, &long, 0o700, me(0)), libc::ENAMETOOLONG);
    refused(store.pin(root, &long).map(drop), libc::ENAMETOOLONG);
    let odd: Vec<u8> = (1..=255).filter(|b| *b != b'/').collect();
    store.mkdir(root, &odd, 0o700, me(0)).unwrap();
    assert!(store.list(root).unwrap().iter().any(|entry| *entry.name == *odd));
    store.set_xattr(Place::Entry { dir: root, name: &odd }, b"user.a", b"b", 0).unwrap();
}

fn files_are_not_directories<S: Store>(store: &S) {
    make(store, "f");
    let file = store.pin(store.root(), b"f").unwrap();
    refused(store.list(&file), libc::ENOTDIR);
    refused(store.pin(&file, b"x").map(drop), libc::ENOTDIR);
    refused(store.mkdir(&file, b"x", 0o700, me(0)), libc::ENOTDIR);
    refused(store.unlink(&file, b"x"), libc::ENOTDIR);
    refused(store.rename((&file, b"x"), (store.root(), b"y"), RenameMode::Replace), libc::ENOTDIR);
    refused(store.sync_dir(&file), libc::ENOTDIR);
}

fn symlinks<S: Store>(store: &S) {
    let target = vec![b't'; 1000];
    store.symlink(store.root(), b"l", &target, me(0o077)).unwrap();
    let handle = store.pin(store.root(), b"l").unwrap();
    for place in [at(store, "l"), Place::Pinned(&handle)] {
        assert_eq!(store.readlink(place).unwrap(), target);
        let made = store.stat(place).unwrap();
        assert_eq!((made.kind, made.mode, made.size), (Kind::Symlink, 0o777, 1000));
        refused(store.chmod(place, 0o600), libc::EOPNOTSUPP);
        store.chown(place, Some(me(0).uid), None).unwrap();
    }
    make(store, "f");
    let file = store.pin(store.root(), b"f").unwrap();
    refused(store.readlink(at(store, "f")), libc::EINVAL);
    refused(store.readlink(Place::Pinned(&file)), libc::EINVAL);
    refused(store.symlink(store.root(), b"l", b"x", me(0)), libc::EEXIST);
    refused(store.symlink(store.root(), b"empty", b"", me(0)), libc::ENOENT);
    // A hard link of a link leads to the link.
    store.link(at(store, "l"), store.root(), b"l2").unwrap();
    store.link(Place::Pinned(&handle), store.root(), b"l3").unwrap();
    assert_eq!(store.readlink(at(store, "l3")).unwrap(), target);
    assert_eq!(stat(store, "l2").nlink, 3);
}

fn hard_links<S: Store>(store: &S) {
    let file = make(store, "f");
    let dir = make_dir(store, "d");
    let handle = store.pin(store.root(), b"f").unwrap();
    store.link(at(store, "f"), &dir, b"g").unwrap();
    store.link(Place::Pinned(&handle), store.root(), b"h").unwrap();
    file.write_at(b"shared", 0).unwrap();
    let other = store.open_file(Place::Entry { dir: &dir, name: b"g" }, Access::ReadWrite).unwrap();
    assert_eq!(content(&other), b"shared");
    assert_eq!(other.stat().unwrap().nlink, 3);
    assert_eq!(stat(store, "h").ino, stat(store, "f").ino);
    refused(store.link(at(store, "f"), store.root(), b"h"), libc::EEXIST);
    refused(store.link(at(store, "none"), store.root(), b"i"), libc::ENOENT);
    refused(store.link(at(store, "d"), store.root(), b"i"), libc::EPERM);
    store.unlink(store.root(), b"f").unwrap();
    assert_eq!(other.stat().unwrap().nlink, 2);
    refused(store.unlink(store.root(), b"f"), libc::ENOENT);
    refused(store.unlink(store.root(), b"d"), libc::EISDIR);
}

fn pinned_objects_outlive_their_names<S: Store>(store: &S) {
    make(store, "f").write_at(b"kept", 0).unwrap();
    let dir = make_dir(store, "d");
    let pin = store.pin(store.root(), b"f").unwrap();
    let ino = stat(store, "f").ino;
    store.unlink(store.root(), b"f").unwrap();
    make(store, "f").write_at(b"new", 0).unwrap();

    let gone = Place::Pinned(&pin);
    let now = store.stat(gone).unwrap();
    assert_eq!((now.ino, now.nlink, now.size), (ino, 0, 4));
    assert_ne!(stat(store, "f").ino, ino);
    store.chmod(gone, 0o604).unwrap();
    store.chown(gone, Some(me(0).uid), Some(me(0).gid)).unwrap();
    let time = SetTime::At(Timestamp { sec: 77, nsec: 7 });
    store.set_times(gone, time, time).unwrap();
    store.set_xattr(gone, b"user.a", b"1", 0).unwrap();
    assert_eq!(store.get_xattr(gone, b"user.a").unwrap(), b"1");
    assert!(store.list_xattrs(gone).unwrap().contains(&b"user.a".to_vec()));
    store.remove_xattr(gone, b"user.a").unwrap();
    let now = store.stat(gone).unwrap();
    assert_eq!((now.mode, now.mtime), (0o604, Timestamp { sec: 77, nsec: 7 }));
    assert_eq!(content(&store.open_file(gone, Access::Read).unwrap()), b"kept");
    let file = store.open_file(gone, Access::ReadWrite).unwrap();
    file.write_at(b"KEPT", 0).unwrap();
    drop(pin);
    assert_eq!(content(&file), b"KEPT");
    file.sync_all().unwrap();
    assert_eq!(stat(store, "f").mode, 0o644);

    // A handle of a directory follows it through renames; once removed, nothing can be made in it.
    store.rename((store.root(), b"d"), (store.root(), b"e"), RenameMode::Replace).unwrap();
    store.symlink(&dir, b"x", b"y", me(0)).unwrap();
    let moved = store.pin(store.root(), b"e").unwrap();
    assert_eq!(names(store, &moved), ["x"]);
    store.unlink(&moved, b"x").unwrap();
    store.rmdir(store.root(), b"e").unwrap();
    refused(store.list(&dir), libc::ENOENT);
    refused(store.mkdir(&dir, b"y", 0o700, me(0)), libc::ENOENT);
    refused(store.create_file(&dir, b"y", 0o600, me(0)).map(drop), libc::ENOENT);
    refused(store.rename((store.root(), b"f"), (&dir, b"f"), RenameMode::Replace), libc::ENOENT);
    refused(store.pin(&dir, b"y").map(drop), libc::ENOENT);
}

fn an_unlinked_file_cannot_be_linked_again<S: Store>(store: &S) {
    make(store, "f");
    let pin = store.pin(store.root(), b"f").unwrap();
    store.unlink(store.root(), b"f").unwrap();
    refused(store.link(Place::Pinned(&pin), store.root(), b"g"), libc::ENOENT);
}

fn removing_directories<S: Store>(store: &S) {
    let step = links_per_subdirectory(store);
    let dir = make_dir(store, "d");
    let links = stat(store, "d").nlink;
    store.mkdir(&dir, b"sub", 0o700, me(0)).unwrap();
    assert_eq!(stat(store, "d").nlink, links + step);
    refused(store.rmdir(store.root(), b"d"), libc::ENOTEMPTY);
    store.rmdir(&dir, b"sub").unwrap();
    assert_eq!(stat(store, "d").nlink, links);
    store.rmdir(store.root(), b"d").unwrap();
    refused(store.rmdir(store.root(), b"d"), libc::ENOENT);
    make(store, "f");
    refused(store.rmdir(store.root(), b"f"), libc::ENOTDIR);
}

fn renames<S: Store>(store: &S) {
    let root = store.root();
    let rename = |from: &str, to: &str, mode| store.rename((root, from.as_bytes()), (root, to.as_bytes()), mode);
    make(store, "a").write_at(b"a", 0).unwrap();
    make(store, "b").write_at(b"bb", 0).unwrap();
    refused(rename("a", "b", RenameMode::NoReplace), libc::EEXIST);
    rename("a", "b", RenameMode::Exchange).unwrap();
    assert_eq!((stat(store, "a").size, stat(store, "b").size), (2, 1));
    rename("a", "b", RenameMode::Replace).unwrap();
    assert_eq!((names(store, root), stat(store, "b").size), (vec!["b".into()], 2));
    rename("b", "c", RenameMode::NoReplace).unwrap();
    refused(rename("b", "x", RenameMode::Replace), libc::ENOENT);
    refused(rename("c", "x", RenameMode::Exchange), libc::ENOENT);
    // Two names of one file: nothing happens.
    store.link(at(store, "c"), root, b"c2").unwrap();
    rename("c", "c2", RenameMode::Replace).unwrap();
    assert_eq!(names(store, root), ["c", "c2"]);

    let step = links_per_subdirectory(store);
    let one = make_dir(store, "one");
    let two = make_dir(store, "two");
    store.mkdir(&one, b"sub", 0o700, me(0)).unwrap();
    refused(rename("c", "one", RenameMode::Replace), libc::EISDIR);
    refused(rename("one", "c", RenameMode::Replace), libc::ENOTDIR);
    // Either errno is right (rename(2)); XFS says EEXIST.
    let error = rename("two", "one", RenameMode::Replace).unwrap_err().raw_os_error();
    assert!(matches!(error, Some(libc::ENOTEMPTY | libc::EEXIST)), "{error:?}");
    refused(store.rename((root, b"one"), (&one, b"x"), RenameMode::Replace), libc::EINVAL);
    let sub = store.pin(&one, b"sub").unwrap();
    refused(store.rename((root, b"one"), (&sub, b"x"), RenameMode::Replace), libc::EINVAL);
    // Across directories the link counts of the parents follow.
    let (one_links, two_links) = (stat(store, "one").nlink, stat(store, "two").nlink);
    store.rename((&one, b"sub"), (&two, b"sub"), RenameMode::NoReplace).unwrap();
    assert_eq!((stat(store, "one").nlink, stat(store, "two").nlink), (one_links - step, two_links + step));
    store.rename((root, b"c2"), (&one, b"file"), RenameMode::Replace).unwrap();
    store.rename((&one, b"file"), (&two, b"sub"), RenameMode::Exchange).unwrap();
    assert_eq!(store.stat(Place::Entry { dir: &one, name: b"file" }).unwrap().kind, Kind::Directory);
    assert_eq!(store.stat(Place::Entry { dir: &two, name: b"sub" }).unwrap().kind, Kind::File);
    assert_eq!((stat(store, "one").nlink, stat(store, "two").nlink), (one_links, two_links));
    // A directory replaces an empty one, and exchanges with a full one.
    make_dir(store, "empty");
    rename("one", "empty", RenameMode::Replace).unwrap();
    rename("empty", "two", RenameMode::Exchange).unwrap();
    assert_eq!(names(store, &store.pin(root, b"two").unwrap()), ["file"]);
    assert_eq!(names(store, root), ["c", "empty", "two"]);
}

fn modes_and_owners<S: Store>(store: &S) {
    make(store, "f");
    make_dir(store, "d");
    for name in ["f", "d"] {
        let pin = store.pin(store.root(), name.as_bytes()).unwrap();
        for (place, mode) in [(at(store, name), 0o1751), (Place::Pinned(&pin), 0o604), (at(store, name), 0o000)] {
            store.chmod(place, mode).unwrap();
            assert_eq!(stat(store, name).mode, mode);
        }
        store.chmod(at(store, name), 0o100_644).unwrap();
        assert_eq!(stat(store, name).mode, 0o644);
        store.chown(Place::Pinned(&pin), None, None).unwrap();
        refused(store.chown(Place::Pinned(&pin), Some(u32::MAX), None), libc::EINVAL);
    }
    refused(store.chmod(at(store, "none"), 0o600), libc::ENOENT);
    refused(store.chown(at(store, "none"), None, None), libc::ENOENT);
    // A change of owner takes the set-id bits of a file away.
    store.chmod(at(store, "f"), 0o6755).unwrap();
    store.chown(at(store, "f"), Some(me(0).uid), Some(me(0).gid)).unwrap();
    assert_eq!(stat(store, "f").mode, 0o755);
}

fn xattrs<S: Store>(store: &S) {
    make(store, "f");
    make_dir(store, "d");
    store.symlink(store.root(), b"l", b"f", me(0)).unwrap();
    let large = vec![7; 3000];
    for name in ["f", "d"] {
        let pin = store.pin(store.root(), name.as_bytes()).unwrap();
        let (entry, pinned) = (at(store, name), Place::Pinned(&pin));
        for place in [entry, pinned] {
            refused(store.get_xattr(place, b"user.a"), libc::ENODATA);
            refused(store.set_xattr(place, b"user.a", b"1", libc::XATTR_REPLACE), libc::ENODATA);
            store.set_xattr(place, b"user.a", b"1", libc::XATTR_CREATE).unwrap();
            refused(store.set_xattr(place, b"user.a", b"2", libc::XATTR_CREATE), libc::EEXIST);
            store.set_xattr(place, b"user.a", &large, libc::XATTR_REPLACE).unwrap();
            store.set_xattr(place, b"user.empty", b"", 0).unwrap();
            refused(store.set_xattr(place, b"user.a", b"2", 0x40), libc::EINVAL);
            for other in [entry, pinned] {
                assert_eq!(store.get_xattr(other, b"user.a").unwrap(), large);
                assert_eq!(store.get_xattr(other, b"user.empty").unwrap(), b"");
                let mut found = store.list_xattrs(other).unwrap();
                found.retain(|name| name.starts_with(b"user."));
                found.sort();
                assert_eq!(found, [b"user.a".to_vec(), b"user.empty".to_vec()]);
            }
            store.remove_xattr(place, b"user.a").unwrap();
            store.remove_xattr(place, b"user.empty").unwrap();
            refused(store.remove_xattr(place, b"user.a"), libc::ENODATA);
        }
        refused(store.set_xattr(entry, b"nonsense", b"", 0), libc::EOPNOTSUPP);
        refused(store.set_xattr(entry, b"user.big", &vec![0; (64 << 10) + 1], 0), libc::E2BIG);
    }
    // Never through a link; `user.` is not for links.
    let pin = store.pin(store.root(), b"l").unwrap();
    for place in [at(store, "l"), Place::Pinned(&pin)] {
        refused(store.set_xattr(place, b"user.a", b"1", 0), libc::EPERM);
        refused(store.get_xattr(place, b"user.a"), libc::ENODATA);
    }
    refused(store.get_xattr(at(store, "f"), b"user.a"), libc::ENODATA);
    refused(store.get_xattr(at(store, "none"), b"user.a"), libc::ENOENT);
}

fn many_xattrs_list<S: Store>(store: &S) {
    make(store, "f");
    let name = |i: u32| format!("user.{i:03}{}", "n".repeat(60)).into_bytes();
    for i in 0..40 {
        store.set_xattr(at(store, "f"), &name(i), b"v", 0).unwrap();
    }
    let mut found = store.list_xattrs(at(store, "f")).unwrap();
    found.retain(|name| name.starts_with(b"user."));
    found.sort();
    assert!(found.iter().cloned().eq((0..40).map(name)));
}

fn large_directories_list_whole<S: Store>(store: &S) {
    let dir = make_dir(store, "d");
    assert_eq!(store.list(&dir).unwrap(), []);
    let expected: Vec<String> = (0..5000).map(|i| format!("{i:05}-{}", "x".repeat(50))).collect();
    for name in &expected {
        store.symlink(&dir, name.as_bytes(), b"t", me(0)).unwrap();
    }
    assert_eq!(names(store, &dir), expected);
    let entries = store.list(&dir).unwrap();
    let ino = store.stat(Place::Entry { dir: &dir, name: &entries[0].name }).unwrap().ino;
    assert_eq!((entries[0].ino, entries[0].kind), (ino, Kind::Symlink));
}

fn space<S: Store>(store: &S) {
    let space = store.statfs().unwrap();
    assert!(space.fragment_size > 0 && space.blocks >= space.blocks_free);
    assert!(space.blocks_free >= space.blocks_available);
    assert!(space.name_max >= 255);
}

fn many_threads_share_a_store<S: Store>(store: &S) {
    let file = make(store, "f");
    std::thread::scope(|scope| {
        for t in 0..4u8 {
            let file = &file;
            scope.spawn(move || {
                for i in 0..100u64 {
                    let at = (i * 4 + u64::from(t)) * 100;
                    file.write_at(&[t + 1; 100], at).unwrap();
                    let mut back = [0; 100];
                    assert_eq!(file.read_at(&mut back, at).unwrap(), 100);
                    assert_eq!(back, [t + 1; 100]);
                    // Each thread has its own umask.
                    let name = format!("{t}-{i}");
                    store.mkdir(store.root(), name.as_bytes(), 0o777, me(u32::from(t))).unwrap();
                    assert_eq!(stat(store, &name).mode, 0o777 & !u32::from(t));
                }
            });
        }
    });
    assert_eq!(names(store, store.root()).len(), 401);
}

macro_rules! contract {
    ($($name:ident),* $(,)?) => {
        mod disk {
            use super::*;
            $(
                #[test]
                fn $name() {
                    let dir = tempfile::tempdir().unwrap();
                    super::$name(&DiskStore::open(dir.path()).unwrap());
                }
            )*
        }
        mod disk_without_atime {
            use super::*;
            $(
                #[test]
                fn $name() {
                    let dir = tempfile::tempdir().unwrap();
                    super::$name(&DiskStore::open(dir.path()).unwrap().noatime(true));
                }
            )*
        }
        mod memory {
            use super::*;
            $(
                #[test]
                fn $name() {
                    super::$name(&MemoryStore::new());
                }
            )*
        }
    };
}

contract!(
    a_write_beyond_the_largest_file_fails,
    allocation_changes_neither_bytes_nor_length,
    an_unlinked_file_cannot_be_linked_again,
    changes_move_times,
    creation,
    files_are_not_directories,
    hard_links,
    holes,
    large_directories_list_whole,
    many_threads_share_a_store,
    many_xattrs_list,
    modes_and_owners,
    mtime_alone,
    names_are_single_components,
    opening_other_kinds,
    pinned_objects_outlive_their_names,
    read_only_files_refuse_changes,
    reads_and_writes,
    removing_directories,
    renames,
    space,
    symlinks,
    times,
    truncation_zeroes_what_it_cuts,
    xattrs,
);
