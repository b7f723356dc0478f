//! Other processes: waiting for one to end, and its groups. Knows not why one asks.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// One process, whatever happens to its number (pidfd_open(2)).
#[derive(Debug)]
pub struct Process(OwnedFd);

impl Process {
    /// ESRCH where there is none.
    pub fn open(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
        Ok(Self(pidfd_open(pid, PidfdFlags::empty())?))
    }

    /// Waits until the process has ended; `false` where it still runs after `timeout`.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let start = Instant::now();
        loop {
            let left = timeout.saturating_sub(start.elapsed());
            // Rounded up, so that a rest below one millisecond does not spin.
            let millis = i32::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
            let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one pollfd, which outlives the call.
            match unsafe { libc::poll(&raw mut poll, 1, millis) } {
                -1 => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
                0 if millis < i32::MAX => return Ok(false),
                0 => {}
                _ => return Ok(true),
            }
        }
    }
}

/// Supplementary groups of a process or thread, from /proc/PID/status. ENOENT where it is gone.
pub fn supplementary_groups(pid: u32) -> io::Result<Vec<u32>> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(parse_groups(&status))
}

fn parse_groups(status: &str) -> Vec<u32> {
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    groups.split_ascii_whitespace().filter_map(|group| group.parse().ok()).collect()
}

/// Number of threads of this process.
pub(super) fn thread_count() -> io::Result<usize> {
    Ok(fs::read_dir("/proc/self/task")?.count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_a_status_file() {
        assert_eq!(parse_groups("Name:\tx\nGid:\t1\t1\t1\t1\nGroups:\t4 24 1000 \nPid:\t7\n"), [4, 24, 1000]);
        assert_eq!(parse_groups("Name:\tx\nGroups:\t \n"), Vec::<u32>::new());
        assert_eq!(parse_groups(""), Vec::<u32>::new());
    }

    #[test]
    fn own_groups() {
        let mut expected: Vec<u32> = rustix::process::getgroups().unwrap().iter().map(|g| g.as_raw()).collect();
        let mut found = supplementary_groups(std::process::id()).unwrap();
        expected.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, expected);
    }

    #[test]
    fn waiting_for_a_process() {
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        assert!(!process.wait(Duration::ZERO).unwrap());
        drop(child.stdin.take());
        assert!(process.wait(Duration::from_secs(60)).unwrap());
        child.wait().unwrap();
        assert_eq!(Process::open(child.id()).unwrap_err().raw_os_error(), Some(libc::ESRCH));
        assert_eq!(Process::open(0).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}
