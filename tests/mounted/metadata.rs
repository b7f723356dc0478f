//! Attributes: modes, owners, times, sizes, link counts, inode numbers, statfs, and change notification.

use std::fs::{self, File};
use std::io::Write as _;
use std::mem::MaybeUninit;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, inotify, utimensat};

use super::content::{create, read_write};
use crate::common::*;
use crate::needs;

pub fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}
pub fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}
pub fn set_times(path: &Path, atime: (i64, i64), mtime: (i64, i64)) {
    let spec = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
    let times = Timestamps { last_access: spec(atime), last_modification: spec(mtime) };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}
pub fn mtime(path: &Path) -> (i64, i64) {
    let metadata = fs::symlink_metadata(path).unwrap();
    (metadata.mtime(), metadata.mtime_nsec())
}
pub fn atime(path: &Path) -> (i64, i64) {
    let metadata = fs::symlink_metadata(path).unwrap();
    (metadata.atime(), metadata.atime_nsec())
}

#[test]
fn every_mode_bit() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let (file, directory) = (mount.join("file"), mount.join("directory"));
    fs::write(&file, b"content").unwrap();
    fs::create_dir(&directory).unwrap();
    let modes: Vec<u32> =
        (0..12).map(|bit| 1 << bit).chain([0, 0o777, 0o644, 0o7777, 0o4711, 0o2755, 0o1777]).collect();
    for &wanted in &modes {
        chmod(&file, wanted);
        chmod(&directory, wanted);
        assert_eq!((mode(&file), mode(&directory)), (wanted, wanted), "{wanted:o}");
    }
    chmod(&file, 0o4751);
    chmod(&directory, 0o3751);
    mount.unmount();
    let mount = volume.mount();
    assert_eq!((mode(&mount.join("file")), mode(&mount.join("directory"))), (0o4751, 0o3751));
}

#[test]
fn creation_modes_and_umask() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    for (index, (umask, wanted)) in
        [(0o022, 0o755), (0, 0o777), (0o077, 0o700), (0o777, 0), (0o027, 0o750)].into_iter().enumerate()
    {
        with_umask(umask, || {
            let at = |kind: &str| mount.join(format!("{kind}{index}"));
            rustix::fs::mkdir(at("d"), rustix::fs::Mode::from_raw_mode(0o777)).unwrap();
            let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::RDWR;
            rustix::fs::open(at("f"), flags, rustix::fs::Mode::from_raw_mode(0o777)).unwrap();
            rustix::fs::mkfifoat(CWD, at("p"), rustix::fs::Mode::from_raw_mode(0o777)).unwrap();
            for kind in ["d", "f", "p"] {
                assert_eq!(mode(&at(kind)), wanted, "{kind} under umask {umask:o}");
            }
        });
    }
    // A directory of any mode is made whole, also one that its owner could not write.
    with_umask(0, || {
        for wanted in [0, 0o555, 0o111, 0o1777, 0o2775] {
            let path = mount.join(format!("mode{wanted:o}"));
            rustix::fs::mkdir(&path, rustix::fs::Mode::from_raw_mode(wanted)).unwrap();
            // mkdir(2) leaves the set-id bits to the kernel's own rules.
            assert_eq!(mode(&path) & 0o1777, wanted & 0o1777);
        }
    });
}

#[test]
fn times_to_the_nanosecond_and_before_1970() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    fs::write(mount.join("file"), b"content").unwrap();
    fs::create_dir(mount.join("directory")).unwrap();
    std::os::unix::fs::symlink("target", mount.join("link")).unwrap();
    rustix::fs::mkfifoat(CWD, mount.join("fifo"), rustix::fs::Mode::RUSR).unwrap();
    let times =
        [(1_700_000_000, 123_456_789), (0, 0), (-1, 500_000_001), (-1_000_000_000, 999_999_999), (7_000_000_000, 1)];
    for name in ["file", "directory", "link", "fifo"] {
        for time in times {
            let atime_wanted = (time.0 + 1000, time.1);
            set_times(&mount.join(name), atime_wanted, time);
            assert_eq!((mtime(&mount.join(name)), atime(&mount.join(name))), (time, atime_wanted), "{name}");
        }
    }
    set_times(&mount.join("file"), (-5, 7), (-3, 1));
    mount.unmount();
    let mount = volume.mount();
    assert_eq!((atime(&mount.join("file")), mtime(&mount.join("file"))), ((-5, 7), (-3, 1)));
    assert_eq!(mtime(&mount.join("link")), (7_000_000_000, 1));
}

#[test]
fn utime_now_and_omit() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.join("file");
    File::create(&path).unwrap();
    set_times(&path, (1000, 1), (2000, 2));
    set_times(&path, (0, UTIME_OMIT), (3000, 3));
    assert_eq!((atime(&path), mtime(&path)), ((1000, 1), (3000, 3)));
    set_times(&path, (4000, 4), (0, UTIME_OMIT));
    assert_eq!((atime(&path), mtime(&path)), ((4000, 4), (3000, 3)));
    set_times(&path, (0, UTIME_NOW), (0, UTIME_NOW));
    assert!(mtime(&path).0 > 1_600_000_000 && atime(&path).0 > 1_600_000_000);
}

#[test]
fn content_changes_move_mtime_and_ctime() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.join("file");
    let file = create(&path);
    file.write_all_at(b"content", 0).unwrap();
    type Change = (&'static str, fn(&File));
    let changes: [Change; 4] = [
        ("write", |file| file.write_all_at(b"x", 3).unwrap()),
        ("append", |mut file| file.write_all(b"xyz").unwrap()),
        ("shrink", |file| file.set_len(2).unwrap()),
        ("grow", |file| file.set_len(9000).unwrap()),
    ];
    for (what, change) in changes {
        set_times(&path, (1000, 0), (1000, 0));
        let before = fs::metadata(&path).unwrap();
        change(&file);
        file.sync_all().unwrap();
        let after = fs::metadata(&path).unwrap();
        assert!(after.mtime() > 1_600_000_000, "{what} must set mtime");
        assert!(
            (after.ctime(), after.ctime_nsec()) >= (before.ctime(), before.ctime_nsec()),
            "{what}: ctime went back"
        );
    }
    // Reading changes neither.
    set_times(&path, (1000, 0), (1000, 0));
    fs::read(&path).unwrap();
    assert_eq!(mtime(&path), (1000, 0));
}

#[test]
fn directory_changes_move_its_mtime() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let directory = mount.join("directory");
    fs::create_dir(&directory).unwrap();
    let at = |name: &str| directory.join(name);
    let changes: [(&str, &dyn Fn()); 6] = [
        ("create", &|| drop(File::create(at("file")).unwrap())),
        ("mkdir", &|| fs::create_dir(at("sub")).unwrap()),
        ("link", &|| fs::hard_link(at("file"), at("link")).unwrap()),
        ("rename", &|| fs::rename(at("link"), at("moved")).unwrap()),
        ("unlink", &|| fs::remove_file(at("moved")).unwrap()),
        ("rmdir", &|| fs::remove_dir(at("sub")).unwrap()),
    ];
    for (what, change) in changes {
        set_times(&directory, (1000, 0), (1000, 0));
        change();
        assert!(mtime(&directory).0 > 1_600_000_000, "{what} must set the directory's mtime");
    }
}

/// utimens after a write that is still in the page cache: the late write must not move the time that was set.
#[test]
fn set_mtime_survives_late_writeback() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount_with(&["commit=1"]);
    for index in 0..30 {
        let path = mount.join(format!("f{index}"));
        let file = create(&path);
        file.write_all_at(&pattern(index, 10_000), 0).unwrap();
        if index % 2 == 0 {
            drop(file);
            set_times(&path, (500, 5), (1000 + index as i64, 77));
        } else {
            set_times(&path, (500, 5), (1000 + index as i64, 77));
            drop(file);
        }
    }
    // Longer than the commit interval, so that the background commit has set sizes and floors.
    std::thread::sleep(Duration::from_secs(3));
    for index in 0..30_i64 {
        assert_eq!(mtime(&mount.join(format!("f{index}"))), (1000 + index, 77), "f{index}");
    }
    mount.unmount();
    let mount = volume.mount();
    for index in 0..30_i64 {
        assert_eq!(mtime(&mount.join(format!("f{index}"))), (1000 + index, 77), "f{index} after remount");
    }
}

/// Commits happen in the background and at unmount; none of them may show in the times of what `tar x` made.
#[test]
fn mtimes_of_an_extracted_tree_survive_commit_and_remount() {
    needs!(have_fuse);
    let volume = Volume::new();
    let source = volume.scratch().join("source");
    fs::create_dir_all(source.join("a/b")).unwrap();
    for index in 0..50_usize {
        let path = source.join(format!("a/b/f{index}"));
        fs::write(&path, pattern(index as u64, index * 501)).unwrap();
        set_times(&path, (2_000, 0), (1_000_000 + index as i64, 123_000_000));
    }
    std::os::unix::fs::symlink("f1", source.join("a/b/link")).unwrap();
    for (index, name) in ["a/b/link", "a/b", "a", ""].iter().enumerate() {
        set_times(&source.join(name), (2_000, 0), (3_000_000 + index as i64, 500_000_000));
    }
    let archive = volume.scratch().join("archive.tar");
    tool(
        "tar",
        &[
            "--format=posix".as_ref(),
            "-cf".as_ref(),
            archive.as_os_str(),
            "-C".as_ref(),
            source.as_os_str(),
            ".".as_ref(),
        ],
    );
    let mount = volume.mount_with(&["commit=1"]);
    tool("tar", &["-xf".as_ref(), archive.as_os_str(), "-C".as_ref(), mount.path.as_os_str()]);
    let compare = |root: &Path, when: &str| {
        for path in walk(&source) {
            let name = path.strip_prefix(&source).unwrap();
            assert_eq!(mtime(&root.join(name)), mtime(&path), "{} {when}", name.display());
        }
    };
    compare(&mount.path, "after tar");
    std::thread::sleep(Duration::from_secs(3));
    compare(&mount.path, "after the commit interval");
    mount.unmount();
    let mount = volume.mount();
    compare(&mount.path, "after a remount");
    tool("diff", &["-r".as_ref(), source.as_os_str(), mount.path.as_os_str()]);
}

#[test]
fn sizes_and_block_counts() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let sizes = [0, 1, 4047, 4048, 4049, 4096, 8096, 8192, 100_000, 1 << 20];
    for size in sizes {
        fs::write(mount.join(size.to_string()), pattern(size as u64, size)).unwrap();
    }
    mount.unmount();
    let mount = volume.mount();
    for size in sizes {
        let metadata = fs::metadata(mount.join(size.to_string())).unwrap();
        assert_eq!(metadata.len(), size as u64);
        assert!(metadata.blocks() * 512 >= size as u64, "st_blocks of {size}: {}", metadata.blocks());
        assert!(metadata.blocks() * 512 <= size as u64 + size as u64 / 16 + 5 * 4096, "st_blocks of {size}");
        assert!(metadata.blksize() >= 512);
    }
}

#[test]
fn link_counts() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let nlink = |name: &str| fs::symlink_metadata(mount.join(name)).unwrap().nlink();
    fs::create_dir(mount.join("d")).unwrap();
    if fs::metadata(&volume.cipher).unwrap().nlink() == 1 {
        // btrfs does not count subdirectories, and neither do we then.
        assert_eq!(nlink("d"), 1);
        return;
    }
    assert_eq!(nlink("d"), 2);
    fs::create_dir(mount.join("d/one")).unwrap();
    fs::create_dir(mount.join("d/two")).unwrap();
    assert_eq!(nlink("d"), 4);
    fs::rename(mount.join("d/two"), mount.join("two")).unwrap();
    assert_eq!((nlink("d"), nlink("two")), (3, 2));
    File::create(mount.join("d/file")).unwrap();
    assert_eq!((nlink("d"), nlink("d/file")), (3, 1));
    fs::hard_link(mount.join("d/file"), mount.join("link")).unwrap();
    assert_eq!((nlink("d/file"), nlink("link")), (2, 2));
    fs::remove_dir(mount.join("d/one")).unwrap();
    assert_eq!(nlink("d"), 2);
}

#[test]
fn inode_numbers_and_types_are_stable_across_remount() {
    needs!(have_fuse, have_root);
    let volume = Volume::new();
    let mount = volume.mount();
    fs::write(mount.join("file"), b"content").unwrap();
    fs::hard_link(mount.join("file"), mount.join("hard")).unwrap();
    fs::create_dir_all(mount.join("d/sub")).unwrap();
    std::os::unix::fs::symlink("file", mount.join("soft")).unwrap();
    rustix::fs::mkfifoat(CWD, mount.join("fifo"), rustix::fs::Mode::RUSR).unwrap();
    drop(std::os::unix::net::UnixListener::bind(mount.join("sock")).unwrap());
    let device = |name: &str, kind| {
        rustix::fs::mknodat(CWD, mount.join(name), kind, rustix::fs::Mode::RUSR, rustix::fs::makedev(1, 3)).unwrap();
    };
    device("char", rustix::fs::FileType::CharacterDevice);
    device("block", rustix::fs::FileType::BlockDevice);
    let list = |root: &Path| {
        let mut all = Vec::new();
        for entry in fs::read_dir(root).unwrap() {
            let entry = entry.unwrap();
            let metadata = fs::symlink_metadata(entry.path()).unwrap();
            // What readdir says must be what stat says.
            assert_eq!(std::os::unix::fs::DirEntryExt::ino(&entry), metadata.ino(), "{:?}", entry.file_name());
            assert_eq!(entry.file_type().unwrap(), metadata.file_type(), "{:?}", entry.file_name());
            all.push((entry.file_name(), metadata.ino(), metadata.file_type(), metadata.rdev()));
        }
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    };
    let (root, sub) = (list(&mount.path), list(&mount.join("d")));
    assert_eq!(root.len(), 8);
    let ino = |name: &str| root.iter().find(|e| e.0 == name).unwrap().1;
    assert_eq!(ino("file"), ino("hard"));
    mount.unmount();
    let mount = volume.mount();
    assert_eq!(list(&mount.path), root);
    assert_eq!(list(&mount.join("d")), sub);
    let char_device = fs::symlink_metadata(mount.join("char")).unwrap().rdev();
    assert_eq!(char_device, rustix::fs::makedev(1, 3));
}

#[test]
fn statfs_tells_the_backing_store() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let (ours, backing) = (rustix::fs::statvfs(&mount.path).unwrap(), rustix::fs::statvfs(&volume.cipher).unwrap());
    assert_eq!(ours.f_namemax, 255);
    // In plaintext bytes: a block of 4096 below holds 4048.
    let (mine, below) = (ours.f_blocks * ours.f_frsize, backing.f_blocks * backing.f_frsize);
    assert!(mine <= below && mine >= below / 100 * 98, "{mine} of {below}");
    assert!(ours.f_bavail <= ours.f_bfree && ours.f_bfree <= ours.f_blocks);
    assert_eq!(ours.f_files, backing.f_files);
    tool("df", &[&mount.path]);
}

#[test]
fn owners_change() {
    needs!(have_fuse, have_root);
    let volume = Volume::new();
    let mount = volume.mount();
    File::create(mount.join("file")).unwrap();
    fs::create_dir(mount.join("directory")).unwrap();
    std::os::unix::fs::symlink("nowhere", mount.join("link")).unwrap();
    for name in ["file", "directory", "link"] {
        std::os::unix::fs::lchown(mount.join(name), Some(1234), Some(5678)).unwrap();
        std::os::unix::fs::lchown(mount.join(name), None, Some(4321)).unwrap();
    }
    mount.unmount();
    let mount = volume.mount();
    for name in ["file", "directory", "link"] {
        let metadata = fs::symlink_metadata(mount.join(name)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (1234, 4321), "{name}");
    }
}

/// The root of the mount is an ordinary directory: its mode, owner and times can be set and stay.
#[test]
fn the_root_has_attributes_of_its_own() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    chmod(&mount.path, 0o751);
    set_times(&mount.path, (100, 0), (200, 0));
    mount.unmount();
    let mount = volume.mount();
    assert_eq!((mode(&mount.path), mtime(&mount.path)), (0o751, (200, 0)));
    if !baseline() {
        assert_eq!(mode(&volume.cipher), 0o700, "the CIPHERDIR itself stays closed");
    }
}

#[test]
fn inotify_reports_changes() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let watcher = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&watcher, &mount.path, inotify::WatchFlags::ALL_EVENTS).unwrap();
    fs::write(mount.join("file"), b"content").unwrap();
    fs::rename(mount.join("file"), mount.join("moved")).unwrap();
    fs::remove_file(mount.join("moved")).unwrap();
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(&watcher, &mut buffer);
    use inotify::ReadFlags;
    let mut missing = vec![
        (ReadFlags::CREATE, "file"),
        (ReadFlags::MODIFY, "file"),
        (ReadFlags::CLOSE_WRITE, "file"),
        (ReadFlags::MOVED_FROM, "file"),
        (ReadFlags::MOVED_TO, "moved"),
        (ReadFlags::DELETE, "moved"),
    ];
    // The close comes when a child that another test forked has let go of its copy, under the name of that moment.
    eventually("all events", || {
        while let Ok(event) = reader.next() {
            let name = event.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let any_name = event.events().contains(ReadFlags::CLOSE_WRITE);
            missing.retain(|(what, wanted)| !(event.events().contains(*what) && (any_name || name == *wanted)));
        }
        missing.is_empty()
    });
}

#[test]
fn atime_set_by_hand_stays() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = volume.mount_with(&["noatime"]);
    let path = mount.join("file");
    fs::write(&path, pattern(1, 10_000)).unwrap();
    set_times(&path, (1000, 1), (2000, 2));
    mount.unmount();
    let mount = volume.mount_with(&["noatime"]);
    fs::read(mount.join("file")).unwrap();
    mount.unmount();
    let mount = volume.mount();
    assert_eq!(atime(&mount.join("file")), (1000, 1));
    read_write(&mount.join("file")).write_all_at(b"x", 0).unwrap();
}
/// The backing store's relatime: an access time older than the modification is moved by a read.
#[test]
fn atime_moves_as_relatime_says() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = volume.mount();
    fs::write(mount.join("file"), pattern(1, 10_000)).unwrap();
    set_times(&mount.join("file"), (1000, 0), (2000, 0));
    mount.unmount();
    let mount = volume.mount();
    fs::read(mount.join("file")).unwrap();
    assert!(atime(&mount.join("file")).0 > 1_600_000_000, "{:?}", atime(&mount.join("file")));
    assert_eq!(mtime(&mount.join("file")), (2000, 0));
}

/// Both times at once, links not followed; five nanoseconds mark times that were set by hand.
pub fn set_times_result(path: &Path, seconds: i64) -> std::io::Result<()> {
    let time = Timespec { tv_sec: seconds, tv_nsec: 5 };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}
