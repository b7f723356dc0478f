//! Rename: replacing, NOREPLACE, EXCHANGE, directories, open files, hard links, races.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::content::read_write;
use crate::common::*;
use crate::needs;

pub fn rename_with(from: &Path, to: &Path, flags: RenameFlags) -> rustix::io::Result<()> {
    renameat_with(CWD, from, CWD, to, flags)
}

#[test]
fn rename_replaces() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    fs::write(mount.join("new"), b"new").unwrap();
    fs::write(mount.join("old"), b"old").unwrap();
    fs::rename(mount.join("new"), mount.join("old")).unwrap();
    assert_file(&mount.join("old"), b"new");
    assert!(!mount.join("new").exists());
    mount.unmount();
    let mount = volume.mount();
    assert_file(&mount.join("old"), b"new");
    assert_eq!(names(&mount.path), ["old"]);
}

#[test]
fn a_replaced_open_file_lives_on() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    fs::write(mount.join("new"), b"new").unwrap();
    fs::write(mount.join("old"), b"old content").unwrap();
    let old = read_write(&mount.join("old"));
    let number = old.metadata().unwrap().ino();
    fs::rename(mount.join("new"), mount.join("old")).unwrap();
    let metadata = old.metadata().unwrap();
    assert_eq!((metadata.nlink(), metadata.ino(), metadata.len()), (0, number, 11));
    old.write_all_at(b"OLD", 0).unwrap();
    old.sync_all().unwrap();
    let mut buffer = [0; 11];
    old.read_exact_at(&mut buffer, 0).unwrap();
    assert_eq!(&buffer, b"OLD content");
    assert_file(&mount.join("old"), b"new");
    // Its number is not given to another file while it is open.
    for index in 0..50 {
        fs::write(mount.join(index.to_string()), b"x").unwrap();
        assert_ne!(fs::metadata(mount.join(index.to_string())).unwrap().ino(), number);
    }
}

#[test]
fn an_open_file_follows_its_name() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    fs::create_dir(mount.join("d")).unwrap();
    let mut file = File::create(mount.join("a")).unwrap();
    file.write_all(b"before ").unwrap();
    fs::rename(mount.join("a"), mount.join("d/b")).unwrap();
    file.write_all(b"after").unwrap();
    file.sync_all().unwrap();
    fs::rename(mount.join("d"), mount.join("e")).unwrap();
    file.write_all(b" all").unwrap();
    assert_file(&mount.join("e/b"), b"before after all");
    drop(file);
    mount.unmount();
    let mount = volume.mount();
    assert_file(&mount.join("e/b"), b"before after all");
}

#[test]
fn noreplace() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let (a, b, long) = (mount.join("a"), mount.join("b"), mount.join("l".repeat(255)));
    fs::write(&a, b"a").unwrap();
    fs::write(&b, b"b").unwrap();
    assert_errno(rename_with(&a, &b, RenameFlags::NOREPLACE), libc::EEXIST);
    assert_file(&b, b"b");
    rename_with(&a, &long, RenameFlags::NOREPLACE).unwrap();
    assert_errno(rename_with(&b, &long, RenameFlags::NOREPLACE), libc::EEXIST);
    assert_file(&long, b"a");
}

#[test]
fn exchange() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    fs::create_dir_all(mount.join("d/sub")).unwrap();
    fs::write(mount.join("d/sub/inner"), b"inner").unwrap();
    fs::write(mount.join("a"), b"a").unwrap();
    fs::write(mount.join("d/b"), b"bb").unwrap();
    let exchange = |x: &str, y: &str| rename_with(&mount.join(x), &mount.join(y), RenameFlags::EXCHANGE);
    exchange("a", "d/b").unwrap();
    assert_file(&mount.join("a"), b"bb");
    assert_file(&mount.join("d/b"), b"a");
    // A file against a directory, across directories.
    exchange("a", "d/sub").unwrap();
    assert_file(&mount.join("a/inner"), b"inner");
    assert_file(&mount.join("d/sub"), b"bb");
    assert_errno(exchange("a", "none"), libc::ENOENT);
    assert_errno(exchange("d", "d/b"), libc::EINVAL);
    mount.unmount();
    let mount = volume.mount();
    assert_file(&mount.join("a/inner"), b"inner");
    assert_file(&mount.join("d/sub"), b"bb");
    assert_eq!(names(&mount.path), ["a", "d"]);
}

#[test]
fn directories_replace_empty_directories_only() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let at = |name: &str| mount.join(name);
    fs::create_dir_all(at("from/sub")).unwrap();
    fs::write(at("from/sub/file"), b"content").unwrap();
    fs::create_dir(at("empty")).unwrap();
    fs::create_dir_all(at("full/x")).unwrap();
    fs::write(at("file"), b"").unwrap();
    let before = fs::metadata(at("from")).unwrap().ino();
    assert_errno(fs::rename(at("from"), at("full")), libc::ENOTEMPTY);
    assert_errno(fs::rename(at("from"), at("file")), libc::ENOTDIR);
    assert_errno(fs::rename(at("file"), at("empty")), libc::EISDIR);
    assert_errno(fs::rename(at("from"), at("from/sub/inside")), libc::EINVAL);
    assert_errno(fs::rename(at("from/sub"), at("from")), libc::ENOTEMPTY);
    fs::rename(at("from"), at("empty")).unwrap();
    assert_eq!(fs::metadata(at("empty")).unwrap().ino(), before);
    assert_file(&at("empty/sub/file"), b"content");
    // One that was emptied again counts as empty, whatever long names it once held.
    fs::write(at("full/x").join("n".repeat(255)), b"").unwrap();
    fs::remove_file(at("full/x").join("n".repeat(255))).unwrap();
    fs::remove_dir(at("full/x")).unwrap();
    fs::rename(at("empty"), at("full")).unwrap();
    mount.unmount();
    let mount = volume.mount();
    assert_file(&mount.join("full/sub/file"), b"content");
    assert_eq!(names(&mount.path), ["file", "full"]);
}

#[test]
fn a_moved_directory_keeps_its_tree() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    fs::create_dir_all(mount.join("a/b/c/d")).unwrap();
    fs::create_dir_all(mount.join("x/y")).unwrap();
    fs::write(mount.join("a/b/c/d/file"), b"content").unwrap();
    fs::rename(mount.join("a/b"), mount.join("x/y/b")).unwrap();
    assert_file(&mount.join("x/y/b/c/d/file"), b"content");
    let parent = fs::metadata(mount.join("x/y/b/..")).unwrap().ino();
    assert_eq!(parent, fs::metadata(mount.join("x/y")).unwrap().ino());
    fs::write(mount.join("x/y/b/c/new"), b"new").unwrap();
    mount.unmount();
    let mount = volume.mount();
    assert_file(&mount.join("x/y/b/c/d/file"), b"content");
    assert_file(&mount.join("x/y/b/c/new"), b"new");
    assert_eq!(names(&mount.join("a")).len(), 0);
}

#[test]
fn rename_of_a_file_to_itself_or_its_other_link_changes_nothing() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    fs::write(mount.join("a"), b"content").unwrap();
    fs::hard_link(mount.join("a"), mount.join("b")).unwrap();
    fs::rename(mount.join("a"), mount.join("a")).unwrap();
    fs::rename(mount.join("a"), mount.join("b")).unwrap();
    assert_eq!(names(&mount.path), ["a", "b"]);
    assert_eq!(fs::metadata(mount.join("a")).unwrap().nlink(), 2);
}

#[test]
fn unsupported_rename_flags() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    fs::write(mount.join("a"), b"").unwrap();
    let both = RenameFlags::EXCHANGE | RenameFlags::NOREPLACE;
    assert_errno(rename_with(&mount.join("a"), &mount.join("b"), both), libc::EINVAL);
    if !baseline() {
        assert_errno(rename_with(&mount.join("a"), &mount.join("b"), RenameFlags::WHITEOUT), libc::EINVAL);
    }
}

#[test]
fn replacing_is_atomic_for_readers() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.join("file");
    fs::write(&path, [0; 5000]).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..300 {
                fs::write(mount.join("tmp"), [round as u8; 5000]).unwrap();
                fs::rename(mount.join("tmp"), &path).unwrap();
            }
            done.store(true, Ordering::Release);
        });
        while !done.load(Ordering::Acquire) {
            let got = fs::read(&path).expect("the name is never missing");
            assert!(got.len() == 5000 && got.iter().all(|&byte| byte == got[0]), "a mixture of two files");
        }
    });
}

/// Files deep inside stay reachable by descriptor, whatever happens to the names above them.
#[test]
fn renaming_ancestors_disturbs_nobody_inside() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    fs::create_dir_all(mount.join("one/a/b")).unwrap();
    fs::create_dir(mount.join("two")).unwrap();
    let done = AtomicBool::new(false);
    let inside = File::open(mount.join("one/a/b")).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..200 {
                fs::rename(mount.join("one/a"), mount.join("two/a")).unwrap();
                fs::rename(mount.join("two/a"), mount.join("two/z")).unwrap();
                fs::rename(mount.join("two/z"), mount.join("one/a")).unwrap();
            }
            done.store(true, Ordering::Release);
        });
        let mut round = 0;
        while !done.load(Ordering::Acquire) {
            use rustix::fs::{AtFlags, Mode, OFlags};
            let (name, other) = (format!("f{round}"), format!("g{round}"));
            let flags = OFlags::CREATE | OFlags::RDWR | OFlags::EXCL;
            let file = File::from(rustix::fs::openat(&inside, &*name, flags, Mode::RUSR | Mode::WUSR).unwrap());
            file.write_all_at(name.as_bytes(), 0).unwrap();
            rustix::fs::renameat(&inside, &*name, &inside, &*other).unwrap();
            rustix::fs::statat(&inside, &*other, AtFlags::empty()).unwrap();
            rustix::fs::unlinkat(&inside, &*other, AtFlags::empty()).unwrap();
            round += 1;
        }
    });
    assert_eq!(names(&mount.join("one/a/b")).len(), 0);
}

#[test]
fn racing_renames_lose_no_file() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    for directory in ["a", "b", "c"] {
        fs::create_dir(mount.join(directory)).unwrap();
    }
    for index in 0..20 {
        fs::write(mount.join(format!("a/f{index}")), index.to_string()).unwrap();
    }
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let mount = &mount;
            scope.spawn(move || {
                let mut random = Random::new(seed);
                for _ in 0..300 {
                    let name = format!("f{}", random.below(20));
                    let (from, to) = (random.pick(&["a", "b", "c"]), random.pick(&["a", "b", "c"]));
                    match fs::rename(mount.join(from).join(&name), mount.join(to).join(&name)) {
                        Ok(()) => {}
                        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOENT)),
                    }
                }
            });
        }
    });
    mount.unmount();
    let mount = volume.mount();
    for index in 0..20 {
        let found: Vec<_> =
            ["a", "b", "c"].iter().map(|d| mount.join(format!("{d}/f{index}"))).filter(|path| path.exists()).collect();
        assert_eq!(found.len(), 1, "f{index}: {found:?}");
        assert_file(&found[0], index.to_string().as_bytes());
    }
}
