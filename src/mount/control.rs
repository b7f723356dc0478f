//! The control socket of a mount: one JSON line to ask, one to answer. Owns the protocol, both sides of it, and who may ask;
//! what a request does is in the module that it concerns. Never touches the mount itself.
//!
//! A request: `{"version":1,"request":"status"}`, with further members where its kind has some. An answer:
//! `{"version":1,"ok":VALUE}` or `{"version":1,"error":{"kind":KIND,"message":TEXT}}`. Each ends with a newline.
//! To add a request: a variant of [`Request`], an arm in [`perform`].

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::kernel::MountEntry;
use super::mounted::Mounted;
use super::runtime_dir::{self, Bound, NoAnswer};
use super::{MountError, directory_cmks, status};
use crate::keys::KeyError;
use crate::keys::passphrase::PassphraseSource;
use crate::sys::peer;

/// Of both lines. It changes when an old side could misunderstand a new one.
const VERSION: u32 = 1;
/// Longest request and answer in bytes.
const REQUEST_MAX: usize = 64 << 10;
const ANSWER_MAX: usize = 4 << 20;
/// How long a client may take to say what it wants, and to take its answer.
const CLIENT: Duration = Duration::from_secs(5);
/// Clients at once; a further one is told to come back.
const CLIENTS_MAX: usize = 16;

/// What a mount can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// How it stands: [`status::Status`].
    Status {},
    /// Drop every key but the volume's own: [`super::mounted::Forgotten`]. `force`: also where written data could not be saved first.
    ForgetKeys {
        #[serde(default)]
        force: bool,
    },
    /// What new files of a directory hang on: [`directory_cmks::DirectoryCmks`], as the next two. `inode`: the directory's
    /// st_ino on the mount; the client holds it open meanwhile.
    DirectoryCmks { inode: u64 },
    /// Gives a directory CMKs. `passphrase_file`: for sealed keys; its path, since the daemon can read what its owner can.
    SetDirectoryCmks {
        inode: u64,
        cmks: Vec<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        passphrase_file: Option<PathBuf>,
    },
    /// Gives it the volume's CMKs back.
    UnsetDirectoryCmks { inode: u64 },
}

impl Request {
    /// How long its answer may take.
    fn patience(&self) -> Duration {
        match self {
            Self::Status {} | Self::DirectoryCmks { .. } => Duration::from_secs(10),
            Self::ForgetKeys { .. } | Self::SetDirectoryCmks { .. } | Self::UnsetDirectoryCmks { .. } => {
                Duration::from_secs(120)
            }
        }
    }
}

/// Runs a permitted request. May block, but no longer than its client waits.
fn perform(mounted: &Arc<Mounted>, request: Request) -> Result<Value, MountError> {
    let value = match request {
        Request::Status {} => serde_json::to_value(status::of(mounted)),
        Request::ForgetKeys { force } => serde_json::to_value(mounted.forget_keys(force)?),
        Request::DirectoryCmks { inode } => serde_json::to_value(directory_cmks::show(mounted, inode)?),
        Request::SetDirectoryCmks { inode, cmks, passphrase_file } => {
            let passphrase = passphrase_file.map_or(PassphraseSource::Nowhere, PassphraseSource::File);
            serde_json::to_value(directory_cmks::set(mounted, inode, &cmks, &passphrase)?)
        }
        Request::UnsetDirectoryCmks { inode } => serde_json::to_value(directory_cmks::unset(mounted, inode)?),
    };
    value.map_err(|e| MountError::Other(format!("the answer cannot be written: {e}")))
}

#[derive(Serialize, Deserialize)]
struct Question {
    version: u32,
    #[serde(flatten)]
    request: Request,
}

#[derive(Serialize, Deserialize)]
struct Answer {
    version: u32,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Outcome {
    Ok(Value),
    Error { kind: Kind, message: String },
}

/// Decides the exit code, as [`MountError`] does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Volume,
    Key,
    Mountpoint,
    Busy,
    Other,
}

impl From<MountError> for Outcome {
    fn from(error: MountError) -> Self {
        let kind = match &error {
            MountError::Volume(_) | MountError::Key(KeyError::Volume(_)) => Kind::Volume,
            MountError::Key(_) => Kind::Key,
            MountError::Mountpoint(_) => Kind::Mountpoint,
            MountError::Busy(_) => Kind::Busy,
            MountError::Other(_) => Kind::Other,
        };
        Self::Error { kind, message: error.to_string() }
    }
}

fn as_error(kind: Kind, message: String) -> MountError {
    match kind {
        Kind::Volume => MountError::Volume(message),
        Kind::Key => MountError::Key(KeyError::Config(message)),
        Kind::Mountpoint => MountError::Mountpoint(message),
        Kind::Busy => MountError::Busy(message),
        Kind::Other => MountError::Other(message),
    }
}

/// Asks the daemon of a mount and waits for its answer.
pub fn ask(entry: &MountEntry, request: &Request) -> Result<Value, MountError> {
    let at = entry.mountpoint.display();
    let patience = request.patience();
    let mut stream = runtime_dir::connect(entry, patience).map_err(|e| match e {
        NoAnswer::Nobody(text) => MountError::Mountpoint(text),
        NoAnswer::Forbidden(text) => MountError::Other(text),
    })?;
    let failed = |e: io::Error| match e.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            let text = format!("{at}: its process does not answer within {} seconds", patience.as_secs());
            MountError::Mountpoint(text)
        }
        _ => MountError::Mountpoint(format!("{at}: asking its process failed: {e}")),
    };
    let asked = encode(request).map_err(io::Error::from).and_then(|mut line| {
        line.push(b'\n');
        stream.write_all(&line)
    });
    // Who may not ask is told so without being listened to.
    let line = match (read_line(&mut stream, ANSWER_MAX, patience), asked) {
        (Ok(line), _) => line,
        (Err(_), Err(e)) | (Err(e), Ok(())) => return Err(failed(e)),
    };
    understand(&line).unwrap_or_else(|e| {
        Err(MountError::Mountpoint(format!(
            "{at}: its answer is not understood ({e}): is this program of the same version as the mount's?"
        )))
    })
}

/// What an answer says; the outer error where it is none.
pub(crate) fn understand(line: &[u8]) -> serde_json::Result<Result<Value, MountError>> {
    let Answer { outcome, .. } = serde_json::from_slice(line)?;
    Ok(match outcome {
        Outcome::Ok(value) => Ok(value),
        Outcome::Error { kind, message } => Err(as_error(kind, message)),
    })
}

/// A request's line, without its newline.
pub(crate) fn encode(request: &Request) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Question { version: VERSION, request: request.clone() })
}

fn write_line(to: &mut UnixStream, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    to.write_all(&line)
}

/// One line without its newline, all of it within `limit`. Errors: EOF before its end, or more than `max` bytes.
fn read_line(from: &mut UnixStream, max: usize, limit: Duration) -> io::Result<Vec<u8>> {
    let end = Instant::now() + limit;
    let mut line = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        from.set_read_timeout(Some(left))?;
        let len = match from.read(&mut piece) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => len,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        let (text, ended) = match piece[..len].iter().position(|byte| *byte == b'\n') {
            Some(at) => (&piece[..at], true),
            None => (&piece[..len], false),
        };
        if line.len() + text.len() > max {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("longer than {max} bytes")));
        }
        line.extend_from_slice(text);
        if ended {
            return Ok(line);
        }
    }
}

/// The listening side.
pub struct Server {
    listener: Arc<UnixListener>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
    socket: Bound,
}

impl Server {
    /// The error says why there is no socket; a mount goes on without one.
    pub fn start(mounted: &Arc<Mounted>) -> Result<Self, String> {
        let (listener, socket) = runtime_dir::bind(mounted.device)?;
        log::debug!("control socket: {}", socket.path().display());
        let (listener, stop) = (Arc::new(listener), Arc::new(AtomicBool::new(false)));
        let (source, mounted, stopped) = (listener.clone(), mounted.clone(), stop.clone());
        let thread = thread::Builder::new()
            .name("control".into())
            .spawn(move || accept(&source, &mounted, &stopped))
            .map_err(|e| e.to_string())?;
        Ok(Self { listener, stop, thread, socket })
    }

    /// Takes the socket away and no more requests; those under way go on.
    pub fn stop(self) {
        drop(self.socket);
        self.stop.store(true, Ordering::Release);
        if rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both).is_ok() {
            // A panic has been logged by its hook.
            let _ = self.thread.join();
        }
    }
}

fn accept(listener: &UnixListener, mounted: &Arc<Mounted>, stopped: &AtomicBool) {
    let clients = Arc::new(AtomicUsize::new(0));
    loop {
        let accepted = listener.accept();
        if stopped.load(Ordering::Acquire) {
            return;
        }
        match accepted {
            Ok((stream, _)) => meet(stream, mounted, &clients),
            Err(e) => {
                log::debug!("control socket: {e}");
                // No descriptors left, most likely.
                thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Who may ask is decided before a byte is read; everything else happens on a thread of the client's own.
fn meet(stream: UnixStream, mounted: &Arc<Mounted>, clients: &Arc<AtomicUsize>) {
    let refuse = |mut stream: UnixStream, error: MountError| {
        // It fits into an empty socket; where it does not, nobody is waited for.
        if stream.set_nonblocking(true).is_ok() {
            let _ = write_line(&mut stream, &Answer { version: VERSION, outcome: error.into() });
        }
    };
    let owner = rustix::process::geteuid().as_raw();
    match peer::uid(stream.as_fd()) {
        Ok(uid) if uid == 0 || uid == owner => {}
        Ok(uid) => {
            log::warn!("code=control uid {uid} asked for control of this mount and was refused");
            let text = format!("this mount belongs to uid {owner}; only that user and root may ask it");
            return refuse(stream, MountError::Other(text));
        }
        Err(e) => return log::warn!("code=control a client that the kernel does not name: {e}"),
    }
    if clients.fetch_add(1, Ordering::AcqRel) >= CLIENTS_MAX {
        clients.fetch_sub(1, Ordering::AcqRel);
        return refuse(stream, MountError::Busy(format!("{CLIENTS_MAX} clients are asking already; try again")));
    }
    let (seat, mounted) = (Seat(clients.clone()), mounted.clone());
    let spawned = thread::Builder::new().name("control-client".into()).spawn(move || {
        serve(stream, &mounted);
        drop(seat);
    });
    if let Err(e) = spawned {
        log::warn!("code=control a client could not be served: {e}");
    }
}

/// One of the clients that may ask at once; also given back by a panic.
struct Seat(Arc<AtomicUsize>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn serve(mut stream: UnixStream, mounted: &Arc<Mounted>) {
    let line = match read_line(&mut stream, REQUEST_MAX, CLIENT) {
        Ok(line) => line,
        Err(e) => return log::debug!("control socket: {e}"),
    };
    let outcome = match parse(&line) {
        Ok(request) => perform(mounted, request).map_or_else(Outcome::from, Outcome::Ok),
        Err(error) => error.into(),
    };
    let answered = stream
        .set_write_timeout(Some(CLIENT))
        .and_then(|()| write_line(&mut stream, &Answer { version: VERSION, outcome }));
    if let Err(e) = answered {
        log::debug!("control socket: {e}");
    }
}

pub(crate) fn parse(line: &[u8]) -> Result<Request, MountError> {
    #[derive(Deserialize)]
    struct Spoken {
        version: u32,
    }
    let unknown = |e: serde_json::Error| MountError::Other(format!("the request is not understood: {e}"));
    let Spoken { version } = serde_json::from_slice(line).map_err(unknown)?;
    if version != VERSION {
        let text = format!("this mount speaks version {VERSION} of the control protocol, not {version}");
        return Err(MountError::Other(text));
    }
    serde_json::from_slice::<Question>(line).map(|question| question.request).map_err(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_are_what_the_protocol_says() {
        let text = |request| serde_json::to_string(&Question { version: VERSION, request }).unwrap();
        assert_eq!(text(Request::Status {}), r#"{"version":1,"request":"status"}"#);
        assert_eq!(text(Request::ForgetKeys { force: true }), r#"{"version":1,"request":"forget-keys","force":true}"#);
        let set = |passphrase_file| Request::SetDirectoryCmks {
            inode: 7,
            cmks: vec!["keyfile:///k".into()],
            passphrase_file,
        };
        let line = r#"{"version":1,"request":"set-directory-cmks","inode":7,"cmks":["keyfile:///k"]}"#;
        assert_eq!(text(set(None)), line);
        assert_eq!(parse(line.as_bytes()).unwrap(), set(None));
        assert!(text(set(Some("/p".into()))).contains(r#""passphrase_file":"/p""#));
        let answer = Answer { version: VERSION, outcome: Outcome::Ok(Value::from(7)) };
        assert_eq!(serde_json::to_string(&answer).unwrap(), r#"{"version":1,"ok":7}"#);
        let answer = Answer { version: VERSION, outcome: MountError::Busy("x".into()).into() };
        let text = serde_json::to_string(&answer).unwrap();
        assert_eq!(text, r#"{"version":1,"error":{"kind":"busy","message":"x"}}"#);
        let Outcome::Error { kind, message } = serde_json::from_str::<Answer>(&text).unwrap().outcome else { panic!() };
        assert!(matches!(as_error(kind, message), MountError::Busy(text) if text == "x"));
    }

    #[test]
    fn requests_are_parsed_strictly_by_version_and_kind() {
        assert_eq!(parse(br#"{"version":1,"request":"status"}"#).unwrap(), Request::Status {});
        let forget = parse(br#"{"request":"forget-keys","version":1}"#).unwrap();
        assert_eq!(forget, Request::ForgetKeys { force: false });
        for (line, expected) in [
            (&br#"{"version":2,"request":"status"}"#[..], "speaks version 1"),
            (br#"{"version":1,"request":"dance"}"#, "not understood"),
            (br#"{"version":1}"#, "not understood"),
            (br#"{}"#, "not understood"),
            (b"\xff", "not understood"),
            (b"", "not understood"),
        ] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn lines_are_bounded_in_size_and_time() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        ours.write_all(b"one\ntwo").unwrap();
        assert_eq!(read_line(&mut theirs, 9, CLIENT).unwrap(), b"one");
        ours.write_all(b"0123456789").unwrap();
        assert_eq!(read_line(&mut theirs, 9, CLIENT).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let late = read_line(&mut theirs, 9, Duration::from_millis(20)).unwrap_err();
        assert!(matches!(late.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock));
        drop(ours);
        assert_eq!(read_line(&mut theirs, 9, CLIENT).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
