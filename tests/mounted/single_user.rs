//! A mount by a user without privileges, through fusermount3: no capability helps the daemon here.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Mode, OFlags, mkdir};

use super::metadata::{chmod, mode};
use crate::common::*;
use crate::needs;

/// fusermount3 wants a user that the password file knows.
pub const NOBODY: User = User { uid: 65_534, gid: 65_534, groups: &[], umask: 0o022 };

/// A volume of user nobody's, made and mounted with its ids. Where root runs the tests the command is copied to a place
/// that others can reach.
pub struct Home {
    pub volume: Volume,
    pub binary: PathBuf,
}

impl Home {
    pub fn new() -> Self {
        let device = NOBODY.run(|| OpenOptions::new().read(true).write(true).open("/dev/fuse").map(drop));
        device.expect("/dev/fuse must be open to every user, as udev makes it: chmod 0666 /dev/fuse");
        let volume = Volume::unmade(None);
        let binary = volume.scratch().join("envelopefs");
        fs::copy(crate::common::binary(), &binary).unwrap();
        chmod(&binary, 0o755);
        for path in [volume.scratch(), &volume.config, &volume.mountpoint] {
            chown(path, Some(NOBODY.uid), Some(NOBODY.gid)).unwrap();
        }
        let home = Self { volume, binary };
        home.ok(&["keygen".into(), home.volume.keyfile.clone()]);
        let cmk = PathBuf::from(home.volume.cmk());
        home.ok(&["init".into(), "--cmk".into(), cmk, home.volume.cipher.clone()]);
        home
    }
    pub fn command(&self, arguments: &[PathBuf]) -> Command {
        let mut command = NOBODY.command(&self.binary);
        command.args(arguments).env("ENVELOPEFS_CONFIG_DIR", &self.volume.config).env_remove("HOME");
        command.env("ENVELOPEFS_RUNTIME_DIR", self.volume.runtime());
        command
    }
    fn ok(&self, arguments: &[PathBuf]) {
        let output = finish(&mut self.command(arguments));
        assert!(output.status.success(), "{}", text(&output));
    }
    pub fn mount(&self) -> Mount {
        let (cipher, mountpoint) = (self.volume.cipher.clone(), self.volume.mountpoint.clone());
        let command = self.command(&["mount".into(), "--foreground".into(), cipher, mountpoint.clone()]);
        Mount::wait_until_up(&self.volume, &mountpoint, command)
    }
}
pub fn unmount_by_fusermount(mount: Mount) {
    mount.unmount_with(|path| {
        let status = NOBODY.command("fusermount3").arg("-u").arg(path).status()?;
        if status.success() { Ok(()) } else { Err(std::io::Error::other("fusermount3 -u failed")) }
    });
}

#[test]
fn an_unprivileged_user_mounts_works_and_unmounts() {
    needs!(have_mount, have_root);
    let home = Home::new();
    let mount = home.mount();
    let data = pattern(1, 100_000);
    NOBODY.run(|| {
        fs::create_dir(mount.join("d")).unwrap();
        fs::write(mount.join("d/file"), &data).unwrap();
        symlink("t".repeat(3000), mount.join("d/link")).unwrap();
        fs::write(mount.join("n".repeat(255)), b"long").unwrap();
        rustix::fs::setxattr(mount.join("d"), "user.tag", b"value", rustix::fs::XattrFlags::empty()).unwrap();
        fs::rename(mount.join("d"), mount.join("e")).unwrap();
    });
    unmount_by_fusermount(mount);
    for path in walk(&home.volume.cipher) {
        let metadata = fs::symlink_metadata(&path).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (NOBODY.uid, NOBODY.gid), "{}", path.display());
    }
    let mount = home.mount();
    NOBODY.run(|| {
        assert_file(&mount.join("e/file"), &data);
        assert_eq!(fs::read_link(mount.join("e/link")).unwrap().as_os_str().len(), 3000);
        assert_eq!(super::xattr_acl::get(&mount.join("e"), "user.tag").unwrap(), b"value");
        assert_eq!(names(&mount.path).len(), 2);
    });
    // Nobody else sees anything, root included.
    ALICE.run(|| assert_errno(fs::read_dir(&mount.path), libc::EACCES));
    unmount_by_fusermount(mount);
}

#[test]
fn files_that_their_owner_may_not_open() {
    needs!(have_mount, have_root);
    let home = Home::new();
    let mount = home.mount();
    let at = |name: &str| mount.join(name);
    NOBODY.run(|| {
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::EXCL;
        for raw in [0o400, 0o200, 0] {
            let path = at(&format!("{raw:o}"));
            let file = File::from(rustix::fs::open(&path, flags, Mode::from_raw_mode(raw)).unwrap());
            file.write_all_at(b"content", 0).unwrap();
            file.sync_all().unwrap();
            drop(file);
            // Attributes need no right to the content.
            assert_eq!(fs::metadata(&path).unwrap().len(), 7);
        }
        assert_errno(OpenOptions::new().write(true).open(at("400")), libc::EACCES);
        assert_file(&at("400"), b"content");
        // Below, a block is read before it is written: the mode without read must not be in the way.
        OpenOptions::new().append(true).open(at("200")).unwrap().write_all(b" and more").unwrap();
        assert_errno(File::open(at("200")), libc::EACCES);
    });
    unmount_by_fusermount(mount);
    let mount = home.mount();
    let at = |name: &str| mount.join(name);
    NOBODY.run(|| {
        assert_eq!((mode(&at("400")), mode(&at("200")), mode(&at("0"))), (0o400, 0o200, 0));
        OpenOptions::new().write(true).open(at("200")).unwrap().write_all_at(b"X", 0).unwrap();
        assert_eq!(fs::metadata(at("200")).unwrap().len(), 16);
        for name in ["200", "0"] {
            chmod(&at(name), 0o600);
        }
        assert_file(&at("200"), b"Xontent and more");
        assert_file(&at("0"), b"content");
        assert_file(&at("400"), b"content");
        for name in ["400", "200", "0"] {
            fs::remove_file(at(name)).unwrap();
        }
    });
    unmount_by_fusermount(mount);
}

#[test]
fn directories_that_their_owner_may_not_write() {
    needs!(have_mount, have_root);
    let home = Home::new();
    let mount = home.mount();
    let at = |name: &str| mount.join(name);
    NOBODY.run(|| {
        for raw in [0o555, 0o000] {
            let path = at(&format!("{raw:o}"));
            mkdir(&path, Mode::from_raw_mode(raw)).unwrap();
            assert_eq!(mode(&path), raw);
            assert_errno(File::create(path.join("x")), libc::EACCES);
        }
        fs::create_dir_all(at("tree/sub")).unwrap();
        fs::write(at("tree/file"), b"content").unwrap();
        chmod(&at("tree"), 0o555);
        assert_file(&at("tree/file"), b"content");
        assert_errno(fs::remove_file(at("tree/file")), libc::EACCES);
        fs::remove_dir(at("555")).unwrap();
        // Over an empty directory that is closed altogether.
        fs::create_dir(at("new")).unwrap();
        fs::rename(at("new"), at("0")).unwrap();
        assert_eq!(mode(&at("0")), 0o755);
        fs::remove_dir(at("0")).unwrap();
    });
    unmount_by_fusermount(mount);
    let mount = home.mount();
    NOBODY.run(|| {
        assert_file(&mount.join("tree/file"), b"content");
        assert_eq!(mode(&mount.join("tree")), 0o555);
        assert_eq!(names(&mount.path), ["tree"]);
    });
    unmount_by_fusermount(mount);
}

#[test]
fn a_cipherdir_of_another_user_is_not_opened() {
    needs!(have_mount, have_root);
    let home = Home::new();
    let mut command = ALICE.command(&home.binary);
    command.arg("info").arg(&home.volume.cipher).env("ENVELOPEFS_CONFIG_DIR", &home.volume.config);
    let output = finish(&mut command);
    assert!(!output.status.success(), "{}", text(&output));
    assert!(!text(&output).contains("panicked"));
}

/// Runs every test that needs no root once more, as a user without privileges.
#[test]
fn other_themes_hold_for_an_unprivileged_user() {
    needs!(have_mount, have_root);
    let scratch = scratch();
    let copy = |from: &Path, name: &str| {
        let to = scratch.path().join(name);
        fs::copy(from, &to).unwrap();
        chmod(&to, 0o755);
        to
    };
    let (tests, command) = (copy(&std::env::current_exe().unwrap(), "tests"), copy(&binary(), "envelopefs"));
    let work = scratch.path().join("work");
    fs::create_dir(&work).unwrap();
    chown(&work, Some(NOBODY.uid), Some(NOBODY.gid)).unwrap();
    let mut run = NOBODY.command(tests);
    run.args(["--test-threads=4", "--skip", "big_directory"]).current_dir(&work).env("HOME", &work);
    run.env("ENVELOPEFS_TEST_DIR", &work).env("ENVELOPEFS_TEST_BINARY", command);
    run.env("ENVELOPEFS_TEST_SKIP_ROOT", "1").env("ENVELOPEFS_TEST_SKIP_LOOP", "1");
    let output = finish(&mut run);
    let text = text(&output);
    // Indented, so that nobody takes the inner summary for an outer one.
    let failures = text.find("\nfailures:\n").map_or(String::new(), |at| text[at..].replace('\n', "\n    "));
    assert!(output.status.success(), "{}\n{failures}", output.status);
    assert!(text.contains("test result: ok") && !text.contains(" 0 passed"), "{text}");
}
