//! What the process may leave behind and hold: core dumps, descriptors. Knows not what is secret.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::CapabilitySet;

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

/// Keeps all memory of the process out of swap, what it has and what it will have (mlockall(2)): buffers of plaintext, and what
/// libraries hold. Pages are locked as they are used. `false`, and nothing done, without the right to lock any amount: a limit
/// reached later would fail the allocation.
pub fn keep_out_of_swap() -> io::Result<bool> {
    let capable = rustix::thread::capabilities(None)?.effective.contains(CapabilitySet::IPC_LOCK);
    // The capability counts in the initial user namespace only, the one that maps every id to itself.
    let unmapped = |map: String| map.split_ascii_whitespace().eq(["0", "0", "4294967295"]);
    let privileged = capable && std::fs::read_to_string("/proc/self/uid_map").is_ok_and(unmapped);
    if !privileged && getrlimit(Resource::Memlock).current.is_some() {
        return Ok(false);
    }
    // SAFETY: takes flags only.
    match unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) } {
        0 => Ok(true),
        _ => Err(io::Error::last_os_error()),
    }
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

    /// In a process of its own: the tests of this one would otherwise be locked in memory as well.
    #[test]
    fn memory_is_locked_where_there_is_no_limit_to_it() {
        const CHILD: &str = "ENVELOPEFS_TEST_KEEP_OUT_OF_SWAP";
        if std::env::var_os(CHILD).is_some() {
            let kept = keep_out_of_swap().unwrap();
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap().trim();
            println!("kept {kept}, locked {}", !locked.starts_with("0 "));
            return;
        }
        let name = "sys::limits::tests::memory_is_locked_where_there_is_no_limit_to_it";
        let test = std::env::current_exe().unwrap();
        let run = |wrapper: &[&str]| {
            let mut command = std::process::Command::new(wrapper[0]);
            let output =
                command.args(&wrapper[1..]).arg(&test).args(["--exact", name, "--nocapture"]).env(CHILD, "1").output();
            String::from_utf8_lossy(&output.unwrap().stdout).into_owned()
        };
        let limited = run(&["prlimit", "--memlock=65536:65536", "setpriv", "--bounding-set=-ipc_lock"]);
        assert!(limited.contains("kept false, locked false") || !crate::sys::identity::is_root(), "{limited}");
        let free = run(&["env"]);
        assert!(free.contains("kept true, locked true") || free.contains("kept false, locked false"), "{free}");
    }

    #[test]
    fn the_soft_descriptor_limit_reaches_the_hard_one() {
        let now = raise_descriptor_limit().unwrap();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
        assert_eq!(limit.current.unwrap_or(u64::MAX), now);
    }
}
