//! Hard links, symbolic links of any length, special files, and everything that an open but unlinked file must still do.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, XattrFlags, linkat, mkfifoat};

use super::content::read_write;
use crate::common::sys::Mapping;
use crate::common::*;
use crate::needs;

#[test]
fn hard_links_share_content_and_attributes() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    fs::create_dir(mount.join("d")).unwrap();
    fs::write(mount.join("a"), b"content").unwrap();
    fs::hard_link(mount.join("a"), mount.join("d/b")).unwrap();
    fs::OpenOptions::new().append(true).open(mount.join("d/b")).unwrap().write_all(&[7; 10_000]).unwrap();
    let (a, b) = (fs::metadata(mount.join("a")).unwrap(), fs::metadata(mount.join("d/b")).unwrap());
    assert_eq!((a.ino(), a.nlink(), a.len()), (b.ino(), 2, 10_007));
    fs::set_permissions(mount.join("a"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(fs::metadata(mount.join("d/b")).unwrap().mode() & 0o777, 0o600);
    fs::remove_file(mount.join("a")).unwrap();
    assert_eq!(fs::metadata(mount.join("d/b")).unwrap().nlink(), 1);
    mount.unmount();
    let mount = volume.mount();
    let mut model = b"content".to_vec();
    model.extend([7; 10_000]);
    assert_file(&mount.join("d/b"), &model);
}

#[test]
fn hard_links_across_remount() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    fs::write(mount.join("a"), b"one").unwrap();
    fs::hard_link(mount.join("a"), mount.join("b")).unwrap();
    mount.unmount();
    let mount = volume.mount();
    // Opened under two names: one inode, so one state.
    let (a, b) = (read_write(&mount.join("a")), read_write(&mount.join("b")));
    a.write_all_at(b"two and more", 0).unwrap();
    let mut text = String::new();
    (&b).read_to_string(&mut text).unwrap();
    assert_eq!(text, "two and more");
    assert_eq!(b.metadata().unwrap().len(), 12);
}

#[test]
fn links_that_are_refused() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    fs::create_dir(mount.join("d")).unwrap();
    assert_errno(fs::hard_link(mount.join("d"), mount.join("x")), libc::EPERM);
    fs::write(mount.join("file"), b"").unwrap();
    fs::write(volume.scratch().join("outside"), b"").unwrap();
    if !baseline() {
        assert_errno(fs::hard_link(volume.scratch().join("outside"), mount.join("x")), libc::EXDEV);
    }
    let file = File::open(mount.join("file")).unwrap();
    fs::remove_file(mount.join("file")).unwrap();
    let proc = format!("/proc/self/fd/{}", file.as_raw_fd());
    assert_errno(linkat(CWD, proc, CWD, mount.join("revived"), AtFlags::SYMLINK_FOLLOW), libc::ENOENT);
}

#[test]
fn hard_link_to_a_symlink_is_to_the_link() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    for length in [10, 4000] {
        let target = "t".repeat(length);
        let (a, b) = (mount.join(format!("a{length}")), mount.join(format!("b{length}")));
        symlink(&target, &a).unwrap();
        linkat(CWD, &a, CWD, &b, AtFlags::empty()).unwrap();
        assert_eq!(fs::symlink_metadata(&a).unwrap().ino(), fs::symlink_metadata(&b).unwrap().ino());
        // The target stays while one of the links is left.
        fs::remove_file(&a).unwrap();
        assert_eq!(fs::read_link(&b).unwrap().as_os_str(), OsStr::new(&target));
    }
    mount.unmount();
    let mount = volume.mount();
    assert_eq!(fs::read_link(mount.join("b4000")).unwrap().as_os_str().len(), 4000);
}

#[test]
fn symlink_targets_of_any_length() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let lengths =
        [1, 15, 16, 31, 59, 60, 61, 100, 255, 700, 734, 735, 736, 767, 1000, 1023, 1024, 2000, 3000, 4094, 4095];
    let target =
        |length: usize| OsString::from_vec(pattern(length as u64, length).iter().map(|b| (b % 254) + 1).collect());
    for length in lengths {
        symlink(target(length), mount.join(format!("l{length}"))).unwrap();
    }
    assert_errno(symlink("t".repeat(4096), mount.join("too long")), libc::ENAMETOOLONG);
    let check = |mount: &Mount| {
        for length in lengths {
            let link = mount.join(format!("l{length}"));
            assert_eq!(fs::read_link(&link).unwrap().as_os_str(), target(length), "{length} bytes");
            assert_eq!(fs::symlink_metadata(&link).unwrap().len(), length as u64, "st_size of {length} bytes");
        }
    };
    check(&mount);
    mount.unmount();
    let mount = volume.mount();
    check(&mount);
    for length in lengths {
        fs::remove_file(mount.join(format!("l{length}"))).unwrap();
    }
    if !baseline() {
        assert_eq!(walk(&volume.cipher.join("overflow")).len(), 0, "long targets are removed with their links");
    }
}

#[test]
fn symlinks_lead_where_they_point() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    fs::create_dir_all(mount.join("a/b")).unwrap();
    fs::write(mount.join("a/file"), b"content").unwrap();
    symlink("../file", mount.join("a/b/relative")).unwrap();
    symlink(mount.join("a/file"), mount.join("absolute")).unwrap();
    symlink("a/b", mount.join("directory")).unwrap();
    symlink("loop", mount.join("loop")).unwrap();
    for name in ["a/b/relative", "absolute", "directory/relative", "directory/../file"] {
        assert_file(&mount.join(name), b"content");
    }
    assert_errno(fs::read(mount.join("loop")), libc::ELOOP);
    // A link may be renamed and replaced like any entry.
    fs::rename(mount.join("absolute"), mount.join("loop")).unwrap();
    assert_file(&mount.join("loop"), b"content");
}

#[test]
fn replacing_a_long_symlink_frees_its_target() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = volume.mount();
    let overflow = || walk(&volume.cipher.join("overflow")).len();
    symlink("t".repeat(4000), mount.join("a")).unwrap();
    symlink("u".repeat(4000), mount.join("b")).unwrap();
    assert_eq!(overflow(), 2);
    fs::rename(mount.join("a"), mount.join("b")).unwrap();
    assert_eq!(fs::read_link(mount.join("b")).unwrap().as_os_str(), OsStr::new(&"t".repeat(4000)));
    assert_eq!(overflow(), 1);
    fs::write(mount.join("file"), b"").unwrap();
    fs::rename(mount.join("file"), mount.join("b")).unwrap();
    assert_eq!(overflow(), 0);
}

/// Everything that works by descriptor on a file that no name leads to any more.
#[test]
fn unlinked_open_files_work() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.join("file");
    fs::write(&path, pattern(1, 10_000)).unwrap();
    let file = read_write(&path);
    fs::remove_file(&path).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    file.write_all_at(b"written", 20_000).unwrap();
    file.sync_all().unwrap();
    file.sync_data().unwrap();
    let mut model = pattern(1, 10_000);
    super::content::put(&mut model, 20_000, b"written");
    let mut got = vec![0; 30_000];
    let len = super::content::read_up_to(&file, &mut got, 0);
    assert_same(&got[..len], &model, "unlinked");
    file.set_permissions(fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o640);
    if is_root() {
        std::os::unix::fs::fchown(&file, Some(1000), Some(1000)).unwrap();
        assert_eq!(file.metadata().unwrap().uid(), 1000);
    }
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(file.metadata().unwrap().mtime(), 0);
    rustix::fs::fsetxattr(&file, "user.late", b"value", XattrFlags::empty()).unwrap();
    let mut value = [0; 10];
    assert_eq!(rustix::fs::fgetxattr(&file, "user.late", &mut value[..]).unwrap(), 5);
    file.set_len(5).unwrap();
    file.set_len(9000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 9000);
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 50_000).unwrap();
    let mut mapping = Mapping::shared(&file, 50_000).unwrap();
    mapping.store(40_000, b"mapped");
    mapping.sync().unwrap();
    let mut tail = [0; 6];
    file.read_exact_at(&mut tail, 40_000).unwrap();
    assert_eq!(&tail, b"mapped");
    // Also without any content descriptor of ours: by an O_PATH descriptor.
    let reopened = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    assert_eq!(reopened.metadata().unwrap().len(), 50_000);
}

/// Attributes of an unlinked file that is referenced but not open for content.
#[test]
fn unlinked_files_answer_to_path_descriptors() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    for kind in ["file", "directory", "fifo", "symlink"] {
        let path = mount.join(kind);
        match kind {
            "file" => fs::write(&path, b"content").unwrap(),
            "directory" => fs::create_dir(&path).unwrap(),
            "fifo" => mkfifoat(CWD, &path, Mode::RUSR).unwrap(),
            _ => symlink("target", &path).unwrap(),
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let handle = rustix::fs::open(&path, flags, Mode::empty()).unwrap();
        let before = rustix::fs::fstat(&handle).unwrap();
        if kind == "directory" {
            fs::remove_dir(&path).unwrap()
        } else {
            fs::remove_file(&path).unwrap()
        }
        let after = rustix::fs::fstat(&handle).unwrap();
        assert_eq!((after.st_ino, after.st_nlink), (before.st_ino, 0), "{kind}");
        assert!(kind == "directory" || after.st_size == before.st_size, "{kind}");
        let proc = format!("/proc/self/fd/{}", handle.as_raw_fd());
        if kind != "symlink" {
            fs::set_permissions(&proc, fs::Permissions::from_mode(0o700)).unwrap();
            assert_eq!(rustix::fs::fstat(&handle).unwrap().st_mode & 0o777, 0o700, "{kind}");
        }
        if kind == "file" {
            assert_eq!(fs::read(&proc).unwrap(), b"content");
        }
    }
}

#[test]
fn unlinked_files_give_their_space_back() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let before = walk(&volume.cipher).len();
    let mut files = Vec::new();
    for index in 0..20 {
        let path = mount.join(index.to_string());
        let mut file = File::create(&path).unwrap();
        file.write_all(&[1; 10_000]).unwrap();
        fs::remove_file(&path).unwrap();
        files.push(file);
    }
    drop(files);
    assert_eq!(names(&mount.path).len(), 0);
    // RELEASE and FORGET are asynchronous.
    eventually("the backing objects go", || walk(&volume.cipher).len() == before);
    mount.unmount();
    assert_eq!(walk(&volume.cipher).len(), before);
}

#[test]
fn a_removed_working_directory() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    fs::create_dir(mount.join("d")).unwrap();
    let directory = File::open(mount.join("d")).unwrap();
    fs::remove_dir(mount.join("d")).unwrap();
    assert_eq!(directory.metadata().unwrap().nlink(), 0);
    let flags = OFlags::CREATE | OFlags::WRONLY;
    assert_errno(rustix::fs::openat(&directory, "x", flags, Mode::RUSR), libc::ENOENT);
    assert_errno(rustix::fs::mkdirat(&directory, "x", Mode::RWXU), libc::ENOENT);
    let listed = rustix::fs::Dir::read_from(&directory).map(|dir| dir.flatten().count()).unwrap_or(0);
    assert!(listed <= 2, "nothing but . and ..");
    // A new directory of that name is another one.
    fs::create_dir(mount.join("d")).unwrap();
    assert_ne!(fs::metadata(mount.join("d")).unwrap().ino(), directory.metadata().unwrap().ino());
}

#[test]
fn fifos_and_sockets_work() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let fifo = mount.join("fifo");
    mkfifoat(CWD, &fifo, Mode::RUSR | Mode::WUSR).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| fs::write(&fifo, b"through the fifo").unwrap());
        assert_eq!(fs::read(&fifo).unwrap(), b"through the fifo");
    });
    let directory = File::open(&mount.path).unwrap();
    // A socket path may have 107 bytes: reach it through the descriptor.
    let socket = format!("/proc/self/fd/{}/sock", directory.as_raw_fd());
    let listener = UnixListener::bind(&socket).unwrap();
    UnixStream::connect(&socket).unwrap().write_all(b"through the socket").unwrap();
    let mut text = String::new();
    listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
    assert_eq!(text, "through the socket");
}

#[test]
fn device_nodes_keep_their_numbers() {
    needs!(have_fuse, have_root);
    let volume = Volume::new();
    let mount = volume.mount();
    let make = |name: &str, kind, major, minor| {
        let device = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(CWD, mount.join(name), kind, Mode::RUSR | Mode::WUSR, device).unwrap();
    };
    use rustix::fs::FileType;
    make("null", FileType::CharacterDevice, 1, 3);
    make("big", FileType::BlockDevice, 259, 70_000);
    // mknod of a regular file makes one.
    rustix::fs::mknodat(CWD, mount.join("file"), FileType::RegularFile, Mode::RUSR | Mode::WUSR, 0).unwrap();
    fs::write(mount.join("file"), b"content").unwrap();
    mount.unmount();
    let mount = volume.mount();
    let number = |name: &str| fs::symlink_metadata(mount.join(name)).unwrap().rdev();
    assert_eq!(number("null"), rustix::fs::makedev(1, 3));
    assert_eq!(number("big"), rustix::fs::makedev(259, 70_000));
    assert_file(&mount.join("file"), b"content");
}

/// The loop that editors and package managers run: temporary file, fsync, rename, fsync of the directory.
#[test]
fn replace_loop_keeps_one_file() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let objects = walk(&volume.cipher).len();
    for round in 0..100_u64 {
        let temporary = mount.join(format!(".tmp{round}"));
        let mut file = File::create_new(&temporary).unwrap();
        file.write_all(&pattern(round, 5_000)).unwrap();
        file.sync_all().unwrap();
        fs::rename(&temporary, mount.join("file")).unwrap();
        File::open(&mount.path).unwrap().sync_all().unwrap();
    }
    assert_file(&mount.join("file"), &pattern(99, 5_000));
    let _: &Path = &mount.path;
    eventually("old versions go", || walk(&volume.cipher).len() == objects + 1);
}
