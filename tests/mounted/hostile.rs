//! People who mean harm: local users on a mount that is open to them, and whoever writes the CIPHERDIR under it. Nothing is
//! followed, nothing hangs, nobody gets rights that he does not have.

use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, FileType, Mode, RenameFlags, makedev, mkfifoat, mknodat, renameat_with};

use super::metadata::chmod;
use crate::common::*;
use crate::needs;

/// What must never be served.
const OUTSIDE: &[u8] = b"never to be served";

/// A mount open to all users, with a directory that everybody may write to.
fn open_mount(volume: &Volume, options: &[&str]) -> (Mount, PathBuf) {
    let mount = volume.mount_with(options);
    chmod(&mount.path, 0o755);
    let shared = mount.join("shared");
    fs::create_dir_all(&shared).unwrap();
    chmod(&shared, 0o777);
    (mount, shared)
}

fn device(path: &Path, minor: u32) {
    mknodat(CWD, path, FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(1, minor)).unwrap();
}

#[test]
fn another_user_neither_traces_the_daemon_nor_reads_its_proc() {
    needs!(have_mount, have_root);
    let volume = Volume::new();
    let (mount, shared) = open_mount(&volume, &[]);
    let pid = mount.pid();
    ALICE.run(|| {
        // Everybody may learn the number; nobody gets further.
        assert_errno(sys::trace(pid), libc::EPERM);
        for name in ["mem", "environ", "maps", "smaps", "pagemap", "auxv", "stack", "syscall", "io", "personality"] {
            let read = File::open(format!("/proc/{pid}/{name}")).and_then(|mut file| file.read(&mut [0; 64]));
            assert!(matches!(errno(read), libc::EACCES | libc::EPERM), "/proc/{pid}/{name}");
        }
        for name in ["fd", "fdinfo", "map_files", "task/1/fd"] {
            assert!(fs::read_dir(format!("/proc/{pid}/{name}")).is_err(), "/proc/{pid}/{name}");
        }
        for name in ["exe", "cwd", "root"] {
            assert_errno(fs::read_link(format!("/proc/{pid}/{name}")), libc::EACCES);
        }
        let own = rustix::process::Pid::from_raw(pid as i32).unwrap();
        assert_errno(rustix::process::kill_process(own, rustix::process::Signal::TERM), libc::EPERM);
        fs::write(shared.join("file"), b"still served").unwrap();
    });
    assert_file(&shared.join("file"), b"still served");
}

#[test]
fn the_cipherdir_and_the_commit_are_not_for_others() {
    needs!(have_mount, have_root);
    let volume = Volume::new();
    let (mount, shared) = open_mount(&volume, &[]);
    fs::write(shared.join("file"), b"content").unwrap();
    ALICE.run(|| {
        assert_errno(fs::read_dir(&volume.cipher), libc::EACCES);
        assert_errno(fs::read(volume.cipher.join("envelopefs.toml")), libc::EACCES);
        let set = rustix::fs::setxattr(&mount.path, "user.envelopefs.commit", b"1", rustix::fs::XattrFlags::empty());
        assert!(matches!(errno(set), libc::EPERM | libc::EACCES));
    });
}

#[test]
fn devices_and_set_id_programs_give_nothing() {
    needs!(have_mount, have_root);
    let volume = Volume::new();
    let (_mount, shared) = open_mount(&volume, &[]);
    ALICE.run(|| {
        let made = mknodat(CWD, shared.join("mine"), FileType::CharacterDevice, Mode::RUSR, makedev(1, 5));
        assert_errno(made, libc::EPERM);
    });
    device(&shared.join("zero"), 5);
    ALICE.run(|| assert_errno(File::open(shared.join("zero")), libc::EACCES));
    // The kernel ignores the bits (nosuid), whoever has put them there.
    let program = shared.join("id");
    fs::copy("/usr/bin/id", &program).unwrap();
    chown(&program, Some(0), Some(0)).unwrap();
    chmod(&program, 0o6755);
    let output = finish(ALICE.command(&program).arg("-u"));
    assert_eq!(text(&output).trim(), ALICE.uid.to_string());
    // A user's own set-id file keeps no bits through another's write.
    let bobs = shared.join("bobs");
    BOB.run(|| {
        fs::write(&bobs, b"x").unwrap();
        fs::set_permissions(&bobs, fs::Permissions::from_mode(0o4777)).unwrap();
    });
    ALICE.run(|| fs::write(&bobs, b"changed").unwrap());
    assert_eq!(fs::metadata(&bobs).unwrap().mode() & 0o6000, 0);
}

/// Exchanges two entries as fast as it can until dropped.
struct Swapping<'a> {
    stop: &'a AtomicBool,
}

impl Drop for Swapping<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

fn swap_until(stop: &AtomicBool, a: &Path, b: &Path) {
    while !stop.load(Ordering::Acquire) {
        let _ = renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE);
    }
}

/// A user exchanges his directory and a link to a place of root's while root works below the name. The daemon resolves no
/// links, so whatever root's own path walk decides, its object is where the kernel said, and never both.
#[test]
fn a_user_s_link_race_moves_nobody_s_files() {
    needs!(have_mount, have_root);
    let volume = Volume::new();
    let (mount, shared) = open_mount(&volume, &[]);
    let target = mount.join("private");
    fs::create_dir(&target).unwrap();
    chmod(&target, 0o700);
    ALICE.run(|| {
        fs::create_dir(shared.join("d")).unwrap();
        symlink(&target, shared.join("l")).unwrap();
    });
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let swapping = Swapping { stop: &stop };
        let (shared, stop) = (&shared, &stop);
        scope.spawn(move || ALICE.run(|| swap_until(stop, &shared.join("d"), &shared.join("l"))));
        // Through a directory that was opened without following links, everything stays in the user's own directory.
        for round in 0..300 {
            let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC;
            let Ok(directory) = rustix::fs::open(shared.join("d"), flags, Mode::empty()) else { continue };
            let name = format!("file {round}");
            let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::EXCL | rustix::fs::OFlags::WRONLY;
            rustix::fs::openat(&directory, &name, flags, Mode::RUSR).unwrap();
            assert!(rustix::fs::statat(&directory, &name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).is_ok());
        }
        // The user himself is never let into the private directory.
        ALICE.run(|| {
            for _ in 0..300 {
                assert!(fs::read_dir(shared.join("d").join(".").join("x")).is_err());
                assert!(fs::write(target.join("planted"), b"x").is_err());
            }
        });
        drop(swapping);
    });
    assert_eq!(names(&target), Vec::<std::ffi::OsString>::new());
}

/// The backing directory of a mounted one is exchanged with a link to a place outside, again and again, under work.
#[test]
fn a_backing_directory_swapped_for_a_link_leads_nowhere() {
    needs!(have_mount, have_root);
    let volume = Volume::new();
    // Nothing is kept by the kernel, so that every look goes below.
    let mount = volume.mount_with(&["metadata_timeout=0"]);
    let outside = scratch();
    fs::write(outside.path().join("secret"), OUTSIDE).unwrap();
    fs::create_dir(mount.join("d")).unwrap();
    fs::write(mount.join("d").join("inside"), b"inside").unwrap();
    let backing = volume.backing_of(fs::metadata(mount.join("d")).unwrap().ino());
    let link = backing.with_file_name("link");
    symlink(outside.path(), &link).unwrap();
    // What a listing shows of the outside would be encoded names; take away every way by name too.
    for entry in fs::read_dir(&backing).unwrap() {
        let entry = entry.unwrap();
        let at = outside.path().join(entry.file_name());
        if entry.file_type().unwrap().is_file() {
            fs::write(at, OUTSIDE).unwrap();
        } else {
            symlink(fs::read_link(entry.path()).unwrap(), at).unwrap();
        }
    }
    let before = names(outside.path());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let swapping = Swapping { stop: &stop };
        let (stop, backing, link) = (&stop, &backing, &link);
        scope.spawn(move || swap_until(stop, backing, link));
        for round in 0..500 {
            if let Ok(content) = fs::read(mount.join("d").join("inside")) {
                assert_eq!(content, b"inside");
            }
            let _ = fs::write(mount.join("d").join(format!("new {round}")), b"new");
            let _ = fs::create_dir(mount.join("d").join(format!("dir {round}")));
            let _ = fs::remove_file(mount.join("d").join(format!("new {round}")));
        }
        drop(swapping);
    });
    assert_eq!(names(outside.path()), before, "something was made or removed outside");
    assert_file(&outside.path().join("secret"), OUTSIDE);
}

/// Everything that is not what it should be, at each place of a CIPHERDIR that the program looks at.
#[test]
fn special_objects_in_a_cipherdir_are_refused_at_once() {
    needs!(have_mount, have_root);
    let outside = scratch();
    fs::write(outside.path().join("shadow"), OUTSIDE).unwrap();
    for place in ["envelopefs.toml", "tree", "overflow", "tree/.envelopefs.dir", "companion", "overflow object"] {
        for kind in ["fifo", "endless device", "link", "loop", "directory", "file"] {
            let volume = Volume::new();
            let mount = volume.mount();
            fs::write(mount.join("n".repeat(255)), b"long").unwrap();
            symlink("t".repeat(3000), mount.join("target")).unwrap();
            mount.unmount();
            let path = at(&volume, place);
            remove(&path);
            match kind {
                "fifo" => mkfifoat(CWD, &path, Mode::from_raw_mode(0o666)).unwrap(),
                "endless device" => device(&path, 5),
                "link" => symlink(outside.path().join("shadow"), &path).unwrap(),
                "loop" => symlink(path.file_name().unwrap(), &path).unwrap(),
                "directory" => fs::create_dir(&path).unwrap(),
                _ => fs::write(&path, OUTSIDE).unwrap(),
            }
            let what = format!("{kind} as {place}");
            for word in ["info", "export"] {
                let to = volume.scratch().join("exported");
                let mut arguments = vec![word.into(), volume.cipher.clone().into_os_string()];
                if word == "export" {
                    arguments.push(to.clone().into());
                }
                // Any exit code but a hang, a crash, or somebody else's content.
                let output = volume.run(&arguments);
                assert!(output.status.code().is_some_and(|code| code != 101), "{what}: {word}: {}", text(&output));
                assert!(!text(&output).contains(std::str::from_utf8(OUTSIDE).unwrap()), "{what}: {word}");
                assert!(to.symlink_metadata().is_err() || !serves_outside(&to), "{what}: {word}");
            }
            let output = volume.run(["mount".as_ref(), volume.cipher.as_os_str(), volume.mountpoint.as_os_str()]);
            assert!(output.status.code().is_some_and(|code| code != 101), "{what}: {}", text(&output));
            if output.status.success() {
                assert!(!serves_outside(&volume.mountpoint), "{what}");
                volume.umount();
            }
        }
    }
}

fn at(volume: &Volume, place: &str) -> PathBuf {
    let find = |directory: &str, fits: &dyn Fn(&str) -> bool| {
        let all = fs::read_dir(volume.cipher.join(directory)).unwrap().map(|entry| entry.unwrap());
        all.map(|entry| entry.path()).find(|path| fits(&path.file_name().unwrap().to_string_lossy())).unwrap()
    };
    match place {
        "companion" => find("tree", &|name| name.ends_with(".name")),
        "overflow object" => find("overflow", &|_| true),
        other => volume.cipher.join(other),
    }
}

fn remove(path: &Path) {
    if path.symlink_metadata().unwrap().is_dir() {
        fs::remove_dir_all(path).unwrap();
    } else {
        fs::remove_file(path).unwrap();
    }
}

/// Whether any file or link below says what must never be served. Opens nothing that would wait.
fn serves_outside(directory: &Path) -> bool {
    let needle = OUTSIDE;
    walk(directory).iter().any(|path| {
        let Ok(meta) = fs::symlink_metadata(path) else { return false };
        if meta.is_symlink() {
            return fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains("shadow"));
        }
        if !meta.is_file() {
            return false;
        }
        let mut content = Vec::new();
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let read = file.and_then(|file| file.take(1 << 16).read_to_end(&mut content));
        read.is_ok() && content.windows(needle.len()).any(|window| window == needle)
    })
}

/// A directory that contains itself by a bind mount: a listing of everything ends.
#[test]
fn a_loop_of_directories_below_ends() {
    needs!(have_mount, have_root);
    let volume = Volume::new();
    let mount = volume.mount();
    fs::create_dir_all(mount.join("a/b")).unwrap();
    fs::write(mount.join("a/file"), b"content").unwrap();
    let inner = fs::metadata(mount.join("a/b")).unwrap().ino();
    mount.unmount();
    let inner = volume.backing_of(inner);
    let outer = inner.parent().unwrap().to_owned();
    rustix::mount::mount_bind(&outer, &inner).unwrap();
    let ended = std::panic::catch_unwind(|| {
        let mount = volume.mount();
        let output = finish(std::process::Command::new("find").arg(&mount.path));
        assert!(text(&output).lines().count() < 100, "{}", text(&output));
        assert_file(&mount.join("a/file"), b"content");
        let exported =
            volume.run(["export".as_ref(), volume.cipher.as_os_str(), volume.scratch().join("out").as_os_str()]);
        assert!(exported.status.code().is_some_and(|code| code != 101), "{}", text(&exported));
        mount.unmount();
    });
    rustix::mount::unmount(&inner, rustix::mount::UnmountFlags::DETACH).unwrap();
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}
