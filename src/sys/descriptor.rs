//! Reaching an object again through a descriptor that cannot do I/O itself (O_PATH). Knows nothing of what the object is.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `/proc/self/fd/N`: a link that leads to the very object behind `fd`, even where it has no name any more (proc(5)).
/// Following it stops at the object, also where that is a symbolic link.
pub fn path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// fchmodat2(2), Linux 6.6: sets permission bits without following a link; with an empty `name`, those of `dir` itself,
/// which may be an O_PATH descriptor. ENOSYS on older kernels, EOPNOTSUPP for a symbolic link.
pub fn chmod_at(dir: BorrowedFd<'_>, name: &CStr, mode: u32) -> io::Result<()> {
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH;
    // SAFETY: `name` is NUL-terminated and lives across the call; the kernel keeps no pointer.
    let result = unsafe { libc::syscall(libc::SYS_fchmodat2, dir.as_raw_fd(), name.as_ptr(), mode, flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
