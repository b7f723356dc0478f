//! The calling thread's filesystem identity: fsuid, fsgid, umask, capabilities. Knows not when or why one switches.
//!
//! Linux keeps these per thread (credentials(7)); the C library's own set*id calls, which change every thread, are not used.

use std::io;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, UnshareFlags};

use super::limits;

/// Who the calling thread is in permission checks, ownership of new objects, quota and reserve.
/// EPERM where the kernel refuses (no CAP_SETUID or CAP_SETGID, or an id outside the user namespace).
/// Leaving uid 0 clears the filesystem capabilities from the effective set: see [`raise_capabilities`].
pub fn set_filesystem_ids(uid: u32, gid: u32) -> io::Result<()> {
    // setfsgid(2) and setfsuid(2) return the previous id and no error; an invalid id changes nothing, so a second call
    // tells which id is in force.
    // SAFETY: both calls take plain integers and touch no memory of ours.
    let in_force = unsafe {
        libc::setfsgid(gid);
        libc::setfsuid(uid);
        (libc::setfsuid(u32::MAX) as u32, libc::setfsgid(u32::MAX) as u32)
    };
    // The kernel resets the dumpable attribute on every change of filesystem ids.
    limits::restore_dump_ban()?;
    if in_force == (uid, gid) { Ok(()) } else { Err(Errno::PERM.into()) }
}

/// Makes every permitted capability effective in the calling thread, except CAP_SYS_RESOURCE unless `resource`:
/// that one overrides quotas and the reserved blocks.
pub fn raise_capabilities(resource: bool) -> io::Result<()> {
    let mut sets = rustix::thread::capabilities(None)?;
    let mut wanted = sets.permitted;
    if !resource {
        wanted.remove(CapabilitySet::SYS_RESOURCE);
    }
    if sets.effective != wanted {
        sets.effective = wanted;
        rustix::thread::set_capabilities(None, sets)?;
    }
    Ok(())
}

/// Gives the calling thread a umask and a working directory of its own (unshare(2) with CLONE_FS; needs no privilege).
pub fn unshare_umask() -> io::Result<()> {
    // SAFETY: only CLONE_FS is unshared; the descriptor table stays shared, so no descriptor becomes invalid elsewhere.
    Ok(unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?)
}

/// Sets the umask: of the whole process, or of the calling thread after [`unshare_umask`].
pub fn set_umask(mask: u32) {
    rustix::process::umask(Mode::from_raw_mode(mask & 0o777));
}

/// Whether the process runs with effective uid 0, so that it may act for other users.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `body` on a thread of its own, whose identity dies with it.
    fn on_thread(body: impl FnOnce() + Send + 'static) {
        std::thread::spawn(body).join().expect("the thread succeeds");
    }

    #[test]
    fn umask_is_per_thread_after_unsharing() {
        on_thread(|| {
            unshare_umask().unwrap();
            set_umask(0o022);
            on_thread(|| {
                unshare_umask().unwrap();
                set_umask(0o077);
            });
            assert_eq!(rustix::process::umask(Mode::empty()).as_raw_mode(), 0o022);
        });
    }

    #[test]
    fn leaving_root_keeps_filesystem_capabilities_and_drops_the_reserve() {
        if !is_root() {
            return;
        }
        on_thread(|| {
            let before = rustix::thread::capabilities(None).unwrap();
            set_filesystem_ids(12345, 54321).unwrap();
            raise_capabilities(false).unwrap();
            let now = rustix::thread::capabilities(None).unwrap();
            assert_eq!(now.effective, before.permitted - CapabilitySet::SYS_RESOURCE);
            set_filesystem_ids(0, 0).unwrap();
            raise_capabilities(true).unwrap();
            assert_eq!(rustix::thread::capabilities(None).unwrap().effective, before.permitted);
        });
    }

    #[test]
    fn an_id_that_does_not_come_into_force_is_an_error() {
        on_thread(|| {
            for (uid, gid) in [(u32::MAX, 0), (0, u32::MAX)] {
                let error = set_filesystem_ids(uid, gid).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EPERM));
            }
        });
    }
}
