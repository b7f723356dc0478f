//! The few system calls of the tests that have no safe wrapper: mappings, record locks, a forked child, `FS_IOC` calls.
//! The only unsafe code of the tests; must not know mounts or volumes.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// A file mapping of whole pages, unmapped when dropped.
pub struct Mapping {
    address: *mut libc::c_void,
    len: usize,
}

// SAFETY: the mapping is plain memory owned by this value; callers synchronise as for any `&mut [u8]`.
unsafe impl Send for Mapping {}

impl Mapping {
    pub fn new(file: impl AsFd, offset: u64, len: usize, protection: i32, flags: i32) -> io::Result<Self> {
        let fd = file.as_fd().as_raw_fd();
        // SAFETY: a fresh mapping at an address the kernel chooses; the result is checked.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, fd, offset as libc::off_t) };
        if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self { address, len }) }
    }
    pub fn shared(file: impl AsFd, len: usize) -> io::Result<Self> {
        Self::new(file, 0, len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED)
    }
    pub fn private(file: impl AsFd, len: usize) -> io::Result<Self> {
        Self::new(file, 0, len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE)
    }
    pub fn read_only(file: impl AsFd, len: usize) -> io::Result<Self> {
        Self::new(file, 0, len, libc::PROT_READ, libc::MAP_SHARED)
    }
    pub fn copy(&self) -> Vec<u8> {
        let mut copy = vec![0; self.len];
        // SAFETY: the mapping is `len` bytes long and readable; the file is at least that long in every test.
        unsafe { std::ptr::copy_nonoverlapping(self.address.cast::<u8>(), copy.as_mut_ptr(), self.len) };
        copy
    }
    pub fn store(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.len);
        // SAFETY: in range by the assertion; mapped writable by `shared` and `private`.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.address.cast::<u8>().add(offset), bytes.len());
        }
    }
    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: exactly the range of this mapping.
        check(unsafe { libc::msync(self.address, self.len, libc::MS_SYNC) }).map(drop)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the range of this mapping, which nobody uses any more.
        unsafe { libc::munmap(self.address, self.len) };
    }
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Which owner a record lock has: the process (POSIX) or the open file description (OFD).
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum LockOwner {
    Process,
    Description,
}

/// Sets (`F_SETLK`) a record lock without waiting. `kind`: F_RDLCK, F_WRLCK or F_UNLCK. `len` 0: to the end of the file.
pub fn record_lock(file: impl AsFd, owner: LockOwner, kind: i32, start: i64, len: i64) -> io::Result<()> {
    let command = if owner == LockOwner::Process { libc::F_SETLK } else { libc::F_OFD_SETLK };
    let lock = lock_of(kind, start, len);
    // SAFETY: `lock` is a valid flock structure for the duration of the call.
    check(unsafe { libc::fcntl(file.as_fd().as_raw_fd(), command, &raw const lock) }).map(drop)
}

/// `F_GETLK`: the type (F_UNLCK where it is free) and owner pid of a lock that would stand in the way of a write lock.
pub fn query_lock(file: impl AsFd, owner: LockOwner, start: i64, len: i64) -> io::Result<(i32, i32)> {
    let command = if owner == LockOwner::Process { libc::F_GETLK } else { libc::F_OFD_GETLK };
    let mut lock = lock_of(libc::F_WRLCK, start, len);
    // SAFETY: `lock` is valid and writable for the duration of the call.
    check(unsafe { libc::fcntl(file.as_fd().as_raw_fd(), command, &raw mut lock) })?;
    Ok((lock.l_type as i32, lock.l_pid))
}

fn lock_of(kind: i32, start: i64, len: i64) -> libc::flock {
    // SAFETY: an all-zero flock is a valid value (l_pid must be 0 for OFD locks).
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = start;
    lock.l_len = len;
    lock
}

/// Runs `body` in a forked child and returns its exit status. `body` may only make system calls: no allocation,
/// no locks, no panics, since other threads of the parent do not exist in the child.
pub fn in_child(body: impl FnOnce() -> u8) -> u8 {
    // SAFETY: the child runs `body`, which only makes system calls, and leaves by _exit.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", io::Error::last_os_error());
    if pid == 0 {
        let status = body();
        // SAFETY: ends the child without running the parent's exit handlers.
        unsafe { libc::_exit(i32::from(status)) };
    }
    let mut status = 0;
    // SAFETY: waits for our own child.
    while unsafe { libc::waitpid(pid, &raw mut status, 0) } < 0 {
        assert_eq!(io::Error::last_os_error().kind(), io::ErrorKind::Interrupted);
    }
    assert!(libc::WIFEXITED(status), "child died of signal {}", libc::WTERMSIG(status));
    libc::WEXITSTATUS(status) as u8
}

/// The errno of the last failed libc call as an exit status (all Linux errnos fit).
pub fn last_errno() -> u8 {
    io::Error::last_os_error().raw_os_error().unwrap_or(255) as u8
}

/// Gives the calling thread a umask and working directory of its own.
pub fn unshare_fs() -> io::Result<()> {
    // SAFETY: CLONE_FS touches no memory and no descriptors.
    check(unsafe { libc::unshare(libc::CLONE_FS) }).map(drop)
}

/// `EXT4_IOC_SHUTDOWN` with `EXT4_GOING_FLAGS_NOLOGFLUSH` (linux/ext4.h): the file system stops as in a power cut.
pub fn shut_down_ext4(directory: impl AsFd) -> io::Result<()> {
    const EXT4_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587d;
    let no_log_flush: u32 = 2;
    // SAFETY: the call reads one u32 at the given address.
    let result = unsafe { libc::ioctl(directory.as_fd().as_raw_fd(), EXT4_IOC_SHUTDOWN as _, &raw const no_log_flush) };
    check(result).map(drop)
}

/// Begins to trace a process, as a debugger would, and lets go of it again.
pub fn trace(pid: u32) -> io::Result<()> {
    // SAFETY: seizing a process passes no pointer that is used.
    check(unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid as libc::pid_t, 0, 0) } as i32)?;
    // SAFETY: as above.
    check(unsafe { libc::ptrace(libc::PTRACE_DETACH, pid as libc::pid_t, 0, 0) } as i32).map(drop)
}
