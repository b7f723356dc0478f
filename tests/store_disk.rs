//! What only a real Linux directory can show: users, groups, ACLs, the reserve, and links planted by others.
//! Tests that need root return at once without it.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use envelopefs::store::disk::DiskStore;
use envelopefs::store::{Access, BackingFile, Creator, Kind, Place, SetTime, Store};

const ALICE: Creator = Creator { uid: 4001, gid: 5001, umask: 0o022 };
const BOB: Creator = Creator { uid: 4002, gid: 5002, umask: 0o077 };
const ROOT: Creator = Creator { uid: 0, gid: 0, umask: 0 };

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn scratch() -> (tempfile::TempDir, DiskStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = DiskStore::open(dir.path()).unwrap();
    (dir, store)
}

/// Owner, group and permission bits of what lies at `path`.
fn owned(path: PathBuf) -> (u32, u32, u32) {
    let stat = fs::symlink_metadata(path).unwrap();
    (stat.uid(), stat.gid(), stat.mode() & 0o7777)
}

#[track_caller]
fn refused<T>(result: io::Result<T>, errno: i32) {
    assert_eq!(result.err().expect("an error").raw_os_error(), Some(errno));
}

#[test]
fn objects_belong_to_their_creator() {
    if !is_root() {
        return;
    }
    let (dir, store) = scratch();
    let root = store.root();
    // Nobody but root may pass: the mount has decided already.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    for (who, by) in [("alice", ALICE), ("bob", BOB), ("root", ROOT), ("alice2", ALICE)] {
        let name = |suffix: &str| format!("{who}.{suffix}");
        store.create_file(root, name("f").as_bytes(), 0o666, by).unwrap();
        store.mkdir(root, name("d").as_bytes(), 0o777, by).unwrap();
        store.mknod(root, name("p").as_bytes(), Kind::Fifo, 0o666, 0, by).unwrap();
        store.symlink(root, name("l").as_bytes(), b"t", by).unwrap();
        for (suffix, mode) in
            [("f", 0o666 & !by.umask), ("d", 0o777 & !by.umask), ("p", 0o666 & !by.umask), ("l", 0o777)]
        {
            assert_eq!(owned(dir.path().join(name(suffix))), (by.uid, by.gid, mode), "{}", name(suffix));
        }
    }
    // Acting for a user takes nothing away from the thread: it opens, changes and gives away what it could before.
    store.charge_to(BOB.uid, BOB.gid);
    let entry = Place::Entry { dir: root, name: b"alice.f" };
    store.chmod(entry, 0o000).unwrap();
    store.open_file(entry, Access::ReadWrite).unwrap().write_at(b"x", 0).unwrap();
    store.chown(entry, Some(1), Some(2)).unwrap();
    store.set_times(entry, SetTime::Now, SetTime::Now).unwrap();
    store.set_xattr(entry, b"trusted.a", b"1", 0).unwrap();
    store.unlink(root, b"alice.f").unwrap();
}

#[test]
fn devices_are_made_by_root_with_their_numbers() {
    if !is_root() {
        return;
    }
    let (dir, store) = scratch();
    let rdev = fs::metadata("/dev/null").unwrap().rdev();
    let made = store.mknod(store.root(), b"null", Kind::CharDevice, 0o600, rdev, ALICE);
    if made.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EPERM)) {
        return; // a container without CAP_MKNOD
    }
    made.unwrap();
    let stat = fs::symlink_metadata(dir.path().join("null")).unwrap();
    assert!(stat.file_type().is_char_device() && stat.rdev() == rdev);
    refused(store.open_file(Place::Entry { dir: store.root(), name: b"null" }, Access::Read).map(drop), libc::EIO);
}

#[test]
fn setgid_directories_pass_their_group_on() {
    if !is_root() {
        return;
    }
    let (dir, store) = scratch();
    store.mkdir(store.root(), b"d", 0o777, ROOT).unwrap();
    let shared = store.pin(store.root(), b"d").unwrap();
    store.chown(Place::Pinned(&shared), None, Some(777)).unwrap();
    store.chmod(Place::Pinned(&shared), 0o2777).unwrap();
    store.create_file(&shared, b"f", 0o666, ALICE).unwrap();
    store.mkdir(&shared, b"sub", 0o777, ALICE).unwrap();
    assert_eq!(owned(dir.path().join("d/f")), (ALICE.uid, 777, 0o644));
    assert_eq!(owned(dir.path().join("d/sub")), (ALICE.uid, 777, 0o2755));
}

/// One entry of a POSIX ACL as the kernel stores it: tag, permissions, id.
type AclEntry = (u16, u16, u32);
const NO_ID: u32 = u32::MAX;

/// The value of `system.posix_acl_*` (`struct posix_acl_xattr_header` in linux/posix_acl_xattr.h).
fn acl(entries: &[AclEntry]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(perm.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

#[test]
fn a_default_acl_replaces_the_umask() {
    let (dir, store) = scratch();
    let me =
        Creator { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw(), umask: 0o077 };
    let default = acl(&[(1, 7, NO_ID), (2, 6, 1234), (4, 5, NO_ID), (16, 7, NO_ID), (32, 4, NO_ID)]);
    let pinned = Place::Pinned(store.root());
    match store.set_xattr(pinned, b"system.posix_acl_default", &default, 0) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return, // no ACLs on this file system
        other => other.unwrap(),
    }
    store.create_file(store.root(), b"f", 0o666, me).unwrap();
    store.mkdir(store.root(), b"d", 0o777, me).unwrap();
    assert_eq!(owned(dir.path().join("f")).2, 0o664);
    assert_eq!(owned(dir.path().join("d")).2, 0o774);
    let sub = Place::Entry { dir: store.root(), name: b"d" };
    assert_eq!(store.get_xattr(sub, b"system.posix_acl_default").unwrap(), default);
    store.remove_xattr(pinned, b"system.posix_acl_default").unwrap();
    store.create_file(store.root(), b"g", 0o666, me).unwrap();
    assert_eq!(owned(dir.path().join("g")).2, 0o600);
}

/// A small ext4 file system on a loop device, half of it reserved for root; unmounted at the end.
struct Image {
    dir: tempfile::TempDir,
}

impl Image {
    /// `None` where this machine cannot make or mount one.
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().ok()?;
        let image = dir.path().join("image");
        fs::File::create(&image).and_then(|file| file.set_len(16 << 20)).ok()?;
        fs::create_dir(dir.path().join("mnt")).ok()?;
        let run = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
        let made = run(Command::new("mke2fs").args(["-q", "-t", "ext4", "-m", "50", "-F"]).arg(&image));
        let mounted = made && run(Command::new("mount").arg("-o").arg("loop").arg(&image).arg(dir.path().join("mnt")));
        mounted.then_some(Self { dir })
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).output();
    }
}

/// Writes until the space is used up; the bytes written.
fn fill(file: &impl BackingFile, mut from: u64) -> u64 {
    let chunk = [1; 64 << 10];
    loop {
        match file.write_at(&chunk, from) {
            Ok(()) => from += chunk.len() as u64,
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
                return file.stat().unwrap().size;
            }
        }
    }
}

#[test]
fn the_reserve_is_for_root_alone() {
    if !is_root() {
        return;
    }
    let Some(image) = Image::mount() else {
        eprintln!("skipped: no loop device or mke2fs");
        return;
    };
    let store = DiskStore::open(image.path()).unwrap();
    let file = store.create_file(store.root(), b"f", 0o600, ALICE).unwrap();
    store.charge_to(ALICE.uid, ALICE.gid);
    let user = fill(&file, 0);
    let space = store.statfs().unwrap();
    assert!(space.blocks_available < 64 && space.blocks_free > space.blocks / 4, "{space:?}");
    // The same thread, for root: the reserve is there. And for the user again: it is not.
    store.charge_to(0, 0);
    let half = user + (1 << 20);
    file.write_at(&[2; 1 << 20], user).unwrap();
    store.charge_to(ALICE.uid, ALICE.gid);
    assert!(fill(&file, half) < half + (64 << 10));
    store.charge_to(0, 0);
    assert!(fill(&file, half) > user + (3 << 20));
    drop((file, store));
}

#[test]
fn planted_links_are_never_followed() {
    let (dir, store) = scratch();
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o640)).unwrap();
    let before = fs::metadata(&secret).unwrap();
    symlink(&secret, dir.path().join("file")).unwrap();
    symlink(outside.path(), dir.path().join("dir")).unwrap();

    let root = store.root();
    let file = Place::Entry { dir: root, name: b"file" };
    refused(store.open_file(file, Access::ReadWrite).map(drop), libc::ELOOP);
    refused(store.chmod(file, 0o777), libc::EOPNOTSUPP);
    store.set_times(file, SetTime::Now, SetTime::Now).unwrap();
    refused(store.set_xattr(file, b"user.a", b"1", 0), libc::EPERM);
    refused(store.create_file(root, b"file", 0o600, ALICE).map(drop), libc::EEXIST);
    if is_root() {
        store.chown(file, Some(1), Some(1)).unwrap();
    }
    let link = store.pin(root, b"dir").unwrap();
    refused(store.list(&link), libc::ENOTDIR);
    refused(store.pin(&link, b"secret").map(drop), libc::ENOTDIR);
    refused(store.get_xattr(Place::Entry { dir: &link, name: b"secret" }, b"user.a"), libc::ENOTDIR);
    refused(store.unlink(&link, b"secret"), libc::ENOTDIR);
    refused(DiskStore::open_at(root, b"dir").map(drop), libc::ENOTDIR);

    let after = fs::metadata(&secret).unwrap();
    assert_eq!((before.mode(), before.uid(), before.mtime()), (after.mode(), after.uid(), after.mtime()));
    assert_eq!(before.ctime_nsec(), after.ctime_nsec());
}

#[test]
fn a_store_opens_directories_only() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("tree")).unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    symlink("tree", dir.path().join("link")).unwrap();
    refused(DiskStore::open(dir.path().join("file")).map(drop), libc::ENOTDIR);
    refused(DiskStore::open(dir.path().join("none")).map(drop), libc::ENOENT);
    DiskStore::open(dir.path().join("link")).unwrap();
    let outer = DiskStore::open(dir.path()).unwrap();
    let inner = DiskStore::open_at(outer.root(), b"tree").unwrap();
    assert_eq!(inner.list(inner.root()).unwrap(), []);
    refused(DiskStore::open_at(outer.root(), b"..").map(drop), libc::EINVAL);
    refused(DiskStore::open_at(outer.root(), b"link").map(drop), libc::ENOTDIR);
}

#[test]
fn access_times_stay_where_asked() {
    let (dir, store) = scratch();
    let store = store.noatime(true);
    fs::write(dir.path().join("f"), "content").unwrap();
    let old = SetTime::At(envelopefs::store::Timestamp { sec: 1000, nsec: 0 });
    let place = Place::Entry { dir: store.root(), name: b"f" };
    store.set_times(place, old, old).unwrap();
    let file = store.open_file(place, Access::Read).unwrap();
    assert_eq!(file.read_at(&mut [0; 7], 0).unwrap(), 7);
    assert_eq!(store.stat(place).unwrap().atime.sec, 1000);
}

/// Runs this test binary's `name` as an unprivileged user; it finds its directory in the environment.
fn as_user(name: &str, dir: &Path) {
    let output = Command::new("setpriv")
        .args(["--reuid=4001", "--regid=5001", "--clear-groups"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env("STORE_DISK_DIR", dir)
        .output();
    if let Ok(output) = output {
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }
}

#[test]
fn without_root_identities_are_ours() {
    if let Some(dir) = std::env::var_os("STORE_DISK_DIR") {
        let store = DiskStore::open(Path::new(&dir).join("tree")).unwrap();
        // A root that its owner may not list still has a file system to sync.
        store.chmod(Place::Pinned(store.root()), 0o300).unwrap();
        DiskStore::open(Path::new(&dir).join("tree")).unwrap().sync_fs().unwrap();
        store.chmod(Place::Pinned(store.root()), 0o700).unwrap();
        // Another identity is ignored, its umask is not.
        store.charge_to(0, 0);
        let made = store.create_file(store.root(), b"f", 0o666, BOB).unwrap().stat().unwrap();
        assert_eq!((made.uid, made.gid, made.mode), (4001, 5001, 0o600));
        // Permissions count.
        let place = Place::Entry { dir: store.root(), name: b"f" };
        store.chmod(place, 0o400).unwrap();
        refused(store.open_file(place, Access::ReadWrite).map(drop), libc::EACCES);
        // A foreign file is read without O_NOATIME.
        let shared = DiskStore::open(Path::new(&dir)).unwrap().noatime(true);
        let file = shared.open_file(Place::Entry { dir: shared.root(), name: b"foreign" }, Access::Read).unwrap();
        assert_eq!(file.read_at(&mut [0; 10], 0).unwrap(), 3);
        return;
    }
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(dir.path().join("foreign"), "abc").unwrap();
    fs::create_dir(dir.path().join("tree")).unwrap();
    std::os::unix::fs::chown(dir.path().join("tree"), Some(4001), Some(5001)).unwrap();
    as_user("without_root_identities_are_ours", dir.path());
}
