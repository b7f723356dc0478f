//! Real servers under test: found or skipped, started on a free loopback port, stopped with the test. Knows no protocol.

use std::io::{Read, Write};
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
        // Not by the macro, whose output the test harness hides when a test passes.
        let _ = writeln!(std::io::stderr(), "SKIPPED: {what} is not installed; tests/run.sh installs it");
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
        Self::start_until(command, port, log, || TcpStream::connect(("127.0.0.1", port)).is_ok())
    }

    /// Starts `command`, whose output goes to `log`, and waits until `is_up`.
    pub fn start_until(command: &mut Command, port: u16, log: &Path, is_up: impl Fn() -> bool) -> Self {
        let out = std::fs::File::create(log).unwrap();
        let err = out.try_clone().unwrap();
        let child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn().unwrap();
        let mut server = Self { child, port };
        let start = Instant::now();
        while !is_up() {
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

/// One HTTP/1.1 request to a server on this host: `request` is method and target, `headers` further lines that each end in
/// CR LF. Status and body, or why it was no HTTP answer within 30 s.
pub fn http(port: u16, request: &str, headers: &str, body: &[u8]) -> Result<(u16, Vec<u8>), String> {
    let run = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        write!(
            stream,
            "{request} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
            body.len()
        )?;
        stream.write_all(body)?;
        let mut answer = Vec::new();
        let mut chunk = [0; 4096];
        // By the length that the server told: some keep the connection open all the same.
        while whole_length(&answer).is_none_or(|length| answer.len() < length) {
            match stream.read(&mut chunk)? {
                0 => break,
                count => answer.extend_from_slice(&chunk[..count]),
            }
        }
        Ok(answer)
    };
    let answer = run().map_err(|e| format!("{request}: {e}"))?;
    let start = head_length(&answer).ok_or_else(|| format!("{request}: no HTTP head in {} bytes", answer.len()))?;
    let status = std::str::from_utf8(&answer[..start])
        .ok()
        .and_then(|head| head.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok())
        .ok_or_else(|| format!("{request}: no HTTP status"))?;
    Ok((status, answer[start..].to_vec()))
}

fn head_length(answer: &[u8]) -> Option<usize> {
    answer.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4)
}

fn whole_length(answer: &[u8]) -> Option<usize> {
    let start = head_length(answer)?;
    let head = String::from_utf8_lossy(&answer[..start]).to_ascii_lowercase();
    let length: usize = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok())?;
    Some(start + length)
}

/// Marks the second process of `in_own_process`.
const CHILD: &str = "ENVELOPEFS_TEST_CHILD";

/// Runs `body` in a process of its own whose environment is what `prepare` returns (and PATH), because libraries read their
/// settings there and a test may not change its own. `test` is the full name of the calling test. What `prepare` returns
/// first lives as long as that process; `None` is a skip, which `prepare` has announced.
pub fn in_own_process<G>(
    test: &str,
    prepare: impl FnOnce() -> Option<(G, Vec<(String, String)>)>,
    body: impl FnOnce(),
) {
    if std::env::var_os(CHILD).is_some() {
        return body();
    }
    let Some((guards, environment)) = prepare() else { return };
    let output = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("RUST_BACKTRACE", "1")
        .envs(environment)
        .env(CHILD, "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    drop(guards);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{test}: {}\n{text}", output.status);
    assert!(text.contains("1 passed"), "{test} is not the name of a test\n{text}");
    eprintln!("{text}");
}
