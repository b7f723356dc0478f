//! Names and directories: lengths, every byte, long names, reserved names, large directories, listings under change.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Dir, Mode, OFlags};

use crate::common::*;
use crate::needs;

fn name(bytes: &[u8]) -> OsString {
    OsString::from_vec(bytes.to_vec())
}
/// The length at which names of the format stop fitting an entry and get a companion is around 170: all are tried.
fn name_of_length(length: usize) -> OsString {
    let mut bytes: Vec<u8> = (0..length).map(|i| b'a' + (i % 26) as u8).collect();
    let digits = length.to_string();
    bytes[..digits.len().min(length)].copy_from_slice(&digits.as_bytes()[..digits.len().min(length)]);
    OsString::from_vec(bytes)
}

#[test]
fn names_of_every_length() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    for length in 1..=255 {
        fs::write(mount.join(name_of_length(length)), length.to_string()).unwrap();
    }
    mount.unmount();
    let mount = volume.mount();
    let want: BTreeSet<_> = (1..=255).map(name_of_length).collect();
    assert_eq!(names(&mount.path).into_iter().collect::<BTreeSet<_>>(), want);
    for length in 1..=255 {
        assert_file(&mount.join(name_of_length(length)), length.to_string().as_bytes());
    }
}

#[test]
fn names_beyond_255_bytes_are_refused() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let long = mount.join("x".repeat(256));
    assert_errno(File::create(&long), libc::ENAMETOOLONG);
    assert_errno(fs::metadata(&long), libc::ENAMETOOLONG);
    assert_errno(fs::create_dir(&long), libc::ENAMETOOLONG);
    assert_errno(std::os::unix::fs::symlink("x", &long), libc::ENAMETOOLONG);
    File::create(mount.join("short")).unwrap();
    assert_errno(fs::rename(mount.join("short"), &long), libc::ENAMETOOLONG);
    assert_errno(fs::hard_link(mount.join("short"), &long), libc::ENAMETOOLONG);
}

#[test]
fn every_byte_in_a_name() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let mut want = BTreeSet::new();
    for byte in (1..=255_u8).filter(|&byte| byte != b'/') {
        for bytes in [vec![b'x', byte], vec![byte, byte, b'y'], vec![byte; 200], vec![byte]] {
            if bytes == b"." {
                continue;
            }
            File::create(mount.join(name(&bytes))).unwrap();
            want.insert(name(&bytes));
        }
    }
    let list = |mount: &Mount| names(&mount.path).into_iter().collect::<BTreeSet<_>>();
    assert_eq!(list(&mount), want);
    mount.unmount();
    let mount = volume.mount();
    assert_eq!(list(&mount), want);
    for wanted in &want {
        fs::remove_file(mount.join(wanted)).unwrap();
    }
    assert_eq!(list(&mount), BTreeSet::new());
}

#[test]
fn names_differ_by_case_and_normalisation() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let all =
        ["file", "FILE", "é", "e\u{301}", "ß", "ss", ".hidden", "..hidden", "...", "trailing ", "trailing", "\u{feff}"];
    for (index, name) in all.iter().enumerate() {
        fs::write(mount.join(name), index.to_string()).unwrap();
    }
    mount.unmount();
    let mount = volume.mount();
    for (index, name) in all.iter().enumerate() {
        assert_file(&mount.join(name), index.to_string().as_bytes());
    }
    assert_eq!(names(&mount.path).len(), all.len());
}

/// With encrypted names nothing is reserved, not even what the format itself uses below.
#[test]
fn names_of_the_format_itself_are_ordinary_names() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let all =
        [".envelopefs.dir", ".envelopefs.tmp.x", ".envelopefs.long.x", ".envelopefs.long.x.name", "envelopefs.toml"];
    for name in all {
        fs::write(mount.join(name), name).unwrap();
    }
    fs::create_dir(mount.join("sub")).unwrap();
    fs::create_dir(mount.join("sub/.envelopefs.dir")).unwrap();
    mount.unmount();
    let mount = volume.mount();
    for name in all {
        assert_file(&mount.join(name), name.as_bytes());
    }
    assert_eq!(names(&mount.join("sub")), [".envelopefs.dir"]);
}

#[test]
fn plaintext_names_mode() {
    needs!(have_mount);
    let volume = Volume::with_options(&["--plaintext-names"]);
    let mount = volume.mount();
    let long = "n".repeat(255);
    fs::create_dir(mount.join("directory")).unwrap();
    fs::write(mount.join("directory/file"), b"some secret content").unwrap();
    File::create(mount.join(&long)).unwrap();
    for reserved in [".envelopefs.dir", ".envelopefs.anything"] {
        assert_errno(File::create(mount.join(reserved)), libc::EPERM);
        assert_errno(fs::create_dir(mount.join(reserved)), libc::EPERM);
        assert_errno(fs::rename(mount.join(&long), mount.join(reserved)), libc::EPERM);
    }
    File::create(mount.join(".envelopefsx")).unwrap();
    assert_eq!(names(&mount.join("directory")), ["file"]);
    mount.unmount();
    let mount = volume.mount();
    assert_file(&mount.join("directory/file"), b"some secret content");
    assert_eq!(names(&mount.path).len(), 3);
    let backing = volume.cipher.join("tree/directory/file");
    let raw = fs::read(backing).expect("names stand as they are in the backing directory");
    assert!(!raw.windows(6).any(|window| window == b"secret"));
}

/// A long name takes a second object below; none may be left when the name is gone.
#[test]
fn long_names_leave_nothing_behind() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let long = |tag: &str| mount.join(format!("{tag}{}", "l".repeat(250)));
    let empty = walk(&volume.cipher).len();
    fs::write(long("a"), b"a").unwrap();
    fs::rename(long("a"), long("b")).unwrap();
    fs::hard_link(long("b"), long("c")).unwrap();
    fs::write(long("d"), b"d").unwrap();
    fs::rename(long("d"), long("c")).unwrap();
    assert_file(&long("c"), b"d");
    assert_file(&long("b"), b"a");
    fs::rename(long("b"), mount.join("short")).unwrap();
    fs::rename(mount.join("short"), long("e")).unwrap();
    fs::create_dir(long("f")).unwrap();
    fs::create_dir(long("f").join("x".repeat(255))).unwrap();
    fs::remove_dir(long("f").join("x".repeat(255))).unwrap();
    let exchange = rustix::fs::RenameFlags::EXCHANGE;
    rustix::fs::renameat_with(rustix::fs::CWD, long("e"), rustix::fs::CWD, long("f"), exchange).unwrap();
    assert_file(&long("f"), b"a");
    fs::remove_dir(long("e")).unwrap();
    fs::remove_file(long("f")).unwrap();
    fs::remove_file(long("c")).unwrap();
    assert_eq!(names(&mount.path).len(), 0);
    assert_eq!(walk(&volume.cipher).len(), empty, "{:?}", walk(&volume.cipher));
}

#[test]
fn deep_trees() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    // Deeper than PATH_MAX allows in one path: step by step from directory descriptors.
    const DEPTH: usize = 60;
    let open = |directory: &rustix::fd::OwnedFd, name: &str| {
        rustix::fs::openat(directory, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
    };
    let level = |depth: usize| format!("{depth:03}{}", "d".repeat(200));
    let mut at = rustix::fs::open(&mount.path, OFlags::RDONLY, Mode::empty()).unwrap();
    for depth in 0..DEPTH {
        rustix::fs::mkdirat(&at, level(depth), Mode::RWXU).unwrap();
        at = open(&at, &level(depth));
    }
    let flags = OFlags::CREATE | OFlags::WRONLY;
    let file = rustix::fs::openat(&at, "bottom", flags, Mode::RUSR | Mode::WUSR).unwrap();
    rustix::io::write(&file, b"deep").unwrap();
    drop((file, at));
    mount.unmount();
    let mount = volume.mount();
    let mut at = rustix::fs::open(&mount.path, OFlags::RDONLY, Mode::empty()).unwrap();
    for depth in 0..DEPTH {
        at = open(&at, &level(depth));
    }
    let file = rustix::fs::openat(&at, "bottom", OFlags::RDONLY, Mode::empty()).unwrap();
    let mut buffer = [0; 10];
    assert_eq!(rustix::io::read(&file, &mut buffer[..]).unwrap(), 4);
    drop((file, at));
    tool("rm", &["-rf".as_ref(), mount.join(level(0)).as_os_str()]);
    assert_eq!(names(&mount.path).len(), 0);
}

/// `ENVELOPEFS_TEST_BIG_DIRECTORY`: how many entries (100 000 in heavy runs).
#[test]
fn big_directory() {
    needs!(have_fuse);
    let count: usize =
        std::env::var("ENVELOPEFS_TEST_BIG_DIRECTORY").map_or(20_000, |text| text.parse().expect("a number"));
    let volume = Volume::new();
    let mount = volume.mount();
    let directory = mount.join("big");
    fs::create_dir(&directory).unwrap();
    for index in 0..count {
        File::create(directory.join(format!("entry {index}"))).unwrap();
    }
    mount.unmount();
    let mount = volume.mount();
    let directory = mount.join("big");
    let listed: BTreeSet<_> = names(&directory).into_iter().collect();
    assert_eq!(listed.len(), count);
    for index in (0..count).step_by(97) {
        assert!(listed.contains(format!("entry {index}").as_str().as_ref() as &std::ffi::OsStr));
        fs::metadata(directory.join(format!("entry {index}"))).unwrap();
    }
    assert_errno(fs::metadata(directory.join("entry x")), libc::ENOENT);
    for index in 0..count {
        fs::remove_file(directory.join(format!("entry {index}"))).unwrap();
    }
    fs::remove_dir(&directory).unwrap();
}

#[test]
fn removing_while_listing_removes_all() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let directory = mount.join("d");
    fs::create_dir(&directory).unwrap();
    for index in 0..3000 {
        File::create(directory.join(index.to_string())).unwrap();
    }
    for entry in fs::read_dir(&directory).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    fs::remove_dir(&directory).unwrap();
}

/// Entries that are there all the time appear exactly once in every listing, whatever comes and goes beside them.
#[test]
fn listing_under_concurrent_change() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let steady: BTreeSet<OsString> = (0..500).map(|index| format!("steady {index}").into()).collect();
    for name in &steady {
        File::create(mount.join(name)).unwrap();
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random::new(1);
            while !done.load(Ordering::Acquire) {
                let name = mount.join(format!("passing {}", random.below(300)));
                match random.below(3) {
                    0 => drop(File::create(&name)),
                    1 => drop(fs::remove_file(&name)),
                    _ => drop(fs::rename(&name, mount.join(format!("passing {}", random.below(300))))),
                }
            }
        });
        for _ in 0..60 {
            let mut seen = BTreeSet::new();
            for name in fs::read_dir(&mount.path).unwrap().map(|entry| entry.unwrap().file_name()) {
                assert!(!name.as_bytes().starts_with(b"steady") || seen.insert(name.clone()), "{name:?} twice");
            }
            assert_eq!(seen, steady);
        }
        done.store(true, Ordering::Release);
    });
}

#[test]
fn rewinding_and_seeking_in_a_directory() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    for index in 0..1000 {
        File::create(mount.join(format!("entry {index}"))).unwrap();
    }
    let open = || rustix::fs::open(&mount.path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let mut directory = Dir::new(open()).unwrap();
    let read = |directory: &mut Dir| {
        let mut all = Vec::new();
        while let Some(entry) = directory.read() {
            let entry = entry.unwrap();
            all.push((entry.file_name().to_owned(), entry.offset()));
        }
        all
    };
    let first = read(&mut directory);
    assert_eq!(first.len(), 1002, "with . and ..");
    directory.rewind();
    assert_eq!(read(&mut directory).len(), 1002);
    // The offset of an entry leads to what followed it.
    let mut again = Dir::new(open()).unwrap();
    again.seek(first[500].1).unwrap();
    assert_eq!(read(&mut again).len(), 501);
    // A rewind shows what came meanwhile.
    File::create(mount.join("late")).unwrap();
    directory.rewind();
    assert_eq!(read(&mut directory).len(), 1003);
}

#[test]
fn dot_and_dotdot() {
    needs!(have_fuse);
    use std::os::unix::fs::MetadataExt as _;
    let volume = Volume::new();
    let mount = volume.mount();
    fs::create_dir_all(mount.join("a/b")).unwrap();
    let ino = |path: PathBuf| fs::metadata(path).unwrap().ino();
    assert_eq!(ino(mount.join("a/b/..")), ino(mount.join("a")));
    assert_eq!(ino(mount.join("a/b/.")), ino(mount.join("a/b")));
    let fd = rustix::fs::open(mount.join("a/b"), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let mut seen = 0;
    for entry in Dir::new(fd).unwrap() {
        let entry = entry.unwrap();
        match entry.file_name().to_bytes() {
            b"." => assert_eq!(entry.ino(), ino(mount.join("a/b"))),
            b".." => assert_eq!(entry.ino(), ino(mount.join("a"))),
            other => panic!("{other:?}"),
        }
        seen += 1;
    }
    assert_eq!(seen, 2);
}

#[test]
fn errors_of_names() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    fs::write(mount.join("file"), b"").unwrap();
    fs::create_dir_all(mount.join("d/full")).unwrap();
    let at = |name: &str| mount.join(name);
    assert_errno(fs::metadata(at("none")), libc::ENOENT);
    assert_errno(fs::metadata(at("none/below")), libc::ENOENT);
    assert_errno(fs::metadata(at("file/below")), libc::ENOTDIR);
    assert_errno(fs::create_dir(at("d")), libc::EEXIST);
    assert_errno(fs::create_dir(at("file")), libc::EEXIST);
    assert_errno(fs::remove_dir(at("d")), libc::ENOTEMPTY);
    assert_errno(fs::remove_dir(at("file")), libc::ENOTDIR);
    assert_errno(fs::remove_file(at("d")), libc::EISDIR);
    assert_errno(fs::remove_file(at("none")), libc::ENOENT);
    assert_errno(fs::read_dir(at("file")), libc::ENOTDIR);
    assert_errno(fs::read_link(at("file")), libc::EINVAL);
    assert_errno(std::os::unix::fs::symlink("x", at("file")), libc::EEXIST);
    assert_errno(fs::hard_link(at("file"), at("d")), libc::EEXIST);
    assert_errno(fs::hard_link(at("none"), at("new")), libc::ENOENT);
}

/// Creating and removing one name from several threads: exactly one wins each time, and nothing is left over.
#[test]
fn racing_creators() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    for round in 0..50 {
        let path: &Path = &mount.join(format!("race {round}"));
        let winners: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(move || File::create_new(path).is_ok())).collect();
            threads.into_iter().map(|thread| usize::from(thread.join().unwrap())).sum()
        });
        assert_eq!(winners, 1);
        let removed: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(move || fs::remove_file(path).is_ok())).collect();
            threads.into_iter().map(|thread| usize::from(thread.join().unwrap())).sum()
        });
        assert_eq!(removed, 1);
    }
    assert_eq!(names(&mount.path).len(), 0);
}
