//! Going to the background: one fork, and a pipe on which the child says that it is ready or why not. Knows no service.

use std::fs::OpenOptions;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::time::Duration;

use rustix::process::{Pid, WaitOptions, waitpid};

use super::{
    locked,
    process::{Process, thread_count},
};

/// Longest message that crosses the pipe, in bytes.
const MESSAGE_MAX: u64 = 64 * 1024;
/// How long the parent waits for a child that has reported failure to be gone (and its locks with it).
const FAREWELL: Duration = Duration::from_secs(2);

/// The two sides after [`daemonise`].
#[derive(Debug)]
pub enum Side {
    /// The caller's own process, once the child is ready or has failed.
    Parent(Result<(), Failure>),
    /// The new process. It keeps terminal, working directory and standard streams until it reports.
    Child(Readiness),
}

/// Why the child did not become ready: the exit code and the text for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub code: u8,
    pub message: String,
}

/// The child's duty to report. Dropped without a report, it reports failure.
#[derive(Debug)]
pub struct Readiness {
    pipe: Option<PipeWriter>,
}

/// Forks. Only one thread may run in the process: others would vanish in the child with their locks held. It may hold no key:
/// the child does not get them.
/// The parent returns when the child has reported or died.
pub fn daemonise() -> io::Result<Side> {
    let threads = thread_count()?;
    if threads != 1 {
        return Err(io::Error::other(format!("cannot go to the background with {threads} threads running")));
    }
    let keys = locked::live();
    if keys != 0 {
        return Err(io::Error::other(format!("cannot go to the background with {keys} keys in memory")));
    }
    // What is still buffered would be written by both.
    io::stdout().flush()?;
    io::stderr().flush()?;
    let (reader, writer) = io::pipe()?;
    // SAFETY: the process has a single thread, so the child's copy of every lock and allocator state is consistent.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            locked::start_anew_in_child();
            Ok(Side::Child(Readiness { pipe: Some(writer) }))
        }
        pid => {
            drop(writer);
            Ok(Side::Parent(await_report(reader, pid)))
        }
    }
}

impl Readiness {
    /// Detaches (own session, working directory `/`, standard streams to /dev/null), then lets the parent return.
    /// The caller's pipes are closed before the parent knows. An error means that nobody waits any more or that
    /// detaching failed: the child should undo its work and exit.
    pub fn ready(mut self) -> io::Result<()> {
        detach()?;
        self.send(&[0])
    }

    /// Reports failure; the child should exit at once.
    pub fn failed(mut self, code: u8, message: &str) {
        // Nothing to do where the parent is gone: there is nobody to tell.
        let _ = self.send_failure(code, message);
    }

    fn send_failure(&mut self, code: u8, message: &str) -> io::Result<()> {
        self.send(&[&[1, code], message.as_bytes()].concat())
    }

    fn send(&mut self, report: &[u8]) -> io::Result<()> {
        match self.pipe.take() {
            Some(mut pipe) => pipe.write_all(report),
            None => Ok(()),
        }
    }
}

impl Drop for Readiness {
    fn drop(&mut self) {
        let _ = self.send_failure(1, "the background process ended without a report");
    }
}

fn detach() -> io::Result<()> {
    // EPERM only says that the process leads a group already; it then has left the terminal's by itself.
    let _ = rustix::process::setsid();
    rustix::process::chdir("/")?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

fn await_report(reader: PipeReader, pid: i32) -> Result<(), Failure> {
    let mut report = Vec::new();
    let read = reader.take(MESSAGE_MAX).read_to_end(&mut report);
    match (read, report.as_slice()) {
        (Ok(_), [0]) => return Ok(()),
        (Ok(_), [1, code, message @ ..]) => {
            if let Ok(child) = Process::open(pid.unsigned_abs()) {
                let _ = child.wait(FAREWELL);
            }
            reap(pid, WaitOptions::NOHANG);
            return Err(Failure { code: *code, message: String::from_utf8_lossy(message).into_owned() });
        }
        _ => {}
    }
    let end = reap(pid, WaitOptions::empty()).unwrap_or_else(|| "died".into());
    Err(Failure { code: 1, message: format!("the background process {end} before it was ready") })
}

/// Collects the child; tells how it ended, where it has.
fn reap(pid: i32, options: WaitOptions) -> Option<String> {
    let (_, status) = rustix::io::retry_on_intr(|| waitpid(Pid::from_raw(pid), options)).ok()??;
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Some(format!("exited with code {code}")),
        (_, Some(signal)) => Some(format!("was killed by signal {signal}")),
        _ => None,
    }
}
