//! Going to the background, in a process of one thread: what the parent learns, and what the child leaves behind.
//! Plain `main`, because the test harness runs threads. Every case runs in a process of its own, started from here.

use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use envelopefs::crypto::secret::Secret32;
use envelopefs::sys::daemon::{Failure, Side, daemonise};
use envelopefs::sys::process::Process;

const CASE: &str = "DAEMONISE_CASE";

fn main() -> ExitCode {
    match std::env::var(CASE) {
        Ok(case) => run(&case),
        Err(_) => {
            ready_child_is_detached();
            failure_reaches_the_parent();
            death_reaches_the_parent();
            silence_is_failure();
            threads_are_refused();
            keys_are_not_taken_along();
            println!("daemonise: 7 cases passed");
            ExitCode::SUCCESS
        }
    }
}

/// The program under test: does what a mount command does. Its parent half prints what it learnt.
fn run(case: &str) -> ExitCode {
    print!("before;");
    if case == "threads" {
        std::thread::spawn(|| std::thread::sleep(Duration::from_secs(600)));
        let error = daemonise().expect_err("a second thread runs");
        print!("{error}");
        return ExitCode::SUCCESS;
    }
    if case == "keys" {
        let key = Secret32::random();
        let error = daemonise().expect_err("a key is in memory");
        print!("{error}");
        return ExitCode::from(u8::from(*key.expose() == [0; 32]));
    }
    if case == "keys before and after" {
        drop(Secret32::random());
    }
    let readiness = match daemonise().expect("the process forks") {
        Side::Parent(Ok(())) => {
            print!("ready");
            return ExitCode::SUCCESS;
        }
        Side::Parent(Err(Failure { code, message })) => {
            print!("{message}");
            return ExitCode::from(code);
        }
        Side::Child(readiness) => readiness,
    };
    match case {
        // The parent's pages do not exist here: this would crash if keys were still taken from them.
        "keys before and after" => {
            let (one, two) = (Secret32::random(), Secret32::from_bytes([7; 32]));
            let apart = one.expose() != two.expose() && *two.duplicate().expose() == [7; 32];
            readiness.failed(42, if apart { "fresh keys;" } else { "mixed up;" });
            return ExitCode::from(42);
        }
        "ready" => {
            println!("prompt;");
            let _ = std::io::stdout().flush();
            // The pipe that only we read from tells the test who we are, and keeps us until the test lets go.
            let mut link = std::fs::OpenOptions::new().read(true).write(true).open(fifo()).expect("the FIFO opens");
            readiness.ready().expect("the parent hears");
            println!("lost");
            let null = std::fs::metadata("/dev/null").expect("there is /dev/null").rdev();
            let detached = (0..3)
                .all(|fd| std::fs::metadata(format!("/proc/self/fd/{fd}")).is_ok_and(|s| s.rdev() == null))
                && std::env::current_dir().is_ok_and(|dir| dir == std::path::Path::new("/"))
                && rustix::process::getsid(None).is_ok_and(|session| session == rustix::process::getpid());
            writeln!(link, "{} {detached}", std::process::id()).expect("the test reads");
            std::thread::sleep(Duration::from_secs(600));
        }
        "failed" => readiness.failed(4, "wrong passphrase: ünïcode"),
        "death" => {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
        "silence" => drop(readiness),
        other => panic!("no case {other}"),
    }
    ExitCode::from(99)
}

fn fifo() -> std::path::PathBuf {
    std::env::var_os("DAEMONISE_FIFO").expect("the test names a FIFO").into()
}

fn command(case: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    // The standard streams are pipes, as in `$(envelopefs mount ...)`: the output ends only when nobody holds them.
    command.env(CASE, case).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.process_group(0);
    command
}

fn outcome(case: &str) -> (Option<i32>, String) {
    let output = command(case).output().expect("the case runs");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(errors, "", "{case}");
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

fn ready_child_is_detached() {
    let dir = tempfile::tempdir().expect("a scratch directory");
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
        .expect("a FIFO is made");
    let mut link = std::fs::OpenOptions::new().read(true).write(true).open(&fifo).expect("the FIFO opens");
    let child = command("ready").env("DAEMONISE_FIFO", &fifo).spawn().expect("the case starts");
    // Returns although the daemon lives on: it has let go of the pipes.
    let output = child.wait_with_output().expect("the case ends");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "before;prompt;\nready");
    let mut said = Vec::new();
    let mut byte = [0];
    while link.read_exact(&mut byte).is_ok() && byte[0] != b'\n' {
        said.push(byte[0]);
    }
    let said = String::from_utf8_lossy(&said).into_owned();
    let (pid, detached) = said.split_once(' ').expect("pid and verdict");
    assert_eq!(detached, "true");
    let pid: u32 = pid.parse().expect("a pid");
    let process = Process::open(pid).expect("the daemon lives");
    assert!(!process.wait(Duration::ZERO).expect("the daemon can be waited for"));
    let raw = rustix::process::Pid::from_raw(pid as i32).expect("a pid");
    rustix::process::kill_process(raw, rustix::process::Signal::KILL).expect("the daemon is ours");
    assert!(process.wait(Duration::from_secs(60)).expect("the daemon can be waited for"));
}

fn failure_reaches_the_parent() {
    assert_eq!(outcome("failed"), (Some(4), "before;wrong passphrase: ünïcode".into()));
}

fn death_reaches_the_parent() {
    let message = "before;the background process was killed by signal 9 before it was ready";
    assert_eq!(outcome("death"), (Some(1), message.into()));
}

fn silence_is_failure() {
    assert_eq!(outcome("silence"), (Some(1), "before;the background process ended without a report".into()));
}

fn threads_are_refused() {
    let (code, said) = outcome("threads");
    assert_eq!((code, said.as_str()), (Some(0), "before;cannot go to the background with 2 threads running"));
}

fn keys_are_not_taken_along() {
    let (code, said) = outcome("keys");
    assert_eq!((code, said.as_str()), (Some(0), "before;cannot go to the background with 1 keys in memory"));
    let (code, said) = outcome("keys before and after");
    assert_eq!((code, said.as_str()), (Some(42), "before;fresh keys;"));
}
