//! Real servers under test: found or skipped, started on a free loopback port, stopped with the test. Knows no protocol.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where the test run installs what the system's packages do not have: `bin/` of a Python environment.
const TOOLS: &str = "ENVELOPEFS_TEST_TOOLS";

/// A program of the test environment or of the system.
pub fn find(program: &str) -> Option<PathBuf> {
    let tools = std::env::var_os(TOOLS).map(|dir| PathBuf::from(dir).join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    tools.into_iter().chain(std::env::split_paths(&path)).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// A file that must be there, or the loud skip.
pub fn require(what: &str, found: Option<PathBuf>) -> Option<PathBuf> {
    if found.is_none() {
        assert!(
            std::env::var_os("ENVELOPEFS_TEST_REQUIRE_SERVERS").is_none_or(|v| v != "1"),
            "{what} is not installed, and ENVELOPEFS_TEST_REQUIRE_SERVERS=1 forbids to skip"
        );
        eprintln!("SKIPPED: {what} is not installed; tests/run.sh installs it");
    }
    found
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A server process that ends with the test.
pub struct Server {
    child: Child,
    pub port: u16,
}

impl Server {
    /// Starts `command`, whose output goes to `log`, and waits until `port` takes connections.
    pub fn start(command: &mut Command, port: u16, log: &Path) -> Self {
        let out = std::fs::File::create(log).unwrap();
        let err = out.try_clone().unwrap();
        let child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn().unwrap();
        let mut server = Self { child, port };
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if let Some(status) = server.child.try_wait().unwrap() {
                panic!("{command:?} ended: {status}\n{}", std::fs::read_to_string(log).unwrap_or_default());
            }
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "{command:?} does not listen\n{}",
                std::fs::read_to_string(log).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
