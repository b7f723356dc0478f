//! Locks: flock, POSIX record locks and OFD locks, as the kernel keeps them for one host.

use std::fs::{self, File};

use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use super::content::read_write;
use crate::common::sys::{self, LockOwner, query_lock, record_lock};
use crate::common::*;
use crate::needs;

fn file(mount: &Mount) -> std::path::PathBuf {
    let path = mount.join("file");
    fs::write(&path, [0; 1000]).unwrap();
    path
}
/// Whether another process could write-lock the whole file: 0, or the errno of its attempt.
fn other_process_locks(path: &Path) -> u8 {
    let file = read_write(path);
    sys::in_child(|| match record_lock(&file, LockOwner::Process, libc::F_WRLCK, 0, 0) {
        Ok(()) => 0,
        Err(_) => sys::last_errno(),
    })
}

#[test]
fn flock_excludes_other_handles() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = file(&mount);
    let (one, two) = (File::open(&path).unwrap(), File::open(&path).unwrap());
    flock(&one, FlockOperation::LockShared).unwrap();
    flock(&two, FlockOperation::NonBlockingLockShared).unwrap();
    assert_errno(flock(&two, FlockOperation::NonBlockingLockExclusive), libc::EWOULDBLOCK);
    drop(one);
    // A child that another test forked holds a copy of each descriptor until it execs.
    eventually("the lock goes with its owner", || flock(&two, FlockOperation::NonBlockingLockExclusive).is_ok());
    // Waiting for a lock ends when its owner closes.
    let waiter = std::thread::spawn({
        let path = path.clone();
        move || flock(File::open(path).unwrap(), FlockOperation::LockExclusive)
    });
    std::thread::sleep(Duration::from_millis(50));
    assert!(!waiter.is_finished());
    drop(two);
    waiter.join().unwrap().unwrap();
}

#[test]
fn record_locks_exclude_other_processes() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = file(&mount);
    let ours = read_write(&path);
    record_lock(&ours, LockOwner::Process, libc::F_WRLCK, 100, 50).unwrap();
    let theirs = read_write(&path);
    let parent = std::process::id() as i32;
    let status = sys::in_child(|| {
        let busy = |start, len| record_lock(&theirs, LockOwner::Process, libc::F_WRLCK, start, len).is_err();
        let Ok((kind, owner)) = query_lock(&theirs, LockOwner::Process, 0, 0) else { return 9 };
        if kind != libc::F_WRLCK || owner != parent {
            return 1;
        }
        if !busy(0, 0) || !busy(149, 1) || !busy(100, 1) {
            return 2;
        }
        if busy(0, 100) || busy(150, 0) {
            return 3;
        }
        0
    });
    assert_eq!(status, 0);
    record_lock(&ours, LockOwner::Process, libc::F_UNLCK, 0, 0).unwrap();
    assert_eq!(other_process_locks(&path), 0);
    // Closing any descriptor of the process drops them all, as POSIX says.
    record_lock(&ours, LockOwner::Process, libc::F_WRLCK, 0, 0).unwrap();
    assert_ne!(sys::in_child(|| record_lock(&theirs, LockOwner::Process, libc::F_WRLCK, 0, 0).is_ok().into()), 1);
    drop(File::open(&path).unwrap());
    assert_eq!(other_process_locks(&path), 0);
}

#[test]
fn ofd_locks_exclude_other_handles() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = file(&mount);
    let (one, two) = (read_write(&path), read_write(&path));
    record_lock(&one, LockOwner::Description, libc::F_WRLCK, 0, 10).unwrap();
    assert_errno(record_lock(&two, LockOwner::Description, libc::F_RDLCK, 5, 1), libc::EAGAIN);
    record_lock(&two, LockOwner::Description, libc::F_WRLCK, 10, 10).unwrap();
    assert_eq!(query_lock(&two, LockOwner::Description, 0, 5).unwrap(), (libc::F_WRLCK, -1));
    // Unlike a process's locks they survive the close of another handle.
    drop(File::open(&path).unwrap());
    assert_errno(record_lock(&two, LockOwner::Description, libc::F_RDLCK, 5, 1), libc::EAGAIN);
    drop(one);
    eventually("the lock goes with its owner", || {
        record_lock(&two, LockOwner::Description, libc::F_WRLCK, 0, 10).is_ok()
    });
}

#[test]
fn locks_need_no_name() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = file(&mount);
    let (one, two) = (read_write(&path), read_write(&path));
    fs::remove_file(&path).unwrap();
    flock(&one, FlockOperation::NonBlockingLockExclusive).unwrap();
    assert_errno(flock(&two, FlockOperation::NonBlockingLockShared), libc::EWOULDBLOCK);
    record_lock(&one, LockOwner::Description, libc::F_WRLCK, 0, 0).unwrap();
    assert_errno(record_lock(&two, LockOwner::Description, libc::F_RDLCK, 0, 0), libc::EAGAIN);
}

/// Each kind of lock is its own: trap 15 (fuser does not tell flock and fcntl apart) must not show.
pub fn flock_and_record_locks_do_not_meet(mount: &Mount) {
    let path = file(mount);
    let (one, two) = (read_write(&path), read_write(&path));
    flock(&one, FlockOperation::NonBlockingLockExclusive).unwrap();
    record_lock(&two, LockOwner::Description, libc::F_WRLCK, 0, 0).unwrap();
    assert_eq!(other_process_locks(&path), libc::EAGAIN as u8, "OFD and POSIX locks do meet");
    record_lock(&two, LockOwner::Description, libc::F_UNLCK, 0, 0).unwrap();
    assert_eq!(other_process_locks(&path), 0, "a POSIX lock does not see the flock");
    let three = File::open(&path).unwrap();
    assert_errno(flock(&three, FlockOperation::NonBlockingLockShared), libc::EWOULDBLOCK);
}

/// A lock file as package managers and databases use it, from another program.
#[test]
fn flock_command() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = file(&mount);
    let held = File::open(&path).unwrap();
    flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
    let attempt = || std::process::Command::new("flock").arg("-n").arg(&path).arg("true").status().unwrap();
    assert_eq!(attempt().code(), Some(1));
    drop(held);
    eventually("the lock is free", || attempt().success());
}
