//! What the process may leave behind and hold: core dumps, descriptors. Knows not what is secret.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

static DUMPS_FORBIDDEN: AtomicBool = AtomicBool::new(false);

/// No core dumps, and no ptrace or /proc/PID/mem by processes of the same user (prctl(2) PR_SET_DUMPABLE): memory holds keys.
pub fn forbid_dumps() -> io::Result<()> {
    DUMPS_FORBIDDEN.store(true, Ordering::Relaxed);
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Again after a change of credentials, which sets the attribute to the sysctl `fs.suid_dumpable` (2 on some systems).
/// Does nothing unless `forbid_dumps` was called.
pub(super) fn restore_dump_ban() -> io::Result<()> {
    if DUMPS_FORBIDDEN.load(Ordering::Relaxed) {
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    }
    Ok(())
}

/// Raises the soft limit of open descriptors to the hard one; returns the limit in force.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    raise(Resource::Nofile)
}

/// Raises the soft limit of file sizes to the hard one: a caller's `ulimit -f` must not cut a block in half.
pub fn raise_file_size_limit() -> io::Result<u64> {
    raise(Resource::Fsize)
}

fn raise(resource: Resource) -> io::Result<u64> {
    let limit = getrlimit(resource);
    if limit.current != limit.maximum {
        setrlimit(resource, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    }
    Ok(limit.maximum.unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dumps_stay_forbidden_when_a_thread_changes_identity() {
        forbid_dumps().unwrap();
        let core = getrlimit(Resource::Core);
        assert_eq!((core.current, core.maximum), (Some(0), Some(0)));
        std::thread::spawn(|| {
            // Refused without root, and then without effect.
            let _ = crate::sys::identity::set_filesystem_ids(12345, 12345);
        })
        .join()
        .expect("the thread succeeds");
        assert_eq!(rustix::process::dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
    }

    #[test]
    fn the_soft_descriptor_limit_reaches_the_hard_one() {
        let now = raise_descriptor_limit().unwrap();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
        assert_eq!(limit.current.unwrap_or(u64::MAX), now);
    }
}
