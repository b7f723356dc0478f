//! Who is on the other side of a Unix socket. Knows not who may be.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Effective uid of the process that connected, or that listens (unix(7), SO_PEERCRED): as of connect(2) or listen(2).
/// rustix has this call too, but its process id cannot be 0, which the kernel gives for one in another pid namespace.
pub fn uid(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut credentials = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `credentials`, which is plain integers and outlives the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut len,
        )
    };
    if result == 0 { Ok(credentials.uid) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn our_own_socket_is_ours() {
        let (one, _other) = UnixStream::pair().unwrap();
        assert_eq!(uid(one.as_fd()).unwrap(), rustix::process::geteuid().as_raw());
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(uid(file.as_fd()).unwrap_err().raw_os_error(), Some(libc::ENOTSOCK));
    }
}
