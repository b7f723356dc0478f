//! Where log lines go: standard error in front and during start, syslog afterwards. Knows no other sink.

use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU64, Ordering};

use log::{Level, LevelFilter, Log, Metadata, Record};
use parking_lot::Mutex;

/// Sets the level of log lines: error, warn, info or debug.
pub const LEVEL_VARIABLE: &str = "ENVELOPEFS_LOG";
const SOCKET: &str = "/dev/log";
/// Facility `daemon` (RFC 3164).
const FACILITY: u8 = 3 << 3;

enum Sink {
    Stderr,
    Syslog { socket: Option<UnixDatagram>, about: String },
}

struct Logger {
    sink: Mutex<Sink>,
}

/// Reports of entries that do not belong where they stand: listings hide them, so that they show nowhere else.
static HIDDEN_ENTRIES: AtomicU64 = AtomicU64::new(0);
const HIDDEN_ENTRY: &str = "code=name-auth ";

pub fn hidden_entries() -> u64 {
    HIDDEN_ENTRIES.load(Ordering::Relaxed)
}

static LOGGER: Logger = Logger { sink: Mutex::new(Sink::Stderr) };

/// Starts logging to standard error. An unknown level is an error that names the known ones.
pub fn start() -> Result<(), String> {
    let level = match std::env::var(LEVEL_VARIABLE) {
        Ok(text) => parse_level(&text)?,
        Err(_) => LevelFilter::Warn,
    };
    // Fails only where a logger is set already, as in tests.
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(level);
    }
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        log::error!("code=panic {info}: please report this");
        report(info);
    }));
    Ok(())
}

fn parse_level(text: &str) -> Result<LevelFilter, String> {
    match text {
        "error" => Ok(LevelFilter::Error),
        "warn" | "" => Ok(LevelFilter::Warn),
        "info" => Ok(LevelFilter::Info),
        "debug" => Ok(LevelFilter::Debug),
        other => Err(format!("{LEVEL_VARIABLE}={other}: known are error, warn, info, debug")),
    }
}

/// From now on to syslog; `about` (a mountpoint) stands in front of each line. `false` where nobody listens at /dev/log:
/// lines are then lost until somebody does.
pub fn to_syslog(about: &str) -> bool {
    let socket = connect();
    let found = socket.is_some();
    *LOGGER.sink.lock() = Sink::Syslog { socket, about: about.to_string() };
    found
}

fn connect() -> Option<UnixDatagram> {
    let socket = UnixDatagram::unbound().ok()?;
    socket.connect(SOCKET).ok()?;
    // A logger that does not read must not stop a file system.
    socket.set_nonblocking(true).ok()?;
    Some(socket)
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Lines of libraries tell every request with its names and values, and at the lowest level its bytes; only their
        // complaints are wanted.
        metadata.level() <= log::max_level()
            && (metadata.target().starts_with("envelopefs") || metadata.level() <= Level::Warn)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = record.args().to_string();
        // A caller was killed while it waited: its request is gone, and nobody misses the answer.
        if record.target().starts_with("fuser")
            && text.starts_with("Failed to send FUSE reply")
            && text.contains("os error 2)")
        {
            return;
        }
        if record.level() == Level::Error && text.starts_with(HIDDEN_ENTRY) {
            HIDDEN_ENTRIES.fetch_add(1, Ordering::Relaxed);
        }
        match &mut *self.sink.lock() {
            Sink::Stderr => {
                let level = record.level().as_str().to_ascii_lowercase();
                // Nobody to tell where standard error is closed.
                let _ = writeln!(std::io::stderr(), "envelopefs: {level}: {text}");
            }
            Sink::Syslog { socket, about } => {
                let line = syslog_line(record.level(), std::process::id(), about, &text);
                let sent = socket.as_ref().is_some_and(|s| s.send(line.as_bytes()).is_ok());
                if !sent {
                    // The logger may have been restarted.
                    *socket = connect();
                    if let Some(socket) = socket {
                        let _ = socket.send(line.as_bytes());
                    }
                }
            }
        }
    }

    fn flush(&self) {}
}

/// A line without a time stamp, as syslog daemons and journald accept over their local socket.
fn syslog_line(level: Level, pid: u32, about: &str, text: &str) -> String {
    let severity = match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    format!("<{}>envelopefs[{pid}]: {about}: {}", FACILITY | severity, text.replace(['\n', '\0'], " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_carry_facility_and_severity() {
        assert_eq!(syslog_line(Level::Error, 7, "/mnt", "a\nb"), "<27>envelopefs[7]: /mnt: a b");
        assert_eq!(syslog_line(Level::Info, 7, "/mnt", "x"), "<30>envelopefs[7]: /mnt: x");
    }

    #[test]
    fn levels() {
        assert_eq!(parse_level("debug"), Ok(LevelFilter::Debug));
        assert_eq!(parse_level(""), Ok(LevelFilter::Warn));
        assert!(parse_level("loud").unwrap_err().contains("error, warn, info, debug"));
    }
}
