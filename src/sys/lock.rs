//! The lock that says who owns a directory: flock(2), and who holds it. Knows not what is locked.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{FlockOperation, fstat, major, minor};
use rustix::io::Errno;

/// Takes the lock without waiting; `false` where another holds it. It lives as long as the open file description,
/// so it crosses fork(2), but /proc/locks names the process that took it: lock after daemonising.
pub fn try_lock(fd: impl AsFd, exclusive: bool) -> io::Result<bool> {
    let operation =
        if exclusive { FlockOperation::NonBlockingLockExclusive } else { FlockOperation::NonBlockingLockShared };
    match rustix::io::retry_on_intr(|| rustix::fs::flock(fd.as_fd(), operation)) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The processes that hold a flock on the object behind `fd` (which may be O_PATH), this one included.
/// Empty where they are in another pid namespace or /proc/locks is hidden.
pub fn holders(fd: impl AsFd) -> io::Result<Vec<u32>> {
    let stat = fstat(fd)?;
    let locks = fs::read_to_string("/proc/locks")?;
    let same_inode: Vec<Flock> = locks.lines().filter_map(Flock::parse).filter(|l| l.ino == stat.st_ino).collect();
    let device = (major(stat.st_dev), minor(stat.st_dev));
    let mut pids: Vec<u32> = same_inode.iter().filter(|l| l.device == device).map(|l| l.pid).collect();
    if pids.is_empty() {
        // btrfs and overlayfs show another device number in stat(2) than in /proc/locks: ask the processes' descriptors.
        pids = same_inode.iter().map(|l| l.pid).filter(|pid| holds_open(*pid, stat.st_dev, stat.st_ino)).collect();
    }
    pids.sort_unstable();
    pids.dedup();
    Ok(pids)
}

fn holds_open(pid: u32, dev: u64, ino: u64) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    descriptors
        .flatten()
        .any(|entry| fs::metadata(entry.path()).is_ok_and(|stat| stat.dev() == dev && stat.ino() == ino))
}

/// One granted flock of /proc/locks (proc_locks(5)): `1: FLOCK  ADVISORY  WRITE 4711 fd:01:525 0 EOF`.
#[derive(Debug, PartialEq, Eq)]
struct Flock {
    pid: u32,
    device: (u32, u32),
    ino: u64,
}

impl Flock {
    /// `None` for other kinds of locks and for waiters (`->` after the number).
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace().skip(1);
        if fields.next()? != "FLOCK" {
            return None;
        }
        let pid = fields.nth(2)?.parse().ok().filter(|pid| *pid > 0)?;
        let mut id = fields.next()?.splitn(3, ':');
        let major = u32::from_str_radix(id.next()?, 16).ok()?;
        let minor = u32::from_str_radix(id.next()?, 16).ok()?;
        Some(Self { pid, device: (major, minor), ino: id.next()?.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc_locks() {
        let granted = "12: FLOCK  ADVISORY  WRITE 4711 fd:1f:525 0 EOF";
        assert_eq!(Flock::parse(granted), Some(Flock { pid: 4711, device: (0xfd, 0x1f), ino: 525 }));
        for other in [
            "1: POSIX  ADVISORY  READ 5433 08:01:7864448 128 128",
            "1: -> FLOCK  ADVISORY  WRITE 4712 fd:1f:525 0 EOF",
            "1: FLOCK  ADVISORY  WRITE 0 fd:1f:525 0 EOF",
            "1: FLOCK  ADVISORY  WRITE -1 fd:1f:525 0 EOF",
            "1: FLOCK  ADVISORY  WRITE 4711 <none>:0 0 EOF",
            "1: FLOCK",
            "",
        ] {
            assert_eq!(Flock::parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_lock_excludes_and_names_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let first = fs::File::open(dir.path()).unwrap();
        let second = fs::File::open(dir.path()).unwrap();
        assert!(holders(&first).unwrap().is_empty());
        assert!(try_lock(&first, true).unwrap());
        assert!(!try_lock(&second, true).unwrap());
        assert!(!try_lock(&second, false).unwrap());
        assert_eq!(holders(&second).unwrap(), [std::process::id()]);
        drop(first);
        // A child that another test starts holds a copy of the first descriptor until it runs its program.
        let free = (0..1000).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(5));
            try_lock(&second, false).unwrap()
        });
        assert!(free);
    }
}
